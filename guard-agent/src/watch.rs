//! Who watches which run.
//!
//! Owns the runs that `guard run` started and the queues of those who watch them. It is given events with the cgroup in
//! which they happened. It must never wait for a watcher: one whose queue is full is dropped.

use std::collections::HashMap;
use std::sync::Arc;

use guard_proto::control::RunEvent;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::labels::is_below;

/// Events that one watcher may have waiting.
const QUEUE: usize = 256;
const RUNS: usize = 4_096;
const WATCHERS_PER_RUN: usize = 8;

#[derive(Debug, Clone, Default)]
pub struct Watchers {
    runs: Arc<Mutex<HashMap<String, Run>>>,
}

#[derive(Debug)]
struct Run {
    /// Who started or first watched it; others see nothing of it.
    uid: u32,
    /// Known once the run has begun.
    cgroup: Option<String>,
    watchers: Vec<mpsc::Sender<RunEvent>>,
}

/// A run cannot be begun or watched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("a run id has 1 to 64 letters, digits, `-` and `_`")]
    Id,
    #[error("this run is somebody else's, or was begun already")]
    Taken,
    #[error("too many runs or watchers")]
    TooMany,
}

/// Whether `id` may name a run: it becomes a part of a cgroup's path.
#[must_use]
pub fn is_run_id(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

impl Watchers {
    /// A queue of everything that happens in the run from now on.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn watch(&self, id: &str, uid: u32) -> Result<mpsc::Receiver<RunEvent>, WatchError> {
        let mut runs = self.runs.lock();
        let run = Self::run(&mut runs, id, uid)?;
        run.watchers.retain(|watcher| !watcher.is_closed());
        if run.watchers.len() >= WATCHERS_PER_RUN {
            return Err(WatchError::TooMany);
        }
        let (sender, receiver) = mpsc::channel(QUEUE);
        run.watchers.push(sender);
        Ok(receiver)
    }

    /// The run begins in this cgroup.
    ///
    /// # Errors
    /// [`WatchError`].
    pub fn begin(&self, id: &str, uid: u32, cgroup: &str) -> Result<(), WatchError> {
        let mut runs = self.runs.lock();
        let run = Self::run(&mut runs, id, uid)?;
        if run.cgroup.is_some() {
            return Err(WatchError::Taken);
        }
        run.cgroup = Some(cgroup.to_owned());
        Ok(())
    }

    fn run<'a>(runs: &'a mut HashMap<String, Run>, id: &str, uid: u32) -> Result<&'a mut Run, WatchError> {
        if !is_run_id(id) {
            return Err(WatchError::Id);
        }
        if runs.len() >= RUNS && !runs.contains_key(id) {
            return Err(WatchError::TooMany);
        }
        let run = runs.entry(id.to_owned()).or_insert_with(|| Run {
            uid,
            cgroup: None,
            watchers: Vec::new(),
        });
        if run.uid == uid {
            Ok(run)
        } else {
            Err(WatchError::Taken)
        }
    }

    /// Something happened in this cgroup.
    pub fn publish(&self, cgroup: &str, event: &RunEvent) {
        for run in self.runs.lock().values_mut() {
            if run.cgroup.as_deref().is_some_and(|root| is_below(cgroup, root)) {
                run.watchers.retain(|watcher| watcher.try_send(event.clone()).is_ok());
            }
        }
    }

    /// Forgets runs that have ended: their cgroup is gone, or nobody watches and none began.
    pub fn tidy(&self, exists: impl Fn(&str) -> bool) {
        self.runs.lock().retain(|_, run| {
            run.watchers.retain(|watcher| !watcher.is_closed());
            match &run.cgroup {
                Some(cgroup) => exists(cgroup),
                None => !run.watchers.is_empty(),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_own_run_is_seen() {
        let watchers = Watchers::default();
        let mut mine = watchers.watch("r1", 1000).unwrap();
        assert_eq!(watchers.watch("r1", 1001).unwrap_err(), WatchError::Taken);
        watchers.begin("r1", 1000, "/guard/r1").unwrap();
        assert_eq!(watchers.begin("r1", 1000, "/guard/other"), Err(WatchError::Taken));
        assert_eq!(watchers.begin("a/../b", 0, "/x"), Err(WatchError::Id));
        let event = RunEvent::Withdrawn {
            request: "x".to_owned(),
        };
        watchers.publish("/guard/r10", &event);
        watchers.publish("/guard/r1/below", &event);
        assert!(mine.try_recv().is_ok());
        assert!(mine.try_recv().is_err());
        // A slow one is dropped, not waited for.
        for _ in 0..QUEUE + 1 {
            watchers.publish("/guard/r1", &event);
        }
        let mut count = 0;
        while mine.recv().await.is_some() {
            count += 1;
        }
        assert_eq!(count, QUEUE);
        watchers.tidy(|_| false);
        watchers.begin("r1", 1001, "/guard/r1").unwrap();
    }
}
