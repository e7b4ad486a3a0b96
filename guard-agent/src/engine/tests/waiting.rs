//! Questions that wait: their quota, their list, their end without an answer.

use std::sync::atomic::Ordering;
use std::time::Duration;

use guard_evidence::record::{Effect, Predicate, Statement};
use guard_proto::v1;
use tokio::sync::{mpsc, oneshot};

use super::world::{ASK_ALL, world, world_with};
use crate::engine::Event;
use crate::kernel::api::{
    ActionId, Argv, FromKernel, Held, HeldExec, HeldHow, Outcome, ParkedWhy, Release, ToKernel, Tracer, WithdrawnWhy,
};
use crate::testing::records;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thread_that_dies_withdraws_its_question() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world.withdraws(id, WithdrawnWhy::Died);
    assert_eq!(world.withdrawn().await.why(), v1::withdraw::Why::Died);
    let effect = world.effect(Some(&ask.request_id)).await.effect;
    assert!(matches!(effect, Effect::Withdrawn { why } if why.contains("died")));
    world.approve(&ask);
    assert!(!world.received().await.accepted);
    world.nothing_sent();
    world.left_open(0).await;
    // Before anybody was asked there is nothing to say.
    let early = world.asks("/usr/bin/git");
    world.withdraws(early, WithdrawnWhy::Changed);
    world.is_held(early, &[b"git"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.stats.held.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_label_cannot_fill_the_table() {
    let mut world = world_with(ASK_ALL, 2, Vec::new());
    world.asked("/usr/bin/a", &[b"a"]).await;
    let (second, _) = world.asked("/usr/bin/b", &[b"b"]).await;
    let third = world.asks("/usr/bin/c");
    world.denies(third);
    world.enforced(third, Outcome::Denied);
    let rules = world.effect(None).await.by_policy.unwrap().rules;
    assert!(
        rules[0].description.contains("2 actions of this label are waiting"),
        "{rules:?}"
    );
    world.withdraws(second, WithdrawnWhy::Died);
    world.withdrawn().await;
    world.asked("/usr/bin/d", &[b"d"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_leaves_nothing_behind() {
    let mut world = world(ASK_ALL);
    let ids: Vec<ActionId> = (0..400).map(|n| world.asks(&format!("/usr/bin/{n}"))).collect();
    for id in &ids {
        assert!(matches!(world.sent(), ToKernel::Hold(_)));
        world.is_held(*id, &[b"x"]);
    }
    let mut asks = Vec::new();
    while asks.len() < ids.len() {
        asks.push(world.ask().await);
    }
    // Answers that name nothing do no harm.
    for n in 0..1_000 {
        let id = ActionId {
            tid: n,
            start_ns: 0,
            sequence: u64::from(n) + 1_000_000,
        };
        world.enforced(id, Outcome::Ran);
        world.withdraws(id, WithdrawnWhy::Died);
    }
    for ask in &asks {
        world.approve(ask);
    }
    for _ in &ids {
        let ToKernel::Release {
            id,
            release: Release::AllowChecked(_),
        } = world.sent()
        else {
            panic!()
        };
        world.enforced(id, Outcome::Ran);
    }
    for _ in 0..3_000 {
        if world.stats.allowed.load(Ordering::Relaxed) == 400 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.stats.allowed.load(Ordering::Relaxed), 400);
    assert_eq!(world.stats.held.load(Ordering::Relaxed), 0);
    let ends = |all: &[Statement]| {
        all.iter()
            .filter(|s| matches!(s.predicate, Predicate::Enforcement(_)))
            .count()
    };
    let mut all = records(&world.rig.evidence);
    for _ in 0..100 {
        if ends(&all) >= 400 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        all = records(&world.rig.evidence);
    }
    assert_eq!(ends(&all), 400);
    assert_eq!(
        all.iter()
            .filter(|s| matches!(s.predicate, Predicate::Decision(_)))
            .count(),
        400
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_can_be_listed() {
    let mut world = world(ASK_ALL);
    let (_, ask) = world.asked("/usr/bin/git", &[b"git", b"push"]).await;
    let stopping = world.asks("/usr/bin/make");
    let list = |events: &mpsc::UnboundedSender<Event>| {
        let (reply, wait) = oneshot::channel();
        events.send(Event::Pending { reply }).unwrap();
        wait
    };
    world.sent();
    let waiting = list(&world.events).await.unwrap();
    assert_eq!(waiting.len(), 2);
    let git = waiting.iter().find(|w| w.action.request == ask.request_id).unwrap();
    assert_eq!(
        (git.uid, git.action.held.as_str(), git.action.what.as_str()),
        (1000, "traced", "git push")
    );
    let file = std::fs::File::open("/proc/self/exe").unwrap();
    let held = Held {
        id: stopping,
        how: HeldHow::Parked(ParkedWhy::AlreadyTraced),
        rounds: 1,
        took_ns: 1,
        exec: Some(HeldExec {
            argv: Argv::default(),
            environment: Argv::default(),
            cwd: "/".into(),
            file: Some(file.into()),
            given: "x".into(),
        }),
        tracer: Some(Tracer {
            pid: 7,
            comm: b"strace".to_vec(),
        }),
    };
    world.from_kernel.send(FromKernel::Held(Box::new(held))).unwrap();
    world.ask().await;
    let waiting = list(&world.events).await.unwrap();
    assert!(waiting.iter().any(|w| w.action.held == "parked"));
    let found = world
        .record(|p| matches!(p, Predicate::Request(r) if r.context.as_ref().unwrap().held.as_ref().unwrap().tracer.is_some()))
        .await;
    let Predicate::Request(record) = found else {
        unreachable!()
    };
    let context = record.context.unwrap();
    let held = context.held.unwrap();
    assert!(!held.thread_alone && held.why.unwrap().contains("strace (pid 7) traces this thread"));
    // The file was opened as the test's own executable, which is not where the question says it is.
    assert!(context.path_inside.unwrap().display().contains("guard_agent"));
}
