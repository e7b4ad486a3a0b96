//! Evidence: lists and exact bytes.

use axum::body::Body;
use axum::extract::State;
use guard_evidence::bundle::Filter;
use guard_proto::rest::{OutputView, Page, RecordView};
use schemars::JsonSchema;
use serde::Deserialize;

use super::answers::{Bundle, Envelope, ReadyJson};
use super::requests::cursor;
use super::{Fields, Path};
use crate::api::identity::{Caller, Shared};
use crate::app::requests::PAGE;
use crate::app::{Error, Result};
use crate::store::RecordFilter;
use crate::time::{Millis, parse_rfc3339};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListFields {
    host: Option<String>,
    label: Option<String>,
    request: Option<String>,
    kind: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u64>,
    cursor: Option<String>,
}

impl ListFields {
    fn filter(self) -> Result<RecordFilter> {
        Ok(RecordFilter {
            host: self.host,
            label: self.label,
            request: self.request,
            kind: self.kind,
            from: time("from", self.from.as_deref())?,
            to: time("to", self.to.as_deref())?,
            cursor: cursor(self.cursor.as_deref())?,
            limit: self.limit.unwrap_or(PAGE),
        })
    }
}

pub(super) fn time(field: &str, text: Option<&str>) -> Result<Option<Millis>> {
    text.map(|t| {
        parse_rfc3339(t).map_err(|_| Error::Invalid(format!("{field}: not a time such as 2026-10-01T12:00:00Z")))
    })
    .transpose()
}

pub(super) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<ListFields>,
) -> Result<axum::Json<Page<RecordView>>> {
    Ok(axum::Json(app.records(&caller.actor, fields.filter()?).await?))
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct BundleFields {
    host: Option<String>,
    label: Option<String>,
    from: Option<String>,
    to: Option<String>,
}

pub(super) async fn bundle(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<BundleFields>,
) -> Result<Bundle> {
    let filter = RecordFilter {
        host: fields.host.clone(),
        label: fields.label.clone(),
        from: time("from", fields.from.as_deref())?,
        to: time("to", fields.to.as_deref())?,
        ..RecordFilter::default()
    };
    let asked = Filter {
        host: fields.host,
        label: fields.label,
        from: fields.from,
        to: fields.to,
    };
    let stream = app.export(&caller.actor, filter, asked).await?;
    Ok(Bundle(Body::from_stream(stream)))
}

pub(super) async fn outputs(State(app): State<Shared>, caller: Caller) -> Result<axum::Json<Page<OutputView>>> {
    Ok(axum::Json(app.outputs(&caller.actor).await?))
}

pub(super) async fn trust(State(app): State<Shared>, caller: Caller) -> Result<ReadyJson<Vec<u8>>> {
    Ok(ReadyJson(app.trust(&caller.actor).await?))
}

pub(super) async fn show(State(app): State<Shared>, caller: Caller, Path(digest): Path<String>) -> Result<Envelope> {
    Ok(Envelope(app.record(&caller.actor, &digest).await?))
}
