//! Labels cgroups in the kernel's tables: one directory, everything below it, and whoever is inside.
//!
//! Owns the agent's writes to what says who is labelled; given a cgroup id and a label. The outermost label wins. It
//! must never label a cgroup that the agent itself is in, nor call a label in force before every task inside is stamped.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::MapError;
use guard_common::{Cover, LabelSettings, LabelUse, Origin};

use super::maps::Maps;
use super::sys;

pub(super) const ROOT: &str = "/sys/fs/cgroup";
/// The kernel's own limit is far below.
const MAX_DEPTH: usize = 64;
const BPF_NOEXIST: u64 = 1;
/// Looks for tasks without a stamp that are made while one looks; the second finds none, unless something is wrong.
const MAX_PASSES: usize = 16;

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
    #[error("{0} of the tasks in cgroup {1} cannot be labelled: the kernel's table of labelled tasks is full")]
    Full(u64, u64),
    #[error("the kernel's tables of what is labelled: {0}")]
    Table(#[from] MapError),
}

/// What the agent knows beside the maps.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// For labels that got no settings of their own.
    pub defaults: LabelSettings,
    /// Labels whose settings this agent has written.
    written: HashSet<u32>,
    /// Origins whose cgroup is gone while tasks carry their label.
    departed: HashSet<u64>,
    /// The last number of strays that was settled.
    settled: u64,
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

/// What holds for a label from now on.
pub(crate) fn settings(maps: &mut Maps, label: u32, settings: LabelSettings) -> Result<(), MapError> {
    maps.labels.insert(label, settings, 0)?;
    maps.book.written.insert(label);
    Ok(())
}

/// Labels `cgroup` and what is below it. Cgroups made meanwhile inherit in the kernel, because a directory is labelled
/// before it is listed; tasks forked meanwhile are stamped there, because their cgroup is labelled before they are looked
/// for.
pub(crate) fn label(maps: &mut Maps, cgroup: u64, label: u32) -> Result<(), LabelError> {
    if label == 0 {
        return Err(LabelError::Zero);
    }
    if own().contains(&cgroup) {
        return Err(LabelError::Own(cgroup));
    }
    if let Ok(before) = maps.cgroups.get(&cgroup, 0)
        && before != cgroup
        && maps.origins.get(&before, 0).is_ok()
    {
        return Err(LabelError::Inner(cgroup, before));
    }
    let folder = open(cgroup)?;
    let origin = give_origin(maps, cgroup, label)?;
    maps.cgroups.insert(cgroup, cgroup, 0)?;
    each_below(&path_of(&folder), 0, &mut |_, id| {
        if let Ok(inner) = maps.cgroups.get(&id, 0)
            && inner != cgroup
        {
            // Its tasks carry this label from here on, wherever they are.
            maps.origins.insert(inner, origin, 0)?;
        }
        maps.cgroups.insert(id, cgroup, 0)?;
        Ok(())
    })?;
    stamp(maps, cgroup, &path_of(&folder))
}

/// A label whose cgroup is gone while tasks that left it before carry it; known from another version's tables.
pub(super) fn depart(maps: &mut Maps, cgroup: u64, label: u32) -> Result<(), MapError> {
    give_origin(maps, cgroup, label)?;
    maps.book.departed.insert(cgroup);
    Ok(())
}

/// From here on this cgroup is the origin of a label that has its settings and its counts.
fn give_origin(maps: &mut Maps, cgroup: u64, label: u32) -> Result<Origin, MapError> {
    if !maps.book.written.contains(&label) {
        settings(maps, label, maps.book.defaults)?;
    }
    insert_once(&mut maps.usage, &label, LabelUse::default())?;
    insert_once(&mut maps.members, &cgroup, 0)?;
    let origin = Origin {
        under: cgroup,
        label,
        reserved: 0,
    };
    maps.origins.insert(cgroup, origin, 0)?;
    Ok(origin)
}

