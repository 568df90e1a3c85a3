//! Who should vote: a pure decision over what the leader knows of the nodes.
//!
//! **Invariants.** A plan
//! - has an odd number of voters, at most [`VOTERS_MAX`];
//! - with candidates in three or more sites, has at most `(voters − 1) / 2` of them in one site, so that any one site may
//!   vanish;
//! - names only eligible nodes; a node that does not vote yet is named only when healthy;
//! - leaves healthy voters a majority of the old and of the new set: it can be carried out, and works afterwards;
//! - takes no vote from a node that is merely away, nor from a site that is away as a whole: an outage is not a death;
//! - replaces a dead voter by a node of its own site if it can, and by one of another site only if no site then holds a
//!   majority;
//! - gives no vote to a node that is being emptied, and takes its vote once another can have it.
//!
//! Five voters are chosen over three as soon as five nodes allow it: with 2+2+1 a whole site may vanish and three remain,
//! of which one more is needed than with 1+1+1, but until then any two nodes may fail instead of one. The leader waits for
//! two followers instead of one, which with two voters in its own site costs no further round trip.

use std::collections::{BTreeMap, BTreeSet};

use pacsvault_core::ids::{NodeId, SiteName};

/// Most voters: each more would make every commit wait for another follower.
pub const VOTERS_MAX: usize = 5;

/// How a node is, as the leader sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    /// In contact and caught up, for some time.
    Healthy,
    /// Out of contact or behind, not for long. A voter keeps its vote.
    Away,
    /// Out of contact beyond the grace time. A voter may be replaced.
    Dead,
}

/// A node that may vote, or does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub node: NodeId,
    /// Where.
    pub site: SiteName,
    /// Has the voter role and is not removed.
    pub eligible: bool,
    /// An operator wants it empty: it gets no vote, and passes on the one it has.
    pub draining: bool,
    /// How it is.
    pub health: Health,
    /// Votes now.
    pub voter: bool,
    /// Leads now; its vote is moved last.
    pub leader: bool,
}

/// The voters there should be; `None` when the present ones are right or cannot safely be changed.
pub fn plan(candidates: &[Candidate]) -> Option<BTreeSet<NodeId>> {
    let present: BTreeSet<NodeId> = candidates.iter().filter(|one| one.voter).map(|one| one.node).collect();
    let mut wanted = wanted(candidates, DeadVoters::Replaced)?;
    if leaves_site_of_dead(candidates, &wanted) && site_with_majority(candidates, &wanted) {
        wanted = self::wanted(candidates, DeadVoters::Kept)?;
    }
    (wanted != present && works(candidates, &present) && works(candidates, &wanted)).then_some(wanted)
}

/// What happens to the votes of the dead.
#[derive(Clone, Copy, PartialEq, Eq)]
enum DeadVoters {
    Replaced,
    Kept,
}

/// As many voters as there can be, an odd number.
fn wanted(candidates: &[Candidate], dead: DeadVoters) -> Option<BTreeSet<NodeId>> {
    let usable = usable(candidates, dead);
    let sites: BTreeSet<&SiteName> = usable.iter().map(|(_, one)| &one.site).collect();
    let votes = by_site(candidates.iter().filter(|one| one.voter));
    let most = VOTERS_MAX.min(usable.len());
    let odd_downwards = (1..=most).rev().filter(|count| count % 2 == 1);
    odd_downwards
        .map(|count| (count, if sites.len() >= 3 { (count.saturating_sub(1) / 2).max(1) } else { count }))
        .find_map(|(count, per_site)| choose(&usable, &votes, count, per_site))
}

