//! Placement of shards on volumes.
//!
//! **What it promises.** The strongest survivable set that writable volumes outside `avoid` allow, in the sense of
//! `spread`: the profile's contract whenever it can hold, otherwise the best that is left, down to the
//! profile's floor and never below it. Volumes repeat only when a node has fewer of them than shards to take.
//!
//! **Invariants.** A function of (layout, profile, instance, stripe, avoided volumes): no other input. Never a volume
//! that [`Layout::writable`] denies. This room aims; [`super::survival`] judges what was persisted.
//!
//! **Copysets.** Stripes draw from few volume sets, `V · SCATTER / (k + m)` of them for `V` volumes (copysets, Cidon
//! et al. 2013): a coincident loss of volumes rarely covers one set, and still each volume shares sets with enough
//! others to be rebuilt quickly. Sets are dealt one after another, each time to the sites, nodes and volumes furthest
//! behind their share of capacity, so that shares follow capacity as far as the contract lets them. Sets depend on the
//! volumes and not on the layout's version, so that a change and its reversal give the same sets again.
//! Within a set the order rotates by stripe: each volume gets data shards as often as any other of its set.
//!
//! **Use.** Build one [`Placer`] per (layout version, profile, avoided volumes) and ask it for every stripe.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::spread::{SiteLoad, Spread, strongest_spread};
use super::survival::Held;
use super::{Failures, Layout, NodeState, Profile, VolumeState};
use crate::ids::{InstanceId, LayoutVersion, NodeId, ProfileName, ShardIndex, SiteName, StripeIndex, VolumeId};
use crate::layout::Contract;
use crate::layout::profile::Code;

/// In how many sets each volume takes part, on average. 16 sets of 4+2 reach 80 others, so a lost volume is rebuilt
/// from and to 80 in parallel, and shares follow capacity to about 1/16.
const SCATTER: usize = 16;

/// Why shards cannot be placed. Bring back what is missing, then retry; a retry on the same layout cannot help.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No volume can take a shard.
    #[error("no writable volume: {0}")]
    NoVolume(Volumes),
    /// Whatever is placed survives less than the least the profile allows.
    #[error(transparent)]
    BelowFloor(Box<BelowFloor>),
}

/// The arithmetic of a write refused because too little is left to protect it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "profile {profile} ({code}) accepts no write that survives less than {floor}; {volumes} are writable, on nodes \
     {sites}, and allow at most {}",
    claims_text(best)
)]
pub struct BelowFloor {
    /// Which profile.
    pub profile: ProfileName,
    /// Its code.
    pub code: Code,
    /// Its floor.
    pub floor: Contract,
    /// The strongest that is possible.
    pub best: Vec<Failures>,
    /// Writable nodes of each site that has any.
    pub sites: Sites,
    /// Why there are no more.
    pub volumes: Volumes,
}

/// How many volumes there are, and why not all can take shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Volumes {
    /// All known ones.
    pub known: usize,
    /// Those that can take shards.
    pub writable: usize,
    /// On nodes that are down or removed.
    pub on_absent_nodes: usize,
    /// Out of service.
    pub fenced: usize,
    /// Full or being drained.
    pub read_only: usize,
    /// Otherwise writable, but excluded by the caller.
    pub avoided: usize,
}

impl std::fmt::Display for Volumes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { known, writable, on_absent_nodes, fenced, read_only, avoided } = self;
        write!(f, "{writable} of {known} volumes")?;
        let reasons = [
            (on_absent_nodes, "on nodes that are not up"),
            (fenced, "fenced"),
            (read_only, "read-only"),
            (avoided, "failed in this write"),
        ];
        let reasons = reasons.iter().filter(|(count, _)| **count > 0).map(|(count, why)| format!("{count} {why}"));
        let reasons: Vec<String> = reasons.collect();
        if reasons.is_empty() { Ok(()) } else { write!(f, " ({})", reasons.join(", ")) }
    }
}

/// Writable nodes by site.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sites(pub BTreeMap<SiteName, usize>);

impl std::fmt::Display for Sites {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sites: Vec<String> = self.0.iter().map(|(site, nodes)| format!("{site} {nodes}")).collect();
        f.write_str(&sites.join(", "))
    }
}

fn claims_text(claims: &[Failures]) -> String {
    let claims: Vec<String> = claims.iter().map(ToString::to_string).collect();
    if claims.is_empty() { "nothing readable".to_owned() } else { claims.join("; ") }
}

