//! The log: published as tiles, proved to hosts, signed by witnesses, and never another one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use guard_console::config::{RawLog, WitnessConfig};
use guard_evidence::checkpoint::{self, Checkpoint, Note};
use guard_evidence::cosign::{KeyKind, VerifierKey};
use guard_evidence::key::{PublicKey, SigningKey};
use guard_evidence::merkle::{Hash, Tree, leaf_hash, verify_consistency, verify_inclusion};
use guard_evidence::tile;
use guard_evidence::witness::Witness;
use guard_proto::v1::RecordsStored;

use crate::support::{Console, Host, batch};

/// The head of an answer, signed by the log that the host pinned.
fn head(host: &Host, answer: &RecordsStored) -> Checkpoint {
    let key = PublicKey::from_der(&host.reply.log_public_key).unwrap();
    checkpoint::verify(&answer.checkpoint, &host.reply.log_origin, &[key]).unwrap()
}

fn hashes(bytes: &[Vec<u8>]) -> Vec<Hash> {
    bytes.iter().map(|hash| hash.as_slice().try_into().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_record_gets_a_receipt_and_every_head_continues_the_last() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let mut known: Option<Checkpoint> = None;
    for round in 0..3 {
        let records = [host.lifecycle(), host.lifecycle(), host.lifecycle()];
        let mut one = batch(&[&records[0], &records[1]]);
        one.known_size = known.as_ref().map_or(0, |known| known.size);
        let answers = host.receipts(&console, vec![one, batch(&[&records[2]])]).await.unwrap();
        let mut left = &records[..];
        for answer in &answers {
            let head = head(&host, answer);
            assert_eq!(answer.old_size, known.as_ref().map_or(0, |known| known.size));
            if let Some(known) = &known {
                let proof = hashes(&answer.consistency);
                verify_consistency(known.size, head.size, &known.root, &head.root, &proof).unwrap();
            }
            for receipt in &answer.receipts {
                assert_eq!(receipt.sequence, left[0].header.sequence);
                let leaf = leaf_hash(&left[0].envelope);
                verify_inclusion(&leaf, receipt.index, head.size, &hashes(&receipt.hashes), &head.root).unwrap();
                left = &left[1..];
            }
            known = Some(head);
        }
        assert!(left.is_empty(), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tiles_and_checkpoint_are_served_and_envelopes_only_to_those_who_may_see_them() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let records: Vec<_> = (0..300).map(|_| host.lifecycle()).collect();
    let answers = host
        .receipts(&console, vec![batch(&records.iter().collect::<Vec<_>>())])
        .await
        .unwrap();
    let size = head(&host, &answers[0]).size;
    let nobody = console.nobody();
    let get = async |person: &crate::support::Person, path: &str| {
        let answer = person.request("GET", path).send().await.unwrap();
        let cache = answer.headers()["cache-control"].to_str().unwrap().to_owned();
        (answer.status().as_u16(), cache, answer.bytes().await.unwrap())
    };
    let (status, cache, note) = get(&nobody, "/log/checkpoint").await;
    assert_eq!((status, cache.as_str()), (200, "no-cache"));
    let published = head(
        &host,
        &RecordsStored {
            checkpoint: note.to_vec(),
            ..RecordsStored::default()
        },
    );
    assert!(published.size >= size);
    let width = size - 256;
    let mut leaves = Vec::new();
    for (path, entries) in [
        ("/log/tile/0/000".to_owned(), "/log/tile/entries/000".to_owned()),
        (
            format!("/log/tile/0/001.p/{width}"),
            format!("/log/tile/entries/001.p/{width}"),
        ),
    ] {
        let (status, cache, bytes) = get(&nobody, &path).await;
        assert_eq!((status, cache.as_str()), (200, "public, max-age=31536000, immutable"));
        let (found, rest) = bytes.as_chunks::<32>();
        assert!(rest.is_empty());
        leaves.extend_from_slice(found);
        assert_eq!(get(&nobody, &entries).await.0, 401);
    }
    let auditor = console.user(&admin, "audra", &["auditor"], &[]).await;
    let (status, cache, bundle) = get(&auditor, &format!("/log/tile/entries/001.p/{width}")).await;
    assert_eq!((status, cache.as_str()), (200, "private, max-age=31536000, immutable"));
    let entries = tile::entries(&bundle).unwrap();
    assert_eq!(*entries.last().unwrap(), records[299].envelope);
    assert_eq!(Tree::new(leaves).root(), head(&host, &answers[0]).root);
    for path in [
        "/log/tile/0/002",
        "/log/tile/0/001.p/0",
        "/log/tile/0/0",
        "/log/tile/9/000",
        "/log/tile/0/001",
        "/log/lock",
        "/log/tile/0/..%2F..%2Fcheckpoint",
    ] {
        assert_eq!(get(&auditor, path).await.0, 404, "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_after_restarts_and_without_its_tiles_and_refuses_another_database() {
    let mut console = Console::start().await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let grow = async |console: &Console, host: &mut Host, known: Option<&Checkpoint>| {
        let record = host.lifecycle();
        let mut batch = batch(&[&record]);
        batch.known_size = known.map_or(0, |known| known.size);
        let answer = host.receipts(console, vec![batch]).await.unwrap().remove(0);
        let head = head(host, &answer);
        if let Some(known) = known {
            let proof = hashes(&answer.consistency);
            verify_consistency(known.size, head.size, &known.root, &head.root, &proof).unwrap();
        }
        head
    };
    let first = grow(&console, &mut host, None).await;
    console.stop().await;
    let old = std::fs::read(console.file("console.db")).unwrap();
    let mut console = console.start_again().await;
    let second = grow(&console, &mut host, Some(&first)).await;
    // A database from before there were tiles, or a folder that lost them.
    console.stop().await;
    std::fs::remove_dir_all(console.file("log/tile")).unwrap();
    let mut console = console.start_again().await;
    let third = grow(&console, &mut host, Some(&second)).await;
    console.stop().await;
    std::fs::remove_dir_all(console.file("log")).unwrap();
    let mut console = console.start_again().await;
    let fourth = grow(&console, &mut host, Some(&third)).await;
    assert!(fourth.size > third.size);
    // Rolled back while the published log is there: it does not start.
    console.stop().await;
    let new = std::fs::read(console.file("console.db")).unwrap();
    std::fs::write(console.file("console.db"), &old).unwrap();
    let error = console.cannot_start().await;
    assert!(
        error.contains("the database is older than the published log"),
        "{error}"
    );
    std::fs::write(console.file("console.db"), &new).unwrap();
    let mut console = console.start_again().await;
    let fifth = grow(&console, &mut host, Some(&fourth)).await;
    // Both rolled back: the host holds a newer head and gets one that contradicts it, and people an alarm. Its records do
    // not follow those that this database has.
    console.stop().await;
    std::fs::write(console.file("console.db"), &old).unwrap();
    std::fs::remove_dir_all(console.file("log")).unwrap();
    let console = console.start_again().await;
    let record = host.lifecycle();
    let mut late = batch(&[&record]);
    late.known_size = fifth.size;
    let mut client = host.evidence(&console).await;
    let mut answers = client.append(tokio_stream::iter([late])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    assert!(head(&host, &answer).size < fifth.size);
    assert!(answer.receipts.is_empty() && answer.consistency.is_empty());
    let refused = answers.message().await.unwrap_err();
    assert!(refused.message().contains("are missing"), "{refused}");
    let admin = console.sign_in("admin").await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (_, alarms) = ann.get("/api/v1/alarms").await;
    assert!(alarms.to_string().contains("log-rolled-back"), "{alarms}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_head_counts_when_its_witnesses_have_signed_it() {
    let key = SigningKey::from_seed(&[5; 32]);
    let verifier = VerifierKey {
        name: "w.example.org".to_owned(),
        kind: KeyKind::Witness,
        key: key.public(),
    };
    let tcp = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", tcp.local_addr().unwrap());
    let console = Console::start_with(RawLog {
        witness: vec![WitnessConfig {
            key: verifier.clone(),
            url,
            ca: None,
        }],
        quorum: None,
    })
    .await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let record = host.lifecycle();
    let mut waiting = Box::pin(host.receipts(&console, vec![batch(&[&record])]));
    let early = tokio::time::timeout(Duration::from_secs(2), &mut waiting).await;
    assert!(early.is_err(), "no receipt before its witness has signed");
    assert_eq!(console.nobody().get("/log/checkpoint").await.0, 404);
    // The witness comes up.
    let memory = tempfile::tempdir().unwrap();
    let log_key = PublicKey::from_der(&host.reply.log_public_key).unwrap();
    let logs = BTreeMap::from([(host.reply.log_origin.clone(), vec![log_key])]);
    let witness = Arc::new(Witness::new(memory.path(), "w.example.org", key, logs));
    let add = async |State(witness): State<Arc<Witness>>, body: axum::body::Bytes| match witness
        .add_checkpoint(&body, 1_800_000_000)
    {
        Ok(line) => (axum::http::StatusCode::OK, line),
        Err(refusal) => {
            let text = match refusal {
                guard_evidence::witness::Refusal::Conflict { known } => format!("{known}\n"),
                ref other => other.to_string(),
            };
            (axum::http::StatusCode::from_u16(refusal.status()).unwrap(), text)
        }
    };
    let router = axum::Router::new()
        .route("/add-checkpoint", axum::routing::post(add))
        .with_state(witness);
    tokio::spawn(async move { axum::serve(tcp, router).await });
    let answers = tokio::time::timeout(Duration::from_secs(90), waiting)
        .await
        .unwrap()
        .unwrap();
    let cosigned = |answer: &RecordsStored| verifier.cosigned(&Note::parse(&answer.checkpoint).unwrap());
    assert_eq!(cosigned(&answers[0]), Some(1_800_000_000));
    // A console that has forgotten what the witness knows asks again.
    let console = console.restart().await;
    let record = host.lifecycle();
    let answers = host.receipts(&console, vec![batch(&[&record])]).await.unwrap();
    assert!(cosigned(&answers[0]).is_some());
}
