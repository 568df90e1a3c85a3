//! The command line: arguments in, library calls, words or JSON out.
//!
//! **Invariants.** Results go to standard output, everything else to standard error. An error is one line
//! `error[PV-CODE]: message`, then a hint if there is one; with `--json` one line `{"error":{"code","message","hint"}}`. Exit codes: 0 done, 1 failed, 2 usage, 3 outcome unknown.

mod admin;
mod args;
mod bench;
#[cfg(test)]
mod crashes;
mod drain;
mod failure;
mod find;
mod get;
mod health;
mod inspect;
mod offline;
mod output;
mod plan;
mod probe;
mod put;
mod receipt;
mod repair;
mod scrub;
mod status;
mod verify;
mod what_if;

use std::process::ExitCode;

use args::{Cli, Command, Global};
use clap::Parser;
use failure::Failure;
use output::Out;
use pacsvault_client::{Client, Config, Settings};

/// What commands work with.
pub struct Context {
    global: Global,
    /// Where results go.
    pub out: Out,
}

impl Context {
    /// Flags, environment and file.
    fn settings(&self) -> Result<Settings, Failure> {
        let global = &self.global;
        let flags = Settings {
            endpoints: (!global.endpoints.is_empty()).then(|| global.endpoints.clone()),
            ca: global.ca.clone(),
            cert: global.cert.clone(),
            key: global.key_file.clone(),
            site: global.site.clone(),
            tenant: global.tenant.clone(),
            via_node: global.via_node.then_some(true),
            source: None,
        };
        Ok(flags.gather(global.config.as_deref())?)
    }

    /// The same without an own site from the flags.
    fn without_site(&self) -> Self {
        Self { global: Global { site: None, ..self.global.clone() }, out: self.out }
    }

    /// The cluster.
    fn connect(&self) -> Result<Client, Failure> {
        Ok(Client::connect(Config::try_from(self.settings()?)?)?)
    }
}

/// Parses, runs, reports.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    log_to_stderr(cli.global.verbose);
    let context = Context { out: Out { json: cli.global.json }, global: cli.global };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(context.out, &Failure::failed("PV-SYSTEM", format!("cannot start threads: {error}")));
        }
    };
    let result = runtime.block_on(run(&context, cli.command));
    // Blocked reads of files and standard input must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(context.out, &failure),
    }
}

async fn run(context: &Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Pki(command) => offline::pki(context, command),
        Command::Cluster(command) => admin::run(context, command).await,
        Command::Put(args) => put::run(context, args).await,
        Command::Get(args) => get::run(context, args).await,
        Command::Ls(args) => inspect::ls(context, args).await,
        Command::Head(args) => inspect::head(context, args).await,
        Command::Verify(args) => verify::verify(context, args).await,
        Command::Rm(args) => inspect::rm(context, args).await,
        Command::Receipt(command) => receipt::run(context, command).await,
        Command::Status(args) => status::run(context, args).await,
        Command::Plan(args) => plan::run(context, args).await,
        Command::WhatIf(args) => what_if::run(context, args).await,
        Command::Drain(args) => drain::drain(context, args).await,
        Command::Undrain(args) => drain::undrain(context, args).await,
        Command::Remove(args) => drain::remove(context, args).await,
        Command::Repair(command) => repair::run(context, command).await,
        Command::Scrub(args) => scrub::run(context, args).await,
        Command::Profile(command) => repair::profile(context, command).await,
        Command::Sample(args) => offline::sample(context, args),
        Command::Probe(args) => probe::run(context, args).await,
        Command::Bench(command) => bench::run(context, command).await,
        Command::Completion { shell } => offline::completion(shell),
    }
}

/// Arguments that are no command: help and versions go to standard output, the rest is a failure like others.
fn refuse(error: &clap::Error) -> ExitCode {
    let json = std::env::args_os().any(|argument| argument == "--json");
    if !error.use_stderr() || !json {
        error.exit();
    }
    let text = error.to_string();
    let message = text.split("\n\n").next().unwrap_or_default().trim_start_matches("error: ");
    report(Out { json }, &Failure::usage(message).hint("`pacsvault help` and `pacsvault COMMAND --help` show examples"))
}

fn report(out: Out, failure: &Failure) -> ExitCode {
    if out.json {
        eprintln!("{}", failure.value());
    } else {
        eprintln!("{failure}");
    }
    failure.exit.into()
}

fn log_to_stderr(verbose: u8) {
    let level = match verbose {
        0 => tracing::level_filters::LevelFilter::ERROR,
        1 => tracing::level_filters::LevelFilter::INFO,
        _ => tracing::level_filters::LevelFilter::DEBUG,
    };
    tracing_subscriber::fmt().with_max_level(level).with_writer(std::io::stderr).with_target(false).init();
}
