//! Signing in by an identity provider, as the browser sees it: off to the provider, and back.
//!
//! Owns the cookie of the attempt and where the browser goes. It must never lead to another site than the provider's, nor
//! accept an answer that this browser did not ask for.

use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use serde::Deserialize;

use super::page::{Failure, local_path};
use super::sign_in::{Next, going, refused_by_provider, with_cookie};
use crate::api::identity::{Peer, Shared, cookie_named};
use crate::api::problem;
use crate::app::Error;
use crate::app::sign_on::CameBack;
use crate::auth::oidc::attempt::{Attempt, COOKIE, LASTS_MS};
use crate::time::now;

/// Off to the provider.
pub(super) async fn begin(
    State(app): State<Shared>,
    Path(name): Path<String>,
    Query(Next { next }): Query<Next>,
) -> Result<Response, Failure> {
    match app.begin_sign_on(&name, local_path(&next)).await {
        Ok((url, attempt)) => {
            let mut response = Redirect::to(url.as_str()).into_response();
            // Lax: the provider leads the browser back, which is a navigation from another site.
            let cookie = format!(
                "{COOKIE}={}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={}",
                attempt.cookie(),
                LASTS_MS / 1_000
            );
            if let Ok(mut cookie) = HeaderValue::from_str(&cookie) {
                cookie.set_sensitive(true);
                response.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            Ok(response)
        }
        Err(error) => refused(&app, &next, error).await,
    }
}

/// What providers put into the address that they lead back to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Answer {
    code: String,
    state: String,
    iss: Option<String>,
    error: String,
    error_description: String,
}

/// Back from the provider.
pub(super) async fn callback(
    State(app): State<Shared>,
    Path(name): Path<String>,
    Peer(address): Peer,
    headers: HeaderMap,
    Query(answer): Query<Answer>,
) -> Result<Response, Failure> {
    let Some(attempt) = cookie_named(&headers, COOKIE).and_then(|text| Attempt::parse(text, now())) else {
        let error = Error::SignInFailed(
            "this browser did not begin to sign in here, or that was more than ten minutes ago; begin again".to_owned(),
        );
        return refused(&app, "/", error).await;
    };
    let next = local_path(attempt.next()).to_owned();
    let back = CameBack {
        code: &answer.code,
        state: &answer.state,
        iss: answer.iss.as_deref(),
        error: &answer.error,
        error_description: &answer.error_description,
    };
    let response = match app.finish_sign_on(&name, &attempt, &back, address).await {
        Ok(session) => {
            let words = "You are signed in and led on.".to_owned();
            with_cookie(going("Signed in", words, next)?.into_response(), &session)
        }
        Err(error) => refused(&app, &next, error).await?,
    };
    Ok(forget_attempt(response))
}

/// An attempt is good for one answer.
fn forget_attempt(mut response: Response) -> Response {
    let gone = format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=0");
    if let Ok(gone) = HeaderValue::from_str(&gone) {
        response.headers_mut().append(header::SET_COOKIE, gone);
    }
    response
}

async fn refused(app: &Shared, next: &str, error: Error) -> Result<Response, Failure> {
    let (status, ..) = problem::status(&error);
    if matches!(status, StatusCode::INTERNAL_SERVER_ERROR | StatusCode::NOT_FOUND) {
        return Err(Failure(error));
    }
    let page = refused_by_provider(app, next, error.to_string()).await?;
    Ok((status, page).into_response())
}
