//! Which failures persisted shards survive: the only judge of durability. Placement, acknowledgement, the seal in
//! the state machine, repair order and every displayed promise ask here and nowhere else.
//!
//! **Meaning.** A failure set `{s sites, n nodes}` is *any* `s` whole sites together with *any* `n` further nodes on
//! the sites left. It is survived when at least `k` distinct shards remain whichever they are. Fewer failures than
//! named are included, for losing less never hurts. Shards on volumes of one node fall together; a shard held twice
//! counts once and falls only with its last holder.
//!
//! **Invariants.** Never says yes in error: when `survives` does, no failure set of the contract leaves fewer than `k`
//! distinct shards. Says no only with such a set, or, for stripes with many shards on several nodes each, when
//! [`SEARCH_STEPS_MAX`] do not settle it; the bound keeps `apply` prompt, and every replica stops at the same step. Shards count only on volumes that [`Layout::counts`] admits, and only with an
//! index below [`SHARDS_MAX`].
//!
//! **How.** While no shard is held by two nodes, which is every stripe except some under repair, losses add up and
//! [`Losses`] finds the worst set by a small table over sites. Otherwise the table, giving each shard to one of its
//! holders, errs only towards loss: what it accepts is survived, the rest is settled by a bounded search.
//!
//! **Dominance.** Surviving `{s, n}` implies surviving `{s', n'}` whenever `s' ≤ s` and `n' ≤ n + (s − s')`: widen
//! `s − s'` of the `n'` lost nodes to their whole sites; the widened set loses at least as much and lies within
//! `{s, n}`. This holds on every topology. The converse implications (two nodes for a site) depend on the
//! topology and are never assumed.

use std::{cmp::Reverse, fmt};

use super::{Contract, Failures, Layout};
use crate::ids::{NodeId, ShardIndex, SiteName, VolumeId};
use crate::limits::SHARDS_MAX;

/// Most steps of one search, a microsecond each at worst. Stripes of default profiles with every shard twice need some
/// hundreds; stripes without a shard on two nodes need none.
const SEARCH_STEPS_MAX: usize = 20_000;

/// One durable shard on one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Held {
    /// Which shard of the stripe.
    pub shard: ShardIndex,
    /// Where it lies.
    pub volume: VolumeId,
}

/// A failure set that is not survived, with the arithmetic. Place or repair shards elsewhere, then ask again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Breaks {
    /// The promised failure set.
    pub failures: Failures,
    /// Sites whose loss breaks it; empty when too few shards are present to begin with.
    pub sites: Vec<SiteName>,
    /// Further nodes whose loss breaks it.
    pub nodes: Vec<NodeId>,
    /// Distinct shards certain to remain without them.
    pub remaining: usize,
    /// `k`.
    pub needed: usize,
}

impl fmt::Display for Breaks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { failures, sites, nodes, remaining, needed } = self;
        if sites.is_empty() && nodes.is_empty() {
            return write!(f, "unreadable before any failure: {remaining} distinct shards present, {needed} needed");
        }
        write!(f, "does not survive {failures}: without ")?;
        let sites = sites.iter().map(|site| format!("site {site}"));
        let nodes = nodes.iter().map(|node| format!("node {node}"));
        write!(f, "{}", sites.chain(nodes).collect::<Vec<_>>().join(" and "))?;
        write!(f, " {remaining} distinct shards remain, {needed} needed")
    }
}

/// How many further failures lose data: the smallest count of whole sites (or of single nodes), the worst ones, whose
/// loss leaves fewer than `k` distinct shards. 1: the next one may lose data. 0: already unreadable. Reading the worst
/// case, `sites ≤ nodes`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Distance {
    /// Whole sites until loss.
    pub sites: u8,
    /// Single nodes until loss.
    pub nodes: u8,
}

/// Says whether at least `k` distinct shards remain after every failure set of the contract.
pub fn survives(held: &[Held], k: usize, contract: &Contract, layout: &Layout) -> Result<(), Breaks> {
    let ground = Ground::of(held, layout);
    match contract.failures().iter().find_map(|&failures| ground.breaks(failures, k)) {
        Some(breaks) => Err(breaks),
        None => Ok(()),
    }
}

