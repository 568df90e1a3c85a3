//! The Raft log: vote, committed position, purge mark and entries, in one ordered store.
//!
//! **Invariants.**
//! - All writes pass one queue, in the order openraft made them; a job drains it, merges what is adjacent up to
//!   [`MERGE_BYTES_MAX`], writes one batch, and only then reports completion. So a completion for write `n` asserts that
//!   every vote and entry before it is durable.
//! - Entries are readable as soon as `append` returns: what is not in the store yet is pinned in memory.
//! - `committed <= last` on load: the tail that a crash took is never asked for.
//! - `purged < first <= last`, without a hole, on load and ever after.
//! - Entries are purged only after the state that covers them is durable.
//! - After the first failed write every later one fails: the process stops and recovers by reopening.
//!
//! Keys: `v` vote, `c` committed, `p` purged; `e` and the big-endian index: an entry.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt, channel::oneshot, stream};
use openraft::{
    AsyncRuntime, LogState, OptionalSend, RaftLogReader, base::BoxStream, storage::IOFlushed, storage::RaftLogStorage,
};
use pacsvault_core::ids::{LogIndex, Term};
use pacsvault_ports::{
    crash,
    env::{SharedEnv, blocking},
    kv::{Batch, Change, Durability, Kv, KvError},
};

use crate::{
    options::Error,
    rows::{EntryRow, LogIdRow, PayloadRow, RowError, VoteRow, entry, entry_row, read, stored},
    types::{Entry, LogId, Types, Vote},
};

const VOTE: &[u8] = b"v";
const COMMITTED: &[u8] = b"c";
const PURGED: &[u8] = b"p";
const ENTRY: u8 = b'e';
const ENTRY_END: &[u8] = b"f";

/// Most bytes merged into one synced batch: 4 MiB is 2–4 ms of a disk's bandwidth, about one sync.
pub const MERGE_BYTES_MAX: usize = 4 << 20;
/// Most entries fetched from the store in one scan.
const SCAN_ROWS_MAX: usize = 256;
/// Most bytes per piece of a stream of entries towards the state machine.
const STREAM_BYTES_MAX: usize = 4 << 20;

/// What must be durable before log entries may go: the state store.
pub trait Durable: Send + Sync + 'static {
    /// Makes the state durable at least up to `index`. Blocks.
    fn ensure_durable(&self, index: LogIndex) -> Result<(), KvError>;
}

/// For logs without a state, in tests.
impl Durable for () {
    fn ensure_durable(&self, _: LogIndex) -> Result<(), KvError> {
        Ok(())
    }
}

type Done = Box<dyn FnOnce(Result<(), io::Error>) + Send>;

/// A queued write.
struct Write {
    changes: Vec<Change>,
    bytes: usize,
    durability: Durability,
    /// State that must be durable before this is written.
    after_state: Option<LogIndex>,
    /// Cached entries that become evictable.
    seq: u64,
    done: Option<Done>,
}

struct Cached {
    entry: Entry,
    bytes: usize,
    seq: u64,
}

#[derive(Default)]
struct Inner {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// Index of the first entry; meaningful while there is one. 0 unless purged, but in openraft's storage suite.
    first: u64,
    cache: BTreeMap<u64, Cached>,
    cache_bytes: usize,
    queue: VecDeque<Write>,
    draining: bool,
    next_seq: u64,
    written_seq: u64,
    /// Truncations and purges so far.
    cuts: u64,
    failed: Option<KvError>,
}

struct Shared {
    inner: Mutex<Inner>,
    kv: Arc<dyn Kv>,
    env: SharedEnv,
    durable: Arc<dyn Durable>,
    cache_bytes_max: usize,
    payload_bytes_max: usize,
}

/// What a row of the log's store says, for whoever looks on: term and index of an entry, and its commands unless it is
/// consensus' own. `None` for what is no entry.
pub fn commands_of(key: &[u8], value: &[u8]) -> Option<(Term, LogIndex, Option<Bytes>)> {
    if key.first() != Some(&ENTRY) {
        return None;
    }
    let row: EntryRow = read(Bytes::copy_from_slice(value)).ok()?;
    let commands = match row.payload? {
        PayloadRow::Normal(commands) => Some(commands),
        PayloadRow::Blank(_) | PayloadRow::Membership(_) => None,
    };
    Some((Term(row.term), LogIndex(row.index), commands))
}

/// The log of one replica. Clones share it.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
}

/// Bounds of a [`LogStore`]'s memory and messages.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most bytes of entries kept in memory once they are durable.
    pub cache_bytes_max: usize,
    /// Most bytes of entries per replication read; at least one entry is returned.
    pub payload_bytes_max: usize,
}

