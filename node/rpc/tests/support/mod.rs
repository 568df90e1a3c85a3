//! What the tests of the transport share: certificates, a service that echoes, servers on loopback.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pacsvault_coordinator::Coordinator;
use pacsvault_core::{
    catalog::Outcome,
    health::{
        Aside, ByTier, Cause, Loss, Sums, Tier,
        report::{Done, DrainPlan, Health, NodeHealth, ScrubAge, VolumeHealth, WhatIf, WritesUnder},
    },
    ids::{
        ClusterId, Digest, InstanceId, LayoutVersion, LogIndex, NodeId, ShardIndex, StripeIndex, Term, VolumeId,
        WallMillis,
    },
    layout::{Failures, VolumeState, profile::Code},
    shard::{DurableShard, ShardHeader, ShardId},
};
use pacsvault_ports::{
    BoxFuture,
    kv::CheckpointFile,
    peer::{
        Caller, Class, Fault, ListPage, NodeStatus, PutShard, Reply, Request, Service, ShardData, ShardProof, StudyRow,
        Target, VolumeStatus,
    },
};
use pacsvault_rpc::{Counters, Server, ServerTls, TonicPeer};
use pacsvault_security::{Authority, Credentials, Role, pki};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};

/// Long enough for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn now() -> WallMillis {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    WallMillis(u64::try_from(millis).expect("fits"))
}

/// A cluster's authority.
pub struct Pki(pub Authority);

impl Pki {
    pub fn new() -> Self {
        Self(Authority::draw(now()).expect("randomness"))
    }

    pub fn pem(&self, role: Role, name: &str) -> pki::Certified {
        let hosts = [pacsvault_security::tls::SERVER_NAME.to_owned()];
        let request = pki::Request { role, name, hosts: &hosts, now: now(), days: 2 };
        self.0.certify(&request).expect("a valid request")
    }

    pub fn credentials(&self, role: Role, name: &str) -> Arc<Credentials> {
        let pem = self.pem(role, name);
        let loaded = Credentials::from_pem(self.0.certificate_pem(), &pem.certificate_pem, &pem.key_pem, now());
        Arc::new(loaded.expect("fits together"))
    }

    pub fn peer(&self, role: Role, name: &str) -> TonicPeer {
        TonicPeer::new(self.credentials(role, name))
    }
}

/// A server on loopback; stops when dropped.
pub struct Running {
    pub target: Target,
    pub counters: Arc<Counters>,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<()>,
}

impl Running {
    pub async fn start(pki: &Pki, name: &str, service: Arc<dyn Service>, archive: Option<Coordinator>) -> Self {
        Self::start_at(pki, name, service, archive, "127.0.0.1:0").await
    }

    pub async fn start_at(
        pki: &Pki,
        name: &str,
        service: Arc<dyn Service>,
        archive: Option<Coordinator>,
        address: &str,
    ) -> Self {
        let tls = ServerTls::new(&pki.credentials(Role::Node, name)).expect("a node's credentials");
        let server = Server::new(tls, service, archive).expect("builds");
        let counters = server.counters();
        let listener = TcpListener::bind(address).await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.serve(listener, async move {
            // Dropped without a word: stop too.
            let _ = stopped.await;
        }));
        let target = Target { address, name: Some(name.parse().expect("a name")) };
        Self { target, counters, stop: Some(stop), task }
    }

    /// Stops and waits until the port is free.
    pub async fn stop(mut self) {
        drop(self.stop.take());
        (&mut self.task).await.expect("ends without a panic");
    }
}

pub fn shard_header(shard_bytes: u64) -> ShardHeader {
    ShardHeader {
        id: ShardId { instance: InstanceId([1; 16]), stripe: StripeIndex(70_000), shard: ShardIndex(5) },
        code: Code::new(4, 2).expect("a code"),
        stripe_bytes: 4 * shard_bytes,
        digest: Digest([3; 32]),
        merkle_path: vec![Digest([4; 32]), Digest([5; 32]), Digest([6; 32])],
        chunk_crcs: vec![7, u32::MAX, 0],
    }
}