/// Fails with [`LabelError::Gone`] when there is no such cgroup.
pub(super) fn exists(cgroup: u64) -> Result<(), LabelError> {
    open(cgroup).map(drop)
}

fn insert_once<K: aya::Pod, V: aya::Pod>(
    map: &mut aya::maps::HashMap<aya::maps::MapData, K, V>,
    key: &K,
    value: V,
) -> Result<(), MapError> {
    if map.get(key, 0).is_ok() {
        return Ok(());
    }
    map.insert(key, value, BPF_NOEXIST)
}

/// The cgroup's directory, found by its id.
fn open(cgroup: u64) -> Result<OwnedFd, LabelError> {
    let gone = |error| LabelError::Gone(cgroup, error);
    let root = File::open(ROOT).map_err(gone)?;
    sys::open_cgroup(root.as_fd(), cgroup).map_err(gone)
}

/// A path that means the open directory, whatever happens to its name.
fn path_of(folder: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

fn each_below(
    folder: &Path,
    depth: usize,
    each: &mut dyn FnMut(&Path, u64) -> Result<(), LabelError>,
) -> Result<(), LabelError> {
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
            each(&entry.path(), metadata.ino())?;
            each_below(&entry.path(), depth + 1, each)?;
        }
    }
    Ok(())
}

/// Stamps every task below, until nobody is found any more.
fn stamp(maps: &mut Maps, cgroup: u64, folder: &Path) -> Result<(), LabelError> {
    let me = sys::thread_id();
    maps.cover.insert(me.unsigned_abs(), Cover::default(), 0)?;
    let result = (|| {
        let mut before = 0;
        for _ in 0..MAX_PASSES {
            ask_for_all(folder);
            each_below(folder, 0, &mut |below, _| {
                ask_for_all(below);
                Ok(())
            })?;
            let found = maps.cover.get(&me.unsigned_abs(), 0)?;
            if found.failed != 0 {
                return Err(LabelError::Full(found.failed, cgroup));
            }
            if found.stamped == before {
                break;
            }
            before = found.stamped;
        }
        Ok(())
    })();
    let _ = maps.cover.remove(&me.unsigned_abs());
    result
}

/// Shows a task to the program on `task_getpgid`, which looks at what this thread wants.
fn show(tid: sys::Tid) {
    // Gone meanwhile, or a zombie: nothing to stamp.
    let _ = nix::unistd::getpgid(Some(nix::unistd::Pid::from_raw(tid)));
}

/// Address and start of a task; stamps it if its cgroup is labelled. `None`: it is gone, or this thread.
pub(super) fn look_at(maps: &mut Maps, tid: sys::Tid) -> Result<Option<(u64, u64)>, MapError> {
    let found = ask_for(maps, tid, Cover::default())?;
    Ok((found.task != 0).then_some((found.task, found.start_ns)))
}

/// Stamps a task, if it is the one that `wish` names by address and start.
pub(super) fn give(maps: &mut Maps, tid: sys::Tid, wish: Cover) -> Result<(), LabelError> {
    match ask_for(maps, tid, wish)?.failed {
        0 => Ok(()),
        failed => Err(LabelError::Full(failed, wish.give.origin)),
    }
}

fn ask_for(maps: &mut Maps, tid: sys::Tid, wish: Cover) -> Result<Cover, MapError> {
    let me = sys::thread_id().unsigned_abs();
    maps.cover.insert(me, wish, 0)?;
    show(tid);
    let found = maps.cover.get(&me, 0);
    let _ = maps.cover.remove(&me);
    found
}

/// Shows every thread of one cgroup to the kernel side.
fn ask_for_all(folder: &Path) {
    // Empty for a cgroup that vanishes.
    let threads = fs::read_to_string(folder.join("cgroup.threads")).unwrap_or_default();
    for tid in threads.lines().filter_map(|line| line.parse().ok()) {
        show(tid);
    }
}

