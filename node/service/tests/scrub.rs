//! Upkeep of a volume from end to end: a real catalog, a real volume on a disk in memory, and time that the test moves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures::channel::oneshot;
use pacsvault_consensus::Replica as _;
use pacsvault_core::{
    catalog::{Command, Outcome, Reseat, query},
    health::{Pace, report::ScrubAge},
    ids::{NodeId, ShardIndex, StripeIndex, VolumeId, WallMillis},
    shard::{ShardHeader, ShardId, headers_of},
};
use pacsvault_healing::{Trusted, Upkeep, UpkeepParts, scrub_note::History};
use pacsvault_ports::{
    BoxFuture, crash,
    disk::Disk,
    env::{Env, Job, MonoTime},
    peer::{Caller, GetShard, Reply, Request, Service, ShardProof},
};
use pacsvault_runtime::TokioEnv;
use pacsvault_service::{Founding, Front, Membership, OwnVolume};
use pacsvault_simdisk::SimDisk;
use pacsvault_volume::{Identity, Options, Owner, Purpose, Store, Volume};
use support::{
    Bed, CLUSTER, Fake, Memory,
    catalog::{self, ALL, START, instance, profile, seal, spare, volume},
    until,
};

/// Bytes of a shard: the first record's payload covers the disk from 8 KiB + 1 KiB on.
const SHARD: usize = 20_000;
const DAY: u64 = 24 * 3_600_000;

#[derive(Default)]
struct Clock {
    now: Duration,
    next: u64,
    sleepers: BTreeMap<(Duration, u64), oneshot::Sender<()>>,
}

/// Time that stands still until it is moved.
struct Moved {
    began: AtomicU64,
    clock: Mutex<Clock>,
}

impl Moved {
    fn at(wall: u64) -> Arc<Self> {
        Arc::new(Self { began: AtomicU64::new(wall), clock: Mutex::default() })
    }

    /// Lets everything that is ready run.
    async fn settle() {
        for _ in 0..64 {
            tokio::task::yield_now().await;
        }
    }

    async fn pass(&self, time: Duration) {
        Self::settle().await;
        let until = self.clock.lock().unwrap().now + time;
        loop {
            let woken = {
                let mut clock = self.clock.lock().unwrap();
                match clock.sleepers.pop_first() {
                    Some(((at, _), wake)) if at <= until => {
                        clock.now = clock.now.max(at);
                        Some(wake)
                    }
                    Some((key, wake)) => {
                        clock.sleepers.insert(key, wake);
                        None
                    }
                    None => None,
                }
            };
            match woken {
                Some(wake) => drop(wake.send(())),
                None => break,
            }
            Self::settle().await;
        }
        self.clock.lock().unwrap().now = until;
    }
}

impl Env for Moved {
    fn now(&self) -> MonoTime {
        MonoTime(self.clock.lock().unwrap().now)
    }

    fn wall(&self) -> WallMillis {
        let passed = u64::try_from(self.now().0.as_millis()).unwrap();
        WallMillis(self.began.load(Ordering::Relaxed) + passed)
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        let mut clock = self.clock.lock().unwrap();
        let (wake, woken) = oneshot::channel();
        let key = (clock.now + duration, clock.next);
        clock.next += 1;
        clock.sleepers.insert(key, wake);
        Box::pin(async move {
            if woken.await.is_err() {
                std::future::pending::<()>().await;
            }
        })
    }

    fn spawn(&self, task: BoxFuture<'static, ()>) {
        tokio::spawn(task);
    }

    fn run_blocking(&self, job: Job) {
        job();
    }

    fn random(&self) -> u64 {
        7
    }
}

#[derive(Default)]
struct Trust(AtomicBool);

impl Trusted for Trust {
    fn trusted(&self, _: VolumeId) -> bool {
        !self.0.load(Ordering::Relaxed)
    }
}

fn formatted() -> Arc<SimDisk> {
    let disk = SimDisk::new(pacsvault_simdisk::Options::default(), 1);
    let known = catalog::join(0);
    let identity = Identity { cluster: CLUSTER, node: known.name, incarnation: known.incarnation, volume: volume(0) };
    Store::format(&disk, &identity).unwrap();
    Arc::new(disk)
}