/// One volume per shard of a stripe, in shard order. Builds a [`Placer`] for this one answer.
pub fn place(
    layout: &Layout,
    profile: &Profile,
    instance: InstanceId,
    stripe: StripeIndex,
    avoid: &BTreeSet<VolumeId>,
) -> Result<Vec<VolumeId>, Error> {
    Ok(Placer::new(layout, profile, avoid)?.place(instance, stripe))
}

/// Homes for the shards of a stripe that `persisted` lacks, in shard order, the strongest together with those that it
/// has. A shard persisted on a volume that no longer counts is given a new home as well; one persisted twice is
/// planned with its first home only. Empty when nothing is lacking.
pub fn replace(
    layout: &Layout,
    profile: &Profile,
    instance: InstanceId,
    stripe: StripeIndex,
    persisted: &[Held],
    avoid: &BTreeSet<VolumeId>,
) -> Result<Vec<(ShardIndex, VolumeId)>, Error> {
    let mut homes: BTreeMap<ShardIndex, VolumeId> = BTreeMap::new();
    let counted = |held: &&Held| usize::from(held.shard.0) < profile.code.total() && layout.counts(held.volume);
    for held in persisted.iter().filter(counted) {
        homes.entry(held.shard).or_insert(held.volume);
    }
    let all = (0..profile.code.data_u8() + profile.code.parity_u8()).map(ShardIndex);
    let lacking: Vec<ShardIndex> = all.filter(|shard| !homes.contains_key(shard)).collect();
    if lacking.is_empty() {
        return Ok(Vec::new());
    }
    let mut field = Field::of(layout, avoid);
    homes.values().for_each(|&volume| field.hold(layout, volume));
    let spread = field.spread(profile, u8::try_from(lacking.len()).unwrap_or(u8::MAX))?;
    let (first, second) = draws(instance, stripe);
    let split = &spread.splits[below(first, spread.splits.len())];
    let volumes = field.deal(&spread, split, Round { salt: second, drawn: true });
    Ok(lacking.into_iter().zip(volumes).collect())
}

/// Answers for every stripe under one layout, one profile and one set of avoided volumes.
#[derive(Debug, Clone)]
pub struct Placer {
    version: LayoutVersion,
    claims: Vec<Failures>,
    contract_holds: bool,
    /// Never empty; each of `k + m` volumes, neighbours on different sites as far as possible.
    sets: Vec<Vec<VolumeId>>,
}

impl Placer {
    /// Deals the volume sets. `avoid` holds volumes found failing since the layout was made.
    pub fn new(layout: &Layout, profile: &Profile, avoid: &BTreeSet<VolumeId>) -> Result<Self, Error> {
        let mut field = Field::of(layout, avoid);
        let shards = profile.code.data_u8() + profile.code.parity_u8();
        let spread = field.spread(profile, shards)?;
        let count = (field.volumes.writable * SCATTER).div_ceil(usize::from(shards)).max(SCATTER);
        let seed = word(&layout.cluster.0);
        let deal = |index: usize| {
            let salt = mixed(seed ^ index as u64);
            let split = field.cheapest(&spread, salt);
            field.deal(&spread, split, Round { salt, drawn: false })
        };
        let sets = (0..count).map(deal).collect();
        Ok(Self { version: layout.version, claims: spread.claims, contract_holds: spread.contract_holds, sets })
    }

    /// Which layout this answers for.
    pub fn version(&self) -> LayoutVersion {
        self.version
    }

    /// What a stripe survives once all its shards are persisted where [`Self::place`] says.
    pub fn claims(&self) -> &[Failures] {
        &self.claims
    }

    /// True when that is less than the profile's contract.
    pub fn degraded(&self) -> bool {
        !self.contract_holds
    }

    /// One volume per shard of a stripe, in shard order.
    pub fn place(&self, instance: InstanceId, stripe: StripeIndex) -> Vec<VolumeId> {
        let (first, second) = draws(instance, stripe);
        let set = &self.sets[below(first, self.sets.len())];
        let mut volumes = set.clone();
        volumes.rotate_left(below(second, set.len()));
        volumes
    }
}

/// Where shards of one stripe could go, for weighing several ways to keep some where they are and to give others new
/// homes. Shards kept on volumes that take no more, or that do not count at this moment, are weighed as present.
#[derive(Debug)]
pub(crate) struct Seats<'a> {
    layout: &'a Layout,
    field: Field<'a>,
    profile: &'a Profile,
    known: BTreeMap<(Vec<SiteLoad>, u8), Option<Worth>>,
}

/// What the strongest way of seating shards survives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Worth {
    /// All of it.
    pub(crate) claims: Vec<Failures>,
    /// Whether the contract of the given profile is among it.
    pub(crate) contract_holds: bool,
}

