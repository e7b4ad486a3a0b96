// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
//! Ways to more than the workload was given, or out of it: denied, unless its label is allowed them by name.
//!
//! Owns the hooks that refuse them, and what counts as which kind; given `LabelSettings::allow`. It must never hold anybody,
//! and never look further at a task that has no label.
//!
//! Most of it hangs on a capability, so `capable` closes whole families at once, whatever system call asks: mounts of the
//! old and the new kind, unshare and setns, modules, kexec, swap, time. What needs none has a hook of its own.

use aya_ebpf::macros::lsm;
use aya_ebpf::programs::LsmContext;
use guard_common::errno;
use guard_common::protect::{allow_bit, kind};

use crate::abi::MAY_WRITE;
use crate::kernel::Typed;
use crate::protect::count_refused;
use crate::scope::Label;
use crate::{kernel, quota, scope};

const CAP_OPT_NOAUDIT: u32 = 2;
const F_SETOWN: u32 = 8;
const F_SETOWN_EX: u32 = 15;

mod capability {
    pub const DAC_READ_SEARCH: u32 = 2;
    pub const LINUX_IMMUTABLE: u32 = 9;
    pub const NET_ADMIN: u32 = 12;
    pub const NET_RAW: u32 = 13;
    pub const SYS_MODULE: u32 = 16;
    pub const SYS_RAWIO: u32 = 17;
    pub const SYS_CHROOT: u32 = 18;
    pub const SYS_PACCT: u32 = 20;
    pub const SYS_ADMIN: u32 = 21;
    pub const SYS_BOOT: u32 = 22;
    pub const SYS_TIME: u32 = 25;
    pub const SYS_TTY_CONFIG: u32 = 26;
    pub const MKNOD: u32 = 27;
    pub const AUDIT_CONTROL: u32 = 30;
    pub const SETFCAP: u32 = 31;
    pub const MAC_OVERRIDE: u32 = 32;
    pub const MAC_ADMIN: u32 = 33;
    pub const SYSLOG: u32 = 34;
    pub const AUDIT_READ: u32 = 37;
    pub const CHECKPOINT_RESTORE: u32 = 40;
}

/// Whether the label may do what is of this kind.
#[inline(always)]
pub fn allowed(label: &Label, kind: u32) -> bool {
    quota::settings(label.label).allow & allow_bit(kind) != 0
}

/// Refuses and counts what is of this kind, unless the label may; 0 is nothing. The verifier wants constants.
macro_rules! refuse_if {
    ($label:expr, $kind:expr) => {{
        let found: u32 = $kind;
        if found == 0 || $crate::privilege::allowed(&$label, found) {
            0
        } else {
            $crate::protect::count_refused(&$label, found);
            -guard_common::errno::EPERM
        }
    }};
}
pub(crate) use refuse_if;

/// A hook that is one kind as a whole.
macro_rules! whole_hook {
    ($($hook:literal $program:ident $kind:ident;)*) => {
        $(
            #[lsm(hook = $hook)]
            pub fn $program(_context: LsmContext) -> i32 {
                let Some(label) = scope::label(kernel::current()) else {
                    return 0;
                };
                refuse_if!(label, kind::$kind)
            }
        )*
    };
}

// ---- capabilities ----

/// fn(cred, namespace, capability, options): asked when the capability is there. What the kernel does in somebody else's name
/// meanwhile (overlayfs in that of who mounted it) is not the workload's.
#[lsm(hook = "capable")]
pub fn guard_privilege_capable(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let found = needed(kernel::plain(&context, 2) as u32);
    if found == 0 || kernel::argument(&context, 0) != kernel::real_cred(kernel::me()).number() {
        return 0;
    }
    if allowed(&label, found) {
        return 0;
    }
    // A question of what it may see, or whether it has to be asked again otherwise: nobody tried anything.
    if kernel::plain(&context, 3) as u32 & CAP_OPT_NOAUDIT == 0 {
        count_refused(&label, found);
    }
    -errno::EPERM
}

