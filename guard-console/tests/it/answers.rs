//! The main path, and who may answer.

use guard_evidence::dsse;
use guard_evidence::key::PublicKey;
use guard_evidence::record::{Predicate, SignedDecision, Statement, Verdict};
use guard_proto::v1::host_message::Kind as HostKind;
use guard_proto::v1::{DecisionReceived, Heartbeat, Outcome, Withdraw, outcome, withdraw};
use serde_json::json;

use crate::support::{Console, Host, Question};

/// What a decision says, after its signature was checked as a host does.
fn read(host: &Host, envelope: &[u8]) -> SignedDecision {
    let key = PublicKey::from_der(&host.reply.decision_public_key).unwrap();
    let verified = dsse::parse(envelope).unwrap().verify(&key).unwrap();
    match Statement::from_payload(&verified.payload).unwrap().predicate {
        Predicate::SignedDecision(decision) => *decision,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn asked_approved_delivered_and_ran() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;

    let (ask, sealed) = host.ask(&Question::new("coder", &["git", "push", "--force"]).groups(&["code"]));
    session.ask(&ask).await;
    session.ask(&ask).await;
    let (_, list) = ann.get("/api/v1/requests?state=pending").await;
    assert_eq!(list["items"].as_array().unwrap().len(), 1, "asked twice, there once");
    let request = &list["items"][0];
    assert_eq!(request["id"], ask.request_id);
    assert_eq!(request["what"], "git push --force");
    assert_eq!(request["host"], "build-7");
    assert_eq!(request["digest"], sealed.payload_digest);
    assert_eq!(request["may_answer"], true);
    assert!(request["sentence"].as_str().unwrap().contains("wants to run"));

    let (status, answered) = ann.answer(&ask.request_id, "approve", "release night").await;
    assert_eq!(status, 200, "{answered}");
    assert_eq!(answered["state"], "approved");
    assert_eq!(answered["decisions"][0]["channel"], "api");
    let decision = session.decision().await;
    assert_eq!(decision.request_id, ask.request_id);
    let signed = read(&host, &decision.envelope);
    assert_eq!(signed.verdict, Verdict::Allow);
    assert_eq!(signed.host_id, host.id());
    assert_eq!(signed.request_digest, sealed.payload_digest);
    assert_eq!(signed.nonce, hex::encode(&ask.nonce));
    assert_eq!(signed.answers.len(), 1);
    assert_eq!(signed.answers[0].who.subject, "ann");
    assert_eq!(signed.answers[0].reason, "release night");
    assert_eq!(signed.answers[0].shown_digest, sealed.payload_digest);

    let id = ask.request_id.clone();
    session
        .say(HostKind::DecisionReceived(DecisionReceived {
            request_id: id.clone(),
            accepted: true,
            refused_because: String::new(),
        }))
        .await;
    session
        .say(HostKind::Outcome(Outcome {
            request_id: id.clone(),
            what: outcome::What::Ran.into(),
            detail: String::new(),
            at_ms: 0,
        }))
        .await;
    for _ in 0..100 {
        let (_, request) = ann.get(&format!("/api/v1/requests/{id}")).await;
        if request["outcome"] == "ran" {
            assert_eq!(request["may_answer"], false);
            assert!(request["why_not"].as_str().unwrap().contains("Approved by ann"));
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("the outcome did not arrive");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_answer() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let owner = console
        .user(&admin, "owner", &["approver", "administrator"], &["code"])
        .await;
    let outsider = console.user(&admin, "outsider", &["approver"], &["other"]).await;
    let auditor = console
        .user(&admin, "auditor", &["auditor", "operator"], &["code"])
        .await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    let (status, label) = admin.put("/api/v1/labels/coder", &json!({"owner": "owner"})).await;
    assert_eq!((status, &label["owner"]), (200, &json!("owner")));
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]).groups(&["code", "ops"]));
    session.ask(&ask).await;
    let id = &ask.request_id;

    for (person, words) in [
        (&owner, "You own the workload coder"),
        (&outsider, "none of these groups"),
        (&admin, "role approver"),
        (&auditor, "role approver"),
    ] {
        for verdict in ["approve", "deny"] {
            let (status, problem) = person.answer(id, verdict, "because").await;
            assert_eq!(status, 403, "{problem}");
            assert_eq!(problem["type"], "urn:guard:problem:forbidden");
        }
        let (_, request) = person.get(&format!("/api/v1/requests/{id}")).await;
        assert_eq!(request["may_answer"], false);
        assert!(request["why_not"].as_str().unwrap().contains(words), "{request}");
    }
    // Another digest than the one that was shown; no reason for a denial.
    let body = json!({"digest": "00".repeat(32), "reason": ""});
    let (status, problem) = ann.post(&format!("/api/v1/requests/{id}/approve"), &body).await;
    assert_eq!(
        (status, problem["type"].as_str()),
        (409, Some("urn:guard:problem:digest-differs"))
    );
    let (status, problem) = ann.answer(id, "deny", "  ").await;
    assert_eq!(status, 400, "{problem}");
    // Nothing of this reached the host.
    session.silent().await;
    let (status, _) = ann.answer(id, "deny", "open a pull request instead").await;
    assert_eq!(status, 200);
    let signed = read(&host, &session.decision().await.envelope);
    assert_eq!(signed.verdict, Verdict::Deny);
    assert_eq!(signed.owner.unwrap().subject, "owner");
    let (status, problem) = ann.answer(id, "approve", "").await;
    assert_eq!(status, 409);
    assert!(
        problem["detail"].as_str().unwrap().contains("Denied by ann at 20"),
        "{problem}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_quorum_is_of_distinct_people_and_one_denial_ends_it() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code", "ops"]).await;
    let bob = console.user(&admin, "bob", &["approver"], &["code"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let question = Question::new("coder", &["make", "deploy"])
        .groups(&["code", "ops"])
        .quorum(2);

    let (ask, _) = host.ask(&question);
    session.ask(&ask).await;
    let (_, once) = ann.answer(&ask.request_id, "approve", "").await;
    assert_eq!((&once["state"], &once["approvals"]), (&json!("pending"), &json!(1)));
    // Again, and from another session: still one person.
    let again = console.sign_in("ann").await;
    let (status, problem) = again.answer(&ask.request_id, "approve", "").await;
    assert_eq!(status, 403, "{problem}");
    session.silent().await;
    let (_, twice) = bob.answer(&ask.request_id, "approve", "").await;
    assert_eq!(twice["state"], "approved");
    assert_eq!(read(&host, &session.decision().await.envelope).answers.len(), 2);

    let (ask, _) = host.ask(&question);
    session.ask(&ask).await;
    ann.answer(&ask.request_id, "approve", "").await;
    bob.answer(&ask.request_id, "deny", "not today").await;
    let signed = read(&host, &session.decision().await.envelope);
    assert_eq!((signed.verdict, signed.answers.len()), (Verdict::Deny, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_became_the_owner_no_longer_counts() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann, bob, carol] = console.approvers(&admin, ["ann", "bob", "carol"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]).quorum(2));
    session.ask(&ask).await;
    ann.answer(&ask.request_id, "approve", "").await;
    admin.give("coder", Some("ann")).await;
    let (_, second) = bob.answer(&ask.request_id, "approve", "").await;
    assert_eq!((&second["state"], &second["approvals"]), (&json!("pending"), &json!(1)));
    session.silent().await;
    let (_, third) = carol.answer(&ask.request_id, "approve", "").await;
    assert_eq!(third["state"], "approved");
    let signed = read(&host, &session.decision().await.envelope);
    let people: Vec<&str> = signed.answers.iter().map(|a| a.who.subject.as_str()).collect();
    assert_eq!(people, ["bob", "carol"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_whose_clock_is_ahead_can_use_its_decision() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let ahead = 3_600_000;
    let at_ms = guard_console::time::now() + ahead;
    session
        .say(HostKind::Heartbeat(Heartbeat {
            at_ms,
            pending: 0,
            lost_events: 0,
            enforcing: true,
        }))
        .await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    ann.answer(&ask.request_id, "approve", "").await;
    let signed = read(&host, &session.decision().await.envelope);
    let expires = guard_console::time::parse_rfc3339(&signed.expires_at).unwrap();
    assert!(expires > guard_console::time::now() + ahead + 120_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn racing_answers_have_one_outcome() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut people = Vec::new();
    for n in 0..6 {
        people.push(console.user(&admin, &format!("p{n}"), &["approver"], &[]).await);
    }
    let (mut host, mut session) = console.build_host(&admin).await;
    for round in 0..4 {
        let (ask, _) = host.ask(&Question::new("coder", &["make", &round.to_string()]));
        session.ask(&ask).await;
        let digest = guard_evidence::statement::sha256_hex(&payload(&ask.record));
        let body = json!({"reason": "race", "digest": digest});
        let calls = people.iter().enumerate().map(|(n, person)| {
            let path = format!(
                "/api/v1/requests/{}/{}",
                ask.request_id,
                if n % 2 == 0 { "approve" } else { "deny" }
            );
            let body = &body;
            async move { person.post(&path, body).await.0 }
        });
        let mut statuses = futures::future::join_all(calls).await;
        statuses.sort_unstable();
        assert_eq!(statuses, [200, 409, 409, 409, 409, 409]);
        let signed = read(&host, &session.decision().await.envelope);
        assert_eq!(signed.answers.len(), 1);
        let (_, request) = admin.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
        let expected = if signed.verdict == Verdict::Allow {
            "approved"
        } else {
            "denied"
        };
        assert_eq!(request["state"], expected);
        session
            .say(HostKind::DecisionReceived(DecisionReceived {
                request_id: ask.request_id.clone(),
                accepted: true,
                refused_because: String::new(),
            }))
            .await;
        session.silent().await;
    }
}

fn payload(envelope: &[u8]) -> Vec<u8> {
    use base64::Engine as _;
    let envelope: serde_json::Value = serde_json::from_slice(envelope).unwrap();
    base64::engine::general_purpose::STANDARD
        .decode(envelope["payload"].as_str().unwrap())
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_decision_reaches_a_host_that_was_away() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let mut host = console.host(&admin, "build-7").await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    let mut session = host.connect(&console).await;
    session.ask(&ask).await;
    drop(session);

    ann.answer(&ask.request_id, "approve", "").await;
    // And a restart of the console in between.
    let console = console.restart().await;
    let mut session = host.connect(&console).await;
    assert_eq!(session.decision().await.request_id, ask.request_id);
    // Not acknowledged: it comes with every new stream, until it is.
    drop(session);
    let mut session = host.connect(&console).await;
    session.decision().await;
    session.ask(&ask).await;
    session.decision().await;
    session
        .say(HostKind::DecisionReceived(DecisionReceived {
            request_id: ask.request_id.clone(),
            accepted: false,
            refused_because: "expired \u{202e}".to_owned(),
        }))
        .await;
    session.silent().await;
    let (_, request) = ann.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
    let detail = request["outcome_detail"].as_str().unwrap();
    assert!(
        detail.contains("did not accept") && detail.contains("⟨U+202E⟩"),
        "{detail}"
    );
    let mut session = host.connect(&console).await;
    session.silent().await;
    // A host that waits again although it had the decision has lost it.
    session.ask(&ask).await;
    session.decision().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn withdrawn_and_timed_out() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    for (why, state) in [
        (withdraw::Why::Died, "withdrawn"),
        (withdraw::Why::TimedOut, "timed_out"),
    ] {
        let (ask, _) = host.ask(&Question::new("coder", &["make"]));
        session.ask(&ask).await;
        session
            .say(HostKind::Withdraw(Withdraw {
                request_id: ask.request_id.clone(),
                why: why.into(),
            }))
            .await;
        let path = format!("/api/v1/requests/{}", ask.request_id);
        let mut request = ann.get(&path).await.1;
        for _ in 0..100 {
            if request["state"] != "pending" {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            request = ann.get(&path).await.1;
        }
        assert_eq!(request["state"], state);
        let (status, _) = ann.answer(&ask.request_id, "approve", "").await;
        assert_eq!(status, 409);
        // Asked again, it must not wait for an answer that nobody can give.
        assert!(session.refused(&ask).await.contains("has ended"));
    }
    // The host is away when the time is over: nobody can answer, and it ends here too.
    let mut question = Question::new("coder", &["make"]);
    question.expires_at_ms = guard_console::time::now() + 1_500;
    let (ask, _) = host.ask(&question);
    session.ask(&ask).await;
    drop(session);
    tokio::time::sleep(std::time::Duration::from_millis(1_600)).await;
    let (status, problem) = ann.answer(&ask.request_id, "approve", "").await;
    assert_eq!(status, 409, "{problem}");
    console.server.as_ref().unwrap().app.tick().await.unwrap();
    let (_, request) = ann.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
    assert_eq!(request["state"], "timed_out");
}
