//! Requests, answers and the event stream.

use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use axum::response::sse::Event;
use guard_evidence::record::Verdict;
use guard_proto::rest::{AnswerBody, ChangeView, Host, Page, Request, RequestState};
use serde::Deserialize;

use super::{Fields, Json};
use crate::api::identity::{Caller, Shared};
use crate::api::watch::{self, Render};
use crate::app::requests::{Details, PAGE};
use crate::app::{App, Error, Permission, Result};
use crate::store::RequestFilter;

#[derive(Debug, Deserialize)]
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

pub(super) async fn record(
    State(app): State<Shared>,
    caller: Caller,
    Path(id): Path<String>,
) -> Result<impl IntoResponse> {
    let envelope = app.request_record(&caller.actor, &id).await?;
    Ok((
        [(header::CONTENT_TYPE, "application/vnd.dsse.envelope.v1+json")],
        envelope,
    ))
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

pub(super) async fn events(State(app): State<Shared>, caller: Caller, headers: HeaderMap) -> Result<impl IntoResponse> {
    caller.actor.require(Permission::SeeRequests)?;
    watch::events(app, caller.actor, last_event_id(&headers), AsJson).await
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
