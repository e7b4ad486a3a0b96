//! How often somebody may call: per account, per address, and signing in more strictly.
//!
//! Owns the counts, in memory and bounded. It is given who calls and when. Hosts are never counted here: what they hold waits for
//! their answers.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use parking_lot::Mutex;

use super::throttle::network;
use crate::time::Millis;

const MINUTE_US: i64 = 60_000_000;
/// Who called lately, of one kind.
const MAX_ENTRIES: usize = 50_000;

/// Calls in a minute; all of them may come at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub account: u32,
    pub address: u32,
    /// Attempts to sign in, by address.
    pub sign_in: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            account: 1_200,
            address: 3_000,
            sign_in: 60,
        }
    }
}

/// What is left after a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// In a minute.
    pub limit: u32,
    pub remaining: u32,
    /// Seconds until all of it is there again.
    pub reset: u64,
}

/// The counts of one kind of caller: for each the time at which it has its whole limit again (GCRA).
#[derive(Debug)]
struct Rate<K> {
    limit: u32,
    full_at_us: Mutex<HashMap<K, i64>>,
}

impl<K: Hash + Eq> Rate<K> {
    fn new(limit: u32) -> Self {
        Self {
            limit,
            full_at_us: Mutex::default(),
        }
    }

    /// Counts a call. `Err`: seconds to wait; a call that is refused does not count.
    fn call(&self, key: K, now: Millis) -> Result<Standing, u64> {
        let now_us = now.saturating_mul(1_000);
        let one_us = MINUTE_US / i64::from(self.limit.max(1));
        let mut entries = self.full_at_us.lock();
        if entries.len() >= MAX_ENTRIES {
            entries.retain(|_, full_at| *full_at > now_us);
            if entries.len() >= MAX_ENTRIES && !entries.contains_key(&key) {
                return Err(1);
            }
        }
        let full_at = entries.get(&key).copied().unwrap_or(now_us).max(now_us) + one_us;
        let used_us = full_at - now_us;
        if used_us > MINUTE_US {
            return Err(seconds(used_us - MINUTE_US));
        }
        entries.insert(key, full_at);
        Ok(Standing {
            limit: self.limit,
            remaining: u32::try_from((MINUTE_US - used_us) / one_us).unwrap_or(0),
            reset: seconds(used_us),
        })
    }
}

/// Rounded up, at least one.
fn seconds(us: i64) -> u64 {
    u64::try_from(us).unwrap_or(0).div_ceil(1_000_000).max(1)
}

/// All counts of a console.
#[derive(Debug)]
pub struct Rates {
    accounts: Rate<String>,
    addresses: Rate<IpAddr>,
    sign_ins: Rate<IpAddr>,
}

impl Rates {
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            accounts: Rate::new(limits.account),
            addresses: Rate::new(limits.address),
            sign_ins: Rate::new(limits.sign_in),
        }
    }

    /// A call of this account, by its id. `Err`: seconds to wait.
    pub fn account(&self, user_id: &str, now: Millis) -> Result<Standing, u64> {
        self.accounts.call(user_id.to_owned(), now)
    }

    /// Any call from this address. `Err`: seconds to wait.
    pub fn address(&self, address: IpAddr, now: Millis) -> Result<Standing, u64> {
        self.addresses.call(network(address), now)
    }

    /// An attempt to sign in, right or wrong. `Err`: seconds to wait.
    pub fn sign_in(&self, address: IpAddr, now: Millis) -> Result<Standing, u64> {
        self.sign_ins.call(network(address), now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minutes_worth_at_once_and_then_as_it_comes_back() {
        let rate = Rate::new(60);
        for left in (0..60).rev() {
            assert_eq!(rate.call("ann", 1_000).unwrap().remaining, left);
        }
        assert_eq!(rate.call("ann", 1_000), Err(1));
        assert_eq!(rate.call("bob", 1_000).unwrap().remaining, 59);
        // What was refused did not count.
        let standing = rate.call("ann", 2_000).unwrap();
        assert_eq!((standing.limit, standing.remaining, standing.reset), (60, 0, 60));
        assert_eq!(rate.call("ann", 2_000), Err(1));
        assert_eq!(rate.call("ann", 200_000).unwrap().remaining, 59);
    }

    #[test]
    fn counts_are_bounded() {
        let rate = Rate::new(1);
        for caller in 0..MAX_ENTRIES {
            rate.call(caller, 0).unwrap();
        }
        assert_eq!(rate.call(MAX_ENTRIES, 0), Err(1));
        assert_eq!(rate.call(0, 0), Err(60));
        rate.call(MAX_ENTRIES, 60_000).unwrap();
        assert_eq!(rate.full_at_us.lock().len(), 1);
    }

    #[test]
    fn a_network_is_one_address() {
        let rates = Rates::new(Limits {
            sign_in: 1,
            ..Limits::default()
        });
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        rates.sign_in(address("2001:db8::1"), 0).unwrap();
        rates.sign_in(address("2001:db8::2"), 0).unwrap_err();
        rates.sign_in(address("2001:db8:0:1::1"), 0).unwrap();
        rates.address(address("2001:db8::1"), 0).unwrap();
    }
}
