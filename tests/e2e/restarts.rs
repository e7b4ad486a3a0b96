//! Parts that go away and come back while something is held.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_status};
use guard_tests::{Case, case, check, full};
use xtask::stage::{PATIENCE, Request};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "restarts::console_away_and_back",
            "a console that stops while something is held finds it again; nothing runs meanwhile",
            console_away,
        ),
        case(
            "restarts::answer_survives_the_console",
            "an answer given just before the console dies reaches the host afterwards",
            console_killed,
        ),
        case(
            "restarts::asked_while_away",
            "an exec while the console is away is held and asked when it is back",
            asked_while_away,
        ),
        case(
            "restarts::agent_restarted",
            "an agent that is restarted lets nothing through; the exec is asked again and runs when approved",
            agent_restarted,
        ),
        case(
            "restarts::agent_killed",
            "the same when the agent is killed with SIGKILL",
            agent_killed,
        ),
        case(
            "restarts::upgrades",
            "the agent is replaced by another file, with the same maps and with others, under a loop of execs: not one runs without an allowed record",
            upgrades,
        ),
        case(
            "restarts::killed_at_each_point",
            "an agent killed at a point of a decision's path: nothing runs unapproved or twice, and the evidence verifies",
            killed_at_each_point,
        ),
        case(
            "restarts::units",
            "both units are active, of Type=notify, and restricted as their files say",
            units,
        ),
        case(
            "restarts::host_offline_is_shown",
            "the console shows a host whose agent is stopped as offline",
            host_offline,
        ),
    ]
}

fn not_there(scene: &Scene, file: &str) -> Result<()> {
    check!(
        scene.vm.run(&["/usr/bin/test", "-e", file])?.status == 1,
        "it ran without an answer"
    );
    Ok(())
}

fn connected(scene: &Scene) -> Result<()> {
    scene.agent_until(|agent| agent.console_state == "connected")
}

fn console_away() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/usr/bin/touch", "/root/later"])?;
    let request = scene.held(CODER, "later")?;
    scene.vm.script("systemctl stop guard-console")?;
    not_there(&scene, "/root/later")?;
    scene.vm.script("systemctl start guard-console")?;
    connected(&scene)?;
    let again = scene.request(&request.id)?;
    check!(again.pending() && again.digest == request.digest, "{again:?}");
    scene.approve(&again)?;
    expect_status(&end(running)?, 0)?;
    scene.vm.script("test -e /root/later")?;
    check!(scene.request_count()? == 1, "asked more than once");
    Ok(())
}

fn console_killed() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "kept"])?;
    let request = scene.held(CODER, "kept")?;
    scene.approve(&request)?;
    scene
        .vm
        .script("systemctl kill -s KILL guard-console; systemctl start guard-console")?;
    check!(end(running)?.text() == "kept", "the answer was lost");
    scene.follow(&request.id, "approved with its outcome", Request::settled)?;
    Ok(())
}

fn asked_while_away() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.script("systemctl stop guard-console")?;
    let running = scene.start_labelled(CODER, &["/usr/bin/touch", "/root/offline"])?;
    scene.agent_until(|agent| agent.held == 1)?;
    not_there(&scene, "/root/offline")?;
    scene.vm.script("systemctl start guard-console")?;
    scene.approve_next(CODER, "offline")?;
    expect_status(&end(running)?, 0)
}

fn comes_back(scene: &Scene, stop: &str) -> Result<()> {
    // Its parent must be outside the agent's service and survive it.
    let running = scene.start_labelled(CODER, &["/usr/bin/touch", "/root/unapproved"])?;
    let first = scene.held(CODER, "unapproved")?;
    scene.vm.script(stop)?;
    not_there(scene, "/root/unapproved")?;
    // A new labelled exec meanwhile is not let through either.
    scene.vm.script("systemctl start guard-agent")?;
    connected(scene)?;
    not_there(scene, "/root/unapproved")?;
    let request = scene.held(CODER, "unapproved").context("after the restart")?;
    if request.id != first.id {
        let old = scene.follow(&first.id, "withdrawn", |request| !request.pending())?;
        check!(old.state == "withdrawn", "{old:?}");
    }
    scene.approve(&request)?;
    eventually(PATIENCE, || scene.vm.script("test -e /root/unapproved").map(drop))?;
    // guard run may have lost its watch, never the status of the command.
    expect_status(&end(running)?, 0)
}