impl<'a> Seats<'a> {
    /// The writable volumes outside `avoid`.
    pub(crate) fn new(layout: &'a Layout, profile: &'a Profile, avoid: &BTreeSet<VolumeId>) -> Self {
        Self { layout, field: Field::of(layout, avoid), profile, known: BTreeMap::new() }
    }

    /// True when `volume` can be given a shard.
    pub(crate) fn open(&self, volume: VolumeId) -> bool {
        let nodes = self.field.sites.iter().flat_map(|site| &site.nodes);
        nodes.flat_map(|node| &node.volumes).any(|known| known.id == volume)
    }

    /// What is survived at best when shards stay on `kept` and `add` more are seated; `None` when none can be.
    pub(crate) fn worth(&mut self, kept: &[VolumeId], add: u8) -> Option<Worth> {
        let mut loads: Vec<SiteLoad> =
            self.field.holding(self.layout, kept).loads().iter().map(|load| load.normal(add)).collect();
        loads.sort_unstable();
        loads.retain(|load| *load != SiteLoad::default());
        let weigh = |loads: &Vec<SiteLoad>| {
            let spread = strongest_spread(loads, add, self.profile)?;
            Some(Worth { claims: spread.claims, contract_holds: spread.contract_holds })
        };
        let key = (loads, add);
        if let Some(worth) = self.known.get(&key) {
            return worth.clone();
        }
        let worth = weigh(&key.0);
        self.known.insert(key, worth.clone());
        worth
    }

    /// Volumes for `add` shards that make [`Self::worth`] true, drawn for this stripe by capacity.
    pub(crate) fn seat(
        &self,
        kept: &[VolumeId],
        add: u8,
        (instance, stripe): (InstanceId, StripeIndex),
    ) -> Option<Vec<VolumeId>> {
        if add == 0 {
            return Some(Vec::new());
        }
        let mut field = self.field.holding(self.layout, kept);
        let spread = strongest_spread(&field.loads(), add, self.profile)?;
        let (first, second) = draws(instance, stripe);
        let split = &spread.splits[below(first, spread.splits.len())];
        let volumes = field.deal(&spread, split, Round { salt: second, drawn: true });
        (volumes.len() == usize::from(add)).then_some(volumes)
    }
}

/// Something that takes a share by weight.
#[derive(Debug, Clone, Default)]
struct Share {
    /// MiB of capacity, at least 1.
    weight: u128,
    /// Shards given so far by this room.
    given: u64,
    /// Shards of the stripe already here.
    held: u8,
    /// Fixed random number, for ties.
    tie: u64,
}

/// One turn of giving.
#[derive(Debug, Clone, Copy)]
struct Round {
    salt: u64,
    /// Draw by weight instead of giving to the one furthest behind.
    drawn: bool,
}

impl Round {
    /// Orders by who is next: the smaller `(given + phase) / weight`. A phase of one half is Webster's method of
    /// apportionment, which keeps shares proportional; an exponentially distributed one is a draw by weight.
    fn order(self, a: &Share, b: &Share) -> Ordering {
        let claim = |one: &Share| {
            let phase = if self.drawn { exponential(mixed(one.tie ^ self.salt)) } else { 1 << 31 };
            (u128::from(one.given) << 32) + u128::from(phase)
        };
        let tie = |one: &Share| mixed(one.tie ^ self.salt);
        (claim(a) * b.weight).cmp(&(claim(b) * a.weight)).then_with(|| tie(a).cmp(&tie(b)))
    }
}

#[derive(Debug, Clone)]
struct VolumeField {
    id: VolumeId,
    share: Share,
}

#[derive(Debug, Clone)]
struct NodeField {
    id: NodeId,
    share: Share,
    volumes: Vec<VolumeField>,
}

#[derive(Debug, Clone)]
struct SiteField<'a> {
    name: &'a SiteName,
    share: Share,
    nodes: Vec<NodeField>,
    /// Shards of the stripe on nodes without a writable volume.
    closed: BTreeMap<NodeId, u8>,
}

/// The writable volumes by site and node.
#[derive(Debug, Clone)]
struct Field<'a> {
    sites: Vec<SiteField<'a>>,
    weight: u128,
    volumes: Volumes,
}

