//! `guard-agent status` and `rotate-key`: what is asked of the running agent over its socket.
//!
//! Owns the printed form. It is given the socket's path. It must never need more than the socket.

use std::io::{BufRead as _, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use guard_proto::control::{AgentStatus, ControlReply, ControlRequest};

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    Text,
    Json,
}

/// Asks and prints.
///
/// # Errors
/// One message with the next step.
pub fn print(socket: &Path, format: Format, out: &mut dyn Write) -> Result<(), String> {
    let ControlReply::Status(status) = ask(socket, &ControlRequest::Status {})? else {
        return Err(NOT_AN_ANSWER.to_owned());
    };
    let written = match format {
        Format::Json => serde_json::to_writer_pretty(&mut *out, &status)
            .map_err(std::io::Error::other)
            .and_then(|()| writeln!(out)),
        Format::Text => text(&status, out),
    };
    written.map_err(|e| format!("cannot write: {e}"))
}

/// Has the agent replace the evidence key, and says which one follows.
///
/// # Errors
/// One message with the next step.
pub fn rotate_key(socket: &Path, out: &mut dyn Write) -> Result<(), String> {
    match ask(socket, &ControlRequest::RotateKey {})? {
        ControlReply::NextKey { key } => writeln!(
            out,
            "key {key} is to follow\n  → it signs as soon as the console holds the record that names it: guard evidence list"
        )
        .map_err(|e| format!("cannot write: {e}")),
        _ => Err(NOT_AN_ANSWER.to_owned()),
    }
}

const NOT_AN_ANSWER: &str = "the agent's answer is another one\n  → is it of another version?";

fn ask(socket: &Path, request: &ControlRequest) -> Result<ControlReply, String> {
    let no_agent = |e: std::io::Error| {
        format!(
            "{}: no agent answers: {e}\n  → start it: sudo systemctl start guard-agent",
            socket.display()
        )
    };
    let mut stream = UnixStream::connect(socket).map_err(no_agent)?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .map_err(no_agent)?;
    let mut line = serde_json::to_vec(request).map_err(|e| e.to_string())?;
    line.push(b'\n');
    stream.write_all(&line).map_err(no_agent)?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).map_err(no_agent)?;
    match serde_json::from_str(&answer) {
        Ok(ControlReply::Refused { error }) => Err(error),
        Ok(reply) => Ok(reply),
        Err(_) => Err(NOT_AN_ANSWER.to_owned()),
    }
}

fn text(status: &AgentStatus, out: &mut dyn Write) -> std::io::Result<()> {
    let console = status.console.as_deref().unwrap_or("none");
    let since = status.enforcing_since.as_deref().unwrap_or("unknown");
    writeln!(out, "agent      {} on kernel {}", status.version, status.kernel)?;
    writeln!(
        out,
        "enforcing  {} since {since}",
        if status.enforcing { "yes," } else { "no," }
    )?;
    writeln!(out, "console    {console}: {}", status.console_state)?;
    let digest = status.policy_digest.get(..12).unwrap_or_default();
    writeln!(out, "policy     {} rules ({digest})", status.policies)?;
    writeln!(
        out,
        "actions    {} held, {} asked, {} allowed, {} denied, {} events lost",
        status.held, status.asked, status.allowed, status.denied, status.lost_events
    )?;
    writeln!(
        out,
        "evidence   {} records without a receipt yet",
        status.unshipped_records
    )?;
    if let Some(refused) = &status.log_refused {
        let words = guard_evidence::text::visible_fold(refused, 600);
        writeln!(out, "LOG        THE CONSOLE'S LOG WAS REFUSED at {words}")?;
    }
    let Some(kernel) = &status.kernel_side else {
        return writeln!(out, "kernel     its tables cannot be read");
    };
    for side in kernel.labels.iter().filter(|side| side.tasks + side.held > 0) {
        writeln!(
            out,
            "label      {}: {} of {} tasks; {} held ({} looping, {} parked)",
            side.label, side.tasks, side.tasks_limit, side.held, side.looping, side.parked
        )?;
        if !side.allowed.is_empty() {
            writeln!(out, "           {} is allowed {}", side.label, side.allowed.join(", "))?;
        }
    }
    for (label, count, why) in kernel.refusals() {
        writeln!(out, "refused    {}: {count} {why}", label.unwrap_or("all"))?;
    }
    if kernel.allowed_while_away > 0 {
        writeln!(
            out,
            "let through {} actions while the agent was away",
            kernel.allowed_while_away
        )?;
    }
    Ok(())
}
