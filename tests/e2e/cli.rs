//! The command line as scripts use it: exit statuses, JSON, help.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, expect_error_says, expect_status};
use guard_tests::{Case, case, check};
use serde_json::Value;
use xtask::vm::Output;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "cli::requests",
            "requests list, show, approve and deny work end to end, and list -o json has items with id and state",
            requests,
        ),
        case(
            "cli::exit_statuses",
            "0 good, 1 the answer is no, 2 wrong usage, 3 cannot tell",
            exit_statuses,
        ),
        case(
            "cli::doctor_and_status",
            "doctor and status say that this host can hold and does, for people and as JSON",
            doctor_and_status,
        ),
        case("cli::help", "every command explains itself", help),
        case(
            "cli::no_colour_and_pipes",
            "output into a pipe has no escape sequences, and a closed pipe is no error",
            pipes,
        ),
        case(
            "cli::watch",
            "requests watch prints a request when it comes and when it changes",
            watch,
        ),
        case(
            "cli::saved_sign_in_is_private",
            "the saved sign-in is readable by its user only, and logout ends it",
            sign_in_file,
        ),
    ]
}

fn json(output: &Output) -> Result<Value> {
    serde_json::from_slice(&output.stdout).with_context(|| format!("not JSON: {output}"))
}

fn requests() -> Result<()> {
    let scene = Scene::new()?;
    let guard = |args: &[&str]| scene.guard(&scene.approver, args);
    let empty = guard(&["requests", "list", "-o", "json"])?.success()?;
    check!(json(&empty)?["items"].as_array().is_some_and(Vec::is_empty), "{empty}");

    let running = scene.start_labelled(CODER, &["/bin/echo", "by hand"])?;
    let request = scene.held(CODER, "by hand")?;
    let list = json(&guard(&["requests", "list", "-o", "json"])?.success()?)?;
    check!(
        list["items"][0]["id"] == request.id.as_str() && list["items"][0]["state"] == "pending",
        "{list}"
    );
    let table = guard(&["requests", "list"])?.success()?;
    for word in ["ID", "LABEL", "WHAT", CODER, "by hand"] {
        check!(table.text().contains(word), "no {word} in {table}");
    }
    let card = guard(&["requests", "show", &request.id])?.success()?;
    for word in ["/bin/echo", "by hand", CODER, "/root"] {
        check!(card.text().contains(word), "no {word} in {card}");
    }
    let full = json(&guard(&["requests", "show", &request.id, "-o", "json"])?.success()?)?;
    check!(full["statement"]["predicate"]["action"]["argv"].is_array(), "{full}");

    let approved = guard(&["requests", "approve", &request.id, "--reason", "fine"])?.success()?;
    check!(approved.text().contains("approved"), "{approved}");
    check!(end(running)?.text() == "by hand", "it did not run");
    let running = scene.start_labelled(CODER, &["/bin/echo", "never"])?;
    let request = scene.held(CODER, "never")?;
    guard(&["requests", "deny", &request.id, "--reason", "no need"])?.success()?;
    expect_status(&end(running)?, 126)?;
    let states = json(&guard(&["requests", "list", "-o", "json"])?.success()?)?;
    let states: Vec<&str> = states["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|item| item["state"].as_str())
        .collect();
    check!(states == ["denied", "approved"], "{states:?}");
    let only = json(&guard(&["requests", "list", "--state", "denied", "-o", "json"])?.success()?)?;
    check!(only["items"].as_array().is_some_and(|items| items.len() == 1), "{only}");
    let again = scene.request(&request.id)?;
    check!(again.decisions[0].channel == "cli", "{again:?}");
    Ok(())
}

fn exit_statuses() -> Result<()> {
    let scene = Scene::new()?;
    scene.guard_login(&scene.owner)?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "x"])?;
    let request = scene.held(CODER, "echo x")?;
    let own = scene.guard(&scene.owner, &["requests", "approve", &request.id])?;
    expect_status(&own, 1).context("the owner's approval")?;
    expect_error_says(&own, &["own"])?;
    expect_status(&scene.guard(&scene.approver, &["requests", "approve", &request.id])?, 0)?;
    expect_status(&end(running)?, 0)?;
    let twice = scene.guard(&scene.approver, &["requests", "deny", &request.id, "--reason", "late"])?;
    expect_status(&twice, 1).context("an answer to an ended request")?;
    expect_status(
        &scene.guard(&scene.approver, &["requests", "show", "01ARZ3NDEKTSV4RRFFQ69G5FAV"])?,
        1,
    )?;
    for wrong in [
        vec!["requests", "approve"],
        vec!["no-such-command"],
        vec!["requests", "list", "--state", "odd"],
        vec!["run", "--label", "x"],
    ] {
        expect_status(&scene.guard(&scene.approver, &wrong)?, 2).with_context(|| format!("{wrong:?}"))?;
    }
    let stranger = scene.vm.start_with(
        &["guard", "requests", "list"],
        &[("HOME", "/run"), ("XDG_CONFIG_HOME", "/run/nobody")],
        None,
    )?;
    let stranger = end(stranger)?;
    expect_status(&stranger, 3).context("not signed in")?;
    expect_error_says(&stranger, &["guard login"])?;
    scene.vm.script("systemctl stop guard-console")?;
    let away = scene.guard(&scene.approver, &["requests", "list"])?;
    expect_status(&away, 3).context("the console is away")?;
    expect_error_says(&away, &["localhost:8443"])?;
    scene.vm.script("systemctl stop guard-agent")?;
    let no_agent = scene
        .vm
        .run(&["guard", "run", "--label", "coder", "--", "/bin/echo", "must not run"])?;
    expect_status(&no_agent, 3).context("the agent is away")?;
    check!(no_agent.stdout.is_empty(), "it ran without label: {no_agent}");
    expect_error_says(&no_agent, &["guard-agent"])
}

