//! Whether people decided, before it happened, what they were asked.
//!
//! For every action that went on: a decision record before it, in it the console's signed decision, which binds the
//! host, the request's digest and nonce and names enough people who may decide, none of them the owner.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::changes::Changes;
use super::keys::Keys;
use super::{Level, Record, Section};
use crate::dsse::{self, DsseError};
use crate::record::{
    DecidedBy, DecisionRecord, Effect, EnforcementRecord, Lifecycle, PersonId, Predicate, RequestRecord,
    SignedDecision, Statement, Verdict,
};
use crate::text::{visible, visible_fold};
use crate::trust::Trust;

/// The role without which an answer does not count.
const APPROVER: &str = "approver";

/// How often each thing was found.
#[derive(Default)]
struct Counts {
    by_people: u64,
    by_policy: u64,
    denied: u64,
    killed: u64,
    open: u64,
}

pub(super) fn check(records: &[Record], trust: &Trust, keys: &Keys, changes: &Changes, section: &mut Section) {
    let mut counts = Counts::default();
    // By signer and id: one host cannot speak about another's request.
    let mut requests: HashMap<(&str, &str), (&Record, &RequestRecord)> = HashMap::new();
    let mut decisions: HashMap<(&str, &str), Decided<'_>> = HashMap::new();
    let mut enforced: HashSet<(&str, &str)> = HashSet::new();
    // A use of a grant, by its id and number, counts once.
    let mut used: HashSet<(String, u32)> = HashSet::new();
    // The only key of the console that a host accepts, by signer, once it has said so.
    let mut accepted: HashMap<&str, String> = HashMap::new();
    // Log order keeps each host's order, which the sequence check has proved.
    for record in records {
        let signer = record.header.signer.as_str();
        match &record.statement.predicate {
            Predicate::Request(request) => {
                check_request(record, request, section);
                if requests
                    .insert((signer, &request.request_id), (record, request))
                    .is_some()
                {
                    section.add(Level::Invalid, "asks with the id of an earlier request", Some(record));
                }
            }
            Predicate::Decision(decision) => {
                let request = requests.get(&(signer, decision.request_id.as_str())).copied();
                let result =
                    check_decision(record, decision, request, trust, keys, accepted.get(signer)).and_then(|signed| {
                        match (signed, request) {
                            (Some(signed), Some((_, request))) => {
                                if let Some(granted) = &signed.grant
                                    && !used.insert((granted.grant.id.clone(), granted.number))
                                {
                                    return invalid("uses a grant for the same time twice");
                                }
                                check_people(record, &signed, request, changes, section)
                            }
                            _ => Ok(()),
                        }
                    });
                let holds = match &result {
                    Ok(()) => Holds::Yes,
                    Err(Wrong::Missing(_)) => Holds::CannotTell,
                    Err(Wrong::Invalid(_)) => Holds::No,
                };
                decisions.insert((signer, &record.payload_digest), Decided { decision, holds });
                tell(result, record, section);
            }
            Predicate::Enforcement(enforcement) => {
                if let Some(id) = &enforcement.request_id
                    && !enforced.insert((signer, id))
                {
                    // Saying an end again after a crash is harmless; going on after an end never is.
                    match enforcement.verdict {
                        Verdict::Allow => {
                            section.add(Level::Invalid, "takes effect after the request had ended", Some(record));
                        }
                        Verdict::Deny => {
                            section.add(Level::Note, "ends a request that had ended", Some(record));
                        }
                    }
                }
                let decision = enforcement
                    .decision_digest
                    .as_deref()
                    .and_then(|d| decisions.get(&(signer, d)))
                    .copied();
                let request = enforcement
                    .request_id
                    .as_deref()
                    .and_then(|id| requests.get(&(signer, id)))
                    .copied();
                tell(
                    check_enforcement(enforcement, request, decision, &mut counts),
                    record,
                    section,
                );
            }
            Predicate::Lifecycle(lifecycle) => {
                if let Lifecycle::ConsoleKey { key } = &lifecycle.event {
                    let id = key.id();
                    if keys.of_console(&trust.console.origin, &id).is_none() {
                        let text = format!("accepts decisions of key {id}, which is not the console's");
                        section.add(Level::Invalid, text, Some(record));
                    }
                    accepted.insert(signer, id);
                }
            }
            Predicate::Change(_) | Predicate::SignedDecision(_) => {}
        }
    }
    counts.open = requests.keys().filter(|key| !enforced.contains(*key)).count() as u64;
    section.summary = format!(
        "{} allowed by people, each with an earlier decision; {} allowed by policy; {} denied; {} killed; {} without an end yet",
        counts.by_people, counts.by_policy, counts.denied, counts.killed, counts.open
    );
}

