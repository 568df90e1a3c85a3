//! The administration commands as processes against a scripted cluster of one node: real sockets, real TLS, real catalog
//! messages; only what the node would find out is made up.

use std::{
    collections::BTreeMap,
    path::Path,
    process::Output,
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use pacsvault_core::{
    catalog::{
        Command, Outcome, Rejection, Seal, SealedInstance,
        command::{DrainTarget, Reserved, StripeSeal},
    },
    health::{
        ByTier, Sums, Tier,
        report::{DrainPlan, Health, ScrubAge, WhatIf},
    },
    ids::{
        ClusterId, Digest, Incarnation, InstanceId, LayoutVersion, LogIndex, NodeId, Term, VersionNumber, VolumeId,
        WallMillis,
    },
    layout::{
        Contract, Failures, Layout, Node, NodeState, Profile, Roles, Volume, VolumeState,
        profile::{Code, ReadPreference},
    },
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Caller, Class, Fault, ListPage, NodeStatus, Reply, Request, Service, ShardProof, VolumeStatus},
};
use pacsvault_rpc::{Server, ServerTls};
use pacsvault_security::{Authority, Credentials, Role, pki};
use tokio::net::TcpListener;

/// What the node says, and what it was asked to change.
struct Scripted {
    layout: Layout,
    sealed: Mutex<SealedInstance>,
    /// Stripes left to move, one fewer with each look.
    left: Mutex<u64>,
    safe: bool,
    readable: bool,
    rejection: Option<Rejection>,
    /// Shards that are not sound.
    damaged: Vec<u8>,
    /// Where the second shard goes when it is first asked for.
    moves_to: Mutex<Option<VolumeId>>,
    proposed: Mutex<Vec<Command>>,
    scrubs: Mutex<Vec<Option<VolumeId>>>,
}

fn volume(number: u8) -> VolumeId {
    VolumeId([number; 16])
}

fn failures(nodes: u8) -> Failures {
    Failures { sites: 0, nodes }
}

fn layout(cluster: ClusterId, address: &str) -> Layout {
    let node = Node {
        id: NodeId(1),
        name: "node-1".parse().expect("a name"),
        site: "east".parse().expect("a name"),
        address: address.to_owned(),
        roles: Roles { storage: true, voter: true },
        state: NodeState::Up,
        incarnation: Incarnation([1; 16]),
        version: 2,
        draining: false,
    };
    let volumes = (1..=4).map(|number| Volume {
        id: volume(number),
        node: NodeId(1),
        capacity_bytes: 1 << 30,
        state: VolumeState::Up,
        draining: false,
    });
    let standard = Profile {
        name: "standard".parse().expect("a name"),
        version: 1,
        code: Code::new(2, 1).expect("a code"),
        contract: Contract::one(failures(1)),
        floor: Contract::one(failures(1)),
        read_preference: ReadPreference::OwnSite,
    };
    Layout {
        cluster,
        version: LayoutVersion(3),
        format: 2,
        nodes: BTreeMap::from([(node.id, node)]),
        volumes: volumes.map(|volume| (volume.id, volume)).collect(),
        default_profile: standard.name.clone(),
        profiles: BTreeMap::from([(standard.name.clone(), standard)]),
    }
}

fn sealed() -> SealedInstance {
    let code = Code::new(2, 1).expect("a code");
    let stripe = StripeSeal {
        stripe_bytes: 1000,
        shard_root: Digest([7; 32]),
        placement: vec![volume(1), volume(2), volume(3)],
        persisted: 0b111,
    };
    SealedInstance {
        seal: Seal {
            instance: InstanceId([9; 16]),
            key: "main/1.2.3/1.2.4/1.2.5".parse().expect("a key"),
            size_bytes: 1000,
            digest: Digest([8; 32]),
            profile: "standard".parse().expect("a name"),
            profile_version: 1,
            code,
            layout: LayoutVersion(3),
            stripes: vec![stripe],
            media_type: "application/dicom".to_owned(),
            attributes: Vec::new(),
            strict: false,
            coordinator: "main".to_owned(),
            reserved: Reserved::default(),
        },
        version: VersionNumber(1),
        survives: vec![failures(1)],
        degraded: false,
        contract: Contract::one(failures(1)),
        term: Term(1),
        index: LogIndex(5),
        time: WallMillis(1_700_000_000_000),
        deleted: None,
        moved: BTreeMap::new(),
    }
}

