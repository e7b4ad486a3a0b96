//! Signing in: passwords, certificates, saved credentials; and what administrators do then.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use crate::console::{Console, PASSWORD, TOKEN};
use crate::{guard, run, run_with_input};

#[test]
fn a_password_from_standard_input_and_a_ca_file() {
    let console = Console::start();
    let ca = console.ca.to_str().unwrap();
    let login = [
        "login",
        "--url",
        &console.url,
        "--username",
        "alice",
        "--ca",
        ca,
        "--password-stdin",
    ];
    run_with_input(&mut guard(console.home.path(), &login), "wrong\n").expect(1, &["wrong user name or password"]);
    assert!(!console.home.path().join(".config/guard").exists(), "nothing is saved");
    let done = run_with_input(&mut guard(console.home.path(), &login), &format!("{PASSWORD}\n"))
        .expect(0, &["alice", "approver"]);
    assert!(!done.out.contains(TOKEN) && !done.err.contains(TOKEN));

    let file = console.home.path().join(".config/guard/credentials.json");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    console.guard(&["requests", "list"]).expect(0, &["no requests"]);
    // Without options: the same console, trusted as before.
    run_with_input(
        &mut guard(
            console.home.path(),
            &["login", "--username", "alice", "--password-stdin"],
        ),
        PASSWORD,
    )
    .expect(0, &[]);

    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    console
        .guard(&["requests", "list"])
        .expect(3, &["can be read or changed by others", "chmod 600"]);
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    run(guard(console.home.path(), &["requests", "list"]).env("GUARD_URL", "https://other.example.org"))
        .expect(2, &["GUARD_URL is https://other.example.org"]);
    fs::write(&file, "{").unwrap();
    console.guard(&["requests", "list"]).expect(3, &["is damaged"]);
}

#[test]
fn several_people_in_one_shell() {
    let console = Console::signed_in();
    let ca = console.ca.to_str().unwrap();
    let password = console.home.path().join("password");
    fs::write(&password, format!("{PASSWORD}\nsecond line\n")).unwrap();
    let args = [
        "--as",
        "boss",
        "login",
        "--url",
        &console.url,
        "--username",
        "boss",
        "--ca",
        ca,
        "--password-file",
        password.to_str().unwrap(),
    ];
    console.guard(&args).expect(0, &["boss", "credentials.boss.json"]);
    run(guard(console.home.path(), &["hosts", "list"]).env("GUARD_PROFILE", "boss"))
        .expect(0, &["build-7", "NO", "GAPS"]);
    run(guard(console.home.path(), &["hosts", "show", "build-7"]).env("GUARD_PROFILE", "boss")).expect(
        0,
        &[
            "enforcement on from 2026-11-21T10:00:00Z",
            "NOT known to be enforced",
            "started anew",
        ],
    );
    console.guard(&["--as", "boss", "logout"]).expect(0, &["signed out"]);
    console
        .guard(&["--as", "boss", "hosts", "list"])
        .expect(3, &["not signed in as `boss`"]);
    console.guard(&["hosts", "list"]).expect(0, &[]);
    console
        .guard(&["--as", "boss", "logout"])
        .expect(1, &["no saved sign-in"]);
}

