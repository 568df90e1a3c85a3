//! The judge of stored bytes: what the catalog says, against what a power failure at this instant would leave on the disks.
//!
//! **Invariants.** Nothing here trusts the code under test but the catalog's words and a volume's recovery: shards are made
//! again from the content that clients wrote and compared byte by byte, and survival is counted by brute force.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use pacsvault_consensus::Replica;
use pacsvault_core::{
    catalog::{SealedInstance, query},
    codec::Coder,
    ids::{InstanceId, LogIndex, ProfileName, ShardIndex, StripeIndex, VersionNumber, VolumeId},
    layout::{Contract, Layout, NodeState, Profile, VolumeState, survival::covers},
    shard::ShardId,
};
use pacsvault_ports::peer::Freshness;
use pacsvault_volume::{Options as VolumeOptions, Owner, Store};

use crate::{
    audit::{self, Expect, Lies, homes, persisted, survives},
    cluster::Cluster,
    exec::Life,
    model::Live,
    rng::SimRng,
    workload::{Work, key_name},
};

/// Between two looks behind the catalog while faults go on.
const LOOK_EVERY: Duration = Duration::from_millis(2_500);
/// Between two looks for disks that were struck.
const LOOK_AFTER_ROT: Duration = Duration::from_millis(100);
/// Stores as a power failure would leave them; `None` for one that does not even open.
pub(crate) type Stores = BTreeMap<VolumeId, Option<Store>>;

/// The volume as a power failure now would leave it; `None` when it does not even open.
pub(crate) fn survivor(cluster: &Cluster, volume: VolumeId) -> Option<Store> {
    let (copy, node) = {
        let machines = cluster.machines();
        let machine = machines.iter().find(|machine| machine.volumes.iter().any(|own| own.id == volume))?;
        let own = machine.volumes.iter().find(|own| own.id == volume)?;
        (own.disk.survivors(cluster.sim.random(SimRng::bits)), machine.name.clone())
    };
    let owner = Owner { cluster: cluster.id(), node };
    let options = VolumeOptions::new(cluster.sim.random(SimRng::bits));
    crate::coverage::as_instrument(|| Store::open(Arc::new(copy), &owner, options)).ok().map(|(store, _)| store)
}

/// All volumes at this instant.
fn survivors(cluster: &Cluster) -> Stores {
    let ids: Vec<VolumeId> = {
        let machines = cluster.machines();
        machines.iter().flat_map(|machine| machine.volumes.iter().map(|volume| volume.id)).collect()
    };
    ids.into_iter().map(|id| (id, survivor(cluster, id))).collect()
}

/// The replica that has applied most.
pub(crate) fn newest(cluster: &Cluster) -> Option<Arc<dyn Replica>> {
    newest_of(cluster, |_| true)
}

/// The replica that has applied most of those on machines that are `wanted`.
pub(crate) fn newest_of(cluster: &Cluster, wanted: impl Fn(usize) -> bool) -> Option<Arc<dyn Replica>> {
    let replicas = (0..cluster.count()).filter(|at| wanted(*at)).filter_map(|at| cluster.replica(at));
    replicas.max_by_key(|replica| replica.status().applied)
}

/// The record of an instance in this replica's catalog, deleted or not.
pub(crate) fn record(replica: &dyn Replica, instance: InstanceId) -> Option<SealedInstance> {
    query::by_instance(replica.view().as_ref(), instance).ok().flatten()
}

/// How a version is kept now, by this replica's catalog: perhaps in another encoding than its receipt says.
pub(crate) fn kept(replica: &dyn Replica, live: &Live) -> Option<SealedInstance> {
    query::lookup(replica.view().as_ref(), &key_name(live.key), Some(live.acked.version)).ok().flatten()
}

