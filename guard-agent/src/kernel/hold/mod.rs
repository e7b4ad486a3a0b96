//! The holder: one thread that reads the kernel's events, makes every ptrace call and writes every verdict.
//!
//! Owns the questions and the traced threads; given events, commands and wait statuses. It must never block, never log
//! while a thread waits for it except through the non-blocking writer, and never let a thread go on without a verdict.

mod attention;
mod check;
mod commands;
mod events;
mod question;
mod read;
mod rescue;
mod results;
mod statuses;
mod time;
mod workers;

use std::collections::HashMap;
use std::hint;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use guard_common::{Config, Ended, Pending, VerdictKey, counter, verdict};
use tokio::sync::mpsc::UnboundedSender;

use self::attention::Attention;
use self::question::Question;
use self::read::{Detail, ReadError};
use self::rescue::Rescue;
use self::workers::Workers;
use super::api::{AtOnce, FromKernel, Mismatch, ToKernel};
use super::load::Loaded;
use super::maps::{Identify, Maps};
use super::retire::Other;
use super::ring::{self, Event};
use super::single::Single;
use super::sys::{self, Tid, Waker};

const TICK: Duration = Duration::from_millis(250);
/// That what was allowed has happened wakes nobody: it is looked for so long afterwards. What was answered at once is told
/// then, together with others.
const TOLD_AFTER: Duration = Duration::from_millis(25);
/// So many are told at once at most.
const TOLD_TOGETHER: usize = 64;
/// For so long after something was allowed its end is looked for in short intervals.
const LOOKED_FOR: Duration = Duration::from_secs(1);
/// Rounds between two looks at the ring and the clock.
const ROUNDS: u32 = 8;
/// A heartbeat is a system call; one counts for seconds.
const BEAT: Duration = Duration::from_millis(200);

/// What a worker found out.
enum Done {
    Read(VerdictKey, Result<Box<Detail>, ReadError>),
    Checked(VerdictKey, Result<(), Mismatch>),
}

/// A thread that this one traces.
#[derive(Debug, Default)]
struct Traced {
    question: Option<VerdictKey>,
    /// In its group stop until somebody sends SIGCONT.
    listening: bool,
}

struct Holder {
    maps: Maps,
    epoch: u64,
    /// Inode number of the host's mount namespace.
    mount_namespace: u32,
    identify: Arc<Identify>,
    events: UnboundedSender<FromKernel>,
    at_once: Option<Arc<dyn AtOnce>>,
    workers: Workers,
    done: mpsc::Sender<Done>,
    waker: Arc<Waker>,
    questions: HashMap<VerdictKey, Question>,
    /// Sequence number to question: answers name a sequence.
    sequences: HashMap<u64, VerdictKey>,
    traced: HashMap<Tid, Traced>,
    rescue: Rescue,
    attention: Attention,
    /// Ends of actions that were answered at once, not told yet.
    passed: Vec<FromKernel>,
    last_allowed: Option<Instant>,
    last_told: Instant,
    lost: u64,
    malformed: u64,
    /// Replies of resolvers that were passed on since the last sign of life.
    replies: u32,
    last_beat: Instant,
    last_sweep: Instant,
    /// A thread could not be traced because of another thread's exec.
    last_blocked: Instant,
    /// Sets of other versions, in force until their labels are ours and the agent has settled.
    others: Vec<Other>,
    /// Our pin directory.
    pins: PathBuf,
    settled: bool,
    /// Nobody else holds while this one does.
    _single: Single,
}

/// Starts the holder's thread and asks again what an earlier agent left; returns how many questions that were.
pub(crate) fn start(
    loaded: Loaded,
    config: Config,
    commands: mpsc::Receiver<ToKernel>,
    waker: Arc<Waker>,
    events: UnboundedSender<FromKernel>,
    at_once: Option<Arc<dyn AtOnce>>,
) -> io::Result<usize> {
    let (done, results) = mpsc::channel();
    let now = Instant::now();
    let mut holder = Holder {
        maps: loaded.maps,
        epoch: config.epoch,
        mount_namespace: u32::try_from(std::fs::metadata("/proc/1/ns/mnt")?.ino()).map_err(io::Error::other)?,
        identify: loaded.identify,
        events,
        at_once,
        workers: Workers::default(),
        done,
        waker: Arc::clone(&waker),
        questions: HashMap::new(),
        sequences: HashMap::new(),
        traced: HashMap::new(),
        rescue: Rescue::start()?,
        attention: Attention::new(now),
        passed: Vec::new(),
        last_allowed: None,
        last_told: now,
        lost: 0,
        malformed: 0,
        replies: 0,
        last_beat: now,
        last_sweep: now,
        last_blocked: now,
        others: loaded.others,
        pins: loaded.pins,
        settled: false,
        _single: loaded.single,
    };
    holder.lost = holder.counter(counter::RING_FULL);
    let left = holder.take_over();
    let ring = loaded.ring;
    let (ready, started) = mpsc::channel();
    thread::Builder::new().name("guard-holder".into()).spawn(move || {
        // Here, because they unblock signals for this thread.
        let listening =
            sys::wake_on_child_events(Arc::clone(&waker)).and_then(|()| sys::let_seizes_end().map_err(io::Error::from));
        let go_on = listening.is_ok();
        let _ = ready.send(listening);
        if go_on {
            go_first();
            holder.run(ring, &commands, &results);
        }
    })?;
    started.recv().map_err(io::Error::other)??;
    Ok(left)
}

