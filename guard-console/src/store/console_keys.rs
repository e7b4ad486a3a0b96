//! Keys of the console itself, and what each may sign.

use guard_evidence::key::PublicKey;
use guard_evidence::trust::RangedKey;
use sqlx::Row as _;

use super::{Change, Result, Row, Store, StoreError, signed, unsigned};

/// What a key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Signs decisions and the console's own records.
    Decision,
    /// Signs checkpoints, and nothing else but the change of itself.
    Log,
}

impl Purpose {
    fn word(self) -> &'static str {
        match self {
            Self::Decision => "decision",
            Self::Log => "log",
        }
    }

    /// Who signs with it.
    #[must_use]
    pub fn signer(self, origin: &str) -> String {
        match self {
            Self::Decision => format!("console:{origin}"),
            Self::Log => format!("log:{origin}"),
        }
    }
}

impl Store {
    /// In the order of their epochs.
    pub async fn console_keys(&self, purpose: Purpose) -> Result<Vec<RangedKey>> {
        let sql = "SELECT key, from_epoch, from_index, through_epoch, through_index FROM console_keys
                   WHERE purpose = $1 ORDER BY from_epoch";
        let query = sqlx::query(sql).bind(purpose.word());
        let rows = query.fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(ranged).collect()
    }

    /// How the key became what it is: envelopes in which each was named by the one before it, in order.
    pub async fn key_statements(&self, purpose: Purpose) -> Result<Vec<Vec<u8>>> {
        let sql = "SELECT statement FROM console_keys WHERE purpose = $1 AND statement IS NOT NULL ORDER BY from_epoch";
        let query = sqlx::query(sql).bind(purpose.word());
        let rows = query.fetch_all(&mut *self.reader().await?).await?;
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
pub(crate) async fn has_console_key(change: &mut Change, purpose: Purpose, key: &PublicKey) -> Result<bool> {
    let row = sqlx::query("SELECT 1 FROM console_keys WHERE purpose = $1 AND key = $2")
        .bind(purpose.word())
        .bind(key.to_der())
        .fetch_optional(&mut **change)
        .await?;
    Ok(row.is_some())
}

/// Another log begins, and the keys with it.
pub(crate) async fn forget_console_keys(change: &mut Change) -> Result<()> {
    sqlx::query("DELETE FROM console_keys").execute(&mut **change).await?;
    Ok(())
}

/// The key that begins an epoch, at this place of the log (`None`: from its beginning): the one before it ends there.
pub(crate) async fn begin_console_key(
    change: &mut Change,
    purpose: Purpose,
    key: &PublicKey,
    epoch: u64,
    index: Option<u64>,
    statement: Option<&[u8]>,
) -> Result<()> {
    sqlx::query(
        "UPDATE console_keys SET through_epoch = $1, through_index = $2 WHERE purpose = $3 AND through_epoch IS NULL",
    )
    .bind(signed(epoch.saturating_sub(1)))
    .bind(index.map(|index| signed(index.saturating_sub(1))))
    .bind(purpose.word())
    .execute(&mut **change)
    .await?;
    sqlx::query(
        "INSERT INTO console_keys (purpose, key, from_epoch, from_index, statement) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(purpose.word())
    .bind(key.to_der())
    .bind(signed(epoch))
    .bind(index.map(signed))
    .bind(statement)
    .execute(&mut **change)
    .await?;
    Ok(())
}
