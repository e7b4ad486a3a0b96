//! Hosts, tokens and users of the console.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;

use guard_evidence::enforcement::Enforcement;
use guard_evidence::text::{defuse, visible, visible_fold};
use guard_proto::rest::{Host, NewServiceAccount, NewToken, NewUser, Token, User};
use reqwest::Method;

use crate::args::{Global, Hosts, Output, Tokens, Users};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::{output, secret};

/// Most hosts of which a list tells the gaps: each is asked for by itself.
const TIMELINES: usize = 50;
/// Most hosts or users that are listed.
const MANY: usize = 10_000;

pub(super) async fn hosts(global: &Global, command: Hosts) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    let hosts: Vec<Host> = client.pages("/hosts", &[], MANY).await?;
    match command {
        Hosts::List if global.output == Output::Json => output::json(&serde_json::json!({ "items": hosts }), false)?,
        Hosts::List if hosts.is_empty() => {
            output::note(
                "no hosts yet; let one join:\n  → guard tokens create > token   and on the host: guard-agent enroll --token-file token",
            );
        }
        Hosts::List => {
            let mut rows = Vec::new();
            for (number, host) in hosts.iter().enumerate() {
                let gaps = if number < TIMELINES {
                    enforcement(&client, host).await?.gaps.len().to_string()
                } else {
                    "?".to_owned()
                };
                rows.push(host_row(host, gaps));
            }
            let heading = [
                "NAME",
                "STATE",
                "ENFORCING",
                "GAPS",
                "KERNEL",
                "AGENT",
                "LABELS",
                "LAST SEEN",
                "LOST",
                "ID",
            ];
            output::table(&heading, &rows, 6)?;
        }
        Hosts::Show { host } => {
            let found = find(&hosts, &host)?;
            let told = enforcement(&client, found).await?;
            if global.output == Output::Json {
                output::json(&serde_json::json!({ "host": found, "enforcement": told }), false)?;
            } else {
                output::line(&format!(
                    "{} ({}), {}",
                    visible(&found.name),
                    visible(&found.id),
                    visible(&found.state)
                ))?;
                for line in told.lines() {
                    output::line(&format!("  {line}"))?;
                }
                if told.on.is_empty() {
                    output::note("no record of the last seven days says that enforcement was on");
                }
            }
        }
        Hosts::Revoke { host, yes } => {
            let found = find(&hosts, &host)?;
            if !yes
                && !confirmed(&format!(
                    "Revoke {} for good? It keeps enforcing, but nobody can approve for it.",
                    visible(&found.name)
                ))?
            {
                return Err(Failure::no("not revoked"));
            }
            client
                .send_empty(Method::POST, &format!("/hosts/{}/revoke", segment(&found.id)))
                .await?;
            output::line(&format!("revoked {} ({})", visible(&found.name), visible(&found.id)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn host_row(host: &Host, gaps: String) -> Vec<String> {
    let enforcing = match (&host.enforcing_since, host.enforcing) {
        (Some(since), true) => format!("for {}", output::span(since, None)),
        (None, true) => "yes".to_owned(),
        (_, false) => "NO".to_owned(),
    };
    vec![
        visible(&host.name),
        visible(&host.state),
        enforcing,
        gaps,
        visible_fold(&host.kernel, 40),
        visible_fold(&host.agent_version, 20),
        host.labels.iter().map(|l| visible(l)).collect::<Vec<_>>().join(","),
        host.last_seen
            .as_deref()
            .map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::span(at, None))),
        host.lost_events.to_string(),
        visible(&host.id),
    ]
}

fn find<'h>(hosts: &'h [Host], wanted: &str) -> Result<&'h Host, Failure> {
    hosts
        .iter()
        .find(|h| h.id == wanted || h.name == wanted)
        .ok_or_else(|| Failure::no(format!("no host is called `{}`", visible(wanted))).next("guard hosts list"))
}

async fn enforcement(client: &Client, host: &Host) -> Result<Enforcement, Failure> {
    client
        .get(&format!("/hosts/{}/enforcement", segment(&host.id)), &[])
        .await
}

fn confirmed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("this needs a yes").next("--yes"));
    }
    write!(anstream::stderr(), "{question} [y/N] ")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line)?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

