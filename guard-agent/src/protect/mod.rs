//! What labelled tasks never reach: found here, refused by the kernel side, recorded here.
//!
//! Owns the list of places, the thread that looks for them again and again, and the records of attempts. It is given the
//! configuration. It must never wait for a file system that somebody else runs, and never take a protection away because
//! something could not be looked at.

mod addresses;
mod changes;
mod free;
mod homes;
mod patience;
mod places;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guard_common::protect::{FileId, Protected, Refused, RefusedKey, flag, kind};
use guard_evidence::record::Lifecycle;
use guard_evidence::text::Text;

use self::addresses::Addresses;
pub use self::addresses::fuzz_addresses;
use self::changes::Changes;
pub use self::free::Free;
pub use self::homes::fuzz_homes;
use self::patience::{Patient, Place, Sort};
use crate::evidence::Evidence;
use crate::kernel::Protect;
use crate::kernel::api::LabelId;
use crate::labels::Labels;

/// How often everything is looked for again, heard of or not: what came into being, was replaced, or moved.
const LOOK: Duration = Duration::from_secs(5);
/// How often attempts are read.
const READ: Duration = Duration::from_secs(1);
/// Of the time, what looks at what was heard of may take in the long run: one part in so many. Whoever makes changes without
/// end does not make the agent look without end.
const SHARE: u32 = 5;
/// At most one record in this time for each label and kind of object.
const QUIET: Duration = Duration::from_secs(60);
/// Files in the kernel's table; beyond it the oldest are not forgotten, new ones are refused a place, loudly.
const FILES: usize = 16_000;

/// What the configuration says.
#[derive(Debug, Clone)]
pub struct Settings {
    /// agent.toml as it was given.
    pub config_file: PathBuf,
    pub policy_file: PathBuf,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub pin_directory: PathBuf,
    /// More of them; `~/` means every home.
    pub paths: Vec<PathBuf>,
    /// More of the console's addresses, `HOST:PORT`.
    pub addresses: Vec<String>,
    /// The console's address for hosts, if enrolled.
    pub console: Option<String>,
    /// Labels and the directories whose content they may change unasked.
    pub free: Vec<Free>,
}

/// A place and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct What {
    flags: u32,
    kind: u32,
}

const fn hidden(kind: u32) -> What {
    What {
        flags: flag::HIDE,
        kind,
    }
}

const fn kept(kind: u32) -> What {
    What {
        flags: flag::KEEP,
        kind,
    }
}

impl From<What> for Protected {
    fn from(what: What) -> Self {
        Self {
            flags: what.flags,
            kind: what.kind,
        }
    }
}

