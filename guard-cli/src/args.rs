//! The command line.
//!
//! Owns names, help texts and defaults of commands and options. It is given nothing and must never read a file: what
//! an argument means is decided in `cmd`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use guard_proto::rest::{RequestState, Role};

/// See, approve and prove what AI agents do on your hosts.
#[derive(Debug, Parser)]
#[command(
    name = "guard",
    version,
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Exit status: 0 good · 1 the answer is no (denied, refused, invalid) · 2 wrong usage · 3 cannot tell (unreachable, incomplete).\n\
                  `guard run` ends with the exit status of its command."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Global {
    /// How to print: a table for people or JSON for programs.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table, value_name = "FORMAT")]
    pub(crate) output: Output,
    /// Which saved sign-in to use, when one shell holds several.
    #[arg(
        long = "as",
        global = true,
        env = "GUARD_PROFILE",
        default_value = "default",
        value_name = "NAME"
    )]
    pub(crate) profile: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What agents ask for: list, show, watch, approve, deny.
    #[command(subcommand)]
    Requests(Requests),
    /// Run a command as a labelled workload on this host.
    Run(Run),
    #[command(name = "__enter", hide = true)]
    Enter(Enter),
    /// Labels of workloads: on this host, and their owners in the console.
    #[command(subcommand)]
    Label(Label),
    /// Policies of this host.
    #[command(subcommand)]
    Policy(Policy),
    /// Enrolled hosts.
    #[command(subcommand)]
    Hosts(Hosts),
    /// Single-use tokens that let a host join.
    #[command(subcommand)]
    Tokens(Tokens),
    /// People who may sign in to the console.
    #[command(subcommand)]
    Users(Users),
    /// Who is signed in: your own sessions, or everybody's.
    #[command(subcommand)]
    Sessions(Sessions),
    /// What is answered without asking again, and until when.
    #[command(subcommand)]
    Grants(Grants),
    /// Keys with which programs act as service accounts.
    #[command(subcommand)]
    Keys(Keys),
    /// Who changed who may decide: people, roles, groups, labels, owners, tokens and hosts.
    Changes(Changes),
    /// What does not fit: attempts at theft, mismatches, gaps in evidence and enforcement.
    Alarms {
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
        limit: u16,
    },
    /// Signed records: list, show, export, verify.
    #[command(subcommand)]
    Evidence(Evidence),
    /// Watch a console's log from elsewhere and sign that it never changes.
    #[command(subcommand)]
    Witness(Witness),
    /// Whether this host can hold actions, and what to change if not.
    Doctor,
    /// How the agent on this host and the console are.
    Status,
    /// Sign in to a console.
    Login(Login),
    /// End the saved sign-in.
    Logout,
    /// Print completions for a shell.
    Completions {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a folder.
    Man { dir: PathBuf },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Requests {
    /// Requests, the waiting ones first (oldest first), then those that ended (newest first).
    List(RequestsList),
    /// One request as its card.
    Show {
        /// Its id, or the beginning or end of one that is listed.
        id: String,
    },
    /// Print requests as they come and change, until interrupted.
    Watch {
        #[arg(long)]
        label: Option<String>,
        #[arg(long)]
        host: Option<String>,
    },
    /// Let the held action go on.
    Approve {
        id: String,
        /// Why; kept in the evidence.
        #[arg(long, default_value = "")]
        reason: String,
        /// Also approve later actions that are exactly the same, for this long: from 1m to 24h.
        #[arg(long = "for", value_name = "DURATION")]
        grant_for: Option<String>,
        /// At most so many later actions.
        #[arg(long, requires = "grant_for", value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1000))]
        times: Option<u32>,
        /// What counts as the same.
        #[arg(long, requires = "grant_for", value_enum, default_value_t = Scope::Exact)]
        scope: Scope,
    },
    /// Make the held action fail with "Operation not permitted".
    Deny {
        id: String,
        /// Why; the workload's owner and the evidence see it.
        #[arg(long)]
        reason: String,
    },
}

/// What a grant covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scope {
    /// The same program, content, arguments, directory and user; or the same destination.
    Exact,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Grants {
    List,
    /// End a grant at once, on every host.
    Revoke {
        /// As listed.
        id: String,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RequestsList {
    /// Only requests in this state.
    #[arg(long, value_enum, default_value_t = StateFilter::All)]
    pub(crate) state: StateFilter,
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// Name or id of a host.
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// At most this many.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) limit: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub(crate) enum StateFilter {
    All,
    Pending,
    Approved,
    Denied,
    TimedOut,
    Withdrawn,
}

impl StateFilter {
    pub(crate) fn one(self) -> Option<RequestState> {
        match self {
            Self::All => None,
            Self::Pending => Some(RequestState::Pending),
            Self::Approved => Some(RequestState::Approved),
            Self::Denied => Some(RequestState::Denied),
            Self::TimedOut => Some(RequestState::TimedOut),
            Self::Withdrawn => Some(RequestState::Withdrawn),
        }
    }
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Run {
    /// The workload's label, e.g. `coder`.
    #[arg(long)]
    pub(crate) label: String,
    /// The command and its arguments.
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "COMMAND"
    )]
    pub(crate) command: Vec<OsString>,
}

/// The second half of `run`: the process that becomes the workload.
#[derive(Debug, ClapArgs)]
pub(crate) struct Enter {
    #[arg(long)]
    pub(crate) label: String,
    #[arg(long)]
    pub(crate) run: String,
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<OsString>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Label {
    /// Labels on this host, and the console's when signed in.
    List,
    /// Label a cgroup of this host (root).
    Add {
        label: String,
        /// Its path below /sys/fs/cgroup.
        #[arg(long, value_name = "PATH")]
        cgroup: String,
    },
    /// Take the label from a cgroup of this host (root).
    Remove {
        #[arg(long, value_name = "PATH")]
        cgroup: String,
    },
    /// Say in the console who owns a label: an owner cannot approve what the label's workloads ask for.
    SetOwner {
        label: String,
        /// A user name.
        #[arg(long, required_unless_present = "no_owner")]
        owner: Option<String>,
        /// Take the owner away.
        #[arg(long, conflicts_with = "owner")]
        no_owner: bool,
        #[arg(long)]
        description: Option<String>,
        /// Why; approvers see it on the page Changes, and it is kept in the evidence.
        #[arg(long, default_value = "")]
        reason: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Policy {
    /// Check a policy file. Needs neither an agent nor a console.
    Validate { file: PathBuf },
    /// Put the actions of files of tests to a policy and compare its answers (docs/policy.md).
    Test {
        file: PathBuf,
        /// TOML, with a `[[test]]` for each.
        #[arg(required = true)]
        tests: Vec<PathBuf>,
    },
    /// Say what a policy makes of an action, and by which rules. Exit status 1: it denies.
    Explain {
        /// Instead of the policy in force on this host (root).
        #[arg(long, value_name = "FILE")]
        policy: Option<PathBuf>,
        #[arg(long)]
        label: String,
        #[command(subcommand)]
        action: Deed,
    },
    /// Say which rules differ: between the policy in force on this host (root) and a file, or between two. Exit status 1: some do.
    Diff {
        #[arg(required = true, num_args = 1..=2, value_name = "FILE")]
        files: Vec<PathBuf>,
    },
    /// Put a policy file into force on this host (root). One that is not valid changes nothing.
    Apply { file: PathBuf },
}

/// What `guard policy explain` asks about.
#[derive(Debug, Subcommand)]
pub(crate) enum Deed {
    /// Executing a file.
    Exec {
        /// As the kernel has it: absolute, without links.
        path: String,
        /// The words after the name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
        #[arg(long)]
        cwd: Option<String>,
    },
    /// Reaching somebody over a socket.
    Connect {
        /// ADDRESS:PORT, the path of a unix socket, or a name after @.
        peer: String,
        /// tcp, udp …, of a unix socket stream, datagram or seqpacket.
        #[arg(long)]
        protocol: Option<String>,
    },
    /// Letting other hosts reach it.
    Listen {
        /// ADDRESS:PORT
        peer: String,
        #[arg(long)]
        protocol: Option<String>,
    },
    /// Changing a file or a name.
    Write {
        /// open, create, unlink, rename, link, symlink, mkdir, rmdir, mknod, truncate, chmod, chown, xattr, tmpfile, write
        operation: String,
        path: String,
        /// Of a rename or link.
        new_path: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Hosts {
    /// Hosts, with the gaps in enforcement of the last seven days.
    List,
    /// From when to when enforcement was on, on one host, in the last seven days.
    Show {
        /// Name or id.
        host: String,
    },
    /// Refuse the host from now on. What it enforces stays in force on it.
    Revoke {
        /// Name or id.
        host: String,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Tokens {
    /// Make a token for `guard-agent enroll`. It is printed once.
    Create {
        /// How long it is good for, e.g. 30m, 2h, 1d; one hour when left out.
        #[arg(long, value_name = "DURATION")]
        expires_in: Option<String>,
        #[arg(long, default_value = "")]
        description: String,
        /// Write the token to this new file (mode 0600) instead of printing it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Users {
    List,
    Add {
        username: String,
        /// May be given several times.
        #[arg(long = "role", value_parser = parse_role, required = true, value_name = "ROLE")]
        roles: Vec<Role>,
        /// May be given several times.
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        #[command(flatten)]
        password: Password,
    },
    /// Make an account for a program, which acts by keys (guard keys create) and approves nothing.
    AddService {
        username: String,
        /// May be given several times.
        #[arg(long = "role", value_parser = parse_role, required = true, value_name = "ROLE")]
        roles: Vec<Role>,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
    },
    /// End a person's access and sessions.
    Disable {
        username: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Sessions {
    List {
        /// Everybody's (administrators and auditors).
        #[arg(long)]
        all: bool,
    },
    /// End a session at once, wherever it is used.
    Revoke {
        /// As listed.
        #[arg(required_unless_present = "user")]
        id: Option<String>,
        /// Every session of this person instead (administrators).
        #[arg(long, conflicts_with = "id", value_name = "NAME")]
        user: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Keys {
    List,
    /// Make a key; it is shown once.
    Create {
        /// The service account.
        account: String,
        /// Only this role of the account; may be given several times. All when left out.
        #[arg(long = "role", value_parser = parse_role, value_name = "ROLE")]
        roles: Vec<Role>,
        /// How long it works, such as 12h or 30d; 90 days when left out.
        #[arg(long, value_name = "DURATION")]
        expires_in: Option<String>,
        /// What it is for.
        #[arg(long, default_value = "")]
        description: String,
        /// Write it to a new file that only you can read.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Cut off whoever uses it.
    Revoke {
        /// As listed.
        id: String,
    },
}

/// Where a password comes from; asked on the terminal when none is given. Never an argument: others can see those.
#[derive(Debug, ClapArgs)]
pub(crate) struct Password {
    /// Read the password from the first line of a file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Read the password from standard input.
    #[arg(long, conflicts_with = "password_file")]
    pub(crate) password_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Evidence {
    /// Records, newest first.
    List(EvidenceList),
    /// One record: what it says, checked against its digest.
    Show {
        /// SHA-256 of its envelope, or the beginning of one that is listed.
        digest: String,
        /// Print the exact bytes of the envelope instead.
        #[arg(long)]
        envelope: bool,
    },
    /// Fetch a bundle that can be verified offline.
    Export {
        /// A folder that does not exist yet.
        #[arg(required_unless_present = "out")]
        dir: Option<PathBuf>,
        /// The same as DIR.
        #[arg(long, conflicts_with = "dir", value_name = "DIR")]
        out: Option<PathBuf>,
        #[command(flatten)]
        filter: EvidenceFilter,
    },
    /// Check every signature, chain, proof and decision of a bundle, offline.
    ///
    /// Exit status: 0 valid, 1 invalid, 3 incomplete, or no trusted keys given from outside the bundle.
    Verify {
        /// A folder or tar file.
        bundle: PathBuf,
        /// Trusted keys, got by a way of their own: a trust file, or a folder with `trust.json`. Without it: those that
        /// the console of this sign-in vouched for at the last export.
        #[arg(long, value_name = "FILE")]
        trust: Option<PathBuf>,
        /// You asked for a part of the log (by host, label or time): do not call the rest missing.
        #[arg(long)]
        part: bool,
        /// A checkpoint of this log that you kept: the bundle's has to continue it. Needs the whole log.
        #[arg(long, value_name = "FILE")]
        since: Option<PathBuf>,
        /// Write the records whose signatures hold as OCSF events, one a line.
        #[arg(long, value_name = "FILE")]
        ocsf: Option<PathBuf>,
        /// Write the report for auditors: one page of HTML about what verification accepted.
        #[arg(long, value_name = "FILE")]
        report: Option<PathBuf>,
    },
    /// Print the keys that the console vouches for: the file for `verify --trust`, to be kept apart from bundles.
    Trust,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Witness {
    /// Serve `add-checkpoint` (C2SP tlog-witness) until stopped, and print the key that others check it by.
    Serve(WitnessServe),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WitnessServe {
    /// What it signs as, for example witness.example.org.
    #[arg(long)]
    pub(crate) name: String,
    /// Trust file of the console whose log it watches (`guard evidence trust`); repeatable.
    #[arg(long, value_name = "FILE")]
    pub(crate) trust: Vec<PathBuf>,
    /// Verifier key of any other log; repeatable.
    #[arg(long = "log", value_name = "KEY")]
    pub(crate) logs: Vec<String>,
    /// Its key and what it has seen; made with mode 0700 when missing.
    #[arg(long, default_value = "/var/lib/guard-witness", value_name = "DIR")]
    pub(crate) dir: PathBuf,
    #[arg(long, default_value = "127.0.0.1:8450", value_name = "ADDRESS:PORT")]
    pub(crate) listen: SocketAddr,
    /// Serve HTTPS with this certificate chain (PEM). Requests are signed, so HTTP loses no more than privacy.
    #[arg(long, requires = "key", value_name = "FILE")]
    pub(crate) certificate: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, requires = "certificate", value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Changes {
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// A user name.
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// At most this many, newest first.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) limit: u16,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EvidenceFilter {
    /// Name or id of a host.
    #[arg(long)]
    pub(crate) host: Option<String>,
    #[arg(long)]
    pub(crate) label: Option<String>,
    /// RFC 3339 time, or a date.
    #[arg(long)]
    pub(crate) from: Option<String>,
    #[arg(long)]
    pub(crate) to: Option<String>,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct EvidenceList {
    #[command(flatten)]
    pub(crate) filter: EvidenceFilter,
    /// Only records of this request.
    #[arg(long)]
    pub(crate) request: Option<String>,
    /// `request`, `decision`, `enforcement`, `lifecycle` or `change`.
    #[arg(long)]
    pub(crate) kind: Option<String>,
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) limit: u16,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Login {
    /// The console, e.g. https://guard.example.org:8443.
    #[arg(long, env = "GUARD_URL")]
    pub(crate) url: Option<String>,
    /// Asked on the terminal when left out.
    #[arg(long)]
    pub(crate) username: Option<String>,
    /// The console's certificate authority: `ca.pem` of its data directory.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca: Option<PathBuf>,
    /// SHA-256 of the console's CA certificate instead of the file.
    #[arg(long, value_name = "HEX", conflicts_with = "ca")]
    pub(crate) ca_sha256: Option<String>,
    #[command(flatten)]
    pub(crate) password: Password,
    /// Make the first administrator with the one-time secret or link in this file (the console's `setup-link`).
    #[arg(long, value_name = "FILE")]
    pub(crate) setup_secret_file: Option<PathBuf>,
}

fn parse_role(text: &str) -> Result<Role, String> {
    [Role::Administrator, Role::Approver, Role::Operator, Role::Auditor]
        .into_iter()
        .find(|role| role.as_str() == text)
        .ok_or_else(|| "a role is administrator, approver, operator or auditor".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn run_takes_everything_after_its_options() {
        for line in [
            &["guard", "run", "--label", "l", "--", "git", "push", "--force"][..],
            &["guard", "run", "--label", "l", "git", "push", "--force"],
        ] {
            let Command::Run(run) = Args::parse_from(line).command else {
                panic!()
            };
            assert_eq!(run.command, ["git", "push", "--force"]);
        }
    }

    #[test]
    fn no_password_by_argument() {
        assert!(Args::try_parse_from(["guard", "login", "--password", "x"]).is_err());
    }
}
