//! Placement: contracts kept, nothing avoided is used, the best of what is left by exhaustive search, fair shares.

use proptest::prelude::*;

use super::*;
use crate::ids::WallMillis;
use crate::layout::plan::{Topology, check_possible};
use crate::layout::survival::{covers, strongest};
use crate::layout::testing::{cluster, fence, profile, take_down, volume};

fn instance(number: u128) -> InstanceId {
    InstanceId::new(WallMillis(1_700_000_000_000), number)
}

fn held(volumes: &[VolumeId]) -> Vec<Held> {
    (0..).map(ShardIndex).zip(volumes).map(|(shard, &volume)| Held { shard, volume }).collect()
}

fn rank(claims: Vec<Failures>, profile: &Profile) -> (bool, bool, Vec<Failures>) {
    (covers(&claims, &profile.contract), covers(&claims, &profile.floor), claims)
}

/// The best rank over every assignment of the shards that `fixed` lacks to writable nodes.
fn best_of_all(layout: &Layout, profile: &Profile, fixed: &[Held], usable: &[VolumeId]) -> (bool, bool, Vec<Failures>) {
    let lacking = profile.code.total() - fixed.len();
    let mut best = (false, false, Vec::new());
    // Non-decreasing choices are enough: which of the lacking shards lies where does not matter.
    let mut choice = vec![0; lacking];
    loop {
        let free = (0..).map(ShardIndex).filter(|shard| fixed.iter().all(|held| held.shard != *shard));
        let new = free.zip(&choice).map(|(shard, &at)| Held { shard, volume: usable[at] });
        let all: Vec<Held> = fixed.iter().copied().chain(new).collect();
        best = best.max(rank(strongest(&all, profile.code.data(), layout), profile));
        let Some(at) = choice.iter().rposition(|&at| at + 1 < usable.len()) else { return best };
        let next = choice[at] + 1;
        choice[at..].fill(next);
    }
}

fn codes() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["1+1", "2+1", "2+2", "3+2", "4+2", "3+3", "2+4", "5+4"])
}

fn contracts() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["1 node", "1 site", "2 nodes", "2 sites", "1 site + 1 node", "1 site; 2 nodes"])
}

