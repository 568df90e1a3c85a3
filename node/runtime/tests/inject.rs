//! The fault port with a real volume on a real file system.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use pacsvault_core::{
    checksum::chunk_crcs,
    ids::{ClusterId, Digest, Incarnation, InstanceId, NodeName, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::profile::Code,
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::disk::Disk;
use pacsvault_runtime::inject::{Faults, Inject};
use pacsvault_volume::{Error, FileDisk, Identity, Options, Owner, Store, file_disk::FileDiskOptions};

const CLUSTER: ClusterId = ClusterId([1; 16]);
/// The file is looked at every 100 ms; a machine may be busy.
const SEEN_WITHIN: Duration = Duration::from_secs(60);

fn say(path: &Path, setting: &Inject) {
    let part = path.with_extension("part");
    fs::write(&part, serde_json::to_string(setting).expect("plain data")).expect("written");
    fs::rename(&part, path).expect("renamed");
}

fn owner() -> Owner {
    Owner { cluster: CLUSTER, node: "a1".parse::<NodeName>().expect("a name") }
}

fn disk(dir: &Path, faults: Option<&Arc<Faults>>) -> Arc<dyn Disk> {
    let real: Arc<dyn Disk> = Arc::new(FileDisk::open(dir, FileDiskOptions::default()).expect("a directory"));
    faults.map_or_else(|| real.clone(), |faults| faults.disk(real.clone()))
}

fn options(life: u64) -> Options {
    let mut options = Options::new(life);
    (options.capacity_bytes, options.segment_bytes) = (Some(64 << 20), Some(1 << 20));
    options
}

fn opened(dir: &Path, faults: &Arc<Faults>) -> Store {
    let disk = disk(dir, Some(faults));
    let identity =
        Identity { cluster: CLUSTER, node: owner().node, incarnation: Incarnation([2; 16]), volume: VolumeId([3; 16]) };
    Store::format(disk.as_ref(), &identity).expect("formatted");
    Store::open(disk, &owner(), options(1)).expect("opened").0
}

fn id(number: u64) -> ShardId {
    let instance = InstanceId::new(WallMillis(number), u128::from(number));
    ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(1) }
}

fn put(store: &Store, number: u64) -> Result<(), Error> {
    let data = vec![7; 8192];
    let header = ShardHeader {
        id: id(number),
        code: Code::new(2, 1).expect("a code"),
        stripe_bytes: 2 * data.len() as u64,
        digest: Digest::of(&data),
        merkle_path: vec![Digest([9; 32]); 2],
        chunk_crcs: chunk_crcs(&data),
    };
    store.append(&[(header, Bytes::from(data))]).pop().expect("one answer").map(|_| ())
}

#[test]
fn a_sync_that_fails_poisons_the_volume_and_is_never_tried_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, volume) = (dir.path().join("inject.json"), dir.path().join("volume"));
    say(&file, &Inject::default());
    let faults = Faults::follow(&file).expect("followed");
    let store = opened(&volume, &faults);
    put(&store, 1).expect("a healthy disk");
    say(&file, &Inject { fail_sync: true, ..Inject::default() });
    let deadline = Instant::now() + SEEN_WITHIN;
    let (failed, why) = (2..)
        .find_map(|number| {
            assert!(Instant::now() < deadline, "the change was never seen");
            put(&store, number).err().map(|error| (number, error))
        })
        .expect("a sync fails");
    assert!(matches!(&why, Error::Write { step: "sync a batch", .. }), "{why}");
    // The port fails one sync only, so a store that tried again would now seem to succeed.
    for number in failed..failed + 3 {
        assert!(matches!(put(&store, number), Err(Error::Poisoned { .. })), "{number}");
    }
    assert_eq!(store.read(id(1), 0, u64::MAX).expect("reads go on").data.len(), 8192);
    drop(store);
    let (store, recovery) = Store::open(disk(&volume, None), &owner(), options(2)).expect("opens again");
    assert!(recovery.was_poisoned, "the next life is told");
    assert_eq!(store.read(id(1), 0, u64::MAX).expect("what was acknowledged is there").data.len(), 8192);
}

#[test]
fn a_slow_disk_is_slow_until_it_is_told_otherwise() {
    let dir = tempfile::tempdir().expect("a directory");
    let (file, volume) = (dir.path().join("inject.json"), dir.path().join("volume"));
    say(&file, &Inject::default());
    let faults = Faults::follow(&file).expect("followed");
    let store = opened(&volume, &faults);
    let delay = Duration::from_millis(300);
    say(&file, &Inject { disk_delay_ms: 300, ..Inject::default() });
    let mut number = 1;
    let mut write_takes = |wanted: &dyn Fn(Duration) -> bool| {
        let deadline = Instant::now() + SEEN_WITHIN;
        loop {
            let began = Instant::now();
            put(&store, number).expect("slow is not broken");
            number += 1;
            if wanted(began.elapsed()) {
                return;
            }
            assert!(Instant::now() < deadline, "the change was never seen");
        }
    };
    write_takes(&|took| took >= delay * 2);
    let began = Instant::now();
    store.read(id(1), 0, u64::MAX).expect("readable");
    assert!(began.elapsed() >= delay, "reads are slow too");
    say(&file, &Inject::default());
    write_takes(&|took| took < delay);
}
