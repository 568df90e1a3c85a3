//! The write and the read path on a cluster in memory, with volumes that are slow, full, empty or lie.

#[allow(dead_code, reason = "every test binary uses another part of it")]
mod support;

use std::time::Duration;

use bytes::Bytes;
use pacsvault_coordinator::{Coordinator, GetQuery, PutHeader};
use pacsvault_core::{
    catalog::{Outcome, Rejection, SealedInstance},
    ids::{Digest, NodeId},
    layout::Failures,
};
use pacsvault_ports::peer::{Class, Fault, Freshness};
use proptest::{prelude::*, sample::Index};

use support::{Lie, NODES, World, content, key};

const LONG: Duration = Duration::from_secs(60);

async fn put(coordinator: &Coordinator, content: &Bytes) -> Result<pacsvault_coordinator::Stored, Fault> {
    coordinator.put(PutHeader::new(key(1), "application/dicom"), content.clone()).await
}

async fn read(coordinator: &Coordinator) -> Result<Bytes, Fault> {
    coordinator.get(GetQuery::whole(key(1))).await?.bytes().await
}

fn fault(class: Class, code: &'static str) -> Lie {
    Lie::Fault(Fault::new(class, code, "as scripted"))
}

#[tokio::test]
async fn a_slow_shard_is_hedged_and_its_node_judged_although_nobody_waits_for_it() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(700_000);
    let stored = put(&coordinator, &content).await.expect("is stored");
    let holder = stored.sealed.seal.stripes[0].placement[0].0[0];
    world.kept().slow.insert(holder, LONG);
    world.kept().asked.clear();
    assert_eq!(read(&coordinator).await.expect("is read"), content);
    assert!(world.kept().asked.len() > 4, "another shard was asked for");
    let suspected = || coordinator.suspects().contains_key(&NodeId(holder.into()));
    assert!(!suspected(), "the read was over before the slow call was");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(suspected(), "its deadline was seen after the read");
}

#[tokio::test]
async fn absent_damaged_and_forged_shards_are_decoded_around() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(700_001);
    put(&coordinator, &content).await.expect("is stored");
    let names: Vec<_> = world.kept().shards.keys().copied().collect();
    world.kept().shards.remove(&names[0]);
    if let Some((_, data)) = world.kept().shards.get_mut(&names[1]) {
        let mut bytes = data.to_vec();
        bytes[70_000] ^= 1;
        *data = bytes.into();
    }
    assert_eq!(read(&coordinator).await.expect("four are left"), content);
    // Its bytes and proof are right, but it claims to be part of a longer stripe.
    if let Some((header, _)) = world.kept().shards.get_mut(&names[2]) {
        header.stripe_bytes += 4 << 16;
    }
    let unread = read(&coordinator).await.expect_err("three are left");
    assert_eq!((unread.class, unread.code), (Class::Retry, "PV-UNREADABLE"), "{unread}");
}

#[tokio::test]
async fn a_refused_shard_is_placed_again_or_the_write_says_how_weak_it_is() {
    let world = World::new(2, 1);
    let coordinator = world.coordinator(|_| {});
    world.kept().full.insert(1);
    let content = content(500_000);
    for number in 0..4 {
        let header = PutHeader::new(key(number), "application/dicom");
        let stored = coordinator.put(header, content.clone()).await.expect("others have room");
        let stripe = &stored.sealed.seal.stripes[0];
        assert_eq!(stripe.persisted, 0b111);
        assert!(stripe.placement.iter().all(|volume| volume.0[0] != 1));
    }
    // Two sites are full: one site of two nodes survives one node, but not its own loss.
    world.kept().full.extend([4, 2, 5]);
    let mut header = PutHeader::new(key(8), "application/dicom");
    header.strict = true;
    let refused = world.coordinator(|_| {}).put(header, content.clone()).await.expect_err("strict");
    assert_eq!((refused.class, refused.code), (Class::Retry, "PV-TOO-WEAK"), "{refused}");
    world.kept().full.extend(1..=NODES);
    let refused = put(&world.coordinator(|_| {}), &content).await.expect_err("nowhere");
    assert_eq!(refused.code, "PV-TOO-WEAK", "{refused}");
}

