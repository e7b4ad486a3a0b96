//! The sequencer: from records in the database to a published head.
//!
//! Owns the folder's writer; there is one, held by a lock. It is given the database's order. It must never publish a head
//! that too few witnesses have signed, nor go on when database and folder are not of one log.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use guard_evidence::checkpoint::Checkpoint;
use guard_evidence::folder::{Folder, FolderError, Head};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Log;
use super::witnesses::Witnesses;
use crate::store::{Store, StoreError};

/// Records staged at once.
const BATCH: u64 = 1_024;
/// Between two heads: records that come meanwhile share one.
const GROUP: Duration = Duration::from_millis(100);
/// Records of the console itself wait no longer.
const LOOK: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The log cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error(transparent)]
    Folder(#[from] FolderError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(
        "{}: its checkpoint has {published} records, the database {stored}: the database is older than the published log; restore a newer one",
        folder.display()
    )]
    RolledBack {
        folder: PathBuf,
        published: u64,
        stored: u64,
    },
    #[error(
        "{}: record {index} of the database is not the one that was published; restore the database that belongs to it",
        folder.display()
    )]
    Other { folder: PathBuf, index: u64 },
    #[error("the head cannot be signed: {0}")]
    Sign(String),
    #[error("only {got} of {quorum} witnesses have signed the head of size {size}: {why}")]
    Witnesses {
        size: u64,
        got: usize,
        quorum: usize,
        why: String,
    },
    #[error("the writer has ended: {0}")]
    Ended(String),
}

#[derive(Debug)]
pub(super) struct Sequencer {
    /// Away while a blocking thread has it.
    folder: Option<Folder>,
    store: Store,
    head: watch::Sender<Option<Arc<Head>>>,
    wake: Arc<Notify>,
}

impl Sequencer {
    /// Compares the folder with the database.
    pub(super) async fn new(
        folder: Folder,
        store: Store,
        dir: PathBuf,
        head: watch::Sender<Option<Arc<Head>>>,
        wake: Arc<Notify>,
    ) -> Result<Self, LogError> {
        compare(&folder, &store, &dir).await?;
        head.send_replace(folder.head());
        Ok(Self {
            folder: Some(folder),
            store,
            head,
            wake,
        })
    }

    /// Stages what is in the database now and publishes its head.
    async fn pass(&mut self, log: &Log, witnesses: &mut Witnesses) -> Result<(), LogError> {
        let end = self.store.log_size().await?;
        while self.folder()?.size() < end {
            let folder = self.folder()?;
            let (from, room) = (folder.size(), folder.room());
            let leaves = self.store.envelopes(from, BATCH.min(room).min(end - from)).await?;
            if leaves.is_empty() {
                break;
            }
            self.blocking(move |folder| folder.stage(&leaves)).await?;
            // The head that was there already can be proved from, as soon as its tiles are there again.
            if self.head.borrow().is_none() {
                self.head.send_replace(self.folder()?.head());
            }
        }
        let folder = self.folder()?;
        if folder.size() == 0 || folder.size() == folder.published() || folder.rebuilding().is_some() {
            return Ok(());
        }
        let checkpoint = Checkpoint {
            origin: log.origin.clone(),
            size: folder.size(),
            root: folder.root()?,
        };
        let note = checkpoint.sign(&log.key).map_err(|e| LogError::Sign(e.to_string()))?;
        let staged = folder.staged(note, checkpoint);
        let note = witnesses.cosign(log, Arc::new(staged)).await?;
        let head = self.blocking(move |folder| folder.publish(note)).await?;
        self.head.send_replace(Some(head));
        Ok(())
    }

    fn folder(&self) -> Result<&Folder, LogError> {
        self.folder
            .as_ref()
            .ok_or_else(|| LogError::Ended("its thread was lost".to_owned()))
    }

    /// Does something with the folder that waits for the disk.
    async fn blocking<T: Send + 'static>(
        &mut self,
        act: impl FnOnce(&mut Folder) -> Result<T, FolderError> + Send + 'static,
    ) -> Result<T, LogError> {
        let mut folder = self
            .folder
            .take()
            .ok_or_else(|| LogError::Ended("its thread was lost".to_owned()))?;
        let task = tokio::task::spawn_blocking(move || {
            let result = act(&mut folder);
            (folder, result)
        });
        let (folder, result) = task.await.map_err(|e| LogError::Ended(e.to_string()))?;
        self.folder = Some(folder);
        Ok(result?)
    }
}

/// The folder's head has to be one of this database.
async fn compare(folder: &Folder, store: &Store, dir: &Path) -> Result<(), LogError> {
    let (published, stored) = (folder.published(), store.log_size().await?);
    if stored < published {
        return Err(LogError::RolledBack {
            folder: dir.to_owned(),
            published,
            stored,
        });
    }
    if let Some(why) = folder.rebuilding() {
        tracing::warn!(
            why,
            published,
            "tiles of the log are missing or damaged; they are made again"
        );
        return Ok(());
    }
    let last = folder.last_leaves()?;
    let from = folder.size() - last.len() as u64;
    let mut stored = store.leaf_hashes(from, last.len() as u64).await?.into_iter();
    for (index, hash) in (from..).zip(&last) {
        if stored.next().as_ref() != Some(hash) {
            return Err(LogError::Other {
                folder: dir.to_owned(),
                index,
            });
        }
    }
    Ok(())
}

impl Log {
    /// Publishes until told to stop; what is in the database then is published too.
    pub async fn run(&self, stopping: CancellationToken) {
        let Some(mut sequencer) = self.sequencer.lock().take() else {
            return;
        };
        let mut witnesses = Witnesses::new(&self.config);
        let mut pause = FIRST_PAUSE;
        let mut last_error = String::new();
        loop {
            let last_pass = stopping.is_cancelled();
            let wait = match sequencer.pass(self, &mut witnesses).await {
                Ok(()) => {
                    if !last_error.is_empty() {
                        tracing::info!("the log is published again");
                        last_error.clear();
                    }
                    pause = FIRST_PAUSE;
                    GROUP
                }
                Err(error) => {
                    let error = error.to_string();
                    if error != last_error {
                        tracing::error!(
                            error,
                            "the log is not published: hosts keep their evidence; trying again"
                        );
                        last_error = error;
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    pause
                }
            };
            if last_pass {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stopping.cancelled() => continue,
            }
            tokio::select! {
                () = sequencer.wake.notified() => {}
                () = tokio::time::sleep(LOOK) => {}
                () = stopping.cancelled() => {}
            }
        }
    }
}
