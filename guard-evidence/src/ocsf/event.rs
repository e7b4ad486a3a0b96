//! One event while it is made: classes, outcomes, and what every event has.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::{Place, SCHEMA_VERSION};
use crate::record::{Header, WorkloadFacts};
use crate::statement::sha256_hex;
use crate::text::{Text, visible_fold};

/// Longest value in an event, in characters; longer ones are folded in the middle.
const VALUE: usize = 8_192;

/// A number of the schema with its caption.
pub(super) type Named = (u32, &'static str);

#[derive(Debug, Clone, Copy)]
pub(super) struct Class {
    id: Named,
    category: Named,
}

const fn class(uid: u32, name: &'static str, category: Named) -> Class {
    Class {
        id: (uid, name),
        category,
    }
}

const SYSTEM: Named = (1, "System Activity");
const IDENTITY: Named = (3, "Identity & Access Management");
const APPLICATION: Named = (6, "Application Activity");

pub(super) const FILE: Class = class(1001, "File System Activity", SYSTEM);
pub(super) const PROCESS: Class = class(1007, "Process Activity", SYSTEM);
pub(super) const FINDING: Class = class(2004, "Detection Finding", (2, "Findings"));
pub(super) const AUTHENTICATION: Class = class(3002, "Authentication", IDENTITY);
pub(super) const ENTITY: Class = class(3004, "Entity Management", IDENTITY);
pub(super) const NETWORK: Class = class(4001, "Network Activity", (4, "Network Activity"));
pub(super) const LIFECYCLE: Class = class(6002, "Application Lifecycle", APPLICATION);
pub(super) const API: Class = class(6003, "API Activity", APPLICATION);

pub(super) const INFORMATIONAL: Named = (1, "Informational");
pub(super) const LOW: Named = (2, "Low");
pub(super) const MEDIUM: Named = (3, "Medium");
pub(super) const HIGH: Named = (4, "High");
pub(super) const CRITICAL: Named = (5, "Critical");

pub(super) const SUCCESS: Named = (1, "Success");
pub(super) const FAILURE: Named = (2, "Failure");

/// What became of an action: `action_id` and `disposition_id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outcome {
    action: Named,
    disposition: Named,
}

const fn outcome(action: Named, disposition: Named) -> Outcome {
    Outcome { action, disposition }
}

/// By people.
pub(super) const APPROVED: Outcome = outcome((1, "Allowed"), (8, "Approved"));
/// By the policy alone.
pub(super) const ALLOWED: Outcome = outcome((1, "Allowed"), (1, "Allowed"));
/// By people.
pub(super) const REJECTED: Outcome = outcome((2, "Denied"), (25, "Rejected"));
/// By the policy, the host, or because time passed.
pub(super) const BLOCKED: Outcome = outcome((2, "Denied"), (2, "Blocked"));
/// It waits for people.
pub(super) const HELD: Outcome = outcome((3, "Observed"), (14, "Delayed"));
/// The question or the thread ended first.
pub(super) const NOTHING: Outcome = outcome((99, "Other"), (16, "No Action"));

#[derive(Debug)]
pub(super) struct Event {
    fields: Map<String, Value>,
    /// `unmapped.guard`.
    guard: Map<String, Value>,
    profiles: BTreeSet<&'static str>,
    /// Of an event that several records may tell.
    uid: Option<String>,
}

/// Somebody else's text, safe to show and bounded.
pub(super) fn shown(text: &str) -> String {
    visible_fold(text, VALUE)
}

/// Somebody else's bytes, safe to show and bounded.
pub(super) fn text(text: &Text) -> String {
    text.fold(VALUE)
}

/// Milliseconds since 1970; 0 for what is no time.
pub(super) fn millis(at: &str) -> i64 {
    at.parse::<jiff::Timestamp>().map_or(0, jiff::Timestamp::as_millisecond)
}

