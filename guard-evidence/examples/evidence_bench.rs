//! What evidence costs: signing, group commit, sequencing, proofs and verifying, one line of JSON each.
//!
//! `evidence_bench DIR SIZE…`: works in an empty folder `DIR`, with logs that grow to each size. For `cargo xtask bench
//! evidence`, which builds it as it is shipped.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its output")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use guard_evidence::chain::{Chain, Stamp};
use guard_evidence::checkpoint::Checkpoint;
use guard_evidence::dsse;
use guard_evidence::folder::{Folder, Head, Proofs};
use guard_evidence::key::SigningKey;
use guard_evidence::merkle::{leaf_hash, verify_consistency, verify_inclusion};
use guard_evidence::record::{Effect, EnforcementRecord, Predicate, Verdict};
use guard_evidence::spool::{Options, Spool};

/// As the agent's writer groups them.
const GROUP: usize = 256;
/// As the console's sequencer does.
const BATCH: usize = 1_024;
const RECORDS: usize = 20_000;
const PROOFS: u64 = 500;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("evidence_bench DIR SIZE…")?;
    let sizes: Vec<u64> = args.map(|size| size.parse()).collect::<Result<_, _>>()?;
    let key = SigningKey::from_seed(&[1; 32]);
    let envelopes = records(Path::new(&dir), &key)?;
    verify(&key, &envelopes)?;
    log(Path::new(&dir), &key, &envelopes, &sizes)
}

fn line(what: &str, number: u64, nanoseconds: u128, bytes: usize) {
    println!(r#"{{"what":"{what}","number":{number},"nanoseconds":{nanoseconds},"bytes":{bytes}}}"#);
}

/// Signs records as a host does and makes them durable in groups.
fn records(dir: &Path, key: &SigningKey) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut chain = Chain::begin("host:01JD0000000000000000000001", 1);
    let options = Options {
        segment_bytes: 8 << 20,
        max_bytes: 1 << 30,
    };
    let mut spool = Spool::open(&dir.join("spool"), options)?.spool;
    let mut envelopes = Vec::with_capacity(RECORDS);
    let begun = Instant::now();
    for n in 0..RECORDS {
        let stamp = Stamp {
            at: "2026-11-21T10:00:00.000Z".to_owned(),
            since_boot_ns: n as u64,
            boot_id: "6b1c7f0e-0000-4000-8000-000000000000".to_owned(),
        };
        let sealed = chain.seal(key, stamp, |header| {
            Predicate::Enforcement(Box::new(EnforcementRecord {
                header,
                label: "coder".to_owned(),
                request_id: Some("01JD8Z00000000000000000000".to_owned()),
                request_digest: Some("ab".repeat(32)),
                decision_digest: Some("cd".repeat(32)),
                by_policy: None,
                verdict: Verdict::Allow,
                effect: Effect::Ran,
                resume_ns: 1,
            }))
        })?;
        spool.append(&sealed.envelope)?;
        envelopes.push(sealed.envelope);
        if envelopes.len().is_multiple_of(GROUP) {
            spool.sync()?;
        }
    }
    spool.sync()?;
    let bytes = envelopes.iter().map(Vec::len).sum::<usize>() / RECORDS;
    line("sign and append", RECORDS as u64, begun.elapsed().as_nanos(), bytes);
    Ok(envelopes)
}

fn verify(key: &SigningKey, envelopes: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    let public = key.public();
    let begun = Instant::now();
    for envelope in envelopes {
        dsse::parse(envelope)?.verify(&public)?;
    }
    line("verify signature", RECORDS as u64, begun.elapsed().as_nanos(), 0);
    Ok(())
}

/// Sequences a log up to each size and proves from it.
fn log(dir: &Path, key: &SigningKey, envelopes: &[Vec<u8>], sizes: &[u64]) -> Result<(), Box<dyn Error>> {
    let origin = "guard.example.org/guard";
    let dir = dir.join("log");
    let mut folder = Folder::open(&dir, origin, &[key.public()])?;
    let mut last: Option<Arc<Head>> = None;
    for size in sizes {
        let (from, begun) = (folder.size(), Instant::now());
        let mut head = None;
        while folder.size() < *size {
            let rest = usize::try_from(*size - folder.size())?.min(BATCH);
            let begin = usize::try_from(folder.size())?;
            let leaves: Vec<&[u8]> = (begin..begin + rest)
                .map(|n| envelopes[n % envelopes.len()].as_slice())
                .collect();
            folder.stage(&leaves)?;
            let checkpoint = Checkpoint {
                origin: origin.to_owned(),
                size: folder.size(),
                root: folder.root()?,
            };
            head = Some(folder.publish(checkpoint.sign(key)?)?);
        }
        line("sequence", *size - from, begun.elapsed().as_nanos(), 0);
        let Some(head) = head else { continue };
        prove(&dir, envelopes, &head, last.as_deref())?;
        last = Some(head);
    }
    Ok(())
}

fn prove(dir: &Path, envelopes: &[Vec<u8>], head: &Arc<Head>, last: Option<&Head>) -> Result<(), Box<dyn Error>> {
    let (size, root) = (head.checkpoint.size, head.checkpoint.root);
    let mut proofs = Vec::new();
    let begun = Instant::now();
    for n in 0..PROOFS {
        // Spread over the log, each from nothing: no tile is kept from the one before.
        let index = n.wrapping_mul(0x9E37_79B9_7F4A_7C15) % size;
        let proof = Proofs::new(dir, head.clone())
            .inclusion(index)?
            .ok_or("beyond the log")?;
        proofs.push((index, proof));
    }
    let hashes = proofs.iter().map(|(_, proof)| proof.len()).max().unwrap_or(0);
    line(
        &format!("prove {size}"),
        PROOFS,
        begun.elapsed().as_nanos(),
        32 * hashes,
    );
    let begun = Instant::now();
    for (index, proof) in &proofs {
        let envelope = &envelopes[usize::try_from(*index)? % envelopes.len()];
        verify_inclusion(&leaf_hash(envelope), *index, size, proof, &root)?;
    }
    line(&format!("check {size}"), PROOFS, begun.elapsed().as_nanos(), 0);
    if let Some(last) = last {
        let begun = Instant::now();
        let proof = Proofs::new(dir, head.clone())
            .consistency(last.checkpoint.size)?
            .ok_or("no proof")?;
        verify_consistency(last.checkpoint.size, size, &last.checkpoint.root, &root, &proof)?;
        line(
            &format!("consistency {size}"),
            1,
            begun.elapsed().as_nanos(),
            32 * proof.len(),
        );
    }
    Ok(())
}
