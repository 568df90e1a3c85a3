//! The sweeper: frees the bytes of deleted instances, of attempts that were never sealed and never can be, and of copies that
//! moves and repairs have left behind.
//!
//! **Why it is safe.** `apply(Seal)` refuses an attempt whose time lies before `catalog_time − WRITE_WINDOW`, and catalog
//! time only grows. The sweeper deletes an unsealed shard only after a linearizable read showed (a) that bound has passed
//! the attempt's time and (b) no such instance is sealed. From (a) on no later seal of it can be accepted, whatever any clock
//! says. A deleted instance, and one that another encoding has replaced, is swept on the authority of its logged tombstone.
//!
//! A copy of a live shard that the catalog names on another volume is stale: a move left it, or a write that chose another
//! holder when this one was slow. It goes on the authority of the stripe's last reseat, or of the seal, when a linearizable read
//! shows that every shard of the stripe is durable where it is named, that all these volumes count on nodes that are up (a
//! suspect one may be about to fall), and that they keep the contract of the newest version of its profile: then the copy is not
//! needed for anything that is promised. What lies where the catalog names it is never stale, also when it was reported damaged:
//! repair will write over it. A reader with an older record finds nothing, looks the record up again and reads from the present
//! holder: a sweep costs it a retry, never data. That no copy goes that is about to be named again is argued in
//! [`crate::stale`].
//!
//! Only a volume that the catalog gives to this very node is swept.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use metrics::counter;
use pacsvault_core::{
    catalog::{Error, SealedInstance, View, query},
    health::held,
    ids::{InstanceId, LogIndex, VolumeId, WallMillis},
    layout::{Layout, NodeState, survival::survives},
    limits::{RESEAT_WINDOW_MILLIS, WRITE_WINDOW_MILLIS},
    shard::ShardId,
};
use pacsvault_ports::{
    env::blocking,
    peer::{Class, Fault, Freshness},
};

use crate::{Node, OwnVolume, stale::Stale};

/// Shards judged per round: one page of the inventory, so that a sweep never holds a volume for long.
const PAGE_SHARDS: usize = 1_000;
/// After this long, copies found stale by one pass can be freed by the next; with a margin for catalog time, which lags behind.
const RIPE_AFTER: Duration = Duration::from_millis(RESEAT_WINDOW_MILLIS + 15_000);

/// What is to become of one shard on one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Sealed, or may still be sealed.
    Keep,
    /// May be deleted on the authority of this log index.
    Sweep(LogIndex),
    /// A copy that is not needed: may be deleted on the authority of this log index, as soon as nobody can adopt it.
    Stale(LogIndex),
}

/// A view of the catalog that was linearizable.
pub struct Ground<'a> {
    /// At this index.
    pub read: LogIndex,
    /// Catalog time then, or before.
    pub time: WallMillis,
    /// The layout then, or later.
    pub layout: &'a Layout,
}

/// Judges a shard held by volume `on`, whose record is `sealed`.
pub fn judge(shard: ShardId, on: VolumeId, sealed: Option<&SealedInstance>, ground: &Ground<'_>) -> Verdict {
    match sealed {
        Some(SealedInstance { deleted: Some(authority), .. }) => Verdict::Sweep(*authority),
        Some(sealed) => stale(shard, on, sealed, ground.layout).map_or(Verdict::Keep, Verdict::Stale),
        // PLANTED BUG: what was never sealed stays.
        None if pacsvault_core::probe::planted("orphans-never-swept") => Verdict::Keep,
        None if shard.instance.time().0 < ground.time.0.saturating_sub(WRITE_WINDOW_MILLIS) => {
            Verdict::Sweep(ground.read)
        }
        // PLANTED BUG: nobody waits for attempts that are under way.
        None if pacsvault_core::probe::planted("orphans-swept-at-once") => Verdict::Sweep(ground.read),
        None => Verdict::Keep,
    }
}

/// The authority to delete this copy of a live shard, if the present holders of its stripe keep what is promised without it.
fn stale(shard: ShardId, on: VolumeId, sealed: &SealedInstance, layout: &Layout) -> Option<LogIndex> {
    let authority = sealed.moved.get(&shard.stripe).map_or(sealed.index, |moved| moved.index);
    let seal = &sealed.seal;
    let stripe = seal.stripes.get(usize::try_from(shard.stripe.0).ok()?)?;
    let named = *stripe.placement.get(usize::from(shard.shard.0))?;
    let holders = held(&stripe.placement, stripe.persisted);
    let up = |volume| layout.node_of(volume).is_some_and(|node| node.state == NodeState::Up);
    let here = |volume| layout.counts(volume) && up(volume);
    let whole = holders.len() == stripe.placement.len() && holders.iter().all(|one| here(one.volume));
    let contract = &layout.profiles.get(&seal.profile)?.contract;
    let keeps = named != on && whole && survives(&holders, seal.code.data(), contract, layout).is_ok();
    keeps.then_some(authority)
}

