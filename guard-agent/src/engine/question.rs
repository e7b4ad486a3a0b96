//! A question to people, from its record to its answer.
//!
//! Owns the stages Recording, Asking and Deciding. It is given the policy's requirements and the console's answers. It
//! must never release a thread before the record of the answer is durable, and never on an answer that a `forbid` of
//! this host contradicts.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guard_evidence::chain::Sealed;
use guard_evidence::record::{DecidedBy, HowHeld, Lifecycle, SignedDecision, Verdict};
use guard_evidence::statement;
use guard_evidence::text::{visible, visible_fold};
use guard_proto::control::RunEvent;
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;
use jiff::Timestamp;
use rand::RngCore as _;
use tokio::task::AbortHandle;
use ulid::Ulid;

use super::ends::{withdraw, withdrawn_words};
use super::link::FromConsole;
use super::records::{self, Decided};
use super::{Action, Basis, Engine, Event, Released, Stage, millis};
use crate::approval::decision::{self, Expected, Refused};
use crate::approval::open::{OpenDecision, OpenQuestion};
use crate::enforce::Bound;
use crate::enrich::Enriched;
use crate::kernel::api::ActionId;
use crate::kernel::crash;
use guard_policy::{Answer, Ask, Policy};

/// What people are asked, and everything that their answer has to match.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) id: Ulid,
    pub(super) how: HowHeld,
    pub(super) what: String,
    pub(super) enriched: Enriched,
    pub(super) ask: Ask,
    pub(super) bound: Bound,
    pub(super) nonce: [u8; 32],
    pub(super) policy_digest: String,
    /// Unix milliseconds; 0: never.
    pub(super) expires_at_ms: i64,
    deadline: Option<Instant>,
    /// Exact bytes and digest, once recorded.
    envelope: Vec<u8>,
    pub(super) digest: String,
    timer: Option<AbortHandle>,
}

impl Drop for Question {
    fn drop(&mut self) {
        if let Some(timer) = &self.timer {
            timer.abort();
        }
    }
}

impl Engine {
    /// Writes the question down; people see it only afterwards.
    pub(super) fn ask(&mut self, mut action: Action, enriched: Enriched, how: HowHeld, ask: Ask, bound: Bound) {
        let mut nonce = [0; 32];
        rand::rngs::OsRng.fill_bytes(&mut nonce);
        let expires = ask.timeout.map(|timeout| (Instant::now() + timeout, expiry(timeout)));
        let question = Question {
            id: Ulid::new(),
            how,
            what: records::what(&enriched),
            enriched,
            ask,
            bound,
            nonce,
            policy_digest: self.parts.policy.digest.clone(),
            expires_at_ms: expires.map_or(0, |(_, at)| at.as_millisecond()),
            deadline: expires.map(|(deadline, _)| deadline),
            envelope: Vec::new(),
            digest: String::new(),
            timer: None,
        };
        let record = records::request(&self.parts.host, &question);
        let (id, request, events) = (action.asked.id, question.id, self.events.clone());
        self.requests.insert(request, id);
        self.parts
            .evidence
            .write_then(self.parts.evidence.reserve_always(), record, move |sealed| {
                let _ = events.send(Event::RequestRecorded {
                    id,
                    request,
                    sealed: Box::new(sealed),
                });
            });
        action.stage = Stage::Recording(Box::new(question));
        self.put(action);
    }

