//! The engine as its two sides see it. What is tested is in the modules' names; [`world`] is what all share.

mod answers;
mod connections;
mod policy;
mod restarts;
mod waiting;
mod world;
