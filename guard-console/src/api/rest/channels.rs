//! Channels: how they go, and what could not be delivered.

use axum::extract::State;
use guard_proto::rest::{ChannelView, DeadLetter, Page};

use crate::api::identity::{Caller, Shared};
use crate::app::Result;

pub(super) async fn list(State(app): State<Shared>, caller: Caller) -> Result<axum::Json<Page<ChannelView>>> {
    Ok(axum::Json(Page {
        items: app.channels(&caller.actor).await?,
        next: None,
    }))
}

pub(super) async fn dead_letters(State(app): State<Shared>, caller: Caller) -> Result<axum::Json<Page<DeadLetter>>> {
    Ok(axum::Json(Page {
        items: app.dead_letters(&caller.actor).await?,
        next: None,
    }))
}
