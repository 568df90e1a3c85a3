//! Six nodes in one process: one real catalog on a map, volumes on maps, peers that call each other directly.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../../../core/tests/catalog_support/mod.rs"]
pub mod catalog;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pacsvault_consensus::{Replica, Status};
use pacsvault_core::{
    catalog::{Command, Outcome, SealedInstance, StripeSeal, View, query},
    codec::Coder,
    health::{Cause, Pace, Task, Tier},
    ids::{Digest, InstanceId, LogIndex, NodeId, NodeName, ShardIndex, StripeIndex, Term, VolumeId, WallMillis},
    layout::{Layout, VolumeState},
    shard::{DurableShard, ShardHeader, ShardId, headers_of},
};
use pacsvault_healing::{Healer, Parts, Served};
use pacsvault_ports::{
    BoxFuture,
    kv::CheckpointFile,
    peer::{Class, Fault, Freshness, Peer, Reply, Request, ShardData, Target, VolumeStatus},
};
use pacsvault_runtime::TokioEnv;
use tokio::sync::Notify;

pub use catalog::{START, instance, volume};

/// Longest wait for what must come true.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Content of one stripe in most tests.
pub const STRIPE_BYTES: usize = 4_000;

type Shards = BTreeMap<(VolumeId, ShardId), (ShardHeader, Bytes)>;

/// What all nodes share, or would by the network.
pub struct World {
    catalog: Mutex<catalog::Replica>,
    shards: Mutex<Shards>,
    healers: Mutex<BTreeMap<NodeName, Arc<Healer>>>,
    dark: Mutex<BTreeSet<NodeName>>,
    silent: Mutex<BTreeSet<NodeName>>,
    patience: Notify,
    waiting: AtomicUsize,
    unheard: AtomicUsize,
    refusing: Mutex<BTreeSet<VolumeId>>,
    leader: AtomicU64,
    term: AtomicU64,
    /// Shards written.
    pub puts: AtomicU64,
}

/// Node `number` of the test catalog.
pub fn node_id(number: u8) -> NodeId {
    NodeId(u64::from(number) + 1)
}

/// Quick, for tests.
pub fn pace() -> Pace {
    Pace {
        heartbeat: Duration::from_millis(50),
        suspect_after: Duration::from_millis(300),
        urgent_after: Duration::from_millis(400),
        down_after: Duration::from_millis(600),
        repair_after: Duration::from_millis(800),
        steady_for: Duration::from_millis(200),
        ..Pace::default()
    }
}

impl World {
    /// Six nodes on three sites, with a spare volume each when asked; nobody runs yet.
    pub fn new(spares: bool) -> Arc<Self> {
        let mut replica = catalog::Replica::upgraded();
        if spares {
            (0..catalog::NODES).for_each(|node| replica.add_spare(node));
        }
        Arc::new(Self {
            catalog: Mutex::new(replica),
            shards: Mutex::default(),
            healers: Mutex::default(),
            dark: Mutex::default(),
            silent: Mutex::default(),
            patience: Notify::new(),
            waiting: AtomicUsize::new(0),
            unheard: AtomicUsize::new(0),
            refusing: Mutex::default(),
            leader: AtomicU64::new(1),
            term: AtomicU64::new(1),
            puts: AtomicU64::new(0),
        })
    }

