//! The section "Last full run" of docs/measurements.md.
//! Given the steps of a run. Never loses what an earlier run said of a step that was not run now.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::kernels::{commit, today};
use crate::paths;

const HEADING: &str = "\n## Last full run\n";
const HEAD: &str =
    "`cargo xtask test --full`, step by step; a step that was not asked for keeps the line of its last run.

| step | date | commit | passed | failed | skipped | seconds |
| --- | --- | --- | ---: | ---: | ---: | ---: |
";

/// One step of a run.
#[derive(Debug)]
pub struct Line<'a> {
    /// The step's name.
    pub step: &'a str,
    /// Checks that went well, failed, were skipped.
    pub counts: [u64; 3],
    /// How long it took.
    pub time: Duration,
}

/// Writes the steps into the document.
///
/// # Errors
/// When it cannot be read or written.
pub fn write(steps: &[Line<'_>]) -> Result<()> {
    let path = paths::repo().join("docs/measurements.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    fs::write(&path, with_steps(&text, steps, &today()?, &commit()?))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn with_steps(text: &str, steps: &[Line<'_>], date: &str, commit: &str) -> String {
    let (before, body, after) = match text.split_once(HEADING) {
        None => (text.trim_end(), "", ""),
        Some((before, rest)) => {
            let end = rest.find("\n## ").unwrap_or(rest.len());
            (before.trim_end(), &rest[..end], &rest[end..])
        }
    };
    let mut rows: Vec<(&str, String)> = body
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| step |") && !line.starts_with("| ---"))
        .filter_map(|line| Some((line.split('|').nth(1)?.trim(), line.to_owned())))
        .collect();
    for Line { step, counts, time } in steps {
        let [passed, failed, skipped] = counts;
        let seconds = time.as_secs_f64();
        let row = format!("| {step} | {date} | {commit} | {passed} | {failed} | {skipped} | {seconds:.0} |");
        match rows.iter_mut().find(|(name, _)| name == step) {
            Some(old) => old.1 = row,
            None => rows.push((step, row)),
        }
    }
    let rows: Vec<String> = rows.into_iter().map(|(_, row)| row).collect();
    format!("{before}\n{HEADING}\n{HEAD}{}\n{after}", rows.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_replaces_its_own_line_only() {
        let line = |step, passed| Line {
            step,
            counts: [passed, 0, 1],
            time: Duration::from_millis(1600),
        };
        let text = "# Measurements\n\n## Other\n\n- x\n";
        let text = with_steps(text, &[line("unit", 5), line("kernel", 7)], "2026-01-01", "aaa");
        let text = with_steps(&(text + "\n## Later\n\ny\n"), &[line("unit", 6)], "2026-01-02", "bbb");
        let rows = "| unit | 2026-01-02 | bbb | 6 | 0 | 1 | 2 |\n| kernel | 2026-01-01 | aaa | 7 | 0 | 1 | 2 |\n";
        assert_eq!(
            text,
            format!("# Measurements\n\n## Other\n\n- x\n{HEADING}\n{HEAD}{rows}\n## Later\n\ny\n")
        );
    }
}
