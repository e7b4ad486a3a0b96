//! Labels: which cgroups are workloads, and under which name.
//!
//! Owns the table of labels and labelled cgroups, and what the kernel is told about them. It is given patterns, the
//! attribute `trusted.guard.label`, new cgroups and requests of root. It must never label a cgroup that the agent itself
//! is in or below, and must never give one id to two names.

mod find;
mod paths;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guard_evidence::record::Lifecycle;
use guard_evidence::text::Text;
use guard_proto::control::LabelledCgroup;
use guard_proto::limits::is_label;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::config::{LabelRules, PENDING_HEADROOM};
use crate::evidence::Evidence;
use crate::files;
use crate::kernel::api::{LabelId, ToKernel};
use crate::kernel::{KernelHandle, LabelSettings};

use paths::check_path;
pub(crate) use paths::is_below;

/// Only root of the initial user namespace can set it; `user.*` belongs to whoever owns the directory.
const ATTRIBUTE: &str = "trusted.guard.label";
const ROOT: &str = "/sys/fs/cgroup";
/// What asking, recording or starting the agent again depends on. Exact paths of the host: a container may have units of
/// the same names.
const NEEDED: [(&str, &str); 5] = [
    ("/init.scope", "the service manager"),
    ("/system.slice/systemd-journald.service", "the system's log"),
    ("/system.slice/dbus.service", "the system bus"),
    ("/system.slice/dbus-broker.service", "the system bus"),
    ("/system.slice/guard-console.service", "the console"),
];
/// Labelled cgroups on one host.
const CGROUPS: usize = 65_536;

/// Why a cgroup was not labelled.
#[derive(Debug, thiserror::Error)]
pub enum LabelError {
    #[error("`{0}` is not a label: use 1 to 63 of a-z 0-9 . _ - with a letter or digit at both ends")]
    Name(String),
    #[error("`{0}` is not a path below the cgroup v2 root: write it as /system.slice/x.service")]
    Path(String),
    #[error("the cgroup {0} is not there: {1}")]
    Gone(String, io::Error),
    #[error("the cgroup {path} is below {outer}, which is labelled `{label}`: the outermost label holds")]
    Inner { path: String, outer: String, label: String },
    #[error("the cgroup {0} holds the agent itself, which must never be held")]
    Own(String),
    #[error(
        "the cgroup {path} holds {what}: if that were held, nobody could be asked any more, or nothing written down"
    )]
    Needed { path: String, what: &'static str },
    #[error("the cgroup {0} is labelled by a pattern of agent.toml: change the pattern and restart the agent")]
    ByPattern(String),
    #[error("the cgroup {0} is not labelled")]
    NotLabelled(String),
    #[error("{path}: {source}")]
    Store { path: PathBuf, source: io::Error },
    #[error("{CGROUPS} cgroups are labelled already")]
    TooMany,
    #[error("the kernel side refused: {0}")]
    Kernel(String),
}

/// How a cgroup came by its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    Pattern,
    Xattr,
    Run,
    Command,
}

impl Source {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pattern => "pattern",
            Self::Xattr => "xattr",
            Self::Run => "run",
            Self::Command => "command",
        }
    }
}

#[derive(Debug, Clone)]
struct Labelled {
    label: LabelId,
    path: String,
    source: Source,
}

/// The table. Shared by the engine, the control socket and the scan.
#[derive(Debug, Clone)]
pub struct Labels {
    root: Arc<Path>,
    file: Arc<Path>,
    rules: Arc<LabelRules>,
    /// Path of the cgroup that the agent is in.
    own: Arc<str>,
    kernel: KernelHandle,
    evidence: Evidence,
    table: Arc<Mutex<Table>>,
}

#[derive(Debug, Default)]
struct Table {
    ids: BTreeMap<String, u32>,
    names: HashMap<LabelId, String>,
    cgroups: HashMap<u64, Labelled>,
    /// By path, for the outermost one above a path.
    paths: BTreeMap<String, u64>,
    waiting: HashMap<u64, Vec<oneshot::Sender<Result<(), String>>>>,
}

impl Labels {
    /// Loads the ids given so far: the kernel's maps outlive the agent, so an id keeps its name.
    ///
    /// # Errors
    /// If the file is there but not readable or not valid.
    pub fn load(
        state_dir: &Path,
        rules: LabelRules,
        kernel: KernelHandle,
        evidence: Evidence,
    ) -> Result<Self, LabelError> {
        let own = crate::enrich::cgroup(std::process::id()).unwrap_or_else(|| "/".to_owned());
        Self::at(Path::new(ROOT), state_dir, rules, &own, kernel, evidence)
    }

