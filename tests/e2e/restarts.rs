//! Parts that go away and come back while something is held.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_status};
use guard_tests::{Case, case, check};
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
