//! The planner: nothing it proposes weakens a stripe, everything heals that can, and then it is quiet.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;
use crate::ids::{ShardIndex, SiteName, WallMillis};
use crate::layout::placement::{Placer, place};
use crate::layout::survival::{covers, strongest};
use crate::layout::testing::{cluster, fence, profile, site, take_down, volume};
use crate::layout::{Contract, Failures, NodeState, Profile, VolumeState};

#[derive(Debug)]
struct World {
    layout: Layout,
    silent: BTreeMap<NodeId, Duration>,
    pace: Pace,
    rooms: BTreeMap<VolumeId, Room>,
}

impl World {
    fn new(sites: &[usize], per_node: u64, profile: &Profile) -> Self {
        let mut layout = cluster(sites, per_node);
        layout.profiles.insert(profile.name.clone(), profile.clone());
        Self { layout, silent: BTreeMap::new(), pace: Pace::default(), rooms: BTreeMap::new() }
    }

    fn situation(&self) -> Situation<'_> {
        Situation { layout: &self.layout, silent: &self.silent, pace: &self.pace, rooms: &self.rooms }
    }

    fn profile(&self) -> &Profile {
        self.layout.profiles.values().next().expect("one profile")
    }

    fn set(&mut self, node: u64, state: NodeState, silent_s: u64) {
        self.layout.nodes.get_mut(&NodeId(node)).expect("a known node").state = state;
        self.silent.insert(NodeId(node), Duration::from_secs(silent_s));
    }

    fn set_site(&mut self, number: usize, state: NodeState, silent_s: u64) {
        let name: SiteName = site(number);
        let nodes: Vec<u64> =
            self.layout.nodes.values().filter(|node| node.site == name).map(|node| node.id.0).collect();
        nodes.into_iter().for_each(|node| self.set(node, state, silent_s));
    }

    fn stripe(&self, number: u128) -> StripeState {
        let profile = self.profile();
        let instance =
            InstanceId::new(WallMillis(1_700_000_000_000 + u64::try_from(number % 1000).unwrap_or(0)), number);
        let volumes =
            place(&self.layout, profile, instance, StripeIndex(0), &BTreeSet::new()).expect("volumes are there");
        self.on(instance, volumes)
    }

    fn on(&self, instance: InstanceId, volumes: Vec<VolumeId>) -> StripeState {
        let profile = self.profile();
        StripeState {
            instance,
            stripe: StripeIndex(0),
            stripe_bytes: 4 << 20,
            code: profile.code,
            profile: profile.name.clone(),
            persisted: u32::MAX >> (32 - volumes.len()),
            volumes,
            former: BTreeMap::new(),
        }
    }

    fn claims(&self, state: &StripeState) -> Vec<Failures> {
        strongest(&super::super::held(&state.volumes, state.persisted), state.code.data(), &self.layout)
    }

    fn keeps(&self, state: &StripeState) -> bool {
        covers(&self.claims(state), &self.profile().contract)
    }

    /// Plans until there is nothing to do; the number of tasks carried out and of shards written.
    fn heal(&self, state: &mut StripeState) -> (usize, usize) {
        let (mut tasks, mut written) = (0, 0);
        while let Planned::Task(task) = task(state, &self.situation()) {
            (tasks, written) = (tasks + 1, written + task.moves.len());
            carry_out(state, &task);
            assert!(tasks < 40, "never quiet: {state:?}");
        }
        (tasks, written)
    }
}

fn carry_out(state: &mut StripeState, task: &Task) {
    assert_eq!((&task.expected, task.persisted), (&state.volumes, state.persisted));
    for (shard, to) in &task.moves {
        let at = usize::from(shard.0);
        if state.volumes[at] != *to {
            state.former.insert(*shard, state.volumes[at]);
        }
        state.volumes[at] = *to;
        state.persisted |= 1 << at;
    }
}

fn group_of(state: &StripeState, stripes: u64) -> Group {
    let sums = Sums {
        stripes,
        content_bytes: state.stripe_bytes * stripes,
        shard_bytes: state.code.shard_bytes(state.stripe_bytes) * stripes,
    };
    Group {
        placement: PlacementId(7),
        volumes: state.volumes.clone(),
        profile: state.profile.clone(),
        profile_version: 1,
        code: state.code,
        sums,
    }
}

