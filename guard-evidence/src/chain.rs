//! The chain of one signer: sequence numbers without gaps and the digest of the record before.
//!
//! Owns headers: making them in order, and checking that they are in order. It is given times and keys by its caller.
//! It must never hand out a sequence number twice within an epoch.

use crate::dsse::{self, DsseError};
use crate::key::SigningKey;
use crate::record::{ChainEnd, Header, Predicate, Statement};
use crate::statement::{StatementError, sha256_hex};

/// `previous` of the first record of an epoch.
pub const FIRST_PREVIOUS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// A time as the caller read it: chains have no clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stamp {
    /// RFC 3339 UTC with milliseconds.
    pub at: String,
    pub since_boot_ns: u64,
    pub boot_id: String,
}

/// A signed record with everything that is derived from its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    pub header: Header,
    /// Exact bytes: to be spooled, shipped and logged.
    pub envelope: Vec<u8>,
    /// SHA-256 of the envelope, hex: `previous` of the next record, and its name in the console.
    pub envelope_digest: String,
    /// SHA-256 of the payload, hex: what a request's decision is bound to.
    pub payload_digest: String,
}

/// A record could not be made; the chain did not move.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    #[error(transparent)]
    Statement(#[from] StatementError),
    #[error(transparent)]
    Dsse(#[from] DsseError),
}

/// Where a signer stands in its epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    signer: String,
    epoch: u64,
    sequence: u64,
    previous: String,
}

impl Chain {
    /// A new epoch; its first record has sequence 1.
    #[must_use]
    pub fn begin(signer: impl Into<String>, epoch: u64) -> Self {
        Self {
            signer: signer.into(),
            epoch,
            sequence: 0,
            previous: FIRST_PREVIOUS.to_owned(),
        }
    }

    /// Goes on after `last`, whose envelope's exact bytes are `envelope`.
    #[must_use]
    pub fn resume(last: &Header, envelope: &[u8]) -> Self {
        Self {
            signer: last.signer.clone(),
            epoch: last.epoch,
            sequence: last.sequence,
            previous: sha256_hex(envelope),
        }
    }

    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Of the last record; 0 before the first.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The epoch after this one.
    #[must_use]
    pub fn next_epoch(&self) -> Self {
        Self::begin(self.signer.clone(), self.epoch.saturating_add(1))
    }

    /// The last record; `None` before the first.
    #[must_use]
    pub fn end(&self) -> Option<ChainEnd> {
        (self.sequence > 0).then(|| ChainEnd {
            epoch: self.epoch,
            sequence: self.sequence,
            digest: self.previous.clone(),
        })
    }

    /// Makes the next record: `make` gets its header and gives the predicate around it. The chain moves on only when
    /// this succeeds; a caller that then fails to store the record puts back a clone it took before.
    ///
    /// # Errors
    /// If the record cannot be written as JSON or is larger than [`dsse::RECORD_BYTES`] in its envelope.
    pub fn seal(
        &mut self,
        key: &SigningKey,
        stamp: Stamp,
        make: impl FnOnce(Header) -> Predicate,
    ) -> Result<Sealed, SealError> {
        let header = Header {
            signer: self.signer.clone(),
            epoch: self.epoch,
            sequence: self.sequence + 1,
            previous: self.previous.clone(),
            at: stamp.at,
            since_boot_ns: stamp.since_boot_ns,
            boot_id: stamp.boot_id,
        };
        let payload = Statement::new(make(header.clone())).to_payload()?;
        let envelope = dsse::sign(&payload, key)?;
        let sealed = Sealed {
            envelope_digest: sha256_hex(&envelope),
            payload_digest: sha256_hex(&payload),
            header,
            envelope,
        };
        self.sequence = sealed.header.sequence;
        self.previous.clone_from(&sealed.envelope_digest);
        Ok(sealed)
    }
}

/// Where a chain breaks.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    #[error("signer is `{found}`, the chain's is `{expected}`")]
    Signer { expected: String, found: String },
    #[error("epoch {found} comes after epoch {expected}")]
    EpochBack { expected: u64, found: u64 },
    #[error("records {from} to {through} of epoch {epoch} are missing")]
    Missing { epoch: u64, from: u64, through: u64 },
    #[error("sequence {found} of epoch {epoch} comes again (the chain is at {at})")]
    Again { epoch: u64, at: u64, found: u64 },
    #[error("record {sequence} of epoch {epoch} names another record before it than the one that is there")]
    Previous { epoch: u64, sequence: u64 },
}

/// Checks records of one signer in their order.
#[derive(Debug, Clone, Default)]
pub struct Checker {
    last: Option<(Header, String)>,
}

impl Checker {
    /// A checker that goes on after `last`, whose envelope's digest (hex) is known.
    #[must_use]
    pub fn after(last: Header, envelope_digest: String) -> Self {
        Self {
            last: Some((last, envelope_digest)),
        }
    }

    /// The last record that was accepted.
    #[must_use]
    pub fn last(&self) -> Option<&Header> {
        self.last.as_ref().map(|(header, _)| header)
    }

    /// The last record that was accepted, as the epoch after it names it.
    #[must_use]
    pub fn end(&self) -> Option<ChainEnd> {
        self.last.as_ref().map(|(header, digest)| ChainEnd {
            epoch: header.epoch,
            sequence: header.sequence,
            digest: digest.clone(),
        })
    }