/// Candidates that may be in a plan, by preference.
fn usable(candidates: &[Candidate], dead: DeadVoters) -> Vec<(u8, &Candidate)> {
    let alive: BTreeSet<&SiteName> =
        candidates.iter().filter(|one| one.health == Health::Healthy).map(|one| &one.site).collect();
    let kept = |one: &Candidate| dead == DeadVoters::Kept || !alive.contains(&one.site);
    let rank = |one: &Candidate| match (one.voter, one.health) {
        (true, Health::Healthy | Health::Away) if one.draining => Some(4),
        (true, Health::Healthy) if one.leader => Some(0),
        (true, Health::Healthy) => Some(1),
        (true, Health::Away) => Some(2),
        (true, Health::Dead) if kept(one) && !one.draining => Some(2),
        (false, Health::Healthy) if !one.draining => Some(3),
        (true, Health::Dead) => Some(5),
        (false, Health::Healthy | Health::Away | Health::Dead) => None,
    };
    candidates.iter().filter(|one| one.eligible).filter_map(|one| Some((rank(one)?, one))).collect()
}

fn by_site<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> BTreeMap<&'a SiteName, usize> {
    let mut counts = BTreeMap::new();
    for one in candidates {
        *counts.entry(&one.site).or_default() += 1;
    }
    counts
}

/// `count` candidates with at most `per_site` of one site: by preference, then of a site that has fewer than the `votes`
/// it has now, then filling the emptiest site.
fn choose(
    usable: &[(u8, &Candidate)],
    votes: &BTreeMap<&SiteName, usize>,
    count: usize,
    per_site: usize,
) -> Option<BTreeSet<NodeId>> {
    let mut chosen = BTreeSet::new();
    let mut by_site: BTreeMap<&SiteName, usize> = BTreeMap::new();
    while chosen.len() < count {
        let held = |one: &Candidate| by_site.get(&one.site).copied().unwrap_or(0);
        let has_all = |one: &Candidate| held(one) >= votes.get(&one.site).copied().unwrap_or(0);
        let (_, next) = usable
            .iter()
            .filter(|(_, one)| !chosen.contains(&one.node) && held(one) < per_site)
            .min_by_key(|(rank, one)| (*rank, has_all(one), held(one), one.node))?;
        chosen.insert(next.node);
        *by_site.entry(&next.site).or_default() += 1;
    }
    Some(chosen)
}

/// True when the plan takes the vote of a dead node that was to stay, and leaves its site with fewer votes.
fn leaves_site_of_dead(candidates: &[Candidate], voters: &BTreeSet<NodeId>) -> bool {
    let before = by_site(candidates.iter().filter(|one| one.voter && one.eligible));
    let after = by_site(candidates.iter().filter(|one| voters.contains(&one.node)));
    let replaced = |one: &Candidate| one.voter && one.eligible && !voters.contains(&one.node);
    let fewer = |site: &SiteName| after.get(site).unwrap_or(&0) < before.get(site).unwrap_or(&0);
    candidates.iter().any(|one| replaced(one) && one.health == Health::Dead && !one.draining && fewer(&one.site))
}

/// True when the loss of one site would leave less than a majority of `voters`.
fn site_with_majority(candidates: &[Candidate], voters: &BTreeSet<NodeId>) -> bool {
    by_site(candidates.iter().filter(|one| voters.contains(&one.node))).values().any(|held| held * 2 > voters.len())
}

