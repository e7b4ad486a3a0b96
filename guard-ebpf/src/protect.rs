// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What no decision opens: a labelled task never reaches the console, the agent, or an approver's sign-in.
//!
//! Owns the hooks that refuse it; given PROTECTED, NAMES and ADDRESSES, which the agent fills. It must never hold
//! anybody, and never look further at a task that has no label.
//!
//! A directory that is hidden is closed for every way through it (`inode_permission`) and for whatever hangs below it,
//! however it is reached (the walk up from a file that is opened or used). Names cover what does not exist yet.

use aya_ebpf::helpers::generated::{bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_get_current_uid_gid};
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::errno;
use guard_common::protect::{AddressKey, FileId, NameKey, Protected, Refused, RefusedKey, flag, kind};

use crate::abi::{FMODE_WRITE, MAY_APPEND, MAY_WRITE, PROC_MAGIC, S_IFBLK, S_IFCHR, S_IFDIR, S_IFMT, S_IFREG};
use crate::kernel::{Object, Typed};
use crate::maps::{ADDRESSES, CONFIG, NAMES, PROTECTED, REFUSED, add};
use crate::privilege::refuse_if;
use crate::scope::Label;
use crate::{kernel, scope, stay};

/// Levels that the walk up from an open file takes: whoever hangs deeper below a protected directory was put there by
/// somebody without a label, and is reached through it alone. More levels take longer to verify at each start.
const DEPTH: usize = 20;
/// Levels above a name that is made, moved or taken away.
const NEAR: usize = 6;
const PTRACE_MODE_ATTACH: u32 = 2;
const PTRACE_MODE_NOAUDIT: u32 = 4;
const TIOCSTI: u32 = 0x5412;
const TIOCLINUX: u32 = 0x541c;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const AF_UNSPEC: u16 = 0;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// Nothing was found.
const NONE: Protected = Protected { flags: 0, kind: 0 };

#[inline(always)]
fn label() -> Option<Label> {
    scope::label(kernel::current())
}

/// Counts what is refused.
#[inline(always)]
pub fn count_refused(label: &Label, kind: u32) {
    let key = RefusedKey {
        label: label.label,
        kind,
    };
    if REFUSED.get_ptr_mut(key).is_none() {
        // Somebody else may have been quicker.
        let _ = REFUSED.insert(key, Refused::default(), 1);
    }
    if let Some(refused) = REFUSED.get_ptr_mut(key) {
        // SAFETY: a live map value. Its fields but the count may be of different attempts: they are a hint for people.
        unsafe {
            (*refused).tgid = (bpf_get_current_pid_tgid() >> 32) as u32;
            (*refused).uid = bpf_get_current_uid_gid() as u32;
            bpf_get_current_comm((&raw mut (*refused).comm).cast(), 16);
            add(&raw mut (*refused).count, 1);
        }
    }
}

// ---- files ----

/// An inode's entry. The verifier looks at this, at [`guard_name`] and at [`guard_pair`] once for each program, whatever their callers know,
/// because they are global functions of numbers; as parts of the walks up they took a third of the time of a start.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_inode(device: u32, generation: u32, inode: u64, sort: u32) -> u64 {
    let key = FileId {
        device,
        generation,
        inode,
        sort,
        reserved: 0,
    };
    // SAFETY: copied at once.
    packed(unsafe { PROTECTED.get(key) })
}

/// The entry of a name that the kernel has there.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_name(name: u64) -> u64 {
    let mut key = NameKey::default();
    kernel::name(name, &mut key.name);
    // SAFETY: copied at once.
    packed(unsafe { NAMES.get(key) })
}

/// The entry of a name together with its parent's.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_pair(name: u64, parent: u64) -> u64 {
    let mut key = NameKey::default();
    kernel::name(name, &mut key.name);
    kernel::name(parent, &mut key.parent);
    // SAFETY: copied at once.
    packed(unsafe { NAMES.get(key) })
}

#[inline(always)]
fn packed(found: Option<&Protected>) -> u64 {
    found.map_or(0, |found| u64::from(found.kind) << 32 | u64::from(found.flags))
}

#[inline(always)]
fn unpacked(found: u64) -> Protected {
    Protected {
        flags: found as u32,
        kind: (found >> 32) as u32,
    }
}

#[inline(always)]
fn of_inode<O: Object>(inode: O) -> Protected {
    if inode.is_null() {
        return NONE;
    }
    let id = kernel::file_id(inode);
    unpacked(guard_inode(id.device, id.generation, id.inode, id.sort))
}

#[inline(always)]
fn is_home<O: Object>(dentry: O) -> bool {
    of_inode(kernel::dentry_inode(dentry)).flags & flag::HOME != 0
}

