//! What traced threads do: stop in their hook, for a signal, with their group, at their exec, or end.
//!
//! Owns the answer to each wait status; given the status. It must never let a thread go while the SIGSTOP of a round may
//! still wait for it: that would stop the whole process.

use guard_common::{VerdictKey, verdict};

use super::Holder;
use super::question::{Question, Stage};
use crate::kernel::crash;
use crate::kernel::sys::{self, Tid};

const PTRACE_EVENT_EXEC: i32 = 4;
const PTRACE_EVENT_STOP: i32 = 128;
/// `si_code` of a signal that the kernel made, as the rounds of a hold do.
const SI_KERNEL: i32 = 0x80;

impl Holder {
    pub(super) fn status(&mut self, tid: Tid, status: i32) {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            // The question, if any, ends by its event.
            self.traced.remove(&tid);
            return;
        }
        if !libc::WIFSTOPPED(status) {
            return;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            PTRACE_EVENT_EXEC => self.exec_event(tid),
            PTRACE_EVENT_STOP if is_stop(signal) => self.group_stop(tid),
            PTRACE_EVENT_STOP => self.at_trap(tid),
            0 => {
                let ours = (signal == libc::SIGSTOP || signal == libc::SIGCONT)
                    && sys::signal_code(tid).is_ok_and(|code| code == SI_KERNEL);
                if ours {
                    self.at_hook(tid);
                } else {
                    self.delivery(tid, signal);
                }
            }
            _ => self.let_go(tid, 0),
        }
    }

    pub(super) fn question_of(&self, tid: Tid) -> Option<(VerdictKey, &Question)> {
        let key = self.traced.get(&tid)?.question?;
        Some((key, self.questions.get(&key)?))
    }

    /// A thread that is traced for nothing any more.
    pub(super) fn let_go(&mut self, tid: Tid, signal: i32) {
        self.traced.remove(&tid);
        let _ = sys::detach(tid, signal);
    }

    /// Told to stop, by us or because a group stop began or ended. The SIGSTOP of a round may still wait for it, so it
    /// is not let go here while it may be in its hook: it would stop the whole process.
    pub(super) fn at_trap(&mut self, tid: Tid) {
        if let Some(traced) = self.traced.get_mut(&tid) {
            traced.listening = false;
        }
        if self.question_of(tid).is_some() {
            let _ = sys::cont(tid, 0);
        } else {
            self.let_go(tid, 0);
        }
    }

    /// Stopped by the round of its hook: nothing of ours waits for it any more.
    pub(super) fn at_hook(&mut self, tid: Tid) {
        let Some((key, question)) = self.question_of(tid) else {
            return self.let_go(tid, 0);
        };
        match question.stage {
            Stage::Asked | Stage::Seizing | Stage::Passing => {
                let wanted = question.wanted;
                self.stage(key, Stage::Stopped);
                crash::point("thread-stopped");
                if self.take_signalled(key) {
                    self.pass(tid, 0);
                } else if wanted {
                    self.start_reading(key);
                }
            }
            Stage::Going => {
                let answer = question.answer.unwrap_or(verdict::DENY);
                self.go(tid, answer);
            }
            Stage::Stopped | Stage::Reading | Stage::Held | Stage::Checking => {}
        }
    }

    /// A signal of somebody's is about to be delivered.
    pub(super) fn delivery(&mut self, tid: Tid, signal: i32) {
        let Some((_, question)) = self.question_of(tid) else {
            return self.let_go(tid, signal);
        };
        if question.stage == Stage::Going {
            let _ = sys::cont(tid, signal);
        } else {
            self.pass(tid, signal);
        }
    }

    /// The process was stopped (Ctrl-Z, SIGSTOP): it stays so until somebody continues it.
    pub(super) fn group_stop(&mut self, tid: Tid) {
        let Some((key, question)) = self.question_of(tid) else {
            return self.let_go(tid, 0);
        };
        let going_free = question.stage == Stage::Going && question.answer != Some(verdict::CHECK);
        let parked_while_seizing = question.stage == Stage::Seizing && question.parked.is_some();
        if going_free {
            return self.let_go(tid, 0);
        }
        if parked_while_seizing {
            self.let_go(tid, 0);
            self.stage(key, Stage::Asked);
            self.start_reading(key);
            return;
        }
        if matches!(question.stage, Stage::Seizing | Stage::Passing | Stage::Asked) {
            self.stage(key, Stage::Passing);
        }
        if let Some(traced) = self.traced.get_mut(&tid) {
            traced.listening = true;
        }
        let _ = sys::listen(tid);
    }

    /// The new image is there and has not run an instruction.
    pub(super) fn exec_event(&mut self, tid: Tid) {
        let before = sys::event_message(tid)
            .ok()
            .and_then(|old| Tid::try_from(old).ok())
            .unwrap_or(tid);
        if before != tid
            && let Some(traced) = self.traced.remove(&before)
        {
            // A thread that was not the leader took the leader's id; the old leader's question ends by its event.
            self.traced.insert(tid, traced);
        }
        let Some((key, question)) = self.question_of(tid) else {
            return self.let_go(tid, 0);
        };
        crash::point("exec-event");
        if question.stage != Stage::Going || !self.start_checking(key, tid) {
            self.let_go(tid, 0);
        }
    }
}

const fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}
