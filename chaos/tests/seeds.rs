//! The whole cluster under many seeds, and the checks that the judges judge.

use std::collections::BTreeSet;

use pacsvault_chaos::{
    coverage::{SEEDS_FOR_ALL, gaps},
    minimise::minimise,
    overrides::Overrides,
    progress::Progress,
    run::{Report, coverage, last_second, replay_line, run, run_many, run_many_telling},
    scenario::{FAULTS, PlantedBug, Scenario},
};

/// A run allocates millions of small things and frees them in no order.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds of the first test; `PACSVAULT_SIM_SEEDS` overrides.
const SEEDS: u64 = 1_000;
/// Seeds from `PACSVAULT_SIM_FROM` on, when that is set: another share for each release, the same for each run of it.
const FRESH_SEEDS: u64 = 100;
/// Seeds after which every kind of fault must have happened.
const SEEDS_TO_COVER: u64 = 200;
/// Seeds within which a planted bug must be found.
const SEEDS_TO_FIND_A_BUG: u64 = 40;
/// Sorts of topologies: three sites of one to four nodes, two and a witness, four and five sites of one or two nodes.
const TOPOLOGIES: u64 = 9;
/// Seeds of the comparison of two runs.
const SEEDS_TWICE: u64 = 3 * TOPOLOGIES;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

fn number(name: &str, default: u64) -> u64 {
    match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    }
}

/// What went wrong, and how to see it.
fn told(report: &Report) -> Option<String> {
    let line = || format!("{}\n  {}", replay_line(&Scenario::draw(report.seed)), report.violations.join("\n  "));
    (!report.passed()).then(line)
}

/// Fails when a run did, with what happened in the last second of the first one that did.
fn assert_all_passed(reports: &[Report]) {
    if let Some(first) = reports.iter().find(|report| !report.passed()) {
        let failed: Vec<String> = reports.iter().filter_map(told).collect();
        let story = last_second(&Scenario::draw(first.seed));
        panic!("the last second of seed {}:\n{story}\n{}", first.seed, failed.join("\n"));
    }
}

#[test]
fn no_seed_breaks_a_promise_and_every_fault_happened() {
    let (seeds, from) = (number("PACSVAULT_SIM_SEEDS", SEEDS), number("PACSVAULT_SIM_FROM", 0));
    let fresh = if from == 0 { 0..0 } else { from..from.saturating_add(FRESH_SEEDS) };
    println!("seeds 0 to {seeds}, and {fresh:?}");
    let drawn: BTreeSet<u64> = (0..seeds).chain(fresh).collect();
    let scenarios: Vec<Scenario> = drawn.into_iter().map(Scenario::draw).collect();
    let progress = Progress::new(scenarios.len() as u64);
    let reports = run_many_telling(&scenarios, threads(), 3, &|report| {
        progress.ended(!report.passed(), told(report).as_deref());
    });
    let table = coverage(&reports);
    for (what, (times, seeds)) in &table {
        println!("{what:<52} {times:>9} {seeds:>7}");
    }
    assert_all_passed(&reports);
    if seeds >= SEEDS_TO_COVER {
        for fault in FAULTS {
            assert!(table.contains_key(fault.name()), "no seed met {fault:?}");
        }
    }
    if reports.len() >= SEEDS_FOR_ALL {
        assert_eq!(gaps(&table, reports.len()), Vec::<String>::new());
    }
}

/// A few of each topology: a witness, three to five sites, one to four nodes per site.
fn mixture() -> Vec<Scenario> {
    let mut taken = std::collections::BTreeMap::new();
    let few = |scenario: &Scenario| {
        let count: &mut u64 = taken.entry((scenario.sites, scenario.witness, scenario.nodes_per_site)).or_default();
        *count += 1;
        *count <= SEEDS_TWICE / TOPOLOGIES
    };
    let chosen: Vec<Scenario> = (0..600).map(Scenario::draw).filter(few).collect();
    assert_eq!(chosen.len() as u64, SEEDS_TWICE, "every topology");
    chosen
}

/// On this thread and traced, on this thread and on others: the same decisions, all of them.
#[test]
fn one_seed_gives_one_trace_on_any_thread_traced_or_not() {
    let scenarios = mixture();
    let elsewhere = run_many(&scenarios, threads().max(2), usize::MAX);
    for report in &elsewhere {
        let scenario = Scenario::draw(report.seed);
        let traced = run(&scenario, true);
        assert!(!traced.events.is_empty() && report.events.is_empty());
        assert_eq!((report.hash, report.polls), (traced.hash, traced.polls), "seed {}", report.seed);
        assert_eq!((&report.hits, &report.violations), (&traced.hits, &traced.violations), "seed {}", report.seed);
    }
    let again = run_many(&scenarios[..6], 1, usize::MAX);
    for report in &again {
        let before = elsewhere.iter().find(|other| other.seed == report.seed).map(|other| other.hash);
        assert_eq!(Some(report.hash), before, "seed {}", report.seed);
    }
}

/// A planted bug stays found while faults, time, clients and keys are taken away, and what is left replays.
#[test]
fn a_failing_run_is_made_smaller_and_replays() {
    let start = Overrides { bug: Some(PlantedBug::VolumeAcksBeforeSync), ..Overrides::default() };
    let failing = (0..SEEDS_TO_FIND_A_BUG).find(|seed| !run(&start.draw(*seed), false).passed()).expect("found before");
    let smallest = minimise(failing, &start, 60, &mut |_, _, _, _| {}).expect("it fails");
    assert!(smallest.runs <= 60);
    let (large, small) = (start.draw(failing), smallest.overrides.draw(failing));
    assert!(small.fault_time <= large.fault_time && small.clients <= large.clients && small.keys <= large.keys);
    let (before, after) = smallest.strikes;
    assert!((after, small.fault_time) < (before, large.fault_time), "{before} faults, then {after}");
    let again = run(&small, false);
    assert!(!again.passed(), "what was made small fails");
    assert_eq!(again.hash, smallest.report.hash, "and is the same run again");
}
