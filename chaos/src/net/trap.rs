//! Requests by kind, and moments that faults wait for.
//!
//! **Invariants.** A trap looks at what crosses the network and changes nothing of it.

use pacsvault_core::catalog::Command;
use pacsvault_ports::peer::{Fault, Reply, Request};

use super::HostId;
use crate::rng::splitmix;

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

/// A word that stands for a request, from its kind and what of it is cheap to look at.
pub(super) fn gist(request: &Request) -> u64 {
    let named = kind(request).bytes().fold(0, |word, byte| splitmix(word ^ u64::from(byte)));
    let first = |bytes: &[u8]| bytes.iter().take(8).fold(0, |word, byte| word << 8 | u64::from(*byte));
    let bytes = |bytes: &[u8]| {
        let mixed = bytes.chunks(8).fold(0_u64, |word, chunk| splitmix(word ^ first(chunk)));
        mixed ^ bytes.len() as u64
    };
    let of = match request {
        Request::PutShard(put) => first(&put.header.digest.0) ^ put.data.len() as u64,
        Request::GetShard(get) => u64::from(get.id.shard.0) << 32 ^ bytes(&get.id.instance.0),
        Request::Raft(message) => bytes(message),
        Request::Propose(commands) => commands.len() as u64,
        Request::SnapshotRead { offset_bytes, len_bytes, .. } => *offset_bytes ^ u64::from(*len_bytes) << 32,
        Request::VerifyShards { shards, .. } => shards.len() as u64,
        _ => 0,
    };
    splitmix(named ^ of)
}

/// The same of an answer.
pub(super) fn answer_gist(answer: &Result<Reply, Fault>) -> u64 {
    match answer {
        Ok(Reply::Raft(message)) => message.len() as u64,
        Ok(Reply::Outcomes(outcomes)) => outcomes.len() as u64,
        Ok(_) => 0,
        Err(fault) => fault.code.bytes().fold(1, |word, byte| splitmix(word ^ u64::from(byte))),
    }
}

/// A moment to be waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trap {
    /// A repair is under way: a task is handed out, a shard is written, new homes are proposed.
    Repair,
    /// A client writes a shard.
    Write,
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
            (Self::Write, Request::PutShard(put)) => !put.repair,
            (Self::Snapshot, Request::SnapshotRead { .. }) => true,
            _ => false,
        }
    }
}