    pub(super) fn request_recorded(&mut self, id: ActionId, request: Ulid, sealed: &Sealed) {
        let Some(mut action) = self.take(id) else { return };
        let mut question = match action.stage {
            Stage::Recording(question) if question.id == request => question,
            Stage::Withdrawing(mut question, why) if question.id == request => {
                question.digest.clone_from(&sealed.payload_digest);
                self.requests.remove(&request);
                return self.record_withdrawn(&action.label, &question, withdrawn_words(why));
            }
            stage => {
                action.stage = stage;
                return self.put(action);
            }
        };
        question.envelope.clone_from(&sealed.envelope);
        question.digest.clone_from(&sealed.payload_digest);
        if let Some(deadline) = question.deadline {
            let events = self.events.clone();
            let timer = tokio::spawn(async move {
                tokio::time::sleep_until(deadline.into()).await;
                let _ = events.send(Event::TimedOut { id, request });
            });
            question.timer = Some(timer.abort_handle());
        }
        self.parts.open.add(
            request,
            &OpenQuestion {
                request_id: request.to_string(),
                request_digest: question.digest.clone(),
                label: action.label.clone(),
                decided: None,
            },
        );
        self.parts.stats.asked.fetch_add(1, Ordering::Relaxed);
        tracing::info!(%request, label = action.label, what = question.what, "asked");
        crash::point("request-not-sent");
        self.link.send(Kind::Ask(ask_message(&question)));
        let sent = Instant::now();
        crash::point_when("request-sent", || sent.elapsed() > Duration::from_millis(500));
        let event = RunEvent::Held {
            action: statement::action_word(&question.enriched.action).to_owned(),
            what: question.what.clone(),
            groups: question.ask.groups.clone(),
            request: request.to_string(),
        };
        self.parts.watchers.publish(&action.cgroup, &event);
        let stale = question.policy_digest != self.parts.policy.digest;
        action.stage = Stage::Asking(question);
        self.put(action);
        if stale {
            self.judge_again(id);
        }
    }

    pub(super) fn console(&mut self, message: FromConsole) {
        match message {
            FromConsole::Connected { stream, send } => {
                let hello = Kind::Hello(v1::Hello {
                    agent_version: self.parts.host.agent_version.clone(),
                    protocol_version: 1,
                    kernel_release: self.parts.host.kernel.clone(),
                    boot_id: self.parts.boot_id.clone(),
                    policy_digest: self.parts.policy.digest.clone(),
                    labels: self.parts.labels.names_in_use(),
                    enforcing: true,
                    enforcing_since_ms: self.parts.enforcing_since_ms,
                });
                self.link.connected(stream, send, hello);
                let mut asks: Vec<&Question> = self
                    .actions
                    .values()
                    .filter_map(|action| match &action.stage {
                        Stage::Asking(question) => Some(question.as_ref()),
                        _ => None,
                    })
                    .collect();
                asks.sort_by_key(|question| question.id);
                for question in asks {
                    self.link.send(Kind::Ask(ask_message(question)));
                }
            }
            FromConsole::Disconnected { stream } => self.link.disconnected(stream),
            FromConsole::AskReceived(received) => self.ask_received(&received),
            FromConsole::Decision(decision) => self.decision(&decision),
            FromConsole::DecisionKey(key) => {
                if let Some((known, _)) = &mut self.parts.console {
                    *known = key;
                }
            }
        }
    }

    fn ask_received(&mut self, received: &v1::AskReceived) {
        if received.accepted {
            return;
        }
        let Some(id) = self.find(&received.request_id) else {
            return;
        };
        let Some(action) = self.take(id) else { return };
        let because = format!(
            "the console refused the question: {}",
            visible_fold(&received.refused_because, 500)
        );
        tracing::error!(request = received.request_id, because, "denied");
        self.decide_by_host(action, Decided::Host(because));
    }

    fn find(&self, request_id: &str) -> Option<ActionId> {
        self.requests.get(&Ulid::from_string(request_id).ok()?).copied()
    }

    fn decision(&mut self, message: &v1::Decision) {
        if self.link.answered_again(&message.request_id) {
            return;
        }
        let refused = match self.find(&message.request_id).and_then(|id| self.take(id)) {
            None => Refused::Unknown,
            Some(mut action) => match action.take_stage() {
                Stage::Asking(question) => match self.check(&question, &message.envelope) {
                    Ok(decision) => return self.decided(action, question, decision, message.envelope.clone()),
                    Err(refused @ Refused::Forbidden(_)) => {
                        let because = refused.to_string();
                        action.stage = Stage::Asking(question);
                        self.decide_by_host(action, Decided::Host(because));
                        refused
                    }
                    Err(refused) => {
                        action.stage = Stage::Asking(question);
                        self.put(action);
                        refused
                    }
                },
                // On its way to the disk already, or not asked yet.
                stage => {
                    action.stage = stage;
                    return self.put(action);
                }
            },
        };
        let because = refused.to_string();
        let request_id = visible_fold(&message.request_id, 64);
        tracing::warn!(request = request_id, because, "a decision was not accepted");
        self.parts.evidence.lifecycle(Lifecycle::DecisionRefused {
            request_id,
            because: because.clone(),
        });
        self.link.send_lasting(Kind::DecisionReceived(v1::DecisionReceived {
            request_id: message.request_id.clone(),
            accepted: false,
            refused_because: because,
        }));
    }

