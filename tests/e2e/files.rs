//! Changes of files by labelled workloads, asked about and decided.

use anyhow::{Context as _, Result};
use guard_tests::policies::{self, POLICED};
use guard_tests::scene::{Scene, end, expect_error_says};
use guard_tests::{Case, case, check};
use xtask::stage::Request;

/// Of a preview, whose programs take long to load: in full runs.
pub(crate) fn cases() -> Vec<Case> {
    if !guard_tests::full() {
        return Vec::new();
    }
    vec![
        case(
            "files::an_overwrite_waits_until_people_agree",
            "a shell under a label waits in open until people approve, then writes; denied, nothing is changed",
            overwrite,
        ),
        case(
            "files::policy_and_free_space_decide_without_people",
            "what the policy permits and what is free space is written unasked, what is forbidden is denied; each answer of the policy is a record",
            by_policy,
        ),
    ]
}

/// The label is asked about its changes of files, outside one directory.
const CONFIG: &str = "\n[[label]]\nname = \"policed\"\nwrites = \"ask\"\nfree = [\"/srv/free\"]\n";

fn scene() -> Result<Scene> {
    let scene = Scene::new()?;
    scene.vm.write(CONFIG.as_bytes(), "/root/label", 0o644)?;
    scene
        .vm
        .script(
            "mkdir -p /srv/policed /srv/free /srv/other /etc/never; echo old >/srv/other/file; \
             cat /root/label >>/etc/guard/agent.toml; systemctl restart guard-agent",
        )
        .context("restarting the agent with a label that is asked")?;
    scene.agent_until(|agent| agent.console_state == "connected")?;
    scene.set_policy(policies::ASK_WRITES.as_bytes())?;
    Ok(scene)
}

fn overwrite() -> Result<()> {
    let scene = scene()?;
    let argv = ["/bin/bash", "-c", "echo new >/srv/other/file"];
    let content = || scene.vm.script("cat /srv/other/file").map(|output| output.text());
    let running = scene.start_labelled(POLICED, &argv)?;
    let request = scene.held(POLICED, "overwrite /srv/other/file")?;
    check!(request.action == "write", "{request:?}");
    check!(content()? == "old", "it wrote before anybody agreed");
    let shown = scene
        .guard(scene.admin(), &["requests", "show", &request.id])?
        .success()?;
    for words in [
        "policed wants to overwrite",
        "/srv/other/file",
        "What is in the file now is lost",
    ] {
        check!(shown.text().contains(words), "{words:?} is not on the card: {shown}");
    }
    scene.approve(&request)?;
    let output = end(running)?;
    check!(output.status == 0 && content()? == "new", "{output}");
    let request = scene.follow(&request.id, "ended", Request::settled)?;
    check!(request.outcome.as_deref() == Some("ran"), "{request:?}");

    let running = scene.start_labelled(POLICED, &["/bin/bash", "-c", "rm /srv/other/file"])?;
    let request = scene.held(POLICED, "unlink /srv/other/file")?;
    scene.deny(&request, "keep it")?;
    let output = end(running)?;
    check!(output.status != 0 && content()? == "new", "{output}");
    expect_error_says(&output, &["denied", "keep it"])
}

fn by_policy() -> Result<()> {
    let scene = scene()?;
    // The label has its number since its first workload: free space is told to the kernel soon after.
    let output = end(scene.start_labelled(POLICED, &["/bin/bash", "-c", "echo own >/srv/policed/file"])?)?;
    check!(output.status == 0, "{output}");
    std::thread::sleep(std::time::Duration::from_secs(12));
    let free = "mkdir /srv/free/deep && echo x >/srv/free/deep/a && mv /srv/free/deep/a /srv/free/b && rm /srv/free/b";
    let output = end(scene.start_labelled(POLICED, &["/bin/bash", "-c", free])?)?;
    check!(output.status == 0, "{output}");
    let output = end(scene.start_labelled(POLICED, &["/bin/bash", "-c", "echo x >/etc/never/file"])?)?;
    check!(output.status != 0, "{output}");
    expect_error_says(&output, &["/etc/never/file", "nobody writes there"])?;
    check!(scene.request_count()? == 0, "somebody was asked: {:?}", scene.seen());
    check!(
        scene.vm.script("ls /etc/never")?.text().is_empty(),
        "it was written although it is forbidden"
    );
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    let page = scene
        .call(
            Some(scene.admin()),
            "GET",
            "/evidence?kind=enforcement&label=policed",
            None,
        )?
        .success()?
        .json()?
        .to_string();
    check!(page.contains("`create /srv/policed/file` by policy"), "{page}");
    Ok(())
}
