//! The engine: one task that owns every action from the kernel's question to what became of it.
//!
//! Owns the table of actions and the order of their steps. It is given events of the kernel, of enrichment, of the disk,
//! of the console and of operators. It must never wait: whatever takes time is started and comes back as an event.
//!
//! ```text
//! Asked ─ policy by key ─┬─ allow, deny ───────────────────────────────────────┐
//!                        └─ Holding ─ Enriching ─ policy ─┬─ allow, deny ──────┤
//!                                                         ├─ Recording ─ Asking ─ Deciding ─ Released ─ Enforced
//!                                                         └─ Behind another thread's question about the same connection
//! ```

mod ends;
mod link;
mod question;
mod records;
mod together;
mod verdicts;
mod waiting;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use guard_evidence::chain::Sealed;
use guard_evidence::key::PublicKey;
use guard_evidence::record::{HostFacts, HowHeld, Lifecycle, Verdict};
use guard_proto::limits::PENDING_PER_HOST;
use guard_proto::v1;
use tokio::sync::{mpsc, oneshot};
use ulid::Ulid;

use crate::approval::open::{OpenQuestion, OpenQuestions};
use crate::enforce::{Enforcer, Exact, Remembered};
use crate::enrich::{Enriched, Enricher};
use crate::evidence::{Evidence, Slot};
use crate::kernel::KernelHandle;
use crate::kernel::api::{ActionId, Asked, AskedAction, FromKernel, Held, LabelId, ToKernel, WithdrawnWhy};
use crate::labels::Labels;
use crate::watch::Watchers;
use guard_policy::{Answer, Policy};

pub use link::FromConsole;
use link::Link;
use question::Question;
use records::Decided;
pub use waiting::Waiting;

/// How often the console hears that we live.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// What the engine is told by others than the kernel.
#[derive(Debug)]
pub enum Event {
    Enriched {
        id: ActionId,
        enriched: Box<Enriched>,
    },
    /// The request record is durable.
    RequestRecorded {
        id: ActionId,
        request: Ulid,
        sealed: Box<Sealed>,
    },
    /// The decision record is durable.
    DecisionRecorded {
        id: ActionId,
        request: Ulid,
        sealed: Box<Sealed>,
    },
    TimedOut {
        id: ActionId,
        request: Ulid,
    },
    Console(FromConsole),
    PolicyLoaded(Arc<Policy>),
    Pending {
        reply: oneshot::Sender<Vec<Waiting>>,
    },
}

/// Counts since the agent's start, read by others.
#[derive(Debug, Default)]
pub struct Stats {
    /// Waiting now.
    pub held: AtomicU64,
    pub asked: AtomicU64,
    pub allowed: AtomicU64,
    pub denied: AtomicU64,
    pub lost_events: AtomicU64,
    /// Denied because too many actions of the label waited already.
    pub refused_held: parking_lot::Mutex<HashMap<LabelId, u64>>,
}

/// What the engine needs to know and to use.
#[derive(Debug)]
pub struct Parts {
    pub host: HostFacts,
    /// Key that signs decisions and origin of its console's log; `None`: not enrolled.
    pub console: Option<(PublicKey, String)>,
    pub policy: Arc<Policy>,
    pub kernel: KernelHandle,
    pub evidence: Evidence,
    pub remembered: Arc<Remembered>,
    /// `None`: the kernel answers nothing by itself.
    pub exact: Option<Exact>,
    pub enricher: Arc<Enricher>,
    pub labels: Labels,
    pub watchers: Watchers,
    pub open: OpenQuestions,
    pub stats: Arc<Stats>,
    pub boot_id: String,
    /// Unix milliseconds.
    pub enforcing_since_ms: i64,
}

/// See the module.
#[derive(Debug)]
pub struct Engine {
    parts: Parts,
    enforcer: Enforcer,
    events: mpsc::UnboundedSender<Event>,
    actions: HashMap<ActionId, Action>,
    /// Which action waits for which question.
    requests: HashMap<Ulid, ActionId>,
    waiting: HashMap<LabelId, usize>,
    link: Link,
}

