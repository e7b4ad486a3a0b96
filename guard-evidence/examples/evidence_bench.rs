//! What evidence costs: signing, group commit, sequencing, proofs and verifying, one line of JSON each. It fails when a proof
//! is longer than the logarithm of its log.
//!
//! `evidence_bench DIR SIZE…`: works in an empty folder `DIR`, with logs that grow to each size. For `cargo xtask bench
//! evidence`, which builds it as it is shipped.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "its output")]

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use guard_evidence::chain::{Chain, Stamp};
use guard_evidence::checkpoint::Checkpoint;
use guard_evidence::dsse;
use guard_evidence::folder::{Folder, Head, Proofs};
use guard_evidence::key::{Algorithm, SigningKey};
use guard_evidence::merkle::{leaf_hash, verify_consistency, verify_inclusion};
use guard_evidence::record::{
    Action, Answer, DecidedBy, DecisionRecord, Effect, EnforcementRecord, ExecAction, Header, HostFacts, MatchedRule,
    PersonId, Predicate, ProcessFacts, RequestRecord, SignedDecision, Statement, Verdict, Why, WorkloadFacts,
};
use guard_evidence::spool::{Options, Spool};
use guard_evidence::text::Text;

/// As the agent's writer groups them.
const GROUP: usize = 256;
/// As the console's sequencer does.
const BATCH: u64 = 1_024;
const RECORDS: usize = 20_000;
const PROOFS: u64 = 500;
const REAL_LEAVES: u64 = 1_000_000;
const ORIGIN: &str = "guard.example.org/guard";
const HOST: &str = "host:01JD0000000000000000000001";

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().ok_or("evidence_bench DIR SIZE…")?;
    let sizes: Vec<u64> = args.map(|size| size.parse()).collect::<Result<_, _>>()?;
    let key = SigningKey::from_seed(&[1; 32]);
    let envelopes = records(Path::new(&dir), "sign and append", &key)?;
    verify("verify", &key, &envelopes)?;
    let p256 = SigningKey::generate_for(Algorithm::P256, &mut guard_evidence::rand_core::OsRng);
    let by_p256 = records(Path::new(&dir), "sign and append, P-256", &p256)?;
    verify("verify, P-256", &p256, &by_p256)?;
    action(&key)?;
    log(Path::new(&dir), &key, &envelopes, &sizes)
}

