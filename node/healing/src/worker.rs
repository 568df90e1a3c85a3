//! The worker: carries out one task on one stripe, wherever its bytes come from.
//!
//! **Invariants.**
//! - A shard is written to a new home only when its header leads to the stripe's root in the catalog; one that was made
//!   again, only when all `k + m` shards together give that root.
//! - The catalog hears of a new home only after that volume called this very shard durable.
//! - A stripe is worked on once at a time here. Bytes of all tasks together stay within [`MEMORY_BYTES`].
//! - Nothing is remembered: a task that is repeated begins anew and finds what the last try left.
//!
//! **A crash between any two steps** leaves one of two things. Before the reseat is applied: shards on volumes that the
//! catalog does not name for them. They are read by nobody, found again by the next try (a volume answers at once for a shard
//! that it holds), and otherwise swept by the rule for stale copies: not before the time has passed until which the log takes a
//! proposal begun at their last write (`Reseat::not_after`), and the stripe's named holders keep its contract. After it: the new homes are named, and durable since before they were. There is no third state, for the reseat
//! is one command, and compares the placement and the bits that the task was planned on: whichever of two workers with one
//! task comes second is refused, and its copies are the same bytes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::join_all, stream::FuturesUnordered};
use pacsvault_consensus::Replica;
use pacsvault_coordinator::{Coordinator, Options, ReceiptSigner};
use pacsvault_core::{
    catalog::{Command, Outcome, Rejection, Reseat, SealedInstance, query},
    codec::Coder,
    health::{Task, report::Done},
    ids::{ShardIndex, SiteName, VolumeId, WallMillis},
    layout::{Layout, NodeState, VolumeState, profile::Code},
    limits::RESEAT_WINDOW_MILLIS,
    shard::{DurableShard, ShardHeader, headers_of},
};
use pacsvault_ports::{
    crash,
    env::{SharedEnv, blocking},
    peer::{Class, Fault, Freshness, Peer, PutShard, Reply, Request, Target},
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    desk::{REPAIR_FAULT, Stripe, stripe_of},
    governor::{Governor, Urgency},
};

/// Bytes of shards that all tasks of this node may hold: eight stripes of 16 MiB at 4+2 with a shard made again each.
pub const MEMORY_BYTES: u64 = 256 << 20;
/// How long a volume may take to make a shard durable before the task fails.
const PUT_DEADLINE: Duration = Duration::from_secs(20);
/// How long after it began to write a worker may still propose the new homes: half of what the log allows, since catalog time
/// may run before this node's clock. Later the proposal would only be refused.
const PROPOSED_WITHIN: Duration = Duration::from_millis(RESEAT_WINDOW_MILLIS / 2);
/// How long a volume may take to send a shard.
const READ_DEADLINE: Duration = Duration::from_secs(10);

/// A copy of a shard that proved itself.
struct Copy {
    header: ShardHeader,
    data: Bytes,
}

/// Bytes moved by one task.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    read: u64,
    written: u64,
    wan: u64,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.read += other.read;
        self.written += other.written;
        self.wan += other.wan;
    }
}

/// Why a shard could not be had from one volume.
struct Miss {
    text: String,
    /// Asking again cannot help while the cluster stays as it is.
    surely: bool,
}

/// Receipts are never signed here.
struct NoSigner;

impl ReceiptSigner for NoSigner {
    fn name(&self) -> String {
        "repair".to_owned()
    }

    fn sign(&self, _payload: &[u8]) -> Result<Vec<u8>, String> {
        Err("repair signs no receipts".to_owned())
    }
}

/// See the room's text.
pub struct Worker {
    env: SharedEnv,
    peer: Arc<dyn Peer>,
    replica: Arc<dyn Replica>,
    site: SiteName,
    coordinator: Coordinator,
    governor: Mutex<Governor>,
    memory: Arc<Semaphore>,
    busy: Mutex<BTreeSet<Stripe>>,
    coders: Mutex<BTreeMap<Code, Coder>>,
}

/// Takes a stripe off the list of those worked on.
struct Busy<'a> {
    worker: &'a Worker,
    stripe: Stripe,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.worker.busy().remove(&self.stripe);
    }
}

