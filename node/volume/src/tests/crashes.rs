//! The power fails during every call of a workload; what was acknowledged must be there, what was not, whole or absent.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::crash;

/// What the workload was told.
#[derive(Default, Clone)]
pub(super) struct Told {
    /// Acknowledged shards: number to length.
    pub(super) stored: BTreeMap<u64, usize>,
    /// Acknowledged deletions.
    pub(super) deleted: BTreeSet<u64>,
    /// Written or deleted without an answer: number to length, if it is there.
    pub(super) open: BTreeMap<u64, usize>,
    /// What the note may say: what was acknowledged last, and what was saved since without an answer.
    notes: Vec<Option<Vec<u8>>>,
}

pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(super) fn small(number: u64) -> usize {
    usize::try_from(number).unwrap()
}

impl Told {
    pub(super) fn append(
        &mut self,
        store: &Store,
        numbers: std::ops::Range<u64>,
        random: &mut Random,
    ) -> Result<(), Error> {
        let lens: Vec<(u64, usize)> = numbers.map(|number| (number, 1 + small(random.below(30_000)))).collect();
        self.open.extend(lens.iter().copied());
        let shards: Vec<_> = lens.iter().map(|&(number, len)| shard(number, len)).collect();
        for (answer, (number, len)) in store.append(&shards).into_iter().zip(lens) {
            answer?;
            self.open.remove(&number);
            self.stored.insert(number, len);
        }
        Ok(())
    }

    pub(super) fn delete(&mut self, store: &Store, numbers: &[u64]) -> Result<(), Error> {
        for number in numbers {
            if let Some(len) = self.stored.remove(number) {
                self.open.insert(*number, len);
            }
        }
        let ids: Vec<_> = numbers.iter().map(|&number| id(number)).collect();
        store.delete(&ids, LogIndex(7))?;
        for number in numbers {
            self.open.remove(number);
            self.deleted.insert(*number);
        }
        Ok(())
    }

    fn save_note(&mut self, store: &Store, random: &mut Random) -> Result<(), Error> {
        let note = blake3_like(random.below(1 << 40), small(random.below(9000)));
        if self.notes.is_empty() {
            self.notes.push(None);
        }
        self.notes.push(Some(note.clone()));
        store.save_note("scrub", &note)?;
        self.notes = vec![Some(note)];
        Ok(())
    }

    pub(super) fn check(&self, store: &Store, context: &str) {
        let note = store.load_note("scrub");
        assert!(self.notes.contains(&note) || (self.notes.is_empty() && note.is_none()), "{context}: {note:?}");
        for (&number, &len) in &self.stored {
            let held = bytes_of(store, number);
            let held = held.unwrap_or_else(|error| panic!("{context}: acknowledged shard {number}: {error}"));
            assert_eq!(held, shard(number, len).1, "{context}: shard {number}");
        }
        for &number in &self.deleted {
            assert!(!store.contains(id(number)), "{context}: deleted shard {number} is back");
        }
        for (&number, &len) in &self.open {
            match bytes_of(store, number) {
                Ok(held) => assert_eq!(held, shard(number, len).1, "{context}: shard {number} half visible"),
                Err(error) => assert!(matches!(error, Error::NotFound { .. }), "{context}: shard {number}: {error}"),
            }
        }
    }
}

