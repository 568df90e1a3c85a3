//! Carries out a plan: step after step, each with what must hold under it and when it is over.
//!
//! **Invariants.** Every fault is noted before it begins and when it ends, also one that fails half-way. A node that one fault holds down is not started by the end
//! of another. When a step fails or is interrupted, everything that is still broken is lifted before the runner returns.

mod faults;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal, Write},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, bail};
use pacsvault_core::{catalog::command::COMMANDS_VERSION, ids::NodeId};

use crate::{
    driver::{Ability, Driver, Inject},
    eyes::Eyes,
    history::Recorder,
    interrupt::{Interrupt, Interrupted},
    record::FaultRecord,
    scenario::{
        Plan, Step, Topology,
        plan::{Fault, Meanwhile, Then, Who, merged},
    },
};

/// Longest time clients may wait in an outage that the cluster survives: an election of at most 2 s, found out by deadlines of
/// 5 s, on a machine that has other things to do.
pub const SERVED_WITHIN: Duration = Duration::from_secs(20);
/// How long nodes may take to be back.
const WHOLE_WITHIN: Duration = Duration::from_secs(90);
/// How long healing may take; it takes seconds.
pub const HEALED_WITHIN: Duration = Duration::from_secs(180);
/// Answers after which clients count as served.
const ANSWERS: u64 = 3;
/// What is under way when the network is cut may still arrive.
const CUT_TAKES: Duration = Duration::from_millis(150);
/// For how long everything must look healed: a survey of the moment before may not know of what has just been found.
const HEALED_FOR: usize = 5;

/// A fault that is in force.
struct Active {
    index: usize,
    fault: Fault,
    nodes: Vec<String>,
    sites: BTreeSet<String>,
    /// Id under which a node was known that will not be known any more.
    old: Option<NodeId>,
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
}

/// Carries out plans.
pub struct Runner<'a> {
    /// Nodes and how they are harmed.
    pub driver: &'a mut dyn Driver,
    eyes: Arc<Eyes>,
    recorder: Arc<Recorder>,
    interrupt: Interrupt,
    topology: Topology,
    injected: BTreeMap<String, Inject>,
    active: Vec<Active>,
    /// All faults so far.
    pub faults: Vec<FaultRecord>,
    /// Processes that ended by themselves.
    pub ended: Vec<String>,
    until_ms: u64,
    ticked: Instant,
}

impl<'a> Runner<'a> {
    /// A runner; nothing is done yet.
    pub fn new(driver: &'a mut dyn Driver, senses: &Senses, topology: &Topology, until_ms: u64) -> Self {
        let Senses { eyes, recorder, interrupt } = senses.clone();
        Self {
            driver,
            eyes,
            recorder,
            interrupt,
            topology: topology.clone(),
            injected: BTreeMap::new(),
            active: Vec::new(),
            faults: Vec::new(),
            ended: Vec::new(),
            until_ms,
            ticked: Instant::now(),
        }
    }

