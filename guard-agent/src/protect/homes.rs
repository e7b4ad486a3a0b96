//! Looks into home directories, which other people own.
//!
//! Owns the workers that open what is there. It is given the places. It must never wait for a home longer than its
//! deadline: a home may be on a file system that its user serves, and that never answers.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use guard_common::protect::{FileId, Protected, flag, kind};
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::Deserialize;

use super::{What, places};
use crate::kernel::Protect;

/// For one home. One that takes longer is left to its worker, and is not looked at again before that has ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// Workers that may wait for homes which do not answer.
const WAITING: usize = 16;
const HOMES: usize = 4_096;
const PASSWD_BYTES: u64 = 16 << 20;
/// Files directly in a directory of sign-ins.
const SIGN_INS: usize = 256;
const SIGN_IN_BYTES: u64 = 64 << 10;

/// What was found: keys, and the consoles that sign-ins name.
pub(super) type Found = (Vec<(FileId, Protected)>, Vec<String>);

#[derive(Debug)]
pub(super) struct Homes {
    kernel: Arc<Protect>,
    places: Arc<Vec<(PathBuf, What)>>,
    /// Homes that did not answer, and where the answer will come.
    waiting: HashMap<PathBuf, Receiver<Found>>,
}

impl Homes {
    pub(super) fn new(kernel: Arc<Protect>, paths: &[PathBuf]) -> Self {
        Self {
            kernel,
            places: Arc::new(places::in_homes(paths)),
            waiting: HashMap::new(),
        }
    }

    /// Looks at every home that answers in time.
    pub(super) fn look(&mut self) -> Found {
        let mut all = Found::default();
        self.waiting.retain(|_, late| match late.try_recv() {
            Ok(found) => {
                all.0.extend(found.0);
                all.1.extend(found.1);
                false
            }
            Err(error) => error == mpsc::TryRecvError::Empty,
        });
        let mut homes = list()
            .into_iter()
            .filter(|home| !self.waiting.contains_key(home))
            .collect::<Vec<_>>();
        while !homes.is_empty() {
            if self.waiting.len() >= WAITING {
                tracing::error!(
                    homes = homes.len(),
                    "too many home directories do not answer; the other ones are protected by name alone"
                );
                break;
            }
            homes = self.look_at(homes, &mut all);
        }
        all
    }

