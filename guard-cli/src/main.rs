//! The `guard` command: what operators, approvers and auditors type.
//!
//! Owns the command line and what it prints. It is given arguments, saved sign-ins, a console and an agent. It must
//! never print what a workload wrote except through `guard_evidence::text`, nor take a secret from an argument.
#![forbid(unsafe_code)]

mod args;
mod card;
mod client;
mod cmd;
mod failure;
mod output;
mod profile;
mod report;
mod secret;
mod socket;
mod sse;
mod tls;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;

use crate::args::{Args, Command};

fn main() -> ExitCode {
    let args = Args::parse();
    let result = match &args.command {
        // Becomes another program: nothing of ours runs beside it.
        Command::Enter(command) => cmd::enter(command),
        _ => match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime.block_on(cmd::run(args)),
            Err(e) => Err(failure::Failure::unknown(format!("cannot start: {e}"))),
        },
    };
    match result {
        Ok(code) => code,
        Err(failure) => {
            // Nowhere left to say that standard error is closed.
            writeln!(anstream::stderr(), "{failure}").ok();
            ExitCode::from(failure.code())
        }
    }
}
