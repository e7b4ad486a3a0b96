//! Keys that sign evidence, and their files.
//!
//! Owns key types, key ids and the PEM forms (PKIX for public, PKCS#8 for private keys). It is given random numbers
//! and PEM text. It must never touch a file or print a private key.

use std::fmt;

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use ed25519_dalek::{Signer as _, VerifyingKey};
use p256::ecdsa::signature::Verifier as _;
use rand_core::CryptoRngCore;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

/// A key could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("not a PKIX public key of a supported kind (Ed25519, ECDSA P-256): {0}")]
    Public(String),
    #[error("not a PKCS#8 private key of a supported kind (Ed25519, ECDSA P-256)")]
    Private,
}

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    /// RFC 8032.
    #[default]
    Ed25519,
    /// ECDSA on P-256 with SHA-256 (FIPS 186-5). A signature is ASN.1 DER, its s the smaller of the two that hold.
    P256,
}

/// A public key.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PublicKey {
    Ed25519(VerifyingKey),
    P256(p256::ecdsa::VerifyingKey),
}

impl PublicKey {
    /// # Errors
    /// If the DER is not a PKIX key of a supported kind, or is one of the Ed25519 keys of small order for which anything
    /// verifies.
    pub fn from_der(der: &[u8]) -> Result<Self, KeyError> {
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_der(der) {
            return Ok(Self::P256(key));
        }
        let key = VerifyingKey::from_public_key_der(der).map_err(|e| KeyError::Public(e.to_string()))?;
        Self::checked(key)
    }

    /// # Errors
    /// As [`PublicKey::from_der`].
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        if let Ok(key) = p256::ecdsa::VerifyingKey::from_public_key_pem(pem) {
            return Ok(Self::P256(key));
        }
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

    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        match self {
            Self::Ed25519(_) => Algorithm::Ed25519,
            Self::P256(_) => Algorithm::P256,
        }
    }

    /// PKIX `SubjectPublicKeyInfo`.
    #[must_use]
    pub fn to_der(&self) -> Vec<u8> {
        // RFC 8410: SEQUENCE { SEQUENCE { OID 1.3.101.112 } BIT STRING key }, always these 12 bytes before the key.
        const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
        // RFC 5480: SEQUENCE { SEQUENCE { OID 1.2.840.10045.2.1, OID 1.2.840.10045.3.1.7 } BIT STRING point }, and the
        // point uncompressed: always these 26 bytes before it.
        const P256: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        match self {
            Self::Ed25519(_) => [ED25519.as_slice(), &self.bytes()].concat(),
            Self::P256(_) => [P256.as_slice(), &self.bytes()].concat(),
        }
    }

    /// PKIX PEM, as `openssl pkey -pubin` reads it.
    ///
    /// # Errors
    /// Never for the supported kinds.
    pub fn to_pem(&self) -> Result<String, KeyError> {
        let pem = match self {
            Self::Ed25519(key) => key.to_public_key_pem(LineEnding::LF),
            Self::P256(key) => key.to_public_key_pem(LineEnding::LF),
        };
        pem.map_err(|e| KeyError::Public(e.to_string()))
    }

    /// First 16 hex digits of SHA-256 over the PKIX DER.
    #[must_use]
    pub fn id(&self) -> String {
        hex::encode(&Sha256::digest(self.to_der())[..8])
    }

    /// The 32 bytes of an Ed25519 key, as checkpoints name it; of P-256 the 65 bytes of the point.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.as_bytes().to_vec(),
            Self::P256(key) => key.to_encoded_point(false).as_bytes().to_vec(),
        }
    }

    /// Whether `signature` over `message` is this key's. Strict: nobody without the private key can make a second
    /// signature out of one.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        match self {
            Self::Ed25519(key) => ed25519_dalek::Signature::from_slice(signature)
                .is_ok_and(|signature| key.verify_strict(message, &signature).is_ok()),
            Self::P256(key) => p256::ecdsa::Signature::from_der(signature).is_ok_and(|read| {
                let exact = read.to_der().as_bytes() == signature && read.normalize_s().is_none();
                exact && key.verify(message, &read).is_ok()
            }),
        }
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
pub enum SigningKey {
    Ed25519(ed25519_dalek::SigningKey),
    P256(p256::ecdsa::SigningKey),
}

impl SigningKey {
    /// A new Ed25519 key from the caller's random numbers (`rand_core::OsRng`).
    pub fn generate(rng: &mut impl CryptoRngCore) -> Self {
        Self::generate_for(Algorithm::Ed25519, rng)
    }

