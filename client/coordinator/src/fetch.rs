//! One stripe on its way to a reader: which shards to ask for, in which order, what to do when one is slow or bad.
//!
//! **Invariants.** Bytes returned come only from shards that were proven: whole shards by their Merkle path to the root in
//! the catalog, parts by the CRC32C of their chunks. `k` proven shards (or the data shards wanted) end the fetch. Calls that
//! were not waited for run on until they end, so that slow and silent nodes are known the next time; each holds the
//! fetch's working memory.

use std::{
    collections::{BTreeSet, VecDeque},
    ops::Range,
    sync::Arc,
};

use bytes::Bytes;
use futures::{StreamExt, channel::oneshot, future::Either, stream::FuturesUnordered};
use pacsvault_core::{
    catalog::{SealedInstance, StripeSeal},
    checksum,
    codec::Coder,
    ids::{Digest, ShardIndex, StripeIndex, VolumeId},
    layout::{Layout, profile::Code},
    limits::CHUNK_BYTES,
    merkle,
    shard::{ShardHeader, ShardId},
};
use pacsvault_ports::{
    BoxFuture,
    peer::{Class, Fault, GetShard, Reply, Request, ShardData},
};

use crate::{
    cluster::{Cluster, target_of},
    memory::ReadHold,
    unexpected,
};

/// What is wanted of one stripe.
pub struct Wanted<'a> {
    pub sealed: &'a SealedInstance,
    pub stripe: StripeIndex,
    /// Content bytes within the stripe.
    pub range: Range<u64>,
    /// Memory besides the content's, kept by every call until it ends.
    pub work: Arc<ReadHold>,
}

/// Which shards, and how much of each, would do: all of `data`, or any `k`.
pub struct Goal<'a> {
    pub sealed: &'a SealedInstance,
    pub stripe: StripeIndex,
    /// Data shards; all `k` of them when none is better than any other shard.
    pub data: Vec<u8>,
    /// Bytes of each shard: the same of all.
    pub columns: Range<u64>,
    /// Shards not to be asked for.
    pub exclude: &'a BTreeSet<ShardIndex>,
    /// Memory kept by every call until it ends.
    pub work: Arc<ReadHold>,
}

impl Goal<'_> {
    fn seal(&self) -> &StripeSeal {
        &self.sealed.seal.stripes[self.stripe.0 as usize]
    }
}

/// Part of a shard, `columns` of it, aligned to chunks (except at the shard's end).
pub struct Part {
    pub shard: ShardIndex,
    pub data: Bytes,
}

/// A stripe could not be read.
pub struct Unread {
    pub fault: Fault,
    /// A volume does not hold what the record says, so the record may be out of date.
    pub outdated: bool,
}

impl From<Fault> for Unread {
    fn from(fault: Fault) -> Self {
        Self { fault, outdated: false }
    }
}

/// Fetches `wanted.range` of the stripe's content, in order.
pub async fn fetch(cluster: &Arc<Cluster>, wanted: &Wanted<'_>) -> Result<Vec<Bytes>, Unread> {
    let code = wanted.sealed.seal.code;
    let stripe = &wanted.sealed.seal.stripes[wanted.stripe.0 as usize];
    if wanted.range.is_empty() {
        return Ok(Vec::new());
    }
    let shard_bytes = code.shard_bytes(stripe.stripe_bytes);
    let first = wanted.range.start / shard_bytes;
    let last = (wanted.range.end - 1) / shard_bytes;
    let columns = if first == last {
        aligned(wanted.range.start - first * shard_bytes..wanted.range.end - first * shard_bytes, shard_bytes)
    } else {
        0..shard_bytes
    };
    let layout = cluster.layout().await?;
    let goal = Goal {
        sealed: wanted.sealed,
        stripe: wanted.stripe,
        data: (0..code.data_u8()).filter(|index| (first..=last).contains(&u64::from(*index))).collect(),
        columns: columns.clone(),
        exclude: &BTreeSet::new(),
        work: wanted.work.clone(),
    };
    let parts = gather(cluster, &layout, &goal).await?;
    let data = restore(&cluster.coder(code), parts, &goal.data)?;
    let mut pieces = Vec::with_capacity(data.len());
    for (index, bytes) in data {
        let starts = u64::from(index) * shard_bytes + columns.start;
        let from = wanted.range.start.max(starts) - starts;
        let to = wanted.range.end.min(starts + bytes.len() as u64).saturating_sub(starts);
        if from < to {
            pieces.push(bytes.slice(to_usize(from)..to_usize(to)));
        }
    }
    Ok(pieces)
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("a position inside a shard held in memory fits")
}

