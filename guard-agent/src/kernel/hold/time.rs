//! What did not happen in time, what a full ring lost, and what an earlier agent left.
//!
//! Owns deadlines, the sweep, take-over and the end; given the clock and the kernel's tables. It must never let a thread
//! go on because something was late.

use std::time::{Duration, Instant};

use guard_common::{Pending, VerdictKey, counter, ended, state, verdict};

use super::question::Stage;
use super::{Holder, check};
use crate::kernel::api::{FromKernel, Mismatch, MismatchWhat, WithdrawnWhy};
use crate::kernel::cgroups;
use crate::kernel::retire::{self, Other};
use crate::kernel::sys::{self, Tid};

/// Reading a held thread's memory and opening its file; afterwards the action is refused.
const READ_FOR: Duration = Duration::from_secs(10);
/// A thread that went on for a signal and did not come back asks anew when it does.
const SIGNAL_FOR: Duration = Duration::from_secs(3);
/// After a thread could not be traced because of another thread's exec nobody is tried again for so long: an attempt takes
/// the time of all who ask.
const BLOCKED_FOR: Duration = Duration::from_millis(250);
/// Questions older than this are compared with the kernel's table, should an event have been lost.
const SWEEP_AFTER: Duration = Duration::from_secs(3);

impl Holder {
    /// What did not happen in time.
    pub(super) fn late(&mut self) {
        let now = Instant::now();
        let mut reread = Vec::new();
        let mut refuse = Vec::new();
        let mut unchecked = Vec::new();
        let mut wandered = Vec::new();
        let mut blocked = Vec::new();
        for (key, question) in &self.questions {
            let waited = now.duration_since(question.since);
            match question.stage {
                Stage::Asked if question.wanted && question.parked.is_some() => reread.push(*key),
                Stage::Asked if question.is_blocked() => blocked.push((question.since, *key, question.tid())),
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
        blocked.sort_unstable_by_key(|(since, _, _)| *since);
        for (_, key, tid) in blocked {
            if self.last_blocked.elapsed() < BLOCKED_FOR {
                break;
            }
            // Without it the thread is gone, and its id may be another's.
            if self.pending(&key).is_some() {
                self.seize(key, tid);
            }
        }
        if now.duration_since(self.last_sweep) > SWEEP_AFTER {
            self.last_sweep = now;
            self.sweep();
        }
    }

    /// Its signal handler does not return: it asks anew if it comes back.
    pub(super) fn wandered(&mut self, key: VerdictKey) {
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
    pub(super) fn sweep(&mut self) {
        cgroups::sweep(&mut self.maps);
        self.retire_others();
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
                    if pending.state == state::AWAITS_CHECK {
                        self.awaits_check(key);
                    } else if pending.state != state::LOOPING {
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
        for (task, pending) in self.maps.pending.iter().filter_map(Result::ok) {
            if pending.state == state::AWAITS_CHECK {
                self.orphaned(task, &pending);
            } else if pending.epoch != self.epoch && left_stopped(&pending) {
                let _ = sys::kill(pending.tgid.cast_signed(), libc::SIGCONT);
            }
        }
    }

    /// Programs of other versions go once they are needed no more.
    pub(super) fn retire_others(&mut self) {
        for other in &mut self.others {
            if let Err(error) = other.carry_over(&mut self.maps, &self.pins) {
                tracing::debug!(folder = %other.folder().display(), %error, "another version's labels are not ours yet");
            }
        }
        if !self.settled || self.others.is_empty() {
            return;
        }
        let (ready, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.others)
            .into_iter()
            .partition(Other::is_carried);
        self.others = left;
        if !ready.is_empty()
            && let Err(error) = retire::retire_all(ready)
        {
            tracing::error!(%error, "programs of another version stay in force: restart the agent to try again");
        }
    }

    /// Questions of an earlier agent: its answers count no more, its parked processes ask again.
    pub(super) fn take_over(&mut self) -> usize {
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
        for (task, pending) in self.maps.pending.iter().filter_map(Result::ok) {
            if pending.epoch == self.epoch {
                continue;
            }
            left += 1;
            if pending.state == state::AWAITS_CHECK {
                self.orphaned(task, &pending);
            } else if left_stopped(&pending) {
                let _ = sys::kill(pending.tgid.cast_signed(), libc::SIGCONT);
            }
        }
        left
    }

    /// A stopped image that waits to be compared: if nobody knows any more with what, it is killed.
    fn orphaned(&self, task: u64, pending: &Pending) {
        let key = VerdictKey {
            task,
            asked_ns: pending.asked_ns,
        };
        if self.questions.contains_key(&key) {
            return;
        }
        let compared = self
            .maps
            .verdicts
            .get(&key, 0)
            .is_ok_and(|found| found.verdict == verdict::CHECKED);
        let signal = if compared { libc::SIGCONT } else { libc::SIGKILL };
        let _ = sys::kill(pending.tgid.cast_signed(), signal);
    }

    /// The agent ends: threads that are held are let go into their hooks, which park them.
    pub(super) fn stop(&mut self) {
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
        for (_, mut question) in std::mem::take(&mut self.questions) {
            if let Some((asked, pass)) = question.pass.take() {
                let end = Err(WithdrawnWhy::Stopped);
                self.passed.push(FromKernel::Passed { asked, pass, end });
            }
        }
        self.tell_passed();
    }
}

/// Of an agent before this one: parked, or stopped by a round whose SIGSTOP that agent had not taken when it died.
fn left_stopped(pending: &Pending) -> bool {
    pending.state != state::LOOPING || sys::is_stopped(pending.tgid.cast_signed(), pending.tid.cast_signed())
}
