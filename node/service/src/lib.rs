//! The node's loop: every request that reaches a node is answered here, from the replica of the catalog, the volumes and
//! the coordinator. The same code runs over gRPC in production and over a simulated network in `chaos`.
//!
//! **Invariants.**
//! - A node that has not joined serves only `Status`, `InitCluster` and its own joining.
//! - A volume that failed, in this life or an earlier one, takes no writes any more and is reported to the log as fenced.
//! - Shard bytes are deleted only by [`sweep`], on the authority of a log entry or a linearizable read.
//!
//! Left to others: who may ask what (`rpc`), what a command means (`catalog`), when bytes are durable (`volume`).

pub mod local;
pub mod member;
mod requests;
pub mod stale;
pub mod sweep;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, RwLock, Weak},
};

use pacsvault_consensus::Replica;
use pacsvault_core::{
    catalog::{
        Command, Outcome, Rejection,
        command::{COMMANDS_VERSION, JoinNode},
    },
    health::Pace,
    ids::{ClusterId, Incarnation, NodeId, NodeName, SiteName, VolumeId},
    layout::{Roles, VolumeState},
};
use pacsvault_healing::{Healer, Parts, Served, Trusted, Upkeep, UpkeepParts};
use pacsvault_ports::{
    BoxFuture,
    env::SharedEnv,
    peer::{Class, Fault, Peer, Target, VolumeStatus},
};
use pacsvault_volume::Volume;

pub use local::LocalFirst;
pub use member::{Founding, Membership, Registry};
pub use requests::Front;
use stale::Stale;

/// Highest version of commands and formats that this build understands.
pub const FORMAT_VERSION: u32 = COMMANDS_VERSION;

/// Who this node is, as configured and as its certificate says.
#[derive(Debug, Clone)]
pub struct Profile {
    /// From the certificate.
    pub cluster: ClusterId,
    /// From the certificate.
    pub name: NodeName,
    /// Failure domain.
    pub site: SiteName,
    /// `host:port` that peers and clients dial.
    pub address: String,
    /// What it does.
    pub roles: Roles,
    /// This life of its data directory.
    pub incarnation: Incarnation,
    /// Where to ask to be let in.
    pub join: Vec<Target>,
    /// Version of the binary, for people.
    pub binary_version: String,
    /// Highest version of commands and formats that it says it understands: [`FORMAT_VERSION`], unless it plays an older one.
    pub format_version: u32,
}

/// Starts the replica once the node knows its id. Implemented by the shell, which owns the stores.
pub trait ReplicaStarter: Send + Sync + 'static {
    /// Opens the stores and starts consensus as `node`.
    fn start(&self, node: NodeId) -> BoxFuture<'static, Result<Arc<dyn Replica>, Fault>>;
}

/// One volume and the capacity it was formatted with.
#[derive(Clone)]
pub struct OwnVolume {
    /// The store.
    pub volume: Arc<Volume>,
    /// Bytes it may hold.
    pub capacity_bytes: u64,
}

/// What the healer asks of the node that it belongs to.
struct Own(Weak<Node>);

impl Served for Own {
    fn volumes(&self) -> Vec<VolumeStatus> {
        self.0.upgrade().map(|node| node.volume_statuses()).unwrap_or_default()
    }
}

impl Trusted for Own {
    fn trusted(&self, volume: VolumeId) -> bool {
        self.0.upgrade().is_some_and(|node| node.distrusted(volume).is_none())
    }
}

/// One node. Build it with [`Node::new`], then run [`Node::run`] as a task.
pub struct Node {
    profile: Profile,
    env: SharedEnv,
    peer: Arc<dyn Peer>,
    registry: Arc<dyn Registry>,
    starter: Arc<dyn ReplicaStarter>,
    volumes: BTreeMap<VolumeId, OwnVolume>,
    pace: Pace,
    replica: RwLock<Option<Arc<dyn Replica>>>,
    /// There as long as the replica is.
    healer: RwLock<Option<Arc<Healer>>>,
    /// As the healer.
    upkeep: RwLock<Option<Arc<Upkeep>>>,
    /// Copies on each volume that are about to be swept.
    stale: BTreeMap<VolumeId, Stale>,
    me: Weak<Node>,
    /// Held while the node becomes a member, so that it becomes one only once.
    joining: tokio::sync::Mutex<()>,
    fencing: Mutex<BTreeMap<VolumeId, String>>,
    /// Volumes that failed in an earlier life, and how.
    distrusted: RwLock<BTreeMap<VolumeId, String>>,
}