/// A decision record, and whether people really decided so.
#[derive(Clone, Copy)]
struct Decided<'r> {
    decision: &'r DecisionRecord,
    holds: Holds,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    Yes,
    No,
    /// A record that it needs is not there.
    CannotTell,
}

fn tell(result: Result<(), Wrong>, record: &Record, section: &mut Section) {
    match result {
        Ok(()) => {}
        Err(Wrong::Missing(text)) => section.add(Level::Incomplete, text, Some(record)),
        Err(Wrong::Invalid(text)) => section.add(Level::Invalid, text, Some(record)),
    }
}

enum Wrong {
    /// It cannot be told: a record that it needs is not there.
    Missing(String),
    Invalid(String),
}

fn invalid<T>(text: impl Into<String>) -> Result<T, Wrong> {
    Err(Wrong::Invalid(text.into()))
}

fn check_request(record: &Record, request: &RequestRecord, section: &mut Section) {
    if record.header.signer != format!("host:{}", request.host.id) {
        section.add(
            Level::Invalid,
            "names another host than the one that signed it",
            Some(record),
        );
    }
    if request.why.quorum == 0 {
        section.add(Level::Invalid, "asks for a quorum of nobody", Some(record));
    }
}

fn check_decision(
    record: &Record,
    decision: &DecisionRecord,
    request: Option<(&Record, &RequestRecord)>,
    trust: &Trust,
    keys: &Keys,
    accepted: Option<&String>,
) -> Result<Option<Box<SignedDecision>>, Wrong> {
    let id = visible_fold(&decision.request_id, 64);
    let Some((request_record, request)) = request else {
        return Err(Wrong::Missing(format!(
            "decides request {id}, whose record is not before it in the bundle"
        )));
    };
    if decision.request_digest != request_record.payload_digest {
        return invalid(format!("decides another content than the record of request {id} has"));
    }
    let envelope = match &decision.by {
        DecidedBy::People { envelope } => envelope,
        DecidedBy::Timeout | DecidedBy::Host { .. } if decision.verdict == Verdict::Deny => return Ok(None),
        DecidedBy::Timeout => return invalid(format!("allows request {id} because time passed")),
        DecidedBy::Host { .. } => return invalid(format!("allows request {id} without people or policy")),
    };
    let bytes = STANDARD
        .decode(envelope)
        .map_err(|_| Wrong::Invalid("the console's decision is not base64".to_owned()))?;
    let of_console = |e: &dyn Display| Wrong::Invalid(format!("the console's decision: {e}"));
    let unverified = dsse::parse(&bytes).map_err(|e| of_console(&e))?;
    let Some(key) = keys.of_console(&trust.console.origin, unverified.key_id()) else {
        return Err(of_console(&DsseError::UnknownKey(unverified.key_id().to_owned())));
    };
    let verified = unverified.verify(&key.key).map_err(|e| of_console(&e))?;
    let statement = Statement::from_payload(&verified.payload).map_err(|e| of_console(&e))?;
    let Predicate::SignedDecision(signed) = statement.predicate else {
        return invalid("what the console signed is not a decision");
    };
    if accepted.is_some_and(|id| *id != verified.key_id) {
        return invalid(format!(
            "the console's decision is signed by key {}, which the host had ceased to accept",
            verified.key_id
        ));
    }
    // A key that came later may sign again what people had answered before.
    if let Some(head) = &signed.changes
        && key.through_epoch.is_some_and(|through| head.epoch > through)
    {
        return invalid(format!(
            "the console's decision is signed by key {}, which it did not use in epoch {}",
            verified.key_id, head.epoch
        ));
    }
    check_signed(record, decision, request_record, request, &signed, trust).map_err(Wrong::Invalid)?;
    Ok(Some(signed))
}

