//! Which copies of shards can no longer become the ones that the catalog names: the fence between adoption and sweeping.
//!
//! A copy that the catalog places elsewhere may be adopted: a mover finds it here, the volume confirms that it is durable, and a
//! reseat names it. If it were swept between the two, the catalog would name a volume that does not hold the shard. That must be
//! impossible, whoever is stopped for however long, whatever messages are late.
//!
//! **How.** Let `W` be `RESEAT_WINDOW_MILLIS`. Before it asks a volume to write (or to confirm) a shard, a mover reads catalog
//! time `T`; its reseat says `not_after ≤ T + W`, and `apply` refuses it once catalog time is later.
//! 1. The sweeper begins to *watch* the copy, and only then reads the catalog linearizably: at catalog time `C` it is stale.
//! 2. Whenever somebody asks to write that shard here, the watch ends, in the same process, before the volume hears of it.
//! 3. The sweeper reads again, linearizably: at catalog time `C' > C + W` the copy is stale still, and is watched still. Under
//!    the lock of the watch it becomes *doomed*, and the deletion is queued. Until that is done, writes of it are refused.
//!
//! **Why it is safe.** Take any reseat that names this copy, by a mover whose write reached this volume at some moment.
//! *Before step 1*: its `T` was read before that, and is not later than `C`, because the read of step 1 began afterwards, was
//! linearizable, and catalog time only grows. So `not_after ≤ C + W < C'`: if it was applied before the read of step 3, that
//! read shows it, and the copy is not stale; after it, it is refused. *Between 1 and 3*: the watch has ended, nothing is
//! deleted. *After 3*: it is refused until the bytes are gone, and then writes them anew. Only catalog time, and the order of
//! events in this one process, are used. A crash forgets all watches, which only delays.
//!
//! Nothing but a reseat names a copy here. A seal does not: a copy is stale only beside a live record, and an instance is sealed
//! once, whatever is proposed again. So what a write left on a slow holder before it chose another one is as stale as what a
//! move left. Its bytes may also come late, after the sweep: then they lie here until a later one.
//!
//! **Invariants.** Memory is bounded by [`WATCHED_MAX`] per volume; what does not fit waits for a later sweep.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

use pacsvault_core::{ids::WallMillis, limits::RESEAT_WINDOW_MILLIS, shard::ShardId};

/// Most stale copies watched at once: 48 bytes each.
pub const WATCHED_MAX: usize = 100_000;

#[derive(Debug, Default)]
struct Known {
    /// Watched since before a linearizable read; with that read's catalog time once it has said that the copy is stale.
    watched: BTreeMap<ShardId, Option<WallMillis>>,
    /// Being deleted.
    doomed: BTreeSet<ShardId>,
}

/// The watch over one volume. See the room's text.
#[derive(Debug, Default)]
pub struct Stale(Mutex<Known>);

impl Stale {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Somebody asks to write this shard: to be called before the volume hears of it. False: it is being deleted at this
    /// moment, and must be refused.
    #[must_use]
    pub fn touch(&self, shard: ShardId) -> bool {
        let mut known = self.known();
        if known.watched.remove(&shard).is_some() {
            pacsvault_core::sometimes!("recovery: copy wanted again while its sweep was near");
        }
        !known.doomed.contains(&shard)
    }

    /// Copies were found stale that are not ripe yet.
    pub fn waits(&self) -> bool {
        self.known().watched.values().any(Option::is_some)
    }

    /// To be called before the linearizable read that judges these shards.
    pub fn watch(&self, shards: &[ShardId]) {
        let mut known = self.known();
        for shard in shards {
            known.watched.entry(*shard).or_insert(None);
        }
    }

    /// After it: these are stale at catalog time `now`, and the others are not. Answers those that can no longer be adopted.
    pub fn judged(&self, shards: &[ShardId], stale: &BTreeSet<ShardId>, now: WallMillis) -> Vec<ShardId> {
        let mut known = self.known();
        let mut ripe = Vec::new();
        for shard in shards {
            if !stale.contains(shard) {
                known.watched.remove(shard);
                continue;
            }
            let Some(since) = known.watched.get_mut(shard) else { continue };
            let since = *since.get_or_insert(now);
            if now.0 > since.0.saturating_add(RESEAT_WINDOW_MILLIS) {
                ripe.push(*shard);
            }
        }
        while known.watched.len() > WATCHED_MAX {
            known.watched.pop_last();
        }
        ripe
    }

