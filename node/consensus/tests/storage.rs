//! openraft's own storage suite, and the contracts of the log store that its crashes test (stack notes §1.4).

use std::sync::Arc;

use bytes::Bytes;
use openraft::{
    EntryPayload, RaftLogReader,
    storage::{IOFlushed, RaftLogStorage},
    type_config::{TypeConfigExt, alias::OneshotReceiverOf},
};
use pacsvault_consensus::{
    TokioRuntime, Types,
    log_store::{Bounds, Durable, LogStore},
    suite::{Stores, storage_suite},
    types::{Data, Entry, LeaderId, Vote, log_id},
};
use pacsvault_core::ids::LogIndex;
use pacsvault_ports::kv::{Kv, KvError};
use pacsvault_runtime::TokioEnv;
use pacsvault_simkv::SimKvMedia;
use proptest::prelude::*;

type C = Types<TokioRuntime>;

const BOUNDS: Bounds = Bounds { cache_bytes_max: 256, payload_bytes_max: 200 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openrafts_storage_suite_passes() {
    let make = || {
        let (log, state) = (SimKvMedia::new(), SimKvMedia::new());
        Stores { log: log.open(), state: state.open(), guard: Box::new((log, state)) }
    };
    storage_suite(TokioEnv::current(), make).await.expect("every contract holds");
}

fn open(media: &SimKvMedia) -> LogStore {
    LogStore::open(media.open(), TokioEnv::current(), Arc::new(()), BOUNDS).expect("the log opens")
}

fn entry(term: u64, index: u64) -> Entry {
    let bytes = Bytes::from(vec![u8::try_from(index % 251).expect("small"); 50]);
    Entry { log_id: log_id(term, index), payload: EntryPayload::Normal(Data(bytes)) }
}

fn vote(term: u64, node: u64) -> Vote {
    Vote { leader_id: LeaderId { term, voted_for: node }, committed: false }
}

/// Appends without waiting; the receiver resolves when durable.
async fn append(log: &mut LogStore, entries: Vec<Entry>) -> OneshotReceiverOf<C, std::io::Result<()>> {
    let (done, flushed) = C::oneshot();
    RaftLogStorage::<C>::append(log, entries, IOFlushed::signal(done)).await.expect("queued");
    flushed
}

async fn read(log: &mut LogStore, from: u64, to: u64) -> Vec<u64> {
    let entries = RaftLogReader::<C>::try_get_log_entries(log, from..to).await.expect("readable");
    entries.into_iter().map(|entry| entry.log_id.index).collect()
}

async fn last(log: &mut LogStore) -> Option<u64> {
    RaftLogStorage::<C>::get_log_state(log).await.expect("a state").last_log_id.map(|id| id.index)
}

#[tokio::test]
async fn a_vote_is_durable_on_return_with_all_entries_before_it() {
    let media = SimKvMedia::new();
    let mut log = open(&media);
    let _unawaited = append(&mut log, (0..100).map(|index| entry(1, index)).collect()).await;
    RaftLogStorage::<C>::save_vote(&mut log, &vote(2, 7)).await.expect("saved");
    media.crash(1);
    let mut log = open(&media);
    assert_eq!(log.vote(), Some(vote(2, 7)));
    assert_eq!(last(&mut log).await, Some(99));
    assert_eq!(read(&mut log, 0, 200).await, (0..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn entries_are_readable_before_they_are_durable_and_durable_when_reported() {
    let media = SimKvMedia::new();
    let mut log = open(&media);
    let flushed = append(&mut log, (1..=20).map(|index| entry(1, index)).collect()).await;
    assert_eq!(read(&mut log, 5, 10).await, vec![5, 6, 7, 8, 9]);
    flushed.await.expect("reported").expect("flushed");
    media.crash(3);
    assert_eq!(last(&mut open(&media)).await, Some(20));
}

#[tokio::test]
async fn committed_is_clamped_to_what_the_crash_left() {
    let media = SimKvMedia::new();
    {
        let kv = media.open();
        let mut log = LogStore::open(kv.clone(), TokioEnv::current(), Arc::new(()), BOUNDS).expect("opens");
        append(&mut log, (0..=9).map(|index| entry(1, index)).collect()).await.await.expect("told").expect("flushed");
        // As an unordered store could leave it: the position is ahead of the log.
        RaftLogStorage::<C>::save_committed(&mut log, Some(log_id(1, 15))).await.expect("queued");
        RaftLogStorage::<C>::save_vote(&mut log, &vote(1, 1)).await.expect("saved");
    }
    let mut log = open(&media);
    assert_eq!(RaftLogStorage::<C>::read_committed(&mut log).await.expect("readable"), Some(log_id(1, 9)));
}

#[tokio::test]
async fn replacing_a_truncated_tail_survives_a_crash_and_never_shows_the_old_one() {
    let media = SimKvMedia::new();
    let mut log = open(&media);
    append(&mut log, (0..50).map(|index| entry(1, index)).collect()).await.await.expect("told").expect("flushed");
    RaftLogStorage::<C>::truncate_after(&mut log, Some(log_id(1, 19))).await.expect("queued");
    assert_eq!(last(&mut log).await, Some(19));
    assert_eq!(read(&mut log, 15, 50).await, vec![15, 16, 17, 18, 19]);
    append(&mut log, (20..25).map(|index| entry(3, index)).collect()).await.await.expect("told").expect("flushed");
    media.crash(9);
    let mut log = open(&media);
    let entries = RaftLogReader::<C>::try_get_log_entries(&mut log, 0..100).await.expect("readable");
    assert_eq!(entries.len(), 25);
    assert!(entries[20..].iter().all(|entry| entry.log_id.leader_id.term == 3));
}

#[tokio::test]
async fn limited_reads_are_bounded_by_bytes_but_never_empty() {
    let media = SimKvMedia::new();
    let mut log = open(&media);
    append(&mut log, (0..40).map(|index| entry(1, index)).collect()).await.await.expect("told").expect("flushed");
    let mut next = 0;
    while next < 40 {
        let entries = RaftLogReader::<C>::limited_get_log_entries(&mut log, next, 40).await.expect("readable");
        assert!(!entries.is_empty() && entries.len() <= 8, "{} entries", entries.len());
        assert_eq!(entries[0].log_id.index, next);
        next += entries.len() as u64;
    }
}

struct Watch {
    media: SimKvMedia,
    asked: std::sync::Mutex<Vec<(u64, bool)>>,
}

impl Durable for Watch {
    fn ensure_durable(&self, index: LogIndex) -> Result<(), KvError> {
        let still_there = !self.media.content().is_empty();
        self.asked.lock().expect("no panic").push((index.0, still_there));
        Ok(())
    }
}

#[tokio::test]
async fn entries_are_purged_only_after_the_state_was_asked_to_be_durable() {
    let media = SimKvMedia::new();
    let watch = Arc::new(Watch { media: media.clone(), asked: std::sync::Mutex::default() });
    let kv = media.open();
    let mut log = LogStore::open(kv.clone(), TokioEnv::current(), watch.clone(), BOUNDS).expect("opens");
    append(&mut log, (0..30).map(|index| entry(1, index)).collect()).await.await.expect("told").expect("flushed");
    RaftLogStorage::<C>::purge(&mut log, log_id(1, 9)).await.expect("queued");
    RaftLogStorage::<C>::save_vote(&mut log, &vote(1, 1)).await.expect("saved");
    assert_eq!(*watch.asked.lock().expect("no panic"), vec![(9, true)]);
    assert_eq!(kv.scan(b"e", b"f", 100).expect("readable").len(), 20);
    assert_eq!(read(&mut log, 0, 12).await, vec![10, 11]);
    media.crash(0);
    assert_eq!(read(&mut open(&media), 0, 12).await, vec![10, 11]);
}

/// One step of openraft against its log.
#[derive(Debug, Clone)]
enum Step {
    Append(u8),
    Truncate(u8),
    Purge(u8),
    Vote,
    Crash(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1_u8..20).prop_map(Step::Append),
        1 => (0_u8..10).prop_map(Step::Truncate),
        1 => (1_u8..10).prop_map(Step::Purge),
        1 => Just(Step::Vote),
        1 => any::<u64>().prop_map(Step::Crash),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What must hold of the log: entries as terms by index, and how much of it is surely durable.
#[derive(Default)]
struct Model {
    first: u64,
    terms: Vec<u64>,
    term: u64,
    durable_end: u64,
}

impl Model {
    fn end(&self) -> u64 {
        self.first + self.terms.len() as u64
    }
}

async fn check(log: &mut LogStore, model: &mut Model, crashed: bool) {
    let entries = RaftLogReader::<C>::try_get_log_entries(log, 0..u64::MAX).await.expect("readable");
    let found: Vec<(u64, u64)> =
        entries.iter().map(|entry| (entry.log_id.index, entry.log_id.leader_id.term)).collect();
    if crashed {
        // Some suffix that was not reported durable may be gone.
        let end = found.last().map_or(model.first, |(index, _)| index + 1);
        assert!(end >= model.durable_end.max(model.first), "lost durable entries: {end} < {}", model.durable_end);
        assert!(end <= model.end());
        model.terms.truncate(usize::try_from(end - model.first).expect("small"));
    }
    let expected: Vec<(u64, u64)> = (model.first..).zip(model.terms.iter().copied()).collect();
    assert_eq!(found, expected);
}

async fn run(steps: Vec<Step>) {
    let media = SimKvMedia::new();
    let mut log = open(&media);
    let mut model = Model { term: 1, ..Model::default() };
    for step in steps {
        let mut crashed = false;
        match step {
            Step::Append(count) => {
                let entries: Vec<Entry> =
                    (0..u64::from(count)).map(|offset| entry(model.term, model.end() + offset)).collect();
                model.terms.extend(entries.iter().map(|_| model.term));
                append(&mut log, entries).await.await.expect("told").expect("flushed");
                model.durable_end = model.end();
            }
            Step::Truncate(back) => {
                let end = model.end().saturating_sub(u64::from(back)).max(model.first);
                let count = usize::try_from(end - model.first).expect("small");
                if count == 0 {
                    continue;
                }
                model.terms.truncate(count);
                let keep = model.terms.last().map(|term| log_id(*term, end - 1));
                RaftLogStorage::<C>::truncate_after(&mut log, keep).await.expect("queued");
                RaftLogStorage::<C>::save_vote(&mut log, &vote(model.term, 1)).await.expect("saved");
                model.term += 1;
                model.durable_end = model.end();
            }
            Step::Purge(count) => {
                let count = usize::from(count).min(model.terms.len().saturating_sub(1));
                if count == 0 {
                    continue;
                }
                let upto = log_id(model.terms[count - 1], model.first + count as u64 - 1);
                RaftLogStorage::<C>::purge(&mut log, upto).await.expect("queued");
                RaftLogStorage::<C>::save_vote(&mut log, &vote(model.term, 2)).await.expect("saved");
                model.first += count as u64;
                model.terms.drain(..count);
            }
            Step::Vote => {
                RaftLogStorage::<C>::save_vote(&mut log, &vote(model.term, 3)).await.expect("saved");
                assert_eq!(log.vote(), Some(vote(model.term, 3)));
            }
            Step::Crash(seed) => {
                media.crash(seed);
                log = open(&media);
                crashed = true;
            }
        }
        check(&mut log, &mut model, crashed).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_log_is_its_model_through_truncations_purges_and_crashes(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(run(steps));
    }
}
