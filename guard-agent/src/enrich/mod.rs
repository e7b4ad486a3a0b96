//! Who does what: facts about an action beyond the kernel's event.
//!
//! Owns reading /proc, the user database, container ids, claims and digests of executables. It is given ids from the
//! kernel and descriptors of held threads. It must never run on the verdict path, never wait without a deadline, and
//! never mix what the workload says about itself with what was observed, nor put a secret into what is recorded: only the
//! policy's facts are what is true.

mod claims;
mod connect;
mod container;
mod hash;
mod names;
mod process;
mod recorded;
mod users;
mod write;

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use guard_evidence::record::{Action, Claims, Container, Context, ExecAction, ProcessFacts, WorkloadFacts};
use guard_evidence::text::Text;
use tokio::sync::Semaphore;

use crate::enforce::Bound;
use crate::kernel::api::{
    Asked, AskedAction, AskedChange, AskedExec, AskedReach, ExecExpectation, HeldExec, Peer, ReachHow, Reply,
};
use crate::redact::Redactor;
use guard_policy::{Deed, ExecFacts, Facts, HeldFacts};

pub use container::container_id;
pub(crate) use hash::close_elsewhere;
use hash::{HashError, Hasher};
use names::Names;
pub use names::fuzz_reply;
pub(crate) use process::cgroup;
pub use process::fuzz_proc;
use users::Users;

/// /proc of a hostile process may make a reader wait.
const PROC_DEADLINE: Duration = Duration::from_secs(2);
const PROC_READERS: usize = 64;
/// Of the path inside.
const PATH_BYTES: usize = 2_000;

/// Everything known of a held action.
#[derive(Debug, Clone)]
pub struct Enriched {
    pub workload: WorkloadFacts,
    pub action: Action,
    pub claims: Option<Claims>,
    pub context: Context,
    /// For the policy.
    pub facts: Facts,
    /// What holds an answer to this very action; or why nothing can, so that nobody can say later whether what was agreed to
    /// is what happened.
    pub bound: Result<Bound, String>,
}

/// Shared by all enrichments.
#[derive(Debug)]
pub struct Enricher {
    users: Users,
    hasher: Hasher,
    readers: Arc<Semaphore>,
    record_environment: Vec<String>,
    redactor: Arc<Redactor>,
    names: Names,
}

impl Enricher {
    #[must_use]
    pub fn new(record_environment: Vec<String>, hash_deadline: Duration, redactor: Redactor) -> Self {
        Self {
            users: Users::new("/etc/passwd".into()),
            hasher: Hasher::new(hash_deadline),
            readers: Arc::new(Semaphore::new(PROC_READERS)),
            record_environment,
            redactor: Arc::new(redactor),
            names: Names::new("/etc/resolv.conf".into()),
        }
    }

    /// A resolver answered a labelled task.
    pub fn heard(&self, reply: &Reply) {
        self.names.heard(reply);
    }

