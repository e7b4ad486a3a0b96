//! `guard run`: a command as a labelled workload.
//!
//! Two processes. This one stays outside the label, watches and tells; the other (`guard __enter`) asks the agent to
//! put it into a labelled cgroup and then becomes the command. Neither stands between the command and its terminal,
//! and nothing that the command waits for waits for this one.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use guard_evidence::text::{defuse, visible};
use guard_proto::control::{ControlReply, ControlRequest, RunEvent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{doctor, label};
use crate::args::{Enter, Run};
use crate::failure::Failure;
use crate::socket::{Agent, unexpected};
use crate::{card, output};

/// How long the agent may take to label the process that becomes the command.
const CONFIRM: Duration = Duration::from_secs(20);

/// What the watching thread tells.
enum Told {
    Event(RunEvent),
    /// The agent went away: what is held stays held.
    Away,
    Back,
}

pub(super) async fn run(args: Run) -> Result<ExitCode, Failure> {
    label::check(&args.label)?;
    let run = ulid::Ulid::new().to_string();
    // Before the command starts, so that nothing it does goes untold.
    let agent = watch(&run).map_err(|failure| failure.without_agent(|| doctor::cannot_enforce(Path::new("/"))))?;
    let (send, mut told) = mpsc::unbounded_channel();
    let run_id = run.clone();
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || follow(agent, &run_id, &send))?;

    // The command gets the terminal's signals itself; this process only must not die of them before it.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;

    let mut child = tokio::process::Command::new("/proc/self/exe")
        .arg0("guard")
        .args(["__enter", "--label", &args.label, "--run", &run, "--"])
        .args(&args.command)
        .spawn()
        .map_err(|e| Failure::unknown(format!("cannot start a process: {e}")))?;
    let pid = child.id();

    let mut waiting = BTreeSet::new();
    let status = loop {
        tokio::select! {
            status = child.wait() => break status?,
            Some(told) = told.recv() => tell(told, &mut waiting),
            _ = interrupt.recv() => {}
            _ = quit.recv() => {}
            _ = terminate.recv() => forward(pid, Signal::SIGTERM),
            _ = hangup.recv() => forward(pid, Signal::SIGHUP),
        }
    };
    // The command may end faster than the news of its last action arrives.
    // What could not be executed, or was killed, has a reason that somebody wants to read.
    let refused = status.code() == Some(126) || status.signal().is_some();
    let mut patience = Duration::from_millis(match (refused, waiting.is_empty()) {
        (true, _) => 2_000,
        (false, false) => 500,
        (false, true) => 50,
    });
    while let Ok(Some(last)) = timeout(patience, told.recv()).await {
        tell(last, &mut waiting);
        patience = Duration::from_millis(if waiting.is_empty() { 50 } else { 500 });
    }
    Ok(code_of(status))
}

fn forward(pid: Option<u32>, signal: Signal) {
    if let Some(pid) = pid.and_then(|pid| i32::try_from(pid).ok()) {
        // It may have ended in this moment; then there is nobody to tell.
        kill(Pid::from_raw(pid), signal).ok();
    }
}

fn code_of(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX))
}

/// A connection over which the agent tells about this run.
fn watch(run: &str) -> Result<Agent, Failure> {
    let mut agent = Agent::connect()?;
    match agent.ask(&ControlRequest::Watch { run: run.to_owned() })? {
        ControlReply::Event(RunEvent::Watching) => {}
        _ => return Err(unexpected()),
    }
    agent.wait_forever()?;
    Ok(agent)
}

/// Reads events until this process ends; connects again when the agent was away.
fn follow(mut agent: Agent, run: &str, send: &mpsc::UnboundedSender<Told>) {
    loop {
        while let Ok(Some(ControlReply::Event(event))) = agent.next() {
            if send.send(Told::Event(event)).is_err() {
                return;
            }
        }
        if send.send(Told::Away).is_err() {
            return;
        }
        agent = loop {
            std::thread::sleep(Duration::from_secs(1));
            if let Ok(agent) = watch(run) {
                break agent;
            }
        };
        if send.send(Told::Back).is_err() {
            return;
        }
    }
}

fn tell(told: Told, waiting: &mut BTreeSet<String>) {
    let event = match told {
        Told::Event(event) => event,
        Told::Away => return output::note("guard: the agent went away; what is held stays held until it is back"),
        Told::Back => return output::note("guard: the agent is back"),
    };
    if let Some(line) = words(&event, waiting) {
        output::note(&line);
    }
}

