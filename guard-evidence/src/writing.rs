//! What a change of a file says, in words for people.
//!
//! Owns the sentence, the line and the facts of it. It is given a record. It must never show text of the workload but by
//! [`crate::text`].

use crate::record::{FileAction, FileFlag, FileOperation};
use crate::statement::{Part, Style};
use crate::text::{Text, visible_fold};

impl FileAction {
    fn has(&self, flag: FileFlag) -> bool {
        self.flags.contains(&flag)
    }

    /// Of what is made by mknod(2).
    fn sort(&self) -> &'static str {
        match self.mode.unwrap_or(0) & 0o170_000 {
            0o010_000 => "named pipe",
            0o140_000 => "unix socket",
            0o020_000 => "character device",
            0o060_000 => "block device",
            _ => "file",
        }
    }

    /// For a sentence: verb, and whether the word names a danger.
    fn verb(&self) -> (&'static str, bool) {
        match self.operation {
            FileOperation::Open if self.has(FileFlag::Truncates) => ("overwrite", true),
            FileOperation::Open => ("change", false),
            FileOperation::Create => ("create", false),
            FileOperation::Unlink => ("delete", true),
            FileOperation::Rename if self.has(FileFlag::Exchanges) => ("exchange", true),
            FileOperation::Rename if self.directory => ("rename the directory", false),
            FileOperation::Rename => ("rename", false),
            FileOperation::Link => ("give another name to", false),
            FileOperation::Symlink => ("create the symbolic link", false),
            FileOperation::Mkdir => ("create the directory", false),
            FileOperation::Rmdir => ("delete the directory", true),
            FileOperation::Mknod => ("create", false),
            FileOperation::Truncate => ("cut or extend", true),
            FileOperation::Chmod => ("change the mode of", true),
            FileOperation::Chown => ("change the owner of", true),
            FileOperation::Xattr => ("change an attribute of", true),
            FileOperation::Tmpfile => ("create a file without a name in", false),
            FileOperation::Write if self.has(FileFlag::Maps) => ("map for writing", true),
            FileOperation::Write => ("write to the file, opened before or elsewhere,", true),
        }
    }
}

/// A path, safe to show; what stands for it when it is not known.
fn named(path: Option<&Text>, action: &FileAction, max: usize) -> String {
    match (path, &action.path_in_file_system) {
        (Some(path), _) => path.fold(max),
        (None, Some(path)) => format!("{} of device {}", path.fold(max), action.device),
        (None, None) => format!("a file whose path is not known (inode {})", action.inode),
    }
}

/// The end of the sentence, from its verb on.
pub(crate) fn sentence(action: &FileAction, max: usize) -> Vec<Part> {
    let part = |text: String, style| Part { text, style };
    let plain = |text: &str| part(text.to_owned(), Style::Plain);
    let (verb, danger) = action.verb();
    let style = if danger { Style::Danger } else { Style::Plain };
    let mut parts = vec![plain(" wants to "), part(verb.to_owned(), style), plain(" ")];
    if action.operation == FileOperation::Mknod {
        parts.push(part(format!("the {}", action.sort()), Style::Danger));
        parts.push(plain(" "));
    }
    parts.push(part(named(action.path.as_ref(), action, max), Style::What));
    let new = || part(named(action.new_path.as_ref(), action, max), Style::What);
    match action.operation {
        FileOperation::Rename if action.has(FileFlag::Exchanges) => parts.extend([plain(" with "), new()]),
        FileOperation::Rename if action.has(FileFlag::Replaces) => {
            parts.extend([
                plain(" to "),
                new(),
                plain(", "),
                part("replacing it".to_owned(), Style::Danger),
            ]);
        }
        FileOperation::Rename => parts.extend([plain(" to "), new()]),
        FileOperation::Link => parts.extend([plain(": "), new()]),
        FileOperation::Symlink => {
            let target = action
                .target
                .as_ref()
                .map_or_else(String::new, |target| target.fold(max));
            parts.extend([plain(" to "), part(target, Style::What)]);
        }
        FileOperation::Chmod => parts.push(plain(&format!(" to {:04o}", action.mode.unwrap_or(0) & 0o7777))),
        FileOperation::Chown => parts.push(plain(&format!(" to {}", owner(action)))),
        _ => {}
    }
    parts
}

