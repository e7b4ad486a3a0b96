//! The Guard agent: holds labelled workloads' actions, asks people, enforces and records.
//!
//! Owns the host side of Guard. It is given the kernel's questions, a policy and a console's signed decisions. It must
//! never let an action through without a verdict of the policy or of people, and never without a record of it.
#![deny(unsafe_code)]

pub mod approval;
pub mod clock;
pub mod config;
pub mod console;
pub mod control;
pub mod daemon;
pub mod enforce;
pub mod engine;
pub mod enrich;
pub mod enroll;
pub mod evidence;
mod files;
pub mod identity;
#[expect(unsafe_code, reason = "ptrace, BPF maps and signals; the audited place")]
pub mod kernel;
pub mod labels;
pub mod logging;
pub mod policy;
pub mod protect;
pub mod redact;
pub mod status;
#[cfg(test)]
mod testing;
pub mod watch;
