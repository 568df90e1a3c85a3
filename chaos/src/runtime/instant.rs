//! Instants of a node's own, possibly skewed, monotonic clock.
//!
//! **Invariants.** Only instants of one life may be compared: each life counts from its own start.

use std::{
    ops::{Add, AddAssign, Sub, SubAssign},
    time::Duration,
};

use crate::exec::{Sim, nanos};

/// Ahead of every clock, so that arithmetic into the past of a young node does not saturate: one day.
const ORIGIN_NANOS: u64 = 86_400_000_000_000;

/// A point on the monotonic clock of the running life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SimInstant(u64);

impl SimInstant {
    /// Nanoseconds since the life began.
    pub(super) fn nanos(self) -> u64 {
        self.0.saturating_sub(ORIGIN_NANOS)
    }
}

impl openraft_rt::Instant for SimInstant {
    fn now() -> Self {
        Self(Sim::current().life_nanos(Sim::current_life()) + ORIGIN_NANOS)
    }
}

impl Add<Duration> for SimInstant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(nanos(duration)))
    }
}

impl AddAssign<Duration> for SimInstant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for SimInstant {
    type Output = Self;

    fn sub(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(nanos(duration)))
    }
}

impl SubAssign<Duration> for SimInstant {
    fn sub_assign(&mut self, duration: Duration) {
        *self = *self - duration;
    }
}

impl Sub for SimInstant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}
