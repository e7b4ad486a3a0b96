//! Changes of who may decide, and alarms.

use axum::extract::State;
use guard_proto::rest::{Alarm, ChangeView, Page};
use schemars::JsonSchema;
use serde::Deserialize;

use super::Fields;
use super::evidence::time;
use super::requests::cursor;
use crate::api::identity::{Caller, Shared};
use crate::app::Result;
use crate::app::requests::PAGE;
use crate::store::ChangeFilter;

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListFields {
    label: Option<String>,
    user: Option<String>,
    /// Id.
    host: Option<String>,
    from: Option<String>,
    to: Option<String>,
    limit: Option<u64>,
    cursor: Option<String>,
}

/// What changes are about, from what somebody looks for.
pub(crate) fn about(label: Option<String>, user: Option<String>, host: Option<String>) -> Vec<String> {
    let named = |kind: &str, name: Option<String>| name.map(|name| format!("{kind}:{name}"));
    [named("label", label), named("user", user), named("host", host)]
        .into_iter()
        .flatten()
        .collect()
}

pub(super) async fn list(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<ListFields>,
) -> Result<axum::Json<Page<ChangeView>>> {
    let filter = ChangeFilter {
        about: about(fields.label, fields.user, fields.host),
        from: time("from", fields.from.as_deref())?,
        to: time("to", fields.to.as_deref())?,
        before: cursor(fields.cursor.as_deref())?,
        limit: fields.limit.unwrap_or(PAGE),
        ..ChangeFilter::default()
    };
    Ok(axum::Json(app.changes(&caller.actor, filter).await?))
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AlarmFields {
    limit: Option<u64>,
    cursor: Option<String>,
}

pub(super) async fn alarms(
    State(app): State<Shared>,
    caller: Caller,
    Fields(fields): Fields<AlarmFields>,
) -> Result<axum::Json<Page<Alarm>>> {
    let limit = fields.limit.unwrap_or(PAGE);
    Ok(axum::Json(
        app.alarms(&caller.actor, limit, fields.cursor.as_deref()).await?,
    ))
}
