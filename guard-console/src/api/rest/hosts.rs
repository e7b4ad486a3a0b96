//! Hosts and the tokens with which they join.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use guard_evidence::enforcement::Enforcement;
use guard_proto::rest::{Host, NewToken, Page, Token};

use super::Json;
use crate::api::identity::{Caller, Shared};
use crate::app::Result;

pub(super) async fn list(State(app): State<Shared>, caller: Caller) -> Result<axum::Json<Page<Host>>> {
    Ok(axum::Json(Page {
        items: app.hosts(&caller.actor).await?,
        next: None,
    }))
}

pub(super) async fn enforcement(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Enforcement>> {
    Ok(axum::Json(app.enforcement(&caller.actor, &id).await?))
}

pub(super) async fn revoke(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode> {
    app.revoke_host(&caller.actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn create_token(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewToken>,
) -> Result<axum::Json<Token>> {
    Ok(axum::Json(app.create_token(&caller.actor, &body).await?))
}
