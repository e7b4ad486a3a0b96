//! The command line of xtask.
#![forbid(unsafe_code)]

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use xtask::bench::{BenchOptions, Part};
use xtask::build::{self, Profile};
use xtask::fuzz::FuzzOptions;
use xtask::run;
use xtask::test::TestOptions;
use xtask::vm::{Kernel, Vm, VmOptions, guard, relay};

/// Builds, tests and shows Guard.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    /// Say on standard error what goes on, also when it is no terminal.
    #[arg(long, short, global = true)]
    verbose: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building and testing needs: Debian packages and bpf-linker.
    Setup,
    /// Build the BPF object and the programs.
    Build {
        /// Optimised, as shipped; otherwise the quick profile that the tests use.
        #[arg(long)]
        release: bool,
        /// Only the BPF object.
        #[arg(long, conflicts_with = "release")]
        bpf: bool,
    },
    /// Build what is shipped and install it where a package would; starts nothing.
    Install {
        /// Below this directory instead of on this machine.
        #[arg(long, value_name = "DIR", default_value = "/")]
        root: PathBuf,
        /// The quick profile that the tests use instead of the optimised one.
        #[arg(long)]
        dev: bool,
    },
    /// Run every check; the last line is `N passed, N failed, N skipped`.
    Test {
        /// Also the long ones.
        #[arg(long)]
        full: bool,
        /// Kernel series of the kernel cases: 6.1, 6.12, 6.18, 7.2 or newest (may be given several times); otherwise every series.
        /// A single one is that of the end-to-end guests too.
        #[arg(long = "kernel", value_name = "KERNEL")]
        kernels: Vec<Kernel>,
        /// Steps, by name or its beginning: only those. Other words: only the tests whose name contains one of them.
        #[arg(value_name = "STEP|WORD")]
        names: Vec<String>,
    },
    /// Run the kernel cases on every kernel series, boot with the security modules of distributions, and write docs/kernel-support.md.
    Kernels,
    /// Hold a labelled agent in a virtual machine and let a person answer; show what happened and its evidence.
    Demo {
        /// Answer by itself as a second identity, and check everything.
        #[arg(long)]
        auto: bool,
    },
    /// Measure Guard in virtual machines and write docs/measurements.md.
    Bench {
        /// Fewer repetitions.
        #[arg(long)]
        quick: bool,
        /// Evidence: a log of ten million records too, which takes gigabytes of disk.
        #[arg(long, conflicts_with = "quick")]
        full: bool,
        /// The agent as it is shipped (building it takes minutes); otherwise the quick profile that the tests use.
        #[arg(long)]
        release: bool,
        /// Only: the time from a clean clone to the end of `demo --auto`.
        #[arg(long, conflicts_with_all = ["quick", "full", "release", "parts"])]
        from_clone: bool,
        /// Only these parts; none: all.
        parts: Vec<Part>,
    },
    /// Feed the parsers of every boundary with inputs that are mutated towards new code, for a bounded time.
    Fuzz {
        /// For each target.
        #[arg(long, value_name = "N", default_value_t = 60)]
        seconds: u64,
        /// Without names: only the targets that build in a minute.
        #[arg(long, conflicts_with = "targets")]
        quick: bool,
        /// Run one input of one target once instead: what a finding says under `again`.
        #[arg(long, value_name = "FILE", requires = "targets")]
        input: Option<PathBuf>,
        /// Only these; none: all.
        #[arg(value_name = "TARGET")]
        targets: Vec<String>,
    },
    /// Run a command in a virtual machine.
    Vm(Box<VmArgs>),
}

/// Exit status when the machinery itself fails, so that it is told from the command's own.
const BROKEN: u8 = 3;

