//! Keys that sign decisions and the console's own records, and what each may sign.

use guard_evidence::key::PublicKey;
use guard_evidence::trust::RangedKey;
use sqlx::Row as _;

use super::{Change, Result, Row, Store, StoreError, signed, unsigned};

impl Store {
    /// In the order of their epochs.
    pub async fn decision_keys(&self) -> Result<Vec<RangedKey>> {
        let sql =
            "SELECT key, from_epoch, from_index, through_epoch, through_index FROM decision_keys ORDER BY from_epoch";
        let rows = sqlx::query(sql).fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(ranged).collect()
    }

    /// How the key became what it is: envelopes in which each was named by the one before it, in order.
    pub async fn decision_key_statements(&self) -> Result<Vec<Vec<u8>>> {
        let sql = "SELECT statement FROM decision_keys WHERE statement IS NOT NULL ORDER BY from_epoch";
        let rows = sqlx::query(sql).fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(|row| Ok(row.try_get("statement")?)).collect()
    }
}

fn ranged(row: &Row) -> Result<RangedKey> {
    let number = |column: &str| row.try_get::<Option<i64>, _>(column)?.map(unsigned).transpose();
    let der: Vec<u8> = row.try_get("key")?;
    Ok(RangedKey {
        key: PublicKey::from_der(&der).map_err(|e| StoreError::Damaged(e.to_string()))?,
        from_epoch: unsigned(row.try_get("from_epoch")?)?,
        through_epoch: number("through_epoch")?,
        from_index: number("from_index")?,
        through_index: number("through_index")?,
    })
}

/// Whether this key was ever in use.
pub(crate) async fn has_decision_key(change: &mut Change, key: &PublicKey) -> Result<bool> {
    let row = sqlx::query("SELECT 1 FROM decision_keys WHERE key = $1")
        .bind(key.to_der())
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.is_some())
}

/// The key that begins an epoch, at this place of the log (`None`: from its beginning): the one before it ends there.
pub(crate) async fn begin_decision_key(
    change: &mut Change,
    key: &PublicKey,
    epoch: u64,
    index: Option<u64>,
    statement: Option<&[u8]>,
) -> Result<()> {
    sqlx::query("UPDATE decision_keys SET through_epoch = $1, through_index = $2 WHERE through_epoch IS NULL")
        .bind(signed(epoch.saturating_sub(1)))
        .bind(index.map(|index| signed(index.saturating_sub(1))))
        .execute(&mut **change)
        .await?;
    sqlx::query("INSERT INTO decision_keys (key, from_epoch, from_index, statement) VALUES ($1, $2, $3, $4)")
        .bind(key.to_der())
        .bind(signed(epoch))
        .bind(index.map(signed))
        .bind(statement)
        .execute(&mut **change)
        .await?;
    Ok(())
}
