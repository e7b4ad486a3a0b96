//! A small world of one console and two hosts, and everything that can be wrong with what they wrote.

mod enforced;
mod heads;
mod keys;
mod people;
mod tampered;

use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::*;
use crate::bundle::{Filter, Writer, unpack};
use crate::chain::{Chain, Sealed, Stamp};
use crate::key::{Algorithm, SigningKey};
use crate::merkle::Tree;
use crate::record::*;
use crate::testing::{self, CONSOLE, HOST};
use crate::text::Text;
use crate::trust::{ConsoleTrust, HostTrust, RangedKey};

struct World {
    host_key: SigningKey,
    /// Keys before it, each with the index at which the next one began.
    replaced: Vec<(PublicKey, u64)>,
    console_key: SigningKey,
    log_key: SigningKey,
    chain: Chain,
    console_chain: Chain,
    clock: u64,
    /// Of the host's next records.
    at: String,
    log: Vec<Vec<u8>>,
    /// They cosign the checkpoint of a bundle.
    witnesses: Vec<(&'static str, SigningKey)>,
}

fn person(name: &str) -> PersonId {
    PersonId {
        issuer: "local".to_owned(),
        subject: name.to_owned(),
    }
}

impl World {
    fn new() -> Self {
        let mut world = Self {
            host_key: SigningKey::from_seed(&[1; 32]),
            replaced: Vec::new(),
            console_key: SigningKey::from_seed(&[2; 32]),
            log_key: SigningKey::from_seed(&[3; 32]),
            chain: Chain::begin(format!("host:{HOST}"), 1),
            console_chain: Chain::begin(format!("console:{CONSOLE}"), 1),
            clock: 0,
            at: "2026-11-21T10:00:00.000Z".to_owned(),
            log: Vec::new(),
            witnesses: Vec::new(),
        };
        world.lifecycle(Lifecycle::Begun {
            why: "enrolled".to_owned(),
            key: "k".to_owned(),
            after: None,
        });
        world
    }

    /// With one of everything: approved and ran, denied, killed, by policy.
    fn full() -> Self {
        let mut world = Self::new();
        let (request, digest) = world.request(|_| {});
        let decision = world.decide(&request, &digest, |_| {}, |_| {});
        world.enforce(&request, &digest, &decision, |_| {});
        let (request, digest) = world.request(|_| {});
        let decision = world.decide(
            &request,
            &digest,
            |s| {
                s.verdict = Verdict::Deny;
                s.answers[0].verdict = Verdict::Deny;
            },
            |d| d.verdict = Verdict::Deny,
        );
        world.enforce(&request, &digest, &decision, |e| {
            e.verdict = Verdict::Deny;
            e.effect = Effect::Denied;
        });
        let (request, digest) = world.request(|_| {});
        let decision = world.decide(&request, &digest, |_| {}, |_| {});
        world.enforce(&request, &digest, &decision, |e| {
            e.effect = Effect::Killed {
                what: "argv".to_owned(),
                approved: "a".to_owned(),
                found: "b".to_owned(),
            };
        });
        world.by_policy();
        world
    }

    fn seal(&mut self, make: impl FnOnce(Header) -> Predicate) -> Sealed {
        self.clock += 1;
        let stamp = Stamp {
            at: self.at.clone(),
            since_boot_ns: self.clock,
            boot_id: "b".to_owned(),
        };
        let sealed = self.chain.seal(&self.host_key, stamp, make).unwrap();
        self.log.push(sealed.envelope.clone());
        sealed
    }

    /// As a host does it: the old key names the new one, and that begins an epoch after the old one's end.
    fn replace_key(&mut self, key: SigningKey) {
        self.lifecycle(Lifecycle::NextKey { key: key.public() });
        self.begin_with(key, self.chain.end());
    }

    fn begin_with(&mut self, key: SigningKey, after: Option<ChainEnd>) {
        self.chain = Chain::begin(format!("host:{HOST}"), self.chain.epoch() + 1);
        let old = std::mem::replace(&mut self.host_key, key);
        self.replaced.push((old.public(), self.log.len() as u64));
        let key = self.host_key.public().to_pem().unwrap();
        let why = "the key was replaced".to_owned();
        self.lifecycle(Lifecycle::Begun { why, key, after });
    }

