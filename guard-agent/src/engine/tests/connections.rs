//! Connections: held, asked and allowed by the kernel's key alone.

use guard_evidence::record::{Action, ConnectHow, Effect, PolicyAction, Predicate, Verdict};
use guard_evidence::statement::{plain_sentence, sentence};

use super::world::{ASK_ALL, World, world};
use crate::kernel::api::{
    ActionId, Asked, AskedAction, AskedReach, FromKernel, Held, HeldHow, Outcome, Peer, ReachHow,
};

impl World {
    /// A connection to 203.0.113.7 is asked by the kernel side.
    fn connects(&mut self, port: u16) -> ActionId {
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
