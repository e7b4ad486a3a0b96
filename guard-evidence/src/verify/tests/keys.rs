//! Keys that are replaced, and what is signed by those that were.

use super::*;
use crate::key::Algorithm;

fn old_key() -> SigningKey {
    SigningKey::from_seed(&[1; 32])
}

fn new_key() -> SigningKey {
    SigningKey::from_seed(&[9; 32])
}

/// One of everything before and after the key was replaced, and the trust file of before.
fn replaced() -> (World, Trust) {
    let mut world = World::full();
    let before = world.trust();
    world.replace_key(new_key());
    let (request, digest) = world.request(|_| {});
    let decision = world.decide(&request, &digest, |_| {}, |_| {});
    world.enforce(&request, &digest, &decision, |_| {});
    (world, before)
}

#[test]
fn a_key_may_name_the_one_that_follows() {
    let (world, before) = replaced();
    for trust in [&before, &world.trust()] {
        let report = world.report_by(trust);
        assert_eq!(report.status, Status::Valid, "{report:#?}");
    }
    // Again, by an auditor who has the first key only.
    let (mut world, before) = replaced();
    world.replace_key(SigningKey::from_seed(&[10; 32]));
    world.by_policy();
    assert_eq!(world.report_by(&before).status, Status::Valid);
}

#[test]
fn a_key_that_was_named_and_has_not_begun_signs_nothing() {
    let mut world = World::full();
    let before = world.trust();
    world.lifecycle(Lifecycle::NextKey {
        key: new_key().public(),
    });
    world.by_policy();
    assert_eq!(world.report_by(&before).status, Status::Valid, "the old key goes on");
    world.host_key = new_key();
    world.by_policy();
    let last = world.log.len() as u64 - 1;
    world.wrong_by(&before, Status::Invalid, "signatures", "which is not one of", last);
}

#[test]
fn an_old_key_ends_where_the_new_one_begins() {
    let (mut world, before) = replaced();
    let ended = world.trust();
    let at = world.log.len() as u64;
    // Whoever stole it goes on where it ended, or in the new epoch, or in one of its own.
    let mut chain = world.chain.clone();
    world.host_key = old_key();
    world.by_policy();
    for trust in [&before, &ended] {
        world.wrong_by(trust, Status::Invalid, "signatures", "did not use in epoch 2", at);
    }
    world.log.pop();
    world.chain = Chain::begin(format!("host:{HOST}"), 3);
    world.by_policy();
    for trust in [&before, &ended] {
        world.wrong_by(trust, Status::Invalid, "signatures", "did not use in epoch 3", at);
    }
    world.log.pop();
    world.chain = Chain::begin(format!("host:{HOST}"), 1);
    world.by_policy();
    for trust in [&before, &ended] {
        world.wrong_by(trust, Status::Invalid, "signatures", "did not use at index", at);
    }
    world.log.pop();
    // What the new key signs still holds.
    std::mem::swap(&mut world.chain, &mut chain);
    world.host_key = new_key();
    world.by_policy();
    assert_eq!(world.report_by(&before).status, Status::Valid);
}

#[test]
fn the_clock_has_no_say_in_it() {
    let (mut world, before) = replaced();
    world.at = "2020-01-01T00:00:00.000Z".to_owned();
    world.host_key = old_key();
    world.by_policy();
    let last = world.log.len() as u64 - 1;
    world.wrong_by(&before, Status::Invalid, "signatures", "did not use in epoch 2", last);
}

#[test]
fn a_key_that_no_other_named_is_not_believed() {
    // The auditor knows it, but nothing in the log leads to it.
    let mut world = World::full();
    let mut trust = world.trust();
    let at = world.log.len() as u64;
    world.begin_with(new_key(), world.chain.end());
    trust.hosts[0]
        .evidence_keys
        .push(RangedKey::from(new_key().public(), 2, at));
    world.wrong_by(
        &trust,
        Status::Incomplete,
        "sequence",
        "which the key before it did not name",
        at,
    );
    // Nobody knows it.
    let mut world = World::full();
    let before = world.trust();
    world.begin_with(new_key(), world.chain.end());
    world.wrong_by(&before, Status::Invalid, "signatures", "which is not trusted", at);
    // The console cannot name a host's key.
    let mut world = World::full();
    world.host_key = SigningKey::from_seed(&[2; 32]);
    world.lifecycle(Lifecycle::NextKey {
        key: new_key().public(),
    });
    world.wrong_by(&before, Status::Invalid, "signatures", "which is not one of", at);
    world.begin_with(new_key(), None);
    world.wrong_by(&before, Status::Invalid, "signatures", "which is not trusted", at + 1);
}