    fn check(&self, question: &Question, envelope: &[u8]) -> Result<SignedDecision, Refused> {
        let (key, origin) = self.parts.console.as_ref().ok_or(Refused::Unknown)?;
        let (request_id, nonce) = (question.id.to_string(), hex::encode(question.nonce));
        let expected = Expected {
            console: origin,
            host_id: &self.parts.host.id,
            request_id: &request_id,
            request_digest: &question.digest,
            nonce: &nonce,
            groups: &question.ask.groups,
            quorum: question.ask.quorum,
            record: &question.envelope,
        };
        let decision = decision::check(envelope, key, &expected, Timestamp::now())?;
        if decision.verdict == Verdict::Allow
            && let Some(because) = forbidden(&self.parts.policy, &question.enriched)
        {
            return Err(Refused::Forbidden(because));
        }
        Ok(decision)
    }

    fn decided(&mut self, action: Action, question: Box<Question>, decision: SignedDecision, envelope: Vec<u8>) {
        crash::point("decision-received");
        use base64::Engine as _;
        let by = DecidedBy::People {
            envelope: base64::engine::general_purpose::STANDARD.encode(envelope),
        };
        self.record_decision(
            action,
            question,
            decision.verdict,
            by,
            Decided::People(Box::new(decision)),
        );
    }

    pub(super) fn timed_out(&mut self, id: ActionId, request: Ulid) {
        let Some(action) = self.take(id) else { return };
        match &action.stage {
            Stage::Asking(question) if question.id == request => self.decide_by_host(action, Decided::Timeout),
            _ => self.put(action),
        }
    }

    /// A denial that is not people's.
    fn decide_by_host(&mut self, mut action: Action, decided: Decided) {
        match action.take_stage() {
            Stage::Asking(question) => {
                let by = match &decided {
                    Decided::Host(because) => DecidedBy::Host {
                        because: because.clone(),
                    },
                    _ => DecidedBy::Timeout,
                };
                self.record_decision(action, question, Verdict::Deny, by, decided);
            }
            stage => {
                action.stage = stage;
                self.put(action);
            }
        }
    }

    fn record_decision(
        &mut self,
        mut action: Action,
        question: Box<Question>,
        verdict: Verdict,
        by: DecidedBy,
        decided: Decided,
    ) {
        let record = records::decision(&question, &question.digest, verdict, by);
        let (id, request, events) = (action.asked.id, question.id, self.events.clone());
        self.parts
            .evidence
            .write_then(self.parts.evidence.reserve_always(), record, move |sealed| {
                let _ = events.send(Event::DecisionRecorded {
                    id,
                    request,
                    sealed: Box::new(sealed),
                });
            });
        action.stage = Stage::Deciding(question, decided);
        self.put(action);
    }

