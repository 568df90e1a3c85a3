//! Real site outages on this machine, with a judge: the command line.
//!
//! **Invariants.** The exit code is 0 only when every check passed, 1 when one failed, 2 when it could not be done, and 128 and the
//! signal's number when a signal ended it.

mod options;

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::Parser;
use pacsvault_chaos_live::{
    attach,
    driver::{
        Driver,
        kubectl::{self, Kubectl},
        local::{Local, MakeWan, Options, Timings},
    },
    interrupt::{Interrupt, Interrupted},
    net::{self, Host, SiteLatency, Wan, speed},
    record::{Link, Run},
    scenario::{self, ALWAYS, Scenario, Topology},
    stage::{SESSIONS, Stage},
    verdict,
};
use pacsvault_client::{Config, Mode, Settings};
use serde_json::{Value, json};

use options::{Arguments, Command, Course, Network, Way};

/// Exit code when there is no verdict.
const NOT_DONE: u8 = 2;
/// The commit of the previous release.
const PREVIOUS: &str = include_str!("../../../tests/previous-release");

fn main() -> ExitCode {
    match start(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            error.downcast_ref::<Interrupted>().map_or(NOT_DONE, |signal| signal.exit_code()).into()
        }
    }
}

fn start(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::List { json: true } => {
            let all = scenario::all().iter().map(|scenario| json!({"name": scenario.name, "line": scenario.line}));
            println!("{}", Value::Array(all.collect()));
            Ok(true)
        }
        Command::List { json: false } => {
            for scenario in scenario::all() {
                println!("{:<26} {}", scenario.name, scenario.line);
            }
            Ok(true)
        }
        Command::Describe { scenario, json } => {
            let Scenario { name, line, does, holds, .. } = scenario::find(&scenario)?;
            if json {
                let value = json!({"name": name, "line": line, "does": does, "holds": holds, "always": ALWAYS});
                println!("{value}");
            } else {
                println!("{name}: {line}\n\n{does}\n\n{holds}\n\n{ALWAYS}");
            }
            Ok(true)
        }
        Command::Check { history, json } => check(&history, json),
        Command::Run(options) => run(&options),
        Command::Play(options) => play(&options),
        Command::Attach(attach) => attach.run(),
        Command::Report(report) => report.run(),
        Command::Networks => speed::measure(&std::env::current_exe()?).map(|()| true),
        Command::Echo { address } => speed::echo(&address).map(|()| true),
        Command::HoldNetwork => hold_network().map(|()| true),
    }
}

fn hold_network() -> anyhow::Result<()> {
    let wan = net::namespaces(&[Host { name: "a1".to_owned(), site: "a".to_owned() }], &SiteLatency::new())?;
    let _echo = speed::Echo::start(&*wan, "a1", &std::env::current_exe()?)?;
    println!("{}", wan.place("a1").namespace.as_deref().unwrap_or_default());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    Ok(())
}

fn check(path: &Path, json: bool) -> anyhow::Result<bool> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let history = pacsvault_judge::History::read(BufReader::new(file))?;
    let judged = verdict::judged(&history);
    let passed = judged.is_ok();
    let (Ok(told) | Err(told)) = judged;
    match json {
        true => println!("{}", json!({"passed": passed, "detail": told})),
        false => println!("{}: {told}", if passed { "ok" } else { "FAILED" }),
    }
    Ok(passed)
}

/// Seed of a run, and where its record goes.
fn drawn(course: &Course) -> (u64, PathBuf) {
    let seed = course.seed.unwrap_or_else(rand::random);
    let out = course.out.clone().unwrap_or_else(|| PathBuf::from(format!("chaos-runs/{}-{seed}", course.scenario)));
    (seed, out)
}

