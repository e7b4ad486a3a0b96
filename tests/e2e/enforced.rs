//! From when to when enforcement was on, as an auditor reads it, with somebody as root who takes it away.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_status, until_line};
use guard_tests::{Case, case, check, full};
use serde_json::Value;
use xtask::stage::PATIENCE;
use xtask::vm::Running;

use crate::away::{enforcement, now, order, times, worker};

pub(crate) fn cases() -> Vec<Case> {
    vec![case(
        "enforced::intervals",
        "restarts are no gap; programs that root removes, with an agent or without, are a gap with its times, an alarm, and in force again; \
         a record of it that is changed is named",
        intervals,
    )]
}

/// The agent runs, and has enforced anew since `before`, in seconds since 1970.
fn enforcing_again(scene: &Scene) -> Result<()> {
    eventually(PATIENCE, || {
        scene
            .vm
            .script("systemctl is-active guard-agent && test -e /sys/fs/bpf/guard/v*/links/guard_exec")?;
        let agent = scene.agent()?;
        check!(agent.console_state == "connected", "{agent:?}");
        Ok(())
    })
}

/// What ran before the programs were removed is held by those that came after them.
fn held_and_runs(scene: &Scene, before: &mut Running, word: &str) -> Result<()> {
    order(before, &format!("/bin/echo {word}"))?;
    scene.approve_next(CODER, word)?;
    until_line(before, &format!("0 after /bin/echo {word}")).map(drop)
}

fn intervals() -> Result<()> {
    let scene = Scene::new()?;
    // Stopped and started, killed and started by systemd: the programs stay.
    scene.vm.script("systemctl restart guard-agent")?;
    scene.vm.script("systemctl kill -s KILL guard-agent; sleep 0.5")?;
    enforcing_again(&scene)?;
    let mut before = worker(&scene, CODER)?;
    held_and_runs(&scene, &mut before, "still-here")?;

    // Under a living agent: one program, then, where there is time, everything. It sleeps meanwhile: removing programs takes long, and what it would
    // put in their place must not be removed too.
    let mut removed = Vec::new();
    let seen = if full() { 2 } else { 1 };
    for what in &["/sys/fs/bpf/guard/v*/links/guard_exec", "/sys/fs/bpf/guard"][..seen] {
        let begun = now(&scene)?;
        scene.vm.script(&format!(
            "pid=$(systemctl show -P MainPID guard-agent); kill -STOP $pid; rm -r {what}; kill -CONT $pid; \
             while kill -0 $pid 2>/dev/null; do sleep 0.1; done"
        ))?;
        let gone = now(&scene)?;
        enforcing_again(&scene)?;
        removed.push((begun, gone, now(&scene)?));
        held_and_runs(&scene, &mut before, &format!("after-{}", removed.len()))?;
    }
    // Without an agent: nobody saw it, and nobody claims that it was on.
    scene.vm.script("systemctl stop guard-agent; sleep 2")?;
    let begun = now(&scene)?;
    scene.vm.script("rm -r /sys/fs/bpf/guard; sleep 2")?;
    let gone = now(&scene)?;
    scene.vm.script("systemctl start guard-agent")?;
    enforcing_again(&scene)?;
    removed.push((begun, gone, now(&scene)?));
    held_and_runs(&scene, &mut before, "at-last")?;
    before.close_input()?;
    expect_status(&end(before)?, 0)?;

    let told = enforcement(&scene, "/root/bundle")?;
    let gaps = told["gaps"].as_array().context("no gaps")?;
    check!(gaps.len() == removed.len(), "removed at {removed:?}: {told:#}");
    for (gap, (begun, gone, again)) in gaps.iter().zip(&removed) {
        let (from, to) = times(gap)?;
        // It begins when they were last seen, not later than they went. An agent looks each second.
        check!(
            (begun - 20..=*gone).contains(&from) && (*gone..=*again).contains(&to),
            "removed from {begun} to {gone} and back by {again}, but the gap is {from} to {to}: {told:#}"
        );
    }
    let away = told["away"].as_array().context("no absences")?;
    check!(away.len() == 2, "restarted twice: {told:#}");
    let on = told["on"].as_array().context("nothing on")?;
    check!(
        on.len() == removed.len() + 1 && on[removed.len()]["to"].is_null(),
        "{told:#}"
    );
    let shown = scene.verify("/root/bundle")?.text();
    check!(
        shown.matches("NOT known to be enforced").count() == removed.len() && shown.contains("guard_exec"),
        "{shown}"
    );

    // Approvers hear of it without asking.
    let alarms = scene.guard(&scene.approver, &["alarms", "-o", "json"])?.success()?;
    let alarms: Value = serde_json::from_slice(&alarms.stdout)?;
    let off = alarms["items"].as_array().context("no alarms")?;
    check!(
        off.iter().filter(|alarm| alarm["kind"] == "enforcement-off").count() == seen,
        "{alarms}"
    );
    let table = scene.guard(&scene.approver, &["alarms"])?.success()?.text();
    check!(
        table.contains("enforcement-off") && table.contains("guard_exec"),
        "{table}"
    );

    // A record of it that somebody makes prettier.
    scene.vm.write(PRETTIER.as_bytes(), "/root/prettier.py", 0o644)?;
    for (kind, from, to) in [
        ("enforcement_off", "somebody removed", "nobody removed"),
        ("agent_away", "\"from\":\"20", "\"from\":\"19"),
        ("enforcing", "\"since\":\"20", "\"since\":\"19"),
    ] {
        scene.vm.script("rm -rf /root/copy && cp -a /root/bundle /root/copy")?;
        let victim = scene
            .vm
            .run(&["/usr/bin/python3", "/root/prettier.py", kind, from, to])?
            .success()?
            .text();
        let output = scene.verify("/root/copy")?;
        expect_status(&output, 1)?;
        let index = victim.trim().trim_start_matches('0').to_owned();
        let said = format!("{}{}", output.text(), String::from_utf8_lossy(&output.stderr));
        check!(
            said.contains(&index) && said.contains("signature"),
            "record {index} ({kind}) is not named: {said}"
        );
    }
    Ok(())
}

/// Changes a lifecycle record of a kind in the copy, and the manifest with it, as whoever holds the bundle can.
const PRETTIER: &str = r#"
import base64, hashlib, json, pathlib, sys
kind, old, new = sys.argv[1:]
copy = pathlib.Path("/root/copy")
for record in sorted((copy / "records").iterdir()):
    before = record.read_bytes()
    envelope = json.loads(before)
    payload = base64.b64decode(envelope["payload"])
    if b'"kind":"' + kind.encode() + b'"' in payload.replace(b'": "', b'":"') and old.encode() in payload:
        changed = payload.replace(old.encode(), new.encode(), 1)
        envelope["payload"] = base64.b64encode(changed).decode()
        after = before.replace(base64.b64encode(payload), base64.b64encode(changed))
        assert after != before
        record.write_bytes(after)
        manifest = copy / "MANIFEST.json"
        text = manifest.read_text()
        digest = hashlib.sha256(before).hexdigest()
        assert digest in text
        manifest.write_text(text.replace(digest, hashlib.sha256(after).hexdigest()))
        print(record.stem)
        break
else:
    sys.exit(f"no record of {kind} with {old}")
"#;
