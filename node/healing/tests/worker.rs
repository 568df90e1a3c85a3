//! One task at a time: where its bytes come from, what it refuses, and what a crash between any two steps leaves.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::BTreeSet,
    panic::AssertUnwindSafe,
    sync::{Arc, Mutex, atomic::Ordering},
};

use bytes::Bytes;
use futures::FutureExt;
use pacsvault_core::{
    catalog::{Command, Outcome},
    health::report::Done,
    ids::{ShardIndex, StripeIndex, VolumeId},
    layout::{NodeState, VolumeState},
    shard::ShardId,
};
use pacsvault_ports::{
    crash,
    peer::{Class, Fault},
};
use tokio::task::JoinHandle;

use support::{STRIPE_BYTES, World, catalog, instance, node_id, pace, until, volume};

const SHARD: u64 = STRIPE_BYTES as u64 / 4;

fn shard_id(number: u64, shard: u8) -> ShardId {
    ShardId { instance: instance(support::START, number), stripe: StripeIndex(0), shard: ShardIndex(shard) }
}

fn written(done: &Done) -> (u64, u64, u64) {
    match done {
        Done::Reseated { written_bytes, read_bytes, wan_bytes } => (*written_bytes, *read_bytes, *wan_bytes),
        other => panic!("not reseated: {other:?}"),
    }
}

#[tokio::test]
async fn a_shard_that_was_never_durable_is_made_of_any_k() {
    let world = World::new(false);
    let id = world.store(1, 0b01_1111);
    let healer = world.healer(5, pace());
    let done = healer.repair(world.task(id, &[(5, volume(5))])).await.unwrap();
    let (written, read, _) = written(&done);
    assert_eq!((written, read), (SHARD, 4 * SHARD));
    assert!(world.is_whole(id));
}

#[tokio::test]
async fn a_shard_is_copied_from_the_volume_that_is_to_be_emptied() {
    let world = World::new(true);
    let id = world.store(1, catalog::ALL);
    // Nodes 0 and 3 are of one site.
    let (healer, _) = (world.healer(3, pace()), world.healer(0, pace()));
    let done = healer.repair(world.task(id, &[(0, catalog::spare(0))])).await.unwrap();
    assert_eq!(written(&done), (SHARD, SHARD, 0), "read once, and nothing between sites");
    assert_eq!(world.record(id).seal.stripes[0].placement[0], catalog::spare(0));
    assert!(world.is_whole(id));
}

#[tokio::test]
async fn a_shard_that_its_new_home_still_holds_is_not_fetched_again() {
    let world = World::new(true);
    let id = world.store(1, catalog::ALL);
    let healer = world.healer(0, pace());
    written(&healer.repair(world.task(id, &[(0, catalog::spare(0))])).await.unwrap());
    // Only the former copy is left to read.
    world.shards().retain(|(held, shard), _| shard.shard != ShardIndex(0) || *held == volume(0));
    let done = healer.repair(world.task(id, &[(0, volume(0))])).await.unwrap();
    assert_eq!(written(&done), (SHARD, SHARD, 0), "its own former copy");
    assert!(world.is_whole(id));
}

#[tokio::test]
async fn damaged_bytes_are_neither_copied_nor_built_upon() {
    let world = World::new(true);
    let id = world.store(1, catalog::ALL);
    for shard in [0, 1] {
        world.shards().get_mut(&(volume(shard), shard_id(1, shard))).unwrap().1 = Bytes::from(vec![9; 1_000]);
    }
    let healer = world.healer(0, pace());
    let done = healer.repair(world.task(id, &[(0, catalog::spare(0)), (1, catalog::spare(1))])).await.unwrap();
    assert_eq!(written(&done).0, 2 * SHARD);
    assert!(world.is_whole(id));
}

