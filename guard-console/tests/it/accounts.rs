//! Set-up, sign-in, sessions, roles and malformed input.

use serde_json::json;

use crate::support::{Console, PASSWORD};

#[tokio::test(flavor = "multi_thread")]
async fn set_up_works_once() {
    let console = Console::start().await;
    let nobody = console.nobody();
    let (_, status) = nobody.get("/api/v1/status").await;
    assert_eq!(status["needs_setup"], true);
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(console.file("setup-link"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    let secret = console.setup_secret();
    let body = |secret: &str, password: &str| json!({"secret": secret, "username": "admin", "password": password});
    assert_eq!(
        nobody.post("/api/v1/setup", &body(&"A".repeat(43), PASSWORD)).await.0,
        401
    );
    let (status, problem) = nobody.post("/api/v1/setup", &body(&secret, "short")).await;
    assert_eq!(status, 400);
    assert!(problem["detail"].as_str().unwrap().contains("12 characters"));
    let (status, session) = nobody.post("/api/v1/setup", &body(&secret, PASSWORD)).await;
    assert_eq!(status, 200);
    assert_eq!(session["me"]["roles"], json!(["administrator"]));
    assert!(!console.file("setup-link").exists());
    assert_eq!(nobody.post("/api/v1/setup", &body(&secret, PASSWORD)).await.0, 409);
    let console = console.restart().await;
    assert!(!console.file("setup-link").exists());
    let (_, status) = console.nobody().get("/api/v1/status").await;
    assert_eq!(status["needs_setup"], false);
    console.sign_in("admin").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_passwords_and_the_brake() {
    let console = Console::start().await;
    console.set_up().await;
    let nobody = console.nobody();
    let body = |name: &str, password: &str| json!({"username": name, "password": password});
    let (status, wrong) = nobody.post("/api/v1/sessions", &body("admin", "wrong password")).await;
    assert_eq!(status, 401);
    let (_, unknown) = nobody.post("/api/v1/sessions", &body("nobody", "wrong password")).await;
    assert_eq!(wrong, unknown, "the answer does not say which was wrong");
    let mut locked = None;
    for _ in 0..6 {
        let (status, problem) = nobody.post("/api/v1/sessions", &body("admin", "wrong password")).await;
        if status == 429 {
            locked = Some(problem);
        }
    }
    assert_eq!(locked.unwrap()["type"], "urn:guard:problem:too-many-attempts");
    // Even the right one waits now.
    assert_eq!(nobody.post("/api/v1/sessions", &body("admin", PASSWORD)).await.0, 429);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_end() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let also_ann = console.sign_in("ann").await;
    assert_ne!(ann.token, also_ann.token);
    assert_eq!(ann.delete("/api/v1/sessions/current").await.0, 204);
    assert_eq!(ann.get("/api/v1/me").await.0, 401);
    assert_eq!(also_ann.get("/api/v1/me").await.0, 200);
    assert_eq!(
        admin.send(admin.request("POST", "/api/v1/users/ann/disable")).await.0,
        204
    );
    assert_eq!(also_ann.get("/api/v1/me").await.0, 401);
    let body = json!({"username": "ann", "password": PASSWORD});
    assert_eq!(console.nobody().post("/api/v1/sessions", &body).await.0, 401);
    let (status, problem) = admin.send(admin.request("POST", "/api/v1/users/admin/disable")).await;
    assert_eq!(
        (status, problem["type"].as_str()),
        (409, Some("urn:guard:problem:last-administrator"))
    );
    // A browser's secret is no bearer token, and the other way round.
    let bearer = admin.token.clone().unwrap();
    let as_cookie = console
        .nobody()
        .request("GET", "/api/v1/me")
        .header("cookie", format!("__Host-guard={bearer}"));
    assert_eq!(console.nobody().send(as_cookie).await.0, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_input_is_a_problem_not_a_crash() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let long = "x".repeat(300_000);
    for (body, status, words) in [
        ("", 400, "EOF"),
        ("{", 400, "EOF"),
        ("\u{0}", 400, "expected value"),
        (r#"{"username":"a","password":"b","roles":["king"]}"#, 400, "roles[0]"),
        (
            r#"{"username":"a","password":"b","roles":[],"x":1}"#,
            400,
            "unknown field",
        ),
        (
            r#"{"username":"A B","password":"long enough here","roles":["auditor"]}"#,
            400,
            "user name",
        ),
        (
            r#"{"username":"a","password":"long enough here","roles":[]}"#,
            400,
            "role",
        ),
        (
            r#"{"username":"a","password":"long enough here","roles":["auditor"],"groups":["\u202e"]}"#,
            400,
            "U+202E",
        ),
        (long.as_str(), 413, "larger"),
    ] {
        let request = admin
            .request("POST", "/api/v1/users")
            .header("content-type", "application/json");
        let (got, problem) = admin.send(request.body(body.to_owned())).await;
        assert_eq!(got, status, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    let request = admin.request("POST", "/api/v1/users").body("{}");
    assert_eq!(admin.send(request).await.0, 415);
    for path in [
        "/api/v1/requests?limit=x",
        "/api/v1/requests?cursor=x",
        "/api/v1/requests?nix=1",
        "/api/v1/evidence?from=yesterday",
    ] {
        assert_eq!(admin.get(path).await.0, 400, "{path}");
    }
    for path in [
        "/api/v1/requests/nix",
        "/api/v1/requests/%00",
        "/api/v1/evidence/nix",
        "/nix",
        "/api/v1/nix",
    ] {
        assert_eq!(admin.get(path).await.0, 404, "{path}");
    }
    assert_eq!(admin.send(admin.request("PATCH", "/api/v1/hosts")).await.0, 405);
    assert_eq!(
        admin.put("/api/v1/labels/NOT%20ONE", &json!({"owner": null})).await.0,
        400
    );
    assert_eq!(
        admin.put("/api/v1/labels/coder", &json!({"owner": "nobody"})).await.0,
        400
    );
}