#[test]
fn an_epoch_begins_where_the_one_before_it_ended() {
    // The last records of the old key were taken out of the log, with the one that names the new key kept.
    let mut world = World::full();
    let before = world.trust();
    world.lifecycle(Lifecycle::NextKey {
        key: new_key().public(),
    });
    world.by_policy();
    world.by_policy();
    world.begin_with(new_key(), world.chain.end());
    let (at, cut) = (world.log.len() as u64 - 3, world.log.len() - 2);
    world.log.remove(cut);
    world.log.remove(cut - 1);
    world.wrong_by(
        &before,
        Status::Incomplete,
        "sequence",
        "the last 2 records of epoch 1 are missing",
        at,
    );
    // It names an end that never was.
    for end in [
        ChainEnd {
            epoch: 1,
            sequence: 12,
            digest: "00".repeat(32),
        },
        ChainEnd {
            epoch: 1,
            sequence: 3,
            digest: "00".repeat(32),
        },
    ] {
        let mut world = World::full();
        world.lifecycle(Lifecycle::NextKey {
            key: new_key().public(),
        });
        assert_eq!(world.chain.sequence(), 12);
        world.begin_with(new_key(), Some(end));
        world.wrong_by(
            &before,
            Status::Invalid,
            "sequence",
            "the one that is there is another",
            12,
        );
    }
    let mut world = World::full();
    world.lifecycle(Lifecycle::NextKey {
        key: new_key().public(),
    });
    world.begin_with(new_key(), None);
    world.wrong_by(&before, Status::Incomplete, "sequence", "does not say where", 12);
}

#[test]
fn p256_keys_sign_as_well() {
    let mut world = World::full();
    let before = world.trust();
    world.replace_key(SigningKey::generate_for(Algorithm::P256, &mut rand_core::OsRng));
    let (request, digest) = world.request(|_| {});
    let decision = world.decide(&request, &digest, |_| {}, |_| {});
    world.enforce(&request, &digest, &decision, |_| {});
    assert_eq!(world.report_by(&before).status, Status::Valid);
    let last = world.log.len() - 1;
    let envelope = String::from_utf8(world.log[last].clone()).unwrap();
    let at = envelope.find("\"sig\":\"").unwrap() + 20;
    world.log[last][at] = if world.log[last][at] == b'A' { b'B' } else { b'A' };
    world.wrong_by(
        &before,
        Status::Invalid,
        "signatures",
        "does not match the payload",
        last as u64,
    );
}

impl World {
    /// As a console does it.
    fn replace_console_key(&mut self, key: SigningKey) -> Vec<RangedKey> {
        let next = key.public();
        self.console_says(Lifecycle::NextKey { key: next.clone() });
        let after = self.console_chain.end();
        let old = std::mem::replace(&mut self.console_key, key);
        self.console_chain = self.console_chain.next_epoch();
        let mut before = RangedKey::only(old.public());
        let index = self.log.len() as u64;
        before.end(2, index);
        let why = "the decision key was replaced".to_owned();
        self.console_says(Lifecycle::Begun {
            why,
            key: next.id(),
            after,
        });
        vec![before, RangedKey::from(next, 2, index)]
    }

    fn console_says(&mut self, event: Lifecycle) {
        self.clock += 1;
        let stamp = Stamp {
            at: self.at.clone(),
            since_boot_ns: self.clock,
            boot_id: "c".to_owned(),
        };
        let make = |header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }));
        let sealed = self.console_chain.seal(&self.console_key, stamp, make).unwrap();
        self.log.push(sealed.envelope);
    }

    fn console_head(&self) -> crate::change::ChangesHead {
        let end = self.console_chain.end().unwrap();
        crate::change::ChangesHead {
            epoch: end.epoch,
            sequence: end.sequence,
            digest: end.digest,
        }
    }

    fn approves(&mut self) {
        let head = self.console_head();
        let (request, digest) = self.request(|_| {});
        let decision = self.decide(&request, &digest, |s| s.changes = Some(head), |_| {});
        self.enforce(&request, &digest, &decision, |_| {});
    }
}

#[test]
fn a_console_replaces_its_decision_key() {
    let (mut world, before_it) = World::staffed();
    let before = world.trust();
    world.approves();
    let mut after = before.clone();
    after.console.decision_keys = world.replace_console_key(new_key());
    // An answer that was signed before, received now; and one that is signed again, with what people knew then.
    let old = std::mem::replace(&mut world.console_key, SigningKey::from_seed(&[2; 32]));
    let head = before_it.clone();
    let (request, digest) = world.request(|_| {});
    world.decide(&request, &digest, |s| s.changes = Some(head), |_| {});
    world.console_key = old;
    let (request, digest) = world.request(|_| {});
    world.decide(&request, &digest, |s| s.changes = Some(before_it), |_| {});
    world.lifecycle(Lifecycle::ConsoleKey {
        key: new_key().public(),
    });
    world.approves();
    for trust in [&before, &after] {
        let report = world.report_by(trust);
        assert_eq!(report.status, Status::Valid, "{report:#?}");
    }
}