    pub fn catalog(&self) -> MutexGuard<'_, catalog::Replica> {
        self.catalog.lock().expect("no panic")
    }

    pub fn shards(&self) -> MutexGuard<'_, Shards> {
        self.shards.lock().expect("no panic")
    }

    /// The network to and from this node is gone, or back.
    pub fn set_dark(&self, number: u8, dark: bool) {
        let name = catalog::join(number).name;
        let mut set = self.dark.lock().expect("no panic");
        if dark {
            set.insert(name)
        } else {
            set.remove(&name)
        };
    }

    /// This node answers nothing any more, and nothing says so: callers wait, until [`World::give_up`].
    pub fn set_silent(&self, number: u8) {
        self.silent.lock().expect("no panic").insert(catalog::join(number).name);
    }

    /// Calls to silent nodes that wait, and those there ever were.
    pub fn calls_into_silence(&self) -> (usize, usize) {
        (self.waiting.load(Ordering::SeqCst), self.unheard.load(Ordering::SeqCst))
    }

    /// The time of all who wait for silent nodes is over.
    pub fn give_up(&self) {
        self.patience.notify_waiters();
    }

    pub fn set_refusing(&self, volume: VolumeId) {
        self.refusing.lock().expect("no panic").insert(volume);
    }

    /// All volumes take shards again.
    pub fn refuse_nothing(&self) {
        self.refusing.lock().expect("no panic").clear();
    }

    pub fn lead(&self, number: u8) {
        self.leader.store(node_id(number).0, Ordering::SeqCst);
        self.term.fetch_add(1, Ordering::SeqCst);
    }

    /// Builds the healer of a node; running it is up to the test.
    pub fn healer(self: &Arc<Self>, number: u8, pace: Pace) -> Arc<Healer> {
        let known = catalog::join(number);
        let healer = Healer::new(Parts {
            env: TokioEnv::current(),
            peer: Arc::new(Wire { world: self.clone(), from: known.name.clone() }),
            replica: Arc::new(Fake { world: self.clone(), me: node_id(number) }),
            served: Arc::new(Disks { world: self.clone(), number }),
            name: known.name.clone(),
            address: known.address,
            site: known.site,
            incarnation: known.incarnation,
            pace,
        });
        self.healers.lock().expect("no panic").insert(known.name, healer.clone());
        healer
    }

    /// Builds and runs all healers.
    pub fn run_all(self: &Arc<Self>) -> Vec<Arc<Healer>> {
        let healers: Vec<_> = (0..catalog::NODES).map(|number| self.healer(number, pace())).collect();
        for healer in &healers {
            tokio::spawn(healer.clone().run());
        }
        healers
    }

    /// Writes one stripe of random-looking content with these shards persisted, and seals it.
    pub fn store(&self, number: u64, persisted: u32) -> InstanceId {
        self.store_under(number, number, persisted)
    }

    /// As [`World::store`], under the key of another: a further version of it.
    pub fn store_under(&self, key: u64, number: u64, persisted: u32) -> InstanceId {
        let code = catalog::profile().code;
        let content: Vec<u8> = (0..STRIPE_BYTES as u64).map(|at| (at * 31 + number * 7).to_le_bytes()[0]).collect();
        let id = instance(START, number);
        let shards = Coder::new(code).encode(Bytes::from(content.clone())).expect("it encodes");
        let (root, headers) = headers_of(id, StripeIndex(0), code, STRIPE_BYTES as u64, &shards);
        for (at, (header, data)) in (0..catalog::NODES).zip(headers.into_iter().zip(shards)) {
            if persisted & (1 << at) != 0 {
                self.shards().insert((volume(at), header.id), (header, data));
            }
        }
        let mut seal = catalog::seal(&format!("main/1.2/1.3/1.4.{key}"), "", id);
        seal.size_bytes = STRIPE_BYTES as u64;
        seal.digest = Digest::of(&content);
        let placement = (0..catalog::NODES).map(volume).collect();
        seal.stripes = vec![StripeSeal { stripe_bytes: STRIPE_BYTES as u64, shard_root: root, placement, persisted }];
        self.catalog().sealed(START, seal);
        id
    }

    /// The record.
    pub fn record(&self, id: InstanceId) -> SealedInstance {
        query::by_instance(&self.catalog().state, id).expect("readable").expect("stored")
    }

    /// The shards that the record names, if each is there and belongs to the root.
    pub fn is_whole(&self, id: InstanceId) -> bool {
        let sealed = self.record(id);
        let stripe = &sealed.seal.stripes[0];
        let layout = self.catalog().machine.layout().expect("a layout");
        let shards = self.shards();
        let data: Vec<Option<Bytes>> = (0_u8..)
            .map(ShardIndex)
            .zip(&stripe.placement)
            .map(|(shard, volume)| {
                let held = shards.get(&(*volume, ShardId { instance: id, stripe: StripeIndex(0), shard }));
                held.filter(|_| stripe.persisted & (1 << shard.0) != 0 && layout.counts(*volume))
                    .map(|(_, data)| data.clone())
            })
            .collect();
        let Some(data) = data.into_iter().collect::<Option<Vec<Bytes>>>() else { return false };
        headers_of(id, StripeIndex(0), sealed.seal.code, stripe.stripe_bytes, &data).0 == stripe.shard_root
    }

    /// A task on the stripe as it is.
    pub fn task(&self, id: InstanceId, moves: &[(u8, VolumeId)]) -> Task {
        let stripe = self.record(id).seal.stripes.remove(0);
        Task {
            instance: id,
            stripe: StripeIndex(0),
            expected: stripe.placement,
            persisted: stripe.persisted,
            moves: moves.iter().map(|(shard, volume)| (ShardIndex(*shard), *volume)).collect(),
            cause: Cause::Repair,
            tier: Tier::Distance(1),
            write_bytes: 0,
        }
    }

    pub fn layout(&self) -> Arc<Layout> {
        self.catalog().machine.layout().expect("a layout")
    }

    fn owner(&self, volume: VolumeId) -> NodeName {
        let layout = self.layout();
        layout.node_of(volume).expect("a known volume").name.clone()
    }

    fn put(&self, put: pacsvault_ports::peer::PutShard) -> Result<Reply, Fault> {
        if self.refusing.lock().expect("no panic").contains(&put.volume) {
            return Err(Fault::new(Class::Exhausted, "PV-VOLUME-FULL", "full"));
        }
        assert_eq!(Digest::of(&put.data), put.header.digest, "bytes are those of the header");
        self.puts.fetch_add(1, Ordering::SeqCst);
        let durable = DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest };
        self.shards().insert((put.volume, put.header.id), (put.header, put.data));
        Ok(Reply::Durable(durable))
    }

    fn get(&self, get: &pacsvault_ports::peer::GetShard) -> Result<Reply, Fault> {
        let missing = || Fault::new(Class::NotFound, "PV-SHARD-NOT-FOUND", "not here");
        let (header, data) = self.shards().get(&(get.volume, get.id)).cloned().ok_or_else(missing)?;
        assert_eq!((get.offset_bytes, get.len_bytes), (0, data.len() as u64), "repair reads whole shards");
        Ok(Reply::Shard(Box::new(ShardData { header, offset_bytes: 0, data })))
    }
}

