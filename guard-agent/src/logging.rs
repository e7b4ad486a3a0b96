//! Logs: to standard error, as text or JSON, written by a thread of their own.
//!
//! Owns the subscriber. It is given format and level. It must never make a caller wait: when its queue is full, lines
//! are dropped and counted by the writer, because a log pipe may be held by somebody whom we hold.

use std::io::IsTerminal as _;

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::Log;

/// Lines that may wait for a slow reader.
const QUEUE: usize = 16_384;

/// Starts logging. The guard writes out what is queued when it is dropped.
pub fn start(log: Log) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(QUEUE)
        .finish(std::io::stderr());
    let layer = fmt::layer().with_writer(writer).with_target(false);
    let level = LevelFilter::from_level(log.level);
    let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let registry = tracing_subscriber::registry().with(level);
    let started = if log.json {
        registry.with(layer.json().with_current_span(false)).try_init()
    } else {
        registry.with(layer.with_ansi(colours)).try_init()
    };
    // A second subscriber in one process happens in tests only.
    drop(started);
    guard
}
