//! Keys of hosts' evidence, and what each may sign.

use std::collections::BTreeMap;

use guard_evidence::key::PublicKey;
use guard_evidence::trust::RangedKey;
use sqlx::Row as _;

use super::{Change, Connection, Result, Row, Store, StoreError, signed, unsigned};

/// One host's.
#[derive(Debug, Clone, Default)]
pub struct HostKeys {
    /// In the order of their epochs.
    pub used: Vec<RangedKey>,
    /// Named by the last of them, and has signed nothing yet.
    pub next: Option<PublicKey>,
}

impl HostKeys {
    /// The key with this id.
    #[must_use]
    pub fn by_id(&self, id: &str) -> Option<&PublicKey> {
        let used = self.used.iter().map(|used| &used.key);
        used.chain(&self.next).find(|key| key.id() == id)
    }

    /// Whether the key with this id is the one that may begin an epoch in place of the last one.
    #[must_use]
    pub fn is_next(&self, id: &str) -> bool {
        self.next.as_ref().is_some_and(|key| key.id() == id)
    }

    /// Whether the key with this id signs this epoch.
    #[must_use]
    pub fn signs(&self, id: &str, epoch: u64) -> bool {
        self.used
            .iter()
            .any(|used| used.signs_epoch(epoch) && used.key.id() == id)
    }

    fn add(&mut self, row: &Row) -> Result<()> {
        let number = |column: &str| row.try_get::<Option<i64>, _>(column)?.map(unsigned).transpose();
        let der: Vec<u8> = row.try_get("key")?;
        let key = PublicKey::from_der(&der).map_err(|e| StoreError::Damaged(e.to_string()))?;
        match number("from_epoch")? {
            None => self.next = Some(key),
            Some(from_epoch) => self.used.push(RangedKey {
                key,
                from_epoch,
                through_epoch: number("through_epoch")?,
                from_index: number("from_index")?,
                through_index: number("through_index")?,
            }),
        }
        Ok(())
    }
}

impl Store {
    pub async fn evidence_keys(&self, host_id: &str) -> Result<HostKeys> {
        find(&mut *self.reader().await?, host_id).await
    }

    /// Every host's, by its id.
    pub async fn all_evidence_keys(&self) -> Result<BTreeMap<String, HostKeys>> {
        let rows = sqlx::query("SELECT * FROM evidence_keys ORDER BY host_id, from_epoch")
            .fetch_all(&mut *self.reader().await?)
            .await?;
        let mut all: BTreeMap<String, HostKeys> = BTreeMap::new();
        for row in &rows {
            all.entry(row.try_get("host_id")?).or_default().add(row)?;
        }
        Ok(all)
    }
}

async fn find(connection: &mut Connection, host_id: &str) -> Result<HostKeys> {
    let rows = sqlx::query("SELECT * FROM evidence_keys WHERE host_id = $1 ORDER BY from_epoch")
        .bind(host_id)
        .fetch_all(connection)
        .await?;
    let mut keys = HostKeys::default();
    for row in &rows {
        keys.add(row)?;
    }
    Ok(keys)
}

pub(crate) async fn evidence_keys_in(change: &mut Change, host_id: &str) -> Result<HostKeys> {
    find(&mut *change, host_id).await
}

/// The key with which a host joins.
pub(crate) async fn add_evidence_key(change: &mut Change, host_id: &str, key: &PublicKey) -> Result<()> {
    sqlx::query("INSERT INTO evidence_keys (host_id, key, from_epoch) VALUES ($1, $2, 1)")
        .bind(host_id)
        .bind(key.to_der())
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// A key in use names the one that is to follow it. One that was ever used stays what it was.
pub(crate) async fn name_next_key(change: &mut Change, host_id: &str, key: &PublicKey) -> Result<()> {
    sqlx::query("DELETE FROM evidence_keys WHERE host_id = $1 AND from_epoch IS NULL")
        .bind(host_id)
        .execute(&mut **change)
        .await?;
    sqlx::query("INSERT INTO evidence_keys (host_id, key) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(host_id)
        .bind(key.to_der())
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// The key that was named begins an epoch at this place of the log: the one before it ends there.
pub(crate) async fn begin_next_key(change: &mut Change, host_id: &str, epoch: u64, index: u64) -> Result<()> {
    sqlx::query(
        "UPDATE evidence_keys SET through_epoch = $1, through_index = $2
         WHERE host_id = $3 AND from_epoch IS NOT NULL AND through_epoch IS NULL",
    )
    .bind(signed(epoch.saturating_sub(1)))
    .bind(signed(index.saturating_sub(1)))
    .bind(host_id)
    .execute(&mut **change)
    .await?;
    sqlx::query("UPDATE evidence_keys SET from_epoch = $1, from_index = $2 WHERE host_id = $3 AND from_epoch IS NULL")
        .bind(signed(epoch))
        .bind(signed(index))
        .bind(host_id)
        .execute(&mut **change)
        .await?;
    Ok(())
}
