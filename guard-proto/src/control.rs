//! The agent's control socket, `/run/guard/agent.sock`: one JSON object per line each way.
//!
//! Owns the shapes. The agent knows its peer by `SO_PEERCRED` and never by what a line says; a labelled peer is
//! refused before its first line is read. A line longer than [`crate::limits::CONTROL_LINE_BYTES`] ends the connection.

use serde::{Deserialize, Serialize};

/// From `guard` to the agent. Variants without fields have braces: with them an unknown field is an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum ControlRequest {
    /// Put *this* peer process into a new labelled cgroup. The answer is `Entered`; then the peer runs its command.
    Enter {
        label: String,
        run: String,
    },
    /// Tell about everything that the workload started under this run id is held for, until the peer hangs up.
    Watch {
        run: String,
    },
    /// Label an existing cgroup (path below the cgroup v2 root). Root only.
    LabelAdd {
        label: String,
        cgroup: String,
    },
    /// Root only.
    LabelRemove {
        cgroup: String,
    },
    LabelList {},
    Status {},
    Doctor {},
    /// Actions waiting on this host, whoever is asked.
    Pending {},
    /// Parse and check a policy text without applying it.
    PolicyValidate {
        text: String,
    },
}

/// From the agent to `guard`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum ControlReply {
    Entered {
        cgroup: String,
    },
    Event(RunEvent),
    Labels {
        items: Vec<LabelledCgroup>,
    },
    Status(Box<AgentStatus>),
    Doctor {
        findings: Vec<Finding>,
    },
    Pending {
        items: Vec<PendingAction>,
    },
    Done,
    /// What happened, why, and what to do next.
    Refused {
        error: String,
    },
}

/// What `guard run` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RunEvent {
    /// Sent once when the watch is in place.
    Watching,
    Held {
        action: String,
        what: String,
        groups: Vec<String>,
        request: String,
    },
    Approved {
        request: String,
        by: Vec<String>,
        after_ms: u64,
        reason: String,
    },
    Denied {
        request: Option<String>,
        what: String,
        by: Vec<String>,
        after_ms: u64,
        reason: String,
    },
    TimedOut {
        request: String,
        after_ms: u64,
    },
    Withdrawn {
        request: String,
    },
    /// Something differed from what was approved.
    Killed {
        request: String,
        detail: String,
    },
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LabelledCgroup {
    pub label: String,
    pub cgroup: String,
    /// `pattern`, `xattr`, `run` or `command`.
    pub source: String,
    pub processes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentStatus {
    pub version: String,
    pub host_id: Option<String>,
    pub console: Option<String>,
    /// `connected`, `connecting`, `not enrolled`.
    pub console_state: String,
    pub kernel: String,
    pub enforcing: bool,
    pub enforcing_since: Option<String>,
    pub policy_digest: String,
    pub policies: u32,
    pub held: u64,
    pub asked: u64,
    pub allowed: u64,
    pub denied: u64,
    pub lost_events: u64,
    /// Records in the spool that the console has not acknowledged.
    pub unshipped_records: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Finding {
    pub name: String,
    pub state: FindingState,
    pub text: String,
    /// A command or edit that mends it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FindingState {
    Ok,
    Warn,
    Bad,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PendingAction {
    pub request: String,
    pub label: String,
    pub tid: u32,
    pub what: String,
    pub waiting_ms: u64,
    /// `traced` or `parked`.
    pub held: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_that_nobody_knows_is_refused() {
        for line in [r#"{"do":"status","extra":1}"#, r#"{"do":"watch","run":"a","extra":1}"#] {
            serde_json::from_str::<ControlRequest>(line).unwrap_err();
        }
        serde_json::from_str::<ControlRequest>(r#"{"do":"status"}"#).unwrap();
    }
}
