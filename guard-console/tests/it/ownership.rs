//! People who try to answer for their own workload by changing who owns it, or who they are.

use serde_json::json;

use crate::support::{Console, PASSWORD, Person, Question, whats};

async fn refused(person: &Person, id: &str, words: &str) {
    let (_, request) = person.get(&format!("/api/v1/requests/{id}")).await;
    assert_eq!(request["may_answer"], false, "{request}");
    assert!(request["why_not"].as_str().unwrap().contains(words), "{request}");
    // Not by the page's word alone.
    let body = json!({"reason": "mine", "digest": request["digest"]});
    for verdict in ["approve", "deny"] {
        let (status, problem) = person.post(&format!("/api/v1/requests/{id}/{verdict}"), &body).await;
        assert_eq!(status, 403, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn giving_a_label_away_for_a_moment_makes_nobody_eligible() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann, bob, cid] = console.approvers(&admin, ["ann", "bob", "cid"]).await;
    admin.give("coder", Some("ann")).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    refused(&ann, &ask.request_id, "You own the workload coder").await;
    // A second before the answer: to nobody, to somebody else, deleted, made again.
    admin.give("coder", None).await;
    refused(&ann, &ask.request_id, "when this was asked").await;
    admin.give("coder", Some("bob")).await;
    refused(&ann, &ask.request_id, "when this was asked").await;
    refused(&bob, &ask.request_id, "You own the workload coder").await;
    assert_eq!(admin.delete("/api/v1/labels/coder").await.0, 204);
    refused(&ann, &ask.request_id, "when this was asked").await;
    // Who became the owner only after it was asked, and is not any more.
    refused(&bob, &ask.request_id, "or since").await;
    admin.give("coder", Some("ann")).await;
    let (status, answered) = cid.answer(&ask.request_id, "approve", "").await;
    assert_eq!((status, &answered["state"]), (200, &json!("approved")));
    // What changed while it waited stands on the request.
    assert_eq!(
        whats(answered["recent_changes"].as_array().unwrap())[..4],
        [
            "the label coder was made, owned by ann",
            "the label coder, owned by bob, was deleted",
            "coder, which nobody owned, was given the owner bob",
            "coder, owned by ann, was left without an owner",
        ]
    );

    // What is asked after the label was handed over is the new owner's alone to leave to others.
    admin.give("coder", Some("bob")).await;
    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make", "again"]));
    session.decision().await;
    session.ask(&ask).await;
    refused(&bob, &ask.request_id, "You own the workload coder").await;
    let (status, answered) = ann.answer(&ask.request_id, "approve", "").await;
    assert_eq!((status, &answered["state"]), (200, &json!("approved")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_approval_is_void_once_its_giver_owned_the_label() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann, bob, cid] = console.approvers(&admin, ["ann", "bob", "cid"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]).quorum(2));
    session.ask(&ask).await;
    assert_eq!(ann.answer(&ask.request_id, "approve", "").await.0, 200);
    admin.give("coder", Some("ann")).await;
    // Handing it on does not bring the approval back.
    admin.give("coder", None).await;
    let path = format!("/api/v1/requests/{}", ask.request_id);
    let (_, request) = bob.get(&path).await;
    assert_eq!(request["approvals"], 0, "{request}");
    assert_eq!(request["decisions"][0]["void_because"], "they became the owner");
    refused(&ann, &ask.request_id, "or since").await;
    let (_, answered) = bob.answer(&ask.request_id, "approve", "").await;
    assert_eq!(answered["state"], "pending", "{answered}");
    let (_, answered) = cid.answer(&ask.request_id, "approve", "").await;
    assert_eq!(answered["state"], "approved", "{answered}");
    session.decision().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn administrators_are_no_approvers_and_what_they_make_of_themselves_is_seen() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    admin.give("coder", Some("admin")).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]).groups(&["code"]));
    session.ask(&ask).await;
    for owner in [Some("admin"), None] {
        admin.give("coder", owner).await;
        let (status, problem) = admin.answer(&ask.request_id, "approve", "").await;
        assert_eq!(status, 403, "{problem}");
    }
    let path = format!("/api/v1/requests/{}", ask.request_id);
    let (_, request) = admin.get(&path).await;
    assert_eq!(request["may_answer"], false, "{request}");

    // Nobody changes an account's roles or groups, their own least of all.
    for (method, path) in [
        ("PUT", "/api/v1/users/admin"),
        ("PATCH", "/api/v1/users/admin"),
        ("POST", "/api/v1/users/admin"),
        ("POST", "/api/v1/users/admin/roles"),
    ] {
        let body = json!({"roles": ["administrator", "approver"], "groups": ["code"]});
        let (status, answer) = admin.send(admin.request(method, path).json(&body)).await;
        assert!(matches!(status, 404 | 405), "{method} {path}: {status} {answer}");
    }
    let again = json!({"username": "admin", "password": PASSWORD, "roles": ["approver"], "groups": ["code"]});
    assert_eq!(admin.post("/api/v1/users", &again).await.0, 409);
    for name in ["ADMIN", "Admin", "admin ", "аdmin"] {
        let body = json!({"username": name, "password": PASSWORD, "roles": ["approver"]});
        let (status, answer) = admin.post("/api/v1/users", &body).await;
        assert_eq!(status, 400, "{name:?} would look like another account: {answer}");
    }
    // A second account is another person to the console: approvers see that it is new, and who made it.
    let puppet = console.user(&admin, "puppet", &["approver"], &["code"]).await;
    let (status, _) = puppet.answer(&ask.request_id, "approve", "").await;
    assert_eq!(status, 200);
    let (_, request) = ann.get(&path).await;
    let made = request["recent_changes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|mark| mark["what"].as_str().unwrap().contains("the account puppet was made"))
        .unwrap_or_else(|| panic!("{request}"));
    assert_eq!(
        (&made["by"], &made["what"]),
        (
            &json!("admin"),
            &json!("the account puppet was made (approver; group code)")
        )
    );
    session.decision().await;
}
