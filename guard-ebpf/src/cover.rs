// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Stamps the tasks that are in a cgroup when it is labelled, or the moment they are moved into a labelled one.
//!
//! The agent calls getpgid(2) for each thread it finds below the cgroup, with its own thread id in a map: this hook is
//! then given the task itself. What is stamped is what the kernel says of that task's cgroup, so a thread id that was
//! given to somebody else meanwhile harms nobody. Labels of tasks that left their cgroup come from another version's
//! table, by the task's address and start.

use aya_ebpf::helpers::generated::{bpf_get_current_pid_tgid, bpf_loop};
use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};

use crate::kernel;
use crate::maps::{CGROUPS, CONFIG, COVER, FILTER, add};
use crate::scope::{self, Covered};

/// Threads of one process that are stamped as it moves; should it have more, every hook looks at cgroups.
const THREADS: u32 = 1 << 16;

#[lsm(hook = "task_getpgid")]
pub fn guard_cover(context: LsmContext) -> i32 {
    // SAFETY: no arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    if (ids >> 32) as u32 != config.agent_tgid {
        return 0;
    }
    let Some(wish) = COVER.get_ptr_mut(ids as u32) else {
        return 0;
    };
    let task = kernel::argument(&context, 0);
    if task == kernel::current() {
        if let Some(filter) = FILTER.get_ptr_mut(0) {
            // SAFETY: live map values; the wish is this thread's own, and it alone settles.
            unsafe {
                if (*wish).settled != 0 {
                    (*filter).settled = (*wish).settled;
                }
                (*wish).strays = (&raw mut (*filter).strays).read_volatile();
            }
        }
        return 0;
    }
    // SAFETY: as above.
    let asked = unsafe { &mut *wish };
    let start_ns = kernel::start_ns(task);
    let covered = if asked.give.origin == 0 {
        asked.task = task;
        asked.start_ns = start_ns;
        scope::cover(task)
    } else if asked.task == task && asked.start_ns == start_ns {
        scope::give(task, &asked.give)
    } else {
        // Another task by now.
        Covered::Outside
    };
    match covered {
        Covered::Now => asked.stamped += 1,
        Covered::Failed => asked.failed += 1,
        Covered::Before | Covered::Outside => {}
    }
    0
}

/// fn(cgroup, path, task, threadgroup)
#[btf_tracepoint(function = "cgroup_attach_task")]
pub fn guard_cgroup_attach(context: BtfTracePointContext) -> i32 {
    let Some(cgroup) = kernel::cgroup_id(kernel::argument(&context, 0)) else {
        return 0;
    };
    // SAFETY: not kept.
    if unsafe { CGROUPS.get(cgroup) }.is_none() {
        return 0;
    }
    let task = kernel::argument(&context, 2);
    // A bool: the rest of the register may hold anything.
    if kernel::argument(&context, 3) as u8 == 0 {
        scope::cover(task);
        return 0;
    }
    let whole = match kernel::threads(task) {
        Some((head, first)) => {
            let mut walk = Walk { head, element: first };
            // SAFETY: the callback has the type that the helper wants, and the state outlives the call.
            unsafe { bpf_loop(THREADS, each_thread as *mut _, (&raw mut walk).cast(), 0) };
            walk.element == walk.head
        }
        None => false,
    };
    if !whole && let Some(filter) = FILTER.get_ptr_mut(0) {
        // SAFETY: a live map value.
        unsafe { add(&raw mut (*filter).strays, 1) };
    }
    0
}

#[repr(C)]
struct Walk {
    head: u64,
    element: u64,
}

/// Goes on with 0, ends with 1.
#[inline(never)]
extern "C" fn each_thread(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: the helper passes on what it was given.
    let walk = unsafe { &mut *walk };
    if walk.element == walk.head || walk.element == 0 {
        return 1;
    }
    scope::cover(kernel::thread_of(walk.element));
    walk.element = kernel::next_thread(walk.element);
    0
}
