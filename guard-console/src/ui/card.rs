//! The request card, its answer section and its row: what UX asks for, in its order.
//!
//! Owns the view models. Pieces of markup are made here only by [`piece`] and [`marked`], which escape what they are
//! given; everything else is escaped by the templates.

use askama::Template;
use guard_evidence::record::Claims;
use guard_evidence::statement::{Part, Style, sentence};
use guard_evidence::text::{Text, shell_words, visible, visible_fold};
use guard_proto::rest::RequestState;

use crate::app::answer::counted;
use crate::app::card::is_danger_word;
use crate::app::requests::Details;
use crate::app::{Error, Result};
use crate::store::Before;
use crate::time::{Millis, now, rfc3339};

/// Longest argument or path shown at once, in characters; longer ones fold in the middle and open.
const LONG: usize = 400;

#[derive(Template)]
#[template(path = "card.html")]
struct CardView {
    id: String,
    state: &'static str,
    sentence: Vec<String>,
    risks: Vec<String>,
    rules: Vec<Rule>,
    groups: String,
    quorum: u32,
    claims: Vec<Claim>,
    path: String,
    given: Option<String>,
    sha256: Option<Sha256View>,
    size: Option<String>,
    argv: Vec<Argument>,
    argv_note: Option<String>,
    cwd: String,
    environment: Vec<String>,
    environment_count: u64,
    label: String,
    owner: Option<String>,
    host: String,
    kernel: String,
    container: Option<String>,
    user: String,
    tree: Vec<Process>,
    cgroup: String,
    before: Vec<String>,
    asked: String,
    asked_ms: Millis,
    policy: String,
    // Of the answer section, which the card includes.
    digest: String,
    version: String,
    error: Option<String>,
    reason: String,
    csrf: String,
    decisions: Vec<Decision>,
    ended: bool,
    ended_line: Option<String>,
    outcome: Option<String>,
    why_not: Option<String>,
    expires_ms: Option<Millis>,
    expires: String,
    left: String,
}

