//! Records, DSSE, the log and the verifier: evidence that an auditor checks without trusting us.
//!
//! Owns every byte format of evidence. It is given observations and keys and makes envelopes, proofs and verdicts on
//! bundles. It must never touch the network, start a runtime or read a clock by itself.
#![forbid(unsafe_code)]

pub mod alarm;
pub mod bundle;
pub mod chain;
pub mod change;
pub mod checkpoint;
pub mod context;
pub mod cosign;
pub mod dsse;
pub mod enforcement;
pub mod files;
pub mod folder;
pub mod grant;
pub mod key;
pub mod merkle;
pub mod nodes;
pub mod ocsf;
pub mod record;
pub mod spool;
pub mod statement;
#[cfg(test)]
mod testing;
pub mod text;
pub mod tile;
pub mod trust;
pub mod verify;
pub mod witness;
pub mod writing;

pub use rand_core;
