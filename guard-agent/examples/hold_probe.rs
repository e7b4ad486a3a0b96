//! Loads the kernel side, labels cgroups and answers by rules; prints every message as one line. The kernel tests in
//! VMs are written on top of it.
//!
//! ```text
//! hold_probe [--pins DIR] [--away park|deny|allow] [--park-after MS] [--pending N] [--tasks N] [--sockets N] [--run SECONDS]
//!            [--protect PATH|HOST:PORT]... [--ask-writes LABEL]... [--free LABEL=DIR]... --label DIR[=N]... [--allow N=NAME,...]... [RULE]...
//! Changes of files are free but for the labels of --ask-writes; --free makes a directory's content free for one, for every label with 0.
//! RULE   TEXT=ANSWER     the first rule whose TEXT is in the path or peer counts; without any: hold:0:check
//! ANSWER allow | deny | check | hold:MS:allow | hold:MS:deny | hold:MS:check | hold | late:MS | ignore
//!        late:MS: hold, but wanted MS after it asked only
//! ```

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a test program that speaks on standard output"
)]

use std::collections::HashMap;
use std::error::Error;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use guard_agent::kernel::api::{
    ActionId, AskedAction, ChangeOp, ExecExpectation, FileKey, FromKernel, Held, HeldExec, LabelId, Peer, Release,
    ToKernel,
};
use guard_agent::kernel::{self, Allowed, Away, KernelConfig, KernelHandle, LabelSettings, Writes};
use sha2::{Digest, Sha256};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Deny,
    Check,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Now(Verdict),
    After(Duration, Verdict),
    HoldForEver,
    HoldLate(Duration),
    Ignore,
}

fn verdict(text: &str) -> Option<Verdict> {
    match text {
        "allow" => Some(Verdict::Allow),
        "deny" => Some(Verdict::Deny),
        "check" => Some(Verdict::Check),
        _ => None,
    }
}

fn answer(text: &str) -> Result<Answer, Box<dyn Error>> {
    if text == "hold" {
        return Ok(Answer::HoldForEver);
    }
    if text == "ignore" {
        return Ok(Answer::Ignore);
    }
    if let Some(rest) = text.strip_prefix("hold:") {
        let (time, then) = rest.split_once(':').ok_or("hold:MS:ANSWER")?;
        let then = verdict(then).ok_or("hold:MS:allow|deny|check")?;
        return Ok(Answer::After(Duration::from_millis(time.parse()?), then));
    }
    if let Some(time) = text.strip_prefix("late:") {
        return Ok(Answer::HoldLate(Duration::from_millis(time.parse()?)));
    }
    let now = verdict(text).ok_or_else(|| format!("unknown answer {text}"))?;
    Ok(if now == Verdict::Check {
        Answer::After(Duration::ZERO, now)
    } else {
        Answer::Now(now)
    })
}

struct Probe {
    handle: KernelHandle,
    rules: Vec<(String, Answer)>,
    exact: Arc<kernel::Rules>,
    /// What is allowed at once becomes an exact rule.
    learns: bool,
    asked: HashMap<ActionId, AskedAction>,
    held: HashMap<ActionId, Arc<ExecExpectation>>,
    /// What is to be released, and when.
    due: Vec<(Instant, ActionId, Verdict)>,
    /// What is to be held, and when.
    wanted: Vec<(Instant, ActionId)>,
}

/// What rules look at: the path of an exec; `192.0.2.1:80`, `[2001:db8::1]:80`, `unix:/path`, `unix:@name`, `unix:` of a peer.
fn text(what: &AskedAction) -> String {
    match what {
        AskedAction::Exec(exec) => exec.path.clone().unwrap_or_default().display().to_string(),
        AskedAction::Change(asked) => {
            let change = &asked.change;
            let path = |path: &Option<PathBuf>| match path {
                Some(path) => path.as_os_str().as_encoded_bytes().escape_ascii().to_string(),
                None => "?".to_owned(),
            };
            let first = match &change.below_root {
                Some(_) => format!("below:{}", path(&change.below_root)),
                None => path(&change.path),
            };
            let second = match change.op {
                ChangeOp::Rename { .. } | ChangeOp::Link => format!(" to={}", path(&change.second)),
                _ => String::new(),
            };
            format!("{:?} {first}{second}", change.op)
        }
        AskedAction::Reach(reach) => match &reach.peer {
            Peer::Address { address, port, .. } => std::net::SocketAddr::new(*address, *port).to_string(),
            Peer::Unix { path: Some(path) } => format!("unix:{}", path.display()),
            Peer::Unix { path: None } => "unix:?".to_owned(),
            Peer::Abstract(name) => format!("unix:@{}", name.escape_ascii()),
            Peer::Nameless => "unix:".to_owned(),
        },
    }
}

