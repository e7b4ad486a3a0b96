//! The engine's end of the stream to the console.
//!
//! Owns what is sent and what has to be said again after a reconnect. It is given a queue while there is a stream. It
//! must never wait for the console, and never grow with its absence: questions live in the engine's table.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use guard_evidence::key::PublicKey;
use guard_proto::v1::host_message::Kind;
use guard_proto::v1::{AskReceived, Decision, HostMessage};
use tokio::sync::mpsc;

/// Ends of questions that are said again; the evidence has all of them.
const LASTING: usize = 4_096;
const LASTS: Duration = Duration::from_secs(600);

/// What the console client tells the engine.
#[derive(Debug)]
pub enum FromConsole {
    /// A stream is open; messages go through `send`.
    Connected {
        stream: u64,
        send: mpsc::Sender<HostMessage>,
    },
    Disconnected {
        stream: u64,
    },
    AskReceived(AskReceived),
    Decision(Decision),
    /// Decisions are signed by this key from here on, and by no other.
    DecisionKey(PublicKey),
}

#[derive(Debug, Default)]
pub(super) struct Link {
    open: Option<(u64, mpsc::Sender<HostMessage>)>,
    lasting: VecDeque<(Instant, Kind)>,
}

impl Link {
    /// Hello, then what may have been lost with the stream before.
    pub(super) fn connected(&mut self, stream: u64, send: mpsc::Sender<HostMessage>, hello: Kind) {
        self.open = Some((stream, send));
        self.send(hello);
        self.lasting.retain(|(since, _)| since.elapsed() < LASTS);
        for kind in self.lasting.iter().map(|(_, kind)| kind.clone()).collect::<Vec<_>>() {
            self.send(kind);
        }
    }

    /// The stream is gone; a later one may be open already.
    pub(super) fn disconnected(&mut self, stream: u64) {
        if self.open.as_ref().is_some_and(|(open, _)| *open == stream) {
            self.open = None;
        }
    }

    /// Sends while there is a stream. A console that does not read loses it: on the next one everything is said again.
    pub(super) fn send(&mut self, kind: Kind) {
        if let Some((stream, send)) = &self.open
            && let Err(mpsc::error::TrySendError::Full(_)) = send.try_send(HostMessage { kind: Some(kind) })
        {
            tracing::warn!(stream, "the console does not read; its stream is ended");
            self.open = None;
        }
    }

    /// Sends now, and again after a reconnect within ten minutes.
    pub(super) fn send_lasting(&mut self, kind: Kind) {
        self.send(kind.clone());
        self.lasting.push_back((Instant::now(), kind));
        if self.lasting.len() > LASTING {
            self.lasting.pop_front();
        }
    }

    /// A decision that came before: says again what was said then.
    pub(super) fn answered_again(&mut self, request_id: &str) -> bool {
        let said = self.lasting.iter().rev().find_map(|(_, kind)| match kind {
            Kind::DecisionReceived(received) if received.accepted && received.request_id == request_id => {
                Some(kind.clone())
            }
            _ => None,
        });
        let known = said.is_some();
        if let Some(said) = said {
            self.send(said);
        }
        known
    }
}
