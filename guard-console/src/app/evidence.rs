//! Evidence: taking in hosts' records in unbroken order, and giving them out.
//!
//! Owns the checks on what may enter the log: the host's signature, its sequence and the digest of the record before. It
//! must never acknowledge a record that is not on disk, nor take a second one for a place that is filled.

use guard_evidence::bundle::Filter;
use guard_evidence::chain::FIRST_PREVIOUS;
use guard_evidence::dsse;
use guard_evidence::key::PublicKey;
use guard_evidence::merkle::leaf_hash;
use guard_evidence::record::Statement;
use guard_evidence::statement::{sha256_hex, summary};
use guard_evidence::trust::{ConsoleTrust, EvidenceKey, HostTrust, Trust};
use guard_proto::limits::BATCH_RECORDS;
use guard_proto::rest::{Page, RecordView};
use guard_proto::v1;
use ulid::Ulid;

use super::receipts::{Appended, Place};
use super::requests::MAX_PAGE;
use super::{Actor, App, Error, Permission, Result};
use crate::log::{Export, ExportStream};
use crate::store::{self, Head, HostRow, NewRecord, RecordFilter};
use crate::time::{parse_rfc3339, rfc3339};

/// Where a host's name stands, for the console's own records; no host can be called so.
const OWN: &str = "(console)";

/// A record whose signature holds and that is this host's.
#[derive(Debug)]
struct Checked {
    statement: Statement,
    digest: String,
}

/// What is wrong with a record: a kind for the alarm, and words.
#[derive(Debug)]
struct Wrong {
    kind: &'static str,
    detail: String,
}

fn check(host: &HostRow, key: &PublicKey, epoch: u64, frame: &v1::RecordFrame) -> std::result::Result<Checked, Wrong> {
    let wrong = |kind, detail| Wrong { kind, detail };
    let place = format!("record {} of epoch {epoch}", frame.sequence);
    let verified = dsse::parse(&frame.envelope)
        .and_then(|unverified| unverified.verify(key))
        .map_err(|e| wrong("bad-signature", format!("{place}: {e}")))?;
    let statement =
        Statement::from_payload(&verified.payload).map_err(|e| wrong("malformed", format!("{place}: {e}")))?;
    let header = statement
        .header()
        .ok_or_else(|| wrong("malformed", format!("{place} has no header")))?;
    if header.signer != format!("host:{}", host.id) {
        return Err(wrong("foreign", format!("{place} is another signer's")));
    }
    if header.epoch != epoch || header.sequence != frame.sequence || header.sequence == 0 || header.epoch == 0 {
        return Err(wrong(
            "malformed",
            format!(
                "{place} says it is record {} of epoch {}",
                header.sequence, header.epoch
            ),
        ));
    }
    if parse_rfc3339(&header.at).is_err() {
        return Err(wrong("malformed", format!("{place} has no readable time")));
    }
    Ok(Checked {
        digest: sha256_hex(&frame.envelope),
        statement,
    })
}

/// Whether a record comes next after `head`.
fn follows(head: Option<&Head>, epoch: u64, sequence: u64, previous: &str) -> std::result::Result<(), Wrong> {
    let wrong = |kind, detail| Err(Wrong { kind, detail });
    let (last, expected_previous) = match head {
        Some(head) if head.epoch == epoch => (head.sequence, head.digest.as_str()),
        Some(head) if head.epoch > epoch => {
            return wrong(
                "fork",
                format!(
                    "record {sequence} of epoch {epoch} came after epoch {} had begun",
                    head.epoch
                ),
            );
        }
        _ => (0, FIRST_PREVIOUS),
    };
    if sequence != last + 1 {
        return wrong(
            "gap",
            format!(
                "epoch {epoch}: records {} to {} are missing before record {sequence}",
                last + 1,
                sequence - 1
            ),
        );
    }
    if previous != expected_previous {
        return wrong(
            "fork",
            format!("record {sequence} of epoch {epoch} follows another record than the one stored"),
        );
    }
    Ok(())
}

