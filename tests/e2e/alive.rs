//! The agent never holds itself, or what asking depends on.

use anyhow::Result;
use guard_tests::scene::{Scene, end, eventually, expect_status};
use guard_tests::{Case, case, check};
use xtask::stage::PATIENCE;

pub(crate) fn cases() -> Vec<Case> {
    vec![case(
        "alive::everything_labelled",
        "with every cgroup labelled that the agent accepts, it goes on asking, logging and talking to the console, also after a restart",
        everything_labelled,
    )]
}

/// Labels all cgroups below the root and in system.slice, but for the one that the tests' own commands run in; prints
/// what became of each.
const LABEL_ALL: &str = r#"mkdir -p /sys/fs/cgroup/victim/below
cd /sys/fs/cgroup
for dir in */ system.slice/*/ user.slice/*/; do
  path=/${dir%/}
  case "$path" in */guard-vm-channel.service|*'*'*) continue ;; esac
  if said=$(guard label add all --cgroup "$path" 2>&1); then echo "accepted $path"; else echo "refused $path: $said"; fi
done"#;

fn everything_labelled() -> Result<()> {
    let scene = Scene::new()?;
    let output = scene.vm.script(LABEL_ALL)?.success()?.text();
    let refused = |path: &str| {
        output
            .lines()
            .find(|line| line.starts_with(&format!("refused {path}: ")))
    };
    for (path, words) in [
        ("/init.scope", "service manager"),
        ("/system.slice/systemd-journald.service", "log"),
        ("/system.slice/guard-console.service", "console"),
        ("/system.slice/guard-agent.service", "the agent itself"),
        ("/system.slice", "the agent itself"),
    ] {
        check!(
            refused(path).is_some_and(|line| line.contains(words)),
            "{path} was to be refused because of {words:?}:\n{output}"
        );
    }
    check!(output.lines().any(|line| line == "accepted /victim"), "{output}");

    still_alive(&scene, "first")?;
    scene.vm.script("systemctl restart guard-agent")?.success()?;
    still_alive(&scene, "second")
}

/// A question is asked and answered, the log takes lines, the agent says how it is.
fn still_alive(scene: &Scene, word: &str) -> Result<()> {
    let line = format!("echo $BASHPID >/sys/fs/cgroup/victim/below/cgroup.procs && exec /bin/echo {word}");
    let running = scene.vm.start_command(&["bash", "-c", &line])?;
    let request = scene.approve_next("all", &format!("/bin/echo {word}"))?;
    check!(request.label == "all", "{request:?}");
    let output = end(running)?;
    expect_status(&output, 0)?;
    check!(output.text().contains(word), "{output}");
    scene.vm.script(&format!("logger -t guard-alive {word}"))?.success()?;
    eventually(PATIENCE, || {
        let log = scene
            .vm
            .script("journalctl -t guard-alive --no-pager")?
            .success()?
            .text();
        check!(log.contains(word), "the log has only {log:?}");
        let log = scene
            .vm
            .script("journalctl -u guard-agent --no-pager")?
            .success()?
            .text();
        check!(
            log.contains(&format!("/bin/echo {word}")),
            "the agent's log lacks {word:?}"
        );
        Ok(())
    })?;
    let status = scene.vm.run(&["guard-agent", "status"])?.success()?.text();
    check!(status.contains("connected"), "{status}");
    Ok(())
}
