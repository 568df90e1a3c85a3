//! Beyond the contract: more is destroyed than any promise covers, and the only allowed outcome is a clean refusal.
//!
//! **Invariants.** What is judged lost is counted on the disks, not asked of the code under test. Lost content is refused with a
//! code, never answered with other bytes and never called absent; what still has enough shards is read; stripes that cannot
//! come back are set aside, so that people see them; new writes are taken and true; nothing hangs.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::{Either, select};
use pacsvault_coordinator::{Coordinator, GetQuery};
use pacsvault_core::catalog::query;
use pacsvault_ports::peer::{Class, Freshness, Request};

use crate::{
    atlas::Atlas,
    cluster::Stop,
    exec::Life,
    nemesis::{Nemesis, rot_through},
    proof::{Standing, newest, standing},
    rng::SimRng,
    scenario::Beyond,
    workload::{Work, key_name},
};

mod quorum;

/// One operation that takes longer hangs: coordinators give up much earlier.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// Looks for a machine that has started, a quarter of a second apart.
const STARTS_WITHIN_TRIES: usize = 40;
/// Virtual time in which people have replaced what they replace.
const REPLACED_WITHIN: Duration = Duration::from_secs(60);
/// Virtual time in which everything that is lost must be told, and all that is not be readable.
const TOLD_WITHIN: Duration = Duration::from_secs(120);
/// How often people have everything verified meanwhile.
const SCRUB_EVERY: Duration = Duration::from_secs(15);

/// Destroys too much, and judges what becomes of it. Everything was whole before.
pub async fn trial(work: &Arc<Work>, nemesis: &Arc<Nemesis>, how: Beyond) {
    let cluster = &work.cluster;
    let mut rng = cluster.sim.random(SimRng::fork);
    if how == Beyond::Quorum {
        return quorum::trial(work, nemesis, &mut rng).await;
    }
    destroy(work, nemesis, how, &mut rng);
    let end = cluster.sim.now() + REPLACED_WITHIN;
    while nemesis.operator.jobs() > 0 {
        if cluster.sim.now() > end {
            return work.violation("beyond the contract: volumes could not be replaced");
        }
        pause(work, 500).await;
    }
    cluster.sim.hit(match how {
        Beyond::Rot => "beyond: sites rotten",
        Beyond::Replace => "beyond: the volumes of sites replaced",
        Beyond::JustTooMuch | Beyond::Quorum => "beyond: one machine more replaced than the contract covers",
    });
    let reader = work.client(rng.index(work.cluster.scenario.sites)).coordinator();
    read_all(work, &reader, false).await;
    takes_true_writes(work, &mut rng).await;
    if all_told(work).await {
        read_all(work, &reader, true).await;
        takes_true_writes(work, &mut rng).await;
    }
}

async fn pause(work: &Work, millis: u64) {
    work.cluster.sim.sleep(Life::HARNESS, Duration::from_millis(millis)).await;
}

/// Machines that hold volumes, more of them than any clause of a contract covers: whole sites, two at least, or one machine
/// after the other until it is just too much. Where two sites may be lost, some of a third go with them.
fn victims(work: &Work, how: Beyond, rng: &mut SimRng) -> Vec<usize> {
    let cluster = &work.cluster;
    let sites = cluster.scenario.sites;
    let first = rng.index(sites);
    let storing = (0..sites).map(|site| (site + first) % sites).filter(|site| !cluster.scenario.is_witness(*site));
    let machines: Vec<Vec<usize>> = storing.map(|site| cluster.of_site(site)).collect();
    let sites: Vec<usize> = cluster.machines().iter().map(|machine| machine.site).collect();
    // One that covers it is enough to read what is kept in it: all must be left behind.
    let ledgers = cluster.scenario.profiles().map(|profile| Atlas::new(sites.clone(), vec![profile.contract.clone()]));
    too_many(&machines, how, &ledgers.collect::<Vec<_>>())
}

