//! Turns ring bytes into events.
//!
//! Owns the decoder; given one record of the ring. It must never trust a length or a count in it: a record that is not
//! exactly what the ABI says is an error that is counted, never a panic.

use std::net::{IpAddr, Ipv6Addr};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use guard_common::rules::RuleKey;
use guard_common::{
    ABI_VERSION, ABSTRACT_ROOM, ActionKey, AskAddress, AskExec, AskFile, AskUnix, CGROUP_PATH_ROOM, Cgroup, Ended,
    NAME_ROOM, PATH_DEPTH, PATH_ROOM, Parked, REPLY_ROOM, Resolved, Signal, action, ask_flag, event, file_op,
};

use super::file_key::FileKey;
use super::told::{Change, ChangeOp, LabelId, OldFile, ReachHow, Reply};

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(crate) enum DecodeError {
    #[error("an event of {0} bytes is shorter than its header")]
    Short(usize),
    #[error("an event of ABI {0}, this agent speaks {ABI_VERSION}")]
    Abi(u16),
    #[error("an event of kind {0}, which this agent does not know")]
    Kind(u16),
    #[error("an event of kind {kind} says {said} bytes, has {has}, should have {expected}")]
    Size {
        kind: u16,
        said: u32,
        has: usize,
        expected: usize,
    },
    #[error("an event of kind {0} has a {1} out of range")]
    Range(u16, &'static str),
}

/// An ask for exec, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ask {
    pub task: u64,
    pub asked_ns: u64,
    pub start_ns: u64,
    pub cgroup: u64,
    pub key: ActionKey,
    pub tid: u32,
    pub tgid: u32,
    pub ppid: u32,
    pub uid: u32,
    pub gid: u32,
    pub login_uid: Option<u32>,
    pub label: u32,
    pub comm: Vec<u8>,
    pub what: Subject,
}

/// What is asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    Exec {
        path: Option<PathBuf>,
        unlinked: bool,
        mount_namespace: u32,
        rule: RuleKey,
    },
    Address {
        address: IpAddr,
        port: u16,
        scope: u32,
        how: ReachHow,
    },
    /// A unix socket with a name in the file system.
    Unix {
        path: Option<PathBuf>,
        mount_namespace: u32,
        how: ReachHow,
    },
    /// A unix socket with another name, or none.
    Abstract { name: Vec<u8>, how: ReachHow },
    /// A change of a file or name.
    File { change: Box<Change>, mount_namespace: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Ask(Box<Ask>),
    Ended(Ended),
    Parked(Parked),
    Signal(Signal),
    CgroupMade { id: u64, label: u32, path: PathBuf },
    CgroupGone { id: u64 },
    Resolved(Box<Reply>),
}

/// Little-endian fields in order.
struct Fields<'a> {
    bytes: &'a [u8],
}

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (head, rest) = self.bytes.split_at_checked(count).unwrap_or((&[], &[]));
        self.bytes = rest;
        head
    }

    fn u16(&mut self) -> u16 {
        self.take(2).try_into().map_or(0, u16::from_le_bytes)
    }

    fn u32(&mut self) -> u32 {
        self.take(4).try_into().map_or(0, u32::from_le_bytes)
    }

    fn u64(&mut self) -> u64 {
        self.take(8).try_into().map_or(0, u64::from_le_bytes)
    }

    fn key(&mut self) -> ActionKey {
        ActionKey {
            kind: self.u32(),
            op: self.u32(),
            device: self.u32(),
            generation: self.u32(),
            inode: self.u64(),
            extra: [self.u64(), self.u64(), self.u64()],
        }
    }
}

impl Fields<'_> {
    fn rule(&mut self) -> RuleKey {
        RuleKey {
            label: self.u32(),
            kind: self.u32(),
            op: self.u32(),
            device: self.u32(),
            generation: self.u32(),
            how: self.u32(),
            inode: self.u64(),
            extra: [self.u64(), self.u64()],
        }
    }
}

