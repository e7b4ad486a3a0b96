// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! A cgroup made below a labelled one is labelled before anybody can see it; a removed one leaves nothing.

use aya_ebpf::macros::btf_tracepoint;
use aya_ebpf::programs::BtfTracePointContext;
use guard_common::{counter, event};

use crate::maps::{CGROUPS, ORIGINS, count};
use crate::{emit, kernel};

/// Runs before the directory becomes visible.
#[btf_tracepoint(function = "cgroup_mkdir")]
pub fn guard_cgroup_made(context: BtfTracePointContext) -> i32 {
    let cgroup = kernel::argument(&context, 0);
    let Some(id) = kernel::cgroup_id(cgroup) else {
        return 0;
    };
    let mut label = 0;
    if let Some(parent) = kernel::parent_cgroup_id(cgroup) {
        // SAFETY: copied at once.
        if let Some(origin) = unsafe { CGROUPS.get(parent) }.copied()
            // SAFETY: copied at once.
            && let Some(found) = unsafe { ORIGINS.get(origin) }.copied()
        {
            label = found.label;
            if CGROUPS.insert(id, origin, 0).is_err() {
                count(counter::CGROUPS_FULL);
            }
        }
    }
    emit::cgroup(event::CGROUP_MADE, id, label, kernel::argument(&context, 1));
    0
}

#[btf_tracepoint(function = "cgroup_rmdir")]
pub fn guard_cgroup_gone(context: BtfTracePointContext) -> i32 {
    let Some(id) = kernel::cgroup_id(kernel::argument(&context, 0)) else {
        return 0;
    };
    let _ = CGROUPS.remove(id);
    emit::cgroup(event::CGROUP_GONE, id, 0, kernel::argument(&context, 1));
    0
}
