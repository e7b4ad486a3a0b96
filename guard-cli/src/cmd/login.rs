//! Signing in and out, and making the first administrator.

use std::process::ExitCode;

use guard_evidence::text::defuse;
use guard_proto::rest::{LoginBody, Session, SetupBody};
use reqwest::Method;

use crate::args::{Global, Login, Output};
use crate::client::{Client, base_of};
use crate::failure::Failure;
use crate::profile::{self, Credentials, Token};
use crate::{output, secret, tls};

pub(super) async fn login(global: &Global, args: Login) -> Result<ExitCode, Failure> {
    // Before anything is asked or sent: where the result will be kept.
    let saved = profile::load(&global.profile)?;
    let url = match (args.url, &saved) {
        (Some(url), _) => url,
        (None, Some(saved)) => saved.url.clone(),
        (None, None) => {
            return Err(Failure::usage("which console? there is no saved sign-in")
                .next("guard login --url https://CONSOLE:8443 …"));
        }
    };
    let url = base_of(&url)?;
    let username = match args.username {
        Some(name) => name,
        None => ask_username()?,
    };

    let mut pin = None;
    let mut ca_pem = None;
    let config = if let Some(path) = &args.ca {
        let pem = std::fs::read_to_string(path).map_err(|e| Failure::usage(format!("{}: {e}", path.display())))?;
        let config = tls::pinned_to_pem(&pem)?;
        ca_pem = Some(pem);
        config
    } else if let Some(sha256) = &args.ca_sha256 {
        let (config, seen) = tls::pinned_to_digest(sha256)?;
        pin = Some(seen);
        config
    } else if let Some(saved) = saved.filter(|saved| saved.url == url) {
        let config = tls::pinned_to_pem(&saved.ca_pem)?;
        ca_pem = Some(saved.ca_pem);
        config
    } else {
        return Err(Failure::usage("how is the console's certificate to be trusted?")
            .next("--ca FILE with `ca.pem` of the console's data directory, or --ca-sha256 HEX with its digest"));
    };

    let client = Client::new(&url, config, None)?;
    let session: Session = match &args.setup_secret_file {
        Some(file) => {
            let secret = setup_secret(&secret::from_file(file)?);
            let password = secret::password(&args.password, "New password", true)?;
            client
                .send_json(
                    Method::POST,
                    "/setup",
                    &SetupBody {
                        secret,
                        username: username.clone(),
                        password,
                    },
                )
                .await
        }
        None => {
            let password = secret::password(&args.password, "Password", false)?;
            client
                .send_json(
                    Method::POST,
                    "/sessions",
                    &LoginBody {
                        username: username.clone(),
                        password,
                    },
                )
                .await
        }
    }
    .map_err(wrong_password)?;

    let ca_pem = ca_pem
        .or_else(|| pin.and_then(|pin| pin.ca_pem()))
        .ok_or_else(|| Failure::unknown("no CA certificate was seen"))?;
    let credentials = Credentials {
        url: url.clone(),
        username: session.me.username.clone(),
        token: Token(session.token),
        expires_at: session.expires_at.clone(),
        ca_pem,
    };
    let path = profile::save(&global.profile, &credentials)?;
    let roles: Vec<&str> = session.me.roles.iter().map(|r| r.as_str()).collect();
    match global.output {
        // Never the token: it is in the file.
        Output::Json => output::json(
            &serde_json::json!({ "url": url, "me": session.me, "expires_at": session.expires_at, "saved": path }),
            false,
        )?,
        Output::Table => output::line(&format!(
            "signed in to {url} as {} ({}) until {}; saved in {}",
            defuse(&session.me.username),
            if roles.is_empty() {
                "no roles".to_owned()
            } else {
                roles.join(", ")
            },
            output::local(&session.expires_at),
            path.display()
        ))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A refused password is an answer, not a lack of one.
fn wrong_password(failure: Failure) -> Failure {
    failure.unauthorized_is_no()
}

/// The secret of the one-time link, or the secret itself.
fn setup_secret(text: &str) -> String {
    let text = text.trim();
    text.rsplit(['=', '#', '/']).next().unwrap_or(text).to_owned()
}

fn ask_username() -> Result<String, Failure> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("whom to sign in?").next("--username NAME"));
    }
    let mut name = String::new();
    write!(anstream::stderr(), "User name: ")?;
    std::io::stdin().lock().read_line(&mut name)?;
    match name.trim() {
        "" => Err(Failure::usage("no user name")),
        name => Ok(name.to_owned()),
    }
}

pub(super) async fn logout(global: &Global) -> Result<ExitCode, Failure> {
    let Some(credentials) = profile::load(&global.profile)? else {
        return Err(Failure::no("there is no saved sign-in to end"));
    };
    // The file goes whatever the console says: a stolen laptop's owner must not be told to wait for the network.
    let ended = match Client::with(&credentials) {
        Ok(client) => client.send_empty(Method::DELETE, "/sessions/current").await,
        Err(failure) => Err(failure),
    };
    profile::remove(&global.profile)?;
    match ended {
        Ok(()) => output::line(&format!("signed out of {}", defuse(&credentials.url)))?,
        Err(failure) => {
            output::note(&format!(
                "{failure}\nguard: the sign-in is deleted here; at the console it lasts until {}",
                output::local(&credentials.expires_at)
            ));
            return Ok(ExitCode::from(failure.code()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setup_link_or_its_secret() {
        for text in [
            "abc123",
            "https://c.example.org:8443/setup?secret=abc123",
            "https://c.example.org/setup/abc123\n",
            "https://c/setup#abc123",
        ] {
            assert_eq!(setup_secret(text), "abc123");
        }
    }
}
