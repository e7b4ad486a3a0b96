//! What frees the holder when seizing a thread blocks.
//!
//! Owns a thread of its own and the one system call of the holder that can block: PTRACE_SEIZE waits for the process's
//! `cred_guard_mutex`, which an exec of a sibling thread has from its beginning until all other threads are reaped, those too
//! that only their tracer, the holder, can reap; or as long as the file system of its program likes, which may be the
//! workload's own, and then not even SIGKILL ends it. It must never let one process keep the holder from all others.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use crate::kernel::sys::{self, Tid};

/// Seizing takes microseconds; from here on it is blocked.
const BLOCKED_AFTER: Duration = Duration::from_millis(20);

/// The holder's side.
#[derive(Debug)]
pub(super) struct Rescue {
    /// The thread that seizes; 0 while none does.
    seizing: Arc<AtomicI32>,
    timer: Arc<TimerFd>,
}

impl Rescue {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let timer = Arc::new(TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC)?);
        let seizing = Arc::new(AtomicI32::new(0));
        let (who, ticks) = (Arc::clone(&seizing), Arc::clone(&timer));
        thread::Builder::new().name("guard-rescue".into()).spawn(move || {
            while matches!(ticks.wait(), Ok(()) | Err(Errno::EINTR)) {
                let thread = who.load(Ordering::Acquire);
                if thread != 0 {
                    // Again at the next tick, should this one come before the call or after it.
                    let _ = sys::end_seize(thread);
                }
            }
        })?;
        Ok(Self { seizing, timer })
    }

    /// Seizes a thread, from the thread that called [`sys::let_seizes_end`].
    ///
    /// # Errors
    /// What ptrace says; EINTR if it is blocked.
    pub(super) fn seize(&self, tid: Tid) -> io::Result<()> {
        // Not without the way back.
        self.timer
            .set(Expiration::Interval(BLOCKED_AFTER.into()), TimerSetTimeFlags::empty())?;
        self.seizing.store(sys::thread_id(), Ordering::Release);
        let result = sys::seize(tid);
        self.seizing.store(0, Ordering::Release);
        let _ = self.timer.unset();
        result
    }
}
