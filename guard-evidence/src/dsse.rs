//! DSSE v1 envelopes: the exact bytes that are signed, sent, stored and hashed.
//!
//! Owns signing and verification of one envelope. It is given payload bytes and keys. It must never look into a
//! payload before its signature holds, and must never accept two byte strings for one envelope: digests of envelopes
//! are links of a chain and leaves of a log, so an envelope that is not written exactly as [`sign`] writes it is refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use crate::key::{KeyError, PublicKey, SigningKey, TrustedKey};
use crate::record::PAYLOAD_TYPE;

/// Most bytes of one envelope: an entry of a log tile has a 16-bit length.
pub const RECORD_BYTES: usize = 65_535;

/// The JSON form of an envelope, fields in this order and without white space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// Standard base64 with padding.
    pub payload: String,
    #[serde(rename = "payloadType")]
    pub payload_type: String,
    /// Exactly one.
    pub signatures: Vec<Signature>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signature {
    /// First 16 hex digits of SHA-256 over the key's PKIX DER. A hint that must be right.
    pub keyid: String,
    /// Standard base64 with padding.
    pub sig: String,
}

/// What a valid envelope says, and whose key says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    pub payload: Vec<u8>,
    pub key_id: String,
}

/// Why an envelope was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DsseError {
    #[error("envelope is {0} bytes, more than {RECORD_BYTES}")]
    TooLarge(usize),
    #[error("not a DSSE envelope: {0}")]
    Malformed(String),
    #[error("envelope is not in its exact form (compact JSON, standard base64, one signature)")]
    NotExact,
    #[error("payload type is `{0}`, not {PAYLOAD_TYPE}")]
    PayloadType(String),
    #[error("signed by key {0}, which is not trusted")]
    UnknownKey(String),
    #[error("signature by key {0} does not match the payload")]
    BadSignature(String),
    #[error(transparent)]
    Key(#[from] KeyError),
}

/// The bytes that a signature covers: DSSE's pre-authentication encoding.
#[must_use]
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len()).into_bytes();
    out.extend_from_slice(payload);
    out
}

/// Signs `payload` and gives the envelope's exact bytes.
///
/// # Errors
/// [`DsseError::TooLarge`] if the envelope would not fit a log entry.
pub fn sign(payload: &[u8], key: &SigningKey) -> Result<Vec<u8>, DsseError> {
    let envelope = Envelope {
        payload: STANDARD.encode(payload),
        payload_type: PAYLOAD_TYPE.to_owned(),
        signatures: vec![Signature {
            keyid: key.public().id(),
            sig: STANDARD.encode(key.sign(&pae(PAYLOAD_TYPE, payload))),
        }],
    };
    let bytes = serde_json::to_vec(&envelope).map_err(|e| DsseError::Malformed(e.to_string()))?;
    if bytes.len() > RECORD_BYTES {
        Err(DsseError::TooLarge(bytes.len()))
    } else {
        Ok(bytes)
    }
}

/// An envelope that is well formed; nothing is known of its signature yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unverified {
    payload: Vec<u8>,
    key_id: String,
    signature: Vec<u8>,
}

/// Parses the exact form and nothing else. For fuzzing and for those who look up the key by its id.
///
/// # Errors
/// Whatever differs from what [`sign`] writes.
pub fn parse(bytes: &[u8]) -> Result<Unverified, DsseError> {
    if bytes.len() > RECORD_BYTES {
        return Err(DsseError::TooLarge(bytes.len()));
    }
    let envelope: Envelope = serde_json::from_slice(bytes)
        .map_err(|e| DsseError::Malformed(crate::text::visible_fold(&e.to_string(), 300)))?;
    if envelope.payload_type != PAYLOAD_TYPE {
        return Err(DsseError::PayloadType(crate::text::visible_fold(
            &envelope.payload_type,
            80,
        )));
    }
    let [signature] = envelope.signatures.as_slice() else {
        return Err(DsseError::NotExact);
    };
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| DsseError::NotExact);
    let unverified = Unverified {
        payload: decode(&envelope.payload)?,
        key_id: signature.keyid.clone(),
        signature: decode(&signature.sig)?,
    };
    let well_formed_id = unverified.key_id.len() == 16
        && unverified
            .key_id
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let exact = serde_json::to_vec(&envelope).map_err(|e| DsseError::Malformed(e.to_string()))?;
    if !well_formed_id || exact != bytes {
        return Err(DsseError::NotExact);
    }
    Ok(unverified)
}

