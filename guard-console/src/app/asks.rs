//! What hosts say about requests: asking, withdrawing, acknowledging, reporting; and what they are sent.
//!
//! Owns the checks on a question. It is given the host's verified identity and bytes; the record's signature is checked
//! before anything in it is read. It must never show people a question that its host did not sign.

use std::collections::{BTreeSet, HashSet};

use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::{Predicate, RequestRecord, Statement};
use guard_evidence::statement::{action_word, sha256_hex, what};
use guard_evidence::text::visible_fold;
use guard_evidence::trust::RangedKey;
use guard_proto::limits::{NAME_BYTES, PENDING_PER_HOST, RECORD_BYTES};
use guard_proto::rest::RequestState;
use guard_proto::v1;
use prost::Message as _;
use ulid::Ulid;

use super::card::{self, WHAT_CHARACTERS};
use super::changes::signed_by;
use super::evidence::verified;
use super::{App, Error, Result};
use crate::store::{self, End, HostKeys, HostRow, NewRequest, RequestRow};
use crate::time::{Millis, parse_rfc3339};

/// Everybody's answer has to fit one signed decision.
const MAX_QUORUM: u32 = 16;
const MAX_GROUPS: usize = 64;
const DETAIL_CHARACTERS: usize = 500;

/// A question that may be stored. Pure result of [`check`].
#[derive(Debug)]
struct Checked {
    record: RequestRecord,
    digest: String,
    expires_at: Option<Millis>,
}

/// Why a question is refused, in words for the host's log.
type Refused = String;

/// Everything about a question that needs no database.
fn check(host: &HostRow, keys: &HostKeys, ask: &v1::Ask) -> std::result::Result<Checked, Refused> {
    if ask.record.len() > RECORD_BYTES {
        return Err(format!(
            "the record has {} bytes; at most {RECORD_BYTES} are allowed",
            ask.record.len()
        ));
    }
    let verified = verified(keys, &ask.record).map_err(|e| format!("the record: {e}"))?;
    let statement = Statement::from_payload(&verified.payload).map_err(|e| format!("the record: {e}"))?;
    let Predicate::Request(record) = statement.predicate else {
        return Err("the record is not a request".to_owned());
    };
    // The record of its first use may still be on its way.
    if !keys.is_next(&verified.key_id) && !keys.signs(&verified.key_id, record.header.epoch) {
        return Err(format!(
            "the record is signed by key {}, which the host does not use any more",
            verified.key_id
        ));
    }
    let signer = format!("host:{}", host.id);
    if record.header.signer != signer || record.host.id != host.id {
        return Err("the record names another host than the one that sends it".to_owned());
    }
    if record.request_id != ask.request_id || !is_canonical_ulid(&ask.request_id) {
        return Err("the request id is not the record's, or not a ULID".to_owned());
    }
    if !guard_proto::limits::is_label(&record.workload.label) {
        return Err("the label is not a label".to_owned());
    }
    let nonce = hex::encode(&ask.nonce);
    if ask.nonce.len() != 32 || record.nonce != nonce {
        return Err("the nonce is not the record's, or not 32 bytes".to_owned());
    }
    let groups = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
    if groups(&record.why.approver_groups) != groups(&ask.approver_groups) || record.why.quorum != ask.quorum {
        return Err("approver groups or quorum are not the record's".to_owned());
    }
    if !(1..=MAX_QUORUM).contains(&ask.quorum) {
        return Err(format!(
            "the quorum is {}; 1 to {MAX_QUORUM} people can be asked for",
            ask.quorum
        ));
    }
    if ask.approver_groups.len() > MAX_GROUPS
        || ask.approver_groups.iter().any(|g| g.is_empty() || g.len() > NAME_BYTES)
    {
        return Err(format!(
            "at most {MAX_GROUPS} approver groups of 1 to {NAME_BYTES} bytes"
        ));
    }
    let expires_at = record
        .expires_at
        .as_deref()
        .map(parse_rfc3339)
        .transpose()
        .map_err(|e| format!("expires_at: {e}"))?;
    let asked = (ask.expires_at_ms != 0).then_some(ask.expires_at_ms);
    // The record's text may be rounded to the second.
    let same = match (expires_at, asked) {
        (Some(a), Some(b)) => a.abs_diff(b) < 1_000,
        (a, b) => a == b,
    };
    if !same {
        return Err("the expiry is not the record's".to_owned());
    }
    Ok(Checked {
        digest: sha256_hex(&verified.payload),
        record: *record,
        expires_at,
    })
}

fn is_canonical_ulid(text: &str) -> bool {
    Ulid::from_string(text).is_ok_and(|id| id.to_string() == text)
}

