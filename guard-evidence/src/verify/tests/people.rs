//! Decisions against what the console had recorded of owners, roles and groups.

use super::*;
use crate::change::{Change, ChangeRecord, ChangedBy, ChangesHead, LabelFacts, ProviderFacts, UserFacts};
use crate::grant::{Grant, GrantUse, Scope};

pub(super) fn user(name: &str, roles: &[&str], groups: &[&str]) -> UserFacts {
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
    UserFacts {
        who: person(name),
        name: name.to_owned(),
        roles: strings(roles),
        groups: strings(groups),
        service: false,
    }
}

pub(super) fn by(name: &str) -> ChangedBy {
    ChangedBy::Person {
        who: person(name),
        name: name.to_owned(),
        roles: vec!["administrator".to_owned()],
        channel: "web".to_owned(),
        signed_in_at: "2026-11-21T09:00:00.000Z".to_owned(),
    }
}

fn owner(label: &str, before: Option<&str>, after: Option<&str>) -> Change {
    let facts = |owner: &str| LabelFacts {
        owner: Some(person(owner)),
        owner_name: None,
        description: String::new(),
    };
    Change::Label {
        label: label.to_owned(),
        before: before.map(facts),
        after: after.map(facts),
    }
}

impl World {
    pub(super) fn change(&mut self, by: ChangedBy, change: Change) -> ChangesHead {
        self.clock += 1;
        let stamp = Stamp {
            at: "2026-11-21T09:59:00.000Z".to_owned(),
            since_boot_ns: self.clock,
            boot_id: "c".to_owned(),
        };
        let sealed = self
            .console_chain
            .seal(&self.console_key, stamp, |header| {
                Predicate::Change(Box::new(ChangeRecord {
                    header,
                    by,
                    change,
                    why: None,
                }))
            })
            .unwrap();
        self.log.push(sealed.envelope.clone());
        ChangesHead {
            epoch: sealed.header.epoch,
            sequence: sealed.header.sequence,
            digest: sealed.envelope_digest,
        }
    }

    /// An administrator, the approver `alice`, and `coder`, owned by `owner`.
    pub(super) fn staffed() -> (Self, ChangesHead) {
        let mut world = Self::new();
        world.change(
            ChangedBy::SetupLink,
            Change::SetUpFinished {
                user: user("admin", &["administrator"], &[]),
            },
        );
        for facts in [
            user("owner", &["operator"], &[]),
            user("alice", &["approver"], &["code-push"]),
        ] {
            world.change(by("admin"), Change::UserCreated { user: facts });
        }
        let head = world.change(by("admin"), owner("coder", None, Some("owner")));
        (world, head)
    }

    fn approve(&mut self, change: impl FnOnce(&mut SignedDecision)) -> u64 {
        let (request, digest) = self.request(|_| {});
        let decision = self.decide(&request, &digest, change, |_| {});
        let index = self.log.len() as u64 - 1;
        self.enforce(&request, &digest, &decision, |_| {});
        index
    }
}

#[test]
fn a_decision_stands_on_the_changes_that_it_knew() {
    let (mut world, head) = World::staffed();
    world.approve(|s| s.changes = Some(head.clone()));
    // The owner changes while a decision is under way: it is judged by what its console knew.
    world.change(by("admin"), owner("coder", Some("owner"), Some("alice")));
    world.approve(|s| s.changes = Some(head.clone()));
    let report = world.report();
    assert_eq!(report.status, Status::Valid, "{report:#?}");
}

#[test]
fn another_owner_than_the_recorded_one_is_found() {
    let (mut world, head) = World::staffed();
    let index = world.approve(|s| {
        s.changes = Some(head);
        s.owner = None;
    });
    world.wrong(
        Status::Invalid,
        "decisions",
        "as if nobody owned coder, but the log says owner",
        index,
    );
}

#[test]
fn roles_and_groups_come_from_the_log() {
    let (mut world, head) = World::staffed();
    let index = world.approve(|s| {
        s.changes = Some(head.clone());
        s.answers[0].groups.push("secops".to_owned());
    });
    world.wrong(Status::Invalid, "decisions", "gives alice roles or groups", index);

    let (mut world, head) = World::staffed();
    let index = world.approve(|s| {
        s.changes = Some(head);
        s.answers[0].who = person("mallory");
        s.answers[0].name = "mallory".to_owned();
    });
    world.wrong(Status::Invalid, "decisions", "mallory, who had no account", index);

    let (mut world, _) = World::staffed();
    let head = world.change(
        by("admin"),
        Change::UserDisabled {
            user: user("alice", &["approver"], &["code-push"]),
        },
    );
    let index = world.approve(|s| s.changes = Some(head));
    world.wrong(Status::Invalid, "decisions", "alice, whose account was disabled", index);
}

