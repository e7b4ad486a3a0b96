//! The key that signs this host's records, and the one that is to follow it.
//!
//! Owns both files of an identity. It is given their directory. It must never lose the key in use before the one that
//! follows it has begun its epoch on disk.
//!
//! A key is replaced in steps, and after a crash at any of them a start goes on from what is on disk: the next key is
//! written ([`Keys::prepare`]); a record of the old key names it; when the console holds that record, the next key's first
//! record ends the epoch; the file takes the old one's place ([`Keys::replace`]). Which key is in force is what the last
//! record on disk is signed with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use guard_evidence::key::{Algorithm, SigningKey};

use crate::files;

/// Of an identity: PKCS#8 PEM.
pub(crate) const KEY: &str = "evidence.key";
const NEXT: &str = "evidence-next.key";

/// See the module.
pub(super) struct Keys {
    directory: PathBuf,
    current: SigningKey,
    next: Option<SigningKey>,
}

impl Keys {
    /// # Errors
    /// A file that is there and cannot be used; it is never replaced silently.
    pub(super) fn open(directory: &Path, current: SigningKey) -> Result<Self, String> {
        let path = directory.join(NEXT);
        let next = match fs::read_to_string(&path) {
            Ok(pem) => Some(SigningKey::from_pkcs8_pem(&pem).map_err(|e| format!("{}: {e}", path.display()))?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        Ok(Self {
            directory: directory.to_owned(),
            current,
            next,
        })
    }

    pub(super) fn current(&self) -> &SigningKey {
        &self.current
    }

    pub(super) fn next(&self) -> Option<&SigningKey> {
        self.next.as_ref()
    }

    /// Makes the next key and puts it on disk; one that waits already stays.
    pub(super) fn prepare(&mut self, algorithm: Algorithm) -> Result<&SigningKey, String> {
        let next = match self.next.take() {
            Some(next) => next,
            None => {
                let key = SigningKey::generate_for(algorithm, &mut guard_evidence::rand_core::OsRng);
                let pem = key.to_pkcs8_pem().map_err(|e| e.to_string())?;
                let path = self.directory.join(NEXT);
                files::replace(&path, pem.as_bytes(), 0o600).map_err(|e| format!("{}: {e}", path.display()))?;
                key
            }
        };
        Ok(self.next.insert(next))
    }

    /// The next key is in force: the old one is gone for ever.
    pub(super) fn replace(&mut self) -> Result<(), String> {
        let (from, to) = (self.directory.join(NEXT), self.directory.join(KEY));
        if self.next.is_none() {
            return Err(format!("{}: there is no next key", from.display()));
        }
        fs::rename(&from, &to)
            .and_then(|()| fs::File::open(&self.directory)?.sync_all())
            .map_err(|e| format!("{}: {e}", to.display()))?;
        if let Some(next) = self.next.take() {
            self.current = next;
        }
        Ok(())
    }
}

/// Whether the key in this directory has been in use for so long, and none waits to follow it.
pub(crate) fn is_due(directory: &Path, every: Duration) -> bool {
    let made = fs::metadata(directory.join(KEY)).and_then(|metadata| metadata.modified());
    // A file of the future: the clock was set back, and will come there.
    let age = made.ok().and_then(|made| SystemTime::now().duration_since(made).ok());
    age.is_some_and(|age| age >= every) && !directory.join(NEXT).exists()
}
