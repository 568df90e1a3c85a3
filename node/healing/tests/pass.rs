//! A pass whose tasks all go to one worker: how often it looks.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use pacsvault_core::{
    health::{
        repair::{sums_of, survey_all},
        report::Done,
    },
    ids::{LogIndex, WallMillis},
    layout::NodeState,
};
use pacsvault_healing::{
    desk::{Desk, READY_PER_WORKER_MAX, Rank},
    pass::{Ground, Pass, Surveyed, Wish, read_all},
};
use support::{START, World, catalog, node_id, pace};

const STRIPES: u64 = 9_000;
const NOW: Duration = Duration::from_secs(1);

#[tokio::test]
async fn a_pass_with_one_free_worker_looks_at_each_stripe_twice_at_most() {
    let world = World::new(true);
    let ids: Vec<_> = (1..=STRIPES).map(|number| world.store(number, catalog::ALL)).collect();
    let mut layout = (*world.layout()).clone();
    layout.nodes.get_mut(&node_id(4)).unwrap().state = NodeState::Down;
    let gone = &layout.nodes[&node_id(4)];
    let sibling = layout.nodes.values().find(|node| node.site == gone.site && node.id != gone.id).unwrap().id;
    let layout = Arc::new(layout);
    let silent = BTreeMap::from([(node_id(4), Duration::from_secs(3_600))]);
    let ground =
        Ground { layout: layout.clone(), silent, rooms: BTreeMap::new(), pace: pace(), time: WallMillis(START) };
    let state = world.catalog().state.clone();
    let surveyed = Arc::new(Surveyed::make(&state, ground, LogIndex(1)).unwrap());
    let mut pass = Pass::new(surveyed.clone(), None);
    let mut desk = Desk::new(8);
    let (mut looked, mut done) = (0, BTreeSet::new());
    for flight in 0.. {
        // A survey while the group is not yet at its end: it goes on where it stood.
        if flight == 300 {
            pass = Pass::new(surveyed.clone(), Some(pass));
        }
        let mut pieces = 0;
        while let Some(mut wish) = Wish::of(&desk, &pass, &layout, NOW) {
            let found = pass.go(&state, &mut wish).unwrap();
            looked += found.looked();
            desk.add(found.tasks);
            pieces += 1;
            assert!(pieces < 20, "it goes round in circles");
        }
        assert!(desk.ready_by_worker(&layout, Rank::Move).values().all(|ready| *ready <= READY_PER_WORKER_MAX));
        let Some(begun) = desk.next(flight, NOW, &layout) else { break };
        assert_eq!(begun.worker, sibling, "its sibling on the site is the only one");
        assert!(done.insert(begun.task.instance));
        let reseated = Done::Reseated { written_bytes: 1, read_bytes: 1, wan_bytes: 0 };
        desk.finish(flight, NOW, &Ok(reseated));
    }
    assert!(pass.ended());
    assert_eq!(done, ids.iter().copied().collect());
    let most = usize::try_from(2 * STRIPES).unwrap() + 1_000;
    assert!(looked <= most, "{looked} looks for {STRIPES} tasks");
}

#[tokio::test]
async fn stripes_told_in_crowds_give_the_same_figures() {
    let world = World::new(true);
    for number in 1..=20 {
        world.store(number, if number % 2 == 0 { catalog::ALL } else { 0b01_1111 });
    }
    let (silent, rooms) = (BTreeMap::new(), BTreeMap::new());
    let ground = Ground { layout: world.layout(), silent, rooms, pace: pace(), time: WallMillis(START) };
    let state = world.catalog().state.clone();
    let (groups, incomplete) = read_all(&state).unwrap();
    assert_eq!(incomplete.len(), 10);
    let crowds: Vec<_> = incomplete.iter().map(|state| (state.clone(), sums_of(state))).collect();
    let singly = survey_all(&groups, &incomplete, &[], &ground.situation());
    let crowded = survey_all(&groups, &[], &crowds, &ground.situation());
    assert_eq!((&singly.by_tier, &singly.waiting), (&crowded.by_tier, &crowded.waiting));
    assert_eq!((singly.below_contract, singly.worst), (crowded.below_contract, crowded.worst));
    assert_eq!((singly.work.len(), crowded.work.len()), (10, 0));
    assert_eq!(Surveyed::make(&state, ground, LogIndex(1)).unwrap().survey, singly);
}
