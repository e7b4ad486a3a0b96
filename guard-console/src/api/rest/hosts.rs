//! Hosts and the tokens with which they join.

use axum::extract::State;
use axum::response::NoContent;
use guard_evidence::enforcement::Enforcement;
use guard_proto::rest::{Host, NewToken, Page, Token};

use super::{Fields, Json, Path};
use crate::api::identity::{Caller, Shared};
use crate::app::Result;
use crate::app::paging::Asked;

pub(super) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Fields(asked): Fields<Asked>,
) -> Result<axum::Json<Page<Host>>> {
    let hosts = app.hosts(&caller.actor).await?;
    Ok(axum::Json(asked.by_name(hosts, |host| &host.name)?))
}

pub(super) async fn show(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Host>> {
    Ok(axum::Json(app.host(&caller.actor, &id).await?))
}

pub(super) async fn enforcement(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Enforcement>> {
    Ok(axum::Json(app.enforcement(&caller.actor, &id).await?))
}

pub(super) async fn revoke(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<NoContent> {
    app.revoke_host(&caller.actor, &id).await?;
    Ok(NoContent)
}

pub(super) async fn create_token(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewToken>,
) -> Result<axum::Json<Token>> {
    Ok(axum::Json(app.create_token(&caller.actor, &body).await?))
}
