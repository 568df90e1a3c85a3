//! The fault atlas: which damage is done, and whether more of it stays inside what every acknowledged stripe was promised.
//!
//! **Invariants.**
//! - One damaged machine is always inside the promise: no profile promises less. Several are only when some clause of the
//!   promise covers all of them and everybody who is, or was, away for long: repair may have moved shards off those.
//! - Logs that are lost never make half of the voters.
//! - The ledger forgets nothing until everything was proven whole.

use std::collections::{BTreeMap, BTreeSet};

use pacsvault_core::{
    ids::VolumeId,
    layout::{Contract, Failures},
};

/// What of a machine is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A volume: what lies on it counts as lost.
    Volume(VolumeId),
    /// Its log: its vote is lost.
    Log,
}

/// The ledger of one cluster.
#[derive(Debug, Clone)]
pub struct Atlas {
    /// The site of each machine.
    sites: Vec<usize>,
    promises: Vec<Contract>,
    damage: BTreeMap<usize, BTreeSet<Part>>,
    away: BTreeSet<usize>,
}

impl Atlas {
    /// Nothing is damaged. `promises` are what acknowledged stripes survive, however bad the times were when they were written:
    /// the floors of the profiles in use.
    pub fn new(sites: Vec<usize>, promises: Vec<Contract>) -> Self {
        Self { sites, promises, damage: BTreeMap::new(), away: BTreeSet::new() }
    }

    /// A machine was added to `site`.
    pub fn add(&mut self, site: usize) {
        self.sites.push(site);
    }

    /// Whether this may be damaged as well.
    pub fn allows(&self, machine: usize, part: Part, voters: usize) -> bool {
        if part == Part::Log {
            let lost = self.damage.iter().filter(|(at, parts)| **at != machine && parts.contains(&Part::Log)).count();
            if (lost + 1) * 2 >= voters {
                return false;
            }
        }
        let mut damaged: BTreeSet<usize> = self.damage.keys().copied().collect();
        damaged.insert(machine);
        damaged.len() == 1 || self.covered(damaged.union(&self.away).copied())
    }

    /// Books a damage, if it is allowed; tells whether it is. `voters`: how many the cluster has at present.
    pub fn damage(&mut self, machine: usize, part: Part, voters: usize) -> bool {
        let allowed = self.allows(machine, part, voters);
        if allowed {
            self.damage.entry(machine).or_default().insert(part);
        }
        allowed
    }

    /// Books that machines are away for so long that repair may do without them; tells whether they may be.
    pub fn away(&mut self, machines: &[usize]) -> bool {
        let damaged = self.damage.keys().copied();
        let together = damaged.chain(self.away.iter().copied()).chain(machines.iter().copied());
        let allowed = self.damage.len() <= 1 || self.covered(together);
        if allowed {
            self.away.extend(machines);
        }
        allowed
    }

    /// Whether these claims cover all that is damaged or was away for long, and `missing` besides.
    pub fn covered_by(&self, claims: &Contract, missing: &BTreeSet<usize>) -> bool {
        let all: BTreeSet<usize> = self.damage.keys().chain(&self.away).chain(missing).copied().collect();
        claims.failures().iter().any(|clause| self.clause_covers(*clause, &all))
    }

    /// Whether something of this machine is damaged.
    pub fn is_damaged(&self, machine: usize) -> bool {
        self.damage.contains_key(&machine)
    }

    /// How many machines are damaged.
    pub fn damaged(&self) -> usize {
        self.damage.len()
    }

    /// Machines that may be damaged next to those that are, undamaged ones first by number.
    pub fn next_to_damage(&self) -> Vec<usize> {
        let may = |at: &usize| {
            let mut all: BTreeSet<usize> = self.damage.keys().copied().collect();
            all.insert(*at) && self.covered(all.union(&self.away).copied())
        };
        if self.damage.is_empty() { Vec::new() } else { (0..self.sites.len()).filter(may).collect() }
    }

    /// Everything was proven whole: all damage is made good.
    pub fn whole(&mut self) {
        self.damage.clear();
        self.away.clear();
    }

    /// Whether of each promise some clause covers all these machines.
    pub fn covered(&self, machines: impl IntoIterator<Item = usize>) -> bool {
        let machines: BTreeSet<usize> = machines.into_iter().collect();
        let kept = |promise: &Contract| promise.failures().iter().any(|clause| self.clause_covers(*clause, &machines));
        self.promises.iter().all(kept)
    }

