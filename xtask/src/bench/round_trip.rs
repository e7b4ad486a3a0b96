//! What an exec costs that user space always allows: Guard's policy next to a seccomp supervisor and a fanotify responder, in the same guest.
//! Given a guest with two CPUs. Never measures one of them under a load that the others did not have: they take turns.

use anyhow::{Context, Result, bail, ensure};

use super::document::Section;
use super::stats::{Values, grouped, ratio};
use super::{BenchOptions, INSTALL, LABEL, POLICY, Programs};
use crate::run;
use crate::stage::Stage;

/// What takes turns. The last three are what the second is compared with.
const KINDS: [&str; 5] = [
    "plain",
    "labelled, allowed by the policy",
    "seccomp supervisor that looks at nothing",
    "seccomp supervisor that allows by path",
    "fanotify responder that looks at nothing",
];

/// Milliseconds of each turn, what the agent does afterwards included.
const TURN: &str = "400";

/// The run is also looked at in so many parts, to show how sure the result is.
const PARTS: usize = 5;

pub(super) fn measure(options: &BenchOptions, programs: &Programs) -> Result<Section> {
    run::progress("measuring the round trip of an exec that is always allowed");
    let stage = Stage::boot(|guest| {
        guest.parallel = true;
        guest.copy = programs.copies();
    })?;
    stage.vm.script(INSTALL)?;
    stage.set_policy(POLICY.as_bytes())?;
    stage.vm.bring_up_cpus()?;
    // What the restart left behind.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let turns = if options.quick { "10" } else { "50" };
    let allowed_before = allowed(&stage)?;
    let mut running = Vec::new();
    for (at, turn) in ["0", "1", "2", "3", "4"].into_iter().enumerate() {
        // On one CPU: otherwise the scheduler's moves between the two, which depend on what else runs, are most of the
        // differences. In a scope of its own, as `guard run` gives one to the labelled.
        let scope: &[&str] = &["systemd-run", "--scope", "--quiet", "--"];
        let supervisor: &[&str] = match at {
            2 => &["/mnt/copy/notify"],
            3 => &[
                "/mnt/copy/notify",
                "-p",
                "/usr/bin/taskset",
                "-p",
                "/run/bench/fast",
                "-p",
                "/run/bench/none",
            ],
            4 => &["/mnt/copy/fanotify", "/run/bench/watched"],
            _ => &[],
        };
        let what = if at == 4 { "watched" } else { "none" };
        let pinned: &[&str] = &["/usr/bin/taskset", "-c", "0"];
        let argv: &[&str] = &["/run/bench/fast", "turn", what, turn, "5", turns, TURN];
        running.push(if at == 1 {
            stage.start_labelled(LABEL, &[pinned, argv].concat())?
        } else {
            stage.vm.start_command(&[scope, supervisor, pinned, argv].concat())?
        });
    }
    let mut times = Vec::new();
    for (one, kind) in running.into_iter().zip(KINDS) {
        let output = one
            .wait()?
            .success()
            .with_context(|| format!("the micro-benchmark failed: {kind}"))?;
        let text = output.text();
        let numbers = text.lines().map(|line| line.trim().parse::<u64>());
        times.push(
            numbers
                .collect::<Result<Vec<_>, _>>()
                .context("not a number of nanoseconds")?,
        );
    }
    let through = allowed(&stage)? - allowed_before;
    let count = u64::try_from(times[1].len())?;
    ensure!(
        through >= count,
        "only {through} of {count} execs went through the agent"
    );
    let kernel = stage.vm.sh("uname -r")?.text();
    section(&kernel, programs.profile_words(), &super::resume::load(), &times)
}

/// Actions that the agent has let through so far.
fn allowed(stage: &Stage) -> Result<u64> {
    let output = stage.vm.run(&["guard-agent", "status", "-o", "json"])?.success()?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    status["allowed"]
        .as_u64()
        .with_context(|| format!("guard-agent status names no number of allowed actions: {status}"))
}

/// What each takes above the plain one at this percentile. A value below that adds 0: so small a difference is what else
/// the machine does.
fn added(times: [&[u64]; 5], percent: usize) -> Result<[u64; 5]> {
    let mut found = [0; 5];
    for (found, times) in found.iter_mut().zip(times) {
        *found = Values::new(times.to_vec())?.percentile(percent);
    }
    Ok(found.map(|value| value.saturating_sub(found[0])))
}

fn section(kernel: &str, profile: &str, load: &str, times: &[Vec<u64>]) -> Result<Section> {
    let [plain, guarded, blind, by_path, watched] = times else {
        bail!("{} workloads were measured, not five", times.len());
    };
    let times: [&[u64]; 5] = [plain, guarded, blind, by_path, watched];
    let mut body = format!(
        "Kernel {kernel}, guest with two CPUs, each a thread of this machine's (`-accel tcg,thread=multi`), agent and console on \
         both, the workloads on the first and each in a scope of its own; guard-agent: {profile}. execve of an executable file that is \
         no program: everything up to the answer about it, and not what a new program costs, which is many times as much and the same for \
         all. Outside every label; labelled, the policy in user space allows each by its path, and each is recorded; under a seccomp filter \
         that hands execve to a supervisor in C, which answers CONTINUE without looking, or reads the path from the caller's memory and \
         compares it with a list of three (xtask/guest/bench/notify.c); with a fanotify mark on the file, whose permission events a \
         responder in C always allows (xtask/guest/bench/fanotify.c). They take turns of {TURN} ms, 50 execs each without a pause, \
         of which the first ten are not counted. `adds` is what stands above the same column of the plain exec. Load of the machine at the end: \
         {load}. Command: `cargo xtask bench round-trip`.\n\n\
         | nanoseconds | number | median | adds | 95 % | adds |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n"
    );
    let (half, most) = (added(times, 50)?, added(times, 95)?);
    for (at, (words, times)) in KINDS.into_iter().zip(times).enumerate() {
        let values = Values::new(times.to_vec())?;
        body.push_str(&format!(
            "| {words} | {} | {} | {} | {} | {} |\n",
            values.count(),
            grouped(values.median()),
            grouped(half[at]),
            grouped(values.percentile(95)),
            grouped(most[at]),
        ));
    }
    body.push_str("\nWhat Guard adds, to what the other adds:\n\n| other | median | in the parts of the run | 95 % |\n| --- | ---: | ---: | ---: |\n");
    for at in [2, 3, 4] {
        let parts = (0..PARTS)
            .map(|part| {
                let piece = times.map(|all| &all[all.len() * part / PARTS..all.len() * (part + 1) / PARTS]);
                let added = added(piece, 50)?;
                Ok(ratio(added[1], added[at]))
            })
            .collect::<Result<Vec<_>>>()?;
        body.push_str(&format!(
            "| {} | {} | {} | {} |\n",
            KINDS[at],
            ratio(half[1], half[at]),
            parts.join(", "),
            ratio(most[1], most[at]),
        ));
    }
    Ok(Section::new(
        "Round trip of an exec that user space always allows",
        body.trim_end(),
    ))
}
