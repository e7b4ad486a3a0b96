//! End to end in a guest: agent, console and command line as they are installed.

mod alive;
mod answers;
mod away;
mod changes;
mod cli;
mod egress;
mod enforced;
mod evidence;
mod files;
mod hold;
mod hosts;
mod labels;
mod policy;
mod refusals;
mod restarts;
mod show;
mod terminal;
mod theft;

use std::process::ExitCode;

fn main() -> ExitCode {
    let cases = [
        hold::cases(),
        hosts::cases(),
        answers::cases(),
        alive::cases(),
        away::cases(),
        enforced::cases(),
        changes::cases(),
        labels::cases(),
        policy::cases(),
        egress::cases(),
        files::cases(),
        show::cases(),
        terminal::cases(),
        restarts::cases(),
        refusals::cases(),
        cli::cases(),
        evidence::cases(),
        theft::cases(),
    ];
    guard_tests::main(guard_tests::VM, cases.into_iter().flatten().collect())
}
