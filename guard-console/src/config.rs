//! Settings: what was written in `console.toml` and on the command line becomes what the console uses.
//!
//! Owns parsing, defaults and their errors, with file, line and remedy. Unknown keys are errors.

mod oidc;
mod siem;
mod webhook;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

use guard_evidence::cosign::{KeyKind, VerifierKey};
use serde::Deserialize;

use crate::auth::rate::Limits;
pub use oidc::{OidcConfig, RawOidc};
pub use siem::{RawSiem, SiemConfig, SiemEndpoint, SiemFrom, SiemKind, SiemTarget};
pub use webhook::{RawWebhook, WebhookConfig};

pub const DEFAULT_DATA_DIR: &str = "/var/lib/guard-console";
const DEFAULT_PORT: u16 = 8443;
const DEFAULT_HOST_PORT: u16 = 8444;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {why}", path.display())]
    Read { path: PathBuf, why: std::io::Error },
    #[error("{}: {why}", path.display())]
    Parse { path: PathBuf, why: toml::de::Error },
    #[error("{0:?} is not a host name or address; write it without port, for example console.example.org")]
    Name(String),
    #[error("{0:?} is not HOST:PORT, for example console.example.org:8444")]
    Advertise(String),
    #[error("log.witness: {0:?} is not an address such as https://witness.example.org:8450")]
    WitnessUrl(String),
    #[error("log.witness: {0} is the key of a log; a witness's own is what `guard witness serve` prints")]
    WitnessKey(String),
    #[error("log.witness: the key of {0} stands there twice; a witness counts once")]
    WitnessTwice(String),
    #[error("log.quorum: {quorum} of {witnesses} witnesses can never sign")]
    Quorum { quorum: usize, witnesses: usize },
    #[error("identity provider {name:?}: {why}")]
    Oidc { name: String, why: String },
    #[error("webhook {name:?}: {why}")]
    Webhook { name: String, why: String },
    #[error("siem output {name:?}: {why}")]
    Siem { name: String, why: String },
}

/// As written; every key is optional.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawConfig {
    pub data_dir: Option<PathBuf>,
    /// Web and REST.
    pub listen: Option<SocketAddr>,
    /// The host API.
    pub listen_hosts: Option<SocketAddr>,
    /// Host names and addresses by which people and hosts reach this console.
    #[serde(default)]
    pub names: Vec<String>,
    /// HOST:PORT of the host API as enrolment tokens say it.
    pub advertise: Option<String>,
    #[serde(default)]
    pub log: RawLog,
    /// Identity providers.
    #[serde(default)]
    pub oidc: Vec<RawOidc>,
    /// Who is told of requests.
    #[serde(default)]
    pub webhook: Vec<RawWebhook>,
    /// Where events of the log go.
    #[serde(default)]
    pub siem: Vec<RawSiem>,
    #[serde(default)]
    pub limits: RawLimits,
}

/// As written: calls in a minute.
#[derive(Debug, Default, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawLimits {
    pub account: Option<NonZeroU32>,
    pub address: Option<NonZeroU32>,
    pub sign_in: Option<NonZeroU32>,
}

impl RawLimits {
    fn resolve(self) -> Limits {
        let or = |given: Option<NonZeroU32>, default| given.map_or(default, NonZeroU32::get);
        let default = Limits::default();
        Limits {
            account: or(self.account, default.account),
            address: or(self.address, default.address),
            sign_in: or(self.sign_in, default.sign_in),
        }
    }

    fn or(self, other: Self) -> Self {
        Self {
            account: self.account.or(other.account),
            address: self.address.or(other.address),
            sign_in: self.sign_in.or(other.sign_in),
        }
    }
}

/// As written: who else has to see the log.
#[derive(Debug, Default, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawLog {
    #[serde(default)]
    pub witness: Vec<WitnessConfig>,
    /// How many of them have to sign a head; all, when it is not said.
    pub quorum: Option<usize>,
}

/// One witness of the log.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WitnessConfig {
    /// As `guard witness serve` prints it.
    pub key: VerifierKey,
    /// Where its `add-checkpoint` is.
    pub url: String,
    /// The only CA that may vouch for it; without one, those of the system.
    pub ca: Option<PathBuf>,
}

/// As used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogConfig {
    pub witnesses: Vec<WitnessConfig>,
    pub quorum: usize,
}

