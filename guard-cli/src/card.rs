//! One request as its card, in the order that every surface keeps: the sentence, what could go wrong, why it asks,
//! what the agent says, exactly what, who and where, the answer.
//!
//! Owns the words. It is given the console's view and the host's record, whose digest an answer is bound to. Facts
//! come from the record alone.

use guard_evidence::record::{
    Action, Claims, ConnectAction, ConnectHow, ExecAction, FileAction, Peer, Predicate, RequestRecord, Statement,
};
use guard_evidence::statement::{sentence, sha256_hex, unix_name};
use guard_evidence::text::{Text, defuse, shell_words, visible, visible_fold};
use guard_evidence::{context, dsse, writing};
use guard_proto::rest::{DecisionView, Request, RequestState};

use crate::client::{Client, segment};
use crate::failure::Failure;
use crate::output;

/// Longest text in one line of a card, in characters. Folding is in the middle.
const LINE: usize = 400;

// Both sides of the REST API mean the same size.
const _: () = assert!(dsse::RECORD_BYTES == guard_proto::limits::RECORD_BYTES);

/// The host's record behind a request, checked against the digest that an answer to it names.
pub(crate) async fn record(client: &Client, request: &Request) -> Result<RequestRecord, Failure> {
    let envelope = client
        .bytes(&format!("/requests/{}/record", segment(&request.id)))
        .await?;
    from_envelope(&envelope, request)
}

fn from_envelope(envelope: &[u8], request: &Request) -> Result<RequestRecord, Failure> {
    let bad = |why: String| {
        Failure::unknown(format!(
            "the record of request {} cannot be shown: {why}",
            defuse(&request.id)
        ))
        .next("do not answer it; tell the console's administrator")
    };
    let envelope = dsse::parse(envelope).map_err(|e| bad(e.to_string()))?;
    let payload = envelope.unverified_payload();
    if sha256_hex(payload) != request.digest {
        return Err(bad("the console names another digest for it".to_owned()));
    }
    let statement = Statement::from_payload(payload).map_err(|e| bad(e.to_string()))?;
    match statement.predicate {
        Predicate::Request(record) if record.request_id == request.id => Ok(*record),
        _ => Err(bad("it belongs to another request".to_owned())),
    }
}

/// Prints the card.
pub(crate) fn print(request: &Request, record: &RequestRecord) -> Result<(), Failure> {
    output::line(&output::sentence(&sentence(record)))?;
    output::line("")?;
    output::fields(&fields(request, record))
}

