//! The engine with both of its sides played by the test: the kernel side and the console.

use std::os::unix::ffi::OsStringExt as _;
use std::sync::{Arc, mpsc as std_mpsc};
use std::time::{Duration, Instant};

use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::{
    Answer as PersonsAnswer, HostFacts, PersonId, Predicate, SignedDecision, Statement, Verdict,
};
use guard_proto::v1;
use guard_proto::v1::host_message::Kind;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::approval::open::{OpenQuestion, OpenQuestions};
use crate::config::LabelRules;
use crate::enforce::{Pass, Remembered};
use crate::engine::{Engine, Event, FromConsole, Parts, Stats};
use crate::enrich::Enricher;
use crate::kernel::api::{
    ActionId, Argv, Asked, AskedAction, AskedExec, AtOnce as _, Enforced, FileKey, FromKernel, Held, HeldExec, HeldHow,
    LabelId, Outcome, Release, ToKernel, WithdrawnWhy,
};
use crate::kernel::{KernelHandle, LabelSettings};
use crate::labels::Labels;
use crate::testing::{self, HOST, Rig, records, rig};
use crate::watch::Watchers;

pub(super) struct World {
    pub(super) rig: Rig,
    pub(super) from_kernel: mpsc::UnboundedSender<FromKernel>,
    pub(super) to_kernel: std_mpsc::Receiver<ToKernel>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    pub(super) remembered: Arc<Remembered>,
    pub(super) host: mpsc::Receiver<v1::HostMessage>,
    pub(super) key: SigningKey,
    pub(super) stats: Arc<Stats>,
    pub(super) watchers: Watchers,
    pub(super) next: u64,
}

pub(super) const ASK_ALL: &str = r#"permit(principal, action, resource) when { context.approved };"#;

/// How long anything may take on a busy machine.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn world(policy: &str) -> World {
    world_with(policy, 1_000, Vec::new())
}

