//! Errors as RFC 9457 problems.

use axum::Json;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use guard_proto::rest::Problem;

use crate::app::Error;

/// What is left of a limit.
pub(crate) const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const TYPE: &str = "urn:guard:problem:";

/// A problem document with its status.
#[must_use]
pub fn problem(status: StatusCode, name: &str, title: &str, detail: Option<String>) -> Response {
    let body = Problem {
        kind: format!("{TYPE}{name}"),
        title: title.to_owned(),
        status: status.as_u16(),
        detail,
    };
    let mut response = (status, Json(body)).into_response();
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/problem+json"),
    );
    response
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let text = self.to_string();
        let (status, name, title) = status(&self);
        let detail = match &self {
            Self::Internal(why) => {
                tracing::error!(why, "request failed");
                "the console's log says why".to_owned()
            }
            _ => text,
        };
        let mut response = problem(status, name, title, Some(detail));
        if let Self::TooMany { seconds } = self {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
            if let Ok(none_left) = HeaderValue::try_from(format!("\"calls\";r=0;t={seconds}")) {
                response.headers_mut().insert(RATE_LIMIT, none_left);
            }
        }
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// Status, stable name and title of each kind of error.
pub(crate) fn status(error: &Error) -> (StatusCode, &'static str, &'static str) {
    match error {
        Error::SignInFirst => (StatusCode::UNAUTHORIZED, "unauthenticated", "Not signed in"),
        Error::SignInFailed(_) => (StatusCode::UNAUTHORIZED, "sign-in-failed", "Sign-in failed"),
        Error::Forbidden(_) => (StatusCode::FORBIDDEN, "forbidden", "Not permitted"),
        Error::NotFound { .. } => (StatusCode::NOT_FOUND, "not-found", "Not found"),
        Error::Conflict { kind, .. } => (StatusCode::CONFLICT, kind, "Not possible as it stands"),
        Error::Changed(_) => (StatusCode::PRECONDITION_FAILED, "changed", "Changed meanwhile"),
        Error::Reused => (
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "Another call had this key",
        ),
        Error::Invalid(_) => (StatusCode::BAD_REQUEST, "invalid", "Not valid"),
        Error::TooMany { .. } => (StatusCode::TOO_MANY_REQUESTS, "too-many-attempts", "Too many attempts"),
        Error::Busy(_) => (StatusCode::SERVICE_UNAVAILABLE, "busy", "Busy"),
        Error::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "Internal error"),
    }
}
