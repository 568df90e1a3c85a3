//! What a replica is told when it starts, and why it may refuse to.
//!
//! **Invariants.** Heartbeat < election minimum < election maximum; the quorum-loss probe interval is at least twice
//! the election maximum (lease and one election); leader restore is off.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy, StepDownPolicy};
use pacsvault_core::ids::{ClusterId, Incarnation, NodeId, NodeName, SiteName};
use pacsvault_ports::kv::{InstallError, KvError};

use crate::{snapshot::PIECE_BYTES_MAX, types::Member};

/// Why consensus could not start or had to stop.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A store failed. Fatal: reopen it.
    #[error("consensus store failed")]
    Store(#[from] KvError),
    /// A checkpoint could not be taken over.
    #[error("consensus cannot take over a state")]
    Install(#[from] InstallError),
    /// A stored record does not decode. Do not retry: wipe this replica and let it join as a new node.
    #[error("consensus record {record} is damaged: {why}")]
    Corrupt {
        /// Which record.
        record: String,
        /// What is wrong with it.
        why: String,
    },
    /// The timings contradict each other.
    #[error("consensus options are inconsistent: {0}")]
    Options(String),
    /// The data belongs to another node, incarnation or cluster.
    #[error("the consensus data in this directory belongs to {0}")]
    Foreign(String),
    /// The environment stopped while starting.
    #[error("the node is stopping")]
    Stopping,
    /// openraft stopped, and why.
    #[error("the replica stopped: {0}")]
    Fatal(String),
}

/// How a replica identifies itself and paces.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Options {
    /// Id given by the cluster; never reused.
    pub node: NodeId,
    /// From the certificate.
    pub cluster: ClusterId,
    /// This life of the data directory.
    pub incarnation: Incarnation,
    /// Name in the certificate.
    pub name: NodeName,
    /// Failure domain.
    pub site: SiteName,
    /// `host:port` where peers dial this node.
    pub address: String,
    /// Interval of heartbeats, and how long one may take to be answered. Default 200 ms: twice a round trip of 80 ms, and
    /// five of them in a lease.
    pub heartbeat: Duration,
    /// Shortest election timeout. Default 500 ms: 6 round trips of 80 ms, of which an election takes two.
    pub election_min: Duration,
    /// Longest election timeout, and the leader's lease. Default 1 s.
    ///
    /// A follower asks for an election after the lease and a random election timeout: after 1.5 to 2 s of silence, 7 to
    /// 10 heartbeats. With two round trips for the votes and one to commit, writes pause for at most 2.3 s at 80 ms,
    /// unless votes split.
    pub election_max: Duration,
    /// Applied entries between two snapshots, which allow the log to be purged. Default 20 000.
    pub snapshot_every: u64,
    /// Entries kept in the log although a snapshot covers them, so that a follower that was away briefly needs no
    /// snapshot. Default 10 000.
    pub log_keep: u64,
    /// Most entries in one replication message. Default 64: 64 × 256 KiB is cut to `payload_bytes_max`.
    pub payload_entries_max: u64,
    /// Most bytes of entries in one replication message (at least one entry travels). Default 4 MiB.
    pub payload_bytes_max: usize,
    /// Bytes of one piece of a snapshot under way, eight of which are asked for at once. Default 1 MiB, which is the most.
    pub snapshot_piece_bytes: u32,
    /// Most bytes of recent entries kept in memory for replication. Default 64 MiB.
    pub cache_bytes_max: usize,
    /// Most bytes of commands in one entry. Default 256 KiB.
    pub entry_bytes_max: usize,
    /// How long a proposal may wait for company while others are in flight. Default 1 ms.
    pub linger: Duration,
    /// Most proposals waiting to be batched; more are refused with `Exhausted`. Default 8 192.
    pub queue_max: usize,
    /// How long a proposal or a fresh read looks for a leader. Default 10 s.
    pub deadline: Duration,
    /// Deadline of one replication message with entries, and of one offer of a snapshot. Default 2 s: 4 MiB at
    /// 20 Mbit/s. A message that is lost silently holds back its follower for so long.
    pub append_deadline: Duration,
    /// Whether this node plans voters while it leads. Default true; tests that change membership by hand say false.
    pub autopilot: bool,
    /// How long a voter may be out of contact before a spare may take its place. Default 5 min.
    pub voter_grace: Duration,
    /// Leadership moves to a caught-up voter of this site, when there is one. Default none.
    pub preferred_site: Option<SiteName>,
    /// How long a reason to move leadership must hold before it is moved; half of it when the leader does not reach members that
    /// another voter reaches. For the preferred site alone it is moved only 30 times as long after the last election. Default 10 s.
    pub leader_settle: Duration,
    /// Between two comparisons of the replicas' digests. Default 30 s: an entry each, and 4 096 entries are remembered.
    pub compare_every: Duration,
}

