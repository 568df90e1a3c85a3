//! The whole cluster under many seeds, and the checks that the judges judge.

use pacsvault_chaos::{
    coverage::{SEEDS_FOR_ALL, gaps},
    run::{coverage, replay_line, run, run_many},
    scenario::{FAULTS, Scenario},
};

/// Seeds of the first test; `PACSVAULT_SIM_SEEDS` overrides.
const SEEDS: u64 = 200;

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
    if reports.len() >= SEEDS_FOR_ALL {
        assert_eq!(gaps(&table), Vec::<String>::new());
    }
}

#[test]
fn one_seed_twice_gives_one_trace() {
    for seed in 0..6 {
        let (first, second) = (run(&Scenario::draw(seed), false), run(&Scenario::draw(seed), false));
        assert_eq!((first.hash, first.polls), (second.hash, second.polls), "seed {seed}");
    }
}
