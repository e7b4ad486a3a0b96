//! A console with scripted answers, over real TLS.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{Path, Query, Request as HttpRequest, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use guard_evidence::chain::{Chain, Stamp};
use guard_evidence::key::SigningKey;
use guard_evidence::record::*;
use guard_evidence::statement::{action_word, plain_sentence, sentence, strings_sha256, what};
use guard_evidence::text::Text;
use guard_proto::rest::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::guard;

pub(crate) const TOKEN: &str = "token-of-alice";
pub(crate) const PASSWORD: &str = "correct horse battery";

#[derive(Default)]
pub(crate) struct World {
    pub(crate) requests: Vec<Request>,
    pub(crate) envelopes: BTreeMap<String, Vec<u8>>,
    pub(crate) bundle: Vec<u8>,
    pub(crate) trust: Vec<u8>,
    /// Method, path and body of everything that changes something.
    pub(crate) log: Vec<(String, Value)>,
}

pub(crate) type Shared = Arc<Mutex<World>>;

pub(crate) struct Console {
    pub(crate) url: String,
    pub(crate) ca: PathBuf,
    pub(crate) ca_sha256: String,
    pub(crate) world: Shared,
    pub(crate) home: TempDir,
}

impl Console {
    pub(crate) fn start() -> Self {
        // Several tests of this process install the same one.
        rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
        let home = tempfile::tempdir().unwrap();
        let (ca_pem, ca_der, chain, key) = certificates();
        let ca = home.path().join("ca.pem");
        std::fs::write(&ca, ca_pem).unwrap();
        let world = Shared::default();
        let app = router(world.clone());
        let (send, receive) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async move {
                let tls = axum_server::tls_rustls::RustlsConfig::from_der(chain, key)
                    .await
                    .unwrap();
                let handle = axum_server::Handle::new();
                let listening = handle.clone();
                tokio::spawn(async move { send.send(listening.listening().await.unwrap()).unwrap() });
                let at: SocketAddr = "127.0.0.1:0".parse().unwrap();
                axum_server::bind_rustls(at, tls)
                    .handle(handle)
                    .serve(app.into_make_service())
                    .await
                    .unwrap();
            });
        });
        let address = receive.recv_timeout(Duration::from_secs(60)).unwrap();
        Self {
            url: format!("https://localhost:{}", address.port()),
            ca,
            ca_sha256: guard_evidence::statement::sha256_hex(&ca_der),
            world,
            home,
        }
    }

    /// Signed in as alice.
    pub(crate) fn signed_in() -> Self {
        let console = Self::start();
        let ca = console.ca.to_str().unwrap().to_owned();
        let url = console.url.clone();
        let args = [
            "login",
            "--url",
            &url,
            "--username",
            "alice",
            "--ca",
            &ca,
            "--password-stdin",
        ];
        crate::run_with_input(&mut guard(console.home.path(), &args), &format!("{PASSWORD}\n"))
            .expect(0, &["signed in"]);
        console
    }

    pub(crate) fn guard(&self, args: &[&str]) -> crate::Done {
        crate::run(&mut guard(self.home.path(), args))
    }

    /// Adds a request and gives its id.
    pub(crate) fn ask(&self, argv: &[&str], change: impl FnOnce(&mut Request)) -> String {
        self.ask_for(exec(argv), change)
    }

    /// As above, for any action.
    pub(crate) fn ask_for(&self, action: Action, change: impl FnOnce(&mut Request)) -> String {
        let mut world = self.world.lock().unwrap();
        let n = world.requests.len() as u64 + 1;
        let id = format!("01JD{n:022}");
        let mut record = request_record(&id, action);
        let key = SigningKey::from_seed(&[1; 32]);
        let stamp = Stamp {
            at: "2026-11-21T10:00:00.000Z".to_owned(),
            since_boot_ns: 1,
            boot_id: "b".to_owned(),
        };
        let made = record.clone();
        let sealed = Chain::begin("host:H", 1)
            .seal(&key, stamp, |header| {
                record.header = header;
                Predicate::Request(Box::new(record))
            })
            .unwrap();
        let mut request = Request {
            id: id.clone(),
            state: RequestState::Pending,
            label: "coder".to_owned(),
            host_id: "H".to_owned(),
            host: "build-7".to_owned(),
            action: action_word(&made.action).to_owned(),
            what: what(&made.action, 160),
            sentence: plain_sentence(&sentence(&made)),
            asked_at: "2026-11-21T10:00:00Z".to_owned(),
            expires_at: None,
            approver_groups: vec![],
            quorum: 1,
            approvals: 0,
            owner: Some("owner".to_owned()),
            digest: sealed.payload_digest,
            decisions: vec![],
            outcome: None,
            outcome_detail: None,
            ended_at: None,
            may_answer: true,
            why_not: None,
            grantable: Some("exactly `x` in / by coder on build-7".to_owned()),
            grant: None,
            recent_changes: vec![],
            statement: Value::Null,
        };
        change(&mut request);
        world.envelopes.insert(id.clone(), sealed.envelope);
        world.requests.push(request);
        id
    }
}

