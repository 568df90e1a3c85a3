//! Sessions that write, overwrite, read, list and delete through every site, and keep a history of all they were told.
//!
//! **Invariants.** An operation is in the history from before it is sent. Content follows from a seed, so every byte read can be
//! compared. Choices of a session follow from the run's seed and its number; only timing is left to chance.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use pacsvault_client::{Acked, Client, Mode, Source};
use pacsvault_coordinator::{GetQuery, PutHeader, Upload};
use pacsvault_core::{
    catalog::SealedInstance,
    ids::{LogIndex, ObjectKey, VersionNumber},
};
use pacsvault_judge::{Answer, Call};
use pacsvault_ports::peer::{Class, Fault, Freshness};
use pacsvault_tests::ledger::Content;
use rand::{Rng, SeedableRng, rngs::StdRng};
use tokio::{runtime::Handle, task::JoinHandle};

use crate::history::{Promise, Recorder};

/// Keys that all sessions fight for at a time.
const HOT_KEYS: u64 = 6;
/// So often they fight for others, so that no key's history gets too long to judge.
const HOT_FOR_MS: u64 = 15_000;
/// Contents of a hot key that sessions choose from: some choose the same.
const HOT_CONTENTS: u64 = 5;
/// Keys of a session in one study.
const STUDY_KEYS: u64 = 25;
/// Content bytes of all sessions after which they write small ones only.
const BYTES_MAX: u64 = 320 << 20;

