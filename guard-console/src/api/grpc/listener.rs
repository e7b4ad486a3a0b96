//! TLS connections of hosts, with the identity of their certificate.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::ca::{HostIdentity, read_host_certificate};

const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; others wait in the kernel's queue.
const HANDSHAKES: usize = 64;

/// Who is at the other end.
#[derive(Debug, Clone)]
pub struct Peer {
    pub address: SocketAddr,
    /// `None`: no client certificate, which only enrolment accepts.
    pub host: Option<HostIdentity>,
}

/// A connection after its handshake.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

/// Accepts connections; a handshake that is slow or fails holds nobody else up.
pub(super) fn accept(
    tcp: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    stopping: CancellationToken,
) -> impl Stream<Item = io::Result<Connection>> {
    let (send, receive) = mpsc::channel(HANDSHAKES);
    let turns = Arc::new(Semaphore::new(HANDSHAKES));
    let acceptor = TlsAcceptor::from(tls);
    tokio::spawn(async move {
        loop {
            let Ok(turn) = turns.clone().acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                () = stopping.cancelled() => return,
                accepted = tcp.accept() => accepted,
            };
            let (tcp, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a host's connection");
                    // Out of descriptors: waiting is all that helps.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, send) = (acceptor.clone(), send.clone());
            tokio::spawn(async move {
                let handshake = tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await;
                drop(turn);
                match handshake {
                    Ok(Ok(stream)) => {
                        let _ = stream.get_ref().0.set_nodelay(true);
                        // The stack is shutting down if nobody receives.
                        let _ = send.send(Ok(Connection::new(stream, address))).await;
                    }
                    Ok(Err(error)) => tracing::warn!(%address, %error, "TLS handshake with a host failed"),
                    Err(_) => tracing::warn!(%address, "TLS handshake with a host timed out"),
                }
            });
        }
    });
    ReceiverStream::new(receive)
}

impl Connection {
    fn new(stream: TlsStream<TcpStream>, address: SocketAddr) -> Self {
        // rustls has verified it against our CA.
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let host = certificate.and_then(read_host_certificate);
        Self {
            stream,
            peer: Peer { address, host },
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
