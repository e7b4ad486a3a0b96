//! What is another rule in one policy than in the other.
//!
//! Owns the pairing: rules with the same text are the same, whatever their place; of the rest, those with the same id are one rule
//! that changed.

use std::collections::HashMap;

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
    let mut by_id: HashMap<String, RuleView> = left.iter().cloned().map(|rule| (rule.id.clone(), rule)).collect();
    let mut changes: Vec<Change> = new
        .into_iter()
        .map(|after| match by_id.remove(&after.id) {
            // Without an id of its own it is called by its place.
            Some(before) if after.named && before.named => Change::Changed { before, after },
            Some(other) => {
                by_id.insert(other.id.clone(), other);
                Change::Added(after)
            }
            None => Change::Added(after),
        })
        .collect();
    changes.extend(
        left.into_iter()
            .filter(|rule| by_id.contains_key(&rule.id))
            .map(Change::Removed),
    );
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
