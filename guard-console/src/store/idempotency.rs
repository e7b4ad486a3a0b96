//! Answers that are given again under the same `Idempotency-Key`.

use sqlx::Row as _;

use super::{Change, Result, StoreError, unsigned};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct IdempotentRow {
    /// Of the call.
    pub fingerprint: String,
    pub at: Millis,
    /// `None`: not answered yet.
    pub status: Option<u16>,
    pub kind: Option<String>,
    /// The body, encrypted.
    pub sealed: Option<Vec<u8>>,
}

pub(crate) async fn idempotent(change: &mut Change, user_id: &str, digest: &str) -> Result<Option<IdempotentRow>> {
    let sql = "SELECT fingerprint, at, status, kind, sealed FROM idempotency WHERE user_id = $1 AND key_digest = $2";
    let row = sqlx::query(sql)
        .bind(user_id)
        .bind(digest)
        .fetch_optional(&mut **change)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let status: Option<i64> = row.try_get("status")?;
    let status = status.map(u16::try_from).transpose();
    Ok(Some(IdempotentRow {
        fingerprint: row.try_get("fingerprint")?,
        at: row.try_get("at")?,
        status: status.map_err(|_| StoreError::Damaged("the status of an answer".to_owned()))?,
        kind: row.try_get("kind")?,
        sealed: row.try_get("sealed")?,
    }))
}

/// How many an account has, and since when the oldest.
pub(crate) async fn count_idempotent(change: &mut Change, user_id: &str) -> Result<(u64, Millis)> {
    let sql = "SELECT COUNT(*) AS n, COALESCE(MIN(at), 0) AS oldest FROM idempotency WHERE user_id = $1";
    let row = sqlx::query(sql).bind(user_id).fetch_one(&mut **change).await?;
    Ok((unsigned(row.try_get("n")?)?, row.try_get("oldest")?))
}

pub(crate) async fn add_idempotent(
    change: &mut Change,
    user_id: &str,
    digest: &str,
    fingerprint: &str,
    at: Millis,
) -> Result<()> {
    let sql = "INSERT INTO idempotency (user_id, key_digest, fingerprint, at) VALUES ($1, $2, $3, $4)";
    sqlx::query(sql)
        .bind(user_id)
        .bind(digest)
        .bind(fingerprint)
        .bind(at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn answer_idempotent(
    change: &mut Change,
    user_id: &str,
    digest: &str,
    status: u16,
    kind: Option<&str>,
    sealed: &[u8],
) -> Result<()> {
    let sql = "UPDATE idempotency SET status = $3, kind = $4, sealed = $5 WHERE user_id = $1 AND key_digest = $2";
    sqlx::query(sql)
        .bind(user_id)
        .bind(digest)
        .bind(i64::from(status))
        .bind(kind)
        .bind(sealed)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn drop_idempotent(change: &mut Change, user_id: &str, digest: &str) -> Result<()> {
    sqlx::query("DELETE FROM idempotency WHERE user_id = $1 AND key_digest = $2")
        .bind(user_id)
        .bind(digest)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Those of `before` and earlier.
pub(crate) async fn forget_idempotent(change: &mut Change, before: Millis) -> Result<()> {
    sqlx::query("DELETE FROM idempotency WHERE at <= $1")
        .bind(before)
        .execute(&mut **change)
        .await?;
    Ok(())
}
