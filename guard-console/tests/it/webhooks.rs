//! Webhooks: what a receiver gets, in which order, and what happens when there is none.

use std::collections::VecDeque;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use guard_console::channel::Event;
use guard_console::config::RawWebhook;
use parking_lot::Mutex;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::support::{Console, Person, Question};

const SECRET: &str = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=";
const OLD_SECRET: &str = "whsec_b2xkLW9sZC1vbGQtb2xkLW9sZC1vbGQtb2xkLW9sZC0=";

/// What came in: the message's id and its body, once its signature was checked.
type Received = (String, Value);

#[derive(Default)]
struct Kept {
    received: Vec<Received>,
    /// Statuses of the next answers; 204 when there is none left.
    answers: VecDeque<u16>,
}

/// A receiver on loopback that checks signatures by the specification's own library.
struct Receiver {
    address: SocketAddr,
    kept: Arc<Mutex<Kept>>,
    task: tokio::task::JoinHandle<()>,
}

impl Receiver {
    async fn start() -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn start_at(address: SocketAddr) -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new()
            .route("/hook/secret-path", post(take))
            .with_state(kept.clone());
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { address, kept, task }
    }

    fn answer_next(&self, statuses: &[u16]) {
        self.kept.lock().answers.extend(statuses);
    }

    /// Waits until it has `count` messages, and gives them.
    async fn received(&self, count: usize) -> Vec<Received> {
        for _ in 0..1_000 {
            let received = self.kept.lock().received.clone();
            if received.len() >= count {
                return received;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{} of {count} messages came", self.kept.lock().received.len());
    }

    async fn stays_at(&self, count: usize) {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let received = &self.kept.lock().received;
        assert_eq!(received.len(), count, "{received:?}");
    }

    fn hook(&self, dir: &Path) -> RawWebhook {
        RawWebhook {
            name: "pager".to_owned(),
            url: format!("http://{}/hook/secret-path", self.address),
            secret_file: secret_file(dir, &[SECRET]),
            events: Vec::new(),
            labels: Vec::new(),
            allow_private: true,
            ca_file: None,
        }
    }
}

async fn take(State(kept): State<Arc<Mutex<Kept>>>, headers: HeaderMap, body: Bytes) -> Response {
    assert_eq!(headers[header::CONTENT_TYPE], "application/json");
    Webhook::new(SECRET).unwrap().verify(&body, &headers).unwrap();
    // Another secret, and other bytes, are noticed.
    let other = Webhook::new("whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").unwrap();
    assert!(other.verify(&body, &headers).is_err());
    assert!(Webhook::new(SECRET).unwrap().verify(&body[1..], &headers).is_err());
    let id = headers["webhook-id"].to_str().unwrap().to_owned();
    let mut kept = kept.lock();
    kept.received.push((id, serde_json::from_slice(&body).unwrap()));
    let status = StatusCode::from_u16(kept.answers.pop_front().unwrap_or(204)).unwrap();
    let to = [(header::LOCATION, "/elsewhere")];
    if status.is_redirection() {
        (status, to).into_response()
    } else {
        status.into_response()
    }
}

fn secret_file(dir: &Path, secrets: &[&str]) -> PathBuf {
    let path = dir.join("hook.secret");
    let mut file = std::fs::File::create(&path).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).unwrap();
    writeln!(file, "{}", secrets.join(" ")).unwrap();
    path
}

fn kinds(received: &[Received]) -> Vec<&str> {
    received
        .iter()
        .map(|(_, body)| body["type"].as_str().unwrap())
        .collect()
}

