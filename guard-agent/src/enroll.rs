//! Joining a console with a single-use token.
//!
//! Owns `guard-agent enroll`. It is given a token from a file or standard input. It must never take a token from the
//! command line, and must never leave half an enrolment behind.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use guard_evidence::key::{Algorithm, PublicKey};
use guard_proto::v1;
use guard_proto::v1::enrolment_client::EnrolmentClient;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use ulid::Ulid;

use crate::console::channel::{ConnectError, connect};
use crate::console::tls;
use crate::identity::token::{TOKEN_BYTES, Token, TokenError};
use crate::identity::{self, Enrolment, Identity, IdentityError, TlsFiles};

/// Why a host did not join.
#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error("{path}: {source}\n  → make a token with `guard tokens create`, and give its file or pipe it in")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0}\n  → make a new token with: guard tokens create")]
    Token(#[from] TokenError),
    #[error(
        "this host is enrolled already, as {host_id} at {address}\n  → to enrol it again with new keys: guard-agent enroll --force"
    )]
    Already { host_id: String, address: String },
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(
        "{0}\n  → check the address in the token, the network and the console: guard-console must listen for hosts there"
    )]
    Connect(#[from] ConnectError),
    #[error("the console refused: {0}")]
    Refused(String),
    #[error("the console's answer is not usable: {0}")]
    Answer(String),
    #[error("a key could not be made: {0}")]
    Key(String),
}

/// What the host is now.
#[derive(Debug)]
pub struct Enrolled {
    pub host_id: String,
    pub hostname: String,
    pub address: String,
    /// There was an earlier identity; its keys and spool were kept beside.
    pub replaced: bool,
}

/// Reads the token: from the file, or from standard input when there is none or it is `-`.
///
/// # Errors
/// If it cannot be read or is no token.
pub fn read_token(file: Option<&Path>) -> Result<Token, EnrollError> {
    let mut text = String::new();
    let limit = TOKEN_BYTES as u64 + 1;
    let file = file.filter(|path| *path != Path::new("-"));
    let read = match file {
        Some(path) => File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)),
        None => std::io::stdin().take(limit).read_to_string(&mut text),
    };
    read.map_err(|source| EnrollError::Read {
        path: file.unwrap_or(Path::new("standard input")).to_owned(),
        source,
    })?;
    Ok(Token::parse(&text)?)
}

/// Joins the console that the token names and stores what it answers. `algorithm` is that of the evidence key.
///
/// # Errors
/// [`EnrollError`]; nothing was changed then, but the token may be spent.
pub async fn enroll(
    state_dir: &Path,
    token: &Token,
    force: bool,
    algorithm: Algorithm,
) -> Result<Enrolled, EnrollError> {
    let before = Identity::load(state_dir);
    let replaced = match (&before, force) {
        (
            Ok(Some(Identity {
                host_id,
                enrolment: Some(enrolment),
                ..
            })),
            false,
        ) => {
            return Err(EnrollError::Already {
                host_id: host_id.clone(),
                address: enrolment.address.clone(),
            });
        }
        (Ok(before), _) => before.is_some(),
        (Err(_), true) => true,
        (Err(_), false) => return Err(before.err().map_or(EnrollError::Key(String::new()), EnrollError::from)),
    };

    let evidence_key = identity::new_evidence_key(algorithm);
    let (key_pem, csr_pem) = identity::new_tls_key().map_err(|e| EnrollError::Key(e.to_string()))?;
    let tls = tls::pinned(token.ca_sha256).map_err(|e| EnrollError::Key(e.to_string()))?;
    let channel = connect(&token.address(), tls).await?;
    let request = v1::EnrollRequest {
        token: token.secret().to_owned(),
        csr_pem,
        evidence_public_key: evidence_key.public().to_der(),
        hostname: identity::system_hostname(),
        machine_id: std::fs::read_to_string("/etc/machine-id")
            .unwrap_or_default()
            .trim()
            .to_owned(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let reply = EnrolmentClient::new(channel)
        .enroll(request)
        .await
        .map_err(|status| EnrollError::Refused(guard_evidence::text::visible_fold(status.message(), 500)))?
        .into_inner();
    let enrolment = check(&reply, token)?;
    let log_key = PublicKey::from_der(&reply.log_public_key).map_err(|e| EnrollError::Answer(e.to_string()))?;
    let tls = TlsFiles {
        chain_pem: reply.certificate_chain_pem,
        key_pem,
    };
    tls::mutual(&enrolment.ca_pem, &tls.chain_pem, &tls.key_pem).map_err(|e| EnrollError::Answer(e.to_string()))?;
    let identity = Identity::create(
        state_dir,
        &reply.host_id,
        &reply.hostname,
        &evidence_key,
        Some(&tls),
        Some(enrolment),
    )?;
    identity.pin_log_key(&log_key)?;
    Ok(Enrolled {
        host_id: identity.host_id,
        hostname: identity.hostname,
        address: token.address(),
        replaced,
    })
}

/// The answer came over a pinned connection; it still has to be whole.
fn check(reply: &v1::EnrollReply, token: &Token) -> Result<Enrolment, EnrollError> {
    let answer = |why: &str| EnrollError::Answer(why.to_owned());
    if Ulid::from_string(&reply.host_id).is_err() {
        return Err(answer("the host id is not a ULID"));
    }
    let ca =
        CertificateDer::from_pem_slice(reply.ca_pem.as_bytes()).map_err(|_| answer("the CA is not a certificate"))?;
    if Sha256::digest(&ca).as_slice() != token.ca_sha256 {
        return Err(answer("the CA is not the one that the token pins"));
    }
    let decision_key =
        PublicKey::from_der(&reply.decision_public_key).map_err(|e| EnrollError::Answer(e.to_string()))?;
    Ok(Enrolment {
        address: token.address(),
        ca_sha256: hex::encode(token.ca_sha256),
        ca_pem: reply.ca_pem.clone(),
        decision_key,
        log_origin: reply.log_origin.clone(),
    })
}
