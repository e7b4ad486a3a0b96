//! What every call of the REST API goes through: who calls, how often, and whether it is the same call again.
//!
//! Owns the order of these and their headers. It is given a request before any handler. It must never carry out a second time
//! what an `Idempotency-Key` says is one.

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{FromRequestParts as _, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use guard_evidence::statement::sha256_hex;

use super::identity::{Caller, Peer, Shared};
use super::problem::RATE_LIMIT;
use super::rest::read_body;
use crate::app::idempotency::{Answer, Attempt};
use crate::app::{Actor, Error, Result};
use crate::auth::rate::Standing;

pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Says that an answer is an earlier one.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const KEY_BYTES: std::ops::RangeInclusive<usize> = 16..=200;
/// The most of an answer that is kept.
const ANSWER_BYTES: usize = 1 << 20;

/// Any call, of pages too: from one address not more than its limit.
pub async fn by_address(State(app): State<Shared>, Peer(address): Peer, request: Request, next: Next) -> Response {
    match app.call_from(address) {
        Ok(_) => next.run(request).await,
        Err(error) => error.into_response(),
    }
}

/// A call of the REST API.
pub async fn rest(State(app): State<Shared>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let caller = match Caller::from_request_parts(&mut parts, &app).await {
        Ok(caller) => caller,
        Err(error @ Error::TooMany { .. }) => return error.into_response(),
        // Whoever needs to know who calls finds the same reason, and others answer without.
        Err(_) => return next.run(Request::from_parts(parts, body)).await,
    };
    let standing = caller.standing;
    let actor = caller.actor.clone();
    parts.extensions.insert(caller);
    let mut response = match key(&parts) {
        Ok(None) => next.run(Request::from_parts(parts, body)).await,
        Ok(Some(key)) => once(app, &actor, &key, Request::from_parts(parts, body), next).await,
        Err(error) => error.into_response(),
    };
    tell(&mut response, standing);
    response
}

/// The key of a call that may not be carried out twice.
fn key(parts: &Parts) -> Result<Option<String>> {
    let Some(given) = parts
        .headers
        .get(IDEMPOTENCY_KEY)
        .filter(|_| parts.method == Method::POST)
    else {
        return Ok(None);
    };
    let text = given.to_str().unwrap_or_default();
    // A string of structured fields, or bare.
    let text = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'))
        .unwrap_or(text);
    if !KEY_BYTES.contains(&text.len()) || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Error::Invalid(format!(
            "Idempotency-Key: {} to {} characters that nobody guesses, such as a UUID",
            KEY_BYTES.start(),
            KEY_BYTES.end()
        )));
    }
    Ok(Some(text.to_owned()))
}

/// Carries a call out, unless it was before: then its answer comes again.
async fn once(app: Shared, actor: &Actor, key: &str, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let body = match read_body(Request::new(body)).await {
        Ok(body) => body,
        Err(response) => return response,
    };
    let claim = match app.claim(actor, key, &fingerprint(actor, &parts, &body)).await {
        Ok(Attempt::First(claim)) => claim,
        Ok(Attempt::Again(answer)) => return again(answer),
        Err(error) => return error.into_response(),
    };
    let request = Request::from_parts(parts, Body::from(body));
    // On its own, so that a caller who hangs up leaves no call half done and its answer unknown.
    let carried_out = tokio::spawn(async move {
        let (parts, body) = next.run(request).await.into_parts();
        let Ok(body) = to_bytes(body, ANSWER_BYTES).await else {
            return Error::internal("an answer is too large to be kept").into_response();
        };
        let kind = parts.headers.get(header::CONTENT_TYPE);
        let answer = Answer {
            status: parts.status.as_u16(),
            kind: kind.and_then(|kind| kind.to_str().ok()).map(str::to_owned),
            body: body.to_vec(),
        };
        if let Err(error) = app.settle(&claim, &answer).await {
            tracing::error!(%error, "an answer could not be kept: its idempotency key stays taken");
        }
        Response::from_parts(parts, Body::from(body))
    });
    carried_out
        .await
        .unwrap_or_else(|error| Error::internal(error.to_string()).into_response())
}

/// What the same call is recognised by. Roles are in it: what an account was answered with some, it is not answered with others.
fn fingerprint(actor: &Actor, parts: &Parts, body: &Bytes) -> String {
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let roles: Vec<_> = actor.roles.iter().map(|role| role.as_str()).collect();
    let call = format!("{} {target} {} {}", parts.method, roles.join(","), sha256_hex(body));
    sha256_hex(call.as_bytes())
}

fn again(answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = (status, answer.body).into_response();
    response.headers_mut().remove(header::CONTENT_TYPE);
    if let Some(kind) = answer.kind.and_then(|kind| HeaderValue::try_from(kind).ok()) {
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
    }
    response
        .headers_mut()
        .insert(REPLAYED, HeaderValue::from_static("true"));
    response
}

/// What is left to this account.
fn tell(response: &mut Response, standing: Standing) {
    let Standing {
        limit,
        remaining,
        reset,
    } = standing;
    for (name, value) in [
        (RATE_LIMIT_POLICY, format!("\"calls\";q={limit};w=60")),
        (RATE_LIMIT, format!("\"calls\";r={remaining};t={reset}")),
    ] {
        if let Ok(value) = HeaderValue::try_from(value) {
            response.headers_mut().insert(name, value);
        }
    }
}
