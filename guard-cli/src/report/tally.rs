//! Counting: what was asked, answered and enforced, by whom, how fast.
//!
//! Owns the numbers of the report. It is given records in log order that a verifier accepted. It must never count one twice.

use std::collections::{BTreeMap, HashMap, HashSet};

use guard_evidence::alarm;
use guard_evidence::ocsf::signed_decision;
use guard_evidence::record::{
    ConnectHow, DecidedBy, DecisionRecord, Effect, EnforcementRecord, Lifecycle, PolicyAction, Predicate,
    RequestRecord, SignedDecision, Verdict,
};
use guard_evidence::statement::{action_word, summary, what};
use guard_evidence::text::visible_fold;
use guard_evidence::verify::{Examined, Record};

/// Characters of one cell.
const CELL: usize = 300;

/// What became of actions of one kind.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Outcomes {
    pub(super) by_people: u64,
    pub(super) by_grant: u64,
    pub(super) by_policy: u64,
    /// By exact rules in the kernel, counted there.
    pub(super) by_rules: u64,
    pub(super) denied_by_people: u64,
    pub(super) denied_by_policy: u64,
    pub(super) denied_by_host: u64,
    pub(super) timed_out: u64,
    pub(super) killed: u64,
    /// The question or the thread ended first.
    pub(super) ended: u64,
}

impl Outcomes {
    pub(super) fn allowed(&self) -> u64 {
        [self.by_grant, self.by_policy, self.by_rules]
            .into_iter()
            .fold(self.by_people, u64::saturating_add)
    }

    pub(super) fn denied(&self) -> u64 {
        self.denied_by_people + self.denied_by_policy + self.denied_by_host + self.timed_out + self.killed
    }

    pub(super) fn all(&self) -> u64 {
        self.allowed().saturating_add(self.denied()).saturating_add(self.ended)
    }
}

/// How often one person answered.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Answers {
    pub(super) allowed: u64,
    pub(super) by_grant: u64,
    pub(super) denied: u64,
}

/// A line of a list. All of it is safe to show.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) index: u64,
    pub(super) at: String,
    pub(super) what: String,
    pub(super) who: String,
    pub(super) why: String,
}

#[derive(Debug, Default)]
pub(super) struct Tally {
    /// By kind of action.
    pub(super) kinds: BTreeMap<&'static str, Outcomes>,
    /// By display name, issuer and subject.
    pub(super) approvers: BTreeMap<(String, String, String), Answers>,
    /// From the question to people's answer, milliseconds, ascending.
    pub(super) times: Vec<i64>,
    pub(super) denials: Vec<Line>,
    pub(super) time_outs: Vec<Line>,
    /// Denied by the policy alone, by rule.
    pub(super) rules: BTreeMap<String, u64>,
    pub(super) alarms: Vec<Line>,
    pub(super) changes: Vec<Line>,
    /// Requests without an end in these records.
    pub(super) open: u64,
    pub(super) first: Option<String>,
    pub(super) last: Option<String>,
}

/// What is known of one request so far.
struct Asked<'r> {
    request: &'r RequestRecord,
    decision: Option<(&'r DecisionRecord, Option<Box<SignedDecision>>)>,
    ended: bool,
}

impl Tally {
    pub(super) fn of(examined: &Examined) -> Self {
        let mut tally = Self::default();
        let mut asked: HashMap<(&str, &str), Asked<'_>> = HashMap::new();
        // A use of a grant or an answer is told once, however often its record came.
        let mut told: HashSet<&str> = HashSet::new();
        for record in examined.accepted() {
            if told.insert(&record.envelope_digest) {
                tally.read(record, &mut asked);
            }
        }
        // An alarm is one whatever else is wrong with its record: its signature holds.
        for record in &examined.records {
            if let Some(kind) = alarm::kind(&record.statement) {
                let line = line(record, summary(&record.statement), signer(record), kind.to_owned());
                tally.alarms.push(line);
            }
        }
        tally.open = asked.values().filter(|one| !one.ended).count() as u64;
        tally.times.sort_unstable();
        tally
    }

