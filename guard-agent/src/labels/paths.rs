//! Paths below the cgroup v2 root.
//!
//! Owns what is one. It is given text of others. It must never take a path for one that leads elsewhere.

use std::fs;
use std::path::Path;

use super::LabelError;

pub(super) const DEPTH: usize = 64;

/// Whether `path` is `root` or below it.
pub(crate) fn is_below(path: &str, root: &str) -> bool {
    root == "/"
        || path
            .strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

pub(super) fn check_path(path: &str) -> Result<(), LabelError> {
    let fine = path.len() <= 4_096
        && path.strip_prefix('/').is_some_and(|rest| {
            !rest.is_empty()
                && rest
                    .split('/')
                    .all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'))
        });
    if fine {
        Ok(())
    } else {
        Err(LabelError::Path(guard_evidence::text::visible_fold(path, 200)))
    }
}

pub(super) fn processes(directory: &Path, depth: usize) -> u64 {
    let own = fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .count() as u64;
    let below = fs::read_dir(directory).map_or(0, |entries| {
        entries
            .filter_map(Result::ok)
            .filter(|entry| depth < DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| processes(&entry.path(), depth + 1))
            .sum()
    });
    own + below
}