impl<'a> Field<'a> {
    fn of(layout: &'a Layout, avoid: &BTreeSet<VolumeId>) -> Self {
        let mut sites: BTreeMap<&SiteName, BTreeMap<NodeId, Vec<VolumeField>>> = BTreeMap::new();
        let mut volumes = Volumes::default();
        for volume in layout.volumes.values() {
            volumes.known += 1;
            let node = layout.node_of(volume.id).filter(|node| node.state == NodeState::Up);
            match (node, volume.state) {
                (None, _) | (_, VolumeState::Away) => volumes.on_absent_nodes += 1,
                (_, VolumeState::Fenced) => volumes.fenced += 1,
                (_, VolumeState::ReadOnly) => volumes.read_only += 1,
                _ if layout.draining(volume.id) => volumes.read_only += 1,
                _ if avoid.contains(&volume.id) => volumes.avoided += 1,
                (Some(node), VolumeState::Up) => {
                    volumes.writable += 1;
                    let weight = u128::from((volume.capacity_bytes >> 20).max(1));
                    let share = Share { weight, tie: word(&volume.id.0), ..Share::default() };
                    let known = sites.entry(&node.site).or_default().entry(node.id).or_default();
                    known.push(VolumeField { id: volume.id, share });
                }
            }
        }
        let sites: Vec<SiteField<'a>> = sites.into_iter().map(|(name, nodes)| SiteField::of(name, nodes)).collect();
        Self { weight: sites.iter().map(|site| site.share.weight).sum(), sites, volumes }
    }

    /// Notes a shard of the stripe that already lies on `volume`.
    fn hold(&mut self, layout: &'a Layout, volume: VolumeId) {
        let Some(node) = layout.node_of(volume) else { return };
        let at = match self.sites.iter().position(|site| *site.name == node.site) {
            Some(at) => at,
            None => {
                self.sites.push(SiteField::of(&node.site, BTreeMap::new()));
                self.sites.len() - 1
            }
        };
        let site = &mut self.sites[at];
        match site.nodes.iter_mut().find(|known| known.id == node.id) {
            Some(known) => {
                known.share.held += 1;
                known.volumes.iter_mut().filter(|known| known.id == volume).for_each(|known| known.share.held += 1);
            }
            None => *site.closed.entry(node.id).or_default() += 1,
        }
    }

    /// The same with shards of the stripe on these volumes.
    fn holding(&self, layout: &'a Layout, volumes: &[VolumeId]) -> Self {
        let mut field = self.clone();
        volumes.iter().for_each(|&volume| field.hold(layout, volume));
        field
    }

    fn loads(&self) -> Vec<SiteLoad> {
        let load = |site: &SiteField<'_>| SiteLoad {
            open: site.nodes.iter().map(|node| node.share.held).collect(),
            closed: site.closed.values().copied().collect(),
        };
        self.sites.iter().map(load).collect()
    }

    /// The strongest spread of `add` shards, if there is one at or above the floor.
    fn spread(&self, profile: &Profile, add: u8) -> Result<Spread, Error> {
        let spread = strongest_spread(&self.loads(), add, profile).ok_or(Error::NoVolume(self.volumes))?;
        if spread.floor_holds {
            return Ok(spread);
        }
        let open = self.sites.iter().filter(|site| !site.nodes.is_empty());
        Err(Error::BelowFloor(Box::new(BelowFloor {
            profile: profile.name.clone(),
            code: profile.code,
            floor: profile.floor.clone(),
            best: spread.claims,
            sites: Sites(open.map(|site| (site.name.clone(), site.nodes.len())).collect()),
            volumes: self.volumes,
        })))
    }

    /// Alike sites in the order in which they take a split's numbers, largest first.
    fn queue(&self, alike: &[usize], round: Round) -> Vec<usize> {
        let mut queue = alike.to_vec();
        queue.sort_by(|&a, &b| round.order(&self.sites[a].share, &self.sites[b].share));
        queue
    }

    /// Of equally good splits, the one that leaves shares closest to capacity: the smallest `Σ given² / weight`.
    fn cheapest<'s>(&self, spread: &'s Spread, salt: u64) -> &'s [Vec<u8>] {
        let [only] = &spread.splits[..] else {
            let round = Round { salt, drawn: false };
            let queues: Vec<Vec<usize>> = spread.alike.iter().map(|alike| self.queue(alike, round)).collect();
            let cost = |split: &&Vec<Vec<u8>>| -> u128 {
                let seats = queues.iter().flatten().zip(split.iter().flatten());
                seats.map(|(&site, &count)| self.cost(site, count)).sum()
            };
            return spread.splits.iter().min_by_key(cost).map_or(&[], Vec::as_slice);
        };
        only
    }

    fn cost(&self, site: usize, count: u8) -> u128 {
        let share = &self.sites[site].share;
        let given = u128::from(share.given + u64::from(count));
        given * given * ((self.weight << 10) / share.weight.max(1))
    }

    /// Gives one split to sites, nodes and volumes. Neighbours in the answer are on different sites where possible.
    fn deal(&mut self, spread: &Spread, split: &[Vec<u8>], round: Round) -> Vec<VolumeId> {
        let mut by_site: Vec<(u8, u64, Vec<VolumeId>)> = Vec::with_capacity(self.sites.len());
        for (alike, counts) in spread.alike.iter().zip(split) {
            for (site, &count) in self.queue(alike, round).into_iter().zip(counts) {
                let site = &mut self.sites[site];
                by_site.push((u8::MAX - count, mixed(site.share.tie ^ round.salt), site.take(count, round)));
            }
        }
        by_site.sort_unstable();
        let longest = by_site.iter().map(|(_, _, volumes)| volumes.len()).max().unwrap_or(0);
        let turn = |turn: usize| by_site.iter().filter_map(move |(_, _, volumes)| volumes.get(turn).copied());
        (0..longest).flat_map(turn).collect()
    }
}