    /// A new key from the caller's random numbers.
    pub fn generate_for(algorithm: Algorithm, rng: &mut impl CryptoRngCore) -> Self {
        match algorithm {
            Algorithm::Ed25519 => Self::Ed25519(ed25519_dalek::SigningKey::generate(rng)),
            Algorithm::P256 => Self::P256(p256::ecdsa::SigningKey::random(rng)),
        }
    }

    /// The Ed25519 key of a 32-byte seed (RFC 8032's private key).
    #[must_use]
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self::Ed25519(ed25519_dalek::SigningKey::from_bytes(seed))
    }

    /// # Errors
    /// If the text is not a PKCS#8 key of a supported kind.
    pub fn from_pkcs8_pem(pem: &str) -> Result<Self, KeyError> {
        if let Ok(key) = p256::ecdsa::SigningKey::from_pkcs8_pem(pem) {
            return Ok(Self::P256(key));
        }
        ed25519_dalek::SigningKey::from_pkcs8_pem(pem)
            .map(Self::Ed25519)
            .map_err(|_| KeyError::Private)
    }

    /// PKCS#8 PEM; the caller writes it to a file that only its own user can read.
    ///
    /// # Errors
    /// Never for the supported kinds.
    pub fn to_pkcs8_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        let pem = match self {
            Self::Ed25519(key) => {
                // Without the optional public key of PKCS#8 v2: OpenSSL 3.0 refuses that form.
                let pair = ed25519_dalek::pkcs8::KeypairBytes {
                    secret_key: key.to_bytes(),
                    public_key: None,
                };
                pair.to_pkcs8_pem(LineEnding::LF)
            }
            Self::P256(key) => key.to_pkcs8_pem(LineEnding::LF),
        };
        pem.map_err(|_| KeyError::Private)
    }

    #[must_use]
    pub fn public(&self) -> PublicKey {
        match self {
            Self::Ed25519(key) => PublicKey::Ed25519(key.verifying_key()),
            Self::P256(key) => PublicKey::P256(*key.verifying_key()),
        }
    }

    /// The signature's bytes over `message`; the same for the same message (RFC 8032, RFC 6979).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.sign(message).to_vec(),
            Self::P256(key) => {
                let signature: p256::ecdsa::Signature = key.sign(message);
                let signature = signature.normalize_s().unwrap_or(signature);
                signature.to_der().as_bytes().to_vec()
            }
        }
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
        for algorithm in [Algorithm::Ed25519, Algorithm::P256] {
            let key = SigningKey::generate_for(algorithm, &mut rand_core::OsRng);
            let pem = key.to_pkcs8_pem().unwrap();
            assert!(pem.starts_with("-----BEGIN PRIVATE KEY-----\n"));
            assert_eq!(SigningKey::from_pkcs8_pem(&pem).unwrap().public(), key.public());
            let public = key.public();
            assert_eq!(public.algorithm(), algorithm);
            assert_eq!(PublicKey::from_pem(&public.to_pem().unwrap()).unwrap(), public);
            assert_eq!(PublicKey::from_der(&public.to_der()).unwrap(), public);
            assert!(!format!("{key:?}").contains(pem.lines().nth(1).unwrap()));
        }
        assert!(PublicKey::from_pem("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n").is_err());
        assert!(SigningKey::from_pkcs8_pem("").is_err());
    }

    #[test]
    fn keys_of_small_order_are_refused() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(PublicKey::from_ed25519_bytes(&identity).is_err());
    }

    #[test]
    fn a_p256_signature_has_one_spelling() {
        let key = SigningKey::generate_for(Algorithm::P256, &mut rand_core::OsRng);
        for n in 0..50u8 {
            let signature = key.sign(&[n]);
            assert_eq!(signature, key.sign(&[n]));
            assert!(key.public().verify(&[n], &signature));
            assert!(!key.public().verify(&[n, 0], &signature));
            // The other s that holds, and DER with something after it.
            let read = p256::ecdsa::Signature::from_der(&signature).unwrap();
            let (r, s) = read.split_scalars();
            let other = p256::ecdsa::Signature::from_scalars(r, -*s).unwrap();
            assert!(!key.public().verify(&[n], other.to_der().as_bytes()));
            assert!(!key.public().verify(&[n], &[&signature[..], &[0]].concat()));
            assert!(!key.public().verify(&[n], &read.to_bytes()));
        }
    }
}
