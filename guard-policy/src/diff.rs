//! What is another rule in one policy than in the other.
//!
//! Owns the pairing: rules with the same text are the same, whatever their place; of the rest, those with the same id are one rule
//! that changed.

use crate::{Policy, RuleView};

/// How one rule differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    Added(RuleView),
    Removed(RuleView),
    Changed { before: RuleView, after: RuleView },
}

/// Every rule that is not in both, in the order of the new policy; those that went come last.
#[must_use]
pub fn diff(before: &Policy, after: &Policy) -> Vec<Change> {
    let mut left: Vec<RuleView> = before.rules();
    let mut new = Vec::new();
    for rule in after.rules() {
        match left.iter().position(|old| old.source == rule.source) {
            Some(at) => drop(left.remove(at)),
            None => new.push(rule),
        }
    }
    let mut changes = Vec::new();
    for after in new {
        // Without an id of its own a rule is called by its place.
        let same = |old: &RuleView| old.named && after.named && old.id == after.id;
        changes.push(match left.iter().position(same) {
            Some(at) => Change::Changed {
                before: left.remove(at),
                after,
            },
            None => Change::Added(after),
        });
    }
    changes.extend(left.into_iter().map(Change::Removed));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::parse;

    const A: &str = r#"permit (principal == Workload::"a", action == Action::"exec", resource);"#;
    const B: &str = r#"forbid (principal == Workload::"b", action == Action::"exec", resource);"#;

    fn said(before: &str, after: &str) -> Vec<String> {
        let changes = diff(&parse(before, "p").unwrap(), &parse(after, "p").unwrap());
        changes
            .iter()
            .map(|change| match change {
                Change::Added(rule) => format!("+{}", rule.id),
                Change::Removed(rule) => format!("-{}", rule.id),
                Change::Changed { after, .. } => format!("~{}", after.id),
            })
            .collect()
    }

    #[test]
    fn order_is_no_difference() {
        let (one, two) = (format!("@id(\"a\")\n{A}\n{B}"), format!("{B}\n@id(\"a\")\n{A}"));
        assert!(said(&one, &two).is_empty());
    }

    #[test]
    fn a_rule_with_an_id_changes_and_one_without_goes_and_comes() {
        let named = |rule: &str| format!("@id(\"a\")\n{rule}");
        assert_eq!(said(&named(A), &named(B)), ["~a"]);
        assert_eq!(said(A, B), ["+rule-1", "-rule-1"]);
        assert_eq!(said(A, &format!("{A}\n{B}")), ["+rule-2"]);
        assert_eq!(said(&format!("{A}\n{}", named(B)), A), ["-a"]);
    }
}
