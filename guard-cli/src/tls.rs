//! TLS to the console: only its own certificate authority is trusted.
//!
//! Owns the pin: a CA file, or the SHA-256 of the CA certificate that the console then has to show. It is given PEM
//! or a digest. It must never fall back to the system's authorities.

use std::sync::{Arc, Mutex};

use guard_evidence::statement::sha256_hex;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::failure::Failure;

/// Trusts the certificates in `ca_pem` and nothing else.
pub(crate) fn pinned_to_pem(ca_pem: &str) -> Result<ClientConfig, Failure> {
    let mut roots = RootCertStore::empty();
    for cert in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let cert = cert.map_err(|e| Failure::usage(format!("the CA file is not PEM: {e}")))?;
        roots
            .add(cert)
            .map_err(|e| Failure::usage(format!("the CA file holds a certificate that cannot be used: {e}")))?;
    }
    if roots.is_empty() {
        return Err(Failure::usage("the CA file holds no certificate"));
    }
    let config = builder()?.with_root_certificates(roots).with_no_client_auth();
    Ok(config)
}

/// Trusts the CA certificate with this digest, which the console must send with its own. After a handshake
/// [`Pin::ca_pem`] has it.
pub(crate) fn pinned_to_digest(sha256: &str) -> Result<(ClientConfig, Arc<Pin>), Failure> {
    let sha256: String = sha256
        .chars()
        .filter(|c| *c != ':')
        .collect::<String>()
        .to_ascii_lowercase();
    if sha256.len() != 64 || !sha256.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(Failure::usage("--ca-sha256 takes the 64 hex digits of a SHA-256"));
    }
    let pin = Arc::new(Pin {
        sha256,
        provider: provider(),
        seen: Mutex::new(None),
    });
    let config = builder()?
        .dangerous()
        .with_custom_certificate_verifier(pin.clone())
        .with_no_client_auth();
    Ok((config, pin))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Failure> {
    ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| Failure::unknown(format!("TLS: {e}")))
}

/// Checks a chain against the CA certificate of a known digest.
#[derive(Debug)]
pub(crate) struct Pin {
    sha256: String,
    provider: Arc<CryptoProvider>,
    seen: Mutex<Option<CertificateDer<'static>>>,
}

impl Pin {
    /// The certificate that had the digest, as PEM.
    pub(crate) fn ca_pem(&self) -> Option<String> {
        use base64_lines::encode;
        let seen = self.seen.lock().ok()?.clone()?;
        Some(format!(
            "-----BEGIN CERTIFICATE-----\n{}-----END CERTIFICATE-----\n",
            encode(&seen)
        ))
    }
}

mod base64_lines {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;

    pub(super) fn encode(der: &[u8]) -> String {
        let text = STANDARD.encode(der);
        let mut out = String::new();
        let mut rest = text.as_str();
        while !rest.is_empty() {
            let (line, more) = rest.split_at(rest.len().min(64));
            out.push_str(line);
            out.push('\n');
            rest = more;
        }
        out
    }
}

impl ServerCertVerifier for Pin {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(ca) = intermediates.iter().find(|cert| sha256_hex(cert) == self.sha256) else {
            return Err(rustls::Error::General(format!(
                "the console shows no CA certificate with the SHA-256 {}",
                self.sha256
            )));
        };
        let ca = ca.clone().into_owned();
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone())?;
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), self.provider.clone())
            .build()
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp, now)?;
        if let Ok(mut seen) = self.seen.lock() {
            *seen = Some(ca);
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
