//! `pacsvault-node`: one storage node.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use pacsvault_node::{config::Config, shell};

/// One pacsvault storage node: holds shards, votes, or both.
///
/// Writes its log to standard error. SIGTERM stops it in order; SIGKILL loses nothing that was acknowledged.
#[derive(Parser)]
#[command(
    version,
    after_help = "Example:\n  pacsvault-node --config /etc/pacsvault/node.toml\n\nThe configuration's keys are in docs/configuration.md. Log level: PACSVAULT_LOG=info,pacsvault_volume=debug"
)]
struct Arguments {
    /// Configuration file (TOML).
    #[arg(long, env = "PACSVAULT_NODE_CONFIG", value_name = "FILE")]
    config: PathBuf,
    /// Check configuration and certificates, then exit.
    #[arg(long)]
    check: bool,
    /// Log one JSON object per line.
    #[arg(long)]
    log_json: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let filter = std::env::var("PACSVAULT_LOG").unwrap_or_else(|_| "info,openraft=warn".to_owned());
    let filter = tracing_subscriber::EnvFilter::new(filter);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if arguments.log_json {
        log.json().init();
    } else {
        log.with_ansi(false).init();
    }
    match start(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: this node cannot start or go on: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(&arguments.config)?;
    if arguments.check {
        shell::credentials(&config)?;
        println!("{}: fine", arguments.config.display());
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("pacsvault").build()?;
    runtime.block_on(shell::run(config))
}
