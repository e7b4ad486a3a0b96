//! Layouts of what no decision opens for a labelled task: files, names, addresses, and the counts of refusals.
//!
//! Owns layouts and constants, as the crate does. It must never hold logic.

/// `Protected::flags` and the value of a name.
pub mod flag {
    /// Labelled tasks do not reach it, reads included.
    pub const HIDE: u32 = 1;
    /// Labelled tasks may read it, not change it.
    pub const KEEP: u32 = 2;
    /// A home directory: where names with [`FIRST`], [`BELOW_HOME`] and [`TWO_BELOW_HOME`] count.
    pub const HOME: u32 = 4;
    /// A name: directly in a home, labelled tasks may make a directory of it, but put nothing else in its place.
    pub const FIRST: u32 = 8;
    /// A name: another entry exists for it together with its parent's name.
    pub const PAIR: u32 = 16;
    /// A name: counts only directly in a home.
    pub const BELOW_HOME: u32 = 32;
    /// A name: counts only in a directory that is directly in a home.
    pub const TWO_BELOW_HOME: u32 = 64;
}

/// What was protected: `Protected::kind`, `RefusedKey::kind`.
pub mod kind {
    /// A saved sign-in of a person who may approve.
    pub const SIGN_IN: u32 = 1;
    pub const BROWSER: u32 = 2;
    /// State, configuration, policy, keys, socket and pins of the agent.
    pub const AGENT: u32 = 3;
    /// State of a console on this host.
    pub const CONSOLE: u32 = 4;
    /// Executables and unit files of Guard.
    pub const PROGRAM: u32 = 5;
    /// Named in the agent's configuration.
    pub const CONFIGURED: u32 = 6;
    pub const ADDRESS: u32 = 7;
    /// Memory, descriptors or registers of a process outside the workload.
    pub const PROCESS: u32 = 8;
    /// A signal, limit or priority for one of Guard's processes.
    pub const SIGNAL: u32 = 9;
    pub const BPF: u32 = 10;
    /// A disk or the machine's memory, where every file can be read.
    pub const DEVICE: u32 = 11;
    /// Input typed into somebody's terminal.
    pub const TERMINAL: u32 = 12;
    /// A file of a disk by number instead of name.
    pub const NAMELESS: u32 = 13;
    /// What /proc shows of a process outside the workload.
    pub const PROCESS_READ: u32 = 14;
    /// A way out of its cgroup.
    pub const CGROUP: u32 = 15;
    /// A socket of a kind that nobody is asked about: raw, packet, vsock …
    pub const SOCKET: u32 = 16;
    /// A way for packets to somebody else than the address that was asked about: source routes, changes of the host's network.
    pub const ROUTE: u32 = 17;
    /// The names of the host's log sockets, which every label may reach.
    pub const LOG: u32 = 18;
    /// A core dump outside free space: nobody can be asked while a process dies.
    pub const DUMP: u32 = 19;
    /// A POSIX message queue that is made or removed.
    pub const QUEUE: u32 = 20;
    /// A shared mapping that becomes writable, of a file that the workload may not write.
    pub const MAPPING: u32 = 21;
    /// A file that was made by an open which nobody was asked about.
    pub const MADE: u32 = 22;
    /// An exec of a process that shares its directory, root and umask with another process, which could change them afterwards.
    pub const SHARED: u32 = 23;

    // What a label may be allowed by name; see [`super::allow_bit`].

    /// Mounting, unmounting, another root.
    pub const MOUNT: u32 = 24;
    /// Making or entering namespaces.
    pub const NAMESPACE: u32 = 25;
    /// More identity or capabilities than before: a setuid program, another user or group without being root.
    pub const GAIN: u32 = 26;
    pub const CHROOT: u32 = 27;
    /// Kernel modules, and having the kernel load some.
    pub const MODULE: u32 = 28;
    /// What CAP_SYS_ADMIN and its like are for beyond the rest: swap, quotas, time, kernel log, restart, ports.
    pub const MACHINE: u32 = 29;
    /// Changes of the network, packets with somebody else's address.
    pub const NETWORK: u32 = 30;
    /// Making device nodes.
    pub const DEVICE_NODE: u32 = 31;
    pub const PERF: u32 = 32;
    /// The kernel's keyrings.
    pub const KEYS: u32 = 33;
    pub const URING: u32 = 34;
    /// userfaultfd(2), which makes the kernel wait amid a system call.
    pub const FAULTS: u32 = 35;
    /// Writing to /proc/sys, /sys and their like.
    pub const TUNABLE: u32 = 36;
    /// Signals to processes outside the workload.
    pub const SIGNAL_OUT: u32 = 37;
    /// Files by which others run programs later: cron, at, units of systemd.
    pub const LATER: u32 = 38;

    // No label is allowed the following.

    /// A packet that no hook had let through.
    pub const STRAY: u32 = 39;
}

/// The bit of `LabelSettings::allow` for one of [`kind`]; 0 for what no label may be allowed.
#[inline(always)]
#[must_use]
pub const fn allow_bit(kind: u32) -> u32 {
    if kind >= kind::MOUNT && kind <= kind::LATER {
        1 << (kind - kind::MOUNT)
    } else {
        0
    }
}

/// An inode.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FileId {
    /// `super_block.s_dev` in the kernel's encoding.
    pub device: u32,
    pub generation: u32,
    pub inode: u64,
    /// `S_IFMT` of its mode: overlayfs numbers directories and files apart.
    pub sort: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Protected {
    /// Of [`flag`].
    pub flags: u32,
    /// One of [`kind`].
    pub kind: u32,
}

/// Bytes of a name in a key, NUL included; a longer name never matches.
pub const NAME_BYTES: usize = 32;

/// A name that is protected before there is an inode for it; padded with NULs.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct NameKey {
    /// All zero: any parent.
    pub parent: [u8; NAME_BYTES],
    pub name: [u8; NAME_BYTES],
}

/// Where the console listens.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AddressKey {
    /// IPv4 as ::ffff:a.b.c.d; all zero stands for every loopback and unspecified address.
    pub address: [u8; 16],
    /// In host order.
    pub port: u32,
    pub reserved: u32,
}

#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RefusedKey {
    pub label: u32,
    /// One of [`kind`].
    pub kind: u32,
}

/// How often, and by whom last.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    pub count: u64,
    pub tgid: u32,
    pub uid: u32,
    pub comm: [u8; 16],
}
