//! A cluster in memory behind the `Peer` port: six nodes with a volume each on three sites, a catalog that seals what
//! survives the floor, and per-node misbehaviour that a test chooses.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use pacsvault_coordinator::{Coordinator, Options, ReceiptSigner};
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, Replace, Seal, SealedInstance},
    ids::{
        ClusterId, Incarnation, LayoutVersion, LogIndex, NodeId, ObjectKey, ShardIndex, StripeIndex, Term,
        VersionNumber, VolumeId, WallMillis,
    },
    layout::{
        Contract, Failures, Layout, Node, NodeState, Profile, Roles, Volume, VolumeState,
        profile::{Code, ReadPreference},
    },
    limits::CHUNK_BYTES,
    shard::{DurableShard, ShardHeader, ShardId},
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Class, Fault, Freshness, Peer, Reply, Request, ShardData, Target},
};
use pacsvault_runtime::TokioEnv;

/// Nodes of the cluster.
pub const NODES: u8 = 6;

/// What one catalog request is answered instead of the truth.
#[derive(Clone)]
pub enum Lie {
    /// This fault; the request is not carried out.
    Fault(Fault),
    /// This outcome of a proposal.
    Outcome(Outcome),
}

#[derive(Default)]
pub struct Kept {
    pub shards: BTreeMap<(VolumeId, ShardId), (ShardHeader, Bytes)>,
    pub sealed: Vec<SealedInstance>,
    /// Nodes whose volumes refuse shards.
    pub full: BTreeSet<u8>,
    /// Nodes that answer shard requests after so long.
    pub slow: BTreeMap<u8, Duration>,
    /// Answers to the next catalog requests, whichever node gets them.
    pub script: VecDeque<Lie>,
    /// Answer to every request of the catalog once the script is over.
    pub always: Option<Fault>,
    /// Last index that the nodes' replicas have applied; what was sealed later is not found yet. No limit when absent.
    pub applied: Option<LogIndex>,
    /// Nodes that take requests of the catalog and never answer.
    pub silent: BTreeSet<u8>,
    /// Nodes asked for shards, in order.
    pub asked: Vec<u8>,
    /// Lookups so far: whom, and how fresh.
    pub lookups: Vec<(u8, Freshness)>,
    /// Nodes that are cut off from the leader, and the layout that they have.
    pub cut_off: BTreeMap<u8, Arc<Layout>>,
    /// Catalog requests so far.
    pub catalog_calls: usize,
}

pub struct World {
    pub layout: Arc<Layout>,
    kept: Mutex<Kept>,
}

fn layout(code: Code) -> Layout {
    let nodes = (1..=NODES).map(|number| Node {
        id: NodeId(number.into()),
        name: format!("node-{number}").parse().expect("a name"),
        site: format!("site-{}", number % 3).parse().expect("a name"),
        address: number.to_string(),
        roles: Roles { storage: true, voter: true },
        state: NodeState::Up,
        incarnation: Incarnation([number; 16]),
        version: 1,
        draining: false,
    });
    let volumes = (1..=NODES).map(|number| Volume {
        id: VolumeId([number; 16]),
        node: NodeId(number.into()),
        capacity_bytes: 1 << 40,
        state: VolumeState::Up,
        draining: false,
    });
    let profile = |name: &str, version, code| Profile {
        name: name.parse().expect("a name"),
        version,
        code,
        contract: Contract::one(Failures { sites: 1, nodes: 0 }),
        floor: Contract::one(Failures { sites: 0, nodes: 1 }),
        read_preference: ReadPreference::OwnSite,
    };
    let profiles = [profile("standard", 1, code), profile("hot", 3, Code::new(2, 4).expect("a code"))];
    Layout {
        cluster: ClusterId([1; 16]),
        version: LayoutVersion(1),
        format: 2,
        nodes: nodes.map(|node| (node.id, node)).collect(),
        volumes: volumes.map(|volume| (volume.id, volume)).collect(),
        default_profile: profiles[0].name.clone(),
        profiles: profiles.into_iter().map(|profile| (profile.name.clone(), profile)).collect(),
    }
}

impl World {
    pub fn new(data: u8, parity: u8) -> Arc<Self> {
        let code = Code::new(data, parity).expect("a code");
        Arc::new(Self { layout: Arc::new(layout(code)), kept: Mutex::default() })
    }

