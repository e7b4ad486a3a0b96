//! How far outputs for other systems have come, and the records that are theirs next.

use sqlx::Row as _;

use super::{Result, Store, signed, unsigned};
use crate::time::Millis;

/// One output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SiemRow {
    /// Index of the first record that the other side does not have.
    pub position: u64,
    /// Events.
    pub delivered: u64,
    pub refused: u64,
    /// When it last took something; 0: never.
    pub at: Millis,
}

/// A record with what its events need.
#[derive(Debug, Clone)]
pub struct ForSiem {
    pub position: u64,
    pub digest: String,
    pub signer: String,
    pub host_name: Option<String>,
    pub envelope: Vec<u8>,
}

impl Store {
    pub async fn siem_output(&self, name: &str) -> Result<Option<SiemRow>> {
        let sql = "SELECT position, delivered, refused, at FROM siem_outputs WHERE name = $1";
        let row = sqlx::query(sql)
            .bind(name)
            .fetch_optional(&mut *self.reader().await?)
            .await?;
        row.map(|row| {
            Ok(SiemRow {
                position: unsigned(row.try_get("position")?)?,
                delivered: unsigned(row.try_get("delivered")?)?,
                refused: unsigned(row.try_get("refused")?)?,
                at: row.try_get("at")?,
            })
        })
        .transpose()
    }

    pub async fn set_siem_output(&self, name: &str, row: SiemRow) -> Result<()> {
        let sql = "INSERT INTO siem_outputs (name, position, delivered, refused, at) VALUES ($1, $2, $3, $4, $5)
                   ON CONFLICT (name) DO UPDATE SET position = $2, delivered = $3, refused = $4, at = $5";
        let mut change = self.change().await?;
        sqlx::query(sql)
            .bind(name)
            .bind(signed(row.position))
            .bind(signed(row.delivered))
            .bind(signed(row.refused))
            .bind(row.at)
            .execute(&mut *change)
            .await?;
        Ok(change.commit().await?)
    }

    /// In log order, from a position on, at most `count` of them.
    pub async fn for_siem(&self, from: u64, count: u64) -> Result<Vec<ForSiem>> {
        let sql = "SELECT e.position, e.digest, e.signer, h.name AS host_name, e.envelope
                   FROM records e LEFT JOIN hosts h ON h.id = e.host_id
                   WHERE e.position >= $1 ORDER BY e.position LIMIT $2";
        let rows = sqlx::query(sql)
            .bind(signed(from))
            .bind(signed(count))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter()
            .map(|row| {
                Ok(ForSiem {
                    position: unsigned(row.try_get("position")?)?,
                    digest: row.try_get("digest")?,
                    signer: row.try_get("signer")?,
                    host_name: row.try_get("host_name")?,
                    envelope: row.try_get("envelope")?,
                })
            })
            .collect()
    }

    /// The first question with this id and the first answer to it, by this signer, before a position.
    pub async fn asked_before(&self, signer: &str, request_id: &str, position: u64) -> Result<Vec<Vec<u8>>> {
        let sql = "SELECT envelope FROM records WHERE request_id = $1 AND signer = $2 AND position < $3
                   AND kind IN ('request', 'decision') ORDER BY position LIMIT 2";
        let rows = sqlx::query(sql)
            .bind(request_id)
            .bind(signer)
            .bind(signed(position))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(|row| Ok(row.try_get("envelope")?)).collect()
    }
}
