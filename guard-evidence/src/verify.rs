//! The verifier: does a bundle prove what it claims?
//!
//! Owns the judgement. It is given a bundle's folder and the keys that the auditor trusts. It must never believe
//! anything in the bundle that no trusted key vouches for, and says which record is wrong and why.

mod changes;
mod decisions;
mod keys;
mod report;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

pub use report::{Finding, Level, Report, Section, Status};

use keys::Keys;

use crate::bundle::{Bundle, BundleError, record_name};
use crate::chain::{ChainError, Checker};
use crate::checkpoint::{self, Checkpoint, CheckpointError, Note, Proof};
use crate::cosign;
use crate::dsse;
use crate::enforcement::{Enforcement, Reader};
use crate::key::PublicKey;
use crate::merkle::{Frontier, leaf_hash, verify_inclusion};
use crate::record::{Header, Lifecycle, Predicate, Statement};
use crate::statement::sha256_hex;
use crate::text::{visible, visible_fold};
use crate::trust::{ConsoleTrust, Trust};

/// Where the trusted keys came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TrustSource {
    /// The auditor gave them.
    Given,
    /// They came with the bundle: whoever made it could have made them up.
    Bundle,
}

/// What the auditor asked for. The bundle's own word for it is not believed: it could hide what is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    WholeLog,
    /// A part, by host, label or time.
    Part,
}

/// Clocks are corrected by as much without a word.
const CLOCK_SLACK_SECONDS: i64 = 5;

/// One record whose signature holds.
#[derive(Debug)]
pub struct Record {
    /// In the log.
    pub index: u64,
    file: String,
    key_id: String,
    /// SHA-256, hex.
    pub envelope_digest: String,
    /// SHA-256, hex.
    pub payload_digest: String,
    pub header: Header,
    pub statement: Statement,
}

/// A bundle that was judged, with its records.
#[derive(Debug)]
pub struct Examined {
    pub report: Report,
    /// Those whose signature holds, in log order. What else is wrong with one, [`Self::doubts`] says.
    pub records: Vec<Record>,
}

impl Examined {
    /// Everything that speaks against a record, safe to show.
    #[must_use]
    pub fn doubts(&self, index: u64) -> Vec<String> {
        let sections = self.report.sections.iter();
        sections
            .filter_map(|section| section.wrong.get(&index))
            .cloned()
            .collect()
    }

    /// The records against which nothing speaks.
    pub fn accepted(&self) -> impl Iterator<Item = &Record> {
        let wrong = |index: u64| {
            self.report
                .sections
                .iter()
                .any(|section| section.wrong.contains_key(&index))
        };
        self.records.iter().filter(move |record| !wrong(record.index))
    }
}

/// Judges a bundle. What is in it never makes this fail: a bundle that cannot be read is invalid, and the report says
/// why.
#[must_use]
pub fn verify(bundle: &Bundle, trust: &Trust, source: TrustSource, asked: Asked) -> Report {
    verify_since(bundle, trust, source, asked, None)
}

/// As [`verify`]; `since` is a checkpoint of this log that the auditor kept, exact bytes, which the bundle's has to continue.
#[must_use]
pub fn verify_since(bundle: &Bundle, trust: &Trust, source: TrustSource, asked: Asked, since: Option<&[u8]>) -> Report {
    examine(bundle, trust, source, asked, since).report
}

