//! The shard store on simulated disks: what it promises in quiet times, under faults and after crashes.

#![allow(clippy::unwrap_used, reason = "tests")]

mod compact;
mod compact_crashes;
mod crashes;
mod faults;
mod handle;
mod notes;
mod rot;

use std::sync::Arc;

use bytes::Bytes;
use pacsvault_core::{
    checksum::chunk_crcs,
    ids::{ClusterId, Digest, Incarnation, InstanceId, LogIndex, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::profile::Code,
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::disk::Disk;
use pacsvault_simdisk::SimDisk;

use crate::{Error, Identity, Options, Owner, Recovery, Store};

fn identity() -> Identity {
    Identity {
        cluster: ClusterId([1; 16]),
        node: "node-a".parse().unwrap(),
        incarnation: Incarnation([2; 16]),
        volume: VolumeId([3; 16]),
    }
}

fn owner() -> Owner {
    Owner { cluster: identity().cluster, node: identity().node }
}

fn options(life: u64) -> Options {
    let mut options = Options::new(life.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    options.capacity_bytes = Some(64 << 20);
    options.segment_bytes = Some(128 << 10);
    options
}

fn open(disk: &SimDisk, life: u64) -> Result<(Store, Recovery), Error> {
    Store::open(Arc::new(disk.clone()), &owner(), options(life))
}

fn formatted() -> SimDisk {
    let disk = SimDisk::new(pacsvault_simdisk::Options::default(), 1);
    Store::format(&disk, &identity()).unwrap();
    disk
}

fn id(number: u64) -> ShardId {
    let instance = InstanceId::new(WallMillis(number), u128::from(number));
    ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(1) }
}

/// A shard of `len` bytes that follow from its number.
fn shard(number: u64, len: usize) -> (ShardHeader, Bytes) {
    let mut data = blake3_like(number, len);
    data.truncate(len);
    let header = ShardHeader {
        id: id(number),
        code: Code::new(2, 1).unwrap(),
        stripe_bytes: 2 * len as u64,
        digest: Digest::of(&data),
        merkle_path: vec![Digest([9; 32]); 2],
        chunk_crcs: chunk_crcs(&data),
    };
    (header, data.into())
}

/// Bytes that differ everywhere from shard to shard.
fn blake3_like(number: u64, len: usize) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ len as u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes
}

fn put(store: &Store, number: u64, len: usize) -> Result<(), Error> {
    store.append(&[shard(number, len)]).pop().unwrap().map(drop_durable)
}

fn drop_durable(_: pacsvault_core::shard::DurableShard) {}

fn bytes_of(store: &Store, number: u64) -> Result<Bytes, Error> {
    store.read(id(number), 0, u64::MAX).map(|shard| shard.data)
}

fn segment_files(disk: &SimDisk) -> Vec<String> {
    disk.names().unwrap().into_iter().filter(|name| name.starts_with("seg-")).collect()
}

#[test]
fn shards_read_back_whole_and_in_part_also_after_reopening() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    for (number, len) in [(1, 64), (2, 1), (3, 65_536), (4, 200_001)] {
        put(&store, number, len).unwrap();
    }
    let check = |store: &Store| {
        for (number, len) in [(1, 64), (2, 1), (3, 65_536), (4, 200_001)] {
            let held = store.read(id(number), 0, u64::MAX).unwrap();
            assert_eq!((held.header, held.data), shard(number, len));
        }
        let part = store.read(id(4), 70_000, 10).unwrap();
        assert_eq!(part.offset_bytes, 65_536);
        assert_eq!(part.data, shard(4, 200_001).1.slice(65_536..131_072));
        let end = store.read(id(4), 199_999, 100).unwrap();
        assert_eq!(end.data, shard(4, 200_001).1.slice(196_608..));
        assert!(matches!(store.read(id(4), 200_002, 1), Err(Error::Range { .. })));
        assert!(matches!(store.read(id(9), 0, 1), Err(Error::NotFound { .. })));
        assert_eq!(store.list(None, 3), [id(1), id(2), id(3)]);
        assert_eq!(store.list(Some(id(3)), 3), [id(4)]);
    };
    check(&store);
    let disk = disk.restart();
    let (store, recovery) = open(&disk, 2).unwrap();
    assert_eq!((recovery.shards, recovery.void_records, recovery.damaged_places), (4, 0, 0));
    check(&store);
}

#[test]
fn the_same_shard_again_is_durable_at_once_and_other_bytes_are_refused() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    let both = store.append(&[shard(1, 5000), shard(1, 5000)]);
    assert!(both.iter().all(Result::is_ok), "twice in one batch: {both:?}");
    let ops = disk.ops();
    put(&store, 1, 5000).unwrap();
    assert_eq!(disk.ops(), ops, "nothing is written for a retry");
    assert!(matches!(put(&store, 1, 5001), Err(Error::Conflict { .. })));
    let (header, _) = shard(2, 100);
    let wrong = store.append(&[(header.clone(), shard(3, 100).1), (header, shard(2, 99).1)]);
    assert!(wrong.iter().all(|answer| matches!(answer, Err(Error::Malformed { .. }))), "{wrong:?}");
    assert_eq!(store.status().shards, 1);
}

