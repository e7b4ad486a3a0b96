//! Named points of a decision's path at which a test can end the agent as `kill -9` would.
//!
//! Owns the names; given the environment variable GUARD_TEST_CRASH. It must never do anything in a release build.

/// In the order of an approved exec that is compared.
pub const POINTS: [&str; 10] = [
    "question-seen",
    "thread-seized",
    "thread-stopped",
    "question-read",
    "verdict-due",
    "verdict-written",
    "thread-continued",
    "exec-event",
    "comparison-done",
    "comparison-written",
];

/// Ends the process here, if this is the point.
#[cfg(debug_assertions)]
pub(super) fn point(name: &str) {
    use std::sync::OnceLock;

    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(POINTS.contains(&name), "{name} is not a known point");
    let chosen = CHOSEN.get_or_init(|| std::env::var("GUARD_TEST_CRASH").ok());
    if chosen.as_deref() == Some(name) {
        let _ = super::sys::kill(std::process::id().cast_signed(), libc::SIGKILL);
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(super) const fn point(_name: &str) {}
