//! Checks a signed decision against the question it answers.
//!
//! Owns the rules of docs/policy.md, "What an answer must bind". It is given exact envelope bytes and what was asked. It
//! must never accept an answer that is not whole: signature, host, request, digest, nonce, people, quorum, expiry.

use std::collections::HashSet;

use guard_evidence::dsse::{self, DsseError};
use guard_evidence::key::PublicKey;
use guard_evidence::record::{Predicate, SignedDecision, Statement, Verdict};
use jiff::Timestamp;

/// What an answer has to match.
#[derive(Debug, Clone)]
pub struct Expected<'a> {
    /// Log origin of the console.
    pub console: &'a str,
    pub host_id: &'a str,
    pub request_id: &'a str,
    /// SHA-256 of the request record's payload, hex.
    pub request_digest: &'a str,
    /// Hex.
    pub nonce: &'a str,
    /// Empty: any approver.
    pub groups: &'a [String],
    pub quorum: u32,
    /// The request record's envelope, our own: what a grant has to cover.
    pub record: &'a [u8],
}

/// Why an answer was not accepted: told to the console and recorded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("the envelope: {0}")]
    Envelope(#[from] DsseError),
    #[error("the statement is not a decision")]
    NotADecision,
    #[error("it is for another {0}")]
    Other(&'static str),
    #[error("its {0} is not a time")]
    Time(&'static str),
    #[error("it expired at {0} (is this host's clock right?)")]
    Expired(String),
    #[error("it has no answers")]
    NoAnswers,
    #[error("{0} was shown another request")]
    Shown(String),
    #[error("{0} answered otherwise than the decision says")]
    Mixed(String),
    #[error("{0} appears twice: a quorum counts people")]
    Twice(String),
    #[error("{0} owns the workload")]
    Owner(String),
    #[error("{0} is not an approver")]
    Role(String),
    #[error("{0} is in none of the groups asked")]
    Group(String),
    #[error("{found} of {needed} people approved")]
    Quorum { found: usize, needed: u32 },
    #[error("the request is not waiting here")]
    Unknown,
    #[error("{0}")]
    Grant(&'static str),
    #[error("forbidden by this host's policy: {0}")]
    Forbidden(String),
}

/// Checks an envelope and gives the decision inside.
///
/// # Errors
/// [`Refused`]: the request goes on waiting.
pub fn check(
    envelope: &[u8],
    key: &PublicKey,
    expected: &Expected<'_>,
    now: Timestamp,
) -> Result<SignedDecision, Refused> {
    let verified = dsse::parse(envelope)?.verify(key)?;
    let statement = Statement::from_payload(&verified.payload).map_err(|_| Refused::NotADecision)?;
    let Predicate::SignedDecision(decision) = statement.predicate else {
        return Err(Refused::NotADecision);
    };
    for (found, wanted, what) in [
        (decision.console.as_str(), expected.console, "console"),
        (&decision.host_id, expected.host_id, "host"),
        (&decision.request_id, expected.request_id, "request"),
        (
            &decision.request_digest,
            expected.request_digest,
            "request (the digest differs)",
        ),
        (&decision.nonce, expected.nonce, "question (the nonce differs)"),
    ] {
        if found != wanted {
            return Err(Refused::Other(what));
        }
    }
    decision
        .issued_at
        .parse::<Timestamp>()
        .map_err(|_| Refused::Time("issued_at"))?;
    let expires_at = decision
        .expires_at
        .parse::<Timestamp>()
        .map_err(|_| Refused::Time("expires_at"))?;
    if expires_at <= now {
        return Err(Refused::Expired(crate::clock::rfc3339(expires_at)));
    }
    check_people(&decision, expected)?;
    Ok(*decision)
}

/// What the people of a decision were shown: this request, or the one that they approved with a grant that covers it.
fn shown<'a>(decision: &'a SignedDecision, expected: &Expected<'a>) -> Result<&'a str, Refused> {
    let Some(used) = &decision.grant else {
        return Ok(expected.request_digest);
    };
    if decision.verdict != Verdict::Allow || decision.answers.len() != 1 {
        return Err(Refused::Grant("a grant is one person's approval"));
    }
    if used.grant.console != expected.console {
        return Err(Refused::Grant("the grant is of another console"));
    }
    let ours = dsse::parse(expected.record)?;
    let statement = Statement::from_payload(ours.unverified_payload()).map_err(|_| Refused::NotADecision)?;
    let Predicate::Request(request) = statement.predicate else {
        return Err(Refused::NotADecision);
    };
    used.covers(&request).map_err(Refused::Grant)?;
    Ok(&used.grant.request_digest)
}

fn check_people(decision: &SignedDecision, expected: &Expected<'_>) -> Result<(), Refused> {
    let shown = shown(decision, expected)?;
    let mut people = HashSet::new();
    let mut denials = 0;
    for answer in &decision.answers {
        let name = || guard_evidence::text::visible_fold(&answer.name, 80);
        if answer.shown_digest != shown {
            return Err(Refused::Shown(name()));
        }
        if !people.insert(&answer.who) {
            return Err(Refused::Twice(name()));
        }
        if decision.owner.as_ref() == Some(&answer.who) {
            return Err(Refused::Owner(name()));
        }
        if !answer.roles.iter().any(|role| role == "approver") {
            return Err(Refused::Role(name()));
        }
        if !expected.groups.is_empty() && !answer.groups.iter().any(|group| expected.groups.contains(group)) {
            return Err(Refused::Group(name()));
        }
        match (decision.verdict, answer.verdict) {
            (Verdict::Allow, Verdict::Deny) => return Err(Refused::Mixed(name())),
            (_, Verdict::Deny) => denials += 1,
            (_, Verdict::Allow) => {}
        }
    }
    if people.is_empty() {
        return Err(Refused::NoAnswers);
    }
    match decision.verdict {
        Verdict::Deny if denials == 0 => Err(Refused::Mixed("nobody".to_owned())),
        Verdict::Deny => Ok(()),
        Verdict::Allow => {
            let needed = expected.quorum.max(decision.quorum).max(1);
            if people.len() >= usize::try_from(needed).unwrap_or(usize::MAX) {
                Ok(())
            } else {
                Err(Refused::Quorum {
                    found: people.len(),
                    needed,
                })
            }
        }
    }
}

/// For the fuzzer: whatever the bytes are, they are refused without a panic.
pub fn fuzz_decision(data: &[u8]) {
    if let Ok(statement) = Statement::from_payload(data)
        && let Predicate::SignedDecision(decision) = statement.predicate
    {
        let expected = Expected {
            console: "",
            host_id: "",
            request_id: "",
            request_digest: "",
            nonce: "",
            groups: &[],
            quorum: 1,
            record: b"",
        };
        let _ = check_people(&decision, &expected);
    }
    let _ = dsse::parse(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_evidence::grant::{Grant, GrantUse, Scope};
    use guard_evidence::key::SigningKey;
    use guard_evidence::record::RequestRecord;
    use guard_evidence::record::{Answer, PersonId};

    fn person(name: &str) -> Answer {
        Answer {
            who: PersonId {
                issuer: "local".to_owned(),
                subject: name.to_owned(),
            },
            name: name.to_owned(),
            groups: vec!["ops".to_owned()],
            roles: vec!["approver".to_owned()],
            verdict: Verdict::Allow,
            reason: String::new(),
            at: "2026-11-21T10:00:00.000Z".to_owned(),
            channel: "api".to_owned(),
            signed_in_at: "2026-11-21T09:00:00.000Z".to_owned(),
            shown_digest: "d".to_owned(),
            authentication: None,
        }
    }

    fn decision(people: &[&str]) -> SignedDecision {
        SignedDecision {
            console: "c".to_owned(),
            host_id: "h".to_owned(),
            request_id: "r".to_owned(),
            request_digest: "d".to_owned(),
            nonce: "n".to_owned(),
            verdict: Verdict::Allow,
            answers: people.iter().map(|name| person(name)).collect(),
            quorum: 1,
            owner: None,
            changes: None,
            grant: None,
            issued_at: "2026-11-21T10:00:00.000Z".to_owned(),
            expires_at: "2026-11-21T10:05:00.000Z".to_owned(),
        }
    }

    fn expected(groups: &[String], quorum: u32) -> Expected<'_> {
        Expected {
            console: "c",
            host_id: "h",
            request_id: "r",
            request_digest: "d",
            nonce: "n",
            groups,
            quorum,
            record: RECORD.get_or_init(record),
        }
    }

    static RECORD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();

    fn request() -> RequestRecord {
        let text = r#"{
            "header": {"signer": "host:h", "epoch": 1, "sequence": 1, "previous": "00", "at": "2026-11-21T10:00:00Z",
                       "since_boot_ns": 1, "boot_id": "b"},
            "request_id": "r",
            "host": {"id": "h", "name": "build-7", "kernel": "6.12", "agent_version": "0"},
            "workload": {"label": "coder", "cgroup": "/c", "uid": 1, "gid": 1, "pid": 2, "tid": 2, "ancestry": []},
            "action": {"kind": "exec", "path": "/usr/bin/make", "unlinked": false, "device": 1, "inode": 2, "generation": 3,
                       "sha256": "ab", "given": "make", "argv": ["make"], "argv_count": 1, "argv_sha256": "cd",
                       "argv_truncated": false, "environment": [], "environment_count": 0, "environment_sha256": "ef",
                       "cwd": "/srv/app"},
            "why": {"rules": [], "approver_groups": [], "quorum": 1, "policy_digest": "00", "risks": [], "tags": []},
            "nonce": "n"
        }"#;
        serde_json::from_str(text).unwrap()
    }

    /// What was asked, as this host recorded it.
    fn record() -> Vec<u8> {
        let request = request();
        let payload = Statement::new(Predicate::Request(Box::new(request)))
            .to_payload()
            .unwrap();
        dsse::sign(&payload, &SigningKey::from_seed(&[9; 32])).unwrap()
    }

    fn granted(change: impl FnOnce(&mut GrantUse)) -> impl FnOnce(&mut SignedDecision) {
        let request = request();
        let grant = Grant {
            id: "g".to_owned(),
            console: "c".to_owned(),
            host_id: "h".to_owned(),
            host: "build-7".to_owned(),
            label: "coder".to_owned(),
            scope: Scope::of(&request).unwrap(),
            what: "x".to_owned(),
            request_id: "earlier".to_owned(),
            request_digest: "e".to_owned(),
            granted_at: "2026-11-21T09:55:00Z".to_owned(),
            expires_at: "2026-11-21T10:10:00Z".to_owned(),
            times: Some(3),
        };
        let mut used = GrantUse {
            grant,
            number: 3,
            used_at: "2026-11-21T10:00:30Z".to_owned(),
        };
        change(&mut used);
        move |decision| {
            decision.answers.truncate(1);
            decision.answers[0].shown_digest = "e".to_owned();
            decision.grant = Some(Box::new(used));
        }
    }

    #[test]
    fn a_grant_answers_what_it_covers_and_nothing_else() {
        assert!(run(granted(|_| {})).is_ok());
        type Change = fn(&mut GrantUse);
        let cases: [(Change, &str); 7] = [
            (|used| used.grant.host_id.push('x'), "the grant is for another host"),
            (|used| used.grant.label.push('x'), "the grant is for another label"),
            (
                |used| match &mut used.grant.scope {
                    Scope::Exec { argv_sha256, .. } => argv_sha256.push('0'),
                    Scope::Connect { .. } => unreachable!(),
                },
                "the grant covers another action",
            ),
            (|used| used.number = 4, "the grant is used up"),
            (|used| used.number = 0, "the grant is used up"),
            (
                |used| used.used_at = used.grant.expires_at.clone(),
                "the grant has expired",
            ),
            (|used| used.grant.console.push('x'), "the grant is of another console"),
        ];
        for (change, why) in cases {
            assert_eq!(run(granted(change)), Err(Refused::Grant(why)));
        }
        // It is one person's, it denies nothing, and does not make up for who may not.
        let two = |decision: &mut SignedDecision| {
            let answers = decision.answers.clone();
            granted(|_| {})(decision);
            decision.answers.push(answers[1].clone());
        };
        assert!(matches!(run(two), Err(Refused::Grant(_))));
        assert_eq!(
            run_with(granted(|_| {}), &[], 2),
            Err(Refused::Quorum { found: 1, needed: 2 })
        );
        let owner = |decision: &mut SignedDecision| {
            granted(|_| {})(decision);
            decision.owner = Some(decision.answers[0].who.clone());
        };
        assert_eq!(run(owner), Err(Refused::Owner("ann".to_owned())));
        // Without the grant the people were shown something else.
        let without = |decision: &mut SignedDecision| {
            granted(|_| {})(decision);
            decision.grant = None;
        };
        assert_eq!(run(without), Err(Refused::Shown("ann".to_owned())));
    }

    fn run_with(
        change: impl FnOnce(&mut SignedDecision),
        groups: &[String],
        quorum: u32,
    ) -> Result<SignedDecision, Refused> {
        let key = SigningKey::from_seed(&[7; 32]);
        let mut decision = decision(&["ann", "ben"]);
        change(&mut decision);
        let payload = Statement::new(Predicate::SignedDecision(Box::new(decision)))
            .to_payload()
            .unwrap();
        let envelope = dsse::sign(&payload, &key).unwrap();
        check(
            &envelope,
            &key.public(),
            &expected(groups, quorum),
            "2026-11-21T10:01:00Z".parse().unwrap(),
        )
    }

    fn run(change: impl FnOnce(&mut SignedDecision)) -> Result<SignedDecision, Refused> {
        run_with(change, &[], 1)
    }

    #[test]
    fn good_ones() {
        assert!(run(|_| {}).is_ok());
        assert!(run_with(|_| {}, &["ops".to_owned()], 2).is_ok());
        let denied = run_with(
            |d| {
                d.verdict = Verdict::Deny;
                d.answers[1].verdict = Verdict::Deny;
            },
            &[],
            5,
        );
        assert_eq!(
            denied.unwrap().verdict,
            Verdict::Deny,
            "one denial is enough, whatever the quorum"
        );
    }

    #[test]
    fn every_binding_counts() {
        type Change = Box<dyn FnOnce(&mut SignedDecision)>;
        let cases: Vec<(Change, Refused)> = vec![
            (Box::new(|d| d.console.push('x')), Refused::Other("console")),
            (Box::new(|d| d.host_id.push('x')), Refused::Other("host")),
            (Box::new(|d| d.request_id.push('x')), Refused::Other("request")),
            (
                Box::new(|d| d.request_digest.push('x')),
                Refused::Other("request (the digest differs)"),
            ),
            (
                Box::new(|d| d.nonce.push('x')),
                Refused::Other("question (the nonce differs)"),
            ),
            (
                Box::new(|d| d.expires_at = "2026-11-21T10:01:00Z".to_owned()),
                Refused::Expired("2026-11-21T10:01:00.000Z".to_owned()),
            ),
            (
                Box::new(|d| d.expires_at = "tomorrow".to_owned()),
                Refused::Time("expires_at"),
            ),
            (Box::new(|d| d.issued_at.clear()), Refused::Time("issued_at")),
            (Box::new(|d| d.answers.clear()), Refused::NoAnswers),
            (
                Box::new(|d| d.answers[0].shown_digest.push('x')),
                Refused::Shown("ann".to_owned()),
            ),
            (
                Box::new(|d| d.answers[1].who = d.answers[0].who.clone()),
                Refused::Twice("ben".to_owned()),
            ),
            (
                Box::new(|d| d.owner = Some(d.answers[1].who.clone())),
                Refused::Owner("ben".to_owned()),
            ),
            (
                Box::new(|d| d.answers[0].roles = vec!["administrator".to_owned()]),
                Refused::Role("ann".to_owned()),
            ),
            (
                Box::new(|d| d.answers[0].verdict = Verdict::Deny),
                Refused::Mixed("ann".to_owned()),
            ),
            (
                Box::new(|d| d.verdict = Verdict::Deny),
                Refused::Mixed("nobody".to_owned()),
            ),
            (Box::new(|d| d.quorum = 3), Refused::Quorum { found: 2, needed: 3 }),
        ];
        for (change, refused) in cases {
            assert_eq!(run(change), Err(refused));
        }
        assert_eq!(
            run_with(|_| {}, &["sec".to_owned()], 1),
            Err(Refused::Group("ann".to_owned()))
        );
        assert_eq!(run_with(|_| {}, &[], 3), Err(Refused::Quorum { found: 2, needed: 3 }));
    }

    #[test]
    fn only_the_pinned_key_counts() {
        let expected = expected(&[], 1);
        let now = "2026-11-21T10:01:00Z".parse().unwrap();
        let payload = Statement::new(Predicate::SignedDecision(Box::new(decision(&["ann"]))))
            .to_payload()
            .unwrap();
        let envelope = dsse::sign(&payload, &SigningKey::from_seed(&[8; 32])).unwrap();
        let key = SigningKey::from_seed(&[7; 32]).public();
        assert!(matches!(
            check(&envelope, &key, &expected, now),
            Err(Refused::Envelope(DsseError::UnknownKey(_)))
        ));
        let mut envelope = dsse::sign(&payload, &SigningKey::from_seed(&[7; 32])).unwrap();
        assert!(check(&envelope, &key, &expected, now).is_ok());
        let at = envelope.windows(4).position(|w| w == b"sig\"").unwrap() + 10;
        envelope[at] = if envelope[at] == b'A' { b'B' } else { b'A' };
        assert!(matches!(
            check(&envelope, &key, &expected, now),
            Err(Refused::Envelope(_))
        ));
        for bytes in [&b""[..], b"{}", b"\xff", &envelope[..50]] {
            assert!(check(bytes, &key, &expected, now).is_err());
        }
        fuzz_decision(&payload);
    }
}
