//! What labelled actions do while no agent runs, and what one label may use up.

use anyhow::{Context, Result};
use guard_tests::scene::{Scene, end, eventually, expect_status, until_line};
use guard_tests::{Case, case, check};
use serde_json::Value;
use xtask::stage::{PATIENCE, Request};
use xtask::vm::Running;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "away::park_deny_allow",
            "stopped or killed, the agent leaves parked, denied or allowed what each label says; a signed record has the times and the count",
            park_deny_allow,
        ),
        case(
            "away::quotas",
            "a label at its quota of questions or of tasks is refused more, and nobody else notices",
            quotas,
        ),
    ]
}

/// Carries out each line that it reads; only its children execute anything.
const WORKER: &str = r#"while read -r line; do $line; echo "$? after $line"; done"#;

/// `text` begins with more of `[hold]`.
fn configure(scene: &Scene, text: &str) -> Result<()> {
    let text = format!("[hold]\nwrites = \"free\"\n{text}");
    scene.vm.write(text.as_bytes(), "/etc/guard/agent.toml", 0o644)?;
    scene.vm.script("systemctl restart guard-agent").map(drop)
}

pub(crate) fn worker(scene: &Scene, label: &str) -> Result<Running> {
    scene.script(label, WORKER)
}

pub(crate) fn order(worker: &mut Running, command: &str) -> Result<()> {
    worker.input(format!("{command}\n").as_bytes())
}

/// Seconds since 1970 by the guest's clock.
pub(crate) fn now(scene: &Scene) -> Result<i64> {
    Ok(scene.vm.script("date +%s")?.text().trim().parse()?)
}

fn exists(scene: &Scene, file: &str) -> Result<bool> {
    Ok(scene.vm.run(&["/usr/bin/test", "-e", file])?.status == 0)
}

/// What the verifier says of the only host, in a bundle that must be whole.
pub(crate) fn enforcement(scene: &Scene, dir: &str) -> Result<Value> {
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    scene.trust("/root/trust.json")?;
    scene.vm.run(&["/usr/bin/rm", "-rf", dir])?.success()?;
    scene.export(dir)?;
    let argv = [
        "guard",
        "evidence",
        "verify",
        dir,
        "--trust",
        "/root/trust.json",
        "-o",
        "json",
    ];
    let output = scene.vm.run(&argv)?;
    expect_status(&output, 0)?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let hosts = report["enforcement"].as_object().context("no enforcement")?;
    check!(hosts.len() == 1, "{report}");
    hosts.values().next().cloned().context("no host")
}

/// Both ends of an interval of the verifier's, in seconds since 1970.
pub(crate) fn times(interval: &Value) -> Result<(i64, i64)> {
    let time = |name: &str| -> Result<i64> {
        let text = interval[name]
            .as_str()
            .with_context(|| format!("no {name} in {interval}"))?;
        let time: jiff::Timestamp = text.parse()?;
        Ok(time.as_second())
    };
    Ok((time("from")?, time("to")?))
}

