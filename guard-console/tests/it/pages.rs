//! Pages as a browser gets them: cookies, CSRF, escaping, live events.

use std::time::Duration;

use futures::StreamExt as _;
use guard_evidence::record::{Action, Claims, ConnectAction, ConnectHow, Peer};
use guard_evidence::text::Text;
use guard_proto::v1::{Withdraw, withdraw};
use reqwest::header::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use crate::support::{Console, PASSWORD, Question};

/// A browser with one cookie.
pub(crate) struct Browser {
    http: reqwest::Client,
    base: String,
    pub(crate) cookie: String,
}

pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) text: String,
}

impl Browser {
    pub(crate) fn new(console: &Console) -> Self {
        Self {
            http: console.http(),
            base: console.url(""),
            cookie: String::new(),
        }
    }

    pub(crate) async fn sign_in(console: &Console, name: &str) -> Self {
        let mut browser = Self::new(console);
        let got = browser
            .post(
                "/login",
                &[("username", name), ("password", PASSWORD), ("next", "/history")],
            )
            .await;
        assert_eq!(
            (got.status, got.headers["location"].to_str().unwrap()),
            (303, "/history")
        );
        browser.keep_cookie(&got);
        browser
    }

    pub(crate) fn keep_cookie(&mut self, got: &Got) {
        let cookie = got.headers["set-cookie"].to_str().unwrap();
        for part in [
            "__Host-guard=",
            "; Path=/",
            "; Secure",
            "; HttpOnly",
            "; SameSite=Strict",
        ] {
            assert!(cookie.contains(part), "{cookie}");
        }
        self.cookie = cookie.split(';').next().unwrap().to_owned();
    }

