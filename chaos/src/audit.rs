//! The oracles that look behind the answers: what is really durable, and whether a healed cluster keeps every promise.
//!
//! **Invariants.** Durability is judged on copies of the simulated disks as a power failure at that instant would leave them,
//! by a count of its own, not by the code under test. After the faults end the cluster must converge, take writes, and read
//! everything acknowledged, also with any one site dark as far as receipts promise it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pacsvault_coordinator::{Coordinator, GetQuery, ShardCheck, ShardFinding, Stored};
use pacsvault_core::{
    catalog::{SealedInstance, StripeSeal},
    ids::{Digest, LogIndex, NodeId, ShardIndex, StripeIndex, VersionNumber, VolumeId},
    layout::{Failures, survival::covers},
    shard::ShardId,
};
use pacsvault_ports::peer::{Class, Freshness};
use pacsvault_volume::Store;

use crate::{
    beyond,
    cluster::{Cluster, Stop},
    exec::Life,
    leftovers,
    model::{Model, Question},
    nemesis::Nemesis,
    operator::{AfterDrain, Operator},
    proof::{Why, kept, newest, record, survivor, whole},
    recoding, remnant,
    rng::SimRng,
    rows,
    run::phase,
    scenario::Encore,
    workload::{Work, key_name},
};

/// Share of acknowledged writes whose receipts are checked on the disks, in 1,000: each check opens every volume.
const CHECKED_PER_MILLE: u64 = 350;
/// Virtual time in which a healed cluster must have converged.
const CONVERGE_WITHIN: Duration = Duration::from_secs(60);
/// Virtual time in which everything must be whole again, the work of people included.
const HEAL_WITHIN: Duration = Duration::from_secs(90);
/// How often people help meanwhile.
const HELP_EVERY: Duration = Duration::from_secs(10);
/// So many times what a scrub may take is given to nodes that are to find damage by themselves: a pass may just have begun.
const SCRUBS_ALONE: u32 = 2;

/// One shard where it really lies: index, machine, site.
pub(crate) type Lies = (u8, usize, usize);

/// Whether at least `k` distinct shards remain after every failure of this kind of so many sites and nodes.
pub fn survives(shards: &[Lies], k: usize, failures: Failures, (all_sites, nodes): (usize, usize)) -> bool {
    let sets = |of: usize, count: u8| {
        (0_u32..1 << of).filter(move |set| set.count_ones() == u32::from(count)).collect::<Vec<_>>()
    };
    sets(all_sites, failures.sites).iter().all(|sites| {
        sets(nodes, failures.nodes).iter().all(|dark| {
            let left = shards.iter().filter(|(_, node, site)| sites & (1 << site) == 0 && dark & (1 << node) == 0);
            let mut distinct: Vec<u8> = left.map(|(shard, _, _)| *shard).collect();
            distinct.sort_unstable();
            distinct.dedup();
            distinct.len() >= k
        })
    })
}

/// Shards of a stripe that its seal calls persisted: index and volume.
pub(crate) fn persisted(stripe: &StripeSeal) -> impl Iterator<Item = (u8, VolumeId)> + '_ {
    (0_u8..32).zip(&stripe.placement).filter(|(shard, _)| stripe.persisted & (1 << shard) != 0).map(|(s, v)| (s, *v))
}

/// Volume to machine and site, also of volumes that are no more.
pub(crate) fn homes(cluster: &Cluster) -> BTreeMap<VolumeId, (usize, usize)> {
    let machines = cluster.machines();
    let of = |(at, machine): (usize, &crate::machine::Machine)| {
        machine.volumes.iter().map(|volume| (volume.id, (at, machine.site))).collect::<Vec<_>>()
    };
    let mut homes = cluster.gone();
    homes.extend(machines.iter().enumerate().flat_map(of));
    homes
}

