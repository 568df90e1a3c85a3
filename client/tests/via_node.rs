//! Writes through a node's `Archive` endpoint, over real TLS: a node whose coordinator writes into a catalog of one entry.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use pacsvault_client::{Acked, Client, Config, Mode, Source};
use pacsvault_coordinator::{Coordinator, GetQuery, Options, PutHeader};
use pacsvault_core::{
    catalog::{Command, Outcome, Seal, SealedInstance},
    ids::{
        ClusterId, Incarnation, LayoutVersion, LogIndex, NodeId, ObjectKey, Term, VersionNumber, VolumeId, WallMillis,
    },
    layout::{
        Contract, Failures, Layout, Node, NodeState, Profile, Roles, Volume, VolumeState,
        profile::{Code, ReadPreference},
    },
    shard::DurableShard,
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Caller, Class, Fault, Freshness, Peer, Reply, Request, Service, Target},
};
use pacsvault_rpc::{CertificateSigner, Server, ServerTls};
use pacsvault_runtime::TokioEnv;
use pacsvault_security::{Authority, Credentials, Role, Signer, pki, tls::SERVER_NAME};
use tokio::net::TcpListener;

/// Where the log is when the write is sealed.
const SEALED_AT: LogIndex = LogIndex(77);
const ONE_NODE: Failures = Failures { sites: 0, nodes: 1 };

/// One node as its clients and its own coordinator see it; what reads of the catalog asked for.
struct Script {
    layout: Arc<Layout>,
    sealed: Mutex<Option<SealedInstance>>,
    lookups: Mutex<Vec<Freshness>>,
    /// What was there is deleted as soon as a client has looked it up.
    deleted: AtomicBool,
}

fn wall_now() -> WallMillis {
    let millis = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
    WallMillis(u64::try_from(millis).expect("fits"))
}

fn layout(cluster: ClusterId, address: &str) -> Layout {
    let nodes = (1..=3_u8).map(|number| Node {
        id: NodeId(number.into()),
        name: format!("node-{number}").parse().expect("a name"),
        site: "east".parse().expect("a name"),
        address: address.to_owned(),
        roles: Roles { storage: true, voter: true },
        state: NodeState::Up,
        incarnation: Incarnation([number; 16]),
        version: 2,
        draining: false,
    });
    let volumes = (1..=3_u8).map(|number| Volume {
        id: VolumeId([number; 16]),
        node: NodeId(number.into()),
        capacity_bytes: 1 << 30,
        state: VolumeState::Up,
        draining: false,
    });
    let standard = Profile {
        name: "standard".parse().expect("a name"),
        version: 1,
        code: Code::new(2, 1).expect("a code"),
        contract: Contract::one(ONE_NODE),
        floor: Contract::one(ONE_NODE),
        read_preference: ReadPreference::OwnSite,
    };
    Layout {
        cluster,
        version: LayoutVersion(3),
        format: 2,
        nodes: nodes.map(|node| (node.id, node)).collect(),
        volumes: volumes.map(|volume| (volume.id, volume)).collect(),
        default_profile: standard.name.clone(),
        profiles: BTreeMap::from([(standard.name.clone(), standard)]),
    }
}

impl Script {
    fn seal(&self, seal: Seal) -> Outcome {
        let sealed = SealedInstance {
            seal,
            version: VersionNumber(1),
            survives: vec![ONE_NODE],
            degraded: false,
            contract: Contract::one(ONE_NODE),
            term: Term(1),
            index: SEALED_AT,
            time: wall_now(),
            deleted: None,
            moved: BTreeMap::new(),
        };
        *self.sealed.lock().expect("no panic") = Some(sealed.clone());
        Outcome::Sealed { sealed: Box::new(sealed), first: true }
    }

    fn answer(&self, request: Request) -> Result<Reply, Fault> {
        Ok(match request {
            Request::Layout(_) => Reply::Layout(self.layout.clone()),
            Request::PutShard(put) => {
                Reply::Durable(DurableShard { id: put.header.id, volume: put.volume, digest: put.header.digest })
            }
            Request::Propose(commands) => {
                let outcome = |command| match command {
                    Command::Seal(seal) => self.seal(*seal),
                    _ => Outcome::Done,
                };
                Reply::Outcomes(commands.into_iter().map(outcome).collect())
            }
            Request::Lookup(lookup) => {
                self.lookups.lock().expect("no panic").push(lookup.freshness);
                let sealed = self.sealed.lock().expect("no panic").clone();
                Reply::Found { sealed: sealed.map(Box::new), applied: SEALED_AT }
            }
            _ => return Err(Fault::new(Class::Reject, "PV-UNSUPPORTED", "not in the script")),
        })
    }
}

