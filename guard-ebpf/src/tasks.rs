// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A label follows a task to its children; nothing of a task outlives it.

use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};
use guard_common::{ended, errno};

use crate::maps::{CONFIG, PENDING};
use crate::scope::Covered;
use crate::verdict::{awaits_check, finish};
use crate::{kernel, quota, scope};

/// The child is labelled before it can run. No room for its label: no fork.
#[lsm(hook = "task_alloc")]
pub fn guard_fork(context: LsmContext) -> i32 {
    let task = kernel::current();
    let Some(label) = scope::label(task) else {
        return 0;
    };
    // A new image that has not been compared makes no others.
    if awaits_check(task) {
        return -errno::EPERM;
    }
    if !quota::room_for_task(label.label) {
        return -errno::EAGAIN;
    }
    let child = kernel::argument(&context, 0);
    match scope::stamp_of(task) {
        Some(stamp) if scope::give(child, &stamp) != Covered::Failed => 0,
        _ => -errno::EAGAIN,
    }
}

/// The last moment before a new task can run. It was not stamped when it was allocated if its parent was not labelled
/// then: it is cloned into a labelled cgroup, or the label came in between.
#[btf_tracepoint(function = "sched_wakeup_new")]
pub fn guard_fork_end(context: BtfTracePointContext) -> i32 {
    let child = kernel::argument(&context, 0);
    if scope::cover(child) == Covered::Outside
        && let parent = kernel::current()
        && scope::maybe(parent)
        && let Some(stamp) = scope::stamp_of(parent)
    {
        scope::give(child, &stamp);
    }
    0
}

/// The address may be given to another task from here on.
///
/// A tracing program, as [`guard_exit`], is left out by the kernel while another task that was preempted in it on the same
/// CPU has not finished it; a program of the security module never is. What that one missed is told here.
#[lsm(hook = "task_free")]
pub fn guard_task_free(context: LsmContext) -> i32 {
    let task = kernel::argument(&context, 0);
    if scope::maybe(task)
        && let Some(pending) = PENDING.get_ptr_mut(task)
    {
        // SAFETY: the task is gone, and with it all else that would write or remove this entry.
        finish(task, unsafe { &*pending }, ended::DIED, 0);
    }
    scope::take(task);
    0
}

/// A thread dies: its question is withdrawn. Should it be the agent, nobody else who gets its number is the agent.
#[btf_tracepoint(function = "sched_process_exit")]
pub fn guard_exit(_context: BtfTracePointContext) -> i32 {
    let task = kernel::current();
    if let Some(config) = CONFIG.get_ptr_mut(0) {
        // SAFETY: a live map value; only the next agent writes this field, after this one is gone.
        unsafe {
            if (*config).agent_tgid == kernel::tid(task) {
                (*config).agent_tgid = 0;
            }
        }
    }
    if !scope::maybe(task) {
        return 0;
    }
    if let Some(pending) = PENDING.get_ptr_mut(task) {
        // SAFETY: only this task's own hooks write or remove this entry.
        finish(task, unsafe { &*pending }, ended::DIED, 0);
    }
    0
}
