//! Runs seeds of the whole-cluster simulation and prints what failed and what was covered.

use std::{
    io::{self, Write as _},
    time::{Duration, Instant},
};

use clap::Parser;
use pacsvault_chaos::{
    coverage::{SEEDS_FOR_ALL, gaps},
    exec::Sim,
    minimise,
    overrides::{Overrides, duration},
    progress::Progress,
    run::{Report, commit, coverage, last_second, replay, run, run_many_telling},
    scenario::Scenario,
    trace::{Filter, LEGEND, render, tail},
    workload::key_name,
};

/// A run allocates millions of small things and frees them in no order.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Simulates whole clusters, one per seed, and judges them.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask sim", version, after_long_help = LEGEND)]
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
    /// Print the run as a space-time trace; --help tells how to read it.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Make a failing run small: fewer faults, less time, fewer clients, keys and nodes.
    #[arg(long, requires = "seed")]
    minimise: bool,
    /// Runs that making it small may take.
    #[arg(long, default_value_t = 300)]
    budget: u32,
    /// Print the result as one JSON document.
    #[arg(long)]
    json: bool,
    /// Threads; each runs one simulation at a time.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(2, usize::from))]
    threads: usize,
    /// Stop after this many failing seeds.
    #[arg(long, default_value_t = 5)]
    failures: usize,
    #[command(flatten)]
    overrides: Overrides,
    #[command(flatten)]
    rows: Rows,
}

/// What of a trace to show.
#[derive(Debug, Clone, clap::Args)]
struct Rows {
    /// Trace: only rows of these machines or clients, such as a-0,client-2.
    #[arg(long, value_delimiter = ',')]
    node: Vec<String>,
    /// Trace: only rows of these kinds, such as deliver,put-shard,fault.
    #[arg(long, value_delimiter = ',')]
    kind: Vec<String>,
    /// Trace: only so long before the first violation (or the end): 2s.
    #[arg(long, value_parser = duration)]
    last: Option<Duration>,
    /// Trace: only the story of this key, by its number.
    #[arg(long)]
    key: Option<usize>,
    /// Trace: chatter as well (raft, heartbeat, ...).
    #[arg(long)]
    all: bool,
}

impl Rows {
    fn filter(&self) -> Filter {
        Filter {
            nodes: self.node.clone(),
            kinds: self.kind.clone(),
            last: self.last,
            key: self.key.map(|key| key_name(key).to_string()),
            all: self.all,
        }
    }
}

fn main() -> std::process::ExitCode {
    let args = Args::parse();
    let failed = match args.seed {
        Some(seed) if args.minimise => make_small(&args, seed),
        Some(seed) => one(&args, seed),
        None => many(&args),
    };
    if failed { std::process::ExitCode::FAILURE } else { std::process::ExitCode::SUCCESS }
}

/// One seed. True when it failed.
fn one(args: &Args, seed: u64) -> bool {
    if args.trace {
        // What nodes log belongs between the events.
        let level = tracing_subscriber::filter::LevelFilter::INFO;
        tracing_subscriber::fmt().with_writer(|| LogRow).without_time().with_ansi(false).with_max_level(level).init();
    }
    let scenario = args.overrides.draw(seed);
    if !args.json {
        println!("{scenario:#?}");
    }
    let began = Instant::now();
    let report = run(&scenario, args.trace);
    let took = began.elapsed();
    if args.trace {
        print_trace(&report, &args.rows.filter());
    }
    finish(args, std::slice::from_ref(&report), took)
}

fn print_trace(report: &Report, filter: &Filter) {
    let mut out = io::stdout().lock();
    render(&report.events, filter, |line| {
        // A reader that has seen enough closes the pipe.
        if writeln!(out, "{line}").is_err() {
            std::process::exit(0);
        }
    });
}

/// Many seeds. True when one failed.
fn many(args: &Args) -> bool {
    let scenarios: Vec<Scenario> = (args.from..args.from + args.seeds).map(|seed| args.overrides.draw(seed)).collect();
    let progress = Progress::new(args.seeds);
    let began = Instant::now();
    let reports = run_many_telling(&scenarios, args.threads, args.failures, &|report| {
        progress.ended(!report.passed(), failure(report, &args.overrides, "").as_deref());
    });
    progress.finish();
    finish(args, &reports, began.elapsed())
}

/// Makes a failing seed small. True when it failed.
fn make_small(args: &Args, seed: u64) -> bool {
    let smallest = minimise::minimise(seed, &args.overrides, args.budget, &mut |runs, most, what, best| {
        eprintln!("[{runs}/{most}] {what:<22} smallest so far: --seed {seed}{best}");
    });
    let Some(smallest) = smallest else {
        println!("seed {seed} does not fail");
        return false;
    };
    println!("{:#?}", smallest.overrides.draw(seed));
    println!(
        "{} faults struck at first, {} in the smallest; {} runs",
        smallest.strikes.0, smallest.strikes.1, smallest.runs
    );
    let story = if args.trace { String::new() } else { tail(&smallest.report.events) };
    if args.trace {
        print_trace(&smallest.report, &args.rows.filter());
    }
    if let Some(told) = failure(&smallest.report, &smallest.overrides, &story) {
        println!("{told}");
    }
    true
}

/// What went wrong, what happened before (`story`), and how to see it again.
fn failure(report: &Report, overrides: &Overrides, story: &str) -> Option<String> {
    if report.passed() {
        return None;
    }
    let violations: String = report.violations.iter().map(|violation| format!("  - {violation}\n")).collect();
    let replay = replay(report.seed, overrides);
    let (seed, hash) = (report.seed, report.hash);
    Some(format!("seed {seed} FAILED (trace {hash:016x}):\n{violations}{story}  replay: {replay}"))
}

