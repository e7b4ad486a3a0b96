//! Which homes there are, and what is in them.
//!
//! Owns what is opened at a place, in a home that other people own too. It is given the places. It waits as long as a place
//! makes it wait, so it must never be called but by the workers of `patience`.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use guard_common::protect::{FileId, Protected, flag, kind};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::Deserialize;

use super::What;
use super::changes::Changes;
use super::patience::{Found, Place, Sort};
use crate::kernel::Protect;

pub(super) const HOMES_ROOT: &str = "/home";
const HOMES: usize = 4_096;
const PASSWD_BYTES: u64 = 16 << 20;
/// Directories that come into being while one looks.
const HURRIED: usize = 16;
/// Files directly in a directory of sign-ins.
const SIGN_INS: usize = 256;
const SIGN_IN_BYTES: u64 = 64 << 10;

/// Every home that the user database or the usual places name.
pub(super) fn list() -> Vec<PathBuf> {
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
    if let Ok(entries) = fs::read_dir(HOMES_ROOT) {
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

/// Looks at one place. What is not there is heard of when it comes into being.
pub(super) fn look_at(
    kernel: &Protect,
    place: &Place,
    below: &[(PathBuf, What)],
    changes: Option<&Changes>,
) -> io::Result<Found> {
    if let Some(changes) = changes {
        hear_of(changes, &place.path);
    }
    match place.sort {
        Sort::Home => Ok(look_into(kernel, &place.path, below)),
        Sort::Own(what) | Sort::Configured(what) => {
            let mut found = Found::default();
            if let Some(object) = open(&place.path)?
                && let Some((id, _)) = identify(kernel, &object)?
            {
                found.files.push((id, what.into()));
            }
            Ok(found)
        }
    }
}

/// What is at a path; `None` when there is nothing.
fn open(path: &Path) -> io::Result<Option<OwnedFd>> {
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS);
    match openat2(nix::fcntl::AT_FDCWD, path, how) {
        Ok(object) => Ok(Some(object)),
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Sees to it that the next name on the way to a path is heard of: the last one in its directory, or the first that is
/// missing. Best effort: what is not heard of is found by the next look.
fn hear_of(changes: &Changes, path: &Path) {
    for _ in 0..HURRIED {
        let Some((directory, name)) = nearest(path) else { return };
        let next = directory.join(&name);
        let heard = open(&directory)
            .is_ok_and(|found| found.is_some_and(|directory| changes.of(directory.as_fd(), Some(&name)).is_ok()));
        // Made before it could be heard of: the way goes on below it.
        if !heard || next == path || !matches!(open(&next), Ok(Some(_))) {
            return;
        }
    }
}

/// The last directory that there is above a path, and the name that follows it.
fn nearest(path: &Path) -> Option<(PathBuf, OsString)> {
    let mut name = path.file_name()?;
    for directory in path.ancestors().skip(1) {
        if matches!(open(directory), Ok(Some(_))) {
            return Some((directory.to_owned(), name.to_owned()));
        }
        name = directory.file_name()?;
    }
    None
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
    found.files.push((id, is_home));
    for (path, what) in places {
        let Some((object, followed)) = open_below(&directory, path) else {
            continue;
        };
        match identify(kernel, &object) {
            // Where links lead must be the same person's: else anybody could close a place of others for workloads.
            Ok(Some((id, of))) if !followed || of == owner => {
                found.files.push((id, (*what).into()));
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
        Err(Errno::ELOOP) => open(ResolveFlag::RESOLVE_NO_MAGICLINKS)
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
        found.files.push((id, what.into()));
        if name.as_os_str().as_bytes().starts_with(b"credentials") && name.extension().is_some_and(|e| e == "json") {
            found.consoles.extend(console_of(&object));
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
    for home in passwd_homes(data) {
        assert!(
            home.is_absolute() && home != Path::new("/"),
            "{} is nobody's home",
            home.display()
        );
    }
    if let Some(console) = console_in(data) {
        super::addresses::fuzz_address(&console);
    }
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
    fn what_is_missing_on_the_way_to_a_path_is_heard_of() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        let step = |expected: &str, name: &str| {
            let (directory, next) = nearest(&path).unwrap();
            assert_eq!((directory, next.to_str()), (root.path().join(expected), Some(name)));
        };
        step("", "a");
        fs::create_dir(root.path().join("a")).unwrap();
        step("a", "b");
        fs::create_dir_all(&path).unwrap();
        step("a/b", "c");
        assert_eq!(nearest(Path::new("/")), None);

        let changes = Changes::new().unwrap();
        fs::remove_dir_all(root.path().join("a")).unwrap();
        hear_of(&changes, &path);
        fs::create_dir(root.path().join("a")).unwrap();
        assert!(changes.wait(std::time::Duration::from_secs(10)));
        hear_of(&changes, &path);
        fs::create_dir(root.path().join("a/b")).unwrap();
        assert!(changes.wait(std::time::Duration::from_secs(10)));
    }

    #[test]
    fn a_saved_sign_in_names_its_console() {
        let text = br#"{"url": "https://console.example.org:9000", "username": "x", "token": "t"}"#;
        assert_eq!(console_in(text), Some("console.example.org:9000".to_owned()));
        assert_eq!(console_in(b"{"), None);
        assert_eq!(console_in(br#"{"url": "no"}"#), None);
    }
}
