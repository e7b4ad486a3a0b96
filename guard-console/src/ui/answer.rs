//! The answer section of a card: what stands where the buttons are, and what came of it.
//!
//! Owns its view model, which changes in place while the rest of the card stays. It must never offer an answer to
//! somebody who may not give one.

use askama::Template;
use guard_evidence::text::{visible, visible_fold};
use guard_proto::rest::{ChangeView, RequestState};

use super::markup::span;
use crate::app::requests::Details;
use crate::app::{Error, Result};
use crate::time::{Millis, now, parse_rfc3339, rfc3339};

#[derive(Template)]
#[template(path = "answer.html")]
pub(super) struct AnswerView {
    pub(super) id: String,
    pub(super) state: &'static str,
    pub(super) digest: String,
    version: String,
    error: Option<String>,
    reason: String,
    csrf: String,
    /// What changed lately about who may decide it.
    marks: Vec<Mark>,
    decisions: Vec<Decision>,
    ended: bool,
    ended_line: Option<String>,
    outcome: Option<String>,
    why_not: Option<String>,
    /// What approving for longer would cover.
    grantable: Option<String>,
    expires_ms: Option<Millis>,
    expires: String,
    left: String,
}

pub(super) struct Decision {
    by: String,
    verdict: String,
    reason: String,
    at: String,
    at_ms: Millis,
    /// Why it no longer counts.
    void: Option<String>,
}

/// One change of who may decide.
pub(super) struct Mark {
    pub(super) index: u64,
    pub(super) kind: String,
    pub(super) what: String,
    pub(super) by: String,
    pub(super) at: String,
    pub(super) at_ms: Millis,
    pub(super) ago: String,
    pub(super) why: String,
    pub(super) digest: String,
    pub(super) short: String,
}

impl Mark {
    pub(super) fn of(change: &ChangeView) -> Self {
        let at_ms = parse_rfc3339(&change.at).unwrap_or(0);
        Self {
            index: change.index,
            kind: change.kind.clone(),
            what: change.what.clone(),
            by: change.by_words.clone(),
            at: change.at.clone(),
            at_ms,
            ago: span(now() - at_ms),
            why: change
                .why
                .as_deref()
                .map(|why| visible_fold(why, 300))
                .unwrap_or_default(),
            short: change.digest.chars().take(12).collect(),
            digest: change.digest.clone(),
        }
    }
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
        "{}-{}-{}-{}-{}-{may}",
        d.row.state.as_str(),
        d.answers.len(),
        d.answers.iter().filter(|a| a.void_because.is_some()).count(),
        d.marks.first().map_or(0, |newest| newest.index),
        d.row.outcome.as_deref().unwrap_or("none")
    )
}

pub(super) fn answer_section(d: &Details, csrf: &str, attempt: Attempt) -> Result<String> {
    answer_view(d, csrf, attempt).render().map_err(Error::from)
}

pub(super) fn answer_view(d: &Details, csrf: &str, attempt: Attempt) -> AnswerView {
    let row = &d.row;
    AnswerView {
        id: row.id.clone(),
        state: row.state.as_str(),
        digest: row.digest.clone(),
        version: version(d),
        error: attempt.error,
        reason: attempt.reason,
        csrf: csrf.to_owned(),
        marks: d.marks.iter().map(Mark::of).collect(),
        decisions: d
            .answers
            .iter()
            .map(|a| Decision {
                by: a.username.clone(),
                verdict: a.verdict.clone(),
                reason: visible(&a.reason),
                at: rfc3339(a.at),
                at_ms: a.at,
                void: a.void_because.as_deref().map(visible),
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
        grantable: d.grantable.clone(),
        expires_ms: row.expires_at,
        expires: row.expires_at.map(rfc3339).unwrap_or_default(),
        left: row.expires_at.map(|at| span(at - now())).unwrap_or_default(),
    }
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
        .filter(|a| a.verdict == verdict && a.void_because.is_none())
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
