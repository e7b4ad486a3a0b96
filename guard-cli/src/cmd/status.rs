//! `guard status`: the agent of this host, and the console.

use std::process::ExitCode;

use guard_evidence::text::{defuse, visible_fold};
use guard_proto::control::{AgentStatus, ControlReply, ControlRequest, KernelSide, LabelSide};
use guard_proto::rest::{ChannelView, Me, OutputView, Page, Role, Status};

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
                    "status": answer.as_ref().ok().map(|seen| &seen.status),
                    "me": answer.as_ref().ok().map(|seen| &seen.me),
                    "channels": answer.as_ref().ok().map(|seen| &seen.channels),
                    "outputs": answer.as_ref().ok().map(|seen| &seen.outputs),
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
                Some((url, Ok(seen))) => print_console(url, seen)?,
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

/// What a console says of itself and to whoever is signed in.
struct Seen {
    status: Status,
    me: Me,
    /// These for those who may see them.
    channels: Vec<ChannelView>,
    outputs: Vec<OutputView>,
}

async fn console(credentials: &profile::Credentials) -> Result<Seen, Failure> {
    let client = Client::with(credentials)?;
    let me: Me = client.get("/me", &[]).await?;
    let (mut channels, mut outputs) = (Vec::new(), Vec::new());
    if me.roles.iter().any(|role| *role != Role::Approver) {
        channels = client.get::<Page<ChannelView>>("/channels", &[]).await?.items;
        outputs = client.get::<Page<OutputView>>("/outputs", &[]).await?.items;
    }
    Ok(Seen {
        status: client.get("/status", &[]).await?,
        me,
        channels,
        outputs,
    })
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
    if let Some(refused) = &status.log_refused {
        rows.push(("LOG REFUSED", vec![visible_fold(refused, 600)]));
    }
    if let Some(id) = &status.host_id {
        rows.insert(1, ("host", vec![defuse(id)]));
    }
    if let Some(kernel) = &status.kernel_side {
        rows.extend(kernel_rows(kernel));
    }
    output::fields(&rows)
}

/// What is in use and what was refused; nothing that is zero.
fn kernel_rows(kernel: &KernelSide) -> Vec<(&'static str, Vec<String>)> {
    let in_use = |side: &LabelSide| {
        let mut text = format!("{}: {} of {} tasks", defuse(&side.label), side.tasks, side.tasks_limit);
        for (count, words) in [
            (side.held, format!("{} of {} held", side.held, side.held_limit)),
            (side.looping, format!("{} looping", side.looping)),
            (side.parked, format!("{} parked", side.parked)),
        ] {
            if count > 0 {
                text.push_str(", ");
                text.push_str(&words);
            }
        }
        if !side.allowed.is_empty() {
            text.push_str("; allowed ");
            text.push_str(&defuse(&side.allowed.join(", ")));
        }
        text
    };
    let busy = kernel.labels.iter().filter(|side| side.tasks + side.held > 0);
    let refused = kernel.refusals().into_iter().map(|(label, count, why)| {
        let whose = label.map_or_else(|| "all labels".to_owned(), defuse);
        format!("{whose}: {count} {}", defuse(&why))
    });
    let mut notes = Vec::new();
    for (count, words) in [
        (kernel.ring_full, "events did not fit the ring; they are told again"),
        (
            kernel.cgroups_full,
            "cgroups below labelled ones found no room in the kernel's table",
        ),
        (
            kernel.allowed_while_away,
            "actions went on while the agent was away, as its configuration says",
        ),
    ] {
        if count > 0 {
            notes.push(format!("{count} {words}"));
        }
    }
    [
        ("labels", busy.map(in_use).collect::<Vec<_>>()),
        ("refused", refused.collect()),
        ("kernel side", notes),
    ]
    .into_iter()
    .filter(|(_, values)| !values.is_empty())
    .collect()
}