fn exec(argv: &[&str]) -> Action {
    Action::Exec(Box::new(ExecAction {
        path: Some(Text::from(format!("/usr/bin/{}", argv[0]))),
        unlinked: false,
        device: 1,
        inode: 2,
        generation: 3,
        sha256: Some("ab".repeat(32)),
        size: Some(1),
        given: Text::from(argv[0]),
        argv: argv.iter().map(|a| Text::from(*a)).collect(),
        argv_count: argv.len() as u64,
        argv_sha256: strings_sha256(argv),
        argv_truncated: false,
        environment: vec![],
        environment_count: 3,
        environment_sha256: strings_sha256::<&str>(&[]),
        cwd: Text::from("/srv/app"),
    }))
}

fn request_record(id: &str, action: Action) -> RequestRecord {
    RequestRecord {
        header: Header {
            signer: String::new(),
            epoch: 0,
            sequence: 0,
            previous: String::new(),
            at: String::new(),
            since_boot_ns: 0,
            boot_id: String::new(),
        },
        request_id: id.to_owned(),
        host: HostFacts {
            id: "H".to_owned(),
            name: "build-7".to_owned(),
            kernel: "6.12".to_owned(),
            agent_version: "0.1.0".to_owned(),
        },
        workload: WorkloadFacts {
            label: "coder".to_owned(),
            cgroup: Text::from("/x"),
            container_id: None,
            uid: 1000,
            gid: 1000,
            user: Some("agent".to_owned()),
            login_uid: None,
            pid: 1,
            tid: 1,
            ancestry: vec![ProcessFacts {
                pid: 1,
                start_ns: 1,
                comm: Text::from("bash"),
                executable: None,
                argv: vec![Text::from("bash"), Text::from("agent.sh")],
                uid: 1000,
            }],
        },
        action,
        context: None,
        why: Why {
            rules: vec![MatchedRule {
                id: "code-push".to_owned(),
                description: "pushes need review".to_owned(),
            }],
            approver_groups: vec![],
            quorum: 1,
            policy_digest: String::new(),
            risks: vec!["first push of this agent".to_owned()],
            tags: vec![],
        },
        claims: Some(Claims {
            task: Some(Text::from("release\u{1b}[2J")),
            ..Claims::default()
        }),
        nonce: "00".repeat(32),
        expires_at: None,
    }
}

