//! The thread that owns chain and spool.
//!
//! Owns sealing, appending and syncing in groups. It is given jobs in order. It must never call `done` before the record
//! is durable, and after a failure it repeats the same records until the disk takes them.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use guard_evidence::chain::{Chain, SealError, Sealed};
use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::{Header, Lifecycle, LifecycleRecord, Predicate, Statement};
use guard_evidence::spool::{self, Opened, Options, Spool, SpoolError};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Done, Evidence, EvidenceConfig, EvidenceError, Job, Shared, Slot, unsealed};
use crate::clock::Stamper;
use crate::files;
use crate::kernel::crash;

/// How long a record may wait for company before the group is synced.
const GROUP: Duration = Duration::from_millis(50);
const GROUP_RECORDS: usize = 256;
const RETRY: Duration = Duration::from_secs(1);
const SEGMENT_BYTES: u64 = 8 << 20;

struct Writer {
    key: SigningKey,
    chain: Chain,
    spool: Option<Spool>,
    directory: std::path::PathBuf,
    acknowledged_file: std::path::PathBuf,
    options: Options,
    stamper: Stamper,
    shared: Arc<Shared>,
    durable: watch::Sender<u64>,
}

/// One record that is not durable yet.
struct Waiting {
    predicate: Box<Predicate>,
    _slot: Slot,
    done: Option<Done>,
    sealed: Option<Sealed>,
}

pub(super) fn start(config: EvidenceConfig) -> Result<Evidence, EvidenceError> {
    let options = Options {
        segment_bytes: SEGMENT_BYTES.min(config.max_bytes / 4),
        max_bytes: config.max_bytes,
    };
    let signer = format!("host:{}", config.host_id);
    let mut first = Vec::new();
    let opened = match Spool::open(&config.spool_directory, options) {
        Ok(opened) => Ok(opened),
        Err(error @ SpoolError::Damaged { .. }) => {
            tracing::error!(%error, "the spool is damaged: it is set aside and a new epoch begins");
            spool::set_aside(&config.spool_directory)?;
            first.push(format!("the spool was damaged and set aside: {error}"));
            Spool::open(&config.spool_directory, options)
        }
        Err(other) => Err(other),
    };
    let Opened { spool, cut, last } = opened.map_err(|error| match error {
        SpoolError::Locked { .. } => EvidenceError::Locked(error),
        other => EvidenceError::Spool(other),
    })?;
    let mut last_before = None;
    let resumed = match &last {
        None => None,
        Some(envelope) => match header_of(envelope, &config.key) {
            Ok(header) if header.signer == signer => {
                last_before = Some(header.at.as_str().into());
                Some(Chain::resume(&header, envelope))
            }
            Ok(header) => {
                first.push(format!("the last record was signed by {}", header.signer));
                None
            }
            Err(why) => {
                first.push(format!("the last record is not readable: {why}"));
                None
            }
        },
    };
    let acknowledged_file = config.spool_directory.join("acknowledged");
    let acknowledged = std::fs::read_to_string(&acknowledged_file)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0)
        .min(spool.written());
    let begins = resumed.is_none();
    let chain = match resumed {
        Some(chain) => chain,
        None => Chain::begin(&signer, next_epoch(&config.epoch_file)?),
    };
    let shared = Arc::new(Shared::default());
    shared.acknowledged.store(acknowledged, Ordering::Release);
    let before = super::before::read(&spool, &config.key.public())?;
    let (durable, durable_receiver) = watch::channel(spool.durable());
    let (sender, jobs) = mpsc::channel();
    let reader = Arc::new(Mutex::new(spool.reader(acknowledged + 1)));
    let evidence = Evidence {
        sender,
        shared: Arc::clone(&shared),
        durable: durable_receiver,
        reader,
        last_before,
        before: Arc::new(before),
    };
    let key_pem = config
        .key
        .public()
        .to_pem()
        .map_err(|e| EvidenceError::First(e.to_string()))?;
    let mut writer = Writer {
        key: config.key,
        chain,
        spool: Some(spool),
        directory: config.spool_directory,
        acknowledged_file,
        options,
        stamper: Stamper::new(),
        shared,
        durable,
    };
    let mut group = Vec::new();
    let lifecycle = |event| Waiting {
        predicate: Box::new(Predicate::Lifecycle(Box::new(LifecycleRecord {
            header: unsealed(),
            event,
        }))),
        _slot: evidence.reserve_always(),
        done: None,
        sealed: None,
    };
    if begins {
        let why = if first.is_empty() {
            "first record of this host".to_owned()
        } else {
            first.join("; ")
        };
        group.push(lifecycle(Lifecycle::Begun { why, key: key_pem }));
    }
    if let Some(cut) = cut {
        tracing::warn!(path = %cut.path.display(), bytes = cut.bytes, "the spool's last frame was torn and was cut off");
        group.push(lifecycle(Lifecycle::Recovered { cut_bytes: cut.bytes }));
    }
    if !group.is_empty() {
        writer.store(&mut group).map_err(EvidenceError::First)?;
    }
    std::thread::Builder::new()
        .name("evidence".to_owned())
        .spawn(move || writer.run(&jobs))
        .map_err(EvidenceError::Thread)?;
    Ok(evidence)
}

