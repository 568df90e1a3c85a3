//! What a leader does by itself: versions are put in force, leadership moves, members come, fall behind and go.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use pacsvault_consensus::Options;
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, command::DrainTarget},
    ids::{LogIndex, NodeId, VolumeId},
    layout::NodeState,
};
use pacsvault_ports::peer::Freshness;
use support::{Cluster, join_with, site};

fn volume(number: u64) -> VolumeId {
    VolumeId((u128::from(number) + 1).to_be_bytes())
}

fn add(number: u64) -> Command {
    Command::AddVolume { node: NodeId(1), volume: volume(number), capacity_bytes: 1 << 30 }
}

fn drain(node: u64, draining: bool) -> Command {
    Command::SetDrain { target: DrainTarget::Node(NodeId(node)), draining }
}

fn state(node: u64, state: NodeState) -> Command {
    Command::SetNodeState { node: NodeId(node), state }
}

fn settles_soon(options: &mut Options) {
    options.leader_settle = Duration::from_secs(1);
}

/// Proposes until a leader takes it.
async fn propose(cluster: &Cluster, at: u64, command: Command) -> Outcome {
    let outcomes = cluster.replica(at).propose(vec![command]).await.expect("decided");
    outcomes.into_iter().next().expect("one outcome")
}

fn format(cluster: &Cluster, at: u64) -> u32 {
    cluster.replica(at).layout().map_or(0, |layout| layout.format)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_older_member_could_not_read_never_enters_the_log() {
    let mut cluster = Cluster::found(settles_soon).await;
    cluster.grow(3, 3).await;
    let pending = Outcome::Rejected(Rejection::UpgradePending { needed: 2, present: 1 });
    for at in 1..=3 {
        let before = cluster.replica(at).status().last_log;
        assert_eq!(propose(&cluster, at, Command::RetryAside).await, pending);
        assert_eq!(propose(&cluster, at, Command::Activate { version: 2 }).await, pending);
        let newer = Outcome::Rejected(Rejection::UpgradePending { needed: 3, present: 1 });
        assert_eq!(propose(&cluster, at, Command::Activate { version: 3 }).await, newer);
        assert!(cluster.replica(at).status().last_log.0 <= before.0 + 1, "only the autopilot may have written");
    }
    // What stands beside it goes its way, each with its own outcome.
    let mixed = vec![add(1), drain(2, true), add(2)];
    let outcomes = cluster.replica(2).propose(mixed).await.expect("decided");
    assert_eq!(outcomes, vec![Outcome::Done, pending, Outcome::Done]);
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_is_in_force_when_the_last_member_understands_it() {
    let mut cluster = Cluster::found(settles_soon).await;
    cluster.grow(3, 3).await;
    for id in [1_u64, 2] {
        let joined = propose(&cluster, 1, join_with(id, u8::try_from(id).expect("small"), 2)).await;
        assert_eq!(joined, Outcome::Joined(NodeId(id)));
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(format(&cluster, 1), 1, "node 3 still runs the older release");
    assert_eq!(propose(&cluster, 1, join_with(3, 3, 2)).await, Outcome::Joined(NodeId(3)));
    cluster.until("version 2 is in force", |cluster| (1..=3).all(|at| format(cluster, at) == 2)).await;
    assert_eq!(propose(&cluster, 2, Command::RetryAside).await, Outcome::Done);
    // From now on an older program is no member any more.
    let refused = propose(&cluster, 2, join_with(3, 3, 1)).await;
    assert!(matches!(refused, Outcome::Rejected(_)), "{refused:?}");
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_leaves_a_node_that_is_not_up_and_stays_away() {
    let mut cluster = Cluster::found(settles_soon).await;
    cluster.grow(3, 3).await;
    let old = cluster.leader().expect("a leader");
    assert_eq!(propose(&cluster, 1, state(old, NodeState::Down)).await, Outcome::Done);
    cluster.until("another leads", |cluster| cluster.leader().is_some_and(|leader| leader != old)).await;
    let new = cluster.leader().expect("a leader");
    let term = cluster.replica(new).status().term;
    assert_eq!(propose(&cluster, 1, state(old, NodeState::Up)).await, Outcome::Done);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!(cluster.leader(), Some(new), "it does not move back without a reason");
    assert_eq!(cluster.replica(new).status().term, term);
    // Nobody is fit: then it stays where it is.
    for id in 1..=3 {
        assert_eq!(propose(&cluster, 1, state(id, NodeState::Down)).await, Outcome::Done);
    }
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(cluster.leader().is_some());
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_returns_to_the_preferred_site_once() {
    let mut cluster = Cluster::found(|options| {
        // It rests thirty times as long.
        options.leader_settle = Duration::from_millis(200);
        options.preferred_site = Some(site(3));
    })
    .await;
    cluster.grow(3, 3).await;
    cluster.until("node 3 leads", |cluster| cluster.leader() == Some(3)).await;
    cluster.crash(3, 5).await;
    cluster.until("another leads", |cluster| matches!(cluster.leader(), Some(1 | 2))).await;
    cluster.start(3).await;
    cluster.until("node 3 leads again", |cluster| cluster.leader() == Some(3)).await;
    let term = cluster.replica(3).status().term;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert_eq!((cluster.leader(), cluster.replica(3).status().term), (Some(3), term));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_to_who_reaches_all_and_stays_there_until_the_link_is_back() {
    let mut cluster = Cluster::found(|options| {
        // It rests thirty times as long.
        options.leader_settle = Duration::from_millis(200);
        options.preferred_site = Some(site(1));
    })
    .await;
    cluster.grow(3, 3).await;
    cluster.until("node 1 leads", |cluster| cluster.leader() == Some(1)).await;
    cluster.part(1, 2, true);
    cluster.until("node 3, which reaches both, leads", |cluster| cluster.leader() == Some(3)).await;
    let term = cluster.replica(3).status().term;
    assert_eq!(propose(&cluster, 2, add(1)).await, Outcome::Done);
    // The preferred site reaches less: it waits.
    tokio::time::sleep(Duration::from_secs(8)).await;
    assert_eq!((cluster.leader(), cluster.replica(3).status().term), (Some(3), term));
    cluster.part(1, 2, false);
    cluster.until("node 1 leads again", |cluster| cluster.leader() == Some(1)).await;
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_stays_when_a_node_is_gone_for_everybody() {
    let mut cluster = Cluster::found(settles_soon).await;
    cluster.grow(4, 3).await;
    let old = cluster.leader().expect("a leader");
    let gone = if old == 4 { 3 } else { 4 };
    cluster.darken(gone);
    let term = cluster.replica(old).status().term;
    tokio::time::sleep(Duration::from_secs(12)).await;
    let status = cluster.replica(old).status();
    assert_eq!((status.leader, status.term), (Some(NodeId(old)), term));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_removed_hands_over_and_is_let_go() {
    let mut cluster = Cluster::found(settles_soon).await;
    cluster.grow(4, 3).await;
    let old = cluster.leader().expect("a leader");
    let other = old % 4 + 1;
    assert_eq!(propose(&cluster, other, state(old, NodeState::Removed)).await, Outcome::Done);
    cluster
        .until("it is gone", |cluster| {
            let status = cluster.replica(other).status();
            let listed = |list: &[NodeId]| list.contains(&NodeId(old));
            let led = status.leader.is_some_and(|leader| leader.0 != old);
            led && !listed(&status.voters) && !listed(&status.learners) && !status.joint
        })
        .await;
    cluster.stop(old).await;
    assert_eq!(propose(&cluster, other, state(other, NodeState::Down)).await, Outcome::Done);
    assert_eq!(propose(&cluster, other, state(other, NodeState::Up)).await, Outcome::Done);
    // While one of three was down for long enough, one voter may have been all.
    cluster.until("three vote", |cluster| cluster.replica(other).status().voters.len() == 3).await;
    cluster.until_equal().await;
    // Its id is never given again: a new life of the same name is another node.
    let joined = propose(&cluster, other, join_with(old, 77, 1)).await;
    assert_eq!(joined, Outcome::Joined(NodeId(5)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_fell_behind_the_purged_log_catches_up_while_writes_go_on() {
    let mut cluster = Cluster::found(|options| {
        options.snapshot_every = 30;
        options.log_keep = 5;
        options.linger = Duration::ZERO;
    })
    .await;
    cluster.grow(3, 3).await;
    cluster.until("one leads", |cluster| cluster.leader().is_some()).await;
    let behind = cluster.leader().expect("a leader") % 3 + 1;
    let other = behind % 3 + 1;
    cluster.crash(behind, 11).await;
    let left_at = cluster.replica(other).status().applied;
    for number in 0..200 {
        assert_eq!(propose(&cluster, other, add(number)).await, Outcome::Done);
    }
    assert!(cluster.replica(other).status().applied.0 > left_at.0 + 100);
    let over = Arc::new(AtomicBool::new(false));
    let (writer, ended) = (cluster.replica(other).clone(), over.clone());
    let writes = tokio::spawn(async move {
        let mut number = 1_000;
        while !ended.load(Ordering::SeqCst) {
            writer.propose(vec![add(number)]).await.expect("acked");
            number += 1;
        }
        number - 1_000
    });
    cluster.start(behind).await;
    let mark = cluster.replica(other).wait(Freshness::Linearizable).await.expect("a fresh read");
    cluster
        .until("it has caught up under way", |cluster| cluster.replica(behind).status().applied > LogIndex(mark.0 + 50))
        .await;
    over.store(true, Ordering::SeqCst);
    let written = writes.await.expect("no panic");
    assert!(written > 0);
    cluster.until_equal().await;
    let layout = cluster.replica(behind).layout().expect("initialised");
    assert_eq!(layout.volumes.len() as u64, 200 + written);
}