/// Checks that what a receipt claims is true on the disks.
pub fn check_receipt(work: &Work, key: usize, stored: &Stored) {
    let cluster = &work.cluster;
    if stored.receipt.survives != stored.sealed.survives || stored.receipt.degraded != stored.sealed.degraded {
        work.violation("a receipt differs from the catalog's record");
    }
    let (sealed, receipt) = (&stored.sealed, &stored.receipt);
    match cluster.scenario.profiles().find(|profile| profile.name == sealed.seal.profile) {
        Some(profile) if profile.contract != sealed.contract => {
            work.violation("a receipt tells another contract than its profile has");
        }
        Some(profile) if !covers(&sealed.survives, &profile.floor) => {
            work.violation(format!("attempt {} was acknowledged below the floor of its profile", sealed.seal.instance));
        }
        Some(_) => {}
        None => work.violation("a receipt names a profile that there is not"),
    }
    if sealed.degraded == covers(&sealed.survives, &sealed.contract) {
        work.violation(format!(
            "a receipt says degraded: {}, and of its contract that it is the contrary",
            sealed.degraded
        ));
    }
    let seal = &sealed.seal;
    let told = (&receipt.key, receipt.version, receipt.instance, receipt.size_bytes, receipt.digest);
    let how = (&receipt.profile, receipt.profile_version, receipt.code, &receipt.contract);
    let when = (receipt.cluster, receipt.layout, receipt.term, receipt.index, receipt.time);
    if told != (&seal.key, sealed.version, seal.instance, seal.size_bytes, seal.digest)
        || how != (&seal.profile, seal.profile_version, seal.code, &sealed.contract)
        || when != (cluster.id(), seal.layout, sealed.term, sealed.index, sealed.time)
    {
        work.violation(format!("the receipt of attempt {} differs from its record", seal.instance));
    }
    if !cluster.sim.random(|rng| rng.chance(CHECKED_PER_MILLE))
        || work.model(|model| model.may_be_gone(key, &stored.sealed))
    {
        return;
    }
    // Repair may have been faster than the answer.
    let now = newest(cluster).and_then(|replica| record(replica.as_ref(), stored.sealed.seal.instance));
    if now.is_some_and(|now| now.moved != stored.sealed.moved) {
        cluster.sim.hit("receipt of what has moved since");
        return;
    }
    // So may re-encoding, and who knows of it may be away with the shards that it freed: the log tells.
    if cluster.chronicle.replaces(stored.sealed.seal.instance) {
        cluster.sim.hit("receipt of what has another encoding since");
        return;
    }
    cluster.sim.hit("receipt checked on the disks");
    let homes = homes(cluster);
    let mut stores: BTreeMap<VolumeId, Option<Store>> = BTreeMap::new();
    let seal = &stored.sealed.seal;
    for (stripe, index) in seal.stripes.iter().zip(0_u32..) {
        let mut durable: Vec<Lies> = Vec::new();
        for (shard, volume) in persisted(stripe) {
            let store = stores.entry(volume).or_insert_with(|| survivor(cluster, volume));
            let id = ShardId { instance: seal.instance, stripe: StripeIndex(index), shard: ShardIndex(shard) };
            if cluster.may_be_hurt(volume, seal.instance) {
                // What becomes of it is the fault's doing; the claim was made for a sound disk.
                durable.push((shard, homes[&volume].0, homes[&volume].1));
                continue;
            }
            match store.as_ref().map(|store| store.read(id, 0, u64::MAX)) {
                Some(Ok(read)) if Digest::of(&read.data) == read.header.digest => {
                    let (at, site) = homes[&volume];
                    durable.push((shard, at, site));
                }
                Some(Ok(_)) => work.violation(format!("shard {id} on volume {volume} has other bytes than its digest")),
                Some(Err(why)) => {
                    work.violation(format!(
                        "shard {id} was called durable on volume {volume}, a power loss loses it: {why}"
                    ));
                }
                None => work.violation(format!("volume {volume} does not open after a power loss")),
            }
        }
        for claim in &stored.sealed.survives {
            if !survives(&durable, seal.code.data(), *claim, cluster.extent()) {
                work.violation(format!(
                    "stripe {index} of {} does not survive {claim}, as its receipt says",
                    seal.instance
                ));
            }
        }
    }
}

