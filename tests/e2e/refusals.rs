//! What must be refused, with words that help, and without harm to what runs.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, expect_error_says, expect_problem, expect_status};
use guard_tests::{Case, case, check};
use serde_json::json;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "refusals::wrong_password",
            "a wrong password is refused by REST and by guard login, with the same words as an unknown user",
            wrong_password,
        ),
        case(
            "refusals::locked_after_failures",
            "repeated failures lock a user for a while, the right password included",
            locked,
        ),
        case(
            "refusals::setup_link_works_once",
            "the set-up secret is spent after the first administrator",
            setup_once,
        ),
        case(
            "refusals::foreign_certificate",
            "the host API takes no client without certificate, nor one of another CA",
            foreign_certificate,
        ),
        case(
            "refusals::spent_token",
            "an enrolment token works once; a wrong CA pin and a malformed token are refused before anything is sent",
            spent_token,
        ),
        case(
            "refusals::malformed_agent_configuration",
            "every malformed agent.toml is an error with file, line and remedy, and the agent does not start with it",
            malformed_configuration,
        ),
        case(
            "refusals::malformed_http",
            "malformed bodies, paths and headers get 4xx problems, and the console lives on",
            malformed_http,
        ),
        case(
            "refusals::malformed_grpc",
            "malformed bytes and messages on the host API harm nobody",
            malformed_grpc,
        ),
        case(
            "refusals::malformed_control_lines",
            "malformed lines on the agent's socket are refused, and the agent lives on",
            malformed_control,
        ),
        case(
            "refusals::disabled_user",
            "a disabled user's sessions end",
            disabled_user,
        ),
    ]
}

fn wrong_password() -> Result<()> {
    let scene = Scene::new()?;
    let wrong = json!({"username": "approver", "password": "wrong password"});
    let unknown = json!({"username": "nobody-of-that-name", "password": "wrong password"});
    let one = scene.call(None, "POST", "/sessions", Some(&wrong))?;
    let two = scene.call(None, "POST", "/sessions", Some(&unknown))?;
    expect_problem(&one, 401, &["password"])?;
    check!(
        one.json()?["detail"] == two.json()?["detail"] && one.status == two.status,
        "{one} differs from {two}"
    );
    let output = scene.guard_login_with("approver", "wrong password")?;
    expect_status(&output, 1)?;
    expect_error_says(&output, &["password"])?;
    check!(
        !output.to_string().contains("wrong password"),
        "the password is echoed: {output}"
    );
    let log = scene.vm.script("journalctl -u guard-console --no-pager")?;
    check!(!log.text().contains("wrong password"), "the password is in the log");
    scene.guard_login(&scene.approver)
}

fn locked() -> Result<()> {
    let scene = Scene::new()?;
    let wrong = json!({"username": "approver", "password": "wrong"});
    let mut last = 0;
    for _ in 0..30 {
        last = scene.call(None, "POST", "/sessions", Some(&wrong))?.status;
        if last == 429 {
            break;
        }
    }
    check!(last == 429, "thirty wrong passwords and the last answer is HTTP {last}");
    let right = json!({"username": scene.approver.name, "password": scene.approver.password});
    expect_problem(&scene.call(None, "POST", "/sessions", Some(&right))?, 429, &[])?;
    // Nobody locks out others, nor a session that exists.
    scene.call(Some(&scene.approver), "GET", "/me", None)?.success()?;
    scene.guard_login(&scene.owner)
}

fn setup_once() -> Result<()> {
    let scene = Scene::new()?;
    let status = scene.call(None, "GET", "/status", None)?.success()?.json()?;
    check!(status["needs_setup"] == false, "{status}");
    let body = json!({"secret": "0".repeat(64), "username": "second-first", "password": "correct horse battery"});
    let answer = scene.call(None, "POST", "/setup", Some(&body))?;
    check!(matches!(answer.status, 403 | 404 | 409 | 410), "{answer}");
    check!(
        scene
            .vm
            .run(&["test", "-e", "/var/lib/guard-console/setup-link"])?
            .status
            == 1,
        "the link's file is still there"
    );
    Ok(())
}

