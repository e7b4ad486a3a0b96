//! The evidence log: an RFC 6962 tree over exact envelopes, whose head the console signs.
//!
//! Owns the log's key and origin. It is given envelopes that were verified. It must never sign a head of fewer records
//! than an earlier one had; positions come from the database, which only appends.

use guard_evidence::key::SigningKey;
use sha2::{Digest, Sha256};

#[derive(Debug)]
pub struct Log {
    key: SigningKey,
    origin: String,
}

impl Log {
    #[must_use]
    pub fn new(key: SigningKey, origin: String) -> Self {
        Self { key, origin }
    }

    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }
}

/// RFC 6962: SHA-256(0x00 ‖ bytes).
#[must_use]
pub fn leaf_hash(envelope: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update([0]).chain_update(envelope).finalize().into()
}
