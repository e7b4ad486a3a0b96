//! Labels. Two people who change one at the same time do not overwrite each other: `ETag` and `If-Match`.

use axum::extract::FromRequestParts;
use axum::extract::State;
use axum::http::request::Parts;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, NoContent, Response};
use guard_proto::rest::{Label, LabelBody, Page};
use serde_json::json;

use super::{Fields, Json, Path};
use crate::api::describe::{Description, Gives, Takes};
use crate::api::identity::{Caller, Shared};
use crate::app::paging::Asked;
use crate::app::{Error, Result};

/// The version that a change is meant for; `None`: whatever there is.
#[derive(Debug)]
pub(super) struct IfMatch(Option<String>);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self> {
        let Some(given) = parts.headers.get(header::IF_MATCH) else {
            return Ok(Self(None));
        };
        let tag = given
            .to_str()
            .ok()
            .and_then(|tag| tag.strip_prefix('"')?.strip_suffix('"'));
        let tag = tag.ok_or_else(|| Error::Invalid("If-Match: one ETag of this label, in quotes".to_owned()))?;
        Ok(Self(Some(tag.to_owned())))
    }
}

impl Takes for IfMatch {
    fn describe(about: &mut Description<'_>) {
        about.header("If-Match", "The `ETag` of the label that this change is meant for.");
        let changed =
            json!({"$ref": "#/components/responses/Problem", "description": "Somebody changed it meanwhile."});
        about.responses.insert("412".to_owned(), changed);
    }
}

/// A label with its version as `ETag`.
#[derive(Debug)]
pub(super) struct Tagged(Label);

impl IntoResponse for Tagged {
    fn into_response(self) -> Response {
        let tag = HeaderValue::try_from(format!("\"{}\"", self.0.version));
        let mut response = axum::Json(self.0).into_response();
        if let Ok(tag) = tag {
            response.headers_mut().insert(header::ETAG, tag);
        }
        response
    }
}

impl Gives for Tagged {
    fn describe(about: &mut Description<'_>) {
        axum::Json::<Label>::describe(about);
        if let Some(done) = about.responses.get_mut("200").and_then(|done| done.as_object_mut()) {
            let tag = json!({"ETag": {"description": "For `If-Match`.", "schema": {"type": "string"}}});
            done.insert("headers".to_owned(), tag);
        }
    }
}

pub(super) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Fields(asked): Fields<Asked>,
) -> Result<axum::Json<Page<Label>>> {
    let labels = app.labels(&caller.actor).await?;
    Ok(axum::Json(asked.by_name(labels, |label| &label.name)?))
}

pub(super) async fn show(State(app): State<Shared>, caller: Caller, Path(name): Path<String>) -> Result<Tagged> {
    Ok(Tagged(app.label(&caller.actor, &name).await?))
}

pub(super) async fn put(
    State(app): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    expected: IfMatch,
    Json(body): Json<LabelBody>,
) -> Result<Tagged> {
    let label = app
        .put_label(&caller.actor, &name, &body, expected.0.as_deref())
        .await?;
    Ok(Tagged(label))
}

pub(super) async fn delete(
    State(app): State<Shared>,
    caller: Caller,
    Path(name): Path<String>,
    expected: IfMatch,
) -> Result<NoContent> {
    app.delete_label(&caller.actor, &name, expected.0.as_deref()).await?;
    Ok(NoContent)
}
