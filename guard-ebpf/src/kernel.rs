// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! The one place that reads kernel structures by offset.
//!
//! Owns the offsets, which the agent takes from the running kernel's BTF and writes here before load. Given addresses
//! of kernel objects. Every read is a load that the verifier checks against the type of the object, or goes through
//! bpf_probe_read_kernel: a wrong address gives zero or an error, not an oops.

use core::arch::asm;

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::task_struct;
use aya_ebpf::helpers::generated::{
    bpf_get_current_task, bpf_get_current_task_btf, bpf_ktime_get_boot_ns, bpf_probe_read_kernel,
    bpf_probe_read_kernel_str, bpf_task_pt_regs,
};
use guard_common::protect::{FileId, NAME_BYTES};
use guard_common::{ABSTRACT_ROOM, ActionKey, NAME_ROOM, Offsets, PATH_DEPTH, PATH_ROOM, action};

use crate::abi::S_IFMT;

#[unsafe(no_mangle)]
static OFFSETS: Offsets = Offsets {
    task_start_boottime: 0,
    task_pid: 0,
    task_tgid: 0,
    task_real_parent: 0,
    task_parent: 0,
    task_ptrace: 0,
    task_blocked: 0,
    task_sighand: 0,
    task_loginuid: 0,
    sighand_action: 0,
    sizeof_k_sigaction: 0,
    sigaction_handler: 0,
    bprm_file: 0,
    bprm_unsafe: 0,
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
    task_cgroups: 0,
    css_set_dfl_cgrp: 0,
    task_signal: 0,
    signal_thread_head: 0,
    task_thread_node: 0,
    task_thread_flags: 0,
    sock_family: 0,
    sock_dport: 0,
    sock_daddr: 0,
    sock_v6_daddr: 0,
    sock_rcv_saddr: 0,
    sock_v6_rcv_saddr: 0,
    sock_num: 0,
    sock_state: 0,
    sock_listener: 0,
    sock_type: 0,
    sock_protocol: 0,
    unix_sock_addr: 0,
    unix_sock_peer: 0,
    unix_address_len: 0,
    unix_address_name: 0,
    socket_alloc_socket: 0,
    socket_alloc_inode: 0,
    msghdr_control: 0,
    msghdr_controllen: 0,
    msghdr_flags: 0,
    inet_options: 0,
    inet_six: 0,
    six_options: 0,
    skb_data: 0,
    skb_len: 0,
    skb_data_len: 0,
    skb_head: 0,
    skb_network_header: 0,
    skb_transport_header: 0,
    sock_net: 0,
    net_ns: 0,
    task_real_cred: 0,
    task_flags: 0,
    task_thread_pid: 0,
    task_group_leader: 0,
    pid_level: 0,
    pid_numbers: 0,
    sizeof_upid: 0,
    upid_nr: 0,
    cred_uid: 0,
    cred_gid: 0,
    cred_suid: 0,
    cred_sgid: 0,
    cred_euid: 0,
    cred_egid: 0,
    cred_fsuid: 0,
    cred_fsgid: 0,
    cred_permitted: 0,
    bprm_cred: 0,
    regs_syscall: 0,
    task_narrow: 0,
    narrow_bits: 0,
    nr_unshare: 0,
    nr_setns: 0,
    nr_clone: 0,
    nr_clone3: 0,
    nr_mount: 0,
    nr_umount2: 0,
    nr_pivot_root: 0,
    nr_open_tree: 0,
    nr_move_mount: 0,
    nr_mount_setattr: 0,
    nr_seccomp: 0,
    nr_prctl: 0,
    nr_open_by_handle_at: 0,
    nr_perf_event_open: 0,
    skb_nfct: 0,
    file_flags: 0,
    task_cred: 0,
    task_nameidata: 0,
    sb_flags: 0,
    inode_size: 0,
    vma_file: 0,
    vma_flags: 0,
    inode_ctime_sec: 0,
    inode_ctime_nsec: 0,
    inode_writecount: 0,
    renamedata_old: 0,
    renamedata_new: 0,
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

/// The upper half of an IPv4 address in IPv6. Both targets are little endian.
pub const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

/// Reads a `T` of kernel memory; the helper writes zeros if the address is not mapped. Without a branch, which the
/// verifier would follow both ways.
#[inline(always)]
fn read_or_zero<T: Copy + Default>(address: u64) -> T {
    let mut value = T::default();
    // SAFETY: the destination has room for a T; the helper checks the source.
    unsafe { bpf_probe_read_kernel((&raw mut value).cast(), size_of::<T>() as u32, address as *const _) };
    value
}

/// A kernel object. By number, it can be anything, and is read by the helper that checks; the verifier knows nothing of it.
pub trait Object: Copy + PartialEq {
    /// A field; zero if it cannot be read.
    fn get<T: Copy + Default>(self, offset: u64) -> T;
    /// A field that is a pointer, as a number: newer kernels know what it points at, too, and pass it to no function as anything else.
    fn get_number(self, offset: u64) -> u64;
    /// What a field points at.
    fn follow(self, offset: u64) -> Self;
    fn is_null(self) -> bool;
}

impl Object for u64 {
    #[inline(always)]
    fn get<T: Copy + Default>(self, offset: u64) -> T {
        read_or_zero(self + offset)
    }

    #[inline(always)]
    fn get_number(self, offset: u64) -> u64 {
        self.get(offset)
    }

    #[inline(always)]
    fn follow(self, offset: u64) -> Self {
        read_or_zero(self + offset)
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self == 0
    }
}

/// A kernel object whose type the verifier knows, because a hook was given it or a field of such an object names it. Its
/// fields are read by plain loads, which cost a tenth of the helper's; the kernel turns a fault in one into zero.
#[derive(Clone, Copy, PartialEq)]
pub struct Typed(u64);

impl Object for Typed {
    #[inline(always)]
    fn get<T: Copy + Default>(self, offset: u64) -> T {
        if self.0 == 0 {
            return T::default();
        }
        let address = self.field(offset);
        // SAFETY: the verifier checks that there is such a field; faults are handled.
        unsafe { (address as *const T).read_volatile() }
    }

    #[inline(always)]
    fn get_number(self, offset: u64) -> u64 {
        if self.0 == 0 {
            0
        } else {
            read_or_zero(self.field(offset))
        }
    }

    #[inline(always)]
    fn follow(self, offset: u64) -> Self {
        Self(self.get(offset))
    }

    #[inline(always)]
    fn is_null(self) -> bool {
        self.0 == 0
    }
}

impl Typed {
    /// Where a field of it is. Newer kernels want to see that a pointer is not null before anything is added to it, so the
    /// compiler may not add earlier.
    #[inline(always)]
    fn field(self, offset: u64) -> u64 {
        let mut address = self.0;
        // SAFETY: changes the register alone.
        unsafe { asm!("{address} += {offset}", address = inout(reg) address, offset = in(reg) offset) };
        address
    }

    /// Its address as a number. By way of the helper: the verifier forgets what it is.
    #[inline(always)]
    pub fn number(self) -> u64 {
        let typed = self.0;
        read_or_zero((&raw const typed) as u64)
    }
}

/// The `index`th argument of a hook: an object.
#[inline(always)]
pub fn object(context: &impl EbpfContext, index: u64) -> Typed {
    Typed(plain(context, index))
}

/// The `index`th argument of a hook: a number.
#[inline(always)]
pub fn plain(context: &impl EbpfContext, index: u64) -> u64 {
    // SAFETY: the verifier knows how many there are.
    unsafe { (context.as_ptr() as *const u64).add(index as usize).read_volatile() }
}

/// The `index`th argument of a hook, by number: for what only names it, for what a container is found by going back from it,
/// and for what the verifier has no type of.
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

/// The current task as an object; [`current`] is what names it.
#[inline(always)]
pub fn me() -> Typed {
    // SAFETY: no arguments.
    Typed(unsafe { bpf_get_current_task_btf() } as u64)
}

#[inline(always)]
pub fn start_ns(task: impl Object) -> u64 {
    task.get(offset!(task_start_boottime))
}

#[inline(always)]
pub fn tid(task: impl Object) -> u32 {
    task.get(offset!(task_pid))
}

#[inline(always)]
pub fn tgid(task: impl Object) -> u32 {
    task.get(offset!(task_tgid))
}

/// Process id of the real parent.
#[inline(always)]
pub fn parent_tgid(task: Typed) -> u32 {
    tgid(task.follow(offset!(task_real_parent)))
}

#[inline(always)]
pub fn login_uid(task: Typed) -> u32 {
    task.get(offset!(task_loginuid))
}

/// `task->ptrace`: PT_* bits, 0 when nobody traces it.
#[inline(always)]
pub fn ptrace_flags(task: Typed) -> u32 {
    task.get(offset!(task_ptrace))
}

/// Process id of whoever gets its wait events: the tracer of a traced task.
#[inline(always)]
pub fn tracer_tgid(task: Typed) -> u32 {
    tgid(task.follow(offset!(task_parent)))
}

/// The mask of blocked signals; bit n-1 is signal n.
#[inline(always)]
pub fn blocked(task: Typed) -> u64 {
    task.get(offset!(task_blocked))
}

/// The handler of `signal`: 0 default, 1 ignored, else an address. Unreadable counts as handled.
#[inline(always)]
pub fn handler(task: Typed, signal: u64) -> u64 {
    // By number: to what the verifier knows only constants may be added.
    let sighand = task.follow(offset!(task_sighand)).number();
    let action = sighand + offset!(sighand_action) + (signal - 1) * offset!(sizeof_k_sigaction);
    read(action + offset!(sigaction_handler)).unwrap_or(u64::MAX)
}

/// `bprm->file`.
#[inline(always)]
pub fn bprm_file(bprm: Typed) -> Typed {
    bprm.follow(offset!(bprm_file))
}

/// `bprm->unsafe`: LSM_UNSAFE_* bits.
#[inline(always)]
pub fn bprm_unsafe(bprm: Typed) -> u32 {
    bprm.get(offset!(bprm_unsafe))
}

/// The exec key of a file.
#[inline(always)]
pub fn file_key(file: Typed) -> Option<ActionKey> {
    let inode = file_inode(file);
    let superblock = inode_super(inode);
    if superblock.is_null() {
        return None;
    }
    Some(ActionKey {
        kind: action::EXEC,
        op: 0,
        device: superblock.get(offset!(sb_dev)),
        generation: inode.get(offset!(inode_generation)),
        inode: inode.get(offset!(inode_ino)),
        extra: [0; 3],
    })
}

#[inline(always)]
pub fn file_unlinked(file: Typed) -> bool {
    inode_links(file_inode(file)) == 0
}

/// The `struct path` of a file.
#[inline(always)]
pub fn file_path(file: u64) -> u64 {
    file + offset!(file_path)
}

/// What a walk found.
pub struct Walked {
    /// It reached the root.
    pub whole: bool,
    pub mount_namespace: u32,
}

/// Writes the names from a `struct path` up to the root of its mount tree into `path`, each with its NUL, and how many bytes
/// those are into `length`.
///
/// # Safety
/// `path` must have room for `PATH_ROOM + NAME_ROOM` bytes. `length` must not be on the stack: what is read back from
/// elsewhere is unknown to the verifier, so that it sees the same state in every iteration and looks at one only.
#[inline(always)]
pub unsafe fn walk(from: u64, path: *mut u8, length: *mut u32) -> Walked {
    let mount: u64 = read_or_zero(from + offset!(path_mnt));
    let dentry: u64 = read_or_zero(from + offset!(path_dentry));
    // SAFETY: by contract of this function.
    unsafe {
        length.write_volatile(0);
        walk_on(mount, dentry, path, length)
    }
}

/// [`walk`] from a dentry of a mount; the names follow what `path` holds already. Without a mount it ends at the root of the
/// file system, and is never whole.
///
/// # Safety
/// As for [`walk`].
#[inline(always)]
pub unsafe fn walk_on(from_mount: u64, from: u64, path: *mut u8, length: *mut u32) -> Walked {
    let mut walked = Walked {
        whole: false,
        mount_namespace: 0,
    };
    let (mut mount, mut dentry) = (from_mount, from);
    let namespace: u64 = read_or_zero(mount - offset!(mount_mnt) + offset!(mount_namespace));
    walked.mount_namespace = read_or_zero(namespace + offset!(namespace_common) + offset!(ns_common_inum));
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

/// The kernfs id of the v2 cgroup that a task is in.
#[inline(always)]
pub fn task_cgroup_id(task: u64) -> Option<u64> {
    let set: u64 = read(task + offset!(task_cgroups))?;
    let cgroup: u64 = read(set + offset!(css_set_dfl_cgrp))?;
    let node: u64 = read(cgroup + offset!(cgroup_kn))?;
    read(node + offset!(kernfs_id))
}

/// What waits for a task on its way back to user space, as bits: a signal, somebody else who is to run on its CPU. Which bit
/// is what differs between kernels.
#[inline(always)]
pub fn thread_flags(task: Typed) -> u64 {
    task.get(offset!(task_thread_flags))
}

/// The head of the list of a task's process's threads, and its first element; elements are turned into tasks by
/// [`thread_of`].
#[inline(always)]
pub fn threads(task: u64) -> Option<(u64, u64)> {
    let signal: u64 = read(task + offset!(task_signal))?;
    let head = signal + offset!(signal_thread_head);
    Some((head, read(head)?))
}

/// The next element of the list; 0 if it cannot be read.
#[inline(always)]
pub fn next_thread(element: u64) -> u64 {
    read_or_zero(element)
}

#[inline(always)]
pub fn thread_of(element: u64) -> u64 {
    element - offset!(task_thread_node)
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

/// `file->f_inode`; 0 if it cannot be read, as for all of the following.
#[inline(always)]
pub fn file_inode<O: Object>(file: O) -> O {
    file.follow(offset!(file_inode))
}

#[inline(always)]
pub fn file_dentry<O: Object>(file: O) -> O {
    file.follow(offset!(file_path) + offset!(path_dentry))
}

/// `file->f_mode`.
#[inline(always)]
pub fn file_mode<O: Object>(file: O) -> u32 {
    file.get(offset!(file_mode))
}

/// The dentry of a `struct path` at this address.
#[inline(always)]
pub fn path_dentry<O: Object>(path: O) -> O {
    path.follow(offset!(path_dentry))
}

/// 0 for a name without a file.
#[inline(always)]
pub fn dentry_inode<O: Object>(dentry: O) -> O {
    dentry.follow(offset!(dentry_inode))
}

/// The dentry itself at a root.
#[inline(always)]
pub fn dentry_parent<O: Object>(dentry: O) -> O {
    dentry.follow(offset!(dentry_parent))
}

/// Where a dentry's name is.
#[inline(always)]
pub fn dentry_name_at<O: Object>(dentry: O) -> u64 {
    dentry.get_number(offset!(dentry_name) + offset!(qstr_name))
}

/// Copies a name with its NUL, cut to fit; what follows it in `to` stays as it is.
#[inline(always)]
pub fn name(from: u64, to: &mut [u8; NAME_BYTES]) {
    // SAFETY: `to` has room for NAME_BYTES; the helper checks the source.
    unsafe { bpf_probe_read_kernel_str(to.as_mut_ptr().cast(), NAME_BYTES as u32, from as *const _) };
}

#[inline(always)]
pub fn dentry_name<O: Object>(dentry: O, to: &mut [u8; NAME_BYTES]) {
    name(dentry.get(offset!(dentry_name) + offset!(qstr_name)), to);
}

#[inline(always)]
pub fn file_id<O: Object>(inode: O) -> FileId {
    FileId {
        device: inode_super(inode).get(offset!(sb_dev)),
        generation: inode.get(offset!(inode_generation)),
        inode: inode.get(offset!(inode_ino)),
        sort: u32::from(inode_mode(inode) & S_IFMT),
        reserved: 0,
    }
}

#[inline(always)]
pub fn inode_super<O: Object>(inode: O) -> O {
    inode.follow(offset!(inode_sb))
}

#[inline(always)]
pub fn inode_mode<O: Object>(inode: O) -> u16 {
    inode.get(offset!(inode_mode))
}

/// Major << 20 | minor.
#[inline(always)]
pub fn inode_device_number<O: Object>(inode: O) -> u32 {
    inode.get(offset!(inode_rdev))
}

#[inline(always)]
pub fn inode_links<O: Object>(inode: O) -> u32 {
    inode.get(offset!(inode_nlink))
}

/// When an inode, its content or its names were last changed: seconds and nanoseconds.
#[inline(always)]
pub fn inode_changed<O: Object>(inode: O) -> (u64, u32) {
    // Newer kernels note in the highest bit that somebody asked.
    const NANOSECONDS: u32 = 0x7fff_ffff;
    let nanoseconds: u32 = inode.get(offset!(inode_ctime_nsec));
    (inode.get(offset!(inode_ctime_sec)), nanoseconds & NANOSECONDS)
}

/// Open descriptors that may write to it, mappings included; below zero while it is executed and nobody may.
#[inline(always)]
pub fn inode_writers<O: Object>(inode: O) -> i32 {
    inode.get(offset!(inode_writecount))
}

/// The `struct vfsmount` that a file was opened through, as a number.
#[inline(always)]
pub fn file_mount<O: Object>(file: O) -> u64 {
    file.get(offset!(file_path) + offset!(path_mnt))
}

/// The two names of a `struct renamedata`.
#[inline(always)]
pub fn renamed(data: Typed) -> (Typed, Typed) {
    (
        data.follow(offset!(renamedata_old)),
        data.follow(offset!(renamedata_new)),
    )
}

/// The root dentry of a file system.
#[inline(always)]
pub fn super_root<O: Object>(superblock: O) -> O {
    superblock.follow(offset!(sb_root))
}

/// Whether the file system lives on a block device.
#[inline(always)]
pub fn super_on_disk<O: Object>(superblock: O) -> bool {
    !superblock.follow(offset!(sb_bdev)).is_null()
}

#[inline(always)]
pub fn super_magic<O: Object>(superblock: O) -> u64 {
    superblock.get(offset!(sb_magic))
}

/// The name that a unix socket was bound to: the dentry; 0 for none. `sock` is a `struct sock`.
#[inline(always)]
pub fn unix_dentry(sock: u64) -> u64 {
    path_dentry(sock + offset!(unix_sock_path))
}

/// The `struct sock` of a `struct socket`.
#[inline(always)]
pub fn socket_sock(socket: u64) -> u64 {
    read_or_zero(socket + offset!(socket_sk))
}

/// The `struct sock` of an inode of sockfs.
#[inline(always)]
pub fn inode_sock(inode: u64) -> u64 {
    socket_sock(inode - offset!(socket_alloc_inode) + offset!(socket_alloc_socket))
}

/// Address and length of the destination that a message carries; 0 for none.
#[inline(always)]
pub fn message_address(message: u64) -> (u64, u32) {
    (
        read_or_zero(message + offset!(msghdr_name)),
        read_or_zero(message + offset!(msghdr_namelen)),
    )
}

/// MSG_* bits of a message.
#[inline(always)]
pub fn message_flags(message: u64) -> u32 {
    read_or_zero(message + offset!(msghdr_flags))
}

/// Whether options for its packets were set on an IPv4 or IPv6 socket: a route may be among them.
#[inline(always)]
pub fn sock_has_options(sock: u64) -> bool {
    let six: u64 = read_or_zero(sock + offset!(inet_six));
    read_or_zero::<u64>(sock + offset!(inet_options)) != 0
        || six != 0 && read_or_zero::<u64>(six + offset!(six_options)) != 0
}

/// Port and groups of a `sockaddr_nl` in kernel memory.
#[inline(always)]
pub fn netlink_address(address: u64) -> (u32, u32) {
    (read_or_zero(address + 4), read_or_zero(address + 8))
}

/// Address and length of the control messages that a message carries.
#[inline(always)]
pub fn message_control(message: u64) -> (u64, u64) {
    (
        read_or_zero(message + offset!(msghdr_control)),
        read_or_zero(message + offset!(msghdr_controllen)),
    )
}

/// The head of a control message at this address: its length, level and type.
#[inline(always)]
pub fn control_head(address: u64) -> (u64, u32, u32) {
    (
        read_or_zero(address),
        read_or_zero(address + 8),
        read_or_zero(address + 12),
    )
}

/// Address and length of what a `struct sk_buff` carries.
#[inline(always)]
pub fn packet(skb: u64) -> (u64, u32) {
    (
        read_or_zero(skb + offset!(skb_data)),
        read_or_zero(skb + offset!(skb_len)),
    )
}

/// Sender, port and content of a datagram that a socket is about to get; length 0 for what is not in one piece, or no
/// such thing. IPv4 as in `Peer`.
#[inline(always)]
pub fn datagram(skb: u64) -> ([u64; 2], u16, u64, u32) {
    const HEAD: u32 = 8;
    let head: u64 = read_or_zero(skb + offset!(skb_head));
    let network = head + u64::from(read_or_zero::<u16>(skb + offset!(skb_network_header)));
    let transport = head + u64::from(read_or_zero::<u16>(skb + offset!(skb_transport_header)));
    let from = if read_or_zero::<u8>(network) >> 4 == 4 {
        [0, MAPPED | u64::from(read_or_zero::<u32>(network + 12)) << 32]
    } else {
        read_or_zero(network + 8)
    };
    let (data, length) = packet(skb);
    let pieces: u32 = read_or_zero(skb + offset!(skb_data_len));
    let length = if data == transport && pieces == 0 && length > HEAD {
        length - HEAD
    } else {
        0
    };
    (from, u16::from_be(read_or_zero(transport)), transport + 8, length)
}

/// What the verifier knows as an object or a context, as a number.
#[inline(always)]
pub fn number(typed: u64) -> u64 {
    Typed(typed).number()
}

/// Protocol, address (IPv4 as in `Peer`) and port of where a packet that leaves goes to; of protocols without ports the port
/// means nothing.
#[inline(always)]
pub fn packet_destination(skb: u64) -> (u8, [u64; 2], u32) {
    let head: u64 = read_or_zero(skb + offset!(skb_head));
    let network = head + u64::from(read_or_zero::<u16>(skb + offset!(skb_network_header)));
    let transport = head + u64::from(read_or_zero::<u16>(skb + offset!(skb_transport_header)));
    let port = u16::from_be(read_or_zero(transport + 2)).into();
    if read_or_zero::<u8>(network) >> 4 == 4 {
        let address = u64::from(read_or_zero::<u32>(network + 16));
        (read_or_zero(network + 9), [0, MAPPED | address << 32], port)
    } else {
        (read_or_zero(network + 6), read_or_zero(network + 24), port)
    }
}

/// Whether the host follows the connection of a packet: only then may its addresses have been translated.
#[inline(always)]
pub fn packet_is_tracked(skb: u64) -> bool {
    read_or_zero::<u64>(skb + offset!(skb_nfct)) != 0
}

/// Inode number of the network namespace of a socket.
#[inline(always)]
pub fn sock_network_namespace(sock: u64) -> u32 {
    let net: u64 = read_or_zero(sock + offset!(sock_net));
    read_or_zero(net + offset!(net_ns) + offset!(ns_common_inum))
}

/// Copies so many bytes of kernel memory; zeros what is not mapped.
///
/// # Safety
/// `out` has room for them.
#[inline(always)]
pub unsafe fn copy(address: u64, out: *mut u8, length: u32) {
    // SAFETY: by contract of this function; the helper checks the source.
    unsafe { bpf_probe_read_kernel(out.cast(), length, address as *const _) };
}

/// The head of a netlink message at this address: its length and type.
#[inline(always)]
pub fn netlink_head(address: u64) -> (u32, u16) {
    (read_or_zero(address), read_or_zero(address + 4))
}

/// The inode of the executable that a process runs; 0 for a kernel thread.
#[inline(always)]
pub fn executable_inode(task: u64) -> u64 {
    let memory: u64 = read_or_zero(task + offset!(task_mm));
    if memory == 0 {
        return 0;
    }
    file_inode(read_or_zero(memory + offset!(mm_exe_file)))
}

/// The task that an inode of /proc is about; 0 for none.
#[inline(always)]
pub fn proc_task(inode: u64) -> u64 {
    let pid: u64 = read_or_zero(inode - offset!(proc_inode_vfs) + offset!(proc_inode_pid));
    if pid == 0 {
        return 0;
    }
    let first: u64 = read_or_zero(pid + offset!(pid_tasks));
    if first == 0 { 0 } else { first - offset!(task_pid_links) }
}

/// AF_* of a `struct sock`.
#[inline(always)]
pub fn sock_family(sock: u64) -> u16 {
    read_or_zero(sock + offset!(sock_family))
}

/// SOCK_*.
#[inline(always)]
pub fn sock_type(sock: u64) -> u16 {
    read_or_zero(sock + offset!(sock_type))
}

/// IPPROTO_*.
#[inline(always)]
pub fn sock_protocol(sock: u64) -> u16 {
    read_or_zero(sock + offset!(sock_protocol))
}

/// TCP_* state.
#[inline(always)]
pub fn sock_state(sock: u64) -> u8 {
    read_or_zero(sock + offset!(sock_state))
}

/// The IPv4 address that a socket is connected to, in memory order.
#[inline(always)]
pub fn sock_peer_v4(sock: u64) -> u32 {
    read_or_zero(sock + offset!(sock_daddr))
}

#[inline(always)]
pub fn sock_peer_v6(sock: u64) -> [u64; 2] {
    read_or_zero(sock + offset!(sock_v6_daddr))
}

/// In host order.
#[inline(always)]
pub fn sock_peer_port(sock: u64) -> u16 {
    u16::from_be(read_or_zero(sock + offset!(sock_dport)))
}

/// The IPv4 address that a socket is bound to; 0 for any.
#[inline(always)]
pub fn sock_own_v4(sock: u64) -> u32 {
    read_or_zero(sock + offset!(sock_rcv_saddr))
}

#[inline(always)]
pub fn sock_own_v6(sock: u64) -> [u64; 2] {
    read_or_zero(sock + offset!(sock_v6_rcv_saddr))
}

/// In host order.
#[inline(always)]
pub fn sock_own_port(sock: u64) -> u16 {
    read_or_zero(sock + offset!(sock_num))
}

/// Port, in host order, of a socket address of either family in kernel memory.
#[inline(always)]
pub fn address_port(address: u64) -> u16 {
    u16::from_be(read_or_zero(address + 2))
}

/// Of a `sockaddr_in`, in memory order.
#[inline(always)]
pub fn address_v4(address: u64) -> u32 {
    read_or_zero(address + 4)
}

/// Of a `sockaddr_in6`.
#[inline(always)]
pub fn address_v6(address: u64) -> [u64; 2] {
    read_or_zero(address + 8)
}

#[inline(always)]
pub fn address_scope(address: u64) -> u32 {
    read_or_zero(address + 24)
}

/// The listener of a `struct request_sock`.
#[inline(always)]
pub fn request_listener(request: u64) -> u64 {
    read_or_zero(request + offset!(sock_listener))
}

/// The peer of a unix socket; 0 for none.
#[inline(always)]
pub fn unix_peer(sock: u64) -> u64 {
    read_or_zero(sock + offset!(unix_sock_peer))
}

/// The `struct path` of the name that a unix socket was bound to.
#[inline(always)]
pub fn unix_path(sock: u64) -> u64 {
    sock + offset!(unix_sock_path)
}

/// Copies the abstract name of a unix socket without its leading NUL; the bytes written, 0 for none.
///
/// # Safety
/// `out` must have room for `ABSTRACT_ROOM` bytes.
#[inline(always)]
pub unsafe fn unix_abstract(sock: u64, out: *mut u8) -> u32 {
    let address: u64 = read_or_zero(sock + offset!(unix_sock_addr));
    if address == 0 {
        return 0;
    }
    let length: u32 = read_or_zero(address + offset!(unix_address_len));
    // The family and the NUL.
    let mut name = u64::from(length.wrapping_sub(3));
    // So that the verifier knows a bound of this very register; a longer name there is not.
    // SAFETY: changes the register alone.
    unsafe { asm!("{name} &= 127", name = inout(reg) name) };
    if name == 0 || name > ABSTRACT_ROOM as u64 {
        return 0;
    }
    let from = address + offset!(unix_address_name) + 3;
    // SAFETY: by contract of this function; the helper checks the source.
    if unsafe { bpf_probe_read_kernel(out.cast(), name as u32, from as *const _) } != 0 {
        return 0;
    }
    name as u32
}

/// AF_* of a socket address in kernel memory; 0 for none.
#[inline(always)]
pub fn address_family(address: u64, length: u32) -> u16 {
    if address == 0 || length < 2 {
        0
    } else {
        read_or_zero(address)
    }
}

/// The cred that a task is known by, whatever it does in somebody else's name meanwhile.
#[inline(always)]
pub fn real_cred(task: Typed) -> Typed {
    task.follow(offset!(task_real_cred))
}

/// The cred that an exec will give.
#[inline(always)]
pub fn bprm_cred(bprm: Typed) -> Typed {
    bprm.follow(offset!(bprm_cred))
}

/// Real, effective, saved and file system user.
#[inline(always)]
pub fn users(cred: Typed) -> [u32; 4] {
    [
        cred.get(offset!(cred_uid)),
        cred.get(offset!(cred_euid)),
        cred.get(offset!(cred_suid)),
        cred.get(offset!(cred_fsuid)),
    ]
}

/// Real, effective, saved and file system group.
#[inline(always)]
pub fn groups(cred: Typed) -> [u32; 4] {
    [
        cred.get(offset!(cred_gid)),
        cred.get(offset!(cred_egid)),
        cred.get(offset!(cred_sgid)),
        cred.get(offset!(cred_fsgid)),
    ]
}

/// Permitted capabilities, a bit each. Both targets are little endian, so a kernel that has them in two halves has the same bits.
#[inline(always)]
pub fn permitted(cred: Typed) -> u64 {
    cred.get(offset!(cred_permitted))
}

/// The first eight bytes of the name in a `struct qstr`.
#[inline(always)]
pub fn name_start(qstr: u64) -> u64 {
    read_or_zero(read_or_zero::<u64>(qstr + offset!(qstr_name)))
}

/// Whether a thread of the kernel's own works for io_uring in its name.
#[inline(always)]
pub fn is_uring_worker(task: Typed) -> bool {
    const PF_IO_WORKER: u32 = 0x10;
    task.get::<u32>(offset!(task_flags)) & PF_IO_WORKER != 0
}

/// The process id of a task as its own PID namespace has it.
#[inline(always)]
pub fn tgid_inside(task: Typed) -> u32 {
    let pid = task
        .follow(offset!(task_group_leader))
        .follow(offset!(task_thread_pid))
        .number();
    let level: u32 = read_or_zero(pid + offset!(pid_level));
    read_or_zero(pid + offset!(pid_numbers) + u64::from(level) * offset!(sizeof_upid) + offset!(upid_nr))
}

/// Which system call the current task is in.
pub mod syscall {
    use super::{OFFSETS, Object, bpf_get_current_task_btf, bpf_task_pt_regs, me, read_or_zero};

    /// What a system call is for, as far as somebody asks.
    #[derive(Clone, Copy, PartialEq, Eq)]
    pub enum Call {
        Mount,
        Namespace,
        Seccomp,
        /// open_by_handle_at(2)
        ByHandle,
        Perf,
        /// Any 32-bit one.
        Narrow,
        Other,
    }

    #[inline(always)]
    pub fn current() -> Call {
        if me().get::<u32>(offset!(task_narrow)) & offset!(narrow_bits) as u32 != 0 {
            return Call::Narrow;
        }
        // SAFETY: no arguments; the helper is given what the other one returned.
        let registers = super::number(unsafe { bpf_task_pt_regs(bpf_get_current_task_btf()) } as u64);
        let number: u32 = read_or_zero(registers + offset!(regs_syscall));
        if number == offset!(nr_mount) as u32
            || number == offset!(nr_umount2) as u32
            || number == offset!(nr_pivot_root) as u32
            || number >= offset!(nr_open_tree) as u32 && number <= offset!(nr_move_mount) as u32 + 4
            || number == offset!(nr_mount_setattr) as u32
        {
            Call::Mount
        } else if number == offset!(nr_unshare) as u32
            || number == offset!(nr_setns) as u32
            || number == offset!(nr_clone) as u32
            || number == offset!(nr_clone3) as u32
        {
            Call::Namespace
        } else if number == offset!(nr_seccomp) as u32 || number == offset!(nr_prctl) as u32 {
            Call::Seccomp
        } else if number == offset!(nr_open_by_handle_at) as u32 {
            Call::ByHandle
        } else if number == offset!(nr_perf_event_open) as u32 {
            Call::Perf
        } else {
            Call::Other
        }
    }
}

// ---- what the hooks of file changes read ----

/// `file->f_flags`: O_* bits.
#[inline(always)]
pub fn file_flags(file: u64) -> u32 {
    read_or_zero(file + offset!(file_flags))
}

/// The `struct file` whose `f_path` is at this address, if it is one's.
#[inline(always)]
pub fn file_of_path(path: u64) -> u64 {
    path - offset!(file_path)
}

/// The mount of a `struct path` at this address.
#[inline(always)]
pub fn path_mount(path: u64) -> u64 {
    read_or_zero(path + offset!(path_mnt))
}

/// The current task acts with the credentials of somebody else: the kernel does so below overlayfs and in core dumps.
#[inline(always)]
pub fn acts_for_another(task: u64) -> bool {
    read_or_zero::<u64>(task + offset!(task_cred)) != read_or_zero::<u64>(task + offset!(task_real_cred))
}

/// PF_* bits.
#[inline(always)]
pub fn task_flags(task: u64) -> u32 {
    read_or_zero(task + offset!(task_flags))
}

/// The `struct path` in which the current task looks a name up; 0 for none. It is the first field of its `struct nameidata`.
#[inline(always)]
pub fn looked_up(task: u64) -> u64 {
    read_or_zero(task + offset!(task_nameidata))
}

/// Address of a dentry's name, which ends with NUL.
#[inline(always)]
pub fn name_of(dentry: u64) -> u64 {
    read_or_zero(dentry + offset!(dentry_name) + offset!(qstr_name))
}

/// Eight bytes of kernel memory.
#[inline(always)]
pub fn word_at(address: u64) -> u64 {
    read_or_zero(address)
}

/// `super_block.s_flags`: SB_* bits.
#[inline(always)]
pub fn super_flags(superblock: u64) -> u64 {
    read_or_zero(superblock + offset!(sb_flags))
}

#[inline(always)]
pub fn inode_size(inode: u64) -> u64 {
    read_or_zero(inode + offset!(inode_size))
}

/// The file that a `struct vm_area_struct` maps; 0 for none.
#[inline(always)]
pub fn area_file(area: u64) -> u64 {
    read_or_zero(area + offset!(vma_file))
}

/// VM_* bits.
#[inline(always)]
pub fn area_flags(area: u64) -> u64 {
    read_or_zero(area + offset!(vma_flags))
}