    /// Those that were not touched since, for deletion: `delete` is called with them under the lock and has to queue it. Call
    /// [`Stale::done`] with the same shards when it is over.
    pub fn doom<T>(&self, shards: &[ShardId], delete: impl FnOnce(Vec<ShardId>) -> T) -> (Vec<ShardId>, T) {
        let mut known = self.known();
        let doomed: Vec<ShardId> =
            shards.iter().copied().filter(|shard| known.watched.remove(shard).is_some()).collect();
        known.doomed.extend(&doomed);
        let deletion = delete(doomed.clone());
        (doomed, deletion)
    }

    /// Their deletion is over.
    pub fn done(&self, doomed: &[ShardId]) {
        let mut known = self.known();
        for shard in doomed {
            known.doomed.remove(shard);
        }
    }
}

#[cfg(test)]
mod tests {
    use pacsvault_core::ids::{InstanceId, ShardIndex, StripeIndex};

    use super::*;

    const NOW: WallMillis = WallMillis(1_000_000);
    const RIPE: WallMillis = WallMillis(NOW.0 + RESEAT_WINDOW_MILLIS + 1);

    fn shard(number: u128) -> ShardId {
        ShardId { instance: InstanceId::new(NOW, number), stripe: StripeIndex(0), shard: ShardIndex(0) }
    }

    /// One sweep that finds all of them stale.
    fn swept(stale: &Stale, shards: &[ShardId], now: WallMillis) -> Vec<ShardId> {
        stale.watch(shards);
        stale.judged(shards, &shards.iter().copied().collect(), now)
    }

    #[test]
    fn a_copy_is_ripe_only_when_every_reseat_under_way_is_too_late() {
        let stale = Stale::default();
        assert!(swept(&stale, &[shard(1)], NOW).is_empty());
        assert!(swept(&stale, &[shard(1)], WallMillis(RIPE.0 - 1)).is_empty(), "at the edge it may still be applied");
        assert_eq!(swept(&stale, &[shard(1)], RIPE), [shard(1)]);
    }

    #[test]
    fn whoever_asks_to_write_it_ends_the_watch_at_any_moment() {
        let stale = Stale::default();
        assert!(swept(&stale, &[shard(1)], NOW).is_empty());
        assert!(stale.touch(shard(1)));
        assert!(swept(&stale, &[shard(1)], RIPE).is_empty(), "it begins anew");
        // Between the watch and the read's answer: the mover may have read a later time than that read shows.
        stale.watch(&[shard(2)]);
        assert!(stale.touch(shard(2)));
        assert!(stale.judged(&[shard(2)], &BTreeSet::from([shard(2)]), NOW).is_empty());
        assert!(swept(&stale, &[shard(2)], RIPE).is_empty());
        // After it was found ripe, before it is doomed.
        let later = WallMillis(RIPE.0 + RESEAT_WINDOW_MILLIS + 1);
        assert_eq!(swept(&stale, &[shard(1)], later), [shard(1)]);
        assert!(stale.touch(shard(1)));
        assert!(stale.doom(&[shard(1)], |doomed| doomed).1.is_empty());
    }

    #[test]
    fn what_is_being_deleted_is_not_written() {
        let stale = Stale::default();
        swept(&stale, &[shard(1)], NOW);
        swept(&stale, &[shard(1)], RIPE);
        let (doomed, queued) = stale.doom(&[shard(1)], |doomed| doomed.len());
        assert_eq!((doomed.as_slice(), queued), ([shard(1)].as_slice(), 1));
        assert!(!stale.touch(shard(1)));
        stale.done(&doomed);
        assert!(stale.touch(shard(1)));
    }

    #[test]
    fn what_is_wanted_again_is_forgotten_and_memory_is_bounded() {
        let stale = Stale::default();
        swept(&stale, &[shard(1)], NOW);
        stale.watch(&[shard(1)]);
        assert!(stale.judged(&[shard(1)], &BTreeSet::new(), NOW).is_empty());
        assert!(swept(&stale, &[shard(1)], RIPE).is_empty(), "it was not stale all the time");
        let many: Vec<ShardId> = (0..=WATCHED_MAX as u128).map(shard).collect();
        swept(&stale, &many, NOW);
        assert!(stale.known().watched.len() <= WATCHED_MAX);
    }
}
