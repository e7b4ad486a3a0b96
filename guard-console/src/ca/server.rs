//! The console's own certificate, renewed while it runs, and the TLS settings of its two ports.
//!
//! Owns the server key, which lives in memory only: every start makes a new one. It must never accept a client
//! certificate of another authority; whether none at all is acceptable is decided per service.

use std::sync::Arc;

use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use time::OffsetDateTime;

use super::{Authority, CaError, SERVER_VALIDITY};

/// What both ports present: leaf and CA, so that hosts can check the pin.
pub struct ServerCertificate {
    authority: Arc<Authority>,
    names: Vec<String>,
    current: RwLock<Current>,
}

struct Current {
    key: Arc<CertifiedKey>,
    not_after_ms: i64,
}

impl std::fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerCertificate")
            .field("names", &self.names)
            .finish_non_exhaustive()
    }
}

impl ServerCertificate {
    pub fn new(authority: Arc<Authority>, names: Vec<String>, now: OffsetDateTime) -> Result<Self, CaError> {
        let current = RwLock::new(issue(&authority, &names, now)?);
        Ok(Self {
            authority,
            names,
            current,
        })
    }

    /// Makes a new certificate when two thirds of the current one's life are over.
    pub fn renew_if_due(&self, now: OffsetDateTime) -> Result<bool, CaError> {
        let due_ms = self.current.read().not_after_ms - i64::try_from(SERVER_VALIDITY.as_millis()).unwrap_or(0) / 3;
        if now.unix_timestamp() * 1_000 < due_ms {
            return Ok(false);
        }
        *self.current.write() = issue(&self.authority, &self.names, now)?;
        Ok(true)
    }
}

fn issue(authority: &Authority, names: &[String], now: OffsetDateTime) -> Result<Current, CaError> {
    let (issued, key) = authority.issue_server(names, now)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)?;
    Ok(Current {
        key: Arc::new(CertifiedKey::new(issued.chain, key)),
        not_after_ms: issued.not_after_ms,
    })
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.read().key.clone())
    }
}

/// Web and REST: TLS 1.3 and 1.2, HTTP/2 and HTTP/1.1.
pub fn web_tls(certificate: Arc<ServerCertificate>) -> Result<ServerConfig, CaError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Hosts: TLS 1.3 only. A client certificate, when there is one, must be ours; services that need one check for it.
pub fn host_tls(certificate: Arc<ServerCertificate>) -> Result<ServerConfig, CaError> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.authority.certificate().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|e| CaError::Tls(rustls::Error::General(e.to_string())))?;
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would outlive the certificate it was made with.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
