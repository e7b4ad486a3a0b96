//! Grants.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use guard_proto::rest::{Grant, Page};

use crate::api::identity::{Caller, Shared};
use crate::app::Result;

pub(super) async fn list(State(app): State<Shared>, caller: Caller) -> Result<axum::Json<Page<Grant>>> {
    Ok(axum::Json(Page {
        items: app.grants(&caller.actor).await?,
        next: None,
    }))
}

pub(super) async fn revoke(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<StatusCode> {
    app.revoke_grant(&caller.actor, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
