//! Hosts: joining with a token, renewing, being seen, being revoked.

use guard_evidence::change::{Change, ChangedBy};
use guard_evidence::enforcement::{Enforcement, Reader};
use guard_evidence::key::PublicKey;
use guard_evidence::text::visible_fold;
use guard_proto::rest::{Host, NewToken, Token};
use guard_proto::v1;
use time::OffsetDateTime;
use ulid::Ulid;

use super::changes::{name_beside, stored_statement, token_name};
use super::{Actor, App, Error, Permission, Result, names};
use crate::auth::secret::Secret;
use crate::notify::Presence;
use crate::store::{self, HostHello, HostRow, NewHost, Purpose};
use crate::time::{Millis, rfc3339};

const TOKEN_SECONDS: std::ops::RangeInclusive<u64> = 60..=604_800;
const TOKEN_DEFAULT_SECONDS: u64 = 3_600;
/// A host that was not heard for this long is offline even if its connection stands.
const OFFLINE_MS: Millis = 60_000;
/// Of what a host says of itself, in characters.
const WORDS: usize = 128;
const MAX_LABELS: usize = 1_000;
/// How far back enforcement is told, and by how many records.
const ENFORCEMENT_MS: Millis = 7 * 24 * 3_600_000;
const ENFORCEMENT_RECORDS: u64 = 5_000;

impl App {
    pub async fn hosts(&self, actor: &Actor) -> Result<Vec<Host>> {
        actor.require(Permission::SeeHosts)?;
        Ok(self
            .store
            .hosts()
            .await?
            .into_iter()
            .map(|host| self.host_view(host))
            .collect())
    }

    pub async fn host(&self, actor: &Actor, id: &str) -> Result<Host> {
        actor.require(Permission::SeeHosts)?;
        let host = self.store.host(id).await?.ok_or_else(|| Error::not_found("host", id))?;
        Ok(self.host_view(host))
    }

    fn host_view(&self, host: HostRow) -> Host {
        let presence = self.notify.stream(&host.id).map(|stream| stream.presence());
        let online = presence.is_some_and(|p| self.now() - p.seen_at < OFFLINE_MS);
        let state = match (host.revoked_at, online) {
            (Some(_), _) => "revoked",
            (None, true) => "online",
            (None, false) => "offline",
        };
        Host {
            id: host.id,
            name: host.name,
            state: state.to_owned(),
            agent_version: host.agent_version,
            kernel: host.kernel,
            policy_digest: host.policy_digest,
            enforcing: presence.map_or(host.enforcing, |p| p.enforcing),
            enforcing_since: host.enforcing_since.map(rfc3339),
            last_seen: presence.map(|p| p.seen_at).or(host.last_seen).map(rfc3339),
            enrolled_at: rfc3339(host.enrolled_at),
            certificate_expires_at: rfc3339(host.certificate_expires_at),
            lost_events: presence.map_or(host.lost_events, |p| p.lost_events),
            labels: host.labels,
        }
    }

    /// From when to when enforcement was on in the last days, by the host's own records.
    pub async fn enforcement(&self, actor: &Actor, id: &str) -> Result<Enforcement> {
        actor.require(Permission::SeeHosts)?;
        let host = self.store.host(id).await?.ok_or_else(|| Error::not_found("host", id))?;
        let from = self.now() - ENFORCEMENT_MS;
        let mut reader = Reader::default();
        for envelope in self.store.lifecycle(&host.id, from, ENFORCEMENT_RECORDS).await? {
            let statement = stored_statement(&envelope)?;
            if let Some(header) = statement.header() {
                reader.read(header, &statement);
            }
        }
        Ok(reader.finish())
    }

    /// Cuts the host off at once; its open streams end.
    pub async fn revoke_host(&self, actor: &Actor, id: &str) -> Result<()> {
        actor.require(Permission::RevokeHosts)?;
        let mut change = self.store.change().await?;
        let host = store::host_in(&mut change, id)
            .await?
            .ok_or_else(|| Error::not_found("host", id))?;
        if !store::revoke_host(&mut change, id, &actor.username, self.now()).await? {
            return Ok(());
        }
        let revoked = Change::HostRevoked {
            host_id: host.id,
            name: host.name,
        };
        self.record_change(&mut change, actor.as_changer(), revoked, None)
            .await?;
        change.commit().await?;
        tracing::info!(host = %id, by = %actor.username, "host revoked");
        self.notify.revoked(id);
        self.notify.host_changed(id);
        self.notify.changed();
        Ok(())
    }

