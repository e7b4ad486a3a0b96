//! The agent's hand on the exact rules: which there are, which count, and what they have counted.
//!
//! Owns the maps RULES, NOTES, RECORDED and the words but MOVED; given answers of the policy by `enforce`. It must never put a rule
//! in force for another policy than the one it was learnt from, nor give a counter to another rule while something that it
//! counted is in no record.

use std::collections::HashMap as Map;
use std::sync::{Mutex, PoisonError};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, MapError};
use guard_common::rules::{NOTE_ROOM, Note, Rule, RuleKey, SLOTS, word};

use super::maps::{MapsError, take};
use super::sys;

/// Rules of one label: the odd paths of one workload take no place from others.
const PER_LABEL: usize = 1_024;
/// Rounds of [`Rules::tidy`] after which a rule that nobody used goes.
const IDLE: u32 = 10;

/// Why an answer is no rule; the kernel goes on asking.
#[derive(Debug, thiserror::Error)]
pub enum RuleError {
    #[error("the label has as many rules as it may have")]
    Full,
    #[error("what is known of it is longer than {NOTE_ROOM} bytes")]
    Long,
    #[error("no policy is in force")]
    NotInForce,
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What a rule has counted beyond what is in records.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uses {
    pub slot: u32,
    pub count: u64,
    pub through: u64,
    /// Boot time since when the counter is this rule's.
    pub since_ns: u64,
    /// As it was given to [`Rules::add`].
    pub note: Vec<u8>,
}

struct Tables {
    rules: HashMap<MapData, RuleKey, Rule>,
    uses: Array<MapData, u64>,
    recorded: Array<MapData, u64>,
    notes: HashMap<MapData, u32, Note>,
    words: Array<MapData, u64>,
    book: Book,
}

/// Who has which counter.
#[derive(Debug, Default)]
struct Book {
    /// 0: no rule counts.
    generation: u64,
    /// Of the generation in force.
    rules: Map<RuleKey, Entry>,
    /// Rules of other generations that are still in the map; they do not count.
    stale: Vec<RuleKey>,
    /// Counters whose rule went, and the round in which it did.
    left: Map<u32, u64>,
    free: Vec<u32>,
    /// Written to records that are not durable yet, by counter.
    written: Map<u32, u64>,
    round: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    slot: u32,
    /// What it had counted in the last round.
    seen: u64,
    /// Rounds since then without a use.
    idle: u32,
}

/// The maps. Every call is short.
pub struct Rules(Mutex<Tables>);

impl std::fmt::Debug for Rules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rules").finish_non_exhaustive()
    }
}

impl Rules {
    /// No rule counts from here on; what an earlier agent's have counted is kept until it is recorded.
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, MapsError> {
        let mut tables = Tables {
            rules: take(ebpf, "RULES")?,
            uses: take(ebpf, "USES")?,
            recorded: take(ebpf, "RECORDED")?,
            notes: take(ebpf, "NOTES")?,
            words: take(ebpf, "WORDS")?,
            book: Book::default(),
        };
        let empty = |source| MapsError::of("WORDS", source);
        tables.words.set(word::GENERATION, 0, 0).map_err(empty)?;
        if tables.words.get(&word::MADE, 0).map_err(empty)? == 0 {
            tables.words.set(word::MADE, sys::boot_ns(), 0).map_err(empty)?;
        }
        tables.book.stale = tables.rules.keys().filter_map(Result::ok).collect();
        let noted: Vec<u32> = tables.notes.keys().filter_map(Result::ok).collect();
        tables.book.left = noted.into_iter().map(|slot| (slot, 0)).collect();
        tables.book.free = (0..SLOTS)
            .rev()
            .filter(|slot| !tables.book.left.contains_key(slot))
            .collect();
        Ok(Self(Mutex::new(tables)))
    }

    fn tables(&self) -> std::sync::MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Names a counter for ever.
    #[must_use]
    pub fn counter(&self, slot: u32) -> String {
        let made = self.tables().words.get(&word::MADE, 0).unwrap_or(0);
        format!("{made:x}-{slot}")
    }

