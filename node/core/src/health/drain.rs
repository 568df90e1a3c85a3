//! What emptying a node or a volume would mean, told before it is begun.
//!
//! **Safe** means: every profile that can be kept with what is to be emptied can be kept without it (as `apply` of the
//! drain will judge; what is being drained already is not counted on), every stripe there that keeps its contract can keep
//! it elsewhere, and there is room for what moves. Here the judgement is stricter than in `apply`: it also asks whether a profile
//! could be kept with and without if fenced volumes were replaced, or a drain begun in bad days would hold up their repair.
//!
//! **Room.** Of each volume that may take shards, what its node told as free less [`RESERVE_PERCENT`] of its capacity,
//! where clients' writes stop. Where only some sites can take a stripe's shards without weakening it, those sites must
//! have the room. That is necessary, not sufficient: whether nodes within a site divide it well is not looked at.
//!
//! **Invariants.** Groups count every stripe once, so `moves` is what the catalog places there, present or not. `empty` is
//! said only when that is nothing.

use std::collections::{BTreeMap, BTreeSet};

use super::report::DrainPlan;
use super::what_if::{add, seconds_for};
use super::{Group, Room, Sums};
use crate::catalog::command::DrainTarget;
use crate::ids::{NodeId, SiteName, VolumeId};
use crate::layout::plan::{Topology, check_possible};
use crate::layout::survival::{Held, survives};
use crate::layout::{Contract, Layout, NodeState, VolumeState};

/// Part of each volume that moves leave free: clients' writes stop there, and a drain must not stop them.
pub const RESERVE_PERCENT: u64 = 10;

/// What emptying `target` means now. With a rate of 0 no time is estimated.
pub fn drain_plan(
    target: DrainTarget,
    layout: &Layout,
    groups: &[Group],
    rooms: &BTreeMap<VolumeId, Room>,
    rate_bytes_per_s: u64,
) -> DrainPlan {
    let leaving: BTreeSet<VolumeId> = match target {
        DrainTarget::Node(node) => {
            layout.volumes.values().filter(|volume| volume.node == node).map(|volume| volume.id).collect()
        }
        DrainTarget::Volume(volume) => layout.volumes.contains_key(&volume).then_some(volume).into_iter().collect(),
    };
    let left = left_without(&leaving, layout);
    let elsewhere = Elsewhere::of(&left, rooms);
    let mut reasons = Vec::new();
    let contracts = contracts_hold(&leaving, layout, &left, &mut reasons);
    let mut moves = Sums::default();
    let mut weakened = Sums::default();
    let mut demand: BTreeMap<BTreeSet<SiteName>, u64> = BTreeMap::new();
    for group in groups {
        let shards = group.volumes.iter().filter(|volume| leaving.contains(volume)).count() as u64;
        if shards == 0 || group.sums.stripes == 0 {
            continue;
        }
        let bytes = group.sums.shard_bytes.saturating_mul(shards);
        add(&mut moves, Sums { shard_bytes: bytes, ..group.sums });
        match elsewhere.sites_for(group, layout) {
            Some(sites) => *demand.entry(sites).or_default() += bytes,
            None => {
                add(&mut weakened, group.sums);
                *demand.entry(elsewhere.free.keys().cloned().collect()).or_default() += bytes;
            }
        }
    }
    if weakened.stripes > 0 {
        reasons.push(format!(
            "{} stripes ({} bytes of content) that keep their contract now could not keep it elsewhere",
            weakened.stripes, weakened.content_bytes
        ));
    }
    let roomy = elsewhere.has_room(&demand, moves.shard_bytes, &mut reasons);
    DrainPlan {
        target,
        volumes: leaving.into_iter().collect(),
        safe: contracts && weakened.stripes == 0 && roomy,
        reasons,
        moves,
        free_elsewhere_bytes: elsewhere.free.values().fold(0, |total: u64, free| total.saturating_add(*free)),
        takes_s: seconds_for(moves.shard_bytes, rate_bytes_per_s),
        rate_bytes_per_s,
        empty: moves.stripes == 0,
    }
}

