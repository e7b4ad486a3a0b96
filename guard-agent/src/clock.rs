//! The clocks of records.
//!
//! Owns reading wall clock, time since boot and the boot's id. It is given nothing. It must never be used to decide
//! whether a time-out has passed: that is the monotonic clock's.

use std::time::Duration;

use guard_evidence::chain::Stamp;
use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// RFC 3339 in UTC with milliseconds.
#[must_use]
pub fn rfc3339(time: Timestamp) -> String {
    format!("{time:.3}")
}

/// Nanoseconds since boot, suspended time included.
#[must_use]
pub fn since_boot_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let time = Duration::from(time);
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Nanoseconds since boot, suspended time left out: the kernel side's clock.
#[must_use]
pub fn monotonic_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        let time = Duration::from(time);
        u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
    })
}

/// Unix time in milliseconds.
#[must_use]
pub fn unix_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// The kernel's id of this boot.
#[must_use]
pub fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Stamps for records, with the boot's id read once.
#[derive(Debug, Clone)]
pub struct Stamper {
    boot_id: String,
}

impl Stamper {
    #[must_use]
    pub fn new() -> Self {
        Self { boot_id: boot_id() }
    }

    /// Now.
    #[must_use]
    pub fn now(&self) -> Stamp {
        Stamp {
            at: rfc3339(Timestamp::now()),
            since_boot_ns: since_boot_ns(),
            boot_id: self.boot_id.clone(),
        }
    }
}

impl Default for Stamper {
    fn default() -> Self {
        Self::new()
    }
}
