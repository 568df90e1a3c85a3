//! A node around a replica that is a real catalog on a map, without consensus, and peers that answer as told.
#![allow(dead_code, reason = "each test file uses its part")]

#[path = "../../../core/tests/catalog_support/mod.rs"]
pub mod catalog;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pacsvault_consensus::{Replica, Status};
use pacsvault_core::{
    catalog::{Command, Outcome, View},
    health::Pace,
    ids::{ClusterId, Digest, Incarnation, LogIndex, NodeId, NodeName, Term, VolumeId, WallMillis},
    layout::{Layout, Roles},
};
use pacsvault_ports::{
    BoxFuture,
    kv::CheckpointFile,
    peer::{Caller, Class, Fault, Freshness, NodeStatus, Peer, Reply, Request, Service, Target},
};
use pacsvault_runtime::TokioEnv;
use pacsvault_service::{Front, Membership, Node, OwnVolume, Profile, Registry, ReplicaStarter};

use catalog::START;

pub const CLUSTER: ClusterId = ClusterId([7; 16]);
/// Longest wait for what must come true.
pub const PATIENCE: Duration = Duration::from_secs(30);

fn unused<T: Send + 'static>() -> BoxFuture<'static, Result<T, Fault>> {
    Box::pin(async { Err(Fault::new(Class::Reject, "PV-TEST", "not part of this test")) })
}

/// A replica that leads itself: what is proposed is applied at once.
pub struct Fake {
    me: NodeId,
    catalog: Mutex<catalog::Replica>,
    clock: AtomicU64,
    initialised: AtomicBool,
}

impl Fake {
    pub fn new(me: u64, catalog: catalog::Replica) -> Arc<Self> {
        let initialised = AtomicBool::new(catalog.index > 0);
        Arc::new(Self { me: NodeId(me), catalog: Mutex::new(catalog), clock: AtomicU64::new(START), initialised })
    }

    pub fn initialised(&self) -> bool {
        self.initialised.load(Ordering::SeqCst)
    }

    /// Applies `commands` at `time`.
    pub fn apply(&self, time: u64, commands: Vec<Command>) -> Vec<Outcome> {
        self.clock.store(time, Ordering::SeqCst);
        self.catalog.lock().expect("no panic").apply(time, commands)
    }
}

