//! The console from outside: real TLS on loopback, real files, hosts as they connect.

mod accounts;
mod answers;
mod hosts;
mod pages;
mod records;
mod support;