/// As used.
#[derive(Debug, Clone)]
pub struct Config {
    pub data_dir: PathBuf,
    pub listen: SocketAddr,
    pub listen_hosts: SocketAddr,
    /// Of the certificate; the first one is that of links.
    pub names: Vec<String>,
    /// `None`: the first name and the port of `listen_hosts`.
    pub advertise: Option<String>,
    pub log: LogConfig,
    pub oidc: Vec<OidcConfig>,
    pub webhooks: Vec<WebhookConfig>,
    pub siem: Vec<SiemConfig>,
    pub limits: Limits,
}

/// Reads a configuration file.
///
/// # Errors
/// Unreadable file, unknown key, wrong type: with file and line.
pub fn read(path: &Path) -> Result<RawConfig, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|why| ConfigError::Read {
        path: path.to_owned(),
        why,
    })?;
    parse(&text).map_err(|why| ConfigError::Parse {
        path: path.to_owned(),
        why,
    })
}

/// Pure; for tests and fuzzing.
///
/// # Errors
/// Whatever is not a configuration.
pub fn parse(text: &str) -> Result<RawConfig, toml::de::Error> {
    toml::from_str(text)
}

impl RawConfig {
    /// What `over` says wins; names add up, `over`'s first.
    #[must_use]
    pub fn overridden_by(self, over: Self) -> Self {
        Self {
            data_dir: over.data_dir.or(self.data_dir),
            listen: over.listen.or(self.listen),
            listen_hosts: over.listen_hosts.or(self.listen_hosts),
            names: over.names.into_iter().chain(self.names).collect(),
            advertise: over.advertise.or(self.advertise),
            log: RawLog {
                witness: over.log.witness.into_iter().chain(self.log.witness).collect(),
                quorum: over.log.quorum.or(self.log.quorum),
            },
            oidc: if over.oidc.is_empty() { self.oidc } else { over.oidc },
            webhook: if over.webhook.is_empty() {
                self.webhook
            } else {
                over.webhook
            },
            siem: if over.siem.is_empty() { self.siem } else { over.siem },
            limits: over.limits.or(self.limits),
        }
    }

    /// # Errors
    /// A name or address that is none.
    pub fn resolve(self, hostname: Option<String>) -> Result<Config, ConfigError> {
        let mut names: Vec<String> = Vec::new();
        let always = ["localhost".to_owned(), "127.0.0.1".to_owned(), "::1".to_owned()];
        // This machine's own name may be anything, so it is left out when it cannot stand in a certificate.
        let hostname = hostname.map(|h| h.to_ascii_lowercase()).filter(|h| is_name(h));
        for name in self.names {
            let name = name.to_ascii_lowercase();
            if !is_name(&name) {
                return Err(ConfigError::Name(name));
            }
            if !names.contains(&name) {
                names.push(name);
            }
        }
        for name in hostname.into_iter().chain(always) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        if let Some(advertise) = &self.advertise {
            let (host, port) = advertise
                .rsplit_once(':')
                .ok_or_else(|| ConfigError::Advertise(advertise.clone()))?;
            let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
            if !is_name(host) || port.parse::<u16>().is_err() {
                return Err(ConfigError::Advertise(advertise.clone()));
            }
            let host = host.to_ascii_lowercase();
            if !names.contains(&host) {
                names.push(host);
            }
        }
        let any = |port| SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port);
        Ok(Config {
            data_dir: self.data_dir.unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            listen: self.listen.unwrap_or(any(DEFAULT_PORT)),
            listen_hosts: self.listen_hosts.unwrap_or(any(DEFAULT_HOST_PORT)),
            names,
            advertise: self.advertise,
            log: self.log.resolve()?,
            oidc: oidc::resolve(self.oidc)?,
            webhooks: webhook::resolve(self.webhook)?,
            siem: siem::resolve(self.siem)?,
            limits: self.limits.resolve(),
        })
    }
}

/// Longest name of an entry, in bytes.
const ENTRY_NAME_BYTES: usize = 32;

