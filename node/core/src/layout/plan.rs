//! What profiles can promise on a topology, before anything is written: the built-in profiles, the refusal of
//! impossible ones with the arithmetic, and the plan that an operator reads.
//!
//! **Invariants.** A profile is possible exactly when `spread` finds shards per site that keep its contract
//! with every node of the topology at hand. Built-in profiles are possible on the topology they are made for. Nothing
//! here lowers a promise: a topology too small for any protection has no built-in profile.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::profile::{Code, ReadPreference};
use super::spread::{SiteLoad, Spread, strongest_spread};
use super::{Contract, Failures, Layout, NodeState, Profile, Volume, VolumeState};
use crate::ids::{ProfileName, SiteName};

/// Most sites, nodes per site or parity shards that a remedy proposes to add; more is a different cluster.
const REMEDY_MAX: usize = 4;

/// The sites of a cluster and what they can hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Topology {
    /// Volumes of each storage node, by site. A site of witnesses only has no entries.
    pub sites: BTreeMap<SiteName, Vec<usize>>,
}

impl Topology {
    /// The topology of a layout: every node not removed and every volume not fenced, whether or not it is up just now.
    pub fn of(layout: &Layout) -> Self {
        Self::of_volumes(layout, |_| true)
    }

    /// What stays: as [`Topology::of`], without what is being drained.
    pub fn staying(layout: &Layout) -> Self {
        Self::of_volumes(layout, |volume| !layout.draining(volume.id))
    }

    /// As [`Topology::of`], of these volumes only.
    pub fn of_volumes(layout: &Layout, wanted: impl Fn(&Volume) -> bool) -> Self {
        let mut topology = Self::default();
        for node in layout.nodes.values().filter(|node| node.state != NodeState::Removed) {
            let usable = layout.volumes.values().filter(|volume| volume.node == node.id && wanted(volume));
            let volumes = usable.filter(|volume| volume.state != VolumeState::Fenced).count();
            let site = topology.sites.entry(node.site.clone()).or_default();
            site.extend((volumes > 0).then_some(volumes));
        }
        topology
    }

    /// A topology of storage nodes with one volume each.
    pub fn with_nodes(sites: impl IntoIterator<Item = (SiteName, usize)>) -> Self {
        Self { sites: sites.into_iter().map(|(site, nodes)| (site, vec![1; nodes])).collect() }
    }

    /// Storage nodes of each site that has any.
    pub fn nodes(&self) -> Vec<usize> {
        self.sites.values().map(Vec::len).filter(|&nodes| nodes > 0).collect()
    }
}

/// Why no placement on a topology keeps a profile's contract. Choose another profile or extend the cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Impossible {
    /// Which profile.
    pub profile: ProfileName,
    /// Its code.
    pub code: Code,
    /// Its contract.
    pub contract: Contract,
    /// Storage nodes of each site that has any.
    pub nodes: Box<[usize]>,
    /// A failure set that no placement survives, and the most shards that any keeps; none when each set alone could
    /// be survived, but not all by one placement.
    pub broken: Option<(Failures, usize)>,
    /// Changes that would make it possible, each checked.
    pub remedies: Box<[String]>,
}

impl fmt::Display for Impossible {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { profile, code, contract, nodes, broken, remedies } = self;
        write!(f, "profile {profile} cannot keep its contract: {code} over {}: ", sites_text(nodes))?;
        match broken {
            Some((failures, kept)) => {
                write!(f, "losing {failures} leaves at most {kept} shards of the {} needed", code.data())?;
            }
            None => write!(f, "no one placement survives all of: {contract}")?,
        }
        if remedies.is_empty() { Ok(()) } else { write!(f, "; {}", remedies.join(", or ")) }
    }
}

fn sites_text(nodes: &[usize]) -> String {
    let list: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    match nodes {
        [] => "no storage nodes".to_owned(),
        [1] => "one site of 1 node".to_owned(),
        [only] => format!("one site of {only} nodes"),
        _ => format!("sites of {} nodes", list.join(",")),
    }
}

/// Says whether a profile's contract can hold on a topology with all its nodes at hand.
pub fn check_possible(profile: &Profile, topology: &Topology) -> Result<(), Impossible> {
    checked(profile, &topology.nodes()).map(|_| ())
}

fn checked(profile: &Profile, nodes: &[usize]) -> Result<Spread, Impossible> {
    let spread = spread_over(profile, nodes);
    if let Some(spread) = spread.filter(|spread| spread.contract_holds) {
        return Ok(spread);
    }
    let kept = spread_over(profile, nodes).map_or_else(|| vec![0; profile.contract.failures().len()], |it| it.kept);
    let broken = profile.contract.failures().iter().copied().zip(kept).find(|&(_, kept)| kept < profile.code.data());
    Err(Impossible {
        profile: profile.name.clone(),
        code: profile.code,
        contract: profile.contract.clone(),
        nodes: nodes.into(),
        broken,
        remedies: remedies(profile, nodes).into(),
    })
}

