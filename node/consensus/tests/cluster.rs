//! Whole replicas over a loopback peer: election, proposals, reads, crashes, snapshots, membership.

mod support;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use pacsvault_consensus::{Options, Replica, Status};
use pacsvault_core::{
    catalog::{Command, Outcome},
    ids::{Digest, LogIndex, NodeId, VolumeId},
    layout::NodeState,
};
use pacsvault_ports::{
    kv::{Batch, Durability, Kv as _},
    peer::{Class, Freshness},
};
use pacsvault_simkv::SimKvMedia;
use support::{Cluster, PATIENCE, join};

fn volume(number: u64) -> VolumeId {
    VolumeId((u128::from(number) + 1).to_be_bytes())
}

/// A command whose effect can be seen: one more volume of node 1.
fn add(number: u64) -> Vec<Command> {
    vec![Command::AddVolume { node: NodeId(1), volume: volume(number), capacity_bytes: 1 << 30 }]
}

fn volumes(replica: &dyn Replica) -> BTreeSet<VolumeId> {
    replica.layout().map(|layout| layout.volumes.keys().copied().collect()).unwrap_or_default()
}

fn same(_: &mut Options) {}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_sites_elect_apply_and_read_what_any_node_proposed() {
    let mut cluster = Cluster::found(same).await;
    cluster.grow(3, 3).await;
    let proposals = (0..1_000_u64).map(|number| {
        let replica = cluster.replica(number % 3 + 1).clone();
        tokio::spawn(async move { replica.propose(add(number)).await })
    });
    for proposal in proposals.collect::<Vec<_>>() {
        assert_eq!(proposal.await.expect("no panic"), Ok(vec![Outcome::Done]));
    }
    let before = cluster.replica(1).status().applied;
    for id in 1..=3 {
        let applied = cluster.replica(id).wait(Freshness::Linearizable).await.expect("a fresh read");
        assert!(applied >= LogIndex(1));
        assert_eq!(volumes(cluster.replica(id).as_ref()).len(), 1_000);
        cluster.replica(id).wait(Freshness::AtLeast(before)).await.expect("it catches up");
    }
    let entries = cluster.replica(1).status().last_log.0;
    assert!(entries < 900, "1000 proposals took {entries} entries: they were not batched");
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crashed_leader_is_replaced_and_returns_on_its_disks() {
    let mut cluster = Cluster::found(same).await;
    cluster.grow(3, 3).await;
    for number in 0..50 {
        cluster.replica(2).propose(add(number)).await.expect("acked");
    }
    let old = cluster.leader().expect("a leader");
    cluster.crash(old, 7).await;
    cluster.until("another leads", |cluster| cluster.leader().is_some_and(|leader| leader != old)).await;
    let other = if old == 1 { 2 } else { 1 };
    for number in 50..100 {
        cluster.replica(other).propose(add(number)).await.expect("acked");
    }
    cluster.start(old).await;
    cluster.until_equal().await;
    assert_eq!(volumes(cluster.replica(old).as_ref()).len(), 100);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_commands_survive_power_loss_of_all_nodes() {
    let mut cluster = Cluster::found(|options| {
        options.snapshot_every = 20;
        options.log_keep = 5;
    })
    .await;
    cluster.grow(3, 3).await;
    let mut acked = BTreeSet::new();
    for round in 0..6_u64 {
        let proposals = (0..40_u64).map(|n| {
            let number = round * 1_000 + n;
            let replica = cluster.replica(n % 3 + 1).clone();
            tokio::spawn(async move { replica.propose(add(number)).await.is_ok().then_some(volume(number)) })
        });
        let proposals: Vec<_> = proposals.collect();
        if round % 2 == 0 {
            tokio::time::sleep(Duration::from_millis(3 + round)).await;
        } else {
            for proposal in proposals.iter().take(20) {
                while !proposal.is_finished() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        }
        for id in 1..=3 {
            cluster.crash(id, round * 31 + id).await;
        }
        for proposal in proposals {
            proposal.abort();
            if let Ok(Some(volume)) = proposal.await {
                acked.insert(volume);
            }
        }
        for id in 1..=3 {
            cluster.start(id).await;
        }
        cluster.replica(1).wait(Freshness::Linearizable).await.expect("a fresh read");
        let found = volumes(cluster.replica(1).as_ref());
        assert!(found.is_superset(&acked), "round {round} lost {:?}", acked.difference(&found));
        cluster.until_equal().await;
    }
    assert!(acked.len() >= 60, "{} acked", acked.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_far_behind_fetches_a_snapshot() {
    let mut cluster = Cluster::found(|options| {
        options.snapshot_every = 30;
        options.log_keep = 5;
        options.linger = Duration::ZERO;
    })
    .await;
    for number in 0..200 {
        cluster.replica(1).propose(add(number)).await.expect("acked");
    }
    let purged = |media: &SimKvMedia| media.content().contains_key(b"p".as_slice());
    cluster.until("the log is purged", |cluster| purged(&cluster.nodes[&1].log)).await;
    cluster.grow(2, 1).await;
    cluster.until("node 2 has all", |cluster| volumes(cluster.replica(2).as_ref()).len() == 200).await;
    assert!(purged(&cluster.nodes[&2].log), "it was sent the log instead");
    cluster.until_equal().await;
    // And what it fetched is durable: it survives a crash, and the log continues from there.
    cluster.crash(2, 3).await;
    cluster.replica(1).propose(add(200)).await.expect("acked");
    cluster.start(2).await;
    cluster.until("node 2 follows", |cluster| volumes(cluster.replica(2).as_ref()).len() == 201).await;
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_leader_does_not_resume_its_term() {
    let mut cluster = Cluster::found(same).await;
    cluster.replica(1).propose(add(0)).await.expect("acked");
    let before = cluster.replica(1).status().term;
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.until("it leads again", |cluster| cluster.leader() == Some(1)).await;
    assert!(cluster.replica(1).status().term > before);
    cluster.replica(1).wait(Freshness::Linearizable).await.expect("a fresh read");
    assert_eq!(volumes(cluster.replica(1).as_ref()).len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wiped_node_cannot_answer_under_its_old_id() {
    let mut cluster = Cluster::found(same).await;
    cluster.grow(3, 3).await;
    cluster.stop(3).await;
    {
        let node = cluster.nodes.get_mut(&3).expect("known");
        (node.log, node.state) = (SimKvMedia::new(), SimKvMedia::new());
    }
    let wiped = cluster.start_as(3, 103).await;
    for number in 0..30 {
        cluster.replica(1).propose(add(number)).await.expect("acked by the other two");
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(wiped.status().last_log, LogIndex(0));
    assert_eq!(wiped.status().leader, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_to_the_node_asked_for() {
    let mut cluster = Cluster::found(same).await;
    cluster.grow(3, 3).await;
    for to in [2_u64, 3, 1] {
        let from = cluster.leader().expect("a leader");
        cluster.replica(from).transfer_leader(NodeId(to)).await.expect("it moves");
        cluster.until("it leads", |cluster| cluster.leader() == Some(to)).await;
        let fault = cluster.replica(to % 3 + 1).propose_local(add(to)).await.expect_err("not the leader");
        assert_eq!(fault.class, Class::Retry);
        cluster.replica(from).propose(add(to)).await.expect("forwarded");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_majority_answers_within_the_deadline() {
    let mut cluster = Cluster::found(|options| options.deadline = Duration::from_secs(2)).await;
    cluster.grow(3, 3).await;
    let leader = cluster.leader().expect("a leader");
    cluster.cut(leader);
    let began = tokio::time::Instant::now();
    let fault = cluster.replica(leader).propose(add(0)).await.expect_err("no majority");
    assert!(matches!(fault.class, Class::Retry | Class::Unknown), "{fault:?}");
    let fault = cluster.replica(leader).wait(Freshness::Linearizable).await.expect_err("no majority");
    assert!(matches!(fault.class, Class::Retry | Class::Unknown), "{fault:?}");
    assert!(began.elapsed() < Duration::from_secs(12), "took {:?}", began.elapsed());
    cluster.heal(leader);
    cluster.until("they agree", |cluster| cluster.leader().is_some()).await;
    cluster.replica(leader).propose(add(1)).await.expect("acked after the link healed");
    cluster.until_equal().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_go_on_soon_after_the_leader_went_dark() {
    let mut cluster = Cluster::found(|options| {
        let names = (options.name.clone(), options.site.clone());
        let usual = Options::new(options.node, options.cluster, options.incarnation, names, "");
        options.heartbeat = usual.heartbeat;
        (options.election_min, options.election_max) = (usual.election_min, usual.election_max);
        options.deadline = PATIENCE;
    })
    .await;
    cluster.grow(3, 3).await;
    let leader = cluster.leader().expect("a leader");
    let other = leader % 3 + 1;
    cluster.darken(leader);
    let began = tokio::time::Instant::now();
    // Neither a broken connection nor a deadline ends what was sent to the old leader.
    let fault = cluster.replica(other).propose(add(0)).await.expect_err("its fate is unknown");
    assert_eq!(fault.class, Class::Unknown, "{fault}");
    cluster.replica(other).propose(add(0)).await.expect("acked by the new leader");
    cluster.replica(other).wait(Freshness::Linearizable).await.expect("a fresh read");
    println!("writes paused for {:?}", began.elapsed());
    assert!(began.elapsed() < PATIENCE / 4, "took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_loses_its_vote_and_is_let_go() {
    let mut cluster = Cluster::found(same).await;
    cluster.grow(4, 3).await;
    let remove = Command::SetNodeState { node: NodeId(3), state: NodeState::Removed };
    cluster.replica(1).propose(vec![remove]).await.expect("acked");
    cluster
        .until("node 3 is gone", |cluster| {
            let status = cluster.replica(1).status();
            let gone = |list: &[NodeId]| !list.contains(&NodeId(3));
            gone(&status.voters) && gone(&status.learners) && !status.joint
        })
        .await;
    let status = cluster.replica(1).status();
    assert_eq!(status.voters.len() % 2, 1);
    cluster.stop(3).await;
    cluster.replica(2).propose(add(0)).await.expect("acked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_a_fatal_reason_serves_nothing_more() {
    let cluster = Cluster::found(same).await;
    let replica = cluster.replica(1).clone();
    replica.propose(add(0)).await.expect("acked");
    let index = replica.status().applied;
    let wrong = Command::CompareDigest { index, digest: Digest::of(b"of another state") };
    let waiting = replica.wait(Freshness::AtLeast(LogIndex(index.0 + 100)));
    let waiting = tokio::spawn(waiting);
    assert!(replica.propose(vec![wrong]).await.is_err(), "no outcome of what stopped it");
    cluster.until("it has stopped", |cluster| cluster.replica(1).status().fatal.is_some()).await;
    let faults = [
        waiting.await.expect("no panic").err(),
        replica.wait(Freshness::AtLeast(index)).await.err(),
        replica.wait(Freshness::Linearizable).await.err(),
        replica.read_index().await.err(),
        replica.propose(add(1)).await.err(),
        replica.propose_local(add(1)).await.err(),
        replica.snapshot_files("any").await.err(),
        replica.snapshot_read("any", "file", 0, 1).await.err(),
        replica.transfer_leader(NodeId(1)).await.err(),
    ];
    for (which, fault) in faults.into_iter().enumerate() {
        let fault = fault.unwrap_or_else(|| panic!("call {which} was answered"));
        assert_eq!((fault.class, fault.code), (Class::Retry, "PV-REPLICA-STOPPED"), "call {which}");
    }
    assert!(replica.layout().is_none());
}

fn comparing_often(options: &mut Options) {
    options.compare_every = Duration::from_millis(500);
}

/// Changes the digest that node `id` has stored, as if it had applied something else.
async fn falsify(cluster: &mut Cluster, id: u64) {
    let digest = cluster.replica(id).status().digest;
    cluster.stop(id).await;
    let media = &cluster.nodes[&id].state;
    let mut batch = Batch::default();
    for (key, mut value) in media.content() {
        if let Some(at) = value.windows(32).position(|window| window == digest.0.as_slice()) {
            value[at] ^= 1;
            batch.put(key, value);
        }
    }
    assert!(!batch.changes.is_empty(), "the digest is stored");
    media.open().write(batch, Durability::Synced).expect("written");
    cluster.start(id).await;
}

/// Three nodes, of which `wrong` has diverged and `leader` leads; then one more command is applied.
async fn diverged(wrong: u64, leader: u64) -> Cluster {
    let mut cluster = Cluster::found(comparing_often).await;
    cluster.grow(3, 3).await;
    cluster.until_equal().await;
    falsify(&mut cluster, wrong).await;
    cluster.until("one leads", |cluster| cluster.leader().is_some()).await;
    // Another may have been elected meanwhile; and what is compared may stop it before it can hand over.
    let _ = cluster.replica(cluster.leader().expect("one leads")).transfer_leader(NodeId(leader)).await;
    for number in 0..3 {
        cluster.replica(2).propose(add(number)).await.expect("acked");
    }
    cluster
        .until("the wrong one has stopped", |cluster| {
            let stopped = |status: &Status| status.node == NodeId(wrong) && status.fatal.is_some();
            cluster.statuses().iter().any(stopped)
        })
        .await;
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_a_majority_differs_from_stops_itself_and_nobody_else() {
    let cluster = diverged(1, 1).await;
    cluster.until("another leads", |cluster| matches!(cluster.replica(2).status().leader, Some(NodeId(2 | 3)))).await;
    cluster.replica(2).propose(add(10)).await.expect("the other two go on");
    let stopped: Vec<u64> =
        cluster.statuses().iter().filter(|status| status.fatal.is_some()).map(|status| status.node.0).collect();
    assert_eq!(stopped, [1]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_the_majority_differs_from_stops_itself() {
    let cluster = diverged(3, 1).await;
    cluster.replica(2).propose(add(10)).await.expect("the other two go on");
    let stopped: Vec<u64> =
        cluster.statuses().iter().filter(|status| status.fatal.is_some()).map(|status| status.node.0).collect();
    assert_eq!(stopped, [3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn joining_again_with_the_same_life_gives_the_same_id() {
    let cluster = Cluster::found(same).await;
    let replica: Arc<dyn Replica> = cluster.replica(1).clone();
    assert_eq!(replica.propose(vec![join(1, 1)]).await, Ok(vec![Outcome::Joined(NodeId(1))]));
    assert!(replica.catalog_time().0 > 0);
    assert!(replica.initialise().await.is_err_and(|fault| fault.class == Class::Reject));
}
