//! Keys of hosts that are replaced: the console learns them from the log, and the one before ends there.

use guard_evidence::bundle::Bundle;
use guard_evidence::chain::Chain;
use guard_evidence::dsse;
use guard_evidence::key::{Algorithm, PublicKey, SigningKey};
use guard_evidence::record::{Lifecycle, Predicate, Statement};
use guard_evidence::trust::Trust;
use guard_evidence::verify::{Asked, Status, TrustSource, verify};
use guard_proto::v1::console_message::Kind as ConsoleKind;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{Console, Host, Person, Question, batch};

fn new_key(algorithm: Algorithm) -> SigningKey {
    SigningKey::generate_for(algorithm, &mut rand::rngs::OsRng)
}

/// What the trust file says of the host's keys: epochs and places in the log.
async fn ranges(admin: &Person) -> Vec<Value> {
    let trust: Value = serde_json::from_slice(&admin.bytes("/api/v1/trust").await).unwrap();
    let keys = trust["hosts"][0]["evidence_keys"].as_array().unwrap();
    let range = |key: &Value| {
        json!([
            key["from_epoch"],
            key["through_epoch"],
            key["from_index"],
            key["through_index"]
        ])
    };
    keys.iter().map(range).collect()
}

async fn refused(host: &Host, console: &Console, record: &guard_evidence::chain::Sealed, words: &str) {
    let error = host.append(console, vec![batch(&[record])]).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains(words), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_replaces_its_key_without_anybody() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let first = host.lifecycle();
    host.ship(&console, &[&first]).await;
    for algorithm in [Algorithm::P256, Algorithm::Ed25519] {
        let records = host.replaces_key(new_key(algorithm));
        let last = host.lifecycle();
        // Again: a host that did not get the receipts.
        for _ in 0..2 {
            host.append(&console, vec![batch(&[&records[0]]), batch(&[&records[1], &last])])
                .await
                .unwrap();
        }
    }
    // Set-up, token, host and the console's own begin come before it.
    assert_eq!(
        ranges(&admin).await,
        [json!([1, 1, null, 5]), json!([2, 2, 6, 8]), json!([3, null, 9, null])]
    );
    let alarms = admin.list("/api/v1/alarms").await;
    assert!(
        alarms.iter().all(|alarm| alarm["kind"] == "events-lost"),
        "a key that is replaced is none: {alarms:?}"
    );
    admin.valid_log().await;
    // It asks with that key too, and a console that starts again still knows it.
    let console = console.restart().await;
    let admin = console.sign_in("admin").await;
    let mut session = host.connect(&console).await;
    let (ask, request) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    host.ship(&console, &[&request]).await;
    admin.valid_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_may_be_earlier_than_the_record_of_its_key() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let [named, begun] = host.replaces_key(new_key(Algorithm::Ed25519));
    let (ask, request) = host.ask(&Question::new("coder", &["make"]));
    assert!(
        session.refused(&ask).await.contains("not trusted"),
        "nobody has named it"
    );
    host.ship(&console, &[&named]).await;
    session.ask(&ask).await;
    host.ship(&console, &[&begun, &request]).await;
    admin.valid_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_has_ended_or_was_not_named_is_refused() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let first = host.lifecycle();
    host.ship(&console, &[&first]).await;
    let signer = format!("host:{}", host.id());

    // Nobody named it.
    let (chain, old) = (host.chain.clone(), again(&host.evidence_key));
    let begun = host.begins_with(new_key(Algorithm::Ed25519));
    refused(&host, &console, &begun, "which is not trusted").await;
    (host.chain, host.evidence_key) = (chain, again(&old));

    // It was named, but it does not begin where the old one ended, or not at all.
    let next = new_key(Algorithm::Ed25519);
    let named = host.tells(Lifecycle::NextKey { key: next.public() });
    host.ship(&console, &[&named]).await;
    let chain = host.chain.clone();
    host.evidence_key = again(&next);
    let inside = host.lifecycle();
    refused(&host, &console, &inside, "does not use there").await;
    host.chain = Chain::begin(signer.clone(), 2);
    let mut silent = host.chain.clone();
    let begun = host.begins_after(None);
    refused(&host, &console, &begun, "does not say where the one before it ended").await;
    std::mem::swap(&mut host.chain, &mut silent);
    let mut end = chain.end().unwrap();
    end.digest = "00".repeat(32);
    let begun = host.begins_after(Some(end));
    refused(&host, &console, &begun, "not the last one stored").await;
    host.chain = Chain::begin(signer.clone(), 2);
    let begun = host.begins_after(chain.end());
    host.ship(&console, &[&begun]).await;

    // Whoever stole the old one, afterwards: in its epoch, in the new one, in one of its own.
    let in_force = std::mem::replace(&mut host.chain, chain);
    host.evidence_key = again(&old);
    let record = host.lifecycle();
    refused(&host, &console, &record, "came after epoch 2 had begun").await;
    host.chain = in_force.clone();
    let record = host.lifecycle();
    refused(&host, &console, &record, "does not use there").await;
    host.chain = Chain::begin(signer, 3);
    let record = host.begins_after(in_force.end());
    refused(&host, &console, &record, "does not use there").await;
    let mut session = host.connect(&console).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    assert!(session.refused(&ask).await.contains("does not use any more"));

    host.chain = in_force;
    host.evidence_key = next;
    let record = host.lifecycle();
    host.ship(&console, &[&record]).await;
    admin.valid_log().await;
}

