//! The wire: gRPC services and messages of `pacsvault.v1`, generated from `pacsvault/v1/*.proto`.
//!
//! **Invariants.** Nothing is written by hand here besides this file. The schema evolves compatibly only: fields are
//! added, never renumbered. Generated types stop in the `rpc` room, which turns each into a core type once.

/// Messages, clients and servers of `pacsvault.v1`.
pub mod v1 {
    #![allow(
        missing_docs,
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes_without_reason,
        reason = "generated; the .proto files carry the comments"
    )]
    tonic::include_proto!("pacsvault.v1");
}

/// The compiled schema with comments, as gRPC reflection serves it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