/// How many further failures lose data; see [`Distance`].
pub fn distance(held: &[Held], k: usize, layout: &Layout) -> Distance {
    let ground = Ground::of(held, layout);
    let sites = (0..ground.sites.len()).find(|&sites| !ground.keeps(sites, 0, k));
    let nodes = (0..ground.spots.len()).find(|&nodes| !ground.keeps(0, nodes, k));
    Distance {
        sites: saturated(sites.unwrap_or(ground.sites.len())),
        nodes: saturated(nodes.unwrap_or(ground.spots.len())),
    }
}

/// All maximal failure sets survived, most sites first: none implies another by dominance, and together they imply
/// everything survived. Empty when fewer than `k` distinct shards are present; `{0, 0}` stands alone. `k` is at least 1.
pub fn strongest(held: &[Held], k: usize, layout: &Layout) -> Vec<Failures> {
    let (ground, k) = (Ground::of(held, layout), k.max(1));
    if !ground.disjoint {
        return maximal(|sites, nodes| ground.keeps(sites, nodes, k));
    }
    let Some(slack) = ground.present().checked_sub(k) else { return Vec::new() };
    let losses = ground.losses(slack, slack);
    maximal(|sites, nodes| losses.within(sites, nodes, slack))
}

/// Says whether `claims`, as from [`strongest`], imply every failure set of the contract by dominance. For claims
/// from `strongest` this equals [`survives`], as long as its searches are settled.
pub fn covers(claims: &[Failures], contract: &Contract) -> bool {
    contract.failures().iter().all(|wanted| claims.iter().any(|claim| dominates(*claim, *wanted)))
}

fn dominates(claim: Failures, wanted: Failures) -> bool {
    let Some(spare) = claim.sites.checked_sub(wanted.sites) else { return false };
    u16::from(wanted.nodes) <= u16::from(claim.nodes) + u16::from(spare)
}

fn saturated(count: usize) -> u8 {
    u8::try_from(count).unwrap_or(u8::MAX)
}

/// The maximal elements of a set of survived failures, given as a predicate that dominance closes downwards and that
/// is false for enough failures.
pub(super) fn maximal(survived: impl Fn(usize, usize) -> bool) -> Vec<Failures> {
    if !survived(0, 0) {
        return Vec::new();
    }
    // nodes[s]: most further nodes survived besides s sites. By dominance nodes[s + 1] < nodes[s].
    let mut nodes = vec![(0..).find(|&more| !survived(0, more + 1)).unwrap_or(0)];
    while survived(nodes.len(), 0) {
        let above = nodes.last().map_or(0, |&last: &usize| last.saturating_sub(1));
        nodes.push((0..=above).rev().find(|&more| survived(nodes.len(), more)).unwrap_or(0));
    }
    let implied = |sites: usize| nodes.get(sites + 1).is_some_and(|&next| nodes[sites] <= next + 1);
    let kept = (0..nodes.len()).rev().filter(|&sites| !implied(sites));
    kept.map(|sites| Failures { sites: saturated(sites), nodes: saturated(nodes[sites]) }).collect()
}

/// One node that holds shards.
struct Spot<'a> {
    site: &'a SiteName,
    node: NodeId,
    /// Bit per shard held.
    shards: u32,
    /// Those of them that no spot found earlier holds.
    own: u32,
}

/// The nodes that hold shards, grouped by site; within a site most own shards first.
struct Ground<'a> {
    spots: Vec<Spot<'a>>,
    /// Own shards of each spot.
    counts: Vec<u8>,
    /// Range of spots of each site.
    sites: Vec<std::ops::Range<usize>>,
    /// No shard is on two nodes.
    disjoint: bool,
}