/// Connects to the host API with what it is given, sends bytes, and says what came back.
const HOST_API: &str = r#"
import socket, ssl, sys
mode, certificate, key, payload = sys.argv[1:5]
context = ssl.create_default_context(cafile="/var/lib/guard-console/ca.pem")
context.check_hostname = False
context.set_alpn_protocols(["h2"])
if certificate:
    context.load_cert_chain(certificate, key)
try:
    with socket.create_connection(("127.0.0.1", 8444), 20) as raw, context.wrap_socket(raw) as s:
        s.settimeout(20)
        s.sendall(bytes.fromhex(payload))
        data = b""
        while True:
            more = s.recv(65536)
            if not more:
                break
            data += more
            if mode == "first":
                break
        print("data", data[:200].hex())
except (ssl.SSLError, OSError) as error:
    print("refused", error)
"#;

/// The HTTP/2 preface and an empty SETTINGS frame.
const PREFACE: &str = "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a000000040000000000";

fn host_api(scene: &Scene, mode: &str, certificate: &str, key: &str, payload: &str) -> Result<String> {
    scene.vm.write(HOST_API.as_bytes(), "/root/host-api.py", 0o644)?;
    Ok(scene
        .vm
        .run(&["/usr/bin/python3", "/root/host-api.py", mode, certificate, key, payload])?
        .success()?
        .text())
}

/// The agent's own key and certificate: one file.
fn agent_identity(scene: &Scene) -> Result<String> {
    let found = scene
        .vm
        .script("find /var/lib/guard /var/lib/guard-agent -name tls.pem 2>/dev/null | head -1")?
        .text();
    check!(!found.is_empty(), "the agent has no certificate");
    Ok(found)
}

fn foreign_certificate() -> Result<()> {
    let scene = Scene::new()?;
    let identity = agent_identity(&scene)?;
    let own = host_api(&scene, "first", &identity, &identity, PREFACE)?;
    check!(own.starts_with("data"), "the host's own certificate: {own}");
    // Enrolment needs no certificate, so one less handshake may be accepted; then every other service must refuse.
    scene.vm.script(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
         -subj /CN=host:01ARZ3NDEKTSV4RRFFQ69G5FAV -keyout /root/foreign.key -out /root/foreign.pem",
    )?;
    let refused = host_api(&scene, "first", "/root/foreign.pem", "/root/foreign.key", PREFACE)?;
    check!(refused.starts_with("refused"), "a foreign certificate: {refused}");
    // One well-formed, empty message.
    scene.vm.script("head -c 5 /dev/zero >/root/message")?;
    for service in [
        "/guard.v1.Approval/Session",
        "/guard.v1.Approval/Renew",
        "/guard.v1.Evidence/Append",
    ] {
        let output = scene.vm.run(&[
            "curl",
            "--silent",
            "--show-error",
            "--http2",
            "--cacert",
            "/var/lib/guard-console/ca.pem",
            "--max-time",
            "20",
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            "--data-binary",
            "@/root/message",
            "-D",
            "-",
            &format!("https://localhost:8444{service}"),
        ])?;
        let text = output.text().to_lowercase();
        // 16 is UNAUTHENTICATED, 7 PERMISSION_DENIED.
        check!(
            output.status != 0 || text.contains("grpc-status: 16") || text.contains("grpc-status: 7"),
            "{service} without certificate: {output}"
        );
    }
    Ok(())
}

