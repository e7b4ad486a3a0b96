//! Cosignatures: what witnesses put under a checkpoint (C2SP tlog-cosignature), and the keys that check them.
//!
//! Owns `cosignature/v1` and the spelling of verifier keys. It is given checkpoints and times. It must never count one
//! witness twice.

use std::collections::BTreeSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::checkpoint::{
    Checkpoint, ED25519, Note, NoteSignature, is_name, key_id_of, signature_line, verifier_key_of,
};
use crate::key::{PublicKey, SigningKey};
use crate::text::visible_fold;

const COSIGNATURE: u8 = 0x04;

/// What a verifier key checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// A log's signature (0x01).
    Log,
    /// A witness's cosignature (0x04).
    Witness,
}

impl KeyKind {
    fn byte(self) -> u8 {
        match self {
            Self::Log => ED25519,
            Self::Witness => COSIGNATURE,
        }
    }
}

/// A verifier key: `name+hex(key id)+base64(type ‖ key)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    pub name: String,
    pub kind: KeyKind,
    pub key: PublicKey,
}

/// A text that is no verifier key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a verifier key such as witness.example.org+1a2b3c4d+BA…")]
pub struct NotAKey(String);

impl VerifierKey {
    /// Reads the only spelling; the key id has to fit.
    ///
    /// # Errors
    /// [`NotAKey`].
    pub fn parse(text: &str) -> Result<Self, NotAKey> {
        Self::read(text).ok_or_else(|| NotAKey(visible_fold(text, 120)))
    }

    fn read(text: &str) -> Option<Self> {
        let mut parts = text.splitn(3, '+');
        let (name, _, encoded) = (parts.next()?, parts.next()?, parts.next()?);
        let bytes = STANDARD.decode(encoded).ok()?;
        let (kind, key) = bytes.split_first()?;
        let kind = match *kind {
            ED25519 => KeyKind::Log,
            COSIGNATURE => KeyKind::Witness,
            _ => return None,
        };
        let key = Self {
            name: name.to_owned(),
            kind,
            key: PublicKey::from_ed25519_bytes(key.try_into().ok()?).ok()?,
        };
        (is_name(name) && key.to_string() == text).then_some(key)
    }

    fn id(&self) -> [u8; 4] {
        key_id_of(&self.name, self.kind.byte(), &self.key)
    }

    /// When this witness has cosigned the note, in Unix seconds; `None`: it has not, or wrongly.
    #[must_use]
    pub fn cosigned(&self, note: &Note) -> Option<u64> {
        let body = note.checkpoint.body();
        note.signatures
            .iter()
            .filter(|line| self.kind == KeyKind::Witness && line.name == self.name && line.key_id == self.id())
            .find_map(|line| {
                let (time, signature) = line.signature.split_first_chunk::<8>()?;
                let time = u64::from_be_bytes(*time);
                self.key.verify(&message(time, &body), signature).then_some(time)
            })
    }
}

impl fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&verifier_key_of(&self.name, self.kind.byte(), &self.key))
    }
}

impl Serialize for VerifierKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VerifierKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

fn message(time: u64, body: &str) -> Vec<u8> {
    format!("cosignature/v1\ntime {time}\n{body}").into_bytes()
}

/// The witness's line below a checkpoint, with its newline.
#[must_use]
pub fn cosign(name: &str, key: &SigningKey, checkpoint: &Checkpoint, unix_seconds: u64) -> String {
    let signature = key.sign(&message(unix_seconds, &checkpoint.body()));
    let id = key_id_of(name, COSIGNATURE, &key.public());
    let blob = [&id[..], &unix_seconds.to_be_bytes(), &signature].concat();
    format!("\u{2014} {name} {}\n", STANDARD.encode(blob))
}

/// The lines of a witness's answer; `None` if it is anything else.
#[must_use]
pub fn lines(text: &str) -> Option<Vec<NoteSignature>> {
    text.strip_suffix('\n')?.split('\n').map(signature_line).collect()
}

/// How many of the witnesses have cosigned.
#[must_use]
pub fn count(note: &Note, witnesses: &[VerifierKey]) -> usize {
    let signed = witnesses.iter().filter(|witness| witness.cosigned(note).is_some());
    // Two names of one key are one witness.
    let keys: BTreeSet<Vec<u8>> = signed.map(|witness| witness.key.bytes()).collect();
    keys.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(size: u64) -> Checkpoint {
        Checkpoint {
            origin: "guard.example.org/guard".to_owned(),
            size,
            root: [5; 32],
        }
    }

    #[test]
    fn cosignatures_count_once_for_each_key_and_no_changed_one_does() {
        let log = SigningKey::from_seed(&[1; 32]);
        let key = |seed, name: &str| {
            let signing = SigningKey::from_seed(&[seed; 32]);
            let key = VerifierKey {
                name: name.to_owned(),
                kind: KeyKind::Witness,
                key: signing.public(),
            };
            (signing, key)
        };
        let ((one, one_key), (two, two_key)) = (key(2, "w.example.org/one"), key(3, "w.example.org/two"));
        let (again, again_key) = key(2, "w.example.org/again");
        let head = checkpoint(7);
        let note = [
            head.sign(&log).unwrap(),
            cosign(&one_key.name, &one, &head, 1_800_000_000),
            cosign(&two_key.name, &two, &checkpoint(8), 1_800_000_000),
            cosign(&again_key.name, &again, &head, 1_800_000_000),
        ]
        .concat();
        let parsed = Note::parse(note.as_bytes()).unwrap();
        assert_eq!(one_key.cosigned(&parsed), Some(1_800_000_000));
        assert_eq!(two_key.cosigned(&parsed), None, "that of another head");
        assert_eq!(count(&parsed, &[one_key.clone(), two_key, again_key]), 1);
        // Another time than the one that was signed.
        let mut changed = parsed.clone();
        for line in &mut changed.signatures {
            if line.signature.len() == 72 {
                line.signature[7] ^= 1;
            }
        }
        assert_eq!(count(&changed, std::slice::from_ref(&one_key)), 0);
        // A log's signature is no cosignature, even by the same key.
        let as_log = VerifierKey {
            kind: KeyKind::Log,
            ..one_key
        };
        assert_eq!(as_log.cosigned(&parsed), None);
    }

    #[test]
    fn verifier_keys_have_one_spelling() {
        let key = VerifierKey {
            name: "w.example.org".to_owned(),
            kind: KeyKind::Witness,
            key: SigningKey::from_seed(&[2; 32]).public(),
        };
        let text = key.to_string();
        assert_eq!(VerifierKey::parse(&text).unwrap(), key);
        let log = VerifierKey::parse("PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap();
        assert_eq!((log.kind, log.name.as_str()), (KeyKind::Log, "PeterNeumann"));
        for bad in [
            text.replacen("w.", "v.", 1),
            text.to_uppercase(),
            format!("{text}="),
            format!(" {text}"),
            "a+b".to_owned(),
            String::new(),
        ] {
            assert!(VerifierKey::parse(&bad).is_err(), "{bad}");
        }
    }
}
