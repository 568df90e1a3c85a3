//! The rules of version 2, one by one: reseats, damage, stripes set aside, replacements, removals, drains, sums.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use std::collections::BTreeMap;

use catalog_support::{ALL, NODES, Replica, START, instance, join, key, profile, seal, spare, stripe, volume};
use pacsvault_core::catalog::command::{Command, DrainTarget, JoinNode, Outcome, Rejection, Replace, Reseat, Reserved};
use pacsvault_core::catalog::query::{
    aside, asides, by_instance, deleted_instances, group_stripes, groups, list, lookup, missing_shards, stripe_state,
    stripes_on, study_profile, study_profiles, volume_sums,
};
use pacsvault_core::catalog::{Entry, Error, Machine, Overlay, Seal, SealedInstance};
use pacsvault_core::health::Sums;
use pacsvault_core::ids::{InstanceId, LogIndex, NodeId, ShardIndex, StripeIndex, VersionNumber, VolumeId, WallMillis};
use pacsvault_core::layout::profile::Code;
use pacsvault_core::layout::survival::covers;
use pacsvault_core::layout::{Contract, Failures, NodeState, Profile, Roles, VolumeState};
use pacsvault_core::shard::ShardId;

const KEY: &str = "main/1.2/1.3/1.4";
const FIRST: StripeIndex = StripeIndex(0);

fn set_node(node: u64, state: NodeState) -> Command {
    Command::SetNodeState { node: NodeId(node), state }
}

fn set_volume(volume: VolumeId, state: VolumeState) -> Command {
    Command::SetVolumeState { volume, state }
}

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

/// A reseat of the first stripe as it is now.
fn reseat(replica: &Replica, id: InstanceId, moves: &[(u8, VolumeId)]) -> Reseat {
    let stripe = &present(replica, id).seal.stripes[0];
    Reseat {
        instance: id,
        stripe: FIRST,
        expected: stripe.placement.clone(),
        persisted: stripe.persisted,
        moves: moves.iter().map(|(shard, volume)| (ShardIndex(*shard), *volume)).collect(),
        not_after: WallMillis(u64::MAX),
    }
}

#[test]
fn a_reseat_is_refused_once_its_time_is_over_whatever_the_record_says() {
    let (mut replica, id) = stored();
    let moves = [(0, spare(0))];
    replica.add_spare(0);
    let late = |replica: &Replica| Reseat { not_after: WallMillis(START + 10), ..reseat(replica, id, &moves) };
    let refused = late(&replica);
    let refused = replica.refused(START + 11, Command::Reseat(refused));
    assert!(matches!(refused, Rejection::NotAllowed(_)), "{refused:?}");
    assert_eq!(present(&replica, id).seal.stripes[0].placement[0], volume(0));
    // Catalog time never goes back, so neither does the refusal.
    let again = late(&replica);
    assert!(matches!(replica.refused(START, Command::Reseat(again)), Rejection::NotAllowed(_)));
    let in_time = Reseat { not_after: WallMillis(START + 11), ..reseat(&replica, id, &moves) };
    assert_eq!(replica.one(START + 11, Command::Reseat(in_time)), Outcome::Done);
}

#[test]
fn an_attempt_repeated_after_a_repair_claims_no_more_than_what_holds_where_its_shards_are_now() {
    let (mut replica, id) = stored();
    [0, 3].into_iter().for_each(|node| replica.add_spare(node));
    let again = present(&replica, id).seal;
    let promised = vec![Failures { sites: 1, nodes: 0 }, Failures { sites: 0, nodes: 2 }];
    let claims = |replica: &mut Replica| {
        let (sealed, first) = replica.sealed(START, again.clone());
        assert!(!first);
        (sealed.survives, sealed.degraded)
    };
    assert_eq!(claims(&mut replica), (promised.clone(), false));
    // Sites 1 and 2 are away: what was on site 1 is made again in site 0, which has four shards of six then.
    for node in [2, 3, 5, 6] {
        let down = Command::SetNodeState { node: NodeId(node), state: NodeState::Down };
        assert_eq!(replica.one(START, down), Outcome::Done);
    }
    done_reseat(&mut replica, id, &[(1, spare(0)), (4, spare(3))]);
    assert_eq!(claims(&mut replica), (vec![Failures { sites: 0, nodes: 1 }], true), "site 0 holds too many");
    let kept = present(&replica, id);
    assert_eq!(kept.survives, promised, "what was promised stays promised: by former homes");
    // It comes apart again.
    for node in [2, 3, 5, 6] {
        let up = Command::SetNodeState { node: NodeId(node), state: NodeState::Up };
        assert_eq!(replica.one(START, up), Outcome::Done);
    }
    done_reseat(&mut replica, id, &[(1, volume(1)), (4, volume(4))]);
    assert_eq!(claims(&mut replica), (promised.clone(), false));
}

