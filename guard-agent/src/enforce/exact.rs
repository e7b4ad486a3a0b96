//! Answers that the kernel gives again by itself, without a question.
//!
//! Owns which answers become exact rules, and the records of what those allowed. It is given answers of the policy by the
//! engine. It must never make a rule of an answer that depended on more than the rule's key, nor lose a use or record it twice.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use guard_common::rules::RuleKey;
use guard_evidence::record::{ExactRule, Lifecycle, LifecycleRecord, PolicyAction, Predicate, RuleUses};
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::Known;
use crate::clock;
use crate::evidence::{Evidence, unsealed};
use crate::kernel::Rules;
use crate::kernel::api::{Asked, AskedAction};

/// A file that was changed less long ago may be changed again at what its file system takes for the same time.
const UNCHANGED_FOR: Duration = Duration::from_secs(2);
/// Rules in one record.
const PER_RECORD: usize = 32;

/// What a rule is, as it is kept beside its counter.
#[derive(Debug, Serialize, Deserialize)]
struct Noted {
    label: String,
    #[serde(flatten)]
    rule: ExactRule,
}

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Exact {
    rules: Arc<Rules>,
    evidence: Evidence,
    /// Until when uses are in records, boot time; 0 before.
    until_ns: Arc<Mutex<u64>>,
}

impl Exact {
    /// Takes over what an earlier agent's rules have counted.
    #[must_use]
    pub fn new(rules: Arc<Rules>, evidence: Evidence) -> Self {
        // What is in records, but could not be marked any more.
        for (counter, through) in &evidence.before().counted {
            if let Some(slot) = counter.rsplit_once('-').and_then(|(_, slot)| slot.parse().ok())
                && rules.counter(slot) == *counter
            {
                rules.recorded(slot, *through);
            }
        }
        let exact = Self {
            rules,
            evidence,
            until_ns: Arc::default(),
        };
        exact.record();
        exact
    }

    /// Another policy is about to be in force: no rule counts that was learnt before.
    pub fn begin(&self) {
        self.set(clock::since_boot_ns());
    }

    /// The agent stops: nothing is allowed any more that no agent would record.
    pub fn stop(&self) {
        self.set(0);
    }

    fn set(&self, generation: u64) {
        if let Err(error) = self.rules.begin(generation) {
            tracing::error!(%error, "exact rules of an earlier policy cannot be put out of force");
        }
    }

    /// The policy in force allows this, whoever does it.
    pub fn learn(&self, asked: &Asked, action: PolicyAction, known: &Known) {
        let Some(key) = asked.rule.filter(|key| is_settled(asked, key)) else {
            return;
        };
        let note = Noted {
            label: known.label.clone(),
            rule: ExactRule {
                action,
                rules: known.rules.clone(),
                policy_digest: known.policy_digest.clone(),
            },
        };
        let note = serde_json::to_vec(&note).unwrap_or_default();
        if let Err(error) = self.rules.add(&key, asked.at_ns, &note) {
            tracing::debug!(%error, label = known.label, "the kernel goes on asking");
        }
    }

    /// Records what was counted since the last time.
    pub fn record(&self) {
        let now = clock::since_boot_ns();
        let before = std::mem::replace(&mut *self.until_ns.lock(), now);
        let mut labels: BTreeMap<String, Vec<(u64, u32, RuleUses)>> = BTreeMap::new();
        for uses in self.rules.unrecorded() {
            let Ok(noted) = serde_json::from_slice::<Noted>(&uses.note) else {
                tracing::error!(slot = uses.slot, "what an exact rule allowed cannot be read");
                continue;
            };
            let counted = RuleUses {
                rule: noted.rule,
                count: uses.count,
                counter: self.rules.counter(uses.slot),
                through: uses.through,
            };
            let since = uses.since_ns.max(before);
            labels.entry(noted.label).or_default().push((since, uses.slot, counted));
        }
        for (label, mut uses) in labels {
            while !uses.is_empty() {
                let rest = uses.split_off(uses.len().min(PER_RECORD));
                self.write(label.clone(), std::mem::replace(&mut uses, rest), now);
            }
        }
    }