impl<'a> Ground<'a> {
    fn of(held: &[Held], layout: &'a Layout) -> Self {
        let mut spots: Vec<Spot<'a>> = Vec::with_capacity(held.len());
        let mut seen = 0_u32;
        for one in held {
            if usize::from(one.shard.0) >= SHARDS_MAX || !layout.counts(one.volume) {
                continue;
            }
            let Some(node) = layout.node_of(one.volume) else { continue };
            let bit = 1_u32 << one.shard.0;
            match spots.iter_mut().find(|spot| spot.node == node.id) {
                Some(spot) => {
                    spot.own |= bit & !seen;
                    spot.shards |= bit;
                }
                None => spots.push(Spot { site: &node.site, node: node.id, shards: bit, own: bit & !seen }),
            }
            seen |= bit;
        }
        spots.sort_unstable_by_key(|spot| (spot.site, Reverse(spot.own.count_ones()), spot.node));
        let counts = spots.iter().map(|spot| saturated(spot.own.count_ones() as usize)).collect();
        let mut sites: Vec<std::ops::Range<usize>> = Vec::with_capacity(4);
        for (index, spot) in spots.iter().enumerate() {
            match sites.last_mut() {
                Some(site) if spots[site.start].site == spot.site => site.end = index + 1,
                _ => sites.push(index..index + 1),
            }
        }
        let disjoint = spots.iter().all(|spot| spot.own == spot.shards);
        Self { spots, counts, sites, disjoint }
    }

    /// Distinct shards present.
    fn present(&self) -> usize {
        self.counts.iter().map(|&count| usize::from(count)).sum()
    }

    fn losses(&self, sites: usize, nodes: usize) -> Losses {
        let (sites, nodes) = (sites.min(self.sites.len()), nodes.min(self.spots.len()));
        Losses::of(self.sites.iter().map(|site| &self.counts[site.clone()]), sites, nodes)
    }

    /// True when `k` shards remain after any `sites` and `nodes`.
    fn keeps(&self, sites: usize, nodes: usize, k: usize) -> bool {
        let (sites, nodes) = (sites.min(self.sites.len()), nodes.min(self.spots.len()));
        let remaining = self.present().saturating_sub(self.losses(sites, nodes).most(sites, nodes));
        remaining >= k || (!self.disjoint && matches!(Search::run(self, sites, nodes, k), Found::Nothing))
    }

    /// The failure set that breaks the promise, if one does.
    fn breaks(&self, failures: Failures, k: usize) -> Option<Breaks> {
        let present = self.present();
        let found = |sites, nodes, remaining| Some(Breaks { failures, sites, nodes, remaining, needed: k });
        if present < k {
            return found(Vec::new(), Vec::new(), present);
        }
        let sites = usize::from(failures.sites).min(self.sites.len());
        let nodes = usize::from(failures.nodes).min(self.spots.len());
        let losses = self.losses(sites, nodes);
        if present.saturating_sub(losses.most(sites, nodes)) >= k {
            return None;
        }
        let search = if self.disjoint { Found::Unsettled } else { Search::run(self, sites, nodes, k) };
        let (fallen, remaining) = match search {
            Found::Nothing => return None,
            Found::Breaking(fallen) => {
                let remaining = self.remaining(&fallen).count_ones() as usize;
                (fallen, remaining)
            }
            // The table's answer: true while no shard is on two nodes, otherwise the least that is certain.
            Found::Unsettled => (self.named(&losses.worst(sites, nodes)), present - losses.most(sites, nodes)),
        };
        found(
            fallen.sites.iter().map(|&site| self.spots[self.sites[site].start].site.clone()).collect(),
            fallen.nodes.iter().map(|&spot| self.spots[spot].node).collect(),
            remaining,
        )
    }

    /// Spots for the table's answer, which counts nodes from each site's fullest.
    fn named(&self, fates: &[Fate]) -> Fallen {
        let mut fallen = Fallen::default();
        for (site, fate) in fates.iter().enumerate() {
            match *fate {
                Fate::Whole => fallen.sites.push(site),
                Fate::Nodes(count) => fallen.nodes.extend(self.sites[site].clone().take(count)),
            }
        }
        fallen
    }

    /// Shards that remain without the fallen.
    fn remaining(&self, fallen: &Fallen) -> u32 {
        let alive = |(site, range): (usize, &std::ops::Range<usize>)| {
            let spots = if fallen.sites.contains(&site) { 0..0 } else { range.clone() };
            spots.filter(|spot| !fallen.nodes.contains(spot)).fold(0, |shards, spot| shards | self.spots[spot].shards)
        };
        self.sites.iter().enumerate().map(alive).fold(0, |all, shards| all | shards)
    }
}