fn owner(action: &FileAction) -> String {
    match (action.uid, action.gid) {
        (Some(uid), Some(gid)) => format!("uid {uid}, gid {gid}"),
        (Some(uid), None) => format!("uid {uid}"),
        (None, Some(gid)) => format!("gid {gid}"),
        (None, None) => "the same".to_owned(),
    }
}

/// One line for lists: `overwrite /etc/ssh/sshd_config`, `rename /a → /b`.
pub(crate) fn line(action: &FileAction, max: usize) -> String {
    let path = named(action.path.as_ref(), action, max);
    let word = match action.operation {
        FileOperation::Open if action.has(FileFlag::Truncates) => "overwrite",
        FileOperation::Write if action.has(FileFlag::Maps) => "map",
        other => other.word(),
    };
    match action.operation {
        FileOperation::Rename | FileOperation::Link => {
            let arrow = if action.has(FileFlag::Exchanges) { "⇄" } else { "→" };
            format!("{word} {path} {arrow} {}", named(action.new_path.as_ref(), action, max))
        }
        FileOperation::Symlink => {
            let target = action
                .target
                .as_ref()
                .map_or_else(String::new, |target| target.fold(max));
            format!("{word} {path} → {target}")
        }
        FileOperation::Chmod => format!("{word} {:04o} {path}", action.mode.unwrap_or(0) & 0o7777),
        FileOperation::Chown => format!("{word} {path} to {}", owner(action)),
        _ => format!("{word} {path}"),
    }
}

/// Name of the subject of a record.
pub(crate) fn subject(action: &FileAction) -> String {
    format!("file:{}", line(action, usize::MAX))
}

/// Exactly what, for a card: names and values, safe to show.
#[must_use]
pub fn facts(action: &FileAction, max: usize) -> Vec<(&'static str, String)> {
    let mut facts = vec![("Operation", operation_words(action).to_owned())];
    facts.push(("Path", named(action.path.as_ref(), action, max)));
    if matches!(action.operation, FileOperation::Rename | FileOperation::Link) {
        facts.push(("New path", named(action.new_path.as_ref(), action, max)));
    }
    facts.extend(action.target.as_ref().map(|target| ("Points at", target.fold(max))));
    facts.extend(action.attribute.as_ref().map(|name| ("Attribute", name.fold(max))));
    if let Some(mode) = action.mode.filter(|mode| *mode != 0) {
        facts.push(("Mode", format!("{:04o}", mode & 0o7777)));
    }
    if action.uid.is_some() || action.gid.is_some() {
        facts.push(("Owner", owner(action)));
    }
    if let Some(mode) = action.old_mode {
        facts.push(("Mode now", format!("{:04o}", mode & 0o7777)));
    }
    facts.extend(action.old_size.map(|size| ("Size now", format!("{size} bytes"))));
    facts.push((
        "Inode",
        visible_fold(&format!("{} on device {}", action.inode, action.device), 80),
    ));
    let holds = match action.operation {
        FileOperation::Open | FileOperation::Create | FileOperation::Tmpfile | FileOperation::Write => {
            "holds for this one open file, for as long as it is open"
        }
        _ => "holds for this one system call",
    };
    facts.push(("An approval", holds.to_owned()));
    facts
}

