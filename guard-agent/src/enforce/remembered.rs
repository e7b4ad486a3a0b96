//! Answers that the policy has given already, given again at once.
//!
//! Owns what the policy allowed by the kernel key alone, under everything that its first look reads. It is given such
//! answers by the engine and questions by the holder's thread. It must never allow what the policy in force would answer
//! otherwise, allow without a place for the record, or make the holder wait.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::Arc;

use guard_evidence::record::MatchedRule;
use parking_lot::Mutex;

use crate::evidence::{Evidence, Slot};
use crate::kernel::api::{Asked, AskedAction, AskedReach, AtOnce, ChangeOp, LabelId};

/// Answers of one label; one workload's odd paths must not push out what others use.
const PER_LABEL: usize = 2_048;
const LABELS: usize = 256;

/// An answer and what its record says.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    pub label: String,
    /// Path below the cgroup v2 root.
    pub cgroup: String,
    pub rules: Vec<MatchedRule>,
    pub policy_digest: String,
    /// The answer follows from the label and what is done alone, whoever does it: it may become an exact rule.
    pub exact: bool,
}

/// An action that was let through at once; the record of it has its place.
#[derive(Debug)]
pub struct Pass {
    pub(crate) slot: Slot,
    pub(crate) known: Arc<Known>,
}

/// Everything that the policy's first look reads, the label apart. Cedar's answer is a function of these, the name of
/// the user id (policies that look at it are not remembered) and the policy.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    what: What,
    uid: u32,
    gid: u32,
    login_uid: Option<u32>,
    cgroup: u64,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum What {
    /// The path as it is written: paths take themselves apart to be compared.
    Exec {
        path: Option<OsString>,
        unlinked: bool,
    },
    Reach(AskedReach),
    Change {
        op: ChangeOp,
        path: Option<OsString>,
        second: Option<OsString>,
        directory: bool,
    },
}

impl Key {
    fn of(asked: &Asked) -> Self {
        Self {
            what: match &asked.what {
                AskedAction::Exec(exec) => What::Exec {
                    path: exec.path.as_ref().map(|path| path.as_os_str().to_owned()),
                    unlinked: exec.unlinked,
                },
                AskedAction::Reach(reach) => What::Reach(reach.clone()),
                AskedAction::Change(asked) => {
                    let written = |path: &PathBuf| path.as_os_str().to_owned();
                    What::Change {
                        op: asked.change.op,
                        path: asked.change.path.as_ref().map(written),
                        second: asked.change.second.as_ref().map(written),
                        directory: asked.change.directory,
                    }
                }
            },
            uid: asked.uid,
            gid: asked.gid,
            login_uid: asked.login_uid,
            cgroup: asked.cgroup,
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Remembered {
    evidence: Evidence,
    labels: Mutex<HashMap<LabelId, HashMap<Key, Arc<Known>>>>,
}

impl Remembered {
    #[must_use]
    pub fn new(evidence: Evidence) -> Self {
        Self {
            evidence,
            labels: Mutex::default(),
        }
    }

    /// The policy in force allows this by the kernel key alone.
    pub fn learn(&self, asked: &Asked, known: Known) {
        let mut labels = self.labels.lock();
        if labels.len() >= LABELS && !labels.contains_key(&asked.label) {
            labels.clear();
        }
        let answers = labels.entry(asked.label).or_default();
        if answers.len() >= PER_LABEL {
            answers.clear();
        }
        answers.insert(Key::of(asked), Arc::new(known));
    }

    /// Another policy is about to be in force.
    pub fn forget_all(&self) {
        self.labels.lock().clear();
    }
}

impl AtOnce for Remembered {
    fn allows(&self, asked: &Asked) -> Option<Pass> {
        let known = Arc::clone(self.labels.lock().get(&asked.label)?.get(&Key::of(asked))?);
        let slot = self.evidence.reserve_spare()?;
        Some(Pass { slot, known })
    }
}

#[cfg(test)]
mod tests;
