//! The planner of repair: what must be made anew or moved, in which order, and where to.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{ByTier, Cause, Group, Pace, StripeState, Sums, Task, Tier};
use crate::ids::{NodeId, VolumeId};
use crate::layout::Layout;

/// What a node told last of one of its volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Room {
    /// Bytes it may hold.
    pub capacity_bytes: u64,
    /// Bytes in live records.
    pub used_bytes: u64,
    /// Bytes still free on its disk.
    pub free_bytes: u64,
}

/// What the planner looks at besides the catalog.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The present layout.
    pub layout: &'a Layout,
    /// How long each node that is not up has been silent; absent when it is heard.
    pub silent: &'a BTreeMap<NodeId, Duration>,
    /// Timings.
    pub pace: &'a Pace,
    /// What nodes told last of their volumes; a volume that is absent here is taken to have room.
    pub rooms: &'a BTreeMap<VolumeId, Room>,
}

/// All stored content judged at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Survey {
    /// Content by how close it is to loss.
    pub by_tier: ByTier,
    /// Content that does not keep the contract of its profile.
    pub below_contract: Sums,
    /// The closest to loss of all; absent when nothing is stored.
    pub worst: Option<Tier>,
    /// Sums of `work` by cause; `shard_bytes` are the bytes of all shards to be written.
    pub waiting: BTreeMap<Cause, Sums>,
    /// What may be done now, most urgent first.
    pub work: Vec<Work>,
    /// What is known and not done, and why, for people.
    pub held_back: Vec<String>,
}

/// One piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Work {
    /// How close to loss it is.
    pub tier: Tier,
    /// Why it is to be done.
    pub cause: Cause,
    /// What it is about.
    pub what: Item,
}

/// What a piece of work is about. The order is that of age as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// All stripes of the group with this index that are not incomplete.
    Group(usize),
    /// The incomplete stripe with this index.
    Stripe(usize),
}

/// What is to be done about one stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// This.
    Task(Task),
    /// It is where it should be.
    Nothing,
    /// Something should be done but not now, or cannot be on the present layout, for this reason.
    Wait(String),
    /// It cannot be repaired even if everything returned that may return, for this reason.
    Impossible(String),
}

/// Judges everything stored. `incomplete` are the stripes with a shard that is not persisted; their groups' sums contain
/// them too.
pub fn survey(groups: &[Group], incomplete: &[StripeState], situation: &Situation<'_>) -> Survey {
    let _ = (groups, incomplete, situation);
    Survey::default()
}

/// What is to be done about one stripe now.
pub fn task(state: &StripeState, situation: &Situation<'_>) -> Planned {
    let _ = (state, situation);
    Planned::Nothing
}
