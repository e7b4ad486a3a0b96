//! Who is signed in, and the keys with which programs act.

use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::ExitCode;

use guard_evidence::text::{defuse, visible, visible_fold};
use guard_proto::rest::{Key, MadeKey, NewKey, SessionView};
use reqwest::Method;

use crate::args::{Global, Keys, Output, Sessions};
use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output;

/// Most sessions or keys that are listed.
const MANY: usize = 10_000;

pub(super) async fn sessions(global: &Global, command: Sessions) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    match command {
        Sessions::List { all } => {
            let query = if all { vec![("all", "true".to_owned())] } else { vec![] };
            let sessions: Vec<SessionView> = client.pages("/sessions", &query, MANY).await?;
            let heading = ["ID", "USER", "KIND", "FROM", "SIGNED IN", "LAST USED", "BY", ""];
            output::list(global.output, &sessions, None, &heading, 1, session_row)?;
        }
        Sessions::Revoke { id: Some(id), .. } => {
            client
                .send_empty(Method::DELETE, &format!("/sessions/{}", segment(&id)))
                .await?;
            output::line(&format!("the session {} is ended", visible_fold(&id, 40)))?;
        }
        Sessions::Revoke { user, .. } => {
            let user = user.unwrap_or_default();
            client
                .send_empty(Method::DELETE, &format!("/users/{}/sessions", segment(&user)))
                .await?;
            output::line(&format!("every session of {} is ended", visible_fold(&user, 80)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn session_row(session: &SessionView) -> Vec<String> {
    let by = match (&session.provider, session.methods.as_slice()) {
        (None, _) => "password".to_owned(),
        (Some(provider), []) => visible(provider),
        (Some(provider), methods) => format!("{} ({})", visible(provider), visible(&methods.join(", "))),
    };
    vec![
        visible(&session.id),
        visible(&session.username),
        visible(&session.kind),
        visible(&session.address),
        output::local(&session.signed_in_at),
        format!("{} ago", output::span(&session.last_used_at, None)),
        by,
        if session.current { "this one" } else { "" }.to_owned(),
    ]
}

pub(super) async fn keys(global: &Global, command: Keys) -> Result<ExitCode, Failure> {
    let client = Client::signed_in(&global.profile)?;
    match command {
        Keys::List => {
            let keys: Vec<Key> = client.pages("/keys", &[], MANY).await?;
            let heading = ["ID", "ACCOUNT", "ROLES", "STATE", "EXPIRES", "LAST USED", "FOR"];
            output::list(global.output, &keys, None, &heading, 6, key_row)?;
        }
        Keys::Create {
            account,
            roles,
            expires_in,
            description,
            out,
        } => {
            let expires_in = match expires_in.as_deref().map(|text| (text, output::parse_seconds(text))) {
                None => None,
                Some((_, Some(seconds))) => Some(seconds),
                Some((text, None)) => {
                    return Err(
                        Failure::usage(format!("`{}` is not a duration", visible(text))).next("--expires-in 30d")
                    );
                }
            };
            let body = NewKey {
                account,
                roles: (!roles.is_empty()).then_some(roles),
                expires_in,
                description,
            };
            create(global, &client, &body, out.as_deref()).await?;
        }
        Keys::Revoke { id } => {
            client
                .send_empty(Method::POST, &format!("/keys/{}/revoke", segment(&id)))
                .await?;
            output::line(&format!("the key {} is revoked", visible_fold(&id, 40)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(global: &Global, client: &Client, body: &NewKey, out: Option<&std::path::Path>) -> Result<(), Failure> {
    // The file first: a key that cannot be kept is not to be made.
    let file = match out {
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
    let made: Result<MadeKey, Failure> = client.send_json(Method::POST, "/keys", body).await;
    if let (Err(_), Some(path)) = (&made, out) {
        // Empty and made a moment ago by this very command.
        std::fs::remove_file(path).ok();
    }
    let made = made?;
    let good_until = format!(
        "guard: the key {} of {}, good until {}; it is not shown again",
        visible(&made.key.id),
        visible(&made.key.account),
        output::local(&made.key.expires_at)
    );
    if let (Some(mut file), Some(path)) = (file, out) {
        writeln!(file, "{}", made.secret)
            .and_then(|()| file.sync_all())
            .map_err(|e| Failure::unknown(format!("{}: {e}", path.display())))?;
        output::note(&format!("{good_until}: written to {}", path.display()));
    } else if global.output == Output::Json {
        output::json(&made, false)?;
    } else {
        output::line(&defuse(&made.secret))?;
        output::note(&good_until);
    }
    Ok(())
}

fn key_row(key: &Key) -> Vec<String> {
    vec![
        visible(&key.id),
        visible(&key.account),
        key.roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(","),
        visible(&key.state),
        output::local(&key.expires_at),
        key.last_used_at
            .as_deref()
            .map_or_else(|| "never".to_owned(), |at| format!("{} ago", output::span(at, None))),
        visible_fold(&key.description, 60),
    ]
}
