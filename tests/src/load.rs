//! Writers and readers that keep a cluster busy while disaster strikes, and keep the ledger.
//!
//! **Invariants.** A key is written by one writer only, one attempt after the other. Choices of each worker follow from the
//! seed and its number; only timing is left to chance.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::bail;
use pacsvault_client::{Client, Source};
use pacsvault_coordinator::{GetQuery, PutHeader};
use pacsvault_core::{catalog::command::Attribute, ids::ObjectKey, receipt::Receipt};
use pacsvault_ports::peer::{Class, Fault, Freshness, Reply, Request};
use pacsvault_security::SignedReceipt;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng};
use tokio::{runtime::Runtime, task::JoinHandle};

use crate::ledger::{self, Content, Ledger};

/// Largest ordinary content.
const SIZE_BYTES_MAX: usize = 3 << 20;
/// The occasional large one: three stripes.
const LARGE_BYTES: usize = 40 << 20;

/// How many workers, and what they write.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Tasks that write.
    pub writers: u64,
    /// Tasks that read.
    pub readers: u64,
    /// Of a thousand writes, how many are of 40 MiB.
    pub large_per_mille: u32,
    /// Content bytes after which writers only repeat, overwrite little and delete.
    pub bytes_max: u64,
    /// Bytes of DICOM attributes of each write: what fills logs and catalogs.
    pub attributes_bytes: usize,
}

impl Default for Shape {
    fn default() -> Self {
        let bytes_max = if crate::long() { 16 << 30 } else { 768 << 20 };
        Self { writers: 4, readers: 2, large_per_mille: 8, bytes_max, attributes_bytes: 40 }
    }
}

/// Counts of a load.
#[derive(Debug, Default)]
struct Tally {
    acked: AtomicU64,
    bytes: AtomicU64,
    doubtful: AtomicU64,
    failed: AtomicU64,
    deleted: AtomicU64,
    repeated: AtomicU64,
    read: AtomicU64,
    reads_failed: AtomicU64,
    attempts: AtomicU64,
    longest_ms: AtomicU64,
}