impl LogStore {
    /// Opens the log in `kv`. Blocks.
    pub fn open(kv: Arc<dyn Kv>, env: SharedEnv, durable: Arc<dyn Durable>, bounds: Bounds) -> Result<Self, Error> {
        let inner = load(kv.as_ref())?;
        let Bounds { cache_bytes_max, payload_bytes_max } = bounds;
        let shared = Shared { inner: Mutex::new(inner), kv, env, durable, cache_bytes_max, payload_bytes_max };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// The vote as last saved.
    pub fn vote(&self) -> Option<Vote> {
        self.shared.lock().vote
    }

    fn enqueue(&self, fill: impl FnOnce(&mut Inner, u64) -> Write) {
        let start = {
            let mut inner = self.shared.lock();
            inner.next_seq += 1;
            let seq = inner.next_seq;
            let write = fill(&mut inner, seq);
            inner.queue.push_back(write);
            !std::mem::replace(&mut inner.draining, true)
        };
        if start {
            let shared = self.shared.clone();
            self.shared.env.run_blocking(Box::new(move || shared.drain()));
        }
    }

    /// Entries `start..end` as far as the log has them, stopping after `bytes_max` bytes but not before one entry.
    ///
    /// Atomic: when the log was truncated or purged while its stored part was read, the read begins again. The number
    /// of truncations and purges that can come in between is bounded by how often openraft makes them.
    async fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            let (cuts, (start, stored_end, mut tail)) = {
                let inner = self.shared.lock();
                (inner.cuts, inner.split(start, end, bytes_max))
            };
            if start >= stored_end {
                return Ok(tail);
            }
            let shared = self.shared.clone();
            let found = blocking(self.shared.env.as_ref(), move || shared.scan(start, stored_end, bytes_max)).await;
            let found = found.ok_or_else(|| io::Error::other("the node is stopping"))?;
            if self.shared.lock().cuts != cuts {
                continue;
            }
            let (mut entries, whole) = found?;
            if whole {
                entries.append(&mut tail);
            }
            return Ok(entries);
        }
    }
}

impl Inner {
    fn first_index(&self) -> u64 {
        self.purged.map_or(self.first, |id| id.index + 1)
    }

    fn end_index(&self) -> u64 {
        self.last.map_or(0, |id| id.index + 1)
    }

    /// Clamps `start..end` to the log and splits it into what only the store has (`start..stored_end`) and cached
    /// entries that follow.
    fn split(&self, start: u64, end: u64, bytes_max: usize) -> (u64, u64, Vec<Entry>) {
        let start = start.max(self.first_index());
        let end = end.min(self.end_index());
        if start >= end {
            return (start, start, Vec::new());
        }
        // The cache is contiguous up to `last`.
        let cached_from = self.cache.keys().next().copied().unwrap_or(u64::MAX).clamp(start, end);
        let mut bytes = 0_usize;
        let mut tail = Vec::new();
        for cached in self.cache.range(cached_from..end).map(|(_, cached)| cached) {
            bytes += cached.bytes;
            if bytes > bytes_max && !(tail.is_empty() && cached_from == start) {
                break;
            }
            tail.push(cached.entry.clone());
        }
        (start, cached_from, tail)
    }

    /// INVARIANT: the log has no hole; openraft must not ask for one.
    fn follows(&self, ids: impl Iterator<Item = LogId>) -> io::Result<()> {
        let mut last = self.last;
        for id in ids {
            if last.is_some_and(|last| id.index != last.index + 1 || id < last) {
                return Err(io::Error::other(format!("entry {id} does not follow {last:?}")));
            }
            last = Some(id);
        }
        Ok(())
    }

    fn remember(&mut self, entry: Entry, bytes: usize, seq: u64) {
        if self.last.is_none() {
            self.first = entry.log_id.index;
        }
        self.last = Some(entry.log_id);
        self.cache_bytes += bytes;
        if let Some(old) = self.cache.insert(entry.log_id.index, Cached { entry, bytes, seq }) {
            self.cache_bytes -= old.bytes;
        }
    }

    fn evict(&mut self, bytes_max: usize) {
        while self.cache_bytes > bytes_max {
            let Some(first) = self.cache.first_entry() else { return };
            if first.get().seq > self.written_seq {
                return;
            }
            self.cache_bytes -= first.remove().bytes;
        }
    }

    fn forget(&mut self, range: impl RangeBounds<u64>) {
        let gone: Vec<u64> = self.cache.range(range).map(|(index, _)| *index).collect();
        for index in gone {
            if let Some(cached) = self.cache.remove(&index) {
                self.cache_bytes -= cached.bytes;
            }
        }
    }

