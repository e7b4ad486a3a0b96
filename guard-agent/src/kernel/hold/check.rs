//! Compares a new image, stopped before its first instruction, with what was approved.
//!
//! Owns the comparison; given the stopped process and what was read before. It runs on a worker. It must never call
//! anything equal that it could not read.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use aws_lc_rs::digest;
use guard_common::ActionKey;
use sha2::{Digest, Sha256};

use super::read::{Detail, named_by_kernel};
use crate::kernel::api::{ExecExpectation, FileKey, Mismatch, MismatchWhat};
use crate::kernel::maps::Identify;
use crate::kernel::ring::file_key;
use crate::kernel::sys::Tid;

/// A stopped program waits no longer for its hash.
pub(crate) const HASH_FOR: Duration = Duration::from_secs(30);
const MAX_VECTOR: u64 = 32 << 20;

fn unreadable(what: &str, error: impl std::fmt::Display) -> Mismatch {
    Mismatch {
        what: MismatchWhat::Unreadable,
        approved: what.to_owned(),
        found: error.to_string(),
    }
}

fn differs(what: MismatchWhat, approved: impl Into<String>, found: impl Into<String>) -> Mismatch {
    Mismatch {
        what,
        approved: approved.into(),
        found: found.into(),
    }
}

fn text(key: &FileKey) -> String {
    format!(
        "device {}:{} inode {} generation {}",
        key.device >> 20,
        key.device & 0xf_ffff,
        key.inode,
        key.generation
    )
}

/// The kernel's own keys: what was asked for, and the last file that passed its check (the interpreter of a script).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gated {
    pub asked: ActionKey,
    pub last: ActionKey,
}

/// Compares everything; the first difference is the answer.
pub(crate) fn compare(
    pid: Tid,
    gated: &Gated,
    expected: &ExecExpectation,
    detail: &Detail,
    identify: &Identify,
) -> Result<(), Mismatch> {
    if file_key(&gated.asked) != expected.file {
        return Err(differs(
            MismatchWhat::File,
            text(&expected.file),
            text(&file_key(&gated.asked)),
        ));
    }
    let image = File::open(format!("/proc/{pid}/exe")).map_err(|error| unreadable("the executable", error))?;
    let running =
        named_by_kernel(&image, identify).ok_or_else(|| unreadable("the executable", "the kernel did not name it"))?;
    if running != gated.last {
        return Err(differs(
            MismatchWhat::File,
            text(&file_key(&gated.last)),
            text(&file_key(&running)),
        ));
    }
    let script = gated.last != gated.asked;
    arguments(pid, script, expected, detail)?;
    environment(pid, expected)?;
    let cwd = fs::read_link(format!("/proc/{pid}/cwd")).map_err(|error| unreadable("the working directory", error))?;
    if cwd != expected.cwd {
        let shown = |path: &std::path::Path| path.display().to_string();
        return Err(differs(MismatchWhat::Cwd, shown(&expected.cwd), shown(&cwd)));
    }
    // Last, because it takes longest: what may have changed meanwhile is the content.
    let file = detail
        .file
        .as_ref()
        .ok_or_else(|| unreadable("the file's content", "it could not be opened"))?;
    let file = File::from(
        file.try_clone()
            .map_err(|error| unreadable("the file's content", error))?,
    );
    let found = hash(&file, Instant::now() + HASH_FOR).map_err(|error| unreadable("the file's content", error))?;
    if found != expected.sha256 {
        return Err(differs(
            MismatchWhat::Content,
            hex::encode(expected.sha256),
            hex::encode(found),
        ));
    }
    Ok(())
}

fn vector(pid: Tid, name: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(format!("/proc/{pid}/{name}"))?
        .take(MAX_VECTOR)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 == MAX_VECTOR {
        return Err(io::Error::other("it is too long"));
    }
    Ok(bytes)
}

