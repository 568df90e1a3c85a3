//! Disks that run full, under the shards and under the log: writes go elsewhere or are refused, what was acknowledged
//! stays, and the node comes back when there is room again.

use std::{
    fs,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::Context;
use pacsvault_core::layout::VolumeState;
use pacsvault_tests::{Bed, Ledger, Load, Shape, mount::SmallDisk, refusal::says, seed, skip};

const TMP: &str = env!("CARGO_TARGET_TMPDIR");

/// Mounts a small disk for `part` (`volume` or `data`) of node `name`; `None`, with the reason printed, where that is impossible.
fn small_disk(bed: &mut Bed, name: &str, part: &str, mib: u32) -> Option<()> {
    let home = bed.node(name).config.parent().unwrap_or(Path::new("/")).join(part);
    match SmallDisk::mount(&home, mib) {
        Ok(disk) => bed.disks.push(disk),
        Err(error) => {
            skip("a disk that runs full", &format!("it takes root to mount one: {error:#}"));
            return None;
        }
    }
    Some(())
}

#[test]
fn a_full_disk_under_the_shards_loses_nothing_and_stops_nobody() -> anyhow::Result<()> {
    let mut bed = Bed::prepared(TMP, 3, 2)?;
    let Some(()) = small_disk(&mut bed, "c1", "volume", 96) else { return Ok(()) };
    bed.run(|bed| {
        bed.cluster.start(|_| true)?;
        bed.form()?;
        let clients = vec![bed.client(false)?, bed.client(true)?];
        let ledger = Arc::new(Ledger::default());
        let shape = Shape { bytes_max: 4 << 30, ..Shape::default() };
        let load = Load::start(&bed.runtime, &clients, &ledger, shape, seed(), 0);
        // Some content of its own, far from full; then a neighbour takes the rest, to the last byte.
        load.until_acked(100, Duration::from_secs(60), "on the way to a full disk")?;
        let taken = bed.disks[0].fill()?;
        eprintln!("a neighbour took the last {} MiB", taken >> 20);
        load.until_acked(50, Duration::from_secs(60), "with a full disk")?;
        // It says so by itself, once what it had reserved before is used up: segments keep the room they were made with.
        bed.until(Duration::from_secs(60), "c1 to say that it is full", || {
            let status = bed.status_of("c1")?;
            let volume = status.volumes.first().context("c1 has a volume")?;
            Ok(volume.state != VolumeState::Up && !volume.reason.is_empty())
        })?;
        load.stop(&bed.runtime, Duration::from_secs(120))?;
        bed.runtime.block_on(ledger.check(&clients, &bed.ca_pem()?))?;
        // Room again, which it notices while nobody writes; and a restart: the same shards are found.
        bed.disks[0].relieve()?;
        bed.until(Duration::from_secs(15), "c1 to say that it has room", || {
            let status = bed.status_of("c1")?;
            Ok(status.volumes.iter().all(|volume| volume.state == VolumeState::Up))
        })?;
        bed.cluster.kill(|node| node.name == "c1")?;
        bed.cluster.start(|_| true)?;
        bed.until_whole(Duration::from_secs(60))?;
        bed.runtime.block_on(ledger.check(&clients, &bed.ca_pem()?))?;
        bed.until_equal(Duration::from_secs(30)).map(drop)
    })
}

/// Writes that fill logs rather than volumes.
fn talkative() -> Shape {
    Shape { writers: 8, readers: 1, bytes_max: 32 << 20, large_per_mille: 0, attributes_bytes: 15 << 10 }
}

/// Waits until `name` has ended by itself, and returns the reason it gave.
fn ended(bed: &mut Bed, name: &str) -> anyhow::Result<String> {
    let began = Instant::now();
    loop {
        for (ended, status) in bed.cluster.reap()? {
            eprintln!("{ended} ended: {status}");
        }
        if bed.cluster.pid(name).is_none() {
            let log = fs::read_to_string(&bed.node(name).log)?;
            let reason = log.lines().rev().find(|line| line.starts_with("error: "));
            return reason.map(str::to_owned).with_context(|| format!("{name} ended without a reason"));
        }
        anyhow::ensure!(began.elapsed() < Duration::from_secs(90), "{name} goes on, though its log cannot");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_full_disk_under_the_log_of_one_node_leaves_the_others_working() -> anyhow::Result<()> {
    let mut bed = Bed::prepared(TMP, 3, 2)?;
    let Some(()) = small_disk(&mut bed, "a1", "data", 192) else { return Ok(()) };
    bed.run(|bed| {
        bed.cluster.start(|_| true)?;
        bed.form()?;
        eprintln!("the leader is {}, the full disk will be a1's", bed.leader()?.1);
        let clients = vec![bed.client(false)?, bed.client(true)?];
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&bed.runtime, &clients, &ledger, talkative(), seed(), 0);
        load.until_acked(100, Duration::from_secs(60), "with room for the log")?;
        bed.disks[0].fill()?;
        let reason = ended(bed, "a1")?;
        says(&reason, &["space"])?;
        load.until_acked(50, Duration::from_secs(60), "without a1")?;
        load.stop(&bed.runtime, Duration::from_secs(120))?;
        bed.runtime.block_on(ledger.check_reads(&clients, &bed.ca_pem()?))?;
        // Room again: a restart brings it back.
        bed.disks[0].relieve()?;
        bed.cluster.start(|_| true)?;
        bed.until_whole(Duration::from_secs(60))?;
        bed.runtime.block_on(ledger.check(&clients, &bed.ca_pem()?))?;
        bed.until_equal(Duration::from_secs(30)).map(drop)
    })
}

#[test]
fn full_disks_under_all_logs_refuse_writes_and_keep_what_was_acknowledged() -> anyhow::Result<()> {
    let mut bed = Bed::prepared(TMP, 3, 1)?;
    for name in ["a1", "b1", "c1"] {
        let Some(()) = small_disk(&mut bed, name, "data", 192) else { return Ok(()) };
    }
    bed.run(|bed| {
        bed.cluster.start(|_| true)?;
        bed.form()?;
        let clients = vec![bed.client(false)?];
        let ledger = Arc::new(Ledger::default());
        let load = Load::start(&bed.runtime, &clients, &ledger, talkative(), seed(), 0);
        load.until_acked(100, Duration::from_secs(60), "with room for the logs")?;
        for disk in &bed.disks {
            disk.fill()?;
        }
        // Two of three end; the third alone can promise nothing. Whatever is answered now must be kept.
        let began = Instant::now();
        while bed.cluster.pids().len() > 1 && began.elapsed() < Duration::from_secs(90) {
            bed.cluster.reap()?;
            thread::sleep(Duration::from_millis(50));
        }
        anyhow::ensure!(bed.cluster.pids().len() <= 1, "nodes go on, though their logs cannot");
        for disk in &bed.disks {
            disk.relieve()?;
        }
        bed.cluster.kill(|_| true)?;
        bed.cluster.start(|_| true)?;
        load.stop(&bed.runtime, Duration::from_secs(180))?;
        bed.until_whole(Duration::from_secs(60))?;
        bed.runtime.block_on(ledger.check(&clients, &bed.ca_pem()?))?;
        bed.until_equal(Duration::from_secs(30)).map(drop)
    })
}