#[tokio::test]
async fn stragglers_delay_no_write_and_are_written_around_later() {
    let world = World::new(2, 4);
    let coordinator = world.coordinator(|options| options.straggler_grace = Duration::from_millis(5));
    world.kept().slow.insert(3, LONG);
    let content = content(300_000);
    let before = tokio::time::Instant::now();
    let stored = put(&coordinator, &content).await.expect("is stored");
    assert!(before.elapsed() < Duration::from_millis(350), "did not wait for the deadline");
    let stripe = &stored.sealed.seal.stripes[0];
    let at = stripe.placement.iter().position(|volume| volume.0[0] == 3).expect("every node has a shard");
    assert_eq!(stripe.persisted, 0b11_1111 & !(1 << at));
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(coordinator.suspects().contains_key(&NodeId(3)));
}

#[tokio::test]
async fn after_a_doubtful_try_only_a_seal_is_definite() {
    let too_weak = Rejection::TooWeak { stripe: 0, why: "as scripted".to_owned() };
    let rejected = Lie::Outcome(Outcome::Rejected(too_weak));
    let lost = || fault(Class::Unknown, "PV-DEADLINE");
    let content = content(1_000);
    for later in [fault(Class::Reject, "PV-DENIED"), fault(Class::Bug, "PV-BUG"), rejected.clone()] {
        let world = World::new(4, 2);
        world.kept().script.extend([lost(), later]);
        let unknown = put(&world.coordinator(|_| {}), &content).await.expect_err("in doubt");
        assert_eq!((unknown.class, unknown.code), (Class::Unknown, "PV-UNKNOWN-OUTCOME"));
        assert!(unknown.message.contains("as scripted"), "{unknown}");
    }
    let world = World::new(4, 2);
    world.kept().script.push_back(rejected);
    let definite = put(&world.coordinator(|_| {}), &content).await.expect_err("is refused");
    assert_eq!((definite.class, definite.code), (Class::Retry, "PV-TOO-WEAK"));
    world.kept().script.push_back(lost());
    assert!(put(&world.coordinator(|_| {}), &content).await.is_ok());
}

#[tokio::test]
async fn a_repeated_attempt_that_is_worth_too_little_by_now_is_not_acknowledged() {
    let (world, content) = (World::new(4, 2), content(1_000));
    let coordinator = world.coordinator(|_| {});
    let stored = put(&coordinator, &content).await.expect("is stored");
    let again = |nodes| {
        let survives = vec![Failures { sites: 0, nodes }];
        let sealed = Box::new(SealedInstance { survives, degraded: true, ..stored.sealed.clone() });
        world.kept().script.push_back(Lie::Outcome(Outcome::Sealed { sealed, first: false }));
    };
    again(0);
    let below = put(&coordinator, &content).await.expect_err("its floor is the loss of a node");
    assert_eq!((below.class, below.code), (Class::Unknown, "PV-BELOW-CONTRACT"), "{below}");
    again(1);
    let degraded = put(&coordinator, &content).await.expect("the floor is kept");
    assert!(degraded.receipt.degraded && !degraded.first);
    again(1);
    let mut header = PutHeader::new(key(1), "application/dicom");
    header.strict = true;
    let below = coordinator.put(header, content.clone()).await.expect_err("less than the contract");
    assert_eq!((below.class, below.code), (Class::Unknown, "PV-BELOW-CONTRACT"), "{below}");
}

#[tokio::test]
async fn reads_are_unavailable_but_never_of_unknown_outcome() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    world.kept().always = Some(Fault::new(Class::Unknown, "PV-DEADLINE", "no quorum"));
    let away = coordinator.lookup(&key(1), None, Freshness::Linearizable).await.expect_err("no quorum");
    assert_eq!((away.class, away.code), (Class::Retry, "PV-UNAVAILABLE"));
    assert!(away.message.contains("no quorum"), "{away}");
    let unknown = put(&coordinator, &content(10)).await.expect_err("no quorum");
    assert_eq!((unknown.class, unknown.code), (Class::Unknown, "PV-UNKNOWN-OUTCOME"));
}

