//! `guard-console`: the command line of the console.
#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use guard_console::Server;
use guard_console::config::{self, Config, RawConfig, RawLog};
use guard_console::data_dir::{DATABASE_FILE, DataDir, Readers};
use guard_console::store::Store;
use tracing_subscriber::EnvFilter;

const CONFIG_FILE: &str = "/etc/guard/console.toml";

/// The central console of Guard: people approve here what held workloads want to do.
#[derive(Debug, Parser)]
#[command(
    version,
    propagate_version = true,
    after_help = "\
First start:
  guard-console serve --name console.example.org
  cat /var/lib/guard-console/setup-link     # open this link to make the first administrator

The console's certificate authority is ca.pem in the data directory; give it to `guard login --ca`.
Logs go to standard error; RUST_LOG=debug shows more."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve people and hosts (HTTPS and gRPC) until stopped
    Serve(Serve),
    /// Bring the database's schema up to date and say what was done (`serve` does this too)
    Migrate(Data),
    /// Copy database and keys, consistently and while the console runs, to a new directory
    Backup(Backup),
}

#[derive(Debug, Args)]
struct Data {
    /// Where database and keys are; made with mode 0700 when missing [default: /var/lib/guard-console]
    #[arg(long, env = "GUARD_CONSOLE_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file; everything on the command line wins over it [default: /etc/guard/console.toml, if there is one]
    #[arg(long, env = "GUARD_CONSOLE_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Serve {
    #[command(flatten)]
    data: Data,
    /// Address and port of the page and REST API [default: [::]:8443]
    #[arg(long, env = "GUARD_CONSOLE_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Address and port of the API for hosts (gRPC, mutual TLS) [default: [::]:8444]
    #[arg(long, env = "GUARD_CONSOLE_LISTEN_HOSTS", value_name = "ADDRESS:PORT")]
    listen_hosts: Option<SocketAddr>,
    /// Host name or address by which people and hosts reach this console; repeatable. The first one stands in links.
    /// The machine's own name, localhost, 127.0.0.1 and ::1 are added
    #[arg(
        long = "name",
        env = "GUARD_CONSOLE_NAMES",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    names: Vec<String>,
    /// HOST:PORT of the API for hosts, as enrolment tokens say it [default: first name and port of --listen-hosts]
    #[arg(long, env = "GUARD_CONSOLE_ADVERTISE", value_name = "HOST:PORT")]
    advertise: Option<String>,
}

#[derive(Debug, Args)]
struct Backup {
    #[command(flatten)]
    data: Data,
    /// Directory to make; it must not exist. To restore, serve with it as --data-dir
    to: PathBuf,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    let run = async {
        match cli.command {
            Command::Serve(args) => serve(args).await,
            Command::Migrate(args) => migrate(&args).await,
            Command::Backup(args) => backup(&args).await,
        }
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&error.into()),
    };
    match runtime.block_on(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the last word of a command line")]
fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("guard-console: {error:#}");
    ExitCode::FAILURE
}

fn raw(data: &Data) -> anyhow::Result<RawConfig> {
    match &data.config {
        Some(path) => Ok(config::read(path)?),
        None if std::path::Path::new(CONFIG_FILE).exists() => Ok(config::read(CONFIG_FILE.as_ref())?),
        None => Ok(RawConfig::default()),
    }
}

fn resolved(data: &Data, typed: RawConfig) -> anyhow::Result<Config> {
    let typed = RawConfig {
        data_dir: data.data_dir.clone(),
        ..typed
    };
    let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned());
    Ok(raw(data)?.overridden_by(typed).resolve(hostname)?)
}

async fn serve(args: Serve) -> anyhow::Result<()> {
    let typed = RawConfig {
        data_dir: None,
        listen: args.listen,
        listen_hosts: args.listen_hosts,
        names: args.names,
        advertise: args.advertise,
        log: RawLog::default(),
        oidc: Vec::new(),
        limits: config::RawLimits::default(),
    };
    let config = resolved(&args.data, typed)?;
    let server = Server::start(config).await?;
    sd_notify::notify(&[sd_notify::NotifyState::Ready]).context("cannot tell systemd that the console is ready")?;
    stop_signal().await?;
    tracing::info!("stopping");
    sd_notify::notify(&[sd_notify::NotifyState::Stopping]).context("cannot tell systemd that the console stops")?;
    server.stop().await;
    Ok(())
}

async fn stop_signal() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for signals")?;
    tokio::select! {
        result = tokio::signal::ctrl_c() => result.context("cannot wait for signals"),
        _ = terminate.recv() => Ok(()),
    }
}

#[expect(clippy::print_stdout, reason = "the command's output")]
async fn migrate(args: &Data) -> anyhow::Result<()> {
    let config = resolved(args, RawConfig::default())?;
    let dir = DataDir::open_or_create(&config.data_dir)?;
    dir.make_private(DATABASE_FILE)?;
    let (store, applied) = Store::open(&dir.database()).await?;
    store.close().await;
    if applied.is_empty() {
        println!("{}: nothing to do", dir.database().display());
    }
    for migration in applied {
        println!(
            "{}: ran migration {} ({})",
            dir.database().display(),
            migration.version,
            migration.name
        );
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's output")]
async fn backup(args: &Backup) -> anyhow::Result<()> {
    let config = resolved(&args.data, RawConfig::default())?;
    let from = DataDir::open(&config.data_dir)?;
    anyhow::ensure!(
        !args.to.exists(),
        "{} exists already; name a directory that does not",
        args.to.display()
    );
    let to = DataDir::open_or_create(&args.to)?;
    for (name, readers) in guard_console::data_dir::KEPT_FILES {
        if let Some(bytes) = from.read(name)? {
            to.write(name, *readers, &bytes)?;
        }
    }
    let store = Store::open_existing(&from.database()).await?;
    store.copy_to(&to.database()).await?;
    store.close().await;
    to.sync(Readers::Owner, &to.database())?;
    println!(
        "copied {} to {}; keep it as secret as the original",
        from.root().display(),
        to.root().display()
    );
    Ok(())
}
