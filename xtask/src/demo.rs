//! The main job, for real: six node processes in three sites on loopback, a study stored, the leader's whole site killed,
//! every byte read back; the site returns, then a node burns for good, and the cluster makes itself whole again each time.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use pacsvault_harness::Cluster;
use serde_json::Value;

use crate::{setup, tools, watch};

/// How long healing may take; it takes seconds.
const HEALED_WITHIN: Duration = Duration::from_secs(120);

/// What to show.
#[derive(Args)]
pub struct Options {
    /// A folder of DICOM Part 10 files to store, of one study or several; a synthetic CT study when absent.
    #[arg(long, value_name = "DIR")]
    study: Option<PathBuf>,
    /// Slices of the synthetic CT series, 512 KiB each.
    #[arg(long, default_value_t = 240)]
    slices: u32,
    /// Frames of the synthetic multi-frame instance, 512 KiB each.
    #[arg(long, default_value_t = 96)]
    frames: u32,
    /// Leave the cluster running and print how to talk to it.
    #[arg(long)]
    keep: bool,
}

struct Report {
    began: Instant,
    rows: Vec<(f64, String, String)>,
}

impl Report {
    fn row(&mut self, what: impl Into<String>, result: impl Into<String>) {
        let (what, result) = (what.into(), result.into());
        let at = self.began.elapsed().as_secs_f64();
        println!("  {at:6.1} s  {what:44} {result}");
        self.rows.push((at, what, result));
    }
}

/// Runs the demo.
pub fn run(options: &Options) -> anyhow::Result<()> {
    setup::run()?;
    tools::build()?;
    let dir = tools::target().join("demo");
    let mut report = Report { began: Instant::now(), rows: Vec::new() };
    println!("\nA cluster of three sites with two nodes each, on this machine: {}", dir.display());
    let mut cluster = Cluster::prepare(&tools::bin_dir(), &dir, 3, 2)?;
    cluster.start(|_| true)?;
    watch::form(&cluster)?;
    report.row("6 nodes joined, voters spread", voters(&cluster)?);

    let study = match &options.study {
        Some(study) => study.clone(),
        None => sample(&cluster, "study-1", options.slices, options.frames, 1)?,
    };
    let first = put(&cluster, &study, "receipts-1")?;
    ensure!(first.degraded == 0, "a healthy cluster stored {} files degraded", first.degraded);
    report.row(format!("stored {}", first.shown()), first.claims());
    show_receipt(&cluster, &first)?;

    let (site, leader) = cluster.leader()?;
    let mut probe = Probe::start(&cluster)?;
    std::thread::sleep(Duration::from_secs(2));
    let killed = cluster.kill(|node| node.site == site)?;
    report.row(format!("kill -9 {}", killed.join(" and ")), format!("site {site} is gone, with the leader {leader}"));
    let identical = read_back(&cluster, &first, "read-1")?;
    report.row("read everything back without that site", format!("{identical} of {} files identical", first.count()));
    std::thread::sleep(Duration::from_secs(2));
    let gaps = probe.finish()?;
    report.row("longest time without an acknowledged write", format!("{} ms", gaps["write_gap_ms"]));
    report.row("longest time without a read", format!("{} ms", gaps["read_gap_ms"]));
    ensure!(gaps["wrong_bytes"] == 0, "the probe read wrong bytes");

    let second_study = sample(&cluster, "study-2", options.slices.min(40), 0, 2)?;
    let second = put(&cluster, &second_study, "receipts-2")?;
    ensure!(second.degraded == second.count(), "without a site every write must be called degraded");
    report.row(format!("stored {} on two sites", second.shown()), format!("degraded: {}", second.claims()));
    show_receipt(&cluster, &second)?;

    let back = Instant::now();
    cluster.start(|_| true)?;
    cluster.wait_whole()?;
    report.row(format!("site {site} is back"), voters(&cluster)?);
    healed(&cluster, &second, back, &mut report)?;
    let third_study = sample(&cluster, "study-3", options.slices.min(20), 0, 3)?;
    let third = put_whole(&cluster, &third_study)?;
    report.row(format!("stored {} on three sites", third.shown()), format!("again {}", third.claims()));
    for (stored, folder) in [(&first, "read-2"), (&second, "read-3"), (&third, "read-4")] {
        read_back(&cluster, stored, folder)?;
    }
    report.row("read everything again", "every byte identical");
    let healing = burn(&mut cluster, &mut report)?;
    for (stored, folder) in [(&first, "read-5"), (&second, "read-6"), (&third, "read-7")] {
        read_back(&cluster, stored, folder)?;
    }
    report.row("read everything once more", "every byte identical");
    summary(&report, &gaps, &healing);
    if options.keep {
        explain(&cluster);
        cluster.keep();
    }
    Ok(())
}