fn opened(disk: &Arc<SimDisk>, life: u64, env: Arc<dyn Env>) -> Arc<Volume> {
    let mut options = Options::new(life);
    options.capacity_bytes = Some(64 << 20);
    options.segment_bytes = Some(8 << 20);
    let owner = Owner { cluster: CLUSTER, node: catalog::join(0).name };
    let (store, _) = Store::open(disk.clone(), &owner, options).unwrap();
    Arc::new(Volume::new(store, env))
}

/// Six shards of one stripe with content made of `number`.
fn shards(number: u64) -> (pacsvault_core::ids::Digest, Vec<(ShardHeader, Bytes)>) {
    let data: Vec<Bytes> =
        (0..6_u64).map(|shard| vec![u8::try_from((number * 7 + shard) % 251).unwrap(); SHARD].into()).collect();
    let id = instance(START, number);
    let (root, headers) = headers_of(id, StripeIndex(0), profile().code, 4 * SHARD as u64, &data);
    (root, headers.into_iter().zip(data).collect())
}

fn first_shard(number: u64) -> ShardId {
    ShardId { instance: instance(START, number), stripe: StripeIndex(0), shard: ShardIndex(0) }
}

/// Seals instance `number` as one stripe on all six volumes.
fn sealed(replica: &Fake, number: u64) {
    let mut sealed = seal(&format!("main/1.2/1.3/1.{number}"), "", instance(START, number));
    sealed.size_bytes = 4 * SHARD as u64;
    sealed.stripes[0].stripe_bytes = sealed.size_bytes;
    sealed.stripes[0].shard_root = shards(number).0;
    let outcome = replica.apply(START, vec![Command::Seal(Box::new(sealed))]);
    assert!(matches!(outcome[0], Outcome::Sealed { first: true, .. }), "{outcome:?}");
}

fn persisted(replica: &Fake, number: u64) -> u32 {
    let view = replica.view();
    query::by_instance(view.as_ref(), instance(START, number)).unwrap().unwrap().seal.stripes[0].persisted
}

async fn hold(volume: &Volume, number: u64) {
    let (header, data) = shards(number).1.swap_remove(0);
    volume.put(header, data, Purpose::Client).await.unwrap();
}

struct Bench {
    env: Arc<Moved>,
    disk: Arc<SimDisk>,
    replica: Arc<Fake>,
    volume: Arc<Volume>,
    trust: Arc<Trust>,
}

impl Bench {
    /// `count` instances that the catalog places here and the volume holds.
    async fn with(count: u64, wall: u64) -> Self {
        let (env, disk) = (Moved::at(wall), formatted());
        let replica = Fake::new(1, catalog::Replica::upgraded());
        let volume = opened(&disk, 77, env.clone());
        for number in 1..=count {
            sealed(&replica, number);
            hold(&volume, number).await;
        }
        Self { env, disk, replica, volume, trust: Arc::default() }
    }

    fn upkeep(&self, scrub_within: Duration) -> Arc<Upkeep> {
        Upkeep::new(UpkeepParts {
            env: self.env.clone(),
            replica: self.replica.clone(),
            volumes: BTreeMap::from([(volume(0), self.volume.clone())]),
            trusted: self.trust.clone(),
            pace: Pace { scrub_within, ..Pace::default() },
        })
    }

    /// As after a restart of the process.
    fn restarted(&self) -> Self {
        let now = self.env.wall().0;
        let env = Moved::at(now);
        let disk = Arc::new(self.disk.restart());
        let volume = opened(&disk, 78, env.clone());
        Self { env, disk, replica: self.replica.clone(), volume, trust: Arc::default() }
    }

    fn segment(&self) -> String {
        let names = self.disk.names().unwrap();
        names.into_iter().find(|name| name.starts_with("seg-")).unwrap()
    }

    async fn note(&self) -> Option<History> {
        History::decode(&self.volume.load_note("scrub").await.unwrap()?)
    }

    /// Time passes while clients ask all the time.
    async fn pass_busy(&self, upkeep: &Upkeep, seconds: u64) {
        for _ in 0..2 * seconds {
            upkeep.client_asks();
            self.env.pass(Duration::from_millis(500)).await;
        }
    }
}

fn total(age: &ScrubAge) -> u64 {
    age.histogram.iter().sum()
}

