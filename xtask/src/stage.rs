//! People in a guest: makes users, signs them in, calls the REST API for them and follows what happens to requests.
//! Given a guest with Guard enforcing and its first administrator. Never answers a request by itself.

mod feed;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::vm::{Output, Running, Vm, VmOptions, guard};
use feed::Feed;

/// The console as the guest reaches it.
pub const CONSOLE: &str = "https://localhost:8443";
/// The console's CA certificate in the guest.
pub const CA: &str = "/var/lib/guard-console/ca.pem";
/// How long anything may take that needs no person. Emulated CPUs are slow; a hang is caught all the same.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// Somebody with a password, for [`Stage::sign_in`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Credentials {
    /// User name.
    pub username: String,
    /// Made for one run.
    pub password: String,
}

/// Somebody who is signed in.
#[derive(Clone, Debug)]
pub struct Person {
    /// User name.
    pub name: String,
    /// Made for one run.
    pub password: String,
    token: String,
    /// Of `guard`, for its option `--as`.
    profile: String,
}

impl Person {
    /// The header that proves who calls.
    pub fn bearer(&self) -> String {
        format!("Authorization: Bearer {}", self.token)
    }
}

/// A request as the REST API gives it; docs/api.md says what each field means.
#[derive(Clone, Debug, Deserialize)]
pub struct Request {
    pub id: String,
    pub state: String,
    pub label: String,
    pub action: String,
    pub what: String,
    pub sentence: String,
    pub owner: Option<String>,
    pub digest: String,
    pub decisions: Vec<Decision>,
    pub outcome: Option<String>,
    pub outcome_detail: Option<String>,
    pub asked_at: String,
    pub ended_at: Option<String>,
    pub approver_groups: Vec<String>,
    pub may_answer: bool,
    pub why_not: Option<String>,
    pub statement: Value,
}

/// One person's answer.
#[derive(Clone, Debug, Deserialize)]
pub struct Decision {
    pub by: String,
    pub verdict: String,
    pub reason: String,
    pub at: String,
    pub channel: String,
}

impl Request {
    /// Whether it still waits.
    pub fn pending(&self) -> bool {
        self.state == "pending"
    }

    /// Whether it is answered and the kernel has acted, or has ended without an answer.
    pub fn settled(&self) -> bool {
        match self.state.as_str() {
            "pending" => false,
            "approved" | "denied" => self.outcome.is_some(),
            _ => true,
        }
    }
}

/// What the REST API answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// The body's bytes.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is none.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| {
            format!(
                "not JSON (HTTP {}): {}",
                self.status,
                String::from_utf8_lossy(&self.body)
            )
        })
    }

    /// The answer to a call that must succeed.
    ///
    /// # Errors
    /// When the status is not 2xx; the text has the body.
    pub fn success(self) -> Result<Self> {
        if (200..300).contains(&self.status) {
            Ok(self)
        } else {
            Err(anyhow!("{self}"))
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "HTTP {}: {}", self.status, String::from_utf8_lossy(&self.body))
    }
}

/// A guest and the people in it.
#[derive(Debug)]
pub struct Stage {
    /// The guest.
    pub vm: Vm,
    admin: Person,
    approver: Person,
    feed: Feed,
}

