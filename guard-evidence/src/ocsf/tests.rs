//! One of everything that a record can say, as events: what they say, and whether the schema allows it.

use std::process::Command;

use serde_json::json;

use super::*;
use crate::change::{Change, ChangeRecord, ChangedBy, LabelFacts, ProviderFacts, UserFacts};
use crate::grant::{Grant, GrantUse, Scope};
use crate::key::SigningKey;
use crate::record::*;
use crate::testing::{self, CONSOLE, HOST};
use crate::text::Text;

/// A record, with what it follows on.
struct Case {
    statement: Statement,
    request: Option<RequestRecord>,
    decision: Option<DecisionRecord>,
}

fn alone(predicate: Predicate) -> Case {
    Case {
        statement: Statement::new(predicate),
        request: None,
        decision: None,
    }
}

fn seen(case: &Case, index: u64, doubts: &[String]) -> Vec<Value> {
    let digest = sha256_of(index);
    let place = Place {
        log: CONSOLE,
        index,
        digest: &digest,
        host: Some("build-7"),
        doubts,
    };
    let related = Related {
        request: case.request.as_ref(),
        decision: case.decision.as_ref(),
    };
    events(&place, &case.statement, related)
}

fn sha256_of(index: u64) -> String {
    crate::statement::sha256_hex(&index.to_be_bytes())
}

fn person(issuer: &str, subject: &str) -> PersonId {
    PersonId {
        issuer: issuer.to_owned(),
        subject: subject.to_owned(),
    }
}

fn answer(name: &str, issuer: &str, verdict: Verdict) -> Answer {
    Answer {
        who: person(issuer, name),
        name: name.to_owned(),
        groups: vec![],
        roles: vec!["approver".to_owned()],
        verdict,
        reason: "release\u{202E} night".to_owned(),
        at: testing::at(2),
        channel: "web".to_owned(),
        signed_in_at: testing::at(0),
        shown_digest: "ab".repeat(32),
        authentication: (issuer != "local").then(|| Authentication {
            at: None,
            class: Some("phr".to_owned()),
            methods: vec!["hwk".to_owned()],
        }),
    }
}

fn grant() -> Grant {
    Grant {
        id: "01JDGRANT".to_owned(),
        console: CONSOLE.to_owned(),
        host_id: HOST.to_owned(),
        host: "build-7".to_owned(),
        label: "coder".to_owned(),
        scope: Scope::of(&testing::request(1, "coder", &["git", "push"])).unwrap(),
        what: "git push".to_owned(),
        request_id: "01JD".to_owned(),
        request_digest: "ab".repeat(32),
        granted_at: testing::at(0),
        expires_at: testing::at(50),
        times: Some(3),
    }
}

fn people(answers: Vec<Answer>, verdict: Verdict, by_grant: bool) -> DecidedBy {
    let signed = SignedDecision {
        console: CONSOLE.to_owned(),
        host_id: HOST.to_owned(),
        request_id: "01JD".to_owned(),
        request_digest: "ab".repeat(32),
        nonce: "ef".repeat(32),
        verdict,
        answers,
        quorum: 1,
        owner: None,
        changes: None,
        grant: by_grant.then(|| {
            Box::new(GrantUse {
                grant: grant(),
                number: 1,
                used_at: testing::at(2),
            })
        }),
        issued_at: testing::at(2),
        expires_at: testing::at(7),
    };
    let payload = Statement::new(Predicate::SignedDecision(Box::new(signed)))
        .to_payload()
        .unwrap();
    DecidedBy::People {
        envelope: STANDARD.encode(dsse::sign(&payload, &SigningKey::from_seed(&[2; 32])).unwrap()),
    }
}

fn decision(verdict: Verdict, by: DecidedBy) -> DecisionRecord {
    DecisionRecord {
        header: testing::header(2),
        request_id: "01JD".to_owned(),
        request_digest: "ab".repeat(32),
        verdict,
        by,
        received_at: testing::at(2),
    }
}

