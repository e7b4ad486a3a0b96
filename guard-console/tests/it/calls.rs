//! What all calls have in common: carried out once, counted, in pages, and not over what somebody else changed.

use guard_console::config::RawLimits;
use serde_json::{Value, json};

use crate::support::{Console, Person};

const KEY: &str = "8e03978e-40d5-43e8-bc93-6894a57f9324";

/// A call under an `Idempotency-Key`: status, body, and whether it was answered before.
async fn post(person: &Person, key: &str, path: &str, body: &Value) -> (u16, Value, bool) {
    let request = person.request("POST", path).header("idempotency-key", key).json(body);
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    let again = response.headers().contains_key("idempotency-replayed");
    (status, response.json().await.unwrap_or_default(), again)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_call_twice_is_one() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let account = json!({"username": "ci", "roles": ["auditor"]});
    let (status, first, again) = post(&admin, KEY, "/api/v1/service-accounts", &account).await;
    assert_eq!((status, again), (200, false), "{first}");
    // Even from another session of the same account, and after a restart.
    let admin_again = console.sign_in("admin").await;
    assert_eq!(
        post(&admin_again, KEY, "/api/v1/service-accounts", &account).await,
        (200, first.clone(), true)
    );
    let quoted = format!("\"{KEY}\"");
    assert_eq!(
        post(&admin, &quoted, "/api/v1/service-accounts", &account).await,
        (200, first.clone(), true)
    );
    let console = console.restart().await;
    let admin = console.person(admin.token.as_deref());
    assert_eq!(
        post(&admin, KEY, "/api/v1/service-accounts", &account).await,
        (200, first, true)
    );
    // A refusal is an answer, too.
    let other = "another key, but as long".replace(' ', "-");
    let (status, refused, _) = post(&admin, &other, "/api/v1/service-accounts", &account).await;
    assert_eq!(
        (status, &refused["type"]),
        (409, &json!("urn:guard:problem:user-exists"))
    );
    assert_eq!(
        post(&admin, &other, "/api/v1/service-accounts", &account).await,
        (409, refused, true)
    );
    // Another call.
    for (path, body) in [
        (
            "/api/v1/service-accounts",
            json!({"username": "cd", "roles": ["auditor"]}),
        ),
        ("/api/v1/tokens", account),
    ] {
        let (status, problem, _) = post(&admin, KEY, path, &body).await;
        assert_eq!(
            (status, &problem["type"]),
            (422, &json!("urn:guard:problem:idempotency-key-reused"))
        );
    }
    // A secret comes again, and is not in the database.
    let key = "a-key-that-nobody-guesses-1";
    let (_, made, _) = post(&admin, key, "/api/v1/keys", &json!({"account": "ci"})).await;
    assert_eq!(
        post(&admin, key, "/api/v1/keys", &json!({"account": "ci"})).await,
        (200, made.clone(), true)
    );
    assert_eq!(admin.list("/api/v1/keys").await.len(), 1);
    let secret = made["secret"].as_str().unwrap();
    for file in ["console.db", "console.db-wal"] {
        let bytes = std::fs::read(console.file(file)).unwrap_or_default();
        assert!(
            !bytes.windows(secret.len()).any(|part| part == secret.as_bytes()),
            "{file}"
        );
        assert!(!bytes.windows(key.len()).any(|part| part == key.as_bytes()), "{file}");
    }
    // With fewer roles it is another call: no way to what the account was told with more.
    let account = json!({"username": "two", "roles": ["auditor", "operator"]});
    assert_eq!(admin.post("/api/v1/service-accounts", &account).await.0, 200);
    let (_, all) = admin.post("/api/v1/keys", &json!({"account": "two"})).await;
    let (_, some) = admin
        .post("/api/v1/keys", &json!({"account": "two", "roles": ["auditor"]}))
        .await;
    let (all, some) = (
        console.person(all["secret"].as_str()),
        console.person(some["secret"].as_str()),
    );
    assert_eq!(post(&all, KEY, "/api/v1/tokens", &json!({})).await.0, 200);
    assert_eq!(post(&some, KEY, "/api/v1/tokens", &json!({})).await.0, 422);
    // Somebody else's key of the same name is another one.
    let ann = console.user(&admin, "ann", &["operator"], &[]).await;
    assert_eq!(post(&ann, KEY, "/api/v1/tokens", &json!({})).await.0, 200);
    for bad in ["short", "a key with spaces, long enough", &"x".repeat(201)] {
        assert_eq!(post(&admin, bad, "/api/v1/tokens", &json!({})).await.0, 400, "{bad}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_same_time_it_is_carried_out_once() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    let body = json!({"username": "slow", "password": "correct horse battery", "roles": ["auditor"]});
    let calls = (0..8).map(|_| post(&admin, KEY, "/api/v1/users", &body));
    let answers = futures::future::join_all(calls).await;
    let first = answers
        .iter()
        .filter(|(status, _, again)| *status == 200 && !again)
        .count();
    assert_eq!(first, 1, "{answers:?}");
    for (status, answer, again) in &answers {
        let running = *status == 409 && answer["type"] == "urn:guard:problem:still-running";
        assert!(*status == 200 || (running && !again), "{answer}");
    }
    let (status, _, again) = post(&admin, KEY, "/api/v1/users", &body).await;
    assert_eq!((status, again), (200, true));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_counted_and_told() {
    let few = |n: u32| Some(std::num::NonZeroU32::new(n).unwrap());
    let limits = RawLimits {
        account: few(5),
        sign_in: few(4),
        address: few(60),
    };
    let console = Console::start_with(limits).await;
    let admin = console.set_up().await;
    let response = admin.request("GET", "/api/v1/me").send().await.unwrap();
    let header = |response: &reqwest::Response, name: &str| {
        response
            .headers()
            .get(name)
            .map(|value| value.to_str().unwrap().to_owned())
    };
    assert_eq!(
        header(&response, "ratelimit-policy").as_deref(),
        Some("\"calls\";q=5;w=60")
    );
    assert!(header(&response, "ratelimit").unwrap().starts_with("\"calls\";r=4;t="));
    // All at once, so that a slow machine gives none back meanwhile.
    let me = || admin.request("GET", "/api/v1/me").send();
    let answers = futures::future::join_all((0..12).map(|_| me())).await;
    let refused = answers
        .into_iter()
        .map(Result::unwrap)
        .find(|answer| answer.status() == 429);
    let refused = refused.expect("the sixth is one too many");
    let wait: u64 = header(&refused, "retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert!(header(&refused, "ratelimit").unwrap().starts_with("\"calls\";r=0;t="));
    assert_eq!(
        header(&refused, "content-type").as_deref(),
        Some("application/problem+json")
    );
    // Signing in has fewer, right or wrong; each of these is another name, which the brake on guessing lets through.
    let nobody = console.nobody();
    let sign_in = async |name: String| {
        let body = json!({"username": name, "password": "wrong"});
        nobody.post("/api/v1/sessions", &body).await.0
    };
    let statuses = futures::future::join_all((0..8).map(|n| sign_in(format!("user-{n}")))).await;
    assert!(statuses.contains(&429) && statuses.contains(&401), "{statuses:?}");
    // From one address there are only so many, whoever calls; pages are no way around it.
    let page = || nobody.request("GET", "/login").send();
    let pages = futures::future::join_all((0..120).map(|_| page())).await;
    assert!(pages.into_iter().any(|page| page.unwrap().status() == 429));
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages_that_hide_nothing() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    for name in ["p1", "p3", "p5"] {
        let body = json!({"username": name, "roles": ["auditor"]});
        assert_eq!(admin.post("/api/v1/service-accounts", &body).await.0, 200);
        assert_eq!(admin.post("/api/v1/keys", &json!({"account": name})).await.0, 200);
        admin.give(name, None).await;
        console.host(&admin, &format!("host-{name}")).await;
        console.sign_in("admin").await;
    }
    for (path, key, count) in [
        ("/api/v1/users", "username", 4),
        ("/api/v1/keys", "id", 3),
        ("/api/v1/labels", "name", 3),
        ("/api/v1/hosts", "id", 3),
        ("/api/v1/sessions", "id", 4),
        ("/api/v1/changes", "digest", 12),
        ("/api/v1/evidence", "digest", 12),
    ] {
        let mut seen = Vec::new();
        let mut query = "?limit=1".to_owned();
        loop {
            let (status, page) = admin.get(&format!("{path}{query}")).await;
            assert_eq!(status, 200, "{path}{query}: {page}");
            let items = page["items"].as_array().unwrap();
            assert!(items.len() <= 1, "{path}");
            seen.extend(items.iter().map(|item| item[key].as_str().unwrap().to_owned()));
            let Some(next) = page["next"].as_str() else { break };
            let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
            query = format!("?limit=1&cursor={next}");
        }
        let mut once = seen.clone();
        once.sort();
        once.dedup();
        assert_eq!(once.len(), seen.len(), "{path}: {seen:?}");
        assert!(seen.len() >= count, "{path}: {seen:?}");
    }
    // Something that comes meanwhile moves nothing.
    let (_, page) = admin.get("/api/v1/users?limit=2").await;
    assert_eq!(page["next"], "p1");
    let body = json!({"username": "b", "roles": ["auditor"]});
    admin.post("/api/v1/service-accounts", &body).await;
    let rest = admin.list("/api/v1/users?limit=2&cursor=p1").await;
    let names: Vec<_> = rest.iter().map(|user| user["username"].as_str().unwrap()).collect();
    assert_eq!(names, ["p3", "p5"]);
    assert_eq!(admin.get("/api/v1/grants?cursor=x").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_overwrites_what_they_did_not_see() {
    let console = Console::start().await;
    let admin = console.set_up().await;
    console.user(&admin, "ann", &["approver"], &[]).await;
    let put = async |owner: Value, seen: &str| {
        let request = admin.request("PUT", "/api/v1/labels/coder").header("if-match", seen);
        let response = request.json(&json!({"owner": owner})).send().await.unwrap();
        let tag = response
            .headers()
            .get("etag")
            .map(|tag| tag.to_str().unwrap().to_owned());
        (response.status().as_u16(), tag.unwrap_or_default())
    };
    admin.give("coder", None).await;
    let shown = admin.request("GET", "/api/v1/labels/coder").send().await.unwrap();
    let first = shown.headers()["etag"].to_str().unwrap().to_owned();
    let (status, second) = put(json!("ann"), &first).await;
    assert_eq!(status, 200);
    assert_ne!(first, second);
    // Who saw the first has to look again.
    assert_eq!(put(Value::Null, &first).await.0, 412);
    let delete = admin
        .request("DELETE", "/api/v1/labels/coder")
        .header("if-match", &first);
    let (status, problem) = admin.send(delete).await;
    assert_eq!((status, &problem["type"]), (412, &json!("urn:guard:problem:changed")));
    assert_eq!(admin.get("/api/v1/labels/coder").await.1["owner"], "ann");
    for bad in ["x", "*", "W/\"x\""] {
        assert_eq!(put(Value::Null, bad).await.0, 400, "{bad}");
    }
    let delete = admin
        .request("DELETE", "/api/v1/labels/coder")
        .header("if-match", &second);
    assert_eq!(admin.send(delete).await.0, 204);
    assert_eq!(admin.get("/api/v1/labels/none").await.0, 404);
}
