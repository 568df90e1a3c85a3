//! Evening out how full volumes are.

use super::repair::Situation;
use super::{Group, StripeState, Task};
use crate::ids::VolumeId;

/// Stripes to take off a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shift {
    /// Index of the group whose stripes move.
    pub group: usize,
    /// Volume that is fuller than its share.
    pub from: VolumeId,
    /// How much of its shards to move, in bytes.
    pub shards_bytes: u64,
}

/// Which groups to take stripes from, and how much, to even out fullness; empty when it is even enough.
pub fn shifts(groups: &[Group], situation: &Situation<'_>) -> Vec<Shift> {
    let _ = (groups, situation);
    Vec::new()
}

/// The move of one stripe's shard off `from`, to a volume that is less full; none when that would weaken the stripe.
pub fn shift_task(state: &StripeState, from: VolumeId, situation: &Situation<'_>) -> Option<Task> {
    let _ = (state, from, situation);
    None
}
