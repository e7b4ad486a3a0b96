//! Keys of service accounts.

use guard_proto::rest::Role;
use sqlx::Row as _;

use super::users::{user, user_columns};
use super::{Change, Result, Row, Store, UserRow, from_json, json};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct KeyRow {
    /// SHA-256 of the secret, hex.
    pub digest: String,
    /// Names it, opens nothing.
    pub id: String,
    pub user_id: String,
    pub roles: Vec<Role>,
    pub description: String,
    pub created_at: Millis,
    /// A user name.
    pub created_by: String,
    pub expires_at: Millis,
    pub last_used_at: Option<Millis>,
    pub revoked_at: Option<Millis>,
}

macro_rules! select_key {
    ($rest:literal) => {
        concat!(
            "SELECT k.digest, k.id AS key_id, k.user_id, k.roles AS key_roles, k.description,
                    k.created_at AS key_created_at, k.created_by AS key_created_by, k.expires_at, k.last_used_at,
                    k.revoked_at, ",
            user_columns!(),
            " FROM api_keys k JOIN users u ON u.id = k.user_id ",
            $rest
        )
    };
}

fn key(row: &Row) -> Result<(KeyRow, UserRow)> {
    let key = KeyRow {
        digest: row.try_get("digest")?,
        id: row.try_get("key_id")?,
        user_id: row.try_get("user_id")?,
        roles: from_json(row.try_get("key_roles")?)?,
        description: row.try_get("description")?,
        created_at: row.try_get("key_created_at")?,
        created_by: row.try_get("key_created_by")?,
        expires_at: row.try_get("expires_at")?,
        last_used_at: row.try_get("last_used_at")?,
        revoked_at: row.try_get("revoked_at")?,
    };
    Ok((key, user(row)?))
}

impl Store {
    /// A key with its account; whether it still holds is for the caller to judge.
    pub async fn key(&self, digest: &str) -> Result<Option<(KeyRow, UserRow)>> {
        let row = sqlx::query(select_key!("WHERE k.digest = $1"))
            .bind(digest)
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        row.as_ref().map(key).transpose()
    }

    /// Newest first.
    pub async fn keys(&self) -> Result<Vec<(KeyRow, UserRow)>> {
        let rows = sqlx::query(select_key!("ORDER BY k.created_at DESC, k.id LIMIT 10000"))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(key).collect()
    }
}

pub(crate) async fn key_in(change: &mut Change, id: &str) -> Result<Option<(KeyRow, UserRow)>> {
    let row = sqlx::query(select_key!("WHERE k.id = $1"))
        .bind(id)
        .fetch_optional(&mut **change)
        .await?;
    row.as_ref().map(key).transpose()
}

pub(crate) async fn add_key(change: &mut Change, key: &KeyRow) -> Result<()> {
    let sql = "INSERT INTO api_keys (digest, id, user_id, roles, description, created_at, created_by, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    sqlx::query(sql)
        .bind(&key.digest)
        .bind(&key.id)
        .bind(&key.user_id)
        .bind(json(&key.roles)?)
        .bind(&key.description)
        .bind(key.created_at)
        .bind(&key.created_by)
        .bind(key.expires_at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Whether this call revoked it.
pub(crate) async fn revoke_key(change: &mut Change, id: &str, by: &str, at: Millis) -> Result<bool> {
    super::revoke(change, revoke_sql!("api_keys"), id, by, at).await
}

pub(crate) async fn touch_key(change: &mut Change, digest: &str, at: Millis) -> Result<()> {
    sqlx::query("UPDATE api_keys SET last_used_at = $1 WHERE digest = $2")
        .bind(at)
        .bind(digest)
        .execute(&mut **change)
        .await?;
    Ok(())
}
