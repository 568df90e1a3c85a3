//! The rules of `apply`, one by one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod catalog_support;

use std::sync::atomic::{AtomicUsize, Ordering};

use catalog_support::{ALL, NODES, Replica, START, State, init, instance, join, key, profile, seal, stripe, volume};
use pacsvault_core::catalog::command::{Command, Outcome, Rejection, Reserved, Seal};
use pacsvault_core::catalog::query::{
    by_instance, deleted_instances, lookup, missing_shards, remembered_digest, stripes_on,
};
use pacsvault_core::catalog::{Entry, Error, View, ViewError};
use pacsvault_core::ids::{
    Digest, Incarnation, LogIndex, NodeId, ShardIndex, StripeIndex, VersionNumber, VolumeId, WallMillis,
};
use pacsvault_core::layout::profile::Code;
use pacsvault_core::layout::{Contract, Failures, NodeState, Profile, VolumeState};
use pacsvault_core::limits::WRITE_WINDOW_MILLIS;
use pacsvault_core::receipt::Receipt;

const KEY: &str = "main/1.2/1.3/1.4";

fn as_command(seal: Seal) -> Command {
    Command::Seal(Box::new(seal))
}

fn set_node(node: u64, state: NodeState) -> Command {
    Command::SetNodeState { node: NodeId(node), state }
}

/// What a delete in the last entry answers: a state that has applied that entry does not show the versions.
fn deleted(replica: &Replica, versions: Vec<VersionNumber>) -> Outcome {
    Outcome::Deleted { versions, index: LogIndex(replica.index) }
}

#[test]
fn nothing_is_accepted_before_the_cluster_is_initialised_and_it_is_initialised_once() {
    let mut replica = Replica::new();
    let early = replica.refused(START, Command::JoinNode(join(0)));
    assert!(matches!(early, Rejection::ClusterState(_)));
    assert_eq!(replica.one(START, init()), Outcome::Done);
    assert!(matches!(replica.refused(START, init()), Rejection::ClusterState(_)));
}

#[test]
fn node_ids_count_from_one_and_are_never_given_twice() {
    let mut replica = Replica::with_cluster();
    let layout = replica.machine.layout().unwrap();
    assert_eq!(layout.nodes.keys().map(|node| node.0).collect::<Vec<_>>(), (1..=6).collect::<Vec<_>>());
    assert_eq!(replica.one(START, set_node(6, NodeState::Removed)), Outcome::Done);
    let mut again = join(5);
    assert!(matches!(replica.refused(START, Command::JoinNode(again.clone())), Rejection::NotAllowed(_)));
    again.incarnation = Incarnation([99; 16]);
    assert!(matches!(replica.refused(START, Command::JoinNode(again.clone())), Rejection::NotAllowed(_)), "old volume");
    again.volumes = vec![(VolumeId([99; 16]), 1)];
    replica.reload();
    assert_eq!(replica.one(START, Command::JoinNode(again)), Outcome::Joined(NodeId(7)));
}

#[test]
fn joining_again_updates_the_address_and_nothing_else_changes_the_layout_version() {
    let mut replica = Replica::with_cluster();
    let before = replica.machine.layout().unwrap();
    assert_eq!(replica.one(START, Command::JoinNode(join(2))), Outcome::Joined(NodeId(3)));
    assert_eq!(replica.machine.layout().unwrap().version, before.version);
    let mut moved = join(2);
    moved.address = "elsewhere:1".to_owned();
    assert_eq!(replica.one(START, Command::JoinNode(moved.clone())), Outcome::Joined(NodeId(3)));
    let after = replica.machine.layout().unwrap();
    assert_eq!(after.version.0, before.version.0 + 1);
    assert_eq!(after.nodes[&NodeId(3)].address, "elsewhere:1");
    moved.site = "other".parse().unwrap();
    assert!(matches!(replica.refused(START, Command::JoinNode(moved)), Rejection::NotAllowed(_)));
}

