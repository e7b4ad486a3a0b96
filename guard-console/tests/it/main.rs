//! The console from outside: real TLS on loopback, real files, hosts as they connect.

mod accounts;
mod answers;
mod hosts;
mod records;
mod stage;
mod support;
