//! Who this host is: its id, its keys and what it knows of its console.
//!
//! Owns the files of the state directory except the spool. It is given the console's answer to an enrolment. It must
//! never print or log a private key, and must never mix the files of two enrolments: all of one is in one directory.

pub mod token;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use guard_evidence::key::{Algorithm, PublicKey, SigningKey};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use serde::{Deserialize, Serialize};
use ulid::Ulid;

use crate::evidence::KEY;
use crate::files;

/// The current identity: a symbolic link to a directory `identity-<host id>`.
const CURRENT: &str = "identity";

/// The state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{path}: {source}\n  → run as root, and check the owner and mode of the directory")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is not usable: {why}\n  → enrol this host again: guard tokens create | guard-agent enroll --force")]
    Damaged { path: PathBuf, why: String },
}

/// What the console said at enrolment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Enrolment {
    /// Host and port of the host API.
    pub address: String,
    /// SHA-256 of the CA, hex.
    pub ca_sha256: String,
    pub ca_pem: String,
    /// PKIX PEM of the key that signs decisions.
    pub decision_key: PublicKey,
    /// Origin of the console's log.
    pub log_origin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HostFile {
    host_id: String,
    hostname: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enrolment: Option<Enrolment>,
}

/// The key of the console's log, told at enrolment or pinned at the first connection after an upgrade.
const LOG_KEY: &str = "log-key.pem";
/// Keys of the log before that one, PEM after PEM.
const EARLIER_LOG_KEYS: &str = "log-keys-before.pem";

const PEM_END: &str = "-----END PUBLIC KEY-----\n";

/// This host as it signs and connects.
#[derive(Debug)]
pub struct Identity {
    pub host_id: String,
    pub hostname: String,
    pub evidence_key: SigningKey,
    pub enrolment: Option<Enrolment>,
    directory: PathBuf,
}

/// The client certificate and its key, PEM.
pub struct TlsFiles {
    pub chain_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsFiles")
            .field("chain_pem", &self.chain_pem)
            .finish_non_exhaustive()
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> IdentityError + '_ {
    move |source| IdentityError::Io {
        path: path.to_owned(),
        source,
    }
}

impl Identity {
    /// Loads the identity; on the first start of a host that is not enrolled it makes one of its own, so that what
    /// the policy decides is recorded from the beginning. `algorithm` is that of its key then.
    ///
    /// # Errors
    /// [`IdentityError`] for anything unreadable: it is never replaced silently.
    pub fn load_or_create(state_dir: &Path, algorithm: Algorithm) -> Result<Self, IdentityError> {
        files::private_directory(state_dir).map_err(at(state_dir))?;
        match Self::load(state_dir)? {
            Some(identity) => Ok(identity),
            None => Self::create(
                state_dir,
                &Ulid::new().to_string(),
                &system_hostname(),
                &new_evidence_key(algorithm),
                None,
                None,
            ),
        }
    }