    fn lifecycle(&mut self, event: Lifecycle) {
        self.seal(|header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event })));
    }

    fn request(&mut self, change: impl FnOnce(&mut RequestRecord)) -> (RequestRecord, String) {
        let mut request = testing::request(self.log.len() as u64, "coder", &["git", "push"]);
        change(&mut request);
        let made = request.clone();
        let sealed = self.seal(|header| {
            request.header = header;
            Predicate::Request(Box::new(request))
        });
        (made, sealed.payload_digest)
    }

    fn signed(&self, request: &RequestRecord, digest: &str) -> SignedDecision {
        SignedDecision {
            console: CONSOLE.to_owned(),
            host_id: HOST.to_owned(),
            request_id: request.request_id.clone(),
            request_digest: digest.to_owned(),
            nonce: request.nonce.clone(),
            verdict: Verdict::Allow,
            answers: vec![answer("alice", digest)],
            quorum: 1,
            owner: Some(person("owner")),
            changes: None,
            grant: None,
            issued_at: "2026-11-21T10:00:01.000Z".to_owned(),
            expires_at: "2026-11-21T10:01:00.000Z".to_owned(),
        }
    }

    fn decide(
        &mut self,
        request: &RequestRecord,
        digest: &str,
        change_signed: impl FnOnce(&mut SignedDecision),
        change: impl FnOnce(&mut DecisionRecord),
    ) -> String {
        let mut signed = self.signed(request, digest);
        change_signed(&mut signed);
        let payload = Statement::new(Predicate::SignedDecision(Box::new(signed)))
            .to_payload()
            .unwrap();
        let envelope = dsse::sign(&payload, &self.console_key).unwrap();
        let (request_id, request_digest) = (request.request_id.clone(), digest.to_owned());
        let sealed = self.seal(|header| {
            let mut decision = DecisionRecord {
                header,
                request_id,
                request_digest,
                verdict: Verdict::Allow,
                by: DecidedBy::People {
                    envelope: STANDARD.encode(envelope),
                },
                received_at: "2026-11-21T10:00:02.000Z".to_owned(),
            };
            change(&mut decision);
            Predicate::Decision(Box::new(decision))
        });
        sealed.payload_digest
    }

    fn enforce(
        &mut self,
        request: &RequestRecord,
        digest: &str,
        decision: &str,
        change: impl FnOnce(&mut EnforcementRecord),
    ) {
        let (request_id, digest, decision) = (request.request_id.clone(), digest.to_owned(), decision.to_owned());
        self.seal(|header| {
            let mut enforcement = EnforcementRecord {
                header,
                label: "coder".to_owned(),
                request_id: Some(request_id),
                request_digest: Some(digest),
                decision_digest: Some(decision),
                by_policy: None,
                verdict: Verdict::Allow,
                effect: Effect::Ran,
                resume_ns: 1,
            };
            change(&mut enforcement);
            Predicate::Enforcement(Box::new(enforcement))
        });
    }

    fn by_policy(&mut self) {
        self.seal(|header| {
            Predicate::Enforcement(Box::new(EnforcementRecord {
                header,
                label: "coder".to_owned(),
                request_id: None,
                request_digest: None,
                decision_digest: None,
                by_policy: Some(PolicyDecided {
                    workload: testing::workload("coder"),
                    action: PolicyAction::ExecKey {
                        path: Some(Text::from("/bin/ls")),
                        device: 1,
                        inode: 2,
                        generation: 3,
                    },
                    rules: vec![],
                    policy_digest: "cd".repeat(32),
                }),
                verdict: Verdict::Allow,
                effect: Effect::Ran,
                resume_ns: 1,
            }))
        });
    }

    fn trust(&self) -> Trust {
        Trust::new(
            ConsoleTrust {
                origin: CONSOLE.to_owned(),
                decision_keys: vec![RangedKey::only(self.console_key.public())],
                log_keys: vec![RangedKey::only(self.log_key.public())],
                witnesses: vec![],
                quorum: 0,
            },
            vec![HostTrust {
                id: HOST.to_owned(),
                name: "build-7".to_owned(),
                evidence_keys: self.host_keys(),
            }],
        )
    }

    /// With ranges, as a console tells them of a host.
    fn host_keys(&self) -> Vec<RangedKey> {
        let ranged = |key: &PublicKey, from: Option<(u64, u64)>| match from {
            None => RangedKey::only(key.clone()),
            Some((epoch, index)) => RangedKey::from(key.clone(), epoch, index),
        };
        let (mut keys, mut from) = (Vec::new(), None);
        for ((key, index), epoch) in self.replaced.iter().zip(2..) {
            let mut key = ranged(key, from);
            key.end(epoch, *index);
            keys.push(key);
            from = Some((epoch, *index));
        }
        keys.push(ranged(&self.host_key.public(), from));
        keys
    }

    /// Writes the bundle of the records for which `want` holds.
    fn write(&self, dir: &Path, filter: Filter, want: impl Fn(u64) -> bool) -> PathBuf {
        let tree = Tree::new(self.log.iter().map(|e| leaf_hash(e)).collect());
        let checkpoint = Checkpoint {
            origin: CONSOLE.to_owned(),
            size: tree.size(),
            root: tree.root(),
        };
        let mut note = checkpoint.sign(&self.log_key).unwrap();
        for (name, key) in &self.witnesses {
            note.push_str(&cosign::cosign(name, key, &checkpoint, 1_800_000_000));
        }
        let trust = self.trust().to_json().unwrap();
        let mut writer = Writer::new(Vec::new(), &trust, &note, CONSOLE, filter, "2026-11-21T11:00:00Z").unwrap();
        for (index, envelope) in (0u64..).zip(&self.log).filter(|(index, _)| want(*index)) {
            writer.record(index, envelope, tree.inclusion(index).unwrap()).unwrap();
        }
        let dir = dir.join("bundle");
        unpack(writer.finish().unwrap().as_slice(), &dir).unwrap();
        dir
    }

    fn report(&self) -> Report {
        self.report_by(&self.trust())
    }

    fn report_by(&self, trust: &Trust) -> Report {
        let dir = tempfile::tempdir().unwrap();
        let path = self.write(dir.path(), Filter::default(), |_| true);
        let bundle = Bundle::open(&path).unwrap();
        verify(&bundle, trust, TrustSource::Given, Asked::WholeLog)
    }

    /// Judged as a whole log, something must be wrong in this section, with these words, at this record.
    #[track_caller]
    fn wrong(&self, status: Status, section: &str, words: &str, index: u64) {
        self.wrong_by(&self.trust(), status, section, words, index);
    }

    /// As [`Self::wrong`], by somebody else's trust file.
    #[track_caller]
    fn wrong_by(&self, trust: &Trust, status: Status, section: &str, words: &str, index: u64) {
        let report = self.report_by(trust);
        let found = report.sections.iter().find(|s| s.name == section).unwrap();
        let hit = found
            .findings
            .iter()
            .any(|f| f.text.contains(words) && f.index == Some(index));
        assert!(hit, "{report:#?}");
        assert_eq!(report.status, status, "{report:#?}");
    }
}