fn profiles() -> impl Strategy<Value = Profile> {
    let codes = prop::sample::select(vec!["1+1", "2+1", "2+2", "3+2", "4+2", "3+3", "2+4", "5+4"]);
    let contracts = prop::sample::select(vec!["1 node", "1 site", "2 nodes", "1 site + 1 node", "1 site; 2 nodes"]);
    (codes, contracts).prop_map(|(code, contract)| profile(code, contract))
}

/// A node's or volume's trouble: which, of what kind, silent for how many seconds.
fn troubles() -> impl Strategy<Value = Vec<(u64, u8, u64)>> {
    prop::collection::vec((0_u64..18, 0_u8..9, prop::sample::select(vec![0_u64, 7, 15, 60, 400])), 0..4)
}

fn trouble(world: &mut World, troubles: &[(u64, u8, u64)]) {
    for &(number, kind, silent_s) in troubles {
        let node = number % world.layout.nodes.len() as u64;
        let disk = volume(number % world.layout.volumes.len() as u64);
        let disk = world.layout.volumes.get_mut(&disk).expect("a known volume");
        match kind {
            0 => disk.state = VolumeState::Fenced,
            1 => disk.state = VolumeState::Away,
            2 => disk.state = VolumeState::ReadOnly,
            3 => disk.draining = true,
            4 => world.layout.nodes.get_mut(&NodeId(node)).expect("a known node").draining = true,
            5 => world.set(node, NodeState::Suspect, silent_s),
            6 => world.set(node, NodeState::Down, silent_s),
            7 => world.set(node, NodeState::Lost, 100_000),
            _ => {
                let full = Room { capacity_bytes: 1 << 40, used_bytes: 1 << 39, free_bytes: 1 << 10 };
                world.rooms.insert(volume(number % world.layout.volumes.len() as u64), full);
            }
        }
    }
}

fn worlds() -> impl Strategy<Value = (World, StripeState)> {
    let sites = prop::collection::vec(1_usize..=3, 1..=4);
    let formers = prop::collection::vec((0_u8..9, 0_u64..18), 0..3);
    (sites, 1_u64..3, profiles(), troubles(), any::<u128>(), prop::option::weighted(0.4, any::<u32>()), formers)
        .prop_map(|(sites, per_node, profile, troubles, number, lost, formers)| {
            let mut world = World::new(&sites, per_node, &profile);
            let mut state = world.stripe(number);
            // Every other bit is kept on average of two draws, so that most stripes stay readable.
            state.persisted &= lost.map_or(u32::MAX, |lost| lost | lost.rotate_left(7));
            let volumes = world.layout.volumes.len() as u64;
            for (shard, at) in formers.into_iter().filter(|(shard, _)| usize::from(*shard) < profile.code.total()) {
                state.former.insert(ShardIndex(shard), volume(at % volumes));
            }
            trouble(&mut world, &troubles);
            (world, state)
        })
}