    async fn send(&self, request: reqwest::RequestBuilder) -> Got {
        let request = if self.cookie.is_empty() {
            request
        } else {
            request.header("cookie", &self.cookie)
        };
        let response = request.send().await.unwrap();
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Got {
            status,
            headers,
            text: response.text().await.unwrap(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> Got {
        self.send(self.http.get(format!("{}{path}", self.base))).await
    }

    fn form(&self, path: &str, fields: &[(&str, &str)]) -> reqwest::RequestBuilder {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(fields);
        self.http
            .post(format!("{}{path}", self.base))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body.finish())
    }

    pub(crate) async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Got {
        self.send(self.form(path, fields)).await
    }

    pub(crate) async fn csrf(&self) -> String {
        let page = self.get("/history").await.text;
        between(&page, "data-csrf=\"", "\"").to_owned()
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let text = text
        .split_once(before)
        .unwrap_or_else(|| panic!("no {before} in {text}"))
        .1;
    text.split_once(after).unwrap().0
}

#[tokio::test(flavor = "multi_thread")]
async fn set_up_sign_in_and_out() {
    let console = Console::start().await;
    let mut browser = Browser::new(&console);
    assert!(browser.get("/login").await.text.contains("setup-link"));
    assert!(
        browser
            .get("/setup")
            .await
            .text
            .contains("Make the first administrator")
    );
    let secret = console.setup_secret();
    let fields = |secret| [("secret", secret), ("username", "admin"), ("password", PASSWORD)];
    let wrong = browser.post("/setup", &fields("wrong")).await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.text.contains("setup-link"));
    let got = browser.post("/setup", &fields(&secret)).await;
    assert_eq!(got.status, 303, "{}", got.text);
    browser.keep_cookie(&got);
    let users = browser.get("/users").await;
    assert_eq!(users.status, 200);
    assert!(users.text.contains("Make a user"));

    // A session from before signing in is never taken over: every sign-in has a new secret.
    let planted = browser.cookie.clone();
    let login = [
        ("username", "admin"),
        ("password", PASSWORD),
        ("next", "//evil.example.org"),
    ];
    let got = browser.post("/login", &login).await;
    assert_eq!(got.headers["location"], "/");
    browser.keep_cookie(&got);
    assert_ne!(planted, browser.cookie);

    let csrf = browser.csrf().await;
    let got = browser.post("/logout", &[("csrf", &csrf)]).await;
    assert_eq!((got.status, got.headers["location"].to_str().unwrap()), (303, "/login"));
    let got = browser.get("/history?state=denied").await;
    assert_eq!(
        (got.status, got.headers["location"].to_str().unwrap()),
        (303, "/login?next=%2Fhistory%3Fstate%3Ddenied")
    );
    let wrong = browser
        .post("/login", &[("username", "admin"), ("password", "wrong")])
        .await;
    assert_eq!(wrong.status, 401);
    assert!(wrong.text.contains("user name or password is wrong"));
}

#[tokio::test(flavor = "multi_thread")]
async fn another_site_changes_nothing() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    let ann = Browser::sign_in(&console, "ann").await;
    let path = format!("/requests/{}/answer", ask.request_id);
    let digest = sealed.payload_digest.as_str();
    let fields = [("verdict", "approve"), ("digest", digest), ("reason", "")];
    let csrf = ann.csrf().await;
    let other = Browser::sign_in(&console, "admin").await.csrf().await;
    let with = |token| [fields[0], fields[1], fields[2], ("csrf", token)];
    // Without a token, with somebody else's, from another site.
    for (form, header) in [
        (ann.form(&path, &fields), None),
        (ann.form(&path, &with("")), None),
        (ann.form(&path, &with(&other)), None),
        (
            ann.form(&path, &with(&csrf)),
            Some(("origin", "https://evil.example.org")),
        ),
        (ann.form(&path, &with(&csrf)), Some(("origin", "null"))),
        (ann.form(&path, &with(&csrf)), Some(("sec-fetch-site", "cross-site"))),
        (ann.form(&path, &with(&csrf)), Some(("sec-fetch-site", "same-site"))),
    ] {
        let form = match header {
            Some((name, value)) => form.header(name, value),
            None => form,
        };
        let got = ann.send(form).await;
        assert_eq!(got.status, 403, "{}", got.text);
    }
    // The API with a cookie wants the header.
    let url = format!("{}/api/v1/requests/{}/approve", ann.base, ask.request_id);
    let body = json!({"digest": digest, "reason": ""});
    assert_eq!(ann.send(ann.http.post(&url).json(&body)).await.status, 403);
    let login = ann.form("/login", &[("username", "ann"), ("password", PASSWORD)]);
    assert_eq!(ann.send(login.header("sec-fetch-site", "cross-site")).await.status, 403);
    session.silent().await;
    let got = ann
        .send(ann.http.post(&url).json(&body).header("x-csrf-token", &csrf))
        .await;
    assert_eq!(got.status, 200, "{}", got.text);
    session.decision().await;
    let request: Value = serde_json::from_str(&got.text).unwrap();
    assert_eq!(request["decisions"][0]["channel"], "web");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_card_is_answered_in_place() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    console.user(&admin, "bob", &["approver"], &[]).await;
    admin.give("coder", Some("bob")).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["git", "push", "--force"]));
    session.ask(&ask).await;
    let ann = Browser::sign_in(&console, "ann").await;
    let bob = Browser::sign_in(&console, "bob").await;
    let page = ann.get("/").await.text;
    assert!(page.contains(&format!("data-request=\"{}\" data-request-id", ask.request_id)));
    assert!(page.contains("<strong class=\"danger\">--force</strong>"));
    let card = ann.get(&format!("/requests/{}", ask.request_id)).await.text;
    // In the order of the questions that a person has.
    let order = [
        "wants to run",
        "Why it asks",
        "Exactly what",
        "Who and where",
        "Before",
        "data-answer=\"approve\"",
    ];
    let at: Vec<usize> = order
        .iter()
        .map(|o| card.find(o).unwrap_or_else(|| panic!("{o}")))
        .collect();
    assert!(at.is_sorted(), "{at:?}");
    let card = bob.get(&format!("/requests/{}", ask.request_id)).await.text;
    assert!(card.contains("data-why-not>You own the workload coder"));
    assert!(!card.contains("data-answer=\"approve\""));

    let path = format!("/requests/{}/answer", ask.request_id);
    let csrf = ann.csrf().await;
    let digest = sealed.payload_digest.as_str();
    let deny = |reason| {
        [
            ("verdict", "deny"),
            ("digest", digest),
            ("reason", reason),
            ("csrf", csrf.as_str()),
        ]
    };
    let htmx = |form: reqwest::RequestBuilder| form.header("hx-request", "true");
    let got = ann.send(htmx(ann.form(&path, &deny("")))).await;
    assert_eq!(got.status, 400);
    assert!(
        got.text.contains("needs a reason") && got.text.contains("data-answer=\"deny\""),
        "{}",
        got.text
    );
    let got = ann.send(htmx(ann.form(&path, &deny("<i>no</i>")))).await;
    assert_eq!(got.status, 200);
    assert!(got.text.contains("data-card-state=\"denied\""));
    assert!(got.text.contains("&#60;i&#62;no&#60;/i&#62;"), "{}", got.text);
    session.decision().await;
    let late = ann.send(htmx(ann.form(&path, &deny("again")))).await;
    assert_eq!(late.status, 409);
    assert!(late.text.contains("Denied by ann"));
    let history = ann.get("/history?state=denied&label=coder").await.text;
    assert!(history.contains(&ask.request_id) && history.contains("&#60;i&#62;no"));
    assert!(!ann.get("/history?state=approved").await.text.contains(&ask.request_id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_card_of_a_connection_says_who_is_reached_and_how() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let ann = Browser::sign_in(&console, "ann").await;
    let to = |port| Peer::Ip {
        address: [203, 0, 113, 7].into(),
        port,
        scope: None,
    };
    let evil = "<b>x\u{202e}";
    let unix = Peer::Abstract { name: Text::from(evil) };
    for (peer, protocol, how, said) in [
        (
            to(443),
            "tcp",
            ConnectHow::Connect,
            &[
                "wants to connect to",
                "203.0.113.7 port 443 (TCP)",
                "it connects",
                "The first request of coder.",
            ][..],
        ),
        // The same peer, whatever the port.
        (
            to(8443),
            "tcp",
            ConnectHow::Connect,
            &["<dt>Port</dt><dd><code>8443", "for this peer once before"],
        ),
        (
            to(443),
            "tcp",
            ConnectHow::Connect,
            &["Asked for exactly this once before"],
        ),
        (
            to(53),
            "udp",
            ConnectHow::Listen,
            &[
                "wants to listen on",
                "it listens where other hosts can reach it",
                "First time this workload asks to listen",
            ],
        ),
        (
            unix,
            "stream",
            ConnectHow::ConnectedBefore,
            &[
                "@&#60;b&#62;x⟨U+202E⟩",
                "made before it was labelled, or by somebody else",
                "Any program of the host can have taken this name.",
                "what was sent on it before is not known",
            ],
        ),
    ] {
        let mut question = Question::new("coder", &[]);
        question.action = Some(Action::Connect(Box::new(ConnectAction {
            peer,
            protocol: protocol.to_owned(),
            how,
        })));
        let (ask, _) = host.ask(&question);
        session.ask(&ask).await;
        let card = ann.get(&format!("/requests/{}", ask.request_id)).await.text;
        for words in said {
            assert!(card.contains(words), "{words:?} is not on the card: {card}");
        }
        assert!(card.contains("holds for this one socket"), "{card}");
        assert!(!card.contains("<dt>Arguments</dt>") && !card.contains("<b>") && !card.contains('\u{202e}'));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_workload_writes_is_never_markup() {
    let evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>\u{202e}\u{1b}[31m\u{200b}{{7*7}}";
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver", "operator"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let mut question = Question::new("coder", &[evil, evil]);
    question.evil = Some(Text::from(evil));
    question.claims = Some(Claims {
        agent: Some(Text::from(evil)),
        task: Some(Text::from(evil)),
        ..Claims::default()
    });
    let (ask, sealed) = host.ask(&question);
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    let ann = Browser::sign_in(&console, "ann").await;
    let mut events = ann.events("/ui/events").await;
    let row = events.next("request").await["row"].as_str().unwrap().to_owned();
    let id = &ask.request_id;
    let mut shown = vec![row];
    for path in [
        "/".to_owned(),
        format!("/requests/{id}"),
        format!("/requests/{id}/card"),
        "/evidence".to_owned(),
    ] {
        let got = ann.get(&path).await;
        assert_eq!(got.status, 200);
        shown.push(got.text);
    }
    let withdraw = Withdraw {
        request_id: id.clone(),
        why: withdraw::Why::Died.into(),
    };
    session
        .say(guard_proto::v1::host_message::Kind::Withdraw(withdraw))
        .await;
    events.next("request").await;
    shown.push(ann.get("/history").await.text);
    for text in shown {
        assert!(text.contains("⟨U+202E⟩"), "{text}");
        for bad in ["<script>alert", "<img", "\u{202e}", "\u{1b}", "\u{200b}"] {
            assert!(!text.contains(bad), "{bad:?} in {text}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_has_its_headers_and_its_rights() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    let ann = Browser::sign_in(&console, "ann").await;
    let boss = Browser::sign_in(&console, "admin").await;
    for path in [
        "/",
        "/history",
        "/labels",
        "/evidence",
        "/login",
        "/nothing",
        "/api/v1/status",
        "/assets/app.js",
    ] {
        let headers = ann.get(path).await.headers;
        let csp = headers["content-security-policy"].to_str().unwrap();
        assert!(
            csp.starts_with("default-src 'none'") && csp.contains("frame-ancestors 'none'"),
            "{csp}"
        );
        assert!(!csp.contains("unsafe"), "{csp}");
        assert_eq!(headers["x-content-type-options"], HeaderValue::from_static("nosniff"));
        assert!(headers.contains_key("strict-transport-security"));
        let cached = headers["cache-control"] != "no-store";
        assert_eq!(cached, path.starts_with("/assets/"), "{path}");
    }
    for (path, as_ann, as_boss) in [
        ("/hosts", 403, 200),
        ("/users", 403, 200),
        ("/labels", 200, 200),
        ("/", 200, 200),
    ] {
        assert_eq!(ann.get(path).await.status, as_ann, "{path}");
        let page = boss.get(path).await;
        assert_eq!(page.status, as_boss, "{path}");
        assert!(!page.text.contains("<script>") && !page.text.contains(" style=") && !page.text.contains(" onclick="));
    }
    // Administrators' forms.
    let csrf = boss.csrf().await;
    let token = boss
        .post("/hosts/tokens", &[("csrf", &csrf), ("expires_in", "3600")])
        .await
        .text;
    assert!(token.contains("guard1.localhost:"), "{token}");
    let user = [
        ("csrf", csrf.as_str()),
        ("username", "carol"),
        ("password", PASSWORD),
        ("role", "auditor"),
    ];
    assert_eq!(boss.post("/users", &user).await.status, 303);
    let label = [("csrf", csrf.as_str()), ("name", "coder"), ("owner", "carol")];
    assert_eq!(boss.post("/labels", &label).await.status, 303);
    assert!(
        boss.get("/labels")
            .await
            .text
            .contains("<option selected>carol</option>")
    );
    let csrf = ann.csrf().await;
    let label = [("csrf", csrf.as_str()), ("name", "coder"), ("owner", "")];
    assert_eq!(ann.post("/labels", &label).await.status, 403);
    let token = [("csrf", csrf.as_str()), ("expires_in", "3600")];
    assert_eq!(ann.post("/hosts/tokens", &token).await.status, 403);
}

struct Events {
    body: futures::stream::BoxStream<'static, reqwest::Result<Vec<u8>>>,
    text: String,
}

impl Browser {
    async fn events(&self, path: &str) -> Events {
        let request = self
            .http
            .get(format!("{}{path}", self.base))
            .header("cookie", &self.cookie);
        Events::of(request.send().await.unwrap())
    }
}

impl Events {
    fn of(response: reqwest::Response) -> Self {
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self {
            body: response.bytes_stream().map(|b| b.map(|b| b.to_vec())).boxed(),
            text: String::new(),
        }
    }

    /// The data of the next event of this name; `Null` at the end.
    async fn next(&mut self, name: &str) -> Value {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                if event.contains(&format!("event: {name}\n")) {
                    let data = event.lines().find_map(|line| line.strip_prefix("data: ")).unwrap();
                    return serde_json::from_str(data).unwrap_or(Value::Null);
                }
            }
            let chunk = tokio::time::timeout(Duration::from_secs(60), self.body.next())
                .await
                .expect("an event");
            match chunk {
                Some(Ok(bytes)) => self.text.push_str(&String::from_utf8(bytes).unwrap()),
                _ => return Value::Null,
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_tell_every_change_and_go_on_where_they_broke_off() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let [ann, bob] = console.approvers(&admin, ["ann", "bob"]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (first, _) = host.ask(&Question::new("coder", &["make", "first"]));
    session.ask(&first).await;
    let listen = |last: Option<&str>| {
        let request = ann.request("GET", "/api/v1/events");
        match last {
            Some(last) => request.header("last-event-id", last.to_owned()),
            None => request,
        }
    };
    let mut events = Events::of(listen(None).send().await.unwrap());
    assert_eq!(
        events.next("request").await["id"],
        first.request_id,
        "what is pending comes first"
    );
    let (second, _) = host.ask(&Question::new("coder", &["make", "second"]));
    session.ask(&second).await;
    let event = events.next("request").await;
    assert_eq!(
        (&event["id"], &event["may_answer"]),
        (&json!(second.request_id), &json!(true))
    );
    // Another owner changes what people may, without the request having changed.
    admin.give("coder", Some("ann")).await;
    assert_eq!(events.next("request").await["may_answer"], false);
    admin.delete("/api/v1/labels/coder").await;
    drop(events);
    assert_eq!(bob.answer(&second.request_id, "deny", "no").await.0, 200);
    let mut events = Events::of(listen(Some("2")).send().await.unwrap());
    let event = events.next("request").await;
    assert_eq!(
        (&event["id"], &event["state"]),
        (&json!(second.request_id), &json!("denied"))
    );
    // Hosts are for those who may see them.
    let mut hosts = Events::of(admin.request("GET", "/api/v1/events").send().await.unwrap());
    drop(session);
    assert_eq!(hosts.next("host").await["state"], "offline");
    // A session that ends takes its stream with it, at the next look at the latest.
    admin.send(admin.request("POST", "/api/v1/users/ann/disable")).await;
    let end = tokio::time::timeout(Duration::from_secs(60), async {
        while !events.next("request").await.is_null() {}
    });
    end.await.expect("the stream of a disabled user ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_sessions_and_grants_have_pages() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    let browser = Browser::sign_in(&console, "admin").await;
    let csrf = browser.csrf().await;
    let account = [
        ("csrf", csrf.as_str()),
        ("username", "ci"),
        ("description", "<b>"),
        ("role", "auditor"),
    ];
    assert_eq!(browser.post("/access/accounts", &account).await.status, 303);
    let approver = [("csrf", csrf.as_str()), ("username", "other"), ("role", "approver")];
    let got = browser.post("/access/accounts", &approver).await;
    assert_eq!(got.status, 400);
    assert!(got.text.contains("programs approve nothing"), "{}", got.text);
    let key = [
        ("csrf", csrf.as_str()),
        ("account", "ci"),
        ("expires_in", "86400"),
        ("description", "<i>"),
    ];
    let made = browser.post("/access/keys", &key).await;
    assert_eq!(made.status, 200);
    let secret = between(&made.text, "<code>guardkey_", "</code>").to_owned();
    let page = browser.get("/access?all=1").await.text;
    assert!(
        !page.contains(&secret) && !page.contains("<i>") && page.contains("&#60;i&#62;"),
        "{page}"
    );
    let id = between(&page, "data-key=\"", "\"");
    let other = between(page.split("data-session=").nth(2).unwrap(), "\"", "\"").to_owned();
    assert!(page.contains("this one"));
    // Not without the token of this session's forms.
    let bare = browser.post(&format!("/access/keys/{id}/revoke"), &[]).await;
    assert_eq!(bare.status, 403);
    let revoke = browser
        .post(&format!("/access/keys/{id}/revoke"), &[("csrf", &csrf)])
        .await;
    assert_eq!(revoke.status, 303);
    let end = [("csrf", csrf.as_str()), ("all", "1")];
    let got = browser.post(&format!("/access/sessions/{other}/end"), &end).await;
    assert_eq!(got.headers["location"], "/access?all=1");

    // A grant by the page: the scope stands on the card before anything is clicked.
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, _) = host.ask(&Question::new("coder", &["git", "push", "<b>"]));
    session.ask(&ask).await;
    let ann = Browser::sign_in(&console, "ann").await;
    let card = ann.get(&format!("/requests/{}/card", ask.request_id)).await.text;
    let words = between(&card, "<strong data-grantable>", "</strong>");
    assert!(words.starts_with("exactly `git push"), "{words}");
    assert!(!words.contains('<'), "{words}");
    let digest = between(&card, "name=\"digest\" value=\"", "\"").to_owned();
    let csrf = ann.csrf().await;
    let terms = [
        ("csrf", csrf.as_str()),
        ("digest", &digest),
        ("for", "900"),
        ("times", "5"),
    ];
    let got = ann.post(&format!("/requests/{}/grant", ask.request_id), &terms).await;
    assert_eq!(got.status, 303, "{}", got.text);
    session.decision().await;
    let page = ann.get("/grants").await.text;
    assert!(
        page.contains("0 of 5") && page.contains("data-state=\"good\""),
        "{page}"
    );
    let id = between(&page, "data-grant=\"", "\"").to_owned();
    assert_eq!(
        ann.post(&format!("/grants/{id}/revoke"), &[("csrf", &csrf)])
            .await
            .status,
        303
    );
    assert!(ann.get("/grants").await.text.contains("data-state=\"revoked\""));
}