/// Reads, raises and stores the number of the epoch, so that none is ever used twice.
fn next_epoch(path: &Path) -> Result<u64, EvidenceError> {
    let wrong = |why: String| EvidenceError::Epoch {
        path: path.to_owned(),
        why,
    };
    let before = match std::fs::read_to_string(path) {
        Ok(text) => text.trim().parse::<u64>().map_err(|e| wrong(e.to_string()))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(error) => return Err(wrong(error.to_string())),
    };
    let epoch = before
        .checked_add(1)
        .ok_or_else(|| wrong("the epochs are used up".to_owned()))?;
    files::replace(path, format!("{epoch}\n").as_bytes(), 0o600).map_err(|e| wrong(e.to_string()))?;
    Ok(epoch)
}

/// The header of an envelope that we signed ourselves.
fn header_of(envelope: &[u8], key: &SigningKey) -> Result<Header, String> {
    let public = key.public();
    let verified = dsse::parse(envelope)
        .and_then(|u| u.verify(&public))
        .map_err(|e| e.to_string())?;
    let statement = Statement::from_payload(&verified.payload).map_err(|e| e.to_string())?;
    statement
        .header()
        .cloned()
        .ok_or_else(|| "it has no place in a chain".to_owned())
}

/// Where a test can end the agent: with this record signed and written but not durable, and durable before anybody knows.
const fn points(predicate: &Predicate) -> Option<(&'static str, &'static str)> {
    match predicate {
        Predicate::Request(_) => Some(("request-not-on-disk", "request-on-disk")),
        Predicate::Decision(_) => Some(("decision-not-on-disk", "decision-on-disk")),
        Predicate::Enforcement(_) => Some(("enforcement-not-on-disk", "enforcement-on-disk")),
        _ => None,
    }
}

fn set_header(predicate: &mut Predicate, header: Header) {
    match predicate {
        Predicate::Request(record) => record.header = header,
        Predicate::Decision(record) => record.header = header,
        Predicate::Enforcement(record) => record.header = header,
        Predicate::Lifecycle(record) => record.header = header,
        // People's answer has no header, it only ever travels inside a decision record; changes are the console's.
        Predicate::SignedDecision(_) | Predicate::Change(_) => {}
    }
}

impl Writer {
    fn run(mut self, jobs: &mpsc::Receiver<Job>) {
        let mut group: Vec<Waiting> = Vec::new();
        let mut acknowledged: Option<u64> = None;
        let mut stop: Option<mpsc::Sender<()>> = None;
        loop {
            let Ok(job) = jobs.recv() else { return };
            let mut until = Instant::now() + GROUP;
            let mut next = Some(job);
            while let Some(job) = next {
                match job {
                    Job::Write {
                        predicate,
                        slot,
                        done,
                        urgent,
                    } => {
                        if urgent {
                            // Somebody waits: take what is there already and sync.
                            until = Instant::now();
                        }
                        group.push(Waiting {
                            predicate,
                            _slot: slot,
                            done,
                            sealed: None,
                        });
                    }
                    Job::Acknowledge { through } => acknowledged = Some(through.max(acknowledged.unwrap_or(0))),
                    Job::Stop { done } => {
                        until = Instant::now();
                        stop = Some(done);
                    }
                }
                next = if group.len() >= GROUP_RECORDS || stop.is_some() {
                    None
                } else if group.is_empty() {
                    // Nothing to write: an acknowledgement does not wait.
                    jobs.try_recv().ok()
                } else {
                    jobs.recv_timeout(until.saturating_duration_since(Instant::now())).ok()
                };
            }
            let lost = self.shared.unrecorded.swap(0, Ordering::AcqRel);
            if lost > 0 {
                self.shared.queued.fetch_add(1, Ordering::AcqRel);
                let event = Lifecycle::EventsLost { count: lost };
                group.push(Waiting {
                    predicate: Box::new(Predicate::Lifecycle(Box::new(LifecycleRecord {
                        header: unsealed(),
                        event,
                    }))),
                    _slot: Slot {
                        shared: Arc::clone(&self.shared),
                    },
                    done: None,
                    sealed: None,
                });
            }
            while let Err(error) = self.store(&mut group) {
                if !self.shared.failing.swap(true, Ordering::AcqRel) {
                    tracing::error!(
                        error,
                        waiting = group.len(),
                        "evidence cannot be written: everything is denied until it can"
                    );
                }
                if stop.is_some() {
                    break;
                }
                std::thread::sleep(RETRY);
            }
            if self.shared.failing.swap(false, Ordering::AcqRel) {
                tracing::info!("evidence is written again");
            }
            if let Some(through) = acknowledged.take() {
                self.acknowledge(through);
            }
            if let Some(done) = stop {
                drop(self.spool.take());
                let _ = done.send(());
                return;
            }
        }
    }