fn operation_words(action: &FileAction) -> &'static str {
    match action.operation {
        FileOperation::Open if action.has(FileFlag::Truncates) => "open for writing; what is in the file goes",
        FileOperation::Open => "open for writing",
        FileOperation::Create => "create",
        FileOperation::Unlink => "delete (unlink)",
        FileOperation::Rename if action.has(FileFlag::Exchanges) => "the two names change places",
        FileOperation::Rename if action.has(FileFlag::Replaces) => "rename; what is under the new name goes",
        FileOperation::Rename => "rename",
        FileOperation::Link => "another name (hard link)",
        FileOperation::Symlink => "symbolic link",
        FileOperation::Mkdir => "create a directory",
        FileOperation::Rmdir => "delete a directory",
        FileOperation::Mknod => "create a special file",
        FileOperation::Truncate => "cut or extend (truncate)",
        FileOperation::Chmod => "change the mode",
        FileOperation::Chown => "change the owner",
        FileOperation::Xattr if action.has(FileFlag::Removes) => "take an attribute away",
        FileOperation::Xattr => "set an attribute",
        FileOperation::Tmpfile => "create a file without a name (O_TMPFILE)",
        FileOperation::Write if action.has(FileFlag::Maps) => {
            "map a file shared that was opened for writing before the label, or by somebody else"
        }
        FileOperation::Write => "write through a descriptor from before the label, or from somebody else",
    }
}

/// What could go wrong, from the facts alone.
#[must_use]
pub fn risks(action: &FileAction) -> Vec<&'static str> {
    let mut risks = Vec::new();
    if action.has(FileFlag::Truncates) {
        risks.push("What is in the file now is lost.");
    }
    if action.has(FileFlag::Replaces) {
        risks.push("The file that has the new name now is lost.");
    }
    if action.path.is_none() {
        risks.push(
            "The file has no path of this host: it is in another mount namespace, or the path is too long to be read whole.",
        );
    }
    if action.operation == FileOperation::Chmod && action.mode.unwrap_or(0) & 0o6000 != 0 {
        risks.push("Whoever runs it gets the rights of its owner or group (setuid or setgid).");
    }
    risks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn action(operation: FileOperation, path: &str) -> FileAction {
        FileAction {
            operation,
            path: Some(Text::from(path)),
            inode: 7,
            ..FileAction::default()
        }
    }

    fn said(action: &FileAction) -> String {
        crate::statement::plain_sentence(&sentence(action, 160))
    }

    #[test]
    fn sentences_name_the_danger_and_both_ends() {
        let mut overwrite = action(FileOperation::Open, "/etc/ssh/sshd_config");
        overwrite.flags.push(FileFlag::Truncates);
        assert_eq!(said(&overwrite), " wants to overwrite `/etc/ssh/sshd_config`");
        assert_eq!(line(&overwrite, 160), "overwrite /etc/ssh/sshd_config");
        assert!(sentence(&overwrite, 160).iter().any(|part| part.style == Style::Danger));
        let mut rename = action(FileOperation::Rename, "/a");
        rename.new_path = Some(Text::from("/b"));
        rename.flags.push(FileFlag::Replaces);
        assert_eq!(said(&rename), " wants to rename `/a` to `/b`, replacing it");
        rename.flags = vec![FileFlag::Exchanges];
        assert_eq!(line(&rename, 160), "rename /a ⇄ /b");
        let mut mode = action(FileOperation::Chmod, "/bin/x");
        mode.mode = Some(0o104_755);
        assert_eq!(said(&mode), " wants to change the mode of `/bin/x` to 4755");
        assert!(risks(&mode).iter().any(|risk| risk.contains("setuid")));
    }

    #[test]
    fn names_of_the_workload_are_shown_escaped_and_unknown_ones_as_such() {
        let newline = action(FileOperation::Create, "/tmp/a\nb\u{1b}[2J");
        assert!(!said(&newline).contains(['\n', '\u{1b}']));
        let unknown = FileAction {
            operation: FileOperation::Unlink,
            inode: 7,
            ..FileAction::default()
        };
        assert!(said(&unknown).contains("not known (inode 7)"));
    }
}
