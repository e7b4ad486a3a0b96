//! `guard label`: labelled cgroups of this host, and who owns a label.

use std::process::ExitCode;

use guard_evidence::text::{defuse, visible};
use guard_proto::control::{ControlReply, ControlRequest, LabelledCgroup};
use guard_proto::limits::is_label;
use guard_proto::rest::{Label as ConsoleLabel, LabelBody};
use reqwest::Method;

use crate::args::{Global, Label, Output};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::{output, profile, socket};

const MANY: usize = 10_000;

pub(super) async fn run(global: &Global, command: Label) -> Result<ExitCode, Failure> {
    match command {
        Label::List => list(global).await,
        Label::Add { label, cgroup } => {
            check(&label)?;
            local(&ControlRequest::LabelAdd {
                label: label.clone(),
                cgroup: cgroup.clone(),
            })?;
            output::line(&format!("{} is labelled {label}", visible(&cgroup)))?;
            Ok(ExitCode::SUCCESS)
        }
        Label::Remove { cgroup } => {
            local(&ControlRequest::LabelRemove { cgroup: cgroup.clone() })?;
            output::line(&format!("{} has no label of its own any more", visible(&cgroup)))?;
            Ok(ExitCode::SUCCESS)
        }
        Label::SetOwner {
            label,
            owner,
            no_owner: _,
            description,
            reason,
        } => set_owner(global, &label, owner, description, reason).await,
    }
}

/// Refuses what no label can be, before anybody is asked.
pub(super) fn check(label: &str) -> Result<(), Failure> {
    if is_label(label) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "`{}` cannot be a label: 1 to 63 characters of a-z, 0-9, `.`, `_`, `-`, with a letter or digit at both ends",
        visible(label)
    )))
}

fn local(request: &ControlRequest) -> Result<(), Failure> {
    match socket::ask(request)? {
        ControlReply::Done => Ok(()),
        _ => Err(socket::unexpected()),
    }
}

async fn list(global: &Global) -> Result<ExitCode, Failure> {
    let here: Result<Vec<LabelledCgroup>, Failure> = match socket::ask(&ControlRequest::LabelList {}) {
        Ok(ControlReply::Labels { items }) => Ok(items),
        Ok(_) => Err(socket::unexpected()),
        Err(failure) => Err(failure),
    };
    let console: Option<Result<Vec<ConsoleLabel>, Failure>> = match profile::load(&global.profile)? {
        None => None,
        Some(credentials) => Some(async { Client::with(&credentials)?.pages("/labels", &[], MANY).await }.await),
    };
    if global.output == Output::Json {
        output::json(
            &serde_json::json!({
                "host": here.as_ref().ok(),
                "items": console.as_ref().and_then(|c| c.as_ref().ok()),
            }),
            false,
        )?;
    } else {
        if let Ok(items) = &here {
            let rows: Vec<Vec<String>> = items
                .iter()
                .map(|l| {
                    vec![
                        visible(&l.label),
                        visible(&l.cgroup),
                        visible(&l.source),
                        l.processes.to_string(),
                    ]
                })
                .collect();
            output::line("On this host:")?;
            output::table(&["LABEL", "CGROUP", "SOURCE", "PROCESSES"], &rows, 1)?;
        }
        if let Some(Ok(items)) = &console {
            let rows: Vec<Vec<String>> = items.iter().map(console_row).collect();
            output::line("In the console:")?;
            output::table(&["LABEL", "OWNER", "HOSTS", "WAITING", "DESCRIPTION"], &rows, 4)?;
        }
    }
    // What could not be asked is said; it is a failure only if nothing could.
    let told = here.is_ok() || matches!(console, Some(Ok(_)));
    let failures = [here.err(), console.and_then(Result::err)];
    for failure in failures.iter().flatten() {
        output::note(&failure.to_string());
    }
    Ok(if told {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(crate::failure::UNKNOWN)
    })
}

fn console_row(label: &ConsoleLabel) -> Vec<String> {
    vec![
        visible(&label.name),
        label.owner.as_deref().map_or_else(|| "none".to_owned(), visible),
        label.hosts.iter().map(|h| visible(h)).collect::<Vec<_>>().join(","),
        label.pending.to_string(),
        visible(&label.description),
    ]
}

async fn set_owner(
    global: &Global,
    label: &str,
    owner: Option<String>,
    description: Option<String>,
    reason: String,
) -> Result<ExitCode, Failure> {
    check(label)?;
    let client = Client::signed_in(&global.profile)?;
    let description = match description {
        Some(description) => description,
        // A description that is not spoken of stays.
        None => {
            let labels: Vec<ConsoleLabel> = client.pages("/labels", &[], MANY).await?;
            labels
                .into_iter()
                .find(|l| l.name == label)
                .map(|l| l.description)
                .unwrap_or_default()
        }
    };
    let path = format!("/labels/{}", segment(label));
    let body = LabelBody {
        owner,
        description,
        reason,
    };
    let after: ConsoleLabel = client.send_json(Method::PUT, &path, &body).await?;
    match global.output {
        Output::Json => output::json(&after, false)?,
        Output::Table => output::line(&match &after.owner {
            Some(owner) => format!(
                "{label} is owned by {}, who cannot approve what it asks for",
                defuse(owner)
            ),
            None => format!("{label} has no owner"),
        })?,
    }
    Ok(ExitCode::SUCCESS)
}
