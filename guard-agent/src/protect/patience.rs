//! Looks at places in threads of their own.
//!
//! Owns the workers that open what is there. It is given the places. It must never wait for one longer than its deadline:
//! it may be on a file system that somebody else serves, and that never answers.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use guard_common::protect::{FileId, Protected};

use super::What;

/// For one place. One that takes longer is left to its worker, and is not looked at again before that has ended.
const PATIENCE: Duration = Duration::from_secs(1);
/// For Guard's own places at the start, which a busy machine may have to read from a disk.
const FIRST: Duration = Duration::from_secs(15);
/// Workers that may wait for places which do not answer.
const WAITING: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Place {
    pub path: PathBuf,
    pub sort: Sort,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Sort {
    /// Guard's own: what is there must be protected.
    Own(What),
    /// The configuration names it.
    Configured(What),
    /// A home directory, with what is protected below it.
    Home,
}

/// What was found: keys, and the consoles that sign-ins name.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub files: Vec<(FileId, Protected)>,
    pub consoles: Vec<String>,
}

impl Found {
    fn add(&mut self, more: Self) {
        self.files.extend(more.files);
        self.consoles.extend(more.consoles);
    }
}

/// What looks at one place; waits as long as the place makes it wait.
pub(super) type LookAt = dyn Fn(&Place) -> io::Result<Found> + Send + Sync;

/// Everything that was found, and the places that could not be looked at.
#[derive(Debug, Default)]
pub(super) struct Seen {
    pub found: Found,
    pub failed: Vec<(Place, io::Error)>,
}

pub(super) struct Patient {
    look_at: Arc<LookAt>,
    /// Places that did not answer, and where the answer will come.
    waiting: HashMap<Place, Receiver<io::Result<Found>>>,
}

impl std::fmt::Debug for Patient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Patient")
            .field("waiting", &self.waiting.keys())
            .finish_non_exhaustive()
    }
}

impl Patient {
    pub(super) fn new(look_at: Arc<LookAt>) -> Self {
        Self {
            look_at,
            waiting: HashMap::new(),
        }
    }

    /// Looks at every place that answers in time; at the start (`first`) there is more time for Guard's own.
    pub(super) fn look(&mut self, places: Vec<Place>, first: bool) -> Seen {
        let mut seen = Seen::default();
        self.waiting.retain(|place, late| match late.try_recv() {
            Ok(answer) => {
                seen.take(place.clone(), answer);
                false
            }
            Err(error) => error == mpsc::TryRecvError::Empty,
        });
        let (waiting, mut places): (Vec<Place>, Vec<Place>) =
            places.into_iter().partition(|place| self.waiting.contains_key(place));
        seen.failed
            .extend(waiting.into_iter().map(|place| (place, no_answer())));
        while !places.is_empty() {
            if self.waiting.len() >= WAITING {
                tracing::error!(
                    places = places.len(),
                    "too many places do not answer; the other ones are not looked at"
                );
                seen.failed.extend(places.into_iter().map(|place| (place, no_answer())));
                break;
            }
            places = self.look_until_stuck(places, first, &mut seen);
        }
        seen
    }

    /// Looks at places until one does not answer; gives those behind it.
    fn look_until_stuck(&mut self, places: Vec<Place>, first: bool, seen: &mut Seen) -> Vec<Place> {
        let left_alone = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let (theirs, stop, look_at) = (places.clone(), Arc::clone(&left_alone), Arc::clone(&self.look_at));
        let started = thread::Builder::new().name("places".into()).spawn(move || {
            for place in theirs {
                if sender.send(look_at(&place)).is_err() || stop.load(Ordering::Acquire) {
                    return;
                }
            }
        });
        if let Err(error) = started {
            let failed = |place| (place, io::Error::new(error.kind(), error.to_string()));
            seen.failed.extend(places.into_iter().map(failed));
            return Vec::new();
        }
        let mut places = places.into_iter();
        for place in places.by_ref() {
            let patience = if first && matches!(place.sort, Sort::Own(_)) {
                FIRST
            } else {
                PATIENCE
            };
            match receiver.recv_timeout(patience) {
                Ok(answer) => seen.take(place, answer),
                Err(_) => {
                    left_alone.store(true, Ordering::Release);
                    seen.failed.push((place.clone(), no_answer()));
                    self.waiting.insert(place, receiver);
                    break;
                }
            }
        }
        places.collect()
    }
}

impl Seen {
    fn take(&mut self, place: Place, answer: io::Result<Found>) {
        match answer {
            Ok(found) => self.found.add(found),
            Err(error) => self.failed.push((place, error)),
        }
    }
}

fn no_answer() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "its file system does not answer")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn place(path: &str) -> Place {
        Place {
            path: path.into(),
            sort: Sort::Home,
        }
    }

    #[test]
    fn a_place_that_does_not_answer_keeps_nobody_waiting_and_is_heard_later() {
        let (open, gate) = mpsc::channel::<()>();
        let gate = Mutex::new(gate);
        let mut patient = Patient::new(Arc::new(move |place: &Place| {
            match place.path.to_str() {
                Some("/stuck") => gate.lock().unwrap().recv().unwrap(),
                Some("/bad") => return Err(io::Error::other("no")),
                _ => {}
            }
            Ok(Found {
                consoles: vec![place.path.display().to_string()],
                ..Found::default()
            })
        }));
        let places = || vec![place("/a"), place("/stuck"), place("/bad"), place("/b")];
        let failed = |seen: &Seen| {
            let mut all: Vec<String> = seen
                .failed
                .iter()
                .map(|(p, e)| format!("{} {e}", p.path.display()))
                .collect();
            all.sort();
            all
        };
        let late = "/stuck its file system does not answer";
        for _ in 0..2 {
            let seen = patient.look(places(), false);
            assert_eq!(seen.found.consoles, ["/a", "/b"]);
            assert_eq!(failed(&seen), ["/bad no", late]);
            assert_eq!(patient.waiting.len(), 1, "one worker for one place");
        }
        open.send(()).unwrap();
        let end = std::time::Instant::now() + Duration::from_secs(60);
        loop {
            let seen = patient.look(vec![place("/a")], false);
            // A busy machine may keep the other place waiting too, for a while.
            if seen.found.consoles.contains(&"/stuck".to_owned()) && patient.waiting.is_empty() {
                break;
            }
            assert!(std::time::Instant::now() < end, "never heard");
        }
    }
}
