//! The consensus facade over openraft: one replicated log, one catalog replica per node. The only room that names
//! openraft; everybody else holds an `Arc<dyn` [`Replica`]`>`.
//!
//! **Invariants.**
//! - Vote, log entries and the committed position live in one ordered store; nothing is acknowledged to openraft
//!   before it and everything written earlier is durable ([`log_store`]).
//! - The applied position and the membership are written in one batch with the effects they account for ([`state`]).
//! - The log is purged only below what the state store holds durably.
//! - A message names the cluster, the node id and the incarnation it is for; a node that is not that one refuses it,
//!   so a wiped node can never answer under an old id ([`network`]).
//! - A command that some member could not read never enters the log ([`gate`]).
//! - A restarted leader never resumes its term (openraft's leader restore is off).
//!
//! What it leaves to others: which commands mean what (`core::catalog`), who may call (`rpc`, `service`).

mod autopilot;
mod facade;
mod gate;
mod leadership;
pub mod log_store;
mod machine;
mod messages;
mod network;
pub mod options;
mod propose;
pub mod replica;
mod rows;
mod server;
mod snapshot;
pub mod state;
#[cfg(feature = "suite")]
pub mod suite;
pub mod types;
pub mod voters;

pub use facade::{Consensus, start};
pub use openraft_rt_tokio::TokioRuntime;
pub use options::{Error, Options};
pub use replica::{Replica, Status};
pub use types::{Member, Types};