    /// Takes writes from the front of the queue that may share one batch.
    fn take(&mut self) -> Vec<Write> {
        let mut taken = Vec::new();
        let mut bytes = 0_usize;
        while let Some(next) = self.queue.front() {
            bytes += next.bytes;
            if bytes > MERGE_BYTES_MAX && !taken.is_empty() {
                break;
            }
            taken.extend(self.queue.pop_front());
        }
        self.draining = !taken.is_empty();
        taken
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drain(&self) {
        loop {
            let (mut writes, failed) = {
                let mut inner = self.lock();
                (inner.take(), inner.failed.clone())
            };
            let Some(last) = writes.last() else { return };
            let last_seq = last.seq;
            let result = failed.map_or_else(|| self.write(&mut writes), Err);
            {
                let mut inner = self.lock();
                match &result {
                    Ok(()) => inner.written_seq = last_seq,
                    Err(error) => inner.failed = Some(error.clone()),
                }
                inner.evict(self.cache_bytes_max);
            }
            for done in writes.into_iter().filter_map(|write| write.done) {
                done(result.clone().map_err(io::Error::other));
            }
        }
    }

    fn write(&self, writes: &mut [Write]) -> Result<(), KvError> {
        let mut batch = Batch::default();
        let mut durability = Durability::Buffered;
        for write in writes {
            if let Some(index) = write.after_state {
                self.durable.ensure_durable(index)?;
            }
            batch.changes.append(&mut write.changes);
            if write.durability == Durability::Synced {
                durability = Durability::Synced;
            }
        }
        // CRASH(consensus.1): the batch is atomic and ordered after all earlier ones. Lost: none of its entries was
        // reported flushed and none of its votes granted, so no leader counted this node and no candidate won by it.
        // Kept although unreported: entries that a leader may overwrite, and a vote that was not told to anyone.
        crash::point("consensus.1");
        self.kv.write(batch, durability)
    }

    /// Entries from the store, and whether all of `start..end` fitted.
    fn scan(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<(Vec<Entry>, bool)> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut bytes = 0_usize;
        let mut next = start;
        while next < end {
            let rows = self.kv.scan(&entry_key(next), &entry_key(end), SCAN_ROWS_MAX).map_err(io::Error::other)?;
            if rows.is_empty() {
                break;
            }
            for (_, value) in rows {
                bytes += value.len();
                if bytes > bytes_max && !entries.is_empty() {
                    return Ok((entries, false));
                }
                let found = read::<EntryRow>(value).and_then(entry).map_err(io::Error::other)?;
                if found.log_id.index != next {
                    return Err(io::Error::other(format!("log entry {next} is missing")));
                }
                next += 1;
                entries.push(found);
            }
        }
        if next < end {
            return Err(io::Error::other(format!("log entry {next} is missing")));
        }
        Ok((entries, true))
    }
}

fn entry_key(index: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(9);
    key.push(ENTRY);
    key.extend_from_slice(&index.to_be_bytes());
    key
}

fn damaged(record: impl Into<String>) -> impl FnOnce(RowError) -> Error {
    let record = record.into();
    move |why| Error::Corrupt { record, why: why.to_string() }
}

fn load_log_id(kv: &dyn Kv, key: &[u8], what: &str) -> Result<Option<LogId>, Error> {
    let Some(value) = kv.get(key)? else { return Ok(None) };
    let row = read::<LogIdRow>(value).map_err(damaged(what))?;
    Ok(Some(row.into()))
}

fn load(kv: &dyn Kv) -> Result<Inner, Error> {
    let vote = match kv.get(VOTE)? {
        Some(value) => Some(Vote::from(read::<VoteRow>(value).map_err(damaged("vote"))?)),
        None => None,
    };
    let committed = load_log_id(kv, COMMITTED, "committed position")?;
    let purged = load_log_id(kv, PURGED, "purge mark")?;
    let decode = |value: Vec<u8>| read::<EntryRow>(value).and_then(entry).map_err(damaged("log entry"));
    let last = match kv.last(&[ENTRY], ENTRY_END)? {
        Some((_, value)) => Some(decode(value)?.log_id),
        None => None,
    };
    let mut first = 0;
    if let Some((_, value)) = kv.scan(&[ENTRY], ENTRY_END, 1)?.pop() {
        first = decode(value)?.log_id.index;
        if let Some(expected) = purged.map(|id| id.index + 1).filter(|expected| first != *expected) {
            let why = format!("the log begins at {first} instead of {expected}");
            return Err(Error::Corrupt { record: "log".into(), why });
        }
    }
    let last = last.max(purged);
    // What a crash took from the tail was never durable here, and everything that remains was committed before what
    // was taken: the store is ordered.
    let committed = committed.min(last);
    Ok(Inner { vote, committed, purged, last, first, ..Inner::default() })
}

fn bounds_of(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(index) => *index,
        Bound::Excluded(index) => index.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(index) => index.saturating_add(1),
        Bound::Excluded(index) => *index,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl<R: AsyncRuntime> RaftLogReader<Types<R>> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds_of(&range);
        self.read(start, end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.vote())
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.read(start, end, self.shared.payload_bytes_max).await
    }

