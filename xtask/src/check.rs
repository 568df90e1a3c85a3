//! The gate: static checks, all tests, and the proof that each crash point was crossed.

use std::{
    collections::BTreeSet,
    fs,
    process::{Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::bail;
use clap::Args;

use crate::{crash_points, layers, probes, setup, tools};

/// How much to test.
#[derive(Args)]
pub struct TestOptions {
    /// Also the long runs of the real-process tests and 10 000 simulated clusters.
    #[arg(long)]
    long: bool,
    /// Seed of what the property tests draw. Without it, it follows from the commit: each looks elsewhere, and each always at
    /// the same. With `--long` it is another one each time. It is printed.
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
}

/// How thoroughly to check.
#[derive(Args)]
pub struct CheckOptions {
    /// Only what needs no compiler: layers, error pages, crash tags, recovery marks. Seconds.
    #[arg(long)]
    pure: bool,
}

/// All static checks. Writes nothing.
pub fn run(options: &CheckOptions) -> anyhow::Result<()> {
    if !options.pure {
        setup::run()?;
        tools::cargo(&["fmt", "--all", "--check"])?;
    }
    layers::run()?;
    error_pages()?;
    crash_points::unique()?;
    probes::run()?;
    if options.pure {
        return Ok(());
    }
    tools::cargo(&["clippy", "--release", "--workspace", "--all-targets", "--", "--deny", "warnings"])
}

/// All tests.
pub fn test(options: &TestOptions) -> anyhow::Result<()> {
    setup::run()?;
    // The real-process tests run these; the present ones last, so that they are what lies where cargo puts programs.
    let previous = previous_release()?;
    tools::build()?;
    let nextest = tools::on_path("cargo-nextest");
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(tools::root());
    if nextest {
        command.args(["nextest", "run", "--release", "--workspace", "--no-fail-fast"]);
    } else {
        command.args(["test", "--release", "--workspace", "--no-fail-fast"]);
    }
    command.env("PACSVAULT_BIN_DIR", tools::bin_dir());
    let seed = options.seed.unwrap_or_else(|| if options.long { seed_of_now() } else { seed_of_commit() });
    eprintln!("property tests draw from seed {seed}; to repeat: cargo xtask test --seed {seed}");
    command.env("PROPTEST_RNG_SEED", seed.to_string());
    if let Some(dir) = previous {
        command.env("PACSVAULT_PREVIOUS_BIN_DIR", dir);
    }
    if options.long {
        command.env("PACSVAULT_LONG", "1").env("PACSVAULT_SIM_SEEDS", "10000");
    }
    tools::run(&mut command)?;
    planted_bugs()?;
    crash_points::run()
}

fn seed_of_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// 0 outside of a repository.
fn seed_of_commit() -> u64 {
    let mut git = Command::new("git");
    git.current_dir(tools::root()).args(["rev-parse", "HEAD"]).stderr(Stdio::null());
    let commit = tools::output(&mut git).unwrap_or_default();
    commit.get(..8).and_then(|start| u64::from_str_radix(start, 16).ok()).unwrap_or(0)
}

/// Each planted bug must be found by the simulator: `cargo xtask sim --bugs`. A build of its own: nothing else is compiled with
/// bugs. Of the whole workspace, so that libraries are compiled with the same features as for all other tests.
pub fn planted_bugs() -> anyhow::Result<()> {
    tools::cargo(&[
        "test",
        "--release",
        "--workspace",
        "--features",
        "pacsvault-chaos/planted",
        "--test",
        "planted",
        "--",
        "--nocapture",
    ])
}

/// Builds the programs of the previous release, from which a test upgrades, unless they are there; where they are. `None`
/// when that test is left out.
fn previous_release() -> anyhow::Result<Option<String>> {
    if let Some(dir) = std::env::var_os("PACSVAULT_PREVIOUS_BIN_DIR") {
        return Ok(Some(dir.to_string_lossy().into_owned()));
    }
    if std::env::var("PACSVAULT_SKIP_UPGRADE").is_ok_and(|value| !value.is_empty() && value != "0") {
        eprintln!("PACSVAULT_SKIP_UPGRADE is set: the upgrade from the previous release is not tested");
        return Ok(None);
    }
    let mut script = Command::new(tools::root().join("tests/previous_build.sh"));
    script.current_dir(tools::root()).env("CARGO_TARGET_DIR", tools::target()).stderr(Stdio::inherit());
    let printed = tools::output(&mut script)?;
    Ok(printed.lines().last().map(str::to_owned))
}

/// Every error code in the code has a page in `docs/errors`, and every page a code.
fn error_pages() -> anyhow::Result<()> {
    let mut codes = BTreeSet::new();
    for path in tools::files(&tools::root(), "rs")? {
        if path.starts_with(tools::root().join("xtask")) {
            continue;
        }
        let shown = path.strip_prefix(tools::root()).unwrap_or(&path).display().to_string();
        if shown.contains("tests") || shown.starts_with("chaos/") || shown.contains("examples/") {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        for piece in code.split("\"PV-").skip(1) {
            let code: String = piece.chars().take_while(|c| c.is_ascii_uppercase() || *c == '-').collect();
            if !code.is_empty() && !code.ends_with('-') && piece[code.len()..].starts_with('"') {
                codes.insert(format!("PV-{code}"));
            }
        }
    }
    let mut pages = BTreeSet::new();
    for path in tools::files(&tools::root().join("docs/errors"), "md")? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        if name.starts_with("PV-") {
            pages.insert(name);
        }
    }
    let undocumented: Vec<_> = codes.difference(&pages).cloned().collect();
    let stale: Vec<_> = pages.difference(&codes).cloned().collect();
    if undocumented.is_empty() && stale.is_empty() {
        println!("error pages: {} codes, each with its page", codes.len());
        return Ok(());
    }
    bail!("docs/errors: without a page: {undocumented:?}; without a code: {stale:?}")
}
