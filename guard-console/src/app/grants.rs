//! Grants: approving once for later actions too.
//!
//! Owns when a grant answers: for exactly the same action of the same label on the same host, while it lasts and its maker may
//! still approve. It is judged here each time a host asks, so what is revoked answers nothing any more; hosts keep none. It
//! must never answer what takes more than one person, nor for a workload that its maker owns.

use guard_evidence::change::Change;
use guard_evidence::grant::{Grant, GrantUse, Scope, what_of};
use guard_evidence::record::{Predicate, RequestRecord, Verdict};
use guard_proto::rest::{Grant as GrantView, GrantTerms, Page, RequestState, Role};
use ulid::Ulid;

use super::changes::stored_statement;
use super::paging::ulid_cursor;
use super::{Actor, App, Error, Permission, Result};
use crate::store::{self, AnswerRow, End, GrantRow, RequestRow, UserRow};
use crate::time::{Millis, rfc3339};

const SECONDS: std::ops::RangeInclusive<u64> = 60..=24 * 3_600;
const TIMES: std::ops::RangeInclusive<u32> = 1..=1_000;
/// Most of a page.
pub(crate) const LISTED: u64 = 1_000;
/// How an answer by a grant came in.
const CHANNEL: &str = "grant";

fn record_of(envelope: &[u8]) -> Result<Box<RequestRecord>> {
    match stored_statement(envelope)?.predicate {
        Predicate::Request(record) => Ok(record),
        _ => Err(Error::internal("a stored request is not one")),
    }
}

/// What a grant of this request would cover, or why there can be none. Safe to show.
pub(super) fn grantable(record: &RequestRecord, quorum: u32) -> std::result::Result<String, String> {
    if quorum > 1 {
        return Err("it takes several people each time".to_owned());
    }
    let scope = Scope::of(record).map_err(str::to_owned)?;
    Ok(scope.words(&what_of(record), &record.workload.label, &record.host.name))
}

impl App {
    /// In the change of the approval that makes it.
    pub(super) async fn make_grant(
        &self,
        change: &mut store::Change,
        actor: &Actor,
        request: &RequestRow,
        terms: &GrantTerms,
    ) -> Result<Grant> {
        if !SECONDS.contains(&terms.seconds) {
            return Err(Error::Invalid(format!(
                "grant.seconds: {} to {}, not {}",
                SECONDS.start(),
                SECONDS.end(),
                terms.seconds
            )));
        }
        if let Some(times) = terms.times
            && !TIMES.contains(&times)
        {
            return Err(Error::Invalid(format!(
                "grant.times: {} to {}, not {times}",
                TIMES.start(),
                TIMES.end()
            )));
        }
        let record = record_of(&request.record)?;
        let words = grantable(&record, request.quorum);
        let scope = match (Scope::of(&record), words) {
            (Ok(scope), Ok(_)) => scope,
            (Err(why), _) => return Err(Error::Invalid(format!("no grant is possible: {why}"))),
            (_, Err(why)) => return Err(Error::Invalid(format!("no grant is possible: {why}"))),
        };
        let now = self.now();
        let expires_at = now + Millis::try_from(terms.seconds).unwrap_or(0) * 1_000;
        let grant = Grant {
            id: Ulid::new().to_string(),
            console: self.log.origin().to_owned(),
            host_id: request.host_id.clone(),
            host: record.host.name.clone(),
            label: request.label.clone(),
            scope,
            what: what_of(&record),
            request_id: request.id.clone(),
            request_digest: request.digest.clone(),
            granted_at: rfc3339(now),
            expires_at: rfc3339(expires_at),
            times: terms.times,
        };
        let row = GrantRow {
            grant: grant.clone(),
            user_id: actor.user_id.clone(),
            granted_at: now,
            expires_at,
            used: 0,
            last_used_at: None,
            revoked_at: None,
            revoked_by: None,
        };
        store::add_grant(change, &row).await?;
        let made = Change::GrantMade {
            grant: Box::new(grant.clone()),
        };
        self.record_change(change, actor.as_changer(), made, None).await?;
        Ok(grant)
    }