impl Tally {
    fn add(&self, counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// A running load.
pub struct Load {
    ledger: Arc<Ledger>,
    tally: Arc<Tally>,
    over: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
}

struct Worker {
    number: u64,
    client: Client,
    ledger: Arc<Ledger>,
    tally: Arc<Tally>,
    over: Arc<AtomicBool>,
    random: StdRng,
    shape: Shape,
}

impl Load {
    /// Starts the workers; `clients` are dealt to them in turn. `label` keeps the keys of several loads apart.
    pub fn start(
        runtime: &Runtime,
        clients: &[Client],
        ledger: &Arc<Ledger>,
        shape: Shape,
        seed: u64,
        label: u64,
    ) -> Self {
        let (tally, over) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
        let mut workers = Vec::new();
        for number in 0..shape.writers + shape.readers {
            let turn = usize::try_from(number).unwrap_or(0) % clients.len();
            let worker = Worker {
                number: label * 1_000 + number,
                client: clients[turn].clone(),
                ledger: ledger.clone(),
                tally: tally.clone(),
                over: over.clone(),
                random: StdRng::seed_from_u64(seed ^ (label * 1_000 + number).wrapping_mul(0x9E37_79B9_7F4A_7C15)),
                shape,
            };
            let task =
                if number < shape.writers { runtime.spawn(worker.write()) } else { runtime.spawn(worker.read()) };
            workers.push(task);
        }
        Self { ledger: ledger.clone(), tally, over, workers }
    }

    /// Lets it run.
    pub fn run_for(&self, duration: Duration) {
        thread::sleep(duration);
    }

    /// Waits until `more` further writes are acknowledged; tells how long that took.
    pub fn until_acked(&self, more: usize, limit: Duration, when: &str) -> anyhow::Result<Duration> {
        let (began, wanted) = (Instant::now(), self.ledger.acked() + more);
        while self.ledger.acked() < wanted {
            if began.elapsed() > limit {
                bail!("no {more} writes were acknowledged within {} s {when}: {}", limit.as_secs(), self.summary());
            }
            thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{when}: {more} writes acknowledged after {} ms", began.elapsed().as_millis());
        Ok(began.elapsed())
    }

    /// Ends the load: what is under way is finished, nothing new is begun.
    pub fn stop(self, runtime: &Runtime, limit: Duration) -> anyhow::Result<()> {
        self.over.store(true, Ordering::Relaxed);
        let summary = self.summary();
        let ended =
            runtime.block_on(async { tokio::time::timeout(limit, futures::future::join_all(self.workers)).await });
        let Ok(ended) = ended else { bail!("workers did not end within {} s: {summary}", limit.as_secs()) };
        for end in ended {
            end?;
        }
        eprintln!("load: {}", summarise(&self.tally));
        self.ledger.judge()
    }

    fn summary(&self) -> String {
        summarise(&self.tally)
    }
}

fn summarise(tally: &Tally) -> String {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    format!(
        "{} writes acknowledged ({} MiB, {} attempts, slowest {} ms), {} doubtful, {} refused, {} repeated, {} deleted; \
         {} reads compared, {} reads refused",
        count(&tally.acked),
        count(&tally.bytes) >> 20,
        count(&tally.attempts),
        count(&tally.longest_ms),
        count(&tally.doubtful),
        count(&tally.failed),
        count(&tally.repeated),
        count(&tally.deleted),
        count(&tally.read),
        count(&tally.reads_failed)
    )
}

impl Worker {
    fn running(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    async fn write(mut self) {
        let mut own: Vec<ObjectKey> = Vec::new();
        let mut next = 0_u64;
        while self.running() {
            let old = match own.is_empty() {
                true => None,
                false => Some(own[self.random.random_range(0..own.len())].clone()),
            };
            match (self.random.random_range(0..100), old) {
                (0..8, Some(key)) => self.repeat(&key).await,
                (8..16, Some(key)) => self.overwrite(&key).await,
                (16..24, Some(key)) => self.delete(&key).await,
                _ => {
                    let key = self.key(next);
                    next += 1;
                    let size = self.size();
                    self.put(&key, size).await;
                    own.push(key);
                }
            }
            if self.tally.bytes.load(Ordering::Relaxed) > self.shape.bytes_max {
                // Enough is stored to be re-read; what follows is for the catalog.
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn key(&self, number: u64) -> ObjectKey {
        let study = format!("1.2.826.0.1.{}", self.number + 1);
        let text = match number % 10 {
            9 => format!("main/{study}/@/report {number}.txt"),
            _ => format!("main/{study}/1.2.826.0.2.{}/1.2.826.0.3.{number}", number / 40 + 1),
        };
        text.parse().expect("a valid key")
    }

    fn size(&mut self) -> usize {
        if self.tally.bytes.load(Ordering::Relaxed) > self.shape.bytes_max {
            return self.random.random_range(0..=1_024);
        }
        if self.random.random_range(0..1_000) < self.shape.large_per_mille {
            return LARGE_BYTES + self.random.random_range(0..=100);
        }
        match self.random.random_range(0..10) {
            0 => 0,
            1..=3 => self.random.random_range(1..=1_024),
            4..=6 => self.random.random_range(1_024..=256 << 10),
            _ => self.random.random_range(256 << 10..=SIZE_BYTES_MAX),
        }
    }

    async fn put(&mut self, key: &ObjectKey, size: usize) {
        let (content, bytes) = Content::draw(self.random.next_u64(), size);
        self.ledger.begin(key, content);
        let began = Instant::now();
        let mut header = PutHeader::new(key.clone(), "application/octet-stream");
        // Study Description (0008,1030).
        header.attributes = vec![Attribute { tag: 0x0008_1030, value: "x".repeat(self.shape.attributes_bytes) }];
        let answer = self.client.put(header, &Source::Bytes(bytes), &|_| {}).await;
        self.ledger.conclude(key, answer.as_ref());
        let tally = &self.tally;
        match answer {
            Ok(acked) => {
                tally.add(&tally.acked, 1);
                tally.add(&tally.bytes, size as u64);
                tally.add(&tally.attempts, acked.attempts.into());
                let took = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
                tally.longest_ms.fetch_max(took, Ordering::Relaxed);
            }
            Err(fault) if fault.class == Class::Unknown => tally.add(&tally.doubtful, 1),
            Err(fault) => {
                tally.add(&tally.failed, 1);
                self.judge_refusal(&format!("the write of {key}"), &fault);
            }
        }
    }

    /// The same content again: the same version, unless that one was acknowledged as degraded, or lost shards since that are
    /// not rebuilt yet; then it may be stored better.
    async fn repeat(&mut self, key: &ObjectKey) {
        let Some(record) = self.ledger.record(key).filter(ledger::Record::certain) else { return };
        let Some((content, version, signed)) = record.acked().last() else { return };
        let header = PutHeader::new(key.clone(), "application/octet-stream");
        if let Ok(acked) = self.client.put(header, &Source::Bytes(content.bytes()), &|_| {}).await {
            self.tally.add(&self.tally.repeated, 1);
            if acked.receipt.version == version && !acked.first {
                return;
            }
            let worth_less = receipt_of(signed).degraded || self.volumes_away().await;
            if !worth_less || acked.receipt.version < version {
                let again = acked.receipt.version;
                self.ledger.violation(format!("{key} version {version} written again became version {again}"));
            }
            self.ledger.begin(key, *content);
            self.ledger.conclude(key, Ok(&acked));
        }
    }

    /// True while the shards of some volume of a member do not count.
    async fn volumes_away(&self) -> bool {
        // The client's own copy of the layout may be older than what the log judged by.
        let fresh = Request::Layout(Freshness::Linearizable);
        let Ok(Reply::Layout(layout)) = self.client.coordinator().ask(&fresh).await else { return true };
        layout.volumes.keys().any(|volume| !layout.counts(*volume))
    }

    async fn overwrite(&mut self, key: &ObjectKey) {
        if !self.ledger.record(key).is_some_and(|record| record.certain()) {
            return;
        }
        let before = self.ledger.record(key).and_then(|record| record.acked().last().map(|(_, version, _)| version));
        let size = self.random.random_range(0..=64 << 10);
        self.put(key, size).await;
        let after = self.ledger.record(key).and_then(|record| record.acked().last().map(|(_, version, _)| version));
        if after < before {
            self.ledger.violation(format!("{key}: version {after:?} came after {before:?}"));
        }
    }

    async fn delete(&mut self, key: &ObjectKey) {
        if !self.ledger.begin_deletion(key) {
            return;
        }
        match self.client.coordinator().delete(key.clone(), None).await {
            Ok(_) => {
                self.ledger.deleted(key);
                self.tally.add(&self.tally.deleted, 1);
            }
            // A repetition after a lost answer finds what it did itself; the record stays "begun".
            Err(fault) if fault.class == Class::NotFound => {}
            Err(fault) => self.judge_refusal(&format!("the deletion of {key}"), &fault),
        }
    }

    async fn read(mut self) {
        while self.running() {
            let Some((key, content, signed)) = self.ledger.pick(self.random.next_u64()) else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let range = match self.random.random_range(0..2) {
                0 => 0..content.size_bytes,
                _ => ledger::range(content.size_bytes, &mut self.random),
            };
            // Another session's write is promised to those who name its index, as a receipt does.
            let freshness = Freshness::AtLeast(receipt_of(&signed).index);
            self.read_one(&key, content, freshness, range).await;
        }
    }

    async fn read_one(&self, key: &ObjectKey, content: Content, freshness: Freshness, range: std::ops::Range<usize>) {
        let query = GetQuery {
            freshness,
            offset_bytes: range.start as u64,
            len_bytes: Some((range.end - range.start) as u64),
            ..GetQuery::whole(key.clone())
        };
        let answer = match self.client.get(query).await {
            Ok(reading) => reading.bytes().await,
            Err(fault) => Err(fault),
        };
        // Overwritten or deleted meanwhile: then this read proves nothing.
        let unchanged = self.ledger.record(key).is_some_and(|record| {
            record.certain() && record.attempts.last().is_some_and(|(newest, _)| *newest == content)
        });
        match answer {
            Ok(bytes) if bytes == content.bytes().slice(range.clone()) => self.tally.add(&self.tally.read, 1),
            Ok(bytes) if unchanged => {
                self.ledger.violation(format!(
                    "{key} {range:?} of {} reads as {} other bytes",
                    content.size_bytes,
                    bytes.len()
                ));
            }
            Err(fault)
                if unchanged
                    && matches!(fault.class, Class::NotFound | Class::Corrupt | Class::Bug | Class::Reject) =>
            {
                self.ledger.violation(format!("{key} was acknowledged and is refused: {} {fault}", fault.code));
            }
            Ok(_) | Err(_) => self.tally.add(&self.tally.reads_failed, 1),
        }
    }

    /// In a disaster, "not now" and "perhaps" are fair answers; "never" and "broken" are not.
    fn judge_refusal(&self, what: &str, fault: &Fault) {
        match fault.class {
            Class::Retry | Class::Unknown | Class::Exhausted => {}
            Class::Reject | Class::NotFound | Class::Corrupt | Class::Bug => {
                self.ledger.violation(format!("{what} was refused for good: {} {fault}", fault.code));
            }
        }
    }
}

/// What a signed receipt says.
fn receipt_of(signed: &[u8]) -> Receipt {
    let signed = SignedReceipt::decode(signed).expect("an acknowledged receipt");
    Receipt::decode(&signed.payload).expect("an acknowledged receipt")
}
