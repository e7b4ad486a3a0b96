//! Grants: one approval that covers later actions too, and exactly which.
//!
//! Owns what is the same action. It is given records of requests. It must never call an action the same when something that
//! people were shown of it differs, nor when a part of it is not known.

use serde::{Deserialize, Serialize};

use crate::record::{Action, ConnectHow, Peer, RequestRecord};
use crate::statement::{strings_sha256, what};
use crate::text::{Text, visible_fold};

const WHAT_CHARACTERS: usize = 300;

/// Everything that has to be the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Scope {
    /// The same program with the same arguments in the same directory, as the same user, with the same recorded variables.
    Exec {
        path: Text,
        sha256: String,
        argv_sha256: String,
        argv_count: u64,
        /// SHA-256 over the variables that the record has.
        environment: String,
        cwd: Text,
        uid: u32,
    },
    /// The same peer, protocol and way of reaching it, as the same user.
    Connect {
        peer: Peer,
        protocol: String,
        how: ConnectHow,
        uid: u32,
    },
}

/// One grant. Made by the console when somebody approves with it; ended by time, count or somebody.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// ULID.
    pub id: String,
    /// Log origin of the console.
    pub console: String,
    pub host_id: String,
    /// Display name of the host at that time.
    pub host: String,
    pub label: String,
    pub scope: Scope,
    /// The action in one line, safe to show.
    pub what: String,
    /// The request that was approved with it.
    pub request_id: String,
    pub request_digest: String,
    pub granted_at: String,
    pub expires_at: String,
    /// At most so many later actions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// A later action that a grant answered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrantUse {
    pub grant: Grant,
    /// Counts from 1; no two uses have the same.
    pub number: u32,
    pub used_at: String,
}

impl Scope {
    /// What a grant of this request would cover.
    ///
    /// # Errors
    /// Why nothing can be granted: a part of the action is not known, or has no name that lasts.
    pub fn of(request: &RequestRecord) -> Result<Self, &'static str> {
        let uid = request.workload.uid;
        if let Action::Exec(exec) = &request.action {
            if exec.unlinked {
                return Err("its program was removed");
            }
            if exec.argv_truncated {
                return Err("its arguments are too long to be shown as a whole");
            }
            let (Some(path), Some(sha256)) = (&exec.path, &exec.sha256) else {
                return Err("its program's path or content is not known");
            };
            return Ok(Self::Exec {
                path: path.clone(),
                sha256: sha256.clone(),
                argv_sha256: exec.argv_sha256.clone(),
                argv_count: exec.argv_count,
                environment: strings_sha256(&exec.environment),
                cwd: exec.cwd.clone(),
                uid,
            });
        }
        if let Action::Connect(connect) = &request.action {
            if matches!(connect.peer, Peer::Unix { path: None } | Peer::Nameless) {
                return Err("whom it reaches has no name");
            }
            return Ok(Self::Connect {
                peer: connect.peer.clone(),
                protocol: connect.protocol.clone(),
                how: connect.how,
                uid,
            });
        }
        Err("actions of this kind are answered one by one")
    }

    /// What it covers, to stand after "later, too:". Safe to show.
    #[must_use]
    pub fn words(&self, what: &str, label: &str, host: &str) -> String {
        let (label, host) = (visible_fold(label, 64), visible_fold(host, 64));
        match self {
            Self::Exec { cwd, .. } => format!(
                "exactly `{what}` in {} by {label} on {host}",
                visible_fold(&cwd.display(), 120)
            ),
            Self::Connect { .. } => format!("exactly {what} by {label} on {host}"),
        }
    }
}

/// The action of a request in one line.
#[must_use]
pub fn what_of(request: &RequestRecord) -> String {
    what(&request.action, WHAT_CHARACTERS)
}

impl Grant {
    /// What it covers, and for how long. Safe to show.
    #[must_use]
    pub fn words(&self) -> String {
        let times = match self.times {
            None => String::new(),
            Some(1) => ", once".to_owned(),
            Some(times) => format!(", at most {times} times"),
        };
        format!(
            "{}, until {}{times}",
            self.scope
                .words(&visible_fold(&self.what, WHAT_CHARACTERS), &self.label, &self.host),
            visible_fold(&self.expires_at, 40)
        )
    }
}

impl GrantUse {
    /// Whether it may answer this request of this host.
    ///
    /// # Errors
    /// What is not the same, or over.
    pub fn covers(&self, request: &RequestRecord) -> Result<(), &'static str> {
        let grant = &self.grant;
        if grant.host_id != request.host.id {
            return Err("the grant is for another host");
        }
        if grant.label != request.workload.label {
            return Err("the grant is for another label");
        }
        if Scope::of(request)? != grant.scope {
            return Err("the grant covers another action");
        }
        if self.number == 0 || grant.times.is_some_and(|times| self.number > times) {
            return Err("the grant is used up");
        }
        let time = |text: &str| {
            text.parse::<jiff::Timestamp>()
                .map_err(|_| "the grant has a time that is none")
        };
        if time(&self.used_at)? >= time(&grant.expires_at)? {
            return Err("the grant has expired");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn whatever_people_were_shown_counts() {
        let request = testing::request(1, "coder", &["git", "push"]);
        let scope = Scope::of(&request).unwrap();
        assert_eq!(
            scope.words(&what_of(&request), "coder", "build-7"),
            "exactly `git push` in /srv/app by coder on build-7"
        );
        let changed = |change: fn(&mut crate::record::ExecAction)| {
            let mut other = request.clone();
            let Action::Exec(exec) = &mut other.action else {
                unreachable!()
            };
            change(exec);
            Scope::of(&other)
        };
        let differing: [fn(&mut crate::record::ExecAction); 6] = [
            |exec| exec.path = Some(Text::from("/usr/bin/git2")),
            |exec| exec.sha256 = Some("cd".repeat(32)),
            |exec| exec.argv_sha256 = "0".to_owned(),
            |exec| exec.argv_count += 1,
            |exec| exec.cwd = Text::from("/srv"),
            |exec| exec.environment.push(Text::from("LD_PRELOAD=/tmp/x.so")),
        ];
        for change in differing {
            assert_ne!(changed(change).unwrap(), scope);
        }
        let mut root = request.clone();
        root.workload.uid = 0;
        assert_ne!(Scope::of(&root).unwrap(), scope);
        // What the kernel calls it may change: a file that was replaced by the same content is the same program.
        assert_eq!(changed(|exec| exec.inode += 1).unwrap(), scope);
        let unknown: [fn(&mut crate::record::ExecAction); 4] = [
            |exec| exec.path = None,
            |exec| exec.sha256 = None,
            |exec| exec.argv_truncated = true,
            |exec| exec.unlinked = true,
        ];
        for change in unknown {
            assert!(changed(change).is_err());
        }
    }
}
