//! Rot, failing syncs, full disks.

use std::io::ErrorKind;

use pacsvault_core::layout::VolumeState;
use pacsvault_simdisk::OpKind;

use super::*;
use crate::{Done, Op, Purpose};
use pacsvault_ports::peer::Class;

#[test]
fn a_flipped_bit_is_corrupt_never_wrong_bytes() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    put(&store, 1, 70_000).unwrap();
    put(&store, 2, 5_000).unwrap();
    let segment = segment_files(&disk).remove(0);
    let (mut corrupt, mut fine) = (0, 0);
    // Shard 1's record begins at 8192; its header has 192 + 64 + 8 + 4 bytes.
    for offset in (8192..8192 + 70_400).step_by(97) {
        disk.flip(&segment, offset, 2);
        match store.read(id(1), 0, u64::MAX) {
            Ok(held) => {
                assert_eq!((held.header, held.data), shard(1, 70_000));
                fine += 1;
            }
            Err(Error::Corrupt { offset_bytes, .. }) => {
                let expected = if offset < 8192 + 268 + 65_536 { 0 } else { 65_536 };
                assert_eq!(offset_bytes, expected, "flip at {offset}");
                corrupt += 1;
            }
            Err(error) => panic!("{error}"),
        }
        disk.flip(&segment, offset, 2);
    }
    assert!(corrupt > 700 && fine < 10, "{corrupt} corrupt, {fine} in the padding");
    assert_eq!(bytes_of(&store, 1).unwrap(), shard(1, 70_000).1);
}

#[test]
fn a_damaged_header_hides_only_its_own_record() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    for number in 1..=4 {
        put(&store, number, 20_000).unwrap();
    }
    let segment = segment_files(&disk).remove(0);
    disk.flip(&segment, 8192 + 20_480 + 50, 0);
    let disk = disk.restart();
    let (store, recovery) = open(&disk, 2).unwrap();
    assert_eq!(store.list(None, 9), [id(1), id(3), id(4)]);
    assert_eq!((recovery.damaged_places, recovery.void_records), (1, 0));
    // Either copy of a segment header is enough; without both, the first record stands in.
    put(&store, 5, 100).unwrap();
    disk.flip(&segment, 60, 0);
    assert_eq!(open(&disk.restart(), 3).unwrap().0.status().shards, 4);
}

#[test]
fn a_damaged_shard_can_be_written_anew_and_deleted_for_good() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    put(&store, 1, 20_000).unwrap();
    disk.flip(&segment_files(&disk)[0], 8192 + 1000, 0);
    assert!(matches!(bytes_of(&store, 1), Err(Error::Corrupt { .. })));
    put(&store, 1, 20_000).unwrap();
    assert_eq!(bytes_of(&store, 1).unwrap(), shard(1, 20_000).1);
    let disk = disk.restart();
    let (store, _) = open(&disk, 2).unwrap();
    assert_eq!(bytes_of(&store, 1).unwrap(), shard(1, 20_000).1);
    assert_eq!(store.delete(&[id(1)], LogIndex(3)).unwrap(), 1);
    assert_eq!(open(&disk.restart(), 3).unwrap().0.status().shards, 0);
}

/// Writes shard 1 anew over a record that is sound and cannot be read at the moment, when the segment has room for a tombstone
/// and not for the record; the power fails at the `crash_at`th call from then on.
fn rewritten_while_misread(crash_at: u64) -> (SimDisk, Result<(), Error>) {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    // 128 KiB hold five of these, and 16 KiB besides.
    for number in 1..=5 {
        put(&store, number, 20_000).unwrap();
    }
    assert_eq!(segment_files(&disk).len(), 1);
    assert!(disk.misread_at(&segment_files(&disk)[0], 8192 + 8192, 8192 + 12_288));
    assert!(matches!(bytes_of(&store, 1), Err(Error::Corrupt { .. })));
    disk.crash_at(disk.ops() + crash_at);
    let answer = put(&store, 1, 20_000);
    (disk, answer)
}

