//! Real processes that are killed: what they acknowledged is there.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use pacsvault_kv::{Journal, Options, RocksKv};
use pacsvault_ports::kv::{Batch, Durability, Kv};

const DIR: &str = "PACSVAULT_KV_TEST_DIR";
const ROUNDS: u64 = 20;

fn options(journal: Journal) -> Options {
    let options = if journal == Journal::Synced { Options::log() } else { Options::state() };
    // Small buffers, so that memtables are written in the background all the time.
    options.with_block_cache_bytes(1 << 20).with_write_buffer_bytes(64 << 10)
}

fn number_of(store: &dyn Kv) -> u64 {
    store.get(b"last").unwrap().map_or(0, |last| u64::from_be_bytes(last.try_into().unwrap()) + 1)
}

fn row(number: u64) -> (Vec<u8>, Vec<u8>) {
    let length = usize::try_from(number.wrapping_mul(2_654_435_761) % 700).unwrap();
    ([b"n".as_slice(), &number.to_be_bytes()].concat(), vec![number.to_be_bytes()[7]; length])
}

fn write_for_ever(dir: &Path, journal: Journal) {
    let store = RocksKv::open(dir, options(journal)).unwrap();
    let mut out = std::io::stdout();
    for number in number_of(&store).. {
        let (key, value) = row(number);
        let mut batch = Batch::default();
        batch.put(key, value);
        batch.put(b"last".to_vec(), number.to_be_bytes());
        let ack = match journal {
            Journal::Synced => number % 4 == 3,
            Journal::Off => false,
        };
        store.write(batch, if ack { Durability::Synced } else { Durability::Buffered }).unwrap();
        let flushed = journal == Journal::Off && number % 50 == 49;
        if flushed {
            store.flush().unwrap();
        }
        if ack || flushed {
            writeln!(out, "ack {number}").unwrap();
            out.flush().unwrap();
        }
    }
}

fn install_for_ever(dir: &Path) {
    let store = RocksKv::open(&dir.join("target"), options(Journal::Off)).unwrap();
    let checkpoints = ["a", "b"].map(|name| {
        let source = RocksKv::open(&dir.join(name), options(Journal::Off)).unwrap();
        let mut batch = Batch::default();
        for number in 0..300_u32 {
            batch.put(number.to_be_bytes(), name);
        }
        source.write(batch, Durability::Buffered).unwrap();
        source.checkpoint().unwrap()
    });
    let mut out = std::io::stdout();
    let first = usize::from(store.get(&0_u32.to_be_bytes()).unwrap().as_deref() == Some(b"a"));
    for turn in first.. {
        let checkpoint = &checkpoints[turn % 2];
        let mut install = store.begin_install(&turn.to_string()).unwrap();
        for file in checkpoint.files() {
            let at = install.received(&file.name).unwrap();
            install.write(&file.name, at, &checkpoint.read(&file.name, at, usize::MAX).unwrap()).unwrap();
        }
        install.finish(checkpoint.files()).unwrap();
        writeln!(out, "ack {}", turn % 2).unwrap();
        out.flush().unwrap();
    }
}

/// Not a test of its own: what the killed processes run.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    match dir.file_name().unwrap().to_str().unwrap() {
        "journal" => write_for_ever(&dir, Journal::Synced),
        "no-journal" => write_for_ever(&dir, Journal::Off),
        _ => install_for_ever(&dir),
    }
}

/// Starts the child on `dir`, kills it after `acks` acknowledgements; returns the last number it acknowledged.
fn killed_after(dir: &Path, acks: u64) -> u64 {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut seen = 0;
    let mut last = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines() {
        // The harness may have printed its own words on the line before.
        let line = line.unwrap();
        if let Some((_, number)) = line.rsplit_once("ack ") {
            last = Some(number.parse().unwrap());
            seen += 1;
            if seen == acks {
                // The child goes on meanwhile, so it dies anywhere; what it still acknowledges is read to the end.
                child.kill().unwrap();
            }
        }
    }
    child.wait().unwrap();
    last.expect("it acknowledged something")
}

/// Well spread, and the same in every run.
fn spread(round: u64, below: u64) -> u64 {
    round.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) % below + 1
}

fn acknowledged_writes_survive(name: &str, journal: Journal, acks_below: u64) {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join(name);
    for round in 0..ROUNDS {
        let acked = killed_after(&dir, spread(round, acks_below));
        let store = RocksKv::open(&dir, options(journal)).unwrap();
        let count = number_of(&store);
        assert!(count > acked, "round {round}: {acked} was acknowledged, only {count} are there");
        let rows = store.scan(b"n", b"o", usize::MAX).unwrap();
        assert!(rows.into_iter().eq((0..count).map(row)), "round {round}: not a prefix");
    }
}

#[test]
fn synced_writes_survive_kill_and_form_a_prefix() {
    acknowledged_writes_survive("journal", Journal::Synced, 200);
}

#[test]
fn flushed_writes_survive_kill_and_form_a_prefix() {
    acknowledged_writes_survive("no-journal", Journal::Off, 12);
}

#[test]
fn an_install_cut_short_by_kill_leaves_the_old_content_or_the_new() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("install");
    for round in 0..ROUNDS / 2 {
        let acked = killed_after(&dir, spread(round, 5));
        let store = RocksKv::open(&dir.join("target"), options(Journal::Off)).unwrap();
        let rows = store.scan(&[], &[0xff; 5], usize::MAX).unwrap();
        assert_eq!(rows.len(), 300, "round {round}, acknowledged {acked}");
        assert!(rows.iter().all(|(_, value)| value == &rows[0].1), "round {round}: a mixture");
    }
}
