//! Connections: held, asked and allowed by the kernel's key alone.

use guard_common::ActionKey;
use guard_evidence::record::{Action, ConnectHow, Effect, PolicyAction, Predicate, Verdict};
use guard_evidence::statement::{plain_sentence, sentence};

use super::world::{ASK_ALL, World, world};
use crate::kernel::api::{
    ActionId, Asked, AskedAction, AskedReach, FromKernel, Held, HeldHow, Outcome, Peer, ReachHow, Release, ToKernel,
    WithdrawnWhy,
};

impl World {
    /// A connection to 203.0.113.7 is asked by the kernel side.
    fn connects(&mut self, port: u16) -> ActionId {
        let sock = self.next;
        self.connects_by(port, sock)
    }

    /// As above, by a socket that may be another thread's too.
    fn connects_by(&mut self, port: u16, sock: u64) -> ActionId {
        let asked = Asked {
            what: AskedAction::Reach(AskedReach {
                peer: Peer::Address {
                    address: [203, 0, 113, 7].into(),
                    port,
                    scope: 0,
                },
                how: ReachHow::Connect,
                family: 2,
                kind: 1,
                protocol: 6,
            }),
            connection: Some(ActionKey {
                device: port.into(),
                inode: sock,
                ..ActionKey::default()
            }),
            ..self.question("")
        };
        let id = asked.id;
        self.from_kernel.send(FromKernel::Asked(asked)).unwrap();
        id
    }

    fn connection_is_held(&self, id: ActionId) {
        let held = Held {
            id,
            how: HeldHow::Traced,
            rounds: 1,
            took_ns: 1,
            exec: None,
            tracer: None,
        };
        self.from_kernel.send(FromKernel::Held(Box::new(held))).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_is_asked_and_approved_for_its_key() {
    let mut world = world(ASK_ALL);
    let id = world.connects(443);
    world.holds(id);
    world.connection_is_held(id);
    let ask = world.ask().await;
    let Predicate::Request(request) = world.record(|p| matches!(p, Predicate::Request(_))).await else {
        unreachable!()
    };
    let Action::Connect(connect) = &request.action else {
        panic!("{:?}", request.action)
    };
    assert_eq!(connect.protocol, "tcp");
    assert_eq!(
        plain_sentence(&sentence(&request)),
        "coder wants to connect to `203.0.113.7 port 443 (TCP)` on h"
    );
    world.approve(&ask);
    // Nothing is compared: the kernel's key says all of it.
    world.allows(id);
    world.enforced(id, Outcome::Ran);
    let effect = world.effect(Some(&ask.request_id)).await;
    assert_eq!((effect.verdict, effect.effect), (Verdict::Allow, Effect::Ran));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_policy_decides_are_recorded_as_such() {
    let mut world = world(r#"permit(principal, action == Action::"connect", resource) when { context.port == 443 };"#);
    let id = world.connects(443);
    world.allows(id);
    world.enforced(id, Outcome::Ran);
    let decided = world.effect(None).await.by_policy.unwrap();
    let PolicyAction::Connect(connect) = &decided.action else {
        panic!("{:?}", decided.action)
    };
    assert_eq!(connect.how, ConnectHow::Connect);
    // Nobody is held for what the key forbids.
    let id = world.connects(80);
    world.denies(id);
}

/// Three threads ask for one connection: people are asked once.
async fn together(world: &mut World) -> ([ActionId; 3], guard_proto::v1::Ask) {
    let first = world.connects_by(443, 7);
    world.holds(first);
    world.connection_is_held(first);
    let ask = world.ask().await;
    let more = [world.connects_by(443, 7), world.connects_by(443, 7)];
    for id in more {
        world.holds(id);
        world.connection_is_held(id);
    }
    ([first, more[0], more[1]], ask)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn threads_that_share_a_connection_are_one_question() {
    let mut world = world(ASK_ALL);
    let ([first, second, third], ask) = together(&mut world).await;
    world.approve(&ask);
    world.allows(first);
    // The others only when the kernel has it that the socket may.
    world.nothing_sent();
    world.enforced(first, Outcome::Ran);
    let next = [world.sent(), world.sent()].map(|sent| match sent {
        ToKernel::Release {
            id,
            release: Release::Allow,
        } => id,
        other => panic!("{other:?}"),
    });
    assert!(next == [second, third] || next == [third, second]);
    world.enforced(second, Outcome::Ran);
    let decided = world.effect(None).await;
    assert_eq!(decided.effect, Effect::Ran);
    let rule = &decided.by_policy.unwrap().rules[0];
    assert_eq!(rule.id, "builtin:same-connection");
    assert!(rule.description.contains(&ask.request_id), "{rule:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_denied_to_one_thread_is_denied_to_those_behind_it() {
    let mut world = world(ASK_ALL);
    let ([first, second, third], ask) = together(&mut world).await;
    let no = world.answer(&ask, &world.key, |decision| {
        decision.verdict = Verdict::Deny;
        decision.answers[0].verdict = Verdict::Deny;
    });
    world.decide(no);
    world.denies(first);
    world.withdraws(third, WithdrawnWhy::Died);
    world.enforced(first, Outcome::Denied);
    world.denies(second);
    world.enforced(second, Outcome::Denied);
    let rules = world.effect(None).await.by_policy.unwrap().rules;
    assert!(rules[0].description.contains(&ask.request_id), "{rules:?}");
    world.nothing_sent();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_thread_asks_when_the_first_is_gone() {
    let mut world = world(ASK_ALL);
    let ([first, second, third], ask) = together(&mut world).await;
    world.withdraws(first, WithdrawnWhy::Died);
    assert_eq!(world.withdrawn().await.request_id, ask.request_id);
    let again = world.ask().await;
    assert_ne!(again.request_id, ask.request_id);
    world.approve(&again);
    assert!(world.received().await.accepted);
    let ToKernel::Release {
        id,
        release: Release::Allow,
    } = world.sent()
    else {
        panic!("not allowed")
    };
    assert!(id == second || id == third);
    world.enforced(id, Outcome::Ran);
    world.allows(if id == second { third } else { second });
    // Another socket is another question.
    let other = world.connects_by(443, 8);
    world.holds(other);
    world.connection_is_held(other);
    world.ask().await;
}