/// True when the healthy nodes of `voters` are a majority of them.
fn works(candidates: &[Candidate], voters: &BTreeSet<NodeId>) -> bool {
    let healthy = |one: &&Candidate| voters.contains(&one.node) && one.health == Health::Healthy;
    candidates.iter().filter(healthy).count() * 2 > voters.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn site(n: u8) -> SiteName {
        format!("site-{n}").parse().expect("a name")
    }

    fn node(id: u64, at: u8, voter: bool, health: Health) -> Candidate {
        Candidate {
            node: NodeId(id),
            site: site(at),
            eligible: true,
            draining: false,
            health,
            voter,
            leader: voter && id == 1,
        }
    }

    fn ids(list: &[u64]) -> BTreeSet<NodeId> {
        list.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn three_sites_of_two_nodes_get_five_voters() {
        let nodes: Vec<_> = (1..=6_u8).map(|id| node(id.into(), id.div_ceil(2), id == 1, Health::Healthy)).collect();
        let voters = plan(&nodes).expect("a plan");
        assert_eq!(voters.len(), 5);
        for at in 1..=3 {
            assert!(nodes.iter().filter(|one| one.site == site(at) && voters.contains(&one.node)).count() <= 2);
        }
    }

    #[test]
    fn two_nodes_keep_one_voter() {
        assert_eq!(plan(&[node(1, 1, true, Health::Healthy), node(2, 2, false, Health::Healthy)]), None);
    }

    #[test]
    fn voters_of_one_site_spread_when_two_more_sites_join() {
        let mut nodes: Vec<_> = (1..=3).map(|id| node(id, 1, true, Health::Healthy)).collect();
        nodes.extend([node(4, 2, false, Health::Healthy), node(5, 3, false, Health::Healthy)]);
        assert_eq!(plan(&nodes), Some(ids(&[1, 4, 5])));
    }

    #[test]
    fn a_dead_voter_is_replaced_by_a_spare_of_its_site() {
        let mut nodes: Vec<_> = (1..=3_u8).map(|id| node(id.into(), id, true, Health::Healthy)).collect();
        nodes.push(node(4, 3, false, Health::Healthy));
        nodes[2].health = Health::Away;
        assert_eq!(plan(&nodes), None);
        nodes[2].health = Health::Dead;
        assert_eq!(plan(&nodes), Some(ids(&[1, 2, 4])));
    }

    #[test]
    fn a_site_that_is_away_keeps_its_vote() {
        let mut nodes: Vec<_> = (1..=3_u8).map(|id| node(id.into(), id, true, Health::Healthy)).collect();
        nodes.extend([node(4, 1, false, Health::Healthy)]);
        nodes[2].health = Health::Dead;
        assert_eq!(plan(&nodes), None);
    }

    #[test]
    fn a_removed_voter_loses_its_vote() {
        let mut nodes: Vec<_> = (1..=3_u8).map(|id| node(id.into(), id, true, Health::Healthy)).collect();
        nodes.push(node(4, 3, false, Health::Healthy));
        nodes[2].eligible = false;
        assert_eq!(plan(&nodes), Some(ids(&[1, 2, 4])));
    }

    #[test]
    fn a_spare_of_the_dead_voters_own_site_comes_first() {
        // Sites 1 and 3 have two votes, site 2 has one; the spare of site 1 has the lower id.
        let mut nodes = vec![node(1, 1, true, Health::Healthy), node(2, 1, true, Health::Healthy)];
        nodes.extend([node(3, 2, true, Health::Healthy), node(4, 3, true, Health::Healthy)]);
        nodes.extend([node(5, 3, true, Health::Dead), node(6, 2, false, Health::Healthy)]);
        nodes.push(node(7, 3, false, Health::Healthy));
        assert_eq!(plan(&nodes), Some(ids(&[1, 2, 3, 4, 7])));
        // Without one, another site's will do: it gets its second vote of five.
        nodes.pop();
        assert_eq!(plan(&nodes), Some(ids(&[1, 2, 3, 4, 6])));
    }

    #[test]
    fn a_dead_voter_is_not_replaced_where_a_site_would_then_hold_a_majority() {
        let mut nodes = vec![node(1, 1, true, Health::Healthy), node(2, 2, true, Health::Healthy)];
        nodes.extend([node(3, 2, true, Health::Dead), node(4, 1, false, Health::Healthy)]);
        assert_eq!(plan(&nodes), None);
        nodes.push(node(5, 2, false, Health::Healthy));
        // With a spare of its own site there can be five, of whom four live.
        assert_eq!(plan(&nodes), Some(ids(&[1, 2, 3, 4, 5])));
    }

    #[test]
    fn a_draining_voter_keeps_its_vote_until_another_can_have_it() {
        let mut nodes: Vec<_> = (1..=3_u8).map(|id| node(id.into(), id, true, Health::Healthy)).collect();
        nodes[0].draining = true;
        assert_eq!(plan(&nodes), None);
        nodes.push(node(4, 1, false, Health::Away));
        assert_eq!(plan(&nodes), None);
        nodes[3].health = Health::Healthy;
        assert_eq!(plan(&nodes), Some(ids(&[2, 3, 4])));
        nodes[3].draining = true;
        assert_eq!(plan(&nodes), None);
    }

    fn candidates() -> impl Strategy<Value = Vec<Candidate>> {
        let one = (1_u8..=4, any::<bool>(), any::<bool>(), 0_u8..4, 0_u8..4);
        proptest::collection::vec(one, 1..10).prop_map(|rows| {
            let health = |kind| match kind {
                0 => Health::Dead,
                1 => Health::Away,
                _ => Health::Healthy,
            };
            let of = |(id, (at, voter, eligible, kind, drain)): (usize, (u8, bool, bool, u8, u8))| Candidate {
                eligible: eligible || id % 3 > 0,
                draining: drain == 0,
                ..node(id as u64 + 1, at, voter, health(kind))
            };
            rows.into_iter().enumerate().map(of).collect()
        })
    }

    proptest! {
        #[test]
        fn plans_keep_every_promise(nodes in candidates()) {
            let Some(voters) = plan(&nodes) else { return Ok(()) };
            prop_assert!(voters.len() % 2 == 1 && voters.len() <= VOTERS_MAX);
            let present: BTreeSet<NodeId> = nodes.iter().filter(|one| one.voter).map(|one| one.node).collect();
            let find = |id: &NodeId| nodes.iter().find(|one| one.node == *id).expect("a candidate");
            for one in voters.iter().map(find) {
                prop_assert!(one.eligible);
                prop_assert!(one.voter || (one.health == Health::Healthy && !one.draining));
            }
            // Who replaces a dead voter is of its site, or at least no site then holds a majority.
            let dead = |one: &&Candidate| one.health == Health::Dead && one.voter && one.eligible && !one.draining;
            for one in nodes.iter().filter(dead).filter(|one| !voters.contains(&one.node)) {
                let count = |votes: &dyn Fn(&Candidate) -> bool| {
                    nodes.iter().filter(|other| other.site == one.site && votes(other)).count()
                };
                let own = count(&|other| voters.contains(&other.node)) >= count(&|other| other.voter && other.eligible);
                let held = |at: &SiteName| voters.iter().filter(|id| find(id).site == *at).count();
                let no_site_rules = nodes.iter().all(|other| held(&other.site) * 2 <= voters.len());
                prop_assert!(own || no_site_rules || voters.len() < present.len());
            }
            // A draining node votes only while no healthy one of its site could instead.
            for one in voters.iter().map(find).filter(|one| one.draining) {
                let spare = |n: &&Candidate| n.eligible && !n.draining && n.health == Health::Healthy;
                prop_assert!(nodes.iter().filter(spare).all(|n| n.site != one.site || voters.contains(&n.node)));
            }
            for set in [&present, &voters] {
                let healthy = set.iter().filter(|id| find(id).health == Health::Healthy).count();
                prop_assert!(healthy * 2 > set.len());
            }
            let sites: BTreeSet<&SiteName> = voters.iter().map(|id| &find(id).site).collect();
            if sites.len() >= 3 {
                for at in sites {
                    let here = voters.iter().filter(|id| &find(id).site == at).count();
                    prop_assert!(here <= (voters.len() - 1) / 2);
                }
            }
        }

        #[test]
        fn a_plan_that_was_carried_out_is_not_revised(nodes in candidates()) {
            let Some(voters) = plan(&nodes) else { return Ok(()) };
            let after: Vec<_> =
                nodes.into_iter().map(|one| Candidate { voter: voters.contains(&one.node), ..one }).collect();
            prop_assert_eq!(plan(&after), None);
        }
    }
}