impl Worker {
    /// A worker of the node that is reached as `own`, at `site`, writing at most `rate` bytes per second (0: no limit).
    pub fn new(
        env: SharedEnv,
        peer: Arc<dyn Peer>,
        replica: Arc<dyn Replica>,
        own: Target,
        site: SiteName,
        rate: u64,
    ) -> Self {
        let mut options = Options::new(vec![own]);
        options.site = Some(site.clone());
        options.shard_deadline = READ_DEADLINE;
        options.background = true;
        // Half of it is for reads, 1 GiB. A task reads at most twice what it may hold, 512 MiB for all; two re-encodings read
        // three stripes of 16 MiB each at twice their content, 192 MiB. So nobody waits there while holding bytes.
        options.stripe_memory_bytes = 8 * MEMORY_BYTES;
        let coordinator = Coordinator::new(options, env.clone(), peer.clone(), Arc::new(NoSigner));
        let governor = Mutex::new(Governor::new(rate, env.now().0));
        let permits = usize::try_from(MEMORY_BYTES >> 10).unwrap_or(Semaphore::MAX_PERMITS);
        Self {
            env,
            peer,
            replica,
            site,
            coordinator,
            governor,
            memory: Arc::new(Semaphore::new(permits)),
            busy: Mutex::default(),
            coders: Mutex::default(),
        }
    }

    fn busy(&self) -> MutexGuard<'_, BTreeSet<Stripe>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn governor(&self) -> MutexGuard<'_, Governor> {
        self.governor.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Latency of a client's shard request.
    pub fn foreground(&self, took: Duration) {
        self.governor().foreground(self.env.now().0, took);
    }

    /// Bytes per second that may be moved now; 0: no limit.
    pub fn allowed(&self) -> u64 {
        self.governor().allowed(self.env.now().0)
    }

    /// Reads and writes for background work of this node.
    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// Tasks being worked on.
    pub fn tasks(&self) -> usize {
        self.busy().len()
    }

    /// Waits until `bytes` may be moved. Scrubbing and re-encoding ask here too.
    pub async fn pay(&self, urgency: Urgency, bytes: u64) {
        let ticket = self.governor().ask(self.env.now().0, urgency, bytes);
        loop {
            let pause = self.governor().wait(self.env.now().0, ticket);
            let Some(pause) = pause else { return };
            self.env.sleep(pause).await;
        }
    }

    /// Memory for `bytes`; all there is for what is larger.
    async fn room(&self, bytes: u64) -> OwnedSemaphorePermit {
        let kib = bytes.min(MEMORY_BYTES).div_ceil(1024).max(1);
        let kib = u32::try_from(kib).unwrap_or(u32::MAX >> 4);
        self.memory.clone().acquire_many_owned(kib).await.expect("the semaphore is never closed")
    }

    /// Carries out a task.
    ///
    /// # Errors
    /// Code [`REPAIR_FAULT`]: the stripe could not be repaired now. Any other: this node or the log could not serve.
    pub async fn run(&self, task: Task) -> Result<Done, Fault> {
        let stripe = stripe_of(&task);
        if !self.busy().insert(stripe) {
            return Err(Fault::new(Class::Exhausted, "PV-OVERLOAD", "this node works on that stripe already"));
        }
        let _busy = Busy { worker: self, stripe };
        let Some(sealed) = self.fresh(&task).await? else { return Ok(Done::Outdated) };
        let layout = self.replica.layout().ok_or_else(|| failed(Class::Retry, "this node has no layout yet"))?;
        if task.moves.is_empty() || task.moves.iter().any(|(_, volume)| !layout.counts(*volume)) {
            return Ok(Done::Outdated);
        }
        let code = sealed.seal.code;
        let shard_bytes = code.shard_bytes(sealed.seal.stripes[at(&task)].stripe_bytes);
        let shards = code.total() as u64 + task.moves.len() as u64;
        let _room = self.room(shard_bytes * shards).await;
        let job = Job { worker: self, task: &task, sealed: &sealed, layout: &layout, shard_bytes };
        job.run().await
    }

    /// The record, when the stripe is as the task says: as this replica has it, or as the cluster does.
    async fn fresh(&self, task: &Task) -> Result<Option<SealedInstance>, Fault> {
        if let Some(sealed) = self.look(task).await? {
            return Ok(Some(sealed));
        }
        pacsvault_core::sometimes!("recovery: task did not fit this replica: the log was asked");
        self.replica.wait(Freshness::Linearizable).await?;
        self.look(task).await
    }

    async fn look(&self, task: &Task) -> Result<Option<SealedInstance>, Fault> {
        let (view, instance) = (self.replica.view(), task.instance);
        let read = blocking(self.env.as_ref(), move || query::by_instance(view.as_ref(), instance)).await;
        let read = read.ok_or_else(|| Fault::new(Class::Retry, "PV-STOPPING", "this node is stopping"))?;
        let sealed = read.map_err(|error| Fault::new(Class::Bug, "PV-CATALOG", error.to_string()))?;
        Ok(sealed.filter(|sealed| {
            let stripe = sealed.seal.stripes.get(at(task));
            sealed.deleted.is_none()
                && stripe.is_some_and(|now| now.placement == task.expected && now.persisted == task.persisted)
        }))
    }

    fn coder(&self, code: Code) -> Coder {
        let mut coders = self.coders.lock().unwrap_or_else(PoisonError::into_inner);
        coders.entry(code).or_insert_with(|| Coder::new(code)).clone()
    }
}

fn at(task: &Task) -> usize {
    task.stripe.0 as usize
}

fn failed(class: Class, text: impl Into<String>) -> Fault {
    Fault::new(class, REPAIR_FAULT, text)
}

/// One task on a record that fits it.
struct Job<'a> {
    worker: &'a Worker,
    task: &'a Task,
    sealed: &'a SealedInstance,
    layout: &'a Arc<Layout>,
    shard_bytes: u64,
}