impl Unverified {
    /// Whose key the envelope says it is signed with.
    #[must_use]
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// What the envelope claims to say. For tools that bind it otherwise, by its digest; never a reason to trust it.
    #[must_use]
    pub fn unverified_payload(&self) -> &[u8] {
        &self.payload
    }

    /// Checks the signature with the key that the envelope names.
    ///
    /// # Errors
    /// [`DsseError::UnknownKey`] if `key` is another one, and [`DsseError::BadSignature`].
    pub fn verify(self, key: &PublicKey) -> Result<Verified, DsseError> {
        if key.id() != self.key_id {
            return Err(DsseError::UnknownKey(self.key_id));
        }
        if key.verify(&pae(PAYLOAD_TYPE, &self.payload), &self.signature) {
            Ok(Verified {
                payload: self.payload,
                key_id: self.key_id,
            })
        } else {
            Err(DsseError::BadSignature(self.key_id))
        }
    }
}

/// Parses and verifies an envelope. Only what this returns may be parsed as a statement.
///
/// # Errors
/// Anything that differs from what the holder of a trusted key wrote.
pub fn verify(bytes: &[u8], trusted: &[TrustedKey]) -> Result<Verified, DsseError> {
    let unverified = parse(bytes)?;
    match trusted.iter().find(|t| t.key.id() == unverified.key_id) {
        Some(trusted) => unverified.verify(&trusted.key),
        None => Err(DsseError::UnknownKey(unverified.key_id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[7; 32])
    }

    #[test]
    fn pae_is_that_of_the_specification() {
        assert_eq!(
            pae("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }

    #[test]
    fn sign_and_verify() {
        let trusted = [
            TrustedKey::from(SigningKey::from_seed(&[1; 32]).public()),
            TrustedKey::from(key().public()),
        ];
        let bytes = sign(b"{\"a\":1}", &key()).unwrap();
        let verified = verify(&bytes, &trusted).unwrap();
        assert_eq!(verified.payload, b"{\"a\":1}");
        assert_eq!(verified.key_id, key().public().id());
        assert!(matches!(verify(&bytes, &trusted[..1]), Err(DsseError::UnknownKey(_))));
    }

    #[test]
    fn every_changed_bit_and_every_cut_is_rejected() {
        let trusted = [TrustedKey::from(key().public())];
        let bytes = sign(b"{\"some\":\"payload\"}", &key()).unwrap();
        for at in 0..bytes.len() {
            for bit in 0..8 {
                let mut changed = bytes.clone();
                changed[at] ^= 1 << bit;
                assert!(verify(&changed, &trusted).is_err(), "byte {at} bit {bit}");
            }
            assert!(verify(&bytes[..at], &trusted).is_err(), "cut at {at}");
        }
        for extra in [&b" "[..], b"\n", b"{}"] {
            assert!(verify(&[&bytes, extra].concat(), &trusted).is_err());
            assert!(verify(&[extra, &bytes].concat(), &trusted).is_err());
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        let trusted = [TrustedKey::from(key().public())];
        let bytes = sign(b"x", &key()).unwrap();
        let envelope: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let pretty = serde_json::to_vec_pretty(&envelope).unwrap();
        assert_eq!(verify(&pretty, &trusted), Err(DsseError::NotExact));
        let mut twice = envelope.clone();
        let signature = twice["signatures"][0].clone();
        twice["signatures"].as_array_mut().unwrap().push(signature);
        assert_eq!(
            verify(&serde_json::to_vec(&twice).unwrap(), &trusted),
            Err(DsseError::NotExact)
        );
        let mut none = envelope;
        none["signatures"] = serde_json::json!([]);
        assert_eq!(
            verify(&serde_json::to_vec(&none).unwrap(), &trusted),
            Err(DsseError::NotExact)
        );
    }

    #[test]
    fn sizes_are_limited() {
        assert!(matches!(
            sign(&vec![b'x'; RECORD_BYTES], &key()),
            Err(DsseError::TooLarge(_))
        ));
        assert!(matches!(
            verify(&vec![b' '; RECORD_BYTES + 1], &[]),
            Err(DsseError::TooLarge(_))
        ));
    }
}
