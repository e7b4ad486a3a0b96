//! Transport: HTTP and gRPC towards `app`, and nothing else.
//!
//! Owns parsing, status codes and streams. It is given bytes and makes typed calls with an actor or a host's identity.
//! It must never decide who may do what.

pub mod describe;
pub mod endpoint;
pub mod gate;
pub mod grpc;
pub mod identity;
pub mod log;
pub mod openapi;
pub mod problem;
pub mod rest;
pub mod watch;
