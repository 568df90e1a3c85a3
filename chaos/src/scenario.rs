//! What one seed sets up: topology, profile, pace, faults.
//!
//! **Invariants.** A function of the seed alone. Faults are drawn as a random subset, so that some runs are quiet enough
//! for rare combinations and others are storms.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use pacsvault_core::{
    health::Pace,
    layout::{
        Contract, Failures, Profile,
        profile::{Code, ReadPreference},
    },
};

use crate::{
    cluster::site_name,
    rng::{SimRng, splitmix},
};

mod fault;
mod swarm;

pub use fault::{FAULTS, Fault};
pub use swarm::{Knobs, Mix};

/// Most sites of a scenario; three are the least.
pub const SITES_MAX: usize = 5;

/// A bug put in on purpose, to see that the oracles find it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PlantedBug {
    /// Volumes report a sync that never happened.
    VolumeAcksBeforeSync,
    /// The log reports durable what it merely wrote.
    LogAcksBeforeSync,
    /// Volumes never make the names of new segments durable.
    VolumeForgetsNames,
    /// One shard in ten is acknowledged by its node without being written.
    NodeAcksUnwritten,
    /// The leader confirms reads of followers without asking for how far it is.
    ReadIndexUnconfirmed,
    /// Repair names new homes whose volumes were never asked to write.
    ReseatsUnwritten,
    /// Copies that the catalog does not name yet are deleted at once.
    SweepsAtOnce,
    /// Repair writes what it made without comparing it with the stripe's root.
    RepairIgnoresRoot,
    /// A bug of product code, by its name in `pacsvault_core::probe`. It takes a build with the feature `planted`.
    Product(&'static str),
}

/// Those that lie outside of product code.
const HARNESS_BUGS: [PlantedBug; 8] = [
    PlantedBug::VolumeAcksBeforeSync,
    PlantedBug::LogAcksBeforeSync,
    PlantedBug::VolumeForgetsNames,
    PlantedBug::NodeAcksUnwritten,
    PlantedBug::ReadIndexUnconfirmed,
    PlantedBug::ReseatsUnwritten,
    PlantedBug::SweepsAtOnce,
    PlantedBug::RepairIgnoresRoot,
];

/// All of them.
pub fn planted_bugs() -> Vec<PlantedBug> {
    let product = pacsvault_core::probe::BUGS.iter().map(|name| PlantedBug::Product(name));
    HARNESS_BUGS.into_iter().chain(product).collect()
}

impl fmt::Display for PlantedBug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::VolumeAcksBeforeSync => "volume-acks-before-sync",
            Self::LogAcksBeforeSync => "log-acks-before-sync",
            Self::VolumeForgetsNames => "volume-forgets-names",
            Self::NodeAcksUnwritten => "node-acks-unwritten",
            Self::ReadIndexUnconfirmed => "read-index-unconfirmed",
            Self::ReseatsUnwritten => "reseats-unwritten",
            Self::SweepsAtOnce => "sweeps-at-once",
            Self::RepairIgnoresRoot => "repair-ignores-root",
            Self::Product(name) => name,
        })
    }
}

impl FromStr for PlantedBug {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bugs = planted_bugs();
        match bugs.iter().find(|bug| bug.to_string() == text) {
            Some(PlantedBug::Product(_)) if !cfg!(feature = "planted") => {
                Err(format!("{text} is a bug of product code: build the simulator with `--features planted`"))
            }
            Some(bug) => Ok(*bug),
            None => {
                let names: Vec<String> = bugs.iter().map(ToString::to_string).collect();
                Err(format!("there is no planted bug {text}; there are {}", names.join(", ")))
            }
        }
    }
}

/// What happens once everything was proven whole; then it must be so again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encore {
    /// Nothing.
    Nothing,
    /// Time passes until copies that are not needed must be gone.
    Sweep,
    /// A machine loses all its data.
    Wipe,
    /// A whole site loses all its data.
    WipeSite,
    /// A node is drained, removed and replaced.
    Retire,
    /// All studies are kept in the other profile from now on.
    Recode,
    /// The disks of a machine rot where something was written.
    Rot,
}

