//! `what_if` against counting stripe by stripe on a layout to which the loss really happened.

use proptest::prelude::*;

use super::*;
use crate::ids::{InstanceId, PlacementId, ShardIndex, StripeIndex};
use crate::layout::testing::{cluster, profile, site, volume};

const MIB: u64 = 1 << 20;

fn group(volumes: &[u64], code: &str, stripes: u64) -> Group {
    let code: Code = code.parse().expect("a code");
    let bytes = 4 * MIB;
    Group {
        placement: PlacementId(1),
        volumes: volumes.iter().map(|&number| volume(number)).collect(),
        profile: "tested".parse().expect("a name"),
        profile_version: 1,
        code,
        sums: Sums { stripes, content_bytes: stripes * bytes, shard_bytes: stripes * code.shard_bytes(bytes) },
    }
}

fn stripe(group: &Group, number: u8, persisted: u32) -> StripeState {
    StripeState {
        instance: InstanceId([number; 16]),
        stripe: StripeIndex(0),
        stripe_bytes: 4 * MIB,
        code: group.code,
        profile: group.profile.clone(),
        volumes: group.volumes.clone(),
        persisted,
        former: BTreeMap::new(),
    }
}

fn with_profile(mut layout: Layout, code: &str, contract: &str) -> Layout {
    let tested = profile(code, contract);
    layout.profiles.insert(tested.name.clone(), tested);
    layout
}

fn voters(layout: &Layout) -> Vec<NodeId> {
    layout.nodes.keys().copied().collect()
}

fn rooms(layout: &Layout) -> BTreeMap<VolumeId, Room> {
    let room = |id: &VolumeId| (*id, Room { capacity_bytes: 1 << 40, used_bytes: 0, free_bytes: 1 << 40 });
    layout.volumes.keys().map(room).collect()
}

fn ask(loss: &Loss, layout: &Layout, groups: &[Group], incomplete: &[StripeState]) -> WhatIf {
    what_if(loss, layout, &voters(layout), groups, incomplete, &rooms(layout), MIB)
}

#[test]
fn losing_a_site_of_three_keeps_all_readable_one_failure_from_loss() {
    let layout = with_profile(cluster(&[2, 2, 2], 1), "4+2", "1 site");
    let groups = [group(&[0, 1, 2, 3, 4, 5], "4+2", 10)];
    let answer = ask(&Loss { sites: vec![site(1)], ..Loss::default() }, &layout, &groups, &[]);
    assert_eq!(answer.nodes_lost, [NodeId(2), NodeId(3)]);
    assert!(answer.all_readable && answer.quorum);
    assert_eq!(answer.voters, (4, 6));
    assert_eq!(answer.by_tier.0, BTreeMap::from([(Tier::Distance(0), groups[0].sums)]));
    assert_eq!((answer.within_contract, answer.below_contract), (Sums::default(), groups[0].sums));
    assert_eq!(answer.rebuild_bytes, Sums { shard_bytes: 20 * MIB, ..groups[0].sums });
    assert_eq!(answer.urgent_bytes, 20 * MIB);
    assert_eq!(answer.wan_bytes, 20 * MIB, "two of the four shards read are on the other site");
    assert_eq!(answer.repair_s, Some(20));
    assert_eq!(answer.writes.len(), 1);
    assert!(!answer.writes[0].full && !answer.writes[0].survives.is_empty() && !answer.writes[0].why.is_empty());
}

#[test]
fn losing_two_sites_of_three_leaves_nothing_readable_or_writable() {
    let layout = with_profile(cluster(&[2, 2, 2], 1), "4+2", "1 site");
    let groups = [group(&[0, 1, 2, 3, 4, 5], "4+2", 10)];
    let answer = ask(&Loss { sites: vec![site(0), site(1)], ..Loss::default() }, &layout, &groups, &[]);
    assert!(!answer.all_readable && !answer.quorum);
    assert_eq!(answer.by_tier.0, BTreeMap::from([(Tier::Unreadable, groups[0].sums)]));
    assert_eq!(answer.rebuild_bytes, Sums::default(), "there is nothing to rebuild from");
    assert!(answer.writes.iter().all(|writes| !writes.full && writes.survives.is_empty()));
    assert!(answer.writes[0].why.contains("2 of 6 voters"), "{}", answer.writes[0].why);
}

