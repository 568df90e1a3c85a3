//! The judge of stored bytes judged: each kind of shard that nothing names is told from one that counts.

use std::collections::BTreeMap;

use pacsvault_core::catalog::command::Moved;

use super::*;
use crate::testing::{instance, record, volume};

fn shard(stripe: u32, shard: u8) -> ShardId {
    ShardId { instance: instance(1), stripe: StripeIndex(stripe), shard: ShardIndex(shard) }
}

#[test]
fn a_shard_is_named_only_where_its_record_places_it() {
    let sealed = record(1, 1, b"content");
    assert_eq!(unnamed(shard(0, 1), volume(1), Some(&sealed)), None);
    let elsewhere = Some(Why::Elsewhere(LogIndex(7)));
    assert_eq!(unnamed(shard(0, 1), volume(2), Some(&sealed)), elsewhere, "another shard of it lies there");
    assert_eq!(unnamed(shard(0, 1), volume(9), Some(&sealed)), elsewhere);
    assert_eq!(unnamed(shard(0, 3), volume(0), Some(&sealed)), elsewhere, "no shard of its code");
    assert_eq!(unnamed(shard(1, 0), volume(0), Some(&sealed)), elsewhere, "no stripe of it");
}

#[test]
fn what_is_named_counts_as_named_also_while_it_is_not_persisted() {
    let mut sealed = record(1, 1, b"content");
    sealed.seal.stripes[0].persisted = 0b101;
    assert_eq!(unnamed(shard(0, 1), volume(1), Some(&sealed)), None, "repair will write it there");
}

#[test]
fn a_copy_left_by_a_move_is_elsewhere_since_that_move() {
    let mut sealed = record(1, 1, b"content");
    sealed.seal.stripes[0].placement[1] = volume(5);
    sealed
        .moved
        .insert(StripeIndex(0), Moved { index: LogIndex(30), former: BTreeMap::from([(ShardIndex(1), volume(1))]) });
    assert_eq!(unnamed(shard(0, 1), volume(1), Some(&sealed)), Some(Why::Elsewhere(LogIndex(30))));
    assert_eq!(unnamed(shard(0, 1), volume(5), Some(&sealed)), None);
}

#[test]
fn of_deleted_and_unsealed_instances_nothing_is_named() {
    let mut sealed = record(1, 1, b"content");
    sealed.deleted = Some(LogIndex(12));
    assert_eq!(unnamed(shard(0, 1), volume(1), Some(&sealed)), Some(Why::Deleted(LogIndex(12))));
    assert_eq!(unnamed(shard(0, 1), volume(1), None), Some(Why::Unsealed));
}