fn covers_all(more: &[Failures], less: &[Failures]) -> bool {
    less.iter().all(|one| covers(more, &Contract::one(*one)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, max_global_rejects: 100_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_task_weakens_a_stripe_and_each_is_seen_by_the_survey((world, state) in worlds()) {
        let planned = task(&state, &world.situation());
        prop_assert_eq!(&planned, &task(&state, &world.situation()), "deterministic");
        let survey = survey(&[group_of(&state, 1)], std::slice::from_ref(&state), &world.situation());
        prop_assert_eq!(&survey.by_tier.0.values().map(|sums| sums.stripes).collect::<Vec<_>>(), &[1]);
        prop_assert_eq!(survey.below_contract.stripes == 1, !world.keeps(&state));
        match &planned {
            Planned::Task(task) => {
                let mut after = state.clone();
                carry_out(&mut after, task);
                let claims = world.claims(&after);
                let drained = task.cause == Cause::Drain || state.volumes.iter().any(|&at| world.layout.draining(at));
                prop_assert!(
                    covers_all(&claims, &world.claims(&state)) || (drained && world.keeps(&after)),
                    "{:?} becomes {:?} by {:?}", world.claims(&state), claims, task
                );
                let shards: BTreeSet<ShardIndex> = task.moves.iter().map(|(shard, _)| *shard).collect();
                prop_assert!(!task.moves.is_empty() && shards.len() == task.moves.len());
                prop_assert!(task.moves.iter().all(|(_, to)| world.layout.writable(*to)));
                prop_assert_eq!(&survey.work, &[Work { tier: task.tier, cause: task.cause, what: Item::Stripe(0) }]);
                prop_assert_eq!(survey.waiting[&task.cause].shard_bytes, task.write_bytes);
            }
            Planned::Impossible(_) => prop_assert_eq!(survey.work.len(), 1),
            Planned::Nothing => prop_assert!(survey.work.is_empty() && survey.held_back.is_empty()),
            Planned::Wait(why) => prop_assert!(survey.work.is_empty() && !survey.held_back.is_empty(), "{}", why),
        }
    }

    #[test]
    fn all_heals_that_can_and_then_nothing_is_left_to_do((mut world, mut state) in worlds()) {
        // Nobody is waited for any more.
        let away: Vec<u64> = world.layout.nodes.values()
            .filter(|node| matches!(node.state, NodeState::Down | NodeState::Suspect)).map(|node| node.id.0).collect();
        away.into_iter().for_each(|node| world.set(node, NodeState::Lost, 100_000));
        let unreadable = world.claims(&state).is_empty();
        world.heal(&mut state);
        let (left, claims) = (task(&state, &world.situation()), world.claims(&state));
        let crowded: BTreeSet<VolumeId> = world.rooms.keys().copied().collect();
        let able = world.layout.volumes.keys().any(|id| world.layout.writable(*id) && !crowded.contains(id));
        prop_assume!(!unreadable && able);
        prop_assert!(!matches!(left, Planned::Impossible(_)));
        let all = state.volumes.iter().all(|at| world.layout.counts(*at)) && state.persisted.count_ones() as usize == state.volumes.len();
        prop_assert!(all, "every shard has a place: {:?}", left);
        let mut both = world.profile().clone();
        both.contract = Contract::new(both.contract.failures().iter().chain(&claims).copied().collect()).expect("not empty");
        let fresh = Placer::new(&world.layout, &both, &crowded).expect("volumes are there");
        let full = state.volumes.iter().all(|at| world.layout.writable(*at));
        prop_assert!(world.keeps(&state) || fresh.degraded(), "{:?} {:?} on {:?}", left, claims, state.volumes);
        prop_assert!(!(world.keeps(&state) && full) || left == Planned::Nothing, "{:?}", left);
        let quiet = survey(&[group_of(&state, 3)], &[], &world.situation());
        prop_assert!(quiet.work.is_empty(), "{:?}", quiet);
    }

    #[test]
    fn nodes_that_flap_and_sites_that_blink_make_no_work(
        sites in prop::collection::vec(2_usize..=3, 2..=4), profile in profiles(), number: u128,
        flapping in prop::collection::btree_set(0_u64..12, 0..5), blinking in 0_usize..4,
    ) {
        let mut world = World::new(&sites, 2, &profile);
        let state = world.stripe(number);
        prop_assume!(world.keeps(&state));
        for node in flapping.into_iter().filter(|node| *node < sites.iter().sum::<usize>() as u64) {
            world.set(node, NodeState::Suspect, 8);
        }
        prop_assert_eq!(task(&state, &world.situation()), Planned::Nothing);
        world.set_site(blinking % sites.len(), NodeState::Suspect, 29);
        prop_assert_eq!(task(&state, &world.situation()), Planned::Nothing);
    }

    #[test]
    fn a_site_outage_makes_work_of_nothing_but_what_the_next_failure_would_lose(
        sites in prop::collection::vec(1_usize..=3, 2..=4), profile in profiles(), numbers in prop::collection::vec(any::<u128>(), 1..8),
        out in 0_usize..4, silent_s in 30_u64..80_000,
    ) {
        let mut world = World::new(&sites, 2, &profile);
        let states: Vec<StripeState> = numbers.iter().map(|number| world.stripe(*number)).collect();
        // Stripes that could be placed better are respread with or without an outage.
        prop_assume!(states.iter().all(|state| task(state, &world.situation()) == Planned::Nothing));
        world.set_site(out % sites.len(), NodeState::Down, silent_s);
        let groups: Vec<Group> = states.iter().map(|state| group_of(state, 2)).collect();
        let survey = survey(&groups, &[], &world.situation());
        prop_assert!(survey.work.iter().all(|work| work.tier <= Tier::Distance(0)), "{:?}", survey);
    }

    #[test]
    fn a_respread_moves_as_few_shards_as_can_be(
        sites in prop::collection::vec(1_usize..=2, 2..=3), code in prop::sample::select(vec!["2+1", "2+2", "3+2", "4+2", "2+4"]),
        contract in prop::sample::select(vec!["1 node", "1 site", "2 nodes", "1 site; 2 nodes"]), at in prop::collection::vec(0_u64..6, 6),
    ) {
        let profile = profile(code, contract);
        let world = World::new(&sites, 1, &profile);
        let nodes = world.layout.nodes.len() as u64;
        let volumes: Vec<VolumeId> = at[..profile.code.total()].iter().map(|at| volume(at % nodes)).collect();
        let state = world.on(InstanceId::new(WallMillis(1), 1), volumes);
        let before = world.claims(&state);
        prop_assume!(!world.keeps(&state));
        let mut fewest = None;
        for number in 0..nodes.pow(u32::try_from(state.volumes.len()).expect("small")) {
            let mut other = state.clone();
            let mut rest = number;
            for at in &mut other.volumes {
                *at = volume(rest % nodes);
                rest /= nodes;
            }
            let moved = other.volumes.iter().zip(&state.volumes).filter(|(new, old)| new != old).count();
            if fewest.is_none_or(|fewest| moved < fewest) && world.keeps(&other) && covers_all(&world.claims(&other), &before) {
                fewest = Some(moved);
            }
        }
        match task(&state, &world.situation()) {
            Planned::Task(task) if fewest.is_some() => {
                prop_assert_eq!(task.cause, Cause::Respread);
                prop_assert_eq!(Some(task.moves.len()), fewest);
            }
            // Where the contract cannot hold, what the next node would lose is spread all the same.
            Planned::Task(task) => {
                prop_assert_eq!((task.cause, task.tier), (Cause::Respread, Tier::Distance(0)));
                let mut after = state.clone();
                carry_out(&mut after, &task);
                prop_assert!(covers_all(&world.claims(&after), &[Failures { sites: 0, nodes: 1 }]), "{:?}", task);
            }
            other => prop_assert_eq!(fewest, None, "{:?}", other),
        }
    }
}

#[test]
fn extra_shards_of_an_outage_are_trimmed_to_where_they_were() {
    let mut world = World::new(&[2, 2, 2], 2, &profile("4+2", "1 site"));
    let first: Vec<StripeState> = (0..200).map(|number| world.stripe(number)).collect();
    world.set_site(1, NodeState::Down, 60);
    let survey = survey(&[group_of(&first[0], 9)], &[], &world.situation());
    assert_eq!(survey.worst, Some(Tier::Distance(0)));
    assert_eq!(survey.work, [Work { tier: Tier::Distance(0), cause: Cause::Repair, what: Item::Group(0) }]);
    let mut states = first.clone();
    for state in &mut states {
        assert_eq!(world.heal(state), (1, 2));
        assert_eq!(Tier::of(&super::super::held(&state.volumes, state.persisted), 4, &world.layout), Tier::Distance(1));
    }
    world.set_site(1, NodeState::Up, 0);
    for (state, before) in states.iter_mut().zip(&first) {
        assert_eq!(world.heal(state), (1, 2));
        assert_eq!(state.volumes, before.volumes);
    }
}

#[test]
fn a_site_that_is_away_is_waited_for_until_it_is_lost() {
    let mut world = World::new(&[3, 3, 3], 1, &profile("5+4", "1 site + 1 node"));
    let state = world.stripe(1);
    world.set_site(2, NodeState::Down, 3600);
    let told = survey(&[group_of(&state, 512)], &[], &world.situation());
    assert_eq!((told.worst, told.below_contract.stripes), (Some(Tier::Distance(1)), 512));
    assert!(told.work.is_empty());
    assert_eq!(
        told.held_back,
        ["site site-2 is away: 1.1 GiB in 512 stripes wait for its return for another 23 h 0 min"]
    );
    assert_eq!(
        task(&state, &world.situation()),
        Planned::Wait("site site-2 is away for another 23 h 0 min".to_owned())
    );
    world.set_site(2, NodeState::Lost, 90_000);
    assert!(matches!(task(&state, &world.situation()), Planned::Task(task) if task.moves.len() == 3));
}

#[test]
fn a_node_that_is_down_is_waited_for_unless_the_next_failure_loses_data() {
    let mut world = World::new(&[3, 3, 3], 1, &profile("4+2", "1 site"));
    let state = world.stripe(5);
    let holder = world.layout.node_of(state.volumes[0]).expect("known").id.0;
    world.set(holder, NodeState::Down, 60);
    assert!(matches!(task(&state, &world.situation()), Planned::Wait(why) if why.contains("for another 4 min 0 s")));
    world.set(holder, NodeState::Down, 300);
    assert!(matches!(task(&state, &world.situation()), Planned::Task(task) if task.moves.len() == 1));
    world.set(holder, NodeState::Down, 60);
    let other = world.layout.node_of(state.volumes[1]).expect("known").id.0;
    world.set(other, NodeState::Down, 31);
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("nothing is waited for at distance 0") };
    assert_eq!((found.tier, found.cause, found.moves.len()), (Tier::Distance(0), Cause::Repair, 2));
}

#[test]
fn a_suspect_beside_a_node_that_is_down_makes_its_stripes_urgent() {
    let mut world = World::new(&[3, 3, 3], 1, &profile("4+2", "1 site"));
    let state = world.stripe(5);
    let holder = |at: usize| world.layout.node_of(state.volumes[at]).expect("known").id.0;
    let (one, other) = (holder(0), holder(1));
    world.set(one, NodeState::Down, 60);
    world.set(other, NodeState::Suspect, 9);
    assert!(matches!(task(&state, &world.situation()), Planned::Wait(_)));
    world.set(other, NodeState::Suspect, 10);
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("a suspect of 10 s is taken for gone") };
    assert_eq!((found.tier, found.cause), (Tier::Distance(0), Cause::Repair));
    assert_eq!(found.moves[0].0, ShardIndex(0));
}

