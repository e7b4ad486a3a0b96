//! Who is signed in now: sessions as people see and end them.
//!
//! Owns whose sessions somebody may see and end: their own, and, for who manages accounts, everybody's. It must never show a
//! session's secret; the beginning of its digest names it.

use guard_evidence::change::Change;
use guard_proto::rest::SessionView;

use super::actor::Credential;
use super::changes::{token_name, user_facts};
use super::{Actor, App, Error, Permission, Result};
use crate::store::{self, SessionRow, UserRow};
use crate::time::rfc3339;

impl App {
    /// Newest first: one's own, or everybody's.
    pub async fn signed_in(&self, actor: &Actor, everybody: bool) -> Result<Vec<SessionView>> {
        if everybody {
            actor.require(Permission::SeeUsers)?;
        }
        let whose = (!everybody).then_some(actor.user_id.as_str());
        let sessions = self.store.sessions(whose).await?;
        let now = self.now();
        Ok(sessions
            .into_iter()
            .filter(|(session, user)| super::sessions::holds(session, user, now))
            .map(|(session, user)| view(actor, session, user))
            .collect())
    }

    /// Ends one session, its streams included. Whoever ends somebody else's leaves a record.
    pub async fn end_session(&self, actor: &Actor, id: &str) -> Result<()> {
        let mut change = self.store.change().await?;
        let found = store::session_in(&mut change, id).await?;
        let own = |user: &UserRow| user.id == actor.user_id;
        // What somebody may not see is not there.
        let (session, user) = found
            .filter(|(_, user)| own(user) || actor.may(Permission::ManageUsers))
            .ok_or_else(|| Error::not_found("session", id))?;
        store::end_session(&mut change, &session.digest).await?;
        if !own(&user) {
            let ended = Change::SessionsEnded {
                user: user_facts(&user),
                count: 1,
            };
            self.record_change(&mut change, actor.as_changer(), ended, None).await?;
        }
        change.commit().await?;
        tracing::info!(user = %user.username, by = %actor.username, "session ended");
        self.notify.sessions_ended();
        self.notify.changed();
        Ok(())
    }

    /// Ends every session of somebody. How many there were.
    pub async fn end_sessions_of(&self, actor: &Actor, username: &str) -> Result<u64> {
        actor.require(Permission::ManageUsers)?;
        let mut change = self.store.change().await?;
        let user = store::user_in(&mut change, username)
            .await?
            .ok_or_else(|| Error::not_found("user", username))?;
        let count = store::end_sessions_of(&mut change, &user.id).await?;
        if count > 0 && user.id != actor.user_id {
            let ended = Change::SessionsEnded {
                user: user_facts(&user),
                count,
            };
            self.record_change(&mut change, actor.as_changer(), ended, None).await?;
        }
        change.commit().await?;
        tracing::info!(user = %user.username, by = %actor.username, count, "sessions ended");
        self.notify.sessions_ended();
        self.notify.changed();
        Ok(count)
    }
}

fn view(actor: &Actor, session: SessionRow, user: UserRow) -> SessionView {
    SessionView {
        current: matches!(&actor.credential, Credential::Session(digest) if *digest == session.digest),
        id: token_name(&session.digest),
        username: user.username,
        kind: session.kind,
        address: session.address,
        signed_in_at: rfc3339(session.signed_in_at),
        last_used_at: rfc3339(session.last_used_at),
        expires_at: rfc3339(session.expires_at),
        provider: session.provider,
        methods: session.authentication.map(|how| how.methods).unwrap_or_default(),
    }
}