#[derive(Template)]
#[template(path = "answer.html")]
struct AnswerView {
    id: String,
    state: &'static str,
    digest: String,
    version: String,
    error: Option<String>,
    reason: String,
    csrf: String,
    decisions: Vec<Decision>,
    ended: bool,
    ended_line: Option<String>,
    outcome: Option<String>,
    why_not: Option<String>,
    expires_ms: Option<Millis>,
    expires: String,
    left: String,
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

struct Claim {
    name: &'static str,
    value: String,
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
}

struct Decision {
    by: String,
    verdict: String,
    reason: String,
    at: String,
    at_ms: Millis,
}

/// What the answer section shows besides the request: after a refused attempt.
#[derive(Debug, Default)]
pub(super) struct Attempt {
    pub(super) error: Option<String>,
    pub(super) reason: String,
}

/// Changes when the answer section has to be drawn anew.
pub(super) fn version(d: &Details) -> String {
    let may = if d.why_not.is_none() { "may" } else { "may-not" };
    format!(
        "{}-{}-{}-{may}",
        d.row.state.as_str(),
        d.answers.len(),
        d.row.outcome.as_deref().unwrap_or("none")
    )
}

pub(super) fn card(d: &Details, earlier: Before, csrf: &str) -> Result<String> {
    let record = &d.card.record;
    let exec = d.card.exec();
    let answer = answer_view(d, csrf, Attempt::default());
    let path = exec.path.as_ref().unwrap_or(&exec.given);
    let user = record
        .workload
        .user
        .as_deref()
        .map_or("?".to_owned(), |u| visible_fold(u, 64));
    let view = CardView {
        sentence: styled(&sentence(record)),
        risks: risks(d, earlier),
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
        claims: record.claims.as_ref().map(claims).unwrap_or_default(),
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
        label: visible(&record.workload.label),
        owner: d.owner.clone(),
        host: visible_fold(&d.row.host_name, 100),
        kernel: visible_fold(&record.host.kernel, 100),
        container: record.workload.container_id.as_ref().map(|c| visible_fold(c, 100)),
        user: match record.workload.login_uid {
            Some(login) if login != record.workload.uid => {
                format!("{user} (uid {}), signed in as uid {login}", record.workload.uid)
            }
            _ => format!("{user} (uid {})", record.workload.uid),
        },
        tree: tree(d),
        cgroup: record.workload.cgroup.fold(LONG),
        before: before(d, earlier),
        asked: rfc3339(d.row.asked_at),
        asked_ms: d.row.asked_at,
        policy: visible_fold(&record.why.policy_digest, 64),
        id: answer.id,
        state: answer.state,
        digest: answer.digest,
        version: answer.version,
        error: answer.error,
        reason: answer.reason,
        csrf: answer.csrf,
        decisions: answer.decisions,
        ended: answer.ended,
        ended_line: answer.ended_line,
        outcome: answer.outcome,
        why_not: answer.why_not,
        expires_ms: answer.expires_ms,
        expires: answer.expires,
        left: answer.left,
    };
    view.render().map_err(Error::from)
}

pub(super) fn answer_section(d: &Details, csrf: &str, attempt: Attempt) -> Result<String> {
    answer_view(d, csrf, attempt).render().map_err(Error::from)
}

fn answer_view(d: &Details, csrf: &str, attempt: Attempt) -> AnswerView {
    let row = &d.row;
    AnswerView {
        id: row.id.clone(),
        state: row.state.as_str(),
        digest: row.digest.clone(),
        version: version(d),
        error: attempt.error,
        reason: attempt.reason,
        csrf: csrf.to_owned(),
        decisions: d
            .answers
            .iter()
            .map(|a| Decision {
                by: a.username.clone(),
                verdict: a.verdict.clone(),
                reason: visible(&a.reason),
                at: rfc3339(a.at),
                at_ms: a.at,
            })
            .collect(),
        ended: row.state != RequestState::Pending,
        // Who approved or denied stands above it already.
        ended_line: row
            .ended_because
            .as_ref()
            .map(|because| format!("{}: {because}.", state_word(row.state))),
        outcome: outcome(d),
        why_not: d.why_not.clone(),
        expires_ms: row.expires_at,
        expires: row.expires_at.map(rfc3339).unwrap_or_default(),
        left: row.expires_at.map(|at| span(at - now())).unwrap_or_default(),
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

/// Those whose answers were the outcome.
pub(super) fn decided_by(d: &Details) -> String {
    let verdict = if d.row.state == RequestState::Denied {
        "deny"
    } else {
        "approve"
    };
    let names = d
        .answers
        .iter()
        .filter(|a| a.verdict == verdict)
        .map(|a| a.username.as_str());
    names.collect::<Vec<_>>().join(", ")
}

pub(super) fn state_word(state: RequestState) -> &'static str {
    match state {
        RequestState::Pending => "Pending",
        RequestState::Approved => "Approved",
        RequestState::Denied => "Denied",
        RequestState::TimedOut => "Timed out",
        RequestState::Withdrawn => "Withdrawn",
    }
}

/// What then happened on the host, in words.
pub(super) fn outcome(d: &Details) -> Option<String> {
    let row = &d.row;
    let words = match row.outcome.as_deref() {
        Some("ran") => "It ran.",
        Some("denied") => "The program was told: Operation not permitted.",
        Some("failed") => "It went on and failed by itself.",
        Some("killed") => "It was killed before its first instruction.",
        Some("died") => "It was gone before the answer took effect.",
        _ => match (&row.decision_refused, row.state) {
            (Some(why), _) => return Some(format!("The host did not accept the decision: {why}")),
            (None, RequestState::Approved | RequestState::Denied) if row.decision_received_at.is_none() => {
                "The host does not have the decision yet."
            }
            _ => return None,
        },
    };
    Some(match &row.outcome_detail {
        Some(detail) => format!("{words} {detail}"),
        None => words.to_owned(),
    })
}

/// One escaped piece of text in a span of a class of ours.
fn piece(text: &str, class: &'static str) -> String {
    let text = escape(text);
    if class.is_empty() {
        text
    } else {
        format!("<span class=\"{class}\">{text}</span>")
    }
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&#34;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

/// A sentence as markup.
pub(super) fn styled(parts: &[Part]) -> Vec<String> {
    parts
        .iter()
        .map(|part| match part.style {
            Style::Plain => piece(&part.text, ""),
            Style::Who => piece(&part.text, "who"),
            Style::Where => piece(&part.text, "where"),
            Style::Danger => format!("<strong class=\"danger\">{}</strong>", escape(&part.text)),
            Style::What => format!("<code>{}</code>", marked(&part.text).concat()),
        })
        .collect()
}

/// Shown text with its danger words in bold.
fn marked(shown: &str) -> Vec<String> {
    let ends_word = |c: char| c.is_whitespace() || ";|&()'\"`$<>".contains(c);
    shown
        .split_inclusive(ends_word)
        .flat_map(|run| {
            let word = run.trim_end_matches(ends_word);
            let rest = &run[word.len()..];
            let word = if is_danger_word(&Text::from(word)) {
                format!("<strong class=\"danger\">{}</strong>", escape(word))
            } else {
                escape(word)
            };
            [word, escape(rest)]
        })
        .collect()
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

/// The policy's words and facts; the most telling three.
fn risks(d: &Details, earlier: Before) -> Vec<String> {
    let mut risks = d.card.risks();
    if earlier.program == 0 && earlier.label > 0 {
        risks.push("First time this workload asks for this program.".to_owned());
    }
    risks.truncate(3);
    risks
}

fn claims(claims: &Claims) -> Vec<Claim> {
    [
        ("Task", &claims.task),
        ("Ticket", &claims.ticket),
        ("Tool call", &claims.tool_call),
        ("Agent", &claims.agent),
        ("Session", &claims.session),
    ]
    .into_iter()
    .filter_map(|(name, value)| {
        Some(Claim {
            name,
            value: value.as_ref()?.fold(LONG),
        })
    })
    .collect()
}

/// The outermost process first.
fn tree(d: &Details) -> Vec<Process> {
    let ancestry = &d.card.record.workload.ancestry;
    ancestry
        .iter()
        .rev()
        .map(|p| {
            let what = if p.argv.is_empty() {
                p.comm.fold(60)
            } else {
                visible_words(&p.argv)
            };
            Process {
                what,
                pid: format!("pid {}", p.pid),
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

fn before(d: &Details, b: Before) -> Vec<String> {
    let label = visible(&d.row.label);
    let times = |n: u64| {
        if n == 1 {
            "once".to_owned()
        } else {
            format!("{n} times")
        }
    };
    let mut lines = Vec::new();
    if b.same > 0 {
        lines.push(format!(
            "Asked for exactly this {} before: {} approved, {} denied.",
            times(b.same),
            b.same_approved,
            b.same_denied
        ));
    } else if b.program > 0 {
        lines.push(format!(
            "Never asked for exactly this; for this program {} before.",
            times(b.program)
        ));
    } else if b.label > 0 {
        lines.push(format!(
            "Never asked for this program; {label} asked {} in all.",
            times(b.label)
        ));
    } else {
        lines.push(format!("The first request of {label}."));
    }
    lines
}

/// As the page's own clock writes it.
pub(super) fn span(ms: Millis) -> String {
    let s = (ms / 1_000).max(0);
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {:02} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {:02} min", s / 3_600, s / 60 % 60),
        _ => format!("{} d {} h", s / 86_400, s / 3_600 % 24),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} bytes"),
        10_000..10_000_000 => format!("{} kB", bytes / 1_000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn danger_is_bold_and_everything_escaped() {
        assert_eq!(
            marked("git push --force '<b>'").concat(),
            "git push <strong class=\"danger\">--force</strong> &#39;&lt;b&gt;&#39;"
        );
        assert_eq!(
            marked("sh -c 'ls;/bin/rm -rf /'").concat(),
            "sh -c &#39;ls;<strong class=\"danger\">/bin/rm</strong> <strong class=\"danger\">-rf</strong> /&#39;"
        );
        assert_eq!(marked("⟨U+202E⟩ä").concat(), "⟨U+202E⟩ä");
    }

    #[test]
    fn spans() {
        assert_eq!(span(-5), "0 s");
        assert_eq!(span(184_000), "3 min 04 s");
        assert_eq!(span(90_000_000), "1 d 1 h");
    }
}