fn topologies() -> impl Strategy<Value = Vec<usize>> {
    prop::collection::vec(1_usize..=3, 1..=3)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn contracts_hold_wherever_they_are_possible(
        sites in prop::collection::vec(1_usize..=4, 1..=5), code in codes(), contract in contracts(), volumes in 1_u64..3, number: u128,
    ) {
        let (layout, profile) = (cluster(&sites, volumes), profile(code, contract));
        let placer = Placer::new(&layout, &profile, &BTreeSet::new()).expect("volumes are there");
        let possible = check_possible(&profile, &Topology::of(&layout)).is_ok();
        prop_assert_eq!(possible, !placer.degraded());
        for stripe in 0..8 {
            let volumes = placer.place(instance(number), StripeIndex(stripe));
            prop_assert_eq!(volumes.len(), profile.code.total());
            let claims = strongest(&held(&volumes), profile.code.data(), &layout);
            prop_assert_eq!(&claims[..], placer.claims());
            prop_assert_eq!(covers(&claims, &profile.contract), possible);
        }
    }

    #[test]
    fn what_is_left_is_used_as_well_as_it_can_be(
        sites in topologies(), code in codes(), contract in contracts(), number: u128, away in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
    ) {
        let (mut layout, profile) = (cluster(&sites, 1), profile(code, contract));
        let count = layout.nodes.len() as u64;
        let mut avoid = BTreeSet::new();
        for (turn, at) in away.iter().map(|at| at.index(usize::try_from(count).expect("small")) as u64).enumerate() {
            match turn % 3 {
                0 => fence(&mut layout, at),
                1 => take_down(&mut layout, at),
                _ => drop(avoid.insert(volume(at))),
            }
        }
        let usable: Vec<VolumeId> =
            layout.volumes.keys().copied().filter(|&id| layout.writable(id) && !avoid.contains(&id)).collect();
        match place(&layout, &profile, instance(number), StripeIndex(0), &avoid) {
            Err(error) => prop_assert!(usable.is_empty() && matches!(error, Error::NoVolume(_)), "{error}"),
            Ok(volumes) => {
                prop_assert!(volumes.iter().all(|id| usable.contains(id)));
                let got = rank(strongest(&held(&volumes), profile.code.data(), &layout), &profile);
                prop_assert_eq!(got, best_of_all(&layout, &profile, &[], &usable));
            }
        }
    }

    #[test]
    fn new_homes_are_the_best_beside_what_is_persisted(
        sites in topologies(), code in codes(), contract in contracts(), number: u128,
        kept in prop::collection::vec(any::<bool>(), 9), lost in any::<prop::sample::Index>(),
    ) {
        let (mut layout, profile) = (cluster(&sites, 1), profile(code, contract));
        let first = place(&layout, &profile, instance(number), StripeIndex(0), &BTreeSet::new()).expect("placed");
        let lost = volume(lost.index(layout.nodes.len()) as u64);
        layout.volumes.get_mut(&lost).expect("known").state = VolumeState::ReadOnly;
        let persisted: Vec<Held> = held(&first).into_iter().zip(&kept).filter_map(|(held, &kept)| kept.then_some(held)).collect();
        let usable: Vec<VolumeId> = layout.volumes.keys().copied().filter(|&id| layout.writable(id)).collect();
        match replace(&layout, &profile, instance(number), StripeIndex(0), &persisted, &BTreeSet::new()) {
            Err(_) => prop_assert!(usable.is_empty()),
            Ok(homes) => {
                prop_assert!(homes.iter().all(|(_, id)| usable.contains(id)));
                let all: Vec<Held> =
                    persisted.iter().copied().chain(homes.iter().map(|&(shard, volume)| Held { shard, volume })).collect();
                prop_assert_eq!(all.iter().map(|held| held.shard).collect::<BTreeSet<_>>().len(), profile.code.total());
                prop_assert_eq!(all.len(), profile.code.total());
                let got = rank(strongest(&all, profile.code.data(), &layout), &profile);
                prop_assert_eq!(got, best_of_all(&layout, &profile, &persisted, &usable));
            }
        }
    }

    #[test]
    fn volumes_repeat_only_when_a_node_has_too_few(sites in topologies(), code in codes(), volumes in 1_u64..4, number: u128) {
        let (layout, profile) = (cluster(&sites, volumes), profile(code, "1 node"));
        let placed = place(&layout, &profile, instance(number), StripeIndex(0), &BTreeSet::new()).expect("placed");
        for node in layout.nodes.keys() {
            let on_node: Vec<VolumeId> = placed.iter().copied().filter(|id| layout.volumes[id].node == *node).collect();
            let distinct = on_node.iter().collect::<BTreeSet<_>>().len();
            prop_assert_eq!(distinct, on_node.len().min(usize::try_from(volumes).expect("small")));
        }
    }
}

/// Shards per volume over many stripes.
fn shares(layout: &Layout, profile: &Profile, stripes: u32) -> BTreeMap<VolumeId, usize> {
    let placer = Placer::new(layout, profile, &BTreeSet::new()).expect("placed");
    let mut shares = BTreeMap::new();
    for stripe in 0..stripes {
        for id in placer.place(instance(u128::from(stripe) / 4), StripeIndex(stripe % 4)) {
            *shares.entry(id).or_default() += 1;
        }
    }
    shares
}

fn assert_near(shares: &BTreeMap<VolumeId, usize>, layout: &Layout, percent: usize) {
    let all: u64 = layout.volumes.values().map(|volume| volume.capacity_bytes >> 30).sum();
    let total: usize = shares.values().sum();
    for (id, known) in &layout.volumes {
        let fair =
            total * usize::try_from(known.capacity_bytes >> 30).expect("small") / usize::try_from(all).expect("small");
        let got = shares.get(id).copied().unwrap_or(0);
        assert!(got.abs_diff(fair) * 100 <= fair * percent, "{id}: {got} shards, fair {fair}");
    }
}

