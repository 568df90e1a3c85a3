//! Re-reads every shard of an instance, whole, and proves it against the root in the catalog.

use std::sync::Arc;

use futures::{StreamExt, stream};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{NodeId, ShardIndex, SiteName, StripeIndex, VolumeId},
    layout::Layout,
    shard::ShardId,
};
use pacsvault_ports::peer::{Class, Fault};

use crate::{cluster::Cluster, fetch::Question};

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

/// Checks all shards of all stripes, in order.
pub async fn verify(cluster: &Arc<Cluster>, sealed: &SealedInstance) -> Result<Vec<ShardCheck>, Fault> {
    let layout = cluster.layout().await?;
    let checks = stream::iter(questions(sealed)).map(|(question, persisted)| {
        let (cluster, layout) = (cluster.clone(), layout.clone());
        check(cluster, layout, question, persisted)
    });
    Ok(checks.buffered(READS_AT_ONCE).collect().await)
}

/// One question per shard, and whether the shard was persisted when it was sealed. Owned, so that the future of a
/// verification may move between threads.
fn questions(sealed: &SealedInstance) -> Vec<(Question, bool)> {
    let code = sealed.seal.code;
    let mut questions = Vec::new();
    for (stripe, index) in sealed.seal.stripes.iter().zip(0_u32..) {
        for (volume, shard) in stripe.placement.iter().zip(0_u8..) {
            let question = Question {
                id: ShardId { instance: sealed.seal.instance, stripe: StripeIndex(index), shard: ShardIndex(shard) },
                volume: *volume,
                root: stripe.shard_root,
                columns: 0..code.shard_bytes(stripe.stripe_bytes),
                code,
                stripe_bytes: stripe.stripe_bytes,
            };
            questions.push((question, stripe.persisted & (1 << shard) != 0));
        }
    }
    questions
}

async fn check(cluster: Arc<Cluster>, layout: Arc<Layout>, question: Question, persisted: bool) -> ShardCheck {
    let finding = if persisted { finding(question.ask(&cluster, &layout).await) } else { ShardFinding::Missing };
    let node = layout.node_of(question.volume);
    ShardCheck {
        stripe: question.id.stripe,
        shard: question.id.shard,
        volume: question.volume,
        node: node.map(|node| node.id),
        site: node.map(|node| node.site.clone()),
        finding,
    }
}

fn finding(answer: Result<bytes::Bytes, Fault>) -> ShardFinding {
    match answer {
        Ok(_) => ShardFinding::Proven,
        Err(fault) => match fault.class {
            Class::Retry | Class::Unknown | Class::Exhausted => ShardFinding::Away(fault.message),
            Class::NotFound if fault.code == "PV-NO-VOLUME" => ShardFinding::Away(fault.message),
            Class::Reject | Class::NotFound | Class::Corrupt | Class::Bug => ShardFinding::Damaged(fault.message),
        },
    }
}
