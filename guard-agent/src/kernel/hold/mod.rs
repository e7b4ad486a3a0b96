//! The holder: one thread that reads the kernel's events, makes every ptrace call and writes every verdict.
//!
//! Owns the questions and the traced threads; given events, commands and wait statuses. It must never block, never log
//! while a thread waits for it except through the non-blocking writer, and never let a thread go on without a verdict.

mod check;
mod question;
mod read;
mod workers;

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use aya::maps::{MapData, RingBuf};
use guard_common::{Config, Pending, Verdict, VerdictKey, counter, ended, state, verdict};
use tokio::sync::mpsc::UnboundedSender;

use self::check::Gated;
use self::question::{Question, Stage};
use self::read::{Detail, ReadError};
use self::workers::Workers;
use super::api::{
    ActionId, Enforced, FromKernel, Held, HeldExec, HeldHow, Mismatch, MismatchWhat, Outcome, ParkedWhy, Release,
    ToKernel, WithdrawnWhy,
};
use super::load::Loaded;
use super::maps::{Identify, Maps};
use super::ring::{self, Ask, Event};
use super::sys::{self, Tid, Waker};
use super::{cgroups, next_sequence};

const TICK: Duration = Duration::from_millis(250);
/// Reading a held thread's memory and opening its file; afterwards the action is refused.
const READ_FOR: Duration = Duration::from_secs(10);
/// A thread that went on for a signal and did not come back asks anew when it does.
const SIGNAL_FOR: Duration = Duration::from_secs(3);
/// Questions older than this are compared with the kernel's table, should an event have been lost.
const SWEEP_AFTER: Duration = Duration::from_secs(3);

const PTRACE_EVENT_EXEC: i32 = 4;
const PTRACE_EVENT_STOP: i32 = 128;
/// `si_code` of a signal that the kernel made, as the rounds of a hold do.
const SI_KERNEL: i32 = 0x80;

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
    workers: Workers,
    done: mpsc::Sender<Done>,
    waker: Arc<Waker>,
    questions: HashMap<VerdictKey, Question>,
    /// Sequence number to question: answers name a sequence.
    sequences: HashMap<u64, VerdictKey>,
    traced: HashMap<Tid, Traced>,
    lost: u64,
    malformed: u64,
    last_beat: Instant,
    last_sweep: Instant,
}

/// Starts the holder's thread and asks again what an earlier agent left; returns how many questions that were.
pub(crate) fn start(
    loaded: Loaded,
    config: Config,
    commands: mpsc::Receiver<ToKernel>,
    waker: Arc<Waker>,
    events: UnboundedSender<FromKernel>,
) -> io::Result<usize> {
    let (done, results) = mpsc::channel();
    let now = Instant::now();
    let mut holder = Holder {
        maps: loaded.maps,
        epoch: config.epoch,
        mount_namespace: u32::try_from(std::fs::metadata("/proc/1/ns/mnt")?.ino()).map_err(io::Error::other)?,
        identify: Arc::new(loaded.identify),
        events,
        workers: Workers::default(),
        done,
        waker: Arc::clone(&waker),
        questions: HashMap::new(),
        sequences: HashMap::new(),
        traced: HashMap::new(),
        lost: 0,
        malformed: 0,
        last_beat: now,
        last_sweep: now,
    };
    holder.lost = holder.counter(counter::RING_FULL);
    let left = holder.take_over();
    let ring = loaded.ring;
    let (ready, started) = mpsc::channel();
    thread::Builder::new().name("guard-holder".into()).spawn(move || {
        // Here, because it unblocks the signal for this thread.
        let listening = sys::wake_on_child_events(Arc::clone(&waker));
        let go_on = listening.is_ok();
        let _ = ready.send(listening);
        if go_on {
            holder.run(ring, &commands, &results);
        }
    })?;
    started.recv().map_err(io::Error::other)??;
    Ok(left)
}

