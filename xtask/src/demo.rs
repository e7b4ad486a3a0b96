//! `cargo xtask demo`: one labelled script, five commands, every outcome; then the evidence of it, verified.
//! Given a guest with Guard. With `--auto` it answers as a second identity and checks everything; without, a person does.

use std::io::Write;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::stage::{PATIENCE, Person, Request, Stage, expect_refused};
use crate::vm::{Event, Running};
use crate::{paths, run};

const LABEL: &str = "coder";
const GROUP: &str = "code-push";
const AGENT: &[u8] = include_bytes!("../guest/demo/agent.sh");
const POLICY: &[u8] = include_bytes!("../guest/demo/policy.cedar");
const SWAP: &str = include_str!("../guest/demo/swap.c");
const DENIAL: &str = "open a pull request instead";
/// A person may think for as long as they like; the guest does not live for ever either.
const PERSON: Duration = Duration::from_secs(24 * 3600);

/// Prepares what the agent works on: a repository with a remote, a migration, a folder that must survive. Its files are its own.
const PREPARE: &str = "set -e
mkdir -p /srv/app/build /srv/app/data. /run/demo
chmod +x /srv/app/agent.sh /srv/app/tidy
printf '#!/bin/bash\\nprintf \"schema 8\\\\n\" >/srv/app/schema\\n' >/srv/app/migrate
chmod +x /srv/app/migrate
echo 'schema 7' >/srv/app/schema
cd /srv/app
export GIT_AUTHOR_NAME=coder GIT_AUTHOR_EMAIL=coder@example.org GIT_COMMITTER_NAME=coder GIT_COMMITTER_EMAIL=coder@example.org
git init --quiet --initial-branch=main
git config gc.auto 0
git add schema
git commit --quiet --message 'schema 7'
git init --quiet --bare /srv/remote.git
git remote add origin /srv/remote.git
printf '[[label]]\\nname = \"coder\"\\nfree = [\"/run/demo\", \"/srv/app\", \"/srv/remote.git\"]\\n' >/etc/guard/agent.toml
systemctl restart guard-agent
";

/// One of the agent's commands and what has to become of it when the plan is followed.
struct Step {
    command: &'static str,
    /// What the demonstration's own approver does; `None` when nobody is asked.
    answer: Option<Planned>,
    /// `request.outcome`, or what the policy's record says.
    kernel: &'static str,
    /// What the script sees.
    status: i32,
    /// Shell lines that hold in the guest when the kernel did what it should.
    effect: &'static str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Planned {
    Approve,
    Deny,
    /// Approve, after another thread has changed the arguments.
    ApproveChanged,
}

const STEPS: [Step; 5] = [
    Step {
        command: "ls -l",
        answer: None,
        kernel: "ran",
        status: 0,
        effect: "true",
    },
    Step {
        command: "git tag release-7",
        answer: Some(Planned::Approve),
        kernel: "ran",
        status: 0,
        effect: "git -C /srv/app rev-parse --verify --quiet release-7",
    },
    Step {
        command: "./migrate",
        answer: Some(Planned::Approve),
        kernel: "ran",
        status: 0,
        effect: "grep -qx 'schema 8' /srv/app/schema",
    },
    Step {
        command: "git push --force origin main",
        answer: Some(Planned::Deny),
        kernel: "denied",
        status: 126,
        effect: "! git -C /srv/remote.git rev-parse --verify --quiet main",
    },
    Step {
        command: "rm -r build",
        answer: Some(Planned::ApproveChanged),
        kernel: "killed",
        status: 137,
        effect: "test -d /srv/app/build && test -d /srv/app/data.",
    },
];

/// What became of one step.
#[derive(Default)]
struct Row {
    policy: String,
    decided: String,
    after: Option<Duration>,
    kernel: String,
    detail: String,
    status: Option<i32>,
}

impl Row {
    /// What the kernel did, without the digests: the page and the record have those.
    fn kernel_shown(&self) -> String {
        let detail = self.detail.split(':').next().unwrap_or_default();
        if detail.is_empty() {
            self.kernel.clone()
        } else {
            format!("{}: {detail}", self.kernel)
        }
    }
}

