//! Every changing operation of a replica's stores fails once, before or after its effect, and power is lost: what was
//! acknowledged is there afterwards, and the replica works.

mod support;

use std::{collections::BTreeSet, time::Duration};

use pacsvault_consensus::{Options, Replica};
use pacsvault_core::{
    catalog::Command,
    ids::{NodeId, VolumeId},
};
use pacsvault_ports::peer::Freshness;
use pacsvault_simkv::{Fault, SimKvMedia};
use support::{Cluster, founding};

/// Crossed by `acked_commands_survive_a_crash_at_every_operation`: "consensus.1", "consensus.3", "consensus.4",
/// "consensus.5", "consensus.8".
const OWN: [&str; 5] = ["consensus.1", "consensus.3", "consensus.4", "consensus.5", "consensus.8"];
/// Crossed by `a_snapshot_is_taken_over_through_a_crash_at_every_operation`.
const RECEIVED: [&str; 2] = ["consensus.6", "consensus.7"];
/// Crossed by `tests/storage.rs`, whose model truncates and crashes.
const MODELLED: [&str; 1] = ["consensus.2"];

/// Crossed by `tests/crash_tags.rs`, which takes the marker of the sums away.
const DERIVED: [&str; 1] = ["consensus.9"];

/// Far more operations than any script here makes.
const OPERATIONS_MAX: u64 = 400;

fn tune(options: &mut Options) {
    options.snapshot_every = 5;
    options.log_keep = 2;
    options.linger = Duration::ZERO;
    options.deadline = Duration::from_secs(2);
    options.election_min = Duration::from_millis(100);
    options.election_max = Duration::from_millis(200);
    options.heartbeat = Duration::from_millis(30);
}

fn volume(number: u64) -> VolumeId {
    VolumeId((u128::from(number) + 1).to_be_bytes())
}

fn add(number: u64) -> Vec<Command> {
    vec![Command::AddVolume { node: NodeId(1), volume: volume(number), capacity_bytes: 1 << 30 }]
}

fn volumes(replica: &dyn Replica) -> BTreeSet<VolumeId> {
    replica.layout().map(|layout| layout.volumes.keys().copied().collect()).unwrap_or_default()
}

/// Founds a cluster and writes until something fails; answers what was acknowledged, and whether all went well.
async fn script(cluster: &mut Cluster) -> (BTreeSet<VolumeId>, bool) {
    let mut acked = BTreeSet::new();
    let Ok(replica) = cluster.try_start_as(1, 1).await else { return (acked, false) };
    if replica.initialise().await.is_err() || replica.propose(founding()).await.is_err() {
        return (acked, false);
    }
    for number in 0..24 {
        if replica.propose(add(number)).await.is_err() {
            return (acked, false);
        }
        acked.insert(volume(number));
    }
    (acked, true)
}

fn disk(cluster: &mut Cluster, id: u64, log: bool) -> SimKvMedia {
    let node = cluster.node(id);
    if log { node.log.clone() } else { node.state.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acked_commands_survive_a_crash_at_every_operation() {
    assert_eq!(OWN.len() + RECEIVED.len() + MODELLED.len() + DERIVED.len(), 9);
    for log in [true, false] {
        let mut crossed = 0;
        for operation in 0..OPERATIONS_MAX {
            let fault = if operation % 2 == 0 { Fault::Before } else { Fault::After };
            let mut cluster = Cluster::new(tune);
            let media = disk(&mut cluster, 1, log);
            media.fail_at(operation, fault);
            let (acked, whole) = script(&mut cluster).await;
            if whole && media.operations() <= operation {
                break;
            }
            crossed += 1;
            cluster.crash(1, operation).await;
            let replica = cluster.start(1).await;
            if replica.initialise().await.is_ok() {
                assert!(acked.is_empty(), "operation {operation} lost the whole log");
                continue;
            }
            replica.wait(Freshness::Linearizable).await.expect("it leads again");
            let found = volumes(replica.as_ref());
            assert!(found.is_superset(&acked), "operation {operation} lost {:?}", acked.difference(&found));
        }
        assert!(crossed > 10, "only {crossed} operations");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_taken_over_through_a_crash_at_every_operation() {
    let mut cluster = Cluster::found(tune).await;
    for number in 0..40 {
        cluster.replica(1).propose(add(number)).await.expect("acked");
    }
    // A new node for each operation; it keeps its disks through the crash.
    for operation in 0..10_u64 {
        let id = operation + 2;
        disk(&mut cluster, id, false).fail_at(operation, Fault::Before);
        let life = u8::try_from(id).expect("small");
        cluster.start(id).await;
        cluster.replica(1).propose(vec![support::join(id, life)]).await.expect("joined");
        cluster
            .until("it stopped or has all", |cluster| {
                let replica = cluster.replica(id);
                replica.status().fatal.is_some() || volumes(replica.as_ref()).len() == 40
            })
            .await;
        cluster.crash(id, operation).await;
        // The fault struck, or never will.
        disk(&mut cluster, id, false).fail_at(u64::MAX, Fault::Before);
        cluster.start(id).await;
        cluster.until("it has all", |cluster| volumes(cluster.replica(id).as_ref()).len() == 40).await;
        let remove = Command::SetNodeState { node: NodeId(id), state: pacsvault_core::layout::NodeState::Removed };
        cluster.replica(1).propose(vec![remove]).await.expect("removed");
        cluster
            .until("it is let go", |cluster| {
                let status = cluster.replica(1).status();
                !status.voters.contains(&NodeId(id)) && !status.learners.contains(&NodeId(id)) && !status.joint
            })
            .await;
        cluster.stop(id).await;
        cluster.nodes.remove(&id);
    }
}