    /// The answer is on disk: the verdict may go out.
    pub(super) fn decision_recorded(&mut self, id: ActionId, request: Ulid, sealed: &Sealed) {
        let Some(mut action) = self.take(id) else { return };
        let (question, decided) = match action.stage {
            Stage::Deciding(question, decided) if question.id == request => (question, decided),
            stage => {
                action.stage = stage;
                return self.put(action);
            }
        };
        crash::point("decision-known");
        let people = match &decided {
            Decided::People(decision) => Some(decision),
            Decided::Timeout | Decided::Host(_) => None,
        };
        let approved = people.is_some_and(|decision| decision.verdict == Verdict::Allow);
        // The policy may have changed while the answer was on its way to the disk.
        let forbidden = approved
            .then(|| forbidden(&self.parts.policy, &question.enriched))
            .flatten();
        let request_id = request.to_string();
        if let Some(because) = &forbidden {
            tracing::warn!(%request, because, "approved, but forbidden by the policy that is in force now: denied");
        }
        match &decided {
            Decided::People(_) => self.link.send_lasting(Kind::DecisionReceived(v1::DecisionReceived {
                request_id: request_id.clone(),
                accepted: forbidden.is_none(),
                refused_because: forbidden
                    .clone()
                    .map(|because| Refused::Forbidden(because).to_string())
                    .unwrap_or_default(),
            })),
            Decided::Timeout => self.link.send_lasting(withdraw(request, v1::withdraw::Why::TimedOut)),
            Decided::Host(_) => self
                .link
                .send_lasting(withdraw(request, v1::withdraw::Why::PolicyChanged)),
        }
        let after_ms = millis(action.since);
        let allowed = approved && forbidden.is_none();
        let denied = |by: Vec<String>, reason: String| RunEvent::Denied {
            request: Some(request_id.clone()),
            what: question.what.clone(),
            by,
            after_ms,
            reason,
        };
        let event = match (&decided, forbidden) {
            (Decided::People(_), Some(because)) => denied(Vec::new(), format!("forbidden by policy: {because}")),
            (Decided::People(decision), None) => {
                let by: Vec<String> = decision
                    .answers
                    .iter()
                    .filter(|answer| answer.verdict == decision.verdict)
                    .map(|answer| visible(&answer.name))
                    .collect();
                let reason = decision
                    .answers
                    .iter()
                    .map(|a| a.reason.trim())
                    .rfind(|r| !r.is_empty());
                let reason = reason.map(visible).unwrap_or_default();
                match decision.verdict {
                    Verdict::Allow => RunEvent::Approved {
                        request: request_id.clone(),
                        by,
                        after_ms,
                        reason,
                    },
                    Verdict::Deny => denied(by, reason),
                }
            }
            (Decided::Timeout, _) => RunEvent::TimedOut {
                request: request_id.clone(),
                after_ms,
            },
            (Decided::Host(because), _) => denied(Vec::new(), because.clone()),
        };
        let verdict = if allowed { Verdict::Allow } else { Verdict::Deny };
        self.parts.open.add(
            request,
            &OpenQuestion {
                request_id,
                request_digest: question.digest.clone(),
                label: action.label.clone(),
                decided: Some(OpenDecision {
                    digest: sealed.payload_digest.clone(),
                    verdict,
                }),
            },
        );
        // Told first, so that whoever watches reads the answer before its effect.
        self.parts.watchers.publish(&action.cgroup, &event);
        match verdict {
            Verdict::Allow => self.enforcer.allow_by_people(id, question.bound.clone(), sealed),
            Verdict::Deny => self.enforcer.deny(id),
        }
        crash::point("verdict-sent");
        tracing::info!(%request, label = action.label, what = question.what, ?verdict, after_ms, "answered");
        self.requests.remove(&request);
        let basis = Basis::Question {
            request,
            request_digest: question.digest.clone(),
            decision_digest: sealed.payload_digest.clone(),
        };
        action.stage = Stage::Released(Box::new(Released {
            verdict,
            slot: Some(self.parts.evidence.reserve_always()),
            basis,
            what: question.what.clone(),
        }));
        self.put(action);
    }
}

/// Why the policy in force forbids it whatever people say.
pub(super) fn forbidden(policy: &Policy, enriched: &Enriched) -> Option<String> {
    match policy.evaluate(&enriched.facts) {
        Answer::Deny { rules, because } => Some(
            rules
                .first()
                .map_or(because.clone(), |rule| format!("{because} ({})", rule.id)),
        ),
        Answer::Allow { .. } | Answer::Ask(_) => None,
        Answer::Hold => Some("the policy did not answer".to_owned()),
    }
}

fn expiry(timeout: Duration) -> Timestamp {
    Timestamp::now().checked_add(timeout).unwrap_or(Timestamp::MAX)
}

fn ask_message(question: &Question) -> v1::Ask {
    v1::Ask {
        request_id: question.id.to_string(),
        record: question.envelope.clone(),
        approver_groups: question.ask.groups.clone(),
        quorum: question.ask.quorum,
        expires_at_ms: question.expires_at_ms,
        nonce: question.nonce.to_vec(),
    }
}
