//! `guard policy apply`: a policy into force on this host.

use std::path::Path;
use std::process::ExitCode;

use guard_proto::control::{ControlReply, ControlRequest};
use serde_json::json;

use crate::args::{Global, Output};
use crate::failure::Failure;
use crate::{output, socket};

pub(super) fn run(global: &Global, file: &Path) -> Result<ExitCode, Failure> {
    let text = super::read(file)?;
    let policy = super::parse(&text, &super::name(file))?;
    match socket::ask(&ControlRequest::PolicyApply { text })? {
        ControlReply::Done => {}
        _ => return Err(socket::unexpected()),
    }
    match global.output {
        Output::Json => output::json(
            &json!({ "digest": policy.digest, "rules": policy.count, "applied": "host" }),
            false,
        )?,
        Output::Table => output::line(&format!(
            "in force on this host: {}, {}",
            super::rules(policy.count),
            policy.digest.get(..16).unwrap_or_default()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}
