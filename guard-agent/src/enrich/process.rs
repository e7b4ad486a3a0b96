//! The process tree above an action, from /proc.
//!
//! Owns parsing of stat, status and cmdline. It is given a process id. It must never join facts of two processes that
//! had the same id one after the other: start times are compared before and after.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;

use guard_evidence::record::ProcessFacts;
use guard_evidence::text::Text;

use super::{claims, container, users};
use crate::redact::{self, Redactor};

const DEPTH: usize = 32;
/// Of the arguments of a process: what is shown, and what is read beyond it, so that a secret that goes over the end is seen
/// whole.
const ARGV_BYTES: usize = 4_096;
const ARGV_READ: u64 = 16_384;
const ARGV_STRINGS: usize = 64;
const ENVIRONMENT_BYTES: u64 = 256 << 10;
/// /proc counts in hundredths of a second on every architecture that we run on.
const TICK_NS: u64 = 10_000_000;

/// The process and what started it, up to process 1, and how many of them are in or below `root`. Blocks.
pub(super) fn ancestry(pid: u32, root: Option<&str>, redactor: &Redactor) -> (Vec<ProcessFacts>, u32) {
    let mut found: Vec<ProcessFacts> = Vec::new();
    let (mut inside, mut left) = (0, false);
    let mut next = pid;
    while found.len() < DEPTH && next != 0 {
        let Some((facts, parent)) = process(next, redactor) else {
            break;
        };
        // A parent is older than its child; otherwise its id was used again.
        if found.last().is_some_and(|child| facts.start_ns > child.start_ns) {
            break;
        }
        left |= root.is_none_or(|root| cgroup(next).is_none_or(|path| !is_below(&path, root)));
        found.push(facts);
        inside += u32::from(!left);
        next = parent;
    }
    (found, inside)
}

/// What a process was started with, or has put there since: the beginning of it. Blocks.
pub(super) fn environment(pid: u32) -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    // A read error half-way leaves what was read: it is quoted, not decided on.
    if let Ok(file) = File::open(format!("/proc/{pid}/environ")) {
        let _ = file.take(ENVIRONMENT_BYTES).read_to_end(&mut bytes);
    }
    if bytes.len() as u64 >= ENVIRONMENT_BYTES {
        // The last one may be half a secret.
        bytes.truncate(bytes.iter().rposition(|byte| *byte == 0).unwrap_or(0));
    }
    bytes.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect()
}

fn is_below(path: &str, root: &str) -> bool {
    path.strip_prefix(root)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// The cgroup v2 path of a process.
pub(crate) fn cgroup(pid: u32) -> Option<String> {
    parse_cgroup(&fs::read(format!("/proc/{pid}/cgroup")).ok()?)
}

fn parse_cgroup(text: &[u8]) -> Option<String> {
    String::from_utf8_lossy(text)
        .lines()
        .find_map(|line| line.strip_prefix("0::"))
        .map(|path| path.trim_end_matches(" (deleted)").to_owned())
}

fn process(pid: u32, redactor: &Redactor) -> Option<(ProcessFacts, u32)> {
    let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).ok();
    let stat = parse_stat(&read("stat")?)?;
    let uid = parse_uid(&read("status")?)?;
    let executable = fs::read_link(format!("/proc/{pid}/exe")).ok();
    let mut cmdline = Vec::new();
    // A read error half-way leaves what was read: it is shown, not decided on.
    if let Ok(file) = File::open(format!("/proc/{pid}/cmdline")) {
        let _ = file.take(ARGV_READ).read_to_end(&mut cmdline);
    }
    let again = parse_stat(&read("stat")?)?;
    if again.start_ns != stat.start_ns {
        return None;
    }
    let facts = ProcessFacts {
        pid,
        start_ns: stat.start_ns,
        comm: Text::from(stat.comm),
        executable: executable.map(|path| redactor.path(path.as_os_str().as_bytes())),
        argv: arguments(&cmdline, redactor),
        uid,
    };
    Some((facts, stat.parent))
}

/// What cmdline has, as it is recorded: the beginning of it.
fn arguments(cmdline: &[u8], redactor: &Redactor) -> Vec<Text> {
    let end = match cmdline.len() as u64 {
        // The last word may be half a secret.
        ARGV_READ.. => cmdline
            .iter()
            .rposition(|byte| *byte == 0 || byte.is_ascii_whitespace())
            .unwrap_or(0),
        _ => cmdline.len(),
    };
    let cmdline = cmdline.get(..end).unwrap_or_default();
    let cmdline = cmdline.strip_suffix(b"\0").unwrap_or(cmdline);
    if cmdline.is_empty() {
        return Vec::new();
    }
    let strings: Vec<&[u8]> = cmdline.split(|byte| *byte == 0).collect();
    let mut left = ARGV_BYTES;
    let mut recorded = Vec::new();
    for text in redactor.arguments(&strings, None).into_iter().take(ARGV_STRINGS) {
        let bytes = text.as_bytes();
        if bytes.len() > left {
            recorded.push(Text::from(bytes.get(..left).unwrap_or_default()));
            break;
        }
        left -= bytes.len();
        recorded.push(text);
    }
    recorded
}

