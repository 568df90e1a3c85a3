//! The whole cluster under many seeds, and the checks that the judges judge.

use pacsvault_chaos::{
    run::{coverage, replay_line, run, run_many},
    scenario::{FAULTS, PlantedBug, Scenario},
};

/// Seeds of the first test; `PACSVAULT_SIM_SEEDS` overrides.
const SEEDS: u64 = 200;
/// Seeds within which a planted bug must be found.
const SEEDS_TO_FIND_A_BUG: u64 = 40;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

#[test]
fn no_seed_breaks_a_promise_and_every_fault_happened() {
    let seeds = std::env::var("PACSVAULT_SIM_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SEEDS);
    let scenarios: Vec<Scenario> = (0..seeds).map(Scenario::draw).collect();
    let reports = run_many(&scenarios, threads(), 3);
    let table = coverage(&reports);
    for (what, (times, seeds)) in &table {
        println!("{what:<52} {times:>9} {seeds:>7}");
    }
    let failed: Vec<String> = reports
        .iter()
        .filter(|report| !report.violations.is_empty())
        .map(|report| format!("{}\n  {}", replay_line(&Scenario::draw(report.seed)), report.violations.join("\n  ")))
        .collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    if seeds >= SEEDS {
        for fault in FAULTS {
            assert!(table.contains_key(fault.name()), "no seed met {fault:?}");
        }
    }
}

#[test]
fn one_seed_twice_gives_one_trace() {
    for seed in 0..6 {
        let (first, second) = (run(&Scenario::draw(seed), false), run(&Scenario::draw(seed), false));
        assert_eq!((first.hash, first.polls), (second.hash, second.polls), "seed {seed}");
    }
}

fn finds(bug: PlantedBug) {
    let draw = |seed| {
        let mut scenario = Scenario::draw(seed);
        scenario.bug = Some(bug);
        scenario
    };
    let scenarios: Vec<Scenario> = (0..SEEDS_TO_FIND_A_BUG).map(draw).collect();
    let reports = run_many(&scenarios, threads(), 1);
    assert!(reports.iter().any(|report| !report.violations.is_empty()), "{bug} was not found");
}

#[test]
fn volumes_that_ack_before_they_sync_are_found() {
    finds(PlantedBug::VolumeAcksBeforeSync);
}

#[test]
fn a_log_that_acks_before_it_syncs_is_found() {
    finds(PlantedBug::LogAcksBeforeSync);
}

#[test]
fn volumes_that_forget_names_are_found() {
    finds(PlantedBug::VolumeForgetsNames);
}

#[test]
fn nodes_that_ack_what_they_did_not_write_are_found() {
    finds(PlantedBug::NodeAcksUnwritten);
}

#[test]
fn reads_confirmed_by_nobody_are_found() {
    finds(PlantedBug::ReadIndexUnconfirmed);
}

#[test]
fn repair_that_names_what_was_never_written_is_found() {
    finds(PlantedBug::ReseatsUnwritten);
}

#[test]
fn copies_swept_before_they_can_be_named_are_found() {
    finds(PlantedBug::SweepsAtOnce);
}

#[test]
fn repair_that_ignores_the_root_is_found() {
    finds(PlantedBug::RepairIgnoresRoot);
}
