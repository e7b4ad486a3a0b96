//! Changes of who may decide, from the person who makes them to the auditor.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, expect_problem, expect_status};
use guard_tests::{Case, case, check};
use serde_json::{Value, json};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "changes::seen_and_verified",
            "a change of the owner stands on the waiting request, in the terminal and in the log, and the decision is verified against it",
            seen_and_verified,
        ),
        case(
            "changes::only_those_who_may",
            "who may not change anything leaves no record; everybody signed in sees the changes",
            only_those_who_may,
        ),
    ]
}

fn changes(scene: &Scene, query: &str) -> Result<Vec<Value>> {
    let path = format!("/changes{query}");
    let page = scene
        .call(Some(&scene.approver), "GET", &path, None)?
        .success()?
        .json()?;
    page["items"].as_array().cloned().context("no items")
}

fn seen_and_verified() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "hello"])?;
    let request = scene.held(CODER, "echo hello")?;
    let other = scene.person("other", &["approver"], &[])?;
    // While it waits: the owner of its label becomes another one.
    let body = json!({"owner": "other", "reason": "handed over"});
    scene
        .call(Some(scene.admin()), "PUT", &format!("/labels/{CODER}"), Some(&body))?
        .success()?;
    let newest = changes(&scene, "?limit=1")?;
    check!(
        newest[0]["what"] == "the owner of coder was changed from owner to other" && newest[0]["why"] == "handed over",
        "{newest:?}"
    );
    let shown = scene
        .guard(&scene.approver, &["requests", "show", &request.id])?
        .success()?;
    let shown = shown.text();
    for words in [
        "changed lately",
        "the owner of coder was changed from owner to other",
        "the account other was made (approver)",
    ] {
        check!(shown.contains(words), "{words:?} is not in {shown}");
    }
    let listed = scene
        .guard(&scene.approver, &["changes", "--label", CODER])?
        .success()?
        .text();
    check!(
        listed.contains("from owner to other") && listed.contains("handed over"),
        "{listed}"
    );
    expect_problem(&scene.answer(&other, &request, "approve", "")?, 403, &["own"])?;
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)?;
    // Afterwards the approver becomes the owner: the decision was right when it was made.
    scene.set_owner(CODER, &scene.approver)?;
    scene.trust("/root/trust.json")?;
    guard_tests::scene::eventually(xtask::stage::PATIENCE, || {
        scene.vm.script("rm -rf /root/bundle")?;
        scene.export("/root/bundle")?;
        let output = scene.verify("/root/bundle")?;
        let text = output.text();
        check!(output.status == 0, "{output}");
        check!(text.contains("1 allowed by people"), "not shipped yet: {text}");
        Ok(())
    })?;
    // The same without the last change of the console: what is missing is missed.
    let index = changes(&scene, &format!("?label={CODER}&limit=1"))?[0]["index"]
        .as_u64()
        .context("no index")?;
    scene.vm.script(&format!(
        "set -e; cd /root/bundle; rm records/{index:09}.json proofs/{index:09}.proof"
    ))?;
    let output = scene.verify("/root/bundle")?;
    check!(output.status == 1, "{output}");
    Ok(())
}

fn only_those_who_may() -> Result<()> {
    let scene = Scene::new()?;
    let before = changes(&scene, "")?.len();
    let body = json!({"owner": null});
    let label = format!("/labels/{CODER}");
    for who in [&scene.approver, &scene.owner] {
        expect_problem(
            &scene.call(Some(who), "PUT", &label, Some(&body))?,
            403,
            &["administrator"],
        )?;
        expect_problem(&scene.call(Some(who), "DELETE", &label, None)?, 403, &["administrator"])?;
        expect_problem(&scene.call(Some(who), "POST", "/tokens", Some(&json!({})))?, 403, &[])?;
        scene.call(Some(who), "GET", "/alarms", None)?.success()?;
    }
    check!(changes(&scene, "")?.len() == before, "a refused change was recorded");
    for path in ["/changes", "/alarms"] {
        expect_problem(&scene.call(None, "GET", path, None)?, 401, &[])?;
    }
    let first = changes(&scene, "?limit=200")?;
    let first = first.last().context("nothing was recorded")?;
    check!(first["kind"] == "set_up_finished", "{first}");
    Ok(())
}
