// SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only
//! The ABI between the BPF programs and the agent: map keys and values, ring events, configuration.
//!
//! Owns layouts and constants, given nothing, used by both sides of the same build. It must never hold logic, and no
//! layout may change without a new [`ABI_VERSION`]: pinned maps outlive the agent that made them.

#![no_std]
#![cfg_attr(not(feature = "user"), forbid(unsafe_code))]

pub mod protect;
pub mod rules;

/// Names the layouts below. It is part of the pin path and of every event, so that two builds never share a map that
/// they read differently.
pub const ABI_VERSION: u16 = 5;

/// Negative errno values that a hook returns.
pub mod errno {
    pub const EPERM: i32 = 1;
    pub const EAGAIN: i32 = 11;
    /// The kernel's own: restart the syscall, never visible to user space as long as a signal is pending.
    pub const ERESTARTSYS: i32 = 512;
    pub const ERESTARTNOINTR: i32 = 513;
    pub const ERESTARTNOHAND: i32 = 514;
    pub const ERESTART_RESTARTBLOCK: i32 = 516;
}

/// `ActionKey::kind`.
pub mod action {
    pub const EXEC: u32 = 1;
    /// Reaching an IPv4 or IPv6 address: connect, or a message to one. `op` is [`super::peer_op`], `device` the port in
    /// host order, `generation` the IPv6 scope, `inode` the address of the `struct sock`, so that an answer holds for one
    /// socket only, `extra[0..2]` the address as in [`super::AskAddress`], eight bytes each in memory order. Listening on the
    /// own address: 1 in `extra[2]`.
    pub const REACH: u32 = 2;
    /// Reaching a unix socket: `op` as above, `inode` the address of the own `struct sock`, `extra[0]` that of the peer's,
    /// `extra[1]` the inode number of its name or 0, `extra[2]` device and generation of that.
    pub const REACH_UNIX: u32 = 3;
    /// Changing a file or a name. `op` is one of [`super::file_op`]. A name that is made, moved or taken away: `device`,
    /// `generation` and `inode` of its directory, `extra[0]` a keyed hash of the name; else those of the file itself. The rest of
    /// `extra` is what the operation needs besides; see `guard-ebpf/src/files.rs`.
    pub const FILE: u32 = 4;
}

/// `ActionKey::op` of [`action::FILE`], in its lower byte; above it what makes it another operation.
pub mod file_op {
    /// Opening what exists.
    pub const OPEN: u32 = 1;
    pub const CREATE: u32 = 2;
    pub const UNLINK: u32 = 3;
    pub const RENAME: u32 = 4;
    pub const LINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKDIR: u32 = 7;
    pub const RMDIR: u32 = 8;
    pub const MKNOD: u32 = 9;
    pub const TRUNCATE: u32 = 10;
    pub const CHMOD: u32 = 11;
    pub const CHOWN: u32 = 12;
    pub const XATTR: u32 = 13;
    /// A file without a name, in this directory.
    pub const TMPFILE: u32 = 14;
    /// Writing through a descriptor from before the label, or from somebody else; mapping it shared.
    pub const WRITE: u32 = 15;
    /// The byte.
    pub const MASK: u32 = 0xff;
    /// [`OPEN`]: what is in the file goes.
    pub const TRUNCATES: u32 = 1 << 8;
    /// [`RENAME`]: the two change places.
    pub const EXCHANGES: u32 = 1 << 9;
    /// [`RENAME`]: there is something under the new name, which goes.
    pub const REPLACES: u32 = 1 << 10;
    /// [`XATTR`]: it is taken away; [`WRITE`]: by a shared mapping.
    pub const OTHERWISE: u32 = 1 << 11;
}

/// `ActionKey::op` of what reaches a peer.
#[inline(always)]
#[must_use]
pub const fn peer_op(family: u16, kind: u16, protocol: u16) -> u32 {
    (family as u32 & 0xff) | (kind as u32 & 0xff) << 8 | (protocol as u32) << 16
}

/// What is asked, as the kernel sees it. A verdict is bound to all of it, so a syscall that was restarted with other
/// arguments has another key and asks again.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct ActionKey {
    /// One of [`action`].
    pub kind: u32,
    /// The operation within the kind; 0 for exec.
    pub op: u32,
    /// `super_block.s_dev` in the kernel's encoding.
    pub device: u32,
    pub generation: u32,
    pub inode: u64,
    /// Address and port, or parent and name, for the kinds that need them; 0 for exec.
    pub extra: [u64; 3],
}