fn answer(name: &str, digest: &str) -> Answer {
    Answer {
        who: person(name),
        name: name.to_owned(),
        groups: vec!["code-push".to_owned()],
        roles: vec!["approver".to_owned()],
        verdict: Verdict::Allow,
        reason: "fine".to_owned(),
        at: "2026-11-21T10:00:01.000Z".to_owned(),
        channel: "web".to_owned(),
        signed_in_at: "2026-11-21T09:00:00.000Z".to_owned(),
        shown_digest: digest.to_owned(),
        authentication: None,
    }
}

#[test]
fn a_whole_log_is_valid() {
    let report = World::full().report();
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    let decisions = report.sections.iter().find(|s| s.name == "decisions").unwrap();
    assert!(
        decisions.summary.starts_with(
            "2 allowed by people, each with an earlier decision; 1 allowed by policy; 1 denied; 1 killed; 0 without"
        ),
        "{}",
        decisions.summary
    );
}

#[test]
fn trust_that_came_with_the_bundle_is_not_enough() {
    let world = World::full();
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&world.write(dir.path(), Filter::default(), |_| true)).unwrap();
    let trust = Trust::parse(&bundle.trust().unwrap()).unwrap();
    assert_eq!(
        verify(&bundle, &trust, TrustSource::Bundle, Asked::WholeLog).status,
        Status::Incomplete
    );
    // Keys of somebody else: nothing holds.
    let other = World {
        host_key: SigningKey::from_seed(&[7; 32]),
        ..World::new()
    };
    assert_eq!(
        verify(&bundle, &other.trust(), TrustSource::Given, Asked::WholeLog).status,
        Status::Invalid
    );
    let other = World {
        log_key: SigningKey::from_seed(&[7; 32]),
        ..World::new()
    };
    assert_eq!(
        verify(&bundle, &other.trust(), TrustSource::Given, Asked::WholeLog).status,
        Status::Invalid
    );
}

