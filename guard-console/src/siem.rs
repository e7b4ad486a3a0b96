//! Outputs: events of the evidence log for other systems, each at least once.
//!
//! Owns who gets what, in what order, and how far each has come. It is given records that are in the database. It must never
//! move on before the other side has an event (or its refusal is on disk), nor make the console wait for another system.

mod feed;
mod file;
mod http;
mod otlp;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guard_proto::rest::OutputView;
use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::app::{App, Result};
use crate::config::{SiemConfig, SiemFrom, SiemTarget};
use crate::data_dir::DataDir;
use crate::store::{SiemRow, Store};
use crate::time::{Millis, now, rfc3339};
use feed::{Feed, Told};
use file::Lines;
use http::Endpoint;

/// Without a sign of new records they are looked for so often.
const LOOK: Duration = Duration::from_secs(1);
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Why events were not taken.
#[derive(Debug)]
enum Refusal {
    /// Try again; not before this time, if the other side said one.
    Later(String, Option<Duration>),
    /// The other side will never take them, or one of them.
    Never(String),
    /// It took some of them, does not say which, and must not be sent them again.
    Partly(String),
}

/// One output's state as others see it.
#[derive(Debug, Default, Clone)]
struct State {
    row: SiemRow,
    /// Why nothing gets through, and since when.
    failing: Option<(Millis, String)>,
}

/// Every output of the configuration.
#[derive(Debug)]
pub struct Outputs {
    all: Vec<(SiemConfig, Arc<Mutex<State>>)>,
}

impl Outputs {
    /// Reads how far each has come; one that is new begins where its configuration says.
    ///
    /// # Errors
    /// If the database cannot be read or written.
    pub async fn open(configs: &[SiemConfig], store: &Store) -> Result<Self> {
        let mut all = Vec::new();
        for config in configs {
            let row = match store.siem_output(&config.name).await? {
                Some(row) => row,
                None => {
                    let position = match config.from {
                        SiemFrom::Beginning => 0,
                        SiemFrom::Now => store.log_size().await?,
                    };
                    let row = SiemRow {
                        position,
                        ..SiemRow::default()
                    };
                    store.set_siem_output(&config.name, row).await?;
                    row
                }
            };
            let state = State { row, failing: None };
            all.push((config.clone(), Arc::new(Mutex::new(state))));
        }
        Ok(Self { all })
    }

    /// As the API shows them; `size` is that of the log.
    #[must_use]
    pub fn view(&self, size: u64) -> Vec<OutputView> {
        let all = self.all.iter();
        all.map(|(config, state)| {
            let State { row, failing } = state.lock().clone();
            OutputView {
                name: config.name.clone(),
                kind: config.kind.word().to_owned(),
                position: row.position,
                behind: size.saturating_sub(row.position),
                delivered: row.delivered,
                refused: row.refused,
                delivered_at: (row.at > 0).then(|| rfc3339(row.at)),
                failing_since: failing.as_ref().map(|(since, _)| rfc3339(*since)),
                failing: failing.map(|(_, why)| why),
            }
        })
        .collect()
    }
}

/// Runs every output until the console stops.
pub async fn run(app: Arc<App>) {
    if app.outputs.all.is_empty() {
        return;
    }
    let reopen = Arc::new(Notify::new());
    let outputs = app.outputs.all.iter().map(|(config, state)| {
        let output = Output::new(&app, config, state.clone());
        output.run(app.clone(), reopen.clone())
    });
    let outputs = futures::future::join_all(outputs);
    tokio::select! {
        _ = outputs => {}
        () = hang_ups(&app.stopping, &reopen) => {}
    }
}

/// SIGHUP opens files anew, as log rotation expects; without outputs it ends the console, as ever.
async fn hang_ups(stopping: &CancellationToken, reopen: &Notify) {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut hang_up) = signal(SignalKind::hangup()) else {
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = hang_up.recv() => reopen.notify_waiters(),
            // The outputs end by themselves.
            () = stopping.cancelled() => return std::future::pending().await,
        }
    }
}

#[derive(Debug)]
enum Target {
    File(Lines),
    Http(Endpoint),
}

#[derive(Debug)]
struct Output {
    name: String,
    target: Target,
    refused: Lines,
    feed: Feed,
    state: Arc<Mutex<State>>,
}

impl Output {
    fn new(app: &App, config: &SiemConfig, state: Arc<Mutex<State>>) -> Self {
        let target = match &config.to {
            SiemTarget::File(path) => Target::File(Lines::new(path.clone())),
            SiemTarget::Http(endpoint) => Target::Http(Endpoint::new(config.kind, endpoint.clone())),
        };
        Self {
            name: config.name.clone(),
            target,
            refused: Lines::new(refused_file(config, &app.dir)),
            feed: Feed::new(app.store.clone(), app.log.origin().to_owned()),
            state,
        }
    }

