//! Questions and answers: what people were asked, and what they said.

use serde_json::{Value, json};

use super::event::{API, APPROVED, AUTHENTICATION, BLOCKED, Event, FAILURE, HELD, REJECTED, SUCCESS, millis, shown};
use super::{Place, Related, signed_decision};
use crate::record::{
    Answer, DecidedBy, DecisionRecord, EnforcementRecord, Header, PersonId, RequestRecord, SignedDecision, Verdict,
};
use crate::statement::{effect_words, plain_sentence, sentence, what};
use crate::text::visible;

const WHAT: usize = 300;

/// People are asked.
pub(super) fn asked(place: &Place<'_>, record: &RequestRecord) -> Event {
    let mut event = call(
        place,
        &record.header,
        (1, "Create"),
        "ask",
        &record.request_id,
        &plain_sentence(&sentence(record)),
    );
    event.actor(&record.workload).outcome(HELD).status(SUCCESS);
    event
        .profile("host")
        .device(place, &record.header, Some(&record.host.kernel));
    event.set("src_endpoint", host_endpoint(place, &record.header));
    event.set(
        "resources",
        json!([{"name": what(&record.action, WHAT), "type": "action"}]),
    );
    event.guard("approver_groups", strings(&record.why.approver_groups));
    event.guard("quorum", record.why.quorum);
    event
}

/// One event for each person who answered, with the sign-in that they answered from; one for a time-out or the host.
pub(super) fn decided(place: &Place<'_>, record: &DecisionRecord, related: Related<'_>) -> Vec<Event> {
    let signed = signed_decision(record);
    let by = decided_by(record, signed.as_deref());
    let about = related.request.map_or_else(
        || format!("request {}", visible(&record.request_id)),
        |request| what(&request.action, WHAT),
    );
    let label = related.request.map(|request| request.workload.label.as_str());
    let mut events = Vec::new();
    let one = |operation: &str, message: &str| {
        let mut event = call(
            place,
            &record.header,
            (3, "Update"),
            operation,
            &record.request_id,
            message,
        );
        event.set("resources", json!([{"name": about.as_str(), "type": "action"}]));
        event.guard("decided_by", by.clone());
        if let Some(label) = label {
            event.label(label);
        }
        event
    };
    match (&record.by, signed) {
        (DecidedBy::People { .. }, Some(signed)) => {
            for answer in &signed.answers {
                let (operation, word, outcome) = match answer.verdict {
                    Verdict::Allow => ("approve", "approved", APPROVED),
                    Verdict::Deny => ("deny", "denied", REJECTED),
                };
                let grant = if signed.grant.is_some() {
                    " by an earlier grant"
                } else {
                    ""
                };
                let message = format!("{} {word}{grant}: {about}", shown(&answer.name));
                let mut event = one(operation, &message);
                event.outcome(outcome).status(SUCCESS).set("time", millis(&answer.at));
                event.set("actor", json!({"user": user(&answer.who, &answer.name)}));
                event.set("src_endpoint", json!({"svc_name": shown(&answer.channel)}));
                if !answer.reason.is_empty() {
                    event.set("status_detail", shown(&answer.reason));
                }
                events.push(event);
                events.push(answered_from(place, &record.header, &signed.console, answer));
            }
        }
        (by, _) => {
            let (operation, why) = match by {
                DecidedBy::Timeout => ("time_out", "nobody answered in time".to_owned()),
                DecidedBy::Host { because } => ("refuse", shown(because)),
                DecidedBy::People { .. } => ("decide", "by people whose answer cannot be read".to_owned()),
            };
            let mut event = one(operation, &format!("denied, {why}: {about}"));
            event.outcome(BLOCKED).status(SUCCESS).set("status_detail", why);
            event.set("actor", json!({"app_name": "guard-agent"}));
            event.set("src_endpoint", host_endpoint(place, &record.header));
            events.push(event);
        }
    }
    events
}

