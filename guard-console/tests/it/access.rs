//! Sessions as people see and end them, and keys with which programs act.

use std::time::Duration;

use futures::StreamExt as _;
use serde_json::json;

use crate::support::{Console, Person, whats};

async fn service(console: &Console, admin: &Person, name: &str, roles: &[&str]) -> (Person, String) {
    let body = json!({"username": name, "roles": roles, "description": "nightly"});
    let (status, account) = admin.post("/api/v1/service-accounts", &body).await;
    assert_eq!(status, 200, "{account}");
    assert_eq!(account["service"], true);
    let (status, key) = admin.post("/api/v1/keys", &json!({"account": name})).await;
    assert_eq!(status, 200, "{key}");
    let secret = key["secret"].as_str().unwrap();
    assert!(secret.starts_with("guardkey_"), "{secret}");
    (console.person(Some(secret)), key["id"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_does_what_its_account_may_and_ends_at_once() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let (ci, id) = service(&console, &admin, "ci", &["operator", "auditor"]).await;
    let (_, me) = ci.get("/api/v1/me").await;
    assert_eq!(
        (&me["username"], &me["roles"]),
        (&json!("ci"), &json!(["operator", "auditor"]))
    );
    assert_eq!(ci.get("/api/v1/hosts").await.0, 200);
    assert_eq!(ci.post("/api/v1/tokens", &json!({})).await.0, 200);
    assert_eq!(
        ci.post("/api/v1/users", &json!({"username": "x", "password": "y", "roles": []}))
            .await
            .0,
        403
    );
    // It has no session to end, signs in nowhere by password, and owns nothing.
    assert_eq!(ci.delete("/api/v1/sessions/current").await.0, 409);
    let body = json!({"username": "ci", "password": ""});
    assert_eq!(console.nobody().post("/api/v1/sessions", &body).await.0, 401);
    assert_eq!(admin.put("/api/v1/labels/coder", &json!({"owner": "ci"})).await.0, 400);
    // Less than the account, and never more.
    let some = json!({"account": "ci", "roles": ["auditor"], "expires_in": 3600});
    let (status, less) = admin.post("/api/v1/keys", &some).await;
    assert_eq!(status, 200, "{less}");
    let auditor = console.person(less["secret"].as_str());
    assert_eq!(auditor.get("/api/v1/me").await.1["roles"], json!(["auditor"]));
    assert_eq!(auditor.post("/api/v1/tokens", &json!({})).await.0, 403);
    for (body, words) in [
        (json!({"account": "ci", "roles": ["administrator"]}), "no other"),
        (json!({"account": "ci", "roles": []}), "at least one"),
        (json!({"account": "ci", "expires_in": 59}), "expires_in"),
        (json!({"account": "ci", "expires_in": 99_999_999}), "expires_in"),
    ] {
        let (status, problem) = admin.post("/api/v1/keys", &body).await;
        assert_eq!(status, 400, "{problem}");
        assert!(problem["detail"].as_str().unwrap().contains(words), "{problem}");
    }
    // People have no keys.
    assert_eq!(admin.post("/api/v1/keys", &json!({"account": "admin"})).await.0, 404);

    // A stream of the key ends with it.
    let mut stream = ci.request("GET", "/api/v1/events").send().await.unwrap().bytes_stream();
    let revoke = admin.request("POST", &format!("/api/v1/keys/{id}/revoke"));
    assert_eq!(admin.send(revoke).await.0, 204);
    let ended = tokio::time::timeout(Duration::from_secs(5), async { while stream.next().await.is_some() {} });
    ended.await.expect("the stream ends");
    assert_eq!(ci.get("/api/v1/me").await.0, 401);
    assert_eq!(auditor.get("/api/v1/me").await.0, 200);
    let disable = admin.request("POST", "/api/v1/users/ci/disable");
    assert_eq!(admin.send(disable).await.0, 204);
    assert_eq!(auditor.get("/api/v1/me").await.0, 401);
    let keys = admin.list("/api/v1/keys").await;
    let states: Vec<_> = keys.iter().map(|key| key["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["disabled", "revoked"]);
    assert!(
        keys.iter()
            .all(|key| key.get("secret").is_none() && key["last_used_at"].is_string())
    );

    let changes = admin.list("/api/v1/changes?user=ci").await;
    let said = whats(&changes);
    assert_eq!(said.len(), 5, "{said:?}");
    assert_eq!(said[0], "the account ci was disabled");
    assert_eq!(said[1], format!("the key {id} of ci was revoked"));
    assert!(
        said[3].starts_with(&format!("the key {id} of ci was made (operator, auditor), good until ")),
        "{said:?}"
    );
    assert_eq!(said[4], "the account ci was made (service account, operator, auditor)");
    let text = serde_json::to_string(&changes).unwrap();
    assert!(
        !text.contains("guardkey_") && !text.contains(less["secret"].as_str().unwrap().trim_start_matches("guardkey_"))
    );
    admin.valid_log().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_approve_nothing() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let body = json!({"username": "ci", "roles": ["approver", "operator"]});
    let (status, problem) = admin.post("/api/v1/service-accounts", &body).await;
    assert_eq!(status, 400);
    assert!(
        problem["detail"].as_str().unwrap().contains("approve nothing"),
        "{problem}"
    );
    // A key's secret is no cookie and no session's token, and the other way round.
    let (ci, _) = service(&console, &admin, "ci", &["operator"]).await;
    let secret = ci.token.clone().unwrap();
    let bare = console.person(Some(secret.trim_start_matches("guardkey_")));
    assert_eq!(bare.get("/api/v1/me").await.0, 401);
    let prefixed = console.person(Some(&format!("guardkey_{}", admin.token.as_deref().unwrap())));
    assert_eq!(prefixed.get("/api/v1/me").await.0, 401);
    let (status, _) = ci
        .post("/api/v1/requests/none/approve", &json!({"digest": "", "reason": ""}))
        .await;
    assert_eq!(status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_seen_and_ended() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let ann = console.user(&admin, "ann", &["approver"], &[]).await;
    let also_ann = console.sign_in("ann").await;
    let bob = console.user(&admin, "bob", &["auditor"], &[]).await;
    let own = ann.list("/api/v1/sessions").await;
    assert_eq!(own.len(), 2);
    assert_eq!(own.iter().filter(|s| s["current"] == true).count(), 1);
    assert!(own.iter().all(|s| s["username"] == "ann" && s["kind"] == "api"));
    // Everybody's are for who sees users; and only administrators end them.
    assert_eq!(ann.get("/api/v1/sessions?all=true").await.0, 403);
    assert_eq!(bob.list("/api/v1/sessions?all=true").await.len(), 4);
    let id = |sessions: &[serde_json::Value], current: bool| {
        let found = sessions.iter().find(|s| s["current"] == current).unwrap();
        found["id"].as_str().unwrap().to_owned()
    };
    let (current, other) = (id(&own, true), id(&own, false));
    assert_eq!(bob.delete(&format!("/api/v1/sessions/{current}")).await.0, 404);
    let token = ann.token.as_deref().unwrap();
    assert!(!serde_json::to_string(&own).unwrap().contains(token));
    assert_eq!(ann.delete(&format!("/api/v1/sessions/{other}")).await.0, 204);
    assert_eq!(also_ann.get("/api/v1/me").await.0, 401);
    assert_eq!(admin.delete(&format!("/api/v1/sessions/{current}")).await.0, 204);
    assert_eq!(ann.get("/api/v1/me").await.0, 401);
    // All of somebody's at once.
    let ann = console.sign_in("ann").await;
    console.sign_in("ann").await;
    assert_eq!(bob.delete("/api/v1/users/ann/sessions").await.0, 403);
    assert_eq!(admin.delete("/api/v1/users/ann/sessions").await.0, 204);
    assert_eq!(ann.get("/api/v1/me").await.0, 401);
    assert_eq!(admin.delete("/api/v1/users/ann/sessions").await.0, 204);
    assert_eq!(admin.delete("/api/v1/users/none/sessions").await.0, 404);
    // What somebody did with their own sessions is nobody's record.
    let changes = admin.list("/api/v1/changes?user=ann").await;
    assert_eq!(
        whats(&changes)[..2],
        ["2 sessions of ann were ended", "a session of ann was ended"]
    );
    assert_eq!(changes.len(), 3);
    admin.valid_log().await;
}
