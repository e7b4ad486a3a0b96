//! Verdicts: what the policy decided alone, and what became of any verdict.
//!
//! Owns the stage Released. It is given answers of the policy and outcomes of the kernel side. It must never lose the
//! place that a record has, nor allow without one.

use std::sync::atomic::Ordering;

use guard_evidence::record::{
    Action as RecordedAction, MatchedRule, PolicyAction, PolicyDecided, Predicate, Verdict, WorkloadFacts,
};
use guard_proto::control::RunEvent;
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;
use ulid::Ulid;

use super::ends::withdrawn_words;
use super::together::Fate;
use super::{Action, Basis, Engine, Released, Stage, millis, records};
use crate::enforce::{Known, Pass};
use crate::enrich::Enriched;
use crate::evidence::Slot;
use crate::kernel::api::{Asked, Enforced, Outcome, WithdrawnWhy};
use crate::kernel::crash;
use guard_policy::Facts;

impl Engine {
    pub(super) fn deny_by_policy(
        &mut self,
        mut action: Action,
        workload: WorkloadFacts,
        enriched: Option<Enriched>,
        mut rules: Vec<MatchedRule>,
        because: String,
    ) {
        let slot = self.parts.evidence.reserve();
        if slot.is_none() {
            self.parts.evidence.count_unrecorded();
        }
        let what = enriched
            .as_ref()
            .map_or_else(|| action.what_by_key(&self.parts.enricher), records::what);
        let event = RunEvent::Denied {
            request: None,
            what: what.clone(),
            by: Vec::new(),
            after_ms: millis(action.since),
            reason: match rules.first() {
                Some(rule) => format!("{because} ({})", rule.id),
                None => because.clone(),
            },
        };
        // Told first, so that whoever watches reads the reason before the error.
        self.parts.watchers.publish(&action.cgroup, &event);
        self.enforcer.deny(action.asked.id);
        tracing::info!(label = action.label, what, because, "denied by policy");
        rules.push(MatchedRule {
            id: "builtin:denied".to_owned(),
            description: because,
        });
        let basis = self.by_policy(&action, workload, enriched, rules);
        action.stage = Stage::Released(Box::new(Released {
            verdict: Verdict::Deny,
            slot,
            basis,
            what,
        }));
        self.put(action);
    }

    pub(super) fn by_policy(
        &self,
        action: &Action,
        workload: WorkloadFacts,
        enriched: Option<Enriched>,
        rules: Vec<MatchedRule>,
    ) -> Basis {
        let action = match enriched.map(|enriched| enriched.action) {
            Some(RecordedAction::Exec(exec)) => PolicyAction::Exec(exec),
            Some(RecordedAction::Connect(connect)) => PolicyAction::Connect(connect),
            Some(RecordedAction::File(file)) => PolicyAction::File(file),
            None => self.parts.enricher.key_action(&action.asked.what),
        };
        let policy_digest = self.parts.policy.digest.clone();
        Basis::Policy(Box::new(PolicyDecided {
            workload,
            action,
            rules,
            policy_digest,
        }))
    }

    /// What the kernel did with a verdict.
    pub(super) fn enforced(&mut self, enforced: &Enforced) {
        let Some(action) = self.take(enforced.id) else { return };
        let Stage::Released(released) = action.stage else {
            return self.put(action);
        };
        let Released {
            verdict,
            slot,
            basis,
            what,
        } = *released;
        crash::point("outcome-known");
        self.count(&enforced.outcome);
        let outcome = self.parts.enricher.outcome(&enforced.outcome);
        let request = match &basis {
            Basis::Question { request, .. } => Some(*request),
            Basis::Policy(_) => None,
        };
        if let Outcome::Killed(mismatch) = &outcome {
            let detail = records::mismatch_words(mismatch);
            tracing::warn!(
                label = action.label,
                what,
                detail,
                "killed before its first instruction"
            );
            let request = request.map(|id| id.to_string()).unwrap_or_default();
            self.parts
                .watchers
                .publish(&action.cgroup, &RunEvent::Killed { request, detail });
        }
        if let Some(request) = request {
            self.link.send_lasting(records::outcome(request, &outcome));
        }
        if let Some(slot) = slot {
            let record = records::enforcement(
                &action.label,
                verdict,
                basis,
                records::effect(&outcome),
                enforced.resume_ns,
            );
            self.write_end(slot, record, request);
        }
        if let Some(request) = request {
            self.wake(enforced.id, Fate::of(request, verdict, &outcome));
        }
    }

