use super::*;
use crate::enroll::{EnrollError, enroll};
use crate::evidence::EvidenceConfig;
use crate::identity::token::Token;
use crate::testing::fake_console::Console;
use guard_evidence::chain::{Chain, Stamp};
use guard_evidence::key::{Algorithm, SigningKey};
use guard_evidence::record::{LifecycleRecord, Predicate};
use guard_proto::v1::host_message;
use std::path::Path;

const LOOPBACK: &[&str] = &["127.0.0.1", "localhost"];
const WEEK: Duration = Duration::from_secs(7 * 24 * 3600);

fn token(text: &str) -> Token {
    Token::parse(text).unwrap()
}

async fn joined(console: &Console, state: &Path) -> (Client, mpsc::UnboundedReceiver<Event>) {
    enroll(state, &token(&console.token()), false, Algorithm::Ed25519)
        .await
        .unwrap();
    client(state)
}

fn client(state: &Path) -> (Client, mpsc::UnboundedReceiver<Event>) {
    let identity = Arc::new(Identity::load(state).unwrap().unwrap());
    let evidence = Evidence::start(EvidenceConfig {
        host_id: identity.host_id.clone(),
        key: identity.evidence_key_again().unwrap(),
        directory: identity.directory().to_owned(),
        ships: identity.enrolment.is_some(),
        max_bytes: 64 << 20,
    })
    .unwrap();
    let (events, receive) = mpsc::unbounded_channel();
    let enrolment = identity.enrolment.clone().unwrap();
    (
        Client {
            identity,
            enrolment,
            evidence,
            events,
            state: Arc::default(),
            witnesses: vec![],
            quorum: 0,
        },
        receive,
    )
}