/// Compares the digests of replicas at equal positions, for ever; notes changes of leader and voters on the way.
pub async fn watch_digests(work: Arc<Work>) {
    let mut known: BTreeMap<LogIndex, Digest> = BTreeMap::new();
    let mut last = (None, Vec::new());
    loop {
        work.cluster.sim.sleep(Life::HARNESS, Duration::from_millis(150)).await;
        for at in 0..work.cluster.count() {
            let Some(status) = work.cluster.replica(at).map(|replica| replica.status()) else { continue };
            if status.leader == Some(status.node) {
                let now = (status.leader, status.voters.clone());
                if last.0 != now.0 {
                    let name = work.cluster.target(at).name;
                    let name = name.map_or_else(String::new, |name| name.as_str().to_owned());
                    work.cluster.sim.event("leader", &[status.node.0, status.term.0], || {
                        format!("{name} leads in term {} with voters {:?}", status.term, status.voters)
                    });
                }
                if last.0.is_some() && last.0 != now.0 {
                    work.cluster.sim.hit("leader changed");
                }
                if last.0.is_some() && last.1 != now.1 {
                    work.cluster.sim.hit("voters changed");
                }
                last = now;
            }
            let before = *known.entry(status.applied).or_insert(status.digest);
            if before != status.digest {
                work.violation(format!("machine {at} diverged: two digests at index {}", status.applied));
                return;
            }
        }
    }
}

/// True when every replica is up, at the same position with the same digest, under one leader.
fn converged(cluster: &Cluster) -> Result<(), String> {
    let mut first = None;
    for at in 0..cluster.count() {
        let status = cluster.replica(at).ok_or_else(|| format!("machine {at} has no replica"))?.status();
        if let Some(fatal) = status.fatal {
            return Err(format!("machine {at} stopped: {fatal}"));
        }
        let seen = (status.applied, status.digest, status.leader, status.joint);
        if status.leader.is_none() || status.joint {
            return Err(format!("machine {at} sees leader {:?}, joint {}", status.leader, status.joint));
        }
        if status.leader == Some(status.node) {
            spread(cluster, &status.voters)?;
        }
        if *first.get_or_insert(seen) != seen {
            return Err(format!("machine {at} is at {} under {:?}, another is not", status.applied, status.leader));
        }
    }
    Ok(())
}

/// Voters that are there must be such that any one site may vanish: one whose machine is no more counts against every majority.
fn spread(cluster: &Cluster, voters: &[NodeId]) -> Result<(), String> {
    let present = |site: usize| {
        let inside = cluster.of_site(site).into_iter().filter_map(|at| cluster.replica(at));
        inside.filter(|replica| voters.contains(&replica.status().node)).count()
    };
    let sites = cluster.scenario.sites;
    let all: usize = (0..sites).map(present).sum();
    for site in 0..sites {
        if (all - present(site)) * 2 <= voters.len() {
            return Err(format!(
                "without site {site} the voters {voters:?}, {all} of which are there, have no majority"
            ));
        }
    }
    Ok(())
}

pub(crate) async fn wait_converged(work: &Work) -> bool {
    let sim = &work.cluster.sim;
    let end = sim.now() + CONVERGE_WITHIN;
    loop {
        match converged(&work.cluster) {
            Ok(()) => {
                if let Err(why) = rows::compare(&work.cluster) {
                    work.violation(why);
                }
                return true;
            }
            Err(why) if sim.now() > end => {
                work.violation(format!("the healed cluster did not converge: {why}"));
                return false;
            }
            Err(_) => sim.sleep(Life::HARNESS, Duration::from_millis(250)).await,
        }
    }
}

/// Heals the cluster and holds it to everything that was promised.
pub async fn finale(work: &Arc<Work>, nemesis: &Arc<Nemesis>) {
    let sim = &work.cluster.sim;
    if let Some(how) = work.cluster.scenario.part {
        remnant::trial(work, nemesis, how).await;
    }
    phase(sim, "healing");
    nemesis.heal();
    if !heals(work, nemesis).await || !recoding::done(work, nemesis).await || !wait_converged(work).await {
        return;
    }
    phase(sim, "writing and reading again");
    let mut rng = sim.random(SimRng::fork);
    for site in 0..work.cluster.scenario.sites {
        if !takes_a_write(work, site, 0, Promise::Contract, &mut rng).await {
            work.violation(format!("the healed cluster takes no write at full contract at site {site}"));
        }
    }
    let reader = work.client(rng.index(work.cluster.scenario.sites)).coordinator();
    read_all(work, &reader, "after healing").await;
    read_every_version(work, &reader).await;
    // What was written a moment ago keeps its contract, and may lack a shard whose holder was slow.
    if !heals(work, nemesis).await {
        return;
    }
    verify_all(work, &reader).await;
    let wrote = one_site_dark(work, nemesis, &mut rng).await;
    phase(sim, "encore");
    nemesis.heal();
    if (!wrote || heals(work, nemesis).await) && wait_converged(work).await {
        match work.cluster.scenario.beyond {
            Some(how) => beyond::trial(work, nemesis, how).await,
            None => encore(work, nemesis, &mut rng).await,
        }
    }
    nemesis.operator.give_up();
}

