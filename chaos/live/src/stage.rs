//! The course of a run: a cluster, sessions, a plan carried out, the verdict, and the record of it all.
//!
//! **Invariants.** Whatever happens after the load began ends in a record: a run that fails tells what failed, and how to run it
//! again; one that is interrupted lifts what is broken, waits for nothing any more, judges what was answered until then, and names
//! the checks that were not made. It has not passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow, ensure};
use pacsvault_client::{Client, Mode};
use pacsvault_core::layout::{Layout, Profile};
use pacsvault_rpc::TonicPeer;
use pacsvault_runtime::wall_now;
use tokio::runtime::Handle;

use crate::{
    driver::{Ability, Death, Driver},
    eyes::Eyes,
    history::Recorder,
    interrupt::{Interrupt, Interrupted},
    load::Load,
    measure,
    record::{CAME_TO_ITS_END, Check, Link, Program, Run},
    runner::{Limits, Runner, Senses},
    scenario::{ALWAYS, Plan, Scenario, Topology},
    verdict::{self, check},
};

/// Sessions of each site, and how content travels: one leaves coding and placing to a node, as gateways in other languages do.
pub const SESSIONS: [Mode; 3] = [Mode::Direct, Mode::Direct, Mode::ViaNode];
/// Peace before the first fault.
const PEACE: Duration = Duration::from_secs(3);
/// Writes acknowledged in peace, and how long that may take.
const FIRST: (u64, Duration) = (20, Duration::from_secs(60));
/// How long sessions may take to end.
const END_WITHIN: Duration = Duration::from_secs(60);
/// The same when somebody waits for the end.
const INTERRUPTED_WITHIN: Duration = Duration::from_secs(3);

/// All that a run needs.
pub struct Stage {
    /// The cluster.
    pub driver: Box<dyn Driver>,
    /// Its sites.
    pub topology: Topology,
    /// What the harness asks nodes with.
    pub operator: Arc<TonicPeer>,
    /// Where it reaches them when the driver does not say.
    pub addresses: BTreeMap<String, String>,
    /// One for each session.
    pub clients: Vec<Client>,
    /// For the last reads: of two sites.
    pub readers: Vec<Client>,
    /// The certificate of the cluster's authority.
    pub ca_pem: String,
    /// Where it all runs.
    pub runtime: Handle,
    /// Name of the network.
    pub network: String,
    /// Latency between sites.
    pub wan_ms: Vec<Link>,
    /// SHA-256 of the program under test; empty when it runs elsewhere.
    pub sha256: String,
    /// The command that does the same again.
    pub command: String,
    /// Settings of the nodes by which outages are found out, in words.
    pub timings: String,
    /// How long things may take with these.
    pub limits: Limits,
    /// Whether the end was asked for.
    pub interrupt: Interrupt,
    /// Where record and history go.
    pub out: PathBuf,
}

struct Course<'a> {
    stage: &'a mut Stage,
    senses: Senses,
    checks: Vec<Check>,
    /// Checks that nobody waited for.
    unmade: Vec<String>,
    /// Processes that ended by themselves.
    ended: Vec<String>,
    run: Run,
}

