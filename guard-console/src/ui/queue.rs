//! The queue, one request, and answering it.

use askama::Template;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::sse::Event;
use axum::response::{Html, IntoResponse, Redirect, Response};
use guard_evidence::record::Verdict;
use guard_proto::rest::{AnswerBody, ChangeView, GrantTerms, Host, RequestState};
use serde::Deserialize;
use serde_json::json;

use super::answer::{self, Attempt};
use super::card;
use super::form::Form;
use super::page::{Failure, Page, Shell, Viewer, html};
use crate::api::identity::Shared;
use crate::api::problem;
use crate::api::rest::last_event_id;
use crate::api::watch::{self, Render};
use crate::app::requests::{Details, PAGE};
use crate::app::{App, Error, Permission};
use crate::store::RequestFilter;

#[derive(Template)]
#[template(path = "queue.html")]
struct QueuePage {
    shell: Shell,
    rows: Vec<String>,
    card: Option<String>,
    more: bool,
    hosts: usize,
}

#[derive(Template)]
#[template(path = "request.html")]
struct RequestPage {
    shell: Shell,
    card: String,
}

pub(super) async fn queue(State(app): State<Shared>, viewer: Viewer) -> Page {
    let actor = &viewer.browser.actor;
    let filter = RequestFilter {
        state: Some(RequestState::Pending),
        limit: PAGE,
        ..RequestFilter::default()
    };
    let page = app.requests(actor, filter).await?;
    let mut rows = Vec::with_capacity(page.items.len());
    let mut first = None;
    for details in page.items {
        rows.push(card::row(&details)?);
        first.get_or_insert(details);
    }
    let card = match first {
        Some(details) => Some(draw(&app, &viewer, &details).await?),
        None => None,
    };
    html(&QueuePage {
        shell: Shell::of(&app, &viewer, "queue", "Queue").await?,
        rows,
        card,
        more: page.next.is_some(),
        // Who may not see hosts is told how to run something instead.
        hosts: if actor.may(Permission::SeeHosts) {
            app.hosts(actor).await?.len()
        } else {
            1
        },
    })
}

async fn details(app: &Shared, viewer: &Viewer, id: &str) -> Result<Details, Failure> {
    Ok(app.request(&viewer.browser.actor, id).await?)
}

async fn draw(app: &Shared, viewer: &Viewer, details: &Details) -> Result<String, Failure> {
    let before = app.before(details).await?;
    Ok(card::card(details, before, &viewer.browser.csrf)?)
}

pub(super) async fn request(State(app): State<Shared>, viewer: Viewer, Path(id): Path<String>) -> Page {
    let details = details(&app, &viewer, &id).await?;
    let page = if details.row.state == RequestState::Pending {
        "queue"
    } else {
        "history"
    };
    let card = draw(&app, &viewer, &details).await?;
    html(&RequestPage {
        shell: Shell::of(&app, &viewer, page, &details.card.sentence).await?,
        card,
    })
}

pub(super) async fn card(State(app): State<Shared>, viewer: Viewer, Path(id): Path<String>) -> Page {
    Ok(Html(draw(&app, &viewer, &details(&app, &viewer, &id).await?).await?))
}

pub(super) async fn answer_section(State(app): State<Shared>, viewer: Viewer, Path(id): Path<String>) -> Page {
    let details = details(&app, &viewer, &id).await?;
    Ok(Html(answer::answer_section(
        &details,
        &viewer.browser.csrf,
        Attempt::default(),
    )?))
}

pub(super) async fn give_answer(
    State(app): State<Shared>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let verdict = match form.fields.get("verdict") {
        "approve" => Verdict::Allow,
        "deny" => Verdict::Deny,
        _ => return Err(Failure(Error::Invalid("answer with one of the two buttons".to_owned()))),
    };
    answered(&app, &id, &form, verdict, None).await
}

/// Approves, and for longer.
pub(super) async fn give_grant(
    State(app): State<Shared>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    let seconds = form.fields.get("for").parse();
    let times = form.fields.get("times");
    let terms = GrantTerms {
        seconds: seconds.map_err(|_| Error::Invalid("say for how long".to_owned()))?,
        times: if times.is_empty() {
            None
        } else {
            Some(
                times
                    .parse()
                    .map_err(|_| Error::Invalid("say how many times".to_owned()))?,
            )
        },
    };
    answered(&app, &id, &form, Verdict::Allow, Some(terms)).await
}

async fn answered(
    app: &Shared,
    id: &str,
    form: &Form,
    verdict: Verdict,
    grant: Option<GrantTerms>,
) -> Result<Response, Failure> {
    let viewer = &form.viewer;
    let body = AnswerBody {
        reason: form.fields.get("reason").to_owned(),
        digest: form.fields.get("digest").to_owned(),
        grant,
    };
    let answered = app.answer(&viewer.browser.actor, id, verdict, &body, "web").await;
    let (status, attempt) = match answered {
        Ok(_) => (StatusCode::OK, Attempt::default()),
        // These are said in place, next to the request as it stands now.
        Err(error @ (Error::Invalid(_) | Error::Conflict { .. } | Error::Forbidden(_))) => (
            problem::status(&error).0,
            Attempt {
                error: Some(error.to_string()),
                reason: body.reason,
            },
        ),
        Err(error) => return Err(Failure(error)),
    };
    if !form.is_htmx && status == StatusCode::OK {
        return Ok(Redirect::to(&format!("/requests/{id}")).into_response());
    }
    if !form.is_htmx {
        return Err(Failure(Error::Invalid(attempt.error.unwrap_or_default())));
    }
    let details = details(app, viewer, id).await?;
    let section = answer::answer_section(&details, &viewer.browser.csrf, attempt)?;
    Ok((status, Html(section)).into_response())
}

#[derive(Debug, Deserialize)]
pub(super) struct Since {
    since: Option<u64>,
}

pub(super) async fn events(
    State(app): State<Shared>,
    viewer: Viewer,
    Query(Since { since }): Query<Since>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Failure> {
    let actor = viewer.browser.actor;
    actor.require(Permission::SeeRequests)?;
    Ok(watch::events(app, actor, last_event_id(&headers).or(since), AsRows).await?)
}

/// Rows for the queue; the page asks for the open card's answer section itself.
struct AsRows;

impl Render for AsRows {
    async fn request(&self, _: &App, details: Details) -> Result<Option<Event>, Error> {
        let data = json!({
            "id": details.row.id,
            "state": details.row.state,
            "version": answer::version(&details),
            "row": card::row(&details)?,
        });
        Ok(Event::default().event("request").json_data(data).ok())
    }

    fn host(&self, _: &Host) -> Option<Event> {
        None
    }

    fn change(&self, _: &ChangeView) -> Option<Event> {
        None
    }

    /// Lists that are looked at are asked for again.
    fn changed(&self) -> Option<Event> {
        Some(Event::default().event("changes").data("."))
    }

    fn ready(&self) -> Option<Event> {
        Some(Event::default().event("ready").data("."))
    }
}
