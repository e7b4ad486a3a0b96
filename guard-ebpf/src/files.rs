// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! File changes: a labelled task changes no file and no name without an answer, but in its free space.
//!
//! Owns the hooks of names, of opening for writing and of attributes, and OPENED, which remembers through which open files
//! a label may write. Given LABELS (which labels are asked) and FREE. It must never hold below overlayfs, while a core is
//! dumped, or when the file is made already: there a restart repeats what was done.
//!
//! A key names inodes by device, number and generation, and a name by its directory and a hash: SipHash with a key that only
//! the agent and these programs know. Without the key nobody finds two names of one hash, and a guess that fails is a
//! question that people see; so 64 bits bind the whole name.

use aya_ebpf::helpers::generated::bpf_probe_read_kernel_str;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::protect::kind;
use guard_common::{
    ActionKey, FreeKey, OPEN_SLOTS, OpenFilter, action, ask_flag, counter, ended, errno, file_op, verdict, writes,
};

use crate::abi::{FMODE_WRITE, MAY_WRITE, PROC_MAGIC, S_IFBLK, S_IFCHR, S_IFDIR, S_IFMT, S_IFREG};
use crate::emit::ChangeOf;
use crate::kernel;
use crate::maps::{CONFIG, FREE, OPEN_FILTER, OPENED, PENDING, add32, count};
use crate::protect::count_refused;
use crate::quota;
use crate::scope::{self, Label};
use crate::verdict::{self as questions, Answer, finish};

/// Levels that are looked at for free space above a file.
const DEPTH: usize = 32;
const FMODE_CREATED: u32 = 0x10_0000;
const O_TRUNC: u32 = 0o1000;
const O_TMPFILE_ALONE: u32 = 0o20_000_000;
const S_IFIFO: u16 = 0o010_000;
const MAP_TYPE: u64 = 0xf;
const MAP_PRIVATE: u64 = 2;
const PROT_WRITE: u64 = 2;
const VM_WRITE: u64 = 2;
const VM_SHARED: u64 = 8;
const PF_DUMPCORE: u32 = 0x200;
const RENAME_EXCHANGE: u32 = 2;
const SB_KERNMOUNT: u64 = 1 << 22;
const MQUEUE_MAGIC: u64 = 0x1980_0202;

/// The verifier wants constants.
macro_rules! answer {
    ($answer:expr) => {
        match $answer {
            Answer::Pass => 0,
            Answer::Refuse => -errno::EPERM,
            Answer::Restart => -errno::ERESTARTNOINTR,
        }
    };
}

/// The label of the current task; `None`: nobody is asked about what it changes.
#[inline(always)]
fn asker() -> Option<Label> {
    let label = scope::label(kernel::current())?;
    (quota::settings(label.label).writes != writes::FREE).then_some(label)
}

// ---- through which open files a label may write ----

#[inline(always)]
fn slot(filter: *mut OpenFilter, file: u64) -> *mut u32 {
    const SHIFT: u32 = 64 - OPEN_SLOTS.trailing_zeros();
    let index = file.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> SHIFT;
    // SAFETY: the index is within the array; nothing is read.
    unsafe { (&raw mut (*filter).slots).cast::<u32>().add(index as usize) }
}

/// Remembers that the label may write through it. Without room it is asked about again.
#[inline(never)]
fn remember(file: u64, label: u32) {
    let Some(filter) = OPEN_FILTER.get_ptr_mut(0) else {
        return;
    };
    forget(file);
    if !quota::enter_file(label) {
        return;
    }
    // Before the entry is there: a file whose slot is 0 surely has none.
    // SAFETY: a live map value.
    unsafe { add32(slot(filter, file), 1) };
    if OPENED.insert(file, label, 1).is_ok() {
        return;
    }
    // SAFETY: as above.
    unsafe { add32(slot(filter, file), u32::MAX) };
    quota::leave_file(label);
    count(counter::OPENED_FULL);
}

#[inline(always)]
fn forget(file: u64) {
    let Some(filter) = OPEN_FILTER.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live map value.
    if unsafe { slot(filter, file).read_volatile() } == 0 {
        return;
    }
    // SAFETY: copied at once.
    let Some(label) = (unsafe { OPENED.get(file) }).copied() else {
        return;
    };
    // Only one remover succeeds.
    if OPENED.remove(file).is_ok() {
        // SAFETY: as above.
        unsafe { add32(slot(filter, file), u32::MAX) };
        quota::leave_file(label);
    }
}

