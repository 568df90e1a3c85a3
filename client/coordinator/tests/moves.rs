//! Shards that are moved, re-encoded or deleted under a reader, and whole shards for those who move them.

#[allow(dead_code, reason = "every test binary uses another part of it")]
mod support;

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use pacsvault_coordinator::{Coordinator, Download, GetQuery, PutHeader, ShardFinding, Stored};
use pacsvault_core::{
    ids::{Digest, ShardIndex, SiteName, StripeIndex, VolumeId},
    merkle,
    shard::ShardId,
};
use pacsvault_ports::peer::{Class, Fault, Freshness};

use support::{World, content, key};

/// Three stripes of 1 MiB at most.
const SIZE: usize = 2_500_000;

async fn put(coordinator: &Coordinator, number: u32, content: &Bytes) -> Stored {
    let header = PutHeader::new(key(number), "application/dicom");
    coordinator.put(header, content.clone()).await.expect("is stored")
}

/// A download that has given its first bytes, and those.
async fn begun(coordinator: &Coordinator, query: GetQuery) -> (Download, Vec<u8>) {
    let mut download = coordinator.get(query).await.expect("begins");
    let first = download.next().await.expect("not empty").expect("is read");
    (download, first.to_vec())
}

async fn rest(mut download: Download, mut read: Vec<u8>) -> Result<Vec<u8>, Fault> {
    while let Some(piece) = download.next().await {
        read.extend_from_slice(&piece?);
    }
    Ok(read)
}

#[tokio::test]
async fn a_download_follows_its_shards_as_often_as_they_are_moved() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(SIZE);
    put(&coordinator, 1, &content).await;
    let (mut download, mut read) = begun(&coordinator, GetQuery::whole(key(1))).await;
    for _ in 0..2 {
        world.move_shards(&[0, 2, 3, 5]);
        read.extend_from_slice(&download.next().await.expect("more").expect("is read"));
    }
    world.move_shards(&[1, 2, 4]);
    assert!(rest(download, read).await.expect("is read") == content);
    // A part of one data shard too.
    let query = GetQuery { offset_bytes: 70_000, len_bytes: Some(60_000), ..GetQuery::whole(key(1)) };
    let download = coordinator.get(query).await.expect("begins");
    world.move_shards(&[0, 1, 2, 3, 4, 5]);
    assert!(rest(download, Vec::new()).await.expect("is read") == content[70_000..130_000]);
}

/// Puts the record of `from` in the place of key 1's, as re-encoding does, and drops the old shards.
fn replace(world: &World, from: u32) {
    let mut kept = world.kept();
    let old = kept.sealed.iter().position(|sealed| sealed.seal.key == key(1)).expect("is there");
    let old = kept.sealed.remove(old);
    let new = kept.sealed.iter_mut().find(|sealed| sealed.seal.key == key(from)).expect("is there");
    new.seal.key = key(1);
    kept.shards.retain(|(_, id), _| id.instance != old.seal.instance);
}

#[tokio::test]
async fn a_download_goes_on_with_the_same_content_coded_otherwise() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(SIZE);
    put(&coordinator, 1, &content).await;
    put(&world.coordinator(|options| options.stripe_bytes = 300_000), 2, &content).await;
    let (download, read) = begun(&coordinator, GetQuery::whole(key(1))).await;
    replace(&world, 2);
    assert!(rest(download, read).await.expect("is read, and its digest checked") == content);
    put(&coordinator, 3, &content).await;
    let query = GetQuery { offset_bytes: 1_000_000, len_bytes: Some(1_400_000), ..GetQuery::whole(key(1)) };
    let (download, read) = begun(&coordinator, query).await;
    replace(&world, 3);
    assert!(rest(download, read).await.expect("is read") == content[1_000_000..2_400_000]);
}

#[tokio::test]
async fn a_download_never_goes_on_with_other_content() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(SIZE);
    put(&coordinator, 1, &content).await;
    put(&coordinator, 2, &content.slice(1..)).await;
    let (download, read) = begun(&coordinator, GetQuery::whole(key(1))).await;
    replace(&world, 2);
    let other = rest(download, read).await.expect_err("is refused");
    assert_eq!(other.class, Class::Bug, "{other}");
}

#[tokio::test]
async fn a_download_ends_when_its_instance_is_deleted_or_its_shards_are_lost() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(SIZE);
    put(&coordinator, 1, &content).await;
    let (download, read) = begun(&coordinator, GetQuery::whole(key(1))).await;
    world.kept().shards.retain(|(_, id), _| id.shard.0 > 2);
    world.kept().lookups.clear();
    let lost = rest(download, read).await.expect_err("three are left");
    assert_eq!((lost.class, lost.code), (Class::Retry, "PV-UNREADABLE"), "{lost}");
    let asked: Vec<_> = world.kept().lookups.iter().map(|(_, freshness)| *freshness).collect();
    assert_eq!(asked, [Freshness::Linearizable], "once: the record has not changed");
    put(&coordinator, 2, &content).await;
    let (download, read) = begun(&coordinator, GetQuery::whole(key(2))).await;
    world.kept().shards.clear();
    world.kept().sealed.clear();
    let deleted = rest(download, read).await.expect_err("deleted");
    assert_eq!((deleted.class, deleted.code), (Class::NotFound, "PV-NOT-FOUND"));
}

