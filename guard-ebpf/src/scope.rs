// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Is this task labelled?
//!
//! The task's own entry is the truth: copied at fork, it stays wherever the task is moved. The cgroup covers whoever was
//! inside before the label came. It must never answer "no" for a task that was once labelled.

use aya_ebpf::helpers::generated::bpf_get_current_cgroup_id;
use guard_common::{Label, counter};

use crate::kernel;
use crate::maps::{CGROUPS, TASKS, count};

/// The label of the current task, whose address is `task`.
#[inline(always)]
pub fn label(task: u64) -> Option<Label> {
    // SAFETY: copied at once; an entry is only rewritten with another label of the same task.
    if let Some(label) = unsafe { TASKS.get(task) } {
        return Some(*label);
    }
    // SAFETY: no arguments.
    let cgroup = unsafe { bpf_get_current_cgroup_id() };
    // SAFETY: copied at once.
    let found = match unsafe { CGROUPS.get(cgroup) } {
        Some(label) => *label,
        None => {
            // A process that was moved out after one of its threads was seen.
            let leader = kernel::group_leader(task);
            if leader == task {
                return None;
            }
            // SAFETY: copied at once.
            *unsafe { TASKS.get(leader) }?
        }
    };
    if TASKS.insert(task, found, 0).is_err() {
        // It stays labelled as long as it is in the cgroup.
        count(counter::TASKS_FULL);
    }
    Some(found)
}
