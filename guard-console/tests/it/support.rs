//! A console in a temporary directory, people with sessions, and hosts that speak gRPC.

use std::net::SocketAddr;
use std::time::Duration;

use guard_console::Server;
use guard_console::config::RawConfig;
use guard_evidence::chain::{Chain, Sealed, Stamp};
use guard_evidence::key::SigningKey;
use guard_evidence::record::{
    Action, Claims, ExecAction, HostFacts, Lifecycle, LifecycleRecord, MatchedRule, Predicate, ProcessFacts,
    RequestRecord, Why, WorkloadFacts,
};
use guard_evidence::statement::strings_sha256;
use guard_evidence::text::Text;
use guard_proto::v1::approval_client::ApprovalClient;
use guard_proto::v1::console_message::Kind as ConsoleKind;
use guard_proto::v1::enrolment_client::EnrolmentClient;
use guard_proto::v1::evidence_client::EvidenceClient;
use guard_proto::v1::host_message::Kind as HostKind;
use guard_proto::v1::{Ask, ConsoleMessage, EnrollReply, EnrollRequest, Hello, HostMessage};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use ulid::Ulid;

pub(crate) const PASSWORD: &str = "correct horse battery staple";

pub(crate) struct Console {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Option<Server>,
    pub(crate) web: SocketAddr,
    pub(crate) hosts: SocketAddr,
    pub(crate) ca: String,
}

pub(crate) fn crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

impl Console {
    pub(crate) async fn start() -> Self {
        crypto();
        let dir = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        Self::start_in(dir, any, any).await
    }

    async fn start_in(dir: tempfile::TempDir, listen: SocketAddr, listen_hosts: SocketAddr) -> Self {
        let raw = RawConfig {
            data_dir: Some(dir.path().join("data")),
            listen: Some(listen),
            listen_hosts: Some(listen_hosts),
            names: vec!["localhost".to_owned()],
            advertise: None,
        };
        let server = Server::start(raw.resolve(None).unwrap()).await.unwrap();
        let ca = std::fs::read_to_string(dir.path().join("data/ca.pem")).unwrap();
        Self {
            web: server.web,
            hosts: server.hosts,
            server: Some(server),
            dir,
            ca,
        }
    }

    /// Stops it and starts another one on the same data and ports.
    pub(crate) async fn restart(mut self) -> Self {
        self.server.take().unwrap().stop().await;
        self.start_again().await
    }

