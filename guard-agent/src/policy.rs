//! The policy in force on this host.
//!
//! Owns its file and what replaces it. It is given a path, and texts of those who may replace it. It must never let a text that is not
//! valid take the place of one that is.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use guard_policy::{Policy, PolicyError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::mpsc;

use crate::engine::Event;
use crate::files;

/// Anybody may read what the host's rules are.
const MODE: u32 = 0o644;

/// Why a policy was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PolicyFileError {
    #[error("{path}: {source}\n  → make it readable for root")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} cannot be written: {source}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Policy(#[from] PolicyError),
    #[error("the engine has ended")]
    Engine,
}

/// The policy in force, and its file. Cheap to clone.
#[derive(Debug, Clone)]
pub struct InForce {
    file: Arc<PathBuf>,
    current: Arc<RwLock<Arc<Policy>>>,
    events: mpsc::UnboundedSender<Event>,
    /// Held while the file and the policy in force change together.
    changing: Arc<Mutex<()>>,
}

impl InForce {
    #[must_use]
    pub fn new(file: PathBuf, policy: Arc<Policy>, events: mpsc::UnboundedSender<Event>) -> Self {
        Self {
            file: Arc::new(file),
            current: Arc::new(RwLock::new(policy)),
            events,
            changing: Arc::default(),
        }
    }

    #[must_use]
    pub fn current(&self) -> Arc<Policy> {
        Arc::clone(&self.current.read())
    }

    /// Reads the file again.
    ///
    /// # Errors
    /// When it cannot be read or is not valid; what was in force stays so.
    pub fn reload(&self) -> Result<(), PolicyFileError> {
        let _changing = self.changing.lock();
        self.put(load(&self.file)?)
    }

    /// Checks the text, writes it to the file and puts it into force. `name` is what errors call it.
    ///
    /// # Errors
    /// When it is not valid or the file cannot be written; what was in force stays so.
    pub fn replace(&self, text: &str, name: &str) -> Result<(), PolicyFileError> {
        let policy = guard_policy::parse(text, name)?;
        let _changing = self.changing.lock();
        files::replace(&self.file, text.as_bytes(), MODE).map_err(|source| PolicyFileError::Write {
            path: self.file.as_ref().clone(),
            source,
        })?;
        self.put(policy)
    }

    fn put(&self, policy: Policy) -> Result<(), PolicyFileError> {
        let policy = Arc::new(policy);
        *self.current.write() = Arc::clone(&policy);
        self.events
            .send(Event::PolicyLoaded(policy))
            .map_err(|_| PolicyFileError::Engine)
    }
}

/// Reads and checks the policy file; without one everything is asked for.
///
/// # Errors
/// If it is there and not readable or not valid.
pub fn load(path: &Path) -> Result<Policy, PolicyFileError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(guard_policy::parse(&text, &path.display().to_string())?),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), "there is no policy file: everything that a labelled workload does is asked for");
            Ok(Policy::empty())
        }
        Err(source) => Err(PolicyFileError::Read {
            path: path.to_owned(),
            source,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOW: &str = "permit (principal == Workload::\"a\", action == Action::\"exec\", resource);";

    #[test]
    fn a_text_that_is_not_valid_replaces_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.cedar");
        let (events, mut loaded) = mpsc::unbounded_channel();
        let in_force = InForce::new(file.clone(), Arc::new(load(&file).unwrap()), events);
        in_force.replace(ALLOW, "new").unwrap();
        assert_eq!(
            (
                in_force.current().count,
                std::fs::read_to_string(&file).unwrap().as_str()
            ),
            (1, ALLOW)
        );
        assert!(matches!(loaded.try_recv(), Ok(Event::PolicyLoaded(policy)) if policy.count == 1));
        let error = in_force.replace("permit (principal);", "new").unwrap_err();
        assert!(error.to_string().starts_with("new:1:"), "{error}");
        assert_eq!(
            (
                in_force.current().count,
                std::fs::read_to_string(&file).unwrap().as_str()
            ),
            (1, ALLOW)
        );
        // Nor does one that somebody wrote into the file.
        std::fs::write(&file, "nonsense").unwrap();
        assert!(in_force.reload().is_err());
        assert_eq!(in_force.current().count, 1);
        assert!(loaded.try_recv().is_err());
    }
}