/// Whether the label may write through this open file.
#[inline(always)]
fn is_opened(asker: &Label, file: u64) -> bool {
    // SAFETY: copied at once.
    match unsafe { OPENED.get(file) } {
        Some(label) => *label == asker.label,
        None => false,
    }
}

/// The address may be given to another open file from here on.
#[lsm(hook = "file_free_security")]
pub fn guard_files_free(context: LsmContext) -> i32 {
    forget(kernel::argument(&context, 0));
    0
}

// ---- what needs no question ----

/// Whether something in this directory is changed unasked: it, or one above it up to the root of its file system, is free space
/// of the label.
///
/// The one place that says so: what must be asked about wherever it lies is to be left out here.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_is_free(label: u32, directory: u64) -> bool {
    let mut here = directory;
    for _ in 0..DEPTH {
        let directory = kernel::file_id(kernel::dentry_inode(here));
        let free = |label| {
            let key = FreeKey {
                directory,
                label,
                reserved: 0,
            };
            // SAFETY: not kept.
            unsafe { FREE.get(key) }.is_some()
        };
        if free(label) || free(0) {
            return true;
        }
        let parent = kernel::dentry_parent(here);
        if parent == here || parent == 0 {
            break;
        }
        here = parent;
    }
    false
}

/// [`guard_is_free`] for what this dentry names.
#[inline(always)]
fn is_free(asker: &Label, dentry: u64) -> bool {
    guard_is_free(asker.label, kernel::dentry_parent(dentry))
}

/// Whether writing to this open file changes a file of somebody: not pipes, sockets, memory that is called a file, the devices that
/// keep nothing, terminals, nor what a process of the workload says of itself in /proc. `used`: through a descriptor that is
/// open already, so that only what keeps content counts.
#[inline(always)]
fn is_real(asker: &Label, file: u64, used: bool) -> bool {
    let inode = kernel::file_inode(file);
    let sort = kernel::inode_mode(inode) & S_IFMT;
    let superblock = kernel::inode_super(inode);
    let magic = kernel::super_magic(superblock);
    match sort {
        S_IFREG => {}
        S_IFIFO => {
            if used {
                return false;
            }
        }
        S_IFCHR => {
            let number = kernel::inode_device_number(inode);
            // null, zero, full, random, urandom; tty, ptmx; the terminals of programs.
            let harmless = matches!(
                number,
                0x10_0003 | 0x10_0005 | 0x10_0007 | 0x10_0008 | 0x10_0009 | 0x50_0000 | 0x50_0002
            ) || number >> 20 >= 136 && number >> 20 <= 143;
            return !used && !harmless;
        }
        _ => return false,
    }
    // Pipes, sockets, memfd and their like, in file systems that nobody mounts.
    if kernel::super_flags(superblock) & SB_KERNMOUNT != 0 && magic != MQUEUE_MAGIC {
        return false;
    }
    if magic == PROC_MAGIC {
        let task = kernel::proc_task(inode);
        let own = task != 0 && scope::label(task).is_some_and(|other| other.label == asker.label);
        // Who logged in is in records.
        return !own || kernel::word_at(kernel::name_of(kernel::file_dentry(file))) == u64::from_le_bytes(*b"loginuid");
    }
    true
}

/// What is known before anybody is asked: PASS, REFUSE, or ASK. A function of its own: the stack is short.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_before(label: u32, free: u64) -> u64 {
    let label = Label { label };
    let task = kernel::current();
    let dumps = kernel::task_flags(task) & PF_DUMPCORE != 0;
    if kernel::acts_for_another(task) && !dumps {
        // Below overlayfs: the caller's own path was asked about above it.
        return PASS;
    }
    if questions::awaits_check(task) {
        count(counter::CHANGED_EARLY);
        return REFUSE;
    }
    if free != 0 {
        settle(task);
        return PASS;
    }
    if dumps {
        count_refused(&label, kind::DUMP);
        return REFUSE;
    }
    ASK
}

const ASK: u64 = 0;
const PASS: u64 = 1;
const REFUSE: u64 = 2;
const RESTART: u64 = 3;