    /// What became of a verdict; once it is on disk, a later agent has nothing to say of the question any more.
    fn write_end(&self, slot: Slot, record: Predicate, request: Option<Ulid>) {
        match request {
            Some(request) => {
                let open = self.parts.open.clone();
                self.parts
                    .evidence
                    .write_and(slot, record, move |_| open.remove(request));
            }
            None => self.parts.evidence.write(slot, record),
        }
    }

    /// From now on the kernel side gives this answer by itself, or the kernel does.
    pub(super) fn remember(&self, action: &Action, rules: &[MatchedRule], facts: &Facts) {
        // What is not a function of the kernel's key may be another answer the next time.
        if action.cgroup.is_empty() || self.parts.policy.reads_user() {
            return;
        }
        let known = Known {
            label: action.label.clone(),
            cgroup: action.cgroup.clone(),
            rules: rules.to_vec(),
            policy_digest: self.parts.policy.digest.clone(),
            exact: self.parts.policy.is_exact(facts),
        };
        self.make_rule(&action.asked, &known);
        self.parts.remembered.learn(&action.asked, known);
    }

    /// The kernel gives this answer of the policy in force by itself, if it may.
    fn make_rule(&self, asked: &Asked, known: &Known) {
        if let Some(exact) = &self.parts.exact
            && known.exact
            && known.policy_digest == self.parts.policy.digest
        {
            exact.learn(asked, self.parts.enricher.key_action(&asked.what), known);
        }
    }

    /// The kernel side gave a remembered answer; here it is recorded.
    pub(super) fn passed(&mut self, asked: &Asked, pass: Pass, end: &Result<Enforced, WithdrawnWhy>) {
        let Pass { slot, known } = pass;
        // The rule went, or names an earlier state of the file.
        self.make_rule(asked, &known);
        let (workload, _) = self.parts.enricher.of_key(asked, &known.label, &known.cgroup);
        let basis = Basis::Policy(Box::new(PolicyDecided {
            workload,
            action: self.parts.enricher.key_action(&asked.what),
            rules: known.rules.clone(),
            policy_digest: known.policy_digest.clone(),
        }));
        let (effect, resume_ns) = match end {
            Ok(enforced) => {
                self.count(&enforced.outcome);
                let outcome = self.parts.enricher.outcome(&enforced.outcome);
                (records::effect(&outcome), enforced.resume_ns)
            }
            Err(why) => (records::unused(*why), 0),
        };
        let record = records::enforcement(&known.label, Verdict::Allow, basis, effect, resume_ns);
        self.parts.evidence.write(slot, record);
    }

    fn count(&self, outcome: &Outcome) {
        let counter = match outcome {
            Outcome::Ran | Outcome::Failed(_) => &self.parts.stats.allowed,
            Outcome::Denied | Outcome::Killed(_) | Outcome::Died => &self.parts.stats.denied,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// The agent stops: verdicts of which nothing was heard yet are recorded.
    pub(super) fn close(&mut self) {
        for (_, action) in std::mem::take(&mut self.actions) {
            if let Stage::Released(released) = action.stage {
                self.unused(&action.label, *released, WithdrawnWhy::Stopped);
            }
        }
    }

    /// A verdict that came too late: the kernel side reports nothing else of the action.
    pub(super) fn unused(&mut self, label: &str, released: Released, why: WithdrawnWhy) {
        let Released {
            verdict, slot, basis, ..
        } = released;
        let request = match &basis {
            Basis::Question { request, .. } => Some(*request),
            Basis::Policy(_) => None,
        };
        if let Some(request) = request {
            let what = match why {
                WithdrawnWhy::Died => v1::outcome::What::Died,
                WithdrawnWhy::Changed | WithdrawnWhy::Stopped => v1::outcome::What::Failed,
            };
            self.link.send_lasting(Kind::Outcome(v1::Outcome {
                request_id: request.to_string(),
                what: what.into(),
                detail: withdrawn_words(why).to_owned(),
                at_ms: crate::clock::unix_ms(),
            }));
        }
        if let Some(slot) = slot {
            let record = records::enforcement(label, verdict, basis, records::unused(why), 0);
            self.write_end(slot, record, request);
        }
    }
}