    /// In pieces: a replica that catches up applies a long range, which must not be in memory at once.
    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl stream::Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = bounds_of(&range);
        let pieces = stream::unfold((self.clone(), start), move |(log, next)| async move {
            if next >= end {
                return None;
            }
            match log.read(next, end, STREAM_BYTES_MAX).await {
                Ok(entries) => {
                    let after = entries.last().map_or(end, |entry| entry.log_id.index + 1);
                    Some((entries.into_iter().map(Ok).collect::<Vec<_>>(), (log, after)))
                }
                Err(error) => Some((vec![Err(error)], (log, end))),
            }
        });
        let boxed: BoxStream<'static, Result<Entry, io::Error>> = Box::pin(pieces.flat_map(stream::iter));
        boxed
    }
}

impl<R: AsyncRuntime> RaftLogStorage<Types<R>> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<R>>, io::Error> {
        let inner = self.shared.lock();
        Ok(LogState { last_purged_log_id: inner.purged, last_log_id: inner.last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let (done, saved) = oneshot::channel();
        let value = stored(&VoteRow::from(vote));
        self.enqueue(|inner, seq| {
            inner.vote = Some(*vote);
            let done: Done = Box::new(move |result| {
                // The waiter is gone only when the node stops.
                let _ = done.send(result);
            });
            Write {
                bytes: value.len(),
                changes: vec![Change::Put(VOTE.to_vec(), value)],
                durability: Durability::Synced,
                after_state: None,
                seq,
                done: Some(done),
            }
        });
        saved.await.map_err(|_| io::Error::other("the node is stopping"))?
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let change = match &committed {
            Some(id) => Change::Put(COMMITTED.to_vec(), stored(&LogIdRow::from(id))),
            None => Change::Delete(COMMITTED.to_vec()),
        };
        self.enqueue(|inner, seq| {
            inner.committed = committed;
            let durability = Durability::Buffered;
            Write { changes: vec![change], bytes: 32, durability, after_state: None, seq, done: None }
        });
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<R>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows: Vec<(Entry, Vec<u8>)> = entries
            .into_iter()
            .map(|entry| {
                let value = stored(&entry_row(&entry));
                (entry, value)
            })
            .collect();
        self.shared.lock().follows(rows.iter().map(|(entry, _)| entry.log_id))?;
        self.enqueue(|inner, seq| {
            let mut changes = Vec::with_capacity(rows.len());
            let mut bytes = 0_usize;
            for (entry, value) in rows {
                bytes += value.len();
                let index = entry.log_id.index;
                inner.remember(entry, value.len(), seq);
                changes.push(Change::Put(entry_key(index), value));
            }
            let done: Done = Box::new(move |result| callback.io_completed(result));
            Write { changes, bytes, durability: Durability::Synced, after_state: None, seq, done: Some(done) }
        });
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |id| id.index + 1);
        self.enqueue(|inner, seq| {
            inner.cuts += 1;
            inner.forget(from..);
            if inner.last.is_some_and(|last| last.index >= from) {
                pacsvault_core::sometimes!("recovery: log tail truncated");
                inner.last = last_log_id.max(inner.purged);
            }
            // CRASH(consensus.2): lost, the conflicting tail is still there; it was never committed, and the
            // leader of a later term truncates it again. It is ordered before the entries that replace it.
            crash::point("consensus.2");
            let changes = vec![Change::DeleteRange(entry_key(from), ENTRY_END.to_vec())];
            Write { changes, bytes: 32, durability: Durability::Buffered, after_state: None, seq, done: None }
        });
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.enqueue(|inner, seq| {
            inner.cuts += 1;
            inner.forget(..=log_id.index);
            inner.purged = inner.purged.max(Some(log_id));
            inner.last = inner.last.max(inner.purged);
            // CRASH(consensus.3): mark and removal are one batch, written after the state that covers the entries
            // is durable. Lost, the entries are still there and are purged again.
            crash::point("consensus.3");
            let changes = vec![
                Change::Put(PURGED.to_vec(), stored(&LogIdRow::from(&log_id))),
                Change::DeleteRange(vec![ENTRY], entry_key(log_id.index.saturating_add(1))),
            ];
            let after_state = Some(LogIndex(log_id.index));
            Write { changes, bytes: 64, durability: Durability::Buffered, after_state, seq, done: None }
        });
        Ok(())
    }
}