fn arguments(pid: Tid, script: bool, expected: &ExecExpectation, detail: &Detail) -> Result<(), Mismatch> {
    let found = vector(pid, "cmdline").map_err(|error| unreadable("argv", error))?;
    let different = |found: &[u8]| {
        Err(differs(
            MismatchWhat::Argv,
            hex::encode(expected.argv_sha256),
            hex::encode(Sha256::digest(found)),
        ))
    };
    if !script {
        return if Sha256::digest(&found)[..] == expected.argv_sha256 {
            Ok(())
        } else {
            different(&found)
        };
    }
    // What was approved is what was read; of it, the interpreter gets everything but the first string.
    if detail.argv.sha256 != expected.argv_sha256 {
        return different(&found);
    }
    match rewritten_tail(&found, detail.argv.count) {
        Some((name, tail))
            if Sha256::digest(tail)[..] == detail.tail_sha256
                && (!detail.by_name || name == detail.given.as_os_str().as_bytes()) =>
        {
            Ok(())
        }
        _ => different(&found),
    }
}

/// Of the vector that `#!` made out of `count` strings: the script's name, and what follows it (each with its NUL).
fn rewritten_tail(found: &[u8], count: u64) -> Option<(&[u8], &[u8])> {
    let kept = usize::try_from(count.checked_sub(1)?).ok()?;
    // Ends of all strings; the vector ends with one.
    let mut ends: Vec<usize> = vec![0];
    ends.extend(
        found
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == 0)
            .map(|(index, _)| index + 1),
    );
    if *ends.last()? != found.len() {
        return None;
    }
    let strings = ends.len() - 1;
    // At least the interpreter and the script come before.
    let name = strings.checked_sub(kept + 1)?;
    if name == 0 {
        return None;
    }
    let start = ends[name + 1];
    Some((&found[ends[name]..start - 1], &found[start..]))
}

fn environment(pid: Tid, expected: &ExecExpectation) -> Result<(), Mismatch> {
    let found = vector(pid, "environ").map_err(|error| unreadable("the environment", error))?;
    let found: [u8; 32] = Sha256::digest(&found).into();
    if found == expected.environment_sha256 {
        Ok(())
    } else {
        Err(differs(
            MismatchWhat::Environment,
            hex::encode(expected.environment_sha256),
            hex::encode(found),
        ))
    }
}

/// SHA-256 of a file's content, from its start, wherever its position is. By the library that TLS uses: a stopped program
/// waits for this, and it is several times faster where the CPU has no instructions for it.
pub(crate) fn hash(file: &File, until: Instant) -> io::Result<[u8; 32]> {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0u8; 256 << 10];
    let mut position = 0u64;
    loop {
        if Instant::now() > until {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it took too long to read"));
        }
        let got = match file.read_at(&mut buffer, position) {
            Ok(0) => return hash.finish().as_ref().try_into().map_err(io::Error::other),
            Ok(got) => got,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hash.update(&buffer[..got]);
        position += got as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tail_of_a_rewritten_vector() {
        // execve("./s", ["x", "a", ""]) of "#!/bin/sh -e"
        let found = b"/bin/sh\0-e\0./s\0a\0\0";
        assert_eq!(rewritten_tail(found, 3), Some((&b"./s"[..], &b"a\0\0"[..])));
        // Only argv[0].
        assert_eq!(rewritten_tail(b"/bin/sh\0./s\0", 1), Some((&b"./s"[..], &b""[..])));
        // Nothing was put before: not what an interpreter gets.
        assert_eq!(rewritten_tail(b"a\0b\0", 2), None);
        assert_eq!(rewritten_tail(b"a\0b\0", 5), None);
        assert_eq!(rewritten_tail(b"a\0b", 1), None);
        assert_eq!(rewritten_tail(b"", 1), None);
        assert_eq!(rewritten_tail(b"a\0", 0), None);
    }

    #[test]
    fn content_is_hashed_from_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, b"abc").unwrap();
        let mut file = File::open(&path).unwrap();
        let mut skipped = [0u8; 2];
        file.read_exact(&mut skipped).unwrap();
        let expected: [u8; 32] = Sha256::digest(b"abc").into();
        assert_eq!(hash(&file, Instant::now() + HASH_FOR).unwrap(), expected);
        assert!(hash(&file, Instant::now() - Duration::from_secs(1)).is_err());
    }
}
