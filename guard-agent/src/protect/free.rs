//! Free space: directories whose content a label may change without a question.
//!
//! Owns finding them. It is given the configuration. It must never follow a symlink to one: a workload that may write in one
//! directory could make another one free. What cannot be looked at is not free.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use guard_common::FreeKey;
use guard_common::protect::FileId;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

use crate::kernel::{self, Protect};
use crate::labels::Labels;

/// For all of them: one may be on a file system that somebody else serves.
const PATIENCE: Duration = Duration::from_secs(2);

/// Which inode each directory is, or why that cannot be said.
type Looked = Vec<(PathBuf, io::Result<FileId>)>;

/// A directory that is free for a label; for every label without one.
pub type Free = (Option<String>, PathBuf);

#[derive(Debug)]
pub(super) struct Space {
    wanted: Vec<Free>,
    /// What could not be looked at and is in the log.
    told: HashSet<PathBuf>,
    /// A look that did not end in time; no other begins before it has.
    late: Option<mpsc::Receiver<Looked>>,
}

impl Space {
    pub(super) fn new(wanted: &[Free]) -> Self {
        Self {
            wanted: wanted.to_vec(),
            told: HashSet::new(),
            late: None,
        }
    }

    /// Looks at every directory again and makes exactly those free that are there.
    pub(super) fn look(&mut self, kernel: &std::sync::Arc<Protect>, labels: &Labels) {
        let found = self.find(kernel);
        let mut free: HashMap<FreeKey, u32> = HashMap::new();
        for (path, result) in found {
            match result {
                Ok(directory) => {
                    self.told.remove(&path);
                    for (label, _) in self.wanted.iter().filter(|(_, wanted)| *wanted == path) {
                        match label.as_ref().map(|label| labels.id(label)) {
                            // A label that nothing has yet.
                            Some(None) => {}
                            id => {
                                free.insert(kernel::free(id.flatten(), directory), 1);
                            }
                        }
                    }
                }
                Err(because) => {
                    if self.told.insert(path.clone()) {
                        tracing::warn!(path = %path.display(), %because, "cannot be looked at; it is not free space");
                    }
                }
            }
        }
        if let Err(error) = kernel.set_free(&free) {
            tracing::error!(%error, "not every free directory could be told to the kernel");
        }
    }

    fn find(&mut self, kernel: &std::sync::Arc<Protect>) -> Vec<(PathBuf, io::Result<FileId>)> {
        let receiver = match self.late.take() {
            Some(late) => late,
            None => {
                if self.wanted.is_empty() {
                    return Vec::new();
                }
                let (sender, receiver) = mpsc::channel();
                let paths: Vec<PathBuf> = self.wanted.iter().map(|(_, path)| path.clone()).collect();
                let kernel = std::sync::Arc::clone(kernel);
                let looks = move || {
                    let found = paths
                        .into_iter()
                        .map(|path| {
                            let found = open(&path).and_then(|directory| kernel.identify(&directory, true));
                            (path, found)
                        })
                        .collect();
                    let _ = sender.send(found);
                };
                if thread::Builder::new().name("free".into()).spawn(looks).is_err() {
                    return Vec::new();
                }
                receiver
            }
        };
        match receiver.recv_timeout(PATIENCE) {
            Ok(found) => found,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                tracing::warn!("free directories do not answer; none is free until they do");
                self.late = Some(receiver);
                Vec::new()
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => Vec::new(),
        }
    }
}

/// The directory of exactly this path.
fn open(path: &Path) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    openat2(nix::fcntl::AT_FDCWD, path, how).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_makes_nothing_free() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::os::unix::fs::symlink(root.join("real"), root.join("link")).unwrap();
        assert!(open(&root.join("real/deep")).is_ok());
        for path in ["link", "link/deep", "absent"] {
            assert!(open(&root.join(path)).is_err(), "{path}");
        }
    }
}
