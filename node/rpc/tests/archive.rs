//! The `Archive` endpoint over real TLS, with the real coordinator on a small cluster in memory: six volumes on three
//! sites, and a catalog that seals whatever it is given.
#![allow(dead_code, reason = "shared support; each test binary uses a part of it")]

mod support;

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use hyper::body::{Body, Frame};
use pacsvault_coordinator::{Coordinator, GetQuery, Options, PutHeader, ReceiptSigner};
use pacsvault_core::{
    catalog::{Command, Outcome, SealedInstance},
    ids::{
        ClusterId, Digest, Incarnation, LayoutVersion, LogIndex, NodeId, ObjectKey, ShardIndex, Term, VersionNumber,
        VolumeId, WallMillis,
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
    peer::{Class, Fault, ListPage, Peer, Reply, Request, ShardData, Target},
};
use pacsvault_proto::v1::{self, archive_client::ArchiveClient};
use pacsvault_rpc::{ThinArchive, ThinDownload, TonicPeer, convert};
use pacsvault_runtime::TokioEnv;
use pacsvault_security::Role;
use prost::Message;
use support::{Echo, PATIENCE, Pki, Running};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Code as Status;
use tower::Service;

/// Shards and sealed instances, as a cluster would keep them.
#[derive(Default)]
struct Kept {
    shards: BTreeMap<(VolumeId, ShardId), (ShardHeader, Bytes)>,
    sealed: Vec<SealedInstance>,
}

/// A cluster in memory.
struct Cluster {
    layout: Arc<Layout>,
    kept: Mutex<Kept>,
}

fn layout() -> Layout {
    let nodes = (1..=6_u8).map(|number| {
        let node = Node {
            id: NodeId(number.into()),
            name: format!("node-{number}").parse().expect("a name"),
            site: format!("site-{}", number % 3).parse().expect("a name"),
            address: format!("10.0.0.{number}:7400"),
            roles: Roles { storage: true, voter: true },
            state: NodeState::Up,
            incarnation: Incarnation([number; 16]),
            version: 1,
            draining: false,
        };
        (node.id, node)
    });
    let volumes = (1..=6_u8).map(|number| {
        let (id, node) = (VolumeId([number; 16]), NodeId(number.into()));
        (id, Volume { id, node, capacity_bytes: 1 << 40, state: VolumeState::Up, draining: false })
    });
    let profile = Profile {
        name: "standard".parse().expect("a name"),
        version: 1,
        code: Code::new(4, 2).expect("a code"),
        contract: Contract::one(Failures { sites: 1, nodes: 0 }),
        floor: Contract::one(Failures { sites: 0, nodes: 1 }),
        read_preference: ReadPreference::OwnSite,
    };
    Layout {
        cluster: ClusterId([1; 16]),
        version: LayoutVersion(1),
        format: 2,
        nodes: nodes.collect(),
        volumes: volumes.collect(),
        default_profile: profile.name.clone(),
        profiles: BTreeMap::from([(profile.name.clone(), profile)]),
    }
}

impl Cluster {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().expect("no panic")
    }

    fn apply(&self, command: Command) -> Outcome {
        let mut kept = self.kept();
        match command {
            Command::Seal(seal) => {
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
                    seal: *seal,
                };
                kept.sealed.push(sealed.clone());
                Outcome::Sealed { sealed: Box::new(sealed), first: true }
            }
            Command::Delete { key, .. } => {
                kept.sealed.retain(|sealed| sealed.seal.key != key);
                Outcome::Deleted { versions: vec![VersionNumber(1)], index: LogIndex(1) }
            }
            _ => Outcome::Done,
        }
    }

    fn answer(&self, request: Request) -> Result<Reply, Fault> {
        Ok(match request {
            Request::Layout(_) => Reply::Layout(self.layout.clone()),
            Request::PutShard(put) => {
                let durable = DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest };
                self.kept().shards.insert((put.volume, put.header.id), (put.header, put.data));
                Reply::Durable(durable)
            }
            Request::GetShard(get) => {
                let kept = self.kept();
                let Some((header, data)) = kept.shards.get(&(get.volume, get.id)) else {
                    return Err(Fault::new(Class::NotFound, "PV-NO-SHARD", "no such shard"));
                };
                let from = usize::try_from(get.offset_bytes).expect("small") / CHUNK_BYTES * CHUNK_BYTES;
                let end = usize::try_from(get.offset_bytes + get.len_bytes).expect("small");
                let end = end.next_multiple_of(CHUNK_BYTES).min(data.len());
                let (header, data) = (header.clone(), data.slice(from..end));
                Reply::Shard(Box::new(ShardData { header, offset_bytes: from as u64, data }))
            }
            Request::Propose(commands) => {
                Reply::Outcomes(commands.into_iter().map(|command| self.apply(command)).collect())
            }
            Request::Lookup(lookup) => {
                let found = self.kept().sealed.iter().find(|sealed| sealed.seal.key == lookup.key).cloned();
                Reply::Found { sealed: found.map(Box::new), applied: LogIndex(99) }
            }
            Request::List(list) => {
                let of_study = |sealed: &&SealedInstance| Some(&sealed.seal.key.study) == list.study.as_ref();
                let instances = self.kept().sealed.iter().filter(of_study).cloned().collect();
                Reply::Page(Box::new(ListPage { instances, ..ListPage::default() }))
            }
            _ => return Err(Fault::new(Class::Reject, "PV-NO-METHOD", "not part of this test")),
        })
    }
}