impl Node {
    /// Sweeps all volumes every `every`, for ever; sooner when a pass found stale copies, so that a drained volume, or one that
    /// shards were moved away from, has room soon.
    pub async fn run_sweeper(self: Arc<Self>, every: Duration) {
        let mut pause = every;
        loop {
            self.env.sleep(pause).await;
            let mut freed = 0;
            for own in self.volumes.values() {
                match self.sweep(own).await {
                    Ok(0) => {}
                    Ok(count) => {
                        tracing::info!(volume = %own.volume.id(), shards = count, "swept");
                        freed += count;
                    }
                    Err(fault) => tracing::debug!(volume = %own.volume.id(), %fault, "sweep put off"),
                }
            }
            pause = next_pause(every, pause, freed, self.stale.values().any(Stale::waits));
        }
    }

    /// One pass over a volume; returns how many shards were freed.
    pub async fn sweep(&self, own: &OwnVolume) -> Result<u64, Fault> {
        let none = || Fault::new(Class::NotFound, "PV-NO-VOLUME", "the volume is not on this node");
        let stale = self.stale.get(&own.volume.id()).ok_or_else(none)?;
        let mut after: Option<ShardId> = None;
        let mut swept = 0;
        loop {
            let page = own.volume.list(after, PAGE_SHARDS).await.map_err(Fault::from)?;
            let Some(last) = page.last().copied() else { return Ok(swept) };
            after = Some(last);
            swept += self.sweep_page(own, stale, page).await?;
        }
    }

    async fn sweep_page(&self, own: &OwnVolume, stale: &Stale, page: Vec<ShardId>) -> Result<u64, Fault> {
        let (replica, id) = (self.member()?, own.volume.id());
        stale.watch(&page);
        // The inventory page was read before this index was confirmed: whatever it lists was judged by a later catalog.
        let read = replica.wait(Freshness::Linearizable).await?;
        // A node under a wrong id, or on another cluster's catalog, must not judge by it what this volume holds.
        let layout = replica
            .layout()
            .filter(|layout| layout.volumes.get(&id).is_some_and(|volume| volume.node == replica.status().node));
        let Some(layout) = layout else {
            pacsvault_core::sometimes!("recovery: sweep refused: the catalog does not give the volume to this node");
            let text = format!("the catalog does not give volume {id} to this node");
            return Err(Fault::new(Class::Reject, "PV-NO-VOLUME", text));
        };
        // Time first: whatever is sealed later is judged by a catalog time at least this late.
        let (time, view) = (replica.catalog_time(), replica.view());
        let judging = move || {
            let judged = judge_page(view.as_ref(), &page, id, &Ground { read, time, layout: &layout });
            judged.map(|judged| (page, judged))
        };
        let judged = blocking(self.env.as_ref(), judging).await;
        let stopping = || Fault::new(Class::Retry, "PV-STOPPING", "the node is stopping");
        let catalog = |error: Error| Fault::new(Class::Bug, "PV-CATALOG", error.to_string());
        let (page, Judged { by_authority, copies }) = judged.ok_or_else(stopping)?.map_err(catalog)?;
        let ripe = stale.judged(&page, &copies.keys().copied().collect::<BTreeSet<_>>(), time);
        let mut swept = 0;
        for (authority, shards) in by_authority {
            // PLANTED BUG: another entry is named than the one that allows it.
            let wrong = u64::from(pacsvault_core::probe::planted("delete-on-wrong-authority"));
            let authority = LogIndex(authority.0.saturating_sub(wrong));
            swept += own.volume.delete(shards, authority).await.map_err(Fault::from)?;
        }
        for (authority, shards) in grouped(&ripe, &copies) {
            let (doomed, deletion) = stale.doom(&shards, |doomed| own.volume.delete(doomed, authority));
            if !doomed.is_empty() {
                pacsvault_core::sometimes!("recovery: stale copy swept");
            }
            let deleted = deletion.await;
            stale.done(&doomed);
            swept += deleted.map_err(Fault::from)?;
        }
        counter!("pacsvault_swept_shards_total", "volume" => id.to_string()).increment(swept);
        Ok(swept)
    }
}

/// How long to wait after a pass that came after `pause` and freed so many shards; `waits` when copies are not ripe yet.
fn next_pause(every: Duration, pause: Duration, freed: u64, waits: bool) -> Duration {
    // An early pass in vain (catalog time stands still, or volumes are at fault) is not repeated early.
    let in_vain = pause < every && freed == 0;
    if waits && !in_vain { every.min(RIPE_AFTER) } else { every }
}