impl Probe {
    fn rule(&self, text: &str) -> Answer {
        self.rules
            .iter()
            .find(|(pattern, _)| text.contains(pattern.as_str()))
            .map_or(Answer::After(Duration::ZERO, Verdict::Check), |(_, answer)| *answer)
    }

    fn release(&mut self, id: ActionId, verdict: Verdict) {
        let release = match (verdict, self.held.remove(&id)) {
            (Verdict::Deny, _) => Release::Deny,
            (Verdict::Check, Some(expectation)) => Release::AllowChecked(expectation),
            (Verdict::Allow | Verdict::Check, _) => Release::Allow,
        };
        // Before it is sent: whatever ran without such a line ran unapproved.
        println!("released seq={} tid={} verdict={verdict:?}", id.sequence, id.tid);
        self.handle.send(ToKernel::Release { id, release });
    }

    fn message(&mut self, message: FromKernel) -> Result<(), Box<dyn Error>> {
        match message {
            FromKernel::Asked(asked) => {
                let text = text(&asked.what);
                let what = match &asked.what {
                    AskedAction::Exec(exec) => format!("path={text} unlinked={}", exec.unlinked),
                    AskedAction::Change(asked) => format!(
                        "change={text} directory={} mode={:o} owner={:?} old={:?} text={}",
                        asked.change.directory,
                        asked.change.mode,
                        asked.change.owner,
                        asked.change.old,
                        asked.change.text.escape_ascii()
                    ),
                    AskedAction::Reach(reach) => format!(
                        "reach={text} how={:?} family={} kind={} protocol={}",
                        reach.how, reach.family, reach.kind, reach.protocol
                    ),
                };
                println!(
                    "asked seq={} tid={} tgid={} ppid={} uid={} label={} comm={} {what}",
                    asked.id.sequence,
                    asked.id.tid,
                    asked.tgid,
                    asked.ppid,
                    asked.uid,
                    asked.label.0,
                    String::from_utf8_lossy(&asked.comm).escape_debug(),
                );
                if self.learns && matches!(self.rule(&text), Answer::Now(Verdict::Allow)) {
                    match asked.rule {
                        Some(key) => println!("rule {text} {:?}", self.exact.add(&key, asked.at_ns, text.as_bytes())),
                        None => println!("rule {text} none"),
                    }
                }
                self.asked.insert(asked.id, asked.what);
                match self.rule(&text) {
                    Answer::Now(verdict) => self.release(asked.id, verdict),
                    Answer::Ignore => {}
                    Answer::HoldLate(time) => self.wanted.push((Instant::now() + time, asked.id)),
                    Answer::After(..) | Answer::HoldForEver => self.handle.send(ToKernel::Hold(asked.id)),
                }
            }
            FromKernel::Held(held) => self.held(*held)?,
            FromKernel::Withdrawn { id, why } => {
                println!("withdrawn seq={} tid={} why={why:?}", id.sequence, id.tid);
                self.asked.remove(&id);
                self.held.remove(&id);
                self.due.retain(|(_, due, _)| *due != id);
            }
            FromKernel::Enforced(enforced) => println!(
                "enforced seq={} tid={} resume_us={} outcome={:?}",
                enforced.id.sequence,
                enforced.id.tid,
                enforced.resume_ns / 1000,
                enforced.outcome
            ),
            FromKernel::CgroupMade { id, path } => println!("cgroup made {id} {}", path.display()),
            FromKernel::CgroupGone { id } => {
                println!("cgroup gone {id}");
                self.handle.send(ToKernel::Unlabel { cgroup: id });
            }
            FromKernel::Labelled { cgroup, result } => println!("labelled {cgroup} {result:?}"),
            FromKernel::Resolved(reply) => println!(
                "resolved label={} resolver={} namespace={} reply={}",
                reply.label.0,
                reply.resolver,
                reply.network_namespace,
                reply.message.escape_ascii()
            ),
            FromKernel::Passed { asked, end, .. } => println!("passed seq={} end={end:?}", asked.id.sequence),
            FromKernel::Lost { count } => println!("lost {count}"),
        }
        Ok(())
    }

