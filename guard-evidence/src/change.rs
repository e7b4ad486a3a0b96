//! Changes of who may decide: people, their roles and groups, identity providers, keys and sessions, labels and their
//! owners, tokens and hosts.
//!
//! Owns their shapes and words. It is given what the console changed, and by whom. It must never carry a password, a
//! token or anything else that opens something.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::grant::Grant;
use crate::record::{Header, PersonId};
use crate::text::visible_fold;

/// Longest name in a sentence, in characters.
const NAME: usize = 80;

/// One change. Signed by the console, in its own chain, written in the same transaction as the change itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangeRecord {
    pub header: Header,
    pub by: ChangedBy,
    pub change: Change,
    /// As whoever changed it wrote it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// Who changed it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ChangedBy {
    /// Somebody who was signed in.
    Person {
        who: PersonId,
        /// Display name at that time.
        name: String,
        roles: Vec<String>,
        /// `web` or `api`.
        channel: String,
        signed_in_at: String,
    },
    /// Whoever had the set-up link: the first administrator.
    SetupLink,
    /// A host, with a token that somebody made.
    Token {
        token: String,
        made_by: PersonId,
        /// Of who made it, when the subject is no name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
    },
    /// An identity provider, by what it says of somebody who signs in. Only of accounts that are its own.
    Provider { provider: String, issuer: String },
    /// Whoever writes the console's configuration file.
    Configuration,
    /// Nobody: it was so before changes were recorded. Only at the beginning of the console's chain.
    Found,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Change {
    SetUpFinished {
        user: UserFacts,
    },
    UserCreated {
        user: UserFacts,
    },
    /// Other roles or groups.
    UserChanged {
        before: UserFacts,
        after: UserFacts,
    },
    /// Signed out everywhere; approvals of requests that still waited no longer count.
    UserDisabled {
        user: UserFacts,
    },
    /// A key with which a program acts as a service account.
    KeyCreated {
        user: UserFacts,
        /// Names it, opens nothing.
        key: String,
        /// Some of the account's.
        roles: Vec<String>,
        expires_at: String,
    },
    KeyRevoked {
        user: UserFacts,
        key: String,
    },
    /// Somebody else than the person ended sessions of theirs.
    SessionsEnded {
        user: UserFacts,
        count: u64,
    },
    /// Somebody approved a request, and with it later ones.
    GrantMade {
        grant: Box<Grant>,
    },
    GrantRevoked {
        grant: Box<Grant>,
    },
    /// Whose word the console takes for who somebody is. `before` absent: for the first time; `after` absent: no more.
    Provider {
        provider: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<ProviderFacts>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<ProviderFacts>,
    },
    /// `before` absent: the console did not have it; `after` absent: deleted.
    Label {
        label: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<LabelFacts>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<LabelFacts>,
    },
    /// Lets one host join.
    TokenCreated {
        /// The beginning of the SHA-256 of its secret (hex): names it, opens nothing.
        token: String,
        description: String,
        expires_at: String,
    },
    HostJoined {
        host_id: String,
        name: String,
        /// Id of the key that signs its records.
        evidence_key: String,
    },
    HostRevoked {
        host_id: String,
        name: String,
    },
}

/// An account. Never its password.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserFacts {
    pub who: PersonId,
    /// Display name at that time.
    pub name: String,
    pub roles: Vec<String>,
    pub groups: Vec<String>,
    /// A program, not a person: its answers never count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub service: bool,
}

/// An identity provider as it is configured. Never its client secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProviderFacts {
    pub issuer: String,
    pub client_id: String,
    /// Where the groups stand in what it says of somebody.
    pub groups_claim: String,
    /// Roles by group of the provider.
    pub roles: BTreeMap<String, Vec<String>>,
    /// Approver groups by group of the provider.
    pub approver_groups: BTreeMap<String, Vec<String>>,
}

/// A label as the console knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelFacts {
    /// Who may not answer its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PersonId>,
    /// Of the owner, when the subject is no name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner_name: Option<String>,
    pub description: String,
}

