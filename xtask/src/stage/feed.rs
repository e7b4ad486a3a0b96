//! The console's event stream as a table of requests that other threads can wait on.
//! Given a guest and a token. Never asks the console anything else: after a gap it says that it has one.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Request, curl_config};
use crate::vm::{Event, Running, Vm};

const CONFIG: &str = "/run/stage/feed.conf";
/// Keeps one stream open, again after every cut; the headers of each new one mark the gap before it.
const LOOP: &str = "while :; do curl --config /run/stage/feed.conf; printf '\\n\\n'; sleep 0.2; done";

#[derive(Debug)]
pub(super) struct Feed {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    table: Mutex<Table>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Table {
    // ULIDs sort by time.
    requests: BTreeMap<String, Request>,
    gap: bool,
}

impl Feed {
    pub(super) fn start(vm: &Vm, token: &str) -> Result<Self> {
        let more = ["no-buffer", "include", r#"header = "Accept: text/event-stream""#];
        let config = curl_config(Some(token), "GET", "/events", None, &more);
        vm.write(config.as_bytes(), CONFIG, 0o600)?;
        let running = vm.start_command(&["bash", "-c", LOOP])?;
        let shared = Arc::new(Shared {
            table: Mutex::new(Table {
                gap: true,
                ..Table::default()
            }),
            ..Shared::default()
        });
        let for_reader = Arc::clone(&shared);
        std::thread::spawn(move || read(running, &for_reader));
        Ok(Self { shared })
    }

    /// The first request that is `wanted`, now or before `deadline`; `None` also when a gap wants to be closed first.
    pub(super) fn wait(&self, deadline: Instant, wanted: &mut dyn FnMut(&Request) -> bool) -> Option<Request> {
        let mut table = self.shared.lock();
        loop {
            if let Some(found) = table.requests.values().find(|request| wanted(request)) {
                return Some(found.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if table.gap || left.is_zero() {
                return None;
            }
            table = self
                .shared
                .changed
                .wait_timeout(table, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Whether events may have been missed since the last call.
    pub(super) fn take_gap(&self) -> bool {
        std::mem::take(&mut self.shared.lock().gap)
    }

    /// Puts a page of `GET /requests` into the table.
    pub(super) fn merge_page(&self, body: &[u8]) -> Result<()> {
        #[derive(Deserialize)]
        struct Page {
            items: Vec<Request>,
        }
        let page: Page = serde_json::from_slice(body)
            .with_context(|| format!("not a page of requests: {}", String::from_utf8_lossy(body)))?;
        for request in page.items {
            self.shared.merge(request);
        }
        Ok(())
    }

    /// Puts one request as the console just gave it into the table.
    pub(super) fn merge(&self, request: Request) {
        self.shared.merge(request);
    }

    pub(super) fn all(&self) -> Vec<Request> {
        self.shared.lock().requests.values().cloned().collect()
    }

    pub(super) fn summary(&self) -> String {
        let table = self.shared.lock();
        if table.requests.is_empty() {
            return "none".into();
        }
        let line = |request: &Request| {
            let outcome = request.outcome.as_deref().unwrap_or("no outcome");
            format!(
                "\n  {} {} {} `{}` ({outcome})",
                request.id, request.state, request.label, request.what
            )
        };
        table.requests.values().map(line).collect()
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends are final, so an older view of a request never replaces a newer one.
    fn merge(&self, request: Request) {
        let mut table = self.lock();
        let stale = table.requests.get(&request.id).is_some_and(|known| {
            (!known.pending() && request.pending()) || (known.outcome.is_some() && request.outcome.is_none())
        });
        if !stale {
            table.requests.insert(request.id.clone(), request);
            self.changed.notify_all();
        }
    }

    fn mark_gap(&self) {
        self.lock().gap = true;
        self.changed.notify_all();
    }
}

fn read(mut running: Running, shared: &Shared) {
    let mut stream = Stream::default();
    while let Some(event) = running.next() {
        if let Event::Stdout(bytes) = event {
            stream.push(&bytes, shared);
        }
    }
}

/// Server-sent events as they come: `event:` and `data:` lines, a blank line ends one; HTTP headers before the first.
#[derive(Debug, Default)]
struct Stream {
    rest: Vec<u8>,
    kind: String,
    data: String,
}

impl Stream {
    fn push(&mut self, bytes: &[u8], shared: &Shared) {
        self.rest.extend(bytes);
        while let Some(end) = self.rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            self.line(String::from_utf8_lossy(&line).trim_end(), shared);
        }
    }

    fn line(&mut self, line: &str, shared: &Shared) {
        if let Some(value) = line.strip_prefix("event:") {
            value.trim_start().clone_into(&mut self.kind);
        } else if let Some(value) = line.strip_prefix("data:") {
            self.data.push_str(value.trim_start());
        } else if line.starts_with("HTTP/") {
            shared.mark_gap();
        } else if line.is_empty() {
            if self.kind == "request"
                && let Ok(request) = serde_json::from_str(&self.data)
            {
                shared.merge(request);
            }
            self.kind.clear();
            self.data.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: &str, state: &str, outcome: Option<&str>) -> String {
        let request = serde_json::json!({
            "id": id, "state": state, "label": "coder", "action": "exec", "what": "w", "sentence": "s", "owner": null,
            "digest": "d", "decisions": [], "outcome": outcome, "outcome_detail": null, "asked_at": "a", "ended_at": null,
            "approver_groups": [], "may_answer": true, "why_not": null, "statement": {}, "of a later version": 1,
        });
        format!("event: request\ndata: {request}\n\n")
    }

    #[test]
    fn events_arrive_in_pieces_and_never_take_an_end_back() {
        let shared = Shared::default();
        let mut stream = Stream::default();
        let mut text = "HTTP/2 200 \r\ncontent-type: text/event-stream\r\n\r\n: hello\n\n".to_owned();
        text.push_str(&event("1", "pending", None));
        text.push_str(&event("1", "approved", Some("ran")));
        text.push_str(&event("1", "approved", None));
        text.push_str(&event("1", "pending", None));
        text.push_str("event: host\ndata: {}\n\nevent: request\ndata: not json\n\n");
        text.push_str(&event("2", "pending", None));
        for piece in text.as_bytes().chunks(7) {
            stream.push(piece, &shared);
        }
        let table = shared.lock();
        assert!(table.gap);
        assert_eq!(table.requests.len(), 2);
        assert_eq!(table.requests["1"].outcome.as_deref(), Some("ran"));
        assert!(table.requests["2"].pending());
    }
}