/// One line for an event, and which requests still wait.
fn words(event: &RunEvent, waiting: &mut BTreeSet<String>) -> Option<String> {
    // With several waiting, an answer says to which it belongs.
    let mut ended = |request: &str| {
        waiting.remove(request);
        if waiting.is_empty() {
            String::new()
        } else {
            format!("  (request {})", defuse(request))
        }
    };
    let because = |reason: &str| {
        if reason.is_empty() {
            String::new()
        } else {
            format!(": \"{}\"", defuse(reason))
        }
    };
    let who = |by: &[String]| by.iter().map(|name| visible(name)).collect::<Vec<_>>().join(", ");
    Some(match event {
        RunEvent::Watching => return None,
        RunEvent::Held {
            action,
            what,
            groups,
            request,
        } => {
            waiting.insert(request.clone());
            format!(
                "guard: held  {}  {}      asking {} (request {})",
                defuse(action),
                defuse(what),
                card::groups(groups),
                defuse(request)
            )
        }
        RunEvent::Approved {
            request,
            by,
            after_ms,
            reason,
        } => {
            let which = ended(request);
            format!(
                "guard: approved by {} after {}{}{which}",
                who(by),
                output::after(*after_ms),
                because(reason)
            )
        }
        RunEvent::Denied {
            request: None,
            what,
            reason,
            ..
        } => format!("guard: denied by policy  {}{}", defuse(what), because(reason)),
        RunEvent::Denied {
            request: Some(request),
            by,
            after_ms,
            reason,
            ..
        } => {
            let which = ended(request);
            let by = if by.is_empty() { "this host".to_owned() } else { who(by) };
            format!(
                "guard: denied by {by} after {}{}{which}",
                output::after(*after_ms),
                because(reason)
            )
        }
        RunEvent::TimedOut { request, after_ms } => {
            let which = ended(request);
            format!("guard: timed out after {}: denied{which}", output::after(*after_ms))
        }
        RunEvent::Withdrawn { request } => format!("guard: withdrawn{}", ended(request)),
        RunEvent::Killed { request, detail } => {
            let which = ended(request);
            format!("guard: killed before its first instruction: {}{which}", defuse(detail))
        }
    })
}

/// The process that becomes the command.
pub(crate) fn enter(args: &Enter) -> Result<ExitCode, Failure> {
    {
        let mut agent = Agent::connect()?;
        agent.within(
            CONFIRM,
            format!(
                "the agent did not confirm within {} s that the label {} covers the command; it was not started",
                CONFIRM.as_secs(),
                args.label
            ),
        )?;
        let enter = ControlRequest::Enter {
            label: args.label.clone(),
            run: args.run.clone(),
        };
        match agent.ask(&enter)? {
            ControlReply::Entered { .. } => {}
            _ => return Err(unexpected()),
        }
        // The socket closes here: the command starts with nothing of ours.
    }
    let Some((program, rest)) = args.command.split_first() else {
        return Err(Failure::usage("no command"));
    };
    let error = std::process::Command::new(program).args(rest).exec();
    // As a shell says it, and with a shell's exit status.
    output::note(&format!("guard: {}: {error}", visible(&program.to_string_lossy())));
    Ok(ExitCode::from(if error.kind() == io::ErrorKind::NotFound {
        127
    } else {
        126
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_in_words() {
        let mut waiting = BTreeSet::new();
        let held = |request: &str, groups: &[&str]| RunEvent::Held {
            action: "exec".to_owned(),
            what: "git push --force origin main".to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            request: request.to_owned(),
        };
        assert_eq!(
            words(&held("01J1", &["code-push"]), &mut waiting).unwrap(),
            "guard: held  exec  git push --force origin main      asking approvers of \"code-push\" (request 01J1)"
        );
        assert!(
            words(&held("01J2", &[]), &mut waiting)
                .unwrap()
                .ends_with("asking any approver (request 01J2)")
        );
        let denied = RunEvent::Denied {
            request: Some("01J1".to_owned()),
            what: String::new(),
            by: vec!["approver@example.org".to_owned()],
            after_ms: 41_000,
            reason: "open a pull request\u{1b}[2J instead".to_owned(),
        };
        assert_eq!(
            words(&denied, &mut waiting).unwrap(),
            "guard: denied by approver@example.org after 41 s: \"open a pull request⟨U+001B⟩[2J instead\"  (request 01J1)"
        );
        assert_eq!(waiting.len(), 1);
        let approved = RunEvent::Approved {
            request: "01J2".to_owned(),
            by: vec!["a".to_owned(), "b".to_owned()],
            after_ms: 900,
            reason: String::new(),
        };
        assert_eq!(
            words(&approved, &mut waiting).unwrap(),
            "guard: approved by a, b after 0.9 s"
        );
        assert!(waiting.is_empty());
        assert_eq!(words(&RunEvent::Watching, &mut waiting), None);
    }

    #[test]
    fn exit_statuses_are_those_of_a_shell() {
        assert_eq!(code_of(ExitStatus::from_raw(3 << 8)), ExitCode::from(3));
        assert_eq!(code_of(ExitStatus::from_raw(9)), ExitCode::from(137));
    }
}
