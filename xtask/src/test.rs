//! `cargo xtask test`: every check, one after another, each with a name, its time and its result.
//! Given a filter. Never green when a check could not run: that is a counted skip with its reason.
//!
//! To add a check, add a line to [`STEPS`]. A test target of the `guard-tests` package is a line with [`cargo_test`].

mod aside;
mod output;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::build::{self, Profile, cargo};
use crate::fuzz::{self, FuzzOptions};
use crate::kernel_tests::{self, Outcome, Report};
use crate::vm::Kernel;
use crate::{escape, full, kernels, paths, run, setup};
use aside::Aside;
use output::{Failures, result_line, shortened};
pub use output::{TRIED_AGAIN, UNSTEADY};

/// What `cargo xtask test` is asked.
#[derive(Debug)]
pub struct TestOptions {
    /// Also the long ones.
    pub full: bool,
    /// For the kernel cases; none: every series. A single one is that of the end-to-end guests too.
    pub kernels: Vec<Kernel>,
    /// Names of steps, or their beginnings: only those. Other words: only the tests whose name contains one of them.
    pub names: Vec<String>,
}

/// How many checks went which way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Counts {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Counts {
    const PASSED: Self = Self {
        passed: 1,
        failed: 0,
        skipped: 0,
    };
    const FAILED: Self = Self {
        passed: 0,
        failed: 1,
        skipped: 0,
    };
    const SKIPPED: Self = Self {
        passed: 0,
        failed: 0,
        skipped: 1,
    };

    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn any(self) -> bool {
        self != Self::default()
    }
}

/// What a step did.
enum Done {
    Counts(Counts),
    Skipped(String),
}

/// How a step takes part when only some are asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Others build on it.
    Base,
    /// Looks at the sources; only needs the tools.
    Sources,
    /// Looks at what was built.
    Built,
    /// Has tests with names of their own, and uses what was built.
    Tests,
}

struct Step {
    name: &'static str,
    kind: Kind,
    run: fn(&With<'_>) -> Result<Done>,
}

/// What became of a step.
#[derive(Debug, Serialize, Deserialize)]
struct Ran {
    step: String,
    base: bool,
    counts: Counts,
    time: Duration,
    /// Why it was skipped or failed.
    note: String,
}

/// What a step is given.
struct With<'a> {
    full: bool,
    /// For the kernel cases.
    kernels: &'a [Kernel],
    /// Only tests whose name contains one of these; none: all.
    names: &'a [&'a str],
    /// What failed and what was unsteady, to be said again at the end.
    troubles: RefCell<Vec<String>>,
    /// Steps to be run beside the kernel cases, and that run once it is under way.
    beside: Vec<&'a str>,
    aside: RefCell<Option<Aside>>,
    /// What the attempts to escape came to, when they were run.
    escapes: RefCell<Option<String>>,
}

/// Compute for minutes and use no guest: beside the kernel cases, when those run too.
const BESIDE: [&str; 2] = ["clippy", "fuzz"];

/// Only in full runs, or when named: minutes of two guests.
const LONG: [&str; 1] = ["escape"];

/// What cargo builds for them has the features of [`build::all`]: nothing is built twice.
const STEPS: &[Step] = &[
    Step {
        name: "setup",
        kind: Kind::Base,
        run: |_| passed(setup::setup()),
    },
    Step {
        name: "build",
        kind: Kind::Base,
        run: |_| build_all(),
    },
    Step {
        name: "fmt",
        kind: Kind::Sources,
        run: |_| fmt(),
    },
    Step {
        name: "clippy",
        kind: Kind::Sources,
        run: |_| clippy(),
    },
    Step {
        name: "bpf",
        kind: Kind::Built,
        run: |_| bpf_object(),
    },
    Step {
        name: "deny",
        kind: Kind::Sources,
        run: |_| deny(),
    },
    Step {
        name: "advisories",
        kind: Kind::Sources,
        run: |_| advisories(),
    },
    Step {
        name: "unit",
        kind: Kind::Tests,
        run: |with| cargo_test(with, &["--workspace", "--exclude", "guard-tests"]),
    },
    Step {
        name: "fuzz",
        kind: Kind::Sources,
        run: |with| fuzz(with.full),
    },
    Step {
        name: "kernel",
        kind: Kind::Tests,
        run: kernel,
    },
    Step {
        name: "escape",
        kind: Kind::Tests,
        run: escape_attempts,
    },
    Step {
        name: "e2e",
        kind: Kind::Tests,
        run: |with| cargo_test(with, &["--workspace", "--exclude", "xtask", "--test", "e2e"]),
    },
    Step {
        name: "browser",
        kind: Kind::Tests,
        run: |with| cargo_test(with, &["--workspace", "--exclude", "xtask", "--test", "browser"]),
    },
];

