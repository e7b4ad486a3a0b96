//! Alarms: what approvers should know although nobody asked them.
//!
//! Owns raising them and listing them. It is given records whose signatures hold, in the transaction that stores them. It
//! must never lose one that a host has reported, nor raise one twice.

use guard_evidence::alarm;
use guard_evidence::record::{Predicate, Statement};
use guard_evidence::statement::summary;
use guard_proto::rest::{Alarm, Page};
use ulid::Ulid;

use super::paging::ulid_cursor;
use super::requests::MAX_PAGE;
use super::{Actor, App, Permission, Result};
use crate::store::{self, HostRow};
use crate::time::{Millis, rfc3339};

/// Alarms of this time stand on every page's menu.
const LATELY_MS: Millis = 24 * 3_600_000;

impl App {
    /// Raises the alarm that a record of a host is, if it is one. Whether it is.
    pub(super) async fn raise(&self, tx: &mut store::Change, host: &HostRow, statement: &Statement) -> Result<bool> {
        let (Some(kind), Some(header)) = (alarm::kind(statement), statement.header()) else {
            return Ok(false);
        };
        let mut detail = format!(
            "{} (record {} of epoch {})",
            summary(statement),
            header.sequence,
            header.epoch
        );
        if let Predicate::Enforcement(record) = &statement.predicate
            && let Some(id) = &record.request_id
            && let Some(request) = store::request_in(tx, id).await?
        {
            detail = format!("{}: {detail}", request.what);
        }
        let id = Ulid::new().to_string();
        let new = store::add_alarm(tx, &id, &host.id, kind, &detail, self.now()).await?;
        if new {
            tracing::warn!(host = %host.name, kind, detail, "alarm");
        }
        Ok(new)
    }

    /// Newest first; `cursor` is the id of the last one seen.
    pub async fn alarms(&self, actor: &Actor, limit: u64, cursor: Option<&str>) -> Result<Page<Alarm>> {
        actor.require(Permission::SeeAlarms)?;
        let cursor = ulid_cursor(cursor)?;
        let limit = limit.clamp(1, MAX_PAGE);
        let mut rows = self.store.alarms(limit + 1, cursor).await?;
        let more = rows.len() as u64 > limit;
        rows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let next = rows.last().filter(|_| more).map(|row| row.id.clone());
        let items = rows
            .into_iter()
            .map(|row| Alarm {
                id: row.id,
                at: rfc3339(row.at),
                host: row.host,
                host_id: row.host_id,
                kind: row.kind,
                detail: row.detail,
            })
            .collect();
        Ok(Page { items, next })
    }

    /// Alarms of the last day.
    pub async fn count_alarms(&self, actor: &Actor) -> Result<u64> {
        actor.require(Permission::SeeAlarms)?;
        Ok(self.store.count_alarms(self.now() - LATELY_MS).await?)
    }
}
