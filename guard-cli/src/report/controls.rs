//! Controls of SOC 2, ISO/IEC 27001:2022 (Annex A) and NIST SP 800-53 r5, and which records bear on each.
//!
//! Owns the mapping. It is given verified records. It must never say that a control is satisfied: that is an auditor's
//! judgement, about more than these records.

use guard_evidence::alarm;
use guard_evidence::change::Change;
use guard_evidence::ocsf::signed_decision;
use guard_evidence::record::{
    Action, DecidedBy, Effect, EnforcementRecord, Lifecycle, PolicyAction, Predicate, Verdict,
};
use guard_evidence::verify::Record;

/// What a record shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// It is there, signed and in the log.
    Record,
    /// Somebody was asked before it happened.
    Asked,
    /// People answered who may, and who do not own the workload.
    Answered,
    /// At least two people were needed, and answered.
    Dual,
    /// An identity provider said how somebody who answered had signed in.
    Authentication,
    /// The kernel enforced an answer.
    Enforced,
    /// An action did not happen.
    Denied,
    Exec,
    Network,
    File,
    /// Enforcement went on, off, or was on; an agent was away.
    Enforcement,
    /// A policy came into force, or a workload was labelled.
    Policy,
    Alarm,
    /// Accounts, keys, sessions, identity providers.
    Account,
    /// Owners of workloads, and grants.
    Ownership,
    /// Hosts that join and leave, and keys that begin to sign.
    Key,
}

/// One control.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) framework: &'static str,
    pub(super) id: &'static str,
    /// Of what it asks, and of what the records show.
    pub(super) title: &'static str,
    shows: &'static [Shows],
}

const fn control(framework: &'static str, id: &'static str, title: &'static str, shows: &'static [Shows]) -> Control {
    Control {
        framework,
        id,
        title,
        shows,
    }
}

const SOC2: &str = "SOC 2";
const ISO: &str = "ISO/IEC 27001:2022";
const NIST: &str = "NIST SP 800-53 r5";

use Shows as S;

