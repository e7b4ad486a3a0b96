//! Changes of who may decide, as records: people, roles, groups, labels, owners, tokens, hosts.
//!
//! Owns the console's own chain in the log. It is given the transaction in which something changes, so that neither the
//! change nor its record is ever on disk without the other. It must never write a password or a secret.

use guard_evidence::chain::{Chain, Sealed, Stamp};
use guard_evidence::change::{Change, ChangeRecord, ChangedBy, ChangesHead, LabelFacts, UserFacts};
use guard_evidence::dsse;
use guard_evidence::key::{PublicKey, SigningKey};
use guard_evidence::merkle::leaf_hash;
use guard_evidence::record::{Header, Lifecycle, LifecycleRecord, PersonId, Predicate, Statement};
use guard_evidence::statement::{sha256_hex, summary};
use guard_evidence::text::visible;
use guard_proto::rest::{ChangeView, Page, RequestState};
use nix::time::{ClockId, clock_gettime};

use super::requests::MAX_PAGE;
use super::{Actor, App, Error, Permission, Result};
use crate::store::{self, AnswerRow, ChangeFilter, NewRecord, Purpose, RequestRow, StoredChange, UserRow};
use crate::time::{Millis, rfc3339};

/// A change of this long ago still stands on cards.
const LATELY_MS: Millis = 24 * 3_600_000;
/// Most of them on one card.
const MARKS: u64 = 5;

pub(crate) const LOCAL_ISSUER: &str = "local";

/// Somebody of this console's own.
pub(super) fn local(username: &str) -> PersonId {
    PersonId {
        issuer: LOCAL_ISSUER.to_owned(),
        subject: username.to_owned(),
    }
}

/// What somebody is called, where the subject is no name.
pub(super) fn name_beside(who: &PersonId, username: &str) -> Option<String> {
    (who.issuer != LOCAL_ISSUER).then(|| username.to_owned())
}

pub(super) fn user_facts(user: &UserRow) -> UserFacts {
    UserFacts {
        who: user.who.clone(),
        name: user.username.clone(),
        roles: user.roles.iter().map(|role| role.as_str().to_owned()).collect(),
        groups: user.groups.clone(),
        service: user.service,
    }
}

/// Names a token in records; what it opens stays secret.
pub(super) fn token_name(digest: &str) -> String {
    digest.chars().take(16).collect()
}

impl Actor {
    pub(super) fn as_changer(&self) -> ChangedBy {
        ChangedBy::Person {
            who: self.who.clone(),
            name: self.username.clone(),
            roles: self.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            channel: self.channel.to_owned(),
            signed_in_at: rfc3339(self.signed_in_at),
        }
    }
}

impl App {
    fn signer(&self) -> String {
        format!("console:{}", self.log.origin())
    }

    /// Writes a change into the log, in the transaction of the change itself.
    pub(super) async fn record_change(
        &self,
        tx: &mut store::Change,
        by: ChangedBy,
        change: Change,
        why: Option<String>,
    ) -> Result<()> {
        let mut chain = match self.chain_on_disk(tx).await? {
            Some(chain) => chain,
            None => self.begin_chain(tx, 1, "the console began to record changes").await?.1,
        };
        self.seal(tx, &mut chain, |header| {
            Predicate::Change(Box::new(ChangeRecord {
                header,
                by,
                change,
                why,
            }))
        })
        .await?;
        Ok(())
    }

