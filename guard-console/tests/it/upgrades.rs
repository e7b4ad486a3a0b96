//! What a console keeps: over a new schema, and over a backup.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use guard_evidence::dsse;
use guard_evidence::key::SigningKey;
use guard_evidence::record::{Lifecycle, Predicate, Statement};
use guard_evidence::text::Text;
use serde_json::json;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, SqlSafeStr as _};

use crate::support::{Console, Question};

async fn database(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    options.connect().await.unwrap()
}

/// The decision as a console of the first schema signed it: it knew of no changes.
fn without_changes(console: &Console, envelope: &[u8]) -> Vec<u8> {
    let payload = dsse::parse(envelope).unwrap().unverified_payload().to_vec();
    let mut statement = Statement::from_payload(&payload).unwrap();
    let Predicate::SignedDecision(signed) = &mut statement.predicate else {
        panic!("no decision");
    };
    signed.changes = None;
    let pem = std::fs::read_to_string(console.file("decision.key")).unwrap();
    let key = SigningKey::from_pkcs8_pem(&pem).unwrap();
    dsse::sign(&statement.to_payload().unwrap(), &key).unwrap()
}

/// Columns that both schemas have, as text that can be compared.
const TABLES: [(&str, &str); 9] = [
    (
        "users",
        "SELECT id, username, password, roles, user_groups, created_at, created_by, disabled_at, disabled_by FROM users ORDER BY id",
    ),
    ("sessions", "SELECT digest, user_id, kind, address, signed_in_at, expires_at FROM sessions ORDER BY digest"),
    ("setup", "SELECT * FROM setup"),
    ("enrolment_tokens", "SELECT * FROM enrolment_tokens ORDER BY digest"),
    (
        "hosts",
        "SELECT id, name, machine_id, hex(evidence_key), labels, enrolled_at, enrolled_by, certificate_expires_at, revoked_at, revoked_by FROM hosts ORDER BY id",
    ),
    ("labels", "SELECT * FROM labels ORDER BY name"),
    (
        "requests",
        "SELECT id, host_id, label, action, program_key, action_key, digest, hex(record), nonce, what, approver_groups, quorum, asked_at,
                expires_at, state, ended_at, ended_because, owner_then, hex(decision), outcome, outcome_detail, arrived FROM requests ORDER BY id",
    ),
    (
        "answers",
        "SELECT request_id, user_id, username, user_groups, roles, verdict, reason, at, channel, signed_in_at, shown_digest FROM answers
         ORDER BY request_id, user_id",
    ),
    (
        "records",
        "SELECT digest, hex(leaf_hash), hex(envelope), host_id, epoch, sequence, kind, request_id, label, at, stored_at, summary FROM records
         WHERE host_id IS NOT NULL ORDER BY position",
    ),
];

/// Every row of every table, without the columns that only one schema has or that a running console touches.
async fn content(connection: &mut SqliteConnection) -> Vec<(&'static str, Vec<String>)> {
    use sqlx::Row as _;
    let mut all = Vec::new();
    for (name, sql) in TABLES {
        let rows = sqlx::query(sql).fetch_all(&mut *connection).await.unwrap();
        let text = |row: &sqlx::sqlite::SqliteRow| {
            (0..row.len())
                .map(|at| {
                    row.try_get::<Option<String>, _>(at)
                        .or_else(|_| row.try_get::<Option<i64>, _>(at).map(|n| n.map(|n| n.to_string())))
                        .unwrap()
                        .unwrap_or_else(|| "NULL".to_owned())
                })
                .collect::<Vec<_>>()
                .join("|")
        };
        all.push((name, rows.iter().map(text).collect()));
    }
    all
}