impl ActionKey {
    /// Field by field: the BPF target would otherwise call memcmp.
    #[inline(always)]
    #[must_use]
    pub const fn same(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.op == other.op
            && self.device == other.device
            && self.generation == other.generation
            && self.inode == other.inode
            && self.extra[0] == other.extra[0]
            && self.extra[1] == other.extra[1]
            && self.extra[2] == other.extra[2]
    }
}

/// `Pending::state`.
pub mod state {
    /// Re-runs its hook, or is stopped by the holder.
    pub const LOOPING: u32 = 0;
    /// From here on: stopped by SIGSTOP alone. The value says why; the first time is reported by an event.
    pub const PARKED_TRACED: u32 = 1;
    pub const PARKED_SIGCONT: u32 = 2;
    pub const PARKED_TIME: u32 = 3;
    pub const PARKED_AWAY: u32 = 4;
    /// The pair could not be sent.
    pub const PARKED_SIGNAL: u32 = 5;
    /// Too many threads of its process loop.
    pub const PARKED_MANY: u32 = 6;
    /// Not a question any more: a checked exec is committed, nobody traced by the agent, stopped before its first
    /// instruction until the agent has compared it. Every gated hook refuses; only the agent may continue it.
    pub const AWAITS_CHECK: u32 = 16;
}

/// A thread that asks, keyed by its `task_struct` address. Written by the thread itself inside its hooks, by nobody
/// else, so it needs no lock.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pending {
    pub key: ActionKey,
    /// Boot time of the first round. With the task's address it names the question for ever.
    pub asked_ns: u64,
    /// The thread's start, boot time.
    pub start_ns: u64,
    pub rounds: u64,
    /// Boot time when a verdict first let it through; 0 before.
    pub honored_ns: u64,
    /// The agent instance that was told; 0 while no event fitted the ring.
    pub epoch: u64,
    pub tid: u32,
    pub tgid: u32,
    pub label: u32,
    /// One of [`state`].
    pub state: u32,
    /// The verdict that was honored, one of [`verdict`]; 0 before.
    pub verdict: u32,
    /// 1: it counts among the looping threads of its process.
    pub loops: u32,
    /// The last file of this exec that passed `bprm_check_security`: the interpreter of a script.
    pub last_file: ActionKey,
}

/// `Verdict::verdict`.
pub mod verdict {
    pub const ALLOW: u32 = 1;
    pub const DENY: u32 = 2;
    /// Let it through only if the agent traces it and compares it at the exec event.
    pub const CHECK: u32 = 3;
    /// The agent compared it and found what was approved.
    pub const CHECKED: u32 = 4;
    /// The question was withdrawn: ask anew.
    pub const ASK_AGAIN: u32 = 5;
}

/// Names one question.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct VerdictKey {
    /// Address of the thread's `task_struct`.
    pub task: u64,
    /// `Pending::asked_ns`.
    pub asked_ns: u64,
}

/// The answer. Written by the agent alone; it counts only if thread, start time and action are the asker's.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Verdict {
    pub key: ActionKey,
    pub start_ns: u64,
    pub tid: u32,
    /// One of [`verdict`].
    pub verdict: u32,
}

/// What a task is labelled with, as long as it lives, wherever it is moved. It counts while the origin is known.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stamp {
    /// The cgroup that the label was given to.
    pub origin: u64,
    /// The label in whose [`LabelUse::tasks`] the task counts.
    pub label: u32,
    /// 1: an exact rule allowed the task's last exec, its interpreters included. Written anew by the first hook of each exec.
    pub exec_by_rule: u32,
}

/// A cgroup that a label was given to. Written by the agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// The cgroup whose label this is: itself, or one further out that was labelled later and wins.
    pub under: u64,
    /// Never 0.
    pub label: u32,
    pub reserved: u32,
}

/// `LabelSettings::away`: what happens when user space cannot answer.
pub mod away {
    pub const PARK: u32 = 0;
    pub const DENY: u32 = 1;
    pub const ALLOW: u32 = 2;
}

