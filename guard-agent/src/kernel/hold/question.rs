//! One question from the ring to its end: what is known about it and how far it is.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use guard_common::rules::RuleKey;
use guard_common::{Verdict, ask_flag};

use super::read::Detail;
use crate::enforce::Pass;
use crate::kernel::api::{
    ActionId, Asked, AskedAction, AskedChange, AskedExec, AskedReach, ExecExpectation, LabelId, ParkedWhy, Peer,
    ReachHow,
};
use crate::kernel::next_sequence;
use crate::kernel::ring::{Ask, Subject, file_key};
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
            named: match ask.what {
                Subject::Exec {
                    mount_namespace,
                    unlinked,
                    ..
                } => mount_namespace == initial || unlinked,
                Subject::Unix { mount_namespace, .. } | Subject::File { mount_namespace, .. } => {
                    mount_namespace == initial
                }
                Subject::Address { .. } | Subject::Abstract { .. } => true,
            },
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
            what: self.what(),
            connection: matches!(
                ask.what,
                Subject::Address { .. } | Subject::Unix { .. } | Subject::Abstract { .. }
            )
            .then_some(ask.key),
            rule: self.rule().filter(|rule| rule.kind != 0 && rule.label == ask.label),
        }
    }

    fn rule(&self) -> Option<RuleKey> {
        let key = &self.ask.key;
        match &self.ask.what {
            Subject::Exec { rule, .. } => Some(*rule),
            // As `reach_allowed` in guard-ebpf/src/rules.rs makes it.
            Subject::Address { how, .. } => Some(RuleKey {
                label: self.ask.label,
                kind: key.kind,
                op: key.op,
                device: key.device,
                generation: key.generation,
                how: match how {
                    ReachHow::Connect => 0,
                    ReachHow::Message => ask_flag::MESSAGE,
                    ReachHow::ConnectedBefore => ask_flag::CONNECTED_BEFORE,
                    ReachHow::Listen => ask_flag::LISTEN,
                },
                inode: 0,
                extra: [key.extra[0], key.extra[1]],
            }),
            Subject::Unix { .. } | Subject::Abstract { .. } | Subject::File { .. } => None,
        }
    }

    fn what(&self) -> AskedAction {
        let key = &self.ask.key;
        let reach = |peer, how| {
            let [family, kind, low, high] = key.op.to_le_bytes();
            AskedAction::Reach(AskedReach {
                peer,
                how,
                family: family.into(),
                kind: kind.into(),
                protocol: u16::from_le_bytes([low, high]),
            })
        };
        match &self.ask.what {
            Subject::Exec { path, unlinked, .. } => AskedAction::Exec(AskedExec {
                file: file_key(key),
                path: path.clone().filter(|_| self.named),
                unlinked: *unlinked,
            }),
            Subject::Address {
                address,
                port,
                scope,
                how,
            } => reach(
                Peer::Address {
                    address: *address,
                    port: *port,
                    scope: *scope,
                },
                *how,
            ),
            Subject::Unix { path, how, .. } => reach(
                Peer::Unix {
                    path: path.clone().filter(|_| self.named),
                },
                *how,
            ),
            Subject::File { change, .. } => {
                let mut change = change.as_ref().clone();
                if !self.named {
                    change.path = None;
                    change.second = None;
                }
                AskedAction::Change(Box::new(AskedChange {
                    file: file_key(key),
                    change,
                }))
            }
            Subject::Abstract { name, how } if name.is_empty() => reach(Peer::Nameless, *how),
            Subject::Abstract { name, how } => reach(Peer::Abstract(name.clone()), *how),
        }
    }

    /// The file of an exec, whose argv and environment have to be read before people are asked; `None` for what the kernel
    /// has told all of.
    pub(crate) fn exec_path(&self) -> Option<Option<PathBuf>> {
        match &self.ask.what {
            Subject::Exec { path, .. } => Some(path.clone()),
            _ => None,
        }
    }
}
