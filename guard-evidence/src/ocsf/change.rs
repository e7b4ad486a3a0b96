//! Changes of who may decide.

use serde_json::{Value, json};

use super::Place;
use super::approval::{self, signed_in, strings};
use super::event::{AUTHENTICATION, ENTITY, Event, Named, SUCCESS, shown};
use crate::change::{Change, ChangeRecord, ChangedBy, UserFacts};

const CREATE: Named = (1, "Create");
const UPDATE: Named = (3, "Update");
const DELETE: Named = (4, "Delete");
const ENROLL: Named = (6, "Enroll");
const UNENROLL: Named = (7, "Unenroll");
const DISABLE: Named = (9, "Disable");
const DEACTIVATE: Named = (11, "Deactivate");

/// The change, and the sign-in of whoever made it.
pub(super) fn events(place: &Place<'_>, record: &ChangeRecord) -> Vec<Event> {
    let console = record.header.signer.strip_prefix("console:").unwrap_or_default();
    let mut event = match &record.change {
        Change::SessionsEnded { user, count } => {
            let mut event = Event::new(place, &record.header, AUTHENTICATION, (2, "Logoff"), &record.summary());
            event.set("user", account(user)).set("count", *count);
            event.set("service", json!({"name": shown(console)}));
            event
        }
        change => {
            let (activity, entity, result) = entity(change);
            let mut event = Event::new(place, &record.header, ENTITY, activity, &record.summary());
            event.set("entity", entity);
            if let Some(result) = result {
                event.set("entity_result", result);
            }
            if let Some(why) = &record.why {
                event.set("comment", shown(why));
            }
            event
        }
    };
    event.status(SUCCESS).set("actor", actor(&record.by));
    event.guard("change", record.change.kind_name());
    if let Some(label) = record.change.label() {
        event.label(label);
    }
    if let Some(why) = &record.why {
        event.guard("why", shown(why));
    }
    match &record.change {
        Change::GrantMade { grant } | Change::GrantRevoked { grant } => {
            event.label(&grant.label).request(&grant.request_id);
        }
        _ => {}
    }
    let mut events = vec![event];
    if let ChangedBy::Person {
        who,
        name,
        channel,
        signed_in_at,
        ..
    } = &record.by
    {
        events.push(signed_in(
            place,
            &record.header,
            console,
            (who, name),
            channel,
            signed_in_at,
        ));
    }
    events
}

fn actor(by: &ChangedBy) -> Value {
    match by {
        ChangedBy::Person { who, name, .. } => json!({"user": approval::user(who, name)}),
        ChangedBy::SetupLink => json!({"app_name": "set-up link"}),
        ChangedBy::Token { token, made_by, name } => {
            let name = name.as_ref().unwrap_or(&made_by.subject);
            json!({"app_name": "enrolment token", "app_uid": shown(token), "user": approval::user(made_by, name)})
        }
        ChangedBy::Provider { provider, issuer } => {
            json!({"app_name": "identity provider", "idp": {"name": shown(provider), "issuer": shown(issuer)}})
        }
        ChangedBy::Configuration => json!({"app_name": "guard-console configuration"}),
        ChangedBy::Found => json!({"app_name": "found when changes began to be recorded"}),
    }
}

fn account(user: &UserFacts) -> Value {
    let kind: Named = if user.service { (4, "Service") } else { (1, "User") };
    let groups: Vec<Value> = strings(&user.groups)
        .into_iter()
        .map(|name| json!({ "name": name }))
        .collect();
    let mut account = approval::user(&user.who, &user.name);
    if let Some(account) = account.as_object_mut() {
        account.insert("type_id".to_owned(), kind.0.into());
        account.insert("type".to_owned(), kind.1.into());
        account.insert("groups".to_owned(), groups.into());
    }
    account
}

/// The account as an entity; its roles have no place in the schema but this one.
fn of_user(user: &UserFacts) -> Value {
    json!({"type": "User", "type_id": 2, "uid": shown(&user.who.subject), "name": shown(&user.name),
           "user": account(user), "data": {"roles": strings(&user.roles)}})
}

/// `name` is safe to show.
fn other(kind: &str, uid: &str, name: &str) -> Value {
    json!({"type": kind, "type_id": 99, "uid": shown(uid), "name": name})
}

/// Made, changed or taken away.
fn activity<T>(before: Option<&T>, after: Option<&T>) -> Named {
    match (before, after) {
        (None, _) => CREATE,
        (Some(_), Some(_)) => UPDATE,
        (Some(_), None) => DELETE,
    }
}

/// What was done, to what, and what came of it.
fn entity(change: &Change) -> (Named, Value, Option<Value>) {
    match change {
        Change::SetUpFinished { user } | Change::UserCreated { user } => (CREATE, of_user(user), None),
        Change::UserChanged { before, after } => (UPDATE, of_user(before), Some(of_user(after))),
        Change::UserDisabled { user } => (DISABLE, of_user(user), None),
        Change::SessionsEnded { user, .. } => (UPDATE, of_user(user), None),
        Change::KeyCreated { user, key, roles, .. } => {
            let mut entity = of_key(user, key);
            if let Some(entity) = entity.as_object_mut() {
                entity.insert("data".to_owned(), json!({"roles": strings(roles)}));
            }
            (CREATE, entity, None)
        }
        Change::KeyRevoked { user, key } => (DEACTIVATE, of_key(user, key), None),
        Change::GrantMade { grant } => (CREATE, other("Grant", &grant.id, &grant.words()), None),
        Change::GrantRevoked { grant } => (DEACTIVATE, other("Grant", &grant.id, &grant.words()), None),
        Change::Provider {
            provider,
            before,
            after,
        } => {
            let facts = after.as_ref().or(before.as_ref());
            let issuer = facts.map_or("", |facts| facts.issuer.as_str());
            let entity = other("Identity provider", issuer, &shown(provider));
            (activity(before.as_ref(), after.as_ref()), entity, None)
        }
        Change::Label { label, before, after } => (
            activity(before.as_ref(), after.as_ref()),
            other("Label", label, &shown(label)),
            None,
        ),
        Change::TokenCreated { token, description, .. } => {
            (CREATE, other("Enrolment token", token, &shown(description)), None)
        }
        Change::HostJoined { host_id, name, .. } => (ENROLL, of_host(host_id, name), None),
        Change::HostRevoked { host_id, name } => (UNENROLL, of_host(host_id, name), None),
    }
}

fn of_key(user: &UserFacts, key: &str) -> Value {
    let mut entity = other("Key", key, &shown(key));
    if let Some(entity) = entity.as_object_mut() {
        entity.insert("user".to_owned(), account(user));
    }
    entity
}

fn of_host(id: &str, name: &str) -> Value {
    json!({"type": "Device", "type_id": 1, "uid": shown(id), "name": shown(name),
           "device": {"uid": shown(id), "name": shown(name), "hostname": shown(name), "type": "Unknown", "type_id": 0}})
}
