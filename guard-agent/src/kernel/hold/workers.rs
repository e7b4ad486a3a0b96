//! Threads for what may block: reading another process's memory (userfaultfd, FUSE), opening and hashing its files.
//!
//! Owns a pool that grows while its threads are stuck, up to a limit; given jobs. The holder must never wait for it: a
//! job that is too late is treated as failed, whatever it says afterwards. No label may keep all of its threads.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

const MOST: usize = 64;
/// Threads that jobs of one label may keep at once.
const SHARE: usize = 16;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct State {
    /// With the label that each is for.
    queue: VecDeque<(u32, Job)>,
    /// Jobs that run, by label.
    busy: HashMap<u32, usize>,
    idle: usize,
    threads: usize,
}

impl State {
    /// The first job whose label has a thread left.
    fn next(&mut self) -> Option<(u32, Job)> {
        let free = |label: &u32| *label == 0 || self.busy.get(label).is_none_or(|count| *count < SHARE);
        let at = self.queue.iter().position(|(label, _)| free(label))?;
        let (label, job) = self.queue.remove(at)?;
        *self.busy.entry(label).or_default() += 1;
        Some((label, job))
    }

    fn done(&mut self, label: u32) {
        if let Some(count) = self.busy.get_mut(&label) {
            *count -= 1;
            if *count == 0 {
                self.busy.remove(&label);
            }
        }
    }
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
    /// Queues a job for a label, which is 0 for what is nobody's; never waits for one.
    pub(crate) fn run(&self, label: u32, job: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.queue.push_back((label, Box::new(job)));
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
        if let Some((label, job)) = state.next() {
            drop(state);
            job();
            state = shared.lock();
            state.done(label);
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
    fn stuck_jobs_of_one_label_do_not_stop_those_of_others() {
        let workers = Workers::default();
        let (release, stuck) = mpsc::channel::<()>();
        let stuck = Arc::new(Mutex::new(stuck));
        // More than there are threads.
        for _ in 0..2 * MOST {
            let stuck = Arc::clone(&stuck);
            workers.run(1, move || {
                let _ = stuck.lock().unwrap().recv();
            });
        }
        let (sender, receiver) = mpsc::channel();
        workers.run(2, move || sender.send(1).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(1));
        drop(release);
        // What waited for a thread of its label gets one.
        let (sender, receiver) = mpsc::channel();
        workers.run(1, move || sender.send(2).unwrap());
        assert_eq!(receiver.recv_timeout(Duration::from_secs(5)), Ok(2));
    }
}
