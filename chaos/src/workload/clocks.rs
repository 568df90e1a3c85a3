//! Clients whose clocks are so wrong that their writes have expired, or are about to.
//!
//! **Invariants.** A write is said to be refused for sure only where no clock of the cluster can make it acceptable.

use pacsvault_core::limits::WRITE_WINDOW_MILLIS;

use super::Client;
use crate::{exec::Life, rng::SimRng};

/// How long before or after it expires an attempt begins that is dated back, at most.
const LATE_SPARE_MILLIS: u64 = 3_000;
/// How much further than the window of writes a client's clock must be wrong for its writes to be refused for sure.
const ASTRAY_SPARE_MILLIS: u64 = 4 * 3_600_000;

impl Client {
    /// Whether an attempt that began at this time of its client is a day and more off every clock of the cluster: those are
    /// wrong by at most a few hours while faults go on. Later, when they are set to other days, nothing is said.
    pub(super) fn is_astray(&self, began_millis: u64) -> bool {
        let cluster = &self.work.cluster;
        let off = began_millis.abs_diff(cluster.sim.wall_millis(Life::HARNESS));
        let at_work = cluster.clients().iter().any(|client| client.host == self.host);
        at_work && off > WRITE_WINDOW_MILLIS + ASTRAY_SPARE_MILLIS
    }

    /// Sets the client's clock so far back that an attempt begun now is about to expire, or has: it may be sealed just in time,
    /// or be refused, and what it leaves is soon swept. True when it must be refused.
    pub(super) fn date_back(&self, rng: &mut SimRng) -> bool {
        let cluster = &self.work.cluster;
        let Some(replica) = crate::proof::newest(cluster) else { return false };
        let horizon = replica.catalog_time().0.saturating_sub(WRITE_WINDOW_MILLIS);
        let began = (horizon + rng.below(2 * LATE_SPARE_MILLIS)).saturating_sub(LATE_SPARE_MILLIS);
        let offset = i128::from(began) - i128::from(cluster.sim.wall_millis(Life::HARNESS));
        cluster.sim.jump_wall(self.life, i64::try_from(offset).unwrap_or(0));
        // Catalog time only grows: what has expired for one replica has for the log.
        began < horizon
    }
}