struct Disks {
    world: Arc<World>,
    number: u8,
}

impl Served for Disks {
    fn volumes(&self) -> Vec<VolumeStatus> {
        let layout = self.world.layout();
        let own = layout.volumes.values().filter(|volume| volume.node == node_id(self.number));
        own.map(|volume| VolumeStatus {
            volume: volume.id,
            state: VolumeState::Up,
            reason: String::new(),
            shards: 0,
            used_bytes: 0,
            free_bytes: volume.capacity_bytes,
            capacity_bytes: volume.capacity_bytes,
            scrub: Default::default(),
        })
        .collect()
    }
}

struct Wire {
    world: Arc<World>,
    from: NodeName,
}

impl Peer for Wire {
    fn call(&self, target: &Target, request: Request, _: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let (world, from) = (self.world.clone(), self.from.clone());
        let to = target.name.clone().expect("nodes are called by name");
        Box::pin(async move {
            tokio::task::yield_now().await;
            let dark = |name: &NodeName| world.dark.lock().expect("no panic").contains(name);
            if to != from && (dark(&to) || dark(&from)) {
                return Err(Fault::new(Class::Retry, "PV-UNREACHABLE", "no route"));
            }
            if world.silent.lock().expect("no panic").contains(&to) {
                let given_up = world.patience.notified();
                world.unheard.fetch_add(1, Ordering::SeqCst);
                world.waiting.fetch_add(1, Ordering::SeqCst);
                given_up.await;
                world.waiting.fetch_sub(1, Ordering::SeqCst);
                return Err(Fault::new(Class::Unknown, "PV-DEADLINE", "no answer"));
            }
            let healer = world.healers.lock().expect("no panic").get(&to).cloned();
            let healer = healer.ok_or_else(|| Fault::new(Class::Retry, "PV-NOT-MEMBER", "starting"));
            match request {
                Request::PutShard(put) => {
                    assert_eq!(world.owner(put.volume), to, "asked of its owner");
                    world.put(*put)
                }
                Request::GetShard(get) => {
                    assert_eq!(world.owner(get.volume), to, "asked of its owner");
                    world.get(&get)
                }
                Request::Propose(commands) => {
                    // Attempts are begun by the wall clock.
                    let begun = commands.iter().map(|command| match command {
                        Command::Replace(replace) => replace.seal.instance.time().0,
                        other => panic!("not proposed by healing through a coordinator: {other:?}"),
                    });
                    let time = begun.max().unwrap_or(START);
                    Ok(Reply::Outcomes(world.catalog().apply(time, commands)))
                }
                Request::Lookup(lookup) => {
                    let catalog = world.catalog();
                    let found = query::lookup(&catalog.state, &lookup.key, lookup.version).expect("readable");
                    Ok(Reply::Found { sealed: found.map(Box::new), applied: LogIndex(catalog.index) })
                }
                Request::Layout(_) => Ok(Reply::Layout(world.layout())),
                Request::Heartbeat(beat) => healer?.heartbeat(*beat).await.map(|()| Reply::Done),
                Request::Repair(task) => healer?.repair(*task).await.map(Reply::Repaired),
                Request::Health => Ok(Reply::Health(Box::new(healer?.health_here().await?))),
                Request::WhatIf(loss) => Ok(Reply::WhatIf(Box::new(healer?.what_if_here(loss).await?))),
                Request::DrainPlan(target) => Ok(Reply::DrainPlan(Box::new(healer?.drain_plan_here(target).await?))),
                Request::Status => Err(Fault::new(Class::Retry, "PV-TEST", "not told here")),
                other => panic!("not asked by healing: {other:?}"),
            }
        })
    }
}