#[test]
fn only_the_pinned_authority_is_trusted() {
    let console = Console::start();
    let other = Console::start();
    let try_login = |trust: [&str; 2]| {
        let args = [
            "login",
            "--url",
            &console.url,
            "--username",
            "alice",
            trust[0],
            trust[1],
            "--password-stdin",
        ];
        run_with_input(&mut guard(console.home.path(), &args), PASSWORD)
    };
    try_login(["--ca", other.ca.to_str().unwrap()]).expect(3, &["certificate", "cannot reach the console"]);
    try_login(["--ca-sha256", &other.ca_sha256]).expect(3, &["no CA certificate with the SHA-256"]);
    try_login(["--ca-sha256", "abc"]).expect(2, &["64 hex digits"]);
    try_login(["--ca", "/nonexistent"]).expect(2, &["/nonexistent"]);
    let no_trust = [
        "login",
        "--url",
        &console.url,
        "--username",
        "alice",
        "--password-stdin",
    ];
    run_with_input(&mut guard(console.home.path(), &no_trust), PASSWORD).expect(2, &["--ca FILE"]);
    let plain = console.url.replace("https", "http");
    let args = [
        "login",
        "--url",
        &plain,
        "--username",
        "alice",
        "--ca-sha256",
        &console.ca_sha256,
        "--password-stdin",
    ];
    run_with_input(&mut guard(console.home.path(), &args), PASSWORD).expect(2, &["must begin with https://"]);

    let colons = console
        .ca_sha256
        .to_uppercase()
        .as_bytes()
        .chunks(2)
        .map(|c| String::from_utf8_lossy(c))
        .collect::<Vec<_>>()
        .join(":");
    try_login(["--ca-sha256", &colons]).expect(0, &["signed in"]);
    // The certificate seen then is the one trusted from now on.
    console.guard(&["requests", "list"]).expect(0, &[]);
}

#[test]
fn the_first_administrator() {
    let console = Console::start();
    let ca = console.ca.to_str().unwrap();
    let secret = console.home.path().join("setup-link");
    let args = [
        "login",
        "--url",
        &console.url,
        "--username",
        "admin",
        "--ca",
        ca,
        "--setup-secret-file",
        secret.to_str().unwrap(),
        "--password-stdin",
    ];
    fs::write(&secret, "https://localhost/setup#wrong\n").unwrap();
    run_with_input(&mut guard(console.home.path(), &args), "pw").expect(1, &["does not hold"]);
    fs::write(&secret, "https://localhost/setup#s3cret\n").unwrap();
    run_with_input(&mut guard(console.home.path(), &args), "pw").expect(0, &["admin"]);
}

#[test]
fn an_unreachable_console_is_no_answer() {
    let console = Console::signed_in();
    let file = console.home.path().join(".config/guard/credentials.json");
    let text = fs::read_to_string(&file)
        .unwrap()
        .replace(&console.url, "https://localhost:1");
    fs::write(&file, text).unwrap();
    console
        .guard(&["requests", "list"])
        .expect(3, &["cannot reach the console at https://localhost:1"]);
    console.guard(&["status"]).expect(3, &["cannot reach"]);
    // Signing out works without the console, and says so.
    console.guard(&["logout"]).expect(3, &["deleted here"]);
    assert!(!file.exists());
}

#[test]
fn an_ended_session_says_what_to_do() {
    let console = Console::signed_in();
    let file = console.home.path().join(".config/guard/credentials.json");
    fs::write(&file, fs::read_to_string(&file).unwrap().replace(TOKEN, "old")).unwrap();
    console
        .guard(&["requests", "list"])
        .expect(3, &["the session has ended", "→ guard login"]);
}