fn doctor_and_status() -> Result<()> {
    let scene = Scene::new()?;
    let doctor = scene.vm.run(&["guard", "doctor"])?;
    expect_status(&doctor, 0)?;
    let says = |output: &Output, word: &str| output.text().to_lowercase().replace('-', " ").contains(word);
    for word in ["6.12", "bpf lsm", "cgroup", "ptrace"] {
        check!(says(&doctor, word), "no {word:?} in {doctor}");
    }
    let findings = json(&scene.vm.run(&["guard", "doctor", "-o", "json"])?)?;
    check!(
        findings["findings"]
            .as_array()
            .or_else(|| findings["items"].as_array())
            .is_some_and(|all| all.len() >= 3),
        "{findings}"
    );
    let agent = scene.agent()?;
    check!(
        agent.enforcing && agent.console_state == "connected" && agent.lost_events == 0,
        "{agent:?}"
    );
    check!(agent.kernel.starts_with("6.12"), "{agent:?}");
    scene.vm.run(&["guard", "status"])?.success()?;
    // Without the agent, doctor still looks at the host and says what is missing.
    scene.vm.script("systemctl stop guard-agent")?;
    let doctor = scene.vm.run(&["guard", "doctor"])?;
    check!(doctor.status != 2 && says(&doctor, "bpf lsm"), "{doctor}");
    // Who is signed in nowhere and has no agent cannot tell anything; an approver's own machine needs no agent.
    let status = scene.vm.run(&["guard", "--as", "nobody", "status"])?;
    expect_status(&status, 3)?;
    expect_error_says(&status, &["guard-agent"])
}

fn help() -> Result<()> {
    let scene = Scene::new()?;
    let commands: [&[&str]; 16] = [
        &[],
        &["requests"],
        &["requests", "list"],
        &["requests", "show"],
        &["requests", "watch"],
        &["requests", "approve"],
        &["requests", "deny"],
        &["run"],
        &["label", "list"],
        &["evidence", "list"],
        &["evidence", "export"],
        &["evidence", "verify"],
        &["doctor"],
        &["status"],
        &["tokens", "create"],
        &["login"],
    ];
    for command in commands {
        let mut argv = vec!["guard"];
        argv.extend(command);
        argv.push("--help");
        let output = scene.vm.run(&argv)?;
        check!(
            output.status == 0 && output.text().contains("Usage:"),
            "{argv:?}: {output}"
        );
    }
    for program in ["guard", "guard-agent", "guard-console"] {
        let version = scene.vm.run(&[program, "--version"])?.success()?;
        check!(version.text().contains(env!("CARGO_PKG_VERSION")), "{version}");
        scene.vm.run(&[program, "--help"])?.success()?;
    }
    Ok(())
}

fn pipes() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "x"])?;
    let request = scene.held(CODER, "echo x")?;
    for args in [
        vec!["requests", "list"],
        vec!["requests", "show", request.id.as_str()],
        vec!["doctor"],
        vec!["status"],
    ] {
        let output = scene.guard(&scene.approver, &args)?;
        check!(
            !output.stdout.contains(&0x1b) && !output.stderr.contains(&0x1b),
            "{args:?}: {output:?}"
        );
    }
    let closed = scene.vm.sh(
        "set -o pipefail; guard --help | head -c 1 >/dev/null; echo ${PIPESTATUS[0]}; guard doctor | true; echo done",
    )?;
    check!(
        !String::from_utf8_lossy(&closed.stderr).contains("panicked"),
        "{closed}"
    );
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)
}

fn watch() -> Result<()> {
    let scene = Scene::new()?;
    let mut watching = scene.vm.start_command(&["guard", "requests", "watch"])?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "watched"])?;
    let request = scene.held(CODER, "watched")?;
    guard_tests::scene::until_line(&mut watching, "watched")?;
    scene.approve(&request)?;
    guard_tests::scene::until_line(&mut watching, "approved")?;
    watching.kill()?;
    expect_status(&end(running)?, 0)
}

fn sign_in_file() -> Result<()> {
    let scene = Scene::new()?;
    scene.guard_login(&scene.approver)?;
    let open = scene
        .vm
        .script("find /root/.config -type f -perm /077; find /root/.config -type f | wc -l")?;
    check!(
        open.text().trim() != "0" && !open.text().contains('/'),
        "files that others can read: {open}"
    );
    scene.guard(&scene.approver, &["logout"])?.success()?;
    let after = scene.guard(&scene.approver, &["requests", "list"])?;
    expect_status(&after, 3)?;
    Ok(())
}