/// What a name is where it is.
#[inline(always)]
fn of_name<O: Object>(dentry: O, parent: O) -> Protected {
    let name = kernel::dentry_name_at(dentry);
    let mut found = unpacked(guard_name(name));
    if found.flags & flag::PAIR != 0 {
        let pair = guard_pair(name, kernel::dentry_name_at(parent));
        if pair != 0 {
            found = unpacked(pair);
        }
    }
    if found.flags & flag::BELOW_HOME != 0 && !is_home(parent) {
        return NONE;
    }
    if found.flags & flag::TWO_BELOW_HOME != 0 && !is_home(kernel::dentry_parent(parent)) {
        return NONE;
    }
    found
}

/// The first of `flags` within so many levels from the dentry up; names count too `WITH_NAMES`.
#[inline(always)]
fn above<const LEVELS: usize, const WITH_NAMES: bool, O: Object>(dentry: O, flags: u32) -> u32 {
    let mut here = dentry;
    for _ in 0..LEVELS {
        let found = of_inode(kernel::dentry_inode(here));
        if found.flags & flags != 0 {
            return found.kind;
        }
        let parent = kernel::dentry_parent(here);
        if parent == here || parent.is_null() {
            break;
        }
        if WITH_NAMES {
            let found = of_name(here, parent);
            if found.flags & flags != 0 {
                return found.kind;
            }
        }
        here = parent;
    }
    0
}

/// Disks and the machine's memory: whoever reads them reads every file.
#[inline(always)]
fn is_raw<O: Object>(inode: O, mode: u16) -> bool {
    match mode & S_IFMT {
        S_IFBLK => true,
        // mem, kmem, port
        S_IFCHR => matches!(kernel::inode_device_number(inode), 0x10_0001 | 0x10_0002 | 0x10_0004),
        _ => false,
    }
}

/// An inode on the way of a path or at its end.
#[lsm(hook = "inode_permission")]
pub fn guard_protect_inode(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    let inode = kernel::object(&context, 0);
    let mask = kernel::plain(&context, 1) as u32;
    let found = of_inode(inode);
    let writes = mask & (MAY_WRITE | MAY_APPEND) != 0;
    let refused = found.flags & flag::HIDE != 0 || writes && found.flags & flag::KEEP != 0;
    refuse_if!(
        label,
        if refused {
            found.kind
        } else {
            stay::refuses_inode(&label, inode, mask)
        }
    )
}

#[lsm(hook = "file_open")]
pub fn guard_protect_open(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    let file = kernel::object(&context, 0);
    refuse_if!(label, opened(file))
}

#[inline(always)]
fn opened(file: Typed) -> u32 {
    let inode = kernel::file_inode(file);
    let mode = kernel::inode_mode(inode);
    if is_raw(inode, mode) {
        return kind::DEVICE;
    }
    let writes = kernel::file_mode(file) & FMODE_WRITE != 0;
    let dentry = kernel::file_dentry(file);
    let superblock = kernel::inode_super(inode);
    if kernel::super_magic(superblock) == PROC_MAGIC {
        return of_proc(inode, dentry, writes);
    }
    let flags = if writes { flag::HIDE | flag::KEEP } else { flag::HIDE };
    let found = above::<DEPTH, true, _>(dentry, flags);
    if found != 0 {
        return found;
    }
    // Opened by handle: the kernel has no name for it, so nobody knows where it is.
    let nameless = mode & S_IFMT == S_IFREG
        && kernel::dentry_parent(dentry) == dentry
        && kernel::super_on_disk(superblock)
        && kernel::super_root(superblock) != dentry
        && kernel::inode_links(inode) != 0;
    if nameless { kind::NAMELESS } else { 0 }
}

/// What /proc shows of others' memory, and every change of others through /proc. The rest asks `ptrace_access_check`,
/// but newer kernels let CAP_PERFMON read these without.
#[inline(always)]
fn of_proc(inode: Typed, dentry: Typed, writes: bool) -> u32 {
    let mut name = [0u8; 32];
    kernel::dentry_name(dentry, &mut name);
    let start = u64::from_le_bytes([name[0], name[1], name[2], name[3], name[4], name[5], name[6], name[7]]);
    let task = kernel::proc_task(inode.number());
    if task == 0 && start == word(b"kcore") {
        return kind::DEVICE;
    }
    if writes {
        return written_in_proc(task);
    }
    let memory = start == word(b"environ")
        || start == word(b"mem")
        || start == word(b"maps")
        || start == word(b"smaps")
        || start == word(b"smaps_ro")
        || start == word(b"numa_map")
        || start == word(b"pagemap")
        || start == word(b"auxv");
    if task == 0 || !memory {
        return 0;
    }
    match label() {
        Some(label) if !inside(&label, task) => {
            if is_guard(task) {
                kind::PROCESS
            } else {
                kind::PROCESS_READ
            }
        }
        _ => 0,
    }
}