/// Makes the database of a stopped console one of the first schema: the same rows, but no records of the console.
async fn downgrade(path: &Path, decision: &[u8], decided: &str) {
    let newer = path.with_extension("newer");
    std::fs::rename(path, &newer).unwrap();
    let mut old = database(path).await;
    let first = Migration::new(
        1,
        "initial".into(),
        MigrationType::Simple,
        include_str!("../../migrations/0001_initial.sql").into_sql_str(),
        false,
    );
    Migrator::with_migrations(vec![first]).run(&mut old).await.unwrap();
    sqlx::query("ATTACH $1 AS newer")
        .bind(newer.to_str().unwrap())
        .execute(&mut old)
        .await
        .unwrap();
    for sql in [
        "INSERT INTO users SELECT id, username, password, roles, user_groups, created_at, created_by, disabled_at, disabled_by
         FROM newer.users",
        "INSERT INTO sessions SELECT digest, user_id, kind, address, signed_in_at, last_used_at, expires_at
         FROM newer.sessions",
        "INSERT INTO setup SELECT * FROM newer.setup",
        "INSERT INTO enrolment_tokens SELECT * FROM newer.enrolment_tokens",
        "INSERT INTO hosts SELECT * FROM newer.hosts",
        "INSERT INTO labels SELECT * FROM newer.labels",
        "INSERT INTO requests SELECT id, host_id, label, action, program_key, action_key, digest, record, nonce, what, approver_groups, quorum,
             asked_at, expires_at, state, ended_at, ended_because, owner_then, decision, decision_expires_at, decision_received_at,
             decision_refused, outcome, outcome_detail, outcome_at, arrived, seq FROM newer.requests",
        "INSERT INTO answers SELECT request_id, user_id, username, user_groups, roles, verdict, reason, at, channel, signed_in_at, shown_digest
         FROM newer.answers",
        "INSERT INTO records SELECT row_number() OVER (ORDER BY position) - 1, digest, leaf_hash, envelope, host_id, epoch, sequence, kind,
             request_id, label, at, stored_at, summary FROM newer.records WHERE host_id IS NOT NULL",
        "INSERT INTO alarms SELECT id, at, host_id, kind, detail FROM newer.alarms",
    ] {
        sqlx::query(sql).execute(&mut old).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    }
    sqlx::query("UPDATE requests SET decision = $1 WHERE id = $2")
        .bind(decision)
        .bind(decided)
        .execute(&mut old)
        .await
        .unwrap();
    old.close().await.unwrap();
    std::fs::remove_file(&newer).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_the_first_schema_loses_nothing() {
    let mut console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &["code"]).await;
    console.user(&admin, "bob", &["approver", "auditor"], &[]).await;
    console.user(&admin, "gone", &["operator"], &[]).await;
    let disable = admin.request("POST", "/api/v1/users/gone/disable");
    assert_eq!(admin.send(disable).await.0, 204);
    for (label, owner) in [("coder", Some("bob")), ("nobodys", None)] {
        let body = json!({"owner": owner, "description": "d\u{202e}"});
        assert_eq!(admin.put(&format!("/api/v1/labels/{label}"), &body).await.0, 200);
    }
    let (_, unused) = admin.post("/api/v1/tokens", &json!({"description": "for later"})).await;
    let unused = unused["token"].as_str().unwrap().to_owned();
    let mut host = console.host(&admin, "build-7").await;
    let mut other = console.host(&admin, "etl-2").await;
    let revoked = console.host(&admin, "old-1").await;
    let revoke = admin.request("POST", &format!("/api/v1/hosts/{}/revoke", revoked.id()));
    assert_eq!(admin.send(revoke).await.0, 204);
    let mut session = host.connect(&console).await;
    // Approved and run, approved and not told yet, denied, waiting with one of two approvals; a theft and a gap.
    let (ran, ran_record) = host.ask(&Question::new("coder", &["make"]).groups(&["code"]));
    session.ask(&ran).await;
    assert_eq!(ann.answer(&ran.request_id, "approve", "well\u{1b}").await.0, 200);
    let decision = without_changes(&console, &session.decision().await.envelope);
    let theft = host.tells(Lifecycle::TheftRefused {
        label: "coder".to_owned(),
        object: "sign-in".to_owned(),
        count: 2,
        pid: 7,
        uid: 1000,
        comm: Text::from("cat"),
    });
    let [decided, enforced] = host.carried_out(&ran.request_id, &ran_record.payload_digest, &decision);
    host.ship(&console, &[&ran_record, &theft, &decided, &enforced]).await;
    let (denied, denied_record) = host.ask(&Question::new("coder", &["rm"]));
    session.ask(&denied).await;
    assert_eq!(ann.answer(&denied.request_id, "deny", "no").await.0, 200);
    let (waits, waits_record) = host.ask(&Question::new("coder", &["git", "push"]).quorum(2));
    session.decision().await;
    session.ask(&waits).await;
    assert_eq!(ann.answer(&waits.request_id, "approve", "").await.0, 200);
    host.ship(&console, &[&denied_record, &waits_record]).await;
    let other_record = other.lifecycle();
    other.ship(&console, &[&other_record]).await;
    drop(session);
    console.server.take().unwrap().stop().await;

    let path = console.file("console.db");
    downgrade(&path, &decision, &ran.request_id).await;
    // Consoles of then published no tiles.
    std::fs::remove_dir_all(console.file("log")).unwrap();
    let mut old = database(&path).await;
    let before = content(&mut old).await;
    for (name, rows) in &before {
        assert!(!rows.is_empty() || *name == "setup", "no row in {name}");
    }
    old.close().await.unwrap();

    let mut console = console.start_again().await;
    let mut new = database(&path).await;
    let after = content(&mut new).await;
    new.close().await.unwrap();
    assert_eq!(before, after);
    // Sessions go on; so do lists.
    let (status, me) = ann.get("/api/v1/me").await;
    assert_eq!(status, 200, "{me}");
    assert_eq!(admin.list("/api/v1/hosts").await.len(), 3);
    assert_eq!(admin.list("/api/v1/requests").await.len(), 3);
    let alarms = admin.list("/api/v1/alarms").await;
    assert!(alarms.iter().any(|alarm| alarm["kind"] == "theft"), "{alarms:?}");
    // What it found is written down before anything else is.
    let found: Vec<String> = ann
        .list("/api/v1/changes")
        .await
        .iter()
        .map(|change| {
            format!(
                "{} {}",
                change["what"].as_str().unwrap(),
                change["by_words"].as_str().unwrap()
            )
        })
        .collect();
    for what in [
        "the account ann was made (approver; group code)",
        "the account gone was disabled",
        "the label coder was made, owned by bob",
        "the host old-1 was revoked",
        "the host build-7 joined",
    ] {
        let line = format!("{what} before changes were recorded");
        assert!(found.contains(&line), "{line:?} is not in {found:#?}");
    }
    let report = admin.valid_log().await;
    let decisions = report.sections.iter().find(|s| s.name == "decisions").unwrap();
    assert!(decisions.summary.starts_with("1 allowed by people"), "{report:#?}");

    // It goes on: the host's chain, the request that waited, the token from before.
    let mut session = host.connect(&console).await;
    // Neither was acknowledged, so both are told again.
    for told in [&ran, &denied] {
        assert_eq!(session.decision().await.request_id, told.request_id);
    }
    let (_, request) = admin.get(&format!("/api/v1/requests/{}", waits.request_id)).await;
    assert_eq!(
        (&request["state"], &request["approvals"]),
        (&json!("pending"), &json!(1))
    );
    let cid = console.user(&admin, "cid", &["approver"], &[]).await;
    let (_, answered) = cid.answer(&waits.request_id, "approve", "").await;
    assert_eq!(answered["state"], "approved", "{answered}");
    let decision = session.decision().await;
    assert_eq!(decision.request_id, waits.request_id);
    let [decided, enforced] = host.carried_out(&waits.request_id, &waits_record.payload_digest, &decision.envelope);
    host.ship(&console, &[&decided, &enforced]).await;
    console.enroll(&unused, "late-1").await.unwrap();
    admin.valid_log().await;
    // Once more: nothing is found twice.
    let count = ann.list("/api/v1/changes?limit=200").await.len();
    console = console.restart().await;
    let admin = console.sign_in("admin").await;
    assert_eq!(admin.list("/api/v1/changes?limit=200").await.len(), count);
}

