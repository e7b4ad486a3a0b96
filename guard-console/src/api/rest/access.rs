//! Sessions, service accounts and their keys.

use axum::extract::State;
use axum::response::NoContent;
use guard_proto::rest::{Key, MadeKey, NewKey, NewServiceAccount, Page, SessionView, User};
use schemars::JsonSchema;
use serde::Deserialize;

use super::{Fields, Json, Path};
use crate::api::identity::{Caller, Shared};
use crate::app::Result;
use crate::app::paging::Asked;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct SessionFields {
    /// Everybody's.
    #[serde(default)]
    all: bool,
    limit: Option<u64>,
    cursor: Option<String>,
}

pub(super) async fn sessions(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<SessionFields>,
) -> Result<axum::Json<Page<SessionView>>> {
    let sessions = app.signed_in(&caller.actor, fields.all).await?;
    let asked = Asked {
        limit: fields.limit,
        cursor: fields.cursor,
    };
    let place = |session: &SessionView| format!("{} {}", session.signed_in_at, session.id);
    Ok(axum::Json(asked.newest_first(sessions, place)?))
}

pub(super) async fn end_session(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<NoContent> {
    app.end_session(&caller.actor, &id).await?;
    Ok(NoContent)
}

pub(super) async fn end_sessions_of(
    State(app): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<NoContent> {
    app.end_sessions_of(&caller.actor, &name).await?;
    Ok(NoContent)
}

pub(super) async fn add_service_account(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewServiceAccount>,
) -> Result<axum::Json<User>> {
    Ok(axum::Json(app.add_service_account(&caller.actor, &body).await?))
}

pub(super) async fn keys(
    State(app): State<Shared>,
    caller: Caller,
    Fields(asked): Fields<Asked>,
) -> Result<axum::Json<Page<Key>>> {
    let keys = app.keys(&caller.actor).await?;
    Ok(axum::Json(asked.newest_first(keys, |key| key.id.clone())?))
}

pub(super) async fn make_key(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewKey>,
) -> Result<axum::Json<MadeKey>> {
    Ok(axum::Json(app.make_key(&caller.actor, &body).await?))
}

pub(super) async fn revoke_key(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<NoContent> {
    app.revoke_key(&caller.actor, &id).await?;
    Ok(NoContent)
}
