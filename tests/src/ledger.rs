//! What was promised, by key, and whether the cluster keeps it.
//!
//! **Invariants.** An attempt is written down before it is sent and judged after its answer, so whatever a crash of the
//! cluster leaves, the ledger knows every content that may exist. Content follows from its seed; only seeds are kept.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::{StreamExt, stream};
use pacsvault_client::{Acked, Client, receipt};
use pacsvault_coordinator::{GetQuery, ShardFinding};
use pacsvault_core::ids::{Digest, InstanceId, ObjectKey, Uid, VersionNumber};
use pacsvault_ports::peer::{Class, Fault};
use rand::{RngCore, SeedableRng, rngs::StdRng};

/// Keys checked at once.
const CHECKS_AT_ONCE: usize = 6;
/// Of every so many keys, one has all its shards re-read and proven too.
const SHARDS_OF_EVERY: usize = 4;

/// Content that can be made again at any time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content {
    /// Decides the bytes.
    pub seed: u64,
    /// How many.
    pub size_bytes: usize,
    /// Their BLAKE3.
    pub digest: Digest,
}

impl Content {
    /// Content and its bytes.
    pub fn draw(seed: u64, size_bytes: usize) -> (Self, Bytes) {
        let bytes = bytes_of(seed, size_bytes);
        (Self { seed, size_bytes, digest: Digest::of(&bytes) }, bytes)
    }

    /// The bytes, made again.
    pub fn bytes(&self) -> Bytes {
        bytes_of(self.seed, self.size_bytes)
    }
}

fn bytes_of(seed: u64, size_bytes: usize) -> Bytes {
    let mut bytes = vec![0; size_bytes];
    StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes.into()
}

/// What became of an attempt to write.
#[derive(Debug, Clone)]
pub enum Fate {
    /// Sent, not answered yet.
    Pending,
    /// Acknowledged: this version, with this signed receipt.
    Acked(VersionNumber, Vec<u8>),
    /// It may be stored or not, but whole if at all.
    Doubtful,
    /// Said to have stored nothing.
    Failed(String),
}

/// What became of a wish to delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deletion {
    /// Never wished.
    None,
    /// Sent; it may have happened.
    Begun,
    /// Acknowledged.
    Done,
}

/// All that was done to one key, in order.
#[derive(Debug, Clone)]
pub struct Record {
    /// Attempts to write.
    pub attempts: Vec<(Content, Fate)>,
    /// Whether it was deleted.
    pub deletion: Deletion,
}

impl Record {
    /// Acknowledged contents with their versions and receipts.
    pub fn acked(&self) -> impl Iterator<Item = (&Content, VersionNumber, &[u8])> {
        self.attempts.iter().filter_map(|(content, fate)| match fate {
            Fate::Acked(version, signed) => Some((content, *version, signed.as_slice())),
            Fate::Pending | Fate::Doubtful | Fate::Failed(_) => None,
        })
    }

    /// True while every attempt was acknowledged and no deletion was wished: the newest content is certain.
    pub fn certain(&self) -> bool {
        self.deletion == Deletion::None && self.acked().count() == self.attempts.len()
    }
}

/// The promises of one scenario.
#[derive(Debug, Default)]
pub struct Ledger {
    records: Mutex<BTreeMap<ObjectKey, Record>>,
    violations: Mutex<Vec<String>>,
}

/// What a check of the whole ledger covered.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Checked {
    /// Acknowledged versions read back and compared.
    pub versions: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Receipts proven offline.
    pub receipts: usize,
    /// Doubtful attempts that turned out stored.
    pub doubtful_stored: usize,
    /// Shards proven one by one.
    pub shards: usize,
}