/// What holds for one label. Written by the agent.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LabelSettings {
    /// One of [`away`].
    pub away: u32,
    /// Questions that may wait at a time; more are refused.
    pub pending: u32,
    /// Threads of one process that may loop at a time; more are parked.
    pub looping: u32,
    /// Tasks that may carry the label; further forks are refused.
    pub tasks: u32,
    /// Sockets of the label that may be known at a time; further ones are refused.
    pub sockets: u32,
    /// What is not refused to it: bits of [`protect::allow_bit`].
    pub allow: u32,
    /// One of [`writes`].
    pub writes: u32,
}

/// `LabelSettings::writes`.
pub mod writes {
    /// Changes of files outside the label's free space are asked about.
    pub const ASKED: u32 = 0;
    /// Nobody is asked; what is protected stays so.
    pub const FREE: u32 = 1;
}

impl LabelSettings {
    /// No label can fill a table for the others: the tables have room for eight, four and sixteen times as much.
    pub const DEFAULT: Self = Self {
        away: away::PARK,
        pending: 1_024,
        looping: 8,
        tasks: 16_384,
        sockets: 4_096,
        allow: 0,
        writes: writes::ASKED,
    };
}

/// What a label uses now, and what it was refused since the maps were made. Written by the hooks. Each limit may be
/// passed by as many as there are CPUs, when those ask in the same moment.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LabelUse {
    pub pending: u64,
    pub tasks: u64,
    /// Actions refused because too many questions waited.
    pub refused_pending: u64,
    /// Forks refused because too many tasks carried the label.
    pub refused_tasks: u64,
    /// Entries of FLOWS that are charged to it.
    pub sockets: u64,
    /// Sockets and connections that were not remembered because it had too many: refused, or asked about at each message.
    pub refused_sockets: u64,
    /// Entries of OPENED that are charged to it.
    pub files: u64,
    /// Open files that were not remembered because it had too many: refused, or asked about at each write.
    pub refused_files: u64,
}

/// Open files that are remembered of one label.
pub const FILES_PER_LABEL: u64 = 16_384;

/// Slots of [`OpenFilter`]; a power of two.
pub const OPEN_SLOTS: usize = 4_096;

/// Open files that are remembered, per slot: answers "surely not" for those of everybody else. Written by the hooks.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct OpenFilter {
    pub slots: [u32; OPEN_SLOTS],
}

/// A directory whose content a label may change unasked; for every label with the label 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FreeKey {
    pub directory: protect::FileId,
    pub label: u32,
    pub reserved: u32,
}

/// Slots of [`Filter`]; a power of two.
pub const FILTER_SLOTS: usize = 16_384;

/// Answers "surely not labelled" for most tasks. Written by the hooks.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Filter {
    /// Raised when a task may have come into a labelled cgroup without its stamp.
    pub strays: u64,
    /// The value of `strays` before the last time that all of them were looked for and stamped.
    pub settled: u64,
    /// Stamped tasks per slot.
    pub slots: [u32; FILTER_SLOTS],
}

/// What a socket of a labelled task may reach without another question. Written by the hooks.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Flow {
    /// The peer, as in [`AskAddress`], eight bytes each in memory order; of a listener, and of what it accepted, the
    /// own one; zero for a unix peer.
    pub address: [u64; 2],
    /// Of the peer; of a unix socket the address of the peer's `struct sock`.
    pub port: u64,
    pub scope: u32,
    /// The label that it was given for.
    pub label: u32,
    /// One of [`flow`].
    pub sort: u32,
    /// The label of the task that made the socket; 0: somebody else did.
    pub owner: u32,
    /// The label in whose [`LabelUse::sockets`] it counts, the same as long as there is an entry.
    pub charged: u32,
    /// Tells this socket from one that had its address before.
    pub serial: u32,
}

/// A peer that a socket was let through to.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Sent {
    /// Address of the `struct sock`.
    pub sock: u64,
    /// As in [`Flow`].
    pub address: [u64; 2],
    pub port: u32,
    /// [`Flow::serial`]; 0 for a socket without one.
    pub serial: u32,
}

/// `Flow::sort`.
pub mod flow {
    /// Only its owner is known.
    pub const MADE: u32 = 0;
    /// It was allowed to reach this peer.
    pub const ALLOWED: u32 = 1;
    /// A labelled task listens on it.
    pub const LISTENER: u32 = 2;
    /// It came in through a listener of the workload: replies are not egress.
    pub const ACCEPTED: u32 = 3;
}

