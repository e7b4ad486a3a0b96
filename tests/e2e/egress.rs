//! Connections of labelled workloads, asked about and decided.

use anyhow::{Result, ensure};
use guard_tests::policies::{self, POLICED};
use guard_tests::scene::{Scene, end, eventually, expect_error_says};
use guard_tests::{Case, case, check};
use xtask::stage::{PATIENCE, Request};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "egress::curl_is_held_at_connect",
            "curl under a label waits in connect until people approve, and then works; denied, it fails as connect does with EPERM",
            curl,
        ),
        case(
            "egress::policy_decides_connections",
            "what the policy permits is reached unasked, what it forbids is denied at once; each is a record",
            by_policy,
        ),
        case(
            "egress::what_no_rule_speaks_of_is_asked_except_the_log",
            "without a rule a label writes to the host's log, is asked about every other connection, and gives no other socket a log socket's name",
            without_rules,
        ),
        case(
            "egress::the_card_says_by_which_name_an_address_was_looked_up",
            "what a resolver of the host answered the workload is on the card of the connection, and whose word it is",
            looked_up,
        ),
    ]
}

/// A web server outside any label. The first answer to a request is a line of it in its log.
const SERVER: &str = "mkdir -p /run/egress && cd /run/egress && echo from the server > page && \
    systemd-run --quiet --unit=egress --working-directory=/run/egress python3 -m http.server --bind 127.0.0.1 8099 && \
    until curl --silent --output /dev/null http://127.0.0.1:8099/page; do sleep 0.2; done";

const CURL: &[&str] = &[
    "/usr/bin/curl",
    "--silent",
    "--show-error",
    "http://127.0.0.1:8099/page",
];

fn scene_with(policy: &str) -> Result<Scene> {
    let scene = Scene::new()?;
    scene.vm.sh(SERVER)?.success()?;
    scene.set_policy(policy.as_bytes())?;
    Ok(scene)
}

fn curl() -> Result<()> {
    let scene = scene_with(policies::ASK_CONNECTIONS)?;
    let running = scene.start_labelled(POLICED, CURL)?;
    let request = scene.held(POLICED, "127.0.0.1:8099")?;
    check!(request.action == "connect", "{request:?}");
    let shown = scene
        .guard(scene.admin(), &["requests", "show", &request.id])?
        .success()?;
    for words in ["policed wants to connect to", "127.0.0.1 port 8099 (TCP)", "curl"] {
        check!(shown.text().contains(words), "{words:?} is not on the card: {shown}");
    }
    scene.approve(&request)?;
    let output = end(running)?;
    check!(output.text() == "from the server" && output.status == 0, "{output}");
    let request = scene.follow(&request.id, "ended", Request::settled)?;
    check!(request.outcome.as_deref() == Some("ran"), "{request:?}");

    let running = scene.start_labelled(POLICED, CURL)?;
    let request = scene.held(POLICED, "127.0.0.1:8099")?;
    scene.deny(&request, "not today")?;
    let output = end(running)?;
    check!(
        output.stdout.is_empty() && output.status == 7,
        "curl's status of a connect that failed is 7: {output}"
    );
    expect_error_says(&output, &["denied", "not today"])
}

fn by_policy() -> Result<()> {
    let scene = scene_with(policies::CONNECT_TO_8099)?;
    let output = end(scene.start_labelled(POLICED, CURL)?)?;
    check!(output.text() == "from the server" && output.status == 0, "{output}");
    let output = end(scene.start_labelled(POLICED, &["/usr/bin/curl", "--silent", "http://127.0.0.2:8099/page"])?)?;
    check!(output.stdout.is_empty() && output.status == 7, "{output}");
    expect_error_says(&output, &["127.0.0.2:8099", "no rule permits it"])?;
    check!(scene.request_count()? == 0, "somebody was asked: {:?}", scene.seen());
    scene.agent_until(|agent| agent.unshipped_records == 0)?;
    let page = scene
        .call(
            Some(scene.admin()),
            "GET",
            "/evidence?kind=enforcement&label=policed",
            None,
        )?
        .success()?
        .json()?
        .to_string();
    check!(
        page.contains("connection to `127.0.0.1:8099 (tcp)` by policy"),
        "{page}"
    );
    Ok(())
}

