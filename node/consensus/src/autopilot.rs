//! The leader's care for the membership: invites nodes that joined the layout, promotes and replaces voters by plan,
//! finishes changes that another leader left half done, lets removed nodes go, and compares the replicas' digests.
//!
//! **Invariants.** One change is in flight at a time, and each is conditional on the membership it was decided on. A
//! member is never changed in place. Nothing here is needed for safety: a leader without it serves the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use openraft::{AsyncRuntime, ChangeMembers, Instant, Precondition, RaftMetrics, ServerState};
use pacsvault_core::{
    catalog::Command,
    ids::{LogIndex, NodeId},
    layout::{Layout, Node, NodeState},
};
use pacsvault_ports::env::{MonoTime, timeout};

use crate::{
    facade::Inner,
    types::{Member, Types},
    voters::{Candidate, Health, plan},
};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
/// A learner must have been healthy for so long before it may vote.
const STABLE: Duration = Duration::from_secs(2);
/// Entries that a healthy node may be behind: what a busy second appends.
const BEHIND_MAX: u64 = 2_000;
/// Longest wait for one change; it may still come true afterwards and is then found done.
const CHANGE_DEADLINE: Duration = Duration::from_secs(20);
/// Between two comparisons of the replicas' digests.
const COMPARE_EVERY: Duration = Duration::from_secs(30);

/// What a leader remembers between two looks.
#[derive(Default)]
struct Memory {
    /// Leading in this term.
    term: u64,
    /// Since when each node has been healthy without a break.
    healthy_since: BTreeMap<u64, MonoTime>,
    /// When each node was last healthy; the beginning of the leadership for those that never were.
    last_healthy: BTreeMap<u64, MonoTime>,
    began: MonoTime,
    compared: (MonoTime, LogIndex),
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    FinishJoint(BTreeSet<u64>),
    Invite(u64, Member),
    LetGo(u64),
    Voters(BTreeSet<u64>),
}

/// Runs until the replica is stopped or dropped.
pub(crate) async fn run<R: AsyncRuntime>(replica: Weak<Inner<R>>) {
    let mut memory = Memory::default();
    loop {
        let Some(inner) = replica.upgrade().filter(|inner| !inner.stopped.load(Ordering::SeqCst)) else { return };
        let metrics = inner.metrics();
        if metrics.state == ServerState::Leader {
            look(&inner, &metrics, &mut memory).await;
        } else {
            memory = Memory::default();
        }
        let pause = inner.env.sleep(EVERY);
        drop(inner);
        pause.await;
    }
}

async fn look<R: AsyncRuntime>(inner: &Inner<R>, metrics: &RaftMetrics<Types<R>>, memory: &mut Memory) {
    let now = inner.env.now();
    if memory.term != metrics.current_term {
        *memory = Memory { term: metrics.current_term, began: now, ..Memory::default() };
        memory.compared.0 = now;
    }
    memory.observe(metrics, now, inner.options.election_max);
    compare(inner, memory, now).await;
    // A change in flight ends first.
    if metrics.membership_config != metrics.committed_membership_config {
        return;
    }
    let Some(layout) = inner.state.published().layout else { return };
    let Some(change) = decide(metrics, &layout, memory, now, inner.options.voter_grace) else { return };
    tracing::info!(node = inner.options.node.0, ?change, "changing the membership");
    let carried = carry_out(inner, metrics, change);
    match timeout(inner.env.as_ref(), CHANGE_DEADLINE, carried).await {
        Some(Ok(())) => {}
        Some(Err(why)) => tracing::warn!(why, "the membership was not changed"),
        None => tracing::warn!("the membership change takes long"),
    }
}

impl Memory {
    fn observe<R: AsyncRuntime>(&mut self, metrics: &RaftMetrics<Types<R>>, now: MonoTime, contact: Duration) {
        let last = metrics.last_log_index.unwrap_or(0);
        for (id, _) in metrics.membership_config.nodes() {
            let acked = metrics.heartbeat.as_ref().and_then(|acks| acks.get(id).copied().flatten());
            let matched = metrics.replication.as_ref().and_then(|logs| logs.get(id).copied().flatten());
            let heard = acked.is_some_and(|instant| instant.elapsed() <= contact);
            let caught_up = matched.is_some_and(|matched| matched.index + BEHIND_MAX >= last);
            if *id == metrics.id || (heard && caught_up) {
                self.healthy_since.entry(*id).or_insert(now);
                self.last_healthy.insert(*id, now);
            } else {
                self.healthy_since.remove(id);
            }
        }
    }