#[test]
fn a_stripe_at_its_last_node_is_spread_also_where_its_contract_cannot_hold() {
    // Nine shards, of which any one site and a node may be lost; two of nine volumes are gone.
    let mut world = World::new(&[3, 3, 3], 1, &profile("5+4", "1 site + 1 node"));
    let mut state = world.stripe(1);
    let crowded = [0, 0, 0, 0, 0, 4, 6, 7, 8].map(volume).to_vec();
    state = world.on(state.instance, crowded);
    fence(&mut world.layout, 5);
    world.set(2, NodeState::Lost, 90_000);
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("the loss of node 0 loses it") };
    assert_eq!((found.tier, found.cause), (Tier::Distance(0), Cause::Respread));
    carry_out(&mut state, &found);
    assert!(covers_all(&world.claims(&state), &[Failures { sites: 0, nodes: 1 }]), "{:?}", world.claims(&state));
    assert!(
        matches!(task(&state, &world.situation()), Planned::Wait(why) if why.contains("do not allow the contract"))
    );
}

#[test]
fn a_damaged_shard_is_made_again_where_it_is_unless_there_is_no_room() {
    let mut world = World::new(&[2, 2, 2], 2, &profile("4+2", "1 site"));
    let mut state = world.stripe(3);
    state.persisted &= !(1 << 4);
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("a shard is missing") };
    assert_eq!(found.moves, [(ShardIndex(4), state.volumes[4])]);
    world.rooms.insert(state.volumes[4], Room { capacity_bytes: 100, used_bytes: 96, free_bytes: 1 << 40 });
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("a shard is missing") };
    assert_ne!(found.moves[0].1, state.volumes[4]);
}

