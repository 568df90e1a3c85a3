//! Real site outages on this machine, with a judge.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pacsvault_chaos_live::gameday::{Attach, Report};

/// Runs a scenario of faults against real node processes and judges every answer.
#[derive(Parser)]
#[command(name = "pacsvault-chaos", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Break a cluster that runs on Kubernetes for a while, and lift it again.
    Attach(Attach),
    /// Make the pages of runs anew, and an index over them.
    Report(Report),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Attach(attach) => attach.run(),
        Command::Report(report) => report.run(),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
