//! Which processes are a workload.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_error_says, expect_status};
use guard_tests::{Case, case, check};
use xtask::stage::PATIENCE;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "labels::children_inherit",
            "children keep the label, in a session of their own and when orphaned",
            children_inherit,
        ),
        case(
            "labels::extended_attribute",
            "trusted.guard.label on a cgroup makes a workload of it",
            extended_attribute,
        ),
        case(
            "labels::user_attribute_is_ignored",
            "user.guard.label on a cgroup labels nothing",
            user_attribute,
        ),
        case(
            "labels::outermost_wins",
            "of nested labels the outermost counts",
            outermost_wins,
        ),
        case(
            "labels::path_pattern",
            "a cgroup path pattern of the configuration makes a workload",
            path_pattern,
        ),
        case(
            "labels::run_is_refused_inside",
            "guard run is refused to labelled processes",
            run_refused_inside,
        ),
        case(
            "labels::bad_names_are_refused",
            "a name that is no label is refused with the rule, wrong usage 2",
            bad_names,
        ),
        case(
            "labels::agent_socket_is_closed_inside",
            "a labelled process gets nothing from the agent's socket",
            socket_closed,
        ),
    ]
}

fn children_inherit() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.script(
        CODER,
        "( ( exec /usr/bin/setsid /bin/echo orphan >/root/orphan ) & ); exit 0",
    )?;
    expect_status(&end(running)?, 0)?;
    scene.approve_next(CODER, "setsid")?;
    // setsid executes the program itself: a second exec, asked as well, of a process that init has adopted.
    let request = scene.approve_next(CODER, "/bin/echo orphan")?;
    check!(request.label == CODER, "{request:?}");
    eventually(PATIENCE, || scene.vm.script("grep -q orphan /root/orphan").map(drop))
}

/// A shell line that makes a cgroup, sets an attribute on it, and runs a program in it.
fn in_cgroup(path: &str, program: &str) -> String {
    format!("echo $BASHPID >/sys/fs/cgroup/{path}/cgroup.procs && exec {program}")
}

fn set_attribute(scene: &Scene, cgroup: &str, name: &str, value: &str) -> Result<()> {
    let line = "import os, sys; os.setxattr(sys.argv[1], sys.argv[2], sys.argv[3].encode())";
    let dir = format!("/sys/fs/cgroup/{cgroup}");
    scene
        .vm
        .run(&["/usr/bin/python3", "-c", line, &dir, name, value])?
        .success()
        .map(drop)
}

fn labelled(scene: &Scene, cgroup: &str) -> Result<Option<(String, String)>> {
    let list: serde_json::Value = serde_json::from_slice(
        &scene
            .vm
            .run(&["guard", "label", "list", "-o", "json"])?
            .success()?
            .stdout,
    )?;
    let items = list["host"].as_array().context("no host part")?;
    let found = items.iter().find(|item| {
        item["cgroup"]
            .as_str()
            .is_some_and(|path| path.trim_matches('/') == cgroup)
    });
    let text = |item: &serde_json::Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    Ok(found.map(|item| (text(item, "label"), text(item, "source"))))
}

fn wait_labelled(scene: &Scene, cgroup: &str, label: &str, source: &str) -> Result<()> {
    eventually(PATIENCE, || {
        let found = labelled(scene, cgroup)?;
        check!(
            found == Some((label.into(), source.into())),
            "guard label list has {found:?} for {cgroup}"
        );
        Ok(())
    })
}

fn extended_attribute() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.script("mkdir -p /sys/fs/cgroup/by-attribute/below")?;
    set_attribute(&scene, "by-attribute", "trusted.guard.label", "attributed")?;
    wait_labelled(&scene, "by-attribute", "attributed", "xattr")?;
    for cgroup in ["by-attribute", "by-attribute/below"] {
        let running = scene
            .vm
            .start_command(&["bash", "-c", &in_cgroup(cgroup, &format!("/bin/echo {cgroup}"))])?;
        let request = scene.approve_next("attributed", &format!("/bin/echo {cgroup}"))?;
        check!(request.label == "attributed", "{request:?}");
        check!(end(running)?.text() == cgroup, "it did not run");
    }
    Ok(())
}

