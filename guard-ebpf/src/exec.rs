// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The exec hooks: asked once per exec, bound through every interpreter, compared before the first instruction.

use aya_ebpf::helpers::generated::{bpf_send_signal, bpf_send_signal_thread};
use aya_ebpf::macros::{fexit, lsm};
use aya_ebpf::programs::{FExitContext, LsmContext};
use guard_common::protect::kind;
use guard_common::{counter, ended, errno, state, verdict};

use crate::emit::ExecOf;
use crate::maps::{CONFIG, PENDING, count};
use crate::protect::count_refused;
use crate::verdict::{Answer, finish};
use crate::{emit, kernel, rules, scope, verdict as questions};

const LSM_UNSAFE_SHARE: u32 = 1;
const SIGKILL: u32 = 9;
const SIGSTOP: u32 = 19;
/// `task->ptrace`: the tracer asked for PTRACE_EVENT_EXEC.
const PT_TRACE_EXEC: u32 = 1 << (3 + 4);

/// The verifier wants constants.
macro_rules! answer {
    ($answer:expr) => {
        match $answer {
            Answer::Pass => 0,
            Answer::Refuse => -errno::EPERM,
            Answer::Restart => -errno::ERESTARTNOINTR,
        }
    };
}

/// Once per exec, before anything happened: here it is held.
#[lsm(hook = "bprm_creds_for_exec")]
pub fn guard_exec(context: LsmContext) -> i32 {
    let task = kernel::current();
    if !scope::maybe(task) {
        return 0;
    }
    let bprm = kernel::object(&context, 0);
    if kernel::bprm_unsafe(bprm) & LSM_UNSAFE_SHARE != 0
        && let Some(label) = scope::label(task)
    {
        // Another process that is no thread of this one could change the directory after it was looked at.
        count_refused(&label, kind::SHARED);
        return -errno::EPERM;
    }
    let file = kernel::bprm_file(bprm);
    if rules::exec_allowed(task, file) {
        return 0;
    }
    answer!(questions::gate(kernel::file_key(file), &ExecOf(file)))
}

/// Once per binary format tried: the script, then its interpreter. The verdict of the exec covers them.
#[lsm(hook = "bprm_check_security")]
pub fn guard_exec_format(context: LsmContext) -> i32 {
    let task = kernel::current();
    if !scope::maybe(task) {
        return 0;
    }
    let file = kernel::bprm_file(kernel::object(&context, 0));
    if let Some(pending) = PENDING.get_ptr_mut(task) {
        // SAFETY: only this task's own hooks write or remove this entry.
        let pending = unsafe { &mut *pending };
        if pending.honored_ns != 0 && pending.start_ns == kernel::start_ns(kernel::me()) {
            return match kernel::file_key(file) {
                Some(key) => {
                    pending.last_file = key;
                    0
                }
                None => -errno::EPERM,
            };
        }
    }
    if rules::in_exec(task) {
        return 0;
    }
    // Labelled since the exec began, or nothing to do with us.
    answer!(questions::gate(kernel::file_key(file), &ExecOf(file)))
}

/// The old image is gone; the new one has not run. An exec that has to be compared must be traced by the agent now.
#[lsm(hook = "bprm_committed_creds")]
pub fn guard_exec_commit(_context: LsmContext) -> i32 {
    let task = kernel::current();
    if !scope::maybe(task) {
        return 0;
    }
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        return 0;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &mut *pending };
    if pending.verdict != verdict::CHECK {
        finish(task, pending, ended::COMMITTED, 0);
        return 0;
    }
    let Some(config) = CONFIG.get(0) else {
        unchecked(task, pending);
        return 0;
    };
    let me = kernel::me();
    let traced = kernel::ptrace_flags(me) & PT_TRACE_EXEC != 0 && kernel::tracer_tgid(me) == config.agent_tgid;
    if traced {
        return 0;
    }
    if pending.epoch == config.epoch && config.agent_tgid != 0 {
        // Somebody else traces it, or nobody may. Stopped from here: the kernel leaves out a program at the syscall's end that
        // another task was preempted in on the same CPU.
        pending.state = state::AWAITS_CHECK;
        // SAFETY: no pointers.
        if unsafe { bpf_send_signal_thread(SIGSTOP) } != 0 {
            unchecked(task, pending);
        }
    } else {
        // The agent that knew what was approved is gone.
        unchecked(task, pending);
    }
    0
}

/// The end of execve and execveat, whatever it was. It runs after the exec event, so an exec that the agent let go
/// without comparing it (it died) is stopped here, before the new image's first instruction.
#[inline(always)]
fn returned(result: i64) {
    let task = kernel::current();
    if !scope::maybe(task) {
        return;
    }
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        return;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &mut *pending };
    let code = -result;
    if code == i64::from(errno::ERESTARTSYS)
        || code == i64::from(errno::ERESTARTNOINTR)
        || code == i64::from(errno::ERESTARTNOHAND)
        || code == i64::from(errno::ERESTART_RESTARTBLOCK)
    {
        return;
    }
    if result == 0 && pending.verdict == verdict::CHECK && questions::find(task, pending) != verdict::CHECKED {
        if pending.state == state::AWAITS_CHECK {
            stop_for_check(task, pending);
        } else {
            unchecked(task, pending);
        }
        return;
    }
    finish(task, pending, ended::RETURNED, code as u32);
}

/// Tells an agent that cannot trace it that the new image is complete, and stops before its first instruction. A tracer inside the
/// workload can swallow the signal: the image then runs, and none of its gated actions works until it is compared.
#[inline(always)]
fn stop_for_check(task: u64, pending: &guard_common::Pending) {
    // Again: a SIGCONT of the kernel's own (a terminal, an orphaned group), which asks no program, takes back an earlier one.
    // SAFETY: no pointers.
    if unsafe { bpf_send_signal_thread(SIGSTOP) } != 0 {
        unchecked(task, pending);
        return;
    }
    // Should it not fit the ring: the agent looks through the table now and then.
    emit::parked(task, pending, state::AWAITS_CHECK);
}

#[inline(always)]
fn unchecked(task: u64, pending: &guard_common::Pending) {
    // SAFETY: no pointers. It fails only for a task that is exiting already.
    unsafe { bpf_send_signal(SIGKILL) };
    count(counter::UNCHECKED);
    finish(task, pending, ended::UNCHECKED, 0);
}

/// Attached to `__x64_sys_execve` or its like: fn(regs) -> long.
#[fexit]
pub fn guard_execve_end(context: FExitContext) -> i32 {
    returned(kernel::plain(&context, 1) as i64);
    0
}

#[fexit]
pub fn guard_execveat_end(context: FExitContext) -> i32 {
    returned(kernel::plain(&context, 1) as i64);
    0
}

/// The 32-bit entries, where the kernel has them.
#[fexit]
pub fn guard_execve32_end(context: FExitContext) -> i32 {
    returned(kernel::plain(&context, 1) as i64);
    0
}

#[fexit]
pub fn guard_execveat32_end(context: FExitContext) -> i32 {
    returned(kernel::plain(&context, 1) as i64);
    0
}
