//! One attempt to sign in by an identity provider, kept by the browser that began it.
//!
//! Owns the cookie of the attempt. State, nonce and PKCE verifier follow from its secret and the provider's name, so the
//! console keeps nothing for people who have not signed in. It must never accept an answer for another provider, another
//! browser or a later day.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

use crate::auth::secret::Secret;
use crate::time::Millis;

/// `__Host-`: no other site, sub-domain or plain HTTP can plant it.
pub const COOKIE: &str = "__Host-guard-oidc";
/// How long somebody may take at the provider.
pub const LASTS_MS: Millis = 10 * 60_000;
const NEXT_BYTES: usize = 1_024;

/// Who began to sign in, and where they wanted to go.
#[derive(Debug)]
pub struct Attempt {
    secret: Secret,
    begun: Millis,
    next: String,
}

impl Attempt {
    #[must_use]
    pub fn begin(next: &str, now: Millis) -> Self {
        Self {
            secret: Secret::random(),
            begun: now,
            next: if next.len() <= NEXT_BYTES { next } else { "/" }.to_owned(),
        }
    }

    /// What the browser keeps.
    #[must_use]
    pub fn cookie(&self) -> String {
        let next = URL_SAFE_NO_PAD.encode(&self.next);
        format!("{}.{}.{next}", self.secret.reveal(), self.begun)
    }

    /// `None`: it is none of ours, or too old.
    #[must_use]
    pub fn parse(cookie: &str, now: Millis) -> Option<Self> {
        let mut parts = cookie.splitn(3, '.');
        let secret = Secret::parse(parts.next()?)?;
        let begun: Millis = parts.next()?.parse().ok()?;
        let next = String::from_utf8(URL_SAFE_NO_PAD.decode(parts.next()?).ok()?).ok()?;
        let fresh = begun <= now && now.checked_sub(begun)? < LASTS_MS;
        (fresh && next.len() <= NEXT_BYTES).then_some(Self { secret, begun, next })
    }

    /// Where to go afterwards; whoever goes there checks it once more.
    #[must_use]
    pub fn next(&self) -> &str {
        &self.next
    }

    #[must_use]
    pub fn state(&self, provider: &str) -> String {
        self.derived("state", provider)
    }

    #[must_use]
    pub fn nonce(&self, provider: &str) -> String {
        self.derived("nonce", provider)
    }

    /// PKCE: 43 characters.
    #[must_use]
    pub fn verifier(&self, provider: &str) -> String {
        self.derived("verifier", provider)
    }

    #[must_use]
    pub fn has_state(&self, provider: &str, given: &str) -> bool {
        bool::from(self.state(provider).as_bytes().ct_eq(given.as_bytes()))
    }

    fn derived(&self, what: &str, provider: &str) -> String {
        let digest = Sha256::new()
            .chain_update(format!("guard oidc {what} v1\0{provider}\0"))
            .chain_update(self.secret.reveal().as_bytes())
            .finalize();
        URL_SAFE_NO_PAD.encode(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_belongs_to_one_browser_and_one_provider() {
        let attempt = Attempt::begin("/requests/1?a=b", 1_000);
        let read = Attempt::parse(&attempt.cookie(), 2_000).unwrap();
        assert_eq!(read.next(), "/requests/1?a=b");
        assert!(read.has_state("okta", &attempt.state("okta")));
        for other in [
            attempt.state("entra"),
            attempt.nonce("okta"),
            Attempt::begin("/", 1_000).state("okta"),
            String::new(),
        ] {
            assert!(!read.has_state("okta", &other), "{other}");
        }
        assert_eq!(read.verifier("okta").len(), 43);
        assert_ne!(read.verifier("okta"), read.nonce("okta"));
        assert!(!format!("{read:?}").contains(read.secret.reveal()));
    }

    #[test]
    fn what_is_old_or_not_ours_is_none() {
        let cookie = Attempt::begin("/", 1_000).cookie();
        assert!(Attempt::parse(&cookie, 1_000 + LASTS_MS - 1).is_some());
        assert!(Attempt::parse(&cookie, 1_000 + LASTS_MS).is_none());
        assert!(Attempt::parse(&cookie, 999).is_none(), "from the future");
        let secret = &cookie[..43];
        for bad in [
            "",
            "..",
            secret,
            &format!("{secret}.1000"),
            &format!("{secret}.x.Lw"),
            &format!("{secret}.-9223372036854775808.Lw"),
            &format!("{secret}.1000.%"),
            &format!("{secret}.1000.{}", URL_SAFE_NO_PAD.encode([0xff])),
            &format!("{secret}.1000.{}", URL_SAFE_NO_PAD.encode("/".repeat(2_000))),
        ] {
            assert!(Attempt::parse(bad, 1_000).is_none(), "{bad}");
        }
        assert_eq!(Attempt::begin(&"/".repeat(2_000), 0).next(), "/");
    }
}
