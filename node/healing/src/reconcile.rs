//! Reconciliation: every shard that the catalog counts on a volume must be held by it.
//!
//! **How.** At start, and every so often, a walk over the stripes that the catalog places on the volume. What the volume's index
//! does not hold is suspected; [`crate::damage`] looks again, and tells the log.
//!
//! **Invariants.** The catalog is read before the index: what is named was durable before, so what the index lacks has been
//! moved away, deleted, or lost; a second, linearizable look tells which. Memory is bounded by a page.

use std::{sync::Arc, time::Duration};

use metrics::counter;
use pacsvault_core::{
    catalog::{SealedInstance, View, query, query::StripePosition},
    ids::VolumeId,
    shard::ShardId,
};
use pacsvault_ports::{
    env::blocking,
    peer::{Fault, Freshness},
};

use crate::{
    damage::{REPORT_MAX, counts_on, stopping, unreadable},
    upkeep::{Standing, Upkeep},
};

/// Stripes per page: some milliseconds of reading.
const PAGE_STRIPES: usize = 500;
/// Pause between pages: the walk takes a part of one core at most.
const PAGE_PAUSE: Duration = Duration::from_millis(5);
/// Pause after a walk that could not be finished, or not begun.
const RETRY_AFTER: Duration = Duration::from_secs(5);

impl Upkeep {
    /// Reconciles a volume at start and from time to time, for ever.
    pub(crate) async fn keep_reconciled(self: Arc<Self>, id: VolumeId) {
        loop {
            let pause = match self.standing(id) {
                Standing::Ours => match self.reconcile(id).await {
                    Ok(missing) => {
                        if missing > 0 {
                            pacsvault_core::sometimes!("recovery: volume lacked shards that the catalog named");
                            tracing::warn!(volume = %id, missing, "the catalog named shards that the volume does not hold");
                        }
                        self.pace.reconcile_every
                    }
                    Err(fault) => {
                        tracing::debug!(volume = %id, code = fault.code, %fault, "reconciliation put off");
                        RETRY_AFTER
                    }
                },
                Standing::NotYet | Standing::Never => RETRY_AFTER,
            };
            self.env.sleep(pause).await;
        }
    }

    /// One walk over a volume; says how many shards were reported.
    ///
    /// # Errors
    /// The catalog, the volume or the log could not serve; what was reported stays so.
    pub async fn reconcile(&self, id: VolumeId) -> Result<u64, Fault> {
        let Some(kept) = self.kept.get(&id) else { return Ok(0) };
        // Only so that a replica that was away for long does not suspect everything that was moved meanwhile.
        self.replica.wait(Freshness::Linearizable).await?;
        let (mut after, mut reported) = (None, 0);
        loop {
            let view = self.replica.view();
            let page = blocking(self.env.as_ref(), move || page(view.as_ref(), id, after)).await;
            let (expected, last) = page.ok_or_else(stopping)??;
            let store = kept.volume.store();
            let missing: Vec<ShardId> = expected.into_iter().filter(|shard| !store.contains(*shard)).collect();
            for shards in missing.chunks(REPORT_MAX) {
                reported += self.settle(id, shards.to_vec()).await?;
            }
            if last.is_none() {
                counter!("pacsvault_reconcile_passes_total").increment(1);
                counter!("pacsvault_reconcile_missing_total").increment(reported);
                return Ok(reported);
            }
            after = last;
            self.env.sleep(PAGE_PAUSE).await;
        }
    }
}

/// Shards that count on the volume among a page of stripes, and where the next page begins.
fn page(
    view: &dyn View,
    volume: VolumeId,
    after: Option<StripePosition>,
) -> Result<(Vec<ShardId>, Option<StripePosition>), Fault> {
    let stripes = query::stripes_on(view, volume, after, PAGE_STRIPES).map_err(|error| unreadable(&error))?;
    let last = stripes.last().map(|stripe| stripe.position);
    let mut known: Option<SealedInstance> = None;
    let mut expected = Vec::new();
    for stripe in stripes {
        let instance = stripe.position.instance;
        if known.as_ref().is_none_or(|known| known.seal.instance != instance) {
            known = query::by_instance(view, instance).map_err(|error| unreadable(&error))?;
        }
        let Some(sealed) = &known else { continue };
        let ids = stripe.shards.iter().map(|shard| ShardId { instance, stripe: stripe.position.stripe, shard: *shard });
        expected.extend(ids.filter(|id| counts_on(sealed, volume, *id)));
    }
    Ok((expected, last))
}
