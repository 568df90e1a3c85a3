//! Deletions that the logs allow, and those that they do not.

use pacsvault_core::{
    catalog::{
        command::{Entry, Replace, Reseat},
        wire::encode_entry,
    },
    checksum::chunk_crcs,
    ids::{ShardIndex, VolumeId},
    layout::profile::Code,
    shard::headers_of,
};
use pacsvault_volume::format::Record;

use super::*;
use crate::testing::{instance, name, record};

const VOLUME: VolumeId = VolumeId([1; 16]);
const SOON: WallMillis = WallMillis(2_000);
const DAY_LATER: WallMillis = WallMillis(2_000 + WRITE_WINDOW_MILLIS);

fn shard(number: u8) -> ShardId {
    ShardId { instance: instance(number), stripe: StripeIndex(0), shard: ShardIndex(1) }
}

fn entry(chronicle: &Chronicle, index: u64, time: WallMillis, commands: Vec<Command>) {
    let bytes = encode_entry(&Entry { time, commands });
    chronicle.entry(Term(1), LogIndex(index), Some(&bytes));
}

/// Instance 1 is sealed by entry 7, moved by 9, replaced by 11; the version is deleted by 13.
fn chronicle() -> Chronicle {
    let chronicle = Chronicle::default();
    let seal = record(1, 1, b"content").seal;
    entry(&chronicle, 7, SOON, vec![Command::Seal(Box::new(seal.clone()))]);
    let reseat = Reseat {
        instance: instance(1),
        stripe: StripeIndex(0),
        expected: Vec::new(),
        persisted: 0,
        moves: Vec::new(),
        not_after: SOON,
    };
    entry(&chronicle, 9, SOON, vec![Command::Reseat(reseat)]);
    let replace = Replace { seal, version: VersionNumber(1), replaces: instance(1) };
    entry(&chronicle, 11, SOON, vec![Command::Replace(Box::new(replace))]);
    entry(&chronicle, 13, SOON, vec![Command::Delete { key: name(), version: None }]);
    chronicle
}

fn sealed(deleted: Option<u64>) -> SealedInstance {
    SealedInstance { deleted: deleted.map(LogIndex), ..record(1, 1, b"content") }
}

fn check(authority: u64, sealed: Option<&SealedInstance>) -> Result<(), String> {
    chronicle().check(shard(1), LogIndex(authority), sealed)
}

#[test]
fn what_an_entry_allows_may_be_deleted() {
    assert_eq!(check(7, Some(&sealed(None))), Ok(()), "a copy left by its write");
    assert_eq!(check(9, Some(&sealed(None))), Ok(()), "a copy left by a move");
    assert_eq!(check(9, Some(&sealed(Some(13)))), Ok(()), "and deleted as a whole since");
    assert_eq!(check(11, Some(&sealed(Some(11)))), Ok(()), "a former encoding");
    assert_eq!(check(13, Some(&sealed(Some(13)))), Ok(()), "a deleted version");
}

#[test]
fn what_no_entry_allows_is_told() {
    let told = |authority, sealed: Option<&SealedInstance>, why: &str| {
        let what = check(authority, sealed).expect_err("not allowed");
        assert!(what.contains(why), "{what}");
    };
    told(8, Some(&sealed(None)), "no log has that entry");
    told(14, None, "no log has that entry");
    told(13, Some(&sealed(None)), "does not concern that shard");
    told(11, Some(&sealed(None)), "does not concern that shard");
    told(13, Some(&sealed(Some(11))), "does not concern that shard");
    // The next two name entries that are there, and are about something else.
    let chronicle = chronicle();
    let other = SealedInstance { deleted: Some(LogIndex(13)), ..record(2, 5, b"other") };
    for authority in [7, 9, 11] {
        assert!(chronicle.check(shard(2), LogIndex(authority), Some(&other)).is_err(), "{authority}");
    }
    told(13, None, "could still be sealed");
}

/// Simulated seed 325: a re-encoding left a copy on a slow holder.
#[test]
fn a_copy_left_by_a_re_encoding_goes_on_the_authority_of_its_entry() {
    let chronicle = chronicle();
    let later = SealedInstance { index: LogIndex(15), ..record(3, 1, b"content") };
    let replace = Replace { seal: later.seal.clone(), version: VersionNumber(1), replaces: instance(1) };
    entry(&chronicle, 15, SOON, vec![Command::Replace(Box::new(replace))]);
    assert_eq!(chronicle.check(shard(3), LogIndex(15), Some(&later)), Ok(()));
    assert!(chronicle.check(shard(3), LogIndex(11), Some(&later)).is_err(), "of another encoding");
    let other = SealedInstance { index: LogIndex(15), ..record(2, 1, b"content") };
    assert!(chronicle.check(shard(2), LogIndex(15), Some(&other)).is_err(), "of neither");
}

