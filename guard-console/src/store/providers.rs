//! Identity providers as they were last recorded.

use std::collections::BTreeMap;

use guard_evidence::change::ProviderFacts;
use sqlx::Row as _;

use super::{Change, Result, from_json, json};

pub(crate) async fn providers(change: &mut Change) -> Result<BTreeMap<String, ProviderFacts>> {
    let rows = sqlx::query("SELECT name, facts FROM providers")
        .fetch_all(&mut **change)
        .await?;
    rows.iter()
        .map(|row| Ok((row.try_get("name")?, from_json(row.try_get("facts")?)?)))
        .collect()
}

pub(crate) async fn put_provider(change: &mut Change, name: &str, facts: &ProviderFacts) -> Result<()> {
    let sql = "INSERT INTO providers (name, facts) VALUES ($1, $2)
               ON CONFLICT (name) DO UPDATE SET facts = excluded.facts";
    sqlx::query(sql)
        .bind(name)
        .bind(json(facts)?)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn delete_provider(change: &mut Change, name: &str) -> Result<()> {
    sqlx::query("DELETE FROM providers WHERE name = $1")
        .bind(name)
        .execute(&mut **change)
        .await?;
    Ok(())
}