impl Stage {
    /// A fresh guest with Guard enforcing; `change` sees its options first. Starts to follow requests.
    ///
    /// # Errors
    /// When the guest does not come up, or the console refuses.
    pub fn boot(change: impl FnOnce(&mut VmOptions<'_>)) -> Result<Self> {
        let vm = guard::boot(change)?;
        let [admin, approver] = saved(&vm, &["admin", "approver"])?;
        Self::of(vm, admin, approver)
    }

    /// Like [`Stage::boot`], with the owner of `coder`, who may approve too and is in the group `code-push`.
    ///
    /// # Errors
    /// As [`Stage::boot`].
    pub fn boot_with_owner(change: impl FnOnce(&mut VmOptions<'_>)) -> Result<(Self, Person)> {
        let vm = guard::boot_with_owner(change)?;
        let [admin, approver, owner] = saved(&vm, &["admin", "approver", "owner"])?;
        Ok((Self::of(vm, admin, approver)?, owner))
    }

    fn of(vm: Vm, admin: Person, approver: Person) -> Result<Self> {
        let feed = Feed::start(&vm, &admin.token)?;
        Ok(Self {
            vm,
            admin,
            approver,
            feed,
        })
    }

    /// Somebody who may approve, in no group, and owns no label.
    pub fn approver(&self) -> &Person {
        &self.approver
    }

    /// The first administrator.
    pub fn admin(&self) -> &Person {
        &self.admin
    }

    /// Makes a user with a password of this run and signs them in.
    ///
    /// # Errors
    /// When the console refuses.
    pub fn person(&self, name: &str, roles: &[&str], groups: &[&str]) -> Result<Person> {
        let password = random_password()?;
        self.call(
            Some(&self.admin),
            "POST",
            "/users",
            Some(&json!({"username": name, "password": password, "roles": roles, "groups": groups})),
        )?
        .success()
        .with_context(|| format!("cannot make the user {name}"))?;
        self.sign_in(&Credentials {
            username: name.into(),
            password,
        })
    }

    /// Signs somebody in by `POST /sessions`.
    ///
    /// # Errors
    /// When the console refuses.
    pub fn sign_in(&self, credentials: &Credentials) -> Result<Person> {
        sign_in(&self.vm, credentials)
    }

    /// Sets the owner of a label.
    ///
    /// # Errors
    /// When the console refuses.
    pub fn set_owner(&self, label: &str, owner: &Person) -> Result<()> {
        let body = json!({"owner": owner.name, "description": ""});
        self.call(Some(&self.admin), "PUT", &format!("/labels/{label}"), Some(&body))?
            .success()
            .map(drop)
    }

    /// Calls the REST API from inside the guest; `path` begins after `/api/v1`.
    ///
    /// # Errors
    /// When the console cannot be reached. A refusal is an answer.
    pub fn call(&self, who: Option<&Person>, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
        call(&self.vm, who.map(|who| who.token.as_str()), method, path, body)
    }

    /// Answers a request with REST: `verdict` is `approve` or `deny`.
    ///
    /// # Errors
    /// When the console cannot be reached. A refusal is an answer.
    pub fn answer(&self, who: &Person, request: &Request, verdict: &str, reason: &str) -> Result<Answer> {
        let body = json!({"reason": reason, "digest": request.digest});
        let answer = self.call(
            Some(who),
            "POST",
            &format!("/requests/{}/{verdict}", request.id),
            Some(&body),
        )?;
        // The stream may tell later; a wait that follows must not see the request as it was before.
        if let Ok(now) = serde_json::from_slice(&answer.body) {
            self.feed.merge(now);
        }
        Ok(answer)
    }

    /// Puts a policy into force, and waits until it is.
    ///
    /// # Errors
    /// When the agent does not take it.
    pub fn set_policy(&self, text: &[u8]) -> Result<()> {
        self.vm.write(text, "/etc/guard/policy.cedar", 0o644)?;
        let sum = self
            .vm
            .script("sha256sum /etc/guard/policy.cedar && systemctl reload guard-agent")?
            .text();
        let digest = sum.split_whitespace().next().context("no digest")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Only the agent's part counts here: nobody may be signed in.
            let status = self.vm.run(&["guard", "status", "-o", "json"])?;
            let now: Value =
                serde_json::from_slice(&status.stdout).with_context(|| format!("guard status: {status}"))?;
            if now["agent"]["policy_digest"] == digest {
                return Ok(());
            }
            if Instant::now() >= deadline {
                let log = self.vm.sh("journalctl -q --no-pager -n 20 -u guard-agent")?;
                bail!("the agent did not take the policy {digest}: {status}\n{}", log.text());
            }
            std::thread::sleep(Duration::from_secs(1));
        }
    }

    /// Starts a command under a label, with `guard run`.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn start_labelled(&self, label: &str, argv: &[&str]) -> Result<Running> {
        let mut all = vec!["guard", "run", "--label", label, "--"];
        all.extend(argv);
        self.vm.start_command(&all)
    }

    /// One request as the administrator sees it now.
    ///
    /// # Errors
    /// When there is none.
    pub fn request(&self, id: &str) -> Result<Request> {
        self.request_as(&self.admin, id)
    }

