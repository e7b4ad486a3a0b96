//! What the tests share: a console, people who call its API, and hosts that ask it.

mod console;
mod host;
mod person;
mod question;

pub(crate) use console::{Console, PASSWORD, certificate_request};
pub(crate) use host::{Host, Session, batch};
pub(crate) use person::{Person, whats};
pub(crate) use question::Question;
