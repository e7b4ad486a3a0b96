//! `cargo xtask fuzz`: builds the fuzz targets with coverage instrumentation and runs them for a bounded time.
//! Given seeds in fuzz/seeds; keeps what it finds in fuzz/corpus and fuzz/artifacts. Never needs nightly or clang:
//! stable rustc has LLVM's coverage pass, and libFuzzer itself is C++ that any compiler builds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};

use crate::build::cargo;
use crate::{paths, run};

/// One fuzz target: a program of a package in fuzz/.
#[derive(Debug)]
pub struct Target {
    /// Of the program, its seeds, corpus and artifacts.
    pub name: &'static str,
    package: &'static str,
    /// What a finding would mean.
    pub what: &'static str,
}

const WIRE: &str = "guard-fuzz-wire";
const DAEMONS: &str = "guard-fuzz-daemons";

const fn wire(name: &'static str, what: &'static str) -> Target {
    Target {
        name,
        package: WIRE,
        what,
    }
}

const fn daemon(name: &'static str, what: &'static str) -> Target {
    Target {
        name,
        package: DAEMONS,
        what,
    }
}

/// Every target; those of the quick package come first.
pub const TARGETS: &[Target] = &[
    wire("ring", "events of the kernel's ring"),
    wire("envelope", "evidence envelopes"),
    wire("statement", "evidence statements, and how they are shown"),
    wire("text", "text that a workload wrote, and how it is shown"),
    wire("spool", "the agent's spool on disk"),
    wire("control", "lines of the agent's control socket"),
    wire("rest", "bodies of the REST API"),
    wire("log", "checkpoints, proofs, trust files, manifests, the tree"),
    wire("bundle", "evidence bundles and their verifier"),
    wire("btf", "the kernel's type information, and the offsets found in it"),
    wire("lifecycle", "from when to when a host says that enforcement was on"),
    daemon("config", "agent.toml and console.toml"),
    daemon("policy", "policy texts and their answers"),
    daemon("token", "enrolment tokens"),
    daemon("decision", "signed decisions and what they must bind"),
    daemon("grpc", "messages of the approval API"),
    daemon("proc", "what the agent reads of /proc, and replies of resolvers"),
    daemon(
        "places",
        "what says what is protected: user database, sign-ins, the console's configuration",
    ),
    daemon(
        "redact",
        "secrets in what a workload wrote, and what stands in their place",
    ),
    daemon("line", "lines that the control socket takes, checks included"),
];

/// What `cargo xtask fuzz` is asked.
#[derive(Debug, Default)]
pub struct FuzzOptions {
    /// For each target.
    pub seconds: u64,
    /// Only these; none: all, or the quick ones.
    pub targets: Vec<String>,
    /// Without names of targets: only those that build in a minute.
    pub quick: bool,
    /// Run this input once instead.
    pub input: Option<PathBuf>,
}

impl FuzzOptions {
    /// Part of every test run: all targets, five seconds each.
    pub fn moment() -> Self {
        Self {
            seconds: 5,
            ..Self::default()
        }
    }

    /// All targets, an hour together.
    pub fn hour() -> Self {
        let targets = u64::try_from(TARGETS.len()).unwrap_or(u64::MAX);
        let workers = std::thread::available_parallelism().map_or(1, |number| number.get() as u64);
        Self {
            seconds: 3600 * workers.min(targets) / targets,
            ..Self::default()
        }
    }
}

/// How one target went.
#[derive(Debug)]
pub struct Ran {
    /// Its name.
    pub target: &'static str,
    /// Inputs that were tried.
    pub runs: u64,
    /// Counters reached: 0 would mean that the coverage pass did not work.
    pub coverage: u64,
    /// What was found: the text of the panic and how to see it again.
    pub finding: Option<String>,
}

/// The flags that cargo-fuzz uses too, without a sanitizer.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "--cfg=fuzzing",
];

/// Larger than any record, small enough to be quick.
const MAX_INPUT: usize = 70_000;

fn home() -> PathBuf {
    paths::repo().join("fuzz")
}

