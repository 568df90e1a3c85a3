//! A run that is ended before its time, in order or by SIGKILL: no node stays, and whoever could still write a report did.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use pacsvault_chaos_live::{record::Run, report};
use pacsvault_harness::output;

/// How long ending may take; it takes seconds.
const PATIENCE: Duration = Duration::from_secs(120);

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStderr>>,
    out: PathBuf,
}

impl Running {
    /// A run whose first fault has begun.
    fn under_fire(scenario: &str, name: &str) -> anyhow::Result<Self> {
        let out = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
        if out.exists() {
            fs::remove_dir_all(&out)?;
        }
        let mut child = Command::new(env!("CARGO_BIN_EXE_pacsvault-chaos"))
            .args(["run", scenario, "--seed", "5", "--minutes", "10", "--network", "direct", "--bin-dir"])
            .arg(pacsvault_tests::bed::bin_dir()?)
            .arg("--out")
            .arg(&out)
            .stderr(Stdio::piped())
            .spawn()?;
        let lines = BufReader::new(child.stderr.take().context("a pipe")?).lines();
        let mut running = Self { child, lines, out };
        running.told("fault 1:")?;
        Ok(running)
    }

    /// Waits for a line with these words.
    fn told(&mut self, words: &str) -> anyhow::Result<String> {
        let mut seen = Vec::new();
        for line in &mut self.lines {
            let line = line?;
            if line.contains(words) {
                return Ok(line);
            }
            seen.push(line);
        }
        anyhow::bail!("it ended without {words:?}:\n{}", seen.join("\n"))
    }

    fn send(&self, signal: &str) -> anyhow::Result<()> {
        let kill = ["-c", "kill -s \"$0\" \"$1\"", signal, &self.child.id().to_string()];
        output(Command::new("sh").args(kill)).map(drop)
    }

    /// Pids of the node processes that it started.
    fn nodes(&self) -> anyhow::Result<BTreeSet<u32>> {
        let own = format!("PPid:\t{}", self.child.id());
        let mut found = BTreeSet::new();
        for entry in fs::read_dir("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            if status.lines().any(|line| line == own) && is_node(pid) {
                found.insert(pid);
            }
        }
        Ok(found)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The folder of the cluster that a node process belongs to.
fn folder_of(pid: u32) -> anyhow::Result<PathBuf> {
    let line = fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
    let config = line.split('\0').skip_while(|word| *word != "--config").nth(1).context("a configuration")?;
    Ok(Path::new(config).ancestors().nth(2).context("a folder")?.to_path_buf())
}

/// Whether the process lives and is a node: pids are used again.
fn is_node(pid: u32) -> bool {
    let zombie = |status: &str| status.lines().any(|line| line.starts_with("State:\tZ"));
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "pacsvault-node")
        && fs::read_to_string(format!("/proc/{pid}/status")).is_ok_and(|status| !zombie(&status))
}

fn until_gone(nodes: &BTreeSet<u32>) -> anyhow::Result<()> {
    let began = Instant::now();
    while let Some(left) = nodes.iter().find(|pid| is_node(**pid)) {
        ensure!(began.elapsed() < PATIENCE, "node process {left} stays");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

#[test]
fn a_run_that_is_asked_to_end_lifts_all_and_writes_its_report() -> anyhow::Result<()> {
    let mut running = Running::under_fire("slow-site", "chaos-interrupted")?;
    let nodes = running.nodes()?;
    ensure!(!nodes.is_empty(), "no node runs");
    running.send("TERM")?;
    let folder = running.told("the cluster's folder is left at ")?;
    running.told("error: interrupted by SIGTERM")?;
    ensure!(running.child.wait()?.code() == Some(128 + 15), "a signal ended it");
    until_gone(&nodes)?;
    let run: Run = report::read(&running.out)?;
    ensure!(!run.passed && run.interrupted.as_deref() == Some("interrupted by SIGTERM"), "{:#?}", run.checks);
    ensure!(!run.faults.is_empty() && run.faults.iter().all(|fault| fault.ended_ms.is_some()), "{:#?}", run.faults);
    let failed: Vec<_> = run.checks.iter().filter(|check| !check.passed).collect();
    ensure!(failed.len() == 1, "nothing failed but that it did not come to its end: {failed:#?}");
    let judged = run.checks.iter().any(|check| check.name == "the history has an explanation" && check.passed);
    ensure!(judged && run.totals.counts.writes_acked > 0, "what was seen is judged: {:#?}", run.checks);
    let page = fs::read_to_string(running.out.join(report::PAGE_NAME))?;
    ensure!(page.contains("interrupted by SIGTERM"), "the page says it");
    let (_, folder) = folder.split_once("left at ").context("it says where")?;
    Ok(fs::remove_dir_all(folder.trim())?)
}

#[test]
fn no_node_and_no_mount_outlives_a_run_that_was_killed() -> anyhow::Result<()> {
    let root = rustix::process::geteuid().is_root();
    let mut running = Running::under_fire(if root { "disk-full" } else { "site-outage" }, "chaos-killed")?;
    let nodes = running.nodes()?;
    let folder = folder_of(*nodes.first().context("no node runs")?)?;
    let mounted = || fs::read_to_string("/proc/mounts").is_ok_and(|all| all.contains(&folder.display().to_string()));
    ensure!(mounted() == root, "disks are mounted under {}", folder.display());
    running.child.kill()?;
    running.child.wait()?;
    until_gone(&nodes)?;
    // What was recorded until then can be judged.
    let history = running.out.join("history.jsonl");
    ensure!(fs::metadata(&history)?.len() > 0, "nothing was recorded");
    output(Command::new(env!("CARGO_BIN_EXE_pacsvault-chaos")).arg("check").arg(history))?;
    let began = Instant::now();
    while mounted() {
        ensure!(began.elapsed() < PATIENCE, "a mount stays below {}", folder.display());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(fs::remove_dir_all(folder)?)
}
