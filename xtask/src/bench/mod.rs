//! `cargo xtask bench`: measures Guard and writes docs/measurements.md.
//! Given built programs and virtual machines. Never judges: figures stand next to what they are compared with, in the
//! same run, and the method stands with them.

mod clone;
mod cost;
mod document;
mod evidence;
mod hold;
mod resume;
mod round_trip;
mod stats;

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::build::{self, Profile};
use crate::{paths, run};
use document::Document;

/// What `cargo xtask bench` is asked.
#[derive(Clone, Debug, Default)]
pub struct BenchOptions {
    /// Fewer repetitions.
    pub quick: bool,
    /// A log of ten million records too.
    pub full: bool,
    /// Measure the agent as it is shipped; otherwise the quick profile that tests use.
    pub release: bool,
    /// Only: clone, build and show everything from nothing, and take the time.
    pub from_clone: bool,
    /// Only these; none: all.
    pub parts: Vec<Part>,
}

/// What is measured in a guest of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// Instructions that Guard costs what is not labelled.
    Cost,
    /// An exec that user space always allows, next to a seccomp supervisor and a fanotify responder.
    RoundTrip,
    /// A thousand threads that wait for people.
    Hold,
    /// From the verdict to its effect; the agent's size.
    Resume,
    /// Evidence on this machine, in no guest: signing, sequencing, proofs, verifying.
    Evidence,
}

/// Measures, writes the file and returns its path. Sections that were not measured stay as they were.
///
/// # Errors
/// When something cannot be built, a guest fails, or the file cannot be written.
pub fn bench(options: &BenchOptions) -> Result<PathBuf> {
    let path = paths::repo().join("docs/measurements.md");
    let mut document = Document::read(&path)?;
    if options.from_clone {
        document.set(clone::measure()?);
        document.write()?;
        return Ok(path);
    }
    let asked = |part| options.parts.is_empty() || options.parts.contains(&part);
    // Each is kept as soon as it is there: the next one may fail.
    if asked(Part::Evidence) {
        document.set(evidence::measure(options)?);
        document.write()?;
    }
    if options.parts == [Part::Evidence] {
        return Ok(path);
    }
    let programs = Programs::build(options.release)?;
    if asked(Part::RoundTrip) {
        document.set(round_trip::measure(options, &programs)?);
        document.write()?;
    }
    if asked(Part::Hold) {
        document.set(hold::measure(options, &programs)?);
        document.write()?;
    }
    if asked(Part::Cost) {
        document.set(cost::measure(options, &programs)?);
        document.write()?;
    }
    if asked(Part::Resume) {
        for section in resume::measure(options, &programs)? {
            document.set(section);
        }
        document.write()?;
    }
    Ok(path)
}

/// What is put into the guests.
struct Programs {
    /// The micro-benchmark, static.
    bench: PathBuf,
    /// The seccomp supervisor that Guard is compared with, static.
    notify: PathBuf,
    /// The fanotify responder, static.
    fanotify: PathBuf,
    /// Many threads that ask, static.
    wait: PathBuf,
    /// Without debugging information, as is the console.
    agent: PathBuf,
    console: PathBuf,
    profile: Profile,
}

impl Programs {
    fn build(release: bool) -> Result<Self> {
        let directory = paths::target().join("bench");
        std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        let c = |name: &str| -> Result<PathBuf> {
            let program = directory.join(name);
            run::quiet(
                Command::new("gcc")
                    .args(["-O2", "-Wall", "-Wextra", "-Werror", "-static", "-o"])
                    .arg(&program)
                    .arg(paths::repo().join(format!("xtask/guest/bench/{name}.c"))),
            )
            .with_context(|| format!("cannot build {name}.c (gcc and libc6-dev: `cargo xtask setup`)"))?;
            Ok(program)
        };
        let [bench, notify, fanotify, wait] = [c("bench")?, c("notify")?, c("fanotify")?, c("wait")?];
        let profile = if release { Profile::Release } else { Profile::Dev };
        // As for guests: who set it has built.
        if std::env::var_os("GUARD_BUILT").is_none_or(|value| value != "1") {
            build::all(Profile::Dev)?;
            if release {
                let mut command = build::cargo();
                command.args(["build", "--release", "--locked"]);
                for daemon in ["guard-agent", "guard-console"] {
                    command.args(["-p", daemon, "--bin", daemon]);
                }
                run::loud_or_quiet(&mut command).context("cannot build agent and console as they are shipped")?;
            }
        }
        let built = paths::target().join(profile.directory());
        let stripped = |daemon: &str| -> Result<PathBuf> {
            let program = directory.join(daemon);
            run::quiet(
                Command::new("strip")
                    .arg("--strip-all")
                    .arg("-o")
                    .arg(&program)
                    .arg(built.join(daemon)),
            )?;
            Ok(program)
        };
        Ok(Self {
            bench,
            notify,
            fanotify,
            wait,
            agent: stripped("guard-agent")?,
            console: stripped("guard-console")?,
            profile,
        })
    }

    fn profile_words(&self) -> &'static str {
        match self.profile {
            Profile::Release => "release profile, stripped",
            Profile::Dev => "development profile (as the tests use it), stripped",
        }
    }

    /// Puts them into a guest's /mnt/copy.
    fn copies(&self) -> Vec<PathBuf> {
        vec![
            self.bench.clone(),
            self.notify.clone(),
            self.fanotify.clone(),
            self.wait.clone(),
            self.agent.clone(),
            self.console.clone(),
            paths::repo().join("xtask/guest/bench/records.py"),
            paths::repo().join("xtask/guest/bench/empty.py"),
        ]
    }
}

/// Runs in a guest with Guard: the measured agent and console in place of those that were installed, and the micro-benchmark under
/// the names that [`POLICY`] knows. Every allow is the agent's, until somebody switches the kernel's own rules on.
const INSTALL: &str = "set -e
systemctl stop guard-agent guard-console
install -m 755 /mnt/copy/guard-agent /mnt/copy/guard-console /usr/bin
install -d /run/bench
install -m 755 /mnt/copy/bench /run/bench/fast
install -m 755 /mnt/copy/bench /run/bench/asked
install -m 755 /mnt/copy/wait /run/bench/wait
printf none > /run/bench/none
printf none > /run/bench/watched
chmod 755 /run/bench/none /run/bench/watched
printf '\n[policy]\nkernel_rules = false\n' >>/etc/guard/agent.toml
systemctl start guard-console
systemctl start guard-agent";

/// The label of all measured workloads.
const LABEL: &str = "bench";

/// One program that the kernel key alone lets through, one that people are asked about, and a shell.
const POLICY: &str = r#"
@id("fast")
@description("allowed by path")
permit (principal == Workload::"bench", action == Action::"exec", resource)
when { ["/run/bench/fast", "/run/bench/none", "/run/bench/wait", "/usr/bin/bash", "/usr/bin/dash", "/usr/bin/seq", "/usr/bin/sleep", "/usr/bin/taskset"].contains(context.path) };

@id("near")
@description("allowed by address and port")
permit (principal == Workload::"bench", action == Action::"connect", resource == Address::"127.0.0.1")
when { context.port == 9 };

@id("asked")
@description("asks any approver")
permit (principal == Workload::"bench", action == Action::"exec", resource)
when { context.approved };
"#;