fn agent_restarted() -> Result<()> {
    comes_back(&Scene::new()?, "systemctl stop guard-agent")
}

fn agent_killed() -> Result<()> {
    comes_back(
        &Scene::new()?,
        "systemctl kill -s KILL guard-agent; sleep 0.2; systemctl stop guard-agent",
    )
}

fn units() -> Result<()> {
    let scene = Scene::new()?;
    for unit in ["guard-agent", "guard-console"] {
        let show = scene.vm.script(&format!(
            "systemctl show {unit} -p Type -p ActiveState -p NoNewPrivileges -p ProtectSystem"
        ))?;
        let text = show.text();
        for line in ["Type=notify", "ActiveState=active", "NoNewPrivileges=yes"] {
            check!(text.contains(line), "{unit}: no {line} in {text}");
        }
        check!(
            text.contains("ProtectSystem=strict") || text.contains("ProtectSystem=full"),
            "{unit}: {text}"
        );
        scene
            .vm
            .script(&format!("systemd-analyze verify --man=no {unit}.service"))
            .context("systemd-analyze verify")?;
    }
    let user = scene.vm.script("ps -o user= -C guard-console | sort -u")?;
    check!(user.text() != "root", "the console runs as root");
    Ok(())
}

fn host_offline() -> Result<()> {
    let scene = Scene::new()?;
    let state = || -> Result<String> {
        let page = scene
            .call(Some(scene.admin()), "GET", "/hosts", None)?
            .success()?
            .json()?;
        Ok(page["items"][0]["state"].as_str().unwrap_or_default().to_owned())
    };
    eventually(PATIENCE, || {
        let now = state()?;
        check!(now == "online", "the host is {now}");
        Ok(())
    })?;
    scene.vm.script("systemctl stop guard-agent")?;
    eventually(PATIENCE, || {
        let now = state()?;
        check!(now == "offline", "the host is {now}");
        Ok(())
    })
}

/// Started outside the label; it starts nothing before it is labelled.
const LOOP: &str = r#"import os, subprocess, time
open("/root/looping", "w").close()
while not os.path.exists("/root/go"):
    time.sleep(0.1)
while True:
    for program in ("/usr/local/bin/tick", "/usr/local/bin/never"):
        try:
            subprocess.run([program])
        except PermissionError:
            pass
    time.sleep(0.05)
"#;

const LOOP_POLICY: &str = r#"
@id("tick")
permit (principal == Workload::"policed", action == Action::"exec", resource)
when { context.path == "/usr/local/bin/tick" };

@id("never")
forbid (principal == Workload::"policed", action == Action::"exec", resource)
when { context.path == "/usr/local/bin/never" };
"#;

/// Counts, of the records in a bundle, those that let `tick` go on: the verdict counts, not what is known of its effect.
const COUNT_ALLOWED: &str = r#"
import base64, json, pathlib
count = 0
for path in pathlib.Path("/root/bundle").rglob("*"):
    if not path.is_file() or b'"payloadType"' not in path.read_bytes()[:4096]:
        continue
    for line in path.read_bytes().splitlines():
        if b'"payloadType"' not in line:
            continue
        predicate = json.loads(base64.b64decode(json.loads(line)["payload"])).get("predicate", {})
        if predicate.get("verdict") == "allow" and "/usr/local/bin/tick" in json.dumps(predicate.get("by_policy", "")):
            count += 1
print(count)
"#;

