// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A label follows a task to its children; nothing of a task outlives it.

use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};
use guard_common::{counter, ended, errno};

use crate::maps::{PENDING, TASKS, count};
use crate::verdict::finish;
use crate::{kernel, scope};

/// The child is labelled before it can run. No room for its label: no fork.
#[lsm(hook = "task_alloc")]
pub fn guard_fork(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let child = kernel::argument(&context, 0);
    if TASKS.insert(child, label, 0).is_err() {
        count(counter::TASKS_FULL);
        return -errno::EAGAIN;
    }
    0
}

/// The address may be given to another task from here on.
#[lsm(hook = "task_free")]
pub fn guard_task_free(context: LsmContext) -> i32 {
    let task = kernel::argument(&context, 0);
    let _ = TASKS.remove(task);
    0
}

/// A thread dies: its question is withdrawn.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn guard_exit(_context: BtfTracePointContext) -> i32 {
    let task = kernel::current();
    if let Some(pending) = PENDING.get_ptr_mut(task) {
        // SAFETY: only this task's own hooks write or remove this entry.
        finish(task, unsafe { &*pending }, ended::DIED, 0);
    }
    0
}
