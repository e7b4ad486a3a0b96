//! `guard-agent`: run, enrol, status.
//!
//! Owns the command line, the order of the start and the exit status. It is given arguments. It must never print a
//! secret, and never say that it enforces before it does.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use guard_agent::config::{Config, DEFAULT_PATH};
use guard_agent::{daemon, enroll, logging, status};

/// Holds what labelled workloads do until people have agreed.
#[derive(Debug, Parser)]
#[command(name = "guard-agent", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Enforce on this host until stopped. What is in force stays so when it stops.
    Run(Common),
    /// Join a console with a token from `guard tokens create`.
    #[command(
        after_help = "The token is read from the file or from standard input, never from the command line:\n  \
                      guard tokens create | guard-agent enroll"
    )]
    Enroll {
        #[command(flatten)]
        common: Common,
        /// File with the token; standard input when left out or `-`.
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// Enrol a host again that is enrolled already, with new keys; the old ones are kept beside.
        #[arg(long)]
        force: bool,
    },
    /// Replace the key that signs this host's evidence, by the running agent. Only for root.
    #[command(
        after_help = "The old key names the new one in a signed record, and the console believes that: nothing is to be done \
                      there. The new key signs from the moment when the console holds the record."
    )]
    RotateKey(Common),
    /// Ask the running agent how it is.
    Status {
        #[command(flatten)]
        common: Common,
        /// `text` or `json`.
        #[arg(short, long, value_name = "FORMAT", default_value = "text")]
        output: status::Format,
    },
}

#[derive(Debug, Args)]
struct Common {
    /// Configuration.
    #[arg(long, value_name = "FILE", help = format!("Configuration file [default: {DEFAULT_PATH}, if it is there]"))]
    config: Option<PathBuf>,
}

impl Common {
    fn load(&self) -> Result<Config, String> {
        Config::load(self.config.as_deref()).map_err(|e| e.to_string())
    }
}

/// The command line was right, the work failed.
const FAILED: u8 = 1;
/// This machine cannot enforce; `guard doctor` says why.
const CANNOT_ENFORCE: u8 = 3;

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err((code, message)) => {
            // The logs may go elsewhere; the terminal gets the reason in any case.
            let _ = writeln!(std::io::stderr(), "guard-agent: {message}");
            ExitCode::from(code)
        }
    }
}

fn run(command: Command) -> Result<(), (u8, String)> {
    let failed = |message: String| (FAILED, message);
    match command {
        Command::Run(common) => {
            let config = common.load().map_err(failed)?;
            let _logs = logging::start(config.log);
            daemon::run(config).map_err(|error| {
                let code = if matches!(error, daemon::DaemonError::Kernel(_)) {
                    CANNOT_ENFORCE
                } else {
                    FAILED
                };
                (code, error.to_string())
            })
        }
        Command::Enroll {
            common,
            token_file,
            force,
        } => {
            let config = common.load().map_err(failed)?;
            let token = enroll::read_token(token_file.as_deref()).map_err(|e| failed(e.to_string()))?;
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(|e| failed(format!("cannot start: {e}")))?;
            let enrolled = runtime
                .block_on(enroll::enroll(&config.state_dir, &token, force, config.key))
                .map_err(|e| failed(e.to_string()))?;
            let mut out = std::io::stdout().lock();
            let _ = writeln!(
                out,
                "enrolled as {} (host {}) at {}",
                enrolled.hostname, enrolled.host_id, enrolled.address
            );
            let _ = writeln!(out, "  → systemctl restart guard-agent, so that it asks there");
            Ok(())
        }
        Command::RotateKey(common) => {
            let config = common.load().map_err(failed)?;
            let mut out = std::io::stdout().lock();
            status::rotate_key(&config.socket, &mut out).map_err(failed)
        }
        Command::Status { common, output } => {
            let config = common.load().map_err(failed)?;
            let mut out = std::io::stdout().lock();
            status::print(&config.socket, output, &mut out).map_err(failed)
        }
    }
}
