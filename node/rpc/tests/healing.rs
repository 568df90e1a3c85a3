//! Healing and administration over real sockets and real TLS: what is sent arrives, and each role is held to its row.
#![allow(dead_code, reason = "shared support; each test binary uses a part of it")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, command::DrainTarget},
    health::{
        Cause, Loss, Task, Tier,
        report::{Done, Heartbeat, ServedVolume},
    },
    ids::{Digest, Incarnation, InstanceId, NodeId, ShardIndex, StripeIndex, VolumeId},
    layout::{NodeState, VolumeState},
    shard::ShardId,
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Caller, Class, Fault, Peer, Reply, Request, Service, ShardProof},
};
use pacsvault_proto::v1::{self, admin_client::AdminClient};
use pacsvault_rpc::{TonicPeer, fault::fault_of};
use pacsvault_security::Role;
use support::{Echo, PATIENCE, Pki, Running, health, put_shard, scrub_age, what_if};

struct Bench {
    pki: Pki,
    echo: Arc<Echo>,
    server: Running,
    peer: TonicPeer,
}

async fn bench() -> Bench {
    let pki = Pki::new();
    let echo = Arc::new(Echo::default());
    let server = Running::start(&pki, "node-1", echo.clone(), None).await;
    let peer = pki.peer(Role::Node, "node-2");
    Bench { pki, echo, server, peer }
}

impl Bench {
    async fn call(&self, request: Request) -> Result<Reply, Fault> {
        self.peer.call(&self.server.target, request, PATIENCE).await
    }

    /// What arrived last, as text: requests are not comparable.
    fn arrived(&self) -> String {
        format!("{:?}", self.echo.requests.lock().expect("no panic").pop().expect("a request arrived"))
    }
}

fn heartbeat() -> Request {
    let volume = |state| ServedVolume {
        volume: VolumeId([4; 16]),
        state,
        shards: 5,
        used_bytes: 6,
        free_bytes: 7,
        scrub: scrub_age(),
    };
    Request::Heartbeat(Box::new(Heartbeat {
        node: NodeId(3),
        incarnation: Incarnation([2; 16]),
        volumes: vec![volume(VolumeState::Up), volume(VolumeState::Away)],
        tasks: 8,
        allowed_bytes_per_s: 9,
    }))
}

fn repair() -> Request {
    Request::Repair(Box::new(Task {
        instance: InstanceId([1; 16]),
        stripe: StripeIndex(70_000),
        expected: (0..6).map(|number| VolumeId([number; 16])).collect(),
        persisted: 0b11_0111,
        moves: vec![(ShardIndex(3), VolumeId([9; 16]))],
        cause: Cause::Drain,
        tier: Tier::Distance(1),
        write_bytes: 4 << 20,
    }))
}

fn shards() -> Request {
    let shard = |shard| ShardId { instance: InstanceId([1; 16]), stripe: StripeIndex(2), shard: ShardIndex(shard) };
    Request::VerifyShards { volume: VolumeId([9; 16]), shards: (0..3).map(shard).collect() }
}