#[test]
fn a_name_with_other_data_is_taken_and_a_volume_has_one_owner() {
    let mut replica = Replica::with_cluster();
    let mut other = join(0);
    other.incarnation = Incarnation([50; 16]);
    let taken = replica.refused(START, Command::JoinNode(other.clone()));
    assert_eq!(taken, Rejection::NameTaken { name: join(0).name, node: NodeId(1) });
    other.name = "thief".parse().unwrap();
    assert!(matches!(replica.refused(START, Command::JoinNode(other)), Rejection::NotAllowed(_)));
    let add = |node, volume| Command::AddVolume { node: NodeId(node), volume, capacity_bytes: 5 };
    assert!(matches!(replica.refused(START, add(1, volume(4))), Rejection::NotAllowed(_)));
    assert!(matches!(replica.refused(START, add(77, VolumeId([60; 16]))), Rejection::Unknown(_)));
    assert_eq!(replica.one(START, add(1, VolumeId([60; 16]))), Outcome::Done);
    assert_eq!(replica.machine.layout().unwrap().volumes[&VolumeId([60; 16])].node, NodeId(1));
}

#[test]
fn fencing_is_final_and_refuses_shards_that_are_only_there() {
    let mut replica = Replica::with_cluster();
    let fence = |state| Command::SetVolumeState { volume: volume(3), state };
    assert_eq!(replica.one(START, fence(VolumeState::Fenced)), Outcome::Done);
    assert_eq!(replica.one(START, fence(VolumeState::Fenced)), Outcome::Done);
    assert!(matches!(replica.refused(START, fence(VolumeState::Up)), Rejection::NotAllowed(_)));
    let whole = seal(KEY, "a", instance(START, 1));
    assert_eq!(replica.refused(START, as_command(whole.clone())), Rejection::Fenced { volume: volume(3) });
    let mut without = whole;
    without.stripes[0].persisted = ALL & !(1 << 3);
    let (sealed, _) = replica.sealed(START, without);
    assert!(sealed.degraded);
    assert_eq!(sealed.survives, [Failures { sites: 0, nodes: 1 }]);
}

#[test]
fn shards_on_nodes_that_are_down_do_not_count() {
    let mut replica = Replica::with_cluster();
    replica.one(START, set_node(1, NodeState::Down));
    let (sealed, _) = replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    assert!(sealed.degraded);
    replica.one(START, set_node(2, NodeState::Down));
    let weak = replica.refused(START, as_command(seal(KEY, "b", instance(START, 2))));
    assert!(matches!(weak, Rejection::TooWeak { stripe: 0, .. }), "{weak}");
    replica.one(START, set_node(1, NodeState::Up));
    replica.one(START, set_node(2, NodeState::Up));
    let (sealed, _) = replica.sealed(START, seal(KEY, "b", instance(START, 3)));
    assert!(!sealed.degraded);
}

#[test]
fn a_strict_seal_keeps_the_whole_contract_or_is_refused() {
    let mut replica = Replica::with_cluster();
    let mut strict = seal(KEY, "a", instance(START, 1));
    strict.strict = true;
    strict.stripes[0].persisted = ALL & !1;
    assert!(matches!(replica.refused(START, as_command(strict.clone())), Rejection::TooWeak { .. }));
    strict.strict = false;
    assert!(replica.sealed(START, strict.clone()).0.degraded);
    // The degraded record does not answer a strict seal of the same content.
    let mut again = seal(KEY, "a", instance(START, 2));
    again.strict = true;
    let (sealed, first) = replica.sealed(START, again);
    assert_eq!((sealed.version, sealed.degraded, first), (VersionNumber(2), false, true));
}

#[test]
fn what_an_instance_survives_is_what_every_stripe_survives() {
    let mut replica = Replica::with_cluster();
    let mut two = seal(KEY, "abcdef", instance(START, 1));
    two.stripes = vec![stripe(4, ALL), stripe(2, ALL & !2)];
    let (sealed, _) = replica.sealed(START, two);
    assert_eq!(sealed.survives, [Failures { sites: 0, nodes: 1 }]);
    assert!(sealed.degraded);
    let missing = missing_shards(&replica.state, None, 10).unwrap();
    assert_eq!(missing, [(instance(START, 1), StripeIndex(1))]);
}

