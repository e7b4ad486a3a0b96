// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Exact rules: what the policy allowed by the kernel's key alone is allowed again without a question, and counted.
//!
//! Owns the look into RULES, which the agent fills, and the word that says when paths changed. It must never allow while
//! nobody lives who could say that the policy changed, nor a task that has a question, nor what is not wholly in the key.
//!
//! The policy decides an exec by its path, the hook compares the file. A rule holds only as long as this file can have no
//! other path than the one that was decided on, and no other content:
//!
//! - Any change of the inode (its content, a new name, another one, one name less) changes its ctime, which is part of the key. The
//!   agent learns nothing of a file that was changed within the last two seconds, so the same tick of the clock is not used twice.
//!   Only file systems of which this is known count, and no file with several names: the others are other paths.
//! - Whoever has the file open for writing, a shared mapping included, is counted in `i_writecount`: then no rule counts.
//! - The same file through another mount has another `struct vfsmount`, which is part of the key, too. The agent learns only paths
//!   of the host's own mount namespace.
//! - A directory above it that was renamed, by whomever, changes neither. It moves the word MOVED instead, and a rule counts only
//!   if it was asked for after that; so do changes of mounts, and since their hook comes before the change, a while is added.

use aya_ebpf::macros::{fexit, lsm};
use aya_ebpf::programs::{FExitContext, LsmContext};
use guard_common::rules::{RuleKey, word};
use guard_common::{ActionKey, action};

use crate::abi::{S_IFDIR, S_IFMT};
use crate::kernel::{self, Typed};
use crate::maps::{CONFIG, HEARTBEAT, ORIGINS, PENDING, RULES, TASKS, USES, WORDS, add};

/// For a change of mounts to be done that was announced.
const SETTLED_NS: u64 = 2_000_000_000;

/// File systems that change the ctime with everything, and number their inodes once.
#[inline(always)]
const fn is_known(magic: u64) -> bool {
    const EXT4: u64 = 0xef53;
    const XFS: u64 = 0x5846_5342;
    const TMPFS: u64 = 0x0102_1994;
    const EROFS: u64 = 0xe0f5_e1e2;
    const SQUASHFS: u64 = 0x7371_7368;
    matches!(magic, EXT4 | XFS | TMPFS | EROFS | SQUASHFS)
}

/// What a rule for the exec of this file would name. A function of its own: the verifier forgets which way it took.
///
/// # Safety
/// `out` has room for it.
#[inline(never)]
pub unsafe fn exec_key(out: *mut RuleKey, label: u32, file: Typed) {
    let inode = kernel::file_inode(file);
    let superblock = kernel::inode_super(inode);
    let fits = kernel::inode_links(inode) == 1
        && kernel::inode_writers(inode) <= 0
        && is_known(kernel::super_magic(superblock));
    let id = kernel::file_id(inode);
    let (seconds, nanoseconds) = kernel::inode_changed(inode);
    // SAFETY: by contract of this function; every field is written.
    unsafe {
        (*out).label = label;
        (*out).kind = if fits { action::EXEC } else { 0 };
        (*out).op = 0;
        (*out).device = id.device;
        (*out).generation = id.generation;
        (*out).how = nanoseconds;
        (*out).inode = id.inode;
        (*out).extra = [seconds, kernel::file_mount(file)];
    }
}

/// Whether a rule allows the exec of this file to the current task, its interpreters included; the use is counted.
#[inline(never)]
pub fn exec_allowed(task: u64, file: Typed) -> bool {
    let Some(stamp) = TASKS.get_ptr_mut(task) else {
        return false;
    };
    // SAFETY: a live map value; nobody but the task's own hooks writes this field.
    let origin = unsafe {
        (*stamp).exec_by_rule = 0;
        (*stamp).origin
    };
    // SAFETY: copied at once.
    let Some(label) = (unsafe { ORIGINS.get(origin) }).map(|origin| origin.label) else {
        return false;
    };
    let mut key = RuleKey::default();
    // SAFETY: it is on our stack.
    unsafe { exec_key(&raw mut key, label, file) };
    let allowed = key.kind != 0 && allows(task, &key);
    if allowed {
        // SAFETY: as above.
        unsafe { (*stamp).exec_by_rule = 1 };
    }
    allowed
}

/// Whether a rule allowed the exec that the current task is in.
#[inline(always)]
pub fn in_exec(task: u64) -> bool {
    // SAFETY: read at once.
    match unsafe { TASKS.get(task) } {
        Some(stamp) => stamp.exec_by_rule != 0,
        None => false,
    }
}

/// Whether a rule allows to reach the address of this key; the use is counted. A function of its own: the stack is short.
#[inline(never)]
pub fn reach_allowed(label: u32, key: &ActionKey, flags: u32) -> bool {
    let key = RuleKey {
        label,
        kind: action::REACH,
        op: key.op,
        device: key.device,
        generation: key.generation,
        how: flags,
        inode: 0,
        extra: [key.extra[0], key.extra[1]],
    };
    allows(kernel::current(), &key)
}

#[inline(always)]
fn allows(task: u64, key: &RuleKey) -> bool {
    let generation = of_word(word::GENERATION);
    if generation == 0 || !is_answered() {
        return false;
    }
    // SAFETY: read at once; the agent writes an entry as a whole.
    let Some(rule) = (unsafe { RULES.get(key) }) else {
        return false;
    };
    if rule.generation != generation || rule.asked_ns < of_word(word::MOVED) + SETTLED_NS {
        return false;
    }
    // Its own question is answered first; a new image that nobody compared yet does nothing.
    // SAFETY: not kept.
    if unsafe { PENDING.get(task) }.is_some() {
        return false;
    }
    let Some(uses) = USES.get_ptr_mut(rule.slot) else {
        return false;
    };
    // SAFETY: a live map value.
    unsafe { add(uses, 1) };
    true
}

#[inline(always)]
fn of_word(which: u32) -> u64 {
    match WORDS.get_ptr(which) {
        // SAFETY: a live map value.
        Some(word) => unsafe { word.read_volatile() },
        None => 0,
    }
}

/// Whether the agent lives.
#[inline(always)]
fn is_answered() -> bool {
    match (HEARTBEAT.get(0), CONFIG.get(0)) {
        (Some(beat), Some(config)) => *beat + config.heartbeat_limit_ns >= kernel::boot_ns(),
        _ => false,
    }
}

// ---- paths that change ----

#[inline(always)]
fn moved() {
    if let Some(word) = WORDS.get_ptr_mut(word::MOVED) {
        // SAFETY: a live map value. Of two at the same moment either is late enough.
        unsafe { word.write_volatile(kernel::boot_ns()) };
    }
}

#[inline(always)]
fn is_directory(dentry: Typed) -> bool {
    kernel::inode_mode(kernel::dentry_inode(dentry)) & S_IFMT == S_IFDIR
}

/// The end of `vfs_rename(renamedata)`: what is below a directory has another path now.
#[fexit]
pub fn guard_rules_rename(context: FExitContext) -> i32 {
    let (old, new) = kernel::renamed(kernel::object(&context, 0));
    if is_directory(old) || is_directory(new) {
        moved();
    }
    0
}

macro_rules! mount_hook {
    ($($hook:literal $program:ident;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(_context: LsmContext) -> i32 {
                moved();
                0
            }
        )*
    };
}

mount_hook! {
    "sb_mount" guard_rules_mount;
    "move_mount" guard_rules_move;
    "sb_umount" guard_rules_umount;
    "sb_pivotroot" guard_rules_root;
}
