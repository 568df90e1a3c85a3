//! The handle that the rest of the node uses, and what it tells of itself.
//!
//! **Invariants.** Every future ends within the options' deadline. A fault of class `Retry` means that nothing was
//! proposed; `Unknown` means that it may yet be applied. Commands are safe to repeat. A replica with a fatal reason answers
//! `PV-REPLICA-STOPPED` to everything but [`Replica::status`]; wait ([`Replica::wait`]) before every read of its view.

use std::sync::Arc;

use bytes::Bytes;
use pacsvault_core::{
    catalog::{Command, Outcome, View},
    ids::{Digest, LogIndex, NodeId, NodeName, Term, WallMillis},
    layout::Layout,
};
use pacsvault_ports::{
    BoxFuture,
    kv::CheckpointFile,
    peer::{Fault, Freshness},
};

/// How a replica sees itself and the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Last index in its log.
    pub last_log: LogIndex,
    /// Last index applied to its catalog.
    pub applied: LogIndex,
    /// Rolling digest of its catalog at `applied`.
    pub digest: Digest,
    /// Voters of the effective membership, sorted.
    pub voters: Vec<NodeId>,
    /// Learners of the effective membership, sorted.
    pub learners: Vec<NodeId>,
    /// True while a membership change is between its two steps.
    pub joint: bool,
    /// Why the replica stopped; the process must stop too.
    pub fatal: Option<String>,
}

/// One replica of the catalog and its log.
pub trait Replica: Send + Sync + 'static {
    /// Makes a new cluster of this node alone. Refused when the node already has a log.
    fn initialise(&self) -> BoxFuture<'static, Result<(), Fault>>;

    /// Proposes `commands`, here or at the leader, and waits until they are applied there: one outcome per command, in
    /// order. They are applied together, possibly with those of others between entries.
    fn propose(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>>;

    /// As [`Replica::propose`], but only if this node leads: for requests that were forwarded once. Otherwise a fault of
    /// class `Retry`.
    fn propose_local(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>>;

    /// Answers a consensus message (`Request::Raft`) of the node named `from` by its certificate.
    fn handle(&self, from: Option<NodeName>, message: Bytes) -> BoxFuture<'static, Result<Bytes, Fault>>;

    /// Files of the checkpoint behind snapshot `id`, as offered earlier.
    fn snapshot_files(&self, id: &str) -> BoxFuture<'static, Result<Vec<CheckpointFile>, Fault>>;

    /// A piece of a file of snapshot `id`.
    fn snapshot_read(
        &self,
        id: &str,
        name: &str,
        offset_bytes: u64,
        len_bytes: u32,
    ) -> BoxFuture<'static, Result<Bytes, Fault>>;

    /// An index that covers every write acknowledged before this call, confirmed by a quorum (ReadIndex). Only on the
    /// leader; otherwise a fault of class `Retry`.
    fn read_index(&self) -> BoxFuture<'static, Result<LogIndex, Fault>>;

    /// Waits until this replica is as fresh as asked; answers what it has applied.
    fn wait(&self, freshness: Freshness) -> BoxFuture<'static, Result<LogIndex, Fault>>;

    /// The layout as applied here; absent before the cluster was initialised, and once the replica has a fatal reason.
    fn layout(&self) -> Option<Arc<Layout>>;

    /// The catalog as applied here, for `core::catalog::query`. Reads block, mostly on memory; two reads may see two
    /// positions.
    fn view(&self) -> Arc<dyn View>;

    /// The catalog's time as applied here.
    fn catalog_time(&self) -> WallMillis;

    /// How it is.
    fn status(&self) -> Status;

    /// Hands leadership to `to`, a voter that is caught up. Answers when another leader is known.
    fn transfer_leader(&self, to: NodeId) -> BoxFuture<'static, Result<(), Fault>>;

    /// Stops the replica's tasks and flushes the state store.
    fn stop(&self) -> BoxFuture<'static, ()>;
}