#[rustfmt::skip]
pub(super) const CONTROLS: &[Control] = &[
    control(SOC2, "CC4.1", "Evaluations that controls function", &[S::Enforcement]),
    control(SOC2, "CC6.1", "Logical access security", &[S::Enforced]),
    control(SOC2, "CC6.2", "Registration and authorization of users", &[S::Account]),
    control(SOC2, "CC6.3", "Access by role, least privilege, segregation of duties", &[S::Account, S::Ownership, S::Answered]),
    control(SOC2, "CC6.6", "Protection against sources outside the boundary", &[S::Network]),
    control(SOC2, "CC6.8", "Unauthorized or malicious software", &[S::Exec]),
    control(SOC2, "CC7.1", "Detection of changes of configuration", &[S::Policy, S::Alarm]),
    control(SOC2, "CC7.2", "Monitoring for anomalies", &[S::Alarm, S::Denied]),
    control(SOC2, "CC7.3", "Evaluation of security events", &[S::Answered, S::Alarm]),
    control(SOC2, "CC7.4", "Response to security incidents", &[S::Denied]),
    control(SOC2, "CC8.1", "Authorization of changes", &[S::Ownership, S::Policy, S::File]),
    control(ISO, "A.5.3", "Segregation of duties", &[S::Answered]),
    control(ISO, "A.5.15", "Access control", &[S::Enforced]),
    control(ISO, "A.5.16", "Identity management", &[S::Account]),
    control(ISO, "A.5.18", "Access rights", &[S::Account, S::Ownership]),
    control(ISO, "A.5.28", "Collection of evidence", &[S::Record]),
    control(ISO, "A.5.33", "Protection of records", &[S::Record]),
    control(ISO, "A.8.2", "Privileged access rights", &[S::Asked, S::Answered]),
    control(ISO, "A.8.3", "Information access restriction", &[S::File]),
    control(ISO, "A.8.9", "Configuration management", &[S::Policy]),
    control(ISO, "A.8.15", "Logging", &[S::Record]),
    control(ISO, "A.8.16", "Monitoring activities", &[S::Enforcement, S::Alarm]),
    control(ISO, "A.8.17", "Clock synchronization", &[S::Record]),
    control(ISO, "A.8.18", "Use of privileged utility programs", &[S::Exec]),
    control(ISO, "A.8.19", "Installation of software on operational systems", &[S::Exec, S::File]),
    control(ISO, "A.8.24", "Use of cryptography", &[S::Record]),
    control(ISO, "A.8.32", "Change management", &[S::Ownership, S::Policy, S::File]),
    control(NIST, "AC-3", "Access enforcement", &[S::Enforced]),
    control(NIST, "AC-3(2)", "Dual authorization", &[S::Dual]),
    control(NIST, "AC-5", "Separation of duties", &[S::Answered]),
    control(NIST, "AC-6(1)", "Authorize access to security functions", &[S::Account]),
    control(NIST, "AC-6(9)", "Log use of privileged functions", &[S::Asked, S::Enforced]),
    control(NIST, "AC-6(10)", "Prohibit privileged functions to others", &[S::Denied]),
    control(NIST, "AU-2", "Event logging", &[S::Record]),
    control(NIST, "AU-3", "Content of audit records", &[S::Asked, S::Enforced]),
    control(NIST, "AU-6", "Audit record review, analysis and reporting", &[S::Alarm]),
    control(NIST, "AU-8", "Time stamps", &[S::Record]),
    control(NIST, "AU-9(2)", "Audit records stored on separate systems", &[S::Record]),
    control(NIST, "AU-9(3)", "Cryptographic protection of audit records", &[S::Record]),
    control(NIST, "AU-9(4)", "Access to audit records by a subset of privileged users", &[S::Account]),
    control(NIST, "AU-10", "Non-repudiation", &[S::Answered]),
    control(NIST, "AU-11", "Audit record retention", &[S::Record]),
    control(NIST, "AU-12", "Audit record generation", &[S::Record]),
    control(NIST, "CM-3", "Configuration change control", &[S::Ownership, S::Policy]),
    control(NIST, "CM-5(1)", "Automated access enforcement and audit of changes", &[S::Account, S::Ownership]),
    control(NIST, "CM-7(5)", "Authorized software, allow by exception", &[S::Exec]),
    control(NIST, "IA-2(1)", "Multi-factor authentication to privileged accounts", &[S::Authentication]),
    control(NIST, "SC-7(5)", "Deny network traffic by default, allow by exception", &[S::Network]),
    control(NIST, "SC-8", "Transmission confidentiality and integrity", &[]),
    control(NIST, "SC-12", "Cryptographic key establishment and management", &[S::Key]),
    control(NIST, "SC-13", "Cryptographic protection", &[S::Record]),
    control(NIST, "SI-4", "System monitoring", &[S::Alarm, S::Enforcement]),
    control(NIST, "SI-7", "Software, firmware and information integrity", &[S::Exec, S::File]),
];

/// Which records bear on which control; `action` is what an end of a request was about.
#[derive(Debug)]
pub(super) struct Support {
    /// By control, ascending.
    indices: Vec<Vec<u64>>,
}

impl Support {
    pub(super) fn new() -> Self {
        Self {
            indices: CONTROLS.iter().map(|_| Vec::new()).collect(),
        }
    }

    /// `asked`: the action of the request that the record ends.
    pub(super) fn add(&mut self, record: &Record, asked: Option<&Action>) {
        let shown = shows(record, asked);
        for (control, indices) in CONTROLS.iter().zip(&mut self.indices) {
            if control.shows.iter().any(|wanted| shown.contains(wanted)) {
                indices.push(record.index);
            }
        }
    }

    /// Each control with its records.
    pub(super) fn all(&self) -> impl Iterator<Item = (&'static Control, &[u64])> {
        CONTROLS.iter().zip(self.indices.iter().map(Vec::as_slice))
    }
}

