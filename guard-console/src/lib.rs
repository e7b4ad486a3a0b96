//! The central console: where people approve what held workloads want to do.
//!
//! Owns accounts, requests, decisions and the evidence log. It is given questions by hosts and answers by people. It
//! must never decide by itself, nor let anybody decide on their own workload.
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod auth;
pub mod ca;
pub mod channel;
pub mod config;
pub mod data_dir;
pub mod log;
pub mod notify;
mod outgoing;
pub mod server;
pub mod siem;
pub mod store;
pub mod time;
pub mod ui;

pub use app::asks::fuzz_ask;
pub use server::{Server, endpoint_table};
