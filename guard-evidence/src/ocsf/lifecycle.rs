//! Agents, their programs, policies and labels, and what is an alarm.

use serde_json::json;

use super::event::{
    BLOCKED, CRITICAL, ENTITY, Event, FINDING, HIGH, LIFECYCLE, LOW, MEDIUM, Named, SUCCESS, millis, shown, text,
};
use super::{Place, action};
use crate::key::PublicKey;
use crate::record::{Header, Lifecycle, LifecycleRecord, RuleUses};
use crate::statement::lifecycle_words;

/// An agent that was away for less was restarted.
const AWAY_MS: i64 = 60_000;

pub(super) fn events(place: &Place<'_>, record: &LifecycleRecord) -> Vec<Event> {
    let header = &record.header;
    let words = lifecycle_words(&record.event);
    let alarm = |kind, title, severity| finding(place, header, kind, title, severity, &words);
    let event = match &record.event {
        Lifecycle::Begun { .. } if header.epoch > 1 => alarm("new-epoch", "A chain of records begun anew", MEDIUM),
        Lifecycle::Begun { .. } => agent(place, header, (1, "Install"), &words),
        Lifecycle::NextKey { key } => key_event(place, header, (1, "Create"), key, &words),
        Lifecycle::ConsoleKey { key } => key_event(place, header, (10, "Activate"), key, &words),
        Lifecycle::EnforcementOn { agent_version, .. } => {
            let mut event = agent(place, header, (6, "Enable"), &words);
            event.with("app", |app| {
                app.insert("version".to_owned(), shown(agent_version).into());
            });
            event
        }
        Lifecycle::EnforcementOff { .. } => alarm("enforcement-off", "Enforcement is off", HIGH),
        Lifecycle::Enforcing { stopping: true, .. } => agent(place, header, (4, "Stop"), &words),
        Lifecycle::Enforcing { .. } => agent(place, header, (99, "Other"), &words),
        Lifecycle::PolicyLoaded { digest, .. } => {
            let policy = json!({"uid": shown(digest), "name": "Guard policy", "is_applied": true});
            let entity = json!({"type": "Policy", "type_id": 5, "uid": shown(digest), "policy": policy});
            entity_event(place, header, (10, "Activate"), entity, &words)
        }
        Lifecycle::LabelAdded { label, cgroup, source } => {
            let mut event = labelled(place, header, (1, "Create"), label, &text(cgroup), &words);
            event.guard("source", shown(source));
            event
        }
        Lifecycle::LabelRemoved { label, cgroup } => {
            labelled(place, header, (4, "Delete"), label, &text(cgroup), &words)
        }
        Lifecycle::EventsLost { count } => {
            let mut event = alarm("events-lost", "Kernel events were lost", MEDIUM);
            event.set("count", *count);
            event
        }
        Lifecycle::Recovered { .. } => alarm("spool-recovered", "A torn record was cut from the spool", LOW),
        Lifecycle::DecisionRefused { request_id, .. } => {
            let mut event = alarm("decision-refused", "A host refused a decision", HIGH);
            event.request(request_id);
            event
        }
        Lifecycle::LogRefused { .. } => alarm("log-refused", "A host refused the console's log", CRITICAL),
        Lifecycle::TheftRefused {
            label,
            object,
            count,
            pid,
            uid,
            comm,
        } => {
            let mut event = alarm("theft", "A workload tried to reach what nobody can allow", HIGH);
            let user = json!({"uid": uid.to_string()});
            event.profile("host").set(
                "actor",
                json!({"process": {"pid": pid, "name": text(comm), "user": user}, "user": user}),
            );
            event.set("count", *count).outcome(BLOCKED).label(label);
            event.guard("object", shown(object));
            event
        }
        Lifecycle::Unprotected { path, .. } => {
            let mut event = alarm("unprotected", "A place cannot be protected", HIGH);
            event.guard("path", text(path));
            event
        }
        Lifecycle::AgentAway { from, to } => {
            let long = millis(to).saturating_sub(millis(from)) >= AWAY_MS;
            let mut event = alarm("agent-away", "An agent was away", if long { MEDIUM } else { LOW });
            event.set("start_time", millis(from)).set("end_time", millis(to));
            event
        }
        Lifecycle::AllowedByRules { label, from, to, rules } => {
            return counted(place, header, label, (from, to), rules);
        }
    };
    vec![event]
}

fn counted(place: &Place<'_>, header: &Header, label: &str, times: (&str, &str), rules: &[RuleUses]) -> Vec<Event> {
    rules
        .iter()
        .map(|uses| action::counted(place, header, label, times, uses))
        .collect()
}

fn agent(place: &Place<'_>, header: &Header, activity: Named, words: &str) -> Event {
    let mut event = Event::new(place, header, LIFECYCLE, activity, words);
    let name = if header.signer.starts_with("host:") {
        event.profile("host").device(place, header, None);
        "guard-agent"
    } else {
        "guard-console"
    };
    event
        .set("app", json!({"name": name, "vendor_name": "Guard"}))
        .status(SUCCESS);
    event
}

fn entity_event(place: &Place<'_>, header: &Header, activity: Named, entity: serde_json::Value, words: &str) -> Event {
    let mut event = Event::new(place, header, ENTITY, activity, words);
    let app = if header.signer.starts_with("host:") {
        event.profile("host").device(place, header, None);
        "guard-agent"
    } else {
        "guard-console"
    };
    event.set("actor", json!({"app_name": app}));
    event.set("entity", entity).status(SUCCESS);
    event
}

/// A key that signs evidence or decisions.
fn key_event(place: &Place<'_>, header: &Header, activity: Named, key: &PublicKey, words: &str) -> Event {
    let entity = json!({"type": "Signing key", "type_id": 99, "uid": key.id()});
    entity_event(place, header, activity, entity, words)
}

fn labelled(place: &Place<'_>, header: &Header, activity: Named, label: &str, cgroup: &str, words: &str) -> Event {
    let entity = json!({"type": "Labelled cgroup", "type_id": 99, "name": shown(label), "uid": cgroup});
    let mut event = entity_event(place, header, activity, entity, words);
    event.label(label).guard("cgroup", cgroup);
    event
}

/// An alarm.
fn finding(place: &Place<'_>, header: &Header, kind: &str, title: &str, severity: Named, words: &str) -> Event {
    let mut event = Event::new(place, header, FINDING, (1, "Create"), words);
    event.severity(severity).status((1, "New")).set("is_alert", true);
    event.set(
        "finding_info",
        json!({"uid": place.digest, "title": title, "desc": words, "types": [kind], "created_time": millis(&header.at),
               "analytic": {"uid": kind, "name": kind, "type": "Rule", "type_id": 1}}),
    );
    if header.signer.starts_with("host:") {
        event.device(place, header, None);
    }
    event.guard("alarm", kind);
    event
}
