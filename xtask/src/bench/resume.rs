//! How long an exec takes that is allowed at once, or after a person's approval; the agent's size and memory.
//! Given a guest with two CPUs. Never measures a person: what they take is no part of a figure.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::document::Section;
use super::stats::{Values, difference, grouped, ratio};
use super::{BenchOptions, INSTALL, LABEL, POLICY, Programs};
use crate::run;
use crate::stage::{PATIENCE, Stage};
use crate::vm::Output;

/// How many processes are held at once when the agent's memory is looked at.
const HELD: u32 = 100;

/// A line of `records.py`.
#[derive(Debug, Deserialize)]
struct Record {
    label: String,
    asked: bool,
    action: Option<String>,
    path: Option<String>,
    verdict: String,
    effect: String,
    resume_ns: u64,
}

pub(super) fn measure(options: &BenchOptions, programs: &Programs) -> Result<[Section; 2]> {
    let (fast_count, asked_count) = if options.quick { (50, 20) } else { (400, 40) };
    run::progress("measuring verdict to resume");
    let stage = Stage::boot(|guest| {
        guest.parallel = true;
        guest.copy = programs.copies();
    })?;
    stage.vm.script(INSTALL)?;
    stage.set_policy(POLICY.as_bytes())?;
    stage.vm.bring_up_cpus()?;
    // What the restart left behind.
    std::thread::sleep(Duration::from_secs(5));
    let idle = resident(&stage)?;

    let fast_words = fast_count.to_string();
    let argv = ["/run/bench/fast", "exec", &fast_words, "1"];
    let plain = times(stage.vm.run(&argv)?)?;
    let fast = times(stage.start_labelled(LABEL, &argv)?.wait()?)?;
    let plain_again = times(stage.vm.run(&argv)?)?;

    let asking = stage.start_labelled(LABEL, &["/run/bench/asked", "exec", &asked_count.to_string(), "1"])?;
    // The first question is about the micro-benchmark itself; the second about its first exec, which it does not print.
    approve(&stage, asked_count + 2)?;
    times(asking.wait()?)?;

    // Records of allowed execs are written behind, in groups.
    std::thread::sleep(Duration::from_secs(2));
    let records = records(&stage)?;
    let resumes = |what: &str, wanted: &dyn Fn(&Record) -> bool, least: u32| -> Result<Values> {
        let found: Vec<u64> = records
            .iter()
            .filter(|record| record.label == LABEL && record.verdict == "allow" && record.effect == "ran")
            .filter(|record| wanted(record))
            .map(|record| record.resume_ns)
            .collect();
        ensure!(
            found.len() >= least as usize,
            "only {} records of {what}, {least} were expected",
            found.len()
        );
        Values::new(found)
    };
    let by_key = resumes(
        "execs that the kernel key alone decided",
        &|record| record.action.as_deref() == Some("exec_key") && record.path.as_deref() == Some("/run/bench/fast"),
        fast_count,
    )?;
    let approved = resumes("approved execs", &|record| record.asked, asked_count)?;

    let holding = holding(&stage)?;
    let kernel = stage.vm.sh("uname -r")?.text();
    let hashed = programs.bench.metadata()?.len();
    let load = load();
    let accel = stage.vm.sh("systemd-detect-virt || true")?.text();
    let circumstances = format!(
        "Kernel {kernel}, guest with two CPUs ({accel}), each a thread of this machine's, Guard enforcing. Load of the machine at \
         the end: {load}."
    );
    let plain = if plain_again.median() > plain.median() {
        plain_again
    } else {
        plain
    };
    Ok([
        resume_section(&circumstances, hashed, &plain, &fast, &by_key, &approved),
        size_section(&kernel, programs, idle, holding)?,
    ])
}

/// Whoever reads nanoseconds must know what else this machine did.
pub(super) fn load() -> String {
    let said = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} on {cpus} CPUs", said.split(' ').next().unwrap_or("unknown"))
}

fn records(stage: &Stage) -> Result<Vec<Record>> {
    let output = stage
        .vm
        .run(&["python3", "/mnt/copy/records.py", "/var/lib/guard-agent"])?
        .success()
        .context("cannot read the agent's spool")?;
    let text = output.text();
    text.lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("not a record: {line}")))
        .collect()
}

/// What the micro-benchmark printed.
fn times(output: Output) -> Result<Values> {
    Values::parse(&output.success().context("the micro-benchmark failed")?.text())
}

