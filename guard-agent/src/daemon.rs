//! The daemon: starts the parts in the right order and stops them in the reverse one.
//!
//! Owns start, reload, maintenance and stop. It is given the configuration. It must never report that it is ready before
//! enforcement is on, and never switch enforcement off when it stops.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use guard_evidence::key::Algorithm;
use guard_evidence::record::{HostFacts, KernelCounters, Lifecycle};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::approval::open::OpenQuestions;
use crate::clock;
use crate::config::Config;
use crate::console::{Client, ConsoleState};
use crate::control::{self, ControlError};
use crate::enforce::{Exact, Remembered};
use crate::engine::{Engine, Event, Parts, Stats};
use crate::enrich::Enricher;
use crate::evidence::{self, Evidence, EvidenceConfig, EvidenceError};
use crate::identity::{Identity, IdentityError};
use crate::kernel::{self, FindingState, KernelError};
use crate::labels::{LabelError, Labels};
use crate::policy::{self, InForce, PolicyFileError};
use crate::protect;
use crate::redact::{RedactError, Redactor};
use crate::watch::Watchers;

/// How often the cgroup tree is walked for what no event told.
const MAINTENANCE: Duration = Duration::from_secs(5);
/// How often a record says that enforcement is on.
const INTERVAL: Duration = Duration::from_secs(600);
/// How often a record says what exact rules allowed.
const USES: Duration = Duration::from_secs(60);
/// How often somebody looks whether the programs are still attached.
const LOOK: Duration = Duration::from_secs(1);
/// For the kernel side to end and say what it still knows.
const STOP: Duration = Duration::from_secs(3);

