//! `guard witness serve`, and what an auditor makes of its cosignatures.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Stdio};

use guard_evidence::checkpoint::{Checkpoint, Note, verifier_key};
use guard_evidence::cosign::VerifierKey;
use guard_evidence::key::SigningKey;
use guard_evidence::merkle::{Tree, leaf_hash};
use guard_evidence::witness::AddCheckpoint;

use crate::{guard, run};

const LOG: &str = "guard.example.org/guard";

struct Witness {
    child: Child,
    key: VerifierKey,
    address: String,
}

impl Witness {
    fn start(home: &Path, log: &str) -> Self {
        let dir = home.join("witness");
        let mut command = guard(home, &["-o", "json", "witness", "serve", "--name", "w.example.org"]);
        let mut child = command
            .args(["--log", log, "--listen", "127.0.0.1:0", "--dir"])
            .arg(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let said: serde_json::Value = serde_json::from_str(&line).unwrap();
        Self {
            child,
            key: VerifierKey::parse(said["key"].as_str().unwrap()).unwrap(),
            address: said["url"].as_str().unwrap().replace("http://", ""),
        }
    }

    /// Status and body.
    fn post(&self, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        write!(
            stream,
            "POST /add-checkpoint HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn request(old: u64, size: u64, salt: &str, key: &SigningKey) -> AddCheckpoint {
    let tree = Tree::new((0..size).map(|n| leaf_hash(format!("{salt}{n}").as_bytes())).collect());
    let head = Checkpoint {
        origin: LOG.to_owned(),
        size,
        root: tree.root(),
    };
    AddCheckpoint {
        old,
        proof: tree.consistency(old).unwrap_or_default(),
        note: head.sign(key).unwrap(),
    }
}

#[test]
fn one_command_serves_a_witness_that_remembers() {
    let home = tempfile::tempdir().unwrap();
    let key = SigningKey::from_seed(&[3; 32]);
    let log = verifier_key(LOG, &key.public());
    let witness = Witness::start(home.path(), &log);
    let first = request(0, 5, "a", &key);
    let (status, line) = witness.post(&first.to_text());
    assert_eq!(status, 200, "{line}");
    let note = Note::parse(format!("{}{line}", first.note).as_bytes()).unwrap();
    assert!(witness.key.cosigned(&note).is_some());
    let before = witness.key.clone();
    // Killed and started again: the same key, and what it has seen.
    drop(witness);
    let witness = Witness::start(home.path(), &log);
    assert_eq!(witness.key, before);
    assert_eq!(
        witness.post(&request(0, 9, "a", &key).to_text()),
        (409, "5\n".to_owned())
    );
    assert_eq!(witness.post(&request(5, 9, "b", &key).to_text()).0, 422);
    assert_eq!(
        witness
            .post(&request(5, 9, "a", &SigningKey::from_seed(&[4; 32])).to_text())
            .0,
        403
    );
    assert_eq!(witness.post("x").0, 400);
    assert_eq!(witness.post(&"x".repeat(100_000)).0, 413);
    assert_eq!(witness.post(&request(5, 9, "a", &key).to_text()).0, 200);
    for file in ["witness.key", "witness"] {
        use std::os::unix::fs::PermissionsExt as _;
        let path = home.path().join("witness").join(file).canonicalize();
        let path = path.unwrap_or_else(|_| home.path().join("witness"));
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o077, 0, "{file}");
    }
}

#[test]
fn what_it_cannot_watch_it_says() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("witness");
    let serve = |more: &[&str]| {
        let mut command = guard(home.path(), &["witness", "serve", "--listen", "127.0.0.1:0", "--dir"]);
        run(command.arg(&dir).args(more))
    };
    serve(&["--name", "w"]).expect(2, &["which log", "guard evidence trust"]);
    serve(&["--name", "w x", "--log", "l"]).expect(2, &["cannot name a witness"]);
    serve(&["--name", "w", "--log", "garbage"]).expect(2, &["not a verifier key"]);
    let other = VerifierKey {
        name: "o".to_owned(),
        kind: guard_evidence::cosign::KeyKind::Witness,
        key: SigningKey::from_seed(&[1; 32]).public(),
    };
    serve(&["--name", "w", "--log", &other.to_string()]).expect(2, &["of a witness, not of a log"]);
    fs::write(home.path().join("trust.json"), "{}").unwrap();
    let trust = home.path().join("trust.json");
    serve(&["--name", "w", "--trust", trust.to_str().unwrap()]).expect(2, &["trust.json"]);
}
