//! A shard as it travels and as it lies on a volume: its name, its header and its proof.

use crate::checksum;
use crate::ids::{Digest, InstanceId, ShardIndex, StripeIndex, VolumeId};
use crate::layout::profile::Code;
use crate::merkle;

/// Names one shard in the whole cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId {
    /// Attempt that wrote it.
    pub instance: InstanceId,
    /// Stripe of the instance.
    pub stripe: StripeIndex,
    /// Shard of the stripe.
    pub shard: ShardIndex,
}

impl std::fmt::Display for ShardId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}/{}", self.instance, self.stripe, self.shard)
    }
}

/// Everything a shard says of itself, besides its bytes: what to prove it by and which stripe it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardHeader {
    /// Which shard.
    pub id: ShardId,
    /// Code of its stripe.
    pub code: Code,
    /// Content bytes in the stripe, without padding: 1 to `STRIPE_BYTES_MAX`, or 0 for the single stripe of empty content.
    pub stripe_bytes: u64,
    /// BLAKE3 of the shard's bytes.
    pub digest: Digest,
    /// Sibling digests from this shard's leaf up to the stripe's root, leaf level first ([`crate::merkle`]).
    pub merkle_path: Vec<Digest>,
    /// CRC32C (iSCSI polynomial) of each `CHUNK_BYTES` of the shard, the last one possibly shorter.
    pub chunk_crcs: Vec<u32>,
}

impl ShardHeader {
    /// Bytes in the shard.
    pub fn shard_bytes(&self) -> u64 {
        self.code.shard_bytes(self.stripe_bytes)
    }
}

/// The stripe's root, and the headers of all its shards, computed from their bytes: what is written with new content and
/// what is checked before shards that were made again are written.
///
/// `shards`: all `k + m` of them, in order. Panics with another count than 1 to `SHARDS_MAX`, as [`merkle::root`] does.
pub fn headers_of<B: AsRef<[u8]>>(
    instance: InstanceId,
    stripe: StripeIndex,
    code: Code,
    stripe_bytes: u64,
    shards: &[B],
) -> (Digest, Vec<ShardHeader>) {
    let digests: Vec<Digest> = shards.iter().map(|shard| Digest::of(shard.as_ref())).collect();
    let root = merkle::root(&digests);
    let paths = merkle::paths(&digests);
    let proofs = (0..=u8::MAX).map(ShardIndex).zip(shards).zip(digests.into_iter().zip(paths));
    let headers = proofs.map(|((shard, data), (digest, merkle_path))| ShardHeader {
        id: ShardId { instance, stripe, shard },
        code,
        stripe_bytes,
        digest,
        merkle_path,
        chunk_crcs: checksum::chunk_crcs(data.as_ref()),
    });
    (root, headers.collect())
}

/// Says that a shard is durable: its bytes and its record are covered by a completed sync of the volume.
/// Made only by a volume (or by the wire that carries a volume's word); the ack path accepts nothing else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DurableShard {
    /// Which shard.
    pub id: ShardId,
    /// Where it lies.
    pub volume: VolumeId,
    /// BLAKE3 of its bytes, as recorded.
    pub digest: Digest,
}
