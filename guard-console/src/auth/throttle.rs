//! The brake on guessing passwords: failures per user and address, and per address.
//!
//! Owns the counts, in memory and bounded. Somebody who guesses from elsewhere cannot lock a person out: only the
//! pair of name and address is locked, and an address that tries many names.

use std::collections::HashMap;
use std::net::IpAddr;

use parking_lot::Mutex;

use crate::time::Millis;

/// Failures of one name from one address before it has to wait.
const FREE_PER_PAIR: u32 = 5;
/// Failures from one address, whatever the name.
const FREE_PER_ADDRESS: u32 = 30;
const FIRST_LOCK_MS: Millis = 15_000;
const LONGEST_LOCK_MS: Millis = 15 * 60_000;
/// A count is forgotten this long after the last failure.
const FORGET_MS: Millis = 60 * 60_000;
const MAX_ENTRIES: usize = 20_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Pair(String, IpAddr),
    Address(IpAddr),
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    last: Millis,
    locked_until: Millis,
}

#[derive(Debug, Default)]
pub struct Throttle {
    failures: Mutex<HashMap<Key, Failures>>,
}

/// One IPv6 customer has at least a /64.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

impl Throttle {
    /// Counts an attempt before it is made, so that parallel attempts count too. `Err`: seconds to wait.
    pub fn attempt(&self, username: &str, address: IpAddr, now: Millis) -> Result<(), u64> {
        let address = network(address);
        let keys = [
            (Key::Pair(username.to_owned(), address), FREE_PER_PAIR),
            (Key::Address(address), FREE_PER_ADDRESS),
        ];
        let mut failures = self.failures.lock();
        if failures.len() >= MAX_ENTRIES {
            failures.retain(|_, f| now - f.last < FORGET_MS);
            if failures.len() >= MAX_ENTRIES {
                // An attack from very many addresses; fail closed for names that are new to us.
                return Err(60);
            }
        }
        for (key, _) in &keys {
            if let Some(f) = failures.get(key)
                && f.locked_until > now
            {
                return Err(u64::try_from((f.locked_until - now) / 1_000).unwrap_or(0) + 1);
            }
        }
        for (key, free) in keys {
            let f = failures.entry(key).or_insert(Failures {
                count: 0,
                last: now,
                locked_until: 0,
            });
            if now - f.last >= FORGET_MS {
                f.count = 0;
            }
            f.count = f.count.saturating_add(1);
            f.last = now;
            if f.count >= free {
                let doublings = (f.count - free).min(10);
                f.locked_until = now + (FIRST_LOCK_MS << doublings).min(LONGEST_LOCK_MS);
            }
        }
        Ok(())
    }

    /// The attempt was right: the pair starts afresh, and the address gets its attempt back.
    pub fn succeeded(&self, username: &str, address: IpAddr) {
        let address = network(address);
        let mut failures = self.failures.lock();
        failures.remove(&Key::Pair(username.to_owned(), address));
        if let Some(f) = failures.get_mut(&Key::Address(address)) {
            f.count = f.count.saturating_sub(1);
            if f.count < FREE_PER_ADDRESS {
                f.locked_until = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pair_is_locked_and_let_go() {
        let throttle = Throttle::default();
        let (here, there) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        for _ in 0..FREE_PER_PAIR {
            throttle.attempt("alice", here, 0).unwrap();
        }
        assert_eq!(throttle.attempt("alice", here, 0).unwrap_err(), 16);
        throttle.attempt("alice", there, 0).unwrap();
        throttle.attempt("bob", here, 0).unwrap();
        throttle.attempt("alice", here, FIRST_LOCK_MS).unwrap();
        assert_eq!(throttle.attempt("alice", here, FIRST_LOCK_MS).unwrap_err(), 31);
        throttle.succeeded("alice", here);
        throttle.attempt("alice", here, FIRST_LOCK_MS).unwrap();
    }

    #[test]
    fn an_address_that_tries_many_names_is_locked() {
        let throttle = Throttle::default();
        for n in 0..FREE_PER_ADDRESS {
            let address = format!("2001:db8::{n:x}").parse().unwrap();
            throttle.attempt(&format!("user{n}"), address, 0).unwrap();
        }
        assert!(
            throttle
                .attempt("another", "2001:db8::ffff".parse().unwrap(), 0)
                .is_err()
        );
        throttle
            .attempt("another", "2001:db8:0:1::1".parse().unwrap(), 0)
            .unwrap();
    }
}