#[test]
fn every_way_to_decide_wrongly_is_named() {
    type Change = fn(&mut SignedDecision);
    let cases: [(Change, &str); 17] = [
        (|s| s.console = "evil.example.org".to_owned(), "another console"),
        (|s| s.host_id = "other".to_owned(), "another host"),
        (|s| s.request_id = "other".to_owned(), "another request"),
        (|s| s.request_digest = "00".repeat(32), "another content"),
        (|s| s.nonce = "00".repeat(32), "nonce"),
        (|s| s.verdict = Verdict::Deny, "something else than the people decided"),
        (|s| s.expires_at = "2026-11-21T10:00:01.999Z".to_owned(), "expired"),
        (|s| s.expires_at = "soon".to_owned(), "cannot be read"),
        (|s| s.owner = Some(person("alice")), "the owner of the workload, alice"),
        (|s| s.answers.clear(), "by 0 people"),
        (|s| s.answers[0].roles = vec!["administrator".to_owned()], "no approver"),
        (|s| s.answers[0].groups.clear(), "none of the groups"),
        (|s| s.answers[0].shown_digest = "00".repeat(32), "shown something else"),
        (|s| s.answers[0].verdict = Verdict::Deny, "somebody denied"),
        (
            |s| s.answers[0].name = "al\u{202E}ice".to_owned(),
            "al⟨U+202E⟩ice twice",
        ),
        (|s| s.answers.truncate(1), "by 1 people, but the policy asked for 2"),
        (|s| s.answers[1].who = person("owner"), "owner"),
    ];
    for (change, words) in cases {
        let mut world = World::new();
        let (request, digest) = world.request(|r| {
            r.why.approver_groups = vec!["code-push".to_owned()];
            r.why.quorum = 2;
        });
        let twice = words.contains("twice");
        let decision = world.decide(
            &request,
            &digest,
            |s| {
                s.answers.push(answer("bob", &digest));
                if twice {
                    s.answers[1] = s.answers[0].clone();
                    s.answers[1].name = "al\u{202E}ice".to_owned();
                } else {
                    change(s);
                }
            },
            |_| {},
        );
        world.enforce(&request, &digest, &decision, |_| {});
        world.wrong(Status::Invalid, "decisions", words, 2);
        world.wrong(Status::Invalid, "decisions", "by a decision that does not hold", 3);
    }
}

#[test]
fn a_decision_that_the_console_did_not_sign_is_named() {
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    let honest = std::mem::replace(&mut world.console_key, SigningKey::from_seed(&[1; 32]));
    world.decide(&request, &digest, |_| {}, |_| {});
    world.console_key = honest;
    world.wrong(Status::Invalid, "decisions", "which is not trusted", 2);
}