fn refused_reseat(replica: &mut Replica, id: InstanceId, moves: &[(u8, VolumeId)]) -> Rejection {
    let command = Command::Reseat(reseat(replica, id, moves));
    replica.refused(START, command)
}

fn done_reseat(replica: &mut Replica, id: InstanceId, moves: &[(u8, VolumeId)]) {
    let command = Command::Reseat(reseat(replica, id, moves));
    assert_eq!(replica.one(START, command), Outcome::Done);
}

fn damage(volume: VolumeId, id: InstanceId, shards: &[u8]) -> Command {
    let shards = shards.iter().map(|shard| ShardId { instance: id, stripe: FIRST, shard: ShardIndex(*shard) });
    Command::ReportDamage { volume, shards: shards.collect() }
}

fn put_aside(id: InstanceId) -> Command {
    Command::SetAside { instance: id, stripe: FIRST, reason: "no k shards".to_owned() }
}

fn replacing(replaces: InstanceId, number: u64) -> Replace {
    let seal = seal(KEY, "abcd", instance(START, number));
    Replace { seal, version: VersionNumber(1), replaces }
}

#[test]
fn version_2_waits_until_every_member_understands_it() {
    let mut replica = Replica::with_cluster();
    let pending = Rejection::UpgradePending { needed: 2, present: 1 };
    assert_eq!(replica.refused(START, Command::RetryAside), pending);
    assert_eq!(replica.refused(START, set_node(1, NodeState::Suspect)), pending);
    assert_eq!(replica.refused(START, set_volume(volume(0), VolumeState::Away)), pending);
    for node in 0..NODES {
        let behind = replica.refused(START, Command::Activate { version: 2 });
        assert!(behind.to_string().contains(&format!("node {} (node-{node}) understands version 1", node + 1)));
        replica.one(START, Command::JoinNode(JoinNode { version: 2, ..join(node) }));
    }
    let before = replica.machine.layout().unwrap();
    assert_eq!(replica.one(START, Command::Activate { version: 2 }), Outcome::Done);
    assert_eq!(replica.one(START, Command::Activate { version: 2 }), Outcome::Done);
    replica.reload();
    let after = replica.machine.layout().unwrap();
    assert_eq!((before.format, after.format, after.version.0), (1, 2, before.version.0 + 1));
    assert_eq!(replica.one(START, Command::RetryAside), Outcome::Done);
    assert!(
        matches!(replica.refused(START, Command::Activate { version: 1 }), Rejection::NotAllowed(_)),
        "no way back"
    );
    assert!(matches!(replica.refused(START, Command::Activate { version: 3 }), Rejection::NotAllowed(_)));
    let old = replica.refused(START, Command::JoinNode(join(2)));
    assert!(old.to_string().contains("upgrade its binary"), "{old}");
}

#[test]
fn a_removed_node_does_not_hold_the_upgrade_up_and_a_cluster_without_nodes_has_none() {
    let mut replica = Replica::new();
    assert!(matches!(replica.refused(START, Command::RetryAside), Rejection::ClusterState(_)));
    replica.one(START, catalog_support::init());
    assert!(matches!(replica.refused(START, Command::Activate { version: 2 }), Rejection::NotAllowed(_)));
    replica.one(START, Command::JoinNode(join(0)));
    replica.one(START, Command::JoinNode(JoinNode { version: 2, ..join(1) }));
    replica.one(START, set_node(1, NodeState::Removed));
    assert_eq!(replica.one(START, Command::Activate { version: 2 }), Outcome::Done);
}

#[test]
fn a_version_that_all_members_claim_and_this_build_does_not_know_stops_the_replica() {
    let mut replica = Replica::new();
    let join = Command::JoinNode(JoinNode { version: 9, ..join(0) });
    replica.apply(START, vec![catalog_support::init(), join]);
    let entry = Entry { time: WallMillis(START), commands: vec![Command::Activate { version: 9 }] };
    let stopped = replica.try_apply(&[entry]);
    assert_eq!(stopped, Err(Error::UnknownTag { what: "version of the cluster", tag: 9 }));
}

#[test]
fn a_returning_node_and_its_volumes_keep_the_state_that_liveness_gave_them() {
    let mut replica = Replica::upgraded();
    for state in [NodeState::Suspect, NodeState::Down, NodeState::Lost, NodeState::Suspect] {
        assert_eq!(replica.one(START, set_node(2, state)), Outcome::Done);
    }
    replica.one(START, set_volume(volume(1), VolumeState::Away));
    replica.one(START, Command::JoinNode(JoinNode { version: 2, ..join(1) }));
    let layout = replica.machine.layout().unwrap();
    assert_eq!(layout.nodes[&NodeId(2)].state, NodeState::Suspect);
    assert_eq!(layout.volumes[&volume(1)].state, VolumeState::Away);
    replica.one(START, set_node(2, NodeState::Up));
    assert!(!replica.machine.layout().unwrap().counts(volume(1)), "away");
    replica.one(START, set_volume(volume(1), VolumeState::ReadOnly));
    assert!(replica.machine.layout().unwrap().counts(volume(1)));
}

