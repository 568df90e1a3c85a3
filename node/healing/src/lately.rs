//! Shards that repair put on this node's volumes a moment ago.
//!
//! A copy that the catalog does not name may be a stale one, or one that is about to be named: its worker proposes the
//! reseat right after the volume answered. Whoever deletes copies that are not named asks here *after* the read of the
//! catalog by which it judges: what was put since [`REMEMBERED`] before that moment is left alone.
//!
//! **Invariants.** Workers propose a reseat at most [`PROPOSED_WITHIN`] after they began to write; that is well below
//! [`REMEMBERED`], so a copy that is not remembered any more and not named will not be named by the task that wrote it.
//! Memory is bounded by [`SHARDS_MAX`]; when that is not enough, everything counts as put lately.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use pacsvault_core::{ids::VolumeId, shard::ShardId};

/// How long after it began to write a worker may propose the new homes.
pub const PROPOSED_WITHIN: Duration = Duration::from_secs(60);
/// How long a copy is left alone.
pub const REMEMBERED: Duration = Duration::from_secs(180);
/// Some 1 000 shards per second, at 100 bytes each: 18 MiB.
const SHARDS_MAX: usize = 180_000;

/// See the room's text.
#[derive(Debug, Default)]
pub struct Lately {
    puts: BTreeMap<(VolumeId, ShardId), Duration>,
    order: VecDeque<(Duration, (VolumeId, ShardId))>,
    /// Something was forgotten too early: until when everything counts.
    overflow: Option<Duration>,
}

impl Lately {
    /// Repair puts this shard on this volume: to be called before it is written, and again when it is durable.
    pub fn put(&mut self, now: Duration, volume: VolumeId, shard: ShardId) {
        self.forget(now);
        if self.order.len() >= SHARDS_MAX {
            self.overflow = Some(now + REMEMBERED);
            self.drop_oldest();
        }
        self.puts.insert((volume, shard), now);
        self.order.push_back((now, (volume, shard)));
    }

    /// Whether that may have happened within [`REMEMBERED`].
    pub fn was_put(&mut self, now: Duration, volume: VolumeId, shard: ShardId) -> bool {
        self.forget(now);
        self.overflow.is_some_and(|until| now < until) || self.puts.contains_key(&(volume, shard))
    }

    fn forget(&mut self, now: Duration) {
        while self.order.front().is_some_and(|(at, _)| now.saturating_sub(*at) > REMEMBERED) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((at, put)) = self.order.pop_front()
            && self.puts.get(&put) == Some(&at)
        {
            self.puts.remove(&put);
        }
    }
}

#[cfg(test)]
mod tests {
    use pacsvault_core::ids::{InstanceId, ShardIndex, StripeIndex, WallMillis};

    use super::*;

    fn shard(number: u128) -> ShardId {
        let instance = InstanceId::new(WallMillis(5), number);
        ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(1) }
    }

    #[test]
    fn a_copy_is_left_alone_until_long_after_its_last_put() {
        let mut lately = Lately::default();
        let volume = VolumeId([1; 16]);
        lately.put(Duration::from_secs(10), volume, shard(1));
        lately.put(Duration::from_secs(100), volume, shard(1));
        lately.put(Duration::from_secs(100), volume, shard(2));
        assert!(lately.was_put(Duration::from_secs(100) + REMEMBERED, volume, shard(1)));
        assert!(!lately.was_put(Duration::from_secs(101), VolumeId([2; 16]), shard(1)));
        assert!(!lately.was_put(Duration::from_secs(101) + REMEMBERED, volume, shard(1)));
        assert!(lately.puts.is_empty() && lately.order.is_empty());
    }

    #[test]
    fn when_memory_is_too_small_everything_is_left_alone() {
        let mut lately = Lately::default();
        let volume = VolumeId([1; 16]);
        (0..=SHARDS_MAX as u128).for_each(|number| lately.put(Duration::from_secs(1), volume, shard(number)));
        assert!(lately.was_put(Duration::from_secs(2), volume, shard(u128::MAX)));
        assert!(lately.order.len() <= SHARDS_MAX);
        assert!(!lately.was_put(Duration::from_secs(1) + REMEMBERED, volume, shard(u128::MAX)));
    }
}
