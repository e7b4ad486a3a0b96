//! The schema's history, embedded. A released migration is never edited; a change is a new file.

use std::borrow::Cow;

use sqlx::migrate::{Migrate, Migration, MigrationType, Migrator};
use sqlx::{SqlSafeStr, SqlitePool};

use super::Result;

/// A migration that ran just now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    pub version: i64,
    pub name: String,
}

fn migrator() -> Migrator {
    let migration = |version, name: &'static str, sql: &'static str| {
        Migration::new(
            version,
            Cow::Borrowed(name),
            MigrationType::Simple,
            sql.into_sql_str(),
            false,
        )
    };
    Migrator::with_migrations(vec![
        migration(1, "initial", include_str!("../../migrations/0001_initial.sql")),
        migration(2, "changes", include_str!("../../migrations/0002_changes.sql")),
        migration(3, "identities", include_str!("../../migrations/0003_identities.sql")),
        migration(4, "grants", include_str!("../../migrations/0004_grants.sql")),
        migration(
            5,
            "evidence keys",
            include_str!("../../migrations/0005_evidence_keys.sql"),
        ),
        migration(6, "channels", include_str!("../../migrations/0006_channels.sql")),
        migration(7, "siem", include_str!("../../migrations/0007_siem.sql")),
        migration(9, "idempotency", include_str!("../../migrations/0009_idempotency.sql")),
    ])
}

/// Runs what is missing. A database of a newer version is refused.
pub(super) async fn run(pool: &SqlitePool) -> Result<Vec<Applied>> {
    let migrator = migrator();
    let mut connection = pool.acquire().await?;
    connection.ensure_migrations_table(&migrator.table_name).await?;
    let before = connection.list_applied_migrations(&migrator.table_name).await?;
    drop(connection);
    migrator.run(pool).await?;
    let ran = migrator
        .iter()
        .filter(|m| before.iter().all(|b| b.version != m.version));
    Ok(ran
        .map(|m| Applied {
            version: m.version,
            name: m.description.to_string(),
        })
        .collect())
}
