//! One stream per host: questions come in, decisions go out.

use std::collections::HashSet;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use guard_proto::v1::approval_server::Approval;
use guard_proto::v1::console_message::Kind as ConsoleKind;
use guard_proto::v1::host_message::Kind as HostKind;
use guard_proto::v1::{AskReceived, ConsoleMessage, Decision, HostMessage, Recall, RenewReply, RenewRequest, Welcome};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{host, status};
use crate::app::{App, Error};
use crate::ca::HostIdentity;
use crate::notify::HostStream;
use crate::store::{HostRow, Purpose};
use crate::time;

const PROTOCOL: u32 = 1;
const HEARTBEAT_SECONDS: u32 = 15;
/// A stream without any message for this long is dead, whatever TCP says.
const SILENCE: Duration = Duration::from_secs(3 * HEARTBEAT_SECONDS as u64);
/// A decision that was sent but not acknowledged is sent again this often, with a signature that holds.
const RESEND: Duration = Duration::from_secs(60);
const OUT: usize = 64;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) app: Arc<App>,
}

type Out = mpsc::Sender<Result<ConsoleMessage, Status>>;

#[tonic::async_trait]
impl Approval for Service {
    type SessionStream = Pin<Box<dyn Stream<Item = Result<ConsoleMessage, Status>> + Send>>;