/// What clients reach.
struct Served(Arc<Script>);

impl Service for Served {
    fn handle(&self, _: Caller, request: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        Box::pin(std::future::ready(self.0.answer(request)))
    }
}

/// What the node's coordinator reaches, without a network.
struct Direct(Arc<Script>);

impl Peer for Direct {
    fn call(&self, _: &Target, request: Request, _: Duration) -> BoxFuture<'static, Result<Reply, Fault>> {
        let gone = matches!(request, Request::Lookup(_)) && self.0.deleted.load(Ordering::SeqCst);
        let nothing = Ok(Reply::Found { sealed: None, applied: SEALED_AT });
        Box::pin(std::future::ready(if gone { nothing } else { self.0.answer(request) }))
    }
}

/// The served script, and a gateway that goes through its node.
async fn scene(dir: &Path) -> (Arc<Script>, Client) {
    let now = wall_now();
    let authority = Authority::draw(now).expect("randomness");
    let hosts = [SERVER_NAME.to_owned()];
    let certify = |role, name| {
        authority.certify(&pki::Request { role, name, hosts: &hosts, now, days: 2 }).expect("a valid request")
    };
    let node = certify(Role::Node, "node-1");
    let credentials =
        Credentials::from_pem(authority.certificate_pem(), &node.certificate_pem, &node.key_pem, now).expect("fits");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let layout = Arc::new(layout(credentials.cluster(), &address));
    let script =
        Arc::new(Script { layout, sealed: Mutex::default(), lookups: Mutex::default(), deleted: false.into() });
    let signer = Arc::new(CertificateSigner(Signer::new(&credentials).expect("a node may sign")));
    let target = Target { address: address.clone(), name: None };
    let coordinator =
        Coordinator::new(Options::new(vec![target]), TokioEnv::current(), Arc::new(Direct(script.clone())), signer);
    let tls = ServerTls::new(&credentials).expect("a node's credentials");
    let server = Server::new(tls, Arc::new(Served(script.clone())), Some(coordinator)).expect("builds");
    tokio::spawn(server.serve(listener, std::future::pending()));

    let gateway = certify(Role::Gateway, "main");
    let file = |name: &str, text: &str| {
        std::fs::write(dir.join(name), text).expect("written");
        dir.join(name)
    };
    let client = Client::connect(Config {
        endpoints: vec![address],
        ca: file("ca.pem", authority.certificate_pem()),
        cert: file("main.pem", &gateway.certificate_pem),
        key: file("main.key", &gateway.key_pem),
        site: None,
        tenant: "main".parse().expect("a tenant"),
        via_node: true,
        source: None,
    });
    (script, client.expect("connects"))
}

async fn stored(client: &Client, key: &ObjectKey) -> Acked {
    let content = Source::Bytes(Bytes::from_static(b"content"));
    client.put(PutHeader::new(key.clone(), "application/dicom"), &content, &|_| ()).await.expect("is stored")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_stored_through_a_node_is_never_read_as_of_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let (script, client) = scene(dir.path()).await;
    assert_eq!(client.mode(), Mode::ViaNode);
    let key: ObjectKey = "main/1.2.3/1.2.4/1.2.5".parse().expect("a key");
    let acked = stored(&client, &key).await;
    assert_eq!(acked.receipt.index, SEALED_AT);
    let found = client.lookup(&key, None).await.expect("is there");
    assert_eq!(found.version, acked.receipt.version);
    // A replica that is behind must wait, or say so, instead of showing the version before.
    assert_eq!(*script.lookups.lock().expect("no panic"), [Freshness::AtLeast(SEALED_AT)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_goes_after_it_was_looked_up_does_not_say_that_there_is_none() {
    let dir = tempfile::tempdir().expect("a directory");
    let (script, client) = scene(dir.path()).await;
    let key: ObjectKey = "main/1.2.3/1.2.4/1.2.5".parse().expect("a key");
    let version = stored(&client, &key).await.receipt.version;
    script.deleted.store(true, Ordering::SeqCst);
    let newest = client.get(GetQuery::whole(key.clone())).await.err().expect("its bytes are gone");
    assert_eq!((newest.class, newest.code), (Class::Retry, "PV-CHANGED"), "{newest}");
    let one = client.get(GetQuery { version: Some(version), ..GetQuery::whole(key) }).await.err().expect("is gone");
    assert_eq!(one.class, Class::NotFound, "{one}");
}