/// Why the agent does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error("this machine cannot enforce: {0}")]
    Kernel(String),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    #[error("{0}\n  → correct it; a missing file means that everything is asked for")]
    Policy(#[from] PolicyFileError),
    #[error(transparent)]
    Labels(#[from] LabelError),
    #[error(transparent)]
    Protect(#[from] protect::ProtectError),
    #[error(transparent)]
    Redact(#[from] RedactError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("cannot start: {0}")]
    Runtime(std::io::Error),
    #[error("the kernel side ended; what is in force stays, and nobody answers it\n  → systemctl restart guard-agent")]
    Ended,
    #[error("{0}; enforcement is not whole\n  → systemctl restart guard-agent puts it in force again")]
    Removed(String),
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`DaemonError`]: it did not start, or cannot go on.
pub fn run(config: Config) -> Result<(), DaemonError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("agent")
        .enable_all()
        .build()
        .map_err(DaemonError::Runtime)?;
    let result = runtime.block_on(start(config));
    // A read that a workload never answers must not keep us from stopping.
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

async fn start(config: Config) -> Result<(), DaemonError> {
    // Whatever can be wrong in files is found before anything is put in force.
    let policy = Arc::new(policy::load(&config.policy_file)?);
    let identity = Arc::new(Identity::load_or_create(&config.state_dir, config.key)?);
    let redactor = Redactor::open(&config.state_dir, &config.redact)?;
    let signals = Signals::new().map_err(DaemonError::Runtime)?;
    let evidence = Evidence::start(EvidenceConfig {
        host_id: identity.host_id.clone(),
        key: identity.evidence_key_again()?,
        directory: identity.directory().to_owned(),
        ships: identity.enrolment.is_some(),
        max_bytes: config.spool_bytes,
    })?;
    let open = config.state_dir.join("open");
    let (open, left) = OpenQuestions::open(&open).map_err(|source| DaemonError::Io { path: open, source })?;
    let listener = control::bind(&config.socket)?;

    let remembered = Arc::new(Remembered::new(evidence.clone()));
    let (kernel_config, at_once) = (config.kernel.clone(), Arc::clone(&remembered));
    let (handle, from_kernel, facts) =
        tokio::task::spawn_blocking(move || kernel::start(&kernel_config, Some(at_once)))
            .await
            .map_err(|e| DaemonError::Runtime(std::io::Error::other(e)))?
            .map_err(|error| DaemonError::Kernel(cannot_enforce(&error)))?;
    let enforcing_since_ms = since_boot_to_unix_ms(facts.enforcing_since_ns);
    tracing::info!(
        kernel = facts.release,
        programs = facts.programs.len(),
        took_over = facts.took_over,
        kept = facts.kept,
        questions_taken_over = facts.taken_over_questions,
        "enforcing"
    );
    for absent in &facts.absent {
        tracing::warn!(hook = absent, "this kernel does not have it");
    }
    if facts.took_over
        && let Some(from) = facts
            .last_beat_ns
            .and_then(|beat| rfc3339(since_boot_to_unix_ms(beat)))
            .or_else(|| evidence.last_before().map(str::to_owned))
    {
        evidence.lifecycle(Lifecycle::AgentAway {
            from,
            to: clock::rfc3339(jiff::Timestamp::now()),
        });
    }
    evidence.lifecycle(Lifecycle::EnforcementOn {
        kernel: facts.release.clone(),
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        programs: facts.programs.clone(),
    });
    evidence.lifecycle(Lifecycle::PolicyLoaded {
        digest: policy.digest.clone(),
        policies: policy.count,
    });

    // Before anything is labelled.
    let protection = match handle.protect() {
        Some(protect) => Some(start_protection(protect, &config, &identity).await?),
        None => None,
    };
    let labels = Labels::load(
        &config.state_dir,
        config.labels.clone(),
        handle.clone(),
        evidence.clone(),
    )?;
    if let Some(protection) = protection {
        protection.go_on(labels.clone(), evidence.clone())?;
    }
    // Without them too, for what an earlier agent's have counted.
    let exact = handle.rules().map(|rules| Exact::new(rules, evidence.clone()));
    let watchers = Watchers::default();
    let stats = Arc::new(Stats::default());
    let (events, from_others) = mpsc::unbounded_channel();
    let in_force = InForce::new(config.policy_file, Arc::clone(&policy), events.clone());
    let parts = Parts {
        host: HostFacts {
            id: identity.host_id.clone(),
            name: identity.hostname.clone(),
            kernel: facts.release.clone(),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        console: identity
            .enrolment
            .as_ref()
            .map(|e| (e.decision_key.clone(), e.log_origin.clone())),
        policy,
        kernel: handle.clone(),
        evidence: evidence.clone(),
        remembered,
        exact: exact.clone().filter(|_| config.kernel_rules),
        enricher: Arc::new(Enricher::new(
            config.record_environment.clone(),
            config.hash_deadline,
            redactor,
        )),
        labels: labels.clone(),
        watchers: watchers.clone(),
        open,
        stats: Arc::clone(&stats),
        boot_id: clock::boot_id(),
        enforcing_since_ms,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let engine = Engine::new(parts, events.clone(), left);
    let mut engine = tokio::spawn(engine.run(from_kernel, from_others, async {
        let _ = stopped.await;
    }));

    // The engine runs, so labels are confirmed and what is held meanwhile is answered.
    scan(&labels, &watchers).await;
    // Labels are given and protection is in force: programs of other versions of Guard may go.
    handle.send(kernel::api::ToKernel::Settled);
    let console = match &identity.enrolment {
        Some(enrolment) => {
            let state = Arc::new(ConsoleState::default());
            let client = Client {
                identity: Arc::clone(&identity),
                enrolment: enrolment.clone(),
                evidence: evidence.clone(),
                events: events.clone(),
                state: Arc::clone(&state),
                witnesses: config.witnesses.clone(),
                quorum: config.quorum,
            };
            tokio::spawn(client.run());
            Some((enrolment.address.clone(), state))
        }
        None => {
            tracing::warn!(
                "this host is not enrolled: what the policy does not answer waits for ever; enrol it: guard tokens create | guard-agent enroll"
            );
            None
        }
    };
    let context = control::Context {
        labels: labels.clone(),
        watchers: watchers.clone(),
        evidence: evidence.clone(),
        key: config.key,
        events: events.clone(),
        stats,
        policy: in_force.clone(),
        host_id: identity.host_id.clone(),
        console,
        kernel_release: facts.release,
        enforcing_since: rfc3339(enforcing_since_ms),
        pin_directory: config.kernel.pin_directory.clone(),
        recent: control::Recent::default(),
    };
    tokio::spawn(control::serve(listener, Arc::new(context)));
    let reload = Reload {
        policy: in_force,
        events,
    };

    let interval = Interval {
        since: rfc3339(enforcing_since_ms).unwrap_or_default(),
        pin_directory: config.kernel.pin_directory.clone(),
        programs: facts.programs,
        evidence: evidence.clone(),
        exact,
        key: config.key,
        rotate_key_every: config.rotate_key_every,
        identity: identity.directory().to_owned(),
    };
    interval.record(false).await;

    notify(&[sd_notify::NotifyState::Ready]);
    let result = until_stopped(signals, &reload, &labels, &watchers, &interval, &mut engine).await;
    notify(&[sd_notify::NotifyState::Stopping]);
    tracing::info!("stopping; what is in force stays in force");
    let _ = stop.send(());
    if result.is_ok() && tokio::time::timeout(STOP, &mut engine).await.is_err() {
        tracing::error!("the kernel side does not end; what waits for its records is lost");
    }
    handle.send(kernel::api::ToKernel::Stop);
    // What is gone is not in force, whatever its counters say.
    if !matches!(result, Err(DaemonError::Removed(_))) {
        interval.record(true).await;
    }
    let _ = tokio::task::spawn_blocking(move || evidence.stop()).await;
    let _ = std::fs::remove_file(&config.socket);
    result
}

async fn start_protection(
    protect: Arc<kernel::Protect>,
    config: &Config,
    identity: &Identity,
) -> Result<protect::Running, DaemonError> {
    let settings = protect::Settings {
        config_file: config.file.clone(),
        policy_file: config.policy_file.clone(),
        state_dir: config.state_dir.clone(),
        socket: config.socket.clone(),
        pin_directory: config.kernel.pin_directory.clone(),
        paths: config.protect.paths.clone(),
        addresses: config.protect.addresses.clone(),
        free: config.labels.free_directories().collect(),
        console: identity.enrolment.as_ref().map(|enrolment| enrolment.address.clone()),
    };
    let started = tokio::task::spawn_blocking(move || protect::start(protect, settings))
        .await
        .map_err(|e| DaemonError::Runtime(std::io::Error::other(e)))?;
    Ok(started?)
}

async fn until_stopped(
    mut signals: Signals,
    reload: &Reload,
    labels: &Labels,
    watchers: &Watchers,
    interval: &Interval,
    engine: &mut tokio::task::JoinHandle<()>,
) -> Result<(), DaemonError> {
    let mut maintenance = tokio::time::interval(MAINTENANCE);
    maintenance.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut seen = clock::rfc3339(jiff::Timestamp::now());
    let mut interval_records = tokio::time::interval_at(tokio::time::Instant::now() + INTERVAL, INTERVAL);
    interval_records.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut uses = tokio::time::interval_at(tokio::time::Instant::now() + USES, USES);
    uses.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let watchdog = sd_notify::watchdog_enabled().map_or(MAINTENANCE, |limit| limit / 3);
    let mut watchdog = tokio::time::interval(watchdog.max(Duration::from_millis(100)));
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => return Ok(()),
            _ = signals.interrupt.recv() => return Ok(()),
            _ = signals.hangup.recv() => reload.run().await,
            _ = &mut *engine => return Err(DaemonError::Ended),
            _ = watchdog.tick() => {
                // Only an engine that answers is alive.
                let (reply, wait) = oneshot::channel();
                if reload.events.send(Event::Pending { reply }).is_ok()
                    && let Ok(Ok(_)) = tokio::time::timeout(Duration::from_secs(5), wait).await
                {
                    notify(&[sd_notify::NotifyState::Watchdog]);
                }
            }
            _ = maintenance.tick() => scan(labels, watchers).await,
            _ = interval_records.tick() => {
                interval.record(false).await;
                interval.rotate_key().await;
            }
            _ = uses.tick() => interval.uses().await,
            _ = look.tick() => match interval.gone() {
                None => seen = clock::rfc3339(jiff::Timestamp::now()),
                Some(why) => {
                    interval.evidence.lifecycle(Lifecycle::EnforcementOff {
                        why: why.clone(),
                        last_on: Some(seen),
                    });
                    return Err(DaemonError::Removed(why));
                }
            },
        }
    }
}

/// The signed interval in which enforcement is on.
struct Interval {
    /// RFC 3339.
    since: String,
    pin_directory: PathBuf,
    programs: Vec<String>,
    evidence: Evidence,
    exact: Option<Exact>,
    key: Algorithm,
    rotate_key_every: Option<Duration>,
    /// Directory of the identity.
    identity: PathBuf,
}

impl Interval {
    /// Replaces the evidence key when it is as old as the configuration lets it be.
    async fn rotate_key(&self) {
        if self
            .rotate_key_every
            .is_some_and(|every| evidence::is_due(&self.identity, every))
        {
            match self.evidence.replace_key(self.key).await {
                Ok(key) => tracing::info!(key, "the evidence key is old enough: another one is to follow"),
                Err(error) => tracing::error!(error, "the evidence key is not replaced"),
            }
        }
    }

    /// Why enforcement is not whole any more, if somebody removed programs.
    fn gone(&self) -> Option<String> {
        let gone = kernel::Usage::gone(&self.pin_directory, &self.programs);
        let first = gone.first()?;
        let more = match gone.len() {
            1 => String::new(),
            n => format!(" and {} more", n - 1),
        };
        Some(format!("somebody removed the program {first}{more} from the kernel"))
    }

    /// What exact rules allowed since the last time.
    async fn uses(&self) {
        if let Some(exact) = self.exact.clone() {
            let done = tokio::task::spawn_blocking(move || {
                exact.record();
                exact.tidy();
            });
            let _ = done.await;
        }
    }

    async fn record(&self, stopping: bool) {
        if stopping && let Some(exact) = &self.exact {
            exact.stop();
            self.uses().await;
        }
        let pin_directory = self.pin_directory.clone();
        let usage = tokio::task::spawn_blocking(move || kernel::usage(&pin_directory)).await;
        let counters = match usage {
            Ok(Ok(usage)) => KernelCounters {
                lost_events: usage.ring_full,
                refused_full: usage.pending_full + usage.tasks_full + usage.cgroups_full + usage.flows_full,
                refused_quota: usage
                    .labels
                    .iter()
                    .map(|label| label.refused_pending + label.refused_tasks + label.refused_sockets)
                    .sum(),
                unchecked: usage.unchecked,
                allowed_while_away: usage.away_allowed,
            },
            Ok(Err(error)) => {
                tracing::error!(%error, "the kernel side's counters cannot be read");
                return;
            }
            Err(_) => return,
        };
        self.evidence.lifecycle(Lifecycle::Enforcing {
            since: self.since.clone(),
            stopping,
            counters,
        });
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }
}

/// What SIGHUP does.
struct Reload {
    policy: InForce,
    events: mpsc::UnboundedSender<Event>,
}

impl Reload {
    async fn run(&self) {
        notify(&[
            sd_notify::NotifyState::Reloading,
            sd_notify::NotifyState::monotonic_usec_now().unwrap_or(sd_notify::NotifyState::Ready),
        ]);
        let policy = self.policy.clone();
        match tokio::task::spawn_blocking(move || policy.reload()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "the policy was not loaded; the one before stays in force"),
            Err(error) => tracing::error!(%error, "the policy was not loaded; the one before stays in force"),
        }
        notify(&[sd_notify::NotifyState::Ready]);
    }
}

async fn scan(labels: &Labels, watchers: &Watchers) {
    let (labels, watchers) = (labels.clone(), watchers.clone());
    let done = tokio::task::spawn_blocking(move || {
        control::tidy();
        labels.scan();
        watchers.tidy(|cgroup| labels.exists(cgroup));
    });
    let _ = done.await;
}

fn cannot_enforce(error: &KernelError) -> String {
    let mut text = error.to_string();
    for finding in kernel::doctor()
        .into_iter()
        .filter(|finding| finding.state == FindingState::Bad)
    {
        text.push_str(&format!("\n  {}: {}", finding.name, finding.text));
        if let Some(remedy) = finding.remedy {
            text.push_str(&format!("\n    → {remedy}"));
        }
    }
    text
}

fn rfc3339(unix_ms: i64) -> Option<String> {
    jiff::Timestamp::from_millisecond(unix_ms).ok().map(clock::rfc3339)
}

fn since_boot_to_unix_ms(since_boot_ns: u64) -> i64 {
    let ago = clock::since_boot_ns().saturating_sub(since_boot_ns) / 1_000_000;
    clock::unix_ms().saturating_sub(i64::try_from(ago).unwrap_or(i64::MAX))
}

/// Without systemd there is nobody to tell.
fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
