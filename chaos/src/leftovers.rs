//! What nothing names must go: copies left behind, deleted versions, former encodings, attempts given up.
//!
//! **Invariants.** Judged by age: from when a shard was first seen that nothing names and that may be swept, two jumps of the
//! clock, each with time for two passes of the sweeper, take it away. Young ones may be there at any time: a repair that was
//! handed out while a site was dark may write a copy much later that nobody names any more.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use pacsvault_core::{
    ids::{VolumeId, WallMillis},
    limits::WRITE_WINDOW_MILLIS,
    shard::ShardId,
};

use crate::{
    audit::{Promise, homes, takes_a_write},
    exec::Life,
    proof::{Leak, Whole, Why, newest, whole},
    rng::SimRng,
    scenario::Scenario,
    workload::Work,
};

/// Jumps of the clock that a leftover may outlive once it was seen. The passes after the first one find it and watch it from then
/// on; after the second, the time in which it could have been named again is over, and they take it away.
const OUTLIVED_MAX: i64 = 2;
/// Jumps of the clock. The first look comes after the first jump, the last after the last: whatever was there when everything
/// was proven whole is of full age by then, and so is what came to be until the first jump was over.
const JUMPS: i64 = OUTLIVED_MAX + 2;
/// Looks at whether everything is whole, half a second apart: repair of one stripe takes less than a few.
const WHOLE_TRIES: usize = 20;
/// One hour of the clock of the wall.
const HOUR_MILLIS: i64 = 3_600_000;

/// Leftovers as they were seen: since which jump, and why they should not be there. Another reason is a new one: a copy stays while
/// its stripe is not whole without it, and the reseat that makes it so may come late.
#[derive(Debug, Default)]
struct Ages(BTreeMap<(ShardId, VolumeId), (i64, Why)>);

impl Ages {
    /// What was found after this jump, at this catalog time; answers what should have gone by now.
    fn found(&mut self, jump: i64, now: WallMillis, leaks: &[Leak]) -> Vec<Leak> {
        let horizon = now.0.saturating_sub(WRITE_WINDOW_MILLIS);
        // What may yet be sealed is nobody's leftover.
        let due = leaks.iter().filter(|leak| leak.why != Why::Unsealed || leak.shard.instance.time().0 < horizon);
        let since = |leak: &Leak| {
            let one = (leak.shard, leak.volume);
            let before = self.0.get(&one).filter(|(_, why)| *why == leak.why);
            (one, before.copied().unwrap_or((jump, leak.why)))
        };
        let due: Vec<Leak> = due.copied().collect();
        self.0 = due.iter().map(since).collect();
        let old = |leak: &Leak| jump - self.0[&(leak.shard, leak.volume)].0 >= OUTLIVED_MAX;
        due.into_iter().filter(old).collect()
    }

    fn none(&self) -> bool {
        self.0.is_empty()
    }
}

/// So much time passes that whatever nothing names must be gone. Everything was proven whole before.
pub async fn swept(work: &Arc<Work>, rng: &mut SimRng) {
    let cluster = &work.cluster;
    let rest = 3 * (cluster.scenario.sweep_every + one_sweep(&cluster.scenario));
    cluster.sim.hit("encore: shards looked for that nothing names");
    let mut ages = Ages::default();
    for jump in 0..JUMPS {
        // Catalog time may be an hour ahead already; it moves with what is written.
        let day = if jump == 0 { 0 } else { i64::try_from(WRITE_WINDOW_MILLIS).expect("a day") };
        let ahead = day + 2 * HOUR_MILLIS * (jump + 1);
        for at in 0..cluster.count() {
            cluster.set_wall(at, ahead);
        }
        if !takes_a_write(work, rng.index(cluster.scenario.sites), ahead, Promise::Contract, rng).await {
            work.violation("the healed cluster does not take a write hours later");
        }
        cluster.sim.sleep(Life::HARNESS, rest).await;
        let Some(now) = newest(cluster).map(|replica| replica.catalog_time()) else {
            return work.violation("no replica runs, hours later");
        };
        let leaks = match still_whole(work).await {
            Ok(found) => found.leaks,
            Err(why) => return work.violation(format!("what was whole is not, hours later: {why}")),
        };
        // One whose tombstone has rotted is back after the next start, and is swept then. A sound disk brings nothing back.
        let hurt = cluster.hurt().clone();
        let rotted = |leak: &Leak| hurt.contains(&leak.volume) && cluster.finds(leak.volume, leak.shard) == Some(false);
        let (buried, leaks): (Vec<Leak>, Vec<Leak>) = leaks.into_iter().partition(rotted);
        if !buried.is_empty() {
            cluster.sim.hit("encore: deleted shard whose tombstone has rotted");
        }
        let left = ages.found(jump, now, &leaks);
        for leak in &leaks {
            cluster.sim.event("leak", &[], || format!("{leak:?} after jump {jump}"));
        }
        let homes = homes(cluster);
        for Leak { shard, volume, why } in &left {
            let at = homes.get(volume).map(|home| home.0);
            work.violation(format!("shard {shard} on volume {volume} of machine {at:?} was never swept: {why:?}"));
        }
        if !left.is_empty() {
            return;
        }
        if jump > 0 && ages.none() {
            return cluster.sim.hit("encore: all was swept that nothing names");
        }
    }
    cluster.sim.hit("encore: all was swept that nothing names but what came later");
}

