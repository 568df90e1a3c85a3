//! What can be said on the command line.
//!
//! **Invariants.** What cannot be meant is refused here, before anything starts. The command that repeats a run names everything that
//! decides what is done.

use std::{path::PathBuf, time::Duration};

use clap::{
    Args, Parser, Subcommand, ValueEnum,
    builder::{PossibleValue, PossibleValuesParser, TypedValueParser},
};
use pacsvault_chaos_live::{
    driver::local::Timings,
    gameday::{Attach, Report},
    scenario,
};

/// Longest run: a day.
const MINUTES_MAX: f64 = 1_440.0;
/// Longest way of a link.
const LATENCY_MAX: Duration = Duration::from_secs(10);

const ENDS: &str = "Exit codes: 0 every check passed; 1 a check failed; 2 it could not be done; 128 and the signal's number when a \
    signal ended it.\n\nA first Ctrl-C or SIGTERM lifts what is broken and writes the report of what was seen; a second one ends at \
    once.";

const ENDS_HERE: &str = "Also then no node, mount or network of the run stays.";

const ENDS_THERE: &str = "What is broken at that moment then stays: NetworkPolicies labelled app.kubernetes.io/managed-by=pacsvault-chaos, \
    with them nodes that are held off the network, and nodes that stand still. `pacsvault-chaos attach --clean --namespace NAMESPACE` \
    undoes it.";

const RUN: &str = "Examples:\n  pacsvault-chaos run site-outage --seed 7 --minutes 5\n  pacsvault-chaos run kill-everything \
    --network namespaces --latency a:b=40ms --latency a:c=90ms";

const PLAY: &str = "Example:\n  pacsvault-chaos play site-outage --config client.toml --namespace pacs --minutes 10";

const EXAMPLES: &str = "Examples:\n  pacsvault-chaos list\n  pacsvault-chaos describe bit-rot\n  pacsvault-chaos run bit-rot --seed 7\n  \
    pacsvault-chaos check chaos-runs/bit-rot-7/history.jsonl\n  pacsvault-chaos report chaos-runs";

