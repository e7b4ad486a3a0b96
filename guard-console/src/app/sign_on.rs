//! Signing in by an identity provider: who that is here, and what their groups give them.
//!
//! Owns accounts that providers name. It is given what a provider says of somebody, whose signature was checked. Accounts
//! are found by issuer and subject; it must never find one by a name or an e-mail address, nor give a role that the
//! configuration does not give to one of their groups.

use std::collections::BTreeSet;
use std::net::IpAddr;

use guard_evidence::change::{Change, ChangedBy, ProviderFacts};
use guard_evidence::record::PersonId;
use guard_proto::limits::NAME_BYTES;
use guard_proto::rest::{Role, SignInWith};
use ulid::Ulid;
use url::Url;

use super::changes::user_facts;
use super::sessions::{NewSession, SessionKind, SignedOnBy};
use super::{App, Error, Result};
use crate::auth::oidc::attempt::Attempt;
use crate::auth::oidc::claims::Described;
use crate::auth::oidc::{OidcError, Provider};
use crate::config::OidcConfig;
use crate::store::{self, UserRow};

/// What came back in the browser's address.
#[derive(Debug, Default)]
pub struct CameBack<'a> {
    pub code: &'a str,
    pub state: &'a str,
    pub iss: Option<&'a str>,
    /// Instead of a code.
    pub error: &'a str,
    pub error_description: &'a str,
}

/// Who they are here, before it is written.
struct Standing {
    roles: Vec<Role>,
    groups: Vec<String>,
}

impl App {
    /// Identity providers, for the sign-in page.
    #[must_use]
    pub fn sign_in_with(&self) -> Vec<SignInWith> {
        let all = self.providers.iter();
        all.map(|provider| SignInWith {
            name: provider.config.name.clone(),
            label: guard_evidence::text::visible_fold(&provider.config.label, 40),
        })
        .collect()
    }

    pub(super) fn provider(&self, name: &str) -> Result<&Provider> {
        let found = self.providers.iter().find(|provider| provider.config.name == name);
        found.ok_or_else(|| Error::not_found("identity provider", name))
    }

    /// Where to send the browser, and what it keeps meanwhile.
    ///
    /// # Errors
    /// No such provider, or it cannot be reached.
    pub async fn begin_sign_on(&self, name: &str, next: &str) -> Result<(Url, Attempt)> {
        let provider = self.provider(name)?;
        let attempt = Attempt::begin(next, self.now());
        let url = provider.begin(&attempt).await.map_err(|e| told(provider, &e))?;
        Ok((url, attempt))
    }

    /// # Errors
    /// [`Error::SignInFailed`]: it does not hold, or they may not; the words are for them.
    pub async fn finish_sign_on(
        &self,
        name: &str,
        attempt: &Attempt,
        back: &CameBack<'_>,
        address: IpAddr,
    ) -> Result<NewSession> {
        let provider = self.provider(name)?;
        if !attempt.has_state(name, back.state) {
            return Err(Error::SignInFailed(
                "this is not the answer to your last attempt to sign in; begin again".to_owned(),
            ));
        }
        if !back.error.is_empty() || back.code.is_empty() {
            let said = if back.error_description.is_empty() {
                back.error
            } else {
                back.error_description
            };
            let refused = OidcError::Refused(guard_evidence::text::visible_fold(said, 200));
            return Err(told(provider, &refused));
        }
        // Each answer is a call to the provider: not as many as somebody likes.
        let brake = format!("provider {name}");
        if let Err(seconds) = self.throttle.attempt(&brake, address, self.now()) {
            return Err(Error::TooMany { seconds });
        }
        let returned = provider
            .finish(attempt, back.code, back.iss)
            .await
            .map_err(|e| told(provider, &e))?;
        self.throttle.succeeded(&brake, address);
        let mut change = self.store.change().await?;
        let user = match self.admitted(&mut change, &provider.config, &returned.described).await {
            Ok(user) => user,
            // What their groups no longer give is written down all the same.
            Err(error @ Error::SignInFailed(_)) => {
                change.commit().await?;
                self.told_everybody();
                return Err(error);
            }
            Err(error) => return Err(error),
        };
        let by = SignedOnBy {
            provider: name.to_owned(),
            authentication: returned.described.authentication,
            id_token: returned.id_token,
        };
        let session = self
            .new_session(&mut change, &user, SessionKind::Web, address, Some(by))
            .await?;
        change.commit().await?;
        self.told_everybody();
        tracing::info!(user = %user.username, provider = name, %address, "signed in");
        Ok(session)
    }

