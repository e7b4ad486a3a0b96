//! What attackers try on a console by its pages and its API: planted sessions, ways out of the site, calls on its behalf, names that
//! are markup. Requests from other sites are in `pages`.

use std::time::Duration;

use guard_proto::v1::host_message::Kind as HostKind;
use guard_proto::v1::{Hello, HostMessage};
use serde_json::{Value, json};

use crate::pages::Browser;
use crate::support::{Console, PASSWORD};

const MARKUP: &str = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>";

#[tokio::test(flavor = "multi_thread")]
async fn a_planted_session_is_not_the_one_that_signs_in() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    // Made up, and a real one of somebody else's.
    let others = Browser::sign_in(&console, "admin").await.cookie;
    for planted in [format!("__Host-guard={}", "A".repeat(43)), others.clone()] {
        let mut victim = Browser::new(&console);
        victim.cookie.clone_from(&planted);
        let form = [("username", "ann"), ("password", PASSWORD), ("next", "/history")];
        let got = victim.post("/login", &form).await;
        assert_eq!(got.status, 303);
        victim.keep_cookie(&got);
        assert_ne!(victim.cookie, planted);
        let me = victim.get("/api/v1/me").await;
        assert!(me.text.contains("\"ann\""), "{}", me.text);
        // What was planted is worth what it was before.
        let mut attacker = Browser::new(&console);
        attacker.cookie = planted;
        assert!(!attacker.get("/api/v1/me").await.text.contains("\"ann\""));
    }
    // Signing out ends the session, not only the cookie.
    let victim = Browser::sign_in(&console, "ann").await;
    let csrf = victim.csrf().await;
    assert_eq!(victim.post("/logout", &[("csrf", &csrf)]).await.status, 303);
    assert_eq!(victim.get("/api/v1/me").await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_way_leads_out_of_the_site() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    for (number, next) in [
        "https://evil.example.org",
        "//evil.example.org",
        "/\\evil.example.org",
        "\\\\evil.example.org",
        "/\t/evil.example.org",
        "/\n/evil.example.org",
        "javascript:alert(1)",
        "/x\r\nset-cookie: __Host-guard=x",
        "evil.example.org",
        "",
    ]
    .into_iter()
    .enumerate()
    {
        // Each from a session of its own, as somebody who follows a link has.
        let browser = Browser::new(&console);
        let got = browser
            .post("/login", &[("username", "ann"), ("password", PASSWORD), ("next", next)])
            .await;
        assert_eq!(
            (got.status, got.headers["location"].to_str().unwrap()),
            (303, "/"),
            "{number}: {next:?}"
        );
        let query: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
        let page = browser.get(&format!("/login?next={query}")).await.text;
        assert!(
            !page.contains("evil.example.org") && !page.contains("javascript:"),
            "{next:?}: {page}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_makes_the_console_call_somewhere() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let here = format!("http://127.0.0.1:{}/", listener.local_addr().unwrap().port());
    // Wherever text can be given, and wherever an address could be meant.
    let user = json!({"username": "a", "password": PASSWORD, "roles": ["auditor"], "groups": [here]});
    let body = json!({"username": "b", "roles": ["auditor"], "description": here});
    admin.post("/api/v1/users", &user).await;
    assert_eq!(admin.post("/api/v1/service-accounts", &body).await.0, 200);
    assert_eq!(
        admin
            .post("/api/v1/keys", &json!({"account": "b", "description": here}))
            .await
            .0,
        200
    );
    assert_eq!(admin.post("/api/v1/tokens", &json!({"description": here})).await.0, 200);
    let label = json!({"owner": null, "description": here, "reason": here});
    assert_eq!(admin.put("/api/v1/labels/coder", &label).await.0, 200);
    let escaped: String = form_urlencoded::byte_serialize(here.as_bytes()).collect();
    for path in [
        format!("/login?next={escaped}"),
        format!("/login/oidc/{escaped}"),
        format!("/login/oidc/x/callback?code=x&state=x&iss={escaped}"),
        format!("/log/tile/{escaped}/0"),
        format!("/api/v1/evidence/{escaped}"),
        format!("/api/v1/evidence?host={escaped}"),
    ] {
        for header in ["host", "x-forwarded-host", "forwarded", "referer"] {
            let request = admin.request("GET", &path);
            let host = here.trim_start_matches("http://").trim_end_matches('/');
            let value = if header == "host" { host } else { &here };
            let _whatever_it_says = request.header(header, value).send().await;
        }
    }
    let called = tokio::time::timeout(Duration::from_millis(500), listener.accept()).await;
    assert!(called.is_err(), "the console called {called:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_never_markup() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    // A host that calls itself so, and says that it has such labels.
    let (_, token) = admin.post("/api/v1/tokens", &json!({"description": MARKUP})).await;
    let host = console.enroll(token["token"].as_str().unwrap(), MARKUP).await.unwrap();
    assert!(
        !host.reply.hostname.contains(['<', '>', '"', '\'']),
        "{}",
        host.reply.hostname
    );
    let session = host.connect(&console).await;
    let hello = Hello {
        agent_version: MARKUP.to_owned(),
        protocol_version: 1,
        kernel_release: MARKUP.to_owned(),
        boot_id: MARKUP.to_owned(),
        policy_digest: MARKUP.to_owned(),
        labels: vec![MARKUP.to_owned(), "coder".to_owned()],
        enforcing: true,
        enforcing_since_ms: 1,
    };
    drop(session);
    let (send, receive) = tokio::sync::mpsc::channel(1);
    send.send(HostMessage {
        kind: Some(HostKind::Hello(hello)),
    })
    .await
    .unwrap();
    let channel = console.channel(Some(&host.identity)).await;
    let mut client = guard_proto::v1::approval_client::ApprovalClient::new(channel);
    let stream = client
        .session(tokio_stream::wrappers::ReceiverStream::new(receive))
        .await;
    let mut stream = stream.unwrap().into_inner();
    stream.message().await.unwrap().expect("it is welcome");
    // Names that people give are refused or text.
    let label: String = form_urlencoded::byte_serialize(MARKUP.as_bytes()).collect();
    let label = format!("/api/v1/labels/{}", label.replace('+', "%20"));
    assert_eq!(admin.put(&label, &json!({"owner": null})).await.0, 400);
    let words = json!({"owner": null, "description": MARKUP, "reason": MARKUP});
    assert_eq!(admin.put("/api/v1/labels/coder", &words).await.0, 200);
    let user = json!({"username": MARKUP, "password": PASSWORD, "roles": ["auditor"]});
    assert_eq!(admin.post("/api/v1/users", &user).await.0, 400);
    let program = json!({"username": "ci", "roles": ["auditor"], "description": MARKUP});
    assert_eq!(admin.post("/api/v1/service-accounts", &program).await.0, 200);
    let key = json!({"account": "ci", "description": MARKUP});
    assert_eq!(admin.post("/api/v1/keys", &key).await.0, 200);

    let boss = Browser::sign_in(&console, "admin").await;
    let mut words_seen = 0;
    for path in [
        "/",
        "/hosts",
        "/labels",
        "/users",
        "/access",
        "/changes",
        "/changes/rows",
        "/evidence",
        "/alarms",
        "/history",
        "/grants",
    ] {
        let got = boss.get(path).await;
        assert_eq!(got.status, 200, "{path}");
        for bad in ["<script>alert", "<img", "\"'><"] {
            assert!(!got.text.contains(bad), "{bad:?} in {path}: {}", got.text);
        }
        words_seen += usize::from(got.text.contains("alert(1)"));
    }
    assert!(words_seen >= 3, "it is shown, as text: on {words_seen} pages");
    // The API says what it is told; nothing of it is ever a page.
    let hosts = admin.list("/api/v1/hosts").await;
    assert_eq!(hosts[0]["labels"], json!(["coder"]));
    assert_ne!(hosts[0]["kernel"], Value::Null);
    let got = boss.get("/api/v1/labels").await;
    assert_eq!(got.headers["content-type"], "application/json");
    assert_eq!(got.headers["x-content-type-options"], "nosniff");
}