/// One node's replica of the one catalog.
struct Fake {
    world: Arc<World>,
    me: NodeId,
}

fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, Fault>> {
    Box::pin(async { Err(Fault::new(Class::Reject, "PV-TEST", "not part of this test")) })
}

impl Replica for Fake {
    fn initialise(&self) -> BoxFuture<'static, Result<(), Fault>> {
        unused()
    }

    fn propose(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>> {
        let outcomes = self.world.catalog().apply(START + 1, commands);
        Box::pin(async move { Ok(outcomes) })
    }

    fn propose_local(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>> {
        self.propose(commands)
    }

    fn handle(&self, _: Option<NodeName>, _: Bytes) -> BoxFuture<'static, Result<Bytes, Fault>> {
        unused()
    }

    fn snapshot_files(&self, _: &str) -> BoxFuture<'static, Result<Vec<CheckpointFile>, Fault>> {
        unused()
    }

    fn snapshot_read(&self, _: &str, _: &str, _: u64, _: u32) -> BoxFuture<'static, Result<Bytes, Fault>> {
        unused()
    }

    fn read_index(&self) -> BoxFuture<'static, Result<LogIndex, Fault>> {
        self.wait(Freshness::Linearizable)
    }

    fn wait(&self, _: Freshness) -> BoxFuture<'static, Result<LogIndex, Fault>> {
        let index = LogIndex(self.world.catalog().index);
        Box::pin(async move { Ok(index) })
    }

    fn layout(&self) -> Option<Arc<Layout>> {
        self.world.catalog().machine.layout()
    }

    fn view(&self) -> Arc<dyn View> {
        Arc::new(self.world.catalog().state.clone())
    }

    fn catalog_time(&self) -> WallMillis {
        self.world.catalog().machine.time()
    }

    fn status(&self) -> Status {
        let index = LogIndex(self.world.catalog().index);
        Status {
            node: self.me,
            leader: Some(NodeId(self.world.leader.load(Ordering::SeqCst))),
            term: Term(self.world.term.load(Ordering::SeqCst)),
            last_log: index,
            applied: index,
            digest: Digest([0; 32]),
            voters: (0..catalog::NODES).map(node_id).collect(),
            learners: Vec::new(),
            joint: false,
            fatal: None,
        }
    }

    fn transfer_leader(&self, _: NodeId) -> BoxFuture<'static, Result<(), Fault>> {
        unused()
    }

    fn stop(&self) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }
}

/// Waits until `ready`, at most [`PATIENCE`].
pub async fn until(what: &str, ready: impl Fn() -> bool) {
    let waiting = async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("it does not come true: {what}"));
}