#[tokio::test]
async fn rot_is_found_and_told_to_the_log_within_one_pass() {
    let bench = Bench::with(20, START).await;
    let upkeep = bench.upkeep(Duration::from_secs(14 * 24 * 3600));
    assert!(bench.disk.flip(&bench.segment(), 8192 + 5000, 3));
    upkeep.start();
    bench.env.pass(Duration::from_secs(40)).await;
    let bits: Vec<u32> = (1..=20).map(|number| persisted(&bench.replica, number)).collect();
    assert_eq!(bits.iter().filter(|bits| **bits != ALL).collect::<Vec<_>>(), [&(ALL & !1)], "{bits:?}");
    let age = upkeep.scrub_age(volume(0));
    assert_eq!((age.damaged, age.verified, total(&age), age.histogram[0]), (1, 20, 20, 20));
    // It is not told again, and a volume that is done rests.
    bench.env.pass(Duration::from_secs(3600)).await;
    assert_eq!((upkeep.scrub_age(volume(0)).damaged, upkeep.scrub_age(volume(0)).verified), (1, 20));
    upkeep.scrub_now(None).unwrap();
    assert!(upkeep.scrub_age(volume(0)).hurried);
    bench.env.pass(Duration::from_secs(10)).await;
    let age = upkeep.scrub_age(volume(0));
    assert_eq!((age.damaged, age.verified, age.hurried), (1, 40, false));
    assert!(upkeep.scrub_now(Some(volume(1))).is_err(), "not here");
}

#[tokio::test]
async fn a_sound_shard_of_another_stripe_is_damage() {
    let bench = Bench::with(2, START).await;
    let (mut header, data) = shards(99).1.swap_remove(0);
    header.id = first_shard(3);
    bench.volume.put(header, data, Purpose::Client).await.unwrap();
    sealed(&bench.replica, 3);
    // Nobody knows this one: it proves only itself.
    hold(&bench.volume, 4).await;
    let upkeep = bench.upkeep(Duration::from_secs(14 * 24 * 3600));
    upkeep.start();
    bench.env.pass(Duration::from_secs(20)).await;
    assert_eq!((persisted(&bench.replica, 2), persisted(&bench.replica, 3)), (ALL, ALL & !1));
    assert_eq!((upkeep.scrub_age(volume(0)).damaged, upkeep.scrub_age(volume(0)).verified), (1, 4));
}

#[tokio::test]
async fn a_shard_that_the_catalog_counts_and_the_volume_lacks_is_reported() {
    let bench = Bench::with(3, START).await;
    sealed(&bench.replica, 4);
    let upkeep = bench.upkeep(Duration::from_secs(14 * 24 * 3600));
    upkeep.start();
    bench.env.pass(Duration::from_secs(1)).await;
    let bits: Vec<u32> = (1..=4).map(|number| persisted(&bench.replica, number)).collect();
    assert_eq!(bits, [ALL, ALL, ALL, ALL & !1]);
    // What is placed elsewhere, and what was deleted, is not missed.
    let add = Command::AddVolume { node: NodeId(1), volume: spare(0), capacity_bytes: 1 << 40 };
    let reseat = Command::Reseat(Reseat {
        instance: instance(START, 1),
        stripe: StripeIndex(0),
        expected: (0..6).map(volume).collect(),
        persisted: ALL,
        moves: vec![(ShardIndex(0), spare(0))],
        not_after: WallMillis(u64::MAX),
    });
    let delete = Command::Delete { key: catalog::key("main/1.2/1.3/1.2"), version: None };
    let outcomes = bench.replica.apply(START, vec![add, reseat, delete]);
    assert!(outcomes.iter().all(|outcome| !matches!(outcome, Outcome::Rejected(_))), "{outcomes:?}");
    let shards = [1, 2].map(first_shard).to_vec();
    assert_eq!(bench.volume.delete(shards, pacsvault_core::ids::LogIndex(1)).await.unwrap(), 2);
    bench.env.pass(Duration::from_secs(3600)).await;
    assert_eq!((persisted(&bench.replica, 1), upkeep.scrub_age(volume(0)).damaged), (ALL, 1));
    // A volume that has failed says nothing any more.
    sealed(&bench.replica, 5);
    bench.trust.0.store(true, Ordering::Relaxed);
    bench.env.pass(Duration::from_secs(3600)).await;
    assert_eq!(persisted(&bench.replica, 5), ALL);
}

