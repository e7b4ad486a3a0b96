use super::*;
use crate::kernel::KernelHandle;
use crate::kernel::api::ToKernel;
use crate::testing::{self, HOST, Rig, rig};
use guard_evidence::key::Algorithm;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream as StdStream;

struct World {
    rig: Rig,
    socket: PathBuf,
    watchers: Watchers,
    labels: Labels,
    /// Says that every label is in force.
    _kernel: std::thread::JoinHandle<()>,
}

fn world(patterns: &[(&str, &str)]) -> World {
    let rig = rig();
    let (kernel, sent) = KernelHandle::pair_for_tests();
    let labels = Labels::at(
        &rig.cgroups,
        &rig.state,
        crate::config::LabelRules {
            patterns: testing::patterns(patterns),
            ..Default::default()
        },
        "/agent",
        kernel,
        rig.evidence.clone(),
    )
    .unwrap();
    let confirming = labels.clone();
    let kernel = std::thread::spawn(move || {
        for message in sent {
            if let ToKernel::Label { cgroup, .. } = message {
                confirming.applied(cgroup, &Ok(()));
            }
        }
    });
    labels.scan();
    let socket = rig.state.join("run/agent.sock");
    let listener = bind(&socket).unwrap();
    let (events, mut from_control) = mpsc::unbounded_channel();
    let watchers = Watchers::default();
    let context = Context {
        labels: labels.clone(),
        watchers: watchers.clone(),
        evidence: rig.evidence.clone(),
        policy: InForce::new(
            rig.state.join("policy.cedar"),
            Arc::new(guard_policy::Policy::empty()),
            events.clone(),
        ),
        key: Algorithm::P256,
        events,
        stats: Arc::default(),
        host_id: HOST.to_owned(),
        console: None,
        kernel_release: "6".to_owned(),
        enforcing_since: None,
        pin_directory: rig.state.join("no-pins"),
        recent: Recent::default(),
    };
    tokio::spawn(serve(listener, Arc::new(context)));
    tokio::spawn(async move {
        while let Some(event) = from_control.recv().await {
            if let Event::Pending { reply } = event {
                let _ = reply.send(Vec::new());
            }
        }
    });
    World {
        rig,
        socket,
        watchers,
        labels,
        _kernel: kernel,
    }
}

impl World {
    fn connect(&self) -> BufReader<StdStream> {
        let stream = StdStream::connect(&self.socket).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        BufReader::new(stream)
    }

    fn ask(&self, line: &str) -> ControlReply {
        let mut stream = self.connect();
        say(&mut stream, line.as_bytes());
        hear(&mut stream).expect("the agent hung up")
    }
}

fn say(stream: &mut BufReader<StdStream>, line: &[u8]) {
    // A refused peer may be hung up on before it has spoken.
    let _ = stream.get_mut().write_all(line);
    let _ = stream.get_mut().write_all(b"\n");
}

fn hear(stream: &mut BufReader<StdStream>) -> Option<ControlReply> {
    let mut line = String::new();
    match stream.read_line(&mut line) {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(serde_json::from_str(&line).unwrap()),
    }
}

