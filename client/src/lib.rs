//! The Rust client of pacsvault: find the cluster, write and read studies, prove receipts.
//!
//! With a gateway's (or node's) certificate the client *is* the coordinator: it hashes, encodes, places and sends the shards
//! itself ([`client::Mode::Direct`]). With an operator's certificate, or when asked to, content goes through a node's
//! `Archive` endpoint, which hosts the same library ([`client::Mode::ViaNode`]).
//!
//! **Invariants.**
//! - A write is reported as stored only with a receipt; in `ViaNode` mode the receipt was verified against the cluster's CA.
//! - A write is repeated only from its first byte and under the same key, so that the catalog can tell that it is the same.
//! - A write of which some attempt may have been carried out, and none was acknowledged, is reported as unknown, never as failed.
//! - Content read whole has the BLAKE3 of the catalog, or reading it ended with an error.
//!
//! Rooms: [`config`] (where the cluster is and who we are), [`client`] (the connection), [`write`] (content in),
//! [`read`] (content out), [`status`] (the cluster as all its nodes see it), [`admin`] (health, what-if, growing and
//! shrinking), [`prove`] (every shard re-read on its disk), [`receipt`] (offline proof), [`dicom`].

pub mod admin;
pub mod client;
pub mod config;
pub mod dicom;
pub mod prove;
pub mod read;
pub mod receipt;
pub mod status;
mod thin;
pub mod write;

pub use client::{Client, Mode};
pub use config::{Config, Settings};
pub use write::{Acked, Source};
