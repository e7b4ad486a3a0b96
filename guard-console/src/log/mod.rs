//! The evidence log: an RFC 6962 tree over exact envelopes, published as tiles with signed heads.
//!
//! Owns the log's key, its origin, its folder and what leaves the console as a bundle. It is given records that are in
//! the database, whose order never changes. It must never sign a head that does not continue the one before.

mod export;
mod sequencer;
mod witnesses;

use std::path::PathBuf;
use std::sync::Arc;

use guard_evidence::folder::{Folder, FolderError, Head, Proofs, read_tile};
use guard_evidence::key::{PublicKey, SigningKey};
use guard_evidence::tile::Tile;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore, watch};

use crate::config::LogConfig;
use crate::store::Store;

pub use export::{Export, ExportStream};
pub use sequencer::LogError;
use sequencer::Sequencer;

/// Exports at once.
const EXPORTS: usize = 2;

#[derive(Debug)]
pub struct Log {
    key: SigningKey,
    origin: String,
    dir: PathBuf,
    config: LogConfig,
    head: watch::Receiver<Option<Arc<Head>>>,
    /// There may be records to publish.
    wake: Arc<Notify>,
    /// Until it runs.
    sequencer: Mutex<Option<Sequencer>>,
    exports: Arc<Semaphore>,
}

impl Log {
    /// Opens the folder and compares it with the database. The head that is there may be signed by an `earlier` key.
    /// Nothing is published before [`Self::run`].
    ///
    /// # Errors
    /// [`LogError`]: the folder is in use, or it and the database are not of one log.
    pub async fn open(
        key: SigningKey,
        earlier: Vec<PublicKey>,
        origin: String,
        dir: PathBuf,
        store: Store,
        config: LogConfig,
    ) -> Result<Self, LogError> {
        let (send, head) = watch::channel(None);
        let wake = Arc::new(Notify::new());
        let keys = [earlier, vec![key.public()]].concat();
        let folder = Folder::open(&dir, &origin, &keys)?;
        let sequencer = Sequencer::new(folder, store, dir.clone(), send, wake.clone()).await?;
        Ok(Self {
            key,
            origin,
            dir,
            config,
            head,
            wake,
            sequencer: Mutex::new(Some(sequencer)),
            exports: Arc::new(Semaphore::new(EXPORTS)),
        })
    }

    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Heads are signed by another key from now on.
    pub(crate) fn replace_key(&mut self, key: SigningKey) {
        self.key = key;
    }

    #[must_use]
    pub fn key(&self) -> &SigningKey {
        &self.key
    }

    #[must_use]
    pub fn config(&self) -> &LogConfig {
        &self.config
    }

    /// There are more records in the database.
    pub fn appended(&self) {
        self.wake.notify_one();
    }

    /// The published head; changes are told.
    #[must_use]
    pub fn heads(&self) -> watch::Receiver<Option<Arc<Head>>> {
        self.head.clone()
    }

    #[must_use]
    pub fn head(&self) -> Option<Arc<Head>> {
        self.head.borrow().clone()
    }

    /// What can be proved from a head; reading it blocks.
    #[must_use]
    pub fn proofs(&self, head: Arc<Head>) -> Proofs {
        Proofs::new(&self.dir, head)
    }

    /// A tile of the published log; blocks.
    ///
    /// # Errors
    /// If the disk refuses or the tile is damaged.
    pub fn tile(&self, tile: Tile) -> Result<Option<Vec<u8>>, FolderError> {
        self.head().map_or(Ok(None), |head| read_tile(&self.dir, &head, tile))
    }
}