/// What a pass over the volumes of a node takes at most, besides its pause: each page of shards is judged by what the leader says,
/// who asks the voters first. The longest way there and back twice, for each volume.
fn one_sweep(scenario: &Scenario) -> Duration {
    let farthest = scenario.latency_micros.iter().flatten().copied().max().unwrap_or(0);
    Duration::from_micros(4 * farthest * scenario.volumes_per_node as u64)
}

/// A proof of everything; what was written, or made anew in another profile, a moment ago may still lack its last shards.
async fn still_whole(work: &Work) -> Result<Whole, String> {
    for _ in 1..WHOLE_TRIES {
        match whole(work) {
            Ok(found) => return Ok(found),
            Err(why) => work.cluster.sim.event("not whole", &[], || why),
        }
        work.cluster.sim.sleep(Life::HARNESS, Duration::from_millis(500)).await;
    }
    whole(work)
}

#[cfg(test)]
mod tests {
    use pacsvault_core::ids::{InstanceId, LogIndex, ShardIndex, StripeIndex};

    use super::*;

    const BEGAN: WallMillis = WallMillis(1_000_000);
    const LATE: WallMillis = WallMillis(BEGAN.0 + WRITE_WINDOW_MILLIS + 1);

    fn leak(number: u128, why: Why) -> Leak {
        let instance = InstanceId::new(BEGAN, number);
        let shard = ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(0) };
        Leak { shard, volume: VolumeId([1; 16]), why }
    }

    #[test]
    fn what_outlives_two_jumps_once_it_was_seen_is_told_however_late_it_came() {
        let (early, late) = (leak(1, Why::Elsewhere(LogIndex(5))), leak(2, Why::Deleted(LogIndex(6))));
        let mut ages = Ages::default();
        assert!(ages.found(0, BEGAN, &[early]).is_empty());
        assert!(ages.found(1, BEGAN, &[early, late]).is_empty());
        assert_eq!(ages.found(2, BEGAN, &[early, late]), [early]);
        assert_eq!(ages.found(3, BEGAN, &[late]), [late]);
        assert!(ages.found(4, BEGAN, &[]).is_empty() && ages.none());
    }

    #[test]
    fn what_went_and_came_again_is_young_again() {
        let copy = leak(1, Why::Elsewhere(LogIndex(5)));
        let mut ages = Ages::default();
        assert!(ages.found(0, BEGAN, &[copy]).is_empty());
        assert!(ages.found(1, BEGAN, &[]).is_empty());
        assert!(ages.found(2, BEGAN, &[copy]).is_empty());
        assert!(ages.found(3, BEGAN, &[copy]).is_empty());
        assert_eq!(ages.found(4, BEGAN, &[copy]), [copy]);
    }

    #[test]
    fn a_copy_ages_from_the_reseat_that_lets_it_go() {
        let (kept, free) = (leak(1, Why::Elsewhere(LogIndex(5))), leak(1, Why::Elsewhere(LogIndex(9))));
        let mut ages = Ages::default();
        assert!(ages.found(0, BEGAN, &[kept]).is_empty());
        assert!(ages.found(1, BEGAN, &[kept]).is_empty());
        assert!(ages.found(2, BEGAN, &[free]).is_empty());
        assert!(ages.found(3, BEGAN, &[free]).is_empty());
        assert_eq!(ages.found(4, BEGAN, &[free]), [free]);
    }

    #[test]
    fn an_attempt_ages_from_when_it_can_no_longer_be_sealed() {
        let attempt = leak(1, Why::Unsealed);
        let mut ages = Ages::default();
        for jump in 0..5 {
            assert!(ages.found(jump, BEGAN, &[attempt]).is_empty() && ages.none());
        }
        assert!(ages.found(5, LATE, &[attempt]).is_empty());
        assert!(ages.found(6, LATE, &[attempt]).is_empty());
        assert_eq!(ages.found(7, LATE, &[attempt]), [attempt]);
    }
}