#[test]
fn allows_without_a_decision_before_them_are_named() {
    type Change = fn(&mut EnforcementRecord);
    let cases: [(Change, Status, &str); 7] = [
        (
            |e| e.decision_digest = None,
            Status::Invalid,
            "without naming a decision",
        ),
        (
            |e| e.decision_digest = Some("00".repeat(32)),
            Status::Incomplete,
            "is not before it in the bundle",
        ),
        (
            |e| e.request_digest = Some("00".repeat(32)),
            Status::Invalid,
            "another content",
        ),
        (|e| e.label = "other".to_owned(), Status::Invalid, "another label"),
        (
            |e| e.request_id = Some("other".to_owned()),
            Status::Invalid,
            "the decision of another request",
        ),
        (|e| e.request_id = None, Status::Invalid, "neither people nor policy"),
        (|e| e.verdict = Verdict::Deny, Status::Invalid, "was denied, yet it ran"),
    ];
    for (change, status, words) in cases {
        let mut world = World::new();
        let (request, digest) = world.request(|_| {});
        let decision = world.decide(&request, &digest, |_| {}, |_| {});
        world.enforce(&request, &digest, &decision, change);
        world.wrong(status, "decisions", words, 3);
    }
    // The decision comes after the act.
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    let mut later = world.chain.clone();
    std::mem::swap(&mut world.chain, &mut later);
    world.enforce(&request, &digest, &"ab".repeat(32), |_| {});
    world.decide(&request, &digest, |_| {}, |_| {});
    world.wrong(Status::Incomplete, "decisions", "is not before it", 2);
    // One approval, two runs.
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    let decision = world.decide(&request, &digest, |_| {}, |_| {});
    world.enforce(&request, &digest, &decision, |_| {});
    world.enforce(&request, &digest, &decision, |_| {});
    world.wrong(Status::Invalid, "decisions", "after the request had ended", 4);
    // An end that is told twice, as after a crash.
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    for _ in 0..2 {
        world.enforce(&request, &digest, "", |e| {
            e.decision_digest = None;
            e.verdict = Verdict::Deny;
            e.effect = Effect::Withdrawn {
                why: "restarted".to_owned(),
            };
        });
    }
    world.wrong(Status::Valid, "decisions", "ends a request that had ended", 3);
    // A time-out never allows.
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    world.decide(&request, &digest, |_| {}, |d| d.by = DecidedBy::Timeout);
    world.wrong(Status::Invalid, "decisions", "because time passed", 2);
}

#[test]
fn gaps_forks_and_foreign_keys_are_named() {
    // A record that the host wrote and the log never got.
    let mut world = World::full();
    world.log.remove(3);
    let report = world.report();
    let sequence = report.sections.iter().find(|s| s.name == "sequence").unwrap();
    assert!(
        sequence
            .findings
            .iter()
            .any(|f| f.text.contains("1 records missing (epoch 1, seq 4)")),
        "{report:#?}"
    );
    assert_eq!(report.status, Status::Incomplete, "{report:#?}");
    // The same sequence number twice.
    let mut world = World::full();
    world.chain = Chain::begin(format!("host:{HOST}"), 1);
    world.lifecycle(Lifecycle::EventsLost { count: 1 });
    world.wrong(Status::Invalid, "sequence", "comes again", 11);
    // Another record before it.
    let mut world = World::new();
    let mut fork = Chain::begin(format!("host:{HOST}"), 1);
    std::mem::swap(&mut world.chain, &mut fork);
    world.seal(|header| {
        Predicate::Lifecycle(Box::new(LifecycleRecord {
            header,
            event: Lifecycle::EventsLost { count: 2 },
        }))
    });
    world.log.pop();
    world.lifecycle(Lifecycle::EventsLost { count: 3 });
    world.wrong(Status::Invalid, "sequence", "names another record before it", 1);
    // An epoch is missing.
    let mut world = World::new();
    world.chain = Chain::begin(format!("host:{HOST}"), 3);
    world.lifecycle(Lifecycle::Begun {
        why: "new".to_owned(),
        key: "k".to_owned(),
        after: None,
    });
    world.wrong(Status::Incomplete, "sequence", "epochs 2 to 2 are missing", 1);
    // The clock since boot went back.
    let mut world = World::new();
    world.clock = 10;
    world.lifecycle(Lifecycle::EventsLost { count: 1 });
    world.clock = 5;
    world.lifecycle(Lifecycle::EventsLost { count: 1 });
    world.wrong(Status::Invalid, "sequence", "clock since boot", 2);
    // A host that signs in another's name.
    let mut world = World::new();
    world.chain = Chain::begin("host:other", 1);
    world.lifecycle(Lifecycle::EventsLost { count: 1 });
    assert_eq!(world.report().status, Status::Invalid);
    // The console's key signs as the host.
    let mut world = World::new();
    world.host_key = SigningKey::from_seed(&[2; 32]);
    world.lifecycle(Lifecycle::EventsLost { count: 1 });
    world.host_key = SigningKey::from_seed(&[1; 32]);
    let report = world.report();
    assert!(
        report.sections[1].findings[0].text.contains("which is not one of"),
        "{report:#?}"
    );
    // A key outside its epochs.
    let world = World::full();
    let mut trust = world.trust();
    trust.hosts[0].evidence_keys[0].from_epoch = 2;
    let dir = tempfile::tempdir().unwrap();
    let bundle = Bundle::open(&world.write(dir.path(), Filter::default(), |_| true)).unwrap();
    let report = verify(&bundle, &trust, TrustSource::Given, Asked::WholeLog);
    assert!(
        report.sections[1].findings[0].text.contains("did not use in epoch 1"),
        "{report:#?}"
    );
}

