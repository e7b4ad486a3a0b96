//! Events for other systems: a real HTTP server, real files; outages, refusals, restarts, rotation.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::routing::post;
use axum_server::tls_rustls::RustlsConfig;
use guard_console::config::{RawSiem, SiemFrom, SiemKind};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{Console, Host, Person, Question};

/// Somebody else's system.
struct Collector {
    url: String,
    /// Its certificate, PEM.
    certificate: String,
    heard: Arc<Mutex<Heard>>,
}

#[derive(Default)]
struct Heard {
    /// What it took, in order.
    taken: Vec<Value>,
    headers: HeaderMap,
    /// What it answers to everything.
    down: Option<(u16, &'static str)>,
    /// It takes nothing with this in it.
    loathes: Option<&'static str>,
    posts: usize,
}

async fn take(State(heard): State<Arc<Mutex<Heard>>>, headers: HeaderMap, body: Bytes) -> (StatusCode, String) {
    let mut heard = heard.lock();
    heard.posts += 1;
    heard.headers = headers;
    if let Some((status, words)) = heard.down {
        return (StatusCode::from_u16(status).unwrap(), words.to_owned());
    }
    let text = String::from_utf8(body.to_vec()).unwrap();
    if heard.loathes.is_some_and(|word| text.contains(word)) {
        return (StatusCode::BAD_REQUEST, "no such field\u{1b}".to_owned());
    }
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    heard.taken.extend(lines);
    (StatusCode::OK, "{}".to_owned())
}

impl Collector {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let heard = Arc::new(Mutex::new(Heard::default()));
        let router = Router::new().route("/events", post(take)).with_state(heard.clone());
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let url = format!("https://localhost:{}/events", tcp.local_addr().unwrap().port());
        let key = signing_key.serialize_pem().into_bytes();
        let tls = RustlsConfig::from_pem(cert.pem().into_bytes(), key).await.unwrap();
        let server = axum_server::from_tcp_rustls(tcp, tls).unwrap();
        tokio::spawn(server.serve(router.into_make_service()));
        Self {
            url,
            certificate: cert.pem(),
            heard,
        }
    }

    fn indices(&self) -> Vec<u64> {
        self.heard.lock().taken.iter().map(index).collect()
    }
}

fn index(event: &Value) -> u64 {
    event["unmapped"]["guard"]["index"].as_u64().unwrap()
}

/// Every record up to the end of the log is told, none twice, in order.
#[track_caller]
fn whole(events: &[Value], size: u64) {
    let mut indices: Vec<u64> = events.iter().map(index).collect();
    assert!(indices.is_sorted(), "{indices:?}");
    let mut uids: Vec<_> = events
        .iter()
        .map(|event| event["metadata"]["uid"].to_string())
        .collect();
    let sign_ins = events.iter().filter(|event| event["type_uid"] == 300_201).count();
    uids.sort();
    uids.dedup();
    // Several records of one session tell one sign-in.
    assert!(uids.len() + sign_ins >= events.len(), "told twice: {events:?}");
    indices.dedup();
    assert_eq!(indices, (0..size).collect::<Vec<_>>());
}

fn output(kind: SiemKind, url: Option<&str>, path: Option<&Path>) -> RawSiem {
    RawSiem {
        name: "out".to_owned(),
        kind,
        path: path.map(Path::to_owned),
        url: url.map(str::to_owned),
        header_file: None,
        ca_file: None,
        from: SiemFrom::Beginning,
        refused_file: None,
    }
}

