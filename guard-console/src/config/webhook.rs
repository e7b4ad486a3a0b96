//! Webhooks as they are written in `console.toml`: who is told of which requests.
//!
//! Owns parsing and its errors. It reads no file but names them; a secret never stands in the configuration.

use std::path::PathBuf;

use serde::Deserialize;
use url::Url;

use super::{ConfigError, entries};
use crate::channel::{Event, check_url};

const MAX_WEBHOOKS: usize = 32;

/// As written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawWebhook {
    /// Names it in the log, the API and `guard status`.
    pub name: String,
    pub url: String,
    pub secret_file: PathBuf,
    /// All, when it is left out.
    #[serde(default)]
    pub events: Vec<Event>,
    /// Requests of these labels; of all, when it is left out.
    #[serde(default)]
    pub labels: Vec<String>,
    /// Whether it may be on this machine or in a private network.
    #[serde(default)]
    pub allow_private: bool,
    /// Certificates (PEM) that its server is trusted by, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

/// As used.
#[derive(Debug, Clone)]
pub struct WebhookConfig {
    pub name: String,
    pub url: Url,
    pub secret_file: PathBuf,
    pub events: Vec<Event>,
    pub labels: Vec<String>,
    pub allow_private: bool,
    pub ca_file: Option<PathBuf>,
}

/// All of them, or what is wrong with one.
pub(super) fn resolve(raw: Vec<RawWebhook>) -> Result<Vec<WebhookConfig>, ConfigError> {
    entries(raw, MAX_WEBHOOKS, |one| &one.name, RawWebhook::resolve, |_, _| None)
        .map_err(|(name, why)| ConfigError::Webhook { name, why })
}

impl RawWebhook {
    fn resolve(self) -> Result<WebhookConfig, String> {
        let url = Url::parse(&self.url).map_err(|e| format!("url: {e}"))?;
        check_url(&url, self.allow_private).map_err(|why| format!("url: {why}"))?;
        for label in &self.labels {
            crate::app::names::label(label).map_err(|e| format!("labels: {e}"))?;
        }
        Ok(WebhookConfig {
            name: self.name,
            url,
            secret_file: self.secret_file,
            events: self.events,
            labels: self.labels,
            allow_private: self.allow_private,
            ca_file: self.ca_file,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[webhook]]
name = "pager"
url = "https://hooks.example.org/guard"
secret-file = "/etc/guard/pager.secret"
events = ["asked", "ended"]
labels = ["coder"]
"#;

    fn parse(text: &str) -> Result<Vec<WebhookConfig>, String> {
        let raw = super::super::parse(text).map_err(|e| e.to_string())?;
        raw.resolve(None)
            .map(|config| config.webhooks)
            .map_err(|e| e.to_string())
    }

    #[test]
    fn a_webhook() {
        let all = parse(GOOD).unwrap();
        let [pager] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!(pager.events, [Event::Asked, Event::Ended]);
        assert!(!pager.allow_private);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, words) in [
            ("\"pager\"", "\"Pager\"", "name: 1 to"),
            (
                "https://hooks.example.org",
                "http://hooks.example.org",
                "an https address",
            ),
            ("https://hooks.example.org", "https://10.0.0.1", "allow-private"),
            ("https://hooks.example.org", "hooks", "url: "),
            ("\"asked\"", "\"answered\"", "unknown variant"),
            ("\"coder\"", "\"Co der\"", "is not a label"),
            ("secret-file", "secret", "unknown field"),
        ] {
            let error = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(words), "{to}: {error}");
        }
        let error = parse(&format!("{GOOD}{GOOD}")).unwrap_err();
        assert!(error.contains("two of this name"), "{error}");
    }
}
