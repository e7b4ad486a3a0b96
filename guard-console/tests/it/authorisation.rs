//! Who may call what: every operation of the document, by everybody there is, against a console that runs.
//!
//! What is expected stands once, in [`line`]: how an operation is called so that it does what it is for, and what who may call it
//! gets. An operation without a line fails. `docs/authorisation.md` is what was seen; `GUARD_WRITE_DOCS=1` writes it.

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use guard_proto::v1::console_message::Kind as ConsoleKind;
use guard_proto::v1::host_message::Kind as HostKind;
use serde_json::{Value, json};
use sqlx::SqlitePool;

use crate::openapi::operations;
use crate::support::{Console, Host, PASSWORD, Person, Question, Session};

/// Somebody who calls.
struct Caller {
    name: &'static str,
    roles: &'static [&'static str],
    kind: Kind,
    person: Person,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Not signed in, or no longer.
    Outside,
    /// A person, by this user name.
    User(&'static str),
    /// A program.
    Key,
}

/// What callers act on.
struct World {
    console: Console,
    admin: Person,
    approver: Person,
    host: Host,
    session: Session,
    made: u32,
}

/// One call.
struct Line {
    path: String,
    body: Option<Value>,
    /// For who may call it.
    allowed: u16,
    /// Of them, those without the role administrator get this.
    others: Option<u16>,
}

fn calls(allowed: u16, path: impl Into<String>) -> Line {
    Line {
        path: format!("/api/v1{}", path.into()),
        body: None,
        allowed,
        others: None,
    }
}

impl Line {
    fn with(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    fn others(mut self, status: u16) -> Self {
        self.others = Some(status);
        self
    }
}

impl World {
    async fn start() -> Self {
        let console = Console::start().await;
        let admin = console.set_up().await;
        let [approver, ..] = console.approvers(&admin, ["grantor", "spare", "owner"]).await;
        let (host, session) = console.build_host(&admin).await;
        admin.give("coder", Some("owner")).await;
        Self {
            console,
            admin,
            approver,
            host,
            session,
            made: 0,
        }
    }

    fn name(&mut self, kind: &str) -> String {
        self.made += 1;
        format!("{kind}-{}", self.made)
    }

    /// A request that waits: id and digest.
    async fn request(&mut self, label: &str) -> (String, Value) {
        let name = self.name("build");
        let (ask, sealed) = self.host.ask(&Question::new(label, &["make", &name]));
        self.session.say(HostKind::Ask(ask.clone())).await;
        // Decisions on earlier ones may come first.
        while !matches!(self.session.next().await, ConsoleKind::AskReceived(_)) {}
        self.host.ship(&self.console, &[&sealed]).await;
        let (status, request) = self.admin.get(&format!("/api/v1/requests/{}", ask.request_id)).await;
        assert_eq!(status, 200, "{request}");
        (ask.request_id, request["digest"].clone())
    }

    async fn grant(&mut self) -> String {
        let (id, digest) = self.request("tester").await;
        let body = json!({"digest": digest, "grant": {"seconds": 60}});
        let (status, request) = self
            .approver
            .post(&format!("/api/v1/requests/{id}/approve"), &body)
            .await;
        assert_eq!(status, 200, "{request}");
        let newest = self.admin.list("/api/v1/grants?limit=1").await;
        newest[0]["id"].as_str().unwrap().to_owned()
    }

    async fn program(&mut self, roles: &[&str]) -> String {
        let name = self.name("program");
        let body = json!({"username": name, "roles": roles});
        let (status, account) = self.admin.post("/api/v1/service-accounts", &body).await;
        assert_eq!(status, 200, "{account}");
        name
    }

    /// Id and secret of a key.
    async fn key(&mut self, roles: &[&str]) -> (String, String) {
        let account = self.program(roles).await;
        let (status, key) = self.admin.post("/api/v1/keys", &json!({"account": account})).await;
        assert_eq!(status, 200, "{key}");
        let text = |name: &str| key[name].as_str().unwrap().to_owned();
        (text("id"), text("secret"))
    }

    /// The id of a session of somebody who is none of the callers.
    async fn spare_session(&self) -> String {
        let spare = self.console.sign_in("spare").await;
        let sessions = spare.list("/api/v1/sessions").await;
        let current = sessions.iter().find(|session| session["current"] == true).unwrap();
        current["id"].as_str().unwrap().to_owned()
    }

