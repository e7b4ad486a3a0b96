//! A console in a temporary directory, and who joins it.

use std::net::SocketAddr;

use guard_console::Server;
use guard_console::config::{RawConfig, RawLimits, RawLog, RawOidc, RawSiem, RawWebhook};
use guard_evidence::chain::Chain;
use guard_evidence::key::SigningKey;
use guard_proto::v1::EnrollRequest;
use guard_proto::v1::enrolment_client::EnrolmentClient;
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use super::host::{Host, Session};
use super::person::Person;

pub(crate) const PASSWORD: &str = "correct horse battery staple";

pub(crate) struct Console {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) server: Option<Server>,
    pub(crate) web: SocketAddr,
    pub(crate) hosts: SocketAddr,
    pub(crate) ca: String,
    log: RawLog,
    /// Identity providers, as they would stand in its configuration file.
    pub(crate) oidc: Vec<RawOidc>,
    webhook: Vec<RawWebhook>,
    siem: Vec<RawSiem>,
    limits: RawLimits,
}

/// What most consoles of the tests do without.
#[derive(Default)]
pub(crate) struct More {
    log: RawLog,
    oidc: Vec<RawOidc>,
    webhook: Vec<RawWebhook>,
    siem: Vec<RawSiem>,
    limits: RawLimits,
}

impl From<Vec<RawSiem>> for More {
    fn from(siem: Vec<RawSiem>) -> Self {
        Self {
            siem,
            ..Self::default()
        }
    }
}

impl From<RawLimits> for More {
    fn from(limits: RawLimits) -> Self {
        Self {
            limits,
            ..Self::default()
        }
    }
}

impl From<RawLog> for More {
    fn from(log: RawLog) -> Self {
        Self { log, ..Self::default() }
    }
}

impl From<Vec<RawOidc>> for More {
    fn from(oidc: Vec<RawOidc>) -> Self {
        Self {
            oidc,
            ..Self::default()
        }
    }
}

impl From<Vec<RawWebhook>> for More {
    fn from(webhook: Vec<RawWebhook>) -> Self {
        Self {
            webhook,
            ..Self::default()
        }
    }
}

/// A new key, and a request for a certificate of it, PEM.
pub(crate) fn certificate_request() -> (KeyPair, String) {
    let key = KeyPair::generate().unwrap();
    let request = CertificateParams::default().serialize_request(&key).unwrap();
    (key, request.pem().unwrap())
}

fn crypto() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

impl Console {
    pub(crate) async fn start() -> Self {
        Self::start_with(RawLog::default()).await
    }

    /// One with identity providers or outputs, or whose log has witnesses.
    pub(crate) async fn start_with(more: impl Into<More>) -> Self {
        crypto();
        let dir = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0".parse().unwrap();
        Self::start_in(dir, any, any, more.into()).await
    }

    async fn start_in(dir: tempfile::TempDir, listen: SocketAddr, listen_hosts: SocketAddr, more: More) -> Self {
        let More {
            log,
            oidc,
            webhook,
            siem,
            limits,
        } = more;
        let raw = RawConfig {
            data_dir: Some(dir.path().join("data")),
            listen: Some(listen),
            listen_hosts: Some(listen_hosts),
            names: vec!["localhost".to_owned()],
            advertise: None,
            log: log.clone(),
            oidc: oidc.clone(),
            webhook: webhook.clone(),
            siem: siem.clone(),
            limits,
        };
        let server = Server::start(raw.resolve(None).unwrap()).await.unwrap();
        let ca = std::fs::read_to_string(dir.path().join("data/ca.pem")).unwrap();
        Self {
            web: server.web,
            hosts: server.hosts,
            server: Some(server),
            dir,
            ca,
            log,
            oidc,
            webhook,
            siem,
            limits,
        }
    }

    /// Stops it; what it has is on disk then.
    pub(crate) async fn stop(&mut self) {
        self.server.take().unwrap().stop().await;
    }

    /// Why one cannot start on the data of this one, which has stopped.
    pub(crate) async fn cannot_start(&self) -> String {
        let raw = RawConfig {
            data_dir: Some(self.file("")),
            listen: Some(self.web),
            listen_hosts: Some(self.hosts),
            ..RawConfig::default()
        };
        Server::start(raw.resolve(None).unwrap()).await.unwrap_err().to_string()
    }

    /// Stops it and starts another one on the same data and ports.
    pub(crate) async fn restart(mut self) -> Self {
        self.stop().await;
        self.start_again().await
    }

    /// As [`Self::restart`], configured otherwise.
    pub(crate) async fn restart_with(mut self, more: impl Into<More>) -> Self {
        self.stop().await;
        Self::start_in(self.dir, self.web, self.hosts, more.into()).await
    }

    /// Starts one on the data and ports of one that has stopped.
    pub(crate) async fn start_again(self) -> Self {
        let more = More {
            log: self.log,
            oidc: self.oidc,
            webhook: self.webhook,
            siem: self.siem,
            limits: self.limits,
        };
        Self::start_in(self.dir, self.web, self.hosts, more).await
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

    pub(crate) fn person(&self, token: Option<&str>) -> Person {
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

    /// Approvers of these names, in no group.
    pub(crate) async fn approvers<const N: usize>(&self, admin: &Person, names: [&str; N]) -> [Person; N] {
        let mut people = Vec::new();
        for name in names {
            people.push(self.user(admin, name, &["approver"], &[]).await);
        }
        people.try_into().ok().unwrap()
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

    /// The host build-7, joined and connected.
    pub(crate) async fn build_host(&self, admin: &Person) -> (Host, Session) {
        let host = self.host(admin, "build-7").await;
        let session = host.connect(self).await;
        (host, session)
    }

    pub(crate) async fn enroll(&self, token: &str, name: &str) -> Result<Host, tonic::Status> {
        let (key, csr) = certificate_request();
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
