//! The console from outside: real TLS on loopback, real files, hosts as they connect.
#![expect(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail the test")]

mod access;
mod accounts;
mod answers;
mod attacks;
mod authorisation;
mod calls;
mod changes;
mod grants;
mod hosts;
mod keys;
mod log;
mod openapi;
mod ownership;
mod pages;
mod records;
mod siem;
mod support;
mod upgrades;
mod webhooks;