/// The end of a request whose record is not there.
pub(super) fn ended(place: &Place<'_>, record: &EnforcementRecord) -> Event {
    let id = record.request_id.as_deref().unwrap_or_default();
    let message = format!(
        "{}: request {} ({})",
        effect_words(&record.effect),
        visible(id),
        visible(&record.label)
    );
    let mut event = call(place, &record.header, (3, "Update"), "end", id, &message);
    event
        .label(&record.label)
        .set("actor", json!({"app_name": "guard-agent"}));
    event.set("src_endpoint", host_endpoint(place, &record.header));
    event.status(match record.verdict {
        Verdict::Allow => SUCCESS,
        Verdict::Deny => FAILURE,
    });
    event
}

fn call(
    place: &Place<'_>,
    header: &Header,
    activity: (u32, &'static str),
    operation: &str,
    request_id: &str,
    message: &str,
) -> Event {
    let mut event = Event::new(place, header, API, activity, message);
    event.request(request_id);
    event.set(
        "api",
        json!({"operation": operation, "request": {"uid": shown(request_id)}, "service": {"name": "Guard approvals"}}),
    );
    event
}

fn host_endpoint(place: &Place<'_>, header: &Header) -> Value {
    let id = header.signer.strip_prefix("host:").unwrap_or(&header.signer);
    match place.host {
        Some(name) => json!({"uid": shown(id), "name": shown(name)}),
        None => json!({"uid": shown(id)}),
    }
}

/// Who decided, as `unmapped.guard.decided_by` has it.
pub(super) fn decided_by(record: &DecisionRecord, signed: Option<&SignedDecision>) -> Value {
    match (&record.by, signed) {
        (DecidedBy::People { .. }, Some(signed)) => {
            let people = signed.answers.iter().map(|answer| {
                let mut one = json!({
                    "kind": "person", "issuer": shown(&answer.who.issuer), "subject": shown(&answer.who.subject),
                    "name": shown(&answer.name), "verdict": answer.verdict, "reason": shown(&answer.reason),
                    "channel": shown(&answer.channel), "at": shown(&answer.at),
                });
                if let (Some(used), Some(one)) = (&signed.grant, one.as_object_mut()) {
                    one.insert("grant".to_owned(), shown(&used.grant.id).into());
                }
                one
            });
            people.collect()
        }
        (DecidedBy::People { .. }, None) => json!([{"kind": "unknown"}]),
        (DecidedBy::Timeout, _) => json!([{"kind": "timeout"}]),
        (DecidedBy::Host { because }, _) => json!([{"kind": "host", "because": shown(because)}]),
    }
}

pub(super) fn user(who: &PersonId, name: &str) -> Value {
    json!({"name": shown(name), "uid": shown(&who.subject), "domain": shown(&who.issuer)})
}

pub(super) fn strings(all: &[String]) -> Vec<String> {
    all.iter().map(|one| shown(one)).collect()
}

fn answered_from(place: &Place<'_>, header: &Header, console: &str, answer: &Answer) -> Event {
    let mut event = signed_in(
        place,
        header,
        console,
        (&answer.who, &answer.name),
        &answer.channel,
        &answer.signed_in_at,
    );
    if let Some(said) = &answer.authentication {
        event.guard(
            "authentication",
            json!({"at": said.at.as_deref().map(shown), "class": said.class.as_deref().map(shown),
                   "methods": strings(&said.methods)}),
        );
    }
    event
}

/// The sign-in of a session that answered or changed something. Each record of that session tells it alike.
pub(super) fn signed_in(
    place: &Place<'_>,
    header: &Header,
    console: &str,
    (who, name): (&PersonId, &str),
    channel: &str,
    at: &str,
) -> Event {
    let message = format!("{} signed in to {}", shown(name), shown(console));
    let mut event = Event::new(place, header, AUTHENTICATION, (1, "Logon"), &message);
    event.known_by(&["sign-in", console, &who.issuer, &who.subject, channel, at]);
    event
        .set("time", millis(at))
        .status(SUCCESS)
        .set("user", user(who, name));
    event.set("service", json!({"name": shown(console)}));
    match who.issuer.as_str() {
        "local" => event.named("auth_protocol_id", "auth_protocol", (99, "Other")),
        _ => event.named("auth_protocol_id", "auth_protocol", (4, "OpenID")),
    };
    event.guard("channel", shown(channel));
    event
}
