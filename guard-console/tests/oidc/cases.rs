//! What signing in by a provider has to withstand.

use guard_evidence::record::{Predicate, Statement};
use serde_json::{Value, json};

use crate::Case;
use crate::browser::Browser;
use crate::provider::Provider;
use crate::support::{Console, Person, Question, whats};

macro_rules! cases {
    ($($case:ident),* $(,)?) => {
        vec![$((concat!("oidc::", stringify!($case)), || Box::pin($case()))),*]
    };
}

pub(crate) fn all() -> Vec<Case> {
    cases![
        signs_in_and_decides,
        people_are_found_by_subject_alone,
        groups_are_looked_at_every_time,
        approvals_of_who_lost_a_role_no_longer_count,
        keys_change,
        groups_may_stand_in_userinfo,
        overage_is_refused_with_words,
        tokens_that_do_not_hold,
        answers_that_nobody_asked_for,
        what_the_provider_says_is_text,
        accounts_that_may_not,
        signing_out_there_too,
        a_provider_that_is_not_there,
        a_client_secret_in_the_body,
        configuration_is_on_record,
    ]
}

fn accounts() -> Value {
    json!({
        "00u-ann": {
            "name": "Ann Example", "preferred_username": "ann", "email": "ann@example.org",
            "groups": ["approvers", "secops"],
        },
        "00u-bob": {
            "name": "Ann Example", "preferred_username": "ann", "email": "ann@example.org", "groups": ["auditors"],
        },
        "00u-eve": {"preferred_username": "eve", "groups": ["everybody"]},
        "00u-adm": {"preferred_username": "adm", "groups": ["admins"]},
    })
}

async fn set_up() -> (Provider, Console, Person) {
    let provider = Provider::start();
    let console = Console::start_with(vec![provider.config()]).await;
    provider.serve(&console, accounts()).await;
    let admin = console.set_up().await;
    (provider, console, admin)
}

/// Signs somebody in with a browser of their own.
async fn as_(provider: &Provider, console: &Console, account: &str) -> Browser {
    provider.control(json!({"account": account})).await;
    let mut browser = Browser::new(console, provider);
    let got = browser.sign_in("/history").await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert!(got.text.contains("content=\"0; url=/history\""), "{}", got.text);
    browser
}

async fn me(browser: &Browser) -> Value {
    let (status, me) = browser.api("GET", "/api/v1/me", "").await;
    assert_eq!(status, 200, "{me}");
    me
}

