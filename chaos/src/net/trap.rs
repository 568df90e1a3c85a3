//! Requests by kind, and moments that faults wait for.
//!
//! **Invariants.** A trap looks at what crosses the network and changes nothing of it.

use pacsvault_core::catalog::Command;
use pacsvault_ports::peer::Request;

use super::HostId;

/// What a request is called in traces.
pub(super) fn kind(request: &Request) -> &'static str {
    match request {
        Request::PutShard(_) => "put-shard",
        Request::GetShard(_) => "get-shard",
        Request::Layout(_) => "layout",
        Request::Lookup(_) => "lookup",
        Request::List(_) => "list",
        Request::Propose(_) => "propose",
        Request::Raft(_) => "raft",
        Request::SnapshotFiles { .. } => "snapshot-files",
        Request::SnapshotRead { .. } => "snapshot-read",
        Request::ReadIndex => "read-index",
        Request::Join(_) => "join",
        Request::InitCluster { .. } => "init",
        Request::Status => "status",
        Request::TransferLeader { .. } => "transfer-leader",
        Request::Heartbeat(_) => "heartbeat",
        Request::Repair(_) => "repair",
        Request::DrainPlan(_) => "drain-plan",
        Request::ScrubNow(_) => "scrub-now",
        Request::VerifyShards { .. } => "verify-shards",
        Request::Health => "health",
        _ => "other",
    }
}

/// A moment to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// A repair is under way: a task is handed out, a shard is written, new homes are proposed.
    Repair,
    /// A replica takes a snapshot.
    Snapshot,
}

/// What happens then.
pub type Sprung = Box<dyn FnOnce(HostId, HostId) + Send>;

impl Trap {
    pub(super) fn catches(self, request: &Request) -> bool {
        match (self, request) {
            (Self::Repair, Request::Repair(_)) => true,
            (Self::Repair, Request::PutShard(put)) => put.repair,
            (Self::Repair, Request::Propose(commands)) => {
                commands.iter().any(|command| matches!(command, Command::Reseat(_)))
            }
            (Self::Snapshot, Request::SnapshotRead { .. }) => true,
            _ => false,
        }
    }
}
