//! docs/kernel-support.md: what was run on which kernel, and under which security modules.
//! Given the reports of the kernel cases. Never writes a line that no guest of this run has said.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::kernel_tests::{Cases, Helpers, Outcome, Report, command, count};
use crate::vm::{Kernel, Vm, VmOptions};
use crate::{paths, run};

/// Security modules as a distribution's kernel is built to have them.
struct Shipped {
    distribution: &'static str,
    /// The list; empty: no `lsm=` at all, which for our kernels is Debian's own.
    list: &'static str,
}

const SHIPPED: [Shipped; 7] = [
    Shipped {
        distribution: "Debian 13",
        list: "",
    },
    Shipped {
        distribution: "Ubuntu 22.04 and 24.04",
        list: "landlock,lockdown,yama,integrity,apparmor",
    },
    Shipped {
        distribution: "Fedora",
        list: "lockdown,yama,integrity,selinux,bpf,landlock,ipe",
    },
    Shipped {
        distribution: "RHEL 9 and what is built from it",
        list: "lockdown,yama,integrity,selinux,bpf",
    },
    // redhat/configs/common/generic/CONFIG_LSM in the kernel sources that Rocky Linux publishes (ctrliq/kernel-src-tree); RHEL
    // itself was not booted.
    Shipped {
        distribution: "RHEL 10 and what is built from it",
        list: "landlock,lockdown,yama,integrity,selinux,bpf",
    },
    Shipped {
        distribution: "Arch",
        list: "landlock,lockdown,yama,integrity,bpf",
    },
    Shipped {
        distribution: "Amazon Linux 2023",
        list: "lockdown,yama,loadpin,safesetid,integrity,selinux,smack,tomoyo,apparmor,bpf",
    },
];

/// The way of an action from the question to each answer.
const SMALL: [&str; 3] = ["denied_at_once", "held_then_runs", "held_then_denied"];

/// What a boot with a list of security modules showed.
#[derive(Debug)]
pub struct Boot {
    distribution: &'static str,
    /// As given on the command line; empty: nothing was.
    list: String,
    /// `/sys/kernel/security/lsm`.
    active: String,
    /// The cases, where `bpf` is active.
    cases: Option<Cases>,
    /// What the agent's kernel side said where it is not.
    refusal: Option<String>,
}

impl Boot {
    /// Whether it went as it must: the cases pass, or the refusal names the remedy.
    pub fn well(&self) -> bool {
        match (&self.cases, &self.refusal) {
            (Some(cases), None) => cases.passed == SMALL.len() as u64 && cases.failed == 0,
            (None, Some(refusal)) => refusal.contains(&format!("lsm={},bpf", self.active)),
            _ => false,
        }
    }

    /// For people, in one line.
    pub fn line(&self) -> String {
        let what = match (&self.cases, &self.refusal) {
            (Some(cases), _) => format!("{} of {} cases passed", cases.passed, SMALL.len()),
            (None, Some(refusal)) => format!("refuses: {refusal}"),
            (None, None) => "nothing came".to_owned(),
        };
        format!("{} (active: {}): {what}", self.distribution, self.active)
    }
}

/// Boots with every list that distributions ship, and where `bpf` is missing once more with the remedy that is given.
///
/// # Errors
/// When a guest does not come up.
pub fn boots() -> Result<Vec<Boot>> {
    let helpers = Helpers::build()?;
    let mut boots = Vec::new();
    for shipped in &SHIPPED {
        let first = boot(shipped.distribution, shipped.list.to_owned(), &helpers.folder)?;
        run::progress(first.line());
        let remedy = first.refusal.is_some().then(|| format!("{},bpf", first.active));
        boots.push(first);
        if let Some(list) = remedy {
            let second = boot(shipped.distribution, list, &helpers.folder)?;
            run::progress(second.line());
            boots.push(second);
        }
    }
    Ok(boots)
}

