//! What the policy decides alone.

use std::time::Instant;

use anyhow::{Context, Result};
use guard_tests::policies::{self, POLICED};
use guard_tests::scene::{CODER, Scene, end, expect_error_says, expect_problem, expect_status};
use guard_tests::{Case, case, check};
use xtask::stage::PATIENCE;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "policy::allowed_is_not_held",
            "what the policy permits runs unasked and leaves a record that names the rule",
            allowed,
        ),
        case(
            "policy::forbidden_is_not_asked",
            "what the policy forbids is denied at once, nobody is asked",
            forbidden,
        ),
        case(
            "policy::timeout_denies",
            "a request with the policy's time-out is denied by it: timed_out, EPERM",
            timeout,
        ),
        case(
            "policy::two_people",
            "a quorum of two needs two different people",
            quorum,
        ),
        case(
            "policy::malformed_keeps_the_old",
            "a malformed or ill-typed policy is an error with file and line, and the old one stays",
            malformed,
        ),
        case(
            "policy::forbid_beats_a_pending_approval",
            "a forbid that arrives while a request waits cannot be approved away",
            forbid_while_held,
        ),
    ]
}

fn allowed() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::ALLOW_ID.as_bytes())?;
    let output = end(scene.start_labelled(POLICED, &["/usr/bin/id", "-un"])?)?;
    check!(output.text() == "root" && output.status == 0, "{output}");
    check!(scene.request_count()? == 0, "somebody was asked: {:?}", scene.seen());
    let asked = scene.start_labelled(POLICED, &["/bin/echo", "asked"])?;
    scene.approve_next(POLICED, "asked")?;
    expect_status(&end(asked)?, 0)?;
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    let page = scene
        .call(
            Some(scene.admin()),
            "GET",
            "/evidence?kind=enforcement&label=policed",
            None,
        )?
        .success()?
        .json()?;
    let records = page["items"].as_array().cloned().unwrap_or_default();
    let alone = records
        .iter()
        .find(|record| record["request_id"].is_null())
        .context("no record of it")?;
    let digest = alone["digest"].as_str().context("no digest")?;
    let shown = scene
        .guard(scene.admin(), &["evidence", "show", digest, "-o", "json"])?
        .success()?;
    check!(
        shown.text().contains("id-is-harmless"),
        "the record does not name the rule: {shown}"
    );
    Ok(())
}

fn forbidden() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::FORBID_ID.as_bytes())?;
    let begun = Instant::now();
    let output = end(scene.start_labelled(POLICED, &["/usr/bin/id"])?)?;
    check!(output.status == 126 && output.stdout.is_empty(), "{output}");
    check!(begun.elapsed() < PATIENCE / 2, "it took {:?}", begun.elapsed());
    check!(scene.request_count()? == 0, "somebody was asked: {:?}", scene.seen());
    expect_error_says(&output, &["never-id"])
}

fn timeout() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::ASK_FIVE_SECONDS.as_bytes())?;
    let running = scene.start_labelled(POLICED, &["/bin/echo", "too late"])?;
    let request = scene.held(POLICED, "too late")?;
    let request = scene.follow(&request.id, "timed out", |request| !request.pending())?;
    check!(request.state == "timed_out", "{request:?}");
    let output = end(running)?;
    check!(output.status == 126 && output.stdout.is_empty(), "{output}");
    expect_error_says(&output, &["timed out"])?;
    let late = scene.answer(&scene.approver, &request, "approve", "")?;
    expect_problem(&late, 409, &[])
}

fn quorum() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::ASK_TWO.as_bytes())?;
    let second = scene.person("second", &["approver"], &[])?;
    let running = scene.start_labelled(POLICED, &["/bin/echo", "both"])?;
    let request = scene.held(POLICED, "both")?;
    scene.approve(&request)?;
    check!(scene.request(&request.id)?.pending(), "one approval was enough");
    let again = scene.answer(&scene.approver, &request, "approve", "")?;
    check!(
        matches!(again.status, 403 | 409),
        "the same person counted twice: {again}"
    );
    scene.answer(&second, &request, "approve", "")?.success()?;
    check!(end(running)?.text() == "both", "it did not run");
    let request = scene.request(&request.id)?;
    check!(
        request.decisions.len() == 2 && request.state == "approved",
        "{request:?}"
    );
    Ok(())
}

fn malformed() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::ALLOW_ID.as_bytes())?;
    let before = scene.agent()?.policy_digest;
    for (name, text, line) in [
        ("malformed", policies::MALFORMED, ":3"),
        ("ill-typed", policies::UNTYPED, ":4"),
    ] {
        scene.vm.write(text.as_bytes(), "/etc/guard/policy.cedar", 0o644)?;
        let check_run = scene
            .vm
            .run(&["guard", "policy", "validate", "/etc/guard/policy.cedar"])?;
        check!(check_run.status != 0, "{name}: {check_run}");
        expect_error_says(&check_run, &[&format!("/etc/guard/policy.cedar{line}")])?;
        // Reload may succeed as a command: what counts is the policy in force.
        scene
            .vm
            .sh("systemctl reload guard-agent; systemctl is-active guard-agent")?
            .success()?;
        check!(
            scene.agent()?.policy_digest == before,
            "{name}: the policy in force changed"
        );
    }
    let output = end(scene.start_labelled(POLICED, &["/usr/bin/id", "-un"])?)?;
    check!(output.text() == "root", "{output}");
    let log = scene.vm.script("journalctl -u guard-agent --no-pager | tail -50")?;
    check!(log.text().contains("policy.cedar"), "the log does not say: {log}");
    Ok(())
}

fn forbid_while_held() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::ASK.as_bytes())?;
    let running = scene.start_labelled(POLICED, &["/usr/bin/id"])?;
    let request = scene.held(POLICED, "id")?;
    scene.set_policy(policies::FORBID_ID.as_bytes())?;
    // The request may have ended by itself by now; an approval must not help it either way.
    let _answer = scene.answer(&scene.approver, &request, "approve", "")?;
    let output = end(running)?;
    check!(output.status == 126 && output.stdout.is_empty(), "{output}");

    // Another label is none of that policy's business.
    let other = scene.start_labelled(CODER, &["/usr/bin/id", "-un"])?;
    scene.approve_next(CODER, "id -un")?;
    expect_status(&end(other)?, 0)
}
