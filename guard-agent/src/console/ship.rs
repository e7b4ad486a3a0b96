//! Evidence on its way to the console.
//!
//! Owns reading the spool in order and remembering what is under way. It is given a channel. It must never delete what
//! it holds no receipt of, and sends again whatever it is not sure of.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guard_evidence::dsse;
use guard_evidence::merkle::leaf_hash;
use guard_evidence::record::{Lifecycle, Statement};
use guard_evidence::spool::SpoolError;
use guard_evidence::text::visible_fold;
use guard_proto::limits::GRPC_MESSAGE_BYTES;
use guard_proto::v1::evidence_client::EvidenceClient;
use guard_proto::v1::{RecordBatch, RecordFrame, RecordsStored};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use super::ConsoleState;
use super::witness::{LogTrust, LogWitness, NoReceipt, Sent};
use crate::evidence::Evidence;

const BATCH_RECORDS: usize = 256;
/// Room for one record beyond it stays below the limit of a message.
const BATCH_BYTES: usize = 512 << 10;
const UNDER_WAY: usize = 4;
const RETRY: Duration = Duration::from_secs(5);
/// While the log is refused again and again.
const RETRY_REFUSED: Duration = Duration::from_secs(60);
const _: () = assert!(BATCH_RECORDS <= guard_proto::limits::BATCH_RECORDS);

/// What shipping works with.
#[derive(Debug, Clone)]
pub(super) struct Shipping {
    pub(super) evidence: Evidence,
    /// Of the identity: what it remembers of the log is there.
    pub(super) directory: PathBuf,
    pub(super) trust: LogTrust,
    pub(super) state: Arc<ConsoleState>,
}

/// Why shipping ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{}", visible_fold(&format!("{}: {}", .0.code(), .0.message()), 500))]
    Status(#[from] Status),
    #[error(transparent)]
    NoReceipt(#[from] NoReceipt),
    #[error("the console ended the evidence stream")]
    Stream,
}

/// Ships for as long as the channel is used. Whatever is wrong with evidence must not keep people from being asked, so
/// it is tried again by itself.
pub(super) async fn run(channel: Channel, shipping: Shipping) {
    let mut last = String::new();
    loop {
        let ended = match ship(channel.clone(), &shipping).await {
            Ok(()) => Ended::Stream,
            Err(ended) => ended,
        };
        let mut pause = RETRY;
        let words = ended.to_string();
        if words == last {
            // Everything that has no receipt is sent again each time.
            if matches!(ended, Ended::NoReceipt(_)) {
                pause = RETRY_REFUSED;
            }
        } else {
            tracing::error!(
                error = words,
                unshipped = shipping.evidence.unshipped(),
                "evidence is not shipped and stays here; trying again"
            );
            last = words;
        }
        tokio::time::sleep(pause).await;
    }
}

async fn ship(channel: Channel, shipping: &Shipping) -> Result<(), Ended> {
    let evidence = &shipping.evidence;
    let mut witness = LogWitness::load(&shipping.directory, shipping.trust.clone())?;
    let mut client = EvidenceClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES);
    let (send, receive) = mpsc::channel(UNDER_WAY);
    let mut stored = client.append(ReceiverStream::new(receive)).await?.into_inner();
    let mut durable = evidence.durable();
    let mut under_way: VecDeque<Vec<Sent>> = VecDeque::new();
    let mut next = evidence.acknowledged() + 1;
    loop {
        let through = *durable.borrow_and_update();
        if next <= through {
            let permit = tokio::select! {
                permit = send.reserve() => permit.map_err(|_| Status::unavailable("the stream is closed"))?,
                message = stored.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    witness = acknowledge(shipping, witness, &mut under_way, message).await?;
                    continue;
                }
            };
            let (mut batch, sent) = read(evidence, next, through).await?;
            batch.known_size = witness.size();
            next = sent.last().map_or(next, |sent| sent.position + 1);
            under_way.push_back(sent);
            permit.send(batch);
            continue;
        }
        tokio::select! {
            message = stored.message() => {
                let Some(message) = message? else { return Ok(()) };
                witness = acknowledge(shipping, witness, &mut under_way, message).await?;
            }
            changed = durable.changed() => changed.map_err(|_| Status::aborted("the evidence writer has ended"))?,
        }
    }
}

