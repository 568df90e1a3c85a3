//! The only entrance to building, checking and showing pacsvault: `cargo xtask --help`.
//!
//! **Invariants.** Depends on nothing heavy, so that it runs minutes before anything else is built. `check` never writes.
//! Everything is built in the one release profile, so that RocksDB is compiled once per target directory.

mod bench;
mod check;
mod crash_points;
mod demo;
mod heal;
mod layers;
mod probes;
mod setup;
mod tools;
mod watch;

use clap::{Parser, Subcommand};

/// Build, check, test and show pacsvault.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what building needs on this machine (Debian packages); without root, print what to run.
    Setup,
    /// Show the main job: three sites store a study, lose one site by kill -9, lose nothing, and heal.
    Demo(demo::Options),
    /// All static checks: format, clippy, layers, error pages, crash tags, recovery marks. Writes nothing.
    Check(check::CheckOptions),
    /// Format the code.
    Fix,
    /// All tests, including a simulated cluster and real processes. The one test command.
    Test(check::TestOptions),
    /// Check that every room imports only what its layer allows.
    Layers,
    /// Run the crash tests and list every CRASH tag with whether one crossed it.
    CrashPoints,
    /// Run simulated clusters: `cargo xtask sim --seeds 200`, or one with `--seed S --trace`; `sim --help` tells more.
    /// `cargo xtask sim --bugs` plants each bug and prints how many seeds it takes to find it.
    #[command(disable_help_flag = true)]
    Sim {
        /// Passed on to the simulator.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Run disasters on real processes: `cargo xtask chaos list`, or `cargo xtask chaos run site-outage --minutes 3`.
    Chaos {
        /// Passed on to `pacsvault-chaos`; `--help` tells.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Measure, and print figures with machine and commit.
    Bench(bench::Options),
}

fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Command::Setup => setup::run(),
        Command::Demo(options) => demo::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Fix => tools::cargo(&["fmt", "--all"]),
        Command::Test(options) => check::test(&options),
        Command::Layers => layers::run(),
        Command::CrashPoints => crash_points::run(),
        Command::Sim { arguments } => {
            if arguments.iter().any(|argument| argument == "--bugs") {
                return check::planted_bugs();
            }
            let mut all = vec!["run", "--release", "--package", "pacsvault-chaos", "--bin", "pacsvault-sim"];
            // Bugs of product code are only in a build of their own.
            if arguments.iter().any(|argument| argument.starts_with("--bug")) {
                all.extend(["--features", "planted"]);
            }
            all.push("--");
            all.extend(arguments.iter().map(String::as_str));
            tools::cargo(&all)
        }
        Command::Chaos { arguments } => {
            tools::cargo(&["build", "--release", "--workspace", "--bins"])?;
            let mut all =
                vec!["run", "--release", "--package", "pacsvault-chaos-live", "--bin", "pacsvault-chaos", "--"];
            all.extend(arguments.iter().map(String::as_str));
            tools::cargo(&all)
        }
        Command::Bench(options) => bench::run(&options),
    }
}
