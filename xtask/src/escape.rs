//! The attempts to escape: tests/escape in two guests with systemd at once, one with enforcement off and one with it on.
//! Given kernels and a filter. Never counts an attempt that did not succeed with enforcement off as one that failed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::build;
use crate::kernel_tests;
use crate::test::TRIED_AGAIN;
use crate::vm::{Kernel, Vm, VmOptions};
use crate::{paths, run};

/// How the attempts went on one kernel.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    /// All that were asked for.
    pub attempts: u64,
    /// Succeeded although enforcement was on: what was seen.
    pub escaped: Vec<Trouble>,
    /// Succeeded with enforcement off.
    pub proven: u64,
    /// Failed with enforcement on, and succeeded with it off.
    pub passed: u64,
    /// Prove nothing, or could not be told.
    pub failed: Vec<Trouble>,
    /// Of those that passed when tried again, the first failures.
    pub unsteady: Vec<Trouble>,
    /// Not run with enforcement on, and why.
    pub skipped: Vec<Trouble>,
    /// Real programs that work once everything is approved.
    pub works: u64,
    /// Real programs that do not.
    pub broken: Vec<Trouble>,
}

/// An attempt or a real program, and what is to be said of it; the text begins with the name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trouble {
    name: String,
    text: String,
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// One kernel's part of a run.
#[derive(Debug)]
pub struct Report {
    /// The series.
    pub kernel: Kernel,
    /// `uname -r`, when the kernel could be had.
    pub release: String,
    /// None: the archive no longer has the series.
    pub outcome: Option<Result<Attempts>>,
    /// Both guests.
    pub time: Duration,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kernel {}", self.kernel.series)?;
        if !self.release.is_empty() {
            write!(f, " ({})", self.release)?;
        }
        match &self.outcome {
            Some(Ok(ran)) => write!(
                f,
                ": {}, {} failed, {} skipped, {} real programs work, {} do not; {:.0} s",
                last_line(&[ran]),
                ran.failed.len(),
                ran.skipped.len(),
                ran.works,
                ran.broken.len(),
                self.time.as_secs_f64()
            ),
            Some(Err(error)) => write!(f, ": FAILED: {error:#}"),
            None => write!(f, ": skipped: gone from the archive"),
        }
    }
}

/// What a run of the suite ends with.
pub(crate) fn last_line(all: &[&Attempts]) -> String {
    let (mut attempts, mut escaped, mut proven) = (0, 0, 0);
    for ran in all {
        attempts += ran.attempts;
        escaped += ran.escaped.len();
        proven += ran.proven;
    }
    format!("{attempts} attempts, {escaped} escaped, {proven} proven with enforcement off")
}

/// Runs the attempts whose name contains one of `words`, or all, on each kernel; a few that fail are tried `again`.
/// Empty when none has such a name.
///
/// # Errors
/// When something cannot be built. What fails on one kernel is its report.
pub(crate) fn run(kernels: &[Kernel], words: &[&str], again: bool) -> Result<Vec<Report>> {
    let asked = |name: &String| words.is_empty() || words.iter().any(|word| name.contains(word));
    let wanted: Vec<String> = names()?.into_iter().filter(asked).collect();
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let suite = Suite::build()?;
    Ok(kernels
        .iter()
        .map(|&kernel| on(kernel, &suite, words, &wanted, again))
        .collect())
}

/// The names of all attempts and real programs, as the sources have them.
fn names() -> Result<Vec<String>> {
    let mut all = Vec::new();
    for source in files(&source_folder().join("attempts"))? {
        if source.extension() == Some(OsStr::new("py")) {
            all.extend(of_source(&fs::read_to_string(source)?));
        }
    }
    Ok(all)
}

/// Functions that are given a Try and nothing else; and the first argument of calls of what makes attempts alike.
fn of_source(text: &str) -> Vec<String> {
    let name = |line: &str| {
        let function = line.strip_prefix("def ").and_then(|rest| rest.strip_suffix("(t):"));
        let made = line.split_once("(\"").and_then(|(maker, rest)| {
            let (name, rest) = rest.split_once('"')?;
            (is_name(maker) && rest.starts_with(", \"")).then_some(name)
        });
        function.or(made).filter(|name| is_name(name)).map(str::to_owned)
    };
    text.lines().filter_map(name).collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte == b'_' || byte.is_ascii_alphanumeric())
}

fn on(kernel: Kernel, suite: &Suite, words: &[&str], wanted: &[String], again: bool) -> Report {
    let begun = Instant::now();
    let mut release = String::new();
    let outcome = match crate::vm::kernel::available(kernel) {
        Ok(None) => None,
        Ok(Some(found)) => {
            release = found;
            Some(guests(kernel, suite, words, wanted, again))
        }
        Err(error) => Some(Err(error)),
    };
    Report {
        kernel,
        release,
        outcome,
        time: begun.elapsed(),
    }
}

