//! Tools that we did not write accept what we write, and reject it changed: securesystemslib of PyPI for envelopes, Go's
//! `sumdb/note` and `sumdb/tlog` for checkpoints, inclusion and consistency.
//!
//! `GUARD_PYTHON` names a Python that has `securesystemslib[crypto]`; without it `python3` is tried. Go is that of Debian
//! (golang-go, golang-golang-x-mod-dev). What is not there is skipped, with a word.
#![forbid(unsafe_code)]

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::chain::{Chain, Stamp};
use guard_evidence::checkpoint::{Checkpoint, verifier_key};
use guard_evidence::key::SigningKey;
use guard_evidence::merkle::{Tree, leaf_hash};
use guard_evidence::record::{Lifecycle, LifecycleRecord, Predicate};

const VERIFY: &str = r#"
import json, sys
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
raw = open(sys.argv[1], "rb").read()
envelope = Envelope.from_dict(json.loads(raw))
key = SSlibKey.from_crypto(load_pem_public_key(open(sys.argv[2], "rb").read()), keyid=sys.argv[3])
envelope.verify([key], threshold=1)
statement = json.loads(envelope.payload)
assert statement["_type"] == "https://in-toto.io/Statement/v1", statement
print("accepted", statement["predicateType"])
"#;

#[test]
fn securesystemslib_accepts_envelopes_and_rejects_changed_ones() {
    let python = std::env::var("GUARD_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let import = Command::new(&python)
        .args(["-c", "import securesystemslib.dsse, cryptography"])
        .output();
    if !import.is_ok_and(|out| out.status.success()) {
        println!("skipped: {python} has no securesystemslib[crypto] (set GUARD_PYTHON)");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let key = SigningKey::generate(&mut guard_evidence::rand_core::OsRng);
    let stamp = Stamp {
        at: "2026-11-21T10:00:00.000Z".to_owned(),
        since_boot_ns: 1,
        boot_id: "b".to_owned(),
    };
    let sealed = Chain::begin("host:H", 1)
        .seal(&key, stamp, |header| {
            let event = Lifecycle::EnforcementOff {
                why: "ünï\u{202E}".to_owned(),
                last_on: None,
            };
            Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }))
        })
        .unwrap();
    let (envelope, pem) = (dir.path().join("envelope.json"), dir.path().join("key.pem"));
    std::fs::write(&pem, key.public().to_pem().unwrap()).unwrap();
    let judge = |bytes: &[u8]| {
        std::fs::write(&envelope, bytes).unwrap();
        let out = Command::new(&python)
            .args(["-c", VERIFY])
            .args([&envelope, &pem])
            .arg(key.public().id())
            .output()
            .unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
        )
    };
    let (good, output) = judge(&sealed.envelope);
    assert!(
        good && output.contains("accepted urn:guard:record:lifecycle:v1"),
        "{output}"
    );
    // One byte inside the payload's base64, and one inside the signature's.
    for marker in [&b"\"payload\":\""[..], b"\"sig\":\""] {
        let at = sealed.envelope.windows(marker.len()).position(|w| w == marker).unwrap() + marker.len() + 8;
        let mut changed = sealed.envelope.clone();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let (good, output) = judge(&changed);
        assert!(!good && output.contains("Verif"), "{output}");
    }
}

const GO: &str = r#"
package main

import (
	"encoding/base64"
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Println("rejected", err)
		os.Exit(1)
	}
}

func hashes(text string) (out []tlog.Hash) {
	for _, line := range strings.Fields(text) {
		bytes, err := base64.StdEncoding.DecodeString(line)
		check(err)
		var hash tlog.Hash
		copy(hash[:], bytes)
		out = append(out, hash)
	}
	return
}

func open(path string, verifier note.Verifier) (int64, tlog.Hash) {
	text, err := os.ReadFile(path)
	check(err)
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	return size, hashes(lines[2])[0]
}