    async fn callers(&mut self) -> Vec<Caller> {
        let mut callers = Vec::new();
        let outside = |name, person| Caller {
            name,
            roles: &[],
            kind: Kind::Outside,
            person,
        };
        callers.push(outside("nobody", self.console.nobody()));
        for (name, user, roles) in [
            ("auditor", "auditor", &["auditor"] as &[_]),
            ("approver", "approver", &["approver"]),
            ("approver who owns", "owner", &["approver"]),
            ("operator", "operator", &["operator"]),
            ("administrator", "administrator", &["administrator"]),
        ] {
            let person = match user {
                "owner" => self.console.sign_in(user).await,
                _ => self.console.user(&self.admin, user, roles, &[]).await,
            };
            let kind = Kind::User(user);
            callers.push(Caller {
                name,
                roles,
                kind,
                person,
            });
        }
        for (name, roles) in [
            ("key of an auditor", &["auditor"] as &[_]),
            ("key of an operator", &["operator"]),
            ("key of an administrator", &["administrator"]),
        ] {
            let (_, secret) = self.key(roles).await;
            let person = self.console.person(Some(&secret));
            let kind = Kind::Key;
            callers.push(Caller {
                name,
                roles,
                kind,
                person,
            });
        }
        let (id, secret) = self.key(&["administrator"]).await;
        let database = format!("sqlite://{}", self.console.file("console.db").display());
        let pool = SqlitePool::connect(&database).await.unwrap();
        let expired = sqlx::query("UPDATE api_keys SET expires_at = 1 WHERE id = $1").bind(id);
        assert_eq!(expired.execute(&pool).await.unwrap().rows_affected(), 1);
        pool.close().await;
        callers.push(outside("expired key", self.console.person(Some(&secret))));
        let ended = self.console.sign_in("administrator").await;
        assert_eq!(ended.delete("/api/v1/sessions/current").await.0, 204);
        callers.push(outside("ended session", ended));
        callers
    }