/// As [`verify_since`], and gives the records too, for what is made of them.
#[must_use]
pub fn examine(bundle: &Bundle, trust: &Trust, source: TrustSource, asked: Asked, since: Option<&[u8]>) -> Examined {
    let mut files = Section::new("files");
    let mut signatures = Section::new("signatures");
    let mut log = Section::new("log");
    let mut sequence = Section::new("sequence");
    let mut changes = Section::new("changes");
    let mut decisions = Section::new(report::DECISIONS);

    check_files(bundle, trust, &mut files);
    let mut trusted = Keys::new(trust);
    let signed = check_checkpoint(bundle, trust, &mut log);
    let checkpoint = signed.as_ref().map(|(checkpoint, _)| checkpoint.clone());
    let records = check_records(bundle, &mut trusted, checkpoint.as_ref(), &mut signatures, &mut log);
    check_complete(bundle, checkpoint.as_ref(), &records, asked, &mut log);
    if let Some((checkpoint, key)) = &signed
        && let Err(why) = trusted.may_sign_head(&trust.console.origin, key, checkpoint.size)
    {
        log.add(Level::Invalid, format!("the checkpoint {why}"), None);
    }
    let heads = Heads {
        origin: &trust.console.origin,
        keys: trusted.of_log(&trust.console.origin),
    };
    if let (Some(since), Some(checkpoint)) = (since, &checkpoint) {
        check_since(bundle, &heads, &trusted, checkpoint, since, &mut log);
    }
    check_sequence(bundle, &records, &heads, &mut sequence);
    let mut enforcement = Section::new("enforcement");
    let hosts = check_enforcement(&records, trust, &mut enforcement);
    let known = changes::check(&records, &mut changes);
    decisions::check(&records, trust, &trusted, &known, &mut decisions);

    let mut keys = Section::new("trust");
    match source {
        TrustSource::Given => {
            keys.summary = format!(
                "keys given: {} hosts, console {}",
                trust.hosts.len(),
                visible(&trust.console.origin)
            );
        }
        TrustSource::Bundle => {
            keys.summary = "keys came with the bundle".to_owned();
            keys.add(
                Level::Incomplete,
                "no trusted keys were given: whoever made this bundle could have made its keys; compare trust.json with one you got another way",
                None,
            );
        }
    }
    let mut report = Report::new(vec![
        files,
        signatures,
        log,
        sequence,
        enforcement,
        changes,
        decisions,
        keys,
    ]);
    report.enforcement = hosts;
    Examined { report, records }
}

/// The report on a bundle that cannot even be opened.
#[must_use]
pub fn unreadable(error: &BundleError) -> Report {
    let mut files = Section::new("files");
    files.add(Level::Invalid, error.to_string(), None);
    Report::new(vec![files])
}

/// The report on a bundle without a trust file, when none was given either: nothing can be told.
#[must_use]
pub fn without_trust(why: &str) -> Report {
    let mut keys = Section::new("trust");
    keys.add(
        Level::Invalid,
        format!("no trusted keys were given, and those of the bundle cannot be read: {why}"),
        None,
    );
    Report::new(vec![keys])
}

fn check_files(bundle: &Bundle, trust: &Trust, section: &mut Section) {
    let mut good = 0;
    for (name, digest) in &bundle.manifest.files {
        match bundle.digest(name) {
            Ok(found) if found == *digest => good += 1,
            Ok(_) => section.add(
                Level::Invalid,
                format!("{name} has changed since the bundle was made"),
                None,
            ),
            Err(e) => section.add(Level::Invalid, e.to_string(), None),
        }
    }
    if bundle.manifest.origin != trust.console.origin {
        section.add(
            Level::Invalid,
            format!(
                "the manifest names the log `{}`",
                visible_fold(&bundle.manifest.origin, 80)
            ),
            None,
        );
    }
    if bundle.manifest.records != bundle.indices.len() as u64 {
        section.add(
            Level::Invalid,
            format!(
                "the manifest counts {} records, there are {}",
                bundle.manifest.records,
                bundle.indices.len()
            ),
            None,
        );
    }
    for name in &bundle.strangers {
        section.add(Level::Invalid, format!("{name} does not belong to the bundle"), None);
    }
    section.summary = format!("{good} of {} files as the manifest says", bundle.manifest.files.len());
}

/// Who signs heads of the log.
struct Heads<'t> {
    origin: &'t str,
    keys: Vec<PublicKey>,
}

fn check_checkpoint(bundle: &Bundle, trust: &Trust, section: &mut Section) -> Option<(Checkpoint, PublicKey)> {
    let origin = &trust.console.origin;
    let checked = bundle.checkpoint().map_err(|e| e.to_string()).and_then(|note| {
        let signed = match checkpoint::verify_by(&note, origin, &trust.console.log_public_keys()) {
            // By a key that the auditor does not know yet, perhaps.
            Err(CheckpointError::Unsigned(_)) => {
                checkpoint::verify_by(&note, origin, &later_log_keys(bundle, trust)).map(owned)
            }
            other => other.map(owned),
        };
        signed.map_err(|e| e.to_string())
    });
    match checked {
        Ok(signed) => {
            check_quorum(bundle, trust, section);
            Some(signed)
        }
        Err(why) => {
            section.add(Level::Invalid, why, None);
            None
        }
    }
}

