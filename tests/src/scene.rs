//! A guest with Guard enforcing, and the people of most tests: somebody who may approve, and the owner of `coder`.
//! Given a saved guest. Never shared between tests: each has its own.

use std::ops::Deref;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use guard_proto::control::AgentStatus;
use xtask::stage::{Answer, PATIENCE, Person, Request, Stage};
use xtask::vm::{Event, Output, Running, VmOptions};

/// The label that `owner` owns.
pub const CODER: &str = "coder";

/// See the module.
#[derive(Debug)]
pub struct Scene {
    stage: Stage,
    /// May approve and owns nothing.
    pub approver: Person,
    /// May approve too, but owns [`CODER`].
    pub owner: Person,
}

impl Deref for Scene {
    type Target = Stage;

    fn deref(&self) -> &Stage {
        &self.stage
    }
}

impl Scene {
    /// A fresh guest.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn new() -> Result<Self> {
        Self::with(|_| {})
    }

    /// A fresh guest; `change` sees its options first.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn with(change: impl FnOnce(&mut VmOptions<'_>)) -> Result<Self> {
        let (stage, owner) = Stage::boot_with_owner(change)?;
        let approver = stage.approver().clone();
        Ok(Self { stage, approver, owner })
    }

    /// A fresh guest whose agent has no configuration: whoever labels something is asked about changes of files too.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn as_shipped() -> Result<Self> {
        let stage = Stage::boot(|_| {})?;
        let owner = stage.person("owner", &["approver"], &["code-push"])?;
        stage.set_owner(CODER, &owner)?;
        let approver = stage.approver().clone();
        Ok(Self { stage, approver, owner })
    }

    /// Approves as [`Scene::approver`].
    ///
    /// # Errors
    /// When the console refuses.
    pub fn approve(&self, request: &Request) -> Result<()> {
        self.answer(&self.approver, request, "approve", "")?.success().map(drop)
    }

    /// Denies as [`Scene::approver`].
    ///
    /// # Errors
    /// When the console refuses.
    pub fn deny(&self, request: &Request, reason: &str) -> Result<()> {
        self.answer(&self.approver, request, "deny", reason)?
            .success()
            .map(drop)
    }

    /// Starts `bash -c SCRIPT` under a label that has no policy, and approves that first exec.
    ///
    /// # Errors
    /// When it is not held, or not approved.
    pub fn script(&self, label: &str, script: &str) -> Result<Running> {
        let running = self.start_labelled(label, &["/bin/bash", "-c", script])?;
        let request = self.held(label, "-c")?;
        self.approve(&request)?;
        Ok(running)
    }

    /// Waits for the request for `what` and approves it.
    ///
    /// # Errors
    /// When it does not come, or the console refuses.
    pub fn approve_next(&self, label: &str, what: &str) -> Result<Request> {
        let request = self.held(label, what)?;
        self.approve(&request)?;
        self.follow(&request.id, "approved and acted on", Request::settled)
    }

    /// How many requests there are by now, whatever became of them.
    ///
    /// # Errors
    /// When the console does not say.
    pub fn request_count(&self) -> Result<usize> {
        let page = self
            .call(Some(self.admin()), "GET", "/requests?limit=200", None)?
            .success()?
            .json()?;
        Ok(page["items"].as_array().context("no items")?.len())
    }

    /// What the agent says of itself; the console may be away.
    ///
    /// # Errors
    /// When the agent does not answer.
    pub fn agent(&self) -> Result<AgentStatus> {
        let output = self.vm.run(&["guard", "status", "-o", "json"])?;
        let status: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("guard status: {output}"))?;
        serde_json::from_value(status["agent"].clone()).with_context(|| format!("guard status: {output}"))
    }

    /// Waits until the agent is as asked for.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn agent_until(&self, wanted: impl Fn(&AgentStatus) -> bool) -> Result<()> {
        self.agent_within(PATIENCE, wanted)
    }

    /// The same with another limit: what a flood does takes an emulated guest minutes.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn agent_within(&self, limit: Duration, wanted: impl Fn(&AgentStatus) -> bool) -> Result<()> {
        eventually(limit, || {
            let status = self.agent()?;
            ensure!(wanted(&status), "the agent's status is {status:?}");
            Ok(())
        })
    }

    /// Writes the keys that an auditor got by a way of their own into `file` of the guest.
    ///
    /// # Errors
    /// When the console does not give them.
    pub fn trust(&self, file: &str) -> Result<()> {
        let trust = self.call(Some(self.admin()), "GET", "/trust", None)?.success()?;
        self.vm.write(&trust.body, file, 0o644)
    }

    /// Exports the evidence into a new directory of the guest.
    ///
    /// # Errors
    /// When it fails.
    pub fn export(&self, dir: &str) -> Result<()> {
        self.guard(self.admin(), &["evidence", "export", dir])?
            .success()
            .context("guard evidence export")
            .map(drop)
    }

    /// Verifies a bundle with the trusted keys; the verifier's status is in the output.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn verify(&self, dir: &str) -> Result<Output> {
        self.vm
            .run(&["guard", "evidence", "verify", dir, "--trust", "/root/trust.json"])
    }
}

