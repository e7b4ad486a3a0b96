//! What labelled tasks never reach: found here, refused by the kernel side, recorded here.
//!
//! Owns the list of places, the thread that looks for them again and again, and the records of attempts. It is given the
//! configuration. It must never wait for a file system that somebody else runs, and never take a protection away because
//! something could not be looked at.

mod addresses;
mod homes;
mod places;

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use guard_common::protect::{FileId, Protected, Refused, RefusedKey, flag, kind};
use guard_evidence::record::Lifecycle;

use self::addresses::Addresses;
pub use self::addresses::fuzz_addresses;
use self::homes::Homes;
pub use self::homes::fuzz_homes;
use crate::evidence::Evidence;
use crate::kernel::Protect;
use crate::kernel::api::LabelId;
use crate::labels::Labels;

/// How often everything is looked for again: what came into being, was replaced, or moved.
const LOOK: Duration = Duration::from_secs(5);
/// How often attempts are read.
const READ: Duration = Duration::from_secs(1);
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
}

/// A place and what it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Protects everything that is there now, then goes on in a thread of its own.
///
/// # Errors
/// When the thread cannot be started, or the names cannot be protected.
pub fn start(kernel: Arc<Protect>, settings: Settings) -> io::Result<Running> {
    kernel
        .set_names(&places::names(&settings.paths))
        .map_err(io::Error::other)?;
    let mut look = Look {
        homes: Homes::new(Arc::clone(&kernel), &settings.paths),
        addresses: Addresses::new(&settings),
        kernel,
        settings,
        files: HashMap::new(),
        full: false,
    };
    look.files(false);
    look.addresses();
    Ok(Running { look })
}

/// What was protected at the start; goes on looking when it is told whom to tell.
#[derive(Debug)]
pub struct Running {
    look: Look,
}

impl Running {
    /// Looks for everything again.
    pub fn look(&mut self) {
        self.look.files(true);
        self.look.addresses();
    }

    /// Starts the thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn go_on(mut self, labels: Labels, evidence: Evidence) -> io::Result<()> {
        thread::Builder::new().name("protect".into()).spawn(move || {
            let mut told = Told::default();
            let mut looked = Instant::now();
            loop {
                thread::sleep(READ);
                told.tell(&self.look.kernel, &labels, &evidence);
                if looked.elapsed() >= LOOK {
                    self.look();
                    looked = Instant::now();
                }
            }
        })?;
        Ok(())
    }
}

#[derive(Debug)]
struct Look {
    kernel: Arc<Protect>,
    settings: Settings,
    homes: Homes,
    addresses: Addresses,
    /// Everything that was found since the start. What is found no more, because it was moved or replaced, stays
    /// protected: it is still what it was.
    files: HashMap<FileId, Protected>,
    full: bool,
}

impl Look {
    /// The first time, what an earlier agent protected is forgotten when this one has found what is there.
    fn files(&mut self, only_add: bool) {
        let mut found = Vec::new();
        for (path, what) in places::fixed(&self.settings) {
            match homes::identify_path(&self.kernel, &path) {
                Ok(Some(id)) => found.push((id, what.into())),
                Ok(None) => {}
                Err(error) => tracing::warn!(path = %path.display(), %error, "not protected by itself"),
            }
        }
        let (in_homes, urls) = self.homes.look();
        found.extend(in_homes);
        self.addresses.profiles(urls);
        for (id, what) in found {
            if self.files.len() < FILES || self.files.contains_key(&id) {
                merge(&mut self.files, id, what);
            } else if !self.full {
                self.full = true;
                tracing::error!(limit = FILES, "too many files to protect; those that came last are not");
            }
        }
        if let Err(error) = self.kernel.set_files(&self.files, only_add) {
            tracing::error!(%error, "not every file could be protected");
        }
    }

    fn addresses(&mut self) {
        if let Some(wanted) = self.addresses.look()
            && let Err(error) = self.kernel.set_addresses(&wanted)
        {
            tracing::error!(%error, "not every address of the console could be protected");
        }
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
        kind::DEVICE => "raw device",
        kind::TERMINAL => "somebody's terminal",
        kind::NAMELESS => "file without a name",
        kind::CGROUP => "way out of its cgroup",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
