//! Witnesses: who remembers the last head of a log, and signs or accepts only what continues it.
//!
//! Owns that rule, for hosts and for the C2SP tlog-witness protocol alike, and a witness's memory on disk. It is given
//! heads and proofs by whom it does not trust. It must never answer before what it remembers is on disk.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest as _, Sha256};

use crate::checkpoint::{self, CHECKPOINT_BYTES, Checkpoint, CheckpointError, Note};
use crate::cosign::cosign;
use crate::files;
use crate::key::{PublicKey, SigningKey};
use crate::merkle::{Hash, MOST_HASHES, ProofError, verify_consistency};

/// Most bytes of a request to a witness.
pub const REQUEST_BYTES: usize = CHECKPOINT_BYTES + (8 << 10);

/// Why a head does not continue the one that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    #[error("it has {offered} records, an earlier one had {known}: the log was rolled back")]
    RolledBack { known: u64, offered: u64 },
    #[error("it has {size} records as the known one does, but another root: the log was forked")]
    Forked { size: u64 },
    #[error("it is not proved that its {offered} records begin with the {known} known ones: {why}")]
    Unproved { known: u64, offered: u64, why: ProofError },
}

/// Whether `offered` continues `known`, as `proof` says.
///
/// # Errors
/// [`Inconsistent`].
pub fn continues(known: Option<&Checkpoint>, offered: &Checkpoint, proof: &[Hash]) -> Result<(), Inconsistent> {
    let Some(known) = known.filter(|known| known.size > 0) else {
        // Whatever comes first is the beginning; there is nothing to prove.
        return Ok(());
    };
    if offered.size < known.size {
        return Err(Inconsistent::RolledBack {
            known: known.size,
            offered: offered.size,
        });
    }
    if offered.size == known.size && offered.root != known.root {
        return Err(Inconsistent::Forked { size: known.size });
    }
    verify_consistency(known.size, offered.size, &known.root, &offered.root, proof).map_err(|why| {
        Inconsistent::Unproved {
            known: known.size,
            offered: offered.size,
            why,
        }
    })
}

/// A request to add a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddCheckpoint {
    /// The size that the log thinks the witness knows.
    pub old: u64,
    pub proof: Vec<Hash>,
    /// The signed note, exact text.
    pub note: String,
}

impl AddCheckpoint {
    /// The exact text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = format!("old {}\n", self.old);
        for hash in &self.proof {
            text.push_str(&STANDARD.encode(hash));
            text.push('\n');
        }
        text.push('\n');
        text.push_str(&self.note);
        text
    }

    /// `None`: not a request.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes)
            .ok()
            .filter(|text| text.len() <= REQUEST_BYTES)?;
        let (head, note) = text.split_once("\n\n")?;
        let mut lines = head.split('\n');
        let old = checkpoint::decimal(lines.next()?.strip_prefix("old ")?)?;
        let proof: Vec<Hash> = lines.map(checkpoint::hash).collect::<Option<_>>()?;
        (proof.len() <= MOST_HASHES).then(|| Self {
            old,
            proof,
            note: note.to_owned(),
        })
    }
}

/// Why a witness did not cosign.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error("not a request to add a checkpoint")]
    Malformed,
    #[error("the checkpoint is smaller than what it is said to continue")]
    Backwards,
    #[error("this witness knows no log of this name")]
    UnknownLog,
    #[error("{0}")]
    Unsigned(CheckpointError),
    /// Another size is known than the one that the request builds on.
    #[error("the size known is {known}")]
    Conflict { known: u64 },
    #[error("{0}")]
    Inconsistent(Inconsistent),
    #[error("{path}: {why}")]
    Memory { path: PathBuf, why: String },
}

impl Refusal {
    /// The status that the protocol has for it.
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::Malformed | Self::Backwards => 400,
            Self::Unsigned(_) => 403,
            Self::UnknownLog => 404,
            Self::Conflict { .. } | Self::Inconsistent(Inconsistent::Forked { .. }) => 409,
            Self::Inconsistent(_) => 422,
            Self::Memory { .. } => 500,
        }
    }
}

/// A witness: its key, the logs that it knows, and what it has seen of them.
#[derive(Debug)]
pub struct Witness {
    dir: PathBuf,
    name: String,
    key: SigningKey,
    logs: BTreeMap<String, Vec<PublicKey>>,
    /// Checking and remembering are one step.
    turn: Mutex<()>,
}

impl Witness {
    /// `dir` is there and only its owner's; `logs` are origins with the keys that may sign them.
    #[must_use]
    pub fn new(dir: &Path, name: &str, key: SigningKey, logs: BTreeMap<String, Vec<PublicKey>>) -> Self {
        Self {
            dir: dir.to_owned(),
            name: name.to_owned(),
            key,
            logs,
            turn: Mutex::new(()),
        }
    }

    /// Checks a request; gives the cosignature's line.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn add_checkpoint(&self, request: &[u8], unix_seconds: u64) -> Result<String, Refusal> {
        let request = AddCheckpoint::parse(request).ok_or(Refusal::Malformed)?;
        let note = Note::parse(request.note.as_bytes()).map_err(|_| Refusal::Malformed)?;
        let origin = &note.checkpoint.origin;
        let keys = self.logs.get(origin).ok_or(Refusal::UnknownLog)?;
        let offered = checkpoint::verify(request.note.as_bytes(), origin, keys).map_err(Refusal::Unsigned)?;
        if request.old > offered.size {
            return Err(Refusal::Backwards);
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.memory(origin);
        let known = self.known(&path, origin, keys)?;
        let size = known.as_ref().map_or(0, |known| known.size);
        if request.old != size {
            return Err(Refusal::Conflict { known: size });
        }
        if size == 0 && !request.proof.is_empty() {
            return Err(Refusal::Malformed);
        }
        continues(known.as_ref(), &offered, &request.proof).map_err(Refusal::Inconsistent)?;
        files::replace(&path, request.note.as_bytes(), 0o600).map_err(|e| Refusal::Memory {
            path: path.clone(),
            why: e.to_string(),
        })?;
        Ok(cosign(&self.name, &self.key, &offered, unix_seconds))
    }

