//! Requests, answers and the signed decision of each.

use guard_evidence::change::ChangesHead;
use guard_evidence::grant::GrantUse;
use guard_evidence::record::{Authentication, PersonId};
use guard_proto::rest::RequestState;
use sqlx::{QueryBuilder, Row as _, Sqlite};

use super::{Change, Connection, Result, Row, Store, StoreError, from_json, json, signed, unsigned};
use crate::time::Millis;

#[derive(Debug, Clone)]
pub struct RequestRow {
    pub id: String,
    pub host_id: String,
    pub host_name: String,
    pub label: String,
    pub action: String,
    pub program_key: String,
    pub action_key: String,
    pub digest: String,
    /// The envelope, exact bytes.
    pub record: Vec<u8>,
    pub nonce: String,
    pub what: String,
    pub approver_groups: Vec<String>,
    pub quorum: u32,
    pub asked_at: Millis,
    pub expires_at: Option<Millis>,
    pub state: RequestState,
    pub ended_at: Option<Millis>,
    pub ended_because: Option<String>,
    pub owner_then: Option<String>,
    /// The last change that was known then.
    pub changes_then: Option<ChangesHead>,
    /// The signed decision's envelope.
    pub decision: Option<Vec<u8>>,
    pub decision_expires_at: Option<Millis>,
    pub decision_received_at: Option<Millis>,
    pub decision_refused: Option<String>,
    pub outcome: Option<String>,
    pub outcome_detail: Option<String>,
    /// The grant that answered it.
    pub grant_use: Option<GrantUse>,
    /// Place in the order of arrival.
    pub arrived: u64,
    pub seq: u64,
}

/// A question as it arrives.
#[derive(Debug)]
pub struct NewRequest<'a> {
    pub id: &'a str,
    pub host_id: &'a str,
    pub label: &'a str,
    pub action: &'a str,
    pub program_key: &'a str,
    pub action_key: &'a str,
    pub digest: &'a str,
    pub record: &'a [u8],
    pub nonce: &'a str,
    pub what: &'a str,
    pub approver_groups: &'a [String],
    pub quorum: u32,
    pub asked_at: Millis,
    pub expires_at: Option<Millis>,
}

/// One person's answer.
#[derive(Debug, Clone)]
pub struct AnswerRow {
    pub user_id: String,
    pub username: String,
    pub who: PersonId,
    pub groups: Vec<String>,
    pub roles: Vec<String>,
    /// `approve` or `deny`.
    pub verdict: String,
    pub reason: String,
    pub at: Millis,
    pub channel: String,
    pub signed_in_at: Millis,
    pub shown_digest: String,
    pub authentication: Option<Authentication>,
    /// Why it no longer counts.
    pub void_because: Option<String>,
}

/// How a request ends.
#[derive(Debug)]
pub struct End<'a> {
    pub state: RequestState,
    pub at: Millis,
    pub because: Option<&'a str>,
    pub owner: Option<&'a str>,
    pub changes: Option<&'a ChangesHead>,
}

#[derive(Debug, Clone, Default)]
pub struct RequestFilter {
    pub state: Option<RequestState>,
    pub label: Option<String>,
    /// Id or display name.
    pub host: Option<String>,
    /// Requests that ended, whatever way.
    pub ended: bool,
    /// Arrived after (oldest first) or before (newest first) this one.
    pub cursor: Option<u64>,
    pub oldest_first: bool,
    pub limit: u64,
}

/// What happened before with the same label.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Before {
    /// The same program with the same arguments: asked, approved, denied.
    pub same: u64,
    pub same_approved: u64,
    pub same_denied: u64,
    /// The same program with any arguments.
    pub program: u64,
    /// Anything at all.
    pub label: u64,
}

