//! The host API: gRPC over TLS 1.3 on a port of its own.
//!
//! Owns streams and who is at the other end of a connection. A host is who its certificate says; messages of another
//! host's name change nothing.

mod approval;
mod enrolment;
mod evidence;
mod listener;

use std::sync::Arc;

use guard_proto::limits::GRPC_MESSAGE_BYTES;
use guard_proto::v1::approval_server::ApprovalServer;
use guard_proto::v1::enrolment_server::EnrolmentServer;
use guard_proto::v1::evidence_server::EvidenceServer;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::{Request, Status};

use crate::app::{App, Error};
use crate::ca::HostIdentity;
use crate::store::HostRow;

pub use listener::Peer;

/// Serves hosts until the console stops.
///
/// # Errors
/// If the transport fails as a whole.
pub async fn serve(
    app: Arc<App>,
    tcp: tokio::net::TcpListener,
    tls: Arc<rustls::ServerConfig>,
) -> Result<(), tonic::transport::Error> {
    let stopping = app.stopping.clone();
    Server::builder()
        .http2_keepalive_interval(Some(std::time::Duration::from_secs(20)))
        .http2_keepalive_timeout(Some(std::time::Duration::from_secs(20)))
        .max_concurrent_streams(64)
        .add_service(
            EnrolmentServer::new(enrolment::Service { app: app.clone() }).max_decoding_message_size(GRPC_MESSAGE_BYTES),
        )
        .add_service(InterceptedService::new(
            ApprovalServer::new(approval::Service { app: app.clone() }).max_decoding_message_size(GRPC_MESSAGE_BYTES),
            certified,
        ))
        .add_service(InterceptedService::new(
            EvidenceServer::new(evidence::Service { app: app.clone() }).max_decoding_message_size(GRPC_MESSAGE_BYTES),
            certified,
        ))
        .serve_with_incoming_shutdown(listener::accept(tcp, tls, stopping.clone()), stopping.cancelled_owned())
        .await
}

/// Before a byte of the message is looked at.
fn certified(request: Request<()>) -> Result<Request<()>, Status> {
    identity(&request)?;
    Ok(request)
}

fn identity<T>(request: &Request<T>) -> Result<HostIdentity, Status> {
    let peer = request.extensions().get::<Peer>();
    peer.and_then(|peer| peer.host.clone())
        .ok_or_else(|| Status::unauthenticated("this service needs the certificate that enrolment gave the host"))
}

/// The verified host at the other end, if the console still knows and admits it.
async fn host<T>(app: &App, request: &Request<T>) -> Result<(HostRow, HostIdentity), Status> {
    let identity = identity(request)?;
    // A long-lived connection outlives the check that its handshake made.
    if identity.not_after_ms <= crate::time::now() {
        return Err(Status::unauthenticated(
            "the host's certificate has expired; connect with a renewed one",
        ));
    }
    let host = app.admitted_host(&identity.host_id).await.map_err(status)?;
    Ok((host, identity))
}

/// Errors as hosts see them.
fn status(error: Error) -> Status {
    let text = error.to_string();
    match error {
        Error::SignInFirst | Error::SignInFailed(_) => Status::unauthenticated(text),
        Error::Forbidden(_) => Status::permission_denied(text),
        Error::NotFound { .. } => Status::not_found(text),
        Error::Conflict { .. } | Error::Changed(_) | Error::Reused => Status::failed_precondition(text),
        Error::Invalid(_) => Status::invalid_argument(text),
        Error::TooMany { .. } => Status::resource_exhausted(text),
        Error::Busy(_) => Status::unavailable(text),
        Error::Internal(why) => {
            tracing::error!(why, "a host's call failed");
            Status::internal("internal error; the console's log says why")
        }
    }
}