/// Builds the wanted targets, runs each for the wanted time, as many at once as there are CPUs.
///
/// # Errors
/// When a target has no such name, does not compile or cannot be run. A finding is no error: see [`Ran::finding`].
pub fn fuzz(options: &FuzzOptions) -> Result<Vec<Ran>> {
    let targets = wanted(options)?;
    let programs = build(&targets)?;
    if let Some(input) = &options.input {
        let [target] = targets.as_slice() else {
            bail!("an input is for one target: name it")
        };
        return Ok(vec![once(target, &programs, input)?]);
    }
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::new());
    let workers = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(targets.len());
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some((at, target)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    targets.get(at).map(|target| (at, target))
                } {
                    let result = campaign(target, &programs, options.seconds);
                    results
                        .lock()
                        .unwrap_or_else(std::sync::PoisonError::into_inner)
                        .push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The results as a table, findings below it.
pub fn report(results: &[Ran]) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    for ran in results {
        let word = if ran.finding.is_some() { "FOUND" } else { "ok" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{word:<6}{:<12}{:>12} inputs {:>8} counters",
            ran.target, ran.runs, ran.coverage
        );
    }
    for finding in results.iter().filter_map(|ran| ran.finding.as_ref()) {
        let _ = writeln!(text, "\n{finding}");
    }
    text
}

fn wanted(options: &FuzzOptions) -> Result<Vec<&'static Target>> {
    if options.targets.is_empty() {
        return Ok(TARGETS
            .iter()
            .filter(|target| !options.quick || target.package == WIRE)
            .collect());
    }
    options
        .targets
        .iter()
        .map(|name| {
            TARGETS.iter().find(|target| target.name == name).with_context(|| {
                let names: Vec<&str> = TARGETS.iter().map(|target| target.name).collect();
                format!("no fuzz target is called {name:?}; there are {}", names.join(", "))
            })
        })
        .collect()
}

/// Builds the packages of the targets. Not `--locked`: the lock file follows the dependencies of the crates that are
/// fuzzed.
fn build(targets: &[&Target]) -> Result<Programs> {
    let programs = Programs { triple: host_triple()? };
    run::progress("building the fuzz targets");
    for package in [WIRE, DAEMONS] {
        if !targets.iter().any(|target| target.package == package) {
            continue;
        }
        let mut command = cargo();
        command
            .args(["build", "--manifest-path", "fuzz/Cargo.toml", "-p", package])
            .env_remove("RUSTFLAGS");
        if package == WIRE {
            // Apart from the ordinary build, dependencies included; with a target given, build scripts and macros are not
            // instrumented.
            command
                .args(["--release", "--target", &programs.triple, "--target-dir"])
                .arg(paths::target().join("fuzz"))
                .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\x1f"));
        } else {
            // The same dependencies as the ordinary build, which has most of them already.
            command
                .arg("--target-dir")
                .arg(paths::target())
                .env("RUSTC_WRAPPER", home().join("rustc.sh"))
                .env("GUARD_FUZZ_FLAGS", FLAGS.join(" "));
        }
        if !run::shows_progress() {
            command.arg("--quiet");
        }
        run::loud_or_quiet(&mut command).context("cannot build the fuzz targets")?;
    }
    Ok(programs)
}

/// Where the built targets are.
struct Programs {
    triple: String,
}

impl Programs {
    fn of(&self, target: &Target) -> PathBuf {
        if target.package == WIRE {
            paths::target()
                .join("fuzz")
                .join(&self.triple)
                .join("release")
                .join(target.name)
        } else {
            paths::target().join("debug").join(format!("fuzz-{}", target.name))
        }
    }
}

fn host_triple() -> Result<String> {
    let said = run::output(Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into())).arg("-vV"))?;
    String::from_utf8_lossy(&said)
        .lines()
        .find_map(|line| line.strip_prefix("host: ").map(str::to_owned))
        .context("`rustc -vV` names no host")
}