fn enforcement(verdict: Verdict, effect: Effect, by_policy: Option<PolicyAction>) -> EnforcementRecord {
    EnforcementRecord {
        header: testing::header(3),
        label: "coder".to_owned(),
        request_id: by_policy.is_none().then(|| "01JD".to_owned()),
        request_digest: None,
        decision_digest: None,
        by_policy: by_policy.map(|action| PolicyDecided {
            workload: testing::workload("coder"),
            action,
            rules: rules(),
            policy_digest: "cd".repeat(32),
        }),
        verdict,
        effect,
        resume_ns: 1,
    }
}

fn rules() -> Vec<MatchedRule> {
    vec![MatchedRule {
        id: "tools".to_owned(),
        description: "what builds need".to_owned(),
    }]
}

fn ended(request: &RequestRecord, decision: &DecisionRecord, verdict: Verdict, effect: Effect) -> Case {
    Case {
        statement: Statement::new(Predicate::Enforcement(Box::new(enforcement(verdict, effect, None)))),
        request: Some(request.clone()),
        decision: Some(decision.clone()),
    }
}

fn exec_key() -> PolicyAction {
    PolicyAction::ExecKey {
        path: Some(Text::from(&b"/bin/\xFFls"[..])),
        device: 1,
        inode: 2,
        generation: 3,
    }
}

fn peers() -> Vec<Action> {
    let connect = |peer, protocol: &str, how| {
        Action::Connect(Box::new(ConnectAction {
            peer,
            protocol: protocol.to_owned(),
            how,
        }))
    };
    let ip = |address: &str, scope| Peer::Ip {
        address: address.parse().unwrap(),
        port: 443,
        scope,
    };
    vec![
        connect(ip("203.0.113.7", None), "tcp", ConnectHow::Connect),
        connect(ip("fe80::1", Some(2)), "udp", ConnectHow::Message),
        connect(ip("0.0.0.0", None), "tcp", ConnectHow::Listen),
        connect(ip("::1", None), "132", ConnectHow::ConnectedBefore),
        connect(
            Peer::Unix {
                path: Some(Text::from("/run/docker.sock")),
            },
            "stream",
            ConnectHow::Connect,
        ),
        connect(Peer::Unix { path: None }, "stream", ConnectHow::Connect),
        connect(
            Peer::Abstract {
                name: Text::from(&b"a\xFE"[..]),
            },
            "datagram",
            ConnectHow::Message,
        ),
        connect(Peer::Nameless, "seqpacket", ConnectHow::ConnectedBefore),
    ]
}

fn file_changes() -> Vec<Action> {
    use FileOperation as F;
    let all = [
        F::Open,
        F::Create,
        F::Unlink,
        F::Rename,
        F::Link,
        F::Symlink,
        F::Mkdir,
        F::Rmdir,
        F::Mknod,
        F::Truncate,
        F::Chmod,
        F::Chown,
        F::Xattr,
        F::Tmpfile,
        F::Write,
    ];
    all.into_iter()
        .map(|operation| {
            Action::File(Box::new(FileAction {
                operation,
                path: (operation != F::Xattr).then(|| Text::from("/srv/\u{1b}[2J")),
                new_path: matches!(operation, F::Rename | F::Link).then(|| Text::from("/etc/hosts")),
                target: (operation == F::Symlink).then(|| Text::from("..")),
                flags: vec![FileFlag::Replaces],
                directory: operation == F::Mkdir,
                mode: (operation == F::Mknod).then_some(0o010_644),
                old_size: (operation == F::Truncate).then_some(u64::from(u32::MAX) * 8),
                inode: 12,
                ..FileAction::default()
            }))
        })
        .collect()
}

