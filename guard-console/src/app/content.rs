//! What a request's card says, as plain words in the card's order: the same on the page and in every channel.
//!
//! Owns which facts stand there and how they are called. It is given a verified record and what is known of earlier
//! ones. It must never hand out a workload's text except through `guard_evidence::text`, nor markup: surfaces style it.

use guard_evidence::context;
use guard_evidence::record::{Action, Claims, ConnectAction, ConnectHow, ExecAction, Peer, RequestRecord};
use guard_evidence::statement::unix_name;
use guard_evidence::text::{visible, visible_fold};
use serde::Serialize;

use super::card::Card;
use crate::store::Before;

/// Longest argument or path shown at once, in characters; longer ones fold in the middle.
pub(crate) const LONG: usize = 400;
/// Most arguments that a channel shows; the others are on the page.
const ARGUMENTS: usize = 40;
const RISKS: usize = 3;

/// A name and its value, safe to show.
pub(crate) type Fact = (&'static str, String);

/// The whole card, for a channel. Everything is safe to show and nothing is markup.
#[derive(Debug, Serialize)]
pub struct Content {
    pub sentence: String,
    /// What could go wrong: at most three lines.
    pub risks: Vec<String>,
    /// The policy's rules, in words and by name.
    pub rules: Vec<Rule>,
    /// What the workload says about itself: quoted, never believed.
    pub claims: Vec<Named>,
    /// Exactly what.
    pub action: Vec<Named>,
    /// Of an exec; long ones are folded in the middle.
    pub arguments: Vec<String>,
    /// Those that are left out above.
    pub arguments_left_out: u64,
    /// Who and where.
    pub place: Vec<Named>,
    /// How often it was asked before.
    pub before: String,
}

#[derive(Debug, Serialize)]
pub struct Named {
    pub name: &'static str,
    pub value: String,
}

#[derive(Debug, Serialize)]
pub struct Rule {
    pub id: String,
    pub description: String,
}

fn named(facts: Vec<Fact>) -> Vec<Named> {
    facts.into_iter().map(|(name, value)| Named { name, value }).collect()
}

impl Content {
    pub(crate) fn of(card: &Card, host: &str, owner: Option<&str>, earlier: Before) -> Self {
        let record = &card.record;
        let (arguments, left_out) = match &record.action {
            Action::Exec(exec) => arguments(exec),
            Action::Connect(_) | Action::File(_) => (Vec::new(), 0),
        };
        Self {
            sentence: card.sentence.clone(),
            risks: risks(card, earlier),
            rules: rules(record),
            claims: named(record.claims.as_ref().map(claims).unwrap_or_default()),
            action: named(action_facts(&record.action)),
            arguments,
            arguments_left_out: left_out,
            place: named(place(record, host, owner)),
            before: before(record, earlier),
        }
    }
}

fn arguments(exec: &ExecAction) -> (Vec<String>, u64) {
    let shown: Vec<String> = exec.argv.iter().take(ARGUMENTS).map(|a| a.fold(LONG)).collect();
    let left_out = exec.argv_count.saturating_sub(shown.len() as u64);
    (shown, left_out)
}

fn rules(record: &RequestRecord) -> Vec<Rule> {
    let rules = record.why.rules.iter().take(8);
    let words = rules.map(|rule| Rule {
        id: visible_fold(&rule.id, 100),
        description: visible_fold(&rule.description, 300),
    });
    words.collect()
}

fn action_facts(action: &Action) -> Vec<Fact> {
    match action {
        Action::Exec(exec) => exec_facts(exec),
        Action::Connect(connect) => connect_facts(connect),
        Action::File(file) => guard_evidence::writing::facts(file, LONG),
    }
}

fn exec_facts(exec: &ExecAction) -> Vec<Fact> {
    let path = exec.path.as_ref().unwrap_or(&exec.given);
    let mut facts = vec![("Program", path.fold(LONG))];
    if exec.given != *path {
        facts.push(("Called as", exec.given.fold(LONG)));
    }
    if let Some(sha256) = &exec.sha256 {
        facts.push(("SHA-256", visible_fold(sha256, 64)));
    }
    facts.push(("Directory", exec.cwd.fold(LONG)));
    facts
}

pub(crate) fn connect_facts(connect: &ConnectAction) -> Vec<Fact> {
    let mut lines = match &connect.peer {
        Peer::Ip { address, port, scope } => {
            let scope = scope
                .map(|scope| format!(" on network interface {scope}"))
                .unwrap_or_default();
            vec![("Address", format!("{address}{scope}")), ("Port", port.to_string())]
        }
        peer => vec![("Unix socket", unix_name(peer, LONG))],
    };
    lines.push(("Protocol", visible_fold(&connect.protocol, 32)));
    let how = match connect.how {
        ConnectHow::Connect => "it connects",
        ConnectHow::Listen => "it listens where other hosts can reach it",
        ConnectHow::Message => "it sends a message to this destination",
        ConnectHow::ConnectedBefore => {
            "it sends on a connection that was made before it was labelled, or by somebody else"
        }
    };
    lines.push(("How", how.to_owned()));
    lines.push((
        "An approval",
        "holds for this one socket and this peer, for as long as the socket is open".to_owned(),
    ));
    lines
}

fn place(record: &RequestRecord, host: &str, owner: Option<&str>) -> Vec<Fact> {
    let mut place = vec![("Label", visible(&record.workload.label))];
    place.push(("Owner", owner.map_or_else(|| "nobody".to_owned(), visible)));
    place.push(("Host", visible_fold(host, 100)));
    place.extend(context::lines(record));
    place.push(("User", user(record)));
    let ancestry = record.workload.ancestry.iter().rev();
    let tree: Vec<String> = ancestry.map(|process| process.comm.fold(40)).collect();
    place.push(("Processes", visible_tail(&tree)));
    place
}

/// The workload's own end of the tree is what matters, so the beginning is what is left out.
fn visible_tail(tree: &[String]) -> String {
    const SHOWN: usize = 8;
    let left_out = tree.len().saturating_sub(SHOWN);
    let shown = tree.get(left_out..).unwrap_or_default().join(" ▸ ");
    if left_out > 0 {
        format!("… ▸ {shown}")
    } else {
        shown
    }
}

pub(crate) fn user(record: &RequestRecord) -> String {
    let user = record.workload.user.as_deref();
    let user = user.map_or("?".to_owned(), |u| visible_fold(u, 64));
    match record.workload.login_uid {
        Some(login) if login != record.workload.uid => {
            format!("{user} (uid {}), signed in as uid {login}", record.workload.uid)
        }
        _ => format!("{user} (uid {})", record.workload.uid),
    }
}

/// The policy's words and facts; the most telling three.
pub(crate) fn risks(card: &Card, earlier: Before) -> Vec<String> {
    let mut risks = card.risks();
    if earlier.program == 0 && earlier.label > 0 {
        let first = match card.record.action {
            Action::Exec(_) => "First time this workload asks for this program.",
            Action::Connect(ref connect) if connect.how == ConnectHow::Listen => {
                "First time this workload asks to listen on this address."
            }
            Action::Connect(_) => "First time this workload asks to reach this peer.",
            Action::File(_) => "First time this workload asks to change this path.",
        };
        risks.push(first.to_owned());
    }
    risks.truncate(RISKS);
    risks
}

pub(crate) fn claims(claims: &Claims) -> Vec<Fact> {
    [
        ("Task", &claims.task),
        ("Ticket", &claims.ticket),
        ("Tool call", &claims.tool_call),
        ("Agent", &claims.agent),
        ("Session", &claims.session),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value.as_ref()?.fold(LONG))))
    .collect()
}

pub(crate) fn before(record: &RequestRecord, b: Before) -> String {
    let label = visible(&record.workload.label);
    let times = |n: u64| {
        if n == 1 {
            "once".to_owned()
        } else {
            format!("{n} times")
        }
    };
    let kind = match record.action {
        Action::Exec(_) => "program",
        Action::Connect(_) => "peer",
        Action::File(_) => "path",
    };
    if b.same > 0 {
        format!(
            "Asked for exactly this {} before: {} approved, {} denied.",
            times(b.same),
            b.same_approved,
            b.same_denied
        )
    } else if b.program > 0 {
        format!(
            "Never asked for exactly this; for this {kind} {} before.",
            times(b.program)
        )
    } else if b.label > 0 {
        format!("Never asked for this {kind}; {label} asked {} in all.", times(b.label))
    } else {
        format!("The first request of {label}.")
    }
}
