//! What the kernel says of a change of a file, in the words of policies and records.
//!
//! Owns that translation. It is given the kernel's question. It must never take a path from the caller: a path is where the
//! kernel's walk went.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use guard_evidence::record::{FileAction, FileFlag, FileOperation};
use guard_evidence::text::Text;

use crate::kernel::api::{AskedChange, ChangeOp};
use guard_policy::WriteFacts;

/// For the policy, before the thread is held.
pub(super) fn facts(asked: &AskedChange) -> WriteFacts {
    let change = &asked.change;
    let known = |path: &Path| path.to_str().map(str::to_owned);
    WriteFacts {
        operation: operation(change.op),
        path: change.path.as_deref().and_then(known),
        new_path: matches!(change.op, ChangeOp::Rename { .. } | ChangeOp::Link)
            .then(|| change.second.as_deref().and_then(known)),
        directory: change.directory,
        replaces: matches!(
            change.op,
            ChangeOp::Open { truncates: true } | ChangeOp::Rename { replaces: true, .. }
        ),
        held: false,
    }
}

const fn operation(op: ChangeOp) -> FileOperation {
    match op {
        ChangeOp::Open { .. } => FileOperation::Open,
        ChangeOp::Create => FileOperation::Create,
        ChangeOp::Unlink => FileOperation::Unlink,
        ChangeOp::Rename { .. } => FileOperation::Rename,
        ChangeOp::Link => FileOperation::Link,
        ChangeOp::Symlink => FileOperation::Symlink,
        ChangeOp::Mkdir => FileOperation::Mkdir,
        ChangeOp::Rmdir => FileOperation::Rmdir,
        ChangeOp::Mknod => FileOperation::Mknod,
        ChangeOp::Truncate => FileOperation::Truncate,
        ChangeOp::Chmod => FileOperation::Chmod,
        ChangeOp::Chown => FileOperation::Chown,
        ChangeOp::Xattr { .. } => FileOperation::Xattr,
        ChangeOp::Tmpfile => FileOperation::Tmpfile,
        ChangeOp::Write { .. } => FileOperation::Write,
    }
}

fn flags(op: ChangeOp) -> Vec<FileFlag> {
    let all = match op {
        ChangeOp::Open { truncates } => [(truncates, FileFlag::Truncates), (false, FileFlag::Truncates)],
        ChangeOp::Rename { exchanges, replaces } => [(exchanges, FileFlag::Exchanges), (replaces, FileFlag::Replaces)],
        ChangeOp::Xattr { removes } => [(removes, FileFlag::Removes), (false, FileFlag::Removes)],
        ChangeOp::Write { maps } => [(maps, FileFlag::Maps), (false, FileFlag::Maps)],
        _ => return Vec::new(),
    };
    all.into_iter().filter_map(|(is, flag)| is.then_some(flag)).collect()
}

/// For records.
pub(crate) fn file_action(asked: &AskedChange) -> FileAction {
    let change = &asked.change;
    let text = |path: &Path| Text::from(path.as_os_str().as_bytes());
    let words = (!change.text.is_empty()).then(|| Text::from(change.text.as_slice()));
    let (target, attribute) = match change.op {
        ChangeOp::Symlink => (words, None),
        ChangeOp::Xattr { .. } => (None, words),
        _ => (None, None),
    };
    let asks_mode = matches!(
        change.op,
        ChangeOp::Create | ChangeOp::Mkdir | ChangeOp::Mknod | ChangeOp::Chmod | ChangeOp::Tmpfile
    );
    FileAction {
        operation: operation(change.op),
        path: change.path.as_deref().map(text),
        new_path: change.second.as_deref().map(text),
        path_in_file_system: change.below_root.as_deref().map(text),
        target,
        attribute,
        flags: flags(change.op),
        directory: change.directory,
        device: asked.file.device,
        inode: asked.file.inode,
        generation: asked.file.generation,
        mode: asks_mode.then_some(change.mode),
        uid: change.owner[0],
        gid: change.owner[1],
        old_mode: change.old.map(|old| old.mode),
        old_size: change.old.filter(|_| !change.directory).map(|old| old.size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::api::{Change, FileKey, OldFile};

    fn asked(op: ChangeOp) -> AskedChange {
        AskedChange {
            file: FileKey {
                device: 1,
                inode: 2,
                generation: 3,
            },
            change: Change {
                op,
                path: Some("/a".into()),
                second: None,
                below_root: None,
                text: b"x".to_vec(),
                directory: false,
                mode: 0,
                owner: [None, Some(5)],
                old: Some(OldFile {
                    size: 9,
                    mode: 0o100_644,
                }),
            },
        }
    }

    #[test]
    fn a_second_path_that_is_not_known_is_not_the_same_as_none() {
        assert_eq!(facts(&asked(ChangeOp::Unlink)).new_path, None);
        assert_eq!(facts(&asked(ChangeOp::Link)).new_path, Some(None));
    }

    #[test]
    fn records_say_what_is_changed_and_how() {
        let record = file_action(&asked(ChangeOp::Open { truncates: true }));
        assert_eq!(record.flags, [FileFlag::Truncates]);
        assert_eq!((record.mode, record.old_size), (None, Some(9)));
        let record = file_action(&asked(ChangeOp::Symlink));
        assert_eq!((record.target, record.attribute), (Some(Text::from("x")), None));
        assert_eq!(file_action(&asked(ChangeOp::Chown)).gid, Some(5));
    }
}
