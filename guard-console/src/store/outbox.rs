//! Channels: how far each has read, what is on its way, and what was given up.

use sqlx::Row as _;

use super::{Change, Result, Row, Store, StoreError, signed, unsigned};
use crate::time::Millis;

/// One message of a channel.
#[derive(Debug, Clone)]
pub struct MessageRow {
    pub id: String,
    pub channel: String,
    pub request_id: String,
    /// `asked`, `changed` or `ended`.
    pub event: String,
    pub body: String,
    pub made_at: Millis,
    pub attempts: u32,
    pub due_at: Millis,
    pub dead_at: Option<Millis>,
    pub why: Option<String>,
}

/// How a channel goes.
#[derive(Debug, Clone)]
pub struct ChannelRow {
    pub name: String,
    pub seq: u64,
    pub arrived: u64,
    pub delivered_at: Option<Millis>,
    pub failed_at: Option<Millis>,
    pub failed_because: Option<String>,
    pub waiting: u64,
    pub oldest_waiting_at: Option<Millis>,
    pub dead: u64,
}

macro_rules! select_channel {
    ($rest:literal) => {
        concat!(
            "SELECT c.name, c.seq, c.arrived, c.delivered_at, c.failed_at, c.failed_because,
                    (SELECT COUNT(*) FROM outbox o WHERE o.channel = c.name AND o.dead_at IS NULL) AS waiting,
                    (SELECT MIN(made_at) FROM outbox o WHERE o.channel = c.name AND o.dead_at IS NULL) AS oldest,
                    (SELECT COUNT(*) FROM outbox o WHERE o.channel = c.name AND o.dead_at IS NOT NULL) AS dead
             FROM channels c ",
            $rest
        )
    };
}

/// Of those that wait: the first of its request.
macro_rules! first_of_its_request {
    ($columns:literal, $rest:literal) => {
        concat!(
            "SELECT ",
            $columns,
            " FROM outbox o WHERE o.channel = $1 AND o.dead_at IS NULL AND NOT EXISTS
                (SELECT 1 FROM outbox e WHERE e.channel = o.channel AND e.request_id = o.request_id
                    AND e.dead_at IS NULL AND e.position < o.position) ",
            $rest
        )
    };
}

fn channel(row: &Row) -> Result<ChannelRow> {
    Ok(ChannelRow {
        name: row.try_get("name")?,
        seq: unsigned(row.try_get("seq")?)?,
        arrived: unsigned(row.try_get("arrived")?)?,
        delivered_at: row.try_get("delivered_at")?,
        failed_at: row.try_get("failed_at")?,
        failed_because: row.try_get("failed_because")?,
        waiting: unsigned(row.try_get("waiting")?)?,
        oldest_waiting_at: row.try_get("oldest")?,
        dead: unsigned(row.try_get("dead")?)?,
    })
}

fn message(row: &Row) -> Result<MessageRow> {
    Ok(MessageRow {
        id: row.try_get("id")?,
        channel: row.try_get("channel")?,
        request_id: row.try_get("request_id")?,
        event: row.try_get("event")?,
        body: row.try_get("body")?,
        made_at: row.try_get("made_at")?,
        attempts: u32::try_from(row.try_get::<i64, _>("attempts")?)
            .map_err(|_| StoreError::Damaged("attempts".to_owned()))?,
        due_at: row.try_get("due_at")?,
        dead_at: row.try_get("dead_at")?,
        why: row.try_get("why")?,
    })
}

impl Store {
    pub async fn channels(&self) -> Result<Vec<ChannelRow>> {
        let rows = sqlx::query(select_channel!("ORDER BY c.name"))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(channel).collect()
    }

    /// Messages that may go out now, at most one of a request.
    pub async fn due_messages(&self, channel: &str, at: Millis, limit: u64) -> Result<Vec<MessageRow>> {
        let rows = sqlx::query(first_of_its_request!(
            "o.*",
            "AND o.due_at <= $2 ORDER BY o.position LIMIT $3"
        ))
        .bind(channel)
        .bind(at)
        .bind(signed(limit))
        .fetch_all(&mut *self.reader().await?)
        .await?;
        rows.iter().map(message).collect()
    }

    /// When the next message of a channel may go out.
    pub async fn next_message_at(&self, channel: &str) -> Result<Option<Millis>> {
        let row = sqlx::query(first_of_its_request!("MIN(o.due_at) AS due_at", ""))
            .bind(channel)
            .fetch_one(&mut *self.reader().await?)
            .await?;
        Ok(row.try_get("due_at")?)
    }

    /// Messages that were given up, the newest first.
    pub async fn dead_letters(&self, limit: u64) -> Result<Vec<MessageRow>> {
        let sql = "SELECT * FROM outbox WHERE dead_at IS NOT NULL ORDER BY dead_at DESC, position DESC LIMIT $1";
        let rows = sqlx::query(sql)
            .bind(signed(limit))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(message).collect()
    }

