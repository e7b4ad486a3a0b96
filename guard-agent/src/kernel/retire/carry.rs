//! What another version's programs label is labelled by ours.
//!
//! Owns reading their tables and stamping; given our maps. It must never call everything carried over while a task that
//! they label may be without our label.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::path::Path;

use guard_common::{Cover, Stamp, lasting};

use super::Other;
use crate::kernel::cgroups::{self, LabelError};
use crate::kernel::maps::Maps;
use crate::kernel::pinned::{Pinned, u32_at, u64_at};
use crate::kernel::sys;

/// Walks through all tasks; the second finds nobody new unless tasks without label of ours fork all the time.
const MAX_WALKS: usize = 16;

#[derive(Debug, thiserror::Error)]
pub(crate) enum CarryError {
    #[error("what it labels cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("{0} of its tasks have not got their label yet")]
    Unlabelled(usize),
}

impl Other {
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
                exec_by_rule: 0,
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
