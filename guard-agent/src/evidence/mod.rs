//! Evidence of this host: from a record to bytes on disk.
//!
//! Owns the chain and the spool through one thread (`writer`). It is given predicates and the host's key. It must never
//! lose a record that it took: whoever cannot get a place for one must not act.

mod before;
mod fit;
mod keys;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;

use guard_evidence::chain::Sealed;
use guard_evidence::key::{Algorithm, SigningKey};
use guard_evidence::record::{Header, Lifecycle, LifecycleRecord, Predicate};
use guard_evidence::spool::{Reader, SpoolError};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

pub use before::Before;
pub use fit::{fit, fit_connect, fit_file};
pub(crate) use keys::{KEY, is_due};

/// Records that may wait for the disk. Beyond it everything is denied.
const QUEUE: usize = 8_192;

/// The spool cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    #[error("{0}\n  → another guard-agent runs; stop it first: systemctl stop guard-agent")]
    Locked(SpoolError),
    #[error("{0}\n  → without its spool the agent may not allow anything; check the disk and the directory's owner")]
    Spool(#[from] SpoolError),
    #[error("{path}: {why}")]
    Epoch { path: PathBuf, why: String },
    #[error("{0}\n  → if the file is lost, enrol this host again: guard tokens create | guard-agent enroll --force")]
    Key(String),
    #[error("the writer's thread cannot be started: {0}")]
    Thread(std::io::Error),
    #[error("the first record cannot be written: {0}")]
    First(String),
}

/// What the writer needs to know of the host.
#[derive(Debug)]
pub struct EvidenceConfig {
    pub host_id: String,
    pub key: SigningKey,
    /// Of the identity: spool, number of the epoch and keys are there.
    pub directory: PathBuf,
    /// Whether a console takes the records: then a key is replaced when it holds the record that names the next one.
    pub ships: bool,
    pub max_bytes: u64,
}

impl EvidenceConfig {
    /// Where evidence waits for the console.
    fn spool(&self) -> PathBuf {
        self.directory.join("spool")
    }

    /// Holds the number of the epoch that evidence is in.
    fn epoch_file(&self) -> PathBuf {
        self.directory.join("epoch")
    }
}

/// The way to the writer. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct Evidence {
    sender: mpsc::Sender<Job>,
    shared: Arc<Shared>,
    durable: watch::Receiver<u64>,
    reader: Arc<Mutex<Reader>>,
    /// When the last record of the agent before this one was written, RFC 3339.
    last_before: Option<Arc<str>>,
    before: Arc<Before>,
}

#[derive(Debug, Default)]
struct Shared {
    queued: AtomicUsize,
    /// The last write failed; it is being repeated.
    failing: AtomicBool,
    /// Denied without a record, because there was no place for one.
    unrecorded: AtomicU64,
    /// Position up to which the console has everything.
    acknowledged: AtomicU64,
}

/// A place for one record that will be written, however long the disk takes.
#[derive(Debug)]
pub struct Slot {
    shared: Arc<Shared>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shared.queued.fetch_sub(1, Ordering::AcqRel);
    }
}

type Done = Box<dyn FnOnce(Sealed) + Send>;

enum Job {
    Write {
        predicate: Box<Predicate>,
        slot: Slot,
        done: Option<Done>,
        /// Somebody waits for it.
        urgent: bool,
    },
    Acknowledge {
        through: u64,
    },
    /// Name a key that is to follow; `done` is told its id when that record is durable.
    NextKey {
        algorithm: Algorithm,
        done: oneshot::Sender<Result<String, String>>,
    },
    Stop {
        done: mpsc::Sender<()>,
    },
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Write { .. } => "Write",
            Self::Acknowledge { .. } => "Acknowledge",
            Self::NextKey { .. } => "NextKey",
            Self::Stop { .. } => "Stop",
        })
    }
}

impl Evidence {
    /// Opens the spool and starts the writer. The first record of a new epoch is on disk when this returns.
    ///
    /// # Errors
    /// [`EvidenceError`]: then nothing may be allowed.
    pub fn start(config: EvidenceConfig) -> Result<Self, EvidenceError> {
        writer::start(config)
    }

    /// A place for the record of something that is about to be allowed or denied. `None`: the queue is full or the disk
    /// fails, so it has to be denied.
    #[must_use]
    pub fn reserve(&self) -> Option<Slot> {
        if self.shared.failing.load(Ordering::Acquire) {
            return None;
        }
        let before = self.shared.queued.fetch_add(1, Ordering::AcqRel);
        let slot = Slot {
            shared: Arc::clone(&self.shared),
        };
        (before < QUEUE).then_some(slot)
    }