/// Runs the demonstration in a fresh guest. The result is the exit status: 0 when everything was as it should be.
///
/// # Errors
/// When the guest or something in it fails.
pub fn run(auto: bool) -> Result<u8> {
    // Only a person needs to reach the guest from outside.
    let stage = Stage::boot(|options| options.network = !auto)?;
    let approver = stage.person("reviewer", &["approver"], &[GROUP])?;
    let owner = stage.person("owner", &["approver"], &[GROUP])?;
    let auditor = stage.person("auditor", &["auditor"], &[])?;
    stage.set_owner(LABEL, &owner)?;
    for person in [&approver, &owner, &auditor] {
        stage.guard_login(person)?;
    }
    stage.vm.write(AGENT, "/srv/app/agent.sh", 0o755)?;
    stage.vm.put(swap_program()?, "/srv/app/tidy")?;
    stage.vm.script(PREPARE)?;
    stage.set_policy(POLICY)?;
    if auto {
        say("$ guard run --label coder -- ./agent.sh")?;
    } else {
        invite(&stage, &approver)?;
    }

    let begun = Instant::now();
    let agent = Agent::start(stage.start_labelled(LABEL, &["/srv/app/agent.sh"])?);
    let mut rows = Vec::new();
    for step in &STEPS {
        rows.push(match step.answer {
            None => Row::default(),
            Some(plan) => one_question(&stage, &agent, step, plan, auto.then_some((&approver, &owner)))?,
        });
    }
    let output = agent.end(if auto { PATIENCE } else { PERSON })?;
    for (number, (step, row)) in STEPS.iter().zip(&mut rows).enumerate() {
        row.status = exit_of(&output, number + 1);
        if step.answer.is_none() {
            *row = decided_by_policy(&stage, &auditor, "/usr/bin/ls", row.status)?;
        }
    }
    say("")?;
    say(table(&rows))?;
    say(format!(
        "\n{:.1} s from start to end of the agent, persons' time included.\n",
        begun.elapsed().as_secs_f64()
    ))?;

    let mut wrong = Vec::new();
    if auto {
        wrong = differences(&stage, &rows, &output)?;
    }
    let verified = verify(&stage, &auditor)?;
    if verified != 0 {
        wrong.push(format!("guard evidence verify ended with {verified}"));
    }
    for text in &wrong {
        say(format!("differs: {text}"))?;
    }
    Ok(u8::from(!wrong.is_empty()))
}

/// Waits for the step's request; answers it with `--auto`, else waits for a person.
fn one_question(
    stage: &Stage,
    agent: &Agent,
    step: &Step,
    plan: Planned,
    people: Option<(&Person, &Person)>,
) -> Result<Row> {
    // The agent comes to its next step as soon as the one before is over, or never when it has ended. A person may
    // first have to answer for programs that an approved command starts, as git does.
    let within = if people.is_some() { PATIENCE } else { PERSON };
    let deadline = Instant::now() + within;
    let request = loop {
        let what = format!("the request for `{}`", step.command);
        let found = stage.wait_for(Duration::from_secs(3), &what, |request| {
            request.pending() && request.label == LABEL && request.what.ends_with(step.command)
        });
        match found {
            Err(_) if !agent.ended() && Instant::now() < deadline => {}
            other => break other?,
        }
    };
    let begun = Instant::now();
    if plan == Planned::ApproveChanged {
        stage.vm.script("touch /run/demo/go; for i in $(seq 600); do test -e /run/demo/changed && exit; sleep 0.1; done; exit 1")
            .context("the agent's second thread did not change the command")?;
        say(
            "  now another thread of the agent has changed what it would run: `rm -r build` is `rm -r data.` in memory",
        )?;
    }
    if let Some((approver, owner)) = people {
        answer(stage, &request, plan, approver, owner)?;
    }
    let id = request.id.clone();
    let ended = stage.wait_for(within, &format!("an answer to `{}`", step.command), |request| {
        request.id == id && request.settled()
    })?;
    Ok(Row {
        policy: rule_of(&ended),
        decided: match ended.decisions.last() {
            Some(last) => format!("{} by {}", ended.state, last.by),
            None => ended.state.clone(),
        },
        after: Some(begun.elapsed()),
        kernel: ended.outcome.clone().unwrap_or_else(|| "–".into()),
        detail: ended.outcome_detail.unwrap_or_default(),
        status: None,
    })
}

/// As a second identity, with the command line; the owner tries first and is refused.
fn answer(stage: &Stage, request: &Request, plan: Planned, approver: &Person, owner: &Person) -> Result<()> {
    let refused = stage.guard(owner, &["requests", "approve", &request.id])?;
    expect_refused(&refused, "own").context("the owner of the label tried to approve")?;
    ensure!(
        stage.request(&request.id)?.pending(),
        "the owner's attempt ended the request"
    );
    let answered = match plan {
        Planned::Deny => stage.guard(approver, &["requests", "deny", &request.id, "--reason", DENIAL])?,
        _ => stage.guard(approver, &["requests", "approve", &request.id])?,
    };
    answered.success().context("the approver's answer").map(drop)
}

