//! Compaction in quiet times: space comes back, nothing else changes.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use pacsvault_simdisk::OpKind;

use super::*;
use crate::{Compacted, Done, Op, Purpose};

pub(super) fn compact(store: &Store) -> Compacted {
    let mut all = Compacted::default();
    for _ in 0..1000 {
        let done = store.compact_step(1).unwrap();
        all.moved_shards += done.moved_shards;
        all.moved_bytes += done.moved_bytes;
        all.freed_segments += done.freed_segments;
        all.damaged.extend(done.damaged);
        if !done.more {
            return all;
        }
    }
    panic!("compaction does not end");
}

fn file_bytes(disk: &SimDisk) -> u64 {
    disk.names().unwrap().iter().map(|name| disk.open(name).unwrap().len().unwrap()).sum()
}

#[test]
fn space_of_deleted_shards_comes_back_to_the_file_system() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    (0..200).for_each(|number| put(&store, number, 20_000).unwrap());
    let (full_bytes, full_free) = (file_bytes(&disk), store.status().free_bytes);
    // Four of five die, in every segment.
    for number in (0..200).filter(|number| number % 5 != 0) {
        store.delete(&[id(number)], LogIndex(number)).unwrap();
    }
    let deleted_bytes = file_bytes(&disk);
    let done = compact(&store);
    assert!(done.moved_shards >= 35 && done.freed_segments >= 35, "{done:?}");
    let left = file_bytes(&disk);
    // 40 shards of 20 480 bytes, five per segment: 8 segments, the active one, two spares, and a few for tombstones.
    assert!(left <= 14 * (128 << 10) + 4096, "{full_bytes} bytes, {deleted_bytes} when deleted, {left} when compacted");
    let free = store.status().free_bytes;
    assert!(free > full_free && free >= (64 << 20) - left, "{free} bytes free, {full_free} before; {left} in files");
    let check = |store: &Store| {
        let held = store.list(None, 300);
        assert_eq!(held, (0..200).step_by(5).map(id).collect::<Vec<_>>());
        for number in (0..200).step_by(5) {
            assert_eq!(bytes_of(store, number).unwrap(), shard(number, 20_000).1);
        }
    };
    check(&store);
    assert_eq!(compact(&store), Compacted::default(), "nothing is left to do");
    let (store, recovery) = open(&disk.restart(), 2).unwrap();
    assert_eq!((recovery.damaged_places, recovery.void_records), (0, 0));
    check(&store);
}

#[test]
fn a_step_writes_no_more_than_it_was_given() {
    let disk = formatted();
    let mut options = options(1);
    options.segment_bytes = Some(4 << 20);
    let (store, _) = Store::open(Arc::new(disk.clone()), &owner(), options).unwrap();
    (0..400).for_each(|number| put(&store, number, 20_000).unwrap());
    let dying: Vec<_> = (0..200).filter(|number| number % 5 > 1).map(id).collect();
    store.delete(&dying, LogIndex(1)).unwrap();
    let mut steps = 0;
    loop {
        let before = disk.ops();
        let done = store.compact_step(100_000).unwrap();
        let wrote: u64 = disk
            .log()
            .iter()
            .filter(|op| op.number > before && op.kind == OpKind::Write && op.bytes != 8192)
            .map(|op| op.bytes)
            .sum();
        assert!(done.moved_bytes <= 100_000 && wrote <= done.moved_bytes + 8192, "{wrote} bytes for {done:?}");
        steps += 1;
        if !done.more {
            break;
        }
    }
    assert!(steps >= 15, "{steps} steps");
}

#[test]
fn a_volume_full_for_clients_and_repair_can_be_compacted() {
    let simulated = pacsvault_simdisk::Options { capacity_bytes: 4 << 20, ..Default::default() };
    let disk = SimDisk::new(simulated, 1);
    Store::format(&disk, &identity()).unwrap();
    let (store, _) = open(&disk, 1).unwrap();
    let fill = |purpose, from: u64| {
        (from..)
            .find(|&number| {
                let (header, data) = shard(number, 12_000);
                match store.commit(vec![Op::Put { header, data, purpose }]).pop().unwrap() {
                    Ok(Done::Stored(_)) => false,
                    Err(Error::Full { .. }) => true,
                    other => panic!("{other:?}"),
                }
            })
            .unwrap()
    };
    let clients = fill(Purpose::Client, 0);
    let all = fill(Purpose::Repair, clients);
    assert!(all > 150, "{clients} by clients, {all} with repair");
    // 40 % of every segment dies: no segment is mostly dead, but room is short.
    let dying: Vec<_> = (0..all).filter(|number| number % 5 < 2).map(id).collect();
    store.delete(&dying, LogIndex(1)).unwrap();
    assert!(matches!(put(&store, 5000, 12_000), Err(Error::Full { .. })), "nothing is free yet");
    let done = compact(&store);
    assert!(done.freed_segments >= 10, "{done:?}");
    let again = fill(Purpose::Client, 10_000) - 10_000;
    assert!(again >= dying.len() as u64 / 2, "{again} more, {} had been deleted", dying.len());
    for number in (0..all).filter(|number| number % 5 >= 2) {
        assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 12_000).1);
    }
}

