//! History and evidence: lists with filters that are links.

use askama::Template;
use axum::extract::{Query, State};
use guard_evidence::statement::sentence;
use guard_evidence::text::visible;
use guard_proto::rest::RequestState;
use serde::Deserialize;

use super::answer;
use super::markup::styled;
use super::page::{Page, Shell, Viewer, html};
use crate::api::identity::Shared;
use crate::api::rest::cursor;
use crate::app::requests::PAGE;
use crate::store::{RecordFilter, RequestFilter};
use crate::time::{Millis, parse_rfc3339, rfc3339};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct HistoryFields {
    state: String,
    label: String,
    host: String,
    cursor: String,
}

#[derive(Template)]
#[template(path = "history.html")]
struct HistoryPage {
    shell: Shell,
    state: String,
    label: String,
    host: String,
    chips: Vec<Chip>,
    items: Vec<Item>,
    filtered: bool,
    next: Option<String>,
}

struct Chip {
    name: &'static str,
    href: String,
    on: bool,
}

struct Item {
    id: String,
    state: &'static str,
    at: String,
    at_ms: Millis,
    sentence: Vec<String>,
    word: &'static str,
    by: String,
    reason: String,
    outcome: String,
}

/// A link to `path` with those fields that say something.
pub(super) fn link(path: &str, fields: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (name, value) in fields.iter().filter(|(_, value)| !value.is_empty()) {
        query.append_pair(name, value);
    }
    format!("{path}?{}", query.finish())
}

pub(super) fn given(text: &str) -> Option<String> {
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) async fn history(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<HistoryFields>) -> Page {
    const STATES: [(&str, Option<RequestState>); 5] = [
        ("", None),
        ("approved", Some(RequestState::Approved)),
        ("denied", Some(RequestState::Denied)),
        ("timed_out", Some(RequestState::TimedOut)),
        ("withdrawn", Some(RequestState::Withdrawn)),
    ];
    let (state_name, state) = STATES
        .into_iter()
        .find(|(name, _)| *name == fields.state)
        .unwrap_or(("", None));
    let filter = RequestFilter {
        state,
        ended: true,
        label: given(&fields.label),
        host: given(&fields.host),
        cursor: cursor(Some(&fields.cursor))?,
        limit: PAGE,
        oldest_first: false,
    };
    let actor = &viewer.browser.actor;
    let page = app.requests(actor, filter).await?;
    let mut items = Vec::with_capacity(page.items.len());
    for d in page.items {
        let at_ms = d.row.ended_at.unwrap_or(d.row.asked_at);
        items.push(Item {
            state: d.row.state.as_str(),
            at: rfc3339(at_ms),
            at_ms,
            sentence: styled(&sentence(&d.card.record)),
            word: answer::state_word(d.row.state),
            by: answer::decided_by(&d),
            reason: d
                .answers
                .iter()
                .rev()
                .map(|a| visible(&a.reason))
                .find(|r| !r.is_empty())
                .unwrap_or_default(),
            outcome: answer::outcome(&d).or(d.row.ended_because.clone()).unwrap_or_default(),
            id: d.row.id,
        });
    }
    let to = |state: &str, cursor: &str| {
        link(
            "/history",
            &[
                ("state", state),
                ("label", &fields.label),
                ("host", &fields.host),
                ("cursor", cursor),
            ],
        )
    };
    let chips = STATES
        .iter()
        .map(|(name, state)| Chip {
            name: state.map_or("All", answer::state_word),
            href: to(name, ""),
            on: *name == state_name,
        })
        .collect();
    html(&HistoryPage {
        shell: Shell::of(&app, &viewer, "history", "History").await?,
        chips,
        items,
        filtered: state.is_some() || !fields.label.is_empty() || !fields.host.is_empty(),
        next: page.next.map(|next| to(state_name, &next)),
        state: state_name.to_owned(),
        label: fields.label,
        host: fields.host,
    })
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct EvidenceFields {
    host: String,
    label: String,
    request: String,
    kind: String,
    cursor: String,
}

#[derive(Template)]
#[template(path = "evidence.html")]
struct EvidencePage {
    shell: Shell,
    host: String,
    label: String,
    request: String,
    kind: String,
    kinds: [&'static str; 5],
    items: Vec<RecordItem>,
    next: Option<String>,
}

struct RecordItem {
    index: u64,
    at: String,
    at_ms: Millis,
    host: String,
    epoch: u64,
    sequence: u64,
    kind: String,
    summary: String,
    /// Only of requests that have a page.
    request_id: Option<String>,
    digest: String,
    short: String,
}

pub(super) async fn evidence(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<EvidenceFields>) -> Page {
    let filter = RecordFilter {
        host: given(&fields.host),
        label: given(&fields.label),
        request: given(&fields.request),
        kind: given(&fields.kind),
        cursor: cursor(Some(&fields.cursor))?,
        limit: PAGE,
        ..RecordFilter::default()
    };
    let page = app.records(&viewer.browser.actor, filter).await?;
    let items = page
        .items
        .into_iter()
        .map(|r| RecordItem {
            index: r.index,
            at_ms: parse_rfc3339(&r.at).unwrap_or(0),
            at: r.at,
            host: r.host,
            epoch: r.epoch,
            sequence: r.sequence,
            kind: r.kind,
            summary: r.summary,
            request_id: r.request_id.filter(|id| id.bytes().all(|b| b.is_ascii_alphanumeric())),
            short: r.digest.chars().take(12).collect(),
            digest: r.digest,
        })
        .collect();
    let next = page.next.map(|next| {
        link(
            "/evidence",
            &[
                ("host", &fields.host),
                ("label", &fields.label),
                ("request", &fields.request),
                ("kind", &fields.kind),
                ("cursor", &next),
            ],
        )
    });
    html(&EvidencePage {
        shell: Shell::of(&app, &viewer, "evidence", "Evidence").await?,
        kinds: ["request", "decision", "enforcement", "lifecycle", "change"],
        items,
        next,
        host: fields.host,
        label: fields.label,
        request: fields.request,
        kind: fields.kind,
    })
}
