use super::*;
use crate::enrich::Enricher;
use crate::kernel::api::{ActionId, AskedChange, AskedExec, Change, ChangeOp, FileKey, Peer, ReachHow};
use crate::testing::{self, rig};
use guard_policy::{Answer, Policy};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use std::time::Duration;

const CGROUPS: [&str; 3] = ["/coder", "/coder/inner", "/data"];
const LABEL_NAMES: [&str; 2] = ["coder", "data"];

fn pick<'a>(random: &mut StdRng, from: &[&'a str]) -> &'a str {
    from.choose(random).unwrap()
}

fn question(random: &mut StdRng) -> Asked {
    let number: u32 = random.r#gen();
    let path = pick(random, &["/usr/bin/git", "/opt/x/y", "/opt/\u{e9}", ""]);
    Asked {
        id: ActionId {
            tid: number | 1,
            start_ns: random.r#gen(),
            sequence: random.r#gen(),
        },
        label: LabelId(random.gen_range(1..=2)),
        tgid: number,
        ppid: random.r#gen(),
        uid: random.gen_range(0..2),
        gid: random.gen_range(0..2),
        login_uid: random.r#gen::<bool>().then(|| random.gen_range(0..2)),
        cgroup: random.gen_range(0..3),
        comm: format!("c{number}").into_bytes(),
        at_ns: random.r#gen(),
        what: if random.gen_ratio(1, 3) {
            AskedAction::Reach(reach(random))
        } else if random.gen_ratio(1, 3) {
            AskedAction::Change(Box::new(change(random)))
        } else {
            AskedAction::Exec(AskedExec {
                file: FileKey {
                    device: random.r#gen(),
                    inode: random.r#gen(),
                    generation: random.r#gen(),
                },
                path: (!path.is_empty()).then(|| path.into()),
                unlinked: random.gen_ratio(1, 4),
            })
        },
        connection: None,
        rule: None,
    }
}

fn change(random: &mut StdRng) -> AskedChange {
    let path = |random: &mut StdRng| {
        let path = pick(random, &["/opt/x/y", "/usr/x", ""]);
        (!path.is_empty()).then(|| path.into())
    };
    let op = *[
        ChangeOp::Create,
        ChangeOp::Open { truncates: true },
        ChangeOp::Open { truncates: false },
        ChangeOp::Link,
    ]
    .choose(random)
    .unwrap();
    AskedChange {
        file: FileKey {
            device: random.r#gen(),
            inode: random.r#gen(),
            generation: random.r#gen(),
        },
        change: Change {
            op,
            path: path(random),
            second: if op == ChangeOp::Link { path(random) } else { None },
            below_root: None,
            text: Vec::new(),
            directory: random.r#gen(),
            mode: random.r#gen(),
            owner: [None; 2],
            old: None,
        },
    }
}

fn reach(random: &mut StdRng) -> AskedReach {
    let peer = match random.gen_range(0..5) {
        0 | 1 => Peer::Address {
            address: pick(random, &["10.0.0.1", "127.0.0.1", "2001:db8::1"]).parse().unwrap(),
            port: random.gen_range(1..3),
            scope: 0,
        },
        2 => Peer::Unix {
            path: random.r#gen::<bool>().then(|| "/opt/x/y".into()),
        },
        3 => Peer::Abstract(pick(random, &["bus", "x"]).as_bytes().to_vec()),
        _ => Peer::Nameless,
    };
    AskedReach {
        family: if matches!(peer, Peer::Address { .. }) { 2 } else { 1 },
        peer,
        how: ReachHow::Connect,
        kind: random.gen_range(1..3),
        protocol: *[6, 17].choose(random).unwrap(),
    }
}

fn policy(random: &mut StdRng) -> Policy {
    let mut text = String::new();
    for _ in 0..random.gen_range(1..5) {
        let effect = pick(random, &["permit", "permit", "forbid"]);
        let principal = pick(random, &["principal", "principal == Workload::\"coder\""]);
        let (action, resources, conditions): (_, &[&str], &[&str]) = match random.gen_range(0..5) {
            0 | 1 => (
                "action == Action::\"exec\"",
                &[
                    "resource",
                    "resource in Directory::\"/usr\"",
                    "resource == Executable::\"/opt/x/y\"",
                ],
                &[
                    "context.unlinked",
                    "!context.unlinked",
                    "context has path && context.path like \"/usr/*\"",
                    "context has argv && context.argv.contains(\"x\")",
                    "context has cwd",
                ],
            ),
            3 => (
                "action == Action::\"write\"",
                &[
                    "resource",
                    "resource in Directory::\"/opt\"",
                    "resource == File::\"/usr/x\"",
                ],
                &[
                    "context.directory",
                    "context.replaces",
                    "context.operation == \"create\"",
                    "context has new_path && context.new_path like \"/opt/*\"",
                ],
            ),
            2 => (
                "action == Action::\"connect\"",
                &["resource", "resource == Address::\"127.0.0.1\""],
                &[
                    "context.port == 1",
                    "context.protocol == \"tcp\"",
                    "context.loopback",
                    "context.address.isInRange(ip(\"10.0.0.0/8\"))",
                ],
            ),
            _ => (
                "action == Action::\"connect_unix\"",
                &[
                    "resource",
                    "resource in Directory::\"/opt\"",
                    "resource == Socket::\"@bus\"",
                ],
                &["context.name like \"@*\"", "context.protocol == \"stream\""],
            ),
        };
        let general = [
            "true",
            "context.uid == 0",
            "context.gid == 1",
            "context has login_uid && context.login_uid == 1",
            "!(context has login_uid)",
            "context.cgroup == \"/coder/inner\"",
            "context has container",
            "context has user && context.user == \"root\"",
            "context.approved",
        ];
        let (action, conditions) = match random.gen_range(0..3) {
            0 => ("action", &general[..]),
            1 => (action, &general[..]),
            _ => (action, conditions),
        };
        let resource = pick(random, resources);
        let condition = pick(random, conditions);
        text.push_str(&format!(
            "{effect} ({principal}, {action}, {resource}) when {{ {condition} }};\n"
        ));
    }
    guard_policy::parse(&text, "p").unwrap_or_else(|e| panic!("{e}\n{text}"))
}

