//! Facts as they may be recorded: without secrets.
//!
//! Owns which fields of an action can hold one. It is given what was observed. It must never leave out a string that the
//! workload chose.

use std::os::unix::ffi::OsStrExt as _;

use guard_evidence::record::{Action, ConnectAction, FileAction, Peer, PolicyAction};

use super::Enricher;
use super::connect::connect_action;
use super::write::file_action;
use crate::kernel::api::{AskedAction, AskedChange, AskedReach, Mismatch, MismatchWhat, Outcome};

impl Enricher {
    /// An action of which the kernel's key says enough.
    #[must_use]
    pub fn key_action(&self, what: &AskedAction) -> PolicyAction {
        match what {
            AskedAction::Exec(exec) => PolicyAction::ExecKey {
                path: exec
                    .path
                    .as_ref()
                    .map(|path| self.redactor.path(path.as_os_str().as_bytes())),
                device: exec.file.device,
                inode: exec.file.inode,
                generation: exec.file.generation,
            },
            AskedAction::Reach(reach) => PolicyAction::Connect(Box::new(self.connect_action(reach))),
            AskedAction::Change(change) => PolicyAction::File(Box::new(self.file_action(change))),
        }
    }

    /// The same in one line for people, of at most `max` characters.
    #[must_use]
    pub fn what_by_key(&self, what: &AskedAction, max: usize) -> String {
        match self.key_action(what) {
            PolicyAction::ExecKey { path: Some(path), .. } => path.fold(max),
            PolicyAction::ExecKey { inode, device, .. } => format!("file {inode} on device {device}"),
            PolicyAction::Exec(exec) => guard_evidence::statement::what(&Action::Exec(exec), max),
            PolicyAction::Connect(connect) => guard_evidence::statement::what(&Action::Connect(connect), max),
            PolicyAction::File(file) => guard_evidence::statement::what(&Action::File(file), max),
        }
    }

    /// What became of a verdict, without digests of what may hold secrets: those of this host tell two apart.
    #[must_use]
    pub fn outcome(&self, outcome: &Outcome) -> Outcome {
        let Outcome::Killed(mismatch) = outcome else {
            return outcome.clone();
        };
        let one = |found: &String| match mismatch.what {
            MismatchWhat::Argv | MismatchWhat::Environment => match hex::decode(found) {
                Ok(sha256) => self.redactor.digest(&sha256),
                Err(_) => String::from("unknown"),
            },
            _ => String::from_utf8_lossy(self.redactor.path(found.as_bytes()).as_bytes()).into_owned(),
        };
        Outcome::Killed(Mismatch {
            what: mismatch.what,
            approved: one(&mismatch.approved),
            found: one(&mismatch.found),
        })
    }

    pub(super) fn connect_action(&self, reach: &AskedReach) -> ConnectAction {
        let mut action = connect_action(reach);
        match &mut action.peer {
            Peer::Unix { path: Some(path) } => *path = self.redactor.path(path.as_bytes()),
            Peer::Abstract { name } => *name = self.redactor.text(name.as_bytes()),
            Peer::Unix { path: None } | Peer::Nameless | Peer::Ip { .. } => {}
        }
        action
    }

    pub(super) fn file_action(&self, change: &AskedChange) -> FileAction {
        let mut action = file_action(change);
        let paths = [
            &mut action.path,
            &mut action.new_path,
            &mut action.path_in_file_system,
            &mut action.target,
        ];
        for path in paths.into_iter().flatten() {
            *path = self.redactor.path(path.as_bytes());
        }
        if let Some(attribute) = &mut action.attribute {
            *attribute = self.redactor.text(attribute.as_bytes());
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::kernel::api::{AskedExec, Change, ChangeOp, FileKey, Peer as AskedPeer, ReachHow};
    use crate::testing::redactor;

    const FILE: FileKey = FileKey {
        device: 1,
        inode: 2,
        generation: 3,
    };

    fn enricher() -> Enricher {
        Enricher::new(Vec::new(), Duration::from_secs(1), redactor())
    }

    #[test]
    fn whatever_a_key_names_is_looked_through() {
        let secret = "https://bob:hunter2@example.org";
        let change = |op, text: &str| {
            AskedAction::Change(Box::new(AskedChange {
                file: FILE,
                change: Change {
                    op,
                    path: Some("/srv/TOKEN=hunter2".into()),
                    second: Some("/srv/TOKEN=hunter2b".into()),
                    below_root: Some("/TOKEN=hunter2c".into()),
                    text: text.as_bytes().to_vec(),
                    directory: false,
                    mode: 0,
                    owner: [None, None],
                    old: None,
                },
            }))
        };
        let reach = |peer| {
            AskedAction::Reach(AskedReach {
                peer,
                how: ReachHow::Connect,
                family: 1,
                kind: 1,
                protocol: 0,
            })
        };
        let asked = [
            AskedAction::Exec(AskedExec {
                file: FILE,
                path: Some("/srv/TOKEN=hunter2".into()),
                unlinked: false,
            }),
            change(ChangeOp::Symlink, secret),
            change(ChangeOp::Xattr { removes: false }, secret),
            change(ChangeOp::Link, ""),
            reach(AskedPeer::Abstract(secret.as_bytes().to_vec())),
            reach(AskedPeer::Unix {
                path: Some("/run/TOKEN=hunter2".into()),
            }),
        ];
        for asked in asked {
            let record = serde_json::to_string(&enricher().key_action(&asked)).unwrap();
            assert!(record.contains("[redacted ") && !record.contains("hunter2"), "{record}");
            assert!(!enricher().what_by_key(&asked, 160).contains("hunter2"));
        }
    }

    #[test]
    fn what_differed_is_told_without_a_plain_digest() {
        let killed = |what, approved: &str| {
            enricher().outcome(&Outcome::Killed(Mismatch {
                what,
                approved: approved.to_owned(),
                found: approved.to_owned(),
            }))
        };
        let Outcome::Killed(argv) = killed(MismatchWhat::Argv, "aabb") else {
            unreachable!()
        };
        assert_eq!(argv.found, redactor().digest(&[0xaa, 0xbb]));
        let Outcome::Killed(cwd) = killed(MismatchWhat::Cwd, "/srv/TOKEN=hunter2") else {
            unreachable!()
        };
        assert!(cwd.found.starts_with("/srv/TOKEN=[redacted "), "{}", cwd.found);
        assert_eq!(enricher().outcome(&Outcome::Ran), Outcome::Ran);
    }
}
