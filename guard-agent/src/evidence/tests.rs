use super::*;
use crate::testing::{HOST, key, records, rig};
use std::path::Path;
use std::time::Duration;

mod keys;

fn start(state: &Path) -> Evidence {
    Evidence::start(EvidenceConfig {
        host_id: HOST.to_owned(),
        key: key(),
        directory: state.to_owned(),
        ships: false,
        max_bytes: 64 << 20,
    })
    .unwrap()
}

fn wait_for(evidence: &Evidence, count: u64) {
    for _ in 0..6_000 {
        if *evidence.durable().borrow() >= count {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{} of {count} records are durable", *evidence.durable().borrow());
}

/// The spool's only one.
fn segment(state: &Path) -> PathBuf {
    std::fs::read_dir(state.join("spool"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| std::fs::read(path).unwrap().starts_with(b"GUARDSP1"))
        .unwrap()
}

#[test]
fn the_first_record_begins_the_epoch() {
    let rig = rig();
    let all = records(&rig.evidence);
    assert!(matches!(&all[0].predicate, Predicate::Lifecycle(r) if matches!(r.event, Lifecycle::Begun { .. })));
    assert_eq!(all[0].header().unwrap().signer, format!("host:{HOST}"));
}

#[test]
fn groups_are_durable_soon_and_the_chain_goes_on_after_a_restart() {
    let rig = rig();
    for count in 0..500 {
        rig.evidence.lifecycle(Lifecycle::EventsLost { count });
    }
    wait_for(&rig.evidence, 501);
    rig.evidence.stop();
    let again = start(&rig.state);
    again.lifecycle(Lifecycle::EventsLost { count: 500 });
    wait_for(&again, 502);
    let all = records(&again);
    assert_eq!(all.len(), 502, "no second epoch, no gap");
    assert!(all.iter().all(|record| record.header().unwrap().epoch == 1));
}

#[test]
fn done_comes_when_it_is_durable() {
    let rig = rig();
    let (send, receive) = mpsc::channel();
    let durable = rig.evidence.durable();
    let record = Predicate::Lifecycle(Box::new(LifecycleRecord {
        header: unsealed(),
        event: Lifecycle::EventsLost { count: 7 },
    }));
    rig.evidence
        .write_then(rig.evidence.reserve().unwrap(), record, move |sealed| {
            send.send((*durable.borrow(), sealed)).unwrap();
        });
    let (position, sealed) = receive.recv_timeout(Duration::from_secs(5)).unwrap();
    assert_eq!((position, sealed.header.sequence), (2, 2));
}

#[test]
fn a_second_agent_is_refused() {
    let rig = rig();
    let error = Evidence::start(EvidenceConfig {
        host_id: HOST.to_owned(),
        key: key(),
        directory: rig.state.clone(),
        ships: false,
        max_bytes: 64 << 20,
    })
    .unwrap_err();
    assert!(matches!(error, EvidenceError::Locked(_)), "{error}");
}

#[test]
fn a_damaged_spool_is_set_aside_and_said() {
    let rig = rig();
    for count in 0..10 {
        rig.evidence.lifecycle(Lifecycle::EventsLost { count });
    }
    wait_for(&rig.evidence, 11);
    rig.evidence.stop();
    let segment = segment(&rig.state);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let again = start(&rig.state);
    let all = records(&again);
    assert_eq!(all[0].header().unwrap().epoch, 2);
    assert!(
        matches!(&all[0].predicate, Predicate::Lifecycle(r) if matches!(&r.event, Lifecycle::Begun { why, .. } if why.contains("damaged")))
    );
}

#[test]
fn a_full_queue_gives_no_places() {
    let rig = rig();
    let slots: Vec<Slot> = std::iter::from_fn(|| rig.evidence.reserve()).take(QUEUE + 10).collect();
    assert!(slots.len() <= QUEUE && slots.len() > QUEUE - 10, "{}", slots.len());
    rig.evidence.count_unrecorded();
    drop(slots);
    assert!(rig.evidence.reserve().is_some());
    rig.evidence.lifecycle(Lifecycle::EventsLost { count: 0 });
    wait_for(&rig.evidence, 3);
    assert!(
        records(&rig.evidence)
            .iter()
            .any(|s| matches!(&s.predicate, Predicate::Lifecycle(r) if r.event == Lifecycle::EventsLost { count: 1 })),
        "what could not be recorded is counted"
    );
}

#[test]
fn a_full_disk_denies_and_recovers() {
    let rig = rig();
    // The spool's limit stands for the disk's.
    let dir = tempfile::tempdir().unwrap();
    let evidence = Evidence::start(EvidenceConfig {
        host_id: HOST.to_owned(),
        key: key(),
        directory: dir.path().to_owned(),
        ships: false,
        max_bytes: 40_000,
    })
    .unwrap();
    for _ in 0..6_000 {
        evidence.lifecycle(Lifecycle::EnforcementOff {
            why: "x".repeat(500),
            last_on: None,
        });
    }
    for _ in 0..6_000 {
        if evidence.reserve().is_none() {
            break;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(evidence.reserve().is_none(), "no place while the spool is full");
    drop(rig);
}