#[test]
fn deleted_segments_are_reused_and_nothing_in_them_comes_back() {
    let disk = formatted();
    let (store, _) = open(&disk, 1).unwrap();
    for round in 0..20_u64 {
        for at in 0..4 {
            put(&store, 10 * round + at, 40_000).unwrap();
        }
        let ids: Vec<_> = (0..4).map(|at| id(10 * round + at)).collect();
        assert_eq!(store.delete(&ids, LogIndex(round)).unwrap(), 4);
        assert_eq!(store.delete(&ids, LogIndex(round)).unwrap(), 0, "again is harmless");
    }
    let files = disk.names().unwrap();
    assert!(files.len() <= 6, "80 shards of 40 kB passed through few files: {files:?}");
    put(&store, 999, 100).unwrap();
    put(&store, 3, 40_000).unwrap();
    let (store, recovery) = open(&disk.restart(), 2).unwrap();
    assert_eq!(store.list(None, 100), [id(3), id(999)], "a deleted shard may be stored again; {recovery:?}");
}

#[test]
fn a_volume_of_another_node_or_cluster_is_refused() {
    let disk = formatted();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let other = Owner { node: "node-b".parse().unwrap(), ..owner() };
    assert!(matches!(Store::open(shared.clone(), &other, options(1)), Err(Error::Foreign { .. })));
    let other = Owner { cluster: ClusterId([8; 16]), ..owner() };
    assert!(matches!(Store::open(shared.clone(), &other, options(1)), Err(Error::Foreign { .. })));
    assert!(matches!(Store::format(&disk, &identity()), Err(Error::NotEmpty { .. })));
    disk.flip("volume.id", 20, 1);
    assert!(matches!(Store::open(shared, &owner(), options(1)), Err(Error::IdentityDamaged { .. })));
    let empty: Arc<dyn Disk> = Arc::new(SimDisk::new(pacsvault_simdisk::Options::default(), 1));
    assert!(matches!(Store::open(empty, &owner(), options(1)), Err(Error::NotFormatted)));
}

#[test]
fn bytes_on_disk_stay_close_to_bytes_stored() {
    let disk = formatted();
    let mut options = options(1);
    options.segment_bytes = Some(16 << 20);
    options.capacity_bytes = None;
    let (store, _) = Store::open(Arc::new(disk.clone()), &owner(), options).unwrap();
    let shards: Vec<_> = (0..8).map(|number| shard(number, 128 << 10)).collect();
    assert!(store.append(&shards).iter().all(Result::is_ok));
    let wrote = |from: u64| -> u64 { disk.log().iter().filter(|op| op.number > from).map(|op| op.bytes).sum() };
    let before = disk.ops();
    assert!(
        store.append(&(8..16).map(|number| shard(number, 128 << 10)).collect::<Vec<_>>()).iter().all(Result::is_ok)
    );
    assert_eq!(wrote(before), 1028 << 10, "8 shards of 128 KiB in a batch: 0.4 % more");
    let before = disk.ops();
    put(&store, 16, 128 << 10).unwrap();
    assert_eq!(wrote(before), 132 << 10, "one alone: 3.1 % more");
}

#[test]
fn a_real_directory_holds_a_volume_for_one_process() {
    use crate::{FileDisk, file_disk::FileDiskOptions};
    let directory = tempfile::tempdir().unwrap();
    for direct in [true, false] {
        let path = directory.path().join(format!("direct-{direct}"));
        let disk = Arc::new(FileDisk::open(&path, FileDiskOptions { direct }).unwrap());
        assert!(FileDisk::open(&path, FileDiskOptions { direct }).is_err(), "locked");
        Store::format(&*disk, &identity()).unwrap();
        for prewrite in [true, false] {
            let mut options = options(7 + u64::from(prewrite));
            options.prewrite = prewrite;
            let (store, _) = Store::open(disk.clone(), &owner(), options).unwrap();
            for number in 0..8 {
                put(&store, number + 100 * u64::from(prewrite), 50_000 + usize::try_from(number).unwrap()).unwrap();
            }
        }
        let (store, recovery) = Store::open(disk.clone(), &owner(), options(9)).unwrap();
        assert_eq!((recovery.shards, recovery.void_records, recovery.damaged_places), (16, 0, 0));
        for number in 0..8 {
            let len = 50_000 + usize::try_from(number).unwrap();
            assert_eq!(bytes_of(&store, number).unwrap(), shard(number, len).1);
            assert_eq!(bytes_of(&store, number + 100).unwrap(), shard(number + 100, len).1);
        }
    }
}