macro_rules! select_request {
    ($rest:literal) => {
        concat!(
            "SELECT r.id, r.host_id, h.name AS host_name, r.label, r.action, r.program_key, r.action_key, r.digest,
                    r.record, r.nonce, r.what, r.approver_groups, r.quorum, r.asked_at, r.expires_at, r.state,
                    r.ended_at, r.ended_because, r.owner_then, r.changes_then, r.decision, r.decision_expires_at,
                    r.decision_received_at, r.decision_refused, r.outcome, r.outcome_detail, r.grant_use, r.arrived, r.seq
             FROM requests r JOIN hosts h ON h.id = r.host_id ",
            $rest
        )
    };
}

fn state(text: &str) -> Result<RequestState> {
    [
        RequestState::Pending,
        RequestState::Approved,
        RequestState::Denied,
        RequestState::TimedOut,
        RequestState::Withdrawn,
    ]
    .into_iter()
    .find(|s| s.as_str() == text)
    .ok_or_else(|| StoreError::Damaged(format!("request state {text:?}")))
}

fn request(row: &Row) -> Result<RequestRow> {
    Ok(RequestRow {
        id: row.try_get("id")?,
        host_id: row.try_get("host_id")?,
        host_name: row.try_get("host_name")?,
        label: row.try_get("label")?,
        action: row.try_get("action")?,
        program_key: row.try_get("program_key")?,
        action_key: row.try_get("action_key")?,
        digest: row.try_get("digest")?,
        record: row.try_get("record")?,
        nonce: row.try_get("nonce")?,
        what: row.try_get("what")?,
        approver_groups: from_json(row.try_get("approver_groups")?)?,
        quorum: u32::try_from(row.try_get::<i64, _>("quorum")?)
            .map_err(|_| StoreError::Damaged("quorum".to_owned()))?,
        asked_at: row.try_get("asked_at")?,
        expires_at: row.try_get("expires_at")?,
        state: state(row.try_get("state")?)?,
        ended_at: row.try_get("ended_at")?,
        ended_because: row.try_get("ended_because")?,
        owner_then: row.try_get("owner_then")?,
        changes_then: row
            .try_get::<Option<&str>, _>("changes_then")?
            .map(from_json)
            .transpose()?,
        decision: row.try_get("decision")?,
        decision_expires_at: row.try_get("decision_expires_at")?,
        decision_received_at: row.try_get("decision_received_at")?,
        decision_refused: row.try_get("decision_refused")?,
        outcome: row.try_get("outcome")?,
        outcome_detail: row.try_get("outcome_detail")?,
        grant_use: row
            .try_get::<Option<&str>, _>("grant_use")?
            .map(from_json)
            .transpose()?,
        arrived: unsigned(row.try_get("arrived")?)?,
        seq: unsigned(row.try_get("seq")?)?,
    })
}

fn answer(row: &Row) -> Result<AnswerRow> {
    Ok(AnswerRow {
        user_id: row.try_get("user_id")?,
        username: row.try_get("username")?,
        who: PersonId {
            issuer: row.try_get("issuer")?,
            subject: row.try_get("subject")?,
        },
        groups: from_json(row.try_get("user_groups")?)?,
        roles: from_json(row.try_get("roles")?)?,
        verdict: row.try_get("verdict")?,
        reason: row.try_get("reason")?,
        at: row.try_get("at")?,
        channel: row.try_get("channel")?,
        signed_in_at: row.try_get("signed_in_at")?,
        shown_digest: row.try_get("shown_digest")?,
        authentication: row
            .try_get::<Option<&str>, _>("authentication")?
            .map(from_json)
            .transpose()?,
        void_because: row.try_get("void_because")?,
    })
}

impl Store {
    pub async fn request(&self, id: &str) -> Result<Option<RequestRow>> {
        find(&mut *self.reader().await?, id).await
    }

    pub async fn answers(&self, request_id: &str) -> Result<Vec<AnswerRow>> {
        find_answers(&mut *self.reader().await?, request_id).await
    }

