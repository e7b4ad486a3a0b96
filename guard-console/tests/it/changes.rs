//! Changes of who may decide: records that approvers see and auditors can check.

use futures::StreamExt as _;
use guard_evidence::bundle::{Bundle, unpack};
use guard_evidence::record::{DecidedBy, DecisionRecord, Effect, EnforcementRecord, Predicate, Verdict};
use guard_evidence::trust::Trust;
use guard_evidence::verify::{Asked, Report, Status, TrustSource, verify};
use guard_proto::v1::{RecordBatch, RecordFrame};
use serde_json::{Value, json};

use crate::support::{Console, Host, PASSWORD, Person, Question};

async fn listed(person: &Person, query: &str) -> Vec<Value> {
    let (status, page) = person.get(&format!("/api/v1/changes{query}")).await;
    assert_eq!(status, 200, "{page}");
    page["items"].as_array().unwrap().clone()
}

fn whats(changes: &[Value]) -> Vec<&str> {
    changes.iter().map(|c| c["what"].as_str().unwrap()).collect()
}

async fn owner(admin: &Person, label: &str, owner: Option<&str>) {
    let body = json!({"owner": owner});
    let (status, answer) = admin.put(&format!("/api/v1/labels/{label}"), &body).await;
    assert_eq!(status, 200, "{answer}");
}

/// Ships the next records of a host.
async fn ship(console: &Console, host: &Host, sealed: &[&guard_evidence::chain::Sealed]) {
    let batch = RecordBatch {
        epoch: 1,
        records: sealed
            .iter()
            .map(|s| RecordFrame {
                sequence: s.header.sequence,
                envelope: s.envelope.clone(),
            })
            .collect(),
    };
    let mut client = host.evidence(console).await;
    let mut stored = client.append(tokio_stream::iter([batch])).await.unwrap().into_inner();
    while stored.message().await.unwrap().is_some() {}
}