    fn health(&self, id: u64, now: MonoTime, grace: Duration) -> Health {
        let since = |then: &MonoTime| now.0.saturating_sub(then.0);
        if self.healthy_since.get(&id).is_some_and(|then| since(then) >= STABLE) {
            Health::Healthy
        } else if since(self.last_healthy.get(&id).unwrap_or(&self.began)) < grace {
            Health::Away
        } else {
            Health::Dead
        }
    }
}

fn decide<R: AsyncRuntime>(
    metrics: &RaftMetrics<Types<R>>,
    layout: &Layout,
    memory: &Memory,
    now: MonoTime,
    grace: Duration,
) -> Option<Change> {
    let membership = metrics.membership_config.membership();
    if let [_, .., last] = membership.get_joint_config().as_slice() {
        return Some(Change::FinishJoint(last.clone()));
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let present = |node: &&Node| node.state != NodeState::Removed;
    if let Some(node) = layout.nodes.values().filter(present).find(|node| membership.get_node(&node.id.0).is_none()) {
        return Some(Change::Invite(node.id.0, member(node)));
    }
    let removed = |id: &u64| layout.nodes.get(&NodeId(*id)).is_some_and(|node| node.state == NodeState::Removed);
    if let Some(id) = membership.learner_ids().find(removed) {
        return Some(Change::LetGo(id));
    }
    let candidate = |id: &u64| {
        let node = layout.nodes.get(&NodeId(*id))?;
        Some(Candidate {
            node: node.id,
            site: node.site.clone(),
            eligible: node.roles.voter && node.state != NodeState::Removed,
            health: memory.health(*id, now, grace),
            voter: voters.contains(id),
            leader: *id == metrics.id,
        })
    };
    let candidates: Vec<Candidate> = membership.nodes().filter_map(|(id, _)| candidate(id)).collect();
    // A voter that the layout does not know yet: the cluster is being made.
    if candidates.iter().filter(|one| one.voter).count() != voters.len() {
        return None;
    }
    plan(&candidates).map(|voters| Change::Voters(voters.into_iter().map(|node| node.0).collect()))
}

fn member(node: &Node) -> Member {
    Member {
        address: node.address.clone(),
        name: Some(node.name.clone()),
        site: Some(node.site.clone()),
        incarnation: node.incarnation,
    }
}

async fn carry_out<R: AsyncRuntime>(
    inner: &Inner<R>,
    metrics: &RaftMetrics<Types<R>>,
    change: Change,
) -> Result<(), String> {
    let (members, retain) = match change {
        Change::FinishJoint(voters) | Change::Voters(voters) => (ChangeMembers::ReplaceAllVoters(voters), true),
        // Adds, and leaves a known node as it is.
        Change::Invite(id, member) => (ChangeMembers::AddNodes(BTreeMap::from([(id, member)])), true),
        Change::LetGo(id) => (ChangeMembers::RemoveNodes(BTreeSet::from([id])), false),
    };
    let decided_on = Precondition::LastMembershipLogId { last_membership_log_id: *metrics.membership_config.log_id() };
    let changed = inner.raft.change_membership_if(members, retain, [decided_on]).await;
    changed.map(drop).map_err(|error| error.to_string())
}

/// Lets every replica compare its digest with the leader's; one that differs stops itself.
async fn compare<R: AsyncRuntime>(inner: &Inner<R>, memory: &mut Memory, now: MonoTime) {
    let published = inner.state.published();
    let (when, index) = memory.compared;
    // The entry that compares has a digest of its own; without anything new there is nothing to compare.
    let new = published.digest_index.0 > index.0 + 1;
    if !new || now.0.saturating_sub(when.0) < COMPARE_EVERY {
        return;
    }
    let command = Command::CompareDigest { index: published.digest_index, digest: published.digest };
    if let Err(fault) = inner.propose_here(vec![command]).await {
        tracing::debug!(%fault, "digests were not compared");
    }
    memory.compared = (now, inner.state.published().digest_index);
}
