//! Carries out a plan: step after step, each with what must hold under it and when it is over.
//!
//! **Invariants.** Every fault is noted before it begins and when it ends, also one that fails half-way. A node that one fault holds down is not started by the end
//! of another. When a step fails or is interrupted, everything that is still broken is lifted before the runner returns.

mod evidence;
mod faults;
mod probe;
#[cfg(test)]
mod tests;
mod waits;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use pacsvault_client::Client;
use pacsvault_core::{catalog::command::COMMANDS_VERSION, ids::NodeId};

use crate::{
    driver::{Ability, Death, Driver, Inject},
    eyes::Eyes,
    history::Recorder,
    interrupt::{Interrupt, Interrupted},
    net::{Conditions, Traffic},
    record::{FaultRecord, Link, NodeInfo, STOP},
    scenario::{
        Plan, Step, Topology,
        plan::{Beside, Cue, Fault, Meanwhile, Then, Who, merged},
    },
};
use waits::{unhealed, unreadable};

/// What is under way when the network is cut may still arrive.
const CUT_TAKES: Duration = Duration::from_millis(150);
/// How long a fault that met a repair goes on at least.
const MEETS_FOR: Duration = Duration::from_secs(1);

/// How long things may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Longest time clients may wait in an outage that the cluster survives: an election of at most 2 s, found out by deadlines
    /// of 5 s, on a machine that has other things to do.
    pub served: Duration,
    /// How long nodes may take to be back.
    pub whole: Duration,
    /// How long a repair may take to begin after a disk is lost.
    pub repairs: Duration,
    /// How long healing may take.
    pub healed: Duration,
}

impl Limits {
    /// For nodes with the timings of tests: healing takes seconds.
    pub const HASTY: Self = Self {
        served: Duration::from_secs(20),
        whole: Duration::from_secs(90),
        repairs: Duration::from_secs(20),
        healed: Duration::from_secs(180),
    };
    /// For nodes with the timings that they have by default: what is not urgent is repaired after 5 minutes, and a node that
    /// came back several times is believed after 48 s.
    pub const DEFAULT: Self = Self {
        whole: Duration::from_secs(240),
        repairs: Duration::from_secs(90),
        healed: Duration::from_secs(1_200),
        ..Self::HASTY
    };
}

/// A fault that is in force.
struct Active {
    index: usize,
    fault: Fault,
    nodes: Vec<String>,
    sites: BTreeSet<String>,
    /// Sites whose clients are promised nothing meanwhile.
    cut_off: BTreeSet<String>,
    /// Id under which a node was known that will not be known any more.
    old: Option<NodeId>,
    /// What it does to the network.
    links: Conditions,
    /// What the network had carried when it was in force.
    since: Option<Traffic>,
}

/// What a run learns of the cluster, of its clients, and of whoever wants it to end.
#[derive(Clone)]
pub struct Senses {
    /// The cluster.
    pub eyes: Arc<Eyes>,
    /// What sessions were told.
    pub recorder: Arc<Recorder>,
    /// Whether the end was asked for.
    pub interrupt: Interrupt,
    /// How long things may take.
    pub limits: Limits,
    /// Latency between sites.
    pub wan_ms: Vec<Link>,
    /// Of some sites, to read what must be readable.
    pub readers: Vec<Client>,
}

/// Carries out plans.
pub struct Runner<'a> {
    /// Nodes and how they are harmed.
    pub driver: &'a mut dyn Driver,
    eyes: Arc<Eyes>,
    recorder: Arc<Recorder>,
    interrupt: Interrupt,
    limits: Limits,
    topology: Topology,
    ways: evidence::Ways,
    readers: Vec<Client>,
    injected: BTreeMap<String, Inject>,
    active: Vec<Active>,
    /// All faults so far.
    pub faults: Vec<FaultRecord>,
    /// Processes that ended by themselves.
    pub ended: Vec<String>,
    /// Faults that began while the cluster was seen to repair something.
    pub met_repair: usize,
    until_ms: u64,
    ticked: Instant,
}