#[test]
fn damaged_files_are_named() {
    let world = World::full();
    let dir = tempfile::tempdir().unwrap();
    let path = world.write(dir.path(), Filter::default(), |_| true);
    let judge = || {
        Bundle::open(&path).map_or_else(
            |e| unreadable(&e),
            |b| verify(&b, &world.trust(), TrustSource::Given, Asked::WholeLog),
        )
    };
    let restored = |name: &str, change: &dyn Fn(&[u8]) -> Option<Vec<u8>>| {
        let file = path.join(name);
        let whole = fs::read(&file).unwrap();
        match change(&whole) {
            Some(changed) => fs::write(&file, changed).unwrap(),
            None => fs::remove_file(&file).unwrap(),
        }
        let report = judge();
        fs::write(&file, whole).unwrap();
        report
    };
    assert_eq!(judge().status, Status::Valid);
    for name in [
        "records/000000003.json",
        "proofs/000000003.proof",
        "checkpoint",
        "MANIFEST.json",
        "VERIFY.md",
    ] {
        let length = fs::read(path.join(name)).unwrap().len();
        for at in (0..length).step_by(length / 25) {
            // When it was made is the maker's word; everything else has a witness.
            if name == "MANIFEST.json"
                && fs::read_to_string(path.join(name))
                    .unwrap()
                    .find("created_at")
                    .is_some_and(|c| (c..c + 36).contains(&at))
            {
                continue;
            }
            let report = restored(name, &|whole| {
                let mut changed = whole.to_vec();
                changed[at] ^= 1;
                Some(changed)
            });
            assert_eq!(report.status, Status::Invalid, "{name} byte {at}: {report:#?}");
        }
        let report = restored(name, &|whole| Some(whole[..whole.len() / 2].to_vec()));
        assert_eq!(report.status, Status::Invalid, "{name} cut");
        let report = restored(name, &|_| None);
        assert_eq!(report.status, Status::Invalid, "{name} deleted");
    }
    // Whoever can change a record can change the manifest: then the signature and the proof tell.
    let report = restored("MANIFEST.json", &|whole| {
        let record = fs::read(path.join("records/000000003.json")).unwrap();
        let other = fs::read(path.join("records/000000004.json")).unwrap();
        Some(
            String::from_utf8(whole.to_vec())
                .unwrap()
                .replace(&sha256_hex(&record), &sha256_hex(&other))
                .into_bytes(),
        )
    });
    assert_eq!(report.status, Status::Invalid);
    fs::write(path.join("records/000000099.json"), "{}").unwrap();
    let report = judge();
    let named = |f: &Finding| f.text.contains("records/000000099.json does not belong");
    assert!(report.sections[0].findings.iter().any(named), "{report:#?}");
    assert!(
        report.sections[1].findings.iter().any(|f| f.index == Some(99)),
        "{report:#?}"
    );
}

#[test]
fn a_part_of_the_log_says_what_it_leaves_out() {
    let world = World::full();
    let dir = tempfile::tempdir().unwrap();
    // A whole-log bundle without its last records.
    let path = world.write(dir.path(), Filter::default(), |index| index < 8);
    let report = verify(
        &Bundle::open(&path).unwrap(),
        &world.trust(),
        TrustSource::Given,
        Asked::WholeLog,
    );
    assert_eq!(report.status, Status::Incomplete, "{report:#?}");
    assert!(
        report.sections[2].findings[0]
            .text
            .contains("3 records of the log are not in the bundle (index 8–10)"),
        "{report:#?}"
    );
    // From some time on: nothing is missing that was asked for.
    let dir = tempfile::tempdir().unwrap();
    let from = Filter {
        from: Some("2026-11-21T10:00:00Z".to_owned()),
        ..Filter::default()
    };
    let path = world.write(dir.path(), from, |index| index >= 4);
    let report = verify(
        &Bundle::open(&path).unwrap(),
        &world.trust(),
        TrustSource::Given,
        Asked::Part,
    );
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    let report = verify(
        &Bundle::open(&path).unwrap(),
        &world.trust(),
        TrustSource::Given,
        Asked::WholeLog,
    );
    assert_eq!(
        report.status,
        Status::Incomplete,
        "whoever asked for everything is told: {report:#?}"
    );
    // By label: the chain has openings, and that is said.
    let dir = tempfile::tempdir().unwrap();
    let label = Filter {
        label: Some("coder".to_owned()),
        ..Filter::default()
    };
    let path = world.write(dir.path(), label, |index| index >= 4 && index != 6);
    let report = verify(
        &Bundle::open(&path).unwrap(),
        &world.trust(),
        TrustSource::Given,
        Asked::WholeLog,
    );
    assert_eq!(report.status, Status::Incomplete, "{report:#?}");
}

