//! Names of user ids, from /etc/passwd alone.
//!
//! Owns a copy of the file that is read again when it changes. It is given user ids. It must never ask a name service:
//! that may wait for a process which we hold.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use parking_lot::Mutex;

/// Largest user database that is read, in bytes.
const PASSWD_BYTES: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Users {
    path: PathBuf,
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    changed: Option<SystemTime>,
    names: HashMap<u32, String>,
}

impl Users {
    pub(super) fn new(path: PathBuf) -> Self {
        Self {
            path,
            read: Mutex::default(),
        }
    }

    /// The first name with this id.
    pub(super) fn name(&self, uid: u32) -> Option<String> {
        let metadata = fs::metadata(&self.path).ok()?;
        let changed = metadata.modified().ok();
        let mut read = self.read.lock();
        if read.changed != changed || changed.is_none() {
            if metadata.len() > PASSWD_BYTES {
                return None;
            }
            read.names = parse(&fs::read(&self.path).ok()?);
            read.changed = changed;
        }
        read.names.get(&uid).cloned()
    }
}

pub(super) fn parse(passwd: &[u8]) -> HashMap<u32, String> {
    let mut names = HashMap::new();
    for line in passwd.split(|b| *b == b'\n') {
        let mut fields = line.split(|b| *b == b':');
        let (Some(name), Some(_), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let (Ok(name), Ok(uid)) = (std::str::from_utf8(name), std::str::from_utf8(uid)) else {
            continue;
        };
        let Ok(uid) = uid.parse::<u32>() else { continue };
        if !name.is_empty() && name.len() <= 64 {
            names.entry(uid).or_insert_with(|| name.to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("passwd");
        fs::write(
            &path,
            b"root:x:0:0::/root:/bin/sh\ntoor:x:0:0::/:\nbroken\nx:y:z\n\xff:x:5:5::/:/\n",
        )
        .unwrap();
        let users = Users::new(path.clone());
        assert_eq!(users.name(0).as_deref(), Some("root"));
        assert_eq!(users.name(5), None);
        assert_eq!(Users::new("/nowhere".into()).name(0), None);
    }
}