    /// What a channel last heard of a request.
    pub async fn told(&self, channel: &str, request_id: &str) -> Result<Option<String>> {
        let row = sqlx::query("SELECT version FROM told WHERE channel = $1 AND request_id = $2")
            .bind(channel)
            .bind(request_id)
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        Ok(row.map(|row| row.try_get("version")).transpose()?)
    }
}

/// A channel that is new begins with what is pending now.
pub(crate) async fn put_channel(change: &mut Change, name: &str) -> Result<()> {
    let sql = "INSERT INTO channels (name, seq, arrived)
               SELECT $1, COALESCE((SELECT MIN(seq) - 1 FROM requests WHERE state = 'pending'),
                                   (SELECT MAX(seq) FROM requests), 0),
                      COALESCE((SELECT MAX(arrived) FROM requests), 0)
               WHERE NOT EXISTS (SELECT 1 FROM channels WHERE name = $1)";
    sqlx::query(sql).bind(name).execute(&mut **change).await?;
    Ok(())
}

/// Of a channel that is configured no more, with all that it had.
pub(crate) async fn delete_channel(change: &mut Change, name: &str) -> Result<()> {
    for sql in [
        "DELETE FROM outbox WHERE channel = $1",
        "DELETE FROM told WHERE channel = $1",
        "DELETE FROM channels WHERE name = $1",
    ] {
        sqlx::query(sql).bind(name).execute(&mut **change).await?;
    }
    Ok(())
}

/// It has heard of every change up to `seq`.
pub(crate) async fn set_channel_seq(change: &mut Change, name: &str, seq: u64) -> Result<()> {
    sqlx::query("UPDATE channels SET seq = $1 WHERE name = $2")
        .bind(signed(seq))
        .bind(name)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn set_told(change: &mut Change, channel: &str, request_id: &str, version: &str) -> Result<()> {
    let sql = "INSERT INTO told (channel, request_id, version) VALUES ($1, $2, $3)
               ON CONFLICT (channel, request_id) DO UPDATE SET version = excluded.version";
    sqlx::query(sql)
        .bind(channel)
        .bind(request_id)
        .bind(version)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Behind all others.
pub(crate) async fn add_message(change: &mut Change, message: &MessageRow) -> Result<()> {
    let sql = "INSERT INTO outbox (id, position, channel, request_id, event, body, made_at, due_at, dead_at, why)
               VALUES ($1, (SELECT COALESCE(MAX(position), 0) + 1 FROM outbox), $2, $3, $4, $5, $6, $7, $8, $9)";
    sqlx::query(sql)
        .bind(&message.id)
        .bind(&message.channel)
        .bind(&message.request_id)
        .bind(&message.event)
        .bind(&message.body)
        .bind(message.made_at)
        .bind(message.due_at)
        .bind(message.dead_at)
        .bind(&message.why)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// It arrived.
pub(crate) async fn delivered(change: &mut Change, message: &MessageRow, at: Millis) -> Result<()> {
    sqlx::query("DELETE FROM outbox WHERE id = $1")
        .bind(&message.id)
        .execute(&mut **change)
        .await?;
    sqlx::query("UPDATE channels SET delivered_at = $1 WHERE name = $2")
        .bind(at)
        .bind(&message.channel)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// It did not: it goes out again at `due_at`, or never again. `attempts` counts this one.
pub(crate) async fn not_delivered(
    change: &mut Change,
    message: &MessageRow,
    why: &str,
    at: Millis,
    due_at: Option<Millis>,
) -> Result<()> {
    sqlx::query("UPDATE outbox SET attempts = $1, due_at = $2, dead_at = $3, why = $4 WHERE id = $5")
        .bind(i64::from(message.attempts) + 1)
        .bind(due_at.unwrap_or(message.due_at))
        .bind(due_at.is_none().then_some(at))
        .bind(why)
        .bind(&message.id)
        .execute(&mut **change)
        .await?;
    sqlx::query("UPDATE channels SET failed_at = $1, failed_because = $2 WHERE name = $3")
        .bind(at)
        .bind(why)
        .bind(&message.channel)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// Of what was given up only the newest `keep` stay.
pub(crate) async fn forget_dead_letters(change: &mut Change, keep: u64) -> Result<()> {
    let sql = "DELETE FROM outbox WHERE dead_at IS NOT NULL AND id NOT IN
               (SELECT id FROM outbox WHERE dead_at IS NOT NULL ORDER BY dead_at DESC, position DESC LIMIT $1)";
    sqlx::query(sql).bind(signed(keep)).execute(&mut **change).await?;
    Ok(())
}