    /// As [`Self::reserve`], while at least half of the places are free.
    #[must_use]
    pub fn reserve_spare(&self) -> Option<Slot> {
        (self.shared.queued.load(Ordering::Acquire) < QUEUE / 2)
            .then(|| self.reserve())
            .flatten()
    }

    /// A place for a record that has to be written whatever waits already; what makes these is bounded elsewhere.
    #[must_use]
    pub fn reserve_always(&self) -> Slot {
        self.shared.queued.fetch_add(1, Ordering::AcqRel);
        Slot {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Writes a record with the next group; durable within about 100 ms.
    pub fn write(&self, slot: Slot, predicate: Predicate) {
        self.job(slot, predicate, None, false);
    }

    /// As [`Self::write`], and calls `done`, on the writer's thread, when the record is durable.
    pub fn write_and(&self, slot: Slot, predicate: Predicate, done: impl FnOnce(Sealed) + Send + 'static) {
        self.job(slot, predicate, Some(Box::new(done)), false);
    }

    /// Writes a record at once and calls `done`, on the writer's thread, when it is durable.
    pub fn write_then(&self, slot: Slot, predicate: Predicate, done: impl FnOnce(Sealed) + Send + 'static) {
        self.job(slot, predicate, Some(Box::new(done)), true);
    }

    fn job(&self, slot: Slot, predicate: Predicate, done: Option<Done>, urgent: bool) {
        self.send(Job::Write {
            predicate: Box::new(predicate),
            slot,
            done,
            urgent,
        });
    }

    /// Writes a lifecycle record with the next group.
    pub fn lifecycle(&self, event: Lifecycle) {
        let header = unsealed();
        self.write(
            self.reserve_always(),
            Predicate::Lifecycle(Box::new(LifecycleRecord { header, event })),
        );
    }

    /// Counts a denial for whose record there was no place; the count is recorded when there is one again.
    pub fn count_unrecorded(&self) {
        self.shared.unrecorded.fetch_add(1, Ordering::Relaxed);
    }

    /// Begins to replace the key: a new one is made and named in a record; gives its id. It signs as soon as the console
    /// holds that record. Asked for again before that, the same key is named again.
    ///
    /// # Errors
    /// In words, if the key cannot be written.
    pub async fn replace_key(&self, algorithm: Algorithm) -> Result<String, String> {
        let (done, wait) = oneshot::channel();
        self.send(Job::NextKey { algorithm, done });
        wait.await.unwrap_or_else(|_| Err("the agent is stopping".to_owned()))
    }

    /// The console has everything up to this position of the spool.
    pub(crate) fn acknowledge(&self, through: u64) {
        self.shared.acknowledged.fetch_max(through, Ordering::AcqRel);
        self.send(Job::Acknowledge { through });
    }

    /// Position of the last durable record; changes are told.
    #[must_use]
    pub(crate) fn durable(&self) -> watch::Receiver<u64> {
        self.durable.clone()
    }

    /// Reads the spool beside the writer; one user at a time.
    #[must_use]
    pub(crate) fn reader(&self) -> Arc<Mutex<Reader>> {
        Arc::clone(&self.reader)
    }

    /// Position up to which the console has everything.
    #[must_use]
    pub(crate) fn acknowledged(&self) -> u64 {
        self.shared.acknowledged.load(Ordering::Acquire)
    }

    /// What the agent before this one wrote last.
    #[must_use]
    pub fn before(&self) -> Arc<Before> {
        Arc::clone(&self.before)
    }

    /// When the last record before this start was written, RFC 3339.
    #[must_use]
    pub fn last_before(&self) -> Option<&str> {
        self.last_before.as_deref()
    }

    /// Records that the console has not acknowledged.
    #[must_use]
    pub fn unshipped(&self) -> u64 {
        self.durable.borrow().saturating_sub(self.acknowledged())
    }

    /// Writes everything that is queued and closes the spool. Blocks.
    pub fn stop(&self) {
        let (done, wait) = mpsc::channel();
        self.send(Job::Stop { done });
        let _ = wait.recv_timeout(std::time::Duration::from_secs(10));
    }

    /// The writer lives as long as this handle does; without it nothing is allowed, because no slot turns into a call
    /// of `done`.
    fn send(&self, job: Job) {
        if self.sender.send(job).is_err() {
            self.shared.failing.store(true, Ordering::Release);
        }
    }
}

/// A header to be filled in by the writer.
#[must_use]
pub(crate) fn unsealed() -> Header {
    Header {
        signer: String::new(),
        epoch: 0,
        sequence: 0,
        previous: String::new(),
        at: String::new(),
        since_boot_ns: 0,
        boot_id: String::new(),
    }
}

#[cfg(test)]
mod tests;
