//! The agent's hand on what labelled tasks never reach: names files by the kernel's keys and fills the maps.
//!
//! Owns the maps PROTECTED, NAMES, ADDRESSES and REPORTED; given what `crate::protect` found. It must never take a
//! protection away that it was not told to, and never run on the holder's thread: an open may wait for a file system.

use std::collections::{HashMap as Map, HashSet};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::{Arc, Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{HashMap, MapData, MapError};
use guard_common::FreeKey;
use guard_common::protect::{AddressKey, FileId, NameKey, Protected, Refused, RefusedKey};

use super::load::Attach;
use super::maps::{Identify, MapsError, take};

/// Program and where it is attached; optional ones where kernels differ.
pub(super) const PROGRAMS: [(&str, Attach); 54] = [
    ("guard_protect_inode", Attach::Lsm("inode_permission")),
    ("guard_protect_open", Attach::Lsm("file_open")),
    ("guard_protect_use", Attach::Lsm("file_permission")),
    ("guard_protect_map", Attach::Lsm("mmap_file")),
    ("guard_protect_unlink", Attach::Lsm("path_unlink")),
    ("guard_protect_rmdir", Attach::Lsm("path_rmdir")),
    ("guard_protect_mkdir", Attach::Lsm("path_mkdir")),
    ("guard_protect_mknod", Attach::Lsm("path_mknod")),
    ("guard_protect_symlink", Attach::Lsm("path_symlink")),
    ("guard_protect_link", Attach::Lsm("path_link")),
    ("guard_protect_rename", Attach::Lsm("path_rename")),
    ("guard_protect_chmod", Attach::Lsm("path_chmod")),
    ("guard_protect_chown", Attach::Lsm("path_chown")),
    ("guard_protect_truncate", Attach::Lsm("path_truncate")),
    ("guard_protect_ftruncate", Attach::LsmIfThere("file_truncate")),
    ("guard_reach_free", Attach::Lsm("sk_free_security")),
    ("guard_reach_create", Attach::Lsm("socket_create")),
    ("guard_reach_made", Attach::Lsm("socket_post_create")),
    ("guard_reach_listen", Attach::Lsm("socket_listen")),
    ("guard_reach_bind", Attach::Lsm("socket_bind")),
    ("guard_reach_heard", Attach::Lsm("socket_sock_rcv_skb")),
    ("guard_reach_accepted", Attach::Lsm("inet_csk_clone")),
    ("guard_reach_incoming", Attach::Lsm("inet_conn_request")),
    ("guard_reach_connect", Attach::Lsm("socket_connect")),
    ("guard_reach_send", Attach::Lsm("socket_sendmsg")),
    ("guard_reach_option", Attach::Lsm("socket_setsockopt")),
    ("guard_reach_netlink", Attach::Lsm("netlink_send")),
    // Until 6.5: pages go from a file or pipe to a socket without socket_sendmsg.
    (
        "guard_reach_pages",
        Attach::LsmBecauseOf {
            hook: "file_permission",
            function: "kernel_sendpage",
        },
    ),
    ("guard_reach_stream", Attach::Lsm("unix_stream_connect")),
    ("guard_reach_datagram", Attach::Lsm("unix_may_send")),
    ("guard_protect_trace", Attach::Lsm("ptrace_access_check")),
    ("guard_protect_kill", Attach::Lsm("task_kill")),
    ("guard_protect_limit", Attach::Lsm("task_setrlimit")),
    ("guard_protect_scheduler", Attach::Lsm("task_setscheduler")),
    ("guard_protect_nice", Attach::Lsm("task_setnice")),
    ("guard_protect_bpf", Attach::Lsm("bpf")),
    ("guard_protect_ioctl", Attach::Lsm("file_ioctl")),
    ("guard_protect_ioctl32", Attach::LsmIfThere("file_ioctl_compat")),
    ("guard_privilege_capable", Attach::Lsm("capable")),
    ("guard_privilege_userns", Attach::Lsm("userns_create")),
    ("guard_privilege_perf", Attach::Lsm("perf_event_open")),
    ("guard_privilege_key", Attach::Lsm("key_alloc")),
    ("guard_privilege_keyring", Attach::Lsm("key_permission")),
    ("guard_privilege_module", Attach::Lsm("kernel_module_request")),
    ("guard_privilege_nameless", Attach::Lsm("inode_init_security_anon")),
    ("guard_privilege_uring", Attach::LsmIfThere("uring_allowed")),
    ("guard_privilege_uring_creds", Attach::Lsm("uring_override_creds")),
    ("guard_privilege_uring_poll", Attach::Lsm("uring_sqpoll")),
    ("guard_privilege_uring_command", Attach::Lsm("uring_cmd")),
    ("guard_privilege_exec", Attach::Lsm("bprm_creds_from_file")),
    ("guard_privilege_setuid", Attach::Lsm("task_fix_setuid")),
    ("guard_privilege_setgid", Attach::Lsm("task_fix_setgid")),
    ("guard_privilege_setgroups", Attach::Lsm("task_fix_setgroups")),
    ("guard_privilege_owner", Attach::Lsm("file_fcntl")),
];

struct Tables {
    files: HashMap<MapData, FileId, Protected>,
    names: HashMap<MapData, NameKey, Protected>,
    addresses: HashMap<MapData, AddressKey, u32>,
    refused: HashMap<MapData, RefusedKey, Refused>,
    /// How many of `refused` are in records already; outlives the agent.
    reported: HashMap<MapData, RefusedKey, u64>,
    /// Directories whose content a label may change.
    free: HashMap<MapData, FreeKey, u32>,
}

/// The maps. Every call is short but for [`Protect::identify`].
pub struct Protect {
    tables: Mutex<Tables>,
    identify: Arc<Identify>,
}

impl std::fmt::Debug for Protect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Protect").finish_non_exhaustive()
    }
}