#[inline(always)]
fn encoded(answer: Answer) -> u64 {
    match answer {
        Answer::Pass => PASS,
        Answer::Refuse => REFUSE,
        Answer::Restart => RESTART,
    }
}

#[inline(always)]
fn decoded(answer: u64) -> Answer {
    match answer {
        PASS => Answer::Pass,
        RESTART => Answer::Restart,
        _ => Answer::Refuse,
    }
}

/// What this task asked is over: it may do it unasked meanwhile.
#[inline(always)]
fn settle(task: u64) {
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        return;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &mut *pending };
    if pending.key.kind == action::FILE {
        finish(task, pending, ended::REPLACED, 0);
    }
}

// ---- asking ----

// Functions of their own, each with its own stack, called one after the other.

/// The verdict, or a question.
#[inline(never)]
fn step(label: u32, key: &ActionKey) -> u64 {
    match questions::step(Label { label }, Some(key)) {
        Some(answer) => encoded(answer),
        None => ASK,
    }
}

/// A round of the hold.
#[inline(never)]
fn round(change: &ChangeOf) -> u64 {
    encoded(questions::round(change))
}

/// The answer lets it through, and is used up with it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_use_up(made_by_open: u64) -> u64 {
    let task = kernel::current();
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        // Nobody was to be asked.
        return PASS;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &*pending };
    if pending.verdict == verdict::CHECK {
        finish(task, pending, ended::RETURNED, errno::EPERM as u32);
        return REFUSE;
    }
    // The same open goes on to `file_open`, which wants to see this answer.
    if made_by_open == 0 {
        finish(task, pending, ended::COMMITTED, 0);
    }
    PASS
}

/// Asks about `change`, unless that is known.
#[inline(always)]
fn judge(asker: &Label, free: bool, key: &ActionKey, change: &ChangeOf, made_by_open: bool) -> Answer {
    let known = guard_before(asker.label, free as u64);
    if known != ASK {
        return decoded(known);
    }
    let mut answer = step(asker.label, key);
    if answer == ASK {
        answer = round(change);
    }
    if answer == PASS {
        answer = guard_use_up(made_by_open as u64);
    }
    decoded(answer)
}

/// The key of a change of this inode. Its parts are a change of their own kind each.
#[inline(always)]
fn key_of(inode: u64, op: u32, extra: [u64; 3]) -> ActionKey {
    let mut key = ActionKey {
        kind: action::FILE,
        op,
        device: 0,
        generation: 0,
        inode: 0,
        extra,
    };
    identify(inode, &mut key);
    key
}

/// A function of its own, as the next: the stack is short.
#[inline(never)]
fn identify(inode: u64, key: &mut ActionKey) -> u64 {
    let id = kernel::file_id(inode);
    key.device = id.device;
    key.generation = id.generation;
    key.inode = id.inode;
    0
}

/// The inode number of what a name stands for now; 0 for nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_number_of(dentry: u64) -> u64 {
    let inode = kernel::dentry_inode(dentry);
    if inode == 0 { 0 } else { kernel::file_id(inode).inode }
}

#[inline(always)]
const fn rotated(word: u64, by: u32) -> u64 {
    word << by | word >> (64 - by)
}

/// Bytes of a text that are read at a time, the last of them NUL.
const PART: usize = 128;
/// A name has up to 255 bytes.
const NAME_PARTS: u64 = 3;
/// A path has up to 4,095.
const PATH_PARTS: u64 = 33;

/// A name, or nothing, and two words. The verifier looks at it and at [`guard_hash_path`] once for each program, whatever their
/// callers know, because they are global functions of numbers.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_hash_name(text: u64, first: u64, second: u64) -> u64 {
    hashed::<NAME_PARTS>(text, first, second)
}

/// What a symbolic link leads to.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_hash_path(text: u64) -> u64 {
    hashed::<PATH_PARTS>(text, 0, 0)
}

