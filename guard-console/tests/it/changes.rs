//! Changes of who may decide: records that approvers see and auditors can check.

use futures::StreamExt as _;
use guard_evidence::verify::{Asked, Status};
use serde_json::json;

use crate::support::{Console, PASSWORD, Question, whats};

#[tokio::test(flavor = "multi_thread")]
async fn every_change_is_a_record_and_none_has_a_secret() {
    let console = Console::start().await;
    let secret = console.setup_secret();
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    console.user(&admin, "bob", &["operator"], &[]).await;
    admin.give("coder", Some("bob")).await;
    // The same again is no change.
    admin.give("coder", Some("bob")).await;
    let body = json!({"owner": "ann", "description": "d", "reason": "ann runs it now\u{202e}"});
    assert_eq!(admin.put("/api/v1/labels/coder", &body).await.0, 200);
    admin.give("coder", None).await;
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

    let changes = ann.list("/api/v1/changes").await;
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
    assert_eq!(ann.list("/api/v1/changes?label=coder").await.len(), 4);
    assert_eq!(ann.list("/api/v1/changes?user=bob").await.len(), 2);
    assert_eq!(ann.list(&format!("/api/v1/changes?host={}", host.id())).await.len(), 2);
    let (_, page) = ann.get("/api/v1/changes?limit=9").await;
    let next = page["next"].as_str().unwrap();
    assert_eq!(
        ann.list(&format!("/api/v1/changes?limit=9&cursor={next}")).await.len(),
        2
    );

    // Every byte of the log, without a secret.
    ann.valid_log().await;
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
    admin.give("data", Some("ann")).await;
    admin.valid_log().await;
    assert_eq!(admin.list("/api/v1/changes").await.len(), 12);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_change_leaves_no_record() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let before = admin.list("/api/v1/changes").await.len();
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
    assert_eq!(admin.list("/api/v1/changes").await.len(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn approvers_see_what_changed_about_a_request() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    console.user(&admin, "bob", &["operator"], &[]).await;
    admin.give("coder", Some("bob")).await;
    admin.give("other", Some("bob")).await;
    let (mut host, mut session) = console.build_host(&admin).await;
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
    admin.give("coder", Some("ann")).await;
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
    admin.give("coder", Some("ann")).await;
    let mut text = String::new();
    let found = tokio::time::timeout(std::time::Duration::from_secs(10), async {
        while !text.contains("event: change\n") || !text.ends_with("\n\n") {
            text.push_str(&String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()));
        }
    });
    found.await.unwrap();
    assert!(text.contains("the label coder was made, owned by ann"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn decisions_are_verified_against_the_recorded_owner() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    let bob = console.user(&admin, "bob", &["approver"], &["code"]).await;
    admin.give("coder", Some("bob")).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    for _ in 0..2 {
        let (ask, sealed) = host.ask(&Question::new("coder", &["make"]).groups(&["code"]));
        session.ask(&ask).await;
        host.ship(&console, &[&sealed]).await;
        assert_eq!(bob.answer(&ask.request_id, "approve", "").await.0, 403);
        assert_eq!(ann.answer(&ask.request_id, "approve", "").await.0, 200);
        let decision = session.decision().await;
        // The owner changes before the host's record arrives: the decision is judged by what the console knew.
        admin.give("coder", Some("ann")).await;
        let [decided, ran] = host.carried_out(&ask.request_id, &sealed.payload_digest, &decision.envelope);
        host.ship(&console, &[&decided, &ran]).await;
        admin.give("coder", Some("bob")).await;
    }
    for (query, asked) in [
        ("", Asked::WholeLog),
        ("?label=coder", Asked::Part),
        ("?host=build-7", Asked::Part),
    ] {
        let (_, report) = admin.export(query, asked).await;
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
    let [ann, bob, cid] = console.approvers(&admin, ["ann", "bob", "cid"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make"]).quorum(2));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
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
    let [decided, ran] = host.carried_out(&ask.request_id, &sealed.payload_digest, &decision.envelope);
    host.ship(&console, &[&decided, &ran]).await;
    admin.valid_log().await;
}