fn lifecycles() -> Vec<Lifecycle> {
    let label = || "coder".to_owned();
    let uses = |action| RuleUses {
        rule: ExactRule {
            action,
            rules: rules(),
            policy_digest: "cd".repeat(32),
        },
        count: 7,
        counter: "5f-7".to_owned(),
        through: 9,
    };
    let mut policy_actions = vec![exec_key()];
    policy_actions.extend(peers().into_iter().chain(file_changes()).map(as_policy));
    let enforcing = |stopping| Lifecycle::Enforcing {
        since: testing::at(0),
        stopping,
        counters: KernelCounters::default(),
    };
    vec![
        Lifecycle::Begun {
            why: "enrolled".to_owned(),
            key: "k".to_owned(),
            after: None,
        },
        Lifecycle::NextKey {
            key: SigningKey::from_seed(&[3; 32]).public(),
        },
        Lifecycle::ConsoleKey {
            key: SigningKey::from_seed(&[4; 32]).public(),
        },
        testing::enforcement_on(),
        Lifecycle::EnforcementOff {
            why: "asked to".to_owned(),
            last_on: None,
        },
        Lifecycle::PolicyLoaded {
            digest: "cd".repeat(32),
            policies: 3,
        },
        Lifecycle::LabelAdded {
            label: label(),
            cgroup: Text::from("/guard.slice/\u{202E}"),
            source: "run".to_owned(),
        },
        Lifecycle::LabelRemoved {
            label: label(),
            cgroup: Text::from("/guard.slice"),
        },
        Lifecycle::EventsLost { count: 3 },
        Lifecycle::Recovered { cut_bytes: 9 },
        Lifecycle::DecisionRefused {
            request_id: "01JD".to_owned(),
            because: "expired".to_owned(),
        },
        Lifecycle::LogRefused {
            because: "fork".to_owned(),
            known: String::new(),
            offered: String::new(),
        },
        Lifecycle::TheftRefused {
            label: label(),
            object: "sign-in".to_owned(),
            count: 2,
            pid: 7,
            uid: 1000,
            comm: Text::from(&b"ca\xFFt"[..]),
        },
        Lifecycle::Unprotected {
            path: Text::from("/home/x"),
            because: "EIO".to_owned(),
        },
        Lifecycle::AgentAway {
            from: testing::at(1),
            to: testing::at(9),
        },
        Lifecycle::AllowedByRules {
            label: label(),
            from: testing::at(1),
            to: testing::at(2),
            rules: policy_actions.into_iter().map(uses).collect(),
        },
        enforcing(false),
        enforcing(true),
    ]
}

fn as_policy(action: Action) -> PolicyAction {
    match action {
        Action::Exec(exec) => PolicyAction::Exec(exec),
        Action::Connect(connect) => PolicyAction::Connect(connect),
        Action::File(file) => PolicyAction::File(file),
    }
}

fn changes() -> Vec<(ChangedBy, Change)> {
    let user = |service| UserFacts {
        who: person("https://id.example.org", "bob"),
        name: "okta:bob".to_owned(),
        roles: vec!["approver".to_owned()],
        groups: vec!["secops".to_owned()],
        service,
    };
    let admin = || ChangedBy::Person {
        who: person("local", "admin"),
        name: "admin".to_owned(),
        roles: vec!["administrator".to_owned()],
        channel: "web".to_owned(),
        signed_in_at: testing::at(0),
    };
    let facts = || LabelFacts {
        owner: Some(person("local", "ann")),
        owner_name: None,
        description: String::new(),
    };
    let provider = || ProviderFacts {
        issuer: "https://id.example.org".to_owned(),
        client_id: "c".to_owned(),
        groups_claim: "groups".to_owned(),
        roles: std::collections::BTreeMap::new(),
        approver_groups: std::collections::BTreeMap::new(),
    };
    let okta = || "okta".to_owned();
    let label = |before, after| Change::Label {
        label: "coder".to_owned(),
        before,
        after,
    };
    let host = || (HOST.to_owned(), "build-7".to_owned());
    vec![
        (ChangedBy::SetupLink, Change::SetUpFinished { user: user(false) }),
        (ChangedBy::Found, Change::UserCreated { user: user(false) }),
        (
            ChangedBy::Provider {
                provider: okta(),
                issuer: provider().issuer,
            },
            Change::UserChanged {
                before: user(false),
                after: user(false),
            },
        ),
        (admin(), Change::UserDisabled { user: user(false) }),
        (
            admin(),
            Change::KeyCreated {
                user: user(true),
                key: "k1".to_owned(),
                roles: vec!["auditor".to_owned()],
                expires_at: testing::at(9),
            },
        ),
        (
            admin(),
            Change::KeyRevoked {
                user: user(true),
                key: "k1".to_owned(),
            },
        ),
        (
            admin(),
            Change::SessionsEnded {
                user: user(false),
                count: 2,
            },
        ),
        (
            admin(),
            Change::GrantMade {
                grant: Box::new(grant()),
            },
        ),
        (
            admin(),
            Change::GrantRevoked {
                grant: Box::new(grant()),
            },
        ),
        (
            ChangedBy::Configuration,
            Change::Provider {
                provider: okta(),
                before: None,
                after: Some(provider()),
            },
        ),
        (
            ChangedBy::Configuration,
            Change::Provider {
                provider: okta(),
                before: Some(provider()),
                after: None,
            },
        ),
        (admin(), label(None, Some(facts()))),
        (admin(), label(Some(facts()), Some(facts()))),
        (admin(), label(Some(facts()), None)),
        (
            admin(),
            Change::TokenCreated {
                token: "0123456789abcdef".to_owned(),
                description: "build hosts".to_owned(),
                expires_at: testing::at(9),
            },
        ),
        (
            ChangedBy::Token {
                token: "0123456789abcdef".to_owned(),
                made_by: person("local", "admin"),
                name: None,
            },
            Change::HostJoined {
                host_id: host().0,
                name: host().1,
                evidence_key: "k".to_owned(),
            },
        ),
        (
            admin(),
            Change::HostRevoked {
                host_id: host().0,
                name: host().1,
            },
        ),
    ]
}

