//! The kernel side of the agent: loads the BPF programs, reads their events, holds threads.
//!
//! Given a configuration and, from then on, messages of [`api`]. It must never decide anything: a thread goes on only
//! because a verdict was sent, and whatever cannot be asked, read or compared does not go on.

mod allowed;
pub mod api;
mod btf;
mod build;
mod cgroups;
pub mod crash;
mod doctor;
mod file_key;
mod files;
mod hold;
mod load;
mod maps;
mod offsets;
mod pinned;
mod protect;
mod retire;
mod ring;
mod rules;
mod single;
mod sys;
mod told;
mod usage;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use guard_common::{Config, Offsets, away, writes};
use rand::RngCore as _;
use rand::rngs::OsRng;

pub use self::allowed::Allowed;
pub use self::doctor::{DoctorFinding, FindingState, doctor};
pub use self::files::free;
pub use self::load::KernelError;
pub use self::protect::Protect;
pub use self::ring::fuzz_decode;
pub use self::rules::{RuleError, Rules, Uses};
pub use self::usage::{LabelNumbers, Usage, usage};
use api::{AtOnce, FromKernel, ToKernel};
use sys::Waker;

/// What happens to a labelled action while no agent can answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Away {
    /// Stopped by SIGSTOP until an agent is back.
    #[default]
    Park,
    /// Fails with EPERM.
    Deny,
    /// Goes on, counted.
    Allow,
}

/// Whether changes of files are asked about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Writes {
    /// Outside the label's free space.
    Ask,
    /// Nobody is asked; what is protected stays so.
    #[default]
    Free,
}

/// What holds for one label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelSettings {
    pub away: Away,
    /// Actions that may wait at a time; more are refused with EPERM.
    pub pending: u32,
    /// Threads of one process that may loop at a time; more are parked at once.
    pub looping: u32,
    /// Processes and threads that may carry the label; further forks fail with EAGAIN.
    pub tasks: u32,
    /// Sockets that may be known of it; further ones are refused with EPERM.
    pub sockets: u32,
    /// What is not refused to it.
    pub allow: Allowed,
    pub writes: Writes,
}

impl Default for LabelSettings {
    fn default() -> Self {
        let raw = guard_common::LabelSettings::DEFAULT;
        Self {
            away: Away::default(),
            pending: raw.pending,
            looping: raw.looping,
            tasks: raw.tasks,
            sockets: raw.sockets,
            allow: Allowed::default(),
            writes: Writes::default(),
        }
    }
}

impl LabelSettings {
    pub(crate) fn raw(self) -> guard_common::LabelSettings {
        guard_common::LabelSettings {
            away: match self.away {
                Away::Park => away::PARK,
                Away::Deny => away::DENY,
                Away::Allow => away::ALLOW,
            },
            pending: self.pending,
            looping: self.looping,
            tasks: self.tasks,
            sockets: self.sockets,
            allow: self.allow.raw(),
            writes: match self.writes {
                Writes::Ask => writes::ASKED,
                Writes::Free => writes::FREE,
            },
        }
    }
}

/// How the kernel side is run.
#[derive(Debug, Clone)]
pub struct KernelConfig {
    /// Where programs, links and maps are pinned; on the BPF file system.
    pub pin_directory: PathBuf,
    /// A question that is neither answered nor held by then is parked.
    pub park_after: Duration,
    /// Without a sign of life for so long, the agent counts as away.
    pub away_after: Duration,
    /// For every label without settings of its own, as the next five.
    pub away: Away,
    /// As in [`LabelSettings`].
    pub pending: u32,
    pub looping: u32,
    pub tasks: u32,
    pub sockets: u32,
    pub writes: Writes,
    /// Some label is asked about changes of files: the programs for it are loaded. Where the kernel cannot have them, the start fails.
    pub files: bool,
}

impl Default for KernelConfig {
    fn default() -> Self {
        Self {
            pin_directory: PathBuf::from("/sys/fs/bpf/guard"),
            park_after: Duration::from_millis(500),
            away_after: Duration::from_secs(3),
            away: Away::Park,
            pending: LabelSettings::default().pending,
            looping: LabelSettings::default().looping,
            tasks: LabelSettings::default().tasks,
            sockets: LabelSettings::default().sockets,
            writes: Writes::default(),
            files: false,
        }
    }
}

/// What was found and done at start.
#[derive(Debug, Clone)]
pub struct KernelFacts {
    /// `uname -r`.
    pub release: String,
    /// `program (target)`, in order of attaching.
    pub programs: Vec<String>,
    /// Optional targets that this kernel does not have.
    pub absent: Vec<String>,
    pub offsets: Offsets,
    /// Nanoseconds since boot of the first attachment; an agent that takes over keeps it.
    pub enforcing_since_ns: u64,
    /// When the agent before this one last showed that it lived, nanoseconds since boot; `None`: none was there, or it stopped in
    /// order.
    pub last_beat_ns: Option<u64>,
    /// All programs of an earlier agent were in force until these were: enforcement stayed on.
    pub took_over: bool,
    /// They are the programs of this build, and were left as they are.
    pub kept: bool,
    /// Questions that an earlier agent left, asked again.
    pub taken_over_questions: usize,
}

