//! Grants.

use axum::extract::State;
use axum::response::NoContent;
use guard_proto::rest::{Grant, Page};

use super::{Fields, Path};
use crate::api::identity::{Caller, Shared};
use crate::app::Result;
use crate::app::paging::Asked;
use crate::app::requests::{MAX_PAGE, PAGE};

pub(super) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Fields(asked): Fields<Asked>,
) -> Result<axum::Json<Page<Grant>>> {
    let limit = asked.limit.unwrap_or(PAGE).min(MAX_PAGE);
    Ok(axum::Json(
        app.grants(&caller.actor, limit, asked.cursor.as_deref()).await?,
    ))
}

pub(super) async fn revoke(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<NoContent> {
    app.revoke_grant(&caller.actor, &id).await?;
    Ok(NoContent)
}
