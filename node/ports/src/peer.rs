//! What nodes and coordinators ask of nodes, as values: [`Request`] and [`Reply`] are what travels, [`Peer`] is who
//! sends, [`Service`] is who answers. The `rpc` room carries them over gRPC; the simulator over its own network.
//!
//! **Invariants.** Every call ends: with a reply, or with a [`Fault`] no later than the sender's deadline. A fault of
//! class `Unknown` says nothing about whether the request was carried out; every request is safe to repeat.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use pacsvault_core::{
    catalog::{
        Command, Outcome, SealedInstance,
        command::{DrainTarget, JoinNode},
    },
    health::{
        Loss, Task,
        report::{Done, DrainPlan, Health, Heartbeat, ScrubAge, WhatIf},
    },
    ids::{
        ClusterId, Digest, Incarnation, LogIndex, NodeId, NodeName, ObjectKey, SiteName, Tenant, Term, Uid,
        VersionNumber, VolumeId,
    },
    layout::{Layout, VolumeState},
    shard::{DurableShard, ShardHeader, ShardId},
};

use crate::{BoxFuture, kv::CheckpointFile};

/// What a failed call means to its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing was done; trying elsewhere or later may help.
    Retry,
    /// It may have been done. Repeat with the same ids.
    Unknown,
    /// Refused for good: the request, the caller or the state is wrong.
    Reject,
    /// Sought and not found.
    NotFound,
    /// The bytes are damaged; use another copy and report.
    Corrupt,
    /// A limit was met; back off.
    Exhausted,
    /// A broken invariant on the other side.
    Bug,
}

/// A call that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What the sender may do.
    pub class: Class,
    /// Stable code with a page in `docs/errors/`, such as `PV-VOLUME-FULL`.
    pub code: &'static str,
    /// For people: what failed and what to do.
    pub message: String,
}

impl Fault {
    /// A fault.
    pub fn new(class: Class, code: &'static str, message: impl Into<String>) -> Self {
        Self { class, code, message: message.into() }
    }
}

/// Who calls, as its certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Caller {
    /// A node of this cluster.
    Node(NodeName),
    /// A trusted writer: may coordinate writes and seal.
    Gateway(String),
    /// A person or tool that administers.
    Operator(String),
    /// The same process.
    Local,
}

/// Write one shard durably.
#[derive(Debug, Clone)]
pub struct PutShard {
    /// On which volume of the node.
    pub volume: VolumeId,
    /// Its header.
    pub header: ShardHeader,
    /// Its bytes, `header.shard_bytes()` of them.
    pub data: Bytes,
    /// Why: repair may use room that is kept back from new content. Nodes only.
    pub repair: bool,
}

/// Read one shard, whole or in part.
#[derive(Debug, Clone)]
pub struct GetShard {
    /// On which volume of the node.
    pub volume: VolumeId,
    /// Which shard.
    pub id: ShardId,
    /// First byte wanted.
    pub offset_bytes: u64,
    /// Bytes wanted; to the end of the shard at most.
    pub len_bytes: u64,
    /// Repair or re-encoding reads: no client waits for it, so background work need not yield to it.
    pub background: bool,
}

/// Bytes of a shard, verified by the volume against their chunk checksums. They begin at the chunk boundary at or
/// below the offset asked for, and end at the one at or above its end.
#[derive(Debug, Clone)]
pub struct ShardData {
    /// Header as recorded.
    pub header: ShardHeader,
    /// Offset of `data` in the shard; a multiple of `CHUNK_BYTES`.
    pub offset_bytes: u64,
    /// Whole chunks.
    pub data: Bytes,
}

/// How fresh a read of the catalog must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// The replica must have applied at least this index (0: whatever it has); a miss goes on to `Linearizable`.
    AtLeast(LogIndex),
    /// As of some moment after the call began.
    Linearizable,
}

/// Find one sealed instance.
#[derive(Debug, Clone)]
pub struct Lookup {
    /// Key.
    pub key: ObjectKey,
    /// This version; the newest that is not deleted when absent.
    pub version: Option<VersionNumber>,
    /// How fresh.
    pub freshness: Freshness,
}

