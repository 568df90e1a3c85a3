//! `survival` against the definition: every failure set, by enumerating every subset of sites and nodes.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::layout::testing::{cluster, fence, take_down, volume};

fn held(shards: &[(u8, u64)]) -> Vec<Held> {
    shards.iter().map(|&(shard, at)| Held { shard: ShardIndex(shard), volume: volume(at) }).collect()
}

fn failures(sites: u8, nodes: u8) -> Failures {
    Failures { sites, nodes }
}

/// Fewest distinct shards left after `failures`, from the definition alone: all subsets of sites and of nodes.
fn left(held: &[Held], layout: &Layout, failures: Failures) -> usize {
    let sites: Vec<&SiteName> =
        layout.nodes.values().map(|node| &node.site).collect::<BTreeSet<_>>().into_iter().collect();
    let nodes: Vec<NodeId> = layout.nodes.keys().copied().collect();
    let mut fewest = usize::MAX;
    for lost_sites in (0_u32..1 << sites.len()).filter(|set| set.count_ones() <= u32::from(failures.sites)) {
        for lost_nodes in (0_u32..1 << nodes.len()).filter(|set| set.count_ones() <= u32::from(failures.nodes)) {
            let lost = |volume: VolumeId| {
                let node = layout.node_of(volume).expect("a known volume");
                let site = sites.iter().position(|site| **site == node.site).expect("a known site");
                let at = nodes.iter().position(|id| *id == node.id).expect("a known node");
                lost_sites & (1 << site) != 0 || lost_nodes & (1 << at) != 0
            };
            let counted = held.iter().filter(|one| layout.counts(one.volume) && !lost(one.volume));
            fewest = fewest.min(counted.map(|one| one.shard).collect::<BTreeSet<_>>().len());
        }
    }
    fewest
}

