//! Sessions, service accounts and their keys.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use guard_proto::rest::{Key, MadeKey, NewKey, NewServiceAccount, Page, SessionView, User};
use serde::Deserialize;

use super::{Fields, Json};
use crate::api::identity::{Caller, Shared};
use crate::app::Result;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionFields {
    /// Everybody's.
    #[serde(default)]
    all: bool,
}

pub(super) async fn sessions(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<SessionFields>,
) -> Result<axum::Json<Page<SessionView>>> {
    Ok(axum::Json(Page {
        items: app.signed_in(&caller.actor, fields.all).await?,
        next: None,
    }))
}

pub(super) async fn end_session(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    app.end_session(&caller.actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn end_sessions_of(
    State(app): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<StatusCode> {
    app.end_sessions_of(&caller.actor, &name).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn add_service_account(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewServiceAccount>,
) -> Result<axum::Json<User>> {
    Ok(axum::Json(app.add_service_account(&caller.actor, &body).await?))
}

pub(super) async fn keys(State(app): State<Shared>, caller: Caller) -> Result<axum::Json<Page<Key>>> {
    Ok(axum::Json(Page {
        items: app.keys(&caller.actor).await?,
        next: None,
    }))
}

pub(super) async fn make_key(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewKey>,
) -> Result<axum::Json<MadeKey>> {
    Ok(axum::Json(app.make_key(&caller.actor, &body).await?))
}

pub(super) async fn revoke_key(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<StatusCode> {
    app.revoke_key(&caller.actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