/// Destruction that no contract covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beyond {
    /// All volumes of two sites rot, of three where two may be lost.
    Rot,
    /// All volumes of so many sites are replaced by empty ones.
    Replace,
    /// Those of one machine too many are replaced.
    JustTooMuch,
    /// So many machines are wiped at once that no majority of the voters is left.
    Quorum,
}

/// What stays broken when faults end, so that the rest must suffice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// A site has no power.
    SiteDark,
    /// A site runs, and sees nobody outside.
    SiteCut,
    /// One or two nodes have no power.
    NodesDark,
    /// One or two processes are stopped, and hold their connections.
    NodesStopped,
    /// Two nodes do not see each other, or one does not hear the other.
    LinkCut,
    /// Nodes of two sites do not see each other, or do not hear the others.
    SitesCut,
}

/// All kinds, in the order in which they are tried when the drawn one does not fit.
pub const MISSING: [Missing; 6] = [
    Missing::NodesDark,
    Missing::SiteDark,
    Missing::SiteCut,
    Missing::NodesStopped,
    Missing::LinkCut,
    Missing::SitesCut,
];

impl Missing {
    /// Its name in the coverage table.
    pub fn name(self) -> &'static str {
        match self {
            Self::SiteDark => "part: a site dark",
            Self::SiteCut => "part: a site cut off",
            Self::NodesDark => "part: nodes dark",
            Self::NodesStopped => "part: nodes stopped",
            Self::LinkCut => "part: a link between nodes cut",
            Self::SitesCut => "part: links between two sites cut",
        }
    }
}

/// One run, as drawn.
#[derive(Debug, Clone)]
pub struct Scenario {
    /// Drawn from.
    pub seed: u64,
    /// Sites.
    pub sites: usize,
    /// Nodes of the smallest site.
    pub nodes_per_site: usize,
    /// How many more each site has.
    pub extra_nodes: [usize; SITES_MAX],
    /// Two of three sites hold everything; the third is one witness, which votes and holds no shards.
    pub witness: bool,
    /// Volumes per node.
    pub volumes_per_node: usize,
    /// The default profile.
    pub profile: Profile,
    /// Another one, of another code, which studies can be given.
    pub other: Option<Profile>,
    /// Content bytes per stripe.
    pub stripe_bytes: u64,
    /// One-way latency between sites, in microseconds.
    pub latency_micros: Vec<Vec<u64>>,
    /// Entries between snapshots.
    pub snapshot_every: u64,
    /// Entries kept behind a snapshot.
    pub log_keep: u64,
    /// Clients at work at once.
    pub clients: usize,
    /// Keys they share.
    pub keys: usize,
    /// Kinds of faults of this run.
    pub faults: BTreeSet<Fault>,
    /// How long faults go on.
    pub fault_time: Duration,
    /// Longest pause between two faults, in milliseconds.
    pub fault_pause_millis: u64,
    /// Most parts per million by which a node's clock runs wrong.
    pub clock_ppm: u64,
    /// Most milliseconds by which a clock of the wall is wrong when no fault makes it worse.
    pub clock_off_millis: u64,
    /// How nodes heal.
    pub pace: Pace,
    /// Once faults end people have everything verified at once, and again. Otherwise nodes find damage by themselves.
    pub people_scrub: bool,
    /// Between two sweeps.
    pub sweep_every: Duration,
    /// What happens once everything was proven whole.
    pub encore: Encore,
    /// When faults end a part must suffice, without this.
    pub part: Option<Missing>,
    /// In the end more is destroyed than any contract covers.
    pub beyond: Option<Beyond>,
    /// The cluster is founded by the release before, and upgraded node by node while faults last.
    pub upgrade: bool,
    /// Small sizes.
    pub knobs: Knobs,
    /// What clients do.
    pub mix: Mix,
    /// Something wrong on purpose.
    pub bug: Option<PlantedBug>,
    /// Kinds of faults that were drawn and do not happen.
    pub muted: BTreeSet<Fault>,
    /// Faults that do not happen, by their numbers in the schedule of this seed.
    pub skipped: BTreeSet<u64>,
}

