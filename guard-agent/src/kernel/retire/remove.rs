//! Removes another version's programs, and ends what they left unfinished.
//!
//! Owns the order of it; given a set that is not needed any more. It must never let an image run that nobody compared, nor
//! leave a process stopped that these programs stopped.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use aya::programs::links::{FdLink, PinnedLink};
use guard_common::{VerdictKey, lasting, state, verdict};

use super::{Other, links};
use crate::kernel::pinned::{Pinned, u32_at};
use crate::kernel::{crash, sys};

/// Between two looks at what is parked, and how many there are once nothing of the old set runs any more.
const LOOK: Duration = Duration::from_millis(250);
const LOOKS: usize = 4;
/// For the kernel to let go of a program whose link is gone.
const GONE_WITHIN: Duration = Duration::from_secs(30);

impl Other {
    /// Detaches its programs, ends what they left unfinished, and lets the processes that they parked ask our programs.
    /// Gives how many that were. Takes a second at least; may be repeated after a failure.
    pub(super) fn retire(&self) -> io::Result<usize> {
        let pending = self.map("PENDING", 8, lasting::PENDING_STATE + 4);
        let verdicts = self.map("VERDICTS", size_of::<VerdictKey>(), lasting::VERDICT + 4);
        let table = match (pending, verdicts) {
            (Ok(pending), Ok(verdicts)) => Some(Table { pending, verdicts }),
            (Err(error), _) | (_, Err(error)) => {
                if self.folder.join("maps/PENDING").exists() {
                    return Err(error);
                }
                // Gone since an earlier try.
                None
            }
        };
        let mut continued = HashSet::new();
        if let Some(table) = &table {
            table.withdraw_answers()?;
            table.end(None)?;
        }
        let (last, first): (Vec<PathBuf>, Vec<PathBuf>) =
            links(&self.folder)?.into_iter().partition(|link| is_last(link));
        detach(&first)?;
        crash::point("old-programs-half-gone");
        if let Some(table) = &table {
            // Nothing new comes to wait for a comparison now.
            table.end(None)?;
        }
        detach(&last)?;
        crash::point("old-programs-gone");
        if let Some(table) = &table {
            for look in 0..LOOKS {
                if look > 0 {
                    thread::sleep(LOOK);
                }
                table.end(Some(&mut continued))?;
            }
        }
        match fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(continued.len()),
        }
    }
}

/// What an old set's questions are.
struct Table {
    pending: Pinned,
    verdicts: Pinned,
}

impl Table {
    /// Its agent's answers count no more, but for comparisons that are done.
    fn withdraw_answers(&self) -> io::Result<()> {
        for key in self.verdicts.keys()? {
            if let Some(value) = self.verdicts.get(&key)
                && u32_at(&value, lasting::VERDICT) != Some(verdict::CHECKED)
            {
                let _ = self.verdicts.remove(&key);
            }
        }
        Ok(())
    }

    /// Kills new images that nobody will compare. With `continued` whatever else was stopped for a question goes on, and
    /// is noted there by its task.
    fn end(&self, mut continued: Option<&mut HashSet<Vec<u8>>>) -> io::Result<()> {
        for task in self.pending.keys()? {
            let Some(value) = self.pending.get(&task) else {
                continue;
            };
            let number = |at| u32_at(&value, at).and_then(|number| sys::Tid::try_from(number).ok());
            let (Some(tgid), Some(tid), Some(state)) = (
                number(lasting::PENDING_TGID).filter(|tgid| *tgid > 0),
                number(lasting::PENDING_TID),
                u32_at(&value, lasting::PENDING_STATE),
            ) else {
                continue;
            };
            if state == state::AWAITS_CHECK && !self.is_checked(&task, &value) {
                let _ = sys::kill(tgid, libc::SIGKILL);
            } else if let Some(continued) = &mut continued {
                // Once is enough unless it was stopped in between: some handle the signal, and a tracer may hide the stop.
                let parked = state != state::LOOPING && !continued.contains(&task);
                if parked || sys::is_stopped(tgid, tid) {
                    let _ = sys::kill(tgid, libc::SIGCONT);
                    continued.insert(task);
                }
            }
        }
        Ok(())
    }

    fn is_checked(&self, task: &[u8], pending: &[u8]) -> bool {
        let asked = pending.get(lasting::PENDING_ASKED..lasting::PENDING_ASKED + 8);
        let key = [task, asked.unwrap_or_default()].concat();
        self.verdicts
            .get(&key)
            .is_some_and(|value| u32_at(&value, lasting::VERDICT) == Some(verdict::CHECKED))
    }
}

/// What keeps the tables true and new images stopped goes after whatever asks and refuses. The names are those of every
/// version so far; a program with another name goes first.
fn is_last(link: &Path) -> bool {
    let name = link.file_name().unwrap_or_default().to_string_lossy();
    let name = name.strip_suffix("-new").unwrap_or(&name);
    name.starts_with("guard_execve")
        || matches!(
            name,
            "guard_exec_commit" | "guard_continue" | "guard_exit" | "guard_task_free"
        )
}

/// Unpins links and waits until the kernel has let go of their programs.
fn detach(links: &[PathBuf]) -> io::Result<()> {
    let mut programs = HashSet::new();
    for path in links {
        match PinnedLink::from_pin(path) {
            Ok(link) => {
                let link: FdLink = link.unpin()?;
                programs.extend(link.info().ok().map(|info| info.program_id()));
            }
            // Not a link: nothing is attached by it.
            Err(_) => fs::remove_file(path)?,
        }
    }
    let until = Instant::now() + GONE_WITHIN;
    loop {
        let left = aya::programs::loaded_programs()
            .filter_map(Result::ok)
            .filter(|program| programs.contains(&program.id()))
            .count();
        if left == 0 {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(io::Error::other(format!("the kernel keeps {left} of its programs")));
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_keeps_tables_true_goes_last() {
        for (name, last) in [
            ("guard_exec", false),
            ("guard_exec_format", false),
            ("guard_connect_of_another_version", false),
            ("guard_fork", false),
            ("guard_exec_commit", true),
            ("guard_execveat32_end", true),
            ("guard_execve_end-new", true),
            ("guard_continue", true),
            ("guard_task_free", true),
        ] {
            assert_eq!(is_last(Path::new("/x").join(name).as_path()), last, "{name}");
        }
    }
}
