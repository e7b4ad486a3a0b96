//! The evidence log's rows: exact envelopes in log order, the head of every chain, and alarms.

use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::{Change, Result, Row, Store, StoreError, signed, unsigned};
use crate::time::Millis;

/// The last record of a signer's newest epoch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    pub epoch: u64,
    pub sequence: u64,
    /// SHA-256 of its envelope, hex.
    pub digest: String,
}

#[derive(Debug)]
pub struct NewRecord<'a> {
    pub digest: &'a str,
    pub leaf_hash: &'a [u8],
    pub envelope: &'a [u8],
    /// `host:<id>` or `console:<origin>`.
    pub signer: &'a str,
    /// `None`: the console's own.
    pub host_id: Option<&'a str>,
    pub epoch: u64,
    pub sequence: u64,
    pub kind: &'a str,
    pub request_id: Option<&'a str>,
    pub label: Option<&'a str>,
    /// Of a change: what it is about.
    pub about: Option<&'a str>,
    pub at: Millis,
    pub stored_at: Millis,
    pub summary: &'a str,
}

/// A stored record without its envelope.
#[derive(Debug, Clone)]
pub struct StoredRecord {
    pub position: u64,
    pub digest: String,
    pub signer: String,
    /// `None`: the console's own.
    pub host_id: Option<String>,
    pub host_name: Option<String>,
    pub epoch: u64,
    pub sequence: u64,
    pub kind: String,
    pub request_id: Option<String>,
    pub at: Millis,
    pub summary: String,
}

#[derive(Debug, Clone, Default)]
pub struct RecordFilter {
    /// Id or display name.
    pub host: Option<String>,
    pub label: Option<String>,
    pub request: Option<String>,
    pub kind: Option<String>,
    pub from: Option<Millis>,
    pub to: Option<Millis>,
    /// Positions before (newest first) or from (log order) this one.
    pub cursor: Option<u64>,
    pub limit: u64,
}

/// A leaf for a bundle.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub position: u64,
    pub envelope: Vec<u8>,
}

#[derive(Debug, Clone)]
pub struct Alarm {
    /// ULID.
    pub id: String,
    pub at: Millis,
    pub host: String,
    pub host_id: String,
    pub kind: String,
    pub detail: String,
}

fn push_filter(query: &mut QueryBuilder<Sqlite>, filter: &RecordFilter) {
    if let Some(host) = filter.host.clone() {
        query
            .push(" AND (e.host_id = ")
            .push_bind(host.clone())
            .push(" OR h.name = ")
            .push_bind(host)
            .push(")");
    }
    if let Some(label) = filter.label.clone() {
        query.push(" AND e.label = ").push_bind(label);
    }
    if let Some(request) = filter.request.clone() {
        query.push(" AND e.request_id = ").push_bind(request);
    }
    if let Some(kind) = filter.kind.clone() {
        query.push(" AND e.kind = ").push_bind(kind);
    }
    if let Some(from) = filter.from {
        query.push(" AND e.at >= ").push_bind(from);
    }
    if let Some(to) = filter.to {
        query.push(" AND e.at < ").push_bind(to);
    }
}

fn stored(row: &Row) -> Result<StoredRecord> {
    Ok(StoredRecord {
        position: unsigned(row.try_get("position")?)?,
        digest: row.try_get("digest")?,
        signer: row.try_get("signer")?,
        host_id: row.try_get("host_id")?,
        host_name: row.try_get("host_name")?,
        epoch: unsigned(row.try_get("epoch")?)?,
        sequence: unsigned(row.try_get("sequence")?)?,
        kind: row.try_get("kind")?,
        request_id: row.try_get("request_id")?,
        at: row.try_get("at")?,
        summary: row.try_get("summary")?,
    })
}

fn hash(bytes: Vec<u8>) -> Result<[u8; 32]> {
    bytes
        .try_into()
        .map_err(|_| StoreError::Damaged("a leaf hash of another length than 32".to_owned()))
}