#[tokio::test]
async fn fewer_than_k_sound_shards_are_told_one_by_one() {
    let world = World::new(false);
    let id = world.store(1, 0b01_1111);
    world.shards().remove(&(volume(0), shard_id(1, 0)));
    world.shards().get_mut(&(volume(1), shard_id(1, 1))).unwrap().1 = Bytes::from(vec![9; 1_000]);
    let healer = world.healer(5, pace());
    match healer.repair(world.task(id, &[(5, volume(5))])).await.unwrap() {
        Done::Irreparable(why) => {
            assert!(why.starts_with("3 of 4"), "{why}");
            assert!(why.contains("shard 0 on") && why.contains("shard 1 on") && why.contains("shard 5"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn shards_out_of_reach_are_waited_for_not_given_up() {
    let world = World::new(false);
    let id = world.store(1, 0b01_1111);
    (0..2).for_each(|node| world.set_dark(node, true));
    let healer = world.healer(5, pace());
    let fault = healer.repair(world.task(id, &[(5, volume(5))])).await.unwrap_err();
    assert_eq!((fault.class, fault.code), (Class::Retry, "PV-REPAIR"));
    assert_eq!(world.puts.load(Ordering::SeqCst), 0);
}

/// A task that moves three shards of a stripe with every holder on a node that does not answer, once it waits for them.
async fn waits_for_silent_holders(world: &Arc<World>) -> JoinHandle<Result<Done, Fault>> {
    let id = world.store(1, catalog::ALL);
    (0..6).for_each(|number| world.set_silent(number));
    let healer = world.healer(6, pace());
    let moves = [0, 1, 2].map(|shard| (shard, catalog::spare(shard)));
    let task = world.task(id, &moves);
    let ends = tokio::spawn(async move { healer.repair(task).await });
    until("copies of all three are asked for", || world.calls_into_silence() == (3, 3)).await;
    ends
}

#[tokio::test]
async fn holders_that_fell_silent_are_waited_for_together() {
    let world = World::new(true);
    let ends = waits_for_silent_holders(&world).await;
    world.give_up();
    until("as many as are needed are asked for", || world.calls_into_silence() == (4, 7)).await;
    world.give_up();
    until("the others are", || world.calls_into_silence() == (2, 9)).await;
    world.give_up();
    assert_eq!(ends.await.unwrap().unwrap_err().class, Class::Retry);
    assert_eq!(world.calls_into_silence(), (0, 9));
}

#[tokio::test]
async fn holders_that_are_known_to_be_down_since_are_asked_no_more() {
    let world = World::new(true);
    let ends = waits_for_silent_holders(&world).await;
    for number in 0..6 {
        let down = Command::SetNodeState { node: node_id(number), state: NodeState::Down };
        assert_eq!(world.catalog().one(support::START, down), Outcome::Done);
    }
    world.give_up();
    let fault = ends.await.unwrap().unwrap_err();
    assert!(fault.class == Class::Retry && fault.message.contains("not up"), "{fault}");
    assert_eq!(world.calls_into_silence(), (0, 3));
}

#[tokio::test]
async fn a_volume_that_refuses_leaves_the_other_shards_repaired() {
    let world = World::new(true);
    let id = world.store(1, catalog::ALL);
    for shard in [4, 5] {
        world.shards().remove(&(volume(shard), shard_id(1, shard)));
        let report = Command::ReportDamage { volume: volume(shard), shards: vec![shard_id(1, shard)] };
        assert_eq!(world.catalog().one(support::START, report), Outcome::Done);
    }
    world.set_refusing(volume(5));
    let (healer, _) = (world.healer(4, pace()), world.healer(5, pace()));
    (0..4).for_each(|number| drop(world.healer(number, pace())));
    let done = healer.repair(world.task(id, &[(4, volume(4)), (5, volume(5))])).await.unwrap();
    assert_eq!(written(&done).0, SHARD);
    assert_eq!(world.record(id).seal.stripes[0].persisted, 0b01_1111);
    let fault = healer.repair(world.task(id, &[(5, volume(5))])).await.unwrap_err();
    assert!(fault.message.contains("PV-VOLUME-FULL"), "{fault}");
}

#[tokio::test]
async fn a_task_on_what_has_changed_does_nothing() {
    let world = World::new(true);
    let id = world.store(1, catalog::ALL);
    let healer = world.healer(0, pace());
    let task = world.task(id, &[(0, catalog::spare(0))]);
    let mut other = task.clone();
    other.persisted = 0b01_1111;
    assert_eq!(healer.repair(other).await.unwrap(), Done::Outdated);
    let fence = Command::SetVolumeState { volume: catalog::spare(0), state: VolumeState::Fenced };
    assert_eq!(world.catalog().one(support::START, fence), Outcome::Done);
    assert_eq!(healer.repair(task.clone()).await.unwrap(), Done::Outdated, "its target does not count");
    let delete = Command::Delete { key: world.record(id).seal.key, version: None };
    world.catalog().one(support::START, delete);
    assert_eq!(healer.repair(task).await.unwrap(), Done::Outdated, "deleted");
    assert_eq!(world.puts.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_crash_between_any_two_steps_leaves_the_old_homes_or_the_new_ones() {
    let source = include_str!("../src/worker.rs");
    let tags: BTreeSet<&str> = crash::tags_in(source);
    assert_eq!(tags.len(), 3);
    for tag in tags {
        let world = World::new(true);
        let id = world.store(1, catalog::ALL);
        let task = world.task(id, &[(0, catalog::spare(0)), (1, catalog::spare(1))]);
        let homes = |world: &Arc<World>| -> Vec<VolumeId> { world.record(id).seal.stripes.remove(0).placement };
        let before = homes(&world);
        let (healer, _) = (world.healer(0, pace()), world.healer(1, pace()));
        let due = Arc::new(Mutex::new(Some(tag.to_owned())));
        let trap = crash::trap(move |name| {
            let mut due = due.lock().unwrap();
            if due.as_deref() == Some(name) {
                *due = None;
                drop(due);
                println!("{}{name}", crash::CROSSED);
                std::panic::resume_unwind(Box::new("crash"));
            }
        });
        let died = AssertUnwindSafe(healer.repair(task.clone())).catch_unwind().await;
        drop(trap);
        assert!(died.is_err(), "{tag} is passed");
        assert!(world.is_whole(id), "{tag}: every named home holds its shard");
        let done = homes(&world) != before;
        assert_eq!(done, tag == "healing.3", "{tag}");
        // The next life, with nothing remembered.
        let again = world.healer(0, pace()).repair(task).await.unwrap();
        assert_eq!(again == Done::Outdated, done, "{tag}: {again:?}");
        assert!(world.is_whole(id) && homes(&world)[0] == catalog::spare(0), "{tag}");
    }
}