fn spent_token() -> Result<()> {
    let scene = Scene::new()?;
    let made = scene
        .guard(scene.admin(), &["tokens", "create", "-o", "json"])?
        .success()?;
    let token: guard_proto::rest::Token = serde_json::from_slice(&made.stdout)?;
    let parts: Vec<&str> = token.token.split('.').collect();
    check!(parts.first() == Some(&"guard1"), "{}", parts[0]);
    let enroll = |name: &str, token: &str| -> Result<xtask::vm::Output> {
        scene.vm.write(format!("{token}\n").as_bytes(), "/root/token", 0o600)?;
        let text = format!("state_dir = \"/root/{name}/state\"\n");
        scene
            .vm
            .write(text.as_bytes(), &format!("/root/{name}/agent.toml"), 0o644)?;
        let config = format!("/root/{name}/agent.toml");
        scene.vm.run(&[
            "guard-agent",
            "enroll",
            "--config",
            &config,
            "--token-file",
            "/root/token",
        ])
    };
    expect_status(&enroll("first", &token.token)?, 0)?;
    let spent = enroll("second", &token.token)?;
    check!(spent.status != 0, "a spent token joined a host: {spent}");
    expect_error_says(&spent, &["token"])?;
    let secret = parts.last().copied().unwrap_or_default();
    check!(
        !spent.to_string().contains(secret),
        "the token's secret is shown: {spent}"
    );

    let made = scene
        .guard(scene.admin(), &["tokens", "create", "-o", "json"])?
        .success()?;
    let token: guard_proto::rest::Token = serde_json::from_slice(&made.stdout)?;
    let pin = token.token.rsplit('.').nth(1).context("no pin")?;
    let other_pin = token.token.replace(pin, &"0".repeat(pin.len()));
    let pinned = enroll("third", &other_pin)?;
    check!(pinned.status != 0, "another CA was accepted: {pinned}");
    for bad in [
        "",
        "guard1",
        "guard2.a.b.c",
        "guard1.localhost:8444.zz.secret",
        &"x".repeat(100_000),
    ] {
        let output = enroll("fourth", bad)?;
        check!(output.status != 0 && !output.stderr.is_empty(), "{output}");
    }
    // The token was not used up by the attempts that never reached the console.
    expect_status(&enroll("fifth", &token.token)?, 0)
}

fn malformed_configuration() -> Result<()> {
    let scene = Scene::new()?;
    let broken = [
        ("unknown key", "no_such_key = true\n[log]\n", 1),
        (
            "unknown key in a table",
            "[log]\nlevel = \"info\"\nlevle = \"info\"\n",
            3,
        ),
        ("syntax", "[log]\nlevel = \"info\"\nthis is not toml\n", 3),
        ("wrong type", "\n[hold]\npark_after = 5\n", 3),
        ("wrong unit", "[hold]\npark_after = \"soon\"\n", 2),
        ("unknown choice", "[hold]\naway = \"never\"\n", 2),
        ("bad label", "[[label]]\nname = \"Not A Label\"\ncgroup = \"/x\"\n", 2),
        ("missing key", "[[label]]\ncgroup = \"/fine\"\n", 1),
    ];
    for (name, text, line) in broken {
        scene.vm.write(text.as_bytes(), "/root/agent.toml", 0o644)?;
        let output = scene.vm.run(&["guard-agent", "run", "--config", "/root/agent.toml"])?;
        check!(output.status != 0 && output.status < 101, "{name}: {output}");
        expect_error_says(&output, &[&format!("/root/agent.toml:{line}"), "→"]).context(name)?;
    }
    scene.vm.sh("head -c 300 /dev/urandom >/root/agent.toml")?;
    let output = scene.vm.run(&["guard-agent", "run", "--config", "/root/agent.toml"])?;
    check!(
        output.status != 0 && output.status < 101,
        "bytes that are no text: {output}"
    );
    expect_error_says(&output, &["/root/agent.toml"])?;
    let output = scene
        .vm
        .run(&["guard-agent", "run", "--config", "/root/not-there.toml"])?;
    check!(output.status != 0, "{output}");
    expect_error_says(&output, &["/root/not-there.toml"])?;
    // And the service does not come up with it: enforcement that is on stays on.
    scene.vm.script("echo 'no_such_key = 1' >/root/head; { cat /root/head; cat /etc/guard/agent.toml 2>/dev/null; } >/root/new; cp /root/new /etc/guard/agent.toml")?;
    let restart = scene.vm.sh("systemctl restart guard-agent")?;
    check!(restart.status != 0, "{restart}");
    let log = scene
        .vm
        .script("journalctl -u guard-agent --no-pager | tail -30")?
        .text();
    check!(
        log.contains("/etc/guard/agent.toml:1"),
        "the log does not say where: {log}"
    );
    Ok(())
}

