use super::*;
use crate::approval::open::OpenDecision;
use crate::config::{LabelPattern, LabelRules};
use crate::enforce::Pass;
use crate::kernel::LabelSettings;
use crate::kernel::api::{
    Argv, AskedExec, AskedReach, AtOnce, Enforced, FileKey, HeldExec, HeldHow, Mismatch, MismatchWhat, Outcome,
    ParkedWhy, Peer, ReachHow, Release, Tracer,
};
use crate::policy;
use crate::testing::{HOST, Rig, records, rig};
use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::{
    Answer as PersonsAnswer, DecidedBy, Effect, PersonId, Predicate, SignedDecision, Statement,
};
use guard_proto::control::RunEvent;
use guard_proto::v1::host_message::Kind;
use jiff::Timestamp;
use std::os::unix::ffi::OsStringExt as _;
use std::sync::mpsc as std_mpsc;

struct World {
    rig: Rig,
    from_kernel: mpsc::UnboundedSender<FromKernel>,
    to_kernel: std_mpsc::Receiver<ToKernel>,
    events: mpsc::UnboundedSender<Event>,
    remembered: Arc<Remembered>,
    host: mpsc::Receiver<v1::HostMessage>,
    key: SigningKey,
    stats: Arc<Stats>,
    watchers: Watchers,
    next: u64,
}

const ASK_ALL: &str = r#"permit(principal, action, resource) when { context.approved };"#;

fn world(policy: &str) -> World {
    world_with(policy, 1_000, Vec::new())
}

fn world_with(policy: &str, pending_per_label: u32, left: Vec<OpenQuestion>) -> World {
    let rig = rig();
    let (kernel, to_kernel) = KernelHandle::pair_for_tests();
    std::fs::create_dir(rig.cgroups.join("coder")).unwrap();
    let pattern = LabelPattern {
        name: "coder".to_owned(),
        cgroup: "/coder".to_owned(),
    };
    let labels = Labels::at(
        &rig.cgroups,
        &rig.state,
        LabelRules {
            patterns: vec![pattern],
            default: LabelSettings {
                pending: pending_per_label,
                ..LabelSettings::default()
            },
            ..LabelRules::default()
        },
        "/agent",
        kernel.clone(),
        rig.evidence.clone(),
    )
    .unwrap();
    labels.scan();
    assert!(matches!(
        to_kernel.try_recv(),
        Ok(ToKernel::Settings { label: LabelId(1), .. })
    ));
    assert!(matches!(
        to_kernel.try_recv(),
        Ok(ToKernel::Label { label: LabelId(1), .. })
    ));
    let key = SigningKey::from_seed(&[9; 32]);
    let (stats, watchers) = (Arc::new(Stats::default()), Watchers::default());
    let (events, from_others) = mpsc::unbounded_channel();
    let (from_kernel, kernel_events) = mpsc::unbounded_channel();
    let remembered = Arc::new(Remembered::new(rig.evidence.clone()));
    let parts = Parts {
        host: HostFacts {
            id: HOST.to_owned(),
            name: "h".to_owned(),
            kernel: "6".to_owned(),
            agent_version: "0".to_owned(),
        },
        console: Some((key.public(), "console.example.org/log".to_owned())),
        policy: Arc::new(policy::parse(policy, "p").unwrap()),
        kernel,
        evidence: rig.evidence.clone(),
        remembered: Arc::clone(&remembered),
        enricher: Arc::new(Enricher::new(Vec::new(), Duration::from_secs(5))),
        labels,
        watchers: watchers.clone(),
        open: OpenQuestions::open(&rig.state.join("open")).unwrap().0,
        stats: Arc::clone(&stats),
        boot_id: "b".to_owned(),
        enforcing_since_ms: 1,
    };
    let engine = Engine::new(parts, events.clone(), left);
    tokio::spawn(engine.run(kernel_events, from_others, std::future::pending()));
    let mut world = World {
        rig,
        from_kernel,
        to_kernel,
        events,
        remembered,
        host: mpsc::channel(1).1,
        key,
        stats,
        watchers,
        next: 1,
    };
    world.connect(1);
    world
}

impl World {
    fn connect(&mut self, stream: u64) {
        let (send, receive) = mpsc::channel(16_384);
        self.host = receive;
        self.events
            .send(Event::Console(FromConsole::Connected { stream, send }))
            .unwrap();
    }