    /// One request as somebody sees it now.
    ///
    /// # Errors
    /// When there is none, or they may not see it.
    pub fn request_as(&self, who: &Person, id: &str) -> Result<Request> {
        let answer = self
            .call(Some(who), "GET", &format!("/requests/{id}"), None)?
            .success()?;
        serde_json::from_slice(&answer.body).with_context(|| format!("not a request: {answer}"))
    }

    /// Waits until some request is as asked for.
    ///
    /// # Errors
    /// When none is in time; the text lists those there are.
    pub fn wait_for(&self, within: Duration, what: &str, mut wanted: impl FnMut(&Request) -> bool) -> Result<Request> {
        let deadline = Instant::now() + within;
        loop {
            // The stream tells at once; asking again now and then covers a stream that was cut.
            let turn = deadline.min(Instant::now() + Duration::from_secs(5));
            if let Some(found) = self.feed.wait(turn, &mut wanted) {
                return Ok(found);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{what} did not come within {} s; requests: {}",
                    within.as_secs(),
                    self.feed.summary()
                );
            }
            if self.feed.take_gap() || Instant::now() >= turn {
                // A console that is down for the moment is what some tests are about.
                if let Ok(answer) = self.call(Some(&self.admin), "GET", "/requests?limit=200", None)
                    && answer.status == 200
                {
                    self.feed.merge_page(&answer.body)?;
                }
            }
        }
    }

    /// Waits for a pending request of this label whose one-line command contains `what`.
    ///
    /// # Errors
    /// When none comes in time.
    pub fn held(&self, label: &str, what: &str) -> Result<Request> {
        self.wait_for(PATIENCE, &format!("a request of {label} for `{what}`"), |request| {
            request.pending() && request.label == label && request.what.contains(what)
        })
    }

    /// Waits until this request is as asked for.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn follow(&self, id: &str, what: &str, mut wanted: impl FnMut(&Request) -> bool) -> Result<Request> {
        self.wait_for(PATIENCE, &format!("request {id}: {what}"), |request| {
            request.id == id && wanted(request)
        })
    }

    /// Every request seen so far, oldest first.
    pub fn seen(&self) -> Vec<Request> {
        self.feed.all()
    }

    /// Runs `guard` as this person; others than administrator and approver have used [`Stage::guard_login`].
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn guard(&self, who: &Person, args: &[&str]) -> Result<Output> {
        let mut argv = vec!["guard", "--as", &who.profile];
        argv.extend(args);
        self.vm.start_command(&argv)?.wait_within(PATIENCE)
    }

    /// `guard login` for this person, password on standard input.
    ///
    /// # Errors
    /// When it fails.
    pub fn guard_login(&self, who: &Person) -> Result<()> {
        let output = self.guard_login_with(&who.name, &who.password)?;
        output
            .success()
            .with_context(|| format!("guard login as {} failed", who.name))
            .map(drop)
    }

    /// `guard login` with any password; the output says how it went.
    ///
    /// # Errors
    /// When the guest is gone.
    pub fn guard_login_with(&self, name: &str, password: &str) -> Result<Output> {
        let argv = [
            "guard",
            "--as",
            name,
            "login",
            "--url",
            CONSOLE,
            "--ca",
            CA,
            "--username",
            name,
            "--password-stdin",
        ];
        let mut running = self.vm.start_command(&argv)?;
        running.input(format!("{password}\n").as_bytes())?;
        running.close_input()?;
        running.wait_within(PATIENCE)
    }
}

/// Takes over the people and their sign-ins that the guest was saved with: hashing a password is slow on purpose.
fn saved<const N: usize>(vm: &Vm, names: &[&str; N]) -> Result<[Person; N]> {
    const READ: &str = r#"set -e
for name; do
    cat "/root/guard-vm/$name.json"
    case $name in
    admin) cat /root/.config/guard/credentials.admin.json ;;
    approver) cat /root/.config/guard/credentials.json ;;
    *) cat "/root/guard-vm/$name.session" ;;
    esac