#[test]
fn a_sound_record_that_was_read_astray_is_not_deleted_before_the_new_one_is_durable() {
    let (mut crash_at, mut acknowledged) = (1, 0);
    while acknowledged < 3 {
        for seed in 0..40 {
            let (disk, answer) = rewritten_while_misread(crash_at);
            let survived = disk.crash(seed);
            let (store, _) = open(&survived, 2).unwrap();
            let held = bytes_of(&store, 1);
            assert_eq!(held.unwrap(), shard(1, 20_000).1, "crash at call {crash_at}, seed {seed}: {answer:?}");
            // Whichever record that is, no other one comes back behind it.
            assert_eq!(store.delete(&[id(1)], LogIndex(3)).unwrap(), 1);
            // Also not when the segments that witness against it were emptied, and used again.
            let others: Vec<u64> = (10..50).collect();
            others.iter().for_each(|number| put(&store, *number, 9_000).unwrap());
            store.delete(&others.iter().map(|number| id(*number)).collect::<Vec<_>>(), LogIndex(4)).unwrap();
            super::compact::compact(&store);
            others.iter().for_each(|number| put(&store, 100 + *number, 9_000).unwrap());
            let (store, _) = open(&survived.restart(), 3).unwrap();
            assert!(!store.contains(id(1)), "crash at call {crash_at}, seed {seed}: {answer:?}");
            assert!((2..=5).all(|number| bytes_of(&store, number).is_ok()));
        }
        acknowledged += u64::from(rewritten_while_misread(crash_at).1.is_ok());
        crash_at += 1;
    }
    assert!(crash_at > 6, "it takes several calls to write a shard anew, not {crash_at}");
}

#[test]
fn a_failed_sync_or_write_poisons_and_is_never_retried() {
    for kind in [OpKind::Sync, OpKind::Write] {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        put(&store, 1, 9000).unwrap();
        disk.fail(kind, 1, ErrorKind::Other);
        let error = put(&store, 2, 9000).unwrap_err();
        assert!(matches!(error, Error::Write { .. }), "{error:?}");
        assert_eq!(error.class(), Class::Unknown);
        let ops: Vec<_> = disk.log().into_iter().filter(|op| matches!(op.kind, OpKind::Sync | OpKind::Write)).collect();
        let refused = [put(&store, 3, 10).unwrap_err(), store.delete(&[id(1)], LogIndex(1)).unwrap_err()];
        assert!(refused.iter().all(|error| matches!(error, Error::Poisoned { .. })), "{refused:?}");
        let after: Vec<_> =
            disk.log().into_iter().filter(|op| matches!(op.kind, OpKind::Sync | OpKind::Write)).collect();
        assert_eq!(ops, after, "no write and no sync after the failure");
        assert_eq!(bytes_of(&store, 1).unwrap(), shard(1, 9000).1, "reads go on");
        assert_eq!(store.status().state, pacsvault_core::layout::VolumeState::Fenced);
        for seed in 0..20 {
            let disk = disk.survivors(seed);
            let (store, recovery) = open(&disk, 2).unwrap();
            assert_eq!(bytes_of(&store, 1).unwrap(), shard(1, 9000).1);
            if recovery.was_poisoned {
                store.clear_poison_marker().unwrap();
            }
            put(&store, 2, 9000).unwrap();
            assert_eq!(bytes_of(&store, 2).unwrap(), shard(2, 9000).1);
        }
    }
}

#[test]
fn a_full_disk_refuses_cleanly_and_keeps_its_reserves() {
    let simulated = pacsvault_simdisk::Options { capacity_bytes: 4 << 20, ..Default::default() };
    let disk = SimDisk::new(simulated, 1);
    Store::format(&disk, &identity()).unwrap();
    let (store, _) = open(&disk, 1).unwrap();
    let fill = |purpose, from: u64| {
        for number in from.. {
            let (header, data) = shard(number, 30_000);
            match store.commit(vec![Op::Put { header, data, purpose }]).pop().unwrap() {
                Ok(Done::Stored(_)) => {}
                Err(error) => {
                    assert!(matches!(error, Error::Full { .. }), "{error:?}");
                    assert_eq!(error.class(), Class::Exhausted);
                    return number;
                }
                Ok(other) => panic!("{other:?}"),
            }
        }
        unreachable!()
    };
    let clients = fill(Purpose::Client, 1);
    assert_eq!(store.status().state, VolumeState::ReadOnly, "what refuses writes says so");
    let repairs = fill(Purpose::Repair, 1000);
    assert!(clients > 80 && repairs > 1002, "{clients} by clients, then {repairs} by repair");
    assert_eq!(put(&store, 1, 30_000).map_err(|error| error.class()), Ok(()), "a retry needs no room");
    let ids: Vec<_> = (1..clients).map(id).collect();
    assert_eq!(store.delete(&ids, LogIndex(1)).unwrap(), clients - 1, "deletion works on a full volume");
    put(&store, 5000, 30_000).unwrap();
    assert_eq!(store.status().state, VolumeState::Up, "there is more room than at the refusal");
    let (store, _) = open(&disk.restart(), 2).unwrap();
    assert_eq!(store.status().shards, repairs - 1000 + 1);
}

