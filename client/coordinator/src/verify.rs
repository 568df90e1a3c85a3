//! Re-reads every shard of an instance, whole, and proves it against the root in the catalog.

use std::{collections::BTreeSet, sync::Arc};

use futures::{StreamExt, stream};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{NodeId, ShardIndex, SiteName, StripeIndex, VolumeId},
    layout::Layout,
};
use pacsvault_ports::peer::{Class, Fault};

use crate::{cluster::Cluster, fetch::Question, lookup::RENEWALS_MAX};

/// Shards read at once by one verification: bounded so that it never crowds out clients.
const READS_AT_ONCE: usize = 4;

/// What became of one shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardFinding {
    /// Read whole and proven.
    Proven,
    /// Was never persisted when the write was sealed: repair work.
    Missing,
    /// Its volume does not answer now.
    Away(String),
    /// Its volume has lost or damaged it.
    Damaged(String),
}

/// The finding about one shard of a stripe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardCheck {
    /// Which stripe.
    pub stripe: StripeIndex,
    /// Which shard.
    pub shard: ShardIndex,
    /// Where it should be.
    pub volume: VolumeId,
    /// On which node, if the layout knows.
    pub node: Option<NodeId>,
    /// At which site.
    pub site: Option<SiteName>,
    /// What was found.
    pub finding: ShardFinding,
}

/// Checks all shards of all stripes, in order. Shards that were moved meanwhile are checked where they are now; the
/// findings are those about the record as it was last looked up.
pub async fn verify(cluster: &Arc<Cluster>, sealed: &SealedInstance) -> Result<Vec<ShardCheck>, Fault> {
    let mut held = Arc::new(sealed.clone());
    let mut checked = check_all(cluster, places(&held), &held).await?;
    for _ in 0..RENEWALS_MAX {
        if !checked.iter().any(|(_, outdated)| *outdated) {
            break;
        }
        let Some(renewed) = cluster.renewed(&held).await? else { break };
        let renewed = Arc::new(renewed);
        if renewed.seal.instance == held.seal.instance {
            // What lies where it lay keeps its finding, unless that is what was in doubt.
            let before: BTreeSet<Place> = places(&held).into_iter().collect();
            let now = places(&renewed);
            let again = now.iter().zip(&checked).filter(|(place, (_, outdated))| *outdated || !before.contains(place));
            let again = check_all(cluster, again.map(|(place, _)| *place).collect(), &renewed).await?;
            for (check, outdated) in again {
                let at = now.iter().position(|place| (place.stripe, place.shard) == (check.stripe, check.shard));
                checked[at.expect("asked for above")] = (check, outdated);
            }
        } else {
            checked = check_all(cluster, places(&renewed), &renewed).await?;
        }
        held = renewed;
    }
    Ok(checked.into_iter().map(|(check, _)| check).collect())
}

/// Where the record says that one shard is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    stripe: StripeIndex,
    shard: ShardIndex,
    volume: VolumeId,
    persisted: bool,
}

fn places(sealed: &SealedInstance) -> Vec<Place> {
    let mut places = Vec::new();
    for (stripe, index) in sealed.seal.stripes.iter().zip(0_u32..) {
        for (volume, shard) in stripe.placement.iter().zip(0_u8..) {
            let persisted = stripe.persisted & (1 << shard) != 0;
            places.push(Place { stripe: StripeIndex(index), shard: ShardIndex(shard), volume: *volume, persisted });
        }
    }
    places
}

/// Checks, in order, and says of each finding whether it may come from an outdated record.
async fn check_all(
    cluster: &Arc<Cluster>,
    places: Vec<Place>,
    sealed: &Arc<SealedInstance>,
) -> Result<Vec<(ShardCheck, bool)>, Fault> {
    let layout = cluster.layout().await?;
    // Owned, so that the future of a verification may move between threads.
    let checks = stream::iter(places).map(|place| check(cluster.clone(), layout.clone(), sealed.clone(), place));
    Ok(checks.buffered(READS_AT_ONCE).collect().await)
}

async fn check(
    cluster: Arc<Cluster>,
    layout: Arc<Layout>,
    sealed: Arc<SealedInstance>,
    place: Place,
) -> (ShardCheck, bool) {
    let (mut found, mut outdated) = (ShardFinding::Missing, false);
    if place.persisted {
        let answer = Question::whole(&sealed, place.stripe, place.shard, place.volume).ask(&cluster, &layout).await;
        outdated = answer.as_ref().is_err_and(|fault| fault.class == Class::NotFound);
        found = finding(answer);
    }
    let node = layout.node_of(place.volume);
    let check = ShardCheck {
        stripe: place.stripe,
        shard: place.shard,
        volume: place.volume,
        node: node.map(|node| node.id),
        site: node.map(|node| node.site.clone()),
        finding: found,
    };
    (check, outdated)
}

fn finding<T>(answer: Result<T, Fault>) -> ShardFinding {
    match answer {
        Ok(_) => ShardFinding::Proven,
        Err(fault) => match fault.class {
            Class::Retry | Class::Unknown | Class::Exhausted => ShardFinding::Away(fault.message),
            Class::NotFound if fault.code == "PV-NO-VOLUME" => ShardFinding::Away(fault.message),
            Class::Reject | Class::NotFound | Class::Corrupt | Class::Bug => ShardFinding::Damaged(fault.message),
        },
    }
}