#[tokio::test]
async fn before_version_2_and_on_volumes_of_others_nothing_is_reported() {
    for (me, replica) in [(1, catalog::Replica::with_cluster()), (2, catalog::Replica::upgraded())] {
        let mut bench = Bench::with(1, START).await;
        bench.replica = Fake::new(me, replica);
        sealed(&bench.replica, 1);
        sealed(&bench.replica, 2);
        assert!(bench.disk.flip(&bench.segment(), 8192 + 5000, 3));
        bench.upkeep(Duration::from_secs(14 * 24 * 3600)).start();
        bench.env.pass(Duration::from_secs(60)).await;
        assert_eq!((persisted(&bench.replica, 1), persisted(&bench.replica, 2)), (ALL, ALL));
    }
}

#[tokio::test]
async fn a_busy_volume_is_scrubbed_in_time_and_no_faster_and_goes_on_after_a_restart() {
    let bench = Bench::with(20, START).await;
    let upkeep = bench.upkeep(Duration::from_secs(1000));
    upkeep.start();
    bench.pass_busy(&upkeep, 400).await;
    let done = upkeep.scrub_age(volume(0)).verified;
    assert!((9..=12).contains(&done), "half of the time to be kept has passed, {done} of 20 are done");
    let known = bench.note().await.unwrap();
    assert!(known.verified_at(first_shard(1)).is_some() && known.cursor().is_some());

    let bench = bench.restarted();
    let upkeep = bench.upkeep(Duration::from_secs(1000));
    upkeep.start();
    bench.pass_busy(&upkeep, 401).await;
    let rest = upkeep.scrub_age(volume(0)).verified;
    assert!((20 - done..=22 - done).contains(&rest), "{done} before, {rest} after");
    let known = bench.note().await.unwrap();
    assert!(known.present().unwrap().complete, "within four fifths of the deadline");
    assert_eq!(known.present().unwrap().began, WallMillis(START));
    let last = known.verified_at(first_shard(20)).unwrap();
    assert!(last.0 > START + 600_000, "later ones were verified later: {last:?}");
}

#[tokio::test]
async fn without_a_note_everything_old_counts_as_never_verified_until_it_is() {
    let bench = Bench::with(10, START + 10 * DAY).await;
    let upkeep = bench.upkeep(Duration::from_secs(14 * 24 * 3600));
    upkeep.start();
    bench.pass_busy(&upkeep, 40).await;
    let age = upkeep.scrub_age(volume(0));
    assert_eq!((age.histogram[6], age.oldest), (10, Some(WallMillis(START))));
    bench.env.pass(Duration::from_secs(60)).await;
    let age = upkeep.scrub_age(volume(0));
    assert_eq!((age.histogram[0], age.verified), (10, 10));
    assert!(age.oldest >= Some(WallMillis(START + 10 * DAY)));
    // Days later they are older; the next pass makes them young again.
    bench.env.pass(Duration::from_secs(10 * 24 * 3600)).await;
    assert_eq!(upkeep.scrub_age(volume(0)).histogram[4], 10);
    bench.env.pass(Duration::from_secs(2 * 24 * 3600)).await;
    let age = upkeep.scrub_age(volume(0));
    assert_eq!((age.histogram[0], age.verified), (10, 20));
}

#[tokio::test]
async fn dead_bytes_are_compacted_away() {
    let bench = Bench::with(600, START).await;
    let before = bench.volume.status();
    let upkeep = bench.upkeep(Duration::from_secs(14 * 24 * 3600));
    upkeep.start();
    let dead: Vec<ShardId> = (1..=600).filter(|number| number % 4 != 0).map(first_shard).collect();
    for number in (1..=600).filter(|number| number % 4 != 0) {
        let key = catalog::key(&format!("main/1.2/1.3/1.{number}"));
        bench.replica.apply(START, vec![Command::Delete { key, version: None }]);
    }
    bench.volume.delete(dead, pacsvault_core::ids::LogIndex(1)).await.unwrap();
    let deleted = bench.volume.status();
    bench.env.pass(Duration::from_secs(120)).await;
    let after = bench.volume.status();
    assert_eq!((after.shards, after.used_bytes), (150, deleted.used_bytes));
    assert!(after.free_bytes > before.free_bytes, "{before:?} {deleted:?} {after:?}");
    let proof = pacsvault_healing::damage::proof(&bench.volume, first_shard(4)).await.unwrap();
    assert_eq!(proof, ShardProof::Sound(shards(4).0));
}

