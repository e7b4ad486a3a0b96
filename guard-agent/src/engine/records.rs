//! Records and messages made from what the engine knows.
//!
//! Owns the mapping from actions to evidence and to the console's words. It is given questions, verdicts and outcomes.
//! It must never decide.

use guard_evidence::record::{
    DecidedBy, DecisionRecord, Effect, EnforcementRecord, HostFacts, HowHeld, Predicate, RequestRecord, SignedDecision,
    TracerFacts, Verdict, Why,
};
use guard_evidence::statement;
use guard_evidence::text::{Text, visible_fold};
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;
use jiff::Timestamp;
use ulid::Ulid;

use super::Basis;
use super::ends::withdrawn_words;
use super::question::Question;
use crate::clock::rfc3339;
use crate::enrich::Enriched;
use crate::evidence::unsealed;
use crate::kernel::api::{HeldHow, Mismatch, MismatchWhat, Outcome, ParkedWhy, Tracer, WithdrawnWhy};

/// Characters of one line for people.
pub(super) const LINE: usize = 160;
/// Risks on a card.
const RISKS: usize = 3;

/// Who answered.
#[derive(Debug)]
pub(super) enum Decided {
    People(Box<SignedDecision>),
    Timeout,
    Host(String),
}

/// How a thread waits, in words.
pub(super) fn how(how: HeldHow, tracer: Option<&Tracer>) -> HowHeld {
    let why = match how {
        HeldHow::Traced => None,
        HeldHow::Parked(why) => Some(match (why, tracer) {
            (ParkedWhy::AlreadyTraced, Some(tracer)) => format!(
                "the whole process is stopped, because {} (pid {}) traces this thread; a tracer can change what runs after the approval",
                visible_fold(&String::from_utf8_lossy(&tracer.comm), 32),
                tracer.pid
            ),
            (ParkedWhy::AlreadyTraced, None) => {
                "the whole process is stopped, because another program traced this thread".to_owned()
            }
            (ParkedWhy::PtraceForbidden, _) => {
                "the whole process is stopped, because this host forbids to stop one thread alone".to_owned()
            }
            (ParkedWhy::SigcontHandled, _) => {
                "the whole process is stopped, because it handles or blocks SIGCONT".to_owned()
            }
            (ParkedWhy::TookTooLong, _) => {
                "the whole process is stopped, because the thread alone could not be stopped in time".to_owned()
            }
            (ParkedWhy::AgentWasAway, _) => {
                "the whole process is stopped, because the agent was away when it asked".to_owned()
            }
            (ParkedWhy::ManyThreads, _) => {
                "the whole process is stopped, because many of its threads asked at once".to_owned()
            }
        }),
    };
    HowHeld {
        thread_alone: how == HeldHow::Traced,
        why,
        tracer: tracer.map(|tracer| TracerFacts {
            pid: tracer.pid,
            comm: Text::from(tracer.comm.as_slice()),
        }),
    }
}

/// The action in one line.
pub(super) fn what(enriched: &Enriched) -> String {
    statement::what(&enriched.action, LINE)
}

pub(super) fn request(host: &HostFacts, question: &Question) -> Predicate {
    // What else follows from the record (a deleted file, a command cut short …) is for whoever shows it to say.
    let root = (question.enriched.workload.uid == 0).then(|| "runs as root".to_owned());
    let risks = question.ask.risks.iter().cloned().chain(root).take(RISKS).collect();
    Predicate::Request(Box::new(RequestRecord {
        header: unsealed(),
        request_id: question.id.to_string(),
        host: host.clone(),
        workload: question.enriched.workload.clone(),
        action: question.enriched.action.clone(),
        context: Some(Box::new(question.enriched.context.clone())),
        why: Why {
            rules: question.ask.rules.clone(),
            approver_groups: question.ask.groups.clone(),
            quorum: question.ask.quorum,
            policy_digest: question.policy_digest.clone(),
            risks,
            tags: question.ask.tags.clone(),
        },
        claims: question.enriched.claims.clone(),
        nonce: hex::encode(question.nonce),
        expires_at: (question.expires_at_ms != 0).then(|| {
            Timestamp::from_millisecond(question.expires_at_ms)
                .map(rfc3339)
                .unwrap_or_default()
        }),
    }))
}

pub(super) fn decision(question: &Question, request_digest: &str, verdict: Verdict, by: DecidedBy) -> Predicate {
    Predicate::Decision(Box::new(DecisionRecord {
        header: unsealed(),
        request_id: question.id.to_string(),
        request_digest: request_digest.to_owned(),
        verdict,
        by,
        received_at: rfc3339(Timestamp::now()),
    }))
}