    fn clause_covers(&self, clause: Failures, machines: &BTreeSet<usize>) -> bool {
        let mut per_site: BTreeMap<usize, usize> = BTreeMap::new();
        for machine in machines {
            *per_site.entry(self.sites[*machine]).or_default() += 1;
        }
        // Whole sites are best spent where most machines are concerned.
        let mut counts: Vec<usize> = per_site.into_values().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        counts.iter().skip(usize::from(clause.sites)).sum::<usize>() <= usize::from(clause.nodes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SITE: Failures = Failures { sites: 1, nodes: 0 };
    const NODE: Failures = Failures { sites: 0, nodes: 1 };
    const VOTERS: usize = 5;

    fn volume(number: u8) -> Part {
        Part::Volume(VolumeId([number; 16]))
    }

    /// Three sites of two machines.
    fn atlas(promise: Failures) -> Atlas {
        Atlas::new(vec![0, 0, 1, 1, 2, 2], vec![Contract::one(promise)])
    }

    #[test]
    fn what_one_of_two_promises_does_not_cover_is_not_inside() {
        let promises = [SITE, Failures { sites: 0, nodes: 2 }].map(Contract::one).to_vec();
        let mut atlas = Atlas::new(vec![0, 0, 0, 1, 1, 1], promises);
        assert!(atlas.damage(0, volume(1), VOTERS));
        assert!(!atlas.damage(3, volume(2), VOTERS), "two nodes, and not of one site");
        assert!(atlas.damage(1, volume(3), VOTERS));
        assert!(!atlas.damage(2, volume(4), VOTERS), "of one site, and three nodes");
    }

    #[test]
    fn a_promise_of_one_node_allows_one_machine_whatever_of_it() {
        let mut atlas = atlas(NODE);
        assert!(atlas.damage(3, volume(1), VOTERS) && atlas.damage(3, volume(2), VOTERS));
        assert!(atlas.damage(3, Part::Log, VOTERS));
        assert!(!atlas.damage(2, volume(3), VOTERS));
        assert!(atlas.next_to_damage().is_empty());
        atlas.whole();
        assert!(atlas.damage(2, volume(3), VOTERS));
    }

    #[test]
    fn a_promise_of_a_site_allows_all_of_one_site_and_nothing_else() {
        let mut atlas = atlas(SITE);
        assert!(atlas.damage(2, volume(1), VOTERS));
        assert_eq!(atlas.next_to_damage(), [3]);
        assert!(!atlas.damage(0, volume(2), VOTERS));
        assert!(atlas.damage(3, volume(3), VOTERS));
        assert!(!atlas.damage(5, volume(4), VOTERS));
        assert_eq!(atlas.damaged(), 2);
    }

    #[test]
    fn a_site_and_a_node_are_counted_with_the_site_spent_where_it_helps_most() {
        let mut atlas = atlas(Failures { sites: 1, nodes: 1 });
        assert!([0, 2, 3].into_iter().all(|at| atlas.damage(at, volume(1), VOTERS)));
        assert!(!atlas.damage(1, volume(1), VOTERS), "two of each of two sites");
        assert!(!atlas.damage(4, volume(1), VOTERS));
    }

    #[test]
    fn who_is_away_for_long_counts_once_damage_is_spread_and_not_before() {
        let mut atlas = atlas(SITE);
        assert!(atlas.away(&[4, 5]), "nothing is damaged");
        assert!(atlas.damage(0, volume(1), VOTERS), "one machine is always inside");
        assert!(!atlas.damage(1, volume(2), VOTERS), "repair may have made do without site 2");
        atlas.whole();
        assert!(atlas.damage(0, volume(1), VOTERS) && atlas.damage(1, volume(2), VOTERS));
        assert!(!atlas.away(&[4]));
        assert!(atlas.away(&[1]), "its damage is inside already");
    }

    #[test]
    fn never_half_of_the_logs() {
        let mut atlas = atlas(SITE);
        assert!(!atlas.allows(0, Part::Log, 2));
        assert!(atlas.damage(0, Part::Log, 3));
        assert!(!atlas.damage(1, Part::Log, 3));
        assert!(!atlas.damage(1, Part::Log, 4));
        assert!(atlas.damage(1, Part::Log, 5));
        assert!(atlas.damage(0, Part::Log, 5), "it is lost already");
    }
}
