//! What the kernel's tables hold now, and what was refused for want of room.
//!
//! Owns reading it; given the pin directory. It must never write, and needs no running agent.

use std::collections::BTreeMap;
use std::path::Path;

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use guard_common::protect::{Refused, RefusedKey};
use guard_common::{Filter, LabelUse, Origin, Pending, Stamp, counter, state};

use super::api::LabelId;
use super::load;

/// Of one label.
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Sockets that are known.
    pub sockets: u64,
    /// Sockets and connections that were not remembered because too many were.
    pub refused_sockets: u64,
    /// Of those that wait: without an answer.
    pub held: u64,
    /// Of those that are held: their threads run the hook again and again.
    pub looping: u64,
    /// Of those that are held: stopped by SIGSTOP alone.
    pub parked: u64,
    /// One of [`guard_common::protect::kind`], and how often it was refused.
    pub refused: BTreeMap<u32, u64>,
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
    /// Sockets and connections refused because the table of sockets was full.
    pub flows_full: u64,
    /// Packets dropped that nothing had let through.
    pub tripwire: u64,
    /// Events that did not fit the ring.
    pub ring_full: u64,
    /// Actions refused because a signal could not be sent.
    pub signal_failed: u64,
    /// Checked execs that nobody compared.
    pub unchecked: u64,
    /// Let through while the agent was away.
    pub away_allowed: u64,
}

impl Usage {
    /// Which of these programs, as [`KernelFacts::programs`](super::KernelFacts::programs) names them, have no pin any more: nothing
    /// else keeps them attached.
    #[must_use]
    pub fn gone<'p>(pin_root: &Path, programs: &'p [String]) -> Vec<&'p str> {
        let links = load::pin_directory(pin_root).join("links");
        let names = programs.iter().filter_map(|program| program.split(' ').next());
        names.filter(|name| !links.join(name).exists()).collect()
    }
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

    let mut labels: BTreeMap<u32, LabelNumbers> = BTreeMap::new();
    let per_label: HashMap<MapData, u32, LabelUse> = hash("USE")?.try_into()?;
    for (label, numbers) in per_label.iter().filter_map(Result::ok) {
        let of = of(&mut labels, label);
        of.pending = numbers.pending;
        of.tasks = numbers.tasks;
        of.refused_pending = numbers.refused_pending;
        of.refused_tasks = numbers.refused_tasks;
        of.sockets = numbers.sockets;
        of.refused_sockets = numbers.refused_sockets;
    }
    let pending: HashMap<MapData, u64, Pending> = hash("PENDING")?.try_into()?;
    let mut waiting = 0;
    for (_, question) in pending.iter().filter_map(Result::ok) {
        waiting += 1;
        if question.honored_ns != 0 || question.state == state::AWAITS_CHECK {
            continue;
        }
        let of = of(&mut labels, question.label);
        of.held += 1;
        of.looping += u64::from(question.loops != 0);
        of.parked += u64::from(question.state != state::LOOPING);
    }
    let refused: HashMap<MapData, RefusedKey, Refused> = hash("REFUSED")?.try_into()?;
    for (key, refused) in refused.iter().filter_map(Result::ok) {
        *of(&mut labels, key.label).refused.entry(key.kind).or_default() += refused.count;
    }
    let tasks: HashMap<MapData, u64, Stamp> = hash("TASKS")?.try_into()?;
    let cgroups: HashMap<MapData, u64, u64> = hash("CGROUPS")?.try_into()?;
    let origins: HashMap<MapData, u64, Origin> = hash("ORIGINS")?.try_into()?;
    let filter: Array<MapData, Filter> = array("FILTER")?.try_into()?;
    let filter = filter.get(&0, 0)?;
    let counters: Array<MapData, u64> = array("COUNTERS")?.try_into()?;
    Ok(Usage {
        labels: labels.into_values().collect(),
        tasks: tasks.keys().filter_map(Result::ok).count(),
        cgroups: cgroups.keys().filter_map(Result::ok).count(),
        origins: origins.keys().filter_map(Result::ok).count(),
        pending: waiting,
        filtered: filter.slots.iter().map(|slot| u64::from(*slot)).sum(),
        strays: filter.strays,
        settled: filter.settled,
        pending_full: counters.get(&counter::PENDING_FULL, 0)?,
        tasks_full: counters.get(&counter::TASKS_FULL, 0)?,
        cgroups_full: counters.get(&counter::CGROUPS_FULL, 0)?,
        flows_full: counters.get(&counter::FLOWS_FULL, 0)?,
        tripwire: counters.get(&counter::TRIPWIRE, 0)?,
        ring_full: counters.get(&counter::RING_FULL, 0)?,
        signal_failed: counters.get(&counter::SIGNAL_FAILED, 0)?,
        unchecked: counters.get(&counter::UNCHECKED, 0)?,
        away_allowed: counters.get(&counter::AWAY_ALLOWED, 0)?,
    })
}

fn of(labels: &mut BTreeMap<u32, LabelNumbers>, label: u32) -> &mut LabelNumbers {
    labels.entry(label).or_insert_with(|| LabelNumbers {
        label: LabelId(label),
        pending: 0,
        tasks: 0,
        refused_pending: 0,
        refused_tasks: 0,
        sockets: 0,
        refused_sockets: 0,
        held: 0,
        looping: 0,
        parked: 0,
        refused: BTreeMap::new(),
    })
}