    pub async fn requests(&self, filter: &RequestFilter) -> Result<Vec<RequestRow>> {
        let mut query = QueryBuilder::<Sqlite>::new(select_request!("WHERE 1 = 1"));
        if let Some(state) = filter.state {
            query.push(" AND r.state = ").push_bind(state.as_str());
        }
        if filter.ended {
            query.push(" AND r.state <> 'pending'");
        }
        if let Some(label) = &filter.label {
            query.push(" AND r.label = ").push_bind(label);
        }
        if let Some(host) = &filter.host {
            query
                .push(" AND (r.host_id = ")
                .push_bind(host)
                .push(" OR h.name = ")
                .push_bind(host)
                .push(")");
        }
        if let Some(cursor) = filter.cursor {
            let after = if filter.oldest_first {
                " AND r.arrived > "
            } else {
                " AND r.arrived < "
            };
            query.push(after).push_bind(signed(cursor));
        }
        query.push(if filter.oldest_first {
            " ORDER BY r.arrived ASC"
        } else {
            " ORDER BY r.arrived DESC"
        });
        query.push(" LIMIT ").push_bind(signed(filter.limit));
        let rows = query.build().fetch_all(&mut *self.reader().await?).await?;
        rows.iter().map(request).collect()
    }

    /// Requests that changed after `seq`, in the order of their last change.
    pub async fn requests_changed_since(&self, seq: u64, limit: u64) -> Result<Vec<RequestRow>> {
        let rows = sqlx::query(select_request!("WHERE r.seq > $1 ORDER BY r.seq LIMIT $2"))
            .bind(signed(seq))
            .bind(signed(limit))
            .fetch_all(&mut *self.reader().await?)
            .await?;
        rows.iter().map(request).collect()
    }

    pub async fn latest_seq(&self) -> Result<u64> {
        let row = sqlx::query("SELECT COALESCE(MAX(seq), 0) AS seq FROM requests")
            .fetch_one(&mut *self.reader().await?)
            .await?;
        unsigned(row.try_get("seq")?)
    }

    /// Decided requests of a host that it has not acknowledged, oldest first.
    pub async fn undelivered(&self, host_id: &str) -> Result<Vec<RequestRow>> {
        let rows = sqlx::query(select_request!(
            "WHERE r.host_id = $1 AND r.state IN ('approved', 'denied') AND r.decision IS NOT NULL
               AND r.decision_received_at IS NULL ORDER BY r.arrived LIMIT 4096"
        ))
        .bind(host_id)
        .fetch_all(&mut *self.reader().await?)
        .await?;
        rows.iter().map(request).collect()
    }

    pub async fn count_pending(&self) -> Result<u64> {
        let row = sqlx::query("SELECT COUNT(*) AS n FROM requests WHERE state = 'pending'")
            .fetch_one(&mut *self.reader().await?)
            .await?;
        unsigned(row.try_get("n")?)
    }

    pub async fn before(&self, request: &RequestRow) -> Result<Before> {
        let mut reader = self.reader().await?;
        let sql = "SELECT COUNT(*) AS n, COALESCE(SUM(state = 'approved'), 0) AS approved,
                          COALESCE(SUM(state = 'denied'), 0) AS denied
                   FROM requests WHERE action_key = $1 AND arrived < $2";
        let row = sqlx::query(sql)
            .bind(&request.action_key)
            .bind(signed(request.arrived))
            .fetch_one(&mut *reader)
            .await?;
        let mut before = Before {
            same: unsigned(row.try_get("n")?)?,
            same_approved: unsigned(row.try_get("approved")?)?,
            same_denied: unsigned(row.try_get("denied")?)?,
            ..Before::default()
        };
        let sql = "SELECT COUNT(*) AS n FROM requests WHERE program_key = $1 AND arrived < $2";
        let row = sqlx::query(sql)
            .bind(&request.program_key)
            .bind(signed(request.arrived))
            .fetch_one(&mut *reader)
            .await?;
        before.program = unsigned(row.try_get("n")?)?;
        let sql = "SELECT COUNT(*) AS n FROM requests WHERE label = $1 AND arrived < $2";
        let row = sqlx::query(sql)
            .bind(&request.label)
            .bind(signed(request.arrived))
            .fetch_one(&mut *reader)
            .await?;
        before.label = unsigned(row.try_get("n")?)?;
        Ok(before)
    }
}