/// The first eight bytes of a name.
const fn word(name: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let mut at = 0;
    while at < name.len() {
        bytes[at] = name[at];
        at += 1;
    }
    u64::from_le_bytes(bytes)
}

/// A write to a file of this task in /proc, or, for 0, to one of nobody: /proc/sys, sysrq-trigger and their like.
#[inline(always)]
fn written_in_proc(task: u64) -> u32 {
    if task == 0 {
        return kind::TUNABLE;
    }
    match label() {
        Some(label) if !inside(&label, task) => kind::PROCESS,
        _ => 0,
    }
}

/// A descriptor that was opened before the label, or was handed over.
#[inline(always)]
fn used(file: Typed, writes: bool) -> u32 {
    let inode = kernel::file_inode(file);
    let mode = kernel::inode_mode(inode);
    let sort = mode & S_IFMT;
    if sort == S_IFREG || sort == S_IFDIR {
        if writes && kernel::super_magic(kernel::inode_super(inode)) == PROC_MAGIC {
            return written_in_proc(kernel::proc_task(inode.number()));
        }
        let flags = if writes { flag::HIDE | flag::KEEP } else { flag::HIDE };
        return above::<DEPTH, false, _>(kernel::file_dentry(file), flags);
    }
    if is_raw(inode, mode) { kind::DEVICE } else { 0 }
}

#[lsm(hook = "file_permission")]
pub fn guard_protect_use(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    let file = kernel::object(&context, 0);
    let mask = kernel::plain(&context, 1) as u32;
    let found = used(file, mask & (MAY_WRITE | MAY_APPEND) != 0);
    refuse_if!(
        label,
        if found != 0 {
            found
        } else {
            stay::refuses_file(&label, file, mask)
        }
    )
}

#[lsm(hook = "mmap_file")]
pub fn guard_protect_map(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    let file = kernel::object(&context, 0);
    if file.is_null() {
        return 0;
    }
    // A shared mapping for writing needs a descriptor for writing, which was looked at.
    refuse_if!(label, used(file, false))
}

/// A name is made, moved or taken away, or what it names is changed.
#[inline(always)]
fn changed(dentry: Typed) -> u32 {
    above::<NEAR, true, _>(dentry, flag::HIDE | flag::KEEP)
}

/// Something else than a directory comes to be under this name, or the name goes away: the first part of a protected
/// path in a home must stay the directory that it is.
#[inline(always)]
fn replaced(dentry: Typed) -> u32 {
    let found = changed(dentry);
    if found != 0 {
        return found;
    }
    let parent = kernel::dentry_parent(dentry);
    let found = of_name(dentry, parent);
    if found.flags & flag::FIRST != 0 && is_home(parent) {
        found.kind
    } else {
        0
    }
}

macro_rules! name_hook {
    ($($hook:literal $program:ident $check:ident $($argument:literal)+;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(context: LsmContext) -> i32 {
                let Some(label) = label() else { return 0 };
                $(
                    let found = $check(kernel::object(&context, $argument));
                    if found != 0 {
                        return refuse_if!(label, found);
                    }
                )+
                0
            }
        )*
    };
}

name_hook! {
    "path_unlink" guard_protect_unlink changed 1;
    "path_rmdir" guard_protect_rmdir changed 1;
    "path_mkdir" guard_protect_mkdir changed 1;
    "path_mknod" guard_protect_mknod replaced 1;
    "path_symlink" guard_protect_symlink replaced 1;
    "path_link" guard_protect_link replaced 0 2;
    "path_rename" guard_protect_rename replaced 1 3;
}

macro_rules! path_hook {
    ($($hook:literal $program:ident;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(context: LsmContext) -> i32 {
                let Some(label) = label() else { return 0 };
                refuse_if!(label, changed(kernel::path_dentry(kernel::object(&context, 0))))
            }
        )*
    };
}

path_hook! {
    "path_chmod" guard_protect_chmod;
    "path_chown" guard_protect_chown;
    "path_truncate" guard_protect_truncate;
}

/// ftruncate(2), on kernels that do not send it to `path_truncate`.
#[lsm(hook = "file_truncate")]
pub fn guard_protect_ftruncate(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    refuse_if!(label, used(kernel::object(&context, 0), true))
}

// ---- addresses and sockets ----

