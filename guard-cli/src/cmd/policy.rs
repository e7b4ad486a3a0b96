//! `guard policy`: checking, testing and explaining policy files, and putting one into force.
//!
//! Owns what is asked of a policy on a command line. It is given files, or what is in force on this host. It must never say of a
//! policy that does not parse what it would do.

mod apply;
mod explain;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use guard_evidence::text::visible;
use guard_policy::diff::{self, Change};
use guard_policy::suite::Suite;
use guard_policy::{POLICY_BYTES, Policy, RuleView};
use guard_proto::control::{ControlReply, ControlRequest};
use serde_json::json;

use crate::args::{self, Global, Output};
use crate::failure::{Failure, NO};
use crate::{output, socket};

pub(super) fn run(global: &Global, command: &args::Policy) -> Result<ExitCode, Failure> {
    match command {
        args::Policy::Validate { file } => validate(global, file),
        args::Policy::Test { file, tests } => test(global, file, tests),
        args::Policy::Explain { policy, label, action } => explain::run(global, policy.as_deref(), label, action),
        args::Policy::Diff { files } => difference(global, files),
        args::Policy::Apply { file } => apply::run(global, file),
    }
}

fn read(file: &Path) -> Result<String, Failure> {
    let named = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", name(file)));
    let size = std::fs::metadata(file).map_err(|e| named(&e))?.len();
    if size > POLICY_BYTES as u64 {
        return Err(named(&format!(
            "{size} bytes are more than the {POLICY_BYTES} that a policy may have"
        )));
    }
    std::fs::read_to_string(file).map_err(|e| named(&e))
}

fn name(file: &Path) -> String {
    visible(&file.to_string_lossy())
}

fn parse(text: &str, name: &str) -> Result<Policy, Failure> {
    guard_policy::parse(text, name).map_err(|error| Failure::no(error.to_string()))
}

fn load(file: &Path) -> Result<Policy, Failure> {
    parse(&read(file)?, &name(file))
}

/// The policy that this host's agent has in force.
fn in_force() -> Result<Policy, Failure> {
    match socket::ask(&ControlRequest::PolicyText {})? {
        ControlReply::Policy { text } => parse(&text, "the policy in force"),
        _ => Err(socket::unexpected()),
    }
}

fn validate(global: &Global, file: &Path) -> Result<ExitCode, Failure> {
    let policy = load(file)?;
    match global.output {
        Output::Json => output::json(
            &json!({ "file": file, "valid": true, "rules": policy.count, "digest": policy.digest }),
            false,
        )?,
        Output::Table => output::line(&format!("{} is valid: {}", name(file), rules(policy.count)))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn rules(count: u32) -> String {
    match count {
        1 => "1 rule".to_owned(),
        count => format!("{count} rules"),
    }
}

fn test(global: &Global, file: &Path, suites: &[PathBuf]) -> Result<ExitCode, Failure> {
    let policy = load(file)?;
    let mut results = Vec::new();
    for path in suites {
        let named = |error: &dyn std::fmt::Display| Failure::usage(format!("{}: {error}", name(path)));
        let text = std::fs::read_to_string(path).map_err(|e| named(&e))?;
        for test in Suite::parse(&text).map_err(|e| named(&e))?.tests {
            results.push((path, test.run(&policy), test.name));
        }
    }
    let failed = results.iter().filter(|(_, result, _)| result.is_err()).count();
    match global.output {
        Output::Json => {
            let items: Vec<_> = results
                .iter()
                .map(|(path, result, name)| {
                    json!({ "file": path, "name": name, "passed": result.is_ok(), "because": result.as_ref().err() })
                })
                .collect();
            output::json(
                &json!({ "items": items, "failed": failed, "passed": results.len() - failed }),
                false,
            )?;
        }
        Output::Table => {
            for (_, result, name) in &results {
                output::line(&match result {
                    Ok(()) => format!("ok      {}", visible(name)),
                    Err(because) => {
                        format!(
                            "{}  {}: {}",
                            output::styled(output::RED, "FAILED"),
                            visible(name),
                            visible(because)
                        )
                    }
                })?;
            }
            output::line(&format!("{} passed, {failed} failed", results.len() - failed))?;
        }
    }
    Ok(if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NO)
    })
}

fn difference(global: &Global, files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let (before, after) = match files {
        [new] => (in_force()?, load(new)?),
        [old, new] => (load(old)?, load(new)?),
        _ => return Err(Failure::usage("one file, or two")),
    };
    let changes = diff::diff(&before, &after);
    match global.output {
        Output::Json => output::json(
            &json!({ "before": before.digest, "after": after.digest, "changes": changes.iter().map(change_json).collect::<Vec<_>>() }),
            false,
        )?,
        Output::Table if changes.is_empty() => output::line("the same rules")?,
        Output::Table => {
            for change in &changes {
                shown(change)?;
            }
        }
    }
    Ok(if changes.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(NO)
    })
}

fn effect(rule: &RuleView) -> &'static str {
    if rule.permits { "permit" } else { "forbid" }
}

fn change_json(change: &Change) -> serde_json::Value {
    let rule = |rule: &RuleView| json!({ "effect": effect(rule), "description": rule.description, "line": rule.line, "text": rule.source });
    match change {
        Change::Added(after) => json!({ "id": after.id, "change": "added", "after": rule(after) }),
        Change::Removed(before) => json!({ "id": before.id, "change": "removed", "before": rule(before) }),
        Change::Changed { before, after } => {
            json!({ "id": after.id, "change": "changed", "before": rule(before), "after": rule(after) })
        }
    }
}

fn shown(change: &Change) -> Result<(), Failure> {
    let heading = |sign: &str, rule: &RuleView| {
        let title = format!("{sign} {} {}", effect(rule), visible(&rule.id));
        output::line(&format!(
            "{}  {}",
            output::styled(output::BOLD, &title),
            visible(&rule.description)
        ))
    };
    let body = |sign: &str, rule: &RuleView| {
        rule.source
            .lines()
            .try_for_each(|line| output::line(&format!("    {sign} {}", visible(line))))
    };
    match change {
        Change::Added(rule) => heading("+", rule).and_then(|()| body("+", rule)),
        Change::Removed(rule) => heading("-", rule).and_then(|()| body("-", rule)),
        Change::Changed { before, after } => {
            heading("~", after)?;
            body("-", before)?;
            body("+", after)
        }
    }
}
