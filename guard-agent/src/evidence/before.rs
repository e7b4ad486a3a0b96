//! What the agent before this one wrote last.
//!
//! Owns reading the end of the spool at start. It is given our key. It must never believe a record that we did not sign,
//! and never read the whole spool, which may be large.

use std::collections::{BTreeMap, HashMap};

use guard_evidence::dsse;
use guard_evidence::key::PublicKey;
use guard_evidence::record::{Effect, Lifecycle, Predicate, Statement};
use guard_evidence::spool::{Spool, SpoolError};
use guard_evidence::statement::sha256_hex;

use crate::approval::open::{OpenDecision, OpenQuestion};

/// More than were ever written between a record and what the agent noted of it elsewhere.
const FRAMES: u64 = 1_024;

/// See the module.
#[derive(Debug, Default)]
pub struct Before {
    /// Questions without an end, by request.
    pub asked: BTreeMap<String, OpenQuestion>,
    /// What became of others, by request.
    pub ended: HashMap<String, Effect>,
    /// How far the uses of exact rules are in records, by counter.
    pub counted: HashMap<String, u64>,
}

/// Reads the last records.
pub(super) fn read(spool: &Spool, key: &PublicKey) -> Result<Before, SpoolError> {
    let mut before = Before::default();
    let through = spool.written();
    let from = through.saturating_sub(FRAMES - 1).max(spool.first());
    if from <= through {
        for (_, envelope) in spool.reader(from).read(through, usize::MAX, usize::MAX)? {
            before.add(&envelope, key);
        }
    }
    Ok(before)
}

impl Before {
    fn add(&mut self, envelope: &[u8], key: &PublicKey) {
        let Ok(verified) = dsse::parse(envelope).and_then(|unverified| unverified.verify(key)) else {
            return;
        };
        let digest = sha256_hex(&verified.payload);
        match Statement::from_payload(&verified.payload).map(|statement| statement.predicate) {
            Ok(Predicate::Request(record)) => {
                let question = OpenQuestion {
                    request_id: record.request_id.clone(),
                    request_digest: digest,
                    label: record.workload.label,
                    decided: None,
                };
                self.asked.insert(record.request_id, question);
            }
            Ok(Predicate::Decision(record)) => {
                if let Some(question) = self.asked.get_mut(&record.request_id) {
                    question.decided = Some(OpenDecision {
                        digest,
                        verdict: record.verdict,
                    });
                }
            }
            Ok(Predicate::Enforcement(record)) => {
                if let Some(request) = record.request_id {
                    self.asked.remove(&request);
                    self.ended.insert(request, record.effect);
                }
            }
            Ok(Predicate::Lifecycle(record)) => {
                if let Lifecycle::AllowedByRules { rules, .. } = record.event {
                    let counted = rules.into_iter().map(|uses| (uses.counter, uses.through));
                    self.counted.extend(counted);
                }
            }
            _ => {}
        }
    }
}
