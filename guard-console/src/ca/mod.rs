//! The console's certificate authority: one P-256 key that signs the console's own certificate and every host's.
//!
//! Owns the CA key and the shape of certificates. It is given names and public keys, never a subject or a validity
//! that a host chose. It must never sign another authority.

mod client;
mod server;

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;

use crate::data_dir::{DataDir, DataDirError, Readers};

pub use client::{HostIdentity, read_host_certificate};
pub use server::{ServerCertificate, host_tls, web_tls};

const CA_FILE: &str = "ca.pem";
const CA_KEY_FILE: &str = "ca.key";
const CA_VALIDITY: Duration = Duration::from_secs(10 * 365 * 86_400);
/// A host renews long before; short, so that a stolen key is useful for days only.
pub const HOST_VALIDITY: Duration = Duration::from_secs(7 * 86_400);
pub const SERVER_VALIDITY: Duration = Duration::from_secs(90 * 86_400);
/// Clocks of hosts that are a little behind still accept a fresh certificate.
const BACKDATE: Duration = Duration::from_secs(3_600);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    #[error("{file} is not usable: {why}; restore it from a backup (without it no host can connect)")]
    Damaged { file: &'static str, why: String },
    #[error("only one of ca.pem and ca.key is there; restore the other from a backup")]
    Half,
    #[error("the certificate request is not usable: {0}")]
    Request(rcgen::Error),
    #[error("cannot make a certificate: {0}")]
    Make(#[from] rcgen::Error),
    #[error("TLS configuration: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0:?} is neither a host name nor an address")]
    Name(String),
}

/// The authority, ready to sign.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("sha256", &self.fingerprint())
            .finish_non_exhaustive()
    }
}

/// A certificate and its chain.
#[derive(Debug)]
pub struct Issued {
    /// Leaf first, then the CA.
    pub chain: Vec<CertificateDer<'static>>,
    pub chain_pem: String,
    pub not_after_ms: i64,
}

impl Authority {
    /// Loads the authority, or makes it when neither of its files is there.
    pub fn load_or_create(dir: &DataDir, now: OffsetDateTime) -> Result<Self, CaError> {
        match (dir.read(CA_FILE)?, dir.read(CA_KEY_FILE)?) {
            (Some(certificate), Some(key)) => Self::load(&certificate, &key),
            (None, None) => {
                let authority = Self::create(now)?;
                // The key first: a crash in between leaves a state that says what is wrong instead of a second CA.
                dir.write(
                    CA_KEY_FILE,
                    Readers::Owner,
                    authority.issuer.key().serialize_pem().as_bytes(),
                )?;
                dir.write(CA_FILE, Readers::Anyone, authority.pem.as_bytes())?;
                Ok(authority)
            }
            _ => Err(CaError::Half),
        }
    }

    fn load(certificate: &[u8], key: &[u8]) -> Result<Self, CaError> {
        let damaged = |file, why: String| CaError::Damaged { file, why };
        let key = std::str::from_utf8(key).map_err(|e| damaged(CA_KEY_FILE, e.to_string()))?;
        let key = KeyPair::from_pem(key).map_err(|e| damaged(CA_KEY_FILE, e.to_string()))?;
        let pem = String::from_utf8(certificate.to_vec()).map_err(|e| damaged(CA_FILE, e.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(certificate).map_err(|e| damaged(CA_FILE, e.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|e| damaged(CA_FILE, e.to_string()))?;
        Ok(Self {
            issuer,
            certificate,
            pem,
        })
    }

    fn create(now: OffsetDateTime) -> Result<Self, CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params("Guard console CA", now, CA_VALIDITY);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let pem = certificate.pem();
        let der = certificate.der().clone();
        Ok(Self {
            issuer: Issuer::new(params, key),
            certificate: der,
            pem,
        })
    }

    /// SHA-256 of the certificate (DER), hex: what an enrolment token pins.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.certificate))
    }

    #[must_use]
    pub fn pem(&self) -> &str {
        &self.pem
    }

    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// A client certificate for one host. Of the request only the public key is used, and its proof of possession.
    pub fn issue_host(&self, csr_pem: &str, host_id: &str, now: OffsetDateTime) -> Result<Issued, CaError> {
        let csr = CertificateSigningRequestParams::from_pem(csr_pem).map_err(CaError::Request)?;
        let mut params = params(&format!("host:{host_id}"), now, HOST_VALIDITY);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&csr.public_key, &self.issuer)?;
        Ok(self.issued(&certificate, &params))
    }

    /// A certificate for the console itself, with a new key.
    fn issue_server(&self, names: &[String], now: OffsetDateTime) -> Result<(Issued, PrivateKeyDer<'static>), CaError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params("Guard console", now, SERVER_VALIDITY);
        params.subject_alt_names = CertificateParams::new(names.to_vec())?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok((self.issued(&certificate, &params), key))
    }

    fn issued(&self, certificate: &rcgen::Certificate, params: &CertificateParams) -> Issued {
        Issued {
            chain: vec![certificate.der().clone(), self.certificate.clone()],
            chain_pem: format!("{}{}", certificate.pem(), self.pem),
            not_after_ms: params.not_after.unix_timestamp() * 1_000,
        }
    }
}

fn params(common_name: &str, now: OffsetDateTime, validity: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    params.not_before = now - BACKDATE;
    params.not_after = now + validity;
    let mut serial: [u8; 16] = rand::random();
    // A serial number is positive (RFC 5280).
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.use_authority_key_identifier_extension = true;
    params
}