    pub async fn create_token(&self, actor: &Actor, body: &NewToken) -> Result<Token> {
        actor.require(Permission::CreateTokens)?;
        let seconds = body.expires_in.unwrap_or(TOKEN_DEFAULT_SECONDS);
        if !TOKEN_SECONDS.contains(&seconds) {
            return Err(Error::Invalid(format!(
                "expires_in: {} to {} seconds, not {seconds}",
                TOKEN_SECONDS.start(),
                TOKEN_SECONDS.end()
            )));
        }
        let description = names::free_text("a description", &body.description, 500)?;
        let secret = Secret::random();
        let now = self.now();
        let expires_at = now + Millis::try_from(seconds).unwrap_or(0) * 1_000;
        let mut change = self.store.change().await?;
        store::add_token(
            &mut change,
            &secret.digest(),
            &description,
            &actor.username,
            now,
            expires_at,
        )
        .await?;
        let made = Change::TokenCreated {
            token: token_name(&secret.digest()),
            description,
            expires_at: rfc3339(expires_at),
        };
        self.record_change(&mut change, actor.as_changer(), made, None).await?;
        change.commit().await?;
        self.notify.changed();
        tracing::info!(by = %actor.username, expires_at = %rfc3339(expires_at), "enrolment token made");
        let token = format!(
            "guard1.{}.{}.{}",
            self.config.host_address(),
            self.authority.fingerprint(),
            secret.reveal()
        );
        Ok(Token {
            token,
            expires_at: rfc3339(expires_at),
        })
    }

    /// Lets a host join. The token is spent in the same change that makes the host, so it never makes two.
    pub async fn enroll(&self, request: &v1::EnrollRequest) -> Result<v1::EnrollReply> {
        let refused = || {
            Error::SignInFailed(
                "the enrolment token is wrong, spent or expired; make a new one with: guard tokens create".to_owned(),
            )
        };
        let secret = secret_of(&request.token).ok_or_else(refused)?;
        let key = PublicKey::from_der(&request.evidence_public_key)
            .map_err(|e| Error::Invalid(format!("evidence_public_key: {e}")))?;
        let host_id = Ulid::new().to_string();
        // Checks the request's own signature before the token is spent on it.
        let issued = self
            .authority
            .issue_host(&request.csr_pem, &host_id, OffsetDateTime::now_utc())?;
        let now = self.now();
        let mut change = self.store.change().await?;
        let by = store::spend_token(&mut change, &secret.digest(), &host_id, now)
            .await?
            .ok_or_else(refused)?;
        let wanted = names::host(&request.hostname);
        let mut name = wanted.clone();
        let mut number = 2;
        while store::host_name_taken(&mut change, &name).await? {
            name = format!("{wanted}-{number}");
            number += 1;
        }
        let host = NewHost {
            id: &host_id,
            name: &name,
            machine_id: &visible_fold(&request.machine_id, WORDS),
            evidence_key: &key.to_der(),
            agent_version: &visible_fold(&request.agent_version, WORDS),
            at: now,
            by: &by,
            certificate_expires_at: issued.not_after_ms,
        };
        store::add_host(&mut change, &host).await?;
        store::add_evidence_key(&mut change, &host_id, &key).await?;
        let joined = Change::HostJoined {
            host_id: host_id.clone(),
            name: name.clone(),
            evidence_key: key.id(),
        };
        let made_by = self.who(&mut change, &by).await?;
        let with = ChangedBy::Token {
            token: token_name(&secret.digest()),
            name: name_beside(&made_by, &by),
            made_by,
        };
        self.record_change(&mut change, with, joined, None).await?;
        change.commit().await?;
        self.notify.changed();
        tracing::info!(host = %name, id = %host_id, token_by = %by, "host joined");
        self.notify.host_changed(&host_id);
        Ok(v1::EnrollReply {
            hostname: name,
            certificate_chain_pem: issued.chain_pem,
            ca_pem: self.authority.pem().to_owned(),
            decision_public_key: self.decision_key.public().to_der(),
            log_origin: self.log.origin().to_owned(),
            log_public_key: self.log_public_key(),
            host_id,
        })
    }