/// Waits until the one output is so, and gives it.
async fn until(person: &Person, so: impl Fn(&Value) -> bool) -> Value {
    for _ in 0..1_200 {
        let output = person.list("/api/v1/outputs").await.remove(0);
        if so(&output) {
            return output;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("it never came to that: {:?}", person.list("/api/v1/outputs").await);
}

async fn all_out(person: &Person) -> Value {
    until(person, |output| output["behind"] == 0 && output["failing"].is_null()).await
}

async fn record(console: &Console, host: &mut Host) {
    let record = host.lifecycle();
    host.ship(console, &[&record]).await;
}

fn files() -> (tempfile::TempDir, impl Fn(&str, &str) -> PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_owned();
    (dir, move |name: &str, text: &str| {
        let path = root.join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_loses_nothing_and_keeps_nobody_waiting() {
    let collector = Collector::start().await;
    collector.heard.lock().down = Some((503, "down for repair"));
    let (_dir, file) = files();
    let mut http = output(SiemKind::Http, Some(&collector.url), None);
    http.ca_file = Some(file("ca.pem", &collector.certificate));
    http.header_file = Some(file("header", "Authorization: Splunk s3cret\n"));
    let console = Console::start_with(vec![http]).await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let failing = until(&admin, |output| output["failing"].is_string()).await;
    assert_eq!(failing["failing"], "HTTP 503: down for repair");
    // Meanwhile everything goes on.
    let (ask, request) = host.ask(&Question::new("coder", &["git", "push", "\u{202E}"]));
    host.ship(&console, &[&request]).await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let mut session = host.connect(&console).await;
    session.ask(&ask).await;
    let (status, answer) = ann.answer(&ask.request_id, "approve", "release").await;
    assert_eq!(status, 200, "{answer}");
    let decision = session.decision().await;
    let digest = request.payload_digest.clone();
    let done = host.carried_out(&ask.request_id, &digest, &decision.envelope);
    host.ship(&console, &[&done[0], &done[1]]).await;
    assert!(collector.indices().is_empty());

    // Whoever changed the secret there forgot it here: an outage, too.
    collector.heard.lock().down = Some((401, "who are you?"));
    until(&admin, |output| output["failing"] == "HTTP 401: who are you?").await;

    collector.heard.lock().down = None;
    let out = all_out(&admin).await;
    assert_eq!(out["refused"], 0);
    let events = collector.heard.lock().taken.clone();
    whole(&events, out["position"].as_u64().unwrap());
    assert_eq!(out["delivered"], events.len());
    assert_eq!(collector.heard.lock().headers["authorization"], "Splunk s3cret");
    assert!(!format!("{out}{:?}", console.server).contains("s3cret"));
    // The end of it knows the question and the answer, which came in other records.
    let ran = events.iter().find(|event| event["type_uid"] == 100_701).unwrap();
    assert_eq!((&ran["action_id"], &ran["disposition_id"]), (&json!(1), &json!(8)));
    assert_eq!(ran["unmapped"]["guard"]["decided_by"][0]["name"], "ann");
    assert_eq!(ran["process"]["cmd_line"], "git push '⟨U+202E⟩'");
    schema(&events);

    // Another start goes on where the last one ended.
    drop(session);
    let console = console.restart().await;
    let admin = console.sign_in("admin").await;
    record(&console, &mut host).await;
    let out = all_out(&admin).await;
    whole(&collector.heard.lock().taken, out["position"].as_u64().unwrap());
}

/// The packaged schema accepts what a real console made of real records.
#[expect(clippy::print_stdout, reason = "whoever runs the tests is told what was left out")]
fn schema(events: &[Value]) {
    let Some(python) = std::env::var_os("GUARD_PYTHON") else {
        println!("skipped: the events were not held against the OCSF schema (set GUARD_PYTHON)");
        return;
    };
    let file = tempfile::NamedTempFile::new().unwrap();
    let lines: Vec<String> = events.iter().map(|event| format!("{event}\n")).collect();
    fs::write(file.path(), lines.concat()).unwrap();
    let out = std::process::Command::new(python)
        .args(["-c", include_str!("../../../guard-evidence/tests/ocsf.py")])
        .arg(file.path())
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_for_good_is_kept_and_keeps_nothing_back() {
    let collector = Collector::start().await;
    collector.heard.lock().loathes = Some("evil-command");
    let (_dir, file) = files();
    let mut http = output(SiemKind::Http, Some(&collector.url), None);
    http.ca_file = Some(file("ca.pem", &collector.certificate));
    let console = Console::start_with(vec![http]).await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    let before = host.lifecycle();
    let (_, evil) = host.ask(&Question::new("coder", &["evil-command"]));
    let after = host.lifecycle();
    host.ship(&console, &[&before, &evil, &after]).await;
    let out = until(&admin, |output| output["behind"] == 0 && output["refused"] == 1).await;
    let kept = fs::read_to_string(console.file("siem-out.refused.ndjson")).unwrap();
    let kept: Vec<Value> = kept.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(kept.len(), 1);
    assert_eq!(kept[0]["refused"], "HTTP 400: no such field⟨U+001B⟩");
    assert_eq!(kept[0]["event"]["metadata"]["original_event_uid"], evil.envelope_digest);
    let mut told = collector.heard.lock().taken.clone();
    assert!(told.iter().all(|event| index(event) != index(&kept[0]["event"])));
    told.push(kept[0]["event"].clone());
    told.sort_by_key(index);
    whole(&told, out["position"].as_u64().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_nobody_vouches_for_gets_nothing() {
    let collector = Collector::start().await;
    let console = Console::start_with(vec![output(SiemKind::Http, Some(&collector.url), None)]).await;
    let admin = console.set_up().await;
    let out = until(&admin, |output| output["failing"].is_string()).await;
    let why = out["failing"].as_str().unwrap().to_lowercase();
    assert!(why.contains("certificate") || why.contains("unknownissuer"), "{why}");
    assert_eq!((collector.heard.lock().posts, &out["position"]), (0, &json!(0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_has_every_event_whatever_logrotate_does() {
    let dir = tempfile::tempdir().unwrap();
    let (path, old) = (dir.path().join("guard.ndjson"), dir.path().join("guard.ndjson.1"));
    let console = Console::start_with(vec![output(SiemKind::File, None, Some(&path))]).await;
    let admin = console.set_up().await;
    let mut host = console.host(&admin, "build-7").await;
    record(&console, &mut host).await;
    all_out(&admin).await;
    fs::rename(&path, &old).unwrap();
    record(&console, &mut host).await;
    all_out(&admin).await;
    let pid = nix::unistd::getpid();
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    record(&console, &mut host).await;
    all_out(&admin).await;
    // A crash in the middle of a line, before its position was written down.
    let console = {
        let mut console = console;
        console.stop().await;
        let mut text = fs::read_to_string(&path).unwrap();
        text.push_str("{\"half\":");
        fs::write(&path, text).unwrap();
        console.start_again().await
    };
    let admin = console.sign_in("admin").await;
    record(&console, &mut host).await;
    let out = all_out(&admin).await;
    let text = fs::read_to_string(&old).unwrap() + &fs::read_to_string(&path).unwrap();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    whole(&events, out["position"].as_u64().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn opentelemetry_takes_events_as_logs() {
    let collector = Collector::start().await;
    let (_dir, file) = files();
    let mut otlp = output(SiemKind::Otlp, Some(&collector.url), None);
    otlp.ca_file = Some(file("ca.pem", &collector.certificate));
    let console = Console::start_with(vec![otlp]).await;
    let admin = console.set_up().await;
    let out = all_out(&admin).await;
    let heard = collector.heard.lock();
    assert_eq!(heard.headers["content-type"], "application/json");
    let records: Vec<&Value> = heard
        .taken
        .iter()
        .flat_map(|sent| {
            sent["resourceLogs"][0]["scopeLogs"][0]["logRecords"]
                .as_array()
                .unwrap()
        })
        .collect();
    assert_eq!(out["delivered"], records.len());
    assert!(
        records
            .iter()
            .all(|record| record["body"]["kvlistValue"]["values"].is_array())
    );
    assert!(records[0]["timeUnixNano"].as_str().unwrap().ends_with("000000"));
}