/// Of the machines of each site as many as no contract covers, each in a ledger of its own.
fn too_many(machines: &[Vec<usize>], how: Beyond, ledgers: &[Atlas]) -> Vec<usize> {
    let steps: Vec<Vec<usize>> = match how {
        Beyond::Rot | Beyond::Replace => machines.to_vec(),
        Beyond::JustTooMuch | Beyond::Quorum => machines.iter().flatten().map(|at| vec![*at]).collect(),
    };
    let least = if how == Beyond::JustTooMuch { 1 } else { 2 };
    let mut victims = Vec::new();
    for (taken, step) in steps.into_iter().enumerate() {
        if taken >= least && !ledgers.iter().any(|ledger| ledger.covered(victims.iter().copied())) {
            break;
        }
        victims.extend(step);
    }
    victims
}

fn destroy(work: &Work, nemesis: &Arc<Nemesis>, how: Beyond, rng: &mut SimRng) {
    let cluster = &work.cluster;
    let victims = victims(work, how, rng);
    for &at in &victims {
        let volumes: Vec<_> = {
            let machines = cluster.machines();
            machines[at].volumes.iter().map(|volume| (volume.id, volume.disk.clone())).collect()
        };
        for (id, disk) in volumes {
            cluster.distrust(id);
            if how == Beyond::Rot {
                rot_through(&disk, 0, |_, _| {});
            } else {
                let nemesis = Arc::clone(nemesis);
                nemesis.operator.clone().begin(|operator| operator.replace(nemesis, at, id));
            }
        }
    }
    // What a running node remembers of its volumes is true of what they were.
    if how == Beyond::Rot && rng.chance(500) {
        cluster.sim.hit("beyond: restarted on rotten volumes");
        for at in victims {
            nemesis.down(at, Stop::Power);
            nemesis.up(at);
        }
    }
}

/// As [`standing`], once a machine has started of all that were restarted.
async fn standing_soon(work: &Work) -> Option<Vec<Standing>> {
    for _ in 0..STARTS_WITHIN_TRIES {
        if let Some(all) = standing(work) {
            return Some(all);
        }
        pause(work, 250).await;
    }
    standing(work)
}

/// Reads everything that must live. `settled`: what has enough shards must be readable by now.
async fn read_all(work: &Arc<Work>, reader: &Coordinator, settled: bool) {
    let Some(all) = standing_soon(work).await else { return work.violation("beyond the contract: no replica runs") };
    for one in all {
        let key = one.key;
        let sim = &work.cluster.sim;
        let hangs = sim.sleep(Life::HARNESS, HANGS_AFTER);
        let read = {
            let reading = Box::pin(read(work, reader, &one));
            match select(reading, hangs).await {
                Either::Left((read, _)) => read,
                Either::Right(_) => return work.violation(format!("beyond the contract: a read of key {key} hangs")),
            }
        };
        let version = one.sealed.version;
        match read {
            Ok(()) if one.lost.is_empty() => sim.hit("beyond: content that is left was read"),
            Ok(()) => {}
            Err(fault) => {
                let (class, code) = (fault.class, &fault.code);
                if matches!(class, Class::NotFound | Class::Bug | Class::Reject) {
                    work.violation(format!(
                        "beyond the contract: version {version} of key {key} was answered with {class:?} {code}: {fault}"
                    ));
                } else if settled && one.readable {
                    work.violation(format!(
                        "beyond the contract: version {version} of key {key} has enough shards and cannot be read: {code}"
                    ));
                } else if !one.lost.is_empty() {
                    sim.hit("beyond: lost content refused with a code");
                }
            }
        }
    }
}

/// Reads one version; its bytes are judged by the model.
async fn read(work: &Work, reader: &Coordinator, one: &Standing) -> Result<(), pacsvault_ports::peer::Fault> {
    let mut query = GetQuery::whole(key_name(one.key));
    query.version = Some(one.sealed.version);
    query.freshness = Freshness::Linearizable;
    let download = reader.get(query).await?;
    let sealed = download.sealed().clone();
    let bytes = download.bytes().await?;
    if bytes.len() as u64 != sealed.seal.size_bytes {
        work.violation(format!("beyond the contract: version {} of key {} is short", sealed.version, one.key));
    }
    work.model(|model| model.observe_bytes(one.key, &sealed, 0..u64::MAX, &bytes));
    Ok(())
}

