//! People's answers: who may give one, when they decide, and the signed decision that follows.
//!
//! Owns the rule of docs/api.md: role approver, in an approver group, not the owner now nor at any time since it was asked, not
//! answered before; one denial ends it, approvals count until the quorum. Being an administrator lifts none of it. The rule is judged inside the
//! change that writes the answer, so that racing answers have one outcome.

use guard_evidence::dsse;
use guard_evidence::record::{Answer, PersonId, Predicate, SignedDecision, Statement, Verdict};
use guard_proto::limits::REASON_BYTES;
use guard_proto::rest::{AnswerBody, RequestState};

use super::requests::Details;
use super::{Actor, App, Error, Permission, Result, names};
use crate::store::{self, AnswerRow, End, RequestRow};
use crate::time::{Millis, rfc3339};

/// A decision holds this long from its signature; one that was not delivered by then is signed anew.
const DECISION_MS: Millis = 5 * 60_000;
/// A host whose clock is further ahead than this has to mend it.
const MOST_AHEAD_MS: Millis = 24 * 3_600_000;
/// One that holds no longer than this is signed anew before it is sent.
pub(super) const RENEW_MARGIN_MS: Millis = 2 * 60_000;
/// 16/9 of it, twice base64, plus the host's own words fit a record.
const DECISION_PAYLOAD_BYTES: usize = 24_000;

/// Why somebody may not answer, as a sentence for where the button would be.
pub(super) fn why_not(
    actor: &Actor,
    request: &RequestRow,
    answers: &[AnswerRow],
    owner: Option<&str>,
    earlier_owners: &[String],
    now: Millis,
) -> Option<String> {
    if request.state != RequestState::Pending {
        return Some(ended_sentence(request, answers));
    }
    if request.expires_at.is_some_and(|at| at <= now) {
        return Some("Its time is over: the host denies it by itself.".to_owned());
    }
    if owner == Some(actor.username.as_str()) {
        return Some(format!(
            "You own the workload {}: somebody else has to answer.",
            request.label
        ));
    }
    if earlier_owners.contains(&actor.username) {
        return Some(format!(
            "You owned the workload {} when this was asked, or since: somebody else has to answer.",
            request.label
        ));
    }
    if !actor.may(Permission::AnswerRequests) {
        return Some("Answering takes the role approver, which you do not have.".to_owned());
    }
    if !request.approver_groups.is_empty() && !request.approver_groups.iter().any(|g| actor.groups.contains(g)) {
        return Some(format!(
            "The policy asks {}; you are in none of these groups.",
            request
                .approver_groups
                .iter()
                .map(|g| guard_evidence::text::visible_fold(g, 80))
                .collect::<Vec<_>>()
                .join(", ")
        ));
    }
    if answers.iter().any(|a| a.user_id == actor.user_id) {
        let missing = usize::try_from(request.quorum)
            .unwrap_or(usize::MAX)
            .saturating_sub(counted(answers, owner).count());
        return Some(format!(
            "You have approved it; {missing} more {} needed.",
            if missing == 1 { "person is" } else { "people are" }
        ));
    }
    None
}

/// By whom and when a request ended.
pub(super) fn ended_sentence(request: &RequestRow, answers: &[AnswerRow]) -> String {
    let at = request.ended_at.map(rfc3339).unwrap_or_default();
    let by = |verdict: &str| {
        answers
            .iter()
            .filter(|a| a.verdict == verdict)
            .map(|a| a.username.as_str())
            .collect::<Vec<_>>()
            .join(", ")
    };
    match request.state {
        RequestState::Approved => format!("Approved by {} at {at}.", by("approve")),
        RequestState::Denied => format!("Denied by {} at {at}.", by("deny")),
        RequestState::TimedOut => format!("Timed out at {at}: nobody answered in time."),
        RequestState::Withdrawn => {
            format!(
                "Withdrawn at {at}: {}.",
                request.ended_because.as_deref().unwrap_or("the host withdrew it")
            )
        }
        RequestState::Pending => "It is still pending.".to_owned(),
    }
}

