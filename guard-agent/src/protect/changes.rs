//! Hears at once of what may have to be protected: new names in directories, other mounts, addresses of this host.
//!
//! Owns the notifications of the kernel. It is given directories and names. It must never be relied on alone: what is not
//! heard is found by the next look.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use parking_lot::Mutex;

#[derive(Debug)]
pub(super) struct Changes {
    inotify: Inotify,
    /// Which names of a directory matter; `None`: all.
    names: Mutex<HashMap<WatchDescriptor, Option<HashSet<OsString>>>>,
    /// Readable when an address is added to this host or taken away.
    addresses: OwnedFd,
    /// Urgent when something is mounted.
    mounts: File,
}

impl Changes {
    /// # Errors
    /// When the kernel does not give one of the three.
    pub(super) fn new() -> io::Result<Self> {
        let addresses = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            SockProtocol::NetlinkRoute,
        )?;
        let groups = libc::RTMGRP_IPV4_IFADDR | libc::RTMGRP_IPV6_IFADDR;
        bind(addresses.as_raw_fd(), &NetlinkAddr::new(0, groups.unsigned_abs()))?;
        Ok(Self {
            inotify: Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?,
            names: Mutex::default(),
            addresses,
            mounts: File::open("/proc/self/mountinfo")?,
        })
    }

    /// From now on a new `name` (any, if `None`) in the directory counts. May wait for its file system.
    pub(super) fn of(&self, directory: BorrowedFd<'_>, name: Option<&OsStr>) -> io::Result<()> {
        let path = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        let watch = self.inotify.add_watch(&path, flags)?;
        let mut names = self.names.lock();
        match (names.entry(watch).or_insert_with(|| Some(HashSet::new())), name) {
            (Some(some), Some(name)) => {
                some.insert(name.to_owned());
            }
            (all, None) => *all = None,
            (None, Some(_)) => {}
        }
        Ok(())
    }

    /// Waits for a change, at most so long; whether there was one.
    pub(super) fn wait(&self, patience: Duration) -> bool {
        let mut all = [
            PollFd::new(self.inotify.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.addresses.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.mounts.as_fd(), PollFlags::POLLPRI),
        ];
        match poll(&mut all, PollTimeout::try_from(patience).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => return false,
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "changes are not heard of");
                std::thread::sleep(patience);
                return false;
            }
        }
        let mounted = all[2].any().unwrap_or(true);
        // Each has its queue emptied.
        let (named, addressed) = (self.names(), self.address());
        mounted || named || addressed
    }

    fn names(&self) -> bool {
        let mut changed = false;
        loop {
            let events = match self.inotify.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => return changed,
                Err(_) => return true,
            };
            let mut names = self.names.lock();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    names.remove(&event.wd);
                    continue;
                }
                changed |= match (names.get(&event.wd), &event.name) {
                    (Some(Some(wanted)), Some(name)) => wanted.contains(name),
                    // The queue was too short, the directory is not known yet, or every name counts.
                    _ => true,
                };
            }
        }
    }

    fn address(&self) -> bool {
        let mut changed = false;
        let mut buffer = [0; 4096];
        loop {
            match recv(self.addresses.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(_) | Err(Errno::EINTR) => changed = true,
                Err(Errno::EAGAIN) => return changed,
                // Too many for the queue, and whatever else.
                Err(_) => return true,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    const LONG: Duration = Duration::from_secs(10);
    const NONE: Duration = Duration::ZERO;

    #[test]
    fn only_names_that_matter_are_heard() {
        let root = tempfile::tempdir().unwrap();
        let changes = Changes::new().unwrap();
        changes.wait(NONE);
        let directory = File::open(root.path()).unwrap();
        changes.of(directory.as_fd(), Some(OsStr::new("wanted"))).unwrap();
        // Addresses and mounts of the machine may change while this runs: the names alone are looked at.
        fs::write(root.path().join("other"), b"x").unwrap();
        assert!(!changes.names());
        fs::create_dir(root.path().join("wanted")).unwrap();
        assert!(changes.wait(LONG));
        fs::write(root.path().join("x"), b"x").unwrap();
        fs::rename(root.path().join("x"), root.path().join("y")).unwrap();
        assert!(!changes.names());
        changes.of(directory.as_fd(), None).unwrap();
        fs::rename(root.path().join("y"), root.path().join("z")).unwrap();
        assert!(changes.names());
        drop(directory);
        fs::remove_dir_all(root.path()).unwrap();
        changes.names();
        assert!(changes.names.lock().is_empty(), "what is gone is forgotten");
    }
}