/// What was stored degraded gets the contract it was denied, by itself; its receipt, signed anew, says so.
fn healed(cluster: &Cluster, stored: &Stored, since: Instant, report: &mut Report) -> anyhow::Result<()> {
    let took = watch::until_whole(cluster, since, HEALED_WITHIN, None)?;
    let ((key, version), _) = stored.files.first_key_value().context("something was stored")?;
    let receipt = cluster.dir.join("healed.receipt");
    let mut command = cluster.client();
    command.args(["receipt", "fetch", key, "--version", &version.to_string(), "--json", "--out"]).arg(&receipt);
    let row: Value = serde_json::from_str(tools::output(&mut command)?.trim())?;
    ensure!(row["degraded"] == false, "the receipt fetched again still says degraded: {row}");
    let claims: Vec<&str> = row["survives"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    report.row(
        "the degraded study is at full contract again",
        format!("{:.1} s after the site's start; its receipt now: survives {}", took.as_secs_f64(), claims.join("; ")),
    );
    Ok(())
}

/// A node burns: what it held is rebuilt on the others, it is retired, and its machine comes back empty as a new node. Says how
/// fast.
fn burn(cluster: &mut Cluster, report: &mut Report) -> anyhow::Result<String> {
    let victim = watch::follower(cluster)?;
    let id = watch::id(cluster, &victim)?;
    cluster.kill(|node| node.name == victim)?;
    cluster.wipe(&victim)?;
    let began = Instant::now();
    let bytes = watch::give_up(cluster, &victim)?;
    report
        .row(format!("kill -9 {victim}, disks wiped, given up"), format!("{} of shards are lost", watch::size(bytes)));
    let took = watch::until_whole(cluster, began, HEALED_WITHIN, Some(&victim))?;
    let healing = format!("{:.1} s, {:.0} MB/s", took.as_secs_f64(), watch::mb_per_second(bytes, took));
    report.row("everything is at full contract again", format!("{healing} rebuilt on five nodes"));
    watch::retire(cluster, &victim)?;
    report.row(format!("node {victim} removed"), format!("its id {id} is never used again"));
    let now = watch::rejoin(cluster, &victim, id)?;
    report.row(format!("{victim} started again, empty"), format!("joined as a new node, id {now}"));
    Ok(healing)
}

fn voters(cluster: &Cluster) -> anyhow::Result<String> {
    let status = cluster.status()?;
    let nodes = status["nodes"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> = nodes
        .iter()
        .filter(|node| node["role"] == "voter" || node["role"] == "leader")
        .filter_map(|node| node["name"].as_str())
        .collect();
    Ok(format!("voters {}, leader {}", names.join(" "), status["leader"].as_str().unwrap_or("unknown")))
}

fn sample(cluster: &Cluster, name: &str, slices: u32, frames: u32, seed: u64) -> anyhow::Result<PathBuf> {
    let dir = cluster.dir.join(name);
    let mut command = cluster.client();
    command.arg("sample").arg(&dir);
    command.args(["--slices", &slices.to_string(), "--frames", &frames.to_string(), "--seed", &seed.to_string()]);
    tools::output(&mut command)?;
    Ok(dir)
}

struct Stored {
    /// Path on disk by key and version: the same UID with another content is another version.
    files: BTreeMap<(String, u64), PathBuf>,
    bytes: u64,
    degraded: usize,
    skipped: u64,
    /// How many files survive what, by the words of their receipts.
    survives: BTreeMap<String, usize>,
    receipt: PathBuf,
}

impl Stored {
    fn count(&self) -> usize {
        self.survives.values().sum()
    }

    /// What was stored, in words.
    fn shown(&self) -> String {
        let skipped = if self.skipped > 0 { format!(" ({} skipped)", self.skipped) } else { String::new() };
        format!("{} files, {}{skipped}", self.count(), watch::size(self.bytes))
    }

    /// What each file survives; every kind is told when they differ.
    fn claims(&self) -> String {
        if let [claim] = &self.survives.keys().collect::<Vec<_>>()[..] {
            return format!("each survives {claim}");
        }
        let parts: Vec<String> =
            self.survives.iter().map(|(claim, files)| format!("{files} files survive {claim}")).collect();
        parts.join(", ")
    }
}

fn put(cluster: &Cluster, study: &Path, receipts: &str) -> anyhow::Result<Stored> {
    let receipts = cluster.dir.join(receipts);
    let mut command = cluster.client();
    let output = command.arg("put").arg(study).arg("--json").arg("--receipts").arg(&receipts).output()?;
    let mut stored = Stored {
        files: BTreeMap::new(),
        bytes: 0,
        degraded: 0,
        skipped: 0,
        survives: BTreeMap::new(),
        receipt: PathBuf::new(),
    };
    let mut refused = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let row: Value = serde_json::from_str(line).with_context(|| format!("unexpected output: {line}"))?;
        stored.skipped += row["summary"]["skipped"].as_u64().unwrap_or(0);
        if let Some(message) = row["error"]["message"].as_str() {
            refused.push(format!("{}: {message}", row["path"].as_str().unwrap_or_default()));
        }
        let (Some(key), Some(path)) = (row["key"].as_str(), row["path"].as_str()) else { continue };
        let version = row["version"].as_u64().with_context(|| format!("no version: {line}"))?;
        stored.files.insert((key.to_owned(), version), path.into());
        stored.bytes += row["size_bytes"].as_u64().unwrap_or(0);
        stored.degraded += usize::from(row["degraded"] == true);
        let claims: Vec<&str> = row["survives"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        ensure!(!claims.is_empty(), "a receipt that promises nothing: {line}");
        *stored.survives.entry(claims.join("; ")).or_default() += 1;
        stored.receipt = row["receipt"].as_str().unwrap_or_default().into();
    }
    let words = String::from_utf8_lossy(&output.stderr);
    ensure!(refused.is_empty(), "{} files were not stored:\n{}", refused.len(), refused.join("\n"));
    ensure!(output.status.success(), "pacsvault put {}: {}\n{}", study.display(), output.status, words.trim());
    ensure!(!stored.files.is_empty(), "nothing was stored from {}\n{}", study.display(), words.trim());
    Ok(stored)
}

/// One try is right: a fresh process suspects no node, so it uses the site that is back at once.
fn put_whole(cluster: &Cluster, study: &Path) -> anyhow::Result<Stored> {
    let stored = put(cluster, study, "receipts-3")?;
    ensure!(stored.degraded == 0, "{} files are still degraded although the site is back", stored.degraded);
    Ok(stored)
}

fn show_receipt(cluster: &Cluster, stored: &Stored) -> anyhow::Result<()> {
    let ca = cluster.dir.join("pki/ca.pem");
    let mut command = cluster.client();
    command.args(["receipt", "verify"]).arg(&stored.receipt).arg("--ca").arg(ca);
    let text = tools::output(&mut command)?;
    println!("\n    one of the receipts, verified offline against the cluster's CA:");
    for line in text.lines() {
        println!("    | {line}");
    }
    println!();
    Ok(())
}

/// Reads all studies and compares every file, in the version that it became, byte by byte with what was stored.
fn read_back(cluster: &Cluster, stored: &Stored, folder: &str) -> anyhow::Result<usize> {
    let out = cluster.dir.join(folder);
    let studies: BTreeSet<&str> = stored.files.keys().filter_map(|(key, _)| key.split('/').nth(1)).collect();
    let mut left: BTreeMap<&(String, u64), &PathBuf> = stored.files.iter().collect();
    for study in studies {
        let mut command = cluster.client();
        command.args(["get", "--study", study, "--json", "--out"]).arg(out.join(study));
        for line in tools::output(&mut command)?.lines() {
            if let Some(read) = same_bytes(stored, line)? {
                left.remove(read);
            }
        }
    }
    // A study is read in its newest versions; the older ones are asked for by number.
    for (key, version) in left.into_keys() {
        let mut command = cluster.client();
        command.args(["get", key, "--version", &version.to_string(), "--json", "--out"]).arg(out.join("older"));
        let text = tools::output(&mut command)?;
        let read = text.lines().map(|line| same_bytes(stored, line)).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(read.into_iter().flatten().count() == 1, "{key} v{version} did not come back");
    }
    fs::remove_dir_all(&out)?;
    Ok(stored.count())
}

/// Compares the file that a line of `get --json` speaks of; says which one, if it is one of ours.
fn same_bytes<'a>(stored: &'a Stored, line: &str) -> anyhow::Result<Option<&'a (String, u64)>> {
    let row: Value = serde_json::from_str(line).with_context(|| format!("unexpected output: {line}"))?;
    let (Some(key), Some(path), Some(version)) = (row["key"].as_str(), row["path"].as_str(), row["version"].as_u64())
    else {
        return Ok(None);
    };
    let Some((name, original)) = stored.files.get_key_value(&(key.to_owned(), version)) else { return Ok(None) };
    ensure!(fs::read(path)? == fs::read(original)?, "{key} v{version} came back changed");
    Ok(Some(name))
}

