//! Checkpoints and proofs as text: C2SP signed notes (`tlog-checkpoint`) and `tlog-proof`.
//!
//! Owns these two formats. It is given tree heads and keys. A parser here must never accept what its printer would not
//! print, so that a checkpoint has one spelling.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::key::{Algorithm, PublicKey, SigningKey};
use crate::merkle::{Hash, MOST_HASHES};
use crate::text::visible_fold;

/// Most bytes of a checkpoint with all its signatures.
pub const CHECKPOINT_BYTES: usize = 16 << 10;
/// Most bytes of a proof: hashes and a checkpoint.
pub const PROOF_BYTES: usize = CHECKPOINT_BYTES + (8 << 10);
/// Most signatures: the log's and its witnesses'.
const MOST_SIGNATURES: usize = 64;
pub(crate) const ED25519: u8 = 0x01;
const PROOF_HEADER: &str = "c2sp.org/tlog-proof@v1";

/// A checkpoint or proof was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    #[error("not a checkpoint: {0}")]
    Malformed(&'static str),
    #[error("not a proof: {0}")]
    Proof(&'static str),
    #[error("checkpoint is of the log `{found}`, not `{expected}`")]
    Origin { expected: String, found: String },
    #[error("no trusted key of the log `{0}` has signed the checkpoint")]
    Unsigned(String),
    #[error("the signature of the log `{0}` on its checkpoint is wrong")]
    BadSignature(String),
    #[error("`{0}` cannot name a log: no spaces, no `+`, at most 255 bytes")]
    Name(String),
}

/// The head of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Name of the log, e.g. `guard.example.org/log`; also the name of its key.
    pub origin: String,
    pub size: u64,
    pub root: Hash,
}

/// A checkpoint with signatures that nobody has checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    pub checkpoint: Checkpoint,
    pub signatures: Vec<NoteSignature>,
}

/// One line below a note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoteSignature {
    pub name: String,
    pub key_id: [u8; 4],
    pub signature: Vec<u8>,
}

/// Whether a log or key may have this name.
#[must_use]
pub fn is_name(name: &str) -> bool {
    (1..=255).contains(&name.len())
        && name
            .chars()
            .all(|c| c != '+' && !c.is_whitespace() && visible_fold(&c.to_string(), 16) == c.to_string())
}

/// First four bytes of SHA-256(name ‖ 0x0A ‖ type ‖ key).
#[must_use]
pub fn key_id(name: &str, key: &PublicKey) -> [u8; 4] {
    key_id_of(name, ED25519, key)
}

