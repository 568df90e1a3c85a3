//! How the harness looks at a cluster while everything burns: every node is asked for its status, the leader for its health.
//!
//! **Invariants.** A node that does not answer in time counts as not answering; nothing is guessed about it. A look says when it
//! began, so that nobody takes what was seen before a fault for what followed it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::bail;
use futures::future::join_all;
use pacsvault_core::{
    catalog::{Command, Outcome},
    health::{Tier, report::Health},
    ids::{LogIndex, NodeId, VolumeId},
    layout::{Layout, NodeState, VolumeState},
};
use pacsvault_ports::peer::{Fault, Freshness, NodeStatus, Peer, Reply, Request, Target};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::record::LeaderChange;

/// How long a node has to tell its status.
const STATUS_WITHIN: Duration = Duration::from_millis(800);
/// How long the leader has to tell health and layout.
const HEALTH_WITHIN: Duration = Duration::from_millis(1_500);
/// Time between two looks.
const EVERY: Duration = Duration::from_millis(400);

/// What was seen at one moment.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// When it began, milliseconds of the run.
    pub began_ms: u64,
    /// When it ended.
    pub at_ms: u64,
    /// Who leads, by the highest term; absent when that node does not answer.
    pub leader: Option<String>,
    /// Highest term seen.
    pub term: u64,
    /// Nodes that answered.
    pub answering: BTreeSet<String>,
    /// What each has applied, and the digest of it.
    pub applied: BTreeMap<String, (LogIndex, String)>,
    /// Nodes that the layout counts as up.
    pub up: BTreeSet<String>,
    /// Version of commands in force.
    pub format: u32,
    /// What nodes call their programs.
    pub versions: BTreeSet<String>,
    /// Whom each node believes to lead, with its term.
    pub believed: BTreeSet<(u64, NodeId)>,
    /// Content bytes that can be read and survive 0, 1, 2, 3 or more further losses.
    pub by_distance: Option<[u64; 4]>,
    /// Content bytes that cannot be read until somebody returns.
    pub unreadable: Option<u64>,
    /// Content bytes whose contract is not kept.
    pub below_contract: Option<u64>,
    /// Why not everything is at full contract; absent when it is.
    pub unhealed: Option<String>,
}

/// The eyes.
pub struct Eyes {
    peer: Arc<dyn Peer>,
    addresses: Mutex<BTreeMap<String, String>>,
    began: Instant,
    looks: Mutex<Vec<Look>>,
    runtime: Handle,
}