/// CA as PEM and DER, the chain that the server shows (with the CA), its key.
fn certificates() -> (String, Vec<u8>, Vec<Vec<u8>>, Vec<u8>) {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(vec![]).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec!["localhost".to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    let chain = vec![leaf.der().to_vec(), ca_cert.der().to_vec()];
    (ca_cert.pem(), ca_cert.der().to_vec(), chain, key.serialize_der())
}

fn problem(status: StatusCode, title: &str, detail: &str) -> Response {
    let body = json!({ "type": "urn:guard:problem:test", "title": title, "status": status.as_u16(), "detail": detail });
    (
        status,
        [(header::CONTENT_TYPE, "application/problem+json")],
        body.to_string(),
    )
        .into_response()
}

fn me(username: &str) -> Me {
    Me {
        username: username.to_owned(),
        roles: vec![Role::Approver],
        groups: vec![],
        display_name: String::new(),
        provider: None,
    }
}

fn session(username: &str) -> Response {
    let session = Session {
        token: TOKEN.to_owned(),
        expires_at: "2027-01-01T00:00:00Z".to_owned(),
        me: me(username),
    };
    Json(session).into_response()
}

fn router(world: Shared) -> Router {
    let api = Router::new()
        .route("/me", get(|| async { Json(me("alice")) }))
        .route("/requests", get(list))
        .route("/requests/{id}", get(one))
        .route("/requests/{id}/record", get(record))
        .route("/requests/{id}/{verb}", post(answer))
        .route("/events", get(events))
        .route(
            "/hosts",
            get(|| async {
                Json(json!({ "items": [{
            "id": "01JDHOST", "name": "build-7", "state": "online", "agent_version": "0.1.0", "kernel": "6.12",
            "policy_digest": "", "enforcing": false, "enforcing_since": null, "last_seen": null,
            "enrolled_at": "2026-11-21T10:00:00Z", "certificate_expires_at": "2026-12-21T10:00:00Z", "lost_events": 0,
            "labels": ["coder"] }] }))
            }),
        )
        .route(
            "/hosts/{id}/enforcement",
            get(|| async {
                Json(json!({ "on": [{ "from": "2026-11-21T10:00:00Z" }], "gaps": [{ "from": "2026-11-21T09:00:00Z",
                    "to": "2026-11-21T10:00:00Z", "why": "the machine was started anew" }], "away": [], "let_through": 0 }))
            }),
        )
        .route("/hosts/{id}/revoke", post(changed_empty))
        .route("/tokens", post(token))
        .route("/labels", get(|| async { Json(json!({ "items": [label("kept")] })) }))
        .route("/labels/{name}", axum::routing::put(put_label))
        .route("/users", get(|| async { Json(json!({ "items": [] })) }).post(add_user))
        .route("/users/{name}/disable", post(changed_empty))
        .route("/sessions/current", axum::routing::delete(changed_empty))
        .route("/sessions/{id}", axum::routing::delete(changed_empty))
        .route("/users/{name}/sessions", axum::routing::delete(changed_empty))
        .route(
            "/sessions",
            get(|| async {
                Json(json!({ "items": [{ "id": "abcd", "username": "okta:ann", "kind": "web", "address": "192.0.2.1",
                    "signed_in_at": "2026-11-21T10:00:00Z", "last_used_at": "2026-11-21T10:00:00Z",
                    "expires_at": "2026-11-21T22:00:00Z", "provider": "okta", "methods": ["pwd", "otp"],
                    "current": true }] }))
            }),
        )
        .route("/keys", get(|| async { Json(json!({ "items": [key()] })) }).post(make_key))
        .route("/keys/{id}/revoke", post(changed_empty))
        .route(
            "/grants",
            get(|| async {
                Json(json!({ "items": [{ "id": "01JDGRANT", "state": "good", "words": "exactly `x` by \u{1b}coder",
                    "by": "alice", "label": "coder", "host": "build-7", "host_id": "H", "request_id": "R",
                    "granted_at": "2026-11-21T10:00:00Z", "expires_at": "2026-11-21T10:15:00Z", "times": 5, "used": 2 }] }))
            }),
        )
        .route("/grants/{id}/revoke", post(changed_empty))
        .route(
            "/evidence/bundle",
            get(|State(w): State<Shared>| async move { w.lock().unwrap().bundle.clone() }),
        )
        .route(
            "/trust",
            get(|State(w): State<Shared>| async move { w.lock().unwrap().trust.clone() }),
        )
        .layer(from_fn_with_state(world.clone(), signed_in))
        .route(
            "/status",
            get(|| async {
                Json(Status {
                    version: "0.1.0".to_owned(),
                    needs_setup: false,
                    time: "2026-11-21T10:00:00Z".to_owned(),
                    sign_in_with: vec![],
                })
            }),
        )
        .route("/setup", post(setup))
        .route("/sessions", post(login))
        .with_state(world);
    Router::new().nest("/api/v1", api)
}

async fn signed_in(headers: HeaderMap, request: HttpRequest, next: Next) -> Response {
    if headers
        .get(header::AUTHORIZATION)
        .is_some_and(|v| v == &format!("Bearer {TOKEN}"))
    {
        next.run(request).await
    } else {
        problem(StatusCode::UNAUTHORIZED, "not signed in", "the session has ended")
    }
}

async fn login(Json(body): Json<LoginBody>) -> Response {
    if body.password == PASSWORD {
        session(&body.username)
    } else {
        problem(StatusCode::UNAUTHORIZED, "wrong user name or password", "try again")
    }
}

async fn setup(Json(body): Json<SetupBody>) -> Response {
    if body.secret == "s3cret" {
        session(&body.username)
    } else {
        problem(StatusCode::FORBIDDEN, "the set-up link does not hold", "used already")
    }
}

async fn list(State(world): State<Shared>, Query(query): Query<BTreeMap<String, String>>) -> Json<Value> {
    let world = world.lock().unwrap();
    let limit: usize = query["limit"].parse().unwrap();
    let from: usize = query.get("cursor").map_or(0, |c| c.parse().unwrap());
    let wanted: Vec<&Request> = world
        .requests
        .iter()
        .filter(|r| query.get("state").is_none_or(|s| s == r.state.as_str()))
        .collect();
    // Pages of at most three: clients must follow cursors.
    let page: Vec<&&Request> = wanted.iter().skip(from).take(limit.min(3)).collect();
    let end = from + page.len();
    Json(json!({ "items": page, "next": (end < wanted.len()).then(|| end.to_string()) }))
}

fn find(world: &World, id: &str) -> Option<Request> {
    world.requests.iter().find(|r| r.id == id).cloned()
}

async fn one(State(world): State<Shared>, Path(id): Path<String>) -> Response {
    match find(&world.lock().unwrap(), &id) {
        Some(request) => Json(request).into_response(),
        None => problem(StatusCode::NOT_FOUND, "no such request", &id),
    }
}

async fn record(State(world): State<Shared>, Path(id): Path<String>) -> Vec<u8> {
    world.lock().unwrap().envelopes[&id].clone()
}

async fn answer(
    State(world): State<Shared>,
    Path((id, verb)): Path<(String, String)>,
    Json(body): Json<Value>,
) -> Response {
    let mut world = world.lock().unwrap();
    world.log.push((format!("POST /requests/{id}/{verb}"), body.clone()));
    let digest = body["digest"].clone();
    let Some(request) = world.requests.iter_mut().find(|r| r.id == id) else {
        return problem(StatusCode::NOT_FOUND, "no such request", &id);
    };
    if digest != request.digest {
        return problem(StatusCode::CONFLICT, "another digest", "");
    }
    if request.label == "raced" {
        return problem(
            StatusCode::CONFLICT,
            "the request has ended",
            "denied by bob at 10:00:03",
        );
    }
    request.approvals += u32::from(verb == "approve");
    request.state = match verb.as_str() {
        "approve" if request.approvals >= request.quorum => RequestState::Approved,
        "approve" => RequestState::Pending,
        _ => RequestState::Denied,
    };
    Json(request.clone()).into_response()
}

async fn events(State(world): State<Shared>) -> String {
    let world = world.lock().unwrap();
    world.requests.iter().fold(": hello\n\n".to_owned(), |text, r| {
        format!("{text}event: request\ndata: {}\n\n", serde_json::to_string(r).unwrap())
    })
}

async fn changed_empty(State(world): State<Shared>, request: HttpRequest) -> StatusCode {
    world
        .lock()
        .unwrap()
        .log
        .push((format!("{} {}", request.method(), request.uri().path()), Value::Null));
    StatusCode::NO_CONTENT
}

async fn token(State(world): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    world.lock().unwrap().log.push(("POST /tokens".to_owned(), body));
    Json(json!({ "token": "guard1.host:8444.00.secret", "expires_at": "2026-11-21T11:00:00Z" }))
}

fn label(description: &str) -> Label {
    Label {
        name: "coder".to_owned(),
        owner: Some("owner".to_owned()),
        description: description.to_owned(),
        hosts: vec![],
        pending: 0,
        version: String::new(),
    }
}

async fn put_label(State(world): State<Shared>, Json(body): Json<LabelBody>) -> Json<Label> {
    world
        .lock()
        .unwrap()
        .log
        .push(("PUT /labels".to_owned(), serde_json::to_value(&body).unwrap()));
    Json(Label {
        owner: body.owner,
        ..label(&body.description)
    })
}

fn key() -> Value {
    json!({ "id": "01JDKEY", "account": "ci", "roles": ["auditor"], "description": "nightly",
        "created_at": "2026-11-21T10:00:00Z", "created_by": "alice", "expires_at": "2026-12-21T10:00:00Z",
        "last_used_at": null, "state": "good" })
}

async fn make_key(State(world): State<Shared>, Json(body): Json<Value>) -> Json<Value> {
    world.lock().unwrap().log.push(("POST /keys".to_owned(), body));
    let mut made = key();
    made["secret"] = json!("guardkey_shownonce");
    Json(made)
}

async fn add_user(State(world): State<Shared>, Json(body): Json<NewUser>) -> Json<User> {
    world
        .lock()
        .unwrap()
        .log
        .push(("POST /users".to_owned(), serde_json::to_value(&body).unwrap()));
    Json(User {
        issuer: "local".to_owned(),
        subject: String::new(),
        service: false,
        display_name: String::new(),
        email: String::new(),
        username: body.username,
        roles: body.roles,
        groups: body.groups,
        created_at: "2026-11-21T10:00:00Z".to_owned(),
        disabled: false,
    })
}
