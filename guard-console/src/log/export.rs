//! Bundles on their way out, written as they are read: memory for hashes, not for records.

use std::io;
use std::time::Duration;

use guard_evidence::bundle::{Filter, Writer};
use guard_evidence::folder::Proofs;
use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::Log;
use crate::store::{RecordFilter, Store};
use crate::time::{now, rfc3339};

/// Bytes handed over at once.
const CHUNK: usize = 64 << 10;
/// Records read at once.
const BATCH: u64 = 200;
/// How long the newest records may take to be published.
const PUBLISHED: Duration = Duration::from_secs(20);

/// Pieces of the tar file; an error means that it is not whole.
pub type ExportStream = ReceiverStream<io::Result<Vec<u8>>>;

/// What goes into a bundle.
#[derive(Debug)]
pub struct Export {
    pub trust: Vec<u8>,
    /// As it was asked for, for the manifest.
    pub asked: Filter,
    pub filter: RecordFilter,
    pub store: Store,
}

impl Log {
    /// Begins to write a bundle. `None`: too many are being written.
    ///
    /// # Errors
    /// If the log cannot be read or its head not be signed.
    pub async fn export(&self, export: Export) -> Result<Option<ExportStream>, String> {
        let Ok(turn) = self.exports.clone().try_acquire_owned() else {
            return Ok(None);
        };
        // The log only grows: whatever is appended from here on lies beyond this head.
        let size = export.store.log_size().await.map_err(|e| e.to_string())?;
        let mut heads = self.heads();
        let enough = heads.wait_for(|head| head.as_ref().is_some_and(|head| head.checkpoint.size >= size));
        // Without its witnesses the log is published later; what there is can be proved now.
        let _ = tokio::time::timeout(PUBLISHED, enough).await;
        let head = self
            .head()
            .ok_or("the log has no published head yet; its log says why")?;
        let proofs = self.proofs(head);
        let origin = self.origin.clone();
        let (send, receive) = mpsc::channel(4);
        let handle = Handle::current();
        tokio::task::spawn_blocking(move || {
            let mut pipe = Pipe {
                send,
                buffer: Vec::with_capacity(CHUNK),
            };
            let result = write(export, proofs, &origin, &handle, &mut pipe, turn);
            if let Err(error) = result.and_then(|()| io::Write::flush(&mut pipe)) {
                tracing::warn!(%error, "an evidence export broke off");
                // Whoever reads learns that it is not whole, unless they are gone already.
                let _ = pipe.send.blocking_send(Err(error));
            }
        });
        Ok(Some(ReceiverStream::new(receive)))
    }
}

fn write(
    export: Export,
    mut proofs: Proofs,
    origin: &str,
    handle: &Handle,
    out: &mut Pipe,
    _turn: OwnedSemaphorePermit,
) -> io::Result<()> {
    let created_at = rfc3339(now());
    let head = proofs.head().clone();
    let mut bundle =
        Writer::new(out, &export.trust, &head.note, origin, export.asked, &created_at).map_err(io::Error::other)?;
    let mut filter = RecordFilter {
        limit: BATCH,
        cursor: Some(0),
        ..export.filter
    };
    loop {
        let leaves = handle
            .block_on(export.store.leaves(&filter, head.checkpoint.size))
            .map_err(io::Error::other)?;
        let Some(last) = leaves.last() else { break };
        filter.cursor = Some(last.position + 1);
        for leaf in leaves {
            let proof = proofs
                .inclusion(leaf.position)
                .map_err(io::Error::other)?
                .ok_or_else(|| io::Error::other("a record beyond the tree"))?;
            bundle
                .record(leaf.position, &leaf.envelope, proof)
                .map_err(io::Error::other)?;
        }
    }
    bundle.finish().map_err(io::Error::other)?;
    Ok(())
}

/// From a blocking writer to an async reader.
struct Pipe {
    send: mpsc::Sender<io::Result<Vec<u8>>>,
    buffer: Vec<u8>,
}

impl io::Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= CHUNK {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = std::mem::replace(&mut self.buffer, Vec::with_capacity(CHUNK));
        self.send
            .blocking_send(Ok(chunk))
            .map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}
