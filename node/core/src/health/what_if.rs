//! What would be if something were lost now: the question that an operator asks before it happens.
//!
//! **How.** The layout is copied and changed as the log would change it (lost nodes become `Lost`, lost volumes are
//! fenced), and then judged as the real one is: groups by `survival`, new writes by `placement`, voters by counting.
//!
//! **Estimates.** What is to be rebuilt is exact: every shard of readable stripes that is absent afterwards, those absent
//! before the loss included, since repair would have to do them as well. Time divides it by the given rate. Bytes between
//! sites are an estimate: each stripe is rebuilt on the site with most free room, where all its new shards stay; that site
//! reads `k` shards once, its own first. Repair that spreads new shards over several sites moves more.
//!
//! **Invariants.** `by_tier`, `within_contract` and `below_contract` each count all stripes of the groups once. Nothing
//! unreadable is counted as work. Names that the layout does not know are ignored: asking for them is the caller's to refuse.

use std::collections::{BTreeMap, BTreeSet};

use super::report::{WhatIf, WritesUnder};
use super::{ByTier, Group, Loss, Room, StripeState, Sums, Tier, held};
use crate::ids::{NodeId, ProfileName, SiteName, VolumeId};
use crate::layout::placement::Placer;
use crate::layout::profile::Code;
use crate::layout::survival::{Held, survives};
use crate::layout::{Layout, NodeState, Profile, VolumeState};

/// What would be if all of `loss` happened to `layout` at once.
///
/// `groups` hold all that is stored, as if every shard were there; `incomplete` are those stripes of them that lack some.
/// `voters` are the present members of the quorum. With a rate of 0 no time is estimated.
pub fn what_if(
    loss: &Loss,
    layout: &Layout,
    voters: &[NodeId],
    groups: &[Group],
    incomplete: &[StripeState],
    rooms: &BTreeMap<VolumeId, Room>,
    rate_bytes_per_s: u64,
) -> WhatIf {
    let (after, nodes_lost) = without(loss, layout);
    let mut judge = Judge { layout: &after, target: roomiest_site(&after, rooms), totals: Totals::default() };
    judge.all(groups, incomplete);
    let Totals { by_tier, within, below, rebuild, urgent_bytes, wan_bytes } = judge.totals;
    let serving = |id: &&NodeId| {
        let state = after.nodes.get(id).map(|node| node.state);
        matches!(state, Some(NodeState::Up | NodeState::Suspect))
    };
    let (left, of) = (voters.iter().filter(serving).count(), voters.len());
    let quorum = left * 2 > of;
    let writes = after.profiles.values().map(|profile| match quorum {
        true => writes_under(profile, &after),
        false => WritesUnder {
            profile: profile.name.clone(),
            survives: Vec::new(),
            full: false,
            why: format!("{left} of {of} voters are no majority, and without one nothing can be written"),
        },
    });
    WhatIf {
        loss: loss.clone(),
        nodes_lost,
        all_readable: !by_tier.0.contains_key(&Tier::Unreadable),
        by_tier,
        within_contract: within,
        below_contract: below,
        quorum,
        voters: (counted(left), counted(of)),
        writes: writes.collect(),
        rebuild_bytes: rebuild,
        urgent_bytes,
        wan_bytes,
        repair_s: seconds_for(rebuild.shard_bytes, rate_bytes_per_s),
        rate_bytes_per_s,
    }
}

/// Seconds that so many bytes take; absent without a rate.
pub(super) fn seconds_for(bytes: u64, rate_bytes_per_s: u64) -> Option<u64> {
    (rate_bytes_per_s > 0).then(|| bytes.div_ceil(rate_bytes_per_s))
}

fn counted(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// The layout after the loss, and the nodes that are gone with it.
fn without(loss: &Loss, layout: &Layout) -> (Layout, Vec<NodeId>) {
    let mut after = layout.clone();
    let mut nodes_lost = Vec::new();
    for node in after.nodes.values_mut().filter(|node| node.state != NodeState::Removed) {
        if loss.nodes.contains(&node.id) || loss.sites.contains(&node.site) {
            node.state = NodeState::Lost;
            nodes_lost.push(node.id);
        }
    }
    for volume in &loss.volumes {
        if let Some(known) = after.volumes.get_mut(volume) {
            known.state = VolumeState::Fenced;
        }
    }
    (after, nodes_lost)
}

fn writes_under(profile: &Profile, layout: &Layout) -> WritesUnder {
    let name = profile.name.clone();
    match Placer::new(layout, profile, &BTreeSet::new()) {
        Ok(placer) => {
            let why = if placer.degraded() {
                format!("the contract ({}) cannot hold on the nodes and volumes left", profile.contract)
            } else {
                String::new()
            };
            WritesUnder { profile: name, survives: placer.claims().to_vec(), full: !placer.degraded(), why }
        }
        Err(refused) => WritesUnder { profile: name, survives: Vec::new(), full: false, why: refused.to_string() },
    }
}

/// The site whose writable volumes have most room, by capacity where nobody told; the first by name of equal ones.
fn roomiest_site(layout: &Layout, rooms: &BTreeMap<VolumeId, Room>) -> Option<SiteName> {
    let mut free: BTreeMap<&SiteName, u64> = BTreeMap::new();
    for volume in layout.volumes.values().filter(|volume| layout.writable(volume.id)) {
        if let Some(node) = layout.node_of(volume.id) {
            let room = rooms.get(&volume.id).map_or(volume.capacity_bytes, |room| room.free_bytes);
            let total = free.entry(&node.site).or_default();
            *total = total.saturating_add(room);
        }
    }
    let most = free.values().max().copied()?;
    free.into_iter().find(|(_, room)| *room == most).map(|(site, _)| site.clone())
}

#[derive(Default)]
struct Totals {
    by_tier: ByTier,
    within: Sums,
    below: Sums,
    rebuild: Sums,
    urgent_bytes: u64,
    wan_bytes: u64,
}

/// Stripes that share their fate.
struct Fate<'a> {
    volumes: &'a [VolumeId],
    /// Their shards, as if every volume served.
    held: Vec<Held>,
    code: Code,
    profile: &'a ProfileName,
}

