//! Who owned what and who was what, as the console's own chain says it: the ground on which decisions are judged.
//!
//! Owns the state after every recorded change. It is given records whose signatures hold, in log order. It must never
//! take a decision's word for an owner, a role or a group.

use std::collections::{HashMap, HashSet};

use super::{Level, Record, Section};
use crate::chain::{Checker, FIRST_PREVIOUS};
use crate::change::{Change, ChangeRecord, ChangedBy, ChangesHead, ProviderFacts, UserFacts};
use crate::grant::Grant;
use crate::record::{PersonId, Predicate};
use crate::text::visible_fold;

const ADMINISTRATOR: &str = "administrator";
const OPERATOR: &str = "operator";
const APPROVER: &str = "approver";
/// An owner of this long ago is still worth a note.
const LATELY_MS: i64 = 24 * 3_600_000;

/// An account after some change.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) facts: UserFacts,
    pub(super) disabled: bool,
    /// Who made it, if somebody did who was signed in.
    pub(super) made_by: Option<PersonId>,
}

/// Every state that there ever was, by the number of changes before it.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// Place in the log, epoch, sequence and number of each change, by its envelope's digest.
    heads: HashMap<String, (u64, u64, u64, usize)>,
    accounts: HashMap<PersonId, Vec<(usize, Account)>>,
    owners: HashMap<String, Vec<Owned>>,
    /// Identity providers as they are configured last.
    providers: HashMap<String, ProviderFacts>,
    /// Grants, by id: by which change each was made and revoked, by whom, and what it says.
    grants: HashMap<String, Granted>,
    count: usize,
    /// Where the first change stands in the log.
    first: Option<u64>,
    /// Nothing is missing from the console's chain.
    whole: bool,
}

#[derive(Debug, Clone)]
struct Granted {
    made: usize,
    revoked: Option<usize>,
    by: Option<PersonId>,
    grant: Grant,
}

#[derive(Debug, Clone)]
struct Owned {
    number: usize,
    at: Option<jiff::Timestamp>,
    owner: Option<PersonId>,
    exists: bool,
}

/// The state that a decision knew.
#[derive(Debug, Clone, Copy)]
pub(super) struct View<'c> {
    changes: &'c Changes,
    number: usize,
}

/// Reads every change and judges whether each may follow from those before it.
pub(super) fn check(records: &[Record], section: &mut Section) -> Changes {
    let mut changes = Changes {
        whole: true,
        ..Changes::default()
    };
    let mut chain = Checker::default();
    let mut tokens: HashSet<String> = HashSet::new();
    let mut by_somebody = false;
    for record in records {
        let header = &record.header;
        if !header.signer.starts_with("console:") {
            continue;
        }
        let begins = chain.last().is_none() && header.previous != FIRST_PREVIOUS;
        let epoch_before = chain.last().map_or(0, |last| last.epoch);
        // What is wrong with the chain itself is the sequence check's to say.
        let follows = chain.check_digest(header, record.envelope_digest.clone()).is_ok();
        if begins || !follows || header.epoch > epoch_before + 1 {
            changes.whole = false;
        }
        let Predicate::Change(change) = &record.statement.predicate else {
            // The last record that a console knew may be one that changes nobody.
            changes.know(record);
            continue;
        };
        changes.first.get_or_insert(record.index);
        let judged = changes.judge(change, &tokens, by_somebody);
        by_somebody |= change.by != ChangedBy::Found;
        changes.take(record, change, &mut tokens);
        if let Err(why) = judged
            && changes.whole
        {
            section.add(Level::Invalid, why, Some(record));
        }
    }
    section.summary = format!(
        "{} recorded, {} accounts, {} labels{}",
        changes.count,
        changes.accounts.len(),
        changes.owners.len(),
        if changes.whole { "" } else { "; some are missing" }
    );
    changes
}

impl Changes {
    /// Whether a change had been recorded before this place of the log: from then on decisions name one.
    pub(super) fn began_before(&self, index: u64) -> bool {
        self.first.is_some_and(|first| first < index)
    }

    /// Nothing is missing, so what is not recorded did not happen.
    pub(super) fn is_whole(&self) -> bool {
        self.whole
    }

