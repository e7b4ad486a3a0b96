//! The evidence log: an RFC 6962 tree over exact envelopes, whose head the console signs.
//!
//! Owns the log's key, its origin and what leaves the console as a bundle. It is given envelopes that were verified.
//! It must never sign a head of fewer records than an earlier one had; positions come from the database, which only
//! appends.

mod export;

use std::sync::Arc;

use guard_evidence::checkpoint::Checkpoint;
use guard_evidence::key::SigningKey;
use guard_evidence::merkle::Tree;
use tokio::sync::Semaphore;

pub use export::{Export, ExportStream};

/// Exports at once: each keeps the tree's hashes in memory.
const EXPORTS: usize = 2;

#[derive(Debug)]
pub struct Log {
    key: SigningKey,
    origin: String,
    exports: Arc<Semaphore>,
}

impl Log {
    #[must_use]
    pub fn new(key: SigningKey, origin: String) -> Self {
        Self {
            key,
            origin,
            exports: Arc::new(Semaphore::new(EXPORTS)),
        }
    }

    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    /// The signed head of a tree (C2SP tlog-checkpoint).
    fn sign_head(&self, tree: &Tree) -> Result<String, String> {
        let head = Checkpoint {
            origin: self.origin.clone(),
            size: tree.size(),
            root: tree.root(),
        };
        head.sign(&self.key).map_err(|e| e.to_string())
    }
}