struct Stat {
    comm: Vec<u8>,
    parent: u32,
    start_ns: u64,
}

/// `pid (comm) state ppid …`; comm may contain anything, parentheses and newlines included.
fn parse_stat(stat: &[u8]) -> Option<Stat> {
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')')?;
    let comm = stat.get(open + 1..close)?.to_vec();
    let rest = std::str::from_utf8(stat.get(close + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let parent = fields.nth(1)?.parse().ok()?;
    let ticks: u64 = fields.nth(17)?.parse().ok()?;
    Some(Stat {
        comm,
        parent,
        start_ns: ticks.checked_mul(TICK_NS)?,
    })
}

/// The real user id.
fn parse_uid(status: &[u8]) -> Option<u32> {
    let line = status
        .split(|b| *b == b'\n')
        .find_map(|line| line.strip_prefix(b"Uid:"))?;
    std::str::from_utf8(line)
        .ok()?
        .split_ascii_whitespace()
        .next()?
        .parse()
        .ok()
}

/// For the fuzzer: any bytes as each file of /proc, as the user database and as an environment.
pub fn fuzz_proc(data: &[u8]) {
    if let Some(stat) = parse_stat(data) {
        assert!(stat.comm.len() < data.len());
    }
    let _ = parse_uid(data);
    if let Some(path) = parse_cgroup(data) {
        container::fuzz_path(&path);
    }
    if let Ok(path) = std::str::from_utf8(data) {
        container::fuzz_path(path);
    }
    for (uid, name) in users::parse(data) {
        assert!(!name.is_empty() && name.len() <= 64, "user {uid}");
    }
    let redactor = redact::for_fuzzing();
    let argv = arguments(data, &redactor);
    assert!(argv.iter().map(|text| text.as_bytes().len()).sum::<usize>() <= ARGV_BYTES);
    let environment: Vec<Vec<u8>> = data.split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
    let _ = claims::claims(&environment, &redactor);
    let names = ["PATH".to_owned(), "A*".to_owned()];
    for entry in claims::chosen(&environment, &names, &redactor) {
        let name = entry.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
        assert!(name == b"PATH" || name.starts_with(b"A"), "nobody chose it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::redactor;

    #[test]
    fn this_process_and_its_ancestors() {
        let (found, inside) = ancestry(std::process::id(), None, &redactor());
        assert_eq!(inside, 0);
        assert_eq!(found[0].pid, std::process::id());
        assert!(found.len() > 1);
        assert!(found[0].executable.as_ref().unwrap().display().contains("guard_agent"));
        assert!(found.windows(2).all(|pair| pair[0].start_ns >= pair[1].start_ns));
        assert!(!found[0].argv.is_empty());
    }

    #[test]
    fn what_is_outside_the_workload_is_told_apart() {
        let (found, inside) = ancestry(std::process::id(), Some("/no/such/cgroup"), &redactor());
        assert!(found.len() > 1 && inside == 0);
        let own = cgroup(std::process::id()).unwrap();
        assert!(own == "/" || ancestry(std::process::id(), Some(&own), &redactor()).1 > 0);
        assert!(ancestry(0, None, &redactor()).0.is_empty());
        assert!(ancestry(u32::MAX, None, &redactor()).0.is_empty());
    }

    #[test]
    fn arguments_are_cut_after_secrets_went() {
        let shown =
            |cmdline: &[u8]| -> Vec<String> { arguments(cmdline, &redactor()).iter().map(Text::display).collect() };
        assert_eq!(shown(b""), [""; 0]);
        assert_eq!(shown(b"a\0\0b\0"), ["a", "", "b"]);
        let hidden = shown(b"mysql\0--password\0hunter2\0");
        assert!(hidden[2].starts_with("[redacted option "), "{hidden:?}");
        // A token over the end of what is shown.
        let long = format!("x\0{}ghp_{}\0more", " ".repeat(ARGV_BYTES - 10), "a1".repeat(18));
        assert!(!shown(long.as_bytes()).concat().contains("ghp_"));
        assert_eq!(shown("x\0".repeat(9_000).as_bytes()).len(), ARGV_STRINGS);
    }

    #[test]
    fn hostile_names() {
        let line = b"7 (a) R 1\n(b) S 42 1 1 0 -1 4 0 0 0 0 1 1 1 1 20 0 1 0 500 1 1 1";
        let stat = parse_stat(line).unwrap();
        assert_eq!(
            (stat.comm.as_slice(), stat.parent, stat.start_ns),
            (&b"a) R 1\n(b"[..], 42, 500 * TICK_NS)
        );
        for bad in [&b""[..], b"(", b")(", b"1 (x)", b"1 (x) S", b"1 (x) S a b", b"\xff"] {
            assert!(parse_stat(bad).is_none());
        }
        assert!(is_below("/a/b", "/a") && is_below("/a", "/a") && !is_below("/ab", "/a"));
    }
}