#[test]
fn a_reseat_moves_the_shard_with_all_its_indexes_and_sums() {
    let (mut replica, id) = stored();
    replica.add_spare(0);
    let before = groups(&replica.state).unwrap();
    assert_eq!(before.len(), 1);
    assert_eq!(before[0].sums, Sums { stripes: 1, content_bytes: 4, shard_bytes: 1 });
    done_reseat(&mut replica, id, &[(0, spare(0))]);
    let moved = present(&replica, id);
    assert_eq!(moved.seal.stripes[0].placement[0], spare(0));
    assert_eq!(moved.moved[&FIRST].former, BTreeMap::from([(ShardIndex(0), volume(0))]));
    assert_eq!(moved.moved[&FIRST].index, LogIndex(replica.index));
    assert_eq!(lookup(&replica.state, &key(KEY), None).unwrap(), Some(moved));
    let after = groups(&replica.state).unwrap();
    assert_eq!(after.iter().map(|group| group.sums).collect::<Vec<_>>(), [before[0].sums], "one group, one stripe");
    assert_ne!(after[0].placement, before[0].placement);
    assert_eq!((after[0].volumes[0], after[0].code), (spare(0), profile().code));
    assert_eq!(stripes_on(&replica.state, volume(0), None, 9).unwrap(), []);
    assert_eq!(stripes_on(&replica.state, spare(0), None, 9).unwrap().len(), 1);
    assert_eq!(group_stripes(&replica.state, before[0].placement, None, 9).unwrap(), []);
    assert_eq!(group_stripes(&replica.state, after[0].placement, None, 9).unwrap(), [(id, FIRST)]);
    assert_eq!(volume_sums(&after)[&spare(0)], before[0].sums);
    // Back again: the copy that may be stale is now on the spare.
    done_reseat(&mut replica, id, &[(0, volume(0))]);
    let state = stripe_state(&replica.state, id, FIRST).unwrap().unwrap();
    assert_eq!((state.volumes[0], state.former[&ShardIndex(0)]), (volume(0), spare(0)));
    assert_eq!(groups(&replica.state).unwrap(), before);
}

#[test]
fn a_reseat_of_what_is_gone_or_has_changed_is_refused() {
    let (mut replica, id) = stored();
    replica.add_spare(0);
    let first = reseat(&replica, id, &[(0, spare(0))]);
    let mut unknown = Reseat { instance: instance(START, 77), ..first.clone() };
    assert!(matches!(replica.refused(START, Command::Reseat(unknown.clone())), Rejection::NotFound(_)));
    unknown = Reseat { stripe: StripeIndex(1), ..first.clone() };
    assert!(matches!(replica.refused(START, Command::Reseat(unknown)), Rejection::NotFound(_)));
    let other = Reseat { persisted: ALL & !1, ..first.clone() };
    assert!(matches!(replica.refused(START, Command::Reseat(other)), Rejection::Changed(_)));
    assert_eq!(replica.one(START, Command::Reseat(first.clone())), Outcome::Done);
    assert!(matches!(replica.refused(START, Command::Reseat(first.clone())), Rejection::Changed(_)), "placement");
    replica.one(START, Command::Delete { key: key(KEY), version: None });
    assert!(matches!(replica.refused(START, Command::Reseat(first)), Rejection::NotFound(_)), "deleted");
}

#[test]
fn a_reseat_names_each_shard_once_and_only_volumes_that_may_have_it() {
    let (mut replica, id) = stored();
    (0..3).for_each(|node| replica.add_spare(node));
    let malformed = |rejection: &Rejection| matches!(rejection, Rejection::Malformed(_));
    assert!(malformed(&refused_reseat(&mut replica, id, &[])));
    assert!(malformed(&refused_reseat(&mut replica, id, &[(6, spare(0))])));
    assert!(malformed(&refused_reseat(&mut replica, id, &[(0, spare(0)), (0, spare(0))])));
    let unknown = refused_reseat(&mut replica, id, &[(0, VolumeId([99; 16]))]);
    assert!(matches!(unknown, Rejection::Unknown(_)));
    replica.one(START, set_volume(spare(1), VolumeState::Fenced));
    assert_eq!(refused_reseat(&mut replica, id, &[(1, spare(1))]), Rejection::Fenced { volume: spare(1) });
    replica.one(START, set_volume(spare(0), VolumeState::Away));
    assert!(matches!(refused_reseat(&mut replica, id, &[(0, spare(0))]), Rejection::NotAllowed(_)), "away");
    replica.one(START, set_node(3, NodeState::Down));
    assert!(matches!(refused_reseat(&mut replica, id, &[(2, spare(2))]), Rejection::NotAllowed(_)), "down");
    replica.one(START, set_node(3, NodeState::Up));
    let drain = Command::SetDrain { target: DrainTarget::Node(NodeId(3)), draining: true };
    assert_eq!(replica.one(START, drain), Outcome::Done);
    assert!(matches!(refused_reseat(&mut replica, id, &[(2, spare(2))]), Rejection::NotAllowed(_)), "drained");
    replica.one(START, damage(volume(2), id, &[2]));
    done_reseat(&mut replica, id, &[(2, volume(2))]);
    assert_eq!(present(&replica, id).seal.stripes[0].persisted, ALL, "what is there already may be repaired there");
}

