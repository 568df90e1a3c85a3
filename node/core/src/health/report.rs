//! What the leader tells of the cluster's health: numbers for metrics, command line and console.

use super::{Aside, ByTier, Cause, Loss, Sums, Tier};
use crate::catalog::command::DrainTarget;
use crate::ids::{LayoutVersion, NodeId, SiteName, VolumeId, WallMillis};
use std::collections::BTreeMap;

/// The leader's view.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// Who made it.
    pub leader: NodeId,
    /// Of which layout.
    pub layout: LayoutVersion,
    /// Version of commands and formats in force.
    pub format: u32,
    /// All stored content by how close it is to loss.
    pub by_tier: ByTier,
    /// Content that does not keep the contract of its profile.
    pub below_contract: Sums,
    /// The closest to loss of all; absent when nothing is stored.
    pub worst: Option<Tier>,
    /// Sites that are away as a whole.
    pub sites_away: Vec<SiteName>,
    /// Work known, by cause.
    pub waiting: BTreeMap<Cause, Sums>,
    /// Stripes being worked on at this moment.
    pub in_progress: u64,
    /// Bytes written by repair and moves over the last ten seconds, per second.
    pub rate_bytes_per_s: u64,
    /// Stripes made whole since this leader began.
    pub done_stripes: u64,
    /// Bytes written for that.
    pub done_bytes: u64,
    /// Bytes that crossed between sites for that.
    pub wan_bytes: u64,
    /// Seconds until all waiting work is done at the present rate; absent without work or rate.
    pub eta_s: Option<u64>,
    /// Why work that is known is not being done, for people; empty when it is.
    pub held_back: Vec<String>,
    /// Stripes set aside; at most 100 of them.
    pub aside: Vec<Aside>,
    /// How many are set aside in all.
    pub aside_total: u64,
    /// Each node, as the leader hears it.
    pub nodes: Vec<NodeHealth>,
    /// Each volume that is not fenced.
    pub volumes: Vec<VolumeHealth>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeHealth {
    /// Which.
    pub node: NodeId,
    /// Milliseconds since it was last heard by this leader; absent when it never was.
    pub silent_ms: Option<u64>,
    /// Bytes of repair per second that its governor allows now; absent when it never told.
    pub allowed_bytes_per_s: Option<u64>,
}

/// One volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeHealth {
    /// Which.
    pub volume: VolumeId,
    /// Content of its shards as the catalog knows it, in bytes.
    pub catalog_bytes: u64,
    /// Bytes used on the disk, as its node told last.
    pub used_bytes: u64,
    /// Bytes free, as its node told last.
    pub free_bytes: u64,
    /// Age of its verification.
    pub scrub: ScrubAge,
}

/// How long ago the shards of a volume were verified.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScrubAge {
    /// Shards by age: younger than 1 d, 2 d, 4 d, 7 d, 14 d, 28 d, older or never.
    pub histogram: [u64; 7],
    /// The oldest verification (for shards never verified, when they were written); absent for an empty volume.
    pub oldest: Option<WallMillis>,
    /// Damaged shards found since the node started.
    pub damaged: u64,
    /// Shards verified since the node started.
    pub verified: u64,
    /// A pass is running because an operator asked for it.
    pub hurried: bool,
}

/// What a node tells the leader with each sign of life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heartbeat {
    /// Who.
    pub node: NodeId,
    /// Which life of its data.
    pub incarnation: crate::ids::Incarnation,
    /// Volumes that it serves, all of them.
    pub volumes: Vec<ServedVolume>,
    /// Tasks of repair that it works on.
    pub tasks: u32,
    /// Bytes of repair per second that its governor allows now.
    pub allowed_bytes_per_s: u64,
}

/// A volume as its node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedVolume {
    /// Which.
    pub volume: VolumeId,
    /// What the node would say of it.
    pub state: crate::layout::VolumeState,
    /// Shards held.
    pub shards: u64,
    /// Bytes in live records.
    pub used_bytes: u64,
    /// Bytes still free on its disk.
    pub free_bytes: u64,
    /// Age of its verification.
    pub scrub: ScrubAge,
}

/// What a worker did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Done {
    /// The stripe is reseated.
    Reseated {
        /// Bytes of shards written.
        written_bytes: u64,
        /// Bytes of shards read.
        read_bytes: u64,
        /// Of both, those between sites.
        wan_bytes: u64,
    },
    /// The stripe was changed or deleted meanwhile: nothing to do, plan anew.
    Outdated,
    /// It cannot be done, and trying again without a change of the cluster cannot help: fewer than `k` sound shards.
    Irreparable(String),
}

/// What would be if something were lost now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WhatIf {
    /// What was asked.
    pub loss: Loss,
    /// Nodes that would be gone, whole sites included.
    pub nodes_lost: Vec<NodeId>,
    /// Content by tier afterwards; `Unreadable` could not be read until something returns.
    pub by_tier: ByTier,
    /// Content that would keep the contract of its profile.
    pub within_contract: Sums,
    /// Content that would not.
    pub below_contract: Sums,
    /// True when every stored byte could be read.
    pub all_readable: bool,
    /// True when voters would have a majority, so that anything can be written and a leader be found.
    pub quorum: bool,
    /// Voters left, of how many.
    pub voters: (u32, u32),
    /// For each profile, what new writes would survive; empty when they would be refused, and why.
    pub writes: Vec<WritesUnder>,
    /// Bytes of shards to rebuild to full contract elsewhere (what repair would do if nothing returned).
    pub rebuild_bytes: Sums,
    /// Bytes of those that would be rebuilt at once, because one more failure would lose them.
    pub urgent_bytes: u64,
    /// Bytes that rebuilding would move between sites.
    pub wan_bytes: u64,
    /// Seconds that the rebuild would take at `rate_bytes_per_s`.
    pub repair_s: Option<u64>,
    /// Rate that was assumed: measured lately, or given.
    pub rate_bytes_per_s: u64,
}

/// What new writes of a profile would be worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritesUnder {
    /// Which.
    pub profile: crate::ids::ProfileName,
    /// What they would survive, strongest first; empty when refused.
    pub survives: super::Claims,
    /// True when that is the contract.
    pub full: bool,
    /// Why they would be refused or weaker; empty otherwise.
    pub why: String,
}

/// What emptying a node or a volume means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DrainPlan {
    /// What was asked.
    pub target: DrainTarget,
    /// Volumes that would be emptied.
    pub volumes: Vec<VolumeId>,
    /// True when every profile that keeps its contract now would keep it without them, and there is room.
    pub safe: bool,
    /// The arithmetic: of each profile, and of the room.
    pub reasons: Vec<String>,
    /// What is left to move.
    pub moves: Sums,
    /// Free bytes of the volumes that may take it.
    pub free_elsewhere_bytes: u64,
    /// Seconds it takes at `rate_bytes_per_s`.
    pub takes_s: Option<u64>,
    /// Rate that was assumed.
    pub rate_bytes_per_s: u64,
    /// True when nothing is left: the node can be removed, the volume taken out.
    pub empty: bool,
}
