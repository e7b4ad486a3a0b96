//! Asking people and checking what they answered.
//!
//! Owns the checks on a decision ([`decision`]) and the list of questions that are open ([`open`]). It is given
//! envelopes from the console. It must never take the console's word for what the envelope has to say itself.

pub mod decision;
pub mod open;