// vkey, old checkpoint, new checkpoint, consistency proof, leaf, index, inclusion proof
func main() {
	verifier, err := note.NewVerifier(os.Args[1])
	check(err)
	oldSize, oldRoot := open(os.Args[2], verifier)
	size, root := open(os.Args[3], verifier)
	check(tlog.CheckTree(tlog.TreeProof(hashes(os.Args[4])), size, root, oldSize, oldRoot))
	leaf, err := os.ReadFile(os.Args[5])
	check(err)
	index, err := strconv.ParseInt(os.Args[6], 10, 64)
	check(err)
	check(tlog.CheckRecord(tlog.RecordProof(hashes(os.Args[7])), size, root, index, tlog.RecordHash(leaf)))
	fmt.Println("accepted")
}
"#;

#[test]
fn go_accepts_checkpoints_and_proofs_and_rejects_changed_ones() {
    let (go, path) = ("/usr/bin/go", "/usr/share/gocode");
    if !std::path::Path::new(go).exists()
        || !std::path::Path::new(path)
            .join("src/golang.org/x/mod/sumdb/note")
            .exists()
    {
        println!("skipped: Debian's golang-go and golang-golang-x-mod-dev are needed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let program = dir.path().join("check");
    let built = Command::new(go)
        .args(["build", "-o"])
        .arg(&program)
        .arg(file("main.go", GO.as_bytes()))
        .env("GO111MODULE", "off")
        .env("GOPATH", path)
        .env("GOCACHE", dir.path().join("cache"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let key = SigningKey::generate(&mut guard_evidence::rand_core::OsRng);
    let origin = "guard.example.org/log";
    let leaves: Vec<Vec<u8>> = (0..1000).map(|n| format!("envelope {n}").into_bytes()).collect();
    let tree = |n: usize| Tree::new(leaves[..n].iter().map(|l| leaf_hash(l)).collect());
    let note = |tree: &Tree| {
        Checkpoint {
            origin: origin.to_owned(),
            size: tree.size(),
            root: tree.root(),
        }
        .sign(&key)
        .unwrap()
    };
    let text = |hashes: &[[u8; 32]]| hashes.iter().map(|h| STANDARD.encode(h)).collect::<Vec<_>>().join(" ");
    let vkey = verifier_key(origin, &key.public());
    for (old, new, index) in [
        (1, 2, 0),
        (255, 256, 255),
        (256, 257, 256),
        (511, 1000, 3),
        (1000, 1000, 999),
    ] {
        let (old, new) = (tree(old), tree(new));
        let (old_note, new_note) = (file("old", note(&old).as_bytes()), file("new", note(&new).as_bytes()));
        let consistency = text(&new.consistency(old.size()).unwrap());
        let inclusion = text(&new.inclusion(index).unwrap());
        let leaf = file("leaf", &leaves[usize::try_from(index).unwrap()]);
        let judge = |vkey: &str, leaf: &str, index: u64, consistency: &str| {
            let args = [
                vkey,
                &old_note,
                &new_note,
                consistency,
                leaf,
                &index.to_string(),
                &inclusion,
            ];
            let out = Command::new(&program).args(args).output().unwrap();
            (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
        };
        assert_eq!(
            judge(&vkey, &leaf, index, &consistency),
            (true, "accepted\n".to_owned())
        );
        assert!(!judge(&vkey, &file("other", b"another leaf"), index, &consistency).0);
        assert!(!judge(&vkey, &leaf, index + 1, &consistency).0);
        assert!(
            !judge(
                &vkey,
                &leaf,
                index,
                &format!("{} {consistency}", STANDARD.encode([1; 32]))
            )
            .0
        );
        let other = SigningKey::from_seed(&[1; 32]).public();
        assert!(!judge(&verifier_key(origin, &other), &leaf, index, &consistency).0);
        file(
            "new",
            note(&new).replacen(&new.size().to_string(), "1001", 1).as_bytes(),
        );
        assert!(!judge(&vkey, &leaf, index, &consistency).0);
    }
}