async fn channel(person: &Person) -> Value {
    let mut channels = person.list("/api/v1/channels").await;
    assert_eq!(channels.len(), 1, "{channels:?}");
    channels.remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_is_told_of_every_step() {
    let outside = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await;
    let mut hook = receiver.hook(outside.path());
    // While secrets are exchanged, either is good.
    hook.secret_file = secret_file(outside.path(), &[OLD_SECRET, SECRET]);
    let console = Console::start_with(vec![hook]).await;
    let admin = console.set_up().await;
    let [ann, bob] = console.approvers(&admin, ["ann", "bob"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let mut question = Question::new("coder", &["git", "push", "--force"]).quorum(2);
    question.evil = Some("<script>\u{202e}*bold*".into());
    let (ask, sealed) = host.ask(&question);
    session.ask(&ask).await;
    receiver.received(1).await;
    ann.answer(&ask.request_id, "approve", "release").await;
    receiver.received(2).await;
    bob.answer(&ask.request_id, "approve", "").await;
    let received = receiver.received(3).await;
    assert_eq!(kinds(&received), ["request.asked", "request.changed", "request.ended"]);
    let data = &received[0].1["data"];
    assert_eq!(data["id"], ask.request_id);
    assert_eq!(data["digest"], sealed.payload_digest);
    assert_eq!(data["state"], "pending");
    assert_eq!((&data["quorum"], &data["approvals"]), (&json!(2), &json!(0)));
    assert_eq!(data["url"], console.url(&format!("/requests/{}", ask.request_id)));
    assert_eq!(data["card"]["arguments"], json!(["git", "push", "--force"]));
    assert_eq!(data["card"]["rules"][0]["id"], "code-push");
    assert_eq!(data["card"]["before"], "The first request of coder.");
    let text = data.to_string();
    assert!(text.contains("⟨U+202E⟩") && !text.contains('\u{202e}'), "{text}");
    assert_eq!(received[1].1["data"]["approvals"], 1);
    assert_eq!(received[1].1["data"]["decisions"][0]["by"], "ann");
    assert_eq!(received[2].1["data"]["state"], "approved");
    // Each step has an id of its own.
    let mut ids: Vec<_> = received.iter().map(|(id, _)| id.clone()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 3);
    receiver.stays_at(3).await;
    let channel = channel(&admin).await;
    assert_eq!(channel["name"], "webhook:pager");
    assert_eq!((&channel["waiting"], &channel["dead_letters"]), (&json!(0), &json!(0)));
    assert!(channel["delivered_at"].is_string());
    // Whoever only answers has nothing to do with it.
    assert_eq!(ann.get("/api/v1/channels").await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_receiver_and_console_are_away() {
    let outside = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await;
    let address = receiver.address;
    let console = Console::start_with(vec![receiver.hook(outside.path())]).await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    receiver.task.abort();
    let _ = receiver.task.await;
    let (first, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&first).await;
    ann.answer(&first.request_id, "deny", "no").await;
    drop(session);
    let console = console.restart().await;
    let mut session = host.connect(&console).await;
    let (second, _) = host.ask(&Question::new("coder", &["ls"]));
    session.ask(&second).await;
    let admin = console.sign_in("admin").await;
    for _ in 0..200 {
        if channel(&admin).await["failed_at"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = channel(&admin).await;
    assert!(seen["waiting"].as_u64().unwrap() >= 3, "{seen}");
    let why = seen["failed_because"].as_str().unwrap();
    assert!(!why.is_empty() && !why.contains("secret-path"), "{seen}");

    let receiver = Receiver::start_at(address).await;
    let received = receiver.received(3).await;
    let of = |id: &str| -> Vec<Received> {
        let mine = received.iter().filter(|(_, body)| body["data"]["id"] == id);
        mine.cloned().collect()
    };
    assert_eq!(kinds(&of(&first.request_id)), ["request.asked", "request.ended"]);
    assert_eq!(kinds(&of(&second.request_id)), ["request.asked"]);
    receiver.stays_at(3).await;
    assert_eq!(channel(&admin).await["waiting"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fails_is_tried_again_in_order_or_given_up() {
    let outside = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await;
    receiver.answer_next(&[500, 302]);
    let console = Console::start_with(vec![receiver.hook(outside.path())]).await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    receiver.received(1).await;
    ann.answer(&ask.request_id, "approve", "").await;
    // The same message three times, a redirect not followed, and only then the next one.
    let received = receiver.received(4).await;
    let asked = "request.asked";
    assert_eq!(kinds(&received), [asked, asked, asked, "request.ended"]);
    assert!(received[..3].iter().all(|one| *one == received[0]));
    assert_ne!(received[3].0, received[0].0);

    // Gone is gone; the next message of the same request goes out all the same.
    receiver.answer_next(&[410]);
    let (ask, _) = host.ask(&Question::new("coder", &["ls"]));
    session.ask(&ask).await;
    receiver.received(5).await;
    ann.answer(&ask.request_id, "deny", "no").await;
    let received = receiver.received(6).await;
    assert_eq!(kinds(&received)[4..], [asked, "request.ended"]);
    let dead = admin.list("/api/v1/dead-letters").await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0]["request_id"], ask.request_id);
    assert_eq!(
        (&dead[0]["event"], &dead[0]["why"]),
        (&json!("asked"), &json!("it answered 410"))
    );
    assert_eq!(ann.get("/api/v1/dead-letters").await.0, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_was_chosen_and_only_from_now_on() {
    let outside = tempfile::tempdir().unwrap();
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (over, _) = host.ask(&Question::new("data", &["old"]));
    session.ask(&over).await;
    ann.answer(&over.request_id, "deny", "no").await;
    let (waits, _) = host.ask(&Question::new("data", &["waits"]));
    session.ask(&waits).await;
    drop(session);

    let receiver = Receiver::start().await;
    let mut hook = receiver.hook(outside.path());
    hook.labels = vec!["data".to_owned()];
    hook.events = vec![Event::Asked];
    let console = console.restart_with(vec![hook]).await;
    let mut session = host.connect(&console).await;
    let received = receiver.received(1).await;
    assert_eq!(received[0].1["data"]["id"], waits.request_id);
    let ann = console.sign_in("ann").await;
    for label in ["coder", "data"] {
        let (ask, _) = host.ask(&Question::new(label, &["new"]));
        session.ask(&ask).await;
        ann.answer(&ask.request_id, "approve", "").await;
    }
    let received = receiver.received(2).await;
    assert_eq!(received[1].1["data"]["card"]["arguments"], json!(["new"]));
    receiver.stays_at(2).await;
    // One that is configured no more is forgotten.
    let console = console.restart_with(Vec::<RawWebhook>::new()).await;
    let admin = console.sign_in("admin").await;
    assert!(admin.list("/api/v1/channels").await.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_to_this_machine_is_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    let receiver = Receiver::start().await;
    let mut hook = receiver.hook(outside.path());
    hook.url = format!("https://localhost:{}/hook/secret-path", receiver.address.port());
    hook.allow_private = false;
    let console = Console::start_with(vec![hook]).await;
    let admin = console.set_up().await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    for _ in 0..500 {
        let seen = channel(&admin).await;
        if let Some(why) = seen["failed_because"].as_str() {
            assert_eq!(why, "its name leads to no address that may be reached");
            receiver.stays_at(0).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nothing was tried");
}
