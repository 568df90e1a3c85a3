//! The record of a run while it is made: operations for the judge, moments for the plots, promises for the proof.
//!
//! **Invariants.** An operation is known from before it is sent. What never ended is in the history as unknown. Operations are
//! written to the file when they begin and when they end, in this order, and the file is handed to the system every second: of a
//! run that is cut off, a history of all but the last second is left that can be judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io::{BufWriter, Write},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::Context;
use pacsvault_judge::{Answer, Call, History, Operation};
use pacsvault_tests::ledger::Content;

use crate::{
    measure::{Did, Moment},
    record::Refusal,
};

/// Most that the file may lack.
const FLUSH_EVERY: Duration = Duration::from_secs(1);

/// An acknowledged version.
#[derive(Debug, Clone)]
pub struct Promise {
    /// Its content.
    pub content: Content,
    /// The signed receipt.
    pub signed: Vec<u8>,
    /// It was acknowledged below its contract.
    pub degraded: bool,
}

#[derive(Default)]
struct State {
    next: u64,
    /// Sites of the sessions that make the load.
    seats: BTreeMap<u64, Arc<str>>,
    open: BTreeMap<u64, Operation>,
    done: Vec<Operation>,
    moments: Vec<Moment>,
    keys: BTreeSet<String>,
    contents: BTreeMap<String, Content>,
    promises: BTreeMap<(String, u32), Promise>,
    /// Writes acknowledged below their contract: when, and how many bytes.
    degraded: Vec<(u64, u64)>,
    broken: Vec<String>,
    refusals: BTreeMap<String, Refusal>,
    file: Option<BufWriter<File>>,
    flushed: Option<Instant>,
    file_error: Option<String>,
}

/// The record of all sessions.
pub struct Recorder {
    began: Instant,
    state: Mutex<State>,
}

