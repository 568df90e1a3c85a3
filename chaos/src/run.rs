//! One seed, from nothing to a verdict.
//!
//! **Invariants.** A run has two phases: faults, then none. It ends with a verdict whatever happens: a panic of the
//! harness or a run that is stuck is a violation like any other.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    audit,
    cluster::Cluster,
    coverage,
    exec::{Life, Sim, panic_message},
    nemesis::Nemesis,
    overrides::Overrides,
    proof,
    scenario::{PlantedBug, Scenario},
    trace::{self, Event},
    workload::{self, Figures, Work},
};

/// Violations told per seed; the first ones matter.
const VIOLATIONS_TOLD: usize = 8;

/// The verdict on one seed.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// Digest of every decision of the run.
    pub hash: u64,
    /// What went wrong; empty when nothing did.
    pub violations: Vec<String>,
    /// What happened how often.
    pub hits: BTreeMap<&'static str, u64>,
    /// What clients did.
    pub figures: Figures,
    /// Virtual time.
    pub took: Duration,
    /// Tasks polled.
    pub polls: u64,
    /// What happened, when it was traced.
    pub events: Vec<Event>,
}

impl Report {
    /// Whether nothing went wrong.
    pub fn passed(&self) -> bool {
        self.violations.is_empty()
    }
}

/// Runs one scenario. With `trace` the report tells every event.
pub fn run(scenario: &Scenario, trace: bool) -> Report {
    let sim = Sim::new(scenario.seed);
    if trace {
        sim.listen();
    }
    coverage::listen();
    if let Some(PlantedBug::Product(bug)) = scenario.bug {
        sim.plant(bug);
    }
    let cluster = Cluster::new(&sim, scenario.clone());
    let work = Work::new(Arc::clone(&cluster));
    sim.hit(match (scenario.witness, scenario.nodes_per_site) {
        (true, _) => "topology: two sites of 3 nodes and a witness",
        (false, 1) => "topology: three sites of 1 node",
        (false, 2) => "topology: three sites of 2 nodes",
        (false, _) => "topology: three sites of 3 nodes",
    });
    let ended = catch_unwind(AssertUnwindSafe(|| sim.block_on(play(Arc::clone(&work)))));
    work.judge();
    let mut violations = work.model(|model| model.violations.clone());
    if let Err(payload) = ended {
        violations.push(format!("the run broke off: {}", panic_message(payload.as_ref())));
    }
    violations.extend(sim.panics().into_iter().map(|(life, text)| format!("a task of {life:?} panicked: {text}")));
    violations.truncate(VIOLATIONS_TOLD);
    let report = Report {
        seed: scenario.seed,
        hash: sim.trace_hash(),
        violations,
        hits: sim.hits(),
        figures: work.figures(),
        took: sim.now(),
        polls: sim.polls(),
        events: sim.heard(),
    };
    cluster.end();
    sim.end();
    report
}

async fn play(work: Arc<Work>) {
    let cluster = Arc::clone(&work.cluster);
    let sim = cluster.sim.clone();
    let nemesis = Nemesis::new(&cluster);
    phase(&sim, "founding");
    if let Err(why) = cluster.found().await {
        work.violation(why);
        return;
    }
    sim.spawn(Life::HARNESS, Box::pin(audit::watch_digests(Arc::clone(&work))));
    sim.spawn(Life::HARNESS, Box::pin(proof::watch_promises(Arc::clone(&work))));
    if cluster.scenario.people_scrub {
        // Elsewhere nobody asks on purpose for what a disk may have lost, so that nodes have to find it.
        sim.spawn(Life::HARNESS, Box::pin(proof::watch_rot(Arc::clone(&work))));
    }
    if cluster.scenario.is_calm() {
        sim.spawn(Life::HARNESS, Box::pin(Arc::clone(&work).watch_settling()));
    }
    let until = sim.now() + cluster.scenario.fault_time;
    phase(&sim, "faults");
    let clients = workload::start_clients(&work, until);
    Arc::clone(&nemesis).run(until).await;
    let rest = until.saturating_sub(sim.now());
    sim.sleep(Life::HARNESS, rest).await;
    for ended in clients {
        // A client that was dropped ended as well.
        let _ = ended.await;
    }
    audit::finale(&work, &nemesis).await;
}

/// A row of the trace: what the run is about from now on.
pub(crate) fn phase(sim: &Sim, name: &'static str) {
    sim.event("phase", &[], || name.to_owned());
}

/// Runs scenarios on `threads` threads, one simulation on each. Stops early after `failures_max` failing seeds.
pub fn run_many(scenarios: &[Scenario], threads: usize, failures_max: usize) -> Vec<Report> {
    run_many_telling(scenarios, threads, failures_max, &|_| {})
}

/// As [`run_many`]; `tell` hears each report at once, from any thread.
pub fn run_many_telling(
    scenarios: &[Scenario],
    threads: usize,
    failures_max: usize,
    tell: &(dyn Fn(&Report) + Sync),
) -> Vec<Report> {
    let next = AtomicU64::new(0);
    let reports: Mutex<Vec<Report>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let at = usize::try_from(next.fetch_add(1, Ordering::Relaxed)).unwrap_or(usize::MAX);
                    let Some(scenario) = scenarios.get(at) else { return };
                    let report = run(scenario, false);
                    tell(&report);
                    let mut reports = reports.lock().unwrap_or_else(PoisonError::into_inner);
                    reports.push(report);
                    if reports.iter().filter(|report| !report.passed()).count() >= failures_max {
                        next.store(u64::MAX / 2, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut reports = reports.into_inner().unwrap_or_else(PoisonError::into_inner);
    reports.sort_by_key(|report| report.seed);
    reports
}

/// The last second of a run that failed: it runs again, traced, and is the same run.
pub fn last_second(scenario: &Scenario) -> String {
    trace::tail(&run(scenario, true).events)
}

/// The command that shows a failing seed again.
pub fn replay_line(scenario: &Scenario) -> String {
    replay(scenario.seed, &Overrides { bug: scenario.bug, ..Overrides::default() })
}

/// The command that shows the run of `seed` with `overrides` again.
pub fn replay(seed: u64, overrides: &Overrides) -> String {
    format!("cargo xtask sim --seed {seed}{overrides} --trace   # at commit {}", commit())
}

/// The commit of the checkout, with `+` when it was changed since; a seed means the same run only there.
pub fn commit() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(head) = git(&["rev-parse", "--short=12", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|list| !list.is_empty());
    if changed { head + "+" } else { head }
}

/// How often each thing happened over all runs, and in how many of them.
pub fn coverage(reports: &[Report]) -> BTreeMap<&'static str, (u64, u64)> {
    let mut table: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    for (what, times) in reports.iter().flat_map(|report| &report.hits) {
        let row = table.entry(what).or_default();
        row.0 += times;
        row.1 += 1;
    }
    table
}
