//! Setting up, signing in and users.

use axum::extract::State;
use axum::response::NoContent;
use guard_proto::rest::{LoginBody, Me, NewUser, Page, Session, SetupBody, Status, User};

use super::{Fields, Json, Path};
use crate::api::identity::{Caller, Peer, Shared};
use crate::app::Result;
use crate::app::paging::Asked;
use crate::app::sessions::SessionKind;
use crate::time::{now, rfc3339};

pub(super) async fn status(State(app): State<Shared>) -> Result<axum::Json<Status>> {
    Ok(axum::Json(Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        needs_setup: app.needs_setup().await?,
        time: rfc3339(now()),
        sign_in_with: app.sign_in_with(),
    }))
}

pub(super) async fn set_up(
    State(app): State<Shared>,
    Peer(address): Peer,
    Json(body): Json<SetupBody>,
) -> Result<axum::Json<Session>> {
    Ok(axum::Json(
        app.set_up(&body, SessionKind::Api, address).await?.into_rest(),
    ))
}

pub(super) async fn sign_in(
    State(app): State<Shared>,
    Peer(address): Peer,
    Json(body): Json<LoginBody>,
) -> Result<axum::Json<Session>> {
    Ok(axum::Json(
        app.sign_in(&body, SessionKind::Api, address).await?.into_rest(),
    ))
}

pub(super) async fn sign_out(State(app): State<Shared>, caller: Caller) -> Result<NoContent> {
    // A program has no browser to lead on.
    let _elsewhere = app.sign_out(&caller.actor).await?;
    Ok(NoContent)
}

pub(super) async fn me(caller: Caller) -> axum::Json<Me> {
    axum::Json(caller.actor.me())
}

pub(super) async fn users(
    State(app): State<Shared>,
    caller: Caller,
    Fields(asked): Fields<Asked>,
) -> Result<axum::Json<Page<User>>> {
    let users = app.users(&caller.actor).await?;
    Ok(axum::Json(asked.by_name(users, |user| &user.username)?))
}

pub(super) async fn add_user(
    State(app): State<Shared>,
    caller: Caller,
    Json(body): Json<NewUser>,
) -> Result<axum::Json<User>> {
    Ok(axum::Json(app.add_user(&caller.actor, &body).await?))
}

pub(super) async fn disable_user(
    State(app): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
) -> Result<NoContent> {
    app.disable_user(&caller.actor, &name).await?;
    Ok(NoContent)
}