/// As the engine does it.
fn first_look(enricher: &Enricher, policy: &Policy, asked: &Asked) -> (String, String, Answer) {
    let label = LABEL_NAMES[asked.label.0 as usize - 1];
    let cgroup = CGROUPS[usize::try_from(asked.cgroup).unwrap()];
    let (_, facts) = enricher.of_key(asked, label, cgroup);
    (label.to_owned(), cgroup.to_owned(), policy.evaluate(&facts))
}

#[tokio::test]
async fn a_remembered_answer_is_what_the_policy_would_say() {
    let mut random = StdRng::seed_from_u64(7);
    let rig = rig();
    let enricher = Enricher::new(Vec::new(), Duration::from_secs(5), testing::redactor());
    let (mut remembered_answers, mut learnt) = (0, 0);
    for _ in 0..250 {
        let policy = policy(&mut random);
        let remembered = Remembered::new(rig.evidence.clone());
        for _ in 0..300 {
            let asked = question(&mut random);
            let (label, cgroup, answer) = first_look(&enricher, &policy, &asked);
            match remembered.allows(&asked) {
                Some(pass) => {
                    let Answer::Allow { rules } = answer else {
                        panic!("remembered as allowed, but {answer:?}: {asked:?}")
                    };
                    assert_eq!(
                        *pass.known,
                        Known {
                            label,
                            cgroup,
                            rules,
                            policy_digest: policy.digest.clone(),
                            exact: false,
                        }
                    );
                    remembered_answers += 1;
                }
                None => {
                    if let Answer::Allow { rules } = answer
                        && !policy.reads_user()
                    {
                        learnt += 1;
                        remembered.learn(
                            &asked,
                            Known {
                                label,
                                cgroup,
                                rules,
                                policy_digest: policy.digest.clone(),
                                exact: false,
                            },
                        );
                    }
                }
            }
        }
    }
    assert!(
        remembered_answers > 300 && learnt > 300,
        "{remembered_answers} remembered, {learnt} learnt: the test tests nothing"
    );
}

#[test]
fn an_exact_answer_is_the_same_whoever_asks() {
    let mut random = StdRng::seed_from_u64(11);
    let enricher = Enricher::new(Vec::new(), Duration::from_secs(5), testing::redactor());
    let (mut exact, mut allowed) = (0, 0);
    for _ in 0..150 {
        let policy = policy(&mut random);
        for _ in 0..40 {
            let asked = question(&mut random);
            let (_, facts) = enricher.of_key(&asked, LABEL_NAMES[asked.label.0 as usize - 1], CGROUPS[0]);
            let (.., answer) = first_look(&enricher, &policy, &asked);
            if !policy.is_exact(&facts) {
                continue;
            }
            exact += 1;
            allowed += u32::from(matches!(answer, Answer::Allow { .. }));
            for _ in 0..5 {
                let who = question(&mut random);
                let by_another = Asked {
                    what: asked.what.clone(),
                    label: asked.label,
                    ..who
                };
                let (.., other) = first_look(&enricher, &policy, &by_another);
                assert_eq!(other, answer, "{asked:?} {by_another:?}");
            }
        }
    }
    assert!(
        exact > 300 && allowed > 100,
        "{exact} exact, {allowed} allowed: the test tests nothing"
    );
}

fn known() -> Known {
    Known {
        label: "coder".to_owned(),
        cgroup: "/coder".to_owned(),
        rules: Vec::new(),
        policy_digest: String::new(),
        exact: false,
    }
}

#[tokio::test]
async fn one_label_does_not_push_out_another_and_all_is_forgotten() {
    let mut random = StdRng::seed_from_u64(1);
    let remembered = Remembered::new(rig().evidence);
    let mut mine = question(&mut random);
    mine.label = LabelId(1);
    remembered.learn(&mine, known());
    for number in 0..3 * PER_LABEL {
        let mut other = question(&mut random);
        other.label = LabelId(2);
        other.cgroup = number as u64;
        remembered.learn(&other, known());
    }
    assert!(remembered.allows(&mine).is_some());
    assert!(remembered.labels.lock()[&LabelId(2)].len() <= PER_LABEL);
    for label in 3..2 * u32::try_from(LABELS).unwrap() {
        let mut other = question(&mut random);
        other.label = LabelId(label);
        remembered.learn(&other, known());
    }
    assert!(remembered.labels.lock().len() <= LABELS);
    remembered.learn(&mine, known());
    remembered.forget_all();
    assert!(remembered.allows(&mine).is_none());
}

#[tokio::test]
async fn without_a_place_for_the_record_nothing_is_allowed() {
    let mut random = StdRng::seed_from_u64(1);
    let evidence = rig().evidence;
    let remembered = Remembered::new(evidence.clone());
    let asked = question(&mut random);
    remembered.learn(&asked, known());
    let mut slots = Vec::new();
    while let Some(pass) = remembered.allows(&asked) {
        slots.push(pass.slot);
        assert!(slots.len() < 100_000);
    }
    assert!(evidence.reserve().is_some(), "others still find a place");
    slots.clear();
    assert!(remembered.allows(&asked).is_some());
}
