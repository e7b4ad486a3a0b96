//! Forms that pages send: who sent them is checked before a field is read.

use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header;
use axum::response::{IntoResponse, Response};

use super::page::{Failure, Viewer};
use crate::api::identity::{CSRF_HEADER, Shared, check_same_origin};
use crate::api::rest::read_body;
use crate::app::Error;

/// Fields as they were typed.
#[derive(Debug)]
pub(super) struct Fields(Vec<(String, String)>);

impl Fields {
    /// Pure; for tests and fuzzing.
    pub(super) fn parse(body: &[u8]) -> Self {
        Self(form_urlencoded::parse(body).into_owned().collect())
    }

    /// The first field of that name; empty when there is none.
    pub(super) fn get(&self, name: &str) -> &str {
        self.0.iter().find(|(n, _)| n == name).map_or("", |(_, value)| value)
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }
}

/// A form of somebody who is signed in, with its CSRF token checked.
#[derive(Debug)]
pub(super) struct Form {
    pub(super) viewer: Viewer,
    pub(super) fields: Fields,
    pub(super) is_htmx: bool,
}

impl FromRequest<Shared> for Form {
    type Rejection = Response;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Response> {
        let (mut parts, body) = request.into_parts();
        let viewer = Viewer::from_request_parts(&mut parts, app).await?;
        let fields = fields(Request::from_parts(parts.clone(), body)).await?;
        let in_header = parts.headers.get(CSRF_HEADER).and_then(|v| v.to_str().ok());
        let given = in_header.unwrap_or_else(|| fields.get("csrf"));
        viewer
            .browser
            .check_csrf(given, &parts)
            .map_err(|e| Failure(e).into_response())?;
        Ok(Self {
            viewer,
            fields,
            is_htmx: super::page::is_htmx(&parts.headers),
        })
    }
}

/// A form of somebody who is not signed in yet: at least it is this site's own.
#[derive(Debug)]
pub(super) struct OutsideForm(pub(super) Fields);

impl FromRequest<Shared> for OutsideForm {
    type Rejection = Response;

    async fn from_request(request: Request, _: &Shared) -> Result<Self, Response> {
        let (parts, body) = request.into_parts();
        check_same_origin(&parts).map_err(|e| Failure(e).into_response())?;
        Ok(Self(fields(Request::from_parts(parts, body)).await?))
    }
}

async fn fields(request: Request) -> Result<Fields, Response> {
    let kind = request
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok())
        .unwrap_or_default();
    if kind.split(';').next().map(str::trim) != Some("application/x-www-form-urlencoded") {
        return Err(Failure(Error::Invalid("this is not a form of this page".to_owned())).into_response());
    }
    Ok(Fields::parse(&read_body(request).await?))
}