/// Whether owner, roles and groups were those that the console had recorded when it signed.
fn check_people(
    record: &Record,
    signed: &SignedDecision,
    request: &RequestRecord,
    changes: &Changes,
    section: &mut Section,
) -> Result<(), Wrong> {
    let Some(head) = &signed.changes else {
        if changes.began_before(record.index) {
            return Err(Wrong::Missing(
                "does not say which changes of owners and roles the console knew".to_owned(),
            ));
        }
        return Ok(());
    };
    let Some(view) = changes.at(head, record.index) else {
        let text = "names a change of owners and roles that is not before it in the log".to_owned();
        return Err(if changes.is_whole() && changes.began_before(record.index) {
            Wrong::Invalid(text)
        } else {
            Wrong::Missing(text)
        });
    };
    if !changes.is_whole() {
        return Err(Wrong::Missing(
            "cannot be held against owners and roles: some of their changes are not in the bundle".to_owned(),
        ));
    }
    let label = &request.workload.label;
    let name = |who: Option<&PersonId>| who.map_or_else(|| "nobody".to_owned(), |who| visible_fold(&who.subject, 64));
    let owner = view.owner(label);
    if signed.owner.as_ref() != owner {
        return invalid(format!(
            "was decided as if {} owned {}, but the log says {}",
            name(signed.owner.as_ref()),
            visible_fold(label, 64),
            name(owner)
        ));
    }
    if let Some(granted) = &signed.grant {
        let [answer] = signed.answers.as_slice() else {
            return invalid("stands on a grant of several people");
        };
        view.grants(&granted.grant, &answer.who)
            .map_err(|why| Wrong::Invalid(why.to_owned()))?;
    }
    for answer in &signed.answers {
        let who = visible_fold(&answer.name, 64);
        let Some(account) = view.account(&answer.who) else {
            return invalid(format!("was decided by {who}, who had no account"));
        };
        if account.disabled {
            return invalid(format!("was decided by {who}, whose account was disabled"));
        }
        if account.facts.service {
            return invalid(format!("was decided by {who}, which is a program"));
        }
        let known = |said: &[String], recorded: &[String]| said.iter().all(|one| recorded.contains(one));
        if !known(&answer.roles, &account.facts.roles) || !known(&answer.groups, &account.facts.groups) {
            return invalid(format!("gives {who} roles or groups that the log does not"));
        }
        if owner.is_some() && account.made_by.as_ref() == owner {
            section.add(
                Level::Note,
                format!(
                    "was decided by {who}, whose account was made by {}, the owner of {}",
                    name(owner),
                    visible_fold(label, 64)
                ),
                Some(record),
            );
        }
        if time(&answer.at).is_some_and(|at| view.owned_lately(label, &answer.who, at)) {
            section.add(
                Level::Note,
                format!(
                    "was decided by {who}, who had owned {} within the day before",
                    visible_fold(label, 64)
                ),
                Some(record),
            );
        }
    }
    Ok(())
}

/// Everything that the console's signature must cover.
fn check_signed(
    record: &Record,
    decision: &DecisionRecord,
    request_record: &Record,
    request: &RequestRecord,
    signed: &SignedDecision,
    trust: &Trust,
) -> Result<(), String> {
    if signed.console != trust.console.origin {
        return Err(format!(
            "is a decision of another console, `{}`",
            visible_fold(&signed.console, 80)
        ));
    }
    if record.header.signer != format!("host:{}", signed.host_id) {
        return Err("was decided for another host".to_owned());
    }
    if signed.request_id != request.request_id {
        return Err("was decided for another request".to_owned());
    }
    if signed.request_digest != request_record.payload_digest {
        return Err("was decided for another content of the request".to_owned());
    }
    if signed.nonce != request.nonce {
        return Err("does not repeat the request's nonce: a replay".to_owned());
    }
    if signed.verdict != decision.verdict {
        return Err("says something else than the people decided".to_owned());
    }
    match (time(&signed.expires_at), time(&decision.received_at)) {
        (Some(expires), Some(received)) if received <= expires => {}
        (Some(_), Some(_)) => return Err("was received after it had expired".to_owned()),
        _ => return Err("has a time that cannot be read".to_owned()),
    }
    // What the people were shown: this request, or the one that they granted with.
    let mut shown = request_record.payload_digest.as_str();
    if let Some(granted) = &signed.grant {
        if signed.verdict != Verdict::Allow {
            return Err("denies by a grant".to_owned());
        }
        if granted.grant.console != signed.console {
            return Err("stands on a grant of another console".to_owned());
        }
        granted.covers(request)?;
        shown = &granted.grant.request_digest;
    }
    let mut allowing = HashSet::new();
    let mut denying = 0u32;
    for answer in &signed.answers {
        let name = visible_fold(&answer.name, 64);
        if signed.owner.as_ref() == Some(&answer.who) {
            return Err(format!("was decided by the owner of the workload, {name}"));
        }
        if !answer.roles.iter().any(|role| role == APPROVER) {
            return Err(format!("was decided by {name}, who was no approver"));
        }
        let groups = &request.why.approver_groups;
        if !groups.is_empty() && !answer.groups.iter().any(|group| groups.contains(group)) {
            return Err(format!("was decided by {name}, who is in none of the groups asked"));
        }
        if answer.shown_digest != shown {
            return Err(format!("{name} was shown something else"));
        }
        match answer.verdict {
            Verdict::Allow => {
                if !allowing.insert(&answer.who) {
                    return Err(format!("counts {name} twice"));
                }
            }
            Verdict::Deny => denying += 1,
        }
    }
    match decision.verdict {
        Verdict::Allow if denying > 0 => Err("was allowed although somebody denied it".to_owned()),
        Verdict::Allow if (allowing.len() as u64) < u64::from(request.why.quorum.max(1)) => Err(format!(
            "was allowed by {} people, but the policy asked for {}",
            allowing.len(),
            request.why.quorum
        )),
        Verdict::Deny if denying == 0 => Err("was denied by nobody".to_owned()),
        _ => Ok(()),
    }
}

