//! What the agent wants: hold, release, label.
//!
//! Owns seizing and the way to a verdict; given commands. It must never write a verdict that was not asked for, and
//! never let a thread go on whose verdict could not be written.

use std::io;
use std::time::Instant;

use guard_common::{Verdict, VerdictKey, state, verdict};

use super::question::{Question, Stage};
use super::{Holder, Traced, read};
use crate::kernel::api::{ActionId, FromKernel, ParkedWhy, Release, ToKernel};
use crate::kernel::sys::{self, Tid};
use crate::kernel::{cgroups, crash};

impl Holder {
    pub(super) fn command(&mut self, command: ToKernel) {
        match command {
            ToKernel::Hold(id) => self.hold(id),
            ToKernel::Release { id, release } => self.release(id, release),
            ToKernel::Settings { label, settings } => {
                if let Err(error) = cgroups::settings(&mut self.maps, label.0, settings.raw()) {
                    tracing::error!(%error, label = label.0, "what holds for a label cannot be set");
                }
            }
            ToKernel::Label { cgroup, label } => {
                let result = cgroups::label(&mut self.maps, cgroup, label.0).map_err(|error| {
                    tracing::error!(%error, cgroup, label = label.0, "cgroup not labelled");
                    error.to_string()
                });
                self.send(FromKernel::Labelled { cgroup, result });
            }
            ToKernel::Unlabel { cgroup } => cgroups::unlabel(&mut self.maps, cgroup),
            ToKernel::Settled => {
                self.settled = true;
                self.retire_others();
            }
            ToKernel::Stop => {}
        }
    }

    pub(super) fn find(&self, id: ActionId) -> Option<VerdictKey> {
        self.sequences.get(&id.sequence).copied()
    }

    pub(super) fn hold(&mut self, id: ActionId) {
        let Some(key) = self.find(id) else {
            return;
        };
        let Some(tgid) = self.questions.get(&key).map(Question::tgid) else {
            return;
        };
        let blocked = self
            .questions
            .values()
            .any(|other| other.tgid() == tgid && other.is_blocked());
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if question.wanted {
            return;
        }
        question.wanted = true;
        let tid = question.tid();
        match question.stage {
            Stage::Asked if question.parked.is_some() => self.start_reading(key),
            // Tried when its turn comes: each attempt costs all others time.
            Stage::Asked if blocked => {}
            Stage::Asked => self.seize(key, tid),
            Stage::Stopped if question.detail.is_some() => self.tell(key),
            Stage::Stopped => self.start_reading(key),
            _ => {}
        }
    }