/// Another file with other bytes in the place of the agent, as a package manager does it.
const REPLACE: &str = "cp /usr/bin/guard-agent /usr/bin/guard-agent.dpkg-new && echo $RANDOM >>/usr/bin/guard-agent.dpkg-new \
                       && mv -f /usr/bin/guard-agent.dpkg-new /usr/bin/guard-agent";

/// The next start of the agent has these variables.
fn environment(scene: &Scene, lines: &str) -> Result<()> {
    let folder = "/run/systemd/system/guard-agent.service.d";
    scene.vm.script(&format!(
        "mkdir -p {folder}; printf '[Service]\\n{lines}' >{folder}/test.conf; systemctl daemon-reload"
    ))?;
    Ok(())
}

fn upgrades() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(LOOP_POLICY.as_bytes())?;
    for (program, file) in [("tick", "ticks"), ("never", "never")] {
        let script = format!("#!/bin/sh\necho x >>/root/{file}\n");
        scene
            .vm
            .write(script.as_bytes(), &format!("/usr/local/bin/{program}"), 0o755)?;
    }
    scene.vm.write(LOOP.as_bytes(), "/root/loop.py", 0o644)?;
    scene.vm.script(
        "systemd-run --quiet --unit=loop python3 /root/loop.py; until test -e /root/looping; do sleep 0.1; done; \
         guard label add policed --cgroup /system.slice/loop.service && touch /root/go",
    )?;
    let ticks = || -> Result<u64> {
        let text = scene.vm.script("wc -c </root/ticks 2>/dev/null || echo 0")?.text();
        Ok(text.parse::<u64>().context("no number")? / 2)
    };
    let mut before = 0;
    for round in 0..if full() { 20 } else { 2 } {
        eventually(PATIENCE, || {
            let now = ticks()?;
            check!(now > before + 2, "round {round}: {now} ran, {before} before it");
            Ok(())
        })?;
        not_there(&scene, "/root/never")?;
        before = ticks()?;
        // Another version's maps, back, and other programs on the same ones.
        let other = match round % 3 {
            0 => "Environment=GUARD_TEST_PINS_VERSION=0\\n",
            1 => "",
            _ => "Environment=GUARD_TEST_BUILD=another\\n",
        };
        environment(&scene, other)?;
        if round % 2 == 0 {
            scene.vm.script(REPLACE)?;
        }
        scene.vm.script("systemctl restart guard-agent")?;
        connected(&scene)?;
        eventually(PATIENCE, || {
            let pinned = scene.vm.script("ls /sys/fs/bpf/guard")?.text();
            check!(pinned.lines().count() == 1, "several versions are in force: {pinned}");
            Ok(())
        })?;
    }
    eventually(PATIENCE, || {
        let now = ticks()?;
        check!(now > before + 2, "at the end {now} ran, {before} before");
        Ok(())
    })?;
    // What is killed cannot run after it was counted.
    scene.vm.script("systemctl kill -s KILL loop; sleep 1")?;
    not_there(&scene, "/root/never")?;
    let ran = ticks()?;
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    expect_status(&scene.verify("/root/bundle")?, 0)?;
    scene.vm.write(COUNT_ALLOWED.as_bytes(), "/root/count.py", 0o644)?;
    let allowed: u64 = scene
        .vm
        .run(&["/usr/bin/python3", "/root/count.py"])?
        .success()?
        .text()
        .parse()?;
    check!(ran > 0 && ran <= allowed, "{ran} ran, records allow {allowed}");
    Ok(())
}

/// The names, as the agent's source has them: `("name", Needs::Who),`.
fn crash_points() -> Vec<(&'static str, &'static str)> {
    include_str!("../../guard-agent/src/kernel/crash.rs")
        .lines()
        .filter_map(|line| {
            let (name, needs) = line.trim().strip_prefix("(\"")?.split_once("\", Needs::")?;
            Some((name, needs.strip_suffix("),")?))
        })
        .collect()
}