impl Recorder {
    /// An empty record that is written to `path` as it grows. Times count from `began`.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(began: Instant, path: &Path) -> anyhow::Result<Self> {
        let file = File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let state = State { file: Some(BufWriter::new(file)), ..State::default() };
        Ok(Self { began, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session belongs to the load of a site from now on. What others do, as the last reads, is judged and is no service.
    pub fn seat(&self, session: u64, site: &str) {
        self.state().seats.insert(session, site.into());
    }

    /// Sites with sessions.
    pub fn sites(&self) -> BTreeSet<String> {
        self.state().seats.values().map(ToString::to_string).collect()
    }

    /// Microseconds of the run.
    pub fn now_us(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// An operation is about to be sent; returns its number.
    pub fn begin(&self, session: u64, key: &str, call: Call) -> u64 {
        let started = self.now_us();
        let mut state = self.state();
        state.next += 1;
        let number = state.next;
        if matches!(call, Call::Put { .. }) {
            state.keys.insert(key.to_owned());
        }
        let key = key.to_owned();
        let open = Operation { number, session, key, call, started, ended: None, answer: Answer::Unknown };
        state.keep(&open);
        state.open.insert(number, open);
        number
    }

    /// It was answered, with so many bytes of content stored, or read and compared.
    pub fn end(&self, number: u64, answer: Answer, bytes: u64) {
        let ended = self.now_us();
        let mut state = self.state();
        let Some(operation) = state.end(number, answer, ended) else { return };
        if let Some(site) = state.seats.get(&operation.session).cloned() {
            state.moments.extend(Moment::of(&operation, bytes, site));
        }
    }

    /// A listing told so of it: for the judge alone, as one listing is many of these and reads no content.
    pub fn listed(&self, number: u64, answer: Answer) {
        let ended = self.now_us();
        self.state().end(number, answer, ended);
    }

    /// Content that may be stored from now on.
    pub fn know(&self, content: Content) {
        self.state().contents.insert(content.digest.to_string(), content);
    }

    /// Content of a digest.
    pub fn content(&self, digest: &str) -> Option<Content> {
        self.state().contents.get(digest).copied()
    }

    /// A version was acknowledged.
    pub fn promise(&self, key: &str, version: u32, promise: Promise) {
        self.state().promises.insert((key.to_owned(), version), promise);
    }

    /// Versions acknowledged at their full contract, of keys that nobody began to delete; at most so many, from all over.
    pub fn full(&self, most: usize) -> Vec<(String, u32)> {
        let state = self.state();
        let all = state.done.iter().chain(state.open.values());
        let gone: BTreeSet<&str> =
            all.filter(|one| matches!(one.call, Call::Delete { .. })).map(|one| one.key.as_str()).collect();
        let whole =
            |((key, _), promise): &(&(String, u32), &Promise)| !promise.degraded && !gone.contains(key.as_str());
        let found: Vec<_> = state.promises.iter().filter(whole).map(|(version, _)| version.clone()).collect();
        let every = found.len().div_ceil(most.max(1)).max(1);
        found.into_iter().step_by(every).collect()
    }

    /// A write of so many bytes was acknowledged below its contract.
    pub fn degraded(&self, bytes: u64) {
        let now = self.now_us();
        self.state().degraded.push((now, bytes));
    }

    /// Bytes acknowledged below their contract since then.
    pub fn degraded_since(&self, from_us: u64) -> u64 {
        self.state().degraded.iter().filter(|(at, _)| *at >= from_us).map(|(_, bytes)| bytes).sum()
    }

    /// Something was refused.
    pub fn refused(&self, code: &str, words: &str) {
        let mut state = self.state();
        let first = || Refusal { code: code.to_owned(), first: words.to_owned(), ..Refusal::default() };
        let refusal = state.refusals.entry(code.to_owned()).or_insert_with(first);
        refusal.count += 1;
        words.clone_into(&mut refusal.last);
    }

    /// All refusals, the most frequent first.
    pub fn refusals(&self) -> Vec<Refusal> {
        let mut all: Vec<Refusal> = self.state().refusals.values().cloned().collect();
        all.sort_by_key(|one| std::cmp::Reverse(one.count));
        all
    }

    /// A promise was broken in a way that no history needs to be searched for.
    pub fn broken(&self, what: String) {
        eprintln!("BROKEN: {what}");
        self.state().broken.push(what);
    }

    /// All that was broken.
    pub fn all_broken(&self) -> Vec<String> {
        self.state().broken.clone()
    }

    /// All acknowledged versions.
    pub fn promises(&self) -> BTreeMap<(String, u32), Promise> {
        self.state().promises.clone()
    }

    /// The key at or after a random position.
    pub fn some_key(&self, random: u64) -> Option<String> {
        let state = self.state();
        let at = usize::try_from(random % (state.keys.len().max(1) as u64)).ok()?;
        state.keys.iter().nth(at).cloned()
    }

    /// Keys that begin so and may be there.
    pub fn keys_of(&self, prefix: &str) -> Vec<String> {
        let state = self.state();
        state.keys.range(prefix.to_owned()..).take_while(|key| key.starts_with(prefix)).cloned().collect()
    }

    /// All moments so far.
    pub fn moments(&self) -> Vec<Moment> {
        self.state().moments.clone()
    }

    /// Acknowledged writes, and reads whose bytes were compared, that began at or after a moment; through one site, or all.
    pub fn served_since(&self, at_us: u64, site: Option<&str>) -> (u64, u64) {
        let state = self.state();
        let since = state.moments.iter().rev().take_while(|moment| moment.ended_us >= at_us);
        let good = since.filter(|moment| moment.started_us >= at_us && moment.good);
        let good = good.filter(|moment| site.is_none_or(|site| *moment.site == *site));
        good.fold((0, 0), |(writes, reads), moment| match moment.did {
            Did::Write => (writes + 1, reads),
            Did::Delete => (writes, reads),
            Did::Read => (writes, reads + 1),
        })
    }

    /// Acknowledged writes and deletions that began and ended between two moments.
    pub fn acked_within(&self, from_us: u64, to_us: u64) -> u64 {
        let state = self.state();
        let within = |moment: &&Moment| moment.started_us >= from_us && moment.ended_us <= to_us;
        state.moments.iter().filter(within).filter(|moment| moment.did != Did::Read && moment.good).count() as u64
    }

    /// Everything, with what never ended.
    ///
    /// # Errors
    /// The file could not be written.
    pub fn history(&self) -> anyhow::Result<History> {
        let mut state = self.state();
        let open: Vec<Operation> = std::mem::take(&mut state.open).into_values().collect();
        state.done.extend(open);
        if let Some(file) = &mut state.file {
            file.flush().context("cannot write the history")?;
        }
        match &state.file_error {
            Some(error) => anyhow::bail!("cannot write the history: {error}"),
            None => Ok(History { operations: state.done.clone() }),
        }
    }
}

impl State {
    fn end(&mut self, number: u64, answer: Answer, ended: u64) -> Option<Operation> {
        let mut operation = self.open.remove(&number)?;
        operation.ended = Some(ended);
        operation.answer = answer;
        self.keep(&operation);
        self.done.push(operation.clone());
        Some(operation)
    }

    fn keep(&mut self, operation: &Operation) {
        let Some(file) = &mut self.file else { return };
        let due = self.flushed.is_none_or(|at| at.elapsed() >= FLUSH_EVERY);
        let line = serde_json::to_string(operation).map_err(std::io::Error::from);
        let written = line.and_then(|line| writeln!(file, "{line}"));
        let written = if due { written.and_then(|()| file.flush()) } else { written };
        if due {
            self.flushed = Some(Instant::now());
        }
        if let Err(error) = written {
            self.file_error = Some(error.to_string());
            self.file = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings_and_misses_are_judged_and_are_no_service() {
        let dir = tempfile::tempdir().expect("a directory");
        let recorder = Recorder::new(Instant::now(), &dir.path().join("history.jsonl")).expect("a file");
        let get = || Call::Get { version: None, linearizable: true };
        let found = || Answer::Found { version: 1, content: "c".into() };
        recorder.seat(1, "a");
        for _ in 0..20 {
            recorder.listed(recorder.begin(1, "main/1.2/1.2/1.2", get()), found());
            recorder.listed(recorder.begin(1, "main/1.2/1.2/1.3", get()), Answer::Unknown);
            recorder.end(recorder.begin(1, "main/1.2/1.2/1.4", get()), Answer::Missing, 0);
            recorder.end(recorder.begin(1, "main/1.2/1.2/1.4", Call::Delete { version: None }), Answer::Missing, 0);
        }
        assert_eq!(recorder.served_since(0, None), (0, 0));
        assert!(recorder.moments().is_empty());
        recorder.end(recorder.begin(1, "main/1.2/1.2/1.2", get()), found(), 5);
        assert_eq!(recorder.served_since(0, None), (0, 1));
        // The last reads are nobody's session.
        recorder.end(recorder.begin(1_000_001, "main/1.2/1.2/1.2", get()), found(), 5);
        assert_eq!((recorder.served_since(0, None), recorder.moments().len()), ((0, 1), 1));
        assert_eq!(recorder.history().expect("kept").operations.len(), 82);
    }

    #[test]
    fn versions_that_must_be_readable_are_neither_degraded_nor_deleted() {
        let dir = tempfile::tempdir().expect("a directory");
        let recorder = Recorder::new(Instant::now(), &dir.path().join("history.jsonl")).expect("a file");
        let promise = |degraded| Promise { content: Content::draw(1, 9).0, signed: Vec::new(), degraded };
        for number in 0..100 {
            recorder.promise(&format!("main/1.2/1.2/{number:03}"), 1, promise(number % 10 == 0));
        }
        recorder.begin(1, "main/1.2/1.2/001", Call::Delete { version: None });
        assert_eq!(recorder.full(1_000).len(), 89);
        let some = recorder.full(30);
        assert!((20..=30).contains(&some.len()), "{}", some.len());
        assert!(some.first() < some.last() && !some.iter().any(|(key, _)| key.ends_with("001")));
    }

    #[test]
    fn service_and_acknowledgements_are_told_site_by_site() {
        let dir = tempfile::tempdir().expect("a directory");
        let recorder = Recorder::new(Instant::now(), &dir.path().join("history.jsonl")).expect("a file");
        recorder.seat(1, "a");
        recorder.seat(2, "b");
        let key = "main/1.2/1.2/1.2";
        let put = Call::Put { attempt: Some("i".into()), content: "c".into(), size_bytes: 3 };
        let stored = Answer::Stored { version: 1, attempt: "i".into(), first: true };
        recorder.end(recorder.begin(1, key, put), stored, 3);
        recorder.end(recorder.begin(2, key, Call::Delete { version: None }), Answer::Deleted { versions: vec![1] }, 0);
        assert_eq!(recorder.served_since(0, Some("a")), (1, 0));
        assert_eq!(recorder.served_since(0, Some("b")), (0, 0), "a deletion is no service");
        assert_eq!(recorder.acked_within(0, u64::MAX), 2, "and is acknowledged all the same");
        assert_eq!(recorder.sites(), ["a".to_owned(), "b".to_owned()].into());
    }
}
