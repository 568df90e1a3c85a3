//! Six healers with one catalog: a study gets the profile that is wanted for it.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use pacsvault_core::{
    catalog::{Command, Outcome, SealedInstance, query},
    ids::{ProfileName, VersionNumber},
    layout::{Contract, Failures, Profile, profile::Code},
};
use pacsvault_healing::Healer;
use support::{PATIENCE, World, catalog, until, volume};

fn hot() -> Profile {
    Profile {
        name: "hot".parse().unwrap(),
        code: Code::new(2, 4).unwrap(),
        contract: Contract::one(Failures { sites: 2, nodes: 0 }),
        ..catalog::profile()
    }
}

fn order(world: &World, command: Command) {
    let time = world.catalog().machine.time().0;
    let outcome = world.catalog().one(time, command);
    assert_eq!(outcome, Outcome::Done);
}

fn want(world: &World, profile: Option<ProfileName>) {
    let (tenant, study) = ("main".parse().unwrap(), "1.2".parse().unwrap());
    order(world, Command::SetStudyProfile { tenant, study, profile });
}

/// With the profile `hot` besides the default one.
fn world() -> Arc<World> {
    let world = World::new(true);
    order(&world, Command::SetProfile { profile: hot(), make_default: false });
    world
}

/// Live versions of key `number`, oldest first.
fn versions(world: &World, number: u64) -> Vec<SealedInstance> {
    let key = catalog::key(&format!("main/1.2/1.3/1.4.{number}"));
    let state = &world.catalog().state;
    let one = |version| query::lookup(state, &key, Some(VersionNumber(version))).unwrap();
    (1..=4).filter_map(one).collect()
}

/// How many versions of keys up to `last` are of this profile and code, and whole.
fn count(world: &World, last: u64, profile: &Profile) -> usize {
    let fits = |sealed: &SealedInstance| {
        let same = sealed.seal.profile == profile.name && sealed.seal.code == profile.code;
        same && world.is_whole(sealed.seal.instance)
    };
    (1..=last).flat_map(|number| versions(world, number)).filter(fits).count()
}

async fn held_back(healer: &Healer) -> Vec<String> {
    let asking = async {
        loop {
            match healer.health().await {
                Ok(health) => return health.held_back,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.expect("health is told")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_live_version_of_a_study_is_re_encoded_and_what_is_written_since_too() {
    let world = world();
    for number in 1..=20 {
        world.store(number, catalog::ALL);
    }
    let (older, newer) = (world.store_under(30, 31, catalog::ALL), world.store_under(30, 32, catalog::ALL));
    let before = versions(&world, 30);
    assert_eq!(before.len(), 2);
    let healers = world.run_all();
    want(&world, Some(hot().name));
    until("all are hot", || count(&world, 30, &hot()) == 22).await;
    let after = versions(&world, 30);
    for (old, new) in before.iter().zip(&after) {
        assert_eq!((new.version, new.seal.digest, &new.seal.key), (old.version, old.seal.digest, &old.seal.key));
        assert_eq!(new.seal.attributes, old.seal.attributes);
        assert!(!new.degraded);
    }
    for old in [older, newer] {
        assert!(world.record(old).deleted.is_some(), "its shards may be swept");
    }
    // Under another leader, which knows nothing: and the way back.
    world.lead(3);
    want(&world, Some(catalog::profile().name));
    until("all are as they were", || count(&world, 30, &catalog::profile()) == 22).await;
    assert_eq!(held_back(&healers[1]).await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_keep_the_contract_stays_as_it_is_and_is_told_until_it_can() {
    let world = world();
    let id = world.store(1, catalog::ALL);
    for node in [0, 3] {
        world.set_refusing(volume(node));
        world.set_refusing(catalog::spare(node));
    }
    let healers = world.run_all();
    want(&world, Some(hot().name));
    let told = async {
        while !held_back(&healers[2]).await.iter().any(|line| line.starts_with("re-encoding of study main/1.2 waits")) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it is told");
    assert_eq!(versions(&world, 1)[0].seal.instance, id);
    assert!(world.is_whole(id));
    world.refuse_nothing();
    until("it is hot", || count(&world, 1, &hot()) == 1).await;
    assert_ne!(versions(&world, 1)[0].seal.instance, id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repair_comes_first() {
    let world = world();
    for number in 1..=3 {
        world.store(number, catalog::ALL);
    }
    let lame = world.store(4, 0b01_1111);
    want(&world, Some(hot().name));
    let _healers = world.run_all();
    until("all are hot", || count(&world, 4, &hot()) == 4).await;
    let repaired = world.record(lame);
    assert!(repaired.deleted.is_some());
    assert_eq!(repaired.seal.stripes[0].persisted, catalog::ALL, "it was whole before it was read");
}