/// SipHash-1-3 of two words and a string that ends with NUL, with the agent's key.
#[inline(always)]
fn hashed<const PARTS: u64>(text: u64, first: u64, second: u64) -> u64 {
    let key = match CONFIG.get(0) {
        Some(config) => config.name_key,
        None => [0, 0],
    };
    let mut state = [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ];
    absorb(&mut state, first);
    absorb(&mut state, second);
    let mut from = text;
    for _ in 0..PARTS {
        if text == 0 {
            break;
        }
        let mut part = [0u64; PART / 8];
        // SAFETY: `part` has room for it; the helper checks the source.
        let got = unsafe { bpf_probe_read_kernel_str(part.as_mut_ptr().cast(), PART as u32, from as *const _) };
        let mut at = 0;
        while at < PART / 8 {
            absorb(&mut state, part[at]);
            at += 1;
        }
        if got < PART as i64 {
            // Also what cannot be read.
            absorb(&mut state, got as u64);
            break;
        }
        from += PART as u64 - 1;
    }
    state[2] ^= 0xff;
    mix(&mut state);
    mix(&mut state);
    mix(&mut state);
    state[0] ^ state[1] ^ state[2] ^ state[3]
}

#[inline(always)]
fn absorb(state: &mut [u64; 4], word: u64) {
    state[3] ^= word;
    mix(state);
    state[0] ^= word;
}

#[inline(always)]
fn mix(state: &mut [u64; 4]) {
    state[0] = state[0].wrapping_add(state[1]);
    state[1] = rotated(state[1], 13) ^ state[0];
    state[0] = rotated(state[0], 32);
    state[2] = state[2].wrapping_add(state[3]);
    state[3] = rotated(state[3], 16) ^ state[2];
    state[0] = state[0].wrapping_add(state[3]);
    state[3] = rotated(state[3], 21) ^ state[0];
    state[2] = state[2].wrapping_add(state[1]);
    state[1] = rotated(state[1], 17) ^ state[2];
    state[2] = rotated(state[2], 32);
}

/// The hash of a dentry's name.
#[inline(always)]
fn name(dentry: u64, first: u64, second: u64) -> u64 {
    guard_hash_name(kernel::name_of(dentry), first, second)
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_generation_of(dentry: u64) -> u64 {
    kernel::file_id(kernel::dentry_inode(dentry)).generation.into()
}

/// A hash of the directory, the name in it and the file that has it now.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn guard_where_to(dentry: u64, replaced: u64) -> u64 {
    let directory = kernel::dentry_parent(dentry);
    let name = name(dentry, guard_number_of(directory), guard_generation_of(directory));
    guard_hash_name(0, name, replaced)
}

// ---- opening ----

#[lsm(hook = "file_open")]
pub fn guard_files_open(context: LsmContext) -> i32 {
    let file = kernel::argument(&context, 0);
    let (mode, flags) = (kernel::file_mode(file), kernel::file_flags(file));
    if mode & FMODE_WRITE == 0 && flags & O_TRUNC == 0 {
        return 0;
    }
    let Some(asker) = asker() else { return 0 };
    let inode = kernel::file_inode(file);
    if !is_real(&asker, file, false) {
        return 0;
    }
    let dentry = kernel::file_dentry(file);
    let free = is_free(&asker, dentry);
    if mode & FMODE_CREATED != 0 && !free {
        return answer!(made(&asker, file, dentry));
    }
    let mount = kernel::path_mount(kernel::file_path(file));
    let answer = if flags & O_TMPFILE_ALONE != 0 {
        // A new inode each time: the directory is what stays.
        let directory = kernel::dentry_parent(dentry);
        let key = key_of(kernel::dentry_inode(directory), file_op::TMPFILE, [0; 3]);
        let change = ChangeOf {
            flags: ask_flag::DIRECTORY,
            mode: kernel::inode_mode(inode) as u32,
            ..ChangeOf::of(mount, directory)
        };
        judge(&asker, free, &key, &change, false)
    } else {
        let op = if flags & O_TRUNC != 0 {
            file_op::OPEN | file_op::TRUNCATES
        } else {
            file_op::OPEN
        };
        let key = key_of(inode, op, [0; 3]);
        judge(&asker, free, &key, &ChangeOf::of(mount, dentry), false)
    };
    if answer == Answer::Pass {
        remember(file, asker.label);
    }
    answer!(answer)
}

/// The open has made the file already, so nobody can be asked any more: `path_mknod` was asked about it.
#[inline(always)]
fn made(asker: &Label, file: u64, dentry: u64) -> Answer {
    let known = guard_before(asker.label, 0);
    if known != ASK {
        return decoded(known);
    }
    if covered(dentry) {
        remember(file, asker.label);
        return Answer::Pass;
    }
    count_refused(asker, kind::MADE);
    Answer::Refuse
}

