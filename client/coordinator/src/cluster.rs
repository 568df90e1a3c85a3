//! What a coordinator knows of the cluster: the layout, who answers, and how fresh its own writes are.
//!
//! **Invariants.** Suspicion is local and advisory: it steers placement and order of asking, never truth. Each suspected
//! node has exactly one probe, which ends when the node answers or the coordinator is gone.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, Weak},
    time::Duration,
};

use crate::{Options, memory::Memory, unexpected};
use pacsvault_core::{
    codec::Coder,
    ids::{LayoutVersion, LogIndex, NodeId, ProfileName, VolumeId},
    layout::{
        Layout, NodeState, Profile,
        placement::{self, Placer},
        profile::Code,
    },
};
use pacsvault_ports::{
    env::{MonoTime, SharedEnv},
    peer::{Class, Fault, Freshness, Peer, Reply, Request, Target},
};

/// Pause between two rounds of asking every node, and between two probes of a suspect.
const ROUND_PAUSE: Duration = Duration::from_millis(100);
/// Pause between two probes of a suspected node.
const PROBE_EVERY: Duration = Duration::from_millis(500);
/// How long a probe waits for an answer.
const PROBE_DEADLINE: Duration = Duration::from_secs(1);
/// How long a node that gave no answer is asked after all others: longer than asking a whole site of them in turn.
const SILENT_FOR: Duration = Duration::from_secs(30);
/// How long nodes may all say that they are no members before that is believed: longer than a join takes.
const JOINING_MAX: Duration = Duration::from_secs(3);
/// Latencies kept per node, for the hedging delay.
const LATENCIES_MAX: usize = 64;

#[derive(Default)]
struct Known {
    layout: Option<(Arc<Layout>, MonoTime)>,
    refreshing: bool,
    seen: LogIndex,
    suspects: BTreeMap<NodeId, String>,
    full: BTreeMap<VolumeId, MonoTime>,
    latencies: BTreeMap<NodeId, Vec<Duration>>,
    preferred: Option<Target>,
    /// Addresses that lately gave no answer, until when: asked last, so that a dark site costs its deadlines once.
    silent: BTreeMap<String, MonoTime>,
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

/// The reply to a request that may have been sent more than once.
pub struct Answer {
    pub reply: Reply,
    /// An earlier try may have been carried out too.
    pub doubtful: bool,
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

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
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

    /// Raises `freshness` so that the writes of this coordinator are seen.
    pub fn at_least_seen(&self, freshness: Freshness) -> Freshness {
        match freshness {
            Freshness::AtLeast(index) => Freshness::AtLeast(index.max(self.known().seen)),
            Freshness::Linearizable => Freshness::Linearizable,
        }
    }

