//! The pure core of pacsvault: words, layout and survivability, erasure code, Merkle proofs, catalog.
//!
//! **Invariants.** Nothing here awaits, reads a clock, draws randomness, opens a file or a socket. The same
//! inputs give the same outputs on every machine, so that whole clusters can be simulated and replicas agree.
//!
//! Rooms, lower layers first: [`ids`], [`limits`], [`batch`] (words); [`layout`], [`codec`], [`checksum`], [`merkle`],
//! [`shard`], [`catalog`], [`receipt`] (what is decided); beside them [`probe`] (marks for the simulator).

pub mod batch;
pub mod catalog;
pub mod checksum;
pub mod codec;
pub mod health;
pub mod ids;
pub mod layout;
pub mod limits;
pub mod merkle;
pub mod probe;
pub mod receipt;
pub mod shard;
