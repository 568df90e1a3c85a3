//! Appends of 128 KiB shards with 1, 8 and 32 writers against raw preallocated, pre-written `write` + `fdatasync` of the
//! same sizes on the same disk in the same run; then the time and memory that opening takes.
//!
//! `cargo run --release -p pacsvault-volume --example append_bench -- DIR [MiB per measurement]`
#![allow(clippy::unwrap_used, reason = "a benchmark may stop at any surprise")]
#![allow(clippy::cast_precision_loss, reason = "figures for people")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, Mutex, mpsc},
    time::{Duration, Instant},
};

use bytes::Bytes;
use pacsvault_core::{
    checksum::chunk_crcs,
    ids::{ClusterId, Digest, Incarnation, InstanceId, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::profile::Code,
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::{
    BoxFuture,
    disk::Disk,
    env::{Env, Job, MonoTime},
};
use pacsvault_volume::{FileDisk, Identity, Options, Owner, Purpose, Store, Volume, file_disk::FileDiskOptions};

const SHARD_BYTES: usize = 128 << 10;
/// One segment takes a whole measurement, so that only appending is measured, as in the raw rows.
const SEGMENT_BYTES: u64 = 640 << 20;
/// Rows are repeated alternately; the median counts, for others may use the disk too.
const ROUNDS: usize = 3;

/// Threads for jobs; the bench needs nothing else of an environment.
struct Threads(Mutex<mpsc::Sender<Job>>);

impl Threads {
    fn new(count: usize) -> Self {
        let (sender, receiver) = mpsc::channel::<Job>();
        let receiver = Arc::new(Mutex::new(receiver));
        for _ in 0..count {
            let receiver = receiver.clone();
            std::thread::spawn(move || {
                loop {
                    let job = receiver.lock().unwrap().recv();
                    let Ok(job) = job else { return };
                    job();
                }
            });
        }
        Self(Mutex::new(sender))
    }
}

impl Env for Threads {
    fn now(&self) -> MonoTime {
        MonoTime::default()
    }
    fn wall(&self) -> WallMillis {
        WallMillis(0)
    }
    fn sleep(&self, _: Duration) -> BoxFuture<'static, ()> {
        Box::pin(std::future::pending())
    }
    fn spawn(&self, _: BoxFuture<'static, ()>) {}
    fn run_blocking(&self, job: Job) {
        self.0.lock().unwrap().send(job).unwrap();
    }
    fn random(&self) -> u64 {
        4
    }
}

struct Cost {
    started: Instant,
    cpu: f64,
    written: u64,
}

fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}

fn proc_number(path: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(path).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

impl Cost {
    fn begin() -> Self {
        Self { started: Instant::now(), cpu: cpu_seconds(), written: proc_number("/proc/self/io", "write_bytes:") }
    }
    fn end(self, what: &str, bytes: u64) -> f64 {
        let seconds = self.started.elapsed().as_secs_f64();
        let rate = bytes as f64 / 1e6 / seconds;
        let cpu = (cpu_seconds() - self.cpu) / (bytes as f64 / 1e9);
        let written = proc_number("/proc/self/io", "write_bytes:") - self.written;
        let amplification = written as f64 / bytes as f64;
        println!("{what:<44} {rate:>7.0} MB/s  {cpu:>5.2} CPU s/GB  {amplification:>5.3} bytes written per byte");
        rate
    }
}

fn shard(number: u32, data: &Bytes, crcs: &[u32]) -> ShardHeader {
    let instance = InstanceId::new(WallMillis(1), u128::from(number).wrapping_mul(0x9E37_79B9_7F4A_7C15_F39C_C060));
    ShardHeader {
        id: ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(1) },
        code: Code::new(4, 2).unwrap(),
        stripe_bytes: 4 * data.len() as u64,
        digest: Digest([7; 32]),
        merkle_path: vec![Digest([1; 32]); 3],
        chunk_crcs: crcs.to_vec(),
    }
}

/// One thread writes `writers` shards and syncs, over and over: what group commit of so many writers could do at best.
fn raw(directory: &Path, writers: usize, total: u64, prewrite: bool, direct: bool) -> f64 {
    let disk = FileDisk::open(directory, FileDiskOptions { direct }).unwrap();
    let file = disk.create("raw", total).unwrap();
    if prewrite {
        let zeros = vec![0; 1 << 20];
        for at in 0..total >> 20 {
            file.write_at(at << 20, &[&zeros]).unwrap();
        }
    }
    file.sync_data().unwrap();
    let data = vec![5; SHARD_BYTES * writers];
    let cost = Cost::begin();
    let mut at = 0;
    while at + data.len() as u64 <= total {
        file.write_at(at, &[&data]).unwrap();
        file.sync_data().unwrap();
        at += data.len() as u64;
    }
    let what = format!(
        "raw {writers:>2} x 128 KiB per sync{}{}",
        if prewrite { ", pre-written" } else { ", allocated" },
        if direct { ", direct" } else { "" }
    );
    let rate = cost.end(&what, at);
    disk.remove("raw").unwrap();
    rate
}

fn identity() -> Identity {
    Identity {
        cluster: ClusterId([1; 16]),
        node: "bench".parse().unwrap(),
        incarnation: Incarnation([2; 16]),
        volume: VolumeId([3; 16]),
    }
}

fn options(prewrite: bool, life: u64) -> Options {
    let mut options = Options::new(life);
    options.prewrite = prewrite;
    options.segment_bytes = Some(SEGMENT_BYTES);
    options
}

fn open(directory: &Path, prewrite: bool, direct: bool, life: u64) -> Store {
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(directory, FileDiskOptions { direct }).unwrap());
    if disk.names().unwrap().is_empty() {
        Store::format(&*disk, &identity()).unwrap();
    }
    let owner = Owner { cluster: identity().cluster, node: identity().node };
    Store::open(disk, &owner, options(prewrite, life)).unwrap().0
}

