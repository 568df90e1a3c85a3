//! Scenarios by name: what is done to the cluster, and what must hold.
//!
//! To add one: an entry in [`all`] with its words and a function that draws one step after the other. The runner does the
//! rest: faults are noted, lifted and measured, and the verdict is the same for all.
//!
//! **Invariants.** A scenario is a pure function of seed, minutes, topology and what the driver can do. Before a fault that takes
//! or damages data, everything stored is back at its contract: what two such faults together destroy is nobody's promise.

mod draw;
pub mod plan;

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use rand::{Rng, SeedableRng, rngs::StdRng};

use crate::driver::Ability;
pub use plan::{Plan, Step, Topology};

/// A scenario.
pub struct Scenario {
    /// How it is called.
    pub name: &'static str,
    /// In one line.
    pub line: &'static str,
    /// What is done.
    pub does: &'static str,
    /// What must hold, besides what always must.
    pub holds: &'static str,
    /// Sites that store.
    pub sites: usize,
    /// Nodes of each, unless asked otherwise.
    pub nodes_per_site: usize,
    /// A site that only votes.
    pub witness: bool,
    /// Kinds of fault that make it this scenario: a run without any of them has shown nothing.
    pub own: &'static [&'static str],
    /// Without this there is nothing to do.
    pub essential: &'static [Ability],
    /// Runs on processes of the previous release at first.
    pub previous: bool,
    /// Small disks are mounted under the volumes.
    pub small_disks: bool,
    draw: fn(&mut Draw) -> Step,
}

/// What always must hold at the end of a run.
pub const ALWAYS: &str = "Always: the history of all sessions has an explanation (per key linearizable, sessions never go \
    back, unknown stays unknown, one outcome per attempt); every acknowledged version that nobody deleted is read \
    again byte for byte through two sites, and its receipt proven offline; all replicas hold the same catalog; \
    everything stored is back at full contract, proven from the volumes of the stopped nodes. Faults of the scenario were \
    done, and each was seen to have its effect; no two leaders of one term were believed; no session, no process and no task \
    of a node ended by itself. Where writes and reads go on within 20 s, they do in every site whose clients no fault keeps \
    from a majority; no gap from the fault's beginning until the next step is longer, and nothing that was at full contract cannot be \
    read meanwhile.";

/// Where choices of a scenario come from.
pub struct Draw<'a> {
    random: StdRng,
    topology: &'a Topology,
    abilities: &'a BTreeSet<Ability>,
    /// Number of the step, from 0.
    turn: usize,
    /// Whether there is time for an outage that lasts.
    long: bool,
}

/// From here on a run has some outages that last longer than a voter's grace.
const LONG_MINUTES: f64 = 5.0;
/// One outage of so many lasts so long then.
const LONG_ONE_IN: usize = 8;
/// Nominal time from the end of a fault to its end condition; only for how many steps a plan needs at most.
const RECOVERY: Duration = Duration::from_secs(1);

impl Scenario {
    /// What is done under `seed` in `minutes`.
    pub fn plan(&self, seed: u64, minutes: f64, topology: &Topology, abilities: &BTreeSet<Ability>) -> Plan {
        let mut draw =
            Draw { random: StdRng::seed_from_u64(seed), topology, abilities, turn: 0, long: minutes >= LONG_MINUTES };
        let mut left = minutes * 60.0;
        let mut plan = Plan::default();
        while left > 0.0 {
            let mut step = (self.draw)(&mut draw);
            step.beside.retain(|beside| abilities.contains(&beside.fault.needs()));
            left -= (step.after + step.lasts + RECOVERY).as_secs_f64();
            plan.steps.push(step);
            draw.turn += 1;
        }
        plan
    }
}

impl Scenario {
    /// What this scenario would also do under `seed` if the driver could.
    pub fn left_out(
        &self,
        seed: u64,
        minutes: f64,
        topology: &Topology,
        able: &BTreeSet<Ability>,
    ) -> BTreeSet<Ability> {
        let all = Ability::ALL.into_iter().collect();
        self.plan(seed, minutes, topology, &all).needs().difference(able).copied().collect()
    }

    /// Refuses a cluster that has not the sites for this.
    ///
    /// # Errors
    /// What it lacks.
    pub fn check(&self, topology: &Topology) -> anyhow::Result<()> {
        let wanted = self.sites + usize::from(self.witness);
        let sites = topology.sites.len();
        ensure!(sites >= wanted, "{} needs {wanted} sites, and the cluster has {sites}", self.name);
        ensure!(!self.witness || !topology.witnesses.is_empty(), "{} needs a site that only votes", self.name);
        Ok(())
    }
}

impl Draw<'_> {
    fn below(&mut self, limit: usize) -> usize {
        self.random.random_range(0..limit.max(1))
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    /// How long a step lasts, at least: so long, or in a long run sometimes much longer.
    fn lasts(&mut self, range: std::ops::Range<u64>) -> Duration {
        if self.long && self.below(LONG_ONE_IN) == 0 { self.millis(30_000..60_000) } else { self.millis(range) }
    }

    fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        let index = self.below(of.len());
        of[index].clone()
    }

    fn site(&mut self) -> String {
        let sites = self.topology.storing();
        self.pick(&sites)
    }

    fn node(&mut self) -> String {
        let nodes = self.topology.storage_nodes();
        self.pick(&nodes)
    }

    fn can(&self, ability: Ability) -> bool {
        self.abilities.contains(&ability)
    }
}

/// All scenarios.
pub fn all() -> &'static [Scenario] {
    draw::ALL
}

/// One by name.
///
/// # Errors
/// There is none; the names that exist are told.
pub fn find(name: &str) -> anyhow::Result<&'static Scenario> {
    let names: Vec<&str> = all().iter().map(|scenario| scenario.name).collect();
    let found = all().iter().find(|scenario| scenario.name == name);
    found.ok_or_else(|| anyhow::anyhow!("there is no scenario {name}; there are {}", names.join(", ")))
}