    /// Runs until the plan or the time is over.
    ///
    /// # Errors
    /// The first thing that did not hold, or [`Interrupted`]. Everything is lifted then.
    pub fn run(&mut self, plan: &Plan) -> anyhow::Result<()> {
        for step in &plan.steps {
            if self.eyes.now_ms() >= self.until_ms {
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
        let began = Instant::now();
        self.begin(&step.fault, &step.who)?;
        let began_us = self.recorder.now_us();
        let mut beside: Vec<_> = step.beside.iter().collect();
        beside.sort_by_key(|one| one.after);
        for one in beside {
            self.rest((one.after.min(step.lasts)).saturating_sub(began.elapsed()))?;
            self.begin(&one.fault, &one.who)?;
        }
        self.rest(step.lasts.saturating_sub(began.elapsed()))?;
        let what = step.fault.what(&step.who.to_string());
        match step.meanwhile {
            Meanwhile::Served => self.served(began_us, &format!("under: {what}"))?,
            Meanwhile::NothingAcked => {
                let from = began_us + u64::try_from(CUT_TAKES.as_micros())?;
                let acked = self.recorder.acked_within(from, self.recorder.now_us());
                if acked > 0 {
                    bail!("{acked} writes were acknowledged though no side has a majority");
                }
            }
            Meanwhile::Anything => {}
        }
        self.lift_all()?;
        let lifted_us = self.recorder.now_us();
        self.served(lifted_us, &format!("after: {what}"))?;
        if step.then != Then::Served {
            self.whole(WHOLE_WITHIN)?;
        }
        if step.then == Then::Healed {
            self.healed(HEALED_WITHIN)?;
        }
        Ok(())
    }

    /// Waits until writes and reads that began after a moment are answered.
    fn served(&mut self, since_us: u64, when: &str) -> anyhow::Result<()> {
        let recorder = self.recorder.clone();
        self.until(SERVED_WITHIN, &format!("clients to be served {when}"), || {
            let (writes, reads) = recorder.served_since(since_us);
            (writes < ANSWERS || reads < ANSWERS).then(|| format!("{writes} writes and {reads} reads since"))
        })
    }

    /// Waits until all nodes answer, are up in the layout, and one leads.
    ///
    /// # Errors
    /// Not within the limit.
    pub fn whole(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        let wanted: BTreeSet<String> = self.driver.nodes().into_iter().map(|node| node.name).collect();
        self.until(limit, "all nodes to be back", || {
            let looks = eyes.since(from);
            let Some(look) = looks.last() else { return Some("no look yet".to_owned()) };
            let missing: Vec<&String> =
                wanted.iter().filter(|name| !look.answering.contains(*name) || !look.up.contains(*name)).collect();
            (look.leader.is_none() || !missing.is_empty())
                .then(|| format!("leader {:?}, not up: {missing:?}", look.leader))
        })
    }

    /// Waits until everything stored is at full contract.
    ///
    /// # Errors
    /// Not within the limit.
    pub fn healed(&mut self, limit: Duration) -> anyhow::Result<()> {
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        self.until(limit, "full contract", || {
            let looks = eyes.since(from);
            let last: Vec<_> = looks.iter().rev().take(HEALED_FOR).collect();
            match last.iter().find_map(|look| look.unhealed.clone()) {
                None if last.len() == HEALED_FOR => None,
                None => Some("not looked at for long enough".to_owned()),
                why => why,
            }
        })
    }

    /// Upgrades whoever still runs the previous release, one after the other, and waits until the new version is in force.
    ///
    /// # Errors
    /// A node does not come back, or the version stays as it was.
    pub fn upgrade_rest(&mut self) -> anyhow::Result<String> {
        for name in self.driver.outdated() {
            self.begin(&Fault::Upgrade, &Who::Node(name))?;
            self.lift_all()?;
            self.whole(WHOLE_WITHIN)?;
        }
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        self.until(WHOLE_WITHIN, &format!("version {COMMANDS_VERSION} of commands to be in force"), || {
            let format = eyes.since(from).last().map(|look| look.format);
            (format != Some(COMMANDS_VERSION)).then(|| format!("it is {format:?}"))
        })?;
        Ok(format!("version {COMMANDS_VERSION} of commands"))
    }

    /// Repeats `why_not` until it has no answer.
    fn until(
        &mut self,
        limit: Duration,
        what: &str,
        mut why_not: impl FnMut() -> Option<String>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        while let Some(why) = why_not() {
            if began.elapsed() > limit {
                bail!("waited {} s in vain for {what}: {why}", limit.as_secs());
            }
            self.rest(Duration::from_millis(50))?;
        }
        Ok(())
    }

    fn begin(&mut self, fault: &Fault, who: &Who) -> anyhow::Result<()> {
        let (nodes, sites, name) = self.resolve(fault, who)?;
        let began_ms = self.eyes.now_ms();
        let record = FaultRecord {
            number: self.faults.len() as u64 + 1,
            kind: fault.kind().to_owned(),
            what: fault.what(&name),
            targets: nodes.clone(),
            began_ms,
            ended_ms: None,
        };
        let index = self.faults.len();
        let mut active = Active { index, fault: fault.clone(), nodes, sites, old: None };
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
        self.shape()
    }

    /// Nodes and sites that are meant, and a name for them.
    fn resolve(&mut self, fault: &Fault, who: &Who) -> anyhow::Result<(Vec<String>, BTreeSet<String>, String)> {
        let leader = match who {
            Who::Leader | Who::LeaderSite | Who::Follower(_) => Some(self.leader()?),
            Who::Node(_) | Who::Site(_) | Who::Everything => None,
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
            Who::Leader | Who::LeaderSite | Who::Follower(_) => format!("{who} ({})", nodes.join(", ")),
        };
        Ok((nodes, sites, name))
    }

    fn leader(&mut self) -> anyhow::Result<String> {
        let (from, eyes) = (self.eyes.now_ms(), self.eyes.clone());
        let mut found = None;
        self.until(SERVED_WITHIN, "a leader", || {
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
        let topology = self.grown();
        let all = self.active.iter().map(|one| one.fault.conditions(&topology, &one.sites));
        let conditions = merged(all);
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

    /// Ends all faults, the last one first. Who is interrupted does not wait for what they left to heal.
    ///
    /// # Errors
    /// One cannot be ended; the others are.
    pub fn lift_all(&mut self) -> anyhow::Result<()> {
        let mut all: anyhow::Result<()> = Ok(());
        while let Some(active) = self.active.pop() {
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
            if let Some((name, how)) = self.driver.ended()?.into_iter().next() {
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