impl<'a> Runner<'a> {
    /// A runner; nothing is done yet.
    pub fn new(driver: &'a mut dyn Driver, senses: &Senses, topology: &Topology, until_ms: u64) -> Self {
        let Senses { eyes, recorder, interrupt, limits, .. } = senses.clone();
        Self {
            driver,
            eyes,
            recorder,
            interrupt,
            limits,
            ways: ways(topology, &senses.wan_ms),
            readers: senses.readers.clone(),
            topology: topology.clone(),
            injected: BTreeMap::new(),
            active: Vec::new(),
            faults: Vec::new(),
            ended: Vec::new(),
            met_repair: 0,
            until_ms,
            ticked: Instant::now(),
        }
    }

    /// How long things may take.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Runs until the plan or the time is over; the first step in any case.
    ///
    /// # Errors
    /// The first thing that did not hold, or [`Interrupted`]. Everything is lifted then.
    pub fn run(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for step in &plan.steps {
            if self.eyes.now_ms() >= self.until_ms && !self.faults.is_empty() {
                break;
            }
            if let Some(why) = self.impossible(&step.fault) {
                self.say(&format!("left out: {}: {why}", step.fault.what(&step.who.to_string())));
                continue;
            }
            if let Err(error) = self.step(step) {
                if !error.is::<Interrupted>() {
                    self.say(&format!("FAILED {error:#}"));
                }
                return match self.lift_all() {
                    Err(lifting) if !lifting.is::<Interrupted>() => {
                        Err(anyhow!("{error:#}; and not everything was lifted: {lifting:#}"))
                    }
                    Ok(()) | Err(_) => Err(error),
                };
            }
        }
        Ok(())
    }

