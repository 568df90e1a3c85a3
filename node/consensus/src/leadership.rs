//! Who should lead: a pure decision over what the leader knows of the voters.
//!
//! **Invariants.** Leadership moves only to a caught-up voter that is strictly better than the present leader: better is
//! to be up and not being emptied, and then to be in the preferred site. So two nodes that see the same layout never hand
//! it back and forth. A move waits until its reason has held for a while, and longer after one that did not come about.

use std::time::Duration;

use pacsvault_core::{
    ids::{NodeId, SiteName},
    layout::{Node, NodeState},
};
use pacsvault_ports::env::MonoTime;

/// Longest pause after moves that did not come about, in settling times.
const PAUSE_MAX: u32 = 32;

/// A voter, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seat {
    pub(crate) node: NodeId,
    pub(crate) site: SiteName,
    /// Up, a member that stays, and not being emptied.
    pub(crate) fit: bool,
    /// Removed for good: it is to leave without delay.
    pub(crate) leaving: bool,
    /// In contact and caught up, for some time.
    pub(crate) healthy: bool,
}

impl Seat {
    pub(crate) fn of(node: &Node, healthy: bool) -> Self {
        Self {
            node: node.id,
            site: node.site.clone(),
            fit: node.state == NodeState::Up && !node.draining,
            leaving: node.state == NodeState::Removed,
            healthy,
        }
    }

    /// How good a leader it would be.
    fn worth(&self, preferred: Option<&SiteName>) -> (bool, bool) {
        (self.fit, preferred.is_some_and(|site| *site == self.site))
    }
}

/// The voter that should lead instead of `leader`; `None` when it is as good as any.
pub(crate) fn successor(leader: &Seat, others: &[Seat], preferred: Option<&SiteName>) -> Option<NodeId> {
    let better = |one: &&Seat| {
        one.node != leader.node
            && one.healthy
            && !one.leaving
            // Of nodes that are all unfit, the preferred site alone is no reason.
            && one.fit
            && one.worth(preferred) > leader.worth(preferred)
    };
    // Among equals its own site first, so that clients of that site notice least.
    let rank = |one: &&Seat| (one.worth(preferred), one.site == leader.site, std::cmp::Reverse(one.node));
    others.iter().filter(better).max_by_key(rank).map(|one| one.node)
}

/// When the next move may be: reasons must hold, and failures are not repeated at once.
#[derive(Debug, Default)]
pub(crate) struct Patience {
    wished: Option<(NodeId, MonoTime)>,
    failures: u32,
    not_before: MonoTime,
}

impl Patience {
    /// Whether to move to `successor` now, which was decided at `now`.
    pub(crate) fn ripe(&mut self, successor: Option<NodeId>, now: MonoTime, settle: Duration) -> Option<NodeId> {
        let Some(to) = successor else {
            *self = Self::default();
            return None;
        };
        let since = match self.wished {
            Some((wished, since)) if wished == to => since,
            _ => self.wished.insert((to, now)).1,
        };
        let held = now.0.saturating_sub(since.0);
        (held >= settle && now >= self.not_before).then_some(to)
    }

    /// How many moves in a row did not come about.
    pub(crate) fn failures(&self) -> u32 {
        self.failures
    }

    /// A move did not come about.
    pub(crate) fn failed(&mut self, now: MonoTime, settle: Duration) {
        let pause = settle.max(Duration::from_secs(1)) * 2_u32.saturating_pow(self.failures).min(PAUSE_MAX);
        self.failures += 1;
        self.not_before = MonoTime(now.0 + pause);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SETTLE: Duration = Duration::from_secs(10);

    fn seat(node: u64, site: &str) -> Seat {
        let site = site.parse().expect("a name");
        Seat { node: NodeId(node), site, fit: true, leaving: false, healthy: true }
    }

    fn site(name: &str) -> SiteName {
        name.parse().expect("a name")
    }

    #[test]
    fn a_draining_leader_hands_over_in_its_own_site_first() {
        let leader = Seat { fit: false, ..seat(1, "a") };
        let others = [seat(2, "b"), seat(3, "a"), Seat { healthy: false, ..seat(4, "a") }];
        assert_eq!(successor(&leader, &others, None), Some(NodeId(3)));
        assert_eq!(successor(&leader, &others, Some(&site("b"))), Some(NodeId(2)));
        assert_eq!(successor(&seat(1, "a"), &others, None), None);
    }

    #[test]
    fn nobody_is_handed_what_it_cannot_hold() {
        let leader = Seat { fit: false, ..seat(1, "a") };
        let bad = [Seat { healthy: false, ..seat(2, "b") }, Seat { fit: false, ..seat(3, "b") }];
        assert_eq!(successor(&leader, &bad, Some(&site("b"))), None);
    }

    #[test]
    fn a_move_waits_for_its_reason_to_hold_and_longer_after_failures() {
        let at = |seconds| MonoTime(Duration::from_secs(seconds));
        let mut patience = Patience::default();
        let to = Some(NodeId(2));
        assert_eq!(patience.ripe(to, at(0), SETTLE), None);
        assert_eq!(patience.ripe(to, at(9), SETTLE), None);
        // Another one, or none, begins again.
        assert_eq!(patience.ripe(Some(NodeId(3)), at(10), SETTLE), None);
        assert_eq!(patience.ripe(Some(NodeId(3)), at(20), SETTLE), Some(NodeId(3)));
        assert_eq!(patience.ripe(None, at(21), SETTLE), None);
        assert_eq!(patience.ripe(to, at(22), SETTLE), None);
        assert_eq!(patience.ripe(to, at(32), SETTLE), to);
        patience.failed(at(32), SETTLE);
        assert_eq!(patience.ripe(to, at(41), SETTLE), None);
        assert_eq!(patience.ripe(to, at(42), SETTLE), to);
        patience.failed(at(42), SETTLE);
        assert_eq!(patience.ripe(to, at(61), SETTLE), None);
        assert_eq!(patience.ripe(to, at(62), SETTLE), to);
    }

    fn seats() -> impl Strategy<Value = Vec<Seat>> {
        let one = (0_u8..3, any::<bool>(), 0_u8..8, any::<bool>());
        proptest::collection::vec(one, 1..7).prop_map(|rows| {
            let of = |(id, (at, fit, leaving, healthy)): (usize, (u8, bool, u8, bool))| Seat {
                fit: fit && leaving > 0,
                leaving: leaving == 0,
                healthy,
                ..seat(id as u64 + 1, ["a", "b", "c"][usize::from(at)])
            };
            rows.into_iter().enumerate().map(of).collect()
        })
    }

    proptest! {
        #[test]
        fn leadership_never_moves_twice_for_one_layout(seats in seats(), first in 0_usize..7, preferred in 0_usize..4) {
            let leader = &seats[first % seats.len()];
            let preferred = ["a", "b", "c"].get(preferred).map(|name| site(name));
            let Some(to) = successor(leader, &seats, preferred.as_ref()) else { return Ok(()) };
            let next = seats.iter().find(|one| one.node == to).expect("one of them");
            prop_assert!(next.fit && next.healthy && !next.leaving && next.node != leader.node);
            prop_assert_eq!(successor(next, &seats, preferred.as_ref()), None);
        }
    }
}
