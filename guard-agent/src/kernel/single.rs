//! One agent per pin directory.
//!
//! Owns the lock that says so; given the directory. Two agents would answer each other's questions and replace each
//! other's programs, so the second must never start; the lock ends with the process, however that ends.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum SingleError {
    #[error(
        "another guard-agent{} is running and holds {}: stop it first (systemctl stop guard-agent)",
        pid.map_or_else(String::new, |pid| format!(" (process {pid})")),
        path.display()
    )]
    Running { path: PathBuf, pid: Option<u32> },
    #[error("cannot lock {}: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
}

/// Held as long as it lives.
#[derive(Debug)]
pub(crate) struct Single(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Locks an existing directory.
pub(crate) fn lock(path: &Path) -> Result<Single, SingleError> {
    let failed = |source| SingleError::Lock {
        path: path.to_owned(),
        source,
    };
    let folder = File::open(path).map_err(failed)?;
    match folder.try_lock() {
        Ok(()) => Ok(Single(folder)),
        Err(TryLockError::WouldBlock) => Err(SingleError::Running {
            path: path.to_owned(),
            pid: folder.metadata().ok().and_then(|metadata| owner(metadata.ino())),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// Who holds the lock, for people.
fn owner(inode: u64) -> Option<u32> {
    parse_owner(&fs::read_to_string("/proc/locks").ok()?, inode)
}

/// Of `1: FLOCK  ADVISORY  WRITE 712 00:1f:2 0 EOF`: 712 for inode 2.
fn parse_owner(locks: &str, inode: u64) -> Option<u32> {
    locks.lines().find_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        if words.next()? != "FLOCK" {
            return None;
        }
        let pid = words.nth(2)?;
        let (_, found) = words.next()?.rsplit_once(':')?;
        if found.parse() == Ok(inode) {
            pid.parse().ok()
        } else {
            None
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_one_is_refused_and_told_who() {
        let folder = tempfile::tempdir().unwrap();
        let first = lock(folder.path()).unwrap();
        match lock(folder.path()) {
            Err(SingleError::Running { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("{other:?}"),
        }
        drop(first);
        lock(folder.path()).unwrap();
    }

    #[test]
    fn owners_are_found_by_inode() {
        let locks =
            "1: POSIX  ADVISORY  WRITE 5 00:1f:2 0 EOF\n2: FLOCK  ADVISORY  WRITE 712 00:1f:2 0 EOF\n2: -> FLOCK";
        assert_eq!(parse_owner(locks, 2), Some(712));
        assert_eq!(parse_owner(locks, 3), None);
        assert_eq!(parse_owner("", 2), None);
    }
}