impl Event {
    /// `activity` is one of the class; `message` is safe to show.
    pub(super) fn new(place: &Place<'_>, header: &Header, class: Class, activity: Named, message: &str) -> Self {
        let mut event = Self {
            fields: Map::new(),
            guard: Map::new(),
            profiles: BTreeSet::new(),
            uid: None,
        };
        let (class_uid, class_name) = class.id;
        event.named("category_uid", "category_name", class.category);
        event.named("class_uid", "class_name", class.id);
        event.named("activity_id", "activity_name", activity);
        event.set("type_uid", u64::from(class_uid) * 100 + u64::from(activity.0));
        event.set("type_name", format!("{class_name}: {}", activity.1));
        event.severity(INFORMATIONAL);
        event.set("time", millis(&header.at));
        event.set("message", message);
        let hash = json!({"algorithm": "SHA-256", "algorithm_id": 3, "value": place.digest});
        event.set("raw_data_hash", hash);
        event.guard("index", place.index);
        event.guard("envelope_sha256", place.digest);
        event.guard("signer", shown(&header.signer));
        event.guard("epoch", header.epoch);
        event.guard("sequence", header.sequence);
        event.guard("at", shown(&header.at));
        if let Some(id) = header.signer.strip_prefix("host:") {
            event.guard("host", json!({"id": shown(id), "name": place.host.map(shown)}));
        }
        if !place.doubts.is_empty() {
            event.guard("doubts", place.doubts);
        }
        event
    }

    pub(super) fn set(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.fields.insert(key.to_owned(), value.into());
        self
    }

    pub(super) fn guard(&mut self, key: &str, value: impl Into<Value>) -> &mut Self {
        self.guard.insert(key.to_owned(), value.into());
        self
    }

    /// More of an object that was set.
    pub(super) fn with(&mut self, key: &str, more: impl FnOnce(&mut Map<String, Value>)) {
        if let Some(object) = self.fields.get_mut(key).and_then(Value::as_object_mut) {
            more(object);
        }
    }

    pub(super) fn named(&mut self, id: &str, caption: &str, named: Named) -> &mut Self {
        self.set(id, named.0).set(caption, named.1)
    }

    pub(super) fn severity(&mut self, severity: Named) -> &mut Self {
        self.named("severity_id", "severity", severity)
    }

    pub(super) fn status(&mut self, status: Named) -> &mut Self {
        self.named("status_id", "status", status)
    }

    pub(super) fn outcome(&mut self, outcome: Outcome) -> &mut Self {
        self.profile("security_control");
        self.named("action_id", "action", outcome.action);
        self.named("disposition_id", "disposition", outcome.disposition)
    }

    /// Attributes of a profile are used.
    pub(super) fn profile(&mut self, profile: &'static str) -> &mut Self {
        self.profiles.insert(profile);
        self
    }

    /// Which request, for whom: `metadata.correlation_uid`.
    pub(super) fn request(&mut self, id: &str) -> &mut Self {
        self.guard("request_id", shown(id))
    }

    pub(super) fn label(&mut self, label: &str) -> &mut Self {
        self.guard("label", shown(label))
    }

    /// The event is told by several records alike, and is one: what it is known by.
    pub(super) fn known_by(&mut self, parts: &[&str]) -> &mut Self {
        self.uid = Some(sha256_hex(parts.join("\0").as_bytes()));
        self
    }

    /// Process, user and container of a workload as the actor, and its place on the host.
    pub(super) fn actor(&mut self, workload: &WorkloadFacts) -> &mut Self {
        let mut process = process(workload);
        if let Some(id) = &workload.container_id {
            self.profile("container");
            process.insert("container".to_owned(), json!({"uid": shown(id)}));
        }
        if let Some(auid) = workload.login_uid {
            self.profile("linux/linux_users");
            process.insert("auid".to_owned(), auid.into());
        }
        self.set("actor", json!({"process": process, "user": user(workload)}));
        self.guard("cgroup", text(&workload.cgroup));
        self.label(&workload.label)
    }