fn killed_at_each_point() -> Result<()> {
    let points: Vec<&str> = crash_points()
        .into_iter()
        .filter(|(name, needs)| {
            let told = ["request-on-disk", "enforcement-on-disk"];
            if full() {
                *needs != "OtherVersion"
            } else {
                told.contains(name)
            }
        })
        .map(|(name, _)| name)
        .collect();
    check!(points.len() >= if full() { 20 } else { 2 }, "{points:?}");
    let scene = Scene::new()?;
    for point in points {
        // A thread that a busy machine parked passes no point of tracing.
        let mut tries = 1..=5;
        while !killed_at(&scene, point).with_context(|| format!("killed at {point}"))? {
            check!(tries.next().is_some(), "no agent passed {point}");
        }
    }
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    expect_status(&scene.verify("/root/bundle")?, 0)
}

/// One exec is asked, approved and compared by an agent that dies at this point, unless it dies before; then by another. False
/// when the exec ended without passing the point.
fn killed_at(scene: &Scene, point: &str) -> Result<bool> {
    let file = format!("/root/ran-{point}");
    let line = format!("echo ran >>{file}");
    environment(scene, &format!("Restart=no\\nEnvironment=GUARD_TEST_CRASH={point}\\n"))?;
    scene.vm.script("systemctl restart guard-agent")?;
    connected(scene)?;
    let running = scene.start_labelled(CODER, &["/bin/sh", "-c", &line])?;
    let dead = || {
        scene
            .vm
            .run(&["systemctl", "is-active", "--quiet", "guard-agent"])
            .map(|said| said.status != 0)
    };
    let ended = || -> Result<bool> {
        let alive = scene
            .vm
            .run(&["pgrep", "-f", &format!("^/bin/sh -c {line}|^guard run.*{file}")])?;
        Ok(alive.status == 1)
    };
    let mut first = None;
    let mut over: Option<Instant> = None;
    let mut passed = false;
    eventually(PATIENCE, || {
        if first.is_none()
            && let Some(request) = scene
                .seen()
                .into_iter()
                .find(|request| request.pending() && request.what.contains(&file))
        {
            scene.approve(&request)?;
            first = Some(request);
        }
        if first.is_some() && over.is_none() && ended()? {
            over = Some(Instant::now());
        }
        // Some points come after its end.
        passed = dead()?;
        check!(
            passed || over.is_some_and(|over| over.elapsed() > Duration::from_secs(10)),
            "the agent lives"
        );
        Ok(())
    })?;
    if !passed {
        expect_status(&end(running)?, 0)?;
        scene.vm.run(&["rm", &file])?.success()?;
        return Ok(false);
    }
    std::thread::sleep(Duration::from_secs(1));
    let count = || -> Result<usize> {
        let there = scene.vm.run(&["cat", &file])?;
        Ok(there.text().lines().count())
    };
    let compared = matches!(point, "comparison-written" | "outcome-known") || point.starts_with("enforcement-");
    check!(compared || count()? == 0, "it ran, and nobody had compared it");
    environment(scene, "")?;
    scene
        .vm
        .script("systemctl reset-failed guard-agent; systemctl start guard-agent")?;
    connected(scene)?;
    // Asked again, or at its end.
    let mut again = false;
    eventually(PATIENCE, || {
        if !again
            && let Some(request) = scene.seen().into_iter().find(|request| {
                request.pending()
                    && request.what.contains(&file)
                    && first.as_ref().is_none_or(|first| first.id != request.id)
            })
        {
            scene.approve(&request)?;
            again = true;
        }
        check!(ended()?, "it neither ran nor was killed; asked again: {again}");
        Ok(())
    })?;
    let output = end(running)?;
    let (ran, killed) = (count()?, output.status != 0);
    check!(ran <= 1, "it ran {ran} times");
    check!((ran == 1) != killed, "ran {ran} times: {output}");
    check!(
        ran == 0 || again || compared,
        "it ran without an answer to the second question"
    );
    if let Some(first) = first {
        scene.follow(&first.id, "ended", |request| !request.pending())?;
    }
    Ok(true)
}