    /// `None` when there is none yet.
    ///
    /// # Errors
    /// [`IdentityError`] when it is there but not usable.
    pub fn load(state_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let link = state_dir.join(CURRENT);
        let directory = match fs::canonicalize(&link) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(&link).is_err() => {
                return Ok(None);
            }
            Err(source) => return Err(IdentityError::Io { path: link, source }),
        };
        let damaged = |path: &Path, why: String| IdentityError::Damaged {
            path: path.to_owned(),
            why,
        };
        let path = directory.join("host.json");
        let file: HostFile =
            serde_json::from_slice(&fs::read(&path).map_err(at(&path))?).map_err(|e| damaged(&path, e.to_string()))?;
        if Ulid::from_string(&file.host_id).is_err() {
            return Err(damaged(&path, "host_id is not a ULID".to_owned()));
        }
        let path = directory.join(KEY);
        let pem = fs::read_to_string(&path).map_err(at(&path))?;
        let evidence_key = SigningKey::from_pkcs8_pem(&pem).map_err(|e| damaged(&path, e.to_string()))?;
        Ok(Some(Self {
            host_id: file.host_id,
            hostname: file.hostname,
            evidence_key,
            enrolment: file.enrolment,
            directory,
        }))
    }

    /// Writes a whole identity beside the current one and switches to it in one step.
    pub(crate) fn create(
        state_dir: &Path,
        host_id: &str,
        hostname: &str,
        evidence_key: &SigningKey,
        tls: Option<&TlsFiles>,
        enrolment: Option<Enrolment>,
    ) -> Result<Self, IdentityError> {
        let name = format!("identity-{host_id}");
        let directory = state_dir.join(&name);
        files::private_directory(&directory).map_err(at(&directory))?;
        let write = |file: &str, bytes: &[u8]| {
            let path = directory.join(file);
            files::replace(&path, bytes, 0o600).map_err(at(&path))
        };
        let damaged = |why: String| IdentityError::Damaged {
            path: directory.clone(),
            why,
        };
        let pem = evidence_key.to_pkcs8_pem().map_err(|e| damaged(e.to_string()))?;
        write(KEY, pem.as_bytes())?;
        if let Some(tls) = tls {
            write("tls.pem", format!("{}{}", tls.key_pem, tls.chain_pem).as_bytes())?;
        }
        let file = HostFile {
            host_id: host_id.to_owned(),
            hostname: hostname.to_owned(),
            enrolment,
        };
        write(
            "host.json",
            &serde_json::to_vec_pretty(&file).map_err(|e| damaged(e.to_string()))?,
        )?;

        let link = state_dir.join(CURRENT);
        let new_link = state_dir.join(".identity.new");
        let _ = fs::remove_file(&new_link);
        std::os::unix::fs::symlink(&name, &new_link).map_err(at(&new_link))?;
        fs::rename(&new_link, &link).map_err(at(&link))?;
        fs::File::open(state_dir)
            .and_then(|dir| dir.sync_all())
            .map_err(at(state_dir))?;
        Self::load(state_dir)?.ok_or_else(|| damaged("it is gone after it was written".to_owned()))
    }

    /// The key for the thread that signs.
    ///
    /// # Errors
    /// Never for a key that was loaded.
    pub fn evidence_key_again(&self) -> Result<SigningKey, IdentityError> {
        let damaged = |why: String| IdentityError::Damaged {
            path: self.directory.join(KEY),
            why,
        };
        let pem = self.evidence_key.to_pkcs8_pem().map_err(|e| damaged(e.to_string()))?;
        SigningKey::from_pkcs8_pem(&pem).map_err(|e| damaged(e.to_string()))
    }

    /// Where this identity's files are.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The key that signs the console's log, if it is pinned.
    ///
    /// # Errors
    /// If the file is unreadable or not what was written.
    pub fn log_key(&self) -> Result<Option<PublicKey>, IdentityError> {
        let path = self.directory.join(LOG_KEY);
        match fs::read_to_string(&path) {
            Ok(pem) => PublicKey::from_pem(&pem).map(Some).map_err(|e| IdentityError::Damaged {
                path,
                why: e.to_string(),
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(IdentityError::Io { path, source }),
        }
    }

    /// Pins the key that signs the console's log. One that is pinned stays.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn pin_log_key(&self, key: &PublicKey) -> Result<(), IdentityError> {
        if self.log_key()?.is_some() {
            return Ok(());
        }
        self.write_keys(LOG_KEY, std::slice::from_ref(key))
    }

    /// Keys of the log before the one that is pinned.
    ///
    /// # Errors
    /// If the file is unreadable or not what was written.
    pub fn earlier_log_keys(&self) -> Result<Vec<PublicKey>, IdentityError> {
        let path = self.directory.join(EARLIER_LOG_KEYS);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(IdentityError::Io { path, source }),
        };
        let keys = text.split_inclusive(PEM_END).map(PublicKey::from_pem);
        keys.collect::<Result<_, _>>().map_err(|e| IdentityError::Damaged {
            path,
            why: e.to_string(),
        })
    }

    /// Pins another key of the log; the one before it stays known as that.
    ///
    /// # Errors
    /// If the disk refuses.
    pub fn replace_log_key(&self, before: &PublicKey, key: &PublicKey) -> Result<(), IdentityError> {
        let mut earlier = self.earlier_log_keys()?;
        if !earlier.contains(before) {
            earlier.push(before.clone());
        }
        self.write_keys(EARLIER_LOG_KEYS, &earlier)?;
        self.write_keys(LOG_KEY, std::slice::from_ref(key))
    }

    fn write_keys(&self, name: &str, keys: &[PublicKey]) -> Result<(), IdentityError> {
        let path = self.directory.join(name);
        let pems = keys.iter().map(PublicKey::to_pem).collect::<Result<String, _>>();
        let pems = pems.map_err(|e| IdentityError::Damaged {
            path: path.clone(),
            why: e.to_string(),
        })?;
        files::replace(&path, pems.as_bytes(), 0o600).map_err(at(&path))
    }

    /// Believes another key of the console's decisions from now on.
    ///
    /// # Errors
    /// If the disk refuses; the old one stays.
    pub fn replace_decision_key(&self, key: &PublicKey) -> Result<(), IdentityError> {
        let path = self.directory.join("host.json");
        let damaged = |e: serde_json::Error| IdentityError::Damaged {
            path: path.clone(),
            why: e.to_string(),
        };
        let mut file: HostFile = serde_json::from_slice(&fs::read(&path).map_err(at(&path))?).map_err(damaged)?;
        if let Some(enrolment) = &mut file.enrolment {
            enrolment.decision_key = key.clone();
        }
        let bytes = serde_json::to_vec_pretty(&file).map_err(damaged)?;
        files::replace(&path, &bytes, 0o600).map_err(at(&path))
    }

    /// A file of this identity.
    #[cfg(test)]
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The client certificate and its key.
    ///
    /// # Errors
    /// If the file is unreadable or not what was written.
    pub fn tls(&self) -> Result<TlsFiles, IdentityError> {
        let path = self.directory.join("tls.pem");
        let text = fs::read_to_string(&path).map_err(at(&path))?;
        let end = "-----END PRIVATE KEY-----\n";
        let (key, chain) = text.split_once(end).ok_or_else(|| IdentityError::Damaged {
            path: path.clone(),
            why: "it does not begin with a private key".to_owned(),
        })?;
        Ok(TlsFiles {
            chain_pem: chain.to_owned(),
            key_pem: format!("{key}{end}"),
        })
    }

    /// Replaces the client certificate and its key in one step.
    ///
    /// # Errors
    /// If the disk refuses; the old ones stay.
    pub fn replace_tls(&self, tls: &TlsFiles) -> Result<(), IdentityError> {
        let path = self.directory.join("tls.pem");
        files::replace(&path, format!("{}{}", tls.key_pem, tls.chain_pem).as_bytes(), 0o600).map_err(at(&path))
    }
}