/// What falls, as indexes into the ground.
#[derive(Default)]
struct Fallen {
    sites: Vec<usize>,
    nodes: Vec<usize>,
}

/// Depth-first search for a failure set that leaves fewer than `k`, for stripes with shards on several nodes.
///
/// Nodes fall or stand in turn, fullest first. A shard on a standing node is safe. A shard with `h` undecided holders is
/// worth `1/h` to each, for all must fall: no `left` nodes can take more than the `left` largest sums of such worths,
/// and a branch whose bound is too small is left.
struct Search<'a> {
    ground: &'a Ground<'a>,
    /// Spots, most shards first.
    order: Vec<usize>,
    nodes: usize,
    k: usize,
    fallen: Fallen,
    steps_left: usize,
}

/// What the search found.
enum Found {
    /// Nothing: survived.
    Nothing,
    /// This failure set.
    Breaking(Fallen),
    /// [`SEARCH_STEPS_MAX`] were not enough; taken as not survived.
    Unsettled,
}

/// One shard, in the fixed point of the search's worths.
const WHOLE: u32 = 1 << 20;

impl Search<'_> {
    fn run(ground: &Ground<'_>, sites: usize, nodes: usize, k: usize) -> Found {
        let mut order: Vec<usize> = (0..ground.spots.len()).collect();
        order.sort_by_key(|&spot| Reverse(ground.spots[spot].shards.count_ones()));
        let fallen = Fallen::default();
        let mut search = Search { ground, order, nodes, k, fallen, steps_left: SEARCH_STEPS_MAX };
        match (search.fell_sites(0, sites), search.steps_left) {
            (_, 0) => Found::Unsettled,
            (true, _) => Found::Breaking(search.fallen),
            (false, _) => Found::Nothing,
        }
    }

    fn fell_sites(&mut self, from: usize, left: usize) -> bool {
        if left == 0 {
            return self.fell_nodes(0, self.nodes, 0);
        }
        for site in from..=self.ground.sites.len() - left {
            self.fallen.sites.push(site);
            if self.fell_sites(site + 1, left - 1) {
                return true;
            }
            self.fallen.sites.pop();
        }
        false
    }

    /// Decides the nodes from `at` on, `left` of which may fall. Out of steps it ends with true.
    fn fell_nodes(&mut self, at: usize, left: usize, safe: u32) -> bool {
        self.steps_left = self.steps_left.saturating_sub(1);
        let remaining = self.ground.remaining(&self.fallen);
        let excess = (remaining.count_ones() as usize + 1).saturating_sub(self.k);
        if excess == 0 || self.steps_left == 0 {
            return true;
        }
        if self.bound(at, left, remaining & !safe) < excess as u64 * u64::from(WHOLE) {
            return false;
        }
        let Some(&spot) = self.order.get(at) else { return false };
        if !self.stands(spot) {
            return self.fell_nodes(at + 1, left, safe);
        }
        if left > 0 {
            self.fallen.nodes.push(spot);
            if self.fell_nodes(at + 1, left - 1, safe) {
                return true;
            }
            self.fallen.nodes.pop();
        }
        self.fell_nodes(at + 1, left, safe | self.ground.spots[spot].shards)
    }

    /// No `left` of the nodes from `at` on take more of the `open` shards than this many [`WHOLE`]s.
    fn bound(&self, at: usize, left: usize, open: u32) -> u64 {
        let undecided = || self.order[at..].iter().filter(|&&spot| self.stands(spot));
        let shards = |spot: usize| {
            let held = self.ground.spots[spot].shards & open;
            (0..SHARDS_MAX).filter(move |shard| held & (1 << shard) != 0)
        };
        let mut holders = [0_u32; SHARDS_MAX];
        undecided().flat_map(|&spot| shards(spot)).for_each(|shard| holders[shard] += 1);
        let worth = |&spot: &usize| shards(spot).map(|shard| u64::from(WHOLE.div_ceil(holders[shard]))).sum();
        let mut worths: Vec<u64> = undecided().map(worth).collect();
        worths.sort_unstable_by_key(|&worth| Reverse(worth));
        worths.iter().take(left).sum()
    }

    fn stands(&self, spot: usize) -> bool {
        !self.fallen.sites.iter().any(|&site| self.ground.sites[site].contains(&spot))
    }
}