impl Options {
    /// Options of `node` with the default pace, made for up to 80 ms between sites.
    pub fn new(
        node: NodeId,
        cluster: ClusterId,
        incarnation: Incarnation,
        (name, site): (NodeName, SiteName),
        address: impl Into<String>,
    ) -> Self {
        Self {
            node,
            cluster,
            incarnation,
            name,
            site,
            address: address.into(),
            heartbeat: Duration::from_millis(200),
            election_min: Duration::from_millis(500),
            election_max: Duration::from_secs(1),
            snapshot_every: 20_000,
            log_keep: 10_000,
            payload_entries_max: 64,
            payload_bytes_max: 4 << 20,
            snapshot_piece_bytes: PIECE_BYTES_MAX,
            cache_bytes_max: 64 << 20,
            entry_bytes_max: 256 << 10,
            linger: Duration::from_millis(1),
            queue_max: 8_192,
            deadline: Duration::from_secs(10),
            append_deadline: Duration::from_secs(2),
            autopilot: true,
            voter_grace: Duration::from_secs(300),
            preferred_site: None,
            leader_settle: Duration::from_secs(10),
            compare_every: Duration::from_secs(30),
        }
    }

    /// This node as a member.
    pub fn member(&self) -> Member {
        Member {
            address: self.address.clone(),
            name: Some(self.name.clone()),
            site: Some(self.site.clone()),
            incarnation: self.incarnation,
        }
    }

    /// The configuration handed to openraft.
    pub(crate) fn config(&self) -> Result<Config, Error> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let election_max = millis(self.election_max);
        let config = Config {
            cluster_name: self.cluster.to_string(),
            heartbeat_interval: millis(self.heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: election_max,
            install_snapshot_timeout: millis(self.append_deadline),
            max_payload_entries: self.payload_entries_max,
            // One merged append stays within a few MiB: 64 entries of at most 256 KiB each.
            max_append_entries: Some(self.payload_entries_max),
            // A follower this far behind is sent a snapshot even if the log still reaches back.
            replication_lag_threshold: self.snapshot_every.saturating_add(self.log_keep).saturating_mul(4),
            snapshot_policy: SnapshotPolicy::LogsSinceLast(self.snapshot_every),
            max_in_snapshot_log_to_keep: self.log_keep,
            purge_batch_size: (self.log_keep / 8).clamp(1, 256),
            removed_leader_step_down: StepDownPolicy::After(millis(self.heartbeat).saturating_mul(2)),
            // A leader that lost its quorum falls silent for a lease and an election, so that a bridge cannot keep
            // the others from electing (notes §1.4 item 10).
            quorum_loss_probe_interval: Some(election_max.saturating_mul(2)),
            enable_pre_vote: Some(true),
            // A restarted leader that lost its unsynced tail would reuse log ids that others hold committed
            // (notes §1.4 item 0).
            enable_leader_restore: Some(false),
            allow_log_reversion: Some(false),
            ..Config::default()
        };
        config.validate().map_err(|error| Error::Options(error.to_string()))
    }
}
