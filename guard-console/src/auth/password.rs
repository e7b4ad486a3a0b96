//! Passwords: argon2id, off the async threads, a few at a time.
//!
//! Owns the cost and the rules for a good one. A login for a name that does not exist takes as long as one that does.

use std::sync::{Arc, OnceLock};

use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use rand::rngs::OsRng;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

pub const MIN_CHARACTERS: usize = 12;
/// Long phrases are welcome; megabytes are not.
pub const MAX_BYTES: usize = 1_024;
/// At once; each takes 19 MiB.
const CONCURRENT: usize = 2;
/// Waiting for their turn; more are told to come back.
const WAITING: usize = 32;

#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    #[error("a password has at least {MIN_CHARACTERS} characters")]
    Short,
    #[error("a password has at most {MAX_BYTES} bytes")]
    Long,
    #[error("a password is not the user name")]
    IsName,
    #[error("too many people sign in at the same time; try again in a few seconds")]
    Busy,
    #[error("password hashing failed: {0}")]
    Hash(String),
}

/// Hashes and checks passwords.
#[derive(Debug, Clone)]
pub struct Passwords {
    turns: Arc<Semaphore>,
    queue: Arc<Semaphore>,
}

impl Default for Passwords {
    fn default() -> Self {
        Self {
            turns: Arc::new(Semaphore::new(CONCURRENT)),
            queue: Arc::new(Semaphore::new(WAITING)),
        }
    }
}

/// OWASP's second profile (19 MiB, 2 passes), the crate's default, written out so that an upgrade changes nothing.
fn argon2() -> Argon2<'static> {
    let params = Params::new(19_456, 2, 1, None).unwrap_or_default();
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash(password: &str) -> Result<String, PasswordError> {
    let salt = SaltString::generate(&mut OsRng);
    let hash = argon2().hash_password(password.as_bytes(), &salt);
    hash.map(|h| h.to_string())
        .map_err(|e| PasswordError::Hash(e.to_string()))
}

/// Compared with when there is no such user.
fn nobody() -> &'static str {
    static NOBODY: OnceLock<String> = OnceLock::new();
    NOBODY.get_or_init(|| hash("nobody has this password").unwrap_or_default())
}

impl Passwords {
    /// Checks the rules and hashes, as a PHC string.
    pub async fn hash(&self, username: &str, password: &str) -> Result<String, PasswordError> {
        if password.chars().count() < MIN_CHARACTERS {
            return Err(PasswordError::Short);
        }
        if password.len() > MAX_BYTES {
            return Err(PasswordError::Long);
        }
        if password.eq_ignore_ascii_case(username) {
            return Err(PasswordError::IsName);
        }
        let password = Zeroizing::new(password.to_owned());
        self.in_turn(move || hash(&password)).await?
    }

    /// Whether the password belongs to the stored hash; `None` costs as much time and is false.
    pub async fn verify(&self, stored: Option<String>, password: &str) -> Result<bool, PasswordError> {
        if password.len() > MAX_BYTES {
            return Ok(false);
        }
        let password = Zeroizing::new(password.to_owned());
        self.in_turn(move || {
            let known = stored.is_some();
            let stored = stored.unwrap_or_else(|| nobody().to_owned());
            let stored = PasswordHash::new(&stored).map_err(|e| PasswordError::Hash(e.to_string()))?;
            Ok(argon2().verify_password(password.as_bytes(), &stored).is_ok() && known)
        })
        .await?
    }

    async fn in_turn<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, PasswordError> {
        let _place = self.queue.try_acquire().map_err(|_| PasswordError::Busy)?;
        let turn = self
            .turns
            .clone()
            .acquire_owned()
            .await
            .map_err(|_| PasswordError::Busy)?;
        let work = tokio::task::spawn_blocking(move || {
            // Held by the work itself: a caller who hangs up does not make room for another.
            let _turn = turn;
            work()
        });
        work.await.map_err(|e| PasswordError::Hash(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn hash_and_verify() {
        let passwords = Passwords::default();
        let stored = passwords.hash("alice", "correct horse battery").await.unwrap();
        assert!(stored.starts_with("$argon2id$"));
        assert!(
            passwords
                .verify(Some(stored.clone()), "correct horse battery")
                .await
                .unwrap()
        );
        assert!(!passwords.verify(Some(stored), "correct horse batterz").await.unwrap());
        assert!(!passwords.verify(None, "nobody has this password").await.unwrap());
        assert!(matches!(
            passwords.hash("alice", "short").await,
            Err(PasswordError::Short)
        ));
        assert!(matches!(
            passwords.hash("alice.in.chains", "Alice.in.chains").await,
            Err(PasswordError::IsName)
        ));
        assert!(matches!(
            passwords.hash("alice", &"x".repeat(2_000)).await,
            Err(PasswordError::Long)
        ));
    }
}