/// The console's address, whichever way it is written; 0 for any other. A function of its own: the stack is short.
#[inline(never)]
pub fn address(address: u64, length: u32, message: bool) -> u32 {
    if address == 0 || length < 16 {
        return 0;
    }
    const ONE: u64 = u64::from_ne_bytes([0, 0, 0, 0, 0, 0, 0, 1]);
    const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
    // Both targets are little endian.
    const V4: u64 = 0xffff_ffff << 32;
    let family = kernel::address_family(address, length);
    let mut halves = if family == AF_INET || message && family == AF_UNSPEC {
        // sendmsg(2) without a family means IPv4 to some.
        [0, MAPPED | (kernel::address_v4(address) as u64) << 32]
    } else if family == AF_INET6 && length >= 24 {
        kernel::address_v6(address)
    } else {
        return 0;
    };
    let [first, second] = halves;
    let here = if second & !V4 == MAPPED {
        second & V4 == 0 || second >> 32 & 0xff == 127
    } else {
        second == 0 || second == ONE
    };
    if first == 0 && here {
        halves = [0, 0];
    }
    let whole = [halves[0], halves[1], kernel::address_port(address) as u64];
    // SAFETY: of the same size; every bit pattern is a key: an address, the port and four zeros.
    let key: AddressKey = unsafe { core::mem::transmute(whole) };
    // SAFETY: copied at once.
    match unsafe { ADDRESSES.get(key) } {
        Some(found) => *found,
        None => 0,
    }
}

/// Whether a unix socket, whatever it was called, is Guard's; 0 if not.
#[inline(always)]
pub fn peer(sock: u64) -> u32 {
    let dentry = kernel::unix_dentry(sock);
    if dentry == 0 {
        0
    } else {
        above::<NEAR, false, _>(dentry, flag::HIDE)
    }
}

// ---- processes ----

/// Whether a task belongs to the same workload.
#[inline(always)]
fn inside(label: &Label, task: u64) -> bool {
    if task == kernel::current() {
        return true;
    }
    scope::label(task).is_some_and(|other| other.label == label.label)
}

/// Runs one of Guard's programs.
#[inline(always)]
fn is_guard(task: u64) -> bool {
    if let Some(config) = CONFIG.get(0)
        && config.agent_tgid == kernel::tgid(task)
    {
        return true;
    }
    of_inode(kernel::executable_inode(task)).kind == kind::PROGRAM
}

#[lsm(hook = "ptrace_access_check")]
pub fn guard_protect_trace(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    let task = kernel::argument(&context, 0);
    let mode = kernel::argument(&context, 1) as u32;
    if inside(&label, task) {
        return 0;
    }
    if mode & PTRACE_MODE_NOAUDIT != 0 && mode & PTRACE_MODE_ATTACH == 0 {
        // ps(1) asks so for every process; the answer only leaves addresses out.
        return -errno::EPERM;
    }
    let grave = mode & PTRACE_MODE_ATTACH != 0 || is_guard(task);
    refuse_if!(label, if grave { kind::PROCESS } else { kind::PROCESS_READ })
}

macro_rules! guard_hook {
    ($($hook:literal $program:ident;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(context: LsmContext) -> i32 {
                let Some(label) = label() else { return 0 };
                let task = kernel::argument(&context, 0);
                let refused = !inside(&label, task) && is_guard(task);
                refuse_if!(label, if refused { kind::SIGNAL } else { 0 })
            }
        )*
    };
}

/// fn(target, info, signal, cred): what a task sends, not what the kernel tells by itself. Whether somebody is there may be asked.
#[lsm(hook = "task_kill")]
pub fn guard_protect_kill(context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    let task = kernel::argument(&context, 0);
    if inside(&label, task) {
        return 0;
    }
    let found = if is_guard(task) {
        kind::SIGNAL
    } else if kernel::plain(&context, 2) as u32 != 0 {
        kind::SIGNAL_OUT
    } else {
        0
    };
    refuse_if!(label, found)
}

guard_hook! {
    "task_setrlimit" guard_protect_limit;
    "task_setscheduler" guard_protect_scheduler;
    "task_setnice" guard_protect_nice;
}

/// Maps and programs can be had by number, past every pin.
#[lsm(hook = "bpf")]
pub fn guard_protect_bpf(_context: LsmContext) -> i32 {
    let Some(label) = label() else { return 0 };
    refuse_if!(label, kind::BPF)
}

/// Input that is typed into the terminal for its owner: an approver's shell would run it.
#[inline(always)]
fn typed(context: &LsmContext) -> i32 {
    let command = kernel::plain(context, 1) as u32;
    let found = match command {
        TIOCSTI | TIOCLINUX => kind::TERMINAL,
        // See `privilege::guard_privilege_owner`: whom, is in user memory.
        FIOSETOWN | SIOCSPGRP => kind::SIGNAL_OUT,
        _ => return 0,
    };
    let Some(label) = label() else { return 0 };
    refuse_if!(label, found)
}

#[lsm(hook = "file_ioctl")]
pub fn guard_protect_ioctl(context: LsmContext) -> i32 {
    typed(&context)
}

/// The same from a 32-bit process, on kernels that tell them apart.
#[lsm(hook = "file_ioctl_compat")]
pub fn guard_protect_ioctl32(context: LsmContext) -> i32 {
    typed(&context)
}
