//! Proving shards, replacing damaged ones, losing everything but the segments, and rot anywhere in them.

use std::collections::BTreeSet;

use pacsvault_core::merkle;

use super::*;

/// The three shards of one stripe, with true paths, and its root.
fn stripe(number: u64, len: usize) -> (Vec<(ShardHeader, Bytes)>, Digest) {
    let mut shards: Vec<_> = (0..3_u8)
        .map(|index| {
            let (mut header, data) = shard(1000 * number + u64::from(index), len);
            header.id = ShardId { shard: ShardIndex(index), ..id(number) };
            (header, data)
        })
        .collect();
    let digests: Vec<Digest> = shards.iter().map(|(header, _)| header.digest).collect();
    for ((header, _), path) in shards.iter_mut().zip(merkle::paths(&digests)) {
        header.merkle_path = path;
    }
    (shards, merkle::root(&digests))
}

#[test]
fn a_sound_shard_proves_itself_up_to_its_root() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    let (shards, root) = stripe(1, 90_000);
    assert!(store.append(&shards).iter().all(Result::is_ok));
    for (header, _) in &shards {
        let verified = store.verify(header.id).unwrap();
        assert_eq!((&verified.header, verified.root), (header, root));
    }
    assert!(matches!(store.verify(id(9)), Err(Error::NotFound { .. })));
    // A wrong digest or an impossible path under right checksums.
    let (mut lying, data) = shard(5, 1000);
    lying.digest = Digest([4; 32]);
    let (mut lost, same) = shard(6, 1000);
    lost.merkle_path.pop();
    assert!(store.append(&[(lying, data), (lost, same)]).iter().all(Result::is_ok));
    assert!(matches!(store.verify(id(5)), Err(Error::Corrupt { .. })));
    assert!(matches!(store.verify(id(6)), Err(Error::Corrupt { .. })));
    // Repair replaces what only its digest betrays.
    put(&store, 5, 1000).unwrap();
    store.verify(id(5)).unwrap();
}

#[test]
fn verify_finds_each_kind_of_damage_and_a_new_put_heals_it() {
    let len = 20_000;
    let (header_at, payload_at) = (8192 + 100, 8192 + 5000);
    for (case, reopen) in [(0, false), (1, false), (2, false), (3, false), (0, true), (1, true), (2, true), (3, true)] {
        let disk = formatted();
        let (mut store, _) = open(&disk, 1).unwrap();
        (1..=3).for_each(|number| put(&store, number, len).unwrap());
        let segment = segment_files(&disk).remove(0);
        match case {
            0 => disk.flip(&segment, header_at, 1),
            1 => disk.flip(&segment, payload_at, 1),
            2 => disk.fail_reads_at(&segment, header_at),
            _ => disk.fail_reads_at(&segment, payload_at),
        };
        if reopen {
            store = open(&disk, 2).unwrap().0;
        }
        let missing = reopen && (case == 0 || case == 2);
        match store.verify(id(1)) {
            Err(Error::NotFound { .. }) => assert!(missing),
            Err(Error::Corrupt { .. }) => assert!(case < 2),
            Err(Error::Read { .. }) => assert!(case >= 2),
            other => panic!("case {case}, {reopen}: {other:?}"),
        }
        assert!(store.verify(id(2)).is_ok() && store.verify(id(3)).is_ok());
        put(&store, 1, len).unwrap();
        assert_eq!(store.verify(id(1)).unwrap().header, shard(1, len).0);
        put(&store, 4, len).unwrap();
        let (store, _) = open(&disk, 3).unwrap();
        for number in 1..=4 {
            assert_eq!(bytes_of(&store, number).unwrap(), shard(number, len).1, "case {case}, {reopen}");
            store.verify(id(number)).unwrap();
        }
        // Deleted, neither the sound record nor the damaged one is there, whatever heals by itself.
        assert_eq!(store.delete(&[id(1)], LogIndex(1)).unwrap(), 1);
        assert!(!open(&disk.restart(), 4).unwrap().0.contains(id(1)), "case {case}, {reopen}");
    }
}

#[test]
fn a_real_directory_is_verified_past_the_page_cache() {
    use crate::{FileDisk, file_disk::FileDiskOptions};
    let directory = tempfile::tempdir().unwrap();
    for direct in [true, false] {
        let path = directory.path().join(format!("direct-{direct}"));
        let disk = Arc::new(FileDisk::open(&path, FileDiskOptions { direct }).unwrap());
        Store::format(&*disk, &identity()).unwrap();
        let (store, _) = Store::open(disk.clone(), &owner(), options(7)).unwrap();
        for number in 0..12 {
            put(&store, number, 20_000).unwrap();
        }
        for number in 0..12 {
            assert_eq!(store.verify(id(number)).unwrap().header, shard(number, 20_000).0);
        }
        store.delete(&[id(0), id(1), id(2), id(5), id(6), id(7)], LogIndex(1)).unwrap();
        let files = || disk.names().unwrap().into_iter().filter(|name| name.starts_with("seg-")).count();
        let before = files();
        while store.compact_step(1).unwrap().more {}
        assert!(files() < before);
        store.save_note("scrub", b"at 7").unwrap();
        drop(store);
        let (store, _) = Store::open(disk.clone(), &owner(), options(8)).unwrap();
        assert_eq!(store.list(None, 99), [3, 4, 8, 9, 10, 11].map(id));
        for number in [3, 4, 8, 9, 10, 11] {
            assert_eq!(store.verify(id(number)).unwrap().header, shard(number, 20_000).0);
        }
        assert_eq!(store.load_note("scrub").unwrap(), b"at 7");
    }
}

