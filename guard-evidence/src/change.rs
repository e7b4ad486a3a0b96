//! Changes of who may decide: people, their roles and groups, labels and their owners, tokens and hosts.
//!
//! Owns their shapes and words. It is given what the console changed, and by whom. It must never carry a password, a
//! token or anything else that opens something.

use serde::{Deserialize, Serialize};

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
    Token { token: String, made_by: PersonId },
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
}

/// A label as the console knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LabelFacts {
    /// Who may not answer its requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<PersonId>,
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

    /// What it is about, as a name: `user:bob`, `label:coder`, `token:…`, `host:01J…`.
    #[must_use]
    pub fn subject(&self) -> String {
        match self {
            Self::SetUpFinished { user }
            | Self::UserCreated { user }
            | Self::UserChanged { after: user, .. }
            | Self::UserDisabled { user } => format!("user:{}", user.who.subject),
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
            Self::Token { made_by, .. } => format!("with a token made by {}", shown(&made_by.subject)),
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

fn standing(user: &UserFacts) -> String {
    let list = |names: &[String]| names.iter().map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    let roles = if user.roles.is_empty() {
        "no role".to_owned()
    } else {
        list(&user.roles)
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
        facts
            .and_then(|facts| facts.owner.as_ref())
            .map(|owner| shown(&owner.subject))
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
}