/// Whether this task was just allowed to create that name; used up with it.
#[inline(never)]
fn covered(dentry: u64) -> bool {
    let directory = kernel::dentry_inode(kernel::dentry_parent(dentry));
    let key = key_of(directory, file_op::CREATE, [name(dentry, 0, 0), 0, 0]);
    let task = kernel::current();
    let Some(pending) = PENDING.get_ptr_mut(task) else {
        return false;
    };
    // SAFETY: only this task's own hooks write or remove this entry.
    let pending = unsafe { &*pending };
    let same = pending.key.kind == key.kind
        && pending.key.op == key.op
        && pending.key.device == key.device
        && pending.key.generation == key.generation
        && pending.key.inode == key.inode
        && pending.key.extra[0] == key.extra[0]
        && pending.honored_ns != 0
        && pending.verdict == verdict::ALLOW;
    if same {
        finish(task, pending, ended::COMMITTED, 0);
    }
    same
}

// ---- names ----

/// fn(directory, dentry, mode, device): also each open that makes a file.
#[lsm(hook = "path_mknod")]
pub fn guard_files_mknod(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let (path, dentry) = (kernel::argument(&context, 0), kernel::argument(&context, 1));
    let mode = kernel::argument(&context, 2) as u32 & 0xffff;
    let device = kernel::argument(&context, 3) as u32;
    let sort = mode as u16 & S_IFMT;
    let opens = kernel::looked_up(kernel::current()) == path;
    let plain = opens || sort == 0 || sort == S_IFREG;
    let free = sort != S_IFCHR && sort != S_IFBLK && is_free(&asker, dentry);
    let op = if plain { file_op::CREATE } else { file_op::MKNOD };
    let key = key_of(
        kernel::dentry_inode(kernel::dentry_parent(dentry)),
        op,
        [name(dentry, 0, 0), mode as u64, device as u64],
    );
    let change = ChangeOf {
        mode,
        // As mknod(2) has it: 20 bits of the minor in two parts.
        numbers: [(device & 0xfff00) << 12 | device & 0xff | device >> 12 & 0xfff00, 0],
        ..ChangeOf::of(kernel::path_mount(path), dentry)
    };
    answer!(judge(&asker, free, &key, &change, opens))
}

/// One name in a directory. A function of its own, for the verifier.
#[inline(always)]
fn named(context: &LsmContext, op: u32, mode: u32) -> Answer {
    let Some(asker) = asker() else {
        return Answer::Pass;
    };
    let (path, dentry) = (kernel::argument(context, 0), kernel::argument(context, 1));
    let key = key_of(
        kernel::dentry_inode(kernel::dentry_parent(dentry)),
        op,
        [name(dentry, 0, 0), guard_number_of(dentry), mode as u64],
    );
    let change = ChangeOf {
        mode,
        ..ChangeOf::of(kernel::path_mount(path), dentry)
    };
    judge(&asker, is_free(&asker, dentry), &key, &change, false)
}

#[lsm(hook = "path_unlink")]
pub fn guard_files_unlink(context: LsmContext) -> i32 {
    answer!(named(&context, file_op::UNLINK, 0))
}

#[lsm(hook = "path_rmdir")]
pub fn guard_files_rmdir(context: LsmContext) -> i32 {
    answer!(named(&context, file_op::RMDIR, 0))
}

/// fn(directory, dentry, mode)
#[lsm(hook = "path_mkdir")]
pub fn guard_files_mkdir(context: LsmContext) -> i32 {
    let mode = kernel::plain(&context, 2) as u32 & 0xfff | S_IFDIR as u32;
    answer!(named(&context, file_op::MKDIR, mode))
}

/// fn(directory, dentry, target)
#[lsm(hook = "path_symlink")]
pub fn guard_files_symlink(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let (path, dentry) = (kernel::argument(&context, 0), kernel::argument(&context, 1));
    let target = kernel::argument(&context, 2);
    let key = key_of(
        kernel::dentry_inode(kernel::dentry_parent(dentry)),
        file_op::SYMLINK,
        [name(dentry, 0, 0), guard_hash_path(target), 0],
    );
    let change = ChangeOf {
        target,
        ..ChangeOf::of(kernel::path_mount(path), dentry)
    };
    answer!(judge(&asker, is_free(&asker, dentry), &key, &change, false))
}