/// An export, and what the verifier says of it.
async fn verified(console: &Console, person: &Person, query: &str, asked: Asked) -> Report {
    let bytes = |path: String| async move {
        let response = person.request("GET", &path).send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.bytes().await.unwrap()
    };
    let trust = Trust::parse(&bytes("/api/v1/trust".to_owned()).await).unwrap();
    let tar = bytes(format!("/api/v1/evidence/bundle{query}")).await;
    let dir = tempfile::tempdir_in(console.dir.path()).unwrap();
    let dir = dir.path().join("bundle");
    unpack(&tar[..], &dir).unwrap();
    verify(&Bundle::open(&dir).unwrap(), &trust, TrustSource::Given, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_a_record_and_none_has_a_secret() {
    let console = Console::start().await;
    let secret = console.setup_secret();
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    console.user(&admin, "bob", &["operator"], &[]).await;
    owner(&admin, "coder", Some("bob")).await;
    // The same again is no change.
    owner(&admin, "coder", Some("bob")).await;
    let body = json!({"owner": "ann", "description": "d", "reason": "ann runs it now\u{202e}"});
    assert_eq!(admin.put("/api/v1/labels/coder", &body).await.0, 200);
    owner(&admin, "coder", None).await;
    assert_eq!(admin.delete("/api/v1/labels/coder").await.0, 204);
    let (_, token) = admin.post("/api/v1/tokens", &json!({"description": "build-7"})).await;
    let token = token["token"].as_str().unwrap().to_owned();
    let host = console.enroll(&token, "build-7").await.unwrap();
    let revoke = format!("/api/v1/hosts/{}/revoke", host.id());
    for _ in 0..2 {
        assert_eq!(admin.send(admin.request("POST", &revoke)).await.0, 204);
    }
    let disable = admin.request("POST", "/api/v1/users/bob/disable");
    assert_eq!(admin.send(disable).await.0, 204);

    let changes = listed(&ann, "").await;
    let mut said = whats(&changes);
    said.reverse();
    let until = said.remove(7);
    assert!(
        until.starts_with("an enrolment token for “build-7” was made, good until "),
        "{until}"
    );
    assert_eq!(
        said,
        [
            "set-up was finished: admin is the first administrator",
            "the account ann was made (approver; group code)",
            "the account bob was made (operator)",
            "the label coder was made, owned by bob",
            "the owner of coder was changed from bob to ann",
            "coder, owned by ann, was left without an owner",
            "the label coder, without an owner, was deleted",
            "the host build-7 joined",
            "the host build-7 was revoked",
            "the account bob was disabled",
        ]
    );
    assert_eq!(changes[0]["by"], "admin");
    assert_eq!(changes[2]["by_words"], "with a token made by admin");
    assert_eq!(changes[6]["why"], "ann runs it now\u{202e}");
    // Who, by which way in, and both sides, in the signed statement.
    let predicate = &changes[6]["statement"]["predicate"];
    assert_eq!(predicate["by"]["who"], json!({"issuer": "local", "subject": "admin"}));
    assert_eq!(predicate["by"]["channel"], "api");
    assert_eq!(predicate["change"]["before"]["owner"]["subject"], "bob");
    assert_eq!(predicate["change"]["after"]["owner"]["subject"], "ann");

    // Filters and pages.
    assert_eq!(listed(&ann, "?label=coder").await.len(), 4);
    assert_eq!(listed(&ann, "?user=bob").await.len(), 2);
    assert_eq!(listed(&ann, &format!("?host={}", host.id())).await.len(), 2);
    let (_, page) = ann.get("/api/v1/changes?limit=9").await;
    let next = page["next"].as_str().unwrap();
    assert_eq!(listed(&ann, &format!("?limit=9&cursor={next}")).await.len(), 2);

    // Every byte of the log, without a secret.
    let report = verified(&console, &ann, "", Asked::WholeLog).await;
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    let part = token.rsplit('.').next().unwrap();
    let session = ann.token.as_deref().unwrap();
    for change in &changes {
        let path = format!("/api/v1/evidence/{}", change["digest"].as_str().unwrap());
        let (_, envelope) = ann.get(&path).await;
        let statement = change["statement"].to_string();
        let text = format!("{envelope}{statement}");
        for secret in [PASSWORD, "argon2", part, session, &secret] {
            assert!(!text.contains(secret), "{statement}");
        }
    }
    // What was written stays over a restart, and the chain goes on.
    let console = console.restart().await;
    let admin = console.sign_in("admin").await;
    owner(&admin, "data", Some("ann")).await;
    let report = verified(&console, &admin, "", Asked::WholeLog).await;
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    assert_eq!(listed(&admin, "").await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_leaves_no_record() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let before = listed(&admin, "").await.len();
    let body = json!({"username": "ann", "password": PASSWORD, "roles": ["auditor"]});
    assert_eq!(admin.post("/api/v1/users", &body).await.0, 409);
    assert_eq!(
        admin.put("/api/v1/labels/coder", &json!({"owner": "nobody"})).await.0,
        400
    );
    assert_eq!(admin.delete("/api/v1/labels/none").await.0, 404);
    assert_eq!(ann.put("/api/v1/labels/coder", &json!({"owner": null})).await.0, 403);
    assert_eq!(ann.post("/api/v1/tokens", &json!({})).await.0, 403);
    let last = admin.request("POST", "/api/v1/users/admin/disable");
    assert_eq!(admin.send(last).await.0, 409);
    assert!(console.enroll("guard1.x.y.z", "build-7").await.is_err());
    assert_eq!(listed(&admin, "").await.len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn approvers_see_what_changed_about_a_request() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    console.user(&admin, "bob", &["operator"], &[]).await;
    owner(&admin, "coder", Some("bob")).await;
    owner(&admin, "other", Some("bob")).await;
    let mut host = console.host(&admin, "build-7").await;
    let mut session = host.connect(&console).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    let path = format!("/api/v1/requests/{}", ask.request_id);
    let (_, request) = ann.get(&path).await;
    assert_eq!(
        whats(request["recent_changes"].as_array().unwrap()),
        [
            "the label coder was made, owned by bob",
            "the account bob was made (operator)",
            "the account ann was made (approver)",
        ]
    );
    // The request ends; what changes later is no news about it.
    assert_eq!(ann.answer(&ask.request_id, "approve", "").await.0, 200);
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    owner(&admin, "coder", Some("ann")).await;
    let (_, request) = ann.get(&path).await;
    assert_eq!(request["recent_changes"].as_array().unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_reaches_those_who_watch() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let response = ann.request("GET", "/api/v1/events").send().await.unwrap();
    let mut stream = response.bytes_stream();
    owner(&admin, "coder", Some("ann")).await;
    let mut text = String::new();
    let found = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !text.contains("event: change\n") || !text.ends_with("\n\n") {
            text.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
        }
    });
    found.await.unwrap();
    assert!(text.contains("the label coder was made, owned by ann"), "{text}");
}

/// Records as an agent makes them of a decision: received, and ran.
async fn carried_out(console: &Console, host: &mut Host, ask: &guard_proto::v1::Ask, digest: &str, envelope: &[u8]) {
    use base64::Engine as _;
    let decision = |header| {
        Predicate::Decision(Box::new(DecisionRecord {
            header,
            request_id: ask.request_id.clone(),
            request_digest: digest.to_owned(),
            verdict: Verdict::Allow,
            by: DecidedBy::People {
                envelope: base64::engine::general_purpose::STANDARD.encode(envelope),
            },
            received_at: guard_console::time::rfc3339(guard_console::time::now()),
        }))
    };
    let decided = host.seal(decision);
    let enforcement = |header| {
        Predicate::Enforcement(Box::new(EnforcementRecord {
            header,
            label: "coder".to_owned(),
            request_id: Some(ask.request_id.clone()),
            request_digest: Some(digest.to_owned()),
            decision_digest: Some(decided.payload_digest.clone()),
            by_policy: None,
            verdict: Verdict::Allow,
            effect: Effect::Ran,
            resume_ns: 1,
        }))
    };
    let ran = host.seal(enforcement);
    ship(console, host, &[&decided, &ran]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_verified_against_the_recorded_owner() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    let bob = console.user(&admin, "bob", &["approver"], &["code"]).await;
    owner(&admin, "coder", Some("bob")).await;
    let mut host = console.host(&admin, "build-7").await;
    let mut session = host.connect(&console).await;
    for _ in 0..2 {
        let (ask, sealed) = host.ask(&Question::new("coder", &["make"]).groups(&["code"]));
        session.ask(&ask).await;
        ship(&console, &host, &[&sealed]).await;
        assert_eq!(bob.answer(&ask.request_id, "approve", "").await.0, 403);
        assert_eq!(ann.answer(&ask.request_id, "approve", "").await.0, 200);
        let decision = session.decision().await;
        // The owner changes before the host's record arrives: the decision is judged by what the console knew.
        owner(&admin, "coder", Some("ann")).await;
        carried_out(&console, &mut host, &ask, &sealed.payload_digest, &decision.envelope).await;
        owner(&admin, "coder", Some("bob")).await;
    }
    for (query, asked) in [
        ("", Asked::WholeLog),
        ("?label=coder", Asked::Part),
        ("?host=build-7", Asked::Part),
    ] {
        let report = verified(&console, &admin, query, asked).await;
        assert_ne!(report.status, Status::Invalid, "{query}: {report:#?}");
        if query != "?label=coder" {
            assert_eq!(report.status, Status::Valid, "{query}: {report:#?}");
        }
        let decisions = report.sections.iter().find(|s| s.name == "decisions").unwrap();
        assert!(
            decisions.summary.starts_with("2 allowed by people"),
            "{query}: {report:#?}"
        );
        // The second answer is of somebody who had owned it a moment before.
        assert!(
            decisions
                .findings
                .iter()
                .any(|f| f.text.contains("ann, who had owned coder")),
            "{query}: {report:#?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_of_a_disabled_account_no_longer_counts() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let bob = console.user(&admin, "bob", &["approver"], &[]).await;
    let cid = console.user(&admin, "cid", &["approver"], &[]).await;
    let mut host = console.host(&admin, "build-7").await;
    let mut session = host.connect(&console).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make"]).quorum(2));
    session.ask(&ask).await;
    ship(&console, &host, &[&sealed]).await;
    assert_eq!(ann.answer(&ask.request_id, "approve", "").await.0, 200);
    let disable = admin.request("POST", "/api/v1/users/ann/disable");
    assert_eq!(admin.send(disable).await.0, 204);
    let (_, request) = bob.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
    assert_eq!(request["approvals"], 0);
    assert_eq!(request["decisions"][0]["void_because"], "the account was disabled");
    let (_, answered) = bob.answer(&ask.request_id, "approve", "").await;
    assert_eq!(answered["state"], "pending", "{answered}");
    let (_, answered) = cid.answer(&ask.request_id, "approve", "").await;
    assert_eq!(answered["state"], "approved", "{answered}");
    let decision = session.decision().await;
    carried_out(&console, &mut host, &ask, &sealed.payload_digest, &decision.envelope).await;
    let report = verified(&console, &admin, "", Asked::WholeLog).await;
    assert_eq!(report.status, Status::Valid, "{report:#?}");
}