async fn signs_in_and_decides() {
    let (provider, console, admin) = set_up().await;
    let (_, status) = console.nobody().get("/api/v1/status").await;
    assert_eq!(
        status["sign_in_with"],
        json!([{"name": "okta", "label": "Example <Id>"}])
    );
    let mut browser = Browser::new(&console, &provider);
    let page = browser.get("/login?next=/hosts").await;
    assert!(page.text.contains("Sign in with Example &#60;Id&#62;"), "{}", page.text);
    assert!(
        page.text.contains("href=\"/login/oidc/okta?next=%2Fhosts\""),
        "{}",
        page.text
    );

    let begun = browser.get("/login/oidc/okta?next=/history").await;
    assert_eq!(begun.status, 303);
    let to = url::Url::parse(begun.location.as_deref().unwrap()).unwrap();
    let query: std::collections::HashMap<_, _> = to.query_pairs().into_owned().collect();
    assert_eq!(query["code_challenge_method"], "S256");
    assert_eq!(query["response_type"], "code");
    assert_eq!(query["redirect_uri"], console.url("/login/oidc/okta/callback"));
    assert!(query["state"].len() >= 43 && query["nonce"].len() >= 43 && query["state"] != query["nonce"]);
    let cookie = &begun.set_cookies[0];
    for part in [
        "__Host-guard-oidc=",
        "; Path=/",
        "; Secure",
        "; HttpOnly",
        "; SameSite=Lax",
        "; Max-Age=600",
    ] {
        assert!(cookie.contains(part), "{cookie}");
    }

    let mut browser = as_(&provider, &console, "00u-ann").await;
    let me = me(&browser).await;
    assert_eq!(me["username"], "okta:ann");
    assert_eq!(me["display_name"], "Ann Example");
    assert_eq!(
        (&me["roles"], &me["groups"]),
        (&json!(["approver"]), &json!(["security"]))
    );
    assert_eq!(me["provider"], "okta");
    let users = admin.list("/api/v1/users").await;
    let ann = users.iter().find(|user| user["username"] == "okta:ann").unwrap();
    assert_eq!(
        (&ann["issuer"], &ann["subject"]),
        (&json!(provider.issuer), &json!("00u-ann"))
    );

    // Ann decides, and the decision says who she is and how she signed in.
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make"]).groups(&["security"]));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    let csrf = browser.csrf().await;
    let path = format!("/api/v1/requests/{}", ask.request_id);
    let (_, request) = browser.api("GET", &path, "").await;
    assert_eq!(request["may_answer"], true, "{request}");
    let answer = browser
        .send(
            "POST",
            &console.url(&format!("/requests/{}/answer", ask.request_id)),
            &[
                ("csrf", &csrf),
                ("digest", request["digest"].as_str().unwrap()),
                ("verdict", "approve"),
                ("reason", ""),
            ],
        )
        .await;
    assert!(answer.status < 400, "{}", answer.text);
    let decision = session.decision().await;
    let envelope = guard_evidence::dsse::parse(&decision.envelope).unwrap();
    let statement = Statement::from_payload(envelope.unverified_payload()).unwrap();
    let Predicate::SignedDecision(signed) = statement.predicate else {
        panic!("{statement:?}")
    };
    let [by] = signed.answers.as_slice() else {
        panic!("{signed:?}")
    };
    assert_eq!(
        (by.who.issuer.as_str(), by.who.subject.as_str()),
        (provider.issuer.as_str(), "00u-ann")
    );
    assert_eq!(by.name, "okta:ann");
    let how = by.authentication.as_ref().unwrap();
    assert_eq!(how.class.as_deref(), Some("urn:example:two"));
    assert_eq!(how.methods, ["pwd", "otp"]);
    let [decided, ran] = host.carried_out(&ask.request_id, &sealed.payload_digest, &decision.envelope);
    host.ship(&console, &[&decided, &ran]).await;
    admin.valid_log().await;
}

async fn people_are_found_by_subject_alone() {
    let (provider, console, admin) = set_up().await;
    // A local user of the same name is somebody else, as is whoever has the same name and address there.
    console.user(&admin, "ann", &["operator"], &[]).await;
    let first = as_(&provider, &console, "00u-ann").await;
    let second = as_(&provider, &console, "00u-bob").await;
    assert_eq!(me(&first).await["username"], "okta:ann");
    assert_eq!(me(&second).await["username"], "okta:ann-2");
    assert_eq!(me(&second).await["roles"], json!(["auditor"]));
    // Another name and address do not make another person.
    let mut renamed = accounts();
    renamed["00u-ann"]["preferred_username"] = json!("zoe");
    renamed["00u-ann"]["name"] = json!("Zoe <b>\u{202e}");
    renamed["00u-ann"]["email"] = json!("zoe@example.org");
    provider.control(json!({"accounts": renamed})).await;
    let again = as_(&provider, &console, "00u-ann").await;
    let me = me(&again).await;
    assert_eq!(me["username"], "okta:ann");
    assert_eq!(me["display_name"], "Zoe <b>⟨U+202E⟩");
    assert_eq!(admin.list("/api/v1/users").await.len(), 4);
    // No password opens such an account.
    for password in ["", "anything at all"] {
        let body = json!({"username": "okta:ann", "password": password});
        assert_eq!(console.nobody().post("/api/v1/sessions", &body).await.0, 401);
    }
}

async fn groups_are_looked_at_every_time() {
    let (provider, console, admin) = set_up().await;
    let ann = as_(&provider, &console, "00u-ann").await;
    let mut changed = accounts();
    changed["00u-ann"]["groups"] = json!(["auditors", "approvers"]);
    provider.control(json!({"accounts": changed})).await;
    as_(&provider, &console, "00u-ann").await;
    // The older session has no more than the newer.
    assert_eq!(me(&ann).await["roles"], json!(["approver", "auditor"]));
    assert_eq!(me(&ann).await["groups"], json!([]));
    // In no group that counts: refused, and out everywhere.
    changed["00u-ann"]["groups"] = json!([]);
    provider.control(json!({"accounts": changed})).await;
    let mut last = Browser::new(&console, &provider);
    let got = last.sign_in("/").await;
    assert_eq!(got.status, 401);
    assert!(
        got.text.contains("none of your groups there gives you a role here"),
        "{}",
        got.text
    );
    assert!(last.session().is_none());
    assert_eq!(ann.api("GET", "/api/v1/me", "").await.0, 401);
    let changes = admin.list("/api/v1/changes?user=okta:ann").await;
    assert_eq!(
        whats(&changes),
        [
            "the account okta:ann was changed from approver, auditor to no role",
            "the account okta:ann was changed from approver; group security to approver, auditor",
            "the account okta:ann was made (approver; group security)",
        ]
    );
    for change in &changes {
        assert_eq!(change["by_words"], "by the identity provider okta");
    }
    admin.valid_log().await;
}

