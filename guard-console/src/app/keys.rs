//! Service accounts and their keys: how programs act here.
//!
//! Owns what a key may do: some of its account's roles, for a time. A program answers nothing: no account of one is an
//! approver, and no key carries that role. It must never show a key's secret a second time.

use guard_evidence::change::Change;
use guard_proto::rest::{Key, MadeKey, NewKey, NewServiceAccount, Role, User};
use ulid::Ulid;

use super::actor::Credential;
use super::changes::{local, user_facts};
use super::{Actor, App, Error, Permission, Result, names};
use crate::auth::secret::Secret;
use crate::store::{self, KeyRow, UserRow};
use crate::time::{Millis, rfc3339};

/// What a key begins with, so that one that lies about can be told from other text.
pub const KEY_PREFIX: &str = "guardkey_";
const DESCRIPTION_BYTES: usize = 500;
const DAY_SECONDS: u64 = 86_400;
const KEY_SECONDS: std::ops::RangeInclusive<u64> = 60..=366 * DAY_SECONDS;
const KEY_DEFAULT_SECONDS: u64 = 90 * DAY_SECONDS;
/// Last use is written down this often at most.
const TOUCH_MS: Millis = 60_000;

impl App {
    pub async fn add_service_account(&self, actor: &Actor, body: &NewServiceAccount) -> Result<User> {
        actor.require(Permission::ManageUsers)?;
        let username = names::username(&body.username)?;
        let mut roles = body.roles.clone();
        roles.sort();
        roles.dedup();
        if roles.is_empty() || roles.contains(&Role::Approver) {
            return Err(Error::Invalid(
                "a service account has at least one role of administrator, operator and auditor; programs approve nothing"
                    .to_owned(),
            ));
        }
        let user = UserRow {
            id: Ulid::new().to_string(),
            who: local(&username),
            username,
            service: true,
            password: None,
            display_name: names::free_text("a description", &body.description, DESCRIPTION_BYTES)?,
            email: String::new(),
            roles,
            groups: Vec::new(),
            created_at: self.now(),
            created_by: Some(actor.username.clone()),
            disabled_at: None,
        };
        let user = self.add_account(actor, user).await?;
        tracing::info!(account = %user.username, roles = ?user.roles, by = %actor.username, "service account made");
        Ok(user)
    }

    pub async fn keys(&self, actor: &Actor) -> Result<Vec<Key>> {
        actor.require(Permission::SeeUsers)?;
        let now = self.now();
        let keys = self.store.keys().await?;
        Ok(keys.into_iter().map(|(key, user)| key_view(key, &user, now)).collect())
    }

    pub async fn make_key(&self, actor: &Actor, body: &NewKey) -> Result<MadeKey> {
        actor.require(Permission::ManageUsers)?;
        let seconds = body.expires_in.unwrap_or(KEY_DEFAULT_SECONDS);
        if !KEY_SECONDS.contains(&seconds) {
            return Err(Error::Invalid(format!(
                "expires_in: {} to {} seconds, not {seconds}",
                KEY_SECONDS.start(),
                KEY_SECONDS.end()
            )));
        }
        let description = names::free_text("a description", &body.description, DESCRIPTION_BYTES)?;
        let mut change = self.store.change().await?;
        let user = store::user_in(&mut change, &body.account)
            .await?
            .filter(|user| user.service && user.disabled_at.is_none())
            .ok_or_else(|| Error::not_found("service account", &body.account))?;
        let mut roles = body.roles.clone().unwrap_or_else(|| user.roles.clone());
        roles.sort();
        roles.dedup();
        if roles.is_empty() || !roles.iter().all(|role| user.roles.contains(role)) {
            return Err(Error::Invalid(format!(
                "a key of {} has at least one of its roles, and no other: {}",
                user.username,
                user.roles
                    .iter()
                    .map(|role| role.as_str())
                    .collect::<Vec<_>>()
                    .join(", ")
            )));
        }
        let secret = Secret::random();
        let now = self.now();
        let row = KeyRow {
            digest: secret.digest(),
            id: Ulid::new().to_string(),
            user_id: user.id.clone(),
            roles,
            description,
            created_at: now,
            created_by: actor.username.clone(),
            expires_at: now + Millis::try_from(seconds).unwrap_or(0) * 1_000,
            last_used_at: None,
            revoked_at: None,
        };
        store::add_key(&mut change, &row).await?;
        let made = Change::KeyCreated {
            user: user_facts(&user),
            key: row.id.clone(),
            roles: row.roles.iter().map(|role| role.as_str().to_owned()).collect(),
            expires_at: rfc3339(row.expires_at),
        };
        self.record_change(&mut change, actor.as_changer(), made, None).await?;
        change.commit().await?;
        tracing::info!(key = %row.id, account = %user.username, by = %actor.username, "key made");
        self.notify.changed();
        Ok(MadeKey {
            secret: format!("{KEY_PREFIX}{}", secret.reveal()),
            key: key_view(row, &user, now),
        })
    }