fn run(options: &options::Run) -> anyhow::Result<bool> {
    let scenario = scenario::find(&options.course.scenario)?;
    let ((seed, out), minutes) = (drawn(&options.course), options.course.minutes);
    // The previous release knows nothing of emulated networks.
    let network = options.network.unwrap_or(if scenario.previous { Network::Direct } else { Network::Proxy });
    if scenario.previous && network != Network::Direct {
        bail!("{} begins with a release that knows no emulated network: it runs with --network direct", scenario.name);
    }
    let nodes = options.nodes_per_site.map_or(scenario.nodes_per_site, usize::from);
    let topology = Topology::new(scenario.sites, nodes, scenario.witness);
    let latency = latencies(&topology, &options.latency)?;
    if network == Network::Direct && !options.latency.is_empty() {
        bail!("there is no latency between processes that talk directly: leave out --latency or --network direct");
    }
    let bin = bin_dir(options.bin_dir.as_deref())?;
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    eprintln!("{} with seed {seed} for {minutes} min, on {}", scenario.name, bin.display());
    let make: MakeWan<'_> = &|hosts| wan(network, hosts, &latency);
    let previous = if scenario.previous { Some(previous_dir(&bin)?) } else { None };
    let sha256 = sha256(&bin.join("pacsvault-node"))?;
    // Until the load begins a signal ends this process by itself, and guardians clean up: nobody was promised anything.
    let mut local = Local::start(&Options {
        topology: &topology,
        tmp: bin.parent().unwrap_or(&bin).join("tmp"),
        bin,
        previous,
        small_disks: scenario.small_disks,
        timings: options.timings,
        wan: (network != Network::Direct).then_some(make),
    })?;
    let dir = local.dir();
    // Kept until it is known that nobody needs it.
    local.keep();
    let interrupt = Interrupt::listen()?;
    let wan_ms = if network == Network::Direct { Vec::new() } else { links(&latency) };
    let base = stage(local, topology, options.timings, out.clone(), &interrupt)?;
    let played = Stage { sha256, wan_ms, command: options.command(seed), ..base }.play(scenario, seed, minutes);
    let passed = played.as_ref().is_ok_and(|run| run.passed);
    if passed && !options.keep {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    } else {
        eprintln!("the cluster's folder is left at {}", dir.display());
    }
    let run = played?;
    tell(&run, &out, options.course.json)?;
    ended(&run, &interrupt)
}

/// Whether a run passed; an error when it was interrupted.
fn ended(run: &Run, interrupt: &Interrupt) -> anyhow::Result<bool> {
    if run.interrupted.is_some() {
        interrupt.check()?;
    }
    Ok(run.passed)
}

