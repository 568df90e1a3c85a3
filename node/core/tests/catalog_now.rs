//! What the catalog says beside the records, or of them later, holds: promises after a drain, receipts of now, sums.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use catalog_support::{Replica, START, instance, key, profile, seal, volume};
use pacsvault_core::catalog::SealedInstance;
use pacsvault_core::catalog::command::{Command, DrainTarget, Outcome, Reseat};
use pacsvault_core::catalog::query::by_instance;
use pacsvault_core::ids::{InstanceId, NodeId, ShardIndex, StripeIndex, VolumeId, WallMillis};
use pacsvault_core::layout::survival::covers;
use pacsvault_core::layout::{Contract, Failures, NodeState, Profile};
use pacsvault_core::receipt::Receipt;
use pacsvault_core::shard::ShardId;

const KEY: &str = "main/1.2/1.3/1.4";

/// Version 2 in force, and one whole stripe of "abcd" sealed by the answered instance.
fn stored() -> (Replica, InstanceId) {
    let mut replica = Replica::upgraded();
    let id = instance(START, 1);
    replica.sealed(START, seal(KEY, "abcd", id));
    (replica, id)
}

fn present(replica: &Replica, id: InstanceId) -> SealedInstance {
    by_instance(&replica.state, id).unwrap().unwrap()
}

fn set_node(node: u64, state: NodeState) -> Command {
    Command::SetNodeState { node: NodeId(node), state }
}

fn damage(volume: VolumeId, id: InstanceId, shard: u8) -> Command {
    let shard = ShardId { instance: id, stripe: StripeIndex(0), shard: ShardIndex(shard) };
    Command::ReportDamage { volume, shards: vec![shard] }
}

#[test]
fn emptying_a_volume_below_the_contract_a_record_was_sealed_under_marks_it_degraded() {
    let mut replica = Replica::upgraded();
    let one = |sites, nodes| Contract::one(Failures { sites, nodes });
    // Sealed under two nodes; the newest version promises one.
    let set = |contract| Command::SetProfile { profile: Profile { contract, ..profile() }, make_default: false };
    replica.one(START, set(one(0, 2)));
    let strong = instance(START, 2);
    let mut under = seal("main/1.2/1.3/1.9", "abcd", strong);
    under.profile_version = replica.machine.layout().unwrap().profiles[&under.profile].version;
    replica.sealed(START, under);
    replica.one(START, set(one(0, 1)));
    let drain = Command::SetDrain { target: DrainTarget::Node(NodeId(1)), draining: true };
    assert_eq!(replica.one(START, drain), Outcome::Done);
    assert!(!present(&replica, strong).degraded);
    let before = present(&replica, strong).seal.stripes.remove(0);
    let reseat = Reseat {
        instance: strong,
        stripe: StripeIndex(0),
        expected: before.placement,
        persisted: before.persisted,
        moves: vec![(ShardIndex(0), volume(3))],
        not_after: WallMillis(u64::MAX),
    };
    assert_eq!(replica.one(START, Command::Reseat(reseat)), Outcome::Done);
    let record = present(&replica, strong);
    assert_eq!(record.contract, one(0, 2));
    assert!(!covers(&record.survives, &record.contract) && record.degraded, "{record:?}");
}

#[test]
fn a_receipt_of_now_does_not_count_damaged_shards_nor_those_that_are_away() {
    let (mut replica, id) = stored();
    let now = |replica: &Replica| Receipt::of_now(&present(replica, id), &replica.machine.layout().unwrap());
    let whole = now(&replica);
    assert_eq!(whole, Receipt::of(&present(&replica, id), &replica.machine.layout().unwrap()));
    replica.one(START, set_node(1, NodeState::Down));
    assert!(now(&replica).degraded && now(&replica).survives != whole.survives);
    replica.one(START, set_node(1, NodeState::Up));
    assert_eq!(now(&replica).survives, whole.survives);
    replica.one(START, damage(volume(0), id, 0));
    replica.one(START, damage(volume(1), id, 1));
    let damaged = now(&replica);
    assert!(damaged.degraded);
    assert_eq!(damaged.survives, [Failures { sites: 0, nodes: 0 }]);
    assert!(!Receipt::of(&present(&replica, id), &replica.machine.layout().unwrap()).degraded, "the record's word");
}

#[test]
fn sums_that_contradict_the_records_are_made_again_and_stop_nobody() {
    let (mut replica, _) = stored();
    let mut sound = Replica::upgraded();
    sound.sealed(START, seal(KEY, "abcd", instance(START, 1)));
    replica.sealed(START, seal("main/1.2/@/report", "xyz", instance(START, 3)));
    sound.sealed(START, seal("main/1.2/@/report", "xyz", instance(START, 3)));
    // The row of the group is gone, and the marker says that all is right.
    replica.state.retain(|row, _| row[0] != 0x25);
    replica.reload();
    assert!(!replica.machine.sums_stale());
    let gone = Command::Delete { key: key(KEY), version: None };
    assert_eq!(replica.one(START, gone.clone()), sound.one(START, gone));
    assert_eq!((replica.machine.sums_remade(), sound.machine.sums_remade()), (1, 0));
    assert_eq!(replica.state, sound.state);
    replica.reload();
    assert!(!replica.machine.sums_stale());
}
