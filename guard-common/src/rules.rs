//! Layouts of the exact rules: answers of the policy that the hooks give again by themselves, and their counts.
//!
//! Owns layouts and constants, as the crate does. It must never hold logic.

/// Rules at a time, and as many counters.
pub const SLOTS: u32 = 8_192;
/// Bytes of what is known of a rule.
pub const NOTE_ROOM: usize = 2_036;

/// What a rule allows: everything that the policy's answer depended on, as the kernel has it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct RuleKey {
    /// Never 0.
    pub label: u32,
    /// `action::EXEC` or `action::REACH`; 0: what no rule may name.
    pub kind: u32,
    /// As in `ActionKey`, the next two too.
    pub op: u32,
    pub device: u32,
    pub generation: u32,
    /// Reaching an address: of `ask_flag`. An exec: nanoseconds of the inode's last change.
    pub how: u32,
    /// Of an exec.
    pub inode: u64,
    /// Reaching an address: the address as in `ActionKey`. An exec: seconds of the inode's last change, and the address of the
    /// `struct vfsmount` that its path leads through.
    pub extra: [u64; 2],
}

/// Written by the agent, read by the hooks.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// It counts while this is the generation in force.
    pub generation: u64,
    /// Boot time of the question that it was learnt from: what was moved since has another path.
    pub asked_ns: u64,
    /// Its counter in USES.
    pub slot: u32,
    pub reserved: u32,
}

/// What is known of the rule that has a slot, for the record of its uses. Written and read by the agent alone; here because it
/// outlives the agent, as the counters do.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Note {
    /// Boot time since when the rule has this slot.
    pub since_ns: u64,
    /// Bytes of `text` in use.
    pub len: u32,
    pub text: [u8; NOTE_ROOM],
}

/// Index into the map of words that concern all rules.
pub mod word {
    /// The generation of the policy in force; 0: no rule counts.
    pub const GENERATION: u32 = 0;
    /// Boot time of the last change by which a file may have come to another path without being changed itself.
    pub const MOVED: u32 = 1;
    /// Boot time at which the maps were made: tells their counters from those of other maps.
    pub const MADE: u32 = 2;
    pub const COUNT: u32 = 4;
}