/// Formats if need be, opens, appends, deletes, rolls, reuses, dies without losing power and goes on.
fn workload(disk: &mut SimDisk, told: &mut Told, seed: u64, steps: u64) -> Result<(), Error> {
    let mut random = Random(seed * 2 + 1);
    let mut life = seed * 1000 + 1;
    let open_or_format = |disk: &SimDisk, life: u64| match open(disk, life) {
        Err(Error::NotFormatted) => {
            Store::format(disk, &identity())?;
            open(disk, life)
        }
        other => other,
    };
    let (mut store, _) = open_or_format(disk, life)?;
    let mut next = 1 + told.stored.keys().chain(told.deleted.iter()).chain(told.open.keys()).max().unwrap_or(&0);
    for _ in 0..steps {
        match random.below(11) {
            0..4 => {
                let count = 1 + random.below(4);
                told.append(&store, next..next + count, &mut random)?;
                next += count;
            }
            4 | 5 => {
                let gap = 1 + small(random.below(2));
                let numbers = told.stored.keys().copied().step_by(gap).take(small(1 + random.below(5)));
                told.delete(&store, &numbers.collect::<Vec<u64>>())?;
            }
            6 => store.prepare()?,
            7 | 8 => drop(store.compact_step(1)?),
            9 => told.save_note(&store, &mut random)?,
            _ => {
                drop(store);
                // The process dies; the new one must not acknowledge what only memory holds.
                *disk = if random.below(2) == 0 { disk.restart() } else { disk.clone() };
                life += 1;
                store = open(disk, life)?.0;
                told.check(&store, "after a restart");
            }
        }
    }
    Ok(())
}

/// After a crash: opens (crashing again on the way, sometimes), checks, works on, checks again.
fn recovers(mut disk: SimDisk, mut told: Told, seed: u64, crossed: &mut BTreeSet<&'static str>) {
    for again in 0..seed % 4 {
        disk.crash_at(1 + again);
        let result = open(&disk, seed * 100 + again).map(|(store, _)| {
            let mut random = Random(seed | 1);
            let _ = told.append(&store, 100_000 + 10 * again..100_003 + 10 * again, &mut random);
        });
        if disk.is_dead() {
            crossed.insert(crash::struck());
        }
        drop(result);
        disk = disk.crash(seed + again);
    }
    let context = format!("seed {seed}");
    match open(&disk, seed * 100 + 50) {
        Ok((store, _)) => {
            told.check(&store, &context);
            // Open questions are settled by asking again.
            for (number, len) in std::mem::take(&mut told.open) {
                put(&store, number, len).unwrap_or_else(|error| panic!("{context}: repeat of {number}: {error}"));
                told.stored.insert(number, len);
                told.deleted.remove(&number);
            }
            drop(store);
            workload(&mut disk, &mut told, seed + 77, 6).unwrap_or_else(|error| panic!("{context}: usable: {error}"));
        }
        Err(Error::NotFormatted) => {
            assert!(told.stored.is_empty(), "{context}");
            let mut next = told;
            workload(&mut disk, &mut next, seed, 3).unwrap();
            return;
        }
        Err(error) => panic!("{context}: cannot open: {error:?}"),
    }
    let (store, _) = open(&disk.crash(seed ^ 5), seed * 100 + 60).unwrap();
    told.check(&store, &context);
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_call() {
    let mut crossed = BTreeSet::new();
    for (seed, unit) in [(1, 4096), (2, 512), (3, 4096), (4, 512)] {
        let simulated = pacsvault_simdisk::Options { torn_unit_bytes: unit, ..Default::default() };
        let mut at = 1;
        loop {
            let mut disk = SimDisk::new(simulated.clone(), seed);
            let mut told = Told::default();
            disk.crash_at(at);
            let result = workload(&mut disk, &mut told, seed, 40);
            if !disk.is_dead() {
                result.unwrap();
                break;
            }
            crossed.insert(crash::struck());
            for salt in 0..3 {
                recovers(disk.survivors(seed * 10_000 + at * 10 + salt), told.clone(), at * 4 + salt, &mut crossed);
            }
            at += 1;
        }
    }
    planted(&mut crossed);
    let sources = [
        include_str!("../store.rs"),
        include_str!("../writer.rs"),
        include_str!("../recover.rs"),
        include_str!("../segment.rs"),
        include_str!("../note.rs"),
        include_str!("../mend.rs"),
    ];
    let tags = |source: &'static str| source.split("CRASH(").skip(1).map(|rest| rest.split(')').next().unwrap());
    let tags: BTreeSet<&str> = sources.into_iter().flat_map(tags).collect();
    for tag in &crossed {
        println!("CRASH-CROSSED {tag}");
    }
    let missing: Vec<_> = tags.difference(&crossed).collect();
    assert!(missing.is_empty(), "no crash at {missing:?}");
    assert!(tags.len() >= 30, "{tags:?}");
}

