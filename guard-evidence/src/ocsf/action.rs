//! Actions: what a workload did, or was kept from.

use std::path::Path;

use serde_json::{Value, json};

use super::approval::decided_by;
use super::event::{
    ALLOWED, APPROVED, BLOCKED, Event, FAILURE, FILE, HIGH, INFORMATIONAL, LOW, NETWORK, NOTHING, Named, Outcome,
    PROCESS, REJECTED, SUCCESS, line, millis, shown, text, user,
};
use super::{Place, signed_decision};
use crate::record::{
    Action, ConnectAction, ConnectHow, DecidedBy, DecisionRecord, Effect, EnforcementRecord, ExecAction, FileAction,
    FileOperation, Header, MatchedRule, Peer, PolicyAction, PolicyDecided, RequestRecord, RuleUses, Verdict,
    WorkloadFacts,
};
use crate::statement::{effect_words, policy_words, unix_name, what};
use crate::text::{Text, visible, visible_fold};

const MESSAGE: usize = 300;

/// The policy answered alone.
pub(super) fn by_policy(place: &Place<'_>, record: &EnforcementRecord, decided: &PolicyDecided) -> Event {
    let message = format!(
        "{}: {} by policy ({})",
        effect_words(&record.effect),
        policy_words(&decided.action),
        visible(&record.label)
    );
    let mut event = of_policy(
        place,
        &record.header,
        &decided.action,
        Some(&decided.workload),
        &message,
    );
    event.actor(&decided.workload).label(&record.label);
    rules(&mut event, &decided.rules, &decided.policy_digest);
    event.guard("decided_by", json!([{"kind": "policy"}]));
    effect(&mut event, record, Some(false));
    event
}

/// People, the time-out or the host answered a question.
pub(super) fn after_asking(
    place: &Place<'_>,
    record: &EnforcementRecord,
    request: &RequestRecord,
    decision: Option<&DecisionRecord>,
) -> Event {
    let message = format!(
        "{}: {} ({} on {})",
        effect_words(&record.effect),
        what(&request.action, MESSAGE),
        visible(&record.label),
        visible(&request.host.name)
    );
    let workload = &request.workload;
    let mut event = match &request.action {
        Action::Exec(exec) => launch(place, &record.header, Some(workload), &message, exec),
        Action::Connect(connect) => network(place, &record.header, &message, connect),
        Action::File(file) => file_change(place, &record.header, &message, file),
    };
    event.actor(workload).label(&record.label).request(&request.request_id);
    event.device(place, &record.header, Some(&request.host.kernel));
    rules(&mut event, &request.why.rules, &request.why.policy_digest);
    if !request.why.risks.is_empty() {
        event.set("risk_details", shown(&request.why.risks.join("; ")));
    }
    if let Some(context) = &request.context {
        let names = context.looked_up.iter().map(|one| text(&one.name));
        if !context.looked_up.is_empty() {
            event.guard("looked_up", names.collect::<Vec<_>>());
        }
    }
    let signed = decision.and_then(signed_decision);
    if let Some(decision) = decision {
        event.guard("decided_by", decided_by(decision, signed.as_deref()));
    }
    let people = decision.map(|decision| matches!(decision.by, DecidedBy::People { .. }));
    effect(&mut event, record, people);
    event
}

/// What an exact rule in the kernel allowed, as often as it did.
pub(super) fn counted(place: &Place<'_>, header: &Header, label: &str, times: (&str, &str), uses: &RuleUses) -> Event {
    let action = &uses.rule.action;
    let message = format!(
        "{} by policy, in the kernel: {} {}×",
        visible(label),
        policy_words(action),
        uses.count
    );
    let mut event = of_policy(place, header, action, None, &message);
    // Nobody looked at the processes: what is known of them is their label.
    event.set("actor", json!({"app_name": shown(label)}));
    event.label(label).set("count", uses.count);
    event
        .set("start_time", millis(times.0))
        .set("end_time", millis(times.1));
    rules(&mut event, &uses.rule.rules, &uses.rule.policy_digest);
    event.guard("decided_by", json!([{"kind": "policy", "in_kernel": true}]));
    event.guard(
        "counter",
        json!({"name": shown(&uses.counter), "through": uses.through}),
    );
    event.outcome(ALLOWED).status(SUCCESS);
    event
}

fn of_policy(
    place: &Place<'_>,
    header: &Header,
    action: &PolicyAction,
    workload: Option<&WorkloadFacts>,
    message: &str,
) -> Event {
    let mut event = match action {
        PolicyAction::Exec(exec) => launch(place, header, workload, message, exec),
        PolicyAction::Connect(connect) => network(place, header, message, connect),
        PolicyAction::File(file) => file_change(place, header, message, file),
        PolicyAction::ExecKey {
            path,
            device,
            inode,
            generation,
        } => {
            let file = executable(path.as_ref(), (*device, *inode, *generation));
            launched(place, header, workload, message, &file)
        }
    };
    event.device(place, header, None);
    event
}

