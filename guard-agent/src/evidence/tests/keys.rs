//! Replacing the key: what is on disk after each step, and how a start goes on from there.

use super::*;
use guard_evidence::record::{ExactRule, PolicyAction, RuleUses, Statement};

const NEXT: &str = "evidence-next.key";

fn config(state: &Path, ships: bool) -> EvidenceConfig {
    // As the identity is loaded; before the first replacement tests have no file.
    let pem = std::fs::read_to_string(state.join(KEY)).ok();
    EvidenceConfig {
        host_id: HOST.to_owned(),
        key: pem.map_or_else(key, |pem| SigningKey::from_pkcs8_pem(&pem).unwrap()),
        directory: state.to_owned(),
        ships,
        max_bytes: 64 << 20,
    }
}

async fn replace(evidence: &Evidence) -> String {
    evidence.replace_key(Algorithm::P256).await.unwrap()
}

/// `begun 1`, `next ID`, `lost`: what the spool has, in short.
fn told(evidence: &Evidence) -> Vec<String> {
    let word = |statement: &Statement| match &statement.predicate {
        Predicate::Lifecycle(record) => match &record.event {
            Lifecycle::Begun { after, .. } => match after {
                Some(end) => format!("begun {} after {}", record.header.epoch, end.sequence),
                None => format!("begun {}", record.header.epoch),
            },
            Lifecycle::NextKey { key } => format!("next {}", key.id()),
            Lifecycle::Recovered { .. } => "recovered".to_owned(),
            _ => "other".to_owned(),
        },
        _ => panic!("{statement:?}"),
    };
    records(evidence).iter().map(word).collect()
}

fn epoch(state: &Path) -> String {
    std::fs::read_to_string(state.join("epoch")).unwrap()
}