fn aligned(range: Range<u64>, shard_bytes: u64) -> Range<u64> {
    let chunk = CHUNK_BYTES as u64;
    range.start / chunk * chunk..(range.end.div_ceil(chunk) * chunk).min(shard_bytes)
}

/// The wanted data shards (their `columns`), rebuilt where they are missing.
fn restore(coder: &Coder, parts: Vec<Part>, wanted: &[u8]) -> Result<Vec<(u8, Bytes)>, Fault> {
    let mut shards: Vec<Option<Bytes>> = vec![None; coder.code().total()];
    for part in parts {
        shards[usize::from(part.shard.0)] = Some(part.data);
    }
    let lost: Vec<ShardIndex> =
        wanted.iter().filter(|index| shards[usize::from(**index)].is_none()).map(|index| ShardIndex(*index)).collect();
    if !lost.is_empty() {
        pacsvault_core::sometimes!("recovery: read decoded from parity");
        let rebuilt = coder
            .rebuild(&shards, &lost)
            .map_err(|error| Fault::new(Class::Bug, "PV-BUG", format!("cannot decode proven shards: {error}")))?;
        for (index, data) in lost.iter().zip(rebuilt) {
            shards[usize::from(index.0)] = Some(data);
        }
    }
    let take = |index: &u8| shards[usize::from(*index)].clone().map(|data| (*index, data));
    Ok(wanted.iter().filter_map(take).collect())
}

/// Candidates in the order in which to ask them.
fn candidates(cluster: &Cluster, layout: &Layout, goal: &Goal<'_>) -> VecDeque<ShardIndex> {
    let stripe = goal.seal();
    let whole = goal.data.len() == goal.sealed.seal.code.data();
    let suspects = cluster.suspects();
    let rank = |index: u8| {
        let volume = stripe.placement[usize::from(index)];
        let node = layout.node_of(volume);
        let away = !layout.counts(volume) || node.is_none_or(|node| suspects.contains_key(&node.id));
        let near = node.is_some_and(|node| Some(&node.site) == cluster.options.site.as_ref());
        let is_wanted = goal.data.contains(&index);
        // A part of one shard is cheapest from that shard; a whole stripe from wherever is near.
        if whole { (away, !near, !is_wanted, index) } else { (away, !is_wanted, !near, index) }
    };
    let total = u8::try_from(stripe.placement.len()).unwrap_or(u8::MAX);
    let asked = |index: &u8| stripe.persisted & (1 << index) != 0 && !goal.exclude.contains(&ShardIndex(*index));
    let mut order: Vec<u8> = (0..total).filter(asked).collect();
    order.sort_by_key(|index| rank(*index));
    order.into_iter().map(ShardIndex).collect()
}

