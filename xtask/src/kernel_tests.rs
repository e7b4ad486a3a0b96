//! The kernel side's own tests: guard-agent/tests/vm/cases.py with its helpers, in guests without Guard, on several kernels.
//! Given kernels and a filter. Never counts a case that the guest did not report.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::build;
use crate::test::TRIED_AGAIN;
use crate::vm::{Event, Kernel, Vm, VmOptions};
use crate::{paths, run};

/// How the cases went on one kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cases {
    /// Went well.
    pub passed: u64,
    /// Failed, with enforcement on or off.
    pub failed: u64,
    /// Failed with enforcement on.
    pub failed_on: u64,
    /// Said why they did not run.
    pub skipped: u64,
    /// What they say that enforcement prevents happened when it was off.
    pub proven: u64,
    /// Names of those that did not pass, each with what was said.
    pub troubles: Vec<String>,
    /// The first failures of those that passed when tried again.
    pub unsteady: Vec<String>,
    /// What the probe said of the kernel: `started kernel=… programs=… absent=[…]`, `offsets Offsets { … }`.
    pub facts: Vec<String>,
}

/// What became of one kernel.
#[derive(Debug)]
pub enum Outcome {
    /// The cases were run.
    Ran(Cases),
    /// The archive no longer has the series.
    Gone,
    /// The machinery failed.
    Broken(anyhow::Error),
}

/// One kernel's part of a run.
#[derive(Debug)]
pub struct Report {
    /// The series.
    pub kernel: Kernel,
    /// `uname -r`, when the kernel could be had.
    pub release: String,
    /// What became of it.
    pub outcome: Outcome,
    /// From its first guest to its last.
    pub time: Duration,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kernel {}", self.kernel.series)?;
        if !self.release.is_empty() {
            write!(f, " ({})", self.release)?;
        }
        match &self.outcome {
            Outcome::Ran(cases) => write!(
                f,
                ": {} cases, {} passed, {} failed, {} skipped, {} proven with enforcement off; {:.0} s{}",
                cases.passed + cases.skipped + cases.failed_on,
                cases.passed,
                cases.failed,
                cases.skipped,
                cases.proven,
                self.time.as_secs_f64(),
                match cases.unsteady.len() {
                    0 => String::new(),
                    number => format!("; {number} passed only when tried again"),
                }
            ),
            Outcome::Gone => write!(f, ": skipped: gone from the archive"),
            Outcome::Broken(error) => write!(f, ": FAILED: {error:#}"),
        }
    }
}

/// A guest has two CPUs, and the cases mostly wait: this many side by side still leave each enough.
const SIDE_BY_SIDE: usize = 2;

/// Runs the cases whose name contains one of `words`, or all, on each kernel and prints what they print, each line with its kernel's series.
/// Empty when no case has such a name.
///
/// # Errors
/// When the cases cannot be read. What fails on one kernel is its report.
pub(crate) fn run(helpers: &Helpers, kernels: &[Kernel], words: &[&str], full: bool) -> Result<Vec<Report>> {
    let cases: Vec<Case> = cases()?
        .into_iter()
        .filter(|case| full || !case.full)
        .filter(|case| words.is_empty() || words.iter().any(|word| case.name.contains(word)))
        .collect();
    if cases.is_empty() {
        return Ok(Vec::new());
    }
    // Who names one kernel or a case means all of it.
    let everything = full || kernels.len() == 1 || !words.is_empty();
    let of = |kernel: Kernel| -> Vec<&str> {
        cases
            .iter()
            .filter(|case| everything || case.one_kernel.as_ref().is_none_or(|series| series == kernel.series))
            .map(|case| case.name.as_str())
            .collect()
    };
    let workers = SIDE_BY_SIDE.min(kernels.len());
    let queue = Mutex::new(kernels.iter());
    let reports = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().ok().and_then(|mut queue| queue.next().copied());
                    let Some(kernel) = next else { break };
                    let report = on(kernel, &helpers.folder, workers, &of(kernel), full);
                    if let Ok(mut reports) = reports.lock() {
                        reports.push(report);
                    }
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_default();
    reports.sort_by_key(|report: &Report| kernels.iter().position(|kernel| *kernel == report.kernel));
    if reports.len() != kernels.len() {
        bail!("{} of {} kernels reported", reports.len(), kernels.len());
    }
    Ok(reports)
}