/// The way to the holder. Cheap to clone; never blocks.
#[derive(Debug, Clone)]
pub struct KernelHandle {
    sender: mpsc::Sender<ToKernel>,
    waker: Option<Arc<Waker>>,
    protect: Option<Arc<Protect>>,
    rules: Option<Arc<Rules>>,
}

impl KernelHandle {
    /// Queues a message; it is dropped if the kernel side has stopped.
    pub fn send(&self, message: ToKernel) {
        if self.sender.send(message).is_ok()
            && let Some(waker) = &self.waker
        {
            waker.wake();
        }
    }

    /// What labelled tasks never reach; `None` without a kernel.
    #[must_use]
    pub fn protect(&self) -> Option<Arc<Protect>> {
        self.protect.clone()
    }

    /// The exact rules; `None` without a kernel.
    #[must_use]
    pub fn rules(&self) -> Option<Arc<Rules>> {
        self.rules.clone()
    }

    /// A handle whose messages arrive at the returned receiver, without a kernel.
    #[must_use]
    pub fn pair_for_tests() -> (Self, mpsc::Receiver<ToKernel>) {
        let (sender, receiver) = mpsc::channel();
        let handle = Self {
            sender,
            waker: None,
            protect: None,
            rules: None,
        };
        (handle, receiver)
    }
}

/// Loads and attaches the programs, takes over what an earlier agent left, starts the holder.
///
/// The returned receiver is unbounded because the holder must not wait; its length is bounded by the kernel's table of
/// questions. `at_once` answers on the holder's thread what it knows.
pub fn start(
    config: &KernelConfig,
    at_once: Option<Arc<dyn AtOnce>>,
) -> Result<
    (
        KernelHandle,
        tokio::sync::mpsc::UnboundedReceiver<FromKernel>,
        KernelFacts,
    ),
    KernelError,
> {
    let mut prepared = load::prepare(&config.pin_directory, config.files)?;
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 4);
    let now = sys::boot_ns();
    let before = prepared.maps.config.get(&0, 0)?;
    let others: Vec<retire::Before> = prepared.others.iter().map(retire::Other::before).collect();
    let since = others
        .iter()
        .map(|other| other.enforcing_since_ns)
        .chain([before.enforcing_since_ns]);
    let settings = Config {
        epoch: now,
        park_after_ns: nanoseconds(config.park_after),
        heartbeat_limit_ns: nanoseconds(config.away_after),
        enforcing_since_ns: since
            .filter(|since| *since != 0 && prepared.enforced)
            .min()
            .unwrap_or(now),
        agent_tgid: std::process::id(),
        reserved: 0,
        name_key: [OsRng.next_u64(), OsRng.next_u64()],
    };
    prepared.maps.config.set(0, settings, 0)?;
    let beats = others.iter().map(|other| other.last_beat_ns);
    let last_beat_ns = beats
        .chain(prepared.maps.heartbeat.get(&0, 0).ok())
        .max()
        .filter(|beat| *beat > 0);
    prepared.maps.heartbeat.set(0, now, 0)?;
    let defaults = LabelSettings {
        away: config.away,
        pending: config.pending,
        looping: config.looping,
        tasks: config.tasks,
        sockets: config.sockets,
        allow: Allowed::default(),
        writes: config.writes,
    };
    cgroups::take_over(&mut prepared.maps, defaults.raw());
    for other in &prepared.others {
        other.name_agent();
    }
    let mut loaded = prepared.attach()?;
    retire::carry_over_all(&mut loaded);

    let protect = Arc::clone(&loaded.protect);
    let rules = Arc::clone(&loaded.rules);
    let mut facts = KernelFacts {
        release: std::fs::read_to_string("/proc/sys/kernel/osrelease")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        programs: loaded.programs.clone(),
        absent: loaded.absent.clone(),
        offsets: loaded.offsets,
        enforcing_since_ns: settings.enforcing_since_ns,
        last_beat_ns,
        took_over: loaded.took_over,
        kept: loaded.kept,
        taken_over_questions: 0,
    };
    let (sender, commands) = mpsc::channel();
    let waker = Arc::new(Waker::new().map_err(KernelError::Holder)?);
    let (events, receiver) = tokio::sync::mpsc::unbounded_channel();
    facts.taken_over_questions =
        hold::start(loaded, settings, commands, Arc::clone(&waker), events, at_once).map_err(KernelError::Holder)?;
    Ok((
        KernelHandle {
            sender,
            waker: Some(waker),
            protect: Some(protect),
            rules: Some(rules),
        },
        receiver,
        facts,
    ))
}

/// Ends enforcement on this machine: removes the pinned programs and maps. Called when Guard is uninstalled.
pub fn remove(config: &KernelConfig) -> std::io::Result<()> {
    load::remove(&config.pin_directory)
}

/// Numbers for [`api::ActionId::sequence`].
fn next_sequence() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