fn rule_of(request: &Request) -> String {
    let rules = request.statement["predicate"]["why"]["rules"].as_array();
    let ids: Vec<&str> = rules
        .into_iter()
        .flatten()
        .filter_map(|rule| rule["id"].as_str())
        .collect();
    format!("ask ({})", ids.join(", "))
}

/// Finds the record of an exec that the policy decided alone.
fn decided_by_policy(stage: &Stage, auditor: &Person, path: &str, status: Option<i32>) -> Result<Row> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let page = stage.call(
            Some(auditor),
            "GET",
            &format!("/evidence?kind=enforcement&label={LABEL}&limit=100"),
            None,
        )?;
        for record in page.success()?.json()?["items"].as_array().into_iter().flatten() {
            let digest = record["digest"].as_str().context("a record without digest")?;
            let shown = stage
                .guard(auditor, &["evidence", "show", digest, "-o", "json"])?
                .success()?;
            let shown: serde_json::Value = serde_json::from_slice(&shown.stdout)?;
            let predicate = if shown["predicate"].is_null() {
                &shown["statement"]["predicate"]
            } else {
                &shown["predicate"]
            };
            let policy = &predicate["by_policy"];
            if policy["action"]["path"] != path {
                continue;
            }
            let rules = policy["rules"].as_array();
            let ids: Vec<&str> = rules
                .into_iter()
                .flatten()
                .filter_map(|rule| rule["id"].as_str())
                .collect();
            return Ok(Row {
                policy: format!("{} ({})", predicate["verdict"].as_str().unwrap_or("?"), ids.join(", ")),
                decided: "nobody was asked".into(),
                kernel: predicate["effect"]["kind"].as_str().unwrap_or("?").into(),
                status,
                ..Row::default()
            });
        }
        // Records of allowed execs are written in groups and shipped behind.
        if Instant::now() >= deadline {
            bail!("no record says that the policy allowed {path}");
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

fn exit_of(output: &str, number: usize) -> Option<i32> {
    let prefix = format!("step {number} exit ");
    output
        .lines()
        .find_map(|line| line.strip_prefix(&prefix)?.trim().parse().ok())
}

/// Everything that is not as planned.
fn differences(stage: &Stage, rows: &[Row], output: &str) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (number, (step, row)) in STEPS.iter().zip(rows).enumerate() {
        let mut expect = |what: &str, expected: &str, found: &str| {
            if expected != found {
                wrong.push(format!(
                    "step {} `{}`: {what} is {found:?}, expected {expected:?}",
                    number + 1,
                    step.command
                ));
            }
        };
        let decided = match step.answer {
            None => "nobody was asked",
            Some(Planned::Deny) => "denied by reviewer",
            Some(_) => "approved by reviewer",
        };
        let policy = if step.answer.is_none() {
            "allow (look-around)"
        } else {
            "ask (ask-code-push)"
        };
        expect("the policy's answer", policy, &row.policy);
        expect("the decision", decided, &row.decided);
        expect("what the kernel did", step.kernel, &row.kernel);
        expect(
            "the exit status",
            &step.status.to_string(),
            &row.status.map_or("none".into(), |status| status.to_string()),
        );
        if stage.vm.sh(step.effect)?.status != 0 {
            wrong.push(format!(
                "step {} `{}`: `{}` does not hold",
                number + 1,
                step.command,
                step.effect
            ));
        }
    }
    for line in ["Operation not permitted", DENIAL, "agent done"] {
        if !output.contains(line) {
            wrong.push(format!("the agent's output does not say {line:?}"));
        }
    }
    Ok(wrong)
}

fn verify(stage: &Stage, auditor: &Person) -> Result<i32> {
    let trust = stage.call(Some(auditor), "GET", "/trust", None)?.success()?;
    stage.vm.write(&trust.body, "/run/demo/trust.json", 0o644)?;
    say("$ guard evidence export /run/demo/evidence")?;
    let exported = stage.guard(auditor, &["evidence", "export", "/run/demo/evidence"])?;
    say(exported.text())?;
    exported.success().context("guard evidence export")?;
    say("$ guard evidence verify /run/demo/evidence --trust /run/demo/trust.json")?;
    let verified = stage.guard(
        auditor,
        &[
            "evidence",
            "verify",
            "/run/demo/evidence",
            "--trust",
            "/run/demo/trust.json",
        ],
    )?;
    say(verified.text())?;
    if !verified.stderr.is_empty() {
        say(String::from_utf8_lossy(&verified.stderr).trim_end())?;
    }
    say(format!("$ echo $?\n{}", verified.status))?;
    Ok(verified.status)
}