/// The cluster goes on: every site's clients can write, and read what they wrote.
async fn takes_true_writes(work: &Arc<Work>, rng: &mut SimRng) {
    for site in 0..work.cluster.scenario.sites {
        let mut client = work.client(site);
        let mut stored = None;
        for _ in 0..15 {
            let (key, content) = (rng.index(work.cluster.scenario.keys), Bytes::from(rng.bytes(900)));
            stored = client.put(key, content, false).await.map(|stored| (key, stored.sealed));
            if stored.is_some() {
                break;
            }
            pause(work, 1_000).await;
        }
        let Some((key, sealed)) = stored else {
            return work.violation(format!("beyond the contract: site {site} takes no write any more"));
        };
        let one = Standing { key, sealed, readable: true, recoverable: true, lost: Vec::new() };
        let mut last = String::new();
        let mut done = false;
        for _ in 0..4 {
            match read(work, &client.coordinator(), &one).await {
                Ok(()) => done = true,
                Err(fault) => last = format!("{} {fault}", fault.code),
            }
            if done {
                break;
            }
        }
        if !done {
            return work.violation(format!("beyond the contract: what was written since cannot be read: {last}"));
        }
        work.cluster.sim.hit("beyond: written and read since");
    }
}

/// Everything that is lost is set aside in time, and told so.
async fn all_told(work: &Arc<Work>) -> bool {
    let sim = &work.cluster.sim;
    let (end, mut scrub) = (sim.now() + TOLD_WITHIN, Duration::ZERO);
    loop {
        if sim.now() >= scrub {
            scrub = sim.now() + SCRUB_EVERY;
            // Not as people do it who hope: what is set aside stays so.
            for at in 0..work.cluster.count() {
                let target = work.cluster.target(at);
                drop(work.cluster.operator().call(&target, Request::ScrubNow(None), Duration::from_secs(5)).await);
            }
        }
        match untold(work) {
            None => {
                sim.hit("beyond: everything lost is set aside");
                return true;
            }
            Some(why) if sim.now() > end => {
                work.violation(format!("beyond the contract: {why}"));
                return false;
            }
            Some(why) => sim.event("not told", &[], || why),
        }
        pause(work, 1_000).await;
    }
}

/// A stripe that is lost and not set aside.
fn untold(work: &Work) -> Option<String> {
    let replica = newest(&work.cluster)?;
    for one in standing(work)? {
        for stripe in one.lost {
            let instance = one.sealed.seal.instance;
            let told = query::aside(replica.view().as_ref(), instance, stripe).ok().flatten();
            if told.is_none() {
                let number = stripe.0;
                return Some(format!("stripe {instance}/{number} of key {} is lost and not set aside", one.key));
            }
            work.cluster.sim.hit("beyond: stripe set aside");
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use pacsvault_core::layout::{Contract, Failures};

    use super::*;

    #[test]
    fn as_much_is_destroyed_as_no_clause_covers() {
        let machines: Vec<Vec<usize>> = vec![vec![0, 1], vec![2, 3], vec![4, 5]];
        let ledger = |sites, nodes| Atlas::new(vec![0, 0, 1, 1, 2, 2], vec![Contract::one(Failures { sites, nodes })]);
        let count = |how, sites, nodes| too_many(&machines, how, &[ledger(sites, nodes)]).len();
        assert_eq!(count(Beyond::JustTooMuch, 1, 0), 3);
        assert_eq!(count(Beyond::JustTooMuch, 1, 1), 4);
        assert_eq!(count(Beyond::JustTooMuch, 2, 0), 5, "of the third site as well");
        assert_eq!(count(Beyond::Replace, 1, 0), 4);
        assert_eq!(count(Beyond::Rot, 2, 0), 6, "two sites are covered");
        let alternatives = Contract::new(vec![Failures { sites: 1, nodes: 0 }, Failures { sites: 0, nodes: 2 }]);
        let either = Atlas::new(vec![0, 0, 1, 1, 2, 2], vec![alternatives.expect("two clauses")]);
        assert_eq!(too_many(&machines, Beyond::JustTooMuch, &[either]), [0, 1, 2]);
        assert_eq!(too_many(&machines, Beyond::JustTooMuch, &[ledger(1, 0), ledger(1, 1)]), [0, 1, 2, 3]);
    }
}
