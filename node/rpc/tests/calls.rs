//! Calls over real sockets and real TLS: what is sent arrives, and every call ends as the `Peer` port promises.
#![allow(dead_code, reason = "shared support; each test binary uses a part of it")]

mod support;

use std::{
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use pacsvault_core::{
    catalog::{Command, Outcome, command::JoinNode},
    ids::{Digest, Incarnation, LogIndex, NodeId, ShardIndex, VersionNumber, VolumeId},
    layout::{Roles, VolumeState},
    limits::MESSAGE_BYTES_MAX,
};
use pacsvault_ports::peer::{Caller, Class, Fault, Freshness, GetShard, List, Lookup, Peer, Reply, Request, Target};
use pacsvault_proto::v1::{self, shards_client::ShardsClient};
use pacsvault_rpc::{TonicPeer, check_source, convert};
use pacsvault_security::Role;
use support::{Echo, PATIENCE, Pki, Running, put_shard, shard_header, status};
use tokio::net::TcpListener;
use tonic::Code;
use tonic_types::StatusExt;

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

    fn arrived(&self) -> Request {
        self.echo.requests.lock().expect("no panic").pop().expect("a request arrived")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_of_any_size_travel_unchanged() {
    let bench = bench().await;
    for len in [1_usize, 900, 1_100, 128 << 10, (1 << 20) + 17, 16 << 20] {
        let data: Bytes = (0..len).map(|at| u8::try_from(at % 251).expect("small")).collect();
        let reply = bench.call(put_shard(data.clone())).await.expect("is stored");
        let Reply::Durable(durable) = reply else { panic!("answers with a durable shard") };
        assert_eq!(durable.digest, Digest::of(&data), "{len}");
        let Request::PutShard(put) = bench.arrived() else { panic!("a shard arrived") };
        assert_eq!(put.header, shard_header(len as u64));
        let get = GetShard {
            volume: VolumeId([9; 16]),
            id: durable.id,
            offset_bytes: 65_536,
            len_bytes: len as u64,
            background: false,
        };
        let Reply::Shard(shard) = bench.call(Request::GetShard(get)).await.expect("is read") else { panic!("a shard") };
        assert_eq!((shard.offset_bytes, shard.data.len()), (65_536, len));
        assert_eq!(shard.header.id.shard, ShardIndex(5));
    }
    assert_eq!(bench.echo.callers.lock().expect("no panic")[0], Caller::Node("node-2".parse().expect("a name")));
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_are_made_from_the_source_and_from_nowhere_else() {
    let bench = bench().await;
    let source = IpAddr::from([127, 20, 0, 9]);
    let peer = |source| TonicPeer::dialling_from(Some(source), bench.pki.credentials(Role::Node, "node-2"));
    let bound = peer(source);
    // Whoever answers, answers to the source.
    assert!(matches!(bound.call(&bench.server.target, Request::Status, PATIENCE).await, Ok(Reply::Status(_))));
    let witness = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = witness.local_addr().expect("bound").to_string();
    let target = Target { address: format!("localhost:{}", witness.local_addr().expect("bound").port()), name: None };
    let calls = async {
        let fault = bound.call(&target, Request::Status, Duration::from_secs(2)).await.expect_err("no TLS there");
        assert_eq!(fault.class, Class::Retry, "{fault}");
    };
    let (accepted, ()) = tokio::join!(async { witness.accept().await.expect("it dials").1 }, calls);
    assert_eq!(accepted.ip(), source);

    for (source, words) in [
        // Of the documentation's network: nobody's. And of the wrong family.
        (IpAddr::from([203, 0, 113, 9]), "from 203.0.113.9"),
        (IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]), "has no IPv6 address"),
    ] {
        let target = Target { address: address.clone(), name: None };
        let fault = peer(source).call(&target, Request::Status, PATIENCE).await.expect_err("refused");
        assert_eq!((fault.class, fault.code), (Class::Retry, "PV-UNREACHABLE"), "{fault}");
        assert!(fault.message.contains(words), "{fault}");
    }
    assert!(check_source(source).is_ok());
    let why = check_source(IpAddr::from([203, 0, 113, 9])).expect_err("nobody's");
    assert!(why.contains("no address of this machine"), "{why}");
}

#[tokio::test(flavor = "multi_thread")]
async fn catalog_and_consensus_requests_arrive_as_sent() {
    let bench = bench().await;
    let key = "main/1.2.3/1.2.4/1.2.5".parse().expect("a key");
    let lookup = Lookup { key, version: Some(VersionNumber(3)), freshness: Freshness::AtLeast(LogIndex(77)) };
    let reply = bench.call(Request::Lookup(lookup.clone())).await.expect("answers");
    assert!(matches!(reply, Reply::Found { sealed: None, applied: LogIndex(12) }));
    assert_eq!(format!("{:?}", bench.arrived()), format!("{:?}", Request::Lookup(lookup)));

    let list = List {
        tenant: "main".parse().expect("a tenant"),
        study: Some("1.2.3".parse().expect("a UID")),
        series: Some("1.2.4".parse().expect("a UID")),
        studies_only: true,
        page_token: vec![1, 2, 3],
        rows_max: 17,
        freshness: Freshness::Linearizable,
    };
    let Reply::Page(page) = bench.call(Request::List(list.clone())).await.expect("answers") else { panic!("a page") };
    assert_eq!((page.studies[0].objects, page.next_page_token), (2, vec![1, 2, 3]));
    assert_eq!(format!("{:?}", bench.arrived()), format!("{:?}", Request::List(list)));

    let fence = Command::SetVolumeState { volume: VolumeId([9; 16]), state: VolumeState::Fenced };
    let Reply::Outcomes(outcomes) = bench.call(Request::Propose(vec![fence; 3])).await.expect("answers") else {
        panic!("outcomes")
    };
    assert_eq!(outcomes, vec![Outcome::Done; 3]);

    let message = Bytes::from(vec![5; 300_000]);
    let Reply::Raft(back) = bench.call(Request::Raft(message.clone())).await.expect("answers") else { panic!("raft") };
    assert_eq!(back, message);
    let Reply::Status(back) = bench.call(Request::Status).await.expect("answers") else { panic!("a status") };
    assert_eq!(*back, status());
    let reply = bench.call(Request::SnapshotRead { id: "s".into(), name: "f".into(), offset_bytes: 1, len_bytes: 2 });
    assert!(matches!(reply.await.expect("answers"), Reply::Bytes(bytes) if bytes == "f"));
    assert!(matches!(bench.call(Request::TransferLeader { to: NodeId(3) }).await.expect("answers"), Reply::Done));

    let join = JoinNode {
        name: "node-2".parse().expect("a name"),
        incarnation: Incarnation([4; 16]),
        site: "site-b".parse().expect("a name"),
        address: "10.0.0.2:7400".to_owned(),
        roles: Roles { storage: true, voter: false },
        volumes: vec![(VolumeId([1; 16]), 1 << 40)],
        version: 1,
    };
    let Reply::Joined { incarnation, .. } = bench.call(Request::Join(join)).await.expect("answers") else {
        panic!("joined")
    };
    assert_eq!(incarnation, Incarnation([4; 16]));
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_keep_their_class_code_and_text() {
    let bench = bench().await;
    for class in
        [Class::Retry, Class::Unknown, Class::Reject, Class::NotFound, Class::Corrupt, Class::Exhausted, Class::Bug]
    {
        let fault = Fault::new(class, "PV-VOLUME-FULL", "volume 7 is full (97 %): add a disk — größer");
        *bench.echo.fault.lock().expect("no panic") = Some(fault.clone());
        let heard = bench.call(Request::SnapshotFiles { id: "fail".to_owned() }).await.expect_err("is refused");
        assert_eq!(heard, fault);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_after_sending_is_unknown() {
    let bench = bench().await;
    let began = Instant::now();
    let call = bench.peer.call(&bench.server.target, Request::ReadIndex, Duration::from_millis(300));
    let fault = call.await.expect_err("is never answered");
    assert_eq!(fault.class, Class::Unknown, "{fault}");
    assert!(began.elapsed() < Duration::from_secs(5));
    // The connection is as good as before.
    assert!(bench.call(Request::Raft(Bytes::from_static(b"x"))).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_port_is_refused_at_once_and_used_again_when_it_is_back() {
    let Bench { pki, echo, server, peer } = bench().await;
    let target = server.target.clone();
    assert!(peer.call(&target, Request::Status, PATIENCE).await.is_ok());
    server.stop().await;
    let began = Instant::now();
    let fault = peer.call(&target, Request::Status, PATIENCE).await.expect_err("nobody listens");
    assert_eq!(fault.class, Class::Retry, "{fault}");
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let back = Running::start_at(&pki, "node-1", echo, None, &target.address).await;
    assert!(peer.call(&back.target, Request::Status, PATIENCE).await.is_ok());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_never_answers_costs_one_connect_timeout() {
    let bench = bench().await;
    // A listener whose queue is full answers nobody.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let target = Target { address: listener.local_addr().expect("bound").to_string(), name: None };
    let began = Instant::now();
    let calls = (0..20).map(|_| bench.peer.call(&target, Request::Status, PATIENCE));
    for result in futures::future::join_all(calls).await {
        assert_eq!(result.expect_err("no TLS there").class, Class::Retry);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_calls_at_once_are_all_answered() {
    let bench = bench().await;
    let answered = stream::iter(0..1000_u32)
        .map(|number| {
            let payload = Bytes::from(number.to_be_bytes().repeat(1_000));
            let request = if number % 2 == 0 { Request::Raft(payload.clone()) } else { put_shard(payload.clone()) };
            let call = bench.call(request);
            async move {
                match call.await.expect("is answered") {
                    Reply::Raft(back) => back == payload,
                    Reply::Durable(durable) => durable.digest == Digest::of(&payload),
                    _ => false,
                }
            }
        })
        .buffer_unordered(1_000)
        .filter(|&right| std::future::ready(right))
        .count();
    assert_eq!(answered.await, 1_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_and_malformed_messages_are_refused_and_the_connection_lives_on() {
    let bench = bench().await;
    let fault = bench.call(Request::Raft(Bytes::from(vec![0; MESSAGE_BYTES_MAX + 1]))).await.expect_err("too large");
    assert_eq!((fault.class, fault.code), (Class::Reject, "PV-MESSAGE-TOO-LARGE"));

    // A client that does not know the limit is told by the server.
    let (channel, origin) = bench.peer.channel(&bench.server.target).expect("a channel");
    let mut client = ShardsClient::with_origin(channel, origin).max_encoding_message_size(usize::MAX);
    let header = Some(convert::shard_header_message(&shard_header(4)));
    let good =
        v1::PutShardRequest { volume: vec![9; 16].into(), header, repair: false, data: Bytes::from_static(b"data") };
    let huge = v1::PutShardRequest { data: vec![0; MESSAGE_BYTES_MAX].into(), ..good.clone() };
    assert_eq!(client.put_shard(huge).await.expect_err("too large").code(), Code::OutOfRange);

    for (broken, field) in [
        (v1::PutShardRequest { volume: Bytes::from_static(b"short"), ..good.clone() }, "volume"),
        (v1::PutShardRequest { header: None, ..good.clone() }, "header"),
        (v1::PutShardRequest { data: Bytes::from_static(b"other length"), ..good.clone() }, "data"),
    ] {
        let status = client.put_shard(broken).await.expect_err("malformed");
        assert_eq!(status.code(), Code::InvalidArgument);
        let violations = status.get_error_details().bad_request().expect("details").field_violations.clone();
        assert_eq!(violations[0].field, field);
    }
    // The generated client and our own framing understand each other.
    let reply = client.put_shard(good).await.expect("is stored").into_inner();
    assert_eq!(reply.digest, Digest::of(b"data").0.to_vec());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_is_held_to_its_row() {
    let bench = bench().await;
    let refused = [
        (Role::Gateway, Request::Raft(Bytes::new())),
        (Role::Gateway, Request::TransferLeader { to: NodeId(1) }),
        (Role::Operator, put_shard(Bytes::from_static(b"x"))),
        (Role::Auditor, Request::Status),
    ];
    for (role, request) in refused {
        let peer = bench.pki.peer(role, "someone");
        let fault = peer.call(&bench.server.target, request, PATIENCE).await.expect_err("is refused");
        assert_eq!((fault.class, fault.code), (Class::Reject, "PV-DENIED"), "{fault}");
        assert!(fault.message.contains(&format!("{role}/someone")), "{fault}");
    }
    let fence = Command::SetVolumeState { volume: VolumeId([9; 16]), state: VolumeState::Fenced };
    let gateway = bench.pki.peer(Role::Gateway, "gateway-1");
    let fault = gateway.call(&bench.server.target, Request::Propose(vec![fence.clone()]), PATIENCE).await;
    assert_eq!(fault.expect_err("a gateway does not fence").code, "PV-DENIED");
    let operator = bench.pki.peer(Role::Operator, "operator-1");
    assert!(operator.call(&bench.server.target, Request::Propose(vec![fence]), PATIENCE).await.is_ok());
    assert!(gateway.call(&bench.server.target, put_shard(Bytes::from_static(b"x")), PATIENCE).await.is_ok());
}