/// The layout once everything that is to be empty is gone.
fn left_without(leaving: &BTreeSet<VolumeId>, layout: &Layout) -> Layout {
    let mut left = layout.clone();
    for volume in left.volumes.values_mut() {
        if leaving.contains(&volume.id) || layout.draining(volume.id) {
            volume.state = VolumeState::Fenced;
        }
    }
    left
}

/// Judges each profile as `apply` of the drain will, with a line for each.
fn contracts_hold(leaving: &BTreeSet<VolumeId>, layout: &Layout, left: &Layout, reasons: &mut Vec<String>) -> bool {
    let mut with = left.clone();
    for volume in leaving {
        if let (Some(known), Some(before)) = (with.volumes.get_mut(volume), layout.volumes.get(volume)) {
            known.state = before.state;
        }
    }
    // As if every fenced volume that may be replaced were.
    let mended = |layout_then: &Layout| {
        let mut mended = layout_then.clone();
        let others = mended.volumes.values_mut().filter(|volume| !leaving.contains(&volume.id));
        others.filter(|volume| !layout.draining(volume.id)).for_each(|volume| volume.state = VolumeState::Up);
        Topology::of(&mended)
    };
    let (mended_with, mended_without) = (mended(&with), mended(left));
    let (with, without) = (Topology::of(&with), Topology::of(left));
    // What is on nodes that are gone holds up nothing.
    let gone = |id| layout.node_of(id).is_none_or(|node| !matches!(node.state, NodeState::Up | NodeState::Suspect));
    let there = leaving.iter().any(|id| !gone(*id));
    let waits = |profile| {
        there && check_possible(profile, &mended_with).is_ok() && check_possible(profile, &mended_without).is_err()
    };
    let mut hold = true;
    for profile in layout.profiles.values() {
        let contract = &profile.contract;
        let text = match (check_possible(profile, &with), check_possible(profile, &without)) {
            (_, Ok(())) => format!("profile {} keeps its contract ({contract}) without it", profile.name),
            (Ok(()), Err(why)) => {
                hold = false;
                format!("without it, {why}")
            }
            (Err(why), Err(_)) if waits(profile) => {
                hold = false;
                format!("already now, {why}; first replace the fenced volumes, or remove their nodes")
            }
            (Err(why), Err(_)) => format!("already now, {why}"),
        };
        reasons.push(text);
    }
    hold
}

/// Where shards may go.
struct Elsewhere<'a> {
    layout: &'a Layout,
    /// Bytes that the volumes of each site may take.
    free: BTreeMap<SiteName, u64>,
    /// Nodes of each site with volumes that may take shards, and one such volume.
    takers: BTreeMap<SiteName, BTreeMap<NodeId, VolumeId>>,
    /// Volumes whose room nobody has told.
    untold: usize,
}

impl<'a> Elsewhere<'a> {
    fn of(left: &'a Layout, rooms: &BTreeMap<VolumeId, Room>) -> Self {
        let mut it = Self { layout: left, free: BTreeMap::new(), takers: BTreeMap::new(), untold: 0 };
        for volume in left.volumes.values().filter(|volume| left.writable(volume.id)) {
            let Some(node) = left.node_of(volume.id) else { continue };
            let free = match rooms.get(&volume.id) {
                Some(room) => room.free_bytes.saturating_sub(room.capacity_bytes / 100 * RESERVE_PERCENT),
                None => {
                    it.untold += 1;
                    0
                }
            };
            let total = it.free.entry(node.site.clone()).or_default();
            *total = total.saturating_add(free);
            it.takers.entry(node.site.clone()).or_default().entry(node.id).or_insert(volume.id);
        }
        it
    }