/// Everything can be read without any one site, and a surviving one takes a write where the rest can keep the floor: true
/// when it did. What was written so is below its contract until the site is back.
async fn one_site_dark(work: &Arc<Work>, nemesis: &Arc<Nemesis>, rng: &mut SimRng) -> bool {
    let cluster = &work.cluster;
    phase(&cluster.sim, "one site dark");
    let sites = cluster.scenario.sites;
    let site = rng.index(sites);
    let dark: BTreeSet<usize> = cluster.of_site(site).into_iter().collect();
    dark.iter().for_each(|&at| nemesis.down(at, Stop::Power));
    cluster.sim.hit("everything read with one site dark");
    let elsewhere = work.client((site + 1) % sites).coordinator();
    read_all(work, &elsewhere, "with a site dark").await;
    let layout = newest(cluster).and_then(|replica| replica.layout());
    if !layout.is_some_and(|layout| remnant::floor_possible(cluster, &layout, &dark)) {
        cluster.sim.hit("one site dark: too little left for the floor");
        return false;
    }
    let writes_at = (site + 1 + rng.index(sites - 1)) % sites;
    let wrote = takes_a_write(work, writes_at, 0, Promise::Floor, rng).await;
    if wrote {
        cluster.sim.hit("one site dark: took a write");
    } else {
        work.violation(format!("with site {site} dark no write is taken at site {writes_at}"));
    }
    wrote
}

/// How long nodes are left alone with what is broken, before people help.
fn alone(cluster: &Cluster) -> Duration {
    let scenario = &cluster.scenario;
    if scenario.people_scrub { Duration::ZERO } else { scenario.pace.scrub_within * SCRUBS_ALONE }
}

/// People and nodes repair everything, in time. Where people do not scrub they replace disks alone; what was set aside rests
/// for an hour unless they have it tried again, and so they do in the end.
pub(crate) async fn heals(work: &Arc<Work>, nemesis: &Arc<Nemesis>) -> bool {
    let (sim, operator) = (&work.cluster.sim, &nemesis.operator);
    let (began, alone) = (sim.now(), alone(&work.cluster));
    let mut help_at = began + alone;
    loop {
        operator.replace_fenced(nemesis);
        if sim.now() >= help_at {
            help_at = sim.now() + HELP_EVERY;
            if work.cluster.scenario.people_scrub {
                operator.begin(Operator::scrub);
            } else {
                operator.begin(Operator::retry_aside);
            }
        }
        if operator.jobs() == 0 {
            operator.take_back_drains();
        }
        let state = if operator.jobs() == 0 { whole(work) } else { Err(format!("{} jobs wait", operator.jobs())) };
        let why = match state {
            Ok(found) => {
                sim.hit("everything proven whole");
                if !alone.is_zero() && sim.now() > began {
                    sim.hit(if help_at == began + alone {
                        "nodes healed alone"
                    } else {
                        "people had asides tried again"
                    });
                }
                for leak in &found.leaks {
                    sim.hit(match leak.why {
                        Why::Elsewhere(_) => "stale copy left when everything was whole",
                        Why::Deleted(_) => "deleted shard left when everything was whole",
                        Why::Unsealed => "unsealed shard left when everything was whole",
                    });
                }
                work.cluster.proven_whole();
                work.healed_within(sim.now().saturating_sub(began));
                return true;
            }
            Err(why) => why,
        };
        sim.event("not whole", &[], || why.clone());
        if sim.now().saturating_sub(began) > alone + HEAL_WITHIN {
            let told = operator.health().await.map(|health| {
                format!("held back {:?}, waiting {:?}, done {}", health.held_back, health.waiting, health.done_stripes)
            });
            let layout = newest(&work.cluster).and_then(|replica| replica.layout());
            sim.event("layout", &[], || format!("{layout:#?}"));
            work.violation(format!("the cluster did not heal: {why}; {told:?}"));
            return false;
        }
        sim.sleep(Life::HARNESS, Duration::from_millis(500)).await;
    }
}

