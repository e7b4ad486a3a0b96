//! An action as a person describes it, in a file of tests or on a command line.
//!
//! Owns the shapes and what is filled in. It is given what was written. It must never make up a fact that a rule could look at:
//! what is not written is not known, but for an argv, which without one has the name alone.

use std::net::IpAddr;

use guard_evidence::record::FileOperation;
use serde::Deserialize;

use crate::{ConnectFacts, Deed, ExecFacts, Facts, HeldFacts, PeerFacts, WriteFacts};

/// Who does what: exactly one of the last four.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Described {
    pub label: String,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
    pub user: Option<String>,
    pub login_uid: Option<u32>,
    #[serde(default)]
    pub cgroup: String,
    pub container: Option<String>,
    pub exec: Option<Exec>,
    pub connect: Option<Peer>,
    pub listen: Option<Peer>,
    pub write: Option<Write>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    pub path: String,
    pub argv: Option<Vec<String>>,
    pub cwd: Option<String>,
    /// As the workload named it; the path when left out.
    pub given: Option<String>,
    pub sha256: Option<String>,
    #[serde(default)]
    pub unlinked: bool,
}

/// An address with its port, or a unix socket: a path, or a name outside the file system after `@`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
    pub socket: Option<String>,
    /// `tcp` when left out, of a unix socket `stream`.
    pub protocol: Option<String>,
    #[serde(default)]
    pub connected_before: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Write {
    pub operation: FileOperation,
    pub path: String,
    /// Of a rename or link.
    pub new_path: Option<String>,
    #[serde(default)]
    pub directory: bool,
    #[serde(default)]
    pub replaces: bool,
}

impl Described {
    /// The facts that a policy is given once the thread is held.
    ///
    /// # Errors
    /// What is missing, or is there twice.
    pub fn facts(&self) -> Result<Facts, String> {
        if self.label.is_empty() {
            return Err("it has no label".to_owned());
        }
        let deeds = [
            self.exec.as_ref().map(Exec::deed),
            self.connect.as_ref().map(|peer| peer.deed(false)),
            self.listen.as_ref().map(|peer| peer.deed(true)),
            self.write.as_ref().map(Write::deed),
        ];
        let mut deeds = deeds.into_iter().flatten();
        let (Some(deed), None) = (deeds.next(), deeds.next()) else {
            return Err("it has to have exactly one of exec, connect, listen and write".to_owned());
        };
        Ok(Facts {
            label: self.label.clone(),
            uid: self.uid,
            gid: self.gid,
            user: self.user.clone(),
            login_uid: self.login_uid,
            cgroup: self.cgroup.clone(),
            container: self.container.clone(),
            deed: deed?,
        })
    }
}

fn absolute(path: &str) -> Result<String, String> {
    if path.starts_with('/') {
        Ok(path.to_owned())
    } else {
        Err(format!("\"{path}\" is not an absolute path, as the kernel has it"))
    }
}

impl Exec {
    fn deed(&self) -> Result<Deed, String> {
        let path = absolute(&self.path)?;
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        Ok(Deed::Exec(ExecFacts {
            unlinked: self.unlinked,
            held: Some(HeldFacts {
                argv: Some(self.argv.clone().unwrap_or_else(|| vec![name])),
                cwd: self.cwd.clone(),
                given: self.given.clone().or_else(|| Some(path.clone())),
                sha256: self.sha256.clone(),
            }),
            path: Some(path),
        }))
    }
}

impl Peer {
    fn deed(&self, listen: bool) -> Result<Deed, String> {
        let (peer, protocol) = match (self.address, self.port, &self.socket) {
            (Some(address), Some(port), None) => (PeerFacts::Ip { address, port }, "tcp"),
            // Without a name for one that has none.
            (None, None, Some(socket)) if !listen && (socket.is_empty() || socket.starts_with(['/', '@'])) => {
                (PeerFacts::Unix(Some(socket.clone())), "stream")
            }
            _ => {
                return Err(
                    "a peer is an address with its port, or (not for listen) a socket: a path, or a name after @"
                        .to_owned(),
                );
            }
        };
        Ok(Deed::Connect(ConnectFacts {
            peer,
            protocol: self.protocol.clone().unwrap_or_else(|| protocol.to_owned()),
            listen,
            connected_before: self.connected_before,
            held: true,
        }))
    }
}

impl Write {
    fn deed(&self) -> Result<Deed, String> {
        let two = matches!(self.operation, FileOperation::Rename | FileOperation::Link);
        if two != self.new_path.is_some() {
            return Err("a rename and a link have a new_path, and nothing else has".to_owned());
        }
        Ok(Deed::Write(WriteFacts {
            operation: self.operation,
            path: Some(absolute(&self.path)?),
            new_path: self.new_path.as_deref().map(absolute).transpose()?.map(Some),
            directory: self.directory,
            replaces: self.replaces,
            held: true,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exactly_one_deed_makes_facts() {
        let mut described = Described {
            label: "coder".to_owned(),
            exec: Some(Exec {
                path: "/usr/bin/git".to_owned(),
                ..Exec::default()
            }),
            ..Described::default()
        };
        let facts = described.facts().unwrap();
        let Deed::Exec(exec) = facts.deed else {
            panic!("{facts:?}")
        };
        let held = exec.held.unwrap();
        assert_eq!((held.argv, held.cwd), (Some(vec!["git".to_owned()]), None));
        described.connect = Some(Peer {
            socket: Some("@name".to_owned()),
            ..Peer::default()
        });
        assert!(described.facts().is_err());
        described.exec = None;
        assert!(described.facts().is_ok());
        described.listen = described.connect.take();
        assert!(described.facts().is_err());
    }

    #[test]
    fn what_is_no_action_is_told() {
        let write = |operation, path: &str, new_path: Option<&str>| {
            let write = Write {
                operation,
                path: path.to_owned(),
                new_path: new_path.map(str::to_owned),
                ..Write::default()
            };
            write.deed().is_ok()
        };
        assert!(write(FileOperation::Create, "/etc/x", None));
        assert!(write(FileOperation::Rename, "/etc/x", Some("/etc/y")));
        assert!(!write(FileOperation::Rename, "/etc/x", None));
        assert!(!write(FileOperation::Create, "/etc/x", Some("/etc/y")));
        assert!(!write(FileOperation::Create, "etc/x", None));
    }
}
