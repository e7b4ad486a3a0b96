//! Setting up, signing in, staying signed in, signing out.

use std::net::IpAddr;

use guard_evidence::change::{Change, ChangedBy};
use guard_evidence::record::Authentication;
use guard_proto::rest::{LoginBody, Role, Session, SetupBody};
use ulid::Ulid;

use super::actor::Credential;
use super::changes::{local, user_facts};
use super::{Actor, App, Error, Result, names};
use crate::auth::rate::Standing;
use crate::auth::secret::Secret;
use crate::data_dir::Readers;
use crate::store::{self, SessionRow, UserRow};
use crate::time::{Millis, rfc3339};

/// A session ends then, used or not.
const ABSOLUTE_MS: Millis = 12 * 3_600_000;
/// Or this long after its last use.
const IDLE_MS: Millis = 2 * 3_600_000;
/// Last use is written down this often at most.
const TOUCH_MS: Millis = 60_000;
const SETUP_MS: Millis = 24 * 3_600_000;
pub(crate) const SETUP_FILE: &str = "setup-link";

/// For whom a session is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionKind {
    /// A browser's cookie.
    Web,
    /// A program's bearer token.
    Api,
}

impl SessionKind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Web => "web",
            Self::Api => "api",
        }
    }
}

/// By which identity provider somebody signed in.
#[derive(Debug)]
pub(super) struct SignedOnBy {
    pub(super) provider: String,
    pub(super) authentication: Authentication,
    pub(super) id_token: Option<String>,
}

/// A session that was just made; the only time its secret is known.
#[derive(Debug)]
pub struct NewSession {
    pub secret: Secret,
    pub actor: Actor,
    pub expires_at: Millis,
}

impl NewSession {
    /// As the REST API answers.
    #[must_use]
    pub fn into_rest(self) -> Session {
        Session {
            token: self.secret.reveal().to_owned(),
            expires_at: rfc3339(self.expires_at),
            me: self.actor.me(),
        }
    }
}

impl App {
    /// Counts a call from this address.
    ///
    /// # Errors
    /// [`Error::TooMany`] when there were too many.
    pub fn call_from(&self, address: IpAddr) -> Result<Standing> {
        let counted = self.rates.address(address, self.now());
        counted.map_err(|seconds| Error::TooMany { seconds })
    }

    /// The same for one that would sign in, which is fewer; failures have a brake of their own.
    fn attempt_from(&self, address: IpAddr) -> Result<Standing> {
        let counted = self.rates.sign_in(address, self.now());
        counted.map_err(|seconds| Error::TooMany { seconds })
    }

    /// The same for a call of somebody who is signed in.
    pub fn call_by(&self, actor: &Actor) -> Result<Standing> {
        let counted = self.rates.account(&actor.user_id, self.now());
        counted.map_err(|seconds| Error::TooMany { seconds })
    }

    /// # Errors
    /// [`Error::SignInFailed`] without saying what was wrong, [`Error::TooMany`] when locked.
    pub async fn sign_in(&self, body: &LoginBody, kind: SessionKind, address: IpAddr) -> Result<NewSession> {
        self.attempt_from(address)?;
        let typed = guard_evidence::text::visible_fold(&body.username, 80);
        if let Err(seconds) = self.throttle.attempt(&typed, address, self.now()) {
            tracing::warn!(user = %typed, %address, seconds, "sign-in refused: locked after failures");
            return Err(Error::TooMany { seconds });
        }
        let user = self
            .store
            .user(&body.username)
            .await?
            .filter(|user| user.disabled_at.is_none());
        let stored = user.as_ref().and_then(|user| user.password.clone());
        let right = self.passwords.verify(stored, &body.password).await?;
        let Some(user) = user.filter(|_| right) else {
            tracing::warn!(user = %typed, %address, "sign-in failed");
            return Err(Error::SignInFailed("user name or password is wrong".to_owned()));
        };
        self.throttle.succeeded(&typed, address);
        tracing::info!(user = %user.username, %address, kind = kind.as_str(), "signed in");
        let mut change = self.store.change().await?;
        let session = self.new_session(&mut change, &user, kind, address, None).await?;
        change.commit().await?;
        Ok(session)
    }

    pub(super) async fn new_session(
        &self,
        change: &mut store::Change,
        user: &UserRow,
        kind: SessionKind,
        address: IpAddr,
        by: Option<SignedOnBy>,
    ) -> Result<NewSession> {
        let secret = Secret::random();
        let now = self.now();
        let (provider, authentication, id_token) = match by {
            Some(by) => (Some(by.provider), Some(by.authentication), by.id_token),
            None => (None, None, None),
        };
        let row = SessionRow {
            digest: secret.digest(),
            user_id: user.id.clone(),
            kind: kind.as_str().to_owned(),
            address: address.to_string(),
            signed_in_at: now,
            last_used_at: now,
            expires_at: now + ABSOLUTE_MS,
            provider,
            authentication,
            id_token,
        };
        store::add_session(change, &row).await?;
        let expires_at = row.expires_at;
        Ok(NewSession {
            secret,
            actor: actor(row, user.clone(), kind),
            expires_at,
        })
    }

    /// Who presents this secret. Every request asks anew, so that a disabled user is out at once.
    ///
    /// # Errors
    /// [`Error::SignInFirst`] if the session is unknown, of another kind, over or its user disabled.
    pub async fn authenticate(&self, secret: &Secret, kind: SessionKind) -> Result<Actor> {
        let digest = secret.digest();
        let Some((session, user)) = self.store.session(&digest).await? else {
            return Err(Error::SignInFirst);
        };
        let now = self.now();
        if session.kind != kind.as_str() || !holds(&session, &user, now) {
            return Err(Error::SignInFirst);
        }
        if now - session.last_used_at >= TOUCH_MS {
            let mut change = self.store.change().await?;
            store::touch_session(&mut change, &digest, now).await?;
            change.commit().await?;
        }
        Ok(actor(session, user, kind))
    }