    /// How each operation is called so that it does what it is for, on things of its own where it changes any.
    async fn line(&mut self, operation: &str) -> Line {
        match operation {
            "getStatus" => calls(200, "/status"),
            "getOpenApi" => calls(200, "/openapi.json"),
            "setUp" => calls(409, "/setup").with(json!({"secret": "x", "username": "y", "password": PASSWORD})),
            "signIn" => calls(200, "/sessions").with(json!({"username": "spare", "password": PASSWORD})),
            "signOut" => calls(204, "/sessions/current"),
            "listSessions" => calls(200, "/sessions"),
            // What somebody may not see is not there.
            "endSession" => calls(204, format!("/sessions/{}", self.spare_session().await)).others(404),
            "getMe" => calls(200, "/me"),
            "listUsers" => calls(200, "/users"),
            "addUser" => {
                let body = json!({"username": self.name("person"), "password": PASSWORD, "roles": ["auditor"]});
                calls(200, "/users").with(body)
            }
            "disableUser" => calls(204, format!("/users/{}/disable", self.program(&["auditor"]).await)),
            "endSessionsOf" => calls(204, "/users/spare/sessions"),
            "addServiceAccount" => {
                let body = json!({"username": self.name("program"), "roles": ["auditor"]});
                calls(200, "/service-accounts").with(body)
            }
            "listKeys" => calls(200, "/keys"),
            "makeKey" => calls(200, "/keys").with(json!({"account": self.program(&["auditor"]).await})),
            "revokeKey" => calls(204, format!("/keys/{}/revoke", self.key(&["auditor"]).await.0)),
            "listRequests" => calls(200, "/requests"),
            "getRequest" => calls(200, format!("/requests/{}", self.request("coder").await.0)),
            "getRequestRecord" => calls(200, format!("/requests/{}/record", self.request("coder").await.0)),
            "approveRequest" => {
                let (id, digest) = self.request("coder").await;
                calls(200, format!("/requests/{id}/approve")).with(json!({"digest": digest}))
            }
            "denyRequest" => {
                let (id, digest) = self.request("coder").await;
                calls(200, format!("/requests/{id}/deny")).with(json!({"digest": digest, "reason": "no"}))
            }
            "listGrants" => calls(200, "/grants"),
            "revokeGrant" => calls(204, format!("/grants/{}/revoke", self.grant().await)),
            "streamEvents" => calls(200, "/events"),
            "pollRequests" => calls(200, "/events/poll?wait=0"),
            "listHosts" => calls(200, "/hosts"),
            "getHost" => calls(200, format!("/hosts/{}", self.host.id())),
            "getEnforcement" => calls(200, format!("/hosts/{}/enforcement", self.host.id())),
            "revokeHost" => {
                let name = self.name("host");
                calls(
                    204,
                    format!("/hosts/{}/revoke", self.console.host(&self.admin, &name).await.id()),
                )
            }
            "makeToken" => calls(200, "/tokens").with(json!({})),
            "listLabels" => calls(200, "/labels"),
            "getLabel" => calls(200, "/labels/coder"),
            "putLabel" => calls(200, format!("/labels/{}", self.name("label"))).with(json!({"owner": null})),
            "deleteLabel" => {
                let name = self.name("label");
                self.admin.give(&name, None).await;
                calls(204, format!("/labels/{name}"))
            }
            "listChanges" => calls(200, "/changes"),
            "listAlarms" => calls(200, "/alarms"),
            "listChannels" => calls(200, "/channels"),
            "listDeadLetters" => calls(200, "/dead-letters"),
            "listOutputs" => calls(200, "/outputs"),
            "listEvidence" => calls(200, "/evidence"),
            "exportEvidence" => calls(200, "/evidence/bundle"),
            "getRecord" => {
                let records = self.admin.list("/api/v1/evidence?limit=1").await;
                calls(200, format!("/evidence/{}", records[0]["digest"].as_str().unwrap()))
            }
            "getTrust" => calls(200, "/trust"),
            unknown => panic!("{unknown} has no line: say how it is called and what who may call it gets"),
        }
    }
}

/// What `caller` has to get. `roles` are those of the document; `None`: anybody.
fn expected(operation: &str, roles: Option<&Vec<Value>>, line: &Line, caller: &Caller) -> u16 {
    let Some(roles) = roles else { return line.allowed };
    if caller.kind == Kind::Outside {
        return 401;
    }
    if !roles.iter().any(|role| caller.roles.iter().any(|own| role == own)) {
        return 403;
    }
    match operation {
        "approveRequest" | "denyRequest" if caller.kind == Kind::User("owner") => 403,
        // A key has no session.
        "signOut" if caller.kind == Kind::Key => 409,
        _ if caller.roles.contains(&"administrator") => line.allowed,
        _ => line.others.unwrap_or(line.allowed),
    }
}

async fn call(console: &Console, operation: &str, method: &str, line: &Line, caller: &Caller) -> u16 {
    // Signing out ends what one calls with.
    let person = match caller.kind {
        Kind::User(name) if operation == "signOut" => console.sign_in(name).await,
        _ => caller.person.clone(),
    };
    loop {
        let mut request = person.request(method, &line.path);
        if let Some(body) = &line.body {
            request = request.json(body);
        }
        let status = request.send().await.unwrap().status().as_u16();
        // The export before this one may still be ending.
        if status != 503 {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_for_everybody() {
    let mut world = World::start().await;
    let callers = world.callers().await;
    let (_, document) = world.console.nobody().get("/api/v1/openapi.json").await;
    let mut table = heading(&callers);
    let mut wrong = Vec::new();
    for (method, path, operation) in operations(&document) {
        let id = operation["operationId"].as_str().unwrap();
        let roles = operation["x-guard-roles"].as_array();
        write!(table, "| `{method} {}` |", path.trim_start_matches("/api/v1")).unwrap();
        for caller in &callers {
            let line = world.line(id).await;
            let status = call(&world.console, id, &method, &line, caller).await;
            let expected = expected(id, roles, &line, caller);
            if status != expected {
                wrong.push(format!("{id} as {}: {status}, not {expected}", caller.name));
            }
            write!(table, " {status} |").unwrap();
        }
        table.push('\n');
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    current(&table);
}

fn heading(callers: &[Caller]) -> String {
    let names: Vec<_> = callers.iter().map(|caller| caller.name).collect();
    format!(
        "# Who may call what\n\n\
         Every operation of the REST API ([api.md](api.md)), called by everybody against a running console: the status that each one gets. \
         200 and 204: it was done; 401: not signed in; 403: not permitted; 404: not there for this caller. `POST /setup` is 409 because the \
         console is set up, signing out 409 for keys, which have no session. The requests are about a label that the *approver who owns* \
         owns. Service accounts are never approvers. This file is written by the test that calls them \
         (`guard-console/tests/it/authorisation.rs`, with `GUARD_WRITE_DOCS=1`), which fails when it is not current.\n\n\
         | operation | {} |\n| --- |{}\n",
        names.join(" | "),
        " --- |".repeat(names.len()),
    )
}

/// Whether the document of the repository is what was seen.
fn current(table: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/authorisation.md");
    if std::env::var_os("GUARD_WRITE_DOCS").is_some() {
        std::fs::write(&path, table).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        written, table,
        "docs/authorisation.md is not current: GUARD_WRITE_DOCS=1 writes it"
    );
}