/// Shards of each stripe of the content, made again.
fn expected(content: &Bytes, sealed: &SealedInstance) -> Vec<Vec<Bytes>> {
    let coder = Coder::new(sealed.seal.code);
    let mut offset = 0;
    let mut cut = |bytes: u64| {
        let end = offset + usize::try_from(bytes).unwrap_or(usize::MAX);
        let stripe = content.slice(offset..end.min(content.len()));
        offset = end;
        coder.encode(stripe).expect("a short stripe")
    };
    sealed.seal.stripes.iter().map(|stripe| cut(stripe.stripe_bytes)).collect()
}

/// What one shard on one volume is: `Ok` when it has exactly these bytes.
fn sound(stores: &Stores, volume: VolumeId, id: ShardId, bytes: &Bytes) -> Result<(), String> {
    let store = match stores.get(&volume) {
        None => return Err("the volume is no more".to_owned()),
        Some(None) => return Err("the volume does not open".to_owned()),
        Some(Some(store)) => store,
    };
    match store.read(id, 0, u64::MAX) {
        Ok(read) if read.data == *bytes => Ok(()),
        Ok(_) => Err("it has other bytes than were written".to_owned()),
        Err(why) => Err(why.to_string()),
    }
}

/// Names of shards that count: what a record says is durable, where, and since which reseat.
type Named = BTreeSet<(ShardId, VolumeId, Option<LogIndex>)>;

fn named(sealed: &SealedInstance) -> Named {
    let instance = sealed.seal.instance;
    let of = |(stripe, index): (&pacsvault_core::catalog::StripeSeal, u32)| {
        let since = sealed.moved.get(&StripeIndex(index)).map(|moved| moved.index);
        let id = move |shard| ShardId { instance, stripe: StripeIndex(index), shard: ShardIndex(shard) };
        persisted(stripe).map(move |(shard, volume)| (id(shard), volume, since)).collect::<Vec<_>>()
    };
    sealed.seal.stripes.iter().zip(0_u32..).flat_map(of).collect()
}

/// All that must live, as it is kept now, and its names.
fn all_named(work: &Work, replica: &dyn Replica) -> BTreeMap<(usize, VersionNumber), (Live, SealedInstance, Named)> {
    let live = work.model(|model| model.must_live());
    let of = |live: Live| {
        let record = kept(replica, &live)?;
        let names = named(&record);
        Some(((live.key, live.acked.version), (live, record, names)))
    };
    live.into_iter().filter_map(of).collect()
}

/// A volume that the record was sealed on although it had been given up before.
fn on_a_fenced_volume(cluster: &Cluster, layout: &Layout, record: &SealedInstance, names: &Named) -> Option<VolumeId> {
    let gone = |volume: &VolumeId| layout.volumes.get(volume).is_some_and(|known| known.state == VolumeState::Fenced);
    let before = |volume: &VolumeId| cluster.chronicle.fenced_by(*volume).is_some_and(|by| record.index > by);
    let mut sealed = names.iter().filter(|(_, _, since)| since.is_none()).map(|(_, volume, _)| *volume);
    sealed.find(|volume| gone(volume) && before(volume))
}