fn owned((checkpoint, key): (Checkpoint, &PublicKey)) -> (Checkpoint, PublicKey) {
    (checkpoint, key.clone())
}

/// Keys of the log that follow from the known ones, in the log's own chain.
fn later_log_keys(bundle: &Bundle, trust: &Trust) -> Vec<PublicKey> {
    let origin = &trust.console.origin;
    let log = Trust::new(
        ConsoleTrust {
            decision_keys: Vec::new(),
            ..trust.console.clone()
        },
        Vec::new(),
    );
    let mut keys = Keys::new(&log);
    for index in &bundle.indices {
        if let Ok(envelope) = bundle.record(*index) {
            // Other signers' records are none of these keys'.
            let _ = read_record(*index, "", &envelope, &mut keys);
        }
    }
    keys.of_log(origin)
}

/// As many witnesses as the auditor wants have cosigned the checkpoint.
fn check_quorum(bundle: &Bundle, trust: &Trust, section: &mut Section) {
    let ConsoleTrust { witnesses, quorum, .. } = &trust.console;
    let note = bundle.checkpoint().ok().and_then(|note| Note::parse(&note).ok());
    let got = note.map_or(0, |note| cosign::count(&note, witnesses));
    if got < *quorum {
        section.add(
            Level::Invalid,
            format!("{got} of the trusted witnesses have cosigned the checkpoint, {quorum} are wanted"),
            None,
        );
    } else if *quorum > 0 {
        section.add(
            Level::Note,
            format!("{got} witnesses have cosigned the checkpoint, {quorum} are wanted"),
            None,
        );
    }
}

/// The bundle's log continues a checkpoint from before.
fn check_since(
    bundle: &Bundle,
    heads: &Heads<'_>,
    trusted: &Keys,
    checkpoint: &Checkpoint,
    since: &[u8],
    section: &mut Section,
) {
    let signed = checkpoint::verify_by(since, heads.origin, &heads.keys).map_err(|e| e.to_string());
    let earlier =
        signed.and_then(|(earlier, key)| trusted.may_sign_head(heads.origin, key, earlier.size).map(|()| earlier));
    let earlier = match earlier {
        Ok(earlier) => earlier,
        Err(why) => {
            section.add(Level::Invalid, format!("the checkpoint that was kept: {why}"), None);
            return;
        }
    };
    let (kept, now) = (earlier.size, checkpoint.size);
    if kept > now {
        let text = format!("the log has {now} records, the checkpoint that was kept {kept}: it was rolled back");
        section.add(Level::Invalid, text, None);
        return;
    }
    let mut first = Frontier::default();
    for index in bundle.indices.iter().copied().take_while(|index| *index < kept) {
        match bundle.record(index) {
            Ok(envelope) if index == first.size() => first.push(leaf_hash(&envelope)),
            _ => break,
        }
    }
    if first.size() < kept {
        let text = format!(
            "whether it continues the checkpoint that was kept, of {kept} records, cannot be told: they are not all in the bundle"
        );
        section.add(Level::Incomplete, text, None);
    } else if first.root() != earlier.root {
        let text =
            format!("its first {kept} records are not those of the checkpoint that was kept: the log was forked");
        section.add(Level::Invalid, text, None);
    } else {
        section.add(
            Level::Note,
            format!("continues the checkpoint that was kept, of {kept} records"),
            None,
        );
    }
}