    /// Whether a session that was authenticated earlier still holds, for streams; does not count as use.
    pub async fn still_signed_in(&self, actor: &Actor) -> Result<bool> {
        let digest = match &actor.credential {
            Credential::Session(digest) => digest,
            Credential::Key(digest) => return self.key_holds(digest).await,
        };
        let found = self.store.session(digest).await?;
        let now = self.now();
        Ok(found.is_some_and(|(session, user)| holds(&session, &user, now)))
    }

    /// Ends this session; answers where a browser can sign out at its identity provider too.
    pub async fn sign_out(&self, actor: &Actor) -> Result<Option<url::Url>> {
        let Credential::Session(digest) = &actor.credential else {
            return Err(Error::conflict(
                "no-session",
                "a key has no session; it ends when it is revoked or expires",
            ));
        };
        let session = self.store.session(digest).await?;
        let mut change = self.store.change().await?;
        store::end_session(&mut change, digest).await?;
        change.commit().await?;
        self.notify.sessions_ended();
        let Some((session, _)) = session else { return Ok(None) };
        Ok(match session.provider.and_then(|name| self.provider(&name).ok()) {
            Some(provider) => provider.logout(session.id_token.as_deref()).await,
            None => None,
        })
    }

    /// Makes the first administrator. Works once: the secret is spent in the same change.
    pub async fn set_up(&self, body: &SetupBody, kind: SessionKind, address: IpAddr) -> Result<NewSession> {
        let failed = || {
            Error::SignInFailed(format!(
                "the set-up link is wrong, spent or expired; the current one is in the file {SETUP_FILE} of the data directory"
            ))
        };
        if self.store.has_users().await? {
            return Err(Error::conflict(
                "already-set-up",
                "the first administrator exists already; sign in",
            ));
        }
        self.attempt_from(address)?;
        if let Err(seconds) = self.throttle.attempt("setup", address, self.now()) {
            return Err(Error::TooMany { seconds });
        }
        let secret = Secret::parse(&body.secret).ok_or_else(failed)?;
        let username = names::username(&body.username)?;
        let password = self.passwords.hash(&username, &body.password).await?;
        let mut change = self.store.change().await?;
        let now = self.now();
        if store::has_users(&mut change).await? || !store::take_setup(&mut change, &secret.digest(), now).await? {
            return Err(failed());
        }
        let user = UserRow {
            id: Ulid::new().to_string(),
            who: local(&username),
            username,
            service: false,
            password: Some(password),
            display_name: String::new(),
            email: String::new(),
            roles: vec![Role::Administrator],
            groups: Vec::new(),
            created_at: now,
            created_by: None,
            disabled_at: None,
        };
        store::add_user(&mut change, &user).await?;
        let made = Change::SetUpFinished {
            user: user_facts(&user),
        };
        self.record_change(&mut change, ChangedBy::SetupLink, made, None)
            .await?;
        let session = self.new_session(&mut change, &user, kind, address, None).await?;
        change.commit().await?;
        self.throttle.succeeded("setup", address);
        self.dir.remove(SETUP_FILE)?;
        self.notify.changed();
        tracing::info!(user = %user.username, %address, "set up: first administrator made");
        Ok(session)
    }

    pub async fn needs_setup(&self) -> Result<bool> {
        Ok(!self.store.has_users().await?)
    }

    /// While there is no user: a set-up link that holds, in a file that only our user can read.
    pub(super) async fn keep_setup_link(&self) -> Result<()> {
        if self.store.has_users().await? {
            return Ok(());
        }
        let now = self.now();
        let held = self
            .store
            .setup_expires_at()
            .await?
            .is_some_and(|expires_at| expires_at > now);
        if held && self.dir.read(SETUP_FILE)?.is_some() {
            return Ok(());
        }
        let secret = Secret::random();
        let link = format!("{}/setup#{}\n", self.config.web_url(), secret.reveal());
        let mut change = self.store.change().await?;
        store::set_setup(&mut change, &secret.digest(), now + SETUP_MS).await?;
        change.commit().await?;
        self.dir.write(SETUP_FILE, Readers::Owner, link.as_bytes())?;
        tracing::info!(
            file = %self.dir.path(SETUP_FILE).display(),
            expires_at = %rfc3339(now + SETUP_MS),
            "to make the first administrator open the link in this file"
        );
        Ok(())
    }

    pub(super) async fn forget_stale_sessions(&self) -> Result<()> {
        let now = self.now();
        let mut change = self.store.change().await?;
        store::forget_sessions(&mut change, now, now - IDLE_MS).await?;
        change.commit().await?;
        Ok(())
    }
}

/// Neither over nor left alone for too long, and its user may still sign in.
pub(super) fn holds(session: &SessionRow, user: &UserRow, now: Millis) -> bool {
    now < session.expires_at && now < session.last_used_at + IDLE_MS && user.disabled_at.is_none()
}

fn actor(session: SessionRow, user: UserRow, kind: SessionKind) -> Actor {
    Actor {
        user_id: user.id,
        username: user.username,
        who: user.who,
        display_name: user.display_name,
        roles: user.roles,
        groups: user.groups,
        credential: Credential::Session(session.digest),
        signed_in_at: session.signed_in_at,
        provider: session.provider,
        authentication: session.authentication,
        channel: kind.as_str(),
    }
}