    fn held(&mut self, held: Held) -> Result<(), Box<dyn Error>> {
        let asked = self.asked.get(&held.id).ok_or("held before asked")?;
        let text = text(asked);
        let name = match asked {
            AskedAction::Exec(_) => "path",
            AskedAction::Reach(_) => "reach",
            AskedAction::Change(_) => "change",
        };
        let line = format!(
            "held seq={} tid={} {name}={text} how={:?} rounds={} took_us={}",
            held.id.sequence,
            held.id.tid,
            held.how,
            held.rounds,
            held.took_ns / 1000
        );
        if let Some(tracer) = &held.tracer {
            println!(
                "tracer tid={} pid={} comm={}",
                held.id.tid,
                tracer.pid,
                tracer.comm.escape_ascii()
            );
        }
        match (asked, held.exec) {
            (AskedAction::Exec(asked), Some(exec)) => {
                let expectation = expectation(&line, asked.file, exec)?;
                self.held.insert(held.id, Arc::new(expectation));
            }
            (AskedAction::Exec(_), None) => return Err("an exec was held that was not read".into()),
            (AskedAction::Reach(_) | AskedAction::Change(_), _) => println!("{line}"),
        }
        match self.rule(&text) {
            Answer::Now(verdict) => self.release(held.id, verdict),
            Answer::After(time, verdict) => self.due.push((Instant::now() + time, held.id, verdict)),
            Answer::HoldForEver | Answer::HoldLate(_) | Answer::Ignore => {}
        }
        Ok(())
    }
}

/// Shows what a held exec is about to do, and takes it as approved.
fn expectation(line: &str, file: FileKey, exec: HeldExec) -> Result<ExecExpectation, Box<dyn Error>> {
    let opened = exec.file.is_some();
    let mut hash = Sha256::new();
    if let Some(file) = exec.file {
        let mut file = std::fs::File::from(file);
        let mut buffer = vec![0; 1 << 18];
        loop {
            let got = file.read(&mut buffer)?;
            if got == 0 {
                break;
            }
            hash.update(&buffer[..got]);
        }
    }
    let argv: Vec<String> = exec
        .argv
        .strings
        .iter()
        .map(|string| String::from_utf8_lossy(string).escape_debug().to_string())
        .collect();
    println!(
        "{line} argc={} envc={} cwd={} given={} file={opened} argv={argv:?}",
        exec.argv.count,
        exec.environment.count,
        exec.cwd.display(),
        exec.given.display(),
    );
    Ok(ExecExpectation {
        file,
        sha256: hash.finalize().into(),
        argv_sha256: exec.argv.sha256,
        environment_sha256: exec.environment.sha256,
        cwd: exec.cwd,
    })
}

/// SIGTERM: ends as an agent that is stopped, in order. SIGHUP: another policy comes into force, and makes exact rules. SIGUSR1: there
/// are none from here on.
fn on_signals(
    terminated: Arc<AtomicBool>,
    reloaded: Arc<AtomicBool>,
    emptied: Arc<AtomicBool>,
) -> Result<(), Box<dyn Error>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut terminate, mut hangup, mut user) = {
        let _inside = runtime.enter();
        (
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
            signal(SignalKind::user_defined1())?,
        )
    };
    std::thread::spawn(move || {
        runtime.block_on(async {
            loop {
                tokio::select! {
                    _ = terminate.recv() => return terminated.store(true, Ordering::Relaxed),
                    _ = hangup.recv() => reloaded.store(true, Ordering::Relaxed),
                    _ = user.recv() => emptied.store(true, Ordering::Relaxed),
                }
            }
        });
    });
    Ok(())
}

