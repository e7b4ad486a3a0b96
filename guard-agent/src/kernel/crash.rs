//! Named points of a decision's path at which a test can end the agent as `kill -9` would.
//!
//! Owns the names; given the environment variable GUARD_TEST_CRASH. It must never do anything in a release build.

/// What has to be running for a point to be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// The kernel side alone, and an exec that is held, approved and compared.
    Kernel,
    /// The kernel side, and programs of another version that are in force.
    OtherVersion,
    /// The whole agent, and people who approve.
    Agent,
}

/// In the order of an approved exec that is compared.
pub const POINTS: [(&str, Needs); 25] = [
    ("question-seen", Needs::Kernel),
    ("thread-seized", Needs::Kernel),
    ("stop-not-taken", Needs::Kernel),
    ("thread-stopped", Needs::Kernel),
    ("question-read", Needs::Kernel),
    ("request-not-on-disk", Needs::Agent),
    ("request-on-disk", Needs::Agent),
    ("request-not-sent", Needs::Agent),
    ("request-sent", Needs::Agent),
    ("decision-received", Needs::Agent),
    ("decision-not-on-disk", Needs::Agent),
    ("decision-on-disk", Needs::Agent),
    ("decision-known", Needs::Agent),
    ("verdict-sent", Needs::Agent),
    ("verdict-due", Needs::Kernel),
    ("verdict-written", Needs::Kernel),
    ("thread-continued", Needs::Kernel),
    ("exec-event", Needs::Kernel),
    ("comparison-done", Needs::Kernel),
    ("comparison-written", Needs::Kernel),
    ("outcome-known", Needs::Agent),
    ("enforcement-not-on-disk", Needs::Agent),
    ("enforcement-on-disk", Needs::Agent),
    ("old-programs-half-gone", Needs::OtherVersion),
    ("old-programs-gone", Needs::OtherVersion),
];

/// Ends the process here, if this is the point.
#[cfg(debug_assertions)]
pub(crate) fn point(name: &str) {
    point_when(name, || true);
}

/// The same as soon as the condition holds, within seconds.
#[cfg(debug_assertions)]
pub(crate) fn point_when(name: &str, condition: impl Fn() -> bool) {
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    static CHOSEN: OnceLock<Option<String>> = OnceLock::new();
    debug_assert!(
        POINTS.iter().any(|(known, _)| *known == name),
        "{name} is not a known point"
    );
    let chosen = CHOSEN.get_or_init(|| std::env::var("GUARD_TEST_CRASH").ok());
    if chosen.as_deref() != Some(name) {
        return;
    }
    let until = Instant::now() + Duration::from_secs(5);
    while !condition() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
    let _ = super::sys::kill(std::process::id().cast_signed(), libc::SIGKILL);
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) const fn point(_name: &str) {}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub(crate) fn point_when(_name: &str, _condition: impl Fn() -> bool) {}
