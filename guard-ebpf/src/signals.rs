// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Signals for processes that ask: the holder lets the thread see them; a user's Ctrl-Z is not lost to a round.

use aya_ebpf::macros::{btf_tracepoint, lsm};
use aya_ebpf::programs::{BtfTracePointContext, LsmContext};
use guard_common::{ended, errno, state, verdict};

use crate::maps::{CONFIG, PENDING, PROCESSES};
use crate::verdict::{find, finish};
use crate::{emit, kernel};

const SIGCONT: u32 = 18;
const SIGTSTP: u32 = 20;
const SIGTTIN: u32 = 21;
const SIGTTOU: u32 = 22;
/// SEND_SIG_PRIV as a pointer: sent by the kernel, so by our own rounds too.
const FROM_KERNEL: u64 = 1;
const DELIVERED: u32 = 0;

/// fn(sig, info, task, group, result)
#[btf_tracepoint(function = "signal_generate")]
pub fn guard_signal(context: BtfTracePointContext) -> i32 {
    let task = kernel::argument(&context, 2);
    let tgid = kernel::tgid(task);
    let Some(process) = PROCESSES.get_ptr_mut(tgid) else {
        return 0;
    };
    let signal = kernel::argument(&context, 0) as u32;
    let info = kernel::argument(&context, 1);
    match signal {
        SIGTSTP | SIGTTIN | SIGTTOU => {
            // The terminal's own come from the kernel too; a round sends neither of these three... but a noted one.
            // SAFETY: a live map value; see verdict::enter.
            if info != FROM_KERNEL || kernel::current() != task {
                unsafe { (*process).stop = signal };
            }
        }
        SIGCONT if info != FROM_KERNEL => {
            // SAFETY: as above.
            unsafe { (*process).stop = 0 };
        }
        _ => {}
    }
    if info == FROM_KERNEL && kernel::current() == task {
        return 0;
    }
    if kernel::argument(&context, 4) as u32 != DELIVERED {
        return 0;
    }
    emit::signal(kernel::tid(task), tgid, signal, kernel::argument(&context, 3) as u32);
    0
}

/// A new image that waits to be compared is continued by nobody but the agent, and by it only once that is done.
///
/// fn(target, info, signal, cred)
#[lsm(hook = "task_kill")]
pub fn guard_continue(context: LsmContext) -> i32 {
    if kernel::argument(&context, 2) as u32 != SIGCONT {
        return 0;
    }
    let target = kernel::argument(&context, 0);
    let Some(pending) = PENDING.get_ptr_mut(target) else {
        return 0;
    };
    // SAFETY: a live map value. In this state its task's own hooks do not write it.
    let pending = unsafe { &*pending };
    if pending.state != state::AWAITS_CHECK {
        return 0;
    }
    if find(target, pending) != verdict::CHECKED {
        return -errno::EPERM;
    }
    let agent = match CONFIG.get(0) {
        Some(config) => config.agent_tgid,
        None => 0,
    };
    if kernel::tgid(kernel::current()) == agent {
        finish(target, pending, ended::RETURNED, 0);
    }
    0
}
