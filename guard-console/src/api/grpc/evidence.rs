//! Records on their way to the log: answered with receipts when they are published.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use guard_proto::v1::evidence_server::Evidence;
use guard_proto::v1::{RecordBatch, RecordsStored};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{host, status};
use crate::app::receipts::Appended;
use crate::app::{App, Error};
use crate::ca::HostIdentity;
use crate::store::HostRow;
use crate::time;

/// How soon a revoked host's stream ends.
const RECHECK: Duration = Duration::from_secs(2);
/// Batches of one host that may wait for the log; more are not read.
const UNANSWERED: usize = 32;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) app: Arc<App>,
}

#[tonic::async_trait]
impl Evidence for Service {
    type AppendStream = Pin<Box<dyn Stream<Item = Result<RecordsStored, Status>> + Send>>;

    async fn append(&self, request: Request<Streaming<RecordBatch>>) -> Result<Response<Self::AppendStream>, Status> {
        let (host, identity) = host(&self.app, &request).await?;
        let (out, receive) = mpsc::channel(16);
        let app = self.app.clone();
        let batches = request.into_inner();
        tokio::spawn(async move {
            if let Err(end) = run(&app, host, &identity, batches, &out).await {
                // The host may be gone already.
                let _ = out.send(Err(end)).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

async fn run(
    app: &App,
    mut host: HostRow,
    identity: &HostIdentity,
    mut batches: Streaming<RecordBatch>,
    out: &mpsc::Sender<Result<RecordsStored, Status>>,
) -> Result<(), Status> {
    let mut recheck = tokio::time::interval(RECHECK);
    let mut heads = app.log_heads();
    let mut stored: VecDeque<Appended> = VecDeque::new();
    // What the host holds a head of: at first it says so, then it is what we sent.
    let mut known: Option<u64> = None;
    let mut ended = false;
    while !(ended && stored.is_empty()) {
        tokio::select! {
            batch = batches.message(), if !ended && stored.len() < UNANSWERED => match batch? {
                None => ended = true,
                Some(batch) if batch.records.is_empty() => {}
                Some(batch) => {
                    if known.is_none() {
                        known = Some(batch.known_size);
                        let contradiction = app.rolled_back(&host, batch.epoch, batch.known_size).await;
                        if let Some(head) = contradiction.map_err(status)?
                            && out.send(Ok(head)).await.is_err()
                        {
                            return Ok(());
                        }
                    }
                    let appended = app.append(&host, &batch).await.map_err(|error| match error {
                        // Sending it again changes nothing: the host's operator has to look.
                        Error::Invalid(why) => Status::failed_precondition(why),
                        other => status(other),
                    })?;
                    stored.push_back(appended);
                }
            },
            changed = heads.changed(), if !stored.is_empty() => {
                changed.map_err(|_| Status::unavailable("the log is not published any more"))?;
            }
            _ = recheck.tick() => {
                host = app.admitted_host(&host.id).await.map_err(status)?;
                if identity.not_after_ms <= time::now() {
                    return Err(Status::unauthenticated("the host's certificate has expired; connect with a renewed one"));
                }
            }
            () = out.closed() => return Ok(()),
            () = app.stopping.cancelled() => return Err(Status::unavailable("the console is stopping")),
        }
        let published = heads
            .borrow_and_update()
            .as_ref()
            .map_or(0, |head| head.checkpoint.size);
        while stored.front().is_some_and(|first| first.size() <= published) {
            let Some(first) = stored.pop_front() else { break };
            let (answer, sent) = app.receipts(first, known.unwrap_or(0)).await.map_err(status)?;
            known = Some(sent);
            if out.send(Ok(answer)).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}