/// The end of a labelled command, within the usual patience.
///
/// # Errors
/// When it does not end.
pub fn end(running: Running) -> Result<Output> {
    running.wait_within(PATIENCE)
}

/// Reads a command's output until a line of standard output contains `text`.
///
/// # Errors
/// When it ends before, or takes too long.
pub fn until_line(running: &mut Running, text: &str) -> Result<String> {
    let (mut out, mut err) = (String::new(), String::new());
    loop {
        match running
            .next_within(PATIENCE)
            .with_context(|| format!("waiting for {text:?}; so far {out:?}, {err:?}"))?
        {
            Some(Event::Stdout(bytes)) => out.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Event::Stderr(bytes)) => err.push_str(&String::from_utf8_lossy(&bytes)),
            Some(Event::Exit(status)) => bail!("ended with {status} before {text:?}; stdout {out:?}, stderr {err:?}"),
            None => bail!("the guest ended before {text:?}"),
        }
        if out.lines().any(|line| line.contains(text)) {
            return Ok(out);
        }
    }
}

/// Runs a check again until it holds: for state that nothing tells about.
///
/// # Errors
/// When it does not hold in time; the text is the last reason.
pub fn eventually(within: Duration, mut check: impl FnMut() -> Result<()>) -> Result<()> {
    let deadline = Instant::now() + within;
    loop {
        let begun = Instant::now();
        match check() {
            Ok(()) => return Ok(()),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {} s", within.as_secs())));
            }
            // Looking takes an emulated guest as long as what is waited for: it gets time for that, too.
            Err(_) => {
                let pause = 2 * begun.elapsed();
                std::thread::sleep(pause.clamp(Duration::from_millis(300), Duration::from_secs(2)));
            }
        }
    }
}

/// A refusal must be a problem with this status, a stable type, and words that contain each of `words`.
///
/// # Errors
/// When it is something else.
pub fn expect_problem(answer: &Answer, status: u16, words: &[&str]) -> Result<()> {
    ensure!(answer.status == status, "expected HTTP {status}, got {answer}");
    let problem: guard_proto::rest::Problem =
        serde_json::from_slice(&answer.body).with_context(|| format!("no problem document: {answer}"))?;
    ensure!(problem.kind.starts_with("urn:guard:problem:"), "type of {answer}");
    ensure!(problem.status == status, "status inside {answer}");
    let text = format!("{} {}", problem.title, problem.detail.unwrap_or_default());
    for word in words {
        ensure!(
            text.to_lowercase().contains(&word.to_lowercase()),
            "{text:?} does not say {word:?}"
        );
    }
    Ok(())
}

/// Fails unless the output has the exit status; the text has both outputs.
///
/// # Errors
/// See above.
pub fn expect_status(output: &Output, status: i32) -> Result<()> {
    ensure!(output.status == status, "expected exit status {status}: {output}");
    Ok(())
}

/// Fails unless standard error contains each of `words`.
///
/// # Errors
/// See above.
pub fn expect_error_says(output: &Output, words: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(&output.stderr);
    for word in words {
        ensure!(text.contains(word), "standard error does not say {word:?}: {output}");
    }
    Ok(())
}
