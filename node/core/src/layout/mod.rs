//! The layout: sites, nodes, volumes and profiles, and the two questions asked of it: where do the shards of a
//! stripe go ([`placement`]), and which failures do persisted shards survive ([`survival`]). What a profile can promise
//! on a topology, before anything is written, is asked of [`plan`].
//!
//! **Invariants.** A [`Layout`] is changed only by the catalog's `apply`; its version grows with each change. Every
//! volume belongs to a known node. Ids of nodes and volumes are never reused.

pub mod placement;
pub mod plan;
pub mod profile;
mod spread;
pub mod survival;
#[cfg(test)]
mod testing;

use std::collections::BTreeMap;

use crate::ids::{ClusterId, Incarnation, LayoutVersion, NodeId, NodeName, ProfileName, SiteName, VolumeId};
pub use plan::{Impossible, Plan, Topology};
pub use profile::{Contract, Failures, Profile};

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles {
    /// Holds shards.
    pub storage: bool,
    /// May be chosen to vote in Raft. A voter without storage is a witness.
    pub voter: bool,
}

/// Life of a node, changed only through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum NodeState {
    /// Serves; gets new shards.
    Up = 1,
    /// Away; its shards count as absent, it gets no new ones. Returns to `Up`.
    Down = 2,
    /// Gone for good: its id is retired and never comes back.
    Removed = 3,
}

/// Life of a volume, changed only through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum VolumeState {
    /// Read and written; gets new shards.
    Up = 1,
    /// Read, gets no new shards: nearly full or being drained. Its shards count.
    ReadOnly = 2,
    /// An I/O error or an operator took it out of service. Its shards count as absent. Never returns to `Up`.
    Fenced = 3,
}

/// One node as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Given by the log.
    pub id: NodeId,
    /// Given by the operator; also in the node's certificate.
    pub name: NodeName,
    /// Failure domain.
    pub site: SiteName,
    /// `host:port` of the gRPC port, as peers and clients should dial it.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// Whether it counts.
    pub state: NodeState,
    /// Which life of the data directory this id belongs to.
    pub incarnation: Incarnation,
    /// Highest command and format version the node's binary understands.
    pub version: u32,
}

/// One volume as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Drawn when it was formatted.
    pub id: VolumeId,
    /// Owner.
    pub node: NodeId,
    /// Bytes it may hold; the weight in placement.
    pub capacity_bytes: u64,
    /// Whether it counts and gets shards.
    pub state: VolumeState,
}

/// The whole cluster, as of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub version: LayoutVersion,
    /// All nodes ever, removed ones included.
    pub nodes: BTreeMap<NodeId, Node>,
    /// All volumes ever, fenced ones included.
    pub volumes: BTreeMap<VolumeId, Volume>,
    /// Profiles by name.
    pub profiles: BTreeMap<ProfileName, Profile>,
    /// The profile of writes that name none.
    pub default_profile: ProfileName,
}

impl Layout {
    /// The node that owns `volume`, if both are known.
    pub fn node_of(&self, volume: VolumeId) -> Option<&Node> {
        self.nodes.get(&self.volumes.get(&volume)?.node)
    }

    /// True when shards on `volume` count as present: its node is up and it is not fenced.
    pub fn counts(&self, volume: VolumeId) -> bool {
        let Some(known) = self.volumes.get(&volume) else { return false };
        let up = self.nodes.get(&known.node).is_some_and(|node| node.state == NodeState::Up);
        up && known.state != VolumeState::Fenced
    }

    /// True when `volume` may be given new shards.
    pub fn writable(&self, volume: VolumeId) -> bool {
        self.counts(volume) && self.volumes.get(&volume).is_some_and(|known| known.state == VolumeState::Up)
    }
}
