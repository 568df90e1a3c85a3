//! Damage on this node's volumes, from the first suspicion to the log.
//!
//! **How.** Whoever meets a shard that cannot be read, or is not there, suspects it. Then, in this order: a linearizable read of
//! the catalog says that the shard is live, belongs here and counts; the shard is proven from the device once more; if that
//! fails again, the log is told.
//!
//! **Invariants.** Only what the catalog counts here is reported, each shard once until it is repaired. A report can come too
//! often or too late (then a sound shard is put again, which is answered at once), and can never claim more than there is. A
//! suspicion that is lost is raised again by the next read, reconciliation or scrub.

use std::{
    collections::BTreeSet,
    sync::{Arc, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::counter;
use pacsvault_core::{
    catalog::{Command, Outcome, SealedInstance, View, query},
    ids::VolumeId,
    shard::ShardId,
};
use pacsvault_ports::{
    crash,
    env::blocking,
    peer::{Class, Fault, Freshness, ShardProof},
};
use pacsvault_volume::{Error, Volume};

use crate::upkeep::{Standing, Upkeep};

/// Most shards in one report: the log allows 1 000.
pub(crate) const REPORT_MAX: usize = 500;
/// Most suspicions kept: 64 bytes each.
const SUSPECTS_MAX: usize = 100_000;
/// Pause after a report that could not be made.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// Proves one shard from the device.
///
/// # Errors
/// The volume cannot be asked now: it says nothing about the shard.
pub async fn proof(volume: &Volume, id: ShardId) -> Result<ShardProof, Error> {
    match volume.verify(id).await {
        Ok(verified) => Ok(ShardProof::Sound(verified.root)),
        Err(Error::NotFound { .. }) => Ok(ShardProof::Missing),
        Err(error @ (Error::Corrupt { .. } | Error::Read { .. })) => {
            Ok(ShardProof::Damaged(Fault::from(error).message))
        }
        Err(error) => Err(error),
    }
}

/// Whether the catalog counts the shard on that volume.
pub(crate) fn counts_on(sealed: &SealedInstance, volume: VolumeId, id: ShardId) -> bool {
    let stripe = usize::try_from(id.stripe.0).ok().and_then(|index| sealed.seal.stripes.get(index));
    sealed.deleted.is_none()
        && stripe.is_some_and(|stripe| {
            let here = stripe.placement.get(usize::from(id.shard.0)) == Some(&volume);
            here && stripe.persisted & (1 << id.shard.0) != 0
        })
}

/// Whether a sound shard is the one that the catalog knows.
pub(crate) fn belongs(sealed: &SealedInstance, id: ShardId, proof: &ShardProof) -> bool {
    let stripe = usize::try_from(id.stripe.0).ok().and_then(|index| sealed.seal.stripes.get(index));
    match (stripe, proof) {
        (Some(stripe), ShardProof::Sound(root)) => stripe.shard_root == *root,
        (None, ShardProof::Sound(_)) => true,
        (_, ShardProof::Missing | ShardProof::Damaged(_)) => false,
    }
}

impl Upkeep {
    fn suspects(&self) -> MutexGuard<'_, BTreeSet<(VolumeId, ShardId)>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A shard of this node's volume could not be read or was not found: looked into soon.
    pub fn suspect(&self, volume: VolumeId, shard: ShardId) {
        let mut suspects = self.suspects();
        if self.kept.contains_key(&volume) && suspects.len() < SUSPECTS_MAX {
            suspects.insert((volume, shard));
            self.suspected.notify_one();
        }
    }

    /// Looks into suspicions for ever.
    pub(crate) async fn settle_suspects(self: Arc<Self>) {
        loop {
            let Some((volume, shards)) = self.next_suspects() else {
                self.suspected.notified().await;
                continue;
            };
            let settled = match self.standing(volume) {
                Standing::Never => Ok(0),
                Standing::NotYet => Err(Fault::new(Class::Retry, "PV-UPGRADE-PENDING", "damage cannot be told yet")),
                Standing::Ours => self.look_into(volume, shards.clone()).await,
            };
            if let Err(fault) = settled {
                tracing::debug!(%volume, code = fault.code, %fault, "suspected shards are looked into later");
                for shard in shards {
                    self.suspect(volume, shard);
                }
                self.env.sleep(RETRY_AFTER).await;
            }
        }
    }

    /// Some suspects of one volume, off the list.
    fn next_suspects(&self) -> Option<(VolumeId, Vec<ShardId>)> {
        let mut suspects = self.suspects();
        let volume = suspects.first()?.0;
        let of_one = suspects.iter().take_while(|(on, _)| *on == volume).take(REPORT_MAX);
        let taken: Vec<ShardId> = of_one.map(|(_, shard)| *shard).collect();
        for shard in &taken {
            suspects.remove(&(volume, *shard));
        }
        Some((volume, taken))
    }

    /// As [`Upkeep::settle`], for what this replica counts here: readers with old records ask for much that was moved away.
    async fn look_into(&self, volume: VolumeId, shards: Vec<ShardId>) -> Result<u64, Fault> {
        let view = self.replica.view();
        let look = move || counted(view.as_ref(), volume, &shards);
        let counted = blocking(self.env.as_ref(), look).await.ok_or_else(stopping)??;
        let shards: Vec<ShardId> = counted.into_iter().map(|(shard, _)| shard).collect();
        if shards.is_empty() { Ok(0) } else { self.settle(volume, shards).await }
    }

    /// Looks into suspected shards of a volume that is ours and reports those that are not as the catalog says; how many.
    ///
    /// # Errors
    /// The catalog, the volume or the log could not serve; nothing is lost by asking again.
    pub(crate) async fn settle(&self, volume: VolumeId, shards: Vec<ShardId>) -> Result<u64, Fault> {
        let Some(kept) = self.kept.get(&volume) else { return Ok(0) };
        self.replica.wait(Freshness::Linearizable).await?;
        if self.standing(volume) != Standing::Ours {
            return Ok(0);
        }
        let view = self.replica.view();
        let look = move || counted(view.as_ref(), volume, &shards);
        let counted = blocking(self.env.as_ref(), look).await.ok_or_else(stopping)??;
        let mut damaged = Vec::new();
        for (shard, sealed) in counted {
            // After the read: what was put here or moved away meanwhile is judged by what is there now.
            let proof = proof(&kept.volume, shard).await.map_err(Fault::from)?;
            if !belongs(&sealed, shard, &proof) {
                tracing::warn!(%volume, %shard, ?proof, "a shard is not what it should be; it will be repaired");
                damaged.push(shard);
            } else {
                pacsvault_core::sometimes!("recovery: suspected shard found sound");
            }
        }
        for shards in damaged.chunks(REPORT_MAX) {
            self.report(volume, shards.to_vec()).await?;
        }
        let count = damaged.len() as u64;
        kept.age().damaged += count;
        counter!("pacsvault_scrub_damaged_total", "volume" => volume.to_string()).increment(count);
        Ok(count)
    }

    async fn report(&self, volume: VolumeId, shards: Vec<ShardId>) -> Result<(), Fault> {
        // CRASH(healing.damage.1): nothing was told; reading, reconciling or scrubbing finds it again.
        crash::point("healing.damage.1");
        let outcomes = self.replica.propose(vec![Command::ReportDamage { volume, shards }]).await?;
        // CRASH(healing.damage.2): told or to be told; if it was, the next look finds that the shard counts no more.
        crash::point("healing.damage.2");
        match outcomes.into_iter().next() {
            Some(Outcome::Rejected(why)) => Err(Fault::new(Class::Retry, "PV-REJECTED", why.to_string())),
            Some(_) => Ok(()),
            None => Err(Fault::new(Class::Bug, "PV-BUG", "a proposal was answered with nothing")),
        }
    }
}

/// Those of the shards that the catalog counts on the volume, with their records.
fn counted(
    view: &dyn View,
    volume: VolumeId,
    shards: &[ShardId],
) -> Result<Vec<(ShardId, Arc<SealedInstance>)>, Fault> {
    let mut known: Option<Arc<SealedInstance>> = None;
    let mut counted = Vec::new();
    for shard in shards {
        if known.as_ref().is_none_or(|known| known.seal.instance != shard.instance) {
            known = query::by_instance(view, shard.instance).map_err(|error| unreadable(&error))?.map(Arc::new);
        }
        if let Some(sealed) = known.as_ref().filter(|sealed| counts_on(sealed, volume, *shard)) {
            counted.push((*shard, sealed.clone()));
        }
    }
    Ok(counted)
}

pub(crate) fn unreadable(error: &pacsvault_core::catalog::Error) -> Fault {
    Fault::new(Class::Bug, "PV-CATALOG", format!("the catalog of this node cannot be read: {error}"))
}

pub(crate) fn stopping() -> Fault {
    Fault::new(Class::Retry, "PV-STOPPING", "this node is stopping")
}