/// Why the start was stopped.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    #[error(
        "{} is Guard's own, is there, and cannot be protected from labelled workloads: {source}\n  → make it a directory or file that root can open, or remove it; nothing was labelled, what was in force stays so",
        path.display()
    )]
    Own { path: PathBuf, source: io::Error },
    #[error("the names that labelled workloads never reach cannot be protected: {0}")]
    Names(#[source] io::Error),
    #[error("the thread that protects cannot be started: {0}")]
    Thread(#[source] io::Error),
}

/// Protects everything that is there now, then goes on in a thread of its own.
///
/// # Errors
/// When the names, or what is at a place of Guard's own, cannot be protected.
pub fn start(kernel: Arc<Protect>, settings: Settings) -> Result<Running, ProtectError> {
    kernel
        .set_names(&places::names(&settings.paths))
        .map_err(|error| ProtectError::Names(io::Error::other(error)))?;
    let changes = match Changes::new() {
        Ok(changes) => Some(Arc::new(changes)),
        Err(error) => {
            tracing::warn!(%error, "changes are not heard of; everything is looked for every {LOOK:?} instead");
            None
        }
    };
    let below = places::in_homes(&settings.paths);
    let (theirs, heard) = (Arc::clone(&kernel), changes.clone());
    let look_at = move |place: &Place| homes::look_at(&theirs, place, &below, heard.as_deref());
    let mut look = Look {
        patient: Patient::new(Arc::new(look_at)),
        addresses: Addresses::new(&settings),
        changes,
        kernel,
        settings,
        files: HashMap::new(),
        full: false,
        unprotected: HashSet::new(),
    };
    look.hear_of_all();
    let failed = look.files(true);
    look.addresses();
    let mut unprotected = Vec::new();
    for (place, source) in failed {
        match place.sort {
            Sort::Own(_) => {
                return Err(ProtectError::Own {
                    path: place.path,
                    source,
                });
            }
            Sort::Configured(_) | Sort::Home => unprotected.push((place, source)),
        }
    }
    Ok(Running { look, unprotected })
}

/// What was protected at the start; goes on looking when it is told whom to tell.
#[derive(Debug)]
pub struct Running {
    look: Look,
    /// What could not be protected at the start, and nobody was told yet.
    unprotected: Vec<(Place, io::Error)>,
}

impl Running {
    /// Looks for everything again.
    pub fn look(&mut self) {
        self.unprotected = self.look.files(false);
        self.look.addresses();
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn go_on(mut self, labels: Labels, evidence: Evidence) -> Result<(), ProtectError> {
        let work = move || {
            let mut told = Told::default();
            let mut space = free::Space::new(&self.look.settings.free);
            space.look(&self.look.kernel, &labels);
            let (mut looked, mut read) = (Instant::now(), Instant::now());
            let mut debt = Debt::default();
            loop {
                let heard = self.look.wait(READ);
                if heard {
                    thread::sleep(debt.due(Instant::now()));
                }
                if heard || looked.elapsed() >= LOOK {
                    let began = Instant::now();
                    self.look();
                    space.look(&self.look.kernel, &labels);
                    looked = Instant::now();
                    if heard {
                        debt.add(looked, looked - began);
                    }
                }
                for (place, because) in std::mem::take(&mut self.unprotected) {
                    self.look.tell(&place, &because, &evidence);
                }
                if read.elapsed() >= READ {
                    told.tell(&self.look.kernel, &labels, &evidence);
                    read = Instant::now();
                }
            }
        };
        let thread = thread::Builder::new().name("protect".into());
        thread.spawn(work).map_err(ProtectError::Thread)?;
        Ok(())
    }
}

/// Time that looks have taken beyond their share; short of the time between two looks it is lent.
#[derive(Debug, Default)]
struct Debt {
    until: Option<Instant>,
}

impl Debt {
    fn add(&mut self, now: Instant, took: Duration) {
        let from = self.until.map_or(now, |until| until.max(now));
        self.until = Some(from + took.saturating_mul(SHARE));
    }

    /// How long to wait before the next look.
    fn due(&self, now: Instant) -> Duration {
        let owed = self
            .until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        owed.saturating_sub(LOOK)
    }
}

#[derive(Debug)]
struct Look {
    kernel: Arc<Protect>,
    settings: Settings,
    patient: Patient,
    addresses: Addresses,
    changes: Option<Arc<Changes>>,
    /// Everything that was found since the start. What is found no more, because it was moved or replaced, stays
    /// protected: it is still what it was.
    files: HashMap<FileId, Protected>,
    full: bool,
    /// Places whose failure is told; until they can be looked at again.
    unprotected: HashSet<Place>,
}

impl Look {
    /// Changes of the user database, and every new home in the usual place.
    fn hear_of_all(&self) {
        let Some(changes) = &self.changes else { return };
        for (directory, name) in [("/etc", Some("passwd")), (homes::HOMES_ROOT, None)] {
            let heard =
                File::open(directory).and_then(|directory| changes.of(directory.as_fd(), name.map(AsRef::as_ref)));
            match heard {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    tracing::warn!(directory, %error, "changes in it are not heard of");
                }
                _ => {}
            }
        }
    }

    /// Whether something changed; waits so long for it.
    fn wait(&self, patience: Duration) -> bool {
        match &self.changes {
            Some(changes) => changes.wait(patience),
            None => {
                thread::sleep(patience);
                false
            }
        }
    }

    /// The first time, what an earlier agent protected is forgotten when this one has found what is there. Gives what could
    /// not be looked at; it stays as protected as it was.
    fn files(&mut self, first: bool) -> Vec<(Place, io::Error)> {
        let mut places = places::fixed(&self.settings);
        places.extend(homes::list().into_iter().map(|path| Place { path, sort: Sort::Home }));
        let seen = self.patient.look(places, first);
        self.addresses.profiles(seen.found.consoles);
        for (id, what) in seen.found.files {
            if self.files.len() < FILES || self.files.contains_key(&id) {
                merge(&mut self.files, id, what);
            } else if !self.full {
                self.full = true;
                tracing::error!(limit = FILES, "too many files to protect; those that came last are not");
            }
        }
        // Nothing is forgotten that could not be looked at this time.
        let only_add = !first || !seen.failed.is_empty();
        if let Err(error) = self.kernel.set_files(&self.files, only_add) {
            tracing::error!(%error, "not every file could be protected");
        }
        self.unprotected
            .retain(|place| seen.failed.iter().any(|(failed, _)| failed == place));
        seen.failed
    }

    /// Says once what cannot be protected: Guard's own and what the configuration names in a record, homes in the log alone,
    /// because whoever owns one can make it so.
    fn tell(&mut self, place: &Place, because: &io::Error, evidence: &Evidence) {
        if !self.unprotected.insert(place.clone()) {
            return;
        }
        let path = place.path.as_path();
        if place.sort == Sort::Home {
            tracing::warn!(home = %path.display(), %because, "a home directory cannot be looked at; it is protected by name alone until it can");
            return;
        }
        tracing::error!(path = %path.display(), %because, "cannot be looked at; what was protected there stays so, what is there now may not be");
        evidence.lifecycle(unprotected(path, because));
    }

    fn addresses(&mut self) {
        if let Some(wanted) = self.addresses.look()
            && let Err(error) = self.kernel.set_addresses(&wanted)
        {
            tracing::error!(%error, "not every address of the console could be protected");
        }
    }
}

fn unprotected(path: &Path, because: &io::Error) -> Lifecycle {
    use std::os::unix::ffi::OsStrExt as _;
    Lifecycle::Unprotected {
        path: Text::from(path.as_os_str().as_bytes().to_vec()),
        because: because.to_string(),
    }
}

/// A place may be several things, for instance a home that is protected as a whole.
fn merge(files: &mut HashMap<FileId, Protected>, id: FileId, what: Protected) {
    let entry = files.entry(id).or_insert(what);
    let stronger = what.flags & flag::HIDE != 0 && entry.flags & flag::HIDE == 0;
    entry.flags |= what.flags;
    if stronger || entry.kind == 0 {
        entry.kind = what.kind;
    }
}

/// When the last record of each was made.
#[derive(Debug, Default)]
struct Told {
    last: HashMap<RefusedKey, Instant>,
}

impl Told {
    fn tell(&mut self, kernel: &Protect, labels: &Labels, evidence: &Evidence) {
        for (key, count, refused) in kernel.unreported() {
            if self.last.get(&key).is_some_and(|last| last.elapsed() < QUIET) {
                continue;
            }
            // First: rather a record too few after a crash in between than the same attempts in every record.
            if let Err(error) = kernel.reported(key, refused.count) {
                tracing::error!(%error, "attempts cannot be marked as recorded");
                continue;
            }
            self.last.insert(key, Instant::now());
            let label = labels
                .name(LabelId(key.label))
                .unwrap_or_else(|| format!("label {}", key.label));
            let event = record(label, key.kind, count, &refused);
            tracing::warn!(
                label = labels.name(LabelId(key.label)),
                object = object(key.kind),
                count,
                pid = refused.tgid,
                uid = refused.uid,
                "refused: a labelled process tried to reach what no decision opens"
            );
            evidence.lifecycle(event);
        }
    }
}

fn record(label: String, kind: u32, count: u64, refused: &Refused) -> Lifecycle {
    let comm = refused.comm.split(|byte| *byte == 0).next().unwrap_or_default();
    Lifecycle::TheftRefused {
        label,
        object: object(kind).to_owned(),
        count,
        pid: refused.tgid,
        uid: refused.uid,
        comm: comm.to_vec().into(),
    }
}

/// For people.
pub(crate) fn object(what: u32) -> &'static str {
    match what {
        kind::SIGN_IN => "sign-in",
        kind::BROWSER => "browser profile",
        kind::AGENT => "agent's files",
        kind::CONSOLE => "console's files",
        kind::PROGRAM => "Guard's programs",
        kind::CONFIGURED => "protected path",
        kind::ADDRESS => "console's address",
        kind::PROCESS => "process outside",
        kind::PROCESS_READ => "process outside (look)",
        kind::SIGNAL => "signal to Guard",
        kind::BPF => "bpf",
        kind::ROUTE => "another way for packets",
        kind::SHARED => "exec with a shared directory",
        kind::DUMP => "core dump",
        kind::QUEUE => "message queue",
        kind::MAPPING => "writable mapping from before",
        kind::MADE => "file that nobody was asked about",
        kind::SOCKET => "raw or unusual socket",
        kind::DEVICE => "raw device",
        kind::TERMINAL => "somebody's terminal",
        kind::NAMELESS => "file without a name",
        kind::CGROUP => "way out of its cgroup",
        kind::LOG => "log sockets' names",
        kind::MOUNT => "mount",
        kind::NAMESPACE => "namespace",
        kind::GAIN => "more privileges",
        kind::CHROOT => "another root directory",
        kind::MODULE => "kernel module",
        kind::MACHINE => "the machine as a whole",
        kind::NETWORK => "network set-up",
        kind::DEVICE_NODE => "device node",
        kind::PERF => "performance counters",
        kind::KEYS => "keyrings",
        kind::URING => "io_uring",
        kind::FAULTS => "userfaultfd",
        kind::TUNABLE => "kernel setting",
        kind::SIGNAL_OUT => "signal to a process outside",
        kind::LATER => "cron, at and units",
        kind::STRAY => "packet that nobody allowed",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_follow_changes_at_once_until_they_take_more_than_their_share() {
        let (start, took) = (Instant::now(), Duration::from_millis(500));
        let mut debt = Debt::default();
        let (mut now, mut busy) = (start, Duration::ZERO);
        for look in 0..100 {
            let pause = debt.due(now);
            assert!(look > 2 || pause.is_zero(), "a single change waits");
            now += pause + took;
            busy += took;
            debt.add(now, took);
        }
        let all = now - start;
        assert!(
            busy * SHARE <= all + LOOK * 2 && all <= busy * (SHARE + 1),
            "{busy:?} of {all:?}"
        );
        assert_eq!(debt.due(now + LOOK), Duration::ZERO, "forgotten");
    }

    #[test]
    fn the_stronger_protection_names_the_kind() {
        let mut files = HashMap::new();
        let id = FileId::default();
        merge(
            &mut files,
            id,
            What {
                flags: flag::HOME,
                kind: kind::SIGN_IN,
            }
            .into(),
        );
        merge(&mut files, id, hidden(kind::CONFIGURED).into());
        merge(&mut files, id, kept(kind::PROGRAM).into());
        let all = files[&id];
        assert_eq!(all.flags, flag::HOME | flag::HIDE | flag::KEEP);
        assert_eq!(all.kind, kind::CONFIGURED);
    }

    #[test]
    fn a_record_carries_the_last_attempt_and_no_byte_after_its_name() {
        let mut comm = [0; 16];
        comm[..8].copy_from_slice(b"cat\0junk");
        let refused = Refused {
            count: 9,
            tgid: 812,
            uid: 1000,
            comm,
        };
        let Lifecycle::TheftRefused {
            label,
            object,
            count,
            pid,
            uid,
            comm,
        } = record("coder".to_owned(), kind::SIGN_IN, 3, &refused)
        else {
            panic!("another record")
        };
        assert_eq!(
            (label.as_str(), object.as_str(), count, pid, uid),
            ("coder", "sign-in", 3, 812, 1000)
        );
        assert_eq!(comm.as_bytes(), b"cat");
    }
}