impl Store {
    /// Newest first.
    pub async fn records(&self, filter: &RecordFilter) -> Result<Vec<StoredRecord>> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT e.position, e.digest, e.signer, e.host_id, h.name AS host_name, e.epoch, e.sequence, e.kind,
                    e.request_id, e.at, e.summary
             FROM records e LEFT JOIN hosts h ON h.id = e.host_id WHERE 1 = 1",
        );
        push_filter(&mut query, filter);
        if let Some(cursor) = filter.cursor {
            query.push(" AND e.position < ").push_bind(signed(cursor));
        }
        query
            .push(" ORDER BY e.position DESC LIMIT ")
            .push_bind(signed(filter.limit));
        let rows = query.build().fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(stored).collect()
    }

    /// In log order, from the cursor on, below `size`. The console's own records always belong to it: a decision cannot be
    /// judged without them.
    pub async fn leaves(&self, filter: &RecordFilter, size: u64) -> Result<Vec<Leaf>> {
        let mut query = QueryBuilder::<Sqlite>::new(
            "SELECT e.position, e.envelope FROM records e LEFT JOIN hosts h ON h.id = e.host_id WHERE e.position < ",
        );
        query.push_bind(signed(size)).push(" AND (e.host_id IS NULL OR (1 = 1");
        push_filter(&mut query, filter);
        query.push("))");
        if let Some(cursor) = filter.cursor {
            query.push(" AND e.position >= ").push_bind(signed(cursor));
        }
        query
            .push(" ORDER BY e.position LIMIT ")
            .push_bind(signed(filter.limit));
        let rows = query.build().fetch_all(&mut *self.reader().await?).await?;
        rows.iter()
            .map(|row| {
                Ok(Leaf {
                    position: unsigned(row.try_get("position")?)?,
                    envelope: row.try_get("envelope")?,
                })
            })
            .collect()
    }

    /// How many records there are.
    pub async fn log_size(&self) -> Result<u64> {
        let row = sqlx::query("SELECT COALESCE(MAX(position) + 1, 0) AS size FROM records")
            .fetch_one(&mut *self.reader().await?)
            .await?;
        unsigned(row.try_get("size")?)
    }

    /// Exact envelopes in log order, at most `count` of them.
    pub async fn envelopes(&self, from: u64, count: u64) -> Result<Vec<Vec<u8>>> {
        let rows =
            sqlx::query("SELECT position, envelope FROM records WHERE position >= $1 ORDER BY position LIMIT $2")
                .bind(signed(from))
                .bind(signed(count))
                .fetch_all(&mut *self.reader().await?)
                .await?;
        let one = |(expected, row): (u64, &Row)| {
            let position = unsigned(row.try_get("position")?)?;
            if position != expected {
                return Err(StoreError::Damaged(format!(
                    "record {position} where {expected} belongs"
                )));
            }
            Ok(row.try_get("envelope")?)
        };
        (from..).zip(&rows).map(one).collect()
    }

    /// Leaf hashes in order, at most `count` of them.
    pub async fn leaf_hashes(&self, from: u64, count: u64) -> Result<Vec<[u8; 32]>> {
        let rows = sqlx::query("SELECT leaf_hash FROM records WHERE position >= $1 ORDER BY position LIMIT $2")
            .bind(signed(from))
            .bind(signed(count))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(|row| hash(row.try_get("leaf_hash")?)).collect()
    }

    /// The newest `limit` lifecycle records of a host since a time, oldest first.
    pub async fn lifecycle(&self, host_id: &str, from: Millis, limit: u64) -> Result<Vec<Vec<u8>>> {
        let sql = "SELECT envelope FROM records WHERE host_id = $1 AND kind = 'lifecycle' AND stored_at >= $2
                   ORDER BY position DESC LIMIT $3";
        let rows = sqlx::query(sql)
            .bind(host_id)
            .bind(from)
            .bind(signed(limit))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().rev().map(|row| Ok(row.try_get("envelope")?)).collect()
    }

    pub async fn envelope(&self, digest: &str) -> Result<Option<Vec<u8>>> {
        let row = sqlx::query("SELECT envelope FROM records WHERE digest = $1 ORDER BY position LIMIT 1")
            .bind(digest)
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        Ok(row.map(|row| row.try_get("envelope")).transpose()?)
    }

    /// Newest first, from before the alarm `cursor` on.
    pub async fn alarms(&self, limit: u64, cursor: Option<&str>) -> Result<Vec<Alarm>> {
        let sql = "SELECT a.id, a.at, h.name AS host, a.host_id, a.kind, a.detail
                   FROM alarms a JOIN hosts h ON h.id = a.host_id
                   WHERE $2 IS NULL OR a.id < $2 ORDER BY a.id DESC LIMIT $1";
        let rows = sqlx::query(sql)
            .bind(signed(limit))
            .bind(cursor)
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(Alarm {
                    id: row.try_get("id")?,
                    at: row.try_get("at")?,
                    host: row.try_get("host")?,
                    host_id: row.try_get("host_id")?,
                    kind: row.try_get("kind")?,
                    detail: row.try_get("detail")?,
                })
            })
            .collect()
    }

    pub async fn count_alarms(&self, since: Millis) -> Result<u64> {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM alarms WHERE at >= $1")
            .bind(since)
            .fetch_one(&mut *self.reader().await?)
            .await?;
        unsigned(row.try_get("n")?)
    }
}