/// The last change that the console knew when it signed a decision: it says who owned what and who was what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangesHead {
    pub epoch: u64,
    pub sequence: u64,
    /// SHA-256 of its envelope, hex.
    pub digest: String,
}

impl Change {
    /// Stable name, as in JSON.
    #[must_use]
    pub fn kind_name(&self) -> &'static str {
        match self {
            Self::SetUpFinished { .. } => "set_up_finished",
            Self::UserCreated { .. } => "user_created",
            Self::UserChanged { .. } => "user_changed",
            Self::UserDisabled { .. } => "user_disabled",
            Self::KeyCreated { .. } => "key_created",
            Self::KeyRevoked { .. } => "key_revoked",
            Self::SessionsEnded { .. } => "sessions_ended",
            Self::GrantMade { .. } => "grant_made",
            Self::GrantRevoked { .. } => "grant_revoked",
            Self::Provider { .. } => "provider",
            Self::Label { .. } => "label",
            Self::TokenCreated { .. } => "token_created",
            Self::HostJoined { .. } => "host_joined",
            Self::HostRevoked { .. } => "host_revoked",
        }
    }

    /// The account that changed.
    #[must_use]
    pub fn user(&self) -> Option<&UserFacts> {
        match self {
            Self::SetUpFinished { user }
            | Self::UserCreated { user }
            | Self::UserChanged { after: user, .. }
            | Self::UserDisabled { user } => Some(user),
            _ => None,
        }
    }

    /// The account that it is about, changed or not.
    #[must_use]
    pub fn about_user(&self) -> Option<&UserFacts> {
        match self {
            Self::KeyCreated { user, .. } | Self::KeyRevoked { user, .. } | Self::SessionsEnded { user, .. } => {
                Some(user)
            }
            other => other.user(),
        }
    }

    /// The label that changed.
    #[must_use]
    pub fn label(&self) -> Option<&str> {
        match self {
            Self::Label { label, .. } => Some(label),
            _ => None,
        }
    }

    /// The host that joined or was revoked.
    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::HostJoined { host_id, .. } | Self::HostRevoked { host_id, .. } => Some(host_id),
            _ => None,
        }
    }

    /// What it is about, as a name: `user:bob`, `label:coder`, `token:…`, `host:01J…`, `provider:okta`.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::SetUpFinished { user }
            | Self::UserCreated { user }
            | Self::UserChanged { after: user, .. }
            | Self::UserDisabled { user }
            | Self::KeyCreated { user, .. }
            | Self::KeyRevoked { user, .. }
            | Self::SessionsEnded { user, .. } => format!("user:{}", user.name),
            Self::GrantMade { grant } | Self::GrantRevoked { grant } => format!("grant:{}", grant.id),
            Self::Provider { provider, .. } => format!("provider:{provider}"),
            Self::Label { label, .. } => format!("label:{label}"),
            Self::TokenCreated { token, .. } => format!("token:{token}"),
            Self::HostJoined { host_id, .. } | Self::HostRevoked { host_id, .. } => format!("host:{host_id}"),
        }
    }

    /// What happened, to be followed by a time or by whom: `the owner of coder was changed from ann to bob`. Safe to show.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::SetUpFinished { user } => {
                format!("set-up was finished: {} is the first administrator", shown(&user.name))
            }
            Self::UserCreated { user } => format!("the account {} was made ({})", shown(&user.name), standing(user)),
            Self::UserChanged { before, after } => format!(
                "the account {} was changed from {} to {}",
                shown(&after.name),
                standing(before),
                standing(after)
            ),
            Self::UserDisabled { user } => format!("the account {} was disabled", shown(&user.name)),
            Self::KeyCreated {
                user,
                key,
                roles,
                expires_at,
            } => format!(
                "the key {} of {} was made ({}), good until {}",
                shown(key),
                shown(&user.name),
                list(roles),
                shown(expires_at)
            ),
            Self::KeyRevoked { user, key } => format!("the key {} of {} was revoked", shown(key), shown(&user.name)),
            Self::SessionsEnded { user, count: 1 } => format!("a session of {} was ended", shown(&user.name)),
            Self::SessionsEnded { user, count } => format!("{count} sessions of {} were ended", shown(&user.name)),
            Self::GrantMade { grant } => format!("a grant was made: {}", grant.words()),
            Self::GrantRevoked { grant } => format!("a grant was revoked: {}", grant.words()),
            Self::Provider {
                provider,
                before,
                after,
            } => provider_words(provider, before.as_ref(), after.as_ref()),
            Self::Label { label, before, after } => label_words(label, before.as_ref(), after.as_ref()),
            Self::TokenCreated {
                description,
                expires_at,
                ..
            } => {
                let what = if description.is_empty() {
                    String::new()
                } else {
                    format!(" for “{}”", shown(description))
                };
                format!("an enrolment token{what} was made, good until {}", shown(expires_at))
            }
            Self::HostJoined { name, .. } => format!("the host {} joined", shown(name)),
            Self::HostRevoked { name, .. } => format!("the host {} was revoked", shown(name)),
        }
    }
}