async fn approvals_of_who_lost_a_role_no_longer_count() {
    let (provider, console, admin) = set_up().await;
    let [cid] = console.approvers(&admin, ["cid"]).await;
    let mut ann = as_(&provider, &console, "00u-ann").await;
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make"]).quorum(2));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    let csrf = ann.csrf().await;
    let path = format!("/api/v1/requests/{}", ask.request_id);
    let (_, request) = ann.api("GET", &path, "").await;
    let digest = request["digest"].as_str().unwrap();
    let fields = [("csrf", csrf.as_str()), ("digest", digest), ("verdict", "approve")];
    let url = console.url(&format!("/requests/{}/answer", ask.request_id));
    assert!(ann.send("POST", &url, &fields).await.status < 400);
    let mut changed = accounts();
    changed["00u-ann"]["groups"] = json!(["auditors"]);
    provider.control(json!({"accounts": changed})).await;
    as_(&provider, &console, "00u-ann").await;
    let (_, answered) = cid.answer(&ask.request_id, "approve", "").await;
    assert_eq!(
        (&answered["state"], &answered["approvals"]),
        (&json!("pending"), &json!(1)),
        "{answered}"
    );
    assert_eq!(answered["decisions"][0]["void_because"], "they lost a role or a group");
    admin.valid_log().await;
}

async fn keys_change() {
    let (provider, console, _admin) = set_up().await;
    as_(&provider, &console, "00u-ann").await;
    let before = provider.control(json!({})).await["seen"]["discovery"].as_u64().unwrap();
    as_(&provider, &console, "00u-ann").await;
    let same = provider.control(json!({"rotate": "rsa"})).await["seen"]["discovery"]
        .as_u64()
        .unwrap();
    assert_eq!(before, same, "what is known is not asked for again");
    as_(&provider, &console, "00u-ann").await;
    let after = provider.control(json!({})).await["seen"]["discovery"].as_u64().unwrap();
    assert_eq!(after, before + 1, "a key that is not known is asked for once");
    // A key that nobody publishes makes the console ask no more than that.
    provider.control(json!({"forge": "key"})).await;
    for _ in 0..3 {
        let got = Browser::new(&console, &provider).sign_in("/").await;
        assert_eq!(got.status, 401);
    }
    let end = provider.control(json!({})).await["seen"]["discovery"].as_u64().unwrap();
    assert_eq!(end, after);
}

async fn groups_may_stand_in_userinfo() {
    let (provider, console, _admin) = set_up().await;
    provider.control(json!({"idTokenGroups": false, "restart": true})).await;
    let ann = as_(&provider, &console, "00u-ann").await;
    let me = me(&ann).await;
    assert_eq!(me["username"], "okta:ann", "the name is there too");
    assert_eq!(
        (&me["roles"], &me["groups"]),
        (&json!(["approver"]), &json!(["security"]))
    );
}

async fn overage_is_refused_with_words() {
    let (provider, console, admin) = set_up().await;
    let accounts = json!({"00u-ann": {"preferred_username": "ann", "hasgroups": true}});
    provider
        .control(json!({"accounts": accounts, "account": "00u-ann"}))
        .await;
    let got = Browser::new(&console, &provider).sign_in("/").await;
    assert_eq!(got.status, 401);
    assert!(got.text.contains("groups overage"), "{}", got.text);
    let accounts = json!({"00u-ann": {"preferred_username": "ann"}});
    provider.control(json!({"accounts": accounts})).await;
    let got = Browser::new(&console, &provider).sign_in("/").await;
    assert!(got.text.contains("says nothing about your groups"), "{}", got.text);
    assert_eq!(admin.list("/api/v1/users").await.len(), 1);
}