#[test]
fn a_reseat_never_weakens_what_the_stripe_survives() {
    let (mut replica, id) = stored();
    // Site 1 would hold three shards of six, of which four are needed.
    let weak = refused_reseat(&mut replica, id, &[(0, volume(1))]);
    assert!(matches!(&weak, Rejection::TooWeak { stripe: 0, why } if why.contains("any one site")), "{weak}");
    // While node 1 is away, its shard counts for nothing, and anywhere is better.
    replica.one(START, set_node(1, NodeState::Down));
    done_reseat(&mut replica, id, &[(0, volume(1))]);
    assert_eq!(missing_shards(&replica.state, None, 9).unwrap(), []);
}

#[test]
fn emptying_a_volume_may_cost_what_exceeds_the_contract_and_the_record_says_so() {
    let (mut replica, id) = stored();
    let two_nodes = Failures { sites: 0, nodes: 2 };
    assert!(covers(&present(&replica, id).survives, &Contract::one(two_nodes)));
    // The other node of its site holds two shards then, so that two nodes may take three.
    let beside = 3;
    let weak = refused_reseat(&mut replica, id, &[(0, volume(beside))]);
    assert!(matches!(weak, Rejection::TooWeak { .. }), "not without an operator's word: {weak}");
    let drain = Command::SetDrain { target: DrainTarget::Node(NodeId(1)), draining: true };
    assert_eq!(replica.one(START, drain), Outcome::Done);
    done_reseat(&mut replica, id, &[(0, volume(beside))]);
    let record = present(&replica, id);
    assert!(!covers(&record.survives, &Contract::one(two_nodes)), "{:?}", record.survives);
    assert!(!record.degraded, "it keeps its contract");
}

/// What a drain plans when a shard in place must make room: simulated seed 603 waited for ever where it was refused.
#[test]
fn emptying_a_volume_may_spread_other_shards_anew_in_the_same_step() {
    let (mut replica, id) = stored();
    replica.add_spare(2);
    let two_nodes = Failures { sites: 0, nodes: 2 };
    let spread = [(0, volume(3)), (5, spare(2))];
    let weak = refused_reseat(&mut replica, id, &spread);
    assert!(matches!(weak, Rejection::TooWeak { .. }), "not without an operator's word: {weak}");
    let drain = Command::SetDrain { target: DrainTarget::Node(NodeId(1)), draining: true };
    assert_eq!(replica.one(START, drain), Outcome::Done);
    let broken = refused_reseat(&mut replica, id, &[(0, volume(1)), (5, spare(2))]);
    assert!(matches!(broken, Rejection::TooWeak { .. }), "never below the contract: {broken}");
    done_reseat(&mut replica, id, &spread);
    let record = present(&replica, id);
    assert!(!covers(&record.survives, &Contract::one(two_nodes)), "{:?}", record.survives);
    assert!(!record.degraded, "it keeps its contract");
}

#[test]
fn a_degraded_record_is_raised_once_all_its_stripes_keep_the_contract() {
    let mut replica = Replica::upgraded();
    let id = instance(START, 1);
    let mut weak = seal(KEY, "abcdef", id);
    weak.stripes = vec![stripe(4, ALL & !1), stripe(2, ALL & !2)];
    let (sealed, _) = replica.sealed(START, weak);
    assert!(sealed.degraded);
    let repair = |index: u32, shard: u8| {
        Command::Reseat(Reseat {
            instance: id,
            stripe: StripeIndex(index),
            expected: (0..NODES).map(volume).collect(),
            persisted: ALL & !(1 << shard),
            moves: vec![(ShardIndex(shard), volume(shard))],
            not_after: WallMillis(u64::MAX),
        })
    };
    assert_eq!(replica.one(START, repair(0, 0)), Outcome::Done);
    assert!(present(&replica, id).degraded, "one stripe is not all");
    assert_eq!(missing_shards(&replica.state, None, 9).unwrap(), [(id, StripeIndex(1))]);
    assert_eq!(replica.one(START, repair(1, 1)), Outcome::Done);
    let whole = present(&replica, id);
    assert!(!whole.degraded);
    assert_eq!(whole.survives, [Failures { sites: 1, nodes: 0 }, Failures { sites: 0, nodes: 2 }]);
    assert_eq!(whole.moved[&FIRST].former, BTreeMap::new(), "repaired in place");
    assert_eq!((whole.index, whole.time), (sealed.index, sealed.time), "when it was sealed stays");
}

