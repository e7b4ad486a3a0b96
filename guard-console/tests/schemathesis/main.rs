//! The document of the API in the hands of somebody else's tool: schemathesis calls a console that runs, with whatever the document
//! allows and with what it forbids. No answer may be a 5xx, and each has to be one that the document describes.
//!
//! `GUARD_SCHEMATHESIS` names the program (`cargo xtask setup` installs it). Without it the test is skipped, with the reason, and
//! counted. `GUARD_TEST_FULL=1` gives it ten minutes instead of one and a half.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

#[path = "../it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "shared with the other tests, which use the rest"
)]
mod support;

use std::io::Write as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use guard_console::config::RawLimits;
use libtest_mimic::{Arguments, Trial};
use serde_json::json;

use support::{Console, Question};

/// Those that tell of 5xx, and of answers that are not as the document says.
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,\
                      response_schema_conformance,unsupported_method,ignored_auth";
/// Streams and waits have no end that the tool would see; one export at a time is written, and 503 says so; and it learns names from
/// answers, so that it would soon end the key with which it calls.
const WITHOUT: [&str; 5] = [
    "streamEvents",
    "pollRequests",
    "exportEvidence",
    "disableUser",
    "revokeKey",
];

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let program = std::env::var_os("GUARD_SCHEMATHESIS").map(PathBuf::from);
    let missing = match &program {
        None => Some("GUARD_SCHEMATHESIS names no program; cargo xtask setup installs it".to_owned()),
        Some(program) if !program.is_file() => Some(format!("there is no {}", program.display())),
        Some(_) => None,
    };
    if let Some(why) = &missing {
        // Should standard output be closed, nobody reads it.
        let _ = writeln!(std::io::stdout(), "skipped: {why}");
    }
    let trial = Trial::test("no_call_is_a_server_error", move || {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
        runtime.block_on(no_call_is_a_server_error(program.unwrap_or_default()));
        Ok(())
    });
    libtest_mimic::run(&arguments, vec![trial.with_ignored_flag(missing.is_some())]).exit_code()
}

async fn no_call_is_a_server_error(program: PathBuf) {
    let (console, key) = furnished().await;
    let outside = tempfile::tempdir().unwrap();
    let ca = outside.path().join("ca.pem");
    std::fs::write(&ca, &console.ca).unwrap();
    let document = console.url("/api/v1/openapi.json");
    let (place, log) = (outside.path().to_owned(), outside.path().join("log"));
    let tool = console.person(Some(&key));
    let run = tokio::task::spawn_blocking(move || called(&program, &document, &ca, &key, &place, &log));
    let (passed, said) = run.await.unwrap();
    // How much it called. Should standard output be closed, nobody reads it.
    let summary = said
        .split_once("SUMMARY")
        .map_or(said.as_str(), |(_, summary)| summary.trim_matches(['=', ' ', '\n']));
    let _ = writeln!(std::io::stdout(), "{summary}");
    assert!(passed, "{said}");
    // It did call: who it was stands in what it changed.
    let changes = tool.list("/api/v1/changes?limit=200").await;
    assert!(changes.iter().any(|change| change["by"] == "tool"), "{said}");
}

/// Whether it is content, and what it said.
fn called(program: &Path, document: &str, ca: &Path, key: &str, place: &Path, log: &Path) -> (bool, String) {
    let seconds = if std::env::var_os("GUARD_TEST_FULL").is_some() {
        "600"
    } else {
        "90"
    };
    let output = std::fs::File::create(log).unwrap();
    let mut command = Command::new(program);
    command
        .current_dir(place)
        .args(["run", document, "--no-color", "--warnings", "off"])
        .args(["--phases", "examples,coverage,fuzzing", "--checks", CHECKS])
        .args(["--max-time", seconds, "--max-examples", "20", "--seed", "1"])
        .args(["--request-timeout", "60", "--suppress-health-check", "all"])
        .arg("--tls-verify")
        .arg(ca)
        .args(["-H", &format!("Authorization: Bearer {key}")])
        .stdout(output.try_clone().unwrap())
        .stderr(output);
    for operation in WITHOUT {
        command.args(["--exclude-operation-id", operation]);
    }
    let status = command.status().unwrap();
    (status.success(), std::fs::read_to_string(log).unwrap())
}

/// A console with something of everything, and a key that may do all that a program can.
async fn furnished() -> (Console, String) {
    let many = NonZeroU32::new(10_000_000);
    let limits = RawLimits {
        account: many,
        address: many,
        sign_in: many,
    };
    let console = Console::start_with(limits).await;
    let admin = console.set_up().await;
    let [ann] = console.approvers(&admin, ["ann"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    admin.give("coder", None).await;
    for verdict in ["approve", "deny", ""] {
        let (ask, sealed) = host.ask(&Question::new("coder", &["make", verdict]));
        session.ask(&ask).await;
        host.ship(&console, &[&sealed]).await;
        if !verdict.is_empty() {
            let (status, answered) = ann.answer(&ask.request_id, verdict, "as agreed").await;
            assert_eq!(status, 200, "{answered}");
            session.decision().await;
        }
    }
    let account = json!({"username": "tool", "roles": ["administrator", "operator", "auditor"]});
    assert_eq!(admin.post("/api/v1/service-accounts", &account).await.0, 200);
    let (status, key) = admin.post("/api/v1/keys", &json!({"account": "tool"})).await;
    assert_eq!(status, 200, "{key}");
    (console, key["secret"].as_str().unwrap().to_owned())
}