impl Scenario {
    /// Whether such faults happen.
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault) && !self.muted.contains(&fault)
    }

    /// Whether nothing happens to the cluster while clients work, so that each of them must be served.
    pub fn is_calm(&self) -> bool {
        !self.upgrade && self.faults.iter().all(|fault| self.muted.contains(fault))
    }

    /// All profiles.
    pub fn profiles(&self) -> impl Iterator<Item = &Profile> + Clone {
        [&self.profile].into_iter().chain(&self.other)
    }

    /// Sets nodes per site, and the profile that suits them; no witness, and no other profile.
    pub fn resize(&mut self, nodes_per_site: usize) {
        (self.nodes_per_site, self.witness, self.extra_nodes) = (nodes_per_site, false, [0; SITES_MAX]);
        self.profile = profile_for(self.sites, nodes_per_site, false);
        self.other = None;
        self.faults.remove(&Fault::ChangeProfile);
        if self.encore == Encore::Recode {
            self.encore = Encore::Nothing;
        }
        if nodes_per_site == 1 {
            self.faults.remove(&Fault::FailingVolumeSync);
            self.faults.remove(&Fault::FullVolume);
        }
    }

    /// Nodes of `site`.
    pub fn nodes_of(&self, site: usize) -> usize {
        if self.is_witness(site) { 1 } else { self.nodes_per_site + self.extra_nodes[site] }
    }

    /// Whether `site` only votes.
    pub fn is_witness(&self, site: usize) -> bool {
        self.witness && site == self.sites - 1
    }

    /// The scenario of `seed`.
    pub fn draw(seed: u64) -> Self {
        let rng = &mut SimRng::new(splitmix(seed ^ 0x5ce7_a210));
        // From a generator of its own: runs of three sites are as they were.
        let sites = swarm::draw_sites(&mut SimRng::new(splitmix(seed ^ 0x0051_7e50)));
        let mut nodes_per_site = *rng.pick(&[1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 4]);
        if sites > 3 {
            nodes_per_site = nodes_per_site.min(2);
        }
        let witness = nodes_per_site == 3 && rng.chance(500);
        let extra_nodes = swarm::draw_extra(rng, sites, nodes_per_site);
        let far = *rng.pick(&swarm::FAR_MICROS);
        let latency_micros = latencies(sites, |a, b| far + 300 * (a + b) as u64);
        let density = *rng.pick(&[150, 300, 300, 600]);
        // One needs another profile, and comes with it; two came later.
        let drawn_below = [Fault::ChangeProfile, Fault::FailingStateStore, Fault::MisdirectedRead];
        let drawn_here = |fault: &Fault| !drawn_below.contains(fault);
        let alone = FAULTS.into_iter().filter(drawn_here);
        let mut faults: BTreeSet<Fault> = alone.filter(|_| rng.chance(density)).collect();
        // Most bugs need a crash; one run in ten is without faults.
        if rng.chance(900) {
            faults.insert(*rng.pick(&[Fault::Crash, Fault::PowerLoss, Fault::SitePowerLoss, Fault::TotalPowerLoss]));
        } else {
            faults.clear();
        }
        if nodes_per_site == 1 {
            // Three nodes with one volume less cannot keep the floor: writes would rightly be refused for ever.
            faults.remove(&Fault::FailingVolumeSync);
            faults.remove(&Fault::FullVolume);
        }
        let mut scenario = Self {
            seed,
            sites,
            nodes_per_site,
            extra_nodes,
            witness,
            volumes_per_node: if nodes_per_site >= 3 { 1 } else { *rng.pick(&[1, 1, 2]) },
            profile: profile_for(sites, nodes_per_site, witness),
            other: None,
            stripe_bytes: *rng.pick(&[256, 1_000, 4_096]),
            latency_micros,
            snapshot_every: rng.range(5, 60),
            log_keep: rng.range(0, 20),
            clients: rng.index(3) + 2,
            keys: rng.index(8) + 3,
            faults,
            fault_time: Duration::from_millis(rng.range(8_000, 16_000)),
            fault_pause_millis: *rng.pick(&[800, 1_500, 3_000]),
            clock_ppm: *rng.pick(&[0, 0, 200, 20_000]),
            clock_off_millis: 0,
            pace: draw_pace(rng, sites),
            people_scrub: true,
            sweep_every: Duration::from_millis(rng.range(500, 3_000)),
            encore: *rng.pick(&[
                Encore::Nothing,
                Encore::Nothing,
                Encore::Nothing,
                Encore::Sweep,
                Encore::Sweep,
                Encore::Wipe,
                Encore::WipeSite,
                Encore::Retire,
            ]),
            part: None,
            beyond: rng.chance(60).then(|| *rng.pick(&[Beyond::Rot, Beyond::Replace, Beyond::JustTooMuch])),
            upgrade: rng.chance(120),
            knobs: Knobs::draw(rng),
            mix: Mix::draw(rng),
            bug: None,
            muted: BTreeSet::new(),
            skipped: BTreeSet::new(),
        };
        scenario.profile = swarm::draw_profile(rng, scenario.profile.clone(), &scenario);
        // From a generator of its own: runs without it are as they were.
        let rng = &mut SimRng::new(splitmix(seed ^ 0x0e4c_0de5));
        scenario.other = swarm::draw_other(rng, &scenario);
        if scenario.other.is_some() {
            let faulty = !scenario.faults.is_empty();
            if faulty && rng.chance(700) {
                scenario.faults.insert(Fault::ChangeProfile);
            }
            if rng.chance(200) {
                scenario.encore = Encore::Recode;
            }
        }
        scenario.clock_off_millis = *rng.pick(&[0, 0, 30_000, 3_600_000]);
        scenario.part = rng.chance(700).then(|| *rng.pick(&MISSING));
        if !scenario.faults.is_empty() && rng.chance(250) {
            scenario.faults.insert(Fault::FailingStateStore);
        }
        if !scenario.faults.is_empty() && rng.chance(300) {
            scenario.faults.insert(Fault::MisdirectedRead);
        }
        // Not where clients write so much that small volumes run out of room for good.
        let sparing = scenario.mix.pause_micros >= 150_000;
        if scenario.knobs.draw_later(rng, sparing) {
            scenario.pace.rebalance_percent = 1;
        }
        if scenario.beyond.is_none() && rng.chance(50) {
            scenario.beyond = Some(Beyond::Quorum);
        }
        if rng.chance(400) {
            scenario.latency_micros = swarm::draw_distances(rng, sites);
        }
        debug_assert_eq!(scenario.pace.check(), Ok(()), "a pace that is refused");
        // From a generator of its own as well. Shorter than a real cluster is allowed, for a run to be short.
        let rng = &mut SimRng::new(splitmix(seed ^ 0x5c2b_0b0d));
        if rng.chance(500) {
            scenario.people_scrub = false;
            scenario.pace.scrub_within = Duration::from_millis(rng.range(10_000, 20_000));
        }
        if scenario.encore == Encore::Nothing && rng.chance(350) {
            scenario.encore = Encore::Rot;
        }
        scenario
    }
}