#[test]
fn everything_but_segments_and_identity_may_be_lost() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    (0..60).for_each(|number| put(&store, number, 15_000).unwrap());
    store.delete(&(0..60).filter(|number| number % 3 > 0).map(id).collect::<Vec<_>>(), LogIndex(1)).unwrap();
    for _ in 0..4 {
        store.compact_step(1).unwrap();
    }
    (60..66).for_each(|number| put(&store, number, 15_000).unwrap());
    store.prepare().unwrap();
    store.save_note("scrub", b"cursor").unwrap();
    let held = store.list(None, 999);
    assert_eq!(held.len(), 26);
    drop(store);
    let mut lost = 0;
    for name in disk.names().unwrap() {
        if name != "volume.id" && !name.starts_with("seg-") {
            disk.remove(&name).unwrap();
            lost += 1;
        }
    }
    assert!(lost >= 2, "spares and the note");
    let (store, recovery) = open(&disk.restart(), 2).unwrap();
    assert_eq!((store.list(None, 999), recovery.damaged_places), (held, 0));
    for number in (0..60).step_by(3).chain(60..66) {
        assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 15_000).1);
    }
    assert_eq!(store.load_note("scrub"), None);
    put(&store, 100, 15_000).unwrap();
}

/// Record headers and payloads by shard, and everything else that is used, from the bytes of a segment.
struct Used {
    shards: Vec<(u64, std::ops::Range<u64>)>,
}

fn used(store: &Store, numbers: &[u64], segment: u64) -> Used {
    let table = store.read_table();
    let shards = numbers.iter().filter_map(|&number| {
        let place = table.find(id(number)).unwrap();
        (place.sequence() == segment).then(|| (number, place.offset()..place.offset() + place.span_bytes()))
    });
    Used { shards: shards.collect() }
}

#[test]
fn rot_anywhere_costs_what_it_hits_and_never_the_volume() {
    let (mut hit_shards, mut lost_shards) = (0, 0);
    for seed in 1..=60_u64 {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut below = |limit: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % limit
        };
        let disk = formatted();
        let (mut store, _) = open(&disk, 1).unwrap();
        for life in 2..4 {
            for number in 20 * life..20 * life + 20 {
                put(&store, number, 12_000 + small(number)).unwrap();
            }
            store.delete(&[id(20 * life + 3), id(20 * life + 4)], LogIndex(life)).unwrap();
            if life < 3 {
                drop(store);
                store = open(&disk, life).unwrap().0;
            }
        }
        let numbers: Vec<u64> = (40..80).filter(|number| ![3, 4].contains(&(number % 20))).collect();
        let mut hit = BTreeSet::new();
        for name in segment_files(&disk) {
            let sequence = u64::from_str_radix(&name[4..20], 16).unwrap();
            let used = used(&store, &numbers, sequence);
            for _ in 0..below(8) {
                let at = below(128 << 10);
                // Both copies of the mark of a life lie in one sector each: losing both loses what that life wrote behind them.
                let in_shard = used.shards.iter().find(|(_, range)| range.contains(&at));
                if in_shard.is_none() && at >= 8192 {
                    continue;
                }
                hit.extend(in_shard.map(|(number, _)| *number));
                disk.flip(&name, at, u8::try_from(below(8)).unwrap());
            }
        }
        drop(store);
        let disk = disk.restart();
        let (store, _) = open(&disk, 9).unwrap_or_else(|error| panic!("seed {seed}: refused: {error}"));
        for &number in &numbers {
            let expected = shard(number, 12_000 + small(number)).1;
            match bytes_of(&store, number) {
                Ok(bytes) => assert_eq!(bytes, expected, "seed {seed}: wrong bytes of {number}"),
                Err(Error::Corrupt { .. } | Error::NotFound { .. }) if hit.contains(&number) => lost_shards += 1,
                Err(error) => panic!("seed {seed}: shard {number} was not hit: {error}"),
            }
        }
        hit_shards += hit.len();
        // Repair puts them again, compaction passes through, and the volume is whole.
        for &number in &hit {
            put(&store, number, 12_000 + small(number)).unwrap();
        }
        while store.compact_step(1).unwrap().more {}
        drop(store);
        let (store, _) = open(&disk.restart(), 10).unwrap();
        for &number in &numbers {
            assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 12_000 + small(number)).1, "seed {seed}");
            assert!(store.verify(id(number)).is_ok());
        }
    }
    assert!(hit_shards > 300 && lost_shards > 250, "{hit_shards} hit, {lost_shards} lost");
}

