//! Threads that ask for the same connection of the same socket: people are asked once.
//!
//! Owns the stage Behind. It is given how the first question ended. It must never let a thread go on but where the kernel
//! remembers of the socket what people allowed, and never leave one behind a question that is over.

use guard_evidence::record::{MatchedRule, Verdict};
use ulid::Ulid;

use super::question::forbidden;
use super::{Action, Basis, Behind, Engine, Released, Stage, records};
use crate::enforce::Bound;
use crate::kernel::api::{ActionId, Outcome};

/// How a question about a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The socket may reach its peer now.
    Allowed(Ulid),
    Denied(Ulid),
    /// Without an answer, or without effect: the next thread asks.
    Again,
}

impl Fate {
    /// Of a question that was answered.
    pub(super) fn of(request: Ulid, verdict: Verdict, outcome: &Outcome) -> Self {
        match (verdict, outcome) {
            (Verdict::Allow, Outcome::Ran) => Self::Allowed(request),
            (Verdict::Deny, Outcome::Denied) => Self::Denied(request),
            _ => Self::Again,
        }
    }
}

impl Engine {
    /// The question of another thread that this one can wait for.
    pub(super) fn asked_before(&self, action: &Action) -> Option<ActionId> {
        action.asked.connection?;
        let same = |other: &Action| {
            let asks = match &other.stage {
                Stage::Recording(_) | Stage::Asking(_) | Stage::Deciding(..) => true,
                Stage::Released(released) => matches!(released.basis, Basis::Question { .. }),
                _ => false,
            };
            asks && other.asked.connection == action.asked.connection && other.asked.label == action.asked.label
        };
        self.actions.iter().find(|(_, other)| same(other)).map(|(id, _)| *id)
    }

    /// The first question is over: who waits behind it goes the same way.
    pub(super) fn wake(&mut self, first: ActionId, fate: Fate) {
        let behind: Vec<ActionId> = self
            .actions
            .iter()
            .filter(|(_, action)| matches!(&action.stage, Stage::Behind(behind) if behind.first == first))
            .map(|(id, _)| *id)
            .collect();
        for id in behind {
            let Some(mut action) = self.take(id) else { continue };
            match action.take_stage() {
                Stage::Behind(behind) => self.goes_on(action, *behind, fate),
                stage => {
                    action.stage = stage;
                    self.put(action);
                }
            }
        }
    }

    fn goes_on(&mut self, mut action: Action, behind: Behind, fate: Fate) {
        let Behind { enriched, how, .. } = behind;
        let workload = enriched.workload.clone();
        match fate {
            Fate::Again => self.judge(action, enriched, how),
            Fate::Denied(request) => {
                let because = format!("denied for the same connection by request {request}");
                self.deny_by_policy(action, workload, Some(enriched), Vec::new(), because);
            }
            Fate::Allowed(request) => {
                if let Some(because) = forbidden(&self.parts.policy, &enriched) {
                    return self.deny_by_policy(action, workload, Some(enriched), Vec::new(), because);
                }
                let Some(slot) = self.parts.evidence.reserve() else {
                    return self.deny_by_policy(
                        action,
                        workload,
                        Some(enriched),
                        Vec::new(),
                        super::NO_PLACE.to_owned(),
                    );
                };
                self.enforcer.allow_by_policy(action.asked.id, Bound::Key, &slot);
                let rules = vec![MatchedRule {
                    id: "builtin:same-connection".to_owned(),
                    description: format!("this socket was allowed to reach this peer by request {request}"),
                }];
                let what = records::what(&enriched);
                let basis = self.by_policy(&action, workload, Some(enriched), rules);
                action.stage = Stage::Released(Box::new(Released {
                    verdict: Verdict::Allow,
                    slot: Some(slot),
                    basis,
                    what,
                }));
                self.put(action);
            }
        }
    }
}
