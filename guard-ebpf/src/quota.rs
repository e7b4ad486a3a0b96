// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! What one label may use of the tables that all share, and what else holds for it.
//!
//! Owns the counts; given a label's number. Whoever enters must leave exactly once, or the label starves.

use guard_common::{FILES_PER_LABEL, LabelSettings, LabelUse};

use crate::maps::{LABELS, USE, add};

/// What holds for a label.
#[inline(always)]
pub fn settings(label: u32) -> LabelSettings {
    // SAFETY: copied at once.
    match unsafe { LABELS.get(label) } {
        Some(found) => *found,
        None => LabelSettings::DEFAULT,
    }
}

#[inline(always)]
fn usage(label: u32) -> Option<*mut LabelUse> {
    USE.get_ptr_mut(label)
}

/// One more question of this label waits; false if there are too many already: the action is refused, because a place in
/// the table is what waiting needs.
#[inline(always)]
pub fn enter_question(label: u32) -> bool {
    let limit = u64::from(settings(label).pending);
    let Some(usage) = usage(label) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe {
        if (&raw mut (*usage).pending).read_volatile() >= limit {
            add(&raw mut (*usage).refused_pending, 1);
            return false;
        }
        add(&raw mut (*usage).pending, 1);
    }
    true
}

/// The question is over.
#[inline(always)]
pub fn leave_question(label: u32) {
    if let Some(usage) = usage(label) {
        // SAFETY: a live map value.
        unsafe { add(&raw mut (*usage).pending, u64::MAX) };
    }
}

/// One more socket of this label is known; false if there are too many already.
#[inline(never)]
pub fn enter_socket(label: u32) -> bool {
    let limit = u64::from(settings(label).sockets);
    let Some(usage) = usage(label) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe {
        if (&raw mut (*usage).sockets).read_volatile() >= limit {
            add(&raw mut (*usage).refused_sockets, 1);
            return false;
        }
        add(&raw mut (*usage).sockets, 1);
    }
    true
}

/// Whether one more could be known, so that nobody is asked in vain.
#[inline(never)]
pub fn room_for_socket(label: u32) -> bool {
    let limit = u64::from(settings(label).sockets);
    let Some(usage) = usage(label) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe {
        if (&raw mut (*usage).sockets).read_volatile() >= limit {
            add(&raw mut (*usage).refused_sockets, 1);
            return false;
        }
    }
    true
}

/// It is closed, or was not remembered after all.
#[inline(always)]
pub fn leave_socket(label: u32) {
    if let Some(usage) = usage(label) {
        // SAFETY: a live map value.
        unsafe { add(&raw mut (*usage).sockets, u64::MAX) };
    }
}

/// Whether one more task may carry the label. It counts when it is stamped.
#[inline(always)]
pub fn room_for_task(label: u32) -> bool {
    let limit = u64::from(settings(label).tasks);
    let Some(usage) = usage(label) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe {
        if (&raw mut (*usage).tasks).read_volatile() >= limit {
            add(&raw mut (*usage).refused_tasks, 1);
            return false;
        }
    }
    true
}

/// One more open file of this label is remembered; false if there are too many already.
#[inline(never)]
pub fn enter_file(label: u32) -> bool {
    let Some(usage) = usage(label) else {
        return true;
    };
    // SAFETY: a live map value.
    unsafe {
        if (&raw mut (*usage).files).read_volatile() >= FILES_PER_LABEL {
            add(&raw mut (*usage).refused_files, 1);
            return false;
        }
        add(&raw mut (*usage).files, 1);
    }
    true
}

/// It is closed.
#[inline(always)]
pub fn leave_file(label: u32) {
    if let Some(usage) = usage(label) {
        // SAFETY: a live map value.
        unsafe { add(&raw mut (*usage).files, u64::MAX) };
    }
}