/// Slots of [`FlowFilter`]; a power of two.
pub const FLOW_SLOTS: usize = 4_096;

/// Flows per slot: answers "surely no flow" for the sockets of everybody else. Written by the hooks.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct FlowFilter {
    pub slots: [u32; FLOW_SLOTS],
}

/// What the agent asks of `task_getpgid`, by its thread's id.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cover {
    /// Not 0: `Filter::settled` becomes this, when the agent asks about itself.
    pub settled: u64,
    /// Read by the agent: `Filter::strays` when it last asked about itself.
    pub strays: u64,
    /// Read by the agent: tasks that were stamped.
    pub stamped: u64,
    /// Read by the agent: tasks for which there was no room.
    pub failed: u64,
    /// The `task_struct` that was shown last, and its start by the boot clock. Read by the agent, unless `give` is set.
    pub task: u64,
    pub start_ns: u64,
    /// With an origin: a task that is shown gets this, if `task` and `start_ns` are its own; nothing else happens.
    pub give: Stamp,
}

/// Written by the agent, read by the hooks.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// This agent instance. A question that another instance was told is asked again.
    pub epoch: u64,
    /// A question that is not answered and not traced by then is parked.
    pub park_after_ns: u64,
    /// A heartbeat older than this is a dead agent.
    pub heartbeat_limit_ns: u64,
    /// Boot time of the first attachment, kept over restarts.
    pub enforcing_since_ns: u64,
    /// The agent's process: never held.
    pub agent_tgid: u32,
    pub reserved: u32,
    /// Random, of this agent instance: names in keys are hashed with it, so that no workload can find two names of one hash.
    pub name_key: [u64; 2],
}

/// What versions of Guard know of each other's pinned maps: where, in bytes from the start of a value, a few fields stand
/// in every version. These never change; whatever else a value holds may. Keys of TASKS, ORIGINS and PENDING have 8 bytes,
/// those of VERDICTS are [`VerdictKey`], CONFIG and HEARTBEAT are arrays of one element.
pub mod lasting {
    use core::mem::offset_of;

    use super::{Config, Origin, Pending, Stamp, Verdict, VerdictKey};

    pub const CONFIG_ENFORCING_SINCE: usize = 24;
    pub const CONFIG_AGENT_TGID: usize = 32;
    pub const STAMP_ORIGIN: usize = 0;
    pub const ORIGIN_UNDER: usize = 0;
    pub const ORIGIN_LABEL: usize = 8;
    pub const PENDING_ASKED: usize = 48;
    pub const PENDING_TID: usize = 88;
    pub const PENDING_TGID: usize = 92;
    pub const PENDING_STATE: usize = 100;
    pub const VERDICT: usize = 60;

    const _: () = {
        assert!(offset_of!(Config, enforcing_since_ns) == CONFIG_ENFORCING_SINCE);
        assert!(offset_of!(Config, agent_tgid) == CONFIG_AGENT_TGID);
        assert!(offset_of!(Stamp, origin) == STAMP_ORIGIN);
        assert!(offset_of!(Origin, under) == ORIGIN_UNDER);
        assert!(offset_of!(Origin, label) == ORIGIN_LABEL);
        assert!(offset_of!(Pending, asked_ns) == PENDING_ASKED);
        assert!(offset_of!(Pending, tid) == PENDING_TID);
        assert!(offset_of!(Pending, tgid) == PENDING_TGID);
        assert!(offset_of!(Pending, state) == PENDING_STATE);
        assert!(offset_of!(Verdict, verdict) == VERDICT);
        assert!(offset_of!(VerdictKey, task) == 0 && offset_of!(VerdictKey, asked_ns) == 8);
        // Their meaning does not change either.
        assert!(super::state::LOOPING == 0 && super::state::AWAITS_CHECK == 16 && super::verdict::CHECKED == 4);
    };
}

