//! Whether what is attached is what this build would attach.
//!
//! Owns the name of a set of programs and the mark that says which one is pinned; given the pin directory. It must never call a
//! set pinned that is not whole: the mark goes before the first link of another set is pinned, and comes after the last.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

/// A folder with at most one entry, whose name is that of the set.
const FOLDER: &str = "build";

/// Names the programs of one build on one kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Build(String);

impl Build {
    /// `parts`: the object, and whatever else decides what its programs do and where they are attached.
    pub(super) fn of(parts: &[&[u8]]) -> Self {
        let mut digest = Sha256::new();
        for part in parts {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        Self(hex::encode(digest.finalize()))
    }

    fn mark(&self, pins: &Path) -> PathBuf {
        pins.join(FOLDER).join(&self.0)
    }

    /// Whether these are the programs that are pinned.
    pub(super) fn is_marked(&self, pins: &Path) -> bool {
        self.mark(pins).is_dir()
    }

    /// From now on these are pinned.
    pub(super) fn set_mark(&self, pins: &Path) -> io::Result<()> {
        // Folders of the BPF file system, which keeps nothing else than those, links and objects.
        fs::create_dir_all(self.mark(pins))
    }
}

/// From now on nobody knows what is pinned.
pub(super) fn remove_mark(pins: &Path) -> io::Result<()> {
    match fs::remove_dir_all(pins.join(FOLDER)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_parts_are_the_same_build() {
        let build = |parts: &[&str]| Build::of(&parts.iter().map(|part| part.as_bytes()).collect::<Vec<_>>());
        assert_eq!(build(&["object", "6.12"]), build(&["object", "6.12"]));
        for other in [
            &["object", "6.1"][..],
            &["object6.12"],
            &["object", "6.12", ""],
            &["objec", "t6.12"],
        ] {
            assert_ne!(build(&["object", "6.12"]), build(other), "{other:?}");
        }
    }

    #[test]
    fn a_mark_is_of_one_build_until_it_is_removed() {
        let pins = tempfile::tempdir().unwrap();
        let (ours, other) = (Build::of(&[b"ours"]), Build::of(&[b"other"]));
        remove_mark(pins.path()).unwrap();
        assert!(!ours.is_marked(pins.path()));
        ours.set_mark(pins.path()).unwrap();
        assert!(ours.is_marked(pins.path()) && !other.is_marked(pins.path()));
        remove_mark(pins.path()).unwrap();
        assert!(!ours.is_marked(pins.path()));
    }
}
