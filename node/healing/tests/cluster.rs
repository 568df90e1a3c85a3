//! Six healers with one catalog: from silence to full contract, without anybody's help.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use pacsvault_core::{
    catalog::{Command, Outcome, command::DrainTarget, query},
    health::{Loss, Tier, report::Health},
    ids::InstanceId,
    layout::NodeState,
};
use pacsvault_healing::Healer;
use support::{PATIENCE, START, World, catalog, node_id, until, volume};

/// Asks for health until it is as wanted.
async fn until_told(healer: &Healer, what: &str, ready: impl Fn(&Health) -> bool) -> Health {
    let asking = async {
        loop {
            match healer.health().await {
                Ok(health) if ready(&health) => return health,
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap_or_else(|_| panic!("it is never told: {what}"))
}

fn store_many(world: &World, count: u64) -> Vec<InstanceId> {
    (1..=count).map(|number| world.store(number, catalog::ALL)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_silent_node_held_is_made_again_and_all_is_whole() {
    let world = World::new(true);
    let ids = store_many(&world, 60);
    let healers = world.run_all();
    until("all is whole at first", || ids.iter().all(|id| world.is_whole(*id))).await;
    world.set_dark(4, true);
    until("the node is down", || world.layout().nodes[&node_id(4)].state == NodeState::Down).await;
    until("all is whole without it", || ids.iter().all(|id| world.is_whole(*id))).await;
    assert!(ids.iter().all(|id| !world.record(*id).seal.stripes[0].placement.contains(&volume(4))));
    until_told(&healers[0], "nothing is left to do", |health| health.waiting.is_empty() && health.in_progress == 0)
        .await;
    let health = healers[2].health().await.unwrap();
    assert_eq!((health.leader, health.done_stripes, health.below_contract.stripes), (node_id(0), 60, 0));
    assert!(health.aside.is_empty() && health.done_bytes == 60 * 1_000);
    world.set_dark(4, false);
    until("it is up again", || world.layout().nodes[&node_id(4)].state == NodeState::Up).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stripe_that_is_lost_is_set_aside_and_blocks_no_other() {
    let world = World::new(true);
    let lost = world.store(1, 0b01_1111);
    let good: Vec<InstanceId> = (2..40).map(|number| world.store(number, 0b01_1111)).collect();
    world.shards().retain(|(volume, shard), _| shard.instance != lost || *volume == support::volume(3));
    let healers = world.run_all();
    until("the others are whole", || good.iter().all(|id| world.is_whole(*id))).await;
    until("it is set aside", || query::asides(&world.catalog().state, 10).unwrap().1 == 1).await;
    let health = until_told(&healers[0], "it is told", |health| health.aside_total == 1).await;
    assert!(health.aside[0].reason.contains("1 of 4 shards"), "{:?}", health.aside);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_is_drained_and_another_leader_finishes_it() {
    let world = World::new(true);
    let ids = store_many(&world, 40);
    let healers = world.run_all();
    let target = DrainTarget::Volume(volume(1));
    let heard = |health: &Health| health.nodes.iter().all(|node| node.silent_ms.is_some());
    until_told(&healers[3], "the leader has heard of all", heard).await;
    let plan = healers[3].drain_plan(target).await.unwrap();
    assert!(plan.safe && !plan.empty && plan.moves.stripes == 40, "{plan:?}");
    world.set_dark(3, true);
    let guessed = healers[3].drain_plan(target).await.unwrap();
    assert!(!guessed.safe && guessed.reasons.last().unwrap().starts_with("no leader answers"), "{guessed:?}");
    let loss = Loss { volumes: vec![volume(1)], ..Loss::default() };
    assert!(healers[3].what_if(loss).await.unwrap().all_readable, "it is answered without a leader too");
    world.set_dark(3, false);
    let drain = Command::SetDrain { target, draining: true };
    assert_eq!(world.catalog().one(START, drain), Outcome::Done);
    let left = || ids.iter().filter(|id| world.record(**id).seal.stripes[0].placement.contains(&volume(1))).count();
    until("it has begun", || left() < 40).await;
    world.lead(5);
    until("it is empty", || left() == 0).await;
    assert!(ids.iter().all(|id| world.is_whole(*id)));
    assert!(healers[3].drain_plan(target).await.unwrap().empty);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health_is_forwarded_and_what_if_is_answered_everywhere() {
    let world = World::new(false);
    store_many(&world, 3);
    let healers = world.run_all();
    let health = healers[4].health().await.unwrap();
    assert_eq!((health.leader, health.worst, health.format), (node_id(0), Some(Tier::Distance(2)), 2));
    let loss = Loss { sites: vec!["site-1".parse().unwrap()], ..Loss::default() };
    let answer = healers[2].what_if(loss).await.unwrap();
    assert!(answer.all_readable && answer.quorum && answer.nodes_lost.len() == 2);
    assert_eq!(answer.voters, (4, 6));
    world.lead(2);
    assert_eq!(healers[0].health_here().await.unwrap_err().code, "PV-NOT-LEADER");
    assert_eq!(healers[4].health().await.unwrap().leader, node_id(2));
}