fn place(frame: &v1::RecordFrame, index: u64) -> Place {
    Place {
        sequence: frame.sequence,
        index,
        leaf: leaf_hash(&frame.envelope),
    }
}

impl App {
    /// Appends records of one host; answers where they stand in the log. Sending them again is harmless.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a record that does not fit: nothing of the batch is stored, and an alarm is raised.
    pub async fn append(&self, host: &HostRow, batch: &v1::RecordBatch) -> Result<Appended> {
        if batch.records.len() > BATCH_RECORDS {
            return Err(Error::Invalid(format!("a batch has at most {BATCH_RECORDS} records")));
        }
        let key = PublicKey::from_der(&host.evidence_key).map_err(|e| Error::internal(e.to_string()))?;
        let mut places = Vec::with_capacity(batch.records.len());
        let mut alarmed = false;
        let mut checked = Vec::with_capacity(batch.records.len());
        for frame in &batch.records {
            match check(host, &key, batch.epoch, frame) {
                Ok(record) => checked.push(record),
                Err(wrong) => return Err(self.alarm(host, wrong).await?),
            }
        }
        let mut change = self.store.change().await?;
        let signer = format!("host:{}", host.id);
        let mut head = store::head(&mut change, &signer).await?;
        if let Some(head) = &head
            && batch.epoch > head.epoch + 1
        {
            let detail = format!("epochs {} to {} never arrived", head.epoch + 1, batch.epoch - 1);
            store::add_alarm(
                &mut change,
                &Ulid::new().to_string(),
                &host.id,
                "gap",
                &detail,
                self.now(),
            )
            .await?;
            tracing::error!(host = %host.name, detail, "evidence alarm");
            alarmed = true;
        }
        for (frame, record) in batch.records.iter().zip(&checked) {
            let stored = store::stored_place(&mut change, &signer, batch.epoch, frame.sequence).await?;
            let result = match stored {
                Some((index, stored)) if stored == record.digest => {
                    places.push(place(frame, index));
                    continue;
                }
                Some(_) => Err(Wrong {
                    kind: "fork",
                    detail: format!(
                        "record {} of epoch {} came again with other content",
                        frame.sequence, batch.epoch
                    ),
                }),
                None => {
                    let previous = record.statement.header().map_or("", |header| &header.previous);
                    follows(head.as_ref(), batch.epoch, frame.sequence, previous)
                }
            };
            if let Err(wrong) = result {
                change.rollback().await?;
                return Err(self.alarm(host, wrong).await?);
            }
            let index = self.append_one(&mut change, host, frame, record).await?;
            places.push(place(frame, index));
            alarmed |= self.raise(&mut change, host, &record.statement).await?;
            head = Some(Head {
                epoch: batch.epoch,
                sequence: frame.sequence,
                digest: record.digest.clone(),
            });
        }
        change.commit().await?;
        self.log.appended();
        if alarmed {
            self.notify.host_changed(&host.id);
            self.notify.changed();
        }
        Ok(Appended {
            epoch: batch.epoch,
            places,
        })
    }

    async fn append_one(
        &self,
        change: &mut store::Change,
        host: &HostRow,
        frame: &v1::RecordFrame,
        record: &Checked,
    ) -> Result<u64> {
        let statement = &record.statement;
        let Some(header) = statement.header() else {
            return Err(Error::internal("a checked record has a header"));
        };
        let request_id = statement.request_id();
        // A decision does not say its label; its request does.
        let label = match (statement.label(), request_id) {
            (Some(label), _) => Some(label.to_owned()),
            (None, Some(id)) => store::request_in(change, id).await?.map(|request| request.label),
            (None, None) => None,
        };
        let new = NewRecord {
            digest: &record.digest,
            leaf_hash: &leaf_hash(&frame.envelope),
            envelope: &frame.envelope,
            signer: &header.signer,
            host_id: Some(&host.id),
            epoch: header.epoch,
            sequence: header.sequence,
            kind: statement.kind_name(),
            request_id,
            label: label.as_deref(),
            about: None,
            at: parse_rfc3339(&header.at).unwrap_or(0),
            stored_at: self.now(),
            summary: &summary(statement),
        };
        Ok(store::add_record(change, &new).await?)
    }

