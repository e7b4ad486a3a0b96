//! The evidence of what happened, and what a verifier says when somebody has been at it.

use anyhow::{Context, Result};
use guard_tests::policies::{self, POLICED};
use guard_tests::scene::{CODER, Scene, end, expect_status};
use guard_tests::{Case, case, check};
use xtask::stage::Request;
use xtask::vm::Output;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "evidence::whole_story",
            "approved, denied, withdrawn, allowed and restarted: the exported bundle verifies, exit 0",
            whole_story,
        ),
        case(
            "evidence::tampered",
            "a record that is changed, cut short, removed or replaced is named with the reason; exit 1 or 3",
            tampered,
        ),
        case(
            "evidence::keys_from_outside",
            "without trusted keys from outside the bundle the answer is 3, with foreign ones 1",
            keys,
        ),
        case(
            "evidence::links",
            "request, decision and enforcement of one exec are linked by digest and signed",
            links,
        ),
        case(
            "evidence::damaged_spool",
            "an agent whose spool was torn or damaged says so, starts, and records the loss",
            damaged_spool,
        ),
        case(
            "evidence::rest_bytes",
            "the console gives the exact envelope whose digest it names",
            rest_bytes,
        ),
    ]
}

fn story(scene: &Scene) -> Result<Request> {
    let running = scene.start_labelled(CODER, &["/bin/echo", "approved"])?;
    let approved = scene.approve_next(CODER, "approved")?;
    expect_status(&end(running)?, 0)?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "denied"])?;
    let denied = scene.held(CODER, "denied")?;
    scene.deny(&denied, "no")?;
    scene.follow(&denied.id, "denied", Request::settled)?;
    end(running)?;
    Ok(approved)
}

/// Everything that this host has made has reached the console.
fn shipped(scene: &Scene) -> Result<()> {
    scene.agent_until(|agent| agent.unshipped_records == 0)
}

fn whole_story() -> Result<()> {
    let scene = Scene::new()?;
    scene.set_policy(policies::ALLOW_ID.as_bytes())?;
    story(&scene)?;
    expect_status(&end(scene.start_labelled(POLICED, &["/usr/bin/id"])?)?, 0)?;
    let running = scene.start_labelled(CODER, &["/bin/sleep", "1000"])?;
    let held = scene.held(CODER, "sleep")?;
    let pid = held.statement["predicate"]["workload"]["pid"]
        .as_u64()
        .context("no pid")?;
    scene.vm.script(&format!("kill -9 {pid}"))?;
    scene.follow(&held.id, "withdrawn", |request| !request.pending())?;
    end(running)?;
    scene
        .vm
        .script("systemctl restart guard-console && systemctl restart guard-agent")?;
    shipped(&scene)?;
    story(&scene)?;
    shipped(&scene)?;
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    let output = scene.verify("/root/bundle")?;
    expect_status(&output, 0)?;
    for word in ["signatures", "decisions"] {
        check!(output.text().contains(word), "no {word} in {output}");
    }
    let json = scene.vm.run(&[
        "guard",
        "evidence",
        "verify",
        "/root/bundle",
        "--trust",
        "/root/trust.json",
        "-o",
        "json",
    ])?;
    serde_json::from_slice::<serde_json::Value>(&json.stdout).with_context(|| format!("not JSON: {json}"))?;
    let events = scene.vm.run(&["/bin/cat", "/root/bundle/ocsf.ndjson"])?.success()?;
    ocsf(&events.stdout)
}

/// The packaged schema accepts the events of what really happened. The check itself is tested beside the mapping.
fn ocsf(events: &[u8]) -> Result<()> {
    check!(events.ends_with(b"\n"), "no events");
    let python =
        std::env::var_os("GUARD_PYTHON").context("GUARD_PYTHON names no interpreter: `cargo xtask test` sets it")?;
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), events)?;
    let out = std::process::Command::new(python)
        .args(["-c", include_str!("../../guard-evidence/tests/ocsf.py")])
        .arg(file.path())
        .output()?;
    check!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    Ok(())
}