/// One action between the kernel's question and its end.
#[derive(Debug)]
struct Action {
    asked: Asked,
    label: String,
    /// Path below the cgroup v2 root; empty when it could not be found out.
    cgroup: String,
    since: Instant,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// The holder was told to stop the thread.
    Holding,
    /// It is stopped and looked at.
    Enriching { how: HowHeld },
    /// The question is on its way to the disk.
    Recording(Box<Question>),
    /// The thread died or went on before the question was on disk.
    Withdrawing(Box<Question>, WithdrawnWhy),
    /// People are asked.
    Asking(Box<Question>),
    /// Another thread asks for the same connection of the same socket already.
    Behind(Box<Behind>),
    /// The answer is on its way to the disk.
    Deciding(Box<Question>, Decided),
    /// The kernel has the verdict.
    Released(Box<Released>),
}

impl Stage {
    fn is_waiting(&self) -> bool {
        !matches!(self, Self::Released(_) | Self::Withdrawing(..))
    }
}

/// What waits for another thread's question.
#[derive(Debug)]
struct Behind {
    first: ActionId,
    enriched: Enriched,
    how: HowHeld,
}

#[derive(Debug)]
struct Released {
    verdict: Verdict,
    slot: Option<Slot>,
    basis: Basis,
    what: String,
}

/// On what a verdict rests.
#[derive(Debug)]
enum Basis {
    Policy(Box<guard_evidence::record::PolicyDecided>),
    Question {
        request: Ulid,
        request_digest: String,
        decision_digest: String,
    },
}

impl Engine {
    /// `left` are questions of an agent before this one, for which nobody waits any more.
    #[must_use]
    pub fn new(parts: Parts, events: mpsc::UnboundedSender<Event>, left: Vec<OpenQuestion>) -> Self {
        let mut engine = Self {
            enforcer: Enforcer::new(parts.kernel.clone()),
            parts,
            events,
            actions: HashMap::new(),
            requests: HashMap::new(),
            waiting: HashMap::new(),
            link: Link::default(),
        };
        if let Some(exact) = &engine.parts.exact {
            exact.begin();
        }
        // The records of the agent before may know more of its questions than what it noted beside them.
        let before = engine.parts.evidence.before();
        let mut questions: BTreeMap<String, OpenQuestion> =
            left.into_iter().map(|left| (left.request_id.clone(), left)).collect();
        questions.extend(before.asked.clone());
        for (request, question) in &questions {
            match before.ended.get(request) {
                Some(effect) => engine.tell_left(question, effect),
                None => engine.end_left(question),
            }
        }
        engine
    }

    /// Runs until both senders are gone, or until the kernel side has ended after `stop` resolved: what it still says is
    /// recorded.
    pub async fn run(
        mut self,
        mut kernel: mpsc::UnboundedReceiver<FromKernel>,
        mut events: mpsc::UnboundedReceiver<Event>,
        stop: impl Future<Output = ()>,
    ) {
        tokio::pin!(stop);
        let mut stopping = false;
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        loop {
            tokio::select! {
                () = &mut stop, if !stopping => {
                    stopping = true;
                    self.parts.kernel.send(ToKernel::Stop);
                }
                message = kernel.recv() => match message {
                    Some(message) => self.kernel(message),
                    None if stopping => return self.close(),
                    None => {
                        tracing::error!("the kernel side has ended: nothing can be held or released any more");
                        return;
                    }
                },
                Some(event) = events.recv() => self.event(event),
                _ = heartbeat.tick() => self.heartbeat(),
            }
        }
    }

    fn kernel(&mut self, message: FromKernel) {
        match message {
            FromKernel::Asked(asked) => self.asked(asked),
            FromKernel::Held(held) => self.held(*held),
            FromKernel::Withdrawn { id, why } => self.withdrawn(id, why),
            FromKernel::Enforced(enforced) => self.enforced(&enforced),
            FromKernel::Passed { asked, pass, end } => self.passed(&asked, pass, &end),
            FromKernel::CgroupMade { id, path } => self.parts.labels.made(id, &path),
            FromKernel::CgroupGone { id } => self.parts.labels.gone(id),
            FromKernel::Resolved(reply) => self.parts.enricher.heard(&reply),
            FromKernel::Labelled { cgroup, result } => self.parts.labels.applied(cgroup, &result),
            FromKernel::Lost { count } => {
                self.parts.stats.lost_events.fetch_add(count, Ordering::Relaxed);
                tracing::error!(count, "kernel events were lost; their threads were not let through");
                self.parts.evidence.lifecycle(Lifecycle::EventsLost { count });
            }
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Enriched { id, enriched } => self.enriched(id, enriched),
            Event::RequestRecorded { id, request, sealed } => self.request_recorded(id, request, &sealed),
            Event::DecisionRecorded { id, request, sealed } => self.decision_recorded(id, request, &sealed),
            Event::TimedOut { id, request } => self.timed_out(id, request),
            Event::Console(message) => self.console(message),
            Event::PolicyLoaded(policy) => self.policy_loaded(policy),
            Event::Pending { reply } => {
                let _ = reply.send(self.pending());
            }
        }
    }