/// Runs a scenario of faults against real node processes and judges every answer.
#[derive(Parser)]
#[command(name = "pacsvault-chaos", version, after_help = format!("{EXAMPLES}\n\n{ENDS}"))]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub enum Command {
    /// Run a scenario on processes of this machine.
    #[command(after_help = format!("{RUN}\n\n{ENDS} {ENDS_HERE}"))]
    Run(Box<Run>),
    /// Play a scenario on a cluster that runs already, with sessions that write and read, and a verdict.
    #[command(after_help = format!("{PLAY}\n\n{ENDS} {ENDS_THERE}"))]
    Play(Box<Play>),
    /// Break a cluster that runs on Kubernetes for a while, and lift it again.
    #[command(after_help = format!("{ENDS} {ENDS_THERE}"))]
    Attach(Attach),
    /// Make the pages of runs anew, and an index over them.
    Report(Report),
    /// Measure the emulated networks on this machine: what goes through, and what a word takes.
    Networks,
    /// Send back what comes in at an address; for `networks` and for tests.
    #[command(hide = true)]
    Echo {
        /// Where.
        address: String,
    },
    /// Make a network of namespaces, name one of them, and hold it until standard input ends; for tests.
    #[command(hide = true)]
    HoldNetwork,
    /// List the scenarios.
    List {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell what a scenario does and what must hold.
    Describe {
        /// Which.
        #[arg(value_parser = scenarios())]
        scenario: String,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Judge the history of a run again.
    Check {
        /// Its `history.jsonl`.
        history: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// What decides a run, wherever it is.
#[derive(Args)]
pub struct Course {
    /// What is done.
    #[arg(value_parser = scenarios())]
    pub scenario: String,
    /// Decides all faults and all load; drawn when absent.
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long faults go on.
    #[arg(long, default_value = "3", value_parser = minutes)]
    pub minutes: f64,
    /// Where record, history and report go; `chaos-runs/SCENARIO-SEED` when absent.
    #[arg(long)]
    pub out: Option<PathBuf>,
    /// Print the record as JSON.
    #[arg(long)]
    pub json: bool,
}

/// A run on this machine.
#[derive(Args)]
pub struct Run {
    /// Course of it.
    #[command(flatten)]
    pub course: Course,
    /// How sites reach each other; `proxy` when absent, but for scenarios that begin with a release that knows none.
    #[arg(long, value_enum)]
    pub network: Option<Network>,
    /// One way between two sites, such as a:b=40ms; repeatable. Absent pairs: 4 ms between neighbours, 3 ms more for each
    /// site between.
    #[arg(long, value_name = "SITE:SITE=TIME", value_parser = latency)]
    pub latency: Vec<(String, String, Duration)>,
    /// How soon nodes find out about outages and heal: within seconds, or with the defaults of `pacsvault-node`, which needs
    /// longer runs.
    #[arg(long, value_enum, default_value_t = Timings::Hasty)]
    pub timings: Timings,
    /// Nodes of each site; the scenario's own number when absent.
    #[arg(long, value_parser = clap::value_parser!(u8).range(1..=8))]
    pub nodes_per_site: Option<u8>,
    /// Where `pacsvault-node` is; beside this program, or `PACSVAULT_BIN_DIR`, when absent.
    #[arg(long)]
    pub bin_dir: Option<PathBuf>,
    /// Leave the cluster's folder.
    #[arg(long)]
    pub keep: bool,
}

/// A run on a cluster that is there.
#[derive(Args)]
pub struct Play {
    /// Course of it. What the driver cannot do is refused before anything is harmed.
    #[command(flatten)]
    pub course: Course,
    /// How nodes are harmed.
    #[arg(long, value_enum, default_value_t = Way::Kubectl)]
    pub driver: Way,
    /// The client's configuration, with a gateway's certificate.
    #[arg(long)]
    pub config: PathBuf,
    /// Namespace of the pods.
    #[arg(long, default_value = "default")]
    pub namespace: String,
    /// Finds the pods of nodes and witnesses.
    #[arg(long, default_value = "app.kubernetes.io/name=pacsvault")]
    pub selector: String,
    /// Container of the node in these pods; the pod's default one when absent.
    #[arg(long)]
    pub container: Option<String>,
    /// Context of `kubectl`; the current one when absent.
    #[arg(long)]
    pub context: Option<String>,
    /// The program.
    #[arg(long, default_value = "kubectl")]
    pub kubectl: PathBuf,
}

/// How nodes of a cluster are harmed that runs already.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Way {
    /// Pods and network policies.
    Kubectl,
}

/// How sites reach each other.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Network {
    /// A proxy on every link; needs no privileges.
    Proxy,
    /// A network namespace for every host, and a router; needs root.
    Namespaces,
    /// None: processes talk directly, and no link can be cut.
    Direct,
}

impl Course {
    fn command(&self, name: &str, seed: u64) -> String {
        format!("pacsvault-chaos {name} {} --seed {seed} --minutes {}", self.scenario, self.minutes)
    }
}

impl Run {
    /// The command that does the same again.
    pub fn command(&self, seed: u64) -> String {
        let mut command = self.course.command("run", seed);
        if let Some(network) = self.network.and_then(|network| network.to_possible_value()) {
            command.push_str(&format!(" --network {}", network.get_name()));
        }
        for (from, to, one_way) in &self.latency {
            command.push_str(&format!(" --latency {from}:{to}={}ms", one_way.as_millis()));
        }
        if self.timings != Timings::Hasty {
            command.push_str(" --timings default");
        }
        if let Some(nodes) = self.nodes_per_site {
            command.push_str(&format!(" --nodes-per-site {nodes}"));
        }
        command
    }
}

impl Play {
    /// The command that does the same again.
    pub fn command(&self, seed: u64) -> String {
        let (config, program) = (self.config.display().to_string(), self.kubectl.display().to_string());
        let options = [
            ("config", Some(&config)),
            ("namespace", Some(&self.namespace)),
            ("selector", Some(&self.selector)),
            ("container", self.container.as_ref()),
            ("context", self.context.as_ref()),
            ("kubectl", (program != "kubectl").then_some(&program)),
        ];
        let given = options.into_iter().filter_map(|(name, value)| Some(format!(" --{name} {}", quoted(value?))));
        given.fold(self.course.command("play", seed), |command, option| command + &option)
    }
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_./=,:".contains(letter);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

fn scenarios() -> impl TypedValueParser<Value = String> {
    PossibleValuesParser::new(scenario::all().iter().map(|one| PossibleValue::new(one.name).help(one.line)))
}

fn minutes(text: &str) -> Result<f64, String> {
    let minutes: f64 = text.parse().map_err(|_| "not a number".to_owned())?;
    if minutes > 0.0 && minutes <= MINUTES_MAX {
        Ok(minutes)
    } else {
        Err(format!("it must be above 0 and at most {MINUTES_MAX}"))
    }
}

fn latency(text: &str) -> Result<(String, String, Duration), String> {
    let form = || "write two sites and a time, such as a:b=40ms".to_owned();
    let (sites, time) = text.split_once('=').ok_or_else(form)?;
    let (from, to) = sites.split_once(':').ok_or_else(form)?;
    let millis: u64 = time.strip_suffix("ms").and_then(|number| number.parse().ok()).ok_or_else(form)?;
    let one_way = Duration::from_millis(millis);
    match (from, to) {
        _ if one_way > LATENCY_MAX => Err(format!("it must be at most {} ms", LATENCY_MAX.as_millis())),
        (from, to) if from == to || from.is_empty() || to.is_empty() => Err(form()),
        (from, to) => Ok((from.to_owned(), to.to_owned(), one_way)),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split(' '))
    }

    #[test]
    fn the_command_that_repeats_a_run_means_the_same() {
        let line = "pacsvault-chaos run witness-loss --seed 7 --minutes 0.5 --network namespaces --latency a:b=40ms \
            --timings default --nodes-per-site 3";
        let again = |line: &str| match parsed(line).expect("a command").command {
            Command::Run(run) => run.command(7),
            _ => String::new(),
        };
        assert_eq!(again(line), line);
        assert_eq!(again("pacsvault-chaos run bit-rot"), "pacsvault-chaos run bit-rot --seed 7 --minutes 3");
        let Ok(Arguments { command: Command::Play(play), .. }) =
            parsed("pacsvault-chaos play bit-rot --config it's.toml --context lab")
        else {
            panic!("a command");
        };
        let wanted = "pacsvault-chaos play bit-rot --seed 9 --minutes 3 --config 'it'\\''s.toml' --namespace default --selector \
            app.kubernetes.io/name=pacsvault --context lab";
        assert_eq!(play.command(9), wanted);
    }

    #[test]
    fn what_cannot_be_meant_is_refused() {
        Arguments::command().debug_assert();
        for options in [
            "--minutes 0",
            "--minutes -1",
            "--minutes NaN",
            "--minutes 1e9",
            "--nodes-per-site 0",
            "--latency a:a=4ms",
            "--latency a:b=4",
            "--latency ab=4ms",
            "--latency a:b=60000ms",
        ] {
            let told = parsed(&format!("pacsvault-chaos run bit-rot {options}")).err().map(|error| error.exit_code());
            assert_eq!(told, Some(2), "{options}");
        }
        let told = parsed("pacsvault-chaos run bitrot").err().expect("there is none").to_string();
        assert!(told.contains("bit-rot") && told.contains("site-outage"), "{told}");
    }
}
