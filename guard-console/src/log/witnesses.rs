//! Asking witnesses to sign a head (C2SP tlog-witness, as the client).
//!
//! Owns what each witness is thought to know. It is given heads that are signed and whose tiles are on disk. It must
//! never count a signature that it did not check, nor wait for one witness longer than for the others.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use guard_evidence::checkpoint::Note;
use guard_evidence::cosign::{self, VerifierKey};
use guard_evidence::folder::{Head, Proofs};
use guard_evidence::merkle::Hash;
use guard_evidence::text::visible_fold;
use guard_evidence::witness::AddCheckpoint;

use super::Log;
use super::sequencer::LogError;
use crate::config::{LogConfig, WitnessConfig};

/// For one request to one witness.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of a witness's answer.
const ANSWER_BYTES: usize = 16 << 10;

#[derive(Debug)]
pub(super) struct Witnesses {
    all: Vec<One>,
    quorum: usize,
}

#[derive(Debug)]
struct One {
    key: VerifierKey,
    url: String,
    client: Result<reqwest::Client, String>,
    /// The size that it signed last, as far as we know.
    known: Option<u64>,
}

impl Witnesses {
    pub(super) fn new(config: &LogConfig) -> Self {
        let all = config.witnesses.iter().map(|witness| One {
            key: witness.key.clone(),
            url: format!("{}/add-checkpoint", witness.url.trim_end_matches('/')),
            client: client(witness),
            known: None,
        });
        Self {
            all: all.collect(),
            quorum: config.quorum,
        }
    }

    /// The note of a staged head with the cosignatures that it got.
    ///
    /// # Errors
    /// [`LogError::Witnesses`]: too few.
    pub(super) async fn cosign(&mut self, log: &Log, head: Arc<Head>) -> Result<String, LogError> {
        let mut note = head.note.clone();
        if self.all.is_empty() {
            return Ok(note);
        }
        let published = log.head().map_or(0, |head| head.checkpoint.size);
        let asked = self.all.iter_mut().map(|one| one.ask(log, &head, published));
        let mut got = 0;
        let mut why = Vec::new();
        for answer in join_all(asked).await {
            match answer {
                Ok(line) => {
                    note.push_str(&line);
                    got += 1;
                }
                Err(error) => {
                    tracing::debug!(error, "a witness did not sign");
                    why.push(error);
                }
            }
        }
        if got < self.quorum {
            return Err(LogError::Witnesses {
                size: head.checkpoint.size,
                got,
                quorum: self.quorum,
                why: why.join("; "),
            });
        }
        Ok(note)
    }
}

impl One {
    async fn ask(&mut self, log: &Log, head: &Arc<Head>, published: u64) -> Result<String, String> {
        let told = |error: &dyn std::fmt::Display| format!("{}: {error}", self.key.name);
        let client = self.client.clone().map_err(|e| told(&e))?;
        let mut known = self.known.unwrap_or(published);
        // A witness that knows another size says which; once is enough.
        for _ in 0..2 {
            let proof = consistency(log, head.clone(), known).await.map_err(|e| told(&e))?;
            let request = AddCheckpoint {
                old: known,
                proof,
                note: head.note.clone(),
            };
            let (status, text) = post(&client, &self.url, request.to_text())
                .await
                .map_err(|e| told(&e))?;
            match status {
                200 => {
                    let line = checked(&self.key, head, &text).ok_or_else(|| told(&"its signature does not hold"))?;
                    self.known = Some(head.checkpoint.size);
                    return Ok(line);
                }
                409 => match text.trim_end().parse::<u64>() {
                    Ok(size) if size != known => known = size,
                    _ => return Err(told(&"it holds another head of this size: the log was forked")),
                },
                other => return Err(told(&format!("status {other}: {}", visible_fold(&text, 200)))),
            }
        }
        Err(told(&"it does not settle on the size that it knows"))
    }
}

/// The witness's own line, if its signature holds.
fn checked(key: &VerifierKey, head: &Head, answer: &str) -> Option<String> {
    cosign::lines(answer)?;
    answer.split_inclusive('\n').find_map(|line| {
        let note = Note::parse(format!("{}{line}", head.note).as_bytes()).ok()?;
        key.cosigned(&note).map(|_| line.to_owned())
    })
}

async fn consistency(log: &Log, head: Arc<Head>, old: u64) -> Result<Vec<Hash>, String> {
    if old == 0 {
        return Ok(Vec::new());
    }
    let size = head.checkpoint.size;
    if old > size {
        return Err(format!(
            "it knows {old} records, the log has {size}: the database is older than what was published"
        ));
    }
    let mut proofs = Proofs::new(&log.dir, head);
    let proof = tokio::task::spawn_blocking(move || proofs.consistency(old));
    let proof = proof.await.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
    proof.ok_or_else(|| format!("no proof from {old} records"))
}

async fn post(client: &reqwest::Client, url: &str, body: String) -> Result<(u16, String), String> {
    let mut response = client.post(url).body(body).send().await.map_err(|e| innermost(&e))?;
    let mut answer = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| innermost(&e))? {
        answer.extend_from_slice(&chunk);
        if answer.len() > ANSWER_BYTES {
            return Err("its answer is too long".to_owned());
        }
    }
    let text = String::from_utf8(answer).map_err(|_| "its answer is not UTF-8".to_owned())?;
    Ok((response.status().as_u16(), text))
}

/// The last cause says what happened.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn client(witness: &WitnessConfig) -> Result<reqwest::Client, String> {
    let mut builder = reqwest::Client::builder()
        .timeout(PATIENCE)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none());
    if let Some(path) = &witness.ca {
        let pem = std::fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let ca = reqwest::Certificate::from_pem(&pem).map_err(|e| innermost(&e))?;
        builder = builder.tls_certs_only([ca]);
    }
    builder.build().map_err(|e| innermost(&e))
}