/// Generations of exact rules: no two are the same, whoever gave the last one.
fn generation() -> Result<u64, Box<dyn Error>> {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    Ok(u64::try_from(now.as_nanos())?)
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hold_probe: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .without_time()
        .init();
    let mut config = KernelConfig::default();
    let mut labels = Vec::new();
    let mut allowed = Vec::new();
    let mut rules = Vec::new();
    let mut until = None;
    let mut settings = guard_agent::protect::Settings {
        config_file: "/etc/guard/agent.toml".into(),
        policy_file: "/etc/guard/policy.cedar".into(),
        state_dir: "/var/lib/guard-agent".into(),
        socket: "/run/guard/agent.sock".into(),
        pin_directory: PathBuf::new(),
        paths: Vec::new(),
        addresses: Vec::new(),
        console: None,
        free: Vec::new(),
    };
    let (mut asking, mut free) = (Vec::new(), Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--pins" => config.pin_directory = PathBuf::from(value()?),
            "--park-after" => config.park_after = Duration::from_millis(value()?.parse()?),
            "--run" => until = Some(Instant::now() + Duration::from_secs(value()?.parse()?)),
            "--away" => {
                config.away = match value()?.as_str() {
                    "park" => Away::Park,
                    "deny" => Away::Deny,
                    "allow" => Away::Allow,
                    other => return Err(format!("unknown --away {other}").into()),
                }
            }
            "--pending" => config.pending = value()?.parse()?,
            "--tasks" => config.tasks = value()?.parse()?,
            "--sockets" => config.sockets = value()?.parse()?,
            "--usage" => {
                println!("{:?}", kernel::usage(&config.pin_directory)?);
                return Ok(());
            }
            "--label" => {
                let value = value()?;
                let (folder, number) = value.split_once('=').unwrap_or((&value, "1"));
                labels.push((PathBuf::from(folder), number.parse::<u32>()?));
            }
            "--allow" => {
                let value = value()?;
                let (number, names) = value.split_once('=').ok_or("--allow N=NAME,...")?;
                let mut allow = Allowed::default();
                if let Some(unknown) = names.split(',').find(|name| !allow.add(name)) {
                    return Err(format!("nothing is called {unknown}").into());
                }
                allowed.push((LabelId(number.parse()?), allow));
            }
            "--ask-writes" => {
                config.files = true;
                asking.push(LabelId(value()?.parse()?));
            }
            "--free" => {
                let value = value()?;
                let (label, folder) = value.split_once('=').ok_or("--free LABEL=DIR")?;
                free.push((LabelId(label.parse()?), PathBuf::from(folder)));
            }
            "--protect" => {
                let value = value()?;
                if value.starts_with(['/', '~']) {
                    settings.paths.push(value.into());
                } else {
                    settings.addresses.push(value);
                }
            }
            "--doctor" => {
                for finding in kernel::doctor() {
                    println!("{:?} {} {}", finding.state, finding.name, finding.text);
                }
            }
            "--crash-points" => {
                for (point, needs) in kernel::crash::POINTS {
                    println!("{point} {needs:?}");
                }
                return Ok(());
            }
            "--remove" => {
                kernel::remove(&config)?;
                return Ok(());
            }
            rule => {
                let (pattern, then) = rule
                    .rsplit_once('=')
                    .ok_or_else(|| format!("unknown argument {rule}"))?;
                rules.push((pattern.to_owned(), answer(then)?));
            }
        }
    }
    let started = Instant::now();
    let (handle, mut messages, facts) = kernel::start(&config, None)?;
    println!(
        "started kernel={} programs={} absent={:?} took_over={} kept={} questions={} in_ms={}",
        facts.release,
        facts.programs.len(),
        facts.absent,
        facts.took_over,
        facts.kept,
        facts.taken_over_questions,
        started.elapsed().as_millis()
    );
    println!("offsets {:?}", facts.offsets);
    let protect = handle.protect().ok_or("no kernel")?;
    settings.pin_directory = config.pin_directory.clone();
    let mut protection = guard_agent::protect::start(std::sync::Arc::clone(&protect), settings)?;
    let mut protection_due = Instant::now();
    let mut refused = HashMap::new();
    let mut entries = HashMap::new();
    for (label, folder) in free {
        let directory = std::os::fd::OwnedFd::from(std::fs::File::open(folder)?);
        let label = (label != LabelId(0)).then_some(label);
        entries.insert(kernel::free(label, protect.identify(&directory, true)?), 1);
    }
    protect.set_free(&entries)?;
    let mut named: HashMap<LabelId, (Allowed, Writes)> = HashMap::new();
    for (label, allow) in allowed {
        named.entry(label).or_insert((Allowed::default(), config.writes)).0 = allow;
    }
    for label in asking {
        named.entry(label).or_insert((Allowed::default(), config.writes)).1 = Writes::Ask;
    }
    for (label, (allow, writes)) in named {
        let settings = LabelSettings {
            away: config.away,
            pending: config.pending,
            looping: config.looping,
            tasks: config.tasks,
            sockets: config.sockets,
            allow,
            writes,
        };
        handle.send(ToKernel::Settings { label, settings });
    }
    let exact = handle.rules().ok_or("no kernel")?;
    let mut used = HashMap::new();
    for (folder, label) in labels {
        let cgroup = std::fs::metadata(&folder)?.ino();
        handle.send(ToKernel::Label {
            cgroup,
            label: LabelId(label),
        });
    }
    handle.send(ToKernel::Settled);
    let mut probe = Probe {
        handle,
        rules,
        exact,
        learns: false,
        asked: HashMap::new(),
        held: HashMap::new(),
        due: Vec::new(),
        wanted: Vec::new(),
    };
    let terminated = Arc::new(AtomicBool::new(false));
    let reloaded = Arc::new(AtomicBool::new(false));
    let emptied = Arc::new(AtomicBool::new(false));
    on_signals(Arc::clone(&terminated), Arc::clone(&reloaded), Arc::clone(&emptied))?;
    println!("ready");
    loop {
        match messages.try_recv() {
            Ok(message) => {
                if let Err(error) = probe.message(message) {
                    eprintln!("probe: {error}");
                }
            }
            Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => return Err("the holder has ended".into()),
            Err(tokio::sync::mpsc::error::TryRecvError::Empty) => std::thread::sleep(Duration::from_millis(1)),
        }
        let now = Instant::now();
        if now >= protection_due {
            protection_due = now + Duration::from_millis(500);
            protection.look();
            for uses in probe.exact.unrecorded() {
                if used.insert(uses.slot, uses.count) != Some(uses.count) {
                    let what = String::from_utf8_lossy(&uses.note).into_owned();
                    println!("used slot={} count={} {what}", uses.slot, uses.count);
                }
            }
            for (key, count, last) in protect.unreported() {
                if refused.insert(key, count) != Some(count) {
                    println!(
                        "refused label={} kind={} count={count} tgid={}",
                        key.label, key.kind, last.tgid
                    );
                }
            }
        }
        if reloaded.swap(false, Ordering::Relaxed) {
            probe.exact.begin(generation()?)?;
            probe.learns = true;
            println!("another policy");
        }
        if emptied.swap(false, Ordering::Relaxed) {
            probe.exact.begin(0)?;
            probe.learns = false;
            println!("no exact rules");
        }
        for (_, id) in probe.wanted.extract_if(.., |(at, _)| *at <= now) {
            // Said first: when the holder begins with it is known then.
            println!("wanted seq={} tid={}", id.sequence, id.tid);
            probe.handle.send(ToKernel::Hold(id));
        }
        let (due, later) = std::mem::take(&mut probe.due)
            .into_iter()
            .partition(|(at, _, _)| *at <= now);
        probe.due = later;
        for (_, id, verdict) in due as Vec<(Instant, ActionId, Verdict)> {
            probe.release(id, verdict);
        }
        if terminated.load(Ordering::Relaxed) || until.is_some_and(|until| now > until) {
            probe.handle.send(ToKernel::Stop);
            std::thread::sleep(Duration::from_millis(100));
            println!("stopped");
            return Ok(());
        }
    }
}