/// List what is stored, in key order.
#[derive(Debug, Clone)]
pub struct List {
    /// Owner.
    pub tenant: Tenant,
    /// Only this study; all studies when absent.
    pub study: Option<Uid>,
    /// Only this series of the study.
    pub series: Option<Uid>,
    /// One row per study instead of one per instance.
    pub studies_only: bool,
    /// Continue after this token of an earlier page.
    pub page_token: Vec<u8>,
    /// Most rows; at most `LIST_ROWS_MAX`.
    pub rows_max: usize,
    /// How fresh.
    pub freshness: Freshness,
}

/// A page of a listing, and its rows per study.
pub use pacsvault_core::catalog::query::{Page as ListPage, StudyRow};

/// State of one volume as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeStatus {
    /// Which.
    pub volume: VolumeId,
    /// What the node would say of it.
    pub state: VolumeState,
    /// Why it is not `Up`; empty otherwise.
    pub reason: String,
    /// Shards held.
    pub shards: u64,
    /// Bytes in live records.
    pub used_bytes: u64,
    /// Bytes still free on its disk.
    pub free_bytes: u64,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Age of its verification; empty from a store alone, filled in by its node.
    pub scrub: ScrubAge,
}

/// How the [`NodeStatus::binary_version`] of a node ends whose fault port is open: it does not behave as its version would.
pub const FAULTS_SUFFIX: &str = "+faults";

/// How one node sees itself and the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Its id; absent before it joined.
    pub node: Option<NodeId>,
    /// Its name.
    pub name: NodeName,
    /// Its site.
    pub site: SiteName,
    /// Version of its binary.
    pub binary_version: String,
    /// Which cluster its certificate names.
    pub cluster: ClusterId,
    /// Who leads, as far as it knows.
    pub leader: Option<NodeId>,
    /// Its term.
    pub term: Term,
    /// Last index in its log.
    pub last_log: LogIndex,
    /// Last index applied to its catalog.
    pub applied: LogIndex,
    /// Rolling digest of its catalog at `applied`.
    pub state_digest: Digest,
    /// Voters of the effective membership.
    pub voters: Vec<NodeId>,
    /// Learners of the effective membership.
    pub learners: Vec<NodeId>,
    /// Its volumes.
    pub volumes: Vec<VolumeStatus>,
}

/// What can be asked of a node.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Request {
    /// Node or gateway: write a shard. Answers [`Reply::Durable`].
    PutShard(Box<PutShard>),
    /// Node or gateway: read a shard. Answers [`Reply::Shard`].
    GetShard(GetShard),
    /// Any role: the layout at least this fresh. Answers [`Reply::Layout`].
    Layout(Freshness),
    /// Any role. Answers [`Reply::Found`].
    Lookup(Lookup),
    /// Any role. Answers [`Reply::Page`].
    List(List),
    /// Node, gateway (seal and delete only), operator: propose to the log; forwarded to the leader. Answers [`Reply::Outcomes`].
    Propose(Vec<Command>),
    /// Node: a consensus message, opaque to all but the consensus room. Answers [`Reply::Raft`].
    Raft(Bytes),
    /// Node: files of the checkpoint behind a snapshot. Answers [`Reply::SnapshotFiles`].
    SnapshotFiles {
        /// Which snapshot.
        id: String,
    },
    /// Node: a piece of a checkpoint file. Answers [`Reply::Bytes`].
    SnapshotRead {
        /// Which snapshot.
        id: String,
        /// Which file.
        name: String,
        /// From where.
        offset_bytes: u64,
        /// How much at most.
        len_bytes: u32,
    },
    /// Node: an index that the leader has confirmed for a linearizable read. Answers [`Reply::ReadIndex`].
    ReadIndex,
    /// A node that is not a member yet: let me in. Answers [`Reply::Joined`].
    Join(JoinNode),
    /// Operator: to a node that is not a member: ask these nodes to be let in. Answers [`Reply::Joined`].
    JoinVia {
        /// Whom to ask.
        seeds: Vec<Target>,
    },
    /// Operator: make a new cluster of this node alone. Answers [`Reply::Joined`].
    InitCluster {
        /// Profiles of the new cluster, the default one first; empty for the built-in ones.
        profiles: Vec<pacsvault_core::layout::Profile>,
    },
    /// Any role. Answers [`Reply::Status`].
    Status,
    /// Operator: hand leadership to another node. Answers [`Reply::Done`].
    TransferLeader {
        /// To whom.
        to: NodeId,
    },
    /// Node: a sign of life, to the leader. Answers [`Reply::Done`]; a fault when the receiver does not lead.
    Heartbeat(Box<Heartbeat>),
    /// Node: the leader asks for a stripe to be repaired or moved. Answers [`Reply::Repaired`] when that is over.
    Repair(Box<Task>),
    /// Any role: health of the cluster as the leader sees it; forwarded to it. Answers [`Reply::Health`].
    Health,
    /// Any role: what if this were lost now? Answered from the local catalog. Answers [`Reply::WhatIf`].
    WhatIf(Loss),
    /// Any role: what would emptying this mean? Answered from the local catalog. Answers [`Reply::DrainPlan`].
    DrainPlan(DrainTarget),
    /// Operator: verify all shards of this node's volumes (or of one) now, at full speed. Answers [`Reply::Done`] at once.
    ScrubNow(Option<VolumeId>),
    /// Node or operator: prove these shards from the disk now. Answers [`Reply::Verified`].
    VerifyShards {
        /// On which volume of the node.
        volume: VolumeId,
        /// At most `LIST_ROWS_MAX` of them.
        shards: Vec<ShardId>,
    },
}

