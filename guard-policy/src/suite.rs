//! Tests of a policy, as people write them: an action, and what has to become of it.
//!
//! Owns the file's shape and the comparison. It is given the text and a policy. It must never count a test that says nothing as
//! one that passed.

use serde::Deserialize;

use crate::described::{Described, Exec, Peer, Write};
use crate::{Answer, Policy};

/// Largest file of tests, in bytes.
pub const SUITE_BYTES: usize = 1 << 20;

/// A file of tests.
#[derive(Debug, Clone)]
pub struct Suite {
    pub tests: Vec<Test>,
}

/// One test.
#[derive(Debug, Clone)]
pub struct Test {
    pub name: String,
    expect: Expect,
    /// Only when they are named: exactly these, in any order.
    approvers: Option<Vec<String>>,
    quorum: Option<u32>,
    rules: Option<Vec<String>>,
    action: Described,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Expect {
    Allow,
    Ask,
    Deny,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSuite {
    #[serde(default)]
    test: Vec<RawTest>,
}

/// A test and its action beside each other: serde's flatten takes unknown keys.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTest {
    name: String,
    expect: Expect,
    approvers: Option<Vec<String>>,
    quorum: Option<u32>,
    rules: Option<Vec<String>>,
    label: String,
    #[serde(default)]
    uid: u32,
    #[serde(default)]
    gid: u32,
    user: Option<String>,
    login_uid: Option<u32>,
    #[serde(default)]
    cgroup: String,
    container: Option<String>,
    exec: Option<Exec>,
    connect: Option<Peer>,
    listen: Option<Peer>,
    write: Option<Write>,
}

impl Suite {
    /// Reads a file of tests (TOML, `[[test]]`).
    ///
    /// # Errors
    /// What is wrong and where, or that there is no test in it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > SUITE_BYTES {
            return Err(format!("it has more than {SUITE_BYTES} bytes"));
        }
        let raw: RawSuite = toml::from_str(text).map_err(|error| error.to_string().trim_end().to_owned())?;
        if raw.test.is_empty() {
            return Err("there is no [[test]] in it".to_owned());
        }
        let tests = raw.test.into_iter().map(RawTest::resolve).collect();
        Ok(Self { tests })
    }
}

impl RawTest {
    fn resolve(self) -> Test {
        Test {
            name: self.name,
            expect: self.expect,
            approvers: self.approvers,
            quorum: self.quorum,
            rules: self.rules,
            action: Described {
                label: self.label,
                uid: self.uid,
                gid: self.gid,
                user: self.user,
                login_uid: self.login_uid,
                cgroup: self.cgroup,
                container: self.container,
                exec: self.exec,
                connect: self.connect,
                listen: self.listen,
                write: self.write,
            },
        }
    }
}

impl Test {
    /// Puts the action to the policy.
    ///
    /// # Errors
    /// How the answer differs from what was expected, or why there is no action.
    pub fn run(&self, policy: &Policy) -> Result<(), String> {
        let answer = policy.evaluate(&self.action.facts()?);
        let found = match answer {
            Answer::Allow { .. } => Expect::Allow,
            Answer::Ask(_) => Expect::Ask,
            // Everything is known of the action: nothing is left to hold it for.
            Answer::Deny { .. } | Answer::Hold => Expect::Deny,
        };
        let mut wrong = Vec::new();
        if found != self.expect {
            wrong.push(format!(
                "expected {}, and the policy {}",
                self.expect.word(),
                found.verb()
            ));
        }
        let rules: Vec<&str> = answer.rules().iter().map(|rule| rule.id.as_str()).collect();
        if let Some(expected) = &self.rules
            && !same(expected, &rules)
        {
            wrong.push(format!("expected the rules {}, found {}", list(expected), list(&rules)));
        }
        if let Answer::Ask(ask) = &answer {
            if let Some(expected) = &self.approvers
                && !same(expected, &ask.groups)
            {
                wrong.push(format!(
                    "expected the approvers {}, found {}",
                    list(expected),
                    list(&ask.groups)
                ));
            }
            if let Some(expected) = self.quorum
                && expected != ask.quorum
            {
                wrong.push(format!("expected a quorum of {expected}, found {}", ask.quorum));
            }
        } else if self.approvers.is_some() || self.quorum.is_some() {
            wrong.push("expected approvers, and nobody is asked".to_owned());
        }
        match wrong.is_empty() {
            true => Ok(()),
            false if rules.is_empty() || self.rules.is_some() => Err(wrong.join("; ")),
            false => Err(format!("{} (rules: {})", wrong.join("; "), list(&rules))),
        }
    }
}

