//! `guard evidence export` and `verify`.

use std::fs;

use guard_evidence::bundle::{Filter, Writer};
use guard_evidence::chain::{Chain, Stamp};
use guard_evidence::checkpoint::Checkpoint;
use guard_evidence::key::SigningKey;
use guard_evidence::merkle::{Tree, leaf_hash};
use guard_evidence::record::{Lifecycle, LifecycleRecord, Predicate};
use guard_evidence::trust::{ConsoleTrust, HostTrust, RangedKey, Trust};

use crate::console::Console;
use crate::{guard, run};

/// A bundle's tar bytes and its trust file; the log has `n` records, those in `leave_out` never came.
fn bundle(n: u64, leave_out: &[u64]) -> (Vec<u8>, Vec<u8>) {
    let [host, ..] = SEEDS.map(|seed| SigningKey::from_seed(&[seed; 32]));
    let mut chain = Chain::begin("host:H", 1);
    let envelopes: Vec<Vec<u8>> = (1..=n)
        .map(|since_boot_ns| {
            let stamp = Stamp {
                at: "2026-11-21T10:00:00.000Z".to_owned(),
                since_boot_ns,
                boot_id: "b".to_owned(),
            };
            let make = |header| {
                let event = Lifecycle::PolicyLoaded {
                    digest: "x".to_owned(),
                    policies: 1,
                };
                Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }))
            };
            (since_boot_ns, chain.seal(&host, stamp, make).unwrap().envelope)
        })
        .filter(|(n, _)| !leave_out.contains(n))
        .map(|(_, envelope)| envelope)
        .collect();
    bundle_of(&envelopes)
}

/// The seeds of the keys of host, decisions and log.
pub(crate) const SEEDS: [u8; 3] = [1, 2, 3];
pub(crate) const ORIGIN: &str = "guard.example.org/log";

/// The same of a log of these envelopes, of the host `H` and the console.
pub(crate) fn bundle_of(envelopes: &[Vec<u8>]) -> (Vec<u8>, Vec<u8>) {
    let [host, decision, log] = SEEDS.map(|seed| SigningKey::from_seed(&[seed; 32]));
    let tree = Tree::new(envelopes.iter().map(|e| leaf_hash(e)).collect());
    let origin = ORIGIN;
    let note = Checkpoint {
        origin: origin.to_owned(),
        size: tree.size(),
        root: tree.root(),
    }
    .sign(&log)
    .unwrap();
    let console = ConsoleTrust {
        origin: origin.to_owned(),
        decision_keys: vec![RangedKey::only(decision.public())],
        log_keys: vec![RangedKey::only(log.public())],
        witnesses: vec![],
        quorum: 0,
    };
    let hosts = vec![HostTrust {
        id: "H".to_owned(),
        name: "build-7".to_owned(),
        evidence_keys: vec![RangedKey::only(host.public())],
    }];
    let trust = Trust::new(console, hosts).to_json().unwrap();
    let mut writer = Writer::new(
        Vec::new(),
        &trust,
        &note,
        origin,
        Filter::default(),
        "2026-11-21T10:00:00Z",
    )
    .unwrap();
    for (index, envelope) in (0u64..).zip(envelopes) {
        writer.record(index, envelope, tree.inclusion(index).unwrap()).unwrap();
    }
    (writer.finish().unwrap(), trust)
}