impl Job<'_> {
    async fn run(&self) -> Result<Done, Fault> {
        let mut tally = Tally::default();
        let mut copies: BTreeMap<ShardIndex, Copy> = BTreeMap::new();
        let mut absent = Vec::new();
        // All at once: holders that have just fallen silent each take their time, and meanwhile nobody else may work on this
        // stripe here.
        let asked = self.task.moves.iter().map(|(shard, target)| self.copy(*shard, *target));
        for ((shard, _), (copy, read)) in self.task.moves.iter().zip(join_all(asked).await) {
            tally.add(read);
            match copy {
                Some(copy) => drop(copies.insert(*shard, copy)),
                None => absent.push(*shard),
            }
        }
        if !absent.is_empty() {
            match self.rebuild(&absent, &mut tally).await? {
                Ok(rebuilt) => copies.extend(rebuilt),
                Err(reason) => {
                    pacsvault_core::sometimes!("recovery: repair gave a stripe up");
                    return Ok(Done::Irreparable(reason));
                }
            }
        }
        self.worker.pay(self.urgency(), self.shard_bytes * copies.len() as u64).await;
        let began = self.worker.env.now().0;
        // Read before anything is written: by it a holder knows when its copy can no longer become named.
        let not_after = WallMillis(self.worker.replica.catalog_time().0.saturating_add(RESEAT_WINDOW_MILLIS));
        let durable = self.put(copies, &mut tally).await?;
        if self.worker.env.now().0.saturating_sub(began) > PROPOSED_WITHIN {
            // The log would refuse it soon, and from then on holders may take the copies for stale ones.
            pacsvault_core::sometimes!("recovery: repair gave up: its writes took too long");
            return Err(failed(Class::Retry, "the shards took too long to be written"));
        }
        self.reseat(durable, not_after, tally).await
    }

    fn urgency(&self) -> Urgency {
        Urgency::of(self.task.tier)
    }

    /// Counts bytes that moved between this node and `volume`.
    fn count_wan(&self, tally: &mut Tally, volume: VolumeId) {
        if self.layout.node_of(volume).is_some_and(|node| node.site != self.worker.site) {
            tally.wan += self.shard_bytes;
        }
    }

    /// Its bytes may be read although they do not count: the node is there, by what is known now. A node that fell silent
    /// since this began is asked no more once that is known.
    fn readable(&self, volume: VolumeId) -> bool {
        let present = self.worker.replica.layout();
        let layout = present.as_ref().unwrap_or(self.layout);
        let up = |state| matches!(state, NodeState::Up | NodeState::Suspect);
        let served = layout.volumes.get(&volume).is_some_and(|known| known.state != VolumeState::Away);
        served && layout.node_of(volume).is_some_and(|node| up(node.state))
    }

    /// Where `shard` may lie whole: on its new home already, where the catalog has it, where it was before.
    fn holders(&self, shard: ShardIndex, target: Option<VolumeId>) -> Vec<VolumeId> {
        let named = self.task.expected.get(usize::from(shard.0)).copied();
        let persisted = self.task.persisted & (1 << shard.0) != 0;
        let former = self.sealed.moved.get(&self.task.stripe).and_then(|moved| moved.former.get(&shard)).copied();
        let here = target.filter(|target| Some(*target) == named || Some(*target) == former);
        let mut holders: Vec<VolumeId> = Vec::new();
        for volume in here.into_iter().chain(named.filter(|_| persisted)).chain(former) {
            if !holders.contains(&volume) {
                holders.push(volume);
            }
        }
        holders
    }

    /// One shard whole from a volume that has it, and what was moved for it.
    async fn copy(&self, shard: ShardIndex, target: VolumeId) -> (Option<Copy>, Tally) {
        let mut tally = Tally::default();
        for volume in self.holders(shard, Some(target)).into_iter().filter(|volume| self.readable(*volume)) {
            if let Ok(copy) = self.read(shard, volume, &mut tally).await {
                if volume == target {
                    pacsvault_core::sometimes!("recovery: returned copy adopted where it lies");
                }
                return (Some(copy), tally);
            }
        }
        (None, tally)
    }

    async fn read(&self, shard: ShardIndex, volume: VolumeId, tally: &mut Tally) -> Result<Copy, Fault> {
        self.worker.pay(self.urgency(), self.shard_bytes).await;
        let read = self.worker.coordinator.read_shard(self.sealed, self.task.stripe, shard, volume).await;
        match read {
            Ok((header, data)) => {
                tally.read += self.shard_bytes;
                self.count_wan(tally, volume);
                Ok(Copy { header, data })
            }
            Err(fault) => {
                tracing::debug!(stripe = %self.task.stripe, %shard, %volume, code = fault.code, reason = %fault, "no copy to repair from");
                Err(fault)
            }
        }
    }

    /// Makes the `absent` shards of any `k`. The inner error says why that is impossible.
    async fn rebuild(
        &self,
        absent: &[ShardIndex],
        tally: &mut Tally,
    ) -> Result<Result<BTreeMap<ShardIndex, Copy>, String>, Fault> {
        let shards = match self.gather(absent, tally).await? {
            Ok(shards) => shards,
            Err(reason) => return Ok(Err(reason)),
        };
        let (code, seal) = (self.sealed.seal.code, &self.sealed.seal.stripes[at(self.task)]);
        let coder = self.worker.coder(code);
        let (instance, stripe, bytes, root) =
            (self.task.instance, self.task.stripe, seal.stripe_bytes, seal.shard_root);
        let wanted = absent.to_vec();
        let work = move || {
            let mut places = vec![None; code.total()];
            for (shard, data) in shards {
                places[usize::from(shard.0)] = Some(data);
            }
            let all: Vec<ShardIndex> = (0..=u8::MAX).map(ShardIndex).take(code.total()).collect();
            let all = coder.rebuild(&places, &all).map_err(|error| failed(Class::Bug, error.to_string()))?;
            let (made, headers) = headers_of(instance, stripe, code, bytes, &all);
            pacsvault_core::sometimes!("recovery: lost shards made again");
            if made != root {
                return Ok(Err("its sound shards do not belong to one another: it was written wrongly".to_owned()));
            }
            let made = headers.into_iter().zip(all).map(|(header, data)| (header.id.shard, Copy { header, data }));
            Ok(Ok(made.filter(|(shard, _)| wanted.contains(shard)).collect()))
        };
        let made = blocking(self.worker.env.as_ref(), work).await;
        made.ok_or_else(|| Fault::new(Class::Retry, "PV-STOPPING", "this node is stopping"))?
    }

    /// Any `k` sound shards, own site first.
    async fn gather(
        &self,
        absent: &[ShardIndex],
        tally: &mut Tally,
    ) -> Result<Result<Vec<(ShardIndex, Bytes)>, String>, Fault> {
        let k = self.sealed.seal.code.data();
        let persisted = |shard: &ShardIndex| self.task.persisted & (1 << shard.0) != 0;
        let all = || (0..=u8::MAX).map(ShardIndex).zip(&self.task.expected);
        let ready = |(shard, volume): &(ShardIndex, &VolumeId)| {
            persisted(shard) && !absent.contains(shard) && self.readable(**volume)
        };
        let exclude: BTreeSet<ShardIndex> = all().filter(|pair| !ready(pair)).map(|(shard, _)| shard).collect();
        if all().filter(ready).count() >= k {
            self.worker.pay(self.urgency(), self.shard_bytes * k as u64).await;
            let read = self.worker.coordinator.read_shards(self.sealed, self.task.stripe, &exclude).await;
            match read {
                Ok(shards) => {
                    tally.read += self.shard_bytes * shards.len() as u64;
                    if shards.iter().any(|(shard, _)| self.is_elsewhere(*shard)) {
                        pacsvault_core::sometimes!("recovery: repair read shards of other sites");
                    }
                    for (shard, _) in &shards {
                        self.count_wan(tally, self.task.expected[usize::from(shard.0)]);
                    }
                    return Ok(Ok(shards));
                }
                Err(fault) => tracing::debug!(stripe = %self.task.stripe, %fault, "looking for each shard by itself"),
            }
        }
        self.gather_singly(k, tally).await
    }

    fn is_elsewhere(&self, shard: ShardIndex) -> bool {
        let node = self.layout.node_of(self.task.expected[usize::from(shard.0)]);
        node.is_some_and(|node| node.site != self.worker.site)
    }

    /// Looks for every shard wherever it may be, and learns why it is not there.
    async fn gather_singly(
        &self,
        k: usize,
        tally: &mut Tally,
    ) -> Result<Result<Vec<(ShardIndex, Bytes)>, String>, Fault> {
        pacsvault_core::sometimes!("recovery: repair looked for each shard by itself");
        let mut have = Vec::new();
        let mut misses = BTreeMap::new();
        let mut all: Vec<ShardIndex> = (0..=u8::MAX).map(ShardIndex).take(self.sealed.seal.code.total()).collect();
        all.sort_by_key(|shard| self.is_elsewhere(*shard));
        // As many at once as are needed, another for each that is not there: none is read in vain.
        let mut rest = all.into_iter();
        let mut asked: FuturesUnordered<_> = rest.by_ref().take(k).map(|shard| self.look_for(shard)).collect();
        while let Some((shard, found, missed, read)) = asked.next().await {
            tally.add(read);
            misses.insert(shard, missed);
            match found {
                Some(data) => have.push((shard, data)),
                None => asked.extend(rest.next().map(|shard| self.look_for(shard))),
            }
            if have.len() >= k {
                return Ok(Ok(have));
            }
        }
        let misses: Vec<Miss> = misses.into_values().flatten().collect();
        let told: Vec<String> = misses.iter().map(|miss| miss.text.clone()).collect();
        let text = format!("{} of {k} shards that are needed are sound: {}", have.len(), told.join("; "));
        if misses.iter().all(|miss| miss.surely) { Ok(Err(text)) } else { Err(failed(Class::Retry, text)) }
    }

    /// One shard from any of its holders that are there, why the others did not give it, and what was moved.
    async fn look_for(&self, shard: ShardIndex) -> (ShardIndex, Option<Bytes>, Vec<Miss>, Tally) {
        let (mut misses, mut tally) = (Vec::new(), Tally::default());
        let target = self.task.moves.iter().find(|(moved, _)| *moved == shard).map(|(_, target)| *target);
        let holders = self.holders(shard, target);
        if holders.is_empty() {
            misses.push(Miss { text: format!("shard {shard} was never durable"), surely: true });
        }
        for volume in holders {
            let read = match self.readable(volume) {
                true => self.read(shard, volume, &mut tally).await,
                false => Err(Fault::new(Class::Retry, "PV-UNREACHABLE", "its node is not up")),
            };
            match read {
                Ok(copy) => return (shard, Some(copy.data), misses, tally),
                Err(fault) => misses.push(self.miss(shard, volume, &fault)),
            }
        }
        (shard, None, misses, tally)
    }

    fn miss(&self, shard: ShardIndex, volume: VolumeId, fault: &Fault) -> Miss {
        let fenced = self.layout.volumes.get(&volume).is_none_or(|known| known.state == VolumeState::Fenced);
        let removed = self.layout.node_of(volume).is_none_or(|node| node.state == NodeState::Removed);
        let surely = fenced || removed || matches!(fault.class, Class::NotFound | Class::Corrupt);
        Miss { text: format!("shard {shard} on volume {volume}: {} {fault}", fault.code), surely }
    }

    /// Makes the shards durable on their new homes; those that are.
    async fn put(
        &self,
        copies: BTreeMap<ShardIndex, Copy>,
        tally: &mut Tally,
    ) -> Result<Vec<(ShardIndex, VolumeId)>, Fault> {
        // CRASH(healing.1): nothing is written yet, the stripe is as it was; the next leader or survey plans it again.
        crash::point("healing.1");
        let target = |shard: ShardIndex| self.task.moves.iter().find(|(moved, _)| *moved == shard).map(|(_, to)| *to);
        let calls = copies.into_iter().filter_map(|(shard, copy)| {
            let volume = target(shard)?;
            Some(async move { (shard, volume, self.put_one(volume, copy).await) })
        });
        let mut durable = Vec::new();
        let mut last = None;
        for (shard, volume, result) in join_all(calls).await {
            match result {
                Ok(_) => {
                    tally.written += self.shard_bytes;
                    self.count_wan(tally, volume);
                    durable.push((shard, volume));
                }
                // PLANTED BUG: what was asked for was done.
                Err(_) if pacsvault_core::probe::planted("reseat-unverified") => durable.push((shard, volume)),
                Err(fault) => last = Some((volume, fault)),
            }
        }
        match last {
            Some((volume, fault)) if durable.is_empty() => {
                let text = format!("volume {volume} did not take a shard: {} {fault}", fault.code);
                Err(failed(fault.class, text))
            }
            Some(_) => {
                pacsvault_core::sometimes!("recovery: repair made true what part of it was durable");
                // The rest is planned anew.
                Ok(durable)
            }
            None => Ok(durable),
        }
    }

    async fn put_one(&self, volume: VolumeId, copy: Copy) -> Result<DurableShard, Fault> {
        if self.worker.replica.layout().is_some_and(|present| !present.counts(volume)) {
            return Err(failed(Class::Retry, "its node is not up any more, or it was given up"));
        }
        let node = self.layout.node_of(volume).ok_or_else(|| failed(Class::Retry, "its node is unknown"))?;
        let target = Target { address: node.address.clone(), name: Some(node.name.clone()) };
        let expected = DurableShard { id: copy.header.id, volume, digest: copy.header.digest };
        let put = PutShard { volume, header: copy.header, data: copy.data, repair: true };
        match self.worker.peer.call(&target, Request::PutShard(Box::new(put)), PUT_DEADLINE).await? {
            Reply::Durable(durable) if durable == expected => Ok(durable),
            _ => Err(Fault::new(Class::Bug, "PV-BUG", "a volume confirmed something else than the shard sent")),
        }
    }

    /// Makes the new homes true.
    async fn reseat(
        &self,
        moves: Vec<(ShardIndex, VolumeId)>,
        not_after: WallMillis,
        tally: Tally,
    ) -> Result<Done, Fault> {
        let Task { instance, stripe, expected, persisted, .. } = self.task.clone();
        let reseat = Reseat { instance, stripe, expected, persisted, moves, not_after };
        // CRASH(healing.2): the new copies are durable and named nowhere. The next try finds them there; if the stripe is
        // never planned so again, they are stale copies, swept while the named holders keep the contract.
        crash::point("healing.2");
        let outcomes = self.worker.replica.propose(vec![Command::Reseat(reseat)]).await?;
        // CRASH(healing.3): applied or to be applied; if the leader never hears of it, it finds the stripe whole.
        crash::point("healing.3");
        match outcomes.into_iter().next() {
            Some(Outcome::Rejected(Rejection::Changed(_) | Rejection::NotFound(_))) => Ok(Done::Outdated),
            // The rest is told: mostly the cluster changed meanwhile, but what the log refuses again and again must be seen.
            Some(Outcome::Rejected(why)) => Err(failed(Class::Retry, format!("the log refused the new homes: {why}"))),
            Some(_) => {
                Ok(Done::Reseated { written_bytes: tally.written, read_bytes: tally.read, wan_bytes: tally.wan })
            }
            None => Err(Fault::new(Class::Bug, "PV-BUG", "a proposal was answered with nothing")),
        }
    }
}
