//! Power fails at every `CRASH` tag of this room, on simulated disks that lose what was not synced: what was acknowledged is
//! there afterwards, and the replica works. A binary of its own with one test, because a trap sees the whole process.

mod support;

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::TypeConfigExt,
};
use pacsvault_consensus::{
    Options, Replica, TokioRuntime, Types,
    log_store::{Bounds, LogStore},
    types::{Data, Entry, LogId, log_id},
};
use pacsvault_core::{
    catalog::Command,
    ids::{NodeId, VolumeId},
};
use pacsvault_ports::{
    crash::{self, CROSSED, Trap, tags_in},
    kv::{Batch, Durability, Kv as _},
    peer::Freshness,
};
use pacsvault_runtime::TokioEnv;
use pacsvault_simkv::SimKvMedia;
use support::{Cluster, founding};

type C = Types<TokioRuntime>;

/// Crossed by one replica that founds, writes, takes snapshots and purges.
const OWN: [&str; 5] = ["consensus.1", "consensus.3", "consensus.4", "consensus.5", "consensus.8"];
/// Crossed by a replica that is sent a snapshot.
const RECEIVED: [&str; 2] = ["consensus.6", "consensus.7"];
/// Crossed by a replica whose catalog was written by a release that knew no sums.
const DERIVED: &str = "consensus.9";
/// Key of the catalog's row that says up to which entry the sums are right.
const SUMS_MARKER: &[u8] = &[0x28];
/// At which passing the power fails. Later ones are in `crash_points.rs`, which goes through all operations.
const PASSINGS: [u64; 9] = [1, 2, 3, 4, 6, 9, 13, 18, 24];

const SOURCES: [&str; 4] = [
    include_str!("../src/facade.rs"),
    include_str!("../src/log_store.rs"),
    include_str!("../src/snapshot.rs"),
    include_str!("../src/state.rs"),
];

/// Power that fails at one point.
struct Outage {
    struck: Arc<AtomicBool>,
    _trap: Trap,
}

impl Outage {
    /// All `disks` lose power at the `passing`-th passing of `tag`.
    fn at(tag: &'static str, passing: u64, disks: Vec<SimKvMedia>) -> Self {
        let struck = Arc::new(AtomicBool::new(false));
        let (strikes, passed) = (struck.clone(), AtomicU64::new(0));
        let _trap = crash::trap(move |name| {
            if name == tag && passed.fetch_add(1, Ordering::SeqCst) + 1 == passing {
                for disk in &disks {
                    disk.crash(passing);
                }
                strikes.store(true, Ordering::SeqCst);
            }
        });
        Self { struck, _trap }
    }

    fn struck(&self) -> bool {
        self.struck.load(Ordering::SeqCst)
    }
}

fn tune(options: &mut Options) {
    options.snapshot_every = 5;
    options.log_keep = 2;
    options.linger = Duration::ZERO;
    options.deadline = Duration::from_secs(2);
    options.election_min = Duration::from_millis(100);
    options.election_max = Duration::from_millis(200);
    options.heartbeat = Duration::from_millis(30);
}

fn volume(number: u64) -> VolumeId {
    VolumeId((u128::from(number) + 1).to_be_bytes())
}

fn add(number: u64) -> Vec<Command> {
    vec![Command::AddVolume { node: NodeId(1), volume: volume(number), capacity_bytes: 1 << 30 }]
}

fn volumes(replica: &dyn Replica) -> BTreeSet<VolumeId> {
    replica.layout().map(|layout| layout.volumes.keys().copied().collect()).unwrap_or_default()
}

fn disks(cluster: &mut Cluster, id: u64) -> Vec<SimKvMedia> {
    let node = cluster.node(id);
    vec![node.log.clone(), node.state.clone()]
}

/// Founds a cluster and writes until something fails; answers what was acknowledged.
async fn script(cluster: &mut Cluster) -> BTreeSet<VolumeId> {
    let mut acked = BTreeSet::new();
    let Ok(replica) = cluster.try_start_as(1, 1).await else { return acked };
    if replica.initialise().await.is_err() || replica.propose(founding()).await.is_err() {
        return acked;
    }
    for number in 0..24 {
        if replica.propose(add(number)).await.is_err() {
            break;
        }
        acked.insert(volume(number));
    }
    acked
}

/// Whether the power failed.
async fn writing(tag: &'static str, passing: u64) -> bool {
    let mut cluster = Cluster::new(tune);
    let disks = disks(&mut cluster, 1);
    let outage = Outage::at(tag, passing, disks);
    let acked = script(&mut cluster).await;
    let struck = outage.struck();
    drop(outage);
    cluster.crash(1, passing).await;
    let replica = cluster.start(1).await;
    if replica.initialise().await.is_ok() {
        assert!(acked.is_empty(), "{tag}#{passing} lost the whole log");
    } else {
        replica.wait(Freshness::Linearizable).await.expect("it leads again");
        let found = volumes(replica.as_ref());
        assert!(found.is_superset(&acked), "{tag}#{passing} lost {:?}", acked.difference(&found));
        replica.propose(add(100)).await.expect("it works");
    }
    cluster.stop(1).await;
    struck
}

