//! Re-encoding one version: what is put in its place, and what leaves it as it was.

#[allow(dead_code, reason = "every test binary uses another part of it")]
mod support;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use bytes::Bytes;
use pacsvault_coordinator::{Coordinator, GetQuery, PutHeader, Recoded, ShardFinding};
use pacsvault_core::{
    catalog::{Outcome, Rejection, SealedInstance, command::Attribute},
    ids::{ProfileName, ShardIndex},
    layout::profile::Code,
};
use pacsvault_ports::peer::{Class, Fault};

use support::{Lie, World, content, key};

/// Three stripes of 1 MiB at most.
const SIZE: usize = 2_500_000;

fn hot() -> ProfileName {
    "hot".parse().expect("a name")
}

/// Stored as 4+2, with all that a record can carry.
async fn stored(world: &World, coordinator: &Coordinator, content: &Bytes) -> SealedInstance {
    let mut header = PutHeader::new(key(1), "application/dicom");
    header.attributes = vec![Attribute { tag: 0x0010_0020, value: "4711".to_owned() }];
    coordinator.put(header, content.clone()).await.expect("is stored");
    let mut kept = world.kept();
    kept.sealed[0].seal.reserved.audit_chain_hash = vec![1, 2, 3];
    kept.sealed[0].clone()
}

fn now(world: &World) -> SealedInstance {
    world.kept().sealed[0].clone()
}

#[tokio::test]
async fn a_version_gets_another_code_and_keeps_what_it_is() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    for size in [SIZE, 1 << 20, 1, 0] {
        world.kept().sealed.clear();
        let content = content(size);
        let old = stored(&world, &coordinator, &content).await;
        let recoded = coordinator.recode(&old, &hot()).await.expect("is re-encoded");
        assert!(matches!(recoded, Recoded::Replaced(_)), "{recoded:?}");
        let new = now(&world);
        assert_eq!((new.seal.code, new.seal.profile_version), (Code::new(2, 4).expect("a code"), 3));
        assert_eq!((&new.seal.profile, new.version), (&hot(), old.version));
        assert_ne!(new.seal.instance, old.seal.instance);
        assert_eq!((&new.seal.key, new.seal.size_bytes), (&old.seal.key, old.seal.size_bytes));
        assert_eq!((new.seal.digest, &new.seal.media_type), (old.seal.digest, &old.seal.media_type));
        assert_eq!((&new.seal.attributes, &new.seal.reserved), (&old.seal.attributes, &old.seal.reserved));
        world.kept().shards.retain(|(_, id), _| id.instance != old.seal.instance);
        let read = coordinator.get(GetQuery::whole(key(1))).await.expect("begins").bytes().await.expect("is read");
        assert!(read == content, "{size} bytes");
        let checks = coordinator.verify(&new).await.expect("is verified");
        assert!(checks.iter().all(|check| check.finding == ShardFinding::Proven));
    }
}

#[tokio::test]
async fn what_was_deleted_or_replaced_meanwhile_is_left_alone() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let old = stored(&world, &coordinator, &content(SIZE)).await;
    coordinator.recode(&old, &hot()).await.expect("is re-encoded");
    let first = now(&world);
    let again = coordinator.recode(&old, &hot()).await.expect("is told");
    assert!(matches!(again, Recoded::Outdated), "{again:?}");
    assert_eq!(now(&world), first, "the one before stays");
    world.kept().sealed.clear();
    let gone = coordinator.recode(&first, &hot()).await.expect("is told");
    assert!(matches!(gone, Recoded::Outdated), "{gone:?}");
    world.kept().shards.clear();
    let swept = coordinator.recode(&first, &hot()).await.expect("is told");
    assert!(matches!(swept, Recoded::Outdated), "{swept:?}");
}

#[tokio::test]
async fn less_than_the_contract_is_never_proposed() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let old = stored(&world, &coordinator, &content(SIZE)).await;
    // Two sites are left: enough for the floor, and to read.
    world.kept().full.extend([1, 4, 2, 5]);
    let calls = world.kept().catalog_calls;
    let weak = coordinator.recode(&old, &hot()).await.expect_err("one site is left to write to");
    assert_eq!((weak.class, weak.code), (Class::Retry, "PV-TOO-WEAK"), "{weak}");
    assert_eq!(world.kept().catalog_calls, calls);
    assert_eq!(now(&world), old);
    // What refuses shards is known by now: a try in vain leaves none on the others.
    let shards = world.kept().shards.len();
    let again = coordinator.recode(&old, &hot()).await.expect_err("still");
    assert_eq!((again.class, again.code), (Class::Retry, "PV-TOO-WEAK"), "{again}");
    assert_eq!(world.kept().shards.len(), shards);
}

#[tokio::test]
async fn content_that_is_not_the_record_s_is_never_proposed() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let mut old = stored(&world, &coordinator, &content(SIZE)).await;
    old.seal.digest.0[0] ^= 1;
    let calls = world.kept().catalog_calls;
    let other = coordinator.recode(&old, &hot()).await.expect_err("its digest differs");
    assert!(matches!(other.code, "PV-CONTENT-DIGEST" | "PV-DIGEST-MISMATCH"), "{other:?}");
    assert_eq!(world.kept().catalog_calls, calls);
}

#[tokio::test]
async fn a_refusal_is_told_with_its_reason() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let old = stored(&world, &coordinator, &content(SIZE)).await;
    let unknown = coordinator.recode(&old, &"cold".parse().expect("a name")).await.expect("is told");
    assert!(matches!(unknown, Recoded::Refused(Rejection::Unknown(_))), "{unknown:?}");
    let pending = Rejection::UpgradePending { needed: 2, present: 1 };
    world.kept().script.push_back(Lie::Outcome(Outcome::Rejected(pending.clone())));
    let refused = coordinator.recode(&old, &hot()).await.expect("is told");
    assert!(matches!(refused, Recoded::Refused(why) if why == pending));
    assert_eq!(now(&world), old);
}

#[tokio::test]
async fn the_pace_hears_of_every_byte_and_may_give_up() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let old = stored(&world, &coordinator, &content(SIZE)).await;
    let asked = Arc::new(AtomicU64::new(0));
    let counted = {
        let asked = asked.clone();
        move |bytes| -> pacsvault_ports::BoxFuture<'static, Result<(), Fault>> {
            asked.fetch_add(bytes, Ordering::SeqCst);
            Box::pin(async { Ok(()) })
        }
    };
    coordinator.recode_paced(&old, &hot(), &counted).await.expect("is re-encoded");
    assert_eq!(asked.load(Ordering::SeqCst), 4 * SIZE as u64, "read once, written threefold");
    let second = now(&world);
    let standard = "standard".parse().expect("a name");
    let over = |_| -> pacsvault_ports::BoxFuture<'static, Result<(), Fault>> {
        Box::pin(async { Err(Fault::new(Class::Retry, "PV-NOT-LEADER", "over")) })
    };
    let ended = coordinator.recode_paced(&second, &standard, &over).await.expect_err("gave up");
    assert_eq!((ended.code, now(&world)), ("PV-NOT-LEADER", second));
}

#[tokio::test]
async fn shards_that_are_lost_do_not_keep_it_from_being_read() {
    let world = World::new(4, 2);
    let coordinator = world.coordinator(|_| {});
    let old = stored(&world, &coordinator, &content(SIZE)).await;
    world.kept().shards.retain(|(_, id), _| id.shard > ShardIndex(1));
    let recoded = coordinator.recode(&old, &hot()).await.expect("is re-encoded");
    assert!(matches!(recoded, Recoded::Replaced(_)), "{recoded:?}");
}