impl App {
    /// Answers a request, for `channel` `web`, `cli` or `api`.
    ///
    /// # Errors
    /// [`Error::Forbidden`] when this person may not; [`Error::Conflict`] when it has ended or is not what was shown.
    pub async fn answer(
        &self,
        actor: &Actor,
        id: &str,
        verdict: Verdict,
        body: &AnswerBody,
        channel: &'static str,
    ) -> Result<Details> {
        actor.require(Permission::AnswerRequests)?;
        super::grants::terms_fit(verdict, body.grant.as_ref())?;
        let reason = names::free_text("a reason", &body.reason, REASON_BYTES)?;
        if verdict == Verdict::Deny && reason.is_empty() {
            return Err(Error::Invalid(
                "a denial needs a reason: the workload's owner and the agent read it".to_owned(),
            ));
        }
        let now = self.now();
        let mut change = self.store.change().await?;
        let request = store::request_in(&mut change, id)
            .await?
            .ok_or_else(|| Error::not_found("request", id))?;
        let mut answers = store::answers_in(&mut change, id).await?;
        let owner = store::label_owner_in(&mut change, &request.label).await?;
        let earlier = self.earlier_owners(&request).await?;
        if request.state != RequestState::Pending || request.expires_at.is_some_and(|at| at <= now) {
            let why = why_not(actor, &request, &answers, owner.as_deref(), &earlier, now).unwrap_or_default();
            return Err(Error::conflict("request-ended", why));
        }
        if body.digest != request.digest {
            let detail =
                "the digest is not this request's: what was shown is not what would be answered; load it again";
            return Err(Error::conflict("digest-differs", detail));
        }
        if let Some(why) = why_not(actor, &request, &answers, owner.as_deref(), &earlier, now) {
            return Err(Error::Forbidden(why));
        }
        let answer = AnswerRow {
            user_id: actor.user_id.clone(),
            username: actor.username.clone(),
            who: actor.who.clone(),
            groups: actor.groups.clone(),
            roles: actor.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            verdict: if verdict == Verdict::Allow { "approve" } else { "deny" }.to_owned(),
            reason,
            at: now,
            channel: channel.to_owned(),
            signed_in_at: actor.signed_in_at,
            shown_digest: request.digest.clone(),
            authentication: actor.authentication.clone(),
            void_because: None,
        };
        store::add_answer(&mut change, id, &answer).await?;
        answers.push(answer);
        // Before the head of changes is taken: the decision knows of the grant.
        let grant = match &body.grant {
            Some(terms) => Some(self.make_grant(&mut change, actor, &request, terms).await?),
            None => None,
        };
        let quorum = usize::try_from(request.quorum).unwrap_or(usize::MAX);
        let state = match verdict {
            Verdict::Deny => Some(RequestState::Denied),
            Verdict::Allow if counted(&answers, owner.as_deref()).count() >= quorum => Some(RequestState::Approved),
            Verdict::Allow => None,
        };
        if let Some(state) = state {
            let changes = self.changes_head(&mut change).await?;
            store::end_request(
                &mut change,
                id,
                &End {
                    state,
                    at: now,
                    because: None,
                    owner: owner.as_deref(),
                    changes: changes.as_ref(),
                },
            )
            .await?;
            let ended = RequestRow {
                state,
                owner_then: owner.clone(),
                changes_then: changes,
                ..request.clone()
            };
            let clock = self.host_clock(&request.host_id, now);
            let (envelope, expires_at) = self.signed(&mut change, &ended, &answers, clock).await?;
            store::set_decision(&mut change, id, &envelope, expires_at).await?;
        }
        change.commit().await?;
        tracing::info!(request = %id, by = %actor.username, ?verdict, ?state, channel, "answered");
        self.notify.requests_changed();
        if let Some(grant) = grant {
            tracing::info!(grant = %grant.id, by = %actor.username, until = %grant.expires_at, "grant made");
            self.notify.changed();
        }
        if state.is_some() {
            self.notify.decision_made(&request.host_id);
        }
        self.request(actor, id).await
    }

    /// What time a host thinks it is, if it is ahead of us: a decision must not have expired when it arrives. One that is
    /// behind accepts it a little longer.
    pub(super) fn host_clock(&self, host_id: &str, now: Millis) -> Millis {
        now + self
            .notify
            .stream(host_id)
            .map_or(0, |stream| stream.presence().ahead_ms.clamp(0, MOST_AHEAD_MS))
    }