/// Crash points on paths that need a fault first.
fn planted(crossed: &mut BTreeSet<&'static str>) {
    use pacsvault_simdisk::OpKind;
    use std::io::ErrorKind;
    let mut cross = |prepare: &dyn Fn() -> SimDisk, work: &dyn Fn(&SimDisk)| {
        for at in 1.. {
            let disk = prepare();
            let before = disk.ops();
            disk.crash_at(before + at);
            work(&disk);
            if !disk.is_dead() {
                break;
            }
            crossed.extend([crash::last(), crash::struck()]);
            let after = disk.crash(at);
            if open(&after, 5).is_err() {
                Store::format(&after, &identity()).unwrap();
            }
            let (store, _) = open(&after, 6).unwrap();
            put(&store, 77, 100).unwrap();
        }
    };
    let half_formatted = || {
        let disk = SimDisk::new(pacsvault_simdisk::Options::default(), 1);
        disk.create("volume.id.tmp", 4096).unwrap();
        disk
    };
    // One segment of five shards: three deleted, one to be moved, and one that rots and keeps its segment from being freed.
    let half_dead = || {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        (1..=12).for_each(|number| put(&store, number, 20_000).unwrap());
        store.delete(&[id(1), id(2), id(3)], LogIndex(1)).unwrap();
        let segment = segment_files(&disk).remove(0);
        disk.flip(&segment, 8192 + 3 * 20_480 + 9000, 0);
        disk
    };
    cross(&half_dead, &|disk| {
        if let Ok((store, _)) = open(disk, 2)
            && let Ok(done) = store.compact_step(1)
        {
            assert_eq!((done.moved_shards, done.damaged), (1, vec![id(4)]));
        }
    });
    // A segment that is dead but for a tombstone against a living one.
    let pinned = || {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        (1..=11).for_each(|number| put(&store, number, 20_000).unwrap());
        store.delete(&[id(1)], LogIndex(1)).unwrap();
        (12..=20).for_each(|number| put(&store, number, 20_000).unwrap());
        store.delete(&(11..=20).map(id).collect::<Vec<_>>(), LogIndex(2)).unwrap();
        disk
    };
    cross(&pinned, &|disk| {
        if let Ok((store, _)) = open(disk, 2)
            && store.compact_step(1).is_ok()
        {
            assert_eq!(store.list(None, 30), (2..=10).map(id).collect::<Vec<_>>());
        }
    });
    let rotten_head = || {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        (1..=3).for_each(|number| put(&store, number, 20_000).unwrap());
        disk.flip(&segment_files(&disk).remove(0), 4096 + 40, 1);
        disk
    };
    cross(&rotten_head, &|disk| {
        if let Ok((store, _)) = open(disk, 2)
            && let Ok(mended) = store.mend_guides()
        {
            assert_eq!((mended, store.list(None, 30)), (1, (1..=3).map(id).collect::<Vec<_>>()));
        }
    });
    // Behind two heads lies the record of the first life, in five sectors; then the mark, twice.
    let rotten_mark = || {
        let disk = formatted();
        put(&open(&disk, 1).unwrap().0, 1, 20_000).unwrap();
        let (store, _) = open(&disk, 2).unwrap();
        (2..=3).for_each(|number| put(&store, number, 20_000).unwrap());
        disk.flip(&segment_files(&disk).remove(0), 7 * 4096 + 100, 1);
        disk
    };
    cross(&rotten_mark, &|disk| {
        if let Ok((store, _)) = open(disk, 3) {
            assert_eq!(store.list(None, 30), (1..=3).map(id).collect::<Vec<_>>(), "by the other copy");
            disk.flip(&segment_files(disk).remove(0), 8 * 4096 + 100, 1);
            if let Ok(mended) = store.mend_guides() {
                assert_eq!(mended, 1, "of the copy that it found");
            }
        }
    });
    let crowded = || {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        (1..=40).for_each(|number| put(&store, number, 20_000).unwrap());
        disk
    };
    cross(&crowded, &|disk| {
        if let Ok((store, _)) = open(disk, 2) {
            let _ = store.delete(&(1..=40).map(id).collect::<Vec<_>>(), LogIndex(2));
        }
    });
    cross(&formatted, &|disk| {
        if let Ok((store, _)) = open(disk, 2) {
            let _ = disk.create("scrub.note.tmp", 10);
            let _ = store.save_note("scrub", b"cursor");
        }
    });
    cross(&half_formatted, &|disk| drop(Store::format(disk, &identity())));
    cross(&formatted, &|disk| {
        if let Ok((store, _)) = open(disk, 1) {
            disk.fail(OpKind::Sync, 1, ErrorKind::Other);
            let _ = put(&store, 1, 100);
        }
        if let Ok((store, _)) = open(disk, 2) {
            let _ = store.clear_poison_marker();
        }
    });
    cross(&formatted, &|disk| {
        if let Ok((store, _)) = open(disk, 1) {
            disk.fail(OpKind::Create, 1, ErrorKind::StorageFull);
            let _ = put(&store, 1, 100);
        }
    });
}

