//! What the decoder of events says in the words of the rest of the agent.
//!
//! Owns those few types; given nothing. It must not need more than the standard library: the decoder is fuzzed without aya.

use std::net::IpAddr;
use std::path::PathBuf;

/// Index of a label in the kernel maps; 0 means not labelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelId(pub u32);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReachHow {
    Connect,
    /// A message that names its destination.
    Message,
    /// A message on a socket that was connected before the label, or by somebody outside.
    ConnectedBefore,
    /// listen(2) on an address that others can reach; the peer is the own address.
    Listen,
}

/// What a change of a file or name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ChangeOp {
    /// Opening what exists for writing.
    Open {
        truncates: bool,
    },
    Create,
    Unlink,
    Rename {
        /// The two change places.
        exchanges: bool,
        /// There is something under the new name.
        replaces: bool,
    },
    Link,
    Symlink,
    Mkdir,
    Rmdir,
    Mknod,
    Truncate,
    Chmod,
    Chown,
    Xattr {
        removes: bool,
    },
    /// Of a file without a name; the path is its directory.
    Tmpfile,
    /// Through a descriptor from before the label or from somebody else, or a shared mapping of it.
    Write {
        maps: bool,
    },
}

/// A change of a file or name, as the kernel tells it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Change {
    pub op: ChangeOp,
    /// `None` when it did not fit.
    pub path: Option<PathBuf>,
    /// The other name of a rename or link; `None` when it did not fit or there is none.
    pub second: Option<PathBuf>,
    /// The path below the root of its file system, instead of `path`: no hook says through which mount it was reached.
    pub below_root: Option<PathBuf>,
    /// Target of a symlink or name of an attribute: the beginning of it.
    pub text: Vec<u8>,
    pub directory: bool,
    /// As asked for, with `S_IFMT` of what is made.
    pub mode: u32,
    /// chown(2): user and group, `None` for what stays.
    pub owner: [Option<u32>; 2],
    /// Of the file before; `None` for a name without one.
    pub old: Option<OldFile>,
}

/// A file as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OldFile {
    pub size: u64,
    pub mode: u32,
}

/// A datagram from the port of resolvers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub label: LabelId,
    pub resolver: IpAddr,
    /// Inode number of the network namespace that it arrived in.
    pub network_namespace: u32,
    /// Anybody's bytes.
    pub message: Vec<u8>,
}
