//! Who should lead: a pure decision over what the leader knows of the voters.
//!
//! **Invariants.** Leadership moves only to a caught-up voter that is strictly better than the present leader: better is
//! to be up and not being emptied; then to reach all members that the leader reaches, and more; then to reach the same and be
//! in the preferred site. So two nodes that see the same layout and the same links never hand it back and forth. A move waits
//! until its reason has held for a while, and longer after one that did not come about.

use std::{collections::BTreeSet, time::Duration};

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
    /// The members that it reaches, itself among them; absent where nobody asked or it does not say.
    pub(crate) reach: Option<BTreeSet<NodeId>>,
}

impl Seat {
    pub(crate) fn of(node: &Node, healthy: bool, reach: Option<BTreeSet<NodeId>>) -> Self {
        Self {
            node: node.id,
            site: node.site.clone(),
            fit: node.state == NodeState::Up && !node.draining,
            leaving: node.state == NodeState::Removed,
            healthy,
            reach,
        }
    }

    fn is_preferred(&self, preferred: Option<&SiteName>) -> bool {
        preferred.is_some_and(|site| *site == self.site)
    }

    /// True when it can be given leadership at all.
    fn is_free(&self, leader: &Self) -> bool {
        // Of nodes that are all unfit, nothing else is a reason.
        self.node != leader.node && self.healthy && !self.leaving && self.fit
    }

    /// True when it would be a better leader.
    fn beats(&self, leader: &Self, preferred: Option<&SiteName>) -> bool {
        if self.fit != leader.fit {
            return self.fit;
        }
        let (Some(own), Some(its)) = (&self.reach, &leader.reach) else { return false };
        let farther = own.len() > its.len();
        own.is_superset(its) && (farther || self.is_preferred(preferred) && !leader.is_preferred(preferred))
    }
}

/// Whether somebody in the preferred site would lead instead of `leader`, if it reaches as many: whoever knows asks.
pub(crate) fn tempted(leader: &Seat, others: &[Seat], preferred: Option<&SiteName>) -> bool {
    let there = |one: &Seat| one.is_free(leader) && one.is_preferred(preferred);
    leader.fit && !leader.is_preferred(preferred) && others.iter().any(there)
}

/// The voter that should lead instead of `leader`; `None` when it is as good as any.
pub(crate) fn successor(leader: &Seat, others: &[Seat], preferred: Option<&SiteName>) -> Option<NodeId> {
    let better = |one: &&Seat| one.is_free(leader) && one.beats(leader, preferred);
    // Among equals its own site first, so that clients of that site notice least.
    let rank = |one: &&Seat| {
        let reached = one.reach.as_ref().map(BTreeSet::len);
        (reached, one.is_preferred(preferred), one.site == leader.site, std::cmp::Reverse(one.node))
    };
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
        Seat { node: NodeId(node), site, fit: true, leaving: false, healthy: true, reach: None }
    }

    fn reaching(seat: Seat, nodes: &[u64]) -> Seat {
        Seat { reach: Some(nodes.iter().map(|node| NodeId(*node)).collect()), ..seat }
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
    fn the_leader_is_somebody_who_reaches_all_that_can_be_reached() {
        let leader = reaching(seat(1, "a"), &[1, 3, 4]);
        let between = reaching(seat(3, "c"), &[1, 2, 3, 4]);
        let beyond = reaching(seat(2, "b"), &[2, 3, 4]);
        let others = [beyond.clone(), between.clone(), seat(4, "c")];
        assert_eq!(successor(&leader, &others, None), Some(NodeId(3)));
        // The preferred site is no reason to reach less, and not asked no reason to move.
        assert_eq!(successor(&between, &[leader.clone(), beyond.clone()], Some(&site("a"))), None);
        assert!(
            tempted(&between, std::slice::from_ref(&leader), Some(&site("a")))
                && !tempted(&leader, &others, Some(&site("a")))
        );
        assert_eq!(successor(&seat(1, "a"), &[seat(3, "c")], Some(&site("c"))), None);
        // Some reach what others do not, and the other way round: it stays.
        assert_eq!(successor(&leader, &[beyond], None), None);
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
        let one = (0_u8..3, any::<bool>(), 0_u8..8, any::<bool>(), proptest::option::of(0_u8..16));
        proptest::collection::vec(one, 1..7).prop_map(|rows| {
            let of = |(id, (at, fit, leaving, healthy, reach)): (usize, (u8, bool, u8, bool, Option<u8>))| Seat {
                fit: fit && leaving > 0,
                leaving: leaving == 0,
                healthy,
                reach: reach.map(|bits| (0..4).filter(|bit| bits & (1 << bit) != 0).map(NodeId).collect()),
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
