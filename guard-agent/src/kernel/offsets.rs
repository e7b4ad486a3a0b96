//! Where the running kernel keeps what the BPF programs read.
//!
//! Owns the list of members; given the kernel's BTF. It must never fill in a default: every one is found or load fails.

use guard_common::Offsets;

use super::btf::{Btf, BtfError};

/// Where `pt_regs` has the number of the system call; where a task that makes a 32-bit one shows it, and by which bit: member,
/// width, bit (TS_COMPAT, TIF_32BIT).
#[cfg(target_arch = "x86_64")]
const REGS_SYSCALL: (&str, u64) = ("orig_ax", 8);
#[cfg(target_arch = "x86_64")]
const NARROW: (&str, u64, u32) = ("status", 4, 2);
#[cfg(target_arch = "aarch64")]
const REGS_SYSCALL: (&str, u64) = ("syscallno", 4);
#[cfg(target_arch = "aarch64")]
const NARROW: (&str, u64, u32) = ("flags", 8, 1 << 22);

/// As the programs have it. None of the numbers is negative.
fn number(syscall: libc::c_long) -> u32 {
    u32::try_from(syscall).unwrap_or(u32::MAX)
}

/// Looks every member up. The numbers are the widths that the programs read.
pub(crate) fn resolve(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let pointer = 8;
    let at = |name: &str, member: &str, width: u64| btf.offset(name, member, width);
    // Seconds and nanoseconds of an inode's last change: until 6.5, until 6.10, and since.
    let whole = at("inode", "i_ctime", 16).or_else(|_| at("inode", "__i_ctime", 16));
    let changed = match whole {
        Ok(whole) => (
            whole + at("timespec64", "tv_sec", 8)?,
            whole + at("timespec64", "tv_nsec", 8)?,
        ),
        Err(_) => (at("inode", "i_ctime_sec", 8)?, at("inode", "i_ctime_nsec", 4)?),
    };
    Ok(Offsets {
        task_start_boottime: at("task_struct", "start_boottime", 8)?,
        task_pid: at("task_struct", "pid", 4)?,
        task_tgid: at("task_struct", "tgid", 4)?,
        task_real_parent: at("task_struct", "real_parent", pointer)?,
        task_parent: at("task_struct", "parent", pointer)?,
        task_ptrace: at("task_struct", "ptrace", 4)?,
        task_blocked: at("task_struct", "blocked", 8)?,
        task_sighand: at("task_struct", "sighand", pointer)?,
        task_loginuid: at("task_struct", "loginuid", 4)?,
        sighand_action: at("sighand_struct", "action", 0)?,
        sizeof_k_sigaction: btf.size_of("k_sigaction")?,
        sigaction_handler: at("k_sigaction", "sa", 0)? + at("sigaction", "sa_handler", pointer)?,
        bprm_file: at("linux_binprm", "file", pointer)?,
        bprm_unsafe: at("linux_binprm", "unsafe", 4)?,
        file_inode: at("file", "f_inode", pointer)?,
        file_path: at("file", "f_path", 0)?,
        path_mnt: at("path", "mnt", pointer)?,
        path_dentry: at("path", "dentry", pointer)?,
        dentry_name: at("dentry", "d_name", 0)?,
        dentry_parent: at("dentry", "d_parent", pointer)?,
        qstr_name: at("qstr", "name", pointer)?,
        vfsmount_root: at("vfsmount", "mnt_root", pointer)?,
        mount_mnt: at("mount", "mnt", 0)?,
        mount_parent: at("mount", "mnt_parent", pointer)?,
        mount_mountpoint: at("mount", "mnt_mountpoint", pointer)?,
        mount_namespace: at("mount", "mnt_ns", pointer)?,
        namespace_common: at("mnt_namespace", "ns", 0)?,
        ns_common_inum: at("ns_common", "inum", 4)?,
        inode_sb: at("inode", "i_sb", pointer)?,
        inode_ino: at("inode", "i_ino", 8)?,
        inode_generation: at("inode", "i_generation", 4)?,
        inode_nlink: at("inode", "i_nlink", 4)?,
        sb_dev: at("super_block", "s_dev", 4)?,
        cgroup_kn: at("cgroup", "kn", pointer)?,
        cgroup_self: at("cgroup", "self", 0)?,
        cgroup_root: at("cgroup", "root", pointer)?,
        css_parent: at("cgroup_subsys_state", "parent", pointer)?,
        cgroup_root_hierarchy: at("cgroup_root", "hierarchy_id", 4)?,
        kernfs_id: at("kernfs_node", "id", 8)?,
        dentry_inode: at("dentry", "d_inode", pointer)?,
        inode_mode: at("inode", "i_mode", 2)?,
        inode_rdev: at("inode", "i_rdev", 4)?,
        file_mode: at("file", "f_mode", 4)?,
        sb_root: at("super_block", "s_root", pointer)?,
        sb_bdev: at("super_block", "s_bdev", pointer)?,
        sb_magic: at("super_block", "s_magic", 8)?,
        socket_sk: at("socket", "sk", pointer)?,
        unix_sock_path: at("unix_sock", "path", 0)?,
        msghdr_name: at("msghdr", "msg_name", pointer)?,
        msghdr_namelen: at("msghdr", "msg_namelen", 4)?,
        task_mm: at("task_struct", "mm", pointer)?,
        mm_exe_file: at("mm_struct", "exe_file", pointer)?,
        proc_inode_pid: at("proc_inode", "pid", pointer)?,
        proc_inode_vfs: at("proc_inode", "vfs_inode", 0)?,
        pid_tasks: at("pid", "tasks", 0)?,
        task_pid_links: at("task_struct", "pid_links", 0)?,
        task_cgroups: at("task_struct", "cgroups", pointer)?,
        css_set_dfl_cgrp: at("css_set", "dfl_cgrp", pointer)?,
        task_signal: at("task_struct", "signal", pointer)?,
        signal_thread_head: at("signal_struct", "thread_head", 16)?,
        task_thread_node: at("task_struct", "thread_node", 16)?,
        task_thread_flags: at("task_struct", "thread_info", 0)? + at("thread_info", "flags", 8)?,
        sock_family: at("sock_common", "skc_family", 2)?,
        sock_dport: at("sock_common", "skc_dport", 2)?,
        sock_daddr: at("sock_common", "skc_daddr", 4)?,
        sock_v6_daddr: at("sock_common", "skc_v6_daddr", 16)?,
        sock_rcv_saddr: at("sock_common", "skc_rcv_saddr", 4)?,
        sock_v6_rcv_saddr: at("sock_common", "skc_v6_rcv_saddr", 16)?,
        sock_num: at("sock_common", "skc_num", 2)?,
        sock_state: at("sock_common", "skc_state", 1)?,
        sock_listener: at("sock_common", "skc_listener", pointer)?,
        sock_type: at("sock", "sk_type", 2)?,
        sock_protocol: at("sock", "sk_protocol", 2)?,
        unix_sock_addr: at("unix_sock", "addr", pointer)?,
        unix_sock_peer: at("unix_sock", "peer", pointer)?,
        unix_address_len: at("unix_address", "len", 4)?,
        unix_address_name: at("unix_address", "name", 0)?,
        socket_alloc_socket: at("socket_alloc", "socket", 0)?,
        socket_alloc_inode: at("socket_alloc", "vfs_inode", 0)?,
        msghdr_control: at("msghdr", "msg_control", pointer)?,
        msghdr_controllen: at("msghdr", "msg_controllen", 8)?,
        msghdr_flags: at("msghdr", "msg_flags", 4)?,
        inet_options: at("inet_sock", "inet_opt", pointer)?,
        inet_six: at("inet_sock", "pinet6", pointer)?,
        six_options: at("ipv6_pinfo", "opt", pointer)?,
        skb_data: at("sk_buff", "data", pointer)?,
        skb_len: at("sk_buff", "len", 4)?,
        skb_data_len: at("sk_buff", "data_len", 4)?,
        skb_head: at("sk_buff", "head", pointer)?,
        skb_network_header: at("sk_buff", "network_header", 2)?,
        skb_transport_header: at("sk_buff", "transport_header", 2)?,
        sock_net: at("sock_common", "skc_net", 0)?,
        net_ns: at("net", "ns", 0)?,
        task_real_cred: at("task_struct", "real_cred", pointer)?,
        task_flags: at("task_struct", "flags", 4)?,
        task_thread_pid: at("task_struct", "thread_pid", pointer)?,
        task_group_leader: at("task_struct", "group_leader", pointer)?,
        pid_level: at("pid", "level", 4)?,
        pid_numbers: at("pid", "numbers", 0)?,
        sizeof_upid: btf.size_of("upid")?,
        upid_nr: at("upid", "nr", 4)?,
        cred_uid: at("cred", "uid", 4)?,
        cred_gid: at("cred", "gid", 4)?,
        cred_suid: at("cred", "suid", 4)?,
        cred_sgid: at("cred", "sgid", 4)?,
        cred_euid: at("cred", "euid", 4)?,
        cred_egid: at("cred", "egid", 4)?,
        cred_fsuid: at("cred", "fsuid", 4)?,
        cred_fsgid: at("cred", "fsgid", 4)?,
        cred_permitted: at("cred", "cap_permitted", 8)?,
        bprm_cred: at("linux_binprm", "cred", pointer)?,
        regs_syscall: at("pt_regs", REGS_SYSCALL.0, REGS_SYSCALL.1)?,
        task_narrow: at("task_struct", "thread_info", 0)? + at("thread_info", NARROW.0, NARROW.1)?,
        narrow_bits: NARROW.2,
        nr_unshare: number(libc::SYS_unshare),
        nr_setns: number(libc::SYS_setns),
        nr_clone: number(libc::SYS_clone),
        nr_clone3: number(libc::SYS_clone3),
        nr_mount: number(libc::SYS_mount),
        nr_umount2: number(libc::SYS_umount2),
        nr_pivot_root: number(libc::SYS_pivot_root),
        nr_open_tree: number(libc::SYS_open_tree),
        nr_move_mount: number(libc::SYS_move_mount),
        nr_mount_setattr: number(libc::SYS_mount_setattr),
        nr_seccomp: number(libc::SYS_seccomp),
        nr_prctl: number(libc::SYS_prctl),
        nr_open_by_handle_at: number(libc::SYS_open_by_handle_at),
        nr_perf_event_open: number(libc::SYS_perf_event_open),
        skb_nfct: at("sk_buff", "_nfct", 8)?,
        // For the hooks of file changes.
        file_flags: at("file", "f_flags", 4)?,
        task_cred: at("task_struct", "cred", pointer)?,
        task_nameidata: at("task_struct", "nameidata", pointer)?,
        sb_flags: at("super_block", "s_flags", 8)?,
        inode_size: at("inode", "i_size", 8)?,
        vma_file: at("vm_area_struct", "vm_file", pointer)?,
        vma_flags: at("vm_area_struct", "vm_flags", 8)?,
        inode_ctime_sec: changed.0,
        inode_ctime_nsec: changed.1,
        inode_writecount: at("inode", "i_writecount", 4)?,
        renamedata_old: at("renamedata", "old_dentry", pointer)?,
        renamedata_new: at("renamedata", "new_dentry", pointer)?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_member_is_found_in_the_running_kernel() {
        let Ok(bytes) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("skipped: this kernel has no /sys/kernel/btf/vmlinux");
            return;
        };
        let btf = Btf::parse(&bytes).unwrap();
        let offsets = resolve(&btf).unwrap();
        assert_ne!(offsets.task_pid, offsets.task_tgid);
        assert!(offsets.sizeof_k_sigaction >= 24);
        assert!(btf.has_function("bpf_lsm_bprm_creds_for_exec"));
    }
}
