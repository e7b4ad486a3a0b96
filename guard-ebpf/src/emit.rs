// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Events to the agent. Each function says whether the event fitted the ring; the caller must not let the action
//! through because it did not.

use core::arch::asm;

use aya_ebpf::helpers::generated::{bpf_get_current_cgroup_id, bpf_get_current_comm, bpf_get_current_uid_gid};
use aya_ebpf::maps::ring_buf::RingBufEntry;
use guard_common::{
    ABI_VERSION, AskAddress, AskExec, AskFile, AskHead, AskUnix, Ended, EventHeader, NAME_ROOM, PATH_ROOM, Parked,
    Pending, REPLY_ROOM, Resolved, Signal, ask_flag, counter, ended, event, verdict,
};

use crate::abi::{S_IFDIR, S_IFMT};
use crate::kernel::{self, Typed};
use crate::maps::{EVENTS, count};
use crate::rules;

/// How an event is submitted. Never by 0: that wakes the agent only if it has read everything before, which it has not as
/// long as a [`QUIET`] one waits.
const WAKE: u64 = 2;
/// The agent looks for it soon enough.
const QUIET: u64 = 1;

const fn header<T>(kind: u16) -> EventHeader {
    EventHeader {
        abi: ABI_VERSION,
        kind,
        size: size_of::<T>() as u32,
    }
}

#[inline(always)]
fn reserve<T>() -> Option<RingBufEntry<T>> {
    let entry = EVENTS.reserve::<T>(0);
    if entry.is_none() {
        count(counter::RING_FULL);
    }
    entry
}

/// Who asks: the current task.
///
/// # Safety
/// `out` is the head of an event that nobody else sees yet.
#[inline(always)]
unsafe fn head(out: *mut AskHead, header: EventHeader, task: u64, pending: &Pending) {
    let me = kernel::me();
    // SAFETY: by contract of this function; every field is written.
    unsafe {
        (*out).header = header;
        (*out).task = task;
        (*out).asked_ns = pending.asked_ns;
        (*out).start_ns = pending.start_ns;
        (*out).cgroup = bpf_get_current_cgroup_id();
        (*out).key = pending.key;
        (*out).tid = pending.tid;
        (*out).tgid = pending.tgid;
        (*out).ppid = kernel::parent_tgid(me);
        let ids = bpf_get_current_uid_gid();
        (*out).uid = ids as u32;
        (*out).gid = (ids >> 32) as u32;
        (*out).login_uid = kernel::login_uid(me);
        (*out).label = pending.label;
        (*out).flags = 0;
        (*out).comm = [0; 16];
        bpf_get_current_comm((&raw mut (*out).comm).cast(), 16);
    }
}

/// What is asked about, for the agent.
pub trait Subject {
    /// Tells the agent; false if the event did not fit the ring.
    fn ask(&self, task: u64, pending: &Pending) -> bool;
}

/// The exec of this `struct file`.
pub struct ExecOf(pub Typed);

impl Subject for ExecOf {
    #[inline(always)]
    fn ask(&self, task: u64, pending: &Pending) -> bool {
        let Some(mut entry) = reserve::<AskExec>() else {
            return false;
        };
        let out = entry.as_mut_ptr();
        let file = self.0;
        // SAFETY: the entry has room for an AskExec and nobody else sees it before it is submitted; every field is written.
        unsafe {
            head(&raw mut (*out).head, header::<AskExec>(event::ASK_EXEC), task, pending);
            rules::exec_key(&raw mut (*out).rule, pending.label, file);
            let walked = kernel::walk(
                kernel::file_path(file.number()),
                (&raw mut (*out).path).cast(),
                &raw mut (*out).path_len,
            );
            let mut flags = 0;
            if walked.whole {
                flags |= ask_flag::PATH_WHOLE;
            }
            if kernel::file_unlinked(file) {
                flags |= ask_flag::UNLINKED;
            }
            (*out).head.flags = flags;
            (*out).mount_namespace = walked.mount_namespace;
        }
        entry.submit(WAKE);
        true
    }
}

/// Reaching an address: the key of the question says which.
pub struct AddressOf {
    /// Of `ask_flag`.
    pub flags: u32,
}