fn backup(console: &Console, to: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_guard-console"))
        .arg("backup")
        .arg("--data-dir")
        .arg(console.file(""))
        .arg(to)
        .output()
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_a_running_console_is_a_console() {
    let mut console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, asked) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    let [first, second] = [host.lifecycle(), host.lifecycle()];
    host.ship(&console, &[&asked, &first]).await;

    let to = console.dir.path().join("copy");
    let output = backup(&console, &to);
    assert!(output.status.success(), "{output:?}");
    let again = backup(&console, &to);
    assert!(
        !again.status.success() && String::from_utf8_lossy(&again.stderr).contains("exists already"),
        "{again:?}"
    );
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&to), 0o700);
    for entry in std::fs::read_dir(&to).unwrap() {
        let path = entry.unwrap().path();
        let public = ["ca.pem", "log-origin"].iter().any(|name| path.ends_with(name));
        assert_eq!(mode(&path), if public { 0o644 } else { 0o600 }, "{}", path.display());
    }
    // The copy is of that moment, whatever comes after it.
    host.ship(&console, &[&second]).await;
    drop(session);
    console.server.take().unwrap().stop().await;
    std::fs::remove_dir_all(console.file("")).unwrap();
    std::fs::rename(&to, console.file("")).unwrap();

    let console = console.start_again().await;
    admin.valid_log().await;
    assert_eq!(admin.list("/api/v1/evidence?host=build-7").await.len(), 2);
    // The host has shipped more than the copy has: it does so again, and its question is answered.
    host.ship(&console, &[&asked, &first, &second]).await;
    let mut session = host.connect(&console).await;
    assert_eq!(ann.answer(&ask.request_id, "approve", "").await.0, 200);
    let decision = session.decision().await;
    let [decided, enforced] = host.carried_out(&ask.request_id, &asked.payload_digest, &decision.envelope);
    host.ship(&console, &[&decided, &enforced]).await;
    admin.valid_log().await;
}