#[test]
fn tombstones_move_on_and_go_with_what_they_are_against() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    // Old segments stay alive but for one shard each, whose tombstones lie in a segment that is dead otherwise.
    (0..50).for_each(|number| put(&store, number, 20_000).unwrap());
    (50..55).for_each(|number| put(&store, number, 20_000).unwrap());
    let singles: Vec<_> = (0..50).step_by(5).map(id).collect();
    store.delete(&singles, LogIndex(1)).unwrap();
    (60..70).for_each(|number| put(&store, number, 20_000).unwrap());
    store.delete(&(50..55).map(id).collect::<Vec<_>>(), LogIndex(2)).unwrap();
    let done = compact(&store);
    assert_eq!((done.moved_shards, done.freed_segments > 0), (0, true), "freed by restating alone: {done:?}");
    let expected: Vec<_> = (0..50).filter(|number| number % 5 != 0).chain(60..70).map(id).collect();
    let disk = disk.restart();
    let (store, _) = open(&disk, 2).unwrap();
    assert_eq!(store.list(None, 100), expected);
    // The old segments die: the tombstones are needed no more, nor is their segment held.
    store.delete(&(0..50).map(id).collect::<Vec<_>>(), LogIndex(3)).unwrap();
    compact(&store);
    (100..140).for_each(|number| put(&store, number, 20_000).unwrap());
    let (store, _) = open(&disk.restart(), 3).unwrap();
    assert_eq!(store.list(None, 100), (60..70).chain(100..140).map(id).collect::<Vec<_>>());
}

#[test]
fn a_damaged_record_is_reported_and_left_where_it_is() {
    for unreadable in [false, true] {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        (1..=20).for_each(|number| put(&store, number, 20_000).unwrap());
        store.delete(&[id(1), id(2), id(3)], LogIndex(1)).unwrap();
        let segment = segment_files(&disk).remove(0);
        let at = 8192 + 3 * 20_480 + 9000;
        if unreadable {
            disk.fail_reads_at(&segment, at);
        } else {
            disk.flip(&segment, at, 3);
        }
        let done = compact(&store);
        assert_eq!((done.moved_shards, &done.damaged[..]), (1, &[id(4)][..]));
        assert!(segment_files(&disk).contains(&segment), "its segment stays");
        assert!(matches!(bytes_of(&store, 4), Err(Error::Corrupt { .. } | Error::Read { .. })));
        assert_eq!(compact(&store), Compacted::default(), "nobody tries in vain");
        // Rebuilt, it leaves the segment free; so would its deletion.
        put(&store, 4, 20_000).unwrap();
        compact(&store);
        assert!(!segment_files(&disk).contains(&segment));
        let (store, _) = open(&disk.restart(), 2).unwrap();
        for number in 4..=20 {
            assert_eq!(bytes_of(&store, number).unwrap(), shard(number, 20_000).1);
        }
        assert_eq!(store.status().shards, 17);
    }
}

#[test]
fn a_tombstone_hidden_by_rot_keeps_its_segment_until_its_target_is_gone() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    (1..=5).for_each(|number| put(&store, number, 20_000).unwrap());
    // The second segment: a tombstone against the first, then shards that die.
    put(&store, 10, 20_000).unwrap();
    store.delete(&[id(1)], LogIndex(1)).unwrap();
    (11..=20).for_each(|number| put(&store, number, 20_000).unwrap());
    store.delete(&(10..=20).map(id).collect::<Vec<_>>(), LogIndex(2)).unwrap();
    let second = segment_files(&disk).remove(1);
    disk.flip(&second, 8192 + 20_480 + 40, 0);
    compact(&store);
    assert!(segment_files(&disk).contains(&second), "its witness could not be restated");
    store.delete(&[id(2), id(3), id(4), id(5)], LogIndex(3)).unwrap();
    compact(&store);
    assert!(!segment_files(&disk).contains(&second));
    assert!(open(&disk.restart(), 2).unwrap().0.list(None, 9).is_empty());
}