    /// In the change that stores a question: answers it if a grant covers it. Whether one did.
    pub(super) async fn answer_by_grant(&self, change: &mut store::Change, id: &str) -> Result<bool> {
        let Some(request) = store::request_in(change, id).await? else {
            return Ok(false);
        };
        let now = self.now();
        if request.quorum > 1 || request.expires_at.is_some_and(|at| at <= now) {
            return Ok(false);
        }
        let open = store::open_grants(change, &request.host_id, &request.label, now).await?;
        if open.is_empty() {
            return Ok(false);
        }
        let record = record_of(&request.record)?;
        let owner = store::label_owner_in(change, &request.label).await?;
        for (row, maker) in open {
            let used = GrantUse {
                number: row.used + 1,
                used_at: rfc3339(now),
                grant: row.grant,
            };
            if !may_still_approve(&maker, &request, owner.as_deref()) || used.covers(&record).is_err() {
                continue;
            }
            let answer = AnswerRow {
                user_id: maker.id.clone(),
                username: maker.username.clone(),
                who: maker.who.clone(),
                groups: maker.groups.clone(),
                roles: maker.roles.iter().map(|role| role.as_str().to_owned()).collect(),
                verdict: "approve".to_owned(),
                reason: format!("by grant {}", used.grant.id),
                at: now,
                channel: CHANNEL.to_owned(),
                signed_in_at: row.granted_at,
                shown_digest: used.grant.request_digest.clone(),
                authentication: None,
                void_because: None,
            };
            store::use_grant(change, id, &used, now).await?;
            store::add_answer(change, id, &answer).await?;
            let changes = self.changes_head(change).await?;
            let end = End {
                state: RequestState::Approved,
                at: now,
                because: None,
                owner: owner.as_deref(),
                changes: changes.as_ref(),
            };
            store::end_request(change, id, &end).await?;
            let Some(ended) = store::request_in(change, id).await? else {
                return Ok(false);
            };
            let clock = self.host_clock(&request.host_id, now);
            let (envelope, expires_at) = self.signed(change, &ended, &[answer], clock).await?;
            store::set_decision(change, id, &envelope, expires_at).await?;
            tracing::info!(request = %id, grant = %used.grant.id, number = used.number, by = %maker.username, "answered by a grant");
            return Ok(true);
        }
        Ok(false)
    }

    /// Newest first; `cursor` is the id of the last one seen.
    pub async fn grants(&self, actor: &Actor, limit: u64, cursor: Option<&str>) -> Result<Page<GrantView>> {
        actor.require(Permission::SeeRequests)?;
        let cursor = ulid_cursor(cursor)?;
        let now = self.now();
        let limit = limit.clamp(1, LISTED);
        let mut grants = self.store.grants(limit + 1, cursor).await?;
        let more = grants.len() as u64 > limit;
        grants.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        let next = grants.last().filter(|_| more).map(|(row, _)| row.grant.id.clone());
        let items = grants.into_iter().map(|(row, maker)| view(row, &maker, now)).collect();
        Ok(Page { items, next })
    }

    /// Nothing is answered by it any more.
    pub async fn revoke_grant(&self, actor: &Actor, id: &str) -> Result<()> {
        actor.require(Permission::RevokeGrants)?;
        let mut change = self.store.change().await?;
        let (row, _) = store::grant_in(&mut change, id)
            .await?
            .ok_or_else(|| Error::not_found("grant", id))?;
        if row.revoked_at.is_some() {
            return Ok(());
        }
        store::revoke_grant(&mut change, id, &actor.username, self.now()).await?;
        let revoked = Change::GrantRevoked {
            grant: Box::new(row.grant),
        };
        self.record_change(&mut change, actor.as_changer(), revoked, None)
            .await?;
        change.commit().await?;
        tracing::info!(grant = %id, by = %actor.username, "grant revoked");
        self.notify.changed();
        Ok(())
    }
}

/// Whether who made a grant could approve this request by hand.
fn may_still_approve(maker: &UserRow, request: &RequestRow, owner: Option<&str>) -> bool {
    maker.disabled_at.is_none()
        && !maker.service
        && maker.roles.contains(&Role::Approver)
        && owner != Some(maker.username.as_str())
        && (request.approver_groups.is_empty() || request.approver_groups.iter().any(|g| maker.groups.contains(g)))
}

fn view(row: GrantRow, maker: &UserRow, now: Millis) -> GrantView {
    let over = row.grant.times.is_some_and(|times| row.used >= times);
    let state = match row.revoked_at {
        Some(_) => "revoked",
        None if row.expires_at <= now => "expired",
        None if over => "used up",
        None if maker.disabled_at.is_some() || !maker.roles.contains(&Role::Approver) => "suspended",
        None => "good",
    };
    GrantView {
        state: state.to_owned(),
        words: row.grant.words(),
        by: maker.username.clone(),
        label: row.grant.label,
        host: row.grant.host,
        host_id: row.grant.host_id,
        request_id: row.grant.request_id,
        granted_at: rfc3339(row.granted_at),
        expires_at: rfc3339(row.expires_at),
        times: row.grant.times,
        used: row.used,
        last_used_at: row.last_used_at.map(rfc3339),
        revoked_by: row.revoked_by,
        id: row.grant.id,
    }
}

/// A denial makes no grant.
pub(super) fn terms_fit(verdict: Verdict, terms: Option<&GrantTerms>) -> Result<()> {
    if verdict == Verdict::Deny && terms.is_some() {
        return Err(Error::Invalid("a denial makes no grant".to_owned()));
    }
    Ok(())
}
