//! Changes of who may decide, and alarms: lists that stay true while they are looked at.

use askama::Template;
use axum::extract::{Query, State};
use guard_evidence::text::visible;
use serde::Deserialize;

use super::answer::Mark;
use super::lists::{given, link};
use super::page::{Page, Shell, Viewer, html};
use crate::api::identity::Shared;
use crate::api::rest::{about, cursor};
use crate::app::Permission;
use crate::app::requests::PAGE;
use crate::store::ChangeFilter;
use crate::time::{Millis, parse_rfc3339};

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ChangesFields {
    label: String,
    user: String,
    cursor: String,
}

#[derive(Template)]
#[template(path = "changes.html")]
struct ChangesPage {
    shell: Shell,
    label: String,
    user: String,
    rows: String,
    /// Where the page asks for its rows again.
    reload: String,
}

#[derive(Template)]
#[template(path = "changes_rows.html")]
struct ChangesRows {
    items: Vec<Mark>,
    next: Option<String>,
}

async fn change_rows(app: &Shared, viewer: &Viewer, fields: &ChangesFields) -> Result<ChangesRows, crate::app::Error> {
    let filter = ChangeFilter {
        about: about(given(&fields.label), given(&fields.user), None),
        before: cursor(Some(&fields.cursor))?,
        limit: PAGE,
        ..ChangeFilter::default()
    };
    let page = app.changes(&viewer.browser.actor, filter).await?;
    Ok(ChangesRows {
        items: page.items.iter().map(Mark::of).collect(),
        next: page.next.map(|next| fields.link("/changes", &next)),
    })
}

impl ChangesFields {
    fn link(&self, path: &str, cursor: &str) -> String {
        link(
            path,
            &[("label", &self.label), ("user", &self.user), ("cursor", cursor)],
        )
    }
}

pub(super) async fn changes(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<ChangesFields>) -> Page {
    let rows = change_rows(&app, &viewer, &fields).await?;
    html(&ChangesPage {
        shell: Shell::of(&app, &viewer, "changes", "Changes").await?,
        rows: rows.render()?,
        reload: fields.link("/changes/rows", &fields.cursor),
        label: fields.label,
        user: fields.user,
    })
}

pub(super) async fn rows(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<ChangesFields>) -> Page {
    html(&change_rows(&app, &viewer, &fields).await?)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AlarmsFields {
    cursor: String,
}

#[derive(Template)]
#[template(path = "alarms.html")]
struct AlarmsPage {
    shell: Shell,
    rows: String,
    reload: String,
}

#[derive(Template)]
#[template(path = "alarms_rows.html")]
struct AlarmsRows {
    /// Hosts that nobody hears from now.
    silent: Vec<Silent>,
    alarms: Vec<AlarmView>,
    next: Option<String>,
}

struct Silent {
    host: String,
    seen: String,
    seen_ms: Millis,
}

pub(super) struct AlarmView {
    pub(super) at: String,
    pub(super) at_ms: Millis,
    pub(super) host: String,
    pub(super) kind: String,
    pub(super) detail: String,
}

pub(super) fn view(alarm: guard_proto::rest::Alarm) -> AlarmView {
    AlarmView {
        at_ms: parse_rfc3339(&alarm.at).unwrap_or(0),
        at: alarm.at,
        host: visible(&alarm.host),
        kind: alarm.kind,
        detail: alarm.detail,
    }
}

async fn alarm_rows(app: &Shared, viewer: &Viewer, fields: &AlarmsFields) -> Result<AlarmsRows, crate::app::Error> {
    let actor = &viewer.browser.actor;
    let page = app.alarms(actor, PAGE, given(&fields.cursor).as_deref()).await?;
    let silent = if actor.may(Permission::SeeHosts) {
        let hosts = app.hosts(actor).await?.into_iter().filter(|h| h.state == "offline");
        let silent = hosts.map(|host| {
            let seen = host.last_seen.unwrap_or(host.enrolled_at);
            Silent {
                host: host.name,
                seen_ms: parse_rfc3339(&seen).unwrap_or(0),
                seen,
            }
        });
        silent.collect()
    } else {
        Vec::new()
    };
    Ok(AlarmsRows {
        silent,
        alarms: page.items.into_iter().map(view).collect(),
        next: page.next.map(|next| link("/alarms", &[("cursor", &next)])),
    })
}

pub(super) async fn alarms(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<AlarmsFields>) -> Page {
    let rows = alarm_rows(&app, &viewer, &fields).await?;
    html(&AlarmsPage {
        shell: Shell::of(&app, &viewer, "alarms", "Alarms").await?,
        rows: rows.render()?,
        reload: link("/alarms/rows", &[("cursor", &fields.cursor)]),
    })
}

pub(super) async fn alarm_list(State(app): State<Shared>, viewer: Viewer, Query(fields): Query<AlarmsFields>) -> Page {
    html(&alarm_rows(&app, &viewer, &fields).await?)
}
