//! `pacsvault-node`: one storage node.

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;
use pacsvault_node::{config::Config, shell, volumes};

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
    /// Forget the volume that PATH held, because its disk is gone for good, then exit. The next start formats a new volume
    /// there, if the directory is empty. Stop the node first. What the old volume held is rebuilt from the others.
    #[arg(long, value_name = "PATH")]
    forget_volume: Option<PathBuf>,
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
        shell::check_network(&config)?;
        println!("{}: fine", arguments.config.display());
        return Ok(());
    }
    if let Some(path) = &arguments.forget_volume {
        let volume = volumes::forget(&config, shell::credentials(&config)?.cluster(), path)?;
        println!("volume {volume} is forgotten; start the node, and a new volume is made in {}", path.display());
        println!("to have its shards rebuilt at once: pacsvault cluster fence-volume {volume} --yes");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().thread_name("pacsvault").build()?;
    runtime.block_on(shell::run(config))
}
