//! All timings and limits of healing in one place, with the ranges that are safe.
//!
//! **Invariants.** A [`Pace`] that [`Pace::check`] accepts is consistent: heartbeat < suspect ≤ urgent ≤ down ≤ lost, and
//! nothing in it makes a loop spin or a rate vanish.

use std::time::Duration;

/// Slowest repair worth the name: a shard of 4 MiB in a minute. Less is a unit forgotten.
const REPAIR_RATE_MIN: u64 = 64 << 10;

/// Timings and limits of healing: section `[healing]` of a node's configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pace {
    /// How often a node tells the leader that it lives. Default 1 s.
    pub heartbeat: Duration,
    /// Silent for this long, a node is suspect: it gets no new shards. Default 5 s; at least three heartbeats.
    pub suspect_after: Duration,
    /// Silent for this long, it is down: its shards count as absent and repair of what is endangered begins. Default 30 s.
    pub down_after: Duration,
    /// Silent for this long, it is lost: what it held is rebuilt elsewhere even when its whole site is away, and volumes
    /// that a living node does not serve for so long are fenced for good. Default 24 h.
    pub lost_after: Duration,
    /// A node that returns must have been heard for this long before it counts as up again; doubled with each return within
    /// an hour, up to 16 times. Default 3 s.
    pub steady_for: Duration,
    /// Stripes that one further node failure would lose are repaired even while a node is only suspect for this long.
    /// Default 10 s; between suspect and down.
    pub urgent_after: Duration,
    /// How long a node that is down is waited for before stripes that are not one failure from loss are rebuilt elsewhere.
    /// Default 5 min.
    pub repair_after: Duration,
    /// Most bytes per second that one node writes for repair and moves; 0 is no limit. Default 0: it yields to clients.
    pub repair_rate: u64,
    /// Most stripes that one node works on at once. Default 8.
    pub repair_parallel: usize,
    /// Every shard is verified once in this time. Default 14 days.
    pub scrub_within: Duration,
    /// How often a node compares the catalog with what its volumes hold. Default 1 h; also at start.
    pub reconcile_every: Duration,
    /// Share by which a volume may be fuller than the mean before shards are moved off, in percent points. Default 5.
    pub rebalance_percent: u8,
    /// How long a removed voter's place is kept before a spare takes it. Default 5 min.
    pub voter_grace: Duration,
    /// Leadership moves to a node of this site when one is caught up there; no preference when absent.
    pub preferred_leader_site: Option<crate::ids::SiteName>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(1),
            suspect_after: Duration::from_secs(5),
            down_after: Duration::from_secs(30),
            lost_after: Duration::from_secs(24 * 3600),
            steady_for: Duration::from_secs(3),
            urgent_after: Duration::from_secs(10),
            repair_after: Duration::from_secs(300),
            repair_rate: 0,
            repair_parallel: 8,
            scrub_within: Duration::from_secs(14 * 24 * 3600),
            reconcile_every: Duration::from_secs(3600),
            rebalance_percent: 5,
            voter_grace: Duration::from_secs(300),
            preferred_leader_site: None,
        }
    }
}

impl Pace {
    /// Says what contradicts itself.
    /// # Errors
    /// For people: which value, why, and what would do.
    pub fn check(&self) -> Result<(), String> {
        let ordered = [
            ("suspect_after must be at least three heartbeats", self.heartbeat * 3, self.suspect_after),
            ("urgent_after must not be shorter than suspect_after", self.suspect_after, self.urgent_after),
            ("down_after must not be shorter than urgent_after", self.urgent_after, self.down_after),
            ("lost_after must not be shorter than down_after", self.down_after, self.lost_after),
            ("lost_after must not be shorter than repair_after", self.repair_after, self.lost_after),
            ("voter_grace must not be shorter than suspect_after", self.suspect_after, self.voter_grace),
        ];
        if let Some((text, _, _)) = ordered.iter().find(|(_, least, given)| given < least) {
            return Err((*text).to_owned());
        }
        if self.heartbeat < Duration::from_millis(50) {
            return Err("heartbeat must be at least 50 ms".to_owned());
        }
        if self.heartbeat > Duration::from_secs(60) {
            return Err("heartbeat must be at most a minute".to_owned());
        }
        if self.steady_for > Duration::from_secs(600) {
            return Err(
                "steady_for must be at most ten minutes, for a node that flaps waits sixteen times as long".to_owned()
            );
        }
        if self.repair_rate > 0 && self.repair_rate < REPAIR_RATE_MIN {
            return Err(format!(
                "repair_rate is in bytes per second: 0 for no limit, or at least {REPAIR_RATE_MIN} (64KiB)"
            ));
        }
        if self.reconcile_every < Duration::from_secs(1) {
            return Err("reconcile_every must be at least a second".to_owned());
        }
        if self.repair_parallel == 0 || self.repair_parallel > 256 {
            return Err("repair_parallel must be within 1 and 256".to_owned());
        }
        if self.scrub_within < Duration::from_secs(60) {
            return Err("scrub_within must be at least a minute".to_owned());
        }
        if self.rebalance_percent == 0 || self.rebalance_percent > 50 {
            return Err("rebalance_percent must be within 1 and 50".to_owned());
        }
        Ok(())
    }
}
