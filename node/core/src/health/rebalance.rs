//! Evening out how full volumes are: which stripes leave which volumes, and where to.
//!
//! **Measure.** A volume should be as full as all together are: its share of the bytes stored is its share of the
//! capacity. What nodes tell of used bytes lags behind: what was moved off stays used until it is swept, what was moved in
//! was told moments ago. What the catalog knows does not lag but knows no overhead; scaled by the overhead of all it is a
//! second estimate. A source is taken to hold the smaller of both, a target the larger.
//!
//! **Quiet.** A move needs a source fuller, or a target emptier, than the mean by more than `rebalance_percent` points; so
//! a new volume gets its share although nobody else is much too full. Sources shrink to the mean and targets grow to it,
//! neither crosses it, so no byte moves twice and the total is what was needed.
//!
//! **Invariants.** A shift names only groups of which a shard can move to a volume below the mean without weakening any
//! stripe: where contracts force some sites to be fuller than others, nothing is attempted.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::repair::{Room, Situation};
use super::repair_fate::Facts;
use super::repair_judge::covers_all;
use super::{Cause, Group, StripeState, Task, Tier, held};
use crate::ids::{NodeId, ShardIndex, VolumeId};
use crate::layout::Layout;
use crate::layout::survival::strongest;

/// Stripes to take off a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// Index of the group whose stripes move.
    pub group: usize,
    /// Volume that is fuller than its share.
    pub from: VolumeId,
    /// How much of its shards to move, in bytes.
    pub shards_bytes: u64,
}

/// Which groups to take stripes from, and how much, to even out fullness; empty when it is even enough. Carry out all of
/// it, or any part, before asking again with what nodes have told since.
pub fn shifts(groups: &[Group], situation: &Situation<'_>) -> Vec<Shift> {
    let Some(levels) = Levels::of(groups, situation) else { return Vec::new() };
    let mut sources = levels.sources();
    let mut deficits = levels.deficits(situation);
    let (over, under) = (levels.those(Level::over), levels.those(Level::under));
    let full: BTreeSet<VolumeId> = sources.iter().map(|(volume, _)| *volume).collect();
    let mut on: BTreeMap<VolumeId, Vec<usize>> = BTreeMap::new();
    for (index, group) in groups.iter().enumerate().filter(|(_, group)| group.sums.stripes > 0) {
        if group.volumes.iter().all(|volume| situation.layout.counts(*volume)) {
            let held: BTreeSet<VolumeId> =
                group.volumes.iter().copied().filter(|volume| full.contains(volume)).collect();
            held.into_iter().for_each(|volume| on.entry(volume).or_default().push(index));
        }
    }
    let mut ways = Ways { layout: situation.layout, known: BTreeMap::new() };
    let mut shifts = Vec::new();
    for (from, excess) in &mut sources {
        for &index in on.get(from).into_iter().flatten() {
            let group = &groups[index];
            let shard = group.sums.shard_bytes.div_ceil(group.sums.stripes).max(1);
            let shards = group.volumes.iter().filter(|volume| *volume == from).count() as u64;
            let (mut rest, mut moved) = (group.sums.shard_bytes.saturating_mul(shards).min(*excess), 0);
            while rest >= shard {
                let wanted = |to: &VolumeId| over.contains(from) || under.contains(to);
                let fits = deficits.iter().filter(|(to, deficit)| **deficit >= shard && wanted(to));
                let fits = fits.filter(|(to, _)| !group.volumes.contains(to));
                let mut fits: Vec<(VolumeId, u64)> = fits.map(|(to, deficit)| (*to, *deficit)).collect();
                fits.sort_unstable_by_key(|&(to, deficit)| (Reverse(deficit), to));
                let Some(&(to, deficit)) = fits.iter().find(|(to, _)| ways.open(group, *from, *to)) else { break };
                let take = rest.min(deficit);
                deficits.insert(to, deficit - take);
                (rest, moved) = (rest - take, moved + take);
            }
            *excess -= moved;
            if moved > 0 {
                shifts.push(Shift { group: index, from: *from, shards_bytes: moved });
            }
        }
    }
    shifts
}