/// The last record of a signer's newest epoch.
pub(crate) async fn head(change: &mut Change, signer: &str) -> Result<Option<Head>> {
    let sql = "SELECT epoch, sequence, digest FROM records WHERE signer = $1
               ORDER BY epoch DESC, sequence DESC LIMIT 1";
    let row = sqlx::query(sql).bind(signer).fetch_optional(&mut **change).await?;
    row.map(|row| {
        Ok(Head {
            epoch: unsigned(row.try_get("epoch")?)?,
            sequence: unsigned(row.try_get("sequence")?)?,
            digest: row.try_get("digest")?,
        })
    })
    .transpose()
}

/// Place and digest of a record that is already stored.
pub(crate) async fn stored_place(
    change: &mut Change,
    signer: &str,
    epoch: u64,
    sequence: u64,
) -> Result<Option<(u64, String)>> {
    let row = sqlx::query("SELECT position, digest FROM records WHERE signer = $1 AND epoch = $2 AND sequence = $3")
        .bind(signer)
        .bind(signed(epoch))
        .bind(signed(sequence))
        .fetch_optional(&mut **change)
        .await?;
    row.map(|row| Ok((unsigned(row.try_get("position")?)?, row.try_get("digest")?)))
        .transpose()
}

pub(crate) async fn add_record(change: &mut Change, new: &NewRecord<'_>) -> Result<u64> {
    let sql = "INSERT INTO records (position, digest, leaf_hash, envelope, signer, host_id, epoch, sequence, kind,
                                    request_id, label, about, at, stored_at, summary)
               VALUES ((SELECT COALESCE(MAX(position) + 1, 0) FROM records), $1, $2, $3, $4, $5, $6, $7, $8, $9, $10,
                       $11, $12, $13, $14)
               RETURNING position";
    let row = sqlx::query(sql)
        .bind(new.digest)
        .bind(new.leaf_hash)
        .bind(new.envelope)
        .bind(new.signer)
        .bind(new.host_id)
        .bind(signed(new.epoch))
        .bind(signed(new.sequence))
        .bind(new.kind)
        .bind(new.request_id)
        .bind(new.label)
        .bind(new.about)
        .bind(new.at)
        .bind(new.stored_at)
        .bind(new.summary)
        .fetch_one(&mut **change)
        .await?;
    unsigned(row.try_get("position")?)
}

/// Whether it is a new one.
pub(crate) async fn add_alarm(
    change: &mut Change,
    id: &str,
    host_id: &str,
    kind: &str,
    detail: &str,
    at: Millis,
) -> Result<bool> {
    let sql = "INSERT INTO alarms (id, at, host_id, kind, detail) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (host_id, kind, detail) DO NOTHING";
    let done = sqlx::query(sql)
        .bind(id)
        .bind(at)
        .bind(host_id)
        .bind(kind)
        .bind(detail)
        .execute(&mut **change)
        .await?;
    Ok(done.rows_affected() == 1)
}