/// Looks behind the catalog for ever: what it calls durable and no fault can have hurt is there, byte for byte, and
/// nothing was sealed on a volume that had been given up.
///
/// What is named before the look and, by a linearizable read, still named after it, was named at that instant.
pub async fn watch_promises(work: Arc<Work>) {
    let cluster = &work.cluster;
    loop {
        cluster.sim.sleep(Life::HARNESS, LOOK_EVERY).await;
        let Some(replica) = newest(cluster) else { continue };
        let before = all_named(&work, replica.as_ref());
        let stores = survivors(cluster);
        let names = before.values().flat_map(|(_, _, names)| names);
        let hurt: BTreeSet<(ShardId, VolumeId)> = names
            .filter(|(id, volume, _)| cluster.may_be_hurt(*volume, id.instance))
            .map(|(id, volume, _)| (*id, *volume))
            .collect();
        if replica.wait(Freshness::Linearizable).await.is_err() {
            continue;
        }
        let after = all_named(&work, replica.as_ref());
        cluster.sim.hit("catalog compared with the disks");
        let Some(layout) = replica.layout() else { continue };
        for (version, (live, record, names)) in &before {
            let Some((_, _, still)) = after.get(version) else { continue };
            if let Some(volume) = on_a_fenced_volume(cluster, &layout, record, names) {
                let (index, instance) = (record.index, record.seal.instance);
                return work.violation(format!("entry {index} sealed {instance} on volume {volume}, fenced before"));
            }
            let shards = expected(&live.content, record);
            for (id, volume, _) in names.intersection(still).filter(|(id, volume, _)| !hurt.contains(&(*id, *volume))) {
                let bytes = &shards[id.stripe.0 as usize][usize::from(id.shard.0)];
                if let Err(why) = sound(&stores, *volume, *id, bytes) {
                    work.violation(format!("the catalog names shard {id} on volume {volume}, where it is not: {why}"));
                    return;
                }
            }
        }
    }
}

/// Reads all that must live whenever a disk was struck, as clients that happen to ask then: by whichever way they get them,
/// bytes are those that were written.
pub async fn watch_rot(work: Arc<Work>) {
    let cluster = &work.cluster;
    let mut seen = 0;
    loop {
        cluster.sim.sleep(Life::HARNESS, LOOK_AFTER_ROT).await;
        let struck = cluster.strikes();
        if struck == seen {
            continue;
        }
        seen = struck;
        cluster.sim.hit("everything asked for after a disk was struck");
        let reader = work.client(cluster.sim.random(|rng| rng.index(cluster.scenario.sites))).coordinator();
        for live in work.model(|model| model.must_live()) {
            audit::read_version(&work, &reader, live.key, live.acked.version, Expect::Nothing).await;
        }
    }
}

/// Why nothing names a shard that lies on a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The catalog names another volume, since this entry.
    Elsewhere(LogIndex),
    /// This entry deleted its version, or put another encoding in its place.
    Deleted(LogIndex),
    /// Its attempt was not sealed.
    Unsealed,
}

/// A shard that nothing names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leak {
    /// Which.
    pub shard: ShardId,
    /// Where it lies.
    pub volume: VolumeId,
    /// Why it should not.
    pub why: Why,
}

/// What a proof of everything found.
#[derive(Debug, Clone, Default)]
pub struct Whole {
    /// Shards on volumes of the cluster that nothing names. Each is due to be swept.
    pub leaks: Vec<Leak>,
}

/// Proves that everything acknowledged keeps the contract of its profile: by the catalog, and by the disks.
///
/// # Errors
/// The first thing that is not so.
pub fn whole(work: &Work) -> Result<Whole, String> {
    let cluster = &work.cluster;
    let replica = newest(cluster).ok_or("no replica runs")?;
    let layout = replica.layout().ok_or("no layout")?;
    for node in layout.nodes.values().filter(|node| node.state != NodeState::Removed) {
        if node.state != NodeState::Up || node.draining {
            return Err(format!("node {} is {:?}, draining {}", node.name, node.state, node.draining));
        }
    }
    let (asides, count) = query::asides(replica.view().as_ref(), 1).map_err(|error| error.to_string())?;
    if count > 0 {
        return Err(format!("{count} stripes are set aside, such as {asides:?}"));
    }
    let mut records = Vec::new();
    for live in work.model(|model| model.must_live()) {
        let (key, version) = (live.key, live.acked.version);
        let now =
            kept(replica.as_ref(), &live).ok_or_else(|| format!("version {version} of key {key} has no record"))?;
        let instance = now.seal.instance;
        for (stripe, index) in now.seal.stripes.iter().zip(0_u32..) {
            let name = format!("stripe {instance}/{index} on {:?}", stripe.placement);
            if stripe.persisted.count_ones() as usize != now.seal.code.total() {
                return Err(format!("{name} has shards {:b}", stripe.persisted));
            }
            if let Some(volume) = stripe.placement.iter().find(|volume| !layout.counts(**volume)) {
                return Err(format!("{name} counts on volume {volume}, which does not count"));
            }
        }
        records.push((live, now));
    }
    prove(work, &records)?;
    Ok(Whole { leaks: leaks(cluster, replica.as_ref(), &layout)? })
}

