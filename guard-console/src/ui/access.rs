//! Sessions and keys: who is signed in, what programs may do, and the buttons that end it.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use guard_proto::rest::{Key, MadeKey, NewKey, NewServiceAccount, Role, SessionView};
use serde::Deserialize;

use super::form::Form;
use super::page::{Failure, Page, Shell, Viewer, html};
use crate::api::identity::Shared;
use crate::app::{Error, Permission};
use crate::time::{Millis, parse_rfc3339};

/// A time twice: to be read without a script, and for the page's clock.
type Time = (String, Millis);

fn time(text: String) -> Time {
    let ms = parse_rfc3339(&text).unwrap_or(0);
    (text, ms)
}

#[derive(Template)]
#[template(path = "access.html")]
struct AccessPage {
    shell: Shell,
    error: Option<String>,
    made: Option<MadeView>,
    sessions: Vec<SessionRow>,
    /// Whether the list is everybody's.
    everybody: bool,
    may_see_all: bool,
    keys: Vec<KeyRow>,
    /// Service accounts that can have a key.
    accounts: Vec<String>,
    may_manage: bool,
    csrf: String,
}

struct MadeView {
    secret: String,
    account: String,
    expires: Time,
}

struct SessionRow {
    id: String,
    username: String,
    kind: String,
    address: String,
    since: Time,
    used: Time,
    by: String,
    current: bool,
}

struct KeyRow {
    id: String,
    account: String,
    roles: String,
    description: String,
    state: String,
    expires: Time,
    used: Option<Time>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AccessFields {
    all: String,
}

fn session_row(session: SessionView) -> SessionRow {
    let by = match (session.provider, session.methods.as_slice()) {
        (None, _) => "password".to_owned(),
        (Some(provider), []) => provider,
        (Some(provider), methods) => format!("{provider} ({})", methods.join(", ")),
    };
    SessionRow {
        id: session.id,
        username: session.username,
        kind: session.kind,
        address: session.address,
        since: time(session.signed_in_at),
        used: time(session.last_used_at),
        by,
        current: session.current,
    }
}

fn key_row(key: Key) -> KeyRow {
    KeyRow {
        id: key.id,
        account: key.account,
        roles: words(&key.roles),
        description: key.description,
        state: key.state,
        expires: time(key.expires_at),
        used: key.last_used_at.map(time),
    }
}

fn words(roles: &[Role]) -> String {
    roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(", ")
}

async fn access_page(
    app: &Shared,
    viewer: &Viewer,
    everybody: bool,
    made: Option<MadeKey>,
    error: Option<String>,
) -> Page {
    let actor = &viewer.browser.actor;
    let may_see_all = actor.may(Permission::SeeUsers);
    let everybody = everybody && may_see_all;
    let (keys, accounts) = if may_see_all {
        let users = app.users(actor).await?.into_iter();
        let programs = users.filter(|user| user.service && !user.disabled);
        (app.keys(actor).await?, programs.map(|user| user.username).collect())
    } else {
        (Vec::new(), Vec::new())
    };
    html(&AccessPage {
        shell: Shell::of(app, viewer, "access", "Sessions and keys").await?,
        error,
        made: made.map(|made| MadeView {
            secret: made.secret,
            account: made.key.account,
            expires: time(made.key.expires_at),
        }),
        sessions: app
            .signed_in(actor, everybody)
            .await?
            .into_iter()
            .map(session_row)
            .collect(),
        everybody,
        may_see_all,
        keys: keys.into_iter().map(key_row).collect(),
        accounts,
        may_manage: actor.may(Permission::ManageUsers),
        csrf: viewer.browser.csrf.clone(),
    })
}

pub(super) async fn access(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<AccessFields>) -> Page {
    access_page(&app, &viewer, !fields.all.is_empty(), None, None).await
}

pub(super) async fn end_session(
    State(app): State<Shared>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Redirect, Failure> {
    app.end_session(&form.viewer.browser.actor, &id).await?;
    let to = if form.fields.get("all").is_empty() {
        "/access"
    } else {
        "/access?all=1"
    };
    Ok(Redirect::to(to))
}

pub(super) async fn add_account(State(app): State<Shared>, form: Form) -> Result<Response, Failure> {
    let roles = form
        .fields
        .all("role")
        .map(super::manage::role)
        .collect::<Result<_, _>>()?;
    let body = NewServiceAccount {
        username: form.fields.get("username").trim().to_owned(),
        roles,
        description: form.fields.get("description").to_owned(),
    };
    match app.add_service_account(&form.viewer.browser.actor, &body).await {
        Ok(_) => Ok(Redirect::to("/access").into_response()),
        Err(error) => refused(&app, &form, error).await,
    }
}

pub(super) async fn make_key(State(app): State<Shared>, form: Form) -> Result<Response, Failure> {
    let body = NewKey {
        account: form.fields.get("account").to_owned(),
        roles: None,
        expires_in: form.fields.get("expires_in").parse().ok(),
        description: form.fields.get("description").to_owned(),
    };
    match app.make_key(&form.viewer.browser.actor, &body).await {
        // Not a redirect: this answer is the only one that ever has the secret.
        Ok(made) => Ok(access_page(&app, &form.viewer, false, Some(made), None)
            .await?
            .into_response()),
        Err(error) => refused(&app, &form, error).await,
    }
}

pub(super) async fn revoke_key(
    State(app): State<Shared>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Redirect, Failure> {
    app.revoke_key(&form.viewer.browser.actor, &id).await?;
    Ok(Redirect::to("/access"))
}

async fn refused(app: &Shared, form: &Form, error: Error) -> Result<Response, Failure> {
    match error {
        Error::Invalid(_) | Error::Conflict { .. } | Error::NotFound { .. } => {
            let page = access_page(app, &form.viewer, false, None, Some(error.to_string())).await?;
            Ok((StatusCode::BAD_REQUEST, page).into_response())
        }
        error => Err(Failure(error)),
    }
}
