//! SHA-256 of executables, off the verdict path.
//!
//! Owns the reading threads, their deadline and a cache. It is given an open descriptor of a held thread's file: reading,
//! asking about and even closing it may wait for whoever serves the file system. It must never do any of that elsewhere
//! than on a thread for it, and never trust a file system that a workload serves itself (FUSE, network) to tell when a file changed: such digests are
//! not kept.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::statfs;
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use crate::kernel::api::FileKey;

const CACHED: usize = 4_096;
const PER_LABEL: usize = 4;
/// More is no executable that anybody waits for, but a way to keep a CPU busy (a sparse file may say any size).
const LARGEST: u64 = 4 << 30;
/// A file that changed within this time may change again without its times showing it.
const SETTLED: Duration = Duration::from_secs(2);
const CHUNK: usize = 256 << 10;

/// What was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileDigest {
    pub(super) sha256: [u8; 32],
    /// Bytes.
    pub(super) size: u64,
}

/// Why nobody can vouch for a file's content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum HashError {
    #[error("the executable could not be opened through the held thread")]
    NotOpened,
    #[error("the executable could not be read: {0}")]
    Read(String),
    #[error("the executable could not be read within {0:?}")]
    Late(Duration),
    #[error("the executable changed while it was read")]
    Changed,
    #[error("the executable is not a regular file")]
    NotAFile,
    #[error("the executable says that it has {0} bytes; more than {LARGEST} are not read")]
    TooLarge(u64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    device: u64,
    inode: u64,
    generation: u32,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

#[derive(Debug)]
pub(super) struct Hasher {
    deadline: Duration,
    cache: Arc<Mutex<Cache>>,
    /// One workload's slow files must not keep others waiting.
    lanes: Mutex<HashMap<String, Arc<Semaphore>>>,
}

#[derive(Debug, Default)]
struct Cache {
    digests: HashMap<Key, FileDigest>,
    order: VecDeque<Key>,
}

impl Hasher {
    pub(super) fn new(deadline: Duration) -> Self {
        Self {
            deadline,
            cache: Arc::default(),
            lanes: Mutex::default(),
        }
    }

    /// The digest of the file's content, within the deadline.
    pub(super) async fn hash(&self, label: &str, file: FileKey, descriptor: OwnedFd) -> Result<FileDigest, HashError> {
        let lane = {
            let mut lanes = self.lanes.lock();
            Arc::clone(
                lanes
                    .entry(label.to_owned())
                    .or_insert_with(|| Arc::new(Semaphore::new(PER_LABEL))),
            )
        };
        let descriptor = Elsewhere(Some(descriptor));
        let given_up = Arc::new(AtomicBool::new(false));
        let (cache, stop) = (Arc::clone(&self.cache), Arc::clone(&given_up));
        let work = async move {
            let permit = lane.acquire_owned().await.map_err(|e| HashError::Read(e.to_string()))?;
            let reading = tokio::task::spawn_blocking(move || {
                // Kept until the read returns, however late, so that stuck reads stay few.
                let _permit = permit;
                match descriptor.take() {
                    Some(descriptor) => read(File::from(descriptor), file.generation, &cache, &stop),
                    None => Err(HashError::NotOpened),
                }
            });
            reading.await.map_err(|e| HashError::Read(e.to_string()))?
        };
        tokio::time::timeout(self.deadline, work).await.unwrap_or_else(|_| {
            given_up.store(true, Ordering::Relaxed);
            Err(HashError::Late(self.deadline))
        })
    }
}

/// Closes a descriptor on a thread for it.
pub(crate) fn close_elsewhere(descriptor: OwnedFd) {
    drop(Elsewhere(Some(descriptor)));
}

/// A descriptor whose close may wait: FUSE sends the file's last flush to its server.
struct Elsewhere(Option<OwnedFd>);

impl Elsewhere {
    fn take(mut self) -> Option<OwnedFd> {
        self.0.take()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        if let Some(descriptor) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn_blocking(move || drop(descriptor));
        }
    }
}

