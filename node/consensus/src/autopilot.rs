//! The leader's care for the cluster: invites nodes that joined the layout, promotes and replaces voters by plan, finishes
//! changes that another leader left half done, hands leadership to a better node, lets removed nodes go, puts a new
//! version of commands in force when the last member understands it, and compares the replicas' digests.
//!
//! **Invariants.** One change is in flight at a time, and each is conditional on the membership it was decided on. A
//! member is never changed in place. Votes go to a set of voters most of which answer at that moment. A leader that is to
//! leave hands over first, if anybody can take over. A replica stops itself for the digest of a majority of voters only,
//! never for that of the leader alone: a leader that a majority differs from is itself the one that stops. Nothing here is
//! needed for safety: a leader without it serves the same.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Weak, atomic::Ordering},
    time::Duration,
};

use futures::future::{join, join_all};
use openraft::{AsyncRuntime, ChangeMembers, Instant, Precondition, RaftMetrics, ServerState};
use pacsvault_core::{
    catalog::{Command, Outcome, command::COMMANDS_VERSION, query::remembered_digest},
    ids::{Digest, LogIndex, NodeId},
    layout::{Layout, Node, NodeState},
};
use pacsvault_ports::{
    env::{MonoTime, blocking, timeout},
    peer::{NodeStatus, Reply, Request},
};