/// Reads every record: its signature, its place in the log. Those that hold are given back, in log order.
fn check_records(
    bundle: &Bundle,
    keys: &mut Keys,
    checkpoint: Option<&Checkpoint>,
    signatures: &mut Section,
    log: &mut Section,
) -> Vec<Record> {
    let note = bundle.checkpoint().unwrap_or_default();
    let mut records = Vec::new();
    let mut proved = 0;
    for index in &bundle.indices {
        let index = *index;
        let file = record_name(index);
        let envelope = match bundle.record(index) {
            Ok(envelope) => envelope,
            Err(e) => {
                signatures.add_at(Level::Invalid, e.to_string(), index);
                continue;
            }
        };
        if let Some(checkpoint) = checkpoint {
            match check_place(bundle, index, &envelope, checkpoint, &note) {
                Ok(()) => proved += 1,
                Err(why) => log.add_at(Level::Invalid, format!("is not proved to be in the log: {why}"), index),
            }
        }
        match read_record(index, &file, &envelope, keys) {
            Ok(record) => records.push(record),
            Err(why) => signatures.add_at(Level::Invalid, why, index),
        }
    }
    let signers: BTreeSet<&str> = records.iter().map(|r| r.header.signer.as_str()).collect();
    let hosts = signers.iter().filter(|s| s.starts_with("host:")).count();
    let consoles = signers.iter().filter(|s| s.starts_with("console:")).count();
    signatures.summary = format!(
        "{} of {} records, {hosts} hosts, {consoles} consoles",
        records.len(),
        bundle.indices.len()
    );
    if let Some(checkpoint) = checkpoint {
        log.summary = format!(
            "checkpoint {}: {proved} of {} records proved to be in it",
            checkpoint.size,
            bundle.indices.len()
        );
    }
    records
}

fn check_place(
    bundle: &Bundle,
    index: u64,
    envelope: &[u8],
    checkpoint: &Checkpoint,
    note: &[u8],
) -> Result<(), String> {
    let proof = bundle.proof(index).map_err(|e| e.to_string())?;
    let proof = Proof::parse(&proof).map_err(|e| e.to_string())?;
    if proof.index != index {
        return Err(format!("its proof is for index {}", proof.index));
    }
    if proof.checkpoint.as_bytes() != note {
        return Err("its proof leads to another checkpoint than the bundle's".to_owned());
    }
    verify_inclusion(
        &leaf_hash(envelope),
        index,
        checkpoint.size,
        &proof.hashes,
        &checkpoint.root,
    )
    .map_err(|e| e.to_string())
}

fn read_record(index: u64, file: &str, envelope: &[u8], keys: &mut Keys) -> Result<Record, String> {
    let unverified = dsse::parse(envelope).map_err(|e| e.to_string())?;
    let Some(key) = keys.by_id(unverified.key_id()) else {
        return Err(dsse::DsseError::UnknownKey(unverified.key_id().to_owned()).to_string());
    };
    let verified = unverified.verify(key).map_err(|e| e.to_string())?;
    let statement = Statement::from_payload(&verified.payload).map_err(|e| e.to_string())?;
    let Some(header) = statement.header().cloned() else {
        return Err("a console's decision by itself is not a record of a chain".to_owned());
    };
    keys.admit(&verified.key_id, index, &header, &statement)?;
    Ok(Record {
        index,
        file: file.to_owned(),
        key_id: verified.key_id,
        envelope_digest: sha256_hex(envelope),
        payload_digest: sha256_hex(&verified.payload),
        header,
        statement,
    })
}

/// A bundle of the whole log has every record of the checkpoint.
fn check_complete(
    bundle: &Bundle,
    checkpoint: Option<&Checkpoint>,
    records: &[Record],
    asked: Asked,
    section: &mut Section,
) {
    let Some(checkpoint) = checkpoint else { return };
    let there = bundle.indices.len() as u64;
    if !bundle.manifest.filter.is_all() {
        let filter = serde_json::to_string(&bundle.manifest.filter).unwrap_or_default();
        let text = format!(
            "a part of the log only, {there} of {} records: {}",
            checkpoint.size,
            visible_fold(&filter, 200)
        );
        let level = if asked == Asked::Part {
            Level::Note
        } else {
            Level::Incomplete
        };
        section.add(level, text, None);
        return;
    }
    if there < checkpoint.size {
        let gaps = gaps(&bundle.indices, checkpoint.size);
        section.add(
            Level::Incomplete,
            format!(
                "{} records of the log are not in the bundle (index {gaps})",
                checkpoint.size - there
            ),
            None,
        );
    }
    if let Some(record) = records.iter().find(|r| r.index >= checkpoint.size) {
        section.add(Level::Invalid, "lies beyond the checkpoint", Some(record));
    }
}