/// fn(file, directory, dentry): free only if both are, or a file from outside could be written under its new name.
#[lsm(hook = "path_link")]
pub fn guard_files_link(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let (old, path) = (kernel::argument(&context, 0), kernel::argument(&context, 1));
    let dentry = kernel::argument(&context, 2);
    let key = key_of(
        kernel::dentry_inode(kernel::dentry_parent(dentry)),
        file_op::LINK,
        [name(dentry, 0, 0), guard_number_of(old), guard_generation_of(old)],
    );
    let change = ChangeOf {
        second: dentry,
        ..ChangeOf::of(kernel::path_mount(path), old)
    };
    let free = is_free(&asker, old) && is_free(&asker, dentry);
    answer!(judge(&asker, free, &key, &change, false))
}

/// fn(directory, dentry, directory, dentry, flags)
#[lsm(hook = "path_rename")]
pub fn guard_files_rename(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let (path, old) = (kernel::argument(&context, 0), kernel::argument(&context, 1));
    let new = kernel::argument(&context, 3);
    let mut op = file_op::RENAME;
    let replaced = guard_number_of(new);
    if kernel::argument(&context, 4) as u32 & RENAME_EXCHANGE != 0 {
        op |= file_op::EXCHANGES;
    } else if replaced != 0 {
        op |= file_op::REPLACES;
    }
    let key = key_of(
        kernel::dentry_inode(kernel::dentry_parent(old)),
        op,
        [name(old, 0, 0), guard_where_to(new, replaced), guard_number_of(old)],
    );
    let change = ChangeOf {
        second: new,
        ..ChangeOf::of(kernel::path_mount(path), old)
    };
    let free = is_free(&asker, old) && is_free(&asker, new);
    answer!(judge(&asker, free, &key, &change, false))
}

// ---- content and attributes ----

/// Writing through what is open already.
#[inline(always)]
fn written(asker: &Label, file: u64, op: u32) -> Answer {
    let inode = kernel::file_inode(file);
    if is_opened(asker, file) || !is_real(asker, file, true) {
        return Answer::Pass;
    }
    let dentry = kernel::file_dentry(file);
    let key = key_of(inode, op, [0; 3]);
    let change = ChangeOf::of(kernel::path_mount(kernel::file_path(file)), dentry);
    let answer = judge(asker, is_free(asker, dentry), &key, &change, false);
    if answer == Answer::Pass && op & file_op::MASK == file_op::WRITE {
        remember(file, asker.label);
    }
    answer
}

/// fn(file, mask): each write, also of what was opened before the label or by somebody else.
#[lsm(hook = "file_permission")]
pub fn guard_files_write(context: LsmContext) -> i32 {
    if kernel::plain(&context, 1) as u32 & MAY_WRITE == 0 {
        return 0;
    }
    let Some(asker) = asker() else { return 0 };
    answer!(written(&asker, kernel::argument(&context, 0), file_op::WRITE))
}

/// fn(file, wanted, prot, flags): a shared mapping of a file that is open for writing can be made writable at any time.
#[lsm(hook = "mmap_file")]
pub fn guard_files_map(context: LsmContext) -> i32 {
    let kind = kernel::plain(&context, 3) & MAP_TYPE;
    if kind == 0 || kind == MAP_PRIVATE {
        return 0;
    }
    let file = kernel::argument(&context, 0);
    if file == 0 || kernel::file_mode(file) & FMODE_WRITE == 0 {
        return 0;
    }
    let Some(asker) = asker() else { return 0 };
    answer!(written(&asker, file, file_op::WRITE | file_op::OTHERWISE))
}

/// fn(area, wanted, prot): a mapping from before the label. Nobody is asked while the memory is locked.
#[lsm(hook = "file_mprotect")]
pub fn guard_files_protect(context: LsmContext) -> i32 {
    if kernel::plain(&context, 2) & PROT_WRITE == 0 {
        return 0;
    }
    let Some(asker) = asker() else { return 0 };
    let area = kernel::argument(&context, 0);
    let flags = kernel::area_flags(area);
    let file = kernel::area_file(area);
    if file == 0 || flags & VM_SHARED == 0 || flags & VM_WRITE != 0 {
        return 0;
    }
    if is_opened(&asker, file) || !is_real(&asker, file, true) || is_free(&asker, kernel::file_dentry(file)) {
        return 0;
    }
    count_refused(&asker, kind::MAPPING);
    -errno::EPERM
}