pub(crate) fn key_id_of(name: &str, kind: u8, key: &PublicKey) -> [u8; 4] {
    let hash = Sha256::new()
        .chain_update(name)
        .chain_update([b'\n', kind])
        .chain_update(key.bytes())
        .finalize();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// The key as tools of signed notes take it: `name+hex(key id)+base64(type ‖ key)`.
#[must_use]
pub fn verifier_key(name: &str, key: &PublicKey) -> String {
    verifier_key_of(name, ED25519, key)
}

pub(crate) fn verifier_key_of(name: &str, kind: u8, key: &PublicKey) -> String {
    let bytes = [&[kind][..], &key.bytes()].concat();
    let id = hex::encode(key_id_of(name, kind, key));
    format!("{name}+{id}+{}", STANDARD.encode(bytes))
}

impl Checkpoint {
    /// What signatures cover.
    #[must_use]
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// The signed note.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the origin cannot be one.
    pub fn sign(&self, key: &SigningKey) -> Result<String, CheckpointError> {
        if !is_name(&self.origin) {
            return Err(CheckpointError::Name(visible_fold(&self.origin, 80)));
        }
        let body = self.body();
        let blob = [&key_id(&self.origin, &key.public())[..], &key.sign(body.as_bytes())].concat();
        Ok(format!("{body}\n\u{2014} {} {}\n", self.origin, STANDARD.encode(blob)))
    }
}

impl Note {
    /// Reads a note in its exact form; signatures of anybody are allowed and kept.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        use CheckpointError::Malformed;
        if bytes.len() > CHECKPOINT_BYTES {
            return Err(Malformed("too large"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Malformed("not UTF-8"))?;
        let (body, signatures) = text
            .split_once("\n\n")
            .ok_or(Malformed("no empty line before the signatures"))?;
        let mut lines = body.split('\n');
        let (Some(origin), Some(size), Some(root), None) = (lines.next(), lines.next(), lines.next(), lines.next())
        else {
            return Err(Malformed("the body has other than three lines"));
        };
        if !is_name(origin) {
            return Err(Malformed("the origin cannot be one"));
        }
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            size: decimal(size).ok_or(Malformed("the size is not a number"))?,
            root: hash(root).ok_or(Malformed("the root is not base64 of 32 bytes"))?,
        };
        let lines = signatures
            .strip_suffix('\n')
            .ok_or(Malformed("no newline at the end"))?;
        let signatures: Vec<NoteSignature> = lines
            .split('\n')
            .map(signature_line)
            .collect::<Option<_>>()
            .ok_or(Malformed("a signature line is wrong"))?;
        if signatures.len() > MOST_SIGNATURES {
            return Err(Malformed("too many signatures"));
        }
        Ok(Self { checkpoint, signatures })
    }
}

pub(crate) fn signature_line(line: &str) -> Option<NoteSignature> {
    let (name, blob) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let blob = STANDARD.decode(blob).ok()?;
    let (key_id, signature) = blob.split_first_chunk::<4>()?;
    (is_name(name) && !signature.is_empty()).then(|| NoteSignature {
        name: name.to_owned(),
        key_id: *key_id,
        signature: signature.to_vec(),
    })
}

/// Digits without a sign or leading zeros.
pub(crate) fn decimal(text: &str) -> Option<u64> {
    let number: u64 = text.parse().ok()?;
    (number.to_string() == text).then_some(number)
}

pub(crate) fn hash(text: &str) -> Option<Hash> {
    STANDARD.decode(text).ok()?.try_into().ok()
}

/// Parses a checkpoint and checks that the log `origin` signed it with one of `keys`.
///
/// # Errors
/// [`CheckpointError`].
pub fn verify(bytes: &[u8], origin: &str, keys: &[PublicKey]) -> Result<Checkpoint, CheckpointError> {
    verify_by(bytes, origin, keys).map(|(checkpoint, _)| checkpoint)
}

/// As [`verify`]; says whose signature it is.
///
/// # Errors
/// As [`verify`].
pub fn verify_by<'k>(
    bytes: &[u8],
    origin: &str,
    keys: &'k [PublicKey],
) -> Result<(Checkpoint, &'k PublicKey), CheckpointError> {
    let note = Note::parse(bytes)?;
    let found = &note.checkpoint.origin;
    if found != origin {
        return Err(CheckpointError::Origin {
            expected: origin.to_owned(),
            found: found.clone(),
        });
    }
    let body = note.checkpoint.body();
    for signature in note.signatures.iter().filter(|s| s.name == origin) {
        // Signed notes know no other kind of key for a log.
        let mut usable = keys.iter().filter(|key| key.algorithm() == Algorithm::Ed25519);
        if let Some(key) = usable.find(|key| key_id(origin, key) == signature.key_id) {
            return if key.verify(body.as_bytes(), &signature.signature) {
                Ok((note.checkpoint, key))
            } else {
                Err(CheckpointError::BadSignature(origin.to_owned()))
            };
        }
    }
    Err(CheckpointError::Unsigned(origin.to_owned()))
}

/// A record's place in a log: `c2sp.org/tlog-proof@v1` without extra data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    pub index: u64,
    /// From the leaf's sibling upwards.
    pub hashes: Vec<Hash>,
    /// The signed note that the hashes lead to, exact text.
    pub checkpoint: String,
}

impl Proof {
    /// The exact text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("{PROOF_HEADER}\nindex {}\n", self.index);
        for hash in &self.hashes {
            text.push_str(&STANDARD.encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.checkpoint);
        text
    }

