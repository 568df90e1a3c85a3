//! Between two leaders, and with nodes that take requests and never answer.

#[allow(dead_code, reason = "every test binary uses another part of it")]
mod support;

use std::{sync::Arc, time::Duration};

use pacsvault_coordinator::{Coordinator, Options, PutHeader, Stored};
use pacsvault_core::{
    catalog::{Outcome, Rejection},
    ids::{LayoutVersion, LogIndex, NodeId, SiteName, VersionNumber},
    layout::{Layout, NodeState},
};
use pacsvault_ports::peer::{Class, Fault, Freshness};

use support::{Lie, NODES, World, content, key};

/// Far beyond every patience of these tests.
const LONG: Duration = Duration::from_secs(60);

fn patient_operations(options: &mut Options) {
    options.operation_deadline = LONG;
    options.catalog_deadline = LONG;
    options.lookup_patience = Duration::from_millis(50);
    options.change_patience = Duration::from_millis(80);
}

async fn put(coordinator: &Coordinator, number: u32) -> Result<Stored, Fault> {
    coordinator.put(PutHeader::new(key(number), "application/dicom"), content(1_000)).await
}

fn at_least(index: u64) -> Freshness {
    Freshness::AtLeast(LogIndex(index))
}

#[tokio::test]
async fn a_lookup_waits_for_writes_to_its_own_key_and_for_no_others() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(patient_operations);
    put(&world.coordinator(|_| {}), 1).await.expect("another coordinator's");
    put(&coordinator, 2).await.expect("is stored");
    put(&coordinator, 3).await.expect("is stored");
    // The last seal is in the log, but no replica has applied it: its leader is gone.
    world.kept().applied = Some(LogIndex(2));
    for (number, floor) in [(1, 0), (2, 2)] {
        world.kept().lookups.clear();
        let found = coordinator.lookup(&key(number), None, at_least(0)).await.expect("any replica has it");
        assert_eq!(found.seal.key, key(number));
        let asked: Vec<_> = world.kept().lookups.iter().map(|(_, freshness)| *freshness).collect();
        assert_eq!(asked, [at_least(3), at_least(floor)], "all own writes at first, then those to the key");
    }
    let own = tokio::spawn({
        let coordinator = coordinator.clone();
        async move { coordinator.lookup(&key(3), None, at_least(0)).await }
    });
    let named = tokio::spawn({
        let coordinator = coordinator.clone();
        async move { coordinator.lookup(&key(1), None, at_least(3)).await }
    });
    tokio::time::sleep(Duration::from_millis(150)).await;
    assert!(!own.is_finished(), "its own write must not be missed");
    assert!(!named.is_finished(), "nor what the caller has seen");
    world.kept().applied = Some(LogIndex(3));
    assert_eq!(own.await.expect("ends").expect("is found").index, LogIndex(3));
    assert!(named.await.expect("ends").is_ok());
}

#[tokio::test]
async fn an_old_layout_of_a_node_that_is_cut_off_refuses_no_write() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(patient_operations);
    let mut old = Layout::clone(&world.layout);
    old.version = LayoutVersion(0);
    old.nodes.values_mut().for_each(|node| node.state = NodeState::Down);
    // The node that the coordinator asks first.
    world.kept().cut_off.insert(1, Arc::new(old));
    let stored = put(&coordinator, 1).await.expect("the others know who is up");
    assert_eq!(stored.sealed.version, VersionNumber(1));
}

#[tokio::test]
async fn a_layout_from_a_bad_day_that_is_over_weakens_no_write() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|options| {
        patient_operations(options);
        options.layout_age_max = Duration::ZERO;
    });
    let mut bad = Layout::clone(&world.layout);
    bad.version = LayoutVersion(0);
    for number in [2, 5] {
        bad.nodes.get_mut(&NodeId(number)).expect("of the second site").state = NodeState::Down;
    }
    world.kept().cut_off.insert(1, Arc::new(bad));
    coordinator.layout().await.expect("that day's");
    world.kept().cut_off.clear();
    let stored = put(&coordinator, 1).await.expect("everybody is up");
    let placed = &stored.sealed.seal.stripes[0].placement;
    let second_site = placed.iter().filter(|volume| [2, 5].contains(&volume.0[0])).count();
    assert_eq!(second_site, 2, "shards of {placed:?} on the site that was down");
}

#[tokio::test]
async fn a_replica_that_says_it_is_behind_costs_no_patience() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|options| {
        patient_operations(options);
        options.lookup_patience = LONG;
    });
    put(&coordinator, 1).await.expect("is stored");
    put(&coordinator, 2).await.expect("is stored");
    world.kept().lookups.clear();
    world.kept().script.push_back(Lie::Fault(Fault::new(Class::Retry, "PV-REPLICA-BEHIND", "as scripted")));
    assert!(coordinator.lookup(&key(1), None, at_least(0)).await.is_ok());
    let asked: Vec<_> = world.kept().lookups.iter().map(|(_, freshness)| *freshness).collect();
    assert_eq!(asked, [at_least(2), at_least(1)]);
}

#[tokio::test]
async fn silent_nodes_cost_a_lookup_its_patience_and_the_next_one_nothing() {
    let world = World::new(4, 2);
    let site: SiteName = "site-1".parse().expect("a name");
    let coordinator = world.coordinator(|options| {
        patient_operations(options);
        options.site = Some(site);
    });
    put(&coordinator, 1).await.expect("is stored");
    // Both nodes of its own site, which it asks first.
    world.kept().silent.extend([1, 4]);
    let asked = |world: &World| world.kept().lookups.drain(..).map(|(node, _)| node).collect::<Vec<_>>();
    asked(&world);
    assert!(coordinator.lookup(&key(1), None, at_least(0)).await.is_ok());
    assert_eq!(asked(&world), [1, 4, 2]);
    assert!(coordinator.lookup(&key(1), None, at_least(0)).await.is_ok());
    assert_eq!(asked(&world), [2], "those who were overtaken are asked last");
    assert!(coordinator.lookup(&key(1), None, Freshness::Linearizable).await.is_ok());
    assert_eq!(asked(&world).len(), 1);
}

#[tokio::test]
async fn at_most_three_tries_are_under_way() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(patient_operations);
    put(&coordinator, 1).await.expect("is stored");
    world.kept().lookups.clear();
    world.kept().silent.extend(1..=NODES);
    let lookup = tokio::spawn(async move { coordinator.lookup(&key(1), None, at_least(0)).await });
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(world.kept().lookups.len(), 3);
    world.kept().silent.clear();
    assert!(lookup.await.expect("ends").is_ok());
}

#[tokio::test]
async fn a_write_is_sealed_through_another_node_while_the_first_is_silent() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(patient_operations);
    put(&coordinator, 1).await.expect("is stored");
    world.kept().silent.insert(1);
    let before = tokio::time::Instant::now();
    put(&coordinator, 2).await.expect("through another");
    assert!(before.elapsed() < Duration::from_secs(5), "not by the deadline");
    // Refused while the first try may yet be carried out: not definite.
    world.kept().silent.clear();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let other = world.coordinator(patient_operations);
    put(&other, 3).await.expect("is stored");
    world.kept().silent.insert(1);
    let too_weak = Rejection::TooWeak { stripe: 0, why: "as scripted".to_owned() };
    world.kept().script.push_back(Lie::Outcome(Outcome::Rejected(too_weak)));
    let unknown = put(&other, 4).await.expect_err("in doubt");
    assert_eq!((unknown.class, unknown.code), (Class::Unknown, "PV-UNKNOWN-OUTCOME"), "{unknown}");
}