    /// What the kernel's event alone tells, for the policy's first look and for records of what the key decided.
    #[must_use]
    pub fn of_key(&self, asked: &Asked, label: &str, cgroup: &str) -> (WorkloadFacts, Facts) {
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
            uid: asked.uid,
            gid: asked.gid,
            user,
            login_uid: asked.login_uid,
            cgroup: cgroup.to_owned(),
            container,
            deed: match &asked.what {
                AskedAction::Exec(exec) => Deed::Exec(exec_facts(exec)),
                AskedAction::Reach(reach) => Deed::Connect(connect::facts(reach)),
                AskedAction::Change(change) => Deed::Write(write::facts(change)),
            },
        };
        (workload, facts)
    }

    /// Everything about a held connection: the kernel's question says what it is, so that its key binds an answer to it.
    pub async fn of_held_connection(
        self: Arc<Self>,
        asked: Asked,
        reach: AskedReach,
        label: String,
        cgroup: String,
        root: Option<String>,
    ) -> Enriched {
        let (mut workload, mut facts) = self.of_key(&asked, &label, &cgroup);
        if let Deed::Connect(connect) = &mut facts.deed {
            connect.held = true;
        }
        let found = self
            .read_proc(asked.tgid, root, container::of_path(&cgroup), true)
            .await;
        let claims = claims::claims(&found.environment, &self.redactor);
        let mut action = self.connect_action(&reach);
        let mut context = found.context(&cgroup, &mut workload);
        if let Peer::Address { address, .. } = &reach.peer
            && reach.how != ReachHow::Listen
        {
            context.looked_up = self.names.of(asked.label, address);
            for looked_up in &mut context.looked_up {
                looked_up.name = self.redactor.text(looked_up.name.as_bytes());
            }
        }
        crate::evidence::fit_connect(&mut action, &mut workload);
        limit_ancestry(&mut context, &workload);
        Enriched {
            workload,
            action: Action::Connect(Box::new(action)),
            claims,
            context,
            facts,
            bound: Ok(Bound::Key),
        }
    }

    /// Everything about a held change of a file: as of a connection, the kernel's question says what it is.
    pub async fn of_held_change(
        self: Arc<Self>,
        asked: Asked,
        change: AskedChange,
        label: String,
        cgroup: String,
        root: Option<String>,
    ) -> Enriched {
        let (mut workload, mut facts) = self.of_key(&asked, &label, &cgroup);
        if let Deed::Write(write) = &mut facts.deed {
            write.held = true;
        }
        let found = self
            .read_proc(asked.tgid, root, container::of_path(&cgroup), true)
            .await;
        let claims = claims::claims(&found.environment, &self.redactor);
        let mut action = self.file_action(&change);
        let mut context = found.context(&cgroup, &mut workload);
        crate::evidence::fit_file(&mut action, &mut workload);
        limit_ancestry(&mut context, &workload);
        Enriched {
            workload,
            action: Action::File(Box::new(action)),
            claims,
            context,
            facts,
            bound: Ok(Bound::Key),
        }
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
        let (mut workload, mut facts) = self.of_key(&asked, &label, &cgroup);
        let path_inside = held
            .file
            .as_ref()
            .and_then(|file| inside(file, exec.path.as_deref(), &self.redactor));
        let digest = match held.file.take() {
            Some(file) => self.hasher.hash(&label, exec.file, file).await,
            None => Err(HashError::NotOpened),
        };
        let found = self
            .read_proc(asked.tgid, root, container::of_path(&cgroup), false)
            .await;
        let mut context = Context {
            path_inside,
            ..found.context(&cgroup, &mut workload)
        };

        let path = |bytes: &[u8]| self.redactor.path(bytes);
        let (argv, argv_sha256) = self.redactor.argv(&held.argv);
        let mut action = ExecAction {
            path: exec.path.as_ref().map(|known| path(known.as_os_str().as_bytes())),
            unlinked: exec.unlinked,
            device: exec.file.device,
            inode: exec.file.inode,
            generation: exec.file.generation,
            sha256: digest.as_ref().ok().map(|digest| hex::encode(digest.sha256)),
            size: digest.as_ref().ok().map(|digest| digest.size),
            given: path(held.given.as_bytes()),
            argv,
            argv_count: held.argv.count,
            argv_sha256,
            argv_truncated: held.argv.gap.is_some(),
            environment: claims::chosen(&held.environment.strings, &self.record_environment, &self.redactor),
            environment_count: held.environment.count,
            environment_sha256: self.redactor.digest(&held.environment.sha256),
            cwd: path(held.cwd.as_os_str().as_bytes()),
        };
        crate::evidence::fit(&mut action, &mut workload);
        limit_ancestry(&mut context, &workload);
        let held_facts = HeldFacts {
            argv: held
                .argv
                .gap
                .is_none()
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
        };
        facts.deed = Deed::Exec(ExecFacts {
            held: Some(held_facts),
            ..exec_facts(&exec)
        });
        let bound = match digest {
            Ok(digest) => Ok(Bound::Compared(Arc::new(ExecExpectation {
                file: exec.file,
                sha256: digest.sha256,
                argv_sha256: held.argv.sha256,
                environment_sha256: held.environment.sha256,
                cwd: held.cwd,
            }))),
            Err(error) => Err(error.to_string()),
        };
        let claims = claims::claims(&held.environment.strings, &self.redactor);
        Enriched {
            workload,
            action: Action::Exec(Box::new(action)),
            claims,
            context,
            facts,
            bound,
        }
    }

    /// What /proc and the files of a container's runtime tell, within a deadline.
    async fn read_proc(
        &self,
        pid: u32,
        root: Option<String>,
        container: Option<Container>,
        with_environment: bool,
    ) -> Found {
        let known = container.clone();
        let redactor = Arc::clone(&self.redactor);
        let work = async {
            let permit = Arc::clone(&self.readers).acquire_owned().await.ok()?;
            let reading = tokio::task::spawn_blocking(move || {
                let (ancestry, inside) = process::ancestry(pid, root.as_deref(), &redactor);
                let mut container = container;
                if let Some(container) = &mut container {
                    container::complete(container, Path::new("/"));
                }
                let environment = if with_environment {
                    process::environment(pid)
                } else {
                    Vec::new()
                };
                drop(permit);
                Found {
                    ancestry,
                    inside,
                    container,
                    environment,
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
    /// As its process was started with; the beginning of it.
    environment: Vec<Vec<u8>>,
}

impl Found {
    /// Moves what was found to where records have it.
    fn context(self, cgroup: &str, workload: &mut WorkloadFacts) -> Context {
        let mut context = Context {
            unit: container::unit(cgroup),
            container: self.container,
            ancestry_inside: self.inside,
            ..Context::default()
        };
        if self.ancestry.is_empty() {
            // Its event alone tells of it.
            context.ancestry_inside = 1;
        } else {
            workload.ancestry = self.ancestry;
        }
        context
    }
}

/// No more can be inside than there are.
fn limit_ancestry(context: &mut Context, workload: &WorkloadFacts) {
    let shown = u32::try_from(workload.ancestry.len()).unwrap_or(u32::MAX);
    context.ancestry_inside = context.ancestry_inside.min(shown);
}

fn exec_facts(exec: &AskedExec) -> ExecFacts {
    ExecFacts {
        // A name that is no more may be anybody's by now.
        path: exec
            .path
            .as_ref()
            .filter(|_| !exec.unlinked)
            .and_then(|path| path.to_str())
            .map(str::to_owned),
        unlinked: exec.unlinked,
        held: None,
    }
}

/// The file's path in the mount namespace that it was opened in, if that is not the host's path.
fn inside(file: &OwnedFd, host: Option<&Path>, redactor: &Redactor) -> Option<Text> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok()?;
    if Some(path.as_path()) == host {
        return None;
    }
    let text = redactor.path(path.as_os_str().as_bytes());
    let bytes = text.as_bytes();
    Some(Text::from(bytes.get(..PATH_BYTES).unwrap_or(bytes)))
}
