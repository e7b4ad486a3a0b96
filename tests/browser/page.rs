//! A person at the page.

use anyhow::{Context, Result};
use guard_tests::scene::{CODER, Scene, end, expect_status};
use guard_tests::{Case, case, check};
use xtask::stage::{Person, Request};

use crate::driver::Browser;

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case(
            "browser::approve_and_deny",
            "a held exec appears without reload, is approved by a click and runs; another is denied with a reason",
            approve_and_deny,
        ),
        case(
            "browser::owner_sees_why_not",
            "the owner sees why they cannot answer instead of the buttons",
            owner_sees_why_not,
        ),
        case(
            "browser::hostile_text_is_text",
            "markup and control characters that the workload wrote are shown as text",
            hostile_text,
        ),
        case(
            "browser::wrong_password",
            "a wrong password is refused with words, and nothing is behind the sign-in",
            wrong_password,
        ),
        case(
            "browser::answered_elsewhere",
            "a card that somebody else answered says so in place and loses its buttons",
            answered_elsewhere,
        ),
        case(
            "browser::history",
            "ended requests are in the history with who and why",
            history,
        ),
        case(
            "browser::changes_and_alarms",
            "changes and alarms appear live, with who did it; hostile text is text; the keyboard reaches what has a name",
            changes_and_alarms,
        ),
    ]
}

struct Desk {
    scene: Scene,
    browser: Browser,
    base: String,
}

impl Desk {
    fn new() -> Result<Self> {
        let scene = Scene::with(|options| options.network = true)?;
        let port = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port();
        scene.vm.forward(port, 8443)?;
        Ok(Self {
            scene,
            browser: Browser::start()?,
            base: format!("https://127.0.0.1:{port}"),
        })
    }

    fn sign_in(&self, person: &Person) -> Result<()> {
        self.browser.open(&format!("{}/", self.base))?;
        self.browser.fill("input[name=username]", &person.name)?;
        self.browser.fill("input[name=password]", &person.password)?;
        self.browser.screenshot("sign-in")?;
        self.browser.click("form button.primary")?;
        self.browser.wait("#queue")
    }

    /// Waits for the request in the live queue, without loading the page again, and opens its card.
    fn open_card(&self, request: &Request) -> Result<String> {
        let row = format!("[data-row=\"{}\"] a", request.id);
        self.browser.wait(&row)?;
        let card = format!("[data-request=\"{}\"]", request.id);
        // With one request in the queue its card may be open already.
        if !self.browser.has(&card)? {
            self.browser.click(&row)?;
        }
        self.browser.wait(&card)?;
        Ok(card)
    }

    /// Nothing that the browser complained about, violations of the content security policy included.
    fn quiet(&self) -> Result<()> {
        let complaints = self.browser.complaints()?;
        check!(complaints.is_empty(), "the browser complains: {complaints:#?}");
        Ok(())
    }
}

fn approve_and_deny() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { scene, browser, .. } = &desk;
    desk.sign_in(&scene.approver)?;
    browser.screenshot("queue-empty")?;
    browser.run("window.sameDocument = true")?;

    let running = scene.start_labelled(CODER, &["/usr/bin/touch", "/root/by-click"])?;
    let request = scene.held(CODER, "by-click")?;
    let card_of = desk.open_card(&request)?;
    let text = browser.wait_text(&card_of, &[CODER, "touch", "/root/by-click"])?;
    check!(
        scene.vm.run(&["/usr/bin/test", "-e", "/root/by-click"])?.status == 1,
        "it ran before the click: {text}"
    );
    browser.screenshot("queue-held")?;
    browser.click(&format!("{card_of} [data-answer=approve]:not([disabled])"))?;
    browser.wait_text(&card_of, &["approved", "approver"])?;
    browser.screenshot("queue-approved")?;
    expect_status(&end(running)?, 0)?;
    scene
        .vm
        .script("test -e /root/by-click")
        .context("approved by a click, and it did not run")?;
    let request = scene.follow(&request.id, "ran", Request::settled)?;
    check!(request.decisions[0].channel == "web", "{request:?}");
    browser.wait_text(&card_of, &["It ran."])?;

    let running = scene.start_labelled(CODER, &["/usr/bin/touch", "/root/never"])?;
    let request = scene.held(CODER, "never")?;
    let card_of = desk.open_card(&request)?;
    browser.fill(&format!("{card_of} [name=reason]"), "not on a Friday")?;
    browser.click(&format!("{card_of} [data-answer=deny]:not([disabled])"))?;
    browser.wait_text(&card_of, &["denied", "not on a Friday", "Operation not permitted"])?;
    browser.screenshot("queue-denied")?;
    expect_status(&end(running)?, 126)?;
    check!(
        browser.run("return window.sameDocument")? == true,
        "the page was loaded anew"
    );
    desk.quiet()
}