/// The move of one stripe's shard off `from`, to a volume that is less full; none when that would weaken the stripe, or
/// when its shards are not all in place.
pub fn shift_task(state: &StripeState, from: VolumeId, situation: &Situation<'_>) -> Option<Task> {
    let (layout, k) = (situation.layout, state.code.data());
    let at = state.volumes.iter().position(|volume| *volume == from)?;
    let shard = ShardIndex(u8::try_from(at).ok()?);
    let whole = (0..state.volumes.len()).all(|bit| state.persisted & (1 << bit) != 0);
    if !whole || !state.volumes.iter().all(|volume| layout.counts(*volume)) {
        return None;
    }
    let shard_bytes = state.code.shard_bytes(state.stripe_bytes);
    let told = Told::of(situation);
    // Neither side crosses the mean: each move brings all closer to it, so there is an end.
    if told.share(from).is_none_or(|(used, mean, _)| used < mean + u128::from(shard_bytes)) {
        return None;
    }
    let facts = Facts::of(situation);
    let deficit = |to: VolumeId| {
        let (used, mean, _) = told.share(to)?;
        let fits = used + u128::from(shard_bytes) <= mean;
        (fits && layout.writable(to) && facts.has_room(to, shard_bytes)).then(|| (to, mean - used))
    };
    let others = situation.rooms.keys().filter(|to| !state.volumes.contains(to));
    let fits: Vec<(VolumeId, u128)> = others.filter_map(|to| deficit(*to)).collect();
    let before = strongest(&held(&state.volumes, state.persisted), k, layout);
    let first = drawn(&fits, state)?;
    let to = (0..fits.len()).map(|turn| fits[(first + turn) % fits.len()].0).find(|to| {
        let mut volumes = state.volumes.clone();
        volumes[at] = *to;
        covers_all(&strongest(&held(&volumes, state.persisted), k, layout), &before)
    })?;
    crate::sometimes!("recovery: shard to be moved off a fuller volume");
    Some(Task {
        instance: state.instance,
        stripe: state.stripe,
        expected: state.volumes.clone(),
        persisted: state.persisted,
        moves: vec![(shard, to)],
        cause: Cause::Rebalance,
        tier: Tier::of(&held(&state.volumes, state.persisted), k, layout),
        write_bytes: shard_bytes,
    })
}

/// One of them, by weight; which one depends on the stripe alone.
fn drawn(fits: &[(VolumeId, u128)], state: &StripeState) -> Option<usize> {
    let total: u128 = fits.iter().map(|(_, weight)| *weight).sum();
    let mut input = [0_u8; 20];
    input[..16].copy_from_slice(&state.instance.0);
    input[16..].copy_from_slice(&state.stripe.0.to_le_bytes());
    let draw = blake3::hash(&input).as_bytes().first_chunk().map_or(0, |first| u64::from_le_bytes(*first));
    // Shifted down so that the product stays within 128 bits: weights are bytes of volumes.
    let mut point = (u128::from(draw >> 32) * total) >> 32;
    for (index, (_, weight)) in fits.iter().enumerate() {
        match point.checked_sub(*weight) {
            Some(left) => point = left,
            None => return Some(index),
        }
    }
    fits.len().checked_sub(1)
}

/// What nodes tell of the volumes that share the load.
struct Told<'a> {
    situation: Situation<'a>,
    used: u128,
    capacity: u128,
}

impl<'a> Told<'a> {
    fn of(situation: &Situation<'a>) -> Self {
        let mut told = Self { situation: *situation, used: 0, capacity: 0 };
        for room in
            situation.rooms.iter().filter(|(volume, _)| shares(situation.layout, **volume)).map(|(_, room)| room)
        {
            told.used += u128::from(room.used_bytes);
            told.capacity += u128::from(room.capacity_bytes);
        }
        told
    }

    /// Bytes used, bytes it should have, and by how much it may deviate.
    fn share(&self, volume: VolumeId) -> Option<(u128, u128, u128)> {
        let room: &Room = self.situation.rooms.get(&volume)?;
        let capacity = u128::from(room.capacity_bytes);
        let mean = (self.used * capacity).checked_div(self.capacity)?;
        let slack = capacity * u128::from(self.situation.pace.rebalance_percent) / 100;
        shares(self.situation.layout, volume).then_some((u128::from(room.used_bytes), mean, slack))
    }
}

/// True for volumes that are to be equally full: present, and not being emptied.
fn shares(layout: &Layout, volume: VolumeId) -> bool {
    layout.counts(volume) && !layout.draining(volume)
}

/// One volume as it compares with the mean, in bytes as the catalog counts them.
struct Level {
    /// The least it may hold by either estimate.
    low: u128,
    /// The most.
    high: u128,
    mean: u128,
    slack: u128,
}

