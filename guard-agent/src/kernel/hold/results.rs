//! What workers found: what a held thread is about to do, and whether the new image is what was approved.
//!
//! Owns starting those jobs and taking their results; given either. It must never call an image approved that was not
//! compared, and never ask people about what could not be read.

use std::sync::Arc;
use std::time::Instant;

use guard_common::{VerdictKey, verdict};

use super::check::{self, Gated};
use super::question::Stage;
use super::read::{self, Detail, ReadError};
use super::{Done, Holder};
use crate::kernel::api::{
    Enforced, FromKernel, Held, HeldExec, HeldHow, Mismatch, MismatchWhat, Outcome, Release, WithdrawnWhy,
};
use crate::kernel::sys::{self, Tid};
use crate::kernel::{crash, next_sequence};

impl Holder {
    pub(super) fn start_reading(&mut self, key: VerdictKey) {
        let pending = self.pending(&key);
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let Some(path) = question.exec_path() else {
            if let Some(pending) = pending {
                question.rounds = pending.rounds;
            }
            return self.tell(key);
        };
        question.stage = Stage::Reading;
        question.since = Instant::now();
        let (tid, asked, label) = (question.tid(), question.ask.key, question.ask.label);
        let (identify, done, waker) = (Arc::clone(&self.identify), self.done.clone(), Arc::clone(&self.waker));
        self.workers.run(label, move || {
            let found = read::read(tid, &asked, path.as_deref(), &identify);
            let _ = done.send(Done::Read(key, found.map(Box::new)));
            waker.wake();
        });
    }

    /// Compares the new image of `pid`, which has not run an instruction; false if it is not known what was approved.
    pub(super) fn start_checking(&mut self, key: VerdictKey, pid: Tid) -> bool {
        let Some(question) = self.questions.get(&key) else {
            return false;
        };
        let (Some(expected), Some(detail)) = (question.expectation.clone(), question.detail.clone()) else {
            return false;
        };
        let gated = self.pending(&key).map(|pending| Gated {
            asked: pending.key,
            last: pending.last_file,
        });
        let label = question.ask.label;
        self.stage(key, Stage::Checking);
        let (identify, done, waker) = (Arc::clone(&self.identify), self.done.clone(), Arc::clone(&self.waker));
        self.workers.run(label, move || {
            let result = match gated {
                Some(gated) => check::compare(pid, &gated, &expected, &detail, &identify),
                None => Err(Mismatch {
                    what: MismatchWhat::Unreadable,
                    approved: "the kernel's key of the file".into(),
                    found: "the question is no longer in the kernel's table".into(),
                }),
            };
            let _ = done.send(Done::Checked(key, result));
            waker.wake();
        });
        true
    }

    /// A checked exec that this thread could not trace is committed and stopped by the kernel side. Comparing needs no
    /// ptrace.
    pub(super) fn awaits_check(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        if question.stage != Stage::Going {
            return;
        }
        let tgid = question.tgid();
        if !self.start_checking(key, tgid) {
            let _ = sys::kill(tgid, libc::SIGKILL);
        }
    }

    pub(super) fn read(&mut self, key: VerdictKey, found: Result<Box<Detail>, ReadError>) {
        let tracee = self.tracee(key);
        let pending = self.pending(&key);
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if question.stage != Stage::Reading {
            return;
        }
        match found {
            Ok(detail) => {
                crash::point("question-read");
                if let Some(pending) = pending {
                    question.rounds = pending.rounds;
                }
                let same = question.detail.as_ref().is_none_or(|before| {
                    before.argv == detail.argv && before.environment == detail.environment && before.cwd == detail.cwd
                });
                question.stage = Stage::Stopped;
                if same {
                    // The same file, or the one that can be opened now.
                    if question.detail.as_ref().is_none_or(|before| before.file.is_none()) {
                        question.detail = Some(Arc::from(detail));
                    }
                    self.tell(key);
                } else {
                    question.detail = Some(Arc::from(detail));
                    self.ask_anew(key);
                }
                if self.take_signalled(key)
                    && let Some(tid) = tracee
                {
                    self.pass(tid, 0);
                }
            }
            Err(ReadError::NotInExec) if tracee.is_some() => {
                // Stopped on its way back into the syscall: the hook stops it.
                self.stage(key, Stage::Seizing);
                if let Some(tid) = tracee {
                    let _ = sys::cont(tid, 0);
                }
            }
            Err(ReadError::NotInExec) => {
                // Parked, but not stopped yet; or gone on, then its event comes. Tried again at the next tick.
                question.stage = Stage::Asked;
            }
            Err(error) => {
                tracing::warn!(tid = question.id.tid, %error, "a held exec cannot be read: refused");
                self.refuse(key);
            }
        }
    }

