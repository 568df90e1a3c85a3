//! Facts about what a drain is told to mean.

use super::*;
use crate::ids::PlacementId;
use crate::layout::NodeState;
use crate::layout::testing::{cluster, fence, profile, take_down, volume};

const GIB: u64 = 1 << 30;

fn layout(sites: &[usize], code: &str, contract: &str) -> Layout {
    let mut layout = cluster(sites, 1);
    let tested = profile(code, contract);
    layout.profiles.insert(tested.name.clone(), tested);
    layout.volumes.values_mut().for_each(|volume| volume.capacity_bytes = 100 * GIB);
    layout
}

/// As many GiB on each volume of the placement.
fn group(volumes: &[u64], code: &str, gib: u64) -> Group {
    Group {
        placement: PlacementId(1),
        volumes: volumes.iter().map(|&number| volume(number)).collect(),
        profile: "tested".parse().expect("a name"),
        profile_version: 1,
        code: code.parse().expect("a code"),
        sums: Sums { stripes: gib * 256, content_bytes: 4 * gib * GIB, shard_bytes: gib * GIB },
    }
}

fn rooms(layout: &Layout, free_gib: u64) -> BTreeMap<VolumeId, Room> {
    let room = |id: &VolumeId| {
        let free_bytes = free_gib * GIB;
        (*id, Room { capacity_bytes: 100 * GIB, used_bytes: 100 * GIB - free_bytes, free_bytes })
    };
    layout.volumes.keys().map(room).collect()
}

fn node(number: u64) -> DrainTarget {
    DrainTarget::Node(NodeId(number))
}

#[test]
fn a_node_can_be_emptied_when_its_site_has_others_with_room() {
    let layout = layout(&[3, 2, 2], "4+2", "1 site");
    let groups = [group(&[0, 1, 3, 4, 5, 6], "4+2", 20)];
    let plan = drain_plan(node(0), &layout, &groups, &rooms(&layout, 40), GIB);
    assert!(plan.safe && !plan.empty, "{plan:?}");
    assert_eq!(plan.volumes, [volume(0)]);
    assert_eq!(plan.moves, groups[0].sums);
    assert_eq!(plan.free_elsewhere_bytes, 6 * 30 * GIB);
    assert_eq!(plan.takes_s, Some(20));
}

#[test]
fn a_node_whose_leaving_breaks_a_contract_stays_with_the_arithmetic() {
    let layout = layout(&[1, 1, 1], "2+1", "1 site");
    let plan = drain_plan(node(0), &layout, &[group(&[0, 1, 2], "2+1", 1)], &rooms(&layout, 90), 0);
    assert!(!plan.safe);
    assert!(plan.reasons.iter().any(|reason| reason.contains("losing any one site leaves at most")), "{plan:?}");
    assert!(plan.reasons.iter().any(|reason| reason.contains("could not keep it elsewhere")), "{plan:?}");
    assert_eq!(plan.takes_s, None);
}

#[test]
fn what_is_being_drained_already_is_not_counted_on() {
    let mut layout = layout(&[3, 2, 2], "4+2", "2 nodes");
    let rooms = rooms(&layout, 90);
    assert!(drain_plan(node(1), &layout, &[], &rooms, 0).safe, "six of seven nodes are enough");
    layout.nodes.get_mut(&NodeId(0)).expect("node 0").draining = true;
    let plan = drain_plan(node(1), &layout, &[], &rooms, 0);
    assert!(!plan.safe, "five are not");
    assert_eq!(plan.free_elsewhere_bytes, 5 * 80 * GIB);
    let groups = [group(&[0, 2, 3, 4, 5, 6], "4+2", 1)];
    let other = drain_plan(node(0), &layout, &groups, &rooms, 0);
    assert!(other.safe && !other.empty, "asking again while it is drained: {other:?}");
}

#[test]
fn room_on_the_wrong_site_is_no_room() {
    let layout = layout(&[2, 2, 2], "4+2", "1 site");
    let groups = [group(&[0, 1, 2, 3, 4, 5], "4+2", 50)];
    let mut rooms = rooms(&layout, 90);
    rooms.insert(volume(1), Room { capacity_bytes: 100 * GIB, used_bytes: 50 * GIB, free_bytes: 50 * GIB });
    let plan = drain_plan(node(0), &layout, &groups, &rooms, 0);
    assert!(!plan.safe);
    assert!(plan.reasons.iter().any(|reason| reason.contains("only on site site-0, where")), "{plan:?}");
    rooms.insert(volume(1), Room { capacity_bytes: 100 * GIB, used_bytes: 40 * GIB, free_bytes: 60 * GIB });
    assert!(drain_plan(node(0), &layout, &groups, &rooms, 0).safe);
}