fn read(mut file: File, generation: u32, cache: &Mutex<Cache>, stop: &AtomicBool) -> Result<FileDigest, HashError> {
    let failed = |e: std::io::Error| HashError::Read(e.to_string());
    let key = key(&file, generation)?;
    if key.size > LARGEST {
        return Err(HashError::TooLarge(key.size));
    }
    let keep = is_local(&file) && settled(&key);
    if keep && let Some(digest) = cache.lock().digests.get(&key) {
        return Ok(*digest);
    }
    file.rewind().map_err(failed)?;
    let mut hash = Sha256::new();
    let mut chunk = vec![0; CHUNK];
    let mut size = 0;
    loop {
        if stop.load(Ordering::Relaxed) {
            return Err(HashError::Read("given up".to_owned()));
        }
        // It grows: what it said of its size counts no more.
        if size > key.size {
            return Err(HashError::Changed);
        }
        match file.read(&mut chunk) {
            Ok(0) => break,
            Ok(n) => {
                hash.update(&chunk[..n]);
                size += n as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
    if self::key(&file, generation)? != key || size != key.size {
        return Err(HashError::Changed);
    }
    let digest = FileDigest {
        sha256: hash.finalize().into(),
        size,
    };
    if keep {
        cache.lock().put(key, digest);
    }
    Ok(digest)
}

fn key(file: &File, generation: u32) -> Result<Key, HashError> {
    let metadata = file.metadata().map_err(|e| HashError::Read(e.to_string()))?;
    if !metadata.is_file() {
        return Err(HashError::NotAFile);
    }
    Ok(Key {
        device: metadata.dev(),
        inode: metadata.ino(),
        generation,
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Whether the kernel itself keeps this file's times.
fn is_local(file: &File) -> bool {
    let Ok(found) = statfs::fstatfs(file) else { return false };
    let kind = found.filesystem_type();
    [
        statfs::EXT4_SUPER_MAGIC,
        statfs::XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::TMPFS_MAGIC,
    ]
    .contains(&kind)
}

fn settled(key: &Key) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let latest = key.modified.0.max(key.changed.0);
    i64::try_from(now.saturating_sub(SETTLED).as_secs()).is_ok_and(|settled| latest < settled)
}

impl Cache {
    fn put(&mut self, key: Key, digest: FileDigest) {
        if self.digests.insert(key, digest).is_none() {
            self.order.push_back(key);
            if self.order.len() > CACHED
                && let Some(oldest) = self.order.pop_front()
            {
                self.digests.remove(&oldest);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::OwnedSemaphorePermit;

    use super::*;

    const KEY: FileKey = FileKey {
        device: 1,
        inode: 1,
        generation: 1,
    };

    #[tokio::test]
    async fn content_is_hashed_and_changes_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let hasher = Hasher::new(Duration::from_secs(10));
        for content in ["one", "two", ""] {
            std::fs::write(&path, content).unwrap();
            let digest = hasher.hash("l", KEY, File::open(&path).unwrap().into()).await.unwrap();
            assert_eq!(
                hex::encode(digest.sha256),
                guard_evidence::statement::sha256_hex(content.as_bytes())
            );
            assert_eq!(digest.size, content.len() as u64);
        }
        let directory = File::open(dir.path()).unwrap();
        assert_eq!(hasher.hash("l", KEY, directory.into()).await, Err(HashError::NotAFile));
    }

    #[tokio::test]
    async fn what_is_too_large_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        if file.set_len(LARGEST + 1).is_err() {
            eprintln!("skipped: this file system has no sparse files");
            return;
        }
        let hasher = Hasher::new(Duration::from_secs(20));
        let file = File::open(&path).unwrap().into();
        assert_eq!(hasher.hash("l", KEY, file).await, Err(HashError::TooLarge(LARGEST + 1)));
    }

    #[tokio::test]
    async fn a_large_sparse_file_is_given_up_at_the_deadline_and_frees_its_lane() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sparse");
        let file = File::create(&path).unwrap();
        if file.set_len(LARGEST).is_err() {
            eprintln!("skipped: this file system has no sparse files");
            return;
        }
        let deadline = Duration::from_millis(100);
        let hasher = Hasher::new(deadline);
        for _ in 0..3 * PER_LABEL {
            let file = File::open(&path).unwrap().into();
            assert_eq!(hasher.hash("l", KEY, file).await, Err(HashError::Late(deadline)));
        }
        let patient = Hasher::new(Duration::from_secs(60));
        let small = File::open("/proc/self/exe").unwrap().into();
        assert!(patient.hash("l", KEY, small).await.is_ok());
    }

    /// Takes every lane of a label.
    async fn all_lanes(hasher: &Hasher, label: &str) -> OwnedSemaphorePermit {
        let lane = {
            let mut lanes = hasher.lanes.lock();
            let lane = lanes.entry(label.to_owned());
            Arc::clone(lane.or_insert_with(|| Arc::new(Semaphore::new(PER_LABEL))))
        };
        lane.acquire_many_owned(u32::try_from(PER_LABEL).unwrap())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn one_label_does_not_take_the_others_lanes() {
        let hasher = Hasher::new(Duration::from_secs(60));
        let _all = all_lanes(&hasher, "slow").await;
        let file = File::open("/proc/self/exe").unwrap().into();
        assert!(hasher.hash("other", KEY, file).await.is_ok());
    }

    #[tokio::test]
    async fn a_reader_that_never_answers_is_given_up() {
        let hasher = Hasher::new(Duration::from_millis(50));
        let _all = all_lanes(&hasher, "slow").await;
        let file = || File::open("/proc/self/exe").unwrap().into();
        assert_eq!(
            hasher.hash("slow", KEY, file()).await,
            Err(HashError::Late(Duration::from_millis(50)))
        );
        let other = Hasher::new(Duration::from_secs(60));
        assert!(other.hash("other", KEY, file()).await.is_ok());
    }

    #[test]
    fn the_cache_is_bounded() {
        let mut cache = Cache::default();
        let digest = FileDigest {
            sha256: [0; 32],
            size: 0,
        };
        for inode in 0..10_000 {
            let key = Key {
                device: 1,
                inode,
                generation: 0,
                size: 0,
                modified: (0, 0),
                changed: (0, 0),
            };
            cache.put(key, digest);
            cache.put(key, digest);
        }
        assert_eq!((cache.digests.len(), cache.order.len()), (CACHED, CACHED));
    }
}