impl ChangedBy {
    /// To follow what happened: `by admin`. Safe to show.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::Person { name, .. } => format!("by {}", shown(name)),
            Self::SetupLink => "by whoever had the set-up link".to_owned(),
            Self::Token { made_by, name, .. } => {
                let name = name.as_ref().unwrap_or(&made_by.subject);
                format!("with a token made by {}", shown(name))
            }
            Self::Provider { provider, .. } => format!("by the identity provider {}", shown(provider)),
            Self::Configuration => "by the console's configuration".to_owned(),
            Self::Found => "before changes were recorded".to_owned(),
        }
    }
}

impl ChangeRecord {
    /// One line for people, safe to show.
    #[must_use]
    pub fn summary(&self) -> String {
        let why = self
            .why
            .as_deref()
            .map(|why| format!(": “{}”", visible_fold(why, 200)))
            .unwrap_or_default();
        format!("{} {}{why}", self.change.words(), self.by.words())
    }
}

fn shown(text: &str) -> String {
    visible_fold(text, NAME)
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "no role".to_owned();
    }
    names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ")
}

fn provider_words(provider: &str, before: Option<&ProviderFacts>, after: Option<&ProviderFacts>) -> String {
    let name = shown(provider);
    match (before, after) {
        (None, Some(after)) => format!(
            "people may sign in by the identity provider {name} ({}): {}",
            shown(&after.issuer),
            mapping(after)
        ),
        (Some(before), Some(after)) if before.issuer != after.issuer => format!(
            "the identity provider {name} is another one: {} instead of {}: {}",
            shown(&after.issuer),
            shown(&before.issuer),
            mapping(after)
        ),
        (Some(_), Some(after)) => format!(
            "what groups of the identity provider {name} give was changed: {}",
            mapping(after)
        ),
        (_, None) => format!("nobody may sign in by the identity provider {name} any more"),
    }
}

/// Which group makes whom what, as far as a line allows.
fn mapping(facts: &ProviderFacts) -> String {
    const SHOWN: usize = 6;
    let roles = facts.roles.iter().map(|(group, roles)| (group, list(roles)));
    let groups = facts.approver_groups.iter();
    let groups = groups.map(|(group, names)| (group, format!("group {}", list(names))));
    let all: Vec<String> = roles
        .chain(groups)
        .map(|(from, to)| format!("{} gives {to}", shown(from)))
        .collect();
    match all.len().checked_sub(SHOWN) {
        Some(more @ 1..) => format!("{} and {more} more", all[..SHOWN].join(", ")),
        _ => all.join(", "),
    }
}

fn standing(user: &UserFacts) -> String {
    let roles = list(&user.roles);
    let roles = if user.service {
        format!("service account, {roles}")
    } else {
        roles
    };
    match user.groups.len() {
        0 => roles,
        1 => format!("{roles}; group {}", list(&user.groups)),
        _ => format!("{roles}; groups {}", list(&user.groups)),
    }
}

