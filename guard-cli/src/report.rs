//! The report for auditors: one page of HTML about what verification accepted.
//!
//! Owns what it says and how it is drawn; [`tally`] counts, [`controls`] maps. It is given a bundle that was judged. It must
//! never load anything, run anything, say that a control is satisfied, or count what verification did not accept.

mod controls;
mod tally;

use std::collections::HashMap;

use askama::Template;
use guard_evidence::bundle::Manifest;
use guard_evidence::record::{Predicate, RequestRecord};
use guard_evidence::text::visible_fold;
use guard_evidence::trust::Trust;
use guard_evidence::verify::{Examined, Level, Status};

use controls::{Support, ranges};
use tally::{Line, Outcomes, Tally};

/// Rows that one list shows.
const ROWS: usize = 500;
/// Findings of one section that are shown.
const FINDINGS: usize = 50;
const SHORT: usize = 200;

#[derive(Template)]
#[template(path = "report.html")]
struct Page {
    origin: String,
    status: &'static str,
    /// What the status means.
    meaning: &'static str,
    /// Class of the status.
    class: &'static str,
    asked: Vec<(&'static str, String)>,
    sections: Vec<SectionView>,
    kinds: Vec<(&'static str, Outcomes)>,
    total: Outcomes,
    median: String,
    p95: String,
    timed: usize,
    open: u64,
    /// Records that do not count.
    left_out: usize,
    records: usize,
    approvers: Vec<(String, String, tally::Answers)>,
    rules: Vec<(String, u64)>,
    lists: Vec<List>,
    hosts: Vec<(String, Vec<String>, bool)>,
    controls: Vec<ControlView>,
    version: &'static str,
}

struct SectionView {
    name: &'static str,
    summary: String,
    status: &'static str,
    findings: Vec<(&'static str, String)>,
    more: u64,
}

struct List {
    id: &'static str,
    title: &'static str,
    /// Headings of what, who and why.
    headings: [&'static str; 3],
    lines: Vec<Line>,
    more: usize,
    empty: &'static str,
}

struct ControlView {
    framework: &'static str,
    id: &'static str,
    title: &'static str,
    count: usize,
    records: String,
}

/// The page. `keys` says where the keys came from that the records were verified with.
///
/// # Errors
/// Never for what this module makes.
pub(crate) fn html(
    examined: &Examined,
    manifest: &Manifest,
    trust: &Trust,
    keys: &str,
) -> Result<String, askama::Error> {
    let mut tally = Tally::of(examined);
    let (status, class, meaning) = match examined.report.status {
        Status::Valid => ("VALID", "good", "Everything that the records claim is proved."),
        Status::Incomplete => (
            "INCOMPLETE",
            "doubt",
            "Nothing is wrong, but something is missing, so not everything can be told.",
        ),
        Status::Invalid => (
            "INVALID",
            "bad",
            "Something is wrong. Do not rely on this page before the findings below are explained.",
        ),
    };
    let mut total = Outcomes::default();
    for one in tally.kinds.values() {
        add(&mut total, one);
    }
    let accepted = examined.accepted().count();
    let page = Page {
        origin: visible_fold(&trust.console.origin, SHORT),
        status,
        meaning,
        class,
        asked: asked(manifest, &tally, keys),
        sections: sections(examined),
        total,
        median: tally.percentile(50).map_or_else(|| "–".to_owned(), duration),
        p95: tally.percentile(95).map_or_else(|| "–".to_owned(), duration),
        timed: tally.times.len(),
        open: tally.open,
        left_out: examined.records.len() - accepted,
        records: accepted,
        approvers: approvers(&tally),
        rules: std::mem::take(&mut tally.rules).into_iter().collect(),
        hosts: hosts(examined, trust),
        controls: support(examined),
        kinds: std::mem::take(&mut tally.kinds).into_iter().collect(),
        lists: lists(tally),
        version: env!("CARGO_PKG_VERSION"),
    };
    page.render()
}

fn add(total: &mut Outcomes, one: &Outcomes) {
    total.by_people += one.by_people;
    total.by_grant += one.by_grant;
    total.by_policy += one.by_policy;
    total.by_rules = total.by_rules.saturating_add(one.by_rules);
    total.denied_by_people += one.denied_by_people;
    total.denied_by_policy += one.denied_by_policy;
    total.denied_by_host += one.denied_by_host;
    total.timed_out += one.timed_out;
    total.killed += one.killed;
    total.ended += one.ended;
}

/// What was asked for, as the bundle itself says, and what came.
fn asked(manifest: &Manifest, tally: &Tally, keys: &str) -> Vec<(&'static str, String)> {
    let shown = |text: &Option<String>, none: &str| match text {
        Some(text) => visible_fold(text, SHORT),
        None => none.to_owned(),
    };
    let filter = &manifest.filter;
    vec![
        ("Host", shown(&filter.host, "every host")),
        ("Label", shown(&filter.label, "every label")),
        ("From", shown(&filter.from, "the beginning of the log")),
        ("To", shown(&filter.to, "the end of the log when the bundle was made")),
        ("Bundle made", visible_fold(&manifest.created_at, SHORT)),
        ("Records in it", manifest.records.to_string()),
        ("First record", shown(&tally.first, "none")),
        ("Last record", shown(&tally.last, "none")),
        ("Keys", keys.to_owned()),
    ]
}

fn sections(examined: &Examined) -> Vec<SectionView> {
    let sections = examined.report.sections.iter();
    sections
        .map(|section| {
            let mut worst: Vec<_> = section.findings.iter().collect();
            worst.sort_by_key(|finding| std::cmp::Reverse(finding.level));
            let findings: Vec<(&'static str, String)> = worst
                .iter()
                .take(FINDINGS)
                .map(|finding| {
                    let level = match finding.level {
                        Level::Note => "note",
                        Level::Incomplete => "INCOMPLETE",
                        Level::Invalid => "INVALID",
                    };
                    let place = finding
                        .index
                        .map(|index| format!("record {index}: "))
                        .unwrap_or_default();
                    (level, format!("{place}{}", finding.text))
                })
                .collect();
            SectionView {
                name: section.name,
                summary: section.summary.clone(),
                status: match section.status {
                    Status::Valid => "valid",
                    Status::Incomplete => "INCOMPLETE",
                    Status::Invalid => "INVALID",
                },
                more: section.findings.len().saturating_sub(findings.len()) as u64 + section.more_findings,
                findings,
            }
        })
        .collect()
}

/// Who answered, most answers first.
fn approvers(tally: &Tally) -> Vec<(String, String, tally::Answers)> {
    let mut approvers: Vec<_> = tally
        .approvers
        .iter()
        .map(|((name, issuer, subject), answers)| (name.clone(), format!("{issuer} {subject}"), answers.clone()))
        .collect();
    approvers.sort_by_key(|(_, _, answers)| std::cmp::Reverse(answers.allowed + answers.by_grant + answers.denied));
    approvers
}

fn hosts(examined: &Examined, trust: &Trust) -> Vec<(String, Vec<String>, bool)> {
    let hosts = examined.report.enforcement.iter();
    hosts
        .map(|(id, told)| {
            let name = trust.host(id).map_or(id.as_str(), |host| host.name.as_str());
            (visible_fold(name, SHORT), told.lines(), !told.gaps.is_empty())
        })
        .collect()
}

fn support(examined: &Examined) -> Vec<ControlView> {
    let mut requests: HashMap<(&str, &str), &RequestRecord> = HashMap::new();
    let mut support = Support::new();
    for record in examined.accepted() {
        let signer = record.header.signer.as_str();
        let mut action = None;
        match &record.statement.predicate {
            Predicate::Request(request) => {
                requests.insert((signer, &request.request_id), request);
            }
            Predicate::Enforcement(enforcement) => {
                let id = enforcement.request_id.as_deref();
                action = id
                    .and_then(|id| requests.get(&(signer, id)))
                    .map(|request| &request.action);
            }
            _ => {}
        }
        support.add(record, action);
    }
    support
        .all()
        .map(|(control, indices)| ControlView {
            framework: control.framework,
            id: control.id,
            title: control.title,
            count: indices.len(),
            records: ranges(indices),
        })
        .collect()
}

fn lists(tally: Tally) -> Vec<List> {
    let list = |id, title, headings, mut lines: Vec<Line>, empty| {
        let more = lines.len().saturating_sub(ROWS);
        lines.truncate(ROWS);
        List {
            id,
            title,
            headings,
            lines,
            more,
            empty,
        }
    };
    vec![
        list(
            "denials",
            "Denials by people and hosts, with reasons",
            ["Action", "By", "Reason"],
            tally.denials,
            "Nobody denied anything in these records.",
        ),
        list(
            "time-outs",
            "Time-outs",
            ["Action", "Label", ""],
            tally.time_outs,
            "Every question in these records was answered in time.",
        ),
        list(
            "alarms",
            "Alarms",
            ["What", "Host", "Kind"],
            tally.alarms,
            "There are none in these records.",
        ),
        list(
            "changes",
            "Changes of who may decide",
            ["Change", "By", "Why"],
            tally.changes,
            "There are none in these records.",
        ),
    ]
}

/// Milliseconds in words that are short.
fn duration(millis: i64) -> String {
    match millis {
        ..1_000 => format!("{millis} ms"),
        1_000..60_000 => format!("{}.{} s", millis / 1_000, millis % 1_000 / 100),
        60_000..3_600_000 => format!("{} min {} s", millis / 60_000, millis / 1_000 % 60),
        _ => format!("{} h {} min", millis / 3_600_000, millis / 60_000 % 60),
    }
}