/// The steps whose name begins with a word.
fn steps_named(word: &str) -> Vec<&'static str> {
    STEPS
        .iter()
        .map(|step| step.name)
        .filter(|name| name.starts_with(word))
        .collect()
}

fn passed(result: Result<()>) -> Result<Done> {
    result.map(|()| Done::Counts(Counts::PASSED))
}

/// Runs the checks and prints the results; true when none failed. The last line is `N passed, N failed, N skipped`.
///
/// # Errors
/// When the results cannot be written.
pub fn test(options: &TestOptions) -> Result<bool> {
    let named: BTreeSet<&str> = options.names.iter().flat_map(|word| steps_named(word)).collect();
    let names: Vec<&str> = options
        .names
        .iter()
        .map(String::as_str)
        .filter(|word| steps_named(word).is_empty())
        .collect();
    let kernels = if options.kernels.is_empty() {
        Kernel::all()
    } else {
        &options.kernels
    };
    let asked_for = |step: &Step| match (named.is_empty(), names.is_empty()) {
        (true, true) => options.full || !LONG.contains(&step.name),
        (true, false) => step.kind == Kind::Tests,
        (false, _) => named.contains(step.name),
    };
    let uses_build = STEPS.iter().any(|step| asked_for(step) && step.kind != Kind::Sources);
    let wanted: Vec<&Step> = STEPS
        .iter()
        .filter(|step| asked_for(step) || (step.kind == Kind::Base && (step.name == "setup" || uses_build)))
        .collect();
    // A full run measures: nothing runs beside it.
    let beside = !options.full && wanted.iter().any(|step| step.name == "kernel");
    let (beside, in_order): (Vec<&Step>, Vec<&Step>) = wanted
        .into_iter()
        .partition(|step| beside && BESIDE.contains(&step.name));
    let with = With {
        full: options.full,
        kernels,
        names: &names,
        troubles: RefCell::default(),
        beside: beside.iter().map(|step| step.name).collect(),
        aside: RefCell::default(),
        escapes: RefCell::default(),
    };

    let mut out = std::io::stdout();
    let mut all = Vec::new();
    let mut stopped = String::new();
    for step in in_order {
        let ran = one(step, &with)?;
        let failed = ran.counts.failed > 0;
        all.push(ran);
        if step.kind == Kind::Base && failed {
            // Everything after it would fail for the same reason.
            stopped = format!("the rest did not run because {} failed\n", step.name);
            break;
        }
    }
    if let Some(aside) = with.aside.take() {
        let begun = Instant::now();
        // What the other steps found is not lost with it.
        all.extend(aside.finish().unwrap_or_else(|error| {
            vec![Ran {
                step: with.beside.join(", "),
                base: false,
                counts: Counts::FAILED,
                time: begun.elapsed(),
                note: format!("{error:#}"),
            }]
        }));
    } else if stopped.is_empty() {
        // The kernel cases did not come so far.
        for step in beside {
            all.push(one(step, &with)?);
        }
    }
    aside::leave(&all)?;
    if aside::is_one() {
        return Ok(all.iter().all(|ran| ran.counts.failed == 0));
    }
    let mut total = Counts::default();
    let mut selected = Counts::default();
    for ran in &all {
        total.add(ran.counts);
        if !ran.base {
            selected.add(ran.counts);
        }
    }
    if options.full && names.is_empty() {
        full::write(&all.iter().map(Ran::line).collect::<Vec<_>>())?;
    }
    let troubles = with.troubles.into_inner();
    if !troubles.is_empty() {
        writeln!(out, "\n{}", bold("== troubles"))?;
        for trouble in &troubles {
            writeln!(out, "{}", shortened(trouble))?;
        }
    }
    writeln!(out, "\n{}", bold("== results"))?;
    for ran in &all {
        writeln!(out, "{}", row(&ran.step, ran.time, ran.counts, &ran.note))?;
    }
    write!(out, "{stopped}")?;
    if total.failed == 0 && !selected.any() {
        writeln!(
            out,
            "no step is called like, and no test has in its name: {}",
            options.names.join(", ")
        )?;
        total.failed += 1;
    }
    let unsteady = troubles.iter().filter(|text| text.starts_with(UNSTEADY)).count();
    if unsteady > 0 {
        writeln!(out, "{unsteady} passed only when tried again: see the troubles above")?;
    }
    writeln!(
        out,
        "{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    )?;
    if let (Some(line), ["escape"]) = (with.escapes.take(), Vec::from_iter(named).as_slice()) {
        writeln!(out, "{line}")?;
    }
    out.flush()?;
    Ok(total.failed == 0)
}

/// Runs a step.
fn one(step: &Step, with: &With<'_>) -> Result<Ran> {
    let mut out = std::io::stdout();
    writeln!(out, "{}", bold(&format!("== {}", step.name)))?;
    let begun = Instant::now();
    let (counts, note) = match (step.run)(with) {
        Ok(Done::Counts(counts)) => (counts, String::new()),
        Ok(Done::Skipped(why)) => {
            writeln!(out, "skipped: {why}")?;
            (Counts::SKIPPED, format!("skipped: {why}"))
        }
        Err(error) => {
            writeln!(out, "{error:#}")?;
            (
                Counts::FAILED,
                format!("{error:#}").lines().next().unwrap_or_default().to_owned(),
            )
        }
    };
    Ok(Ran {
        step: step.name.to_owned(),
        base: step.kind == Kind::Base,
        counts,
        time: begun.elapsed(),
        note,
    })
}

impl Ran {
    fn line(&self) -> full::Line<'_> {
        let Counts {
            passed,
            failed,
            skipped,
        } = self.counts;
        full::Line {
            step: &self.step,
            counts: [passed, failed, skipped],
            time: self.time,
        }
    }
}

