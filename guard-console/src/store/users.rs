//! People, their sessions, and the set-up secret.

use guard_proto::rest::Role;
use sqlx::Row as _;

use super::{Change, Connection, Result, Row, Store, from_json, json};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct UserRow {
    pub id: String,
    pub username: String,
    /// PHC string.
    pub password: String,
    pub roles: Vec<Role>,
    pub groups: Vec<String>,
    pub created_at: Millis,
    /// A user name; none for the first administrator.
    pub created_by: Option<String>,
    pub disabled_at: Option<Millis>,
}

#[derive(Debug, Clone)]
pub struct SessionRow {
    /// SHA-256 of the token, hex.
    pub digest: String,
    pub user_id: String,
    /// `web` or `api`.
    pub kind: String,
    pub address: String,
    pub signed_in_at: Millis,
    pub last_used_at: Millis,
    pub expires_at: Millis,
}

macro_rules! select_user {
    ($rest:literal) => {
        concat!(
            "SELECT id, username, password, roles, user_groups, created_at, created_by, disabled_at FROM users ",
            $rest
        )
    };
}

fn user(row: &Row) -> Result<UserRow> {
    Ok(UserRow {
        id: row.try_get("id")?,
        username: row.try_get("username")?,
        password: row.try_get("password")?,
        roles: from_json(row.try_get("roles")?)?,
        groups: from_json(row.try_get("user_groups")?)?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        disabled_at: row.try_get("disabled_at")?,
    })
}

impl Store {
    pub async fn users(&self) -> Result<Vec<UserRow>> {
        let rows = sqlx::query(select_user!("ORDER BY username"))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(user).collect()
    }

    pub async fn user(&self, username: &str) -> Result<Option<UserRow>> {
        find_user(&mut *self.reader().await?, username).await
    }

    /// A session with its user; whether it still holds is for the caller to judge.
    pub async fn session(&self, digest: &str) -> Result<Option<(SessionRow, UserRow)>> {
        let sql = "SELECT s.digest, s.user_id, s.kind, s.address, s.signed_in_at, s.last_used_at, s.expires_at,
                          u.id, u.username, u.password, u.roles, u.user_groups, u.created_at, u.created_by, u.disabled_at
                   FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.digest = $1";
        let row = sqlx::query(sql)
            .bind(digest)
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        row.map(|row| {
            let session = SessionRow {
                digest: row.try_get("digest")?,
                user_id: row.try_get("user_id")?,
                kind: row.try_get("kind")?,
                address: row.try_get("address")?,
                signed_in_at: row.try_get("signed_in_at")?,
                last_used_at: row.try_get("last_used_at")?,
                expires_at: row.try_get("expires_at")?,
            };
            Ok((session, user(&row)?))
        })
        .transpose()
    }

    pub async fn has_users(&self) -> Result<bool> {
        has_users(&mut *self.reader().await?).await
    }

    pub async fn setup_expires_at(&self) -> Result<Option<Millis>> {
        let row = sqlx::query("SELECT expires_at FROM setup")
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        Ok(row.map(|row| row.try_get("expires_at")).transpose()?)
    }
}

async fn find_user(connection: &mut Connection, username: &str) -> Result<Option<UserRow>> {
    let row = sqlx::query(select_user!("WHERE username = $1"))
        .bind(username)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(user).transpose()
}

pub(crate) async fn has_users(connection: &mut Connection) -> Result<bool> {
    let row = sqlx::query("SELECT EXISTS (SELECT 1 FROM users) AS any_user")
        .fetch_one(connection)
        .await?;
    Ok(row.try_get::<i64, _>("any_user")? != 0)
}

pub(crate) async fn add_user(change: &mut Change, user: &UserRow) -> Result<()> {
    let sql = "INSERT INTO users (id, username, password, roles, user_groups, created_at, created_by)
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    sqlx::query(sql)
        .bind(&user.id)
        .bind(&user.username)
        .bind(&user.password)
        .bind(json(&user.roles)?)
        .bind(json(&user.groups)?)
        .bind(user.created_at)
        .bind(&user.created_by)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn user_in(change: &mut Change, username: &str) -> Result<Option<UserRow>> {
    find_user(&mut *change, username).await
}

/// Also ends every session of that user.
pub(crate) async fn disable_user(change: &mut Change, id: &str, by: &str, at: Millis) -> Result<()> {
    sqlx::query("UPDATE users SET disabled_at = $1, disabled_by = $2 WHERE id = $3")
        .bind(at)
        .bind(by)
        .bind(id)
        .execute(&mut **change)
        .await?;
    sqlx::query("DELETE FROM sessions WHERE user_id = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Users that are administrators and not disabled.
pub(crate) async fn administrators(change: &mut Change) -> Result<Vec<UserRow>> {
    let rows = sqlx::query(select_user!("WHERE disabled_at IS NULL"))
        .fetch_all(&mut **change)
        .await?;
    let users = rows.iter().map(user).collect::<Result<Vec<_>>>()?;
    Ok(users
        .into_iter()
        .filter(|u| u.roles.contains(&Role::Administrator))
        .collect())
}

pub(crate) async fn add_session(change: &mut Change, session: &SessionRow) -> Result<()> {
    let sql = "INSERT INTO sessions (digest, user_id, kind, address, signed_in_at, last_used_at, expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7)";
    sqlx::query(sql)
        .bind(&session.digest)
        .bind(&session.user_id)
        .bind(&session.kind)
        .bind(&session.address)
        .bind(session.signed_in_at)
        .bind(session.last_used_at)
        .bind(session.expires_at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn touch_session(change: &mut Change, digest: &str, at: Millis) -> Result<()> {
    sqlx::query("UPDATE sessions SET last_used_at = $1 WHERE digest = $2")
        .bind(at)
        .bind(digest)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn end_session(change: &mut Change, digest: &str) -> Result<()> {
    sqlx::query("DELETE FROM sessions WHERE digest = $1")
        .bind(digest)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn forget_sessions(change: &mut Change, expired_at: Millis, idle_since: Millis) -> Result<()> {
    sqlx::query("DELETE FROM sessions WHERE expires_at <= $1 OR last_used_at <= $2")
        .bind(expired_at)
        .bind(idle_since)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Replaces whatever set-up secret there was.
pub(crate) async fn set_setup(change: &mut Change, digest: &str, expires_at: Millis) -> Result<()> {
    sqlx::query("DELETE FROM setup").execute(&mut **change).await?;
    sqlx::query("INSERT INTO setup (digest, expires_at) VALUES ($1, $2)")
        .bind(digest)
        .bind(expires_at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Takes the set-up secret away, if it is this one and holds: a second caller finds nothing.
pub(crate) async fn take_setup(change: &mut Change, digest: &str, at: Millis) -> Result<bool> {
    let done = sqlx::query("DELETE FROM setup WHERE digest = $1 AND expires_at > $2")
        .bind(digest)
        .bind(at)
        .execute(&mut **change)
        .await?;
    Ok(done.rows_affected() == 1)
}