    /// The state after the change that a decision names, which must stand before the decision in the log.
    pub(super) fn at(&self, head: &ChangesHead, index: u64) -> Option<View<'_>> {
        let (at, epoch, sequence, number) = *self.heads.get(&head.digest)?;
        (at < index && epoch == head.epoch && sequence == head.sequence).then_some(View { changes: self, number })
    }

    fn now(&self) -> View<'_> {
        View {
            changes: self,
            number: self.count,
        }
    }

    fn judge(&self, record: &ChangeRecord, tokens: &HashSet<String>, by_somebody: bool) -> Result<(), String> {
        let view = self.now();
        let needs_account = |facts: &UserFacts| match view.account(&facts.who) {
            Some(account) if account.disabled => Err(format!("the account {} was disabled already", shown(&facts.who))),
            Some(account) if account.facts == *facts => Ok(()),
            Some(_) => Err(format!(
                "the account {} was another before than it says",
                shown(&facts.who)
            )),
            None => Err(format!("there was no account {}", shown(&facts.who))),
        };
        let new_account = |facts: &UserFacts| match view.account(&facts.who) {
            Some(_) => Err(format!("there was an account {} already", shown(&facts.who))),
            None => Ok(()),
        };
        match &record.change {
            Change::SetUpFinished { user } => {
                if !self.accounts.is_empty() {
                    return Err("finishes a set-up that was finished".to_owned());
                }
                new_account(user)?;
            }
            Change::UserCreated { user } => new_account(user)?,
            Change::UserChanged { before, after } => {
                needs_account(before)?;
                if before.who != after.who {
                    return Err("changes one account into another".to_owned());
                }
            }
            // Found so at the beginning: it was made and disabled before anything was recorded.
            Change::UserDisabled { user } => needs_account(user)?,
            Change::Label { label, before, .. } => {
                let known = self
                    .owners
                    .get(label)
                    .and_then(|history| history.last())
                    .filter(|owned| owned.exists);
                let same = match (known, before) {
                    (None, None) => true,
                    (Some(known), Some(before)) => known.owner == before.owner,
                    _ => false,
                };
                if !same {
                    return Err(format!(
                        "says that {} was otherwise before than the log says",
                        visible_fold(label, 64)
                    ));
                }
            }
            Change::KeyCreated { user, roles, .. } => {
                needs_account(user)?;
                if !user.service {
                    return Err(format!("makes a key for {}, who is a person", shown(&user.who)));
                }
                if !roles.iter().all(|role| user.roles.contains(role)) {
                    return Err(format!("makes a key for more than {} may", shown(&user.who)));
                }
            }
            Change::Provider { provider, before, .. } => {
                if self.providers.get(provider) != before.as_ref() {
                    return Err(format!(
                        "says that the identity provider {} was otherwise before than the log says",
                        visible_fold(provider, 64)
                    ));
                }
            }
            Change::GrantMade { grant } => {
                if self.grants.contains_key(&grant.id) {
                    return Err("makes a grant that was made already".to_owned());
                }
                if let ChangedBy::Person { who, .. } = &record.by
                    && view.owner(&grant.label) == Some(who)
                {
                    return Err(format!("was done by {}, who owns the workload", shown(who)));
                }
            }
            Change::GrantRevoked { grant } => {
                if self.grants.get(&grant.id).is_none_or(|known| known.revoked.is_some()) {
                    return Err("revokes a grant that is not there".to_owned());
                }
            }
            Change::KeyRevoked { .. }
            | Change::SessionsEnded { .. }
            | Change::TokenCreated { .. }
            | Change::HostJoined { .. }
            | Change::HostRevoked { .. } => {}
        }
        let role = match &record.change {
            Change::TokenCreated { .. } => [ADMINISTRATOR, OPERATOR].as_slice(),
            Change::GrantMade { .. } => &[APPROVER],
            Change::GrantRevoked { .. } => &[ADMINISTRATOR, APPROVER],
            _ => &[ADMINISTRATOR],
        };
        match (&record.by, &record.change) {
            (ChangedBy::SetupLink, Change::SetUpFinished { .. }) => Ok(()),
            (ChangedBy::SetupLink, _) | (_, Change::SetUpFinished { .. }) => {
                Err("only finishing the set-up is done with the set-up link".to_owned())
            }
            (ChangedBy::Token { token, .. }, Change::HostJoined { .. }) => {
                if tokens.contains(token) {
                    Ok(())
                } else {
                    Err("joined with a token that nobody made, or that was spent".to_owned())
                }
            }
            (ChangedBy::Token { .. }, _) | (_, Change::HostJoined { .. }) => {
                // Hosts that were there before changes were recorded.
                if record.by == ChangedBy::Found && !by_somebody {
                    return Ok(());
                }
                Err("only joining is done with a token".to_owned())
            }
            (
                ChangedBy::Provider { provider, issuer },
                Change::UserCreated { user } | Change::UserChanged { after: user, .. },
            ) => {
                if self.providers.get(provider).is_none_or(|known| known.issuer != *issuer) {
                    return Err(format!(
                        "was done by the identity provider {}, which was not configured so",
                        visible_fold(provider, 64)
                    ));
                }
                if user.who.issuer == *issuer && !user.service {
                    Ok(())
                } else {
                    Err(format!(
                        "was done by the identity provider {}, but the account is not one of its own",
                        visible_fold(provider, 64)
                    ))
                }
            }
            (ChangedBy::Configuration, Change::Provider { .. }) => Ok(()),
            (ChangedBy::Provider { .. }, _) => Err("no identity provider can do this".to_owned()),
            (ChangedBy::Configuration, _) | (_, Change::Provider { .. }) => {
                Err("only identity providers are configured".to_owned())
            }
            (ChangedBy::Found, _) if by_somebody => {
                Err("claims to have been so before changes were recorded, after they were".to_owned())
            }
            (ChangedBy::Found, _) => Ok(()),
            (ChangedBy::Person { who, .. }, _) => match view.account(who) {
                Some(account) if account.disabled => {
                    Err(format!("was done by {}, whose account was disabled", shown(who)))
                }
                Some(account) if !account.facts.roles.iter().any(|r| role.contains(&r.as_str())) => Err(format!(
                    "was done by {}, who was no {}",
                    shown(who),
                    role.join(" and no ")
                )),
                Some(_) => Ok(()),
                None => Err(format!("was done by {}, who had no account", shown(who))),
            },
        }
    }

    /// A decision may name this record: it knew the state after it.
    fn know(&mut self, record: &Record) {
        self.heads.insert(
            record.envelope_digest.clone(),
            (record.index, record.header.epoch, record.header.sequence, self.count),
        );
    }

    fn take(&mut self, record: &Record, change: &ChangeRecord, tokens: &mut HashSet<String>) {
        self.count += 1;
        let number = self.count;
        self.know(record);
        let disabled = matches!(change.change, Change::UserDisabled { .. });
        if let Some(user) = change.change.user() {
            let history = self.accounts.entry(user.who.clone()).or_default();
            let made_by = match (history.last(), &change.by) {
                (Some((_, before)), _) => before.made_by.clone(),
                (None, ChangedBy::Person { who, .. }) => Some(who.clone()),
                (None, _) => None,
            };
            let account = Account {
                facts: user.clone(),
                disabled,
                made_by,
            };
            history.push((number, account));
        }
        match &change.change {
            Change::Label { label, after, .. } => self.owners.entry(label.clone()).or_default().push(Owned {
                number,
                at: record.header.at.parse().ok(),
                owner: after.as_ref().and_then(|after| after.owner.clone()),
                exists: after.is_some(),
            }),
            Change::TokenCreated { token, .. } => {
                tokens.insert(token.clone());
            }
            Change::GrantMade { grant } => {
                let by = match &change.by {
                    ChangedBy::Person { who, .. } => Some(who.clone()),
                    _ => None,
                };
                let granted = Granted {
                    made: number,
                    revoked: None,
                    by,
                    grant: (**grant).clone(),
                };
                self.grants.entry(grant.id.clone()).or_insert(granted);
            }
            Change::GrantRevoked { grant } => {
                if let Some(granted) = self.grants.get_mut(&grant.id) {
                    granted.revoked.get_or_insert(number);
                }
            }
            Change::Provider { provider, after, .. } => {
                match after {
                    Some(after) => self.providers.insert(provider.clone(), after.clone()),
                    None => self.providers.remove(provider),
                };
            }
            Change::HostJoined { .. } => {
                if let ChangedBy::Token { token, .. } = &change.by {
                    tokens.remove(token);
                }
            }
            _ => {}
        }
    }
}

