//! Bodies and queries, parsed once: what is wrong comes back as a problem that names the field.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, FromRequestParts, Path as AxumPath, Query, Request};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use futures::StreamExt as _;
use guard_proto::limits::HTTP_BODY_BYTES;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::api::describe::{Description, Takes};
use crate::api::problem::problem;
use crate::app::Error;

/// A body that trickles in slower than this is given up.
const READ: Duration = Duration::from_secs(20);
/// How much of a body that nobody reads is still taken before the answer goes out.
const LEFT_OVER: usize = 16 * HTTP_BODY_BYTES;

/// Takes what the handler left of the body before the answer goes out: a refusal (413, 415, 401) that overtakes the
/// body resets an HTTP/2 stream, and many clients then report the reset and lose the answer. Nothing of it is kept.
pub async fn take_left_over(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    if axum::body::HttpBody::is_end_stream(&body) {
        return next.run(Request::from_parts(parts, body)).await;
    }
    let body = Arc::new(Mutex::new(body.into_data_stream()));
    let shared = || {
        let body = Arc::clone(&body);
        futures::stream::poll_fn(move |cx| body.lock().poll_next_unpin(cx))
    };
    let handled = Request::from_parts(parts, Body::from_stream(shared()));
    let response = next.run(handled).await;
    let drain = async {
        let mut left = shared();
        let mut taken = 0;
        while let Some(Ok(chunk)) = left.next().await {
            taken += chunk.len();
            if taken > LEFT_OVER {
                break;
            }
        }
    };
    // Too slow or too much: the answer goes out all the same, and the rest is reset.
    let _elapsed = tokio::time::timeout(READ, drain).await;
    response
}

/// A JSON body.
#[derive(Debug)]
pub struct Json<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Response;

    async fn from_request(request: Request, _: &S) -> Result<Self, Response> {
        let kind = request
            .headers()
            .get(header::CONTENT_TYPE)
            .and_then(|v| v.to_str().ok())
            .unwrap_or_default();
        if kind.split(';').next().map(str::trim) != Some("application/json") {
            let detail = "send the body with Content-Type: application/json".to_owned();
            return Err(problem(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "not-json",
                "Not JSON",
                Some(detail),
            ));
        }
        let body = read(request).await?;
        parse(&body)
            .map(Self)
            .map_err(|why| problem(StatusCode::BAD_REQUEST, "invalid-body", "Not valid", Some(why)))
    }
}

impl<T: JsonSchema> Takes for Json<T> {
    fn describe(about: &mut Description<'_>) {
        let schema = about.taken.subschema_for::<T>().to_value();
        about.body = Some(json!({"required": true, "content": {"application/json": {"schema": schema}}}));
    }
}

/// Reads a body up to the limit.
pub(crate) async fn read(request: Request) -> Result<axum::body::Bytes, Response> {
    let reading = axum::body::to_bytes(request.into_body(), HTTP_BODY_BYTES);
    match tokio::time::timeout(READ, reading).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let detail = format!("the body is larger than {HTTP_BODY_BYTES} bytes, or broke off");
            Err(problem(
                StatusCode::PAYLOAD_TOO_LARGE,
                "too-large",
                "Too large",
                Some(detail),
            ))
        }
        Err(_) => {
            let detail = "the body did not arrive in time".to_owned();
            Err(problem(
                StatusCode::REQUEST_TIMEOUT,
                "timeout",
                "Timed out",
                Some(detail),
            ))
        }
    }
}

/// Pure; for tests and fuzzing. The error says where.
///
/// # Errors
/// Whatever is not a `T`: `users.0.name: invalid type: …`.
pub(crate) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = guard_evidence::text::visible_fold(&e.path().to_string(), 100);
        let why = guard_evidence::text::visible_fold(&e.inner().to_string(), 300);
        if path == "." { why } else { format!("{path}: {why}") }
    })?;
    json.end().map_err(|e| e.to_string())?;
    Ok(value)
}

/// Query parameters.
#[derive(Debug)]
pub struct Fields<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Fields<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(fields)) => Ok(Self(fields)),
            Err(rejection) => {
                let why = guard_evidence::text::visible_fold(&rejection.body_text(), 300);
                Err(Error::Invalid(format!("query: {why}")).into_response())
            }
        }
    }
}

impl<T: JsonSchema> Takes for Fields<T> {
    fn describe(about: &mut Description<'_>) {
        let schema = T::json_schema(about.taken).to_value();
        let none = Map::new();
        let fields = schema.get("properties").and_then(Value::as_object).unwrap_or(&none);
        for (name, field) in fields {
            let mut field = without_null(field.clone());
            let words = field.as_object_mut().and_then(|field| field.remove("description"));
            let mut parameter = json!({"name": name, "in": "query", "required": false, "schema": field});
            if let (Some(words), Some(parameter)) = (words, parameter.as_object_mut()) {
                parameter.insert("description".to_owned(), words);
            }
            about.parameters.push(parameter);
        }
    }
}

/// A query has no null: what is optional is left out.
fn without_null(mut schema: Value) -> Value {
    let Some(object) = schema.as_object_mut() else {
        return schema;
    };
    if let Some(Value::Array(kinds)) = object.get_mut("type") {
        kinds.retain(|kind| kind != "null");
    }
    if let Some(Value::Array(kinds)) = object.get_mut("anyOf") {
        kinds.retain(|kind| kind.get("type") != Some(&json!("null")));
    }
    schema
}

/// What stands in the braces of a path.
#[derive(Debug)]
pub struct Path<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Response;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Response> {
        match AxumPath::<T>::from_request_parts(parts, state).await {
            Ok(AxumPath(value)) => Ok(Self(value)),
            Err(rejection) => {
                let why = guard_evidence::text::visible_fold(&rejection.body_text(), 300);
                Err(Error::Invalid(format!("path: {why}")).into_response())
            }
        }
    }
}

/// The document has it from the path itself.
impl<T> Takes for Path<T> {}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_proto::rest::NewUser;

    #[test]
    fn errors_name_the_field() {
        for (body, expected) in [
            ("{", "EOF"),
            ("[]", "invalid"),
            (
                r#"{"username":"a","password":"b","roles":["king"]}"#,
                "roles[0]: unknown variant",
            ),
            (r#"{"username":1}"#, "username: invalid type"),
            (
                r#"{"username":"a","password":"b","roles":[],"admin":true}"#,
                "admin: unknown field",
            ),
            (r#"{"username":"a","password":"b","roles":[]} x"#, "trailing"),
        ] {
            let error = parse::<NewUser>(body.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