/// Bodies and requests that no client of ours would send; each line prints the status.
fn malformed_http() -> Result<()> {
    let scene = Scene::new()?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "still here"])?;
    let request = scene.held(CODER, "still here")?;
    let path = format!("/requests/{}/approve", request.id);
    let curl = |args: &[&str]| -> Result<(String, String)> {
        let mut argv = vec![
            "curl",
            "-s",
            "--cacert",
            xtask::stage::CA,
            "--max-time",
            "30",
            "-w",
            "\n%{http_code} %{content_type}",
        ];
        argv.extend(args);
        let text = scene.vm.run(&argv)?.text();
        let (body, status) = text.rsplit_once('\n').unwrap_or(("", &text));
        Ok((status.to_owned(), body.to_owned()))
    };
    let token = scene.approver.bearer();
    let url = |path: &str| format!("{}/api/v1{path}", xtask::stage::CONSOLE);
    scene
        .vm
        .script("head -c 400000 /dev/zero | tr '\\0' ' ' >/root/large; head -c 200 /dev/urandom >/root/noise")?;
    let deep = "[".repeat(50_000);
    scene.vm.write(deep.as_bytes(), "/root/deep", 0o644)?;
    let json_type = "Content-Type: application/json";
    let bodies = [
        "",
        "{",
        "null",
        "[]",
        "\"x\"",
        "{\"digest\":1}",
        "{\"digest\":\"x\",\"extra\":1}",
        "@/root/large",
        "@/root/noise",
        "@/root/deep",
    ];
    for body in bodies {
        let (status, answer) = curl(&["-H", &token, "-H", json_type, "--data-binary", body, &url(&path)])?;
        check!(
            status.starts_with('4') && status.contains("problem+json"),
            "body {body:?}: {status} {answer}"
        );
    }
    let (status, answer) = curl(&[
        "-H",
        &token,
        "-H",
        "Content-Type: text/plain",
        "--data-binary",
        "{}",
        &url(&path),
    ])?;
    check!(status.starts_with('4'), "another content type: {status} {answer}");
    for bad in [
        "/requests/not-an-id",
        "/requests/%00",
        "/requests/..%2f..%2fetc%2fpasswd",
        "/nothing",
        "/evidence/zz",
        "/labels/%F0%28",
    ] {
        let (status, answer) = curl(&["-H", &token, &url(bad)])?;
        check!(
            status.starts_with('4') && status.contains("problem+json"),
            "{bad}: {status} {answer}"
        );
    }
    let (status, answer) = curl(&["-H", &token, "-X", "DELETE", &url(&path)])?;
    check!(status.starts_with("405"), "another method: {status} {answer}");
    for header in [
        "Authorization: Bearer",
        "Authorization: Bearer x",
        "Authorization: Basic eDp5",
        "Cookie: __Host-guard=zz",
    ] {
        let (status, answer) = curl(&["-H", header, &url("/me")])?;
        check!(status.starts_with("401"), "{header}: {status} {answer}");
    }
    let (status, answer) = curl(&[
        "-H",
        &token,
        "-H",
        &format!("X-Long: {}", "h".repeat(90_000)),
        &url("/me"),
    ])?;
    check!(
        status.starts_with('4') || status.starts_with("000"),
        "a header of 90 kB: {status} {answer}"
    );
    scene.approve(&request)?;
    expect_status(&guard_tests::scene::end(running)?, 0)?;
    let log = scene.vm.script("journalctl -u guard-console --no-pager")?.text();
    check!(!log.contains("panicked"), "the console panicked: {log}");
    Ok(())
}

