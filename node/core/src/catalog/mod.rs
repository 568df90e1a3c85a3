//! The catalog: what is stored where, as a pure state machine over an ordered key-value view.
//!
//! **Invariants.** `apply` is a function of (state, entry): no clock, no randomness, no I/O besides the returned
//! batch. Commands are versioned protobuf; an unknown one is an error that stops the replica. Rules that protect
//! data are checked here and nowhere later.

pub mod command;

pub use command::{Command, Entry, Outcome, Rejection, Seal, SealedInstance, StripeSeal};