#[test]
fn damage_clears_bits_only_where_the_shard_belongs_and_lowers_no_record() {
    let (mut replica, id) = stored();
    let before = present(&replica, id);
    assert!(matches!(replica.refused(START, damage(VolumeId([99; 16]), id, &[0])), Rejection::Unknown(_)));
    for skipped in [damage(volume(0), id, &[1, 6, 200]), damage(volume(0), instance(START, 9), &[0])] {
        assert_eq!(replica.one(START, skipped), Outcome::Done);
        assert_eq!(present(&replica, id), before);
    }
    assert_eq!(replica.one(START, damage(volume(0), id, &[0, 1])), Outcome::Done);
    let after = present(&replica, id);
    assert_eq!(after.seal.stripes[0].persisted, ALL & !1);
    assert_eq!((after.degraded, after.survives), (false, before.survives));
    assert_eq!(missing_shards(&replica.state, None, 9).unwrap(), [(id, FIRST)]);
    let many: Vec<ShardId> = vec![ShardId { instance: id, stripe: FIRST, shard: ShardIndex(0) }; 1_001];
    let many = Command::ReportDamage { volume: volume(0), shards: many };
    assert!(matches!(replica.refused(START, many), Rejection::Malformed(_)));
    // The damaged shard moves: its bytes may be on no former holder.
    replica.add_spare(0);
    done_reseat(&mut replica, id, &[(0, spare(0))]);
    assert_eq!(present(&replica, id).moved[&FIRST].former, BTreeMap::new());
    assert_eq!(missing_shards(&replica.state, None, 9).unwrap(), []);
}

#[test]
fn a_stripe_set_aside_is_seen_with_its_reason_until_it_is_reseated_retried_or_gone() {
    let (mut replica, id) = stored();
    assert!(matches!(replica.refused(START, put_aside(instance(START, 9))), Rejection::NotFound(_)));
    let long = Command::SetAside { instance: id, stripe: FIRST, reason: "é".repeat(400) };
    replica.one(START, long);
    assert_eq!(aside(&replica.state, id, FIRST).unwrap().unwrap().reason, "é".repeat(250));
    replica.one(START + 5, put_aside(id));
    let (found, total) = asides(&replica.state, 9).unwrap();
    assert_eq!((total, found[0].since, found[0].reason.as_str()), (1, WallMillis(START + 5), "no k shards"));
    assert_eq!(found[0].layout, replica.machine.layout().unwrap().version);
    assert_eq!(asides(&replica.state, 0).unwrap(), (vec![], 1));
    replica.one(START + 5, Command::RetryAside);
    assert_eq!(asides(&replica.state, 9).unwrap(), (vec![], 0));
    replica.add_spare(0);
    replica.one(START + 5, put_aside(id));
    done_reseat(&mut replica, id, &[(0, spare(0))]);
    assert_eq!(aside(&replica.state, id, FIRST).unwrap(), None);
    replica.one(START + 5, put_aside(id));
    replica.one(START + 5, Command::Delete { key: key(KEY), version: None });
    assert_eq!(asides(&replica.state, 9).unwrap(), (vec![], 0));
    assert!(matches!(replica.refused(START, put_aside(id)), Rejection::NotFound(_)), "deleted");
}

/// A second profile, and "abcd" coded by it.
fn with_hot(replica: &mut Replica) -> Seal {
    let hot = Profile { name: "hot".parse().unwrap(), code: Code::new(2, 4).unwrap(), ..profile() };
    let contract = Contract::one(Failures { sites: 2, nodes: 0 });
    let hot = Profile { contract, ..hot };
    let set = Command::SetProfile { profile: hot.clone(), make_default: false };
    assert_eq!(replica.one(START, set), Outcome::Done);
    Seal { profile: hot.name, code: hot.code, ..seal(KEY, "abcd", instance(START, 50)) }
}