/// Fast enough that a whole outage, from silence to repair, fits into seconds.
fn draw_pace(rng: &mut SimRng, sites: usize) -> Pace {
    let heartbeat = Duration::from_millis(rng.range(150, 300));
    let suspect_after = heartbeat * u32::try_from(rng.range(3, 6)).unwrap_or(3);
    let urgent_after = suspect_after + Duration::from_millis(rng.range(100, 1_500));
    let down_after = urgent_after + Duration::from_millis(rng.range(500, 3_000));
    let lost_after = down_after + Duration::from_millis(rng.range(2_000, 15_000));
    Pace {
        heartbeat,
        suspect_after,
        urgent_after,
        down_after,
        lost_after,
        steady_for: Duration::from_millis(rng.range(100, 800)),
        repair_after: down_after + Duration::from_millis(rng.range(0, 1_500)),
        repair_rate: 0,
        repair_parallel: rng.index(8) + 1,
        scrub_within: Duration::from_secs(60),
        reconcile_every: Duration::from_millis(rng.range(1_000, 5_000)),
        rebalance_percent: 5,
        voter_grace: suspect_after + Duration::from_millis(rng.range(1_000, 5_000)),
        preferred_leader_site: rng.chance(300).then(|| site_name(rng.index(sites))),
    }
}

