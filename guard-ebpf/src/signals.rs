// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Signals for processes that ask: the holder lets the thread see them; a user's Ctrl-Z is not lost to a round.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;

use crate::maps::PROCESSES;
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