#[test]
fn a_replacement_keeps_version_and_content_and_the_old_encoding_may_be_swept() {
    let (mut replica, id) = stored();
    replica.sealed(START, seal(KEY, "newer", instance(START, 2)));
    let seal = with_hot(&mut replica);
    replica.one(START, put_aside(id));
    let rows = list(&replica.state, &"main".parse().unwrap(), None, None, true, &[], 9).unwrap();
    let replace = Replace { seal: seal.clone(), version: VersionNumber(1), replaces: id };
    let outcome = replica.one(START + 7, Command::Replace(Box::new(replace.clone())));
    let Outcome::Sealed { sealed, first: true } = outcome else { panic!("{outcome:?}") };
    assert_eq!((sealed.version, sealed.degraded, sealed.time), (VersionNumber(1), false, WallMillis(START + 7)));
    assert_eq!(sealed.survives[0], Failures { sites: 2, nodes: 0 });
    assert_eq!(lookup(&replica.state, &key(KEY), Some(VersionNumber(1))).unwrap().as_ref(), Some(&*sealed));
    assert_eq!(lookup(&replica.state, &key(KEY), None).unwrap().unwrap().version, VersionNumber(2));
    let old = present(&replica, id);
    assert_eq!(
        (old.deleted, old.version, old.seal.code),
        (Some(LogIndex(replica.index)), VersionNumber(1), profile().code)
    );
    assert_eq!(stripe_state(&replica.state, id, FIRST).unwrap(), None);
    assert_eq!(asides(&replica.state, 9).unwrap().1, 0);
    assert_eq!(deleted_instances(&replica.state, None, 9).unwrap(), [(LogIndex(replica.index), id)]);
    let found = groups(&replica.state).unwrap();
    let names: Vec<_> = found.iter().map(|group| (group.profile.as_str(), group.sums.stripes)).collect();
    assert_eq!(names, [("hot", 1), ("standard", 1)]);
    assert_eq!(list(&replica.state, &"main".parse().unwrap(), None, None, true, &[], 9).unwrap(), rows, "study sums");
    // Again: the same answer. A seal of the attempt that was replaced: what stands for it now.
    let again = replica.one(START + 8, Command::Replace(Box::new(replace)));
    assert_eq!(again, Outcome::Sealed { sealed: sealed.clone(), first: false });
    assert_eq!(replica.sealed(START + 8, catalog_support::seal(KEY, "abcd", id)), (*sealed, false));
    // Deleting the version deletes the new encoding; the old one was marked before.
    replica.one(START + 9, Command::Delete { key: key(KEY), version: Some(VersionNumber(1)) });
    assert_eq!(present(&replica, seal.instance).deleted, Some(LogIndex(replica.index)));
    assert_eq!(present(&replica, id), old);
    assert_eq!(replica.sealed(START + 9, catalog_support::seal(KEY, "abcd", id)), (old, false));
}

#[test]
fn retention_does_not_forbid_another_encoding() {
    let mut replica = Replica::upgraded();
    let reserved = Reserved { retain_until: Some(WallMillis(START + 1_000)), ..Reserved::default() };
    let id = instance(START, 1);
    replica.sealed(START, Seal { reserved: reserved.clone(), ..seal(KEY, "abcd", id) });
    let mut replace = replacing(id, 2);
    replace.seal.reserved = reserved;
    let outcome = replica.one(START, Command::Replace(Box::new(replace)));
    assert!(matches!(outcome, Outcome::Sealed { first: true, .. }), "{outcome:?}");
    let delete = Command::Delete { key: key(KEY), version: None };
    assert!(matches!(replica.refused(START, delete), Rejection::NotAllowed(_)), "still retained");
}

#[test]
fn a_replacement_that_changes_the_content_or_is_decided_on_old_news_is_refused() {
    let (mut replica, id) = stored();
    let refused = |replica: &mut Replica, replace: Replace| replica.refused(START, Command::Replace(Box::new(replace)));
    let good = replacing(id, 2);
    let none = refused(&mut replica, Replace { version: VersionNumber(2), ..good.clone() });
    assert!(matches!(none, Rejection::NotFound(_)));
    let changed = refused(&mut replica, Replace { replaces: instance(START, 9), ..good.clone() });
    assert!(matches!(changed, Rejection::Changed(_)));
    let with = |change: &dyn Fn(&mut Seal)| {
        let mut other = good.clone();
        change(&mut other.seal);
        other
    };
    let other_content = seal(KEY, "abce", instance(START, 2));
    let malformed = [
        Replace { seal: other_content, ..good.clone() },
        with(&|seal| seal.media_type = "text/plain".to_owned()),
        with(&|seal| seal.attributes.clear()),
        with(&|seal| seal.reserved.wrapped_key = vec![1]),
        with(&|seal| seal.code = Code::new(2, 4).unwrap()),
    ];
    for replace in malformed {
        let rejection = refused(&mut replica, replace.clone());
        assert!(matches!(rejection, Rejection::Malformed(_)), "{replace:?}: {rejection}");
    }
    replica.sealed(START, seal("main/1.2/1.3/1.5", "abcd", instance(START, 3)));
    let used = refused(&mut replica, with(&|seal| seal.instance = instance(START, 3)));
    assert!(matches!(used, Rejection::Malformed(_)), "{used}");
    let weak = refused(&mut replica, with(&|seal| seal.stripes[0].persisted = ALL & !1));
    assert!(matches!(weak, Rejection::TooWeak { stripe: 0, .. }), "a re-encoding is never degraded: {weak}");
    replica.one(START, set_volume(volume(2), VolumeState::Fenced));
    assert_eq!(refused(&mut replica, good.clone()), Rejection::Fenced { volume: volume(2) });
    let late = START + 2 * 24 * 3_600_000;
    let closed = replica.refused(late, Command::Replace(Box::new(good.clone())));
    assert!(matches!(closed, Rejection::WindowClosed { .. }));
    replica.one(late, Command::Delete { key: key(KEY), version: None });
    assert!(matches!(refused(&mut replica, good), Rejection::NotFound(_)), "deleted");
}