/// What is to be added for one stripe, or many, of one fate.
struct Verdict {
    tier: Tier,
    keeps_contract: bool,
    /// Shards to rebuild per stripe; none of what is unreadable.
    absent: u64,
    /// Shards to read from other sites per stripe.
    far: u64,
}

struct Judge<'a> {
    layout: &'a Layout,
    target: Option<SiteName>,
    totals: Totals,
}

impl Judge<'_> {
    fn all(&mut self, groups: &[Group], incomplete: &[StripeState]) {
        let mut lacking: BTreeMap<(&[VolumeId], &ProfileName, Code), Sums> = BTreeMap::new();
        for state in incomplete {
            let sums = one(state);
            add(lacking.entry((&state.volumes, &state.profile, state.code)).or_default(), sums);
            let held = held(&state.volumes, state.persisted);
            let fate = Fate { volumes: &state.volumes, held, code: state.code, profile: &state.profile };
            self.note(&fate, sums);
        }
        for group in groups {
            // Stripes judged above must not count as complete, too. Versions of a profile with one code are one here.
            let mut whole = group.sums;
            if let Some(rest) = lacking.get_mut(&(&group.volumes[..], &group.profile, group.code)) {
                let taken = Sums {
                    stripes: rest.stripes.min(whole.stripes),
                    content_bytes: rest.content_bytes.min(whole.content_bytes),
                    shard_bytes: rest.shard_bytes.min(whole.shard_bytes),
                };
                take(&mut whole, taken);
                take(rest, taken);
            }
            if whole.stripes > 0 {
                let fate =
                    Fate { volumes: &group.volumes, held: group.held(), code: group.code, profile: &group.profile };
                self.note(&fate, whole);
            }
        }
    }

    fn note(&mut self, fate: &Fate<'_>, sums: Sums) {
        let verdict = self.judge(fate);
        let totals = &mut self.totals;
        totals.by_tier.add(verdict.tier, sums);
        add(if verdict.keeps_contract { &mut totals.within } else { &mut totals.below }, sums);
        if verdict.absent == 0 {
            return;
        }
        let rebuilt = sums.shard_bytes.saturating_mul(verdict.absent);
        add(&mut totals.rebuild, Sums { shard_bytes: rebuilt, ..sums });
        totals.wan_bytes = totals.wan_bytes.saturating_add(sums.shard_bytes.saturating_mul(verdict.far));
        if verdict.tier == Tier::Distance(0) {
            totals.urgent_bytes = totals.urgent_bytes.saturating_add(rebuilt);
        }
    }

    fn judge(&self, fate: &Fate<'_>) -> Verdict {
        let k = fate.code.data();
        let tier = Tier::of(&fate.held, k, self.layout);
        let contract = self.layout.profiles.get(fate.profile).map(|profile| &profile.contract);
        let keeps_contract = contract.is_some_and(|contract| survives(&fate.held, k, contract, self.layout).is_ok());
        if tier == Tier::Unreadable {
            return Verdict { tier, keeps_contract, absent: 0, far: 0 };
        }
        let present = fate.held.iter().filter(|held| self.layout.counts(held.volume));
        let near = present.clone().filter(|held| {
            let site = self.layout.node_of(held.volume).map(|node| &node.site);
            site.is_some() && site == self.target.as_ref()
        });
        let absent = fate.volumes.len().saturating_sub(present.count()) as u64;
        let far = k.saturating_sub(near.count()) as u64;
        Verdict { tier, keeps_contract, absent, far }
    }
}

fn one(state: &StripeState) -> Sums {
    let shard_bytes = state.code.shard_bytes(state.stripe_bytes);
    Sums { stripes: 1, content_bytes: state.stripe_bytes, shard_bytes }
}

pub(super) fn add(total: &mut Sums, more: Sums) {
    total.stripes = total.stripes.saturating_add(more.stripes);
    total.content_bytes = total.content_bytes.saturating_add(more.content_bytes);
    total.shard_bytes = total.shard_bytes.saturating_add(more.shard_bytes);
}

fn take(total: &mut Sums, less: Sums) {
    total.stripes = total.stripes.saturating_sub(less.stripes);
    total.content_bytes = total.content_bytes.saturating_sub(less.content_bytes);
    total.shard_bytes = total.shard_bytes.saturating_sub(less.shard_bytes);
}

#[cfg(test)]
#[path = "what_if_tests.rs"]
mod tests;