fn without_rules() -> Result<()> {
    let scene = scene_with(policies::ANY_PROGRAM)?;
    let logged = end(scene.start_labelled(POLICED, &["/usr/bin/logger", "-t", "guard-egress", "from the workload"])?)?;
    check!(logged.status == 0, "{logged}");
    eventually(PATIENCE, || {
        let log = scene.vm.sh("journalctl --quiet -o cat -t guard-egress")?.text();
        ensure!(log.contains("from the workload"), "not in the log: {log:?}");
        Ok(())
    })?;
    // Labelled root, by rename, hard link and symbolic link.
    let names = "cp -a /usr/bin/true /run/egress/other; \
        mv /run/egress/other /run/systemd/journal/other; ln /run/egress/page /run/systemd/journal/other; \
        ln -s /run/egress/page /run/systemd/journal/other; ls /run/systemd/journal/other";
    let named = end(scene.start_labelled(POLICED, &["/bin/bash", "-c", names])?)?;
    check!(
        named.status != 0 && named.to_string().matches("not permitted").count() >= 3,
        "{named}"
    );
    check!(scene.request_count()? == 0, "somebody was asked: {:?}", scene.seen());

    let bus =
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/dbus/system_bus_socket'); print('reached')";
    for (name, argv) in [
        ("/run/dbus/system_bus_socket", &["/usr/bin/python3", "-c", bus][..]),
        ("127.0.0.1:8099", CURL),
    ] {
        let running = scene.start_labelled(POLICED, argv)?;
        let request = scene.held(POLICED, name)?;
        check!(
            request.statement.to_string().contains("builtin:ask-every-connection"),
            "{request:?}"
        );
        scene.deny(&request, "no")?;
        let output = end(running)?;
        check!(output.status != 0 && output.stdout.is_empty(), "{output}");
    }
    Ok(())
}

/// A resolver for one name; every other type of record is empty.
const RESOLVER: &str = r#"
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("127.0.0.1", 53))
while True:
    query, sender = s.recvfrom(512)
    end = query.index(b"\0", 12) + 5
    is_a = query[end - 4:end - 2] == b"\0\1" and b"web\7example" in query
    answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\x7f\0\0\1" if is_a else b""
    s.sendto(query[:2] + b"\x81\x80\0\1" + (b"\0\1" if is_a else b"\0\0") + b"\0\0\0\0" + query[12:end] + answer, sender)
"#;

fn looked_up() -> Result<()> {
    let scene = scene_with(policies::NAMES_AND_ASK)?;
    scene.vm.write(RESOLVER.as_bytes(), "/root/resolver.py", 0o644)?;
    scene
        .vm
        .sh(
            "rm -f /etc/resolv.conf && echo nameserver 127.0.0.1 > /etc/resolv.conf && \
            systemd-run --quiet --unit=resolver python3 /root/resolver.py && \
            until getent ahostsv4 web.example.org; do sleep 0.2; done",
        )?
        .success()?;
    let argv = [
        "/usr/bin/curl",
        "--silent",
        "--show-error",
        "http://web.example.org:8099/page",
    ];
    let running = scene.start_labelled(POLICED, &argv)?;
    let request = scene.held(POLICED, "127.0.0.1:8099")?;
    let shown = scene
        .guard(scene.admin(), &["requests", "show", &request.id])?
        .success()?;
    let words = "“web.example.org”, as the resolver 127.0.0.1 answered the workload";
    check!(shown.text().contains(words), "{words:?} is not on the card: {shown}");
    scene.approve(&request)?;
    let output = end(running)?;
    check!(output.text() == "from the server" && output.status == 0, "{output}");
    Ok(())
}
