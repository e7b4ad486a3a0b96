// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The one place that reads kernel structures by offset.
//!
//! Owns the offsets, which the agent takes from the running kernel's BTF and writes here before load. Given addresses
//! of kernel objects; every read goes through bpf_probe_read_kernel, so a wrong address gives an error, not an oops.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_ktime_get_boot_ns, bpf_probe_read_kernel, bpf_probe_read_kernel_str,
};
use guard_common::{ActionKey, NAME_ROOM, Offsets, PATH_DEPTH, PATH_ROOM, action};

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_start_boottime: 0,
    task_pid: 0,
    task_tgid: 0,
    task_real_parent: 0,
    task_parent: 0,
    task_group_leader: 0,
    task_ptrace: 0,
    task_blocked: 0,
    task_sighand: 0,
    task_loginuid: 0,
    sighand_action: 0,
    sizeof_k_sigaction: 0,
    sigaction_handler: 0,
    bprm_file: 0,
    file_inode: 0,
    file_path: 0,
    path_mnt: 0,
    path_dentry: 0,
    dentry_name: 0,
    dentry_parent: 0,
    qstr_name: 0,
    vfsmount_root: 0,
    mount_mnt: 0,
    mount_parent: 0,
    mount_mountpoint: 0,
    mount_namespace: 0,
    namespace_common: 0,
    ns_common_inum: 0,
    inode_sb: 0,
    inode_ino: 0,
    inode_generation: 0,
    inode_nlink: 0,
    sb_dev: 0,
    cgroup_kn: 0,
    cgroup_self: 0,
    cgroup_root: 0,
    css_parent: 0,
    cgroup_root_hierarchy: 0,
    kernfs_id: 0,
    dentry_inode: 0,
    inode_mode: 0,
    inode_rdev: 0,
    file_mode: 0,
    sb_root: 0,
    sb_bdev: 0,
    sb_magic: 0,
    socket_sk: 0,
    unix_sock_path: 0,
    msghdr_name: 0,
    msghdr_namelen: 0,
    task_mm: 0,
    mm_exe_file: 0,
    proc_inode_pid: 0,
    proc_inode_vfs: 0,
    pid_tasks: 0,
    task_pid_links: 0,
};

/// Read at run time: the compiler must not fold the zeros above into the programs.
macro_rules! offset {
    ($field:ident) => {
        // SAFETY: a static of this program, always mapped.
        unsafe { core::ptr::read_volatile(&raw const OFFSETS.$field) as u64 }
    };
}

/// Reads a `T` of kernel memory; `None` if the address is not mapped.
#[inline(always)]
fn read<T: Copy>(address: u64) -> Option<T> {
    let mut value = core::mem::MaybeUninit::<T>::uninit();
    // SAFETY: the destination has room for a T; the helper checks the source.
    let result =
        unsafe { bpf_probe_read_kernel(value.as_mut_ptr().cast(), size_of::<T>() as u32, address as *const _) };
    if result != 0 {
        return None;
    }
    // SAFETY: the helper has written all of it.
    Some(unsafe { value.assume_init() })
}

/// Reads a `T` of kernel memory; the helper writes zeros if the address is not mapped. Without a branch, which the
/// verifier would follow both ways.
#[inline(always)]
fn read_or_zero<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the destination has room for a T; the helper checks the source.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    value
}

/// The `index`th argument of a hook, as a number: offsets that are not compile-time constants may not be added to the
/// verifier's typed pointers.
#[inline(always)]
pub fn argument(context: &impl EbpfContext, index: u64) -> u64 {
    read(context.as_ptr() as u64 + 8 * index).unwrap_or(0)
}

#[inline(always)]
pub fn boot_ns() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_ktime_get_boot_ns() }
}

#[inline(always)]
pub fn current() -> u64 {
    // SAFETY: no arguments.
    unsafe { bpf_get_current_task() as *const task_struct as u64 }
}

#[inline(always)]
pub fn start_ns(task: u64) -> u64 {
    read(task + offset!(task_start_boottime)).unwrap_or(0)
}

#[inline(always)]
pub fn tid(task: u64) -> u32 {
    read(task + offset!(task_pid)).unwrap_or(0)
}

#[inline(always)]
pub fn tgid(task: u64) -> u32 {
    read(task + offset!(task_tgid)).unwrap_or(0)
}

#[inline(always)]
pub fn group_leader(task: u64) -> u64 {
    read(task + offset!(task_group_leader)).unwrap_or(0)
}

/// Process id of the real parent.
#[inline(always)]
pub fn parent_tgid(task: u64) -> u32 {
    match read(task + offset!(task_real_parent)) {
        Some(parent) => tgid(parent),
        None => 0,
    }
}

#[inline(always)]
pub fn login_uid(task: u64) -> u32 {
    read(task + offset!(task_loginuid)).unwrap_or(u32::MAX)
}

/// `task->ptrace`: PT_* bits, 0 when nobody traces it.
#[inline(always)]
pub fn ptrace_flags(task: u64) -> u32 {
    read(task + offset!(task_ptrace)).unwrap_or(u32::MAX)
}

/// Process id of whoever gets its wait events: the tracer of a traced task.
#[inline(always)]
pub fn tracer_tgid(task: u64) -> u32 {
    match read(task + offset!(task_parent)) {
        Some(parent) => tgid(parent),
        None => 0,
    }
}

/// The mask of blocked signals; bit n-1 is signal n.
#[inline(always)]
pub fn blocked(task: u64) -> u64 {
    read(task + offset!(task_blocked)).unwrap_or(u64::MAX)
}

