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
    /// Replace the key that signs this host's evidence. Root only.
    RotateKey {},
    /// The policy in force on this host. Root only.
    PolicyText {},
    /// Check a policy text, write it to the policy file and put it into force. Root only.
    PolicyApply {
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
    Policy {
        text: String,
    },
    Done,
    /// A key was made and named in a record; it signs as soon as the console holds that.
    NextKey {
        /// Its id.
        key: String,
    },
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
    /// Records in the spool that this host holds no receipt of.
    pub unshipped_records: u64,
    /// Records of the console's log whose head this host holds; 0: none since the agent started.
    #[serde(default)]
    pub log_size: u64,
    /// When and why this host refused the console's log, ever.
    #[serde(default)]
    pub log_refused: Option<String>,
    /// What the kernel side says; `None` if its tables cannot be read, or by an agent that is older.
    #[serde(default)]
    pub kernel_side: Option<KernelSide>,
}

/// What the kernel's tables hold now, and what was refused since they were made: they outlive the agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelSide {
    pub labels: Vec<LabelSide>,
    /// Actions refused because the table of waiting actions was full.
    pub refused_pending_full: u64,
    /// Forks refused because the table of labelled tasks was full.
    pub refused_tasks_full: u64,
    /// Cgroups below labelled ones that there was no room for.
    pub cgroups_full: u64,
    /// Sockets and connections refused because the table of sockets was full.
    #[serde(default)]
    pub refused_sockets_full: u64,
    /// Events that did not fit the ring; their actions wait and are told again.
    pub ring_full: u64,
    /// Actions refused because their thread could not be stopped.
    pub refused_signal: u64,
    /// Approved execs that were stopped because nobody compared them.
    pub refused_unchecked: u64,
    /// Actions let through while the agent was away, as its configuration says.
    pub allowed_while_away: u64,
}

/// Of one label.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelSide {
    pub label: String,
    /// Actions without an answer now, and how many may be.
    pub held: u64,
    pub held_limit: u64,
    /// Of those: threads that run their syscall again and again until somebody stops or answers them.
    pub looping: u64,
    /// Of one process at a time.
    pub looping_limit: u64,
    /// Of those that are held: stopped by SIGSTOP alone, with their whole process.
    pub parked: u64,
    /// Processes and threads that carry the label, and how many may.
    pub tasks: u64,
    pub tasks_limit: u64,
    /// Actions refused because too many were held already.
    pub refused_held: u64,
    /// Forks refused because too many tasks carried the label.
    pub refused_tasks: u64,
    /// Sockets whose peers are known, and how many may be.
    #[serde(default)]
    pub sockets: u64,
    #[serde(default)]
    pub sockets_limit: u64,
    /// Sockets and connections that there was no room for among them.
    #[serde(default)]
    pub refused_sockets: u64,
    /// Attempts to leave its cgroup.
    pub refused_leaving: u64,
    /// Attempts to reach what no decision opens, or what the label is not allowed.
    pub refused_theft: Vec<RefusedTheft>,
    /// What the label is allowed beyond the ordinary, by the names of the agent's configuration.
    #[serde(default)]
    pub allowed: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTheft {
    /// `sign-in`, `console's address` …
    pub object: String,
    pub count: u64,
}

impl KernelSide {
    /// What was refused, for people: how often and why, with the label it belongs to. Nothing that never happened.
    #[must_use]
    pub fn refusals(&self) -> Vec<(Option<&str>, u64, String)> {
        let mut all = Vec::new();
        for side in &self.labels {
            let mut add = |count, why: String| all.push((Some(side.label.as_str()), count, why));
            add(
                side.refused_held,
                format!("actions: more than {} would have been held", side.held_limit),
            );
            add(
                side.refused_tasks,
                format!(
                    "forks: more than {} tasks would have carried the label",
                    side.tasks_limit
                ),
            );
            add(
                side.refused_sockets,
                format!(
                    "sockets and connections: more than {} would have been known",
                    side.sockets_limit
                ),
            );
            add(side.refused_leaving, "attempts to leave the cgroup".to_owned());
            for theft in &side.refused_theft {
                add(theft.count, format!("attempts to reach: {}", theft.object));
            }
        }
        for (count, why) in [
            (
                self.refused_pending_full,
                "actions: the kernel's table of held actions was full",
            ),
            (
                self.refused_tasks_full,
                "forks: the kernel's table of labelled tasks was full",
            ),
            (
                self.refused_sockets_full,
                "sockets and connections: the kernel's table of labelled sockets was full",
            ),
            (self.refused_signal, "actions: their thread could not be stopped"),
            (
                self.refused_unchecked,
                "approved execs: nobody compared what was about to run",
            ),
        ] {
            all.push((None, count, why.to_owned()));
        }
        all.retain(|(_, count, _)| *count > 0);
        all
    }
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

    #[test]
    fn only_refusals_that_happened_are_told() {
        let side = KernelSide {
            labels: vec![LabelSide {
                label: "coder".to_owned(),
                tasks_limit: 30,
                refused_tasks: 2,
                refused_theft: vec![
                    RefusedTheft {
                        object: "sign-in".to_owned(),
                        count: 4,
                    },
                    RefusedTheft {
                        object: "bpf".to_owned(),
                        count: 0,
                    },
                ],
                ..LabelSide::default()
            }],
            refused_pending_full: 1,
            ring_full: 9,
            ..KernelSide::default()
        };
        let told = side.refusals();
        assert_eq!(
            told.iter()
                .map(|(label, count, _)| (*label, *count))
                .collect::<Vec<_>>(),
            [(Some("coder"), 2), (Some("coder"), 4), (None, 1)]
        );
        assert!(
            told[0].2.contains("more than 30 tasks") && told[1].2.contains("sign-in"),
            "{told:?}"
        );
        assert!(KernelSide::default().refusals().is_empty());
    }
}