    /// Notes that a write of this coordinator is visible from `index` on.
    pub fn saw(&self, index: LogIndex) {
        let mut known = self.known();
        known.seen = known.seen.max(index);
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

    /// Fetches the layout now.
    pub async fn refresh_layout(self: &Arc<Self>) -> Result<Arc<Layout>, Fault> {
        let freshness = self.at_least_seen(Freshness::AtLeast(LogIndex(0)));
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

    /// Nodes to ask, best first: the one that answered last, own site, others, suspects last; then the seeds.
    fn targets(&self) -> Vec<Target> {
        let known = self.known();
        let mut targets: Vec<Target> = known.preferred.iter().cloned().collect();
        if let Some((layout, _)) = &known.layout {
            let mut nodes: Vec<_> = layout.nodes.values().filter(|node| node.state != NodeState::Removed).collect();
            nodes.sort_by_key(|node| {
                (known.suspects.contains_key(&node.id), Some(&node.site) != self.options.site.as_ref(), node.id)
            });
            targets.extend(nodes.into_iter().map(target_of));
        }
        targets.extend(self.options.seeds.iter().cloned());
        let mut met = BTreeSet::new();
        targets.retain(|target| met.insert(target.address.clone()));
        let now = self.env.now();
        targets.sort_by_key(|target| known.silent.get(&target.address).is_some_and(|until| *until > now));
        targets
    }

    /// Asks nodes in turn until one answers, round after round until the operation deadline. Every request is safe to
    /// repeat.
    pub async fn ask(&self, request: &Request) -> Result<Reply, Fault> {
        Ok(self.ask_told(request).await?.reply)
    }

    /// As [`Cluster::ask`], and says whether an earlier try may have been carried out too. Once one may have been, no
    /// fault of a later try is definite: the outcome is unknown, and said so. A request that changes nothing has no
    /// outcome to be unsure of.
    pub async fn ask_told(&self, request: &Request) -> Result<Answer, Fault> {
        let began = self.env.now().0;
        let end = began + self.options.operation_deadline;
        let mut doubtful = false;
        let mut last =
            Fault::new(Class::Retry, "PV-NO-NODE", "no node of the cluster is known: name at least one endpoint");
        loop {
            let mut codes = BTreeSet::new();
            for target in self.targets() {
                let left = end.saturating_sub(self.env.now().0);
                if left.is_zero() {
                    return Err(self.gave_up(doubtful, &last));
                }
                let deadline = self.options.catalog_deadline.min(left);
                let fault = match self.peer.call(&target, request.clone(), deadline).await {
                    Ok(reply) => {
                        self.note_answer(target);
                        return Ok(Answer { reply, doubtful });
                    }
                    Err(fault) => fault,
                };
                self.note_no_answer(&target, &fault);
                match fault.class {
                    Class::Unknown => doubtful |= !only_reads(request),
                    Class::Retry | Class::Exhausted => {}
                    Class::Reject | Class::NotFound | Class::Corrupt | Class::Bug => {
                        return Err(if doubtful { in_doubt(&fault) } else { fault });
                    }
                }
                codes.insert(fault.code);
                last = fault;
            }
            let now = self.env.now().0;
            if hopeless(&codes, now.saturating_sub(began)) {
                if last.code == "PV-TRUST" {
                    last.class = Class::Reject;
                }
                return Err(if doubtful { in_doubt(&last) } else { last });
            }
            if now + ROUND_PAUSE >= end {
                return Err(self.gave_up(doubtful, &last));
            }
            self.env.sleep(ROUND_PAUSE).await;
        }
    }

    fn note_answer(&self, target: Target) {
        let mut known = self.known();
        known.silent.remove(&target.address);
        known.preferred = Some(target);
    }

    fn note_no_answer(&self, target: &Target, fault: &Fault) {
        let mut known = self.known();
        if known.preferred.as_ref() == Some(target) {
            known.preferred = None;
        }
        if matches!(fault.class, Class::Unknown | Class::Retry) {
            let until = MonoTime(self.env.now().0 + SILENT_FOR);
            known.silent.insert(target.address.clone(), until);
        }
    }

    fn gave_up(&self, doubtful: bool, last: &Fault) -> Fault {
        let seconds = self.options.operation_deadline.as_secs();
        if doubtful {
            let text = format!("outcome unknown after {seconds} s: {last}; trying again with the same content is safe");
            Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", text)
        } else {
            let text = format!("no node answered within {seconds} s: {last}; see `pacsvault status`");
            Fault::new(Class::Retry, "PV-UNAVAILABLE", text)
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

/// Requests that leave everything as it is, whether or not they were carried out.
fn only_reads(request: &Request) -> bool {
    matches!(
        request,
        Request::Layout(_)
            | Request::Lookup(_)
            | Request::List(_)
            | Request::Status
            | Request::ReadIndex
            | Request::GetShard(_)
            | Request::SnapshotFiles { .. }
            | Request::SnapshotRead { .. }
    )
}

/// A whole round was refused, every node for the same reason, and asking again will not help.
fn hopeless(codes: &BTreeSet<&'static str>, asked_for: Duration) -> bool {
    let only = |code: &str| codes.len() == 1 && codes.contains(code);
    // A node that is being let in says that it is no member, but not for long.
    only("PV-TRUST") || (only("PV-NOT-MEMBER") && asked_for >= JOINING_MAX)
}

/// The fault of a try, when an earlier try of the same request may have been carried out.
pub fn in_doubt(later: &Fault) -> Fault {
    let text = format!(
        "outcome unknown: an earlier try may have been carried out, and a later one was refused: {later}; trying again \
         with the same content is safe"
    );
    Fault::new(Class::Unknown, "PV-UNKNOWN-OUTCOME", text)
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