fn park_deny_allow() -> Result<()> {
    let scene = Scene::new()?;
    configure(
        &scene,
        "away_after = \"2s\"\n\
         [[label]]\nname = \"parks\"\naway = \"park\"\n\
         [[label]]\nname = \"denies\"\naway = \"deny\"\n\
         [[label]]\nname = \"allows\"\naway = \"allow\"\n",
    )?;
    let mut parks = worker(&scene, "parks")?;
    let mut denies = worker(&scene, "denies")?;
    let mut allows = worker(&scene, "allows")?;
    let mut absences = Vec::new();
    let mut let_through = 0;
    let mut stops = vec!["systemctl kill -s KILL guard-agent; sleep 0.2; systemctl stop guard-agent"];
    if guard_tests::full() {
        stops.insert(0, "systemctl stop guard-agent");
    }
    for (round, stop) in stops.into_iter().enumerate() {
        let [parked, denied] = ["parked", "denied"].map(|name| format!("/root/{name}-{round}"));
        let stopped = now(&scene)?;
        scene.vm.script(stop)?;
        scene.vm.script("sleep 4")?;
        order(&mut parks, &format!("/usr/bin/touch {parked}"))?;
        order(&mut denies, &format!("/usr/bin/touch {denied}"))?;
        until_line(&mut denies, &format!("126 after /usr/bin/touch {denied}"))?;
        for turn in 0..2 {
            let file = format!("/root/allowed-{round}-{turn}");
            order(&mut allows, &format!("/usr/bin/touch {file}"))?;
            until_line(&mut allows, &format!("0 after /usr/bin/touch {file}"))?;
            check!(exists(&scene, &file)?, "it was let through, but left nothing");
            let_through += 1;
        }
        // Stopped, at no cost, and not run.
        eventually(PATIENCE, || {
            let stopped = scene
                .vm
                .script("ps -eo stat=,args= | grep '^T.*while read' || true")?
                .text();
            check!(!stopped.trim().is_empty(), "no process is stopped");
            Ok(())
        })?;
        check!(
            !exists(&scene, &parked)? && !exists(&scene, &denied)?,
            "it ran without an agent"
        );
        let started = now(&scene)?;
        scene.vm.script("systemctl start guard-agent")?;
        absences.push((stopped, started));
        let request = scene.held("parks", &parked)?;
        check!(!exists(&scene, &parked)?, "it ran when the agent came back, unanswered");
        scene.approve(&request)?;
        until_line(&mut parks, &format!("0 after /usr/bin/touch {parked}"))?;
        check!(exists(&scene, &parked)?, "approved, but left nothing");
        // With an agent all three ask again.
        order(&mut allows, "/usr/bin/true with an agent")?;
        scene.deny(&scene.held("allows", "with an agent")?, "not now")?;
        until_line(&mut allows, "126 after /usr/bin/true")?;
    }
    for worker in [&mut parks, &mut denies, &mut allows] {
        worker.close_input()?;
    }
    expect_status(&end(parks)?, 0)?;

    let told = enforcement(&scene, "/root/bundle")?;
    check!(
        told["let_through"] == let_through,
        "{let_through} were let through: {told}"
    );
    check!(told["gaps"].as_array().is_some_and(Vec::is_empty), "{told}");
    let away = told["away"].as_array().context("no absences")?;
    // The first restart took the configuration in.
    check!(away.len() == absences.len() + 1, "{told}");
    for (interval, (stopped, started)) in away[1..].iter().zip(&absences) {
        let (from, to) = times(interval)?;
        check!(
            (stopped - 5..=stopped + 3).contains(&from) && (*started..started + 60).contains(&to),
            "away from {stopped} to {started}, but the record says {from} to {to}"
        );
    }
    let shown = scene.verify("/root/bundle")?.text();
    check!(
        shown.contains("without an agent from") && shown.contains(&format!("{let_through} actions went on")),
        "{shown}"
    );
    Ok(())
}

/// Forks as often as it is told; each child waits until its parent ends. Says how many forks failed.
const FORKS: &str = r#"
import os, sys, time
failed, read = 0, os.pipe()
for _ in range(int(sys.argv[1])):
    try:
        if os.fork() == 0:
            os.close(read[1])
            os.read(read[0], 1)
            os._exit(0)
    except BlockingIOError:
        failed += 1
print("failed", failed, flush=True)
sys.stdin.read()
"#;