    /// Reads the exact form. The checkpoint inside is not looked at.
    ///
    /// # Errors
    /// [`CheckpointError::Proof`].
    pub fn parse(bytes: &[u8]) -> Result<Self, CheckpointError> {
        use CheckpointError::Proof;
        if bytes.len() > PROOF_BYTES {
            return Err(Proof("too large"));
        }
        let text = std::str::from_utf8(bytes).map_err(|_| Proof("not UTF-8"))?;
        let (head, checkpoint) = text
            .split_once("\n\n")
            .ok_or(Proof("no empty line before the checkpoint"))?;
        let mut lines = head.split('\n');
        if lines.next() != Some(PROOF_HEADER) {
            return Err(Proof("another first line"));
        }
        let index = lines.next().and_then(|line| decimal(line.strip_prefix("index ")?));
        let index = index.ok_or(Proof("no index"))?;
        let hashes: Vec<Hash> = lines
            .map(hash)
            .collect::<Option<_>>()
            .ok_or(Proof("a hash is not base64 of 32 bytes"))?;
        if hashes.len() > MOST_HASHES {
            return Err(Proof("too many hashes"));
        }
        Ok(Self {
            index,
            hashes,
            checkpoint: checkpoint.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_seed(&[9; 32])
    }

    fn note() -> String {
        Checkpoint {
            origin: "guard.example.org/log".to_owned(),
            size: 42,
            root: [5; 32],
        }
        .sign(&key())
        .unwrap()
    }

    #[test]
    fn known_note() {
        // The example of golang.org/x/mod/sumdb/note: the key id of a known verifier key.
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let bytes = STANDARD.decode("ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW").unwrap();
        let key = PublicKey::from_ed25519_bytes(bytes[1..].try_into().unwrap()).unwrap();
        assert_eq!(verifier_key("PeterNeumann", &key), text);
        let signed =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let blob = STANDARD
            .decode("x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=")
            .unwrap();
        assert_eq!(blob[..4], key_id("PeterNeumann", &key));
        assert!(key.verify(signed.as_bytes(), &blob[4..]));
    }

    #[test]
    fn checkpoints_round_trip_and_verify() {
        let text = note();
        let checkpoint = verify(text.as_bytes(), "guard.example.org/log", &[key().public()]).unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (42, [5; 32]));
        let other = SigningKey::from_seed(&[8; 32]).public();
        assert!(matches!(
            verify(text.as_bytes(), "guard.example.org/log", &[other]),
            Err(CheckpointError::Unsigned(_))
        ));
        assert!(matches!(
            verify(text.as_bytes(), "other.example.org", &[key().public()]),
            Err(CheckpointError::Origin { .. })
        ));
        // A cosignature that we do not know stays out of the way.
        let with_witness = format!("{text}\u{2014} witness.example.org {}\n", STANDARD.encode([1; 76]));
        assert_eq!(
            verify(with_witness.as_bytes(), "guard.example.org/log", &[key().public()]).unwrap(),
            checkpoint
        );
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_rejected() {
        let text = note();
        let check = |bytes: &[u8]| verify(bytes, "guard.example.org/log", &[key().public()]);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut changed = text.clone().into_bytes();
                changed[at] ^= 1 << bit;
                assert!(check(&changed).is_err(), "byte {at} bit {bit}");
            }
            assert!(check(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        }
        assert!(check(format!("{text}\n").as_bytes()).is_err());
        for (from, to) in [
            ("\n42\n", "\n042\n"),
            ("\n42\n", "\n+42\n"),
            ("\n42\n", "\n42\nextension\n"),
            ("\n42\n", "\r\n42\n"),
        ] {
            assert!(check(text.replace(from, to).as_bytes()).is_err(), "{to:?}");
        }
    }

    #[test]
    fn names() {
        for good in ["guard.example.org/log", "a", "ünï"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a b", "a+b", "a\u{a0}b", "a\u{202E}b", "a\n", &"a".repeat(256)] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(
            Checkpoint {
                origin: "a b".to_owned(),
                size: 0,
                root: [0; 32]
            }
            .sign(&key())
            .is_err()
        );
    }

    #[test]
    fn proofs_round_trip() {
        for n in [0, 1, 5, MOST_HASHES] {
            let proof = Proof {
                index: 7,
                hashes: vec![[3; 32]; n],
                checkpoint: note(),
            };
            assert_eq!(Proof::parse(proof.to_text().as_bytes()).unwrap(), proof);
        }
        let text = Proof {
            index: 7,
            hashes: vec![[3; 32]],
            checkpoint: note(),
        }
        .to_text();
        for (from, to) in [
            ("index 7", "index 07"),
            ("index 7", "index -7"),
            ("@v1", "@v2"),
            ("\n\n", "\n"),
            ("index 7\n", ""),
        ] {
            assert!(Proof::parse(text.replacen(from, to, 1).as_bytes()).is_err(), "{to:?}");
        }
        let long = Proof {
            index: 7,
            hashes: vec![[3; 32]; MOST_HASHES + 1],
            checkpoint: note(),
        };
        assert!(Proof::parse(long.to_text().as_bytes()).is_err());
    }
}
