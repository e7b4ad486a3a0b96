//! People's answers: what counts as one, what it does to the held thread, and what of it is on disk when.

use std::sync::atomic::Ordering;
use std::time::Duration;

use guard_evidence::key::SigningKey;
use guard_evidence::record::{DecidedBy, Effect, Lifecycle, Predicate, SignedDecision, Verdict};
use guard_proto::control::RunEvent;
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;

use super::world::{ASK_ALL, World, world};
use crate::engine::{Event, FromConsole};
use crate::kernel::api::{Mismatch, MismatchWhat, Outcome, Release, ToKernel, WithdrawnWhy};
use crate::testing::{self, records};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn approved_is_released_only_with_its_decision_on_disk() {
    let mut world = world(ASK_ALL);
    world.watchers.begin("r", 1000, "/coder").unwrap();
    let mut watch = world.watchers.watch("r", 1000).unwrap();
    let (id, ask) = world.asked("/usr/bin/git", &[b"git", b"push"]).await;
    assert!(matches!(watch.recv().await, Some(RunEvent::Held { what, .. }) if what.contains("git push")));
    world.approve(&ask);
    let ToKernel::Release {
        id: released,
        release: Release::AllowChecked(expected),
    } = world.sent()
    else {
        panic!()
    };
    assert_eq!((released, expected.argv_sha256), (id, [1; 32]));
    let on_disk = records(&world.rig.evidence);
    assert!(
        on_disk
            .iter()
            .any(|s| matches!(&s.predicate, Predicate::Decision(r) if r.request_id == ask.request_id)),
        "the decision is durable before the release"
    );
    assert!(world.received().await.accepted);
    world.enforced(id, Outcome::Ran);
    let effect = world.effect(Some(&ask.request_id)).await;
    assert_eq!(
        (effect.verdict, effect.effect, effect.resume_ns),
        (Verdict::Allow, Effect::Ran, 7)
    );
    assert!(effect.decision_digest.is_some() && effect.request_digest.is_some());
    assert!(matches!(world.message().await, Kind::Outcome(o) if o.what() == v1::outcome::What::Ran));
    assert!(
        matches!(watch.recv().await, Some(RunEvent::Approved { by, reason, .. }) if by == ["ann"] && reason == "fine")
    );
    assert_eq!(world.stats.held.load(Ordering::Relaxed), 0);
    assert_eq!(world.stats.allowed.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_denies() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world.decide(world.answer(&ask, &world.key, |decision| {
        decision.verdict = Verdict::Deny;
        decision.answers[0].verdict = Verdict::Deny;
    }));
    world.denies(id);
    world.enforced(id, Outcome::Denied);
    assert_eq!(world.effect(Some(&ask.request_id)).await.effect, Effect::Denied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_whole_is_refused_and_the_thread_goes_on_waiting() {
    let mut world = world(r#"@quorum("2") permit(principal, action, resource) when { context.approved };"#);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    let two = |decision: &mut SignedDecision| {
        let mut second = decision.answers[0].clone();
        second.who.subject = "ben".to_owned();
        decision.answers.push(second);
    };
    let two_but = |change: fn(&mut SignedDecision)| {
        world.answer(&ask, &world.key, |d| {
            two(d);
            change(d);
        })
    };
    let other_key = SigningKey::from_seed(&[1; 32]);
    let bad: Vec<(v1::Decision, &str)> = vec![
        (world.answer(&ask, &other_key, two), "not trusted"),
        (world.answer(&ask, &world.key, |_| {}), "1 of 2 people"),
        (
            world.answer(&ask, &world.key, |d| {
                d.answers.push(d.answers[0].clone());
            }),
            "twice",
        ),
        (two_but(|d| d.request_digest = "0".repeat(64)), "digest differs"),
        (two_but(|d| d.expires_at = "2020-01-01T00:00:00Z".to_owned()), "expired"),
        (two_but(|d| d.nonce = "0".repeat(64)), "nonce"),
        (two_but(|d| d.owner = Some(d.answers[1].who.clone())), "owns"),
        (
            v1::Decision {
                request_id: ask.request_id.clone(),
                envelope: b"{}".to_vec(),
            },
            "envelope",
        ),
    ];
    for (decision, why) in bad {
        world.decide(decision);
        let received = world.received().await;
        assert!(
            !received.accepted && received.refused_because.contains(why),
            "{received:?}"
        );
        world
            .record(|p| {
                matches!(p, Predicate::Lifecycle(r)
                    if matches!(&r.event, Lifecycle::DecisionRefused { because, .. } if because.contains(why)))
            })
            .await;
    }
    world.nothing_sent();
    assert_eq!(world.stats.held.load(Ordering::Relaxed), 1);
    world.decide(world.answer(&ask, &world.key, two));
    assert!(
        matches!(world.sent(), ToKernel::Release { id: released, release: Release::AllowChecked(_) } if released == id)
    );
    assert!(world.received().await.accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_counts_once() {
    let mut world = world(ASK_ALL);
    let (first, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    let decision = world.answer(&ask, &world.key, |_| {});
    world.decide(decision.clone());
    assert!(matches!(world.sent(), ToKernel::Release { id, .. } if id == first));
    assert!(world.received().await.accepted);
    // The console did not hear it and says it again.
    world.decide(decision.clone());
    assert!(world.received().await.accepted);
    world.enforced(first, Outcome::Ran);
    // The same command again is a new question, for which the old answer does not hold.
    let (_, second) = world.asked("/usr/bin/git", &[b"git"]).await;
    assert_ne!(second.request_id, ask.request_id);
    world.decide(v1::Decision {
        request_id: second.request_id.clone(),
        envelope: decision.envelope,
    });
    let received = world.received().await;
    assert!(
        !received.accepted && received.refused_because.contains("another request"),
        "{received:?}"
    );
    world.nothing_sent();
    let unknown = v1::Decision {
        request_id: "01J00000000000000000000009".to_owned(),
        envelope: Vec::new(),
    };
    world.decide(unknown);
    assert!(world.received().await.refused_because.contains("not waiting"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_out_denies() {
    let mut world = world(r#"@timeout("1s") permit(principal, action, resource) when { context.approved };"#);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    assert!(ask.expires_at_ms > crate::clock::unix_ms() - 2_000);
    world.denies(id);
    assert_eq!(world.withdrawn().await.why(), v1::withdraw::Why::TimedOut);
    let found = world.record(|p| matches!(p, Predicate::Decision(_))).await;
    assert!(matches!(found, Predicate::Decision(r) if r.by == DecidedBy::Timeout && r.verdict == Verdict::Deny));
    // Too late.
    world.approve(&ask);
    assert!(!world.received().await.accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_that_refuses_the_question_denies() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    let received = v1::AskReceived {
        request_id: ask.request_id.clone(),
        accepted: false,
        refused_because: "too many\u{1b}[31m".to_owned(),
    };
    world
        .events
        .send(Event::Console(FromConsole::AskReceived(received)))
        .unwrap();
    world.denies(id);
    let found = world.record(|p| matches!(p, Predicate::Decision(_))).await;
    let Predicate::Decision(record) = found else { panic!() };
    assert!(matches!(record.by, DecidedBy::Host { because } if because.contains("too many⟨U+001B⟩")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_that_differs_is_recorded_as_killed() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world.approve(&ask);
    world.sent();
    world.received().await;
    let mismatch = Mismatch {
        what: MismatchWhat::Argv,
        approved: "aa".to_owned(),
        found: "bb".to_owned(),
    };
    world.enforced(id, Outcome::Killed(mismatch));
    let effect = world.effect(Some(&ask.request_id)).await.effect;
    assert_eq!(
        effect,
        Effect::Killed {
            what: "argv".to_owned(),
            approved: testing::redactor().digest(&[0xaa]),
            found: testing::redactor().digest(&[0xbb]),
        }
    );
    assert!(
        matches!(world.message().await, Kind::Outcome(o) if o.what() == v1::outcome::What::Killed && o.detail.contains("arguments"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_stays_open_until_its_effect_is_on_disk() {
    let mut world = world(ASK_ALL);
    let open = |world: &World| {
        std::fs::read_dir(world.rig.state.join("open"))
            .unwrap()
            .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
            .collect::<Vec<_>>()
    };
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    assert!(open(&world)[0].contains("\"decided\":null"), "{:?}", open(&world));
    world.approve(&ask);
    world.sent();
    assert!(open(&world)[0].contains("\"verdict\":\"allow\""), "{:?}", open(&world));
    world.enforced(id, Outcome::Ran);
    world.effect(Some(&ask.request_id)).await;
    while !open(&world).is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_that_came_too_late_is_recorded_and_leaves_nothing() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world.approve(&ask);
    assert!(matches!(world.sent(), ToKernel::Release { .. }));
    assert!(world.received().await.accepted);
    world.withdraws(id, WithdrawnWhy::Died);
    let record = world.effect(Some(&ask.request_id)).await;
    assert!(matches!(record.effect, Effect::Withdrawn { .. }) && record.decision_digest.is_some());
    assert!(matches!(world.message().await, Kind::Outcome(o) if o.what() == v1::outcome::What::Died));
}
