//! What test processes print: results, failures, and what passed only at the second try.
//! Given lines. Never decides whether a run is green.

use super::Counts;

/// Begins a line about a test that passed only when it was tried again; the rest is its name and the first failure.
pub const UNSTEADY: &str = "unsteady: ";

/// So many failures of a run may be bad luck of a slow machine; more are not tried again.
pub const TRIED_AGAIN: usize = 3;

/// Collects what tests say of their failures: the part below `---- NAME ----`, and lines about unsteady ones.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pub(super) texts: Vec<String>,
    /// Lines belong to the last text.
    open: bool,
}

impl Failures {
    pub(super) fn line(&mut self, line: &str) {
        if line.starts_with(UNSTEADY) {
            self.texts.push(line.to_owned());
        } else if line.starts_with("---- ") && line.ends_with(" ----") {
            self.texts.push(line.trim_matches(['-', ' ']).to_owned());
            self.open = true;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.open = false;
        } else if self.open
            && !line.trim().is_empty()
            && let Some(text) = self.texts.last_mut()
        {
            text.push_str("\n    ");
            text.push_str(line);
        }
    }
}

/// The first lines of a text, none of them endless.
pub(super) fn shortened(text: &str) -> String {
    const LINES: usize = 8;
    const CHARACTERS: usize = 400;
    let mut lines: Vec<String> = text
        .lines()
        .take(LINES)
        .map(|line| line.chars().take(CHARACTERS).collect())
        .collect();
    if text.lines().count() > LINES {
        lines.push("    …".to_owned());
    }
    lines.join("\n")
}

/// Reads `test result: ok. 5 passed; 0 failed; 1 ignored; …`.
pub(super) fn result_line(line: &str) -> Option<Counts> {
    let (_, rest) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut counts = Counts::default();
    for part in rest.split(';') {
        let (number, what) = part.trim().split_once(' ')?;
        match what {
            "passed" => counts.passed = number.parse().ok()?,
            "failed" => counts.failed = number.parse().ok()?,
            "ignored" => counts.skipped = number.parse().ok()?,
            _ => {}
        }
    }
    Some(counts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_counted() {
        let line = "test result: FAILED. 5 passed; 2 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        assert_eq!(
            result_line(line),
            Some(Counts {
                passed: 5,
                failed: 2,
                skipped: 1
            })
        );
        assert_eq!(result_line("test result: nonsense"), None);
        assert_eq!(result_line("running 5 tests"), None);
    }

    #[test]
    fn failures_are_collected() {
        let mut failures = Failures::default();
        let output = "test a ... FAILED\nunsteady: b::c: too slow\n\nfailures:\n\n---- a ----\nproves: x\n\nleft 1\n---- d stdout ----\nno\n\n\
                      failures:\n    a\n    d\n\ntest result: FAILED. 0 passed";
        output.lines().for_each(|line| failures.line(line));
        assert_eq!(
            failures.texts,
            [
                "unsteady: b::c: too slow",
                "a\n    proves: x\n    left 1",
                "d stdout\n    no"
            ]
        );
    }
}