async fn receiving(tag: &'static str) {
    let mut cluster = Cluster::found(tune).await;
    for number in 0..40 {
        cluster.replica(1).propose(add(number)).await.expect("acked");
    }
    let purged = |cluster: &Cluster| cluster.nodes[&1].log.content().contains_key(b"p".as_slice());
    cluster.until("the log is purged", purged).await;
    let disks = disks(&mut cluster, 2);
    let outage = Outage::at(tag, 1, disks);
    cluster.start(2).await;
    cluster.replica(1).propose(vec![support::join(2, 2)]).await.expect("joined");
    cluster.until(tag, |_| outage.struck()).await;
    drop(outage);
    cluster.crash(2, 1).await;
    let left = cluster.nodes[&2].state.durable();
    cluster.start(2).await;
    cluster.until("it has all", |cluster| volumes(cluster.replica(2).as_ref()).len() == 40).await;
    cluster.until_equal().await;
    assert!(left.is_empty(), "{tag}: nothing of the snapshot was shown before it was whole");
    cluster.stop(2).await;
    cluster.stop(1).await;
}

/// The catalog's sums are made again; the power fails before they are written.
async fn rebuilding(tag: &'static str) {
    let mut cluster = Cluster::found(tune).await;
    for number in 0..10 {
        cluster.replica(1).propose(add(number)).await.expect("acked");
    }
    cluster.stop(1).await;
    let state = cluster.nodes[&1].state.clone();
    let marked = |state: &SimKvMedia| state.content().contains_key(SUMS_MARKER);
    assert!(marked(&state), "the sums are marked");
    // As a release leaves it that knows no sums.
    let mut batch = Batch::default();
    batch.delete(SUMS_MARKER.to_vec());
    state.open().write(batch, Durability::Synced).expect("written");
    let outage = Outage::at(tag, 1, vec![state.clone()]);
    assert!(cluster.try_start_as(1, 1).await.is_err(), "{tag}: it does not serve what it could not make right");
    assert!(outage.struck() && !marked(&state));
    drop(outage);
    let replica = cluster.start(1).await;
    assert!(marked(&state), "{tag}: made at the next start, before it serves");
    replica.wait(Freshness::Linearizable).await.expect("it leads again");
    assert_eq!(volumes(replica.as_ref()).len(), 10);
    cluster.stop(1).await;
}

fn open(media: &SimKvMedia) -> LogStore {
    let bounds = Bounds { cache_bytes_max: 256, payload_bytes_max: 1 << 20 };
    LogStore::open(media.open(), TokioEnv::current(), Arc::new(()), bounds).expect("the log opens")
}

/// Appends, and whether the entries were reported durable.
async fn append(log: &mut LogStore, term: u64, indexes: std::ops::Range<u64>) -> bool {
    let entry =
        |index| Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Data(Bytes::from_static(b"x"))) };
    let (done, flushed) = C::oneshot();
    let appended =
        RaftLogStorage::<C>::append(log, indexes.map(entry).collect::<Vec<_>>(), IOFlushed::signal(done)).await;
    appended.is_ok() && matches!(flushed.await, Ok(Ok(())))
}

async fn ids(log: &mut LogStore) -> Vec<LogId> {
    let entries = RaftLogReader::<C>::try_get_log_entries(log, 0..100).await.expect("readable");
    entries.into_iter().map(|entry| entry.log_id).collect()
}

/// A conflicting tail is cut off and replaced; the power fails before the cut is queued, or before it is written.
async fn truncating(tag: &'static str) {
    let media = SimKvMedia::new();
    let mut log = open(&media);
    assert!(append(&mut log, 1, 0..50).await);
    let outage = Outage::at(tag, 1, vec![media.clone()]);
    let cut = RaftLogStorage::<C>::truncate_after(&mut log, Some(log_id(1, 19))).await;
    let replaced = cut.is_ok() && append(&mut log, 2, 20..30).await;
    assert!(outage.struck() && !replaced, "{tag}: nothing is reported durable without power");
    drop(outage);
    drop(log);
    let old: Vec<LogId> = (0..50).map(|index| log_id(1, index)).collect();
    let mut log = open(&media);
    assert_eq!(ids(&mut log).await, old, "{tag}: the old tail stands, whole");
    RaftLogStorage::<C>::truncate_after(&mut log, Some(log_id(1, 19))).await.expect("queued");
    assert!(append(&mut log, 2, 20..30).await);
    media.crash(5);
    let new: Vec<LogId> = (0..30).map(|index| log_id(if index < 20 { 1 } else { 2 }, index)).collect();
    assert_eq!(ids(&mut open(&media)).await, new, "{tag}: replaced, and nothing of the old tail returns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_at_every_tag_loses_nothing_acknowledged() {
    let mut crossed = BTreeSet::new();
    for tag in OWN {
        for passing in PASSINGS {
            if !writing(tag, passing).await {
                break;
            }
            crossed.insert(tag);
        }
    }
    for tag in RECEIVED {
        receiving(tag).await;
        crossed.insert(tag);
    }
    rebuilding(DERIVED).await;
    crossed.insert(DERIVED);
    for tag in ["consensus.1", "consensus.2"] {
        truncating(tag).await;
        crossed.insert(tag);
    }
    for tag in &crossed {
        println!("{CROSSED}{tag}");
    }
    assert_eq!(crossed, SOURCES.into_iter().flat_map(tags_in).collect());
}