#[test]
fn losing_nothing_tells_the_present() {
    let layout = with_profile(cluster(&[2, 2, 2], 1), "4+2", "1 site");
    let groups = [group(&[0, 1, 2, 3, 4, 5], "4+2", 10)];
    let lacking = [stripe(&groups[0], 1, 0b11_1110)];
    let answer = ask(&Loss::default(), &layout, &groups, &lacking);
    let tiers: Vec<(Tier, u64)> = answer.by_tier.0.iter().map(|(tier, sums)| (*tier, sums.stripes)).collect();
    assert_eq!(tiers, [(Tier::Distance(1), 1), (Tier::Distance(2), 9)]);
    assert_eq!((answer.within_contract.stripes, answer.below_contract.stripes), (9, 1));
    assert_eq!((answer.rebuild_bytes.stripes, answer.rebuild_bytes.shard_bytes), (1, MIB));
    assert_eq!(answer.urgent_bytes, 0);
    assert!(answer.writes[0].full && answer.writes[0].why.is_empty());
}

#[test]
fn names_that_are_unknown_change_nothing() {
    let layout = with_profile(cluster(&[2, 2, 2], 1), "4+2", "1 site");
    let loss = Loss { sites: vec![site(9)], nodes: vec![NodeId(99)], volumes: vec![volume(99)] };
    let answer = ask(&loss, &layout, &[group(&[0, 1, 2, 3, 4, 5], "4+2", 1)], &[]);
    assert_eq!(answer.nodes_lost, []);
    assert!(answer.within_contract.stripes == 1 && answer.repair_s == Some(0));
}

/// Any layout of up to three sites, some of it away already; any groups, some stripes lacking shards; any loss.
fn cases() -> impl Strategy<Value = (Layout, Vec<Group>, Vec<StripeState>, Loss)> {
    prop::collection::vec(1_usize..=3, 1..=3).prop_flat_map(|sites| {
        let nodes = sites.iter().sum::<usize>() as u64;
        let placements = prop::collection::vec(prop::collection::vec(0..nodes * 2, 4), 1..6);
        let lacking = prop::collection::vec((0_usize..6, 0_u32..16), 0..6);
        let away = prop::option::weighted(0.3, 0..nodes);
        let loss = (
            prop::collection::vec(0..sites.len(), 0..2),
            prop::collection::vec(0..nodes, 0..2),
            prop::collection::vec(0..nodes * 2, 0..3),
        );
        (Just(sites), placements, lacking, away, loss).prop_map(|(sites, placements, lacking, away, loss)| {
            let mut layout = with_profile(cluster(&sites, 2), "2+2", "1 node");
            if let Some(node) = away {
                layout.nodes.get_mut(&NodeId(node)).expect("known").state = NodeState::Down;
            }
            let groups: Vec<Group> = placements.iter().map(|volumes| group(volumes, "2+2", 7)).collect();
            // One placement may appear in several groups: as catalogs have it, after a new version of a profile.
            let mut number = 0;
            let lacking = lacking.iter().filter(|(at, _)| *at < groups.len()).map(|(at, persisted)| {
                number += 1;
                stripe(&groups[*at], number, *persisted)
            });
            let loss = Loss {
                sites: loss.0.into_iter().map(site).collect(),
                nodes: loss.1.into_iter().map(NodeId).collect(),
                volumes: loss.2.into_iter().map(volume).collect(),
            };
            let lacking = lacking.collect();
            (layout, groups, lacking, loss)
        })
    })
}

/// Distinct shards left once these nodes fall, too.
fn left(volumes: &[VolumeId], persisted: u32, layout: &Layout, fallen: &[NodeId]) -> usize {
    let shards = (0_u8..32).map(ShardIndex).zip(volumes);
    let standing = |volume: &VolumeId| {
        layout.counts(*volume) && layout.node_of(*volume).is_some_and(|node| !fallen.contains(&node.id))
    };
    shards.filter(|(shard, volume)| persisted & (1 << shard.0) != 0 && standing(volume)).count()
}

