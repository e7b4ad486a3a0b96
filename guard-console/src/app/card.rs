//! What a request says, for lists and the card: read from its record, nothing else.
//!
//! Owns the reading of request records and the keys by which earlier ones are counted. Words come from
//! `guard_evidence::statement`, so that the terminal and the page say the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::dsse;
use guard_evidence::record::{Action, ExecAction, Predicate, RequestRecord, Statement};
use guard_evidence::statement::{plain_sentence, sentence, sha256_hex};
use guard_evidence::text::Text;

use super::{Error, Result};

/// Longest `what` in lists, in characters.
pub(crate) const WHAT_CHARACTERS: usize = 200;

/// A request record, read back from its stored envelope.
#[derive(Debug)]
pub struct Card {
    pub record: RequestRecord,
    /// The statement, verbatim.
    pub statement: serde_json::Value,
    pub sentence: String,
}

impl Card {
    /// Of an envelope that was verified when it was stored.
    ///
    /// # Errors
    /// [`Error::Internal`] if the database holds something else.
    pub fn read(envelope: &[u8]) -> Result<Self> {
        let damaged = |e: &dyn std::fmt::Display| Error::internal(format!("a stored request record is damaged: {e}"));
        let payload = payload(envelope).map_err(|e| damaged(&e))?;
        let statement = Statement::from_payload(&payload).map_err(|e| damaged(&e))?;
        let Predicate::Request(record) = statement.predicate else {
            return Err(damaged(&"it is of another kind"));
        };
        let verbatim = serde_json::from_slice(&payload).map_err(|e| damaged(&e))?;
        let sentence = plain_sentence(&sentence(&record));
        Ok(Self {
            record: *record,
            statement: verbatim,
            sentence,
        })
    }

    #[must_use]
    pub fn exec(&self) -> &ExecAction {
        let Action::Exec(exec) = &self.record.action;
        exec
    }

    /// What could go wrong: the policy's words first, then what anybody can see in the facts.
    #[must_use]
    pub fn risks(&self) -> Vec<String> {
        let mut risks: Vec<String> = self
            .record
            .why
            .risks
            .iter()
            .map(|r| guard_evidence::text::visible_fold(r, 200))
            .collect();
        let exec = self.exec();
        if exec.unlinked {
            risks.push("The program's file was deleted: nobody can look at it later.".to_owned());
        }
        if exec.path.is_none() {
            risks.push(
                "The program has no path of this host: it is in another mount namespace, or the path is too long to be read whole."
                    .to_owned(),
            );
        }
        if exec.sha256.is_none() {
            risks.push("The program's content could not be hashed in time.".to_owned());
        }
        if exec.argv_truncated {
            risks.push("Not every argument is shown.".to_owned());
        }
        risks
    }
}

fn payload(envelope: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let envelope: dsse::Envelope = serde_json::from_slice(envelope).map_err(|e| e.to_string())?;
    STANDARD.decode(envelope.payload).map_err(|e| e.to_string())
}

/// Same label and program, by its path as the kernel walked it.
pub(crate) fn program_key(record: &RequestRecord) -> String {
    let Action::Exec(exec) = &record.action;
    key(&[record.workload.label.as_bytes(), b"exec", &program(exec)])
}

/// Same label, program with the same content, arguments and directory.
pub(crate) fn action_key(record: &RequestRecord) -> String {
    let Action::Exec(exec) = &record.action;
    key(&[
        record.workload.label.as_bytes(),
        b"exec",
        &program(exec),
        exec.sha256.as_deref().unwrap_or_default().as_bytes(),
        exec.argv_sha256.as_bytes(),
        exec.cwd.as_bytes(),
    ])
}

/// Never the name that the workload gave: it could name a program that was approved often.
fn program(exec: &ExecAction) -> Vec<u8> {
    match &exec.path {
        Some(path) => path.as_bytes().to_vec(),
        None => format!("{}:{}:{}", exec.device, exec.inode, exec.generation).into_bytes(),
    }
}

fn key(parts: &[&[u8]]) -> String {
    let mut bytes = Vec::new();
    for part in parts {
        bytes.extend_from_slice(&(part.len() as u64).to_be_bytes());
        bytes.extend_from_slice(part);
    }
    sha256_hex(&bytes)
}

/// Words and options that often do what cannot be undone: drawn bold, nothing more.
#[must_use]
pub fn is_danger_word(word: &Text) -> bool {
    const WORDS: &[&str] = &[
        "--delete",
        "--force",
        "--force-with-lease",
        "--hard",
        "--mirror",
        "--no-preserve-root",
        "--no-verify",
        "--privileged",
        "--prune",
        "--purge",
        "--recursive",
        "-delete",
        "-rf",
        "-fr",
        "chmod",
        "chown",
        "dd",
        "destroy",
        "doas",
        "drop",
        "insmod",
        "iptables",
        "kill",
        "killall",
        "mkfs",
        "modprobe",
        "mount",
        "nft",
        "pkexec",
        "pkill",
        "purge",
        "reboot",
        "rm",
        "shred",
        "shutdown",
        "su",
        "sudo",
        "truncate",
        "umount",
        "userdel",
        "wipefs",
    ];
    let bytes = word.as_bytes();
    let base = bytes.rsplit(|b| *b == b'/').next().unwrap_or_default();
    WORDS.iter().any(|w| w.as_bytes() == base) || base.starts_with(b"mkfs.")
}