    fn memory(&self, origin: &str) -> PathBuf {
        self.dir
            .join(format!("{}.checkpoint", hex::encode(Sha256::digest(origin))))
    }

    fn known(&self, path: &Path, origin: &str, keys: &[PublicKey]) -> Result<Option<Checkpoint>, Refusal> {
        let wrong = |why: String| Refusal::Memory {
            path: path.to_owned(),
            why,
        };
        match fs::read(path) {
            Ok(bytes) => checkpoint::verify(&bytes, origin, keys)
                .map(Some)
                .map_err(|e| wrong(e.to_string())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(wrong(error.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cosign::{KeyKind, VerifierKey};
    use crate::merkle::{Tree, leaf_hash};

    const LOG: &str = "guard.example.org/guard";

    fn log_key() -> SigningKey {
        SigningKey::from_seed(&[1; 32])
    }

    fn tree(salt: &str, size: usize) -> Tree {
        Tree::new((0..size).map(|n| leaf_hash(format!("{salt}{n}").as_bytes())).collect())
    }

    fn head(tree: &Tree) -> Checkpoint {
        Checkpoint {
            origin: LOG.to_owned(),
            size: tree.size(),
            root: tree.root(),
        }
    }

    fn request(old: u64, tree: &Tree, key: &SigningKey) -> Vec<u8> {
        let request = AddCheckpoint {
            old,
            proof: tree.consistency(old).unwrap_or_default(),
            note: head(tree).sign(key).unwrap(),
        };
        assert_eq!(AddCheckpoint::parse(request.to_text().as_bytes()).unwrap(), request);
        request.to_text().into_bytes()
    }

    fn witness(dir: &Path) -> Witness {
        let logs = BTreeMap::from([(LOG.to_owned(), vec![log_key().public()])]);
        Witness::new(dir, "w.example.org", SigningKey::from_seed(&[2; 32]), logs)
    }

    fn status(result: Result<String, Refusal>) -> u16 {
        result.map_or_else(|refusal| refusal.status(), |_| 200)
    }

    #[test]
    fn cosigns_what_continues_and_nothing_else_also_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let w = witness(dir.path());
        let (five, nine) = (tree("a", 5), tree("a", 9));
        let line = w.add_checkpoint(&request(0, &five, &log_key()), 1_800_000_000).unwrap();
        let note = Note::parse(format!("{}{line}", head(&five).sign(&log_key()).unwrap()).as_bytes()).unwrap();
        let key = VerifierKey {
            name: "w.example.org".to_owned(),
            kind: KeyKind::Witness,
            key: SigningKey::from_seed(&[2; 32]).public(),
        };
        assert_eq!(key.cosigned(&note), Some(1_800_000_000));
        drop(w);
        let w = witness(dir.path());
        let again = |request: &[u8]| status(w.add_checkpoint(request, 1_800_000_001));
        // The same head again is fine; from nothing it is not.
        assert_eq!(again(&request(5, &five, &log_key())), 200);
        assert!(matches!(
            w.add_checkpoint(&request(0, &nine, &log_key()), 1),
            Err(Refusal::Conflict { known: 5 })
        ));
        // Another log of the same size; one that continues another; a smaller one; another key; another log.
        assert_eq!(again(&request(5, &tree("b", 5), &log_key())), 409);
        assert_eq!(again(&request(5, &tree("b", 9), &log_key())), 422);
        assert_eq!(again(&request(5, &tree("a", 4), &log_key())), 400);
        assert_eq!(again(&request(4, &tree("a", 4), &log_key())), 409);
        assert_eq!(again(&request(5, &nine, &SigningKey::from_seed(&[3; 32]))), 403);
        let text = String::from_utf8(request(5, &nine, &log_key())).unwrap();
        assert_eq!(again(text.replace(LOG, "other.example.org").as_bytes()), 404);
        for bad in [
            text.replace("old 5", "old 05"),
            text.replace("old 5\n", ""),
            text.replace("\n\n", "\n"),
        ] {
            assert_eq!(again(bad.as_bytes()), 400, "{bad}");
        }
        assert_eq!(again(&request(5, &nine, &log_key())), 200);
        assert_eq!(again(&request(5, &nine, &log_key())), 409);
        // What it remembers cannot be read: it says so instead of beginning anew.
        let memory = w.memory(LOG);
        fs::write(&memory, "garbage").unwrap();
        assert_eq!(again(&request(9, &nine, &log_key())), 500);
    }

    #[test]
    fn what_does_not_continue_says_how() {
        let known = head(&tree("a", 5));
        let offered = |tree: &Tree, proof: &[Hash]| continues(Some(&known), &head(tree), proof);
        assert!(matches!(
            offered(&tree("a", 4), &[]),
            Err(Inconsistent::RolledBack { known: 5, offered: 4 })
        ));
        assert!(matches!(
            offered(&tree("b", 5), &[]),
            Err(Inconsistent::Forked { size: 5 })
        ));
        let nine = tree("b", 9);
        assert!(matches!(
            offered(&nine, &nine.consistency(5).unwrap()),
            Err(Inconsistent::Unproved { .. })
        ));
        let nine = tree("a", 9);
        assert_eq!(offered(&nine, &nine.consistency(5).unwrap()), Ok(()));
        assert!(offered(&nine, &[]).is_err());
        assert_eq!(continues(None, &known, &[]), Ok(()));
    }
}