    /// Writes an alarm down, once, and makes the refusal.
    async fn alarm(&self, host: &HostRow, wrong: Wrong) -> Result<Error> {
        let mut change = self.store.change().await?;
        let id = Ulid::new().to_string();
        let new = store::add_alarm(&mut change, &id, &host.id, wrong.kind, &wrong.detail, self.now()).await?;
        change.commit().await?;
        if new {
            tracing::error!(host = %host.name, kind = wrong.kind, detail = %wrong.detail, "evidence alarm");
            self.notify.host_changed(&host.id);
            self.notify.changed();
        }
        Ok(Error::Invalid(wrong.detail))
    }

    /// Newest first.
    pub async fn records(&self, actor: &Actor, mut filter: RecordFilter) -> Result<Page<RecordView>> {
        actor.require(Permission::SeeEvidence)?;
        filter.limit = filter.limit.clamp(1, MAX_PAGE);
        let page = filter.limit;
        filter.limit += 1;
        let mut rows = self.store.records(&filter).await?;
        let more = rows.len() as u64 > page;
        rows.truncate(usize::try_from(page).unwrap_or(usize::MAX));
        let next = rows.last().filter(|_| more).map(|row| row.position.to_string());
        let items = rows
            .into_iter()
            .map(|row| RecordView {
                digest: row.digest,
                index: row.position,
                signer: row.signer,
                host: row.host_name.unwrap_or_else(|| OWN.to_owned()),
                host_id: row.host_id.unwrap_or_default(),
                epoch: row.epoch,
                sequence: row.sequence,
                kind: row.kind,
                request_id: row.request_id,
                at: rfc3339(row.at),
                summary: row.summary,
            })
            .collect();
        Ok(Page { items, next })
    }

    /// The keys that this console knows, revoked hosts' too: what they signed before has to hold.
    pub async fn trust(&self, actor: &Actor) -> Result<Vec<u8>> {
        actor.require(Permission::SeeTrust)?;
        let console = ConsoleTrust {
            origin: self.log.origin().to_owned(),
            decision_keys: vec![self.decision_key.public()],
            log_keys: vec![self.log.key().public()],
            witnesses: self
                .log
                .config()
                .witnesses
                .iter()
                .map(|witness| witness.key.clone())
                .collect(),
            quorum: self.log.config().quorum,
        };
        let mut hosts = Vec::new();
        for host in self.store.hosts().await? {
            let key = PublicKey::from_der(&host.evidence_key).map_err(|e| Error::internal(e.to_string()))?;
            let evidence_keys = vec![EvidenceKey {
                key,
                from_epoch: 1,
                through_epoch: None,
            }];
            hosts.push(HostTrust {
                id: host.id,
                name: host.name,
                evidence_keys,
            });
        }
        Trust::new(console, hosts)
            .to_json()
            .map_err(|e| Error::internal(e.to_string()))
    }

    /// A bundle: records with their proofs, in log order. `asked` is `filter` as it was typed.
    pub async fn export(&self, actor: &Actor, filter: RecordFilter, asked: Filter) -> Result<ExportStream> {
        actor.require(Permission::SeeEvidence)?;
        let trust = self.trust(actor).await?;
        let export = Export {
            trust,
            asked,
            filter,
            store: self.store.clone(),
        };
        let stream = self.log.export(export).await.map_err(Error::Internal)?;
        stream.ok_or_else(|| Error::Busy("other exports are being written; try again when they are done".to_owned()))
    }

    /// A record's envelope, exact bytes.
    pub async fn record(&self, actor: &Actor, digest: &str) -> Result<Vec<u8>> {
        actor.require(Permission::SeeEvidence)?;
        self.store
            .envelope(digest)
            .await?
            .ok_or_else(|| Error::not_found("record", digest))
    }
}
