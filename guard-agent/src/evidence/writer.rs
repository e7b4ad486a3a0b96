//! The thread that owns chain and spool.
//!
//! Owns sealing, appending and syncing in groups. It is given jobs in order. It must never call `done` before the record
//! is durable, and after a failure it repeats the same records until the disk takes them.

use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use guard_evidence::chain::{Chain, SealError, Sealed};
use guard_evidence::dsse;
use guard_evidence::key::{Algorithm, PublicKey, SigningKey};
use guard_evidence::record::{Header, Lifecycle, LifecycleRecord, Predicate, Statement};
use guard_evidence::spool::{self, Opened, Options, Spool, SpoolError};
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use super::keys::Keys;
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
    keys: Keys,
    chain: Chain,
    spool: Option<Spool>,
    directory: PathBuf,
    epoch_file: PathBuf,
    /// The next key is named by a record no later than this position.
    named: Option<u64>,
    ships: bool,
    acknowledged_file: PathBuf,
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
    let (spool_directory, epoch_file) = (config.spool(), config.epoch_file());
    let mut keys = Keys::open(&config.directory, config.key).map_err(EvidenceError::Key)?;
    let mut first = Vec::new();
    let opened = match Spool::open(&spool_directory, options) {
        Ok(opened) => Ok(opened),
        Err(error @ SpoolError::Damaged { .. }) => {
            tracing::error!(%error, "the spool is damaged: it is set aside and a new epoch begins");
            spool::set_aside(&spool_directory)?;
            first.push(format!("the spool was damaged and set aside: {error}"));
            Spool::open(&spool_directory, options)
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
        Some(envelope) => match in_force(&mut keys, &epoch_file, envelope)? {
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
    let acknowledged_file = spool_directory.join("acknowledged");
    let acknowledged = std::fs::read_to_string(&acknowledged_file)
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
        .unwrap_or(0)
        .min(spool.written());
    let begins = resumed.is_none();
    let chain = match resumed {
        Some(chain) => chain,
        None => Chain::begin(&signer, next_epoch(&epoch_file)?),
    };
    let shared = Arc::new(Shared::default());
    shared.acknowledged.store(acknowledged, Ordering::Release);
    let before = super::before::read(&spool, &keys.current().public())?;
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
    let key_pem = pem(keys.current()).map_err(EvidenceError::First)?;
    let mut writer = Writer {
        keys,
        chain,
        spool: Some(spool),
        directory: spool_directory,
        epoch_file,
        named: None,
        ships: config.ships,
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
        let after = None;
        group.push(lifecycle(Lifecycle::Begun {
            why,
            key: key_pem,
            after,
        }));
    }
    if let Some(cut) = cut {
        tracing::warn!(path = %cut.path.display(), bytes = cut.bytes, "the spool's last frame was torn and was cut off");
        group.push(lifecycle(Lifecycle::Recovered { cut_bytes: cut.bytes }));
    }
    // It was named before, perhaps; saying it again is harmless.
    let next = writer.keys.next().map(SigningKey::public);
    let named = next.is_some();
    if let Some(key) = next {
        group.push(lifecycle(Lifecycle::NextKey { key }));
    }
    if !group.is_empty() {
        writer.store(&mut group).map_err(EvidenceError::First)?;
    }
    writer.named = named.then(|| *writer.durable.borrow());
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

/// Stores the number of an epoch that began without [`next_epoch`].
fn raise_epoch(path: &Path, epoch: u64) -> Result<(), String> {
    files::replace(path, format!("{epoch}\n").as_bytes(), 0o600).map_err(|e| format!("{}: {e}", path.display()))
}

/// The header of the last record on disk, which says whose key is in force: if it is the next one's, that takes the old
/// one's place here. The inner error: the record is not readable.
fn in_force(keys: &mut Keys, epoch_file: &Path, last: &[u8]) -> Result<Result<Header, String>, EvidenceError> {
    if let Some(next) = keys.next()
        && let Ok(header) = header_of(last, &next.public())
    {
        raise_epoch(epoch_file, header.epoch)
            .and_then(|()| keys.replace())
            .map_err(EvidenceError::Key)?;
        return Ok(Ok(header));
    }
    Ok(header_of(last, &keys.current().public()))
}

fn pem(key: &SigningKey) -> Result<String, String> {
    key.public().to_pem().map_err(|e| e.to_string())
}

/// The header of an envelope that we signed ourselves.
fn header_of(envelope: &[u8], public: &PublicKey) -> Result<Header, String> {
    let verified = dsse::parse(envelope)
        .and_then(|u| u.verify(public))
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
            let mut naming = false;
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
                    Job::NextKey { algorithm, done } => {
                        until = Instant::now();
                        naming |= self.name_next(algorithm, done, &mut group);
                    }
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
            if naming && group.is_empty() {
                self.named = Some(*self.durable.borrow());
            }
            if let Some(through) = acknowledged.take() {
                self.acknowledge(through);
            }
            if group.is_empty() && self.may_replace() {
                match self.replace_key() {
                    Ok(()) => tracing::info!(key = self.keys.current().public().id(), "another key signs evidence"),
                    Err(error) => tracing::error!(error, "the evidence key is not replaced; trying again"),
                }
            }
            if let Some(done) = stop {
                drop(self.spool.take());
                let _ = done.send(());
                return;
            }
        }
    }

    /// Makes the next key and the record that names it. Whether there is one.
    fn name_next(
        &mut self,
        algorithm: Algorithm,
        done: oneshot::Sender<Result<String, String>>,
        group: &mut Vec<Waiting>,
    ) -> bool {
        let key = match self.keys.prepare(algorithm) {
            Ok(next) => next.public(),
            Err(error) => {
                let _ = done.send(Err(error));
                return false;
            }
        };
        self.shared.queued.fetch_add(1, Ordering::AcqRel);
        let id = key.id();
        group.push(Waiting {
            predicate: Box::new(Predicate::Lifecycle(Box::new(LifecycleRecord {
                header: unsealed(),
                event: Lifecycle::NextKey { key },
            }))),
            _slot: Slot {
                shared: Arc::clone(&self.shared),
            },
            done: Some(Box::new(move |_| {
                let _ = done.send(Ok(id));
            })),
            sealed: None,
        });
        true
    }

    /// The next key is named in a record that nobody can lose any more.
    fn may_replace(&self) -> bool {
        let held = self.shared.acknowledged.load(Ordering::Acquire);
        self.named.is_some_and(|position| !self.ships || position <= held)
    }

    /// Ends the epoch: from here on the next key signs. Nobody is told of its first record before it has the old key's
    /// place. What fails on the way closes the spool; opening it again tells which key is in force.
    fn replace_key(&mut self) -> Result<(), String> {
        self.ensure_open(&mut [])?;
        let (Some(next), Some(spool)) = (self.keys.next(), self.spool.as_mut()) else {
            // It took its place when the spool was opened again.
            self.named = None;
            return Ok(());
        };
        let mut chain = self.chain.next_epoch();
        let event = Lifecycle::Begun {
            why: "the key was replaced".to_owned(),
            key: pem(next)?,
            after: self.chain.end(),
        };
        let sealed = chain
            .seal(next, self.stamper.now(), |header| {
                Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }))
            })
            .map_err(|e| e.to_string())?;
        match spool.append(&sealed.envelope) {
            Ok(_) => {}
            // Nothing was written.
            Err(error @ SpoolError::Full { .. }) => return Err(error.to_string()),
            Err(error) => return Err(self.close(&error.to_string())),
        }
        let position = match spool.sync() {
            Ok(position) => position,
            Err(error) => return Err(self.close(&error.to_string())),
        };
        if let Err(error) = raise_epoch(&self.epoch_file, chain.epoch()).and_then(|()| self.keys.replace()) {
            return Err(self.close(&error));
        }
        self.chain = chain;
        self.named = None;
        self.durable.send_replace(position);
        Ok(())
    }

    fn close(&mut self, error: &str) -> String {
        self.spool = None;
        error.to_owned()
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
            let sealed = match self.chain.seal(self.keys.current(), self.stamper.now(), |header| {
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
        let header = in_force(&mut self.keys, &self.epoch_file, &last).map_err(|e| e.to_string())??;
        if self.keys.next().is_none() {
            self.named = None;
        }
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
