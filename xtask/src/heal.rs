//! `bench heal`: a node burns while clients write and read. How long until full contract, how fast, and what clients feel.
//!
//! **Invariants.** The same load of small puts and gets runs before, during and after, in rounds of the same length, so that
//! its figures can be compared. A round counts as "during" when it began before full contract was reached. Shares name what
//! they are shares of, and both were measured in the same run on the same disk.

use std::{
    fs::{self, File},
    io::Write,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use clap::Args;
use pacsvault_harness::Cluster;
use serde_json::{Value, json};

use crate::{bench, tools, watch};

/// Shards of a stripe are 4+2 here: bytes of shards per byte of content.
const SHARD_BYTES_PER_BYTE: f64 = 1.5;
/// Size of one write of the raw measurement.
const RAW_WRITE_BYTES: usize = 4 << 20;
/// Most bytes of the raw measurement.
const RAW_BYTES_MAX: u64 = 1 << 30;
/// A machine that cannot rebuild 8 MB/s has failed, not been slow.
const SLOWEST_BYTES_PER_S: u64 = 8_000_000;
/// For what does not depend on bytes: the loss is noticed, the last stripes are tried again.
const GRACE: Duration = Duration::from_secs(120);

/// How much burns.
#[derive(Args)]
pub struct Options {
    /// Content stored beforehand, half of it in objects of 512 KiB and half in objects of 8 MiB.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(1..=1024))]
    gib: u64,
    /// 64 MiB and short rounds: shows that it works, measures nothing.
    #[arg(long, conflicts_with = "gib")]
    smoke: bool,
    /// A line of `[healing]` for all nodes, as 'repair_parallel = 16' (may be repeated) [default: their defaults]
    #[arg(long, value_name = "LINE")]
    healing: Vec<String>,
}

impl Options {
    fn content_bytes(&self) -> u64 {
        if self.smoke { 64 << 20 } else { self.gib << 30 }
    }

    /// Rounds before and after, and the seconds of each.
    fn rounds(&self) -> (u32, u32) {
        if self.smoke { (1, 1) } else { (5, 2) }
    }
}

/// What clients felt in one phase.
struct Felt {
    put: Latency,
    get: Latency,
}

/// Of one operation, in milliseconds: medians over the rounds of p50 and p99, and the worst p99 of any round.
#[derive(Default)]
struct Latency {
    p50: f64,
    p99: f64,
    p99_worst: f64,
    operations: f64,
    errors: f64,
}

impl Latency {
    fn of(rounds: &[Value]) -> Self {
        let sorted = |name: &str| {
            let mut values: Vec<f64> = rounds.iter().filter_map(|row| row[name].as_f64()).collect();
            values.sort_by(f64::total_cmp);
            values
        };
        let median = |values: &[f64]| values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
        let (p50, p99) = (sorted("p50_ms"), sorted("p99_ms"));
        Self {
            p50: median(&p50),
            p99: median(&p99),
            p99_worst: p99.last().copied().unwrap_or(f64::NAN),
            operations: sorted("operations").iter().sum(),
            errors: sorted("errors").iter().sum(),
        }
    }

    fn value(&self) -> Value {
        json!({
            "p50_ms": self.p50, "p99_ms": self.p99, "p99_worst_ms": self.p99_worst, "operations": self.operations,
            "errors": self.errors,
        })
    }
}

/// The repair itself.
struct Repair {
    took: Duration,
    /// Bytes of shards that were on the node.
    lost_bytes: u64,
    /// Bytes of shards that repair wrote; unknown when the leader changed meanwhile.
    written_bytes: Option<u64>,
    wan_bytes: Option<u64>,
    /// CPU seconds of all nodes from the loss to full contract, the load's included.
    cpu_seconds: f64,
}

impl Repair {
    /// By what was lost, which is known for certain.
    fn mb_per_second(&self) -> f64 {
        watch::mb_per_second(self.written_bytes.unwrap_or(self.lost_bytes), self.took)
    }

    fn wan_per_byte(&self) -> Option<f64> {
        let (wan, written) = (self.wan_bytes?, self.written_bytes.filter(|bytes| *bytes > 0)?);
        Some(float(wan) / float(written))
    }
}

/// What the machine can do.
struct Limit {
    raw_mb_per_second: f64,
    /// MB/s of shards while filling.
    put_mb_per_second: f64,
}

/// Runs it.
pub fn run(options: &Options) -> anyhow::Result<()> {
    tools::build()?;
    println!("machine: {}", bench::machine());
    println!("commit:  {}", bench::commit()?);
    let dir = tools::target().join("bench");
    fs::create_dir_all(&dir)?;
    let raw_mb_per_second = raw_write(&dir.join("raw"), (options.content_bytes() / 4).min(RAW_BYTES_MAX))?;
    let mut cluster = Cluster::prepare(&tools::bin_dir(), &dir, 3, 2)?;
    if !options.healing.is_empty() {
        cluster.configure(&format!("[healing]\n{}\n", options.healing.join("\n")))?;
        println!("[healing] {}", options.healing.join(", "));
    }
    cluster.start(|_| true)?;
    watch::form(&cluster)?;
    println!("\n## healing, 3 sites x 2 nodes on loopback, 4+2, mTLS, fsync; one node killed and wiped under load");
    let put_mb_per_second = fill(&cluster, options.content_bytes())?;
    let limit = Limit { raw_mb_per_second, put_mb_per_second };
    println!("before: {}", watch::until_known(&cluster, options.content_bytes())?.words());

    let (cpu, began) = (cluster.usage().0, Instant::now());
    let before = felt(&cluster, options)?;
    let load_cpu = (cluster.usage().0 - cpu) / began.elapsed().as_secs_f64();
    let (repair, during) = burn(&mut cluster, options)?;
    let after = felt(&cluster, options)?;
    tell(options, &limit, &repair, load_cpu, &[("before", before), ("during", during), ("after", after)])
}

/// MB/s of one file written from front to back, durable at the end: no log, no index, no network, one writer.
fn raw_write(path: &std::path::Path, bytes: u64) -> anyhow::Result<f64> {
    let piece = vec![0xa5_u8; RAW_WRITE_BYTES];
    let pieces = bytes / u64::try_from(RAW_WRITE_BYTES)?;
    let mut file = File::create(path)?;
    let began = Instant::now();
    for _ in 0..pieces {
        file.write_all(&piece)?;
    }
    file.sync_data()?;
    let took = began.elapsed();
    drop(file);
    fs::remove_file(path)?;
    Ok(watch::mb_per_second(pieces * u64::try_from(RAW_WRITE_BYTES)?, took))
}

/// Stores the content; MB/s of shards written meanwhile.
fn fill(cluster: &Cluster, bytes: u64) -> anyhow::Result<f64> {
    let began = Instant::now();
    for (size, object_bytes, clients, study) in
        [("512KiB", 512_u64 << 10, "16", "2.25.501"), ("8MiB", 8 << 20, "4", "2.25.502")]
    {
        let count = (bytes / 2 / object_bytes).to_string();
        let mut command = cluster.client();
        command.args(["bench", "put", "--size", size, "--clients", clients, "--count", &count]);
        tools::output(command.args(["--study", study, "--keep", "--json"]))?;
    }
    Ok(watch::mb_per_second(bytes, began.elapsed()) * SHARD_BYTES_PER_BYTE)
}

/// One round of small puts beside small gets.
fn round(cluster: &Cluster, seconds: u32) -> anyhow::Result<[Value; 2]> {
    let started = ["put", "get"].map(|operation| {
        let mut command = cluster.client();
        command.args(["bench", operation, "--size", "64KiB", "--clients", "4", "--seconds", &seconds.to_string()]);
        command.arg("--json").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn()
    });
    let [put, get] = started;
    // Both are waited for before either is judged: neither is left behind.
    let ended = [put, get].map(|child| child.and_then(std::process::Child::wait_with_output));
    let mut rows = Vec::new();
    for output in ended {
        let output = output?;
        // Failed operations are counted in the line, and make the command fail after it.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().rev().find(|line| line.contains("\"p99_ms\""));
        let line = line.with_context(|| format!("no figures: {}", String::from_utf8_lossy(&output.stderr).trim()))?;
        rows.push(serde_json::from_str(line)?);
    }
    <[Value; 2]>::try_from(rows).map_err(|rows| anyhow::anyhow!("{} results instead of two", rows.len()))
}

fn felt(cluster: &Cluster, options: &Options) -> anyhow::Result<Felt> {
    let (rounds, seconds) = options.rounds();
    let rounds: Vec<[Value; 2]> = (0..rounds).map(|_| round(cluster, seconds)).collect::<anyhow::Result<_>>()?;
    Ok(summed(&rounds))
}

fn summed(rounds: &[[Value; 2]]) -> Felt {
    let one = |index: usize| Latency::of(&rounds.iter().map(|rows| rows[index].clone()).collect::<Vec<_>>());
    Felt { put: one(0), get: one(1) }
}

/// Kills and wipes a node, gives it up, and measures until everything keeps its contract again, under load.
fn burn(cluster: &mut Cluster, options: &Options) -> anyhow::Result<(Repair, Felt)> {
    let victim = watch::follower(cluster)?;
    let look = watch::Look::take(cluster)?;
    cluster.kill(|node| node.name == victim)?;
    cluster.wipe(&victim)?;
    let cluster = &*cluster;
    let (cpu, began) = (cluster.usage().0, Instant::now());
    let lost_bytes = watch::give_up(cluster, &victim)?;
    let limit = GRACE + Duration::from_secs(options.content_bytes() / SLOWEST_BYTES_PER_S);
    let (whole, seconds) = (AtomicBool::new(false), options.rounds().1);
    let (took, cpu_seconds, rounds) = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let mut rounds = Vec::new();
            while !whole.load(Ordering::Relaxed) {
                rounds.push(round(cluster, seconds)?);
            }
            anyhow::Ok(rounds)
        });
        let took = watch::until_whole(cluster, began, limit, Some(&victim));
        let cpu_seconds = cluster.usage().0 - cpu;
        whole.store(true, Ordering::Relaxed);
        let rounds = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
        anyhow::Ok((took?, cpu_seconds, rounds?))
    })?;
    let now = watch::Look::take(cluster)?;
    let same = now.leader() == look.leader();
    let since = |part: fn(&watch::Look) -> u64| same.then(|| part(&now).saturating_sub(part(&look)));
    let (written_bytes, wan_bytes) = (since(watch::Look::done_bytes), since(watch::Look::wan_bytes));
    ensure!(lost_bytes > 0, "nothing was lost with {victim}: there was nothing to measure");
    Ok((Repair { took, lost_bytes, written_bytes, wan_bytes, cpu_seconds }, summed(&rounds)))
}

