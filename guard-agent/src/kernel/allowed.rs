//! What one label is allowed of what all others are refused, by name.
//!
//! Owns the names; given the kernel side's bits. It must never know a name that stands for more than it says.

use guard_common::protect::{allow_bit, kind};

/// As in `[[label]] allow`.
const NAMES: [(&str, u32); 15] = [
    ("mount", kind::MOUNT),
    ("namespaces", kind::NAMESPACE),
    ("setuid", kind::GAIN),
    ("chroot", kind::CHROOT),
    ("modules", kind::MODULE),
    ("machine", kind::MACHINE),
    ("network", kind::NETWORK),
    ("devices", kind::DEVICE_NODE),
    ("perf", kind::PERF),
    ("keys", kind::KEYS),
    ("io_uring", kind::URING),
    ("userfaultfd", kind::FAULTS),
    ("tunables", kind::TUNABLE),
    ("signals", kind::SIGNAL_OUT),
    ("schedule", kind::LATER),
];

/// A set of them; of nothing, unless the configuration says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Allowed(u32);

impl Allowed {
    /// Adds what is called so; false if nothing is.
    pub fn add(&mut self, name: &str) -> bool {
        match NAMES.iter().find(|(known, _)| *known == name) {
            Some((_, kind)) => {
                self.0 |= allow_bit(*kind);
                true
            }
            None => false,
        }
    }

    /// The names of what is in it.
    #[must_use]
    pub fn names(self) -> Vec<&'static str> {
        let inside = NAMES.iter().filter(|(_, kind)| self.0 & allow_bit(*kind) != 0);
        inside.map(|(name, _)| *name).collect()
    }

    /// Every name, for people.
    #[must_use]
    pub fn all_names() -> String {
        NAMES.map(|(name, _)| name).join(", ")
    }

    pub(super) const fn raw(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_a_bit_of_its_own_and_is_given_back() {
        let mut all = Allowed::default();
        for (name, kind) in NAMES {
            assert_eq!(allow_bit(kind).count_ones(), 1, "{name}");
            let before = all;
            assert!(all.add(name));
            assert_ne!(all, before, "{name} says what another one says");
        }
        assert_eq!(all.names(), NAMES.map(|(name, _)| name));
        assert!(!all.add("ptrace"));
        assert!(!all.add(""));
        assert!(Allowed::default().names().is_empty());
    }

    #[test]
    fn what_no_decision_opens_is_no_bit() {
        for kind in (0..kind::MOUNT).chain(kind::STRAY..64) {
            assert_eq!(allow_bit(kind), 0);
        }
    }
}
