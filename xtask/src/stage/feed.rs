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

/// Server-sent events: `event:` and `data:` lines, a blank line ends one.
fn read(mut running: Running, shared: &Shared) {
    let (mut rest, mut kind, mut data) = (Vec::new(), String::new(), String::new());
    while let Some(event) = running.next() {
        let Event::Stdout(bytes) = event else { continue };
        rest.extend(bytes);
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            let line = line.trim_end();
            if let Some(value) = line.strip_prefix("event:") {
                value.trim_start().clone_into(&mut kind);
            } else if let Some(value) = line.strip_prefix("data:") {
                data.push_str(value.trim_start());
            } else if line.starts_with("HTTP/") {
                shared.mark_gap();
            } else if line.is_empty() {
                if kind == "request"
                    && let Ok(request) = serde_json::from_str(&data)
                {
                    shared.merge(request);
                }
                kind.clear();
                data.clear();
            }
        }
    }
}