fn output_words(output: &OutputView) -> String {
    let mut words = format!(
        "{} ({}): {} events out, {} records behind",
        visible_fold(&output.name, 64),
        visible_fold(&output.kind, 16),
        output.delivered,
        output.behind
    );
    if output.refused > 0 {
        words.push_str(&format!(", {} events refused for good", output.refused));
    }
    if let (Some(why), Some(since)) = (&output.failing, &output.failing_since) {
        words.push_str(&format!("; FAILING since {}: {}", output::local(since), defuse(why)));
    }
    words
}

fn print_console(url: &str, seen: &Seen) -> Result<(), Failure> {
    let roles: Vec<&str> = seen.me.roles.iter().map(|r| r.as_str()).collect();
    let mut rows = vec![
        (
            "console",
            vec![format!("{} {}", defuse(url), defuse(&seen.status.version))],
        ),
        (
            "signed in",
            vec![format!("{} ({})", defuse(&seen.me.username), roles.join(", "))],
        ),
    ];
    if !seen.channels.is_empty() {
        rows.push(("channels", seen.channels.iter().map(channel_words).collect()));
    }
    if !seen.outputs.is_empty() {
        rows.push(("outputs", seen.outputs.iter().map(output_words).collect()));
    }
    output::fields(&rows)
}

/// `webhook:pager: 3 waiting, 1 given up; last failed 10:02: it answered 500`.
fn channel_words(channel: &ChannelView) -> String {
    let mut words = format!("{}: {} waiting", defuse(&channel.name), channel.waiting);
    if channel.dead_letters > 0 {
        words.push_str(&format!(", {} given up", channel.dead_letters));
    }
    match (&channel.failed_at, &channel.delivered_at) {
        (Some(failed), delivered) if delivered.as_ref() < Some(failed) => {
            let why = channel.failed_because.as_deref().unwrap_or_default();
            words.push_str(&format!(
                "; failed {}: {}",
                output::local(failed),
                visible_fold(why, 200)
            ));
        }
        (_, Some(delivered)) => words.push_str(&format!("; last delivered {}", output::local(delivered))),
        (_, None) => {}
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_says_how_it_goes() {
        let mut channel = ChannelView {
            name: "webhook:pager".to_owned(),
            waiting: 2,
            oldest_waiting_at: None,
            dead_letters: 0,
            delivered_at: None,
            failed_at: None,
            failed_because: None,
        };
        assert_eq!(channel_words(&channel), "webhook:pager: 2 waiting");
        channel.failed_at = Some("2026-11-21T10:00:00.000Z".to_owned());
        channel.failed_because = Some("it answered 500\u{1b}".to_owned());
        channel.dead_letters = 1;
        let words = channel_words(&channel);
        assert!(
            words.starts_with("webhook:pager: 2 waiting, 1 given up; failed "),
            "{words}"
        );
        assert!(words.ends_with(": it answered 500⟨U+001B⟩"), "{words}");
        channel.delivered_at = Some("2026-11-21T10:00:01.000Z".to_owned());
        assert!(channel_words(&channel).contains("; last delivered "));
    }

    #[test]
    fn rows_without_numbers_are_left_out() {
        assert!(kernel_rows(&KernelSide::default()).is_empty());
        let coder = LabelSide {
            label: "coder\u{1b}".to_owned(),
            tasks: 3,
            tasks_limit: 16_384,
            held: 2,
            held_limit: 1_000,
            parked: 2,
            refused_leaving: 5,
            ..LabelSide::default()
        };
        let kernel = KernelSide {
            labels: vec![coder, LabelSide::default()],
            refused_tasks_full: 1,
            ..KernelSide::default()
        };
        assert_eq!(
            kernel_rows(&kernel),
            [
                (
                    "labels",
                    vec!["coder⟨U+001B⟩: 3 of 16384 tasks, 2 of 1000 held, 2 parked".to_owned()]
                ),
                (
                    "refused",
                    vec![
                        "coder⟨U+001B⟩: 5 attempts to leave the cgroup".to_owned(),
                        "all labels: 1 forks: the kernel's table of labelled tasks was full".to_owned()
                    ]
                ),
            ]
        );
    }
}
