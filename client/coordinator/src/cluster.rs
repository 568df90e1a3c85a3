//! What a coordinator knows of the cluster: the layout, who answers, how fast, and what it wrote itself.
//!
//! **Invariants.** Suspicion is local and advisory: it steers placement and order of asking, never truth. Each suspected
//! node has exactly one probe, which ends when the node answers or the coordinator is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use crate::{Options, memory::Memory, own::OwnWrites, unexpected};
use pacsvault_core::{
    codec::Coder,
    ids::{LayoutVersion, LogIndex, NodeId, ObjectKey, ProfileName, VolumeId},
    layout::{
        Layout, Profile,
        placement::{self, Placer},
        profile::Code,
    },
};
use pacsvault_ports::{
    env::{MonoTime, SharedEnv},
    peer::{Class, Fault, Freshness, Peer, Reply, Request, Target},
};

/// Pause between two probes of a suspected node.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How long a probe waits for an answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// Latencies kept per node, for the hedging delay.
const LATENCIES_MAX: usize = 64;

/// What changes.
#[derive(Default)]
pub struct Known {
    pub layout: Option<(Arc<Layout>, MonoTime)>,
    refreshing: bool,
    own: OwnWrites,
    pub suspects: BTreeMap<NodeId, String>,
    full: BTreeMap<VolumeId, MonoTime>,
    latencies: BTreeMap<NodeId, Vec<Duration>>,
    /// Who answered last.
    pub preferred: Option<Target>,
    /// Addresses that lately gave no answer, until when: asked last, so that a dark site costs its deadlines once.
    pub silent: BTreeMap<String, MonoTime>,
    coders: BTreeMap<Code, Coder>,
    placer: Option<(PlacerKey, Arc<Placer>)>,
}

/// What a placer answers for: it is dealt anew when any of these changes.
#[derive(PartialEq, Eq)]
struct PlacerKey {
    version: LayoutVersion,
    profile: ProfileName,
    profile_version: u32,
    avoid: BTreeSet<VolumeId>,
}

/// The cluster as one coordinator sees it.
pub struct Cluster {
    pub options: Options,
    pub env: SharedEnv,
    pub peer: Arc<dyn Peer>,
    pub memory: Memory,
    known: Mutex<Known>,
}

impl Cluster {
    pub fn new(options: Options, env: SharedEnv, peer: Arc<dyn Peer>) -> Self {
        let memory = Memory::new(options.stripe_memory_bytes);
        Self { options, env, peer, memory, known: Mutex::default() }
    }

    /// What changes, locked for a moment.
    pub fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Where stripes of `profile` go, without the `avoid`ed volumes.
    pub fn placer(
        &self,
        layout: &Layout,
        profile: &Profile,
        avoid: &BTreeSet<VolumeId>,
    ) -> Result<Arc<Placer>, placement::Error> {
        let key = PlacerKey {
            version: layout.version,
            profile: profile.name.clone(),
            profile_version: profile.version,
            avoid: avoid.clone(),
        };
        if let Some((held, placer)) = &self.known().placer
            && *held == key
        {
            return Ok(placer.clone());
        }
        let placer = Arc::new(Placer::new(layout, profile, avoid)?);
        self.known().placer = Some((key, placer.clone()));
        Ok(placer)
    }

    /// The coder of `code`: one per code, since it owns caches and recycled buffers.
    pub fn coder(&self, code: Code) -> Coder {
        self.known().coders.entry(code).or_insert_with(|| Coder::new(code)).clone()
    }

    /// Raises `freshness` so that all writes of this coordinator are seen.
    pub fn with_own(&self, freshness: Freshness) -> Freshness {
        raised(freshness, self.known().own.newest())
    }

    /// Raises `freshness` so that all writes of this coordinator to `key` are seen.
    pub fn with_own_of(&self, key: &ObjectKey, freshness: Freshness) -> Freshness {
        raised(freshness, self.known().own.of_key(key))
    }

    /// Notes that a write of this coordinator to `key` is visible from `index` on.
    pub fn wrote(&self, key: &ObjectKey, index: LogIndex) {
        self.known().own.note(key, index);
    }

    /// Version of the layout held, if any is.
    pub fn layout_version(&self) -> Option<LayoutVersion> {
        self.known().layout.as_ref().map(|(layout, _)| layout.version)
    }

    /// The layout: cached, refreshed in the background when old.
    pub async fn layout(self: &Arc<Self>) -> Result<Arc<Layout>, Fault> {
        let cached = {
            let mut known = self.known();
            let now = self.env.now();
            let cached = known.layout.clone();
            if let Some((_, at)) = &cached
                && now.0.saturating_sub(at.0) > self.options.layout_age_max
                && !known.refreshing
            {
                known.refreshing = true;
                let cluster = self.clone();
                self.env.spawn(Box::pin(async move {
                    // A failure leaves the old layout; apply judges every seal by the true one.
                    let _ = cluster.refresh_layout().await;
                    cluster.known().refreshing = false;
                }));
            }
            cached
        };
        match cached {
            Some((layout, _)) => Ok(layout),
            None => self.refresh_layout().await,
        }
    }