/// Which rules of which policy.
fn rules(event: &mut Event, rules: &[MatchedRule], digest: &str) {
    let named: Vec<Value> = rules
        .iter()
        .map(|rule| json!({"id": shown(&rule.id), "description": shown(&rule.description)}))
        .collect();
    event.profile("security_control").guard("rules", named);
    let names: Vec<String> = rules.iter().map(|rule| shown(&rule.id)).collect();
    event.set(
        "policy",
        json!({"uid": shown(digest), "name": names.join(", "), "is_applied": true}),
    );
}

/// `people`: whether they decided, as far as it is known.
fn effect(event: &mut Event, record: &EnforcementRecord, people: Option<bool>) {
    let (outcome, severity): (Outcome, Named) = match (&record.effect, record.verdict) {
        (Effect::Killed { .. }, _) => (BLOCKED, HIGH),
        (Effect::Died | Effect::Withdrawn { .. }, _) => (NOTHING, INFORMATIONAL),
        (_, Verdict::Allow) if people == Some(true) => (APPROVED, INFORMATIONAL),
        (_, Verdict::Allow) => (ALLOWED, INFORMATIONAL),
        (_, Verdict::Deny) if people == Some(true) => (REJECTED, LOW),
        (_, Verdict::Deny) => (BLOCKED, LOW),
    };
    event.outcome(outcome).severity(severity);
    event.set("status_detail", effect_words(&record.effect));
    match &record.effect {
        Effect::Ran => event.status(SUCCESS),
        Effect::Failed { errno } => event.status(FAILURE).set("status_code", errno.to_string()),
        Effect::Denied => event.status(FAILURE).set("status_code", "EPERM"),
        Effect::Killed { .. } => event.status(FAILURE).set("is_alert", true),
        Effect::Died | Effect::Withdrawn { .. } => event.status((99, "Other")),
    };
}

fn launch(
    place: &Place<'_>,
    header: &Header,
    workload: Option<&WorkloadFacts>,
    message: &str,
    exec: &ExecAction,
) -> Event {
    let mut file = executable(exec.path.as_ref(), (exec.device, exec.inode, exec.generation));
    if let Some(file) = file.as_object_mut() {
        file.insert("is_deleted".to_owned(), exec.unlinked.into());
        if let Some(sha256) = &exec.sha256 {
            let hash = json!([{"algorithm": "SHA-256", "algorithm_id": 3, "value": shown(sha256)}]);
            file.insert("hashes".to_owned(), hash);
        }
        if let Some(size) = exec.size {
            file.insert("size".to_owned(), size.into());
        }
    }
    let mut event = launched(place, header, workload, message, &file);
    event.guard("argv_truncated", exec.argv_truncated);
    event.guard("argv_sha256", shown(&exec.argv_sha256));
    event.with("process", |process| {
        process.insert("cmd_line".to_owned(), line(&exec.argv).into());
        process.insert("working_directory".to_owned(), text(&exec.cwd).into());
    });
    event
}

fn executable(path: Option<&Text>, (device, inode, generation): (u32, u64, u32)) -> Value {
    let mut file = json!({
        "name": name_of(path, inode), "type": "Executable File", "type_id": 8,
        "uid": format!("{device}:{inode}:{generation}"),
    });
    if let (Some(path), Some(file)) = (path, file.as_object_mut()) {
        file.insert("path".to_owned(), text(path).into());
    }
    file
}

fn launched(
    place: &Place<'_>,
    header: &Header,
    workload: Option<&WorkloadFacts>,
    message: &str,
    file: &Value,
) -> Event {
    let mut event = Event::new(place, header, PROCESS, (1, "Launch"), message);
    let name = file.get("name").cloned().unwrap_or_default();
    let mut process = json!({"name": name, "file": file});
    if let Some(process) = process.as_object_mut() {
        match workload {
            Some(workload) => {
                process.insert("pid".to_owned(), workload.pid.into());
                process.insert("user".to_owned(), user(workload));
            }
            // The schema wants something that tells processes apart; these were many.
            None => {
                process.insert("uid".to_owned(), name);
            }
        }
    }
    event
        .set("process", process)
        .named("launch_type_id", "launch_type", (3, "Exec"));
    event.device(place, header, None);
    event
}