impl Node {
    /// A node with these volumes, that heals at this pace. Nothing runs yet.
    pub fn new(
        profile: Profile,
        env: SharedEnv,
        peer: Arc<dyn Peer>,
        registry: Arc<dyn Registry>,
        starter: Arc<dyn ReplicaStarter>,
        volumes: BTreeMap<VolumeId, OwnVolume>,
        pace: Pace,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            profile,
            env,
            peer,
            registry,
            starter,
            stale: volumes.keys().map(|id| (*id, Stale::default())).collect(),
            volumes,
            pace,
            replica: RwLock::new(None),
            healer: RwLock::new(None),
            upkeep: RwLock::new(None),
            me: me.clone(),
            joining: tokio::sync::Mutex::new(()),
            fencing: Mutex::new(BTreeMap::new()),
            distrusted: RwLock::new(BTreeMap::new()),
        })
    }

    /// The replica, once this node is a member.
    pub fn replica(&self) -> Option<Arc<dyn Replica>> {
        self.replica.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The healer, once this node is a member.
    pub fn healer(&self) -> Option<Arc<Healer>> {
        self.healer.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Upkeep of the node's volumes, once this node is a member.
    pub fn upkeep(&self) -> Option<Arc<Upkeep>> {
        self.upkeep.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the replica into service, and heals with it.
    pub(crate) fn serve_replica(&self, replica: &Arc<dyn Replica>) {
        let profile = &self.profile;
        let healer = Healer::new(Parts {
            env: self.env.clone(),
            peer: self.peer.clone(),
            replica: replica.clone(),
            served: Arc::new(Own(self.me.clone())),
            name: profile.name.clone(),
            address: profile.address.clone(),
            site: profile.site.clone(),
            incarnation: profile.incarnation,
            pace: self.pace.clone(),
        });
        let upkeep = Upkeep::new(UpkeepParts {
            env: self.env.clone(),
            replica: replica.clone(),
            volumes: self.volumes.iter().map(|(id, own)| (*id, own.volume.clone())).collect(),
            trusted: Arc::new(Own(self.me.clone())),
            pace: self.pace.clone(),
        });
        *self.upkeep.write().unwrap_or_else(PoisonError::into_inner) = Some(upkeep.clone());
        *self.healer.write().unwrap_or_else(PoisonError::into_inner) = Some(healer.clone());
        *self.replica.write().unwrap_or_else(PoisonError::into_inner) = Some(replica.clone());
        self.env.spawn(Box::pin(healer.run()));
        upkeep.start();
    }

    /// The healer, or the fault that says what to do.
    pub(crate) fn healing(&self) -> Result<Arc<Healer>, Fault> {
        self.member()?;
        self.healer().ok_or_else(|| Fault::new(Class::Retry, "PV-NOT-MEMBER", "this node is starting; ask again"))
    }

    /// The replica, or the fault that says what to do.
    pub(crate) fn member(&self) -> Result<Arc<dyn Replica>, Fault> {
        self.replica().ok_or_else(|| {
            let text = format!(
                "node {} is not a member of the cluster yet: run `pacsvault cluster init` for the first node, or set `join` in its \
                 configuration",
                self.profile.name
            );
            Fault::new(Class::Retry, "PV-NOT-MEMBER", text)
        })
    }

    /// What this node says of itself when it joins or returns.
    fn introduction(&self) -> JoinNode {
        let profile = &self.profile;
        JoinNode {
            name: profile.name.clone(),
            incarnation: profile.incarnation,
            site: profile.site.clone(),
            address: profile.address.clone(),
            roles: profile.roles,
            volumes: self.volumes.iter().map(|(id, own)| (*id, own.capacity_bytes)).collect(),
            version: profile.format_version,
        }
    }

    /// Lets `volume` take no writes in this life, because it failed in an earlier one, and has it fenced as soon as this
    /// node is a member. What it holds stays readable. To be called before the node serves.
    pub fn distrust(self: &Arc<Self>, volume: VolumeId, reason: &str) {
        self.distrusted.write().unwrap_or_else(PoisonError::into_inner).insert(volume, reason.to_owned());
        self.fence(volume, reason);
    }

    pub(crate) fn distrusted(&self, volume: VolumeId) -> Option<String> {
        self.distrusted.read().unwrap_or_else(PoisonError::into_inner).get(&volume).cloned()
    }

    /// Takes a failed volume out of service through the log, once; repeats until the log has it.
    pub(crate) fn fence(self: &Arc<Self>, volume: VolumeId, reason: &str) {
        let fresh = {
            let mut fencing = self.fencing.lock().unwrap_or_else(PoisonError::into_inner);
            fencing.insert(volume, reason.to_owned()).is_none()
        };
        if !fresh {
            return;
        }
        tracing::error!(%volume, reason, "volume failed; taking it out of service");
        pacsvault_core::sometimes!("recovery: failed volume taken out of service through the log");
        let node = self.clone();
        self.env.spawn(Box::pin(async move {
            while !node.fence_once(volume).await {
                node.env.sleep(member::RETRY_EVERY).await;
            }
        }));
    }

    /// True when there is nothing left to try.
    async fn fence_once(&self, volume: VolumeId) -> bool {
        let Some(replica) = self.replica() else { return false };
        let command = Command::SetVolumeState { volume, state: VolumeState::Fenced };
        match replica.propose(vec![command]).await.map(|outcomes| outcomes.into_iter().next()) {
            // The log does not know the volume yet: this node has still to introduce itself.
            Ok(Some(Outcome::Rejected(Rejection::ClusterState(_) | Rejection::Unknown(_)))) => false,
            Ok(Some(Outcome::Rejected(why))) => {
                tracing::warn!(%volume, %why, "the log refused to fence the volume");
                true
            }
            Ok(_) => true,
            Err(fault) => {
                tracing::warn!(%volume, %fault, "cannot fence the volume yet");
                false
            }
        }
    }
}