    /// What cannot be shown cannot be approved.
    pub(super) fn refuse(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        let id = question.id;
        self.send(FromKernel::Withdrawn {
            id,
            why: WithdrawnWhy::Changed,
        });
        self.release(id, Release::Deny);
        // The question is withdrawn; its end is told to nobody.
        if let Some(question) = self.questions.remove(&key) {
            self.sequences.remove(&question.id.sequence);
        }
    }

    /// The same file with other arguments: another question.
    pub(super) fn ask_anew(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let before = question.id;
        question.id.sequence = next_sequence();
        question.told = false;
        question.wanted = false;
        let (id, asked) = (question.id, question.asked());
        self.sequences.remove(&before.sequence);
        self.sequences.insert(id.sequence, key);
        self.send(FromKernel::Withdrawn {
            id: before,
            why: WithdrawnWhy::Changed,
        });
        self.send(FromKernel::Asked(asked));
    }

    /// Tells the agent what the held thread is about to do, once.
    pub(super) fn tell(&mut self, key: VerdictKey) {
        let traced = self.tracee(key).is_some();
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let detail = question.detail.clone();
        if detail.is_none() && question.exec_path().is_some() {
            return;
        }
        question.stage = Stage::Held;
        if std::mem::replace(&mut question.told, true) {
            return;
        }
        let how = match question.parked {
            Some(why) if !traced => HeldHow::Parked(why),
            _ => HeldHow::Traced,
        };
        let held = Held {
            id: question.id,
            how,
            rounds: question.rounds,
            took_ns: sys::boot_ns().saturating_sub(question.ask.asked_ns),
            exec: detail.as_ref().map(|detail| HeldExec {
                argv: detail.argv.clone(),
                environment: detail.environment.clone(),
                cwd: detail.cwd.clone(),
                file: detail.file.as_ref().and_then(|file| file.try_clone().ok()),
                given: detail.given.clone(),
            }),
            tracer: detail.and_then(|detail| detail.tracer.clone()),
        };
        self.send(FromKernel::Held(Box::new(held)));
    }

    pub(super) fn checked(&mut self, key: VerdictKey, found: Result<(), Mismatch>) {
        let tracee = self.tracee(key);
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        if question.stage != Stage::Checking {
            return;
        }
        let (id, tgid, answered_ns) = (question.id, question.tgid(), question.answered_ns);
        let resume_ns = sys::boot_ns().saturating_sub(answered_ns);
        crash::point("comparison-done");
        let found = match found {
            Ok(()) if !self.write(key, verdict::CHECKED) => Err(Mismatch {
                what: MismatchWhat::Unreadable,
                approved: "a place in the kernel's table of verdicts".into(),
                found: "it is full".into(),
            }),
            other => other,
        };
        crash::point("comparison-written");
        let outcome = match found {
            Ok(()) => {
                match tracee {
                    Some(tid) => self.let_go(tid, 0),
                    // It was stopped by the kernel side, which refuses this signal from anybody else.
                    None => drop(sys::kill(tgid, libc::SIGCONT)),
                }
                Outcome::Ran
            }
            Err(mismatch) => {
                let _ = sys::kill(tgid, libc::SIGKILL);
                Outcome::Killed(mismatch)
            }
        };
        self.send(FromKernel::Enforced(Enforced { id, outcome, resume_ns }));
        if let Some(traced) = tracee.and_then(|tid| self.traced.get_mut(&tid)) {
            traced.question = None;
        }
        self.questions.remove(&key);
        self.sequences.remove(&id.sequence);
    }
}
