//! Identity providers as they are written in `console.toml`: whose word counts, and which of their groups makes whom what.
//!
//! Owns parsing and its errors. It reads no file but names them; a client secret never stands in the configuration.

use std::collections::BTreeMap;
use std::path::PathBuf;

use guard_proto::rest::Role;
use serde::Deserialize;
use url::Url;

use super::{ConfigError, entries};

/// At most so many; each is a button on the sign-in page.
const MAX_PROVIDERS: usize = 8;
const GROUP_BYTES: usize = 256;

/// As written.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct RawOidc {
    /// Stands in the names of its accounts: `okta:ann`.
    pub name: String,
    /// What the button says after "Sign in with"; the name when left out.
    #[serde(default)]
    pub label: String,
    pub issuer: String,
    pub client_id: String,
    /// Left out for a public client.
    pub client_secret_file: Option<PathBuf>,
    /// A name, or a JSON pointer (`/realm_access/roles`).
    pub groups_claim: Option<String>,
    /// Besides `openid`.
    pub scopes: Option<Vec<String>>,
    /// Certificates (PEM) that its server is trusted by, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Roles by group of the provider.
    #[serde(default)]
    pub roles: BTreeMap<String, Vec<Role>>,
    /// Approver groups by group of the provider.
    #[serde(default)]
    pub approver_groups: BTreeMap<String, Vec<String>>,
}

/// As used.
#[derive(Debug, Clone)]
pub struct OidcConfig {
    pub name: String,
    pub label: String,
    /// Exactly as written: tokens repeat it byte by byte.
    pub issuer: String,
    pub client_id: String,
    pub client_secret_file: Option<PathBuf>,
    pub groups_claim: String,
    pub scopes: Vec<String>,
    pub ca_file: Option<PathBuf>,
    pub roles: BTreeMap<String, Vec<Role>>,
    pub approver_groups: BTreeMap<String, Vec<String>>,
}

/// All of them, or what is wrong with one.
pub(super) fn resolve(raw: Vec<RawOidc>) -> Result<Vec<OidcConfig>, ConfigError> {
    // Two ways to become the same person would be two sets of groups for one account.
    let same_issuer = |other: &OidcConfig, one: &OidcConfig| {
        (other.issuer == one.issuer).then(|| format!("another one has the issuer {} too", one.issuer))
    };
    entries(raw, MAX_PROVIDERS, |one| &one.name, RawOidc::resolve, same_issuer)
        .map_err(|(name, why)| ConfigError::Oidc { name, why })
}

impl RawOidc {
    fn resolve(self) -> Result<OidcConfig, String> {
        if matches!(self.name.as_str(), "local" | "service") {
            return Err("name: this one stands for accounts of the console itself".to_owned());
        }
        let url = Url::parse(&self.issuer).map_err(|e| format!("issuer: {e}"))?;
        if url.scheme() != "https" || url.query().is_some() || url.fragment().is_some() || url.host().is_none() {
            return Err("issuer: an https address without ? and #, exactly as the provider writes it".to_owned());
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("issuer: an address without a user name".to_owned());
        }
        if self.client_id.is_empty() {
            return Err("client-id: is empty".to_owned());
        }
        let groups_claim = self.groups_claim.unwrap_or_else(|| "groups".to_owned());
        if groups_claim.is_empty() {
            return Err("groups-claim: is empty".to_owned());
        }
        if self.roles.is_empty() {
            return Err("roles: without any nobody may sign in; write for example roles = { \"guard-approvers\" = [\"approver\"] }".to_owned());
        }
        for (group, roles) in &self.roles {
            if group.is_empty() || group.len() > GROUP_BYTES || roles.is_empty() {
                return Err(format!("roles: {group:?} has no name, or gives nothing"));
            }
        }
        for (group, names) in &self.approver_groups {
            if group.is_empty() || group.len() > GROUP_BYTES || names.is_empty() {
                return Err(format!("approver-groups: {group:?} has no name, or gives nothing"));
            }
            for name in names {
                crate::app::names::group(name).map_err(|e| format!("approver-groups: {e}"))?;
            }
        }
        let mut scopes = self
            .scopes
            .unwrap_or_else(|| ["profile", "email"].map(str::to_owned).to_vec());
        scopes.retain(|scope| scope != "openid");
        let scope_byte = |b: u8| b.is_ascii_graphic() && b != b'"' && b != b'\\';
        if scopes
            .iter()
            .any(|scope| scope.is_empty() || !scope.bytes().all(scope_byte))
        {
            return Err("scopes: a list of words, for example [\"profile\", \"groups\"]".to_owned());
        }
        Ok(OidcConfig {
            label: if self.label.trim().is_empty() {
                self.name.clone()
            } else {
                self.label.trim().to_owned()
            },
            name: self.name,
            issuer: self.issuer,
            client_id: self.client_id,
            client_secret_file: self.client_secret_file,
            groups_claim,
            scopes,
            ca_file: self.ca_file,
            roles: self.roles,
            approver_groups: self.approver_groups,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
[[oidc]]
name = "okta"
label = "Okta"
issuer = "https://example.okta.com"
client-id = "0oa1"
client-secret-file = "/etc/guard/okta.secret"
scopes = ["openid", "profile", "groups"]
roles = { "guard-approvers" = ["approver"], "guard-admins" = ["administrator", "operator"] }
approver-groups = { "sec-ops" = ["secops"] }
"#;

    fn parse(text: &str) -> Result<Vec<OidcConfig>, String> {
        let raw = super::super::parse(text).map_err(|e| e.to_string())?;
        raw.resolve(None).map(|config| config.oidc).map_err(|e| e.to_string())
    }

    #[test]
    fn a_provider() {
        let all = parse(GOOD).unwrap();
        let [okta] = all.as_slice() else { panic!("{all:?}") };
        assert_eq!((okta.label.as_str(), okta.groups_claim.as_str()), ("Okta", "groups"));
        assert_eq!(okta.scopes, ["profile", "groups"]);
        assert_eq!(okta.roles["guard-admins"], [Role::Administrator, Role::Operator]);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (from, to, words) in [
            ("\"okta\"", "\"Okta\"", "name: 1 to"),
            ("\"okta\"", "\"local\"", "of the console itself"),
            (
                "https://example.okta.com",
                "http://example.okta.com",
                "an https address",
            ),
            (
                "https://example.okta.com",
                "https://a@example.okta.com",
                "without a user name",
            ),
            (
                "https://example.okta.com",
                "https://example.okta.com/?x",
                "without ? and #",
            ),
            ("\"0oa1\"", "\"\"", "client-id"),
            ("[\"approver\"]", "[\"king\"]", "unknown variant"),
            ("[\"approver\"]", "[]", "gives nothing"),
            ("\"secops\"", "\"sec ops\"", "is not a group name"),
            ("client-id", "client_id", "unknown field"),
        ] {
            let error = parse(&GOOD.replace(from, to)).unwrap_err();
            assert!(error.contains(words), "{to}: {error}");
        }
        let error = parse(&format!("{GOOD}{GOOD}")).unwrap_err();
        assert!(error.contains("two of this name"), "{error}");
        let error = parse(&format!("{GOOD}{}", GOOD.replace("\"okta\"", "\"other\""))).unwrap_err();
        assert!(error.contains("the issuer https://example.okta.com too"), "{error}");
    }
}