fn on(kernel: Kernel, helpers: &Path, slow: usize, names: &[&str], full: bool) -> Report {
    let begun = Instant::now();
    let mut release = String::new();
    let outcome = match crate::vm::kernel::available(kernel) {
        Ok(None) => Outcome::Gone,
        Ok(Some(found)) => {
            release = found;
            match guest(kernel, helpers, slow, names, full) {
                Ok(cases) => Outcome::Ran(cases),
                Err(error) => Outcome::Broken(error),
            }
        }
        Err(error) => Outcome::Broken(error),
    };
    Report {
        kernel,
        release,
        outcome,
        time: begun.elapsed(),
    }
}

/// Runs the cases in one guest: first with enforcement off, so that nothing of a probe is left, then with it on.
fn guest(kernel: Kernel, helpers: &Path, slow: usize, names: &[&str], full: bool) -> Result<Cases> {
    let mut options = VmOptions::bare();
    options.kernel = kernel;
    options.copy = vec![helpers.to_owned()];
    let vm = Vm::boot(&options)?;
    // Never with the full run: that is where the unsteady are looked for.
    let again = |first: &mut Cases, arguments: &[&str]| -> Result<()> {
        let failed = first.failed_names();
        if full || failed.is_empty() || failed.len() > TRIED_AGAIN {
            return Ok(());
        }
        let names: Vec<&str> = failed.iter().map(String::as_str).collect();
        let second = count(&command(&Vm::boot(&options)?, kernel, slow, &names, arguments, full)?);
        first.tried_again(&second);
        Ok(())
    };
    let off = command(&vm, kernel, slow, names, &["--off"], full)?;
    if !off.lines().any(|line| line.starts_with("end: ")) {
        bail!("the run with enforcement off did not come to its end");
    }
    let mut off = count(&off);
    again(&mut off, &["--off"])?;
    let mut cases = count(&command(&vm, kernel, slow, names, &[], full)?);
    let reported = cases.passed + cases.failed + cases.skipped;
    if reported != names.len() as u64 {
        bail!("{reported} of {} cases were reported", names.len());
    }
    again(&mut cases, &[])?;
    cases.failed_on = cases.failed;
    cases.failed += off.failed;
    cases.proven = off.proven;
    let said = |texts: Vec<String>| texts.into_iter().map(|text| format!("with enforcement off: {text}"));
    cases.troubles.splice(0..0, said(off.troubles));
    cases.unsteady.splice(0..0, said(off.unsteady));
    Ok(cases)
}

impl Cases {
    fn failed_names(&self) -> Vec<String> {
        let names = self.troubles.iter().filter_map(|line| failed_name(line));
        names.map(str::to_owned).collect()
    }

    /// Those that failed were run a second time: whatever passed then counts as passed, and as unsteady.
    fn tried_again(&mut self, second: &Self) {
        let still = second.failed_names();
        let failed = self.failed_names();
        if second.passed + second.proven + second.failed != failed.len() as u64 {
            return;
        }
        let (steady, unsteady) = std::mem::take(&mut self.troubles)
            .into_iter()
            .partition(|line| failed_name(line).is_none_or(|name| still.iter().any(|other| other == name)));
        (self.troubles, self.unsteady) = (steady, unsteady);
        self.failed = still.len() as u64;
        self.passed += second.passed;
        self.proven += second.proven;
    }
}

/// Of a line `FAILED NAME: why`.
fn failed_name(line: &str) -> Option<&str> {
    Some(line.strip_prefix("FAILED ")?.split_once(':')?.0)
}

/// Runs cases.py once; its standard output is shown as it comes, and given.
pub(crate) fn command(
    vm: &Vm,
    kernel: Kernel,
    slow: usize,
    names: &[&str],
    options: &[&str],
    full: bool,
) -> Result<String> {
    let mut argv = vec!["python3", "-u", "/mnt/copy/kernel-tests/cases.py"];
    argv.extend(options);
    if full {
        argv.push("--full");
    }
    argv.push("/mnt/copy/kernel-tests");
    argv.extend(names);
    shown(vm, kernel, &argv, &[("SLOW", &slow.to_string())])
}