/// A member with two shards on its volume, the first one damaged.
async fn damaged_member() -> (Arc<Fake>, Bed) {
    let disk = formatted();
    let own = OwnVolume { volume: opened(&disk, 77, TokioEnv::current()), capacity_bytes: 64 << 20 };
    let replica = Fake::new(1, catalog::Replica::upgraded());
    for number in [1, 2] {
        sealed(&replica, number);
        hold(&own.volume, number).await;
    }
    let segment = disk.names().unwrap().into_iter().find(|name| name.starts_with("seg-")).unwrap();
    assert!(disk.flip(&segment, 8192 + 5000, 3));
    let memory: Arc<Memory> = Arc::default();
    let joined = Membership { node: NodeId(1), cluster: CLUSTER, founding: Founding::Joined };
    *memory.membership.lock().unwrap() = Some(joined);
    let bed = Bed::new(&replica, &memory, &[], vec![own]);
    (replica, bed)
}

#[tokio::test]
async fn a_read_that_meets_damage_reports_it_and_proofs_tell_what_is_there() {
    let (replica, bed) = damaged_member().await;
    bed.node.clone().run().await.unwrap();
    let get =
        GetShard { volume: volume(0), id: first_shard(1), offset_bytes: 0, len_bytes: SHARD as u64, background: false };
    let gateway = Caller::Gateway("gateway-1".to_owned());
    let read = Front(bed.node.clone()).handle(gateway, Request::GetShard(get)).await.unwrap_err();
    assert_eq!(read.code, "PV-SHARD-CORRUPT");
    until(|| persisted(&replica, 1) == ALL & !1).await;
    assert_eq!(persisted(&replica, 2), ALL);
    let shards = [1, 2, 3].map(first_shard).to_vec();
    let Reply::Verified(proofs) = bed.ask(Request::VerifyShards { volume: volume(0), shards }).await.unwrap() else {
        panic!("not proofs")
    };
    assert!(matches!(proofs[0], ShardProof::Damaged(_)), "{proofs:?}");
    assert_eq!(proofs[1..], [ShardProof::Sound(self::shards(2).0), ShardProof::Missing]);
    bed.ask(Request::ScrubNow(None)).await.unwrap();
    until(|| bed.node.volume_statuses()[0].scrub.verified >= 2).await;
    assert_eq!(bed.ask(Request::ScrubNow(Some(volume(1)))).await.unwrap_err().code, "PV-NO-VOLUME");
}

#[tokio::test]
async fn a_crash_at_any_point_of_upkeep_only_costs_work() {
    for tag in ["healing.scrub.1", "healing.damage.1", "healing.damage.2"] {
        let mut bench = Bench::with(5, START).await;
        sealed(&bench.replica, 6);
        assert!(bench.disk.flip(&bench.segment(), 8192 + 5000, 3));
        let (me, fired) = (std::thread::current().id(), Arc::new(AtomicBool::new(false)));
        let fires = fired.clone();
        // Other tests of this process pass here, too, on threads of their own.
        let trap = crash::trap(move |name| {
            let mine = name == tag && std::thread::current().id() == me;
            if mine && !fires.swap(true, Ordering::SeqCst) {
                println!("{}{name}", crash::CROSSED);
                panic!("the power fails at {name}");
            }
        });
        bench.upkeep(Duration::from_secs(14 * 24 * 3600)).start();
        bench.env.pass(Duration::from_secs(10)).await;
        drop(trap);
        assert!(fired.load(Ordering::SeqCst), "{tag} is passed");

        let env = Moved::at(bench.env.wall().0);
        bench.disk = Arc::new(bench.disk.crash(3));
        (bench.volume, bench.env) = (opened(&bench.disk, 78, env.clone()), env);
        let upkeep = bench.upkeep(Duration::from_secs(14 * 24 * 3600));
        upkeep.start();
        upkeep.scrub_now(None).unwrap();
        bench.env.pass(Duration::from_secs(60)).await;
        let bits: Vec<u32> = (1..=6).map(|number| persisted(&bench.replica, number)).collect();
        assert_eq!(bits, [ALL & !1, ALL, ALL, ALL, ALL, ALL & !1], "{tag}");
        assert_eq!(total(&upkeep.scrub_age(volume(0))), 5, "{tag}");
    }
}