done"#;
    #[derive(Deserialize)]
    struct Session {
        token: String,
    }
    let mut argv = vec!["bash", "-c", READ, "read"];
    argv.extend(names);
    let text = vm.run(&argv)?.success()?.stdout;
    let mut values = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
    let mut next = || {
        values
            .next()
            .context("a saved sign-in is missing")?
            .context("a saved sign-in is no JSON")
    };
    let mut people = Vec::new();
    for name in names {
        let who: Credentials = serde_json::from_value(next()?)?;
        let session: Session = serde_json::from_value(next()?)?;
        people.push(Person {
            profile: if *name == "approver" {
                "default".into()
            } else {
                who.username.clone()
            },
            name: who.username,
            password: who.password,
            token: session.token,
        });
    }
    people.try_into().map_err(|_| anyhow!("not everybody was saved"))
}

fn sign_in(vm: &Vm, credentials: &Credentials) -> Result<Person> {
    let answer = call(vm, None, "POST", "/sessions", Some(&json!(credentials)))?
        .success()
        .with_context(|| format!("cannot sign in as {}", credentials.username))?;
    let token = answer.json()?["token"]
        .as_str()
        .context("an answer without a token")?
        .to_owned();
    Ok(Person {
        name: credentials.username.clone(),
        password: credentials.password.clone(),
        token,
        profile: credentials.username.clone(),
    })
}

/// A curl configuration: tokens and bodies never stand on a command line.
fn curl_config(token: Option<&str>, method: &str, path: &str, body: Option<&Value>, more: &[&str]) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut lines = vec![
        format!("url = {}", quoted(&format!("{CONSOLE}/api/v1{path}"))),
        format!("cacert = {}", quoted(CA)),
        format!("request = {}", quoted(method)),
        "silent".into(),
        "show-error".into(),
    ];
    if let Some(token) = token {
        lines.push(format!(
            "header = {}",
            quoted(&format!("Authorization: Bearer {token}"))
        ));
    }
    if let Some(body) = body {
        lines.push(r#"header = "Content-Type: application/json""#.into());
        lines.push(format!("data-raw = {}", quoted(&body.to_string())));
    }
    lines.extend(more.iter().map(|&line| line.to_owned()));
    lines.push(String::new());
    lines.join("\n")
}

fn call(vm: &Vm, token: Option<&str>, method: &str, path: &str, body: Option<&Value>) -> Result<Answer> {
    let config = curl_config(
        token,
        method,
        path,
        body,
        &[r#"write-out = "\n%{http_code}""#, "max-time = 60"],
    );
    let mut running = vm.start_command(&["curl", "--config", "-"])?;
    running.input(config.as_bytes())?;
    running.close_input()?;
    let output = running.wait_within(PATIENCE)?;
    if output.status != 0 {
        bail!("{method} {path}: curl: {output}");
    }
    let split = output
        .stdout
        .iter()
        .rposition(|&byte| byte == b'\n')
        .context("curl wrote no status")?;
    let status = std::str::from_utf8(&output.stdout[split + 1..])?.trim().parse()?;
    Ok(Answer {
        status,
        body: output.stdout[..split].to_vec(),
    })
}

/// Fails unless a command ended with 1, the answer is no, and says `word`.
///
/// # Errors
/// See above.
pub fn expect_refused(output: &Output, word: &str) -> Result<()> {
    if output.status != 1 || !String::from_utf8_lossy(&output.stderr).contains(word) {
        bail!("expected a refusal (exit status 1) that says {word:?}: {output}");
    }
    Ok(())
}

/// 145 random bits as a password that any keyboard can type.
pub fn random_password() -> Result<String> {
    use std::io::Read;
    const LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
    let mut bytes = [0u8; 29];
    std::fs::File::open("/dev/urandom")?
        .read_exact(&mut bytes)
        .context("no randomness")?;
    Ok(bytes
        .iter()
        .map(|byte| char::from(LETTERS[usize::from(byte % 32)]))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curl_configuration_quotes_what_json_brings() {
        let config = curl_config(
            Some("t"),
            "POST",
            "/x",
            Some(&json!({"reason": "say \"no\" \\ to it\n"})),
            &[],
        );
        assert!(
            config.contains(r#"data-raw = "{\"reason\":\"say \\\"no\\\" \\\\ to it\\n\"}""#),
            "{config}"
        );
        assert!(!config.contains("to it\n\""), "{config}");
    }

    #[test]
    fn passwords_differ() {
        let (one, two) = (random_password().unwrap(), random_password().unwrap());
        assert_ne!(one, two);
        assert_eq!(one.len(), 29);
    }
}