#[test]
fn a_volume_moves_within_its_own_node_too() {
    let mut layout = layout(&[1, 1, 1], "2+1", "1 site");
    let mut second = layout.volumes[&volume(0)].clone();
    second.id = volume(10);
    layout.volumes.insert(second.id, second);
    let groups = [group(&[0, 1, 2], "2+1", 1)];
    let target = DrainTarget::Volume(volume(0));
    let plan = drain_plan(target, &layout, &groups, &rooms(&layout, 90), 0);
    assert!(plan.safe, "{plan:?}");
    assert_eq!(plan.volumes, [volume(0)]);
}

#[test]
fn volumes_that_never_told_their_room_are_taken_as_full() {
    let layout = layout(&[2, 2, 2], "4+2", "1 site");
    let plan = drain_plan(node(0), &layout, &[group(&[0, 1, 2, 3, 4, 5], "4+2", 1)], &BTreeMap::new(), 0);
    assert!(!plan.safe && plan.free_elsewhere_bytes == 0);
    assert!(plan.reasons.iter().any(|reason| reason.contains("not told")), "{plan:?}");
}

#[test]
fn a_node_that_holds_nothing_is_empty_even_while_it_is_away() {
    let mut layout = layout(&[3, 2, 2], "4+2", "1 site");
    take_down(&mut layout, 0);
    let groups = [group(&[1, 2, 3, 4, 5, 6], "4+2", 20)];
    let plan = drain_plan(node(0), &layout, &groups, &rooms(&layout, 40), GIB);
    assert!(plan.safe && plan.empty && plan.takes_s == Some(0), "{plan:?}");
    assert_eq!(layout.nodes[&NodeId(0)].state, NodeState::Down);
}

#[test]
fn a_profile_that_cannot_be_kept_already_does_not_forbid_a_drain() {
    let mut layout = layout(&[2, 2], "4+2", "1 site");
    layout.volumes.values_mut().for_each(|volume| volume.capacity_bytes = 100 * GIB);
    let plan = drain_plan(node(0), &layout, &[group(&[0, 0, 1, 2, 2, 3], "4+2", 1)], &rooms(&layout, 90), 0);
    assert!(plan.safe, "{plan:?}");
    assert_eq!(plan.moves.shard_bytes, 2 * GIB);
    assert!(plan.reasons.iter().any(|reason| reason.starts_with("already now")), "{plan:?}");
}

#[test]
fn a_cluster_that_waits_for_a_new_disk_is_not_drained_further() {
    let mut layout = layout(&[1, 1, 1], "2+1", "1 site");
    fence(&mut layout, 1);
    let plan = drain_plan(node(0), &layout, &[], &rooms(&layout, 90), 0);
    assert!(!plan.safe, "with a new disk in node 1 its contract can be kept, if node 0 stays: {plan:?}");
    assert!(plan.reasons.iter().any(|reason| reason.contains("first replace the fenced volumes")), "{plan:?}");
    let broken = drain_plan(node(1), &layout, &[], &rooms(&layout, 90), 0);
    assert!(broken.safe && broken.empty, "what holds nothing and could take nothing may leave: {broken:?}");
    let mut burnt = layout.clone();
    take_down(&mut burnt, 0);
    assert!(drain_plan(node(0), &burnt, &[], &rooms(&burnt, 90), 0).safe, "what is gone holds up nothing");
    let mut denser = self::layout(&[2, 1, 2], "2+1", "1 site");
    fence(&mut denser, 2);
    assert!(drain_plan(node(0), &denser, &[], &rooms(&denser, 90), 0).safe, "node 1 can do its part after the repair");
    layout.nodes.get_mut(&NodeId(1)).expect("node 1").state = NodeState::Removed;
    assert!(drain_plan(node(0), &layout, &[], &rooms(&layout, 90), 0).safe, "nobody waits for node 1 any more");
}
