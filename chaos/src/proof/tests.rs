//! The judge of stored bytes judged: each kind of shard that nothing names is told from one that counts, and a version that
//! changed its profile owes what it owes.

use std::collections::BTreeMap;

use pacsvault_core::{
    catalog::command::Moved,
    layout::{
        Failures,
        profile::{Code, ReadPreference},
    },
};

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

fn profile(name: &str, sites: u8, nodes: u8) -> Profile {
    let contract = Contract::one(Failures { sites, nodes });
    Profile {
        name: name.parse().expect("a name"),
        version: 1,
        code: Code::new(2, 1).expect("a code"),
        floor: contract.clone(),
        contract,
        read_preference: ReadPreference::OwnSite,
    }
}

/// What is owed to a version acknowledged in the standard profile, one site, and kept in `profile` now.
fn owed(kept: &str, asked: &[&str]) -> Result<Vec<Contract>, String> {
    let profiles = [profile("standard", 1, 0), profile("strong", 1, 1), profile("weak", 0, 1)];
    let asked = asked.iter().map(|name| name.parse().expect("a name")).collect();
    let mut now = record(90, 1, b"content");
    now.seal.profile = kept.parse().expect("a name");
    promised(&record(1, 1, b"content"), &now, &asked, profiles.iter())
}

#[test]
fn a_version_owes_its_receipt_unless_people_asked_for_less() {
    let (site, more) = (Failures { sites: 1, nodes: 0 }, Failures { sites: 1, nodes: 1 });
    let node = Failures { sites: 0, nodes: 1 };
    let contracts = |list: &[Failures]| Ok::<_, String>(list.iter().map(|one| Contract::one(*one)).collect::<Vec<_>>());
    assert_eq!(owed("standard", &[]), contracts(&[site, site]));
    assert_eq!(owed("strong", &["strong"]), contracts(&[more, site]));
    assert_eq!(owed("weak", &["strong", "weak"]), contracts(&[node]));
    assert_eq!(owed("standard", &["weak"]), contracts(&[site]), "it may be on its way");
    assert!(owed("weak", &["strong"]).is_err_and(|why| why.contains("nobody asked for")));
}

#[test]
fn a_record_of_other_content_than_its_receipt_is_told() {
    let asked = BTreeSet::new();
    let profiles = [profile("standard", 1, 0)];
    let mut other = record(1, 1, b"contents");
    assert!(promised(&record(1, 1, b"content"), &other, &asked, profiles.iter()).is_err());
    other.seal.digest = record(1, 1, b"content").seal.digest;
    assert!(promised(&record(1, 1, b"content"), &other, &asked, profiles.iter()).is_err(), "of another size");
}
