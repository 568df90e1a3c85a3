//! Measures a cluster of real processes and prints figures with machine and commit.

use std::{
    fs::{self, File},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, ensure};
use clap::{Args, Subcommand};
use pacsvault_harness::Cluster;
use serde_json::Value;

use crate::{heal, setup, tools, watch};

/// What to measure.
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Options {
    /// One part instead of all others.
    #[command(subcommand)]
    part: Option<Part>,
    /// Seconds per measurement.
    #[arg(long, default_value_t = 10)]
    seconds: u32,
    /// Repetitions; medians are printed.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only put/get, without metadata, etcd, memory, codec, catalog, RPC and shard store.
    #[arg(long)]
    transfer_only: bool,
}

/// What is measured only when it is named.
#[derive(Subcommand)]
enum Part {
    /// Burn a node under load: time to full contract, rate of repair, and what clients feel meanwhile.
    Heal(heal::Options),
    /// Planning with ten million stripes, and opening, verifying and compacting a volume of many small shards.
    Plan,
}

/// Runs all benchmarks, or the one named.
pub fn run(options: &Options) -> anyhow::Result<()> {
    setup::run()?;
    match &options.part {
        Some(Part::Heal(options)) => return heal::run(options),
        Some(Part::Plan) => return plan(),
        None => {}
    }
    tools::build()?;
    if !options.transfer_only {
        // The whole workspace, for the same reason as in `tools::build`.
        tools::cargo(&["build", "--release", "--workspace", "--examples"])?;
    }
    println!("machine: {}", machine());
    println!("commit:  {}", commit()?);
    transfers(options)?;
    if options.transfer_only {
        return Ok(());
    }
    metadata(options)?;
    etcd(options)?;
    upload_memory()?;
    println!("\n## codec, one core");
    example("codec_bench", &[])?;
    println!("\n## catalog, in memory");
    example("catalog_bench", &[])?;
    println!("\n## shards over mutual TLS on loopback");
    example("rpc_bench", &[])?;
    println!("\n## shard store against raw writes");
    let dir = tools::target().join("bench-volume");
    example("append_bench", &[&dir.display().to_string()])?;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// Runs a built example.
fn example(name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    tools::run(Command::new(tools::target().join("release/examples").join(name)).args(arguments))
}

/// What the leader computes, and what many small shards cost a volume.
fn plan() -> anyhow::Result<()> {
    tools::cargo(&["build", "--release", "--workspace", "--examples"])?;
    println!("machine: {}", machine());
    println!("commit:  {}", commit()?);
    println!("\n## planning, 10 million stripes");
    example("plan_bench", &[])?;
    println!("\n## a volume of 100,000 small shards");
    let dir = tools::target().join("bench-volume");
    example("open_bench", &[&dir.display().to_string()])?;
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    Ok(())
}

/// The commit that is checked out, and whether anything was changed since; that of programs built elsewhere is unknown.
pub fn commit() -> anyhow::Result<String> {
    if std::env::var_os("PACSVAULT_BIN_DIR").is_some() {
        return Ok("unknown: the programs are those of PACSVAULT_BIN_DIR".to_owned());
    }
    let mut git = Command::new("git");
    Ok(tools::output(git.args(["describe", "--always", "--dirty"]).current_dir(tools::root()))?.trim().to_owned())
}

/// Cores and their model.
pub fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or_default();
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    format!("{} cores,{}", cores, model.trim_start_matches(['\t', ' ', ':']).trim())
}

struct Case {
    name: &'static str,
    operation: &'static str,
    size: &'static str,
    clients: &'static str,
    via_node: bool,
}

const CASES: [Case; 6] = [
    Case { name: "put 512 KiB x 16 direct", operation: "put", size: "512KiB", clients: "16", via_node: false },
    Case { name: "put 512 KiB x 16 via node", operation: "put", size: "512KiB", clients: "16", via_node: true },
    Case { name: "get 512 KiB x 16 direct", operation: "get", size: "512KiB", clients: "16", via_node: false },
    Case { name: "put 32 MiB x 4 direct", operation: "put", size: "32MiB", clients: "4", via_node: false },
    Case { name: "put 32 MiB x 4 via node", operation: "put", size: "32MiB", clients: "4", via_node: true },
    Case { name: "get 32 MiB x 4 direct", operation: "get", size: "32MiB", clients: "4", via_node: false },
];

