//! What unit tests share: a state directory, a cgroup tree of plain directories, a running evidence writer.

use std::path::PathBuf;

use guard_evidence::chain::Checker;
use guard_evidence::dsse;
use guard_evidence::key::{SigningKey, TrustedKey};
use guard_evidence::record::{Lifecycle, Predicate, Statement};

use crate::config::LabelPattern;
use crate::evidence::{Evidence, EvidenceConfig};
use crate::redact::{Redactor, Rules};

pub(crate) const HOST: &str = "01J00000000000000000000000";

pub(crate) struct Rig {
    pub(crate) _directory: tempfile::TempDir,
    pub(crate) state: PathBuf,
    pub(crate) cgroups: PathBuf,
    pub(crate) evidence: Evidence,
}

pub(crate) fn key() -> SigningKey {
    SigningKey::from_seed(&[3; 32])
}

pub(crate) fn rig() -> Rig {
    let directory = tempfile::tempdir().unwrap();
    let (state, cgroups) = (directory.path().join("state"), directory.path().join("cgroup"));
    std::fs::create_dir(&state).unwrap();
    std::fs::create_dir(&cgroups).unwrap();
    let evidence = Evidence::start(EvidenceConfig {
        host_id: HOST.to_owned(),
        key: key(),
        directory: state.clone(),
        ships: false,
        max_bytes: 64 << 20,
    })
    .unwrap();
    Rig {
        _directory: directory,
        state,
        cgroups,
        evidence,
    }
}

/// The built-in rules, with a key of the tests.
pub(crate) fn redactor() -> Redactor {
    Redactor::with_key(&[5; 32], Rules::new(true, &[]).unwrap())
}

/// Patterns of labels: each a name and a cgroup.
pub(crate) fn patterns(named: &[(&str, &str)]) -> Vec<LabelPattern> {
    let pattern = |(name, cgroup): &(&str, &str)| LabelPattern {
        name: (*name).to_owned(),
        cgroup: (*cgroup).to_owned(),
    };
    named.iter().map(pattern).collect()
}

/// Everything in the spool, checked as a chain, whose keys name each other.
pub(crate) fn records(evidence: &Evidence) -> Vec<Statement> {
    let reader = evidence.reader();
    let mut reader = reader.lock();
    reader.seek(1);
    let through = *evidence.durable().borrow();
    let mut checker = Checker::default();
    let mut keys = vec![TrustedKey::from(key().public())];
    let mut all = Vec::new();
    while all.len() < usize::try_from(through).unwrap() {
        for (_, envelope) in reader.read(through, 1_000, 1 << 20).unwrap() {
            let verified = dsse::verify(&envelope, &keys).unwrap();
            let statement = Statement::from_payload(&verified.payload).unwrap();
            if let Predicate::Lifecycle(record) = &statement.predicate
                && let Lifecycle::NextKey { key } = &record.event
            {
                keys.push(key.clone().into());
            }
            checker.check(statement.header().unwrap(), &envelope).unwrap();
            all.push(statement);
        }
    }
    all
}

/// A console that does as it is told, over real mutual TLS.
pub(crate) mod fake_console {
    use std::net::SocketAddr;
    use std::sync::Arc;

    use guard_evidence::checkpoint::Checkpoint;
    use guard_evidence::key::SigningKey;
    use guard_evidence::merkle::{Hash, Tree, leaf_hash};
    use guard_proto::v1;
    use guard_proto::v1::approval_server::{Approval, ApprovalServer};
    use guard_proto::v1::enrolment_server::{Enrolment, EnrolmentServer};
    use guard_proto::v1::evidence_server::{Evidence, EvidenceServer};
    use parking_lot::Mutex;
    use rcgen::{BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair};
    use sha2::{Digest as _, Sha256};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_stream::StreamExt as _;
    use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
    use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
    use tonic::{Request, Response, Status, Streaming};

    pub(crate) const SECRET: &str = "once";
    const LOG: &str = "console.example.org/log";

    /// What it has seen, and what it does.
    pub(crate) struct Console {
        pub(crate) address: SocketAddr,
        pub(crate) ca_pem: String,
        pub(crate) ca_sha256: [u8; 32],
        pub(crate) shared: Arc<Shared>,
        server: tokio::task::JoinHandle<()>,
        tls: ServerTlsConfig,
    }

    pub(crate) struct Shared {
        issuer: Issuer<'static, KeyPair>,
        ca_pem: String,
        pub(crate) decision_key: SigningKey,
        pub(crate) log_key: SigningKey,
        /// Leaf hashes of the log that it publishes.
        pub(crate) log: Mutex<Vec<Hash>>,
        pub(crate) spent: Mutex<bool>,
        pub(crate) from_host: Mutex<Vec<v1::host_message::Kind>>,
        pub(crate) to_host: Mutex<Option<mpsc::UnboundedSender<Result<v1::ConsoleMessage, Status>>>>,
        pub(crate) records: Mutex<Vec<(u64, u64, Vec<u8>)>>,
        /// Records are taken but not acknowledged.
        pub(crate) forgetful: Mutex<bool>,
        pub(crate) renewals: Mutex<u32>,
        /// How its decision key became what it is.
        pub(crate) statements: Mutex<Vec<Vec<u8>>>,
        /// The same of its log's.
        pub(crate) log_statements: Mutex<Vec<Vec<u8>>>,
        pub(crate) host_lifetime: std::time::Duration,
    }