/// Once more, from a state that is known to be whole.
async fn encore(work: &Arc<Work>, nemesis: &Arc<Nemesis>, rng: &mut SimRng) {
    let cluster = &work.cluster;
    let (operator, at) = (&nemesis.operator, rng.index(cluster.count()));
    match cluster.scenario.encore {
        Encore::Nothing => return,
        Encore::Sweep if heals(work, nemesis).await => return leftovers::swept(work, rng).await,
        Encore::Sweep => return,
        Encore::Recode => {
            operator.begin(Operator::recode_all);
        }
        Encore::Wipe => {
            cluster.may_damage(at);
            let nemesis = Arc::clone(nemesis);
            operator.begin(|operator| operator.wipe(nemesis, at));
        }
        Encore::WipeSite => {
            let site = cluster.machines()[at].site;
            for at in cluster.of_site(site) {
                let nemesis = Arc::clone(nemesis);
                operator.begin(|operator| operator.wipe(nemesis, at));
            }
        }
        Encore::Retire => {
            let nemesis = Arc::clone(nemesis);
            operator.begin(|operator| operator.drain(nemesis, at, AfterDrain::Removed));
        }
        Encore::Rot if !nemesis.rot_disks_of(at) => return,
        Encore::Rot => {}
    }
    cluster.sim.hit(match cluster.scenario.encore {
        Encore::Wipe => "encore: a machine wiped",
        Encore::WipeSite => "encore: a site wiped",
        Encore::Recode => "encore: all studies in another profile",
        Encore::Rot => "encore: the disks of a machine rotten",
        _ => "encore: a node drained and removed",
    });
    if heals(work, nemesis).await && recoding::done(work, nemesis).await && wait_converged(work).await {
        let reader = work.client(rng.index(cluster.scenario.sites)).coordinator();
        read_all(work, &reader, "after the encore").await;
        verify_all(work, &reader).await;
        if cluster.scenario.encore == Encore::Recode {
            // What the former encodings left must go as well.
            leftovers::swept(work, rng).await;
        }
    }
}

/// What a write must keep to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Promise {
    /// All of its contract: nothing is missing.
    Contract,
    /// Its floor: a part of the cluster is away.
    Floor,
}

/// Tries a few times: a store that failed before the end may be noticed only by the next write to it, and its node
/// must then start again.
pub(crate) async fn takes_a_write(
    work: &Arc<Work>,
    site: usize,
    ahead_millis: i64,
    promise: Promise,
    rng: &mut SimRng,
) -> bool {
    let mut client = work.client(site);
    client.set_clock(ahead_millis);
    for _ in 0..5 {
        let (key, content) = (rng.index(work.cluster.scenario.keys), rng.bytes(700).into());
        let stored = client.put(key, content, false).await;
        if stored.is_some_and(|stored| promise == Promise::Floor || !stored.sealed.degraded) {
            return true;
        }
        work.cluster.sim.sleep(Life::HARNESS, Duration::from_secs(1)).await;
    }
    false
}

/// Reads every acknowledged version that nobody may have deleted, byte for byte.
async fn read_all(work: &Arc<Work>, reader: &Coordinator, when: &str) {
    for live in work.model(|model| model.must_live()) {
        read_version(work, reader, live.key, live.acked.version, Expect::There(when)).await;
    }
}

/// Has every shard of what must live proven by its node.
async fn verify_all(work: &Arc<Work>, reader: &Coordinator) {
    for live in work.model(|model| model.must_live()) {
        let (key, version) = (live.key, live.acked.version);
        // How it is kept now, and where.
        let now = newest(&work.cluster).and_then(|replica| kept(replica.as_ref(), &live));
        let Some(sealed) = now else { return work.violation(format!("key {key} has lost its record")) };
        for what in unproven(reader, &sealed).await {
            work.violation(format!("version {version} of key {key}: {what}"));
        }
    }
}