impl Ledger {
    fn records(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes down an attempt that is about to be sent.
    pub fn begin(&self, key: &ObjectKey, content: Content) {
        let mut records = self.records();
        let fresh = Record { attempts: Vec::new(), deletion: Deletion::None };
        records.entry(key.clone()).or_insert(fresh).attempts.push((content, Fate::Pending));
    }

    /// Judges the newest attempt on `key` by its answer.
    pub fn conclude(&self, key: &ObjectKey, answer: Result<&Acked, &Fault>) {
        let mut records = self.records();
        let record = records.get_mut(key).expect("it was begun");
        let (content, fate) = record.attempts.last_mut().expect("it was begun");
        *fate = match answer {
            Ok(acked) => {
                if acked.receipt.digest != content.digest || acked.receipt.key != *key {
                    self.violation(format!("{key}: the receipt is of other content: {}", acked.receipt));
                }
                Fate::Acked(acked.receipt.version, acked.signed.clone())
            }
            Err(fault) if fault.class == Class::Unknown => Fate::Doubtful,
            Err(fault) => Fate::Failed(format!("{}: {fault}", fault.code)),
        };
    }

    /// Writes down that `key` is about to be deleted; false when it is not certain what that would mean.
    pub fn begin_deletion(&self, key: &ObjectKey) -> bool {
        let mut records = self.records();
        let Some(record) = records.get_mut(key).filter(|record| record.certain()) else { return false };
        record.deletion = Deletion::Begun;
        true
    }

    /// The deletion was acknowledged.
    pub fn deleted(&self, key: &ObjectKey) {
        if let Some(record) = self.records().get_mut(key) {
            record.deletion = Deletion::Done;
        }
    }

    /// The record of a key as it is now.
    pub fn record(&self, key: &ObjectKey) -> Option<Record> {
        self.records().get(key).cloned()
    }

    /// A key with its newest content and the signed receipt of that, when it is certain: the one at or after a random position.
    pub fn pick(&self, random: u64) -> Option<(ObjectKey, Content, Vec<u8>)> {
        let records = self.records();
        let start = usize::try_from(random).unwrap_or(0) % records.len().max(1);
        let around = records.iter().skip(start).chain(records.iter().take(start));
        let mut certain = around.filter(|(_, record)| record.certain());
        let (key, record) = certain.next()?;
        let (content, _, signed) = record.acked().last()?;
        Some((key.clone(), *content, signed.to_vec()))
    }

    /// Instances that must be stored, with size and digest, as their receipts say: those of keys nobody wished to delete.
    pub fn promised(&self, ca_pem: &str) -> anyhow::Result<BTreeMap<InstanceId, (u64, Digest)>> {
        let mut promised = BTreeMap::new();
        for record in self.records().values().filter(|record| record.deletion == Deletion::None) {
            for (_, _, signed) in record.acked() {
                let (receipt, _) = receipt::prove(signed, ca_pem)?;
                promised.insert(receipt.instance, (receipt.size_bytes, receipt.digest));
            }
        }
        Ok(promised)
    }

    /// How many versions are acknowledged.
    pub fn acked(&self) -> usize {
        self.records().values().map(|record| record.acked().count()).sum()
    }

    /// Notes a broken promise.
    pub fn violation(&self, what: String) {
        eprintln!("VIOLATION {what}");
        self.violations.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// Fails when a promise was broken.
    pub fn judge(&self) -> anyhow::Result<()> {
        let violations = self.violations.lock().unwrap_or_else(PoisonError::into_inner);
        anyhow::ensure!(violations.is_empty(), "{} promises broken, first: {}", violations.len(), violations[0]);
        Ok(())
    }

    /// Re-reads everything that was acknowledged, proves every receipt, looks at what was not acknowledged, and proves
    /// shards one by one: for a cluster whose nodes are all there. `clients` take turns.
    pub async fn check(&self, clients: &[Client], ca_pem: &str) -> anyhow::Result<Checked> {
        self.check_all(clients, ca_pem, SHARDS_OF_EVERY).await
    }

    /// [`Ledger::check`] without the single shards: for a cluster with nodes away.
    pub async fn check_reads(&self, clients: &[Client], ca_pem: &str) -> anyhow::Result<Checked> {
        self.check_all(clients, ca_pem, usize::MAX).await
    }

    async fn check_all(&self, clients: &[Client], ca_pem: &str, shards_of_every: usize) -> anyhow::Result<Checked> {
        let records: Vec<(ObjectKey, Record)> =
            self.records().iter().map(|(key, record)| (key.clone(), record.clone())).collect();
        let checks = stream::iter(records.into_iter().enumerate()).map(|(index, (key, record))| async move {
            let client = &clients[index % clients.len()];
            let mut checked = check_key(client, ca_pem, &key, &record).await.unwrap_or_else(|why| {
                self.violation(format!("{key}: {why}"));
                Checked::default()
            });
            if index % shards_of_every == shards_of_every - 1 && record.certain() {
                checked.shards = check_shards(client, &key).await.unwrap_or_else(|why| {
                    self.violation(format!("{key}: {why}"));
                    0
                });
            }
            checked
        });
        let all: Vec<Checked> = checks.buffer_unordered(CHECKS_AT_ONCE).collect().await;
        self.check_listing(&clients[0]).await?;
        let mut sum = Checked::default();
        for one in all {
            sum.versions += one.versions;
            sum.bytes += one.bytes;
            sum.receipts += one.receipts;
            sum.doubtful_stored += one.doubtful_stored;
            sum.shards += one.shards;
        }
        eprintln!("checked {sum:?}");
        self.judge()?;
        Ok(sum)
    }

    /// Listings show all that must be there and nothing that must not.
    async fn check_listing(&self, client: &Client) -> anyhow::Result<()> {
        let records = self.records().clone();
        let studies: BTreeSet<Uid> = records.keys().map(|key| key.study.clone()).collect();
        let mut listed = BTreeSet::new();
        for study in studies {
            let mut token = Vec::new();
            loop {
                let page = client.list(Some(study.clone()), None, token).await?;
                listed.extend(page.instances.into_iter().map(|sealed| sealed.seal.key));
                token = page.next_page_token;
                if token.is_empty() {
                    break;
                }
            }
        }
        for (key, record) in &records {
            let shown = listed.contains(key);
            let may = record.attempts.iter().any(|(_, fate)| !matches!(fate, Fate::Failed(_)));
            let must = record.deletion == Deletion::None && record.acked().next().is_some();
            if must && !shown {
                self.violation(format!("{key} is acknowledged and not listed"));
            }
            if shown && (!may || record.deletion == Deletion::Done) {
                self.violation(format!("{key} is listed, but {record:?}"));
            }
        }
        for key in listed.iter().filter(|key| !records.contains_key(*key)) {
            self.violation(format!("{key} is listed and was never written"));
        }
        Ok(())
    }
}

/// Reads a whole version and returns its digest and size; an error when it is damaged or away, `None` when not stored.
async fn read(
    client: &Client,
    key: &ObjectKey,
    version: Option<VersionNumber>,
) -> Result<Option<(Digest, u64)>, String> {
    let query = GetQuery { version, ..GetQuery::whole(key.clone()) };
    let mut reading = match client.get(query).await {
        Ok(reading) => reading,
        Err(fault) if fault.class == Class::NotFound => return Ok(None),
        Err(fault) => return Err(format!("cannot be read: {} {fault}", fault.code)),
    };
    let (mut hasher, mut size) = (blake3::Hasher::new(), 0);
    while let Some(piece) = reading.next().await {
        let piece = piece.map_err(|fault| format!("cannot be read to its end: {} {fault}", fault.code))?;
        hasher.update(&piece);
        size += piece.len() as u64;
    }
    Ok(Some((Digest(*hasher.finalize().as_bytes()), size)))
}

async fn check_key(client: &Client, ca_pem: &str, key: &ObjectKey, record: &Record) -> Result<Checked, String> {
    let mut checked = Checked::default();
    for (content, version, signed) in record.acked() {
        check_receipt(ca_pem, key, content, version, signed)?;
        checked.receipts += 1;
        let found = read(client, key, Some(version)).await?;
        let wanted = Some((content.digest, content.size_bytes as u64));
        match record.deletion {
            Deletion::None if found == wanted => {
                checked.versions += 1;
                checked.bytes += content.size_bytes as u64;
            }
            Deletion::Begun if found.is_none() || found == wanted => {}
            Deletion::Done if found.is_none() => {}
            state => return Err(format!("version {version} ({state:?}) is {found:?} instead of {wanted:?}")),
        }
    }
    // The newest, whatever it is, must be a whole content that someone sent and that was not said to have failed.
    let newest = read(client, key, None).await?;
    let mut candidates = record.attempts.iter().filter(|(_, fate)| !matches!(fate, Fate::Failed(_)));
    let matched = candidates.rfind(|(content, _)| newest == Some((content.digest, content.size_bytes as u64)));
    match (&newest, matched) {
        (Some(_), None) => return Err(format!("shows {newest:?}, which is not among {:?}", record.attempts)),
        (Some(_), Some((_, Fate::Doubtful | Fate::Pending))) => checked.doubtful_stored += 1,
        (None, _) if record.deletion == Deletion::None && record.acked().next().is_some() => {
            return Err("is acknowledged and not found".to_owned());
        }
        _ => {}
    }
    Ok(checked)
}

fn check_receipt(
    ca: &str,
    key: &ObjectKey,
    content: &Content,
    version: VersionNumber,
    signed: &[u8],
) -> Result<(), String> {
    let (receipt, _) = receipt::prove(signed, ca).map_err(|error| format!("its receipt proves nothing: {error}"))?;
    let fits = receipt.key == *key
        && receipt.version == version
        && receipt.digest == content.digest
        && receipt.size_bytes == content.size_bytes as u64
        && !receipt.survives.is_empty();
    if fits { Ok(()) } else { Err(format!("its receipt says something else: {receipt}")) }
}

/// What was persisted when the write was sealed must be there, proven, now that all nodes are.
async fn check_shards(client: &Client, key: &ObjectKey) -> Result<usize, String> {
    let found = client.lookup(key, None).await.map_err(|fault| fault.to_string())?;
    let checks = client.verify(&found).await.map_err(|fault| fault.to_string())?;
    for check in &checks {
        match &check.finding {
            ShardFinding::Proven | ShardFinding::Missing => {}
            ShardFinding::Away(why) | ShardFinding::Damaged(why) => {
                return Err(format!("shard {} of stripe {} on {:?}: {why}", check.shard, check.stripe, check.node));
            }
        }
    }
    Ok(checks.iter().filter(|check| check.finding == ShardFinding::Proven).count())
}

/// A range to read of `size_bytes`, perhaps empty, perhaps beyond the end.
pub fn range(size_bytes: usize, random: &mut impl RngCore) -> Range<usize> {
    let draw = |random: &mut dyn RngCore, most: usize| usize::try_from(random.next_u64()).unwrap_or(0) % (most + 1);
    let start = draw(random, size_bytes);
    let len = draw(random, size_bytes - start);
    start..start + len
}