impl Expect {
    const fn word(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Ask => "ask",
            Self::Deny => "deny",
        }
    }

    const fn verb(self) -> &'static str {
        match self {
            Self::Allow => "allows it",
            Self::Ask => "asks",
            Self::Deny => "denies it",
        }
    }
}

fn same(one: &[impl AsRef<str>], two: &[impl AsRef<str>]) -> bool {
    sorted(one) == sorted(two)
}

fn sorted(names: &[impl AsRef<str>]) -> Vec<&str> {
    let mut names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    names.sort_unstable();
    names
}

fn list(names: &[impl AsRef<str>]) -> String {
    match names {
        [] => "(none)".to_owned(),
        names => names.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: &str = r#"
@id("look")
permit (principal == Workload::"coder", action == Action::"exec", resource == Executable::"/usr/bin/ls");
@id("push")
@approvers("code-push")
@quorum("2")
permit (principal == Workload::"coder", action == Action::"exec", resource == Executable::"/usr/bin/git")
when { context.approved };
"#;

    fn run(test: &str) -> Result<(), String> {
        let policy = crate::parse(POLICY, "p").unwrap();
        let suite = Suite::parse(&format!("[[test]]\nname = \"t\"\nlabel = \"coder\"\n{test}")).unwrap();
        suite.tests[0].run(&policy)
    }

    #[test]
    fn a_test_passes_when_everything_that_it_names_is_so() {
        run("expect = \"allow\"\nrules = [\"look\"]\nexec = { path = \"/usr/bin/ls\" }").unwrap();
        run("expect = \"ask\"\napprovers = [\"code-push\"]\nquorum = 2\nexec = { path = \"/usr/bin/git\" }").unwrap();
        run("expect = \"deny\"\nexec = { path = \"/usr/bin/rm\" }").unwrap();
        run("expect = \"ask\"\nwrite = { operation = \"create\", path = \"/etc/x\" }").unwrap();
        run("expect = \"ask\"\nconnect = { address = \"203.0.113.7\", port = 443 }").unwrap();
    }

    #[test]
    fn what_differs_is_named() {
        for (test, said) in [
            (
                "expect = \"deny\"\nexec = { path = \"/usr/bin/ls\" }",
                "expected deny, and the policy allows it (rules: look)",
            ),
            (
                "expect = \"ask\"\nquorum = 1\nexec = { path = \"/usr/bin/git\" }",
                "expected a quorum of 1, found 2 (rules: push)",
            ),
            (
                "expect = \"ask\"\napprovers = []\nexec = { path = \"/usr/bin/git\" }",
                "expected the approvers (none), found code-push (rules: push)",
            ),
            (
                "expect = \"allow\"\napprovers = [\"x\"]\nexec = { path = \"/usr/bin/ls\" }",
                "expected approvers, and nobody is asked (rules: look)",
            ),
            (
                "expect = \"ask\"",
                "it has to have exactly one of exec, connect, listen and write",
            ),
        ] {
            assert_eq!(run(test).unwrap_err(), said, "{test}");
        }
    }

    #[test]
    fn what_is_not_known_is_no_test() {
        for text in [
            "",
            "[[test]]\nname = \"a\"",
            "[[test]]\nname = \"a\"\nexpect = \"maybe\"\nlabel = \"x\"",
            "[[tests]]",
        ] {
            assert!(Suite::parse(text).is_err(), "{text}");
        }
        let unknown = "[[test]]\nname = \"a\"\nexpect = \"ask\"\nlabel = \"x\"\nexce = { path = \"/x\" }";
        assert!(Suite::parse(unknown).unwrap_err().contains("exce"));
    }
}