fn again(key: &SigningKey) -> SigningKey {
    SigningKey::from_pkcs8_pem(&key.to_pkcs8_pem().unwrap()).unwrap()
}

fn rotate(console: &Console, more: &[&str]) -> String {
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_guard-console"))
        .args(["rotate-key", "--data-dir"])
        .arg(console.file(""))
        .args(more)
        .output()
        .unwrap();
    assert!(out.status.success(), "{out:?}");
    let words = String::from_utf8(out.stdout).unwrap();
    words.split(' ').nth(1).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_decision_key_is_replaced_at_a_start_and_hosts_are_shown_how() {
    let mut console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, request) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    host.ship(&console, &[&request]).await;
    drop(session);
    // Answered while the host is away: signed by the old key, and again by the new one.
    let ann = console.sign_in("ann").await;
    assert_eq!(ann.answer(&ask.request_id, "approve", "fine").await.0, 200);
    let old = PublicKey::from_der(&host.reply.decision_public_key).unwrap();
    let id = rotate(&console, &[]);
    assert_eq!(rotate(&console, &[]), id, "one at a time");
    let first = std::fs::read(console.file("decision.key")).unwrap();
    let next = std::fs::read(console.file("decision-next.key")).unwrap();
    console.stop().await;
    let mut console = console.start_again().await;
    assert!(!console.file("decision-next.key").exists());
    // It ended after the records and before the file had its name.
    console.stop().await;
    std::fs::write(console.file("decision.key"), &first).unwrap();
    std::fs::write(console.file("decision-next.key"), &next).unwrap();
    let console = console.start_again().await;
    assert_eq!(std::fs::read(console.file("decision.key")).unwrap(), next);

    let mut session = host.open(&console).await.unwrap();
    let ConsoleKind::Welcome(welcome) = session.next().await else {
        panic!("no welcome");
    };
    let [statement] = welcome.decision_key_statements.as_slice() else {
        panic!("{} statements", welcome.decision_key_statements.len());
    };
    let statement = dsse::parse(statement).unwrap().verify(&old).unwrap();
    let statement = Statement::from_payload(&statement.payload).unwrap();
    let Predicate::Lifecycle(record) = &statement.predicate else {
        panic!("{statement:?}");
    };
    let Lifecycle::NextKey { key } = &record.event else {
        panic!("{record:?}");
    };
    assert_eq!(key.id(), id);
    let accepted = host.tells(Lifecycle::ConsoleKey { key: key.clone() });
    let decision = session.decision().await;
    assert!(dsse::parse(&decision.envelope).unwrap().verify(key).is_ok());
    let [decided, ran] = host.carried_out(&ask.request_id, &request.payload_digest, &decision.envelope);
    host.ship(&console, &[&accepted, &decided, &ran]).await;
    let admin = console.sign_in("admin").await;
    admin.valid_log().await;
    // A host that joins now is given the new key.
    let joined = console.host(&admin, "build-8").await;
    assert_eq!(PublicKey::from_der(&joined.reply.decision_public_key).unwrap(), *key);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_key_of_the_log_is_replaced_at_a_start() {
    let mut console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let first = host.lifecycle();
    host.ship(&console, &[&first]).await;
    let before = Trust::parse(&admin.bytes("/api/v1/trust").await).unwrap();
    for round in 1..=2 {
        let id = rotate(&console, &["--log"]);
        let (key, next) = (console.file("log.key"), console.file("log-next.key"));
        let (old, new) = (std::fs::read(&key).unwrap(), std::fs::read(&next).unwrap());
        console.stop().await;
        console = console.start_again().await;
        // It ended after the records and before the file had its name.
        console.stop().await;
        std::fs::write(&key, old).unwrap();
        std::fs::write(&next, &new).unwrap();
        console = console.start_again().await;
        assert_eq!(std::fs::read(&key).unwrap(), new);
        let more = host.lifecycle();
        host.ship(&console, &[&more]).await;
        let mut session = host.open(&console).await.unwrap();
        let ConsoleKind::Welcome(welcome) = session.next().await else {
            panic!("no welcome");
        };
        assert_eq!(welcome.log_key_statements.len(), round);
        let told = PublicKey::from_der(&welcome.log_public_key).unwrap();
        assert_eq!(told.id(), id);
    }
    let admin = console.sign_in("admin").await;
    admin.valid_log().await;
    // By an auditor who has the first key.
    let (dir, _) = admin.export("", Asked::WholeLog).await;
    let bundle = Bundle::open(&dir.path().join("bundle")).unwrap();
    let report = verify(&bundle, &before, TrustSource::Given, Asked::WholeLog);
    assert_eq!(report.status, Status::Valid, "{report:#?}");
}