impl Scripted {
    fn new(cluster: ClusterId, address: &str) -> Self {
        Self {
            layout: layout(cluster, address),
            sealed: Mutex::new(sealed()),
            left: Mutex::new(3),
            safe: true,
            readable: true,
            rejection: None,
            damaged: Vec::new(),
            moves_to: Mutex::new(None),
            proposed: Mutex::default(),
            scrubs: Mutex::default(),
        }
    }

    fn sums(stripes: u64) -> Sums {
        Sums { stripes, content_bytes: stripes << 20, shard_bytes: stripes << 19 }
    }

    fn status(&self) -> NodeStatus {
        let scrubs = self.scrubs.lock().expect("no panic").len() as u64;
        let volumes = self.layout.volumes.keys().map(|volume| VolumeStatus {
            volume: *volume,
            state: VolumeState::Up,
            reason: String::new(),
            shards: 10,
            used_bytes: 1,
            free_bytes: 2,
            capacity_bytes: 1 << 30,
            scrub: ScrubAge {
                verified: 10 * scrubs,
                damaged: scrubs * u64::from(!self.damaged.is_empty()),
                ..ScrubAge::default()
            },
        });
        NodeStatus {
            node: Some(NodeId(1)),
            name: "node-1".parse().expect("a name"),
            site: "east".parse().expect("a name"),
            binary_version: "0.2.0".to_owned(),
            cluster: self.layout.cluster,
            leader: Some(NodeId(1)),
            term: Term(1),
            last_log: LogIndex(5),
            applied: LogIndex(5),
            state_digest: Digest([0; 32]),
            voters: vec![NodeId(1)],
            learners: Vec::new(),
            volumes: volumes.collect(),
        }
    }

    fn drain_plan(&self, target: DrainTarget) -> DrainPlan {
        let mut left = self.left.lock().expect("no panic");
        let now = *left;
        *left = now.saturating_sub(1);
        DrainPlan {
            target,
            volumes: self.layout.volumes.keys().copied().collect(),
            safe: self.safe,
            reasons: vec!["standard v1: 3 shards need 2 nodes, 0 are left".to_owned()],
            moves: Self::sums(now),
            free_elsewhere_bytes: 1 << 40,
            takes_s: Some(now),
            rate_bytes_per_s: 1 << 20,
            empty: now == 0,
        }
    }

    fn prove(&self, asked: VolumeId, shard: u8) -> ShardProof {
        if shard == 1
            && let Some(to) = self.moves_to.lock().expect("no panic").take()
        {
            self.sealed.lock().expect("no panic").seal.stripes[0].placement[1] = to;
            return ShardProof::Missing;
        }
        let holder = self.sealed.lock().expect("no panic").seal.stripes[0].placement[usize::from(shard)];
        match (holder == asked, self.damaged.contains(&shard)) {
            (false, _) => ShardProof::Missing,
            (true, true) => ShardProof::Damaged("chunk 0 fails its checksum".to_owned()),
            (true, false) => ShardProof::Sound(Digest([7; 32])),
        }
    }