fn fields(request: &Request, record: &RequestRecord) -> Vec<(&'static str, Vec<String>)> {
    let mut out: Vec<(&'static str, Vec<String>)> = Vec::new();
    let mut risks: Vec<String> = match &record.action {
        Action::File(file) => writing::risks(file).into_iter().map(str::to_owned).collect(),
        Action::Exec(_) | Action::Connect(_) => Vec::new(),
    };
    risks.extend(record.why.risks.iter().map(|r| visible_fold(r, LINE)));
    out.push(("could go wrong", risks));
    let mut why: Vec<String> = record
        .why
        .rules
        .iter()
        .map(|r| format!("{} ({})", visible_fold(&r.description, LINE), visible(&r.id)))
        .collect();
    why.push(format!(
        "asks {}: {} of {} approved",
        asks(request),
        request.approvals,
        request.quorum
    ));
    out.push(("why it asks", why));
    out.push(("the agent says", record.claims.as_ref().map(claims).unwrap_or_default()));

    match &record.action {
        Action::Exec(exec) => exec_fields(exec, &mut out),
        Action::Connect(connect) => connect_fields(connect, &mut out),
        Action::File(file) => out.extend(file_fields(file)),
    }

    let workload = &record.workload;
    let owner = request
        .owner
        .as_deref()
        .map_or_else(|| "without an owner".to_owned(), |o| format!("owned by {}", defuse(o)));
    out.push(("label", vec![format!("{}, {owner}", visible(&workload.label))]));
    out.push((
        "host",
        vec![format!(
            "{}, kernel {}",
            visible(&record.host.name),
            visible_fold(&record.host.kernel, 80)
        )],
    ));
    let context = context::lines(record).into_iter();
    out.push((
        "more",
        context
            .map(|(name, value)| format!("{}: {value}", name.to_lowercase()))
            .collect(),
    ));
    let user = workload.user.as_deref().map_or_else(|| "no name".to_owned(), visible);
    let login = workload
        .login_uid
        .map(|uid| format!(", signed in as {uid}"))
        .unwrap_or_default();
    out.push(("user", vec![format!("{} ({user}){login}", workload.uid)]));
    // The first outside the workload comes first, as one reads a tree.
    let tree: Vec<String> = workload
        .ancestry
        .iter()
        .enumerate()
        .rev()
        .map(|(index, p)| {
            if context::is_inside(record, index) {
                process(p)
            } else {
                format!("{} (outside)", process(p))
            }
        })
        .collect();
    out.push(("processes", vec![tree.join(" ▸ ")]));
    out.push(("cgroup", vec![workload.cgroup.fold(LINE)]));
    out.push((
        "asked",
        vec![format!(
            "{} ({} ago)",
            output::local(&request.asked_at),
            output::span(&request.asked_at, None)
        )],
    ));
    out.push((
        "until",
        request
            .expires_at
            .iter()
            .map(|at| format!("{}; then it is denied", output::local(at)))
            .collect(),
    ));
    out.push(("request", vec![defuse(&request.id)]));
    out.push(("digest", vec![defuse(&request.digest)]));
    out.push(("answers", request.decisions.iter().map(answer).collect()));
    out.push((
        "changed lately",
        request.recent_changes.iter().map(crate::cmd::mark).collect(),
    ));
    out.push(("state", state(request)));
    out.retain(|(_, values)| !values.is_empty());
    out
}

fn exec_fields(exec: &ExecAction, out: &mut Vec<(&'static str, Vec<String>)>) {
    let mut argv: Vec<String> = exec.argv.iter().map(|word| word.fold(LINE)).collect();
    if exec.argv_truncated {
        argv.push(format!(
            "⟨… {} arguments in all; SHA-256 of all {}⟩",
            exec.argv_count,
            visible(&exec.argv_sha256)
        ));
    }
    out.push(("arguments", argv));
    let mut executable = vec![exec.path.as_ref().map_or_else(
        || {
            format!(
                "no path of this host (in another mount namespace, or too long to be read whole); given as {}",
                exec.given.fold(LINE)
            )
        },
        |path| path.fold(LINE),
    )];
    if exec.path.as_ref() != Some(&exec.given) && exec.path.is_some() {
        executable.push(format!("given as {}", exec.given.fold(LINE)));
    }
    if exec.unlinked {
        executable.push("its name has been deleted".to_owned());
    }
    executable.push(match (&exec.sha256, exec.size) {
        (Some(sha256), Some(size)) => format!("SHA-256 {} ({size} bytes)", visible(sha256)),
        (Some(sha256), None) => format!("SHA-256 {}", visible(sha256)),
        _ => "SHA-256 not known: it could not be read in time".to_owned(),
    });
    out.push(("executable", executable));
    out.push(("directory", vec![exec.cwd.fold(LINE)]));
    let chosen = exec.environment.iter().map(|e| e.fold(LINE));
    let of_all = (exec.environment_count > 0).then(|| format!("{} variables in all", exec.environment_count));
    out.push(("environment", chosen.chain(of_all).collect()));
}

fn connect_fields(connect: &ConnectAction, out: &mut Vec<(&'static str, Vec<String>)>) {
    match &connect.peer {
        Peer::Ip { address, port, scope } => {
            let scope = scope
                .map(|scope| format!(" on network interface {scope}"))
                .unwrap_or_default();
            out.push(("address", vec![format!("{address}{scope}")]));
            out.push(("port", vec![port.to_string()]));
        }
        peer => out.push(("unix socket", vec![unix_name(peer, LINE)])),
    }
    out.push(("protocol", vec![visible_fold(&connect.protocol, 32)]));
    let how = match connect.how {
        ConnectHow::Connect => "it connects",
        ConnectHow::Listen => "it listens where other hosts can reach it",
        ConnectHow::Message => "it sends a message to this destination",
        ConnectHow::ConnectedBefore => {
            "it sends on a connection that was made before it was labelled, or by somebody else"
        }
    };
    out.push((
        "how",
        vec![
            how.to_owned(),
            "an approval holds for this one socket and this peer".to_owned(),
        ],
    ));
}

/// The words are the page's, in the terminal's small letters.
fn file_fields(file: &FileAction) -> Vec<(&'static str, Vec<String>)> {
    let small = |name| match name {
        "Operation" => "operation",
        "Path" => "path",
        "New path" => "new path",
        "Points at" => "points at",
        "Attribute" => "attribute",
        "Mode" => "mode",
        "Owner" => "owner",
        "Mode now" => "mode now",
        "Size now" => "size now",
        "Inode" => "inode",
        _ => "an approval",
    };
    writing::facts(file, LINE)
        .into_iter()
        .map(|(name, value)| (small(name), vec![value]))
        .collect()
}

fn claims(claims: &Claims) -> Vec<String> {
    let quoted = |name: &str, text: &Option<Text>| text.as_ref().map(|text| format!("{name}: \"{}\"", text.fold(LINE)));
    [
        quoted("agent", &claims.agent),
        quoted("task", &claims.task),
        quoted("ticket", &claims.ticket),
        quoted("tool call", &claims.tool_call),
        quoted("session", &claims.session),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn process(process: &guard_evidence::record::ProcessFacts) -> String {
    if process.argv.is_empty() {
        return process.comm.fold(32);
    }
    visible_shown(&shell_words(&process.argv), 60)
}

/// Folds text that is already visible.
fn visible_shown(shown: &str, max: usize) -> String {
    let chars: Vec<char> = shown.chars().collect();
    if chars.len() <= max {
        return shown.to_owned();
    }
    let half = (max - 1) / 2;
    let end = |range: &[char]| range.iter().collect::<String>();
    format!("{}…{}", end(&chars[..half]), end(&chars[chars.len() - half..]))
}

/// Whom the request asks: `"code-push"`, or any approver.
pub(crate) fn asks(request: &Request) -> String {
    groups(&request.approver_groups)
}

/// The same for a list of groups.
pub(crate) fn groups(groups: &[String]) -> String {
    if groups.is_empty() {
        return "any approver".to_owned();
    }
    let quoted: Vec<String> = groups.iter().map(|g| format!("\"{}\"", visible(g))).collect();
    format!("approvers of {}", quoted.join(" and "))
}

fn answer(decision: &DecisionView) -> String {
    let verb = if decision.verdict == "approve" {
        "approved"
    } else {
        "denied"
    };
    let reason = if decision.reason.is_empty() {
        String::new()
    } else {
        format!(": \"{}\"", defuse(&decision.reason))
    };
    let void = decision
        .void_because
        .as_deref()
        .map(|why| format!("; no longer counts: {}", defuse(why)))
        .unwrap_or_default();
    format!(
        "{verb} by {} at {} ({}){reason}{void}",
        defuse(&decision.by),
        output::local(&decision.at),
        defuse(&decision.channel)
    )
}

fn state(request: &Request) -> Vec<String> {
    let mut out = vec![state_word(request.state).to_owned()];
    if request.state == RequestState::Pending {
        if request.may_answer {
            out.push(format!("guard requests approve {} --reason …", defuse(&request.id)));
            out.push(format!("guard requests deny {} --reason …", defuse(&request.id)));
        } else if let Some(why) = &request.why_not {
            out.push(format!("you cannot answer it: {}", defuse(why)));
        }
    } else {
        out[0] = ended(request);
    }
    if let Some(outcome) = &request.outcome {
        let detail = request.outcome_detail.as_deref().filter(|d| !d.is_empty());
        out.push(match detail {
            Some(detail) => format!("the action {}: {}", defuse(outcome), defuse(detail)),
            None => format!("the action {}", defuse(outcome)),
        });
    }
    out
}

/// How a request ended, by whom and when.
pub(crate) fn ended(request: &Request) -> String {
    let mut text = state_word(request.state).to_owned();
    let counted = request.decisions.iter().filter(|d| d.void_because.is_none());
    let names: Vec<String> = counted.map(|d| defuse(&d.by)).collect();
    if !names.is_empty() {
        text.push_str(&format!(" by {}", names.join(", ")));
    }
    if let Some(at) = &request.ended_at {
        text.push_str(&format!(
            " at {} after {}",
            output::local(at),
            output::span(&request.asked_at, Some(at))
        ));
    }
    text
}

/// A state in words for people.
pub(crate) fn state_word(state: RequestState) -> &'static str {
    match state {
        RequestState::TimedOut => "timed out",
        other => other.as_str(),
    }
}