/// Fetches until all of `goal.data` or any `k` parts are here. Slow ones are hedged, bad ones replaced.
pub async fn gather(cluster: &Arc<Cluster>, layout: &Arc<Layout>, goal: &Goal<'_>) -> Result<Vec<Part>, Unread> {
    let (stripe, k) = (goal.seal(), goal.sealed.seal.code.data());
    let mut queue = candidates(cluster, layout, goal);
    let mut calls = FuturesUnordered::new();
    let mut parts: Vec<Part> = Vec::with_capacity(k);
    let mut faults = Faults::default();
    let mut delay = cluster.options.hedge_after;
    let ask = |shard: ShardIndex| begin(cluster, layout, goal, shard);
    // When a wanted part lies on a volume that is away, only `k` parts can end the fetch.
    let direct = queue.iter().take(goal.data.len()).all(|shard| goal.data.contains(&shard.0));
    for shard in take(&mut queue, if direct { goal.data.len() } else { k }) {
        if let Some(node) = layout.node_of(stripe.placement[usize::from(shard.0)]) {
            delay = delay.min(cluster.hedge_delay(node.id));
        }
        calls.push(ask(shard));
    }
    // Once one wanted part fails or is slow, only `k` parts can end the fetch.
    let mut hedge = Some(cluster.env.sleep(delay));
    loop {
        let enough = parts.len() >= k || goal.data.iter().all(|index| parts.iter().any(|part| part.shard.0 == *index));
        if enough {
            return Ok(parts);
        }
        let next = match hedge.take() {
            None => calls.next().await,
            Some(pause) if queue.is_empty() => {
                drop(pause);
                calls.next().await
            }
            Some(pause) => match futures::future::select(calls.next(), pause).await {
                Either::Left((next, pause)) => {
                    hedge = Some(pause);
                    next
                }
                Either::Right(((), _)) => {
                    pacsvault_core::sometimes!("recovery: slow read hedged");
                    // One more than would do if all answered: the slowest is written off.
                    let missing = (k + 1).saturating_sub(parts.len() + calls.len()).max(1);
                    for shard in take(&mut queue, missing) {
                        calls.push(ask(shard));
                    }
                    hedge = Some(cluster.env.sleep(cluster.options.hedge_after));
                    continue;
                }
            },
        };
        match next {
            Some((shard, _, Ok(data))) => parts.push(Part { shard, data }),
            Some((shard, volume, Err(fault))) => {
                tracing::warn!(stripe = %goal.stripe, %shard, %volume, code = fault.code, reason = %fault, "shard unreadable; decoding around it");
                pacsvault_core::sometimes!("recovery: read went around a shard that failed");
                faults.note(shard, &fault);
                let missing = k.saturating_sub(parts.len() + calls.len());
                for shard in take(&mut queue, missing) {
                    calls.push(ask(shard));
                }
            }
            None if queue.is_empty() => return Err(faults.end(goal, parts.len())),
            None => {
                let missing = k.saturating_sub(parts.len());
                for shard in take(&mut queue, missing) {
                    calls.push(ask(shard));
                }
            }
        }
    }
}

fn take(queue: &mut VecDeque<ShardIndex>, count: usize) -> Vec<ShardIndex> {
    queue.drain(..count.min(queue.len())).collect()
}

/// What became of one question: which shard, which volume, and its bytes.
type Answer = (ShardIndex, VolumeId, Result<Bytes, Fault>);

/// Asks for one shard. The call runs on by itself, so that a volume that times out is noticed although the stripe was
/// long read without it.
fn begin(
    cluster: &Arc<Cluster>,
    layout: &Arc<Layout>,
    goal: &Goal<'_>,
    shard: ShardIndex,
) -> BoxFuture<'static, Answer> {
    let volume = goal.seal().placement[usize::from(shard.0)];
    let whole = Question::whole(goal.sealed, goal.stripe, shard, volume);
    let question = Question { columns: goal.columns.clone(), ..whole };
    let (done, answer) = oneshot::channel();
    let (task_cluster, layout, work) = (cluster.clone(), layout.clone(), goal.work.clone());
    cluster.env.spawn(Box::pin(async move {
        let result = question.ask(&task_cluster, &layout).await;
        if let Err(fault) = &result {
            task_cluster.note_failure(&layout, volume, fault);
        }
        // The fetch may have ended without this one.
        let _ = done.send(result.map(|(_, data)| data));
        drop(work);
    }));
    let stopping = |_| Err(Fault::new(Class::Retry, "PV-STOPPING", "this process is stopping; read again elsewhere"));
    Box::pin(async move { (shard, volume, answer.await.unwrap_or_else(stopping)) })
}

/// What went wrong with one stripe.
#[derive(Default)]
struct Faults {
    told: Vec<String>,
    outdated: bool,
}

impl Faults {
    fn note(&mut self, shard: ShardIndex, fault: &Fault) {
        self.outdated |= fault.class == Class::NotFound;
        self.told.push(format!("shard {shard}: {fault}"));
    }