#[test]
fn gaps_in_words() {
    assert_eq!(gaps(&[], 3), "0–2");
    assert_eq!(gaps(&[0, 2, 5], 7), "1, 3–4, 6");
    assert_eq!(gaps(&[0, 1], 2), "");
    assert_eq!(gaps(&[u64::MAX], 1), "0–18446744073709551614");
}

/// What VERIFY.md says works, as written there.
#[test]
fn verify_md_by_hand() {
    use std::process::Command;
    if ["openssl", "jq", "bash"]
        .iter()
        .any(|tool| Command::new(tool).arg("--version").output().is_err())
    {
        println!("skipped: openssl, jq and bash are needed");
        return;
    }
    for algorithm in [Algorithm::Ed25519, Algorithm::P256] {
        by_hand(SigningKey::generate_for(algorithm, &mut rand_core::OsRng));
    }
}

/// The host has replaced its key by this one: record 14 is a decision below it.
fn by_hand(key: SigningKey) {
    use std::process::Command;
    let mut world = World::full();
    world.replace_key(key);
    let (request, digest) = world.request(|_| {});
    world.decide(&request, &digest, |_| {}, |_| {});
    let dir = tempfile::tempdir().unwrap();
    let path = world.write(dir.path(), Filter::default(), |_| true);
    let text = fs::read_to_string(path.join("VERIFY.md")).unwrap();
    let script: String = text
        .split("```")
        .filter_map(|part| part.strip_prefix("sh\n"))
        .collect::<String>()
        .replace("N=000000000", "N=$1");
    let run = |index: u64| {
        let out = Command::new("bash")
            .args(["-euc", &script, "verify", &format!("{index:09}")])
            .current_dir(&path)
            .output()
            .unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
        )
    };
    // These are decisions, of either key: both halves of the page apply.
    for index in [2, 14] {
        let (good, output) = run(index);
        assert!(
            good && output.matches("Signature Verified Successfully").count() == 2,
            "{output}"
        );
        let file = path.join(record_name(index));
        let changed = fs::read_to_string(&file).unwrap().replacen("eyJ", "eyK", 1);
        fs::write(&file, changed).unwrap();
        let (good, output) = run(index);
        assert!(!good, "{output}");
    }
}

/// So does its Go program.
#[test]
fn verify_md_with_go() {
    use std::process::Command;
    let gopath = Path::new("/usr/share/gocode");
    if !Path::new("/usr/bin/go").exists() || !gopath.join("src/golang.org/x/mod/sumdb/note").exists() {
        println!("skipped: Debian's golang-go and golang-golang-x-mod-dev are needed");
        return;
    }
    let world = World::full();
    let dir = tempfile::tempdir().unwrap();
    let path = world.write(dir.path(), Filter::default(), |_| true);
    let text = fs::read_to_string(path.join("VERIFY.md")).unwrap();
    let block = |kind: &str| {
        text.split("```")
            .find_map(|part| part.strip_prefix(kind))
            .unwrap()
            .to_owned()
    };
    fs::write(path.join("main.go"), block("go\n")).unwrap();
    let command = block("shell\n").replace("000000000", "$1");
    let run = |index: u64| {
        let out = Command::new("bash")
            .args(["-euc", &command, "verify", &format!("{index:09}")])
            .current_dir(&path)
            .env("GOCACHE", dir.path().join("cache"))
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.success(), words)
    };
    let (good, words) = run(3);
    assert!(good && words.contains("record 3 is in the log of"), "{words}");
    fs::copy(path.join(record_name(4)), path.join(record_name(3))).unwrap();
    let (good, words) = run(3);
    assert!(!good && words.contains("REJECTED"), "{words}");
}