    fn answer(&self, request: Request) -> Result<Reply, Fault> {
        Ok(match request {
            Request::Layout(_) => Reply::Layout(Arc::new(self.layout.clone())),
            Request::Status => Reply::Status(Box::new(self.status())),
            Request::Health => Reply::Health(Box::new(Health {
                leader: NodeId(1),
                format: 2,
                by_tier: ByTier([(Tier::Distance(0), Self::sums(2))].into()),
                worst: Some(Tier::Distance(0)),
                held_back: vec!["no room".to_owned()],
                ..Health::default()
            })),
            Request::WhatIf(loss) => {
                let tier = if self.readable { Tier::Distance(1) } else { Tier::Unreadable };
                let by_tier = ByTier([(tier, Self::sums(2))].into());
                Reply::WhatIf(Box::new(WhatIf { loss, by_tier, all_readable: self.readable, ..WhatIf::default() }))
            }
            Request::DrainPlan(target) => Reply::DrainPlan(Box::new(self.drain_plan(target))),
            Request::ScrubNow(volume) => {
                self.scrubs.lock().expect("no panic").push(volume);
                Reply::Done
            }
            Request::Propose(commands) => {
                let outcome = self.rejection.clone().map_or(Outcome::Done, Outcome::Rejected);
                let outcomes = vec![outcome; commands.len()];
                self.proposed.lock().expect("no panic").extend(commands);
                Reply::Outcomes(outcomes)
            }
            Request::List(_) => {
                let instances = vec![self.sealed.lock().expect("no panic").clone()];
                Reply::Page(Box::new(ListPage { instances, ..ListPage::default() }))
            }
            Request::Lookup(_) => {
                let sealed = Some(Box::new(self.sealed.lock().expect("no panic").clone()));
                Reply::Found { sealed, applied: LogIndex(5) }
            }
            Request::VerifyShards { volume, shards } => {
                Reply::Verified(shards.iter().map(|id| self.prove(volume, id.shard.0)).collect())
            }
            _ => return Err(Fault::new(Class::Reject, "PV-UNSUPPORTED", "not in the script")),
        })
    }
}

impl Service for Scripted {
    fn handle(&self, _: Caller, request: Request) -> BoxFuture<'static, Result<Reply, Fault>> {
        Box::pin(std::future::ready(self.answer(request)))
    }
}

/// A served script, and a folder from which an operator reaches it.
struct Scene {
    dir: tempfile::TempDir,
    script: Arc<Scripted>,
}

impl Scene {
    async fn set(change: impl FnOnce(&mut Scripted)) -> Self {
        let millis = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
        let now = WallMillis(u64::try_from(millis).expect("fits"));
        let authority = Authority::draw(now).expect("randomness");
        let hosts = [pacsvault_security::tls::SERVER_NAME.to_owned()];
        let certify = |role, name| {
            let request = pki::Request { role, name, hosts: &hosts, now, days: 2 };
            authority.certify(&request).expect("a valid request")
        };
        let node = certify(Role::Node, "node-1");
        let credentials = Credentials::from_pem(authority.certificate_pem(), &node.certificate_pem, &node.key_pem, now)
            .expect("fits");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let mut script = Scripted::new(credentials.cluster(), &address);
        change(&mut script);
        let script = Arc::new(script);
        let tls = ServerTls::new(&credentials).expect("a node's credentials");
        let server = Server::new(tls, script.clone(), None).expect("builds");
        tokio::spawn(server.serve(listener, std::future::pending()));

        let dir = tempfile::tempdir().expect("a directory");
        let operator = certify(Role::Operator, "alice");
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
        write("ca.pem", authority.certificate_pem());
        write("alice.pem", &operator.certificate_pem);
        write("alice.key", &operator.key_pem);
        let config =
            format!("endpoints = [\"{address}\"]\nca = \"ca.pem\"\ncert = \"alice.pem\"\nkey = \"alice.key\"\n");
        write("pacsvault.toml", &config);
        Self { dir, script }
    }

    /// Runs `pacsvault` with these words and `--json`.
    async fn run(&self, line: &str) -> Ended {
        let (dir, words) = (self.dir.path().to_owned(), line.to_owned());
        let ended = tokio::task::spawn_blocking(move || pacsvault(&dir, &words)).await.expect("runs");
        Ended::from(ended)
    }

