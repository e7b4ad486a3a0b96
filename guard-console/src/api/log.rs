//! The published log over HTTPS, as C2SP tlog-tiles names it: anybody may follow it, tiles never change.
//!
//! Owns paths and caching. It is given what the log's folder has. It must never give out an envelope to whoever may not
//! see evidence, nor anything that is not published.

use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use guard_evidence::tile::{Kind, Tile};

use super::endpoint::{Access, Endpoints};
use super::identity::{Caller, Shared};
use crate::app::{Error, Permission, Result};

/// Everything below `/log`.
#[must_use]
pub fn endpoints() -> Endpoints {
    Endpoints::default()
        .get("/log/checkpoint", Access::Anyone, checkpoint)
        .get(
            "/log/tile/entries/{*number}",
            Access::Needs(Permission::SeeEvidence),
            entries,
        )
        .get("/log/tile/{level}/{*number}", Access::Anyone, hashes)
}

async fn checkpoint(State(app): State<Shared>) -> Result<Response> {
    let head = app.log_head()?;
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    Ok((headers, head.note.clone()).into_response())
}

async fn hashes(State(app): State<Shared>, Path((level, number)): Path<(String, String)>) -> Result<Response> {
    let path = format!("tile/{level}/{number}");
    let tile = Tile::parse(&path).filter(|tile| tile.kind != Kind::Entries);
    let tile = tile.ok_or_else(|| Error::not_found("tile", &path))?;
    let bytes = app.log_tile(tile).await?;
    Ok(immutable(bytes, "public, max-age=31536000, immutable"))
}

async fn entries(State(app): State<Shared>, caller: Caller, Path(number): Path<String>) -> Result<Response> {
    let path = format!("tile/entries/{number}");
    let tile = Tile::parse(&path).ok_or_else(|| Error::not_found("tile", &path))?;
    let bytes = app.log_entries(&caller.actor, tile).await?;
    Ok(immutable(bytes, "private, max-age=31536000, immutable"))
}

fn immutable(bytes: Vec<u8>, cache: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "application/octet-stream"),
        (header::CACHE_CONTROL, cache),
    ];
    (headers, bytes).into_response()
}