pub fn put_shard(data: Bytes) -> Request {
    let header = shard_header(data.len() as u64);
    Request::PutShard(Box::new(PutShard { volume: VolumeId([9; 16]), header, data, repair: false }))
}

pub fn status() -> NodeStatus {
    NodeStatus {
        node: Some(NodeId(7)),
        name: "node-1".parse().expect("a name"),
        site: "site-a".parse().expect("a name"),
        binary_version: "1.2.3".to_owned(),
        cluster: ClusterId([8; 16]),
        leader: None,
        term: Term(3),
        last_log: LogIndex(90),
        applied: LogIndex(89),
        state_digest: Digest([2; 32]),
        voters: vec![NodeId(7), NodeId(9)],
        learners: vec![NodeId(11)],
        volumes: vec![VolumeStatus {
            volume: VolumeId([9; 16]),
            state: VolumeState::ReadOnly,
            reason: "nearly full".to_owned(),
            shards: 5,
            used_bytes: 6,
            free_bytes: 7,
            capacity_bytes: 8,
            scrub: scrub_age(),
        }],
    }
}

pub fn scrub_age() -> ScrubAge {
    ScrubAge {
        histogram: [1, 2, 3, 4, 5, 6, 7],
        oldest: Some(WallMillis(8)),
        damaged: 9,
        verified: u64::MAX,
        hurried: true,
    }
}

fn sums(number: u64) -> Sums {
    Sums { stripes: number, content_bytes: number << 20, shard_bytes: number << 18 }
}

fn by_tier() -> ByTier {
    ByTier([(Tier::Unreadable, sums(1)), (Tier::Distance(0), sums(2)), (Tier::Distance(2), sums(3))].into())
}

pub fn health() -> Health {
    Health {
        leader: NodeId(7),
        layout: LayoutVersion(44),
        format: 2,
        by_tier: by_tier(),
        below_contract: sums(4),
        worst: Some(Tier::Unreadable),
        sites_away: vec!["site-b".parse().expect("a name")],
        waiting: [(Cause::Repair, sums(5)), (Cause::Drain, sums(6))].into(),
        in_progress: 7,
        rate_bytes_per_s: 8,
        done_stripes: 9,
        done_bytes: 10,
        wan_bytes: 11,
        eta_s: None,
        held_back: vec!["site-b is away as a whole".to_owned()],
        aside: vec![Aside {
            instance: InstanceId([3; 16]),
            stripe: StripeIndex(12),
            reason: "3 of 4 shards".to_owned(),
            since: WallMillis(13),
            layout: LayoutVersion(14),
        }],
        aside_total: 15,
        nodes: vec![
            NodeHealth { node: NodeId(7), silent_ms: Some(0), allowed_bytes_per_s: None },
            NodeHealth { node: NodeId(9), silent_ms: None, allowed_bytes_per_s: Some(16) },
        ],
        volumes: vec![VolumeHealth {
            volume: VolumeId([9; 16]),
            catalog_bytes: 17,
            used_bytes: 18,
            free_bytes: 19,
            scrub: scrub_age(),
        }],
    }
}

pub fn what_if(loss: Loss) -> WhatIf {
    WhatIf {
        loss,
        nodes_lost: vec![NodeId(1), NodeId(2)],
        by_tier: by_tier(),
        within_contract: sums(1),
        below_contract: sums(2),
        all_readable: true,
        quorum: true,
        voters: (3, 5),
        writes: vec![WritesUnder {
            profile: "standard".parse().expect("a name"),
            survives: vec![Failures { sites: 0, nodes: 2 }],
            full: false,
            why: "one site is left out".to_owned(),
        }],
        rebuild_bytes: sums(3),
        urgent_bytes: 4,
        wan_bytes: 5,
        repair_s: Some(6),
        rate_bytes_per_s: 7,
    }
}