    /// Why a fault cannot be done as things are now, if so.
    fn impossible(&self, fault: &Fault) -> Option<&'static str> {
        match fault {
            Fault::Add if self.roomy(None).is_none() => Some("the network has no seat left"),
            Fault::Retire if self.crowded().is_none() => Some("no site has a node to spare"),
            _ => None,
        }
    }

    fn step(&mut self, step: &Step) -> anyhow::Result<()> {
        self.rest(step.after)?;
        let (began_ms, began_us) = (self.eyes.now_ms(), self.recorder.now_us());
        let whole = unhealed(&self.eyes.looks()).is_none();
        self.begin(&step.fault, &step.who)?;
        if step.meanwhile == Meanwhile::NothingAcked && self.driver.traffic().is_none() {
            // Only what is seen of it tells when it is in force.
            self.see()?;
        }
        let (in_force, in_force_us) = (Instant::now(), self.recorder.now_us());
        let mut beside: Vec<_> = step.beside.iter().collect();
        beside.sort_by_key(|one| one.after);
        for one in beside {
            self.rest((one.after.min(step.lasts)).saturating_sub(in_force.elapsed()))?;
            self.begin_beside(one)?;
        }
        self.rest(step.lasts.saturating_sub(in_force.elapsed()))?;
        self.see()?;
        let what = step.fault.what(&step.who.to_string());
        let reached = self.reached();
        match step.meanwhile {
            Meanwhile::Served => {
                // Only what begins now tells that clients are served under the fault, not what was still under way.
                self.served(self.recorder.now_us(), &reached, &format!("under: {what}"))?;
                self.uninterrupted(began_ms, &reached, &what)?;
                if whole {
                    self.readable(&what)?;
                }
            }
            Meanwhile::NothingAcked => {
                let acked = self.recorder.acked_within(in_force_us, self.recorder.now_us());
                if acked > 0 {
                    bail!("{acked} writes or deletions were acknowledged though no side has a majority");
                }
            }
            Meanwhile::Anything => {}
        }
        self.lift_all()?;
        let (lifted_ms, lifted_us) = (self.eyes.now_ms(), self.recorder.now_us());
        let everywhere = self.recorder.sites();
        self.served(lifted_us, &everywhere, &format!("after: {what}"))?;
        if step.then != Then::Served {
            self.whole(self.limits.whole)?;
        }
        if step.then == Then::Healed {
            self.healed(self.limits.healed)?;
        }
        self.uninterrupted(lifted_ms, &everywhere, &what)?;
        if step.meanwhile != Meanwhile::Served {
            return Ok(());
        }
        self.uninterrupted(began_ms, &reached, &what)?;
        // What was written under the fault promised less: it waits for whoever is taken for down. Nothing else does: see `readable`.
        let degraded = self.recorder.degraded_since(began_us);
        match unreadable(&self.eyes.since(began_ms), degraded) {
            Some(why) if whole => bail!("{why}, though its contract survives: {what}"),
            Some(_) | None => Ok(()),
        }
    }

    /// Sites whose clients no fault in force keeps from a majority.
    fn reached(&self) -> BTreeSet<String> {
        let mut sites = self.recorder.sites();
        for one in &self.active {
            sites.retain(|site| !one.cut_off.contains(site));
        }
        sites
    }

    /// Begins a fault beside another, on its cue.
    fn begin_beside(&mut self, one: &Beside) -> anyhow::Result<()> {
        let meets = match one.cue {
            Cue::None => false,
            Cue::Repair => self.repairs()?,
        };
        self.begin(&one.fault, &one.who)?;
        if let Some(record) = self.faults.last_mut() {
            record.beside = true;
            record.what.push_str(if meets { ", amid a repair" } else { "" });
        }
        self.met_repair += usize::from(meets);
        if meets { self.rest(MEETS_FOR) } else { Ok(()) }
    }

    /// Upgrades whoever still runs the previous release, one after the other, and waits until the new version is in force.
    ///
    /// # Errors
    /// A node does not come back, or the version stays as it was.
    pub fn upgrade_rest(&mut self) -> anyhow::Result<String> {
        for name in self.driver.outdated() {
            self.begin(&Fault::Upgrade, &Who::Node(name))?;
            self.lift_all()?;
            self.whole(self.limits.whole)?;
        }
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        self.until(self.limits.whole, &format!("version {COMMANDS_VERSION} of commands to be in force"), || {
            let format = eyes.since(from).last().map(|look| look.format);
            (format != Some(COMMANDS_VERSION)).then(|| format!("it is {format:?}"))
        })?;
        Ok(format!("version {COMMANDS_VERSION} of commands"))
    }

    fn begin(&mut self, fault: &Fault, who: &Who) -> anyhow::Result<()> {
        let (nodes, sites, name) = self.resolve(fault, who)?;
        let began_ms = self.eyes.now_ms();
        let told = *fault == Fault::Kill && self.driver.death() == Death::Told;
        let (kind, what) = match told {
            true => (STOP, format!("{name} is told to stop, and killed a second later")),
            false => (fault.kind(), fault.what(&name)),
        };
        let cut_off = fault.cuts_off(&self.topology, &sites);
        let record = FaultRecord {
            number: self.faults.len() as u64 + 1,
            kind: kind.to_owned(),
            what,
            targets: nodes.clone(),
            began_ms,
            cuts_off: cut_off.iter().cloned().collect(),
            ..FaultRecord::default()
        };
        let index = self.faults.len();
        let links = fault.conditions(&self.grown(), &sites);
        let fault_now = fault.clone();
        let mut active = Active { index, fault: fault_now, nodes, sites, cut_off, old: None, links, since: None };
        self.say(&format!("fault {}: {}", record.number, record.what));
        self.faults.push(record);
        let struck = self.strike(&mut active);
        if let Some(record) = self.faults.get_mut(index) {
            record.targets = active.nodes.clone();
            record.what.push_str(&struck.as_ref().map_or_else(
                |error| format!(": it failed half-way: {error:#}"),
                |detail| detail.as_ref().map(|detail| format!(": {detail}")).unwrap_or_default(),
            ));
        }
        // Also one that failed half-way: what it did until then is to be lifted.
        self.active.push(active);
        struck?;
        self.shape()?;
        if matches!(fault.needs(), Ability::Network | Ability::Links) {
            self.rest(CUT_TAKES)?;
            let since = self.driver.traffic();
            self.active.iter_mut().filter(|one| one.index == index).for_each(|one| one.since.clone_from(&since));
        }
        Ok(())
    }

    /// Nodes and sites that are meant, and a name for them.
    fn resolve(&mut self, fault: &Fault, who: &Who) -> anyhow::Result<(Vec<String>, BTreeSet<String>, String)> {
        let leader = match who {
            Who::Leader | Who::LeaderSite | Who::Follower(_) => Some(self.leader()?),
            Who::Node(_) | Who::Site(_) | Who::Other(_) | Who::Everything => None,
        };
        let all = self.driver.nodes();
        let of_site = |site: &str| -> Vec<String> {
            all.iter().filter(|node| node.site == site).map(|node| node.name.clone()).collect()
        };
        let site_of = |name: &str| all.iter().find(|node| node.name == name).map(|node| node.site.clone());
        let nodes: Vec<String> = match (who, &leader) {
            _ if *fault == Fault::Retire => vec![self.crowded().context("no site has a node to spare")?],
            (Who::Node(name), _) => vec![name.clone()],
            (Who::Site(site), _) => of_site(site),
            (Who::Leader, Some(leader)) => vec![leader.clone()],
            (Who::LeaderSite, Some(leader)) => of_site(&site_of(leader).context("the leader has a site")?),
            (Who::Follower(draw), Some(leader)) => {
                let storing = self.topology.storing();
                let others: Vec<_> =
                    all.iter().filter(|node| node.name != *leader && storing.contains(&node.site)).collect();
                let index = usize::try_from(draw % (others.len().max(1) as u64))?;
                vec![others.get(index).context("there is no follower")?.name.clone()]
            }
            (Who::Other(draw), _) => {
                let storing = self.topology.storing();
                let concerned: BTreeSet<&String> = self.active.iter().flat_map(|one| &one.nodes).collect();
                let free = |node: &&NodeInfo| !concerned.contains(&node.name) && storing.contains(&node.site);
                let others: Vec<_> = all.iter().filter(free).collect();
                let index = usize::try_from(draw % (others.len().max(1) as u64))?;
                vec![others.get(index).context("there is no other node")?.name.clone()]
            }
            _ => all.iter().map(|node| node.name.clone()).collect(),
        };
        let sites: BTreeSet<String> = nodes.iter().filter_map(|name| site_of(name)).collect();
        let name = match who {
            // The network is cut around sites, whoever is meant.
            _ if matches!(fault.needs(), Ability::Network | Ability::Links) => {
                format!("site {}", sites.iter().cloned().collect::<Vec<_>>().join(", "))
            }
            _ if *fault == Fault::Retire => format!("node {}", nodes.join(", ")),
            Who::Site(_) | Who::Node(_) | Who::Everything => who.to_string(),
            Who::Leader | Who::LeaderSite | Who::Follower(_) | Who::Other(_) => format!("{who} ({})", nodes.join(", ")),
        };
        Ok((nodes, sites, name))
    }

    fn leader(&mut self) -> anyhow::Result<String> {
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        let mut found = None;
        self.until(self.limits.served, "a leader", || {
            found = eyes.since(from).last().and_then(|look| look.leader.clone());
            found.is_none().then(|| "nobody leads".to_owned())
        })?;
        found.context("a leader")
    }

    /// Nodes that faults in force hold down.
    fn down(&self) -> BTreeSet<String> {
        let holding = self.active.iter().filter(|one| matches!(one.fault, Fault::Kill | Fault::Wipe));
        holding.flat_map(|one| one.nodes.iter().cloned()).collect()
    }

    /// Makes the network do what all faults in force together say.
    fn shape(&mut self) -> anyhow::Result<()> {
        let able = self.driver.abilities().contains(&Ability::Network);
        let conditions = merged(self.active.iter().map(|one| one.links.clone()));
        if able { self.driver.shape(&conditions) } else { Ok(()) }
    }

    /// The topology with nodes that came, and without those that went.
    fn grown(&self) -> Topology {
        let mut topology = self.topology.clone();
        topology.sites.values_mut().for_each(Vec::clear);
        for node in self.driver.nodes() {
            topology.sites.entry(node.site).or_default().push(node.name);
        }
        topology
    }

    /// Ends all faults: those of the network first, then pauses, and the rest from the last one to the first. A node that is
    /// started is ready when it has found a majority. Who is interrupted does not wait for what they left to heal.
    ///
    /// # Errors
    /// One cannot be ended; the others are.
    pub fn lift_all(&mut self) -> anyhow::Result<()> {
        let mut all: anyhow::Result<()> = Ok(());
        let rank = |fault: &Fault| match fault.needs() {
            Ability::Network | Ability::Links => 2,
            Ability::Pause => 1,
            _ => 0,
        };
        let next = |active: &[Active]| (0..active.len()).max_by_key(|at| (rank(&active[*at].fault), *at));
        while let Some(at) = next(&self.active) {
            let active = self.active.remove(at);
            let lifted = self.lift(&active);
            let now = self.eyes.now_ms();
            if let Some(record) = self.faults.get_mut(active.index) {
                record.ended_ms = Some(now);
            }
            let lifted = lifted.with_context(|| format!("lifting: {}", active.fault.kind()));
            all = match all {
                Err(first) if !first.is::<Interrupted>() => Err(first),
                Ok(()) | Err(_) => lifted.and(all),
            };
        }
        all
    }

    /// Lets time pass, watches processes, and shows how things stand.
    ///
    /// # Errors
    /// A process ended by itself, or [`Interrupted`].
    fn rest(&mut self, duration: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            self.interrupt.check()?;
            let left = duration.saturating_sub(began.elapsed());
            thread::sleep(left.min(Duration::from_millis(100)));
            if let Some((name, how)) = self.driver.ended()?.into_iter().flatten().next() {
                self.ended.push(format!("{name} ended by itself: {how}"));
                bail!("{name} ended by itself: {how}");
            }
            self.tick();
            if left.is_zero() {
                return Ok(());
            }
        }
    }

    fn tick(&mut self) {
        let terminal = std::io::stderr().is_terminal();
        let every = if terminal { Duration::from_secs(1) } else { Duration::from_secs(10) };
        if self.ticked.elapsed() < every {
            return;
        }
        self.ticked = Instant::now();
        let line = self.line(every);
        if terminal {
            eprint!("\r\x1b[K{line}");
            // A terminal that went away is no reason to end.
            let _ = std::io::stderr().flush();
        } else {
            eprintln!("{line}");
        }
    }

    fn line(&self, every: Duration) -> String {
        let (now, look) = (self.eyes.now_ms(), self.eyes.last());
        let from_us = self.recorder.now_us().saturating_sub(u64::try_from(every.as_micros()).unwrap_or(u64::MAX));
        let acked = self.recorder.acked_within(from_us, u64::MAX);
        format!(
            "{:>4} of {} s | {} faults | {} acked/s | leader {} | {} KiB below contract | {} nodes answer",
            now / 1_000,
            self.until_ms / 1_000,
            self.faults.len(),
            acked / every.as_secs().max(1),
            look.leader.as_deref().unwrap_or("none"),
            look.below_contract.map_or_else(|| "?".to_owned(), |bytes| (bytes >> 10).to_string()),
            look.answering.len()
        )
    }

    fn say(&self, what: &str) {
        let clear = if std::io::stderr().is_terminal() { "\r\x1b[K" } else { "" };
        let now = self.eyes.now_ms();
        eprintln!("{clear}{:>4}.{} s {what}", now / 1_000, now / 100 % 10);
    }
}

/// Latency between hosts, from that between their sites.
fn ways(topology: &Topology, links: &[Link]) -> evidence::Ways {
    let pairs = links.iter().flat_map(|link| {
        let way = Duration::from_secs_f64(link.latency_ms.max(0.0) / 1_000.0);
        let to = topology.hosts(&link.to);
        let from = topology.hosts(&link.from).into_iter();
        from.flat_map(move |from| to.clone().into_iter().map(move |to| ((from.clone(), to), way)))
    });
    pairs.collect()
}
