//! The kernel side's own tests: guard-agent/tests/vm/cases.py with its helpers, in a guest without Guard.
//! Given a kernel and a filter. Never counts a case that the guest did not report.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build::cargo;
use crate::vm::{Event, Kernel, Vm, VmOptions};
use crate::{paths, run};

/// How the cases went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cases {
    /// Went well.
    pub passed: u64,
    /// Failed.
    pub failed: u64,
    /// Said why they did not run.
    pub skipped: u64,
}

/// Runs the cases whose name contains `filter` and prints what they print.
///
/// # Errors
/// When helpers do not build, or the guest ends before all cases have.
pub fn run(kernel: Kernel, filter: Option<&str>) -> Result<Cases> {
    let folder = paths::repo().join("guard-agent/tests/vm");
    let program = fs::read_to_string(folder.join("cases.py"))?;
    let names: Vec<&str> = names(&program)
        .filter(|name| filter.is_none_or(|filter| name.contains(filter)))
        .collect();
    if names.is_empty() {
        return Ok(Cases::default());
    }
    let helpers = helpers()?;
    let mut options = VmOptions::bare();
    options.kernel = kernel;
    options.copy = vec![helpers];
    let vm = Vm::boot(&options)?;
    let mut argv = vec![
        "python3",
        "-u",
        "/mnt/copy/kernel-tests/cases.py",
        "/mnt/copy/kernel-tests",
    ];
    argv.extend(&names);
    let mut running = vm.start_command(&argv)?;
    running.close_input()?;
    let mut out = std::io::stdout();
    let mut text = Vec::new();
    loop {
        match running.next() {
            Some(Event::Stdout(bytes)) => {
                out.write_all(&bytes)?;
                out.flush()?;
                text.extend(bytes);
            }
            Some(Event::Stderr(bytes)) => out.write_all(&bytes)?,
            Some(Event::Exit(_)) => break,
            None => bail!(
                "the guest ended amid the cases; its console:\n{}",
                run::last_lines(&vm.console_log(), 60)
            ),
        }
    }
    let cases = count(&String::from_utf8_lossy(&text));
    let reported = cases.passed + cases.failed + cases.skipped;
    if reported != names.len() as u64 {
        bail!("{reported} of {} cases were reported", names.len());
    }
    Ok(cases)
}

/// The names of the cases in the program: functions right after `@case`.
fn names(program: &str) -> impl Iterator<Item = &str> {
    program
        .split("\n@case\ndef ")
        .skip(1)
        .filter_map(|rest| rest.split('(').next())
}

fn count(text: &str) -> Cases {
    let mut cases = Cases::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("ok", _)) => cases.passed += 1,
            Some(("FAILED", _)) => cases.failed += 1,
            Some(("skipped", _)) => cases.skipped += 1,
            _ => {}
        }
    }
    cases
}

/// Builds what the cases use into one folder.
fn helpers() -> Result<PathBuf> {
    run::loud_or_quiet(cargo().args(["build", "--locked", "-p", "guard-agent", "--example", "hold_probe"]))?;
    let source = paths::repo().join("guard-agent/tests/vm");
    let folder = paths::target().join("kernel-tests");
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let probe = paths::target().join("debug/examples/hold_probe");
    run::quiet(
        Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(folder.join("hold_probe"))
            .arg(probe),
    )?;
    let flags = ["-static", "-O1", "-Wall", "-Werror", "-pthread", "-o"];
    run::quiet(
        Command::new("gcc")
            .args(flags)
            .arg(folder.join("odd"))
            .arg(source.join("odd.c")),
    )?;
    fs::copy(source.join("cases.py"), folder.join("cases.py"))?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_found_by_name() {
        let program =
            "import os\n\n@case\ndef one(probe):\n    pass\n\n\ndef helper(x):\n    pass\n\n@case\ndef two(probe):\n";
        assert_eq!(names(program).collect::<Vec<_>>(), ["one", "two"]);
    }

    #[test]
    fn only_lines_of_cases_count() {
        let text = "ok one 1.2s\nFAILED two: why\n   | ok this is its log\nskipped three: no io_uring\n1 ok, 1 failed, 1 skipped\n";
        assert_eq!(
            count(text),
            Cases {
                passed: 1,
                failed: 1,
                skipped: 1
            }
        );
    }
}