async fn find(connection: &mut Connection, id: &str) -> Result<Option<RequestRow>> {
    let row = sqlx::query(select_request!("WHERE r.id = $1"))
        .bind(id)
        .fetch_optional(connection)
        .await?;
    row.as_ref().map(request).transpose()
}

async fn find_answers(connection: &mut Connection, request_id: &str) -> Result<Vec<AnswerRow>> {
    let sql = "SELECT user_id, username, user_groups, roles, verdict, reason, at, channel, signed_in_at, shown_digest,
                      void_because, issuer, subject, authentication
               FROM answers WHERE request_id = $1 ORDER BY at, username";
    let rows = sqlx::query(sql).bind(request_id).fetch_all(connection).await?;
    rows.iter().map(answer).collect()
}

pub(crate) async fn request_in(change: &mut Change, id: &str) -> Result<Option<RequestRow>> {
    find(&mut *change, id).await
}

pub(crate) async fn answers_in(change: &mut Change, request_id: &str) -> Result<Vec<AnswerRow>> {
    find_answers(&mut *change, request_id).await
}

pub(crate) async fn pending_of_host(change: &mut Change, host_id: &str) -> Result<u64> {
    let row = sqlx::query("SELECT COUNT(*) AS n FROM requests WHERE host_id = $1 AND state = 'pending'")
        .bind(host_id)
        .fetch_one(&mut **change)
        .await?;
    unsigned(row.try_get("n")?)
}

pub(crate) async fn add_request(change: &mut Change, new: &NewRequest<'_>) -> Result<()> {
    let sql = "INSERT INTO requests (id, host_id, label, action, program_key, action_key, digest, record, nonce, what,
                                     approver_groups, quorum, asked_at, expires_at, state, arrived, seq)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, 'pending',
                       (SELECT COALESCE(MAX(arrived), 0) + 1 FROM requests),
                       (SELECT COALESCE(MAX(seq), 0) + 1 FROM requests))";
    sqlx::query(sql)
        .bind(new.id)
        .bind(new.host_id)
        .bind(new.label)
        .bind(new.action)
        .bind(new.program_key)
        .bind(new.action_key)
        .bind(new.digest)
        .bind(new.record)
        .bind(new.nonce)
        .bind(new.what)
        .bind(json(&new.approver_groups)?)
        .bind(i64::from(new.quorum))
        .bind(new.asked_at)
        .bind(new.expires_at)
        .execute(&mut **change)
        .await?;
    Ok(())
}

pub(crate) async fn add_answer(change: &mut Change, request_id: &str, answer: &AnswerRow) -> Result<()> {
    let sql = "INSERT INTO answers (request_id, user_id, username, user_groups, roles, verdict, reason, at, channel,
                                    signed_in_at, shown_digest, issuer, subject, authentication)
               VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)";
    sqlx::query(sql)
        .bind(request_id)
        .bind(&answer.user_id)
        .bind(&answer.username)
        .bind(json(&answer.groups)?)
        .bind(json(&answer.roles)?)
        .bind(&answer.verdict)
        .bind(&answer.reason)
        .bind(answer.at)
        .bind(&answer.channel)
        .bind(answer.signed_in_at)
        .bind(&answer.shown_digest)
        .bind(&answer.who.issuer)
        .bind(&answer.who.subject)
        .bind(answer.authentication.as_ref().map(json).transpose()?)
        .execute(&mut **change)
        .await?;
    touch(change, request_id).await
}

