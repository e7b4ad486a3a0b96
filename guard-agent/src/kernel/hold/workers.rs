//! Threads for what may block: reading another process's memory (userfaultfd, FUSE), opening and hashing its files.
//!
//! Owns a pool that grows while its threads are stuck, up to a limit; given jobs. The holder must never wait for it: a
//! job that is too late is treated as failed, whatever it says afterwards.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

const MOST: usize = 64;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    queue: VecDeque<Job>,
    idle: usize,
    threads: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pool.
#[derive(Clone, Default)]
pub(crate) struct Workers(Arc<Shared>);

impl std::fmt::Debug for Workers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Workers")
            .field("threads", &self.0.lock().threads)
            .finish_non_exhaustive()
    }
}

impl Workers {
    /// Queues a job; never waits for one.
    pub(crate) fn run(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.queue.push_back(Box::new(job));
        if state.idle >= state.queue.len() || state.threads >= MOST {
            drop(state);
            self.0.more.notify_one();
            return;
        }
        let shared = Arc::clone(&self.0);
        if thread::Builder::new()
            .name("guard-reader".into())
            .spawn(move || work(&shared))
            .is_ok()
        {
            state.threads += 1;
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(job) = state.queue.pop_front() {
            drop(state);
            job();
            state = shared.lock();
        } else {
            state.idle += 1;
            state = shared.more.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn stuck_jobs_do_not_stop_later_ones() {
        let workers = Workers::default();
        let (release, stuck) = mpsc::channel::<()>();
        let stuck = Arc::new(Mutex::new(stuck));
        for _ in 0..8 {
            let stuck = Arc::clone(&stuck);
            workers.run(move || {
                let _ = stuck.lock().unwrap().recv();
            });
        }
        let (sender, receiver) = mpsc::channel();
        workers.run(move || sender.send(1).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(1));
        drop(release);
    }
}