fn time(text: &str) -> Option<jiff::Timestamp> {
    text.parse().ok()
}

fn check_enforcement(
    enforcement: &EnforcementRecord,
    request: Option<(&Record, &RequestRecord)>,
    decision: Option<Decided<'_>>,
    counts: &mut Counts,
) -> Result<(), Wrong> {
    let word = visible(effect_name(&enforcement.effect));
    match (enforcement.verdict, &enforcement.effect) {
        (Verdict::Deny, Effect::Ran | Effect::Failed { .. } | Effect::Killed { .. }) => {
            return invalid(format!("was denied, yet it {word}"));
        }
        (Verdict::Allow, Effect::Denied) => return invalid("was allowed, yet it was denied"),
        _ => {}
    }
    match (enforcement.verdict, enforcement.request_id.as_deref()) {
        (Verdict::Allow, Some(id)) => {
            let id = visible_fold(id, 64);
            if enforcement.decision_digest.is_none() {
                return invalid(format!("was allowed for request {id} without naming a decision"));
            }
            let Some(Decided { decision, holds }) = decision else {
                return Err(Wrong::Missing(format!(
                    "was allowed for request {id}, but the decision that it names is not before it in the bundle"
                )));
            };
            match holds {
                Holds::Yes => {}
                Holds::No => {
                    return invalid(format!("was allowed for request {id} by a decision that does not hold"));
                }
                Holds::CannotTell => {
                    return Err(Wrong::Missing(format!(
                        "was allowed for request {id} by a decision of which it cannot be told whether it holds"
                    )));
                }
            }
            if decision.verdict != Verdict::Allow {
                return invalid(format!(
                    "was allowed for request {id}, but the decision that it names denies"
                ));
            }
            if Some(decision.request_id.as_str()) != enforcement.request_id.as_deref() {
                return invalid(format!(
                    "was allowed for request {id} by the decision of another request"
                ));
            }
            let Some((request_record, request)) = request else {
                return Err(Wrong::Missing(format!(
                    "was allowed for request {id}, whose record is not before it in the bundle"
                )));
            };
            if enforcement.request_digest.as_deref() != Some(request_record.payload_digest.as_str()) {
                return invalid(format!(
                    "was allowed for another content than the record of request {id} has"
                ));
            }
            if request.workload.label != enforcement.label {
                return invalid(format!("has another label than request {id}"));
            }
            counts.by_people += 1;
        }
        (Verdict::Allow, None) if enforcement.by_policy.is_none() => {
            return invalid("was allowed by neither people nor policy");
        }
        (Verdict::Allow, None) => counts.by_policy += 1,
        (Verdict::Deny, _) => counts.denied += 1,
    }
    if matches!(enforcement.effect, Effect::Killed { .. }) {
        counts.killed += 1;
    }
    Ok(())
}

fn effect_name(effect: &Effect) -> &'static str {
    match effect {
        Effect::Ran => "ran",
        Effect::Denied => "was denied",
        Effect::Failed { .. } => "failed by itself",
        Effect::Killed { .. } => "was killed",
        Effect::Died => "died",
        Effect::Withdrawn { .. } => "was withdrawn",
    }
}
