//! Changes of files by labelled workloads, asked about and decided.

use anyhow::{Context as _, Result};
use guard_tests::policies::{self, POLICED};
use guard_tests::scene::{Scene, end, expect_error_says};
use guard_tests::{Case, case, check};
use xtask::stage::Request;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "files::nothing_is_configured",
            "as it is installed, a label that nobody configured is asked about changes of files outside the temporary directories",
            nothing_is_configured,
        ),
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

/// One directory more is free for the label.
const CONFIG: &str = "[[label]]\nname = \"policed\"\nfree = [\"/srv/free\"]\n";

fn scene() -> Result<Scene> {
    let scene = Scene::as_shipped()?;
    scene.vm.write(CONFIG.as_bytes(), "/etc/guard/agent.toml", 0o644)?;
    scene
        .vm
        .script(
            "mkdir -p /srv/policed /srv/free /srv/other /etc/never; echo old >/srv/other/file; \
             systemctl restart guard-agent",
        )
        .context("restarting the agent with free space")?;
    scene.agent_until(|agent| agent.console_state == "connected")?;
    scene.set_policy(policies::ASK_WRITES.as_bytes())?;
    Ok(scene)
}

fn nothing_is_configured() -> Result<()> {
    const LABEL: &str = "fresh";
    let scene = Scene::as_shipped()?;
    let missing = scene.vm.sh("test -e /etc/guard/agent.toml")?;
    check!(missing.status == 1, "there is a configuration: {missing}");
    let script = "echo 1 >/tmp/one; echo 2 >/var/tmp/two; echo 3 >/dev/shm/three; echo 4 >/root/four; echo 5 >/root/five; echo over";
    let there = || {
        scene
            .vm
            .sh("cat /tmp/one /var/tmp/two /dev/shm/three /root/four /root/five 2>/dev/null")
            .map(|output| output.text())
    };
    let running = scene.script(LABEL, script)?;
    let request = scene.held(LABEL, "create /root/four")?;
    check!(there()? == "1\n2\n3", "{:?}", there()?);
    scene.deny(&request, "not there")?;
    let request = scene.held(LABEL, "create /root/five")?;
    scene.approve(&request)?;
    let output = end(running)?;
    check!(output.text().contains("over"), "{output}");
    check!(there()? == "1\n2\n3\n5", "{:?}", there()?);
    check!(scene.request_count()? == 3, "others were asked too: {:?}", scene.seen());
    expect_error_says(&output, &["not there", "/root/four"])
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
    expect_error_says(&output, &["guard: denied", "/etc/never/file", "never-there"])?;
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