/// What the worst failure set does to one site.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// The whole site falls.
    Whole,
    /// So many of its fullest nodes fall.
    Nodes(usize),
}

/// Most shards lost for every count of sites and nodes, when no shard is on two nodes.
///
/// A table per prefix of the sites: `most[i][s][n]` over the first `i` sites is the best of losing site `i` whole, or
/// its `j` fullest nodes. Exact because losses of different sites add up, and within a site the fullest nodes are worst.
pub(super) struct Losses {
    sites: usize,
    nodes: usize,
    /// Whole loss of each site, and running sums over its nodes, fullest first.
    sums: Vec<Vec<u8>>,
    most: Vec<u8>,
}

impl Losses {
    /// The table for up to `sites` and `nodes` failures, from each site's shards by node, fullest first.
    pub(super) fn of<'c>(counts: impl Iterator<Item = &'c [u8]>, sites: usize, nodes: usize) -> Self {
        let sums = |counts: &[u8]| -> Vec<u8> {
            let mut sum = 0_u8;
            let running = counts.iter().map(|&count| {
                sum = sum.saturating_add(count);
                sum
            });
            std::iter::once(0).chain(running).collect()
        };
        let sums: Vec<Vec<u8>> = counts.map(sums).collect();
        let step = (sites + 1) * (nodes + 1);
        let mut table = Self { sites, nodes, most: vec![0; step * (sums.len() + 1)], sums };
        for stage in 0..table.sums.len() {
            for at_sites in 0..=sites {
                for at_nodes in 0..=nodes {
                    let cell = table.cell(stage + 1, at_sites, at_nodes);
                    table.most[cell] =
                        table.options(stage, at_sites, at_nodes).map(|(loss, _)| loss).max().unwrap_or(0);
                }
            }
        }
        table
    }

    fn cell(&self, stage: usize, sites: usize, nodes: usize) -> usize {
        (stage * (self.sites + 1) + sites) * (self.nodes + 1) + nodes
    }

    /// What may befall site `stage`, with the total lost up to and including it.
    fn options(&self, stage: usize, sites: usize, nodes: usize) -> impl Iterator<Item = (u8, Fate)> + '_ {
        let sums = &self.sums[stage];
        let single = (0..sums.len().min(nodes + 1)).map(move |count| {
            (self.most[self.cell(stage, sites, nodes - count)].saturating_add(sums[count]), Fate::Nodes(count))
        });
        let whole = sites.checked_sub(1).map(|before| {
            let all = sums.last().copied().unwrap_or(0);
            (self.most[self.cell(stage, before, nodes)].saturating_add(all), Fate::Whole)
        });
        single.chain(whole)
    }

    /// Most shards that `sites` and `nodes`, both within the table, can take.
    pub(super) fn most(&self, sites: usize, nodes: usize) -> usize {
        usize::from(self.most[self.cell(self.sums.len(), sites, nodes)])
    }

    /// True when `sites` and `nodes` take at most `slack`. Failures beyond the table, which must reach to `slack` or
    /// to everything there is, take more.
    pub(super) fn within(&self, sites: usize, nodes: usize, slack: usize) -> bool {
        sites <= self.sites && nodes <= self.nodes && self.most(sites, nodes) <= slack
    }

    /// One worst failure set, as the fate of each site; fewest failures where several are equal.
    fn worst(&self, mut sites: usize, mut nodes: usize) -> Vec<Fate> {
        let mut fates = vec![Fate::Nodes(0); self.sums.len()];
        for stage in (0..self.sums.len()).rev() {
            let most = self.most[self.cell(stage + 1, sites, nodes)];
            let found = self.options(stage, sites, nodes).find(|&(loss, _)| loss == most);
            if let Some((_, fate)) = found {
                fates[stage] = fate;
                match fate {
                    Fate::Whole => sites -= 1,
                    Fate::Nodes(count) => nodes -= count,
                }
            }
        }
        fates
    }
}

#[cfg(test)]
#[path = "survival_tests.rs"]
mod tests;
