//! The next records of the log, as events.

use guard_evidence::dsse;
use guard_evidence::ocsf::{self, Place, Related};
use guard_evidence::record::{Predicate, Statement};
use guard_evidence::statement::sha256_hex;
use serde_json::Value;

use crate::store::{ForSiem, Result, Store};

/// Records read at once.
const RECORDS: u64 = 200;
/// Events handed over at once, in bytes; one record may have more.
const BYTES: usize = 1 << 20;

/// One record's events.
#[derive(Debug)]
pub(super) struct Told {
    /// Index of the record.
    pub(super) position: u64,
    pub(super) events: Vec<Value>,
}

impl Told {
    /// One event a line.
    pub(super) fn lines(&self) -> Vec<u8> {
        self.events
            .iter()
            .flat_map(|event| format!("{event}\n").into_bytes())
            .collect()
    }
}

#[derive(Debug)]
pub(super) struct Feed {
    store: Store,
    /// Name of the log.
    log: String,
}

impl Feed {
    pub(super) fn new(store: Store, log: String) -> Self {
        Self { store, log }
    }

    pub(super) fn store(&self) -> &Store {
        &self.store
    }

    /// From a position on, in order, without a gap; nothing at the end of the log.
    pub(super) async fn next(&self, position: u64) -> Result<Vec<Told>> {
        let mut all = Vec::new();
        let mut bytes = 0;
        for record in self.store.for_siem(position, RECORDS).await? {
            let told = self.told(&record).await?;
            bytes += told.events.iter().map(|event| event.to_string().len()).sum::<usize>();
            if bytes > BYTES && !all.is_empty() {
                break;
            }
            all.push(told);
        }
        Ok(all)
    }

    async fn told(&self, record: &ForSiem) -> Result<Told> {
        let mut told = Told {
            position: record.position,
            events: Vec::new(),
        };
        // The signature was checked when it was taken in.
        let Some(statement) = statement(&record.envelope) else {
            tracing::error!(
                index = record.position,
                digest = sha256_hex(&record.envelope),
                "a record of the log cannot be read"
            );
            return Ok(told);
        };
        let (mut request, mut decision) = (None, None);
        if let Some(id) = statement.request_id() {
            for envelope in self.store.asked_before(&record.signer, id, record.position).await? {
                match self::statement(&envelope).map(|statement| statement.predicate) {
                    Some(Predicate::Request(one)) => request = Some(one),
                    Some(Predicate::Decision(one)) => decision = Some(one),
                    _ => {}
                }
            }
        }
        let place = Place {
            log: &self.log,
            index: record.position,
            digest: &record.digest,
            host: record.host_name.as_deref(),
            doubts: &[],
        };
        let related = Related {
            request: request.as_deref(),
            decision: decision.as_deref(),
        };
        told.events = ocsf::events(&place, &statement, related);
        Ok(told)
    }
}

fn statement(envelope: &[u8]) -> Option<Statement> {
    let parsed = dsse::parse(envelope).ok()?;
    Statement::from_payload(parsed.unverified_payload()).ok()
}
