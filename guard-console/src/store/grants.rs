//! Grants, with how often each was used.

use guard_evidence::grant::{Grant, GrantUse};
use sqlx::Row as _;

use super::users::{user, user_columns};
use super::{Change, Result, Row, Store, StoreError, UserRow, from_json, json, signed, unsigned};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct GrantRow {
    pub grant: Grant,
    pub user_id: String,
    pub granted_at: Millis,
    pub expires_at: Millis,
    pub used: u32,
    pub last_used_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
    pub revoked_by: Option<String>,
}

macro_rules! select_grant {
    ($rest:literal) => {
        concat!(
            "SELECT g.facts, g.user_id, g.granted_at, g.expires_at, g.used, g.last_used_at, g.revoked_at, g.revoked_by, ",
            user_columns!(),
            " FROM grants g JOIN users u ON u.id = g.user_id ",
            $rest
        )
    };
}

/// With who made it.
fn grant(row: &Row) -> Result<(GrantRow, UserRow)> {
    let grant = GrantRow {
        grant: from_json(row.try_get("facts")?)?,
        user_id: row.try_get("user_id")?,
        granted_at: row.try_get("granted_at")?,
        expires_at: row.try_get("expires_at")?,
        used: u32::try_from(unsigned(row.try_get("used")?)?).map_err(|_| StoreError::Damaged("uses".to_owned()))?,
        last_used_at: row.try_get("last_used_at")?,
        revoked_at: row.try_get("revoked_at")?,
        revoked_by: row.try_get("revoked_by")?,
    };
    Ok((grant, user(row)?))
}

impl Store {
    /// Newest first, those before `cursor` (an id).
    pub async fn grants(&self, limit: u64, cursor: Option<&str>) -> Result<Vec<(GrantRow, UserRow)>> {
        let rows = sqlx::query(select_grant!(
            "WHERE $2 IS NULL OR g.id < $2 ORDER BY g.id DESC LIMIT $1"
        ))
        .bind(signed(limit))
        .bind(cursor)
        .fetch_all(&mut *self.reader().await?)
        .await?;
        rows.iter().map(grant).collect()
    }
}

pub(crate) async fn grant_in(change: &mut Change, id: &str) -> Result<Option<(GrantRow, UserRow)>> {
    let row = sqlx::query(select_grant!("WHERE g.id = $1"))
        .bind(id)
        .fetch_optional(&mut **change)
        .await?;
    row.as_ref().map(grant).transpose()
}

/// Those that are not over, oldest first.
pub(crate) async fn open_grants(
    change: &mut Change,
    host_id: &str,
    label: &str,
    at: Millis,
) -> Result<Vec<(GrantRow, UserRow)>> {
    let rows = sqlx::query(select_grant!(
        "WHERE g.host_id = $1 AND g.label = $2 AND g.expires_at > $3 AND g.revoked_at IS NULL
           AND (g.times IS NULL OR g.used < g.times) ORDER BY g.granted_at, g.id LIMIT 1000"
    ))
    .bind(host_id)
    .bind(label)
    .bind(at)
    .fetch_all(&mut **change)
    .await?;
    rows.iter().map(grant).collect()
}

pub(crate) async fn add_grant(change: &mut Change, row: &GrantRow) -> Result<()> {
    let sql = "INSERT INTO grants (id, host_id, label, facts, user_id, granted_at, expires_at, times)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    sqlx::query(sql)
        .bind(&row.grant.id)
        .bind(&row.grant.host_id)
        .bind(&row.grant.label)
        .bind(json(&row.grant)?)
        .bind(&row.user_id)
        .bind(row.granted_at)
        .bind(row.expires_at)
        .bind(row.grant.times.map(i64::from))
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Counts a use, and notes it at the request that it answers.
pub(crate) async fn use_grant(change: &mut Change, request: &str, used: &GrantUse, at: Millis) -> Result<()> {
    sqlx::query("UPDATE grants SET used = $1, last_used_at = $2 WHERE id = $3")
        .bind(i64::from(used.number))
        .bind(at)
        .bind(&used.grant.id)
        .execute(&mut **change)
        .await?;
    sqlx::query("UPDATE requests SET grant_use = $1 WHERE id = $2")
        .bind(json(used)?)
        .bind(request)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Whether this call revoked it.
pub(crate) async fn revoke_grant(change: &mut Change, id: &str, by: &str, at: Millis) -> Result<bool> {
    super::revoke(change, revoke_sql!("grants"), id, by, at).await
}