/// Does for the engine what it does on every connection: says Hello.
fn say_hello(mut events: mpsc::UnboundedReceiver<Event>) -> mpsc::UnboundedReceiver<FromConsole> {
    let (send, receive) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut streams = Vec::new();
        while let Some(event) = events.recv().await {
            let Event::Console(message) = event else { continue };
            if let FromConsole::Connected { send, .. } = &message {
                let hello = host_message::Kind::Hello(v1::Hello {
                    protocol_version: 1,
                    ..v1::Hello::default()
                });
                send.try_send(v1::HostMessage { kind: Some(hello) }).unwrap();
                streams.push(send.clone());
            }
            if send.send(message).is_err() {
                return;
            }
        }
    });
    receive
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not within 60 s: {what}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_works_once_and_pins_the_console() {
    let console = Console::start(LOOPBACK, WEEK).await;
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");

    let mut wrong_pin = token(&console.token());
    wrong_pin.ca_sha256[0] ^= 1;
    let error = enroll(&state, &wrong_pin, false, Algorithm::Ed25519).await.unwrap_err();
    assert!(
        error.to_string().contains("not signed by the CA that this host knows"),
        "{error}"
    );
    assert!(
        !*console.shared.spent.lock(),
        "the secret never went to a console that is not the pinned one"
    );

    let wrong_secret = token(&console.token().replace("once", "never"));
    let error = enroll(&state, &wrong_secret, false, Algorithm::Ed25519)
        .await
        .unwrap_err();
    assert!(
        matches!(&error, EnrollError::Refused(why) if why.contains("spent or expired")),
        "{error}"
    );
    assert!(
        Identity::load(&state).unwrap().is_none(),
        "nothing is left of what failed"
    );

    let enrolled = enroll(&state, &token(&console.token()), false, Algorithm::Ed25519)
        .await
        .unwrap();
    let identity = Identity::load(&state).unwrap().unwrap();
    assert_eq!(identity.host_id, enrolled.host_id);
    assert_eq!(identity.enrolment.as_ref().unwrap().ca_pem, console.ca_pem);

    let error = enroll(&state, &token(&console.token()), false, Algorithm::Ed25519)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("--force"), "{error}");
    let error = enroll(&state, &token(&console.token()), true, Algorithm::Ed25519)
        .await
        .unwrap_err();
    assert!(error.to_string().contains("spent"), "{error}");
    assert_eq!(Identity::load(&state).unwrap().unwrap().host_id, identity.host_id);

    *console.shared.spent.lock() = false;
    let again = enroll(&state, &token(&console.token()), true, Algorithm::Ed25519)
        .await
        .unwrap();
    let new = Identity::load(&state).unwrap().unwrap();
    assert!(again.replaced && new.host_id != identity.host_id);
    assert_ne!(new.evidence_key.public(), identity.evidence_key.public());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_with_another_name_is_refused() {
    // Its CA is the pinned one, its certificate is for another host.
    let console = Console::start(&["console.example.org"], WEEK).await;
    let dir = tempfile::tempdir().unwrap();
    let error = enroll(dir.path(), &token(&console.token()), false, Algorithm::Ed25519)
        .await
        .unwrap_err();
    assert!(matches!(error, EnrollError::Connect(_)), "{error}");
    assert!(!*console.shared.spent.lock());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_there_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let nobody = token(&format!("guard1.127.0.0.1:1.{}.x", "ab".repeat(32)));
    let error = enroll(dir.path(), &nobody, false, Algorithm::Ed25519)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("127.0.0.1:1") && error.contains("refused") && error.contains('→'),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn away_and_back() {
    let mut console = Console::start(LOOPBACK, WEEK).await;
    let dir = tempfile::tempdir().unwrap();
    let (client, events) = joined(&console, dir.path()).await;
    let (evidence, state) = (client.evidence.clone(), Arc::clone(&client.state));
    let mut from_console = say_hello(events);
    let task = tokio::spawn(client.run());
    console
        .heard(|kind| matches!(kind, host_message::Kind::Hello(_)).then_some(()))
        .await;
    until("connected", || state.is_connected()).await;
    until("shipped", || evidence.unshipped() == 0).await;

    console.stop().await;
    until("noticed", || !state.is_connected()).await;
    for count in 0..50 {
        evidence.lifecycle(Lifecycle::EventsLost { count });
    }
    until("kept", || evidence.unshipped() == 50).await;

    console.restart().await;
    until("connected again", || state.is_connected()).await;
    until("shipped later", || evidence.unshipped() == 0).await;
    let sequences: std::collections::BTreeSet<u64> = console.shared.records.lock().iter().map(|(_, s, _)| *s).collect();
    assert_eq!(sequences, (1..=51).collect());

    console.send(Kind::Decision(v1::Decision {
        request_id: "x".to_owned(),
        envelope: vec![1],
    }));
    let found = async {
        loop {
            if let Some(FromConsole::Decision(decision)) = from_console.recv().await {
                return decision;
            }
        }
    };
    let decision = tokio::time::timeout(Duration::from_secs(10), found).await.unwrap();
    assert_eq!(decision.request_id, "x");
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_acknowledged_is_sent_again() {
    let mut console = Console::start(LOOPBACK, WEEK).await;
    *console.shared.forgetful.lock() = true;
    let dir = tempfile::tempdir().unwrap();
    let (client, events) = joined(&console, dir.path()).await;
    let (evidence, state) = (client.evidence.clone(), Arc::clone(&client.state));
    let _from_console = say_hello(events);
    let task = tokio::spawn(client.run());
    until("connected", || state.is_connected()).await;
    until("sent", || !console.shared.records.lock().is_empty()).await;
    assert_eq!(evidence.unshipped(), 1);
    console.stop().await;
    *console.shared.forgetful.lock() = false;
    console.restart().await;
    until("acknowledged", || evidence.unshipped() == 0).await;
    let records = console.shared.records.lock().clone();
    assert!(
        records.len() >= 2 && records.iter().all(|record| record == &records[0]),
        "the same bytes again"
    );
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_certificate_is_renewed_before_it_ends() {
    // Two thirds of 10 s before and 8 s after now are over in 2 s.
    let console = Console::start(LOOPBACK, Duration::from_secs(8)).await;
    let dir = tempfile::tempdir().unwrap();
    let (client, events) = joined(&console, dir.path()).await;
    let identity = Arc::clone(&client.identity);
    let before = identity.tls().unwrap();
    let state = Arc::clone(&client.state);
    let _from_console = say_hello(events);
    let task = tokio::spawn(client.run());
    until("renewed", || *console.shared.renewals.lock() > 0).await;
    until("stored", || identity.tls().unwrap().key_pem != before.key_pem).await;
    until("connected with it", || state.is_connected()).await;
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_that_forks_its_log_gets_no_more_and_an_alarm() {
    let console = Console::start(LOOPBACK, WEEK).await;
    let dir = tempfile::tempdir().unwrap();
    let (client, events) = joined(&console, dir.path()).await;
    let (evidence, state) = (client.evidence.clone(), Arc::clone(&client.state));
    let _from_console = say_hello(events);
    let task = tokio::spawn(client.run());
    evidence.lifecycle(Lifecycle::EventsLost { count: 1 });
    until("two receipts", || state.log_size() == 2 && evidence.unshipped() == 0).await;
    // Another log of the same key, with what this host sends now.
    console.shared.log.lock()[0] = [7; 32];
    evidence.lifecycle(Lifecycle::EventsLost { count: 2 });
    until("refused", || state.log_refused().is_some()).await;
    let words = state.log_refused().unwrap();
    assert!(words.contains("not proved"), "{words}");
    // The record and what was sent stay here, and the record is shipped all the same.
    until("recorded", || evidence.unshipped() == 2).await;
    let recorded = |bytes: &[u8]| {
        let statement = guard_evidence::dsse::parse(bytes).unwrap();
        let text = String::from_utf8_lossy(statement.unverified_payload()).into_owned();
        text.contains("log_refused")
    };
    until("told", || {
        console
            .shared
            .records
            .lock()
            .iter()
            .any(|(_, _, bytes)| recorded(bytes))
    })
    .await;
    assert_eq!((evidence.unshipped(), state.log_size()), (2, 2));
    task.abort();
    // The log that it knew goes on: so does shipping.
    {
        let records = console.shared.records.lock();
        console.shared.log.lock()[0] = guard_evidence::merkle::leaf_hash(&records[0].2);
    }
    let identity = Arc::new(Identity::load(dir.path()).unwrap().unwrap());
    let (events, receive) = mpsc::unbounded_channel();
    let again = Client {
        enrolment: identity.enrolment.clone().unwrap(),
        identity,
        evidence: evidence.clone(),
        events,
        state: Arc::default(),
        witnesses: vec![],
        quorum: 0,
    };
    let state = Arc::clone(&again.state);
    let _from_console = say_hello(receive);
    let task = tokio::spawn(again.run());
    // What was sent before, the refusal, and one more if it was refused twice.
    until("goes on", || evidence.unshipped() == 0 && state.log_size() >= 4).await;
    assert!(state.log_refused().is_some(), "what was refused is not forgotten");
    task.abort();
}

/// A record in which a key of the console names the next one.
fn names(by: &SigningKey, signer: &str, key: &PublicKey) -> Vec<u8> {
    let stamp = Stamp {
        at: String::new(),
        since_boot_ns: 0,
        boot_id: String::new(),
    };
    let event = Lifecycle::NextKey { key: key.clone() };
    let make = |header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }));
    Chain::begin(signer, 1).seal(by, stamp, make).unwrap().envelope
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_key_of_the_log_is_followed_and_kept() {
    let console = Console::start(LOOPBACK, WEEK).await;
    let dir = tempfile::tempdir().unwrap();
    let (client, events) = joined(&console, dir.path()).await;
    // As a host that joined before the key was replaced.
    let (first, now) = (SigningKey::from_seed(&[41; 32]), console.shared.log_key.public());
    let pem = first.public().to_pem().unwrap();
    std::fs::write(client.identity.file("log-key.pem"), pem).unwrap();
    let signer = format!("log:{}", client.enrolment.log_origin);
    console.shared.log_statements.lock().push(names(&first, &signer, &now));
    let (evidence, identity) = (client.evidence.clone(), Arc::clone(&client.identity));
    let _from_console = say_hello(events);
    let task = tokio::spawn(client.run());
    until("shipped", || evidence.unshipped() == 0).await;
    assert_eq!(identity.log_key().unwrap().unwrap(), now);
    assert_eq!(identity.earlier_log_keys().unwrap(), [first.public()]);
    task.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_decision_key_is_followed_and_kept() {
    let console = Console::start(LOOPBACK, WEEK).await;
    let dir = tempfile::tempdir().unwrap();
    let (client, events) = joined(&console, dir.path()).await;
    let next = SigningKey::from_seed(&[42; 32]).public();
    let signer = format!("console:{}", client.enrolment.log_origin);
    let statement = names(&console.shared.decision_key, &signer, &next);
    console.shared.statements.lock().push(statement);
    let evidence = client.evidence.clone();
    let mut from_console = say_hello(events);
    let task = tokio::spawn(client.run());
    let found = async {
        loop {
            if let Some(FromConsole::DecisionKey(key)) = from_console.recv().await {
                return key;
            }
        }
    };
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(20), found).await.unwrap(),
        next
    );
    let kept = Identity::load(dir.path()).unwrap().unwrap().enrolment.unwrap();
    assert_eq!(kept.decision_key, next);
    until("recorded", || *evidence.durable().borrow() >= 2).await;
    task.abort();
}