#[test]
fn administration() {
    let console = Console::signed_in();
    let token = console
        .guard(&["tokens", "create", "--expires-in", "2h", "--description", "build"])
        .expect(0, &[]);
    assert_eq!(token.out, "guard1.host:8444.00.secret\n", "nothing but the token");
    let file = console.home.path().join("token");
    console
        .guard(&["tokens", "create", "--out", file.to_str().unwrap()])
        .expect(0, &[]);
    assert_eq!(fs::read_to_string(&file).unwrap(), "guard1.host:8444.00.secret\n");
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    console
        .guard(&["tokens", "create", "--out", file.to_str().unwrap()])
        .expect(2, &["exists"]);
    console
        .guard(&["tokens", "create", "--expires-in", "1s"])
        .expect(2, &["1m to 7d"]);

    let add = [
        "users",
        "add",
        "bob",
        "--role",
        "approver",
        "--role",
        "auditor",
        "--group",
        "code-push",
        "--password-stdin",
    ];
    run_with_input(&mut guard(console.home.path(), &add), "pass word\n")
        .expect(0, &["bob may sign in (approver,auditor)"]);
    console
        .guard(&["users", "add", "bob", "--role", "king", "--password-stdin"])
        .expect(2, &["administrator, approver"]);
    console.guard(&["users", "disable", "b/ob"]).expect(0, &[]);
    console
        .guard(&["label", "set-owner", "coder", "--owner", "carol"])
        .expect(0, &["owned by carol"]);
    console
        .guard(&["label", "set-owner", "coder", "--no-owner"])
        .expect(0, &["no owner"]);
    console
        .guard(&["label", "set-owner", "Bad Label", "--no-owner"])
        .expect(2, &["cannot be a label"]);
    console.guard(&["hosts", "revoke", "build-7"]).expect(2, &["--yes"]);
    console
        .guard(&["hosts", "revoke", "nobody", "--yes"])
        .expect(1, &["no host is called"]);
    console
        .guard(&["hosts", "revoke", "build-7", "--yes"])
        .expect(0, &["revoked build-7"]);

    let log = console.world.lock().unwrap().log.clone();
    let body = |what: &str| {
        log.iter()
            .find(|(path, _)| path == what)
            .map(|(_, body)| body.clone())
            .unwrap()
    };
    assert_eq!(body("POST /tokens")["expires_in"], 7200);
    assert_eq!(body("POST /users")["password"], "pass word");
    assert_eq!(
        body("PUT /labels")["description"],
        "kept",
        "what is not spoken of stays"
    );
    assert!(
        log.iter()
            .any(|(path, _)| path == "POST /api/v1/users/b%2Fob/disable" || path == "POST /users/b%2Fob/disable"),
        "{log:?}"
    );
    assert!(log.iter().any(|(path, _)| path.ends_with("/hosts/01JDHOST/revoke")));
}

#[test]
fn sessions_keys_and_grants() {
    let console = Console::signed_in();
    console
        .guard(&["sessions", "list"])
        .expect(0, &["okta:ann", "192.0.2.1", "okta (pwd, otp)", "this one"]);
    console.guard(&["sessions", "revoke", "abcd"]).expect(0, &["is ended"]);
    console
        .guard(&["sessions", "revoke", "--user", "okta:ann"])
        .expect(0, &["every session of okta:ann"]);
    console.guard(&["sessions", "revoke"]).expect(2, &["<ID>"]);
    console
        .guard(&["keys", "list"])
        .expect(0, &["01JDKEY", "ci", "auditor", "good", "never", "nightly"]);
    let file = console.home.path().join("key");
    let out = file.to_str().unwrap();
    let create = [
        "keys",
        "create",
        "ci",
        "--role",
        "auditor",
        "--expires-in",
        "30d",
        "--out",
        out,
    ];
    console.guard(&create).expect(0, &["good until", "written to"]);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "guardkey_shownonce\n");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    // A file that is there is not written over, and no key is made for nothing.
    console.guard(&create).expect(2, &["exists"]);
    console
        .guard(&["keys", "create", "ci", "--expires-in", "soon"])
        .expect(2, &["is not a duration"]);
    console.guard(&["keys", "revoke", "01JDKEY"]).expect(0, &["is revoked"]);
    console
        .guard(&["grants", "list"])
        .expect(0, &["01JDGRANT", "2 of 5", "exactly `x` by ⟨U+001B⟩coder"]);
    console
        .guard(&["grants", "revoke", "01JDGRANT"])
        .expect(0, &["is revoked"]);
    let world = console.world.lock().unwrap();
    let made: Vec<_> = world.log.iter().filter(|(what, _)| what == "POST /keys").collect();
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].1["expires_in"], 30 * 86_400);
    assert_eq!(made[0].1["roles"], serde_json::json!(["auditor"]));
}