fn finish(args: &Args, reports: &[Report], took: Duration) -> bool {
    let failed: Vec<&Report> = reports.iter().filter(|report| !report.passed()).collect();
    // A planted bug, or a scenario changed by hand, need not meet everything.
    let drawn = args.overrides == Overrides::default() && reports.len() >= SEEDS_FOR_ALL;
    let gaps = if drawn { gaps(&coverage(reports), reports.len()) } else { Vec::new() };
    if args.json {
        println!("{:#}", json(reports, &gaps, &args.overrides, took, args.threads));
        return !failed.is_empty() || !gaps.is_empty();
    }
    print_coverage(reports);
    print_figures(reports, took.as_secs_f64(), args.threads);
    for (at, report) in failed.iter().enumerate() {
        // Of the first one what happened before, unless all of it was shown.
        let shown = args.trace || at > 0;
        let story = if shown { String::new() } else { last_second(&args.overrides.draw(report.seed)) };
        println!("\n{}", failure(report, &args.overrides, &story).unwrap_or_default());
    }
    gaps.iter().for_each(|gap| println!("COVERAGE: {gap}"));
    !failed.is_empty() || !gaps.is_empty()
}

fn print_coverage(reports: &[Report]) {
    println!("{:<52} {:>9} {:>7}", "what happened", "times", "seeds");
    for (what, (times, seeds)) in coverage(reports) {
        println!("{what:<52} {times:>9} {seeds:>7}");
    }
}

/// Sums over all runs, by name.
fn sums(reports: &[Report]) -> Vec<(&'static str, u64)> {
    let sum = |of: fn(&Report) -> u64| reports.iter().map(of).sum::<u64>();
    vec![
        ("virtual seconds", sum(|report| report.took.as_secs())),
        ("polls", sum(|report| report.polls)),
        ("writes acknowledged", sum(|report| report.figures.acked)),
        ("writes refused", sum(|report| report.figures.refused)),
        ("writes unknown", sum(|report| report.figures.unknown)),
        ("reads", sum(|report| report.figures.reads)),
        ("misses", sum(|report| report.figures.misses)),
        ("listings", sum(|report| report.figures.lists)),
        ("deletes", sum(|report| report.figures.deletes)),
    ]
}

/// Median, 90 % and longest time to be whole again, in milliseconds.
fn healed(reports: &[Report]) -> [u64; 3] {
    let mut healed: Vec<u64> = reports.iter().map(|report| report.figures.heal_millis).collect();
    healed.sort_unstable();
    let last = healed.len().saturating_sub(1);
    [50, 90, 100].map(|part| healed.get((healed.len() * part / 100).min(last)).copied().unwrap_or(0))
}

/// Whole histories that one core makes in an hour, when it has nothing else to do.
fn per_core_hour(runs: usize, seconds: f64, threads: usize) -> f64 {
    let small = |count: usize| f64::from(u32::try_from(count).unwrap_or(u32::MAX));
    small(runs) * 3_600.0 / seconds.max(0.001) / small(threads.clamp(1, runs.max(1)))
}

fn print_figures(reports: &[Report], seconds: f64, threads: usize) {
    let sums: Vec<String> = sums(reports).into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    let failed = reports.iter().filter(|report| !report.passed()).count();
    println!("\n{} seeds, {failed} failed, in {seconds:.1} s on {threads} threads: {}", reports.len(), sums.join(", "));
    let [median, ninety, longest] = healed(reports);
    println!("whole again after the last fault: median {median} ms, 90 % {ninety} ms, longest {longest} ms");
    println!("{:.0} histories per core-hour; commit {}", per_core_hour(reports.len(), seconds, threads), commit());
    if let [only] = reports {
        println!("trace {:016x}", only.hash);
    }
}

fn json(
    reports: &[Report],
    gaps: &[String],
    overrides: &Overrides,
    took: Duration,
    threads: usize,
) -> serde_json::Value {
    let failed = reports.iter().filter(|report| !report.passed()).map(|report| {
        serde_json::json!({
            "seed": report.seed,
            "trace": format!("{:016x}", report.hash),
            "violations": report.violations,
            "replay": replay(report.seed, overrides),
        })
    });
    let covered: serde_json::Map<String, serde_json::Value> = coverage(reports)
        .into_iter()
        .map(|(what, (times, seeds))| (what.to_owned(), serde_json::json!({ "times": times, "seeds": seeds })))
        .collect();
    let sums: serde_json::Map<String, serde_json::Value> =
        sums(reports).into_iter().map(|(what, count)| (what.to_owned(), count.into())).collect();
    let [median, ninety, longest] = healed(reports);
    serde_json::json!({
        "commit": commit(),
        "seeds": reports.len(),
        "first_seed": reports.first().map(|report| report.seed),
        "threads": threads,
        "took_seconds": took.as_secs_f64(),
        "histories_per_core_hour": per_core_hour(reports.len(), took.as_secs_f64(), threads),
        "failed": failed.collect::<Vec<_>>(),
        "figures": sums,
        "whole_again_millis": { "median": median, "percent_90": ninety, "longest": longest },
        "coverage": covered,
        "coverage_gaps": gaps,
    })
}

/// Writes what nodes log into the trace.
struct LogRow;

impl io::Write for LogRow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(bytes).trim().to_owned();
        match Sim::try_current() {
            Some(sim) => sim.note("log", &[], text),
            None => eprintln!("{text}"),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
