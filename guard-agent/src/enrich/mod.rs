//! Who does what: facts about an action beyond the kernel's event.
//!
//! Owns reading /proc, the user database, container ids, claims and digests of executables. It is given ids from the
//! kernel and descriptors of held threads. It must never run on the verdict path, never wait without a deadline, and
//! never mix what the workload says about itself with what was observed.

mod claims;
mod container;
mod hash;
mod process;
mod redact;
mod users;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guard_evidence::record::{Claims, Container, Context, ExecAction, ProcessFacts, WorkloadFacts};
use guard_evidence::text::Text;
use tokio::sync::Semaphore;

use crate::kernel::api::{Asked, AskedExec, ExecExpectation, HeldExec};
use crate::policy::{Facts, HeldFacts};

pub use container::container_id;
pub(crate) use hash::close_elsewhere;
use hash::{HashError, Hasher};
pub(crate) use process::cgroup;
pub use process::fuzz_proc;
use users::Users;

/// /proc of a hostile process may make a reader wait.
const PROC_DEADLINE: Duration = Duration::from_secs(2);
const PROC_READERS: usize = 64;
/// Of the path inside.
const PATH_BYTES: usize = 2_000;

/// Everything known of a held exec.
#[derive(Debug, Clone)]
pub struct Enriched {
    pub workload: WorkloadFacts,
    pub action: ExecAction,
    pub claims: Option<Claims>,
    pub context: Context,
    /// For the policy.
    pub facts: Facts,
    /// To be compared at the exec event; `None` when nobody can vouch for the content.
    pub expectation: Option<Arc<ExecExpectation>>,
    /// Why not.
    pub no_content: Option<String>,
}

/// Shared by all enrichments.
#[derive(Debug)]
pub struct Enricher {
    users: Users,
    hasher: Hasher,
    readers: Arc<Semaphore>,
    record_environment: Vec<String>,
}

impl Enricher {
    #[must_use]
    pub fn new(record_environment: Vec<String>, hash_deadline: Duration) -> Self {
        Self {
            users: Users::new("/etc/passwd".into()),
            hasher: Hasher::new(hash_deadline),
            readers: Arc::new(Semaphore::new(PROC_READERS)),
            record_environment,
        }
    }

    /// What the kernel's event alone tells, for the policy's first look and for records of what the key decided.
    #[must_use]
    pub fn of_key(&self, asked: &Asked, exec: &AskedExec, label: &str, cgroup: &str) -> (WorkloadFacts, Facts) {
        let user = self.users.name(asked.uid);
        let container = container_id(cgroup);
        let workload = WorkloadFacts {
            label: label.to_owned(),
            cgroup: Text::from(cgroup),
            container_id: container.clone(),
            uid: asked.uid,
            gid: asked.gid,
            user: user.clone(),
            login_uid: asked.login_uid,
            pid: asked.tgid,
            tid: asked.id.tid,
            ancestry: vec![ProcessFacts {
                pid: asked.tgid,
                start_ns: asked.id.start_ns,
                comm: Text::from(asked.comm.as_slice()),
                executable: None,
                argv: Vec::new(),
                uid: asked.uid,
            }],
        };
        let facts = Facts {
            label: label.to_owned(),
            // A name that is no more may be anybody's by now.
            path: exec
                .path
                .as_ref()
                .filter(|_| !exec.unlinked)
                .and_then(|path| path.to_str())
                .map(str::to_owned),
            unlinked: exec.unlinked,
            uid: asked.uid,
            gid: asked.gid,
            user,
            login_uid: asked.login_uid,
            cgroup: cgroup.to_owned(),
            container,
            held: None,
        };
        (workload, facts)
    }

