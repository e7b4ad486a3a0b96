//! The console client: keeps a stream to the console, ships evidence, renews the certificate.
//!
//! Owns the connection and its repetition. It is given the engine's messages and the spool. It must never be waited for:
//! while the console is away, questions and evidence stay where they are.

pub(crate) mod channel;
mod keys;
mod ship;
pub(crate) mod tls;
pub(crate) mod witness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use guard_evidence::cosign::VerifierKey;
use guard_evidence::key::PublicKey;
use guard_evidence::record::Lifecycle;
use guard_proto::limits::GRPC_MESSAGE_BYTES;
use guard_proto::v1;
use guard_proto::v1::approval_client::ApprovalClient;
use guard_proto::v1::console_message::Kind;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::engine::{Event, FromConsole};
use crate::evidence::Evidence;
use crate::identity::{Enrolment, Identity, IdentityError, TlsFiles, new_tls_key};
use channel::ConnectError;
use ship::Shipping;
use witness::{LogTrust, Refused};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// A stream that held so long ends the growing of pauses.
const GOOD_STREAM: Duration = Duration::from_secs(30);
/// Without any answer to the first message the console is not one.
const WELCOME: Duration = Duration::from_secs(20);
/// Messages for a console that reads slowly; room for every question of a host and more.
const QUEUE: usize = 16_384;
/// A renewal that failed is tried again after this.
const RENEW_RETRY: Duration = Duration::from_secs(600);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum StreamError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{}", status_words(.0))]
    Status(#[from] tonic::Status),
    #[error("the console did not answer within {WELCOME:?}")]
    Silent,
    #[error("the console speaks protocol {0}; this agent speaks 1: upgrade the older side")]
    Protocol(u32),
    #[error("the certificate was renewed")]
    Renewed,
    #[error("the certificate cannot be renewed: {0}")]
    Renew(String),
    #[error("the console did not say which key signs its log: {0}; upgrade it")]
    LogKey(String),
    #[error("the engine has ended")]
    Engine,
}

fn status_words(status: &tonic::Status) -> String {
    guard_evidence::text::visible_fold(&format!("{}: {}", status.code(), status.message()), 500)
}

/// Whether there is a stream now; read by the status command.
#[derive(Debug, Default)]
pub struct ConsoleState {
    connected: AtomicBool,
    /// Size of the log's head that this host holds.
    log_size: AtomicU64,
    log_refused: Mutex<Option<String>>,
}

impl ConsoleState {
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    /// Records of the log whose head this host holds.
    #[must_use]
    pub fn log_size(&self) -> u64 {
        self.log_size.load(Ordering::Relaxed)
    }

    /// When and why this host last refused the console's log.
    #[must_use]
    pub fn log_refused(&self) -> Option<String> {
        self.log_refused.lock().clone()
    }

    fn saw_log(&self, size: u64) {
        self.log_size.store(size, Ordering::Relaxed);
    }

    fn refused_log(&self, refused: &Refused) {
        *self.log_refused.lock() = Some(format!("{}: {}", refused.at, refused.because));
    }
}

/// Everything the client works with.
#[derive(Debug)]
pub struct Client {
    pub identity: Arc<Identity>,
    pub enrolment: Enrolment,
    pub evidence: Evidence,
    pub events: mpsc::UnboundedSender<Event>,
    pub state: Arc<ConsoleState>,
    /// Whose cosignatures a receipt needs, and how many of them.
    pub witnesses: Vec<VerifierKey>,
    pub quorum: usize,
}