/// What the capability is wanted for; 0 for what a workload needs for its own: file owners, fewer privileges, low ports.
#[inline(always)]
fn needed(capability: u32) -> u32 {
    match capability {
        capability::SYS_ADMIN => admin(),
        capability::DAC_READ_SEARCH => by_handle(),
        capability::NET_ADMIN | capability::NET_RAW => kind::NETWORK,
        capability::SYS_MODULE => kind::MODULE,
        capability::SYS_CHROOT => kind::CHROOT,
        capability::MKNOD => kind::DEVICE_NODE,
        capability::SETFCAP => kind::GAIN,
        capability::LINUX_IMMUTABLE
        | capability::SYS_RAWIO
        | capability::SYS_PACCT
        | capability::SYS_BOOT
        | capability::SYS_TIME
        | capability::SYS_TTY_CONFIG
        | capability::AUDIT_CONTROL
        | capability::AUDIT_READ
        | capability::MAC_OVERRIDE
        | capability::MAC_ADMIN
        | capability::SYSLOG
        | capability::CHECKPOINT_RESTORE => kind::MACHINE,
        _ => 0,
    }
}

/// CAP_SYS_ADMIN by the system call that asks. The numbers of 32-bit calls are others; nobody needs those for this.
#[inline(always)]
fn admin() -> u32 {
    use kernel::syscall::Call;
    match kernel::syscall::current() {
        Call::Mount => kind::MOUNT,
        Call::Namespace => kind::NAMESPACE,
        // Filters of one's own system calls.
        Call::Seccomp => 0,
        // Some kernels want it for every counter.
        Call::Perf => kind::PERF,
        Call::ByHandle | Call::Narrow | Call::Other => kind::MACHINE,
    }
}

/// CAP_DAC_READ_SEARCH is what root reads files with, and what opens files by number past every directory.
#[inline(always)]
fn by_handle() -> u32 {
    use kernel::syscall::Call;
    match kernel::syscall::current() {
        Call::ByHandle | Call::Narrow => kind::NAMELESS,
        _ => 0,
    }
}

// ---- what has a hook of its own ----

whole_hook! {
    "userns_create" guard_privilege_userns NAMESPACE;
    "perf_event_open" guard_privilege_perf PERF;
    "key_alloc" guard_privilege_key KEYS;
    "key_permission" guard_privilege_keyring KEYS;
    "kernel_module_request" guard_privilege_module MODULE;
    "uring_override_creds" guard_privilege_uring_creds URING;
    "uring_sqpoll" guard_privilege_uring_poll URING;
    "uring_cmd" guard_privilege_uring_command URING;
    // Newer kernels ask it before anything is made.
    "uring_allowed" guard_privilege_uring URING;
}

/// fn(inode, name, context): what has no file, as a ring of io_uring.
#[lsm(hook = "inode_init_security_anon")]
pub fn guard_privilege_nameless(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let name = kernel::name_start(kernel::argument(&context, 1));
    let found = if name == u64::from_le_bytes(*b"[io_urin") {
        kind::URING
    } else if name == u64::from_le_bytes(*b"[userfau") {
        kind::FAULTS
    } else {
        0
    };
    refuse_if!(label, found)
}

// ---- identity ----

/// fn(bprm, file): what the new program will run as is known, nothing has happened yet.
#[lsm(hook = "bprm_creds_from_file")]
pub fn guard_privilege_exec(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let new = kernel::bprm_cred(kernel::object(&context, 0));
    let old = kernel::real_cred(kernel::me());
    let grows = kernel::permitted(new) & !kernel::permitted(old) != 0;
    refuse_if!(label, if grows || other_user(new, old) { kind::GAIN } else { 0 })
}

/// fn(new, old, flags), as the next two: somebody who is root may become anybody, which is less. Nobody else takes an
/// identity that it does not have.
#[lsm(hook = "task_fix_setuid")]
pub fn guard_privilege_setuid(context: LsmContext) -> i32 {
    changed(&context)
}

#[lsm(hook = "task_fix_setgid")]
pub fn guard_privilege_setgid(context: LsmContext) -> i32 {
    changed(&context)
}