    async fn run(mut self, app: Arc<App>, reopen: Arc<Notify>) {
        let mut heads = app.log.heads();
        let mut pause = FIRST_PAUSE;
        while !app.stopping.is_cancelled() {
            let passed = tokio::select! {
                passed = self.pass() => passed,
                // What was under way is sent again at the next start.
                () = app.stopping.cancelled() => return,
            };
            let hung_up = match passed {
                Ok(more) => {
                    self.succeeded();
                    pause = FIRST_PAUSE;
                    if more {
                        continue;
                    }
                    tokio::select! {
                        () = tokio::time::sleep(LOOK) => false,
                        Ok(()) = heads.changed() => false,
                        () = reopen.notified() => true,
                        () = app.stopping.cancelled() => return,
                    }
                }
                Err((why, after)) => {
                    self.failed(why);
                    // Not at the same moment as everybody whom the other side turned away.
                    let wait = pause
                        .mul_f64(rand::thread_rng().gen_range(0.5..1.0))
                        .max(after.unwrap_or_default());
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    tokio::select! {
                        () = tokio::time::sleep(wait.min(LONGEST_PAUSE)) => false,
                        () = reopen.notified() => true,
                        () = app.stopping.cancelled() => return,
                    }
                }
            };
            if hung_up {
                self.refused.reopen();
                if let Target::File(lines) = &mut self.target {
                    lines.reopen();
                }
            }
        }
    }

    /// Hands over the next records. Whether there were any; an error is why not now, and until when.
    async fn pass(&mut self) -> std::result::Result<bool, (String, Option<Duration>)> {
        let position = self.state.lock().row.position;
        let told = self.feed.next(position).await.map_err(|e| (e.to_string(), None))?;
        let mut rest = told.as_slice();
        let mut size = rest.len();
        while !rest.is_empty() {
            let (part, later) = rest.split_at(size.clamp(1, rest.len()));
            match self.send(part).await {
                Ok(()) => {
                    self.advance(part, true).await?;
                    rest = later;
                }
                Err(Refusal::Later(why, after)) => return Err((why, after)),
                // One that the other side cannot take does not keep it from the others.
                Err(Refusal::Never(_)) if part.len() > 1 => size = part.len() / 2,
                Err(Refusal::Never(why) | Refusal::Partly(why)) => {
                    self.set_aside(part, &why).await?;
                    self.advance(part, false).await?;
                    rest = later;
                }
            }
        }
        Ok(!told.is_empty())
    }

    async fn send(&mut self, told: &[Told]) -> std::result::Result<(), Refusal> {
        match &mut self.target {
            Target::File(lines) => {
                let text: Vec<u8> = told.iter().flat_map(Told::lines).collect();
                lines.append(text).await.map_err(|why| Refusal::Later(why, None))
            }
            Target::Http(endpoint) => endpoint.post(told).await,
        }
    }

    /// What was refused for good is on disk before anything moves on.
    async fn set_aside(&mut self, told: &[Told], why: &str) -> std::result::Result<(), (String, Option<Duration>)> {
        tracing::warn!(
            output = self.name,
            why,
            "the other side refused an event for good; it is kept in a file"
        );
        let mut text = Vec::new();
        for event in told.iter().flat_map(|told| &told.events) {
            let line = serde_json::json!({"at": rfc3339(now()), "output": self.name, "refused": why, "event": event});
            text.extend_from_slice(line.to_string().as_bytes());
            text.push(b'\n');
        }
        self.refused.append(text).await.map_err(|why| (why, None))
    }

    async fn advance(&self, told: &[Told], taken: bool) -> std::result::Result<(), (String, Option<Duration>)> {
        let Some(last) = told.last() else {
            return Ok(());
        };
        let events: usize = told.iter().map(|told| told.events.len()).sum();
        let mut row = self.state.lock().row;
        row.position = last.position + 1;
        if taken {
            row.delivered += events as u64;
            row.at = now();
        } else {
            row.refused += events as u64;
        }
        let stored = self.feed.store().set_siem_output(&self.name, row).await;
        stored.map_err(|e| (e.to_string(), None))?;
        self.state.lock().row = row;
        Ok(())
    }

    fn succeeded(&self) {
        if self.state.lock().failing.take().is_some() {
            tracing::info!(output = self.name, "events go out again");
        }
    }

    fn failed(&self, why: String) {
        let mut state = self.state.lock();
        if state.failing.as_ref().is_none_or(|(_, before)| *before != why) {
            tracing::error!(output = self.name, why, "events do not go out; trying again");
        }
        let since = state.failing.as_ref().map_or_else(now, |(since, _)| *since);
        state.failing = Some((since, why));
    }
}

fn refused_file(config: &SiemConfig, dir: &DataDir) -> PathBuf {
    let own = || dir.path(&format!("siem-{}.refused.ndjson", config.name));
    config.refused_file.clone().unwrap_or_else(own)
}
