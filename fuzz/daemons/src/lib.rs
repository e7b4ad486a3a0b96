//! Fuzz targets that need the whole agent or console: configuration, policy, tokens, decisions, gRPC messages, /proc.
//!
//! Owns one function per target; each is given any bytes and says by a panic that a promise was broken. It must never
//! reach a kernel, a network or a file.
#![forbid(unsafe_code)]

use std::collections::HashSet;
use std::path::Path;

use guard_agent::approval::decision::{self, Expected};
use guard_policy::{self as policy, Answer, ConnectFacts, Deed, ExecFacts, Facts, HeldFacts, PeerFacts, WriteFacts};
use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::{Predicate, Statement, Verdict};
use jiff::Timestamp;

/// agent.toml and console.toml; label patterns against a slow and plain matcher.
pub fn config(data: &[u8]) {
    match guard_agent::config::Config::parse(data, Path::new("/etc/guard/agent.toml")) {
        Ok(config) => {
            for pattern in &config.labels.patterns {
                for text in [
                    "/",
                    "/a",
                    "/a/b",
                    "/system.slice/agent-1.service",
                    "/aa/ba/ab",
                    "/a/a/a/a/b/a",
                ] {
                    assert_eq!(
                        pattern.matches(text),
                        plainly(pattern.cgroup.as_bytes(), text.as_bytes()),
                        "{} for {text}",
                        pattern.cgroup
                    );
                }
            }
        }
        Err(error) => assert!(
            error.to_string().contains("agent.toml"),
            "an error that names no file: {error}"
        ),
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(raw) = guard_console::config::parse(text)
    {
        let _ = raw.resolve(Some("console.example.org".to_owned()));
    }
}

/// `*` is anything but a slash, `**` anything.
fn plainly(pattern: &[u8], text: &[u8]) -> bool {
    // All positions of the text that the pattern so far can end at.
    let mut ends = vec![false; text.len() + 1];
    ends[0] = true;
    let mut rest = pattern;
    while let Some(first) = rest.first() {
        let double = rest.starts_with(b"**");
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            next[at] = if *first == b'*' {
                ends[at] || at > 0 && next[at - 1] && (double || text[at - 1] != b'/')
            } else {
                at > 0 && ends[at - 1] && text[at - 1] == *first
            };
        }
        ends = next;
        rest = &rest[if double { 2 } else { 1 }..];
    }
    ends[text.len()]
}

/// A policy text; then its answers, which must not get laxer by what is known later.
pub fn policy(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let policy = match policy::parse(text, "policy.cedar") {
        Ok(policy) => policy,
        Err(error) => {
            assert!(
                error.to_string().contains("policy.cedar"),
                "an error that names no file: {error}"
            );
            return;
        }
    };
    for label in ["coder", "other"] {
        for path in [None, Some("/usr/bin/git"), Some("/srv/app/tidy")] {
            let exec = |held| {
                Deed::Exec(ExecFacts {
                    path: path.map(str::to_owned),
                    unlinked: false,
                    held,
                })
            };
            let facts = Facts {
                label: label.to_owned(),
                deed: exec(None),
                uid: 1000,
                gid: 1000,
                user: Some("agent".to_owned()),
                cgroup: "/guard.slice/run-1".to_owned(),
                ..Facts::default()
            };
            let early = policy.evaluate(&facts);
            let held = Facts {
                deed: exec(Some(HeldFacts {
                    argv: Some(["git", "push", "--force"].map(str::to_owned).to_vec()),
                    cwd: Some("/srv/app".to_owned()),
                    given: Some("git".to_owned()),
                    sha256: Some("ab".repeat(32)),
                })),
                ..facts
            };
            let late = policy.evaluate(&held);
            assert_ne!(late, Answer::Hold, "asks for what is known");
            if early != Answer::Hold {
                assert_eq!(early, late, "answered before everything was known, and otherwise");
            }
            if let Answer::Ask(ask) = &late {
                assert!(ask.quorum >= 1);
            }
            // With nothing known about the command, nothing is allowed that would not be with everything known.
            let unknown = policy.evaluate(&Facts {
                deed: exec(Some(HeldFacts::default())),
                ..held.clone()
            });
            assert_ne!(unknown, Answer::Hold);
        }
        check_writes(&policy, label);
        for peer in [
            PeerFacts::Ip {
                address: std::net::IpAddr::from([192, 0, 2, 1]),
                port: 443,
            },
            PeerFacts::Unix(Some("/run/docker.sock".to_owned())),
            PeerFacts::Unix(None),
        ] {
            let connection = |held| Facts {
                label: label.to_owned(),
                deed: Deed::Connect(ConnectFacts {
                    peer: peer.clone(),
                    protocol: "tcp".to_owned(),
                    listen: false,
                    connected_before: false,
                    held,
                }),
                ..Facts::default()
            };
            let (early, late) = (policy.evaluate(&connection(false)), policy.evaluate(&connection(true)));
            assert_ne!(late, Answer::Hold, "asks for what is known");
            assert!(
                early == Answer::Hold || early == late,
                "answered before it is held, and otherwise"
            );
        }
    }
}

/// Changes of files: both ends of a rename count.
fn check_writes(policy: &guard_policy::Policy, label: &str) {
    use guard_evidence::record::FileOperation;
    let ends = [None, Some(Some("/etc/hosts".to_owned())), Some(None)];
    for (path, new_path) in [Some("/srv/a".to_owned()), None]
        .into_iter()
        .flat_map(|path| ends.clone().map(|new| (path.clone(), new)))
    {
        let write = |held| Facts {
            label: label.to_owned(),
            deed: Deed::Write(WriteFacts {
                operation: FileOperation::Rename,
                path: path.clone(),
                new_path: new_path.clone(),
                directory: false,
                replaces: true,
                held,
            }),
            ..Facts::default()
        };
        let (early, late) = (policy.evaluate(&write(false)), policy.evaluate(&write(true)));
        assert_ne!(late, Answer::Hold, "asks for what is known");
        assert!(
            early == Answer::Hold || early == late,
            "answered before it is held, and otherwise"
        );
    }
}

