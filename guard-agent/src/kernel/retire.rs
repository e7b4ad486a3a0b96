//! Programs of other versions of Guard on this machine, whose maps this one does not share.
//!
//! Owns what becomes of them; given the pin directory. They stay in force until everything that they labelled is labelled
//! by this version's programs too, and until the agent says that whatever else it enforces is in place. It must never
//! remove a set whose labels it could not read or carry over: what cannot be carried over stays in force, and parks.
//!
//! While two sets are in force an action passes only what both let through: the old one, which nobody answers any more,
//! parks, refuses or lets through as its labels' `away` says.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use guard_common::{Cover, Stamp, VerdictKey, lasting, state, verdict};

use super::cgroups::{self, LabelError};
use super::maps::Maps;
use super::pinned::{Pinned, u32_at, u64_at};
use super::{crash, load, sys};

/// Walks through all tasks; the second finds nobody new unless tasks without label of ours fork all the time.
const MAX_WALKS: usize = 16;
/// Between two looks at what is parked, and how many there are once nothing of the old set runs any more.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: usize = 4;
/// For the kernel to let go of a program whose link is gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);

/// Programs without which nothing is enforced.
const WHOLE: [&str; 5] = [
    "guard_exec",
    "guard_fork",
    "guard_exec_commit",
    "guard_execve_end",
    "guard_execveat_end",
];

