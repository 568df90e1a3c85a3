//! Health: how close stored content is to loss, what should be done about it and in which order, and what would be if
//! something were lost. Pure: everything here is computed from a layout, from sums over the catalog and from numbers that
//! nodes report.
//!
//! **Words.** A stripe's [`Tier`] says how many further *node* failures it surely survives: at distance 0 the next one
//! loses it. Whether it keeps the contract of its profile is another question, asked of `survival`. A [`Group`] is all
//! stripes that share a placement and a version of a profile; as long as all their shards are persisted they share their
//! fate, so the whole cluster is judged group by group.
//!
//! **Invariants.** Nothing here decides durability by itself: every judgement goes through [`crate::layout::survival`].

pub mod drain;
pub mod liveness;
pub mod pace;
pub mod rebalance;
pub mod repair;
mod repair_fate;
mod repair_judge;
mod repair_seat;
pub mod report;
pub mod what_if;

use std::collections::BTreeMap;

use crate::ids::{InstanceId, NodeId, PlacementId, ProfileName, ShardIndex, SiteName, StripeIndex, VolumeId};
use crate::layout::profile::Code;
use crate::layout::survival::{Held, distance};
use crate::layout::{Failures, Layout};

pub use pace::Pace;

/// How many further node failures a stripe surely survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tier {
    /// Fewer than `k` shards are present: nothing can be read until some return.
    Unreadable,
    /// This many further nodes may fail, whichever they are; the next one may lose the stripe.
    Distance(u8),
}

impl Tier {
    /// Of a stripe with these shards.
    pub fn of(held: &[Held], k: usize, layout: &Layout) -> Self {
        match distance(held, k, layout).nodes.checked_sub(1) {
            None => Self::Unreadable,
            Some(survived) => Self::Distance(survived),
        }
    }
}

impl std::fmt::Display for Tier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unreadable => f.write_str("unreadable"),
            Self::Distance(survived) => write!(f, "distance {survived}"),
        }
    }
}

/// Sums over stripes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// How many.
    pub stripes: u64,
    /// Their content, in bytes.
    pub content_bytes: u64,
    /// One shard of each of them, in bytes: what one volume of the placement holds of the group.
    pub shard_bytes: u64,
}

/// All stripes of live and deleted-but-unswept records that share a placement and a version of a profile.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Their placement.
    pub placement: PlacementId,
    /// Its volumes, in shard order.
    pub volumes: Vec<VolumeId>,
    /// Name of their profile …
    pub profile: ProfileName,
    /// … and its version.
    pub profile_version: u32,
    /// Code of that version.
    pub code: Code,
    /// How much.
    pub sums: Sums,
}

impl Group {
    /// All its shards, as if every one were persisted.
    pub fn held(&self) -> Vec<Held> {
        held(&self.volumes, u32::MAX)
    }
}

/// The persisted shards of a placement.
pub fn held(volumes: &[VolumeId], persisted: u32) -> Vec<Held> {
    let shards = (0_u8..32).zip(volumes).filter(|(shard, _)| persisted & (1 << shard) != 0);
    shards.map(|(shard, volume)| Held { shard: ShardIndex(shard), volume: *volume }).collect()
}

/// One stripe as repair sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StripeState {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which stripe.
    pub stripe: StripeIndex,
    /// Content bytes.
    pub stripe_bytes: u64,
    /// Code.
    pub code: Code,
    /// Name of its profile: the newest version of it says what is promised.
    pub profile: ProfileName,
    /// Volume of each shard.
    pub volumes: Vec<VolumeId>,
    /// Bit per shard that is durable there.
    pub persisted: u32,
    /// Where shards were before; a copy may still be there.
    pub former: BTreeMap<ShardIndex, VolumeId>,
}

/// A stripe that could not be repaired for now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aside {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which stripe.
    pub stripe: StripeIndex,
    /// Why.
    pub reason: String,
    /// Catalog time when it was set aside, in milliseconds.
    pub since: crate::ids::WallMillis,
    /// Layout it was set aside under: another one is a reason to try again.
    pub layout: crate::ids::LayoutVersion,
}

/// Why a shard is to be (re)made somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Cause {
    /// It is missing, damaged, or on a volume that does not count.
    Repair = 1,
    /// All shards are there, but so placed that the contract does not hold although it could.
    Respread = 2,
    /// Its volume is being emptied.
    Drain = 3,
    /// Its volume holds more than its share.
    Rebalance = 4,
}

/// One piece of work: bring these shards of one stripe to these volumes, then reseat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Of which instance.
    pub instance: InstanceId,
    /// Which stripe.
    pub stripe: StripeIndex,
    /// Placement that it was planned on.
    pub expected: Vec<VolumeId>,
    /// Persisted bits that it was planned on.
    pub persisted: u32,
    /// Shards to bring, and where to; never empty, each shard once.
    pub moves: Vec<(ShardIndex, VolumeId)>,
    /// Why.
    pub cause: Cause,
    /// How close to loss it is now.
    pub tier: Tier,
    /// Bytes that will be written.
    pub write_bytes: u64,
}

/// Something that may be lost: the question of what-if.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Loss {
    /// Whole sites.
    pub sites: Vec<SiteName>,
    /// Single nodes.
    pub nodes: Vec<NodeId>,
    /// Single volumes.
    pub volumes: Vec<VolumeId>,
}

/// Content by tier.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ByTier(pub BTreeMap<Tier, Sums>);

impl ByTier {
    /// Adds to a tier.
    pub fn add(&mut self, tier: Tier, sums: Sums) {
        let total = self.0.entry(tier).or_default();
        total.stripes += sums.stripes;
        total.content_bytes += sums.content_bytes;
        total.shard_bytes += sums.shard_bytes;
    }

    /// Takes from a tier what was added to it before.
    pub fn take(&mut self, tier: Tier, sums: Sums) {
        if let Some(total) = self.0.get_mut(&tier) {
            total.stripes = total.stripes.saturating_sub(sums.stripes);
            total.content_bytes = total.content_bytes.saturating_sub(sums.content_bytes);
            total.shard_bytes = total.shard_bytes.saturating_sub(sums.shard_bytes);
            if total.stripes == 0 {
                self.0.remove(&tier);
            }
        }
    }
}

/// How full a volume is, as its node told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes in live records.
    pub used_bytes: u64,
    /// Bytes that it can still take.
    pub free_bytes: u64,
}

/// What is survived and what not, in words of the contract.
pub type Claims = Vec<Failures>;