/// For fuzzing: a question as it arrives, whose record its host has signed.
pub fn fuzz_ask(data: &[u8]) {
    let Ok(mut ask) = v1::Ask::decode(data) else { return };
    let key = SigningKey::from_seed(&[7; 32]);
    let Ok(record) = dsse::sign(&ask.record, &key) else {
        return;
    };
    ask.record = record;
    let host = HostRow {
        id: "01JD0000000000000000000001".to_owned(),
        name: "build-7".to_owned(),
        evidence_key: key.public().to_der(),
        agent_version: String::new(),
        kernel: String::new(),
        policy_digest: String::new(),
        labels: Vec::new(),
        enforcing: true,
        enforcing_since: None,
        last_seen: None,
        lost_events: 0,
        enrolled_at: 0,
        certificate_expires_at: 0,
        revoked_at: None,
    };
    let keys = HostKeys {
        used: vec![RangedKey::only(key.public())],
        next: None,
    };
    match check(&host, &keys, &ask) {
        Ok(checked) => {
            let record = &checked.record;
            assert!(guard_proto::limits::is_label(&record.workload.label));
            assert_ne!(card::program_key(record), card::action_key(record));
            let what = what(&record.action, WHAT_CHARACTERS);
            assert!(!what.chars().any(char::is_control), "{what:?}");
            assert!(card::Card::read(&ask.record).is_ok(), "what was accepted can be shown");
        }
        Err(refused) => assert!(!refused.chars().any(char::is_control), "{refused:?}"),
    }
}

impl App {
    /// Stores a question so that people can see it. Asking again with the same record changes nothing.
    ///
    /// # Errors
    /// [`Error::Invalid`]: refused, and the host denies; other errors: try again.
    pub async fn ask(&self, host: &HostRow, ask: &v1::Ask) -> Result<()> {
        let keys = self.store.evidence_keys(&host.id).await?;
        let checked = check(host, &keys, ask).map_err(Error::Invalid)?;
        let record = &checked.record;
        let mut change = self.store.change().await?;
        if let Some(known) = store::request_in(&mut change, &ask.request_id).await? {
            if known.host_id != host.id || known.record != ask.record {
                return Err(Error::Invalid(
                    "this request id was used with another record".to_owned(),
                ));
            }
            return match known.state {
                RequestState::Pending => Ok(()),
                // The host waits although it acknowledged the decision, so it has lost it: it is sent again.
                RequestState::Approved | RequestState::Denied => {
                    if known.outcome.is_none() {
                        store::forget_decision_received(&mut change, &known.id).await?;
                        change.commit().await?;
                    }
                    Ok(())
                }
                // Ends are final, and a host that waits for an answer must not wait for ever.
                RequestState::TimedOut | RequestState::Withdrawn => Err(Error::Invalid(format!(
                    "this request has ended ({}); ask anew with another id",
                    known.ended_because.as_deref().unwrap_or("withdrawn")
                ))),
            };
        }
        if store::pending_of_host(&mut change, &host.id).await? >= PENDING_PER_HOST as u64 {
            return Err(Error::Invalid(format!(
                "{PENDING_PER_HOST} requests of this host are waiting already"
            )));
        }
        let new = NewRequest {
            id: &ask.request_id,
            host_id: &host.id,
            label: &record.workload.label,
            action: action_word(&record.action),
            program_key: &card::program_key(record),
            action_key: &card::action_key(record),
            digest: &checked.digest,
            record: &ask.record,
            nonce: &record.nonce,
            what: &what(&record.action, WHAT_CHARACTERS),
            approver_groups: &record.why.approver_groups,
            quorum: record.why.quorum,
            asked_at: self.now(),
            expires_at: checked.expires_at,
        };
        store::add_request(&mut change, &new).await?;
        self.answer_by_grant(&mut change, &ask.request_id).await?;
        change.commit().await?;
        tracing::info!(request = %ask.request_id, host = %host.name, label = %record.workload.label, "asked");
        self.notify.requests_changed();
        Ok(())
    }

    /// The question ended on the host.
    pub async fn withdraw(&self, host: &HostRow, withdraw: &v1::Withdraw) -> Result<()> {
        use v1::withdraw::Why;
        let (state, because) = match withdraw.why() {
            Why::TimedOut => (RequestState::TimedOut, "nobody answered in time"),
            Why::Died => (RequestState::Withdrawn, "the process died while it waited"),
            Why::Changed => (RequestState::Withdrawn, "the program changed what it asked for"),
            Why::PolicyChanged => (RequestState::Withdrawn, "the host's policy answers it now"),
            Why::HostRestarted => (RequestState::Withdrawn, "the host restarted"),
            Why::Unspecified => (RequestState::Withdrawn, "the host withdrew it"),
        };
        let now = self.now();
        let mut change = self.store.change().await?;
        let Some(request) = own_request(&mut change, host, &withdraw.request_id).await? else {
            return Ok(());
        };
        let end = End {
            state,
            at: now,
            because: Some(because),
            owner: None,
            changes: None,
        };
        if !store::end_request(&mut change, &request.id, &end).await?
            && matches!(request.state, RequestState::Approved | RequestState::Denied)
        {
            // It crossed with people's decision: that one stays, but it had no effect.
            store::set_decision_received(&mut change, &request.id, now, Some(because)).await?;
            let outcome = if matches!(withdraw.why(), Why::TimedOut) {
                "denied"
            } else {
                "died"
            };
            store::set_outcome(&mut change, &request.id, outcome, Some(because), now).await?;
        }
        change.commit().await?;
        self.notify.requests_changed();
        Ok(())
    }