impl Stage {
    /// Plays a scenario to its end and judges it. Record and page are written.
    ///
    /// # Errors
    /// The driver cannot do what the scenario asks for, or the record cannot be written.
    pub fn play(mut self, scenario: &Scenario, seed: u64, minutes: f64) -> anyhow::Result<Run> {
        let abilities = self.driver.abilities();
        let missing: Vec<String> =
            scenario.essential.iter().filter(|one| !abilities.contains(one)).map(ToString::to_string).collect();
        ensure!(missing.is_empty(), "{} needs a driver that can {}", scenario.name, missing.join(" and "));
        scenario.check(&self.topology)?;
        let plan = scenario.plan(seed, minutes, &self.topology, &abilities);
        fs::create_dir_all(&self.out).with_context(|| format!("cannot make {}", self.out.display()))?;
        let began = Instant::now();
        let eyes = Arc::new(Eyes::new(self.operator.clone(), began, self.runtime.clone()));
        let own = self.driver.addresses();
        eyes.watch(if own.is_empty() { self.addresses.clone() } else { own });
        let recorder = Arc::new(Recorder::new(began, &self.out.join("history.jsonl"))?);
        let mut run = self.blank(scenario, seed, minutes);
        let left_out = scenario.left_out(seed, minutes, &self.topology, &abilities);
        run.left_out = left_out.iter().map(ToString::to_string).collect();
        if plan.needs().contains(&Ability::Kill) && self.driver.death() == Death::Told {
            run.left_out.push("kill nodes without a second to finish something".to_owned());
        }
        let over = Arc::new(AtomicBool::new(false));
        let looking = eyes.open(over.clone());
        let clients = std::mem::take(&mut self.clients);
        for (client, session) in clients.iter().zip(1..) {
            let site = client.config().site.as_ref().context("a session has a site")?;
            recorder.seat(session, site.as_str());
        }
        let load = Load::start(&self.runtime, clients, &recorder, seed, rand::random());
        let runtime = self.runtime.clone();
        let senses = Senses {
            eyes,
            recorder,
            interrupt: self.interrupt.clone(),
            limits: self.limits,
            wan_ms: self.wan_ms.clone(),
            readers: self.readers.clone(),
        };
        let mut course =
            Course { stage: &mut self, senses, checks: Vec::new(), unmade: Vec::new(), ended: Vec::new(), run };
        course.fire(&plan, scenario, minutes);
        course.finish(load);
        over.store(true, Ordering::Relaxed);
        // The last look may still be under way; nothing depends on it.
        let _ = runtime.block_on(looking);
        course.conclude(began)
    }

    fn blank(&self, scenario: &Scenario, seed: u64, minutes: f64) -> Run {
        Run {
            scenario: scenario.name.to_owned(),
            summary: format!("{} {} {ALWAYS}", scenario.does, scenario.holds),
            command: self.command.clone(),
            seed,
            minutes,
            program: Program { version: String::new(), sha256: self.sha256.clone() },
            machine: machine(),
            network: self.network.clone(),
            timings: self.timings.clone(),
            nodes: self.driver.nodes(),
            wan_ms: self.wan_ms.clone(),
            began_wall_ms: wall_now().0,
            ..Run::default()
        }
    }
}

/// When no step begins any more: so many minutes after the end of peace, however long that took.
fn end_ms(peace_ended_ms: u64, minutes: f64) -> u64 {
    let planned = Duration::from_secs_f64(minutes.clamp(0.0, 10_000.0) * 60.0);
    peace_ended_ms.saturating_add(u64::try_from(planned.as_millis()).unwrap_or(u64::MAX))
}

