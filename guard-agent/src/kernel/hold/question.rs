//! One question from the ring to its end: what is known about it and how far it is.

use std::sync::Arc;
use std::time::Instant;

use guard_common::Verdict;

use super::read::Detail;
use crate::enforce::Pass;
use crate::kernel::api::{ActionId, Asked, AskedAction, AskedExec, ExecExpectation, LabelId, ParkedWhy};
use crate::kernel::next_sequence;
use crate::kernel::ring::{Ask, file_key};
use crate::kernel::sys::Tid;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// It runs its hook again and again, or is parked; nobody traces it.
    Asked,
    /// Traced; the next round of its hook stops it.
    Seizing,
    /// Traced and stopped in its hook.
    Stopped,
    /// Stopped, a worker reads it.
    Reading,
    /// Stopped, the agent was told.
    Held,
    /// Traced, on its way to see a signal, or in its group stop.
    Passing,
    /// Its verdict is written.
    Going,
    /// Stopped at its exec event, a worker compares it.
    Checking,
}

#[derive(Debug)]
pub(crate) struct Question {
    pub id: ActionId,
    pub ask: Ask,
    named: bool,
    pub stage: Stage,
    /// Since when it is in this stage.
    pub since: Instant,
    /// The agent wants it held.
    pub wanted: bool,
    /// The agent was told that it is held.
    pub told: bool,
    /// A signal came while it was not known to be stopped.
    pub signalled: bool,
    pub parked: Option<ParkedWhy>,
    /// It could not be seized.
    pub cannot_trace: Option<ParkedWhy>,
    pub rounds: u64,
    pub detail: Option<Arc<Detail>>,
    /// One of `guard_common::verdict`.
    pub answer: Option<u32>,
    /// Boot time.
    pub answered_ns: u64,
    pub expectation: Option<Arc<ExecExpectation>>,
    /// It was answered at once.
    pub pass: Option<(Box<Asked>, Pass)>,
}

impl Question {
    /// `initial` is the mount namespace of the host.
    pub(crate) fn new(ask: Ask, initial: u32) -> Self {
        Self {
            id: ActionId {
                tid: ask.tid,
                start_ns: ask.start_ns,
                sequence: next_sequence(),
            },
            // In another mount namespace anybody may have put this file there under that name: no name to decide by.
            named: ask.mount_namespace == initial || ask.unlinked,
            ask,
            stage: Stage::Asked,
            since: Instant::now(),
            wanted: false,
            told: false,
            signalled: false,
            parked: None,
            cannot_trace: None,
            rounds: 0,
            detail: None,
            answer: None,
            answered_ns: 0,
            expectation: None,
            pass: None,
        }
    }

    pub(crate) const fn tid(&self) -> Tid {
        self.ask.tid.cast_signed()
    }

    pub(crate) const fn tgid(&self) -> Tid {
        self.ask.tgid.cast_signed()
    }

    /// It is to be traced, and could not be yet: another thread of its process is in an exec.
    pub(crate) const fn is_blocked(&self) -> bool {
        matches!(self.stage, Stage::Asked) && self.wanted && self.parked.is_none() && self.cannot_trace.is_none()
    }

    /// An answer to this question and no other.
    pub(crate) const fn verdict(&self, answer: u32) -> Verdict {
        Verdict {
            key: self.ask.key,
            start_ns: self.ask.start_ns,
            tid: self.ask.tid,
            verdict: answer,
        }
    }

    /// The question as the agent gets it.
    pub(crate) fn asked(&self) -> Asked {
        let ask = &self.ask;
        Asked {
            id: self.id,
            label: LabelId(ask.label),
            tgid: ask.tgid,
            ppid: ask.ppid,
            uid: ask.uid,
            gid: ask.gid,
            login_uid: ask.login_uid,
            cgroup: ask.cgroup,
            comm: ask.comm.clone(),
            at_ns: ask.asked_ns,
            what: AskedAction::Exec(AskedExec {
                file: file_key(&ask.key),
                path: ask.path.clone().filter(|_| self.named),
                unlinked: ask.unlinked,
            }),
        }
    }
}
