//! The console's keys over time: that of its decisions, and that of its log.
//!
//! Owns what this host believes of them. It is given envelopes by whoever answers as the console. It must never believe a key
//! that the one before it, from the one pinned at enrolment on, did not name.

use guard_evidence::dsse;
use guard_evidence::key::PublicKey;
use guard_evidence::record::{Lifecycle, Predicate, Statement};

/// The signer's key that follows from the one that is known; that one itself if nothing leads on.
pub(super) fn follow(known: &PublicKey, signer: &str, statements: &[Vec<u8>]) -> PublicKey {
    let mut key = known.clone();
    for envelope in statements {
        // Those of keys before ours are none of our business.
        if let Some(next) = named(envelope, &key, signer) {
            key = next;
        }
    }
    key
}

fn named(envelope: &[u8], key: &PublicKey, signer: &str) -> Option<PublicKey> {
    let verified = dsse::parse(envelope).ok()?.verify(key).ok()?;
    let statement = Statement::from_payload(&verified.payload).ok()?;
    match statement.predicate {
        Predicate::Lifecycle(record) if record.header.signer == signer => match record.event {
            Lifecycle::NextKey { key } => Some(key),
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_evidence::chain::{Chain, Stamp};
    use guard_evidence::key::SigningKey;
    use guard_evidence::record::LifecycleRecord;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_seed(&[n; 32])
    }

    fn says(by: u8, signer: &str, event: Lifecycle) -> Vec<u8> {
        let stamp = Stamp {
            at: String::new(),
            since_boot_ns: 0,
            boot_id: String::new(),
        };
        let make = |header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }));
        Chain::begin(signer, 1).seal(&key(by), stamp, make).unwrap().envelope
    }

    fn names(by: u8, next: u8) -> Vec<u8> {
        let key = key(next).public();
        says(by, "console:o", Lifecycle::NextKey { key })
    }

    #[test]
    fn each_key_is_believed_because_of_the_one_before_it() {
        let chain = [names(1, 2), names(2, 3), names(3, 4)];
        for known in 1..=4 {
            assert_eq!(follow(&key(known).public(), "console:o", &chain), key(4).public());
        }
        assert_eq!(
            follow(&key(9).public(), "console:o", &chain),
            key(9).public(),
            "nothing leads on"
        );
        assert_eq!(follow(&key(1).public(), "console:o", &[]), key(1).public());
    }

    #[test]
    fn nobody_else_names_a_key() {
        let known = key(1).public();
        let next = Lifecycle::NextKey { key: key(2).public() };
        let mut damaged = names(1, 2);
        damaged[30] ^= 1;
        for statement in [
            names(2, 3),
            damaged,
            b"{}".to_vec(),
            says(1, "console:other", next.clone()),
            says(1, "host:o", next),
            says(1, "console:o", Lifecycle::ConsoleKey { key: key(2).public() }),
        ] {
            assert_eq!(follow(&known, "console:o", &[statement]), known);
        }
    }
}
