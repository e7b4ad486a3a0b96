//! Where the running kernel keeps what the BPF programs read.
//!
//! Owns the list of members; given the kernel's BTF. It must never fill in a default: every one is found or load fails.

use guard_common::Offsets;

use super::btf::{Btf, BtfError};

/// Looks every member up. The numbers are the widths that the programs read.
pub(crate) fn resolve(btf: &Btf<'_>) -> Result<Offsets, BtfError> {
    let pointer = 8;
    let at = |name: &str, member: &str, width: u64| btf.offset(name, member, width);
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
        skb_data: at("sk_buff", "data", pointer)?,
        skb_len: at("sk_buff", "len", 4)?,
        skb_data_len: at("sk_buff", "data_len", 4)?,
        skb_head: at("sk_buff", "head", pointer)?,
        skb_network_header: at("sk_buff", "network_header", 2)?,
        skb_transport_header: at("sk_buff", "transport_header", 2)?,
        sock_net: at("sock_common", "skc_net", 0)?,
        net_ns: at("net", "ns", 0)?,
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
