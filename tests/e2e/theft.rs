//! Self-approval by theft: the workload is root, the same Unix user as an approver who is signed in on this host.
//!
//! The same program runs with and without a label: whatever it can do without, it must not be able to do with one.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use guard_tests::scene::{CODER, Scene, end, eventually, expect_status};
use guard_tests::{Case, case, check};
use xtask::stage::PATIENCE;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "theft::nothing_of_an_approver_is_reached",
            "a labelled root reaches neither sign-in, console, socket, keys, policy, pins nor processes of Guard; without a label it does; \
             each attempt is an alarm",
            thefts,
        ),
        case(
            "theft::a_new_sign_in_is_out_of_reach",
            "somebody signs in while a labelled process of the same user watches for the file: it never opens it",
            new_sign_in,
        ),
        case(
            "theft::places_that_come_late",
            "a home and a protected path that come into being are out of reach at once; status counts the attempts; a place of \
             Guard's own that cannot be looked at is an alarm, and stops a start with its name",
            late_places,
        ),
    ]
}

/// One line for each: `reached NAME` or `refused NAME`; nothing is changed, so that it can run twice.
const THEFTS: &str = r#"
import ctypes, os, socket, subprocess, sys
libc = ctypes.CDLL(None, use_errno=True)
agent, console, watcher = (int(pid) for pid in sys.argv[1:4])

def read(path):
    with open(path, "rb") as file:
        return len(file.read(64)) > 0

def writable(path):
    os.close(os.open(path, os.O_WRONLY | os.O_APPEND))

def reach(family, address, port):
    with socket.socket(family, socket.SOCK_STREAM) as it:
        it.settimeout(10)
        it.connect((address, port))

def unix(path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as it:
        it.settimeout(10)
        it.connect(path)

def call(function, *arguments):
    if function(*arguments) < 0:
        raise OSError(ctypes.get_errno(), "")

def trace(pid):
    call(libc.ptrace, 0x4206, pid, 0, 0)
    # Ends with this process, which leaves it running.

def theft(name, attempt):
    try:
        attempt()
        print("reached", name, flush=True)
    except OSError as error:
        print("refused", name, error.errno, flush=True)

token = "/root/.config/guard/credentials.json"
four, six = socket.AF_INET, socket.AF_INET6
theft("token", lambda: read(token))
theft("sign-ins", lambda: os.listdir("/root/.config/guard"))
theft("token-by-other-root", lambda: read(f"/proc/{watcher}/root{token}"))
theft("agent-key", lambda: read("/var/lib/guard-agent/identity/evidence.key"))
theft("agent-state", lambda: os.listdir("/var/lib/guard-agent"))
theft("console-state", lambda: os.listdir("/var/lib/guard-console"))
theft("policy", lambda: os.listdir("/etc/guard"))
theft("new-policy", lambda: os.close(os.open("/etc/guard/theft-test", os.O_WRONLY | os.O_CREAT)))
theft("unit", lambda: writable(unit))
theft("program", lambda: os.chmod("/usr/bin/guard-agent", 0o755))
theft("pins", lambda: os.listdir("/sys/fs/bpf/guard"))
theft("bpf", lambda: call(libc.syscall, ctypes.c_long(321), 11, ctypes.create_string_buffer(b"\0" * 120, 120), 120))
theft("console-v4", lambda: reach(four, "127.0.0.1", 8443))
theft("console-v6", lambda: reach(six, "::1", 8443))
theft("console-mapped", lambda: reach(six, "::ffff:127.0.0.1", 8443))
theft("console-any", lambda: reach(four, "0.0.0.0", 8443))
theft("console-hosts", lambda: reach(four, "127.0.0.1", 8444))
theft("control", lambda: unix("/run/guard/agent.sock"))
theft("agent-signal", lambda: os.kill(agent, 0))
theft("console-signal", lambda: os.kill(console, 0))
theft("watcher-memory", lambda: read(f"/proc/{watcher}/maps"))
theft("watcher-environment", lambda: read(f"/proc/{watcher}/environ"))
theft("watcher-descriptor", lambda: os.readlink(f"/proc/{watcher}/fd/1"))
theft("watcher-trace", lambda: trace(watcher))
"#;

fn outcome(text: &str) -> BTreeMap<String, bool> {
    text.lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let reached = match words.next()? {
                "reached" => true,
                "refused" => false,
                _ => return None,
            };
            Some((words.next()?.to_owned(), reached))
        })
        .collect()
}