impl Subject for AddressOf {
    #[inline(always)]
    fn ask(&self, task: u64, pending: &Pending) -> bool {
        let Some(mut entry) = reserve::<AskAddress>() else {
            return false;
        };
        let out = entry.as_mut_ptr();
        let key = &pending.key;
        // SAFETY: as above; the address is aligned to 8.
        unsafe {
            head(
                &raw mut (*out).head,
                header::<AskAddress>(event::ASK_ADDRESS),
                task,
                pending,
            );
            (*out).head.flags = self.flags;
            (&raw mut (*out).address)
                .cast::<[u64; 2]>()
                .write([key.extra[0], key.extra[1]]);
            (*out).port = key.device;
            (*out).scope = key.generation;
            let sock = key.inode;
            (*out).family = kernel::sock_family(sock);
            (*out).kind = kernel::sock_type(sock);
            (*out).protocol = kernel::sock_protocol(sock);
            (*out).reserved = 0;
        }
        entry.submit(WAKE);
        true
    }
}

/// Reaching a `struct sock` of the unix family: the key of the question says which.
pub struct UnixOf {
    /// Of `ask_flag`.
    pub flags: u32,
}

impl Subject for UnixOf {
    #[inline(always)]
    fn ask(&self, task: u64, pending: &Pending) -> bool {
        let Some(mut entry) = reserve::<AskUnix>() else {
            return false;
        };
        let out = entry.as_mut_ptr();
        // SAFETY: as above.
        unsafe {
            head(&raw mut (*out).head, header::<AskUnix>(event::ASK_UNIX), task, pending);
            let mut flags = self.flags;
            let peer = pending.key.extra[0];
            (*out).mount_namespace = 0;
            if kernel::unix_dentry(peer) == 0 {
                flags |= ask_flag::ABSTRACT;
                (*out).path_len = kernel::unix_abstract(peer, (&raw mut (*out).path).cast());
            } else {
                let path = (&raw mut (*out).path).cast();
                let walked = kernel::walk(kernel::unix_path(peer), path, &raw mut (*out).path_len);
                if walked.whole {
                    flags |= ask_flag::PATH_WHOLE;
                }
                (*out).mount_namespace = walked.mount_namespace;
            }
            (*out).head.flags = flags;
        }
        entry.submit(WAKE);
        true
    }
}

/// A change of a file or name; kernel objects by number.
pub struct ChangeOf {
    /// 0: not known.
    pub mount: u64,
    pub dentry: u64,
    /// The other name of a rename or link, of the same mount; 0 for none.
    pub second: u64,
    /// Text that belongs to it: what a symlink points at, the name of an attribute; 0 for none.
    pub target: u64,
    /// Of `ask_flag`.
    pub flags: u32,
    pub mode: u32,
    pub numbers: [u32; 2],
}

impl ChangeOf {
    /// Of what this dentry names.
    #[inline(always)]
    pub fn of(mount: u64, dentry: u64) -> Self {
        Self {
            mount,
            dentry,
            second: 0,
            target: 0,
            flags: 0,
            mode: 0,
            numbers: [0; 2],
        }
    }
}

impl Subject for ChangeOf {
    #[inline(always)]
    fn ask(&self, task: u64, pending: &Pending) -> bool {
        let Some(mut entry) = reserve::<AskFile>() else {
            return false;
        };
        let out = entry.as_mut_ptr();
        // SAFETY: as above; every field is written.
        unsafe {
            head(&raw mut (*out).head, header::<AskFile>(event::ASK_FILE), task, pending);
            let mut flags = self.flags;
            let (path, length) = ((&raw mut (*out).path).cast::<u8>(), &raw mut (*out).path_len);
            length.write_volatile(0);
            let walked = kernel::walk_on(self.mount, self.dentry, path, length);
            if walked.whole {
                flags |= ask_flag::PATH_WHOLE;
            }
            (*out).mount_namespace = walked.mount_namespace;
            (*out).first_len = length.read_volatile();
            if self.second != 0 && kernel::walk_on(self.mount, self.second, path, length).whole {
                flags |= ask_flag::SECOND_WHOLE;
            }
            if self.target != 0 {
                let position = length.read_volatile() as usize;
                if position < PATH_ROOM {
                    let written = kernel::copy_str(self.target, path.add(position), NAME_ROOM as u32);
                    length.write_volatile(position as u32 + written);
                }
            }
            (*out).mode = self.mode;
            (*out).numbers = self.numbers;
            let inode = kernel::dentry_inode(self.dentry);
            let mode = if inode == 0 { 0 } else { kernel::inode_mode(inode) };
            if mode & S_IFMT == S_IFDIR {
                flags |= ask_flag::DIRECTORY;
            }
            (*out).old_mode = mode.into();
            (*out).size = if inode == 0 { 0 } else { kernel::inode_size(inode) };
            (*out).reserved = 0;
            (*out).head.flags = flags;
        }
        entry.submit(WAKE);
        true
    }
}