fn loss() -> Loss {
    Loss {
        sites: vec!["site-b".parse().expect("a name")],
        nodes: vec![NodeId(4)],
        volumes: vec![VolumeId([5; 16]), VolumeId([6; 16])],
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_of_healing_arrive_as_sent_and_replies_come_back() {
    let bench = bench().await;
    let volume = DrainTarget::Volume(VolumeId([7; 16]));
    for sent in [
        heartbeat(),
        repair(),
        Request::Health,
        Request::WhatIf(loss()),
        Request::DrainPlan(DrainTarget::Node(NodeId(5))),
        Request::DrainPlan(volume),
        Request::ScrubNow(None),
        Request::ScrubNow(Some(VolumeId([8; 16]))),
        shards(),
    ] {
        let text = format!("{sent:?}");
        let reply = bench.call(sent).await.expect("is answered");
        assert_eq!(bench.arrived(), text);
        match reply {
            Reply::Done => {}
            Reply::Repaired(done) => {
                assert_eq!(done, Done::Reseated { written_bytes: 4 << 20, read_bytes: 1, wan_bytes: 2 });
            }
            Reply::Health(back) => assert_eq!(*back, health()),
            Reply::WhatIf(back) => assert_eq!(*back, what_if(loss())),
            Reply::DrainPlan(back) => assert_eq!((back.moves.stripes, back.takes_s, back.safe), (8, Some(10), false)),
            Reply::Verified(proofs) => {
                let damaged = ShardProof::Damaged("chunk 3".to_owned());
                assert_eq!(proofs, [ShardProof::Sound(Digest([7; 32])), ShardProof::Missing, damaged]);
            }
            other => panic!("{text} was answered with {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn healing_is_for_nodes_looking_for_all_and_scrubbing_for_operators() {
    let bench = bench().await;
    let (gateway, operator) = (bench.pki.peer(Role::Gateway, "g"), bench.pki.peer(Role::Operator, "o"));
    let for_repair = || {
        let Request::PutShard(mut put) = put_shard(Bytes::from_static(b"x")) else { panic!("a shard") };
        put.repair = true;
        Request::PutShard(put)
    };
    let plan = Request::DrainPlan(DrainTarget::Node(NodeId(5)));
    for (request, gateway_may, operator_may) in [
        (heartbeat(), false, false),
        (repair(), false, false),
        (for_repair(), false, false),
        (Request::Health, true, true),
        (Request::WhatIf(loss()), true, true),
        (plan, true, true),
        (Request::ScrubNow(None), false, true),
        (shards(), false, true),
    ] {
        assert!(bench.call(request.clone()).await.is_ok(), "a node may: {request:?}");
        for (peer, may) in [(&gateway, gateway_may), (&operator, operator_may)] {
            match peer.call(&bench.server.target, request.clone(), PATIENCE).await {
                Ok(_) => assert!(may, "{request:?}"),
                Err(fault) => {
                    assert_eq!((may, fault.class, fault.code), (false, Class::Reject, "PV-DENIED"), "{fault}")
                }
            }
        }
    }
}

/// Refuses all proposals.
struct Refuses(Rejection);

impl Service for Refuses {
    fn handle(&self, _: Caller, _: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        Box::pin(std::future::ready(Ok(Reply::Outcomes(vec![Outcome::Rejected(self.0.clone())]))))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn other_languages_administer_through_their_generated_client() {
    let bench = bench().await;
    let operator = bench.pki.peer(Role::Operator, "o");
    let (channel, origin) = operator.channel(&bench.server.target).expect("a channel");
    let mut admin = AdminClient::with_origin(channel, origin);
    let target = Some(v1::DrainTarget { what: Some(v1::drain_target::What::Node(3)) });
    admin.set_drain(v1::SetDrainRequest { target, draining: true }).await.expect("is accepted");
    let drain = Command::SetDrain { target: DrainTarget::Node(NodeId(3)), draining: true };
    assert_eq!(bench.arrived(), format!("{:?}", Request::Propose(vec![drain])));
    admin.remove_node(v1::RemoveNodeRequest { node: 3 }).await.expect("is accepted");
    let remove = Command::SetNodeState { node: NodeId(3), state: NodeState::Removed };
    assert_eq!(bench.arrived(), format!("{:?}", Request::Propose(vec![remove])));
    admin.retry_aside(v1::RetryAsideRequest {}).await.expect("is accepted");
    assert_eq!(bench.arrived(), format!("{:?}", Request::Propose(vec![Command::RetryAside])));
    for profile in ["archive", ""] {
        let (tenant, study) = ("main".to_owned(), "1.2.3".to_owned());
        let message = v1::SetStudyProfileRequest { tenant, study, profile: profile.to_owned() };
        admin.set_study_profile(message).await.expect("is accepted");
        let wanted = (!profile.is_empty()).then(|| profile.parse().expect("a name"));
        let (tenant, study) = ("main".parse().expect("a name"), "1.2.3".parse().expect("a UID"));
        let set = Command::SetStudyProfile { tenant, study, profile: wanted };
        assert_eq!(bench.arrived(), format!("{:?}", Request::Propose(vec![set])));
    }
    let reply = admin.health(v1::HealthRequest {}).await.expect("is answered").into_inner();
    assert_eq!((reply.leader, reply.by_tier.len(), reply.aside_total), (7, 3, 15));
    let empty = v1::WhatIfRequest { loss: Some(v1::Loss::default()) };
    let refused = admin.what_if(empty).await.expect_err("nothing is lost");
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_the_catalog_keeps_its_code() {
    let pki = Pki::new();
    for (rejection, code, class) in [
        (Rejection::Changed("the stripe".to_owned()), "PV-CHANGED", Class::Retry),
        (Rejection::UpgradePending { needed: 2, present: 1 }, "PV-UPGRADE-PENDING", Class::Reject),
        (Rejection::Impossible("5 shards of 8".to_owned()), "PV-IMPOSSIBLE", Class::Reject),
    ] {
        let server = Running::start(&pki, "node-1", Arc::new(Refuses(rejection)), None).await;
        let (channel, origin) = pki.peer(Role::Operator, "o").channel(&server.target).expect("a channel");
        let mut admin = AdminClient::with_origin(channel, origin);
        let status = admin.retry_aside(v1::RetryAsideRequest {}).await.expect_err("is refused");
        let fault = fault_of(&status, true);
        assert_eq!((fault.code, fault.class), (code, class), "{fault}");
    }
}
