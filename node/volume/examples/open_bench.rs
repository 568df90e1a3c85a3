//! What many small shards cost a volume: time and memory to open, to prove them from the device, and to get the space of
//! deleted ones back.
//!
//! `cargo run --release -p pacsvault-volume --example open_bench -- DIR [--shards N] [--bytes N]`
//! (100,000 shards of 4096 bytes by default; DIR is emptied first.)
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at any surprise")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use pacsvault_core::{
    checksum::chunk_crcs,
    ids::{ClusterId, Digest, Incarnation, InstanceId, LogIndex, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::profile::Code,
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::disk::Disk;
use pacsvault_volume::{FileDisk, Identity, Options, Owner, Recovery, Store, file_disk::FileDiskOptions};

/// Shards per batch while filling.
const BATCH: u64 = 1000;
/// Bytes moved per step of compaction.
const STEP_BYTES: u64 = 4 << 20;

fn proc_number(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Ids as coordinators draw them: time first, then chance.
fn id(number: u64) -> ShardId {
    let chance = u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060_5CED_C835);
    let instance = InstanceId::new(WallMillis(1_700_000_000_000 + number / 10), chance);
    ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(1) }
}

fn open(directory: &Path, life: u64) -> (Store, Recovery) {
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(directory, FileDiskOptions::default()).unwrap());
    let identity = Identity {
        cluster: ClusterId([1; 16]),
        node: "bench".parse().unwrap(),
        incarnation: Incarnation([2; 16]),
        volume: VolumeId([3; 16]),
    };
    if disk.names().unwrap().is_empty() {
        Store::format(&*disk, &identity).unwrap();
    }
    let owner = Owner { cluster: identity.cluster, node: identity.node };
    let mut options = Options::new(life);
    options.segment_bytes = Some(256 << 20);
    Store::open(disk, &owner, options).unwrap()
}

fn fill(directory: &Path, shards: u64, bytes: usize) {
    let (store, _) = open(directory, 1);
    let data = Bytes::from(vec![5; bytes]);
    let (crcs, digest) = (chunk_crcs(&data), Digest::of(&data));
    let header = |number| ShardHeader {
        id: id(number),
        code: Code::new(4, 2).unwrap(),
        stripe_bytes: 4 * data.len() as u64,
        digest,
        merkle_path: vec![Digest([1; 32]); 3],
        chunk_crcs: crcs.clone(),
    };
    for first in (0..shards).step_by(usize::try_from(BATCH).unwrap()) {
        let batch: Vec<_> = (first..shards.min(first + BATCH)).map(|number| (header(number), data.clone())).collect();
        store.append(&batch).into_iter().for_each(|answer| assert!(answer.is_ok()));
    }
}

fn open_figures(directory: &Path, round: u64) -> Store {
    let before = proc_number("/proc/self/status", "VmRSS:");
    let started = Instant::now();
    let (store, recovery) = open(directory, 2 + round);
    let seconds = started.elapsed().as_secs_f64();
    let after = proc_number("/proc/self/status", "VmRSS:");
    let (shards, read) = (recovery.shards, recovery.read_bytes);
    println!(
        "open {round}: {shards} shards in {seconds:.2} s, {:.2} s per million; {:.0} MiB resident per million; {:.2} GB read",
        seconds / shards as f64 * 1e6,
        after.saturating_sub(before) as f64 / 1024.0 / shards as f64 * 1e6,
        read as f64 / 1e9
    );
    assert_eq!((recovery.damaged_places, recovery.void_records), (0, 0));
    store
}

fn file_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().blocks() * 512).sum()
}

fn main() {
    let mut args = std::env::args().skip(1);
    let directory = PathBuf::from(args.next().expect("usage: open_bench DIR [--shards N] [--bytes N]"));
    let (mut shards, mut bytes, mut filling) = (100_000, 4096, false);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--shards" => shards = args.next().unwrap().parse().unwrap(),
            "--bytes" => bytes = args.next().unwrap().parse().unwrap(),
            "--fill" => filling = true,
            other => panic!("unknown argument {other}"),
        }
    }
    if filling {
        return fill(&directory, shards, bytes);
    }
    let _ = std::fs::remove_dir_all(&directory);
    let started = Instant::now();
    // Another process fills it, so that this one's memory is that of opening alone.
    let mut filler = Command::new(std::env::current_exe().unwrap());
    filler.arg(&directory).args(["--fill", "--shards", &shards.to_string(), "--bytes", &bytes.to_string()]);
    assert!(filler.status().unwrap().success());
    println!("fill: {shards} shards of {bytes} bytes in {:.2} s", started.elapsed().as_secs_f64());
    drop(open_figures(&directory, 1));
    let store = open_figures(&directory, 2);

    let (started, proven) = (Instant::now(), shards.min(20_000));
    (0..proven).for_each(|number| assert!(store.verify(id(number * (shards / proven))).is_ok()));
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "verify: {:.0} shards per second, {:.1} MB/s",
        proven as f64 / seconds,
        proven as f64 * bytes as f64 / 1e6 / seconds
    );

    let (before, free_before) = (file_bytes(&directory), store.status().free_bytes);
    let dying: Vec<_> = (0..shards).filter(|number| number % 10 < 6).map(id).collect();
    let started = Instant::now();
    for (at, part) in dying.chunks(1000).enumerate() {
        store.delete(part, LogIndex(at as u64)).unwrap();
    }
    println!("delete: {} shards in {:.2} s", dying.len(), started.elapsed().as_secs_f64());
    let (started, mut moved, mut freed, mut steps, mut longest) = (Instant::now(), 0, 0, 0_u32, 0.0_f64);
    loop {
        let step = Instant::now();
        let done = store.compact_step(STEP_BYTES).unwrap();
        longest = longest.max(step.elapsed().as_secs_f64());
        (moved, freed, steps) = (moved + done.moved_bytes, freed + done.freed_segments, steps + 1);
        if !done.more {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "compact: {:.0} MB moved in {seconds:.2} s ({:.0} MB/s), {steps} steps, longest {:.0} ms; {freed} segments freed; \
         files {:.0} -> {:.0} MB; free_bytes +{:.0} MB",
        moved as f64 / 1e6,
        moved as f64 / 1e6 / seconds,
        longest * 1e3,
        before as f64 / 1e6,
        file_bytes(&directory) as f64 / 1e6,
        (store.status().free_bytes as f64 - free_before as f64) / 1e6
    );
    drop(store);
    drop(open_figures(&directory, 3));
    std::fs::remove_dir_all(&directory).unwrap();
}