    /// Starts one on the data and ports of one that has stopped.
    pub(crate) async fn start_again(self) -> Self {
        Self::start_in(self.dir, self.web, self.hosts).await
    }

    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("data").join(name)
    }

    pub(crate) fn setup_secret(&self) -> String {
        let link = std::fs::read_to_string(self.file("setup-link")).unwrap();
        link.trim().split_once('#').unwrap().1.to_owned()
    }

    pub(crate) fn http(&self) -> reqwest::Client {
        let ca = reqwest::Certificate::from_pem(self.ca.as_bytes()).unwrap();
        let builder = reqwest::Client::builder()
            .tls_certs_only([ca])
            .redirect(reqwest::redirect::Policy::none());
        builder.build().unwrap()
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.web.port())
    }

    /// The first administrator, `admin`.
    pub(crate) async fn set_up(&self) -> Person {
        let nobody = self.nobody();
        let body = json!({"secret": self.setup_secret(), "username": "admin", "password": PASSWORD});
        let (status, session) = nobody.post("/api/v1/setup", &body).await;
        assert_eq!(status, 200, "{session}");
        self.person(session["token"].as_str())
    }

    pub(crate) fn nobody(&self) -> Person {
        self.person(None)
    }

    fn person(&self, token: Option<&str>) -> Person {
        Person {
            http: self.http(),
            base: self.url(""),
            token: token.map(str::to_owned),
        }
    }

    /// Makes a user and signs in.
    pub(crate) async fn user(&self, admin: &Person, name: &str, roles: &[&str], groups: &[&str]) -> Person {
        let body = json!({"username": name, "password": PASSWORD, "roles": roles, "groups": groups});
        let (status, answer) = admin.post("/api/v1/users", &body).await;
        assert_eq!(status, 200, "{answer}");
        self.sign_in(name).await
    }

    pub(crate) async fn sign_in(&self, name: &str) -> Person {
        let body = json!({"username": name, "password": PASSWORD});
        let (status, session) = self.nobody().post("/api/v1/sessions", &body).await;
        assert_eq!(status, 200, "{session}");
        self.person(session["token"].as_str())
    }

    /// A host that has joined.
    pub(crate) async fn host(&self, admin: &Person, name: &str) -> Host {
        let (status, token) = admin.post("/api/v1/tokens", &json!({})).await;
        assert_eq!(status, 200, "{token}");
        let host = self.enroll(token["token"].as_str().unwrap(), name).await.unwrap();
        assert_eq!(host.reply.hostname, name);
        host
    }

    pub(crate) async fn enroll(&self, token: &str, name: &str) -> Result<Host, tonic::Status> {
        let key = KeyPair::generate().unwrap();
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .unwrap()
            .pem()
            .unwrap();
        let evidence_key = SigningKey::generate(&mut rand::rngs::OsRng);
        let reply = EnrolmentClient::new(self.channel(None).await)
            .enroll(EnrollRequest {
                token: token.to_owned(),
                csr_pem: csr,
                evidence_public_key: evidence_key.public().to_der(),
                hostname: name.to_owned(),
                machine_id: "0123".to_owned(),
                agent_version: "0.1.0".to_owned(),
            })
            .await?
            .into_inner();
        let identity = Identity::from_pem(&reply.certificate_chain_pem, key.serialize_pem());
        let chain = Chain::begin(format!("host:{}", reply.host_id), 1);
        Ok(Host {
            reply,
            identity,
            evidence_key,
            chain,
        })
    }

    pub(crate) async fn channel(&self, identity: Option<&Identity>) -> Channel {
        self.try_channel(identity).await.unwrap()
    }

    pub(crate) async fn try_channel(&self, identity: Option<&Identity>) -> Result<Channel, tonic::transport::Error> {
        let mut tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .domain_name("localhost");
        if let Some(identity) = identity {
            tls = tls.identity(identity.clone());
        }
        let endpoint = Endpoint::from_shared(format!("https://localhost:{}", self.hosts.port())).unwrap();
        endpoint.tls_config(tls).unwrap().connect().await
    }
}

/// Somebody who calls the REST API.
#[derive(Clone)]
pub(crate) struct Person {
    pub(crate) http: reqwest::Client,
    pub(crate) base: String,
    pub(crate) token: Option<String>,
}