    /// The host that it happened on.
    pub(super) fn device(&mut self, place: &Place<'_>, header: &Header, kernel: Option<&str>) -> &mut Self {
        self.set("device", device(place, header, kernel))
    }

    /// `number` counts the events of one record from 1.
    pub(super) fn finish(mut self, place: &Place<'_>, number: u64) -> Value {
        let uid = self.uid.take().unwrap_or_else(|| match number {
            1 => place.digest.to_owned(),
            number => format!("{}/{number}", place.digest),
        });
        let mut metadata = json!({
            "version": SCHEMA_VERSION,
            "product": {"name": "Guard", "vendor_name": "Guard", "version": env!("CARGO_PKG_VERSION")},
            "uid": uid,
            "original_event_uid": place.digest,
            "original_time": self.guard.get("at"),
            "sequence": place.index,
            "log_name": shown(place.log),
            "profiles": self.profiles,
        });
        if let (Some(request), Some(metadata)) = (self.guard.get("request_id"), metadata.as_object_mut()) {
            metadata.insert("correlation_uid".to_owned(), request.clone());
        }
        self.set("metadata", metadata);
        let guard = Value::Object(std::mem::take(&mut self.guard));
        self.set("unmapped", json!({ "guard": guard }));
        Value::Object(self.fields)
    }
}

/// The host that signed a record.
pub(super) fn device(place: &Place<'_>, header: &Header, kernel: Option<&str>) -> Value {
    let id = header.signer.strip_prefix("host:").unwrap_or(&header.signer);
    let mut os = json!({"name": "Linux", "type": "Linux", "type_id": 200});
    let mut device = json!({"uid": shown(id), "type": "Unknown", "type_id": 0});
    if let (Some(kernel), Some(os)) = (kernel, os.as_object_mut()) {
        os.insert("kernel_release".to_owned(), shown(kernel).into());
    }
    if let Some(device) = device.as_object_mut() {
        device.insert("os".to_owned(), os);
        if let Some(name) = place.host {
            device.insert("name".to_owned(), shown(name).into());
            device.insert("hostname".to_owned(), shown(name).into());
        }
    }
    device
}

pub(super) fn user(workload: &WorkloadFacts) -> Value {
    let mut user = json!({"uid": workload.uid.to_string()});
    if let (Some(name), Some(user)) = (&workload.user, user.as_object_mut()) {
        user.insert("name".to_owned(), shown(name).into());
    }
    user
}

/// The process that acts, before it acts.
fn process(workload: &WorkloadFacts) -> Map<String, Value> {
    let mut process = Map::new();
    process.insert("pid".to_owned(), workload.pid.into());
    process.insert("ptid".to_owned(), workload.tid.into());
    process.insert("user".to_owned(), user(workload));
    let Some((own, others)) = workload.ancestry.split_first() else {
        return process;
    };
    process.insert("name".to_owned(), text(&own.comm).into());
    process.insert("cmd_line".to_owned(), line(&own.argv).into());
    process.insert("uid".to_owned(), format!("{}:{}", own.pid, own.start_ns).into());
    if let Some(path) = &own.executable {
        process.insert("path".to_owned(), text(path).into());
    }
    let ancestry: Vec<Value> = others
        .iter()
        .map(|one| {
            json!({"pid": one.pid, "name": text(&one.comm), "cmd_line": line(&one.argv),
                   "uid": format!("{}:{}", one.pid, one.start_ns)})
        })
        .collect();
    if !ancestry.is_empty() {
        process.insert("ancestry".to_owned(), ancestry.into());
    }
    process
}

/// A command as a shell would read it, folded; its tail stays.
pub(super) fn line(argv: &[Text]) -> String {
    crate::statement::fold_shown(&crate::text::shell_words(argv), VALUE)
}