    /// How a key became what it is, for hosts that know an earlier one.
    pub async fn key_statements(&self, purpose: Purpose) -> Result<Vec<Vec<u8>>> {
        Ok(self.store.key_statements(purpose).await?)
    }

    /// PKIX, DER: what hosts pin.
    #[must_use]
    pub fn log_public_key(&self) -> Vec<u8> {
        self.log.key().public().to_der()
    }

    /// A host that may talk to us now: known and not revoked.
    ///
    /// # Errors
    /// [`Error::Forbidden`] otherwise.
    pub async fn admitted_host(&self, host_id: &str) -> Result<HostRow> {
        let host = self.store.host(host_id).await?;
        let host = host.ok_or_else(|| {
            Error::Forbidden("this console does not know this host; enrol it again with a new token".to_owned())
        })?;
        if host.revoked_at.is_some() {
            return Err(Error::Forbidden("this host was revoked by an administrator".to_owned()));
        }
        Ok(host)
    }

    pub async fn renew(&self, host: &HostRow, csr_pem: &str) -> Result<String> {
        let issued = self
            .authority
            .issue_host(csr_pem, &host.id, OffsetDateTime::now_utc())?;
        let mut change = self.store.change().await?;
        store::set_certificate_expiry(&mut change, &host.id, issued.not_after_ms).await?;
        change.commit().await?;
        tracing::info!(host = %host.name, until = %rfc3339(issued.not_after_ms), "host certificate renewed");
        Ok(issued.chain_pem)
    }

    /// First message of a stream.
    pub async fn hello(&self, host: &HostRow, hello: &v1::Hello) -> Result<Presence> {
        let now = self.now();
        let mut labels: Vec<String> = hello
            .labels
            .iter()
            .filter(|l| guard_proto::limits::is_label(l))
            .take(MAX_LABELS)
            .cloned()
            .collect();
        labels.sort();
        labels.dedup();
        let row = HostHello {
            agent_version: &visible_fold(&hello.agent_version, WORDS),
            kernel: &visible_fold(&hello.kernel_release, WORDS),
            boot_id: &visible_fold(&hello.boot_id, WORDS),
            policy_digest: &visible_fold(&hello.policy_digest, WORDS),
            labels: &labels,
            enforcing: hello.enforcing,
            enforcing_since: (hello.enforcing_since_ms > 0).then_some(hello.enforcing_since_ms),
            at: now,
        };
        let mut change = self.store.change().await?;
        store::set_hello(&mut change, &host.id, &row).await?;
        change.commit().await?;
        self.notify.host_changed(&host.id);
        Ok(Presence {
            seen_at: now,
            enforcing: hello.enforcing,
            lost_events: host.lost_events,
            ahead_ms: 0,
            dirty: false,
        })
    }

    /// A host's stream is gone.
    pub async fn stream_closed(&self, host_id: &str, presence: Presence) -> Result<()> {
        let mut change = self.store.change().await?;
        store::set_seen(
            &mut change,
            host_id,
            presence.seen_at,
            presence.enforcing,
            presence.lost_events,
        )
        .await?;
        change.commit().await?;
        self.notify.host_changed(host_id);
        Ok(())
    }

    pub(super) async fn write_down_presence(&self) -> Result<()> {
        let dirty = self.notify.take_dirty();
        if dirty.is_empty() {
            return Ok(());
        }
        let mut change = self.store.change().await?;
        for (id, p) in dirty {
            store::set_seen(&mut change, &id, p.seen_at, p.enforcing, p.lost_events).await?;
        }
        change.commit().await?;
        Ok(())
    }
}

/// The secret part; a whole token is fine too.
fn secret_of(token: &str) -> Option<Secret> {
    Secret::parse(token.rsplit('.').next()?)
}