fn colours() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn bold(text: &str) -> String {
    if colours() {
        format!("\x1b[1m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

fn row(name: &str, time: Duration, counts: Counts, note: &str) -> String {
    let (word, colour) = match counts {
        Counts { failed: 1.., .. } => ("FAILED", 31),
        Counts {
            passed: 0, skipped: 0, ..
        } => ("none", 33),
        Counts { passed: 0, .. } => ("skipped", 33),
        _ => ("ok", 32),
    };
    let word = if colours() {
        format!("\x1b[{colour}m{word:<8}\x1b[0m")
    } else {
        format!("{word:<8}")
    };
    let seconds = format!("{:.1} s", time.as_secs_f64());
    let counts = format!(
        "{} passed, {} failed, {} skipped",
        counts.passed, counts.failed, counts.skipped
    );
    format!("{word}{name:<12}{seconds:>9}   {counts}   {note}")
        .trim_end()
        .to_owned()
}

/// Runs a command, shows its output as it comes, and gives each line to `line`.
fn stream(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let shown = run::shown(command);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let output = child.stdout.take().context("the output is piped")?;
    let mut out = std::io::stdout();
    for bytes in BufReader::new(output).split(b'\n') {
        let bytes = bytes?;
        let text = String::from_utf8_lossy(&bytes);
        writeln!(out, "{text}")?;
        line(&text);
    }
    Ok(child.wait()?.success())
}

fn check(command: &mut Command) -> Result<()> {
    if stream(command, |_| {})? {
        Ok(())
    } else {
        bail!("`{}` failed", run::shown(command))
    }
}

fn build_all() -> Result<Done> {
    if build::is_built() {
        return Ok(Done::Skipped("GUARD_BUILT=1 says that everything is built".into()));
    }
    passed(build::all(Profile::Dev).map(drop))
}

fn fmt() -> Result<Done> {
    check(cargo().args(["fmt", "--all", "--check"]))?;
    // Not a member of the workspace.
    check(cargo().args(["fmt", "--check", "--manifest-path", "guard-ebpf/Cargo.toml"]))?;
    Ok(Done::Counts(Counts {
        passed: 2,
        ..Counts::default()
    }))
}

fn clippy() -> Result<Done> {
    passed(check(cargo().args([
        "clippy",
        "--locked",
        "--workspace",
        "--all-targets",
        "--quiet",
        "--",
        "-Dwarnings",
    ])))
}

/// Looks at the object that the agent embeds, before any kernel does.
fn bpf_object() -> Result<Done> {
    let object = build::object();
    let bytes = fs::read(&object).with_context(|| format!("cannot read {}", object.display()))?;
    let has = |name: &str| bytes.windows(name.len()).any(|window| window == name.as_bytes());
    for section in [".BTF", "license", "lsm/bprm_creds_for_exec"] {
        if !has(section) {
            bail!("{} has no section {section}", object.display());
        }
    }
    // A panic that is left in is a check that the verifier may not see through, and an endless loop at run time.
    for word in ["core9panicking", "panic_bounds_check"] {
        if has(word) {
            bail!(
                "{} contains {word}: an index or an arithmetic operation is not provably in range",
                object.display()
            );
        }
    }
    let agent = paths::target().join("debug/guard-agent");
    let agent_bytes = fs::read(&agent).with_context(|| format!("cannot read {}", agent.display()))?;
    let mark = bytes.get(..4096.min(bytes.len())).unwrap_or_default();
    if !agent_bytes.windows(mark.len()).any(|window| window == mark) {
        bail!("{} does not contain {}", agent.display(), object.display());
    }
    Ok(Done::Counts(Counts {
        passed: 3,
        ..Counts::default()
    }))
}

/// Both dependency trees: user space's and the BPF programs'.
fn deny() -> Result<Done> {
    let Some(program) = setup::cargo_deny()? else {
        return Ok(Done::Skipped(
            "cargo-deny is not installed (`cargo install cargo-deny --locked`)".into(),
        ));
    };
    for manifest in ["Cargo.toml", "guard-ebpf/Cargo.toml"] {
        let mut command = Command::new(&program);
        command.args(["--all-features", "--log-level", "error", "--manifest-path", manifest]);
        command.args(["check", "bans", "licenses", "sources"]);
        check(command.current_dir(paths::repo()))?;
    }
    Ok(Done::Counts(Counts {
        passed: 2,
        ..Counts::default()
    }))
}

/// Known vulnerabilities, when their list can be had.
fn advisories() -> Result<Done> {
    let Some(program) = setup::cargo_deny()? else {
        return Ok(Done::Skipped(
            "cargo-deny is not installed (`cargo install cargo-deny --locked`)".into(),
        ));
    };
    let mut fetch = Command::new(&program);
    let fetched = fetch.args(["fetch", "db"]).current_dir(paths::repo()).output()?;
    if !fetched.status.success() {
        return Ok(Done::Skipped(
            "the list of advisories cannot be fetched from GitHub".into(),
        ));
    }
    let mut command = Command::new(&program);
    command.args(["--all-features", "check", "--disable-fetch", "advisories"]);
    passed(check(command.current_dir(paths::repo())))
}

/// All fuzz targets, for seconds each or for an hour together.
fn fuzz(full: bool) -> Result<Done> {
    let results = fuzz::fuzz(&if full {
        FuzzOptions::hour()
    } else {
        FuzzOptions::moment()
    })?;
    write!(std::io::stdout(), "{}", fuzz::report(&results))?;
    let failed = results.iter().filter(|ran| ran.finding.is_some()).count() as u64;
    Ok(Done::Counts(Counts {
        passed: results.len() as u64 - failed,
        failed,
        skipped: 0,
    }))
}

fn kernel(with: &With<'_>) -> Result<Done> {
    let helpers = kernel_tests::Helpers::build()?;
    // From here on nothing needs cargo for long.
    if !with.beside.is_empty() {
        *with.aside.borrow_mut() = Some(Aside::start(&with.beside)?);
    }
    let reports = kernel_tests::run(&helpers, with.kernels, with.names, with.full)?;
    let mut counts = reported(&reports)?;
    with.troubles.borrow_mut().extend(reports.iter().flat_map(troubles_of));
    if with.full && with.names.is_empty() && with.kernels == Kernel::all() {
        counts.add(boots_and_document(&reports)?);
    }
    Ok(Done::Counts(counts))
}

/// The attempts to escape: on one kernel, unless kernels are named or everything is asked for.
fn escape_attempts(with: &With<'_>) -> Result<Done> {
    let named = with.kernels.len() < Kernel::all().len();
    let kernels = if with.full || named {
        with.kernels
    } else {
        &[Kernel::DEFAULT]
    };
    let reports = escape::run(kernels, with.names, !with.full)?;
    let mut counts = Counts::default();
    let mut all = Vec::new();
    for report in &reports {
        writeln!(std::io::stdout(), "{report}")?;
        let series = report.kernel.series;
        let mut troubles = with.troubles.borrow_mut();
        match &report.outcome {
            None => counts.add(Counts::SKIPPED),
            Some(Err(error)) => {
                counts.add(Counts::FAILED);
                troubles.push(format!("escape {series}: {error:#}"));
            }
            Some(Ok(ran)) => {
                let bad = [
                    ("ESCAPED", &ran.escaped),
                    ("FAILED", &ran.failed),
                    ("broken", &ran.broken),
                ];
                counts.add(Counts {
                    passed: ran.passed + ran.works,
                    failed: bad.iter().map(|(_, found)| found.len() as u64).sum(),
                    skipped: ran.skipped.len() as u64,
                });
                for (word, found) in bad {
                    troubles.extend(found.iter().map(|it| format!("escape {series}: {word} {it}")));
                }
                let unsteady = ran.unsteady.iter();
                troubles.extend(unsteady.map(|it| format!("{UNSTEADY}escape {series}: {it}")));
                all.push(ran);
            }
        }
    }
    let line = escape::last_line(&all);
    writeln!(std::io::stdout(), "{line}")?;
    *with.escapes.borrow_mut() = Some(line);
    Ok(Done::Counts(counts))
}

/// Prints what became of each kernel.
fn reported(reports: &[Report]) -> Result<Counts> {
    let mut counts = Counts::default();
    for report in reports {
        counts.add(kernel_counts(report));
        writeln!(std::io::stdout(), "{report}")?;
    }
    Ok(counts)
}

/// What went wrong on a kernel, a text for each case.
fn troubles_of(report: &Report) -> Vec<String> {
    let series = report.kernel.series;
    match &report.outcome {
        Outcome::Ran(cases) => {
            let failed = cases.troubles.iter().filter(|text| !text.starts_with("skipped "));
            let failed = failed.map(|text| format!("kernel {series}: {text}"));
            let unsteady = cases.unsteady.iter();
            failed
                .chain(unsteady.map(|text| format!("{UNSTEADY}kernel {series}: {text}")))
                .collect()
        }
        Outcome::Gone => Vec::new(),
        Outcome::Broken(error) => vec![format!("kernel {series}: {error:#}")],
    }
}

/// Boots with the security modules of distributions and writes docs/kernel-support.md; each boot is a check.
fn boots_and_document(reports: &[Report]) -> Result<Counts> {
    // Now, so that a boot that fails takes nothing with it.
    kernels::document(reports, &[])?;
    let boots = kernels::boots()?;
    kernels::document(reports, &boots)?;
    let well = boots.iter().filter(|boot| boot.well()).count();
    for boot in boots.iter().filter(|boot| !boot.well()) {
        writeln!(std::io::stdout(), "FAILED {}", boot.line())?;
    }
    Ok(Counts {
        passed: well as u64,
        failed: (boots.len() - well) as u64,
        skipped: 0,
    })
}

/// `cargo xtask kernels`: the kernel cases on every series and the boots; writes docs/kernel-support.md. True when none failed.
///
/// # Errors
/// When something cannot be built, or a guest does not come up.
pub fn kernel_support() -> Result<bool> {
    setup::setup()?;
    if !build::is_built() {
        build::all(Profile::Dev)?;
    }
    let helpers = kernel_tests::Helpers::build()?;
    let reports = kernel_tests::run(&helpers, Kernel::all(), &[], false)?;
    let mut counts = reported(&reports)?;
    counts.add(boots_and_document(&reports)?);
    writeln!(
        std::io::stdout(),
        "docs/kernel-support.md is written: {} passed, {} failed, {} skipped",
        counts.passed,
        counts.failed,
        counts.skipped
    )?;
    Ok(counts.failed == 0)
}

fn kernel_counts(report: &Report) -> Counts {
    match &report.outcome {
        Outcome::Ran(cases) => Counts {
            passed: cases.passed,
            failed: cases.failed,
            skipped: cases.skipped,
        },
        Outcome::Gone => Counts::SKIPPED,
        Outcome::Broken(_) => Counts::FAILED,
    }
}

/// Runs tests of the workspace and counts them.
fn cargo_test(with: &With<'_>, which: &[&str]) -> Result<Done> {
    let mut command = cargo();
    command.args(["test", "--locked", "--no-fail-fast"]).args(which);
    // What the test machines run is built by now, and no test may build it a second time.
    command.env("GUARD_BUILT", "1");
    // Tests that need more than the sources skip themselves, with the reason, unless they are told that it is there.
    command.env("GUARD_VM_TESTS", "1");
    if run::on_path("chromium") && run::on_path("chromedriver") {
        command.env("GUARD_BROWSER_TESTS", "1");
    }
    if let Some(python) = setup::verifiers()? {
        command.env("GUARD_PYTHON", python);
    }
    if let Some(program) = setup::schemathesis()? {
        command.env("GUARD_SCHEMATHESIS", program);
    }
    if let Some(modules) = setup::identity_provider()? {
        command.env("GUARD_OIDC_MODULES", modules);
    }
    if let Some(modules) = setup::node_verifiers()? {
        command.env("GUARD_SIGSTORE", modules);
    }
    if with.full {
        command.env("GUARD_TEST_FULL", "1");
    }
    if let [kernel] = with.kernels {
        command.env("GUARD_VM_KERNEL", kernel.series);
    }
    if !with.names.is_empty() {
        // The harness of tests with guests takes one name on its command line.
        command.env("GUARD_TEST_NAMES", with.names.join(" "));
        if !which.contains(&"--test") {
            command.arg("--").args(with.names);
        }
    }
    let mut counts = Counts::default();
    let mut failures = Failures::default();
    let well = stream(&mut command, |line| {
        if let Some(more) = result_line(line) {
            counts.add(more);
        }
        failures.line(line);
    })?;
    with.troubles.borrow_mut().extend(failures.texts);
    if !well && counts.failed == 0 {
        // It did not compile, or a test process ended without a result.
        counts.failed = 1;
    }
    Ok(Done::Counts(counts))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_says_what_happened() {
        let row = row(
            "deny",
            Duration::from_millis(1500),
            Counts::SKIPPED,
            "skipped: not there",
        );
        assert_eq!(
            row,
            "skipped deny            1.5 s   0 passed, 0 failed, 1 skipped   skipped: not there"
        );
    }
}
