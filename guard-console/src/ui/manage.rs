//! Hosts, tokens, labels and users.

use askama::Template;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Redirect, Response};
use guard_evidence::enforcement::Enforcement;
use guard_evidence::text::visible_fold;
use guard_proto::rest::{Label, LabelBody, NewToken, NewUser, Role};

use super::changes::AlarmView;
use super::form::{Fields, Form};
use super::page::{Failure, Page, Shell, Viewer, html};
use crate::api::identity::Shared;
use crate::app::{Error, Permission};
use crate::time::{Millis, parse_rfc3339};

/// The newest alarms on this page; the others are on their own.
const ALARMS: u64 = 10;

/// Hosts of which the page tells the last days of enforcement.
const TIMELINES: usize = 50;

/// A time twice: to be read without a script, and for the page's clock.
type Time = (String, Millis);

fn time(text: String) -> Time {
    let ms = parse_rfc3339(&text).unwrap_or(0);
    (text, ms)
}

#[derive(Template)]
#[template(path = "hosts.html")]
struct HostsPage {
    shell: Shell,
    error: Option<String>,
    token: Option<TokenView>,
    alarms: Vec<AlarmView>,
    hosts: Vec<HostView>,
    may_revoke: bool,
    may_token: bool,
    csrf: String,
}

struct TokenView {
    token: String,
    expires: String,
    expires_ms: Millis,
}

struct HostView {
    id: String,
    name: String,
    state: String,
    last_seen: Option<Time>,
    enforcing: bool,
    since: Option<Time>,
    kernel: String,
    agent_version: String,
    policy: String,
    policy_short: String,
    lost_events: u64,
    labels: String,
    gaps: usize,
    /// From when to when enforcement was on, in words.
    timeline: Vec<String>,
}

async fn hosts_page(app: &Shared, viewer: &Viewer, token: Option<TokenView>, error: Option<String>) -> Page {
    let actor = &viewer.browser.actor;
    let mut hosts = Vec::new();
    for (number, h) in app.hosts(actor).await?.into_iter().enumerate() {
        let told = if number < TIMELINES {
            app.enforcement(actor, &h.id).await?
        } else {
            Enforcement::default()
        };
        hosts.push(HostView {
            gaps: told.gaps.len(),
            timeline: told.lines(),
            id: h.id,
            name: h.name,
            state: h.state,
            last_seen: h.last_seen.map(time),
            enforcing: h.enforcing,
            since: h.enforcing_since.map(time),
            kernel: h.kernel,
            agent_version: h.agent_version,
            policy_short: h.policy_digest.chars().take(12).collect(),
            policy: h.policy_digest,
            lost_events: h.lost_events,
            labels: h.labels.join(", "),
        });
    }
    let alarms = app
        .alarms(actor, ALARMS, None)
        .await?
        .items
        .into_iter()
        .map(super::changes::view)
        .collect();
    html(&HostsPage {
        shell: Shell::of(app, viewer, "hosts", "Hosts").await?,
        error,
        token,
        alarms,
        hosts,
        may_revoke: actor.may(Permission::RevokeHosts),
        may_token: actor.may(Permission::CreateTokens),
        csrf: viewer.browser.csrf.clone(),
    })
}

pub(super) async fn hosts(State(app): State<Shared>, viewer: Viewer) -> Page {
    hosts_page(&app, &viewer, None, None).await
}

pub(super) async fn create_token(State(app): State<Shared>, form: Form) -> Page {
    let expires_in = form.fields.get("expires_in").parse().ok();
    let body = NewToken {
        expires_in,
        description: form.fields.get("description").to_owned(),
    };
    let token = app.create_token(&form.viewer.browser.actor, &body).await?;
    let (expires, expires_ms) = time(token.expires_at);
    hosts_page(
        &app,
        &form.viewer,
        Some(TokenView {
            token: token.token,
            expires,
            expires_ms,
        }),
        None,
    )
    .await
}

pub(super) async fn revoke_host(
    State(app): State<Shared>,
    Path(id): Path<String>,
    form: Form,
) -> Result<Redirect, Failure> {
    app.revoke_host(&form.viewer.browser.actor, &id).await?;
    Ok(Redirect::to("/hosts"))
}

#[derive(Template)]
#[template(path = "labels.html")]
struct LabelsPage {
    shell: Shell,
    error: Option<String>,
    labels: Vec<Label>,
    /// Who may be made an owner.
    users: Vec<String>,
    may_manage: bool,
    csrf: String,
}

async fn labels_page(app: &Shared, viewer: &Viewer, error: Option<String>) -> Page {
    let actor = &viewer.browser.actor;
    let users = if actor.may(Permission::ManageLabels) {
        app.users(actor)
            .await?
            .into_iter()
            .filter(|u| !u.disabled && !u.service)
            .map(|u| u.username)
            .collect()
    } else {
        Vec::new()
    };
    html(&LabelsPage {
        shell: Shell::of(app, viewer, "labels", "Labels").await?,
        error,
        labels: app.labels(actor).await?,
        users,
        may_manage: actor.may(Permission::ManageLabels),
        csrf: viewer.browser.csrf.clone(),
    })
}

