//! What a request says, for lists and the card: read from its record, nothing else.
//!
//! Owns the reading of request records and the keys by which earlier ones are counted. Words come from
//! `guard_evidence::statement`, so that the terminal and the page say the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::dsse;
use guard_evidence::record::{
    Action, ConnectAction, ConnectHow, ExecAction, FileAction, Peer, Predicate, RequestRecord, Statement,
};
use guard_evidence::statement::{action_word, plain_sentence, sentence, sha256_hex};
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
        let seen = match &self.record.action {
            Action::Exec(exec) => exec_risks(exec),
            Action::Connect(connect) => connect_risks(connect),
            Action::File(file) => guard_evidence::writing::risks(file),
        };
        risks.extend(seen.into_iter().map(str::to_owned));
        risks
    }
}

fn exec_risks(exec: &ExecAction) -> Vec<&'static str> {
    let mut risks = Vec::new();
    if exec.unlinked {
        risks.push("The program's file was deleted: nobody can look at it later.");
    }
    if exec.path.is_none() {
        risks.push(
            "The program has no path of this host: it is in another mount namespace, or the path is too long to be read whole.",
        );
    }
    if exec.sha256.is_none() {
        risks.push("The program's content could not be hashed in time.");
    }
    if exec.argv_truncated {
        risks.push("Not every argument is shown.");
    }
    risks
}

fn connect_risks(connect: &ConnectAction) -> Vec<&'static str> {
    let mut risks = Vec::new();
    if connect.how == ConnectHow::ConnectedBefore {
        risks.push("It did not make this connection itself under this label: what was sent on it before is not known.");
    }
    match &connect.peer {
        Peer::Unix { path: None } => risks.push(
            "The socket has no path of this host: it is in another mount namespace, or the path is too long to be read whole.",
        ),
        Peer::Abstract { .. } => risks.push("Any program of the host can have taken this name."),
        Peer::Nameless => risks.push("The socket has no name: nothing says who is at its other end."),
        Peer::Unix { path: Some(_) } | Peer::Ip { .. } => {}
    }
    risks
}

fn payload(envelope: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let envelope: dsse::Envelope = serde_json::from_slice(envelope).map_err(|e| e.to_string())?;
    STANDARD.decode(envelope.payload).map_err(|e| e.to_string())
}

/// Same label and program, by its path as the kernel walked it; or same label and peer, whatever the port.
pub(crate) fn program_key(record: &RequestRecord) -> String {
    let label = record.workload.label.as_bytes();
    match &record.action {
        Action::Exec(exec) => key(&[label, b"exec", &program(exec)]),
        Action::Connect(connect) => key(&[label, action_word(&record.action).as_bytes(), &peer(connect).0]),
        Action::File(file) => key(&[label, b"file", &file_path(file, file.path.as_ref())]),
    }
}

/// Same label, program with the same content, arguments and directory; or same label, peer, port and protocol.
pub(crate) fn action_key(record: &RequestRecord) -> String {
    let label = record.workload.label.as_bytes();
    match &record.action {
        Action::Exec(exec) => key(&[
            label,
            b"exec",
            &program(exec),
            exec.sha256.as_deref().unwrap_or_default().as_bytes(),
            exec.argv_sha256.as_bytes(),
            exec.cwd.as_bytes(),
        ]),
        Action::Connect(connect) => {
            let (peer, port) = peer(connect);
            key(&[
                label,
                action_word(&record.action).as_bytes(),
                &peer,
                &port.to_be_bytes(),
                connect.protocol.as_bytes(),
            ])
        }
        Action::File(file) => {
            let flags: Vec<String> = file.flags.iter().map(|flag| format!("{flag:?}")).collect();
            key(&[
                label,
                b"file",
                file.operation.word().as_bytes(),
                flags.join(",").as_bytes(),
                &file_path(file, file.path.as_ref()),
                &file_path(file, file.new_path.as_ref()),
                file.target.as_ref().map_or(&[][..], Text::as_bytes),
                format!("{:?}:{:?}:{:?}", file.mode, file.uid, file.gid).as_bytes(),
            ])
        }
    }
}

/// Where it is; without a path the inode, which never reads as one.
fn file_path(file: &FileAction, path: Option<&Text>) -> Vec<u8> {
    match path {
        Some(path) => path.as_bytes().to_vec(),
        None => format!("{}:{}:{}", file.device, file.inode, file.generation).into_bytes(),
    }
}

/// Who is reached, and the port; a name outside the file system never reads as a path.
fn peer(connect: &ConnectAction) -> (Vec<u8>, u16) {
    match &connect.peer {
        Peer::Ip { address, port, scope } => (format!("{address}%{}", scope.unwrap_or(0)).into_bytes(), *port),
        Peer::Unix { path: Some(path) } => (path.as_bytes().to_vec(), 0),
        Peer::Unix { path: None } => (b"?".to_vec(), 0),
        Peer::Abstract { name } => ([b"@", name.as_bytes()].concat(), 0),
        Peer::Nameless => (Vec::new(), 0),
    }
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
