//! Server-sent events: what changed, for pages and programs alike.
//!
//! Owns the loop from wake-ups to events. A listener starts with every pending request (or, with `Last-Event-ID`, with
//! what changed since), so nothing between a list and its first event is missed. A stream ends with its session.

use std::time::Duration;

use axum::response::sse::{Event, KeepAlive, Sse};
use futures::Stream;
use guard_proto::rest::{ChangeView, Host, RequestState};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

use super::identity::Shared;
use crate::app::requests::Details;
use crate::app::{Actor, App, Error, Permission};
use crate::notify::Generation;
use crate::store::{ChangeFilter, RequestFilter};

const CHECK: Duration = Duration::from_secs(15);

/// Makes events of changes. `None`: this listener is not interested.
pub trait Render: Send + Sync + 'static {
    /// `None`: nothing to be sent.
    fn request(&self, app: &App, details: Details) -> impl Future<Output = Result<Option<Event>, Error>> + Send;
    fn host(&self, host: &Host) -> Option<Event>;
    fn change(&self, change: &ChangeView) -> Option<Event>;
    /// There are changes or alarms that were not there before.
    fn changed(&self) -> Option<Event> {
        None
    }
    /// Sent once when the listener knows everything up to now.
    fn ready(&self) -> Option<Event> {
        None
    }
}

/// The stream of one listener.
pub async fn events(
    app: Shared,
    actor: Actor,
    last_event_id: Option<u64>,
    render: impl Render,
) -> Result<Sse<impl Stream<Item = Result<Event, Error>>>, Error> {
    let (send, receive) = mpsc::channel(32);
    // Before the answer begins, so that nothing after it is missed.
    let requests = app.notify.watch_requests();
    let hosts = app.notify.watch_hosts();
    let change = app.last_change().await?;
    tokio::spawn(async move {
        let listener = Listener {
            app,
            actor,
            render,
            send,
        };
        if let Err(error) = listener.run(last_event_id, change, requests, hosts).await
            && !matches!(error, Error::SignInFirst | Error::Forbidden(_))
        {
            tracing::warn!(%error, "an event stream ended");
        }
    });
    Ok(Sse::new(ReceiverStream::new(receive)).keep_alive(KeepAlive::new().interval(CHECK).text("here")))
}

struct Listener<R> {
    app: Shared,
    actor: Actor,
    render: R,
    send: mpsc::Sender<Result<Event, Error>>,
}

/// The listener hung up.
struct Gone;

impl<R: Render> Listener<R> {
    async fn run(
        &self,
        last_event_id: Option<u64>,
        mut change: u64,
        mut requests: watch::Receiver<Generation>,
        mut hosts: broadcast::Receiver<String>,
    ) -> Result<(), Error> {
        let mut seen = *requests.borrow_and_update();
        let mut seq = match last_event_id {
            Some(seq) => seq,
            None => {
                let seq = self.app.latest_seq().await?;
                if self.send_pending(seq).await?.is_err() {
                    return Ok(());
                }
                seq
            }
        };
        let mut check = tokio::time::interval(CHECK);
        let mut ready = self.render.ready();
        loop {
            if self.send_changes(&mut seq).await?.is_err() {
                return Ok(());
            }
            if let Some(event) = ready.take() {
                // A listener who is gone is found out below.
                let _ = self.send.send(Ok(event)).await;
            }
            tokio::select! {
                () = self.send.closed() => return Ok(()),
                () = self.app.stopping.cancelled() => return Ok(()),
                changed = requests.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    let before = std::mem::replace(&mut seen, *requests.borrow_and_update());
                    if seen.sessions != before.sessions && !self.app.still_signed_in(&self.actor).await? {
                        return Ok(());
                    }
                    if seen.changes != before.changes && self.send_new_changes(&mut change).await?.is_err() {
                        return Ok(());
                    }
                    if seen.rules != before.rules && self.send_pending(seq).await?.is_err() {
                        return Ok(());
                    }
                }
                host = hosts.recv() => match host {
                    Ok(id) => self.send_host(&id).await?,
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Ok(()),
                },
                _ = check.tick() => if !self.app.still_signed_in(&self.actor).await? {
                    return Ok(());
                },
            }
        }
    }

    async fn send_changes(&self, seq: &mut u64) -> Result<Result<(), Gone>, Error> {
        loop {
            let changes = self.app.requests_changed_since(&self.actor, *seq).await?;
            if changes.is_empty() {
                return Ok(Ok(()));
            }
            for change in changes {
                *seq = change.row.seq;
                if self.send_one(change, *seq).await?.is_err() {
                    return Ok(Err(Gone));
                }
            }
        }
    }

    /// Changes of who may decide after `position`, oldest first.
    async fn send_new_changes(&self, position: &mut u64) -> Result<Result<(), Gone>, Error> {
        let filter = ChangeFilter {
            after: Some(*position),
            limit: 100,
            ..ChangeFilter::default()
        };
        let new = self.app.changes(&self.actor, filter).await?.items;
        let events = new.iter().rev().filter_map(|change| self.render.change(change));
        for event in events.chain(self.render.changed()) {
            if self.send.send(Ok(event)).await.is_err() {
                return Ok(Err(Gone));
            }
        }
        if let Some(newest) = new.first() {
            *position = newest.index;
        }
        Ok(Ok(()))
    }

    /// All that is pending. Their events carry the number from which to go on.
    async fn send_pending(&self, seq: u64) -> Result<Result<(), Gone>, Error> {
        let mut filter = RequestFilter {
            state: Some(RequestState::Pending),
            limit: 100,
            ..RequestFilter::default()
        };
        loop {
            let page = self.app.requests(&self.actor, filter.clone()).await?;
            for request in page.items {
                if self.send_one(request, seq).await?.is_err() {
                    return Ok(Err(Gone));
                }
            }
            match page.next.and_then(|next| next.parse().ok()) {
                Some(next) => filter.cursor = Some(next),
                None => return Ok(Ok(())),
            }
        }
    }

    async fn send_one(&self, details: Details, seq: u64) -> Result<Result<(), Gone>, Error> {
        let Some(event) = self.render.request(&self.app, details).await? else {
            return Ok(Ok(()));
        };
        Ok(self.send.send(Ok(event.id(seq.to_string()))).await.map_err(|_| Gone))
    }

    async fn send_host(&self, id: &str) -> Result<(), Error> {
        if !self.actor.may(Permission::SeeHosts) {
            return Ok(());
        }
        match self.app.host(&self.actor, id).await {
            Ok(host) => {
                if let Some(event) = self.render.host(&host) {
                    // A listener who is gone is found out in the loop.
                    let _ = self.send.send(Ok(event)).await;
                }
                Ok(())
            }
            Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}
