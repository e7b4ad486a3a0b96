//! Who is waiting for news: pages and programs that watch requests, and hosts that wait for decisions.
//!
//! Owns wake-ups only, never content: whoever is woken asks the store, so a wake-up that is missed or doubled does no
//! harm. It must never wait for a listener.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::{Notify as Wake, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::time::Millis;

/// Host changes that a slow listener may lag behind before it is told to look at everything.
const HOST_EVENTS: usize = 256;

#[derive(Debug)]
pub struct Notify {
    requests: watch::Sender<Generation>,
    hosts: broadcast::Sender<String>,
    streams: Mutex<HashMap<String, Arc<HostStream>>>,
    last_stream: AtomicU64,
}

/// Counts wake-ups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Generation {
    pub requests: u64,
    /// Who may answer what changed, without any request having changed.
    pub rules: u64,
    /// Somebody signed out or was disabled.
    pub sessions: u64,
    /// There is a new change of who may decide, or an alarm.
    pub changes: u64,
}

/// The one live stream of a host.
#[derive(Debug)]
pub struct HostStream {
    number: u64,
    /// There may be a decision to send.
    pub wake: Wake,
    /// A newer stream took over, or the host was revoked.
    pub ended: CancellationToken,
    pub revoked: CancellationToken,
    presence: Mutex<Presence>,
}

/// What heartbeats say, between two writes to the database.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    pub seen_at: Millis,
    pub enforcing: bool,
    pub lost_events: u64,
    /// How far the host's clock is ahead of ours, as of its last heartbeat; negative: behind.
    pub ahead_ms: Millis,
    pub dirty: bool,
}

impl HostStream {
    pub fn seen(&self, seen_at: Millis, health: Option<(bool, u64)>) {
        let mut presence = self.presence.lock();
        presence.seen_at = seen_at;
        presence.dirty = true;
        if let Some((enforcing, lost_events)) = health {
            presence.enforcing = enforcing;
            presence.lost_events = lost_events;
        }
    }

    pub fn set_ahead(&self, ahead_ms: Millis) {
        self.presence.lock().ahead_ms = ahead_ms;
    }

    #[must_use]
    pub fn presence(&self) -> Presence {
        *self.presence.lock()
    }
}

impl Default for Notify {
    fn default() -> Self {
        Self::new()
    }
}

impl Notify {
    #[must_use]
    pub fn new() -> Self {
        Self {
            requests: watch::Sender::default(),
            hosts: broadcast::Sender::new(HOST_EVENTS),
            streams: Mutex::default(),
            last_stream: AtomicU64::new(0),
        }
    }

    /// Requests changed: listeners ask the store for what is newer than what they have.
    pub fn requests_changed(&self) {
        self.requests.send_modify(|generation| generation.requests += 1);
    }

    /// Something else changed what people see of requests (an owner).
    pub fn refresh(&self) {
        self.requests.send_modify(|generation| generation.rules += 1);
    }

    /// A change of who may decide, or an alarm, is in the store.
    pub fn changed(&self) {
        self.requests.send_modify(|generation| generation.changes += 1);
    }

    /// Streams look whether their session still holds.
    pub fn sessions_ended(&self) {
        self.requests.send_modify(|generation| generation.sessions += 1);
    }

    #[must_use]
    pub fn watch_requests(&self) -> watch::Receiver<Generation> {
        self.requests.subscribe()
    }

    pub fn host_changed(&self, host_id: &str) {
        // Nobody listening is fine.
        let _ = self.hosts.send(host_id.to_owned());
    }

    #[must_use]
    pub fn watch_hosts(&self) -> broadcast::Receiver<String> {
        self.hosts.subscribe()
    }

    /// Registers a host's stream and ends its older one.
    #[must_use]
    pub fn open_stream(&self, host_id: &str, presence: Presence) -> Arc<HostStream> {
        let stream = Arc::new(HostStream {
            number: self.last_stream.fetch_add(1, Ordering::Relaxed),
            wake: Wake::new(),
            ended: CancellationToken::new(),
            revoked: CancellationToken::new(),
            presence: Mutex::new(presence),
        });
        if let Some(older) = self.streams.lock().insert(host_id.to_owned(), stream.clone()) {
            older.ended.cancel();
        }
        stream
    }

    /// Takes a stream off the list, unless a newer one has taken its place. Whether the host is offline now.
    pub fn close_stream(&self, host_id: &str, stream: &HostStream) -> bool {
        let mut streams = self.streams.lock();
        let current = streams
            .get(host_id)
            .is_some_and(|current| current.number == stream.number);
        if current {
            streams.remove(host_id);
        }
        current
    }

    #[must_use]
    pub fn stream(&self, host_id: &str) -> Option<Arc<HostStream>> {
        self.streams.lock().get(host_id).cloned()
    }

    /// Tells a host's stream, if it is connected here, that a decision may be waiting.
    pub fn decision_made(&self, host_id: &str) {
        if let Some(stream) = self.stream(host_id) {
            stream.wake.notify_one();
        }
    }

    /// Cuts a revoked host off.
    pub fn revoked(&self, host_id: &str) {
        if let Some(stream) = self.stream(host_id) {
            stream.revoked.cancel();
        }
    }

    /// Streams whose presence has changed since this was last asked.
    #[must_use]
    pub fn take_dirty(&self) -> Vec<(String, Presence)> {
        let mut dirty = Vec::new();
        for (id, stream) in self.streams.lock().iter() {
            let mut presence = stream.presence.lock();
            if std::mem::take(&mut presence.dirty) {
                dirty.push((id.clone(), *presence));
            }
        }
        dirty
    }
}