/// A held thread runs its hook again and again until this thread has answered: on a CPU that both want, that is until
/// the end of its slice. What a hostile workload can take of the CPU by asking is bounded by the quotas of its label and
/// by the kernel's limit for real time.
fn go_first() {
    match sys::run_before_others() {
        Ok(sys::Precedence::RealTime) => tracing::info!("answers go before other work: SCHED_RR, priority 1"),
        Ok(sys::Precedence::Nice) => {
            tracing::warn!(
                "no real-time priority (LimitRTPRIO=1 in the unit): answers go before other work by nice -15 only"
            );
        }
        Err(error) => tracing::warn!(
            %error,
            "neither real-time priority nor a nice value (LimitRTPRIO=1, LimitNICE=-15 in the unit): answers wait for their turn"
        ),
    }
}

impl Holder {
    fn run(&mut self, mut ring: RingBuf<MapData>, commands: &mpsc::Receiver<ToKernel>, results: &mpsc::Receiver<Done>) {
        self.beat();
        loop {
            let allowed_before = self.last_allowed;
            // What was allowed and has happened can wait; whoever asks cannot.
            let mut happened = Vec::new();
            let attended = self.attend(&mut ring, &mut happened);
            let patience = if attended { 0 } else { self.patience() };
            let waker = Arc::clone(&self.waker);
            let [asked, woken] = sys::poll([ring.as_fd(), waker.as_fd()], patience);
            if woken {
                waker.clear();
            }
            // Statuses are taken before events and worked off after them: what a thread did before it stopped is in the
            // ring by then. A change of status wakes; it is looked for now and then in any case. Nobody who asks waits for
            // these calls otherwise.
            let statuses: Vec<(Tid, i32)> = if woken || !(asked || attended) {
                std::iter::from_fn(sys::wait).collect()
            } else {
                Vec::new()
            };
            self.drain(&mut ring, &mut happened);
            if self.last_allowed != allowed_before {
                self.make_room();
                self.attention.answered(Instant::now());
            }
            for event in happened {
                self.event(Event::Ended(event));
            }
            for (tid, status) in statuses {
                self.status(tid, status);
            }
            if self.last_beat.elapsed() > BEAT {
                self.beat();
            }
            while let Ok(done) = results.try_recv() {
                match done {
                    Done::Read(key, found) => self.read(key, found),
                    Done::Checked(key, found) => self.checked(key, found),
                }
            }
            loop {
                match commands.try_recv() {
                    Ok(ToKernel::Stop) | Err(mpsc::TryRecvError::Disconnected) => return self.stop(),
                    Ok(command) => self.command(command),
                    Err(mpsc::TryRecvError::Empty) => break,
                }
            }
            self.late();
            if self.passed.len() >= TOLD_TOGETHER || self.last_told.elapsed() >= TOLD_AFTER {
                self.tell_passed();
            }
        }
    }

    /// Looks for the next question without sleeping, as long as one is expected; says whether there was an event.
    fn attend(&mut self, ring: &mut RingBuf<MapData>, happened: &mut Vec<Ended>) -> bool {
        let started = Instant::now();
        let Some(until) = self.attention.until(started) else {
            return false;
        };
        loop {
            let found = self.drain(ring, happened);
            let now = Instant::now();
            if found || now >= until {
                self.attention.spent(now - started);
                return found;
            }
            for _ in 0..ROUNDS {
                hint::spin_loop();
            }
        }
    }

    /// Takes all events that are there; says whether there was one.
    fn drain(&mut self, ring: &mut RingBuf<MapData>, happened: &mut Vec<Ended>) -> bool {
        let mut any = false;
        while let Some(item) = ring.next() {
            any = true;
            match ring::decode(&item) {
                Ok(Event::Ended(event)) if event.verdict == verdict::ALLOW => happened.push(event),
                Ok(event) => self.event(event),
                Err(error) => {
                    self.malformed += 1;
                    tracing::error!(%error, count = self.malformed, "malformed kernel event");
                }
            }
        }
        any
    }

    /// How long to wait for something to happen, milliseconds.
    fn patience(&self) -> i32 {
        let soon = !self.passed.is_empty() || self.last_allowed.is_some_and(|last| last.elapsed() < LOOKED_FOR);
        let wait = if soon { TOLD_AFTER } else { TICK };
        i32::try_from(wait.as_millis()).unwrap_or(25)
    }

    fn tell_passed(&mut self) {
        self.last_told = Instant::now();
        for message in std::mem::take(&mut self.passed) {
            self.send(message);
        }
    }

    /// A real-time thread that is woken takes the CPU it was on last, also from whoever waits for its answer, while another
    /// is idle.
    fn make_room(&self) {
        if let Some(cpu) = usize::try_from(self.counter(counter::CROWDED))
            .ok()
            .and_then(|cpu| cpu.checked_sub(1))
        {
            // It may be allowed this one only.
            let _ = sys::leave_cpu(cpu);
        }
    }

    fn beat(&mut self) {
        self.last_beat = Instant::now();
        self.replies = 0;
        // CPUs come and go.
        self.attention.cpus(sys::cpus());
        let _ = self.maps.heartbeat.set(0, sys::boot_ns(), 0);
    }

    fn counter(&self, which: u32) -> u64 {
        self.maps.counters.get(&which, 0).unwrap_or(0)
    }

    fn send(&self, message: FromKernel) {
        // Nobody listens any more only while the agent ends.
        let _ = self.events.send(message);
    }

    fn pending(&self, key: &VerdictKey) -> Option<Pending> {
        self.maps
            .pending
            .get(&key.task, 0)
            .ok()
            .filter(|pending| pending.asked_ns == key.asked_ns)
    }

    /// Whether a signal came for a thread since it went on; clears it.
    fn take_signalled(&mut self, key: VerdictKey) -> bool {
        self.questions
            .get_mut(&key)
            .is_some_and(|question| std::mem::take(&mut question.signalled))
    }
}
