//! What the hooks report: questions, their ends, parked processes, signals.
//!
//! Owns how an event changes a question; given decoded events. It must never trust that an event comes: the sweep in
//! `time` finds what a full ring lost.

use guard_common::{VerdictKey, ended, state};

use super::question::{Question, Stage};
use super::{Event, Holder};
use crate::kernel::api::{Enforced, FromKernel, Mismatch, MismatchWhat, Outcome, ParkedWhy, WithdrawnWhy};
use crate::kernel::ring::Ask;
use crate::kernel::{crash, sys};

/// Replies of resolvers between two signs of life: a workload that asks without end fills no queue with them.
const REPLIES: u32 = 256;

impl Holder {
    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Ask(ask) => self.ask(*ask),
            Event::Ended(event) => {
                self.ended(
                    VerdictKey {
                        task: event.task,
                        asked_ns: event.asked_ns,
                    },
                    &event,
                );
            }
            Event::Parked(event) => {
                self.parked(
                    VerdictKey {
                        task: event.task,
                        asked_ns: event.asked_ns,
                    },
                    event.state,
                );
            }
            Event::Signal(signal) => self.signal(&signal),
            Event::CgroupMade { id, path, .. } => self.send(FromKernel::CgroupMade { id, path }),
            Event::CgroupGone { id } => self.send(FromKernel::CgroupGone { id }),
            Event::Resolved(reply) => {
                if self.replies < REPLIES {
                    self.replies += 1;
                    self.send(FromKernel::Resolved(reply));
                }
            }
        }
    }

    pub(super) fn ask(&mut self, ask: Ask) {
        let key = VerdictKey {
            task: ask.task,
            asked_ns: ask.asked_ns,
        };
        if self.questions.contains_key(&key) {
            return;
        }
        let mut question = Question::new(ask, self.mount_namespace);
        let asked = question.asked();
        if let Some(pass) = self.at_once.as_ref().and_then(|at_once| at_once.allows(&asked)) {
            // First of all the verdict: whoever asks keeps a CPU busy until it is there.
            self.pass_at_once(key, &mut question);
            question.pass = Some((Box::new(asked), pass));
            self.follow(key, question);
            return;
        }
        crash::point("question-seen");
        self.sequences.insert(question.id.sequence, key);
        self.follow(key, question);
        self.send(FromKernel::Asked(asked));
    }

    fn follow(&mut self, key: VerdictKey, question: Question) {
        if let Some(traced) = self.traced.get_mut(&question.tid()) {
            traced.question = Some(key);
        }
        self.questions.insert(key, question);
    }

    pub(super) fn ended(&mut self, key: VerdictKey, event: &guard_common::Ended) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let (id, answer, pass) = (question.id, question.answer, question.pass.take());
        if event.how == ended::DIED && question.parked.is_some() {
            // It may have died of another thread's exec, while its SIGSTOP still stops the process: nobody asks there any
            // more whose answer would continue it. What waits to be compared is not continued by this.
            let _ = sys::kill(question.tgid(), libc::SIGCONT);
        }
        let outcome = match (event.how, answer) {
            (ended::DENIED, Some(_)) => Some(Outcome::Denied),
            (ended::COMMITTED, Some(_)) => Some(Outcome::Ran),
            (ended::RETURNED, Some(_)) if event.errno == 0 => Some(Outcome::Ran),
            (ended::RETURNED, Some(_)) => Some(Outcome::Failed(event.errno.cast_signed())),
            (ended::UNCHECKED, Some(_)) => Some(Outcome::Killed(Mismatch {
                what: MismatchWhat::Unreadable,
                approved: "compared before its first instruction".into(),
                found: "it was not traced by the agent when it committed its exec".into(),
            })),
            (ended::DIED, Some(_)) => Some(Outcome::Died),
            _ => None,
        };
        let end = match outcome {
            Some(outcome) => {
                let resume_ns = event.at_ns.saturating_sub(question.answered_ns);
                Ok(Enforced { id, outcome, resume_ns })
            }
            None if event.how == ended::DIED => Err(WithdrawnWhy::Died),
            None => Err(WithdrawnWhy::Changed),
        };
        match (pass, end) {
            (Some((asked, pass)), end) => self.passed.push(FromKernel::Passed { asked, pass, end }),
            (None, Ok(enforced)) => self.send(FromKernel::Enforced(enforced)),
            (None, Err(why)) => self.send(FromKernel::Withdrawn { id, why }),
        }
        self.forget(key);
    }

    /// Drops a question; a thread that is still traced for it is let go as soon as it stops.
    pub(super) fn forget(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.remove(&key) else {
            return;
        };
        self.sequences.remove(&question.id.sequence);
        for (tid, traced) in &mut self.traced {
            if traced.question == Some(key) {
                traced.question = None;
                let _ = sys::interrupt(*tid);
            }
        }
    }

    pub(super) fn parked(&mut self, key: VerdictKey, why: u32) {
        if why == state::AWAITS_CHECK {
            return self.awaits_check(key);
        }
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let why = match (why, question.cannot_trace) {
            (_, Some(why)) => why,
            (state::PARKED_TRACED, _) => ParkedWhy::AlreadyTraced,
            (state::PARKED_SIGCONT, _) => ParkedWhy::SigcontHandled,
            (state::PARKED_AWAY, _) => ParkedWhy::AgentWasAway,
            (state::PARKED_MANY, _) => ParkedWhy::ManyThreads,
            _ => ParkedWhy::TookTooLong,
        };
        question.parked = Some(why);
        match question.stage {
            Stage::Asked if question.wanted => self.start_reading(key),
            // The verdict is there; it stopped before it saw it.
            Stage::Going => {
                let tgid = question.tgid();
                let _ = sys::kill(tgid, libc::SIGCONT);
            }
            _ => {}
        }
    }

    /// A held thread has to see its signals: it goes on, handles them, and its restarted syscall asks again.
    pub(super) fn signal(&mut self, signal: &guard_common::Signal) {
        let mut stopped = Vec::new();
        for (tid, traced) in &self.traced {
            let Some(question) = traced.question.and_then(|key| self.questions.get_mut(&key)) else {
                continue;
            };
            if question.ask.tgid != signal.tgid || (signal.group == 0 && question.ask.tid != signal.tid) {
                continue;
            }
            match question.stage {
                Stage::Held | Stage::Stopped => stopped.push(*tid),
                // Perhaps it has stopped already and this thread does not know: seen to when it does.
                Stage::Asked | Stage::Seizing | Stage::Passing | Stage::Reading => question.signalled = true,
                Stage::Going | Stage::Checking => {}
            }
        }
        for tid in stopped {
            self.pass(tid, 0);
        }
        self.signal_for_parked(signal);
    }

    /// What is parked sees no signal but SIGKILL: it goes on as a whole, sees it, and is parked again should it still ask.
    fn signal_for_parked(&self, signal: &guard_common::Signal) {
        if matches!(
            signal.signal.cast_signed(),
            libc::SIGCONT | libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
        ) {
            return;
        }
        let parked = self.questions.values().any(|question| {
            question.ask.tgid == signal.tgid
                && question.parked.is_some()
                && matches!(question.stage, Stage::Asked | Stage::Reading | Stage::Held)
        });
        if parked {
            // It may be gone already.
            let _ = sys::kill(signal.tgid.cast_signed(), libc::SIGCONT);
        }
    }
}