    pub fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic")
    }

    /// A coordinator with short deadlines.
    pub fn coordinator(self: &Arc<Self>, change: impl FnOnce(&mut Options)) -> Coordinator {
        let mut options = Options::new(vec![Target { address: "1".to_owned(), name: None }]);
        options.stripe_bytes = 1 << 20;
        options.operation_deadline = Duration::from_millis(400);
        options.shard_deadline = Duration::from_millis(400);
        options.hedge_after = Duration::from_millis(30);
        change(&mut options);
        Coordinator::new(options, TokioEnv::current(), Arc::new(Direct(self.clone())), Arc::new(Unsigned))
    }

    fn seal(&self, seal: Seal) -> Outcome {
        let mut kept = self.kept();
        let index = LogIndex(u64::try_from(kept.sealed.len()).expect("few") + 1);
        let sealed = SealedInstance {
            survives: vec![Failures { sites: 1, nodes: 0 }],
            version: VersionNumber(1),
            degraded: false,
            term: Term(1),
            index,
            time: WallMillis(1),
            deleted: None,
            moved: std::collections::BTreeMap::new(),
            contract: Contract::one(Failures { sites: 1, nodes: 0 }),
            seal,
        };
        kept.sealed.push(sealed.clone());
        Outcome::Sealed { sealed: Box::new(sealed), first: true }
    }

    /// As the catalog does it, as far as a coordinator can tell.
    fn replace(&self, replace: Replace) -> Outcome {
        let mut kept = self.kept();
        let index = LogIndex(u64::try_from(kept.sealed.len()).expect("few") + 100);
        let same = |sealed: &&mut SealedInstance| {
            sealed.seal.key == replace.seal.key && sealed.version == replace.version && sealed.deleted.is_none()
        };
        let Some(present) = kept.sealed.iter_mut().find(same) else {
            return Outcome::Rejected(Rejection::NotFound(replace.seal.key.to_string()));
        };
        if present.seal.instance != replace.replaces {
            return Outcome::Rejected(Rejection::Changed(replace.seal.key.to_string()));
        }
        (present.seal, present.index) = (replace.seal, index);
        Outcome::Sealed { sealed: Box::new(present.clone()), first: true }
    }

    /// Waits until the replica of `node` is as fresh as a request of the catalog asks; `None` at its deadline.
    async fn hears(&self, node: u8, request: &Request, deadline: Duration) -> Option<()> {
        let least = match request {
            Request::Lookup(lookup) => {
                self.kept().lookups.push((node, lookup.freshness));
                lookup.freshness
            }
            Request::Layout(freshness) => *freshness,
            Request::List(list) => list.freshness,
            Request::Propose(_) => Freshness::AtLeast(LogIndex(0)),
            _ => return Some(()),
        };
        let end = tokio::time::Instant::now() + deadline;
        let waits = || {
            let kept = self.kept();
            let behind = match (least, kept.applied) {
                (Freshness::Linearizable, _) if kept.cut_off.contains_key(&node) => true,
                (_, None) => false,
                (Freshness::AtLeast(index), Some(applied)) => applied < index,
                (Freshness::Linearizable, Some(_)) => true,
            };
            behind || kept.silent.contains(&node)
        };
        while waits() {
            if tokio::time::Instant::now() >= end {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Some(())
    }

    /// Moves every shard of `number` from its volume to the next one, in the record too.
    pub fn move_shards(&self, numbers: &[u8]) {
        let mut kept = self.kept();
        let Kept { shards, sealed, .. } = &mut *kept;
        for sealed in sealed {
            let instance = sealed.seal.instance;
            for (stripe, index) in sealed.seal.stripes.iter_mut().zip(0_u32..) {
                for number in numbers {
                    let id = ShardId { instance, stripe: StripeIndex(index), shard: ShardIndex(*number) };
                    let volume = &mut stripe.placement[usize::from(*number)];
                    let next = VolumeId([volume.0[0] % NODES + 1; 16]);
                    let shard = shards.remove(&(*volume, id)).expect("is there");
                    shards.insert((next, id), shard);
                    *volume = next;
                }
            }
        }
    }

    fn answer(&self, node: u8, request: Request) -> Result<Reply, Fault> {
        let is_change = matches!(request, Request::Propose(_));
        if is_change || matches!(request, Request::Lookup(_)) {
            let mut kept = self.kept();
            kept.catalog_calls += 1;
            match kept.script.pop_front() {
                Some(Lie::Fault(fault)) => return Err(fault),
                Some(Lie::Outcome(outcome)) => return Ok(Reply::Outcomes(vec![outcome])),
                None => {}
            }
            if let Some(fault) = &kept.always {
                return Err(fault.clone());
            }
        }
        Ok(match request {
            Request::Status => return Err(Fault::new(Class::Retry, "PV-UNREACHABLE", "stays suspected")),
            Request::Layout(_) => Reply::Layout(self.kept().cut_off.get(&node).unwrap_or(&self.layout).clone()),
            Request::PutShard(put) => {
                let mut kept = self.kept();
                if kept.full.contains(&node) {
                    return Err(Fault::new(Class::Exhausted, "PV-VOLUME-FULL", "the volume is full"));
                }
                let durable = DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest };
                kept.shards.insert((put.volume, put.header.id), (put.header, put.data));
                Reply::Durable(durable)
            }
            Request::GetShard(get) => {
                let kept = self.kept();
                let Some((header, data)) = kept.shards.get(&(get.volume, get.id)) else {
                    return Err(Fault::new(Class::NotFound, "PV-SHARD-NOT-FOUND", "no such shard"));
                };
                let from = usize::try_from(get.offset_bytes).expect("small") / CHUNK_BYTES * CHUNK_BYTES;
                let end = usize::try_from(get.offset_bytes + get.len_bytes).expect("small");
                let end = end.next_multiple_of(CHUNK_BYTES).min(data.len());
                let (header, data) = (header.clone(), data.slice(from..end));
                Reply::Shard(Box::new(ShardData { header, offset_bytes: from as u64, data }))
            }
            Request::Propose(commands) => {
                let outcomes = commands.into_iter().map(|command| match command {
                    Command::Seal(seal) => self.seal(*seal),
                    Command::Replace(replace) => self.replace(*replace),
                    _ => Outcome::Done,
                });
                Reply::Outcomes(outcomes.collect())
            }
            Request::Lookup(lookup) => {
                let kept = self.kept();
                let visible = |sealed: &&SealedInstance| kept.applied.is_none_or(|applied| sealed.index <= applied);
                let found = kept.sealed.iter().filter(visible).find(|sealed| sealed.seal.key == lookup.key).cloned();
                Reply::Found { sealed: found.map(Box::new), applied: LogIndex(99) }
            }
            _ => return Err(Fault::new(Class::Reject, "PV-NO-METHOD", "not part of these tests")),
        })
    }
}

