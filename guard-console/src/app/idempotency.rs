//! The same call twice is one: what was answered under an `Idempotency-Key` is answered again.
//!
//! Owns for how long, how many, and what is kept. Answers can have secrets in them (keys, tokens), so they are encrypted under a key
//! that is made of the caller's: the database has only a digest of that, and opens none of them. It must never carry out a call
//! again of which it is not known whether it was carried out.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use sha2::{Digest as _, Sha256};

use super::{Actor, App, Error, Result};
use crate::store::{self, IdempotentRow};
use crate::time::Millis;

const KEPT_MS: Millis = 24 * 3_600_000;
/// Keys that one account may have used within that time.
const MOST: u64 = 1_000;

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// Of the body.
    pub kind: Option<String>,
    pub body: Vec<u8>,
}

/// The right to carry a call out, until [`App::settle`].
#[derive(Debug)]
pub struct Claim {
    user_id: String,
    key: String,
    digest: String,
}

#[derive(Debug)]
pub enum Attempt {
    First(Claim),
    Again(Answer),
}

impl App {
    /// Takes `key` for a call that is recognised by `fingerprint`.
    ///
    /// # Errors
    /// [`Error::Reused`] for another call; [`Error::Conflict`] while the first runs, or when it was interrupted.
    pub async fn claim(&self, actor: &Actor, key: &str, fingerprint: &str) -> Result<Attempt> {
        let claim = Claim {
            user_id: actor.user_id.clone(),
            key: key.to_owned(),
            digest: hex::encode(hashed("key", &actor.user_id, key)),
        };
        let now = self.now();
        let mut change = self.store.change().await?;
        let found = store::idempotent(&mut change, &claim.user_id, &claim.digest).await?;
        if let Some(found) = found.filter(|found| found.at > now - KEPT_MS) {
            return claim.earlier(&found, fingerprint).map(Attempt::Again);
        }
        store::forget_idempotent(&mut change, now - KEPT_MS).await?;
        let (count, oldest) = store::count_idempotent(&mut change, &claim.user_id).await?;
        if count >= MOST {
            let seconds = (oldest + KEPT_MS - now).max(1_000) / 1_000;
            return Err(Error::TooMany {
                seconds: seconds.unsigned_abs(),
            });
        }
        store::add_idempotent(&mut change, &claim.user_id, &claim.digest, fingerprint, now).await?;
        change.commit().await?;
        Ok(Attempt::First(claim))
    }

    /// Keeps what was answered. A call that was not even tried may be sent again.
    pub async fn settle(&self, claim: &Claim, answer: &Answer) -> Result<()> {
        let mut change = self.store.change().await?;
        // Not signed in any more, too slow, too many, busy.
        if matches!(answer.status, 401 | 408 | 429 | 503) {
            store::drop_idempotent(&mut change, &claim.user_id, &claim.digest).await?;
        } else {
            let sealed = claim.seal(&answer.body)?;
            let kind = answer.kind.as_deref();
            store::answer_idempotent(&mut change, &claim.user_id, &claim.digest, answer.status, kind, &sealed).await?;
        }
        change.commit().await?;
        Ok(())
    }

    /// What is older than a day. Called every few seconds.
    pub(super) async fn forget_answers(&self) -> Result<()> {
        let mut change = self.store.change().await?;
        store::forget_idempotent(&mut change, self.now() - KEPT_MS).await?;
        change.commit().await?;
        Ok(())
    }
}

impl Claim {
    fn earlier(&self, found: &IdempotentRow, fingerprint: &str) -> Result<Answer> {
        if found.fingerprint != fingerprint {
            return Err(Error::Reused);
        }
        match (found.status, &found.sealed) {
            (Some(status), Some(sealed)) => Ok(Answer {
                status,
                kind: found.kind.clone(),
                body: self.open(sealed)?,
            }),
            _ => Err(Error::conflict(
                "still-running",
                "the first call with this Idempotency-Key still runs, or was interrupted: look whether it was carried out before you \
                 send it with another key",
            )),
        }
    }

    fn cipher(&self) -> Result<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM, &hashed("answer", &self.user_id, &self.key)).map_err(damaged)?;
        Ok(LessSafeKey::new(key))
    }

    /// The nonce, and then what is encrypted.
    fn seal(&self, body: &[u8]) -> Result<Vec<u8>> {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut sealed = body.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(&self.digest),
                &mut sealed,
            )
            .map_err(damaged)?;
        Ok([&nonce[..], &sealed].concat())
    }

    fn open(&self, sealed: &[u8]) -> Result<Vec<u8>> {
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE_LEN>()
            .ok_or_else(|| damaged("short"))?;
        let mut body = sealed.to_vec();
        let opened = self
            .cipher()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(&self.digest), &mut body)
            .map_err(damaged)?;
        Ok(opened.to_vec())
    }
}

fn damaged(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("a kept answer: {error}"))
}

/// Two uses of one key have nothing in common.
fn hashed(what: &str, user_id: &str, key: &str) -> [u8; 32] {
    Sha256::digest(format!("guard idempotency {what}\0{user_id}\0{key}")).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_key_of_the_same_account_opens_an_answer() {
        let claim = |user: &str, key: &str| Claim {
            user_id: user.to_owned(),
            key: key.to_owned(),
            digest: "d".to_owned(),
        };
        let ours = claim("ann", "8e03978e-40d5-43e8-bc93-6894a57f9324");
        let sealed = ours.seal(b"guardkey_secret").unwrap();
        assert!(!sealed.windows(8).any(|part| part == b"guardkey"));
        assert_eq!(ours.open(&sealed).unwrap(), b"guardkey_secret");
        assert_ne!(sealed, ours.seal(b"guardkey_secret").unwrap());
        for other in [claim("bob", &ours.key), claim("ann", "another key, long enough")] {
            other.open(&sealed).unwrap_err();
        }
        ours.open(&sealed[..5]).unwrap_err();
    }
}