    fn read<'r>(&mut self, record: &'r Record, asked: &mut HashMap<(&'r str, &'r str), Asked<'r>>) {
        let at = &record.header.at;
        if self.first.as_ref().is_none_or(|first| at < first) {
            self.first = Some(at.clone());
        }
        if self.last.as_ref().is_none_or(|last| at > last) {
            self.last = Some(at.clone());
        }
        let signer = record.header.signer.as_str();
        match &record.statement.predicate {
            Predicate::Request(request) => {
                let new = Asked {
                    request,
                    decision: None,
                    ended: false,
                };
                asked.insert((signer, &request.request_id), new);
            }
            Predicate::Decision(decision) => {
                if let Some(one) = asked.get_mut(&(signer, decision.request_id.as_str())) {
                    let signed = signed_decision(decision);
                    self.decided(record, one.request, decision, signed.as_deref());
                    one.decision = Some((decision, signed));
                }
            }
            Predicate::Enforcement(enforcement) => {
                let id = enforcement.request_id.as_deref();
                let one = id.and_then(|id| asked.get_mut(&(signer, id)));
                self.enforced(record, enforcement, one);
            }
            Predicate::Lifecycle(lifecycle) => {
                if let Lifecycle::AllowedByRules { rules, .. } = &lifecycle.event {
                    for uses in rules {
                        let outcomes = self.kinds.entry(word(&uses.rule.action)).or_default();
                        outcomes.by_rules = outcomes.by_rules.saturating_add(uses.count);
                    }
                }
            }
            Predicate::Change(change) => {
                let why = change.why.as_deref().map(shown).unwrap_or_default();
                self.changes
                    .push(line(record, change.change.words(), change.by.words(), why));
            }
            Predicate::SignedDecision(_) => {}
        }
    }

    fn decided(
        &mut self,
        record: &Record,
        request: &RequestRecord,
        decision: &DecisionRecord,
        signed: Option<&SignedDecision>,
    ) {
        let what = what(&request.action, CELL);
        match (&decision.by, signed) {
            (DecidedBy::People { .. }, Some(signed)) => {
                for answer in &signed.answers {
                    let key = (
                        shown(&answer.name),
                        shown(&answer.who.issuer),
                        shown(&answer.who.subject),
                    );
                    let who = self.approvers.entry(key).or_default();
                    match (answer.verdict, &signed.grant) {
                        (Verdict::Allow, Some(_)) => who.by_grant += 1,
                        (Verdict::Allow, None) => who.allowed += 1,
                        (Verdict::Deny, _) => {
                            who.denied += 1;
                            let (name, why) = (shown(&answer.name), shown(&answer.reason));
                            self.denials.push(line(record, what.clone(), name, why));
                        }
                    }
                }
                // Both by the host's clock; nobody thought about what a grant answers.
                if let (Some(asked), Some(answered), None) =
                    (millis(&request.header.at), millis(&decision.received_at), &signed.grant)
                {
                    self.times.push(answered.saturating_sub(asked).max(0));
                }
            }
            (DecidedBy::Host { because }, _) => {
                let line = line(record, what, signer(record), shown(because));
                self.denials.push(line);
            }
            (DecidedBy::Timeout, _) => {
                let label = shown(&request.workload.label);
                self.time_outs.push(line(record, what, label, String::new()));
            }
            (DecidedBy::People { .. }, None) => {}
        }
    }

    fn enforced(&mut self, record: &Record, enforcement: &EnforcementRecord, asked: Option<&mut Asked<'_>>) {
        let kind = match (&enforcement.by_policy, &asked) {
            (Some(decided), _) => word(&decided.action),
            (None, Some(asked)) => action_word(&asked.request.action),
            (None, None) => "not known",
        };
        let mut decision = None;
        if let Some(asked) = asked {
            // Saying an end again changes nothing.
            if std::mem::replace(&mut asked.ended, true) {
                return;
            }
            decision = asked.decision.as_ref();
        }
        let outcomes = self.kinds.entry(kind).or_default();
        match (&enforcement.effect, enforcement.verdict) {
            (Effect::Killed { .. }, _) => outcomes.killed += 1,
            (Effect::Died | Effect::Withdrawn { .. }, _) => outcomes.ended += 1,
            (_, Verdict::Allow) => match decision {
                None => outcomes.by_policy += 1,
                Some((_, Some(signed))) if signed.grant.is_some() => outcomes.by_grant += 1,
                Some(_) => outcomes.by_people += 1,
            },
            (_, Verdict::Deny) => match decision.map(|(decision, _)| &decision.by) {
                Some(DecidedBy::People { .. }) => outcomes.denied_by_people += 1,
                Some(DecidedBy::Timeout) => outcomes.timed_out += 1,
                Some(DecidedBy::Host { .. }) => outcomes.denied_by_host += 1,
                None if enforcement.request_id.is_some() => outcomes.denied_by_host += 1,
                None => {
                    outcomes.denied_by_policy += 1;
                    self.denied_by_policy(record, enforcement);
                }
            },
        }
    }

    fn denied_by_policy(&mut self, record: &Record, enforcement: &EnforcementRecord) {
        let rules = enforcement.by_policy.as_ref().map(|decided| decided.rules.as_slice());
        match rules.and_then(<[_]>::last) {
            Some(rule) => *self.rules.entry(shown(&rule.id)).or_default() += 1,
            None => {
                let line = line(record, summary(&record.statement), signer(record), String::new());
                self.denials.push(line);
            }
        }
    }

    /// Nearest rank, milliseconds.
    pub(super) fn percentile(&self, percent: usize) -> Option<i64> {
        let rank = (self.times.len() * percent).div_ceil(100).max(1);
        self.times.get(rank - 1).copied()
    }
}

/// The word for the kind of an action, as for questions.
fn word(action: &PolicyAction) -> &'static str {
    match action {
        PolicyAction::Exec(_) | PolicyAction::ExecKey { .. } => "exec",
        PolicyAction::Connect(connect) if connect.how == ConnectHow::Listen => "listen",
        PolicyAction::Connect(_) => "connect",
        PolicyAction::File(_) => "write",
    }
}

fn line(record: &Record, what: String, who: String, why: String) -> Line {
    Line {
        index: record.index,
        at: shown(&record.header.at),
        what,
        who,
        why,
    }
}

fn signer(record: &Record) -> String {
    shown(&record.header.signer)
}

fn shown(text: &str) -> String {
    visible_fold(text, CELL)
}

fn millis(at: &str) -> Option<i64> {
    at.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_millisecond)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_taken() {
        let mut tally = Tally::default();
        assert_eq!(tally.percentile(50), None);
        tally.times = vec![7];
        assert_eq!((tally.percentile(50), tally.percentile(95)), (Some(7), Some(7)));
        tally.times = (1..=100).collect();
        assert_eq!((tally.percentile(50), tally.percentile(95)), (Some(50), Some(95)));
        tally.times = vec![1, 2, 3, 1000];
        assert_eq!((tally.percentile(50), tally.percentile(95)), (Some(2), Some(1000)));
    }
}
