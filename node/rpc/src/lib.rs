//! The `Peer` port over gRPC and mutual TLS, and the node's gRPC port; the only room that names tonic and hyper.
//!
//! **Invariants.**
//! - Generated types stop here: what leaves is core's, checked field by field ([`convert`]).
//! - A caller is who its certificate says, and may what one table says ([`roles`]).
//! - Faults keep class, code and message across the wire ([`fault`]).
//! - Everything that a peer could make grow is bounded ([`limits`]).
//!
//! Unary calls (shards, consensus, catalog, administration) are gRPC on the wire but are framed by this room itself
//! ([`frames`], [`methods`]), so that shards are not copied on their way; the streaming `Archive`, health and
//! reflection run on tonic.

pub mod archive;
pub mod client;
pub mod convert;
pub mod dispatch;
pub mod fault;
pub mod frames;
pub mod limits;
pub mod link;
pub mod methods;
pub mod plan;
pub mod roles;
pub mod server;
pub mod signer;
pub mod thin;

pub use client::TonicPeer;
pub use link::check_source;
pub use server::{Counters, Counts, Server, ServerTls};
pub use signer::CertificateSigner;
pub use thin::{ThinArchive, ThinDownload, ThinStored};
