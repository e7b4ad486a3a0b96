//! Labels cgroups in the kernel map: one directory and everything below it.
//!
//! Owns the agent's writes to the CGROUPS and TASKS maps; given a cgroup id and a label. The outermost label wins. It
//! must never label a cgroup that the agent itself is in.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use guard_common::Label;

use super::maps::Maps;
use super::sys;

const ROOT: &str = "/sys/fs/cgroup";
/// The kernel's own limit is far below.
const MAX_DEPTH: usize = 64;
/// Update only what is there.
const BPF_EXIST: u64 = 2;

#[derive(Debug, thiserror::Error)]
pub(crate) enum LabelError {
    #[error("cgroup {0} is gone: {1}")]
    Gone(u64, io::Error),
    #[error("cgroup {0} holds the agent itself, which must never be held")]
    Own(u64),
    #[error("cgroup {0} lies below cgroup {1}, whose label wins")]
    Inner(u64, u64),
    #[error("a label must not be 0")]
    Zero,
    #[error("the kernel's table of labelled cgroups: {0}")]
    Table(#[from] aya::maps::MapError),
}

/// Ids of the cgroups that the agent is in, from its own up to the root.
fn own() -> HashSet<u64> {
    let text = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::")) else {
        return HashSet::new();
    };
    let mut ids = HashSet::new();
    let mut folder = PathBuf::from(ROOT);
    for part in std::iter::once("").chain(path.split('/').filter(|part| !part.is_empty())) {
        folder.push(part);
        if let Ok(metadata) = fs::metadata(&folder) {
            ids.insert(metadata.ino());
        }
    }
    ids
}

/// Labels `cgroup` and what is below it. Cgroups made meanwhile inherit in the kernel, because a directory is labelled
/// before it is listed.
pub(crate) fn label(maps: &mut Maps, cgroup: u64, label: u32) -> Result<usize, LabelError> {
    if label == 0 {
        return Err(LabelError::Zero);
    }
    if own().contains(&cgroup) {
        return Err(LabelError::Own(cgroup));
    }
    if let Ok(before) = maps.cgroups.get(&cgroup, 0)
        && before.origin != cgroup
    {
        return Err(LabelError::Inner(cgroup, before.origin));
    }
    let gone = |error| LabelError::Gone(cgroup, error);
    let root = File::open(ROOT).map_err(gone)?;
    let folder = sys::open_cgroup(root.as_fd(), cgroup).map_err(gone)?;
    let value = Label {
        origin: cgroup,
        label,
        reserved: 0,
    };
    let mut covered = HashSet::new();
    maps.cgroups.insert(cgroup, value, 0)?;
    covered.insert(cgroup);
    below(
        Path::new(&format!("/proc/self/fd/{}", folder.as_raw_fd())),
        0,
        &mut |id| {
            maps.cgroups.insert(id, value, 0)?;
            covered.insert(id);
            Ok(())
        },
    )?;
    // Tasks that carry an inner label now carry this one.
    let inner: Vec<(u64, Label)> = maps
        .tasks
        .iter()
        .filter_map(Result::ok)
        .filter(|(_, found)| covered.contains(&found.origin) && *found != value)
        .collect();
    for (task, _) in inner {
        // Only if it is still there: its address may belong to nobody by now.
        let _ = maps.tasks.insert(task, value, BPF_EXIST);
    }
    Ok(covered.len())
}

fn below(folder: &Path, depth: usize, each: &mut dyn FnMut(u64) -> Result<(), LabelError>) -> Result<(), LabelError> {
    if depth >= MAX_DEPTH {
        return Ok(());
    }
    // A directory that vanishes meanwhile needs no label.
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(());
    };
    for entry in entries.filter_map(Result::ok) {
        if entry.file_type().is_ok_and(|kind| kind.is_dir())
            && let Ok(metadata) = entry.metadata()
        {
            each(metadata.ino())?;
            below(&entry.path(), depth + 1, each)?;
        }
    }
    Ok(())
}

/// Takes the label that was given to `cgroup` from it, from what is below it, and from the tasks that carry it.
pub(crate) fn unlabel(maps: &mut Maps, cgroup: u64) {
    // Twice: a fork or mkdir during the first pass copies what the second removes.
    for _ in 0..2 {
        let ids: Vec<u64> = maps
            .cgroups
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, label)| label.origin == cgroup)
            .map(|found| found.0)
            .collect();
        for id in ids {
            let _ = maps.cgroups.remove(&id);
        }
        let tasks: Vec<u64> = maps
            .tasks
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, label)| label.origin == cgroup)
            .map(|found| found.0)
            .collect();
        for task in tasks {
            let _ = maps.tasks.remove(&task);
        }
    }
}
