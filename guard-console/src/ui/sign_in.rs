//! Signing in by password, signing out, and the very first form.

use askama::Template;
use axum::extract::{Query, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{Html, IntoResponse, Redirect, Response};
use guard_proto::rest::{LoginBody, SetupBody, SignInWith};
use serde::Deserialize;

use super::form::{Form, OutsideForm};
use super::page::{Failure, Page, Shell, Viewer, html, local_path};
use crate::api::identity::{COOKIE, Peer, Shared};
use crate::api::problem;
use crate::app::sessions::{NewSession, SETUP_FILE, SessionKind};

#[derive(Template)]
#[template(path = "login.html")]
struct LoginPage {
    shell: Shell,
    error: Option<String>,
    needs_setup: bool,
    setup_file: String,
    next: String,
    username: String,
    providers: Vec<SignInWith>,
    /// For the providers' links.
    next_query: String,
    /// Whether the error is about a provider.
    by_provider: bool,
}

/// A page that leads on by itself: a link from elsewhere comes without the cookie (SameSite=Strict), one from here with it.
#[derive(Template)]
#[template(path = "going.html")]
struct GoingPage {
    shell: Shell,
    heading: &'static str,
    words: String,
    to: String,
}

#[derive(Template)]
#[template(path = "setup.html")]
struct SetupPage {
    shell: Shell,
    error: Option<String>,
    done: bool,
    secret: String,
    username: String,
}

#[derive(Debug, Deserialize)]
pub(super) struct Next {
    #[serde(default)]
    pub(super) next: String,
}

/// The sign-in page after a refusal by, or about, an identity provider.
pub(super) async fn refused_by_provider(app: &Shared, next: &str, error: String) -> Page {
    login_form(app, next, "", Some(error), true).await
}

async fn login_form(app: &Shared, next: &str, username: &str, error: Option<String>, by_provider: bool) -> Page {
    let next_query = form_urlencoded::Serializer::new(String::new())
        .append_pair("next", local_path(next))
        .finish();
    html(&LoginPage {
        shell: Shell::outside("Sign in"),
        error,
        needs_setup: app.needs_setup().await?,
        setup_file: app.dir.path(SETUP_FILE).display().to_string(),
        next: local_path(next).to_owned(),
        username: username.to_owned(),
        providers: app.sign_in_with(),
        next_query,
        by_provider,
    })
}

/// A page that leads to `to`.
pub(super) fn going(heading: &'static str, words: String, to: String) -> Page {
    html(&GoingPage {
        shell: Shell::outside(heading),
        heading,
        words,
        to,
    })
}

pub(super) async fn login_page(
    State(app): State<Shared>,
    Query(Next { next }): Query<Next>,
    viewer: Result<Viewer, Response>,
) -> Result<Response, Failure> {
    if viewer.is_ok() {
        return Ok(Redirect::to(local_path(&next)).into_response());
    }
    Ok(login_form(&app, &next, "", None, false).await?.into_response())
}

/// 204: signed in; 200: not. For scripts, and no error in either case.
pub(super) async fn state(viewer: Result<Viewer, Response>) -> StatusCode {
    if viewer.is_ok() {
        StatusCode::NO_CONTENT
    } else {
        StatusCode::OK
    }
}

pub(super) async fn login(
    State(app): State<Shared>,
    Peer(address): Peer,
    OutsideForm(fields): OutsideForm,
) -> Result<Response, Failure> {
    let body = LoginBody {
        username: fields.get("username").to_owned(),
        password: fields.get("password").to_owned(),
    };
    let next = local_path(fields.get("next"));
    match app.sign_in(&body, SessionKind::Web, address).await {
        Ok(session) => Ok(signed_in(&session, next)),
        Err(error) => {
            let (status, ..) = problem::status(&error);
            if status == StatusCode::INTERNAL_SERVER_ERROR {
                return Err(Failure(error));
            }
            let page = login_form(&app, next, &body.username, Some(error.to_string()), false).await?;
            Ok((status, page).into_response())
        }
    }
}

pub(super) async fn logout(State(app): State<Shared>, form: Form) -> Result<Response, Failure> {
    let elsewhere = app.sign_out(&form.viewer.browser.actor).await?;
    let mut response = match elsewhere {
        // Not a redirect: the answer to a form may not lead to another site (form-action).
        Some(url) => {
            let to = url.host_str().unwrap_or_default().to_owned();
            let words = format!("You are signed out of Guard. You are led to {to}, to sign out there too.");
            going("Signed out", words, url.into())?.into_response()
        }
        None => Redirect::to("/login").into_response(),
    };
    let gone = format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0");
    if let Ok(gone) = HeaderValue::from_str(&gone) {
        response.headers_mut().insert(header::SET_COOKIE, gone);
    }
    Ok(response)
}

pub(super) async fn setup_page(State(app): State<Shared>) -> Page {
    setup_form(&app, None, "", "").await
}

async fn setup_form(app: &Shared, error: Option<String>, secret: &str, username: &str) -> Page {
    html(&SetupPage {
        shell: Shell::outside("Set up"),
        error,
        done: !app.needs_setup().await?,
        secret: secret.to_owned(),
        username: username.to_owned(),
    })
}

pub(super) async fn set_up(
    State(app): State<Shared>,
    Peer(address): Peer,
    OutsideForm(fields): OutsideForm,
) -> Result<Response, Failure> {
    let body = SetupBody {
        secret: fields.get("secret").trim().to_owned(),
        username: fields.get("username").to_owned(),
        password: fields.get("password").to_owned(),
    };
    match app.set_up(&body, SessionKind::Web, address).await {
        Ok(session) => Ok(signed_in(&session, "/users")),
        Err(error) => {
            let (status, ..) = problem::status(&error);
            if status == StatusCode::INTERNAL_SERVER_ERROR {
                return Err(Failure(error));
            }
            let page: Html<String> = setup_form(&app, Some(error.to_string()), &body.secret, &body.username).await?;
            Ok((status, page).into_response())
        }
    }
}

/// A new session always has a new secret, so nobody can have planted it.
fn signed_in(session: &NewSession, next: &str) -> Response {
    with_cookie(Redirect::to(next).into_response(), session)
}

/// Gives the browser its session.
pub(super) fn with_cookie(mut response: Response, session: &NewSession) -> Response {
    let cookie = format!(
        "{COOKIE}={}; Path=/; Secure; HttpOnly; SameSite=Strict",
        session.secret.reveal()
    );
    if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
        cookie.set_sensitive(true);
        response.headers_mut().append(header::SET_COOKIE, cookie);
    }
    response
}