/// Index into the counters map.
pub mod counter {
    /// Events that did not fit the ring.
    pub const RING_FULL: u32 = 0;
    /// Actions refused because the table of questions was full.
    pub const PENDING_FULL: u32 = 1;
    /// Forks refused because the table of labelled tasks was full.
    pub const TASKS_FULL: u32 = 2;
    /// Actions refused because a signal could not be sent.
    pub const SIGNAL_FAILED: u32 = 3;
    /// Checked execs stopped at commit because nobody compared them.
    pub const UNCHECKED: u32 = 4;
    /// Actions let through because the agent was away and its configuration says so.
    pub const AWAY_ALLOWED: u32 = 5;
    /// Cgroups below labelled ones for which there was no room: who is moved there from outside is not labelled.
    pub const CGROUPS_FULL: u32 = 6;
    /// Not a count: 1 + the CPU on which a question last gave up waiting for an answer at once, because somebody needed that
    /// CPU, perhaps the agent; 0 before.
    pub const CROWDED: u32 = 7;
    /// Connections refused because the table of sockets was full.
    pub const FLOWS_FULL: u32 = 8;
    /// Packets of labelled cgroups that no hook had let through: dropped.
    pub const TRIPWIRE: u32 = 9;
    /// Open files that were not remembered because the table was full: refused, or asked about at each write.
    pub const OPENED_FULL: u32 = 10;
    /// Changes of files by an exec that was not compared yet.
    pub const CHANGED_EARLY: u32 = 11;
    pub const COUNT: u32 = 12;
}

/// `EventHeader::kind`.
pub mod event {
    pub const ASK_EXEC: u16 = 1;
    pub const ENDED: u16 = 2;
    pub const PARKED: u16 = 3;
    pub const SIGNAL: u16 = 4;
    pub const CGROUP_MADE: u16 = 5;
    pub const CGROUP_GONE: u16 = 6;
    pub const ASK_ADDRESS: u16 = 7;
    pub const ASK_UNIX: u16 = 8;
    pub const ASK_FILE: u16 = 9;
    pub const RESOLVED: u16 = 16;
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventHeader {
    pub abi: u16,
    /// One of [`event`].
    pub kind: u16,
    /// Bytes of the whole event.
    pub size: u32,
}

/// Bytes of path that an event carries. One more name of up to 255 bytes and its NUL follow, so that the last write
/// always fits.
pub const PATH_ROOM: usize = 4096;
pub const NAME_ROOM: usize = 256;
/// Names and mount crossings that the walk takes at most.
pub const PATH_DEPTH: usize = 64;

/// `AskHead::flags`.
pub mod ask_flag {
    /// The walk reached the root: `path` is all of it.
    pub const PATH_WHOLE: u32 = 1;
    /// The inode has no name left.
    pub const UNLINKED: u32 = 2;
    /// The peer's name is not in the file system.
    pub const ABSTRACT: u32 = 4;
    /// A message that names its destination, not connect.
    pub const MESSAGE: u32 = 8;
    /// A socket that was connected before it was labelled, or elsewhere.
    pub const CONNECTED_BEFORE: u32 = 16;
    /// listen(2): the address is the own one.
    pub const LISTEN: u32 = 32;
    /// The walk to the second path reached the root, too.
    pub const SECOND_WHOLE: u32 = 64;
    /// The file is a directory.
    pub const DIRECTORY: u32 = 128;
    /// The path is the one below the root of the file system: no hook says through which mount it was reached.
    pub const MOUNT_UNKNOWN: u32 = 256;
}

/// What every question says of who asks.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskHead {
    pub header: EventHeader,
    pub task: u64,
    pub asked_ns: u64,
    pub start_ns: u64,
    pub cgroup: u64,
    pub key: ActionKey,
    pub tid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    pub login_uid: u32,
    pub label: u32,
    /// Of [`ask_flag`].
    pub flags: u32,
    pub comm: [u8; 16],
}

#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AskExec {
    pub head: AskHead,
    /// What an exact rule for it would name.
    pub rule: rules::RuleKey,
    /// Bytes of `path` in use.
    pub path_len: u32,
    /// Inode number of the mount namespace that the file was found in; 0 for a mount that is in none.
    pub mount_namespace: u32,
    /// Names from the file up to the root, each followed by NUL.
    pub path: [u8; PATH_ROOM + NAME_ROOM],
}

