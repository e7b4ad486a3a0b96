// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! One round of a hold: makes the syscall restart so that the thread asks again.
//!
//! -ERESTARTNOINTR restarts only while TIF_SIGPENDING is set; otherwise the program would see 513. SIGSTOP and, at once,
//! SIGCONT for this thread leave exactly that: a signal is pending, none is delivered. It must never return Restart
//! without having sent a signal, and never Pass except where the configuration says so.

use aya_ebpf::helpers::generated::{bpf_get_smp_processor_id, bpf_loop, bpf_send_signal, bpf_send_signal_thread};
use guard_common::{Config, Pending, VerdictKey, away, counter, ended, state, verdict};

use crate::emit::Subject;
use crate::maps::{COUNTERS, HEARTBEAT, PROCESSES, VERDICTS, add, count};
use crate::verdict::{Answer, find, finish, honor, question};
use crate::{emit, kernel, quota};

const SIGCONT: u32 = 18;
const SIGSTOP: u32 = 19;
/// How long a question waits inside its hook for an answer that comes at once: about what a round costs, which it saves.
const AWAITED_NS: u64 = 500_000;
/// Looks for that answer; the time is over before.
const LOOKS: u32 = 1 << 20;

#[inline(always)]
pub fn round(task: u64, pending: &mut Pending, config: &Config, subject: &impl Subject) -> Answer {
    pending.rounds += 1;
    // Before the question wakes the agent: that may be what waits for this CPU afterwards.
    let me = kernel::me();
    let flags = kernel::thread_flags(me);
    let told = pending.epoch == 0 && subject.ask(task, pending);
    if told {
        pending.epoch = config.epoch;
    }

    let traced = kernel::ptrace_flags(me) != 0;
    if traced && kernel::tracer_tgid(me) == config.agent_tgid {
        loops_no_more(pending);
        // The holder sees this SIGSTOP before it stops anything, and swallows it. If the agent dies first, it parks.
        // SAFETY: no pointers.
        return if unsafe { bpf_send_signal_thread(SIGSTOP) } == 0 {
            Answer::Restart
        } else {
            refuse()
        };
    }

    if let Some(answer) = stop_of_the_user(pending) {
        return answer;
    }

    let now = kernel::boot_ns();
    let beat = match HEARTBEAT.get(0) {
        Some(beat) => *beat,
        None => 0,
    };
    if beat + config.heartbeat_limit_ns < now {
        return match quota::settings(pending.label).away {
            away::ALLOW => {
                count(counter::AWAY_ALLOWED);
                // For the whole exec: its later hooks neither ask nor count again.
                pending.honored_ns = now;
                pending.verdict = verdict::ALLOW;
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
    if kernel::blocked(me) & bit(SIGCONT) != 0 || kernel::handler(me, SIGCONT as u64) > 1 {
        return park(task, pending, state::PARKED_SIGCONT);
    }
    if now > pending.asked_ns + config.park_after_ns {
        return park(task, pending, state::PARKED_TIME);
    }
    if !loops(pending) {
        return park(task, pending, state::PARKED_MANY);
    }

    if told && let Some(answer) = answered_at_once(task, pending, flags) {
        return answer;
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

/// What a question that has just been told waits for inside its hook.
#[repr(C)]
struct Awaited {
    question: VerdictKey,
    /// Anything that waits for the thread beyond these ends the wait: a signal, or somebody who needs this CPU, perhaps the
    /// agent itself.
    flags: u64,
    until_ns: u64,
}

#[inline(always)]
fn answered_at_once(task: u64, pending: &mut Pending, flags: u64) -> Option<Answer> {
    let mut awaited = Awaited {
        question: question(task, pending),
        flags,
        until_ns: kernel::boot_ns() + AWAITED_NS,
    };
    // SAFETY: the callback has the type that the helper wants, and the state outlives the call.
    unsafe { bpf_loop(LOOKS, look as *mut _, (&raw mut awaited).cast(), 0) };
    let answer = honor(task, pending, find(task, pending));
    if answer.is_none()
        && kernel::boot_ns() < awaited.until_ns
        && let Some(crowded) = COUNTERS.get_ptr_mut(counter::CROWDED)
    {
        // SAFETY: a live map value; the helper takes no arguments.
        unsafe { crowded.write_volatile(1 + u64::from(bpf_get_smp_processor_id())) };
    }
    answer
}

/// Goes on with 0, ends with 1.
#[inline(never)]
extern "C" fn look(_index: u32, awaited: *mut Awaited) -> i64 {
    // SAFETY: the helper passes on what it was given.
    let awaited = unsafe { &*awaited };
    let question = VerdictKey {
        task: awaited.question.task,
        asked_ns: awaited.question.asked_ns,
    };
    // SAFETY: not kept.
    let answered = unsafe { VERDICTS.get(question) }.is_some();
    let over = kernel::thread_flags(kernel::me()) & !awaited.flags != 0 || kernel::boot_ns() > awaited.until_ns;
    i64::from(answered || over)
}

/// Whether there is room among the looping threads of its process. Many of them would keep each other from ever stopping.
#[inline(always)]
fn loops(pending: &mut Pending) -> bool {
    if pending.loops != 0 {
        return true;
    }
    let Some(process) = PROCESSES.get_ptr_mut(pending.tgid) else {
        return false;
    };
    // SAFETY: a live map value; see verdict::enter.
    let looping = unsafe {
        add(&raw mut (*process).looping, 1);
        (*process).looping
    };
    pending.loops = 1;
    if looping > u64::from(quota::settings(pending.label).looping) {
        loops_no_more(pending);
        return false;
    }
    true
}

#[inline(always)]
fn loops_no_more(pending: &mut Pending) {
    if pending.loops == 0 {
        return;
    }
    pending.loops = 0;
    if let Some(process) = PROCESSES.get_ptr_mut(pending.tgid) {
        // SAFETY: a live map value; see verdict::enter.
        unsafe { add(&raw mut (*process).looping, u64::MAX) };
    }
}

/// SIGSTOP alone: costs nothing, needs nobody, stops the whole process until somebody sends SIGCONT.
#[inline(always)]
fn park(task: u64, pending: &mut Pending, why: u32) -> Answer {
    // SAFETY: no pointers.
    if unsafe { bpf_send_signal_thread(SIGSTOP) } != 0 {
        return refuse();
    }
    loops_no_more(pending);
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
fn stop_of_the_user(pending: &Pending) -> Option<Answer> {
    let process = PROCESSES.get_ptr_mut(pending.tgid)?;
    // SAFETY: a live map value; see verdict::enter.
    let signal = unsafe { (*process).stop };
    if signal == 0 {
        return None;
    }
    // SAFETY: as above.
    unsafe { (*process).stop = 0 };
    let me = kernel::me();
    if signal > 31 || kernel::blocked(me) & bit(signal) != 0 || kernel::handler(me, signal as u64) == 1 {
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
