//! End to end in a guest: agent, console and command line as they are installed.

mod answers;
mod cli;
mod evidence;
mod hold;
mod hosts;
mod labels;
mod policy;
mod refusals;
mod restarts;
mod show;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cases = [
        hold::cases(),
        hosts::cases(),
        answers::cases(),
        labels::cases(),
        policy::cases(),
        show::cases(),
        restarts::cases(),
        refusals::cases(),
        cli::cases(),
        evidence::cases(),
    ];
    guard_tests::main(guard_tests::VM, cases.into_iter().flatten().collect())
}
