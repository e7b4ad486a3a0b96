//! The `guard` program as people and scripts see it: arguments, output, exit status. The console is a small one in
//! this process (real TLS, scripted answers), the agent a thread that speaks its socket protocol.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on ends there")]

mod agent;
mod console;
mod evidence;
mod policy;
mod report;
mod requests;
mod run;
mod signing_in;
mod witness;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// What a command did.
struct Done {
    code: i32,
    out: String,
    err: String,
}

impl Done {
    #[track_caller]
    fn expect(self, code: i32, words: &[&str]) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.out, self.err);
        let all = format!("{}{}", self.out, self.err);
        for word in words {
            assert!(
                all.contains(word),
                "no {word:?} in\nstdout: {}\nstderr: {}",
                self.out,
                self.err
            );
        }
        self
    }

    #[track_caller]
    fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {}", self.out))
    }
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        Self {
            code: output
                .status
                .code()
                .unwrap_or_else(|| -output.status.signal().unwrap_or(0)),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// `guard` with its configuration in `home` and no agent unless a test gives one.
fn guard(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_guard"));
    command
        .args(args)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("HOME", home)
        .env("TZ", "UTC")
        .env("GUARD_SOCKET", home.join("no-agent.sock"))
        .stdin(Stdio::null());
    command
}

fn run(command: &mut Command) -> Done {
    command.output().unwrap().into()
}

fn run_with_input(command: &mut Command, input: &str) -> Done {
    use std::io::Write as _;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that fails early may not read it.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap().into()
}

#[test]
fn without_agent_and_console_nothing_can_be_told() {
    let home = tempfile::tempdir().unwrap();
    run(&mut guard(home.path(), &["status"])).expect(3, &["it is not running", "not signed in", "guard login"]);
    run(&mut guard(home.path(), &["requests", "list"])).expect(3, &["not signed in", "→ guard login"]);
    run(&mut guard(home.path(), &["--as", "boss", "hosts", "list"])).expect(3, &["not signed in as `boss`"]);
    run(&mut guard(home.path(), &["--as", "../x", "hosts", "list"])).expect(2, &["cannot name a sign-in"]);
    let doctor = run(&mut guard(home.path(), &["doctor", "-o", "json"]));
    assert!(doctor.code == 1 || doctor.code == 3, "{}", doctor.err);
    assert_eq!(doctor.json()["agent_answered"], false);
    assert!(
        doctor.json()["findings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|f| f["name"] == "self-test")
    );
}

#[test]
fn help_completions_and_man_pages() {
    let home = tempfile::tempdir().unwrap();
    run(&mut guard(home.path(), &["--help"])).expect(0, &["requests", "Exit status"]);
    run(&mut guard(home.path(), &[])).expect(2, &["Usage"]);
    run(&mut guard(home.path(), &["requests", "nonsense"])).expect(2, &["unrecognized"]);
    run(&mut guard(home.path(), &["completions", "bash"])).expect(0, &["complete -F"]);
    let man = home.path().join("man");
    run(&mut guard(home.path(), &["man", man.to_str().unwrap()])).expect(0, &[]);
    assert!(
        std::fs::read_to_string(man.join("guard-requests-approve.1"))
            .unwrap()
            .contains("approve")
    );
}