fn thefts() -> Result<()> {
    let scene = Scene::new()?;
    let unit = scene
        .vm
        .sh("ls /etc/systemd/system/guard-agent.service /usr/lib/systemd/system/guard-agent.service 2>/dev/null | head -1")?
        .text();
    ensure!(!unit.is_empty(), "there is no unit of the agent");
    let script = format!("unit = {unit:?}\n{THEFTS}");
    scene.vm.write(script.as_bytes(), "/root/thefts.py", 0o644)?;
    let watcher = scene.vm.start_command(&["guard", "requests", "watch"])?;
    let pid_of = |what: &str| -> Result<String> {
        let mut pid = String::new();
        eventually(PATIENCE, || {
            pid = scene.vm.sh(what)?.text();
            ensure!(!pid.is_empty() && pid != "0", "no process: {what}");
            Ok(())
        })?;
        Ok(pid)
    };
    let agent = pid_of("systemctl show -P MainPID guard-agent")?;
    let console = pid_of("systemctl show -P MainPID guard-console")?;
    let watching = pid_of("pgrep -n -f '^guard requests [w]atch' || true")?;
    let argv = ["/usr/bin/python3", "/root/thefts.py", &agent, &console, &watching];

    let with = scene.start_labelled(CODER, &argv)?;
    scene.approve_next(CODER, "thefts.py")?;
    let with = end(with)?;
    let without = scene.vm.run(&argv)?;
    let names = THEFTS.matches("\ntheft(\"").count();
    let (labelled, free) = (outcome(&with.text()), outcome(&without.text()));
    check!(labelled.len() == names && free.len() == names, "{with} {without}");
    let reached: Vec<&String> = labelled
        .iter()
        .filter(|(_, reached)| **reached)
        .map(|(name, _)| name)
        .collect();
    check!(reached.is_empty(), "with a label it reached {reached:?}: {with}");
    let unproven: Vec<&String> = free
        .iter()
        .filter(|(_, reached)| !**reached)
        .map(|(name, _)| name)
        .collect();
    check!(
        unproven.is_empty(),
        "without a label it did not reach {unproven:?}: {without}"
    );

    eventually(PATIENCE, || {
        let page = scene
            .call(Some(scene.admin()), "GET", "/alarms", None)?
            .success()?
            .json()?;
        let alarms = page["items"].as_array().context("no items")?;
        for object in ["sign-in", "agent's files", "console's address", "signal to Guard"] {
            ensure!(
                alarms.iter().any(|alarm| alarm["kind"] == "theft"
                    && alarm["detail"]
                        .as_str()
                        .is_some_and(|detail| detail.contains(object) && detail.contains(CODER))),
                "no alarm for {object}: {page}"
            );
        }
        Ok(())
    })?;
    drop(watcher);
    let table = scene.guard(&scene.approver, &["alarms"])?.success()?.text();
    check!(table.contains("theft") && table.contains("sign-in"), "{table}");
    // And they are in what an auditor gets, whatever becomes of the console.
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    scene.trust("/root/trust.json")?;
    scene.export("/root/bundle")?;
    expect_status(&scene.verify("/root/bundle")?, 0)?;
    let records = scene
        .vm
        .script("for f in /root/bundle/records/*; do jq -r .payload $f | base64 -d | jq -c 'select(.predicate.event.kind == \"theft_refused\").predicate.event'; done")?
        .text();
    for object in ["sign-in", "agent's files", "console's address", "signal to Guard"] {
        check!(
            records
                .lines()
                .any(|line| line.contains(&format!("\"object\":\"{object}")) && line.contains(CODER)),
            "no record for {object}: {records}"
        );
    }
    Ok(())
}

const WATCH: &str = r#"
import os, sys, time
print("watching", flush=True)
end = time.monotonic() + 40
while time.monotonic() < end and not os.path.exists("/tmp/signed-in"):
    try:
        os.open("/root/.config/guard/credentials.late.json", os.O_RDONLY)
        print("stolen", flush=True)
        sys.exit(1)
    except OSError:
        pass
print("nothing", flush=True)
"#;