#[test]
fn a_study_is_to_have_a_known_profile_or_none() {
    let (mut replica, _) = stored();
    let set = |tenant: &str, profile: Option<&str>| Command::SetStudyProfile {
        tenant: tenant.parse().unwrap(),
        study: "1.2".parse().unwrap(),
        profile: profile.map(|name| name.parse().unwrap()),
    };
    assert!(matches!(replica.refused(START, set("main", Some("cold"))), Rejection::Unknown(_)));
    assert_eq!(replica.one(START, set("main", Some("standard"))), Outcome::Done);
    assert_eq!(replica.one(START, set("other", Some("standard"))), Outcome::Done);
    let (tenant, study) = ("main".parse().unwrap(), "1.2".parse().unwrap());
    assert_eq!(study_profile(&replica.state, &tenant, &study).unwrap(), Some(profile().name));
    let all = study_profiles(&replica.state, None, 9).unwrap();
    assert_eq!(all.iter().map(|(tenant, ..)| tenant.as_str()).collect::<Vec<_>>(), ["main", "other"]);
    let rest = study_profiles(&replica.state, Some((tenant.clone(), study.clone())), 9).unwrap();
    assert_eq!(rest, all[1..]);
    assert_eq!(replica.one(START, set("main", None)), Outcome::Done);
    assert_eq!(replica.one(START, set("main", None)), Outcome::Done);
    assert_eq!(study_profile(&replica.state, &tenant, &study).unwrap(), None);
}

#[test]
fn a_node_that_holds_stripes_is_not_removed_and_deleted_ones_block_nothing() {
    let (mut replica, id) = stored();
    replica.add_spare(3);
    let held = replica.refused(START, set_node(1, NodeState::Removed));
    assert!(held.to_string().contains("node 1 still holds 1 shards"), "{held}");
    replica.one(START, set_node(1, NodeState::Lost));
    assert!(matches!(replica.refused(START, set_node(1, NodeState::Removed)), Rejection::NotAllowed(_)));
    let moving = Command::Reseat(reseat(&replica, id, &[(0, spare(3))]));
    // In one entry: what earlier commands of it did counts.
    let outcomes = replica.apply(START, vec![moving, set_node(1, NodeState::Removed)]);
    assert_eq!(outcomes, [Outcome::Done, Outcome::Done]);
    assert!(matches!(replica.refused(START, set_node(1, NodeState::Up)), Rejection::NotAllowed(_)), "final");
    let outcomes =
        replica.apply(START, vec![Command::Delete { key: key(KEY), version: None }, set_node(2, NodeState::Removed)]);
    assert_eq!(outcomes[1], Outcome::Done);
    assert_eq!(groups(&replica.state).unwrap(), []);
}

#[test]
fn what_was_deleted_in_version_1_keeps_its_index_and_blocks_nothing() {
    let mut replica = Replica::with_cluster();
    let id = instance(START, 1);
    replica.sealed(START, seal(KEY, "abcd", id));
    replica.one(START, Command::Delete { key: key(KEY), version: None });
    assert_eq!(stripes_on(&replica.state, volume(0), None, 9).unwrap().len(), 1, "as version 1 left it");
    let joins = (0..NODES).map(|node| Command::JoinNode(JoinNode { version: 2, ..join(node) }));
    replica.apply(START, joins.chain([Command::Activate { version: 2 }]).collect());
    assert_eq!(stripe_state(&replica.state, id, FIRST).unwrap(), None);
    assert_eq!(groups(&replica.state).unwrap(), []);
    assert_eq!(replica.one(START, set_node(1, NodeState::Removed)), Outcome::Done);
}

#[test]
fn a_node_without_which_a_profile_in_use_is_impossible_is_not_removed() {
    let mut replica = Replica::upgraded();
    assert_eq!(replica.one(START, set_node(1, NodeState::Removed)), Outcome::Done);
    let impossible = replica.refused(START, set_node(4, NodeState::Removed));
    assert!(
        matches!(&impossible, Rejection::Impossible(why) if why.contains("4+2 over sites of 2,2 nodes")),
        "{impossible}"
    );
    // A profile that nothing is stored by, and that is not the default, does not hold a node.
    let mut replica = Replica::upgraded();
    let wide = Profile {
        name: "wide".parse().unwrap(),
        code: Code::new(1, 5).unwrap(),
        contract: Contract::one(Failures { sites: 0, nodes: 5 }),
        ..profile()
    };
    let set = Command::SetProfile { profile: wide.clone(), make_default: false };
    assert_eq!(replica.one(START, set), Outcome::Done);
    let mut stored = seal(KEY, "abcd", instance(START, 1));
    (stored.profile, stored.code) = (wide.name, wide.code);
    replica.sealed(START, stored);
    replica.add_spare(3);
    done_reseat_weaker(&mut replica);
    assert!(matches!(replica.refused(START, set_node(1, NodeState::Removed)), Rejection::Impossible(_)));
    replica.one(START, Command::Delete { key: key(KEY), version: None });
    assert_eq!(replica.one(START, set_node(1, NodeState::Removed)), Outcome::Done);
}

