//! What an approver reads was written by the workload.

use anyhow::Result;
use guard_tests::scene::{CODER, Scene, end, expect_status};
use guard_tests::{Case, case, check};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "show::control_characters_are_escaped",
            "control, escape, bidi and zero-width characters are shown as ⟨U+…⟩ in the terminal and in `what`",
            control_characters,
        ),
        case(
            "show::invalid_utf8_and_long_arguments",
            "bytes that are no text, empty and very long arguments are shown and approved as they are",
            odd_arguments,
        ),
        case(
            "show::a_container",
            "what a process of a podman container wants to run is asked with the container's id, image, name and own path, and \
             labelled while it runs; nothing that the container says becomes a fact",
            container,
        ),
    ]
}

fn control_characters() -> Result<()> {
    let scene = Scene::new()?;
    let evil = "a\u{1b}[31mred\u{202e}gpj.exe\u{200b}\r\n\u{9b}2J\u{7}end";
    let running = scene.start_labelled(CODER, &["/usr/bin/printf", "%s", evil])?;
    let request = scene.held(CODER, "printf")?;
    for text in [&request.what, &request.sentence] {
        check!(!text.chars().any(is_hostile), "{text:?}");
    }
    for shown in ["⟨U+001B⟩", "⟨U+202E⟩", "⟨U+200B⟩", "⟨U+000D⟩", "⟨U+000A⟩", "⟨U+009B⟩"] {
        check!(request.what.contains(shown), "{shown} is missing in {:?}", request.what);
    }
    for args in [vec!["requests", "show", request.id.as_str()], vec!["requests", "list"]] {
        let output = scene.guard(&scene.approver, &args)?.success()?;
        let text = String::from_utf8(output.stdout)?;
        check!(text.contains("⟨U+202E⟩"), "{args:?}: {text:?}");
        // Lines of its own are the only control characters that the command writes.
        check!(!text.chars().any(|c| c != '\n' && is_hostile(c)), "{args:?}: {text:?}");
        check!(
            !text
                .lines()
                .any(|line| line.starts_with("end") || line.contains("2J\u{7}")),
            "{args:?}: {text:?}"
        );
    }
    scene.approve(&request)?;
    let output = end(running)?;
    // The workload gets its own bytes; what guard itself says about it is escaped.
    check!(output.stdout == evil.as_bytes(), "{output:?}");
    let said = String::from_utf8(output.stderr)?;
    check!(!said.chars().any(|c| c != '\n' && is_hostile(c)), "{said:?}");
    Ok(())
}

fn is_hostile(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

fn odd_arguments() -> Result<()> {
    let scene = Scene::new()?;
    // Raw bytes do not pass the command channel: a shell makes them.
    let running = scene.script(CODER, "/usr/bin/printf '%s|' $'\\xff\\xfe' ''")?;
    let request = scene.approve_next(CODER, "printf")?;
    check!(request.outcome.as_deref() == Some("ran"), "{request:?}");
    let output = end(running)?;
    check!(output.stdout == b"\xff\xfe||", "{output:?}");

    let long = "y".repeat(100_000);
    let running = scene.start_labelled(CODER, &["/usr/bin/test", &long, "=", &long])?;
    let request = scene.held(CODER, "test")?;
    check!(request.what.len() < 8_192, "one line of {} bytes", request.what.len());
    scene.approve(&request)?;
    expect_status(&end(running)?, 0)
}

/// Starts a container from an image with nothing but busybox, and labels it; its shell waits.
const CONTAINER: &str = r#"
mkdir -p /root/box/bin
cp /bin/busybox /root/box/bin/
ln -s busybox /root/box/bin/sh
tar -C /root/box -cf /root/box.tar .
podman import -q /root/box.tar example.org/box:1 >/dev/null
mkfifo /root/go
podman run -d --name hostile --network none -v /root/go:/go example.org/box:1 \
    /bin/sh -c 'read line </go; exec /bin/busybox echo inside' >/root/id
pid=$(podman inspect -f '{{.State.Pid}}' hostile)
guard label add coder --cgroup "$(sed -n 's/^0:://p' /proc/$pid/cgroup)" >&2
cat /root/id
"#;

fn container() -> Result<()> {
    let scene = Scene::new()?;
    let id = scene.vm.sh(CONTAINER)?.success()?.text();
    let id = id.lines().next_back().unwrap_or_default();
    check!(id.len() == 64, "no container: {id:?}");
    scene.vm.sh("echo go >/root/go")?.success()?;
    let request = scene.held(CODER, "echo inside")?;
    let card = scene
        .guard(&scene.approver, &["requests", "show", &request.id])?
        .success()?
        .text();
    for wanted in [
        &format!("container: {id} (podman)"),
        "image: “example.org/box:1”, as whoever started the container says",
        "container name: “hostile”, as whoever started the container says",
        // A path of the container is no path of the host: no rule on paths takes it for one.
        "no path of this host",
        "path inside: /bin/busybox, as the workload sees it",
        "conmon",
    ] {
        check!(card.contains(wanted), "{wanted:?} is missing in {card}");
    }
    scene.approve(&request)?;
    let logs = scene
        .vm
        .sh("podman wait hostile; podman logs hostile")?
        .success()?
        .text();
    check!(logs.lines().eq(["0", "inside"]), "{logs:?}");
    Ok(())
}
