//! The published log, and receipts from it: a record's place in the tree, for the host that sent it.
//!
//! Owns what a host is told of the log. It is given places of stored records. It must never give out a proof that it has
//! not checked itself: a host would take it for a fork.

use std::sync::Arc;
use std::time::Duration;

use guard_evidence::folder::Head;
use guard_evidence::merkle::{Hash, verify_inclusion};
use guard_evidence::tile::Tile;
use guard_proto::v1::{Receipt, RecordsStored};
use tokio::sync::watch;
use ulid::Ulid;

use super::{Actor, App, Error, Permission, Result};
use crate::store::{self, HostRow};

/// How long the first head may take after a start.
const PUBLISHED: Duration = Duration::from_secs(20);

/// Where a record of a batch stands in the log.
#[derive(Debug, Clone, Copy)]
pub struct Place {
    pub sequence: u64,
    pub index: u64,
    pub leaf: Hash,
}

/// A batch that is stored: a receipt is due for each record when the log is published.
#[derive(Debug)]
pub struct Appended {
    pub epoch: u64,
    pub places: Vec<Place>,
}

impl Appended {
    /// The size that a head needs to cover all of it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.places.iter().map(|place| place.index + 1).max().unwrap_or(0)
    }
}

impl App {
    /// The published head; changes are told.
    #[must_use]
    pub fn log_heads(&self) -> watch::Receiver<Option<Arc<Head>>> {
        self.log.heads()
    }

    /// The published head.
    ///
    /// # Errors
    /// [`Error::NotFound`] before there is one.
    pub fn log_head(&self) -> Result<Arc<Head>> {
        self.log
            .head()
            .ok_or_else(|| Error::not_found("published", "checkpoint"))
    }

    /// A tile of hashes: they tell nothing of what is in the records.
    pub async fn log_tile(self: &Arc<Self>, tile: Tile) -> Result<Vec<u8>> {
        let app = self.clone();
        let read = tokio::task::spawn_blocking(move || app.log.tile(tile));
        let bytes = read.await.map_err(|e| Error::internal(e.to_string()))?;
        let bytes = bytes.map_err(|e| Error::internal(e.to_string()))?;
        bytes.ok_or_else(|| Error::not_found("tile", &tile.path()))
    }

    /// A bundle of exact envelopes.
    pub async fn log_entries(self: &Arc<Self>, actor: &Actor, tile: Tile) -> Result<Vec<u8>> {
        actor.require(Permission::SeeEvidence)?;
        self.log_tile(tile).await
    }

    /// For a host that holds a head of more records than there are: our head, which contradicts it, and an alarm. Its batch
    /// would be refused for a gap that it cannot fill.
    ///
    /// # Errors
    /// If the database or the log fails.
    pub async fn rolled_back(&self, host: &HostRow, epoch: u64, known: u64) -> Result<Option<RecordsStored>> {
        if known <= self.store.log_size().await? {
            return Ok(None);
        }
        // The host says so itself, in a record, if that can be stored; this is for those who restored an old database.
        let detail =
            format!("holds a head of {known} records, more than this log has: the console's database was rolled back");
        self.raise_own(host, "log-rolled-back", &detail).await?;
        // Right after a start there may be none yet.
        let mut heads = self.log.heads();
        let _ = tokio::time::timeout(PUBLISHED, heads.wait_for(Option::is_some)).await;
        let stored = RecordsStored {
            epoch,
            checkpoint: self.log_head()?.note.clone().into_bytes(),
            old_size: known,
            ..RecordsStored::default()
        };
        Ok(Some(stored))
    }

    /// What a host gets for a batch that the published head covers. `known` is the size that it holds a head of.
    pub async fn receipts(&self, batch: Appended, known: u64) -> Result<(RecordsStored, u64)> {
        let head = self.log_head()?;
        let (note, size) = (head.note.clone(), head.checkpoint.size);
        let mut stored = RecordsStored {
            epoch: batch.epoch,
            through_sequence: batch.places.last().map_or(0, |place| place.sequence),
            checkpoint: note.into_bytes(),
            old_size: known,
            ..RecordsStored::default()
        };
        if known > size {
            return Ok((stored, known));
        }
        let mut proofs = self.log.proofs(head);
        let proved = tokio::task::spawn_blocking(move || {
            let failed = |e: &dyn std::fmt::Display| format!("tiles of the log: {e}");
            let consistency = proofs.consistency(known).map_err(|e| failed(&e))?.unwrap_or_default();
            let mut receipts = Vec::with_capacity(batch.places.len());
            for place in &batch.places {
                let hashes = proofs
                    .inclusion(place.index)
                    .map_err(|e| failed(&e))?
                    .unwrap_or_default();
                let root = proofs.head().checkpoint.root;
                verify_inclusion(&place.leaf, place.index, size, &hashes, &root).map_err(|e| failed(&e))?;
                receipts.push(Receipt {
                    sequence: place.sequence,
                    index: place.index,
                    hashes: bytes(&hashes),
                });
            }
            Ok::<_, String>((bytes(&consistency), receipts))
        });
        let proved = proved.await.map_err(|e| Error::internal(e.to_string()))?;
        (stored.consistency, stored.receipts) = proved.map_err(Error::Internal)?;
        Ok((stored, size))
    }

    /// An alarm about a host that no record of it is.
    async fn raise_own(&self, host: &HostRow, kind: &'static str, detail: &str) -> Result<()> {
        let mut change = self.store.change().await?;
        let id = Ulid::new().to_string();
        let new = store::add_alarm(&mut change, &id, &host.id, kind, detail, self.now()).await?;
        change.commit().await?;
        if new {
            tracing::error!(host = %host.name, kind, detail, "alarm");
            self.notify.host_changed(&host.id);
            self.notify.changed();
        }
        Ok(())
    }
}

fn bytes(hashes: &[Hash]) -> Vec<Vec<u8>> {
    hashes.iter().map(|hash| hash.to_vec()).collect()
}