impl<'c> View<'c> {
    pub(super) fn account(self, who: &PersonId) -> Option<&'c Account> {
        let history = self.changes.accounts.get(who)?;
        let at = history.partition_point(|(number, _)| *number <= self.number);
        history.get(at.checked_sub(1)?).map(|(_, account)| account)
    }

    /// Whether this grant had been made, by this person, and not been revoked.
    pub(super) fn grants(self, grant: &Grant, who: &PersonId) -> Result<(), &'static str> {
        let known = self
            .changes
            .grants
            .get(&grant.id)
            .filter(|known| known.made <= self.number);
        let Some(known) = known else {
            return Err("stands on a grant that nobody had made");
        };
        if known.grant != *grant || known.by.as_ref() != Some(who) {
            return Err("stands on another grant than the one that was made");
        }
        if known.revoked.is_some_and(|number| number <= self.number) {
            return Err("stands on a grant that had been revoked");
        }
        Ok(())
    }

    pub(super) fn owner(self, label: &str) -> Option<&'c PersonId> {
        self.owned(label).last()?.owner.as_ref()
    }

    /// Whether somebody owned the label within the day before `at`, though they did not any more.
    pub(super) fn owned_lately(self, label: &str, who: &PersonId, at: jiff::Timestamp) -> bool {
        let history = self.owned(label);
        history.windows(2).any(|pair| {
            let lost = pair[1].at.map(|lost| at.as_millisecond() - lost.as_millisecond());
            pair[0].owner.as_ref() == Some(who)
                && pair[1].owner.as_ref() != Some(who)
                && lost.is_some_and(|ms| ms <= LATELY_MS)
        })
    }

    fn owned(self, label: &str) -> &'c [Owned] {
        let history = self.changes.owners.get(label).map_or(&[][..], Vec::as_slice);
        &history[..history.partition_point(|owned| owned.number <= self.number)]
    }
}

fn shown(who: &PersonId) -> String {
    visible_fold(&who.subject, 64)
}
