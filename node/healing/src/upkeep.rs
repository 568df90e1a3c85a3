//! Upkeep of a node's own volumes: verifying what they hold ([`crate::scrub`]), comparing it with the catalog
//! ([`crate::reconcile`]), getting space back ([`crate::compact`]) and telling the log of damage ([`crate::damage`]).
//!
//! **Invariants.** All of it is idle work: what it does not finish is found again. It judges a volume only while the catalog
//! gives it to this node, version 2 is in force, and the volume has failed in neither this life nor an earlier one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures::future::select;
use pacsvault_consensus::Replica;
use pacsvault_core::{
    health::{Pace, report::ScrubAge},
    ids::VolumeId,
    layout::VolumeState,
    shard::ShardId,
};
use pacsvault_ports::{
    BoxFuture,
    env::SharedEnv,
    peer::{Class, Fault},
};
use pacsvault_volume::Volume;
use tokio::sync::Notify;

/// A client that asked for a shard within this time keeps idle work waiting.
const BUSY_FOR: Duration = Duration::from_secs(1);
/// How often the room of a volume is looked at: one call to its file system.
const MEASURE_EVERY: Duration = Duration::from_secs(2);
/// Version of the catalog from which damage can be reported.
const REPORTS_FROM: u32 = 2;

/// What a node knows of its volumes beyond the stores.
pub trait Trusted: Send + Sync + 'static {
    /// False for a volume that failed in an earlier life.
    fn trusted(&self, volume: VolumeId) -> bool;
}

/// What upkeep is made of.
pub struct UpkeepParts {
    /// Clock, randomness, tasks.
    pub env: SharedEnv,
    /// The catalog and the log.
    pub replica: Arc<dyn Replica>,
    /// The node's own volumes.
    pub volumes: BTreeMap<VolumeId, Arc<Volume>>,
    /// Which of them may be judged.
    pub trusted: Arc<dyn Trusted>,
    /// Timings.
    pub pace: Pace,
}

/// One volume that is looked after.
pub(crate) struct Kept {
    pub volume: Arc<Volume>,
    /// As told to others.
    pub age: Mutex<ScrubAge>,
    /// An operator wants all of it verified now; taken by the scrub.
    pub wanted: Mutex<bool>,
    /// Wakes the scrub.
    pub wake: Notify,
}

impl Kept {
    pub fn age(&self) -> MutexGuard<'_, ScrubAge> {
        self.age.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wanted(&self) -> MutexGuard<'_, bool> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a volume may be judged by the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It may.
    Ours,
    /// Not yet: ask again.
    NotYet,
    /// It has failed, or the catalog gives it to another node.
    Never,
}

/// See the room's text.
pub struct Upkeep {
    pub(crate) env: SharedEnv,
    pub(crate) replica: Arc<dyn Replica>,
    pub(crate) pace: Pace,
    pub(crate) kept: BTreeMap<VolumeId, Kept>,
    /// Shards that may be damaged or missing.
    pub(crate) suspects: Mutex<BTreeSet<(VolumeId, ShardId)>>,
    /// Wakes whoever looks at suspects.
    pub(crate) suspected: Notify,
    trusted: Arc<dyn Trusted>,
    /// When a client asked last: milliseconds of monotonic time, and one; 0: never.
    client_at: AtomicU64,
}

impl Upkeep {
    /// Upkeep that does nothing yet.
    pub fn new(parts: UpkeepParts) -> Arc<Self> {
        let keep = |volume| Kept { volume, age: Mutex::default(), wanted: Mutex::default(), wake: Notify::new() };
        Arc::new(Self {
            env: parts.env,
            replica: parts.replica,
            pace: parts.pace,
            kept: parts.volumes.into_iter().map(|(id, volume)| (id, keep(volume))).collect(),
            suspects: Mutex::default(),
            suspected: Notify::new(),
            trusted: parts.trusted,
            client_at: AtomicU64::new(0),
        })
    }

    /// Starts all loops; they run until the node stops.
    pub fn start(self: &Arc<Self>) {
        for id in self.kept.keys().copied() {
            let loops: [BoxFuture<'static, ()>; 4] = [
                Box::pin(self.clone().keep_scrubbing(id)),
                Box::pin(self.clone().keep_reconciled(id)),
                Box::pin(self.clone().keep_compact(id)),
                Box::pin(self.clone().keep_measured(id)),
            ];
            loops.into_iter().for_each(|one| self.env.spawn(one));
        }
        self.env.spawn(Box::pin(self.clone().settle_suspects()));
    }

    /// Looks at the room of a volume for ever: a neighbour that fills the disk is told to the cluster before a write fails.
    async fn keep_measured(self: Arc<Self>, id: VolumeId) {
        let Some(kept) = self.kept.get(&id) else { return };
        loop {
            self.env.sleep(MEASURE_EVERY).await;
            if let Err(error) = kept.volume.look_for_room().await {
                tracing::debug!(volume = %id, %error, "the room of this volume cannot be told");
            }
        }
    }

    /// A client asks for a shard: idle work waits a moment.
    pub fn client_asks(&self) {
        let millis = u64::try_from(self.env.now().0.as_millis()).unwrap_or(u64::MAX - 1);
        self.client_at.store(millis + 1, Ordering::Relaxed);
    }

    /// How long ago the shards of a volume were verified.
    pub fn scrub_age(&self, volume: VolumeId) -> ScrubAge {
        self.kept.get(&volume).map(|kept| kept.age().clone()).unwrap_or_default()
    }

    /// Begins to verify one volume, or all, from the first shard on and at full speed.
    ///
    /// # Errors
    /// The volume is not on this node.
    pub fn scrub_now(&self, volume: Option<VolumeId>) -> Result<(), Fault> {
        if let Some(unknown) = volume.filter(|volume| !self.kept.contains_key(volume)) {
            let text = format!("volume {unknown} is not on this node; ask the node that owns it");
            return Err(Fault::new(Class::NotFound, "PV-NO-VOLUME", text));
        }
        for (_, kept) in self.kept.iter().filter(|(id, _)| volume.is_none_or(|only| only == **id)) {
            *kept.wanted() = true;
            kept.age().hurried = true;
            kept.wake.notify_one();
        }
        Ok(())
    }

    pub(crate) fn busy(&self) -> bool {
        match self.client_at.load(Ordering::Relaxed).checked_sub(1) {
            None => false,
            Some(at) => self.env.now().0.saturating_sub(Duration::from_millis(at)) < BUSY_FOR,
        }
    }

    /// True when the volume can be written, which upkeep of it needs.
    pub(crate) fn sound(&self, id: VolumeId) -> bool {
        let poisoned = self.kept.get(&id).is_none_or(|kept| kept.volume.status().state == VolumeState::Fenced);
        !poisoned && self.trusted.trusted(id)
    }

    pub(crate) fn standing(&self, id: VolumeId) -> Standing {
        if !self.sound(id) {
            return Standing::Never;
        }
        let Some(layout) = self.replica.layout().filter(|layout| layout.format >= REPORTS_FROM) else {
            return Standing::NotYet;
        };
        match layout.volumes.get(&id) {
            None => Standing::NotYet,
            Some(known) if known.node != self.replica.status().node => Standing::Never,
            Some(known) if known.state == VolumeState::Fenced => Standing::Never,
            Some(_) => Standing::Ours,
        }
    }

    /// Sleeps, but not beyond a wish of an operator.
    pub(crate) async fn rest(&self, kept: &Kept, most: Duration) {
        let woken = std::pin::pin!(kept.wake.notified());
        select(woken, self.env.sleep(most)).await;
    }
}