    fn asks(&mut self, path: &str) -> ActionId {
        let asked = self.question(path);
        let id = asked.id;
        self.from_kernel.send(FromKernel::Asked(asked)).unwrap();
        id
    }

    fn at_once(&mut self, path: &str) -> Option<Pass> {
        let asked = self.question(path);
        self.remembered.allows(&asked)
    }

    /// The kernel's question, not put yet.
    fn question(&mut self, path: &str) -> Asked {
        let sequence = self.next;
        self.next += 1;
        let id = ActionId {
            tid: u32::MAX - u32::try_from(sequence).unwrap(),
            start_ns: 5,
            sequence,
        };
        Asked {
            id,
            label: LabelId(1),
            tgid: id.tid,
            ppid: 1,
            uid: 1000,
            gid: 1000,
            login_uid: None,
            cgroup: std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(self.rig.cgroups.join("coder")).unwrap()),
            comm: b"sh".to_vec(),
            at_ns: 1,
            what: AskedAction::Exec(AskedExec {
                file: FileKey {
                    device: 1,
                    inode: 2,
                    generation: 3,
                },
                path: (!path.is_empty()).then(|| path.into()),
                unlinked: false,
            }),
        }
    }

    fn is_held(&self, id: ActionId, argv: &[&[u8]]) {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        self.is_held_with(id, argv, Some(file));
    }

    fn is_held_with(&self, id: ActionId, argv: &[&[u8]], file: Option<std::fs::File>) {
        let held = Held {
            id,
            how: HeldHow::Traced,
            rounds: 1,
            took_ns: 1,
            exec: Some(HeldExec {
                argv: Argv {
                    strings: argv.iter().map(|s| s.to_vec()).collect(),
                    count: argv.len() as u64,
                    bytes: 1,
                    sha256: [1; 32],
                    truncated: false,
                },
                environment: Argv::default(),
                cwd: "/srv".into(),
                file: file.map(Into::into),
                given: std::ffi::OsString::from_vec(b"./x".to_vec()),
            }),
            tracer: None,
        };
        self.from_kernel.send(FromKernel::Held(Box::new(held))).unwrap();
    }

    /// From the kernel's question to the console's.
    async fn asked(&mut self, path: &str, argv: &[&[u8]]) -> (ActionId, v1::Ask) {
        let id = self.asks(path);
        assert!(matches!(self.sent(), ToKernel::Hold(held) if held == id));
        self.is_held(id, argv);
        (id, self.ask().await)
    }

    fn sent(&self) -> ToKernel {
        self.to_kernel
            .recv_timeout(Duration::from_secs(10))
            .expect("nothing was sent to the kernel side")
    }

    fn nothing_sent(&self) {
        assert!(self.to_kernel.recv_timeout(Duration::from_millis(150)).is_err());
    }

    async fn message(&mut self) -> Kind {
        let message = tokio::time::timeout(Duration::from_secs(10), self.host.recv());
        message
            .await
            .expect("nothing was sent to the console")
            .unwrap()
            .kind
            .unwrap()
    }

    async fn ask(&mut self) -> v1::Ask {
        loop {
            match self.message().await {
                Kind::Ask(ask) => return ask,
                Kind::Hello(_) | Kind::Heartbeat(_) | Kind::Outcome(_) => {}
                other => panic!("{other:?} instead of an Ask"),
            }
        }
    }

    async fn received(&mut self) -> v1::DecisionReceived {
        loop {
            match self.message().await {
                Kind::DecisionReceived(received) => return received,
                Kind::Heartbeat(_) | Kind::Outcome(_) => {}
                other => panic!("{other:?} instead of a DecisionReceived"),
            }
        }
    }

    async fn withdrawn(&mut self) -> v1::Withdraw {
        loop {
            match self.message().await {
                Kind::Withdraw(withdraw) => return withdraw,
                Kind::Heartbeat(_) => {}
                other => panic!("{other:?} instead of a Withdraw"),
            }
        }
    }

    /// The console's answer, changed before it is signed.
    fn answer(&self, ask: &v1::Ask, key: &SigningKey, change: impl FnOnce(&mut SignedDecision)) -> v1::Decision {
        let verified = dsse::parse(&ask.record)
            .unwrap()
            .verify(&crate::testing::key().public())
            .unwrap();
        let digest = guard_evidence::statement::sha256_hex(&verified.payload);
        let now = Timestamp::now();
        let mut decision = SignedDecision {
            console: "console.example.org/log".to_owned(),
            host_id: HOST.to_owned(),
            request_id: ask.request_id.clone(),
            request_digest: digest.clone(),
            nonce: hex::encode(&ask.nonce),
            verdict: Verdict::Allow,
            answers: vec![PersonsAnswer {
                who: PersonId {
                    issuer: "local".to_owned(),
                    subject: "ann".to_owned(),
                },
                name: "ann".to_owned(),
                groups: vec!["ops".to_owned()],
                roles: vec!["approver".to_owned()],
                verdict: Verdict::Allow,
                reason: "fine".to_owned(),
                at: crate::clock::rfc3339(now),
                channel: "api".to_owned(),
                signed_in_at: crate::clock::rfc3339(now),
                shown_digest: digest,
            }],
            quorum: ask.quorum,
            owner: None,
            changes: None,
            issued_at: crate::clock::rfc3339(now),
            expires_at: crate::clock::rfc3339(now + Duration::from_secs(60)),
        };
        change(&mut decision);
        let payload = Statement::new(Predicate::SignedDecision(Box::new(decision)))
            .to_payload()
            .unwrap();
        v1::Decision {
            request_id: ask.request_id.clone(),
            envelope: dsse::sign(&payload, key).unwrap(),
        }
    }

    fn decide(&self, decision: v1::Decision) {
        self.events
            .send(Event::Console(FromConsole::Decision(decision)))
            .unwrap();
    }

    fn approve(&self, ask: &v1::Ask) {
        self.decide(self.answer(ask, &self.key, |_| {}));
    }

    fn enforced(&self, id: ActionId, outcome: Outcome) {
        self.from_kernel
            .send(FromKernel::Enforced(Enforced {
                id,
                outcome,
                resume_ns: 7,
            }))
            .unwrap();
    }

    /// Waits until a record is there.
    async fn record(&self, wanted: impl Fn(&Predicate) -> bool) -> Predicate {
        for _ in 0..200 {
            if let Some(found) = records(&self.rig.evidence)
                .into_iter()
                .map(|s| s.predicate)
                .find(|p| wanted(p))
            {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("no such record in {:#?}", records(&self.rig.evidence));
    }

    async fn effect(&self, request: Option<&str>) -> guard_evidence::record::EnforcementRecord {
        let found = self
            .record(|p| matches!(p, Predicate::Enforcement(r) if r.request_id.as_deref() == request))
            .await;
        let Predicate::Enforcement(record) = found else {
            unreachable!()
        };
        *record
    }
}

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
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Deny } if released == id));
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
        (
            world.answer(&ask, &world.key, |d| {
                two(d);
                d.request_digest = "0".repeat(64);
            }),
            "digest differs",
        ),
        (
            world.answer(&ask, &world.key, |d| {
                two(d);
                d.expires_at = "2020-01-01T00:00:00Z".to_owned();
            }),
            "expired",
        ),
        (
            world.answer(&ask, &world.key, |d| {
                two(d);
                d.nonce = "0".repeat(64);
            }),
            "nonce",
        ),
        (
            world.answer(&ask, &world.key, |d| {
                two(d);
                d.owner = Some(d.answers[1].who.clone());
            }),
            "owns",
        ),
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
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Deny } if released == id));
    assert_eq!(world.withdrawn().await.why(), v1::withdraw::Why::TimedOut);
    let found = world.record(|p| matches!(p, Predicate::Decision(_))).await;
    assert!(matches!(found, Predicate::Decision(r) if r.by == DecidedBy::Timeout && r.verdict == Verdict::Deny));
    // Too late.
    world.approve(&ask);
    assert!(!world.received().await.accepted);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_policy_judges_what_waits() {
    let mut world = world(ASK_ALL);
    let (first, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    let load = |text: &str| Event::PolicyLoaded(Arc::new(policy::parse(text, "p").unwrap()));
    // The same requirements: the question stays.
    world.events.send(load(&format!("// changed\n{ASK_ALL}"))).unwrap();
    world.nothing_sent();
    // Others: it is asked anew.
    world
        .events
        .send(load(
            r#"@approvers("sec") permit(principal, action, resource) when { context.approved };"#,
        ))
        .unwrap();
    assert_eq!(world.withdrawn().await.why(), v1::withdraw::Why::PolicyChanged);
    let again = world.ask().await;
    assert_eq!(again.approver_groups, ["sec"]);
    assert_ne!(again.request_id, ask.request_id);
    // Forbidden now: denied, and no answer changes that.
    world
        .events
        .send(load(&format!("{ASK_ALL} forbid(principal, action, resource);")))
        .unwrap();
    assert!(matches!(world.sent(), ToKernel::Release { id, release: Release::Deny } if id == first));
    world.withdrawn().await;
    world.approve(&again);
    assert!(!world.received().await.accepted);
    world.nothing_sent();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn questions_outlive_the_connection() {
    let mut world = world(ASK_ALL);
    let (first, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world
        .events
        .send(Event::Console(FromConsole::Disconnected { stream: 1 }))
        .unwrap();
    let second = world.asks("/usr/bin/make");
    assert!(matches!(world.sent(), ToKernel::Hold(id) if id == second));
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
async fn a_thread_that_dies_withdraws_its_question() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world
        .from_kernel
        .send(FromKernel::Withdrawn {
            id,
            why: WithdrawnWhy::Died,
        })
        .unwrap();
    assert_eq!(world.withdrawn().await.why(), v1::withdraw::Why::Died);
    let effect = world.effect(Some(&ask.request_id)).await.effect;
    assert!(matches!(effect, Effect::Withdrawn { why } if why.contains("died")));
    world.approve(&ask);
    assert!(!world.received().await.accepted);
    world.nothing_sent();
    assert_eq!(std::fs::read_dir(world.rig.state.join("open")).unwrap().count(), 0);
    // Before anybody was asked there is nothing to say.
    let early = world.asks("/usr/bin/git");
    world
        .from_kernel
        .send(FromKernel::Withdrawn {
            id: early,
            why: WithdrawnWhy::Changed,
        })
        .unwrap();
    world.is_held(early, &[b"git"]);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.stats.held.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_key_alone_decides_at_once_and_is_recorded() {
    let world = &mut world(
        r#"permit(principal, action, resource in Directory::"/usr/bin");
           forbid(principal, action, resource == Executable::"/usr/bin/dd");"#,
    );
    let allowed = world.asks("/usr/bin/ls");
    assert!(matches!(world.sent(), ToKernel::Release { id, release: Release::Allow } if id == allowed));
    world.enforced(allowed, Outcome::Ran);
    let effect = world.effect(None).await;
    let decided = effect.by_policy.unwrap();
    assert_eq!(
        (effect.verdict, decided.rules[0].id.as_str()),
        (Verdict::Allow, "rule-1")
    );
    assert_eq!(decided.workload.cgroup.as_bytes(), b"/coder");
    let denied = world.asks("/usr/bin/dd");
    assert!(matches!(world.sent(), ToKernel::Release { id, release: Release::Deny } if id == denied));
    let unknown = world.asks("");
    assert!(
        matches!(world.sent(), ToKernel::Release { id, release: Release::Deny } if id == unknown),
        "no path, no allow"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn arguments_decide_through_a_hold() {
    let mut world =
        world(r#"permit(principal, action == Action::"exec", resource) when { context.command == "git status" };"#);
    let run = |world: &mut World, argv: &[&[u8]]| {
        let id = world.asks("/usr/bin/git");
        assert!(matches!(world.sent(), ToKernel::Hold(held) if held == id));
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
    assert!(matches!(world.sent(), ToKernel::Hold(held) if held == id));
    world.connection_is_held(id);
    let ask = world.ask().await;
    let Predicate::Request(request) = world.record(|p| matches!(p, Predicate::Request(_))).await else {
        unreachable!()
    };
    let guard_evidence::record::Action::Connect(connect) = &request.action else {
        panic!("{:?}", request.action)
    };
    assert_eq!(connect.protocol, "tcp");
    let sentence = guard_evidence::statement::plain_sentence(&guard_evidence::statement::sentence(&request));
    assert_eq!(sentence, "coder wants to connect to `203.0.113.7 port 443 (TCP)` on h");
    world.approve(&ask);
    assert!(
        matches!(world.sent(), ToKernel::Release { id: released, release: Release::Allow } if released == id),
        "nothing is compared: the kernel's key says all of it"
    );
    world.enforced(id, Outcome::Ran);
    let effect = world.effect(Some(&ask.request_id)).await;
    assert_eq!((effect.verdict, effect.effect), (Verdict::Allow, Effect::Ran));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_the_policy_decides_are_recorded_as_such() {
    let mut world = world(r#"permit(principal, action == Action::"connect", resource) when { context.port == 443 };"#);
    let id = world.connects(443);
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Allow } if released == id));
    world.enforced(id, Outcome::Ran);
    let decided = world.effect(None).await.by_policy.unwrap();
    let PolicyAction::Connect(connect) = &decided.action else {
        panic!("{:?}", decided.action)
    };
    assert_eq!(connect.how, guard_evidence::record::ConnectHow::Connect);
    // Nobody is held for what the key forbids.
    let id = world.connects(80);
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Deny } if released == id));
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
async fn one_label_cannot_fill_the_table() {
    let mut world = world_with(ASK_ALL, 2, Vec::new());
    world.asked("/usr/bin/a", &[b"a"]).await;
    let (second, _) = world.asked("/usr/bin/b", &[b"b"]).await;
    let third = world.asks("/usr/bin/c");
    assert!(matches!(world.sent(), ToKernel::Release { id, release: Release::Deny } if id == third));
    world.enforced(third, Outcome::Denied);
    let rules = world.effect(None).await.by_policy.unwrap().rules;
    assert!(
        rules[0].description.contains("2 actions of this label are waiting"),
        "{rules:?}"
    );
    world
        .from_kernel
        .send(FromKernel::Withdrawn {
            id: second,
            why: WithdrawnWhy::Died,
        })
        .unwrap();
    world.withdrawn().await;
    world.asked("/usr/bin/d", &[b"d"]).await;
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
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Deny } if released == id));
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
            approved: "aa".to_owned(),
            found: "bb".to_owned()
        }
    );
    assert!(
        matches!(world.message().await, Kind::Outcome(o) if o.what() == v1::outcome::What::Killed && o.detail.contains("arguments"))
    );
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
        world
            .from_kernel
            .send(FromKernel::Withdrawn {
                id,
                why: WithdrawnWhy::Died,
            })
            .unwrap();
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
    for _ in 0..1_500 {
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_policy_allowed_is_answered_at_once_until_it_changes() {
    let allow = r#"permit(principal, action, resource) when { context.uid == 1000 };"#;
    let mut world = world(allow);
    let id = world.asks("/usr/bin/git");
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Allow } if released == id));
    world.enforced(id, Outcome::Ran);
    let again = world.question("/usr/bin/git");
    // Remembered once the verdict is on its way.
    let mut pass = world.remembered.allows(&again);
    for _ in 0..200 {
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
    assert_eq!(decided.policy_digest, policy::parse(allow, "p").unwrap().digest);
    assert_eq!(world.stats.allowed.load(Ordering::Relaxed), 2);

    world
        .events
        .send(Event::PolicyLoaded(Arc::new(policy::parse(ASK_ALL, "p").unwrap())))
        .unwrap();
    // Two queues: what the kernel asks may overtake the policy.
    for _ in 0..200 {
        if world.at_once("/usr/bin/git").is_none() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let id = world.asks("/usr/bin/cc");
    assert!(matches!(world.sent(), ToKernel::Hold(held) if held == id));
    assert!(world.at_once("/usr/bin/git").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_depends_on_a_users_name_is_not_remembered() {
    let mut world = world(
        r#"permit(principal, action, resource) when { !(context has user) || (context has user && context.user != "x") };"#,
    );
    let id = world.asks("/usr/bin/git");
    assert!(matches!(world.sent(), ToKernel::Release { id: released, release: Release::Allow } if released == id));
    assert!(world.at_once("/usr/bin/git").is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_verdict_that_came_too_late_is_recorded_and_leaves_nothing() {
    let mut world = world(ASK_ALL);
    let (id, ask) = world.asked("/usr/bin/git", &[b"git"]).await;
    world.approve(&ask);
    assert!(matches!(world.sent(), ToKernel::Release { .. }));
    assert!(world.received().await.accepted);
    let why = WithdrawnWhy::Died;
    world.from_kernel.send(FromKernel::Withdrawn { id, why }).unwrap();
    let record = world.effect(Some(&ask.request_id)).await;
    assert!(matches!(record.effect, Effect::Withdrawn { .. }) && record.decision_digest.is_some());
    assert!(matches!(world.message().await, Kind::Outcome(o) if o.what() == v1::outcome::What::Died));
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
        spool_directory: world.rig.state.join("spool"),
        epoch_file: world.rig.state.join("epoch"),
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
