//! Loads, attaches and pins the BPF programs; replaces those of an earlier agent without a gap.
//!
//! Owns the object and the pin directory; given a configuration. It must never leave the kernel with fewer programs
//! attached than it found: new links are in place before old ones go.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aya::maps::{MapData, RingBuf};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSkbAttachType, Program, ProgramError};
use aya::{Ebpf, EbpfLoader};
use guard_common::{ABI_VERSION, Offsets};

use super::btf::{Btf, BtfError};
use super::build::{self, Build};
use super::cgroups;
use super::files;
use super::maps::{Identify, Maps, MapsError};
use super::offsets;
use super::protect::{self, Protect};
use super::retire::{self, Other};
use super::rules::Rules;
use super::single::{self, Single, SingleError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/guard.bpf.o"));

pub(super) const BTF_PATH: &str = "/sys/kernel/btf/vmlinux";

#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error("this guard-agent was built without the BPF object: run `cargo xtask build`")]
    NotBuilt,
    #[error(
        "BPF is not among the active security modules ({active}): add `bpf` to the kernel's lsm= boot parameter, \
         for example lsm={active},bpf, and reboot"
    )]
    NoBpfLsm { active: String },
    #[error("cannot read {path}: {source}")]
    Read { path: &'static str, source: io::Error },
    #[error("this kernel cannot be used: {0}")]
    Layout(#[from] BtfError),
    #[error("cannot use {path} for pinned programs: {source}. It must be on the BPF file system, usually /sys/fs/bpf")]
    Pins { path: PathBuf, source: io::Error },
    #[error("the kernel refused the BPF object: {0}")]
    Object(#[from] aya::EbpfError),
    #[error(transparent)]
    Maps(#[from] MapsError),
    #[error(transparent)]
    Single(#[from] SingleError),
    #[error("the kernel refused the program {program} ({target}): {}", chain(source))]
    Program {
        program: &'static str,
        target: String,
        source: ProgramError,
    },
    #[error("this kernel has no function {0} that a program can be attached to")]
    NoFunction(String),
    #[error("cannot pin {path}: {source}")]
    Pin { path: PathBuf, source: io::Error },
    #[error("cannot set up the holder: {0}")]
    Holder(io::Error),
    #[error("cannot write the configuration of the programs: {0}")]
    Configure(#[from] aya::maps::MapError),
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}

/// How a program is attached.
#[derive(Clone, Copy)]
pub(super) enum Attach {
    Lsm(&'static str),
    /// Not needed where the kernel does not have it.
    LsmIfThere(&'static str),
    /// Not needed where the kernel does not have the function, whose work no other hook sees.
    LsmBecauseOf {
        hook: &'static str,
        function: &'static str,
    },
    Tracepoint(&'static str),
    /// Packets that leave sockets of the cgroups below this one.
    Egress(&'static str),
    /// The end of a function; not needed where the kernel does not have it.
    End {
        function: &'static str,
        needed: bool,
    },
}

#[cfg(target_arch = "x86_64")]
const EXEC_ENDS: [(&str, &str, bool); 4] = [
    ("guard_execve_end", "__x64_sys_execve", true),
    ("guard_execveat_end", "__x64_sys_execveat", true),
    ("guard_execve32_end", "__ia32_compat_sys_execve", false),
    ("guard_execveat32_end", "__ia32_compat_sys_execveat", false),
];
#[cfg(target_arch = "aarch64")]
const EXEC_ENDS: [(&str, &str, bool); 4] = [
    ("guard_execve_end", "__arm64_sys_execve", true),
    ("guard_execveat_end", "__arm64_sys_execveat", true),
    ("guard_execve32_end", "__arm64_compat_sys_execve", false),
    ("guard_execveat32_end", "__arm64_compat_sys_execveat", false),
];

/// In the order of attaching: what takes labels away comes before what gives them, what ends questions before what asks.
///
/// `files`: somebody is asked about changes of files.
fn programs(files: bool) -> Vec<(&'static str, Attach)> {
    let mut all = vec![
        ("guard_task_free", Attach::Lsm("task_free")),
        ("guard_exit", Attach::Tracepoint("sched_process_exit")),
        ("guard_fork", Attach::Lsm("task_alloc")),
        ("guard_fork_end", Attach::Tracepoint("sched_wakeup_new")),
        ("guard_cgroup_gone", Attach::Tracepoint("cgroup_rmdir")),
        ("guard_cgroup_made", Attach::Tracepoint("cgroup_mkdir")),
        ("guard_cgroup_attach", Attach::Tracepoint("cgroup_attach_task")),
        ("guard_cover", Attach::Lsm("task_getpgid")),
        ("guard_signal", Attach::Tracepoint("signal_generate")),
        ("guard_continue", Attach::Lsm("task_kill")),
        ("guard_identify", Attach::Lsm("file_lock")),
    ];
    all.extend(protect::PROGRAMS);
    // Behind those: what is protected is refused before anybody is asked.
    if files {
        all.extend(files::PROGRAMS);
    }
    all.extend([
        ("guard_stay_setxattr", Attach::Lsm("inode_setxattr")),
        ("guard_stay_removexattr", Attach::Lsm("inode_removexattr")),
        ("guard_rules_mount", Attach::Lsm("sb_mount")),
        ("guard_rules_move", Attach::Lsm("move_mount")),
        ("guard_rules_umount", Attach::Lsm("sb_umount")),
        ("guard_rules_root", Attach::Lsm("sb_pivotroot")),
        (
            "guard_rules_rename",
            Attach::End {
                function: "vfs_rename",
                needed: true,
            },
        ),
    ]);
    all.extend(EXEC_ENDS.map(|(program, function, needed)| (program, Attach::End { function, needed })));
    all.extend([
        ("guard_exec_commit", Attach::Lsm("bprm_committed_creds")),
        ("guard_exec_format", Attach::Lsm("bprm_check_security")),
        ("guard_exec", Attach::Lsm("bprm_creds_for_exec")),
        // After what lets through what it looks for.
        ("guard_tripwire", Attach::Egress(cgroups::ROOT)),
    ]);
    all
}

/// The programs that this kernel can have, and the targets of those that it cannot have and may do without.
type Wanted = (Vec<(&'static str, Attach)>, Vec<&'static str>);

fn wanted(files: bool, layout: &Btf<'_>) -> Result<Wanted, KernelError> {
    let (mut wanted, mut absent) = (Vec::new(), Vec::new());
    for (name, how) in programs(files) {
        let missing = match how {
            Attach::End { function, .. } | Attach::LsmBecauseOf { function, .. } => {
                (!layout.has_function(function)).then_some(function)
            }
            Attach::LsmIfThere(hook) => (!layout.has_function(&format!("bpf_lsm_{hook}"))).then_some(hook),
            Attach::Lsm(_) | Attach::Tracepoint(_) | Attach::Egress(_) => None,
        };
        match (missing, how) {
            (None, _) => wanted.push((name, how)),
            (Some(function), Attach::End { needed: true, .. }) => {
                return Err(KernelError::NoFunction(function.to_owned()));
            }
            (Some(target), _) => absent.push(target),
        }
    }
    Ok((wanted, absent))
}

impl Attach {
    fn target(self) -> String {
        match self {
            Self::Lsm(hook) | Self::LsmIfThere(hook) | Self::LsmBecauseOf { hook, .. } => format!("lsm/{hook}"),
            Self::Tracepoint(point) => format!("tp_btf/{point}"),
            Self::Egress(cgroup) => format!("cgroup_skb/egress {cgroup}"),
            Self::End { function, .. } => format!("fexit/{function}"),
        }
    }
}

/// What was loaded.
pub(crate) struct Loaded {
    pub maps: Maps,
    pub ring: RingBuf<MapData>,
    pub identify: Arc<Identify>,
    pub protect: Arc<Protect>,
    pub rules: Arc<Rules>,
    pub offsets: Offsets,
    /// `program (target)`, in order of attaching.
    pub programs: Vec<String>,
    /// Targets that this kernel does not have and that may be absent.
    pub absent: Vec<String>,
    /// See [`Prepared::enforced`].
    pub took_over: bool,
    /// The programs are those that an earlier agent of this build attached.
    pub kept: bool,
    /// Sets of other versions, which are in force too.
    pub others: Vec<Other>,
    /// Our pin directory.
    pub pins: PathBuf,
    pub single: Single,
}

/// Everything is loaded, nothing attached: maps can be filled.
pub(crate) struct Prepared {
    ebpf: Ebpf,
    btf: aya::Btf,
    pins: PathBuf,
    /// In the order of attaching.
    wanted: Vec<(&'static str, Attach)>,
    /// See [`Loaded::absent`].
    absent: Vec<&'static str>,
    pub maps: Maps,
    /// Sets of other versions, which are in force.
    pub others: Vec<Other>,
    /// All programs of an earlier agent are attached: enforcement was on until now.
    pub enforced: bool,
    ring: RingBuf<MapData>,
    identify: Arc<Identify>,
    protect: Arc<Protect>,
    rules: Arc<Rules>,
    offsets: Offsets,
    single: Single,
}

/// The list of active security modules; `None` if it cannot be read.
pub(super) fn active_lsms() -> Option<String> {
    fs::read_to_string("/sys/kernel/security/lsm").ok()
}

/// Where this build pins. Tests make a debug build pass for another version.
pub(super) fn pin_directory(root: &Path) -> PathBuf {
    #[cfg(debug_assertions)]
    if let Some(version) = std::env::var("GUARD_TEST_PINS_VERSION")
        .ok()
        .and_then(|version| version.parse::<u16>().ok())
    {
        return root.join(format!("v{version}"));
    }
    root.join(format!("v{ABI_VERSION}"))
}

/// Loads the object and opens or creates the pinned maps.
pub(crate) fn prepare(pin_root: &Path, files: bool) -> Result<Prepared, KernelError> {
    if OBJECT.is_empty() {
        return Err(KernelError::NotBuilt);
    }
    if let Some(active) = active_lsms()
        && !active.trim().split(',').any(|name| name == "bpf")
    {
        return Err(KernelError::NoBpfLsm {
            active: active.trim().to_owned(),
        });
    }
    let bytes = fs::read(BTF_PATH).map_err(|source| KernelError::Read { path: BTF_PATH, source })?;
    let layout = Btf::parse(&bytes)?;
    let offsets = offsets::resolve(&layout)?;
    let (wanted, absent) = wanted(files, &layout)?;

    let pins = pin_directory(pin_root);
    make_private(pin_root)?;
    let single = single::lock(pin_root)?;
    make_private(&pins)?;
    let map_pins = pins.join("maps");
    make_private(&map_pins)?;
    make_private(&pins.join("links"))?;

    let btf = aya::Btf::from_sys_fs().map_err(aya::EbpfError::BtfError)?;
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .override_global("OFFSETS", &offsets, true)
        .default_map_pin_directory(&map_pins)
        .load(OBJECT)?;
    let (maps, ring, identify) = Maps::take(&mut ebpf)?;
    let identify = Arc::new(identify);
    let protect = Arc::new(Protect::take(&mut ebpf, Arc::clone(&identify))?);
    let rules = Arc::new(Rules::take(&mut ebpf)?);
    let others = retire::others(pin_root, &pins);
    let links = pins.join("links");
    let ours = wanted.iter().all(|(name, _)| links.join(name).exists());
    Ok(Prepared {
        ebpf,
        btf,
        enforced: ours || others.iter().any(Other::is_whole),
        others,
        pins,
        wanted,
        absent,
        maps,
        ring,
        identify,
        protect,
        rules,
        offsets,
        single,
    })
}

fn make_private(path: &Path) -> Result<(), KernelError> {
    let error = |source| KernelError::Pins {
        path: path.to_owned(),
        source,
    };
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(error)
        }
        Err(source) => Err(error(source)),
    }
}

impl Prepared {
    /// Sees to it that every program is attached and pinned, and no other: those of an earlier agent stay if they are the same.
    pub(crate) fn attach(mut self) -> Result<Loaded, KernelError> {
        let attached: Vec<String> = self
            .wanted
            .iter()
            .map(|(name, how)| format!("{name} ({})", how.target()))
            .collect();
        let build = self.build(&attached);
        let kept = build.is_marked(&self.pins) && self.is_exact()?;
        if !kept {
            let path = self.pins.clone();
            let marked = |source| KernelError::Pin {
                path: path.clone(),
                source,
            };
            build::remove_mark(&self.pins).map_err(marked)?;
            self.attach_all()?;
            build.set_mark(&self.pins).map_err(marked)?;
        }
        Ok(Loaded {
            maps: self.maps,
            ring: self.ring,
            identify: self.identify,
            protect: self.protect,
            rules: self.rules,
            offsets: self.offsets,
            programs: attached,
            absent: self.absent.into_iter().map(str::to_owned).collect(),
            took_over: self.enforced,
            kept,
            others: self.others,
            pins: self.pins,
            single: self.single,
        })
    }

    /// What the programs are and do: the object, what is written into it, where each is attached.
    fn build(&self, attached: &[String]) -> Build {
        let offsets = format!("{:?}", self.offsets);
        let mut parts = vec![OBJECT, offsets.as_bytes()];
        parts.extend(attached.iter().map(String::as_bytes));
        // Tests make one build pass for another.
        #[cfg(debug_assertions)]
        let other = std::env::var("GUARD_TEST_BUILD").unwrap_or_default();
        #[cfg(debug_assertions)]
        parts.push(other.as_bytes());
        Build::of(&parts)
    }

    /// The pinned links.
    fn links(&self) -> Result<Vec<PathBuf>, KernelError> {
        retire::links(&self.pins).map_err(|source| KernelError::Pins {
            path: self.pins.join("links"),
            source,
        })
    }

    /// Whether the pinned links are those of the programs that are wanted, and no others.
    fn is_exact(&self) -> Result<bool, KernelError> {
        let folder = self.pins.join("links");
        let pinned: HashSet<PathBuf> = self.links()?.into_iter().collect();
        Ok(pinned == self.wanted.iter().map(|(name, _)| folder.join(name)).collect())
    }

    /// Attaches and pins them, then removes what an earlier agent left.
    fn attach_all(&mut self) -> Result<(), KernelError> {
        let mut links = Vec::new();
        for (name, how) in &self.wanted {
            links.push((*name, attach_one(&mut self.ebpf, &self.btf, name, *how)?));
        }
        let folder = self.pins.join("links");
        let before = self.links()?;
        let mut current = HashSet::new();
        for (name, link) in links {
            let path = folder.join(name);
            let fresh = folder.join(format!("{name}-new"));
            let _ = fs::remove_file(&fresh);
            let pin = |source| KernelError::Pin {
                path: fresh.clone(),
                source,
            };
            link.pin(&fresh).map_err(|error| pin(io::Error::other(error)))?;
            fs::rename(&fresh, &path).map_err(pin)?;
            current.insert(path);
        }
        for old in &before {
            if !current.contains(old) {
                let _ = fs::remove_file(old);
            }
        }
        Ok(())
    }
}

fn attach_one(ebpf: &mut Ebpf, btf: &aya::Btf, name: &'static str, how: Attach) -> Result<FdLink, KernelError> {
    let target = how.target();
    let failed = |source| KernelError::Program {
        program: name,
        target: target.clone(),
        source,
    };
    let unexpected = || failed(ProgramError::UnexpectedProgramType);
    let link = match (ebpf.program_mut(name).ok_or_else(unexpected)?, how) {
        (Program::Lsm(program), Attach::Lsm(hook) | Attach::LsmIfThere(hook) | Attach::LsmBecauseOf { hook, .. }) => {
            program
                .load(hook, btf)
                .and_then(|()| program.attach())
                .and_then(|id| program.take_link(id))
                .map(FdLink::from)
        }
        (Program::BtfTracePoint(program), Attach::Tracepoint(point)) => program
            .load(point, btf)
            .and_then(|()| program.attach())
            .and_then(|id| program.take_link(id))
            .map(FdLink::from),
        (Program::CgroupSkb(program), Attach::Egress(path)) => {
            let cgroup = fs::File::open(path).map_err(|source| KernelError::Read { path, source })?;
            program
                .load()
                // A link shares its cgroup with other programs, whatever this says.
                .and_then(|()| program.attach(cgroup, CgroupSkbAttachType::Egress, CgroupAttachMode::Single))
                .and_then(|id| program.take_link(id))
                .and_then(|link| FdLink::try_from(link).map_err(|_| ProgramError::UnexpectedProgramType))
        }
        (Program::FExit(program), Attach::End { function, .. }) => program
            .load(function, btf)
            .and_then(|()| program.attach())
            .and_then(|id| program.take_link(id))
            .map(FdLink::from),
        _ => return Err(unexpected()),
    }
    .map_err(failed)?;
    Ok(link)
}

/// Ends enforcement on this machine: removes programs, links and maps. Threads that wait are asked by nobody any more.
pub(crate) fn remove(pin_root: &Path) -> io::Result<()> {
    if pin_root.exists() {
        single::lock(pin_root).map_err(io::Error::other)?;
    }
    match fs::remove_dir_all(pin_root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
