//! Runs on real processes, from the command line to the verdict: each within a minute.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;
use pacsvault_chaos_live::{
    record::{FaultRecord, Run},
    report,
};

/// A run that must pass; its record, and where it is.
fn passed(arguments: &[&str], name: &str) -> anyhow::Result<(Run, PathBuf)> {
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut command = Command::new(env!("CARGO_BIN_EXE_pacsvault-chaos"));
    command.arg("run").args(arguments).arg("--bin-dir").arg(pacsvault_tests::bed::bin_dir()?).arg("--out").arg(&out);
    let status = command.status()?;
    let run = report::read(&out)?;
    ensure!(status.success() && run.passed, "{:#?}", run.checks);
    ensure!(run.totals.faults > 0 && run.totals.counts.writes_acked > 0, "{:?}", run.totals);
    ensure!(run.unchecked.is_empty() && run.timings.starts_with("hasty"), "{:?} {}", run.unchecked, run.timings);
    Ok((run, out))
}

#[test]
fn site_outages_lose_nothing() -> anyhow::Result<()> {
    let (run, out) = passed(&["site-outage", "--seed", "1", "--minutes", "0.2", "--network", "direct"], "chaos-smoke")?;
    ensure!(run.outages.iter().all(|outage| outage.sites.len() == 3), "{:?}", run.outages);
    let history = out.join("history.jsonl");
    let judged = Command::new(env!("CARGO_BIN_EXE_pacsvault-chaos")).arg("check").arg(history).status()?;
    ensure!(judged.success(), "its history");
    Ok(())
}

#[test]
fn nothing_is_acknowledged_under_a_split_of_an_emulated_network() -> anyhow::Result<()> {
    let (run, _) = passed(&["split-three-ways", "--seed", "1", "--minutes", "0.3"], "chaos-smoke-split")?;
    ensure!(run.network == "proxy" && run.load_ended_ms.is_some(), "{}", run.network);
    let split = |fault: &&FaultRecord| fault.kind == "split";
    let seen = run.faults.iter().filter(split).all(|fault| fault.effect.contains("nothing came over"));
    ensure!(seen && run.faults.iter().any(|fault| fault.kind == "split"), "{:#?}", run.faults);
    Ok(())
}