    /// Accepts the next record, or says why it is not the next one. After an error the checker goes on from this
    /// record all the same if it lies further on, so that one gap is reported once.
    ///
    /// # Errors
    /// [`ChainError`]: what is missing, repeated or replaced.
    pub fn check(&mut self, header: &Header, envelope: &[u8]) -> Result<(), ChainError> {
        self.check_digest(header, sha256_hex(envelope))
    }

    /// As [`Checker::check`] for a caller that has the envelope's digest.
    ///
    /// # Errors
    /// As [`Checker::check`].
    pub fn check_digest(&mut self, header: &Header, envelope_digest: String) -> Result<(), ChainError> {
        let result = self.judge(header);
        if !matches!(
            result,
            Err(ChainError::Signer { .. } | ChainError::EpochBack { .. } | ChainError::Again { .. })
        ) {
            self.last = Some((header.clone(), envelope_digest));
        }
        result
    }

    fn judge(&self, header: &Header) -> Result<(), ChainError> {
        let epoch = header.epoch;
        let (at, previous) = match &self.last {
            None => (0, FIRST_PREVIOUS),
            Some((last, _)) if last.signer != header.signer => {
                return Err(ChainError::Signer {
                    expected: last.signer.clone(),
                    found: header.signer.clone(),
                });
            }
            Some((last, _)) if epoch < last.epoch => {
                return Err(ChainError::EpochBack {
                    expected: last.epoch,
                    found: epoch,
                });
            }
            Some((last, _)) if epoch > last.epoch => (0, FIRST_PREVIOUS),
            Some((last, digest)) => (last.sequence, digest.as_str()),
        };
        if header.sequence <= at {
            return Err(ChainError::Again {
                epoch,
                at,
                found: header.sequence,
            });
        }
        if header.sequence > at + 1 {
            return Err(ChainError::Missing {
                epoch,
                from: at + 1,
                through: header.sequence - 1,
            });
        }
        if header.previous == previous {
            Ok(())
        } else {
            Err(ChainError::Previous {
                epoch,
                sequence: header.sequence,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Lifecycle, LifecycleRecord};

    fn stamp() -> Stamp {
        Stamp {
            at: "2026-11-21T10:00:00.000Z".to_owned(),
            since_boot_ns: 1,
            boot_id: "b".to_owned(),
        }
    }

    fn lost(header: Header) -> Predicate {
        Predicate::Lifecycle(Box::new(LifecycleRecord {
            header,
            event: Lifecycle::EventsLost { count: 1 },
        }))
    }

    fn records(epoch: u64, n: usize) -> Vec<Sealed> {
        let key = SigningKey::from_seed(&[1; 32]);
        let mut chain = Chain::begin("host:a", epoch);
        (0..n).map(|_| chain.seal(&key, stamp(), lost).unwrap()).collect()
    }

    #[test]
    fn a_chain_checks() {
        let mut checker = Checker::default();
        for epoch in [1, 2, 5] {
            for record in records(epoch, 5) {
                checker.check(&record.header, &record.envelope).unwrap();
            }
        }
        assert_eq!(checker.last().unwrap().sequence, 5);
    }

    #[test]
    fn resuming_goes_on() {
        let key = SigningKey::from_seed(&[1; 32]);
        let mut chain = Chain::begin("host:a", 1);
        let first = chain.seal(&key, stamp(), lost).unwrap();
        let mut resumed = Chain::resume(&first.header, &first.envelope);
        assert_eq!(resumed, chain);
        assert_eq!(
            resumed.seal(&key, stamp(), lost).unwrap(),
            chain.seal(&key, stamp(), lost).unwrap()
        );
    }

    #[test]
    fn every_break_is_named() {
        let r = records(1, 5);
        let mut checker = Checker::default();
        let mut check = |s: &Sealed| checker.check(&s.header, &s.envelope);
        check(&r[0]).unwrap();
        assert_eq!(
            check(&r[3]),
            Err(ChainError::Missing {
                epoch: 1,
                from: 2,
                through: 3
            })
        );
        assert_eq!(check(&r[4]), Ok(()), "one gap is one error");
        assert_eq!(
            check(&r[1]),
            Err(ChainError::Again {
                epoch: 1,
                at: 5,
                found: 2
            })
        );
        let mut other = records(2, 1).remove(0);
        other.header.previous = "11".repeat(32);
        assert_eq!(check(&other), Err(ChainError::Previous { epoch: 2, sequence: 1 }));
        assert_eq!(check(&r[0]), Err(ChainError::EpochBack { expected: 2, found: 1 }));
        other.header.signer = "host:b".to_owned();
        assert!(matches!(check(&other), Err(ChainError::Signer { .. })));
    }

    #[test]
    fn a_record_that_is_too_large_leaves_the_chain() {
        let key = SigningKey::from_seed(&[1; 32]);
        let mut chain = Chain::begin("host:a", 1);
        let before = chain.clone();
        let big = |header| {
            let event = Lifecycle::EnforcementOff {
                why: "x".repeat(70_000),
                last_on: None,
            };
            Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }))
        };
        assert!(matches!(
            chain.seal(&key, stamp(), big),
            Err(SealError::Dsse(DsseError::TooLarge(_)))
        ));
        assert_eq!(chain, before);
    }
}
