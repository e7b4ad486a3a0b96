//! A headless Chromium of this test alone.
//! Given the machine's chromium and chromedriver. Never leaves loopback.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use fantoccini::wd::{Capabilities, WebDriverCompatibleCommand};
use fantoccini::{Client, ClientBuilder, Locator};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// How long the page may take for anything. The console's CPU is emulated.
const PATIENCE: Duration = Duration::from_secs(60);

const ARGUMENTS: [&str; 11] = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--window-size=1280,1000",
    "--lang=en",
];

/// A browser and its driver; both end with it.
#[derive(Debug)]
pub(crate) struct Browser {
    runtime: Runtime,
    client: Client,
    driver: Child,
}

/// Reads the browser's console; chromedriver's own command.
#[derive(Debug)]
struct ReadLog;

impl WebDriverCompatibleCommand for ReadLog {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        base.join(&format!("session/{}/se/log", session.unwrap_or_default()))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::POST, Some(json!({"type": "browser"}).to_string()))
    }
}

/// The name that assistive technology reads for an element (WebDriver's Get Computed Label).
#[derive(Debug)]
struct ReadName(String);

impl WebDriverCompatibleCommand for ReadName {
    fn endpoint(&self, base: &url::Url, session: Option<&str>) -> Result<url::Url, url::ParseError> {
        let session = session.unwrap_or_default();
        base.join(&format!("session/{session}/element/{}/computedlabel", self.0))
    }

    fn method_and_body(&self, _: &url::Url) -> (http::Method, Option<String>) {
        (http::Method::GET, None)
    }
}

/// What a keyboard can reach, and what a mouse can click.
const USABLE: &str =
    "a[href], button, input:not([type=hidden]), select, textarea, summary, [tabindex='0'], [onclick], [role=button]";

impl Browser {
    pub(crate) fn start() -> Result<Self> {
        let mut driver = Command::new("chromedriver")
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start chromedriver (Debian package chromium-driver)")?;
        let output = driver.stdout.take().context("the output is piped")?;
        let port = port(BufReader::new(output)).inspect_err(|_| end(&mut driver))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let options = json!({"args": ARGUMENTS, "binary": "/usr/bin/chromium"});
        let mut capabilities = Capabilities::new();
        capabilities.insert("browserName".into(), json!("chrome"));
        // The console's certificate is of its own CA.
        capabilities.insert("acceptInsecureCerts".into(), json!(true));
        capabilities.insert("goog:chromeOptions".into(), options);
        capabilities.insert("goog:loggingPrefs".into(), json!({"browser": "ALL"}));
        let connector = hyper_util::client::legacy::connect::HttpConnector::new();
        let mut builder = ClientBuilder::new(connector);
        builder.capabilities(capabilities);
        let connected = runtime.block_on(builder.connect(&format!("http://127.0.0.1:{port}")));
        match connected {
            Ok(client) => Ok(Self {
                runtime,
                client,
                driver,
            }),
            Err(error) => {
                end(&mut driver);
                Err(error).context("chromium did not start")
            }
        }
    }

    pub(crate) fn open(&self, url: &str) -> Result<()> {
        self.runtime
            .block_on(self.client.goto(url))
            .with_context(|| format!("cannot open {url}"))
    }

    /// Waits for an element.
    pub(crate) fn wait(&self, css: &str) -> Result<()> {
        let wait = self.client.wait().at_most(PATIENCE);
        match self.runtime.block_on(wait.for_element(Locator::Css(css))) {
            Ok(_) => Ok(()),
            Err(error) => bail!(
                "no {css:?} in the page ({error}); it says:\n{}",
                self.text("body").unwrap_or_default()
            ),
        }
    }

    pub(crate) fn has(&self, css: &str) -> Result<bool> {
        Ok(!self
            .runtime
            .block_on(self.client.find_all(Locator::Css(css)))?
            .is_empty())
    }

    /// Waits for an element and clicks it.
    pub(crate) fn click(&self, css: &str) -> Result<()> {
        self.wait(css)?;
        self.runtime
            .block_on(async { self.client.find(Locator::Css(css)).await?.click().await })
            .with_context(|| format!("cannot click {css}"))
    }

    /// Waits for a field and types into it.
    pub(crate) fn fill(&self, css: &str, text: &str) -> Result<()> {
        self.wait(css)?;
        self.runtime
            .block_on(async { self.client.find(Locator::Css(css)).await?.send_keys(text).await })
            .with_context(|| format!("cannot type into {css}"))
    }

