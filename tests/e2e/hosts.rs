//! Hosts that cannot enforce, and hosts whose workloads ask for too much.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_error_says};
use guard_tests::{Case, case, check, full};
use xtask::stage::{PATIENCE, Request};
use xtask::vm::guard;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "hosts::without_bpf_everything_refuses",
            "on a kernel without `bpf` among its security modules the agent, its unit and guard run refuse, and the remedy is said",
            without_bpf,
        ),
        case(
            "hosts::a_flood_does_not_stop_others",
            "while 60 execs of one label wait, in full runs 200, another label's exec is asked and answered",
            flood,
        ),
        case(
            "hosts::a_label_at_its_quota_is_denied",
            "what a label asks beyond its quota is denied at once; what waits goes on waiting, and another label is still asked",
            quota,
        ),
    ]
}

fn without_bpf() -> Result<()> {
    const LIST: &str = "landlock,lockdown,yama,apparmor";
    let vm = guard::boot_without_agent(|options| {
        options.lsm = LIST.into();
        options.snapshot = false;
    })?;
    let active = vm.script("cat /sys/kernel/security/lsm")?.text();
    check!(!active.contains("bpf"), "the guest has {active}");
    let remedy = format!("lsm={active},bpf");

    let agent = vm.run(&["guard-agent", "run"])?;
    check!(agent.status == 3, "{agent}");
    expect_error_says(&agent, &["BPF is not among the active security modules", &remedy])?;

    let unit = vm.run(&["systemctl", "start", "guard-agent"])?;
    check!(unit.status != 0, "the unit started: {unit}");
    let log = vm.script("journalctl -q --no-pager -u guard-agent")?.text();
    check!(log.contains(&remedy), "the journal does not say {remedy}: {log}");

    let doctor = vm.run(&["guard", "doctor"])?;
    check!(doctor.status == 1, "{doctor}");
    check!(
        doctor.text().contains(&remedy),
        "guard doctor does not say {remedy}: {doctor}"
    );

    let run = ["guard", "run", "--label", CODER, "--", "/usr/bin/touch", "/root/ran"];
    let output = vm.run(&run)?;
    check!(output.status != 0, "{output}");
    expect_error_says(&output, &["agent", "not running"])?;
    check!(
        vm.run(&["test", "-e", "/root/ran"])?.status == 1,
        "it ran without the agent"
    );
    Ok(())
}

/// What the shell of a flood says of execs that fail.
const FLOOD_ERRORS: &str = "/root/flood-errors";

/// Starts a shell under `label` whose `count` children are held.
fn start_flood(scene: &Scene, label: &str, count: u32) -> Result<xtask::vm::Running> {
    let script =
        format!("exec 2>{FLOOD_ERRORS}; for i in $(seq {count}); do /usr/bin/sleep 1000 & done; wait; echo over");
    // `seq` is the shell's first question after the shell itself.
    let running = scene.script(label, &script)?;
    scene.approve_next(label, "seq")?;
    Ok(running)
}

/// Another label's exec is asked, and runs when it is approved.
fn another_is_answered(scene: &Scene) -> Result<()> {
    let other = scene.start_labelled(CODER, &["/bin/echo", "not stopped"])?;
    let request = scene.approve_next(CODER, "not stopped")?;
    check!(request.outcome.as_deref() == Some("ran"), "{request:?}");
    let output = end(other)?;
    check!(output.text() == "not stopped", "{output}");
    Ok(())
}

fn flood() -> Result<()> {
    let scene = Scene::new()?;
    // Emulated, 200 take minutes to be asked.
    let number = if full() { 200 } else { 60 };
    let _running = start_flood(&scene, "flood", number)?;
    scene.agent_within(4 * PATIENCE, |agent| agent.held >= u64::from(number))?;
    another_is_answered(&scene)?;
    let status = scene.agent()?;
    check!(
        status.held == u64::from(number) && status.lost_events == 0,
        "{status:?}"
    );
    Ok(())
}

fn quota() -> Result<()> {
    let scene = Scene::new()?;
    scene
        .vm
        .write(b"[limits]\npending_per_label = 10\n", "/root/limits", 0o644)?;
    scene
        .vm
        .script("cat /root/limits >>/etc/guard/agent.toml; systemctl restart guard-agent")
        .context("restarting the agent with a small quota")?;
    scene.agent_until(|agent| agent.console_state == "connected")?;
    let _running = start_flood(&scene, "flood", 40)?;
    scene.agent_until(|agent| agent.held == 10)?;
    let refused = format!("test $(grep -c 'Operation not permitted' {FLOOD_ERRORS}) -eq 30");
    eventually(PATIENCE, || scene.vm.script(&refused).map(drop)).context("30 execs are denied")?;
    another_is_answered(&scene)?;
    let status = scene.agent()?;
    check!(status.held == 10, "{status:?}");
    let waiting = scene
        .seen()
        .iter()
        .filter(|request: &&Request| request.label == "flood" && request.pending())
        .count();
    check!(waiting == 10, "{waiting} questions wait");
    Ok(())
}
