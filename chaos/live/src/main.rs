//! Real site outages on this machine, with a judge.

use clap::Parser;

/// Runs a scenario of faults against real node processes and judges every answer.
#[derive(Parser)]
#[command(name = "pacsvault-chaos", version)]
struct Arguments {}

fn main() {
    Arguments::parse();
}