fn quotas() -> Result<()> {
    let scene = Scene::new()?;
    configure(
        &scene,
        "[[label]]\nname = \"few\"\npending = 3\ntasks = 20\n[[label]]\nname = \"others\"\ntasks = 1000\n",
    )?;
    let mut others = worker(&scene, "others")?;
    // Nine questions at once: three wait, the rest fails; each child says its own end.
    let lines: String = (1..=9)
        .map(|n| format!("( /usr/bin/touch /root/few-{n}; echo \"{n} ended $?\" ) & "))
        .collect();
    let mut few = scene.script("few", &format!("{lines} wait; echo all ended"))?;
    let mut output = until_line(&mut few, "ended 126")?;
    for _ in 1..6 {
        output.push_str(&until_line(&mut few, "ended 126")?);
        if output.matches("ended 126").count() >= 6 {
            break;
        }
    }
    let mut waiting = Vec::new();
    for _ in 0..3 {
        let known: Vec<String> = waiting.iter().map(|request: &Request| request.id.clone()).collect();
        waiting.push(scene.wait_for(PATIENCE, "three questions of few", |request| {
            request.label == "few" && request.pending() && !known.contains(&request.id)
        })?);
    }
    order(&mut others, "/usr/bin/touch /root/others-while-full")?;
    scene.approve_next("others", "others-while-full")?;
    until_line(&mut others, "0 after /usr/bin/touch")?;
    for request in &waiting {
        scene.approve(request)?;
    }
    until_line(&mut few, "all ended")?;
    expect_status(&end(few)?, 0)?;
    let made = scene.vm.script("ls /root | grep -c '^few-'")?.text();
    check!(made.trim() == "3", "{made} of nine ran");

    // Tasks.
    scene.vm.write(FORKS.as_bytes(), "/root/forks.py", 0o644)?;
    let mut bomb = scene.start_labelled("few", &["/usr/bin/python3", "/root/forks.py", "60"])?;
    scene.approve_next("few", "forks.py")?;
    let said = until_line(&mut bomb, "failed")?;
    let failed: u32 = said
        .lines()
        .find_map(|line| line.strip_prefix("failed "))
        .context("no count")?
        .trim()
        .parse()?;
    check!(
        (40..=45).contains(&failed),
        "of 60 forks failed {failed}, with room for 20 tasks"
    );
    order(&mut others, "/usr/bin/touch /root/others-while-bombed")?;
    scene.approve_next("others", "others-while-bombed")?;
    until_line(&mut others, "0 after /usr/bin/touch")?;
    bomb.close_input()?;
    expect_status(&end(bomb)?, 0)?;
    others.close_input()?;
    expect_status(&end(others)?, 0)?;

    // Told by the agent at once, and in signed records: forks as a count of the kernel's, actions one by one.
    let side = scene.agent()?.kernel_side.context("nothing of the kernel side")?;
    let of = |label: &str| side.labels.iter().find(|side| side.label == label);
    check!(
        of("few").is_some_and(|few| few.refused_held == 6 && few.refused_tasks == u64::from(failed)),
        "6 questions and {failed} forks were refused: {side:?}"
    );
    check!(
        of("others").is_some_and(|others| others.refused_held == 0 && others.refused_tasks == 0),
        "{side:?}"
    );
    scene.vm.script("systemctl restart guard-agent")?;
    scene.agent_until(|agent| agent.console_state == "connected" && agent.unshipped_records == 0)?;
    let records = |query: &str| -> Result<Vec<String>> {
        let path = format!("/evidence?limit=200&{query}");
        let page = scene.call(Some(scene.admin()), "GET", &path, None)?.success()?.json()?;
        let items = page["items"].as_array().context("no items")?;
        Ok(items.iter().map(|item| item["summary"].to_string()).collect())
    };
    let denied = records("kind=enforcement&label=few")?;
    let denied = denied.iter().filter(|text| text.contains("denied: `/usr/bin/touch`"));
    check!(denied.count() == 6, "{:#?}", records("kind=enforcement&label=few")?);
    let counted = records("kind=lifecycle")?;
    check!(
        counted
            .iter()
            .any(|text| text.contains(&format!("{failed} over a quota"))),
        "{counted:#?}"
    );
    Ok(())
}
