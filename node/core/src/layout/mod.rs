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
pub(crate) mod testing;

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
    /// Not heard of for some seconds: its shards still count, it gets no new ones. Returns to `Up`.
    Suspect = 4,
    /// Away for so long that nobody waits for it: as `Down`, and what it held is rebuilt elsewhere even when its whole
    /// site is away. May still return to `Up`.
    Lost = 5,
}

/// Life of a volume, changed only through the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum VolumeState {
    /// Read and written; gets new shards.
    Up = 1,
    /// Read, gets no new shards: nearly full or being drained. Its shards count.
    ReadOnly = 2,
    /// An I/O error or an operator took it out of service, or it was away for too long. Its shards count as absent. Never
    /// returns to `Up`.
    Fenced = 3,
    /// Its node is up and does not serve it. Its shards count as absent. Returns to `Up`.
    Away = 4,
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
    /// An operator wants it empty: it gets no new shards, those it has are moved off, and it should not lead.
    pub draining: bool,
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
    /// An operator wants it empty: it gets no new shards, those it has are moved off.
    pub draining: bool,
}

/// The whole cluster, as of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Which cluster.
    pub cluster: ClusterId,
    /// Grows with every change.
    pub version: LayoutVersion,
    /// Version of commands and formats in force, from 1; every member understands it. Raised through the log, never lowered.
    pub format: u32,
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

    /// True when shards on `volume` count as present: its node is up, or was moments ago, and serves it.
    pub fn counts(&self, volume: VolumeId) -> bool {
        let Some(known) = self.volumes.get(&volume) else { return false };
        let node = self.nodes.get(&known.node).map(|node| node.state);
        let up = matches!(node, Some(NodeState::Up | NodeState::Suspect));
        up && matches!(known.state, VolumeState::Up | VolumeState::ReadOnly)
    }

    /// True when `volume` may be given new shards.
    pub fn writable(&self, volume: VolumeId) -> bool {
        let Some(known) = self.volumes.get(&volume) else { return false };
        let Some(node) = self.nodes.get(&known.node) else { return false };
        node.state == NodeState::Up && known.state == VolumeState::Up && !node.draining && !known.draining
    }

    /// True when an operator wants `volume` empty, by itself or with its node.
    pub fn draining(&self, volume: VolumeId) -> bool {
        let of_node = self.node_of(volume).is_some_and(|node| node.draining);
        of_node || self.volumes.get(&volume).is_some_and(|known| known.draining)
    }

    /// True when every storage node of `site` that is not removed is away: an outage of the site rather than of nodes.
    pub fn site_away(&self, site: &SiteName) -> bool {
        let mut nodes = self.nodes.values().filter(|node| node.site == *site && node.roles.storage);
        let away = |node: &Node| matches!(node.state, NodeState::Down | NodeState::Lost);
        let mut any = false;
        nodes.all(|node| {
            any |= away(node);
            away(node) || node.state == NodeState::Removed
        }) && any
    }
}