    /// Sites that can each take the leaving shards of these stripes without breaking their contract; all of them when
    /// the contract does not hold now, or when only several sites together can. `None` when it could not be kept.
    fn sites_for(&self, group: &Group, layout: &Layout) -> Option<BTreeSet<SiteName>> {
        let all = || self.free.keys().cloned().collect();
        let Some(contract) = layout.profiles.get(&group.profile).map(|profile| &profile.contract) else {
            return Some(all());
        };
        if survives(&group.held(), group.code.data(), contract, layout).is_err() {
            return Some(all());
        }
        let takes = |site: &&SiteName| self.keeps(group, contract, std::slice::from_ref(*site));
        let single: BTreeSet<SiteName> = self.takers.keys().filter(takes).cloned().collect();
        if !single.is_empty() {
            return Some(single);
        }
        let sites: Vec<SiteName> = self.takers.keys().cloned().collect();
        self.keeps(group, contract, &sites).then(all)
    }

    /// True when the contract holds with the shards that must move on these sites, dealt one by one to the site, and
    /// there the node, with fewest shards of the stripe. Shards on volumes fenced or drained before move as well.
    fn keeps(&self, group: &Group, contract: &Contract, sites: &[SiteName]) -> bool {
        let stays = |held: &Held| {
            self.layout.volumes.get(&held.volume).is_some_and(|volume| volume.state != VolumeState::Fenced)
        };
        let (mut held, moving): (Vec<Held>, Vec<Held>) = group.held().into_iter().partition(stays);
        let mut on_site: BTreeMap<&SiteName, usize> = BTreeMap::new();
        let mut on_node: BTreeMap<NodeId, usize> = BTreeMap::new();
        for node in held.iter().filter_map(|held| self.layout.node_of(held.volume)) {
            *on_site.entry(&node.site).or_default() += 1;
            *on_node.entry(node.id).or_default() += 1;
        }
        for Held { shard, .. } in moving {
            let nodes = sites.iter().filter_map(|site| Some((site, self.takers.get(site)?)));
            let seats = nodes.flat_map(|(site, nodes)| nodes.iter().map(move |(node, volume)| (site, *node, *volume)));
            let load = |&(site, node, _): &(&SiteName, NodeId, VolumeId)| {
                (on_site.get(site).copied().unwrap_or(0), on_node.get(&node).copied().unwrap_or(0))
            };
            let Some((site, node, volume)) = seats.min_by_key(load) else { return false };
            held.push(Held { shard, volume });
            *on_site.entry(site).or_default() += 1;
            *on_node.entry(node).or_default() += 1;
        }
        survives(&held, group.code.data(), contract, self.layout).is_ok()
    }

    fn has_room(&self, demand: &BTreeMap<BTreeSet<SiteName>, u64>, bytes: u64, reasons: &mut Vec<String>) -> bool {
        let free = |sites: &BTreeSet<SiteName>| {
            let of = self.free.iter().filter(|(site, _)| sites.contains(*site));
            of.fold(0_u64, |total, (_, free)| total.saturating_add(*free))
        };
        let everywhere: BTreeSet<SiteName> = self.free.keys().cloned().collect();
        let total = free(&everywhere);
        reasons.push(format!(
            "{bytes} bytes are to be moved, and the volumes that can take them have {total} bytes free beyond the \
             {RESERVE_PERCENT} % kept for clients' writes"
        ));
        if self.untold > 0 && bytes > 0 {
            reasons.push(format!("{} volumes have not told yet how much is free on them; taken as full", self.untold));
        }
        let mut roomy = bytes <= total;
        for sites in demand.keys().filter(|sites| **sites != everywhere) {
            let bound = demand.iter().filter(|(within, _)| within.is_subset(sites));
            let needed = bound.fold(0_u64, |total, (_, bytes)| total.saturating_add(*bytes));
            if needed > free(sites) {
                roomy = false;
                let names: Vec<&str> = sites.iter().map(SiteName::as_str).collect();
                reasons.push(format!(
                    "{needed} bytes of them can keep their contract only on site {}, where {} bytes are free",
                    names.join(" or "),
                    free(sites)
                ));
            }
        }
        roomy
    }
}

#[cfg(test)]
#[path = "drain_tests.rs"]
mod tests;
