//! One function per command: ask, judge, print, exit status.

mod access;
mod admin;
mod changes;
mod doctor;
mod evidence;
mod grants;
mod label;
mod login;
mod policy;
mod requests;
mod run;
mod status;
mod witness;

use std::process::ExitCode;

use clap::CommandFactory as _;

use crate::args::{Args, Command};
use crate::failure::Failure;
use crate::output;

pub(crate) use changes::mark;
pub(crate) use run::enter;

/// Runs the command that was given.
pub(crate) async fn run(args: Args) -> Result<ExitCode, Failure> {
    let Args { global, command } = args;
    match command {
        Command::Requests(command) => requests::run(&global, command).await,
        Command::Run(command) => run::run(command).await,
        Command::Enter(command) => enter(&command),
        Command::Label(command) => label::run(&global, command).await,
        Command::Policy(command) => policy::run(&global, &command),
        Command::Hosts(command) => admin::hosts(&global, command).await,
        Command::Tokens(command) => admin::tokens(&global, command).await,
        Command::Users(command) => admin::users(&global, command).await,
        Command::Sessions(command) => access::sessions(&global, command).await,
        Command::Grants(command) => grants::grants(&global, command).await,
        Command::Keys(command) => access::keys(&global, command).await,
        Command::Changes(command) => changes::changes(&global, command).await,
        Command::Alarms { limit } => changes::alarms(&global, limit).await,
        Command::Evidence(command) => evidence::run(&global, command).await,
        Command::Witness(command) => witness::run(&global, command).await,
        Command::Doctor => doctor::run(&global),
        Command::Status => status::run(&global).await,
        Command::Login(command) => login::login(&global, command).await,
        Command::Logout => login::logout(&global).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Args::command(), "guard", &mut script);
            output::raw(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Man { dir } => {
            std::fs::create_dir_all(&dir)
                .and_then(|()| clap_mangen::generate_to(Args::command(), &dir))
                .map_err(|e| Failure::unknown(format!("{}: {e}", dir.display())))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
