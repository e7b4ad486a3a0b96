//! `guard run` and the other commands that talk to the agent.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use guard_proto::control::{ControlReply, ControlRequest, Finding, FindingState, LabelledCgroup, RunEvent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{Done, agent, guard, run};

fn friendly(request: &ControlRequest) -> Vec<ControlReply> {
    match request {
        ControlRequest::Watch { .. } => vec![
            ControlReply::Event(RunEvent::Watching),
            ControlReply::Event(RunEvent::Held {
                action: "exec".to_owned(),
                what: "git push".to_owned(),
                groups: vec!["code-push".to_owned()],
                request: "01J1".to_owned(),
            }),
            ControlReply::Event(RunEvent::Approved {
                request: "01J1".to_owned(),
                by: vec!["bob".to_owned()],
                after_ms: 41_000,
                reason: "release".to_owned(),
            }),
        ],
        ControlRequest::Enter { .. } => vec![ControlReply::Entered {
            cgroup: "/x".to_owned(),
        }],
        _ => vec![ControlReply::Done],
    }
}

pub(crate) fn with_agent(home: &Path, socket: &Path, args: &[&str]) -> Done {
    run(guard(home, args).env("GUARD_SOCKET", socket))
}

#[test]
fn a_command_runs_and_its_status_is_the_status() {
    let home = tempfile::tempdir().unwrap();
    let (socket, seen) = agent::start(home.path(), friendly);
    let done = with_agent(
        home.path(),
        &socket,
        &[
            "run",
            "--label",
            "coder",
            "--",
            "sh",
            "-c",
            "echo out; sleep 0.3; exit 7",
        ],
    );
    let done = done.expect(
        7,
        &[
            "guard: held  exec  git push      asking approvers of \"code-push\" (request 01J1)",
            "guard: approved by bob after 41 s: \"release\"",
        ],
    );
    assert_eq!(done.out, "out\n", "standard output is the command's alone");
    let (watch, enter) = (seen.recv().unwrap(), seen.recv().unwrap());
    let (ControlRequest::Watch { run: watched }, ControlRequest::Enter { label, run: entered }) = (watch, enter) else {
        panic!()
    };
    assert_eq!((watched, label.as_str()), (entered, "coder"));

    let done = with_agent(
        home.path(),
        &socket,
        &["run", "--label", "coder", "sh", "-c", "kill -9 $$"],
    );
    assert_eq!(done.code, 137);
    with_agent(home.path(), &socket, &["run", "--label", "coder", "/no/such/program"])
        .expect(127, &["/no/such/program: No such file"]);
    with_agent(home.path(), &socket, &["run", "--label", "coder", "/etc/passwd"])
        .expect(126, &["/etc/passwd: Permission denied"]);
}

#[test]
fn nothing_of_guard_reaches_the_command() {
    let home = tempfile::tempdir().unwrap();
    let (socket, _seen) = agent::start(home.path(), friendly);
    let script = "for fd in /proc/self/fd/*; do readlink $fd; done; kill -PIPE $$";
    let done = with_agent(
        home.path(),
        &socket,
        &["run", "--label", "coder", "--", "bash", "-c", script],
    );
    assert!(
        !done.out.contains("socket:") && !done.out.contains("eventpoll"),
        "{}",
        done.out
    );
    assert_eq!(done.code, 128 + 13, "SIGPIPE has its default action");
}

#[test]
fn refusals_are_clear() {
    let home = tempfile::tempdir().unwrap();
    run(&mut guard(home.path(), &["run", "--label", "coder", "true"]))
        .expect(3, &["it is not running", "systemctl start guard-agent"]);
    run(&mut guard(home.path(), &["run", "--label", "Bad", "true"])).expect(2, &["cannot be a label"]);
    let (socket, _seen) = agent::start(home.path(), |_| {
        vec![ControlReply::Refused {
            error: "this process is labelled coder\u{1b}[2J already".to_owned(),
        }]
    });
    let done = with_agent(home.path(), &socket, &["run", "--label", "coder", "echo", "ran"]);
    let done = done.expect(1, &["labelled coder⟨U+001B⟩[2J already"]);
    assert_eq!(done.out, "");
    // Refused only when it would enter: the command does not run.
    let other = tempfile::tempdir().unwrap();
    let (socket, _seen) = agent::start(other.path(), |request| match request {
        ControlRequest::Enter { .. } => vec![ControlReply::Refused {
            error: "no more cgroups".to_owned(),
        }],
        other => friendly(other),
    });
    let done =
        with_agent(home.path(), &socket, &["run", "--label", "coder", "echo", "ran"]).expect(1, &["no more cgroups"]);
    assert_eq!(done.out, "");
}