    /// At the start: a chain that goes on, under the key that there is now. What was changed before changes were
    /// recorded is written down as it was found.
    pub(super) async fn begin_changes(&self) -> Result<()> {
        let (key, log_key) = (self.decision_key.public(), self.log.key().public());
        let mut tx = self.store.change().await?;
        let Some(envelope) = store::last_envelope(&mut tx, &self.signer()).await? else {
            store::forget_console_keys(&mut tx).await?;
            self.begin_chain(&mut tx, 1, "the console began to record changes")
                .await?;
            store::begin_console_key(&mut tx, Purpose::Decision, &key, 1, None, None).await?;
            store::begin_console_key(&mut tx, Purpose::Log, &log_key, 1, None, None).await?;
            for found in self.found().await? {
                self.record_change(&mut tx, ChangedBy::Found, found, None).await?;
            }
            tx.commit().await?;
            return Ok(());
        };
        let known = store::has_console_key(&mut tx, Purpose::Decision, &key).await?;
        if signed_by(&envelope)? != key.id() {
            if known {
                return Err(Error::internal(
                    "decision.key is one that was replaced, and such a key never comes back; restore the newer one, or move \
                     the file away: then a new key is made and hosts enrol again",
                ));
            }
            let epoch = header(&envelope)?.epoch + 1;
            let (index, _) = self
                .begin_chain(&mut tx, epoch, "the console has another decision key")
                .await?;
            store::begin_console_key(&mut tx, Purpose::Decision, &key, epoch, Some(index), None).await?;
        } else if !known {
            store::begin_console_key(&mut tx, Purpose::Decision, &key, 1, None, None).await?;
        }
        // A log whose key is another one has another folder and another name, or does not start.
        if !store::has_console_key(&mut tx, Purpose::Log, &log_key).await? {
            store::begin_console_key(&mut tx, Purpose::Log, &log_key, 1, None, None).await?;
        }
        tx.commit().await?;
        Ok(())
    }

    /// Another key takes over: the old one names it, and it begins an epoch of the same signer, both or neither. Hosts
    /// believe the record in which it is named.
    pub(super) async fn replace_key(&self, purpose: Purpose, old: &SigningKey, next: &SigningKey) -> Result<()> {
        let (key, signer) = (next.public(), purpose.signer(self.log.origin()));
        let mut tx = self.store.change().await?;
        let mut chain = match store::last_envelope(&mut tx, &signer).await? {
            Some(envelope) => Chain::resume(&header(&envelope)?, &envelope),
            None => Chain::begin(signer, 1),
        };
        let named = Lifecycle::NextKey { key: key.clone() };
        let (_, statement) = self
            .seal_with(&mut tx, &mut chain, old, |header| lifecycle(header, named))
            .await?;
        let begun = Lifecycle::Begun {
            why: "the key was replaced".to_owned(),
            key: key.id(),
            after: chain.end(),
        };
        let mut chain = chain.next_epoch();
        let (index, _) = self
            .seal_with(&mut tx, &mut chain, next, |header| lifecycle(header, begun))
            .await?;
        store::begin_console_key(&mut tx, purpose, &key, chain.epoch(), Some(index), Some(&statement)).await?;
        tx.commit().await?;
        tracing::info!(key = key.id(), ?purpose, "another key signs");
        Ok(())
    }

    /// What there is of people, labels, hosts and tokens, as if it were made now.
    async fn found(&self) -> Result<Vec<Change>> {
        let mut found = Vec::new();
        for row in self.store.users().await? {
            let user = user_facts(&row);
            found.push(Change::UserCreated { user: user.clone() });
            if row.disabled_at.is_some() {
                found.push(Change::UserDisabled { user });
            }
        }
        for label in self.store.labels().await? {
            found.push(Change::Label {
                label: label.name.clone(),
                before: None,
                after: Some(label.facts()),
            });
        }
        for host in self.store.hosts().await? {
            let key = PublicKey::from_der(&host.evidence_key).map_err(|e| damaged(&e))?;
            found.push(Change::HostJoined {
                host_id: host.id.clone(),
                name: host.name.clone(),
                evidence_key: key.id(),
            });
            if host.revoked_at.is_some() {
                found.push(Change::HostRevoked {
                    host_id: host.id,
                    name: host.name,
                });
            }
        }
        // Without them a host that joins with one would have joined with a token that nobody made.
        for token in self.store.open_tokens(self.now()).await? {
            found.push(Change::TokenCreated {
                token: token_name(&token.digest),
                description: token.description,
                expires_at: rfc3339(token.expires_at),
            });
        }
        Ok(found)
    }

    async fn chain_on_disk(&self, tx: &mut store::Change) -> Result<Option<Chain>> {
        let envelope = store::last_envelope(tx, &self.signer()).await?;
        envelope.map(|e| Ok(Chain::resume(&header(&e)?, &e))).transpose()
    }