#[derive(Args)]
#[command(
    after_help = "The command's output is the only output; its status is the exit status.\n\
    3 means that the machine itself failed and no status arrived.\n\
    A single argument is a line for bash; several are a program and its arguments."
)]
struct VmArgs {
    /// Kernel series: 6.1, 6.12, 6.18, 7.2, or newest: the highest that the archive has.
    #[arg(long, default_value = Kernel::DEFAULT.series)]
    kernel: Kernel,
    /// Put a file or directory into /mnt/copy (may be given several times).
    #[arg(long, value_name = "PATH")]
    copy: Vec<PathBuf>,
    /// Only the kernel, a small init and the copied files: no Guard, no systemd.
    #[arg(long)]
    bare: bool,
    /// With --bare: boot systemd.
    #[arg(long, requires = "bare")]
    systemd: bool,
    /// Enrol with a console elsewhere instead of one in the guest: HOST:PORT of its API for hosts, as the guest reaches it.
    #[arg(long, value_name = "ADDRESS", requires = "token_file", conflicts_with = "bare")]
    console: Option<String>,
    /// With --console: a file with an enrolment token of that console.
    #[arg(long, value_name = "FILE", requires = "console")]
    token_file: Option<PathBuf>,
    /// Virtual CPUs.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    cpus: u32,
    /// Memory in MiB.
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u32).range(256..=65536))]
    memory: Option<u32>,
    /// One CPU whose clock counts instructions: for measuring.
    #[arg(long)]
    icount: bool,
    /// Security modules of the kernel command line.
    #[arg(long, value_name = "LIST")]
    lsm: Option<String>,
    /// Boot from the beginning instead of restoring a saved state.
    #[arg(long)]
    no_snapshot: bool,
    /// Let the guest reach the network of this machine (its loopback is 10.0.2.2).
    #[arg(long)]
    network: bool,
    /// Make a port of the guest reachable at 127.0.0.1 of this machine.
    #[arg(long, value_name = "HOSTPORT:GUESTPORT", value_parser = ports)]
    forward: Vec<(u16, u16)>,
    /// Keep the machine running after the command until interrupted.
    #[arg(long)]
    keep_running: bool,
    /// Show the guest's console (kernel and init) at the end.
    #[arg(long)]
    show_console: bool,
    /// The command and its arguments.
    #[arg(last = true, required_unless_present = "keep_running", value_name = "COMMAND")]
    command: Vec<String>,
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let parse = |part: &str| part.parse::<u16>().ok().filter(|port| *port != 0);
    text.split_once(':')
        .and_then(|(host, guest)| Some((parse(host)?, parse(guest)?)))
        .ok_or_else(|| format!("{text:?} is not HOSTPORT:GUESTPORT, for example 8443:8443"))
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    run::set_progress(cli.verbose);
    let result = match cli.command {
        Command::Setup => asked(xtask::setup::setup),
        Command::Build { bpf: true, .. } => asked(|| build::bpf().map(drop)),
        Command::Build { release, .. } => asked(|| build(release)),
        Command::Install { root, dev } => {
            asked(|| xtask::install::install(&root, if dev { Profile::Dev } else { Profile::Release }))
        }
        Command::Test { full, kernels, names } => test(&TestOptions { full, kernels, names }),
        Command::Kernels => kernels(),
        Command::Demo { auto } => demo(auto),
        Command::Bench {
            quick,
            full,
            release,
            from_clone,
            parts,
        } => asked(|| {
            let options = BenchOptions {
                quick,
                full,
                release,
                from_clone,
                parts,
            };
            run::say(format!("{} is written", xtask::bench::bench(&options)?.display()));
            Ok(())
        }),
        Command::Fuzz {
            seconds,
            quick,
            input,
            targets,
        } => fuzz(&FuzzOptions {
            seconds,
            targets,
            quick,
            input,
        }),
        Command::Vm(args) => vm(&args),
    };
    result.unwrap_or_else(|error| {
        fail(&error);
        ExitCode::from(BROKEN)
    })
}

#[expect(clippy::print_stderr, reason = "errors of the command itself go to standard error")]
fn fail(error: &anyhow::Error) {
    eprintln!("xtask: {error:#}");
}

/// Runs something whose progress is what was asked for; a failure is status 1.
fn asked(action: impl FnOnce() -> Result<()>) -> Result<ExitCode> {
    run::set_progress(true);
    Ok(match action() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            fail(&error);
            ExitCode::FAILURE
        }
    })
}

fn test(options: &TestOptions) -> Result<ExitCode> {
    run::set_progress(true);
    Ok(if xtask::test::test(options)? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn kernels() -> Result<ExitCode> {
    run::set_progress(true);
    Ok(if xtask::test::kernel_support()? {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn build(release: bool) -> Result<()> {
    let dir = build::all(if release { Profile::Release } else { Profile::Dev })?;
    run::say(format!("{} are in {}", build::PROGRAMS.join(", "), dir.display()));
    Ok(())
}

fn fuzz(options: &FuzzOptions) -> Result<ExitCode> {
    run::set_progress(true);
    let results = xtask::fuzz::fuzz(options)?;
    write!(std::io::stdout(), "{}", xtask::fuzz::report(&results))?;
    Ok(if results.iter().all(|ran| ran.finding.is_none()) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn demo(auto: bool) -> Result<ExitCode> {
    run::set_progress(true);
    xtask::setup::setup()?;
    Ok(ExitCode::from(xtask::demo::run(auto)?))
}

fn vm(args: &VmArgs) -> Result<ExitCode> {
    let vm = if args.bare {
        let mut options = if args.systemd {
            VmOptions::systemd()
        } else {
            VmOptions::bare()
        };
        apply(args, &mut options);
        Vm::boot(&options)?
    } else if let (Some(address), Some(file)) = (&args.console, &args.token_file) {
        let token = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        guard::boot_for_console(|options| apply(args, options), address, &token)?
    } else {
        guard::boot(|options| apply(args, options))?
    };
    for &(host, guest) in &args.forward {
        vm.forward(host, guest)?;
    }
    let status = run_command(&vm, &args.command)?;
    if args.keep_running {
        run::progress("the machine keeps running: interrupt (Ctrl-C) to end it");
        vm.wait();
    }
    if args.show_console {
        run::say(format!("console of the guest:\n{}", vm.console_log()));
    }
    Ok(ExitCode::from(u8::try_from(status).unwrap_or(BROKEN)))
}

fn apply(args: &VmArgs, options: &mut VmOptions<'_>) {
    options.kernel = args.kernel;
    options.cpus = args.cpus;
    options.icount = args.icount;
    options.snapshot = !args.no_snapshot;
    options.network = args.network;
    options.copy.clone_from(&args.copy);
    if let Some(memory) = args.memory {
        options.memory = memory;
    }
    if let Some(lsm) = &args.lsm {
        options.lsm.clone_from(lsm);
    }
}

fn run_command(vm: &Vm, command: &[String]) -> Result<i32> {
    let mut argv: Vec<&str> = command.iter().map(String::as_str).collect();
    if argv.is_empty() {
        return Ok(0);
    }
    if argv.len() == 1 {
        argv.splice(0..0, ["bash", "-c"]);
    }
    // Like ssh, but never takes a person's keyboard.
    relay(vm, &argv, &[], !std::io::stdin().is_terminal())
}
