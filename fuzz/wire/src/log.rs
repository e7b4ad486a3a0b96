//! The log: checkpoints, proofs, trust files, the tree, bundles and their verifier.

use std::fs;

use guard_evidence::bundle::{self, Bundle, Manifest};
use guard_evidence::checkpoint::{self, Note, Proof};
use guard_evidence::cosign::VerifierKey;
use guard_evidence::key::SigningKey;
use guard_evidence::merkle::{Tree, leaf_hash, verify_consistency, verify_inclusion};
use guard_evidence::tile::{self, Tile};
use guard_evidence::trust::{ConsoleTrust, RangedKey, Trust};
use guard_evidence::verify::{Asked, Report, Status, TrustSource, unreadable, verify};
use guard_evidence::witness::AddCheckpoint;

use crate::evidence::shown_safely;

/// The small texts of a log, and a tree made of the input.
pub fn log(data: &[u8]) {
    let key = SigningKey::from_seed(&[5; 32]);
    match Note::parse(data) {
        Ok(note) => {
            shown_safely(&note.checkpoint.origin);
            // Signed anew it is the same checkpoint.
            let Ok(text) = note.checkpoint.sign(&key) else {
                panic!("a parsed origin cannot be signed")
            };
            let verified = checkpoint::verify(text.as_bytes(), &note.checkpoint.origin, &[key.public()]);
            assert_eq!(verified.ok().as_ref(), Some(&note.checkpoint));
        }
        Err(error) => shown_safely(&error.to_string()),
    }
    if let Err(error) = checkpoint::verify(data, "console.example.org/guard", &[key.public()]) {
        shown_safely(&error.to_string());
    }
    match Proof::parse(data) {
        Ok(proof) => assert_eq!(proof.to_text().as_bytes(), data, "a second form is accepted"),
        Err(error) => shown_safely(&error.to_string()),
    }
    if let Some(request) = AddCheckpoint::parse(data) {
        assert_eq!(request.to_text().as_bytes(), data, "a second form is accepted");
    }
    if let Ok(text) = std::str::from_utf8(data) {
        if let Some(tile) = Tile::parse(text) {
            assert_eq!(tile.path(), text, "a second form is accepted");
        }
        match VerifierKey::parse(text) {
            Ok(key) => assert_eq!(key.to_string(), text, "a second form is accepted"),
            Err(error) => shown_safely(&error.to_string()),
        }
    }
    if let Some(entries) = tile::entries(data) {
        let mut again = Vec::new();
        assert!(entries.iter().all(|entry| tile::push_entry(&mut again, entry)));
        assert_eq!(again, data);
    }
    match Trust::parse(data) {
        Ok(trust) => {
            let again = trust.to_json().ok().and_then(|json| Trust::parse(&json).ok());
            assert_eq!(again, Some(trust));
        }
        Err(error) => shown_safely(&error.to_string()),
    }
    match Manifest::parse(data) {
        Ok(manifest) => {
            for name in manifest.files.keys() {
                assert!(
                    !name.contains("..") && !name.starts_with('/'),
                    "{name} leads out of the folder"
                );
            }
        }
        Err(error) => shown_safely(&error.to_string()),
    }
    tree(data);
}

fn tree(data: &[u8]) {
    let [index, old, rest @ ..] = data else { return };
    let leaves: Vec<_> = rest.chunks(3).take(70).map(leaf_hash).collect();
    let tree = Tree::new(leaves.clone());
    let (size, root) = (tree.size(), tree.root());
    let index = u64::from(*index);
    match tree.inclusion(index) {
        Some(proof) => {
            let leaf = &leaves[index as usize];
            assert!(verify_inclusion(leaf, index, size, &proof, &root).is_ok());
            let mut other = *leaf;
            other[0] ^= 1;
            assert!(verify_inclusion(&other, index, size, &proof, &root).is_err());
            assert!(verify_inclusion(leaf, index, size, &[&proof[..], &[root]].concat(), &root).is_err());
            if let Some((_, shorter)) = proof.split_last() {
                assert!(verify_inclusion(leaf, index, size, shorter, &root).is_err());
            }
        }
        None => assert!(index >= size),
    }
    let old = u64::from(*old);
    match tree.consistency(old) {
        Some(proof) => {
            let before = Tree::new(leaves[..old as usize].to_vec()).root();
            assert!(verify_consistency(old, size, &before, &root, &proof).is_ok());
            if old < size {
                assert!(verify_consistency(old, size, &root, &root, &proof).is_err() || before == root);
            }
        }
        None => assert!(old == 0 || old > size),
    }
}

/// A tar stream as somebody sends it: unpacked, opened, judged. No trusted key has signed anything in it.
pub fn bundle(data: &[u8]) {
    let dir = crate::spools::dir().with_extension("bundle");
    let _ = fs::remove_dir_all(&dir);
    let report = match bundle::unpack(data, &dir).and_then(|()| Bundle::open(&dir)) {
        Ok(bundle) => {
            let key = SigningKey::from_seed(&[5; 32]).public();
            let console = ConsoleTrust {
                origin: "console.example.org/guard".to_owned(),
                decision_keys: vec![RangedKey::only(key.clone())],
                log_keys: vec![RangedKey::only(key)],
                witnesses: vec![],
                quorum: 0,
            };
            verify(
                &bundle,
                &Trust::new(console, vec![]),
                TrustSource::Given,
                Asked::WholeLog,
            )
        }
        Err(error) => {
            shown_safely(&error.to_string());
            unreadable(&error)
        }
    };
    let _ = fs::remove_dir_all(&dir);
    never_valid(&report);
}

fn never_valid(report: &Report) {
    assert_ne!(report.status, Status::Valid, "nothing in it is signed by a trusted key");
    for section in &report.sections {
        shown_safely(&section.summary);
        for finding in &section.findings {
            shown_safely(&finding.text);
            shown_safely(finding.file.as_deref().unwrap_or_default());
        }
    }
}
