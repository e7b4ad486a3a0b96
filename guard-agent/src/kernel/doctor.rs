//! Says whether this machine can enforce, and what to do if not.
//!
//! Owns the checks; given nothing. It must never change anything.

use std::fs;
use std::path::Path;

use super::btf::Btf;
use super::{load, offsets};

/// Series that the tests cover.
const TESTED: [&str; 4] = ["6.1", "6.12", "6.18", "7.2"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FindingState {
    Ok,
    Warn,
    Bad,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DoctorFinding {
    /// Short and stable: `kernel`, `bpf-lsm` …
    pub name: &'static str,
    pub state: FindingState,
    /// What was found.
    pub text: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

fn finding(name: &'static str, state: FindingState, text: impl Into<String>, remedy: Option<&str>) -> DoctorFinding {
    DoctorFinding {
        name,
        state,
        text: text.into(),
        remedy: remedy.map(str::to_owned),
    }
}

/// Every check, in the order in which to repair.
#[must_use]
pub fn doctor() -> Vec<DoctorFinding> {
    vec![root(), kernel(), lsm(), btf(), cgroups(), bpffs(), yama()]
}

fn root() -> DoctorFinding {
    if nix::unistd::geteuid().is_root() {
        finding("root", FindingState::Ok, "runs as root", None)
    } else {
        finding(
            "root",
            FindingState::Bad,
            "does not run as root",
            Some("run it as root, or ask the agent: guard doctor"),
        )
    }
}

fn kernel() -> DoctorFinding {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let tested = TESTED.iter().any(|series| {
        release
            .strip_prefix(series)
            .is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
    });
    if tested {
        finding(
            "kernel",
            FindingState::Ok,
            format!("{release}, of a tested series"),
            None,
        )
    } else {
        finding(
            "kernel",
            FindingState::Warn,
            format!("{release} is not of a tested series ({})", TESTED.join(", ")),
            Some("use a kernel of a tested series, or run the kernel tests on this one"),
        )
    }
}

fn lsm() -> DoctorFinding {
    match load::active_lsms() {
        Some(active) if active.trim().split(',').any(|name| name == "bpf") => finding(
            "bpf-lsm",
            FindingState::Ok,
            format!("active security modules: {}", active.trim()),
            None,
        ),
        Some(active) => finding(
            "bpf-lsm",
            FindingState::Bad,
            format!("`bpf` is not among the active security modules: {}", active.trim()),
            Some(&format!(
                "boot with lsm={},bpf on the kernel command line",
                active.trim()
            )),
        ),
        None => finding(
            "bpf-lsm",
            FindingState::Warn,
            "/sys/kernel/security/lsm cannot be read",
            Some("mount -t securityfs none /sys/kernel/security"),
        ),
    }
}

fn btf() -> DoctorFinding {
    let bytes = match fs::read(load::BTF_PATH) {
        Ok(bytes) => bytes,
        Err(error) => {
            return finding(
                "btf",
                FindingState::Bad,
                format!("{} cannot be read: {error}", load::BTF_PATH),
                Some("use a kernel built with CONFIG_DEBUG_INFO_BTF"),
            );
        }
    };
    match Btf::parse(&bytes).and_then(|btf| offsets::resolve(&btf)) {
        Ok(_) => finding(
            "btf",
            FindingState::Ok,
            "every structure member that Guard reads was found",
            None,
        ),
        Err(error) => finding(
            "btf",
            FindingState::Bad,
            error.to_string(),
            Some("use a kernel of a tested series"),
        ),
    }
}

fn cgroups() -> DoctorFinding {
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        finding(
            "cgroup2",
            FindingState::Ok,
            "cgroup v2 is mounted on /sys/fs/cgroup",
            None,
        )
    } else {
        finding(
            "cgroup2",
            FindingState::Bad,
            "cgroup v2 is not mounted on /sys/fs/cgroup",
            Some("boot with systemd.unified_cgroup_hierarchy=1"),
        )
    }
}

fn bpffs() -> DoctorFinding {
    let mounted = nix::sys::statfs::statfs("/sys/fs/bpf")
        .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::BPF_FS_MAGIC);
    if mounted {
        finding(
            "bpffs",
            FindingState::Ok,
            "the BPF file system is mounted on /sys/fs/bpf",
            None,
        )
    } else {
        finding(
            "bpffs",
            FindingState::Bad,
            "the BPF file system is not mounted on /sys/fs/bpf: programs could not outlive the agent",
            Some("mount -t bpf bpf /sys/fs/bpf"),
        )
    }
}

fn yama() -> DoctorFinding {
    match fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()
        .as_deref()
        .map(str::trim)
    {
        Some("3") => finding(
            "ptrace",
            FindingState::Warn,
            "kernel.yama.ptrace_scope is 3: nobody may trace, so waiting processes are stopped as a whole, and an exec \
             that must be compared with what was approved cannot run",
            Some("boot with kernel.yama.ptrace_scope=2 in /etc/sysctl.d (3 cannot be lowered while running)"),
        ),
        Some(value) => finding(
            "ptrace",
            FindingState::Ok,
            format!("kernel.yama.ptrace_scope is {value}"),
            None,
        ),
        None => finding("ptrace", FindingState::Ok, "Yama is not active", None),
    }
}