    fn write(&self, label: String, uses: Vec<(u64, u32, RuleUses)>, now: u64) {
        let since = uses.iter().map(|(since, ..)| *since).min().unwrap_or(now);
        let marks: Vec<(u32, u64)> = uses.iter().map(|(_, slot, uses)| (*slot, uses.through)).collect();
        for (slot, through) in &marks {
            self.rules.written(*slot, *through);
        }
        let event = Lifecycle::AllowedByRules {
            label,
            from: ago(now.saturating_sub(since)),
            to: ago(0),
            rules: uses.into_iter().map(|(.., uses)| uses).collect(),
        };
        let record = Predicate::Lifecycle(Box::new(LifecycleRecord {
            header: unsealed(),
            event,
        }));
        let rules = Arc::clone(&self.rules);
        self.evidence
            .write_and(self.evidence.reserve_always(), record, move |_| {
                for (slot, through) in marks {
                    rules.recorded(slot, through);
                }
            });
    }

    /// Now and then.
    pub fn tidy(&self) {
        self.rules.tidy();
    }
}

/// So many nanoseconds before now.
fn ago(nanoseconds: u64) -> String {
    let ago = i64::try_from(nanoseconds).map_or(jiff::SignedDuration::ZERO, jiff::SignedDuration::from_nanos);
    let now = Timestamp::now();
    clock::rfc3339(now.checked_sub(ago).unwrap_or(now))
}

/// Whether a later change of what the key names is seen: of a file, when it was not changed just now; a name must be known.
fn is_settled(asked: &Asked, key: &RuleKey) -> bool {
    match &asked.what {
        AskedAction::Exec(exec) => {
            let changed = i64::try_from(key.extra[0])
                .ok()
                .and_then(|seconds| Timestamp::new(seconds, key.how.cast_signed()).ok());
            // When it was asked, by the clock that file systems use.
            let waited = Duration::from_nanos(clock::since_boot_ns().saturating_sub(asked.at_ns));
            let asked_at = Timestamp::now().checked_sub(waited).ok();
            let (Some(changed), Some(asked_at)) = (changed, asked_at) else {
                return false;
            };
            let age = Duration::try_from(asked_at.duration_since(changed)).unwrap_or(Duration::ZERO);
            exec.path.is_some() && !exec.unlinked && age >= UNCHANGED_FOR
        }
        AskedAction::Reach(_) => true,
        AskedAction::Change(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::api::{ActionId, AskedExec, FileKey, LabelId};

    fn asked(key: RuleKey, path: Option<&str>, unlinked: bool) -> Asked {
        Asked {
            id: ActionId {
                tid: 1,
                start_ns: 1,
                sequence: 1,
            },
            label: LabelId(1),
            tgid: 1,
            ppid: 1,
            uid: 0,
            gid: 0,
            login_uid: None,
            cgroup: 1,
            comm: Vec::new(),
            at_ns: clock::since_boot_ns(),
            what: AskedAction::Exec(AskedExec {
                file: FileKey {
                    device: 1,
                    inode: 2,
                    generation: 3,
                },
                path: path.map(Into::into),
                unlinked,
            }),
            connection: None,
            rule: Some(key),
        }
    }

    fn changed(seconds_ago: i64) -> RuleKey {
        let at = Timestamp::now().as_second() - seconds_ago;
        RuleKey {
            label: 1,
            kind: 1,
            extra: [u64::try_from(at).unwrap(), 7],
            ..RuleKey::default()
        }
    }

    #[test]
    fn only_a_file_with_a_name_that_rests_becomes_a_rule() {
        let settled = |seconds, path, unlinked| {
            let key = changed(seconds);
            is_settled(&asked(key, path, unlinked), &key)
        };
        assert!(settled(60, Some("/usr/bin/git"), false));
        assert!(!settled(60, None, false));
        assert!(!settled(60, Some("/usr/bin/git"), true));
        assert!(!settled(0, Some("/usr/bin/git"), false), "changed just now");
        assert!(!settled(-3600, Some("/usr/bin/git"), false), "changed in the future");
        let broken = RuleKey {
            extra: [u64::MAX, 0],
            ..changed(60)
        };
        assert!(!is_settled(&asked(broken, Some("/usr/bin/git"), false), &broken));
    }
}