pub(super) fn enforcement(label: &str, verdict: Verdict, basis: Basis, effect: Effect, resume_ns: u64) -> Predicate {
    let (request_id, request_digest, decision_digest, by_policy) = match basis {
        Basis::Policy(decided) => (None, None, None, Some(*decided)),
        Basis::Question {
            request,
            request_digest,
            decision_digest,
        } => (
            Some(request.to_string()),
            Some(request_digest),
            Some(decision_digest),
            None,
        ),
    };
    Predicate::Enforcement(Box::new(EnforcementRecord {
        header: unsealed(),
        label: label.to_owned(),
        request_id,
        request_digest,
        decision_digest,
        by_policy,
        verdict,
        effect,
        resume_ns,
    }))
}

/// A question that ended without a decision.
pub(super) fn ended(label: &str, request_id: &str, request_digest: &str, effect: Effect) -> Predicate {
    Predicate::Enforcement(Box::new(EnforcementRecord {
        header: unsealed(),
        label: label.to_owned(),
        request_id: Some(request_id.to_owned()),
        request_digest: Some(request_digest.to_owned()),
        decision_digest: None,
        by_policy: None,
        verdict: Verdict::Deny,
        effect,
        resume_ns: 0,
    }))
}

pub(super) fn effect(outcome: &Outcome) -> Effect {
    match outcome {
        Outcome::Ran => Effect::Ran,
        Outcome::Denied => Effect::Denied,
        Outcome::Failed(errno) => Effect::Failed { errno: *errno },
        Outcome::Killed(mismatch) => Effect::Killed {
            what: mismatch_what(mismatch.what).to_owned(),
            approved: visible_fold(&mismatch.approved, 1_000),
            found: visible_fold(&mismatch.found, 1_000),
        },
        Outcome::Died => Effect::Died,
    }
}

/// A verdict that the kernel never applied.
pub(super) fn unused(why: WithdrawnWhy) -> Effect {
    Effect::Withdrawn {
        why: withdrawn_words(why).to_owned(),
    }
}

pub(super) fn outcome(request: Ulid, outcome: &Outcome) -> Kind {
    use v1::outcome::What;
    let (what, detail) = match outcome {
        Outcome::Ran => (What::Ran, String::new()),
        Outcome::Denied => (What::Denied, String::new()),
        Outcome::Failed(errno) => (
            What::Failed,
            format!("it failed by itself: {}", nix::errno::Errno::from_raw(*errno).desc()),
        ),
        Outcome::Killed(mismatch) => (What::Killed, mismatch_words(mismatch)),
        Outcome::Died => (What::Died, String::new()),
    };
    Kind::Outcome(v1::Outcome {
        request_id: request.to_string(),
        what: what.into(),
        detail,
        at_ms: crate::clock::unix_ms(),
    })
}

/// As [`outcome`], of what a record says.
pub(super) fn outcome_of(request: Ulid, effect: &Effect) -> Kind {
    use v1::outcome::What;
    let (what, detail) = match effect {
        Effect::Ran => (What::Ran, String::new()),
        Effect::Denied => (What::Denied, String::new()),
        Effect::Failed { errno } => (
            What::Failed,
            format!("it failed by itself: {}", nix::errno::Errno::from_raw(*errno).desc()),
        ),
        Effect::Killed { what, approved, found } => {
            (What::Killed, format!("{what}: approved {approved}, found {found}"))
        }
        Effect::Died => (What::Died, String::new()),
        Effect::Withdrawn { why } => (What::Failed, why.clone()),
    };
    Kind::Outcome(v1::Outcome {
        request_id: request.to_string(),
        what: what.into(),
        detail: visible_fold(&detail, 1_000),
        at_ms: crate::clock::unix_ms(),
    })
}

/// One sentence on what differed.
pub(super) fn mismatch_words(mismatch: &Mismatch) -> String {
    let what = match mismatch.what {
        MismatchWhat::Argv => "the arguments changed after the approval",
        MismatchWhat::Environment => "the environment changed after the approval",
        MismatchWhat::Cwd => "the working directory changed after the approval",
        MismatchWhat::File => "another file was executed than the approved one",
        MismatchWhat::Content => "the file's content changed after the approval",
        MismatchWhat::Unreadable => "what was about to run could not be compared with what was approved",
    };
    format!(
        "{what}: approved {}, found {}",
        visible_fold(&mismatch.approved, 200),
        visible_fold(&mismatch.found, 200)
    )
}

fn mismatch_what(what: MismatchWhat) -> &'static str {
    match what {
        MismatchWhat::Argv => "argv",
        MismatchWhat::Environment => "environment",
        MismatchWhat::Cwd => "cwd",
        MismatchWhat::File => "file",
        MismatchWhat::Content => "content",
        MismatchWhat::Unreadable => "unreadable",
    }
}
