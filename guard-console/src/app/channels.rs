//! How channels go, for operators: what waits, what was given up and why.
//!
//! Owns which channels the database knows. It must never show what a message says, nor where a webhook leads.

use guard_proto::rest::{ChannelView, DeadLetter};

use super::{Actor, App, Permission, Result};
use crate::store;
use crate::time::rfc3339;

const DEAD_LETTERS: u64 = 1_000;

impl App {
    /// At the start: new channels begin with what is pending, and what is configured no more is forgotten.
    pub(super) async fn keep_channels(&self) -> Result<()> {
        let known = self.store.channels().await?;
        let mut change = self.store.change().await?;
        for row in known.iter().filter(|row| !self.channels.has(&row.name)) {
            tracing::info!(
                channel = row.name,
                waiting = row.waiting,
                "a channel is configured no more"
            );
            store::delete_channel(&mut change, &row.name).await?;
        }
        for name in self.channels.names() {
            store::put_channel(&mut change, name).await?;
        }
        change.commit().await?;
        Ok(())
    }

    pub async fn channels(&self, actor: &Actor) -> Result<Vec<ChannelView>> {
        actor.require(Permission::SeeChannels)?;
        let rows = self.store.channels().await?.into_iter();
        let views = rows.map(|row| ChannelView {
            name: row.name,
            waiting: row.waiting,
            oldest_waiting_at: row.oldest_waiting_at.map(rfc3339),
            dead_letters: row.dead,
            delivered_at: row.delivered_at.map(rfc3339),
            failed_at: row.failed_at.map(rfc3339),
            failed_because: row.failed_because,
        });
        Ok(views.collect())
    }

    /// Newest first.
    pub async fn dead_letters(&self, actor: &Actor) -> Result<Vec<DeadLetter>> {
        actor.require(Permission::SeeChannels)?;
        let rows = self.store.dead_letters(DEAD_LETTERS).await?.into_iter();
        let letters = rows.map(|row| DeadLetter {
            id: row.id,
            channel: row.channel,
            request_id: row.request_id,
            event: row.event,
            made_at: rfc3339(row.made_at),
            given_up_at: row.dead_at.map(rfc3339),
            attempts: row.attempts,
            why: row.why.unwrap_or_default(),
        });
        Ok(letters.collect())
    }
}
