//! What the end-to-end tests share: the harness here, the guest and its people in [`scene`], policies in [`policies`].
//! Given the machine's virtual machines. Never runs Guard or its programs on the machine itself.
#![forbid(unsafe_code)]

pub mod policies;
pub mod scene;

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use xtask::test::{TRIED_AGAIN, UNSTEADY};

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
                let begun = Instant::now();
                let result = attempt(case.run);
                if let Ok(mut times) = TIMES.lock() {
                    times.push((begun.elapsed(), case.name));
                }
                let Err(error) = result else {
                    return Ok(Completion::Completed);
                };
                let said = format!("proves: {}\n{}", case.proves, causes(&error));
                // Emulated machines are slow at times. What passes the second time is said and counted; a full run has no second time.
                if !full() && RETRIED.fetch_add(1, Ordering::Relaxed) < TRIED_AGAIN && attempt(case.run).is_ok() {
                    let why = causes(&error).replace('\n', " ");
                    writeln!(io::stdout(), "{UNSTEADY}{}: {why}", case.name)?;
                    return Ok(Completion::Completed);
                }
                Err(Failed::from(said))
            })
        })
        .collect();
    let conclusion = libtest_mimic::run(&arguments, trials);
    // Standard output may be gone by now, which changes nothing about the result.
    let _ = slowest();
    conclusion.exit_code()
}

static RETRIED: AtomicUsize = AtomicUsize::new(0);

static TIMES: Mutex<Vec<(Duration, &str)>> = Mutex::new(Vec::new());

/// Says which tests took longest: two cores have a limited time for all of them.
fn slowest() -> io::Result<()> {
    let mut times = TIMES.lock().map(|times| times.clone()).unwrap_or_default();
    times.sort_unstable_by(|a, b| b.cmp(a));
    for (time, name) in times.iter().take(12) {
        writeln!(io::stdout(), "{:6.1} s  {name}", time.as_secs_f64())?;
    }
    Ok(())
}

fn attempt(run: fn() -> Result<()>) -> Result<()> {
    std::panic::catch_unwind(run).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(anyhow::anyhow!("panicked: {}", text.unwrap_or("no text")))
    })
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