/// What a person pastes into `guard-agent enroll`.
pub fn token(data: &[u8]) {
    guard_agent::identity::token::fuzz_token(data);
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(token) = guard_agent::identity::token::Token::parse(text) {
        let shown = format!("{token:?}");
        // Short ones may stand in an address by chance.
        assert!(
            token.secret().len() < 8 || token.address().contains(token.secret()) || !shown.contains(token.secret())
        );
        assert!(!token.address().contains(char::is_whitespace));
    }
}

/// A console's signed decision. The signature is made here, as a console that is taken over could.
pub fn decision(data: &[u8]) {
    decision::fuzz_decision(data);
    let key = SigningKey::from_seed(&[9; 32]);
    let Ok(envelope) = dsse::sign(data, &key) else { return };
    let Ok(Statement {
        predicate: Predicate::SignedDecision(said),
        ..
    }) = Statement::from_payload(data)
    else {
        return;
    };
    let groups = ["release".to_owned()];
    let now = Timestamp::UNIX_EPOCH;
    for groups in [&groups[..], &[]] {
        for quorum in [1, 2] {
            let expected = Expected {
                console: &said.console,
                host_id: &said.host_id,
                request_id: &said.request_id,
                request_digest: &said.request_digest,
                nonce: &said.nonce,
                groups,
                quorum,
                // No grant covers it: decisions by one are refused here.
                record: b"",
            };
            let Ok(accepted) = decision::check(&envelope, &key.public(), &expected, now) else {
                continue;
            };
            assert_eq!(accepted, *said);
            assert!(said.expires_at.parse::<Timestamp>().is_ok_and(|end| end > now));
            if said.verdict == Verdict::Allow {
                let people: HashSet<_> = said.answers.iter().map(|answer| &answer.who).collect();
                assert_eq!(people.len(), said.answers.len(), "somebody counted twice");
                assert!(
                    people.len() >= quorum as usize && people.len() >= said.quorum as usize,
                    "too few people"
                );
                for answer in &said.answers {
                    assert_eq!(answer.verdict, Verdict::Allow);
                    assert_ne!(said.owner.as_ref(), Some(&answer.who), "approved by the owner");
                    assert!(answer.roles.iter().any(|role| role == "approver"));
                    assert!(groups.is_empty() || answer.groups.iter().any(|group| groups.contains(group)));
                    assert_eq!(answer.shown_digest, said.request_digest, "approved something else");
                }
            }
            // Another question's answer is none.
            for other in [
                Expected {
                    console: "x",
                    ..expected.clone()
                },
                Expected {
                    host_id: "x",
                    ..expected.clone()
                },
                Expected {
                    request_id: "x",
                    ..expected.clone()
                },
                Expected {
                    request_digest: "x",
                    ..expected.clone()
                },
                Expected {
                    nonce: "x",
                    ..expected.clone()
                },
            ] {
                let same = [
                    other.console,
                    other.host_id,
                    other.request_id,
                    other.request_digest,
                    other.nonce,
                ] == [
                    expected.console,
                    expected.host_id,
                    expected.request_id,
                    expected.request_digest,
                    expected.nonce,
                ];
                assert!(same || decision::check(&envelope, &key.public(), &other, now).is_err());
            }
            let end = said.expires_at.parse::<Timestamp>().unwrap_or(now);
            assert!(
                decision::check(&envelope, &key.public(), &expected, end).is_err(),
                "accepted after its end"
            );
            let another = SigningKey::from_seed(&[8; 32]).public();
            assert!(
                decision::check(&envelope, &another, &expected, now).is_err(),
                "accepted from anybody"
            );
        }
    }
}

/// Messages of both sides of the approval API, and the console's checks on a question.
pub fn grpc(data: &[u8]) {
    use guard_proto::v1::{ConsoleMessage, EnrollRequest, HostMessage, RecordBatch, RenewRequest};

    same_again::<HostMessage>(data);
    same_again::<ConsoleMessage>(data);
    same_again::<EnrollRequest>(data);
    same_again::<RecordBatch>(data);
    same_again::<RenewRequest>(data);
    guard_console::fuzz_ask(data);
}

fn same_again<T: prost::Message + Default + PartialEq>(data: &[u8]) {
    let Ok(message) = T::decode(data) else { return };
    assert!(T::decode(message.encode_to_vec().as_slice()).is_ok_and(|again| again == message));
}

/// What the agent reads of /proc, and replies of resolvers: names there are the workload's, or anybody's.
pub fn proc(data: &[u8]) {
    guard_agent::enrich::fuzz_proc(data);
    guard_agent::enrich::fuzz_reply(data);
}

/// Secrets among what a workload wrote: none survives, and two never look the same.
pub fn redact(data: &[u8]) {
    guard_agent::redact::fuzz_redact(data);
}

/// A line that the agent's control socket reads, with the checks on what it asks for.
pub fn line(data: &[u8]) {
    guard_agent::control::fuzz_control(data);
}

/// The user database, saved sign-ins and a console's configuration, which say what is protected.
pub fn places(data: &[u8]) {
    guard_agent::protect::fuzz_homes(data);
    guard_agent::protect::fuzz_addresses(data);
}