impl Holder {
    fn run(&mut self, mut ring: RingBuf<MapData>, commands: &mpsc::Receiver<ToKernel>, results: &mpsc::Receiver<Done>) {
        loop {
            let tick = i32::try_from(TICK.as_millis()).unwrap_or(250);
            let waker = Arc::clone(&self.waker);
            sys::poll(&[ring.as_fd(), waker.as_fd()], tick);
            waker.clear();
            self.beat();
            // Statuses are taken before events and worked off after them: what a thread did before it stopped is in the
            // ring by then.
            let statuses: Vec<(Tid, i32)> = std::iter::from_fn(sys::wait).collect();
            while let Some(item) = ring.next() {
                match ring::decode(&item) {
                    Ok(event) => self.event(event),
                    Err(error) => {
                        self.malformed += 1;
                        tracing::error!(%error, count = self.malformed, "malformed kernel event");
                    }
                }
            }
            for (tid, status) in statuses {
                self.status(tid, status);
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
        }
    }

    fn beat(&mut self) {
        self.last_beat = Instant::now();
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

    // ---- events ----

    fn event(&mut self, event: Event) {
        match event {
            Event::Ask(ask) => self.ask(*ask),
            Event::Ended(event) => {
                self.ended(
                    VerdictKey {
                        task: event.task,
                        asked_ns: event.asked_ns,
                    },
                    &event,
                );
            }
            Event::Parked(event) => {
                self.parked(
                    VerdictKey {
                        task: event.task,
                        asked_ns: event.asked_ns,
                    },
                    event.state,
                );
            }
            Event::Signal(signal) => self.signal(&signal),
            Event::CgroupMade { id, path, .. } => self.send(FromKernel::CgroupMade { id, path }),
            Event::CgroupGone { id } => self.send(FromKernel::CgroupGone { id }),
        }
    }

    fn ask(&mut self, ask: Ask) {
        let key = VerdictKey {
            task: ask.task,
            asked_ns: ask.asked_ns,
        };
        if self.questions.contains_key(&key) {
            return;
        }
        let question = Question::new(ask, self.mount_namespace);
        let tid = question.tid();
        if let Some(traced) = self.traced.get_mut(&tid) {
            traced.question = Some(key);
        }
        self.sequences.insert(question.id.sequence, key);
        self.send(FromKernel::Asked(question.asked()));
        self.questions.insert(key, question);
    }

    fn ended(&mut self, key: VerdictKey, event: &guard_common::Ended) {
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        let (id, answer) = (question.id, question.answer);
        let outcome = match (event.how, answer) {
            (ended::DENIED, Some(verdict::DENY)) => Some(Outcome::Denied),
            (ended::COMMITTED, Some(_)) => Some(Outcome::Ran),
            (ended::RETURNED, Some(_)) if event.errno == 0 => Some(Outcome::Ran),
            (ended::RETURNED, Some(_)) => Some(Outcome::Failed(event.errno.cast_signed())),
            (ended::UNCHECKED, Some(_)) => Some(Outcome::Killed(Mismatch {
                what: MismatchWhat::Unreadable,
                approved: "compared before its first instruction".into(),
                found: "it was not traced by the agent when it committed its exec".into(),
            })),
            (ended::DIED, Some(_)) => Some(Outcome::Died),
            _ => None,
        };
        match outcome {
            Some(outcome) => {
                let resume_ns = event.at_ns.saturating_sub(question.answered_ns);
                self.send(FromKernel::Enforced(Enforced { id, outcome, resume_ns }));
            }
            None => {
                let why = if event.how == ended::DIED {
                    WithdrawnWhy::Died
                } else {
                    WithdrawnWhy::Changed
                };
                self.send(FromKernel::Withdrawn { id, why });
            }
        }
        self.forget(key);
    }

    /// Drops a question; a thread that is still traced for it is let go as soon as it stops.
    fn forget(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.remove(&key) else {
            return;
        };
        self.sequences.remove(&question.id.sequence);
        for (tid, traced) in &mut self.traced {
            if traced.question == Some(key) {
                traced.question = None;
                let _ = sys::interrupt(*tid);
            }
        }
    }

    fn parked(&mut self, key: VerdictKey, why: u32) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let why = match (why, question.cannot_trace) {
            (_, Some(why)) => why,
            (state::PARKED_TRACED, _) => ParkedWhy::AlreadyTraced,
            (state::PARKED_SIGCONT, _) => ParkedWhy::SigcontHandled,
            (state::PARKED_AWAY, _) => ParkedWhy::AgentWasAway,
            _ => ParkedWhy::TookTooLong,
        };
        question.parked = Some(why);
        match question.stage {
            Stage::Asked if question.wanted => self.start_reading(key),
            // The verdict is there; it stopped before it saw it.
            Stage::Going => {
                let tgid = question.tgid();
                let _ = sys::kill(tgid, libc::SIGCONT);
            }
            _ => {}
        }
    }

    /// A held thread has to see its signals: it goes on, handles them, and its restarted syscall asks again.
    fn signal(&mut self, signal: &guard_common::Signal) {
        let mut stopped = Vec::new();
        for (tid, traced) in &self.traced {
            let Some(question) = traced.question.and_then(|key| self.questions.get_mut(&key)) else {
                continue;
            };
            if question.ask.tgid != signal.tgid || (signal.group == 0 && question.ask.tid != signal.tid) {
                continue;
            }
            match question.stage {
                Stage::Held | Stage::Stopped => stopped.push(*tid),
                // Perhaps it has stopped already and this thread does not know: seen to when it does.
                Stage::Asked | Stage::Seizing | Stage::Passing | Stage::Reading => question.signalled = true,
                Stage::Going | Stage::Checking => {}
            }
        }
        for tid in stopped {
            self.pass(tid, 0);
        }
    }

    // ---- commands ----

    fn command(&mut self, command: ToKernel) {
        match command {
            ToKernel::Hold(id) => self.hold(id),
            ToKernel::Release { id, release } => self.release(id, release),
            ToKernel::Label { cgroup, label } => {
                let result = cgroups::label(&mut self.maps, cgroup, label.0)
                    .map(|_| ())
                    .map_err(|error| {
                        tracing::error!(%error, cgroup, label = label.0, "cgroup not labelled");
                        error.to_string()
                    });
                self.send(FromKernel::Labelled { cgroup, result });
            }
            ToKernel::Unlabel { cgroup } => cgroups::unlabel(&mut self.maps, cgroup),
            ToKernel::Stop => {}
        }
    }

    fn find(&self, id: ActionId) -> Option<VerdictKey> {
        self.sequences.get(&id.sequence).copied()
    }

    fn hold(&mut self, id: ActionId) {
        let Some(key) = self.find(id) else {
            return;
        };
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if question.wanted {
            return;
        }
        question.wanted = true;
        let tid = question.tid();
        match question.stage {
            Stage::Asked if question.parked.is_some() => self.start_reading(key),
            Stage::Asked => self.seize(key, tid),
            Stage::Stopped if question.detail.is_some() => self.tell(key),
            Stage::Stopped => self.start_reading(key),
            _ => {}
        }
    }

    fn seize(&mut self, key: VerdictKey, tid: Tid) {
        // Traced or not: the next round of its hook stops it.
        if self.traced.contains_key(&tid) {
            self.stage(key, Stage::Seizing);
            return;
        }
        match sys::seize(tid) {
            Ok(()) => {
                self.traced.insert(
                    tid,
                    Traced {
                        question: Some(key),
                        listening: false,
                    },
                );
                self.stage(key, Stage::Seizing);
                // While its question is in the table the thread lives, so the id is still its own.
                if self
                    .pending(&key)
                    .is_none_or(|pending| pending.tid.cast_signed() != tid)
                    && let Some(traced) = self.traced.get_mut(&tid)
                {
                    traced.question = None;
                    let _ = sys::interrupt(tid);
                }
            }
            // Gone: its end is in the ring.
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
            Err(_) => {
                let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
                let tracer = status
                    .lines()
                    .find_map(|line| line.strip_prefix("TracerPid:"))
                    .map(str::trim);
                let why = if tracer.is_some_and(|tracer| tracer != "0") {
                    ParkedWhy::AlreadyTraced
                } else {
                    ParkedWhy::PtraceForbidden
                };
                if let Some(question) = self.questions.get_mut(&key) {
                    question.cannot_trace = Some(why);
                }
            }
        }
    }

    fn stage(&mut self, key: VerdictKey, stage: Stage) {
        if let Some(question) = self.questions.get_mut(&key) {
            question.stage = stage;
            question.since = Instant::now();
        }
    }

    /// The traced thread of a question.
    fn tracee(&self, key: VerdictKey) -> Option<Tid> {
        self.traced
            .iter()
            .find(|(_, traced)| traced.question == Some(key))
            .map(|(tid, _)| *tid)
    }

    fn release(&mut self, id: ActionId, release: Release) {
        let Some(key) = self.find(id) else {
            return;
        };
        let tracee = self.tracee(key);
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if question.answer.is_some() {
            return;
        }
        let answer = match release {
            Release::Deny => verdict::DENY,
            Release::Allow => verdict::ALLOW,
            Release::AllowChecked(expectation) if question.detail.is_some() => {
                question.expectation = Some(expectation);
                verdict::CHECK
            }
            Release::AllowChecked(_) => {
                tracing::error!(tid = id.tid, "an exec that was never read cannot be compared: refused");
                verdict::DENY
            }
        };
        let (stage, tgid, tid) = (question.stage, question.tgid(), question.tid());
        question.answer = Some(answer);
        question.answered_ns = sys::boot_ns();
        self.stage(key, Stage::Going);
        if answer == verdict::CHECK && tracee.is_none() && sys::seize(tid).is_ok() {
            // Parked; traced from here on, so that it stops at its exec event.
            self.traced.insert(
                tid,
                Traced {
                    question: Some(key),
                    listening: false,
                },
            );
        }
        if !self.write(key, answer) {
            // Without a verdict it stays where it is. A killed thread is better than one that waits for ever.
            tracing::error!(
                tid = id.tid,
                "the kernel's table of verdicts is full: the process is killed"
            );
            let _ = sys::kill(tgid, libc::SIGKILL);
            return;
        }
        match (tracee, stage) {
            (None, _) => {
                if self
                    .pending(&key)
                    .is_some_and(|pending| pending.state != state::LOOPING)
                {
                    let _ = sys::kill(tgid, libc::SIGCONT);
                }
            }
            (Some(tid), Stage::Stopped | Stage::Held | Stage::Reading) => self.go(tid, answer),
            // It runs: it finds its verdict, and is let go when its question ends.
            (Some(_), _) => {}
        }
    }

    fn write(&mut self, key: VerdictKey, answer: u32) -> bool {
        let Some(question) = self.questions.get(&key) else {
            return false;
        };
        let value = Verdict {
            key: question.ask.key,
            start_ns: question.ask.start_ns,
            tid: question.ask.tid,
            verdict: answer,
        };
        self.maps.verdicts.insert(key, value, 0).is_ok()
    }

    /// Lets a stopped thread go on towards its verdict: traced if its exec has to be compared.
    fn go(&mut self, tid: Tid, answer: u32) {
        if answer == verdict::CHECK {
            let _ = sys::cont(tid, 0);
        } else {
            self.let_go(tid, 0);
        }
    }

    /// Lets a held thread go on to see a signal.
    fn pass(&mut self, tid: Tid, signal: i32) {
        let Some(key) = self.traced.get(&tid).and_then(|traced| traced.question) else {
            return;
        };
        self.stage(key, Stage::Passing);
        let _ = sys::cont(tid, signal);
    }

    // ---- wait statuses ----

    fn status(&mut self, tid: Tid, status: i32) {
        if libc::WIFEXITED(status) || libc::WIFSIGNALED(status) {
            // The question, if any, ends by its event.
            self.traced.remove(&tid);
            return;
        }
        if !libc::WIFSTOPPED(status) {
            return;
        }
        let signal = libc::WSTOPSIG(status);
        match status >> 16 {
            PTRACE_EVENT_EXEC => self.exec_event(tid),
            PTRACE_EVENT_STOP if is_stop(signal) => self.group_stop(tid),
            PTRACE_EVENT_STOP => self.at_trap(tid),
            0 => {
                let ours = (signal == libc::SIGSTOP || signal == libc::SIGCONT)
                    && sys::signal_code(tid).is_ok_and(|code| code == SI_KERNEL);
                if ours {
                    self.at_hook(tid);
                } else {
                    self.delivery(tid, signal);
                }
            }
            _ => self.let_go(tid, 0),
        }
    }

    fn question_of(&self, tid: Tid) -> Option<(VerdictKey, &Question)> {
        let key = self.traced.get(&tid)?.question?;
        Some((key, self.questions.get(&key)?))
    }

    /// A thread that is traced for nothing any more.
    fn let_go(&mut self, tid: Tid, signal: i32) {
        self.traced.remove(&tid);
        let _ = sys::detach(tid, signal);
    }

    /// Told to stop, by us or because a group stop began or ended. The SIGSTOP of a round may still wait for it, so it
    /// is not let go here while it may be in its hook: it would stop the whole process.
    fn at_trap(&mut self, tid: Tid) {
        if let Some(traced) = self.traced.get_mut(&tid) {
            traced.listening = false;
        }
        if self.question_of(tid).is_some() {
            let _ = sys::cont(tid, 0);
        } else {
            self.let_go(tid, 0);
        }
    }

    /// Stopped by the round of its hook: nothing of ours waits for it any more.
    fn at_hook(&mut self, tid: Tid) {
        let Some((key, question)) = self.question_of(tid) else {
            return self.let_go(tid, 0);
        };
        match question.stage {
            Stage::Asked | Stage::Seizing | Stage::Passing => {
                let wanted = question.wanted;
                self.stage(key, Stage::Stopped);
                if question_signalled(&mut self.questions, key) {
                    self.pass(tid, 0);
                } else if wanted {
                    self.start_reading(key);
                }
            }
            Stage::Going => {
                let answer = question.answer.unwrap_or(verdict::DENY);
                self.go(tid, answer);
            }
            Stage::Stopped | Stage::Reading | Stage::Held | Stage::Checking => {}
        }
    }

    /// A signal of somebody's is about to be delivered.
    fn delivery(&mut self, tid: Tid, signal: i32) {
        let Some((_, question)) = self.question_of(tid) else {
            return self.let_go(tid, signal);
        };
        if question.stage == Stage::Going {
            let _ = sys::cont(tid, signal);
        } else {
            self.pass(tid, signal);
        }
    }

    /// The process was stopped (Ctrl-Z, SIGSTOP): it stays so until somebody continues it.
    fn group_stop(&mut self, tid: Tid) {
        let Some((key, question)) = self.question_of(tid) else {
            return self.let_go(tid, 0);
        };
        let going_free = question.stage == Stage::Going && question.answer != Some(verdict::CHECK);
        let parked_while_seizing = question.stage == Stage::Seizing && question.parked.is_some();
        if going_free {
            return self.let_go(tid, 0);
        }
        if parked_while_seizing {
            self.let_go(tid, 0);
            self.stage(key, Stage::Asked);
            self.start_reading(key);
            return;
        }
        if matches!(question.stage, Stage::Seizing | Stage::Passing | Stage::Asked) {
            self.stage(key, Stage::Passing);
        }
        if let Some(traced) = self.traced.get_mut(&tid) {
            traced.listening = true;
        }
        let _ = sys::listen(tid);
    }

    /// The new image is there and has not run an instruction.
    fn exec_event(&mut self, tid: Tid) {
        let before = sys::event_message(tid)
            .ok()
            .and_then(|old| Tid::try_from(old).ok())
            .unwrap_or(tid);
        if before != tid
            && let Some(traced) = self.traced.remove(&before)
        {
            // A thread that was not the leader took the leader's id; the old leader's question ends by its event.
            self.traced.insert(tid, traced);
        }
        let Some((key, question)) = self.question_of(tid) else {
            return self.let_go(tid, 0);
        };
        let (Stage::Going, Some(expected), Some(detail)) =
            (question.stage, question.expectation.clone(), question.detail.clone())
        else {
            return self.let_go(tid, 0);
        };
        let gated = self.pending(&key).map(|pending| Gated {
            asked: pending.key,
            last: pending.last_file,
        });
        self.stage(key, Stage::Checking);
        let (identify, done, waker) = (Arc::clone(&self.identify), self.done.clone(), Arc::clone(&self.waker));
        self.workers.run(move || {
            let result = match gated {
                Some(gated) => check::compare(tid, &gated, &expected, &detail, &identify),
                None => Err(Mismatch {
                    what: MismatchWhat::Unreadable,
                    approved: "the kernel's key of the file".into(),
                    found: "the question is no longer in the kernel's table".into(),
                }),
            };
            let _ = done.send(Done::Checked(key, result));
            waker.wake();
        });
    }

    // ---- results of workers ----

    fn start_reading(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        question.stage = Stage::Reading;
        question.since = Instant::now();
        let (tid, asked, path) = (question.tid(), question.ask.key, question.ask.path.clone());
        let (identify, done, waker) = (Arc::clone(&self.identify), self.done.clone(), Arc::clone(&self.waker));
        self.workers.run(move || {
            let found = read::read(tid, &asked, path.as_deref(), &identify);
            let _ = done.send(Done::Read(key, found.map(Box::new)));
            waker.wake();
        });
    }

    fn read(&mut self, key: VerdictKey, found: Result<Box<Detail>, ReadError>) {
        let tracee = self.tracee(key);
        let pending = self.pending(&key);
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        if question.stage != Stage::Reading {
            return;
        }
        match found {
            Ok(detail) => {
                if let Some(pending) = pending {
                    question.rounds = pending.rounds;
                }
                let same = question.detail.as_ref().is_none_or(|before| {
                    before.argv == detail.argv && before.environment == detail.environment && before.cwd == detail.cwd
                });
                question.stage = Stage::Stopped;
                if same {
                    // The same file, or the one that can be opened now.
                    if question.detail.as_ref().is_none_or(|before| before.file.is_none()) {
                        question.detail = Some(Arc::from(detail));
                    }
                    self.tell(key);
                } else {
                    question.detail = Some(Arc::from(detail));
                    self.ask_anew(key);
                }
                if question_signalled(&mut self.questions, key)
                    && let Some(tid) = tracee
                {
                    self.pass(tid, 0);
                }
            }
            Err(ReadError::NotInExec) if tracee.is_some() => {
                // Stopped on its way back into the syscall: the hook stops it.
                self.stage(key, Stage::Seizing);
                if let Some(tid) = tracee {
                    let _ = sys::cont(tid, 0);
                }
            }
            Err(ReadError::NotInExec) => {
                // Parked, but not stopped yet; or gone on, then its event comes. Tried again at the next tick.
                question.stage = Stage::Asked;
            }
            Err(error) => {
                tracing::warn!(tid = question.id.tid, %error, "a held exec cannot be read: refused");
                self.refuse(key);
            }
        }
    }

    /// What cannot be shown cannot be approved.
    fn refuse(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        let id = question.id;
        self.send(FromKernel::Withdrawn {
            id,
            why: WithdrawnWhy::Changed,
        });
        self.release(id, Release::Deny);
        // The question is withdrawn; its end is told to nobody.
        if let Some(question) = self.questions.remove(&key) {
            self.sequences.remove(&question.id.sequence);
        }
    }

    /// The same file with other arguments: another question.
    fn ask_anew(&mut self, key: VerdictKey) {
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let before = question.id;
        question.id.sequence = next_sequence();
        question.told = false;
        question.wanted = false;
        let (id, asked) = (question.id, question.asked());
        self.sequences.remove(&before.sequence);
        self.sequences.insert(id.sequence, key);
        self.send(FromKernel::Withdrawn {
            id: before,
            why: WithdrawnWhy::Changed,
        });
        self.send(FromKernel::Asked(asked));
    }

    /// Tells the agent what the held thread is about to do, once.
    fn tell(&mut self, key: VerdictKey) {
        let traced = self.tracee(key).is_some();
        let Some(question) = self.questions.get_mut(&key) else {
            return;
        };
        let Some(detail) = question.detail.clone() else {
            return;
        };
        question.stage = Stage::Held;
        if std::mem::replace(&mut question.told, true) {
            return;
        }
        let how = match question.parked {
            Some(why) if !traced => HeldHow::Parked(why),
            _ => HeldHow::Traced,
        };
        let held = Held {
            id: question.id,
            how,
            rounds: question.rounds,
            took_ns: sys::boot_ns().saturating_sub(question.ask.asked_ns),
            exec: HeldExec {
                argv: detail.argv.clone(),
                environment: detail.environment.clone(),
                cwd: detail.cwd.clone(),
                file: detail.file.as_ref().and_then(|file| file.try_clone().ok()),
                given: detail.given.clone(),
            },
        };
        self.send(FromKernel::Held(Box::new(held)));
    }

    fn checked(&mut self, key: VerdictKey, found: Result<(), Mismatch>) {
        let tracee = self.tracee(key);
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        if question.stage != Stage::Checking {
            return;
        }
        let (id, tgid, answered_ns) = (question.id, question.tgid(), question.answered_ns);
        let resume_ns = sys::boot_ns().saturating_sub(answered_ns);
        let found = match found {
            Ok(()) if !self.write(key, verdict::CHECKED) => Err(Mismatch {
                what: MismatchWhat::Unreadable,
                approved: "a place in the kernel's table of verdicts".into(),
                found: "it is full".into(),
            }),
            other => other,
        };
        let outcome = match found {
            Ok(()) => {
                if let Some(tid) = tracee {
                    self.let_go(tid, 0);
                }
                Outcome::Ran
            }
            Err(mismatch) => {
                let _ = sys::kill(tgid, libc::SIGKILL);
                Outcome::Killed(mismatch)
            }
        };
        self.send(FromKernel::Enforced(Enforced { id, outcome, resume_ns }));
        if let Some(traced) = tracee.and_then(|tid| self.traced.get_mut(&tid)) {
            traced.question = None;
        }
        self.questions.remove(&key);
        self.sequences.remove(&id.sequence);
    }

    // ---- time ----

    /// What did not happen in time.
    fn late(&mut self) {
        let now = Instant::now();
        let mut reread = Vec::new();
        let mut refuse = Vec::new();
        let mut unchecked = Vec::new();
        let mut wandered = Vec::new();
        for (key, question) in &self.questions {
            let waited = now.duration_since(question.since);
            match question.stage {
                Stage::Asked if question.wanted && question.parked.is_some() => reread.push(*key),
                Stage::Reading if waited > READ_FOR => refuse.push(*key),
                Stage::Checking if waited > check::HASH_FOR + READ_FOR => unchecked.push(*key),
                Stage::Passing if waited > SIGNAL_FOR => wandered.push(*key),
                _ => {}
            }
        }
        for key in reread {
            self.start_reading(key);
        }
        for key in refuse {
            tracing::warn!(task = key.task, "reading a held exec took too long: refused");
            self.refuse(key);
        }
        for key in unchecked {
            let mismatch = Mismatch {
                what: MismatchWhat::Unreadable,
                approved: "compared in time".into(),
                found: "reading it took too long".into(),
            };
            self.checked(key, Err(mismatch));
        }
        for key in wandered {
            self.wandered(key);
        }
        if now.duration_since(self.last_sweep) > SWEEP_AFTER {
            self.last_sweep = now;
            self.sweep();
        }
    }

    /// Its signal handler does not return: it asks anew if it comes back.
    fn wandered(&mut self, key: VerdictKey) {
        if self
            .tracee(key)
            .and_then(|tid| self.traced.get(&tid))
            .is_some_and(|traced| traced.listening)
        {
            return;
        }
        let Some(question) = self.questions.get(&key) else {
            return;
        };
        let id = question.id;
        let _ = self.write(key, verdict::ASK_AGAIN);
        self.send(FromKernel::Withdrawn {
            id,
            why: WithdrawnWhy::Changed,
        });
        self.forget(key);
    }

    /// Events may be lost to a full ring; the kernel's table is what counts.
    fn sweep(&mut self) {
        let lost = self.counter(counter::RING_FULL);
        if lost > self.lost {
            self.send(FromKernel::Lost {
                count: lost - self.lost,
            });
            self.lost = lost;
        }
        let now = Instant::now();
        let old: Vec<VerdictKey> = self
            .questions
            .iter()
            .filter(|(_, question)| now.duration_since(question.since) > SWEEP_AFTER)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            match self.pending(&key) {
                Some(pending) => {
                    let Some(question) = self.questions.get(&key) else {
                        continue;
                    };
                    if pending.state != state::LOOPING {
                        if question.parked.is_none() {
                            self.parked(key, pending.state);
                        } else if question.stage == Stage::Going {
                            let _ = sys::kill(question.tgid(), libc::SIGCONT);
                        }
                    }
                }
                None => {
                    let event = guard_common::Ended {
                        how: ended::DIED,
                        at_ns: sys::boot_ns(),
                        ..Default::default()
                    };
                    self.ended(key, &event);
                }
            }
        }
        // Threads whose question never fitted the ring are parked by now: they ask again.
        for (_, pending) in self.maps.pending.iter().filter_map(Result::ok) {
            if pending.epoch != self.epoch && pending.state != state::LOOPING {
                let _ = sys::kill(pending.tgid.cast_signed(), libc::SIGCONT);
            }
        }
    }

