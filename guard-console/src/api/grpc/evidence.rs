//! Records on their way to the log: acknowledged when they are on disk.

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
use crate::app::{App, Error};
use crate::ca::HostIdentity;
use crate::store::HostRow;
use crate::time;

/// How soon a revoked host's stream ends.
const RECHECK: Duration = Duration::from_secs(2);

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
    loop {
        let batch = tokio::select! {
            batch = batches.message() => batch?,
            _ = recheck.tick() => {
                host = app.admitted_host(&host.id).await.map_err(status)?;
                if identity.not_after_ms <= time::now() {
                    return Err(Status::unauthenticated("the host's certificate has expired; connect with a renewed one"));
                }
                continue;
            }
            () = out.closed() => return Ok(()),
            () = app.stopping.cancelled() => return Err(Status::unavailable("the console is stopping")),
        };
        let Some(batch) = batch else { return Ok(()) };
        if batch.records.is_empty() {
            continue;
        }
        let through_sequence = app.append(&host, &batch).await.map_err(|error| match error {
            // Sending it again changes nothing: the host's operator has to look.
            Error::Invalid(why) => Status::failed_precondition(why),
            other => status(other),
        })?;
        let stored = RecordsStored {
            epoch: batch.epoch,
            through_sequence,
        };
        if out.send(Ok(stored)).await.is_err() {
            return Ok(());
        }
    }
}