fn refused(reply: ControlReply) -> String {
    match reply {
        ControlReply::Refused { error } => error,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn questions_and_answers() {
    let world = world(&[]);
    assert!(
        matches!(world.ask(r#"{"do":"status"}"#), ControlReply::Status(s) if s.console_state == "not enrolled" && s.enforcing)
    );
    assert!(matches!(world.ask(r#"{"do":"label_list"}"#), ControlReply::Labels { items } if items.is_empty()));
    assert!(matches!(world.ask(r#"{"do":"pending"}"#), ControlReply::Pending { items } if items.is_empty()));
    assert!(matches!(world.ask(r#"{"do":"doctor"}"#), ControlReply::Doctor { findings } if !findings.is_empty()));
    // Whoever runs the tests may be root or not.
    let root = nix::unistd::geteuid().is_root();
    let apply = world.ask(r#"{"do":"policy_apply","text":"permit(principal, action, resource);"}"#);
    assert_eq!(matches!(apply, ControlReply::Done), root, "{apply:?}");
    let error = refused(world.ask(r#"{"do":"policy_apply","text":"permit(principal,\naction, resourc);"}"#));
    assert!(
        error.starts_with(if root { "policy:2:" } else { "only root may" }),
        "{error}"
    );
    let text = world.ask(r#"{"do":"policy_text"}"#);
    assert_eq!(
        matches!(&text, ControlReply::Policy { text } if text == "permit(principal, action, resource);"),
        root,
        "{text:?}"
    );
    // Several questions on one connection.
    let mut stream = world.connect();
    for _ in 0..3 {
        say(&mut stream, br#"{"do":"status"}"#);
        assert!(matches!(hear(&mut stream), Some(ControlReply::Status(_))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn lines_that_are_no_request_are_answered_clearly() {
    let world = world(&[]);
    for line in [
        "",
        "{",
        "null",
        "[]",
        "\"status\"",
        r#"{"do":"explode"}"#,
        r#"{"do":"enter","label":"a"}"#,
    ] {
        let error = refused(world.ask(line));
        assert!(error.contains("not a request"), "{line}: {error}");
    }
    let error = refused(world.ask("{\"do\":\"\u{1b}[31m\"}"));
    assert!(!error.contains('\u{1b}'), "{error:?}");
    let mut stream = world.connect();
    say(&mut stream, b"\xff\xfe");
    assert!(hear(&mut stream).is_none_or(|reply| !refused(reply).is_empty()));
    let mut stream = world.connect();
    say(&mut stream, &vec![b' '; CONTROL_LINE_BYTES + 10]);
    assert!(refused(hear(&mut stream).unwrap()).contains("longer than"));
    assert!(hear(&mut stream).is_none(), "the connection ends");
    // The agent goes on.
    assert!(matches!(world.ask(r#"{"do":"status"}"#), ControlReply::Status(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_labelled_process_is_refused_before_its_first_line() {
    let own = crate::enrich::cgroup(std::process::id()).unwrap();
    if own == "/" {
        // Every process is at or below the root, which cannot be labelled.
        println!("skipped: this process is in the root cgroup");
        return;
    }
    let world = world(&[]);
    std::fs::create_dir_all(world.rig.cgroups.join(&own[1..])).unwrap();
    assert!(
        matches!(world.ask(r#"{"do":"status"}"#), ControlReply::Status(_)),
        "not labelled yet"
    );
    world.labels.add("coder", &own, Source::Run).unwrap();
    let mut stream = world.connect();
    let first = hear(&mut stream).unwrap();
    assert!(
        refused(first).contains("a labelled process (`coder`)"),
        "without having said a word"
    );
    assert!(hear(&mut stream).is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn root_labels_and_takes_labels_away() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let world = world(&[("fixed", "/fixed")]);
    for name in ["a", "fixed"] {
        std::fs::create_dir(world.rig.cgroups.join(name)).unwrap();
    }
    assert!(matches!(
        world.ask(r#"{"do":"label_add","label":"coder","cgroup":"/a"}"#),
        ControlReply::Done
    ));
    let ControlReply::Labels { items } = world.ask(r#"{"do":"label_list"}"#) else {
        panic!()
    };
    assert_eq!(
        (items[0].label.as_str(), items[0].source.as_str()),
        ("coder", "command")
    );
    assert!(matches!(
        world.ask(r#"{"do":"label_remove","cgroup":"/a"}"#),
        ControlReply::Done
    ));
    assert!(refused(world.ask(r#"{"do":"label_remove","cgroup":"/a"}"#)).contains("not labelled"));
    assert!(refused(world.ask(r#"{"do":"label_add","label":"No","cgroup":"/a"}"#)).contains("not a label"));
    assert!(refused(world.ask(r#"{"do":"label_add","label":"x","cgroup":"/../a"}"#)).contains("not a path"));
    assert!(refused(world.ask(r#"{"do":"label_add","label":"x","cgroup":"/agent"}"#)).contains("not there"));
    assert!(refused(world.ask(r#"{"do":"enter","label":"No","run":"r"}"#)).contains("not a label"));
    assert!(refused(world.ask(r#"{"do":"enter","label":"x","run":"../r"}"#)).contains("run id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watching() {
    let world = world(&[]);
    let mut stream = world.connect();
    say(&mut stream, br#"{"do":"watch","run":"r1"}"#);
    assert!(matches!(
        hear(&mut stream),
        Some(ControlReply::Event(RunEvent::Watching))
    ));
    let uid = nix::unistd::geteuid().as_raw();
    world.watchers.begin("r1", uid, "/guard/coder/r1").unwrap();
    world.watchers.publish(
        "/guard/coder/r1",
        &RunEvent::Withdrawn {
            request: "x".to_owned(),
        },
    );
    assert!(matches!(
        hear(&mut stream),
        Some(ControlReply::Event(RunEvent::Withdrawn { .. }))
    ));
    // Many watchers of one run, and one that hangs up.
    drop(stream);
    for _ in 0..50 {
        world.watchers.publish(
            "/guard/coder/r1",
            &RunEvent::Withdrawn {
                request: "x".to_owned(),
            },
        );
    }
    assert!(refused(world.ask(r#"{"do":"watch","run":"a b"}"#)).contains("run id"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_socket_is_made_once() {
    let world = world(&[]);
    assert!(matches!(bind(&world.socket), Err(ControlError::InUse(_))));
    let file = world.rig.state.join("file");
    std::fs::write(&file, "").unwrap();
    assert!(matches!(bind(&file), Err(ControlError::NotASocket(_))));
    let stale = world.rig.state.join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    assert!(bind(&stale).is_ok(), "one that nobody listens on is replaced");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flood_of_connections_is_bounded() {
    let world = world(&[]);
    let held: Vec<_> = (0..CONNECTIONS + 20)
        .filter_map(|_| StdStream::connect(&world.socket).ok())
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    drop(held);
    for _ in 0..1_200 {
        let mut stream = world.connect();
        say(&mut stream, br#"{"do":"status"}"#);
        if matches!(hear(&mut stream), Some(ControlReply::Status(_))) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the agent does not answer any more");
}
