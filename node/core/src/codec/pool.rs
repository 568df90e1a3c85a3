//! Buffers of finished shards, kept for the next stripe.
//!
//! Fresh memory for a 16 MiB stripe costs four times as much as coding it: the allocator returns blocks this large to the
//! system, which then clears every page again. So a shard's buffer comes back here when its last reader drops it.
//!
//! **Invariants.** At most [`IDLE_BYTES_MAX`] lie idle per pool; a buffer has exactly one owner: the pool, the maker of a
//! shard, or the shard. A recycled buffer is empty (length 0), so old bytes can never be read through it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

/// Most bytes idle in one pool: the parity of eight stripes of 16 MiB in 4+2, or of four in 3+3 or 2+2.
const IDLE_BYTES_MAX: usize = 64 << 20;
/// Smallest buffer worth keeping; below it allocators keep blocks themselves.
const KEPT_BYTES_MIN: usize = 128 << 10;

/// Idle buffers by capacity. Clones are the same pool.
#[derive(Clone, Default)]
pub(super) struct Pool(Arc<Mutex<Idle>>);

#[derive(Default)]
struct Idle {
    by_capacity: BTreeMap<usize, Vec<Vec<u8>>>,
    bytes: usize,
}

impl Pool {
    /// An empty buffer for `width` bytes. Its capacity is the next power of two, so that lengths that differ a little share
    /// buffers; what lies beyond `width` costs address space, not memory, until a longer shard has used it.
    pub(super) fn take(&self, width: usize) -> Vec<u8> {
        if width < KEPT_BYTES_MIN {
            return Vec::with_capacity(width);
        }
        let capacity = width.next_power_of_two();
        let mut idle = self.lock();
        let Some(buffer) = idle.by_capacity.get_mut(&capacity).and_then(Vec::pop) else {
            return Vec::with_capacity(capacity);
        };
        idle.bytes -= capacity;
        buffer
    }

    /// Makes a shard of a filled buffer; the buffer returns when the last clone of the shard is gone.
    pub(super) fn shard(&self, buffer: Vec<u8>) -> Bytes {
        if buffer.len() < KEPT_BYTES_MIN {
            return Bytes::from(buffer);
        }
        Bytes::from_owner(Lent { buffer, home: self.clone() })
    }

    fn give_back(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        let capacity = buffer.capacity();
        let mut idle = self.lock();
        if capacity.is_power_of_two() && idle.bytes + capacity <= IDLE_BYTES_MAX {
            idle.bytes += capacity;
            idle.by_capacity.entry(capacity).or_default().push(buffer);
        }
    }

    // A panic while the lock was held can at worst have miscounted idle bytes, never shared a buffer.
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A buffer away from home.
struct Lent {
    buffer: Vec<u8>,
    home: Pool,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.home.give_back(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_returns_with_the_last_clone_and_not_before() {
        let pool = Pool::default();
        let mut buffer = pool.take(KEPT_BYTES_MIN + 1);
        buffer.resize(KEPT_BYTES_MIN + 1, 7);
        let shard = pool.shard(buffer);
        let part = shard.slice(5..9);
        drop(shard);
        assert_eq!(pool.lock().bytes, 0);
        assert_eq!(part, vec![7; 4]);
        drop(part);
        assert_eq!(pool.lock().bytes, 2 * KEPT_BYTES_MIN);
        assert!(pool.take(2 * KEPT_BYTES_MIN).is_empty());
        assert_eq!(pool.lock().bytes, 0);
    }

    #[test]
    fn idle_memory_stays_within_its_bound() {
        let pool = Pool::default();
        let width = IDLE_BYTES_MAX / 4;
        let filled = |pool: &Pool| {
            let mut buffer = pool.take(width);
            buffer.resize(width, 1);
            pool.shard(buffer)
        };
        let shards: Vec<Bytes> = (0..6).map(|_| filled(&pool)).collect();
        drop(shards);
        assert_eq!(pool.lock().bytes, IDLE_BYTES_MAX);
    }

    #[test]
    fn a_shard_outlives_the_coder_that_made_it() {
        let pool = Pool::default();
        let shard = pool.shard(vec![3; KEPT_BYTES_MIN]);
        drop(pool);
        assert_eq!(shard[KEPT_BYTES_MIN - 1], 3);
    }
}
