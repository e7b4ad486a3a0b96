//! Keys that sign evidence, and their files.
//!
//! Owns key types, key ids and the PEM forms (PKIX for public, PKCS#8 for private keys). It is given random numbers
//! and PEM text. It must never touch a file or print a private key.

use std::fmt;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use ed25519_dalek::{Signer as _, VerifyingKey};
use rand_core::CryptoRngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A key could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a PKIX public key of a supported kind (Ed25519): {0}")]
    Public(String),
    #[error("not a PKCS#8 private key of a supported kind (Ed25519)")]
    Private,
}

/// A public key. P-256 joins with hosts that sign by TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublicKey {
    Ed25519(VerifyingKey),
}

impl PublicKey {
    /// # Errors
    /// If the DER is not a PKIX Ed25519 key, or is one of the keys of small order for which anything verifies.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_public_key_der(der).map_err(|e| KeyError::Public(e.to_string()))?;
        Self::checked(key)
    }

    /// # Errors
    /// As [`PublicKey::from_der`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_public_key_pem(pem).map_err(|e| KeyError::Public(e.to_string()))?;
        Self::checked(key)
    }

    /// # Errors
    /// As [`PublicKey::from_der`].
    pub fn from_ed25519_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = VerifyingKey::from_bytes(bytes).map_err(|e| KeyError::Public(e.to_string()))?;
        Self::checked(key)
    }

    fn checked(key: VerifyingKey) -> Result<Self, KeyError> {
        if key.is_weak() {
            Err(KeyError::Public("a key of small order".to_owned()))
        } else {
            Ok(Self::Ed25519(key))
        }
    }

    /// PKIX `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        // RFC 8410: SEQUENCE { SEQUENCE { OID 1.3.101.112 } BIT STRING key }, always these 12 bytes before the key.
        const PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        let Self::Ed25519(key) = self;
        [PREFIX.as_slice(), key.as_bytes().as_slice()].concat()
    }

    /// PKIX PEM, as `openssl pkey -pubin` reads it.
    ///
    /// # Errors
    /// Never for the supported kinds.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let Self::Ed25519(key) = self;
        key.to_public_key_pem(LineEnding::LF)
            .map_err(|e| KeyError::Public(e.to_string()))
    }

    /// First 16 hex digits of SHA-256 over the PKIX DER.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(&Sha256::digest(self.to_der())[..8])
    }

    /// The 32 bytes of an Ed25519 key, as checkpoints name it.
    #[must_use]
    pub fn ed25519_bytes(&self) -> [u8; 32] {
        let Self::Ed25519(key) = self;
        key.to_bytes()
    }

    /// Whether `signature` over `message` is this key's; strict, so that there is one signature for a message.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        let Self::Ed25519(key) = self;
        ed25519_dalek::Signature::from_slice(signature)
            .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok())
    }
}

/// In JSON a public key is its PKIX PEM.
impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_pem().map_err(serde::ser::Error::custom)?)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_pem(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A public key that somebody decided to trust, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedKey {
    /// For people: `host 01J… (build-7)`, `console`.
    pub name: String,
    pub key: PublicKey,
}

impl From<PublicKey> for TrustedKey {
    fn from(key: PublicKey) -> Self {
        Self { name: key.id(), key }
    }
}

/// A private key; wiped from memory when dropped.
pub struct SigningKey(ed25519_dalek::SigningKey);

impl SigningKey {
    /// A new key from the caller's random numbers (`rand_core::OsRng`).
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self(ed25519_dalek::SigningKey::generate(rng))
    }

    /// The key of a 32-byte seed (RFC 8032's private key).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// # Errors
    /// If the text is not a PKCS#8 Ed25519 key.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
            .map(Self)
            .map_err(|_| KeyError::Private)
    }

    /// PKCS#8 PEM; the caller writes it to a file that only its own user can read.
    ///
    /// # Errors
    /// Never for the supported kinds.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        // Without the optional public key of PKCS#8 v2: OpenSSL 3.0 refuses that form.
        let pair = ed25519_dalek::pkcs8::KeypairBytes {
            secret_key: self.0.to_bytes(),
            public_key: None,
        };
        pair.to_pkcs8_pem(LineEnding::LF).map_err(|_| KeyError::Private)
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey::Ed25519(self.0.verifying_key())
    }

    /// The signature's bytes over `message`.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.0.sign(message).to_vec()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.public().id())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pem_round_trips() {
        let key = SigningKey::generate(&mut rand_core::OsRng);
        let pem = key.to_pkcs8_pem().unwrap();
        assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
        assert_eq!(SigningKey::from_pkcs8_pem(&pem).unwrap().public(), key.public());
        let public = key.public();
        assert_eq!(PublicKey::from_pem(&public.to_pem().unwrap()).unwrap(), public);
        assert_eq!(PublicKey::from_der(&public.to_der()).unwrap(), public);
        assert!(PublicKey::from_pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").is_err());
        assert!(SigningKey::from_pkcs8_pem("").is_err());
        assert!(!format!("{key:?}").contains(pem.lines().nth(1).unwrap()));
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(PublicKey::from_ed25519_bytes(&identity).is_err());
    }
}