fn malformed_grpc() -> Result<()> {
    let scene = Scene::new()?;
    let identity = agent_identity(&scene)?;
    let mut payloads = vec![
        "00".repeat(64),
        "ff".repeat(5_000),
        "474554202f20485454502f312e310d0a0d0a".to_owned(),
        format!("{PREFACE}{}", "ff".repeat(200)),
        format!("{PREFACE}00ffff0100000000ff"),
    ];
    payloads.push(PREFACE[..40].to_owned());
    for payload in &payloads {
        host_api(&scene, "first", &identity, &identity, payload)?;
    }
    // Well-formed HTTP/2, malformed protobuf and frames.
    scene.vm.script(
        "printf '\\0\\0\\0\\0\\5\\377\\377\\377\\377\\377' >/root/bad1; printf '\\0\\377\\377\\377\\377' >/root/bad2; \
         printf '\\1\\0\\0\\0\\0' >/root/bad3; printf '\\0\\0\\0\\0\\2\\22\\0' >/root/bad4",
    )?;
    for service in [
        "Approval/Session",
        "Approval/Renew",
        "Evidence/Append",
        "Enrolment/Enroll",
        "Nothing/AtAll",
    ] {
        for file in ["/root/bad1", "/root/bad2", "/root/bad3", "/root/bad4", "/dev/null"] {
            let output = scene.vm.run(&[
                "curl",
                "-s",
                "--http2",
                "--cacert",
                xtask::stage::CA,
                "--cert",
                &identity,
                "--key",
                &identity,
                "--max-time",
                "10",
                "-H",
                "content-type: application/grpc",
                "-H",
                "te: trailers",
                "--data-binary",
                &format!("@{file}"),
                "-D",
                "-",
                "-o",
                "/dev/null",
                &format!("https://localhost:8444/guard.v1.{service}"),
            ])?;
            let text = output.text().to_lowercase();
            check!(
                !text.contains("grpc-status: 2\r") && !text.contains("http/2 5"),
                "{service} {file}: {output}"
            );
        }
    }
    let log = scene.vm.script("journalctl -u guard-console --no-pager")?.text();
    check!(!log.contains("panicked"), "the console panicked: {log}");
    let running = scene.start_labelled(CODER, &["/bin/echo", "afterwards"])?;
    scene.approve_next(CODER, "afterwards")?;
    expect_status(&guard_tests::scene::end(running)?, 0)
}

fn malformed_control() -> Result<()> {
    let scene = Scene::new()?;
    let program = "import socket, sys\n\
        lines = [b'\\n', b'{\\n', b'null\\n', b'{\"do\":\"nothing\"}\\n', b'{\"do\":\"status\",\"extra\":1}\\n', b'\\xff\\xfe\\n',\n\
                 b'{\"do\":\"enter\",\"label\":\"NOT A LABEL\",\"run\":\"x\"}\\n', b'[' * 60000 + b'\\n', b'x' * 200000 + b'\\n']\n\
        for line in lines:\n    s = socket.socket(socket.AF_UNIX); s.settimeout(20); s.connect('/run/guard/agent.sock')\n    \
            try:\n        s.sendall(line); data = s.recv(65536)\n    except (BrokenPipeError, ConnectionResetError):\n        data = b''\n    \
            print(line[:20], data[:200])\n    assert b'panick' not in data and b'\"version\"' not in data, data\n";
    scene.vm.write(program.as_bytes(), "/root/lines.py", 0o644)?;
    scene.vm.run(&["/usr/bin/python3", "/root/lines.py"])?.success()?;
    scene.vm.run(&["guard", "status"])?.success()?;
    let log = scene.vm.script("journalctl -u guard-agent --no-pager")?.text();
    check!(!log.contains("panicked"), "the agent panicked: {log}");
    Ok(())
}

fn disabled_user() -> Result<()> {
    let scene = Scene::new()?;
    scene.call(Some(&scene.approver), "GET", "/me", None)?.success()?;
    scene
        .call(Some(scene.admin()), "POST", "/users/approver/disable", None)?
        .success()?;
    expect_problem(&scene.call(Some(&scene.approver), "GET", "/me", None)?, 401, &[])?;
    let body = json!({"username": scene.approver.name, "password": scene.approver.password});
    expect_problem(&scene.call(None, "POST", "/sessions", Some(&body))?, 401, &[])?;
    // Signing out ends one session and no other.
    let again = scene.sign_in(&xtask::stage::Credentials {
        username: scene.owner.name.clone(),
        password: scene.owner.password.clone(),
    })?;
    scene
        .call(Some(&again), "DELETE", "/sessions/current", None)?
        .success()?;
    expect_problem(&scene.call(Some(&again), "GET", "/me", None)?, 401, &[])?;
    scene.call(Some(&scene.owner), "GET", "/me", None)?.success().map(drop)
}