fn tell(
    options: &Options,
    limit: &Limit,
    repair: &Repair,
    load_cpu: f64,
    phases: &[(&str, Felt); 3],
) -> anyhow::Result<()> {
    println!(
        "{:28} {:>9} {:>9} {:>13} {:>12} {:>8}",
        "64 KiB x 4 clients each", "p50 ms", "p99 ms", "worst p99 ms", "operations", "errors"
    );
    for (phase, felt) in phases {
        for (what, row) in [("put", &felt.put), ("get", &felt.get)] {
            println!(
                "{:28} {:9.1} {:9.1} {:13.1} {:12.0} {:8.0}",
                format!("{what} {phase} repair"),
                row.p50,
                row.p99,
                row.p99_worst,
                row.operations,
                row.errors
            );
        }
    }
    let rate = repair.mb_per_second();
    let (of_raw, of_put) = (rate / limit.raw_mb_per_second, rate / limit.put_mb_per_second);
    let wan = repair.wan_per_byte().map_or_else(|| "unknown".to_owned(), |wan| format!("{wan:.2}"));
    let written = repair.written_bytes.map_or_else(|| "an unknown amount".to_owned(), watch::size);
    let took = repair.took.as_secs_f64();
    println!("stored:                      {} of content", watch::size(options.content_bytes()));
    println!(
        "time to full contract:       {took:.1} s from the loss, for {} of lost shards",
        watch::size(repair.lost_bytes)
    );
    println!("rebuilt:                     {rate:.0} MB/s of shards ({written} written)");
    println!(
        "share of raw writing:        {:.0} % of {:.0} MB/s (one file, 4 MiB writes, one fdatasync)",
        of_raw * 100.0,
        limit.raw_mb_per_second
    );
    println!(
        "share of storing:            {:.0} % of {:.0} MB/s of shards while this was stored",
        of_put * 100.0,
        limit.put_mb_per_second
    );
    println!(
        "CPU of all nodes meanwhile:  {:.1} s with the load; the load alone took {:.1} s in that time before",
        repair.cpu_seconds,
        load_cpu * took
    );
    println!("bytes between sites:         {wan} per byte rebuilt");
    let value = json!({
        "bench": "heal", "machine": bench::machine(), "commit": bench::commit()?, "smoke": options.smoke,
        "healing": options.healing,
        "content_bytes": options.content_bytes(), "lost_bytes": repair.lost_bytes, "seconds": took,
        "written_bytes": repair.written_bytes, "mb_per_second": rate, "raw_mb_per_second": limit.raw_mb_per_second,
        "put_shard_mb_per_second": limit.put_mb_per_second, "share_of_raw": of_raw, "share_of_put": of_put,
        "cpu_seconds": repair.cpu_seconds, "load_cpu_seconds_per_second": load_cpu, "wan_per_byte": repair.wan_per_byte(),
        "phases": phases.iter().map(|(phase, felt)| {
            json!({"phase": phase, "put": felt.put.value(), "get": felt.get.value()})
        }).collect::<Vec<_>>(),
    });
    println!("{value}");
    Ok(())
}

