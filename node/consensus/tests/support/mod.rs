//! Replicas in one process: a peer that calls them directly and whose links can be cut.

#![allow(dead_code, reason = "each test binary uses a part")]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use pacsvault_consensus::{Consensus, Error, Options, Replica, Status, TokioRuntime, start};
use pacsvault_core::{
    catalog::{Command, Outcome, command::JoinNode},
    ids::{ClusterId, Incarnation, NodeId, NodeName, SiteName},
    layout::{
        Roles,
        plan::{Topology, defaults_for},
    },
};
use pacsvault_ports::{
    BoxFuture,
    env::SharedEnv,
    peer::{Class, Fault, NodeStatus, Peer, Reply, Request, Target},
};
use pacsvault_runtime::TokioEnv;
use pacsvault_simkv::SimKvMedia;

pub const CLUSTER: ClusterId = ClusterId([9; 16]);
/// Longest wait for what must come true; a test that needs it fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Who is reachable.
#[derive(Default)]
pub struct Links {
    replicas: Mutex<BTreeMap<String, Arc<dyn Replica>>>,
    cut: Mutex<BTreeSet<String>>,
    /// Between these two, by name in order, nothing passes, silently.
    apart: Mutex<BTreeSet<(String, String)>>,
    dark: Mutex<BTreeSet<String>>,
}

/// The calls of one node.
struct Loopback {
    from: String,
    links: Arc<Links>,
}

async fn serve(replica: Arc<dyn Replica>, from: NodeName, request: Request) -> Result<Reply, Fault> {
    match request {
        Request::Raft(message) => replica.handle(Some(from), message).await.map(Reply::Raft),
        Request::Propose(commands) => replica.propose_local(commands).await.map(Reply::Outcomes),
        Request::ReadIndex => replica.read_index().await.map(Reply::ReadIndex),
        Request::SnapshotFiles { id } => replica.snapshot_files(&id).await.map(Reply::SnapshotFiles),
        Request::SnapshotRead { id, name, offset_bytes, len_bytes } => {
            replica.snapshot_read(&id, &name, offset_bytes, len_bytes).await.map(Reply::Bytes)
        }
        Request::Status => Ok(Reply::Status(Box::new(node_status(replica.status())))),
        other => Err(Fault::new(Class::Reject, "PV-TEST", format!("not served here: {other:?}"))),
    }
}

/// As a node tells it.
fn node_status(status: Status) -> NodeStatus {
    NodeStatus {
        node: Some(status.node),
        name: name(status.node.0).parse().expect("a name"),
        site: site(status.node.0),
        binary_version: String::new(),
        cluster: CLUSTER,
        leader: status.leader,
        term: status.term,
        last_log: status.last_log,
        applied: status.applied,
        state_digest: status.digest,
        voters: status.voters,
        learners: status.learners,
        volumes: Vec::new(),
    }
}

impl Peer for Loopback {
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let cut = |name: &str| self.links.cut.lock().expect("no panic").contains(name);
        let away = cut(&self.from) || cut(&target.address);
        let replica = self.links.replicas.lock().expect("no panic").get(&target.address).cloned();
        let from: NodeName = self.from.parse().expect("a name");
        let (links, asker, asked) = (self.links.clone(), self.from.clone(), target.address.clone());
        Box::pin(async move {
            let lost = || Fault::new(Class::Retry, "PV-TEST-CUT", "the link is cut");
            let replica = replica.filter(|_| !away).ok_or_else(lost)?;
            let late = Fault::new(Class::Unknown, "PV-TEST-LATE", "no reply in time");
            let answered = async {
                let pair = if asker < asked { (asker.clone(), asked.clone()) } else { (asked.clone(), asker.clone()) };
                let dark = || {
                    let alone =
                        links.dark.lock().expect("no panic").iter().any(|name| [&asker, &asked].contains(&name));
                    alone || links.apart.lock().expect("no panic").contains(&pair)
                };
                if dark() {
                    return std::future::pending().await;
                }
                let reply = serve(replica, from, request).await;
                if dark() { std::future::pending().await } else { reply }
            };
            tokio::time::timeout(deadline, answered).await.map_err(|_| late)?
        })
    }
}