/// A running load.
pub struct Load {
    over: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

struct Worker {
    session: u64,
    client: Client,
    recorder: Arc<Recorder>,
    over: Arc<AtomicBool>,
    bytes: Arc<AtomicU64>,
    random: StdRng,
    seed: u64,
    run: u64,
    written: u64,
}

impl Load {
    /// Starts one session per client, which stores and reads as its client does: itself, or through a node. `run` is in the
    /// names of all studies and never used twice, so that what an earlier run left in the same tenant is nobody's surprise.
    pub fn start(runtime: &Handle, clients: Vec<Client>, recorder: &Arc<Recorder>, seed: u64, run: u64) -> Self {
        let (over, bytes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut workers = Vec::new();
        for (client, session) in clients.into_iter().zip(1..) {
            let worker = Worker {
                session,
                client,
                recorder: recorder.clone(),
                over: over.clone(),
                bytes: bytes.clone(),
                random: StdRng::seed_from_u64(seed ^ u64::wrapping_mul(session, 0x9E37_79B9_7F4A_7C15)),
                seed,
                run,
                written: 0,
            };
            workers.push(runtime.spawn(worker.run()));
        }
        Self { over, workers }
    }

    /// Ends it: what is under way is finished, or given up after the limit and never answered.
    ///
    /// # Errors
    /// Sessions that did not end in order: of what they saw, a part is not in the history.
    pub async fn stop(self, limit: Duration) -> Result<String, String> {
        self.over.store(true, Ordering::Relaxed);
        let (count, deadline) = (self.workers.len(), tokio::time::Instant::now() + limit);
        let mut lost = Vec::new();
        for (mut worker, session) in self.workers.into_iter().zip(1..) {
            match tokio::time::timeout_at(deadline, &mut worker).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => lost.push(format!("session {session} broke off: {error}")),
                Err(_) => {
                    worker.abort();
                    lost.push(format!("session {session} did not end within {} s", limit.as_secs()));
                }
            }
        }
        if lost.is_empty() { Ok(format!("{count} sessions")) } else { Err(lost.join("; ")) }
    }
}

/// What a read found, as an answer, and its bytes.
pub(crate) fn found(sealed: &SealedInstance) -> Answer {
    Answer::Found { version: sealed.version.0, content: sealed.seal.digest.to_string() }
}

/// What a session calls its own.
fn own_name(run: u64, session: u64, number: u64) -> String {
    let study = format!("1.2.826.0.1.{run}.{session}.{}", number / STUDY_KEYS + 1);
    if number % 10 == 9 {
        return format!("{study}/@/report {number}.txt");
    }
    format!("{study}/1.2.826.0.2.{session}/1.2.826.0.3.{number}")
}

/// What all sessions fight for.
fn hot_name(run: u64, age: u64, number: u64) -> String {
    format!("1.2.826.0.9.{run}.{}/1.2.826.0.9.1/1.2.826.0.9.2.{number}", age + 1)
}

impl Worker {
    async fn run(mut self) {
        while !self.over.load(Ordering::Relaxed) {
            match self.random.random_range(0..100) {
                0..34 => self.put_new().await,
                34..50 => self.put_hot().await,
                50..54 => self.delete().await,
                54..58 => self.list().await,
                _ => self.get().await,
            }
            let pause = self.random.random_range(2..25);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
    }

    fn own_key(&self, number: u64) -> String {
        format!("{}/{}", self.client.config().tenant, own_name(self.run, self.session, number))
    }

    /// One of its own; there must be one.
    fn old_key(&mut self) -> String {
        let number = self.random.random_range(0..self.written);
        self.own_key(number)
    }

    fn hot_key(&mut self) -> (String, u64) {
        let age = self.recorder.now_us() / 1_000 / HOT_FOR_MS;
        let number = self.random.random_range(0..HOT_KEYS);
        let tenant = &self.client.config().tenant;
        (format!("{tenant}/{}", hot_name(self.run, age, number)), age * HOT_KEYS + number)
    }

    fn size(&mut self) -> usize {
        let small = self.bytes.load(Ordering::Relaxed) > BYTES_MAX;
        match self.random.random_range(0..20) {
            0 => 0,
            _ if small => self.random.random_range(1..=2_048),
            1..=9 => self.random.random_range(1..=4_096),
            10..=18 => self.random.random_range(4_096..=200 << 10),
            _ => self.random.random_range(200 << 10..=2 << 20),
        }
    }

    async fn put_new(&mut self) {
        let key = self.own_key(self.written);
        self.written += 1;
        let (seed, size) = (self.random.random(), self.size());
        self.put(&key, seed, size).await;
    }

    async fn put_hot(&mut self) {
        let (key, number) = self.hot_key();
        let choice = self.random.random_range(0..HOT_CONTENTS);
        let seed = self.seed ^ (number * 1_000 + choice);
        let size = usize::try_from(200 + choice * 9_000).unwrap_or(200);
        self.put(&key, seed, size).await;
    }

    /// One attempt; when its outcome is unknown, perhaps the same content again.
    async fn put(&mut self, key: &str, seed: u64, size: usize) {
        for _ in 0..3 {
            if !self.put_once(key, seed, size).await || self.random.random_range(0..3) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// True when the outcome is unknown.
    async fn put_once(&mut self, key: &str, seed: u64, size: usize) -> bool {
        let Ok(name) = key.parse::<ObjectKey>() else { return false };
        let (content, bytes) = Content::draw(seed, size);
        let header = PutHeader::new(name, "application/octet-stream");
        self.recorder.know(content);
        let begin = |attempt| {
            let call = Call::Put { attempt, content: content.digest.to_string(), size_bytes: size as u64 };
            self.recorder.begin(self.session, key, call)
        };
        let (number, answer) = match self.client.mode() {
            Mode::Direct => {
                let upload = self.client.coordinator().begin_put(header);
                let number = begin(Some(upload.instance().to_string()));
                (number, coordinate(upload, bytes).await)
            }
            Mode::ViaNode => {
                let number = begin(None);
                (number, self.client.put_once(header, &Source::Bytes(bytes), &|_| ()).await)
            }
        };
        match answer {
            Ok(stored) => {
                if stored.receipt.digest != content.digest || stored.receipt.key.to_string() != key {
                    self.recorder.broken(format!("{key}: the receipt is of something else: {}", stored.receipt));
                }
                self.bytes.fetch_add(size as u64, Ordering::Relaxed);
                if stored.receipt.degraded {
                    self.recorder.degraded(size as u64);
                }
                let version = stored.receipt.version.0;
                let attempt = stored.receipt.instance.to_string();
                let promise = Promise { content, signed: stored.signed, degraded: stored.receipt.degraded };
                self.recorder.promise(key, version, promise);
                let first = stored.first;
                self.recorder.end(number, Answer::Stored { version, attempt, first }, size as u64);
                false
            }
            Err(fault) if fault.class == Class::Unknown => {
                if fault.code == "PV-WRONG-RECEIPT" {
                    self.recorder.broken(format!("{key}: {fault}"));
                }
                self.recorder.end(number, Answer::Unknown, 0);
                true
            }
            // It was stored, and deleted before the answer arrived.
            Err(fault) if fault.code == "PV-DELETED" => {
                self.recorder.end(number, Answer::Unknown, 0);
                false
            }
            Err(fault) => {
                self.judge_refusal(&format!("the write of {key}"), &fault);
                self.recorder.end(number, Answer::Refused, 0);
                false
            }
        }
    }

    async fn delete(&mut self) {
        let key = match self.random.random_range(0..2) {
            0 => self.hot_key().0,
            _ if self.written > 0 => self.old_key(),
            _ => return,
        };
        let Ok(name) = key.parse::<ObjectKey>() else { return };
        let number = self.recorder.begin(self.session, &key, Call::Delete { version: None });
        let answer = match self.client.coordinator().delete(name, None).await {
            Ok(versions) => {
                let mut versions: Vec<u32> = versions.into_iter().map(|version| version.0).collect();
                versions.sort_unstable();
                Answer::Deleted { versions }
            }
            Err(fault) if fault.class == Class::NotFound => Answer::Missing,
            Err(fault) if fault.class == Class::Unknown => Answer::Unknown,
            Err(fault) => {
                self.judge_refusal(&format!("the deletion of {key}"), &fault);
                Answer::Refused
            }
        };
        self.recorder.end(number, answer, 0);
    }

    /// Some key: a hot one, an own one, or anybody's.
    fn some_key(&mut self) -> Option<String> {
        match self.random.random_range(0..3) {
            0 => Some(self.hot_key().0),
            1 if self.written > 0 => Some(self.old_key()),
            _ => self.recorder.some_key(self.random.random()),
        }
    }

    async fn get(&mut self) {
        let Some(key) = self.some_key() else { return };
        let Ok(name) = key.parse::<ObjectKey>() else { return };
        let linearizable = self.random.random_range(0..2) == 0;
        let version = (self.random.random_range(0..8) == 0).then(|| self.random.random_range(1..4_u32));
        let mut query = GetQuery { version: version.map(VersionNumber), ..GetQuery::whole(name) };
        query.freshness = if linearizable { Freshness::Linearizable } else { Freshness::AtLeast(LogIndex(0)) };
        let number = self.recorder.begin(self.session, &key, Call::Get { version, linearizable });
        let wish: Option<u64> = (self.random.random_range(0..3) == 0).then(|| self.random.random());
        let (answer, bytes) = read(&self.client, &self.recorder, query, wish).await;
        self.recorder.end(number, answer, bytes);
    }

    /// Lists one study; that is one read of each key of it that may be there.
    async fn list(&mut self) {
        let Some(key) = self.some_key() else { return };
        let Ok(name) = key.parse::<ObjectKey>() else { return };
        let prefix = format!("{}/", key.split('/').take(2).collect::<Vec<_>>().join("/"));
        let call = Call::Get { version: None, linearizable: true };
        let numbers: BTreeMap<String, u64> = self
            .recorder
            .keys_of(&prefix)
            .into_iter()
            .map(|key| (key.clone(), self.recorder.begin(self.session, &key, call.clone())))
            .collect();
        let mut listed: BTreeMap<String, SealedInstance> = BTreeMap::new();
        let mut token = Vec::new();
        let complete = loop {
            let page = match self.client.list(Some(name.study.clone()), None, token).await {
                Ok(page) => page,
                Err(fault) => {
                    self.judge_refusal(&format!("the listing of {prefix}"), &fault);
                    break false;
                }
            };
            for sealed in page.instances {
                let key = sealed.seal.key.to_string();
                if listed.get(&key).is_none_or(|present| present.version < sealed.version) {
                    listed.insert(key, sealed);
                }
            }
            token = page.next_page_token;
            if token.is_empty() {
                break true;
            }
        };
        for (key, number) in numbers {
            let answer = match listed.get(&key) {
                _ if !complete => Answer::Unknown,
                Some(sealed) => found(sealed),
                None => Answer::Missing,
            };
            self.recorder.listed(number, answer);
        }
    }

    /// In a disaster, "not now" and "perhaps" are fair answers; "never" and "broken" are not.
    fn judge_refusal(&self, what: &str, fault: &Fault) {
        self.recorder.refused(fault.code, &format!("{what}: {fault}"));
        match fault.class {
            Class::Retry | Class::Unknown | Class::Exhausted => {}
            Class::Reject | Class::NotFound | Class::Corrupt | Class::Bug => {
                self.recorder.broken(format!("{what} was refused for good: {} {fault}", fault.code));
            }
        }
    }
}

async fn coordinate(mut upload: Upload, bytes: Bytes) -> Result<Acked, Fault> {
    upload.write(bytes).await.map_err(|fault| match fault.class {
        // Nothing was sealed: it is certain that nothing will be seen.
        Class::Unknown => Fault { class: Class::Retry, ..fault },
        _ => fault,
    })?;
    let stored = upload.finish().await?;
    Ok(Acked { receipt: stored.receipt, signed: stored.signed, first: stored.first, attempts: 1 })
}

/// Reads the whole, or a part that `wish` decides, and compares every byte with what was written. Returns what was found,
/// and how many bytes were the same.
pub(crate) async fn read(client: &Client, recorder: &Recorder, query: GetQuery, wish: Option<u64>) -> (Answer, u64) {
    let key = query.key.to_string();
    let whole = query.clone();
    let mut query = query;
    if let Some(wish) = wish {
        query.offset_bytes = wish % 900;
        query.len_bytes = Some(wish / 900 % 100_000);
    }
    let (offset, len) = (query.offset_bytes, query.len_bytes);
    let reading = match client.get(query).await {
        Ok(reading) => reading,
        // It is shorter than that: then all of it.
        Err(fault) if fault.code == "PV-RANGE" && wish.is_some() => {
            return Box::pin(read(client, recorder, whole, None)).await;
        }
        Err(fault) => return (missed(recorder, &key, &fault), 0),
    };
    let sealed = reading.sealed().clone();
    let bytes = match reading.bytes().await {
        Ok(bytes) => bytes,
        // Deleted and swept after it was looked up: nothing was learned.
        Err(fault) if fault.class == Class::NotFound => return (Answer::Unknown, 0),
        Err(fault) => return (missed(recorder, &key, &fault), 0),
    };
    let Some(content) = recorder.content(&sealed.seal.digest.to_string()) else {
        recorder
            .broken(format!("{key} version {} has content that nobody wrote: {}", sealed.version, sealed.seal.digest));
        return (found(&sealed), 0);
    };
    let written = content.bytes();
    let from = usize::try_from(offset).unwrap_or(usize::MAX).min(written.len());
    let to = len.map_or(written.len(), |len| {
        written.len().min(from.saturating_add(usize::try_from(len).unwrap_or(usize::MAX)))
    });
    if bytes != written.slice(from..to) {
        recorder.broken(format!("{key} version {}: bytes {from}..{to} are not those written", sealed.version));
        return (found(&sealed), 0);
    }
    (found(&sealed), bytes.len() as u64)
}

fn missed(recorder: &Recorder, key: &str, fault: &Fault) -> Answer {
    match fault.class {
        Class::NotFound => Answer::Missing,
        Class::Retry | Class::Unknown | Class::Exhausted => Answer::Unknown,
        // A range beyond the end of the content that is there now.
        Class::Reject if fault.code == "PV-RANGE" => Answer::Unknown,
        Class::Reject | Class::Corrupt | Class::Bug => {
            recorder.broken(format!("reading {key} was refused for good: {} {fault}", fault.code));
            Answer::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_runs_of_one_seed_share_no_study() {
        let study = |name: String| name.split('/').next().map(str::to_owned);
        for names in [[own_name(7, 1, 9), own_name(8, 1, 9)], [hot_name(7, 0, 3), hot_name(8, 0, 3)]] {
            let [one, other] = names.map(study);
            assert_ne!(one, other);
        }
        for name in [own_name(u64::MAX, 12, 123_456), own_name(0, 1, 9), hot_name(u64::MAX, 9_999, 5)] {
            format!("main/{name}").parse::<ObjectKey>().expect("a key");
        }
    }

    #[tokio::test]
    async fn a_session_that_broke_off_or_hangs_is_told() {
        let load = |workers| Load { over: Arc::default(), workers };
        assert_eq!(load(vec![tokio::spawn(async {})]).stop(Duration::from_secs(1)).await.as_deref(), Ok("1 sessions"));
        let broken = tokio::spawn(async { panic!("as a session may") });
        let hung = tokio::spawn(std::future::pending());
        let why =
            load(vec![tokio::spawn(async {}), broken, hung]).stop(Duration::from_millis(50)).await.expect_err("lost");
        assert!(why.contains("session 2 broke off") && why.contains("session 3 did not end"), "{why}");
    }
}
