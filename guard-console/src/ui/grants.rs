//! Grants: what is answered without asking, until when, and the button that ends it.

use askama::Template;
use axum::extract::{Path, State};
use axum::response::Redirect;
use guard_proto::rest::Grant;

use super::form::Form;
use super::page::{Failure, Page, Shell, Viewer, html};
use crate::api::identity::Shared;
use crate::app::Permission;
use crate::app::grants::LISTED;
use crate::time::{Millis, parse_rfc3339};

#[derive(Template)]
#[template(path = "grants.html")]
struct GrantsPage {
    shell: Shell,
    grants: Vec<Row>,
    may_revoke: bool,
    csrf: String,
}

struct Row {
    id: String,
    state: String,
    words: String,
    by: String,
    request_id: String,
    at: String,
    at_ms: Millis,
    until: String,
    until_ms: Millis,
    used: String,
    revoked_by: String,
}

impl From<Grant> for Row {
    fn from(grant: Grant) -> Self {
        let ms = |text: &str| parse_rfc3339(text).unwrap_or(0);
        Self {
            at_ms: ms(&grant.granted_at),
            until_ms: ms(&grant.expires_at),
            used: match grant.times {
                Some(times) => format!("{} of {times}", grant.used),
                None => grant.used.to_string(),
            },
            revoked_by: grant.revoked_by.unwrap_or_default(),
            id: grant.id,
            state: grant.state,
            words: grant.words,
            by: grant.by,
            request_id: grant.request_id,
            at: grant.granted_at,
            until: grant.expires_at,
        }
    }
}

pub(super) async fn grants(State(app): State<Shared>, viewer: Viewer) -> Page {
    let actor = &viewer.browser.actor;
    html(&GrantsPage {
        shell: Shell::of(&app, &viewer, "grants", "Grants").await?,
        grants: app
            .grants(actor, LISTED, None)
            .await?
            .items
            .into_iter()
            .map(Row::from)
            .collect(),
        may_revoke: actor.may(Permission::RevokeGrants),
        csrf: viewer.browser.csrf.clone(),
    })
}

pub(super) async fn revoke(State(app): State<Shared>, Path(id): Path<String>, form: Form) -> Result<Redirect, Failure> {
    app.revoke_grant(&form.viewer.browser.actor, &id).await?;
    Ok(Redirect::to("/grants"))
}