#[test]
fn a_decision_names_its_changes() {
    let (mut world, _) = World::staffed();
    let index = world.approve(|_| {});
    world.wrong(Status::Incomplete, "decisions", "does not say which changes", index);

    let (mut world, mut head) = World::staffed();
    head.digest = "0".repeat(64);
    let index = world.approve(|s| s.changes = Some(head));
    world.wrong(Status::Invalid, "decisions", "is not before it in the log", index);

    // A change that was recorded only after the decision was.
    let (mut world, _) = World::staffed();
    let (request, digest) = world.request(|_| {});
    let at = world.log.len() as u64;
    let mut later = next_of(&world);
    let head = later.change(by("admin"), owner("coder", Some("owner"), Some("alice")));
    let decision = world.decide(&request, &digest, |s| s.changes = Some(head), |_| {});
    world.enforce(&request, &digest, &decision, |_| {});
    world.log.push(later.log.last().unwrap().clone());
    world.wrong(Status::Invalid, "decisions", "is not before it in the log", at);
}

/// A world whose console goes on where this one's is.
fn next_of(world: &World) -> World {
    World {
        console_chain: world.console_chain.clone(),
        clock: world.clock,
        ..World::new()
    }
}

#[test]
fn changes_are_judged_too() {
    type Case = (ChangedBy, Change, &'static str);
    let cases: Vec<Case> = vec![
        (
            by("alice"),
            owner("coder", Some("owner"), Some("admin")),
            "was done by alice, who was no administrator",
        ),
        (
            by("mallory"),
            owner("coder", Some("owner"), Some("admin")),
            "mallory, who had no account",
        ),
        (
            by("admin"),
            owner("coder", Some("alice"), Some("admin")),
            "coder was otherwise before",
        ),
        (
            by("admin"),
            owner("coder", None, Some("admin")),
            "coder was otherwise before",
        ),
        (
            by("admin"),
            Change::UserCreated {
                user: user("alice", &["administrator"], &[]),
            },
            "an account alice already",
        ),
        (
            by("admin"),
            Change::UserDisabled {
                user: user("alice", &["auditor"], &[]),
            },
            "alice was another before",
        ),
        (
            ChangedBy::SetupLink,
            Change::SetUpFinished {
                user: user("second", &["administrator"], &[]),
            },
            "set-up that was finished",
        ),
        (
            ChangedBy::Found,
            owner("data", None, Some("alice")),
            "before changes were recorded, after they were",
        ),
        (
            ChangedBy::Token {
                token: "ab".to_owned(),
                made_by: person("admin"),
                name: None,
            },
            Change::HostJoined {
                host_id: HOST.to_owned(),
                name: "build-7".to_owned(),
                evidence_key: "00".to_owned(),
            },
            "a token that nobody made",
        ),
    ];
    for (by, change, words) in cases {
        let (mut world, _) = World::staffed();
        let index = world.log.len() as u64;
        world.change(by, change);
        world.wrong(Status::Invalid, "changes", words, index);
    }
}

#[test]
fn a_missing_change_is_not_taken_for_none() {
    let (mut world, _) = World::staffed();
    // Index 0 is the host's; 4 is the owner's change.
    let head = world.change(by("admin"), owner("coder", Some("owner"), Some("admin")));
    world.approve(|s| {
        s.changes = Some(head);
        s.owner = Some(person("admin"));
    });
    assert_eq!(world.report().status, Status::Valid);
    let dir = tempfile::tempdir().unwrap();
    let path = world.write(dir.path(), Filter::default(), |index| index != 4);
    let report = verify(
        &Bundle::open(&path).unwrap(),
        &world.trust(),
        TrustSource::Given,
        Asked::WholeLog,
    );
    assert_eq!(report.status, Status::Incomplete, "{report:#?}");
    let decisions = report.sections.iter().find(|s| s.name == "decisions").unwrap();
    assert!(
        decisions
            .findings
            .iter()
            .any(|f| f.text.contains("some of their changes")),
        "{report:#?}"
    );
}

#[test]
fn an_approver_whom_the_owner_made_is_noted() {
    let (mut world, _) = World::staffed();
    let head = world.change(by("admin"), owner("coder", Some("owner"), Some("admin")));
    let index = world.approve(|s| {
        s.changes = Some(head);
        s.owner = Some(person("admin"));
    });
    let words = "was decided by alice, whose account was made by admin, the owner of coder";
    world.wrong(Status::Valid, "decisions", words, index);
    // Somebody else owns it: nothing to say.
    let (mut world, head) = World::staffed();
    world.approve(|s| s.changes = Some(head));
    assert!(!format!("{:?}", world.report()).contains("whose account was made"));
}

#[test]
fn who_owned_it_yesterday_is_noted() {
    let (mut world, _) = World::staffed();
    world.change(
        by("admin"),
        Change::UserCreated {
            user: user("bob", &["approver"], &["code-push"]),
        },
    );
    world.change(by("admin"), owner("coder", Some("owner"), Some("bob")));
    let head = world.change(by("admin"), owner("coder", Some("bob"), Some("owner")));
    world.approve(|s| {
        s.changes = Some(head);
        s.answers[0].who = person("bob");
        s.answers[0].name = "bob".to_owned();
    });
    let report = world.report();
    assert_eq!(report.status, Status::Valid, "{report:#?}");
    let text = format!("{report:?}");
    assert!(
        text.contains("bob, who had owned coder within the day before"),
        "{text}"
    );
}

const ISSUER: &str = "https://id.example.org";

fn provider(issuer: &str) -> ProviderFacts {
    ProviderFacts {
        issuer: issuer.to_owned(),
        client_id: "guard".to_owned(),
        groups_claim: "groups".to_owned(),
        roles: [("sre".to_owned(), vec!["approver".to_owned()])].into(),
        approver_groups: std::collections::BTreeMap::new(),
    }
}

fn configured(before: Option<ProviderFacts>, after: Option<ProviderFacts>) -> Change {
    Change::Provider {
        provider: "okta".to_owned(),
        before,
        after,
    }
}

fn by_provider(issuer: &str) -> ChangedBy {
    ChangedBy::Provider {
        provider: "okta".to_owned(),
        issuer: issuer.to_owned(),
    }
}

fn from_provider(roles: &[&str]) -> UserFacts {
    UserFacts {
        who: crate::record::PersonId {
            issuer: ISSUER.to_owned(),
            subject: "00u1".to_owned(),
        },
        ..user("okta:zoe", roles, &[])
    }
}

#[test]
fn a_provider_makes_and_changes_its_own_accounts() {
    let (mut world, _) = World::staffed();
    world.change(ChangedBy::Configuration, configured(None, Some(provider(ISSUER))));
    let made = from_provider(&["approver"]);
    world.change(by_provider(ISSUER), Change::UserCreated { user: made.clone() });
    let less = from_provider(&[]);
    let change = Change::UserChanged {
        before: made,
        after: less,
    };
    world.change(by_provider(ISSUER), change);
    let off = configured(Some(provider(ISSUER)), None);
    world.change(ChangedBy::Configuration, off);
    let report = world.report();
    assert_eq!(report.status, Status::Valid, "{report:#?}");
}

#[test]
fn what_a_provider_or_a_key_may_not_be() {
    let service = |roles: &[&str]| UserFacts {
        service: true,
        ..user("ci", roles, &[])
    };
    let key = |user: UserFacts, roles: &[&str]| Change::KeyCreated {
        user,
        key: "k1".to_owned(),
        roles: roles.iter().map(|r| (*r).to_owned()).collect(),
        expires_at: "2026-12-21T09:00:00.000Z".to_owned(),
    };
    let cases = [
        (
            by_provider(ISSUER),
            Change::UserCreated {
                user: user("zoe", &["approver"], &[]),
            },
            "not one of its own",
        ),
        (
            by_provider("https://evil.example.org"),
            Change::UserCreated {
                user: from_provider(&["approver"]),
            },
            "was not configured so",
        ),
        (
            by_provider(ISSUER),
            owner("data", None, Some("alice")),
            "no identity provider can do this",
        ),
        (
            by("admin"),
            configured(Some(provider(ISSUER)), None),
            "only identity providers are configured",
        ),
        (
            ChangedBy::Configuration,
            Change::UserCreated {
                user: user("zoe", &["approver"], &[]),
            },
            "only identity providers are configured",
        ),
        (
            ChangedBy::Configuration,
            configured(None, Some(provider(ISSUER))),
            "was otherwise before than the log says",
        ),
        (
            by("admin"),
            key(user("alice", &["approver"], &["code-push"]), &[]),
            "who is a person",
        ),
        (by("admin"), key(service(&["operator"]), &["auditor"]), "more than"),
    ];
    for (by_whom, change, words) in cases {
        let (mut world, _) = World::staffed();
        world.change(ChangedBy::Configuration, configured(None, Some(provider(ISSUER))));
        let made = Change::UserCreated {
            user: service(&["operator"]),
        };
        world.change(by("admin"), made);
        let index = world.log.len() as u64;
        world.change(by_whom, change);
        world.wrong(Status::Invalid, "changes", words, index);
    }
}

fn grant(request: &RequestRecord, digest: &str) -> Grant {
    Grant {
        id: "g".to_owned(),
        console: CONSOLE.to_owned(),
        host_id: HOST.to_owned(),
        host: "build-7".to_owned(),
        label: "coder".to_owned(),
        scope: Scope::of(request).unwrap(),
        what: "git push".to_owned(),
        request_id: request.request_id.clone(),
        request_digest: digest.to_owned(),
        granted_at: "2026-11-21T09:59:00.000Z".to_owned(),
        expires_at: "2026-11-21T10:30:00.000Z".to_owned(),
        times: Some(2),
    }
}

impl World {
    /// Something that alice granted, and the head after it.
    fn granted() -> (Self, Grant, ChangesHead) {
        let (mut world, _) = Self::staffed();
        let (request, digest) = world.request(|_| {});
        let grant = grant(&request, &digest);
        let made = Change::GrantMade {
            grant: Box::new(grant.clone()),
        };
        let head = world.change(by("alice"), made);
        (world, grant, head)
    }

    fn by_grant(&mut self, grant: &Grant, head: &ChangesHead, number: u32) -> u64 {
        let (grant, head) = (grant.clone(), head.clone());
        self.approve(|signed| {
            signed.changes = Some(head);
            signed.answers[0].shown_digest = grant.request_digest.clone();
            signed.grant = Some(Box::new(GrantUse {
                grant,
                number,
                used_at: "2026-11-21T10:00:01.000Z".to_owned(),
            }));
        })
    }
}

#[test]
fn a_grant_answers_as_often_as_it_says() {
    let (mut world, grant, head) = World::granted();
    world.by_grant(&grant, &head, 1);
    world.by_grant(&grant, &head, 2);
    assert_eq!(world.report().status, Status::Valid, "{:#?}", world.report());
    let index = world.by_grant(&grant, &head, 3);
    world.wrong(Status::Invalid, "decisions", "used up", index);
    let (mut world, grant, head) = World::granted();
    world.by_grant(&grant, &head, 1);
    let index = world.by_grant(&grant, &head, 1);
    world.wrong(Status::Invalid, "decisions", "for the same time twice", index);
}

#[test]
fn a_grant_that_was_not_made_so_or_was_revoked_answers_nothing() {
    let (mut world, grant, head) = World::granted();
    let mut other = grant.clone();
    other.times = None;
    let index = world.by_grant(&other, &head, 1);
    world.wrong(
        Status::Invalid,
        "decisions",
        "another grant than the one that was made",
        index,
    );
    let (mut world, grant, head) = World::granted();
    let mut other = grant.clone();
    other.id = "h".to_owned();
    let index = world.by_grant(&other, &head, 1);
    world.wrong(Status::Invalid, "decisions", "a grant that nobody had made", index);
    let (mut world, grant, _) = World::granted();
    let revoked = Change::GrantRevoked {
        grant: Box::new(grant.clone()),
    };
    let head = world.change(by("admin"), revoked);
    let index = world.by_grant(&grant, &head, 1);
    world.wrong(Status::Invalid, "decisions", "had been revoked", index);
    // Another action than the granted one.
    let (mut world, grant, head) = World::granted();
    let mut other = grant.clone();
    if let Scope::Exec { cwd, .. } = &mut other.scope {
        *cwd = crate::text::Text::from("/elsewhere");
    }
    let index = world.by_grant(&other, &head, 1);
    world.wrong(Status::Invalid, "decisions", "covers another action", index);
}

#[test]
fn who_may_not_approve_grants_nothing() {
    for (name, words) in [("owner", "was no approver"), ("admin", "was no approver")] {
        let (mut world, _) = World::staffed();
        let (request, digest) = world.request(|_| {});
        let grant = Box::new(grant(&request, &digest));
        let index = world.log.len() as u64;
        world.change(by(name), Change::GrantMade { grant });
        let text = format!("{:#?}", world.report());
        assert!(
            text.contains("approver") || text.contains("owns the workload"),
            "{words}: {text}"
        );
        let report = world.report();
        assert_eq!(report.status, Status::Invalid, "{report:#?}");
        assert!(
            report
                .sections
                .iter()
                .any(|s| s.findings.iter().any(|f| f.index == Some(index)))
        );
    }
}