/// A person's answers to requests that still wait, of one label or all, no longer count.
pub(crate) async fn void_answers(change: &mut Change, user_id: &str, label: Option<&str>, because: &str) -> Result<()> {
    let sql = "SELECT a.request_id FROM answers a JOIN requests r ON r.id = a.request_id
               WHERE a.user_id = $1 AND r.state = 'pending' AND a.void_because IS NULL AND ($2 IS NULL OR r.label = $2)";
    let rows = sqlx::query(sql)
        .bind(user_id)
        .bind(label)
        .fetch_all(&mut **change)
        .await?;
    for row in rows {
        let request: String = row.try_get("request_id")?;
        sqlx::query("UPDATE answers SET void_because = $1 WHERE request_id = $2 AND user_id = $3")
            .bind(because)
            .bind(&request)
            .bind(user_id)
            .execute(&mut **change)
            .await?;
        touch(change, &request).await?;
    }
    Ok(())
}

/// Ends a pending request; ends are final, so one that has ended stays as it is. Whether this call ended it.
pub(crate) async fn end_request(change: &mut Change, id: &str, end: &End<'_>) -> Result<bool> {
    let sql = "UPDATE requests SET state = $1, ended_at = $2, ended_because = $3, owner_then = $4, changes_then = $5
               WHERE id = $6 AND state = 'pending'";
    let done = sqlx::query(sql)
        .bind(end.state.as_str())
        .bind(end.at)
        .bind(end.because)
        .bind(end.owner)
        .bind(end.changes.map(|changes| json(&changes)).transpose()?)
        .bind(id)
        .execute(&mut **change)
        .await?;
    touch(change, id).await?;
    Ok(done.rows_affected() == 1)
}

pub(crate) async fn set_decision(change: &mut Change, id: &str, envelope: &[u8], expires_at: Millis) -> Result<()> {
    sqlx::query("UPDATE requests SET decision = $1, decision_expires_at = $2 WHERE id = $3")
        .bind(envelope)
        .bind(expires_at)
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(())
}

/// The host's acknowledgement, once.
pub(crate) async fn set_decision_received(
    change: &mut Change,
    id: &str,
    at: Millis,
    refused: Option<&str>,
) -> Result<()> {
    let sql = "UPDATE requests SET decision_received_at = $1, decision_refused = $2
               WHERE id = $3 AND decision_received_at IS NULL";
    sqlx::query(sql)
        .bind(at)
        .bind(refused)
        .bind(id)
        .execute(&mut **change)
        .await?;
    touch(change, id).await
}

/// The host asks again for what it had acknowledged.
pub(crate) async fn forget_decision_received(change: &mut Change, id: &str) -> Result<()> {
    sqlx::query("UPDATE requests SET decision_received_at = NULL, decision_refused = NULL WHERE id = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    touch(change, id).await
}

/// What the kernel did, once: the first word stands.
pub(crate) async fn set_outcome(
    change: &mut Change,
    id: &str,
    outcome: &str,
    detail: Option<&str>,
    at: Millis,
) -> Result<()> {
    let sql = "UPDATE requests SET outcome = $1, outcome_detail = $2, outcome_at = $3
               WHERE id = $4 AND outcome IS NULL";
    sqlx::query(sql)
        .bind(outcome)
        .bind(detail)
        .bind(at)
        .bind(id)
        .execute(&mut **change)
        .await?;
    touch(change, id).await
}

/// Pending requests whose time is over.
pub(crate) async fn overdue(change: &mut Change, at: Millis) -> Result<Vec<String>> {
    let rows = sqlx::query("SELECT id FROM requests WHERE state = 'pending' AND expires_at <= $1")
        .bind(at)
        .fetch_all(&mut **change)
        .await?;
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}

async fn touch(change: &mut Change, id: &str) -> Result<()> {
    sqlx::query("UPDATE requests SET seq = (SELECT MAX(seq) + 1 FROM requests) WHERE id = $1")
        .bind(id)
        .execute(&mut **change)
        .await?;
    Ok(())
}