/// The indices below `size` that are missing, in words, the first few.
fn gaps(indices: &[u64], size: u64) -> String {
    let mut out = Vec::new();
    let mut next = 0;
    for index in indices.iter().copied().chain([size]) {
        if index > next {
            out.push(if index == next + 1 {
                next.to_string()
            } else {
                format!("{next}–{}", index - 1)
            });
        }
        next = index.saturating_add(1);
        if out.len() > 5 {
            out.push("…".to_owned());
            break;
        }
    }
    out.join(", ")
}

/// One signer's chain, as far as it was followed.
#[derive(Default)]
struct Followed<'r> {
    checker: Checker,
    /// Who signed the last record.
    key: &'r str,
    /// Named to follow that key.
    next: Option<String>,
}

/// Follows every signer's chain in log order.
fn check_sequence(bundle: &Bundle, records: &[Record], heads: &Heads<'_>, section: &mut Section) {
    let filter = &bundle.manifest.filter;
    let mut chains: BTreeMap<&str, Followed<'_>> = BTreeMap::new();
    let mut left_out = 0;
    for record in records {
        let header = &record.header;
        let new = !chains.contains_key(header.signer.as_str());
        let followed = chains.entry(&header.signer).or_default();
        // With a label asked for, every end is another one than that of the chain.
        if filter.label.is_none() {
            check_begin(followed, record, section);
        }
        let last = followed.checker.last().cloned();
        let checked = followed.checker.check_digest(header, record.envelope_digest.clone());
        followed.key = &record.key_id;
        if let Predicate::Lifecycle(lifecycle) = &record.statement.predicate
            && let Lifecycle::NextKey { key } = &lifecycle.event
        {
            followed.next = Some(key.id());
        }
        match checked {
            Ok(()) => {
                let before = last.as_ref().map_or(0, |last| last.epoch);
                if header.epoch > before + 1 && !new {
                    section.add(
                        Level::Incomplete,
                        format!("epochs {} to {} are missing", before + 1, header.epoch - 1),
                        Some(record),
                    );
                }
                check_time(last.as_ref(), record, section);
            }
            // What was not asked for is no gap; the chain cannot be followed over it, which is said below.
            Err(ChainError::Missing { from, through, .. }) if !filter.is_all() && (new || filter.label.is_some()) => {
                left_out += through - from + 1;
            }
            Err(ChainError::Missing { epoch, from, through }) => section.add(
                Level::Incomplete,
                format!(
                    "{}: {} records missing (epoch {epoch}, seq {}) before this one",
                    name_of(record),
                    through - from + 1,
                    if from == through {
                        from.to_string()
                    } else {
                        format!("{from}–{through}")
                    }
                ),
                Some(record),
            ),
            Err(error) => section.add(Level::Invalid, error.to_string(), Some(record)),
        }
        notes(record, heads, section);
    }
    if left_out > 0 {
        let level = if filter.label.is_some() {
            Level::Incomplete
        } else {
            Level::Note
        };
        section.add(
            level,
            format!("{left_out} records of these chains were not asked for, so the chains have openings there"),
            None,
        );
    }
    section.summary = format!("{} chains", chains.len());
}

/// An epoch begins where the one before it ended, with the same key or the one that this named.
fn check_begin(before: &Followed<'_>, record: &Record, section: &mut Section) {
    let (Some(end), Predicate::Lifecycle(lifecycle)) = (before.checker.end(), &record.statement.predicate) else {
        return;
    };
    let Lifecycle::Begun { after, .. } = &lifecycle.event else {
        return;
    };
    if record.header.epoch <= end.epoch {
        return;
    }
    match after {
        Some(after) if *after == end => {}
        Some(after) if after.epoch == end.epoch && after.sequence > end.sequence => section.add(
            Level::Incomplete,
            format!(
                "{}: the last {} records of epoch {} are missing before this one",
                name_of(record),
                after.sequence - end.sequence,
                end.epoch
            ),
            Some(record),
        ),
        Some(after) => section.add(
            Level::Invalid,
            format!(
                "says that record {} of epoch {} came before it, but the one that is there is another",
                after.sequence, after.epoch
            ),
            Some(record),
        ),
        None if before.key != record.key_id => section.add(
            Level::Incomplete,
            "begins with another key and does not say where the epoch before it ended",
            Some(record),
        ),
        None => {}
    }
    if before.key != record.key_id && before.next.as_deref() != Some(record.key_id.as_str()) {
        section.add(
            Level::Incomplete,
            format!(
                "begins with key {}, which the key before it did not name",
                record.key_id
            ),
            Some(record),
        );
    }
}