    /// Everything about a held exec. `root` is the labelled cgroup: ancestry ends at the first process outside it.
    pub async fn of_held(
        self: Arc<Self>,
        asked: Asked,
        exec: AskedExec,
        mut held: HeldExec,
        label: String,
        cgroup: String,
        root: Option<String>,
    ) -> Enriched {
        let (mut workload, mut facts) = self.of_key(&asked, &exec, &label, &cgroup);
        let path_inside = held.file.as_ref().and_then(|file| inside(file, exec.path.as_deref()));
        let digest = match held.file.take() {
            Some(file) => self.hasher.hash(&label, exec.file, file).await,
            None => Err(HashError::NotOpened),
        };
        let found = self.read_proc(asked.tgid, root, container::of_path(&cgroup)).await;
        let mut context = Context {
            path_inside,
            unit: container::unit(&cgroup),
            container: found.container,
            ancestry_inside: found.inside,
            ..Context::default()
        };
        if found.ancestry.is_empty() {
            // Its event alone tells of it.
            context.ancestry_inside = 1;
        } else {
            workload.ancestry = found.ancestry;
        }

        let text = |bytes: &[u8]| Text::from(bytes);
        let strings = |list: &[Vec<u8>]| {
            list.iter()
                .map(|string| Text::from(string.as_slice()))
                .collect::<Vec<_>>()
        };
        let mut action = ExecAction {
            path: exec.path.as_ref().map(|path| text(path.as_os_str().as_bytes())),
            unlinked: exec.unlinked,
            device: exec.file.device,
            inode: exec.file.inode,
            generation: exec.file.generation,
            sha256: digest.as_ref().ok().map(|digest| hex::encode(digest.sha256)),
            size: digest.as_ref().ok().map(|digest| digest.size),
            given: text(held.given.as_bytes()),
            argv: strings(&held.argv.strings),
            argv_count: held.argv.count,
            argv_sha256: hex::encode(held.argv.sha256),
            argv_truncated: held.argv.truncated,
            environment: claims::chosen(&held.environment.strings, &self.record_environment),
            environment_count: held.environment.count,
            environment_sha256: hex::encode(held.environment.sha256),
            cwd: text(held.cwd.as_os_str().as_bytes()),
        };
        crate::evidence::fit(&mut action, &mut workload);
        let shown = u32::try_from(workload.ancestry.len()).unwrap_or(u32::MAX);
        context.ancestry_inside = context.ancestry_inside.min(shown);
        facts.held = Some(HeldFacts {
            argv: (!held.argv.truncated)
                .then(|| {
                    held.argv
                        .strings
                        .iter()
                        .map(|word| String::from_utf8(word.clone()).ok())
                        .collect()
                })
                .flatten(),
            cwd: held.cwd.to_str().map(str::to_owned),
            given: held.given.to_str().map(str::to_owned),
            sha256: action.sha256.clone(),
        });
        let (expectation, no_content) = match digest {
            Ok(digest) => {
                let expectation = ExecExpectation {
                    file: exec.file,
                    sha256: digest.sha256,
                    argv_sha256: held.argv.sha256,
                    environment_sha256: held.environment.sha256,
                    cwd: held.cwd,
                };
                (Some(Arc::new(expectation)), None)
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let claims = claims::claims(&held.environment.strings);
        Enriched {
            workload,
            action,
            claims,
            context,
            facts,
            expectation,
            no_content,
        }
    }

    /// What /proc and the files of a container's runtime tell, within a deadline.
    async fn read_proc(&self, pid: u32, root: Option<String>, container: Option<Container>) -> Found {
        let known = container.clone();
        let work = async {
            let permit = Arc::clone(&self.readers).acquire_owned().await.ok()?;
            let reading = tokio::task::spawn_blocking(move || {
                let (ancestry, inside) = process::ancestry(pid, root.as_deref());
                let mut container = container;
                if let Some(container) = &mut container {
                    container::complete(container, Path::new("/"));
                }
                drop(permit);
                Found {
                    ancestry,
                    inside,
                    container,
                }
            });
            reading.await.ok()
        };
        let found = tokio::time::timeout(PROC_DEADLINE, work).await.ok().flatten();
        found.unwrap_or_else(|| Found {
            container: known,
            ..Found::default()
        })
    }
}

#[derive(Debug, Default)]
struct Found {
    ancestry: Vec<ProcessFacts>,
    /// How many of them are inside the workload.
    inside: u32,
    container: Option<Container>,
}

/// The file's path in the mount namespace that it was opened in, if that is not the host's path.
fn inside(file: &OwnedFd, host: Option<&Path>) -> Option<Text> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    (Some(path.as_path()) != host).then(|| {
        Text::from(
            path.as_os_str()
                .as_bytes()
                .get(..PATH_BYTES)
                .unwrap_or(path.as_os_str().as_bytes()),
        )
    })
}
