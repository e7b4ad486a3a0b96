//! Labels as the console knows them: owner and description. Hosts name labels, but own nothing here.

use guard_evidence::record::PersonId;
use sqlx::Row as _;

use super::{Change, Connection, Result, Row, Store};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct LabelRow {
    pub name: String,
    /// A user name.
    pub owner: Option<String>,
    /// The same, as records say it.
    pub owner_id: Option<PersonId>,
    pub description: String,
}

macro_rules! select_label {
    () => {
        "SELECT l.name, l.owner, l.description, u.issuer, u.subject
         FROM labels l LEFT JOIN users u ON u.username = l.owner"
    };
}

fn label(row: &Row) -> Result<LabelRow> {
    Ok(LabelRow {
        name: row.try_get("name")?,
        owner: row.try_get("owner")?,
        owner_id: match (row.try_get("issuer")?, row.try_get("subject")?) {
            (Some(issuer), Some(subject)) => Some(PersonId { issuer, subject }),
            _ => None,
        },
        description: row.try_get("description")?,
    })
}

impl Store {
    pub async fn labels(&self) -> Result<Vec<LabelRow>> {
        let sql = concat!(select_label!(), " ORDER BY l.name");
        let rows = sqlx::query(sql).fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(label).collect()
    }

    pub async fn label_owner(&self, name: &str) -> Result<Option<String>> {
        owner(&mut *self.reader().await?, name).await
    }

    /// Labels of pending requests, with how many.
    pub async fn pending_by_label(&self) -> Result<Vec<(String, i64)>> {
        let sql = "SELECT label, COUNT(*) AS n FROM requests WHERE state = 'pending' GROUP BY label";
        let rows = sqlx::query(sql).fetch_all(&mut *self.reader().await?).await?;
        rows.iter()
            .map(|row| Ok((row.try_get("label")?, row.try_get("n")?)))
            .collect()
    }

    /// Labels that requests were made for, ever.
    pub async fn asked_labels(&self) -> Result<Vec<String>> {
        let rows = sqlx::query("SELECT DISTINCT label FROM requests")
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(|row| Ok(row.try_get("label")?)).collect()
    }
}

async fn owner(connection: &mut Connection, name: &str) -> Result<Option<String>> {
    let row = sqlx::query("SELECT owner FROM labels WHERE name = $1")
        .bind(name)
        .fetch_optional(connection)
        .await?;
    Ok(row
        .map(|row| row.try_get::<Option<String>, _>("owner"))
        .transpose()?
        .flatten())
}

pub(crate) async fn label_in(change: &mut Change, name: &str) -> Result<Option<LabelRow>> {
    let row = sqlx::query(concat!(select_label!(), " WHERE l.name = $1"))
        .bind(name)
        .fetch_optional(&mut **change)
        .await?;
    row.as_ref().map(label).transpose()
}

pub(crate) async fn label_owner_in(change: &mut Change, name: &str) -> Result<Option<String>> {
    owner(&mut *change, name).await
}

pub(crate) async fn put_label(change: &mut Change, label: &LabelRow, by: &str, at: Millis) -> Result<()> {
    let sql = "INSERT INTO labels (name, owner, description, updated_at, updated_by) VALUES ($1, $2, $3, $4, $5)
               ON CONFLICT (name) DO UPDATE SET owner = excluded.owner, description = excluded.description,
                   updated_at = excluded.updated_at, updated_by = excluded.updated_by";
    sqlx::query(sql)
        .bind(&label.name)
        .bind(&label.owner)
        .bind(&label.description)
        .bind(at)
        .bind(by)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn delete_label(change: &mut Change, name: &str) -> Result<bool> {
    let done = sqlx::query("DELETE FROM labels WHERE name = $1")
        .bind(name)
        .execute(&mut **change)
        .await?;
    Ok(done.rows_affected() == 1)
}