async fn tokens_that_do_not_hold() {
    let (provider, console, admin) = set_up().await;
    provider.control(json!({"account": "00u-ann", "forge": "good"})).await;
    let mut good = Browser::new(&console, &provider);
    assert_eq!(good.sign_in("/").await.status, 200);
    assert!(good.session().is_some(), "what is forged well is a token");
    let before = admin.list("/api/v1/changes").await.len();
    let forgeries = [
        "nonce",
        "no-nonce",
        "aud",
        "audiences",
        "azp",
        "iss",
        "expired",
        "old",
        "future",
        "at_hash",
        "key",
        "subject",
        "none",
        "shared-secret",
        "public-key",
    ];
    for forgery in forgeries {
        provider.control(json!({"forge": forgery})).await;
        let mut browser = Browser::new(&console, &provider);
        let got = browser.sign_in("/").await;
        assert_eq!(got.status, 401, "{forgery}: {}", got.text);
        assert!(got.text.contains("does not hold"), "{forgery}: {}", got.text);
        assert!(browser.session().is_none(), "{forgery}");
        // The brake on guessing counts failures; one that holds lets it go.
        provider.control(json!({"forge": "good"})).await;
        assert_eq!(Browser::new(&console, &provider).sign_in("/").await.status, 200);
    }
    let seen = provider.control(json!({})).await;
    assert!(seen["seen"]["verifiers"].as_u64().unwrap() >= 15, "{seen}");
    assert_eq!(admin.list("/api/v1/changes").await.len(), before);
}

async fn answers_that_nobody_asked_for() {
    let (provider, console, _admin) = set_up().await;
    provider.control(json!({"account": "00u-ann"})).await;
    let tokens = async || provider.control(json!({})).await["seen"]["token"].as_u64().unwrap();
    // Login CSRF: the attacker's own answer, given to somebody else's browser.
    let mut attacker = Browser::new(&console, &provider);
    let answer = attacker.answered().await;
    let mut victim = Browser::new(&console, &provider);
    let got = victim.send("GET", &answer, &[]).await;
    assert_eq!(got.status, 401);
    assert!(got.text.contains("did not begin to sign in"), "{}", got.text);
    // Also when that browser has begun by itself.
    victim.answered().await;
    let got = victim.send("GET", &answer, &[]).await;
    assert_eq!(got.status, 401);
    assert!(got.text.contains("not the answer to your last attempt"), "{}", got.text);
    assert!(victim.session().is_none());
    // Another issuer's answer (mix-up), and one that names none although the provider says that it does.
    for change in ["https%3A%2F%2Fevil.example.org", ""] {
        let mut browser = Browser::new(&console, &provider);
        let answer = browser.answered().await;
        let mut url = url::Url::parse(&answer).unwrap();
        let kept: Vec<(String, String)> = url
            .query_pairs()
            .into_owned()
            .filter(|(name, _)| name != "iss")
            .collect();
        url.query_pairs_mut().clear().extend_pairs(kept);
        let url = if change.is_empty() {
            url.to_string()
        } else {
            format!("{url}&iss={change}")
        };
        let got = browser.send("GET", &url, &[]).await;
        assert_eq!(got.status, 401, "{change}");
        assert!(browser.session().is_none());
    }
    assert_eq!(tokens().await, 0, "no code was redeemed for any of them");
    // An answer works once: its cookie is gone, and its code is spent.
    let kept = attacker.cookies.clone();
    let got = attacker.send("GET", &answer, &[]).await;
    assert_eq!(got.status, 200, "{}", got.text);
    let first = attacker.session().unwrap().to_owned();
    let again = attacker.send("GET", &answer, &[]).await;
    assert_eq!(again.status, 401);
    let mut thief = Browser::new(&console, &provider);
    thief.cookies = kept;
    let got = thief.send("GET", &answer, &[]).await;
    assert_eq!(got.status, 401, "{}", got.text);
    assert!(thief.session().is_none());
    // Fixation: a session that somebody planted is not the one that signing in makes.
    let mut planted = Browser::new(&console, &provider);
    let jar = planted.cookies.entry(console.url("")).or_default();
    jar.insert("__Host-guard".to_owned(), "A".repeat(43));
    planted.sign_in("/").await;
    let session = planted.session().unwrap();
    assert!(session != "A".repeat(43) && session != first);
    // Nowhere else than here afterwards.
    for next in [
        "https://evil.example.org",
        "//evil.example.org",
        "/%5Cevil.example.org",
        "javascript:alert(1)",
    ] {
        let got = Browser::new(&console, &provider).sign_in(next).await;
        assert!(got.text.contains("content=\"0; url=/\""), "{next}: {}", got.text);
    }
    let mut nobody = Browser::new(&console, &provider);
    for path in ["/login/oidc/none", "/login/oidc/none/callback?code=x&state=y"] {
        let got = nobody.get(path).await;
        assert!(matches!(got.status, 401 | 404), "{path}: {}", got.status);
    }
}

