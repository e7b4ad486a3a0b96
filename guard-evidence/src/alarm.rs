//! Which records are alarms: what people should know although nobody asked them.
//!
//! Owns the names of alarms. It is given records whose signatures hold. It must never leave one out because it is usual.

use crate::record::{Effect, Lifecycle, Predicate, Statement};

/// An agent that was away for less was restarted.
const AWAY_SECONDS: i64 = 60;

/// The kind of alarm that a record is: `theft`, `log-refused`, `agent-away` …
#[must_use]
pub fn kind(statement: &Statement) -> Option<&'static str> {
    let header = statement.header()?;
    match &statement.predicate {
        Predicate::Enforcement(record) => matches!(record.effect, Effect::Killed { .. }).then_some("mismatch"),
        Predicate::Lifecycle(record) => match &record.event {
            Lifecycle::TheftRefused { .. } => Some("theft"),
            Lifecycle::Unprotected { .. } => Some("unprotected"),
            Lifecycle::EnforcementOff { .. } => Some("enforcement-off"),
            Lifecycle::EventsLost { .. } => Some("events-lost"),
            Lifecycle::Recovered { .. } => Some("spool-recovered"),
            Lifecycle::LogRefused { .. } => Some("log-refused"),
            Lifecycle::DecisionRefused { .. } => Some("decision-refused"),
            // One that goes on where the epoch before it ended has another key and has lost nothing.
            Lifecycle::Begun { after: None, .. } if header.epoch > 1 => Some("new-epoch"),
            Lifecycle::AgentAway { from, to } => {
                let seconds = |at: &str| at.parse().ok().map(jiff::Timestamp::as_second);
                // A time that cannot be read is no reason to be silent.
                let short = matches!((seconds(from), seconds(to)), (Some(from), Some(to)) if to - from < AWAY_SECONDS);
                (!short).then_some("agent-away")
            }
            _ => None,
        },
        _ => None,
    }
}