    /// The first look: by the kernel key alone.
    fn asked(&mut self, asked: Asked) {
        let id = asked.id;
        let cgroup = self.parts.labels.path_of(asked.cgroup, id.tid).unwrap_or_default();
        let known = self.parts.labels.name(asked.label);
        let label = known.clone().unwrap_or_else(|| format!("unknown-{}", asked.label.0));
        let (workload, facts) = self.parts.enricher.of_key(&asked, &label, &cgroup);
        let label_id = asked.label;
        let mut action = Action {
            asked,
            label,
            cgroup,
            since: Instant::now(),
            stage: Stage::Holding,
        };
        if known.is_none() {
            let because = "the kernel knows a label whose name was lost".to_owned();
            return self.deny_by_policy(action, workload, None, Vec::new(), because);
        }
        match self.parts.policy.evaluate(&facts) {
            Answer::Allow { rules } => match self.parts.evidence.reserve() {
                Some(slot) => {
                    self.enforcer.allow_by_key(id, &slot);
                    self.remember(&action, &rules, &facts);
                    let what = action.what_by_key(&self.parts.enricher);
                    let basis = self.by_policy(&action, workload, None, rules);
                    action.stage = Stage::Released(Box::new(Released {
                        verdict: Verdict::Allow,
                        slot: Some(slot),
                        basis,
                        what,
                    }));
                    self.put(action);
                }
                None => self.deny_by_policy(action, workload, None, rules, NO_PLACE.to_owned()),
            },
            Answer::Deny { rules, because } => self.deny_by_policy(action, workload, None, rules, because),
            Answer::Hold | Answer::Ask(_) => {
                let of_label = self.waiting.get(&label_id).copied().unwrap_or(0);
                if of_label >= self.parts.labels.pending_limit(label_id)
                    || self.waiting.values().sum::<usize>() >= PENDING_PER_HOST
                {
                    *self.parts.stats.refused_held.lock().entry(label_id).or_default() += 1;
                    let because = format!(
                        "{of_label} actions of this label are waiting already (pending in agent.toml, docs/agent.md)"
                    );
                    return self.deny_by_policy(action, workload, None, Vec::new(), because);
                }
                self.parts.kernel.send(ToKernel::Hold(id));
                self.put(action);
            }
        }
    }

    /// The thread is stopped: find out what it is about to do.
    fn held(&mut self, held: Held) {
        let action = match self.take(held.id) {
            Some(action) if matches!(action.stage, Stage::Holding) => Some(action),
            Some(other) => {
                self.put(other);
                None
            }
            None => None,
        };
        let Some(mut action) = action else {
            // Closing it may wait for the workload.
            if let Some(file) = held.exec.and_then(|exec| exec.file) {
                crate::enrich::close_elsewhere(file);
            }
            return;
        };
        action.stage = Stage::Enriching {
            how: records::how(held.how, held.tracer.as_ref()),
        };
        let root = self.parts.labels.above(&action.cgroup).map(|(outer, _)| outer);
        let (enricher, events) = (Arc::clone(&self.parts.enricher), self.events.clone());
        let asked = action.asked.clone();
        let (label, cgroup) = (action.label.clone(), action.cgroup.clone());
        tokio::spawn(async move {
            let enriched = match (asked.what.clone(), held.exec) {
                (AskedAction::Exec(exec), Some(found)) => {
                    enricher.of_held(asked, exec, found, label, cgroup, root).await
                }
                (AskedAction::Change(change), _) => enricher.of_held_change(asked, *change, label, cgroup, root).await,
                (AskedAction::Reach(reach), _) => enricher.of_held_connection(asked, reach, label, cgroup, root).await,
                // The holder reads every exec before it says that it is held.
                (AskedAction::Exec(_), None) => {
                    tracing::error!(tid = held.id.tid, "an exec is held that was never read: it waits");
                    return;
                }
            };
            let _ = events.send(Event::Enriched {
                id: held.id,
                enriched: Box::new(enriched),
            });
        });
        self.put(action);
    }

