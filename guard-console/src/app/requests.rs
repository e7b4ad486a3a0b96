//! Requests as people see them: lists, one of them, and what changed since.

use guard_proto::rest::{ChangeView, DecisionView, Page, Request, RequestState};

use super::answer::{counted, why_not};
use super::card::Card;
use super::{Actor, App, Error, Permission, Result};
use crate::store::{AnswerRow, Before, RequestFilter, RequestRow};
use crate::time::rfc3339;

pub(crate) const PAGE: u64 = 50;
pub(crate) const MAX_PAGE: u64 = 200;

/// One request as one actor sees it.
#[derive(Debug)]
pub struct Details {
    pub row: RequestRow,
    /// Oldest first.
    pub answers: Vec<AnswerRow>,
    pub card: Card,
    /// The label's owner now.
    pub owner: Option<String>,
    /// What changed lately about who may decide it; newest first.
    pub marks: Vec<ChangeView>,
    /// `None`: the actor may answer.
    pub why_not: Option<String>,
    /// What approving with a grant would cover; absent where there can be none.
    pub grantable: Option<String>,
}

impl App {
    pub async fn request(&self, actor: &Actor, id: &str) -> Result<Details> {
        let row = self.request_row(actor, id).await?;
        self.details(actor, row).await
    }

    async fn request_row(&self, actor: &Actor, id: &str) -> Result<RequestRow> {
        actor.require(Permission::SeeRequests)?;
        let row = self.store.request(id).await?;
        row.ok_or_else(|| Error::not_found("request", id))
    }

    /// The request record's envelope, exact bytes.
    pub async fn request_record(&self, actor: &Actor, id: &str) -> Result<Vec<u8>> {
        Ok(self.request_row(actor, id).await?.record)
    }

    /// Pending: oldest first; others: newest first.
    pub async fn requests(&self, actor: &Actor, mut filter: RequestFilter) -> Result<Page<Details>> {
        actor.require(Permission::SeeRequests)?;
        filter.oldest_first = filter.state == Some(RequestState::Pending);
        filter.limit = filter.limit.clamp(1, MAX_PAGE);
        let page = filter.limit;
        // One more than the page, to know whether there is a next one.
        filter.limit += 1;
        let mut rows = self.store.requests(&filter).await?;
        let more = rows.len() as u64 > page;
        rows.truncate(usize::try_from(page).unwrap_or(usize::MAX));
        let next = rows.last().filter(|_| more).map(|row| row.arrived.to_string());
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            items.push(self.details(actor, row).await?);
        }
        Ok(Page { items, next })
    }

    /// What changed after `seq` (see [`RequestRow::seq`]), oldest change first; at most a page, so ask again until
    /// there is nothing.
    pub async fn requests_changed_since(&self, actor: &Actor, seq: u64) -> Result<Vec<Details>> {
        actor.require(Permission::SeeRequests)?;
        let mut changed = Vec::new();
        for row in self.store.requests_changed_since(seq, PAGE).await? {
            changed.push(self.details(actor, row).await?);
        }
        Ok(changed)
    }

    /// Where to go on from to see every later change.
    pub async fn latest_seq(&self) -> Result<u64> {
        Ok(self.store.latest_seq().await?)
    }

    pub async fn count_pending(&self, actor: &Actor) -> Result<u64> {
        actor.require(Permission::SeeRequests)?;
        Ok(self.store.count_pending().await?)
    }

    /// How often the same was asked before, and how it was answered.
    pub async fn before(&self, details: &Details) -> Result<Before> {
        Ok(self.store.before(&details.row).await?)
    }

    async fn details(&self, actor: &Actor, row: RequestRow) -> Result<Details> {
        let answers = self.store.answers(&row.id).await?;
        let owner = self.store.label_owner(&row.label).await?;
        let card = Card::read(&row.record)?;
        let earlier = self.earlier_owners(&row).await?;
        let why_not = why_not(actor, &row, &answers, owner.as_deref(), &earlier, self.now());
        let owner_then = row.owner_then.as_deref().or(owner.as_deref());
        let marks = self.marks(actor, &row, &answers, owner_then).await?;
        let grantable = match row.state {
            RequestState::Pending => super::grants::grantable(&card.record, row.quorum).ok(),
            _ => None,
        };
        Ok(Details {
            row,
            answers,
            card,
            owner,
            marks,
            why_not,
            grantable,
        })
    }
}

impl From<Details> for Request {
    fn from(details: Details) -> Self {
        let Details {
            row,
            answers,
            card,
            owner,
            marks,
            why_not,
            grantable,
        } = details;
        let approvals = counted(&answers, owner.as_deref())
            .filter(|a| a.verdict == "approve")
            .count();
        let outcome_detail = match (row.outcome_detail, row.decision_refused) {
            (None, Some(refused)) => Some(format!("the host did not accept the decision: {refused}")),
            (detail, _) => detail,
        };
        Self {
            state: row.state,
            label: row.label,
            host_id: row.host_id,
            host: row.host_name,
            action: row.action,
            what: row.what,
            sentence: card.sentence,
            asked_at: rfc3339(row.asked_at),
            expires_at: row.expires_at.map(rfc3339),
            approver_groups: row.approver_groups,
            quorum: row.quorum,
            approvals: u32::try_from(approvals).unwrap_or(u32::MAX),
            owner,
            digest: row.digest,
            decisions: answers.into_iter().map(decision_view).collect(),
            outcome: row.outcome,
            outcome_detail,
            ended_at: row.ended_at.map(rfc3339),
            may_answer: why_not.is_none(),
            why_not,
            grantable,
            grant: row.grant_use.map(|used| used.grant.id),
            recent_changes: marks,
            statement: card.statement,
            id: row.id,
        }
    }
}

pub(crate) fn decision_view(answer: AnswerRow) -> DecisionView {
    DecisionView {
        by: answer.username,
        verdict: answer.verdict,
        reason: answer.reason,
        at: rfc3339(answer.at),
        channel: answer.channel,
        void_because: answer.void_because,
    }
}