fn owner_sees_why_not() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { scene, browser, .. } = &desk;
    desk.sign_in(&scene.owner)?;
    let running = scene.start_labelled(CODER, &["/bin/echo", "mine"])?;
    let request = scene.held(CODER, "mine")?;
    let card_of = desk.open_card(&request)?;
    browser.wait_text(&card_of, &["own"])?;
    check!(
        !browser.has(&format!("{card_of} [data-answer]:not([disabled])"))?,
        "the owner has buttons"
    );
    browser.screenshot("queue-owner")?;
    scene.approve(&request)?;
    browser.wait_text(&card_of, &["approved", "approver"])?;
    expect_status(&end(running)?, 0)?;
    desk.quiet()
}

fn hostile_text() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { scene, browser, .. } = &desk;
    desk.sign_in(&scene.approver)?;
    let evil = "</pre><img src=x onerror='window.owned=1'><script>window.owned=1</script>\u{202e}gpj\u{1b}[2J\n{{7*7}}";
    let running = scene.start_labelled(CODER, &["/usr/bin/printf", "%s", evil])?;
    let request = scene.held(CODER, "printf")?;
    let card_of = desk.open_card(&request)?;
    let text = browser.wait_text(&card_of, &["<script>window.owned=1</script>", "⟨U+202E⟩", "⟨U+001B⟩"])?;
    check!(!text.contains('\u{202e}') && !text.contains('\u{1b}'), "{text:?}");
    browser.screenshot("queue-hostile")?;
    check!(
        browser.run("return window.owned === undefined")? == true,
        "the workload's script ran"
    );
    check!(
        !browser.has(&format!("{card_of} img"))?,
        "the workload's element is in the page"
    );
    browser.click(&format!("{card_of} [data-answer=approve]:not([disabled])"))?;
    check!(end(running)?.stdout == evil.as_bytes(), "it did not run as it was");
    desk.quiet()
}

fn wrong_password() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { browser, base, .. } = &desk;
    browser.open(&format!("{base}/"))?;
    browser.fill("input[name=username]", "approver")?;
    browser.fill("input[name=password]", "not the password")?;
    browser.click("form button.primary")?;
    browser.wait_text("body", &["wrong"])?;
    browser.screenshot("sign-in-refused")?;
    check!(
        !browser
            .run("return document.cookie")?
            .as_str()
            .unwrap_or_default()
            .contains("guard"),
        "a script can read the cookie"
    );
    for path in ["/", "/history", "/hosts", "/evidence"] {
        browser.open(&format!("{base}{path}"))?;
        browser
            .wait("input[name=password]")
            .with_context(|| format!("{path} without signing in"))?;
    }
    // Chromium reports the refused form itself as an error of the network; nothing else may be there.
    let complaints: Vec<String> = browser
        .complaints()?
        .into_iter()
        .filter(|text| !text.contains("401"))
        .collect();
    check!(complaints.is_empty(), "{complaints:#?}");
    Ok(())
}

fn answered_elsewhere() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { scene, browser, .. } = &desk;
    let running = scene.start_labelled(CODER, &["/bin/echo", "race"])?;
    let request = scene.held(CODER, "race")?;
    desk.sign_in(&scene.approver)?;
    let card_of = desk.open_card(&request)?;
    browser.wait(&format!("{card_of} [data-answer=approve]:not([disabled])"))?;
    let second = scene.person("second", &["approver"], &[])?;
    scene.answer(&second, &request, "deny", "I was faster")?.success()?;
    browser.wait_text(&card_of, &["denied", "second", "I was faster"])?;
    check!(
        !browser.has(&format!("{card_of} [data-answer]:not([disabled])"))?,
        "it can still be answered"
    );
    expect_status(&end(running)?, 126)?;
    desk.quiet()
}

fn history() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { scene, browser, base } = &desk;
    let running = scene.start_labelled(CODER, &["/bin/echo", "of old"])?;
    let request = scene.held(CODER, "of old")?;
    scene.deny(&request, "for the record")?;
    end(running)?;
    // Approvers see no hosts; auditors see everything.
    let auditor = scene.person("auditor", &["auditor"], &[])?;
    desk.sign_in(&auditor)?;
    for (path, words) in [
        ("/history", &["of old", "denied", "approver", "for the record"][..]),
        ("/hosts", &["online", "6.12"]),
        ("/evidence", &["denied"]),
    ] {
        browser.open(&format!("{base}{path}"))?;
        browser.wait_text("body", words).with_context(|| path.to_owned())?;
        browser.screenshot(&format!("page{}", path.replace('/', "-")))?;
    }
    desk.quiet()
}

