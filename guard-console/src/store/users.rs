//! People, their sessions, and the set-up secret.

use guard_evidence::record::{Authentication, PersonId};
use guard_proto::rest::Role;
use sqlx::Row as _;

use super::{Change, Connection, Result, Row, Store, from_json, json};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct UserRow {
    pub id: String,
    /// What it is called here, for ever.
    pub username: String,
    /// Who it is in records: `local` and the user name, or what an identity provider says.
    pub who: PersonId,
    /// A program, which acts by keys and answers nothing.
    pub service: bool,
    /// PHC string; absent where nobody signs in by password.
    pub password: Option<String>,
    /// What a provider calls them, to be shown only.
    pub display_name: String,
    pub email: String,
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
    /// The identity provider by which it was signed in.
    pub provider: Option<String>,
    pub authentication: Option<Authentication>,
    /// To be shown to the provider at sign-out.
    pub id_token: Option<String>,
}

const SERVICE: &str = "service";

/// For queries that join `users u`.
macro_rules! user_columns {
    () => {
        "u.id, u.username, u.issuer, u.subject, u.kind, u.password, u.display_name, u.email, u.roles, u.user_groups,
         u.created_at, u.created_by, u.disabled_at"
    };
}

pub(super) use user_columns;

macro_rules! session_columns {
    () => {
        "s.digest, s.user_id, s.kind AS session_kind, s.address, s.signed_in_at, s.last_used_at, s.expires_at, s.provider,
         s.authentication, s.id_token"
    };
}

macro_rules! select_user {
    ($rest:literal) => {
        concat!("SELECT ", user_columns!(), " FROM users u ", $rest)
    };
}

pub(super) fn user(row: &Row) -> Result<UserRow> {
    Ok(UserRow {
        id: row.try_get("id")?,
        username: row.try_get("username")?,
        who: PersonId {
            issuer: row.try_get("issuer")?,
            subject: row.try_get("subject")?,
        },
        service: row.try_get::<&str, _>("kind")? == SERVICE,
        password: Some(row.try_get::<String, _>("password")?).filter(|hash| !hash.is_empty()),
        display_name: row.try_get("display_name")?,
        email: row.try_get("email")?,
        roles: from_json(row.try_get("roles")?)?,
        groups: from_json(row.try_get("user_groups")?)?,
        created_at: row.try_get("created_at")?,
        created_by: row.try_get("created_by")?,
        disabled_at: row.try_get("disabled_at")?,
    })
}

impl Store {
    pub async fn users(&self) -> Result<Vec<UserRow>> {
        let rows = sqlx::query(select_user!("ORDER BY u.username"))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(user).collect()
    }

    pub async fn user(&self, username: &str) -> Result<Option<UserRow>> {
        find_user(&mut *self.reader().await?, username).await
    }

    /// A session with its user; whether it still holds is for the caller to judge.
    pub async fn session(&self, digest: &str) -> Result<Option<(SessionRow, UserRow)>> {
        let sql = concat!(
            "SELECT ",
            session_columns!(),
            ", ",
            user_columns!(),
            " FROM sessions s JOIN users u ON u.id = s.user_id WHERE s.digest = $1"
        );
        let row = sqlx::query(sql)
            .bind(digest)
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        row.map(|row| Ok((session(&row)?, user(&row)?))).transpose()
    }