fn guests(kernel: Kernel, suite: &Suite, words: &[&str], wanted: &[String], again: bool) -> Result<Attempts> {
    let mut both = both(kernel, suite, &[], words)?;
    if let Some(lost) = wanted.iter().find(|name| !both.on.contains_key(name.as_str())) {
        bail!("{lost} was not reported");
    }
    let first = judge(&both)?;
    let names: Vec<&str> = first.failed.iter().map(|trouble| trouble.name.as_str()).collect();
    if !again || names.is_empty() || names.len() > TRIED_AGAIN {
        return Ok(first);
    }
    // A guest that is emulated is slow at times. What escaped is never tried again.
    both.replace(self::both(kernel, suite, &["--exactly"], &names)?);
    let mut second = judge(&both)?;
    let still = |name: &str| second.failed.iter().any(|trouble| trouble.name == name);
    let unsteady = first.failed.iter().filter(|trouble| !still(&trouble.name)).cloned();
    second.unsteady = unsteady.collect();
    Ok(second)
}

/// Runs the suite in two guests at once: what an attempt that succeeded left behind is nobody's.
fn both(kernel: Kernel, suite: &Suite, options: &[&str], words: &[&str]) -> Result<Both> {
    let (off, on) = std::thread::scope(|scope| {
        let off = scope.spawn(|| guest(kernel, suite, &[&["--off"], options].concat(), words));
        let on = guest(kernel, suite, options, words);
        (off.join(), on)
    });
    let off = off.map_err(|_| anyhow!("the run with enforcement off panicked"))??;
    Ok(Both {
        off: lines(&off)?,
        on: lines(&on?)?,
    })
}

fn guest(kernel: Kernel, suite: &Suite, options: &[&str], words: &[&str]) -> Result<String> {
    let mut guest = VmOptions::systemd();
    guest.kernel = kernel;
    guest.copy = vec![suite.folder.clone()];
    let vm = Vm::boot(&guest)?;
    let program = ["python3", "-u", "/mnt/copy/escape/escape.py"];
    let argv = [&program, options, &["/mnt/copy/escape"], words].concat();
    // Two guests share the machine.
    let text = kernel_tests::shown(&vm, kernel, &argv, &[("SLOW", "2")])?;
    if !text.lines().any(|line| line.starts_with("end: ")) {
        bail!("a run of the attempts did not come to its end");
    }
    Ok(text)
}

/// What was said of each attempt.
type Lines = BTreeMap<String, Line>;

#[derive(Debug)]
struct Line {
    word: String,
    text: String,
}

#[derive(Debug)]
struct Both {
    off: Lines,
    on: Lines,
}

impl Both {
    /// Takes over what was run anew.
    fn replace(&mut self, second: Self) {
        self.off.extend(second.off);
        self.on.extend(second.on);
    }
}

fn lines(text: &str) -> Result<Lines> {
    const WORDS: [&str; 7] = ["ok", "proven", "ESCAPED", "FAILED", "skipped", "works", "broken"];
    let mut found = Lines::new();
    for line in text.lines() {
        if let Some((word, rest)) = line.split_once(' ')
            && WORDS.contains(&word)
            && let Some(name) = rest.split([' ', ':']).next()
        {
            let line = Line {
                word: word.to_owned(),
                text: rest.to_owned(),
            };
            if found.insert(name.to_owned(), line).is_some() {
                bail!("{name} was reported twice");
            }
        }
    }
    Ok(found)
}

fn judge(both: &Both) -> Result<Attempts> {
    let mut ran = Attempts::default();
    for (name, on) in &both.on {
        let trouble = |text: &str| Trouble {
            name: name.clone(),
            text: text.to_owned(),
        };
        let Some(off) = both.off.get(name) else {
            match on.word.as_str() {
                "works" => ran.works += 1,
                "broken" => ran.broken.push(trouble(&on.text)),
                "skipped" => ran.skipped.push(trouble(&on.text)),
                _ => bail!("{name} was not run with enforcement off"),
            }
            continue;
        };
        ran.attempts += 1;
        let proven = off.word == "proven";
        ran.proven += u64::from(proven);
        match on.word.as_str() {
            "ESCAPED" => ran.escaped.push(trouble(&on.text)),
            _ if off.word == "FAILED" => ran.failed.push(trouble(&format!("with enforcement off: {}", off.text))),
            "FAILED" => ran.failed.push(trouble(&on.text)),
            "skipped" => ran.skipped.push(trouble(&on.text)),
            "ok" if proven => ran.passed += 1,
            // It fails, but nothing shows that it would not fail without enforcement.
            _ => ran.failed.push(trouble(&format!(
                "{}, but with enforcement off: {} {}",
                on.text, off.word, off.text
            ))),
        }
    }
    if let Some(name) = both.off.keys().find(|name| !both.on.contains_key(*name)) {
        bail!("{name} was not run with enforcement on");
    }
    Ok(ran)
}