    fn end(self, goal: &Goal<'_>, have: usize) -> Unread {
        let text = format!(
            "stripe {} of {} needs {} shards and only {have} could be read now ({}); nothing is lost while the others are \
             only away: bring their nodes back and read again",
            goal.stripe,
            goal.sealed.seal.key,
            goal.sealed.seal.code.data(),
            self.told.join("; ")
        );
        // PLANTED BUG: content whose holders have lost it was never there.
        if self.outdated && pacsvault_core::probe::planted("lost-told-missing") {
            return Unread { fault: Fault::new(Class::NotFound, "PV-NOT-FOUND", text), outdated: self.outdated };
        }
        Unread { fault: Fault::new(Class::Retry, "PV-UNREADABLE", text), outdated: self.outdated }
    }
}

/// One question to one volume, and the proof of its answer.
pub struct Question {
    pub id: ShardId,
    pub volume: VolumeId,
    pub root: Digest,
    pub columns: Range<u64>,
    pub code: Code,
    /// As the catalog has it: what a header says of it is not covered by the proof.
    pub stripe_bytes: u64,
}

impl Question {
    /// All of `shard`, asked of `volume`.
    pub fn whole(sealed: &SealedInstance, stripe: StripeIndex, shard: ShardIndex, volume: VolumeId) -> Self {
        let seal = &sealed.seal.stripes[stripe.0 as usize];
        let code = sealed.seal.code;
        Self {
            id: ShardId { instance: sealed.seal.instance, stripe, shard },
            volume,
            root: seal.shard_root,
            columns: 0..code.shard_bytes(seal.stripe_bytes),
            code,
            stripe_bytes: seal.stripe_bytes,
        }
    }

    /// Asks and proves. The bytes are exactly `columns` of the shard.
    pub async fn ask(&self, cluster: &Cluster, layout: &Layout) -> Result<(ShardHeader, Bytes), Fault> {
        // The record may be newer than the layout, or name what was removed since.
        let node = layout.node_of(self.volume).ok_or_else(|| {
            let text = format!("volume {} is not in layout {}", self.volume, layout.version);
            Fault::new(Class::NotFound, "PV-NO-VOLUME", text)
        })?;
        let request = Request::GetShard(GetShard {
            volume: self.volume,
            id: self.id,
            offset_bytes: self.columns.start,
            len_bytes: self.columns.end - self.columns.start,
            background: cluster.options.background,
        });
        let began = cluster.env.now();
        let reply = cluster.peer.call(&target_of(node), request, cluster.options.shard_deadline).await?;
        cluster.note_latency(node.id, cluster.env.now().0.saturating_sub(began.0));
        match reply {
            Reply::Shard(shard) => self.prove(*shard),
            other => Err(unexpected(&other)),
        }
    }

    fn prove(&self, shard: ShardData) -> Result<(ShardHeader, Bytes), Fault> {
        let ShardData { header, offset_bytes, data } = shard;
        let wrong = |what: &str| {
            let text = format!("volume {} sent {what} for shard {}; reading around it", self.volume, self.id);
            Fault::new(Class::Corrupt, "PV-CORRUPT", text)
        };
        if header.id != self.id || header.code != self.code || header.stripe_bytes != self.stripe_bytes {
            return Err(wrong("another shard"));
        }
        if !proven_header(&header, &self.root) {
            return Err(wrong("a header that does not lead to the root in the catalog"));
        }
        let shard_bytes = self.code.shard_bytes(self.stripe_bytes);
        if offset_bytes != self.columns.start || data.len() as u64 != self.columns.end - self.columns.start {
            return Err(wrong("another range"));
        }
        let whole = offset_bytes == 0 && data.len() as u64 == shard_bytes;
        let proven = if whole {
            Digest::of(&data) == header.digest
        } else {
            let first_chunk = to_usize(offset_bytes) / CHUNK_BYTES;
            checksum::verify_chunks(&data, first_chunk, &header.chunk_crcs).is_ok()
        };
        // PLANTED BUG: whoever sends bytes has looked at them.
        let proven = proven || pacsvault_core::probe::planted("unverified-read");
        if proven { Ok((header, data)) } else { Err(wrong("damaged bytes")) }
    }
}

fn proven_header(header: &ShardHeader, root: &Digest) -> bool {
    merkle::verify(*root, header.digest, header.id.shard, header.code.total(), &header.merkle_path)
}
