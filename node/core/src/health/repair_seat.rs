//! New homes for shards of one stripe: where a given choice of shards goes best, and the fewest further shards whose
//! moving makes the contract hold.
//!
//! **Fewest moves.** Losses of sites add up and within a site the fullest nodes are worst, so that of all ways to take
//! `n` shards off a site, taking them from its fullest nodes leaves least to lose. It is therefore enough to try how many
//! shards leave each site, by growing total, and to let placement spread them anew: exact up to [`WEIGHINGS_MAX`]. A second
//! way to pick them, those with a usable former holder first, makes the trimming after an outage cheap.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::repair_fate::{Facts, Fate};
use super::repair_judge::covers_all;
use super::{StripeState, Tier};
use crate::ids::{NodeId, ShardIndex, SiteName, VolumeId};
use crate::layout::placement::{Seats, Worth};
use crate::layout::survival::{Held, covers, strongest};
use crate::layout::{Contract, Failures, Profile};

/// Most ways weighed to make the contract of one stripe hold: three sites and ten moves have 66, eight sites and four
/// moves 330; each costs some ten microseconds.
const WEIGHINGS_MAX: usize = 1_000;
/// Most equally good ways whose seats are compared.
const SEATED_MAX: usize = 24;

/// Shards, and where each would go.
#[derive(Debug, Clone)]
pub(super) struct Choice {
    /// All moves, those in place included; in shard order.
    pub(super) moves: Vec<(ShardIndex, VolumeId)>,
    /// The shards that were to be moved.
    pub(super) shards: Vec<u8>,
    /// What is survived afterwards.
    pub(super) claims: Vec<Failures>,
    /// What is survived afterwards should the suspected nodes be gone.
    pub(super) calm: Vec<Failures>,
    /// Distance of that.
    pub(super) calm_tier: Tier,
    /// Moves to former holders.
    formers: usize,
}

/// Seats of one stripe.
pub(super) struct Seating<'a> {
    pub(super) state: &'a StripeState,
    pub(super) facts: &'a Facts<'a>,
    pub(super) fates: Vec<Fate>,
    /// What is survived now.
    before: Vec<Failures>,
    /// The contract when it is kept now.
    kept: Option<&'a Contract>,
    urgent: bool,
    /// Wanted: the contract and all that is survived now; at least: what must not be lost.
    profile: Profile,
    crowded: BTreeSet<VolumeId>,
}

impl<'a> Seating<'a> {
    /// Of a stripe that can be read: `before` is not empty.
    pub(super) fn new(
        state: &'a StripeState,
        facts: &'a Facts<'a>,
        fates: Vec<Fate>,
        before: Vec<Failures>,
        urgent: bool,
    ) -> Self {
        let known = facts.situation.layout.profiles.get(&state.profile);
        let promise = known.map(|profile| &profile.contract);
        let kept = promise.filter(|contract| covers(&before, contract));
        let own = Contract::new(before.clone()).unwrap_or_else(|| Contract::one(Failures { sites: 0, nodes: 0 }));
        let promised = promise.map(Contract::failures).unwrap_or_default();
        let both = Contract::new(promised.iter().chain(&before).copied().collect());
        let leaving = fates.contains(&Fate::Leaving);
        let profile = Profile {
            name: state.profile.clone(),
            version: 0,
            code: state.code,
            contract: both.unwrap_or_else(|| own.clone()),
            floor: kept.filter(|_| leaving).cloned().unwrap_or(own),
            read_preference: known
                .map_or(crate::layout::profile::ReadPreference::OwnSite, |known| known.read_preference),
        };
        let crowded = facts.crowded(state.code.shard_bytes(state.stripe_bytes));
        Self { state, facts, fates, before, kept, urgent, profile, crowded }
    }

    /// The shards of such a fate.
    pub(super) fn shards(&self, of: impl Fn(Fate) -> bool) -> Vec<u8> {
        (0_u8..).zip(&self.fates).filter(|(_, fate)| of(**fate)).map(|(shard, _)| shard).collect()
    }

