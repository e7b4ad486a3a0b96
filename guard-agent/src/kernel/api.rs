//! What the kernel side and the rest of the agent say to each other.
//!
//! Owns the vocabulary between `kernel` (load, ring, maps, holder) and everything above it. It is given nothing and
//! does nothing: plain types, so that policy, approval and enforcement are tested without a kernel. It must never carry
//! a map, a file descriptor that the holder depends on, or anything that blocks.
//!
//! One action's life, as messages:
//!
//! ```text
//! Passed                                     decided so before: said when it is over
//! Asked ──▶ Release                          the kernel key alone decides (microseconds, nobody is traced)
//!      └──▶ Hold ──▶ Held ──▶ Release        argv, environment or a person decide
//!                       └───▶ Withdrawn      the thread died, or its restarted syscall asks for something else
//! Release ──▶ Enforced                       what the kernel really did; exactly one per released action
//! ```

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

pub use super::file_key::FileKey;
pub use super::told::{Change, ChangeOp, LabelId, OldFile, ReachHow, Reply};
use crate::enforce::Pass;

/// One question of the kernel. `sequence` never repeats while the agent runs, so an answer that comes too late names
/// nothing that exists and is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ActionId {
    /// Thread id in the initial PID namespace.
    pub tid: u32,
    /// The thread's start time, nanoseconds since boot: tells a reused tid apart.
    pub start_ns: u64,
    /// Set by the agent when it first sees the question.
    pub sequence: u64,
}

/// A thread reached a gated hook and no verdict, rule or label answered for it. It spins in its own syscall.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: ActionId,
    pub label: LabelId,
    /// Process id in the initial PID namespace.
    pub tgid: u32,
    /// Parent's process id in the initial PID namespace.
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    /// `None` when nobody logged in (the kernel's 4294967295).
    pub login_uid: Option<u32>,
    /// The cgroup the thread is in now: its kernfs id, which is the inode number of its directory.
    pub cgroup: u64,
    /// `task.comm`: written by the workload, up to 15 bytes, any bytes.
    pub comm: Vec<u8>,
    /// Kernel monotonic time of the first round, nanoseconds since boot.
    pub at_ns: u64,
    pub what: AskedAction,
    /// Names the socket and its peer; `None` for what is not done over a socket.
    pub connection: Option<guard_common::ActionKey>,
    /// What an exact rule of the answer would name; `None`: there can be none.
    pub rule: Option<guard_common::rules::RuleKey>,
}

/// The action as the kernel key describes it.
#[derive(Debug, Clone)]
pub enum AskedAction {
    Exec(AskedExec),
    Reach(AskedReach),
    /// On the heap: it has most to say.
    Change(Box<AskedChange>),
}

/// Changing a file or a name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AskedChange {
    /// Of the file; of a name that is made, moved or taken away that of its directory.
    pub file: FileKey,
    /// Its paths are `None` also in another mount namespace than the host's: then no allow rule by path may match.
    pub change: Change,
}

/// Reaching somebody over a socket.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AskedReach {
    pub peer: Peer,
    pub how: ReachHow,
    /// Of the socket: AF_*, SOCK_*, IPPROTO_*.
    pub family: u16,
    pub kind: u16,
    pub protocol: u16,
}

/// Who is reached, as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Peer {
    /// IPv4 also where the socket speaks IPv6.
    Address {
        address: std::net::IpAddr,
        port: u16,
        /// Interface index of a link-local address; 0 for none.
        scope: u32,
    },
    /// A unix socket by the name that it was bound to; `None` when the walk did not fit or ended in another mount
    /// namespace.
    Unix { path: Option<PathBuf> },
    /// A unix socket's name outside the file system: the workload's or anybody's bytes.
    Abstract(Vec<u8>),
    /// A unix socket without a name.
    Nameless,
}

#[derive(Debug, Clone)]
pub struct AskedExec {
    pub file: FileKey,
    /// From the dentry walk in the hook, seen from the root of the file's mount tree in the initial namespace where
    /// there is one. `None` when it did not fit: then no allow rule by path may match.
    pub path: Option<PathBuf>,
    /// No name left (memfd, deleted): the path is what the dentry last said.
    pub unlinked: bool,
}

/// What a held thread is about to do, read from the held thread itself. All of it was written by the workload.
#[derive(Debug)]
pub struct Held {
    pub id: ActionId,
    pub how: HeldHow,
    /// Rounds the hook ran before the thread stopped.
    pub rounds: u64,
    /// From `Asked` to the stop, nanoseconds.
    pub took_ns: u64,
    /// What an exec is about to start; `None` for every other action, of which `Asked` says all.
    pub exec: Option<HeldExec>,
    /// Set for [`ParkedWhy::AlreadyTraced`], while the tracer lives.
    pub tracer: Option<Tracer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldHow {
    /// Seized: one thread waits without using CPU, its siblings run on, its parent sees nothing.
    Traced,
    /// SIGSTOP alone: the whole process is stopped, the parent may see it. Why the thread could not be seized.
    Parked(ParkedWhy),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParkedWhy {
    AlreadyTraced,
    PtraceForbidden,
    SigcontHandled,
    TookTooLong,
    AgentWasAway,
    /// Many threads of its process wait at once.
    ManyThreads,
}

/// Who traces a held thread, other than the agent: it can change the new image at any time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracer {
    /// In the initial PID namespace.
    pub pid: u32,
    /// `task.comm`: written by the workload, any bytes.
    pub comm: Vec<u8>,
}

#[derive(Debug)]
pub struct HeldExec {
    pub argv: Argv,
    pub environment: Argv,
    pub cwd: PathBuf,
    /// The file as opened through the thread's own root, checked against `AskedExec::file`; `None` when it could not
    /// be opened (then nobody can vouch for its content).
    pub file: Option<OwnedFd>,
    /// What execve(2) was given as a name, as the workload wrote it.
    pub given: OsString,
}

/// A string vector as read from memory: everything is hashed, a bounded part is kept.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Argv {
    /// The strings, without their NUL. Only the first and last ones of a very long vector are kept.
    pub strings: Vec<Vec<u8>>,
    /// How many strings there are in all.
    pub count: u64,
    /// Bytes in all, with one NUL each.
    pub bytes: u64,
    /// SHA-256 over every string followed by NUL.
    pub sha256: [u8; 32],
    /// Where `strings` leaves something out: before the one with this index.
    pub gap: Option<usize>,
}

