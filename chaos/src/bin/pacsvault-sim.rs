//! Runs seeds of the whole-cluster simulation and prints what failed and what was covered.

use std::time::Instant;

use clap::Parser;
use pacsvault_chaos::{
    coverage::{SEEDS_FOR_ALL, gaps},
    run::{Report, coverage, replay_line, run, run_many},
    scenario::{PlantedBug, Scenario},
};

/// Simulates whole clusters, one per seed, and judges them.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Run only this seed.
    #[arg(long)]
    seed: Option<u64>,
    /// Print every event of the run; with --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Threads; each runs one simulation at a time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Stop after this many failing seeds.
    #[arg(long, default_value_t = 5)]
    failures: usize,
    /// Plant a bug, to see it found.
    #[arg(long)]
    bug: Option<PlantedBug>,
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let draw = |seed| {
        let mut scenario = Scenario::draw(seed);
        scenario.bug = args.bug;
        scenario
    };
    if args.trace {
        // What nodes log, between the events of the simulator.
        let level = tracing_subscriber::filter::LevelFilter::INFO;
        tracing_subscriber::fmt().with_writer(std::io::stderr).without_time().with_max_level(level).init();
    }
    let started = Instant::now();
    let reports = match args.seed {
        Some(seed) => {
            let scenario = draw(seed);
            println!("{scenario:#?}");
            vec![run(&scenario, args.trace)]
        }
        None => {
            let scenarios: Vec<Scenario> = (args.from..args.from + args.seeds).map(draw).collect();
            run_many(&scenarios, args.threads, args.failures)
        }
    };
    print_coverage(&reports);
    print_figures(&reports, started.elapsed().as_secs_f64());
    let gaps =
        if args.bug.is_none() && reports.len() >= SEEDS_FOR_ALL { gaps(&coverage(&reports)) } else { Vec::new() };
    gaps.iter().for_each(|gap| println!("COVERAGE: {gap}"));
    let mut failed = !gaps.is_empty();
    for report in reports.iter().filter(|report| !report.violations.is_empty()) {
        failed = true;
        println!("\nseed {} FAILED (trace {:016x}):", report.seed, report.hash);
        report.violations.iter().for_each(|violation| println!("  - {violation}"));
        println!("  replay: {}", replay_line(&draw(report.seed)));
    }
    if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

fn print_coverage(reports: &[Report]) {
    println!("{:<52} {:>9} {:>7}", "what happened", "times", "seeds");
    for (what, (times, seeds)) in coverage(reports) {
        println!("{what:<52} {times:>9} {seeds:>7}");
    }
}

fn print_figures(reports: &[Report], seconds: f64) {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    println!(
        "\n{} seeds, {} virtual s, {} polls in {seconds:.1} s: {} writes acknowledged, {} refused, {} unknown; {} reads, {} misses, \
         {} listings, {} deletes",
        reports.len(),
        sum(|report| report.took.as_secs()),
        sum(|report| report.polls),
        sum(|report| report.figures.acked),
        sum(|report| report.figures.refused),
        sum(|report| report.figures.unknown),
        sum(|report| report.figures.reads),
        sum(|report| report.figures.misses),
        sum(|report| report.figures.lists),
        sum(|report| report.figures.deletes),
    );
    let mut healed: Vec<u64> = reports.iter().map(|report| report.figures.heal_millis).collect();
    healed.sort_unstable();
    let at =
        |part: usize| healed.get((healed.len() * part / 100).min(healed.len().saturating_sub(1))).copied().unwrap_or(0);
    println!("whole again after the last fault: median {} ms, 90 % {} ms, longest {} ms", at(50), at(90), at(100));
    if let [only] = reports {
        println!("trace {:016x}", only.hash);
    }
}