    fn seats(&self) -> Seats<'_> {
        Seats::new(self.facts.situation.layout, &self.profile, &self.crowded)
    }

    /// Volumes of the shards that stay when `moving` move. A return that is waited for is planned on; a node that may
    /// be dying is not.
    fn staying(&self, moving: &[u8]) -> Vec<(u8, VolumeId)> {
        let stays = |fate: Fate| match fate {
            Fate::Here | Fate::Leaving | Fate::Again => true,
            Fate::Suspected | Fate::Waits(_) => !self.urgent,
            Fate::Gone | Fate::Lost | Fate::Overdue => false,
        };
        let all = (0_u8..).zip(self.state.volumes.iter().copied()).zip(&self.fates);
        all.filter(|((shard, _), fate)| stays(**fate) && !moving.contains(shard)).map(|(one, _)| one).collect()
    }

    /// The best homes for these shards; `None` when there are none, or the stripe would be weaker than now.
    pub(super) fn choose(&self, moving: &[u8]) -> Option<Choice> {
        self.choose_with(&mut self.seats(), moving)
    }

    fn choose_with(&self, seats: &mut Seats<'_>, moving: &[u8]) -> Option<Choice> {
        let mut kept: Vec<VolumeId> = self.staying(moving).into_iter().map(|(_, volume)| volume).collect();
        let mut rest: Vec<u8> = moving.to_vec();
        rest.sort_unstable();
        let worth = seats.worth(&kept, count(&rest))?;
        let mut moves: BTreeMap<u8, VolumeId> = BTreeMap::new();
        for &shard in moving {
            let Some(former) = self.former(seats, shard).filter(|former| !kept.contains(former)) else { continue };
            kept.push(former);
            let as_good = seats.worth(&kept, count(&rest) - 1).is_some_and(|with| with == worth);
            if as_good {
                rest.retain(|other| *other != shard);
                moves.insert(shard, former);
            } else {
                kept.pop();
            }
        }
        let formers = moves.len();
        let homes = seats.seat(&kept, count(&rest), (self.state.instance, self.state.stripe))?;
        moves.extend(rest.into_iter().zip(homes));
        moves.extend(self.shards(|fate| fate == Fate::Again).into_iter().map(|shard| (shard, self.volume(shard))));
        self.weighed(moves, moving, formers)
    }

    fn volume(&self, shard: u8) -> VolumeId {
        self.state.volumes[usize::from(shard)]
    }

    /// The last holder of a shard before the present one, if it can take it back.
    fn former(&self, seats: &Seats<'_>, shard: u8) -> Option<VolumeId> {
        let former = *self.state.former.get(&ShardIndex(shard))?;
        (former != self.volume(shard) && seats.open(former)).then_some(former)
    }

    /// Judges the result by the layout as it is.
    fn weighed(&self, mut moves: BTreeMap<u8, VolumeId>, moving: &[u8], formers: usize) -> Option<Choice> {
        let (layout, k) = (self.facts.situation.layout, self.state.code.data());
        moves.retain(|shard, home| *home != self.volume(*shard) || self.fates[usize::from(*shard)] == Fate::Again);
        let persisted = |shard: u8| self.state.persisted & (1 << shard) != 0;
        let old =
            (0_u8..).zip(&self.state.volumes).filter(|(shard, _)| persisted(*shard) && !moves.contains_key(shard));
        let all = old.chain(moves.iter().map(|(shard, home)| (*shard, home)));
        let after: Vec<Held> = all.map(|(shard, home)| Held { shard: ShardIndex(shard), volume: *home }).collect();
        let claims = strongest(&after, k, layout);
        let drains = self.kept.filter(|_| moving.iter().any(|shard| self.fates[usize::from(*shard)] == Fate::Leaving));
        let promised = drains.is_some_and(|contract| covers(&claims, contract));
        if !promised && !covers_all(&claims, &self.before) {
            return None;
        }
        let suspected = |one: &Held| {
            let stays = self.volume(one.shard.0) == one.volume;
            self.urgent && stays && self.fates[usize::from(one.shard.0)] == Fate::Suspected
        };
        let calm: Vec<Held> = after.into_iter().filter(|one| !suspected(one)).collect();
        let calm_tier = Tier::of(&calm, k, layout);
        let calm = strongest(&calm, k, layout);
        let moves = moves.into_iter().map(|(shard, home)| (ShardIndex(shard), home)).collect();
        Some(Choice { moves, shards: moving.to_vec(), claims, calm, calm_tier, formers })
    }

    /// The best homes for these shards and for as few others as make the contract hold; `None` when nothing does.
    pub(super) fn widened(&self, moving: &[u8]) -> Option<Choice> {
        let mut seats = self.seats();
        let sites = self.movable(&seats, moving);
        let all: Vec<u8> = sites.iter().flat_map(|site| site.iter().map(|one| one.shard)).collect();
        let everything: Vec<u8> = moving.iter().chain(&all).copied().collect();
        if !self.promising(&mut seats, &everything) {
            return None;
        }
        let mut left = WEIGHINGS_MAX;
        for total in 0..=all.len() {
            let mut best: Option<Choice> = None;
            let mut seated = SEATED_MAX;
            for counts in splits(&sites, total, left) {
                left = left.saturating_sub(1);
                let ways = [Pick::Former, Pick::Fullest].map(|pick| self.picked(&sites, &counts, pick));
                for (at, extra) in ways.iter().enumerate() {
                    let same = at > 0 && ways[0] == *extra;
                    let moving: Vec<u8> = moving.iter().chain(extra).copied().collect();
                    if same || seated == 0 || !self.promising(&mut seats, &moving) {
                        continue;
                    }
                    seated -= 1;
                    let Some(choice) = self.choose_with(&mut seats, &moving) else { continue };
                    let rank = |choice: &Choice| (choice.formers, choice.claims.clone());
                    if best.as_ref().is_none_or(|best| rank(&choice) > rank(best)) {
                        best = Some(choice);
                    }
                }
            }
            if best.is_some() {
                return best;
            }
            if left == 0 {
                break;
            }
        }
        self.greedy(&mut seats, &sites, moving)
    }

    /// The best homes for these shards and for as few others as keep the floor, or at least the loss of any one node, where the
    /// contract cannot hold now; `None` when that is survived already, or by nothing.
    pub(super) fn safer(&self, moving: &[u8]) -> Option<Choice> {
        let floor = self.facts.situation.layout.profiles.get(&self.state.profile).map(|profile| profile.floor.clone());
        let one_node = Contract::one(Failures { sites: 0, nodes: 1 });
        let one_node = (floor.as_ref() != Some(&one_node)).then_some(one_node);
        floor.into_iter().chain(one_node).filter(|lesser| !covers(&self.before, lesser)).find_map(|lesser| {
            let wanted = Contract::new(lesser.failures().iter().chain(&self.before).copied().collect());
            let profile = Profile { contract: wanted.unwrap_or(lesser), ..self.profile.clone() };
            let (fates, before, crowded) = (self.fates.clone(), self.before.clone(), self.crowded.clone());
            Self { fates, before, crowded, profile, ..*self }.widened(moving)
        })
    }

    /// Takes shards off whichever site holds most until the contract holds: for stripes over so many sites that trying
    /// all ways would take too long.
    fn greedy(&self, seats: &mut Seats<'_>, sites: &[Vec<Movable<'_>>], moving: &[u8]) -> Option<Choice> {
        let mut counts = vec![0_usize; sites.len()];
        for _ in 0..sites.iter().map(Vec::len).sum() {
            let fullest = (0..sites.len()).filter(|&at| counts[at] < sites[at].len());
            let fullest = fullest.max_by_key(|&at| (sites[at].len() - counts[at], Reverse(at)))?;
            counts[fullest] += 1;
            let extra = self.picked(sites, &counts, Pick::Fullest);
            let moving: Vec<u8> = moving.iter().chain(&extra).copied().collect();
            if self.promising(seats, &moving) {
                return self.choose_with(seats, &moving);
            }
        }
        None
    }

    /// True when the contract could hold with these shards moved, and nothing be lost that is survived now.
    fn promising(&self, seats: &mut Seats<'_>, moving: &[u8]) -> bool {
        let kept: Vec<VolumeId> = self.staying(moving).into_iter().map(|(_, volume)| volume).collect();
        let holds = |worth: Worth| {
            let promised = self.kept.is_some_and(|contract| covers(&worth.claims, contract));
            worth.contract_holds || (promised && self.fates.contains(&Fate::Leaving))
        };
        seats.worth(&kept, count(moving)).is_some_and(holds)
    }

    /// Shards that are in place and may be moved nevertheless, by site.
    fn movable(&self, seats: &Seats<'_>, moving: &[u8]) -> Vec<Vec<Movable<'a>>> {
        let mut sites: BTreeMap<&SiteName, Vec<Movable<'a>>> = BTreeMap::new();
        for (shard, volume) in self.staying(moving) {
            if self.fates[usize::from(shard)] != Fate::Here {
                continue;
            }
            let Some(node) = self.facts.situation.layout.node_of(volume) else { continue };
            let former = self.former(seats, shard).is_some();
            sites.entry(&node.site).or_default().push(Movable { shard, node: &node.id, former });
        }
        sites.into_values().collect()
    }

    /// That many shards of each site, in the order of `pick`.
    fn picked(&self, sites: &[Vec<Movable<'_>>], counts: &[usize], pick: Pick) -> Vec<u8> {
        let mut picked = Vec::new();
        for (site, &count) in sites.iter().zip(counts) {
            let mut site = site.clone();
            for _ in 0..count {
                let on = |node: &NodeId| site.iter().filter(|one| one.node == node).count();
                let order = |one: &Movable<'_>| match pick {
                    Pick::Former => (usize::from(one.former), on(one.node), Reverse(one.shard)),
                    Pick::Fullest => (on(one.node), usize::from(one.former), Reverse(one.shard)),
                };
                let Some(at) = (0..site.len()).max_by_key(|&at| order(&site[at])) else { break };
                picked.push(site.remove(at).shard);
            }
        }
        picked
    }
}