#[inline(always)]
fn changed(context: &LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let other = other_user(kernel::object(context, 0), kernel::object(context, 1));
    refuse_if!(label, if other { kind::GAIN } else { 0 })
}

#[lsm(hook = "task_fix_setgroups")]
pub fn guard_privilege_setgroups(context: LsmContext) -> i32 {
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let root = is_root(&kernel::users(kernel::object(&context, 1)));
    refuse_if!(label, if root { 0 } else { kind::GAIN })
}

/// Root in any of the four: it can be so again without anybody's help.
#[inline(always)]
fn is_root(ids: &[u32; 4]) -> bool {
    ids[0] == 0 || ids[1] == 0 || ids[2] == 0 || ids[3] == 0
}

#[inline(always)]
fn has(ids: &[u32; 4], id: u32) -> bool {
    ids[0] == id || ids[1] == id || ids[2] == id || ids[3] == id
}

/// Whether some user or group of the new one is none of the old one's, who is not root.
#[inline(always)]
fn other_user(new: Typed, old: Typed) -> bool {
    let users = kernel::users(old);
    if is_root(&users) {
        return false;
    }
    let (to, groups, to_groups) = (kernel::users(new), kernel::groups(old), kernel::groups(new));
    !(has(&users, to[0]) && has(&users, to[1]) && has(&users, to[2]) && has(&users, to[3]))
        || !(has(&groups, to_groups[0])
            && has(&groups, to_groups[1])
            && has(&groups, to_groups[2])
            && has(&groups, to_groups[3]))
}

// ---- signals by way of a descriptor ----

/// fn(file, command, argument): what happens on the descriptor sends a signal to whom its owner named, when that is no longer
/// the workload's doing. It may name itself.
#[lsm(hook = "file_fcntl")]
pub fn guard_privilege_owner(context: LsmContext) -> i32 {
    let command = kernel::plain(&context, 1) as u32;
    if command != F_SETOWN && command != F_SETOWN_EX {
        return 0;
    }
    let Some(label) = scope::label(kernel::current()) else {
        return 0;
    };
    let who = kernel::plain(&context, 2) as u32;
    // F_SETOWN_EX has it in user memory, which may change after the look.
    let itself = command == F_SETOWN && (who == 0 || who == kernel::tgid_inside(kernel::me()));
    refuse_if!(label, if itself { 0 } else { kind::SIGNAL_OUT })
}

// ---- tunables ----

/// File systems whose files are settings of the kernel, which no workload has of its own.
#[inline(always)]
const fn is_tunable(magic: u64) -> bool {
    const SYSFS: u64 = 0x6265_6572;
    const DEBUGFS: u64 = 0x6462_6720;
    const TRACEFS: u64 = 0x7472_6163;
    const SECURITYFS: u64 = 0x7363_6673;
    const EFIVARFS: u64 = 0xde5e_81e4;
    const CONFIGFS: u64 = 0x6265_6570;
    const PSTOREFS: u64 = 0x6165_676c;
    const BINFMTFS: u64 = 0x4249_4e4d;
    const RESCTRL: u64 = 0x0765_5821;
    const SELINUX: u64 = 0xf97c_ff8c;
    const SMACK: u64 = 0x4341_5d53;
    const NFSD: u64 = 0x6e66_7364;
    const FUSECTL: u64 = 0x6573_5543;
    matches!(
        magic,
        SYSFS
            | DEBUGFS
            | TRACEFS
            | SECURITYFS
            | EFIVARFS
            | CONFIGFS
            | PSTOREFS
            | BINFMTFS
            | RESCTRL
            | SELINUX
            | SMACK
            | NFSD
            | FUSECTL
    )
}

/// Writing to such a file system, by name or by a descriptor from before; the kind or 0.
#[inline(always)]
pub fn tunable(label: &Label, magic: u64, mask: u32) -> u32 {
    if mask & MAY_WRITE != 0 && is_tunable(magic) && !allowed(label, kind::TUNABLE) {
        kind::TUNABLE
    } else {
        0
    }
}