/// What the guests are given, in a folder of this run.
struct Suite {
    /// Its name is that in the guest too.
    folder: PathBuf,
}

impl Suite {
    fn build() -> Result<Self> {
        let runs = paths::target().join("escape-tests");
        kernel_tests::sweep(&runs);
        let folder = runs.join(std::process::id().to_string()).join("escape");
        fs::create_dir_all(folder.join("attempts")).with_context(|| format!("cannot create {}", folder.display()))?;
        let suite = Self { folder };
        suite.fill()?;
        Ok(suite)
    }

    fn fill(&self) -> Result<()> {
        build::hold_probe(&self.folder)?;
        for part in ["", "attempts"] {
            let to = self.folder.join(part);
            for source in files(&source_folder().join(part))? {
                let name = Path::new(source.file_name().context("a source has a name")?);
                match source.extension().and_then(OsStr::to_str) {
                    Some("py") => drop(fs::copy(&source, to.join(name))?),
                    Some("c") => compile(&source, &to.join(name))?,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// A file that says in its first line that it is a shared object becomes one; another one a program.
fn compile(source: &Path, to: &Path) -> Result<()> {
    let mut compile = Command::new("gcc");
    compile.args(["-O1", "-Wall", "-Werror", "-pthread", "-o"]);
    let shared = fs::read_to_string(source)?.starts_with("/* A shared object");
    if shared {
        compile.arg(to.with_extension("so")).args(["-shared", "-fPIC"]);
    } else {
        compile.arg(to.with_extension("")).arg("-static");
    }
    run::quiet(compile.arg(source))
}

impl Drop for Suite {
    fn drop(&mut self) {
        // A leftover is swept by the next run.
        let _ = self.folder.parent().map(fs::remove_dir_all);
    }
}

fn source_folder() -> PathBuf {
    paths::repo().join("tests/escape")
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .with_context(|| format!("cannot read {}", folder.display()))?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(off: &str, on: &str) -> Both {
        Both {
            off: lines(off).unwrap(),
            on: lines(on).unwrap(),
        }
    }

    fn texts(troubles: &[Trouble]) -> Vec<&str> {
        troubles.iter().map(|trouble| trouble.text.as_str()).collect()
    }

    #[test]
    fn an_attempt_counts_only_when_it_is_proven() {
        let mut both = both(
            "proven one 0.1s\nproven two 0.2s\nFAILED three: proves nothing\nskipped four: no such sockets\nproven five 1.0s\n\
             proven six 0.3s\nend: 4 proven\n",
            "ok one 0.2s\nESCAPED two: connected\n   | ok a line of its story\nok three 0.1s\nskipped four: no such sockets\n\
             skipped five: class files is not enforced yet\nFAILED six: for a reason of its own\nworks git 2.0s\n\
             broken tar: status 2\nskipped node: not in the guest\nend: …\n",
        );
        let ran = judge(&both).unwrap();
        assert_eq!((ran.attempts, ran.passed), (6, 1), "{ran:?}");
        assert_eq!((ran.proven, ran.works, ran.skipped.len()), (4, 1, 3), "{ran:?}");
        assert_eq!(texts(&ran.escaped), ["two: connected"]);
        let failed = [
            "six: for a reason of its own",
            "with enforcement off: three: proves nothing",
        ];
        assert_eq!(texts(&ran.failed), failed);
        assert_eq!(texts(&ran.broken), ["tar: status 2"]);
        let line = "6 attempts, 1 escaped, 4 proven with enforcement off";
        assert_eq!(last_line(&[&ran]), line);

        both.replace(self::both(
            "proven three 0.1s\nproven six 0.1s\n",
            "ok three 1.0s\nok six 1.0s\n",
        ));
        let ran = judge(&both).unwrap();
        assert_eq!((ran.attempts, ran.passed, ran.proven), (6, 3, 5), "{ran:?}");
        assert!(ran.failed.is_empty(), "{ran:?}");
    }

    #[test]
    fn the_attempts_of_the_tree_are_found() {
        let names = names().unwrap();
        for name in ["exec_plain", "tcp", "before_splice", "leave_by_path", "token_by_path"] {
            assert!(names.iter().any(|found| found == name), "{name}: {names:?}");
        }
        assert!(names.len() >= 120, "{}", names.len());
    }

    #[test]
    fn an_attempt_that_was_not_run_is_no_attempt_that_failed() {
        assert!(judge(&both("proven one 0.1s\n", "")).is_err());
        assert!(judge(&both("", "ok one 0.1s\n")).is_err());
        // Not proven, not skipped either.
        let ran = judge(&both("skipped one: why\n", "ok one 0.1s\n")).unwrap();
        assert_eq!((ran.failed.len(), ran.passed), (1, 0));
    }
}