#[tokio::test]
async fn verify_looks_where_shards_are_now() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(SIZE);
    let stored = put(&coordinator, 1, &content).await;
    world.move_shards(&[1, 4]);
    let gone = ShardId { instance: stored.sealed.seal.instance, stripe: StripeIndex(1), shard: ShardIndex(3) };
    world.kept().shards.retain(|(_, id), _| *id != gone);
    let now = world.kept().sealed[0].clone();
    let checks = coordinator.verify(&stored.sealed).await.expect("is verified");
    assert_eq!(checks.len(), 18);
    for check in checks {
        let place = now.seal.stripes[check.stripe.0 as usize].placement[usize::from(check.shard.0)];
        assert_eq!(check.volume, place);
        let lost = (check.stripe, check.shard) == (gone.stripe, gone.shard);
        assert_eq!(check.finding == ShardFinding::Proven, !lost, "{check:?}");
    }
    // Re-encoded since.
    put(&world.coordinator(|options| options.stripe_bytes = 300_000), 2, &content).await;
    replace(&world, 2);
    let checks = coordinator.verify(&stored.sealed).await.expect("is verified");
    assert_eq!(checks.len(), 54);
    assert!(checks.iter().all(|check| check.finding == ShardFinding::Proven));
}

#[tokio::test]
async fn any_k_whole_shards_are_read_near_ones_first_without_those_excluded() {
    let world = World::new(2, 4);
    let site: SiteName = "site-1".parse().expect("a name");
    let coordinator = world.coordinator(|options| options.site = Some(site));
    let sealed = put(&coordinator, 1, &content(300_000)).await.sealed;
    let near = |shard: &ShardIndex| sealed.seal.stripes[0].placement[usize::from(shard.0)].0[0] % 3 == 1;
    let all: BTreeSet<ShardIndex> = (0..6).map(ShardIndex).collect();
    let names = |shards: Vec<(ShardIndex, Bytes)>| shards.into_iter().map(|(shard, _)| shard).collect::<BTreeSet<_>>();
    let own: BTreeSet<_> = all.iter().filter(|shard| near(shard)).copied().collect();
    let read = coordinator.read_shards(&sealed, StripeIndex(0), &BTreeSet::new()).await.expect("reads");
    assert!(read.iter().all(|(_, data)| data.len() == 150_000));
    assert_eq!(names(read), own, "two are near");
    let read = coordinator.read_shards(&sealed, StripeIndex(0), &own).await.expect("reads");
    assert!(names(read).is_disjoint(&own));
    let most: BTreeSet<_> = all.iter().skip(1).copied().collect();
    let few = coordinator.read_shards(&sealed, StripeIndex(0), &most).await.expect_err("one is left");
    assert_eq!((few.class, few.code), (Class::Retry, "PV-UNREADABLE"), "{few}");
    assert_eq!(coordinator.read_shards(&sealed, StripeIndex(1), &own).await.expect_err("no").code, "PV-BUG");
}

#[tokio::test]
async fn a_whole_shard_proves_itself_wherever_it_lies() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let sealed = put(&coordinator, 1, &content(SIZE)).await.sealed;
    let (stripe, shard) = (StripeIndex(1), ShardIndex(5));
    let home = sealed.seal.stripes[1].placement[5];
    world.move_shards(&[5]);
    let now = world.kept().sealed[0].seal.stripes[1].placement[5];
    let (header, data) = coordinator.read_shard(&sealed, stripe, shard, now).await.expect("is there");
    assert_eq!(Digest::of(&data), header.digest);
    let root = sealed.seal.stripes[1].shard_root;
    assert!(merkle::verify(root, header.digest, shard, sealed.seal.code.total(), &header.merkle_path));
    let gone = coordinator.read_shard(&sealed, stripe, shard, home).await.expect_err("moved");
    assert_eq!(gone.code, "PV-SHARD-NOT-FOUND");
    let nowhere = coordinator.read_shard(&sealed, stripe, shard, VolumeId([99; 16])).await.expect_err("unknown");
    assert_eq!((nowhere.class, nowhere.code), (Class::NotFound, "PV-NO-VOLUME"));
    for ((_, id), (_, data)) in &mut world.kept().shards {
        if id.shard == shard {
            let mut bytes = data.to_vec();
            bytes[1] ^= 1;
            *data = bytes.into();
        }
    }
    let damaged = coordinator.read_shard(&sealed, stripe, shard, now).await.expect_err("damaged");
    assert_eq!((damaged.class, damaged.code), (Class::Corrupt, "PV-CORRUPT"));
}

#[tokio::test]
async fn whole_shards_hold_memory_until_they_are_dropped() {
    let world = World::new(4, 2);
    let coordinator = Arc::new(world.coordinator(|options| options.stripe_memory_bytes = 4 << 20));
    let sealed = put(&coordinator, 1, &content(1 << 20)).await.sealed;
    let first = coordinator.read_shards(&sealed, StripeIndex(0), &BTreeSet::new()).await.expect("fits");
    let waiting = tokio::spawn({
        let (coordinator, sealed) = (coordinator.clone(), sealed.clone());
        async move { coordinator.read_shards(&sealed, StripeIndex(0), &BTreeSet::new()).await.map(|read| read.len()) }
    });
    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    assert!(!waiting.is_finished(), "2 MiB for reads hold one and a half stripes only once");
    drop(first);
    assert_eq!(waiting.await.expect("ends").expect("reads"), 4);
}
