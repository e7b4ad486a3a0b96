// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! One round of a hold: makes the syscall restart so that the thread asks again.
//!
//! -ERESTARTNOINTR restarts only while TIF_SIGPENDING is set; otherwise the program would see 513. SIGSTOP and, at once,
//! SIGCONT for this thread leave exactly that: a signal is pending, none is delivered. It must never return Restart
//! without having sent a signal, and never Pass except where the configuration says so.

use aya_ebpf::helpers::generated::{bpf_send_signal, bpf_send_signal_thread};
use guard_common::{Config, Pending, away, counter, ended, state};

use crate::maps::{HEARTBEAT, PROCESSES, count};
use crate::verdict::{Answer, finish};
use crate::{emit, kernel};

const SIGCONT: u32 = 18;
const SIGSTOP: u32 = 19;

#[inline(always)]
pub fn round(task: u64, pending: &mut Pending, config: &Config, file: u64) -> Answer {
    pending.rounds += 1;
    if pending.epoch == 0 && emit::ask_exec(task, pending, file) {
        pending.epoch = config.epoch;
    }

    let traced = kernel::ptrace_flags(task) != 0;
    if traced && kernel::tracer_tgid(task) == config.agent_tgid {
        // The holder sees this SIGSTOP before it stops anything, and swallows it. If the agent dies first, it parks.
        // SAFETY: no pointers.
        return if unsafe { bpf_send_signal_thread(SIGSTOP) } == 0 {
            Answer::Restart
        } else {
            refuse()
        };
    }

    if let Some(answer) = stop_of_the_user(task, pending) {
        return answer;
    }

    let now = kernel::boot_ns();
    let beat = match HEARTBEAT.get(0) {
        Some(beat) => *beat,
        None => 0,
    };
    if beat + config.heartbeat_limit_ns < now {
        return match config.away {
            away::ALLOW => {
                count(counter::AWAY_ALLOWED);
                finish(task, pending, ended::AWAY_ALLOWED, 0);
                Answer::Pass
            }
            away::DENY => {
                finish(task, pending, ended::DENIED, 0);
                Answer::Refuse
            }
            _ => park(task, pending, state::PARKED_AWAY),
        };
    }
    if traced {
        return park(task, pending, state::PARKED_TRACED);
    }
    if kernel::blocked(task) & bit(SIGCONT) != 0 || kernel::handler(task, SIGCONT as u64) > 1 {
        return park(task, pending, state::PARKED_SIGCONT);
    }
    if now > pending.asked_ns + config.park_after_ns {
        return park(task, pending, state::PARKED_TIME);
    }

    // SAFETY: no pointers.
    if unsafe { bpf_send_signal_thread(SIGSTOP) } != 0 {
        return refuse();
    }
    // SAFETY: no pointers.
    if unsafe { bpf_send_signal_thread(SIGCONT) } != 0 {
        report(task, pending, state::PARKED_SIGNAL);
    }
    Answer::Restart
}

/// SIGSTOP alone: costs nothing, needs nobody, stops the whole process until somebody sends SIGCONT.
#[inline(always)]
fn park(task: u64, pending: &mut Pending, why: u32) -> Answer {
    // SAFETY: no pointers.
    if unsafe { bpf_send_signal_thread(SIGSTOP) } != 0 {
        return refuse();
    }
    report(task, pending, why);
    Answer::Restart
}

#[inline(always)]
fn report(task: u64, pending: &mut Pending, why: u32) {
    if pending.state == state::LOOPING && pending.epoch != 0 && !emit::parked(task, pending, why) {
        // Told at the next round, should somebody continue it.
        return;
    }
    pending.state = why;
}

/// A user's stop signal (Ctrl-Z) is flushed by the SIGCONT of a round, so it is noted when it is generated and sent
/// again here, instead of a round.
#[inline(always)]
fn stop_of_the_user(task: u64, pending: &Pending) -> Option<Answer> {
    let process = PROCESSES.get_ptr_mut(pending.tgid)?;
    // SAFETY: a live map value; see verdict::enter.
    let signal = unsafe { (*process).stop };
    if signal == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { (*process).stop = 0 };
    if signal > 31 || kernel::blocked(task) & bit(signal) != 0 || kernel::handler(task, signal as u64) == 1 {
        return None;
    }
    // SAFETY: no pointers.
    if unsafe { bpf_send_signal(signal) } != 0 {
        return None;
    }
    Some(Answer::Restart)
}

#[inline(always)]
const fn bit(signal: u32) -> u64 {
    1 << (signal - 1)
}

#[inline(always)]
fn refuse() -> Answer {
    count(counter::SIGNAL_FAILED);
    Answer::Refuse
}
