//! What outlives a connection, and what an agent finds of one before it.

use guard_evidence::record::{Effect, Predicate, Verdict};
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;

use super::world::{ASK_ALL, world, world_with};
use crate::approval::open::{OpenDecision, OpenQuestion};
use crate::engine::{Event, FromConsole};
use crate::evidence::Evidence;
use crate::kernel::api::{Outcome, ToKernel};
use crate::testing::HOST;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_outlive_the_connection() {
    let mut world = world(ASK_ALL);
    let (first, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world
        .events
        .send(Event::Console(FromConsole::Disconnected { stream: 1 }))
        .unwrap();
    let second = world.asks("/usr/bin/make");
    world.holds(second);
    world.is_held(second, &[b"make"]);
    world
        .record(|p| matches!(p, Predicate::Request(r) if r.request_id != ask.request_id))
        .await;
    world.connect(2);
    assert!(matches!(world.message().await, Kind::Hello(h) if h.labels == ["coder"]));
    let (again, new) = (world.ask().await, world.ask().await);
    assert_eq!(again, ask, "the same question, to the byte");
    // An older stream's end does not end the newer one.
    world
        .events
        .send(Event::Console(FromConsole::Disconnected { stream: 1 }))
        .unwrap();
    world.approve(&new);
    assert!(matches!(world.sent(), ToKernel::Release { id, .. } if id == second));
    world.received().await;
    world.approve(&again);
    assert!(matches!(world.sent(), ToKernel::Release { id, .. } if id == first));
    world.received().await;
    // What may have been lost with the stream is said again.
    world.connect(3);
    assert!(matches!(world.message().await, Kind::Hello(_)));
    assert!(world.received().await.accepted && world.received().await.accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_of_an_agent_before_are_ended() {
    let left = OpenQuestion {
        request_id: "01J00000000000000000000007".to_owned(),
        request_digest: "d".repeat(64),
        label: "coder".to_owned(),
        decided: None,
    };
    let answered = OpenQuestion {
        request_id: "01J00000000000000000000008".to_owned(),
        decided: Some(OpenDecision {
            digest: "e".repeat(64),
            verdict: Verdict::Allow,
        }),
        ..left.clone()
    };
    let mut world = world_with(ASK_ALL, 10, vec![left, answered]);
    assert!(matches!(world.message().await, Kind::Hello(_)));
    let withdrawn = world.withdrawn().await;
    assert_eq!(
        (withdrawn.request_id.as_str(), withdrawn.why()),
        ("01J00000000000000000000007", v1::withdraw::Why::HostRestarted)
    );
    let effect = world.effect(Some("01J00000000000000000000007")).await.effect;
    assert!(matches!(effect, Effect::Withdrawn { why } if why.contains("restarted")));
    // The answer to the other one was on disk.
    assert!(world.received().await.accepted);
    let found = world.effect(Some("01J00000000000000000000008")).await;
    assert!(matches!(found.effect, Effect::Withdrawn { why } if why.contains("before it learned")));
    assert_eq!(
        (found.verdict, found.decision_digest),
        (Verdict::Allow, Some("e".repeat(64)))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_agent_knows_from_the_records_what_had_no_end() {
    let mut world = world(ASK_ALL);
    let (ran, first) = world.asked("/usr/bin/git", &[b"git"]).await;
    world.approve(&first);
    world.sent();
    assert!(world.received().await.accepted);
    world.enforced(ran, Outcome::Ran);
    world.effect(Some(&first.request_id)).await;
    let (_, answered) = world.asked("/usr/bin/make", &[b"make"]).await;
    world.approve(&answered);
    world.sent();
    assert!(world.received().await.accepted);
    let (_, open) = world.asked("/usr/bin/ls", &[b"ls"]).await;
    world.rig.evidence.stop();
    let before = Evidence::start(crate::evidence::EvidenceConfig {
        host_id: HOST.to_owned(),
        key: crate::testing::key(),
        directory: world.rig.state.clone(),
        ships: false,
        max_bytes: 64 << 20,
    })
    .unwrap()
    .before();
    assert_eq!(before.ended.get(&first.request_id), Some(&Effect::Ran));
    let asked: Vec<_> = before
        .asked
        .values()
        .map(|question| {
            (
                question.request_id.as_str(),
                question.decided.as_ref().map(|d| d.verdict),
            )
        })
        .collect();
    assert_eq!(
        asked,
        [
            (answered.request_id.as_str(), Some(Verdict::Allow)),
            (open.request_id.as_str(), None)
        ]
    );
    assert!(
        before
            .asked
            .values()
            .all(|question| question.label == "coder" && question.request_digest.len() == 64)
    );
}
