//! Random secrets for sessions, enrolment tokens and the set-up link: 256 bits, kept as SHA-256 only; and secrets of
//! others, in files that the configuration names.
//!
//! A digest without salt or stretching is enough, because nobody can guess 256 random bits.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::RngCore as _;
use rand::rngs::OsRng;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Characters of a secret: 32 bytes in base64url.
const LENGTH: usize = 43;
/// Of a secret in a file.
const FILE_BYTES: usize = 4_096;

/// A secret in the clear, for the one moment when it is handed out or presented.
pub struct Secret(Zeroizing<String>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Secret {
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = Zeroizing::new([0; 32]);
        OsRng.fill_bytes(&mut *bytes);
        Self(Zeroizing::new(URL_SAFE_NO_PAD.encode(*bytes)))
    }

    /// `None`: it cannot be one of ours.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let ours = bytes.len() == LENGTH
            && bytes
                .iter()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        ours.then(|| Self(Zeroizing::new(text.to_owned())))
    }

    /// What is stored: SHA-256, hex.
    #[must_use]
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.0.as_bytes()))
    }

    /// The CSRF token of the session with this secret: nobody who lacks the cookie can compute it.
    #[must_use]
    pub fn csrf(&self) -> String {
        let digest = Sha256::new()
            .chain_update(b"guard csrf v1\0")
            .chain_update(self.0.as_bytes())
            .finalize();
        URL_SAFE_NO_PAD.encode(digest)
    }

    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

/// A secret of somebody else's making, in a file that others cannot read.
///
/// # Errors
/// Why it is not used.
pub(crate) fn from_file(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path).map_err(|e| e.to_string())?;
    if metadata.mode() & 0o007 != 0 {
        return Err(format!("everybody may read it; run: chmod o= {}", path.display()));
    }
    let text = Zeroizing::new(std::fs::read_to_string(path).map_err(|e| e.to_string())?);
    let line = text.trim();
    if line.is_empty() || line.len() > FILE_BYTES || line.contains(char::is_control) {
        return Err("it does not hold one line with the secret".to_owned());
    }
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        let secret = Secret::random();
        let read = Secret::parse(secret.reveal()).unwrap();
        assert_eq!(read.digest(), secret.digest());
        assert_ne!(secret.csrf(), Secret::random().csrf());
        assert!(!format!("{secret:?}").contains(secret.reveal()));
        for bad in ["", "short", &format!("{}=", secret.reveal()), &"é".repeat(LENGTH)] {
            assert!(Secret::parse(bad).is_none(), "{bad}");
        }
    }
}
