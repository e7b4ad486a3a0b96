//! What the policy decides without people, and what another policy does to what waits.

use std::sync::atomic::Ordering;
use std::time::Duration;

use guard_evidence::dsse;
use guard_evidence::record::{Action, Effect, Predicate, Statement, Verdict};
use guard_evidence::statement;
use guard_proto::v1;

use super::world::{ASK_ALL, World, world};
use crate::kernel::api::{AtOnce as _, Enforced, FromKernel, Outcome, Release, ToKernel};
use crate::testing;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_alone_decides_at_once_and_is_recorded() {
    let world = &mut world(
        r#"permit(principal, action, resource in Directory::"/usr/bin");
           forbid(principal, action, resource == Executable::"/usr/bin/dd");"#,
    );
    let allowed = world.asks("/usr/bin/ls");
    world.allows(allowed);
    world.enforced(allowed, Outcome::Ran);
    let effect = world.effect(None).await;
    let decided = effect.by_policy.unwrap();
    assert_eq!(
        (effect.verdict, decided.rules[0].id.as_str()),
        (Verdict::Allow, "rule-1")
    );
    assert_eq!(decided.workload.cgroup.as_bytes(), b"/coder");
    let denied = world.asks("/usr/bin/dd");
    world.denies(denied);
    let unknown = world.asks("");
    // No path, no allow.
    world.denies(unknown);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_decide_through_a_hold() {
    let mut world =
        world(r#"permit(principal, action == Action::"exec", resource) when { context.command == "git status" };"#);
    let run = |world: &mut World, argv: &[&[u8]]| {
        let id = world.asks("/usr/bin/git");
        world.holds(id);
        world.is_held(id, argv);
        match world.sent() {
            ToKernel::Release { id: released, release } if released == id => release,
            other => panic!("{other:?}"),
        }
    };
    assert!(matches!(
        run(&mut world, &[b"git", b"status"]),
        Release::AllowChecked(_)
    ));
    assert!(matches!(run(&mut world, &[b"git", b"push"]), Release::Deny));
    assert!(
        matches!(run(&mut world, &[b"git", b"status", b"\xff"]), Release::Deny),
        "not UTF-8"
    );
    assert!(
        matches!(run(&mut world, &[b"git status"]), Release::Deny),
        "one word is not two"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_secret_is_seen_by_the_policy_alone() {
    let mut world = world(
        r#"permit(principal, action, resource) when { context.approved };
           @description("a password that is known to everybody")
           forbid(principal, action == Action::"exec", resource) when { context.argv.contains("hunter3") };"#,
    );
    let argv = |secret: &'static [u8]| [&b"mysql"[..], b"--password", secret];
    let (_, ask) = world.asked("/usr/bin/mysql", &argv(b"hunter2")).await;
    let request = dsse::parse(&ask.record).unwrap();
    let payload = request.verify(&testing::key().public()).unwrap().payload;
    let text = String::from_utf8(payload.clone()).unwrap();
    assert!(
        text.contains("[redacted option ") && !text.contains("hunter2"),
        "{text}"
    );
    assert!(!text.contains(&statement::strings_sha256(&argv(b"hunter2"))));
    let Predicate::Request(request) = Statement::from_payload(&payload).unwrap().predicate else {
        unreachable!()
    };
    let Action::Exec(exec) = request.action else {
        unreachable!()
    };
    assert_eq!(exec.argv_sha256, statement::strings_sha256(&exec.argv));

    let id = world.asks("/usr/bin/mysql");
    world.holds(id);
    world.is_held(id, &argv(b"hunter3"));
    world.denies(id);
    world.enforced(id, Outcome::Denied);
    let record = world.effect(None).await;
    assert!(!serde_json::to_string(&record).unwrap().contains("hunter3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_can_vouch_for_is_denied() {
    let mut world = world(ASK_ALL);
    let id = world.asks("/usr/bin/git");
    assert!(matches!(world.sent(), ToKernel::Hold(_)));
    world.is_held_with(id, &[b"git"], None);
    assert!(matches!(
        world.sent(),
        ToKernel::Release {
            release: Release::Deny,
            ..
        }
    ));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_allowed_is_answered_at_once_until_it_changes() {
    let allow = r#"permit(principal, action, resource) when { context.uid == 1000 };"#;
    let mut world = world(allow);
    let id = world.asks("/usr/bin/git");
    world.allows(id);
    world.enforced(id, Outcome::Ran);
    let again = world.question("/usr/bin/git");
    // Remembered once the verdict is on its way.
    let mut pass = world.remembered.allows(&again);
    for _ in 0..6_000 {
        if pass.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        pass = world.remembered.allows(&again);
    }
    let pass = pass.expect("answered before");
    assert!(world.at_once("/usr/bin/ls").is_none());
    let end = Ok(Enforced {
        id: again.id,
        outcome: Outcome::Ran,
        resume_ns: 77,
    });
    let asked = Box::new(again);
    let tid = asked.id.tid;
    world.from_kernel.send(FromKernel::Passed { asked, pass, end }).unwrap();
    let found = world
        .record(|p| matches!(p, Predicate::Enforcement(r) if r.resume_ns == 77))
        .await;
    let Predicate::Enforcement(record) = found else {
        unreachable!()
    };
    let decided = record.by_policy.unwrap();
    assert_eq!((record.verdict, record.effect), (Verdict::Allow, Effect::Ran));
    assert_eq!(
        (decided.workload.tid, decided.rules.len(), decided.workload.label),
        (tid, 1, "coder".to_owned())
    );
    assert_eq!(decided.policy_digest, guard_policy::parse(allow, "p").unwrap().digest);
    assert_eq!(world.stats.allowed.load(Ordering::Relaxed), 2);

    world.loads(ASK_ALL);
    // Two queues: what the kernel asks may overtake the policy.
    for _ in 0..6_000 {
        if world.at_once("/usr/bin/git").is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = world.asks("/usr/bin/cc");
    world.holds(id);
    assert!(world.at_once("/usr/bin/git").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_a_users_name_is_not_remembered() {
    let mut world = world(
        r#"permit(principal, action, resource) when { !(context has user) || (context has user && context.user != "x") };"#,
    );
    let id = world.asks("/usr/bin/git");
    world.allows(id);
    assert!(world.at_once("/usr/bin/git").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_policy_judges_what_waits() {
    let mut world = world(ASK_ALL);
    let (first, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    // The same requirements: the question stays.
    world.loads(&format!("// changed\n{ASK_ALL}"));
    world.nothing_sent();
    // Others: it is asked anew.
    world.loads(r#"@approvers("sec") permit(principal, action, resource) when { context.approved };"#);
    assert_eq!(world.withdrawn().await.why(), v1::withdraw::Why::PolicyChanged);
    let again = world.ask().await;
    assert_eq!(again.approver_groups, ["sec"]);
    assert_ne!(again.request_id, ask.request_id);
    // Forbidden now: denied, and no answer changes that.
    world.loads(&format!("{ASK_ALL} forbid(principal, action, resource);"));
    world.denies(first);
    world.withdrawn().await;
    world.approve(&again);
    assert!(!world.received().await.accepted);
    world.nothing_sent();
}