fn transfers(options: &Options) -> anyhow::Result<()> {
    println!("\n## put and get, 3 sites x 2 nodes on loopback, 4+2, mTLS, fsync; medians of {} rounds", options.rounds);
    println!("{:28} {:>8} {:>9} {:>9} {:>12} {:>14}", "case", "MB/s", "p50 ms", "p99 ms", "CPU s/GB", "written/stored");
    let mut resident = 0;
    for case in &CASES {
        // A fresh cluster each: what was deleted is not compacted away, and six volumes share this disk.
        let mut cluster = Cluster::prepare(&tools::bin_dir(), &tools::target().join("bench"), 3, 2)?;
        cluster.start(|_| true)?;
        watch::form(&cluster)?;
        let mut rounds = Vec::new();
        for _ in 0..options.rounds {
            rounds.push(transfer(&cluster, case, options.seconds)?);
        }
        let median = |pick: fn(&[f64; 5]) -> f64| {
            let mut values: Vec<f64> = rounds.iter().map(pick).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        println!(
            "{:28} {:8.0} {:9.1} {:9.1} {:12.2} {:14.2}",
            case.name,
            median(|row| row[0]),
            median(|row| row[1]),
            median(|row| row[2]),
            median(|row| row[3]),
            median(|row| row[4])
        );
        resident = resident.max(cluster.resident_bytes_max());
    }
    println!("resident memory of the largest node after any case: {} MiB", resident >> 20);
    Ok(())
}

/// MB/s, p50 ms, p99 ms, CPU s/GB over all processes, bytes written per byte stored.
#[allow(clippy::cast_precision_loss, reason = "ratios are shown with two decimals")]
fn transfer(cluster: &Cluster, case: &Case, seconds: u32) -> anyhow::Result<[f64; 5]> {
    let (cpu_before, written_before) = cluster.usage();
    let mut command = cluster.client();
    command.args(["bench", case.operation, "--size", case.size, "--clients", case.clients, "--json"]);
    command.args(["--seconds", &seconds.to_string()]);
    if case.via_node {
        command.arg("--via-node");
    }
    let text = tools::output(&mut command)?;
    let line = text.lines().last().context("the benchmark printed nothing")?;
    let row: Value = serde_json::from_str(line)?;
    let (cpu_after, written_after) = cluster.usage();
    let number = |name: &str| row[name].as_f64().unwrap_or(f64::NAN);
    let bytes = number("operations") * number("size_bytes");
    let cpu = cpu_after - cpu_before + number("cpu_seconds");
    let written = (written_after - written_before) as f64 / bytes;
    Ok([number("mb_per_second"), number("p50_ms"), number("p99_ms"), cpu / (bytes / 1e9), written])
}

fn metadata(options: &Options) -> anyhow::Result<()> {
    let mut cluster = Cluster::prepare(&tools::bin_dir(), &tools::target().join("bench"), 3, 1)?;
    cluster.start(|_| true)?;
    watch::form(&cluster)?;
    println!("\n## metadata commits, 3 members on one disk");
    let mut command = cluster.client();
    command.args(["bench", "metadata", "--clients", "1,64,256", "--seconds", &options.seconds.to_string()]);
    print!("{}", tools::output(&mut command)?);
    drop(cluster);
    Ok(())
}

/// etcd in the same run, on the same disk; its programs are not a part of this repository.
fn etcd(options: &Options) -> anyhow::Result<()> {
    println!("\n## catalog commits beside etcd's");
    if !tools::on_path("etcd") || !tools::on_path("etcdctl") {
        println!("etcd is not installed: apt-get install etcd-server etcd-client, then run this again");
        return Ok(());
    }
    let mut command = Command::new("bash");
    command.arg(tools::root().join("tests/etcd_bench.sh"));
    tools::run(command.args([options.seconds.to_string(), options.rounds.to_string()]))
}

/// A file goes through one node; neither that node nor the client may grow with it.
fn upload_memory() -> anyhow::Result<()> {
    let mut cluster = Cluster::prepare(&tools::bin_dir(), &tools::target().join("bench"), 3, 2)?;
    cluster.start(|_| true)?;
    watch::form(&cluster)?;
    let before = cluster.resident_bytes_max();
    let path = cluster.dir.join("large.bin");
    // Zeros without blocks: nothing on the way looks for them, and reading them costs no disk.
    File::create(&path)?.set_len(2 << 30)?;
    let mut command = cluster.client();
    command.arg("put").arg(&path).args(["--study", "2.25.2", "--name", "large.bin", "--via-node", "--json"]);
    let mut child = command.stdout(Stdio::null()).spawn()?;
    let (mut node, mut client) = (0, 0);
    let status = loop {
        node = node.max(cluster.resident_bytes_max());
        client = client.max(resident_bytes(child.id()));
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    ensure!(status.success(), "the upload of 2 GiB: {status}");
    println!("\n## resident memory while 2 GiB are uploaded through one node");
    println!("largest node: {} MiB before, {} MiB at most during", before >> 20, node >> 20);
    println!("client: {} MiB at most", client >> 20);
    Ok(())
}

/// Resident bytes of a process; 0 when it has ended.
fn resident_bytes(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|text| text.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}
