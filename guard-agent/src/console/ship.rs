//! Evidence on its way to the console.
//!
//! Owns reading the spool in order and remembering what is under way. It is given a channel. It must never delete what
//! the console has not acknowledged, and sends again whatever it is not sure of.

use std::collections::VecDeque;
use std::time::Duration;

use guard_evidence::dsse;
use guard_evidence::record::Statement;
use guard_evidence::spool::SpoolError;
use guard_evidence::text::visible_fold;
use guard_proto::limits::GRPC_MESSAGE_BYTES;
use guard_proto::v1::evidence_client::EvidenceClient;
use guard_proto::v1::{RecordBatch, RecordFrame, RecordsStored};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;
use tonic::transport::Channel;

use crate::evidence::Evidence;

const BATCH_RECORDS: usize = 256;
/// Room for one record beyond it stays below the limit of a message.
const BATCH_BYTES: usize = 512 << 10;
const UNDER_WAY: usize = 4;
const RETRY: Duration = Duration::from_secs(5);

/// One record that was sent.
#[derive(Debug, Clone, Copy)]
struct Sent {
    position: u64,
    epoch: u64,
    sequence: u64,
}

/// Ships for as long as the channel is used. Whatever is wrong with evidence must not keep people from being asked, so
/// it is tried again by itself.
pub(super) async fn run(channel: Channel, evidence: Evidence) {
    let mut last = String::new();
    loop {
        let ended = match ship(channel.clone(), &evidence).await {
            Ok(()) => "the console ended the evidence stream".to_owned(),
            Err(status) => visible_fold(&format!("{}: {}", status.code(), status.message()), 500),
        };
        if ended != last {
            tracing::error!(
                error = ended,
                unshipped = evidence.unshipped(),
                "evidence is not shipped; trying again"
            );
            last = ended;
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn ship(channel: Channel, evidence: &Evidence) -> Result<(), Status> {
    let mut client = EvidenceClient::new(channel)
        .max_decoding_message_size(GRPC_MESSAGE_BYTES)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES);
    let (send, receive) = mpsc::channel(UNDER_WAY);
    let mut stored = client.append(ReceiverStream::new(receive)).await?.into_inner();
    let mut durable = evidence.durable();
    let mut under_way: VecDeque<Sent> = VecDeque::new();
    let mut next = evidence.acknowledged() + 1;
    loop {
        let through = *durable.borrow_and_update();
        if next <= through {
            let permit = tokio::select! {
                permit = send.reserve() => permit.map_err(|_| Status::unavailable("the stream is closed"))?,
                message = stored.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    acknowledge(evidence, &mut under_way, &message);
                    continue;
                }
            };
            let (batch, sent) = read(evidence, next, through).await?;
            next = sent.last().map_or(next, |sent| sent.position + 1);
            under_way.extend(sent);
            permit.send(batch);
            continue;
        }
        tokio::select! {
            message = stored.message() => {
                let Some(message) = message? else { return Ok(()) };
                acknowledge(evidence, &mut under_way, &message);
            }
            changed = durable.changed() => changed.map_err(|_| Status::aborted("the evidence writer has ended"))?,
        }
    }
}

fn acknowledge(evidence: &Evidence, under_way: &mut VecDeque<Sent>, stored: &RecordsStored) {
    let mut through = None;
    while let Some(first) = under_way.front() {
        if first.epoch > stored.epoch || (first.epoch == stored.epoch && first.sequence > stored.through_sequence) {
            break;
        }
        through = Some(first.position);
        under_way.pop_front();
    }
    if let Some(through) = through {
        evidence.acknowledge(through);
    }
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
