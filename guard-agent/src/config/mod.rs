//! Configuration: what was written (`raw`) becomes what is usable ([`Config`]).
//!
//! Owns the keys of agent.toml, their defaults and their limits; docs/agent.md is its prose. It is given the file's
//! text. It must never start with a part of it ignored: every error names file, line and remedy.

mod raw;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guard_evidence::cosign::VerifierKey;
use guard_evidence::key::Algorithm;

use crate::kernel::{Away, KernelConfig, LabelSettings, Writes};
use crate::redact::Pattern;

/// Where the configuration is looked for.
pub const DEFAULT_PATH: &str = "/etc/guard/agent.toml";

/// Everything resolved; see docs/agent.md for each key.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it was read from, or would have been.
    pub file: PathBuf,
    pub state_dir: PathBuf,
    pub socket: PathBuf,
    pub policy_file: PathBuf,
    pub labels: LabelRules,
    /// Names of environment variables that records may show, without values that look like secrets. A name may end in `*`.
    pub record_environment: Vec<String>,
    pub kernel: KernelConfig,
    /// Bytes of evidence that may wait for the console.
    pub spool_bytes: u64,
    /// Whose cosignatures of the console's log a receipt needs, and how many of them.
    pub witnesses: Vec<VerifierKey>,
    pub quorum: usize,
    /// Of keys for evidence that are made from now on.
    pub key: Algorithm,
    /// How old the key may be before another one follows it; `None`: as old as it likes.
    pub rotate_key_every: Option<Duration>,
    /// To read the content of an executable.
    pub hash_deadline: Duration,
    pub protect: ProtectMore,
    pub redact: Redact,
    /// What the policy allows by the kernel's key alone becomes an exact rule in the kernel.
    pub kernel_rules: bool,
    pub log: Log,
}

/// `[protect]`: what labelled workloads never reach, beyond what is built in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProtectMore {
    /// Absolute, or beginning with `~/`: then of every home.
    pub paths: Vec<PathBuf>,
    /// `HOST:PORT`.
    pub addresses: Vec<String>,
}

/// `[redact]`: what is hidden from records and people.
#[derive(Debug, Clone)]
pub struct Redact {
    pub built_in: bool,
    /// [`crate::redact::Rules`] takes them together.
    pub patterns: Vec<Pattern>,
}

/// Variables that change what a program does: shown unless the configuration says otherwise.
pub const RECORDED: [&str; 12] = [
    "BASH_ENV",
    "ENV",
    "GIT_SSH_COMMAND",
    "JAVA_TOOL_OPTIONS",
    "LD_AUDIT",
    "LD_LIBRARY_PATH",
    "LD_PRELOAD",
    "NODE_OPTIONS",
    "PATH",
    "PERL5OPT",
    "PYTHONPATH",
    "RUBYOPT",
];

/// What the kernel's own limit of waiting actions is above the agent's: who is over the agent's is denied with a record,
/// while those that were answered leave the kernel's table.
pub const PENDING_HEADROOM: u32 = 24;

/// Where programs keep what they need for a moment: free for every label, unless the configuration says otherwise.
const TEMPORARY: [&str; 3] = ["/dev/shm", "/tmp", "/var/tmp"];

/// `[[label]]`: which cgroups are labelled, and what holds for a label.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelRules {
    pub patterns: Vec<LabelPattern>,
    /// By name of the label; `pending` counts questions that people or the policy are asked.
    pub settings: BTreeMap<String, LabelSettings>,
    /// Of every other label.
    pub default: LabelSettings,
    /// By name of the label: directories whose content it may change unasked.
    pub free: BTreeMap<String, Vec<PathBuf>>,
    /// Those that are free for every label.
    pub free_for_all: Vec<PathBuf>,
}

impl LabelRules {
    /// What holds for a label.
    #[must_use]
    pub fn settings(&self, name: &str) -> LabelSettings {
        self.settings.get(name).copied().unwrap_or(self.default)
    }

    /// Free directories with the label that each is free for; for every label without one.
    pub fn free_directories(&self) -> impl Iterator<Item = (Option<String>, PathBuf)> {
        let of_labels = self
            .free
            .iter()
            .flat_map(|(label, paths)| paths.iter().map(|path| (Some(label.clone()), path.clone())));
        of_labels.chain(self.free_for_all.iter().map(|path| (None, path.clone())))
    }
}

impl Default for LabelRules {
    fn default() -> Self {
        Self {
            patterns: Vec::new(),
            settings: BTreeMap::new(),
            default: LabelSettings {
                pending: 1_000,
                writes: Writes::Ask,
                ..LabelSettings::default()
            },
            free: BTreeMap::new(),
            free_for_all: TEMPORARY.iter().map(PathBuf::from).collect(),
        }
    }
}