    /// From now on rules of this generation count, and of no other; of 0 there are none. Never give one twice.
    ///
    /// # Errors
    /// When it cannot be written; then the rules before may still count.
    pub fn begin(&self, generation: u64) -> Result<(), MapError> {
        let mut tables = self.tables();
        tables.words.set(word::GENERATION, generation, 0)?;
        tables.book.begin(generation);
        Ok(())
    }

    /// The hooks allow this by themselves, and count it. `asked_ns` is when it was asked, boot time.
    ///
    /// # Errors
    /// [`RuleError`]: they go on asking.
    pub fn add(&self, key: &RuleKey, asked_ns: u64, note: &[u8]) -> Result<(), RuleError> {
        let mut tables = self.tables();
        let Tables {
            rules,
            uses,
            notes,
            book,
            ..
        } = &mut *tables;
        if book.generation == 0 || key.kind == 0 || key.label == 0 {
            return Err(RuleError::NotInForce);
        }
        let mut text = [0; NOTE_ROOM];
        text.get_mut(..note.len()).ok_or(RuleError::Long)?.copy_from_slice(note);
        let known = book.rules.get(key).copied();
        let entry = match known {
            Some(entry) => entry,
            None => {
                let slot = book.room_for(key.label).ok_or(RuleError::Full)?;
                let seen = uses.get(&slot, 0)?;
                Entry { slot, seen, idle: 0 }
            }
        };
        if known.is_none() {
            let note = Note {
                since_ns: sys::boot_ns(),
                len: u32::try_from(note.len()).unwrap_or(0),
                text,
            };
            notes.insert(entry.slot, note, 0)?;
        }
        let rule = Rule {
            generation: book.generation,
            asked_ns,
            slot: entry.slot,
            reserved: 0,
        };
        rules.insert(key, rule, 0)?;
        book.free.retain(|slot| *slot != entry.slot);
        book.rules.insert(*key, entry);
        Ok(())
    }

    /// What was counted and is in no record, whichever rules are in force.
    #[must_use]
    pub fn unrecorded(&self) -> Vec<Uses> {
        let tables = self.tables();
        let mut found: Vec<Uses> = tables
            .notes
            .iter()
            .filter_map(Result::ok)
            .filter_map(|(slot, note)| {
                let through = tables.uses.get(&slot, 0).ok()?;
                let recorded = tables.recorded.get(&slot, 0).ok()?;
                let before = tables.book.written.get(&slot).copied().unwrap_or(0).max(recorded);
                let count = through.checked_sub(before).filter(|count| *count > 0)?;
                Some(Uses {
                    slot,
                    count,
                    through,
                    since_ns: note.since_ns,
                    note: note.text.get(..note.len as usize)?.to_vec(),
                })
            })
            .collect();
        found.sort_by_key(|uses| uses.slot);
        found
    }

    /// A record up to there is on its way to the disk.
    pub fn written(&self, slot: u32, through: u64) {
        self.tables().book.written.insert(slot, through);
    }

    /// A record up to there is durable.
    pub fn recorded(&self, slot: u32, through: u64) {
        let mut tables = self.tables();
        let before = tables.recorded.get(&slot, 0).unwrap_or(0);
        if through > before
            && slot < SLOTS
            && let Err(error) = tables.recorded.set(slot, through, 0)
        {
            tracing::error!(%error, "uses of a rule cannot be marked as recorded");
        }
    }

