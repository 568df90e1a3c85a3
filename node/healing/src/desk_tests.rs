//! Tests of the desk.

use std::{collections::BTreeMap, time::Duration};

use pacsvault_core::{
    health::{Cause, Task, Tier, report::Done},
    ids::{ClusterId, Incarnation, InstanceId, LayoutVersion, NodeId, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::{Layout, Node, NodeState, Roles, Volume, VolumeState},
};
use pacsvault_ports::peer::{Class, Fault};

use super::*;

/// Nodes 0 to `nodes`, with one volume each of the same number.
fn layout(nodes: u8) -> Layout {
    let node = |number: u8| Node {
        id: NodeId(number.into()),
        name: format!("node-{number}").parse().expect("a name"),
        site: "here".parse().expect("a name"),
        address: "here:1".to_owned(),
        roles: Roles { storage: true, voter: true },
        state: NodeState::Up,
        incarnation: Incarnation([number; 16]),
        version: 2,
        draining: false,
    };
    let volume = |number: u8| Volume {
        id: VolumeId([number; 16]),
        node: NodeId(number.into()),
        capacity_bytes: 1 << 40,
        state: VolumeState::Up,
        draining: false,
    };
    Layout {
        cluster: ClusterId([7; 16]),
        version: LayoutVersion(1),
        format: 2,
        nodes: (0..nodes).map(|number| (NodeId(number.into()), node(number))).collect(),
        volumes: (0..nodes).map(|number| (VolumeId([number; 16]), volume(number))).collect(),
        profiles: BTreeMap::new(),
        default_profile: "standard".parse().expect("a name"),
    }
}

fn task(number: u128, targets: &[u8], tier: Tier, cause: Cause) -> Task {
    Task {
        instance: InstanceId::new(WallMillis(1), number),
        stripe: StripeIndex(0),
        expected: Vec::new(),
        persisted: 0,
        moves: (0_u8..).map(ShardIndex).zip(targets.iter().map(|target| VolumeId([*target; 16]))).collect(),
        cause,
        tier,
        write_bytes: 1,
    }
}

fn repair(number: u128, target: u8) -> Task {
    task(number, &[target], Tier::Distance(1), Cause::Repair)
}

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn trouble(desk: &mut Desk, layout: &Layout, now: Duration, fault: &Fault) -> After {
    desk.add(vec![repair(1, 0)]);
    desk.next(9, now, layout).expect("ready");
    desk.finish(9, now, &Err(fault.clone()))
}

#[test]
fn the_most_urgent_task_with_a_free_worker_goes_first() {
    let layout = layout(3);
    let mut desk = Desk::new(1);
    desk.add(vec![
        task(1, &[0], Tier::Distance(1), Cause::Drain),
        repair(2, 0),
        task(3, &[0], Tier::Distance(0), Cause::Repair),
        task(4, &[1], Tier::Distance(1), Cause::Respread),
    ]);
    let mut order = Vec::new();
    for id in 0..2 {
        order.push(desk.next(id, at(0), &layout).expect("a free worker").task.instance);
    }
    let numbered = |number| InstanceId::new(WallMillis(1), number);
    assert_eq!(order, [numbered(3), numbered(4)], "node 0 is busy after its first task and holds up nobody");
    assert!(desk.next(2, at(0), &layout).is_none());
    desk.finish(0, at(0), &Ok(Done::Outdated));
    assert_eq!(desk.next(3, at(0), &layout).expect("free again").task.instance, numbered(2));
}

#[test]
fn of_the_nodes_it_writes_to_the_freest_does_it() {
    let layout = layout(3);
    let mut desk = Desk::new(2);
    desk.add((0..6).map(|number| task(number, &[0, 1], Tier::Distance(1), Cause::Repair)).collect());
    let workers: Vec<u64> =
        (0..5).filter_map(|id| desk.next(id, at(0), &layout)).map(|flight| flight.worker.0).collect();
    assert_eq!(workers, [0, 1, 0, 1]);
}

#[test]
fn what_is_urgent_waits_for_nothing_that_is_not() {
    let layout = layout(1);
    let mut desk = Desk::new(2);
    desk.add((0..300).map(|number| task(number, &[0], Tier::Distance(2), Cause::Drain)).collect());
    assert_eq!((desk.room(Rank::Move), desk.room(Rank::Urgent)), (0, READY_MAX));
    assert!(desk.next(0, at(0), &layout).is_some() && desk.next(1, at(0), &layout).is_some());
    assert!(desk.next(2, at(0), &layout).is_none(), "all its places are taken");
    let urgent = |number| task(number, &[0], Tier::Distance(0), Cause::Repair);
    assert!(desk.ready_by_worker(&layout, Rank::Urgent).is_empty());
    assert_eq!(desk.skip(at(0), Rank::Urgent).len(), 2, "only those begun are not planned again");
    desk.add(vec![urgent(200), urgent(1_000)]);
    assert_eq!((desk.room(Rank::Move), desk.room(Rank::Urgent)), (1, READY_MAX - 2));
    let flight = desk.next(3, at(0), &layout).expect("one place is kept for it");
    assert_eq!((flight.task.instance, flight.task.cause), (InstanceId::new(WallMillis(1), 200), Cause::Repair));
    assert!(desk.next(4, at(0), &layout).is_none());
    desk.finish(3, at(0), &Ok(Done::Outdated));
    assert_eq!(desk.next(5, at(0), &layout).map(|flight| flight.task.instance.0), Some(urgent(1_000).instance.0));
}

#[test]
fn a_stripe_is_on_the_desk_once() {
    let layout = layout(2);
    let mut desk = Desk::new(8);
    desk.add(vec![repair(1, 0), repair(1, 1)]);
    desk.add(vec![repair(1, 1)]);
    desk.next(0, at(0), &layout).expect("one");
    desk.add(vec![repair(1, 1)]);
    assert!(desk.next(1, at(0), &layout).is_none());
    assert_eq!(desk.skip(at(0), Rank::Move).len(), 1);
}

#[test]
fn a_stripe_that_keeps_failing_is_tried_less_and_less_for_ever_and_told() {
    let layout = layout(1);
    let mut desk = Desk::new(8);
    let fault = Fault::new(Class::Retry, REPAIR_FAULT, "the volume is full");
    let mut now = at(0);
    assert_eq!(desk.resting(now), None);
    for pause in [1, 2, 4, 8, 16, 32].into_iter().chain([60; 40]) {
        assert_eq!(trouble(&mut desk, &layout, now, &fault), After::Nothing);
        assert!(!desk.skip(now + at(pause) - Duration::from_millis(1), Rank::Move).is_empty());
        assert!(desk.skip(now + at(pause), Rank::Move).is_empty());
        now += at(pause);
        let told = desk.resting(now).expect("it is tried again, and fails again");
        assert!(told.starts_with("1 stripes") && told.ends_with("the volume is full"), "{told}");
    }
    assert_eq!(desk.resting(now + at(121)), None, "nobody wants it any more");
    desk.add(vec![repair(1, 0)]);
    desk.next(9, now, &layout).expect("ready");
    let lost = Done::Irreparable("lost".to_owned());
    assert!(matches!(desk.finish(9, now, &Ok(lost)), After::SetAside(_, why) if why == "lost"));
}

#[test]
fn a_stripe_that_is_never_as_planned_is_told_after_a_while() {
    let layout = layout(1);
    let mut desk = Desk::new(8);
    for round in 0..5 {
        assert_eq!(desk.resting(at(round * 60)), None);
        desk.add(vec![repair(1, 0)]);
        desk.next(9, at(round * 60), &layout).expect("ready");
        desk.finish(9, at(round * 60), &Ok(Done::Outdated));
    }
    assert!(desk.resting(at(241)).is_some_and(|told| told.contains("never as it was planned")));
}

#[test]
fn a_worker_out_of_reach_says_nothing_against_a_stripe() {
    let layout = layout(2);
    let mut desk = Desk::new(8);
    let fault = Fault::new(Class::Retry, "PV-UNREACHABLE", "no");
    for round in 0..20 {
        assert_eq!(trouble(&mut desk, &layout, at(round * 100), &fault), After::Nothing);
    }
    desk.add(vec![repair(2, 0), repair(3, 1)]);
    assert_eq!(desk.next(1, at(1_900), &layout).map(|flight| flight.worker), Some(NodeId(1)), "node 0 rests");
    assert_eq!(desk.next(2, at(1_903), &layout).map(|flight| flight.worker), Some(NodeId(0)));
}

#[test]
fn what_a_node_does_that_went_away_is_planned_again() {
    let mut layout = layout(2);
    let mut desk = Desk::new(8);
    desk.add(vec![repair(1, 0), repair(2, 1), repair(3, 1)]);
    desk.next(0, at(0), &layout).expect("one");
    desk.next(1, at(0), &layout).expect("two");
    layout.nodes.get_mut(&NodeId(0)).expect("known").state = NodeState::Down;
    desk.layout_changed(&layout);
    assert_eq!((desk.flying(), desk.room(Rank::Move)), (1, READY_MAX));
    let late = Done::Reseated { written_bytes: 5, read_bytes: 5, wan_bytes: 0 };
    assert_eq!(desk.finish(0, at(1), &Ok(late)), After::Nothing);
    assert_eq!(desk.progress.done_stripes, 0);
}

#[test]
fn the_rate_is_that_of_the_last_ten_seconds() {
    let layout = layout(1);
    let mut desk = Desk::new(8);
    for number in 0..20 {
        desk.add(vec![repair(number, 0)]);
        desk.next(1, at(0), &layout).expect("ready");
        let done = Done::Reseated { written_bytes: 100, read_bytes: 400, wan_bytes: 50 };
        desk.finish(1, at(u64::try_from(number).expect("small")), &Ok(done));
    }
    assert_eq!(desk.progress.rate(at(19)), 110);
    assert_eq!(desk.progress.rate(at(25)), 50);
    assert_eq!(desk.progress.rate(at(60)), 0);
    assert_eq!((desk.progress.done_stripes, desk.progress.done_bytes, desk.progress.wan_bytes), (20, 2_000, 1_000));
}
