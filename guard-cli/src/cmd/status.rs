//! `guard status`: the agent of this host, and the console.

use std::process::ExitCode;

use guard_evidence::text::{defuse, visible_fold};
use guard_proto::control::{AgentStatus, ControlReply, ControlRequest};
use guard_proto::rest::{Me, Status};

use crate::args::{Global, Output};
use crate::client::Client;
use crate::failure::{Failure, NO, UNKNOWN};
use crate::{output, profile, socket};

pub(super) async fn run(global: &Global) -> Result<ExitCode, Failure> {
    let agent: Result<AgentStatus, Failure> = match socket::ask(&ControlRequest::Status {}) {
        Ok(ControlReply::Status(status)) => Ok(*status),
        Ok(_) => Err(socket::unexpected()),
        Err(failure) => Err(failure),
    };
    let console = match profile::load(&global.profile)? {
        None => None,
        Some(credentials) => Some((credentials.url.clone(), console(&credentials).await)),
    };
    match global.output {
        Output::Json => output::json(
            &serde_json::json!({
                "agent": agent.as_ref().ok(),
                "agent_error": agent.as_ref().err().map(ToString::to_string),
                "console": console.as_ref().map(|(url, answer)| serde_json::json!({
                    "url": url,
                    "status": answer.as_ref().ok().map(|(status, _)| status),
                    "me": answer.as_ref().ok().map(|(_, me)| me),
                    "error": answer.as_ref().err().map(ToString::to_string),
                })),
            }),
            false,
        )?,
        Output::Table => {
            match &agent {
                Ok(status) => print_agent(status)?,
                Err(failure) => output::note(&failure.to_string()),
            }
            match &console {
                None => output::note(
                    "guard: not signed in to a console\n  → guard login --url https://CONSOLE:8443 --username NAME --ca ca.pem",
                ),
                Some((url, Ok((status, me)))) => print_console(url, status, me)?,
                Some((_, Err(failure))) => output::note(&failure.to_string()),
            }
        }
    }
    let enforcing = agent.as_ref().map(|status| status.enforcing);
    let unknown = match &console {
        Some((_, Err(_))) => true,
        Some((_, Ok(_))) => false,
        None => agent.is_err(),
    };
    Ok(match (enforcing, unknown) {
        (Ok(false), _) => ExitCode::from(NO),
        (_, true) => ExitCode::from(UNKNOWN),
        _ => ExitCode::SUCCESS,
    })
}

async fn console(credentials: &profile::Credentials) -> Result<(Status, Me), Failure> {
    let client = Client::with(credentials)?;
    Ok((client.get("/status", &[]).await?, client.get("/me", &[]).await?))
}

fn print_agent(status: &AgentStatus) -> Result<(), Failure> {
    let since = status
        .enforcing_since
        .as_deref()
        .map(|at| format!(" since {}", output::local(at)))
        .unwrap_or_default();
    let console = status.console.as_deref().map_or_else(|| "none".to_owned(), defuse);
    let mut rows = vec![
        (
            "agent",
            vec![format!(
                "{} on kernel {}",
                defuse(&status.version),
                visible_fold(&status.kernel, 80)
            )],
        ),
        (
            "enforcing",
            vec![if status.enforcing {
                format!("yes{since}")
            } else {
                "NO".to_owned()
            }],
        ),
        (
            "its console",
            vec![format!("{console} ({})", defuse(&status.console_state))],
        ),
        (
            "policy",
            vec![format!(
                "{} policies, digest {}",
                status.policies,
                visible_fold(&status.policy_digest, 64)
            )],
        ),
        ("held now", vec![status.held.to_string()]),
        (
            "since start",
            vec![format!(
                "{} asked, {} allowed, {} denied, {} events lost",
                status.asked, status.allowed, status.denied, status.lost_events
            )],
        ),
        (
            "evidence",
            vec![format!("{} records not yet at the console", status.unshipped_records)],
        ),
    ];
    if let Some(id) = &status.host_id {
        rows.insert(1, ("host", vec![defuse(id)]));
    }
    output::fields(&rows)
}

fn print_console(url: &str, status: &Status, me: &Me) -> Result<(), Failure> {
    let roles: Vec<&str> = me.roles.iter().map(|r| r.as_str()).collect();
    output::fields(&[
        ("console", vec![format!("{} {}", defuse(url), defuse(&status.version))]),
        (
            "signed in",
            vec![format!("{} ({})", defuse(&me.username), roles.join(", "))],
        ),
    ])
}