#[test]
fn an_agent_that_never_confirms_the_label_is_not_waited_for_for_ever() {
    let home = tempfile::tempdir().unwrap();
    let (socket, _seen) = agent::start(home.path(), |request| match request {
        ControlRequest::Enter { .. } => Vec::new(),
        other => friendly(other),
    });
    let began = std::time::Instant::now();
    let done = with_agent(home.path(), &socket, &["run", "--label", "coder", "echo", "ran"]);
    let done = done.expect(
        3,
        &[
            "did not confirm within 20 s that the label coder covers the command",
            "it was not started",
        ],
    );
    assert_eq!(done.out, "");
    assert!(began.elapsed() >= Duration::from_secs(19), "{:?}", began.elapsed());
}

#[test]
fn signals_reach_the_command_and_not_the_watcher() {
    let home = tempfile::tempdir().unwrap();
    let (socket, _seen) = agent::start(home.path(), friendly);
    let script = "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.05; done";
    let mut child = guard(home.path(), &["run", "--label", "coder", "--", "sh", "-c", script])
        .env("GUARD_SOCKET", &socket)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut ready).unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap());
    // Ctrl-C of a terminal reaches both by itself; the watcher alone does not end of it.
    kill(pid, Signal::SIGINT).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none());
    kill(pid, Signal::SIGTERM).unwrap();
    let done: Done = child.wait_with_output().unwrap().into();
    done.expect(5, &["got it"]);
}

#[test]
fn an_agent_that_goes_away_does_not_stop_the_command() {
    let home = tempfile::tempdir().unwrap();
    let (socket, _seen) = agent::start(home.path(), |request| match request {
        // The connection of a watcher ends when its script panics.
        ControlRequest::Status {} => std::panic::panic_any("away"),
        other => friendly(other),
    });
    let mut child = guard(
        home.path(),
        &["run", "--label", "coder", "--", "sh", "-c", "sleep 1.5; exit 4"],
    )
    .env("GUARD_SOCKET", &socket)
    .spawn()
    .unwrap();
    std::thread::sleep(Duration::from_millis(300));
    std::fs::remove_file(&socket).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(4));
}

#[test]
fn labels_and_doctor() {
    let home = tempfile::tempdir().unwrap();
    let (socket, seen) = agent::start(home.path(), |request| match request {
        ControlRequest::LabelList {} => vec![ControlReply::Labels {
            items: vec![LabelledCgroup {
                label: "coder".to_owned(),
                cgroup: "/a\u{1b}b".to_owned(),
                source: "xattr".to_owned(),
                processes: 3,
            }],
        }],
        ControlRequest::Doctor {} => vec![ControlReply::Doctor {
            findings: vec![Finding {
                name: "BPF LSM".to_owned(),
                state: FindingState::Bad,
                text: "missing".to_owned(),
                remedy: Some("add  lsm=bpf".to_owned()),
            }],
        }],
        _ => vec![ControlReply::Done],
    });
    with_agent(home.path(), &socket, &["label", "list"]).expect(0, &["coder", "/a⟨U+001B⟩b", "xattr"]);
    with_agent(home.path(), &socket, &["label", "add", "coder", "--cgroup", "a/b"]).expect(0, &["labelled coder"]);
    assert!(
        seen.iter()
            .take(2)
            .any(|r| matches!(r, ControlRequest::LabelAdd { label, cgroup } if label == "coder" && cgroup == "a/b"))
    );
    with_agent(home.path(), &socket, &["label", "remove", "--cgroup", "a/b"]).expect(0, &[]);
    with_agent(home.path(), &socket, &["doctor"]).expect(1, &["BPF LSM", "missing", "→ add  lsm=bpf"]);
}