    impl Console {
        /// For names of the loopback, unless told otherwise.
        pub(crate) async fn start(names: &[&str], host_lifetime: std::time::Duration) -> Self {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let ca = params.self_signed(&key).unwrap();
            let (ca_pem, ca_sha256) = (ca.pem(), Sha256::digest(ca.der()).into());
            let issuer = Issuer::new(params, key);
            let server_key = KeyPair::generate().unwrap();
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            let server = CertificateParams::new(names)
                .unwrap()
                .signed_by(&server_key, &issuer)
                .unwrap();
            let tls = ServerTlsConfig::new()
                .identity(Identity::from_pem(
                    format!("{}{ca_pem}", server.pem()),
                    server_key.serialize_pem(),
                ))
                .client_ca_root(Certificate::from_pem(&ca_pem))
                .client_auth_optional(true);
            let shared = Arc::new(Shared {
                issuer,
                ca_pem: ca_pem.clone(),
                decision_key: SigningKey::from_seed(&[9; 32]),
                log_key: SigningKey::from_seed(&[10; 32]),
                log: Mutex::default(),
                spent: Mutex::new(false),
                from_host: Mutex::default(),
                to_host: Mutex::default(),
                records: Mutex::default(),
                forgetful: Mutex::new(false),
                renewals: Mutex::new(0),
                statements: Mutex::default(),
                log_statements: Mutex::default(),
                host_lifetime,
            });
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            let server = serve(listener, tls.clone(), Arc::clone(&shared));
            Self {
                address,
                ca_pem,
                ca_sha256,
                shared,
                server,
                tls,
            }
        }

        pub(crate) fn token(&self) -> String {
            format!("guard1.{}.{}.{SECRET}", self.address, hex::encode(self.ca_sha256))
        }

        /// Goes away with all connections.
        pub(crate) async fn stop(&mut self) {
            self.server.abort();
            *self.shared.to_host.lock() = None;
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }

        /// Comes back at the same address.
        pub(crate) async fn restart(&mut self) {
            for _ in 0..1_200 {
                if let Ok(listener) = TcpListener::bind(self.address).await {
                    self.server = serve(listener, self.tls.clone(), Arc::clone(&self.shared));
                    return;
                }
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
            panic!("the port is taken");
        }

        pub(crate) fn send(&self, kind: v1::console_message::Kind) {
            let to_host = self.shared.to_host.lock();
            to_host
                .as_ref()
                .expect("no host is connected")
                .send(Ok(v1::ConsoleMessage { kind: Some(kind) }))
                .unwrap();
        }

        /// Waits until the host has said something of the kind.
        pub(crate) async fn heard<T>(&self, wanted: impl Fn(&v1::host_message::Kind) -> Option<T>) -> T {
            for _ in 0..3_000 {
                if let Some(found) = self.shared.from_host.lock().iter().find_map(&wanted) {
                    return found;
                }
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
            panic!("not heard; only {:?}", self.shared.from_host.lock());
        }
    }

    fn serve(listener: TcpListener, tls: ServerTlsConfig, shared: Arc<Shared>) -> tokio::task::JoinHandle<()> {
        let service = Service(shared);
        let router = Server::builder()
            .tls_config(tls)
            .unwrap()
            .add_service(EnrolmentServer::new(service.clone()))
            .add_service(ApprovalServer::new(service.clone()))
            .add_service(EvidenceServer::new(service));
        tokio::spawn(async move {
            let _ = router.serve_with_incoming(TcpListenerStream::new(listener)).await;
        })
    }

    #[derive(Clone)]
    struct Service(Arc<Shared>);

    impl Shared {
        /// Adds the records to the log, unless it forgets them, and proves that they are there.
        fn publish(&self, batch: &v1::RecordBatch, old: u64) -> v1::RecordsStored {
            let mut log = self.log.lock();
            let places: Vec<u64> = batch
                .records
                .iter()
                .map(|record| {
                    let leaf = leaf_hash(&record.envelope);
                    let known = log.iter().position(|other| *other == leaf);
                    let place = known.unwrap_or_else(|| {
                        log.push(leaf);
                        log.len() - 1
                    });
                    place as u64
                })
                .collect();
            let tree = Tree::new(log.clone());
            let head = Checkpoint {
                origin: LOG.to_owned(),
                size: tree.size(),
                root: tree.root(),
            };
            let bytes = |hashes: Vec<Hash>| hashes.iter().map(|hash| hash.to_vec()).collect();
            let receipt = |(record, index): (&v1::RecordFrame, u64)| v1::Receipt {
                sequence: record.sequence,
                index,
                hashes: bytes(tree.inclusion(index).unwrap()),
            };
            v1::RecordsStored {
                epoch: batch.epoch,
                through_sequence: batch.records.last().map_or(0, |record| record.sequence),
                checkpoint: head.sign(&self.log_key).unwrap().into_bytes(),
                old_size: old,
                consistency: bytes(tree.consistency(old).unwrap_or_default()),
                receipts: batch.records.iter().zip(places).map(receipt).collect(),
            }
        }

        fn certificate(&self, csr_pem: &str) -> String {
            let csr = CertificateSigningRequestParams::from_pem(csr_pem).unwrap();
            let mut params = CertificateParams::default();
            let now = std::time::SystemTime::now();
            params.not_before = (now - std::time::Duration::from_secs(10)).into();
            params.not_after = (now + self.host_lifetime).into();
            let leaf = params.signed_by(&csr.public_key, &self.issuer).unwrap();
            format!("{}{}", leaf.pem(), self.ca_pem)
        }
    }

    #[tonic::async_trait]
    impl Enrolment for Service {
        async fn enroll(&self, request: Request<v1::EnrollRequest>) -> Result<Response<v1::EnrollReply>, Status> {
            let request = request.into_inner();
            if request.token != SECRET || std::mem::replace(&mut *self.0.spent.lock(), true) {
                return Err(Status::unauthenticated(
                    "the enrolment token is wrong, spent or expired",
                ));
            }
            Ok(Response::new(v1::EnrollReply {
                host_id: ulid::Ulid::new().to_string(),
                hostname: request.hostname,
                certificate_chain_pem: self.0.certificate(&request.csr_pem),
                ca_pem: self.0.ca_pem.clone(),
                decision_public_key: self.0.decision_key.public().to_der(),
                log_origin: LOG.to_owned(),
                log_public_key: self.0.log_key.public().to_der(),
            }))
        }
    }

    #[tonic::async_trait]
    impl Approval for Service {
        type SessionStream = UnboundedReceiverStream<Result<v1::ConsoleMessage, Status>>;

        async fn session(
            &self,
            request: Request<Streaming<v1::HostMessage>>,
        ) -> Result<Response<Self::SessionStream>, Status> {
            if request.peer_certs().is_none() {
                return Err(Status::unauthenticated("no certificate"));
            }
            let (send, receive) = mpsc::unbounded_channel();
            let welcome = v1::Welcome {
                console_version: "fake".to_owned(),
                protocol_version: 1,
                now_ms: crate::clock::unix_ms(),
                heartbeat_seconds: 15,
                log_public_key: self.0.log_key.public().to_der(),
                decision_key_statements: self.0.statements.lock().clone(),
                log_key_statements: self.0.log_statements.lock().clone(),
            };
            send.send(Ok(v1::ConsoleMessage {
                kind: Some(v1::console_message::Kind::Welcome(welcome)),
            }))
            .unwrap();
            *self.0.to_host.lock() = Some(send);
            let shared = Arc::clone(&self.0);
            let mut messages = request.into_inner();
            tokio::spawn(async move {
                while let Some(Ok(message)) = messages.next().await {
                    shared.from_host.lock().extend(message.kind);
                }
            });
            Ok(Response::new(UnboundedReceiverStream::new(receive)))
        }

        async fn renew(&self, request: Request<v1::RenewRequest>) -> Result<Response<v1::RenewReply>, Status> {
            *self.0.renewals.lock() += 1;
            let certificate_chain_pem = self.0.certificate(&request.into_inner().csr_pem);
            Ok(Response::new(v1::RenewReply { certificate_chain_pem }))
        }
    }

    #[tonic::async_trait]
    impl Evidence for Service {
        type AppendStream = UnboundedReceiverStream<Result<v1::RecordsStored, Status>>;

        async fn append(
            &self,
            request: Request<Streaming<v1::RecordBatch>>,
        ) -> Result<Response<Self::AppendStream>, Status> {
            let (send, receive) = mpsc::unbounded_channel();
            let shared = Arc::clone(&self.0);
            let mut batches = request.into_inner();
            tokio::spawn(async move {
                let mut known = None;
                while let Some(Ok(batch)) = batches.next().await {
                    let old = *known.get_or_insert(batch.known_size);
                    let answer = shared.publish(&batch, old);
                    let frames = batch.records.into_iter().map(|r| (batch.epoch, r.sequence, r.envelope));
                    shared.records.lock().extend(frames);
                    if !*shared.forgetful.lock() {
                        known = Some(shared.log.lock().len() as u64);
                        let _ = send.send(Ok(answer));
                    }
                }
            });
            Ok(Response::new(UnboundedReceiverStream::new(receive)))
        }
    }
}