/// Every kind of record, answer, effect and action.
fn all() -> Vec<Case> {
    let mut request = testing::request(1, "coder", &["git", "push", "--force", "x\u{202E}"]);
    request.request_id = "01JD".to_owned();
    request.why.risks = vec!["runs as root".to_owned()];
    request.workload.login_uid = Some(1000);
    request.workload.container_id = Some("c0ffee".to_owned());
    let parent = request.workload.ancestry[0].clone();
    request.workload.ancestry.push(parent);
    let approved = decision(
        Verdict::Allow,
        people(
            vec![
                answer("alice", "local", Verdict::Allow),
                answer("bob", "https://id.example.org", Verdict::Allow),
            ],
            Verdict::Allow,
            false,
        ),
    );
    let granted = decision(
        Verdict::Allow,
        people(vec![answer("alice", "local", Verdict::Allow)], Verdict::Allow, true),
    );
    let denied = decision(
        Verdict::Deny,
        people(vec![answer("alice", "local", Verdict::Deny)], Verdict::Deny, false),
    );
    let timeout = decision(Verdict::Deny, DecidedBy::Timeout);
    let because = "local forbid".to_owned();
    let refused = decision(Verdict::Deny, DecidedBy::Host { because });
    let unreadable = decision(
        Verdict::Allow,
        DecidedBy::People {
            envelope: "!".to_owned(),
        },
    );

    let mut cases = vec![alone(Predicate::Request(Box::new(request.clone())))];
    for decision in [&approved, &granted, &denied, &timeout, &refused, &unreadable] {
        cases.push(Case {
            statement: Statement::new(Predicate::Decision(Box::new(decision.clone()))),
            request: Some(request.clone()),
            decision: None,
        });
        cases.push(alone(Predicate::Decision(Box::new(decision.clone()))));
    }
    let killed = || Effect::Killed {
        what: "argv".to_owned(),
        approved: "a".to_owned(),
        found: "b\u{1b}".to_owned(),
    };
    cases.extend([
        ended(&request, &approved, Verdict::Allow, Effect::Ran),
        ended(&request, &granted, Verdict::Allow, Effect::Failed { errno: 2 }),
        ended(&request, &approved, Verdict::Allow, killed()),
        ended(&request, &approved, Verdict::Allow, Effect::Died),
        ended(&request, &denied, Verdict::Deny, Effect::Denied),
        ended(&request, &timeout, Verdict::Deny, Effect::Denied),
        ended(
            &request,
            &refused,
            Verdict::Deny,
            Effect::Withdrawn { why: "died".to_owned() },
        ),
        alone(Predicate::Enforcement(Box::new(enforcement(
            Verdict::Allow,
            Effect::Ran,
            None,
        )))),
    ]);
    let mut shown = vec![request.action.clone()];
    shown.extend(peers());
    shown.extend(file_changes());
    for action in shown {
        let mut request = request.clone();
        request.action = action.clone();
        cases.push(alone(Predicate::Request(Box::new(request.clone()))));
        cases.push(ended(&request, &approved, Verdict::Allow, Effect::Ran));
        let by_policy = enforcement(Verdict::Deny, Effect::Denied, Some(as_policy(action)));
        cases.push(alone(Predicate::Enforcement(Box::new(by_policy))));
    }
    let by_policy = enforcement(Verdict::Allow, Effect::Ran, Some(exec_key()));
    cases.push(alone(Predicate::Enforcement(Box::new(by_policy))));
    for epoch in [1, 2] {
        for event in lifecycles() {
            let mut header = testing::header(4);
            header.epoch = epoch;
            cases.push(alone(Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }))));
        }
    }
    for (by, change) in changes() {
        let mut header = testing::header(5);
        header.signer = format!("console:{CONSOLE}");
        let why = Some("handed over\u{200B}".to_owned());
        cases.push(alone(Predicate::Change(Box::new(ChangeRecord {
            header,
            by,
            change,
            why,
        }))));
    }
    cases
}