    pub(crate) fn at(
        root: &Path,
        state_dir: &Path,
        rules: LabelRules,
        own: &str,
        kernel: KernelHandle,
        evidence: Evidence,
    ) -> Result<Self, LabelError> {
        let file = state_dir.join("labels.json");
        let ids: BTreeMap<String, u32> = match fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| LabelError::Store {
                path: file.clone(),
                source: io::Error::other(e),
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(source) => return Err(LabelError::Store { path: file, source }),
        };
        let names = ids.iter().map(|(name, id)| (LabelId(*id), name.clone())).collect();
        // Before the first label is put in force: the kernel's maps may hold what another configuration said.
        for (name, id) in &ids {
            tell(&kernel, LabelId(*id), rules.settings(name));
        }
        Ok(Self {
            root: root.into(),
            file: file.into(),
            rules: rules.into(),
            own: own.into(),
            kernel,
            evidence,
            table: Arc::new(Mutex::new(Table {
                ids,
                names,
                ..Table::default()
            })),
        })
    }

    /// The name of a label that the kernel knows by number.
    #[must_use]
    pub fn name(&self, id: LabelId) -> Option<String> {
        self.table.lock().names.get(&id).cloned()
    }

    /// The number of a label that has ever been given.
    #[must_use]
    pub fn id(&self, name: &str) -> Option<LabelId> {
        self.table.lock().ids.get(name).copied().map(LabelId)
    }

    /// What holds for a label.
    #[must_use]
    pub fn settings(&self, id: LabelId) -> LabelSettings {
        match self.table.lock().names.get(&id) {
            Some(name) => self.rules.settings(name),
            None => self.rules.default,
        }
    }

    /// How many actions of a label may wait.
    #[must_use]
    pub fn pending_limit(&self, id: LabelId) -> usize {
        self.settings(id).pending as usize
    }

    /// Names of all labels with a cgroup now.
    #[must_use]
    pub fn names_in_use(&self) -> Vec<String> {
        let table = self.table.lock();
        let mut names: Vec<String> = table
            .cgroups
            .values()
            .filter_map(|labelled| table.names.get(&labelled.label).cloned())
            .collect();
        names.sort();
        names.dedup();
        names
    }

    /// The outermost labelled cgroup at or above a path: its path and the label's name.
    #[must_use]
    pub fn above(&self, path: &str) -> Option<(String, String)> {
        let table = self.table.lock();
        table
            .above(path)
            .map(|(outer, label)| (outer, table.names.get(&label).cloned().unwrap_or_default()))
    }

    /// Path of a cgroup by its id, given a thread that was in it a moment ago.
    #[must_use]
    pub fn path_of(&self, cgroup: u64, tid: u32) -> Option<String> {
        if let Some(labelled) = self.table.lock().cgroups.get(&cgroup) {
            return Some(labelled.path.clone());
        }
        let path = crate::enrich::cgroup(tid)?;
        (self.inode(&path).ok()? == cgroup).then_some(path)
    }

    /// Every labelled cgroup with the number of its processes. Blocks.
    #[must_use]
    pub fn list(&self) -> Vec<LabelledCgroup> {
        let all: Vec<(Labelled, String)> = {
            let table = self.table.lock();
            table
                .cgroups
                .values()
                .map(|l| (l.clone(), table.names.get(&l.label).cloned().unwrap_or_default()))
                .collect()
        };
        let mut items: Vec<LabelledCgroup> = all
            .into_iter()
            .map(|(labelled, label)| LabelledCgroup {
                processes: paths::processes(&self.directory(&labelled.path), 0),
                label,
                cgroup: labelled.path,
                source: labelled.source.as_str().to_owned(),
            })
            .collect();
        items.sort_by(|a, b| a.cgroup.cmp(&b.cgroup));
        items
    }

    /// Labels a cgroup and everything below it; the attribute makes it last beyond a restart of the agent. Blocks.
    /// The receiver hears when the label is in force.
    ///
    /// # Errors
    /// [`LabelError`]; the cgroup is not labelled then.
    pub fn add(
        &self,
        name: &str,
        path: &str,
        source: Source,
    ) -> Result<oneshot::Receiver<Result<(), String>>, LabelError> {
        check_path(path)?;
        let id = self.inode(path).map_err(|e| LabelError::Gone(path.to_owned(), e))?;
        let in_force = self.apply(name, id, path, source)?;
        if let Err(error) = xattr::set(self.directory(path), ATTRIBUTE, name.as_bytes()) {
            // Without the attribute the label ends with the kernel's maps, which outlive the agent.
            tracing::warn!(cgroup = path, %error, "the label's attribute cannot be set");
        }
        Ok(in_force)
    }

    /// Takes the label from a cgroup. Blocks.
    ///
    /// # Errors
    /// If it has none of its own, or a pattern of the configuration gives it one.
    pub fn remove(&self, path: &str) -> Result<(), LabelError> {
        check_path(path)?;
        let id = self.inode(path).map_err(|e| LabelError::Gone(path.to_owned(), e))?;
        if self
            .table
            .lock()
            .cgroups
            .get(&id)
            .is_some_and(|labelled| labelled.source == Source::Pattern)
        {
            return Err(LabelError::ByPattern(path.to_owned()));
        }
        if let Err(error) = xattr::remove(self.directory(path), ATTRIBUTE)
            && error.raw_os_error() != Some(nix::libc::ENODATA)
        {
            tracing::warn!(cgroup = path, %error, "the label's attribute cannot be removed");
        }
        if self.forget(id) {
            Ok(())
        } else {
            // The kernel may still know it from an agent before this one.
            self.kernel.send(ToKernel::Unlabel { cgroup: id });
            Err(LabelError::NotLabelled(path.to_owned()))
        }
    }

