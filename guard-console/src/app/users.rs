//! People: made and disabled by administrators, never deleted, because evidence names them.

use guard_evidence::change::Change;
use guard_proto::rest::{NewUser, User};
use ulid::Ulid;

use super::changes::{LOCAL_ISSUER, local, user_facts};
use super::{Actor, App, Error, Permission, Result, names};
use crate::store::{self, UserRow};
use crate::time::rfc3339;

const MAX_GROUPS: usize = 64;

impl App {
    pub async fn users(&self, actor: &Actor) -> Result<Vec<User>> {
        actor.require(Permission::SeeUsers)?;
        Ok(self.store.users().await?.into_iter().map(view).collect())
    }

    pub async fn add_user(&self, actor: &Actor, body: &NewUser) -> Result<User> {
        actor.require(Permission::ManageUsers)?;
        let username = names::username(&body.username)?;
        if body.groups.len() > MAX_GROUPS {
            return Err(Error::Invalid(format!("a user is in at most {MAX_GROUPS} groups")));
        }
        let mut groups = body
            .groups
            .iter()
            .map(|g| names::group(g))
            .collect::<Result<Vec<_>>>()?;
        groups.sort();
        groups.dedup();
        let mut roles = body.roles.clone();
        roles.sort();
        roles.dedup();
        if roles.is_empty() {
            return Err(Error::Invalid(
                "a user has at least one role: administrator, approver, operator or auditor".to_owned(),
            ));
        }
        let password = self.passwords.hash(&username, &body.password).await?;
        let user = UserRow {
            id: Ulid::new().to_string(),
            who: local(&username),
            username,
            service: false,
            password: Some(password),
            display_name: String::new(),
            email: String::new(),
            roles,
            groups,
            created_at: self.now(),
            created_by: Some(actor.username.clone()),
            disabled_at: None,
        };
        let user = self.add_account(actor, user).await?;
        tracing::info!(user = %user.username, roles = ?user.roles, by = %actor.username, "user made");
        Ok(user)
    }

    /// A person or a program, under a name that nobody has.
    pub(super) async fn add_account(&self, actor: &Actor, user: UserRow) -> Result<User> {
        let mut change = self.store.change().await?;
        if store::user_in(&mut change, &user.username).await?.is_some() {
            return Err(Error::conflict(
                "user-exists",
                format!("there is a user {} already; choose another name", user.username),
            ));
        }
        store::add_user(&mut change, &user).await?;
        let made = Change::UserCreated {
            user: user_facts(&user),
        };
        self.record_change(&mut change, actor.as_changer(), made, None).await?;
        change.commit().await?;
        self.notify.changed();
        Ok(view(user))
    }

    /// Ends that person's sessions too; their approvals of requests that still wait no longer count.
    pub async fn disable_user(&self, actor: &Actor, username: &str) -> Result<()> {
        actor.require(Permission::ManageUsers)?;
        let mut change = self.store.change().await?;
        let user = store::user_in(&mut change, username)
            .await?
            .ok_or_else(|| Error::not_found("user", username))?;
        if user.disabled_at.is_some() {
            return Ok(());
        }
        // Those of a provider do not count: when it is away, somebody must still be able to sign in.
        let mut administrators = store::administrators(&mut change).await?;
        administrators.retain(|one| one.who.issuer == LOCAL_ISSUER && !one.service);
        if let [last] = administrators.as_slice()
            && last.id == user.id
        {
            return Err(Error::conflict(
                "last-administrator",
                format!("{username} is the last administrator who can sign in by password; make another one first"),
            ));
        }
        store::disable_user(&mut change, &user.id, &actor.username, self.now()).await?;
        store::void_answers(&mut change, &user.id, None, "the account was disabled").await?;
        let disabled = Change::UserDisabled {
            user: user_facts(&user),
        };
        self.record_change(&mut change, actor.as_changer(), disabled, None)
            .await?;
        change.commit().await?;
        tracing::info!(user = %username, by = %actor.username, "user disabled");
        // Keys of a service account hold as long as the account does.
        self.notify.sessions_ended();
        self.notify.requests_changed();
        self.notify.changed();
        Ok(())
    }
}

fn view(user: UserRow) -> User {
    User {
        username: user.username,
        issuer: user.who.issuer,
        subject: user.who.subject,
        service: user.service,
        display_name: user.display_name,
        email: user.email,
        roles: user.roles,
        groups: user.groups,
        created_at: rfc3339(user.created_at),
        disabled: user.disabled_at.is_some(),
    }
}