/// One node with its disks.
pub struct Node {
    pub log: SimKvMedia,
    pub state: SimKvMedia,
    pub replica: Option<Arc<dyn Replica>>,
}

pub struct Cluster {
    pub links: Arc<Links>,
    pub nodes: BTreeMap<u64, Node>,
    pub tune: fn(&mut Options),
}

pub fn name(id: u64) -> String {
    format!("node-{id}")
}

pub fn site(id: u64) -> SiteName {
    format!("site-{}", (id - 1) % 3).parse().expect("a name")
}

pub fn join(id: u64, life: u8) -> Command {
    join_with(id, life, 1)
}

/// As a program that understands `version` joins.
pub fn join_with(id: u64, life: u8, version: u32) -> Command {
    Command::JoinNode(JoinNode {
        name: name(id).parse().expect("a name"),
        incarnation: Incarnation([life; 16]),
        site: site(id),
        address: name(id),
        roles: Roles { storage: true, voter: true },
        volumes: Vec::new(),
        version,
    })
}

impl Cluster {
    pub fn new(tune: fn(&mut Options)) -> Self {
        Self { links: Arc::default(), nodes: BTreeMap::new(), tune }
    }

    fn options(&self, id: u64, life: u8) -> Options {
        let names = (name(id).parse().expect("a name"), site(id));
        let mut options = Options::new(NodeId(id), CLUSTER, Incarnation([life; 16]), names, name(id));
        options.heartbeat = Duration::from_millis(50);
        options.election_min = Duration::from_millis(300);
        options.election_max = Duration::from_millis(600);
        (self.tune)(&mut options);
        options
    }

    /// Starts `id` on its disks, which are new if it never ran.
    pub async fn start(&mut self, id: u64) -> Arc<dyn Replica> {
        self.start_as(id, u8::try_from(id).expect("small")).await
    }

    /// As [`Cluster::start`], with another incarnation.
    pub async fn start_as(&mut self, id: u64, life: u8) -> Arc<dyn Replica> {
        self.try_start_as(id, life).await.expect("it starts")
    }

    /// As [`Cluster::start_as`]; disks may fail.
    pub async fn try_start_as(&mut self, id: u64, life: u8) -> Result<Arc<dyn Replica>, Error> {
        let fresh = || Node { log: SimKvMedia::new(), state: SimKvMedia::new(), replica: None };
        let (log, state) = {
            let node = self.nodes.entry(id).or_insert_with(fresh);
            (node.log.open(), node.state.open())
        };
        let env: SharedEnv = TokioEnv::current();
        let peer = Arc::new(Loopback { from: name(id), links: self.links.clone() });
        let options = self.options(id, life);
        let replica: Consensus<TokioRuntime> = start(options, env, peer, log, state).await?;
        let replica: Arc<dyn Replica> = Arc::new(replica);
        self.links.replicas.lock().expect("no panic").insert(name(id), replica.clone());
        self.nodes.get_mut(&id).expect("just added").replica = Some(replica.clone());
        Ok(replica)
    }

    /// Node `id` with its disks, new if it was unknown.
    pub fn node(&mut self, id: u64) -> &Node {
        self.nodes.entry(id).or_insert_with(|| Node { log: SimKvMedia::new(), state: SimKvMedia::new(), replica: None })
    }

    pub fn replica(&self, id: u64) -> &Arc<dyn Replica> {
        self.nodes[&id].replica.as_ref().expect("it runs")
    }

    pub fn cut(&self, id: u64) {
        self.links.cut.lock().expect("no panic").insert(name(id));
    }

    /// Whatever `id` is sent or sends is lost without a word.
    pub fn darken(&self, id: u64) {
        self.links.dark.lock().expect("no panic").insert(name(id));
    }

