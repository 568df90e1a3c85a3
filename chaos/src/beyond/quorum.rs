//! Beyond what consensus survives: the logs of so many voters are gone that no majority is left.
//!
//! **Invariants.** Until people decide what is still true, nothing is decided: no write is acknowledged, no read is answered as
//! linearizable (nor told that there is nothing), no entry is committed. Blank nodes wait to be taken in and found no cluster of
//! their own. Everything is refused with a code, in time.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures::future::{Either, select};
use pacsvault_coordinator::GetQuery;
use pacsvault_core::ids::LogIndex;
use pacsvault_ports::peer::{Class, Fault, Freshness};

use super::{HANGS_AFTER, pause};
use crate::{cluster::Cluster, exec::Life, nemesis::Nemesis, rng::SimRng, workload::Work, workload::key_name};

/// Virtual milliseconds after which nobody leads any more: a lease, an election timeout, and calls under way.
const SETTLED_MILLIS: u64 = 5_000;
/// How often each site's clients try.
const TRIES: usize = 3;

/// Wipes half of the voters at once, and judges what the rest and the blank ones do. Everything was whole before.
pub(super) async fn trial(work: &Arc<Work>, nemesis: &Arc<Nemesis>, rng: &mut SimRng) {
    let cluster = &work.cluster;
    let Some(victims) = half_of_the_voters(cluster, rng) else {
        return cluster.sim.hit("beyond: no quorum taken, it is not clear who votes");
    };
    for &at in &victims {
        if nemesis.take(at) {
            cluster.wipe(at);
        }
    }
    // Some under their old name and address: a message to who was there must not count for who is.
    for &at in &victims {
        cluster.refit(at, rng.chance(500));
        nemesis.give_back(at);
    }
    cluster.sim.hit("beyond: the logs of half of the voters gone");
    pause(work, SETTLED_MILLIS).await;
    let before = positions(cluster, &victims);
    for _ in 0..TRIES {
        for site in 0..cluster.scenario.sites {
            writes(work, site, rng).await;
            reads(work, site, rng).await;
        }
        pause(work, rng.range(1_000, 10_000)).await;
    }
    let after = positions(cluster, &victims);
    if after > before {
        work.violation(format!("beyond the contract: entries {before} to {after} were decided without a majority"));
    }
    for at in victims {
        if let Some(status) = cluster.replica(at).map(|replica| replica.status()) {
            work.violation(format!("beyond the contract: blank machine {at} is a member: {status:?}"));
        }
    }
}

/// Machines of so many voters that the others are no majority.
fn half_of_the_voters(cluster: &Cluster, rng: &mut SimRng) -> Option<BTreeSet<usize>> {
    let statuses = (0..cluster.count()).filter_map(|at| Some((at, cluster.replica(at)?.status())));
    let statuses: Vec<_> = statuses.collect();
    let leads = |status: &pacsvault_consensus::Status| status.leader == Some(status.node) && !status.joint;
    let voters = &statuses.iter().find(|(_, status)| leads(status))?.1.voters;
    let mut machines: Vec<usize> =
        statuses.iter().filter(|(_, status)| voters.contains(&status.node)).map(|(at, _)| *at).collect();
    let gone = voters.len().div_ceil(2);
    let mut victims = BTreeSet::new();
    while victims.len() < gone && !machines.is_empty() {
        victims.insert(machines.swap_remove(rng.index(machines.len())));
    }
    (victims.len() == gone).then_some(victims)
}

/// How far the furthest of the others has applied.
fn positions(cluster: &Cluster, victims: &BTreeSet<usize>) -> LogIndex {
    let others = (0..cluster.count()).filter(|at| !victims.contains(at)).filter_map(|at| cluster.replica(at));
    others.map(|replica| replica.status().applied).max().unwrap_or(LogIndex(0))
}

async fn writes(work: &Arc<Work>, site: usize, rng: &mut SimRng) {
    let (key, content) = (rng.index(work.cluster.scenario.keys), Bytes::from(rng.bytes(900)));
    let mut client = work.client(site);
    let hangs = work.cluster.sim.sleep(Life::HARNESS, HANGS_AFTER);
    match select(Box::pin(client.put(key, content, false)), hangs).await {
        Either::Left((Some(stored), _)) => work.violation(format!(
            "beyond the contract: a write was acknowledged as version {} without a majority of the voters",
            stored.sealed.version
        )),
        Either::Left((None, _)) => work.cluster.sim.hit("beyond: write refused without a quorum"),
        Either::Right(_) => work.violation("beyond the contract: a write without a quorum hangs"),
    }
}

async fn reads(work: &Arc<Work>, site: usize, rng: &mut SimRng) {
    let mut query = GetQuery::whole(key_name(rng.index(work.cluster.scenario.keys)));
    query.freshness = Freshness::Linearizable;
    let coordinator = work.client(site).coordinator();
    let hangs = work.cluster.sim.sleep(Life::HARNESS, HANGS_AFTER);
    let reading = Box::pin(async move { coordinator.get(query).await.map(|_| ()) });
    let answered: Result<(), Fault> = match select(reading, hangs).await {
        Either::Left((read, _)) => read,
        Either::Right(_) => return work.violation("beyond the contract: a read without a quorum hangs"),
    };
    match answered {
        Ok(()) => {
            work.violation("beyond the contract: a linearizable read was answered without a majority of the voters")
        }
        Err(fault) if matches!(fault.class, Class::NotFound | Class::Bug | Class::Reject) => {
            let (class, code) = (fault.class, &fault.code);
            work.violation(format!("beyond the contract: a read without a quorum was told {class:?} {code}: {fault}"));
        }
        Err(_) => work.cluster.sim.hit("beyond: linearizable read refused without a quorum"),
    }
}