#[allow(clippy::cast_precision_loss, reason = "ratios are shown with two decimals")]
fn float(bytes: u64) -> f64 {
    bytes as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_summed_by_medians_and_the_worst() {
        let round = |p99: f64| json!({"p50_ms": p99 / 2.0, "p99_ms": p99, "operations": 10, "errors": 1});
        let latency = Latency::of(&[round(4.0), round(90.0), round(6.0)]);
        assert_eq!(latency.value()["p99_ms"], 6.0);
        assert_eq!((&latency.value()["p99_worst_ms"], &latency.value()["operations"]), (&json!(90.0), &json!(30.0)));
        assert!(Latency::of(&[]).p99.is_nan());
    }

    #[test]
    fn what_is_unknown_is_not_told_as_a_figure() {
        let repair = |written_bytes, wan_bytes| Repair {
            took: Duration::from_secs(2),
            lost_bytes: 8_000_000,
            written_bytes,
            wan_bytes,
            cpu_seconds: 1.0,
        };
        assert_eq!(repair(None, None).wan_per_byte(), None);
        assert_eq!(repair(Some(4_000_000), Some(2_000_000)).wan_per_byte(), Some(0.5));
        assert!((repair(None, None).mb_per_second() - 4.0).abs() < 1e-9);
    }
}