pub(super) async fn tokens(global: &Global, command: Tokens) -> Result<ExitCode, Failure> {
    let Tokens::Create {
        expires_in,
        description,
        out,
    } = command;
    let expires_in = match expires_in.as_deref().map(|text| (text, output::parse_seconds(text))) {
        None => None,
        Some((_, Some(seconds))) if (60..=604_800).contains(&seconds) => Some(seconds),
        Some((text, _)) => {
            return Err(
                Failure::usage(format!("`{}` is not a duration from 1m to 7d", visible(text))).next("--expires-in 2h"),
            );
        }
    };
    // The file first: a token that cannot be kept is not to be made.
    let file = match &out {
        Some(path) => Some(
            std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(path)
                .map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?,
        ),
        None => None,
    };
    let made = make_token(
        global,
        NewToken {
            expires_in,
            description,
        },
    )
    .await;
    if let (Err(_), Some(path)) = (&made, &out) {
        // Empty and made a moment ago by this very command.
        std::fs::remove_file(path).ok();
    }
    let token = made?;
    if let (Some(mut file), Some(path)) = (file, &out) {
        writeln!(file, "{}", token.token)
            .and_then(|()| file.sync_all())
            .map_err(|e| Failure::unknown(format!("{}: {e}", path.display())))?;
        output::note(&format!(
            "guard: written to {}; good for one host until {}",
            path.display(),
            output::local(&token.expires_at)
        ));
    } else if global.output == Output::Json {
        output::json(&token, false)?;
    } else {
        output::line(&defuse(&token.token))?;
        output::note(&format!(
            "guard: good for one host until {}; on that host: guard-agent enroll, with the token in a file or on standard input",
            output::local(&token.expires_at)
        ));
    }
    Ok(ExitCode::SUCCESS)
}

async fn make_token(global: &Global, body: NewToken) -> Result<Token, Failure> {
    Client::signed_in(&global.profile)?
        .send_json(Method::POST, "/tokens", &body)
        .await
}

pub(super) async fn users(global: &Global, command: Users) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    match command {
        Users::List => {
            let users: Vec<User> = client.pages("/users", &[], MANY).await?;
            let heading = ["NAME", "ROLES", "GROUPS", "SINCE", "STATE"];
            output::list(global.output, &users, None, &heading, 2, user_row)?;
        }
        Users::Add {
            username,
            roles,
            groups,
            password,
        } => {
            let password = secret::password(&password, &format!("Password of {}", visible(&username)), true)?;
            let user: User = client
                .send_json(
                    Method::POST,
                    "/users",
                    &NewUser {
                        username,
                        password,
                        roles,
                        groups,
                    },
                )
                .await?;
            match global.output {
                Output::Json => output::json(&user, false)?,
                Output::Table => {
                    let [name, roles, ..] = user_row(&user).try_into().unwrap_or_else(|_| <[String; 5]>::default());
                    output::line(&format!("{name} may sign in ({roles})"))?;
                }
            }
        }
        Users::AddService {
            username,
            roles,
            description,
        } => {
            let body = NewServiceAccount {
                username,
                roles,
                description,
            };
            let user: User = client.send_json(Method::POST, "/service-accounts", &body).await?;
            match global.output {
                Output::Json => output::json(&user, false)?,
                Output::Table => {
                    let name = visible(&user.username);
                    output::line(&format!("{name} is made"))?;
                    output::note(&format!("guard: it acts by a key\n  → guard keys create {name}"));
                }
            }
        }
        Users::Disable { username } => {
            client
                .send_empty(Method::POST, &format!("/users/{}/disable", segment(&username)))
                .await?;
            output::line(&format!(
                "{} may no longer sign in; open sessions are ended",
                visible(&username)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn user_row(user: &User) -> Vec<String> {
    vec![
        visible(&user.username),
        user.roles.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(","),
        user.groups.iter().map(|g| visible(g)).collect::<Vec<_>>().join(","),
        output::local(&user.created_at),
        match (user.disabled, user.service) {
            (true, _) => "disabled",
            (false, true) => "program",
            (false, false) => "active",
        }
        .to_owned(),
    ]
}