fn prove(work: &Work, records: &[(Live, SealedInstance)]) -> Result<(), String> {
    let cluster = &work.cluster;
    let (homes, stores) = (homes(cluster), survivors(cluster));
    cluster.sim.hit("everything proven on the disks");
    for (live, record) in records {
        let instance = record.seal.instance;
        let asked = cluster.asked(&record.seal.key.study);
        let owed = promised(&live.acked, record, &asked, cluster.scenario.profiles())?;
        for ((stripe, index), shards) in record.seal.stripes.iter().zip(0_u32..).zip(expected(&live.content, record)) {
            let mut lies: Vec<Lies> = Vec::new();
            for (shard, volume) in persisted(stripe) {
                let id = ShardId { instance, stripe: StripeIndex(index), shard: ShardIndex(shard) };
                sound(&stores, volume, id, &shards[usize::from(shard)])
                    .map_err(|why| format!("shard {id} on volume {volume}: {why}"))?;
                let (at, site) = homes[&volume];
                lies.push((shard, at, site));
            }
            if stripe.placement.iter().collect::<BTreeSet<_>>().len() < stripe.placement.len() {
                cluster.sim.hit("two shards of a healed stripe on one volume");
            }
            for failures in owed.iter().flat_map(|contract| contract.failures()) {
                if !survives(&lies, record.seal.code.data(), *failures, cluster.extent()) {
                    return Err(format!("stripe {instance}/{index} does not survive {failures}: {lies:?}"));
                }
            }
        }
        if instance != live.acked.seal.instance {
            cluster.sim.hit("other encoding of what was acknowledged proven on the disks");
        }
    }
    Ok(())
}

/// What a version must keep that was acknowledged as `acked` and is kept as `record` now: the contract of the profile it is in,
/// and that of its receipt's profile, unless people asked for one that promises less.
///
/// # Errors
/// It is not that content, or kept in a profile that neither its writer nor anybody asked for.
fn promised<'a>(
    acked: &SealedInstance,
    record: &SealedInstance,
    asked: &BTreeSet<ProfileName>,
    profiles: impl Iterator<Item = &'a Profile> + Clone,
) -> Result<Vec<Contract>, String> {
    let of = |what: &str| format!("version {} of {}: {what}", acked.version, acked.seal.key);
    let (was, is) = (&acked.seal, &record.seal);
    if (&was.key, was.digest, was.size_bytes, acked.version) != (&is.key, is.digest, is.size_bytes, record.version) {
        return Err(of("its record is of other content than its receipt"));
    }
    if was.profile != is.profile && !asked.contains(&is.profile) {
        return Err(of(&format!("it is kept in profile {}, which nobody asked for", is.profile)));
    }
    let contract = |name: &ProfileName| {
        let profile = profiles.clone().find(|profile| profile.name == *name);
        profile.map(|profile| profile.contract.clone()).ok_or_else(|| of(&format!("there is no profile {name}")))
    };
    let (receipt, present) = (contract(&was.profile)?, contract(&is.profile)?);
    let mut weaker = false;
    for name in asked {
        weaker |= !covers(contract(name)?.failures(), &receipt);
    }
    Ok(if weaker { vec![present] } else { vec![present, receipt] })
}

/// Looks through all volumes that the catalog counts.
fn leaks(cluster: &Cluster, replica: &dyn Replica, layout: &Layout) -> Result<Vec<Leak>, String> {
    let mut found = Vec::new();
    let view = replica.view();
    for (volume, store) in survivors(cluster).into_iter().filter(|(volume, _)| layout.counts(*volume)) {
        let Some(store) = store else { continue };
        for shard in store.list(None, usize::MAX) {
            let sealed = query::by_instance(view.as_ref(), shard.instance).map_err(|error| error.to_string())?;
            found.extend(unnamed(shard, volume, sealed.as_ref()).map(|why| Leak { shard, volume, why }));
        }
    }
    Ok(found)
}

