//! Outputs for other systems as they are written in `console.toml`: where events of the log go.
//!
//! Owns parsing and its errors. It reads no file but names them; a secret never stands in the configuration.

use std::path::PathBuf;

use serde::Deserialize;
use url::{Host, Url};

use super::{ConfigError, entries};

const MAX_OUTPUTS: usize = 16;

/// As written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawSiem {
    /// Names how far it has come: another name begins anew.
    pub name: String,
    pub kind: SiemKind,
    /// Of a file.
    pub path: Option<PathBuf>,
    /// Of the others.
    pub url: Option<String>,
    /// One line, `Name: value`, sent with every request.
    pub header_file: Option<PathBuf>,
    /// The only authorities (PEM) that may vouch for the other side; without it, those of the system.
    pub ca_file: Option<PathBuf>,
    /// Where an output begins that is new.
    #[serde(default)]
    pub from: SiemFrom,
    /// Events that the other side refused for good; `siem-NAME.refused.ndjson` in the data directory when left out.
    pub refused_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiemKind {
    /// One event a line.
    File,
    /// The same, in batches by POST.
    Http,
    /// OpenTelemetry logs over HTTP, in JSON.
    Otlp,
}

impl SiemKind {
    /// As in the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Http => "http",
            Self::Otlp => "otlp",
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiemFrom {
    #[default]
    Beginning,
    Now,
}

/// As used.
#[derive(Debug, Clone)]
pub struct SiemConfig {
    pub name: String,
    pub kind: SiemKind,
    pub to: SiemTarget,
    pub from: SiemFrom,
    pub refused_file: Option<PathBuf>,
}

#[derive(Debug, Clone)]
pub enum SiemTarget {
    File(PathBuf),
    Http(SiemEndpoint),
}

#[derive(Debug, Clone)]
pub struct SiemEndpoint {
    pub url: Url,
    pub header_file: Option<PathBuf>,
    pub ca_file: Option<PathBuf>,
}

/// All of them, or what is wrong with one.
pub(super) fn resolve(raw: Vec<RawSiem>) -> Result<Vec<SiemConfig>, ConfigError> {
    let same_file = |other: &SiemConfig, one: &SiemConfig| match (&other.to, &one.to) {
        (SiemTarget::File(other), SiemTarget::File(path)) if other == path => {
            Some(format!("another one writes {} too", path.display()))
        }
        _ => None,
    };
    entries(raw, MAX_OUTPUTS, |one| &one.name, RawSiem::resolve, same_file)
        .map_err(|(name, why)| ConfigError::Siem { name, why })
}

impl RawSiem {
    fn resolve(self) -> Result<SiemConfig, String> {
        let to = match (self.kind, self.path, self.url) {
            (SiemKind::File, Some(path), None) => {
                if self.header_file.is_some() || self.ca_file.is_some() {
                    return Err("header-file, ca-file: not of a file".to_owned());
                }
                if !path.is_absolute() {
                    return Err("path: an absolute path".to_owned());
                }
                SiemTarget::File(path)
            }
            (SiemKind::File, ..) => return Err("a file has a path and no url".to_owned()),
            (_, None, Some(url)) => SiemTarget::Http(SiemEndpoint {
                url: endpoint(&url)?,
                header_file: self.header_file,
                ca_file: self.ca_file,
            }),
            _ => return Err("it has a url and no path".to_owned()),
        };
        Ok(SiemConfig {
            name: self.name,
            kind: self.kind,
            to,
            from: self.from,
            refused_file: self.refused_file,
        })
    }
}

/// HTTPS; on this machine alone also without TLS, for a collector beside the console.
fn endpoint(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|e| format!("url: {e}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("url: without a user name; a secret stands in header-file".to_owned());
    }
    let here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.scheme() {
        "https" => Ok(url),
        "http" if here => Ok(url),
        _ => Err("url: an https address".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(text: &str) -> Result<Vec<SiemConfig>, String> {
        let raw = super::super::parse(text).map_err(|e| e.to_string())?;
        resolve(raw.siem).map_err(|e| e.to_string())
    }

    #[test]
    fn outputs_are_checked() {
        let good = "[[siem]]\nname = \"splunk\"\nkind = \"http\"\nurl = \"https://siem.example.org/x\"\nheader-file = \"/etc/guard/h\"\n";
        let all = one(good).unwrap();
        assert!(matches!(&all[0].to, SiemTarget::Http(to) if to.url.as_str() == "https://siem.example.org/x"));
        assert!(one(&good.replace("https://siem.example.org", "http://127.0.0.1:4318")).is_ok());
        for (from, to, word) in [
            (
                "https://siem.example.org",
                "http://siem.example.org",
                "an https address",
            ),
            ("https://siem", "https://me:secret@siem", "without a user name"),
            ("splunk", "Splunk", "a-z 0-9"),
            ("\"http\"", "\"kafka\"", "kafka"),
            ("\"http\"", "\"file\"", "no url"),
            ("url = ", "path = \"/x\"\nurl = ", "no path"),
            ("header-file", "header", "unknown field"),
        ] {
            let why = one(&good.replace(from, to)).unwrap_err();
            assert!(why.contains(word), "{to}: {why}");
        }
        assert!(one(&good.repeat(2)).unwrap_err().contains("two of this name"));
        let file = "[[siem]]\nname = \"a\"\nkind = \"file\"\npath = \"/var/log/guard.ndjson\"\n";
        assert!(one(file).is_ok());
        let twice = format!("{file}{}", file.replace("\"a\"", "\"b\""));
        assert!(one(&twice).unwrap_err().contains("too"));
    }
}