    fn told_everybody(&self) {
        self.notify.sessions_ended();
        self.notify.requests_changed();
        self.notify.refresh();
        self.notify.changed();
    }

    /// The account of somebody, with what their groups give them now; made if it is their first time.
    async fn admitted(
        &self,
        change: &mut store::Change,
        config: &OidcConfig,
        described: &Described,
    ) -> Result<UserRow> {
        if !store::has_users(change).await? {
            return Err(Error::SignInFailed(
                "the first administrator is still to be made; open the set-up link first".to_owned(),
            ));
        }
        let who = PersonId {
            issuer: config.issuer.clone(),
            subject: described.subject.clone(),
        };
        let Standing { roles, groups } = standing(config, &described.groups);
        let by = ChangedBy::Provider {
            provider: config.name.clone(),
            issuer: config.issuer.clone(),
        };
        let none = || {
            Error::SignInFailed(format!(
                "{} knows you, but none of your groups there gives you a role here; ask an administrator of this console",
                config.label
            ))
        };
        let Some(before) = store::user_by_identity(change, &who).await? else {
            if roles.is_empty() {
                return Err(none());
            }
            let user = UserRow {
                id: Ulid::new().to_string(),
                username: free_name(change, config, &described.handle).await?,
                who,
                service: false,
                password: None,
                display_name: described.display_name.clone(),
                email: described.email.clone(),
                roles,
                groups,
                created_at: self.now(),
                created_by: None,
                disabled_at: None,
            };
            store::add_user(change, &user).await?;
            let made = Change::UserCreated {
                user: user_facts(&user),
            };
            self.record_change(change, by, made, None).await?;
            tracing::info!(user = %user.username, roles = ?user.roles, provider = %config.name, "user made");
            return Ok(user);
        };
        if before.disabled_at.is_some() {
            return Err(Error::SignInFailed(
                "your account here was disabled by an administrator".to_owned(),
            ));
        }
        let user = UserRow {
            display_name: described.display_name.clone(),
            email: described.email.clone(),
            roles,
            groups,
            ..before.clone()
        };
        store::update_user(change, &user).await?;
        if user_facts(&before) != user_facts(&user) {
            let changed = Change::UserChanged {
                before: user_facts(&before),
                after: user_facts(&user),
            };
            self.record_change(change, by, changed, None).await?;
            let lost = before.roles.iter().any(|role| !user.roles.contains(role))
                || before.groups.iter().any(|group| !user.groups.contains(group));
            if lost {
                store::void_answers(change, &user.id, None, "they lost a role or a group").await?;
            }
            tracing::info!(user = %user.username, roles = ?user.roles, provider = %config.name, "user changed");
        }
        if user.roles.is_empty() {
            store::end_sessions_of(change, &user.id).await?;
            return Err(none());
        }
        Ok(user)
    }

    /// At the start: what is configured now, as a record if it was otherwise before.
    pub(super) async fn record_providers(&self) -> Result<()> {
        let mut tx = self.store.change().await?;
        let mut before = store::providers(&mut tx).await?;
        let mut changes = Vec::new();
        for provider in &self.providers {
            let name = &provider.config.name;
            let after = facts(&provider.config);
            let before = before.remove(name);
            if before.as_ref() == Some(&after) {
                continue;
            }
            store::put_provider(&mut tx, name, &after).await?;
            changes.push((name.clone(), before, Some(after)));
        }
        for (name, gone) in before {
            store::delete_provider(&mut tx, &name).await?;
            changes.push((name, Some(gone), None));
        }
        for (provider, before, after) in changes {
            let change = Change::Provider {
                provider,
                before,
                after,
            };
            tracing::info!("{}", change.words());
            self.record_change(&mut tx, ChangedBy::Configuration, change, None)
                .await?;
        }
        tx.commit().await?;
        Ok(())
    }
}