/// A fresh key for evidence.
#[must_use]
pub fn new_evidence_key(algorithm: Algorithm) -> SigningKey {
    SigningKey::generate_for(algorithm, &mut guard_evidence::rand_core::OsRng)
}

/// A fresh TLS key and a request for its certificate, both PEM.
///
/// # Errors
/// If the crypto library refuses.
pub fn new_tls_key() -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let csr = params.serialize_request(&key)?.pem()?;
    Ok((key.serialize_pem(), csr))
}

/// What the machine calls itself.
#[must_use]
pub fn system_hostname() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() {
        "unnamed".to_owned()
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn made_once_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("guard");
        assert!(Identity::load(&state).unwrap().is_none());
        let first = Identity::load_or_create(&state, Algorithm::Ed25519).unwrap();
        let again = Identity::load_or_create(&state, Algorithm::Ed25519).unwrap();
        assert_eq!(first.host_id, again.host_id);
        assert_eq!(first.evidence_key.public(), again.evidence_key.public());
        assert!(again.enrolment.is_none());
        let key = first.file("evidence.key");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
        fs::write(&key, "garbage").unwrap();
        let error = Identity::load_or_create(&state, Algorithm::Ed25519)
            .unwrap_err()
            .to_string();
        assert!(error.contains("evidence.key") && error.contains("--force"), "{error}");
    }

    #[test]
    fn tls_files_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path(), Algorithm::Ed25519).unwrap();
        assert!(identity.tls().is_err());
        let (key_pem, csr) = new_tls_key().unwrap();
        assert!(csr.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        identity
            .replace_tls(&TlsFiles {
                chain_pem: "chain\n".to_owned(),
                key_pem: key_pem.clone(),
            })
            .unwrap();
        let tls = identity.tls().unwrap();
        assert_eq!(
            (tls.chain_pem.as_str(), tls.key_pem.as_str()),
            ("chain\n", key_pem.as_str())
        );
        assert!(!format!("{tls:?}").contains("PRIVATE"));
    }

    #[test]
    fn earlier_keys_of_the_log_stay_known() {
        let dir = tempfile::tempdir().unwrap();
        let identity = Identity::load_or_create(dir.path(), Algorithm::Ed25519).unwrap();
        let [one, two, three] = [1, 2, 3].map(|n| SigningKey::from_seed(&[n; 32]).public());
        identity.pin_log_key(&one).unwrap();
        identity.pin_log_key(&two).unwrap();
        assert_eq!(identity.log_key().unwrap().unwrap(), one, "one that is pinned stays");
        assert!(identity.earlier_log_keys().unwrap().is_empty());
        for (before, key) in [(&one, &two), (&one, &two), (&two, &three)] {
            identity.replace_log_key(before, key).unwrap();
            assert_eq!(identity.log_key().unwrap().unwrap(), *key);
        }
        assert_eq!(identity.earlier_log_keys().unwrap(), [one, two]);
    }
}
