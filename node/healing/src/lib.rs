//! Healing: signs of life, and the work that brings every stripe back to its contract and empties what is to be emptied.
//!
//! Every node has one [`Healer`]. It tells the leader that it lives, and carries out tasks for it ([`worker`], at the pace
//! that its [`governor`] allows). On the node that leads it also listens to the others and conducts ([`conductor`]): it
//! surveys the catalog, plans by what is closest to loss ([`pass`]), and hands out tasks ([`desk`]). In the background it
//! gives studies the profile that is wanted for them ([`recode`]).
//!
//! [`Upkeep`] looks after the node's own volumes: it proves what they hold, compares it with the catalog, gets space back and
//! tells the log of damage, which is then work for the others.
//!
//! **Invariants.**
//! - No work list is stored anywhere: a new leader, or the same one after a crash, derives it again from the catalog.
//! - What is true of shards is changed by the log alone: a worker proposes new homes when they are durable, and the log
//!   compares what the worker saw.
//! - A stripe that fails, a worker that is slow or a volume that is full holds up nobody else.
//! - Clients come first, except before what one more failure would lose.
//!
//! Left to others: what is lost and what to do about it (`core::health`), what a new home means (`catalog`), who may ask
//! what (`rpc`). Everything runs on the [`pacsvault_ports::env::Env`] of its node, in the simulator too.

mod answers;
mod beat;
mod compact;
pub mod conductor;
pub mod damage;
pub mod desk;
pub mod governor;
pub mod pass;
pub mod recode;
mod reconcile;
mod scrub;
pub mod scrub_note;
mod telemetry;
pub mod upkeep;
mod wanted;
pub mod worker;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::Duration,
};

use pacsvault_consensus::Replica;
use pacsvault_core::{
    health::{Pace, Task, report::Done},
    ids::{Incarnation, NodeName, SiteName},
};
use pacsvault_ports::{
    env::SharedEnv,
    peer::{Fault, Peer, Target, VolumeStatus},
};

use conductor::Reign;
pub use upkeep::{Trusted, Upkeep, UpkeepParts};
use worker::Worker;

/// What a node says of its volumes.
pub trait Served: Send + Sync + 'static {
    /// All of them, as they are now.
    fn volumes(&self) -> Vec<VolumeStatus>;
}

/// What a healer is made of.
#[derive(Clone)]
pub struct Parts {
    /// Clock, randomness, tasks.
    pub env: SharedEnv,
    /// Reaches other nodes, and this one without a detour.
    pub peer: Arc<dyn Peer>,
    /// The catalog and the log.
    pub replica: Arc<dyn Replica>,
    /// This node's volumes.
    pub served: Arc<dyn Served>,
    /// Its name.
    pub name: NodeName,
    /// `host:port` that it is dialled at.
    pub address: String,
    /// Its site.
    pub site: SiteName,
    /// This life of its data.
    pub incarnation: Incarnation,
    /// Timings and limits.
    pub pace: Pace,
}

/// Tasks that ended: which flight, and how.
type Ended = Vec<(u64, Result<Done, Fault>)>;

/// See the room's text.
pub struct Healer {
    parts: Parts,
    worker: Worker,
    reign: Mutex<Option<Reign>>,
    ended: Mutex<Ended>,
    flights: AtomicU64,
    /// Why re-encoding waits.
    recoding: Mutex<Vec<String>>,
    wake: tokio::sync::Notify,
}

impl Healer {
    /// A healer that does nothing yet.
    pub fn new(parts: Parts) -> Arc<Self> {
        let own = Target { address: parts.address.clone(), name: Some(parts.name.clone()) };
        let (env, peer, replica) = (parts.env.clone(), parts.peer.clone(), parts.replica.clone());
        let worker = Worker::new(env, peer, replica, own, parts.site.clone(), parts.pace.repair_rate);
        Arc::new(Self {
            parts,
            worker,
            reign: Mutex::default(),
            ended: Mutex::default(),
            flights: AtomicU64::new(0),
            recoding: Mutex::default(),
            wake: tokio::sync::Notify::new(),
        })
    }

    /// Beats, listens, conducts and re-encodes until the node stops.
    pub async fn run(self: Arc<Self>) {
        let beating = self.clone().beat();
        let listening = self.clone().watch();
        let recoding = self.clone().keep_recoded();
        futures::join!(beating, listening, recoding, self.conduct());
    }

    /// Carries out a task; see [`Worker::run`].
    ///
    /// # Errors
    /// As [`Worker::run`].
    pub async fn repair(&self, task: Task) -> Result<Done, Fault> {
        self.worker.run(task).await
    }

    /// Latency of a client's shard request, so that repair yields to clients.
    pub fn foreground(&self, took: Duration) {
        self.worker.foreground(took);
    }

    /// The worker: its budget is shared by all background work of the node.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    fn lock_reign(&self) -> MutexGuard<'_, Option<Reign>> {
        self.reign.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_ended(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