#[test]
fn an_attempt_may_be_swept_once_the_log_says_that_it_has_expired() {
    let chronicle = chronicle();
    entry(&chronicle, 20, DAY_LATER, Vec::new());
    // A later entry by a clock that is behind changes nothing.
    entry(&chronicle, 21, SOON, Vec::new());
    assert_eq!(chronicle.check(shard(3), LogIndex(21), None), Ok(()));
    assert!(chronicle.check(shard(3), LogIndex(13), None).is_err(), "by an entry before that");
    assert!(chronicle.check(shard(1), LogIndex(21), Some(&sealed(None))).is_err(), "and never when it was sealed");
}

/// The parts in which a volume writes these deletions.
fn written(authority: u64, shards: &[ShardId]) -> Vec<Vec<u8>> {
    let mut payload = Vec::new();
    shards.iter().for_each(|id| Tombstone { id: *id, sequence: 1, offset: 8192 }.encode(&mut payload));
    let body = Body::Tombstones { authority: LogIndex(authority) };
    let record = Record::new(VOLUME, body, payload.len() as u64, chunk_crcs(&payload));
    vec![record.encode(), payload, vec![0; 100]]
}

fn deletes(chronicle: &Chronicle, parts: &[Vec<u8>]) -> Result<u64, String> {
    let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
    chronicle.deletes(VOLUME, &parts, |id| Some((id == instance(1)).then(|| sealed(Some(13)))))
}

#[test]
fn deletions_are_found_in_what_a_volume_writes_each_held_to_the_logs() {
    let chronicle = chronicle();
    assert_eq!(deletes(&chronicle, &[vec![7; 512]]), Ok(0));
    let good = written(13, &[shard(1)]);
    assert_eq!(deletes(&chronicle, &good), Ok(1));
    assert_eq!(deletes(&chronicle, &good), Ok(0), "restated by compaction");
    assert_eq!(deletes(&chronicle, &written(0, &[shard(1)])), Ok(0), "it was deleted anyway");
    let mut bad = written(13, &[shard(1)]);
    bad.extend(written(13, &[shard(1), shard(5)]));
    let why = deletes(&chronicle, &bad).expect_err("the second one of the second record");
    assert!(why.contains(&shard(5).to_string()), "{why}");
}

#[test]
fn without_an_entry_only_a_record_goes_that_another_stands_for() {
    let chronicle = chronicle();
    let copy = |id| {
        let (_, header) = headers_of(instance(5), StripeIndex(0), Code::new(2, 1).expect("a code"), 4, &shards());
        let header = header.into_iter().find(|header| header.id == id).expect("one of them");
        let (len, crcs) = (2, header.chunk_crcs.clone());
        vec![Record::new(VOLUME, Body::Shard(header), len, crcs).encode(), vec![7; 2]]
    };
    assert!(deletes(&chronicle, &written(0, &[shard(5)])).is_err(), "nothing was written");
    let chronicle = super::tests::chronicle();
    assert_eq!(deletes(&chronicle, &copy(shard(5))), Ok(0));
    let mut torn = written(0, &[shard(5)]);
    torn.extend(copy(shard(5)));
    let why = deletes(&chronicle, &torn).expect_err("a crash may tear the batch that holds it anew");
    assert!(why.contains("no other record"), "{why}");
    let chronicle = super::tests::chronicle();
    assert_eq!(deletes(&chronicle, &copy(shard(5))), Ok(0));
    assert_eq!(deletes(&chronicle, &copy(shard(5))), Ok(0), "anew");
    assert_eq!(deletes(&chronicle, &written(0, &[shard(5)])), Ok(0), "it stands for the first");
    assert_eq!(deletes(&chronicle, &written(0, &[shard(5)])), Ok(0), "restated");
    let mut last = written(0, &[shard(5)]);
    last[1].clear();
    Tombstone { id: shard(5), sequence: 2, offset: 0 }.encode(&mut last[1]);
    let record =
        Record::new(VOLUME, Body::Tombstones { authority: LogIndex(0) }, last[1].len() as u64, chunk_crcs(&last[1]));
    last[0] = record.encode();
    let why = deletes(&chronicle, &last).expect_err("the last one");
    assert!(why.contains("no other record"), "{why}");
}

fn shards() -> Vec<Vec<u8>> {
    vec![vec![7; 2]; 3]
}

#[test]
fn what_is_no_entry_is_passed_over() {
    let chronicle = Chronicle::default();
    let mut batch = Batch::default();
    batch.changes.push(Change::Put(b"v".to_vec(), vec![1]));
    batch.changes.push(Change::Put(b"e12345678".to_vec(), vec![9]));
    chronicle.appended(&batch);
    assert!(chronicle.known().entries.is_empty(), "no entries");
    assert!(!chronicle.replaces(instance(1)) && super::tests::chronicle().replaces(instance(1)));
}