    /// A cgroup is gone.
    pub fn gone(&self, id: u64) {
        self.forget(id);
    }

    /// The kernel side has a label in force, or not.
    pub fn applied(&self, cgroup: u64, result: &Result<(), String>) {
        for waiting in self.table.lock().waiting.remove(&cgroup).unwrap_or_default() {
            let _ = waiting.send(result.clone());
        }
        if result.is_err() {
            self.forget(cgroup);
        }
    }

    fn apply(
        &self,
        name: &str,
        id: u64,
        path: &str,
        source: Source,
    ) -> Result<oneshot::Receiver<Result<(), String>>, LabelError> {
        if !is_label(name) {
            return Err(LabelError::Name(name.to_owned()));
        }
        if is_below(&self.own, path) {
            return Err(LabelError::Own(path.to_owned()));
        }
        if let Some((_, what)) = NEEDED
            .iter()
            .find(|(needed, _)| is_below(needed, path) || is_below(path, needed))
        {
            return Err(LabelError::Needed {
                path: path.to_owned(),
                what,
            });
        }
        let (done, wait) = oneshot::channel();
        let mut table = self.table.lock();
        if let Some((outer, label)) = table.above(path).filter(|(outer, _)| outer != path) {
            let label = table.names.get(&label).cloned().unwrap_or_default();
            return Err(LabelError::Inner {
                path: path.to_owned(),
                outer,
                label,
            });
        }
        if table.cgroups.len() >= CGROUPS {
            return Err(LabelError::TooMany);
        }
        let (label, new) = table.id_of(name, &self.file)?;
        if new {
            tell(&self.kernel, label, self.rules.settings(name));
        }
        if let Some(before) = table.cgroups.get(&id)
            && before.label == label
        {
            let _ = done.send(Ok(()));
            return Ok(wait);
        }
        table.paths.insert(path.to_owned(), id);
        table.cgroups.insert(
            id,
            Labelled {
                label,
                path: path.to_owned(),
                source,
            },
        );
        table.waiting.entry(id).or_default().push(done);
        drop(table);
        self.kernel.send(ToKernel::Label { cgroup: id, label });
        tracing::info!(label = name, cgroup = path, source = source.as_str(), "labelled");
        self.evidence.lifecycle(Lifecycle::LabelAdded {
            label: name.to_owned(),
            cgroup: Text::from(path),
            source: source.as_str().to_owned(),
        });
        Ok(wait)
    }

    fn forget(&self, id: u64) -> bool {
        let mut table = self.table.lock();
        let Some(labelled) = table.cgroups.remove(&id) else {
            return false;
        };
        table.paths.remove(&labelled.path);
        table.waiting.remove(&id);
        let label = table.names.get(&labelled.label).cloned().unwrap_or_default();
        drop(table);
        self.kernel.send(ToKernel::Unlabel { cgroup: id });
        tracing::info!(label, cgroup = labelled.path, "no longer labelled");
        self.evidence.lifecycle(Lifecycle::LabelRemoved {
            label,
            cgroup: Text::from(labelled.path),
        });
        true
    }

    /// Whether the cgroup is there. Blocks.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        self.directory(path).is_dir()
    }

    fn directory(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn inode(&self, path: &str) -> io::Result<u64> {
        Ok(fs::metadata(self.directory(path))?.ino())
    }
}

impl Table {
    fn above(&self, path: &str) -> Option<(String, LabelId)> {
        let ends = path.match_indices('/').skip(1).map(|(at, _)| at).chain([path.len()]);
        ends.into_iter().find_map(|end| {
            let id = self.paths.get(&path[..end])?;
            Some((path[..end].to_owned(), self.cgroups.get(id)?.label))
        })
    }

    /// The number of a name, and whether it is new; then it is on disk before anybody uses it.
    fn id_of(&mut self, name: &str, file: &Path) -> Result<(LabelId, bool), LabelError> {
        if let Some(id) = self.ids.get(name) {
            return Ok((LabelId(*id), false));
        }
        let id = self.ids.values().max().copied().unwrap_or(0) + 1;
        let mut ids = self.ids.clone();
        ids.insert(name.to_owned(), id);
        let store = |source| LabelError::Store {
            path: file.to_owned(),
            source,
        };
        let bytes = serde_json::to_vec_pretty(&ids).map_err(|e| store(io::Error::other(e)))?;
        files::replace(file, &bytes, 0o600).map_err(store)?;
        self.ids = ids;
        self.names.insert(LabelId(id), name.to_owned());
        Ok((LabelId(id), true))
    }
}

/// What holds for a label, for the kernel side.
fn tell(kernel: &KernelHandle, label: LabelId, settings: LabelSettings) {
    let settings = LabelSettings {
        pending: settings.pending.saturating_add(PENDING_HEADROOM),
        ..settings
    };
    kernel.send(ToKernel::Settings { label, settings });
}

#[cfg(test)]
mod tests;
