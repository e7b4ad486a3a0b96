//! Proofs of who somebody is: passwords, secrets and the brake on guessing them.
//!
//! Owns hashing and comparing. It is given what was typed and stored digests; it must never keep, log or compare a
//! secret in the clear.

pub mod oidc;
pub mod password;
pub mod rate;
pub mod secret;
pub mod throttle;