#[tokio::test]
async fn a_refusal_by_every_node_is_told_at_once() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|options| options.operation_deadline = LONG);
    coordinator.layout().await.expect("answers");
    world.kept().always = Some(Fault::new(Class::Retry, "PV-TRUST", "another cluster"));
    let stranger = coordinator.lookup(&key(1), None, Freshness::Linearizable).await.expect_err("a stranger");
    assert_eq!((stranger.class, stranger.code), (Class::Reject, "PV-TRUST"));
    assert_eq!(world.kept().catalog_calls, usize::from(NODES), "each node once");
    // One that only does not answer may be the one that would have.
    world.kept().script.push_back(fault(Class::Retry, "PV-UNREACHABLE"));
    let again = coordinator.lookup(&key(1), None, Freshness::Linearizable).await.expect_err("a stranger");
    assert_eq!((again.code, world.kept().catalog_calls), ("PV-TRUST", 3 * usize::from(NODES)));
}

#[tokio::test]
async fn content_that_is_not_as_declared_stores_nothing() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let content = content(2_500_000);
    for (size, digest, code) in [
        (2_500_001, Digest::of(&content), "PV-SIZE-MISMATCH"),
        (2_499_999, Digest::of(&content), "PV-SIZE-MISMATCH"),
        (2_500_000, Digest::of(b"other"), "PV-DIGEST-MISMATCH"),
    ] {
        let mut header = PutHeader::new(key(1), "application/dicom");
        (header.declared_size_bytes, header.declared_digest) = (Some(size), Some(digest));
        let refused = coordinator.put(header, content.clone()).await.expect_err("is refused");
        assert_eq!((refused.class, refused.code), (Class::Reject, code));
    }
    assert!(world.kept().sealed.is_empty());
}

#[tokio::test]
async fn idle_uploads_and_readers_that_went_away_leave_room_for_others() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|options| {
        options.stripe_memory_bytes = 16 << 20;
        options.stripe_bytes = 4 << 20;
    });
    let mut idle = Vec::new();
    for number in 0..40 {
        let mut upload = coordinator.begin_put(PutHeader::new(key(100 + number), "application/dicom"));
        upload.write(Bytes::from_static(b"D")).await.expect("is taken");
        idle.push(upload);
    }
    let content = content(9_000_000);
    put(&coordinator, &content).await.expect("is not held up");
    for _ in 0..5 {
        let mut abandoned = coordinator.get(GetQuery::whole(key(1))).await.expect("begins");
        assert!(abandoned.next().await.expect("a piece").is_ok());
    }
    assert_eq!(read(&coordinator).await.expect("is not held up"), content);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_range_reads_as_the_content_does_with_shards_lost(
        len in 1_usize..2_600_000, from in any::<Index>(), part in any::<Index>(), piece in 1_usize..400_000,
        lost in proptest::collection::btree_set(0_usize..6, 0..=2), known in any::<bool>(),
    ) {
        // Stripes of 1 MiB at k = 4 have shards of four chunks.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let world = World::new(4, 2);
            let coordinator = world.coordinator(|_| {});
            let content = content(len);
            let mut header = PutHeader::new(key(1), "application/dicom");
            header.declared_size_bytes = known.then_some(len as u64);
            let mut upload = coordinator.begin_put(header);
            for start in (0..len).step_by(piece) {
                upload.write(content.slice(start..len.min(start + piece))).await.expect("is taken");
            }
            upload.finish().await.expect("is stored");
            world.kept().shards.retain(|(_, id), _| !lost.contains(&usize::from(id.shard.0)));
            let start = from.index(len + 1);
            let count = part.index(len - start + 1);
            let query = GetQuery {
                offset_bytes: start as u64,
                len_bytes: Some(count as u64),
                ..GetQuery::whole(key(1))
            };
            let read = coordinator.get(query).await.expect("begins").bytes().await.expect("reads");
            prop_assert!(read == content.slice(start..start + count));
            Ok(())
        })?;
    }
}
