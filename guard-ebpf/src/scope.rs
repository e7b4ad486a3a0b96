// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Is this task labelled?
//!
//! The task's own stamp is the truth: given when its cgroup is labelled, when it is moved into a labelled one, when it is
//! forked; it stays as long as the task lives. A filter in front of it answers for most others. It must never answer
//! "no" for a task that carries a label: a slot is raised before a stamp is written and lowered after it is removed.

use guard_common::{FILTER_SLOTS, Filter, Stamp, counter};

use crate::kernel;
use crate::maps::{CGROUPS, CONFIG, FILTER, MEMBERS, ORIGINS, TASKS, USE, add, add32, count};

/// The label of a task.
#[derive(Clone, Copy)]
pub struct Label {
    /// Never 0.
    pub label: u32,
}

/// What came of an attempt to stamp a task.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Covered {
    /// Nothing is to be stamped: it is in no labelled cgroup, or the agent.
    Outside,
    Before,
    Now,
    Failed,
}

/// The slot of a task. The shift leaves a number below `FILTER_SLOTS`, which the verifier sees.
#[inline(always)]
fn slot(filter: *mut Filter, task: u64) -> *mut u32 {
    const SHIFT: u32 = 64 - FILTER_SLOTS.trailing_zeros();
    let index = task.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> SHIFT;
    // SAFETY: the index is within the array; nothing is read.
    unsafe { (&raw mut (*filter).slots).cast::<u32>().add(index as usize) }
}

/// False for a task that never carried a label, nearly always. The first thing that a hook asks: it costs about thirty
/// instructions.
#[inline(always)]
pub fn maybe(task: u64) -> bool {
    let Some(filter) = FILTER.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe { slot(filter, task).read_volatile() != 0 || strays(filter) }
}

/// Some task may be in a labelled cgroup without a stamp.
#[inline(always)]
unsafe fn strays(filter: *mut Filter) -> bool {
    // SAFETY: by the caller a live map value.
    unsafe { (&raw mut (*filter).strays).read_volatile() != (&raw mut (*filter).settled).read_volatile() }
}

/// The label of a task that cannot be freed meanwhile: the current one, or one that a hook was given.
#[inline(always)]
pub fn label(task: u64) -> Option<Label> {
    if !maybe(task) {
        return None;
    }
    match look_up(task) {
        0 => None,
        label => Some(Label { label: label as u32 }),
    }
}

/// The number of the label; 0 for none.
#[inline(never)]
fn look_up(task: u64) -> u64 {
    if let Some(stamp) = stamp_of(task) {
        return stamp.label.into();
    }
    let Some(filter) = FILTER.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a live map value.
    if !unsafe { strays(filter) } {
        return 0;
    }
    match wanted(task) {
        Some(stamp) => {
            give(task, &stamp);
            stamp.label.into()
        }
        None => 0,
    }
}

/// The stamp that a child of this task gets.
#[inline(always)]
pub fn stamp_of(task: u64) -> Option<Stamp> {
    // SAFETY: copied at once.
    let stamp = *unsafe { TASKS.get(task) }?;
    // SAFETY: copied at once.
    let origin = *unsafe { ORIGINS.get(stamp.origin) }?;
    Some(Stamp {
        origin: stamp.origin,
        label: origin.label,
        exec_by_rule: 0,
    })
}

/// The stamp that a task ought to have because of the cgroup it is in.
#[inline(always)]
fn wanted(task: u64) -> Option<Stamp> {
    let cgroup = kernel::task_cgroup_id(task)?;
    // SAFETY: copied at once.
    let origin = *unsafe { CGROUPS.get(cgroup) }?;
    // SAFETY: copied at once.
    let label = unsafe { ORIGINS.get(origin) }?.label;
    if kernel::tgid(task) == CONFIG.get(0)?.agent_tgid {
        return None;
    }
    Some(Stamp {
        origin,
        label,
        exec_by_rule: 0,
    })
}

/// Stamps a task that is in a labelled cgroup and carries no label yet.
#[inline(always)]
pub fn cover(task: u64) -> Covered {
    if stamp_of(task).is_some() {
        return Covered::Before;
    }
    match wanted(task) {
        Some(stamp) => give(task, &stamp),
        None => Covered::Outside,
    }
}

/// Stamps a task, unless it carries a label. Should there be no room, every hook looks at cgroups from now on.
#[inline(always)]
pub fn give(task: u64, stamp: &Stamp) -> Covered {
    const NOEXIST: u64 = 1;
    let Some(filter) = FILTER.get_ptr_mut(0) else {
        return Covered::Failed;
    };
    // A stamp whose origin is gone. Should two do this for one task at once, a count of that origin may be lost.
    if stamp_of(task).is_none() {
        take(task);
    }
    // SAFETY: a live map value.
    unsafe { add32(slot(filter, task), 1) };
    if TASKS.insert(task, stamp, NOEXIST).is_ok() {
        tally(stamp, 1);
        return Covered::Now;
    }
    // SAFETY: as above.
    unsafe { add32(slot(filter, task), u32::MAX) };
    // SAFETY: not kept.
    if unsafe { TASKS.get(task) }.is_some() {
        return Covered::Before;
    }
    count(counter::TASKS_FULL);
    // SAFETY: as above.
    unsafe { add(&raw mut (*filter).strays, 1) };
    Covered::Failed
}

/// Takes the stamp off a task, whatever it says.
#[inline(always)]
pub fn take(task: u64) {
    let Some(filter) = FILTER.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live map value.
    if unsafe { slot(filter, task).read_volatile() } == 0 {
        return;
    }
    // SAFETY: copied at once.
    let Some(stamp) = (unsafe { TASKS.get(task) }).copied() else {
        return;
    };
    // Only one remover succeeds.
    if TASKS.remove(task).is_ok() {
        // SAFETY: as above.
        unsafe { add32(slot(filter, task), u32::MAX) };
        tally(&stamp, u64::MAX);
    }
}

#[inline(always)]
fn tally(stamp: &Stamp, what: u64) {
    if let Some(members) = MEMBERS.get_ptr_mut(stamp.origin) {
        // SAFETY: a live map value.
        unsafe { add(members, what) };
    }
    if let Some(usage) = USE.get_ptr_mut(stamp.label) {
        // SAFETY: a live map value.
        unsafe { add(&raw mut (*usage).tasks, what) };
    }
}
