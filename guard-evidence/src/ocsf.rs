//! Records as events of the Open Cybersecurity Schema Framework, for other people's tools.
//!
//! Owns the mapping (docs/siem.md is its prose). It is given records whose signatures hold, and the records that they
//! follow on. It must never let a byte of a workload through but by [`crate::text`], nor say more than a record does.

mod action;
mod approval;
mod change;
mod event;
mod lifecycle;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::io::{self, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::dsse;
use crate::record::{
    DecidedBy, DecisionRecord, EnforcementRecord, Predicate, RequestRecord, SignedDecision, Statement,
};
use crate::trust::Trust;
use crate::verify::Examined;
use event::Event;

/// Version of the schema that the events are of.
pub const SCHEMA_VERSION: &str = "1.8.0";

/// Which record it is.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Name of the log.
    pub log: &'a str,
    /// Index in the log.
    pub index: u64,
    /// SHA-256 of the envelope, hex.
    pub digest: &'a str,
    /// Display name of the host that signed it.
    pub host: Option<&'a str>,
    /// What a verifier found to be wrong with it, safe to show; nothing when it holds, or when nobody looked.
    pub doubts: &'a [String],
}

/// What the record follows on. Absent: not there, which the events bear.
#[derive(Debug, Clone, Copy, Default)]
pub struct Related<'a> {
    pub request: Option<&'a RequestRecord>,
    pub decision: Option<&'a DecisionRecord>,
}

/// The events of one record, in order; at least one of every record of a chain. Each has a `metadata.uid` of its own that is
/// the same whenever the record is turned into events.
#[must_use]
pub fn events(place: &Place<'_>, statement: &Statement, related: Related<'_>) -> Vec<Value> {
    let events = match &statement.predicate {
        Predicate::Request(record) => vec![approval::asked(place, record)],
        Predicate::Decision(record) => approval::decided(place, record, related),
        Predicate::Enforcement(record) => vec![enforced(place, record, related)],
        Predicate::Lifecycle(record) => lifecycle::events(place, record),
        Predicate::Change(record) => change::events(place, record),
        // Not a record of a chain: it stands inside a decision.
        Predicate::SignedDecision(_) => Vec::new(),
    };
    (1..)
        .zip(events)
        .map(|(number, event): (u64, Event)| event.finish(place, number))
        .collect()
}

fn enforced(place: &Place<'_>, record: &EnforcementRecord, related: Related<'_>) -> Event {
    match (&record.by_policy, related.request) {
        (Some(decided), _) => action::by_policy(place, record, decided),
        (None, Some(request)) => action::after_asking(place, record, request, related.decision),
        (None, None) => approval::ended(place, record),
    }
}

/// What the console signed, out of a decision record. Whether it holds is for the verifier to say.
#[must_use]
pub fn signed_decision(decision: &DecisionRecord) -> Option<Box<SignedDecision>> {
    let DecidedBy::People { envelope } = &decision.by else {
        return None;
    };
    let bytes = STANDARD.decode(envelope).ok()?;
    let parsed = dsse::parse(&bytes).ok()?;
    match Statement::from_payload(parsed.unverified_payload()).ok()?.predicate {
        Predicate::SignedDecision(signed) => Some(signed),
        _ => None,
    }
}

/// Writes the events of every record that a verifier accepted, one a line, in log order. Gives their number.
///
/// # Errors
/// If `out` cannot be written.
pub fn write(examined: &Examined, trust: &Trust, out: &mut impl Write) -> io::Result<u64> {
    let mut requests: HashMap<(&str, &str), &RequestRecord> = HashMap::new();
    let mut decisions: HashMap<(&str, &str), &DecisionRecord> = HashMap::new();
    let mut written = 0;
    for record in &examined.records {
        let signer = record.header.signer.as_str();
        match &record.statement.predicate {
            Predicate::Request(request) => {
                requests.insert((signer, &request.request_id), request);
            }
            Predicate::Decision(decision) => {
                decisions.insert((signer, &decision.request_id), decision);
            }
            _ => {}
        }
        let id = record.statement.request_id().unwrap_or_default();
        let doubts = examined.doubts(record.index);
        let host = signer.strip_prefix("host:").and_then(|id| trust.host(id));
        let place = Place {
            log: &trust.console.origin,
            index: record.index,
            digest: &record.envelope_digest,
            host: host.map(|host| host.name.as_str()),
            doubts: &doubts,
        };
        let related = Related {
            request: requests.get(&(signer, id)).copied(),
            decision: decisions.get(&(signer, id)).copied(),
        };
        for event in events(&place, &record.statement, related) {
            serde_json::to_writer(&mut *out, &event)?;
            out.write_all(b"\n")?;
            written += 1;
        }
    }
    Ok(written)
}