    /// Makes the whole group durable, then calls every `done`. On an error the group stays for another try.
    fn store(&mut self, group: &mut Vec<Waiting>) -> Result<(), String> {
        if group.is_empty() {
            return Ok(());
        }
        self.ensure_open(group)?;
        let spool = self.spool.as_mut().ok_or("the spool is closed")?;
        let mut too_large = Vec::new();
        for (n, waiting) in group.iter_mut().enumerate() {
            if waiting.sealed.is_some() {
                continue;
            }
            let before = self.chain.clone();
            let sealed = match self.chain.seal(&self.key, self.stamper.now(), |header| {
                let mut predicate = (*waiting.predicate).clone();
                set_header(&mut predicate, header);
                predicate
            }) {
                Ok(sealed) => sealed,
                Err(SealError::Dsse(error @ dsse::DsseError::TooLarge(_))) => {
                    // Makers of records cut them to size, so this is a fault of ours; it must not stop all others.
                    tracing::error!(%error, "a record is too large and was not written");
                    too_large.push(n);
                    continue;
                }
                Err(error) => return Err(error.to_string()),
            };
            if let Err(error) = spool.append(&sealed.envelope) {
                self.chain = before;
                if matches!(error, SpoolError::Broken) {
                    self.spool = None;
                }
                return Err(error.to_string());
            }
            waiting.sealed = Some(sealed);
            if let Some((before, _)) = points(&waiting.predicate) {
                crash::point(before);
            }
        }
        let position = match spool.sync() {
            Ok(position) => position,
            Err(error) => {
                self.spool = None;
                return Err(error.to_string());
            }
        };
        for n in too_large.into_iter().rev() {
            group.remove(n);
            self.shared.unrecorded.fetch_add(1, Ordering::AcqRel);
        }
        self.durable.send_replace(position);
        for waiting in group.drain(..) {
            if let Some((_, after)) = points(&waiting.predicate) {
                crash::point(after);
            }
            if let (Some(done), Some(sealed)) = (waiting.done, waiting.sealed) {
                done(sealed);
            }
        }
        Ok(())
    }

    /// Opens the spool again after a failure and finds out which records of the group reached the disk.
    fn ensure_open(&mut self, group: &mut [Waiting]) -> Result<(), String> {
        if self.spool.is_some() {
            return Ok(());
        }
        let Opened { spool, last, .. } = Spool::open(&self.directory, self.options).map_err(|e| e.to_string())?;
        let last = last.ok_or("the spool is empty after it was opened again")?;
        let header = header_of(&last, &self.key)?;
        self.chain = Chain::resume(&header, &last);
        for waiting in group {
            if waiting
                .sealed
                .as_ref()
                .is_some_and(|sealed| sealed.header.sequence > header.sequence)
            {
                waiting.sealed = None;
            }
        }
        self.spool = Some(spool);
        Ok(())
    }

    fn acknowledge(&mut self, through: u64) {
        let Some(spool) = self.spool.as_mut() else { return };
        if let Err(error) = spool.acknowledge(through) {
            tracing::warn!(%error, "shipped evidence cannot be deleted");
        }
        // Lost in a crash it only means that records are sent again.
        if let Err(error) = std::fs::write(&self.acknowledged_file, format!("{through}\n")) {
            tracing::warn!(%error, path = %self.acknowledged_file.display(), "cannot be written");
        }
    }
}