/// Decodes one record.
pub(crate) fn decode(bytes: &[u8]) -> Result<Event, DecodeError> {
    if bytes.len() < 8 {
        return Err(DecodeError::Short(bytes.len()));
    }
    let mut fields = Fields { bytes };
    let (abi, kind, said) = (fields.u16(), fields.u16(), fields.u32());
    if abi != ABI_VERSION {
        return Err(DecodeError::Abi(abi));
    }
    let expected = match kind {
        event::ASK_EXEC => size_of::<AskExec>(),
        event::ASK_ADDRESS => size_of::<AskAddress>(),
        event::ASK_UNIX => size_of::<AskUnix>(),
        event::ASK_FILE => size_of::<AskFile>(),
        event::ENDED => size_of::<Ended>(),
        event::PARKED => size_of::<Parked>(),
        event::SIGNAL => size_of::<Signal>(),
        event::CGROUP_MADE | event::CGROUP_GONE => size_of::<Cgroup>(),
        event::RESOLVED => size_of::<Resolved>(),
        _ => return Err(DecodeError::Kind(kind)),
    };
    if said as usize != expected || bytes.len() != expected {
        return Err(DecodeError::Size {
            kind,
            said,
            has: bytes.len(),
            expected,
        });
    }
    let header = guard_common::EventHeader { abi, kind, size: said };
    Ok(match kind {
        event::ASK_EXEC | event::ASK_ADDRESS | event::ASK_UNIX | event::ASK_FILE => {
            Event::Ask(Box::new(ask(kind, &mut fields)?))
        }
        event::ENDED => Event::Ended(Ended {
            header,
            task: fields.u64(),
            asked_ns: fields.u64(),
            at_ns: fields.u64(),
            tid: fields.u32(),
            how: fields.u32(),
            errno: fields.u32(),
            verdict: fields.u32(),
        }),
        event::PARKED => Event::Parked(Parked {
            header,
            task: fields.u64(),
            asked_ns: fields.u64(),
            tid: fields.u32(),
            tgid: fields.u32(),
            state: fields.u32(),
            reserved: fields.u32(),
        }),
        event::SIGNAL => Event::Signal(Signal {
            header,
            tid: fields.u32(),
            tgid: fields.u32(),
            signal: fields.u32(),
            group: fields.u32(),
        }),
        event::RESOLVED => Event::Resolved(Box::new(reply(&mut fields)?)),
        _ => {
            let (id, length, label) = (fields.u64(), fields.u32() as usize, fields.u32());
            let room = fields.take(CGROUP_PATH_ROOM);
            let path = room.get(..length).ok_or(DecodeError::Range(kind, "path length"))?;
            if kind == event::CGROUP_GONE {
                Event::CgroupGone { id }
            } else {
                Event::CgroupMade {
                    id,
                    label,
                    path: std::ffi::OsString::from_vec(path.to_vec()).into(),
                }
            }
        }
    })
}

fn reply(fields: &mut Fields<'_>) -> Result<Reply, DecodeError> {
    let range = |what| DecodeError::Range(event::RESOLVED, what);
    let (label, length) = (fields.u32(), fields.u32() as usize);
    if label == 0 {
        return Err(range("label"));
    }
    let resolver: [u8; 16] = fields.take(16).try_into().map_err(|_| range("address"))?;
    let (network_namespace, _) = (fields.u32(), fields.u32());
    let message = fields.take(REPLY_ROOM).get(..length).ok_or(range("length"))?.to_vec();
    Ok(Reply {
        label: LabelId(label),
        resolver: Ipv6Addr::from(resolver).to_canonical(),
        network_namespace,
        message,
    })
}

