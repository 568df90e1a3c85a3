//! Real site outages on this machine, with a judge: the command line.
//!
//! **Invariants.** The exit code is 0 only when every check passed.

use std::{
    fs::{self, File},
    io::BufReader,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pacsvault_chaos_live::{
    attach,
    driver::{
        Driver,
        kubectl::{self, Kubectl},
        local::{Local, MakeWan, Options},
    },
    gameday::{Attach, Report},
    net::{self, Host, SiteLatency, Wan},
    record::{Link, Run},
    report,
    scenario::{self, ALWAYS, Topology},
    stage::{SESSIONS, Stage},
    verdict,
};
use pacsvault_client::{Config, Settings};

/// The commit of the previous release.
const PREVIOUS: &str = include_str!("../../../tests/previous-release");

/// Runs a scenario of faults against real node processes and judges every answer.
#[derive(Parser)]
#[command(name = "pacsvault-chaos", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a scenario on processes of this machine.
    Run(Box<RunOptions>),
    /// Play a scenario on a cluster that runs already, with sessions that write and read, and a verdict.
    Play(Box<AttachOptions>),
    /// Break a cluster that runs on Kubernetes for a while, and lift it again.
    Attach(Attach),
    /// Make the pages of runs anew, and an index over them.
    Report(Report),
    /// List the scenarios.
    List,
    /// Tell what a scenario does and what must hold.
    Describe {
        /// Which.
        scenario: String,
    },
    /// Judge the history of a run again.
    Check {
        /// Its `history.jsonl`.
        history: PathBuf,
    },
}

#[derive(Args)]
struct RunOptions {
    /// Which one; `pacsvault-chaos list` shows them.
    scenario: String,
    /// Decides all faults and all load; drawn when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on.
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// How sites reach each other.
    #[arg(long, value_enum, default_value_t = Network::Proxy)]
    network: Network,
    /// Where record, history and report go; `chaos-runs/SCENARIO-SEED` when absent.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Where `pacsvault-node` is; beside this program, or `PACSVAULT_BIN_DIR`, when absent.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Nodes of each site; the scenario's own number when absent.
    #[arg(long)]
    nodes_per_site: Option<usize>,
    /// Leave the cluster's folder.
    #[arg(long)]
    keep: bool,
    /// Print the record as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct AttachOptions {
    /// Which one; what the driver cannot do is refused before anything is harmed.
    scenario: String,
    /// How nodes are harmed.
    #[arg(long, value_enum, default_value_t = Way::Kubectl)]
    driver: Way,
    /// The client's configuration, with a gateway's certificate.
    #[arg(long)]
    config: PathBuf,
    /// Namespace of the pods.
    #[arg(long, default_value = "default")]
    namespace: String,
    /// Finds the pods of nodes and witnesses.
    #[arg(long, default_value = "app.kubernetes.io/name=pacsvault")]
    selector: String,
    /// Context of `kubectl`; the current one when absent.
    #[arg(long)]
    context: Option<String>,
    /// Decides all faults and all load; drawn when absent.
    #[arg(long)]
    seed: Option<u64>,
    /// How long faults go on.
    #[arg(long, default_value_t = 3.0)]
    minutes: f64,
    /// Where record, history and report go; `chaos-runs/SCENARIO-SEED` when absent.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Pods and network policies.
    Kubectl,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    /// A proxy on every link; needs no privileges.
    Proxy,
    /// A network namespace for every host, and a router; needs root.
    Namespaces,
    /// None: processes talk directly, and no link can be cut.
    Direct,
}

fn main() -> ExitCode {
    match start(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::List => {
            for scenario in scenario::all() {
                println!("{:<26} {}", scenario.name, scenario.line);
            }
            Ok(true)
        }
        Command::Describe { scenario } => {
            let found = scenario::find(&scenario)?;
            println!("{}: {}\n\n{}\n\n{}\n\n{ALWAYS}", found.name, found.line, found.does, found.holds);
            Ok(true)
        }
        Command::Check { history } => check(&history),
        Command::Run(options) => run(&options),
        Command::Play(options) => attached(&options),
        Command::Attach(attach) => attach.run(),
        Command::Report(report) => report.run(),
    }
}

fn check(path: &Path) -> anyhow::Result<bool> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let history = pacsvault_judge::History::read(BufReader::new(file))?;
    match verdict::judged(&history) {
        Ok(figures) => {
            println!("ok: {figures}");
            Ok(true)
        }
        Err(why) => {
            println!("FAILED: {why}");
            Ok(false)
        }
    }
}