#[test]
fn shares_follow_capacity() {
    // One site of nine nodes with capacities 1:2:3, and three sites of unequal nodes and volumes with the same sum.
    let mut flat = cluster(&[9], 1);
    for (number, known) in (0_u64..).zip(flat.volumes.values_mut()) {
        known.capacity_bytes = (1 + number % 3) << 40;
    }
    assert_near(&shares(&flat, &profile("2+2", "2 nodes"), 40_000), &flat, 12);
    let mut sites = cluster(&[4, 4, 4], 2);
    for (number, known) in (0_u64..).zip(sites.volumes.values_mut()) {
        known.capacity_bytes = (2 + number % 4) << 39;
    }
    assert_near(&shares(&sites, &profile("4+2", "1 site"), 40_000), &sites, 12);
    let mut wide = cluster(&[2; 9], 1);
    for (number, known) in (0_u64..).zip(wide.volumes.values_mut()) {
        known.capacity_bytes = (1 + number / 2 % 3) << 40;
    }
    assert_near(&shares(&wide, &profile("4+2", "2 sites"), 40_000), &wide, 12);
}

#[test]
fn data_shards_are_spread_evenly_over_a_set() {
    let layout = cluster(&[2, 2, 2], 1);
    let placer = Placer::new(&layout, &profile("4+2", "1 site"), &BTreeSet::new()).expect("placed");
    let mut data: BTreeMap<VolumeId, usize> = BTreeMap::new();
    for number in 0..6_000 {
        placer.place(instance(number), StripeIndex(0))[..4].iter().for_each(|&id| *data.entry(id).or_default() += 1);
    }
    assert!(data.values().all(|&count| (3_700..=4_300).contains(&count)), "{data:?}");
}

#[test]
fn stripes_share_few_sets() {
    let layout = cluster(&[10, 10, 10], 2);
    let profile = profile("4+2", "1 site");
    let placer = Placer::new(&layout, &profile, &BTreeSet::new()).expect("placed");
    let mut sets = BTreeSet::new();
    for number in 0..20_000 {
        sets.insert(placer.place(instance(number), StripeIndex(0)).into_iter().collect::<BTreeSet<_>>());
    }
    assert!(sets.len() <= 60 * SCATTER / 6, "{} sets", sets.len());
    assert!(sets.len() >= 100, "{} sets: enough partners for repair", sets.len());
}

#[test]
fn one_layout_gives_one_answer_and_a_reversed_change_gives_it_again() {
    let mut layout = cluster(&[3, 3, 3], 2);
    let profile = profile("5+4", "1 site + 1 node");
    let at = |layout: &Layout| place(layout, &profile, instance(5), StripeIndex(3), &BTreeSet::new()).expect("placed");
    let before = at(&layout);
    take_down(&mut layout, 4);
    assert!(at(&layout).iter().all(|id| layout.writable(*id)));
    layout.nodes.get_mut(&NodeId(4)).expect("known").state = NodeState::Up;
    layout.version = LayoutVersion(3);
    assert_eq!(at(&layout), before);
}

#[test]
fn below_the_floor_the_error_says_what_is_missing() {
    let mut layout = cluster(&[2, 2, 2], 1);
    let profile = Profile { floor: "1 node".parse().expect("a contract"), ..profile("4+2", "1 site") };
    (0..4).for_each(|node| take_down(&mut layout, node));
    let error =
        place(&layout, &profile, instance(1), StripeIndex(0), &BTreeSet::from([volume(5)])).expect_err("one node left");
    assert_eq!(
        error.to_string(),
        "profile tested (4+2) accepts no write that survives less than any one node; 1 of 6 volumes (4 on nodes that \
         are not up, 1 failed in this write) are writable, on nodes site-2 1, and allow at most no failure"
    );
    fence(&mut layout, 4);
    let error =
        place(&layout, &profile, instance(1), StripeIndex(0), &BTreeSet::from([volume(5)])).expect_err("none left");
    assert_eq!(
        error.to_string(),
        "no writable volume: 0 of 6 volumes (4 on nodes that are not up, 1 fenced, 1 failed in this write)"
    );
}

#[test]
fn draws_by_weight_follow_weights() {
    let mut counts = [0_u32; 2];
    let share = |weight, tie| Share { weight, tie, ..Share::default() };
    let (light, heavy) = (share(1, 11), share(3, 22));
    for salt in 0..10_000 {
        let round = Round { salt: mixed(salt), drawn: true };
        counts[usize::from(round.order(&heavy, &light) == Ordering::Less)] += 1;
    }
    assert!((7_200..=7_800).contains(&counts[1]), "{counts:?}");
}
