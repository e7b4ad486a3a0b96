//! What the end-to-end tests share: the harness here, the guest and its people in [`scene`], policies in [`policies`].
//! Given the machine's virtual machines. Never runs Guard or its programs on the machine itself.
#![forbid(unsafe_code)]

pub mod policies;
pub mod scene;

use std::process::ExitCode;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

/// One test.
#[derive(Debug)]
pub struct Case {
    name: &'static str,
    proves: &'static str,
    run: fn() -> Result<()>,
}

/// A test: its name, what it proves in one line, and how.
pub const fn case(name: &'static str, proves: &'static str, run: fn() -> Result<()>) -> Case {
    Case { name, proves, run }
}

/// What a target needs besides the sources: an environment variable that `cargo xtask test` sets when it is there.
#[derive(Debug, Clone, Copy)]
pub struct Needs {
    /// Set to 1 when it is there.
    pub variable: &'static str,
    /// In words.
    pub what: &'static str,
    /// Tests at a time.
    pub at_once: usize,
}

/// Virtual machines.
pub const VM: Needs = Needs {
    variable: "GUARD_VM_TESTS",
    what: "a virtual machine",
    // A guest has two CPUs but waits much of the time; more than two at once only make all of them slow.
    at_once: 2,
};
/// Chromium and its driver, and virtual machines.
pub const BROWSER: Needs = Needs {
    variable: "GUARD_BROWSER_TESTS",
    what: "a virtual machine, chromium and chromedriver",
    at_once: 1,
};

/// Runs the cases as `cargo test` would; each that cannot run is counted and says why.
pub fn main(needs: Needs, cases: Vec<Case>) -> ExitCode {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(arguments.test_threads.unwrap_or(needs.at_once));
    let missing = std::env::var_os(needs.variable).is_none_or(|value| value != "1");
    let names = std::env::var("GUARD_TEST_NAMES").unwrap_or_default();
    let trials = cases
        .into_iter()
        .filter(|case| names.is_empty() || names.split(' ').any(|name| case.name.contains(name)))
        .map(|case| {
            Trial::ignorable_test(case.name, move || {
                if missing {
                    let why = format!(
                        "skipped: needs {} (`cargo xtask test` sets {}=1)",
                        needs.what, needs.variable
                    );
                    return Ok(Completion::ignored_with(why));
                }
                let result = std::panic::catch_unwind(case.run).unwrap_or_else(|panic| {
                    let text = panic.downcast_ref::<String>().map(String::as_str);
                    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
                    Err(anyhow::anyhow!("panicked: {}", text.unwrap_or("no text")))
                });
                match result {
                    Ok(()) => Ok(Completion::Completed),
                    Err(error) => Err(Failed::from(format!("proves: {}\n{}", case.proves, causes(&error)))),
                }
            })
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Whether the long forms are wanted: `cargo xtask test --full`.
#[must_use]
pub fn full() -> bool {
    std::env::var_os("GUARD_TEST_FULL").is_some()
}

/// Every cause on a line of its own; no backtrace, which would only show the harness.
fn causes(error: &anyhow::Error) -> String {
    error
        .chain()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n  because: ")
}

/// Fails with the formatted text unless the condition holds: `assert!` for functions that return a result.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        anyhow::ensure!($condition, $($text)+)
    };
}