/// Everything on this page is reached by Tab and has a name for those who do not see it.
fn accessible(browser: &Browser, page: &str) -> Result<()> {
    let nameless = browser.nameless()?;
    check!(nameless.is_empty(), "{page}: no name to read out: {nameless:#?}");
    let unreached = browser.unreached_by_tab()?;
    check!(unreached.is_empty(), "{page}: not reached by Tab: {unreached:#?}");
    Ok(())
}

fn changes_and_alarms() -> Result<()> {
    let desk = Desk::new()?;
    let Desk { scene, browser, base } = &desk;
    desk.sign_in(&scene.approver)?;
    browser.open(&format!("{base}/changes"))?;
    browser.wait_text("#rows", &["the label coder was made, owned by owner", "by admin"])?;
    browser.wait("#live[data-state=live]")?;
    browser.run("window.sameDocument = true")?;

    // A new person, another owner, and words that want to be more than words.
    let evil = "<img src=x onerror='window.owned=1'><script>window.owned=1</script>\u{202e}lla\u{1b}[2J{{7*7}}";
    scene.person("eve+1@example.org", &["approver", "auditor"], &["code-push"])?;
    browser.wait_text(
        "#rows",
        &[
            "the account eve+1@example.org was made (approver, auditor; group code-push)",
            "by admin",
        ],
    )?;
    let body = serde_json::json!({"owner": "eve+1@example.org", "reason": evil, "description": evil});
    scene
        .call(Some(scene.admin()), "PUT", &format!("/labels/{CODER}"), Some(&body))?
        .success()?;
    let text = browser.wait_text(
        "#rows",
        &[
            "the owner of coder was changed from owner to eve+1@example.org",
            "<script>window.owned=1</script>",
            "⟨U+202E⟩",
            "⟨U+001B⟩",
        ],
    )?;
    check!(!text.contains('\u{202e}') && !text.contains('\u{1b}'), "{text:?}");
    let token = serde_json::json!({"description": evil});
    scene
        .call(Some(scene.admin()), "POST", "/tokens", Some(&token))?
        .success()?;
    browser.wait_text("#rows", &["an enrolment token for", "<img src=x"])?;
    for name in ["<b>x</b>", "a\u{202e}b", "x onmouseover=1"] {
        let path = format!(
            "/labels/{}",
            name.replace(' ', "%20")
                .replace('<', "%3C")
                .replace('>', "%3E")
                .replace('/', "%2F")
                .replace('\u{202e}', "%E2%80%AE")
        );
        let refused = scene.call(
            Some(scene.admin()),
            "PUT",
            &path,
            Some(&serde_json::json!({"owner": null})),
        )?;
        check!((400..500).contains(&refused.status), "a label {name:?}: {refused}");
    }
    let own = "return window.owned === undefined && window.sameDocument === true && !document.querySelector('#rows img, #rows script')";
    check!(
        browser.run(own)? == true,
        "what somebody wrote is markup, or the page was loaded anew"
    );
    browser.screenshot("page-changes")?;
    accessible(browser, "changes")?;
    // By keyboard alone: the filter.
    browser.fill("#c-label", "coder\u{e007}")?;
    browser.wait_text("#rows", &["the owner of coder was changed"])?;
    check!(
        !browser.text("#rows")?.contains("the account eve+1"),
        "the filter shows what it should not"
    );
    browser.open(&format!(
        "{base}/changes?label=%3Cscript%3Ewindow.owned%3D1%3C%2Fscript%3E&user=%22%3E%3Cimg%20src%3Dx%3E"
    ))?;
    browser.wait_text("#rows", &["No change"])?;
    check!(
        browser.run("return window.owned === undefined && !document.querySelector('main img, main script')")? == true,
        "a filter is markup"
    );

    // An alarm while the page is looked at.
    browser.open(&format!("{base}/alarms"))?;
    browser.wait_text("#rows", &["No alarm"])?;
    browser.wait("#live[data-state=live]")?;
    browser.run("window.sameDocument = true")?;
    // The workload chooses what it is called.
    scene.vm.script("mkdir -p /root/odd && cp /bin/cat '/root/odd/<b>x'")?;
    let running = scene.start_labelled(CODER, &["/root/odd/<b>x", "/root/.config/guard/credentials.json"])?;
    let request = scene.held(CODER, "credentials.json")?;
    scene.approve(&request)?;
    check!(end(running)?.status != 0, "a labelled process read the sign-in");
    let text = browser.wait_text("#rows", &["theft", "sign-in", CODER, "<b>x"])?;
    check!(text.contains("refused"), "{text}");
    check!(
        browser.run("return window.sameDocument === true && !document.querySelector('#rows b')")? == true,
        "a name is markup, or the page was loaded anew"
    );
    browser.screenshot("page-alarms")?;
    accessible(browser, "alarms")?;
    // On every other page it is counted.
    browser.open(&format!("{base}/"))?;
    browser.wait_text("nav a[href='/alarms'] .count", &["1"])?;
    accessible(browser, "queue")?;
    desk.quiet()
}