#[test]
fn the_same_attempt_and_the_same_content_answer_the_first_record() {
    let mut replica = Replica::with_cluster();
    let (first, fresh) = replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    assert!(fresh);
    assert_eq!(replica.sealed(START + 9, seal(KEY, "a", instance(START, 1))), (first.clone(), false));
    assert_eq!(replica.sealed(START + 9, seal(KEY, "a", instance(START, 2))), (first.clone(), false));
    assert_eq!(by_instance(&replica.state, instance(START, 2)).unwrap(), None, "its shards are orphans");
    let stolen = replica.refused(START, as_command(seal(KEY, "b", instance(START, 1))));
    assert!(matches!(stolen, Rejection::Malformed(_)));
    let (second, _) = replica.sealed(START, seal(KEY, "b", instance(START, 3)));
    assert_eq!(second.version, VersionNumber(2));
    assert_eq!(lookup(&replica.state, &key(KEY), Some(VersionNumber(1))).unwrap(), Some(first));
    assert_eq!(lookup(&replica.state, &key(KEY), None).unwrap(), Some(second));
}

/// A proposal may be held up by the network for longer than its client waits. Found by the simulator as a linearizability
/// violation: the held-up copy made old content the newest again, after its attempt had been answered.
#[test]
fn an_attempt_answered_with_another_record_never_becomes_a_version_later() {
    let mut replica = Replica::upgraded();
    let (first, _) = replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    let again = seal(KEY, "a", instance(START + 1, 2));
    assert_eq!(replica.sealed(START + 2, again.clone()), (first.clone(), false));
    let (second, _) = replica.sealed(START + 3, seal(KEY, "b", instance(START + 3, 3)));
    // The copy that was held up arrives; a restart in between forgets nothing.
    replica.reload();
    assert_eq!(replica.sealed(START + 4, again.clone()), (first.clone(), false));
    let newest = |replica: &Replica| lookup(&replica.state, &key(KEY), None).unwrap().unwrap().version;
    assert_eq!(newest(&replica), second.version);
    // Also after that record was deleted.
    let delete = Command::Delete { key: key(KEY), version: Some(first.version) };
    let answer = replica.one(START + 5, delete);
    assert_eq!(answer, deleted(&replica, vec![first.version]));
    let (gone, is_first) = replica.sealed(START + 6, again);
    assert_eq!((gone.version, gone.deleted.is_some(), is_first), (first.version, true, false));
    assert_eq!(newest(&replica), second.version);
}

#[test]
fn answers_are_forgotten_when_their_attempts_have_expired() {
    let mut replica = Replica::upgraded();
    replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    let answers = |replica: &Replica| replica.state.keys().filter(|key| key[0] == 0x15).count();
    for number in 2..12 {
        replica.sealed(START + number, seal(KEY, "a", instance(START + number, number)));
    }
    assert_eq!(answers(&replica), 10);
    let later = START + WRITE_WINDOW_MILLIS + 1_000;
    for number in 12..17 {
        replica.sealed(later + number, seal(KEY, "a", instance(later + number, number)));
    }
    assert_eq!(answers(&replica), 5, "those of a day ago are gone");
    let late = replica.refused(later + 20, as_command(seal(KEY, "b", instance(START + 2, 2))));
    assert!(matches!(late, Rejection::WindowClosed { .. }), "{late:?}");
}

/// A fresh seal of the content that all of these tests store, without shard `lost`.
fn around(lost: u8, number: u64) -> Seal {
    let mut fresh = seal(KEY, "a", instance(START, number));
    fresh.stripes[0].persisted = ALL & !(1 << lost);
    fresh
}