impl Protect {
    pub(super) fn take(ebpf: &mut Ebpf, identify: Arc<Identify>) -> Result<Self, MapsError> {
        let tables = Tables {
            files: take(ebpf, "PROTECTED")?,
            names: take(ebpf, "NAMES")?,
            addresses: take(ebpf, "ADDRESSES")?,
            refused: take(ebpf, "REFUSED")?,
            reported: take(ebpf, "REPORTED")?,
            free: take(ebpf, "FREE")?,
        };
        Ok(Self {
            tables: Mutex::new(tables),
            identify,
        })
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.tables.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The kernel's key of what an O_PATH descriptor names: a directory or a regular file. Opens it, which may wait
    /// for its file system.
    ///
    /// # Errors
    /// When it cannot be opened, or the hook that names it is not attached.
    pub fn identify(&self, object: &OwnedFd, directory: bool) -> io::Result<FileId> {
        let more = if directory { libc::O_DIRECTORY } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK | libc::O_NOCTTY | more)
            .open(format!("/proc/self/fd/{}", object.as_raw_fd()))?;
        let key = self
            .identify
            .name(&file)
            .ok_or_else(|| io::Error::other("the kernel did not name it"))?;
        Ok(FileId {
            device: key.device,
            generation: key.generation,
            inode: key.inode,
            sort: if directory { libc::S_IFDIR } else { libc::S_IFREG },
            reserved: 0,
        })
    }

    /// Protects these files and, unless `only_add`, no others.
    ///
    /// # Errors
    /// When the table is full; those that fitted are protected.
    pub fn set_files(&self, wanted: &Map<FileId, Protected>, only_add: bool) -> Result<(), MapError> {
        let mut tables = self.tables();
        set(&mut tables.files, wanted, only_add)
    }

    /// Protects these names and no others.
    ///
    /// # Errors
    /// When the table is full.
    pub fn set_names(&self, wanted: &Map<NameKey, Protected>) -> Result<(), MapError> {
        let mut tables = self.tables();
        set(&mut tables.names, wanted, false)
    }

    /// Protects these addresses and no others; the value is the kind that is counted.
    ///
    /// # Errors
    /// When the table is full.
    pub fn set_addresses(&self, wanted: &Map<AddressKey, u32>) -> Result<(), MapError> {
        let mut tables = self.tables();
        set(&mut tables.addresses, wanted, false)
    }

    /// Labels may change the content of these directories and of no others.
    ///
    /// # Errors
    /// When the table is full.
    pub fn set_free(&self, wanted: &Map<FreeKey, u32>) -> Result<(), MapError> {
        let mut tables = self.tables();
        set(&mut tables.free, wanted, false)
    }

    /// What was refused and is in no record: the attempts since, and the last one.
    #[must_use]
    pub fn unreported(&self) -> Vec<(RefusedKey, u64, Refused)> {
        let tables = self.tables();
        tables
            .refused
            .iter()
            .filter_map(Result::ok)
            .filter_map(|(key, refused)| {
                let reported = tables.reported.get(&key, 0).unwrap_or(0);
                // A map that was made anew counts from zero.
                let more = refused.count.checked_sub(reported).unwrap_or(refused.count);
                (more > 0).then_some((key, more, refused))
            })
            .collect()
    }

    /// All attempts up to `count` are in records now.
    ///
    /// # Errors
    /// When the table is full.
    pub fn reported(&self, key: RefusedKey, count: u64) -> Result<(), MapError> {
        self.tables().reported.insert(key, count, 0)
    }
}

/// Adds what is missing before it takes away what is not wanted.
fn set<K, V>(map: &mut HashMap<MapData, K, V>, wanted: &Map<K, V>, only_add: bool) -> Result<(), MapError>
where
    K: aya::Pod + Eq + std::hash::Hash,
    V: aya::Pod + PartialEq,
{
    let mut result = Ok(());
    for (key, value) in wanted {
        if !map.get(key, 0).is_ok_and(|there| there == *value)
            && let Err(error) = map.insert(key, value, 0)
        {
            result = Err(error);
        }
    }
    if !only_add {
        let gone: HashSet<K> = map
            .keys()
            .filter_map(Result::ok)
            .filter(|key| !wanted.contains_key(key))
            .collect();
        for key in gone {
            let _ = map.remove(&key);
        }
    }
    result
}
