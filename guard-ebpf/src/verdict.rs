// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A question's life: made at the first round, answered by a verdict, over when the syscall is over.
//!
//! A verdict counts for one thread, one start time, one action and one question. It stays until the syscall ends with
//! something else than a restart, because one syscall passes a hook several times. It must never be used for anything
//! but the action it was given for.

use guard_common::{ActionKey, Config, Pending, Verdict, VerdictKey, counter, ended, state, verdict};

use crate::emit::Subject;
use crate::maps::{CONFIG, PENDING, PROCESSES, Process, VERDICTS, add, count};
use crate::scope::{self, Label};
use crate::{emit, hold, kernel, quota};

/// What the hook returns; turned into a constant at the end of each program, because the verifier wants to see one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Pass,
    Refuse,
    Restart,
}

/// How long a verdict that was seen stays good for the same action, should the end of the syscall be missed.
const HONORED_FOR_NS: u64 = 10_000_000_000;

/// Names the question of `task`.
#[inline(always)]
pub fn question(task: u64, pending: &Pending) -> VerdictKey {
    VerdictKey {
        task,
        asked_ns: pending.asked_ns,
    }
}

/// The verdict for exactly this question of exactly this thread.
#[inline(always)]
pub fn find(task: u64, pending: &Pending) -> u32 {
    // SAFETY: read at once; the agent writes an entry as a whole, and only CHECK becomes CHECKED.
    match unsafe { VERDICTS.get(question(task, pending)) } {
        Some(found) if matches(found, pending) => found.verdict,
        _ => 0,
    }
}

#[inline(always)]
fn matches(found: &Verdict, pending: &Pending) -> bool {
    found.tid == pending.tid && found.start_ns == pending.start_ns && found.key.same(&pending.key)
}

/// Whether this task is a new image that the agent has not compared yet: it must not do anything that is gated, nor have
/// children, which would not be known as such. Its start time is not looked at: exec changes it for a thread that was
/// not the leader, and no entry outlives its task.
#[inline(always)]
pub fn awaits_check(task: u64) -> bool {
    match PENDING.get_ptr_mut(task) {
        Some(pending) => {
            // SAFETY: a live map value, only read.
            let pending = unsafe { &*pending };
            pending.state == state::AWAITS_CHECK && find(task, pending) != verdict::CHECKED
        }
        None => false,
    }
}

/// The question is over: tells the agent and forgets it.
#[inline(always)]
pub fn finish(task: u64, pending: &Pending, how: u32, errno: u32) {
    emit::ended(task, pending, how, errno);
    forget(task, pending);
}

#[inline(always)]
fn forget(task: u64, pending: &Pending) {
    leave(pending.tgid, pending.loops);
    quota::leave_question(pending.label);
    let _ = VERDICTS.remove(question(task, pending));
    let _ = PENDING.remove(task);
}

/// One more thread of the process asks.
#[inline(always)]
fn enter(tgid: u32) {
    if let Some(process) = PROCESSES.get_ptr_mut(tgid) {
        // SAFETY: a live map value. A lost count only delays what a signal means for a held thread.
        unsafe { add(&raw mut (*process).asking, 1) };
        return;
    }
    let _ = PROCESSES.insert(
        tgid,
        Process {
            asking: 1,
            looping: 0,
            stop: 0,
            reserved: 0,
        },
        0,
    );
}

#[inline(always)]
fn leave(tgid: u32, loops: u32) {
    if let Some(process) = PROCESSES.get_ptr_mut(tgid) {
        // SAFETY: as in enter.
        let left = unsafe {
            if loops != 0 {
                add(&raw mut (*process).looping, u64::MAX);
            }
            add(&raw mut (*process).asking, u64::MAX);
            (*process).asking as i64
        };
        if left <= 0 {
            let _ = PROCESSES.remove(tgid);
        }
    }
}

/// Scope, verdict, hold: all that a gated hook does with the current task's action. `key` is read from the kernel's own
/// objects; `None` (unreadable) is refused. `subject` tells the agent what it is about.
#[inline(always)]
pub fn gate(key: Option<ActionKey>, subject: &impl Subject) -> Answer {
    let Some(label) = scope::label(kernel::current()) else {
        return Answer::Pass;
    };
    match step(label, key.as_ref()) {
        Some(answer) => answer,
        None => round(subject),
    }
}

