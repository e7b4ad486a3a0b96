//! What the kernel's tables hold now, and what was refused for want of room.
//!
//! Owns reading it; given the pin directory. It must never write, and needs no running agent.

use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use guard_common::{Filter, LabelUse, Origin, Pending, Stamp, counter};

use super::api::LabelId;
use super::load;

/// Of one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelNumbers {
    pub label: LabelId,
    /// Actions that wait.
    pub pending: u64,
    /// Processes and threads that carry it.
    pub tasks: u64,
    /// Actions refused because too many waited.
    pub refused_pending: u64,
    /// Forks refused because too many tasks carried the label.
    pub refused_tasks: u64,
}

/// Numbers of one moment, not all of the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// By number of the label.
    pub labels: Vec<LabelNumbers>,
    /// Entries of the tables: labelled tasks, cgroups, origins of labels, waiting actions.
    pub tasks: usize,
    pub cgroups: usize,
    pub origins: usize,
    pub pending: usize,
    /// The sum of the quick filter's slots: as many as there are labelled tasks.
    pub filtered: u64,
    /// Times that a task may have come into a labelled cgroup without its label, and those that were seen to.
    pub strays: u64,
    pub settled: u64,
    /// Refused because a table was full: actions, forks, cgroups.
    pub pending_full: u64,
    pub tasks_full: u64,
    pub cgroups_full: u64,
    /// Events that did not fit the ring.
    pub ring_full: u64,
    /// Checked execs that nobody compared.
    pub unchecked: u64,
    /// Let through while the agent was away.
    pub away_allowed: u64,
}

/// Reads the pinned maps.
///
/// # Errors
/// If nothing is pinned there, or not by this build.
pub fn usage(pin_root: &Path) -> Result<Usage, MapError> {
    let folder = load::pin_directory(pin_root).join("maps");
    let open = |name: &str| MapData::from_pin(folder.join(name));
    let hash = |name: &str| open(name).map(Map::HashMap);
    let array = |name: &str| open(name).map(Map::Array);

    let per_label: HashMap<MapData, u32, LabelUse> = hash("USE")?.try_into()?;
    let mut labels: Vec<LabelNumbers> = per_label
        .iter()
        .filter_map(Result::ok)
        .map(|(label, numbers)| LabelNumbers {
            label: LabelId(label),
            pending: numbers.pending,
            tasks: numbers.tasks,
            refused_pending: numbers.refused_pending,
            refused_tasks: numbers.refused_tasks,
        })
        .collect();
    labels.sort_by_key(|numbers| numbers.label);
    let tasks: HashMap<MapData, u64, Stamp> = hash("TASKS")?.try_into()?;
    let cgroups: HashMap<MapData, u64, u64> = hash("CGROUPS")?.try_into()?;
    let origins: HashMap<MapData, u64, Origin> = hash("ORIGINS")?.try_into()?;
    let pending: HashMap<MapData, u64, Pending> = hash("PENDING")?.try_into()?;
    let filter: Array<MapData, Filter> = array("FILTER")?.try_into()?;
    let filter = filter.get(&0, 0)?;
    let counters: Array<MapData, u64> = array("COUNTERS")?.try_into()?;
    Ok(Usage {
        labels,
        tasks: tasks.keys().filter_map(Result::ok).count(),
        cgroups: cgroups.keys().filter_map(Result::ok).count(),
        origins: origins.keys().filter_map(Result::ok).count(),
        pending: pending.keys().filter_map(Result::ok).count(),
        filtered: filter.slots.iter().map(|slot| u64::from(*slot)).sum(),
        strays: filter.strays,
        settled: filter.settled,
        pending_full: counters.get(&counter::PENDING_FULL, 0)?,
        tasks_full: counters.get(&counter::TASKS_FULL, 0)?,
        cgroups_full: counters.get(&counter::CGROUPS_FULL, 0)?,
        ring_full: counters.get(&counter::RING_FULL, 0)?,
        unchecked: counters.get(&counter::UNCHECKED, 0)?,
        away_allowed: counters.get(&counter::AWAY_ALLOWED, 0)?,
    })
}
