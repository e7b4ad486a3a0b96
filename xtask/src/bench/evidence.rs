//! What evidence costs, on this machine: signing, group commit, sequencing, proofs, verifying.
//! Given guard-evidence's example `evidence_bench`, as it is shipped. Never measures inside a guest: its disk is a file.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::BenchOptions;
use super::document::Section;
use super::stats::grouped;
use crate::build::cargo;
use crate::{paths, run};

pub(super) const HEADING: &str = "Evidence";

#[derive(Deserialize)]
struct Line {
    what: String,
    number: u64,
    nanoseconds: u64,
    bytes: u64,
}

pub(super) fn measure(options: &BenchOptions) -> Result<Section> {
    let sizes: &[&str] = match (options.quick, options.full) {
        (true, _) => &["10000", "100000"],
        (false, false) => &["10000", "100000", "1000000"],
        (false, true) => &["10000", "100000", "1000000", "10000000"],
    };
    // Not where temporary files are: that may be memory.
    let directory = paths::target().join(format!("evidence-bench-{}", std::process::id()));
    std::fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let output = run::output(
        cargo()
            .args([
                "run",
                "--release",
                "--locked",
                "--quiet",
                "-p",
                "guard-evidence",
                "--example",
                "evidence_bench",
                "--",
            ])
            .arg(&directory)
            .args(sizes),
    );
    // A leftover is no harm, only in the way of nobody.
    let _ = std::fs::remove_dir_all(&directory);
    let lines = String::from_utf8(output?)?
        .lines()
        .map(|line| serde_json::from_str::<Line>(line).with_context(|| format!("cannot read `{line}`")))
        .collect::<Result<Vec<_>>>()?;
    Ok(Section::new(HEADING, &text(&lines, &load(), options)))
}

fn text(lines: &[Line], load: &str, options: &BenchOptions) -> String {
    let mut text = format!(
        "This machine, not a guest, release profile, one thread, files in the target directory. Load of the machine at the end: {load}. \
         `sign and append` seals enforcement records and makes them durable in groups of 256 (fdatasync), `verify` checks an envelope's signature and \
         reads its statement, `records of one approved exec` are request, decision and enforcement of a short command line, `sequence` writes tiles and publishes a \
         signed checkpoint for every 1,024 leaves (everything synced; leaves beyond the first million are short), `prove` reads a proof out of tiles with nothing cached, `check` verifies \
         it.{} Command: `cargo xtask bench evidence`{}.\n\n\
         | what | number | each, ns | a second | bytes each |\n| --- | ---: | ---: | ---: | ---: |\n",
        growth(lines),
        if options.full { " --full" } else { "" },
    );
    for line in lines {
        let each = line.nanoseconds / line.number.max(1);
        let per_second = 1_000_000_000u64.checked_div(each).unwrap_or(0);
        let bytes = if line.bytes == 0 {
            String::new()
        } else {
            grouped(line.bytes)
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {bytes} |",
            line.what,
            grouped(line.number),
            grouped(each),
            grouped(per_second)
        );
    }
    text
}

/// How a proof grows with its log, next to the logarithm.
fn growth(lines: &[Line]) -> String {
    let proofs = lines.iter().filter_map(|line| {
        let size: u64 = line.what.strip_prefix("prove ")?.parse().ok()?;
        Some((size, line.nanoseconds / line.number.max(1)))
    });
    let proofs: Vec<(u64, u64)> = proofs.collect();
    let (Some((small, fast)), Some((large, slow))) = (proofs.first(), proofs.last()) else {
        return String::new();
    };
    let levels = |size: u64| u64::from(size.max(2).ilog2());
    let times = |more: u64, less: u64| {
        let hundredths = more.saturating_mul(100) / less.max(1);
        format!("{}.{:02}", hundredths / 100, hundredths % 100)
    };
    format!(
        " From {} to {} records the logarithm grows {} times, the time of a proof {} times.",
        grouped(*small),
        grouped(*large),
        times(levels(*large), levels(*small)),
        times(*slow, *fast)
    )
}

fn load() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    format!("{} on {cpus} CPUs", load.split(' ').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_of_what_was_said() {
        let lines = [
            r#"{"what":"prove 1024","number":500,"nanoseconds":4000000,"bytes":320}"#,
            r#"{"what":"prove 1048576","number":500,"nanoseconds":10000000,"bytes":640}"#,
        ]
        .map(|line| serde_json::from_str(line).unwrap());
        let text = text(&lines, "0.5 on 2 CPUs", &BenchOptions::default());
        assert!(
            text.ends_with("| prove 1048576 | 500 | 20,000 | 50,000 | 640 |\n"),
            "{text}"
        );
        assert!(
            text.contains(
                "From 1,024 to 1,048,576 records the logarithm grows 2.00 times, the time of a proof 2.50 times."
            ),
            "{text}"
        );
    }
}