/// The tier from its definition: any so many nodes.
fn tier(volumes: &[VolumeId], persisted: u32, layout: &Layout) -> Tier {
    let nodes: Vec<NodeId> = layout.nodes.keys().copied().collect();
    let survived = |count: u32| {
        let sets = (0_u32..1 << nodes.len()).filter(|set| set.count_ones() == count);
        sets.into_iter().all(|set| {
            let fallen: Vec<NodeId> =
                nodes.iter().enumerate().filter(|(at, _)| set & (1 << at) != 0).map(|(_, node)| *node).collect();
            left(volumes, persisted, layout, &fallen) >= 2
        })
    };
    match (0..=2).take_while(|&count| survived(count)).count() {
        0 => Tier::Unreadable,
        more => Tier::Distance(u8::try_from(more - 1).expect("small")),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn it_tells_what_counting_after_the_loss_finds((layout, groups, lacking, loss) in cases()) {
        let answer = ask(&loss, &layout, &groups, &lacking);
        // Do it: state by state, as the log would.
        let mut after = layout.clone();
        for node in after.nodes.values_mut() {
            if loss.nodes.contains(&node.id) || loss.sites.contains(&node.site) {
                node.state = NodeState::Lost;
            }
        }
        for lost in &loss.volumes {
            after.volumes.get_mut(lost).expect("known").state = VolumeState::Fenced;
        }
        // Every stripe by itself: those that lack shards instead of as many whole ones of the same placement.
        let mut stripes: Vec<(&[VolumeId], u32)> = lacking.iter().map(|one| (&one.volumes[..], one.persisted)).collect();
        let mut owed: BTreeMap<&[VolumeId], u64> = BTreeMap::new();
        lacking.iter().for_each(|one| *owed.entry(&one.volumes).or_default() += 1);
        for group in &groups {
            let owed = owed.entry(&group.volumes).or_default();
            let whole = group.sums.stripes - (*owed).min(group.sums.stripes);
            *owed -= group.sums.stripes - whole;
            stripes.extend((0..whole).map(|_| (&group.volumes[..], u32::MAX)));
        }
        let mut by_tier: BTreeMap<Tier, u64> = BTreeMap::new();
        let (mut within, mut rebuild, mut urgent) = (0, 0, 0);
        for (volumes, persisted) in stripes {
            let tier = tier(volumes, persisted, &after);
            *by_tier.entry(tier).or_default() += 1;
            within += u64::from(tier >= Tier::Distance(1));
            let absent = (volumes.len() - left(volumes, persisted, &after, &[])) as u64 * 2 * MIB;
            rebuild += if tier == Tier::Unreadable { 0 } else { absent };
            urgent += if tier == Tier::Distance(0) { absent } else { 0 };
        }
        let told: BTreeMap<Tier, u64> = answer.by_tier.0.iter().map(|(tier, sums)| (*tier, sums.stripes)).collect();
        prop_assert_eq!(told, by_tier.clone());
        prop_assert_eq!(answer.all_readable, !by_tier.contains_key(&Tier::Unreadable));
        prop_assert_eq!(answer.within_contract.stripes, within);
        prop_assert_eq!(answer.below_contract.stripes, by_tier.values().sum::<u64>() - within);
        prop_assert_eq!(answer.rebuild_bytes.shard_bytes, rebuild);
        prop_assert_eq!(answer.urgent_bytes, urgent);
        let serving = after.nodes.values().filter(|node| node.state == NodeState::Up).count();
        prop_assert_eq!(answer.quorum, serving * 2 > after.nodes.len());
        // Asking of the changed layout what it is like now is the same question.
        let again = ask(&Loss::default(), &after, &groups, &lacking);
        prop_assert_eq!(&again.by_tier, &answer.by_tier);
        prop_assert_eq!(again.writes, answer.writes);
        prop_assert_eq!(again.wan_bytes, answer.wan_bytes);
        prop_assert_eq!(again.below_contract, answer.below_contract);
    }
}