fn network(place: &Place<'_>, header: &Header, message: &str, connect: &ConnectAction) -> Event {
    let listens = connect.how == ConnectHow::Listen;
    let activity = if listens { (7, "Listen") } else { (1, "Open") };
    let mut event = Event::new(place, header, NETWORK, activity, message);
    // Actor and device of these are of this profile.
    event.profile("host").device(place, header, None);
    let local = !matches!(connect.peer, Peer::Ip { .. });
    let endpoint = match &connect.peer {
        Peer::Ip { address, port, scope } => {
            let mut endpoint = json!({"ip": address.to_string(), "port": port});
            if let (Some(scope), Some(endpoint)) = (scope, endpoint.as_object_mut()) {
                endpoint.insert("interface_uid".to_owned(), scope.to_string().into());
            }
            endpoint
        }
        peer => json!({"name": unix_name(peer, MESSAGE)}),
    };
    let direction = match (local, listens) {
        (true, _) => (4, "Local"),
        (false, true) => (1, "Inbound"),
        (false, false) => (2, "Outbound"),
    };
    let protocol = match connect.protocol.as_str() {
        "tcp" if !local => Some(6),
        "udp" if !local => Some(17),
        _ => None,
    };
    let mut info = json!({"direction_id": direction.0, "direction": direction.1,
                          "protocol_name": visible_fold(&connect.protocol, 32)});
    if let (Some(number), Some(info)) = (protocol, info.as_object_mut()) {
        info.insert("protocol_num".to_owned(), number.into());
    }
    event.set("connection_info", info);
    event.set(if listens { "src_endpoint" } else { "dst_endpoint" }, endpoint);
    event.guard("how", json!(connect.how));
    event
}

fn file_change(place: &Place<'_>, header: &Header, message: &str, action: &FileAction) -> Event {
    let activity = match action.operation {
        FileOperation::Open => (14, "Open"),
        FileOperation::Create
        | FileOperation::Mkdir
        | FileOperation::Mknod
        | FileOperation::Tmpfile
        | FileOperation::Symlink
        | FileOperation::Link => (1, "Create"),
        FileOperation::Truncate | FileOperation::Write => (3, "Update"),
        FileOperation::Unlink | FileOperation::Rmdir => (4, "Delete"),
        FileOperation::Rename => (5, "Rename"),
        FileOperation::Chmod | FileOperation::Chown | FileOperation::Xattr => (6, "Set Attributes"),
    };
    let mut event = Event::new(place, header, FILE, activity, message);
    event.device(place, header, None);
    let path = action.path.as_ref().or(action.path_in_file_system.as_ref());
    let mut file = file_object(path, action);
    if let Some(file) = file.as_object_mut() {
        if let Some(size) = action.old_size {
            file.insert("size".to_owned(), size.into());
        }
        // Of a name it is the directory's: that is not the file.
        file.insert(
            "uid".to_owned(),
            format!("{}:{}:{}", action.device, action.inode, action.generation).into(),
        );
    }
    event.set("file", file);
    if let Some(new_path) = &action.new_path {
        event.set("file_result", file_object(Some(new_path), action));
    }
    event.guard("operation", action.operation.word());
    event.guard("flags", json!(action.flags));
    if let Some(target) = &action.target {
        event.guard("target", text(target));
    }
    event
}

fn file_object(path: Option<&Text>, action: &FileAction) -> Value {
    let (id, caption) = sort(action);
    let mut file = json!({"name": name_of(path, action.inode), "type_id": id, "type": caption});
    if let (Some(path), Some(file)) = (path, file.as_object_mut()) {
        file.insert("path".to_owned(), text(path).into());
    }
    file
}

fn sort(action: &FileAction) -> Named {
    if action.directory {
        return (2, "Folder");
    }
    if action.operation == FileOperation::Symlink {
        return (7, "Symbolic Link");
    }
    match action.old_mode.or(action.mode).unwrap_or(0) & 0o170_000 {
        0o100_000 => (1, "Regular File"),
        0o040_000 => (2, "Folder"),
        0o020_000 => (3, "Character Device"),
        0o060_000 => (4, "Block Device"),
        0o140_000 => (5, "Local Socket"),
        0o010_000 => (6, "Named Pipe"),
        0o120_000 => (7, "Symbolic Link"),
        _ => (0, "Unknown"),
    }
}

/// The last part of a path; the inode of a file whose path is not known.
fn name_of(path: Option<&Text>, inode: u64) -> String {
    use std::os::unix::ffi::OsStrExt as _;
    let Some(path) = path else {
        return format!("inode {inode}");
    };
    let bytes = Path::new(std::ffi::OsStr::from_bytes(path.as_bytes()));
    bytes
        .file_name()
        .map_or_else(|| text(path), |name| text(&Text::from(name.as_bytes())))
}