/// Tells the person where to answer.
fn invite(stage: &Stage, approver: &Person) -> Result<()> {
    let port = free_port()?;
    stage.vm.forward(port, 8443)?;
    say(format!(
        "Guard runs in a virtual machine, and an agent with the label \"{LABEL}\" starts in it now.\n\
         It wants to do five things; the policy allows one and asks you about four.\n\n\
         \x20 open       https://127.0.0.1:{port}/   (the certificate is this run's own: your browser will warn)\n\
         \x20 user name  {}\n\
         \x20 password   {}      made for this run\n\n\
         Approve or deny each request in the page; what happens shows here. Ctrl-C ends it.\n",
        approver.name, approver.password
    ))
}

/// The usual port when nobody has it.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 8443)).or_else(|_| TcpListener::bind(("127.0.0.1", 0)))?;
    Ok(listener.local_addr()?.port())
}

/// The labelled script: shows its output as it comes and keeps it.
struct Agent {
    output: Arc<Mutex<String>>,
    reader: JoinHandle<Option<i32>>,
}

impl Agent {
    fn start(mut running: Running) -> Self {
        let output = Arc::new(Mutex::new(String::new()));
        let kept = Arc::clone(&output);
        let reader = std::thread::spawn(move || {
            let mut lines = [Vec::new(), Vec::new()];
            loop {
                let (stream, bytes) = match running.next()? {
                    Event::Stdout(bytes) => (0, bytes),
                    Event::Stderr(bytes) => (1, bytes),
                    Event::Exit(status) => return Some(status),
                };
                lines[stream].extend(bytes);
                while let Some(end) = lines[stream].iter().position(|&byte| byte == b'\n') {
                    let line: Vec<u8> = lines[stream].drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line);
                    // A closed standard output is found by whoever writes next.
                    let _ = say(format!("  | {}", line.trim_end()));
                    kept.lock().unwrap_or_else(PoisonError::into_inner).push_str(&line);
                }
            }
        });
        Self { output, reader }
    }

    fn ended(&self) -> bool {
        self.reader.is_finished()
    }

    fn end(self, within: Duration) -> Result<String> {
        let deadline = Instant::now() + within;
        while !self.reader.is_finished() {
            if Instant::now() >= deadline {
                bail!("the agent did not end within {} s", within.as_secs());
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        let status = self.reader.join().ok().flatten();
        let output = self.output.lock().unwrap_or_else(PoisonError::into_inner).clone();
        ensure!(status.is_some(), "the guest ended before the agent; so far:\n{output}");
        Ok(output)
    }
}

fn table(rows: &[Row]) -> String {
    let head = ["command", "policy", "decided", "after", "kernel", "script saw"].map(str::to_owned);
    let mut lines = vec![head];
    for (step, row) in STEPS.iter().zip(rows) {
        lines.push([
            step.command.to_owned(),
            row.policy.clone(),
            row.decided.clone(),
            row.after
                .map_or("–".into(), |after| format!("{:.1} s", after.as_secs_f64())),
            row.kernel_shown(),
            row.status.map_or("–".into(), |status| format!("exit {status}")),
        ]);
    }
    let widths: Vec<usize> = (0..6)
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let shown: Vec<String> = lines
        .iter()
        .map(|line| {
            let cells: Vec<String> = line
                .iter()
                .zip(&widths)
                .map(|(cell, &width)| format!("{cell:width$}"))
                .collect();
            cells.join("  ").trim_end().to_owned()
        })
        .collect();
    shown.join("\n")
}

fn say(text: impl AsRef<str>) -> Result<()> {
    writeln!(std::io::stdout().lock(), "{}", text.as_ref()).context("cannot write to standard output")
}

/// The program that changes its own arguments while it is held: built once, static, for guests without a compiler.
///
/// # Errors
/// When gcc is missing or fails.
pub fn swap_program() -> Result<PathBuf> {
    let dir = paths::target().join("demo");
    let program = dir.join(format!("swap-{}", run::key([SWAP])));
    let _lock = run::lock(&dir.join("lock"))?;
    if !program.exists() {
        let source = dir.join("swap.c");
        std::fs::write(&source, SWAP)?;
        let unfinished = dir.join("swap.new");
        run::quiet(
            Command::new("gcc")
                .args(["-static", "-O2", "-Wall", "-pthread", "-o"])
                .arg(&unfinished)
                .arg(&source),
        )?;
        std::fs::rename(&unfinished, &program)?;
    }
    Ok(program)
}