fn sha256(file: &Path) -> anyhow::Result<String> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn play(options: &options::Play) -> anyhow::Result<bool> {
    let scenario = scenario::find(&options.course.scenario)?;
    let (seed, out) = drawn(&options.course);
    let config = Config::try_from(Settings::default().gather(Some(&options.config))?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let Way::Kubectl = options.driver;
    let mut reached = kubectl::Options::new(options.namespace.clone(), options.selector.clone());
    (reached.context, reached.container) = (options.context.clone(), options.container.clone());
    reached.program = options.kubectl.clone();
    let driver = Kubectl::attach(&reached)?;
    if let Some(why) = driver.no_cuts() {
        bail!("a node that was killed could not be held off the network, and nothing could be cut: {why}");
    }
    let driver = Box::new(driver);
    let interrupt = Interrupt::listen()?;
    let base = attach::stage(driver, &config, out.clone(), runtime.handle(), &interrupt)?;
    let run = Stage { command: options.command(seed), ..base }.play(scenario, seed, options.course.minutes)?;
    tell(&run, &out, options.course.json)?;
    ended(&run, &interrupt)
}

fn stage(
    local: Local,
    topology: Topology,
    timings: Timings,
    out: PathBuf,
    interrupt: &Interrupt,
) -> anyhow::Result<Stage> {
    let (mut clients, mut readers) = (Vec::new(), Vec::new());
    let sites = topology.storing();
    for mode in SESSIONS {
        for site in &sites {
            clients.push(local.client(&topology, site, mode)?);
        }
    }
    for (site, mode) in sites.iter().zip([Mode::Direct, Mode::ViaNode]) {
        readers.push(local.client(&topology, site, mode)?);
    }
    Ok(Stage {
        operator: local.operator()?,
        addresses: local.addresses(),
        ca_pem: local.ca_pem()?,
        runtime: local.runtime(),
        network: local.network().to_owned(),
        driver: Box::new(local) as Box<dyn Driver>,
        topology,
        clients,
        readers,
        wan_ms: Vec::new(),
        sha256: String::new(),
        command: String::new(),
        timings: timings.words(),
        limits: timings.limits(),
        interrupt: interrupt.clone(),
        out,
    })
}

fn links(latency: &SiteLatency) -> Vec<Link> {
    let link = |((from, to), one_way): (&(String, String), &Duration)| Link {
        from: from.clone(),
        to: to.clone(),
        latency_ms: one_way.as_secs_f64() * 1_000.0,
    };
    latency.iter().map(link).collect()
}

/// One way: what is asked for; else 4 ms between neighbouring sites, and 3 ms more for each site between.
fn latencies(topology: &Topology, asked: &[(String, String, Duration)]) -> anyhow::Result<SiteLatency> {
    let names: Vec<&String> = topology.sites.keys().collect();
    let mut latency = SiteLatency::new();
    for (here, from) in names.iter().enumerate() {
        for (there, to) in names.iter().enumerate().filter(|(there, _)| *there != here) {
            let millis = 1 + 3 * here.abs_diff(there) as u64;
            latency.insert(((*from).clone(), (*to).clone()), Duration::from_millis(millis));
        }
    }
    for (from, to, one_way) in asked {
        for pair in [(from, to), (to, from)].map(|(from, to)| (from.clone(), to.clone())) {
            let known = latency.get_mut(&pair);
            *known.with_context(|| format!("there are no sites {from} and {to}, but {names:?}"))? = *one_way;
        }
    }
    Ok(latency)
}

fn wan(network: Network, hosts: &[Host], latency: &SiteLatency) -> anyhow::Result<Arc<dyn Wan>> {
    match network {
        Network::Proxy => net::proxy(hosts, latency),
        Network::Namespaces => net::namespaces(hosts, latency),
        Network::Direct => bail!("there is no network between processes that talk directly"),
    }
}

fn bin_dir(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    let dir = match (given, std::env::var_os("PACSVAULT_BIN_DIR")) {
        (Some(dir), _) => dir.to_path_buf(),
        (None, Some(dir)) => PathBuf::from(dir),
        (None, None) => std::env::current_exe()?.parent().context("this program has no folder")?.to_path_buf(),
    };
    if !dir.join("pacsvault-node").is_file() {
        bail!(
            "{} has no pacsvault-node: run `cargo build --release -p pacsvault-node`, or give --bin-dir",
            dir.display()
        );
    }
    Ok(fs::canonicalize(dir)?)
}

fn previous_dir(bin: &Path) -> anyhow::Result<PathBuf> {
    let commit = PREVIOUS.trim();
    let dir = match std::env::var_os("PACSVAULT_PREVIOUS_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => bin.parent().unwrap_or(bin).join("previous").join(commit),
    };
    if !dir.join("pacsvault-node").is_file() {
        bail!(
            "{} has no pacsvault-node of the previous release ({commit}): run tests/previous_build.sh, or set \
             PACSVAULT_PREVIOUS_BIN_DIR",
            dir.display()
        );
    }
    Ok(dir)
}

fn tell(run: &Run, out: &Path, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(run)?);
    }
    let totals = &run.totals;
    eprintln!(
        "{}: {} faults, {} writes acknowledged, {} unknown, {} refused, {} reads; longest without writes {} ms, without \
         reads {} ms; record in {}",
        if run.passed { "PASSED" } else { "FAILED" },
        totals.faults,
        totals.counts.writes_acked,
        totals.counts.writes_unknown,
        totals.counts.writes_refused,
        totals.counts.reads_ok,
        totals.longest_without_writes_ms,
        totals.longest_without_reads_ms,
        out.display()
    );
    if !run.passed {
        for check in run.checks.iter().filter(|check| !check.passed) {
            eprintln!("  {}: {}", check.name, check.detail);
        }
        eprintln!("the same faults again: {}", run.command);
    }
    Ok(())
}