    async fn session(&self, request: Request<Streaming<HostMessage>>) -> Result<Response<Self::SessionStream>, Status> {
        let (host, identity) = host(&self.app, &request).await?;
        let (out, receive) = mpsc::channel(OUT);
        let session = Session {
            app: self.app.clone(),
            host,
            identity,
            out,
        };
        let messages = request.into_inner();
        tokio::spawn(async move {
            let out = session.out.clone();
            let name = session.host.name.clone();
            if let Err(end) = session.run(messages).await {
                tracing::info!(host = %name, code = ?end.code(), why = end.message(), "host stream ended");
                // The host may be gone already.
                let _ = out.send(Err(end)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<RenewReply>, Status> {
        let (host, _) = host(&self.app, &request).await?;
        let certificate_chain_pem = self
            .app
            .renew(&host, &request.get_ref().csr_pem)
            .await
            .map_err(status)?;
        Ok(Response::new(RenewReply { certificate_chain_pem }))
    }
}

struct Session {
    app: Arc<App>,
    host: HostRow,
    identity: HostIdentity,
    out: Out,
}

impl Session {
    /// From Hello to the end. `Err` is what the host is told.
    async fn run(self, mut messages: Streaming<HostMessage>) -> Result<(), Status> {
        let first = tokio::time::timeout(SILENCE, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no Hello came"))??;
        let Some(HostKind::Hello(hello)) = first.and_then(|message| message.kind) else {
            return Err(Status::invalid_argument("the first message of a stream is Hello"));
        };
        if hello.protocol_version != PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "protocol version {} is not spoken here, {PROTOCOL} is; upgrade the older side",
                hello.protocol_version
            )));
        }
        let presence = self.app.hello(&self.host, &hello).await.map_err(status)?;
        let stream = self.app.notify.open_stream(&self.host.id, presence);
        tracing::info!(host = %self.host.name, agent = %hello.agent_version, kernel = %hello.kernel_release, "host connected");
        let result = self.talk(messages, &stream).await;
        if self.app.notify.close_stream(&self.host.id, &stream) {
            self.app
                .stream_closed(&self.host.id, stream.presence())
                .await
                .map_err(status)?;
        }
        result
    }

    async fn talk(&self, mut messages: Streaming<HostMessage>, stream: &HostStream) -> Result<(), Status> {
        // Revoked between the check and the registration: nobody would tell us.
        self.app.admitted_host(&self.host.id).await.map_err(status)?;
        self.send(ConsoleKind::Welcome(Welcome {
            console_version: env!("CARGO_PKG_VERSION").to_owned(),
            protocol_version: PROTOCOL,
            now_ms: time::now(),
            heartbeat_seconds: HEARTBEAT_SECONDS,
            log_public_key: self.app.log_public_key(),
            decision_key_statements: self.app.key_statements(Purpose::Decision).await.map_err(status)?,
            log_key_statements: self.app.key_statements(Purpose::Log).await.map_err(status)?,
        }))
        .await?;
        let lifetime = u64::try_from(self.identity.not_after_ms - time::now()).unwrap_or(0);
        let expired = tokio::time::sleep(Duration::from_millis(lifetime));
        tokio::pin!(expired);
        let mut resend = tokio::time::interval(RESEND);
        let mut sent = HashSet::new();
        loop {
            tokio::select! {
                message = tokio::time::timeout(SILENCE, messages.message()) => {
                    let message = message.map_err(|_| Status::deadline_exceeded("no heartbeat came"))??;
                    let Some(message) = message else { return Ok(()) };
                    if let Some(asked_again) = self.receive(message, stream).await? {
                        // Asked again after a reconnect: what was decided meanwhile goes out again.
                        sent.remove(&asked_again);
                        self.deliver(&mut sent).await?;
                    }
                }
                () = stream.wake.notified() => self.deliver(&mut sent).await?,
                // The first tick is at once: what was decided while the host was away.
                _ = resend.tick() => {
                    sent.clear();
                    self.deliver(&mut sent).await?;
                }
                () = stream.ended.cancelled() => return Err(Status::aborted("a newer stream of this host took over")),
                () = stream.revoked.cancelled() => {
                    let reason = "an administrator revoked this host".to_owned();
                    self.send(ConsoleKind::Recall(Recall { reason: reason.clone() })).await?;
                    return Err(Status::permission_denied(reason));
                }
                () = &mut expired => {
                    return Err(Status::unauthenticated("the host's certificate has expired; connect with a renewed one"));
                }
                () = self.app.stopping.cancelled() => return Err(Status::unavailable("the console is stopping")),
            }
        }
    }

    /// Handles one message; answers the id of a request that was asked.
    async fn receive(&self, message: HostMessage, stream: &HostStream) -> Result<Option<String>, Status> {
        let now = time::now();
        match message.kind {
            Some(HostKind::Heartbeat(heartbeat)) => {
                stream.seen(now, Some((heartbeat.enforcing, heartbeat.lost_events)));
                if heartbeat.at_ms > 0 {
                    stream.set_ahead(heartbeat.at_ms.saturating_sub(now));
                }
                return Ok(None);
            }
            _ => stream.seen(now, None),
        }
        match message.kind {
            Some(HostKind::Ask(ask)) => {
                let refused = match self.app.ask(&self.host, &ask).await {
                    Ok(()) => None,
                    Err(Error::Invalid(why)) => Some(why),
                    Err(other) => return Err(status(other)),
                };
                if let Some(why) = &refused {
                    tracing::warn!(host = %self.host.name, why, "a question was refused");
                }
                self.send(ConsoleKind::AskReceived(AskReceived {
                    request_id: ask.request_id.clone(),
                    accepted: refused.is_none(),
                    refused_because: refused.unwrap_or_default(),
                }))
                .await?;
                return Ok(Some(ask.request_id));
            }
            Some(HostKind::Withdraw(withdraw)) => self.app.withdraw(&self.host, &withdraw).await.map_err(status)?,
            Some(HostKind::DecisionReceived(received)) => {
                self.app
                    .decision_received(&self.host, &received)
                    .await
                    .map_err(status)?;
            }
            Some(HostKind::Outcome(outcome)) => self.app.outcome(&self.host, &outcome).await.map_err(status)?,
            Some(HostKind::Hello(_)) => return Err(Status::invalid_argument("Hello comes once, first")),
            // A message of a later protocol: harmless, since it was not asked for.
            Some(HostKind::Heartbeat(_)) | None => {}
        }
        Ok(None)
    }

    async fn deliver(&self, sent: &mut HashSet<String>) -> Result<(), Status> {
        for (request_id, envelope) in self.app.undelivered(&self.host.id, sent).await.map_err(status)? {
            sent.insert(request_id.clone());
            self.send(ConsoleKind::Decision(Decision { request_id, envelope }))
                .await?;
        }
        Ok(())
    }

    async fn send(&self, kind: ConsoleKind) -> Result<(), Status> {
        // A host that reads nothing is as dead as one that says nothing.
        match self
            .out
            .send_timeout(Ok(ConsoleMessage { kind: Some(kind) }), SILENCE)
            .await
        {
            Ok(()) => Ok(()),
            Err(_) => Err(Status::aborted("the host does not read its stream")),
        }
    }
}
