//! A site outage on real processes, from the command line to the verdict: within a minute.

use std::{path::Path, process::Command};

use pacsvault_chaos_live::record::Run;

#[test]
fn site_outages_lose_nothing() -> anyhow::Result<()> {
    let bin = pacsvault_tests::bed::bin_dir()?;
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("chaos-smoke");
    let status = Command::new(env!("CARGO_BIN_EXE_pacsvault-chaos"))
        .args(["run", "site-outage", "--seed", "1", "--minutes", "0.2", "--network", "direct", "--bin-dir"])
        .arg(&bin)
        .arg("--out")
        .arg(&out)
        .status()?;
    let run: Run = serde_json::from_slice(&std::fs::read(out.join("run.json"))?)?;
    assert!(status.success() && run.passed, "{:#?}", run.checks);
    assert!(run.totals.faults > 0 && run.totals.counts.writes_acked > 0, "{:?}", run.totals);
    let history = out.join("history.jsonl");
    let judged = Command::new(env!("CARGO_BIN_EXE_pacsvault-chaos")).arg("check").arg(history).status()?;
    assert!(judged.success());
    Ok(())
}