/// Runs a command; its standard output is shown as it comes, and given.
pub(crate) fn shown(vm: &Vm, kernel: Kernel, argv: &[&str], environment: &[(&str, &str)]) -> Result<String> {
    let mut running = vm.start_with(argv, environment, None)?;
    running.close_input()?;
    let (mut text, mut shown) = (Vec::new(), 0);
    loop {
        match running.next() {
            Some(Event::Stdout(bytes)) => {
                text.extend(bytes);
                shown += show(kernel, &text[shown..])?;
            }
            Some(Event::Stderr(bytes)) => {
                show(kernel, &[bytes.as_slice(), b"\n"].concat())?;
            }
            Some(Event::Exit(_)) => break,
            None => bail!(
                "the guest ended amid the cases; its console:\n{}",
                run::last_lines(&vm.console_log(), 60)
            ),
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Prints whole lines, each after the kernel's series; gives how many bytes were printed. What the probe said of the kernel is for
/// the report.
fn show(kernel: Kernel, bytes: &[u8]) -> Result<usize> {
    let Some(end) = bytes.iter().rposition(|&byte| byte == b'\n') else {
        return Ok(0);
    };
    let text = String::from_utf8_lossy(&bytes[..end]);
    let mut out = std::io::stdout().lock();
    for line in text.lines().filter(|line| !line.starts_with(FACT)) {
        writeln!(out, "{:<5} {line}", kernel.series)?;
    }
    out.flush()?;
    Ok(end + 1)
}

const FACT: &str = "fact: ";

/// A case, as the sources have it.
#[derive(Debug, PartialEq, Eq)]
struct Case {
    name: String,
    /// Only in full runs.
    full: bool,
    /// On this series only, but in full runs on all.
    one_kernel: Option<String>,
}

/// The cases of every module.
fn cases() -> Result<Vec<Case>> {
    let mut all = Vec::new();
    for path in sources("py")? {
        all.extend(of_source(&fs::read_to_string(&path)?));
    }
    let mut names = BTreeSet::new();
    if let Some(twice) = all.iter().find(|case| !names.insert(case.name.as_str())) {
        bail!("two kernel cases are called {}", twice.name);
    }
    let known = |series: &String| Kernel::all().iter().any(|kernel| kernel.series == series);
    if let Some(never) = all.iter().find(|case| !case.one_kernel.as_ref().is_none_or(known)) {
        bail!(
            "no kernel series is called {:?}, as {} has it",
            never.one_kernel,
            never.name
        );
    }
    Ok(all)
}

/// Files of the cases' folder with this extension, by name.
fn sources(extension: &str) -> Result<Vec<PathBuf>> {
    let folder = paths::repo().join("guard-agent/tests/vm");
    let mut found: Vec<PathBuf> = fs::read_dir(&folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension() == Some(OsStr::new(extension)))
        .collect();
    found.sort();
    Ok(found)
}

/// Functions below a line `@case`, maybe with other decorators between.
fn of_source(program: &str) -> Vec<Case> {
    let mut found = Vec::new();
    let mut lines = program.lines();
    while lines.any(|line| line == "@case") {
        let (mut full, mut one_kernel) = (false, None);
        for line in lines.by_ref() {
            if let Some(name) = line.strip_prefix("def ").and_then(|rest| rest.split('(').next()) {
                found.push(Case {
                    name: name.to_owned(),
                    full,
                    one_kernel,
                });
                break;
            }
            full |= line == "@full";
            if let Some(series) = line
                .strip_prefix("@one_kernel(\"")
                .and_then(|rest| rest.strip_suffix("\")"))
            {
                one_kernel = Some(series.to_owned());
            }
        }
    }
    found
}

pub(crate) fn count(text: &str) -> Cases {
    let mut cases = Cases::default();
    for line in text.lines() {
        match line.split_once(' ') {
            Some(("ok", _)) => cases.passed += 1,
            Some(("proven", _)) => cases.proven += 1,
            Some(("FAILED", _)) => cases.failed += 1,
            Some(("skipped", _)) => cases.skipped += 1,
            _ => {}
        }
        if line.starts_with("FAILED ") || line.starts_with("skipped ") {
            cases.troubles.push(line.to_owned());
        }
        if let Some(fact) = line.strip_prefix(FACT) {
            cases.facts.push(fact.to_owned());
        }
    }
    cases
}

/// What the cases use, in a folder of this run: others may run other cases at the same time.
pub(crate) struct Helpers {
    /// Its name is that in the guest too.
    pub(crate) folder: PathBuf,
}

impl Helpers {
    pub(crate) fn build() -> Result<Self> {
        let runs = paths::target().join("kernel-tests");
        sweep(&runs);
        let folder = runs.join(std::process::id().to_string()).join("kernel-tests");
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let helpers = Self { folder };
        helpers.fill()?;
        Ok(helpers)
    }

    fn fill(&self) -> Result<()> {
        build::hold_probe(&self.folder)?;
        for source in sources("c")? {
            let program = self.folder.join(source.file_stem().context("a source has a name")?);
            let mut compile = Command::new("gcc");
            if program.to_string_lossy().ends_with("32") {
                compile.arg("-m32");
            }
            compile.args(["-static", "-O1", "-Wall", "-Werror", "-pthread", "-o"]);
            run::quiet(compile.arg(program).arg(source))?;
        }
        for source in sources("py")? {
            fs::copy(
                &source,
                self.folder.join(source.file_name().context("a source has a name")?),
            )?;
        }
        Ok(())
    }
}

impl Drop for Helpers {
    fn drop(&mut self) {
        // A leftover is swept by the next run.
        let _ = self.folder.parent().map(fs::remove_dir_all);
    }
}

/// Removes the folders of runs that were killed.
pub(crate) fn sweep(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            // Another run may sweep it at the same time.
            let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_found_by_name() {
        let program = "import os\n\n@case\ndef one(probe):\n    pass\n\n\ndef helper(x):\n    pass\n\n@case\n@full\n@limit(9)\ndef two(probe):\n\n@case\n@one_kernel(\"6.18\")\ndef three(probe):\n";
        let found = of_source(program);
        assert_eq!(
            found
                .iter()
                .map(|case| (case.name.as_str(), case.full, case.one_kernel.as_deref()))
                .collect::<Vec<_>>(),
            [
                ("one", false, None),
                ("two", true, None),
                ("three", false, Some("6.18"))
            ]
        );
    }

    #[test]
    fn the_cases_of_the_tree_are_found() {
        let cases = cases().unwrap();
        assert!(cases.iter().any(|case| case.name == "held_then_denied"), "{cases:?}");
    }

    #[test]
    fn what_passes_when_tried_again_is_unsteady() {
        let mut first = count("ok one 1.2s\nFAILED two: slow\nFAILED two_more: wrong\nskipped three: no io_uring\n");
        first.tried_again(&count("FAILED two_more: wrong\nok two 1.0s\n"));
        assert_eq!((first.passed, first.failed, first.skipped), (2, 1, 1), "{first:?}");
        assert_eq!(first.unsteady, ["FAILED two: slow"]);
        assert_eq!(first.troubles, ["FAILED two_more: wrong", "skipped three: no io_uring"]);
        // A second run that did not come to its end proves nothing.
        let before = first.clone();
        first.tried_again(&count(""));
        assert_eq!(first, before);
    }

    #[test]
    fn only_lines_of_cases_count() {
        let text = "fact: started kernel=6.12\nok one 1.2s\nFAILED two: why\n   | ok this is its log\nskipped three: no io_uring\n\
                    proven four 0.1s\nend: 1 ok, 1 FAILED, 1 skipped\n";
        let cases = count(text);
        assert_eq!(
            (cases.passed, cases.failed, cases.skipped, cases.proven),
            (1, 1, 1, 1),
            "{cases:?}"
        );
        assert_eq!(cases.troubles, ["FAILED two: why", "skipped three: no io_uring"]);
        assert_eq!(cases.facts, ["started kernel=6.12"]);
    }
}
