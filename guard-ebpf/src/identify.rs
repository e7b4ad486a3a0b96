// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Tells the agent the kernel's own key of a file that it has open.
//!
//! What stat(2) calls device and inode is not what the kernel's objects say on overlayfs and btrfs, and the generation
//! cannot be asked for everywhere. So the agent calls flock(2) on its descriptor with its thread id in a map: this hook
//! writes the key there and refuses the lock, before the file system hears of it.

use aya_ebpf::helpers::generated::bpf_get_current_pid_tgid;
use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::errno;

use crate::kernel;
use crate::maps::{CONFIG, IDENTIFY};

#[lsm(hook = "file_lock")]
pub fn guard_identify(context: LsmContext) -> i32 {
    // SAFETY: no arguments.
    let ids = unsafe { bpf_get_current_pid_tgid() };
    let Some(config) = CONFIG.get(0) else {
        return 0;
    };
    if (ids >> 32) as u32 != config.agent_tgid {
        return 0;
    }
    let Some(wanted) = IDENTIFY.get_ptr_mut(ids as u32) else {
        return 0;
    };
    if let Some(key) = kernel::file_key(kernel::object(&context, 0)) {
        // SAFETY: a live map value that this thread alone reads, after the syscall.
        unsafe { *wanted = key };
    }
    -errno::EPERM
}