#[test]
fn rot_by_the_thousand_never_refuses_the_volume_nor_gives_wrong_bytes() {
    for seed in 1..=40_u64 {
        let mut random = super::crashes::Random(seed * 77 + 1);
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        (0..40).for_each(|number| put(&store, number, 12_000).unwrap());
        store.delete(&(0..10).map(id).collect::<Vec<_>>(), LogIndex(1)).unwrap();
        drop(store);
        let disk = disk.restart();
        for name in segment_files(&disk) {
            for _ in 0..random.below(1 << (seed % 12)) {
                // Half of it where headers lie.
                let at = random.below(128 << 10);
                let at = if random.below(2) == 0 { at } else { at / 4096 * 4096 + random.below(300) };
                disk.flip(&name, at, u8::try_from(random.below(8)).unwrap());
            }
        }
        for life in 2..4 {
            let (store, _) = open(&disk, life * 100).unwrap_or_else(|error| panic!("seed {seed}: refused: {error}"));
            for number in 0..40 {
                match bytes_of(&store, number) {
                    Ok(bytes) => assert_eq!(bytes, shard(number, 12_000).1, "seed {seed}"),
                    Err(error) => assert!(matches!(error, Error::Corrupt { .. } | Error::NotFound { .. }), "{error}"),
                }
                put(&store, number, 12_000).unwrap();
                assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 12_000).1);
            }
            while store.compact_step(1).unwrap().more {}
        }
    }
}

fn small(number: u64) -> usize {
    super::crashes::small(number)
}

/// A mark says which life wrote what follows it. Both copies of it rot: once in the life that wrote them, once in the next.
#[test]
fn marks_that_rot_in_use_are_mended_before_the_next_start_needs_them() {
    for (reopened, unreadable) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = formatted();
        put(&open(&disk, 1).unwrap().0, 1, 5_000).unwrap();
        let (mut store, _) = open(&disk, 2).unwrap();
        (2..=4).for_each(|number| put(&store, number, 5_000).unwrap());
        if reopened {
            store = open(&disk, 3).unwrap().0;
        }
        let segment = segment_files(&disk).remove(0);
        // Behind two heads lies the record of the first life, in two sectors; then the mark, twice.
        for at in [4 * 4096 + 100, 5 * 4096 + 100] {
            assert!(if unreadable { disk.fail_reads_at(&segment, at) } else { disk.flip(&segment, at, 1) });
        }
        assert_eq!(open(&disk.survivors(3), 4).unwrap().1.shards, 1, "the second life is not found");
        assert!((2..=4).all(|number| store.verify(id(number)).is_ok()), "no shard is damaged");

        assert_eq!(store.mend_guides().unwrap(), 2);
        assert_eq!(store.mend_guides().unwrap(), 0, "all are sound");
        let (after, found) = open(&disk.survivors(3), 4).unwrap();
        assert_eq!((found.shards, after.list(None, 100)), (4, (1..=4).map(id).collect::<Vec<_>>()));
    }
}

/// Of both copies and of the first record, by which a segment without a head is known.
#[test]
fn heads_that_rot_in_use_are_mended_before_the_next_start_needs_them() {
    for (reopened, unreadable) in [(false, false), (true, false), (false, true), (true, true)] {
        let disk = formatted();
        let (mut store, _) = open(&disk, 1).unwrap();
        (1..=12).for_each(|number| put(&store, number, 20_000).unwrap());
        if reopened {
            store = open(&disk, 2).unwrap().0;
            put(&store, 13, 20_000).unwrap();
        }
        let held = store.list(None, 100);
        let segments = segment_files(&disk);
        assert!(segments.len() > 1);
        for segment in &segments {
            for at in [40, 4096 + 40, 8192 + 40] {
                assert!(if unreadable { disk.fail_reads_at(segment, at) } else { disk.flip(segment, at, 1) });
            }
        }
        let (_, unmended) = open(&disk.survivors(3), 4).unwrap();
        assert_eq!((unmended.shards, unmended.damaged_segments), (0, segments.len() as u64));

        assert_eq!(store.mend_guides().unwrap(), 2 * segments.len() as u64);
        assert_eq!(store.mend_guides().unwrap(), 0, "all are sound");
        let (after, found) = open(&disk.survivors(3), 4).unwrap();
        let first_of_each = held.len() - segments.len();
        assert_eq!((after.list(None, 100).len(), found.shards), (first_of_each, first_of_each as u64));
        for id in after.list(None, 100) {
            assert_eq!(after.read(id, 0, u64::MAX).unwrap().data, store.read(id, 0, u64::MAX).unwrap().data);
        }
    }
}
