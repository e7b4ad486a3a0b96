//! Small files that must be there whole or not at all.
//!
//! Owns atomic replacement with modes and syncs. It is given bytes. It must never leave a secret readable by others, not
//! even for a moment.

use std::fs::{File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Replaces a file by one with these bytes and exactly this mode; after an error or a crash the old one is still there.
/// Two who do so at the same time leave what one of them wrote.
///
/// # Errors
/// When the directory cannot be written or a sync fails.
pub fn replace(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent,
        _ => Path::new("."),
    };
    let mut prefix = std::ffi::OsString::from(".");
    prefix.push(name);
    // Made with mode 0600.
    let mut file = tempfile::Builder::new()
        .prefix(&prefix)
        .suffix(".new")
        .tempfile_in(directory)?;
    file.write_all(bytes)?;
    file.as_file().set_permissions(Permissions::from_mode(mode))?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    File::open(directory)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn replaces_with_the_mode_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        for (bytes, mode) in [(&b"one"[..], 0o600), (b"two", 0o644), (b"", 0o600)] {
            replace(&path, bytes, mode).unwrap();
            assert_eq!(fs::read(&path).unwrap(), bytes);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
        assert!(replace(&dir.path().join("no/key"), b"x", 0o600).is_err());
        fs::create_dir(dir.path().join("directory")).unwrap();
        assert!(replace(&dir.path().join("directory"), b"x", 0o600).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn a_link_is_replaced_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (path, target) = (dir.path().join("key"), dir.path().join("target"));
        fs::write(&target, b"theirs").unwrap();
        std::os::unix::fs::symlink(&target, &path).unwrap();
        replace(&path, b"ours", 0o600).unwrap();
        assert_eq!(
            (fs::read(&path).unwrap(), fs::read(&target).unwrap()),
            (b"ours".to_vec(), b"theirs".to_vec())
        );
    }
}
