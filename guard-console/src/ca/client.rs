//! Who a client certificate says a host is.
//!
//! Owns reading the subject of certificates that rustls has verified against our CA. It must never be given one that
//! was not verified.

use rustls_pki_types::CertificateDer;
use ulid::Ulid;

/// A host as its verified certificate names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostIdentity {
    /// ULID.
    pub host_id: String,
    /// Unix milliseconds; a stream ends then.
    pub not_after_ms: i64,
}

/// Reads `host:<ULID>` from the common name. `None`: a certificate of our CA that is not a host's.
#[must_use]
pub fn read_host_certificate(certificate: &CertificateDer<'_>) -> Option<HostIdentity> {
    let (rest, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    if !rest.is_empty() {
        return None;
    }
    let mut names = certificate.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?;
    if names.next().is_some() {
        return None;
    }
    let host_id = name.strip_prefix("host:")?;
    // Canonical form only: two spellings of one id would be two hosts.
    let canonical = Ulid::from_string(host_id).ok()?.to_string();
    (canonical == host_id).then(|| HostIdentity {
        host_id: canonical,
        not_after_ms: certificate.validity().not_after.timestamp().saturating_mul(1_000),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Authority;
    use crate::data_dir::DataDir;
    use rcgen::{CertificateParams, DnType, KeyPair};
    use time::OffsetDateTime;

    #[test]
    fn only_the_public_key_of_a_request_counts() {
        let base = tempfile::tempdir().unwrap();
        let dir = DataDir::open_or_create(&base.path().join("d")).unwrap();
        let now = OffsetDateTime::now_utc();
        let authority = Authority::load_or_create(&dir, now).unwrap();
        let again = Authority::load_or_create(&dir, now).unwrap();
        assert_eq!(authority.fingerprint(), again.fingerprint());

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["evil.example.org".to_owned()]).unwrap();
        params
            .distinguished_name
            .push(DnType::CommonName, "host:01JD0000000000000000000000");
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let csr = params.serialize_request(&key).unwrap().pem().unwrap();
        let id = Ulid::new().to_string();
        let issued = again.issue_host(&csr, &id, now).unwrap();
        assert_eq!(read_host_certificate(&issued.chain[0]).unwrap().host_id, id);
        let (_, leaf) = x509_parser::parse_x509_certificate(&issued.chain[0]).unwrap();
        assert!(!leaf.is_ca());
        assert!(leaf.subject_alternative_name().unwrap().is_none());
        assert!(read_host_certificate(&issued.chain[1]).is_none());
        assert!(authority.issue_host("not a request", &id, now).is_err());
    }

    #[test]
    fn half_an_authority_is_an_error_not_a_new_one() {
        let base = tempfile::tempdir().unwrap();
        let dir = DataDir::open_or_create(&base.path().join("d")).unwrap();
        Authority::load_or_create(&dir, OffsetDateTime::now_utc()).unwrap();
        dir.remove("ca.pem").unwrap();
        assert!(Authority::load_or_create(&dir, OffsetDateTime::now_utc()).is_err());
    }
}