    /// Nothing passes between these two any more, without a word; or all does again.
    pub fn part(&self, one: u64, other: u64, apart: bool) {
        let pair = (name(one.min(other)), name(one.max(other)));
        let mut pairs = self.links.apart.lock().expect("no panic");
        if apart {
            pairs.insert(pair)
        } else {
            pairs.remove(&pair)
        };
    }

    pub fn heal(&self, id: u64) {
        self.links.cut.lock().expect("no panic").remove(&name(id));
    }

    /// Power loss of `id`: what was not synced is lost, as `seed` says.
    pub async fn crash(&mut self, id: u64, seed: u64) {
        self.cut(id);
        let node = self.nodes.get_mut(&id).expect("known");
        node.log.crash(seed);
        node.state.crash(seed);
        let replica = node.replica.take();
        self.links.replicas.lock().expect("no panic").remove(&name(id));
        if let Some(replica) = replica {
            replica.stop().await;
        }
        self.heal(id);
    }

    /// Stops `id` in good order.
    pub async fn stop(&mut self, id: u64) {
        self.links.replicas.lock().expect("no panic").remove(&name(id));
        let replica = self.nodes.get_mut(&id).expect("known").replica.take().expect("it runs");
        replica.stop().await;
    }

    /// A cluster of node 1 alone, joined to its own layout.
    pub async fn found(tune: fn(&mut Options)) -> Self {
        let mut cluster = Self::new(tune);
        let first = cluster.start(1).await;
        first.initialise().await.expect("a new cluster");
        let outcomes = first.propose(founding()).await.expect("applied");
        assert_eq!(outcomes, vec![Outcome::Done, Outcome::Joined(NodeId(1))]);
        cluster
    }

    /// Lets nodes `2..=count` join, and waits until `voters` vote.
    pub async fn grow(&mut self, count: u64, voters: usize) {
        for id in 2..=count {
            self.start(id).await;
            let life = u8::try_from(id).expect("small");
            let outcomes = self.replica(1).propose(vec![join(id, life)]).await.expect("applied");
            assert_eq!(outcomes, vec![Outcome::Joined(NodeId(id))]);
        }
        self.until("all vote", |cluster| {
            let status = cluster.replica(1).status();
            let here = |id: &u64| cluster.replica(*id).status().applied.0 > 0;
            status.voters.len() == voters && !status.joint && (1..=count).all(|id| here(&id))
        })
        .await;
    }

    pub fn statuses(&self) -> Vec<Status> {
        self.nodes.values().filter_map(|node| node.replica.as_ref()).map(|replica| replica.status()).collect()
    }

    /// The running node that the running nodes agree to be led by.
    pub fn leader(&self) -> Option<u64> {
        let statuses = self.statuses();
        let leader = statuses.first()?.leader?;
        let agreed = statuses.iter().all(|status| status.leader == Some(leader));
        (agreed && statuses.iter().any(|status| status.node == leader)).then_some(leader.0)
    }

    /// Waits for `what`.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let over = tokio::time::Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(tokio::time::Instant::now() < over, "in vain: {what}; {:#?}", self.statuses());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until all running replicas have applied the same, and compares their digests.
    pub async fn until_equal(&self) {
        self.until("all are equal", |cluster| {
            let statuses = cluster.statuses();
            statuses.windows(2).all(|pair| pair[0].applied == pair[1].applied)
        })
        .await;
        let statuses = self.statuses();
        for pair in statuses.windows(2) {
            if pair[0].applied == pair[1].applied {
                assert_eq!(pair[0].digest, pair[1].digest);
            }
        }
    }
}

/// The first commands of a cluster.
pub fn founding() -> Vec<Command> {
    let (profiles, default_profile) = profiles();
    vec![Command::InitCluster { cluster: CLUSTER, profiles, default_profile }, join(1, 1)]
}

fn profiles() -> (Vec<pacsvault_core::layout::Profile>, pacsvault_core::ids::ProfileName) {
    let profiles = defaults_for(&Topology::with_nodes((1..=3).map(|id| (site(id), 2))));
    let default_profile = profiles[0].name.clone();
    (profiles, default_profile)
}