fn ask(kind: u16, fields: &mut Fields<'_>) -> Result<Ask, DecodeError> {
    let range = |what| DecodeError::Range(kind, what);
    let (task, asked_ns, start_ns, cgroup) = (fields.u64(), fields.u64(), fields.u64(), fields.u64());
    let key = fields.key();
    let expected = match kind {
        event::ASK_EXEC => action::EXEC,
        event::ASK_ADDRESS => action::REACH,
        event::ASK_FILE => action::FILE,
        _ => action::REACH_UNIX,
    };
    if key.kind != expected {
        return Err(range("action kind"));
    }
    let (tid, tgid, ppid) = (fields.u32(), fields.u32(), fields.u32());
    let (uid, gid, login_uid) = (fields.u32(), fields.u32(), fields.u32());
    let (label, flags) = (fields.u32(), fields.u32());
    if i32::try_from(tid).is_err() || tid == 0 || i32::try_from(tgid).is_err() || tgid == 0 {
        return Err(range("thread id"));
    }
    if label == 0 {
        return Err(range("label"));
    }
    let comm = fields.take(16);
    let comm = comm.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    let what = match kind {
        event::ASK_ADDRESS => address(fields, flags)?,
        event::ASK_FILE => file(fields, key.op, flags)?,
        _ => named(kind, fields, flags)?,
    };
    Ok(Ask {
        task,
        asked_ns,
        start_ns,
        cgroup,
        key,
        tid,
        tgid,
        ppid,
        uid,
        gid,
        login_uid: (login_uid != u32::MAX).then_some(login_uid),
        label,
        comm,
        what,
    })
}

const fn how(flags: u32) -> ReachHow {
    if flags & ask_flag::LISTEN != 0 {
        ReachHow::Listen
    } else if flags & ask_flag::CONNECTED_BEFORE != 0 {
        ReachHow::ConnectedBefore
    } else if flags & ask_flag::MESSAGE != 0 {
        ReachHow::Message
    } else {
        ReachHow::Connect
    }
}

fn address(fields: &mut Fields<'_>, flags: u32) -> Result<Subject, DecodeError> {
    let range = |what| DecodeError::Range(event::ASK_ADDRESS, what);
    let bytes: [u8; 16] = fields.take(16).try_into().map_err(|_| range("address"))?;
    let port = u16::try_from(fields.u32()).map_err(|_| range("port"))?;
    Ok(Subject::Address {
        address: Ipv6Addr::from(bytes).to_canonical(),
        port,
        scope: fields.u32(),
        how: how(flags),
    })
}

/// The end of an `AskExec` or `AskUnix`.
fn named(kind: u16, fields: &mut Fields<'_>, flags: u32) -> Result<Subject, DecodeError> {
    let range = |what| DecodeError::Range(kind, what);
    let rule = (kind == event::ASK_EXEC).then(|| fields.rule());
    let length = fields.u32() as usize;
    let mount_namespace = fields.u32();
    let names = fields
        .take(PATH_ROOM + NAME_ROOM)
        .get(..length)
        .ok_or(range("path length"))?;
    let whole = flags & ask_flag::PATH_WHOLE != 0;
    if let Some(rule) = rule {
        let unlinked = flags & ask_flag::UNLINKED != 0;
        return Ok(Subject::Exec {
            path: path(names, whole, unlinked).ok_or(range("path"))?,
            unlinked,
            mount_namespace,
            rule,
        });
    }
    if flags & ask_flag::ABSTRACT != 0 {
        if length > ABSTRACT_ROOM {
            return Err(range("path length"));
        }
        return Ok(Subject::Abstract {
            name: names.to_vec(),
            how: how(flags),
        });
    }
    Ok(Subject::Unix {
        path: path(names, whole, false).ok_or(range("path"))?,
        mount_namespace,
        how: how(flags),
    })
}