fn campaign(target: &'static Target, programs: &Programs, seconds: u64) -> Result<Ran> {
    let corpus = home().join("corpus").join(target.name);
    let artifacts = home().join("artifacts").join(target.name);
    let seeds = home().join("seeds").join(target.name);
    for dir in [&corpus, &artifacts] {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    if !seeds.is_dir() {
        bail!("{} is missing: a target without seeds finds little", seeds.display());
    }
    let mut command = Command::new(programs.of(target));
    command
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-max_len={MAX_INPUT}"))
        .args([
            "-timeout=60",
            "-rss_limit_mb=2048",
            "-print_final_stats=1",
            "-verbosity=1",
        ])
        .arg(format!("-artifact_prefix={}/", artifacts.display()));
    let words = home().join("dictionaries").join(format!("{}.dict", target.name));
    if words.is_file() {
        command.arg(format!("-dict={}", words.display()));
    }
    // The first directory also takes what is new.
    command.arg(&corpus).arg(&seeds);
    let (well, said) = said(&mut command)?;
    let ran = Ran {
        target: target.name,
        runs: statistic(&said, "stat::number_of_executed_units:").unwrap_or(0),
        coverage: said
            .split_whitespace()
            .collect::<Vec<_>>()
            .windows(2)
            .rev()
            .find_map(coverage)
            .unwrap_or(0),
        finding: (!well).then(|| finding(target, &said)),
    };
    if well && (ran.runs == 0 || ran.coverage == 0) {
        bail!("{} ran without coverage:\n{}", target.name, run::last_lines(&said, 20));
    }
    Ok(ran)
}

fn once(target: &'static Target, programs: &Programs, input: &Path) -> Result<Ran> {
    if !input.is_file() {
        bail!("{} is no file", input.display());
    }
    let (well, said) = said(Command::new(programs.of(target)).arg(input))?;
    let finding = (!well).then(|| finding(target, &said));
    Ok(Ran {
        target: target.name,
        runs: 1,
        coverage: 0,
        finding,
    })
}

fn said(command: &mut Command) -> Result<(bool, String)> {
    let shown = run::shown(command);
    let output = command
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot run `{shown}`"))?;
    let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.push_str(&String::from_utf8_lossy(&output.stderr));
    Ok((output.status.success(), said))
}

/// `cov: 1234` of a line of libFuzzer.
fn coverage(words: &[&str]) -> Option<u64> {
    match words {
        ["cov:", number] => number.parse().ok(),
        _ => None,
    }
}

fn statistic(said: &str, name: &str) -> Option<u64> {
    said.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn finding(target: &Target, said: &str) -> String {
    let panic: Vec<&str> = said
        .lines()
        .skip_while(|line| !line.contains("panicked at") && !line.contains("ERROR: libFuzzer"))
        .take_while(|line| !line.starts_with("NOTE:") && !line.starts_with("stat::"))
        .take(12)
        .collect();
    let input = said
        .lines()
        .find_map(|line| line.split_once("Test unit written to "))
        .map(|(_, path)| path.trim());
    let mut text = format!("{} ({}): {}", target.name, target.what, panic.join("\n  "));
    match input {
        Some(path) => {
            text.push_str(&format!(
                "\n  input: {path}\n  again: cargo xtask fuzz {} --input {path}",
                target.name
            ));
        }
        None => text.push_str(&format!("\n  {}", run::last_lines(said, 10))),
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
INFO: Loaded 1 modules   (111 inline 8-bit counters): 111 [0x1, 0x2),\n\
#7\tNEW    cov: 43 ft: 55 corp: 4/17b lim: 70000 exec/s: 0 rss: 34Mb L: 5/7 MS: 1 -\n\
#9\tREDUCE cov: 44 ft: 56 corp: 4/17b lim: 70000 exec/s: 0 rss: 34Mb L: 5/7 MS: 1 -\n\
thread '<unnamed>' panicked at wire/src/lib.rs:10:5:\n\
a promise was broken\n\
==21617== ERROR: libFuzzer: deadly signal\n\
NOTE: libFuzzer has rudimentary signal handlers.\n\
artifact_prefix='/x/'; Test unit written to /x/crash-1\n\
stat::number_of_executed_units: 1234\n";

    #[test]
    fn what_libfuzzer_says_is_read() {
        assert_eq!(statistic(SAID, "stat::number_of_executed_units:"), Some(1234));
        let words: Vec<&str> = SAID.split_whitespace().collect();
        assert_eq!(words.windows(2).rev().find_map(coverage), Some(44));
        let text = finding(&TARGETS[0], SAID);
        assert!(text.contains("a promise was broken"), "{text}");
        assert!(
            text.ends_with("again: cargo xtask fuzz ring --input /x/crash-1"),
            "{text}"
        );
    }

    #[test]
    fn targets_have_programs_and_seeds() {
        let manifests: String = ["wire", "daemons"]
            .iter()
            .filter_map(|package| fs::read_to_string(home().join(package).join("Cargo.toml")).ok())
            .collect();
        for target in TARGETS {
            assert!(
                manifests.contains(&format!("name = \"{}\"\n", target.name))
                    || manifests.contains(&format!("name = \"fuzz-{}\"\n", target.name)),
                "{}",
                target.name
            );
            let seeds = home().join("seeds").join(target.name);
            assert!(
                fs::read_dir(&seeds).is_ok_and(|mut files| files.next().is_some()),
                "{}",
                seeds.display()
            );
        }
        let wrong = FuzzOptions {
            targets: vec!["nothing".into()],
            ..FuzzOptions::default()
        };
        assert!(wanted(&wrong).unwrap_err().to_string().contains("there are ring,"));
    }
}