/// The question of `task` is over.
#[inline(always)]
pub fn ended(task: u64, pending: &Pending, how: u32, errno: u32) {
    let Some(mut entry) = reserve::<Ended>() else {
        return;
    };
    entry.write(Ended {
        header: header::<Ended>(event::ENDED),
        task,
        asked_ns: pending.asked_ns,
        at_ns: kernel::boot_ns(),
        tid: pending.tid,
        how,
        errno,
        verdict: pending.verdict,
    });
    // Nobody waits to hear that what was allowed has happened, and telling it would take the CPU from whoever did it.
    let quiet = pending.verdict == verdict::ALLOW && (how == ended::COMMITTED || how == ended::RETURNED);
    entry.submit(if quiet { QUIET } else { WAKE });
}

/// `task` was stopped by SIGSTOP alone.
#[inline(always)]
pub fn parked(task: u64, pending: &Pending, state: u32) -> bool {
    let Some(mut entry) = reserve::<Parked>() else {
        return false;
    };
    entry.write(Parked {
        header: header::<Parked>(event::PARKED),
        task,
        asked_ns: pending.asked_ns,
        tid: pending.tid,
        tgid: pending.tgid,
        state,
        reserved: 0,
    });
    entry.submit(WAKE);
    true
}

/// A signal for a process that has questions.
#[inline(always)]
pub fn signal(tid: u32, tgid: u32, signal: u32, group: u32) {
    let Some(mut entry) = reserve::<Signal>() else {
        return;
    };
    entry.write(Signal {
        header: header::<Signal>(event::SIGNAL),
        tid,
        tgid,
        signal,
        group,
    });
    entry.submit(WAKE);
}

/// What a resolver told a workload. Nobody waits for it, and nothing rests on it: what does not fit is not told.
#[inline(always)]
pub fn resolved(label: u32, resolver: [u64; 2], network_namespace: u32, reply: u64, length: u32) {
    let mut length = u64::from(length);
    if length >= REPLY_ROOM as u64 {
        return;
    }
    // So that the verifier knows a bound of this very register.
    // SAFETY: changes the register alone.
    unsafe { asm!("{length} &= 2047", length = inout(reg) length) };
    // Not counted among the lost: no thread waits for it.
    let Some(mut entry) = EVENTS.reserve::<Resolved>(0) else {
        return;
    };
    let out = entry.as_mut_ptr();
    // SAFETY: as in ExecOf::ask; the reply has room for the length.
    unsafe {
        (*out).header = header::<Resolved>(event::RESOLVED);
        (*out).label = label;
        (*out).len = length as u32;
        (&raw mut (*out).resolver).cast::<[u64; 2]>().write(resolver);
        (*out).network_namespace = network_namespace;
        (*out).reserved = 0;
        kernel::copy(reply, (&raw mut (*out).reply).cast(), length as u32);
    }
    entry.submit(QUIET);
}

/// A cgroup came or went.
#[inline(always)]
pub fn cgroup(kind: u16, id: u64, label: u32, path: u64) {
    use guard_common::{CGROUP_PATH_ROOM, Cgroup};
    let Some(mut entry) = reserve::<Cgroup>() else {
        return;
    };
    let out = entry.as_mut_ptr();
    // SAFETY: as in ExecOf::ask.
    unsafe {
        (*out).header = header::<Cgroup>(kind);
        (*out).id = id;
        (*out).label = label;
        (*out).path_len = kernel::copy_str(path, (&raw mut (*out).path).cast(), CGROUP_PATH_ROOM as u32);
    }
    entry.submit(WAKE);
}

const _: () = assert!(PATH_ROOM.is_multiple_of(8) && REPLY_ROOM == 2048);