#[test]
fn a_stripe_that_cannot_be_read_is_waited_for_asked_of_former_holders_or_lost() {
    let mut world = World::new(&[2, 2, 2], 1, &profile("4+2", "1 site"));
    let mut state = world.stripe(3);
    for node in 0..3 {
        take_down(&mut world.layout, node);
    }
    assert!(
        matches!(task(&state, &world.situation()), Planned::Wait(why) if why.contains("node node-0 of site site-0"))
    );
    let mut world = World::new(&[2, 2, 2], 2, &profile("4+2", "1 site"));
    for number in (0..12).filter(|number| state.volumes[..3].contains(&volume(*number))) {
        fence(&mut world.layout, number);
    }
    assert!(matches!(task(&state, &world.situation()), Planned::Impossible(why)
        if why.starts_with("4 of 6 shards are needed; 3 are present, 0 may return, 3 are lost or damaged")));
    let other = (0..12).map(volume).find(|at| !state.volumes.contains(at)).expect("twelve volumes");
    state.former.insert(ShardIndex(1), other);
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("a former holder may have it") };
    assert_eq!((found.tier, found.moves), (Tier::Unreadable, vec![(ShardIndex(1), other)]));
}

#[test]
fn former_holders_are_asked_for_what_cannot_be_read_while_its_nodes_are_away() {
    let mut world = World::new(&[2, 2, 2], 2, &profile("4+2", "1 site"));
    let mut state = world.stripe(3);
    // As after a repair while the others were away: three shards more on the first site, whose former copies are still there.
    let at = |volume: &VolumeId| world.layout.node_of(*volume).expect("known").id.0;
    let elsewhere: Vec<usize> = (0..6).filter(|shard| at(&state.volumes[*shard]) >= 2).take(3).collect();
    let mut room = (0..4).map(volume).filter(|at| !state.volumes.contains(at)).collect::<Vec<_>>();
    room.extend((0..4).map(volume));
    for (shard, new) in elsewhere.iter().zip(room) {
        let old = std::mem::replace(&mut state.volumes[*shard], new);
        state.former.insert(ShardIndex(u8::try_from(*shard).expect("small")), old);
    }
    take_down(&mut world.layout, 0);
    take_down(&mut world.layout, 1);
    let Planned::Task(found) = task(&state, &world.situation()) else { panic!("the former holders are there") };
    let asked: Vec<(ShardIndex, VolumeId)> = state.former.iter().map(|(shard, at)| (*shard, *at)).collect();
    assert_eq!((found.tier, found.cause, found.moves), (Tier::Unreadable, Cause::Repair, asked));
    // The group of such stripes is looked at one by one.
    let told = survey(&[group_of(&state, 5)], &[], &world.situation());
    assert_eq!(told.work.iter().map(|work| work.what).collect::<Vec<_>>(), [Item::Group(0)]);
    // With one of them gone the rest cannot help, and what is away is waited for.
    let first = asked_volume(&state);
    fence(&mut world.layout, (0..12).find(|number| volume(*number) == first).expect("known"));
    assert!(matches!(task(&state, &world.situation()), Planned::Wait(_)));
}