fn boot(distribution: &'static str, list: String, helpers: &Path) -> Result<Boot> {
    let mut options = VmOptions::bare();
    options.lsm.clone_from(&list);
    options.snapshot = false;
    options.copy = vec![helpers.to_owned()];
    let vm = Vm::boot(&options).with_context(|| format!("a guest with lsm={list}"))?;
    let active = vm.run(&["cat", "/sys/kernel/security/lsm"])?.success()?.text();
    let mut boot = Boot {
        distribution,
        list,
        active,
        cases: None,
        refusal: None,
    };
    if boot.active.split(',').any(|name| name == "bpf") {
        boot.cases = Some(count(&command(&vm, options.kernel, 1, &SMALL, &[], false)?));
    } else {
        let probe = ["/mnt/copy/kernel-tests/hold_probe", "--label", "/sys/fs/cgroup"];
        let output = vm.run(&probe)?;
        if output.status == 0 {
            bail!("the kernel side started without `bpf` among the security modules: {output}");
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        boot.refusal = said.lines().last().map(str::to_owned);
    }
    Ok(boot)
}

const BEGIN: &str = "<!-- from here: written by cargo xtask kernels; do not edit -->";
const END: &str = "<!-- to here -->";

/// Puts the results into docs/kernel-support.md, between its marks.
///
/// # Errors
/// When the document has no marks or cannot be written.
pub fn document(reports: &[Report], boots: &[Boot]) -> Result<()> {
    let path = paths::repo().join("docs/kernel-support.md");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let (before, rest) = text.split_once(BEGIN).context("docs/kernel-support.md has no mark")?;
    let (_, after) = rest.split_once(END).context("docs/kernel-support.md has no end mark")?;
    let results = results(reports, boots, &today()?, &commit()?)?;
    fs::write(&path, format!("{before}{BEGIN}\n\n{results}\n{END}{after}"))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// The date, as `2026-11-21`.
///
/// # Errors
/// When `date` cannot be run.
pub fn today() -> Result<String> {
    let text = run::output(Command::new("date").args(["-u", "+%Y-%m-%d"]))?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

/// The commit that was built, with a mark when files differ from it.
///
/// # Errors
/// When git cannot be run.
pub fn commit() -> Result<String> {
    let text = run::output(
        Command::new("git")
            .args(["describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"])
            .current_dir(paths::repo()),
    )?;
    Ok(String::from_utf8_lossy(&text).trim().to_owned())
}

fn results(reports: &[Report], boots: &[Boot], date: &str, commit: &str) -> Result<String> {
    let mut out = String::new();
    writeln!(out, "Run on {date}, commit {commit}.\n")?;
    writeln!(
        out,
        "| series | release | cases | passed | failed | skipped | proven with enforcement off | BPF programs | members found | absent on it |"
    )?;
    writeln!(
        out,
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"
    )?;
    let mut offsets: BTreeMap<String, Vec<(String, &str)>> = BTreeMap::new();
    for report in reports {
        let series = report.kernel.series;
        match &report.outcome {
            Outcome::Ran(cases) => {
                let fact = |name: &str| fact(&cases.facts, name).unwrap_or("?");
                let absent = fact("absent=").replace(['[', ']', '"'], "");
                writeln!(
                    out,
                    "| {series} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                    report.release,
                    cases.passed + cases.failed_on + cases.skipped,
                    cases.passed,
                    cases.failed,
                    cases.skipped,
                    cases.proven,
                    fact("programs="),
                    members(&cases.facts).len(),
                    if absent.is_empty() { "nothing" } else { &absent }
                )?;
                for (member, offset) in members(&cases.facts) {
                    offsets.entry(member).or_default().push((offset, series));
                }
            }
            Outcome::Gone => writeln!(out, "| {series} | skipped: gone from the archive | | | | | | | | |")?,
            Outcome::Broken(_) => writeln!(
                out,
                "| {series} | {} | could not be run | | | | | | | |",
                report.release
            )?,
        }
    }
    troubles(&mut out, reports)?;
    offsets.retain(|_, found| found.iter().map(|(offset, _)| offset).collect::<BTreeSet<_>>().len() > 1);
    if !offsets.is_empty() {
        let ran: Vec<&str> = reports
            .iter()
            .filter(|report| matches!(report.outcome, Outcome::Ran(_)))
            .map(|report| report.kernel.series)
            .collect();
        writeln!(
            out,
            "\nMembers of kernel structures that lie elsewhere from one series to another, in bytes as resolved at start:\n"
        )?;
        writeln!(out, "| member | {} |", ran.join(" | "))?;
        writeln!(out, "| --- |{}", " ---: |".repeat(ran.len()))?;
        for (member, found) in &offsets {
            let cell = |series: &&str| {
                let found = found.iter().find(|(_, of)| of == series);
                found.map_or("", |(offset, _)| offset.as_str())
            };
            let cells: Vec<&str> = ran.iter().map(cell).collect();
            writeln!(out, "| `{member}` | {} |", cells.join(" | "))?;
        }
    }
    if !boots.is_empty() {
        writeln!(
            out,
            "\nSecurity modules as distributions build their kernels (`CONFIG_LSM`), each given to a {} kernel as `lsm=`. Where `bpf` is missing, \
             the next row has the list that the refusal names.\n",
            Kernel::DEFAULT.series
        )?;
        writeln!(out, "| as in | `lsm=` | active | Guard |")?;
        writeln!(out, "| --- | --- | --- | --- |")?;
        for boot in boots {
            let list = if boot.list.is_empty() { "not given" } else { &boot.list };
            let what = match (&boot.cases, boot.well()) {
                (Some(cases), _) => format!("enforces: {} of {} cases passed", cases.passed, SMALL.len()),
                (None, true) => "refuses to start, and names the remedy".to_owned(),
                (None, false) => "refuses to start, **without the remedy**".to_owned(),
            };
            writeln!(
                out,
                "| {} | {} | {} | {what} |",
                boot.distribution,
                list.replace(',', ", "),
                boot.active.replace(',', ", ")
            )?;
        }
    }
    Ok(out)
}

fn troubles(out: &mut String, reports: &[Report]) -> Result<()> {
    let mut said: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for report in reports {
        if let Outcome::Ran(cases) = &report.outcome {
            for trouble in &cases.troubles {
                said.entry(trouble).or_default().push(report.kernel.series);
            }
        }
    }
    if !said.is_empty() {
        writeln!(out, "\nNot passed:\n")?;
        for (trouble, series) in said {
            writeln!(out, "- {}: {trouble}", series.join(", "))?;
        }
    }
    Ok(())
}

/// The value after `name` in what the probe said, up to the next space outside brackets.
fn fact<'a>(facts: &'a [String], name: &str) -> Option<&'a str> {
    let line = facts.iter().find(|line| line.starts_with("started "))?;
    let value = line.split_once(&format!(" {name}"))?.1;
    let mut deep = false;
    let end = value.find(|c| {
        deep = (deep || c == '[') && c != ']';
        c == ' ' && !deep
    });
    Some(&value[..end.unwrap_or(value.len())])
}

/// Names and values of `offsets Offsets { name: 1, … }`.
fn members(facts: &[String]) -> Vec<(String, String)> {
    let line = facts.iter().find_map(|line| line.strip_prefix("offsets "));
    line.unwrap_or_default()
        .split(['{', '}', ','])
        .filter_map(|part| part.split_once(": "))
        .map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()))
        .filter(|(_, value)| value.parse::<i64>().is_ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn report(series: &str, offset: u32) -> Report {
        Report {
            kernel: series.parse().unwrap(),
            release: format!("{series}.1"),
            outcome: Outcome::Ran(Cases {
                passed: 2,
                skipped: 1,
                proven: 1,
                troubles: vec!["skipped one: no io_uring".into()],
                facts: vec![
                    format!(r#"started kernel={series}.1 programs=14 absent=["a b", "c"] took_over=false"#),
                    format!("offsets Offsets {{ comm: {offset}, same: 8 }}"),
                ],
                ..Cases::default()
            }),
            time: Duration::ZERO,
        }
    }

    #[test]
    fn only_what_differs_and_what_was_said_is_written() {
        let mut reports = vec![report("6.1", 16), report("6.12", 24)];
        reports.push(Report {
            kernel: "7.2".parse().unwrap(),
            release: String::new(),
            outcome: Outcome::Gone,
            time: Duration::ZERO,
        });
        let text = results(&reports, &[], "2026-01-02", "abc").unwrap();
        assert!(
            text.contains("| 6.12 | 6.12.1 | 3 | 2 | 0 | 1 | 1 | 14 | 2 | a b, c |"),
            "{text}"
        );
        assert!(text.contains("| 7.2 | skipped: gone from the archive |"), "{text}");
        assert!(
            text.contains("| `comm` | 16 | 24 |") && !text.contains("`same`"),
            "{text}"
        );
        assert!(text.contains("- 6.1, 6.12: skipped one: no io_uring"), "{text}");
    }

    #[test]
    fn a_boot_without_bpf_is_well_when_the_remedy_is_named() {
        let mut boot = Boot {
            distribution: "Example",
            list: String::new(),
            active: "capability,yama".into(),
            cases: None,
            refusal: Some("add `bpf`, for example lsm=capability,yama,bpf, and reboot".into()),
        };
        assert!(boot.well());
        boot.refusal = Some("no".into());
        assert!(!boot.well());
    }

    #[test]
    fn the_document_has_its_marks() {
        let text = fs::read_to_string(paths::repo().join("docs/kernel-support.md")).unwrap();
        assert!(text.contains(BEGIN) && text.contains(END));
    }
}