fn run(options: &RunOptions) -> anyhow::Result<bool> {
    let scenario = scenario::find(&options.scenario)?;
    let seed = options.seed.unwrap_or_else(rand::random);
    let nodes = options.nodes_per_site.unwrap_or(scenario.nodes_per_site);
    let topology = Topology::new(scenario.sites, nodes, scenario.witness);
    let bin = bin_dir(options.bin_dir.as_deref())?;
    let out = options.out.clone().unwrap_or_else(|| PathBuf::from(format!("chaos-runs/{}-{seed}", scenario.name)));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    eprintln!("{} with seed {seed} for {} min, on {}", scenario.name, options.minutes, bin.display());
    let latency = latencies(&topology);
    // The previous release knows nothing of emulated networks.
    let network = if scenario.previous { Network::Direct } else { options.network };
    let make: MakeWan<'_> = &|hosts| wan(network, hosts, &latency);
    let previous = if scenario.previous { Some(previous_dir(&bin)?) } else { None };
    let mut local = Local::start(&Options {
        topology: &topology,
        tmp: bin.parent().unwrap_or(&bin).join("tmp"),
        bin,
        previous,
        small_disks: scenario.small_disks,
        wan: (network != Network::Direct).then_some(make),
    })?;
    let dir = local.dir();
    // Kept until it is known that nobody needs it.
    local.keep();
    let stage = stage(local, topology, &latency, network, out.clone())?;
    let played = stage.play(scenario, seed, options.minutes);
    let passed = played.as_ref().is_ok_and(|run| run.passed);
    if passed && !options.keep {
        fs::remove_dir_all(&dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    } else {
        eprintln!("the cluster's folder is left at {}", dir.display());
    }
    let run = played?;
    tell(&run, &out, options.json)?;
    Ok(passed)
}

fn attached(options: &AttachOptions) -> anyhow::Result<bool> {
    let scenario = scenario::find(&options.scenario)?;
    let seed = options.seed.unwrap_or_else(rand::random);
    let out = options.out.clone().unwrap_or_else(|| PathBuf::from(format!("chaos-runs/{}-{seed}", scenario.name)));
    let config = Config::try_from(Settings::default().gather(Some(&options.config))?)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let Way::Kubectl = options.driver;
    let mut reached = kubectl::Options::new(options.namespace.clone(), options.selector.clone());
    reached.context = options.context.clone();
    let driver = Box::new(Kubectl::attach(&reached)?);
    let stage = attach::stage(driver, "kubernetes", &config, out.clone(), runtime.handle())?;
    let run = stage.play(scenario, seed, options.minutes)?;
    tell(&run, &out, false)?;
    Ok(run.passed)
}

fn stage(
    local: Local,
    topology: Topology,
    latency: &SiteLatency,
    network: Network,
    out: PathBuf,
) -> anyhow::Result<Stage> {
    let (mut clients, mut readers) = (Vec::new(), Vec::new());
    let sites = topology.storing();
    for _ in 0..SESSIONS {
        for site in &sites {
            clients.push(local.client(&topology, site, false)?);
        }
    }
    for (site, via_node) in sites.iter().zip([false, true]) {
        readers.push(local.client(&topology, site, via_node)?);
    }
    let wan_ms = match network {
        Network::Direct => Vec::new(),
        Network::Proxy | Network::Namespaces => links(latency),
    };
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
        wan_ms,
        out,
    })
}

fn links(latency: &SiteLatency) -> Vec<Link> {
    let link = |((from, to), one_way): (&(String, String), &std::time::Duration)| Link {
        from: from.clone(),
        to: to.clone(),
        latency_ms: one_way.as_secs_f64() * 1_000.0,
    };
    latency.iter().map(link).collect()
}

/// One way: neighbouring sites 4 ms, and 3 ms more for each site between.
fn latencies(topology: &Topology) -> SiteLatency {
    let names: Vec<&String> = topology.sites.keys().collect();
    let mut latency = SiteLatency::new();
    for (here, from) in names.iter().enumerate() {
        for (there, to) in names.iter().enumerate().filter(|(there, _)| *there != here) {
            let millis = 1 + 3 * here.abs_diff(there) as u64;
            latency.insert(((*from).clone(), (*to).clone()), std::time::Duration::from_millis(millis));
        }
    }
    latency
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
        totals.writes_acked,
        totals.writes_unknown,
        totals.writes_refused,
        totals.reads_ok,
        totals.longest_without_writes_ms,
        totals.longest_without_reads_ms,
        out.display()
    );
    if !run.passed {
        for check in run.checks.iter().filter(|check| !check.passed) {
            eprintln!("  {}: {}", check.name, check.detail);
        }
        eprintln!("the same faults again: {}", report::replay(run));
    }
    Ok(())
}