/// What a key's operation says.
fn change_op(op: u32) -> Option<ChangeOp> {
    let flag = |flag: u32| op & flag != 0;
    let (what, may) = match op & file_op::MASK {
        file_op::OPEN => (
            ChangeOp::Open {
                truncates: flag(file_op::TRUNCATES),
            },
            file_op::TRUNCATES,
        ),
        file_op::CREATE => (ChangeOp::Create, 0),
        file_op::UNLINK => (ChangeOp::Unlink, 0),
        file_op::RENAME => (
            ChangeOp::Rename {
                exchanges: flag(file_op::EXCHANGES),
                replaces: flag(file_op::REPLACES),
            },
            file_op::EXCHANGES | file_op::REPLACES,
        ),
        file_op::LINK => (ChangeOp::Link, 0),
        file_op::SYMLINK => (ChangeOp::Symlink, 0),
        file_op::MKDIR => (ChangeOp::Mkdir, 0),
        file_op::RMDIR => (ChangeOp::Rmdir, 0),
        file_op::MKNOD => (ChangeOp::Mknod, 0),
        file_op::TRUNCATE => (ChangeOp::Truncate, 0),
        file_op::CHMOD => (ChangeOp::Chmod, 0),
        file_op::CHOWN => (ChangeOp::Chown, 0),
        file_op::XATTR => (
            ChangeOp::Xattr {
                removes: flag(file_op::OTHERWISE),
            },
            file_op::OTHERWISE,
        ),
        file_op::TMPFILE => (ChangeOp::Tmpfile, 0),
        file_op::WRITE => (
            ChangeOp::Write {
                maps: flag(file_op::OTHERWISE),
            },
            file_op::OTHERWISE,
        ),
        _ => return None,
    };
    (op & !(file_op::MASK | may) == 0).then_some(what)
}

/// The end of an `AskFile`.
fn file(fields: &mut Fields<'_>, op: u32, flags: u32) -> Result<Subject, DecodeError> {
    let range = |what| DecodeError::Range(event::ASK_FILE, what);
    let op = change_op(op).ok_or(range("operation"))?;
    let (length, first, mount_namespace) = (fields.u32() as usize, fields.u32() as usize, fields.u32());
    let mode = fields.u32();
    let numbers = [fields.u32(), fields.u32()];
    let (size, old_mode, _) = (fields.u64(), fields.u32(), fields.u32());
    let names = fields.take(PATH_ROOM + NAME_ROOM);
    let names = names.get(..length).ok_or(range("path length"))?;
    let (names, rest) = names.split_at_checked(first).ok_or(range("path length"))?;
    let whole = flags & ask_flag::PATH_WHOLE != 0;
    let below = flags & ask_flag::MOUNT_UNKNOWN != 0;
    // Without a mount the walk ends at the root of the file system, whose own name is a slash.
    let (names, whole) = match names.strip_suffix(b"/\0") {
        Some(names) if below => (names, true),
        _ => (names, whole && !below),
    };
    let found = path(names, whole, false).ok_or(range("path"))?;
    let two = matches!(op, ChangeOp::Rename { .. } | ChangeOp::Link);
    let second = if two {
        path(rest, flags & ask_flag::SECOND_WHOLE != 0, false).ok_or(range("second path"))?
    } else {
        None
    };
    let number = |number: u32| (op == ChangeOp::Chown && number != u32::MAX).then_some(number);
    let (path, below_root) = if below { (None, found) } else { (found, None) };
    Ok(Subject::File {
        change: Box::new(Change {
            op,
            path,
            second,
            below_root,
            text: if two { Vec::new() } else { rest.to_vec() },
            directory: flags & ask_flag::DIRECTORY != 0,
            mode,
            owner: numbers.map(number),
            old: (old_mode != 0).then_some(OldFile { size, mode: old_mode }),
        }),
        mount_namespace,
    })
}