/// The peer of [`action::REACH`], or with [`ask_flag::LISTEN`] the own address.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AskAddress {
    pub head: AskHead,
    /// IPv4 as ::ffff:a.b.c.d.
    pub address: [u8; 16],
    /// In host order.
    pub port: u32,
    /// `sin6_scope_id`; 0 for none.
    pub scope: u32,
    /// Of the socket: AF_*, SOCK_*, IPPROTO_*.
    pub family: u16,
    pub kind: u16,
    pub protocol: u16,
    pub reserved: u16,
}

/// Bytes of an abstract name: `sockaddr_un` without its family and the leading NUL.
pub const ABSTRACT_ROOM: usize = 107;

/// The peer of [`action::REACH_UNIX`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AskUnix {
    pub head: AskHead,
    /// Bytes of `path` in use.
    pub path_len: u32,
    /// As in [`AskExec`]; 0 for an abstract name.
    pub mount_namespace: u32,
    /// As in [`AskExec`]; with [`ask_flag::ABSTRACT`] the name itself.
    pub path: [u8; PATH_ROOM + NAME_ROOM],
}

/// A change of [`action::FILE`].
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct AskFile {
    pub head: AskHead,
    /// Bytes of `path` in use.
    pub path_len: u32,
    /// Of those, what the first path takes; behind it the second of a rename or link, or the target of a symlink, without its NUL.
    pub first_len: u32,
    /// As in [`AskExec`].
    pub mount_namespace: u32,
    /// The mode that is asked for, with `S_IFMT` of what is made.
    pub mode: u32,
    /// chown(2): user and group, `u32::MAX` for what stays; mknod(2): major << 20 | minor, and 0.
    pub numbers: [u32; 2],
    /// Of the file as it is: bytes, and `i_mode`; 0 for none.
    pub size: u64,
    pub old_mode: u32,
    pub reserved: u32,
    /// As in [`AskExec`].
    pub path: [u8; PATH_ROOM + NAME_ROOM],
}

/// Bytes of a resolver's reply that an event carries, a power of two; one that is as long or longer is not told.
pub const REPLY_ROOM: usize = 2048;

/// A datagram from the port of resolvers came to a socket that may reach it.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Resolved {
    pub header: EventHeader,
    pub label: u32,
    /// Bytes of `reply` in use.
    pub len: u32,
    /// Whose it is, as in [`AskAddress`].
    pub resolver: [u8; 16],
    /// Inode number of the network namespace of the socket.
    pub network_namespace: u32,
    pub reserved: u32,
    pub reply: [u8; REPLY_ROOM],
}

/// `Ended::how`.
pub mod ended {
    /// The verdict said no.
    pub const DENIED: u32 = 1;
    /// The exec was committed under an allow.
    pub const COMMITTED: u32 = 2;
    /// The syscall returned, `errno` says what; 0 for a checked exec that was compared.
    pub const RETURNED: u32 = 3;
    /// A checked exec that nobody compared: SIGKILL was sent.
    pub const UNCHECKED: u32 = 4;
    /// The thread died.
    pub const DIED: u32 = 5;
    /// Another question took its place.
    pub const REPLACED: u32 = 6;
}

/// A question is over.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ended {
    pub header: EventHeader,
    pub task: u64,
    pub asked_ns: u64,
    pub at_ns: u64,
    pub tid: u32,
    /// One of [`ended`].
    pub how: u32,
    /// Positive.
    pub errno: u32,
    /// The verdict that was honored; 0 when none was.
    pub verdict: u32,
}

/// A thread was stopped by SIGSTOP alone.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Parked {
    pub header: EventHeader,
    pub task: u64,
    pub asked_ns: u64,
    pub tid: u32,
    pub tgid: u32,
    /// One of [`state`].
    pub state: u32,
    pub reserved: u32,
}

/// A signal was sent to a process that has pending questions.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signal {
    pub header: EventHeader,
    pub tid: u32,
    pub tgid: u32,
    pub signal: u32,
    /// 1: to the process; 0: to the thread alone.
    pub group: u32,
}

pub const CGROUP_PATH_ROOM: usize = 1024;

/// A cgroup of the v2 hierarchy was made or removed.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct Cgroup {
    pub header: EventHeader,
    pub id: u64,
    /// Bytes of `path`, without its NUL.
    pub path_len: u32,
    /// The label that it inherited; 0 for none.
    pub label: u32,
    pub path: [u8; CGROUP_PATH_ROOM],
}

