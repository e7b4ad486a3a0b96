//! The request card and its row: what UX asks for, in its order.
//!
//! Owns their view models. Whatever a workload wrote comes through `guard_evidence::text`; the templates escape it, or
//! [`super::markup`] does where parts of it are bold.

use askama::Template;
use guard_evidence::context;
use guard_evidence::record::{Action, ExecAction};
use guard_evidence::statement::sentence;
use guard_evidence::text::{Text, shell_words, visible, visible_fold};
use guard_proto::rest::RequestState;

use super::answer::{AnswerView, Attempt, answer_view, decided_by, state_word};
use super::markup::{marked, size, span, styled};
use crate::app::answer::counted;
use crate::app::content::{self, LONG};
use crate::app::requests::Details;
use crate::app::{Error, Result};
use crate::store::Before;
use crate::time::{Millis, now, rfc3339};

#[derive(Template)]
#[template(path = "card.html")]
struct CardView {
    sentence: Vec<String>,
    risks: Vec<String>,
    rules: Vec<Rule>,
    groups: String,
    quorum: u32,
    claims: Vec<(&'static str, String)>,
    /// One of the two.
    exec: Option<ExecView>,
    connect: Vec<(&'static str, String)>,
    label: String,
    owner: Option<String>,
    host: String,
    kernel: String,
    /// Container, image, path inside, how it is held …: names and values.
    context: Vec<(&'static str, String)>,
    user: String,
    tree: Vec<Process>,
    cgroup: String,
    before: String,
    asked: String,
    asked_ms: Millis,
    policy: String,
    answer: AnswerView,
}

struct ExecView {
    path: String,
    given: Option<String>,
    sha256: Option<Sha256View>,
    size: Option<String>,
    argv: Vec<Argument>,
    argv_note: Option<String>,
    cwd: String,
    environment: Vec<String>,
    environment_count: u64,
}

#[derive(Template)]
#[template(path = "row.html")]
struct RowView {
    id: String,
    state: &'static str,
    may_answer: bool,
    sentence: Vec<String>,
    asked: String,
    asked_ms: Millis,
    waited: String,
    ended: String,
    quorum: u32,
    approvals: usize,
    why_not: Option<String>,
}

struct Rule {
    id: String,
    description: String,
}

struct Sha256View {
    full: String,
    short: String,
}

struct Argument {
    parts: Vec<String>,
    full: Option<String>,
    length: usize,
}

struct Process {
    what: String,
    pid: String,
    /// Of what started the workload.
    outside: bool,
}

pub(super) fn card(d: &Details, earlier: Before, csrf: &str) -> Result<String> {
    let record = &d.card.record;
    let view = CardView {
        sentence: styled(&sentence(record)),
        risks: content::risks(&d.card, earlier),
        rules: record
            .why
            .rules
            .iter()
            .map(|r| Rule {
                id: visible_fold(&r.id, 100),
                description: visible_fold(&r.description, 300),
            })
            .collect(),
        groups: record
            .why
            .approver_groups
            .iter()
            .map(|g| visible_fold(g, 80))
            .collect::<Vec<_>>()
            .join(", "),
        quorum: d.row.quorum,
        claims: record.claims.as_ref().map(content::claims).unwrap_or_default(),
        exec: match &record.action {
            Action::Exec(exec) => Some(exec_view(exec)),
            Action::Connect(_) | Action::File(_) => None,
        },
        connect: match &record.action {
            Action::Exec(_) => Vec::new(),
            Action::Connect(connect) => content::connect_facts(connect),
            Action::File(file) => guard_evidence::writing::facts(file, LONG),
        },
        label: visible(&record.workload.label),
        owner: d.owner.clone(),
        host: visible_fold(&d.row.host_name, 100),
        kernel: visible_fold(&record.host.kernel, 100),
        context: context::lines(record),
        user: content::user(record),
        tree: tree(d),
        cgroup: record.workload.cgroup.fold(LONG),
        before: content::before(record, earlier),
        asked: rfc3339(d.row.asked_at),
        asked_ms: d.row.asked_at,
        policy: visible_fold(&record.why.policy_digest, 64),
        answer: answer_view(d, csrf, Attempt::default()),
    };
    view.render().map_err(Error::from)
}

fn exec_view(exec: &ExecAction) -> ExecView {
    let path = exec.path.as_ref().unwrap_or(&exec.given);
    ExecView {
        path: path.fold(LONG),
        given: (exec.given != *path).then(|| exec.given.fold(LONG)),
        sha256: exec.sha256.as_ref().map(|s| Sha256View {
            full: visible_fold(s, 64),
            short: format!(
                "{}…",
                s.chars().take(16).filter(char::is_ascii_hexdigit).collect::<String>()
            ),
        }),
        size: exec.size.map(size),
        argv: exec.argv.iter().map(argument).collect(),
        argv_note: exec.argv_truncated.then(|| {
            format!(
                "{} arguments in all; the digest in the record covers every one of them.",
                exec.argv_count
            )
        }),
        cwd: exec.cwd.fold(LONG),
        environment: exec.environment.iter().map(|e| e.fold(LONG)).collect(),
        environment_count: exec.environment_count,
    }
}

pub(super) fn row(d: &Details) -> Result<String> {
    let row = &d.row;
    let view = RowView {
        id: row.id.clone(),
        state: row.state.as_str(),
        may_answer: d.why_not.is_none(),
        sentence: styled(&sentence(&d.card.record)),
        asked: rfc3339(row.asked_at),
        asked_ms: row.asked_at,
        waited: span(now() - row.asked_at),
        ended: match row.state {
            RequestState::Approved | RequestState::Denied => {
                format!("{} by {}", state_word(row.state), decided_by(d))
            }
            state => state_word(state).to_owned(),
        },
        quorum: row.quorum,
        approvals: counted(&d.answers, d.owner.as_deref())
            .filter(|a| a.verdict == "approve")
            .count(),
        why_not: d.why_not.clone().filter(|_| row.state == RequestState::Pending),
    };
    view.render().map_err(Error::from)
}

fn argument(text: &Text) -> Argument {
    let full = text.display();
    let length = full.chars().count();
    if full.is_empty() {
        return Argument {
            parts: vec!["<em>empty</em>".to_owned()],
            full: None,
            length,
        };
    }
    let folded = text.fold(LONG);
    Argument {
        parts: marked(&folded),
        full: (length > LONG).then_some(full),
        length,
    }
}

/// The outermost process first.
fn tree(d: &Details) -> Vec<Process> {
    let ancestry = &d.card.record.workload.ancestry;
    ancestry
        .iter()
        .enumerate()
        .rev()
        .map(|(index, p)| {
            let what = if p.argv.is_empty() {
                p.comm.fold(60)
            } else {
                visible_words(&p.argv)
            };
            Process {
                what,
                pid: format!("pid {}", p.pid),
                outside: !context::is_inside(&d.card.record, index),
            }
        })
        .collect()
}

fn visible_words(argv: &[Text]) -> String {
    let words = shell_words(argv);
    let count = words.chars().count();
    if count <= 160 {
        return words;
    }
    let head: String = words.chars().take(100).collect();
    let tail: String = words.chars().skip(count - 40).collect();
    format!("{head} … {tail}")
}
