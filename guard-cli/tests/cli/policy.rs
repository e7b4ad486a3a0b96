//! `guard policy`: files are checked and tested without an agent; what is in force is the agent's.

use guard_proto::control::{ControlReply, ControlRequest};

use crate::run::with_agent;
use crate::{Done, agent, guard, run};

const POLICY: &str = r#"
@id("look")
@description("looking around")
permit (principal == Workload::"coder", action == Action::"exec", resource == Executable::"/usr/bin/ls");

@id("push")
@description("pushes need review")
@approvers("code-push")
@quorum("2")
@timeout("15m")
permit (principal == Workload::"coder", action == Action::"exec", resource == Executable::"/usr/bin/git")
when { context.approved && context.argv.contains("push") };
"#;

struct Files {
    home: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let files = Self {
            home: tempfile::tempdir().unwrap(),
        };
        files.write("policy.cedar", POLICY);
        files
    }

    fn path(&self, name: &str) -> String {
        self.home.path().join(name).to_str().unwrap().to_owned()
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::write(self.home.path().join(name), text).unwrap();
    }

    /// `guard policy` without an agent; words that end with `.cedar` or `.toml` are files of this folder.
    fn policy(&self, words: &[&str]) -> Done {
        let mut argv = vec!["policy".to_owned()];
        argv.extend(
            words
                .iter()
                .map(|word| match word.ends_with(".cedar") || word.ends_with(".toml") {
                    true => self.path(word),
                    false => (*word).to_owned(),
                }),
        );
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        run(&mut guard(self.home.path(), &argv))
    }
}

#[test]
fn a_file_is_checked_without_an_agent() {
    let files = Files::new();
    files
        .policy(&["validate", "policy.cedar"])
        .expect(0, &["is valid", "2 rules"]);
    files.write("bad.cedar", "permit (principal, action, resorce);");
    files.policy(&["validate", "bad.cedar"]).expect(1, &["bad.cedar:1:"]);
    files.policy(&["validate", "absent.cedar"]).expect(2, &["absent.cedar"]);
    let done = files.policy(&["validate", "policy.cedar", "-o", "json"]).expect(0, &[]);
    assert_eq!(done.json()["rules"], 2);
}

#[test]
fn tests_pass_fail_or_are_not_understood() {
    let files = Files::new();
    let push = "[[test]]\nname = \"pushes\"\nexpect = \"ask\"\napprovers = [\"code-push\"]\nlabel = \"coder\"\n\
                exec = { path = \"/usr/bin/git\", argv = [\"git\", \"push\"] }\n";
    files.write("good.toml", push);
    files
        .policy(&["test", "policy.cedar", "good.toml"])
        .expect(0, &["ok      pushes", "1 passed, 0 failed"]);
    files.write(
        "wrong.toml",
        "[[test]]\nname = \"status\"\nexpect = \"allow\"\nlabel = \"coder\"\nexec = { path = \"/usr/bin/git\" }\n",
    );
    let done = files.policy(&["test", "policy.cedar", "good.toml", "wrong.toml"]);
    done.expect(
        1,
        &[
            "FAILED  status: expected allow, and the policy denies it",
            "1 passed, 1 failed",
        ],
    );
    let done = files
        .policy(&["test", "policy.cedar", "wrong.toml", "-o", "json"])
        .expect(1, &[]);
    assert_eq!(
        (&done.json()["failed"], &done.json()["items"][0]["passed"]),
        (&1.into(), &false.into())
    );
    files.write("empty.toml", "");
    files
        .policy(&["test", "policy.cedar", "empty.toml"])
        .expect(2, &["empty.toml", "no [[test]]"]);
    files.policy(&["test", "policy.cedar"]).expect(2, &[]);
}

#[test]
fn an_action_is_explained() {
    let files = Files::new();
    let explain =
        |words: &[&str]| files.policy(&[&["explain", "--policy", "policy.cedar", "--label", "coder"], words].concat());
    explain(&["exec", "/usr/bin/ls", "-l"]).expect(0, &["allowed", "look", "looking around", "(line 2)"]);
    explain(&["exec", "/usr/bin/git", "push", "--force"]).expect(
        0,
        &[
            "approvers of \"code-push\"",
            "2 different people",
            "within 15m",
            "pushes need review",
        ],
    );
    explain(&["exec", "/usr/bin/git", "status"]).expect(1, &["denied: no rule permits it"]);
    explain(&["connect", "203.0.113.7:443"]).expect(0, &["any approver", "builtin:ask-every-connection"]);
    explain(&["write", "rename", "/etc/a", "/etc/b"]).expect(0, &["builtin:ask-every-write"]);
    explain(&["write", "delete", "/etc/a"]).expect(2, &["`delete`", "unlink"]);
    explain(&["exec", "git"]).expect(2, &["absolute"]);
    let done = explain(&["-o", "json", "exec", "/usr/bin/git", "push"]).expect(0, &[]);
    assert_eq!(
        (&done.json()["answer"], &done.json()["quorum"]),
        (&"ask".into(), &2.into())
    );
}

#[test]
fn what_differs_is_shown() {
    let files = Files::new();
    files.write(
        "new.cedar",
        &POLICY
            .replace("\"2\"", "\"3\"")
            .replace("@id(\"look\")", "@id(\"see\")"),
    );
    files
        .policy(&["diff", "policy.cedar", "policy.cedar"])
        .expect(0, &["the same rules"]);
    files.policy(&["diff", "policy.cedar", "new.cedar"]).expect(
        1,
        &[
            "+ permit see",
            "- permit look",
            "~ permit push",
            "- @quorum(\"2\")",
            "+ @quorum(\"3\")",
        ],
    );
    let done = files
        .policy(&["diff", "policy.cedar", "new.cedar", "-o", "json"])
        .expect(1, &[]);
    assert_eq!(done.json()["changes"].as_array().unwrap().len(), 3);
}

#[test]
fn what_is_in_force_is_the_agents() {
    let files = Files::new();
    let (socket, seen) = agent::start(files.home.path(), |request| match request {
        ControlRequest::PolicyText {} => vec![ControlReply::Policy {
            text: POLICY.to_owned(),
        }],
        ControlRequest::PolicyApply { .. } => vec![ControlReply::Done],
        _ => vec![ControlReply::Refused {
            error: "unexpected".to_owned(),
        }],
    });
    let home = files.home.path();
    let file = files.path("policy.cedar");
    with_agent(home, &socket, &["policy", "diff", &file]).expect(0, &["the same rules"]);
    with_agent(
        home,
        &socket,
        &["policy", "explain", "--label", "coder", "exec", "/usr/bin/ls"],
    )
    .expect(0, &["allowed"]);
    with_agent(home, &socket, &["policy", "apply", &file]).expect(0, &["in force on this host: 2 rules"]);
    assert!(
        seen.iter()
            .take(3)
            .any(|request| matches!(request, ControlRequest::PolicyApply { text } if text == POLICY))
    );
    // What is not valid is not even sent.
    files.write("bad.cedar", "bad");
    with_agent(home, &socket, &["policy", "apply", &files.path("bad.cedar")]).expect(1, &["bad.cedar:1:"]);
    files
        .policy(&["apply", "policy.cedar"])
        .expect(3, &["it is not running"]);
}
