//! Whole shards for those who rebuild, move or re-encode: proven, but not decoded.
//!
//! **Invariants.** Every shard returned lies under the `shard_root` in the record given. Its bytes hold memory of this
//! coordinator until the last reference to them is dropped. The record is believed as it is: who holds it looks it up
//! again.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{ShardIndex, StripeIndex, VolumeId},
    shard::ShardHeader,
};
use pacsvault_ports::peer::{Class, Fault};

use crate::{
    Coordinator,
    fetch::{Goal, Question, gather},
    memory::ReadHold,
};

/// Bytes with the memory they hold.
struct Held {
    data: Bytes,
    _hold: Arc<ReadHold>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

fn held(data: Bytes, hold: &Arc<ReadHold>) -> Bytes {
    Bytes::from_owner(Held { data, _hold: hold.clone() })
}

fn check_stripe(sealed: &SealedInstance, stripe: StripeIndex) -> Result<(), Fault> {
    if (stripe.0 as usize) < sealed.seal.stripes.len() {
        return Ok(());
    }
    Err(Fault::new(Class::Bug, "PV-BUG", format!("{} has no stripe {stripe}", sealed.seal.key)))
}

impl Coordinator {
    /// Any `k` whole shards of a stripe, except those in `exclude`: own site first, slow ones hedged, bad ones replaced.
    ///
    /// Waits for memory, so only for callers that hold no other bytes of this coordinator's reads.
    ///
    /// # Errors
    /// `Retry`: fewer than `k` can be read now where the record says that they are.
    pub async fn read_shards(
        &self,
        sealed: &SealedInstance,
        stripe: StripeIndex,
        exclude: &BTreeSet<ShardIndex>,
    ) -> Result<Vec<(ShardIndex, Bytes)>, Fault> {
        check_stripe(sealed, stripe)?;
        let code = sealed.seal.code;
        let shard_bytes = code.shard_bytes(sealed.seal.stripes[stripe.0 as usize].stripe_bytes);
        let (data, parity) = (code.data() as u64, (code.total() - code.data()) as u64);
        let hold = self.cluster.memory.read(shard_bytes * (data + parity.min(data))).await;
        let (content, work) = hold.split_at(shard_bytes * data);
        let (content, work) = (Arc::new(content), Arc::new(work));
        let goal = Goal { sealed, stripe, data: (0..code.data_u8()).collect(), columns: 0..shard_bytes, exclude, work };
        let layout = self.cluster.layout().await?;
        let parts = gather(&self.cluster, &layout, &goal).await.map_err(|unread| unread.fault)?;
        Ok(parts.into_iter().map(|part| (part.shard, held(part.data, &content))).collect())
    }

    /// This very shard from this very volume, whole, with its header.
    ///
    /// Waits for memory, so only for callers that hold no other bytes of this coordinator's reads.
    ///
    /// # Errors
    /// As the volume answers; `Corrupt` when what it sent does not prove itself.
    pub async fn read_shard(
        &self,
        sealed: &SealedInstance,
        stripe: StripeIndex,
        shard: ShardIndex,
        volume: VolumeId,
    ) -> Result<(ShardHeader, Bytes), Fault> {
        check_stripe(sealed, stripe)?;
        let question = Question::whole(sealed, stripe, shard, volume);
        let hold = Arc::new(self.cluster.memory.read(question.columns.end).await);
        let mut layout = self.cluster.layout().await?;
        if layout.node_of(volume).is_none() {
            layout = self.cluster.refresh_layout().await?;
        }
        let (header, data) = question.ask(&self.cluster, &layout).await?;
        Ok((header, held(data, &hold)))
    }
}
