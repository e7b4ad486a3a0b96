// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Every map, and who writes it. All are pinned: they outlive the agent, as the programs do.

use core::arch::asm;

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use guard_common::protect::{AddressKey, FileId, NameKey, Protected, Refused, RefusedKey};
use guard_common::rules::{Note, Rule, RuleKey, SLOTS, word};
use guard_common::{
    ActionKey, Config, Cover, Filter, Flow, FlowFilter, FreeKey, LabelSettings, LabelUse, OpenFilter, Origin, Pending,
    Stamp, Verdict, VerdictKey, counter,
};

/// Written by the agent. One element.
#[map]
pub static CONFIG: Array<Config> = Array::pinned(1, 0);

/// Written by the agent: boot time of its last sign of life. One element.
#[map]
pub static HEARTBEAT: Array<u64> = Array::pinned(1, 0);

/// cgroup id to the origin of its label. The agent adds and removes, cgroup_mkdir and cgroup_rmdir do so for what is below.
#[map]
pub static CGROUPS: HashMap<u64, u64> = HashMap::pinned(16_384, 0);

/// The cgroups that labels were given to. Written by the agent. What is not here labels nobody, whatever still names it.
#[map]
pub static ORIGINS: HashMap<u64, Origin> = HashMap::pinned(16_384, 0);

/// Tasks that carry the label of an origin. The agent makes and removes entries, the hooks count.
#[map]
pub static MEMBERS: HashMap<u64, u64> = HashMap::pinned(16_384, 0);

/// task address to label: the whole truth about tasks, because it follows the task wherever it goes. An entry lives as
/// long as its task. Written by the hooks alone.
#[map]
pub static TASKS: HashMap<u64, Stamp> = HashMap::pinned(65_536, 0);

/// What is surely not in TASKS. One element; written by the hooks alone.
#[map]
pub static FILTER: Array<Filter> = Array::pinned(1, 0);

/// What holds for a label. Written by the agent.
#[map]
pub static LABELS: HashMap<u32, LabelSettings> = HashMap::pinned(4_096, 0);

/// What a label uses. The agent makes entries, the hooks count.
#[map]
pub static USE: HashMap<u32, LabelUse> = HashMap::pinned(4_096, 0);

/// The agent's thread id to what it wants stamped; see `cover`.
#[map]
pub static COVER: HashMap<u32, Cover> = HashMap::pinned(64, 0);

/// task address to its question. Written by the hooks of that task alone.
#[map]
pub static PENDING: HashMap<u64, Pending> = HashMap::pinned(8_192, 0);

/// Answers. Written by the agent, removed by the hooks when the question is over.
#[map]
pub static VERDICTS: HashMap<VerdictKey, Verdict> = HashMap::pinned(8_192, 0);

/// Process id to what its threads wait for.
#[map]
pub static PROCESSES: HashMap<u32, Process> = HashMap::pinned(8_192, 0);

/// The agent's thread id to the file it wants named; see `identify`.
#[map]
pub static IDENTIFY: HashMap<u32, ActionKey> = HashMap::pinned(64, 0);

/// Files that labelled tasks do not reach. Written by the agent; see `protect`.
#[map]
pub static PROTECTED: HashMap<FileId, Protected> = HashMap::pinned(16_384, 0);

/// Names that are protected before there is a file. Written by the agent.
#[map]
pub static NAMES: HashMap<NameKey, Protected> = HashMap::pinned(512, 0);

/// Where the console listens. Written by the agent.
#[map]
pub static ADDRESSES: HashMap<AddressKey, u32> = HashMap::pinned(2_048, 0);

/// What was refused of it. Written by the hooks, read by the agent.
#[map]
pub static REFUSED: HashMap<RefusedKey, Refused> = HashMap::pinned(8_192, 0);

/// How many of REFUSED are in records. Written by the agent, kept here because it outlives it.
#[map]
pub static REPORTED: HashMap<RefusedKey, u64> = HashMap::pinned(8_192, 0);

/// `struct sock` address to what it may reach. An entry lives as long as its socket. Written by the hooks alone.
#[map]
pub static FLOWS: HashMap<u64, Flow> = HashMap::pinned(65_536, 0);

/// What is surely not in FLOWS. One element; written by the hooks alone.
#[map]
pub static FLOW_FILTER: Array<FlowFilter> = Array::pinned(1, 0);

/// `struct file` address to the label that may write through it. An entry lives as long as the open file. Written by the hooks
/// alone.
#[map]
pub static OPENED: HashMap<u64, u32> = HashMap::pinned(65_536, 0);

/// What is surely not in OPENED. One element; written by the hooks alone.
#[map]
pub static OPEN_FILTER: Array<OpenFilter> = Array::pinned(1, 0);

/// Directories whose content a label may change unasked. Written by the agent.
#[map]
pub static FREE: HashMap<FreeKey, u32> = HashMap::pinned(4_096, 0);

/// Exact rules; see `rules`. Written by the agent.
#[map]
pub static RULES: HashMap<RuleKey, Rule> = HashMap::pinned(SLOTS, 0);

/// How often each rule was used, by its slot. Written by the hooks alone.
#[map]
pub static USES: Array<u64> = Array::pinned(SLOTS, 0);

/// How many of USES are in records. Written by the agent, kept here because it outlives it.
#[map]
pub static RECORDED: Array<u64> = Array::pinned(SLOTS, 0);

/// What the rule of a slot allows, for its records. Written by the agent, kept here because it outlives it; made as needed.
#[map]
pub static NOTES: HashMap<u32, Note> = HashMap::pinned(SLOTS, BPF_F_NO_PREALLOC);

/// `guard_common::rules::word`. MOVED is written by the hooks, the others by the agent.
#[map]
pub static WORDS: Array<u64> = Array::pinned(word::COUNT, 0);

#[map]
pub static COUNTERS: Array<u64> = Array::pinned(counter::COUNT, 0);

#[map]
pub static EVENTS: RingBuf = RingBuf::pinned(4 << 20, 0);

/// A process with pending questions. Only the programs read it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Process {
    /// Threads that ask.
    pub asking: u64,
    /// Of those, the ones that run their hook again and again.
    pub looping: u64,
    /// A stop signal (SIGTSTP, SIGTTIN, SIGTTOU) that the rounds' SIGCONT would lose; 0 for none.
    pub stop: u32,
    pub reserved: u32,
}

/// Adds one to a counter of `guard_common::counter`.
#[inline(always)]
pub fn count(which: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(which) {
        // SAFETY: a live map value, aligned to 8.
        unsafe { add(counter, 1) };
    }
}

/// Adds atomically. The target's `core` has no read-modify-write atomics, the instruction set does.
///
/// # Safety
/// `value` points at a live, aligned map value.
#[inline(always)]
pub unsafe fn add(value: *mut u64, what: u64) {
    // SAFETY: by contract of this function.
    unsafe { asm!("lock *(u64 *)({value} + 0) += {what}", value = in(reg) value, what = in(reg) what) };
}

/// [`add`] for 4 bytes.
///
/// # Safety
/// `value` points at a live, aligned map value.
#[inline(always)]
pub unsafe fn add32(value: *mut u32, what: u32) {
    // SAFETY: by contract of this function.
    unsafe { asm!("lock *(u32 *)({value} + 0) += {what}", value = in(reg) value, what = in(reg) u64::from(what)) };
}