    pub(super) fn seize(&mut self, key: VerdictKey, tid: Tid) {
        // Traced or not: the next round of its hook stops it.
        if self.traced.contains_key(&tid) {
            self.stage(key, Stage::Seizing);
            return;
        }
        match self.start_tracing(key, tid) {
            Ok(()) => {
                self.stage(key, Stage::Seizing);
                crash::point("thread-seized");
                crash::point_when("stop-not-taken", || sys::is_held(tid));
                // While its question is in the table the thread lives, so the id is still its own.
                if self
                    .pending(&key)
                    .is_none_or(|pending| pending.tid.cast_signed() != tid)
                    && let Some(traced) = self.traced.get_mut(&tid)
                {
                    traced.question = None;
                    let _ = sys::interrupt(tid);
                }
            }
            // Gone: its end is in the ring.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            // Neither can it go on before the other thread's exec has ended. Tried again later.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.stage(key, Stage::Asked);
                self.last_blocked = Instant::now();
            }
            Err(_) => {
                let why = if read::tracer(tid).is_some() {
                    ParkedWhy::AlreadyTraced
                } else {
                    ParkedWhy::PtraceForbidden
                };
                if let Some(question) = self.questions.get_mut(&key) {
                    question.cannot_trace = Some(why);
                }
            }
        }
    }

    /// Traces a thread for its question.
    ///
    /// # Errors
    /// What ptrace says; EINTR while another thread of the process is in an exec, see [`super::rescue`].
    fn start_tracing(&mut self, key: VerdictKey, tid: Tid) -> io::Result<()> {
        self.rescue.seize(tid)?;
        let traced = Traced {
            question: Some(key),
            listening: false,
        };
        self.traced.insert(tid, traced);
        Ok(())
    }

    pub(super) fn stage(&mut self, key: VerdictKey, stage: Stage) {
        if let Some(question) = self.questions.get_mut(&key) {
            question.stage = stage;
            question.since = Instant::now();
        }
    }

    /// The traced thread of a question.
    pub(super) fn tracee(&self, key: VerdictKey) -> Option<Tid> {
        self.traced
            .iter()
            .find(|(_, traced)| traced.question == Some(key))
            .map(|(tid, _)| *tid)
    }

    pub(super) fn release(&mut self, id: ActionId, release: Release) {
        let Some(key) = self.find(id) else {
            return;
        };
        let tracee = self.tracee(key);
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if question.answer.is_some() {
            return;
        }
        let answer = match release {
            Release::Deny => verdict::DENY,
            Release::Allow => verdict::ALLOW,
            Release::AllowChecked(expectation) if question.detail.is_some() => {
                question.expectation = Some(expectation);
                verdict::CHECK
            }
            Release::AllowChecked(_) => {
                tracing::error!(tid = id.tid, "an exec that was never read cannot be compared: refused");
                verdict::DENY
            }
        };
        let (stage, tgid, tid) = (question.stage, question.tgid(), question.tid());
        question.answer = Some(answer);
        question.answered_ns = sys::boot_ns();
        self.stage(key, Stage::Going);
        if answer == verdict::CHECK && tracee.is_none() {
            // Parked; traced from here on, so that it stops at its exec event. If that cannot be, the kernel side stops it.
            let _ = self.start_tracing(key, tid);
        }
        crash::point("verdict-due");
        if !self.write(key, answer) {
            return no_room(tid, tgid);
        }
        crash::point("verdict-written");
        if answer == verdict::ALLOW {
            self.last_allowed = Some(Instant::now());
        }
        match (tracee, stage) {
            (None, _) => {
                if self
                    .pending(&key)
                    .is_some_and(|pending| pending.state != state::LOOPING)
                {
                    let _ = sys::kill(tgid, libc::SIGCONT);
                }
            }
            (Some(tid), Stage::Stopped | Stage::Held | Stage::Reading) => self.go(tid, answer),
            // It runs: it finds its verdict, and is let go when its question ends.
            (Some(_), _) => {}
        }
        crash::point("thread-continued");
    }

    /// Allows what was answered at once. The verdict is all that happens now; should the process have parked itself
    /// meanwhile, that event is in the ring.
    pub(super) fn pass_at_once(&mut self, key: VerdictKey, question: &mut Question) {
        question.answered_ns = sys::boot_ns();
        crash::point("verdict-due");
        let written = self.put(key, question.verdict(verdict::ALLOW));
        crash::point("verdict-written");
        question.answer = Some(verdict::ALLOW);
        question.stage = Stage::Going;
        self.last_allowed = Some(question.since);
        if !written {
            no_room(question.tid(), question.tgid());
        }
    }

    pub(super) fn write(&mut self, key: VerdictKey, answer: u32) -> bool {
        match self.questions.get(&key).map(|question| question.verdict(answer)) {
            Some(value) => self.put(key, value),
            None => false,
        }
    }

    fn put(&mut self, key: VerdictKey, value: Verdict) -> bool {
        self.maps.verdicts.insert(key, value, 0).is_ok()
    }

    /// Lets a stopped thread go on towards its verdict: traced if its exec has to be compared.
    pub(super) fn go(&mut self, tid: Tid, answer: u32) {
        if answer == verdict::CHECK {
            let _ = sys::cont(tid, 0);
        } else {
            self.let_go(tid, 0);
        }
    }

    /// Lets a held thread go on to see a signal.
    pub(super) fn pass(&mut self, tid: Tid, signal: i32) {
        let Some(key) = self.traced.get(&tid).and_then(|traced| traced.question) else {
            return;
        };
        self.stage(key, Stage::Passing);
        let _ = sys::cont(tid, signal);
    }
}

/// Without a verdict it stays where it is. A killed process is better than one that waits for ever.
fn no_room(tid: Tid, tgid: Tid) {
    tracing::error!(tid, "the kernel's table of verdicts is full: the process is killed");
    let _ = sys::kill(tgid, libc::SIGKILL);
}