/// ftruncate(2), and the end of an open that truncates, which was asked about.
#[lsm(hook = "file_truncate")]
pub fn guard_files_ftruncate(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    answer!(written(&asker, kernel::argument(&context, 0), file_op::TRUNCATE))
}

/// fn(path): truncate(2); on kernels without `file_truncate` that, too.
#[lsm(hook = "path_truncate")]
pub fn guard_files_truncate(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let path = kernel::argument(&context, 0);
    if is_opened(&asker, kernel::file_of_path(path)) {
        return 0;
    }
    answer!(of_path(&asker, path, file_op::TRUNCATE, 0, [0; 2]))
}

/// A change of what a `struct path` names.
#[inline(always)]
fn of_path(asker: &Label, path: u64, op: u32, mode: u32, numbers: [u32; 2]) -> Answer {
    let dentry = kernel::path_dentry(path);
    let inode = kernel::dentry_inode(dentry);
    if kernel::super_flags(kernel::inode_super(inode)) & SB_KERNMOUNT != 0 {
        return Answer::Pass;
    }
    let key = key_of(
        inode,
        op,
        [mode as u64, (numbers[0] as u64) << 32 | numbers[1] as u64, 0],
    );
    let change = ChangeOf {
        mode,
        numbers,
        ..ChangeOf::of(kernel::path_mount(path), dentry)
    };
    judge(asker, is_free(asker, dentry), &key, &change, false)
}

/// fn(path, mode)
#[lsm(hook = "path_chmod")]
pub fn guard_files_chmod(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let mode = kernel::argument(&context, 1) as u32 & 0xfff;
    answer!(of_path(
        &asker,
        kernel::argument(&context, 0),
        file_op::CHMOD,
        mode,
        [0; 2]
    ))
}

/// fn(path, user, group)
#[lsm(hook = "path_chown")]
pub fn guard_files_chown(context: LsmContext) -> i32 {
    let Some(asker) = asker() else { return 0 };
    let numbers = [
        kernel::argument(&context, 1) as u32,
        kernel::argument(&context, 2) as u32,
    ];
    answer!(of_path(
        &asker,
        kernel::argument(&context, 0),
        file_op::CHOWN,
        0,
        numbers
    ))
}

/// fn(map of ids, dentry, name …): no hook says through which mount.
#[inline(always)]
fn attribute(context: &LsmContext, op: u32) -> Answer {
    let Some(asker) = asker() else {
        return Answer::Pass;
    };
    let dentry = kernel::argument(context, 1);
    let inode = kernel::dentry_inode(dentry);
    if kernel::super_flags(kernel::inode_super(inode)) & SB_KERNMOUNT != 0 {
        return Answer::Pass;
    }
    let text = kernel::argument(context, 2);
    let key = key_of(inode, op, [guard_hash_name(text, 0, 0), 0, 0]);
    let change = ChangeOf {
        flags: ask_flag::MOUNT_UNKNOWN,
        target: text,
        ..ChangeOf::of(0, dentry)
    };
    judge(&asker, is_free(&asker, dentry), &key, &change, false)
}

macro_rules! attribute_hook {
    ($($hook:literal $program:ident $op:expr;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(context: LsmContext) -> i32 {
                answer!(attribute(&context, $op))
            }
        )*
    };
}

attribute_hook! {
    "inode_setxattr" guard_files_setxattr file_op::XATTR;
    "inode_removexattr" guard_files_removexattr file_op::XATTR | file_op::OTHERWISE;
    "inode_set_acl" guard_files_set_acl file_op::XATTR;
    "inode_remove_acl" guard_files_remove_acl file_op::XATTR | file_op::OTHERWISE;
}

// ---- POSIX message queues ----

/// Their names pass no hook of paths, and the open that follows comes too late to ask.
macro_rules! queue_hook {
    ($($hook:literal $program:ident;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(context: LsmContext) -> i32 {
                let Some(asker) = asker() else { return 0 };
                if kernel::super_magic(kernel::inode_super(kernel::argument(&context, 0))) != MQUEUE_MAGIC {
                    return 0;
                }
                count_refused(&asker, kind::QUEUE);
                -errno::EPERM
            }
        )*
    };
}

queue_hook! {
    "inode_create" guard_files_queue;
    "inode_unlink" guard_files_queue_gone;
}