/// Approves each request as it comes, as soon as a person could have seen it.
fn approve(stage: &Stage, count: u32) -> Result<()> {
    for number in 1..=count {
        let request = stage
            .held(LABEL, "/run/bench/asked")
            .with_context(|| format!("approving request {number} of {count}"))?;
        stage.answer(stage.approver(), &request, "approve", "")?.success()?;
        stage.follow(&request.id, "answered", |request| !request.pending())?;
    }
    Ok(())
}

/// Lets many processes be held at once, and looks at the agent's memory.
fn holding(stage: &Stage) -> Result<u64> {
    let script = format!("for i in $(seq {HELD}); do /run/bench/asked exit & done; wait");
    let running = stage.start_labelled(LABEL, &["/usr/bin/bash", "-c", &script])?;
    let deadline = Instant::now() + 2 * PATIENCE;
    loop {
        let status = stage.vm.run(&["guard", "status", "-o", "json"])?;
        let now: serde_json::Value =
            serde_json::from_slice(&status.stdout).with_context(|| format!("guard status: {status}"))?;
        if now["agent"]["held"].as_u64() == Some(HELD.into()) {
            break;
        }
        if Instant::now() >= deadline {
            bail!("not {HELD} actions held: {status}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
    std::thread::sleep(Duration::from_secs(3));
    let resident = resident(stage)?;
    // The guest ends with everything in it.
    drop(running);
    Ok(resident)
}

/// VmRSS of the agent in KiB.
fn resident(stage: &Stage) -> Result<u64> {
    let line = stage
        .vm
        .script("grep VmRSS /proc/$(systemctl show -p MainPID --value guard-agent)/status")?
        .text();
    line.split_whitespace()
        .nth(1)
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no VmRSS in {line:?}"))
}

fn resume_section(
    circumstances: &str,
    hashed: u64,
    plain: &Values,
    fast: &Values,
    by_key: &Values,
    approved: &Values,
) -> Section {
    let mut body = format!(
        "{circumstances} `resume` is the enforcement records' `resume_ns`: from \
         the moment the agent has the verdict to the moment it sees that the kernel has acted (for an approved exec: compared \
         at the exec event). `plain` is vfork + exec + exit + wait of a static binary outside every label, measured before and \
         after in the same guest (the slower one counts). A person's own time is in no figure. Command: `cargo xtask bench`.\n\n\
         | nanoseconds | number | median | 95 % | median to plain |\n\
         | --- | ---: | ---: | ---: | ---: |\n"
    );
    for (words, values) in [
        ("plain exec, whole", plain),
        ("labelled exec that the policy allows by its kernel key, whole", fast),
        ("resume of an exec that the kernel key decided", by_key),
        ("resume of an exec that was held by ptrace and approved", approved),
    ] {
        body.push_str(&format!(
            "| {words} | {} | {} | {} | {} |\n",
            values.count(),
            grouped(values.median()),
            grouped(values.percentile(95)),
            ratio(values.median(), plain.median()),
        ));
    }
    body.push_str(&format!(
        "\nAn exec that the policy allows at once takes {} ns to a plain one. In the resume of an approved exec its executable is \
         read and hashed again ({} bytes): emulated, that is nearly all of it.",
        difference(fast.median(), plain.median()),
        grouped(hashed),
    ));
    Section::new("Verdict to resume", &body)
}

fn size_section(kernel: &str, programs: &Programs, idle: u64, holding: u64) -> Result<Section> {
    let bytes = programs.agent.metadata()?.len();
    let profile = programs.profile_words();
    let mut body = format!(
        "guard-agent, {profile}; resident memory is VmRSS in a guest with kernel {kernel}, connected to its console, one policy \
         in force. Command: `cargo xtask bench --release`{}.\n\n\
         | | |\n| --- | ---: |\n\
         | file, bytes | {} |\n\
         | resident, idle, KiB | {} |\n\
         | resident, {HELD} actions held, KiB | {} |\n",
        match programs.profile {
            crate::build::Profile::Release => "",
            crate::build::Profile::Dev => " measures what is shipped; this is not it",
        },
        grouped(bytes),
        grouped(idle),
        grouped(holding),
    );
    body.push_str(&format!(
        "\nEach held action takes about {} KiB.",
        holding.saturating_sub(idle) / u64::from(HELD)
    ));
    Ok(Section::new("The agent's size and memory", &body))
}