    /// Looks at homes until one does not answer; gives those behind it.
    fn look_at(&mut self, homes: Vec<PathBuf>, all: &mut Found) -> Vec<PathBuf> {
        let (kernel, places) = (Arc::clone(&self.kernel), Arc::clone(&self.places));
        let left_alone = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let (theirs, stop) = (homes.clone(), Arc::clone(&left_alone));
        let started = thread::Builder::new().name("homes".into()).spawn(move || {
            for home in theirs {
                let found = look_into(&kernel, &home, &places);
                if sender.send(found).is_err() || stop.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        if let Err(error) = started {
            tracing::error!(%error, "home directories cannot be looked at; they are protected by name alone");
            return Vec::new();
        }
        let mut homes = homes.into_iter();
        for home in homes.by_ref() {
            match receiver.recv_timeout(PATIENCE) {
                Ok(found) => {
                    all.0.extend(found.0);
                    all.1.extend(found.1);
                }
                Err(_) => {
                    left_alone.store(true, Ordering::Release);
                    tracing::warn!(home = %home.display(), "a home directory does not answer; it is protected by name alone until it does");
                    self.waiting.insert(home, receiver);
                    break;
                }
            }
        }
        homes.collect()
    }
}

/// Every home that the user database or the usual places name.
fn list() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from("/root")];
    let passwd = File::open("/etc/passwd").and_then(|file| {
        let mut bytes = Vec::new();
        file.take(PASSWD_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    });
    match passwd {
        Ok(bytes) => all.extend(passwd_homes(&bytes)),
        Err(error) => tracing::warn!(%error, "/etc/passwd cannot be read"),
    }
    if let Ok(entries) = fs::read_dir("/home") {
        all.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    all.sort();
    all.dedup();
    if all.len() > HOMES {
        tracing::error!(
            homes = all.len(),
            limit = HOMES,
            "too many home directories; the last ones are protected by name alone"
        );
        all.truncate(HOMES);
    }
    all
}

fn passwd_homes(passwd: &[u8]) -> Vec<PathBuf> {
    passwd
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b':').nth(5))
        .map(|home| PathBuf::from(std::ffi::OsStr::from_bytes(home)))
        // Of accounts that nobody uses; a whole file system is nobody's home.
        .filter(|home| home.is_absolute() && home.as_path() != Path::new("/") && !home.starts_with("/proc"))
        .collect()
}

/// The key of what is at a path of the host; `None` when there is nothing.
pub(super) fn identify_path(kernel: &Protect, path: &Path) -> io::Result<Option<FileId>> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(nix::fcntl::AT_FDCWD, path, how) {
        Ok(object) => identify(kernel, &object).map(|found| found.map(|(id, _)| id)),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Key and owner; `None` for what is neither a directory nor a regular file.
fn identify(kernel: &Protect, object: &OwnedFd) -> io::Result<Option<(FileId, u32)>> {
    let meta = File::from(object.try_clone()?).metadata()?;
    if !meta.is_dir() && !meta.is_file() {
        return Ok(None);
    }
    Ok(Some((kernel.identify(object, meta.is_dir())?, meta.uid())))
}

fn look_into(kernel: &Protect, home: &Path, places: &[(PathBuf, What)]) -> Found {
    let mut found = Found::default();
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let Ok(directory) = openat2(nix::fcntl::AT_FDCWD, home, how) else {
        return found;
    };
    let Ok(Some((id, owner))) = identify(kernel, &directory) else {
        return found;
    };
    let is_home = Protected {
        flags: flag::HOME,
        kind: kind::SIGN_IN,
    };
    found.0.push((id, is_home));
    for (path, what) in places {
        let Some((object, followed)) = open_below(&directory, path) else {
            continue;
        };
        match identify(kernel, &object) {
            // Where links lead must be the same person's: else anybody could close a place of others for workloads.
            Ok(Some((id, of))) if !followed || of == owner => {
                found.0.push((id, (*what).into()));
                if what.kind == kind::SIGN_IN {
                    sign_ins(kernel, &object, *what, &mut found);
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(path = %home.join(path).display(), %error, "protected by name alone");
            }
        }
    }
    found
}

/// Whether links were followed.
fn open_below(directory: &OwnedFd, path: &Path) -> Option<(OwnedFd, bool)> {
    let open = |resolve| {
        let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(resolve);
        openat2(directory, path, how)
    };
    match open(ResolveFlag::RESOLVE_NO_SYMLINKS) {
        Ok(object) => Some((object, false)),
        Err(nix::errno::Errno::ELOOP) => open(ResolveFlag::RESOLVE_NO_MAGICLINKS)
            .ok()
            .map(|object| (object, true)),
        Err(_) => None,
    }
}

/// The files of sign-ins, by themselves: they may have other names elsewhere. And which consoles they are for.
fn sign_ins(kernel: &Protect, directory: &OwnedFd, what: What, found: &mut Found) {
    let Ok(entries) = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd())) else {
        return;
    };
    for entry in entries.filter_map(Result::ok).take(SIGN_INS) {
        let name = PathBuf::from(entry.file_name());
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let Ok(object) = openat2(directory, &name, how) else {
            continue;
        };
        let Ok(Some((id, _))) = identify(kernel, &object) else {
            continue;
        };
        found.0.push((id, what.into()));
        if name.as_os_str().as_bytes().starts_with(b"credentials") && name.extension().is_some_and(|e| e == "json") {
            found.1.extend(console_of(&object));
        }
    }
}

fn console_of(object: &OwnedFd) -> Option<String> {
    let file = File::open(format!("/proc/self/fd/{}", object.as_raw_fd())).ok()?;
    let mut bytes = Vec::new();
    file.take(SIGN_IN_BYTES).read_to_end(&mut bytes).ok()?;
    console_in(&bytes)
}

/// The console that a saved sign-in is for; nothing else of it is kept.
fn console_in(sign_in: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct SignIn {
        url: String,
    }
    let sign_in: SignIn = serde_json::from_slice(sign_in).ok()?;
    super::addresses::host_and_port(&sign_in.url)
}

/// For the fuzzer: any bytes as a user database and as a saved sign-in.
pub fn fuzz_homes(data: &[u8]) {
    let _ = passwd_homes(data);
    let _ = console_in(data);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn homes_of_the_user_database() {
        let passwd =
            b"root:x:0:0:root:/root:/bin/sh\nodd\nx:x:1:1::/:/bin/sh\nbob:x:7:7:,,:/home/bob:/bin/sh\nn:x:8:8:::\n";
        assert_eq!(
            passwd_homes(passwd),
            [PathBuf::from("/root"), PathBuf::from("/home/bob")]
        );
    }

    #[test]
    fn a_saved_sign_in_names_its_console() {
        let text = br#"{"url": "https://console.example.org:9000", "username": "x", "token": "t"}"#;
        assert_eq!(console_in(text), Some("console.example.org:9000".to_owned()));
        assert_eq!(console_in(b"{"), None);
        assert_eq!(console_in(br#"{"url": "no"}"#), None);
    }
}