#[derive(Debug, thiserror::Error)]
pub(crate) enum CarryError {
    #[error("what it labels cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("{0} of its tasks have not got their label yet")]
    Unlabelled(usize),
}

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
        links(&self.folder).is_ok_and(|links| !links.is_empty())
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

    /// Labels by our programs what it labels: its cgroups, and each task that carries its label, in whatever cgroup that
    /// is now. `ours` is our pin directory.
    pub(crate) fn carry_over(&mut self, maps: &mut Maps, ours: &Path) -> Result<(), CarryError> {
        if self.carried {
            return Ok(());
        }
        if self.in_force() {
            let origins = self.origins()?;
            let mut labels: Vec<(u64, u32)> = origins.values().copied().collect();
            labels.sort_unstable();
            labels.dedup();
            for (cgroup, label) in labels {
                self.inherit(maps, cgroup, label)?;
            }
            self.cgroups_carried = true;
            self.carry_stamps(maps, &ours.join("maps/TASKS"), &origins)?;
        }
        self.carried = true;
        Ok(())
    }

    /// Our programs label this cgroup as the others do.
    fn inherit(&self, maps: &mut Maps, cgroup: u64, label: u32) -> Result<(), CarryError> {
        if maps.origins.get(&cgroup, 0).is_ok() {
            return Ok(());
        }
        let labelled = if self.cgroups_carried {
            cgroups::exists(cgroup)
        } else {
            cgroups::label(maps, cgroup, label)
        };
        match labelled {
            Ok(()) | Err(LabelError::Inner(..)) => Ok(()),
            // Tasks that left it before may carry its label.
            Err(LabelError::Gone(..)) => Ok(cgroups::depart(maps, cgroup, label).map_err(LabelError::from)?),
            Err(error @ LabelError::Own(_)) => {
                tracing::error!(%error, label, "not labelled as another version has it");
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(crate) fn is_carried(&self) -> bool {
        self.carried
    }

    /// Origin of a label to the cgroup whose label it is, and the label.
    fn origins(&self) -> io::Result<HashMap<u64, (u64, u32)>> {
        let map = self.map("ORIGINS", 8, lasting::ORIGIN_LABEL + 4)?;
        let mut origins = HashMap::new();
        for key in map.keys()? {
            if let Some(value) = map.get(&key)
                && let (Some(origin), Some(under), Some(label)) = (
                    u64_at(&key, 0),
                    u64_at(&value, lasting::ORIGIN_UNDER),
                    u32_at(&value, lasting::ORIGIN_LABEL),
                )
                && label != 0
            {
                origins.insert(origin, (under, label));
            }
        }
        Ok(origins)
    }

    /// Tasks in labelled cgroups have their stamps by now; those that left them before get theirs here.
    fn carry_stamps(
        &self,
        maps: &mut Maps,
        our_tasks: &Path,
        origins: &HashMap<u64, (u64, u32)>,
    ) -> Result<(), CarryError> {
        let tasks = self.map("TASKS", 8, lasting::STAMP_ORIGIN + 8)?;
        let ours = Pinned::open(our_tasks, 8, size_of::<Stamp>())?;
        let stamp = |maps: &Maps, task: &[u8]| -> Option<Stamp> {
            let (under, label) = *origins.get(&u64_at(&tasks.get(task)?, lasting::STAMP_ORIGIN)?)?;
            // Below a cgroup that was labelled further out, that label counts.
            let origin = maps.cgroups.get(&under, 0).unwrap_or(under);
            let label = maps.origins.get(&origin, 0).map_or(label, |found| found.label);
            maps.origins.get(&origin, 0).ok()?;
            Some(Stamp {
                origin,
                label,
                reserved: 0,
            })
        };
        let missing = |maps: &Maps| -> io::Result<HashSet<Vec<u8>>> {
            let mut keys = tasks.keys()?;
            keys.retain(|task| ours.get(task).is_none() && stamp(maps, task).is_some());
            Ok(keys)
        };
        let mut before = missing(maps)?;
        // Dead tasks whose memory is not given back yet have an entry and no number; they were there at each of two walks.
        let mut unseen_before: Option<HashSet<Vec<u8>>> = None;
        for _ in 0..MAX_WALKS {
            if before.is_empty() {
                return Ok(());
            }
            let mut seen = HashSet::new();
            for tid in threads()? {
                let Some((task, start_ns)) = cgroups::look_at(maps, tid).map_err(LabelError::from)? else {
                    continue;
                };
                let key = task.to_ne_bytes();
                seen.insert(key.to_vec());
                if ours.get(&key).is_none()
                    && let Some(stamp) = stamp(maps, &key)
                {
                    cgroups::give(
                        maps,
                        tid,
                        Cover {
                            task,
                            start_ns,
                            give: stamp,
                            ..Cover::default()
                        },
                    )?;
                }
            }
            let after = missing(maps)?;
            if after.is_disjoint(&seen) && after.is_subset(&before) {
                if unseen_before.as_ref() == Some(&after) || after.is_empty() {
                    return Ok(());
                }
                unseen_before = Some(after.clone());
            } else {
                unseen_before = None;
            }
            before = after;
        }
        Err(CarryError::Unlabelled(before.len()))
    }

    /// Detaches its programs, ends what they left unfinished, and lets the processes that they parked ask our programs.
    /// Gives how many that were. Takes a second at least; may be repeated after a failure.
    pub(crate) fn retire(&self) -> io::Result<usize> {
        let pending = self.map("PENDING", 8, lasting::PENDING_STATE + 4);
        let verdicts = self.map("VERDICTS", size_of::<VerdictKey>(), lasting::VERDICT + 4);
        let table = match (pending, verdicts) {
            (Ok(pending), Ok(verdicts)) => Some(Table { pending, verdicts }),
            (Err(error), _) | (_, Err(error)) => {
                if self.folder.join("maps/PENDING").exists() {
                    return Err(error);
                }
                // Gone since an earlier try.
                None
            }
        };
        let mut continued = HashSet::new();
        if let Some(table) = &table {
            table.withdraw_answers()?;
            table.end(None)?;
        }
        let (last, first): (Vec<PathBuf>, Vec<PathBuf>) =
            links(&self.folder)?.into_iter().partition(|link| is_last(link));
        detach(&first)?;
        crash::point("old-programs-half-gone");
        if let Some(table) = &table {
            // Nothing new comes to wait for a comparison now.
            table.end(None)?;
        }
        detach(&last)?;
        crash::point("old-programs-gone");
        if let Some(table) = &table {
            for look in 0..LOOKS {
                if look > 0 {
                    thread::sleep(LOOK);
                }
                table.end(Some(&mut continued))?;
            }
        }
        fs::remove_dir_all(&self.folder)?;
        Ok(continued.len())
    }
}

/// What an old set's questions are.
struct Table {
    pending: Pinned,
    verdicts: Pinned,
}

impl Table {
    /// Its agent's answers count no more, but for comparisons that are done.
    fn withdraw_answers(&self) -> io::Result<()> {
        for key in self.verdicts.keys()? {
            if let Some(value) = self.verdicts.get(&key)
                && u32_at(&value, lasting::VERDICT) != Some(verdict::CHECKED)
            {
                let _ = self.verdicts.remove(&key);
            }
        }
        Ok(())
    }

    /// Kills new images that nobody will compare. With `continued` whatever else was stopped for a question goes on, and
    /// is noted there by its task.
    fn end(&self, mut continued: Option<&mut HashSet<Vec<u8>>>) -> io::Result<()> {
        for task in self.pending.keys()? {
            let Some(value) = self.pending.get(&task) else {
                continue;
            };
            let number = |at| u32_at(&value, at).and_then(|number| sys::Tid::try_from(number).ok());
            let (Some(tgid), Some(tid), Some(state)) = (
                number(lasting::PENDING_TGID).filter(|tgid| *tgid > 0),
                number(lasting::PENDING_TID),
                u32_at(&value, lasting::PENDING_STATE),
            ) else {
                continue;
            };
            if state == state::AWAITS_CHECK && !self.is_checked(&task, &value) {
                let _ = sys::kill(tgid, libc::SIGKILL);
            } else if let Some(continued) = &mut continued {
                // Once is enough unless it was stopped in between: some handle the signal, and a tracer may hide the stop.
                let parked = state != state::LOOPING && !continued.contains(&task);
                if parked || sys::is_stopped(tgid, tid) {
                    let _ = sys::kill(tgid, libc::SIGCONT);
                    continued.insert(task);
                }
            }
        }
        Ok(())
    }

    fn is_checked(&self, task: &[u8], pending: &[u8]) -> bool {
        let asked = pending.get(lasting::PENDING_ASKED..lasting::PENDING_ASKED + 8);
        let key = [task, asked.unwrap_or_default()].concat();
        self.verdicts
            .get(&key)
            .is_some_and(|value| u32_at(&value, lasting::VERDICT) == Some(verdict::CHECKED))
    }
}

/// Every thread of the machine.
fn threads() -> io::Result<Vec<sys::Tid>> {
    let mut threads = Vec::new();
    for process in fs::read_dir("/proc")?.flatten() {
        if number(&process.file_name()).is_none() {
            continue;
        }
        // Empty for one that ends meanwhile.
        let tasks = fs::read_dir(process.path().join("task"))
            .into_iter()
            .flatten()
            .flatten();
        threads.extend(tasks.filter_map(|task| number(&task.file_name())));
    }
    Ok(threads)
}

fn number(name: &std::ffi::OsStr) -> Option<sys::Tid> {
    name.to_str()?.parse().ok().filter(|number| *number > 0)
}

fn links(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder.join("links")) {
        Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// What keeps the tables true and new images stopped goes after whatever asks and refuses. The names are those of every
/// version so far; a program with another name goes first.
fn is_last(link: &Path) -> bool {
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix("-new").unwrap_or(&name);
    name.starts_with("guard_execve")
        || matches!(
            name,
            "guard_exec_commit" | "guard_continue" | "guard_exit" | "guard_task_free"
        )
}

/// Unpins links and waits until the kernel has let go of their programs.
fn detach(links: &[PathBuf]) -> io::Result<()> {
    let mut programs = HashSet::new();
    for path in links {
        match PinnedLink::from_pin(path) {
            Ok(link) => {
                let link: FdLink = link.unpin()?;
                programs.extend(link.info().ok().map(|info| info.program_id()));
            }
            // Not a link: nothing is attached by it.
            Err(_) => fs::remove_file(path)?,
        }
    }
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let left = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| programs.contains(&program.id()))
            .count();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::Error::other(format!("the kernel keeps {left} of its programs")));
        }
        thread::sleep(Duration::from_millis(20));
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

    #[test]
    fn what_keeps_tables_true_goes_last() {
        for (name, last) in [
            ("guard_exec", false),
            ("guard_exec_format", false),
            ("guard_connect_of_another_version", false),
            ("guard_fork", false),
            ("guard_exec_commit", true),
            ("guard_execveat32_end", true),
            ("guard_execve_end-new", true),
            ("guard_continue", true),
            ("guard_task_free", true),
        ] {
            assert_eq!(is_last(Path::new("/x").join(name).as_path()), last, "{name}");
        }
    }
}