/// What groups of the provider give.
fn standing(config: &OidcConfig, theirs: &[String]) -> Standing {
    let roles: BTreeSet<Role> = theirs
        .iter()
        .flat_map(|group| config.roles.get(group))
        .flatten()
        .copied()
        .collect();
    let groups: BTreeSet<String> = theirs
        .iter()
        .flat_map(|group| config.approver_groups.get(group))
        .flatten()
        .cloned()
        .collect();
    Standing {
        roles: roles.into_iter().collect(),
        groups: groups.into_iter().collect(),
    }
}

fn facts(config: &OidcConfig) -> ProviderFacts {
    let words = |roles: &Vec<Role>| roles.iter().map(|role| role.as_str().to_owned()).collect();
    ProviderFacts {
        issuer: config.issuer.clone(),
        client_id: config.client_id.clone(),
        groups_claim: config.groups_claim.clone(),
        roles: config
            .roles
            .iter()
            .map(|(group, roles)| (group.clone(), words(roles)))
            .collect(),
        approver_groups: config.approver_groups.clone(),
    }
}

/// `okta:ann`, or `okta:ann-2` when somebody else is called so. A local account has no colon in its name.
async fn free_name(change: &mut store::Change, config: &OidcConfig, handle: &str) -> Result<String> {
    let base = format!("{}:{handle}", config.name);
    let mut name = base.clone();
    let mut number = 2;
    while store::user_in(change, &name).await?.is_some() {
        name = format!("{base}-{number}");
        number += 1;
    }
    debug_assert!(name.len() <= NAME_BYTES);
    Ok(name)
}

/// Words for who signs in; details that help only the administrator go to the log.
fn told(provider: &Provider, error: &OidcError) -> Error {
    let label = &provider.config.label;
    tracing::warn!(provider = %provider.config.name, %error, "sign-in failed");
    match error {
        OidcError::Unreachable(_) | OidcError::File { .. } => Error::Busy(format!(
            "{label} cannot be reached at the moment; try again, or sign in by password if you have one"
        )),
        OidcError::Refused(why) if why.is_empty() => Error::SignInFailed(format!("{label} did not sign you in")),
        OidcError::Refused(why) => Error::SignInFailed(format!("{label} did not sign you in: {why}")),
        OidcError::Invalid(_) => Error::SignInFailed(format!(
            "what {label} sent does not hold; begin again. The console's log says why"
        )),
        OidcError::Groups(why) => Error::SignInFailed(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::parse;

    #[test]
    fn groups_give_what_is_configured_and_nothing_else() {
        let text = r#"
[[oidc]]
name = "okta"
issuer = "https://example.okta.com"
client-id = "0oa1"
roles = { "a" = ["approver"], "b" = ["approver", "auditor"], "z" = ["administrator"] }
approver-groups = { "b" = ["secops", "code"], "c" = ["code"] }
"#;
        let config = parse(text).unwrap().resolve(None).unwrap().oidc.remove(0);
        let of = |groups: &[&str]| {
            let theirs: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
            let Standing { roles, groups } = standing(&config, &theirs);
            (roles, groups)
        };
        assert_eq!(
            of(&["a", "b", "c", "other"]),
            (
                vec![Role::Approver, Role::Auditor],
                vec!["code".to_owned(), "secops".to_owned()]
            )
        );
        // An approver group alone is no role, and names are not compared loosely.
        assert_eq!(of(&["c", "A", "Z", " z"]), (vec![], vec!["code".to_owned()]));
        assert_eq!(of(&[]), (vec![], vec![]));
    }
}