    /// As [`Cluster::layout`], but waits for a new one where the cached one is old: by that, something may still be down that came
    /// back long ago. Where nobody answers, the old one counts.
    ///
    /// # Errors
    /// None is held, and nobody gives any.
    pub async fn recent_layout(self: &Arc<Self>) -> Result<Arc<Layout>, Fault> {
        let now = self.env.now();
        let old =
            self.known().layout.as_ref().is_none_or(|(_, at)| now.0.saturating_sub(at.0) > self.options.layout_age_max);
        if old && let Ok(layout) = self.refresh_layout().await {
            return Ok(layout);
        }
        self.layout().await
    }

    /// Fetches a layout now, from whoever answers first.
    pub async fn refresh_layout(self: &Arc<Self>) -> Result<Arc<Layout>, Fault> {
        self.fetch_layout(self.with_own(Freshness::AtLeast(LogIndex(0)))).await
    }

    /// Fetches the layout of now. A replica that is cut off from the leader gives its old one for as long as that lasts, and
    /// by that all nodes may be away; where nobody can tell what is true, its word counts.
    ///
    /// # Errors
    /// Nobody gives any layout.
    pub async fn true_layout(self: &Arc<Self>) -> Result<Arc<Layout>, Fault> {
        match self.fetch_layout(Freshness::Linearizable).await {
            Ok(layout) => Ok(layout),
            Err(_) => self.refresh_layout().await,
        }
    }

    async fn fetch_layout(self: &Arc<Self>, freshness: Freshness) -> Result<Arc<Layout>, Fault> {
        match self.ask(&Request::Layout(freshness)).await? {
            Reply::Layout(layout) => {
                let mut known = self.known();
                let newest = match &known.layout {
                    Some((held, _)) if held.version > layout.version => held.clone(),
                    _ => layout,
                };
                known.layout = Some((newest.clone(), self.env.now()));
                Ok(newest)
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Volumes that a write should not be placed on now.
    pub fn avoided(&self, layout: &Layout) -> BTreeSet<VolumeId> {
        let known = self.known();
        let now = self.env.now();
        let of_suspects = layout.volumes.values().filter(|volume| known.suspects.contains_key(&volume.node));
        let full = known.full.iter().filter(|(_, until)| **until > now).map(|(volume, _)| *volume);
        of_suspects.map(|volume| volume.id).chain(full).collect()
    }

    /// Nodes that did not answer lately.
    pub fn suspects(&self) -> BTreeMap<NodeId, String> {
        self.known().suspects.clone()
    }

    /// Judges a failed call to a node or volume: unreachable nodes are suspected and probed, full volumes left alone.
    pub fn note_failure(self: &Arc<Self>, layout: &Layout, volume: VolumeId, fault: &Fault) {
        let Some(node) = layout.node_of(volume) else { return };
        // The volume's own faults say nothing against its node.
        let of_volume = fault.code.starts_with("PV-VOLUME-");
        match fault.class {
            Class::Retry | Class::Unknown if !of_volume => {
                let fresh = self.known().suspects.insert(node.id, fault.message.clone()).is_none();
                if fresh {
                    tracing::info!(node = %node.name, code = fault.code, reason = %fault, "node does not answer; writing around it");
                    self.env.spawn(Box::pin(probe(Arc::downgrade(self), node.id, target_of(node))));
                }
            }
            Class::Retry | Class::Unknown | Class::Exhausted | Class::Reject | Class::Corrupt | Class::Bug => {
                let until = MonoTime(self.env.now().0 + Duration::from_secs(10));
                self.known().full.insert(volume, until);
            }
            Class::NotFound => {}
        }
    }

    /// Notes how long a shard read of a node took.
    pub fn note_latency(&self, node: NodeId, took: Duration) {
        let mut known = self.known();
        let latencies = known.latencies.entry(node).or_default();
        if latencies.len() == LATENCIES_MAX {
            latencies.remove(0);
        }
        latencies.push(took);
    }

    /// When to stop waiting for `node` alone: twice its p95, between 10 ms and [`Options::hedge_after`].
    pub fn hedge_delay(&self, node: NodeId) -> Duration {
        let known = self.known();
        let Some(latencies) = known.latencies.get(&node).filter(|held| held.len() >= 16) else {
            return self.options.hedge_after;
        };
        let mut sorted = latencies.clone();
        sorted.sort_unstable();
        let p95 = sorted[(sorted.len() - 1) * 95 / 100];
        (p95 * 2).clamp(Duration::from_millis(10).min(self.options.hedge_after), self.options.hedge_after)
    }
}

fn raised(freshness: Freshness, least: LogIndex) -> Freshness {
    match freshness {
        Freshness::AtLeast(index) => Freshness::AtLeast(index.max(least)),
        Freshness::Linearizable => Freshness::Linearizable,
    }
}

/// How to reach a node.
pub fn target_of(node: &pacsvault_core::layout::Node) -> Target {
    Target { address: node.address.clone(), name: Some(node.name.clone()) }
}

async fn probe(cluster: Weak<Cluster>, node: NodeId, target: Target) {
    loop {
        let Some(alive) = cluster.upgrade() else { return };
        let pause = alive.env.sleep(PROBE_EVERY);
        drop(alive);
        pause.await;
        let Some(alive) = cluster.upgrade() else { return };
        let call = alive.peer.call(&target, Request::Status, PROBE_DEADLINE);
        if call.await.is_ok() {
            alive.known().suspects.remove(&node);
            tracing::info!(%node, "node answers again");
            return;
        }
    }
}
