//! Whose keys may sign which records: by epoch and by index of the log, never by a clock.
//!
//! Owns the windows of keys: those of the trust file, and those that the log itself opens, when a key names the one that
//! follows it and that one begins an epoch. It is given records in log order. It must never admit a key beyond the end
//! that the trust file or the log gives it: whoever stole it later could write the past anew.

use std::collections::HashMap;

use super::{Header, Statement};
use crate::key::PublicKey;
use crate::record::{Lifecycle, Predicate};
use crate::text::visible;
use crate::trust::{RangedKey, Trust};

/// One signer's keys.
#[derive(Default)]
struct Signer {
    keys: Vec<(String, RangedKey)>,
    /// Named by a key in force, and not in force itself.
    next: Option<(String, PublicKey)>,
}

/// Everybody's keys, as far as the log was read.
pub(super) struct Keys {
    /// `host:…`, `console:…` and `log:…`.
    signers: HashMap<String, Signer>,
}

impl Keys {
    pub(super) fn new(trust: &Trust) -> Self {
        let signer = |keys: &[RangedKey]| Signer {
            keys: keys.iter().map(|key| (key.key.id(), key.clone())).collect(),
            next: None,
        };
        let hosts = trust
            .hosts
            .iter()
            .map(|host| (format!("host:{}", host.id), signer(&host.evidence_keys)));
        let console = &trust.console;
        let log = (format!("log:{}", console.origin), signer(&console.log_keys));
        let console = (format!("console:{}", console.origin), signer(&console.decision_keys));
        Self {
            signers: hosts.chain([console, log]).collect(),
        }
    }

    /// A key by its id, whoever's it is.
    pub(super) fn by_id(&self, id: &str) -> Option<&PublicKey> {
        self.signers.values().find_map(|signer| signer.by_id(id))
    }

    /// The console's key with this id, once all of the log was read.
    pub(super) fn of_console(&self, origin: &str, id: &str) -> Option<&RangedKey> {
        let console = self.signers.get(&format!("console:{origin}"))?;
        console.keys.iter().find(|(key_id, _)| key_id == id).map(|(_, key)| key)
    }

    /// Keys that sign heads of this log, as far as it was read.
    pub(super) fn of_log(&self, origin: &str) -> Vec<PublicKey> {
        let log = self.signers.get(&format!("log:{origin}"));
        log.map_or_else(Vec::new, |log| {
            log.keys.iter().map(|(_, key)| key.key.clone()).collect()
        })
    }

    /// Whether this key signs heads of this size: it has to be in use for the last record of it.
    pub(super) fn may_sign_head(&self, origin: &str, key: &PublicKey, size: u64) -> Result<(), String> {
        let log = self.signers.get(&format!("log:{origin}"));
        let mut keys = log.into_iter().flat_map(|log| &log.keys);
        let last = size.saturating_sub(1);
        match keys.find(|(_, ranged)| ranged.key == *key) {
            Some((_, ranged)) if ranged.signs_index(last) => Ok(()),
            _ => Err(format!(
                "is signed by key {}, which the log did not use for heads of {size} records",
                key.id()
            )),
        }
    }

    /// Whether the key with this id, whose signature holds, may sign this record; what the record says of keys holds from
    /// here on.
    pub(super) fn admit(&mut self, id: &str, index: u64, header: &Header, statement: &Statement) -> Result<(), String> {
        let name = visible(&header.signer);
        let Some(signer) = self.signers.get_mut(&header.signer) else {
            return Err(format!("`{name}` is neither a trusted host nor the trusted console"));
        };
        let event = match &statement.predicate {
            Predicate::Lifecycle(record) => Some(&record.event),
            _ => None,
        };
        let begins = header.sequence == 1 && matches!(event, Some(Lifecycle::Begun { .. }));
        match signer.keys.iter().find(|(key_id, _)| key_id == id) {
            None if begins && signer.next.as_ref().is_some_and(|(next, _)| next == id) => {}
            None => return Err(format!("signed by key {id}, which is not one of {name}")),
            Some((_, key)) if !key.signs_epoch(header.epoch) => {
                return Err(format!(
                    "signed by key {id}, which {name} did not use in epoch {}",
                    header.epoch
                ));
            }
            Some((_, key)) if !key.signs_index(index) => {
                return Err(format!(
                    "signed by key {id}, which {name} did not use at index {index} of the log"
                ));
            }
            Some(_) => {}
        }
        if begins {
            signer.begin(id, header.epoch, index);
        }
        if let Some(Lifecycle::NextKey { key }) = event {
            signer.next = Some((key.id(), key.clone()));
        }
        Ok(())
    }
}

impl Signer {
    fn by_id(&self, id: &str) -> Option<&PublicKey> {
        let keys = self.keys.iter().map(|(key_id, key)| (key_id, &key.key));
        let next = self.next.iter().map(|(key_id, key)| (key_id, key));
        keys.chain(next).find(|(key_id, _)| *key_id == id).map(|(_, key)| key)
    }

    /// The key with this id begins an epoch: those before it end here, whatever the trust file still says of them.
    fn begin(&mut self, id: &str, epoch: u64, index: u64) {
        for (_, key) in self
            .keys
            .iter_mut()
            .filter(|(key_id, key)| key_id != id && key.from_epoch < epoch)
        {
            key.end(epoch, index);
        }
        if let Some((_, key)) = self.next.take_if(|(next, _)| next == id)
            && !self.keys.iter().any(|(key_id, _)| key_id == id)
        {
            self.keys.push((id.to_owned(), RangedKey::from(key, epoch, index)));
        }
    }
}