/// Cgroups of one `[[label]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LabelPattern {
    pub name: String,
    /// Below the cgroup v2 root, with a leading slash; `*` stands for anything but a slash, `**` for anything.
    pub cgroup: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Log {
    pub json: bool,
    pub level: tracing::Level,
}

/// What is wrong with a configuration, where, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    pub file: PathBuf,
    /// From 1; 0 when it concerns the whole file.
    pub line: usize,
    pub column: usize,
    pub message: String,
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file.display(), self.message)?,
            _ => write!(
                f,
                "{}:{}:{}: {}",
                self.file.display(),
                self.line,
                self.column,
                self.message
            )?,
        }
        write!(f, "\n  → {}", self.remedy)
    }
}

impl std::error::Error for ConfigError {}

impl Default for Config {
    fn default() -> Self {
        Self {
            file: PathBuf::from(DEFAULT_PATH),
            state_dir: PathBuf::from("/var/lib/guard-agent"),
            socket: PathBuf::from("/run/guard/agent.sock"),
            policy_file: PathBuf::from("/etc/guard/policy.cedar"),
            labels: LabelRules::default(),
            record_environment: RECORDED.map(str::to_owned).to_vec(),
            kernel: KernelConfig {
                away: Away::Park,
                writes: Writes::Ask,
                files: true,
                ..KernelConfig::default()
            },
            spool_bytes: 1 << 30,
            witnesses: Vec::new(),
            quorum: 0,
            key: Algorithm::default(),
            rotate_key_every: None,
            hash_deadline: Duration::from_secs(30),
            protect: ProtectMore::default(),
            redact: Redact {
                built_in: true,
                patterns: Vec::new(),
            },
            kernel_rules: true,
            log: Log {
                json: false,
                level: tracing::Level::INFO,
            },
        }
    }
}

impl Config {
    /// Reads the file. Without one at the default path the defaults hold; a path that was asked for must be there.
    ///
    /// # Errors
    /// [`ConfigError`] for anything that is not exactly right.
    pub fn load(path: Option<&Path>) -> Result<Self, ConfigError> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read(file) {
            Ok(bytes) => Self::parse(&bytes, file),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && path.is_none() => Ok(Self::default()),
            Err(error) => Err(ConfigError {
                file: file.to_owned(),
                line: 0,
                column: 0,
                message: format!("cannot be read: {error}"),
                remedy: match error.kind() {
                    std::io::ErrorKind::NotFound => {
                        "give the path of a file that exists, or leave --config out".to_owned()
                    }
                    std::io::ErrorKind::PermissionDenied => {
                        format!(
                            "run as root, or: sudo chown root {0} && sudo chmod 0644 {0}",
                            file.display()
                        )
                    }
                    _ => "check that it is a regular file".to_owned(),
                },
            }),
        }
    }

    /// Parses and resolves the text of a configuration file.
    ///
    /// # Errors
    /// [`ConfigError`] with the line.
    pub fn parse(bytes: &[u8], file: &Path) -> Result<Self, ConfigError> {
        raw::resolve(bytes, file)
    }
}

impl LabelPattern {
    /// Whether a cgroup's path matches.
    #[must_use]
    pub fn matches(&self, path: &str) -> bool {
        matches(self.cgroup.as_bytes(), path.as_bytes())
    }
}

/// Glob with `*` (not across slashes) and `**` (across them). Works in constant stack and bounded time: the last star
/// of each kind is the only one to go back to.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut p, mut t) = (0, 0);
    let mut single: Option<(usize, usize)> = None;
    let mut double: Option<(usize, usize)> = None;
    loop {
        if pattern[p..].starts_with(b"**") {
            p += 2;
            double = Some((p, t));
            single = None;
        } else if pattern.get(p) == Some(&b'*') {
            p += 1;
            single = Some((p, t));
        } else if t < text.len() && pattern.get(p) == Some(&text[t]) {
            p += 1;
            t += 1;
        } else if t == text.len() && p == pattern.len() {
            return true;
        } else if let Some((after, from)) = single.filter(|(_, from)| text.get(*from).is_some_and(|b| *b != b'/')) {
            single = Some((after, from + 1));
            (p, t) = (after, from + 1);
        } else if let Some((after, from)) = double.filter(|(_, from)| *from < text.len()) {
            double = Some((after, from + 1));
            single = None;
            (p, t) = (after, from + 1);
        } else {
            return false;
        }
    }
}

#[cfg(test)]
mod tests;
