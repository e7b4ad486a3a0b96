//! Changes of who may decide, as the log has them.

use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::{Change, Result, Row, Store, signed, unsigned};
use crate::time::Millis;

/// One change with its envelope.
#[derive(Debug, Clone)]
pub struct StoredChange {
    pub position: u64,
    /// SHA-256 of the envelope, hex.
    pub digest: String,
    pub envelope: Vec<u8>,
}

#[derive(Debug, Clone, Default)]
pub struct ChangeFilter {
    /// `user:bob`, `label:coder` …: any of these; empty: all.
    pub about: Vec<String>,
    pub from: Option<Millis>,
    /// Up to and with this time.
    pub to: Option<Millis>,
    /// Positions before this one.
    pub before: Option<u64>,
    /// Positions after this one.
    pub after: Option<u64>,
    pub limit: u64,
}

fn stored(row: &Row) -> Result<StoredChange> {
    Ok(StoredChange {
        position: unsigned(row.try_get("position")?)?,
        digest: row.try_get("digest")?,
        envelope: row.try_get("envelope")?,
    })
}

impl Store {
    /// Newest first.
    pub async fn changes(&self, filter: &ChangeFilter) -> Result<Vec<StoredChange>> {
        let mut query =
            QueryBuilder::<Sqlite>::new("SELECT position, digest, envelope FROM records WHERE kind = 'change'");
        if !filter.about.is_empty() {
            query.push(" AND about IN (");
            let mut names = query.separated(", ");
            for about in &filter.about {
                names.push_bind(about.clone());
            }
            query.push(")");
        }
        if let Some(from) = filter.from {
            query.push(" AND at >= ").push_bind(from);
        }
        if let Some(to) = filter.to {
            query.push(" AND at <= ").push_bind(to);
        }
        if let Some(before) = filter.before {
            query.push(" AND position < ").push_bind(signed(before));
        }
        if let Some(after) = filter.after {
            query.push(" AND position > ").push_bind(signed(after));
        }
        query
            .push(" ORDER BY position DESC LIMIT ")
            .push_bind(signed(filter.limit));
        let rows = query.build().fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(stored).collect()
    }

    /// Where the newest change stands; 0 if there is none.
    pub async fn last_change(&self) -> Result<u64> {
        let row = sqlx::query("SELECT COALESCE(MAX(position), 0) AS position FROM records WHERE kind = 'change'")
            .fetch_one(&mut *self.reader().await?)
            .await?;
        unsigned(row.try_get("position")?)
    }
}

/// The envelope of a signer's last record.
pub(crate) async fn last_envelope(change: &mut Change, signer: &str) -> Result<Option<Vec<u8>>> {
    let sql = "SELECT envelope FROM records WHERE signer = $1 ORDER BY epoch DESC, sequence DESC LIMIT 1";
    let row = sqlx::query(sql).bind(signer).fetch_optional(&mut **change).await?;
    Ok(row.map(|row| row.try_get("envelope")).transpose()?)
}