fn all_events() -> Vec<Value> {
    (0..)
        .zip(all())
        .flat_map(|(index, case)| {
            let events = seen(&case, index, &[]);
            assert!(!events.is_empty(), "{:?}", case.statement);
            events
        })
        .collect()
}

#[test]
fn every_event_names_its_record_and_hides_nothing() {
    for event in all_events() {
        let guard = &event["unmapped"]["guard"];
        assert_eq!(guard["envelope_sha256"], event["raw_data_hash"]["value"]);
        assert_eq!(guard["index"], event["metadata"]["sequence"]);
        assert!(guard["signer"].is_string() && guard["at"].is_string(), "{event}");
        assert_eq!(
            guard.get("request_id"),
            event["metadata"].get("correlation_uid"),
            "{event}"
        );
        let text = event.to_string();
        let hidden = |c: char| c.is_control() || matches!(c, '\u{202E}' | '\u{200B}');
        assert!(!text.contains(hidden) && !text.contains("\\u"), "{text}");
    }
}

#[test]
fn who_decided_and_what_became_of_it() {
    let request = testing::request(1, "coder", &["git", "push"]);
    let alice = |verdict| vec![answer("alice", "local", verdict)];
    let by_people = |verdict| decision(verdict, people(alice(verdict), verdict, false));
    let timeout = decision(Verdict::Deny, DecidedBy::Timeout);
    let one = |case: &Case| seen(case, 7, &[]).remove(0);
    let outcome = |event: &Value| (event["action_id"].clone(), event["disposition_id"].clone());

    let event = one(&ended(
        &request,
        &by_people(Verdict::Allow),
        Verdict::Allow,
        Effect::Ran,
    ));
    assert_eq!(event["type_uid"], 100_701);
    assert_eq!(outcome(&event), (json!(1), json!(8)));
    assert_eq!(event["process"]["cmd_line"], "git push");
    assert_eq!(event["process"]["file"]["hashes"][0]["value"], "ab".repeat(32));
    assert_eq!(event["unmapped"]["guard"]["decided_by"][0]["name"], "alice");
    assert_eq!(event["unmapped"]["guard"]["label"], "coder");
    assert_eq!(event["device"]["name"], "build-7");
    assert_eq!(event["metadata"]["correlation_uid"], request.request_id);

    let event = one(&ended(
        &request,
        &by_people(Verdict::Deny),
        Verdict::Deny,
        Effect::Denied,
    ));
    assert_eq!(outcome(&event), (json!(2), json!(25)));
    let event = one(&ended(&request, &timeout, Verdict::Deny, Effect::Denied));
    assert_eq!(outcome(&event), (json!(2), json!(2)));
    assert_eq!(event["unmapped"]["guard"]["decided_by"], json!([{"kind": "timeout"}]));
    let policy = |verdict, effect| {
        let record = enforcement(verdict, effect, Some(exec_key()));
        one(&alone(Predicate::Enforcement(Box::new(record))))
    };
    let event = policy(Verdict::Allow, Effect::Ran);
    assert_eq!(outcome(&event), (json!(1), json!(1)));
    assert_eq!(event["process"]["name"], "⟨0xFF⟩ls");
    assert_eq!(outcome(&policy(Verdict::Deny, Effect::Denied)), (json!(2), json!(2)));
}