pub(super) fn world_with(policy: &str, pending_per_label: u32, left: Vec<OpenQuestion>) -> World {
    let rig = rig();
    let (kernel, to_kernel) = KernelHandle::pair_for_tests();
    std::fs::create_dir(rig.cgroups.join("coder")).unwrap();
    let labels = Labels::at(
        &rig.cgroups,
        &rig.state,
        LabelRules {
            patterns: testing::patterns(&[("coder", "/coder")]),
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
        policy: Arc::new(guard_policy::parse(policy, "p").unwrap()),
        kernel,
        evidence: rig.evidence.clone(),
        remembered: Arc::clone(&remembered),
        exact: None,
        enricher: Arc::new(Enricher::new(Vec::new(), Duration::from_secs(5), testing::redactor())),
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
    pub(super) fn connect(&mut self, stream: u64) {
        let (send, receive) = mpsc::channel(16_384);
        self.host = receive;
        self.events
            .send(Event::Console(FromConsole::Connected { stream, send }))
            .unwrap();
    }

    pub(super) fn asks(&mut self, path: &str) -> ActionId {
        let asked = self.question(path);
        let id = asked.id;
        self.from_kernel.send(FromKernel::Asked(asked)).unwrap();
        id
    }

    pub(super) fn at_once(&mut self, path: &str) -> Option<Pass> {
        let asked = self.question(path);
        self.remembered.allows(&asked)
    }

    /// The kernel's question, not put yet.
    pub(super) fn question(&mut self, path: &str) -> Asked {
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
            connection: None,
            rule: None,
        }
    }

    pub(super) fn is_held(&self, id: ActionId, argv: &[&[u8]]) {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        self.is_held_with(id, argv, Some(file));
    }

    pub(super) fn is_held_with(&self, id: ActionId, argv: &[&[u8]], file: Option<std::fs::File>) {
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
                    gap: None,
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
    pub(super) async fn asked(&mut self, path: &str, argv: &[&[u8]]) -> (ActionId, v1::Ask) {
        let id = self.asks(path);
        self.holds(id);
        self.is_held(id, argv);
        (id, self.ask().await)
    }

    pub(super) fn withdraws(&self, id: ActionId, why: WithdrawnWhy) {
        self.from_kernel.send(FromKernel::Withdrawn { id, why }).unwrap();
    }

    pub(super) fn loads(&self, policy: &str) {
        let policy = Arc::new(guard_policy::parse(policy, "p").unwrap());
        self.events.send(Event::PolicyLoaded(policy)).unwrap();
    }

    /// The next that is sent holds this thread.
    pub(super) fn holds(&self, id: ActionId) {
        assert!(matches!(self.sent(), ToKernel::Hold(held) if held == id));
    }

    /// The next that is sent lets this thread go on, with nothing to compare.
    pub(super) fn allows(&self, id: ActionId) {
        assert!(matches!(self.sent(), ToKernel::Release { id: released, release: Release::Allow } if released == id));
    }

    /// The next that is sent lets this thread's call fail.
    pub(super) fn denies(&self, id: ActionId) {
        assert!(matches!(self.sent(), ToKernel::Release { id: released, release: Release::Deny } if released == id));
    }

    pub(super) fn sent(&self) -> ToKernel {
        self.to_kernel
            .recv_timeout(PATIENCE)
            .expect("nothing was sent to the kernel side")
    }

    /// Questions that an agent after this one would find; waits until there are so many.
    pub(super) async fn left_open(&self, wanted: usize) {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = std::fs::read_dir(self.rig.state.join("open")).unwrap().count();
            if found == wanted {
                return;
            }
            assert!(Instant::now() < end, "{found} questions are left open, not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) fn nothing_sent(&self) {
        assert!(self.to_kernel.recv_timeout(Duration::from_millis(150)).is_err());
    }

    pub(super) async fn message(&mut self) -> Kind {
        let message = tokio::time::timeout(PATIENCE, self.host.recv());
        message
            .await
            .expect("nothing was sent to the console")
            .unwrap()
            .kind
            .unwrap()
    }

    pub(super) async fn ask(&mut self) -> v1::Ask {
        loop {
            match self.message().await {
                Kind::Ask(ask) => return ask,
                Kind::Hello(_) | Kind::Heartbeat(_) | Kind::Outcome(_) => {}
                other => panic!("{other:?} instead of an Ask"),
            }
        }
    }

    pub(super) async fn received(&mut self) -> v1::DecisionReceived {
        loop {
            match self.message().await {
                Kind::DecisionReceived(received) => return received,
                Kind::Heartbeat(_) | Kind::Outcome(_) => {}
                other => panic!("{other:?} instead of a DecisionReceived"),
            }
        }
    }

    pub(super) async fn withdrawn(&mut self) -> v1::Withdraw {
        loop {
            match self.message().await {
                Kind::Withdraw(withdraw) => return withdraw,
                Kind::Heartbeat(_) => {}
                other => panic!("{other:?} instead of a Withdraw"),
            }
        }
    }

    /// The console's answer, changed before it is signed.
    pub(super) fn answer(
        &self,
        ask: &v1::Ask,
        key: &SigningKey,
        change: impl FnOnce(&mut SignedDecision),
    ) -> v1::Decision {
        let verified = dsse::parse(&ask.record)
            .unwrap()
            .verify(&testing::key().public())
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
                authentication: None,
            }],
            quorum: ask.quorum,
            owner: None,
            changes: None,
            grant: None,
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

    pub(super) fn decide(&self, decision: v1::Decision) {
        self.events
            .send(Event::Console(FromConsole::Decision(decision)))
            .unwrap();
    }

    pub(super) fn approve(&self, ask: &v1::Ask) {
        self.decide(self.answer(ask, &self.key, |_| {}));
    }

    pub(super) fn enforced(&self, id: ActionId, outcome: Outcome) {
        self.from_kernel
            .send(FromKernel::Enforced(Enforced {
                id,
                outcome,
                resume_ns: 7,
            }))
            .unwrap();
    }

    /// Waits until a record is there.
    pub(super) async fn record(&self, wanted: impl Fn(&Predicate) -> bool) -> Predicate {
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
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

    pub(super) async fn effect(&self, request: Option<&str>) -> guard_evidence::record::EnforcementRecord {
        let found = self
            .record(|p| matches!(p, Predicate::Enforcement(r) if r.request_id.as_deref() == request))
            .await;
        let Predicate::Enforcement(record) = found else {
            unreachable!()
        };
        *record
    }
}
