//! How a command fails: what happened, to what, why, the next command, and the exit status.
//!
//! Owns the mapping to exit statuses: 1 the answer is no, 2 wrong usage, 3 cannot tell. It is given errors of every
//! kind. It must never show bytes of a remote side unescaped.

use std::fmt;
use std::io;

use guard_evidence::text::defuse;
use guard_proto::rest::Problem;

/// The answer is no: denied, refused, invalid.
pub(crate) const NO: u8 = 1;
/// The command was given wrongly.
pub(crate) const USAGE: u8 = 2;
/// It cannot be told: unreachable, incomplete.
pub(crate) const UNKNOWN: u8 = 3;

/// A failure as it is printed: `guard: <what>` and below it `→ <next>`.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    what: String,
    next: Option<String>,
    /// HTTP status, when a console answered.
    status: Option<u16>,
    /// No agent listens.
    no_agent: bool,
}

impl Failure {
    pub(crate) fn no(what: impl Into<String>) -> Self {
        Self {
            code: NO,
            what: what.into(),
            next: None,
            status: None,
            no_agent: false,
        }
    }

    pub(crate) fn usage(what: impl Into<String>) -> Self {
        Self {
            code: USAGE,
            what: what.into(),
            next: None,
            status: None,
            no_agent: false,
        }
    }

    pub(crate) fn unknown(what: impl Into<String>) -> Self {
        Self {
            code: UNKNOWN,
            what: what.into(),
            next: None,
            status: None,
            no_agent: false,
        }
    }

    /// Adds the command or deed that helps.
    pub(crate) fn next(mut self, next: impl Into<String>) -> Self {
        self.next = Some(next.into());
        self
    }

    /// Marks that no agent listens.
    pub(crate) fn no_agent(mut self) -> Self {
        self.no_agent = true;
        self
    }

    /// If no agent listens: why none could, and what helps.
    pub(crate) fn without_agent(mut self, why: impl FnOnce() -> Option<(String, String)>) -> Self {
        if self.no_agent
            && let Some((why, remedy)) = why()
        {
            self.what = format!("{}, and on this kernel it cannot enforce: {why}", self.what);
            self.next = Some(match self.next {
                Some(next) => format!("{remedy}\n  → then: {next}"),
                None => remedy,
            });
        }
        self
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// What the console answered instead of what was asked for.
    pub(crate) fn from_problem(problem: &Problem) -> Self {
        let mut what = defuse(&problem.title);
        if let Some(detail) = &problem.detail {
            what = format!("{what}: {}", defuse(detail));
        }
        let failure = match problem.status {
            400 | 413 | 415 | 422 => Self::usage(what),
            401 => Self::unknown(what).next("guard login --url https://CONSOLE:8443 --username NAME"),
            429 | 500.. => Self::unknown(what),
            _ => Self::no(what),
        };
        Self {
            status: Some(problem.status),
            ..failure
        }
    }

    /// For signing in, where "not authorised" is the answer itself: a wrong password.
    pub(crate) fn unauthorized_is_no(self) -> Self {
        if self.status == Some(401) {
            Self {
                code: NO,
                next: None,
                ..self
            }
        } else {
            self
        }
    }

    /// Whether the same question may be answered later.
    pub(crate) fn may_pass(&self) -> bool {
        self.code == UNKNOWN && self.status != Some(401)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "guard: {}", self.what)?;
        if let Some(next) = &self.next {
            write!(f, "\n  → {next}")?;
        }
        Ok(())
    }
}

/// Writing to a closed pipe ends a command quietly, as for any filter; anything else is a failure.
impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        Self::unknown(e.to_string())
    }
}

impl From<serde_json::Error> for Failure {
    fn from(e: serde_json::Error) -> Self {
        Self::unknown(format!("JSON: {e}"))
    }
}

/// Every source of an error, as one sentence.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        let more = e.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = e.source();
    }
    defuse(&text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn why_no_agent_can_run_is_said_only_when_none_does() {
        let why = || Some(("no bpf".to_owned(), "add lsm=bpf".to_owned()));
        let running = Failure::unknown("x").next("y").without_agent(why).to_string();
        assert_eq!(running, "guard: x\n  → y");
        let none = Failure::unknown("x").next("y").no_agent();
        assert_eq!(
            none.without_agent(why).to_string(),
            "guard: x, and on this kernel it cannot enforce: no bpf\n  → add lsm=bpf\n  → then: y"
        );
    }
}