fn shows(record: &Record, asked: Option<&Action>) -> Vec<Shows> {
    let mut shows = vec![S::Record];
    if alarm::kind(&record.statement).is_some() {
        shows.push(S::Alarm);
    }
    match &record.statement.predicate {
        Predicate::Request(_) => shows.push(S::Asked),
        Predicate::Decision(decision) => {
            if decision.verdict == Verdict::Deny {
                shows.push(S::Denied);
            }
            if let (DecidedBy::People { .. }, Some(signed)) = (&decision.by, signed_decision(decision)) {
                shows.push(S::Answered);
                if signed.quorum >= 2 && signed.answers.len() >= 2 {
                    shows.push(S::Dual);
                }
                if signed.answers.iter().any(|answer| answer.authentication.is_some()) {
                    shows.push(S::Authentication);
                }
            }
        }
        Predicate::Enforcement(enforcement) => shows.extend(enforced(enforcement, asked)),
        Predicate::Lifecycle(lifecycle) => shows.extend(happened(&lifecycle.event)),
        Predicate::Change(change) => shows.push(match &change.change {
            Change::GrantMade { .. } | Change::GrantRevoked { .. } | Change::Label { .. } => S::Ownership,
            Change::HostJoined { .. } | Change::HostRevoked { .. } | Change::TokenCreated { .. } => S::Key,
            _ => S::Account,
        }),
        Predicate::SignedDecision(_) => {}
    }
    shows
}

fn enforced(enforcement: &EnforcementRecord, asked: Option<&Action>) -> Vec<Shows> {
    let mut shows = vec![S::Enforced];
    if enforcement.verdict == Verdict::Deny || matches!(enforcement.effect, Effect::Killed { .. }) {
        shows.push(S::Denied);
    }
    shows.extend(match (&enforcement.by_policy, asked) {
        (Some(decided), _) => Some(of_policy(&decided.action)),
        (None, Some(Action::Exec(_))) => Some(S::Exec),
        (None, Some(Action::Connect(_))) => Some(S::Network),
        (None, Some(Action::File(_))) => Some(S::File),
        (None, None) => None,
    });
    shows
}

fn of_policy(action: &PolicyAction) -> Shows {
    match action {
        PolicyAction::Exec(_) | PolicyAction::ExecKey { .. } => S::Exec,
        PolicyAction::Connect(_) => S::Network,
        PolicyAction::File(_) => S::File,
    }
}

fn happened(event: &Lifecycle) -> Vec<Shows> {
    match event {
        Lifecycle::Begun { .. } | Lifecycle::NextKey { .. } | Lifecycle::ConsoleKey { .. } => vec![S::Key],
        Lifecycle::EnforcementOn { .. }
        | Lifecycle::EnforcementOff { .. }
        | Lifecycle::AgentAway { .. }
        | Lifecycle::Enforcing { .. } => vec![S::Enforcement],
        Lifecycle::PolicyLoaded { .. } | Lifecycle::LabelAdded { .. } | Lifecycle::LabelRemoved { .. } => {
            vec![S::Policy]
        }
        Lifecycle::TheftRefused { .. } => vec![S::Denied],
        Lifecycle::AllowedByRules { rules, .. } => {
            let mut shows = vec![S::Enforced];
            shows.extend(rules.iter().map(|uses| of_policy(&uses.rule.action)));
            shows
        }
        _ => Vec::new(),
    }
}

/// Ascending numbers as ranges, the first of them: `3–17, 20, … 12 more ranges`.
pub(super) fn ranges(numbers: &[u64]) -> String {
    const SHOWN: usize = 40;
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == *number => *last = *number,
            _ => ranges.push((*number, *number)),
        }
    }
    let mut words: Vec<String> = ranges
        .iter()
        .take(SHOWN)
        .map(|(first, last)| match first == last {
            true => first.to_string(),
            false => format!("{first}–{last}"),
        })
        .collect();
    if ranges.len() > SHOWN {
        words.push(format!("… {} more ranges", ranges.len() - SHOWN));
    }
    words.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[0, 1, 2, 7, 9, 10]), "0–2, 7, 9–10");
        let odd: Vec<u64> = (0..100).map(|n| n * 2).collect();
        assert!(ranges(&odd).ends_with("78, … 60 more ranges"), "{}", ranges(&odd));
    }

    #[test]
    fn every_control_stands_once() {
        for (n, one) in CONTROLS.iter().enumerate() {
            let same = |other: &Control| (other.framework, other.id) == (one.framework, one.id);
            assert_eq!(CONTROLS.iter().position(same), Some(n), "{}", one.id);
        }
    }
}