#[test]
fn room_that_a_neighbour_takes_and_gives_back_is_noticed_without_a_write() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    put(&store, 1, 100).unwrap();
    assert_eq!(store.status().state, VolumeState::Up);
    disk.set_thin_full(true);
    store.look_for_room().unwrap();
    let full = store.status();
    assert_eq!((full.state, full.reason.as_str()), (VolumeState::ReadOnly, "nearly full"));
    // Nothing is placed on a volume that says so: only a look can tell that it may be written again.
    disk.set_thin_full(false);
    store.look_for_room().unwrap();
    assert_eq!(store.status().state, VolumeState::Up);
}

#[test]
fn no_room_for_a_segment_is_no_reason_to_distrust_the_disk() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    disk.fail(OpKind::Create, 1, ErrorKind::StorageFull);
    assert!(matches!(put(&store, 1, 100), Err(Error::Full { .. })));
    put(&store, 1, 100).unwrap();
    // But running full inside an allocated file is a failed write like any other.
    disk.set_thin_full(true);
    assert!(put(&store, 2, 100).is_err());
    disk.set_thin_full(false);
    let (store, _) = open(&disk.crash(3), 2).unwrap();
    assert_eq!(store.list(None, 9), [id(1)]);
}

#[test]
fn an_unreadable_sector_costs_one_shard() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    put(&store, 1, 20_000).unwrap();
    put(&store, 2, 20_000).unwrap();
    let segment = segment_files(&disk).remove(0);
    disk.fail_reads_at(&segment, 8192 + 8192);
    assert!(matches!(bytes_of(&store, 1), Err(Error::Read { .. })));
    assert_eq!(bytes_of(&store, 2).unwrap(), shard(2, 20_000).1);
}

#[test]
fn a_record_before_an_unreadable_sector_is_found_again() {
    for sector in 2..6 {
        let disk = formatted();
        let (store, _) = open(&disk, 1).unwrap();
        // In one batch, so that several share a sector, and some end with it.
        let shards: Vec<_> =
            (1..=20).map(|number| shard(number, 40 + 100 * usize::try_from(number).unwrap())).collect();
        assert!(store.append(&shards).iter().all(Result::is_ok));
        let segment = segment_files(&disk).remove(0);
        disk.fail_reads_at(&segment, sector * 4096);
        let readable = |store: &Store| (1..=20).filter(|number| bytes_of(store, *number).is_ok()).collect::<Vec<_>>();
        let before = readable(&store);
        assert!(before.len() > 10 && before.len() < 20, "{before:?}");
        let (store, _) = open(&disk.restart(), 2).unwrap();
        assert_eq!(readable(&store), before, "with sector {sector} unreadable");
    }
}

#[test]
fn content_shaped_like_a_record_never_becomes_one() {
    use crate::format::{Body, RECORDS_START, Record};
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    put(&store, 1, 100).unwrap();
    // Shard 2 is the second batch, one sector on; its header has 192 + 64 + 4 + 4 bytes.
    let (at, header_bytes) = (RECORDS_START + 4096, 264);
    let (forged_header, forged_data) = shard(666, 300);
    let mut forged = Record::new(identity().volume, Body::Shard(forged_header.clone()), 300, forged_header.chunk_crcs);
    forged.stamp.sequence = u64::from_str_radix(&segment_files(&disk)[0][4..20], 16).unwrap();
    forged.stamp.offset = at + 1024;
    (forged.stamp.life, forged.stamp.batch) = (0xBAD, 1000);
    let mut content = vec![7; 1024 - header_bytes];
    content.extend(forged.encode());
    content.extend_from_slice(&forged_data);
    content.resize(9000, 7);
    let (mut header, _) = shard(2, 9000);
    header.chunk_crcs = chunk_crcs(&content);
    assert!(store.append(&[(header, content.into())])[0].is_ok());
    put(&store, 3, 100).unwrap();
    // With the true header gone, recovery searches right through the content.
    disk.flip(&segment_files(&disk)[0], at + 40, 1);
    let (store, _) = open(&disk.restart(), 2).unwrap();
    assert_eq!(store.list(None, 9), [id(1), id(3)]);
}
