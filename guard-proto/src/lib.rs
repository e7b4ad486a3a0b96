//! The approval API: what hosts, consoles and people say to each other.
//!
//! Owns the wire types of the three boundaries: [`v1`] (gRPC, host to console, generated from
//! `proto/guard/v1/approval.proto`), [`rest`] (HTTP, people and programs to console) and [`control`] (Unix socket,
//! `guard` to the agent on the same host). It is given nothing and must never do I/O.
#![forbid(unsafe_code)]

pub mod control;
pub mod limits;
pub mod rest;

/// Generated from `proto/guard/v1/approval.proto`, which documents every field.
#[expect(
    clippy::all,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("guard.v1");
}