fn spread_over(profile: &Profile, nodes: &[usize]) -> Option<Spread> {
    let load = |&nodes: &usize| SiteLoad { open: vec![0; nodes], closed: Vec::new() };
    let loads: Vec<SiteLoad> = nodes.iter().map(load).collect();
    strongest_spread(&loads, profile.code.data_u8() + profile.code.parity_u8(), profile)
}

/// The smallest change of each kind that makes the contract possible.
fn remedies(profile: &Profile, nodes: &[usize]) -> Vec<String> {
    let possible =
        |profile: &Profile, nodes: &[usize]| spread_over(profile, nodes).is_some_and(|spread| spread.contract_holds);
    let coded = |code: Code| Profile { code, ..profile.clone() };
    let largest = nodes.iter().copied().max().unwrap_or(1);
    let plural = |count: usize, one: &str| if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") };
    let sites = (1..=REMEDY_MAX).find(|&more| {
        let wider: Vec<usize> = nodes.iter().copied().chain(std::iter::repeat_n(largest, more)).collect();
        possible(profile, &wider)
    });
    let denser = (1..=REMEDY_MAX).find(|&more| {
        let denser: Vec<usize> = nodes.iter().map(|count| count + more).collect();
        possible(profile, &denser)
    });
    let (data, parity) = (profile.code.data_u8(), profile.code.parity_u8());
    let narrower = (1..data).rev().filter_map(|fewer| Code::new(fewer, data + parity - fewer));
    let narrower = narrower.take(REMEDY_MAX).find(|&code| possible(&coded(code), nodes));
    let safer = (parity + 1..=u8::MAX).map_while(|more| Code::new(data, more));
    let safer = safer.take(REMEDY_MAX).find(|&code| possible(&coded(code), nodes));
    let sites = sites.map(|more| format!("add {} of {}", plural(more, "site"), plural(largest, "storage node")));
    let denser = denser.map(|more| format!("add {} to every site", plural(more, "storage node")));
    let codes = [narrower, safer].into_iter().flatten().map(|code| format!("use {code}"));
    sites.into_iter().chain(denser).chain(codes).collect()
}

/// The built-in profiles for a topology, the default one first; all possible on it.
///
/// Fewer than two storage nodes protect against nothing, so for them there is none: such a cluster must name its
/// profile, and its floor, itself.
pub fn defaults_for(topology: &Topology) -> Vec<Profile> {
    let nodes = topology.nodes();
    let least = nodes.iter().copied().min().unwrap_or(0);
    let failures = |sites, nodes| Failures { sites, nodes };
    let standard = match (nodes.len(), least) {
        (0, _) | (1, ..=1) => return Vec::new(),
        (1, 2) => (1, 1, failures(0, 1)),
        (1, 3) => (2, 1, failures(0, 1)),
        (1, 4..=5) => (2, 2, failures(0, 2)),
        (1, _) => (4, 2, failures(0, 2)),
        (2, 1) => (1, 1, failures(1, 0)),
        (2, 2) => (2, 2, failures(1, 0)),
        (2, _) => (3, 3, failures(1, 0)),
        (3, 1) => (2, 1, failures(1, 0)),
        (_, ..=2) => (4, 2, failures(1, 0)),
        _ => (5, 4, failures(1, 1)),
    };
    let hot = (nodes.len() >= 3).then_some((2, 4, failures(2, 0)));
    let reads = if nodes.len() == 3 { ReadPreference::EverySite } else { ReadPreference::OwnSite };
    let standard = built_in("standard", standard, ReadPreference::OwnSite);
    let hot = hot.and_then(|hot| built_in("hot", hot, reads));
    standard.into_iter().chain(hot).filter(|profile| check_possible(profile, topology).is_ok()).collect()
}

fn built_in(name: &str, (data, parity, failures): (u8, u8, Failures), reads: ReadPreference) -> Option<Profile> {
    Some(Profile {
        name: name.parse().ok()?,
        version: 1,
        code: Code::new(data, parity)?,
        contract: Contract::one(failures),
        floor: Contract::one(Failures { sites: 0, nodes: 1 }),
        read_preference: reads,
    })
}

/// What becomes of new writes while something is away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    /// Accepted at full contract.
    Full,
    /// Accepted, surviving only this.
    Degraded(Vec<Failures>),
    /// Refused: the strongest possible, this, is below the floor.
    Refused(Vec<Failures>),
}

