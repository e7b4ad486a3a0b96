//! Evidence: taking in hosts' records in unbroken order, and giving them out.
//!
//! Owns the checks on what may enter the log: the host's signature, its sequence and the digest of the record before. It
//! must never acknowledge a record that is not on disk, nor take a second one for a place that is filled.

use guard_evidence::bundle::Filter;
use guard_evidence::chain::FIRST_PREVIOUS;
use guard_evidence::dsse::{self, DsseError, Verified};
use guard_evidence::merkle::leaf_hash;
use guard_evidence::record::{Lifecycle, Predicate, Statement};
use guard_evidence::statement::{sha256_hex, summary};
use guard_evidence::trust::{ConsoleTrust, HostTrust, Trust};
use guard_proto::limits::BATCH_RECORDS;
use guard_proto::rest::{OutputView, Page, RecordView};
use guard_proto::v1;
use ulid::Ulid;

use super::receipts::{Appended, Place};
use super::requests::MAX_PAGE;
use super::{Actor, App, Error, Permission, Result};
use crate::log::{Export, ExportStream};
use crate::store::{self, Head, HostKeys, HostRow, NewRecord, Purpose, RecordFilter};
use crate::time::{parse_rfc3339, rfc3339};

/// Where a host's name stands, for the console's own records; no host can be called so.
const OWN: &str = "(console)";

/// A record whose signature holds and that is this host's.
#[derive(Debug)]
struct Checked {
    statement: Statement,
    digest: String,
    /// Whose signature holds.
    key_id: String,
}

/// What is wrong with a record: a kind for the alarm, and words.
#[derive(Debug)]
struct Wrong {
    kind: &'static str,
    detail: String,
}

fn check(host: &HostRow, keys: &HostKeys, epoch: u64, frame: &v1::RecordFrame) -> std::result::Result<Checked, Wrong> {
    let wrong = |kind, detail| Wrong { kind, detail };
    let place = format!("record {} of epoch {epoch}", frame.sequence);
    let verified = verified(keys, &frame.envelope).map_err(|e| wrong("bad-signature", format!("{place}: {e}")))?;
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
        key_id: verified.key_id,
    })
}

/// An envelope that a key of a host has signed, whether or not that key may sign what is in it.
pub(super) fn verified(keys: &HostKeys, envelope: &[u8]) -> std::result::Result<Verified, DsseError> {
    let unverified = dsse::parse(envelope)?;
    match keys.by_id(unverified.key_id()) {
        Some(key) => unverified.verify(key),
        None => Err(DsseError::UnknownKey(unverified.key_id().to_owned())),
    }
}

/// Whether this key may sign this record, which is not stored yet. One that was named begins an epoch, where the one
/// before it ended.
fn may_sign(keys: &HostKeys, head: Option<&Head>, record: &Checked) -> std::result::Result<(), Wrong> {
    let wrong = |kind, detail| Err(Wrong { kind, detail });
    let Some(header) = record.statement.header() else {
        return wrong("malformed", "a record without a header".to_owned());
    };
    let (sequence, epoch, id) = (header.sequence, header.epoch, &record.key_id);
    let begun = match lifecycle(&record.statement) {
        Some(Lifecycle::Begun { after, .. }) if sequence == 1 => Some(after),
        _ => None,
    };
    let next = keys.is_next(id) && begun.is_some();
    if !next && !keys.signs(id, epoch) {
        let detail =
            format!("record {sequence} of epoch {epoch}: signed by key {id}, which the host does not use there");
        return wrong("bad-signature", detail);
    }
    let ended = head.map(|head| (head.epoch, head.sequence, head.digest.as_str()));
    match begun.and_then(Option::as_ref) {
        Some(after) if ended == Some((after.epoch, after.sequence, after.digest.as_str())) => Ok(()),
        Some(after) => wrong(
            "gap",
            format!(
                "epoch {epoch} begins after record {} of epoch {}, which is not the last one stored",
                after.sequence, after.epoch
            ),
        ),
        None if next => wrong(
            "malformed",
            format!("epoch {epoch} begins with another key and does not say where the one before it ended"),
        ),
        None => Ok(()),
    }
}

fn lifecycle(statement: &Statement) -> Option<&Lifecycle> {
    match &statement.predicate {
        Predicate::Lifecycle(record) => Some(&record.event),
        _ => None,
    }
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
        let keys = self.store.evidence_keys(&host.id).await?;
        let mut places = Vec::with_capacity(batch.records.len());
        let mut alarmed = false;
        let mut checked = Vec::with_capacity(batch.records.len());
        for frame in &batch.records {
            match check(host, &keys, batch.epoch, frame) {
                Ok(record) => checked.push(record),
                Err(wrong) => return Err(self.alarm(host, wrong).await?),
            }
        }
        let mut change = self.store.change().await?;
        let mut keys = store::evidence_keys_in(&mut change, &host.id).await?;
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
                    may_sign(&keys, head.as_ref(), record)
                        .and_then(|()| follows(head.as_ref(), batch.epoch, frame.sequence, previous))
                }
            };
            if let Err(wrong) = result {
                change.rollback().await?;
                return Err(self.alarm(host, wrong).await?);
            }
            let index = self.append_one(&mut change, host, frame, record).await?;
            places.push(place(frame, index));
            if self.learn(&mut change, host, &keys, record, index).await? {
                keys = store::evidence_keys_in(&mut change, &host.id).await?;
            }
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

    /// What a stored record says of its host's keys. Whether it says anything.
    async fn learn(
        &self,
        change: &mut store::Change,
        host: &HostRow,
        keys: &HostKeys,
        record: &Checked,
        index: u64,
    ) -> Result<bool> {
        match (lifecycle(&record.statement), record.statement.header()) {
            (Some(Lifecycle::NextKey { key }), _) => {
                store::name_next_key(change, &host.id, key).await?;
                tracing::info!(host = %host.name, key = key.id(), "the host has named its next evidence key");
            }
            (Some(Lifecycle::Begun { .. }), Some(header)) if keys.is_next(&record.key_id) => {
                store::begin_next_key(change, &host.id, header.epoch, index).await?;
                tracing::info!(host = %host.name, key = record.key_id, "the host signs evidence with another key");
            }
            _ => return Ok(false),
        }
        Ok(true)
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
            decision_keys: self.store.console_keys(Purpose::Decision).await?,
            log_keys: self.store.console_keys(Purpose::Log).await?,
            witnesses: self
                .log
                .config()
                .witnesses
                .iter()
                .map(|witness| witness.key.clone())
                .collect(),
            quorum: self.log.config().quorum,
        };
        let mut keys = self.store.all_evidence_keys().await?;
        let hosts = self.store.hosts().await?.into_iter().map(|host| HostTrust {
            evidence_keys: keys.remove(&host.id).unwrap_or_default().used,
            id: host.id,
            name: host.name,
        });
        let hosts = hosts.collect();
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

    /// How far events for other systems have come.
    pub async fn outputs(&self, actor: &Actor) -> Result<Page<OutputView>> {
        actor.require(Permission::SeeChannels)?;
        let items = self.outputs.view(self.store.log_size().await?);
        Ok(Page { items, next: None })
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