    /// Signs what people decided, by the owner and the changes of when it ended, to hold for a while from `clock` on. One denial outweighs every approval.
    pub(super) async fn signed(
        &self,
        change: &mut store::Change,
        request: &RequestRow,
        answers: &[AnswerRow],
        clock: Millis,
    ) -> Result<(Vec<u8>, Millis)> {
        let owner = match &request.owner_then {
            Some(username) => Some(self.who(change, username).await?),
            None => None,
        };
        self.sign_decision(request, answers, owner.as_ref(), clock)
    }

    fn sign_decision(
        &self,
        request: &RequestRow,
        answers: &[AnswerRow],
        owner_id: Option<&PersonId>,
        clock: Millis,
    ) -> Result<(Vec<u8>, Millis)> {
        let owner = request.owner_then.as_deref();
        let verdict = match request.state {
            RequestState::Approved => Verdict::Allow,
            RequestState::Denied => Verdict::Deny,
            other => {
                return Err(Error::internal(format!(
                    "a request that is {} has no decision",
                    other.as_str()
                )));
            }
        };
        let groups = |answer: &AnswerRow, all: bool| -> Vec<String> {
            let counts = |g: &&String| all || request.approver_groups.contains(g);
            answer.groups.iter().filter(counts).cloned().collect()
        };
        let expires_at = clock + DECISION_MS;
        // The host puts this envelope into a record of its own, base64 in base64: what does not fit that is shortened
        // here and stands in full in the console.
        let mut reason_bytes = REASON_BYTES;
        let mut all_groups = true;
        loop {
            let decision = SignedDecision {
                console: self.log.origin().to_owned(),
                host_id: request.host_id.clone(),
                request_id: request.id.clone(),
                request_digest: request.digest.clone(),
                nonce: request.nonce.clone(),
                verdict,
                answers: counted(answers, owner)
                    .map(|a| Answer {
                        who: a.who.clone(),
                        name: a.username.clone(),
                        groups: groups(a, all_groups),
                        roles: a.roles.clone(),
                        verdict: if a.verdict == "approve" {
                            Verdict::Allow
                        } else {
                            Verdict::Deny
                        },
                        reason: shortened(&a.reason, reason_bytes),
                        at: rfc3339(a.at),
                        channel: a.channel.clone(),
                        signed_in_at: rfc3339(a.signed_in_at),
                        shown_digest: a.shown_digest.clone(),
                        authentication: a.authentication.clone(),
                    })
                    .collect(),
                quorum: request.quorum,
                owner: owner_id.cloned(),
                changes: request.changes_then.clone(),
                grant: request.grant_use.clone().map(Box::new),
                issued_at: rfc3339(self.now()),
                expires_at: rfc3339(expires_at),
            };
            let failed = |e: &dyn std::fmt::Display| Error::internal(format!("cannot sign a decision: {e}"));
            let statement = Statement::new(Predicate::SignedDecision(Box::new(decision)));
            let payload = statement.to_payload().map_err(|e| failed(&e))?;
            if payload.len() > DECISION_PAYLOAD_BYTES && reason_bytes > 0 {
                all_groups = false;
                reason_bytes /= 2;
                continue;
            }
            let envelope = dsse::sign(&payload, &self.decision_key).map_err(|e| failed(&e))?;
            return Ok((envelope, expires_at));
        }
    }
}

/// Answers that count: not of the owner, nor of who became it or was disabled while it waited.
pub(crate) fn counted<'a>(answers: &'a [AnswerRow], owner: Option<&'a str>) -> impl Iterator<Item = &'a AnswerRow> {
    answers
        .iter()
        .filter(move |answer| answer.void_because.is_none() && owner != Some(answer.username.as_str()))
}

/// At most `max` bytes of a reason; what is left out is marked.
fn shortened(reason: &str, max: usize) -> String {
    if reason.len() <= max {
        return reason.to_owned();
    }
    format!("{}…", &reason[..reason.floor_char_boundary(max)])
}