/// Names from the file up to the root, each followed by NUL. The outer `None` is malformed, the inner one is "did not
/// fit".
fn path(names: &[u8], whole: bool, unlinked: bool) -> Option<Option<PathBuf>> {
    if names.is_empty() {
        return Some(whole.then(|| PathBuf::from("/")));
    }
    let names = names.strip_suffix(&[0])?;
    let parts: Vec<&[u8]> = names.split(|byte| *byte == 0).collect();
    if parts.len() > PATH_DEPTH
        || parts
            .iter()
            .any(|part| part.is_empty() || part.contains(&b'/') && whole)
    {
        return None;
    }
    // A memfd's name is the workload's, slashes included: it may never read as an absolute path.
    let nameless = unlinked && parts.len() == 1 && !parts[0].starts_with(b"/");
    if !whole && !nameless {
        return Some(None);
    }
    let mut out = Vec::with_capacity(names.len() + 1);
    for part in parts.iter().rev() {
        if whole {
            out.push(b'/');
        }
        out.extend_from_slice(part);
    }
    Some(Some(std::ffi::OsString::from_vec(out).into()))
}

/// For the fuzzer: any bytes.
pub fn fuzz_decode(data: &[u8]) {
    let _ = decode(data);
}

/// The file part of a key.
#[must_use]
pub(crate) fn file_key(key: &ActionKey) -> FileKey {
    FileKey {
        device: key.device,
        inode: key.inode,
        generation: key.generation,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask_bytes() -> Vec<u8> {
        let mut bytes = vec![0u8; size_of::<AskExec>()];
        bytes[0..2].copy_from_slice(&ABI_VERSION.to_le_bytes());
        bytes[2..4].copy_from_slice(&event::ASK_EXEC.to_le_bytes());
        let size = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(8, &7u64.to_le_bytes());
        put(40, &action::EXEC.to_le_bytes());
        put(48, &0x80_0001u32.to_le_bytes());
        put(52, &5u32.to_le_bytes());
        put(56, &77u64.to_le_bytes());
        put(88, &100u32.to_le_bytes());
        put(92, &99u32.to_le_bytes());
        put(108, &u32::MAX.to_le_bytes());
        put(112, &3u32.to_le_bytes());
        put(116, &ask_flag::PATH_WHOLE.to_le_bytes());
        put(120, b"sh\0garbage");
        put(184, &8u32.to_le_bytes());
        put(192, b"git\0bin\0");
        bytes
    }

    fn exec_of(ask: &Ask) -> (Option<PathBuf>, bool) {
        match &ask.what {
            Subject::Exec { path, unlinked, .. } => (path.clone(), *unlinked),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_address_is_read_and_ipv4_shows_as_such() {
        let mut bytes = ask_bytes();
        bytes.truncate(size_of::<AskAddress>());
        bytes[2..4].copy_from_slice(&event::ASK_ADDRESS.to_le_bytes());
        let size = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes[40..44].copy_from_slice(&action::REACH.to_le_bytes());
        bytes[116..120].copy_from_slice(&ask_flag::MESSAGE.to_le_bytes());
        bytes[136..152].copy_from_slice(&"::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets());
        bytes[152..156].copy_from_slice(&443u32.to_le_bytes());
        bytes[156..160].copy_from_slice(&0u32.to_le_bytes());
        let Ok(Event::Ask(ask)) = decode(&bytes) else {
            panic!("{:?}", decode(&bytes))
        };
        assert_eq!(
            ask.what,
            Subject::Address {
                address: "192.0.2.7".parse().unwrap(),
                port: 443,
                scope: 0,
                how: ReachHow::Message,
            }
        );
        bytes[154] = 1;
        assert_eq!(decode(&bytes), Err(DecodeError::Range(event::ASK_ADDRESS, "port")));
        bytes[154] = 0;
        bytes[40..44].copy_from_slice(&action::EXEC.to_le_bytes());
        assert_eq!(
            decode(&bytes),
            Err(DecodeError::Range(event::ASK_ADDRESS, "action kind"))
        );
    }

    fn file_bytes(op: u32, flags: u32, first: &[u8], second: &[u8]) -> Vec<u8> {
        let mut bytes = ask_bytes();
        bytes.truncate(136);
        bytes.resize(size_of::<AskFile>(), 0);
        bytes[2..4].copy_from_slice(&event::ASK_FILE.to_le_bytes());
        let size = u32::try_from(bytes.len()).unwrap();
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(4, &size.to_le_bytes());
        put(40, &action::FILE.to_le_bytes());
        put(44, &op.to_le_bytes());
        put(116, &flags.to_le_bytes());
        put(136, &u32::try_from(first.len() + second.len()).unwrap().to_le_bytes());
        put(140, &u32::try_from(first.len()).unwrap().to_le_bytes());
        put(152, &7u32.to_le_bytes());
        put(156, &u32::MAX.to_le_bytes());
        put(160, &9u64.to_le_bytes());
        put(168, &0o100_644u32.to_le_bytes());
        put(176, first);
        put(176 + first.len(), second);
        bytes
    }

    fn change_of(bytes: &[u8]) -> Change {
        match decode(bytes) {
            Ok(Event::Ask(ask)) => match ask.what {
                Subject::File { change, .. } => *change,
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn both_paths_of_a_rename_are_read_and_what_did_not_fit_is_none() {
        let both = ask_flag::PATH_WHOLE | ask_flag::SECOND_WHOLE;
        let rename = file_op::RENAME | file_op::REPLACES;
        let change = change_of(&file_bytes(rename, both, b"a\0srv\0", b"hosts\0etc\0"));
        let op = ChangeOp::Rename {
            exchanges: false,
            replaces: true,
        };
        assert_eq!(change.op, op);
        assert_eq!(
            (change.path, change.second),
            (Some("/srv/a".into()), Some("/etc/hosts".into()))
        );
        let old = OldFile {
            size: 9,
            mode: 0o100_644,
        };
        assert_eq!(change.old, Some(old));
        let change = change_of(&file_bytes(rename, ask_flag::PATH_WHOLE, b"a\0srv\0", b"hosts\0etc\0"));
        assert_eq!((change.path, change.second), (Some("/srv/a".into()), None));
    }

    #[test]
    fn the_rest_of_a_change_of_a_file_is_what_its_operation_has() {
        let change = change_of(&file_bytes(
            file_op::SYMLINK,
            ask_flag::PATH_WHOLE,
            b"l\0srv\0",
            b"/etc/passwd",
        ));
        assert_eq!((change.text.as_slice(), change.second), (&b"/etc/passwd"[..], None));
        let change = change_of(&file_bytes(file_op::CHOWN, ask_flag::PATH_WHOLE, b"l\0srv\0", b""));
        assert_eq!(change.owner, [Some(7), None]);
        let change = change_of(&file_bytes(
            file_op::XATTR,
            ask_flag::MOUNT_UNKNOWN,
            b"l\0srv\0/\0",
            b"user.x",
        ));
        assert_eq!((change.path, change.below_root), (None, Some("/srv/l".into())));
        // The walk did not come to the root of the file system.
        let change = change_of(&file_bytes(
            file_op::XATTR,
            ask_flag::MOUNT_UNKNOWN,
            b"l\0srv\0",
            b"user.x",
        ));
        assert_eq!((change.path, change.below_root), (None, None));
        for (op, what) in [
            (0, "operation"),
            (99, "operation"),
            (file_op::UNLINK | file_op::REPLACES, "operation"),
        ] {
            let bytes = file_bytes(op, ask_flag::PATH_WHOLE, b"a\0", b"");
            assert_eq!(decode(&bytes), Err(DecodeError::Range(event::ASK_FILE, what)), "{op}");
        }
        let mut bytes = file_bytes(file_op::UNLINK, ask_flag::PATH_WHOLE, b"a\0", b"");
        bytes[140] = 3;
        assert_eq!(decode(&bytes), Err(DecodeError::Range(event::ASK_FILE, "path length")));
    }

    #[test]
    fn a_resolvers_reply_is_as_long_as_it_says() {
        let mut bytes = vec![0u8; size_of::<Resolved>()];
        bytes[0..2].copy_from_slice(&ABI_VERSION.to_le_bytes());
        bytes[2..4].copy_from_slice(&event::RESOLVED.to_le_bytes());
        let size = u32::try_from(bytes.len()).unwrap();
        bytes[4..8].copy_from_slice(&size.to_le_bytes());
        bytes[8] = 3;
        bytes[12] = 2;
        bytes[16..32].copy_from_slice(&"::ffff:127.0.0.53".parse::<Ipv6Addr>().unwrap().octets());
        bytes[32] = 9;
        bytes[40..43].copy_from_slice(b"abc");
        let expected = Reply {
            label: LabelId(3),
            resolver: "127.0.0.53".parse().unwrap(),
            network_namespace: 9,
            message: b"ab".to_vec(),
        };
        assert_eq!(decode(&bytes), Ok(Event::Resolved(Box::new(expected))));
        bytes[13] = 9;
        assert_eq!(decode(&bytes), Err(DecodeError::Range(event::RESOLVED, "length")));
        bytes[13] = 0;
        bytes[8] = 0;
        assert_eq!(decode(&bytes), Err(DecodeError::Range(event::RESOLVED, "label")));
    }

    #[test]
    fn an_ask_is_read_field_by_field() {
        let Ok(Event::Ask(ask)) = decode(&ask_bytes()) else {
            panic!("not an ask")
        };
        assert_eq!(exec_of(&ask), (Some(PathBuf::from("/bin/git")), false));
        assert_eq!((ask.tid, ask.tgid, ask.label), (100, 99, 3));
        assert_eq!(
            file_key(&ask.key),
            FileKey {
                device: 0x80_0001,
                inode: 77,
                generation: 5
            }
        );
        assert_eq!(ask.comm, b"sh");
        assert_eq!(ask.login_uid, None);
    }

    #[test]
    fn a_path_that_did_not_fit_is_none_and_a_nameless_file_keeps_its_last_name() {
        let mut bytes = ask_bytes();
        bytes[116] = 0;
        let Ok(Event::Ask(ask)) = decode(&bytes) else {
            panic!("not an ask")
        };
        assert_eq!(exec_of(&ask).0, None);
        bytes[116..120].copy_from_slice(&ask_flag::UNLINKED.to_le_bytes());
        bytes[184] = 9;
        bytes[192..201].copy_from_slice(b"memfd:x1\0");
        let Ok(Event::Ask(ask)) = decode(&bytes) else {
            panic!("not an ask")
        };
        assert_eq!(exec_of(&ask), (Some(PathBuf::from("memfd:x1")), true));
    }

    #[test]
    fn what_is_not_exactly_an_event_is_refused() {
        let good = ask_bytes();
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err());
        }
        let mut long = good.clone();
        long.push(0);
        assert!(decode(&long).is_err());
        let damaged = |at: usize, value: &[u8]| {
            let mut bytes = good.clone();
            bytes[at..at + value.len()].copy_from_slice(value);
            decode(&bytes)
        };
        assert_eq!(damaged(0, &9u16.to_le_bytes()), Err(DecodeError::Abi(9)));
        assert_eq!(damaged(2, &99u16.to_le_bytes()), Err(DecodeError::Kind(99)));
        assert_eq!(
            damaged(88, &0u32.to_le_bytes()),
            Err(DecodeError::Range(1, "thread id"))
        );
        assert_eq!(
            damaged(88, &u32::MAX.to_le_bytes()),
            Err(DecodeError::Range(1, "thread id"))
        );
        assert_eq!(damaged(112, &0u32.to_le_bytes()), Err(DecodeError::Range(1, "label")));
        assert_eq!(
            damaged(184, &u32::MAX.to_le_bytes()),
            Err(DecodeError::Range(1, "path length"))
        );
        assert_eq!(damaged(184, &7u32.to_le_bytes()), Err(DecodeError::Range(1, "path")));
        assert_eq!(damaged(194, b"/"), Err(DecodeError::Range(1, "path")));
    }
}