    /// Cuts off whoever uses it, streams included.
    pub async fn revoke_key(&self, actor: &Actor, id: &str) -> Result<()> {
        actor.require(Permission::ManageUsers)?;
        let mut change = self.store.change().await?;
        let (key, user) = store::key_in(&mut change, id)
            .await?
            .ok_or_else(|| Error::not_found("key", id))?;
        if key.revoked_at.is_some() {
            return Ok(());
        }
        store::revoke_key(&mut change, id, &actor.username, self.now()).await?;
        let revoked = Change::KeyRevoked {
            user: user_facts(&user),
            key: key.id,
        };
        self.record_change(&mut change, actor.as_changer(), revoked, None)
            .await?;
        change.commit().await?;
        tracing::info!(key = %id, account = %user.username, by = %actor.username, "key revoked");
        self.notify.sessions_ended();
        self.notify.changed();
        Ok(())
    }

    /// Which program presents this key.
    ///
    /// # Errors
    /// [`Error::SignInFirst`] if it is unknown, expired, revoked, or its account disabled.
    pub async fn authenticate_key(&self, secret: &Secret) -> Result<Actor> {
        let digest = secret.digest();
        let found = self.store.key(&digest).await?;
        let now = self.now();
        let Some((key, user)) = found.filter(|(key, user)| holds(key, user, now)) else {
            return Err(Error::SignInFirst);
        };
        if key.last_used_at.is_none_or(|at| now - at >= TOUCH_MS) {
            let mut change = self.store.change().await?;
            store::touch_key(&mut change, &digest, now).await?;
            change.commit().await?;
        }
        // What the account has lost since, its keys have lost too.
        let may = |role: &Role| *role != Role::Approver && user.roles.contains(role);
        Ok(Actor {
            user_id: user.id.clone(),
            username: user.username.clone(),
            who: user.who.clone(),
            display_name: user.display_name.clone(),
            roles: key.roles.iter().copied().filter(may).collect(),
            groups: Vec::new(),
            credential: Credential::Key(digest),
            signed_in_at: key.created_at,
            provider: None,
            authentication: None,
            channel: "api",
        })
    }

    pub(super) async fn key_holds(&self, digest: &str) -> Result<bool> {
        let now = self.now();
        let found = self.store.key(digest).await?;
        Ok(found.is_some_and(|(key, user)| holds(&key, &user, now)))
    }
}

fn holds(key: &KeyRow, user: &UserRow, now: Millis) -> bool {
    user.service && user.disabled_at.is_none() && key.revoked_at.is_none() && now < key.expires_at
}

fn key_view(key: KeyRow, user: &UserRow, now: Millis) -> Key {
    let state = if key.revoked_at.is_some() {
        "revoked"
    } else if user.disabled_at.is_some() {
        "disabled"
    } else if now >= key.expires_at {
        "expired"
    } else {
        "good"
    };
    Key {
        id: key.id,
        account: user.username.clone(),
        roles: key.roles,
        description: key.description,
        created_at: rfc3339(key.created_at),
        created_by: key.created_by,
        expires_at: rfc3339(key.expires_at),
        last_used_at: key.last_used_at.map(rfc3339),
        state: state.to_owned(),
    }
}