impl Client {
    /// Connects, again and again.
    pub async fn run(mut self) {
        if let Some(refused) = witness::refused_before(self.identity.directory()) {
            self.state.refused_log(&refused);
        }
        let mut pause = FIRST_PAUSE;
        let mut stream = 0;
        let mut last_error = String::new();
        loop {
            stream += 1;
            let begun = tokio::time::Instant::now();
            let result = self.stream(stream).await;
            self.state.connected.store(false, Ordering::Relaxed);
            if self
                .events
                .send(Event::Console(FromConsole::Disconnected { stream }))
                .is_err()
            {
                return;
            }
            if begun.elapsed() >= GOOD_STREAM || matches!(result, Err(StreamError::Renewed)) {
                pause = FIRST_PAUSE;
            }
            let error = result.map_or_else(
                |error| error.to_string(),
                |()| "the console ended the stream".to_owned(),
            );
            // The same fault is not told again every half minute.
            if error == last_error {
                tracing::debug!(console = self.enrolment.address, error, "not connected");
            } else {
                tracing::warn!(
                    console = self.enrolment.address,
                    error,
                    "not connected to the console; trying again"
                );
                last_error = error;
            }
            let jitter = rand::thread_rng().gen_range(0.5..1.0);
            tokio::time::sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn stream(&mut self, stream: u64) -> Result<(), StreamError> {
        let files = self.identity.tls()?;
        let renew_at = renewal(&files.chain_pem);
        let config = tls::mutual(&self.enrolment.ca_pem, &files.chain_pem, &files.key_pem)?;
        let channel = channel::connect(&self.enrolment.address, config).await?;
        let mut client = ApprovalClient::new(channel.clone())
            .max_decoding_message_size(GRPC_MESSAGE_BYTES)
            .max_encoding_message_size(GRPC_MESSAGE_BYTES);

        let (send, receive) = mpsc::channel(QUEUE);
        let connected = FromConsole::Connected { stream, send };
        // The engine's Hello has to be in the queue before the call: the server answers after it.
        self.events
            .send(Event::Console(connected))
            .map_err(|_| StreamError::Engine)?;
        let call = client.session(ReceiverStream::new(receive));
        let mut messages = tokio::time::timeout(WELCOME, call)
            .await
            .map_err(|_| StreamError::Silent)??
            .into_inner();
        let first = tokio::time::timeout(WELCOME, messages.message())
            .await
            .map_err(|_| StreamError::Silent)??;
        let Some(Kind::Welcome(welcome)) = first.and_then(|message| message.kind) else {
            return Err(StreamError::Silent);
        };
        if welcome.protocol_version != 1 {
            return Err(StreamError::Protocol(welcome.protocol_version));
        }
        self.state.connected.store(true, Ordering::Relaxed);
        tracing::info!(
            console = self.enrolment.address,
            version = welcome.console_version,
            "connected to the console"
        );
        let skew = welcome.now_ms - crate::clock::unix_ms();
        if skew.abs() > 60_000 {
            tracing::warn!(
                skew_ms = skew,
                "the console's clock and this host's differ; decisions may be refused as expired"
            );
        }

        self.follow_decision_key(&welcome)?;
        let shipping = Shipping {
            evidence: self.evidence.clone(),
            directory: self.identity.directory().to_owned(),
            trust: LogTrust {
                origin: self.enrolment.log_origin.clone(),
                key: self.log_key(&welcome)?,
                earlier: self.identity.earlier_log_keys()?,
                witnesses: self.witnesses.clone(),
                quorum: self.quorum,
            },
            state: Arc::clone(&self.state),
        };
        let shipping = ship::run(channel.clone(), shipping);
        tokio::pin!(shipping);
        let renewal = tokio::time::sleep(renew_at);
        tokio::pin!(renewal);
        loop {
            tokio::select! {
                message = messages.message() => match message?.and_then(|message| message.kind) {
                    Some(kind) => self.receive(kind)?,
                    None => return Ok(()),
                },
                () = &mut shipping => {}
                () = &mut renewal => match self.renew(channel.clone()).await {
                    Ok(()) => return Err(StreamError::Renewed),
                    Err(error) => {
                        tracing::error!(%error, "trying again in ten minutes");
                        renewal.as_mut().reset(tokio::time::Instant::now() + RENEW_RETRY);
                    }
                },
            }
        }
    }

    /// Believes another decision key if the one that is known leads to it: on disk, in a record, then in the engine.
    fn follow_decision_key(&mut self, welcome: &v1::Welcome) -> Result<(), StreamError> {
        let Enrolment {
            decision_key,
            log_origin,
            ..
        } = &mut self.enrolment;
        let signer = format!("console:{log_origin}");
        let key = keys::follow(decision_key, &signer, &welcome.decision_key_statements);
        if key == *decision_key {
            return Ok(());
        }
        self.identity.replace_decision_key(&key)?;
        decision_key.clone_from(&key);
        tracing::info!(
            key = key.id(),
            "the console's decisions are signed by another key, which the one before it named"
        );
        self.evidence.lifecycle(Lifecycle::ConsoleKey { key: key.clone() });
        self.events
            .send(Event::Console(FromConsole::DecisionKey(key)))
            .map_err(|_| StreamError::Engine)
    }

    /// The log's key: the one of the enrolment and what follows from it, else the first that this console tells, which is
    /// pinned.
    fn log_key(&self, welcome: &v1::Welcome) -> Result<PublicKey, StreamError> {
        if let Some(known) = self.identity.log_key()? {
            let signer = format!("log:{}", self.enrolment.log_origin);
            let key = keys::follow(&known, &signer, &welcome.log_key_statements);
            if key != known {
                self.identity.replace_log_key(&known, &key)?;
                tracing::info!(
                    key = key.id(),
                    "the log's heads are signed by another key, which the one before it named"
                );
            }
            return Ok(key);
        }
        let told = &welcome.log_public_key;
        let key = PublicKey::from_der(told).map_err(|e| StreamError::LogKey(e.to_string()))?;
        self.identity.pin_log_key(&key)?;
        tracing::info!(key = key.id(), "the log's key is pinned from now on");
        Ok(key)
    }

    fn receive(&self, kind: Kind) -> Result<(), StreamError> {
        let message = match kind {
            Kind::AskReceived(received) => FromConsole::AskReceived(received),
            Kind::Decision(decision) => FromConsole::Decision(decision),
            Kind::Recall(recall) => {
                let reason = guard_evidence::text::visible_fold(&recall.reason, 500);
                tracing::error!(
                    reason,
                    "the console revoked this host; it goes on enforcing, and asks nobody"
                );
                return Ok(());
            }
            // Once is enough.
            Kind::Welcome(_) => return Ok(()),
        };
        self.events
            .send(Event::Console(message))
            .map_err(|_| StreamError::Engine)
    }

    async fn renew(&self, channel: Channel) -> Result<(), StreamError> {
        let failed = |error: &dyn std::fmt::Display| StreamError::Renew(error.to_string());
        let (key_pem, csr_pem) = new_tls_key().map_err(|e| failed(&e))?;
        let reply = ApprovalClient::new(channel)
            .renew(v1::RenewRequest { csr_pem })
            .await?
            .into_inner();
        let files = TlsFiles {
            chain_pem: reply.certificate_chain_pem,
            key_pem,
        };
        // What cannot be used must not replace what can.
        tls::mutual(&self.enrolment.ca_pem, &files.chain_pem, &files.key_pem)?;
        if renewal(&files.chain_pem) == Duration::ZERO {
            return Err(StreamError::Renew("the new certificate is old already".to_owned()));
        }
        self.identity.replace_tls(&files)?;
        tracing::info!("certificate renewed");
        Ok(())
    }
}

/// How long until the certificate should be replaced: two thirds of its life.
fn renewal(chain_pem: &str) -> Duration {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(chain_pem.as_bytes()) else {
        return Duration::ZERO;
    };
    let Ok(certificate) = pem.parse_x509() else {
        return Duration::ZERO;
    };
    let validity = certificate.validity();
    let (begin, end) = (validity.not_before.timestamp(), validity.not_after.timestamp());
    let at = begin + (end - begin) / 3 * 2;
    let now = crate::clock::unix_ms() / 1_000;
    Duration::from_secs(u64::try_from(at - now).unwrap_or(0))
}

#[cfg(test)]
mod tests;