impl<'a> SiteField<'a> {
    fn of(name: &'a SiteName, nodes: BTreeMap<NodeId, Vec<VolumeField>>) -> Self {
        let node = |(id, volumes): (NodeId, Vec<VolumeField>)| {
            let weight = volumes.iter().map(|volume| volume.share.weight).sum();
            NodeField { id, share: Share { weight, tie: mixed(id.0), ..Share::default() }, volumes }
        };
        let nodes: Vec<NodeField> = nodes.into_iter().map(node).collect();
        let weight = nodes.iter().map(|node| node.share.weight).sum();
        let tie = word(blake3::hash(name.as_str().as_bytes()).as_bytes());
        Self { name, share: Share { weight, tie, ..Share::default() }, nodes, closed: BTreeMap::new() }
    }

    /// Gives `count` shards, one by one to the node, and there the volume, with fewest of this stripe.
    fn take(&mut self, count: u8, round: Round) -> Vec<VolumeId> {
        let mut new: Vec<(usize, usize)> = Vec::with_capacity(usize::from(count));
        for _ in 0..count {
            let Some(node) = next(self.nodes.iter().map(|node| &node.share), round) else { break };
            let Some(volume) = next(self.nodes[node].volumes.iter().map(|volume| &volume.share), round) else { break };
            new.push((node, volume));
            for share in [&mut self.share, &mut self.nodes[node].share] {
                share.given += 1;
                share.held += 1;
            }
            let share = &mut self.nodes[node].volumes[volume].share;
            share.given += 1;
            share.held += 1;
        }
        for &(node, volume) in &new {
            self.share.held -= 1;
            self.nodes[node].share.held -= 1;
            self.nodes[node].volumes[volume].share.held -= 1;
        }
        new.iter().map(|&(node, volume)| self.nodes[node].volumes[volume].id).collect()
    }
}

/// Who gets the next shard: of those with fewest of this stripe, the first by the round's order.
fn next<'s>(shares: impl Iterator<Item = &'s Share>, round: Round) -> Option<usize> {
    let order = |(_, a): &(usize, &Share), (_, b): &(usize, &Share)| a.held.cmp(&b.held).then(round.order(a, b));
    shares.enumerate().min_by(order).map(|(index, _)| index)
}

/// Two independent numbers for a stripe.
fn draws(instance: InstanceId, stripe: StripeIndex) -> (u64, u64) {
    let mut input = [0_u8; 20];
    input[..16].copy_from_slice(&instance.0);
    input[16..].copy_from_slice(&stripe.0.to_le_bytes());
    let hash = blake3::hash(&input);
    (word(hash.as_bytes()), word(&hash.as_bytes()[8..]))
}

/// The first eight bytes as a number.
fn word(bytes: &[u8]) -> u64 {
    bytes.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

/// `draw` scaled to `0..count`.
fn below(draw: u64, count: usize) -> usize {
    usize::try_from((u128::from(draw) * count as u128) >> 64).unwrap_or(0)
}

/// A bijective scramble of 64 bits: xor-shifts and odd multiplications.
fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    let word = (word ^ (word >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    word ^ (word >> 32)
}

/// About `−log2(draw / 2⁶⁴) · 2³²`: whole part by leading zeros, fraction linear. Integers only, so every machine
/// agrees; off by at most 0.09, which draws by weight can bear.
fn exponential(draw: u64) -> u64 {
    let zeros = draw.leading_zeros();
    let fraction = draw.checked_shl(zeros + 1).unwrap_or(0) >> 32;
    (u64::from(zeros) << 32) + (1 << 32) - fraction
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