fn new_sign_in() -> Result<()> {
    let scene = Scene::new()?;
    // As if nobody had ever signed in here: the directory itself is made anew.
    scene
        .vm
        .sh("cp -a /root/.config/guard /root/saved && rm -rf /root/.config")?
        .success()?;
    scene.vm.write(WATCH.as_bytes(), "/root/watch.py", 0o644)?;
    let thief = scene.start_labelled(CODER, &["/usr/bin/python3", "/root/watch.py"])?;
    scene.approve_next(CODER, "watch.py")?;
    scene
        .vm
        .sh("guard --as late login --url https://localhost:8443 --ca /var/lib/guard-console/ca.pem --username approver --password-file /root/guard-vm/approver.password")?
        .success()?;
    check!(
        scene
            .vm
            .sh("cat /root/.config/guard/credentials.late.json")?
            .success()?
            .text()
            .contains("token"),
        "nobody signed in"
    );
    scene.vm.sh("sleep 1; touch /tmp/signed-in")?.success()?;
    let output = end(thief)?;
    expect_status(&output, 0)?;
    check!(output.text().ends_with("nothing"), "{output}");
    Ok(())
}

/// Tries each path a second after it came into being; the test says when by a file with its number.
const LATE: &str = r#"
import os, sys, time
for number, path in enumerate(sys.argv[1:]):
    end = time.monotonic() + 60
    while not os.path.exists(f"/tmp/late-{number}") and time.monotonic() < end:
        time.sleep(0.05)
    time.sleep(1)
    try:
        os.close(os.open(path, os.O_RDONLY))
        print("reached", number, flush=True)
    except OSError as error:
        print("refused", number, error.errno, flush=True)
"#;

/// So many that looking every five seconds alone would not find all of them in time.
const LATE_PLACES: [&str; 4] = [
    "/home/late-1/.mozilla/cookies",
    "/srv/late/secret/file",
    "/home/late-2/.config/chromium/cookies",
    "/home/late-3/.mozilla/cookies",
];

fn late_places() -> Result<()> {
    let scene = Scene::new()?;
    scene
        .vm
        .sh("printf '[protect]\\npaths = [\"/srv/late/secret\"]\\n' >>/etc/guard/agent.toml; systemctl restart guard-agent")?
        .success()?;
    scene.vm.write(LATE.as_bytes(), "/root/late.py", 0o644)?;
    let mut argv = vec!["/usr/bin/python3", "/root/late.py"];
    argv.extend(LATE_PLACES);
    let thief = scene.start_labelled(CODER, &argv)?;
    scene.approve_next(CODER, "late.py")?;
    for (number, path) in LATE_PLACES.iter().enumerate() {
        let make = format!("mkdir -p $(dirname {path}) && echo secret >{path} && touch /tmp/late-{number}; sleep 1.5");
        scene.vm.sh(&make)?.success()?;
    }
    let output = end(thief)?;
    let refused = outcome(&output.text());
    for (number, path) in LATE_PLACES.iter().enumerate() {
        check!(refused.get(&number.to_string()) == Some(&false), "{path}: {output}");
    }
    let side = scene.agent()?.kernel_side.context("no numbers of the kernel side")?;
    let coder = side
        .labels
        .iter()
        .find(|side| side.label == CODER)
        .context("no label")?;
    let of = |object: &str| coder.refused_theft.iter().find(|theft| theft.object == object);
    check!(
        of("browser profile").is_some_and(|theft| theft.count >= 3)
            && of("protected path").is_some_and(|theft| theft.count >= 1),
        "{coder:?}"
    );
    check!(coder.tasks_limit > 0 && coder.held_limit > 0, "{coder:?}");
    let status = scene.vm.run(&["guard", "status"])?.success()?.text();
    check!(status.contains("browser profile"), "{status}");

    // Nobody can open what a link leads to that leads to itself.
    let unit = "/etc/systemd/system/guard-console.service.d";
    scene
        .vm
        .sh(&format!("rm -rf {unit}; ln -s guard-console.service.d {unit}"))?
        .success()?;
    eventually(PATIENCE, || {
        let page = scene
            .call(Some(scene.admin()), "GET", "/alarms", None)?
            .success()?
            .json()?;
        let alarms = page["items"].as_array().context("no items")?;
        let told = |alarm: &serde_json::Value| {
            alarm["kind"] == "unprotected" && alarm["detail"].as_str().is_some_and(|detail| detail.contains(unit))
        };
        ensure!(alarms.iter().any(told), "no alarm: {page}");
        Ok(())
    })?;
    let started = scene
        .vm
        .sh("timeout 30 systemctl restart guard-agent 2>&1; journalctl -u guard-agent -n 40 --no-pager")?;
    check!(
        started
            .text()
            .contains(&format!("{unit} is Guard's own, is there, and cannot be protected")),
        "{started}"
    );
    scene
        .vm
        .sh(&format!("rm {unit}; systemctl restart guard-agent"))?
        .success()?;
    scene.agent_until(|agent| agent.enforcing)
}