    /// The host has the decision on disk, or says why it does not accept it.
    pub async fn decision_received(&self, host: &HostRow, received: &v1::DecisionReceived) -> Result<()> {
        let mut change = self.store.change().await?;
        let Some(request) = own_request(&mut change, host, &received.request_id).await? else {
            return Ok(());
        };
        let because = visible_fold(&received.refused_because, DETAIL_CHARACTERS);
        let refused = (!received.accepted).then_some(because.as_str());
        store::set_decision_received(&mut change, &request.id, self.now(), refused).await?;
        change.commit().await?;
        if let Some(because) = refused {
            tracing::warn!(request = %request.id, host = %host.name, because, "the host refused a decision");
        }
        self.notify.requests_changed();
        Ok(())
    }

    /// What the kernel did.
    pub async fn outcome(&self, host: &HostRow, outcome: &v1::Outcome) -> Result<()> {
        use v1::outcome::What;
        let word = match outcome.what() {
            What::Ran => "ran",
            What::Denied => "denied",
            What::Failed => "failed",
            What::Killed => "killed",
            What::Died => "died",
            What::Unspecified => return Ok(()),
        };
        let mut change = self.store.change().await?;
        let Some(request) = own_request(&mut change, host, &outcome.request_id).await? else {
            return Ok(());
        };
        let detail = visible_fold(&outcome.detail, DETAIL_CHARACTERS);
        let detail = (!detail.is_empty()).then_some(detail.as_str());
        store::set_outcome(&mut change, &request.id, word, detail, self.now()).await?;
        change.commit().await?;
        self.notify.requests_changed();
        Ok(())
    }

    /// Decisions that the host has not acknowledged, but for those in `sent`, signed so that they hold now.
    pub async fn undelivered(&self, host_id: &str, sent: &HashSet<String>) -> Result<Vec<(String, Vec<u8>)>> {
        let mut decisions = Vec::new();
        for request in self.store.undelivered(host_id).await? {
            if sent.contains(&request.id) {
                continue;
            }
            let envelope = self.current_decision(&request).await?;
            decisions.push((request.id, envelope));
        }
        Ok(decisions)
    }

    /// The stored envelope while it holds for a while yet; otherwise the same answers, signed anew.
    async fn current_decision(&self, request: &RequestRow) -> Result<Vec<u8>> {
        let clock = self.host_clock(&request.host_id, self.now());
        if let (Some(envelope), Some(expires_at)) = (&request.decision, request.decision_expires_at)
            && expires_at - clock > super::answer::RENEW_MARGIN_MS
            // Hosts no longer accept what the key before it signed.
            && signed_by(envelope)? == self.decision_key.public().id()
        {
            return Ok(envelope.clone());
        }
        let mut change = self.store.change().await?;
        let answers = store::answers_in(&mut change, &request.id).await?;
        let (envelope, expires_at) = self.signed(&mut change, request, &answers, clock).await?;
        store::set_decision(&mut change, &request.id, &envelope, expires_at).await?;
        change.commit().await?;
        Ok(envelope)
    }

    /// Requests whose time is over: the host denies them by itself, seen from here or not.
    pub(super) async fn end_overdue_requests(&self) -> Result<()> {
        let now = self.now();
        let mut change = self.store.change().await?;
        let overdue = store::overdue(&mut change, now).await?;
        if overdue.is_empty() {
            return Ok(());
        }
        for id in &overdue {
            let because = Some("nobody answered in time");
            let end = End {
                state: RequestState::TimedOut,
                at: now,
                because,
                owner: None,
                changes: None,
            };
            store::end_request(&mut change, id, &end).await?;
        }
        change.commit().await?;
        self.notify.requests_changed();
        Ok(())
    }
}

/// A host speaks of its own requests only; what it says of others' or unknown ones is dropped.
async fn own_request(change: &mut store::Change, host: &HostRow, id: &str) -> Result<Option<RequestRow>> {
    let request = store::request_in(change, id)
        .await?
        .filter(|request| request.host_id == host.id);
    if request.is_none() {
        tracing::warn!(host = %host.name, request = %visible_fold(id, 40), "a host spoke of a request that is not its own");
    }
    Ok(request)
}