struct Direct(Arc<World>);

impl Peer for Direct {
    fn call(&self, target: &Target, request: Request, deadline: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let node: u8 = target.address.parse().expect("a number");
        let of_shard = matches!(request, Request::PutShard(_) | Request::GetShard(_));
        let slow = {
            let mut kept = self.0.kept();
            if of_shard {
                kept.asked.push(node);
            }
            kept.slow.get(&node).copied().filter(|_| of_shard)
        };
        let world = self.0.clone();
        Box::pin(async move {
            if world.hears(node, &request, deadline).await.is_none() {
                return Err(Fault::new(Class::Unknown, "PV-DEADLINE", "no reply in time"));
            }
            match slow {
                Some(delay) if delay >= deadline => {
                    tokio::time::sleep(deadline).await;
                    return Err(Fault::new(Class::Unknown, "PV-DEADLINE", "no reply in time"));
                }
                Some(delay) => tokio::time::sleep(delay).await,
                None => tokio::task::yield_now().await,
            }
            world.answer(node, request)
        })
    }
}

struct Unsigned;

impl ReceiptSigner for Unsigned {
    fn name(&self) -> String {
        "node/node-1".to_owned()
    }
    fn sign(&self, payload: &[u8]) -> Result<Vec<u8>, String> {
        Ok(payload.to_vec())
    }
}

pub fn key(last: u32) -> ObjectKey {
    format!("main/1.2.3/1.2.4/1.2.5.{last}").parse().expect("a key")
}

/// Bytes that differ between any two places of a stripe.
pub fn content(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state.to_be_bytes()[0]
    };
    (0..len).map(|_| next()).collect()
}