impl Replica for Fake {
    fn initialise(&self) -> BoxFuture<'static, Result<(), Fault>> {
        let done = self.initialised.swap(true, Ordering::SeqCst);
        let again = Fault::new(Class::Reject, "PV-ALREADY-INITIALISED", "it has a log");
        Box::pin(async move { if done { Err(again) } else { Ok(()) } })
    }

    fn propose(&self, commands: Vec<Command>) -> BoxFuture<'static, Result<Vec<Outcome>, Fault>> {
        if !self.initialised() {
            return Box::pin(async { Err(Fault::new(Class::Retry, "PV-NO-LEADER", "not initialised")) });
        }
        let outcomes = self.apply(self.clock.load(Ordering::SeqCst), commands);
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
        let index = LogIndex(self.catalog.lock().expect("no panic").index);
        Box::pin(async move { Ok(index) })
    }

    fn layout(&self) -> Option<Arc<Layout>> {
        self.catalog.lock().expect("no panic").machine.layout()
    }

    fn view(&self) -> Arc<dyn View> {
        Arc::new(self.catalog.lock().expect("no panic").state.clone())
    }

    fn catalog_time(&self) -> WallMillis {
        self.catalog.lock().expect("no panic").machine.time()
    }

    fn status(&self) -> Status {
        let index = LogIndex(self.catalog.lock().expect("no panic").index);
        Status {
            node: self.me,
            leader: Some(self.me),
            term: Term(1),
            last_log: index,
            applied: index,
            digest: Digest([0; 32]),
            voters: vec![self.me],
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

/// Hands out the one replica, and counts how often.
pub struct Starter {
    pub replica: Arc<Fake>,
    pub starts: AtomicU64,
}

impl ReplicaStarter for Starter {
    fn start(&self, node: NodeId) -> BoxFuture<'static, Result<Arc<dyn Replica>, Fault>> {
        assert_eq!(node, self.replica.me, "started under its id");
        self.starts.fetch_add(1, Ordering::SeqCst);
        let replica: Arc<dyn Replica> = self.replica.clone();
        Box::pin(async move { Ok(replica) })
    }
}

/// What a data directory remembers.
#[derive(Default)]
pub struct Memory {
    pub membership: Mutex<Option<Membership>>,
    pub asked: Mutex<BTreeSet<String>>,
}

impl Registry for Memory {
    fn load(&self) -> Result<Option<Membership>, Fault> {
        Ok(self.membership.lock().expect("no panic").clone())
    }

    fn save(&self, membership: &Membership) -> Result<(), Fault> {
        *self.membership.lock().expect("no panic") = Some(membership.clone());
        Ok(())
    }

    fn asked(&self) -> Result<BTreeSet<String>, Fault> {
        Ok(self.asked.lock().expect("no panic").clone())
    }

    fn save_asked(&self, asked: &BTreeSet<String>) -> Result<(), Fault> {
        self.asked.lock().expect("no panic").clone_from(asked);
        Ok(())
    }
}

/// Another node, as far as a node that wants in sees it.
#[derive(Debug, Clone, Copy)]
pub enum Seed {
    /// Waits to be let in itself.
    Outside,
    /// A member that lets in, but its answer is lost.
    Mute,
    /// A member that cannot reach its leader.
    Leaderless,
}

/// Peers by address; whoever is not listed cannot be reached.
#[derive(Default)]
pub struct Seeds(pub Mutex<BTreeMap<String, Seed>>);

impl Peer for Seeds {
    fn call(&self, target: &Target, request: Request, _: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let seed = self.0.lock().expect("no panic").get(&target.address).copied();
        Box::pin(async move {
            let seed = seed.ok_or_else(|| Fault::new(Class::Retry, "PV-UNREACHABLE", "refused"))?;
            match (request, seed) {
                (Request::Status, _) => Ok(Reply::Status(Box::new(status_of(seed)))),
                (Request::Join(_), Seed::Outside) => panic!("a node outside was asked to let in"),
                (Request::Join(_), Seed::Mute) => Err(Fault::new(Class::Unknown, "PV-CONNECTION-BROKEN", "lost")),
                (Request::Join(_), Seed::Leaderless) => Err(Fault::new(Class::Retry, "PV-NO-LEADER", "no leader")),
                (other, _) => panic!("not asked of seeds: {other:?}"),
            }
        })
    }
}

fn status_of(seed: Seed) -> NodeStatus {
    let outside = matches!(seed, Seed::Outside);
    NodeStatus {
        node: (!outside).then_some(NodeId(2)),
        name: "other".parse().expect("a name"),
        site: "site-1".parse().expect("a name"),
        binary_version: "test".to_owned(),
        cluster: CLUSTER,
        leader: None,
        term: Term(0),
        last_log: LogIndex(0),
        applied: LogIndex(0),
        state_digest: Digest([0; 32]),
        voters: if outside { Vec::new() } else { vec![NodeId(2)] },
        learners: Vec::new(),
        volumes: Vec::new(),
    }
}

pub fn target(address: &str) -> Target {
    Target { address: address.to_owned(), name: None }
}

/// One node and all it stands on.
pub struct Bed {
    pub node: Arc<Node>,
    pub starter: Arc<Starter>,
    pub memory: Arc<Memory>,
    pub seeds: Arc<Seeds>,
}

impl Bed {
    /// The node that the test catalog knows as `node-0`.
    pub fn new(replica: &Arc<Fake>, memory: &Arc<Memory>, join: &[&str], volumes: Vec<OwnVolume>) -> Self {
        let known = catalog::join(0);
        let profile = Profile {
            cluster: CLUSTER,
            name: known.name,
            site: known.site,
            address: known.address,
            roles: Roles { storage: true, voter: true },
            incarnation: Incarnation([1; 16]),
            join: join.iter().map(|address| target(address)).collect(),
            binary_version: "test".to_owned(),
            format_version: pacsvault_service::FORMAT_VERSION,
        };
        let starter = Arc::new(Starter { replica: replica.clone(), starts: AtomicU64::new(0) });
        let seeds = Arc::new(Seeds::default());
        let volumes: BTreeMap<VolumeId, OwnVolume> = volumes.into_iter().map(|own| (own.volume.id(), own)).collect();
        let registry: Arc<dyn Registry> = memory.clone();
        let node =
            Node::new(profile, TokioEnv::current(), seeds.clone(), registry, starter.clone(), volumes, Pace::default());
        Self { node, starter, memory: memory.clone(), seeds }
    }

    pub fn seed(&self, address: &str, seed: Seed) {
        self.seeds.0.lock().expect("no panic").insert(address.to_owned(), seed);
    }

    pub async fn ask(&self, request: Request) -> Result<Reply, Fault> {
        Front(self.node.clone()).handle(Caller::Operator("operator".to_owned()), request).await
    }
}

/// Waits until `ready`, at most [`PATIENCE`].
pub async fn until(ready: impl Fn() -> bool) {
    let waiting = async {
        while !ready() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("it comes true");
}