    fn enriched(&mut self, id: ActionId, enriched: Box<Enriched>) {
        let Some(mut action) = self.take(id) else { return };
        match action.take_stage() {
            Stage::Enriching { how } => self.judge(action, *enriched, how),
            stage => {
                action.stage = stage;
                self.put(action);
            }
        }
    }

    /// The second look: everything is known.
    fn judge(&mut self, mut action: Action, mut enriched: Enriched, how: HowHeld) {
        enriched.context.held = Some(how.clone());
        let answer = self.parts.policy.evaluate(&enriched.facts);
        let bound = enriched.bound.clone();
        match (answer, bound) {
            (Answer::Deny { rules, because }, _) => {
                self.deny_by_policy(action, enriched.workload.clone(), Some(enriched), rules, because);
            }
            (Answer::Hold, _) => {
                let because = "the policy did not answer".to_owned();
                self.deny_by_policy(action, enriched.workload.clone(), Some(enriched), Vec::new(), because);
            }
            (Answer::Allow { rules } | Answer::Ask(guard_policy::Ask { rules, .. }), Err(because)) => {
                self.deny_by_policy(action, enriched.workload.clone(), Some(enriched), rules, because);
            }
            (Answer::Allow { rules }, Ok(bound)) => match self.parts.evidence.reserve() {
                Some(slot) => {
                    self.enforcer.allow_by_policy(action.asked.id, bound, &slot);
                    let what = records::what(&enriched);
                    let basis = self.by_policy(&action, enriched.workload.clone(), Some(enriched), rules);
                    action.stage = Stage::Released(Box::new(Released {
                        verdict: Verdict::Allow,
                        slot: Some(slot),
                        basis,
                        what,
                    }));
                    self.put(action);
                }
                None => {
                    self.deny_by_policy(
                        action,
                        enriched.workload.clone(),
                        Some(enriched),
                        rules,
                        NO_PLACE.to_owned(),
                    );
                }
            },
            (Answer::Ask(ask), Ok(bound)) => match self.asked_before(&action) {
                Some(first) => {
                    action.stage = Stage::Behind(Box::new(Behind { first, enriched, how }));
                    self.put(action);
                }
                None => self.ask(action, enriched, how, ask, bound),
            },
        }
    }

    fn heartbeat(&mut self) {
        let pending = self.waiting.values().sum::<usize>();
        self.link.send(v1::host_message::Kind::Heartbeat(v1::Heartbeat {
            at_ms: crate::clock::unix_ms(),
            pending: u32::try_from(pending).unwrap_or(u32::MAX),
            lost_events: self.parts.stats.lost_events.load(Ordering::Relaxed),
            enforcing: true,
        }));
    }

    /// The only way into the table: keeps the counts.
    fn put(&mut self, action: Action) {
        if action.stage.is_waiting() {
            *self.waiting.entry(action.asked.label).or_default() += 1;
            self.parts.stats.held.fetch_add(1, Ordering::Relaxed);
        }
        self.actions.insert(action.asked.id, action);
    }

    /// The only way out of the table.
    fn take(&mut self, id: ActionId) -> Option<Action> {
        let action = self.actions.remove(&id)?;
        if action.stage.is_waiting() {
            if let Some(count) = self.waiting.get_mut(&action.asked.label) {
                *count -= 1;
                if *count == 0 {
                    self.waiting.remove(&action.asked.label);
                }
            }
            self.parts.stats.held.fetch_sub(1, Ordering::Relaxed);
        }
        Some(action)
    }
}

const NO_PLACE: &str = "there is no place for the record of it (the disk is full, failing or too slow)";

impl Action {
    /// Leaves a stage that is put right before the action goes back into the table.
    fn take_stage(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Holding)
    }

    /// One line for people, from the kernel key alone.
    fn what_by_key(&self, enricher: &Enricher) -> String {
        enricher.what_by_key(&self.asked.what, records::LINE)
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
