//! Signing in by an identity provider that we did not write: npm `oidc-provider`, run by node on loopback.
//!
//! `GUARD_OIDC_MODULES` names a `node_modules` directory that has it (`cargo xtask setup` makes one). What is not there is
//! skipped, with the reason, and counted.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod browser;
mod cases;
mod provider;
#[path = "../it/support/mod.rs"]
#[expect(
    dead_code,
    unused_imports,
    reason = "shared with the other tests, which use the rest"
)]
mod support;

use std::future::Future;
use std::io::Write as _;
use std::pin::Pin;
use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Trial};

type Case = (&'static str, fn() -> Pin<Box<dyn Future<Output = ()>>>);

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .init();
    }
    let missing = missing();
    if let Some(why) = &missing {
        // Should standard output be closed, nobody reads it.
        let _ = writeln!(std::io::stdout(), "skipped: {why}");
    }
    let trial = |(name, case): Case| {
        Trial::test(name, move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
            runtime.block_on(case());
            Ok(())
        })
        .with_ignored_flag(missing.is_some())
    };
    libtest_mimic::run(&arguments, cases::all().into_iter().map(trial).collect()).exit_code()
}

/// Why there is no provider to talk to.
fn missing() -> Option<String> {
    let node = Command::new("node").arg("--version").output();
    if !node.is_ok_and(|out| out.status.success()) {
        return Some("there is no node (nodejs.org, 20 or newer, with npm)".to_owned());
    }
    match std::env::var_os("GUARD_OIDC_MODULES") {
        None => Some("GUARD_OIDC_MODULES names no node_modules directory; cargo xtask setup makes one".to_owned()),
        Some(dir) if !std::path::Path::new(&dir).join("oidc-provider").is_dir() => {
            Some(format!("{} has no oidc-provider", dir.display()))
        }
        Some(_) => None,
    }
}
