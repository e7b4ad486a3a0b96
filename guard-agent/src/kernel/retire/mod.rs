//! Programs of other versions of Guard on this machine, whose maps this one does not share.
//!
//! Owns what becomes of them; given the pin directory. They stay in force until everything that they labelled is labelled
//! by this version's programs too, and until the agent says that whatever else it enforces is in place. It must never
//! remove a set whose labels it could not read or carry over: what cannot be carried over stays in force, and parks.
//!
//! While two sets are in force an action passes only what both let through: the old one, which nobody answers any more,
//! parks, refuses or lets through as its labels' `away` says.

mod carry;
mod remove;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;

use guard_common::lasting;

use super::load;
use super::pinned::{Pinned, u64_at};

/// Programs without which nothing is enforced.
const WHOLE: [&str; 5] = [
    "guard_exec",
    "guard_fork",
    "guard_exec_commit",
    "guard_execve_end",
    "guard_execveat_end",
];

/// Another version's pin directory.
#[derive(Debug)]
pub(crate) struct Other {
    folder: PathBuf,
    /// Its cgroups are labelled by our programs too; later changes are ours alone.
    cgroups_carried: bool,
    /// Every task that it labels is labelled by our programs too.
    carried: bool,
}

/// When what is there came into force, and when somebody last answered it: nanoseconds since boot, 0 if not known.
#[derive(Debug, Default)]
pub(crate) struct Before {
    pub enforcing_since_ns: u64,
    pub last_beat_ns: u64,
}

/// Pin directories of versions other than `ours`, whatever is left in them.
pub(crate) fn others(root: &Path, ours: &Path) -> Vec<Other> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| entry.file_name().to_str().is_some_and(is_version))
        .map(|entry| entry.path())
        .filter(|folder| folder != ours)
        .map(|folder| Other {
            folder,
            cgroups_carried: false,
            carried: false,
        })
        .collect()
}

fn is_version(name: &str) -> bool {
    name.strip_prefix('v')
        .is_some_and(|number| number.parse::<u16>().is_ok())
}

impl Other {
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    fn map(&self, name: &str, key: usize, value: usize) -> io::Result<Pinned> {
        Pinned::open(&self.folder.join("maps").join(name), key, value)
    }

    /// Whether it enforced until now: the programs that every version has are attached.
    pub(crate) fn is_whole(&self) -> bool {
        let links = self.folder.join("links");
        WHOLE.iter().all(|name| links.join(name).exists())
    }

    /// Whether some program of it may be attached.
    fn in_force(&self) -> bool {
        !links(&self.folder).is_ok_and(|links| links.is_empty())
    }

    pub(crate) fn before(&self) -> Before {
        let element = |name, size| self.map(name, 4, size).ok()?.get(&0u32.to_ne_bytes());
        let config = element("CONFIG", lasting::CONFIG_AGENT_TGID + 4);
        let beat = element("HEARTBEAT", 8);
        Before {
            enforcing_since_ns: config
                .and_then(|value| u64_at(&value, lasting::CONFIG_ENFORCING_SINCE))
                .unwrap_or(0),
            last_beat_ns: beat.and_then(|value| u64_at(&value, 0)).unwrap_or(0),
        }
    }

    /// Its programs protect this process from now on; whoever got the number of the agent before us is nobody to them.
    pub(crate) fn name_agent(&self) {
        let named = || -> io::Result<()> {
            let (key, at) = (0u32.to_ne_bytes(), lasting::CONFIG_AGENT_TGID);
            let config = self.map("CONFIG", 4, at + 4)?;
            let mut value = config.get(&key).ok_or_else(|| io::Error::other("it is empty"))?;
            value
                .get_mut(at..at + 4)
                .ok_or_else(|| io::Error::other("it is too short"))?
                .copy_from_slice(&std::process::id().to_ne_bytes());
            config.set(&key, &value)
        };
        if self.in_force()
            && let Err(error) = named()
        {
            tracing::warn!(folder = %self.folder.display(), %error, "another version's programs do not know this agent");
        }
    }

    pub(crate) fn is_carried(&self) -> bool {
        self.carried
    }
}

/// The links that are pinned there.
pub(super) fn links(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder.join("links")) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Removes sets that are not needed any more, away from the holder's thread.
pub(crate) fn retire_all(others: Vec<Other>) -> io::Result<()> {
    thread::Builder::new().name("retire".into()).spawn(move || {
        for other in others {
            match other.retire() {
                Ok(continued) => tracing::info!(
                    folder = %other.folder.display(),
                    continued,
                    "programs of another version are removed; the processes that they had parked ask again"
                ),
                Err(error) => tracing::error!(
                    folder = %other.folder.display(),
                    %error,
                    "programs of another version could not be removed: restart the agent to try again"
                ),
            }
        }
    })?;
    Ok(())
}

/// What an agent that starts does first with the sets of other versions: their labels become ours too.
pub(crate) fn carry_over_all(loaded: &mut load::Loaded) {
    for other in &mut loaded.others {
        if let Err(error) = other.carry_over(&mut loaded.maps, &loaded.pins) {
            tracing::error!(
                folder = %other.folder.display(),
                %error,
                "programs of another version stay in force beside ours, and park what nobody answers; tried again"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_versions_are_others() {
        let root = tempfile::tempdir().unwrap();
        for name in ["v2", "v3", "v65535", "v65536", "vx", "v", "2", "old"] {
            fs::create_dir(root.path().join(name)).unwrap();
        }
        fs::write(root.path().join("v1"), "").unwrap();
        let ours = root.path().join("v3");
        let mut found: Vec<_> = others(root.path(), &ours)
            .iter()
            .map(|other| other.folder.file_name().unwrap().to_owned())
            .collect();
        found.sort();
        assert_eq!(found, ["v2", "v65535"]);
        assert!(others(&root.path().join("none"), &ours).is_empty());
    }

    #[test]
    fn an_empty_one_is_not_in_force_and_goes() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("v2/links")).unwrap();
        fs::create_dir_all(root.path().join("v2/maps")).unwrap();
        let other = others(root.path(), &root.path().join("v3")).remove(0);
        assert!(!other.in_force());
        assert_eq!(other.retire().unwrap(), 0);
        assert!(!root.path().join("v2").exists());
    }
}
