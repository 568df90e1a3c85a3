//! How many shards of a stripe each site and node should take, so that what survives is the strongest there is.
//!
//! **Meaning of strongest.** First, whether the profile's contract holds; then its floor; then the claims of
//! [`super::survival::strongest`] compared as lists, so one more site outweighs any nodes; then the evenness of sites.
//!
//! **Invariants.** Within a site shards go one by one to the node with fewest: of all ways to add them this makes the
//! fullest `j` nodes hold least for every `j` at once, so nothing is lost by not searching nodes. Over sites every
//! split is tried, sites that look alike counted once, most even first, up to [`SPLITS_MAX`]: exact for every
//! topology of up to four sites and in general while the splits fit that bound; beyond it the best of the most even.

use std::cmp::Reverse;

use super::survival::{Losses, maximal};
use super::{Contract, Failures, Profile};

/// Most splits weighed: four unlike sites and 32 shards have C(35, 3) = 6 545, and each costs a microsecond or few.
const SPLITS_MAX: usize = 10_000;
/// Most steps of the enumeration, tens of nanoseconds each: 32 rounds over 6 545 splits, and their prefixes.
const STEPS_MAX: usize = 1_000_000;
/// Most equally good splits kept: enough to let capacity choose among unlike sites.
const TIES_MAX: usize = 64;

/// What a site can take and already has.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct SiteLoad {
    /// Shards already on each node that can take more.
    pub(super) open: Vec<u8>,
    /// Shards already on each node that cannot.
    pub(super) closed: Vec<u8>,
}

/// The best splits of shards over sites.
#[derive(Debug)]
pub(super) struct Spread {
    /// Groups of alike sites, as indexes into the given ones.
    pub(super) alike: Vec<Vec<usize>>,
    /// Equally good splits: per group, the shards to add, one number per site of the group, most first.
    pub(super) splits: Vec<Vec<Vec<u8>>>,
    /// What is survived.
    pub(super) claims: Vec<Failures>,
    /// Whether the profile's contract is among it.
    pub(super) contract_holds: bool,
    /// Whether the profile's floor is among it; true when the contract holds.
    pub(super) floor_holds: bool,
    /// Per failure set of the contract, the most shards that any split keeps through it.
    pub(super) kept: Vec<usize>,
}

/// The strongest ways to add `add` shards of `profile` to these sites. `None` when no node can take any and some are
/// to be added.
pub(super) fn strongest_spread(loads: &[SiteLoad], add: u8, profile: &Profile) -> Option<Spread> {
    let mut groups: Vec<(SiteLoad, Vec<usize>)> = Vec::new();
    for (index, load) in loads.iter().enumerate() {
        let load = load.normal(add);
        match groups.iter_mut().find(|(known, _)| *known == load) {
            Some((_, sites)) => sites.push(index),
            None => groups.push((load, vec![index])),
        }
    }
    groups.sort();
    let seats: usize = groups.iter().filter(|(load, _)| !load.open.is_empty()).map(|(_, sites)| sites.len()).sum();
    if seats == 0 && add > 0 {
        return None;
    }
    let mut search = Search::new(&groups, profile, add);
    let even = usize::from(add).div_ceil(seats.max(1));
    for most in u8::try_from(even).unwrap_or(u8::MAX)..=add {
        search.most = most;
        search.split(0, add);
    }
    let best = search.best?;
    let sizes: Vec<usize> = groups.iter().map(|(_, sites)| sites.len()).collect();
    let by_group = |split: &Vec<u8>| {
        let mut rest = split.as_slice();
        let mut take = |&size: &usize| {
            let (group, after) = rest.split_at(size);
            rest = after;
            group.to_vec()
        };
        sizes.iter().map(&mut take).collect()
    };
    Some(Spread {
        splits: search.ties.iter().map(by_group).collect(),
        alike: groups.into_iter().map(|(_, sites)| sites).collect(),
        contract_holds: best.contract,
        floor_holds: best.contract || best.floor,
        claims: best.claims,
        kept: search.kept,
    })
}

impl SiteLoad {
    /// Sorted, and without what cannot matter: empty nodes beyond the shards to add, closed ones without shards.
    pub(super) fn normal(&self, add: u8) -> Self {
        let mut load = self.clone();
        load.open.sort_unstable_by_key(|&held| Reverse(held));
        let empty = load.open.iter().filter(|&&held| held == 0).count();
        load.open.truncate(load.open.len() - empty.saturating_sub(usize::from(add)));
        load.closed.retain(|&held| held > 0);
        load.closed.sort_unstable();
        load
    }

    /// Shards by node, most first and none empty, after adding `add` one by one to the emptiest open node.
    fn filled(&self, add: u8) -> Vec<u8> {
        let mut nodes = self.open.clone();
        for _ in 0..add {
            if let Some(least) = nodes.iter_mut().min() {
                *least = least.saturating_add(1);
            }
        }
        nodes.extend(&self.closed);
        nodes.retain(|&held| held > 0);
        nodes.sort_unstable_by_key(|&held| Reverse(held));
        nodes
    }
}

