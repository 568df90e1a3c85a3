//! The pacsvault storage node: configuration, identity, stores and sockets around [`pacsvault_service::Node`].
//!
//! **Invariants.** A node refuses to start rather than guess: wrong configuration, certificate, data directory or volume
//! ends the process with a message that says what to do. When the replica or a store fails for good the process exits,
//! so that its supervisor restarts it into recovery.

pub mod config;
pub mod identity;
pub mod ops;
pub mod shell;
pub mod volumes;

const _: () = assert!(!pacsvault_core::probe::PLANTED, "a node is never built with planted bugs");