/// `pacsvault probe` beside everything else.
struct Probe {
    child: Child,
    stdout: BufReader<ChildStdout>,
}

impl Probe {
    fn start(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut command = cluster.client();
        command.args(["probe", "--json", "--study", "2.25.77"]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = BufReader::new(child.stdout.take().context("piped")?);
        Ok(Self { child, stdout })
    }

    fn finish(&mut self) -> anyhow::Result<Value> {
        // Closing its input ends it.
        if let Some(mut stdin) = self.child.stdin.take() {
            stdin.flush()?;
        }
        let mut line = String::new();
        while self.stdout.read_line(&mut line)? > 0 && !line.contains("write_gap_ms") {
            line.clear();
        }
        self.child.wait()?;
        serde_json::from_str(line.trim()).with_context(|| format!("the probe said {line:?}"))
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        // Only on the way out of an error; `finish` has waited for it otherwise.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn summary(report: &Report, gaps: &Value, healing: &str) {
    println!("\nWhat happened");
    for (at, what, result) in &report.rows {
        println!("  {at:6.1} s  {what:44} {result}");
    }
    println!(
        "\nNothing acknowledged was lost. While a whole site died, writes paused for {} ms and reads for {} ms.",
        gaps["write_gap_ms"], gaps["read_gap_ms"]
    );
    println!("When a node burnt with everything on it, the others were at full contract again after {healing}.");
}

fn explain(cluster: &Cluster) {
    let pids: Vec<String> = cluster.pids().iter().map(ToString::to_string).collect();
    println!("\nThe cluster is still running. Talk to it:");
    println!("  export PACSVAULT_CONFIG={}", cluster.dir.join("client.toml").display());
    println!("  alias pacsvault={}", tools::bin_dir().join("pacsvault").display());
    println!("  pacsvault status\n  pacsvault ls\n  pacsvault --help");
    for node in &cluster.nodes {
        println!(
            "  node {} of site {}: gRPC {}, metrics http://{}/metrics",
            node.name, node.site, node.address, node.ops
        );
    }
    println!("Stop it: kill {}", pids.join(" "));
}