/// Takes the shard off node 1, which is down for that.
fn done_reseat_weaker(replica: &mut Replica) {
    replica.one(START, set_node(1, NodeState::Down));
    done_reseat(replica, instance(START, 1), &[(0, spare(3))]);
}

#[test]
fn the_last_voter_is_not_removed() {
    let mut replica = Replica::new();
    let only = JoinNode { version: 2, ..join(0) };
    let mut other = JoinNode { version: 2, ..join(1) };
    other.roles = Roles { storage: true, voter: false };
    let joins = vec![Command::JoinNode(only), Command::JoinNode(other), Command::Activate { version: 2 }];
    replica.apply(START, [vec![catalog_support::init()], joins].concat());
    let last = replica.refused(START, set_node(1, NodeState::Removed));
    assert!(last.to_string().contains("the last that may vote"), "{last}");
    assert_eq!(replica.one(START, set_node(2, NodeState::Removed)), Outcome::Done);
}

#[test]
fn a_drain_that_would_break_a_contract_is_refused_with_the_arithmetic() {
    let mut replica = Replica::upgraded();
    let drain = |target, draining| Command::SetDrain { target, draining };
    let node = |id| DrainTarget::Node(NodeId(id));
    assert!(matches!(replica.refused(START, drain(node(77), true)), Rejection::Unknown(_)));
    let unknown = DrainTarget::Volume(VolumeId([99; 16]));
    assert!(matches!(replica.refused(START, drain(unknown, true)), Rejection::Unknown(_)));
    assert_eq!(replica.one(START, drain(node(1), true)), Outcome::Done);
    assert_eq!(replica.one(START, drain(node(1), true)), Outcome::Done);
    let layout = replica.machine.layout().unwrap();
    assert!(layout.draining(volume(0)) && layout.counts(volume(0)) && !layout.writable(volume(0)));
    // Its neighbour on the site must stay now; and the volume of that neighbour.
    for target in [node(4), DrainTarget::Volume(volume(3))] {
        let refused = replica.refused(START, drain(target, true));
        assert!(matches!(&refused, Rejection::Impossible(why) if why.contains("leaves at most")), "{refused}");
    }
    replica.reload();
    assert_eq!(replica.one(START, drain(node(1), false)), Outcome::Done);
    assert_eq!(replica.one(START, drain(DrainTarget::Volume(volume(3)), true)), Outcome::Done);
    assert_eq!(replica.one(START, drain(DrainTarget::Volume(volume(3)), false)), Outcome::Done);
    replica.one(START, set_volume(volume(3), VolumeState::Fenced));
    let fenced = replica.refused(START, drain(DrainTarget::Volume(volume(3)), true));
    assert!(matches!(fenced, Rejection::NotAllowed(_)));
    replica.one(START, set_node(4, NodeState::Removed));
    assert!(matches!(replica.refused(START, drain(node(4), true)), Rejection::NotAllowed(_)));
    // A profile is judged on what stays.
    replica.one(START, drain(node(2), true));
    let six =
        Profile { name: "six".parse().unwrap(), contract: Contract::one(Failures { sites: 0, nodes: 2 }), ..profile() };
    let set = Command::SetProfile { profile: six, make_default: false };
    assert!(matches!(replica.refused(START, set), Rejection::Impossible(_)), "four nodes for six shards");
}

#[test]
fn sums_of_a_state_that_knew_none_are_made_again_before_the_next_entry() {
    let (mut replica, id) = stored();
    replica.sealed(START, seal(KEY, "newer", instance(START, 2)));
    replica.sealed(START, seal("main/1.2/@/report", "", instance(START, 3)));
    replica.add_spare(0);
    done_reseat(&mut replica, id, &[(0, spare(0))]);
    replica.one(START, Command::Delete { key: key("main/1.2/@/report"), version: None });
    let whole = replica.state.clone();
    // As a version that did not keep them leaves it: an old marker, wrong rows.
    replica.state.retain(|key, _| !matches!(key[0], 0x25 | 0x28));
    replica.state.insert([&[0x25; 9][..], b"standard\0\0\0\0\x01"].concat(), vec![1, 8, 9]);
    replica.reload();
    assert!(replica.machine.sums_stale());
    let mut machine = Machine::load(&replica.state).unwrap();
    let mut overlay = Overlay::new(&replica.state);
    machine.rebuild_sums(&mut overlay).unwrap();
    assert!(!machine.sums_stale());
    assert_eq!(groups(&overlay).unwrap(), groups(&whole).unwrap());
    replica.one(START, Command::RetryAside);
    assert!(!replica.machine.sums_stale());
    assert_eq!(groups(&replica.state).unwrap(), groups(&whole).unwrap());
    replica.reload();
    assert!(!replica.machine.sums_stale());
}