/// What somebody does to a copy of the bundle, as Python with `records`: the paths of the envelopes, sorted.
const TAMPER: &str = r#"
import base64, json, os, pathlib, sys
bundle, what = pathlib.Path(sys.argv[1]), sys.argv[2]
# Whatever file layout a bundle has: envelopes are the files that hold a DSSE object.
records = sorted(p for p in bundle.rglob("*") if p.is_file() and b'"payloadType"' in p.read_bytes()[:4096])
assert records, "no envelopes in the bundle: " + str(sorted(bundle.rglob("*")))
victim = records[len(records) // 2]
data = victim.read_bytes()
if what == "flip":
    at = len(data) // 2
    victim.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1:])
elif what == "payload":
    e = json.loads(data)
    p = base64.b64decode(e["payload"]).replace(b'"', b' "', 1)
    e["payload"] = base64.b64encode(p).decode()
    victim.write_bytes(json.dumps(e, separators=(",", ":")).encode())
elif what == "truncate":
    victim.write_bytes(data[:len(data) // 2])
elif what == "empty":
    victim.write_bytes(b"")
elif what == "remove":
    victim.unlink()
elif what == "swap":
    other = records[len(records) // 2 - 1]
    victim.write_bytes(other.read_bytes()); other.write_bytes(data)
elif what == "noise":
    victim.write_bytes(os.urandom(500))
print(victim.relative_to(bundle))
"#;

fn tampered() -> Result<()> {
    let scene = Scene::new()?;
    story(&scene)?;
    shipped(&scene)?;
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    expect_status(&scene.verify("/root/bundle")?, 0)?;
    scene.vm.write(TAMPER.as_bytes(), "/root/tamper.py", 0o644)?;
    for what in ["flip", "payload", "truncate", "empty", "remove", "swap", "noise"] {
        scene.vm.script("rm -rf /root/copy && cp -a /root/bundle /root/copy")?;
        let victim = scene
            .vm
            .run(&["/usr/bin/python3", "/root/tamper.py", "/root/copy", what])?
            .success()?
            .text();
        let output = scene.verify("/root/copy")?;
        let expected: &[i32] = if what == "remove" { &[1, 3] } else { &[1] };
        check!(expected.contains(&output.status), "{what} of {victim}: {output}");
        let said = said(&output);
        check!(names(&said, &victim), "{what} of {victim} is not named: {output}");
    }
    // Files that are no records count as well.
    for (what, line) in [
        (
            "a truncated bundle",
            "cd /root/copy && tar cf /root/cut.tar . && truncate -s -30000 /root/cut.tar",
        ),
        ("an empty bundle", "mkdir -p /root/cut.tar"),
        ("no bundle", "true"),
    ] {
        scene
            .vm
            .script("rm -rf /root/copy /root/cut.tar && cp -a /root/bundle /root/copy")?;
        scene.vm.script(line)?;
        let output = scene.verify("/root/cut.tar")?;
        check!(
            matches!(output.status, 1..=3) && !said(&output).contains("panicked"),
            "{what}: {output}"
        );
    }
    Ok(())
}

fn said(output: &Output) -> String {
    format!("{}\n{}", output.text(), String::from_utf8_lossy(&output.stderr))
}

/// By the file's name or by the part of it that says which record it is.
fn names(said: &str, victim: &str) -> bool {
    let stem = victim.rsplit('/').next().unwrap_or(victim);
    let stem = stem.split('.').next().unwrap_or(stem);
    let number = stem.trim_start_matches('0');
    said.contains(stem)
        || stem.get(..12).is_some_and(|start| said.contains(start))
        || (!number.is_empty() && said.contains(number))
}

fn keys() -> Result<()> {
    let scene = Scene::new()?;
    story(&scene)?;
    shipped(&scene)?;
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    expect_status(&scene.verify("/root/bundle")?, 0)?;
    let none = scene.vm.run(&["guard", "evidence", "verify", "/root/bundle"])?;
    expect_status(&none, 3)?;
    check!(said(&none).contains("trust"), "{none}");
    scene.vm.script("sed 's/\\([A-Za-z0-9+\\/]\\{20\\}\\)/AAAAAAAAAAAAAAAAAAAA/' /root/trust.json >/root/odd.json; echo '{}' >/root/empty.json")?;
    for file in [
        "/root/odd.json",
        "/root/empty.json",
        "/root/not-there.json",
        "/dev/null",
    ] {
        let output = scene
            .vm
            .run(&["guard", "evidence", "verify", "/root/bundle", "--trust", file])?;
        check!(matches!(output.status, 1..=3), "{file}: {output}");
        check!(
            said(&output).contains(file) || output.status != 2,
            "{file} is not named: {output}"
        );
    }
    Ok(())
}

fn links() -> Result<()> {
    let scene = Scene::new()?;
    let request = story(&scene)?;
    shipped(&scene)?;
    let path = format!("/evidence?request={}", request.id);
    let page: guard_proto::rest::Page<guard_proto::rest::RecordView> =
        serde_json::from_slice(&scene.call(Some(scene.admin()), "GET", &path, None)?.success()?.body)?;
    let mut kinds: Vec<&str> = page.items.iter().map(|record| record.kind.as_str()).collect();
    kinds.sort_unstable();
    check!(kinds == ["decision", "enforcement", "request"], "{kinds:?}");
    let mut found = std::collections::HashMap::new();
    for record in &page.items {
        let shown = scene
            .guard(scene.admin(), &["evidence", "show", &record.digest, "-o", "json"])?
            .success()?;
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
        let statement = if shown["predicate"].is_null() {
            shown["statement"].clone()
        } else {
            shown
        };
        found.insert(record.kind.clone(), statement["predicate"].clone());
    }
    let (asked, decided, enforced) = (&found["request"], &found["decision"], &found["enforcement"]);
    check!(asked["request_id"] == request.id.as_str(), "{asked}");
    check!(
        decided["request_digest"] == request.digest.as_str() && decided["verdict"] == "allow",
        "{decided}"
    );
    check!(
        enforced["request_digest"] == request.digest.as_str() && enforced["effect"]["kind"] == "ran",
        "{enforced}"
    );
    check!(
        enforced["decision_digest"]
            .as_str()
            .is_some_and(|digest| digest.len() == 64),
        "{enforced}"
    );
    let sequence = |record: &serde_json::Value| record["header"]["sequence"].as_u64().unwrap_or(0);
    check!(
        sequence(asked) < sequence(decided) && sequence(decided) < sequence(enforced),
        "{asked} {decided} {enforced}"
    );
    Ok(())
}

fn damaged_spool() -> Result<()> {
    let scene = Scene::new()?;
    story(&scene)?;
    // The console is away, so that the spool keeps what it has.
    scene.vm.script("systemctl stop guard-console")?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "kept in the spool"])?;
    scene.agent_until(|agent| agent.held == 1)?;
    scene.vm.script(
        "set -e; systemctl kill -s KILL guard-agent; systemctl stop guard-agent; \
         f=$(find /var/lib/guard-agent -name '*.seg' -size +0 | sort | tail -1); test -n \"$f\"; truncate -s -7 \"$f\"; \
         systemctl start guard-console; systemctl start guard-agent",
    )?;
    let request = scene.held(CODER, "kept in the spool")?;
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)?;
    shipped(&scene)?;
    let page = scene
        .call(Some(scene.admin()), "GET", "/evidence?kind=lifecycle&limit=100", None)?
        .success()?;
    let text = String::from_utf8_lossy(&page.body).to_lowercase();
    check!(
        text.contains("recovered") || text.contains("torn") || text.contains("cut"),
        "no record of the loss: {text}"
    );
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    let output = scene.verify("/root/bundle")?;
    check!(matches!(output.status, 0 | 3), "{output}");
    Ok(())
}

fn rest_bytes() -> Result<()> {
    let scene = Scene::new()?;
    let request = story(&scene)?;
    shipped(&scene)?;
    let page: guard_proto::rest::Page<guard_proto::rest::RecordView> = serde_json::from_slice(
        &scene
            .call(
                Some(scene.admin()),
                "GET",
                &format!("/evidence?request={}", request.id),
                None,
            )?
            .success()?
            .body,
    )?;
    for record in page.items {
        let envelope = scene
            .call(
                Some(scene.admin()),
                "GET",
                &format!("/evidence/{}", record.digest),
                None,
            )?
            .success()?;
        scene.vm.write(&envelope.body, "/root/envelope", 0o644)?;
        let sum = scene.vm.script("sha256sum /root/envelope")?.text();
        check!(sum.starts_with(&record.digest), "{sum} is not {}", record.digest);
    }
    let missing = scene.call(
        Some(scene.admin()),
        "GET",
        &format!("/evidence/{}", "0".repeat(64)),
        None,
    )?;
    guard_tests::scene::expect_problem(&missing, 404, &[])
}