/// Where the running kernel keeps what the programs read, in bytes. Filled from its BTF before load.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offsets {
    pub task_start_boottime: u32,
    pub task_pid: u32,
    pub task_tgid: u32,
    pub task_real_parent: u32,
    pub task_parent: u32,
    pub task_ptrace: u32,
    pub task_blocked: u32,
    pub task_sighand: u32,
    pub task_loginuid: u32,
    pub sighand_action: u32,
    pub sizeof_k_sigaction: u32,
    pub sigaction_handler: u32,
    pub bprm_file: u32,
    pub bprm_unsafe: u32,
    pub file_inode: u32,
    pub file_path: u32,
    pub path_mnt: u32,
    pub path_dentry: u32,
    pub dentry_name: u32,
    pub dentry_parent: u32,
    pub qstr_name: u32,
    pub vfsmount_root: u32,
    pub mount_mnt: u32,
    pub mount_parent: u32,
    pub mount_mountpoint: u32,
    pub mount_namespace: u32,
    pub namespace_common: u32,
    pub ns_common_inum: u32,
    pub inode_sb: u32,
    pub inode_ino: u32,
    pub inode_generation: u32,
    pub inode_nlink: u32,
    pub sb_dev: u32,
    pub cgroup_kn: u32,
    pub cgroup_self: u32,
    pub cgroup_root: u32,
    pub css_parent: u32,
    pub cgroup_root_hierarchy: u32,
    pub kernfs_id: u32,
    pub dentry_inode: u32,
    pub inode_mode: u32,
    pub inode_rdev: u32,
    pub file_mode: u32,
    pub sb_root: u32,
    pub sb_bdev: u32,
    pub sb_magic: u32,
    pub socket_sk: u32,
    pub unix_sock_path: u32,
    pub msghdr_name: u32,
    pub msghdr_namelen: u32,
    pub task_mm: u32,
    pub mm_exe_file: u32,
    pub proc_inode_pid: u32,
    pub proc_inode_vfs: u32,
    pub pid_tasks: u32,
    pub task_pid_links: u32,
    pub task_cgroups: u32,
    pub css_set_dfl_cgrp: u32,
    pub task_signal: u32,
    pub signal_thread_head: u32,
    pub task_thread_node: u32,
    pub task_thread_flags: u32,
    pub sock_family: u32,
    pub sock_dport: u32,
    pub sock_daddr: u32,
    pub sock_v6_daddr: u32,
    pub sock_rcv_saddr: u32,
    pub sock_v6_rcv_saddr: u32,
    pub sock_num: u32,
    pub sock_state: u32,
    pub sock_listener: u32,
    pub sock_type: u32,
    pub sock_protocol: u32,
    pub unix_sock_addr: u32,
    pub unix_sock_peer: u32,
    pub unix_address_len: u32,
    pub unix_address_name: u32,
    pub socket_alloc_socket: u32,
    pub socket_alloc_inode: u32,
    pub msghdr_control: u32,
    pub msghdr_controllen: u32,
    pub msghdr_flags: u32,
    pub inet_options: u32,
    pub inet_six: u32,
    pub six_options: u32,
    pub skb_data: u32,
    pub skb_len: u32,
    pub skb_data_len: u32,
    pub skb_head: u32,
    pub skb_network_header: u32,
    pub skb_transport_header: u32,
    pub sock_net: u32,
    pub net_ns: u32,
    // Privilege.
    pub task_real_cred: u32,
    pub task_flags: u32,
    pub task_thread_pid: u32,
    pub task_group_leader: u32,
    pub pid_level: u32,
    pub pid_numbers: u32,
    pub sizeof_upid: u32,
    pub upid_nr: u32,
    pub cred_uid: u32,
    pub cred_gid: u32,
    pub cred_suid: u32,
    pub cred_sgid: u32,
    pub cred_euid: u32,
    pub cred_egid: u32,
    pub cred_fsuid: u32,
    pub cred_fsgid: u32,
    pub cred_permitted: u32,
    pub bprm_cred: u32,
    /// Of `pt_regs`: the number of the system call.
    pub regs_syscall: u32,
    /// Where, and by which bits, a task that makes a 32-bit system call shows.
    pub task_narrow: u32,
    pub narrow_bits: u32,
    /// Numbers of system calls; those from fsopen to fspick follow each other on every machine.
    pub nr_unshare: u32,
    pub nr_setns: u32,
    pub nr_clone: u32,
    pub nr_clone3: u32,
    pub nr_mount: u32,
    pub nr_umount2: u32,
    pub nr_pivot_root: u32,
    pub nr_open_tree: u32,
    pub nr_move_mount: u32,
    pub nr_mount_setattr: u32,
    pub nr_seccomp: u32,
    pub nr_prctl: u32,
    pub nr_open_by_handle_at: u32,
    pub nr_perf_event_open: u32,
    // The tripwire.
    pub skb_nfct: u32,
    // For the hooks of file changes.
    pub file_flags: u32,
    pub task_cred: u32,
    pub task_nameidata: u32,
    pub sb_flags: u32,
    pub inode_size: u32,
    pub vma_file: u32,
    pub vma_flags: u32,
    // Exact rules.
    pub inode_ctime_sec: u32,
    pub inode_ctime_nsec: u32,
    pub inode_writecount: u32,
    pub renamedata_old: u32,
    pub renamedata_new: u32,
}