/// A shard in place.
#[derive(Debug, Clone)]
struct Movable<'a> {
    shard: u8,
    node: &'a NodeId,
    former: bool,
}

/// Which shards of a site move first.
#[derive(Debug, Clone, Copy)]
enum Pick {
    /// Those whose former holder can take them back.
    Former,
    /// Those on the fullest nodes.
    Fullest,
}

fn count(shards: &[u8]) -> u8 {
    u8::try_from(shards.len()).unwrap_or(u8::MAX)
}

/// All ways to take `total` shards off these sites, at most `most` of them.
fn splits(sites: &[Vec<Movable<'_>>], total: usize, most: usize) -> Vec<Vec<usize>> {
    fn split(sizes: &[usize], rest: usize, most: usize, done: &mut Vec<usize>, all: &mut Vec<Vec<usize>>) {
        let Some((&size, after)) = sizes.split_first() else {
            if rest == 0 {
                all.push(done.clone());
            }
            return;
        };
        if all.len() >= most || rest > sizes.iter().sum() {
            return;
        }
        for count in 0..=size.min(rest) {
            done.push(count);
            split(after, rest - count, most, done, all);
            done.pop();
        }
    }
    let sizes: Vec<usize> = sites.iter().map(Vec::len).collect();
    let mut all = Vec::new();
    split(&sizes, total, most, &mut Vec::new(), &mut all);
    all
}