impl Level {
    fn over(&self) -> bool {
        self.low > self.mean + self.slack
    }

    fn under(&self) -> bool {
        self.high + self.slack < self.mean
    }
}

struct Levels(BTreeMap<VolumeId, Level>);

impl Levels {
    /// `None` when all is even enough or nothing is known.
    fn of(groups: &[Group], situation: &Situation<'_>) -> Option<Self> {
        let told = Told::of(situation);
        let mut catalog: BTreeMap<VolumeId, u128> = BTreeMap::new();
        for group in groups {
            for volume in &group.volumes {
                *catalog.entry(*volume).or_default() += u128::from(group.sums.shard_bytes);
            }
        }
        let known = |volume: &VolumeId| catalog.get(volume).copied().unwrap_or(0);
        let volumes = || situation.rooms.keys().filter(|volume| shares(situation.layout, **volume));
        let stored: u128 = volumes().map(known).sum();
        let used = told.used.max(1);
        let level = |volume: &VolumeId| {
            let (own, mean, slack) = told.share(*volume)?;
            let scaled = |bytes: u128| bytes * stored / used;
            let (own, catalog) = (scaled(own), known(volume));
            let (low, high) = (own.min(catalog), own.max(catalog));
            Some((*volume, Level { low, high, mean: scaled(mean), slack: scaled(slack) }))
        };
        let levels = Self(volumes().filter_map(level).collect());
        let uneven = |level: &Level| level.over() || level.under();
        (stored > 0 && levels.0.values().any(uneven)).then_some(levels)
    }

    fn those(&self, are: fn(&Level) -> bool) -> BTreeSet<VolumeId> {
        self.0.iter().filter(|(_, level)| are(level)).map(|(volume, _)| *volume).collect()
    }

    /// Volumes above the mean with their excess, the fullest first.
    fn sources(&self) -> Vec<(VolumeId, u64)> {
        let above = self.0.iter().filter(|(_, level)| level.low > level.mean);
        let mut above: Vec<(&VolumeId, &Level)> = above.collect();
        above.sort_by_key(|(volume, level)| (Reverse((level.low << 20) / level.mean.max(1)), **volume));
        let excess = |level: &Level| u64::try_from(level.low - level.mean).unwrap_or(u64::MAX);
        above.into_iter().map(|(volume, level)| (*volume, excess(level))).collect()
    }

    /// Volumes below the mean that can take more, with what they lack.
    fn deficits(&self, situation: &Situation<'_>) -> BTreeMap<VolumeId, u64> {
        let lacks = |(volume, level): (&VolumeId, &Level)| {
            let lack = level.mean.checked_sub(level.high).filter(|lack| *lack > 0)?;
            let lack = u64::try_from(lack).unwrap_or(u64::MAX);
            situation.layout.writable(*volume).then_some((*volume, lack))
        };
        self.0.iter().filter_map(lacks).collect()
    }
}

/// Nodes of a group's shards with the one that loses a shard and the one that gets it.
type Way = (usize, Vec<NodeId>, NodeId, NodeId);

/// Which moves weaken nothing, judged once per way.
struct Ways<'a> {
    layout: &'a Layout,
    known: BTreeMap<Way, bool>,
}

impl Ways<'_> {
    fn open(&mut self, group: &Group, from: VolumeId, to: VolumeId) -> bool {
        let node = |volume: VolumeId| self.layout.node_of(volume).map(|node| node.id);
        let (Some(source), Some(target)) = (node(from), node(to)) else { return false };
        if source == target {
            return true;
        }
        let mut nodes: Vec<NodeId> = group.volumes.iter().filter_map(|volume| node(*volume)).collect();
        nodes.sort_unstable();
        let key = (group.code.data(), nodes, source, target);
        if let Some(&open) = self.known.get(&key) {
            return open;
        }
        let mut volumes = group.volumes.clone();
        if let Some(moved) = volumes.iter_mut().find(|volume| **volume == from) {
            *moved = to;
        }
        let k = group.code.data();
        let before = strongest(&group.held(), k, self.layout);
        let open = covers_all(&strongest(&held(&volumes, u32::MAX), k, self.layout), &before);
        self.known.insert(key, open);
        open
    }
}

#[cfg(test)]
#[path = "rebalance_tests.rs"]
mod tests;