    /// What a person reads there.
    pub(crate) fn text(&self, css: &str) -> Result<String> {
        self.runtime
            .block_on(async { self.client.find(Locator::Css(css)).await?.text().await })
            .with_context(|| format!("cannot read {css}"))
    }

    /// Waits until the text of an element contains each of `words`.
    pub(crate) fn wait_text(&self, css: &str, words: &[&str]) -> Result<String> {
        let deadline = std::time::Instant::now() + PATIENCE;
        loop {
            // The element may be replaced while it is read.
            let text = self.text(css).unwrap_or_default();
            let lower = text.to_lowercase();
            if words.iter().all(|word| lower.contains(&word.to_lowercase())) {
                return Ok(text);
            }
            if std::time::Instant::now() >= deadline {
                bail!("{css} does not say {words:?} but {text:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What can be used on this page and has no name that can be read out, as HTML.
    pub(crate) fn nameless(&self) -> Result<Vec<String>> {
        self.runtime.block_on(async {
            let mut nameless = Vec::new();
            for element in self.client.find_all(Locator::Css(USABLE)).await? {
                let name = self
                    .client
                    .issue_cmd(ReadName(element.element_id().to_string()))
                    .await?;
                if name.as_str().is_none_or(|name| name.trim().is_empty()) {
                    nameless.push(element.html(false).await?);
                }
            }
            Ok(nameless)
        })
    }

    /// What can be used on this page but is never reached by the key Tab from its beginning, as HTML.
    pub(crate) fn unreached_by_tab(&self) -> Result<Vec<String>> {
        let marked = self.run(&format!(
            "document.activeElement.blur(); window.scrollTo(0, 0); let n = 0;
             for (const it of document.querySelectorAll(`{USABLE}`)) if (it.checkVisibility() && !it.disabled) it.dataset.tab = n++;
             return n;"
        ))?;
        let count = marked.as_u64().context("no count")?;
        let mut reached = std::collections::BTreeSet::new();
        for _ in 0..=count + 2 {
            self.runtime
                .block_on(async { self.client.active_element().await?.send_keys("\u{e004}").await })?;
            if let Some(tab) = self.run("return document.activeElement.dataset.tab ?? null")?.as_str() {
                reached.insert(tab.to_owned());
            }
        }
        let mut missing = Vec::new();
        for tab in (0..count).map(|n| n.to_string()).filter(|n| !reached.contains(n)) {
            let html = self.run(&format!(
                "return document.querySelector('[data-tab=\"{tab}\"]')?.outerHTML ?? ''"
            ))?;
            missing.push(html.as_str().unwrap_or_default().to_owned());
        }
        Ok(missing)
    }

    pub(crate) fn run(&self, script: &str) -> Result<Value> {
        Ok(self.runtime.block_on(self.client.execute(script, Vec::new()))?)
    }

    /// Saves what the page looks like into target/screenshots.
    pub(crate) fn screenshot(&self, name: &str) -> Result<()> {
        let dir = xtask::paths::target().join("screenshots");
        std::fs::create_dir_all(&dir)?;
        let picture = self.runtime.block_on(self.client.screenshot())?;
        std::fs::write(dir.join(format!("{name}.png")), picture).context("cannot write the screenshot")
    }

    /// Errors and violations that the browser wrote down since the last call.
    pub(crate) fn complaints(&self) -> Result<Vec<String>> {
        let log = self.runtime.block_on(self.client.issue_cmd(ReadLog))?;
        let entries = log.as_array().cloned().unwrap_or_default();
        let bad = |entry: &&Value| entry["level"] == "SEVERE" || entry["source"] == "security";
        Ok(entries
            .iter()
            .filter(bad)
            .map(|entry| entry["message"].as_str().unwrap_or_default().to_owned())
            .collect())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Ends chromium; the driver itself is ended either way.
        let _ = self.runtime.block_on(self.client.clone().close());
        end(&mut self.driver);
    }
}

fn end(driver: &mut Child) {
    // It may be gone already.
    let _ = driver.kill();
    let _ = driver.wait();
}

/// `ChromeDriver was started successfully on port 12345.`
fn port(output: impl BufRead + Send + 'static) -> Result<u16> {
    let mut lines = output.lines();
    let mut seen = String::new();
    while let Some(Ok(line)) = lines.next() {
        if let Some((_, port)) = line.split_once("started successfully on port ") {
            let port = port.trim_end_matches('.').parse()?;
            // Nobody reads the rest, but a full pipe would stop the driver.
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(port);
        }
        seen.push_str(&line);
    }
    bail!("chromedriver did not start: {seen}")
}