use crate::{
    facade::Inner,
    gate::understood,
    leadership::{Patience, Seat, successor, tempted},
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
/// How often a removed leader tries to hand over before its vote is taken.
const HAND_OVER_TRIES: u32 = 3;
/// A leader has led for so many settling times before it gives leadership to the preferred site: five minutes by default.
const REST: u32 = 30;
/// Before a version is asked for again that was not put in force.
const ACTIVATE_AGAIN: Duration = Duration::from_secs(30);
/// Longest wait for a voter's status, and then for this replica to have applied as much.
const STATUS_DEADLINE: Duration = Duration::from_secs(2);

/// What a leader remembers between two looks.
#[derive(Default)]
struct Memory {
    /// Leading in this term.
    term: u64,
    /// Since when each node has been healthy without a break.
    healthy_since: BTreeMap<u64, MonoTime>,
    /// Since when each node has been out of contact without a break.
    silent_since: BTreeMap<u64, MonoTime>,
    /// When each node was last healthy; the beginning of the leadership for those that never were.
    last_healthy: BTreeMap<u64, MonoTime>,
    began: MonoTime,
    compared: (MonoTime, LogIndex),
    /// About moving leadership.
    patience: Patience,
    /// Whom this node and the voters reach, and when they were asked.
    reach: Option<(MonoTime, BTreeMap<u64, BTreeSet<NodeId>>)>,
    /// When a version was last asked to be put in force.
    activated: Option<MonoTime>,
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
        if inner.running().is_err() {
            return;
        }
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
    if compare(inner, metrics, memory, now).await == Compared::Wrong {
        return;
    }
    // A change in flight ends first.
    if metrics.membership_config != metrics.committed_membership_config {
        return;
    }
    let Some(layout) = inner.state.published().layout else { return };
    activate(inner, &layout, memory, now).await;
    if hand_over(inner, metrics, &layout, memory, now).await {
        return;
    }
    let Some(change) = decide(metrics, &layout, memory, now, inner.options.voter_grace) else { return };
    if let Change::Voters(voters) = &change
        && !most_answer(inner, metrics, voters).await
    {
        pacsvault_core::sometimes!("recovery: voters not changed, most of the new ones fell silent");
        return;
    }
    tracing::info!(node = inner.options.node.0, ?change, "changing the membership");
    let carried = carry_out(inner, metrics, change);
    match timeout(inner.env.as_ref(), CHANGE_DEADLINE, carried).await {
        Some(Ok(())) => {}
        Some(Err(why)) => tracing::warn!(why, "the membership was not changed"),
        None => tracing::warn!("the membership change takes long"),
    }
}

/// Puts the newest version that all members understand in force.
async fn activate<R: AsyncRuntime>(inner: &Inner<R>, layout: &Layout, memory: &mut Memory, now: MonoTime) {
    let version = COMMANDS_VERSION;
    let asked = memory.activated.is_some_and(|then| now.0.saturating_sub(then.0) < ACTIVATE_AGAIN);
    if layout.format >= version || asked || !understood(Some(layout), version) {
        return;
    }
    memory.activated = Some(now);
    tracing::info!(version, "every node has been upgraded: its version is put in force");
    match inner.propose_here(vec![Command::Activate { version }]).await.as_deref() {
        Ok([Outcome::Rejected(why)]) => tracing::warn!(version, %why, "the version was not put in force"),
        Ok(_) => {}
        Err(fault) => tracing::warn!(version, %fault, "the version was not put in force"),
    }
}

/// Moves leadership to a better node, when the reason has held for long enough; true when nothing else should be done now.
async fn hand_over<R: AsyncRuntime>(
    inner: &Inner<R>,
    metrics: &RaftMetrics<Types<R>>,
    layout: &Layout,
    memory: &mut Memory,
    now: MonoTime,
) -> bool {
    let membership = metrics.membership_config.membership();
    if membership.get_joint_config().len() > 1 {
        return false;
    }
    let settle = inner.options.leader_settle;
    let seat = |memory: &Memory, id: u64, steady: Duration| {
        let node = layout.nodes.get(&NodeId(id))?;
        let reach = memory.reach.as_ref().and_then(|(_, reach)| reach.get(&id).cloned());
        Some(Seat::of(node, memory.healthy_for(id, now) >= Some(steady), reach))
    };
    let Some(own) = seat(memory, metrics.id, STABLE) else { return false };
    // Leadership is given only to a node that has been well for long, unless this one is leaving.
    let steady = if own.leaving { STABLE } else { STABLE.max(settle / 2) };
    let seats =
        |memory: &Memory| -> Vec<Seat> { membership.voter_ids().filter_map(|id| seat(memory, id, steady)).collect() };
    // The wrong site is no harm, and each new leader begins anew to judge who is away: not soon after the last change.
    let rested = now.0.saturating_sub(memory.began.0) >= settle * REST;
    let preferred = inner.options.preferred_site.as_ref().filter(|_| rested);
    let surveys = !own.leaving && (memory.misses_somebody(layout, now) || tempted(&own, &seats(memory), preferred));
    match (surveys, &memory.reach) {
        // Decided only by what was asked just now: what holds for long was so each time.
        (true, Some((then, _))) if now.0.saturating_sub(then.0) < STABLE.max(settle / 2) => return false,
        (true, _) => survey(inner, metrics, layout, memory, now).await,
        (false, _) => memory.reach = None,
    }
    let reach = |id: u64| memory.reach.as_ref().and_then(|(_, reach)| reach.get(&id)).map(BTreeSet::len);
    let Some(own) = seat(memory, metrics.id, STABLE) else { return false };
    let wish = successor(&own, &seats(memory), preferred);
    let farther = own.fit && wish.is_some_and(|to| reach(to.0) > reach(metrics.id));
    // One that is leaving goes at once. Whom the leader does not reach is not served: that is worse than the wrong site.
    let settle = match (own.leaving, farther) {
        (true, _) => Duration::ZERO,
        (false, true) => settle / 2,
        (false, false) => settle,
    };
    // After some vain attempts to hand over, its vote is taken anyway, and it steps down.
    let waits = own.leaving && wish.is_some() && memory.patience.failures() < HAND_OVER_TRIES;
    // What else is to be decided is decided by what is known after a survey, at the next look.
    let Some(to) = memory.patience.ripe(wish, now, settle) else { return waits || surveys };
    tracing::info!(
        from = metrics.id,
        to = to.0,
        leaving = own.leaving,
        fit = own.fit,
        farther,
        "handing over leadership"
    );
    match timeout(inner.env.as_ref(), CHANGE_DEADLINE, inner.transfer_leader(to)).await {
        Some(Ok(())) => {
            pacsvault_core::sometimes!("recovery: leadership handed over to a better node");
            if farther {
                pacsvault_core::sometimes!("recovery: leadership handed over to who reaches more");
            }
        }
        Some(Err(fault)) => {
            tracing::warn!(to = to.0, %fault, "leadership was not handed over");
            memory.patience.failed(inner.env.now(), inner.options.leader_settle);
        }
        None => memory.patience.failed(inner.env.now(), inner.options.leader_settle),
    }
    true
}

/// Asks every healthy voter which members it reaches, as this node asks itself.
async fn survey<R: AsyncRuntime>(
    inner: &Inner<R>,
    metrics: &RaftMetrics<Types<R>>,
    layout: &Layout,
    memory: &mut Memory,
    now: MonoTime,
) {
    // PLANTED BUG: whom the others reach is of no interest.
    if pacsvault_core::probe::planted("leader-stays-put") {
        memory.reach = Some((now, BTreeMap::new()));
        return;
    }
    let members = &metrics.membership_config;
    let ids: Vec<u64> = members.membership().nodes().map(|(id, _)| *id).filter(|id| stays(layout, *id)).collect();
    // Contact with a replica is proof enough; one that answers without its replica counts for everybody alike. This node waits
    // twice as long as the others do: whoever is slow to answer anybody is no reason to move.
    let (silent, heard): (Vec<u64>, Vec<u64>) = ids.iter().partition(|id| memory.silent_for(**id, now) >= Some(STABLE));
    let own = async {
        let answering = inner.net.answering(members, silent, inner.options.append_deadline).await;
        Some((metrics.id, heard.into_iter().chain(answering).collect::<BTreeSet<u64>>()))
    };
    let asked = members.membership().voter_ids().filter(|id| *id != metrics.id).filter_map(|id| {
        memory.healthy_for(id, now).filter(|well| *well >= STABLE)?;
        let (net, member, ids) = (&inner.net, members.membership().get_node(&id)?, ids.clone());
        Some(async move { Some((id, net.reached_by(id, member, ids).await?)) })
    });
    let (own, others) = join(own, join_all(asked)).await;
    let told = others.into_iter().chain([own]).flatten();
    let reach = told.map(|(id, reached)| (id, reached.into_iter().map(NodeId).collect())).collect();
    tracing::debug!(node = metrics.id, ?reach, "who reaches whom");
    memory.reach = Some((inner.env.now(), reach));
}

/// Whether a member is one for the layout too, and was not removed.
fn stays(layout: &Layout, id: u64) -> bool {
    layout.nodes.get(&NodeId(id)).is_some_and(|node| node.state != NodeState::Removed)
}

impl Memory {
    /// Whether a member that stays has been out of contact for a while.
    fn misses_somebody(&self, layout: &Layout, now: MonoTime) -> bool {
        self.silent_since.keys().any(|id| stays(layout, *id) && self.silent_for(*id, now) >= Some(STABLE))
    }

    /// For how long a node has been out of contact; `None` when it is not.
    fn silent_for(&self, id: u64, now: MonoTime) -> Option<Duration> {
        self.silent_since.get(&id).map(|then| now.0.saturating_sub(then.0))
    }

    /// For how long a node has been healthy; `None` when it is not.
    fn healthy_for(&self, id: u64, now: MonoTime) -> Option<Duration> {
        self.healthy_since.get(&id).map(|then| now.0.saturating_sub(then.0))
    }

    fn observe<R: AsyncRuntime>(&mut self, metrics: &RaftMetrics<Types<R>>, now: MonoTime, contact: Duration) {
        let last = metrics.last_log_index.unwrap_or(0);
        for (id, _) in metrics.membership_config.nodes() {
            let acked = metrics.heartbeat.as_ref().and_then(|acks| acks.get(id).copied().flatten());
            let matched = metrics.replication.as_ref().and_then(|logs| logs.get(id).copied().flatten());
            let heard = acked.is_some_and(|instant| instant.elapsed() <= contact);
            if *id == metrics.id || heard {
                self.silent_since.remove(id);
            } else {
                self.silent_since.entry(*id).or_insert(now);
            }
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
        if self.healthy_for(id, now) >= Some(STABLE) {
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
        pacsvault_core::sometimes!("recovery: half-done joint configuration finished");
        return Some(Change::FinishJoint(last.clone()));
    }
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let present = |node: &&Node| node.state != NodeState::Removed;
    if let Some(node) = layout.nodes.values().filter(present).find(|node| membership.get_node(&node.id.0).is_none()) {
        return Some(Change::Invite(node.id.0, member(node)));
    }
    let removed = |id: &u64| layout.nodes.get(&NodeId(*id)).is_some_and(|node| node.state == NodeState::Removed);
    if let Some(id) = membership.learner_ids().find(removed) {
        pacsvault_core::sometimes!("recovery: removed node let go");
        return Some(Change::LetGo(id));
    }
    let candidate = |id: &u64| {
        let node = layout.nodes.get(&NodeId(*id))?;
        Some(Candidate {
            node: node.id,
            site: node.site.clone(),
            eligible: node.roles.voter && node.state != NodeState::Removed,
            draining: node.draining,
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
    let wanted = plan(&candidates)?;
    mark(&candidates, &wanted);
    Some(Change::Voters(wanted.into_iter().map(|node| node.0).collect()))
}

/// Why votes are about to move.
fn mark(candidates: &[Candidate], wanted: &BTreeSet<NodeId>) {
    let gives = |one: &&Candidate| one.voter && !wanted.contains(&one.node);
    if candidates.iter().any(|one| !one.voter && wanted.contains(&one.node)) {
        pacsvault_core::sometimes!("recovery: learner promoted");
    }
    if candidates.iter().filter(gives).any(|one| one.health == Health::Dead) {
        pacsvault_core::sometimes!("recovery: dead voter replaced");
    }
    if candidates.iter().filter(gives).any(|one| one.draining) {
        pacsvault_core::sometimes!("recovery: draining voter passed its vote on");
    }
}

fn member(node: &Node) -> Member {
    Member {
        address: node.address.clone(),
        name: Some(node.name.clone()),
        site: Some(node.site.clone()),
        incarnation: node.incarnation,
    }
}

/// Whether most of these answer now. They were healthy a moment ago, or they would not have been chosen; votes that go to a
/// majority which has just fallen silent hold up everything until it returns.
async fn most_answer<R: AsyncRuntime>(
    inner: &Inner<R>,
    metrics: &RaftMetrics<Types<R>>,
    voters: &BTreeSet<u64>,
) -> bool {
    let asked = voters.iter().copied();
    let answering = inner.net.answering(&metrics.membership_config, asked, inner.options.election_max).await;
    answering.len() * 2 > voters.len()
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

/// What a comparison found about this replica.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// It may go on.
    Fine,
    /// A majority of voters differs from it: it was stopped.
    Wrong,
}

/// Compares the voters' digests with ours. If a majority agrees, every replica is told to compare, and one that differs
/// stops itself; if a majority differs, this one does; otherwise nobody can know who is right, and it is tried again.
async fn compare<R: AsyncRuntime>(
    inner: &Inner<R>,
    metrics: &RaftMetrics<Types<R>>,
    memory: &mut Memory,
    now: MonoTime,
) -> Compared {
    let published = inner.state.published();
    let (when, compared) = memory.compared;
    // The entry that compares has a digest of its own; without anything new there is nothing to compare.
    let new = published.digest_index.0 > compared.0 + 1;
    if !new || now.0.saturating_sub(when.0) < inner.options.compare_every {
        return Compared::Fine;
    }
    let membership = metrics.membership_config.membership();
    // Between two sets of voters there are two majorities: later.
    let [voters] = membership.get_joint_config().as_slice() else { return Compared::Fine };
    memory.compared.0 = now;
    let others = voters.iter().filter(|id| **id != metrics.id);
    let asked = others.filter_map(|id| membership.get_node(id).map(|member| opinion(inner, *id, member)));
    let opinions: Vec<(LogIndex, bool)> = join_all(asked).await.into_iter().flatten().collect();
    let majority = voters.len() / 2 + 1;
    if opinions.iter().filter(|(_, same)| !same).count() >= majority {
        inner
            .stop_as_wrong("a majority of voters has another digest of the same entries: this replica has diverged")
            .await;
        return Compared::Wrong;
    }
    let ours = voters.contains(&metrics.id).then(|| inner.state.published().digest_index);
    let agreeing = opinions.into_iter().filter_map(|(index, same)| same.then_some(index)).chain(ours);
    let Some(index) = held_by(majority, agreeing.collect()) else { return Compared::Fine };
    let Some((index, digest)) = remembered(inner, index).await.filter(|(index, _)| *index > compared) else {
        return Compared::Fine;
    };
    if let Err(fault) = inner.propose_here(vec![Command::CompareDigest { index, digest }]).await {
        tracing::debug!(%fault, "digests were not compared");
    }
    memory.compared.1 = inner.state.published().digest_index;
    Compared::Fine
}

/// The last index up to which `majority` of those that agree with us do so: digests roll, so whoever agrees at an index
/// agrees at all before it.
fn held_by(majority: usize, mut agreeing: Vec<LogIndex>) -> Option<LogIndex> {
    agreeing.sort_unstable_by(|one, other| other.cmp(one));
    agreeing.get(majority.checked_sub(1)?).copied()
}

/// What voter `id` has applied, and whether its digest there is ours; `None` when it does not say or we do not know.
async fn opinion<R: AsyncRuntime>(inner: &Inner<R>, id: u64, member: &Member) -> Option<(LogIndex, bool)> {
    let answer = inner.forward(id, member, Request::Status, STATUS_DEADLINE).await;
    let Ok(Reply::Status(status)) = answer else { return None };
    let NodeStatus { node, applied, state_digest, .. } = *status;
    if node != Some(NodeId(id)) {
        return None;
    }
    let patience = MonoTime(inner.env.now().0 + STATUS_DEADLINE);
    inner.applied_at_least(applied, patience).await.ok()?;
    let (_, ours) = remembered(inner, applied).await?;
    if ours != state_digest {
        tracing::error!(node = id, index = applied.0, %ours, theirs = %state_digest, "a voter has another digest");
    }
    Some((applied, ours == state_digest))
}

async fn remembered<R: AsyncRuntime>(inner: &Inner<R>, upto: LogIndex) -> Option<(LogIndex, Digest)> {
    let view = inner.state.view();
    match blocking(inner.env.as_ref(), move || remembered_digest(view.as_ref(), upto)).await? {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(%error, "the remembered digests are unreadable");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use openraft_rt_tokio::TokioRuntime;

    use super::*;
    use crate::types::{Membership, StoredMembership, log_id};

    #[test]
    fn a_change_that_another_leader_left_half_done_is_finished_first() {
        let sets = |joint: Vec<BTreeSet<u64>>| {
            let nodes: BTreeMap<u64, Member> = (1..=4).map(|id| (id, Member::default())).collect();
            let membership = Membership::new(joint, nodes).expect("all are known");
            let mut metrics = RaftMetrics::<Types<TokioRuntime>>::new_initial(1);
            metrics.membership_config = Arc::new(StoredMembership::new(Some(log_id(1, 5)), membership));
            metrics
        };
        let empty = Layout {
            cluster: pacsvault_core::ids::ClusterId([0; 16]),
            version: pacsvault_core::ids::LayoutVersion(1),
            format: 1,
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
            profiles: BTreeMap::new(),
            default_profile: "standard".parse().expect("a name"),
        };
        let decided = |metrics| decide(&metrics, &empty, &Memory::default(), MonoTime::default(), Duration::ZERO);
        let (old, new) = (BTreeSet::from([1, 2, 3]), BTreeSet::from([1, 2, 4]));
        assert_eq!(decided(sets(vec![old.clone(), new.clone()])), Some(Change::FinishJoint(new)));
        assert_eq!(decided(sets(vec![old])), None);
    }

    #[test]
    fn a_majority_vouches_for_what_all_of_it_has_applied() {
        let held = |majority, agreeing: &[u64]| held_by(majority, agreeing.iter().copied().map(LogIndex).collect());
        assert_eq!(held(1, &[7]), Some(LogIndex(7)), "a voter alone");
        assert_eq!(held(2, &[9, 7, 8]), Some(LogIndex(8)));
        assert_eq!(held(2, &[9]), None);
        assert_eq!(held(3, &[3, 9, 7, 8]), Some(LogIndex(7)));
    }
}
