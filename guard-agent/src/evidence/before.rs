//! What the agent before this one wrote last.
//!
//! Owns reading the end of the spool at start. It is given our key. It must never believe a record that we did not sign,
//! and never read the whole spool, which may be large. What an earlier key signed is believed because later records, of the
//! key that there is, name its digest.

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
        let frames = spool.reader(from).read(through, usize::MAX, usize::MAX)?;
        for payload in ours(frames.into_iter().map(|(_, envelope)| envelope), key) {
            before.add(&payload);
        }
    }
    Ok(before)
}

/// Payloads of what we signed, from the back: each record vouches for the one before it.
fn ours(frames: impl DoubleEndedIterator<Item = Vec<u8>>, key: &PublicKey) -> Vec<Vec<u8>> {
    let mut payloads = Vec::new();
    let mut named: Option<String> = None;
    for envelope in frames.rev() {
        let Ok(unverified) = dsse::parse(&envelope) else { break };
        let payload = if named.is_some_and(|digest| digest == sha256_hex(&envelope)) {
            unverified.unverified_payload().to_vec()
        } else {
            match unverified.verify(key) {
                Ok(verified) => verified.payload,
                Err(_) => break,
            }
        };
        named = Statement::from_payload(&payload)
            .ok()
            .and_then(|statement| before_it(&statement));
        payloads.push(payload);
    }
    payloads.reverse();
    payloads
}

/// Digest of the record before this one, also that of the epoch before.
fn before_it(statement: &Statement) -> Option<String> {
    if let Predicate::Lifecycle(record) = &statement.predicate
        && let Lifecycle::Begun { after, .. } = &record.event
    {
        return after.as_ref().map(|end| end.digest.clone());
    }
    statement.header().map(|header| header.previous.clone())
}

impl Before {
    fn add(&mut self, payload: &[u8]) {
        let digest = sha256_hex(payload);
        match Statement::from_payload(payload).map(|statement| statement.predicate) {
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