/// One profile on one topology, as an operator should know it before relying on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Which profile.
    pub profile: Profile,
    /// Site, its storage nodes, and the shards of a stripe that it takes; where alike sites take turns, one example.
    pub shards: Vec<(SiteName, usize, u8)>,
    /// Everything a full stripe survives, maximal sets, most sites first.
    pub survives: Vec<Failures>,
    /// New writes while this is away, whichever it is; the worst case counts.
    pub away: Vec<(Failures, Writes)>,
}

impl Plan {
    /// The plan, or why the profile's contract cannot hold.
    pub fn of(profile: &Profile, topology: &Topology) -> Result<Self, Impossible> {
        let storing: Vec<(&SiteName, usize)> =
            topology.sites.iter().map(|(site, nodes)| (site, nodes.len())).filter(|&(_, nodes)| nodes > 0).collect();
        let nodes: Vec<usize> = storing.iter().map(|&(_, nodes)| nodes).collect();
        let spread = checked(profile, &nodes)?;
        let mut shards: Vec<(SiteName, usize, u8)> =
            storing.iter().map(|&(site, nodes)| (site.clone(), nodes, 0)).collect();
        let split = spread.splits.first().map_or(&[][..], Vec::as_slice);
        for (alike, counts) in spread.alike.iter().zip(split) {
            alike.iter().zip(counts).for_each(|(&site, &count)| shards[site].2 = count);
        }
        let away = [(0, 1), (1, 0), (1, 1)].map(|(sites, singles)| Failures { sites, nodes: singles });
        let away = away.iter().map(|&failures| (failures, writes_without(profile, &nodes, failures))).collect();
        Ok(Self { profile: profile.clone(), shards, survives: spread.claims, away })
    }

    /// Bytes stored for 100 bytes of content.
    pub fn overhead_percent(&self) -> usize {
        self.profile.code.total() * 100 / self.profile.code.data()
    }
}

/// New writes in the worst case of these failures.
fn writes_without(profile: &Profile, nodes: &[usize], failures: Failures) -> Writes {
    let mut left = BTreeSet::from([nodes.to_vec()]);
    for _ in 0..failures.sites {
        left = left.iter().flat_map(|nodes| (0..nodes.len()).map(|site| less(nodes, site, usize::MAX))).collect();
    }
    for _ in 0..failures.nodes {
        left = left.iter().flat_map(|nodes| (0..nodes.len()).map(|site| less(nodes, site, 1))).collect();
    }
    let outcome = |nodes: &Vec<usize>| {
        let Some(spread) = spread_over(profile, nodes) else { return (0, Writes::Refused(Vec::new())) };
        match (spread.contract_holds, spread.floor_holds) {
            (true, _) => (2, Writes::Full),
            (_, true) => (1, Writes::Degraded(spread.claims)),
            _ => (0, Writes::Refused(spread.claims)),
        }
    };
    let claims = |writes: &Writes| match writes {
        Writes::Full => Vec::new(),
        Writes::Degraded(claims) | Writes::Refused(claims) => claims.clone(),
    };
    let worst = left.iter().map(outcome).min_by_key(|(rank, writes)| (*rank, claims(writes)));
    worst.map_or(Writes::Refused(Vec::new()), |(_, writes)| writes)
}

/// The sites after `count` nodes of `site` are away, sorted so that equal cases meet.
fn less(nodes: &[usize], site: usize, count: usize) -> Vec<usize> {
    let mut nodes = nodes.to_vec();
    nodes[site] = nodes[site].saturating_sub(count);
    nodes.retain(|&nodes| nodes > 0);
    nodes.sort_unstable();
    nodes
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Profile { name, version, code, contract, floor, .. } = &self.profile;
        let list = |claims: &[Failures]| claims.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        let percent = self.overhead_percent();
        writeln!(f, "{name} v{version}: {code}, {}.{:02} bytes stored per byte", percent / 100, percent % 100)?;
        writeln!(f, "  promises to survive   {contract}")?;
        writeln!(f, "  survives              {}", list(&self.survives))?;
        write!(f, "  shards by site       ")?;
        for (index, (site, nodes, shards)) in self.shards.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {site} {shards} on {nodes} {}", if *nodes == 1 { "node" } else { "nodes" })?;
        }
        for (away, writes) in &self.away {
            write!(f, "\n  new writes without {away}: ")?;
            match writes {
                Writes::Full => write!(f, "accepted at full contract")?,
                Writes::Degraded(claims) => write!(f, "accepted, surviving only {}", list(claims))?,
                Writes::Refused(claims) if claims.is_empty() => write!(f, "refused, no place left")?,
                Writes::Refused(claims) => {
                    write!(f, "refused, {} is below the floor of {floor}", list(claims))?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
