//! The sweeper: frees the bytes of deleted instances and of attempts that were never sealed and never can be.
//!
//! **Why it is safe.** `apply(Seal)` refuses an attempt whose time lies before `catalog_time − WRITE_WINDOW`, and catalog
//! time only grows. The sweeper deletes an unsealed shard only after a linearizable read showed (a) that bound has passed
//! the attempt's time and (b) no such instance is sealed. From (a) on no later seal of it can be accepted, whatever any clock
//! says. A deleted instance is swept on the authority of its logged tombstone.
//!
//! Only a volume that the catalog gives to this very node is swept.
//!
//! Shards of a sealed instance that the catalog places elsewhere are kept: only repair may judge them.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pacsvault_core::{
    catalog::{SealedInstance, query},
    ids::{InstanceId, LogIndex, WallMillis},
    limits::WRITE_WINDOW_MILLIS,
    shard::ShardId,
};
use pacsvault_ports::peer::{Class, Fault, Freshness};

use crate::{Node, OwnVolume};

/// Shards judged per round: one page of the inventory, so that a sweep never holds a volume for long.
const PAGE_SHARDS: usize = 1_000;

/// What is to become of the shards of one instance on one volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Sealed, or may still be sealed.
    Keep,
    /// May be deleted on the authority of this log index.
    Sweep(LogIndex),
}

/// Judges an instance from a view of the catalog that was linearizable at `read`.
pub fn judge(
    instance: InstanceId,
    sealed: Option<&SealedInstance>,
    catalog_time: WallMillis,
    read: LogIndex,
) -> Verdict {
    match sealed {
        Some(SealedInstance { deleted: Some(authority), .. }) => Verdict::Sweep(*authority),
        Some(_) => Verdict::Keep,
        None if instance.time().0 < catalog_time.0.saturating_sub(WRITE_WINDOW_MILLIS) => Verdict::Sweep(read),
        None => Verdict::Keep,
    }
}

impl Node {
    /// Sweeps all volumes every `every`, for ever.
    pub async fn run_sweeper(self: Arc<Self>, every: Duration) {
        loop {
            self.env.sleep(every).await;
            for own in self.volumes.values() {
                match self.sweep(own).await {
                    Ok(0) => {}
                    Ok(count) => tracing::info!(volume = %own.volume.id(), shards = count, "swept"),
                    Err(fault) => tracing::debug!(volume = %own.volume.id(), %fault, "sweep put off"),
                }
            }
        }
    }

    /// One pass over a volume; returns how many shards were freed.
    pub async fn sweep(&self, own: &OwnVolume) -> Result<u64, Fault> {
        let replica = self.member()?;
        let mut after: Option<ShardId> = None;
        let mut swept = 0;
        loop {
            let page = own.volume.list(after, PAGE_SHARDS).await.map_err(Fault::from)?;
            let Some(last) = page.last().copied() else { return Ok(swept) };
            after = Some(last);
            // The inventory page was read before this index was confirmed: whatever it lists was judged by a later catalog.
            let read = replica.wait(Freshness::Linearizable).await?;
            // A node under a wrong id, or on another cluster's catalog, must not judge by it what this volume holds.
            let owner = replica.layout().and_then(|layout| Some(layout.volumes.get(&own.volume.id())?.node));
            if owner != Some(replica.status().node) {
                let text = format!("the catalog does not give volume {} to this node", own.volume.id());
                return Err(Fault::new(Class::Reject, "PV-NO-VOLUME", text));
            }
            // Time first: whatever is sealed later is judged by a catalog time at least this late.
            let time = replica.catalog_time();
            let view = replica.view();
            let mut by_authority: BTreeMap<LogIndex, Vec<ShardId>> = BTreeMap::new();
            for shard in page {
                let sealed = query::by_instance(view.as_ref(), shard.instance)
                    .map_err(|error| Fault::new(Class::Bug, "PV-CATALOG", error.to_string()))?;
                if let Verdict::Sweep(authority) = judge(shard.instance, sealed.as_ref(), time, read) {
                    by_authority.entry(authority).or_default().push(shard);
                }
            }
            for (authority, shards) in by_authority {
                swept += shards.len() as u64;
                own.volume.delete(shards, authority).await.map_err(Fault::from)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_is_kept_while_it_could_still_be_sealed() {
        let attempt = InstanceId::new(WallMillis(1_000_000), 7);
        let edge = 1_000_000 + WRITE_WINDOW_MILLIS;
        assert_eq!(judge(attempt, None, WallMillis(edge), LogIndex(9)), Verdict::Keep);
        assert_eq!(judge(attempt, None, WallMillis(edge + 1), LogIndex(9)), Verdict::Sweep(LogIndex(9)));
    }

    #[test]
    fn an_attempt_from_the_future_is_never_swept_by_a_slow_catalog_clock() {
        let attempt = InstanceId::new(WallMillis(u64::MAX >> 17), 7);
        assert_eq!(judge(attempt, None, WallMillis(1), LogIndex(9)), Verdict::Keep);
    }
}
