//! Who acts, and what roles permit.
//!
//! Owns the table of permissions. It is given a session that holds. Being an administrator is a set of permissions
//! like any other: it lifts nothing.

use guard_evidence::record::{Authentication, PersonId};
use guard_proto::rest::{Me, Role};

use super::{Error, Result};
use crate::time::Millis;

/// A signed-in person. Only [`super::App::authenticate`] and signing in make one.
#[derive(Debug, Clone)]
pub struct Actor {
    pub(crate) user_id: String,
    pub(crate) username: String,
    pub(crate) who: PersonId,
    pub(crate) display_name: String,
    pub(crate) roles: Vec<Role>,
    pub(crate) groups: Vec<String>,
    pub(crate) credential: Credential,
    pub(crate) signed_in_at: Millis,
    /// The identity provider by which they signed in, and how they did there.
    pub(crate) provider: Option<String>,
    pub(crate) authentication: Option<Authentication>,
    /// `web` or `api`.
    pub(crate) channel: &'static str,
}

/// By what they are signed in; digests only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    Session(String),
    /// Of a service account.
    Key(String),
}

/// What a role can permit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Permission {
    SeeRequests,
    AnswerRequests,
    RevokeGrants,
    SeeHosts,
    RevokeHosts,
    CreateTokens,
    SeeLabels,
    ManageLabels,
    SeeUsers,
    ManageUsers,
    SeeEvidence,
    SeeTrust,
    SeeChanges,
    SeeAlarms,
    SeeChannels,
}

const EVERYBODY: &[Role] = &[Role::Administrator, Role::Approver, Role::Operator, Role::Auditor];

impl Permission {
    /// The roles that carry it; any one is enough.
    #[must_use]
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::SeeRequests
            | Self::SeeLabels
            | Self::SeeEvidence
            | Self::SeeTrust
            | Self::SeeChanges
            | Self::SeeAlarms => EVERYBODY,
            Self::AnswerRequests => &[Role::Approver],
            Self::RevokeGrants => &[Role::Administrator, Role::Approver],
            Self::SeeHosts | Self::SeeChannels => &[Role::Administrator, Role::Operator, Role::Auditor],
            Self::CreateTokens => &[Role::Administrator, Role::Operator],
            Self::SeeUsers => &[Role::Administrator, Role::Auditor],
            Self::RevokeHosts | Self::ManageLabels | Self::ManageUsers => &[Role::Administrator],
        }
    }

    fn words(self) -> &'static str {
        match self {
            Self::SeeRequests => "see requests",
            Self::AnswerRequests => "answer requests",
            Self::RevokeGrants => "revoke grants",
            Self::SeeHosts => "see hosts",
            Self::RevokeHosts => "revoke hosts",
            Self::CreateTokens => "create enrolment tokens",
            Self::SeeLabels => "see labels",
            Self::ManageLabels => "change labels",
            Self::SeeUsers => "see users",
            Self::ManageUsers => "change users",
            Self::SeeEvidence => "see evidence",
            Self::SeeTrust => "see the trust file",
            Self::SeeChanges => "see changes",
            Self::SeeAlarms => "see alarms",
            Self::SeeChannels => "see channels",
        }
    }
}

impl Actor {
    #[must_use]
    pub fn may(&self, permission: Permission) -> bool {
        permission.roles().iter().any(|role| self.roles.contains(role))
    }

    /// # Errors
    /// [`Error::Forbidden`], naming the roles that would do.
    pub fn require(&self, permission: Permission) -> Result<()> {
        if self.may(permission) {
            return Ok(());
        }
        let roles: Vec<&str> = permission.roles().iter().map(|role| role.as_str()).collect();
        Err(Error::Forbidden(format!(
            "to {} takes the role {}; {} has {}",
            permission.words(),
            roles.join(" or "),
            self.username,
            if self.roles.is_empty() {
                "none".to_owned()
            } else {
                self.roles
                    .iter()
                    .map(|role| role.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            }
        )))
    }

    #[must_use]
    pub fn username(&self) -> &str {
        &self.username
    }

    #[must_use]
    pub fn me(&self) -> Me {
        Me {
            username: self.username.clone(),
            roles: self.roles.clone(),
            groups: self.groups.clone(),
            display_name: self.display_name.clone(),
            provider: self.provider.clone(),
        }
    }
}