/// What may be deleted of one page.
#[derive(Default)]
struct Judged {
    by_authority: BTreeMap<LogIndex, Vec<ShardId>>,
    /// Stale copies.
    copies: BTreeMap<ShardId, LogIndex>,
}

fn mark_kept(shard: ShardId, on: VolumeId, sealed: Option<&SealedInstance>) {
    let Some(sealed) = sealed else {
        pacsvault_core::sometimes!("recovery: orphan kept: it may yet be sealed");
        return;
    };
    let stripe = usize::try_from(shard.stripe.0).ok().and_then(|index| sealed.seal.stripes.get(index));
    if stripe.is_some_and(|stripe| stripe.placement.get(usize::from(shard.shard.0)) != Some(&on)) {
        pacsvault_core::sometimes!("recovery: copy kept: its stripe is not whole without it");
    }
}

/// Looks up and judges each shard of a page, which is in order. It blocks.
fn judge_page(view: &dyn View, page: &[ShardId], on: VolumeId, ground: &Ground<'_>) -> Result<Judged, Error> {
    let mut judged = Judged::default();
    let mut known: Option<(InstanceId, Option<SealedInstance>)> = None;
    for shard in page {
        if known.as_ref().is_none_or(|(instance, _)| *instance != shard.instance) {
            known = Some((shard.instance, query::by_instance(view, shard.instance)?));
        }
        let sealed = known.as_ref().and_then(|(_, sealed)| sealed.as_ref());
        match judge(*shard, on, sealed, ground) {
            Verdict::Keep => mark_kept(*shard, on, sealed),
            Verdict::Sweep(authority) => {
                if sealed.is_some() {
                    pacsvault_core::sometimes!("recovery: shard of a deleted instance swept");
                } else {
                    pacsvault_core::sometimes!("recovery: orphan of an attempt that was never sealed swept");
                }
                judged.by_authority.entry(authority).or_default().push(*shard);
            }
            Verdict::Stale(authority) => {
                judged.copies.insert(*shard, authority);
            }
        }
    }
    Ok(judged)
}

fn grouped(ripe: &[ShardId], copies: &BTreeMap<ShardId, LogIndex>) -> BTreeMap<LogIndex, Vec<ShardId>> {
    let mut groups: BTreeMap<LogIndex, Vec<ShardId>> = BTreeMap::new();
    for shard in ripe {
        if let Some(authority) = copies.get(shard) {
            groups.entry(*authority).or_default().push(*shard);
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;
    use pacsvault_core::ids::{ClusterId, LayoutVersion, ShardIndex, StripeIndex};

    const ON: VolumeId = VolumeId([1; 16]);

    fn unsealed(attempt: InstanceId, time: u64) -> Verdict {
        let layout = Layout {
            cluster: ClusterId([0; 16]),
            version: LayoutVersion(1),
            format: 2,
            nodes: BTreeMap::new(),
            volumes: BTreeMap::new(),
            profiles: BTreeMap::new(),
            default_profile: "standard".parse().expect("a name"),
        };
        let shard = ShardId { instance: attempt, stripe: StripeIndex(0), shard: ShardIndex(0) };
        let ground = Ground { read: LogIndex(9), time: WallMillis(time), layout: &layout };
        judge(shard, ON, None, &ground)
    }

    #[test]
    fn an_attempt_is_kept_while_it_could_still_be_sealed() {
        let attempt = InstanceId::new(WallMillis(1_000_000), 7);
        let edge = 1_000_000 + WRITE_WINDOW_MILLIS;
        assert_eq!(unsealed(attempt, edge), Verdict::Keep);
        assert_eq!(unsealed(attempt, edge + 1), Verdict::Sweep(LogIndex(9)));
    }

    #[test]
    fn stale_copies_are_looked_at_again_as_soon_as_they_can_go_and_not_for_ever() {
        let day = Duration::from_secs(86_400);
        assert_eq!(next_pause(day, day, 7, false), day);
        assert_eq!(next_pause(day, day, 0, true), RIPE_AFTER, "found");
        assert_eq!(next_pause(day, RIPE_AFTER, 9, true), RIPE_AFTER, "freed, and others were found");
        assert_eq!(next_pause(day, RIPE_AFTER, 0, true), day, "in vain");
        let second = Duration::from_secs(1);
        assert_eq!(next_pause(second, second, 0, true), second, "never later than asked for");
    }

    #[test]
    fn an_attempt_from_the_future_is_never_swept_by_a_slow_catalog_clock() {
        assert_eq!(unsealed(InstanceId::new(WallMillis(u64::MAX >> 17), 7), 1), Verdict::Keep);
    }
}