    /// Gives the place of its first record in the log.
    async fn begin_chain(&self, tx: &mut store::Change, epoch: u64, why: &str) -> Result<(u64, Chain)> {
        let mut chain = Chain::begin(self.signer(), epoch);
        let event = Lifecycle::Begun {
            why: why.to_owned(),
            key: self.decision_key.public().id(),
            after: None,
        };
        let (index, _) = self.seal(tx, &mut chain, |header| lifecycle(header, event)).await?;
        Ok((index, chain))
    }

    async fn seal(
        &self,
        tx: &mut store::Change,
        chain: &mut Chain,
        make: impl FnOnce(Header) -> Predicate,
    ) -> Result<(u64, Vec<u8>)> {
        self.seal_with(tx, chain, &self.decision_key, make).await
    }

    /// Gives the record's place in the log, and its envelope.
    async fn seal_with(
        &self,
        tx: &mut store::Change,
        chain: &mut Chain,
        key: &SigningKey,
        make: impl FnOnce(Header) -> Predicate,
    ) -> Result<(u64, Vec<u8>)> {
        let now = self.now();
        let sealed = chain
            .seal(key, stamp(now), make)
            .map_err(|e| Error::internal(format!("a change cannot be recorded: {e}")))?;
        let index = self.store_sealed(tx, &sealed, now).await?;
        Ok((index, sealed.envelope))
    }

    async fn store_sealed(&self, tx: &mut store::Change, sealed: &Sealed, now: Millis) -> Result<u64> {
        let statement = stored_statement(&sealed.envelope)?;
        let about = match &statement.predicate {
            Predicate::Change(record) => Some(record.change.subject()),
            _ => None,
        };
        let new = NewRecord {
            digest: &sealed.envelope_digest,
            leaf_hash: &leaf_hash(&sealed.envelope),
            envelope: &sealed.envelope,
            signer: &sealed.header.signer,
            host_id: None,
            epoch: sealed.header.epoch,
            sequence: sealed.header.sequence,
            kind: statement.kind_name(),
            request_id: None,
            label: statement.label(),
            about: about.as_deref(),
            at: now,
            stored_at: now,
            summary: &summary(&statement),
        };
        Ok(store::add_record(tx, &new).await?)
    }

    /// Who an account is in records; one that is gone cannot be, so its name stands for a local one.
    pub(super) async fn who(&self, tx: &mut store::Change, username: &str) -> Result<PersonId> {
        let user = store::user_in(tx, username).await?;
        Ok(user.map_or_else(|| local(username), |user| user.who))
    }

    /// The last change: what a decision of this transaction knows.
    pub(super) async fn changes_head(&self, tx: &mut store::Change) -> Result<Option<ChangesHead>> {
        let head = store::head(tx, &self.signer()).await?;
        Ok(head.map(|head| ChangesHead {
            epoch: head.epoch,
            sequence: head.sequence,
            digest: head.digest,
        }))
    }

    /// Newest first.
    pub async fn changes(&self, actor: &Actor, mut filter: ChangeFilter) -> Result<Page<ChangeView>> {
        actor.require(Permission::SeeChanges)?;
        filter.limit = filter.limit.clamp(1, MAX_PAGE);
        let page = filter.limit;
        filter.limit += 1;
        let mut rows = self.store.changes(&filter).await?;
        let more = rows.len() as u64 > page;
        rows.truncate(usize::try_from(page).unwrap_or(usize::MAX));
        let next = rows.last().filter(|_| more).map(|row| row.position.to_string());
        let items = rows.iter().map(view).collect::<Result<_>>()?;
        Ok(Page { items, next })
    }

    /// Where to go on from to see every later change.
    pub async fn last_change(&self) -> Result<u64> {
        Ok(self.store.last_change().await?)
    }

