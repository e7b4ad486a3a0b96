//! This host as a witness of the console's log.
//!
//! Owns the last head that it accepted and what it refused, on disk beside the identity. It is given the console's
//! answers, which nobody vouches for. It must never accept a head that does not continue the last, nor a receipt that
//! does not prove our own record: whoever has neither keeps the evidence.

use std::io;
use std::path::{Path, PathBuf};

use guard_evidence::checkpoint::{self, Checkpoint, Note, Proof};
use guard_evidence::cosign::{self, VerifierKey};
use guard_evidence::key::PublicKey;
use guard_evidence::merkle::{Hash, MOST_HASHES, verify_inclusion};
use guard_evidence::text::visible_fold;
use guard_evidence::witness::{Inconsistent, continues};
use guard_proto::v1::RecordsStored;
use serde::{Deserialize, Serialize};

use crate::files;

const RECEIPT: &str = "log-receipt";
const REFUSED: &str = "log-refused.json";

/// Whose signatures a receipt needs.
#[derive(Debug, Clone)]
pub(crate) struct LogTrust {
    pub(crate) origin: String,
    pub(crate) key: PublicKey,
    /// Those before it: one of them may have signed the head that this host remembers, and none signs another.
    pub(crate) earlier: Vec<PublicKey>,
    pub(crate) witnesses: Vec<VerifierKey>,
    pub(crate) quorum: usize,
}

/// What this host refused, as it stays on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Refused {
    /// RFC 3339.
    pub(crate) at: String,
    pub(crate) because: String,
    /// The signed note that it held, and the one that it was offered: both signed by the log, they are the proof.
    pub(crate) known: String,
    pub(crate) offered: String,
}

/// Why an answer is no receipt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoReceipt {
    /// Somebody has to look: the log contradicts itself.
    #[error("the console's log is refused: {because}")]
    Refused { because: String, offered: String },
    #[error("the console's answer is no receipt: {0}")]
    Malformed(String),
    #[error("the log's head has {got} of the {quorum} cosignatures that this host wants")]
    Quorum { got: usize, quorum: usize },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path} is damaged: {why}\n  → enrol this host again: guard-agent enroll --force")]
    Memory { path: PathBuf, why: String },
}

/// A record that was sent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// In the spool.
    pub(crate) position: u64,
    pub(crate) epoch: u64,
    pub(crate) sequence: u64,
    pub(crate) leaf: Hash,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct LogWitness {
    directory: PathBuf,
    trust: LogTrust,
    known: Option<(String, Checkpoint)>,
}

