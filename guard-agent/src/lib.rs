#![deny(unsafe_code)]
pub mod policy;