#[test]
fn an_old_decision_key_decides_nothing() {
    let (mut world, head) = World::staffed();
    let before = world.trust();
    world.replace_console_key(new_key());
    let later = world.console_head();
    world.lifecycle(Lifecycle::ConsoleKey {
        key: new_key().public(),
    });
    world.console_key = SigningKey::from_seed(&[2; 32]);
    for (head, words) in [(head, "ceased to accept"), (later, "ceased to accept")] {
        let (request, digest) = world.request(|_| {});
        world.decide(&request, &digest, |s| s.changes = Some(head), |_| {});
        let last = world.log.len() as u64 - 1;
        world.wrong_by(&before, Status::Invalid, "decisions", words, last);
    }
    // A host that had not heard of it yet: the epoch tells.
    let (mut world, _) = World::staffed();
    world.replace_console_key(new_key());
    let later = world.console_head();
    world.console_key = SigningKey::from_seed(&[2; 32]);
    let (request, digest) = world.request(|_| {});
    world.decide(&request, &digest, |s| s.changes = Some(later), |_| {});
    let last = world.log.len() as u64 - 1;
    world.wrong_by(&before, Status::Invalid, "decisions", "did not use in epoch 2", last);
    // It changes nothing either.
    world.console_says(Lifecycle::EventsLost { count: 1 });
    world.wrong_by(
        &before,
        Status::Invalid,
        "signatures",
        "did not use in epoch 2",
        last + 1,
    );
    // A host accepts a key that is not the console's.
    let (mut world, _) = World::staffed();
    world.lifecycle(Lifecycle::ConsoleKey {
        key: new_key().public(),
    });
    let last = world.log.len() as u64 - 1;
    world.wrong_by(
        &before,
        Status::Invalid,
        "decisions",
        "which is not the console's",
        last,
    );
}

/// As a console does it: the log's key has a chain of its own, which it signs itself.
fn replace_log_key(world: &mut World, key: SigningKey) -> Vec<RangedKey> {
    let mut chain = Chain::begin(format!("log:{CONSOLE}"), 1);
    let say = |world: &mut World, chain: &mut Chain, event: Lifecycle| {
        let stamp = Stamp {
            at: world.at.clone(),
            since_boot_ns: 1,
            boot_id: "c".to_owned(),
        };
        let make = |header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }));
        let sealed = chain.seal(&world.log_key, stamp, make).unwrap();
        world.log.push(sealed.envelope);
    };
    say(world, &mut chain, Lifecycle::NextKey { key: key.public() });
    let after = chain.end();
    let mut chain = chain.next_epoch();
    let old = std::mem::replace(&mut world.log_key, key);
    let index = world.log.len() as u64;
    let (why, key) = ("the log's key was replaced".to_owned(), world.log_key.public());
    let begun = Lifecycle::Begun {
        why,
        key: key.id(),
        after,
    };
    say(world, &mut chain, begun);
    let mut before = RangedKey::only(old.public());
    before.end(2, index);
    vec![before, RangedKey::from(key, 2, index)]
}

#[test]
fn a_console_replaces_the_key_of_its_log() {
    let mut world = World::full();
    let before = world.trust();
    let mut after = before.clone();
    after.console.log_keys = replace_log_key(&mut world, new_key());
    world.by_policy();
    for trust in [&before, &after] {
        let report = world.report_by(trust);
        assert_eq!(report.status, Status::Valid, "{report:#?}");
    }
    // Whoever stole the old one signs a head of this log, or of another.
    let new = std::mem::replace(&mut world.log_key, SigningKey::from_seed(&[3; 32]));
    for trust in [&before, &after] {
        let report = world.report_by(trust);
        assert_eq!(report.status, Status::Invalid, "{report:#?}");
        let words = "which the log did not use for heads of";
        assert!(
            report.sections[2].findings.iter().any(|f| f.text.contains(words)),
            "{report:#?}"
        );
    }
    world.log_key = new;
    // A key that the old one did not name.
    let mut world = World::full();
    world.log_key = new_key();
    let report = world.report_by(&before);
    assert_eq!(report.status, Status::Invalid, "{report:#?}");
}