/// How good a split is; greater is better.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Score {
    contract: bool,
    floor: bool,
    claims: Vec<Failures>,
    evenness: Reverse<u32>,
}

struct Search<'a> {
    contract: &'a Contract,
    floor: &'a Contract,
    k: usize,
    /// Group of each seat, a seat being a site in group order.
    groups: Vec<usize>,
    /// Per group and count added: shards by node, most first.
    filled: Vec<Vec<Vec<u8>>>,
    /// Whether sites of the group can take any.
    open: Vec<bool>,
    split: Vec<u8>,
    /// Splits now tried have exactly this as their largest number.
    most: u8,
    /// Splits that may still be weighed.
    splits_left: usize,
    /// Steps that may still be made.
    steps_left: usize,
    best: Option<Score>,
    ties: Vec<Vec<u8>>,
    kept: Vec<usize>,
}

impl<'a> Search<'a> {
    fn new(groups: &[(SiteLoad, Vec<usize>)], profile: &'a Profile, add: u8) -> Self {
        let seats = |(group, (_, sites)): (usize, &(SiteLoad, Vec<usize>))| vec![group; sites.len()];
        let open: Vec<bool> = groups.iter().map(|(load, _)| !load.open.is_empty()).collect();
        let filled = |(load, _): &(SiteLoad, Vec<usize>)| {
            let most = if load.open.is_empty() { 0 } else { add };
            (0..=most).map(|count| load.filled(count)).collect()
        };
        Self {
            contract: &profile.contract,
            floor: &profile.floor,
            k: profile.code.data(),
            groups: groups.iter().enumerate().flat_map(seats).collect(),
            filled: groups.iter().map(filled).collect(),
            open,
            split: Vec::new(),
            most: add,
            splits_left: SPLITS_MAX,
            steps_left: STEPS_MAX,
            best: None,
            ties: Vec::new(),
            kept: vec![0; profile.contract.failures().len()],
        }
    }

    /// Tries every split of `rest` over the seats from `seat` on.
    fn split(&mut self, seat: usize, rest: u8) {
        let reached = self.split.iter().max().copied().unwrap_or(0) == self.most;
        if self.splits_left == 0 || self.steps_left == 0 || (!reached && rest < self.most) {
            return;
        }
        self.steps_left -= 1;
        if seat == self.groups.len() {
            if rest == 0 && reached {
                self.splits_left -= 1;
                self.weigh();
            }
            return;
        }
        let group = self.groups[seat];
        let alike = seat > 0 && self.groups[seat - 1] == group;
        let bound = if alike { self.split[seat - 1] } else { self.most };
        let bound = if self.open[group] { bound.min(rest) } else { 0 };
        for count in (0..=bound).rev() {
            let capacity = (self.groups.len() - seat - 1) * usize::from(self.most);
            if usize::from(rest - count) > capacity {
                break;
            }
            self.split.push(count);
            self.split(seat + 1, rest - count);
            self.split.pop();
        }
    }

    fn weigh(&mut self) {
        let nodes: Vec<&[u8]> = self
            .groups
            .iter()
            .zip(&self.split)
            .map(|(&group, &count)| self.filled[group][usize::from(count)].as_slice())
            .filter(|nodes| !nodes.is_empty())
            .collect();
        let by_site: Vec<u32> = nodes.iter().map(|site| site.iter().map(|&held| u32::from(held)).sum()).collect();
        let total = by_site.iter().map(|&held| held as usize).sum::<usize>();
        let slack = total.saturating_sub(self.k);
        let wide = |wanted: fn(&Failures) -> u8, contract: &Contract| {
            contract.failures().iter().map(|failures| usize::from(wanted(failures))).max().unwrap_or(0)
        };
        let sites = slack.max(wide(|wanted| wanted.sites, self.contract)).min(nodes.len());
        let singles = nodes.iter().map(|site| site.len()).sum::<usize>();
        let singles = slack.max(wide(|wanted| wanted.nodes, self.contract)).min(singles);
        let losses = Losses::of(nodes.iter().copied(), sites, singles);
        let claims =
            if total < self.k { Vec::new() } else { maximal(|sites, nodes| losses.within(sites, nodes, slack)) };
        for (kept, wanted) in self.kept.iter_mut().zip(self.contract.failures()) {
            let lost = losses.most(usize::from(wanted.sites).min(sites), usize::from(wanted.nodes).min(singles));
            *kept = (*kept).max(total.saturating_sub(lost));
        }
        let score = Score {
            contract: super::survival::covers(&claims, self.contract),
            floor: super::survival::covers(&claims, self.floor),
            claims,
            evenness: Reverse(by_site.iter().map(|held| held * held).sum()),
        };
        match self.best.as_ref().map_or(std::cmp::Ordering::Greater, |best| score.cmp(best)) {
            std::cmp::Ordering::Greater => {
                self.ties = vec![self.split.clone()];
                self.best = Some(score);
            }
            std::cmp::Ordering::Equal if self.ties.len() < TIES_MAX => self.ties.push(self.split.clone()),
            _ => {}
        }
    }
}