fn volume(directory: &Path, writers: usize, total: u64, prewrite: bool, direct: bool) -> f64 {
    let store = open(directory, prewrite, direct, 1);
    if prewrite {
        // Pre-writing happens ahead of need; what it costs is the difference to the other rows.
        store.prepare().unwrap();
    }
    let volume = Volume::new(store, Arc::new(Threads::new(4)));
    let data = Bytes::from(vec![5; SHARD_BYTES]);
    let crcs = chunk_crcs(&data);
    let shards = u32::try_from(total / SHARD_BYTES as u64).unwrap();
    let each = shards / u32::try_from(writers).unwrap();
    let cost = Cost::begin();
    let threads: Vec<_> = (0..u32::try_from(writers).unwrap())
        .map(|writer| {
            let (volume, data, crcs) = (volume.clone(), data.clone(), crcs.clone());
            std::thread::spawn(move || {
                for number in 0..each {
                    let header = shard(writer * each + number, &data, &crcs);
                    futures::executor::block_on(volume.put(header, data.clone(), Purpose::Client)).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let what = format!(
        "volume, {writers:>2} writers{}{}",
        if prewrite { ", pre-written" } else { ", allocated" },
        if direct { ", direct" } else { "" }
    );
    cost.end(&what, u64::from(each) * writers as u64 * SHARD_BYTES as u64)
}

fn fill(directory: &Path) {
    let data = Bytes::from(vec![5; 1024]);
    let crcs = chunk_crcs(&data);
    let store = open(directory, false, true, 1);
    for batch in 0..100_u32 {
        let shards: Vec<_> = (0..1000).map(|at| (shard(batch * 1000 + at, &data, &crcs), data.clone())).collect();
        store.append(&shards).into_iter().for_each(|answer| assert!(answer.is_ok()));
    }
}

/// Resident memory and time to open a volume of 100 000 shards of 1 KiB.
fn open_time(directory: &Path) {
    // Another process fills it, so that this one's memory is that of opening alone.
    let filled = Command::new(std::env::current_exe().unwrap()).arg(directory).arg("fill").status().unwrap();
    assert!(filled.success());
    let before = proc_number("/proc/self/status", "VmRSS:");
    let started = Instant::now();
    let store = open(directory, false, true, 2);
    let seconds = started.elapsed().as_secs_f64();
    let after = proc_number("/proc/self/status", "VmRSS:");
    let shards = store.status().shards;
    println!(
        "open: {shards} shards in {seconds:.3} s; about {} bytes resident per shard",
        after.saturating_sub(before) * 1024 / shards
    );
}

fn main() {
    let mut args = std::env::args().skip(1);
    let directory = PathBuf::from(args.next().expect("usage: append_bench DIR [MiB]"));
    let second = args.next();
    if second.as_deref() == Some("fill") {
        fill(&directory);
        return;
    }
    let total = second.map_or(256, |mib| mib.parse::<u64>().unwrap()) << 20;
    let scratch = |name: &str| {
        let path = directory.join(name);
        let _ = std::fs::remove_dir_all(&path);
        path
    };
    open_time(&scratch("open"));
    for (direct, prewrite) in [(true, true), (true, false), (false, true), (false, false)] {
        for writers in [1, 8, 32] {
            let size = if writers == 1 { total / 4 } else { total };
            let mut rates = [const { Vec::new() }; 2];
            for _ in 0..ROUNDS {
                rates[0].push(raw(&scratch("raw"), writers, size, prewrite, direct));
                rates[1].push(volume(&scratch("volume"), writers, size, prewrite, direct));
            }
            let [reference, ours] = rates.map(|mut rates| {
                rates.sort_by(f64::total_cmp);
                rates[ROUNDS / 2]
            });
            println!("    {writers} writers: median {ours:.0} MB/s, {:.0} % of raw", 100.0 * ours / reference);
        }
    }
    for name in ["open", "raw", "volume"] {
        scratch(name);
    }
}
