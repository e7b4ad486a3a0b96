//! SQL: every query of the console, and nothing but queries.
//!
//! Owns the schema and the pools. It is given typed values and answers with rows; whether somebody may do something is
//! decided in `app`. It must never build SQL from data. What it answers after a commit is on disk (WAL, synchronous=FULL).

/// Revokes the row of this id, unless it is revoked.
macro_rules! revoke_sql {
    ($table:literal) => {
        concat!(
            "UPDATE ",
            $table,
            " SET revoked_at = $1, revoked_by = $2 WHERE id = $3 AND revoked_at IS NULL"
        )
    };
}

mod changes;
mod console_keys;
mod evidence;
mod evidence_keys;
mod grants;
mod hosts;
mod idempotency;
mod keys;
mod labels;
mod migrate;
mod outbox;
mod providers;
mod requests;
mod siem;
mod users;

use std::path::Path;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous};
use sqlx::{Sqlite, SqliteConnection, SqlitePool, Transaction};

use crate::time::Millis;

pub(crate) use changes::last_envelope;
pub use changes::{ChangeFilter, StoredChange};
pub use console_keys::Purpose;
pub(crate) use console_keys::{begin_console_key, forget_console_keys, has_console_key};
pub use evidence::{Alarm, Head, Leaf, NewRecord, RecordFilter, StoredRecord};
pub(crate) use evidence::{add_alarm, add_record, head, stored_place};
pub use evidence_keys::HostKeys;
pub(crate) use evidence_keys::{add_evidence_key, begin_next_key, evidence_keys_in, name_next_key};
pub use grants::GrantRow;
pub(crate) use grants::{add_grant, grant_in, open_grants, revoke_grant, use_grant};
pub use hosts::{HostHello, HostRow, NewHost, TokenRow};
pub(crate) use hosts::{
    add_host, add_token, host_in, host_name_taken, revoke_host, set_certificate_expiry, set_hello, set_seen,
    spend_token,
};
pub use idempotency::IdempotentRow;
pub(crate) use idempotency::{
    add_idempotent, answer_idempotent, count_idempotent, drop_idempotent, forget_idempotent, idempotent,
};
pub use keys::KeyRow;
pub(crate) use keys::{add_key, key_in, revoke_key, touch_key};
pub use labels::LabelRow;
pub(crate) use labels::{delete_label, label_in, label_owner_in, put_label};
pub use migrate::Applied;
pub use outbox::{ChannelRow, MessageRow};
pub(crate) use outbox::{
    add_message, delete_channel, delivered, forget_dead_letters, not_delivered, put_channel, set_channel_seq, set_told,
};
pub(crate) use providers::{delete_provider, providers, put_provider};
pub use requests::{AnswerRow, Before, End, NewRequest, RequestFilter, RequestRow};
pub(crate) use requests::{
    add_answer, add_request, answers_in, end_request, forget_decision_received, overdue, pending_of_host, request_in,
    set_decision, set_decision_received, set_outcome, void_answers,
};
pub use siem::{ForSiem, SiemRow};
pub use users::{SessionRow, UserRow};
pub(crate) use users::{
    add_session, add_user, administrators, disable_user, end_session, end_sessions_of, forget_sessions, has_users,
    session_in, set_setup, take_setup, touch_session, update_user, user_by_identity, user_in,
};

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("database: {0}")]
    Sql(#[from] sqlx::Error),
    #[error("database schema: {0}")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    #[error("the database holds something that this version cannot read: {0}")]
    Damaged(String),
}

pub type Result<T> = std::result::Result<T, StoreError>;
/// A change that happens as a whole or not at all. Changes are made one after the other.
pub type Change = Transaction<'static, Sqlite>;

/// Runs a `revoke_sql!`; whether this call revoked it.
async fn revoke(change: &mut Change, sql: &'static str, id: &str, by: &str, at: Millis) -> Result<bool> {
    let done = sqlx::query(sql)
        .bind(at)
        .bind(by)
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(done.rows_affected() == 1)
}

/// SQLite has one writer: changes queue for its only connection, and reading never waits for them.
#[derive(Debug, Clone)]
pub struct Store {
    read: SqlitePool,
    write: SqlitePool,
}

impl Store {
    /// Opens the database, making it when it is missing, and brings its schema up to date.
    pub async fn open(path: &Path) -> Result<(Self, Vec<Applied>)> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options.clone())
            .await?;
        let applied = migrate::run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(4)
            .connect_with(options.read_only(true))
            .await?;
        Ok((Self { read, write }, applied))
    }

    /// Opens a database that is there, without touching its schema.
    pub async fn open_existing(path: &Path) -> Result<Self> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .busy_timeout(Duration::from_secs(10));
        let pool = SqlitePoolOptions::new()
            .max_connections(1)
            .connect_with(options)
            .await?;
        Ok(Self {
            read: pool.clone(),
            write: pool,
        })
    }

    pub async fn change(&self) -> Result<Change> {
        Ok(self.write.begin_with("BEGIN IMMEDIATE").await?)
    }

    pub async fn reader(&self) -> Result<sqlx::pool::PoolConnection<Sqlite>> {
        Ok(self.read.acquire().await?)
    }

    /// A consistent copy of the whole database, made while it is in use. `to` must not exist.
    pub async fn copy_to(&self, to: &Path) -> Result<()> {
        let to = to
            .to_str()
            .ok_or_else(|| StoreError::Damaged("the path of the copy is not UTF-8".to_owned()))?;
        sqlx::query("VACUUM INTO $1").bind(to).execute(&self.write).await?;
        Ok(())
    }

    /// Waits for what is running and closes the files.
    pub async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }
}

type Connection = SqliteConnection;
type Row = SqliteRow;

fn json<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_json::to_string(value).map_err(|e| StoreError::Damaged(e.to_string()))
}

fn from_json<T: serde::de::DeserializeOwned>(text: &str) -> Result<T> {
    serde_json::from_str(text).map_err(|e| StoreError::Damaged(e.to_string()))
}

/// Non-negative numbers, which SQL keeps in signed 64 bits.
fn unsigned(value: i64) -> Result<u64> {
    u64::try_from(value).map_err(|_| StoreError::Damaged(format!("{value} where a count belongs")))
}

/// For LIMIT and positions; what does not fit is larger than any table.
fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