impl LogWitness {
    /// Reads what this host remembers of the log.
    pub(crate) fn load(directory: &Path, trust: LogTrust) -> Result<Self, NoReceipt> {
        let path = directory.join(RECEIPT);
        let known = match std::fs::read(&path) {
            Ok(bytes) => {
                let memory = |why: String| NoReceipt::Memory {
                    path: path.clone(),
                    why,
                };
                let proof = Proof::parse(&bytes).map_err(|e| memory(e.to_string()))?;
                let keys = [trust.earlier.as_slice(), std::slice::from_ref(&trust.key)].concat();
                let head = checkpoint::verify(proof.checkpoint.as_bytes(), &trust.origin, &keys)
                    .map_err(|e| memory(e.to_string()))?;
                Some((proof.checkpoint, head))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(NoReceipt::Io { path, source }),
        };
        Ok(Self {
            directory: directory.to_owned(),
            trust,
            known,
        })
    }

    /// Size of the head that it holds; 0: none.
    pub(crate) fn size(&self) -> u64 {
        self.known.as_ref().map_or(0, |(_, head)| head.size)
    }

    /// Checks the answer to a batch and writes the receipt of its last record down: then the batch may be deleted.
    pub(crate) fn accept(&mut self, answer: &RecordsStored, batch: &[Sent]) -> Result<(), NoReceipt> {
        let head = self.head(answer)?;
        let refused = |because: String| NoReceipt::Refused {
            because,
            offered: String::from_utf8_lossy(&answer.checkpoint).into_owned(),
        };
        self.check_continues(&head, answer).map_err(|e| match e {
            Ok(inconsistent) => refused(inconsistent.to_string()),
            Err(malformed) => malformed,
        })?;
        if answer.receipts.len() != batch.len() || batch.is_empty() {
            let (got, sent) = (answer.receipts.len(), batch.len());
            return Err(NoReceipt::Malformed(format!("{got} receipts for {sent} records")));
        }
        let mut last = Vec::new();
        for (receipt, sent) in answer.receipts.iter().zip(batch) {
            if (answer.epoch, receipt.sequence) != (sent.epoch, sent.sequence) {
                return Err(NoReceipt::Malformed(format!("it is about record {}", receipt.sequence)));
            }
            last = hashes(&receipt.hashes)?;
            verify_inclusion(&sent.leaf, receipt.index, head.size, &last, &head.root)
                .map_err(|e| refused(format!("record {} is not proved to be in it: {e}", sent.sequence)))?;
        }
        let note = String::from_utf8_lossy(&answer.checkpoint).into_owned();
        let proof = Proof {
            index: answer.receipts.last().map_or(0, |receipt| receipt.index),
            hashes: last,
            checkpoint: note.clone(),
        };
        self.write(RECEIPT, proof.to_text().as_bytes())?;
        self.known = Some((note, head));
        Ok(())
    }

    /// The head, if the log that we know signed it and enough witnesses did.
    fn head(&self, answer: &RecordsStored) -> Result<Checkpoint, NoReceipt> {
        if answer.checkpoint.is_empty() {
            return Err(NoReceipt::Malformed(
                "it has no checkpoint: the console is older than this agent; upgrade it".to_owned(),
            ));
        }
        let keys = std::slice::from_ref(&self.trust.key);
        let malformed = |e: checkpoint::CheckpointError| NoReceipt::Malformed(e.to_string());
        let head = checkpoint::verify(&answer.checkpoint, &self.trust.origin, keys).map_err(malformed)?;
        let note = Note::parse(&answer.checkpoint).map_err(malformed)?;
        let got = cosign::count(&note, &self.trust.witnesses);
        if got < self.trust.quorum {
            return Err(NoReceipt::Quorum {
                got,
                quorum: self.trust.quorum,
            });
        }
        Ok(head)
    }

    fn check_continues(
        &self,
        head: &Checkpoint,
        answer: &RecordsStored,
    ) -> Result<(), Result<Inconsistent, NoReceipt>> {
        let known = self.known.as_ref().map(|(_, known)| known);
        let size = self.size();
        let proof = hashes(&answer.consistency).map_err(Err)?;
        // A smaller head, or another one of the same size, contradicts ours whatever it is said to lead from.
        if head.size > size && answer.old_size != size {
            let why = format!(
                "its proof leads from {} records, this host knows {size}",
                answer.old_size
            );
            return Err(Err(NoReceipt::Malformed(why)));
        }
        continues(known, head, &proof).map_err(Ok)
    }

    /// Writes down what was refused. `None`: that is known already.
    pub(crate) fn remember(&self, because: &str, offered: &str, at: &str) -> Result<Option<Refused>, NoReceipt> {
        let refused = Refused {
            at: at.to_owned(),
            because: visible_fold(because, 500),
            known: self.known.as_ref().map(|(note, _)| note.clone()).unwrap_or_default(),
            offered: offered.to_owned(),
        };
        let before = refused_before(&self.directory);
        if before.is_some_and(|before| (&before.because, &before.offered) == (&refused.because, &refused.offered)) {
            return Ok(None);
        }
        let bytes = serde_json::to_vec_pretty(&refused).map_err(|e| NoReceipt::Malformed(e.to_string()))?;
        self.write(REFUSED, &bytes)?;
        Ok(Some(refused))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), NoReceipt> {
        let path = self.directory.join(name);
        files::replace(&path, bytes, 0o600).map_err(|source| NoReceipt::Io { path, source })
    }
}

/// What this identity refused last, ever.
pub(crate) fn refused_before(directory: &Path) -> Option<Refused> {
    serde_json::from_slice(&std::fs::read(directory.join(REFUSED)).ok()?).ok()
}

fn hashes(bytes: &[Vec<u8>]) -> Result<Vec<Hash>, NoReceipt> {
    if bytes.len() > MOST_HASHES {
        return Err(NoReceipt::Malformed("too many hashes".to_owned()));
    }
    let hash = |bytes: &Vec<u8>| Hash::try_from(bytes.as_slice());
    bytes
        .iter()
        .map(hash)
        .collect::<Result<_, _>>()
        .map_err(|_| NoReceipt::Malformed("a hash has not 32 bytes".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_evidence::key::SigningKey;
    use guard_evidence::merkle::{Tree, leaf_hash};
    use guard_proto::v1::Receipt;

    const ORIGIN: &str = "console.example.org/guard";

    fn key() -> SigningKey {
        SigningKey::from_seed(&[7; 32])
    }

    fn leaf(log: &str, n: u64) -> Hash {
        leaf_hash(format!("{log} {n}").as_bytes())
    }

    fn tree(log: &str, size: u64) -> Tree {
        Tree::new((0..size).map(|n| leaf(log, n)).collect())
    }

    fn sent(log: &str, index: u64) -> Sent {
        Sent {
            position: index + 1,
            epoch: 1,
            sequence: index + 1,
            leaf: leaf(log, index),
        }
    }

    fn bytes(hashes: &[Hash]) -> Vec<Vec<u8>> {
        hashes.iter().map(|hash| hash.to_vec()).collect()
    }

    /// The answer of a console for the record `index` of its log.
    fn answer(log: &str, size: u64, old: u64, index: u64) -> RecordsStored {
        let tree = tree(log, size);
        let head = Checkpoint {
            origin: ORIGIN.to_owned(),
            size,
            root: tree.root(),
        };
        RecordsStored {
            epoch: 1,
            through_sequence: index + 1,
            checkpoint: head.sign(&key()).unwrap().into_bytes(),
            old_size: old,
            consistency: bytes(&tree.consistency(old).unwrap_or_default()),
            receipts: vec![Receipt {
                sequence: index + 1,
                index,
                hashes: bytes(&tree.inclusion(index).unwrap_or_default()),
            }],
        }
    }

    fn trust() -> LogTrust {
        LogTrust {
            origin: ORIGIN.to_owned(),
            key: key().public(),
            earlier: vec![],
            witnesses: vec![],
            quorum: 0,
        }
    }

    fn witness(dir: &Path) -> LogWitness {
        LogWitness::load(dir, trust()).unwrap()
    }

    #[test]
    fn what_continues_is_accepted_and_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = witness(dir.path());
        w.accept(&answer("a", 5, 0, 4), &[sent("a", 4)]).unwrap();
        w.accept(&answer("a", 5, 5, 3), &[sent("a", 3)]).unwrap();
        w.accept(&answer("a", 9, 5, 8), &[sent("a", 8)]).unwrap();
        assert_eq!(witness(dir.path()).size(), 9);
        let receipt = Proof::parse(&std::fs::read(dir.path().join(RECEIPT)).unwrap()).unwrap();
        assert_eq!((receipt.index, receipt.hashes), (8, tree("a", 9).inclusion(8).unwrap()));
    }

    #[test]
    fn a_log_that_was_forked_rolled_back_or_rewritten_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let mut w = witness(dir.path());
        w.accept(&answer("a", 5, 0, 4), &[sent("a", 4)]).unwrap();
        let mut other_root = answer("b", 9, 5, 8);
        other_root.consistency = answer("a", 9, 5, 8).consistency;
        for (answer, sent, words) in [
            (answer("a", 4, 4, 3), sent("a", 3), "rolled back"),
            (answer("a", 4, 5, 3), sent("a", 3), "rolled back"),
            (answer("b", 5, 5, 4), sent("b", 4), "forked"),
            (answer("b", 9, 5, 8), sent("b", 8), "not proved"),
            (other_root, sent("b", 8), "not proved"),
            // A replayed receipt, and one of another record.
            (answer("a", 9, 5, 7), sent("a", 8), "about record"),
            (answer("a", 9, 5, 8), sent("b", 8), "record 9 is not proved"),
        ] {
            let error = w.accept(&answer, &[sent]).unwrap_err();
            assert!(error.to_string().contains(words), "{error}");
            assert_eq!((w.size(), witness(dir.path()).size()), (5, 5), "nothing is taken over");
        }
        // What does not even claim to continue is no receipt, and no alarm either.
        let unlinked = w.accept(&answer("a", 9, 4, 8), &[sent("a", 8)]).unwrap_err();
        assert!(matches!(unlinked, NoReceipt::Malformed(_)), "{unlinked}");
        let mut other_key = answer("a", 9, 5, 8);
        let head = checkpoint::Note::parse(&other_key.checkpoint).unwrap().checkpoint;
        other_key.checkpoint = head.sign(&SigningKey::from_seed(&[8; 32])).unwrap().into_bytes();
        assert!(w.accept(&other_key, &[sent("a", 8)]).is_err());
        assert!(w.accept(&answer("a", 9, 5, 8), &[]).is_err());
        // Written down once.
        let first = w.remember("forked", "note", "now").unwrap().unwrap();
        assert!(first.known.contains("\n5\n"));
        assert_eq!(w.remember("forked", "note", "later").unwrap(), None);
        assert_eq!(refused_before(dir.path()), Some(first));
        w.accept(&answer("a", 9, 5, 8), &[sent("a", 8)]).unwrap();
    }

    #[test]
    fn a_receipt_counts_when_enough_witnesses_signed() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (SigningKey::from_seed(&[1; 32]), SigningKey::from_seed(&[2; 32]));
        let key = |key: &SigningKey, name: &str| VerifierKey {
            name: name.to_owned(),
            kind: cosign::KeyKind::Witness,
            key: key.public(),
        };
        let witnesses = vec![key(&one, "one"), key(&two, "two")];
        let trust = LogTrust {
            witnesses,
            quorum: 2,
            ..trust()
        };
        let mut w = LogWitness::load(dir.path(), trust).unwrap();
        let mut answer = answer("a", 5, 0, 4);
        let head = checkpoint::Note::parse(&answer.checkpoint).unwrap().checkpoint;
        for (name, key, enough) in [("one", &one, false), ("two", &two, true)] {
            answer
                .checkpoint
                .extend_from_slice(cosign::cosign(name, key, &head, 1).as_bytes());
            let result = w.accept(&answer, &[sent("a", 4)]);
            match enough {
                true => result.unwrap(),
                false => assert!(matches!(result, Err(NoReceipt::Quorum { got: 1, quorum: 2 }))),
            }
        }
    }