impl Person {
    pub(crate) fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let request = self
            .http
            .request(method.parse().unwrap(), format!("{}{path}", self.base));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> (u16, Value) {
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let kind = response
            .headers()
            .get("content-type")
            .map(|v| v.to_str().unwrap().to_owned());
        let text = response.text().await.unwrap();
        if status >= 400 {
            assert_eq!(kind.as_deref(), Some("application/problem+json"), "{status} {text}");
        }
        (
            status,
            if text.is_empty() {
                Value::Null
            } else {
                serde_json::from_str(&text).unwrap()
            },
        )
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        self.send(self.request("GET", path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.request("POST", path).json(body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> (u16, Value) {
        self.send(self.request("PUT", path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> (u16, Value) {
        self.send(self.request("DELETE", path)).await
    }

    /// Answers as somebody would who was shown the request just now.
    pub(crate) async fn answer(&self, id: &str, verdict: &str, reason: &str) -> (u16, Value) {
        let (status, request) = self.get(&format!("/api/v1/requests/{id}")).await;
        assert_eq!(status, 200, "{request}");
        let body = json!({"reason": reason, "digest": request["digest"]});
        self.post(&format!("/api/v1/requests/{id}/{verdict}"), &body).await
    }
}

/// An enrolled machine.
pub(crate) struct Host {
    pub(crate) reply: EnrollReply,
    pub(crate) identity: Identity,
    pub(crate) evidence_key: SigningKey,
    pub(crate) chain: Chain,
}

/// A question as a test wants it.
pub(crate) struct Question<'a> {
    pub(crate) label: &'a str,
    pub(crate) argv: Vec<Text>,
    pub(crate) groups: Vec<String>,
    pub(crate) quorum: u32,
    pub(crate) expires_at_ms: i64,
    pub(crate) claims: Option<Claims>,
    /// Put wherever a workload can put text.
    pub(crate) evil: Option<Text>,
}

impl<'a> Question<'a> {
    pub(crate) fn new(label: &'a str, argv: &[&str]) -> Self {
        let argv = argv.iter().map(|a| Text::from(*a)).collect();
        Self {
            label,
            argv,
            groups: Vec::new(),
            quorum: 1,
            expires_at_ms: 0,
            claims: None,
            evil: None,
        }
    }

    pub(crate) fn groups(mut self, groups: &[&str]) -> Self {
        self.groups = groups.iter().map(|g| (*g).to_owned()).collect();
        self
    }

    pub(crate) fn quorum(mut self, quorum: u32) -> Self {
        self.quorum = quorum;
        self
    }
}

impl Host {
    pub(crate) fn id(&self) -> &str {
        &self.reply.host_id
    }

    fn stamp() -> Stamp {
        let at = guard_console::time::rfc3339(guard_console::time::now());
        Stamp {
            at,
            since_boot_ns: 1,
            boot_id: "boot".to_owned(),
        }
    }

    /// Signs the next record of this host's chain.
    pub(crate) fn seal(&mut self, make: impl FnOnce(guard_evidence::record::Header) -> Predicate) -> Sealed {
        self.chain.seal(&self.evidence_key, Self::stamp(), make).unwrap()
    }

    pub(crate) fn lifecycle(&mut self) -> Sealed {
        self.seal(|header| {
            Predicate::Lifecycle(Box::new(LifecycleRecord {
                header,
                event: Lifecycle::EventsLost { count: 1 },
            }))
        })
    }

    pub(crate) fn ask(&mut self, question: &Question<'_>) -> (Ask, Sealed) {
        let id = Ulid::new().to_string();
        let nonce: [u8; 32] = rand::random();
        let host = HostFacts {
            id: self.reply.host_id.clone(),
            name: self.reply.hostname.clone(),
            kernel: "6.12.0".to_owned(),
            agent_version: "0.1.0".to_owned(),
        };
        let request = |header| {
            let expires = (question.expires_at_ms != 0).then(|| guard_console::time::rfc3339(question.expires_at_ms));
            Predicate::Request(Box::new(RequestRecord {
                header,
                request_id: id.clone(),
                host,
                workload: workload(question.label, question.evil.as_ref()),
                action: Action::Exec(Box::new(exec(&question.argv, question.evil.as_ref()))),
                context: None,
                why: Why {
                    rules: vec![MatchedRule {
                        id: "code-push".to_owned(),
                        description: "Pushing code asks first.".to_owned(),
                    }],
                    approver_groups: question.groups.clone(),
                    quorum: question.quorum,
                    policy_digest: "cd".repeat(32),
                    risks: vec![],
                    tags: vec![],
                },
                claims: question.claims.clone(),
                nonce: hex::encode(nonce),
                expires_at: expires,
            }))
        };
        let sealed = self.seal(request);
        let ask = Ask {
            request_id: id,
            record: sealed.envelope.clone(),
            approver_groups: question.groups.clone(),
            quorum: question.quorum,
            expires_at_ms: question.expires_at_ms,
            nonce: nonce.to_vec(),
        };
        (ask, sealed)
    }

    pub(crate) async fn connect(&self, console: &Console) -> Session {
        let mut session = self.open(console).await.unwrap();
        let welcome = session.next().await;
        assert!(matches!(welcome, ConsoleKind::Welcome(_)), "{welcome:?}");
        session
    }

    pub(crate) async fn open(&self, console: &Console) -> Result<Session, tonic::Status> {
        let (send, receive) = mpsc::channel(64);
        let hello = Hello {
            agent_version: "0.1.0".to_owned(),
            protocol_version: 1,
            kernel_release: "6.12.0".to_owned(),
            boot_id: "boot".to_owned(),
            policy_digest: "cd".repeat(32),
            labels: vec!["coder".to_owned()],
            enforcing: true,
            enforcing_since_ms: 1_700_000_000_000,
        };
        send.send(HostMessage {
            kind: Some(HostKind::Hello(hello)),
        })
        .await
        .unwrap();
        let channel = console.channel(Some(&self.identity)).await;
        let messages = ApprovalClient::new(channel)
            .session(ReceiverStream::new(receive))
            .await?
            .into_inner();
        Ok(Session { send, messages })
    }

    pub(crate) async fn evidence(&self, console: &Console) -> EvidenceClient<Channel> {
        EvidenceClient::new(console.channel(Some(&self.identity)).await)
    }
}

/// A live stream.
pub(crate) struct Session {
    pub(crate) send: mpsc::Sender<HostMessage>,
    pub(crate) messages: Streaming<ConsoleMessage>,
}

impl Session {
    pub(crate) async fn say(&self, kind: HostKind) {
        self.send.send(HostMessage { kind: Some(kind) }).await.unwrap();
    }

    /// The next message, or the status with which the stream ended.
    pub(crate) async fn try_next(&mut self) -> Result<ConsoleKind, tonic::Status> {
        let message = tokio::time::timeout(Duration::from_secs(10), self.messages.message());
        let message = message.await.expect("a message within ten seconds")?;
        Ok(message.expect("a message, not the end").kind.unwrap())
    }

    pub(crate) async fn next(&mut self) -> ConsoleKind {
        self.try_next().await.unwrap()
    }

    pub(crate) async fn ask(&mut self, ask: &Ask) {
        self.say(HostKind::Ask(ask.clone())).await;
        match self.next().await {
            ConsoleKind::AskReceived(received) => {
                assert_eq!(received.request_id, ask.request_id);
                assert!(received.accepted, "{}", received.refused_because);
            }
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn refused(&mut self, ask: &Ask) -> String {
        self.say(HostKind::Ask(ask.clone())).await;
        match self.next().await {
            ConsoleKind::AskReceived(received) if !received.accepted => received.refused_because,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) async fn decision(&mut self) -> guard_proto::v1::Decision {
        match self.next().await {
            ConsoleKind::Decision(decision) => decision,
            other => panic!("{other:?}"),
        }
    }

    /// Nothing arrives for a while.
    pub(crate) async fn silent(&mut self) {
        let next = tokio::time::timeout(Duration::from_millis(300), self.messages.message()).await;
        assert!(next.is_err(), "{next:?}");
    }
}

fn workload(label: &str, evil: Option<&Text>) -> WorkloadFacts {
    let text = |ours: &str| evil.cloned().unwrap_or_else(|| Text::from(ours));
    let process = |pid, comm: &str, argv: &[&str]| ProcessFacts {
        pid,
        start_ns: 1,
        comm: text(comm),
        executable: Some(text("/usr/bin/bash")),
        argv: argv.iter().map(|a| text(a)).collect(),
        uid: 1000,
    };
    WorkloadFacts {
        label: label.to_owned(),
        cgroup: text("/guard/coder-1"),
        container_id: None,
        uid: 1000,
        gid: 1000,
        user: Some("agent".to_owned()),
        login_uid: Some(1000),
        pid: 42,
        tid: 42,
        ancestry: vec![
            process(42, "bash", &["bash", "agent.sh"]),
            process(7, "node", &["node", "agent.js"]),
        ],
    }
}

fn exec(argv: &[Text], evil: Option<&Text>) -> ExecAction {
    let text = |ours: &str| evil.cloned().unwrap_or_else(|| Text::from(ours));
    let path = format!("/usr/bin/{}", argv.first().map(Text::display).unwrap_or_default());
    ExecAction {
        path: Some(text(&path)),
        unlinked: false,
        device: 1,
        inode: 2,
        generation: 3,
        sha256: Some("ab".repeat(32)),
        size: Some(12_345),
        given: text(&path),
        argv: argv.to_vec(),
        argv_count: argv.len() as u64,
        argv_sha256: strings_sha256(argv),
        argv_truncated: false,
        environment: vec![text("PATH=/usr/bin")],
        environment_count: 1,
        environment_sha256: "00".repeat(32),
        cwd: text("/srv/app"),
    }
}