fn label_words(label: &str, before: Option<&LabelFacts>, after: Option<&LabelFacts>) -> String {
    let label = shown(label);
    let owner = |facts: Option<&LabelFacts>| {
        facts.and_then(|facts| {
            let name = facts
                .owner_name
                .as_ref()
                .or(facts.owner.as_ref().map(|owner| &owner.subject));
            name.map(|name| shown(name))
        })
    };
    let owned =
        |owner: Option<String>| owner.map_or_else(|| "without an owner".to_owned(), |o| format!("owned by {o}"));
    match (before, after) {
        (None, None) => format!("the label {label} stayed away"),
        (None, after) => format!("the label {label} was made, {}", owned(owner(after))),
        (before, None) => format!("the label {label}, {}, was deleted", owned(owner(before))),
        (before, after) => match (owner(before), owner(after)) {
            (Some(old), Some(new)) if old != new => format!("the owner of {label} was changed from {old} to {new}"),
            (None, Some(new)) => format!("{label}, which nobody owned, was given the owner {new}"),
            (Some(old), None) => format!("{label}, owned by {old}, was left without an owner"),
            _ => format!("the description of {label} was changed"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn person(name: &str) -> PersonId {
        PersonId {
            issuer: "local".to_owned(),
            subject: name.to_owned(),
        }
    }

    fn facts(owner: Option<&str>) -> LabelFacts {
        LabelFacts {
            owner: owner.map(person),
            owner_name: None,
            description: String::new(),
        }
    }

    #[test]
    fn every_change_of_an_owner_says_both() {
        let words = |before, after| {
            Change::Label {
                label: "coder".to_owned(),
                before,
                after,
            }
            .words()
        };
        assert_eq!(
            words(Some(facts(Some("ann"))), Some(facts(Some("bob")))),
            "the owner of coder was changed from ann to bob"
        );
        assert_eq!(
            words(Some(facts(None)), Some(facts(Some("bob")))),
            "coder, which nobody owned, was given the owner bob"
        );
        assert_eq!(
            words(Some(facts(Some("ann"))), Some(facts(None))),
            "coder, owned by ann, was left without an owner"
        );
        assert_eq!(
            words(None, Some(facts(Some("ann")))),
            "the label coder was made, owned by ann"
        );
        assert_eq!(
            words(Some(facts(Some("ann"))), None),
            "the label coder, owned by ann, was deleted"
        );
    }

    #[test]
    fn nothing_hidden_is_shown() {
        let change = Change::TokenCreated {
            token: "ab".to_owned(),
            description: "x\u{202e}\u{1b}[2J".to_owned(),
            expires_at: "soon\n".to_owned(),
        };
        let text = change.words();
        assert!(!text.chars().any(|c| c.is_control() || c == '\u{202e}'), "{text}");
        assert!(text.contains("⟨U+202E⟩"), "{text}");
    }

    #[test]
    fn who_is_called_by_an_opaque_subject_is_shown_by_name() {
        let owner = LabelFacts {
            owner: Some(PersonId {
                issuer: "https://id.example.org".to_owned(),
                subject: "00u1abcd".to_owned(),
            }),
            owner_name: Some("okta:ann".to_owned()),
            description: String::new(),
        };
        let change = Change::Label {
            label: "coder".to_owned(),
            before: None,
            after: Some(owner),
        };
        assert_eq!(change.words(), "the label coder was made, owned by okta:ann");
    }

    #[test]
    fn a_provider_says_what_its_groups_give() {
        let facts = ProviderFacts {
            issuer: "https://id.example.org".to_owned(),
            client_id: "guard".to_owned(),
            groups_claim: "groups".to_owned(),
            roles: [("sre".to_owned(), vec!["approver".to_owned()])].into(),
            approver_groups: [("sec\u{202e}".to_owned(), vec!["secops".to_owned()])].into(),
        };
        let change = Change::Provider {
            provider: "okta".to_owned(),
            before: None,
            after: Some(facts),
        };
        assert_eq!(
            change.words(),
            "people may sign in by the identity provider okta (https://id.example.org): sre gives approver, \
             sec⟨U+202E⟩ gives group secops"
        );
        assert_eq!(change.subject(), "provider:okta");
        assert!(change.user().is_none());
    }
}
