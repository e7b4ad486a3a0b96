//! Witnesses of a bundle's checkpoint, checkpoints that an auditor kept, and logs that hosts refused.

use super::*;
use crate::cosign::{KeyKind, VerifierKey};

fn judge(world: &World, trust: &Trust, since: Option<&[u8]>, want: impl Fn(u64) -> bool) -> Report {
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&world.write(dir.path(), Filter::default(), want)).unwrap();
    verify_since(&bundle, trust, TrustSource::Given, Asked::WholeLog, since)
}

fn has(report: &Report, level: Level, words: &str) -> bool {
    let findings = report.sections.iter().flat_map(|section| &section.findings);
    findings.into_iter().any(|f| f.level == level && f.text.contains(words))
}

/// The signed head of the first records.
fn head(world: &World, size: usize) -> String {
    let tree = Tree::new(world.log[..size].iter().map(|e| leaf_hash(e)).collect());
    let checkpoint = Checkpoint {
        origin: CONSOLE.to_owned(),
        size: tree.size(),
        root: tree.root(),
    };
    checkpoint.sign(&world.log_key).unwrap()
}

#[test]
fn the_quorum_is_the_auditors() {
    let mut world = World::full();
    let (one, two) = (SigningKey::from_seed(&[11; 32]), SigningKey::from_seed(&[12; 32]));
    let mut trust = world.trust();
    for (name, key) in [("one", &one), ("two", &two)] {
        trust.console.witnesses.push(VerifierKey {
            name: name.to_owned(),
            kind: KeyKind::Witness,
            key: key.public(),
        });
    }
    trust.console.quorum = 2;
    assert_eq!(Trust::parse(&trust.to_json().unwrap()).unwrap(), trust);
    // Somebody else's cosignature, and one witness under two names, are not two witnesses.
    world.witnesses = vec![("one", one), ("two", SigningKey::from_seed(&[13; 32]))];
    let report = judge(&world, &trust, None, |_| true);
    assert_eq!(report.status, Status::Invalid);
    assert!(
        has(&report, Level::Invalid, "1 of the trusted witnesses"),
        "{report:#?}"
    );
    world.witnesses.push(("two", two));
    let report = judge(&world, &trust, None, |_| true);
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    assert!(has(&report, Level::Note, "2 witnesses have cosigned"), "{report:#?}");
}

#[test]
fn a_checkpoint_that_was_kept_shows_roll_back_and_fork() {
    let world = World::full();
    let trust = world.trust();
    let kept = head(&world, 5);
    let report = judge(&world, &trust, Some(kept.as_bytes()), |_| true);
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    assert!(has(&report, Level::Note, "continues the checkpoint"), "{report:#?}");
    let report = judge(&world, &trust, Some(kept.as_bytes()), |index| index != 3);
    assert!(has(&report, Level::Incomplete, "cannot be told"), "{report:#?}");
    // The log with its newest records gone, validly signed by the console's own key.
    let mut longer = World::full();
    longer.by_policy();
    let late = head(&longer, longer.log.len());
    let report = judge(&world, &trust, Some(late.as_bytes()), |_| true);
    assert!(has(&report, Level::Invalid, "rolled back"), "{report:#?}");
    // Another history of the same keys.
    let mut other = World::new();
    other.by_policy();
    for _ in 0..4 {
        other.lifecycle(Lifecycle::EventsLost { count: 1 });
    }
    let report = judge(&world, &trust, Some(head(&other, 5).as_bytes()), |_| true);
    assert!(has(&report, Level::Invalid, "forked"), "{report:#?}");
    let strange = head(&other, 5).replacen(CONSOLE, "other.example.org/guard", 2);
    let report = judge(&world, &trust, Some(strange.as_bytes()), |_| true);
    assert!(has(&report, Level::Invalid, "that was kept"), "{report:#?}");
}

#[test]
fn a_log_that_a_host_refused_is_named_and_two_heads_of_one_size_prove_it() {
    let mut other = World::new();
    other.by_policy();
    let refused = |known: String, offered: String| {
        let mut world = World::full();
        world.lifecycle(Lifecycle::LogRefused {
            because: "the log was forked".to_owned(),
            known,
            offered,
        });
        judge(&world, &world.trust(), None, |_| true)
    };
    let world = World::full();
    let report = refused(head(&world, 2), head(&other, 2));
    assert_eq!(report.status, Status::Invalid);
    assert!(
        has(&report, Level::Invalid, "the console's log was refused"),
        "{report:#?}"
    );
    // A host's word alone, or heads that may be of one log, prove nothing.
    for (known, offered) in [
        (head(&world, 2), head(&other, 1)),
        (head(&world, 2), head(&other, 2).replacen('2', "3", 1)),
        (String::new(), "x".to_owned()),
    ] {
        let report = refused(known, offered);
        assert_eq!(report.status, Status::Incomplete, "{report:#?}");
        assert!(
            has(&report, Level::Incomplete, "the console's log was refused"),
            "{report:#?}"
        );
    }
}
