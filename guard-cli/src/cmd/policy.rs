//! `guard policy`: checking policy files with the agent, which has the schema.

use std::process::ExitCode;

use guard_evidence::text::visible;
use guard_proto::control::{ControlReply, ControlRequest};

use crate::args::{Global, Output, Policy};
use crate::failure::Failure;
use crate::{output, socket};

pub(super) fn run(global: &Global, command: &Policy) -> Result<ExitCode, Failure> {
    let Policy::Validate { file } = command;
    let text = std::fs::read_to_string(file).map_err(|e| Failure::usage(format!("{}: {e}", file.display())))?;
    // The agent is sent the text only and calls it `policy`.
    let named = |failure: Failure| failure.naming("policy:", &format!("{}:", visible(&file.to_string_lossy())));
    match socket::ask(&ControlRequest::PolicyValidate { text }).map_err(named)? {
        ControlReply::Done => {}
        _ => return Err(socket::unexpected()),
    }
    match global.output {
        Output::Json => output::json(&serde_json::json!({ "file": file, "valid": true }), false)?,
        Output::Table => output::line(&format!("{} is valid", file.display()))?,
    }
    Ok(ExitCode::SUCCESS)
}