#[test]
fn clients_write_read_and_delete_while_segments_are_emptied() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    let store = Arc::new(store);
    let moved = Arc::new(AtomicU64::new(0));
    let clients: Vec<_> = (0..4_u64)
        .map(|client| {
            let (store, moved) = (store.clone(), moved.clone());
            std::thread::spawn(move || {
                let mut kept = Vec::new();
                for at in 0..250 {
                    let number = 10_000 * client + at;
                    put(&store, number, 9000).unwrap();
                    // Two of the four compact what all of them leave.
                    if client < 2 && at % 3 == 0 {
                        let step = store.compact_step(1).unwrap();
                        assert!(step.damaged.is_empty(), "{step:?}");
                        moved.fetch_add(step.moved_shards, Ordering::Relaxed);
                    }
                    if at % 4 == 0 {
                        kept.push(number);
                    } else {
                        assert_eq!(store.delete(&[id(number)], LogIndex(at)).unwrap(), 1);
                    }
                    let one = kept[usize::try_from(at * 7).unwrap() % kept.len()];
                    assert_eq!(bytes_of(&store, one).unwrap(), shard(one, 9000).1);
                    // Some of those that may be on their way go, too, or are sent again.
                    if at % 10 == 9 {
                        let gone = kept.swap_remove(0);
                        assert_eq!(store.delete(&[id(gone)], LogIndex(at)).unwrap(), 1, "shard {gone} was held");
                        assert!(!store.contains(id(gone)));
                    }
                    put(&store, one, 9000).unwrap();
                    if !kept.contains(&one) {
                        store.delete(&[id(one)], LogIndex(at)).unwrap();
                    }
                }
                kept
            })
        })
        .collect();
    let mut kept: Vec<u64> = clients.into_iter().flat_map(|client| client.join().unwrap()).collect();
    let moved = moved.load(Ordering::Relaxed) + compact(&store).moved_shards;
    assert!(moved > 10, "{moved} shards were moved");
    kept.sort_unstable();
    let mut expected: Vec<_> = kept.iter().copied().map(id).collect();
    expected.sort_unstable();
    assert_eq!(store.list(None, 9999), expected);
    let (again, _) = open(&disk.crash(1), 2).unwrap();
    assert_eq!(again.list(None, 9999), expected);
    for number in kept {
        assert_eq!(bytes_of(&again, number).unwrap(), shard(number, 9000).1);
    }
}

/// Runs `during` in another thread when compaction is about to sync its copies, and says whether it had ended by then.
fn beside_a_copy(during: impl FnOnce(&Store) + Send + 'static) -> (SimDisk, Arc<Store>) {
    type Hook = Box<dyn FnOnce() + Send>;
    let hook: Arc<std::sync::Mutex<Option<Hook>>> = Arc::default();
    let latency = {
        let hook = hook.clone();
        Arc::new(move |kind: OpKind, _: u64| {
            if kind == OpKind::Sync
                && let Some(hook) = hook.lock().unwrap().take()
            {
                hook();
            }
        })
    };
    let disk = SimDisk::new(pacsvault_simdisk::Options { latency: Some(latency), ..Default::default() }, 1);
    Store::format(&disk, &identity()).unwrap();
    let store = Arc::new(open(&disk, 1).unwrap().0);
    (1..=12).for_each(|number| put(&store, number, 20_000).unwrap());
    store.delete(&[id(1), id(3), id(5)], LogIndex(1)).unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    let other = store.clone();
    *hook.lock().unwrap() = Some(Box::new(move || {
        let thread = std::thread::spawn(move || during(&other));
        // It may end now or have to wait for the sync: both orders are right.
        let from = std::time::Instant::now();
        while !thread.is_finished() && from.elapsed() < Duration::from_millis(50) {
            std::thread::yield_now();
        }
        sender.send(thread).unwrap();
    }));
    let done = store.compact_step(1).unwrap();
    assert_eq!(done.moved_shards, 2);
    receiver.recv().unwrap().join().unwrap();
    (disk, store)
}

#[test]
fn a_shard_deleted_while_its_copy_is_synced_stays_deleted() {
    let (disk, store) = beside_a_copy(|store| assert_eq!(store.delete(&[id(2)], LogIndex(2)).unwrap(), 1));
    assert!(!store.contains(id(2)) && store.contains(id(4)));
    compact(&store);
    for life in 2..4 {
        let (store, _) = open(&disk.survivors(life), life).unwrap();
        assert!(!store.contains(id(2)) && store.contains(id(4)));
    }
}

#[test]
fn a_shard_sent_again_while_its_copy_is_synced_is_held_once() {
    let (disk, store) = beside_a_copy(|store| put(store, 2, 20_000).unwrap());
    assert_eq!(bytes_of(&store, 2).unwrap(), shard(2, 20_000).1);
    assert_eq!(store.delete(&[id(2)], LogIndex(2)).unwrap(), 1);
    compact(&store);
    assert!(!open(&disk.restart(), 2).unwrap().0.contains(id(2)));
}

#[test]
fn a_stale_copy_is_deleted_for_good_and_can_be_stored_anew() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    (1..=12).for_each(|number| put(&store, number, 20_000).unwrap());
    store.delete(&[id(1), id(3), id(5)], LogIndex(1)).unwrap();
    compact(&store);
    // Re-seated elsewhere by entry 70: this copy, which compaction has moved, is stale. Later it is seated here again.
    assert_eq!(store.delete(&[id(2), id(77)], LogIndex(70)).unwrap(), 1);
    assert_eq!(store.delete(&[id(2), id(77)], LogIndex(70)).unwrap(), 0);
    assert!(!open(&disk.survivors(3), 2).unwrap().0.contains(id(2)));
    put(&store, 2, 20_000).unwrap();
    compact(&store);
    let (store, _) = open(&disk.crash(4), 3).unwrap();
    assert_eq!(bytes_of(&store, 2).unwrap(), shard(2, 20_000).1);
}
