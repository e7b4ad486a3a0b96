//! Which facts a rule looks at.
//!
//! Owns the walk over a rule's JSON form. It is given expressions of a checked rule. It must never miss a read: what it
//! does not recognise counts as reading everything.

use std::ops::{BitOr, BitOrAssign};

use serde_json::Value;

/// A set of facts that may be unknown, or change, when a rule is evaluated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Reads(u8);

impl Reads {
    pub const NONE: Self = Self(0);
    pub const PATH: Self = Self(1);
    pub const ARGV: Self = Self(2);
    pub const CWD: Self = Self(4);
    pub const GIVEN: Self = Self(8);
    pub const SHA256: Self = Self(16);
    /// Everything that only the held thread tells.
    pub const HELD: Self = Self(2 | 4 | 8 | 16);
    /// The user's name: the one fact that may change while everything that the kernel says stays the same.
    pub const USER: Self = Self(32);
    /// Who asks, beyond the label: an exact rule in the kernel does not look at it.
    pub const WHO: Self = Self(64);
    const ALL: Self = Self(127);

    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    #[must_use]
    pub fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

impl BitOr for Reads {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Reads {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// What an expression (Cedar's JSON form) looks at.
pub(super) fn of_expression(expression: &Value) -> Reads {
    match expression {
        Value::Object(map) => {
            for operator in [".", "has"] {
                if let Some(Value::Object(access)) = map.get(operator)
                    && access.get("left") == Some(&serde_json::json!({"Var": "context"}))
                    && let Some(Value::String(attribute)) = access.get("attr")
                {
                    return of_attribute(attribute);
                }
            }
            match map.get("Var").and_then(Value::as_str) {
                // The context as a whole, compared or passed on.
                Some("context") => return Reads::ALL,
                Some("resource") => return Reads::PATH,
                _ => {}
            }
            map.values().map(of_expression).fold(Reads::NONE, BitOr::bitor)
        }
        Value::Array(values) => values.iter().map(of_expression).fold(Reads::NONE, BitOr::bitor),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => Reads::NONE,
    }
}

fn of_attribute(name: &str) -> Reads {
    match name {
        "path" | "new_path" | "name" => Reads::PATH,
        "argv" | "argc" | "argv0" => Reads::ARGV,
        "command" => Reads::PATH | Reads::ARGV,
        "cwd" => Reads::CWD,
        "given" => Reads::GIVEN,
        "sha256" => Reads::SHA256,
        "user" => Reads::USER,
        "uid" | "gid" | "login_uid" | "cgroup" | "container" => Reads::WHO,
        "approved" | "unlinked" | "address" | "port" | "protocol" | "loopback" | "connected_before" | "operation"
        | "directory" | "replaces" => Reads::NONE,
        _ => Reads::ALL,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cedar_policy::Policy;

    fn reads(condition: &str) -> Reads {
        let policy = Policy::parse(
            None,
            format!("permit(principal, action, resource) when {{ {condition} }};"),
        )
        .unwrap();
        of_expression(&policy.to_json().unwrap()["conditions"])
    }

    #[test]
    fn every_way_to_look_is_seen() {
        assert_eq!(reads("context.port == 0 && context.approved"), Reads::NONE);
        assert_eq!(reads("context has container"), Reads::WHO);
        assert_eq!(reads("context.path like \"/usr/*\""), Reads::PATH);
        assert_eq!(reads("context[\"path\"] like \"/usr/*\""), Reads::PATH);
        assert_eq!(reads("context has cwd"), Reads::CWD);
        assert_eq!(reads("context has user && context.uid == 0"), Reads::USER | Reads::WHO);
        assert_eq!(
            reads("context.argv.contains(\"--force\") || context.uid == 0"),
            Reads::ARGV | Reads::WHO
        );
        assert_eq!(
            reads("if context.uid == 0 then context.given == \"x\" else false"),
            Reads::GIVEN | Reads::WHO
        );
        assert_eq!(reads("resource in Directory::\"/usr\""), Reads::PATH);
        assert_eq!(reads("resource == Executable::\"/bin/sh\""), Reads::PATH);
        assert_eq!(reads("[context.sha256].contains(\"aa\")"), Reads::SHA256);
        assert_eq!(reads("{\"a\": context}.a.cwd == \"x\""), Reads::ALL);
        assert_eq!(reads("context == context"), Reads::ALL);
        assert_eq!(reads("context.something_new == 1"), Reads::ALL);
    }

    #[test]
    fn the_schema_and_the_reads_name_the_same_attributes() {
        let schema = crate::SCHEMA;
        let names = schema
            .split("context: {")
            .skip(1)
            .flat_map(|context| context.split("\n  }").next().unwrap_or_default().lines());
        let names = names.filter_map(|line| {
            let line = line.trim();
            (!line.starts_with("//"))
                .then(|| line.split_once(':'))
                .flatten()
                .map(|(name, _)| name.trim_end_matches('?'))
        });
        let mut count = 0;
        for name in names {
            count += 1;
            assert_ne!(of_attribute(name), Reads::ALL, "{name}");
        }
        assert_eq!(count, 16 + 12 + 10 + 10 + 12);
    }
}
