//! Approving for longer: exactly the same action, for as long as it was said, and not a moment after it is revoked.

use guard_evidence::record::{Action, ConnectAction, ConnectHow, Peer, Predicate, SignedDecision, Statement};
use guard_proto::v1::console_message::Kind;
use serde_json::{Value, json};

use crate::support::{Console, Host, Person, Question};

/// Approves with a grant.
async fn grant(person: &Person, id: &str, terms: Value) -> (u16, Value) {
    let (_, request) = person.get(&format!("/api/v1/requests/{id}")).await;
    let body = json!({"digest": request["digest"], "grant": terms});
    person.post(&format!("/api/v1/requests/{id}/approve"), &body).await
}

fn signed(envelope: &[u8]) -> SignedDecision {
    let envelope = guard_evidence::dsse::parse(envelope).unwrap();
    match Statement::from_payload(envelope.unverified_payload())
        .unwrap()
        .predicate
    {
        Predicate::SignedDecision(signed) => *signed,
        other => panic!("{other:?}"),
    }
}

async fn carried_out(
    console: &Console,
    host: &mut Host,
    id: &str,
    sealed: &guard_evidence::chain::Sealed,
    envelope: &[u8],
) {
    let [decided, ran] = host.carried_out(id, &sealed.payload_digest, envelope);
    host.ship(console, &[&decided, &ran]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_action_is_answered_and_nothing_else() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann] = console.approvers(&admin, ["ann"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (first, sealed) = host.ask(&Question::new("coder", &["git", "push"]));
    session.ask(&first).await;
    host.ship(&console, &[&sealed]).await;
    let (_, request) = ann.get(&format!("/api/v1/requests/{}", first.request_id)).await;
    let words = "exactly `git push` in /srv/app by coder on build-7";
    assert_eq!(request["grantable"], words, "it is shown before the click");
    let (status, answered) = grant(&ann, &first.request_id, json!({"seconds": 900, "times": 2})).await;
    assert_eq!((status, &answered["state"]), (200, &json!("approved")), "{answered}");
    let decision = session.decision().await;
    assert!(
        signed(&decision.envelope).grant.is_none(),
        "the first was approved by hand"
    );
    carried_out(&console, &mut host, &first.request_id, &sealed, &decision.envelope).await;
    let grants = ann.list("/api/v1/grants").await;
    let [made] = grants.as_slice() else {
        panic!("{grants:?}")
    };
    assert!(made["words"].as_str().unwrap().starts_with(words), "{made}");
    assert_eq!(
        (&made["state"], &made["by"], &made["used"]),
        (&json!("good"), &json!("ann"), &json!(0))
    );

    // Nobody is asked again, twice.
    for number in 1..=2 {
        let (ask, sealed) = host.ask(&Question::new("coder", &["git", "push"]));
        session.ask(&ask).await;
        host.ship(&console, &[&sealed]).await;
        let decision = session.decision().await;
        assert_eq!(decision.request_id, ask.request_id);
        let signed = signed(&decision.envelope);
        let used = signed.grant.unwrap();
        assert_eq!(
            (used.number, used.grant.id.as_str()),
            (number, made["id"].as_str().unwrap())
        );
        let [answer] = signed.answers.as_slice() else {
            panic!("{:?}", signed.answers)
        };
        assert_eq!((answer.name.as_str(), answer.channel.as_str()), ("ann", "grant"));
        let (_, request) = ann.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
        assert_eq!(
            (&request["state"], &request["grant"]),
            (&json!("approved"), &made["id"])
        );
        carried_out(&console, &mut host, &ask.request_id, &sealed, &decision.envelope).await;
    }
    // The third is asked, as is whatever differs.
    let (ask, sealed) = host.ask(&Question::new("coder", &["git", "push"]));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    session.silent().await;
    assert_eq!(ann.list("/api/v1/grants").await[0]["state"], "used up");
    let (status, _) = grant(&ann, &ask.request_id, json!({"seconds": 60})).await;
    assert_eq!(status, 200);
    session.decision().await;
    let mut others = vec![
        Question::new("coder", &["git", "push", "--force"]),
        Question::new("data", &["git", "push"]),
        Question::new("coder", &["git", "push"]).quorum(2),
        Question::new("coder", &["git", "push"]).groups(&["secops"]),
    ];
    let mut evil = Question::new("coder", &["git", "push"]);
    evil.evil = Some(guard_evidence::text::Text::from("/tmp/elsewhere"));
    others.push(evil);
    for other in &others {
        let (ask, _) = host.ask(other);
        session.ask(&ask).await;
        session.silent().await;
        let (_, request) = ann.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
        assert_eq!(request["state"], "pending");
    }
    // The same of another host too.
    let mut etl = console.host(&admin, "etl-2").await;
    let mut etl_session = etl.connect(&console).await;
    let (ask, _) = etl.ask(&Question::new("coder", &["git", "push"]));
    etl_session.ask(&ask).await;
    etl_session.silent().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_ends_when_it_is_revoked_or_its_maker_may_not_approve() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann, bob] = console.approvers(&admin, ["ann", "bob"]).await;
    let auditor = console.user(&admin, "cid", &["auditor"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let mut number = 0;
    let mut granted = async |by: &Person, host: &mut Host, session: &mut _| {
        number += 1;
        let argv = ["make", &number.to_string()].map(str::to_owned);
        let argv: Vec<&str> = argv.iter().map(String::as_str).collect();
        let (ask, sealed) = host.ask(&Question::new("coder", &argv));
        let session: &mut crate::support::Session = session;
        session.ask(&ask).await;
        host.ship(&console, &[&sealed]).await;
        let (status, answered) = grant(by, &ask.request_id, json!({"seconds": 900})).await;
        assert_eq!(status, 200, "{answered}");
        let decision = session.decision().await;
        let [decided, ran] = host.carried_out(&ask.request_id, &sealed.payload_digest, &decision.envelope);
        host.ship(&console, &[&decided, &ran]).await;
        let id = by.list("/api/v1/grants").await[0]["id"].as_str().unwrap().to_owned();
        (number, id)
    };
    // Revoked, by somebody who may.
    let (n, id) = granted(&ann, &mut host, &mut session).await;
    let path = format!("/api/v1/grants/{id}/revoke");
    assert_eq!(auditor.send(auditor.request("POST", &path)).await.0, 403);
    assert_eq!(bob.send(bob.request("POST", &path)).await.0, 204);
    assert_eq!(bob.send(bob.request("POST", &path)).await.0, 204);
    let (ask, sealed) = host.ask(&Question::new("coder", &["make", &n.to_string()]));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    session.silent().await;
    // Its maker becomes the owner.
    let (n, _) = granted(&ann, &mut host, &mut session).await;
    admin.give("coder", Some("ann")).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make", &n.to_string()]));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    session.silent().await;
    admin.give("coder", None).await;
    // Its maker is disabled.
    let (n, _) = granted(&ann, &mut host, &mut session).await;
    let disable = admin.request("POST", "/api/v1/users/ann/disable");
    assert_eq!(admin.send(disable).await.0, 204);
    let (ask, sealed) = host.ask(&Question::new("coder", &["make", &n.to_string()]));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    session.silent().await;
    assert_eq!(bob.list("/api/v1/grants").await[0]["state"], "suspended");
    let kinds: Vec<Value> = bob
        .list("/api/v1/changes")
        .await
        .iter()
        .map(|c| c["kind"].clone())
        .collect();
    assert_eq!(kinds.iter().filter(|kind| *kind == "grant_made").count(), 3);
    assert_eq!(kinds.iter().filter(|kind| *kind == "grant_revoked").count(), 1);
    admin.valid_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_granted() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann] = console.approvers(&admin, ["ann"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (two, _) = host.ask(&Question::new("coder", &["make"]).quorum(2));
    session.ask(&two).await;
    let mut nameless = Question::new("coder", &[]);
    nameless.action = Some(Action::Connect(Box::new(ConnectAction {
        peer: Peer::Nameless,
        protocol: "stream".to_owned(),
        how: ConnectHow::ConnectedBefore,
    })));
    let (nameless, _) = host.ask(&nameless);
    session.ask(&nameless).await;
    for ask in [&two, &nameless] {
        let (_, request) = ann.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
        assert_eq!(request["grantable"], Value::Null);
        let (status, problem) = grant(&ann, &ask.request_id, json!({"seconds": 900})).await;
        assert_eq!(status, 400, "{problem}");
    }
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    for terms in [
        json!({"seconds": 59}),
        json!({"seconds": 86_401}),
        json!({"seconds": 900, "times": 0}),
        json!({"seconds": 900, "times": 1_001}),
        json!({"seconds": 900, "for": "ever"}),
    ] {
        assert_eq!(grant(&ann, &ask.request_id, terms).await.0, 400);
    }
    let (_, request) = ann.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
    let body = json!({"digest": request["digest"], "reason": "no", "grant": {"seconds": 900}});
    let (status, _) = ann
        .post(&format!("/api/v1/requests/{}/deny", ask.request_id), &body)
        .await;
    assert_eq!(status, 400);
    assert_eq!(request["state"], "pending");
    assert!(ann.list("/api/v1/grants").await.is_empty());
    // A connection to one peer covers that peer, not the next port.
    let peer = |port| {
        let mut question = Question::new("coder", &[]);
        question.action = Some(Action::Connect(Box::new(ConnectAction {
            peer: Peer::Ip {
                address: "203.0.113.9".parse().unwrap(),
                port,
                scope: None,
            },
            protocol: "tcp".to_owned(),
            how: ConnectHow::Connect,
        })));
        question
    };
    let (ask, _) = host.ask(&peer(443));
    session.ask(&ask).await;
    assert_eq!(grant(&ann, &ask.request_id, json!({"seconds": 900})).await.0, 200);
    session.decision().await;
    let (same, _) = host.ask(&peer(443));
    session.ask(&same).await;
    assert!(matches!(session.next().await, Kind::Decision(d) if d.request_id == same.request_id));
    let (other, _) = host.ask(&peer(8443));
    session.ask(&other).await;
    session.silent().await;
}