    /// What changed lately about a request: its label, the label's owner, who answered and who could. Newest first. For
    /// one that has ended: as of then.
    pub(super) async fn marks(
        &self,
        actor: &Actor,
        request: &RequestRow,
        answers: &[AnswerRow],
        owner: Option<&str>,
    ) -> Result<Vec<ChangeView>> {
        let mut about = vec![format!("label:{}", request.label)];
        let people = answers
            .iter()
            .map(|answer| answer.username.as_str())
            .chain(owner)
            .chain(actor.may(Permission::AnswerRequests).then_some(actor.username.as_str()));
        about.extend(people.map(|name| format!("user:{name}")));
        about.sort();
        about.dedup();
        let filter = ChangeFilter {
            about,
            from: Some(request.asked_at - LATELY_MS),
            to: request.ended_at,
            limit: MARKS,
            ..ChangeFilter::default()
        };
        self.store.changes(&filter).await?.iter().map(view).collect()
    }

    /// Who owned the label of a pending request when it was asked, or at any time since. Handing a label over for a
    /// moment makes nobody eligible.
    pub(super) async fn earlier_owners(&self, request: &RequestRow) -> Result<Vec<String>> {
        if request.state != RequestState::Pending {
            return Ok(Vec::new());
        }
        let filter = ChangeFilter {
            about: vec![format!("label:{}", request.label)],
            from: Some(request.asked_at),
            limit: u64::MAX,
            ..ChangeFilter::default()
        };
        let changes = self.store.changes(&filter).await?;
        let owners = changes.iter().map(owners).collect::<Result<Vec<_>>>()?;
        Ok(owners.into_iter().flatten().flatten().collect())
    }
}

/// Owners of a label, before and after one change of it.
fn owners(change: &StoredChange) -> Result<[Option<String>; 2]> {
    let name =
        |facts: Option<LabelFacts>| facts.and_then(|facts| facts.owner_name.or(facts.owner.map(|owner| owner.subject)));
    match stored_statement(&change.envelope)?.predicate {
        Predicate::Change(record) => match record.change {
            Change::Label { before, after, .. } => Ok([name(before), name(after)]),
            _ => Err(damaged(&"it is no change of a label")),
        },
        _ => Err(damaged(&"it is no change")),
    }
}

fn stamp(now: Millis) -> Stamp {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        u64::try_from(std::time::Duration::from(time).as_nanos()).unwrap_or(u64::MAX)
    });
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    Stamp {
        at: rfc3339(now),
        since_boot_ns: since_boot,
        boot_id: boot_id.trim().to_owned(),
    }
}

fn lifecycle(header: Header, event: Lifecycle) -> Predicate {
    Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }))
}

/// Id of the key.
pub(super) fn signed_by(envelope: &[u8]) -> Result<String> {
    Ok(dsse::parse(envelope).map_err(|e| damaged(&e))?.key_id().to_owned())
}

fn damaged(error: &dyn std::fmt::Display) -> Error {
    Error::internal(format!("a stored record is damaged: {error}"))
}

/// Of an envelope that was verified when it was stored.
pub(super) fn stored_statement(envelope: &[u8]) -> Result<Statement> {
    let envelope = dsse::parse(envelope).map_err(|e| damaged(&e))?;
    Statement::from_payload(envelope.unverified_payload()).map_err(|e| damaged(&e))
}

fn header(envelope: &[u8]) -> Result<Header> {
    let statement = stored_statement(envelope)?;
    statement
        .header()
        .cloned()
        .ok_or_else(|| damaged(&"it has no place in a chain"))
}

fn view(row: &StoredChange) -> Result<ChangeView> {
    let statement = stored_statement(&row.envelope)?;
    let verbatim = serde_json::to_value(&statement).map_err(|e| damaged(&e))?;
    let Predicate::Change(record) = statement.predicate else {
        return Err(damaged(&"it is no change"));
    };
    debug_assert_eq!(sha256_hex(&row.envelope), row.digest);
    Ok(ChangeView {
        digest: row.digest.clone(),
        index: row.position,
        at: record.header.at.clone(),
        kind: record.change.kind_name().to_owned(),
        by: match &record.by {
            ChangedBy::Person { name, .. } => Some(visible(name)),
            _ => None,
        },
        by_words: record.by.words(),
        what: record.change.words(),
        user: record.change.about_user().map(|user| user.name.clone()),
        label: record.change.label().map(str::to_owned),
        host_id: record.change.host().map(str::to_owned),
        why: record.why.clone(),
        statement: verbatim,
    })
}
