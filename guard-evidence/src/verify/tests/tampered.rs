//! Every kind of damage, and who can do it: whoever holds a bundle, whoever runs the console and has its keys, whoever has a
//! host's. Each case damages a real bundle or log and says which section names it, in which words, at which record.
//!
//! Beside these: heads that were rolled back or forked are in `heads`, keys after their end in `keys`, a clock that is set back
//! in `enforced`, forged accounts and owners in `people`.

use super::people::{by, user};
use super::*;
use crate::bundle::Manifest;
use crate::change::{Change, ChangedBy};

/// A bundle on disk, of the world with one of everything.
struct Damaged {
    world: World,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn record(index: u64) -> String {
    record_name(index)
}

fn proof(index: u64) -> String {
    format!("proofs/{index:09}.proof")
}

impl Damaged {
    fn new() -> Self {
        let (world, dir) = (World::full(), tempfile::tempdir().unwrap());
        let path = world.write(dir.path(), Filter::default(), |_| true);
        Self { world, path, _dir: dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn change(&self, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.file(name)).unwrap();
        change(&mut bytes);
        fs::write(self.file(name), bytes).unwrap();
    }

    fn swap(&self, one: &str, other: &str) {
        let (first, second) = (self.file(one), self.file(other));
        let bytes = fs::read(&first).unwrap();
        fs::copy(&second, &first).unwrap();
        fs::write(&second, bytes).unwrap();
    }

    /// Makes the manifest fit, as whoever changes a bundle can: signatures and proofs have to tell.
    fn cover_up(&self) {
        self.change("MANIFEST.json", |bytes| {
            let mut manifest: Manifest = serde_json::from_slice(bytes).unwrap();
            manifest.files.retain(|name, _| self.file(name).exists());
            for (name, digest) in &mut manifest.files {
                *digest = sha256_hex(&fs::read(self.file(name)).unwrap());
            }
            manifest.records = manifest
                .files
                .keys()
                .filter(|name| name.starts_with("records/"))
                .count() as u64;
            *bytes = serde_json::to_vec(&manifest).unwrap();
        });
    }

    fn report(&self) -> Report {
        self.cover_up();
        let bundle = Bundle::open(&self.path).unwrap();
        verify(&bundle, &self.world.trust(), TrustSource::Given, Asked::WholeLog)
    }

    /// Each: section, words, record.
    #[track_caller]
    fn names(&self, status: Status, expected: &[(&str, &str, Option<u64>)]) {
        let report = self.report();
        assert_eq!(
            report.sections[0].status,
            Status::Valid,
            "the manifest fits: {report:#?}"
        );
        assert_eq!(report.status, status, "{report:#?}");
        all_named(&report, expected);
    }
}

#[track_caller]
fn all_named(report: &Report, expected: &[(&str, &str, Option<u64>)]) {
    for (name, words, index) in expected {
        let section = report.sections.iter().find(|section| section.name == *name).unwrap();
        let mut findings = section.findings.iter();
        let named = findings.any(|f| f.text.contains(words) && f.index == *index);
        assert!(named, "{name}: {words} at {index:?}: {report:#?}");
    }
}

#[test]
fn a_covered_up_manifest_alone_changes_nothing() {
    let damaged = Damaged::new();
    damaged.names(Status::Valid, &[]);
}

#[test]
fn flipped() {
    let damaged = Damaged::new();
    // Inside the payload's base64.
    damaged.change(&record(3), |bytes| {
        bytes[40] = if bytes[40] == b'A' { b'B' } else { b'A' }
    });
    damaged.names(
        Status::Invalid,
        &[
            ("signatures", "does not match the payload", Some(3)),
            ("log", "is not proved to be in the log", Some(3)),
        ],
    );
    let damaged = Damaged::new();
    damaged.change(&proof(3), |bytes| {
        let index = b"index 3\n";
        let at = bytes.windows(index.len()).position(|w| w == index).unwrap() + index.len() + 2;
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
    });
    damaged.names(Status::Invalid, &[("log", "is not proved to be in the log", Some(3))]);
    let damaged = Damaged::new();
    // The root, below the origin and the size.
    let root = format!("{CONSOLE}\n11\n").len();
    damaged.change("checkpoint", |bytes| {
        bytes[root] = if bytes[root] == b'A' { b'B' } else { b'A' }
    });
    damaged.names(Status::Invalid, &[("log", "on its checkpoint is wrong", None)]);
}

#[test]
fn truncated() {
    let damaged = Damaged::new();
    damaged.change(&record(3), |bytes| bytes.truncate(bytes.len() / 2));
    damaged.names(
        Status::Invalid,
        &[
            ("signatures", "not a DSSE envelope", Some(3)),
            ("log", "is not proved to be in the log", Some(3)),
        ],
    );
    let damaged = Damaged::new();
    damaged.change(&proof(3), |bytes| bytes.truncate(60));
    damaged.names(Status::Invalid, &[("log", "is not proved to be in the log", Some(3))]);
}

#[test]
fn reordered() {
    let damaged = Damaged::new();
    damaged.swap(&record(3), &record(4));
    damaged.names(
        Status::Invalid,
        &[
            ("log", "is not proved to be in the log", Some(3)),
            ("log", "is not proved to be in the log", Some(4)),
            ("sequence", "1 records missing (epoch 1, seq 4)", Some(3)),
            ("sequence", "comes again", Some(4)),
        ],
    );
    // With their proofs: each says which place it is for.
    damaged.swap(&proof(3), &proof(4));
    damaged.names(
        Status::Invalid,
        &[
            ("log", "its proof is for index 4", Some(3)),
            ("log", "its proof is for index 3", Some(4)),
        ],
    );
    // By the console, with a log that is signed anew.
    let mut world = World::full();
    world.log.swap(3, 4);
    all_named(
        &world.report(),
        &[
            ("sequence", "1 records missing (epoch 1, seq 4)", Some(3)),
            ("sequence", "comes again", Some(4)),
        ],
    );
}

#[test]
fn deleted() {
    let damaged = Damaged::new();
    fs::remove_file(damaged.file(&record(3))).unwrap();
    fs::remove_file(damaged.file(&proof(3))).unwrap();
    damaged.names(
        Status::Incomplete,
        &[
            ("log", "1 records of the log are not in the bundle (index 3)", None),
            ("sequence", "1 records missing (epoch 1, seq 4)", Some(4)),
        ],
    );
    let damaged = Damaged::new();
    fs::remove_file(damaged.file(&proof(3))).unwrap();
    damaged.names(Status::Invalid, &[("log", "is not proved to be in the log", Some(3))]);
    // By the console: the request of an approval that it wants forgotten.
    let mut world = World::full();
    world.log.remove(1);
    let report = world.report();
    assert_eq!(report.status, Status::Incomplete);
    all_named(
        &report,
        &[
            ("sequence", "1 records missing (epoch 1, seq 2)", Some(1)),
            ("decisions", "whose record is not before it", Some(1)),
        ],
    );
}

#[test]
fn replayed() {
    let damaged = Damaged::new();
    fs::copy(damaged.file(&record(3)), damaged.file(&record(4))).unwrap();
    damaged.names(
        Status::Invalid,
        &[
            ("log", "is not proved to be in the log", Some(4)),
            ("sequence", "comes again", Some(4)),
        ],
    );
    // By the console: what a host wrote once stands in the log again.
    let mut world = World::full();
    world.log.push(world.log[3].clone());
    let again = world.log.len() as u64 - 1;
    all_named(&world.report(), &[("sequence", "comes again", Some(again))]);
    // By the host: people's answer to an earlier request of the same content.
    let mut world = World::new();
    let (first, digest) = world.request(|_| {});
    let earlier = world.signed(&first, &digest);
    world.decide(&first, &digest, |_| {}, |_| {});
    let (second, digest) = world.request(|r| r.nonce = "cc".repeat(32));
    let decision = world.decide(&second, &digest, |signed| *signed = earlier, |_| {});
    world.enforce(&second, &digest, &decision, |_| {});
    let report = world.report();
    assert_eq!(report.status, Status::Invalid);
    all_named(
        &report,
        &[
            ("decisions", "was decided for another request", Some(4)),
            ("decisions", "by a decision that does not hold", Some(5)),
        ],
    );
}

#[test]
fn swapped_keys() {
    let damaged = Damaged::new();
    let mut trust = damaged.world.trust();
    std::mem::swap(&mut trust.hosts[0].evidence_keys, &mut trust.console.decision_keys);
    // In the bundle: nobody looks there who has keys of their own.
    fs::write(damaged.file("trust.json"), trust.to_json().unwrap()).unwrap();
    damaged.names(Status::Valid, &[]);
    // Given by the auditor: nothing that the host signed holds.
    let report = damaged.world.report_by(&trust);
    assert_eq!(report.status, Status::Invalid);
    all_named(&report, &[("signatures", "which is not one of", Some(0))]);
    // The host's key signs as the console, in a decision.
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    let console = std::mem::replace(&mut world.console_key, SigningKey::from_seed(&[1; 32]));
    world.decide(&request, &digest, |_| {}, |_| {});
    world.console_key = console;
    all_named(&world.report(), &[("decisions", "which is not trusted", Some(2))]);
}

/// The console's own keys sign whatever its thief likes; people whom the log does not know, or who could not, give it away.
#[test]
fn decisions_forged_with_the_consoles_own_key() {
    let staffed = || {
        let mut world = World::new();
        let admin = user("admin", &["administrator"], &[]);
        world.change(ChangedBy::SetupLink, Change::SetUpFinished { user: admin });
        let alice = user("alice", &["approver"], &["code-push"]);
        let head = world.change(by("admin"), Change::UserCreated { user: alice });
        (world, head)
    };
    type Forge = fn(&mut SignedDecision);
    let forged: [(Forge, &str); 4] = [
        (|s| s.answers[0].who = person("mallory"), "who had no account"),
        (
            |s| s.answers[0].groups = vec!["secops".to_owned()],
            "roles or groups that the log does not",
        ),
        (|s| s.owner = Some(person("admin")), "as if admin owned"),
        (|s| s.changes = None, "does not say which changes"),
    ];
    for (forge, words) in forged {
        let (mut world, head) = staffed();
        let (request, digest) = world.request(|_| {});
        let honest = |s: &mut SignedDecision| {
            s.owner = None;
            s.changes = Some(head.clone());
        };
        let decision = world.decide(
            &request,
            &digest,
            |s| {
                honest(s);
                forge(s);
            },
            |_| {},
        );
        let at = world.log.len() as u64 - 1;
        world.enforce(&request, &digest, &decision, |_| {});
        all_named(&world.report(), &[("decisions", words, Some(at))]);
        assert_ne!(world.report().status, Status::Valid);
    }
    // An account for it, made up in the same go, by somebody who may not.
    let (mut world, _) = staffed();
    let mallory = user("mallory", &["approver"], &["code-push"]);
    world.change(by("alice"), Change::UserCreated { user: mallory });
    let at = world.log.len() as u64 - 1;
    let report = world.report();
    assert_eq!(report.status, Status::Invalid);
    all_named(&report, &[("changes", "alice", Some(at))]);
}

/// An old database: the host goes on where the log no longer is.
#[test]
fn rolled_back() {
    let mut world = World::full();
    let kept = world.log.len();
    for _ in 0..3 {
        world.by_policy();
    }
    world.log.truncate(kept);
    world.by_policy();
    let report = world.report();
    assert_eq!(report.status, Status::Incomplete);
    all_named(
        &report,
        &[("sequence", "3 records missing (epoch 1, seq 12–14)", Some(kept as u64))],
    );
    // The bundle with an older head, which the console really signed.
    let damaged = Damaged::new();
    let older = World {
        log: damaged.world.log[..5].to_vec(),
        ..World::new()
    };
    let dir = tempfile::tempdir().unwrap();
    let old = older.write(dir.path(), Filter::default(), |_| true);
    fs::copy(old.join("checkpoint"), damaged.file("checkpoint")).unwrap();
    damaged.names(
        Status::Invalid,
        &[
            ("log", "leads to another checkpoint", Some(0)),
            ("log", "lies beyond the checkpoint", Some(5)),
        ],
    );
}

/// Another history for one host, signed with the log's key: what both show of that host does not fit together.
#[test]
fn forked_for_one_host() {
    let mut world = World::new();
    let fork = world.chain.clone();
    world.by_policy();
    let mut other = World {
        chain: fork,
        log: world.log[..1].to_vec(),
        clock: 1,
        ..World::new()
    };
    other.lifecycle(Lifecycle::EventsLost { count: 9 });
    // The host itself never signs two records of one place; whoever has its key does.
    let both = World {
        log: [world.log.clone(), other.log[1..].to_vec()].concat(),
        ..World::new()
    };
    let report = both.report();
    assert_eq!(report.status, Status::Invalid);
    all_named(&report, &[("sequence", "sequence 2 of epoch 1 comes again", Some(2))]);
    // Records of the one history go on over the other.
    world.by_policy();
    other.log.push(world.log[2].clone());
    let report = other.report();
    assert_eq!(report.status, Status::Invalid);
    all_named(&report, &[("sequence", "names another record before it", Some(2))]);
}

#[test]
fn clocks_set_back() {
    // The one since boot cannot be.
    let mut world = World::full();
    world.clock = 0;
    world.by_policy();
    let last = world.log.len() as u64 - 1;
    let report = world.report();
    assert_eq!(report.status, Status::Invalid);
    all_named(&report, &[("sequence", "by the clock since boot", Some(last))]);
    // The other one can; it is said, and an answer does not become younger by it.
    let mut world = World::new();
    let (request, digest) = world.request(|_| {});
    world.at = "2026-11-21T09:00:00.000Z".to_owned();
    world.decide(&request, &digest, |_| {}, |_| {});
    let report = world.report();
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    all_named(&report, &[("sequence", "its clock was set back by 3600 s", Some(2))]);
}