#[test]
fn an_answer_names_the_person_and_the_sign_in() {
    let answers = vec![
        answer("alice", "local", Verdict::Allow),
        answer("bob", "https://id.example.org", Verdict::Allow),
    ];
    let record = decision(Verdict::Allow, people(answers, Verdict::Allow, false));
    let case = alone(Predicate::Decision(Box::new(record)));
    let events = seen(&case, 3, &["was received after it had expired".to_owned()]);
    let kinds: Vec<_> = events.iter().map(|event| event["type_uid"].as_u64().unwrap()).collect();
    assert_eq!(kinds, [600_303, 300_201, 600_303, 300_201]);
    assert_eq!(events[2]["actor"]["user"]["name"], "bob");
    assert_eq!(events[3]["auth_protocol_id"], 4);
    assert_eq!(events[0]["metadata"]["uid"], sha256_of(3));
    assert_eq!(events[2]["metadata"]["uid"], format!("{}/3", sha256_of(3)));
    // What the verifier found stands with it; the sign-in is the same one in whatever record it is told.
    assert_eq!(
        events[0]["unmapped"]["guard"]["doubts"][0],
        "was received after it had expired"
    );
    assert_eq!(events[1]["metadata"]["uid"], seen(&case, 4, &[])[1]["metadata"]["uid"]);
    assert_ne!(events[1]["metadata"]["uid"], events[3]["metadata"]["uid"]);
}

/// `GUARD_PYTHON` has `ocsf-json-schema` and `jsonschema`: tests/ocsf.py holds every event against the schema that it names.
#[test]
fn the_packaged_schema_accepts_every_event() {
    const CHECK: &str = include_str!("../../tests/ocsf.py");
    let python = std::env::var("GUARD_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = Command::new(&python)
        .args(["-c", "import jsonschema, ocsf_json_schema"])
        .output();
    if !import.is_ok_and(|out| out.status.success()) {
        println!("skipped: {python} has no ocsf-json-schema and jsonschema (set GUARD_PYTHON)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ocsf.ndjson");
    let judge = |events: &[Value]| {
        let lines: Vec<String> = events.iter().map(|event| format!("{event}\n")).collect();
        std::fs::write(&file, lines.concat()).unwrap();
        let out = Command::new(&python).args(["-c", CHECK]).arg(&file).output().unwrap();
        let words = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.success(), words)
    };
    let events = all_events();
    let (good, words) = judge(&events);
    assert!(good, "{words}");
    let said: Value = serde_json::from_str(words.lines().last().unwrap()).unwrap();
    assert_eq!(said["events"], events.len());
    for kind in [
        100_101, 100_103, 100_104, 100_105, 100_106, 100_114, 100_701, 200_401, 300_201, 300_202, 300_401, 300_403,
        300_404, 300_406, 300_407, 300_409, 300_410, 300_411, 400_101, 400_107, 600_201, 600_204, 600_206, 600_301,
        600_303,
    ] {
        assert!(said["kinds"][kind.to_string()].as_u64() > Some(0), "no {kind}: {words}");
    }
    // It would have seen what is wrong.
    type Break = fn(&mut Value);
    let breaks: [(Break, &str); 5] = [
        (|event| event["severity_id"] = json!(77), "severity_id"),
        (|event| event["strange"] = json!(1), "strange"),
        (|event| event["process"]["lineage"] = json!([]), "deprecated"),
        (|event| _ = event.as_object_mut().unwrap().remove("device"), "device"),
        (|event| event["activity_id"] = json!(2), "type_uid"),
    ];
    let launch = events.iter().find(|event| event["type_uid"] == 100_701).unwrap();
    for (wrong, word) in breaks {
        let mut event = launch.clone();
        wrong(&mut event);
        let (good, words) = judge(&[event]);
        assert!(!good && words.contains(word), "{word}: {words}");
    }
}
