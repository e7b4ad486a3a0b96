//! The agent's side of the pinned maps.
//!
//! Owns typed handles; given the maps of the loaded object. It must never write a verdict for anybody but the holder.

use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use guard_common::{ActionKey, Config, Cover, LabelSettings, LabelUse, Origin, Pending, Verdict, VerdictKey};

use super::sys;

use super::cgroups::Book;

/// All maps that the agent touches.
pub(crate) struct Maps {
    pub config: Array<MapData, Config>,
    pub heartbeat: Array<MapData, u64>,
    pub counters: Array<MapData, u64>,
    pub cgroups: HashMap<MapData, u64, u64>,
    pub origins: HashMap<MapData, u64, Origin>,
    pub members: HashMap<MapData, u64, u64>,
    pub labels: HashMap<MapData, u32, LabelSettings>,
    pub usage: HashMap<MapData, u32, LabelUse>,
    pub cover: HashMap<MapData, u32, Cover>,
    pub pending: HashMap<MapData, u64, Pending>,
    pub verdicts: HashMap<MapData, VerdictKey, Verdict>,
    pub book: Book,
}

#[derive(Debug, thiserror::Error)]
#[error("the BPF object has no map {name} of the expected type: {source}")]
pub struct MapsError {
    name: &'static str,
    source: MapError,
}

impl MapsError {
    pub(super) const fn of(name: &'static str, source: MapError) -> Self {
        Self { name, source }
    }
}

pub(super) fn take<T>(ebpf: &mut Ebpf, name: &'static str) -> Result<T, MapsError>
where
    T: TryFrom<Map, Error = MapError>,
{
    let missing = || MapError::InvalidName { name: name.to_owned() };
    ebpf.take_map(name)
        .ok_or_else(missing)
        .and_then(T::try_from)
        .map_err(|source| MapsError { name, source })
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(crate) fn take(ebpf: &mut Ebpf) -> Result<(Self, RingBuf<MapData>, Identify), MapsError> {
        let maps = Self {
            config: take(ebpf, "CONFIG")?,
            heartbeat: take(ebpf, "HEARTBEAT")?,
            counters: take(ebpf, "COUNTERS")?,
            cgroups: take(ebpf, "CGROUPS")?,
            origins: take(ebpf, "ORIGINS")?,
            members: take(ebpf, "MEMBERS")?,
            labels: take(ebpf, "LABELS")?,
            usage: take(ebpf, "USE")?,
            cover: take(ebpf, "COVER")?,
            pending: take(ebpf, "PENDING")?,
            verdicts: take(ebpf, "VERDICTS")?,
            book: Book::default(),
        };
        let ring = take(ebpf, "EVENTS")?;
        Ok((maps, ring, Identify(Mutex::new(take(ebpf, "IDENTIFY")?))))
    }
}

/// Asks the kernel for its own key of an open file; see `guard-ebpf/src/identify.rs`.
pub(crate) struct Identify(Mutex<HashMap<MapData, u32, ActionKey>>);

impl Identify {
    /// The kernel's key of an open file.
    pub(crate) fn name(&self, file: &impl AsFd) -> Option<ActionKey> {
        let thread = sys::thread_id().unsigned_abs();
        self.arm(thread).ok()?;
        // Always refused by the hook; what counts is what it wrote.
        let _ = sys::flock(file.as_fd());
        self.disarm(thread)
    }

    /// Called on the thread that will make the system call.
    fn arm(&self, thread: u32) -> Result<(), MapError> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(thread, ActionKey::default(), 0)
    }

    /// What the hook wrote; `None` if it did not run.
    fn disarm(&self, thread: u32) -> Option<ActionKey> {
        let mut map = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = map.get(&thread, 0).ok();
        let _ = map.remove(&thread);
        found.filter(|key| key.kind != 0)
    }
}