#[test]
fn exit_status_says_valid_invalid_or_incomplete() {
    let home = tempfile::tempdir().unwrap();
    let (tar, trust) = bundle(5, &[]);
    let (tar_file, trust_file) = (home.path().join("b.tar"), home.path().join("trust.json"));
    fs::write(&tar_file, &tar).unwrap();
    fs::write(&trust_file, &trust).unwrap();
    let verify = |more: &[&str]| {
        run(&mut guard(
            home.path(),
            &[&["evidence", "verify", tar_file.to_str().unwrap()], more].concat(),
        ))
    };
    let trusted = ["--trust", trust_file.to_str().unwrap()];

    let done = verify(&trusted).expect(0, &["signatures   5 of 5 records, 1 hosts", "checkpoint 5", "VALID"]);
    assert!(!done.out.contains('\u{1b}'));
    verify(&["--trust", home.path().to_str().unwrap()]).expect(0, &[]);
    let json = verify(&[&trusted[..], &["-o", "json"]].concat()).expect(0, &[]).json();
    assert_eq!(json["status"], "valid");
    verify(&[]).expect(
        3,
        &["keys came with the bundle", "no trusted keys were given", "INCOMPLETE"],
    );
    verify(&["--trust", "/nonexistent"]).expect(2, &["/nonexistent"]);

    let mut damaged = tar.clone();
    let at = damaged.windows(10).position(|w| w == b"{\"payload\"").unwrap() + 40;
    damaged[at] ^= 1;
    fs::write(&tar_file, &damaged).unwrap();
    verify(&trusted).expect(1, &["records/000000000.json", "INVALID"]);
    fs::write(&tar_file, &tar[..tar.len() / 2]).unwrap();
    verify(&trusted).expect(1, &["INVALID"]);
    fs::write(&tar_file, "text").unwrap();
    verify(&trusted).expect(1, &["INVALID"]);
    fs::write(&tar_file, bundle(5, &[3]).0).unwrap();
    verify(&trusted).expect(3, &["host H: 1 records missing (epoch 1, seq 3)", "← INCOMPLETE"]);
}

#[test]
fn export_unpacks_whole_or_not_at_all() {
    let console = Console::signed_in();
    let (tar, trust) = bundle(4, &[]);
    {
        let mut world = console.world.lock().unwrap();
        world.bundle = tar.clone();
        world.trust = trust;
    }
    let dir = console.home.path().join("out");
    let path = dir.to_str().unwrap();
    console
        .guard(&["evidence", "export", path])
        .expect(0, &["4 records in", "guard evidence verify"]);
    let trust = console.guard(&["evidence", "trust"]).expect(0, &[]).out;
    let trust_file = console.home.path().join("trust.json");
    fs::write(&trust_file, trust).unwrap();
    console
        .guard(&["evidence", "verify", path, "--trust", trust_file.to_str().unwrap()])
        .expect(0, &["VALID", "files        13 of 13"]);
    let events = fs::read_to_string(dir.join("ocsf.ndjson")).unwrap();
    assert_eq!(events.lines().count(), 4);
    let page = fs::read_to_string(dir.join("report.html")).unwrap();
    assert!(page.contains("as the console vouched for them when the bundle was exported"));
    // Made again without trusting whoever made the bundle, they are the same.
    let again = console.home.path().join("again.ndjson");
    console
        .guard(&[
            "evidence",
            "verify",
            path,
            "--trust",
            trust_file.to_str().unwrap(),
            "--ocsf",
            again.to_str().unwrap(),
        ])
        .expect(0, &["VALID"]);
    assert_eq!(fs::read_to_string(&again).unwrap(), events);
    fs::write(dir.join("ocsf.ndjson"), events.replacen("build-7", "build-8", 1)).unwrap();
    console
        .guard(&["evidence", "verify", path, "--trust", trust_file.to_str().unwrap()])
        .expect(1, &["ocsf.ndjson has changed since the bundle was made"]);
    console
        .guard(&["evidence", "export", path])
        .expect(2, &["is not empty"]);

    console.world.lock().unwrap().bundle = tar[..tar.len() / 2].to_vec();
    let other = console.home.path().join("other");
    console
        .guard(&["evidence", "export", "--out", other.to_str().unwrap()])
        .expect(3, &["the bundle that"]);
    assert!(!other.exists());
    let left: Vec<String> = fs::read_dir(console.home.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(!left.iter().any(|name| name.starts_with(".guard-bundle")), "{left:?}");
    console
        .guard(&["evidence", "export", other.to_str().unwrap(), "--from", "someday"])
        .expect(2, &["not a time"]);
}