/// A round of the hold for the question that [`step`] has found or made.
#[inline(always)]
pub fn round(subject: &impl Subject) -> Answer {
    let task = kernel::current();
    let (Some(config), Some(pending)) = (CONFIG.get(0), PENDING.get_ptr_mut(task)) else {
        return Answer::Refuse;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    hold::round(task, unsafe { &mut *pending }, config, subject)
}

/// [`gate`] of a task with this label, up to a [`round`], which `None` asks for.
#[inline(always)]
pub fn step(label: Label, key: Option<&ActionKey>) -> Option<Answer> {
    let task = kernel::current();
    let Some(config) = CONFIG.get(0) else {
        return Some(Answer::Refuse);
    };
    let me = kernel::me();
    let tgid = kernel::tgid(me);
    if tgid == config.agent_tgid {
        return Some(Answer::Pass);
    }
    // It has no system call to start again: what a ring asks for is refused, whoever made the ring.
    if kernel::is_uring_worker(me) {
        return Some(Answer::Refuse);
    }
    let Some(key) = key else {
        return Some(Answer::Refuse);
    };
    let tid = kernel::tid(me);
    let start_ns = kernel::start_ns(me);
    let now = kernel::boot_ns();

    if let Some(pending) = PENDING.get_ptr_mut(task) {
        // SAFETY: only this task's own hooks write or remove this entry.
        let pending = unsafe { &mut *pending };
        if pending.state == state::AWAITS_CHECK {
            if find(task, pending) != verdict::CHECKED {
                return Some(Answer::Refuse);
            }
            finish(task, pending, ended::RETURNED, 0);
        } else if same(pending, config, tid, start_ns, key) {
            match find(task, pending) {
                0 => return None,
                verdict::ASK_AGAIN => forget(task, pending),
                found => match honor(task, pending, found) {
                    Some(answer) => return Some(answer),
                    None => finish(task, pending, ended::REPLACED, 0),
                },
            }
        } else {
            finish(task, pending, ended::REPLACED, 0);
        }
    }

    let fresh = Pending {
        key: ActionKey {
            kind: key.kind,
            op: key.op,
            device: key.device,
            generation: key.generation,
            inode: key.inode,
            extra: [key.extra[0], key.extra[1], key.extra[2]],
        },
        asked_ns: now,
        start_ns,
        rounds: 0,
        honored_ns: 0,
        epoch: 0,
        tid,
        tgid,
        label: label.label,
        state: state::LOOPING,
        verdict: 0,
        loops: 0,
        last_file: ActionKey {
            kind: 0,
            op: 0,
            device: 0,
            generation: 0,
            inode: 0,
            extra: [0; 3],
        },
    };
    if !quota::enter_question(label.label) {
        return Some(Answer::Refuse);
    }
    if PENDING.insert(task, fresh, 0).is_err() {
        quota::leave_question(label.label);
        count(counter::PENDING_FULL);
        return Some(Answer::Refuse);
    }
    enter(tgid);
    None
}

/// Does what the verdict that was found says; `None` if there is none, or it is good no more.
#[inline(always)]
pub fn honor(task: u64, pending: &mut Pending, found: u32) -> Option<Answer> {
    let now = kernel::boot_ns();
    match found {
        verdict::DENY => {
            pending.verdict = verdict::DENY;
            finish(task, pending, ended::DENIED, 0);
            Some(Answer::Refuse)
        }
        verdict::ALLOW | verdict::CHECK if pending.honored_ns == 0 || now < pending.honored_ns + HONORED_FOR_NS => {
            if pending.honored_ns == 0 {
                pending.honored_ns = now;
            }
            pending.verdict = found;
            Some(Answer::Pass)
        }
        _ => None,
    }
}

/// The same question as before, and this agent was told or nobody yet.
#[inline(always)]
fn same(pending: &Pending, config: &Config, tid: u32, start_ns: u64, key: &ActionKey) -> bool {
    pending.tid == tid
        && pending.start_ns == start_ns
        && (pending.epoch == 0 || pending.epoch == config.epoch)
        && pending.key.same(key)
}
