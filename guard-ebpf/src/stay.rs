// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A labelled task stays in its cgroup: it changes nothing on a cgroup file system.
//!
//! Owns what counts as such a change; given what a hook was given, for a task that is known to be labelled. The label
//! follows a task wherever it goes: this is so that limits, and what others see of the workload, stay true as well. It
//! must never refuse reading.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::errno;
use guard_common::protect::kind;

use crate::abi::MAY_WRITE;
use crate::kernel::Object;
use crate::protect::count_refused;
use crate::scope::Label;
use crate::{kernel, privilege, scope};

const CGROUP2_MAGIC: u64 = 0x6367_7270;
const CGROUP1_MAGIC: u64 = 0x0027_e0eb;

#[inline(always)]
const fn is_cgroup(magic: u64) -> bool {
    matches!(magic, CGROUP2_MAGIC | CGROUP1_MAGIC)
}

/// Opening for writing, and making or removing a directory, which both write to the one above. A directory is also what
/// CLONE_INTO_CGROUP must be allowed to write to. 0 if it may. What is no cgroup may be a setting of the kernel.
#[inline(always)]
pub fn refuses_inode<O: Object>(label: &Label, inode: O, mask: u32) -> u32 {
    if mask & MAY_WRITE == 0 {
        return 0;
    }
    let magic = kernel::super_magic(kernel::inode_super(inode));
    if is_cgroup(magic) {
        kind::CGROUP
    } else {
        privilege::tunable(label, magic, mask)
    }
}

/// Writing to what was opened before the label, or by somebody else. 0 if it may.
#[inline(always)]
pub fn refuses_file<O: Object>(label: &Label, file: O, mask: u32) -> u32 {
    if mask & MAY_WRITE != 0 {
        refuses_inode(label, kernel::file_inode(file), mask)
    } else {
        0
    }
}

/// The label of a cgroup is kept in an attribute, which root of the workload could take away: no inode_permission is
/// asked for that.
macro_rules! attribute_hook {
    ($($hook:literal $program:ident;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(context: LsmContext) -> i32 {
                let Some(label) = scope::label(kernel::current()) else {
                    return 0;
                };
                let inode = kernel::dentry_inode(kernel::object(&context, 1));
                if !is_cgroup(kernel::super_magic(kernel::inode_super(inode))) {
                    return 0;
                }
                count_refused(&label, kind::CGROUP);
                -errno::EPERM
            }
        )*
    };
}

attribute_hook! {
    "inode_setxattr" guard_stay_setxattr;
    "inode_removexattr" guard_stay_removexattr;
}