fn user_attribute() -> Result<()> {
    let scene = Scene::new()?;
    scene
        .vm
        .script("mkdir -p /sys/fs/cgroup/by-user /sys/fs/cgroup/marker")?;
    set_attribute(&scene, "by-user", "user.guard.label", "usurped")?;
    // A real one set afterwards shows when the agent has looked.
    set_attribute(&scene, "marker", "trusted.guard.label", "marker")?;
    wait_labelled(&scene, "marker", "marker", "xattr")?;
    check!(labelled(&scene, "by-user")?.is_none(), "user.guard.label counted");
    let running = scene
        .vm
        .start_command(&["bash", "-c", &in_cgroup("by-user", "/bin/echo free")])?;
    check!(end(running)?.text() == "free", "it did not run at once");
    check!(scene.request_count()? == 0, "{:?}", scene.seen());
    Ok(())
}

fn outermost_wins() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.script("mkdir -p /sys/fs/cgroup/outer/inner")?;
    set_attribute(&scene, "outer/inner", "trusted.guard.label", "inner")?;
    wait_labelled(&scene, "outer/inner", "inner", "xattr")?;
    set_attribute(&scene, "outer", "trusted.guard.label", "outer")?;
    wait_labelled(&scene, "outer", "outer", "xattr")?;
    let running = scene
        .vm
        .start_command(&["bash", "-c", &in_cgroup("outer/inner", "/bin/echo nested")])?;
    let request = scene.wait_for(PATIENCE, "the nested request", |request| {
        request.what.contains("nested")
    })?;
    check!(request.label == "outer", "label {}", request.label);
    scene.approve(&request)?;
    check!(end(running)?.text() == "nested", "it did not run");
    Ok(())
}

fn path_pattern() -> Result<()> {
    let scene = Scene::new()?;
    scene.vm.script(
        "set -e; cat >>/etc/guard/agent.toml <<'END'\n\n[[label]]\nname = \"patterned\"\ncgroup = \"/pattern-*\"\nEND\n\
         systemctl restart guard-agent; mkdir /sys/fs/cgroup/pattern-7",
    )?;
    wait_labelled(&scene, "pattern-7", "patterned", "pattern")?;
    let running = scene
        .vm
        .start_command(&["bash", "-c", &in_cgroup("pattern-7", "/bin/echo matched")])?;
    scene.approve_next("patterned", "matched")?;
    check!(end(running)?.text() == "matched", "it did not run");
    Ok(())
}

fn run_refused_inside() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.script(CODER, "guard run --label other -- /bin/true; echo status $?")?;
    scene.approve_next(CODER, "guard run")?;
    let output = end(running)?;
    check!(
        output.text() != "status 0" && output.text().starts_with("status "),
        "{output}"
    );
    expect_error_says(&output, &["label"])?;
    check!(
        scene.seen().iter().all(|request| request.label == CODER),
        "{:?}",
        scene.seen()
    );
    Ok(())
}

fn bad_names() -> Result<()> {
    let scene = Scene::new()?;
    for bad in ["", "Coder", "a b", "../x", "-", "é", &"a".repeat(64), "a\u{202e}b"] {
        let output = scene
            .vm
            .run(&["guard", "run", &format!("--label={bad}"), "--", "/bin/echo", "ran"])?;
        check!(output.status == 2 && output.stdout.is_empty(), "{bad:?}: {output}");
        check!(
            !String::from_utf8_lossy(&output.stderr).contains('\u{202e}'),
            "raw control character: {output}"
        );
    }
    Ok(())
}

fn socket_closed() -> Result<()> {
    let scene = Scene::new()?;
    let program = "import socket\ns = socket.socket(socket.AF_UNIX)\ntry:\n    s.connect('/run/guard/agent.sock')\n    \
        s.sendall(b'{\"do\":\"status\"}\\n')\n    data = s.recv(65536)\nexcept OSError as e:\n    data = str(e).encode()\n\
        print('got', data.decode())\n";
    scene.vm.write(program.as_bytes(), "/root/ask.py", 0o644)?;
    let outside = scene.vm.run(&["/usr/bin/python3", "/root/ask.py"])?.success()?;
    check!(outside.text().contains("\"version\""), "{outside}");
    let running = scene.start_labelled(CODER, &["/usr/bin/python3", "/root/ask.py"])?;
    scene.approve_next(CODER, "ask.py")?;
    let output = end(running)?;
    check!(
        output.text().starts_with("got") && !output.text().contains("\"version\""),
        "{output}"
    );
    Ok(())
}
