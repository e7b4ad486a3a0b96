//! The data directory: where the console keeps its database, keys and set-up link.
//!
//! Owns the names and permissions of those files. It is given a path and makes the directory private on first use. It
//! must never write a secret to a file that others can read, not even for a moment.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use guard_evidence::files;

/// SQLite gives its two companion files the same permissions.
pub const DATABASE_FILE: &str = "console.db";

/// What a backup has besides the database. The set-up link is left out: it is only good for one of the two.
pub const KEPT_FILES: &[(&str, Readers)] = &[
    ("ca.pem", Readers::Anyone),
    ("ca.key", Readers::Owner),
    ("decision.key", Readers::Owner),
    ("decision-next.key", Readers::Owner),
    ("log.key", Readers::Owner),
    ("log-next.key", Readers::Owner),
    ("log-origin", Readers::Anyone),
];

/// An error that names the file and what was tried.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}: {why}", path.display())]
pub struct DataDirError {
    what: &'static str,
    path: PathBuf,
    why: io::Error,
}

fn failed<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> DataDirError + 'a {
    move |why| DataDirError {
        what,
        path: path.to_owned(),
        why,
    }
}

/// A data directory that exists and that only its owner can list.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
}

/// Who may read a file of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// 0600.
    Owner,
    /// 0644.
    Anyone,
}

impl Readers {
    fn mode(self) -> u32 {
        match self {
            Self::Owner => 0o600,
            Self::Anyone => 0o644,
        }
    }
}

impl DataDir {
    /// Makes the directory with mode 0700 when it is missing; refuses one that others may write to.
    pub fn open_or_create(root: &Path) -> Result<Self, DataDirError> {
        if !root.exists() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(root)
                .map_err(failed("create", root))?;
        }
        Self::open(root)
    }

    pub fn open(root: &Path) -> Result<Self, DataDirError> {
        let metadata = fs::metadata(root).map_err(failed("read", root))?;
        if !metadata.is_dir() {
            return Err(failed("use", root)(io::Error::other("not a directory")));
        }
        if metadata.permissions().mode() & 0o022 != 0 {
            let why = "others may write to it; as its owner run: chmod go-w";
            return Err(failed("use", root)(io::Error::other(format!(
                "{why} {}",
                root.display()
            ))));
        }
        Ok(Self { root: root.to_owned() })
    }

    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    #[must_use]
    pub fn database(&self) -> PathBuf {
        self.path(DATABASE_FILE)
    }

    /// Makes an empty file that only its owner can read, for something that would make it readable to others.
    pub fn make_private(&self, name: &str) -> Result<(), DataDirError> {
        let path = self.path(name);
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(failed("create", &path)(e)),
            _ => Ok(()),
        }
    }

    /// Reads a whole file; `None` when there is none.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>, DataDirError> {
        let path = self.path(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("read", &path)(e)),
        }
    }

    /// Replaces a file as a whole: readers see the old or the new one, and after a crash too.
    pub fn write(&self, name: &str, readers: Readers, bytes: &[u8]) -> Result<(), DataDirError> {
        let path = self.path(name);
        files::replace(&path, bytes, readers.mode()).map_err(failed("write", &path))
    }

    /// Sets who may read a file that something else wrote, and waits until it is on disk.
    pub fn sync(&self, readers: Readers, path: &Path) -> Result<(), DataDirError> {
        let sync = || -> io::Result<()> {
            let file = fs::File::open(path)?;
            file.set_permissions(fs::Permissions::from_mode(readers.mode()))?;
            file.sync_all()?;
            fs::File::open(&self.root)?.sync_all()
        };
        sync().map_err(failed("finish", path))
    }

    /// Gives a file another name; what had that is gone.
    pub fn rename(&self, from: &str, to: &str) -> Result<(), DataDirError> {
        let path = self.path(to);
        let renamed = fs::rename(self.path(from), &path).and_then(|()| fs::File::open(&self.root)?.sync_all());
        renamed.map_err(failed("replace", &path))
    }

    /// Removing what is not there is fine.
    pub fn remove(&self, name: &str) -> Result<(), DataDirError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(e)),
            _ => Ok(()),
        }
    }

    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_from_the_start_and_replaced_as_a_whole() {
        let base = tempfile::tempdir().unwrap();
        let root = base.path().join("a/b");
        let dir = DataDir::open_or_create(&root).unwrap();
        assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
        dir.write("secret", Readers::Owner, b"one").unwrap();
        dir.write("secret", Readers::Owner, b"two").unwrap();
        assert_eq!(dir.read("secret").unwrap().unwrap(), b"two");
        assert_eq!(
            fs::metadata(dir.path("secret")).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(dir.read("nothing").unwrap().is_none());
        dir.remove("nothing").unwrap();
    }

    #[test]
    fn a_directory_that_others_write_to_is_refused() {
        let base = tempfile::tempdir().unwrap();
        fs::set_permissions(base.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let error = DataDir::open(base.path()).unwrap_err().to_string();
        assert!(error.contains("chmod go-w"), "{error}");
    }
}