/// Within one boot the clock since boot never goes back.
fn check_time(last: Option<&Header>, record: &Record, section: &mut Section) {
    let header = &record.header;
    if let Some(last) = last
        && last.boot_id == header.boot_id
        && last.since_boot_ns > header.since_boot_ns
    {
        section.add(
            Level::Invalid,
            "was made before the record before it, by the clock since boot",
            Some(record),
        );
    }
    let seconds = |header: &Header| header.at.parse().ok().map(jiff::Timestamp::as_second);
    if let Some(last) = last
        && let (Some(before), Some(now)) = (seconds(last), seconds(header))
        && before > now + CLOCK_SLACK_SECONDS
    {
        section.add(
            Level::Note,
            format!(
                "{}: its clock was set back by {} s before this record; times on both sides do not compare",
                name_of(record),
                before - now
            ),
            Some(record),
        );
    }
}

/// From when to when enforcement was on, host by host. A gap is said, not held against the log: it is what happened.
/// A record that contradicts earlier ones is: then nobody can tell.
fn check_enforcement(records: &[Record], trust: &Trust, section: &mut Section) -> BTreeMap<String, Enforcement> {
    let mut readers: BTreeMap<&str, Reader> = BTreeMap::new();
    for record in records {
        if let Some(host) = record.header.signer.strip_prefix("host:") {
            let doubt = readers.entry(host).or_default().read(&record.header, &record.statement);
            if let Some(doubt) = doubt {
                section.add(Level::Incomplete, doubt, Some(record));
            }
        }
    }
    let mut hosts = BTreeMap::new();
    let mut gaps = 0;
    for (host, reader) in readers {
        let told = reader.finish();
        let name = trust.host(host).map_or(host, |host| &host.name);
        for line in told.lines() {
            section.add(Level::Note, format!("host {}: {line}", visible_fold(name, 64)), None);
        }
        gaps += told.gaps.len();
        hosts.insert(host.to_owned(), told);
    }
    section.summary = format!("{} hosts, {gaps} gaps", hosts.len());
    hosts
}

/// What the reader should know although nothing is wrong with the record.
fn notes(record: &Record, heads: &Heads<'_>, section: &mut Section) {
    let Predicate::Lifecycle(lifecycle) = &record.statement.predicate else {
        return;
    };
    match &lifecycle.event {
        Lifecycle::EventsLost { .. } | Lifecycle::Recovered { .. } => {
            let text = format!("{}: {}", name_of(record), crate::statement::summary(&record.statement));
            section.add(Level::Note, text, Some(record));
        }
        Lifecycle::LogRefused { known, offered, .. } => {
            let text = format!("{}: {}", name_of(record), crate::statement::summary(&record.statement));
            // Two signed heads of one size are proof; else it is the host's word.
            let level = if are_forked(known, offered, heads) {
                Level::Invalid
            } else {
                Level::Incomplete
            };
            section.add(level, text, Some(record));
        }
        _ => {}
    }
}

/// Whether the log signed two heads that cannot be of one log.
fn are_forked(one: &str, other: &str, heads: &Heads<'_>) -> bool {
    let head = |note: &str| checkpoint::verify(note.as_bytes(), heads.origin, &heads.keys).ok();
    match (head(one), head(other)) {
        (Some(one), Some(other)) => one.size == other.size && one.root != other.root,
        _ => false,
    }
}

fn name_of(record: &Record) -> String {
    visible(&record.header.signer)
        .replacen("host:", "host ", 1)
        .replacen("console:", "console ", 1)
        .replacen("log:", "log ", 1)
}
