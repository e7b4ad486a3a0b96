//! Questions that end without an answer: the thread is gone, the policy changed, the agent was restarted.
//!
//! Owns withdrawing. It is given what ended the question. It must never leave a question open that nobody waits for, or
//! a thread waiting that nobody is asked about.

use std::sync::Arc;

use guard_evidence::record::{Effect, Lifecycle};
use guard_proto::control::RunEvent;
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;
use ulid::Ulid;

use super::question::Question;
use super::together::Fate;
use super::{Basis, Engine, Stage, records};
use crate::approval::open::OpenQuestion;
use crate::kernel::api::{ActionId, WithdrawnWhy};
use guard_policy::{Answer, Policy};

impl Engine {
    /// The thread waits no more.
    pub(super) fn withdrawn(&mut self, id: ActionId, why: WithdrawnWhy) {
        let Some(mut action) = self.take(id) else { return };
        match action.stage {
            // Nothing was recorded or shown yet.
            Stage::Holding | Stage::Enriching { .. } | Stage::Behind(_) => return,
            Stage::Recording(question) => {
                action.stage = Stage::Withdrawing(question, why);
                self.put(action);
            }
            Stage::Asking(question) | Stage::Deciding(question, _) => {
                let told = match why {
                    WithdrawnWhy::Died => v1::withdraw::Why::Died,
                    WithdrawnWhy::Changed => v1::withdraw::Why::Changed,
                    WithdrawnWhy::Stopped => v1::withdraw::Why::HostRestarted,
                };
                self.end_question(&action.label, &action.cgroup, &question, withdrawn_words(why), told);
            }
            Stage::Released(released) => self.unused(&action.label, *released, why),
            stage @ Stage::Withdrawing(..) => {
                action.stage = stage;
                self.put(action);
            }
        }
        self.wake(id, Fate::Again);
    }

    fn end_question(&mut self, label: &str, cgroup: &str, question: &Question, words: &str, told: v1::withdraw::Why) {
        tracing::info!(request = %question.id, label, what = question.what, why = words, "withdrawn");
        self.record_withdrawn(label, question, words);
        self.link.send_lasting(withdraw(question.id, told));
        self.parts.watchers.publish(
            cgroup,
            &RunEvent::Withdrawn {
                request: question.id.to_string(),
            },
        );
        self.parts.open.remove(question.id);
        self.requests.remove(&question.id);
    }

    pub(super) fn record_withdrawn(&self, label: &str, question: &Question, words: &str) {
        let effect = Effect::Withdrawn { why: words.to_owned() };
        let record = records::ended(label, &question.id.to_string(), &question.digest, effect);
        self.parts.evidence.write(self.parts.evidence.reserve_always(), record);
    }

    /// A question of an agent before this one: its thread is asked about anew, if it still waits.
    pub(super) fn end_left(&mut self, question: &OpenQuestion) {
        let (id, digest) = (&question.request_id, &question.request_digest);
        let why = match question.decided {
            Some(_) => LEFT_DECIDED,
            None => "the agent was restarted",
        };
        let effect = Effect::Withdrawn { why: why.to_owned() };
        let record = match (&question.decided, Ulid::from_string(id)) {
            (Some(decision), Ok(request)) => {
                let basis = Basis::Question {
                    request,
                    request_digest: digest.clone(),
                    decision_digest: decision.digest.clone(),
                };
                records::enforcement(&question.label, decision.verdict, basis, effect.clone(), 0)
            }
            _ => records::ended(&question.label, id, digest, effect.clone()),
        };
        self.parts.evidence.write(self.parts.evidence.reserve_always(), record);
        self.tell_left(question, &effect);
    }

    /// The console may not have heard what became of it; what it heard before stays.
    pub(super) fn tell_left(&mut self, question: &OpenQuestion, effect: &Effect) {
        let Ok(request) = Ulid::from_string(&question.request_id) else {
            return;
        };
        if question.decided.is_none() {
            return self
                .link
                .send_lasting(withdraw(request, v1::withdraw::Why::HostRestarted));
        }
        self.link.send_lasting(Kind::DecisionReceived(v1::DecisionReceived {
            request_id: question.request_id.clone(),
            accepted: true,
            refused_because: String::new(),
        }));
        self.link.send_lasting(records::outcome_of(request, effect));
    }

    /// Another policy is in force: what waits is judged by it.
    pub(super) fn policy_loaded(&mut self, policy: Arc<Policy>) {
        if policy.digest == self.parts.policy.digest {
            return;
        }
        tracing::info!(digest = policy.digest, policies = policy.count, "policy in force");
        self.parts.evidence.lifecycle(Lifecycle::PolicyLoaded {
            digest: policy.digest.clone(),
            policies: policy.count,
        });
        self.parts.remembered.forget_all();
        if let Some(exact) = &self.parts.exact {
            exact.begin();
        }
        self.parts.policy = policy;
        let asking: Vec<ActionId> = self
            .actions
            .iter()
            .filter(|(_, action)| matches!(action.stage, Stage::Asking(_)))
            .map(|(id, _)| *id)
            .collect();
        for id in asking {
            self.judge_again(id);
        }
    }

    pub(super) fn judge_again(&mut self, id: ActionId) {
        let Some(mut action) = self.take(id) else { return };
        let question = match action.stage {
            Stage::Asking(question) => question,
            stage => {
                action.stage = stage;
                return self.put(action);
            }
        };
        if let Answer::Ask(ask) = self.parts.policy.evaluate(&question.enriched.facts)
            && (&ask.groups, ask.quorum, ask.timeout)
                == (&question.ask.groups, question.ask.quorum, question.ask.timeout)
        {
            action.stage = Stage::Asking(question);
            return self.put(action);
        }
        let words = "the policy changed";
        self.end_question(
            &action.label,
            &action.cgroup,
            &question,
            words,
            v1::withdraw::Why::PolicyChanged,
        );
        let (enriched, how) = (question.enriched.clone(), question.how.clone());
        action.stage = Stage::Enriching { how: how.clone() };
        self.judge(action, enriched, how);
        self.wake(id, Fate::Again);
    }
}

/// Of an answer whose effect the agent before this one did not write down.
const LEFT_DECIDED: &str = "the agent was restarted before it learned what became of the answer";

pub(super) fn withdrawn_words(why: WithdrawnWhy) -> &'static str {
    match why {
        WithdrawnWhy::Died => "the thread died while it waited",
        WithdrawnWhy::Changed => "the thread no longer asks for it",
        WithdrawnWhy::Stopped => "the agent stopped before it learned what became of it",
    }
}

pub(super) fn withdraw(request: Ulid, why: v1::withdraw::Why) -> Kind {
    Kind::Withdraw(v1::Withdraw {
        request_id: request.to_string(),
        why: why.into(),
    })
}