macro_rules! layout {
    ($($type:ty = $size:expr),* $(,)?) => {
        $(const _: () = assert!(size_of::<$type>() == $size);)*
        #[cfg(feature = "user")]
        #[expect(unsafe_code, reason = "aya reads and writes map keys and values as bytes")]
        mod pod {
            use super::*;
            // SAFETY: repr(C), integers only, no padding (their sizes are the sums of their fields, asserted above),
            // so every bit pattern is a value and every byte is initialised.
            $(unsafe impl aya::Pod for $type {})*
        }
    };
}

layout! {
    ActionKey = 48,
    Pending = 48 + 5 * 8 + 6 * 4 + 48,
    VerdictKey = 16,
    Verdict = 48 + 16,
    Stamp = 16,
    Origin = 16,
    LabelSettings = 28,
    LabelUse = 64,
    Filter = 16 + 4 * FILTER_SLOTS,
    Cover = 64,
    Config = 56,
    EventHeader = 8,
    AskHead = 8 + 4 * 8 + 48 + 8 * 4 + 16,
    AskExec = 136 + 48 + 8 + PATH_ROOM + NAME_ROOM,
    AskAddress = 136 + 16 + 8 + 8,
    AskUnix = 136 + 8 + PATH_ROOM + NAME_ROOM,
    Flow = 16 + 8 + 6 * 4,
    Sent = 8 + 16 + 8,
    FlowFilter = 4 * FLOW_SLOTS,
    AskFile = 136 + 6 * 4 + 8 + 8 + PATH_ROOM + NAME_ROOM,
    OpenFilter = 4 * OPEN_SLOTS,
    FreeKey = 32,
    Ended = 8 + 24 + 16,
    Parked = 8 + 16 + 16,
    Signal = 8 + 16,
    Cgroup = 8 + 8 + 8 + CGROUP_PATH_ROOM,
    Resolved = 8 + 8 + 16 + 8 + REPLY_ROOM,
    Offsets = 141 * 4,
    protect::FileId = 24,
    protect::Protected = 8,
    protect::NameKey = 2 * protect::NAME_BYTES,
    protect::AddressKey = 24,
    protect::RefusedKey = 8,
    protect::Refused = 32,
    rules::RuleKey = 48,
    rules::Rule = 24,
    rules::Note = 12 + rules::NOTE_ROOM,
}

const _: () = {
    assert!(core::mem::offset_of!(Pending, asked_ns) == 48);
    assert!(core::mem::offset_of!(Pending, tid) == 88);
    assert!(core::mem::offset_of!(Pending, last_file) == 112);
    assert!(core::mem::offset_of!(Verdict, verdict) == 60);
    assert!(FILTER_SLOTS.is_power_of_two());
    assert!(core::mem::offset_of!(AskHead, key) == 40);
    assert!(core::mem::offset_of!(AskHead, tid) == 88);
    assert!(core::mem::offset_of!(AskHead, comm) == 120);
    assert!(core::mem::offset_of!(AskExec, path) == 192);
    assert!(core::mem::offset_of!(Cgroup, path) == 24);
    assert!(core::mem::offset_of!(Resolved, reply) == 40);
};