    /// Now and then, after what was counted is recorded: rules that do not count or that nobody uses go, and their counters become
    /// free when all that they counted is in records. A round lies between the two: a hook that still held the rule has counted.
    pub fn tidy(&self) {
        let mut tables = self.tables();
        let Tables {
            rules,
            uses,
            recorded,
            notes,
            book,
            ..
        } = &mut *tables;
        book.round += 1;
        for key in std::mem::take(&mut book.stale) {
            if !book.rules.contains_key(&key) {
                let _ = rules.remove(&key);
            }
        }
        let done: Vec<u32> = book
            .left
            .iter()
            .filter(|(_, round)| **round < book.round.saturating_sub(1))
            .map(|(slot, _)| *slot)
            .filter(|slot| match (uses.get(slot, 0), recorded.get(slot, 0)) {
                (Ok(used), Ok(recorded)) => used <= recorded,
                _ => false,
            })
            .collect();
        for slot in done {
            if notes.remove(&slot).is_ok() {
                book.left.remove(&slot);
                book.written.remove(&slot);
                book.free.push(slot);
            }
        }
        for key in book.idle(|slot| uses.get(&slot, 0).unwrap_or(0)) {
            if rules.remove(&key).is_ok() {
                book.leave(&key);
            }
        }
    }
}

impl Book {
    fn begin(&mut self, generation: u64) {
        self.generation = generation;
        for (key, entry) in std::mem::take(&mut self.rules) {
            self.stale.push(key);
            self.left.insert(entry.slot, self.round);
        }
    }

    /// A counter for one more rule of the label.
    fn room_for(&self, label: u32) -> Option<u32> {
        let of_label = self.rules.keys().filter(|key| key.label == label).count();
        (of_label < PER_LABEL).then(|| self.free.last().copied()).flatten()
    }

    fn leave(&mut self, key: &RuleKey) {
        if let Some(entry) = self.rules.remove(key) {
            self.left.insert(entry.slot, self.round);
        }
    }

    /// The rules that nobody has used for a while.
    fn idle(&mut self, uses: impl Fn(u32) -> u64) -> Vec<RuleKey> {
        let mut idle = Vec::new();
        for (key, entry) in &mut self.rules {
            let now = uses(entry.slot);
            entry.idle = if now == entry.seen { entry.idle + 1 } else { 0 };
            entry.seen = now;
            if entry.idle >= IDLE {
                idle.push(*key);
            }
        }
        idle
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(label: u32, inode: u64) -> RuleKey {
        RuleKey {
            label,
            kind: 1,
            inode,
            ..RuleKey::default()
        }
    }

    fn book(free: u32) -> Book {
        Book {
            generation: 1,
            free: (0..free).rev().collect(),
            ..Book::default()
        }
    }

    fn add(book: &mut Book, key: RuleKey) -> Option<u32> {
        let slot = book.room_for(key.label)?;
        book.free.retain(|free| *free != slot);
        let (seen, idle) = (0, 0);
        book.rules.insert(key, Entry { slot, seen, idle });
        Some(slot)
    }

    #[test]
    fn one_label_takes_no_place_from_others() {
        let mut book = book(SLOTS);
        let rules = PER_LABEL as u64;
        assert!((0..rules).all(|inode| add(&mut book, key(1, inode)).is_some()));
        assert_eq!(add(&mut book, key(1, rules)), None);
        assert!(add(&mut book, key(2, 0)).is_some());
    }

    #[test]
    fn another_policy_leaves_no_rule_and_no_counter_is_given_away() {
        let mut book = book(2);
        assert_eq!(add(&mut book, key(1, 1)), Some(0));
        book.begin(2);
        assert!(book.rules.is_empty());
        assert_eq!(book.stale, [key(1, 1)]);
        assert_eq!(book.left.keys().copied().collect::<Vec<_>>(), [0]);
        assert_eq!(
            add(&mut book, key(1, 1)),
            Some(1),
            "the same rule of another policy has its own counter"
        );
        assert_eq!(add(&mut book, key(1, 2)), None);
    }

    #[test]
    fn what_nobody_uses_goes_and_what_somebody_uses_stays() {
        let mut book = book(2);
        add(&mut book, key(1, 1));
        add(&mut book, key(1, 2));
        for round in 1..=u64::from(IDLE) {
            let idle = book.idle(|slot| if slot == 0 { round } else { 0 });
            let expected: &[RuleKey] = if round == u64::from(IDLE) { &[key(1, 2)] } else { &[] };
            assert_eq!(idle, expected, "round {round}");
        }
    }
}