/// Answers each request from what it holds, so that a test sees what travelled. Special cases: `ReadIndex` is never
/// answered; `SnapshotFiles` of id `fail` is refused with the fault that the test put in.
#[derive(Default)]
pub struct Echo {
    pub callers: Mutex<Vec<Caller>>,
    pub requests: Mutex<Vec<Request>>,
    pub fault: Mutex<Option<Fault>>,
}

impl Service for Echo {
    fn handle(&self, caller: Caller, request: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        self.callers.lock().expect("no panic").push(caller);
        self.requests.lock().expect("no panic").push(request.clone());
        if matches!(request, Request::ReadIndex) {
            return Box::pin(std::future::pending());
        }
        let reply = match &request {
            Request::SnapshotFiles { id } if id == "fail" => {
                Err(self.fault.lock().expect("no panic").clone().expect("the test put a fault in"))
            }
            _ => reply_to(request),
        };
        Box::pin(std::future::ready(reply))
    }
}

fn reply_to(request: Request) -> Result<Reply, Fault> {
    Ok(match request {
        Request::PutShard(put) => {
            let digest = Digest::of(&put.data);
            Reply::Durable(DurableShard { id: put.header.id, volume: put.volume, digest })
        }
        Request::GetShard(get) => {
            let data = Bytes::from(vec![6; usize::try_from(get.len_bytes).expect("small")]);
            let header = shard_header(get.len_bytes);
            Reply::Shard(Box::new(ShardData { header, offset_bytes: get.offset_bytes, data }))
        }
        Request::Lookup(_) => Reply::Found { sealed: None, applied: LogIndex(12) },
        Request::List(list) => {
            let study = list.study.expect("the test asks for one");
            let studies = vec![StudyRow { study, objects: 2, size_bytes: 3 }];
            Reply::Page(Box::new(ListPage { studies, instances: vec![], next_page_token: list.page_token }))
        }
        Request::Propose(commands) => Reply::Outcomes(vec![Outcome::Done; commands.len()]),
        Request::Raft(payload) => Reply::Raft(payload),
        Request::SnapshotFiles { id } => {
            Reply::SnapshotFiles(vec![CheckpointFile { name: id, len_bytes: 5, digest: [1; 32] }])
        }
        Request::SnapshotRead { name, .. } => Reply::Bytes(name.into()),
        Request::Status => Reply::Status(Box::new(status())),
        Request::Join(join) => {
            Reply::Joined { node: NodeId(4), cluster: ClusterId([8; 16]), incarnation: join.incarnation }
        }
        Request::TransferLeader { .. } | Request::Heartbeat(_) | Request::ScrubNow(_) => Reply::Done,
        Request::Repair(task) => {
            Reply::Repaired(Done::Reseated { written_bytes: task.write_bytes, read_bytes: 1, wan_bytes: 2 })
        }
        Request::Health => Reply::Health(Box::new(health())),
        Request::WhatIf(loss) => Reply::WhatIf(Box::new(what_if(loss))),
        Request::DrainPlan(target) => Reply::DrainPlan(Box::new(DrainPlan {
            target,
            volumes: vec![VolumeId([1; 16]), VolumeId([2; 16])],
            safe: false,
            reasons: vec!["standard v1: 1 site is left".to_owned()],
            moves: sums(8),
            free_elsewhere_bytes: 9,
            takes_s: Some(10),
            rate_bytes_per_s: 11,
            empty: false,
        })),
        Request::VerifyShards { shards, .. } => {
            let proof = |id: &ShardId| match id.shard.0 {
                0 => ShardProof::Sound(Digest([7; 32])),
                1 => ShardProof::Missing,
                _ => ShardProof::Damaged("chunk 3".to_owned()),
            };
            Reply::Verified(shards.iter().map(proof).collect())
        }
        _ => return Err(Fault::new(Class::Reject, "PV-NO-METHOD", "not echoed")),
    })
}