/// The way to it: no network.
struct Direct(Arc<Cluster>);

impl Peer for Direct {
    fn call(&self, _: &Target, request: Request, _: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let answer = self.0.answer(request);
        Box::pin(async move {
            tokio::task::yield_now().await;
            answer
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

struct Bench {
    cluster: Arc<Cluster>,
    server: Running,
    thin: ThinArchive,
    generated: ArchiveClient<pacsvault_rpc::thin::Channel>,
    peer: TonicPeer,
}

async fn bench() -> Bench {
    let cluster = Arc::new(Cluster { layout: Arc::new(layout()), kept: Mutex::default() });
    let seed = Target { address: "10.0.0.1:7400".to_owned(), name: None };
    let mut options = Options::new(vec![seed]);
    options.stripe_bytes = 1 << 20;
    let coordinator =
        Coordinator::new(options, TokioEnv::current(), Arc::new(Direct(cluster.clone())), Arc::new(Unsigned));
    let pki = Pki::new();
    let server = Running::start(&pki, "node-1", Arc::new(Echo::default()), Some(coordinator)).await;
    let peer = pki.peer(Role::Gateway, "gateway-1");
    let thin = peer.archive(&server.target).expect("a client");
    let (channel, origin) = peer.channel(&server.target).expect("a channel");
    Bench { cluster, server, thin, generated: ArchiveClient::with_origin(channel, origin), peer }
}

fn key(last: u32) -> ObjectKey {
    format!("main/1.2.3/1.2.4/1.2.5.{last}").parse().expect("a key")
}

fn content(len: usize) -> Bytes {
    (0..len).map(|at| u8::try_from(at % 253).expect("small")).collect()
}

fn pieces(content: &Bytes, piece_bytes: usize) -> impl futures::Stream<Item = Bytes> + Send + 'static {
    let starts = (0..content.len()).step_by(piece_bytes);
    let pieces: Vec<Bytes> = starts.map(|start| content.slice(start..content.len().min(start + piece_bytes))).collect();
    stream::iter(pieces)
}

async fn read(mut download: ThinDownload) -> Bytes {
    let mut bytes = Vec::new();
    while let Some(piece) = download.next().await {
        bytes.extend_from_slice(&piece.expect("reads on"));
    }
    bytes.into()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_put_is_read_back_whole_and_in_parts() {
    let bench = bench().await;
    for (number, len) in [(1, 0), (2, 1), (3, 300_000), (4, 5_000_001)] {
        let content = content(len);
        let mut header = PutHeader::new(key(number), "application/dicom");
        header.declared_size_bytes = Some(len as u64);
        header.declared_digest = Some(Digest::of(&content));
        let stored = bench.thin.put(header, pieces(&content, 200_000)).await.expect("is stored");
        assert_eq!((stored.digest, stored.degraded, stored.first), (Digest::of(&content), false, true));
        assert!(!stored.signed.is_empty());
        let download = bench.thin.get(GetQuery::whole(key(number))).await.expect("is there");
        assert_eq!((download.size_bytes, download.digest), (len as u64, Digest::of(&content)));
        assert_eq!(read(download).await, content);
    }
    let query = GetQuery { offset_bytes: 1_000_000, len_bytes: Some(2_345_678), ..GetQuery::whole(key(4)) };
    let part = read(bench.thin.get(query).await.expect("is there")).await;
    assert_eq!(part, content(5_000_001).slice(1_000_000..3_345_678));
    let beyond = GetQuery { offset_bytes: 5_000_002, ..GetQuery::whole(key(4)) };
    assert_eq!(bench.thin.get(beyond).await.err().expect("refused").code, "PV-RANGE");
    let absent = bench.thin.get(GetQuery::whole(key(9))).await.err().expect("is not stored");
    assert_eq!((absent.class, absent.code), (Class::NotFound, "PV-NOT-FOUND"));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_not_what_it_declared_stores_nothing() {
    let bench = bench().await;
    let content = content(700_000);
    let declared = |size: u64, digest: Digest| {
        let mut header = PutHeader::new(key(1), "application/dicom");
        header.declared_size_bytes = Some(size);
        header.declared_digest = Some(digest);
        header
    };
    let right = Digest::of(&content);
    for (header, code) in [
        (declared(700_001, right), "PV-SIZE-MISMATCH"),
        (declared(699_999, right), "PV-SIZE-MISMATCH"),
        (declared(700_000, Digest::of(b"other")), "PV-DIGEST-MISMATCH"),
    ] {
        let fault = bench.thin.put(header, pieces(&content, 100_000)).await.expect_err("is refused");
        assert_eq!((fault.class, fault.code), (Class::Reject, code), "{fault}");
    }
    assert!(bench.cluster.kept().sealed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_goes_away_in_mid_stream_stores_nothing() {
    let bench = bench().await;
    let (send, receive) = mpsc::channel::<Bytes>(1);
    let thin = bench.thin.clone();
    let upload = tokio::spawn(async move {
        let header = PutHeader::new(key(1), "application/dicom");
        thin.put(header, ReceiverStream::new(receive)).await
    });
    for _ in 0..30 {
        send.send(content(100_000)).await.expect("is taken");
    }
    upload.abort();
    assert!(upload.await.is_err());
    // A later write under the same key goes its own way.
    let stored = bench.thin.put(PutHeader::new(key(1), "application/dicom"), pieces(&content(10), 10)).await;
    assert_eq!(stored.expect("is stored").digest, Digest::of(&content(10)));
    assert_eq!(bench.cluster.kept().sealed.len(), 1);
    drop(send);
}

/// All that was sent is durable, whole stripes of it, when the client is gone: what it had not sent yet is missing all the same.
#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_off_between_two_stripes_stores_nothing() {
    let bench = bench().await;
    // A content stream that ended would end the upload in order.
    let mut unended = Vec::new();
    for number in 1..=20_u32 {
        let (send, receive) = mpsc::channel::<Bytes>(1);
        let thin = bench.thin.clone();
        let upload = tokio::spawn(async move {
            let header = PutHeader::new(key(number), "application/dicom");
            thin.put(header, ReceiverStream::new(receive)).await
        });
        send.send(content(1 << 20)).await.expect("is taken");
        let durable = 6 * usize::try_from(number).expect("small");
        let arrived = async {
            while bench.cluster.kept().shards.len() < durable {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(PATIENCE, arrived).await.expect("the stripe is durable");
        upload.abort();
        assert!(upload.await.is_err());
        unended.push(send);
    }
    // On the same connection, behind all that was cut off.
    let stored = bench.thin.put(PutHeader::new(key(99), "application/dicom"), pieces(&content(10), 10)).await;
    assert_eq!(stored.expect("is stored").digest, Digest::of(&content(10)));
    let sealed: Vec<ObjectKey> = bench.cluster.kept().sealed.iter().map(|sealed| sealed.seal.key.clone()).collect();
    assert_eq!(sealed, [key(99)]);
}

/// Frames as they are, whatever they break.
struct Raw(VecDeque<Frame<Bytes>>);

impl Body for Raw {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_in_the_middle_of_a_message_end_no_upload() {
    let bench = bench().await;
    let message = |part: v1::put_request::Part| {
        let encoded = v1::PutRequest { part: Some(part) }.encode_to_vec();
        let len = u32::try_from(encoded.len()).expect("small").to_be_bytes();
        Bytes::from([&[0][..], &len, &encoded].concat())
    };
    let header = v1::PutHeader { key: Some(convert::key_message(&key(1))), ..Default::default() };
    let stripe = message(v1::put_request::Part::Data(content(1 << 20)));
    let trailers =
        http::HeaderMap::from_iter([(http::HeaderName::from_static("x-late"), "word".parse().expect("a value"))]);
    let frames = VecDeque::from([
        Frame::data(message(v1::put_request::Part::Header(header))),
        Frame::data(stripe.clone()),
        Frame::data(stripe.slice(..1_000)),
        Frame::trailers(trailers),
    ]);
    let (mut channel, origin) = bench.peer.channel(&bench.server.target).expect("a channel");
    let request = http::Request::post(format!("{}pacsvault.v1.Archive/Put", origin))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(tonic::body::Body::new(Raw(frames)))
        .expect("a request");
    let response = channel.call(request).await.expect("is answered");
    let status = tonic::Status::from_header_map(response.headers()).expect("a refusal has no body");
    assert_eq!(status.code(), Status::Unavailable, "{status:?}");
    assert!(bench.cluster.kept().sealed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_uploads_are_refused_with_the_field() {
    let mut bench = bench().await;
    let good = convert::key_message(&key(1));
    let header = |key: v1::ObjectKey| v1::PutRequest {
        part: Some(v1::put_request::Part::Header(v1::PutHeader { key: Some(key), ..Default::default() })),
    };
    let data = || v1::PutRequest { part: Some(v1::put_request::Part::Data(Bytes::from_static(b"x"))) };
    let bad_uid = v1::ObjectKey { study: "1.02.x".to_owned(), ..good.clone() };
    for (parts, word) in [
        (vec![], "header"),
        (vec![data()], "header"),
        (vec![header(bad_uid), data()], "key.study"),
        (vec![header(good.clone()), data(), header(good.clone())], "header"),
        (vec![header(good.clone()), v1::PutRequest { part: None }], "part"),
    ] {
        let status = bench.generated.put(stream::iter(parts)).await.expect_err("is refused");
        assert_eq!(status.code(), Status::InvalidArgument, "{status:?}");
        assert!(status.message().contains(word), "{status:?}");
    }
    assert!(bench.cluster.kept().sealed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn head_list_receipt_verify_and_delete_answer() {
    let mut bench = bench().await;
    bench
        .thin
        .put(PutHeader::new(key(1), "application/dicom"), pieces(&content(900_000), 90_000))
        .await
        .expect("stored");
    let wire = Some(convert::key_message(&key(1)));
    let asked = v1::HeadRequest { key: wire.clone(), version: None, freshness: None };
    let head = bench.generated.head(asked).await.expect("is there").into_inner().stored.expect("described");
    assert_eq!((head.size_bytes, head.version, head.profile.as_str()), (900_000, 1, "standard"));

    let asked = v1::ListRequest { tenant: "main".into(), study: "1.2.3".into(), ..Default::default() };
    let page = bench.generated.list(asked).await.expect("lists").into_inner();
    assert_eq!(page.stored.len(), 1);

    let asked = v1::ReceiptRequest { key: wire.clone(), version: None, freshness: None };
    let receipt = bench.generated.receipt(asked).await.expect("signs").into_inner();
    assert_eq!(receipt.receipt.expect("for reading").stripes[0].shards.len(), 6);

    let asked = v1::VerifyRequest { tenant: "main".into(), study: "1.2.3".into(), key: None };
    let reports: Vec<_> = bench.generated.verify(asked.clone()).await.expect("begins").into_inner().collect().await;
    let report = reports[0].as_ref().expect("a report");
    assert_eq!((reports.len(), report.shards, report.whole, report.readable), (1, 6, true, true));
    assert_eq!(report.survives, [v1::Failures { sites: 1, nodes: 0 }, v1::Failures { sites: 0, nodes: 2 }]);

    bench.cluster.kept().shards.retain(|name, _| name.1.shard != ShardIndex(2));
    let mut reports = bench.generated.verify(asked).await.expect("begins").into_inner();
    let report = reports.message().await.expect("reads").expect("a report");
    assert_eq!((report.whole, report.readable, report.faults.len()), (false, true, 1));
    assert_eq!((report.faults[0].shard, report.faults[0].health()), (2, v1::ShardHealth::Damaged));
    assert_eq!(report.survives, [v1::Failures { sites: 0, nodes: 1 }]);

    let asked = v1::DeleteRequest { key: wire.clone(), version: None };
    assert_eq!(bench.generated.delete(asked).await.expect("is marked").into_inner().versions, [1]);
    let asked = v1::HeadRequest { key: wire, version: None, freshness: None };
    assert_eq!(bench.generated.head(asked).await.expect_err("is gone").code(), Status::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_studies_reaches_no_archive() {
    let pki = Pki::new();
    let server = Running::start(&pki, "node-1", Arc::new(Echo::default()), None).await;
    let auditor = pki.peer(Role::Auditor, "someone").archive(&server.target).expect("a client");
    let fault = auditor.get(GetQuery::whole(key(1))).await.err().expect("is refused");
    assert_eq!((fault.class, fault.code), (Class::Reject, "PV-DENIED"));
    // A node without an archive says so.
    let gateway = pki.peer(Role::Gateway, "someone").archive(&server.target).expect("a client");
    let put = gateway.put(PutHeader::new(key(1), ""), pieces(&content(10), 10));
    let fault = tokio::time::timeout(PATIENCE, put).await.expect("answers").expect_err("has none");
    assert_eq!(fault.class, Class::Reject);
}