#[test]
fn a_record_that_lost_shards_since_does_not_answer_for_better_ones() {
    let fence = |node| Command::SetVolumeState { volume: volume(node), state: VolumeState::Fenced };
    let mut replica = Replica::with_cluster();
    let (old, _) = replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    assert!(!old.degraded);
    assert_eq!(replica.one(START, fence(3)), Outcome::Done);
    // As weak as the old record is now: it answers, and says what it is worth now.
    let (again, first) = replica.sealed(START, around(3, 2));
    assert_eq!((again.version, first), (VersionNumber(1), false));
    assert_eq!((again.survives, again.degraded), (vec![Failures { sites: 0, nodes: 1 }], true));
    assert_eq!(lookup(&replica.state, &key(KEY), None).unwrap(), Some(old), "what is stored stays");
    // Below the floor, it answers for nothing.
    assert_eq!(replica.one(START, fence(0)), Outcome::Done);
    let mut weak = around(3, 3);
    weak.stripes[0].persisted &= !1;
    assert!(matches!(replica.refused(START, as_command(weak)), Rejection::TooWeak { .. }));
    // Fresh shards on what is left are worth more than the old ones: a version of their own.
    let spare = VolumeId([60; 16]);
    let add = Command::AddVolume { node: NodeId(4), volume: spare, capacity_bytes: 1 << 40 };
    assert_eq!(replica.one(START, add), Outcome::Done);
    let mut fresh = around(0, 4);
    fresh.stripes[0].placement[3] = spare;
    let (fresh, first) = replica.sealed(START, fresh);
    assert_eq!((fresh.version, first), (VersionNumber(2), true));
    assert_eq!(fresh.survives, [Failures { sites: 0, nodes: 1 }]);
    assert!(by_instance(&replica.state, instance(START, 4)).unwrap().is_some(), "its shards are no orphans");
}

#[test]
fn a_strict_seal_is_answered_only_by_what_keeps_its_contract_now() {
    let mut replica = Replica::with_cluster();
    replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    replica.one(START, set_node(1, NodeState::Removed));
    let mut strict = around(0, 2);
    strict.strict = true;
    assert!(matches!(replica.refused(START, as_command(strict)), Rejection::TooWeak { .. }));
    let (answer, first) = replica.sealed(START, around(0, 3));
    assert_eq!((answer.version, answer.degraded, first), (VersionNumber(1), true, false));
}

#[test]
fn a_record_of_a_weaker_profile_does_not_answer_for_a_stronger_one() {
    let mut replica = Replica::with_cluster();
    let node = Contract::one(Failures { sites: 0, nodes: 1 });
    let weak = Profile { name: "weak".parse().unwrap(), contract: node.clone(), floor: node, ..profile() };
    assert_eq!(replica.one(START, Command::SetProfile { profile: weak.clone(), make_default: false }), Outcome::Done);
    let mut old = around(5, 1);
    old.profile = weak.name.clone();
    let (old, _) = replica.sealed(START, old);
    assert!(!old.degraded, "of its own profile");
    // No better than the old record, which would pass for whole: it becomes a version, marked as degraded.
    let (fresh, first) = replica.sealed(START, around(4, 2));
    assert_eq!((fresh.version, fresh.degraded, first), (VersionNumber(2), true, true));
    let (whole, first) = replica.sealed(START, seal(KEY, "a", instance(START, 3)));
    assert_eq!((whole.version, whole.degraded, first), (VersionNumber(3), false, true));
    // The stronger one answers for the weaker.
    let mut again = seal(KEY, "a", instance(START, 4));
    again.profile = weak.name;
    assert_eq!(replica.sealed(START, again), (whole, false));
}

#[test]
fn an_attempt_older_than_the_window_is_never_sealed_whatever_later_clocks_say() {
    let mut replica = Replica::with_cluster();
    let late = START + WRITE_WINDOW_MILLIS;
    let (_, first) = replica.sealed(late, seal(KEY, "a", instance(START, 1)));
    assert!(first, "the window's last millisecond");
    assert_eq!(
        replica.refused(late + 1, as_command(seal(KEY, "b", instance(START, 2)))),
        Rejection::WindowClosed { began: START, horizon: START + 1 }
    );
    // A leader with a slower clock does not open it again.
    let rejection = replica.refused(START, as_command(seal(KEY, "b", instance(START, 2))));
    assert!(matches!(rejection, Rejection::WindowClosed { .. }));
    assert_eq!(replica.machine.time(), WallMillis(late + 1));
    // A retry of what was sealed in time is answered for ever.
    let (_, first) = replica.sealed(late + 99, seal(KEY, "a", instance(START, 1)));
    assert!(!first);
}

#[test]
fn an_attempt_from_the_far_future_is_told_that_a_clock_is_wrong() {
    let mut replica = Replica::with_cluster();
    let id = instance(START + WRITE_WINDOW_MILLIS + 1, 1);
    let rejection = replica.refused(START, as_command(seal(KEY, "a", id)));
    assert!(matches!(&rejection, Rejection::NotAllowed(why) if why.contains("clock")), "{rejection}");
}

