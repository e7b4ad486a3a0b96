//! What an exec costs that user space always allows: Guard's policy next to a seccomp supervisor, in the same guest.
//! Given a guest with two CPUs. Never measures one of them under a load that the others did not have: they take turns.

use anyhow::{Context, Result, ensure};

use super::document::Section;
use super::stats::{Values, grouped, ratio};
use super::{BenchOptions, INSTALL, LABEL, POLICY, Programs};
use crate::run;
use crate::stage::Stage;

/// Turns of each of the three.
const TURNS: u32 = 5;

/// The values of all turns of one kind.
#[derive(Default)]
struct Turns(Vec<u64>);

impl Turns {
    fn add(&mut self, output: crate::vm::Output) -> Result<()> {
        let output = output.success().context("the micro-benchmark failed")?;
        for line in output.text().lines() {
            self.0
                .push(line.trim().parse().with_context(|| format!("{line:?} is no number"))?);
        }
        Ok(())
    }
}

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
    let blocks = if options.quick { 40 } else { 200 };
    let words = blocks.to_string();
    // Otherwise the scheduler's moves between the CPUs, which depend on what else runs, are most of the differences.
    let argv = [
        "/usr/bin/taskset",
        "-c",
        "0",
        "/run/bench/fast",
        "exec",
        words.as_str(),
        "1",
    ];
    // In a scope of its own, as `guard run` gives one to the labelled.
    let scope = ["systemd-run", "--scope", "--quiet", "--"];
    let plainly: Vec<&str> = scope.into_iter().chain(argv).collect();
    let supervised: Vec<&str> = scope.into_iter().chain(["/mnt/copy/notify"]).chain(argv).collect();
    let (mut plain, mut guarded, mut notified) = (Turns::default(), Turns::default(), Turns::default());
    let allowed_before = allowed(&stage)?;
    for _ in 0..TURNS {
        settle();
        plain.add(stage.vm.run(&plainly)?)?;
        settle();
        guarded.add(stage.start_labelled(LABEL, &argv)?.wait()?)?;
        settle();
        notified.add(stage.vm.run(&supervised)?)?;
    }
    let count = u64::from(TURNS * blocks);
    let through = allowed(&stage)? - allowed_before;
    ensure!(
        through >= count,
        "only {through} of {count} execs went through the agent"
    );
    let kernel = stage.vm.sh("uname -r")?.text();
    Ok(section(
        &kernel,
        programs.profile_words(),
        &super::resume::load(),
        &Values::new(plain.0)?,
        &Values::new(guarded.0)?,
        &Values::new(notified.0)?,
    ))
}

/// Records of what was allowed are written, sent and stored after it happened, in the same guest: that is no part of the next
/// turn.
fn settle() {
    std::thread::sleep(std::time::Duration::from_secs(3));
}

/// Actions that the agent has let through so far.
fn allowed(stage: &Stage) -> Result<u64> {
    let output = stage.vm.run(&["guard-agent", "status", "-o", "json"])?.success()?;
    let status: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    status["allowed"]
        .as_u64()
        .with_context(|| format!("guard-agent status names no number of allowed actions: {status}"))
}

fn section(kernel: &str, profile: &str, load: &str, plain: &Values, guarded: &Values, notified: &Values) -> Section {
    let mut body = format!(
        "Kernel {kernel}, guest with two CPUs, each a thread of this machine's (`-accel tcg,thread=multi`), agent and console \
         on both, the workload on the first and always in a scope of its own; guard-agent: {profile}. vfork + exec + exit + wait of a static binary: outside every label; \
         labelled, the policy in user space allows each and each is recorded; under a seccomp filter that hands execve to a \
         supervisor in C which answers CONTINUE without looking (xtask/guest/bench/notify.c). {TURNS} turns of each, one after the \
         other, in one guest; first execs of a process are not counted. `adds` is what stands above the same column of the plain \
         exec. Load of the machine at the end: {load}. Command: `cargo xtask bench round-trip`.\n\n\
         | nanoseconds | number | median | adds | 95 % | adds |\n\
         | --- | ---: | ---: | ---: | ---: | ---: |\n"
    );
    let adds = |values: &Values, percent| values.percentile(percent).saturating_sub(plain.percentile(percent));
    for (words, values) in [
        ("plain", plain),
        ("labelled, allowed by the policy", guarded),
        ("seccomp supervisor that always allows", notified),
    ] {
        body.push_str(&format!(
            "| {words} | {} | {} | {} | {} | {} |\n",
            values.count(),
            grouped(values.median()),
            grouped(adds(values, 50)),
            grouped(values.percentile(95)),
            grouped(adds(values, 95)),
        ));
    }
    body.push_str(&format!(
        "\nWhat Guard adds, to what the supervisor adds: {} (median), {} (95 %). A value below the plain one adds 0: so small a \
         difference is what else the machine does.",
        ratio(adds(guarded, 50), adds(notified, 50)),
        ratio(adds(guarded, 95), adds(notified, 95)),
    ));
    Section::new("Round trip of an exec that user space always allows", &body)
}