    #[test]
    fn a_head_of_the_key_before_is_remembered_and_no_longer_accepted() {
        let dir = tempfile::tempdir().unwrap();
        witness(dir.path())
            .accept(&answer("a", 5, 0, 4), &[sent("a", 4)])
            .unwrap();
        let next = SigningKey::from_seed(&[8; 32]);
        let trust = LogTrust {
            key: next.public(),
            earlier: vec![key().public()],
            ..trust()
        };
        let mut w = LogWitness::load(dir.path(), trust).unwrap();
        assert_eq!(w.size(), 5);
        let mut answer = answer("a", 9, 5, 8);
        assert!(w.accept(&answer, &[sent("a", 8)]).is_err(), "by the old key");
        let head = checkpoint::Note::parse(&answer.checkpoint).unwrap().checkpoint;
        answer.checkpoint = head.sign(&next).unwrap().into_bytes();
        w.accept(&answer, &[sent("a", 8)]).unwrap();
        assert_eq!(w.size(), 9);
    }

    #[test]
    fn a_damaged_memory_is_not_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(RECEIPT), "garbage").unwrap();
        let error = LogWitness::load(dir.path(), trust()).unwrap_err().to_string();
        assert!(error.contains("log-receipt") && error.contains("--force"), "{error}");
    }
}