    /// Sessions, of one user or all, newest first, with whom they belong to.
    pub async fn sessions(&self, user_id: Option<&str>) -> Result<Vec<(SessionRow, UserRow)>> {
        let sql = concat!(
            "SELECT ",
            session_columns!(),
            ", ",
            user_columns!(),
            " FROM sessions s JOIN users u ON u.id = s.user_id WHERE ($1 IS NULL OR s.user_id = $1)
              ORDER BY s.signed_in_at DESC, s.digest LIMIT 10000"
        );
        let rows = sqlx::query(sql)
            .bind(user_id)
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(|row| Ok((session(row)?, user(row)?))).collect()
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

fn session(row: &Row) -> Result<SessionRow> {
    Ok(SessionRow {
        digest: row.try_get("digest")?,
        user_id: row.try_get("user_id")?,
        kind: row.try_get("session_kind")?,
        address: row.try_get("address")?,
        signed_in_at: row.try_get("signed_in_at")?,
        last_used_at: row.try_get("last_used_at")?,
        expires_at: row.try_get("expires_at")?,
        provider: row.try_get("provider")?,
        authentication: row
            .try_get::<Option<&str>, _>("authentication")?
            .map(from_json)
            .transpose()?,
        id_token: row.try_get("id_token")?,
    })
}

async fn find_user(connection: &mut Connection, username: &str) -> Result<Option<UserRow>> {
    let row = sqlx::query(select_user!("WHERE u.username = $1"))
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
    let sql =
        "INSERT INTO users (id, username, password, roles, user_groups, created_at, created_by, issuer, subject, kind,
                                  display_name, email)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
    sqlx::query(sql)
        .bind(&user.id)
        .bind(&user.username)
        .bind(user.password.as_deref().unwrap_or_default())
        .bind(json(&user.roles)?)
        .bind(json(&user.groups)?)
        .bind(user.created_at)
        .bind(&user.created_by)
        .bind(&user.who.issuer)
        .bind(&user.who.subject)
        .bind(if user.service { SERVICE } else { "person" })
        .bind(&user.display_name)
        .bind(&user.email)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn user_in(change: &mut Change, username: &str) -> Result<Option<UserRow>> {
    find_user(&mut *change, username).await
}

/// The account of somebody whom a provider names.
pub(crate) async fn user_by_identity(change: &mut Change, who: &PersonId) -> Result<Option<UserRow>> {
    let row = sqlx::query(select_user!("WHERE u.issuer = $1 AND u.subject = $2"))
        .bind(&who.issuer)
        .bind(&who.subject)
        .fetch_optional(&mut **change)
        .await?;
    row.as_ref().map(user).transpose()
}

/// Roles, groups, and what they are called elsewhere.
pub(crate) async fn update_user(change: &mut Change, user: &UserRow) -> Result<()> {
    sqlx::query("UPDATE users SET roles = $1, user_groups = $2, display_name = $3, email = $4 WHERE id = $5")
        .bind(json(&user.roles)?)
        .bind(json(&user.groups)?)
        .bind(&user.display_name)
        .bind(&user.email)
        .bind(&user.id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Also ends every session of that user.
pub(crate) async fn disable_user(change: &mut Change, id: &str, by: &str, at: Millis) -> Result<()> {
    sqlx::query("UPDATE users SET disabled_at = $1, disabled_by = $2 WHERE id = $3")
        .bind(at)
        .bind(by)
        .bind(id)
        .execute(&mut **change)
        .await?;
    end_sessions_of(change, id).await?;
    Ok(())
}

/// How many there were.
pub(crate) async fn end_sessions_of(change: &mut Change, user_id: &str) -> Result<u64> {
    let done = sqlx::query("DELETE FROM sessions WHERE user_id = $1")
        .bind(user_id)
        .execute(&mut **change)
        .await?;
    Ok(done.rows_affected())
}

/// Users that are administrators and not disabled.
pub(crate) async fn administrators(change: &mut Change) -> Result<Vec<UserRow>> {
    let rows = sqlx::query(select_user!("WHERE u.disabled_at IS NULL"))
        .fetch_all(&mut **change)
        .await?;
    let users = rows.iter().map(user).collect::<Result<Vec<_>>>()?;
    Ok(users
        .into_iter()
        .filter(|u| u.roles.contains(&Role::Administrator))
        .collect())
}

pub(crate) async fn add_session(change: &mut Change, session: &SessionRow) -> Result<()> {
    let sql = "INSERT INTO sessions (digest, user_id, kind, address, signed_in_at, last_used_at, expires_at, provider,
                                     authentication, id_token)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
    sqlx::query(sql)
        .bind(&session.digest)
        .bind(&session.user_id)
        .bind(&session.kind)
        .bind(&session.address)
        .bind(session.signed_in_at)
        .bind(session.last_used_at)
        .bind(session.expires_at)
        .bind(&session.provider)
        .bind(session.authentication.as_ref().map(json).transpose()?)
        .bind(&session.id_token)
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

/// By the beginning of its digest.
pub(crate) async fn session_in(change: &mut Change, id: &str) -> Result<Option<(SessionRow, UserRow)>> {
    let sql = concat!(
        "SELECT ",
        session_columns!(),
        ", ",
        user_columns!(),
        " FROM sessions s JOIN users u ON u.id = s.user_id WHERE substr(s.digest, 1, 16) = $1"
    );
    let row = sqlx::query(sql).bind(id).fetch_optional(&mut **change).await?;
    row.map(|row| Ok((session(&row)?, user(&row)?))).transpose()
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