/// Takes the label that was given to `cgroup` from it, from what is below it, and from the tasks that carry it. When the
/// cgroup is gone, the tasks that left it before keep the label until they end: see [`sweep`].
pub(crate) fn unlabel(maps: &mut Maps, cgroup: u64) {
    if matches!(open(cgroup), Err(LabelError::Gone(..))) {
        maps.book.departed.extend(under(maps, cgroup));
        let _ = maps.cgroups.remove(&cgroup);
        return;
    }
    for origin in under(maps, cgroup) {
        let _ = maps.origins.remove(&origin);
        // Its counter stays while stamps refer to it.
        maps.book.departed.insert(origin);
    }
    forget_cgroups(maps);
}

/// Origins whose label is that of `cgroup`.
fn under(maps: &Maps, cgroup: u64) -> Vec<u64> {
    maps.origins
        .iter()
        .filter_map(Result::ok)
        .filter(|(_, origin)| origin.under == cgroup)
        .map(|(id, _)| id)
        .collect()
}

/// Entries of cgroups that label nobody any more.
fn forget_cgroups(maps: &mut Maps) {
    let dead: Vec<u64> = maps
        .cgroups
        .iter()
        .filter_map(Result::ok)
        .filter(|(_, origin)| maps.origins.get(origin, 0).is_err())
        .map(|(id, _)| id)
        .collect();
    for id in dead {
        let _ = maps.cgroups.remove(&id);
    }
}

/// Removes what is known of origins that nobody can need any more, and settles strays. Called now and then.
pub(crate) fn sweep(maps: &mut Maps) {
    let departed: Vec<u64> = maps.book.departed.iter().copied().collect();
    for origin in departed {
        if maps.members.get(&origin, 0).is_ok_and(|members| members > 0) {
            continue;
        }
        maps.book.departed.remove(&origin);
        if maps.origins.get(&origin, 0).is_ok() && open(origin).is_ok() {
            // Labelled again meanwhile.
            continue;
        }
        let _ = maps.origins.remove(&origin);
        let _ = maps.members.remove(&origin);
        forget_cgroups(maps);
    }
    if let Err(error) = settle(maps) {
        tracing::error!(%error, "tasks without their label cannot be looked for; every hook looks at cgroups instead");
    }
}

/// What an earlier agent knew: origins whose cgroup went away meanwhile are watched.
pub(crate) fn take_over(maps: &mut Maps, defaults: LabelSettings) {
    maps.book.defaults = defaults;
    let known: HashSet<u64> = maps
        .members
        .keys()
        .filter_map(Result::ok)
        .chain(maps.origins.keys().filter_map(Result::ok))
        .collect();
    for origin in known {
        if maps.origins.get(&origin, 0).is_err() || open(origin).is_err() {
            maps.book.departed.insert(origin);
        }
    }
}

/// Where a task may be in a labelled cgroup without a stamp, all are looked for. Only then do hooks go back to stamps
/// alone.
fn settle(maps: &mut Maps) -> Result<(), LabelError> {
    let me = sys::thread_id();
    let ask = |maps: &mut Maps, settled: u64| -> Result<u64, LabelError> {
        maps.cover.insert(
            me.unsigned_abs(),
            Cover {
                settled,
                ..Cover::default()
            },
            0,
        )?;
        show(me);
        let answer = maps.cover.get(&me.unsigned_abs(), 0);
        let _ = maps.cover.remove(&me.unsigned_abs());
        Ok(answer?.strays)
    };
    let strays = ask(maps, 0)?;
    if strays == maps.book.settled {
        return Ok(());
    }
    for origin in maps.origins.keys().filter_map(Result::ok).collect::<Vec<_>>() {
        if let Ok(folder) = open(origin) {
            stamp(maps, origin, &path_of(&folder))?;
        }
    }
    ask(maps, strays)?;
    maps.book.settled = strays;
    Ok(())
}
