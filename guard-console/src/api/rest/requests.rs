//! Requests, answers and the event stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{FromRequestParts, State};
use axum::http::HeaderMap;
use axum::http::request::Parts;
use axum::response::IntoResponse as _;
use axum::response::sse::Event;
use guard_evidence::record::Verdict;
use guard_proto::rest::{AnswerBody, ChangeView, Host, Page, Request, RequestState};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use super::answers::{Envelope, Events};
use super::{Fields, Json, Path};
use crate::api::describe::{Description, Takes};
use crate::api::identity::{Caller, Shared};
use crate::api::watch::{self, Render};
use crate::app::requests::{Details, PAGE};
use crate::app::{App, Error, Permission, Result};
use crate::store::RequestFilter;

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListFields {
    state: Option<RequestState>,
    label: Option<String>,
    host: Option<String>,
    limit: Option<u64>,
    cursor: Option<String>,
}

pub(crate) fn cursor(text: Option<&str>) -> Result<Option<u64>> {
    text.filter(|t| !t.is_empty())
        .map(|t| {
            t.parse()
                .map_err(|_| Error::Invalid("cursor: not one that this console gave out".to_owned()))
        })
        .transpose()
}

pub(super) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<ListFields>,
) -> Result<axum::Json<Page<Request>>> {
    let filter = RequestFilter {
        state: fields.state,
        label: fields.label,
        host: fields.host,
        cursor: cursor(fields.cursor.as_deref())?,
        limit: fields.limit.unwrap_or(PAGE),
        ..RequestFilter::default()
    };
    let page = app.requests(&caller.actor, filter).await?;
    Ok(axum::Json(Page {
        items: page.items.into_iter().map(Request::from).collect(),
        next: page.next,
    }))
}

pub(super) async fn show(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<axum::Json<Request>> {
    Ok(axum::Json(app.request(&caller.actor, &id).await?.into()))
}

pub(super) async fn record(State(app): State<Shared>, caller: Caller, Path(id): Path<String>) -> Result<Envelope> {
    Ok(Envelope(app.request_record(&caller.actor, &id).await?))
}

pub(super) async fn approve(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<AnswerBody>,
) -> Result<axum::Json<Request>> {
    answer(&app, &caller, &id, Verdict::Allow, &body).await
}

pub(super) async fn deny(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
    Json(body): Json<AnswerBody>,
) -> Result<axum::Json<Request>> {
    answer(&app, &caller, &id, Verdict::Deny, &body).await
}

async fn answer(
    app: &App,
    caller: &Caller,
    id: &str,
    verdict: Verdict,
    body: &AnswerBody,
) -> Result<axum::Json<Request>> {
    let answered = app.answer(&caller.actor, id, verdict, body, caller.channel).await?;
    Ok(axum::Json(answered.into()))
}

/// From where an event stream goes on.
#[derive(Debug)]
pub(super) struct LastEventId(Option<u64>);

impl<S: Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> std::result::Result<Self, Infallible> {
        Ok(Self(last_event_id(&parts.headers)))
    }
}

impl Takes for LastEventId {
    fn describe(about: &mut Description<'_>) {
        about.header(
            "Last-Event-ID",
            "The id of the last event that was seen; without one the stream begins with all pending requests.",
        );
    }
}

pub(super) async fn events(State(app): State<Shared>, caller: Caller, last: LastEventId) -> Result<Events> {
    caller.actor.require(Permission::SeeRequests)?;
    let stream = watch::events(app, caller.actor, last.0, AsJson).await?;
    Ok(Events(stream.into_response()))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PollFields {
    /// `next` of the answer before; left out: changes from now on.
    cursor: Option<String>,
    /// Most seconds to wait for a change, 30 when left out; more than 60 is 60.
    wait: Option<u64>,
}

/// For who cannot hold a stream: the same `next` goes on where this answer ends. Its end is never the last page.
pub(super) async fn poll(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<PollFields>,
) -> Result<axum::Json<Page<Request>>> {
    caller.actor.require(Permission::SeeRequests)?;
    let until = Instant::now() + Duration::from_secs(fields.wait.unwrap_or(30).min(60));
    // Before the first look, so that nothing after it is missed.
    let mut woken = app.notify.watch_requests();
    let mut seq = match cursor(fields.cursor.as_deref())? {
        Some(seq) => seq,
        None => app.latest_seq().await?,
    };
    let mut items = Vec::new();
    loop {
        woken.mark_unchanged();
        let changed = app.requests_changed_since(&caller.actor, seq).await?;
        for details in changed {
            seq = details.row.seq;
            items.push(Request::from(details));
        }
        if !items.is_empty() {
            break;
        }
        tokio::select! {
            changed = woken.changed() => if changed.is_err() { break },
            () = tokio::time::sleep_until(until) => break,
            () = app.stopping.cancelled() => break,
        }
        if !app.still_signed_in(&caller.actor).await? {
            return Err(Error::SignInFirst);
        }
    }
    Ok(axum::Json(Page {
        items,
        next: Some(seq.to_string()),
    }))
}

pub(crate) fn last_event_id(headers: &HeaderMap) -> Option<u64> {
    headers.get("last-event-id")?.to_str().ok()?.parse().ok()
}

struct AsJson;

impl Render for AsJson {
    fn change(&self, change: &ChangeView) -> Option<Event> {
        Event::default().event("change").json_data(change).ok()
    }

    async fn request(&self, _: &App, details: Details) -> Result<Option<Event>> {
        Ok(Event::default().event("request").json_data(Request::from(details)).ok())
    }

    fn host(&self, host: &Host) -> Option<Event> {
        Event::default().event("host").json_data(host).ok()
    }
}