fn line(what: &str, number: u64, nanoseconds: u128, bytes: usize) {
    println!(r#"{{"what":"{what}","number":{number},"nanoseconds":{nanoseconds},"bytes":{bytes}}}"#);
}

fn stamp(n: u64) -> Stamp {
    Stamp {
        at: "2026-11-21T10:00:00.000Z".to_owned(),
        since_boot_ns: n,
        boot_id: "6b1c7f0e-0000-4000-8000-000000000000".to_owned(),
    }
}

fn enforcement(header: Header) -> Predicate {
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
}

/// Signs records as a host does and makes them durable in groups.
fn records(dir: &Path, what: &str, key: &SigningKey) -> Result<Vec<Vec<u8>>, Box<dyn Error>> {
    let mut chain = Chain::begin(HOST, 1);
    let options = Options {
        segment_bytes: 8 << 20,
        max_bytes: 1 << 30,
    };
    let mut spool = Spool::open(&dir.join(key.public().id()), options)?.spool;
    let mut envelopes = Vec::with_capacity(RECORDS);
    let begun = Instant::now();
    for n in 0..RECORDS {
        let sealed = chain.seal(key, stamp(n as u64), enforcement)?;
        spool.append(&sealed.envelope)?;
        envelopes.push(sealed.envelope);
        if envelopes.len().is_multiple_of(GROUP) {
            spool.sync()?;
        }
    }
    spool.sync()?;
    let bytes = envelopes.iter().map(Vec::len).sum::<usize>() / RECORDS;
    line(what, RECORDS as u64, begun.elapsed().as_nanos(), bytes);
    Ok(envelopes)
}

/// What a verifier does with each envelope by itself: signature, then statement.
fn verify(what: &str, key: &SigningKey, envelopes: &[Vec<u8>]) -> Result<(), Box<dyn Error>> {
    let public = key.public();
    let begun = Instant::now();
    for envelope in envelopes {
        Statement::from_payload(&dsse::parse(envelope)?.verify(&public)?.payload)?;
    }
    line(what, RECORDS as u64, begun.elapsed().as_nanos(), 0);
    Ok(())
}

/// The three records of an exec that one person approved, as large as a short command line makes them.
fn action(key: &SigningKey) -> Result<(), Box<dyn Error>> {
    let mut chain = Chain::begin(HOST, 1);
    let begun = Instant::now();
    let digest = "ab".repeat(32);
    let text = |words: &[&str]| words.iter().map(|word| Text::from(*word)).collect::<Vec<_>>();
    let process = |pid, argv: &[&str]| ProcessFacts {
        pid,
        start_ns: 900_000_000,
        comm: Text::from("bash"),
        executable: Some(Text::from("/usr/bin/bash")),
        argv: text(argv),
        uid: 1000,
    };
    let request = chain.seal(key, stamp(1), |header| {
        Predicate::Request(Box::new(RequestRecord {
            header,
            request_id: "01JD8Z00000000000000000000".to_owned(),
            host: HostFacts {
                id: "01JD0000000000000000000001".to_owned(),
                name: "build-7".to_owned(),
                kernel: "6.12.0-amd64".to_owned(),
                agent_version: "0.1.0".to_owned(),
            },
            workload: WorkloadFacts {
                label: "coder".to_owned(),
                cgroup: Text::from("/guard.slice/run-01JD8Z00000000000000000000.scope"),
                container_id: None,
                uid: 1000,
                gid: 1000,
                user: Some("agent".to_owned()),
                login_uid: Some(1000),
                pid: 4242,
                tid: 4242,
                ancestry: vec![
                    process(4242, &["bash", "agent.sh"]),
                    process(4000, &["bash", "-l"]),
                    process(1, &["/sbin/init"]),
                ],
            },
            action: Action::Exec(Box::new(ExecAction {
                path: Some(Text::from("/usr/bin/git")),
                unlinked: false,
                device: 2049,
                inode: 1311,
                generation: 77,
                sha256: Some(digest.clone()),
                size: Some(3_900_104),
                given: Text::from("git"),
                argv: text(&["git", "push", "--force", "origin", "main"]),
                argv_count: 5,
                argv_sha256: digest.clone(),
                argv_truncated: false,
                environment: text(&["PATH=/usr/local/bin:/usr/bin:/bin"]),
                environment_count: 21,
                environment_sha256: digest.clone(),
                cwd: Text::from("/srv/app"),
            })),
            context: None,
            why: Why {
                rules: vec![MatchedRule {
                    id: "code-push".to_owned(),
                    description: "pushes need review".to_owned(),
                }],
                approver_groups: vec!["code-push".to_owned()],
                quorum: 1,
                policy_digest: digest.clone(),
                risks: vec![],
                tags: vec![],
            },
            claims: None,
            nonce: digest.clone(),
            expires_at: None,
        }))
    })?;
    let person = |subject: &str| PersonId {
        issuer: "local".to_owned(),
        subject: subject.to_owned(),
    };
    let signed = SignedDecision {
        console: ORIGIN.to_owned(),
        host_id: "01JD0000000000000000000001".to_owned(),
        request_id: "01JD8Z00000000000000000000".to_owned(),
        request_digest: digest.clone(),
        nonce: digest.clone(),
        verdict: Verdict::Allow,
        answers: vec![Answer {
            who: person("bob"),
            name: "bob".to_owned(),
            groups: vec!["code-push".to_owned()],
            roles: vec!["approver".to_owned()],
            verdict: Verdict::Allow,
            reason: "release night".to_owned(),
            at: "2026-11-21T10:00:01.000Z".to_owned(),
            channel: "web".to_owned(),
            signed_in_at: "2026-11-21T09:00:00.000Z".to_owned(),
            shown_digest: digest.clone(),
            authentication: None,
        }],
        quorum: 1,
        owner: Some(person("ann")),
        changes: None,
        grant: None,
        issued_at: "2026-11-21T10:00:01.000Z".to_owned(),
        expires_at: "2026-11-21T10:01:01.000Z".to_owned(),
    };
    let payload = Statement::new(Predicate::SignedDecision(Box::new(signed))).to_payload()?;
    let envelope = STANDARD.encode(dsse::sign(&payload, key)?);
    let decision = chain.seal(key, stamp(2), |header| {
        Predicate::Decision(Box::new(DecisionRecord {
            header,
            request_id: "01JD8Z00000000000000000000".to_owned(),
            request_digest: digest.clone(),
            verdict: Verdict::Allow,
            by: DecidedBy::People { envelope },
            received_at: "2026-11-21T10:00:02.000Z".to_owned(),
        }))
    })?;
    let ran = chain.seal(key, stamp(3), enforcement)?;
    let bytes = [request, decision, ran]
        .iter()
        .map(|sealed| sealed.envelope.len())
        .sum();
    line("records of one approved exec", 1, begun.elapsed().as_nanos(), bytes);
    Ok(())
}

/// A leaf: real records in the first million; beyond, so that ten million fit a disk, short ones.
fn leaf(envelopes: &[Vec<u8>], index: u64) -> Vec<u8> {
    let real = usize::try_from(index).ok().filter(|_| index < REAL_LEAVES);
    let envelope = real.and_then(|index| envelopes.get(index % envelopes.len()));
    envelope
        .cloned()
        .unwrap_or_else(|| format!("record {index}").into_bytes())
}

/// Sequences a log up to each size and proves from it.
fn log(dir: &Path, key: &SigningKey, envelopes: &[Vec<u8>], sizes: &[u64]) -> Result<(), Box<dyn Error>> {
    let dir = dir.join("log");
    let mut folder = Folder::open(&dir, ORIGIN, &[key.public()])?;
    let mut last: Option<Arc<Head>> = None;
    for size in sizes {
        let (from, begun) = (folder.size(), Instant::now());
        let mut head = None;
        while folder.size() < *size {
            let begin = folder.size();
            let end = (*size).min(begin + BATCH);
            let leaves: Vec<Vec<u8>> = (begin..end).map(|index| leaf(envelopes, index)).collect();
            folder.stage(&leaves)?;
            let checkpoint = Checkpoint {
                origin: ORIGIN.to_owned(),
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
    let levels = usize::try_from(u64::BITS - (size - 1).leading_zeros())?;
    if hashes > levels {
        return Err(format!("a proof of {hashes} hashes for a log of {size} records, more than {levels}").into());
    }
    line(
        &format!("prove {size}"),
        PROOFS,
        begun.elapsed().as_nanos(),
        32 * hashes,
    );
    let begun = Instant::now();
    for (index, proof) in &proofs {
        verify_inclusion(&leaf_hash(&leaf(envelopes, *index)), *index, size, proof, &root)?;
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
