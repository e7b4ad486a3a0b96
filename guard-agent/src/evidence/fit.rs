//! Cuts what the workload wrote to the size of a record.
//!
//! Owns the budget of one record. It is given the parts that a workload can make long. It must never cut without saying
//! so in the record, and never cut what identifies the action: digests stay whole.

use guard_evidence::record::{ConnectAction, ExecAction, FileAction, Peer, WorkloadFacts};
use guard_evidence::text::Text;

/// Of a record's payload as JSON: an envelope of 65,535 bytes is base64 of about 49,000, less the fixed parts.
const ACTION_BYTES: usize = 28_000;
const WORKLOAD_BYTES: usize = 12_000;
/// The longest single string kept.
const STRING_BYTES: usize = 8_000;

/// Cuts argv, environment and ancestry so that the record fits whatever they contain.
pub fn fit(action: &mut ExecAction, workload: &mut WorkloadFacts) {
    for text in [&mut action.given, &mut action.cwd]
        .into_iter()
        .chain(action.path.as_mut())
    {
        cut(text, STRING_BYTES / 2);
    }
    let left =
        ACTION_BYTES.saturating_sub(size(&action.given) + size(&action.cwd) + action.path.as_ref().map_or(0, size));
    let for_environment = left / 4;
    strings(&mut action.environment, for_environment);
    let for_argv = left.saturating_sub(action.environment.iter().map(size).sum());
    if strings(&mut action.argv, for_argv) {
        action.argv_truncated = true;
    }
    fit_workload(workload);
}

/// As [`fit`], of a connection: its path is 4096 bytes at most, each of them six in JSON at worst.
pub fn fit_connect(action: &mut ConnectAction, workload: &mut WorkloadFacts) {
    if let Peer::Unix { path: Some(name) } | Peer::Abstract { name } = &mut action.peer {
        cut(name, ACTION_BYTES);
    }
    fit_workload(workload);
}

/// As [`fit`], of a change of a file: two paths of 4096 bytes in all, and a text of 255.
pub fn fit_file(action: &mut FileAction, workload: &mut WorkloadFacts) {
    let paths = [&mut action.path, &mut action.new_path, &mut action.path_in_file_system];
    for text in paths.into_iter().flatten() {
        cut(text, ACTION_BYTES / 2);
    }
    for text in [&mut action.target, &mut action.attribute].into_iter().flatten() {
        cut(text, STRING_BYTES / 4);
    }
    fit_workload(workload);
}

fn fit_workload(workload: &mut WorkloadFacts) {
    cut(&mut workload.cgroup, STRING_BYTES / 2);
    let mut left = WORKLOAD_BYTES.saturating_sub(size(&workload.cgroup));
    for process in &mut workload.ancestry {
        cut(&mut process.comm, 200);
        if let Some(executable) = &mut process.executable {
            cut(executable, 1_000);
        }
        let fixed = 120 + size(&process.comm) + process.executable.as_ref().map_or(0, size);
        strings(&mut process.argv, left.saturating_sub(fixed) / 2);
        left = left.saturating_sub(fixed + process.argv.iter().map(size).sum::<usize>());
    }
    let mut left = WORKLOAD_BYTES;
    workload.ancestry.retain(|process| {
        let bytes = 120
            + size(&process.comm)
            + process.executable.as_ref().map_or(0, size)
            + process.argv.iter().map(size).sum::<usize>();
        let fits = bytes <= left;
        left = left.saturating_sub(bytes);
        fits
    });
}

/// Bytes in JSON, with the comma.
fn size(text: &Text) -> usize {
    serde_json::to_vec(text).map_or(usize::MAX / 1_024, |json| json.len() + 1)
}

/// Keeps the first and the last strings; says whether anything was left out.
fn strings(list: &mut Vec<Text>, budget: usize) -> bool {
    let mut left_out = false;
    for text in list.iter_mut() {
        left_out |= cut(text, STRING_BYTES.min(budget / 2));
    }
    let total: usize = list.iter().map(size).sum();
    if total <= budget {
        return left_out;
    }
    let fits = |sizes: &mut dyn Iterator<Item = usize>| {
        let mut sum = 0;
        sizes
            .take_while(|n| {
                sum += n;
                sum <= budget / 2
            })
            .count()
    };
    let head = fits(&mut list.iter().map(size));
    let tail = fits(&mut list.iter().rev().map(size)).min(list.len() - head);
    list.drain(head..list.len() - tail);
    true
}

/// Keeps both ends of a string; says whether anything was left out.
fn cut(text: &mut Text, budget: usize) -> bool {
    if size(text) <= budget {
        return false;
    }
    // At worst one byte becomes six in JSON.
    let keep = budget / 14;
    let bytes = text.as_bytes();
    let mut short = bytes[..keep.min(bytes.len())].to_vec();
    short.extend_from_slice(" … ".as_bytes());
    short.extend_from_slice(&bytes[bytes.len().saturating_sub(keep)..]);
    *text = Text::from(short);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use guard_evidence::record::ProcessFacts;

    #[test]
    fn whatever_it_contains_it_fits() {
        for fill in [b'a', 0x1b, 0xff, b'"', b'\n', 0] {
            for (count, length) in [(1, 200_000), (2_000, 100), (100_000, 1), (100_000, 0), (3, 9_000)] {
                let long = Text::from(vec![fill; length]);
                let list = vec![long.clone(); count];
                let mut action = ExecAction {
                    path: Some(Text::from(vec![fill; 4096])),
                    unlinked: false,
                    device: 1,
                    inode: 1,
                    generation: 1,
                    sha256: None,
                    size: None,
                    given: Text::from(vec![fill; 4096]),
                    argv: list.clone(),
                    argv_count: count as u64,
                    argv_sha256: String::new(),
                    argv_truncated: false,
                    environment: list.clone(),
                    environment_count: count as u64,
                    environment_sha256: String::new(),
                    cwd: Text::from(vec![fill; 4096]),
                };
                let process = ProcessFacts {
                    pid: 1,
                    start_ns: u64::MAX,
                    comm: Text::from(vec![fill; 15]),
                    executable: Some(Text::from(vec![fill; 4096])),
                    argv: list[..list.len().min(32)].to_vec(),
                    uid: 1,
                };
                let mut workload = WorkloadFacts {
                    label: "coder".to_owned(),
                    cgroup: Text::from(vec![fill; 4096]),
                    container_id: None,
                    uid: 0,
                    gid: 0,
                    user: None,
                    login_uid: None,
                    pid: 1,
                    tid: 1,
                    ancestry: vec![process; 32],
                };
                fit(&mut action, &mut workload);
                let bytes = serde_json::to_vec(&action).unwrap().len() + serde_json::to_vec(&workload).unwrap().len();
                assert!(bytes < 45_000, "{fill} {count}×{length}: {bytes}");
                assert!(
                    action.argv_truncated || length <= 1 && count < 100_000,
                    "{fill} {count}×{length}"
                );
                assert!(!workload.ancestry.is_empty());
            }
        }
    }

    #[test]
    fn what_fits_is_left_alone() {
        let mut list = vec![Text::from("git"), Text::from("push")];
        assert!(!strings(&mut list, 1_000));
        assert_eq!(list.len(), 2);
    }
}