/// One-way latency within each site, and between each two as told, in microseconds.
pub(crate) fn latencies(sites: usize, between: impl Fn(usize, usize) -> u64) -> Vec<Vec<u64>> {
    let from = |a| (0..sites).map(|b| if a == b { 80 } else { between(a, b) }).collect();
    (0..sites).map(from).collect()
}

/// The profile that suits so many sites of so many nodes, or two and a witness.
fn profile_for(sites: usize, nodes_per_site: usize, witness: bool) -> Profile {
    let (site, and_a_node) = (Failures { sites: 1, nodes: 0 }, Failures { sites: 1, nodes: 1 });
    let (data, parity, failures) = match (sites, nodes_per_site) {
        (3, 1) => (2, 1, site),
        (3, 2) => (4, 2, site),
        (3, _) if witness => (3, 3, site),
        (3, _) => (5, 4, and_a_node),
        (4, 1) => (2, 2, site),
        (4, _) => (4, 4, and_a_node),
        (_, 1) => (3, 2, and_a_node),
        _ => (6, 4, and_a_node),
    };
    Profile {
        name: "standard".parse().expect("a valid name"),
        version: 1,
        code: Code::new(data, parity).expect("a valid code"),
        contract: Contract::one(failures),
        floor: Contract::one(Failures { sites: 0, nodes: 1 }),
        read_preference: ReadPreference::OwnSite,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenarios_follow_from_their_seed_and_every_fault_is_drawn_by_some() {
        assert_eq!(format!("{:?}", Scenario::draw(9)), format!("{:?}", Scenario::draw(9)));
        for fault in FAULTS {
            assert!((0..100).any(|seed| Scenario::draw(seed).faults.contains(&fault)), "{fault:?}");
        }
        let some = |what: fn(&Scenario) -> bool| (0..300).any(|seed| what(&Scenario::draw(seed)));
        assert!(some(|it| it.witness) && some(|it| it.upgrade) && some(|it| it.extra_nodes.contains(&1)));
        assert!(some(|it| it.profile.floor == it.profile.contract));
        assert!(some(|it| it.encore == Encore::Recode) && some(|it| it.encore == Encore::Rot));
        assert!(some(|it| it.is_calm()) && some(|it| it.people_scrub) && some(|it| !it.people_scrub));
        let others = (0..300).map(Scenario::draw).filter_map(|it| Some((it.profile.clone(), it.other?)));
        assert!(others.clone().count() > 50 && others.clone().all(|(one, other)| one.code != other.code));
        assert!(others.clone().any(|(one, other)| one.contract != other.contract));
        for beyond in [Beyond::Rot, Beyond::Replace, Beyond::JustTooMuch, Beyond::Quorum] {
            assert!((0..300).any(|seed| Scenario::draw(seed).beyond == Some(beyond)), "{beyond:?}");
        }
        for missing in MISSING {
            assert!((0..100).any(|seed| Scenario::draw(seed).part == Some(missing)), "{missing:?}");
        }
        for sites in 3..=SITES_MAX {
            assert!((0..100).any(|seed| Scenario::draw(seed).sites == sites));
        }
        for nodes in 1..=4 {
            assert!((0..100).any(|seed| Scenario::draw(seed).nodes_per_site == nodes));
        }
    }
}
