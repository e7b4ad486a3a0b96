//! What frees the holder when seizing a thread blocks.
//!
//! Owns a thread of its own and the one system call of the holder that can block: PTRACE_SEIZE waits for the process's
//! `cred_guard_mutex`, which an exec of a sibling thread has from its beginning until all other threads are reaped, those too
//! that only their tracer, the holder, can reap. It is given the traced threads and must never take a status that the holder
//! could still take itself, nor let one process keep the holder from all others.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use parking_lot::Mutex;

use crate::kernel::sys::{self, Tid};

/// Seizing takes microseconds; from here on it is blocked.
const BLOCKED_AFTER: Duration = Duration::from_millis(20);
/// An exec that is stuck for so long beside a thread that has to be held ends with its process: it may wait for a file
/// system that its own workload serves, and meanwhile nobody else's questions are answered.
const KILLED_AFTER: u32 = 100;

/// What the holder is about.
#[derive(Debug, Default)]
struct Work {
    /// The process that it seizes a thread of.
    seizing: Option<Tid>,
    /// Looks since it began.
    looks: u32,
    /// Threads that it traces.
    traced: Vec<Tid>,
    /// Of those, the ones that were reaped here.
    reaped: Vec<Tid>,
}

/// The holder's side.
#[derive(Debug)]
pub(super) struct Rescue {
    work: Arc<Mutex<Work>>,
    timer: Arc<TimerFd>,
}

impl Rescue {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let timer = Arc::new(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?);
        let work = Arc::new(Mutex::new(Work::default()));
        let (theirs, ticks) = (Arc::clone(&work), Arc::clone(&timer));
        thread::Builder::new().name("guard-rescue".into()).spawn(move || {
            while matches!(ticks.wait(), Ok(()) | Err(Errno::EINTR)) {
                look(&mut theirs.lock());
            }
        })?;
        Ok(Self { work, timer })
    }

    /// Seizes a thread of this process. `traced` are those that are traced already; gives, besides the result, the ones
    /// that were reaped meanwhile: nobody hears of them again.
    pub(super) fn seize(&self, tgid: Tid, tid: Tid, traced: impl Iterator<Item = Tid>) -> (io::Result<()>, Vec<Tid>) {
        {
            let mut work = self.work.lock();
            work.seizing = Some(tgid);
            work.looks = 0;
            work.traced.clear();
            work.traced.extend(traced);
        }
        let armed = self
            .timer
            .set(Expiration::Interval(BLOCKED_AFTER.into()), TimerSetTimeFlags::empty());
        let result = match armed {
            Ok(()) => sys::seize(tid),
            // Not without the way back.
            Err(error) => Err(error.into()),
        };
        let mut work = self.work.lock();
        work.seizing = None;
        let _ = self.timer.unset();
        (result, std::mem::take(&mut work.reaped))
    }
}

fn look(work: &mut Work) {
    let Some(tgid) = work.seizing else {
        return;
    };
    work.looks += 1;
    let before = work.reaped.len();
    let (reaped, left) = work.traced.drain(..).partition(|tid| sys::reap(*tid));
    work.traced = left;
    work.reaped.extend::<Vec<Tid>>(reaped);
    if work.reaped.len() == before && work.looks == KILLED_AFTER {
        tracing::error!(
            pid = tgid,
            "an exec that does not go on keeps one of its threads from being held: the process is killed"
        );
        let _ = sys::kill(tgid, libc::SIGKILL);
    }
}