fn current(state: &Path) -> String {
    config(state, false).key.public().id()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_without_a_console_replaces_it_at_once_and_goes_on() {
    let rig = rig();
    let id = replace(&rig.evidence).await;
    wait_for(&rig.evidence, 3);
    rig.evidence.lifecycle(Lifecycle::EventsLost { count: 1 });
    wait_for(&rig.evidence, 4);
    let expected = [
        "begun 1".to_owned(),
        format!("next {id}"),
        "begun 2 after 2".to_owned(),
        "other".to_owned(),
    ];
    assert_eq!(told(&rig.evidence), expected);
    assert_eq!((current(&rig.state), epoch(&rig.state).as_str()), (id, "2\n"));
    assert!(!rig.state.join(NEXT).exists());
    rig.evidence.stop();
    let again = Evidence::start(config(&rig.state, false)).unwrap();
    again.lifecycle(Lifecycle::EventsLost { count: 1 });
    wait_for(&again, 5);
    assert_eq!(told(&again).len(), 5, "no third epoch, no gap");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_new_key_signs_when_the_console_holds_the_record_that_names_it() {
    let rig = rig();
    rig.evidence.stop();
    let evidence = Evidence::start(config(&rig.state, true)).unwrap();
    let id = replace(&evidence).await;
    evidence.lifecycle(Lifecycle::EventsLost { count: 1 });
    wait_for(&evidence, 3);
    assert_eq!(replace(&evidence).await, id, "one at a time");
    assert!(rig.state.join(NEXT).exists());
    evidence.acknowledge(3);
    evidence.lifecycle(Lifecycle::EventsLost { count: 2 });
    wait_for(&evidence, 5);
    assert!(rig.state.join(NEXT).exists(), "named at 4, held up to 3");
    // A crash before the receipt: it is named again.
    evidence.stop();
    let again = Evidence::start(config(&rig.state, true)).unwrap();
    assert_eq!(told(&again).last().unwrap(), &format!("next {id}"));
    again.acknowledge(6);
    wait_for(&again, 7);
    assert_eq!(told(&again).last().unwrap(), "begun 2 after 6");
    assert_eq!(current(&rig.state), id);
}

/// The state as it was before the file of the next key took the old one's place.
fn before_the_last_step(state: &Path) {
    std::fs::rename(state.join(KEY), state.join(NEXT)).unwrap();
    std::fs::write(state.join("epoch"), "1\n").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_step_goes_on() {
    // The next key is on disk, and no record names it.
    let rig = rig();
    rig.evidence.stop();
    let next = SigningKey::from_seed(&[5; 32]);
    std::fs::write(rig.state.join(NEXT), next.to_pkcs8_pem().unwrap().as_bytes()).unwrap();
    let evidence = Evidence::start(config(&rig.state, false)).unwrap();
    evidence.lifecycle(Lifecycle::EventsLost { count: 1 });
    wait_for(&evidence, 4);
    assert_eq!(told(&evidence)[1], format!("next {}", next.public().id()));
    assert_eq!(told(&evidence)[3], "begun 2 after 3");
    assert_eq!(current(&rig.state), next.public().id());

    // Its first record is on disk, and the files are as they were.
    evidence.stop();
    before_the_last_step(&rig.state);
    let evidence = Evidence::start(config(&rig.state, false)).unwrap();
    evidence.lifecycle(Lifecycle::EventsLost { count: 1 });
    wait_for(&evidence, 5);
    assert_eq!(told(&evidence)[3..], ["begun 2 after 3", "other"]);
    assert_eq!(
        (current(&rig.state), epoch(&rig.state).as_str()),
        (next.public().id(), "2\n")
    );

    // Its first record was not whole on disk: the old key goes on, and the epoch begins again.
    let rig = crate::testing::rig();
    let id = replace(&rig.evidence).await;
    wait_for(&rig.evidence, 3);
    rig.evidence.stop();
    before_the_last_step(&rig.state);
    let segment = segment(&rig.state);
    let bytes = std::fs::read(&segment).unwrap();
    std::fs::write(&segment, &bytes[..bytes.len() - 7]).unwrap();
    let evidence = Evidence::start(config(&rig.state, false)).unwrap();
    evidence.lifecycle(Lifecycle::EventsLost { count: 1 });
    wait_for(&evidence, 6);
    let named = format!("next {id}");
    assert_eq!(
        told(&evidence),
        ["begun 1", &named, "recovered", &named, "other", "begun 2 after 5"]
    );
    assert_eq!(current(&rig.state), id);

    // The spool is damaged while a key waits: the old one begins the next epoch, and names it again.
    let rig = crate::testing::rig();
    rig.evidence.stop();
    let evidence = Evidence::start(config(&rig.state, true)).unwrap();
    let id = replace(&evidence).await;
    evidence.stop();
    let segment = super::segment(&rig.state);
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let evidence = Evidence::start(config(&rig.state, true)).unwrap();
    assert_eq!(told(&evidence), ["begun 2".to_owned(), format!("next {id}")]);
    evidence.acknowledge(2);
    wait_for(&evidence, 3);
    assert_eq!(told(&evidence)[2], "begun 3 after 2");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_old_key_signed_is_still_known() {
    let rig = rig();
    let uses = RuleUses {
        rule: ExactRule {
            action: PolicyAction::ExecKey {
                path: None,
                device: 1,
                inode: 2,
                generation: 3,
            },
            rules: vec![],
            policy_digest: String::new(),
        },
        count: 4,
        counter: "c".to_owned(),
        through: 4,
    };
    rig.evidence.lifecycle(Lifecycle::AllowedByRules {
        label: "coder".to_owned(),
        from: String::new(),
        to: String::new(),
        rules: vec![uses],
    });
    replace(&rig.evidence).await;
    wait_for(&rig.evidence, 4);
    rig.evidence.stop();
    let again = Evidence::start(config(&rig.state, false)).unwrap();
    assert_eq!(again.before().counted.get("c"), Some(&4));
    // By a key that leads nowhere nothing is known.
    again.stop();
    let strange = EvidenceConfig {
        key: SigningKey::from_seed(&[77; 32]),
        ..config(&rig.state, false)
    };
    assert!(Evidence::start(strange).unwrap().before().counted.is_empty());
}

#[test]
fn a_key_is_due_when_it_is_old_and_none_waits() {
    let dir = tempfile::tempdir().unwrap();
    let hour = Duration::from_secs(3_600);
    assert!(!is_due(dir.path(), Duration::ZERO), "there is none");
    let file = std::fs::File::create(dir.path().join(KEY)).unwrap();
    assert!(!is_due(dir.path(), hour));
    file.set_modified(std::time::SystemTime::now() - hour).unwrap();
    assert!(is_due(dir.path(), hour));
    file.set_modified(std::time::SystemTime::now() + hour).unwrap();
    assert!(!is_due(dir.path(), hour));
    file.set_modified(std::time::SystemTime::now() - hour).unwrap();
    std::fs::write(dir.path().join(NEXT), "").unwrap();
    assert!(!is_due(dir.path(), hour));
}
