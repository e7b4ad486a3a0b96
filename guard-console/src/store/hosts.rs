//! Hosts, and the tokens with which they join.

use sqlx::Row as _;

use super::{Change, Connection, Result, Row, Store, from_json, json, signed, unsigned};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct HostRow {
    pub id: String,
    pub name: String,
    /// With which it joined: PKIX SubjectPublicKeyInfo, DER.
    pub evidence_key: Vec<u8>,
    pub agent_version: String,
    pub kernel: String,
    pub policy_digest: String,
    pub labels: Vec<String>,
    pub enforcing: bool,
    pub enforcing_since: Option<Millis>,
    pub last_seen: Option<Millis>,
    pub lost_events: u64,
    pub enrolled_at: Millis,
    pub certificate_expires_at: Millis,
    pub revoked_at: Option<Millis>,
}

/// A host that joins.
#[derive(Debug)]
pub struct NewHost<'a> {
    pub id: &'a str,
    pub name: &'a str,
    pub machine_id: &'a str,
    pub evidence_key: &'a [u8],
    pub agent_version: &'a str,
    pub at: Millis,
    /// Who made the token.
    pub by: &'a str,
    pub certificate_expires_at: Millis,
}

macro_rules! select_host {
    ($rest:literal) => {
        concat!(
            "SELECT id, name, evidence_key, agent_version, kernel, policy_digest, labels, enforcing, enforcing_since,
                    last_seen, lost_events, enrolled_at, certificate_expires_at, revoked_at FROM hosts ",
            $rest
        )
    };
}

fn host(row: &Row) -> Result<HostRow> {
    Ok(HostRow {
        id: row.try_get("id")?,
        name: row.try_get("name")?,
        evidence_key: row.try_get("evidence_key")?,
        agent_version: row.try_get("agent_version")?,
        kernel: row.try_get("kernel")?,
        policy_digest: row.try_get("policy_digest")?,
        labels: from_json(row.try_get("labels")?)?,
        enforcing: row.try_get::<i64, _>("enforcing")? != 0,
        enforcing_since: row.try_get("enforcing_since")?,
        last_seen: row.try_get("last_seen")?,
        lost_events: unsigned(row.try_get("lost_events")?)?,
        enrolled_at: row.try_get("enrolled_at")?,
        certificate_expires_at: row.try_get("certificate_expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
    })
}

/// A token with which a host may still join.
#[derive(Debug, Clone)]
pub struct TokenRow {
    /// SHA-256 of its secret, hex.
    pub digest: String,
    pub description: String,
    pub expires_at: Millis,
}

impl Store {
    /// Tokens that nobody has used and that have not expired at `at`.
    pub async fn open_tokens(&self, at: Millis) -> Result<Vec<TokenRow>> {
        let sql = "SELECT digest, description, expires_at FROM enrolment_tokens
                   WHERE used_at IS NULL AND expires_at > $1 ORDER BY created_at";
        let rows = sqlx::query(sql).bind(at).fetch_all(&mut *self.reader().await?).await?;
        let token = |row: &Row| {
            Ok(TokenRow {
                digest: row.try_get("digest")?,
                description: row.try_get("description")?,
                expires_at: row.try_get("expires_at")?,
            })
        };
        rows.iter().map(token).collect()
    }

    pub async fn hosts(&self) -> Result<Vec<HostRow>> {
        let rows = sqlx::query(select_host!("ORDER BY name"))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(host).collect()
    }

    pub async fn host(&self, id: &str) -> Result<Option<HostRow>> {
        find_host(&mut *self.reader().await?, id).await
    }
}

async fn find_host(connection: &mut Connection, id: &str) -> Result<Option<HostRow>> {
    let row = sqlx::query(select_host!("WHERE id = $1"))
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(host).transpose()
}

pub(crate) async fn host_in(change: &mut Change, id: &str) -> Result<Option<HostRow>> {
    find_host(&mut *change, id).await
}

pub(crate) async fn host_name_taken(change: &mut Change, name: &str) -> Result<bool> {
    let row = sqlx::query("SELECT 1 FROM hosts WHERE name = $1")
        .bind(name)
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.is_some())
}

pub(crate) async fn add_host(change: &mut Change, host: &NewHost<'_>) -> Result<()> {
    let sql = "INSERT INTO hosts (id, name, machine_id, evidence_key, agent_version, enrolled_at, enrolled_by,
                                  certificate_expires_at)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";
    sqlx::query(sql)
        .bind(host.id)
        .bind(host.name)
        .bind(host.machine_id)
        .bind(host.evidence_key)
        .bind(host.agent_version)
        .bind(host.at)
        .bind(host.by)
        .bind(host.certificate_expires_at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn set_certificate_expiry(change: &mut Change, id: &str, at: Millis) -> Result<()> {
    sqlx::query("UPDATE hosts SET certificate_expires_at = $1 WHERE id = $2")
        .bind(at)
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// What a host said of itself when it connected.
#[derive(Debug)]
pub struct HostHello<'a> {
    pub agent_version: &'a str,
    pub kernel: &'a str,
    pub boot_id: &'a str,
    pub policy_digest: &'a str,
    pub labels: &'a [String],
    pub enforcing: bool,
    pub enforcing_since: Option<Millis>,
    pub at: Millis,
}

pub(crate) async fn set_hello(change: &mut Change, id: &str, hello: &HostHello<'_>) -> Result<()> {
    let sql = "UPDATE hosts SET agent_version = $1, kernel = $2, boot_id = $3, policy_digest = $4, labels = $5,
                      enforcing = $6, enforcing_since = $7, last_seen = $8 WHERE id = $9";
    sqlx::query(sql)
        .bind(hello.agent_version)
        .bind(hello.kernel)
        .bind(hello.boot_id)
        .bind(hello.policy_digest)
        .bind(json(&hello.labels)?)
        .bind(i64::from(hello.enforcing))
        .bind(hello.enforcing_since)
        .bind(hello.at)
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn set_seen(
    change: &mut Change,
    id: &str,
    at: Millis,
    enforcing: bool,
    lost_events: u64,
) -> Result<()> {
    sqlx::query("UPDATE hosts SET last_seen = $1, enforcing = $2, lost_events = $3 WHERE id = $4")
        .bind(at)
        .bind(i64::from(enforcing))
        .bind(signed(lost_events))
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Whether this call revoked it.
pub(crate) async fn revoke_host(change: &mut Change, id: &str, by: &str, at: Millis) -> Result<bool> {
    super::revoke(change, revoke_sql!("hosts"), id, by, at).await
}

pub(crate) async fn add_token(
    change: &mut Change,
    digest: &str,
    description: &str,
    by: &str,
    at: Millis,
    expires_at: Millis,
) -> Result<()> {
    let sql = "INSERT INTO enrolment_tokens (digest, description, created_by, created_at, expires_at)
               VALUES ($1, $2, $3, $4, $5)";
    sqlx::query(sql)
        .bind(digest)
        .bind(description)
        .bind(by)
        .bind(at)
        .bind(expires_at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Spends a token for one host; answers who made it. `None`: unknown, spent or expired.
pub(crate) async fn spend_token(
    change: &mut Change,
    digest: &str,
    host_id: &str,
    at: Millis,
) -> Result<Option<String>> {
    let sql = "UPDATE enrolment_tokens SET used_at = $1, used_by_host = $2
               WHERE digest = $3 AND used_at IS NULL AND expires_at > $1 RETURNING created_by";
    let row = sqlx::query(sql)
        .bind(at)
        .bind(host_id)
        .bind(digest)
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.map(|row| row.try_get("created_by")).transpose()?)
}