#[test]
fn a_torn_segment_header_never_hides_or_shows_records() {
    // All crashes within the first roll and the one after, many seeds each.
    for seed in 0..150_u64 {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        let start = disk.ops();
        disk.crash_at(start + 1 + seed % 12);
        let mut acknowledged = Vec::new();
        for number in 0..3 {
            if put(&store, number, 90_000).is_ok() {
                acknowledged.push(number);
            }
        }
        let (store, recovery) = open(&disk.crash(seed), 2).unwrap();
        assert_eq!(recovery.damaged_segments, 0, "seed {seed}");
        for number in acknowledged {
            assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 90_000).1, "seed {seed}");
        }
    }
}

#[test]
fn what_a_dead_process_left_in_memory_is_synced_before_a_retry_is_acknowledged() {
    for seed in 0..50 {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        put(&store, 1, 100).unwrap();
        // The next batch is a write and a sync; the process dies between the two, the power stays.
        disk.crash_at(disk.ops() + 2);
        assert!(put(&store, 2, 20_000).is_err());
        let disk = disk.restart();
        disk.crash_at(u64::MAX);
        let (store, recovery) = open(&disk, 2).unwrap();
        assert_eq!(recovery.shards, 2, "the kernel still had it");
        let ops = disk.ops();
        put(&store, 2, 20_000).unwrap();
        assert_eq!(disk.ops(), ops, "acknowledged without a write");
        let (store, _) = open(&disk.crash(seed), 3).unwrap();
        assert_eq!(bytes_of(&store, 2).unwrap(), shard(2, 20_000).1, "seed {seed}");
    }
}

#[test]
fn a_torn_record_stays_void_when_later_batches_are_durable() {
    let mut torn = 0;
    for seed in 0..200 {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        put(&store, 1, 100).unwrap();
        disk.crash_at(disk.ops() + 1 + seed % 2);
        let batch: Vec<_> = (10..15).map(|number| shard(number, 12_000)).collect();
        assert!(store.append(&batch).iter().all(Result::is_err));
        let disk = disk.crash(seed);
        let (store, recovery) = open(&disk, 2).unwrap();
        torn += recovery.void_records;
        let held = store.list(None, 99);
        // Two batches, so that the second says that the first was durable, and all before it.
        put(&store, 100, 50).unwrap();
        put(&store, 101, 50).unwrap();
        let (store, recovery) = open(&disk.restart(), 3).unwrap();
        assert_eq!(recovery.void_records, 0);
        assert_eq!(store.list(None, 99), [&held[..], &[id(100), id(101)]].concat(), "seed {seed}");
        for number in 10..15 {
            match bytes_of(&store, number) {
                Ok(bytes) => assert_eq!(bytes, shard(number, 12_000).1),
                Err(error) => assert!(matches!(error, Error::NotFound { .. }), "seed {seed}: {error}"),
            }
        }
    }
    assert!(torn > 50, "{torn} torn records");
}
