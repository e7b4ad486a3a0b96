//! A gRPC channel to the console over our own TLS.
//!
//! Owns connecting: name resolution, TCP, TLS, HTTP/2 keepalive. It is given an address and a TLS configuration. It must
//! never take a proxy or a root from the environment.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::identity::token::parse_address;

const CONNECT: Duration = Duration::from_secs(10);
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The console could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("`{0}` is not host:port")]
    Address(String),
    #[error("{address}: {why}")]
    Unreachable { address: String, why: String },
}

/// Connects now, within ten seconds.
pub(crate) async fn connect(address: &str, tls: ClientConfig) -> Result<Channel, ConnectError> {
    let bad = || ConnectError::Address(address.to_owned());
    let (host, port) = parse_address(address).ok_or_else(bad)?;
    let name = ServerName::try_from(host.clone()).map_err(|_| bad())?;
    let tls = TlsConnector::from(Arc::new(tls));
    let connector = tower::service_fn(move |_: Uri| {
        let (host, name, tls) = (host.clone(), name.clone(), tls.clone());
        async move {
            let stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, stream).await?))
        }
    });
    // The scheme and name are for HTTP/2's `:authority` only; TLS is ours.
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| bad())?
        .connect_timeout(CONNECT)
        .http2_keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .tcp_nodelay(true);
    endpoint
        .connect_with_connector(connector)
        .await
        .map_err(|error| ConnectError::Unreachable {
            address: address.to_owned(),
            why: innermost(&error),
        })
}

/// The last cause says what happened; the ones before it only repeat that something did.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    let text = error.to_string();
    if text.contains("UnknownIssuer") {
        return "the console's certificate is not signed by the CA that this host knows (wrong console, or its CA was replaced)"
            .to_owned();
    }
    text
}