fn locked<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Eyes {
    /// Eyes that ask with the certificate of `peer`. Times count from `began`.
    pub fn new(peer: Arc<dyn Peer>, began: Instant, runtime: Handle) -> Self {
        Self { peer, addresses: Mutex::default(), began, looks: Mutex::default(), runtime }
    }

    /// Whom to look at: address by name.
    pub fn watch(&self, addresses: BTreeMap<String, String>) {
        *locked(&self.addresses) = addresses;
    }

    /// Milliseconds of the run.
    pub fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Looks again and again until `over`.
    pub fn open(self: &Arc<Self>, over: Arc<AtomicBool>) -> JoinHandle<()> {
        let eyes = self.clone();
        self.runtime.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let look = eyes.look().await;
                eyes.keep(look);
                tokio::time::sleep(EVERY).await;
            }
        })
    }

    /// Remembers a look.
    pub(crate) fn keep(&self, look: Look) {
        locked(&self.looks).push(look);
    }

    /// All looks so far.
    pub fn looks(&self) -> Vec<Look> {
        locked(&self.looks).clone()
    }

    /// The last one.
    pub fn last(&self) -> Look {
        locked(&self.looks).last().cloned().unwrap_or_default()
    }

    /// Looks that began at or after a moment of the run.
    pub fn since(&self, at_ms: u64) -> Vec<Look> {
        locked(&self.looks).iter().filter(|look| look.began_ms >= at_ms).cloned().collect()
    }

    /// Who led since when.
    pub fn leaders(&self) -> Vec<LeaderChange> {
        let mut changes: Vec<LeaderChange> = Vec::new();
        for look in locked(&self.looks).iter() {
            let now = (&look.leader, look.term);
            if changes.last().is_none_or(|last| (&last.node, last.term) != now) {
                changes.push(LeaderChange { at_ms: look.at_ms, node: look.leader.clone(), term: look.term });
            }
        }
        changes
    }

    async fn look(&self) -> Look {
        let began_ms = self.now_ms();
        let addresses = locked(&self.addresses).clone();
        let asked = addresses.iter().map(|(name, address)| async move {
            let answer = self.call(name, address, Request::Status, STATUS_WITHIN).await;
            match answer {
                Ok(Reply::Status(status)) => Some((name.clone(), status)),
                _ => None,
            }
        });
        let statuses: BTreeMap<String, Box<NodeStatus>> = join_all(asked).await.into_iter().flatten().collect();
        let newest = statuses.values().filter(|status| status.leader.is_some()).max_by_key(|status| status.term);
        let (led_by, term) = newest.map_or((None, 0), |status| (status.leader, status.term.0));
        let leader = statuses.iter().find(|(_, status)| led_by.is_some() && status.node == led_by);
        let mut look = Look {
            began_ms,
            leader: leader.map(|(name, _)| name.clone()),
            term,
            answering: statuses.keys().cloned().collect(),
            unhealed: Some("nobody leads".to_owned()),
            ..Look::default()
        };
        for (name, status) in &statuses {
            look.believed.extend(status.leader.map(|leader| (status.term.0, leader)));
            look.applied.insert(name.clone(), (status.applied, status.state_digest.to_string()));
            look.versions.insert(status.binary_version.clone());
        }
        if let Some(name) = &look.leader.clone()
            && let Some(address) = addresses.get(name)
        {
            self.ask_leader(name, address, &mut look).await;
        }
        look.at_ms = self.now_ms();
        look
    }

    async fn ask_leader(&self, name: &str, address: &str, look: &mut Look) {
        let layout = Request::Layout(Freshness::AtLeast(LogIndex(0)));
        let (health, layout) = tokio::join!(
            self.call(name, address, Request::Health, HEALTH_WITHIN),
            self.call(name, address, layout, HEALTH_WITHIN)
        );
        if let Ok(Reply::Layout(layout)) = layout {
            let up = layout.nodes.values().filter(|node| node.state == NodeState::Up);
            look.up = up.map(|node| node.name.to_string()).collect();
            look.format = layout.format;
        }
        match health {
            Ok(Reply::Health(health)) => {
                let (by_distance, unreadable) = by_distance(&health);
                look.by_distance = Some(by_distance);
                look.unreadable = Some(unreadable);
                look.below_contract = Some(health.below_contract.content_bytes);
                look.unhealed = unhealed(&health);
            }
            Ok(_) => {}
            Err(fault) => look.unhealed = Some(format!("the leader tells no health: {fault}")),
        }
    }

    async fn call(&self, name: &str, address: &str, request: Request, within: Duration) -> Result<Reply, Fault> {
        let target = Target { address: address.to_owned(), name: name.parse().ok() };
        self.peer.call(&target, request, within).await
    }

    /// Waits for something of the cluster.
    pub(crate) fn wait<T>(&self, wanted: impl Future<Output = T>) -> T {
        self.runtime.block_on(wanted)
    }

    /// Asks one node.
    ///
    /// # Errors
    /// Its fault, or that there is no such node.
    pub fn ask(&self, name: &str, request: Request, within: Duration) -> anyhow::Result<Reply> {
        let Some(address) = locked(&self.addresses).get(name).cloned() else { bail!("there is no node {name}") };
        Ok(self.runtime.block_on(self.call(name, &address, request, within))?)
    }

    /// Stripes that the leader of the last look has repaired at this moment; absent when it does not tell.
    pub fn repairing(&self) -> Option<u64> {
        match self.ask(&self.last().leader?, Request::Health, HEALTH_WITHIN) {
            Ok(Reply::Health(health)) => Some(health.in_progress),
            Ok(_) | Err(_) => None,
        }
    }

    /// The layout as the leader or any other node knows it.
    ///
    /// # Errors
    /// Nobody tells.
    pub fn layout(&self) -> anyhow::Result<Arc<Layout>> {
        let leader = self.last().leader;
        let names: Vec<String> = locked(&self.addresses).keys().cloned().collect();
        for name in leader.iter().chain(&names) {
            let request = Request::Layout(Freshness::AtLeast(LogIndex(0)));
            if let Ok(Reply::Layout(layout)) = self.ask(name, request, HEALTH_WITHIN) {
                return Ok(layout);
            }
        }
        bail!("no node tells the layout")
    }

    /// Has one command put into the log, by whichever node takes it.
    ///
    /// # Errors
    /// Refused, with why; or nobody took it within the limit.
    pub fn order(&self, command: &Command, limit: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        while began.elapsed() < limit {
            let names: Vec<String> = locked(&self.addresses).keys().cloned().collect();
            for name in names {
                let asked = self.ask(&name, Request::Propose(vec![command.clone()]), Duration::from_secs(3));
                if let Ok(Reply::Outcomes(outcomes)) = asked {
                    return match outcomes.into_iter().next() {
                        Some(Outcome::Rejected(why)) => bail!("{command:?} was refused: {why}"),
                        _ => Ok(()),
                    };
                }
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        bail!("no node took {command:?} within {} s", limit.as_secs())
    }

    /// Id of the member of this name.
    ///
    /// # Errors
    /// There is none.
    pub fn member(&self, name: &str) -> anyhow::Result<NodeId> {
        let layout = self.layout()?;
        let mut named = layout.nodes.values().filter(|node| node.name.as_str() == name);
        let found = named.find(|node| node.state != NodeState::Removed).map(|node| node.id);
        found.ok_or_else(|| anyhow::anyhow!("{name} is no member"))
    }

    /// Volumes of a member that are not given up.
    ///
    /// # Errors
    /// Nobody tells.
    pub fn volumes_of(&self, node: NodeId) -> anyhow::Result<Vec<VolumeId>> {
        let layout = self.layout()?;
        let own = layout.volumes.values().filter(|volume| volume.node == node && volume.state != VolumeState::Fenced);
        Ok(own.map(|volume| volume.id).collect())
    }
}

/// Content bytes by further losses survived, and those that cannot be read.
fn by_distance(health: &Health) -> ([u64; 4], u64) {
    let (mut sums, mut unreadable) = ([0; 4], 0);
    for (tier, sum) in &health.by_tier.0 {
        match tier {
            Tier::Unreadable => unreadable += sum.content_bytes,
            Tier::Distance(survived) => sums[usize::from(*survived).min(3)] += sum.content_bytes,
        }
    }
    (sums, unreadable)
}

fn unhealed(health: &Health) -> Option<String> {
    let left: u64 = health.waiting.values().map(|sums| sums.stripes).sum();
    let below = health.below_contract.stripes;
    let whole = below == 0 && left == 0 && health.in_progress == 0 && health.aside_total == 0;
    (!whole).then(|| {
        format!(
            "{below} stripes below contract, {left} waiting, {} in progress, {} set aside, held back {:?}",
            health.in_progress, health.aside_total, health.held_back
        )
    })
}

#[cfg(test)]
mod tests {
    use pacsvault_core::health::Sums;

    use super::*;

    #[test]
    fn what_cannot_be_read_is_not_taken_for_what_survives_no_further_loss() {
        let mut health = Health::default();
        let bytes = |content_bytes| Sums { content_bytes, ..Sums::default() };
        health.by_tier.0.insert(Tier::Unreadable, bytes(7));
        health.by_tier.0.insert(Tier::Distance(0), bytes(20));
        health.by_tier.0.insert(Tier::Distance(5), bytes(300));
        assert_eq!(by_distance(&health), ([20, 0, 0, 300], 7));
    }
}
