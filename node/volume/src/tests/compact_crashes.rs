//! The power fails during every call of compaction, over segments that take several steps and hold tombstones for others.

use std::collections::BTreeSet;

use super::{
    crashes::{Random, Told, small},
    *,
};
use crate::crash;

/// As [`super::open`], with segments of several steps.
fn open(disk: &SimDisk, life: u64) -> Result<(Store, Recovery), Error> {
    let mut options = options(life);
    options.segment_bytes = Some(512 << 10);
    Store::open(Arc::new(disk.clone()), &owner(), options)
}

fn next_number(told: &Told) -> u64 {
    1 + told.stored.keys().chain(&told.deleted).chain(told.open.keys()).max().unwrap_or(&0)
}

/// Fills segments with shards and tombstones, deletes most, then compacts while it goes on writing and deleting.
fn workload(disk: &SimDisk, told: &mut Told, seed: u64) -> Result<(), Error> {
    let mut random = Random(seed * 2 + 1);
    let (store, _) = open(disk, seed * 1000 + 1)?;
    for _ in 0..20 {
        let next = next_number(told);
        told.append(&store, next..next + 4, &mut random)?;
        let first = told.stored.keys().copied().nth(small(random.below(3)));
        told.delete(&store, &first.into_iter().collect::<Vec<_>>())?;
    }
    let dying: Vec<u64> = told.stored.keys().copied().filter(|_| random.below(10) < 7).collect();
    for some in dying.chunks(7) {
        told.delete(&store, some)?;
    }
    for _ in 0..12 {
        let done = store.compact_step(1)?;
        assert!(done.damaged.is_empty());
        let next = next_number(told);
        match random.below(4) {
            0 => told.append(&store, next..next + 2, &mut random)?,
            1 => {
                let at = small(random.below(told.stored.len() as u64));
                let one: Vec<u64> = told.stored.keys().copied().skip(at).take(1).collect();
                told.delete(&store, &one)?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn compact_to_the_end(store: &Store) -> Result<u64, Error> {
    let mut freed = 0;
    for _ in 0..200 {
        let done = store.compact_step(1)?;
        freed += done.freed_segments;
        if !done.more {
            return Ok(freed);
        }
    }
    panic!("compaction does not end");
}

/// After a crash: opens, sometimes crashing again within the compaction that follows, and checks after each life.
fn recovers(mut disk: SimDisk, told: &Told, seed: u64, crossed: &mut BTreeSet<&'static str>) {
    for again in 0..seed % 5 {
        let (store, _) = open(&disk, seed * 100 + again).unwrap();
        told.check(&store, &format!("seed {seed}, life {again}"));
        disk.crash_at(disk.ops() + 1 + (seed + 3 * again) % 9);
        let _ = compact_to_the_end(&store);
        if disk.is_dead() {
            crossed.insert(crash::struck());
        }
        drop(store);
        disk = disk.crash(seed + again);
    }
    let (store, _) = open(&disk, seed * 100 + 50).unwrap();
    told.check(&store, &format!("seed {seed}"));
    compact_to_the_end(&store).unwrap();
    told.check(&store, &format!("seed {seed}, compacted"));
    // Deleting what is left and writing over all that is free brings nothing back.
    let mut told = told.clone();
    let all: Vec<u64> = told.stored.keys().copied().collect();
    told.delete(&store, &all).unwrap();
    let mut random = Random(seed | 1);
    told.append(&store, 900_000..900_040, &mut random).unwrap();
    compact_to_the_end(&store).unwrap();
    drop(store);
    let (store, _) = open(&disk.crash(seed ^ 9), seed * 100 + 60).unwrap();
    told.check(&store, &format!("seed {seed}, emptied"));
}

/// Every call of the workload from the first step of compaction on.
fn crossings(crossed: &mut BTreeSet<&'static str>) {
    for (seed, unit) in [(1, 4096), (2, 512), (3, 4096)] {
        let simulated = pacsvault_simdisk::Options { torn_unit_bytes: unit, ..Default::default() };
        let mut at = 1;
        loop {
            let disk = SimDisk::new(simulated.clone(), seed);
            Store::format(&disk, &identity()).unwrap();
            let mut told = Told::default();
            // What comes before is written by calls that other tests let fail.
            disk.crash_at(disk.ops() + 80 + at);
            let result = workload(&disk, &mut told, seed);
            if !disk.is_dead() {
                result.unwrap();
                break;
            }
            crossed.insert(crash::struck());
            for salt in 0..2 {
                recovers(disk.survivors(seed * 10_000 + at * 10 + salt), &told, at * 3 + salt, crossed);
            }
            at += 1;
        }
        assert!(at > 40, "{at} calls");
    }
}

#[test]
fn compaction_survives_a_crash_at_every_call() {
    let mut crossed = BTreeSet::new();
    crossings(&mut crossed);
    for tag in &crossed {
        println!("CRASH-CROSSED {tag}");
    }
    for tag in ["volume.compact.1", "volume.compact.2", "volume.compact.3", "volume.compact.4", "volume.reuse.1"] {
        assert!(crossed.contains(tag), "{tag} of {crossed:?}");
    }
}

#[test]
fn a_copy_torn_by_a_crash_never_costs_the_shard() {
    // All crashes within the batch of copies, many seeds each: of a torn batch single records survive.
    let mut both = 0;
    for seed in 0..300 {
        let disk = formatted();
        let (store, _) = super::open(&disk, 1).unwrap();
        (1..=12).for_each(|number| put(&store, number, 20_000).unwrap());
        store.delete(&[id(1), id(3), id(5)], LogIndex(1)).unwrap();
        disk.crash_at(disk.ops() + 1 + seed % 2);
        assert!(store.compact_step(1).is_err());
        let disk = disk.crash(seed);
        let (store, _) = super::open(&disk, 2).unwrap();
        for number in [2, 4, 6, 7, 8, 9, 10, 11, 12] {
            assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 20_000).1, "seed {seed}");
        }
        both += u64::from(!store.read_table().owed(9).is_empty());
        // Deleted now, and gone although both records of it are on the disk.
        store.delete(&[id(2), id(4)], LogIndex(2)).unwrap();
        compact_to_the_end(&store).unwrap();
        let (store, _) = super::open(&disk.crash(seed), 3).unwrap();
        assert_eq!(store.list(None, 20), [6, 7, 8, 9, 10, 11, 12].map(id), "seed {seed}");
    }
    assert!(both > 50, "{both} crashes left an original and its copy");
}