pub(super) async fn labels(State(app): State<Shared>, viewer: Viewer) -> Page {
    labels_page(&app, &viewer, None).await
}

pub(super) async fn put_label(State(app): State<Shared>, form: Form) -> Result<Response, Failure> {
    let owner = form.fields.get("owner");
    let body = LabelBody {
        owner: (!owner.is_empty()).then(|| owner.to_owned()),
        description: form.fields.get("description").to_owned(),
        reason: form.fields.get("reason").to_owned(),
    };
    match app
        .put_label(&form.viewer.browser.actor, form.fields.get("name").trim(), &body, None)
        .await
    {
        Ok(_) => Ok(Redirect::to("/labels").into_response()),
        Err(Error::Invalid(why)) => Ok((
            StatusCode::BAD_REQUEST,
            labels_page(&app, &form.viewer, Some(why)).await?,
        )
            .into_response()),
        Err(error) => Err(Failure(error)),
    }
}

#[derive(Template)]
#[template(path = "users.html")]
struct UsersPage {
    shell: Shell,
    error: Option<String>,
    users: Vec<UserView>,
    may_manage: bool,
    csrf: String,
    form: UserForm,
}

struct UserView {
    username: String,
    roles: String,
    groups: String,
    at: String,
    at_ms: Millis,
    disabled: bool,
    /// As a provider says it.
    display_name: String,
    email: String,
    /// Which provider, or that it is a program.
    from: String,
}

/// What was typed before it was refused; never the password.
#[derive(Debug, Default)]
struct UserForm {
    username: String,
    groups: String,
}

async fn users_page(app: &Shared, viewer: &Viewer, form: UserForm, error: Option<String>) -> Page {
    let actor = &viewer.browser.actor;
    let users = app
        .users(actor)
        .await?
        .into_iter()
        .map(|u| {
            let (at, at_ms) = time(u.created_at);
            UserView {
                username: u.username,
                roles: u.roles.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(", "),
                groups: u.groups.join(", "),
                at,
                at_ms,
                disabled: u.disabled,
                from: match (u.service, u.issuer.as_str()) {
                    (true, _) => "a program".to_owned(),
                    (false, "local") => String::new(),
                    (false, issuer) => format!("{issuer} · {}", visible_fold(&u.subject, 60)),
                },
                display_name: visible_fold(&u.display_name, 80),
                email: visible_fold(&u.email, 80),
            }
        })
        .collect();
    html(&UsersPage {
        shell: Shell::of(app, viewer, "users", "Users").await?,
        error,
        users,
        may_manage: actor.may(Permission::ManageUsers),
        csrf: viewer.browser.csrf.clone(),
        form,
    })
}

pub(super) async fn users(State(app): State<Shared>, viewer: Viewer) -> Page {
    users_page(&app, &viewer, UserForm::default(), None).await
}

/// As forms name it.
pub(super) fn role(name: &str) -> Result<Role, Error> {
    [Role::Administrator, Role::Approver, Role::Operator, Role::Auditor]
        .into_iter()
        .find(|role| role.as_str() == name)
        .ok_or_else(|| Error::Invalid("role: choose among those offered".to_owned()))
}

fn new_user(fields: &Fields) -> Result<NewUser, Error> {
    Ok(NewUser {
        username: fields.get("username").trim().to_owned(),
        password: fields.get("password").to_owned(),
        roles: fields.all("role").map(role).collect::<Result<_, _>>()?,
        groups: fields
            .get("groups")
            .split([' ', ','])
            .filter(|g| !g.is_empty())
            .map(str::to_owned)
            .collect(),
    })
}

pub(super) async fn add_user(State(app): State<Shared>, form: Form) -> Result<Response, Failure> {
    let body = new_user(&form.fields)?;
    match app.add_user(&form.viewer.browser.actor, &body).await {
        Ok(_) => Ok(Redirect::to("/users").into_response()),
        Err(error @ (Error::Invalid(_) | Error::Conflict { .. })) => {
            let typed = UserForm {
                username: body.username,
                groups: form.fields.get("groups").to_owned(),
            };
            let page = users_page(&app, &form.viewer, typed, Some(error.to_string())).await?;
            Ok((StatusCode::BAD_REQUEST, page).into_response())
        }
        Err(error) => Err(Failure(error)),
    }
}

pub(super) async fn disable_user(
    State(app): State<Shared>,
    Path(name): Path<String>,
    form: Form,
) -> Result<Response, Failure> {
    match app.disable_user(&form.viewer.browser.actor, &name).await {
        Ok(()) => Ok(Redirect::to("/users").into_response()),
        Err(Error::Conflict { detail, .. }) => {
            let page = users_page(&app, &form.viewer, UserForm::default(), Some(detail)).await?;
            Ok((StatusCode::CONFLICT, page).into_response())
        }
        Err(error) => Err(Failure(error)),
    }
}
