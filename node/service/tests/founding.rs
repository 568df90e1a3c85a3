//! One cluster id, one cluster: when a node founds, and when it must not.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use pacsvault_consensus::Replica;
use pacsvault_core::{
    catalog::{Command, Outcome, command::JoinNode},
    ids::NodeId,
    layout::Profile,
};
use pacsvault_ports::peer::{Class, Request};
use pacsvault_service::{Founding, Membership};
use support::{Bed, CLUSTER, Fake, Memory, Seed, catalog, target, until};

fn fresh() -> (Arc<Fake>, Arc<Memory>) {
    (Fake::new(1, catalog::Replica::new()), Arc::default())
}

fn found() -> Request {
    Request::InitCluster { profiles: Vec::new() }
}

fn join_via(address: &str) -> Request {
    Request::JoinVia { seeds: vec![target(address)] }
}

#[tokio::test]
async fn a_node_that_may_have_been_let_in_founds_no_second_cluster() {
    let (replica, memory) = fresh();
    let bed = Bed::new(&replica, &memory, &[], Vec::new());
    bed.seed("b1:1", Seed::Mute);
    assert_eq!(bed.ask(join_via("b1:1")).await.unwrap_err().class, Class::Unknown);
    // Neither at once, nor when the seed seems to be outside (it is starting), nor after a restart.
    bed.seed("b1:1", Seed::Outside);
    bed.ask(join_via("b1:1")).await.unwrap_err();
    for bed in [Bed::new(&replica, &memory, &[], Vec::new()), bed] {
        let refused = bed.ask(found()).await.unwrap_err();
        assert_eq!((refused.class, refused.code), (Class::Reject, "PV-ALREADY-MEMBER"));
        assert!(refused.message.contains("has asked b1:1"), "{refused}");
        assert_eq!(bed.starter.starts.load(Ordering::SeqCst), 0);
    }
    assert!(!replica.initialised());
    assert_eq!(*memory.membership.lock().unwrap(), None);
}

#[tokio::test]
async fn a_node_that_surely_was_not_let_in_may_found() {
    let (replica, memory) = fresh();
    let bed = Bed::new(&replica, &memory, &["b1:1", "away:1"], Vec::new());
    bed.seed("b1:1", Seed::Outside);
    bed.seed("c1:1", Seed::Leaderless);
    assert_eq!(bed.ask(join_via("b1:1")).await.unwrap_err().code, "PV-NOT-MEMBER");
    assert_eq!(bed.ask(join_via("away:1")).await.unwrap_err().code, "PV-UNREACHABLE");
    assert_eq!(bed.ask(join_via("c1:1")).await.unwrap_err().code, "PV-NO-LEADER");
    assert!(memory.asked.lock().unwrap().is_empty());
    bed.ask(found()).await.unwrap();
    assert!(replica.layout().is_some());
    assert_eq!(bed.ask(found()).await.unwrap_err().code, "PV-ALREADY-MEMBER");
}

#[tokio::test]
async fn a_definite_refusal_says_nothing_of_an_earlier_lost_answer() {
    let (replica, memory) = fresh();
    let bed = Bed::new(&replica, &memory, &[], Vec::new());
    bed.seed("b1:1", Seed::Mute);
    bed.ask(join_via("b1:1")).await.unwrap_err();
    bed.seed("b1:1", Seed::Leaderless);
    bed.ask(join_via("b1:1")).await.unwrap_err();
    assert_eq!(bed.ask(found()).await.unwrap_err().code, "PV-ALREADY-MEMBER");
}

#[tokio::test]
async fn a_node_whose_seed_is_a_member_founds_nothing() {
    let (replica, memory) = fresh();
    let bed = Bed::new(&replica, &memory, &["b1:1"], Vec::new());
    bed.seed("b1:1", Seed::Leaderless);
    let refused = bed.ask(found()).await.unwrap_err();
    assert_eq!(refused.code, "PV-ALREADY-MEMBER");
    assert!(refused.message.contains("b1:1 is already a member"), "{refused}");
    assert_eq!(*memory.membership.lock().unwrap(), None);
}

#[tokio::test]
async fn a_member_that_has_not_heard_of_its_cluster_founds_nothing() {
    let (replica, memory) = fresh();
    let joined = Membership { node: NodeId(1), cluster: CLUSTER, founding: Founding::Joined };
    *memory.membership.lock().unwrap() = Some(joined);
    let bed = Bed::new(&replica, &memory, &[], Vec::new());
    let running = tokio::spawn(bed.node.clone().run());
    until(|| bed.node.replica().is_some()).await;
    assert_eq!(bed.ask(found()).await.unwrap_err().code, "PV-ALREADY-MEMBER");
    assert!(!replica.initialised());
    running.abort();
}

#[tokio::test]
async fn a_founder_that_was_cut_short_gets_the_profiles_its_operator_asks_for() {
    // Before the log was begun, and right after.
    for begun in [false, true] {
        let (replica, memory) = fresh();
        let founder = Membership { node: NodeId(1), cluster: CLUSTER, founding: Founding::Founder };
        *memory.membership.lock().unwrap() = Some(founder);
        if begun {
            replica.initialise().await.unwrap();
        }
        let bed = Bed::new(&replica, &memory, &[], Vec::new());
        let running = tokio::spawn(bed.node.clone().run());
        until(|| bed.node.replica().is_some()).await;
        assert!(replica.layout().is_none(), "nothing is founded without its operator");
        let mine = Profile { name: "mine".parse().unwrap(), ..catalog::profile() };
        bed.ask(Request::InitCluster { profiles: vec![mine.clone()] }).await.unwrap();
        running.await.unwrap().unwrap();
        let layout = replica.layout().unwrap();
        assert_eq!(layout.default_profile, mine.name);
        assert_eq!(layout.profiles.keys().collect::<Vec<_>>(), [&mine.name]);
    }
}

#[tokio::test]
async fn what_an_earlier_life_said_late_is_corrected() {
    let (replica, memory) = fresh();
    let bed = Bed::new(&replica, &memory, &[], Vec::new());
    bed.ask(found()).await.unwrap();
    bed.node.clone().run().await.unwrap();
    let known = || replica.layout().unwrap().nodes[&NodeId(1)].clone();
    let own = known();
    let late = JoinNode {
        name: own.name.clone(),
        incarnation: own.incarnation,
        site: own.site.clone(),
        address: "where-it-was:1".to_owned(),
        roles: own.roles,
        volumes: Vec::new(),
        version: own.version + 1,
    };
    assert_eq!(replica.apply(catalog::START, vec![Command::JoinNode(late)]), [Outcome::Joined(NodeId(1))]);
    assert_ne!(known(), own);
    until(|| known() == own).await;
    // Once is enough.
    let entries = replica.status().applied;
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert_eq!(replica.status().applied, entries);
}