    /// Questions of an earlier agent: its answers count no more, its parked processes ask again.
    fn take_over(&mut self) -> usize {
        let old: Vec<VerdictKey> = self
            .maps
            .verdicts
            .iter()
            .filter_map(Result::ok)
            .filter(|(_, found)| found.verdict != verdict::CHECKED)
            .map(|(key, _)| key)
            .collect();
        for key in old {
            let _ = self.maps.verdicts.remove(&key);
        }
        let mut left = 0;
        for (_, pending) in self.maps.pending.iter().filter_map(Result::ok) {
            if pending.epoch == self.epoch {
                continue;
            }
            left += 1;
            if pending.state != state::LOOPING {
                let _ = sys::kill(pending.tgid.cast_signed(), libc::SIGCONT);
            }
        }
        left
    }

    /// The agent ends: threads that are held are let go into their hooks, which park them.
    fn stop(&mut self) {
        let _ = self.maps.heartbeat.set(0, 0, 0);
        let tids: Vec<Tid> = self.traced.keys().copied().collect();
        for tid in tids {
            let checking = self
                .question_of(tid)
                .is_some_and(|(_, question)| question.stage == Stage::Checking);
            if checking {
                // Nobody compares it any more; the kernel side would stop it as well.
                let _ = sys::kill(tid, libc::SIGKILL);
            }
            self.let_go(tid, 0);
        }
    }
}

/// Whether a signal came for a thread since it went on; clears it.
fn question_signalled(questions: &mut HashMap<VerdictKey, Question>, key: VerdictKey) -> bool {
    questions
        .get_mut(&key)
        .is_some_and(|question| std::mem::take(&mut question.signalled))
}

const fn is_stop(signal: i32) -> bool {
    matches!(signal, libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU)
}