/// The first volume that held a shard of it before.
fn asked_volume(state: &StripeState) -> VolumeId {
    *state.former.values().next().expect("one")
}

#[test]
fn work_comes_by_tier_then_cause_then_age() {
    let mut world = World::new(&[3, 3, 3], 2, &profile("4+2", "1 site"));
    let whole = world.stripe(1);
    fence(&mut world.layout, (0..18).find(|number| volume(*number) == whole.volumes[0]).expect("known"));
    let mut incomplete: Vec<StripeState> = (10..14).rev().map(|number| world.stripe(number)).collect();
    incomplete.iter_mut().for_each(|state| state.persisted &= !1);
    incomplete[2].persisted &= !3;
    let groups = [group_of(&whole, 5), group_of(&incomplete[0], 1)];
    let told = survey(&groups, &incomplete, &world.situation());
    let items: Vec<Item> = told.work.iter().map(|work| work.what).collect();
    assert_eq!(items, [Item::Stripe(2), Item::Stripe(3), Item::Stripe(1), Item::Stripe(0), Item::Group(0)]);
    assert!(told.work.windows(2).all(|pair| (pair[0].tier, pair[0].cause) <= (pair[1].tier, pair[1].cause)));
    assert_eq!(told.waiting[&Cause::Repair].stripes, 9);
}

#[test]
fn drained_nodes_become_empty_while_the_contract_is_kept() {
    for (sites, code) in [(&[2, 2, 2][..], "4+2"), (&[3, 3, 3], "5+4"), (&[2, 2, 3], "2+2")] {
        let mut world = World::new(sites, 2, &profile(code, "1 site"));
        let mut states: Vec<StripeState> = (0..50).map(|number| world.stripe(number)).collect();
        world.layout.nodes.get_mut(&NodeId(3)).expect("known").draining = true;
        for state in &mut states {
            world.heal(state);
            assert!(world.keeps(state));
            assert!(!state.volumes.iter().any(|at| world.layout.draining(*at)), "{sites:?} {code}");
        }
    }
}