/// Why nothing names this shard on this volume; `None` when its record does.
fn unnamed(shard: ShardId, volume: VolumeId, sealed: Option<&SealedInstance>) -> Option<Why> {
    let Some(sealed) = sealed else { return Some(Why::Unsealed) };
    if let Some(at) = sealed.deleted {
        return Some(Why::Deleted(at));
    }
    let since = sealed.moved.get(&shard.stripe).map_or(sealed.index, |moved| moved.index);
    let stripe = sealed.seal.stripes.get(shard.stripe.0 as usize);
    let named = stripe.and_then(|stripe| stripe.placement.get(usize::from(shard.shard.0)));
    (named != Some(&volume)).then_some(Why::Elsewhere(since))
}

/// One version that must live, and what is left of it.
pub(crate) struct Standing {
    /// Of which key.
    pub key: usize,
    /// Its record now.
    pub sealed: SealedInstance,
    /// Every stripe has enough sound shards where the catalog names them.
    pub readable: bool,
    /// Every stripe has enough sound shards, those of former homes counted: they stay until the new homes keep the contract.
    pub recoverable: bool,
    /// Stripes of which too few sound shards are left anywhere they were placed.
    pub lost: Vec<StripeIndex>,
}

/// What is left on the disks of all that must live; `None` when no replica runs.
pub(crate) fn standing(work: &Work) -> Option<Vec<Standing>> {
    standing_on(work, |_| true)
}

/// As [`standing`], with nothing but the disks and replicas of machines that are `wanted`.
pub(crate) fn standing_on(work: &Work, wanted: impl Fn(usize) -> bool) -> Option<Vec<Standing>> {
    let replica = newest_of(&work.cluster, &wanted)?;
    let (mut stores, homes) = (survivors(&work.cluster), homes(&work.cluster));
    stores.retain(|volume, _| homes.get(volume).is_some_and(|(at, _)| wanted(*at)));
    let of = |live: Live| {
        let sealed = kept(replica.as_ref(), &live)?;
        let shards = expected(&live.content, &sealed);
        let (mut readable, mut recoverable, mut lost) = (true, true, Vec::new());
        for (stripe, index) in sealed.seal.stripes.iter().zip(0_u32..) {
            let bytes = &shards[index as usize];
            let left = |shard: u8, volume: VolumeId| {
                let id =
                    ShardId { instance: sealed.seal.instance, stripe: StripeIndex(index), shard: ShardIndex(shard) };
                sound(&stores, volume, id, &bytes[usize::from(shard)]).is_ok()
            };
            let needed = sealed.seal.code.data();
            let named: BTreeSet<u8> =
                persisted(stripe).filter(|(shard, volume)| left(*shard, *volume)).map(|(shard, _)| shard).collect();
            let former = sealed.moved.get(&StripeIndex(index)).map(|moved| &moved.former).into_iter().flatten();
            let former = former.filter(|(shard, volume)| left(shard.0, **volume)).map(|(shard, _)| shard.0);
            let anywhere: BTreeSet<u8> = named.iter().copied().chain(former).collect();
            let placed = (0_u8..).zip(&stripe.placement).filter(|(shard, volume)| left(*shard, **volume)).count();
            readable &= named.len() >= needed;
            recoverable &= anywhere.len() >= needed;
            if placed < needed {
                lost.push(StripeIndex(index));
            }
        }
        Some(Standing { key: live.key, sealed, readable, recoverable, lost })
    };
    Some(work.model(|model| model.must_live()).into_iter().filter_map(of).collect())
}

#[cfg(test)]
mod tests;
