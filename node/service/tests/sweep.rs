//! The sweep from end to end: a real catalog decides, a real volume forgets.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::BTreeSet, sync::Arc};

use pacsvault_consensus::Replica;
use pacsvault_core::{
    catalog::{Command, Outcome, Reseat, query},
    checksum::chunk_crcs,
    ids::{Digest, InstanceId, NodeId, ShardIndex, StripeIndex, VolumeId, WallMillis},
    layout::{NodeState, VolumeState, profile::Code},
    limits::{RESEAT_WINDOW_MILLIS, WRITE_WINDOW_MILLIS},
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::peer::{Class, PutShard, Request};
use pacsvault_runtime::TokioEnv;
use pacsvault_service::{Founding, Membership, OwnVolume};
use pacsvault_simdisk::SimDisk;
use pacsvault_volume::{Identity, Options, Owner, Purpose, Store, Volume};
use support::{
    Bed, CLUSTER, Fake, Memory,
    catalog::{self, ALL, START, instance, key, seal, spare, volume},
    until,
};

const BYTES: usize = 1000;

/// Volume of `node-0` on a disk in memory.
fn own_volume() -> OwnVolume {
    let disk = SimDisk::new(pacsvault_simdisk::Options::default(), 1);
    let known = catalog::join(0);
    let (name, incarnation) = (known.name, known.incarnation);
    let identity = Identity { cluster: CLUSTER, node: name.clone(), incarnation, volume: volume(0) };
    Store::format(&disk, &identity).unwrap();
    let mut options = Options::new(77);
    options.capacity_bytes = Some(64 << 20);
    options.segment_bytes = Some(128 << 10);
    let (store, _) = Store::open(Arc::new(disk), &Owner { cluster: CLUSTER, node: name }, options).unwrap();
    OwnVolume { volume: Arc::new(Volume::new(store, TokioEnv::current())), capacity_bytes: 64 << 20 }
}

fn header(instance: InstanceId, data: &[u8]) -> ShardHeader {
    ShardHeader {
        id: ShardId { instance, stripe: StripeIndex(0), shard: ShardIndex(0) },
        code: Code::new(2, 1).unwrap(),
        stripe_bytes: 2 * data.len() as u64,
        digest: Digest::of(data),
        merkle_path: vec![Digest([9; 32]); 2],
        chunk_crcs: chunk_crcs(data),
    }
}

async fn hold(own: &OwnVolume, instance: InstanceId) {
    let data = vec![5; BYTES];
    own.volume.put(header(instance, &data), data.into(), Purpose::Client).await.unwrap();
}

async fn held(own: &OwnVolume) -> BTreeSet<InstanceId> {
    own.volume.list(None, 100).await.unwrap().into_iter().map(|shard| shard.instance).collect()
}

/// A member on the test cluster's catalog, as node `me`.
async fn member(me: u64, own: &OwnVolume) -> (Arc<Fake>, Bed) {
    member_of(Fake::new(me, catalog::Replica::with_cluster()), me, own).await
}

async fn member_of(replica: Arc<Fake>, me: u64, own: &OwnVolume) -> (Arc<Fake>, Bed) {
    let memory: Arc<Memory> = Arc::default();
    let joined = Membership { node: NodeId(me), cluster: CLUSTER, founding: Founding::Joined };
    *memory.membership.lock().unwrap() = Some(joined);
    let bed = Bed::new(&replica, &memory, &[], vec![own.clone()]);
    bed.node.clone().run().await.unwrap();
    (replica, bed)
}

fn sealed_as(replica: &Fake, name: &str, instance: InstanceId) {
    let sealed = replica.apply(START, vec![Command::Seal(Box::new(seal(name, name, instance)))]);
    assert!(matches!(sealed[0], Outcome::Sealed { first: true, .. }), "{sealed:?}");
}

#[tokio::test]
async fn only_what_can_never_be_read_again_is_swept_and_only_by_catalog_time() {
    let own = own_volume();
    let (replica, bed) = member(1, &own).await;
    let (orphan, kept, deleted) = (instance(START, 1), instance(START, 2), instance(START, 3));
    let future = instance(START + 100 * WRITE_WINDOW_MILLIS, 4);
    for attempt in [orphan, kept, deleted, future] {
        hold(&own, attempt).await;
    }
    sealed_as(&replica, "main/1.2/1.3/1.4", kept);
    sealed_as(&replica, "main/1.2/1.3/1.5", deleted);
    assert_eq!(bed.node.sweep(&own).await, Ok(0), "all may still be wanted");

    let key = key("main/1.2/1.3/1.5");
    let gone = replica.apply(START, vec![Command::Delete { key, version: None }]);
    assert!(!matches!(gone[0], Outcome::Rejected(_)), "{gone:?}");
    assert_eq!(bed.node.sweep(&own).await, Ok(1), "a deleted one goes at once, by its tombstone");
    assert_eq!(held(&own).await, BTreeSet::from([orphan, kept, future]));

    // Whatever the clocks of nodes say: only the time of applied entries counts, and at the edge it could still be sealed.
    replica.apply(START + WRITE_WINDOW_MILLIS, Vec::new());
    assert_eq!(bed.node.sweep(&own).await, Ok(0));
    replica.apply(START + WRITE_WINDOW_MILLIS + 1, Vec::new());
    assert_eq!(bed.node.sweep(&own).await, Ok(1));
    assert_eq!(held(&own).await, BTreeSet::from([kept, future]));

    // Long after, the sealed one stays, and what was swept cannot be sealed any more.
    replica.apply(START + 50 * WRITE_WINDOW_MILLIS, Vec::new());
    assert_eq!(bed.node.sweep(&own).await, Ok(0));
    assert_eq!(held(&own).await, BTreeSet::from([kept, future]));
    let late = Command::Seal(Box::new(seal("main/1.2/1.3/1.6", "late", orphan)));
    let late = replica.apply(START + 50 * WRITE_WINDOW_MILLIS, vec![late]);
    assert!(matches!(late[0], Outcome::Rejected(_)), "{late:?}");
}

#[tokio::test]
async fn a_volume_that_the_catalog_gives_to_another_node_is_never_swept() {
    let own = own_volume();
    let (replica, bed) = member(2, &own).await;
    let orphan = instance(START, 1);
    hold(&own, orphan).await;
    replica.apply(START + 2 * WRITE_WINDOW_MILLIS, Vec::new());
    assert_eq!(bed.node.sweep(&own).await.unwrap_err().code, "PV-NO-VOLUME");
    assert_eq!(held(&own).await, BTreeSet::from([orphan]));
}

async fn put(bed: &Bed, volume: VolumeId, instance: InstanceId) -> Result<(), pacsvault_ports::peer::Fault> {
    put_for(bed, volume, instance, false).await
}

async fn put_for(
    bed: &Bed,
    volume: VolumeId,
    instance: InstanceId,
    repair: bool,
) -> Result<(), pacsvault_ports::peer::Fault> {
    let data = vec![5; BYTES];
    let put = PutShard { volume, header: header(instance, &data), data: data.into(), repair };
    bed.ask(Request::PutShard(Box::new(put))).await.map(drop)
}

#[tokio::test]
async fn a_volume_that_failed_in_an_earlier_life_takes_nothing_and_is_fenced() {
    let own = own_volume();
    // No cluster yet: the volume is refused from the first moment, and fenced as soon as there is a log to say so to.
    let replica = Fake::new(1, catalog::Replica::new());
    let bed = Bed::new(&replica, &Arc::default(), &[], vec![own.clone()]);
    bed.node.distrust(volume(0), "it failed in an earlier life");
    let refused = put(&bed, volume(0), instance(START, 1)).await.unwrap_err();
    assert_eq!((refused.class, refused.code), (Class::Retry, "PV-VOLUME-POISONED"));
    assert!(held(&own).await.is_empty());
    assert_eq!(bed.node.volume_statuses()[0].state, VolumeState::Fenced);

    bed.ask(Request::InitCluster { profiles: vec![catalog::profile()] }).await.unwrap();
    until(|| replica.layout().is_some_and(|layout| layout.volumes[&volume(0)].state == VolumeState::Fenced)).await;
    assert_eq!(put(&bed, volume(0), instance(START, 1)).await.unwrap_err().code, "PV-VOLUME-POISONED");
}

/// The first shard of `instance` from one holder to another.
fn reseat(instance: InstanceId, from: VolumeId, persisted: u32, to: VolumeId) -> Command {
    let mut expected: Vec<VolumeId> = (0..6).map(volume).collect();
    expected[0] = from;
    let (stripe, moves) = (StripeIndex(0), vec![(ShardIndex(0), to)]);
    Command::Reseat(Reseat { instance, stripe, expected, persisted, moves, not_after: WallMillis(u64::MAX) })
}

fn applied(replica: &Fake, time: u64, command: Command) {
    let outcome = replica.apply(time, vec![command]);
    assert!(!matches!(outcome[0], Outcome::Rejected(_)), "{outcome:?}");
}

/// A member that holds the first shard of a sealed instance, which has been moved to the node's other volume since.
async fn left_behind(own: &OwnVolume) -> (Arc<Fake>, Bed, InstanceId) {
    let (replica, bed) = member_of(Fake::new(1, catalog::Replica::upgraded()), 1, own).await;
    let moved = instance(START, 1);
    hold(own, moved).await;
    sealed_as(&replica, "main/1.2/1.3/1.4", moved);
    // At once: the member scrubs its volume, and would report the shard, whose root is made up, as damaged where it is named.
    applied(&replica, START, Command::AddVolume { node: NodeId(1), volume: spare(0), capacity_bytes: 1 << 40 });
    applied(&replica, START, reseat(moved, volume(0), ALL, spare(0)));
    (replica, bed, moved)
}

/// Sweeps now, and again when nobody can adopt a copy any more that was stale now; what the second sweep freed.
async fn swept_at(replica: &Fake, bed: &Bed, own: &OwnVolume, time: u64) -> u64 {
    replica.apply(time, Vec::new());
    assert_eq!(bed.node.sweep(own).await, Ok(0), "at first sight nothing goes");
    replica.apply(time + RESEAT_WINDOW_MILLIS, Vec::new());
    assert_eq!(bed.node.sweep(own).await, Ok(0), "a reseat that names it may still be applied");
    replica.apply(time + RESEAT_WINDOW_MILLIS + 1, Vec::new());
    bed.node.sweep(own).await.unwrap()
}

#[tokio::test]
async fn a_copy_left_behind_is_swept_when_its_stripe_is_whole_elsewhere() {
    let own = own_volume();
    let (replica, bed, _) = left_behind(&own).await;
    assert_eq!(swept_at(&replica, &bed, &own, START).await, 1);
    assert!(held(&own).await.is_empty());
}

#[tokio::test]
async fn a_copy_left_behind_is_kept_while_its_stripe_may_need_it() {
    let own = own_volume();
    let (replica, bed, moved) = left_behind(&own).await;
    let shard =
        |shard| pacsvault_core::shard::ShardId { instance: moved, stripe: StripeIndex(0), shard: ShardIndex(shard) };
    let step = 10 * RESEAT_WINDOW_MILLIS;
    // The shard is damaged at its new place.
    let damage = Command::ReportDamage { volume: spare(0), shards: vec![shard(0)] };
    applied(&replica, START, damage);
    assert_eq!(swept_at(&replica, &bed, &own, START).await, 0);
    applied(&replica, START + step, reseat(moved, spare(0), ALL & !1, spare(0)));
    // Another shard of the stripe is.
    applied(&replica, START + step, Command::ReportDamage { volume: volume(3), shards: vec![shard(3)] });
    assert_eq!(swept_at(&replica, &bed, &own, START + step).await, 0);
    let mut healed = reseat(moved, spare(0), ALL & !8, volume(3));
    if let Command::Reseat(reseat) = &mut healed {
        reseat.moves[0].0 = ShardIndex(3);
    }
    applied(&replica, START + 2 * step, healed);
    // A holder is suspect, and then away.
    applied(&replica, START + 2 * step, Command::SetNodeState { node: NodeId(5), state: NodeState::Suspect });
    assert_eq!(swept_at(&replica, &bed, &own, START + 2 * step).await, 0);
    applied(&replica, START + 2 * step, Command::SetNodeState { node: NodeId(5), state: NodeState::Down });
    assert_eq!(swept_at(&replica, &bed, &own, START + 2 * step).await, 0);
    applied(&replica, START + 3 * step, Command::SetNodeState { node: NodeId(5), state: NodeState::Up });
    assert_eq!(swept_at(&replica, &bed, &own, START + 3 * step).await, 1);
}

#[tokio::test]
async fn a_copy_that_somebody_is_about_to_adopt_is_not_swept_however_long_that_takes() {
    let own = own_volume();
    let (replica, bed, moved) = left_behind(&own).await;
    assert_eq!(bed.node.sweep(&own).await, Ok(0));
    // Long after: a mover has read catalog time, and asks for the copy to be durable. Its reseat is still under way.
    let now = START + 10 * RESEAT_WINDOW_MILLIS;
    replica.apply(now, Vec::new());
    put_for(&bed, volume(0), moved, true).await.unwrap();
    assert_eq!(bed.node.sweep(&own).await, Ok(0));
    replica.apply(now + RESEAT_WINDOW_MILLIS, Vec::new());
    assert_eq!(bed.node.sweep(&own).await, Ok(0));
    let mut adopt = reseat(moved, spare(0), ALL, volume(0));
    if let Command::Reseat(reseat) = &mut adopt {
        reseat.not_after = WallMillis(now + RESEAT_WINDOW_MILLIS);
    }
    let mut late = adopt.clone();
    applied(&replica, now + RESEAT_WINDOW_MILLIS, adopt);
    assert_eq!(swept_at(&replica, &bed, &own, now + 2 * RESEAT_WINDOW_MILLIS).await, 0, "it is named again");
    assert_eq!(held(&own).await, BTreeSet::from([moved]));
    // One that is too late is refused, and then the copy may go.
    let now = now + 10 * RESEAT_WINDOW_MILLIS;
    let sealed = query::by_instance(replica.view().as_ref(), moved).unwrap().unwrap();
    let persisted = sealed.seal.stripes[0].persisted;
    assert!([ALL, ALL & !1].contains(&persisted), "the member's scrub may have found that its root is made up");
    applied(&replica, now, reseat(moved, volume(0), persisted, spare(0)));
    assert_eq!(swept_at(&replica, &bed, &own, now).await, 1);
    if let Command::Reseat(reseat) = &mut late {
        reseat.not_after = WallMillis(now + RESEAT_WINDOW_MILLIS);
    }
    let late = replica.apply(now, vec![late]);
    assert!(matches!(late[0], Outcome::Rejected(_)), "{late:?}");
}

/// A member that holds the first shard of an instance that was sealed with another holder, and what is `persisted` of it.
async fn straggled(own: &OwnVolume, persisted: u32) -> (Arc<Fake>, Bed, InstanceId) {
    let (replica, bed) = member_of(Fake::new(1, catalog::Replica::upgraded()), 1, own).await;
    let straggler = instance(START, 1);
    hold(own, straggler).await;
    assert_eq!(bed.node.sweep(own).await, Ok(0), "it may still be sealed here");
    let mut elsewhere = seal("main/1.2/1.3/1.4", "abcd", straggler);
    applied(&replica, START, Command::AddVolume { node: NodeId(1), volume: spare(0), capacity_bytes: 1 << 40 });
    elsewhere.stripes[0].placement[0] = spare(0);
    elsewhere.stripes[0].persisted = persisted;
    let outcome = replica.apply(START, vec![Command::Seal(Box::new(elsewhere))]);
    assert!(matches!(outcome[0], Outcome::Sealed { .. }), "{outcome:?}");
    (replica, bed, straggler)
}

#[tokio::test]
async fn a_copy_that_a_write_left_on_a_slow_holder_is_swept() {
    let own = own_volume();
    let (replica, bed, straggler) = straggled(&own, ALL).await;
    assert_eq!(swept_at(&replica, &bed, &own, START).await, 1);
    // Its bytes come late once more, and then nobody can have it sealed here.
    put(&bed, volume(0), straggler).await.unwrap();
    let again = replica.apply(START, vec![Command::Seal(Box::new(seal("main/1.2/1.3/1.4", "abcd", straggler)))]);
    assert!(matches!(&again[0], Outcome::Rejected(_) | Outcome::Sealed { first: false, .. }), "{again:?}");
    assert_eq!(swept_at(&replica, &bed, &own, START + 10 * RESEAT_WINDOW_MILLIS).await, 1);
    assert!(held(&own).await.is_empty());
}

#[tokio::test]
async fn a_copy_that_a_degraded_write_left_is_kept_for_repair() {
    let own = own_volume();
    let (replica, bed, straggler) = straggled(&own, ALL & !1).await;
    assert_eq!(swept_at(&replica, &bed, &own, START).await, 0);
    assert_eq!(held(&own).await, BTreeSet::from([straggler]));
}
