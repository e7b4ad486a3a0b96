//! What a thousand threads cost that wait for people: theirs and the agent's CPU time.
//! Given a guest with two CPUs. Never counts what the console does with a thousand questions.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::document::Section;
use super::stats::grouped;
use super::{BenchOptions, INSTALL, LABEL, POLICY, Programs};
use crate::run;
use crate::stage::{PATIENCE, Stage};

/// No more threads of a process than may be held one by one.
const THREADS: u64 = 8;
/// The micro-benchmark's own exec needs nobody; each of its threads asks people.
const CONNECTIONS: &str = r#"
@id("connections")
@description("asks any approver")
permit (principal == Workload::"bench", action == Action::"connect", resource)
when { context.approved };
"#;
const AGENT: &str = "/sys/fs/cgroup/system.slice/guard-agent.service";

/// CPU time in microseconds.
#[derive(Clone, Copy, Debug)]
struct Used {
    agent: u64,
    held: u64,
}

pub(super) fn measure(options: &BenchOptions, programs: &Programs) -> Result<Section> {
    let (processes, seconds) = if options.quick { (25, 10) } else { (125, 60) };
    let count = processes * THREADS;
    run::progress("measuring what held threads cost");
    let stage = Stage::boot(|guest| {
        guest.parallel = true;
        guest.copy = programs.copies();
    })?;
    stage.vm.script(INSTALL)?;
    stage.set_policy(format!("{POLICY}{CONNECTIONS}").as_bytes())?;
    stage.vm.bring_up_cpus()?;
    let words = [processes.to_string(), THREADS.to_string()];
    let begun = Instant::now();
    let running = stage.start_labelled(LABEL, &["/run/bench/wait", &words[0], &words[1]])?;
    held(&stage, count)?;
    let took = begun.elapsed();
    let cgroup = stage
        .vm
        .script("cut -d: -f3 /proc/$(pgrep -o -x -f '/run/bench/wait [0-9 ]*')/cgroup")?
        .text();
    let cgroup = format!("/sys/fs/cgroup{}", cgroup.trim());
    // What telling the console of them all left to do.
    quiet(&stage, &cgroup)?;
    let before = used(&stage, &cgroup)?;
    std::thread::sleep(Duration::from_secs(seconds));
    let after = used(&stage, &cgroup)?;
    held(&stage, count)?;
    // The guest ends with everything in it.
    drop(running);
    let kernel = stage.vm.sh("uname -r")?.text();
    let (agent, threads) = (after.agent - before.agent, after.held - before.held);
    let share = |used: u64| format!("{:.3} %", used as f64 / (seconds * 10_000) as f64);
    Ok(Section::new(
        "A thousand threads that wait",
        &format!(
            "Kernel {kernel}, guest with two CPUs, each a thread of this machine's; guard-agent: {}. {} threads of {processes} processes each \
             connect to an address that people are asked about; all were held after {:.0} s. CPU time of their cgroup and of the \
             agent's service by `cpu.stat`, over {seconds} s. The console is not in it. Load of the machine at the end: {}. Command: `cargo \
             xtask bench hold`.\n\n\
             | | microseconds | of one core |\n| --- | ---: | ---: |\n\
             | held threads | {} | {} |\n| agent | {} | {} |\n| together | {} | {} |\n",
            programs.profile_words(),
            grouped(count),
            took.as_secs_f64(),
            super::resume::load(),
            grouped(threads),
            share(threads),
            grouped(agent),
            share(agent),
            grouped(threads + agent),
            share(threads + agent),
        ),
    ))
}

/// Waits until so many actions are held.
fn held(stage: &Stage, count: u64) -> Result<()> {
    let deadline = Instant::now() + 8 * PATIENCE;
    loop {
        let status = stage.vm.run(&["guard-agent", "status", "-o", "json"])?;
        let now: serde_json::Value =
            serde_json::from_slice(&status.stdout).with_context(|| format!("guard-agent status: {status}"))?;
        if now["held"].as_u64() == Some(count) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("not {count} actions held: {status}");
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Waits until the agent has done nothing to speak of for some seconds.
fn quiet(stage: &Stage, cgroup: &str) -> Result<()> {
    let deadline = Instant::now() + 4 * PATIENCE;
    let mut before = used(stage, cgroup)?;
    loop {
        std::thread::sleep(Duration::from_secs(3));
        let now = used(stage, cgroup)?;
        // A tenth of one CPU.
        if now.agent - before.agent < 300_000 {
            return Ok(());
        }
        if Instant::now() >= deadline {
            bail!("the agent does not come to rest: {before:?}, then {now:?}");
        }
        before = now;
    }
}

fn used(stage: &Stage, cgroup: &str) -> Result<Used> {
    let of = |path: &str| -> Result<u64> {
        let text = stage
            .vm
            .script(&format!("sed -n 's/^usage_usec //p' {path}/cpu.stat"))?
            .text();
        text.trim()
            .parse()
            .with_context(|| format!("no CPU time of {path}: {text:?}"))
    };
    Ok(Used {
        agent: of(AGENT)?,
        held: of(cgroup)?,
    })
}