/// Shards of this record that their nodes cannot prove.
async fn unproven(reader: &Coordinator, sealed: &SealedInstance) -> Vec<String> {
    let checks = match reader.verify(sealed).await {
        Ok(checks) => checks,
        Err(fault) => return vec![format!("cannot be verified: {} {fault}", fault.code)],
    };
    let told = |check: ShardCheck| {
        let why = match check.finding {
            ShardFinding::Proven => return None,
            ShardFinding::Missing => "missing".to_owned(),
            ShardFinding::Away(why) | ShardFinding::Damaged(why) => why,
        };
        Some(format!("shard {}/{}: {why}", check.stripe, check.shard))
    };
    checks.into_iter().filter_map(told).collect()
}

/// Reads every version there is, acknowledged or not: nothing may be half visible.
async fn read_every_version(work: &Arc<Work>, reader: &Coordinator) {
    for key in 0..work.cluster.scenario.keys {
        // Unknown writes may have made versions that nobody saw.
        let made = work.model(|model| model.attempts().iter().filter(|attempt| attempt.key == key).count());
        let most = work.model(|model| model.newest_seen(key)).max(u32::try_from(made).unwrap_or(u32::MAX));
        for version in 1..=most {
            read_version(work, reader, key, VersionNumber(version), Expect::Answer).await;
        }
    }
}

/// What reading a version must come to, besides the bytes that were written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Expect<'a> {
    /// It is there, at such a time.
    There(&'a str),
    /// It is there or not, the cluster being whole.
    Answer,
    /// Nothing: faults go on.
    Nothing,
}

/// Reads one version.
pub(crate) async fn read_version(
    work: &Arc<Work>,
    reader: &Coordinator,
    key: usize,
    version: VersionNumber,
    expect: Expect<'_>,
) {
    let mut query = GetQuery::whole(key_name(key));
    query.version = Some(version);
    query.freshness = Freshness::Linearizable;
    let mut last = String::new();
    // An election may be under way: a few tries, each as patient as the coordinator is.
    let tries = if matches!(expect, Expect::Nothing) { 1 } else { 4 };
    for _ in 0..tries {
        let started = work.model(Model::tick);
        let name = key_name(key);
        let question = Question { session: 0, key: name, version: Some(version.0), linearizable: true, started };
        let download = match reader.get(query.clone()).await {
            Ok(download) => {
                work.model(|model| model.answered(question, Some(download.sealed())));
                download
            }
            Err(fault) if fault.class == Class::NotFound => {
                work.model(|model| model.answered(question, None));
                if let Expect::There(when) = expect {
                    work.violation(format!("version {version} of key {key} is gone {when}"));
                }
                return;
            }
            Err(fault) => {
                last = format!("{} {}", fault.code, fault.message);
                continue;
            }
        };
        let sealed = download.sealed().clone();
        match download.bytes().await {
            Ok(bytes) => {
                return work.model(|model| model.observe_bytes(key, &sealed, 0..u64::MAX, &bytes));
            }
            Err(fault) => last = format!("{} {}", fault.code, fault.message),
        }
    }
    let when = match expect {
        Expect::There(when) => when,
        Expect::Answer => "after healing",
        Expect::Nothing => return,
    };
    work.violation(format!("version {version} of key {key} cannot be read {when}: {last}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counting_survivors_sees_the_set_that_breaks() {
        // 4+2 on three sites of two nodes, one volume each.
        let spread: Vec<Lies> = (0..6_u8).map(|shard| (shard, usize::from(shard), usize::from(shard) / 2)).collect();
        let one_site = Failures { sites: 1, nodes: 0 };
        assert!(survives(&spread, 4, one_site, (3, 6)));
        assert!(!survives(&spread[1..], 4, one_site, (3, 6)));
        assert!(survives(&spread, 4, Failures { sites: 0, nodes: 2 }, (3, 6)));
        assert!(!survives(&spread, 4, Failures { sites: 1, nodes: 1 }, (3, 6)));
        // Two copies of one shard are one shard.
        let twice: Vec<Lies> = spread.iter().map(|&(shard, node, site)| (shard.min(4), node, site)).collect();
        assert!(!survives(&twice, 4, one_site, (3, 6)));
    }
}