async fn what_the_provider_says_is_text() {
    let (provider, console, _admin) = set_up().await;
    provider.control(json!({"account": null})).await;
    let got = Browser::new(&console, &provider).sign_in("/").await;
    assert_eq!(got.status, 401);
    assert!(
        got.text
            .contains("did not sign you in: nobody &#60;b&#62;is&#60;/b&#62; here"),
        "{}",
        got.text
    );
    // What comes with an address is no more than that, and nothing without the state of an attempt.
    let mut browser = Browser::new(&console, &provider);
    browser.get("/login/oidc/okta").await;
    let got = browser
        .get("/login/oidc/okta/callback?error=x&error_description=call%20the%20help%20desk")
        .await;
    assert_eq!(got.status, 401);
    assert!(!got.text.contains("help desk"), "{}", got.text);
}

async fn accounts_that_may_not() {
    let provider = Provider::start();
    let console = Console::start_with(vec![provider.config()]).await;
    provider.serve(&console, accounts()).await;
    // Nobody is made an administrator by being first.
    provider.control(json!({"account": "00u-adm"})).await;
    let got = Browser::new(&console, &provider).sign_in("/").await;
    assert!(
        got.text.contains("the first administrator is still to be made"),
        "{}",
        got.text
    );
    let admin = console.set_up().await;
    let adm = as_(&provider, &console, "00u-adm").await;
    assert_eq!(me(&adm).await["roles"], json!(["administrator"]));
    // The last who can sign in by password stays, whatever the provider's people are.
    let last = admin.request("POST", "/api/v1/users/admin/disable");
    assert_eq!(admin.send(last).await.0, 409);
    // Disabled here is disabled, whatever the provider says.
    let disable = admin.request("POST", "/api/v1/users/okta:adm/disable");
    assert_eq!(admin.send(disable).await.0, 204);
    assert_eq!(adm.api("GET", "/api/v1/me", "").await.0, 401);
    let got = Browser::new(&console, &provider).sign_in("/").await;
    assert_eq!(got.status, 401);
    assert!(got.text.contains("was disabled by an administrator"), "{}", got.text);
    // Known there, nobody here.
    provider.control(json!({"account": "00u-eve"})).await;
    let got = Browser::new(&console, &provider).sign_in("/").await;
    assert_eq!(got.status, 401);
    assert_eq!(admin.list("/api/v1/users").await.len(), 2);
    // An account of the provider can own a label, and then does not answer for it.
    let ann = as_(&provider, &console, "00u-ann").await;
    admin.give("coder", Some("okta:ann")).await;
    let changes = admin.list("/api/v1/changes?label=coder").await;
    assert_eq!(whats(&changes), ["the label coder was made, owned by okta:ann"]);
    let (mut host, mut session) = console.build_host(&admin).await;
    let (ask, sealed) = host.ask(&Question::new("coder", &["make"]));
    session.ask(&ask).await;
    host.ship(&console, &[&sealed]).await;
    let path = format!("/api/v1/requests/{}", ask.request_id);
    let (_, request) = ann.api("GET", &path, "").await;
    assert!(
        request["why_not"]
            .as_str()
            .unwrap()
            .contains("You own the workload coder"),
        "{request}"
    );
    // Nor for what was asked while it was theirs.
    admin.give("coder", None).await;
    let (_, request) = ann.api("GET", &path, "").await;
    assert!(
        request["why_not"]
            .as_str()
            .unwrap()
            .contains("You owned the workload coder"),
        "{request}"
    );
    admin.valid_log().await;
}

