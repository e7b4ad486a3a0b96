//! Labels and their owners. An owner is set here, by an administrator, and nowhere else.

use std::collections::{BTreeMap, BTreeSet};

use guard_evidence::change::{Change, LabelFacts};
use guard_evidence::statement::sha256_hex;
use guard_proto::limits::REASON_BYTES;
use guard_proto::rest::{Label, LabelBody};

use super::changes::name_beside;
use super::{Actor, App, Error, Permission, Result, names};
use crate::store::{self, LabelRow};

const DESCRIPTION_BYTES: usize = 500;

impl LabelRow {
    /// As records say it.
    pub(super) fn facts(&self) -> LabelFacts {
        LabelFacts {
            owner: self.owner_id.clone(),
            owner_name: match (&self.owner_id, &self.owner) {
                (Some(who), Some(username)) => name_beside(who, username),
                _ => None,
            },
            description: self.description.clone(),
        }
    }

    /// Changes whenever somebody changes the label.
    fn version(&self) -> String {
        let facts = serde_json::to_vec(&self.facts()).unwrap_or_default();
        sha256_hex(&facts).chars().take(16).collect()
    }

    /// One that nobody has said anything about.
    fn unsaid(name: String) -> Self {
        Self {
            name,
            owner: None,
            owner_id: None,
            description: String::new(),
        }
    }
}

/// Whether a change is meant for the label as it is.
fn still(expected: Option<&str>, there: Option<&LabelRow>, name: &str) -> Result<()> {
    let version = there.map_or_else(|| LabelRow::unsaid(name.to_owned()).version(), LabelRow::version);
    if expected.is_none_or(|expected| expected == version) {
        return Ok(());
    }
    Err(Error::Changed(format!(
        "somebody changed the label {} meanwhile; look at it again",
        guard_evidence::text::visible_fold(name, 80)
    )))
}

impl App {
    /// Labels that the console has, hosts have, or somebody was asked for.
    pub async fn labels(&self, actor: &Actor) -> Result<Vec<Label>> {
        actor.require(Permission::SeeLabels)?;
        let mut on_hosts: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for host in self.store.hosts().await?.into_iter().filter(|h| h.revoked_at.is_none()) {
            for label in host.labels {
                on_hosts.entry(label).or_default().insert(host.name.clone());
            }
        }
        let pending: BTreeMap<String, i64> = self.store.pending_by_label().await?.into_iter().collect();
        let mut known: BTreeMap<String, LabelRow> = self
            .store
            .labels()
            .await?
            .into_iter()
            .map(|l| (l.name.clone(), l))
            .collect();
        for name in on_hosts.keys().cloned().chain(self.store.asked_labels().await?) {
            known.entry(name.clone()).or_insert_with(|| LabelRow::unsaid(name));
        }
        let view = |label: LabelRow| Label {
            hosts: on_hosts.get(&label.name).into_iter().flatten().cloned().collect(),
            pending: pending
                .get(&label.name)
                .and_then(|n| u64::try_from(*n).ok())
                .unwrap_or(0),
            version: label.version(),
            name: label.name,
            owner: label.owner,
            description: label.description,
        };
        Ok(known.into_values().map(view).collect())
    }

    pub async fn label(&self, actor: &Actor, name: &str) -> Result<Label> {
        let all = self.labels(actor).await?;
        all.into_iter()
            .find(|l| l.name == name)
            .ok_or_else(|| Error::not_found("label", name))
    }

    /// Refused when `expected` is a version that the label no longer has.
    pub async fn put_label(
        &self,
        actor: &Actor,
        name: &str,
        body: &LabelBody,
        expected: Option<&str>,
    ) -> Result<Label> {
        actor.require(Permission::ManageLabels)?;
        let mut row = LabelRow {
            name: names::label(name)?,
            owner: body.owner.clone(),
            owner_id: None,
            description: names::free_text("a description", &body.description, DESCRIPTION_BYTES)?,
        };
        let why = names::free_text("a reason", &body.reason, REASON_BYTES)?;
        let mut change = self.store.change().await?;
        let mut owner = None;
        if let Some(name) = &row.owner {
            owner = store::user_in(&mut change, name)
                .await?
                .filter(|user| user.disabled_at.is_none() && !user.service);
            row.owner_id = owner.as_ref().map(|user| user.who.clone());
            if owner.is_none() {
                return Err(Error::Invalid(format!(
                    "the owner {:?} is not a person with an account here, or is disabled; make the user first",
                    guard_evidence::text::visible_fold(name, 80)
                )));
            }
        }
        let there = store::label_in(&mut change, &row.name).await?;
        still(expected, there.as_ref(), &row.name)?;
        let before = there.map(|label| label.facts());
        let after = Some(row.facts());
        if before != after {
            store::put_label(&mut change, &row, &actor.username, self.now()).await?;
            if let Some(owner) = &owner {
                store::void_answers(&mut change, &owner.id, Some(&row.name), "they became the owner").await?;
            }
            let changed = Change::Label {
                label: row.name.clone(),
                before,
                after,
            };
            let why = (!why.is_empty()).then_some(why);
            self.record_change(&mut change, actor.as_changer(), changed, why)
                .await?;
            change.commit().await?;
            tracing::info!(label = %row.name, owner = ?row.owner, by = %actor.username, "label changed");
            // Who may answer may have changed.
            self.notify.refresh();
            self.notify.changed();
        } else {
            change.rollback().await?;
        }
        self.label(actor, &row.name).await
    }

    /// Refused when `expected` is a version that the label no longer has.
    pub async fn delete_label(&self, actor: &Actor, name: &str, expected: Option<&str>) -> Result<()> {
        actor.require(Permission::ManageLabels)?;
        let mut change = self.store.change().await?;
        let Some(before) = store::label_in(&mut change, name).await? else {
            return Err(Error::not_found("label", name));
        };
        still(expected, Some(&before), name)?;
        store::delete_label(&mut change, name).await?;
        let deleted = Change::Label {
            label: before.name.clone(),
            before: Some(before.facts()),
            after: None,
        };
        self.record_change(&mut change, actor.as_changer(), deleted, None)
            .await?;
        change.commit().await?;
        tracing::info!(label = %guard_evidence::text::visible(name), by = %actor.username, "label deleted");
        self.notify.refresh();
        self.notify.changed();
        Ok(())
    }
}
