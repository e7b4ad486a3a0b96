//! What waits now, for operators.
//!
//! Owns the list that `guard` shows. It is given the engine's table. It must never show a part of an action to somebody
//! whom the caller has not checked: every entry says whose it is.

use guard_proto::control::PendingAction;

use super::{Engine, Stage, millis};

/// An action that waits, and whose it is.
#[derive(Debug, Clone)]
pub struct Waiting {
    pub uid: u32,
    pub action: PendingAction,
}

impl Engine {
    pub(super) fn pending(&self) -> Vec<Waiting> {
        let by_key = |action: &super::Action| action.what_by_key(&self.parts.enricher);
        let mut waiting: Vec<Waiting> = self
            .actions
            .values()
            .filter(|action| action.stage.is_waiting())
            .map(|action| {
                let (request, what, how) = match &action.stage {
                    Stage::Recording(q) | Stage::Asking(q) | Stage::Deciding(q, _) => {
                        (q.id.to_string(), q.what.clone(), Some(&q.how))
                    }
                    Stage::Enriching { how } => (String::new(), by_key(action), Some(how)),
                    Stage::Behind(behind) => (String::new(), by_key(action), Some(&behind.how)),
                    _ => (String::new(), by_key(action), None),
                };
                Waiting {
                    uid: action.asked.uid,
                    action: PendingAction {
                        request,
                        label: action.label.clone(),
                        tid: action.asked.id.tid,
                        what,
                        waiting_ms: millis(action.since),
                        held: match how {
                            Some(how) if !how.thread_alone => "parked".to_owned(),
                            Some(_) => "traced".to_owned(),
                            None => "stopping".to_owned(),
                        },
                    },
                }
            })
            .collect();
        waiting.sort_by_key(|waiting| std::cmp::Reverse(waiting.action.waiting_ms));
        waiting
    }
}