async fn signing_out_there_too() {
    let (provider, console, _admin) = set_up().await;
    let mut ann = as_(&provider, &console, "00u-ann").await;
    let csrf = ann.csrf().await;
    let got = ann.send("POST", &console.url("/logout"), &[("csrf", &csrf)]).await;
    assert_eq!(
        (got.status, got.location.as_deref()),
        (200, None),
        "no redirect of a form to another site"
    );
    assert!(ann.session().is_none());
    let (_, rest) = got.text.split_once("content=\"0; url=").unwrap();
    let to = rest
        .split('"')
        .next()
        .unwrap()
        .replace("&#38;", "&")
        .replace("&amp;", "&");
    assert!(to.starts_with(&format!("{}/session/end?", provider.issuer)), "{to}");
    let got = ann.send("GET", &to, &[]).await;
    assert_eq!(got.status, 200);
    let (_, rest) = got.text.split_once("name=\"xsrf\" value=\"").unwrap();
    let xsrf = rest.split('"').next().unwrap().to_owned();
    let confirm = format!("{}/session/end/confirm", provider.issuer);
    let got = ann.send("POST", &confirm, &[("xsrf", &xsrf), ("logout", "yes")]).await;
    assert!(got.location.unwrap().starts_with(&console.url("/login")));
    // Signed out there: whoever is next at that browser is asked again.
    provider.control(json!({"account": "00u-bob"})).await;
    ann.sign_in("/").await;
    assert_eq!(me(&ann).await["username"], "okta:ann-2");
    // A local session has nowhere else to sign out.
    let mut local = Browser::new(&console, &provider);
    let fields = [
        ("username", "admin"),
        ("password", crate::support::PASSWORD),
        ("next", "/"),
    ];
    local.send("POST", &console.url("/login"), &fields).await;
    let csrf = local.csrf().await;
    let got = local.send("POST", &console.url("/logout"), &[("csrf", &csrf)]).await;
    assert_eq!((got.status, got.location.as_deref()), (303, Some("/login")));
}

async fn a_provider_that_is_not_there() {
    let provider = Provider::start();
    let mut gone = provider.config();
    "https://localhost:1".clone_into(&mut gone.issuer);
    let mut other = provider.config();
    "redirecting".clone_into(&mut other.name);
    other.issuer = format!("{}/redirecting", provider.issuer);
    let mut large = provider.config();
    "large".clone_into(&mut large.name);
    large.issuer = format!("{}/large", provider.issuer);
    let console = Console::start_with(vec![gone, other, large]).await;
    console.set_up().await;
    let mut browser = Browser::new(&console, &provider);
    for name in ["okta", "redirecting", "large"] {
        let got = browser.get(&format!("/login/oidc/{name}")).await;
        assert_eq!(got.status, 503, "{name}");
        assert!(got.text.contains("cannot be reached"), "{name}: {}", got.text);
    }
    // Break glass: a password still works.
    console.sign_in("admin").await;
}

async fn a_client_secret_in_the_body() {
    let (provider, console, _admin) = set_up().await;
    let change = json!({"methods": "client_secret_post", "restart": true});
    provider.control(change).await;
    as_(&provider, &console, "00u-ann").await;
}

async fn configuration_is_on_record() {
    let (provider, mut console, admin) = set_up().await;
    let changes = admin.list("/api/v1/changes").await;
    let made = changes.iter().find(|change| change["kind"] == "provider").unwrap();
    assert_eq!(made["by_words"], "by the console's configuration");
    let what = made["what"].as_str().unwrap();
    assert!(
        what.contains("approvers gives approver") && what.contains("secops gives group security"),
        "{what}"
    );
    assert!(!made.to_string().contains("a secret of the test"));
    console = console.restart().await;
    let admin = console.sign_in("admin").await;
    let count = async |admin: &Person| {
        let all = admin.list("/api/v1/changes").await;
        all.iter().filter(|change| change["kind"] == "provider").count()
    };
    assert_eq!(count(&admin).await, 1, "the same again is no change");
    console.oidc[0].roles.remove("admins");
    console = console.restart().await;
    let admin = console.sign_in("admin").await;
    assert_eq!(count(&admin).await, 2);
    console.oidc.clear();
    console = console.restart().await;
    let admin = console.sign_in("admin").await;
    assert_eq!(count(&admin).await, 3);
    let mut browser = Browser::new(&console, &provider);
    assert_eq!(browser.get("/login/oidc/okta").await.status, 404);
    admin.valid_log().await;
}