/// Takes the receipts of the oldest batch; only then may it be deleted here.
async fn acknowledge(
    shipping: &Shipping,
    mut witness: LogWitness,
    under_way: &mut VecDeque<Vec<Sent>>,
    answer: RecordsStored,
) -> Result<LogWitness, Ended> {
    let batch = under_way
        .pop_front()
        .ok_or_else(|| Status::aborted("the console answered what was not sent"))?;
    let through = batch.last().map_or(0, |sent| sent.position);
    let checked = tokio::task::spawn_blocking(move || {
        let result = witness.accept(&answer, &batch);
        (witness, result)
    });
    let (witness, result) = checked.await.map_err(|e| Status::internal(e.to_string()))?;
    match result {
        Ok(()) => {
            shipping.evidence.acknowledge(through);
            shipping.state.saw_log(witness.size());
            Ok(witness)
        }
        Err(error) => {
            if let NoReceipt::Refused { because, offered } = &error {
                alarm(shipping, &witness, because, offered)?;
            }
            Err(error.into())
        }
    }
}

/// Makes a record of what was refused, once; it is loud here, for a console that forked its log will not show it.
fn alarm(shipping: &Shipping, witness: &LogWitness, because: &str, offered: &str) -> Result<(), NoReceipt> {
    let at = crate::clock::rfc3339(jiff::Timestamp::now());
    let Some(refused) = witness.remember(because, offered, &at)? else {
        return Ok(());
    };
    tracing::error!(
        because = refused.because,
        "THE CONSOLE'S LOG CONTRADICTS WHAT THIS HOST HAS SEEN OF IT. Nothing is deleted here any more until it continues \
         what was seen; both heads are in log-refused.json"
    );
    shipping.evidence.lifecycle(Lifecycle::LogRefused {
        because: refused.because.clone(),
        known: refused.known.clone(),
        offered: refused.offered.clone(),
    });
    shipping.state.refused_log(&refused);
    Ok(())
}

/// The next records of one epoch.
async fn read(evidence: &Evidence, from: u64, through: u64) -> Result<(RecordBatch, Vec<Sent>), Status> {
    let reader = evidence.reader();
    let frames = tokio::task::spawn_blocking(move || {
        let mut reader = reader.lock();
        reader.seek(from);
        match reader.read(through, BATCH_RECORDS, BATCH_BYTES) {
            // Acknowledged and deleted before we were told of it.
            Err(SpoolError::NoSuchPosition { first, .. }) if first > from => {
                reader.seek(first);
                reader.read(through, BATCH_RECORDS, BATCH_BYTES)
            }
            other => other,
        }
    })
    .await
    .map_err(|e| Status::internal(e.to_string()))?
    .map_err(|e| Status::data_loss(e.to_string()))?;
    let mut batch = RecordBatch {
        epoch: 0,
        records: Vec::new(),
        known_size: 0,
    };
    let mut sent = Vec::new();
    for (position, envelope) in frames {
        let (epoch, sequence) = place(&envelope)
            .ok_or_else(|| Status::data_loss(format!("record {position} of the spool has no place in a chain")))?;
        if batch.records.is_empty() {
            batch.epoch = epoch;
        } else if epoch != batch.epoch {
            break;
        }
        sent.push(Sent {
            position,
            epoch,
            sequence,
            leaf: leaf_hash(&envelope),
        });
        batch.records.push(RecordFrame { sequence, envelope });
    }
    if sent.is_empty() {
        return Err(Status::data_loss(format!("the spool has no record at {from}")));
    }
    Ok((batch, sent))
}

/// Epoch and sequence of an envelope from our own spool.
fn place(envelope: &[u8]) -> Option<(u64, u64)> {
    let parsed = dsse::parse(envelope).ok()?;
    let statement = Statement::from_payload(parsed.unverified_payload()).ok()?;
    statement.header().map(|header| (header.epoch, header.sequence))
}