/// Every entry of a list whose entries have names, no two the same; or the name of one and what is wrong with it. `clash` says what
/// two of them must not have in common.
fn entries<R, C>(
    raw: Vec<R>,
    most: usize,
    name: impl Fn(&R) -> &str,
    resolve: impl Fn(R) -> Result<C, String>,
    clash: impl Fn(&C, &C) -> Option<String>,
) -> Result<Vec<C>, (String, String)> {
    if raw.len() > most {
        let why = format!("there are {}, at most {most} are possible", raw.len());
        return Err((String::new(), why));
    }
    let (mut names, mut all): (Vec<String>, Vec<C>) = (Vec::new(), Vec::new());
    for one in raw {
        let name = name(&one).to_owned();
        let failed = |why: String| (name.clone(), why);
        let name_byte = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if !(1..=ENTRY_NAME_BYTES).contains(&name.len()) || !name.bytes().all(name_byte) {
            return Err(failed(format!("name: 1 to {ENTRY_NAME_BYTES} characters of a-z 0-9 -")));
        }
        let config = resolve(one).map_err(failed)?;
        if names.contains(&name) {
            return Err(failed("there are two of this name".to_owned()));
        }
        if let Some(why) = all.iter().find_map(|other| clash(other, &config)) {
            return Err(failed(why));
        }
        names.push(name);
        all.push(config);
    }
    Ok(all)
}

impl RawLog {
    fn resolve(self) -> Result<LogConfig, ConfigError> {
        let mut keys = BTreeSet::new();
        for witness in &self.witness {
            let url = witness.url.as_str();
            if !(url.starts_with("https://") || url.starts_with("http://")) {
                return Err(ConfigError::WitnessUrl(url.to_owned()));
            }
            if witness.key.kind != KeyKind::Witness {
                return Err(ConfigError::WitnessKey(witness.key.to_string()));
            }
            if !keys.insert(witness.key.key.bytes()) {
                return Err(ConfigError::WitnessTwice(witness.key.name.clone()));
            }
        }
        let quorum = self.quorum.unwrap_or(self.witness.len());
        if quorum > self.witness.len() {
            return Err(ConfigError::Quorum {
                quorum,
                witnesses: self.witness.len(),
            });
        }
        Ok(LogConfig {
            witnesses: self.witness,
            quorum,
        })
    }
}

fn is_name(name: &str) -> bool {
    if name.parse::<IpAddr>().is_ok() {
        return true;
    }
    name.len() <= 253
        && name.split('.').all(|part| {
            (1..=63).contains(&part.len())
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !part.starts_with('-')
                && !part.ends_with('-')
        })
        // `1.2.3` is neither a name nor an address.
        && !name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
}

impl Config {
    /// The first of its names.
    pub(crate) fn first_name(&self) -> &str {
        self.names.first().map_or("localhost", String::as_str)
    }

    /// `https://NAME:PORT`, as links say it.
    #[must_use]
    pub fn web_url(&self) -> String {
        match self.listen.port() {
            443 => format!("https://{}", bracketed(self.first_name())),
            port => format!("https://{}:{port}", bracketed(self.first_name())),
        }
    }

    /// HOST:PORT of the host API, as tokens say it.
    #[must_use]
    pub fn host_address(&self) -> String {
        self.advertise
            .clone()
            .unwrap_or_else(|| format!("{}:{}", bracketed(self.first_name()), self.listen_hosts.port()))
    }
}

fn bracketed(name: &str) -> String {
    if name.contains(':') {
        format!("[{name}]")
    } else {
        name.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict() {
        let error = parse("listen = \"0.0.0.0:1\"\nlisten_host = 3\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("line 2") && error.contains("listen_host"), "{error}");
        assert!(parse("listen = 8443").is_err());
        let raw = parse("names = [\"console.example.org\"]\nlisten = \"127.0.0.1:443\"").unwrap();
        let config = raw.resolve(Some("Build 7".to_owned())).unwrap();
        assert_eq!(config.names, ["console.example.org", "localhost", "127.0.0.1", "::1"]);
        assert_eq!(config.web_url(), "https://console.example.org");
        assert_eq!(config.host_address(), "console.example.org:8444");
    }

    #[test]
    fn the_command_line_wins() {
        let file = parse("listen = \"127.0.0.1:1\"\nnames = [\"a\"]").unwrap();
        let typed = RawConfig {
            names: vec!["::2".to_owned()],
            ..RawConfig::default()
        };
        let config = file.overridden_by(typed).resolve(None).unwrap();
        assert_eq!(config.listen.port(), 1);
        assert_eq!(config.host_address(), "[::2]:8444");
        for bad in ["a:1", "a b", "", "1.2.3", "-a"] {
            let typed = RawConfig {
                names: vec![bad.to_owned()],
                ..RawConfig::default()
            };
            assert!(typed.resolve(None).is_err(), "{bad}");
        }
        for bad in ["host", "host:port", ":1", "a b:1"] {
            let typed = RawConfig {
                advertise: Some(bad.to_owned()),
                ..RawConfig::default()
            };
            assert!(typed.resolve(None).is_err(), "{bad}");
        }
    }
}