/// Why an action ended before it was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithdrawnWhy {
    /// The thread or its process is gone.
    Died,
    /// The syscall was interrupted by a signal or restarted with other arguments: that is a new question.
    Changed,
    /// The agent stops; the thread waits on, or has gone on with its verdict.
    Stopped,
}

/// Answers that are known already; asked on the holder's thread before anybody else hears of a question.
pub trait AtOnce: std::fmt::Debug + Send + Sync {
    /// `Some`: allowed by the kernel key, and the record of it has its place. It must return within microseconds: no
    /// I/O, no log, no lock that is held for longer.
    fn allows(&self, asked: &Asked) -> Option<Pass>;
}

/// An answer for the kernel.
#[derive(Debug)]
pub enum Release {
    /// Fails with EPERM.
    Deny,
    /// Goes on, decided by the kernel key alone.
    Allow,
    /// Goes on, and is compared with this before the new image runs one instruction.
    AllowChecked(Arc<ExecExpectation>),
}

/// What was approved, to be compared at PTRACE_EVENT_EXEC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecExpectation {
    pub file: FileKey,
    /// Of the executable's content at the time it was shown.
    pub sha256: [u8; 32],
    /// Digests as in [`Argv`], before any `#!` rewriting.
    pub argv_sha256: [u8; 32],
    pub environment_sha256: [u8; 32],
    pub cwd: PathBuf,
}

/// What became of a released action.
#[derive(Debug, Clone)]
pub struct Enforced {
    pub id: ActionId,
    pub outcome: Outcome,
    /// From the verdict to the syscall's end (or exec event), nanoseconds.
    pub resume_ns: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The syscall went on. For a checked exec: everything matched.
    Ran,
    /// The syscall failed with EPERM because the verdict said so.
    Denied,
    /// The exec did not happen for a reason of its own (ENOENT, ENOEXEC …), after it was allowed. Positive errno.
    Failed(i32),
    /// Something differed from what was approved: killed before the first instruction.
    Killed(Mismatch),
    /// The thread died between verdict and effect.
    Died,
}

/// The first thing that differed, approved against found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    pub what: MismatchWhat,
    /// Hex digest, path or key as text.
    pub approved: String,
    pub found: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MismatchWhat {
    Argv,
    Environment,
    Cwd,
    File,
    Content,
    /// The comparison itself could not be made.
    Unreadable,
}

/// Kernel side to agent.
#[derive(Debug)]
pub enum FromKernel {
    Asked(Asked),
    Held(Box<Held>),
    Withdrawn {
        id: ActionId,
        why: WithdrawnWhy,
    },
    Enforced(Enforced),
    /// Allowed by [`AtOnce`], and over: all that is ever said of this action. `Err`: the verdict was not used.
    Passed {
        asked: Box<Asked>,
        pass: Pass,
        end: Result<Enforced, WithdrawnWhy>,
    },
    /// A cgroup was made or removed; `path` is relative to the cgroup v2 root, with a leading slash.
    CgroupMade {
        id: u64,
        path: PathBuf,
    },
    CgroupGone {
        id: u64,
    },
    /// A resolver answered a labelled task. Some are left out when there are many.
    Resolved(Box<Reply>),
    /// Follows every [`ToKernel::Label`], in order: the label is in force for the cgroup and everything below it, or why
    /// it is not.
    Labelled {
        cgroup: u64,
        result: Result<(), String>,
    },
    /// Events that did not fit the ring since the last report. Their threads were not let through.
    Lost {
        count: u64,
    },
}

/// Agent to kernel side. Sent without blocking; the holder works them off in order.
#[derive(Debug)]
pub enum ToKernel {
    /// Stop the thread and read what it is about to do.
    Hold(ActionId),
    /// The one way to a verdict; sent by `enforce` alone.
    Release {
        id: ActionId,
        release: Release,
    },
    /// What holds for a label from now on. A label that this agent never got settings for has those of
    /// [`super::KernelConfig`].
    Settings {
        label: LabelId,
        settings: super::LabelSettings,
    },
    /// Covers the cgroup and everything below it, processes already inside included.
    Label {
        cgroup: u64,
        label: LabelId,
    },
    /// The label is taken from whoever carries it. If the cgroup is gone, those who were moved out of it before keep it.
    Unlabel {
        cgroup: u64,
    },
    /// Labels and protection are in force as the configuration has them: programs of other versions of Guard may go.
    Settled,
    Stop,
}