impl Course<'_> {
    /// A check that was made; or one that an interrupt kept from being made.
    fn note(&mut self, name: &str, found: anyhow::Result<String>) {
        if found.as_ref().is_err_and(|error| error.is::<Interrupted>()) {
            return self.unmade.push(name.to_owned());
        }
        let check = check(name, found.map_err(|error| format!("{error:#}")));
        eprintln!("{} {}: {}", if check.passed { "  ok  " } else { "FAILED" }, check.name, check.detail);
        self.checks.push(check);
    }

    fn runner(&mut self, until_ms: u64) -> Runner<'_> {
        let topology = self.stage.topology.clone();
        Runner::new(&mut *self.stage.driver, &self.senses, &topology, until_ms)
    }

    /// Waits for the load, carries out the plan, and waits until everybody is back and all is healed.
    fn fire(&mut self, plan: &Plan, scenario: &Scenario, minutes: f64) {
        let ready = self.peace();
        self.run.profile = self.senses.eyes.layout().map(|layout| profile(&layout)).unwrap_or_default();
        let upgrades = plan.needs().contains(&Ability::Upgrade);
        let mut runner = self.runner(end_ms(self.senses.eyes.now_ms(), minutes));
        let result = ready.and_then(|()| runner.run(plan));
        let (faults, met_repair) = (runner.faults.len(), runner.met_repair);
        let upgraded = upgrades.then(|| runner.upgrade_rest());
        let limits = runner.limits();
        let whole = runner.whole(limits.whole);
        let healed = runner.healed(limits.healed);
        let (faults_done, ended) = (std::mem::take(&mut runner.faults), std::mem::take(&mut runner.ended));
        self.ended.extend(ended);
        let done = verdict::done(&faults_done, scenario.own);
        self.run.faults = faults_done;
        self.note("faults were done", done.map_err(anyhow::Error::msg));
        self.note("what must hold under each fault", result.map(|()| format!("{faults} faults")));
        if let Some(upgraded) = upgraded {
            self.note("the new version is in force", upgraded);
        }
        self.note("all nodes are back", whole.map(|()| "all answer and are up".to_owned()));
        self.note("full contract after the faults", healed.map(|()| "nothing is below its contract".to_owned()));
        if plan.meets_repair() {
            let met = if met_repair > 0 { Ok(format!("{met_repair} did")) } else { Err(anyhow!("none did")) };
            self.note("an outage met a repair", met);
        }
    }

    fn peace(&self) -> anyhow::Result<()> {
        let (wanted, limit) = FIRST;
        let began = Instant::now();
        loop {
            self.senses.interrupt.check()?;
            let (writes, _) = self.senses.recorder.served_since(0, None);
            if writes >= wanted && began.elapsed() >= PEACE {
                return Ok(());
            }
            ensure!(
                began.elapsed() < limit,
                "only {writes} writes were acknowledged in {} s of peace",
                limit.as_secs()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn finish(&mut self, load: Load) {
        let runtime = self.stage.runtime.clone();
        let until_ms = self.senses.eyes.now_ms();
        let hurried = self.senses.interrupt.told().is_some();
        let ended = runtime.block_on(load.stop(if hurried { INTERRUPTED_WITHIN } else { END_WITHIN }));
        // Whoever is in a hurry gives up what is under way.
        if !hurried {
            self.note("all sessions ended in order", ended.map_err(anyhow::Error::msg));
        }
        self.run.load_ended_ms = Some(self.senses.eyes.now_ms());
        let moments = self.senses.recorder.moments();
        let sites = self.senses.recorder.sites();
        self.run.outages = measure::outages(&moments, &sites, &self.run.faults, until_ms);
        self.run.totals = measure::totals(&moments, self.run.faults.len() as u64, 0, until_ms);
        self.settle();
        match self.senses.recorder.history() {
            Err(error) => self.note("the history is kept", Err(error)),
            Ok(_) => self.judge(),
        }
        self.orderly();
    }

    /// Processes ran until they were told to stop, from the first fault to the last proof.
    fn orderly(&mut self) {
        let leaders = verdict::one_leader(&self.senses.eyes.looks());
        self.note("no two leaders of one term", leaders.map_err(anyhow::Error::msg));
        let told = self.stage.driver.look_again().and_then(|()| self.stage.driver.ended());
        let looked = !matches!(told, Ok(None));
        match told {
            Ok(ended) => {
                self.ended.extend(ended.into_iter().flatten().map(|(name, how)| format!("{name} ended: {how}")))
            }
            Err(error) => self.ended.push(format!("{error:#}")),
        }
        let ended = std::mem::take(&mut self.ended);
        self.nobody("no process ended by itself", (looked || !ended.is_empty()).then_some(Ok(ended)));
        let panics = self.stage.driver.panics().transpose();
        self.nobody("no node panicked", panics);
    }

    /// A check that nothing was found; left out by name when nobody looked.
    fn nobody(&mut self, name: &str, found: Option<anyhow::Result<Vec<String>>>) {
        match found {
            None => self.run.unchecked.push(format!("{name}: this driver cannot tell")),
            Some(Ok(found)) if !found.is_empty() => self.note(name, Err(anyhow!(found.join("; ")))),
            Some(found) => self.note(name, found.map(|_| "none".to_owned())),
        }
    }

    /// What the last writes left is healed, too.
    fn settle(&mut self) {
        let mut runner = self.runner(0);
        let healed = runner.healed(runner.limits().healed);
        let ended = std::mem::take(&mut runner.ended);
        self.ended.extend(ended);
        self.note("full contract after the last write", healed.map(|()| "nothing is below its contract".to_owned()));
        let nodes = self.stage.driver.nodes().len();
        let equal = self.waiting(verdict::equal(&self.senses.eyes, nodes));
        self.note("replicas are equal", equal);
    }

    /// What a check finds, unless it is interrupted.
    fn waiting(&self, check: impl Future<Output = Result<String, String>>) -> anyhow::Result<String> {
        self.stage.runtime.block_on(self.senses.interrupt.or(check))?.map_err(anyhow::Error::msg)
    }

    fn judge(&mut self) {
        let recorder = self.senses.recorder.clone();
        let gone = recorder.history().map(|history| verdict::deleted(&history)).unwrap_or_default();
        let reread = self.waiting(verdict::reread(&self.stage.readers, &recorder, &gone));
        self.note("every acknowledged version is read again", reread);
        let judged = recorder.history().and_then(|history| verdict::judged(&history).map_err(anyhow::Error::msg));
        self.note("the history has an explanation", judged);
        self.note("every byte and every refusal was fair", verdict::unbroken(&recorder).map_err(anyhow::Error::msg));
        match verdict::receipts(&recorder, &self.stage.ca_pem, &gone) {
            Err(why) => self.note("receipts are proven offline", Err(anyhow!(why))),
            Ok((promised, detail)) => {
                self.note("receipts are proven offline", Ok(detail));
                if self.stage.driver.abilities().contains(&Ability::Volumes) {
                    let told = self.senses.interrupt.check().map_err(anyhow::Error::from);
                    let proven = told.and_then(|()| self.stage.driver.prove(&promised));
                    self.note("full contract is proven from the volumes", proven);
                }
            }
        }
    }

    fn conclude(mut self, began: Instant) -> anyhow::Result<Run> {
        if let Some(signal) = self.senses.interrupt.told().filter(|_| !self.unmade.is_empty()) {
            self.run.interrupted = Some(signal.to_string());
            let unmade = std::mem::take(&mut self.unmade).join("; ");
            self.note(CAME_TO_ITS_END, Err(anyhow!("{signal}; not checked: {unmade}")));
        }
        let took_ms = u64::try_from(began.elapsed().as_millis())?;
        self.run.took_ms = took_ms;
        let looks = self.senses.eyes.looks();
        let versions: BTreeSet<&str> = looks.iter().flat_map(|look| &look.versions).map(String::as_str).collect();
        self.run.program.version = versions.into_iter().collect::<Vec<_>>().join(", ");
        self.run.samples = measure::samples(&self.senses.recorder.moments(), &looks, took_ms);
        self.run.leaders = self.senses.eyes.leaders();
        self.run.refusals = self.senses.recorder.refusals();
        self.run.checks = self.checks;
        self.run.passed = self.run.checks.iter().all(|check| check.passed);
        crate::report::write(&self.run, &self.stage.out)?;
        Ok(self.run)
    }
}

/// What writes that name no profile are promised, in a line.
fn profile(layout: &Layout) -> String {
    let name = &layout.default_profile;
    let detail = |profile: &Profile| format!("{name}: {}, survives {}", profile.code, profile.contract);
    layout.profiles.get(name).map_or_else(|| name.to_string(), detail)
}

/// What it runs on, in a line.
fn machine() -> String {
    let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let info = text("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    let memory = text("/proc/meminfo");
    let kib = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    format!("{cpus} × {}, {} GiB", model.unwrap_or("CPU"), kib.unwrap_or(0) >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn minutes_count_from_the_end_of_peace() {
        assert_eq!(end_ms(40_000, 0.5), 70_000);
        assert_eq!(end_ms(3_000, 0.0), 3_000);
    }
}