/// What proving one shard from the disk found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardProof {
    /// It is sound and belongs to the stripe with this root.
    Sound(Digest),
    /// It is not there.
    Missing,
    /// It is there and damaged: where, in words.
    Damaged(String),
}

/// What a node answers.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Reply {
    /// To [`Request::PutShard`].
    Durable(DurableShard),
    /// To [`Request::GetShard`].
    Shard(Box<ShardData>),
    /// To [`Request::Layout`].
    Layout(Arc<Layout>),
    /// To [`Request::Lookup`].
    Found {
        /// `None`: not stored, or deleted.
        sealed: Option<Box<SealedInstance>>,
        /// Index of the replica that answered.
        applied: LogIndex,
    },
    /// To [`Request::List`].
    Page(Box<ListPage>),
    /// To [`Request::Propose`]: one per command.
    Outcomes(Vec<Outcome>),
    /// To [`Request::Raft`].
    Raft(Bytes),
    /// To [`Request::SnapshotFiles`].
    SnapshotFiles(Vec<CheckpointFile>),
    /// To [`Request::SnapshotRead`].
    Bytes(Bytes),
    /// To [`Request::ReadIndex`].
    ReadIndex(LogIndex),
    /// To [`Request::Join`], [`Request::JoinVia`] and [`Request::InitCluster`].
    Joined {
        /// Id given to the node.
        node: NodeId,
        /// Of the layout after joining.
        cluster: ClusterId,
        /// Echo of the incarnation that joined.
        incarnation: Incarnation,
    },
    /// To [`Request::Status`].
    Status(Box<NodeStatus>),
    /// Nothing to tell.
    Done,
    /// To [`Request::Repair`].
    Repaired(Done),
    /// To [`Request::Health`].
    Health(Box<Health>),
    /// To [`Request::WhatIf`].
    WhatIf(Box<WhatIf>),
    /// To [`Request::DrainPlan`].
    DrainPlan(Box<DrainPlan>),
    /// To [`Request::VerifyShards`]: one per shard, in order.
    Verified(Vec<ShardProof>),
}

/// Where a call goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Target {
    /// `host:port`.
    pub address: String,
    /// Name that the other side's certificate must carry; any node of the cluster when absent.
    pub name: Option<NodeName>,
}

/// Sends requests to nodes.
pub trait Peer: Send + Sync + 'static {
    /// Sends `request` to `target` and waits for its reply at most `deadline`.
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>>;
}

/// Answers requests: the node's loop.
pub trait Service: Send + Sync + 'static {
    /// Answers one request of `caller`. Dropping the future abandons the request.
    fn handle(&self, caller: Caller, request: Request) -> BoxFuture<'static, Result<Reply, Fault>>;
}