/// Topologies of up to 3 sites and 7 nodes with two volumes each, some away; shards anywhere, some twice.
fn cases() -> impl Strategy<Value = (Layout, Vec<Held>, usize)> {
    let sites = prop::collection::vec(1_usize..=3, 1..=3)
        .prop_filter("at most 7 nodes", |sites| sites.iter().sum::<usize>() <= 7);
    sites.prop_flat_map(|sites| {
        let volumes = sites.iter().sum::<usize>() as u64 * 2;
        let shards = prop::collection::vec((0_u8..9, 0..volumes), 0..12);
        let away = (prop::option::weighted(0.3, 0..volumes), prop::option::weighted(0.3, 0..volumes / 2));
        (Just(sites), shards, away, 1_usize..6).prop_map(|(sites, shards, (fenced, down), k)| {
            let mut layout = cluster(&sites, 2);
            fenced.into_iter().for_each(|at| fence(&mut layout, at));
            down.into_iter().for_each(|node| take_down(&mut layout, node));
            (layout, held(&shards), k)
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everything_agrees_with_the_definition((layout, held, k) in cases()) {
        let mut truth = Vec::new();
        let claims = strongest(&held, k, &layout);
        for (sites, nodes) in (0..4).flat_map(|sites| (0..5).map(move |nodes| (sites, nodes))) {
            let wanted = failures(sites, nodes);
            let remaining = left(&held, &layout, wanted);
            let contract = Contract::one(wanted);
            match survives(&held, k, &contract, &layout) {
                Ok(()) => prop_assert!(remaining >= k, "{wanted} leaves {remaining}"),
                Err(breaks) => {
                    prop_assert!(remaining < k, "{wanted} leaves {remaining}: {breaks}");
                    prop_assert!(breaks.remaining < k && breaks.remaining >= remaining);
                    prop_assert!(breaks.sites.len() <= usize::from(sites) && breaks.nodes.len() <= usize::from(nodes));
                    let stands = |one: &&Held| layout.node_of(one.volume).is_some_and(|node|
                        !breaks.sites.contains(&node.site) && !breaks.nodes.contains(&node.id));
                    let counted = held.iter().filter(|one| layout.counts(one.volume)).filter(stands);
                    let distinct = counted.map(|one| one.shard).collect::<BTreeSet<_>>().len();
                    prop_assert_eq!(distinct, breaks.remaining, "the named failures leave what is said");
                }
            }
            prop_assert_eq!(covers(&claims, &contract), remaining >= k, "{} by {:?}", wanted, &claims);
            if remaining >= k {
                truth.push(wanted);
            }
        }
        for claim in claims.iter().filter(|claim| claim.sites < 4 && claim.nodes < 5) {
            prop_assert!(truth.contains(claim), "{} is claimed", claim);
            prop_assert!(!claims.iter().any(|other| other != claim && dominates(*other, *claim)), "{:?}", &claims);
        }
        prop_assert!(claims.windows(2).all(|pair| pair[0] > pair[1]));
        prop_assert!(!claims.contains(&failures(0, 0)) || claims.len() == 1);

        let distance = distance(&held, k, &layout);
        prop_assert_eq!(distance.sites, (0..).find(|&sites| left(&held, &layout, failures(sites, 0)) < k).expect("all fall"));
        prop_assert_eq!(distance.nodes, (0..).find(|&nodes| left(&held, &layout, failures(0, nodes)) < k).expect("all fall"));
    }

    #[test]
    fn order_of_shards_never_matters((layout, mut held, k) in cases()) {
        let claims = strongest(&held, k, &layout);
        held.reverse();
        prop_assert_eq!(claims, strongest(&held, k, &layout));
    }
}

#[test]
fn four_and_two_over_three_sites_survive_a_site_or_two_nodes() {
    let layout = cluster(&[2, 2, 2], 1);
    let held = held(&[(0, 0), (1, 2), (2, 4), (3, 1), (4, 3), (5, 5)]);
    assert_eq!(strongest(&held, 4, &layout), [failures(1, 0), failures(0, 2)]);
    assert_eq!(distance(&held, 4, &layout), Distance { sites: 2, nodes: 3 });
    assert_eq!(survives(&held, 4, &Contract::one(failures(1, 0)), &layout), Ok(()));
}

#[test]
fn the_reason_names_what_breaks_the_promise_and_counts_what_is_left() {
    let layout = cluster(&[2, 2], 1);
    let held = held(&[(0, 0), (1, 0), (2, 1), (3, 2), (4, 3), (5, 3)]);
    let breaks = survives(&held, 4, &Contract::one(failures(1, 0)), &layout).expect_err("a site holds three");
    assert_eq!(
        breaks.to_string(),
        "does not survive any one site: without site site-0 3 distinct shards remain, 4 needed"
    );
    let breaks = survives(&held[..3], 4, &Contract::one(failures(0, 1)), &layout).expect_err("three are held");
    assert_eq!(breaks.to_string(), "unreadable before any failure: 3 distinct shards present, 4 needed");
}

#[test]
fn the_widest_stripes_are_judged_exactly() {
    // 16 + 16 over 8 sites of 4 nodes: 4 shards a site. Four sites may fall, or sixteen nodes.
    let layout = cluster(&[4; 8], 1);
    let shards: Vec<(u8, u64)> = (0..32).map(|shard| (shard, u64::from(shard))).collect();
    assert_eq!(
        strongest(&held(&shards), 16, &layout),
        [failures(4, 0), failures(3, 4), failures(2, 8), failures(1, 12), failures(0, 16)]
    );
    // Every shard twice, its other copy on the next site: any pair of neighbours must fall to lose four.
    let twice: Vec<(u8, u64)> = shards.iter().flat_map(|&(shard, at)| [(shard, at), (shard, (at + 4) % 32)]).collect();
    assert_eq!(survives(&held(&twice), 16, &Contract::one(failures(4, 0)), &layout), Ok(()));
    assert!(survives(&held(&twice), 16, &Contract::one(failures(6, 0)), &layout).is_err());
    // The hardest question in reach is answered within the bound of steps, and at least as well as without copies.
    let claims = strongest(&held(&twice), 16, &layout);
    assert!(strongest(&held(&shards), 16, &layout).iter().all(|claim| covers(&claims, &Contract::one(*claim))));
    assert!(covers(&claims, &Contract::one(failures(5, 0))), "{claims:?}");
}