#[test]
fn a_seal_that_contradicts_itself_is_malformed() {
    let mut replica = Replica::with_cluster();
    let good = seal(KEY, "abcdef", instance(START, 1));
    type Breakage = (&'static str, fn(&mut Seal));
    let breakages: Vec<Breakage> = vec![
        ("size", |seal| seal.size_bytes += 1),
        ("no stripe", |seal| seal.stripes.clear()),
        ("code", |seal| seal.code = Code::new(3, 3).unwrap()),
        ("short placement", |seal| seal.stripes[0].placement.truncate(5)),
        ("bits beyond the code", |seal| seal.stripes[0].persisted |= 1 << 6),
        ("unknown volume", |seal| seal.stripes[0].placement[1] = VolumeId([200; 16])),
        ("short first stripe", |seal| seal.stripes = vec![stripe(2, ALL), stripe(4, ALL)]),
        ("short middle stripe", |seal| seal.stripes = vec![stripe(3, ALL), stripe(1, ALL), stripe(2, ALL)]),
        ("empty last stripe", |seal| seal.stripes = vec![stripe(6, ALL), stripe(0, ALL)]),
        ("long stripe", |seal| {
            seal.stripes = vec![stripe((16 << 20) + 1, ALL)];
            seal.size_bytes = (16 << 20) + 1;
        }),
        ("much text", |seal| seal.attributes[0].value = "x".repeat(17 << 10)),
    ];
    for (name, breakage) in breakages {
        let mut bad = good.clone();
        breakage(&mut bad);
        let rejection = replica.refused(START, as_command(bad));
        assert!(matches!(rejection, Rejection::Malformed(_)), "{name}: {rejection}");
    }
    let mut unknown = good.clone();
    unknown.profile_version = 2;
    assert!(matches!(replica.refused(START, as_command(unknown)), Rejection::Unknown(_)));
    let digest = replica.machine.digest();
    assert!(by_instance(&replica.state, good.instance).unwrap().is_none());
    assert!(replica.sealed(START, good).1);
    assert_ne!(replica.machine.digest(), digest);
}

#[test]
fn empty_content_is_one_empty_stripe() {
    let mut replica = Replica::with_cluster();
    let (sealed, _) = replica.sealed(START, seal(KEY, "", instance(START, 1)));
    assert_eq!((sealed.seal.size_bytes, sealed.seal.stripes.len()), (0, 1));
}

#[test]
fn deleting_names_what_it_deleted_and_keeps_the_proof() {
    let mut replica = Replica::with_cluster();
    for (number, content) in (1..).zip(["a", "b", "c"]) {
        replica.sealed(START, seal(KEY, content, instance(START, number)));
    }
    let delete = |version: Option<u32>| Command::Delete { key: key(KEY), version: version.map(VersionNumber) };
    let answer = replica.one(START, delete(Some(3)));
    assert_eq!(answer, deleted(&replica, vec![VersionNumber(3)]));
    let index = LogIndex(replica.index);
    let answer = replica.one(START, delete(Some(3)));
    assert_eq!(answer, deleted(&replica, Vec::new()));
    assert_eq!(lookup(&replica.state, &key(KEY), None).unwrap().unwrap().version, VersionNumber(2));
    assert_eq!(lookup(&replica.state, &key(KEY), Some(VersionNumber(3))).unwrap(), None);
    assert_eq!(by_instance(&replica.state, instance(START, 3)).unwrap().unwrap().deleted, Some(index));
    assert_eq!(deleted_instances(&replica.state, None, 9).unwrap(), [(index, instance(START, 3))]);
    let answer = replica.one(START, delete(None));
    assert_eq!(answer, deleted(&replica, vec![VersionNumber(1), VersionNumber(2)]));
    assert!(matches!(replica.refused(START, delete(Some(4))), Rejection::NotFound(_)));
    assert_eq!(lookup(&replica.state, &key(KEY), None).unwrap(), None);
    // Version numbers are not given again, and deleted content may be written anew.
    let (sealed, first) = replica.sealed(START, seal(KEY, "c", instance(START, 4)));
    assert_eq!((sealed.version, first), (VersionNumber(4), true));
    // The deleted attempt itself is not revived by a retry.
    let (old, first) = replica.sealed(START, seal(KEY, "c", instance(START, 3)));
    assert_eq!((old.version, old.deleted, first), (VersionNumber(3), Some(index), false));
}

#[test]
fn content_under_retention_is_not_deleted() {
    let mut replica = Replica::with_cluster();
    let mut kept = seal(KEY, "a", instance(START, 1));
    kept.reserved = Reserved { retain_until: Some(WallMillis(START + 100)), ..Reserved::default() };
    replica.sealed(START, kept);
    let delete = Command::Delete { key: key(KEY), version: None };
    assert!(matches!(replica.refused(START + 99, delete.clone()), Rejection::NotAllowed(_)));
    let answer = replica.one(START + 100, delete);
    assert_eq!(answer, deleted(&replica, vec![VersionNumber(1)]));
}

#[test]
fn profiles_are_versioned_and_refused_when_impossible() {
    let mut replica = Replica::with_cluster();
    let set = |profile: Profile| Command::SetProfile { profile, make_default: false };
    let impossible = Profile { contract: Contract::one(Failures { sites: 3, nodes: 0 }), ..profile() };
    assert!(matches!(replica.refused(START, set(impossible)), Rejection::Impossible(_)));
    let upside_down = Profile { floor: Contract::one(Failures { sites: 2, nodes: 0 }), ..profile() };
    assert!(matches!(replica.refused(START, set(upside_down)), Rejection::Impossible(_)));
    let version = replica.machine.layout().unwrap().version;
    assert_eq!(replica.one(START, set(profile())), Outcome::Done);
    assert_eq!(replica.machine.layout().unwrap().version, version, "nothing changed");
    let stronger = Profile { floor: profile().contract, ..profile() };
    assert_eq!(replica.one(START, set(stronger)), Outcome::Done);
    assert_eq!(replica.machine.layout().unwrap().profiles[&profile().name].version, 2);
    replica.reload();
    assert_eq!(replica.machine.layout().unwrap().profiles[&profile().name].version, 2);
    // A coordinator that still knows version 1 is held to the floor of version 2.
    let mut old = seal(KEY, "a", instance(START, 1));
    assert!(replica.sealed(START, old.clone()).1);
    old = seal(KEY, "b", instance(START, 2));
    old.stripes[0].persisted = ALL & !1;
    assert!(matches!(replica.refused(START, as_command(old)), Rejection::TooWeak { .. }));
}

#[test]
fn what_a_volume_held_is_a_walk_over_its_placements() {
    let mut replica = Replica::with_cluster();
    for number in 0..10 {
        let mut one = seal(&format!("main/1.2/1.3/1.{number}"), "abc", instance(START, number));
        if number % 2 == 1 {
            one.stripes[0].placement.rotate_left(1);
        }
        replica.sealed(START, one);
    }
    let (mut walked, mut after) = (Vec::new(), None);
    loop {
        let page = stripes_on(&replica.state, volume(2), after, 3).unwrap();
        let Some(last) = page.last() else { break };
        after = Some(last.position);
        walked.extend(page);
    }
    assert_eq!(walked.len(), 10);
    assert!(walked.windows(2).all(|pair| pair[0].position < pair[1].position));
    assert_eq!(walked[0].shards, [ShardIndex(2)]);
    assert_eq!(walked[9].shards, [ShardIndex(1)]);
    assert!(stripes_on(&replica.state, VolumeId([77; 16]), None, 3).unwrap().is_empty());
}

#[test]
fn a_replica_with_another_digest_stops() {
    let mut replica = Replica::with_cluster();
    let compare = |index, digest| Command::CompareDigest { index: LogIndex(index), digest };
    assert_eq!(replica.one(START, compare(1, replica.machine.digest())), Outcome::Done);
    assert_eq!(replica.one(START, compare(999_999, Digest::of(b"?"))), Outcome::Done, "not remembered");
    let entry = Entry { time: WallMillis(START), commands: vec![compare(1, Digest::of(b"?"))] };
    assert!(matches!(replica.try_apply(&[entry]), Err(Error::Diverged { index: LogIndex(1), .. })));
}

#[test]
fn the_digest_after_an_entry_is_remembered_for_a_while() {
    let mut replica = Replica::with_cluster();
    let first = (LogIndex(1), replica.machine.digest());
    let remembered = |replica: &Replica, upto| remembered_digest(&replica.state, LogIndex(upto)).unwrap();
    assert_eq!(remembered(&replica, 0), None);
    assert_eq!(remembered(&replica, 1), Some(first));
    // Entries 2 and 3 were not the catalog's.
    replica.index = 3;
    replica.apply(START, Vec::new());
    let fourth = (LogIndex(4), replica.machine.digest());
    assert_eq!((remembered(&replica, 3), remembered(&replica, 4)), (Some(first), Some(fourth)));
    // One round of the slots later, entry 1 is forgotten, and so what entry 3 left as it was.
    replica.index = 4_096;
    replica.apply(START, Vec::new());
    assert_eq!((remembered(&replica, 1), remembered(&replica, 3)), (None, None));
    assert_eq!(remembered(&replica, 4), Some(fourth));
}

#[test]
fn an_entry_is_applied_once() {
    let mut replica = Replica::with_cluster();
    replica.index -= 1;
    let entry = Entry { time: WallMillis(START), commands: Vec::new() };
    assert!(matches!(replica.try_apply(&[entry]), Err(Error::Order { .. })));
}

#[test]
fn a_record_of_a_newer_format_stops_the_replica() {
    let mut replica = Replica::with_cluster();
    for value in replica.state.values_mut().filter(|value| !value.is_empty()) {
        value[0] = 2;
    }
    let loaded = pacsvault_core::catalog::Machine::load(&replica.state);
    assert!(matches!(loaded, Err(Error::Format { format: 2, .. })));
}

#[test]
fn a_receipt_reads_back_what_it_says_and_nothing_else() {
    let mut replica = Replica::with_cluster();
    let (sealed, _) = replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    let receipt = Receipt::of(&sealed, &replica.machine.layout().unwrap());
    assert_eq!(receipt.stripes[0].shards.len(), usize::from(NODES));
    let bytes = receipt.encode();
    assert_eq!(Receipt::decode(&bytes), Ok(receipt.clone()));
    let text = receipt.to_string();
    for part in [KEY, "any one site", "site-0 2", "standard version 1"] {
        assert!(text.contains(part), "{part} in {text}");
    }
    assert!(Receipt::decode(&[&bytes[..], &[0xf8, 0x07, 1]].concat()).is_err(), "an unknown field");
    assert!(Receipt::decode(&[&[9], &bytes[1..]].concat()).is_err(), "an unknown format");
}

/// A store that takes over `after` when `reads` single reads were answered.
struct Moving {
    before: State,
    after: State,
    reads: AtomicUsize,
}

impl Moving {
    fn now(&self) -> &State {
        let spent = self.reads.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_err();
        if spent { &self.after } else { &self.before }
    }
}

impl View for Moving {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, ViewError> {
        View::get(self.now(), key)
    }

    fn scan(&self, from: &[u8], to: &[u8], limit: usize) -> Result<Vec<(Vec<u8>, Vec<u8>)>, ViewError> {
        self.now().scan(from, to, limit)
    }

    fn last(&self, from: &[u8], to: &[u8]) -> Result<Option<(Vec<u8>, Vec<u8>)>, ViewError> {
        self.now().last(from, to)
    }
}

#[test]
fn a_delete_between_two_reads_hides_nothing_that_is_stored() {
    let mut replica = Replica::with_cluster();
    let (old, _) = replica.sealed(START, seal(KEY, "a", instance(START, 1)));
    replica.sealed(START, seal(KEY, "b", instance(START, 2)));
    let before = replica.state.clone();
    replica.one(START, Command::Delete { key: key(KEY), version: Some(VersionNumber(2)) });
    for reads in 0..8 {
        let view = || Moving { before: before.clone(), after: replica.state.clone(), reads: AtomicUsize::new(reads) };
        let found = lookup(&view(), &key(KEY), Some(VersionNumber(1))).unwrap();
        assert_eq!(found.as_ref(), Some(&old), "after {reads} reads");
        assert_eq!(by_instance(&view(), instance(START, 1)).unwrap().as_ref(), Some(&old), "after {reads} reads");
    }
}