/// The handler of `signal`: 0 default, 1 ignored, else an address. Unreadable counts as handled.
#[inline(always)]
pub fn handler(task: u64, signal: u64) -> u64 {
    let Some(sighand) = read::<u64>(task + offset!(task_sighand)) else {
        return u64::MAX;
    };
    let action = sighand + offset!(sighand_action) + (signal - 1) * offset!(sizeof_k_sigaction);
    read(action + offset!(sigaction_handler)).unwrap_or(u64::MAX)
}

/// `bprm->file`.
#[inline(always)]
pub fn bprm_file(bprm: u64) -> Option<u64> {
    read(bprm + offset!(bprm_file))
}

/// The exec key of a file.
#[inline(always)]
pub fn file_key(file: u64) -> Option<ActionKey> {
    let inode: u64 = read(file + offset!(file_inode))?;
    let superblock: u64 = read(inode + offset!(inode_sb))?;
    Some(ActionKey {
        kind: action::EXEC,
        op: 0,
        device: read(superblock + offset!(sb_dev))?,
        generation: read(inode + offset!(inode_generation))?,
        inode: read(inode + offset!(inode_ino))?,
        extra: [0; 3],
    })
}

#[inline(always)]
pub fn file_unlinked(file: u64) -> bool {
    let links = match read::<u64>(file + offset!(file_inode)) {
        Some(inode) => read::<u32>(inode + offset!(inode_nlink)).unwrap_or(0),
        None => 0,
    };
    links == 0
}

/// What a walk found.
pub struct Walked {
    /// It reached the root.
    pub whole: bool,
    pub mount_namespace: u32,
}

/// Writes the names from the file up to the root of its mount tree into `path`, each with its NUL, and how many bytes
/// those are into `length`.
///
/// # Safety
/// `path` must have room for `PATH_ROOM + NAME_ROOM` bytes. `length` must not be on the stack: what is read back from
/// elsewhere is unknown to the verifier, so that it sees the same state in every iteration and looks at one only.
#[inline(always)]
pub unsafe fn walk(file: u64, path: *mut u8, length: *mut u32) -> Walked {
    let mut walked = Walked {
        whole: false,
        mount_namespace: 0,
    };
    let from = file + offset!(file_path);
    let mut mount: u64 = read_or_zero(from + offset!(path_mnt));
    let mut dentry: u64 = read_or_zero(from + offset!(path_dentry));
    let namespace: u64 = read_or_zero(mount - offset!(mount_mnt) + offset!(mount_namespace));
    walked.mount_namespace = read_or_zero(namespace + offset!(namespace_common) + offset!(ns_common_inum));
    // SAFETY: by contract of this function.
    unsafe { length.write_volatile(0) };
    for _ in 0..PATH_DEPTH {
        let root: u64 = read_or_zero(mount + offset!(vfsmount_root));
        let parent: u64 = read_or_zero(dentry + offset!(dentry_parent));
        if dentry == root {
            let here = mount - offset!(mount_mnt);
            let above: u64 = read_or_zero(here + offset!(mount_parent));
            if above == here {
                walked.whole = true;
                break;
            }
            dentry = read_or_zero(here + offset!(mount_mountpoint));
            mount = above + offset!(mount_mnt);
            continue;
        }
        let name: u64 = read_or_zero(dentry + offset!(dentry_name) + offset!(qstr_name));
        // SAFETY: by contract of this function.
        let position = unsafe { length.read_volatile() } as usize;
        // Bounds the write below for the verifier.
        if position >= PATH_ROOM {
            break;
        }
        // SAFETY: position < PATH_ROOM, and NAME_ROOM bytes follow PATH_ROOM.
        let written =
            unsafe { bpf_probe_read_kernel_str(path.add(position).cast(), NAME_ROOM as u32, name as *const _) };
        if written <= 1 {
            break;
        }
        // SAFETY: by contract of this function.
        unsafe { length.write_volatile(position as u32 + written as u32) };
        if dentry == parent {
            // A name that hangs nowhere: a memfd.
            break;
        }
        dentry = parent;
    }
    walked
}

/// The kernfs id of a cgroup of the v2 hierarchy; `None` for v1.
#[inline(always)]
pub fn cgroup_id(cgroup: u64) -> Option<u64> {
    let root: u64 = read(cgroup + offset!(cgroup_root))?;
    let hierarchy: u32 = read(root + offset!(cgroup_root_hierarchy))?;
    if hierarchy != 0 {
        return None;
    }
    let node: u64 = read(cgroup + offset!(cgroup_kn))?;
    read(node + offset!(kernfs_id))
}

/// The kernfs id of the cgroup above.
#[inline(always)]
pub fn parent_cgroup_id(cgroup: u64) -> Option<u64> {
    let css: u64 = read(cgroup + offset!(cgroup_self) + offset!(css_parent))?;
    if css == 0 {
        return None;
    }
    cgroup_id(css - offset!(cgroup_self))
}

/// Copies a NUL-terminated kernel string; the bytes written without the NUL.
///
/// # Safety
/// `out` must have room for `room` bytes.
#[inline(always)]
pub unsafe fn copy_str(address: u64, out: *mut u8, room: u32) -> u32 {
    // SAFETY: by contract of this function; the helper checks the source.
    let written = unsafe { bpf_probe_read_kernel_str(out.cast(), room, address as *const _) };
    if written <= 1 { 0 } else { written as u32 - 1 }
}