    fn proposed(&self) -> Vec<Command> {
        std::mem::take(&mut *self.script.proposed.lock().expect("no panic"))
    }
}

fn pacsvault(dir: &Path, words: &str) -> Output {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_pacsvault"));
    command.current_dir(dir).env_clear().env("HOME", dir).arg("--json").args(words.split(' '));
    command.output().expect("the binary runs")
}

/// Exit code, objects on standard output, code of the error.
struct Ended {
    exit: Option<i32>,
    values: Vec<serde_json::Value>,
    error: Option<String>,
    message: String,
}

impl From<Output> for Ended {
    fn from(output: Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let values = text.lines().map(|line| serde_json::from_str(line).expect("one object per line")).collect();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let mut objects = stderr.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let error = objects.next_back().unwrap_or_default();
        let word = |name: &str| error["error"][name].as_str().map(str::to_owned);
        Self { exit: output.status.code(), values, error: word("code"), message: word("message").unwrap_or(stderr) }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_nodes_and_health_in_one_object() {
    let scene = Scene::set(|_| ()).await;
    let ended = scene.run("status").await;
    assert_eq!(ended.exit, Some(0), "{}", ended.message);
    let value = &ended.values[0];
    assert_eq!((&value["leader"], &value["version"]), (&"node-1".into(), &2.into()));
    assert_eq!(value["health"]["by_tier"][0]["distance"], 0);
    assert_eq!(
        (&value["health"]["worst"], &value["health"]["held_back"][0]),
        (&"distance 0".into(), &"no room".into())
    );
    assert_eq!(value["nodes"][0]["layout_state"], "up");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_if_succeeds_only_when_all_stays_readable() {
    let fine = Scene::set(|_| ()).await;
    let ended = fine.run("what-if --site east --volume 0202").await;
    assert_eq!((ended.exit, &ended.values[0]["all_readable"]), (Some(0), &true.into()), "{}", ended.message);
    assert_eq!(ended.values[0]["loss"]["sites"][0], "east");
    let lost = Scene::set(|script| script.readable = false).await;
    let ended = lost.run("what-if --node node-1").await;
    assert_eq!((ended.exit, ended.error.as_deref()), (Some(1), Some("PV-WOULD-BE-UNREADABLE")));
    assert_eq!(ended.values[0]["by_tier"][0]["readable"], false);
    let wrong = fine.run("what-if --site mars").await;
    assert_eq!((wrong.exit, wrong.error.as_deref()), (Some(2), Some("PV-USAGE")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_planned_confirmed_and_waited_for() {
    let scene = Scene::set(|_| ()).await;
    let dry = scene.run("drain node-1 --dry-run").await;
    assert_eq!((dry.exit, &dry.values[0]["safe"]), (Some(0), &true.into()));
    let unconfirmed = scene.run("drain node-1").await;
    assert_eq!(unconfirmed.exit, Some(2), "{}", unconfirmed.message);
    assert!(scene.proposed().is_empty(), "nothing happens without --yes");
    let done = scene.run("drain --volume 0202 --yes --wait").await;
    assert_eq!(done.exit, Some(0), "{}", done.message);
    assert_eq!(scene.proposed(), [Command::SetDrain { target: DrainTarget::Volume(volume(2)), draining: true }]);
    assert!(done.values.last().is_some_and(|value| value["empty"].is_string()));
    assert_eq!(scene.run("undrain node-1").await.exit, Some(0));
    assert_eq!(scene.proposed(), [Command::SetDrain { target: DrainTarget::Node(NodeId(1)), draining: false }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_break_a_contract_is_refused_before_it_begins_and_by_the_catalog() {
    let scene = Scene::set(|script| script.safe = false).await;
    let refused = scene.run("drain node-1 --yes").await;
    assert_eq!((refused.exit, refused.error.as_deref()), (Some(1), Some("PV-IMPOSSIBLE")));
    assert!(refused.message.contains("3 shards need 2 nodes, 0 are left"), "{}", refused.message);
    assert!(scene.proposed().is_empty());
    let rejection = Rejection::UpgradePending { needed: 2, present: 1 };
    let old = Scene::set(|script| script.rejection = Some(rejection)).await;
    let refused = old.run("drain node-1 --yes").await;
    assert_eq!((refused.exit, refused.error.as_deref()), (Some(1), Some("PV-UPGRADE-PENDING")));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_empty_node_is_retired() {
    let scene = Scene::set(|_| ()).await;
    let refused = scene.run("remove node-1 --yes").await;
    assert_eq!((refused.exit, refused.error.as_deref()), (Some(1), Some("PV-NODE-NOT-EMPTY")));
    assert!(scene.proposed().is_empty());
    let empty = Scene::set(|script| script.left = Mutex::new(0)).await;
    assert_eq!(empty.run("remove node-1").await.exit, Some(2), "asks for --yes");
    assert_eq!(empty.run("remove node-1 --yes").await.exit, Some(0));
    assert_eq!(empty.proposed(), [Command::SetNodeState { node: NodeId(1), state: NodeState::Removed }]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_study_is_proven_on_the_disks_also_when_a_shard_moves_meanwhile() {
    let scene = Scene::set(|script| script.moves_to = Mutex::new(Some(volume(4)))).await;
    let whole = scene.run("verify 1.2.3").await;
    assert_eq!(whole.exit, Some(0), "{}", whole.message);
    assert_eq!((&whole.values[0]["whole"], &whole.values[1]["summary"]["whole"]), (&true.into(), &1.into()));
    let scene = Scene::set(|script| script.damaged = vec![2]).await;
    let damaged = scene.run("verify 1.2.3").await;
    assert_eq!((damaged.exit, damaged.error.as_deref()), (Some(1), Some("PV-DAMAGED")));
    let fault = &damaged.values[0]["faults"][0];
    assert_eq!((&fault["shard"], &fault["reason"]), (&2.into(), &"chunk 0 fails its checksum".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scrub_covers_what_was_named_and_reports_damage() {
    let scene = Scene::set(|_| ()).await;
    let done = scene.run("scrub --volume 0202 --wait").await;
    assert_eq!(done.exit, Some(0), "{}", done.message);
    assert_eq!((done.values.len(), &done.values[0]["verified"]), (1, &10.into()));
    assert_eq!(*scene.script.scrubs.lock().expect("no panic"), [Some(volume(2))]);
    let damaged = Scene::set(|script| script.damaged = vec![0]).await;
    let found = damaged.run("scrub --wait").await;
    assert_eq!((found.exit, found.error.as_deref()), (Some(1), Some("PV-DAMAGED")));
    assert_eq!(*damaged.script.scrubs.lock().expect("no panic"), [None]);
    let ages = scene.run("scrub status").await;
    assert_eq!((ages.exit, ages.values.len()), (Some(0), 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn repair_and_profiles_are_steered_through_the_log() {
    let scene = Scene::set(|_| ()).await;
    assert_eq!(scene.run("repair status").await.values[0]["worst"], "distance 0");
    assert_eq!(scene.run("repair retry").await.exit, Some(0));
    assert_eq!(scene.proposed(), [Command::RetryAside]);
    assert_eq!(scene.run("profile list").await.values[0]["name"], "standard");
    assert_eq!(scene.run("profile set-study 1.2.3 gold").await.exit, Some(2), "unknown profile");
    assert_eq!(scene.run("profile set-study 1.2.3 --none").await.exit, Some(0));
    let (tenant, study) = ("main".parse().expect("a name"), "1.2.3".parse().expect("a UID"));
    assert_eq!(scene.proposed(), [Command::SetStudyProfile { tenant, study, profile: None }]);
}
